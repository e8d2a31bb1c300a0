//! Opening a file or block device for exclusive direct I/O.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_units::BlockSize;
use rustix::fs::{AtFlags, FlockOperation, OFlags, StatxFlags};
use thiserror::Error;

use crate::mapped::Mapped;

/// Who else may use what is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Nobody: for writing.
    ReadWrite,
    /// Others who only read.
    ReadOnly,
    /// Anybody, without a lock: to look at what may change meanwhile.
    Peek,
}

/// Why a file or device could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by {}", path.display(), holder_text(*holder))]
    InUse {
        /// What was to be opened.
        path: PathBuf,
        /// The process that has it open, where the kernel tells.
        holder: Option<u32>,
    },
    /// It is a directory, a socket, or something else that stores no bytes.
    #[error("{} is neither a file nor a block device", path.display())]
    Kind {
        /// What was to be opened.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// How long locks are waited for whose user has gone.
const PATIENCE: Duration = Duration::from_secs(5);

fn holder_text(holder: Option<u32>) -> String {
    holder.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

/// An open file or block device, to be used by any number of queues.
#[derive(Debug)]
pub struct Backing {
    path: PathBuf,
    fd: OwnedFd,
    bytes: u64,
    access: Access,
    block: BlockSize,
    memory_alignment: BlockSize,
    /// Of a file that is memory.
    mapped: Option<Arc<Mapped>>,
}

impl Backing {
    /// Opens what exists.
    ///
    /// # Errors
    ///
    /// [`OpenError::InUse`] when somebody else has it open in a way that excludes `access`.
    pub fn open(path: &Path, access: Access) -> Result<Self, OpenError> {
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        Self::take(open_file(path, access, &options)?, path, access)
    }

    /// Opens what exists, also right after its last user has ended or has closed it: the kernel gives up
    /// their locks only when what their rings had in flight has ended, so that is waited for, for 5
    /// seconds at most.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_in_time(path: &Path, access: Access) -> Result<Self, OpenError> {
        let until = Instant::now() + PATIENCE;
        loop {
            match Self::open(path, access) {
                Err(OpenError::InUse { holder, .. })
                    if may_be_over(holder) && Instant::now() < until =>
                {
                    std::thread::sleep(Duration::from_millis(5));
                }
                opened => return opened,
            }
        }
    }

    /// Creates a sparse file of `bytes`, or takes a block device that is at least so large.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open); EEXIST for a file that exists.
    pub fn create(path: &Path, bytes: u64) -> Result<Self, OpenError> {
        let is_device = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(!is_device);
        let file = open_file(path, Access::ReadWrite, &options)?;
        let taken = Self::take(file, path, Access::ReadWrite);
        if is_device {
            return taken;
        }
        taken.and_then(|backing| backing.resize(bytes)).inspect_err(|_| {
            // It was made here, and is of no use; the first error is the one to tell.
            let _removed = fs::remove_file(path);
        })
    }

    /// Locks and measures what was opened.
    fn take(file: File, path: &Path, access: Access) -> Result<Self, OpenError> {
        let error = |what| move |source| OpenError::Io { what, path: path.to_owned(), source };
        let meta = file.metadata().map_err(error("examine"))?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(OpenError::Kind { path: path.to_owned() });
        }
        lock(&file, &meta, path, access)?;
        if access != Access::Peek {
            drop_cached(&file);
        }
        let (block, memory_alignment) = direct_alignment(&file);
        let bytes = size(&file).map_err(error("measure"))?;
        let (path, fd) = (path.to_owned(), OwnedFd::from(file));
        Ok(Self { path, fd, bytes, access, block, memory_alignment, mapped: None }.map())
    }

    fn resize(mut self, bytes: u64) -> Result<Self, OpenError> {
        rustix::fs::ftruncate(&self.fd, bytes).map_err(|errno| OpenError::Io {
            what: "set the size of",
            path: self.path.clone(),
            source: errno.into(),
        })?;
        self.bytes = bytes;
        Ok(self.map())
    }

    /// Maps what is memory, if it may be written to.
    fn map(mut self) -> Self {
        if self.access == Access::ReadWrite {
            self.mapped = Mapped::new(&self.fd, self.bytes).map(Arc::new);
        }
        self
    }

    pub(crate) fn mapped(&self) -> Option<Arc<Mapped>> {
        self.mapped.clone()
    }

    pub(crate) const fn file(&self) -> &OwnedFd {
        &self.fd
    }

    /// Returns the path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns its size in bytes.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether it was opened without the right to write.
    pub fn is_read_only(&self) -> bool {
        self.access != Access::ReadWrite
    }

    /// Returns what offsets and lengths of direct I/O must be multiples of.
    pub const fn block(&self) -> BlockSize {
        self.block
    }

    /// Returns what addresses of memory for direct I/O must be multiples of.
    pub const fn memory_alignment(&self) -> BlockSize {
        self.memory_alignment
    }

    /// Returns a process that has a lock, ours included, without taking one. `None` says little: the
    /// kernel shows neither processes of other containers nor, on some file systems, which file it is.
    pub fn holder(&self) -> Option<u32> {
        let stat = rustix::fs::fstat(&self.fd).ok()?;
        find_lock_holder(stat.st_dev, stat.st_ino)
    }

    /// Gives up the lock, so that others may open it, though there may be queues of it that are idle.
    pub fn release(&self) {
        // It may not have had one, and then there is nothing to give up.
        let _unlocked = rustix::fs::flock(&self.fd, FlockOperation::Unlock);
    }

    /// Returns another descriptor of the same open file.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

/// Opens for direct I/O where the file system knows it.
fn open_file(path: &Path, access: Access, options: &OpenOptions) -> Result<File, OpenError> {
    let error = |what| move |source| OpenError::Io { what, path: path.to_owned(), source };
    let is_device = fs::metadata(path).is_ok_and(|meta| meta.file_type().is_block_device());
    // open(2): on a block device this excludes the kernel's own users, such as a mounted file
    // system, which take no locks.
    let exclusive =
        if is_device && access == Access::ReadWrite { OFlags::EXCL } else { OFlags::empty() };
    let flags = (OFlags::DIRECT | exclusive).bits().cast_signed();
    match options.clone().custom_flags(flags).open(path) {
        Err(found) if found.kind() == io::ErrorKind::ResourceBusy => {
            Err(OpenError::InUse { path: path.to_owned(), holder: None })
        }
        // The file system knows no direct I/O.
        Err(found) if found.raw_os_error() == Some(22) => {
            // A file that was created by the first try is opened by the second.
            let flags = exclusive.bits().cast_signed();
            let mut again = options.clone();
            again.create_new(false).custom_flags(flags).open(path).map_err(error("open"))
        }
        other => other.map_err(error("open")),
    }
}

/// Has the kernel forget what it has of a file in its page cache: while there is anything, each direct write has to
/// look for what it makes stale, and ends in a thread of the file system's.
fn drop_cached(file: &File) {
    // It is as correct without, and slower.
    let _kept = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

/// Takes the lock that `access` asks for.
fn lock(file: &File, meta: &fs::Metadata, path: &Path, access: Access) -> Result<(), OpenError> {
    let operation = match access {
        Access::ReadWrite => FlockOperation::NonBlockingLockExclusive,
        Access::ReadOnly => FlockOperation::NonBlockingLockShared,
        Access::Peek => return Ok(()),
    };
    match rustix::fs::flock(file, operation) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let holder = find_lock_holder(meta.dev(), meta.ino());
            Err(OpenError::InUse { path: path.to_owned(), holder })
        }
        Err(errno) => {
            Err(OpenError::Io { what: "lock", path: path.to_owned(), source: errno.into() })
        }
    }
}

