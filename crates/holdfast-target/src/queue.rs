//! One thread's way to the file.

use std::io;

use holdfast_bio::{
    Bio, BlockDevice, DiskQueue, Ended, Error, Limits, Op, ReadPolicy, SharedQueue,
};
use holdfast_iomap::{DirectIo, Direction, Error as FileError, Finished, Flags, Request};
use holdfast_iov::{Memory, Pool};
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs::{Ino, XfsError};
use slab::Slab;

use crate::file::FileDisk;
use crate::keeper::Ask;
use crate::mapper::View;

/// The memory for data that are copied on their way, in bytes.
const POOL: usize = 16 << 20;

/// A queue of a file that is a disk, over a queue of the device that the file system is on.
///
/// A flush, the first write to a block, a discard and a write of zeros block the thread until the keeper
/// has done its part. A discard leaves the file its space: what was there reads as zeros.
#[derive(Debug)]
pub struct FileQueue<Q: DiskQueue> {
    direct: DirectIo<SharedQueue<Q>, Ino, XfsError>,
    view: View<Q>,
    limits: Limits,
    /// Bios without their memory, while that is below.
    bios: Slab<Bio>,
    ended: Vec<Ended>,
    finished: Vec<Finished<Ino, XfsError>>,
}

impl<Q: DiskQueue> FileQueue<Q> {
    /// Opens a queue of `file` over a queue of its device, which goes on while the keeper is waited for.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn new(file: &FileDisk, device: Q, read_policy: ReadPolicy) -> io::Result<Self> {
        let below = device.limits();
        let block = file.block();
        let limits = Limits {
            capacity: file.capacity(),
            sector: block,
            granularity: block,
            memory_alignment: below.memory_alignment,
            bytes_max: below.bytes_max,
            boundary: None,
            stable_pages: false,
            guards: None,
            read_only: false,
            in_memory: below.in_memory,
        };
        let device = SharedQueue::new(device);
        let view = View::new(&file.shared, device.clone());
        let direct = DirectIo::new(device, Pool::new(POOL)?, read_policy);
        let (bios, ended, finished) = (Slab::new(), Vec::new(), Vec::new());
        Ok(Self { direct, view, limits, bios, ended, finished })
    }

    fn start(&mut self, mut bio: Bio, direction: Direction) {
        let memory = std::mem::replace(&mut bio.memory, Memory::None);
        let flags = Flags { dsync: bio.fua, ..Flags::default() };
        let (offset, len, start) = (bio.offset, bio.len, bio.start);
        let user = to_u64(self.bios.insert(bio));
        let mut request = Request::new(direction, self.view.ino(), offset, len, memory);
        request.start = start;
        self.direct.submit(&mut self.view, request.with_flags(flags).with_user(user));
    }

    fn end(&mut self, bio: Bio, answer: Result<(), FileError<XfsError>>) {
        let len = bio.len;
        self.ended.push(Ended { bio, result: answer.map(|()| len).map_err(|error| told(&error)) });
    }
}

/// Returns what a client is told of a failure; what only its operator can mend is logged.
fn told(error: &FileError<XfsError>) -> Error {
    match error {
        FileError::Bio(error) => *error,
        FileError::FileSystem(XfsError::NoSpace) => Error::NoSpace,
        FileError::FileSystem(XfsError::Device { source, .. } | XfsError::Write { source, .. }) => {
            *source
        }
        error => {
            tracing::error!("a request for a file failed: {error}");
            Error::IO
        }
    }
}

impl<Q: DiskQueue> BlockDevice for FileQueue<Q> {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        let (offset, len) = (bio.offset, bio.len);
        if let Err(error) = self.limits.check(offset, len) {
            self.ended.push(Ended { bio, result: Err(error) });
            return Ok(());
        }
        match bio.op {
            Op::Read => self.start(bio, Direction::Read),
            Op::Write => self.start(bio, Direction::Write),
            Op::Flush => {
                let answer = self.view.ask(Ask::Sync).map(drop);
                self.end(bio, answer);
            }
            Op::Discard | Op::Zero { fast: false, .. } => {
                let keep = matches!(bio.op, Op::Zero { keep: true, .. });
                let clear = Ask::Clear { offset, len, keep };
                let mut answer = self.view.ask(clear).map(drop);
                if bio.fua && answer.is_ok() {
                    answer = self.view.ask(Ask::Sync).map(drop);
                }
                self.end(bio, answer);
            }
            Op::Zero { .. } | Op::Allocate | Op::Map | Op::Repair => {
                self.end(bio, Err(FileError::Bio(Error::Unsupported)));
            }
        }
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.ended);
        let mut finished = std::mem::take(&mut self.finished);
        self.direct.reap(&mut self.view, &mut finished);
        for Finished { request, result } in finished.drain(..) {
            let mut bio = self.bios.remove(to_usize(request.user));
            bio.memory = request.memory;
            ended.push(Ended { bio, result: result.map_err(|error| told(&error)) });
        }
        self.finished = finished;
    }

    fn wait(&mut self) {
        if self.ended.is_empty() {
            self.direct.wait();
        }
    }

    fn has_notes(&self) -> bool {
        !self.ended.is_empty()
            || self.direct.is_ready()
            || self.direct.device().device().has_notes()
    }

    fn poll(&mut self) {
        self.view.poll();
    }
}

impl<Q: DiskQueue> DiskQueue for FileQueue<Q> {}
