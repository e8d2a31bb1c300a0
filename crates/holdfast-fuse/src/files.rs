//! The file system that is mounted, and the files that are open.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fuser::FileHandle;
use holdfast_xfs::{Entry, ExtentList, Geometry, Ino, Inode, Reader, Xfs, XfsError};

use crate::queues::Queues;

/// A file system that is mounted.
#[derive(Debug)]
pub(crate) struct Files {
    /// The metadata. Whoever holds it blocks others for no longer than a few of them take to read.
    xfs: Mutex<Xfs<Queues>>,
    open: RwLock<HashMap<u64, Arc<OpenFile>>>,
    next_handle: AtomicU64,
    /// Readers that nobody uses.
    readers: Mutex<Vec<Reader<Queues>>>,
    pub(crate) geometry: Geometry,
    pub(crate) root: Ino,
}

/// A regular file that is open.
#[derive(Debug)]
pub(crate) struct OpenFile {
    pub(crate) inode: Inode,
    pub(crate) extents: Arc<ExtentList>,
}

/// An entry of a directory, and its inode if it can be read.
pub(crate) struct FoundEntry {
    pub(crate) entry: Entry,
    pub(crate) inode: Option<Inode>,
}

impl Files {
    pub(crate) fn new(xfs: Xfs<Queues>) -> Self {
        let (geometry, root) = (*xfs.geometry(), xfs.root());
        Self {
            xfs: Mutex::new(xfs),
            open: RwLock::default(),
            next_handle: AtomicU64::new(1),
            readers: Mutex::default(),
            geometry,
            root,
        }
    }

    /// Returns the metadata, for as long as nobody else may use them.
    pub(crate) fn xfs(&self) -> MutexGuard<'_, Xfs<Queues>> {
        // Nothing in it is half changed by a read that panicked.
        self.xfs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what a name in a directory leads to.
    pub(crate) fn find(&self, dir: Ino, name: &[u8]) -> Result<Option<Inode>, XfsError> {
        let mut xfs = self.xfs();
        let dir = xfs.inode(dir)?;
        let found = xfs.lookup(&dir, name)?;
        found.map(|ino| xfs.inode(ino)).transpose()
    }

    pub(crate) fn inode(&self, ino: Ino) -> Result<Inode, XfsError> {
        self.xfs().inode(ino)
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
            let inode = xfs.inode(entry.ino).inspect_err(|error| {
                crate::errno::report(error);
            });
            FoundEntry { entry, inode: inode.ok() }
        };
        Ok(entries.into_iter().map(with_inode).collect())
    }

    /// Opens a regular file.
    pub(crate) fn open(&self, ino: Ino) -> Result<FileHandle, XfsError> {
        let mut xfs = self.xfs();
        let inode = xfs.inode(ino)?;
        let extents = xfs.extents(&inode)?;
        drop(xfs);
        // Relaxed: it only has to be another one each time.
        let handle = self.next_handle.fetch_add(1, Ordering::Relaxed);
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        open.insert(handle, Arc::new(OpenFile { inode, extents }));
        Ok(FileHandle(handle))
    }

    /// Returns an open file.
    pub(crate) fn opened(&self, handle: FileHandle) -> Option<Arc<OpenFile>> {
        let open = self.open.read().unwrap_or_else(PoisonError::into_inner);
        open.get(&handle.0).map(Arc::clone)
    }

    pub(crate) fn close(&self, handle: FileHandle) {
        self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&handle.0);
    }

    /// Reads a part of an open file, and gives it to `take`.
    pub(crate) fn read<R>(
        &self,
        file: &OpenFile,
        offset: u64,
        len: usize,
        take: impl FnOnce(Result<&[u8], XfsError>) -> R,
    ) -> R {
        let mut reader = match self.reader() {
            Ok(reader) => reader,
            Err(error) => return take(Err(error)),
        };
        let taken = take(reader.read(&file.inode, &file.extents, offset, len));
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