/// Finds who holds an flock(2) lock.
fn find_lock_holder(device: u64, inode: u64) -> Option<u32> {
    // The kernel hands the list out by a page at most, and goes on by the number of the line: where a lock before
    // it was released in between, a line is missed.
    const LOOKS: usize = 16;
    const AT_ONCE: usize = 2048;
    for _ in 0..LOOKS {
        let mut locks = String::with_capacity(64 << 10);
        File::open("/proc/locks").ok()?.read_to_string(&mut locks).ok()?;
        let found = lock_holder(&locks, device, inode);
        if found.is_some() || locks.len() < AT_ONCE {
            return found;
        }
    }
    None
}

/// Finds who holds an flock(2) lock in the text of `/proc/locks` (proc(5)).
fn lock_holder(locks: &str, device: u64, inode: u64) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let place = format!("{major:02x}:{minor:02x}:{inode}");
    locks.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (kind, _, _) = (fields.next()?, fields.next()?, fields.next()?);
        let (pid, found) = (fields.next()?, fields.next()?);
        // A waiting lock has "->" before its kind, and so does not match.
        (kind == "FLOCK" && found == place).then(|| pid.parse().ok())?
    })
}

/// Returns whether a lock may be left from a use that is over. After the end of its process nobody can
/// say whose it is, and this process may have closed the file already.
fn may_be_over(holder: Option<u32>) -> bool {
    holder.is_none_or(|holder| holder == std::process::id() || is_dead(holder))
}

