//! A guest that keeps to the rules, with a buffer of its own.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use holdfast_units::to_u64;
use holdfast_virtio_driver::{
    BlkQueue, Client, Completion, Memory, Options, Range, Request, Segment, Shape, Status,
};

use super::{PATIENCE, assert_same, pattern};

/// Two small queues, and memory in three regions.
pub(crate) fn guest_options() -> Options {
    Options {
        queues: 2,
        regions: 3,
        memory_bytes: 12 << 20,
        patience: PATIENCE,
        ..Options::default()
    }
}

/// Waits until all requests of a queue have ended.
#[track_caller]
pub(crate) fn drain(queue: &mut BlkQueue) -> Vec<Completion> {
    let (mut ended, began) = (Vec::new(), Instant::now());
    // A call that comes late ends the wait for the next request early.
    while !queue.drain(PATIENCE, &mut ended).unwrap() {
        assert!(began.elapsed() < PATIENCE, "{} requests have not ended", queue.in_flight());
    }
    ended
}

/// Runs one request to its end.
#[track_caller]
pub(crate) fn ask(queue: &mut BlkQueue, request: &Request<'_>, shape: Shape) -> Completion {
    let token = queue.submit(request, shape).unwrap();
    let ended = drain(queue);
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].token, token);
    ended[0]
}

/// A client that moves data through one buffer, by its queue 0.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) client: Client,
    pub(crate) memory: Arc<Memory>,
    /// Where the buffer is.
    pub(crate) base: u64,
}

impl Guest {
    /// The bytes of the buffer.
    pub(crate) const BUFFER: usize = 2 << 20;

    pub(crate) fn new(path: &Path, options: &Options) -> Self {
        let client = Client::connect(path, options).unwrap();
        let memory = Arc::clone(client.memory());
        let base = memory.allocate(to_u64(Self::BUFFER), 4096).unwrap();
        Self { client, memory, base }
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, request: &Request<'_>) -> Status {
        ask(self.client.queue(0), request, Shape::default()).status
    }

    /// Writes from the buffer's byte `at` on.
    #[track_caller]
    pub(crate) fn write_from(&mut self, at: u64, offset: u64, data: &[u8]) -> Status {
        let source = [segment(self.base + at, data.len())];
        self.memory.write(source[0].address, data).unwrap();
        assert!(offset.is_multiple_of(512));
        self.ask(&Request::Write { sector: offset / 512, source: &source })
    }

    #[track_caller]
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Status {
        self.write_from(0, offset, data)
    }

    /// Reads into the buffer's byte `at` on.
    #[track_caller]
    pub(crate) fn read_to(&mut self, at: u64, offset: u64, len: usize) -> Result<Vec<u8>, Status> {
        let target = [segment(self.base + at, len)];
        self.memory.write(target[0].address, &vec![0xee; len]).unwrap();
        match self.ask(&Request::Read { sector: offset / 512, target: &target }) {
            Status::Ok => {
                let mut bytes = vec![0; len];
                self.memory.read(target[0].address, &mut bytes).unwrap();
                Ok(bytes)
            }
            other => Err(other),
        }
    }

    #[track_caller]
    pub(crate) fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Status> {
        self.read_to(0, offset, len)
    }

    #[track_caller]
    pub(crate) fn flush(&mut self) -> Status {
        self.ask(&Request::Flush)
    }

    #[track_caller]
    pub(crate) fn zero(&mut self, offset: u64, len: u64, flags: u32) -> Status {
        self.ask(&Request::WriteZeroes { ranges: &[range(offset, len, flags)] })
    }

    #[track_caller]
    pub(crate) fn discard(&mut self, offset: u64, len: u64) -> Status {
        self.ask(&Request::Discard { ranges: &[range(offset, len, 0)] })
    }
}

fn segment(address: u64, len: usize) -> Segment {
    Segment { address, len: u32::try_from(len).unwrap() }
}

fn range(offset: u64, len: u64, flags: u32) -> Range {
    Range { sector: offset / 512, sectors: u32::try_from(len / 512).unwrap(), flags }
}

/// Writes and reads the `len` bytes at `offset` until it is told that it is over, and returns how often.
pub(crate) fn verify_until(path: &Path, offset: u64, len: usize, is_over: &AtomicBool) -> u64 {
    let options =
        Options { memory_bytes: 4 << 20, queues: 1, patience: PATIENCE, ..Options::default() };
    let mut guest = Guest::new(path, &options);
    let mut rounds = 0;
    while !is_over.load(Ordering::Relaxed) || rounds < 2 {
        let data = pattern(offset ^ rounds, len);
        assert_eq!(guest.write(offset, &data), Status::Ok);
        assert_same(&guest.read(offset, len).unwrap(), &data);
        rounds += 1;
    }
    rounds
}
