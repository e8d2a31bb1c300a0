//! The file system that is mounted, and the files that are open.

use std::collections::HashMap;
use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};

use fuser::FileHandle;
use holdfast_xfs::{Entry, ExtentList, Geometry, Ino, Inode, Reader, Xfs, XfsError};

use crate::queues::Queues;
use crate::writing::Writers;

/// A file system that is mounted.
#[derive(Debug)]
pub(crate) struct Files {
    /// The metadata. Whoever holds it blocks others for no longer than a few of them take to read, or
    /// what was changed to be stored.
    xfs: Mutex<Xfs<Queues>>,
    open: RwLock<OpenFiles>,
    /// Readers that nobody uses.
    readers: Mutex<Vec<Reader<Queues>>>,
    /// What is needed to write, when that is allowed.
    pub(crate) writers: Option<Writers>,
    pub(crate) geometry: Geometry,
    pub(crate) root: Ino,
}

/// The regular files that are open.
#[derive(Debug, Default)]
struct OpenFiles {
    handles: HashMap<u64, Arc<OpenFile>>,
    /// Each file once, with how many use it.
    files: HashMap<Ino, (Arc<OpenFile>, usize)>,
    last_handle: u64,
}

/// A regular file that is open, once for all who have it open.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) ino: Ino,
    /// Who reads data holds it for reading until they are there, and who changes the file, alone: so
    /// nothing that is in flight is given to another file, and nobody reads half a write.
    known: RwLock<Known>,
}

/// What is known of an open file.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) inode: Inode,
    pub(crate) extents: Arc<ExtentList>,
}

