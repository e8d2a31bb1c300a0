//! A disk that keeps a log of its bios, and ends them when it is told to.

use std::collections::VecDeque;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Op};
use holdfast_device::MemoryDevice;
use holdfast_iov::Memory;
use holdfast_units::BlockSize;

use super::{Event, Log};

#[derive(Debug)]
pub(crate) struct Disk {
    medium: MemoryDevice,
    log: Log,
    queue: VecDeque<Bio>,
    pub(crate) limits: Limits,
    /// How many bios end at each reap.
    pub(crate) ends_per_reap: usize,
    /// How many bios are taken before the queue is full.
    pub(crate) depth: usize,
    /// The bios of reads, writes and flushes that fail, by their number in the order of submission.
    pub(crate) failures: Vec<(usize, Error)>,
    /// The most bytes that one transfer moves.
    pub(crate) moves_max: u64,
    /// How many bytes less a transfer of several sectors is told to have moved.
    pub(crate) tells_less: u64,
    taken: usize,
    numbers: VecDeque<usize>,
}

impl Disk {
    pub(crate) fn new(medium: MemoryDevice, log: Log) -> Self {
        Self {
            limits: medium.limits(),
            medium,
            log,
            queue: VecDeque::new(),
            ends_per_reap: usize::MAX,
            depth: usize::MAX,
            failures: Vec::new(),
            moves_max: u64::MAX,
            tells_less: 0,
            taken: 0,
            numbers: VecDeque::new(),
        }
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.queue.len()
    }

    fn carry_out(&mut self, mut bio: Bio, number: usize) -> Ended {
        let failure = self.failures.iter().find(|(at, _)| *at == number);
        if let Some(&(_, error)) = failure {
            return Ended { bio, result: Err(error) };
        }
        let len = bio.len;
        if matches!(bio.op, Op::Read | Op::Write) {
            bio.len = bio.len.min(self.moves_max);
        }
        let mut ended = Vec::new();
        self.medium.submit(bio).unwrap();
        self.medium.reap(&mut ended);
        let mut ended = ended.pop().unwrap();
        ended.bio.len = len;
        ended.result = ended.result.map(|moved| {
            if moved > BlockSize::SECTOR.bytes() { moved - self.tells_less } else { moved }
        });
        ended
    }

    /// Checks what a volume asks of memory: that there is room for the whole sectors that are touched.
    fn check_memory(&self, bio: &Bio) {
        let sector = self.limits.sector;
        let head = sector.offset_in(bio.offset);
        assert!(head + bio.len <= self.limits.bytes_max as u64, "{bio:?}");
        match &bio.memory {
            Memory::Buffer(buffer) => {
                assert_eq!(bio.start as u64, head, "{bio:?}");
                assert!(self.limits.whole_sectors(bio.offset, bio.len) <= buffer.len(), "{bio:?}");
            }
            Memory::Iov(iter) => {
                assert!(sector.is_aligned(bio.offset) && sector.is_aligned(bio.len), "{bio:?}");
                assert_eq!((iter.count() as u64, bio.start), (bio.len, 0), "{bio:?}");
            }
            Memory::None => assert_eq!(bio.op, Op::Flush),
            Memory::Shared(_) => panic!("a volume takes no shared buffer: {bio:?}"),
        }
    }
}

impl BlockDevice for Disk {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn atomic_bytes_max(&self) -> u64 {
        64 << 10
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        if self.queue.len() >= self.depth {
            return Err(bio);
        }
        if self.moves_max == u64::MAX && self.tells_less == 0 {
            self.check_memory(&bio);
        }
        let Bio { op, offset, len, fua, atomic, polled, .. } = bio;
        let copy = matches!(bio.memory, Memory::Buffer(_));
        let event = Event::Submitted { op, offset, len, fua, atomic, polled, copy };
        self.log.borrow_mut().push(event);
        self.numbers.push_back(self.taken);
        self.taken += 1;
        self.queue.push_back(bio);
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        for _ in 0..self.ends_per_reap.min(self.queue.len()) {
            let (Some(bio), Some(number)) = (self.queue.pop_front(), self.numbers.pop_front())
            else {
                return;
            };
            self.log.borrow_mut().push(Event::BioEnded { op: bio.op });
            let item = self.carry_out(bio, number);
            ended.push(item);
        }
    }

    fn wait(&mut self) {}
}
