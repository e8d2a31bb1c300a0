//! The thread that has the file system.

use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};

use holdfast_bio::BlockDevice;
use holdfast_iomap::{Error, How, Ioend, Mapper, Mapping};
use holdfast_units::BlockSize;
use holdfast_xfs::{Ino, Kind, MountOptions, Xfs, XfsError};

use crate::file::{FileError, Shared};

/// What a queue asks for.
#[derive(Debug)]
pub(crate) enum Ask {
    /// Where something can be written.
    Map { offset: u64, len: u64, how: How },
    /// That something was written.
    Complete(Ioend<Ino, XfsError>),
    /// That everything becomes durable.
    Sync,
    /// That whole blocks read as zeros; with `keep` they all have space afterwards.
    Clear { offset: u64, len: u64, keep: bool },
    /// That nothing more is asked.
    End,
}

/// What it is told.
pub(crate) type Answer = Result<Option<Mapping>, Error<XfsError>>;

/// Something that is asked, and where the answer goes.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) ask: Ask,
    pub(crate) answer: mpsc::SyncSender<Answer>,
}

/// The file system, and what is asked of it.
pub(crate) struct Keeper<D> {
    xfs: Xfs<D>,
    shared: Arc<Shared>,
    questions: mpsc::Receiver<Question>,
}

impl<D: BlockDevice> Keeper<D> {
    pub(crate) fn open(
        device: D,
        path: &[u8],
        asks: mpsc::Sender<Question>,
        questions: mpsc::Receiver<Question>,
    ) -> Result<Self, FileError> {
        let options = MountOptions { write: true, ..MountOptions::default() };
        let mut xfs = Xfs::mount(device, &options)?;
        let geometry = *xfs.geometry();
        let block = geometry.block;
        if block > BlockSize::PAGE {
            return Err(FileError::Block { block: block.bytes() });
        }
        let inode = xfs.walk(path, true)?;
        let (ino, size) = (inode.ino(), inode.size());
        if inode.kind() != Kind::Regular {
            return Err(XfsError::NotFile { ino }.into());
        }
        if size < block.bytes() {
            return Err(FileError::Short { size, block: block.bytes() });
        }
        xfs.open(ino)?;
        let extents = xfs.extents(&inode)?;
        let is_shared = inode.may_be_shared();
        let shared = Shared::new(ino, geometry, size, is_shared, extents, asks);
        Ok(Self { xfs, shared: Arc::new(shared), questions })
    }

    pub(crate) const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Answers until it is told to end, and unmounts the file system.
    pub(crate) fn run(mut self) -> Result<(), XfsError> {
        while let Ok(Question { ask, answer }) = self.questions.recv() {
            if matches!(ask, Ask::End) {
                break;
            }
            let found = self.answer(ask);
            // Who asked waits for it.
            let _gone = answer.send(found);
        }
        self.note_touch();
        self.xfs.close(self.shared.ino)?;
        self.xfs.unmount()
    }

    fn answer(&mut self, ask: Ask) -> Answer {
        let ino = self.shared.ino;
        match ask {
            Ask::Map { offset, len, how } => {
                let mapping = self.xfs.begin(ino, offset, len, how)?;
                self.publish()?;
                Ok(Some(mapping))
            }
            Ask::Complete(ioend) => {
                self.xfs.complete(&ioend)?;
                self.publish()?;
                Ok(None)
            }
            Ask::Sync => {
                self.note_touch();
                self.xfs.sync()?;
                Ok(None)
            }
            Ask::Clear { offset, len, keep } => {
                self.xfs.unwrite(ino, offset, len)?;
                if keep {
                    self.xfs.allocate(ino, offset, len, true)?;
                }
                self.publish()?;
                Ok(None)
            }
            Ask::End => Ok(None),
        }
    }

    fn note_touch(&mut self) {
        // Relaxed: what was written later is noted later.
        if self.shared.is_touched.swap(false, Ordering::Relaxed) {
            self.xfs.set_touched(self.shared.ino);
        }
    }

    fn publish(&mut self) -> Result<(), XfsError> {
        let inode = self.xfs.inode(self.shared.ino)?;
        let extents = self.xfs.extents(&inode)?;
        self.shared.publish(extents);
        Ok(())
    }
}