/// Returns whether a process has ended, if only its parent does not know yet (proc(5)).
fn is_dead(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
        // The name may have anything in it, parentheses included.
        let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
        matches!(state, Some('Z' | 'X'))
    })
}

/// Returns the alignment of offsets and of memory that direct I/O asks for (statx(2)).
fn direct_alignment(file: &File) -> (BlockSize, BlockSize) {
    const STATX_DIOALIGN: StatxFlags = StatxFlags::from_bits_retain(0x2000);
    let aligned = |bytes: u32| BlockSize::new(u64::from(bytes)).filter(|_| bytes >= 512);
    match rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, STATX_DIOALIGN) {
        Ok(found) if found.stx_mask & STATX_DIOALIGN.bits() != 0 => (
            aligned(found.stx_dio_offset_align).unwrap_or(BlockSize::SECTOR),
            aligned(found.stx_dio_mem_align).unwrap_or(BlockSize::SECTOR),
        ),
        _ => (BlockSize::SECTOR, BlockSize::SECTOR),
    }
}

/// Returns the size of a file or a block device.
fn size(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file.as_fd(), rustix::fs::SeekFrom::End(0))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    #[test]
    fn the_second_opener_is_told_who_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let _first = Backing::create(&path, 4096).unwrap();
        match Backing::open(&path, Access::ReadOnly) {
            Err(OpenError::InUse { holder, .. }) => assert_eq!(holder, Some(std::process::id())),
            other => panic!("the lock was not seen: {other:?}"),
        }
    }

    #[test]
    fn what_was_released_can_be_opened_though_a_descriptor_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let first = Backing::create(&path, 4096).unwrap();
        let _descriptor = first.descriptor().unwrap();
        first.release();
        assert_eq!(Backing::open(&path, Access::ReadWrite).unwrap().bytes(), 4096);
    }

    #[test]
    fn what_is_closed_soon_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let first = Backing::create(&path, 4096).unwrap();
        let opening = path.clone();
        let second = std::thread::spawn(move || Backing::open_in_time(&opening, Access::ReadWrite));
        // It has met the lock, or will find none.
        std::thread::yield_now();
        drop(first);
        assert_eq!(second.join().unwrap().unwrap().bytes(), 4096);
    }

    #[test]
    fn a_process_is_dead_from_its_end_on_also_when_nobody_has_asked_for_it() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        while !is_dead(child.id()) && Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(is_dead(child.id()) && !is_dead(std::process::id()));
        child.wait().unwrap();
        assert!(is_dead(child.id()));
    }

    #[test]
    fn a_holder_is_found_without_a_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        drop(Backing::create(&path, 4096).unwrap());
        let peeked = Backing::open(&path, Access::Peek).unwrap();
        assert_eq!(peeked.holder(), None);
        let _reader = Backing::open(&path, Access::ReadOnly).unwrap();
        assert_eq!(peeked.holder(), Some(std::process::id()));
    }

    #[test]
    fn a_holder_is_found_also_while_others_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        let busy: Vec<_> =
            (0..400).map(|_| File::create(dir.path().join("busy")).unwrap()).collect();
        let lock = |file: &File| rustix::fs::flock(file, FlockOperation::LockShared).unwrap();
        let unlock = |file: &File| rustix::fs::flock(file, FlockOperation::Unlock).unwrap();
        busy.iter().for_each(lock);
        let disk = Backing::create(&path, 4096).unwrap();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    busy.iter().for_each(unlock);
                    busy.iter().for_each(lock);
                }
            });
            let found = (0..200).filter_map(|_| disk.holder()).count();
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(found, 200);
        });
    }

    #[test]
    fn readers_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        drop(Backing::create(&path, 4096).unwrap());
        let first = Backing::open(&path, Access::ReadOnly).unwrap();
        let second = Backing::open(&path, Access::ReadOnly).unwrap();
        assert_eq!((first.bytes(), second.bytes()), (4096, 4096));
    }

    #[test]
    fn a_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let found = Backing::open(dir.path(), Access::ReadOnly);
        assert!(matches!(found, Err(OpenError::Kind { .. })), "{found:?}");
    }

    #[test]
    fn a_waiting_lock_is_no_holder() {
        let locks = "1: -> FLOCK  ADVISORY  WRITE 7 00:05:9 0 EOF\n2: FLOCK  ADVISORY  WRITE 8 00:05:9 0 EOF\n";
        assert_eq!(lock_holder(locks, 5, 9), Some(8));
    }
}
