//! What all queues of a file share.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use holdfast_bio::BlockDevice;
use holdfast_units::BlockSize;
use holdfast_xfs::{ExtentList, Geometry, Ino, XfsError};
use thiserror::Error;

use crate::keeper::{Ask, Keeper, Question};

/// Why a file cannot be served.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FileError {
    /// The device cannot be opened, or the thread not started.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// What the file system says.
    #[error(transparent)]
    Xfs(#[from] XfsError),
    /// The blocks of the file system are larger than those of any guest's disk.
    #[error("the file system has blocks of {block} bytes, and a disk has at most 4096")]
    Block {
        /// The size of its blocks, in bytes.
        block: u64,
    },
    /// The file is too short to be a disk.
    #[error("the file has {size} bytes, less than the {block} of a block: make it longer first")]
    Short {
        /// The size of the file, in bytes.
        size: u64,
        /// The size of a block, in bytes.
        block: u64,
    },
}

/// A file that is a disk.
#[derive(Debug)]
pub struct FileDisk {
    pub(crate) shared: Arc<Shared>,
    keeper: Mutex<Option<JoinHandle<Result<(), XfsError>>>>,
}

/// What the queues and the keeper share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) ino: Ino,
    pub(crate) geometry: Geometry,
    /// The size of the file, in bytes.
    pub(crate) size: u64,
    /// Other files may have some of its blocks, so that the keeper is asked where to write.
    pub(crate) is_shared: bool,
    pub(crate) asks: mpsc::Sender<Question>,
    extents: Mutex<Arc<ExtentList>>,
    /// Changes with the extents.
    version: AtomicU64,
    /// Data were written since the keeper was told last.
    pub(crate) is_touched: AtomicBool,
}

impl Shared {
    pub(crate) fn new(
        ino: Ino,
        geometry: Geometry,
        size: u64,
        is_shared: bool,
        extents: Arc<ExtentList>,
        asks: mpsc::Sender<Question>,
    ) -> Self {
        let (version, is_touched) = (AtomicU64::new(0), AtomicBool::new(false));
        let extents = Mutex::new(extents);
        Self { ino, geometry, size, is_shared, asks, extents, version, is_touched }
    }

    fn list(&self) -> MutexGuard<'_, Arc<ExtentList>> {
        // It is replaced in one step.
        self.extents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets all queues see where the blocks are now.
    pub(crate) fn publish(&self, extents: Arc<ExtentList>) {
        *self.list() = extents;
        // Release pairs with the acquire in `version`.
        self.version.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn extents(&self) -> Arc<ExtentList> {
        Arc::clone(&self.list())
    }
}

impl FileDisk {
    /// Opens the file at `path` of the file system on a device, which `open` opens in the keeper's thread.
    ///
    /// # Errors
    ///
    /// As [`FileError`] tells.
    pub fn open<D: BlockDevice>(
        open: impl FnOnce() -> io::Result<D> + Send + 'static,
        path: &[u8],
    ) -> Result<Self, FileError> {
        let (asks, questions) = mpsc::channel();
        let (ready, opened) = mpsc::sync_channel(1);
        let (path, sender) = (path.to_vec(), asks);
        let thread = std::thread::Builder::new().name("xfs".to_owned()).spawn(move || {
            let keeper = open()
                .map_err(FileError::from)
                .and_then(|device| Keeper::open(device, &path, sender, questions));
            match keeper {
                Ok(keeper) => {
                    // The other thread waits for this.
                    let _waiting = ready.send(Ok(Arc::clone(keeper.shared())));
                    keeper.run()
                }
                Err(error) => {
                    let _waiting = ready.send(Err(error));
                    Ok(())
                }
            }
        })?;
        let ended = || FileError::from(io::Error::other("the thread of the file system ended"));
        let shared = opened.recv().map_err(|_| ended())??;
        Ok(Self { shared, keeper: Mutex::new(Some(thread)) })
    }

    /// Returns the size of the disk, in bytes: all whole blocks that the file has.
    pub fn capacity(&self) -> u64 {
        self.block().align_down(self.shared.size)
    }

    /// Returns the size of the blocks that requests are made of.
    pub fn block(&self) -> BlockSize {
        self.shared.geometry.block
    }

    /// Ends the use of the file, after its queues: unmounts the file system.
    ///
    /// # Errors
    ///
    /// Whatever hinders; the file system then stays marked as damaged.
    pub fn close(&self) -> Result<(), XfsError> {
        let thread = self.keeper.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(thread) = thread else { return Ok(()) };
        let (answer, _nobody) = mpsc::sync_channel(1);
        // A keeper that has ended needs not be told.
        let _gone = self.shared.asks.send(Question { ask: Ask::End, answer });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}