impl OpenFile {
    /// Returns what is known of it, for as long as nobody may change it.
    pub(crate) fn known(&self) -> RwLockReadGuard<'_, Known> {
        // It is replaced in one step.
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what is known of it, for as long as nobody else may use it.
    pub(crate) fn known_alone(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An entry of a directory, and its inode if it can be read.
pub(crate) struct FoundEntry {
    pub(crate) entry: Entry,
    pub(crate) inode: Option<Inode>,
}

impl Files {
    /// With `writers`, of a file system that is mounted for writing, files can be changed.
    pub(crate) fn new(xfs: Xfs<Queues>, writers: Option<Writers>) -> Self {
        let (geometry, root) = (*xfs.geometry(), xfs.root());
        let (open, readers) = (RwLock::default(), Mutex::default());
        Self { xfs: Mutex::new(xfs), open, readers, writers, geometry, root }
    }

    /// Stores all that is not yet, and ends the use of the file system.
    pub(crate) fn unmount(self) -> Result<(), XfsError> {
        self.xfs.into_inner().unwrap_or_else(PoisonError::into_inner).unmount()
    }

    /// Returns the metadata, for as long as nobody else may use them.
    pub(crate) fn xfs(&self) -> MutexGuard<'_, Xfs<Queues>> {
        // Nothing in it is half changed by a read that panicked.
        self.xfs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the metadata, unless somebody else uses them now.
    pub(crate) fn try_xfs(&self) -> Option<MutexGuard<'_, Xfs<Queues>>> {
        match self.xfs.try_lock() {
            Ok(xfs) => Some(xfs),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Returns what a name in a directory leads to.
    pub(crate) fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<Inode>, XfsError> {
        let mut xfs = self.xfs();
        let dir = xfs.inode(dir)?;
        let found = xfs.lookup(&dir, name)?;
        found.map(|ino| inode_now(&mut xfs, ino)).transpose()
    }

    pub(crate) fn inode(&self, ino: Ino) -> Result<Inode, XfsError> {
        inode_now(&mut self.xfs(), ino)
    }

    /// Returns some entries of a directory from a position on, and none at its end.
    pub(crate) fn entries(&self, dir: Ino, position: u64) -> Result<Vec<Entry>, XfsError> {
        let mut xfs = self.xfs();
        let dir = xfs.inode(dir)?;
        xfs.read_dir(&dir, position)
    }

    /// Returns as many entries as [`entries`](Self::entries), with their inodes. One that cannot be
    /// read does not hide the others.
    pub(crate) fn entries_with_inodes(
        &self,
        dir: Ino,
        position: u64,
    ) -> Result<Vec<FoundEntry>, XfsError> {
        let mut xfs = self.xfs();
        let dir = xfs.inode(dir)?;
        let entries = xfs.read_dir(&dir, position)?;
        let with_inode = |entry: Entry| {
            let inode = inode_now(&mut xfs, entry.ino).inspect_err(|error| {
                crate::errno::report(error);
            });
            FoundEntry { entry, inode: inode.ok() }
        };
        Ok(entries.into_iter().map(with_inode).collect())
    }

    /// Opens a regular file.
    pub(crate) fn open(&self, ino: Ino) -> Result<FileHandle, XfsError> {
        let file = self.acquire(ino)?;
        let mut open = self.open_files();
        open.last_handle += 1;
        let handle = open.last_handle;
        open.handles.insert(handle, file);
        Ok(FileHandle(handle))
    }

    /// Returns an open file.
    pub(crate) fn opened(&self, handle: FileHandle) -> Option<Arc<OpenFile>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.handles.get(&handle.0).map(Arc::clone)
    }

    pub(crate) fn close(&self, handle: FileHandle) -> Result<(), XfsError> {
        let file = self.open_files().handles.remove(&handle.0);
        file.map_or(Ok(()), |file| self.release(&file))
    }

    /// Returns a regular file, for one more who uses it.
    pub(crate) fn acquire(&self, ino: Ino) -> Result<Arc<OpenFile>, XfsError> {
        // Nobody else can make it meanwhile.
        let mut xfs = self.xfs();
        if let Some((file, users)) = self.open_files().files.get_mut(&ino) {
            *users += 1;
            return Ok(Arc::clone(file));
        }
        let known = RwLock::new(look(&mut xfs, ino)?);
        xfs.open(ino)?;
        let file = Arc::new(OpenFile { ino, known });
        self.open_files().files.insert(ino, (Arc::clone(&file), 1));
        Ok(file)
    }

    /// Ends a use of a file.
    pub(crate) fn release(&self, file: &OpenFile) -> Result<(), XfsError> {
        let mut xfs = self.xfs();
        let mut open = self.open_files();
        let Some((_, users)) = open.files.get_mut(&file.ino) else { return Ok(()) };
        *users -= 1;
        if *users > 0 {
            return Ok(());
        }
        open.files.remove(&file.ino);
        drop(open);
        xfs.close(file.ino)
    }

    fn open_files(&self) -> RwLockWriteGuard<'_, OpenFiles> {
        // Nothing panics that changes it.
        self.open.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what a file is now.
    pub(crate) fn look(&self, ino: Ino) -> Result<Known, XfsError> {
        look(&mut self.xfs(), ino)
    }

    /// Reads a part of a file, and gives it to `take`.
    pub(crate) fn read<R>(
        &self,
        known: &Known,
        offset: u64,
        len: usize,
        take: impl FnOnce(Result<&[u8], XfsError>) -> R,
    ) -> R {
        let mut reader = match self.reader() {
            Ok(reader) => reader,
            Err(error) => return take(Err(error)),
        };
        let taken = take(reader.read(&known.inode, &known.extents, offset, len));
        self.readers().push(reader);
        taken
    }

    fn readers(&self) -> MutexGuard<'_, Vec<Reader<Queues>>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a reader that nobody uses. There are as many as threads that read at the same time.
    fn reader(&self) -> Result<Reader<Queues>, XfsError> {
        let waiting = self.readers().pop();
        waiting.map_or_else(
            || {
                let queues = self.xfs().device().clone();
                Reader::new(queues, &self.geometry)
            },
            Ok,
        )
    }
}

/// Returns an inode as it is now, with the time of the last write to it.
fn inode_now(xfs: &mut Xfs<Queues>, ino: Ino) -> Result<Inode, XfsError> {
    xfs.touch(ino)?;
    xfs.inode(ino)
}

fn look(xfs: &mut Xfs<Queues>, ino: Ino) -> Result<Known, XfsError> {
    let inode = xfs.inode(ino)?;
    let extents = xfs.extents(&inode)?;
    Ok(Known { inode, extents })
}
