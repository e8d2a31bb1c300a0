//! Where the blocks of the file are, as a queue knows it.

use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use holdfast_bio::{BlockDevice, SharedQueue};
use holdfast_iomap::{Error, How, Ioend, IoendKind, Kind, Mapper, Mapping, Purpose};
use holdfast_units::BlockSize;
use holdfast_xfs::{ExtentList, Ino, XfsError};

use crate::file::Shared;
use crate::keeper::{Answer, Ask, Question};

/// A queue's view of the file.
#[derive(Debug)]
pub(crate) struct View<Q: BlockDevice> {
    shared: Arc<Shared>,
    extents: Arc<ExtentList>,
    version: u64,
    /// The thread's queue of the device.
    device: SharedQueue<Q>,
}

/// How long nobody looks at the queue of the device while the keeper is at work.
const PATIENCE: Duration = Duration::from_micros(20);

impl<Q: BlockDevice> View<Q> {
    pub(crate) fn new(shared: &Arc<Shared>, device: SharedQueue<Q>) -> Self {
        // Before the extents: what changes meanwhile is seen later.
        let version = shared.version();
        Self { extents: shared.extents(), version, shared: Arc::clone(shared), device }
    }

    pub(crate) fn ino(&self) -> Ino {
        self.shared.ino
    }

    /// Asks the keeper, and waits for the answer. What the device has in flight goes on: the keeper may
    /// wait for it, with a queue of its own.
    pub(crate) fn ask(&self, ask: Ask) -> Answer {
        let (answer, wait) = mpsc::sync_channel(1);
        let gone = Error::FileSystem(XfsError::Broken);
        if self.shared.asks.send(Question { ask, answer }).is_err() {
            return Err(gone);
        }
        loop {
            match wait.recv_timeout(PATIENCE) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) => self.poll(),
                Err(RecvTimeoutError::Disconnected) => return Err(gone),
            }
        }
    }

    /// Lets what the device has in flight go on.
    pub(crate) fn poll(&self) {
        self.device.go_on();
    }

    fn known(&mut self, offset: u64) -> Mapping {
        let version = self.shared.version();
        if version != self.version {
            (self.version, self.extents) = (version, self.shared.extents());
        }
        self.extents.map(offset, &self.shared.geometry).into()
    }
}

impl<Q: BlockDevice> Mapper for View<Q> {
    type File = Ino;
    type Error = XfsError;

    fn block(&self, _file: Ino) -> BlockSize {
        self.shared.geometry.block
    }

    fn size(&self, _file: Ino) -> u64 {
        self.shared.size
    }

    fn begin(
        &mut self,
        _file: Ino,
        offset: u64,
        len: u64,
        how: How,
    ) -> Result<Mapping, Error<XfsError>> {
        let known = self.known(offset);
        let is_write = matches!(how.purpose, Purpose::Write | Purpose::Zero);
        let must_ask = match known.kind {
            Kind::Mapped { .. } => self.shared.is_shared,
            Kind::Hole => how.purpose == Purpose::Write,
            _ => false,
        };
        if !(is_write && must_ask) {
            return Ok(known);
        }
        let answer = self.ask(Ask::Map { offset, len, how })?;
        answer.ok_or(Error::FileSystem(XfsError::Broken))
    }

    fn complete(&mut self, ioend: &Ioend<Ino, XfsError>) -> Result<(), Error<XfsError>> {
        match ioend.kind {
            IoendKind::Read => Ok(()),
            IoendKind::Overwrite if ioend.size.is_none() => {
                // Relaxed: the keeper looks at it in its own time.
                self.shared.is_touched.store(true, Ordering::Relaxed);
                Ok(())
            }
            _ => self.ask(Ask::Complete(ioend.clone())).map(drop),
        }
    }

    fn commit(&mut self, _file: Ino) -> Result<(), Error<XfsError>> {
        self.ask(Ask::Sync).map(drop)
    }
}
