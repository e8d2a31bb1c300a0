//! A file system of one map, a disk that keeps a log, and both together.

#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(clippy::allow_attributes, reason = "what is used differs from test to test")]

pub(crate) mod disk;
pub(crate) mod fs;
pub(crate) mod volume;
pub(crate) mod world;

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use disk::Disk;
use fs::{FsError, TestFs};
use holdfast_bio::{Op, ReadPolicy};
use holdfast_device::MemoryDevice;
use holdfast_iomap::{DirectIo, Direction, Finished, Flags, How, Ioend, Request};
use holdfast_iov::{IovIter, Memory, Pool, Region, VolatileMemory};

pub(crate) const BLOCK: usize = 4096;
pub(crate) const CAPACITY: usize = 8 << 20;
/// What is on the disk where nothing was written.
pub(crate) const STALE: u8 = 0xee;
pub(crate) const FILE: u32 = 7;

pub(crate) type Failure = holdfast_iomap::Error<FsError>;
pub(crate) type Io = DirectIo<Disk, u32, FsError>;

/// What happened, in order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Event {
    Submitted { op: Op, offset: u64, len: u64, fua: bool, atomic: bool, polled: bool, copy: bool },
    BioEnded { op: Op },
    Begin { offset: u64, len: u64, how: How },
    End { offset: u64, done: u64 },
    Inline { offset: u64, len: usize },
    Complete(Ioend<u32, FsError>),
    Commit,
}

pub(crate) type Log = Rc<RefCell<Vec<Event>>>;

/// A file system on a disk, with requests to it.
pub(crate) struct Bench {
    pub(crate) io: Io,
    pub(crate) fs: TestFs,
    pub(crate) log: Log,
    pub(crate) medium: MemoryDevice,
    pub(crate) pool: Pool,
}

impl Bench {
    pub(crate) fn new() -> Self {
        Self::with(|_| ())
    }

    /// Returns a bench whose disk was changed by `change`.
    pub(crate) fn with(change: impl FnOnce(&mut Disk)) -> Self {
        let medium = MemoryDevice::new(CAPACITY as u64);
        medium.store(0, &vec![STALE; CAPACITY]);
        let log = Log::default();
        let pool = Pool::new(16 << 20).unwrap();
        let mut disk = Disk::new(medium.clone(), Rc::clone(&log));
        change(&mut disk);
        let io = DirectIo::new(disk, pool.clone(), ReadPolicy::Always);
        let fs = TestFs::new(Rc::clone(&log));
        Self { io, fs, log, medium, pool }
    }

    pub(crate) fn disk(&mut self) -> &mut Disk {
        self.io.device_mut().device_mut()
    }

    pub(crate) fn submit(&mut self, request: Request<u32>) {
        self.io.submit(&mut self.fs, request);
    }

    pub(crate) fn reap(&mut self) -> Vec<Finished<u32, FsError>> {
        let mut finished = Vec::new();
        self.io.reap(&mut self.fs, &mut finished);
        finished
    }

    /// Goes on until `count` requests have ended.
    pub(crate) fn finish(&mut self, count: usize) -> Vec<Finished<u32, FsError>> {
        let mut finished = Vec::new();
        for _ in 0..10_000 {
            if finished.len() == count {
                return finished;
            }
            self.io.wait();
            self.io.reap(&mut self.fs, &mut finished);
        }
        panic!("nothing goes on: {} of {count} ended", finished.len());
    }

    pub(crate) fn run(&mut self, request: Request<u32>) -> Finished<u32, FsError> {
        self.submit(request);
        self.finish(1).pop().unwrap()
    }

    /// Returns a buffer with these bytes.
    pub(crate) fn buffer(&self, bytes: &[u8]) -> Memory {
        let mut buffer = self.pool.take_whole(bytes.len()).unwrap();
        buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
        Memory::Buffer(buffer)
    }

    pub(crate) fn write_of(&self, offset: usize, bytes: &[u8]) -> Request<u32> {
        let memory = self.buffer(bytes);
        Request::new(Direction::Write, FILE, offset as u64, bytes.len() as u64, memory)
    }

    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<u64, Failure> {
        let request = self.write_of(offset, bytes);
        self.run(request).result
    }

    pub(crate) fn write_with(
        &mut self,
        offset: usize,
        bytes: &[u8],
        flags: Flags,
    ) -> Result<u64, Failure> {
        let request = self.write_of(offset, bytes).with_flags(flags);
        self.run(request).result
    }

    pub(crate) fn read_of(&self, offset: usize, len: usize) -> Request<u32> {
        // What is not read must not look like zeros.
        let memory = self.buffer(&vec![0x55; len]);
        Request::new(Direction::Read, FILE, offset as u64, len as u64, memory)
    }

    /// Reads, and returns all of the memory.
    pub(crate) fn read(&mut self, offset: usize, len: usize) -> (Result<u64, Failure>, Vec<u8>) {
        let request = self.read_of(offset, len);
        let finished = self.run(request);
        let buffer = finished.request.memory.buffer().unwrap();
        (finished.result, buffer.as_slice()[..len].to_vec())
    }

    /// Returns what a program would read of the file.
    pub(crate) fn contents(&self) -> Vec<u8> {
        self.fs.contents(FILE, |address, target| self.medium.load(address, target))
    }

    pub(crate) fn size(&self) -> usize {
        self.contents().len()
    }

    pub(crate) fn clear_log(&self) {
        self.log.borrow_mut().clear();
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.log.borrow().clone()
    }

    /// Returns the bios that the disk got: what they did, where, and how long they were.
    pub(crate) fn bios(&self) -> Vec<(Op, u64, u64)> {
        let events = self.events();
        let bios = events.iter().filter_map(|event| match event {
            Event::Submitted { op, offset, len, .. } => Some((*op, *offset, *len)),
            _ => None,
        });
        bios.collect()
    }

    pub(crate) fn ioends(&self) -> Vec<Ioend<u32, FsError>> {
        let events = self.events();
        let ioends = events.iter().filter_map(|event| match event {
            Event::Complete(ioend) => Some(ioend.clone()),
            _ => None,
        });
        ioends.collect()
    }
}

/// Returns bytes that are neither zeros nor stale.
pub(crate) fn data(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|at| u8::try_from((at * 7 + at / 251 + usize::from(seed)) % 200 + 1).unwrap())
        .collect()
}

/// Returns memory that somebody else may change, with these bytes from `skip` on.
pub(crate) fn volatile(bytes: &[u8], skip: usize) -> (Arc<VolatileMemory>, IovIter) {
    let region = Region::anonymous((bytes.len() + skip).max(1)).unwrap();
    region.write(skip, bytes).unwrap();
    let memory = Arc::new(VolatileMemory::new(vec![region]));
    let mut iter = IovIter::new(Arc::clone(&memory));
    iter.push(0, skip, bytes.len()).unwrap();
    (memory, iter)
}
