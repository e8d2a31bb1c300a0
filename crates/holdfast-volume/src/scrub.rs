//! Scrubbing: everything is read and checked, and every corrupt sector is named.

use std::collections::VecDeque;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Mismatch, Op};
use holdfast_iov::{Memory, Pool};
use holdfast_units::to_usize;

use crate::queue::Queue;

/// What a scrub found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// How many bytes were read and verified.
    pub verified: u64,
    /// How many bytes are holes of the file below, which were passed over: never written, and zeros
    /// since nothing is stored there.
    pub holes: u64,
    /// The corrupt sectors, by address, as many as are asked for.
    pub mismatches: Vec<Mismatch>,
    /// How many sectors are corrupt.
    pub corrupt: u64,
    /// Sectors that the device could not read: offset in bytes, and what it said.
    pub unreadable: Vec<(u64, Error)>,
}

/// A scrub of a volume through one queue, a step at a time.
#[derive(Debug)]
pub struct Scrub<'q, D: BlockDevice> {
    queue: &'q mut Queue<D>,
    pool: Pool,
    /// Where the next range begins that has not been looked at.
    position: u64,
    /// Ranges that have to be read a sector at a time, because something in them is corrupt.
    narrow: VecDeque<(u64, u64)>,
    in_flight: usize,
    ended: Vec<Ended>,
    mismatches_max: usize,
    report: ScrubReport,
}

impl<'q, D: BlockDevice> Scrub<'q, D> {
    /// The most reads in flight.
    const DEPTH: usize = 8;

    /// Begins a scrub that names at most `mismatches_max` sectors and counts the others.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn new(queue: &'q mut Queue<D>, mismatches_max: usize) -> std::io::Result<Self> {
        Ok(Self {
            pool: Pool::new(Self::DEPTH << 20)?,
            queue,
            position: 0,
            narrow: VecDeque::new(),
            in_flight: 0,
            ended: Vec::new(),
            mismatches_max,
            report: ScrubReport::default(),
        })
    }

    /// Goes on. Returns how many bytes of the disk are done, or `None` when all are.
    ///
    /// # Errors
    ///
    /// When the device cannot tell where data are. What cannot be read is in the report.
    pub fn step(&mut self) -> Result<Option<u64>, Error> {
        while self.in_flight < Self::DEPTH {
            let Some((offset, len)) = self.next_range()? else { break };
            self.submit(offset, len);
        }
        if self.in_flight == 0 {
            return Ok(None);
        }
        self.queue.wait();
        self.queue.reap(&mut self.ended);
        for ended in std::mem::take(&mut self.ended) {
            self.in_flight -= 1;
            self.take(&ended);
        }
        Ok(Some(self.position))
    }

    /// Returns what was found, sorted by address.
    pub fn finish(mut self) -> ScrubReport {
        self.report.mismatches.sort_unstable_by_key(|mismatch| mismatch.lba);
        self.report.unreadable.sort_unstable_by_key(|&(offset, _)| offset);
        self.report
    }

    /// Returns what is to be read next.
    fn next_range(&mut self) -> Result<Option<(u64, u64)>, Error> {
        let limits = self.queue.limits();
        if let Some((offset, left)) = self.narrow.pop_front() {
            let sector = limits.sector.bytes();
            if left > sector {
                self.narrow.push_front((offset + sector, left - sector));
            }
            return Ok(Some((offset, sector)));
        }
        if self.position == limits.capacity {
            return Ok(None);
        }
        let data = self.queue.data_after(self.position)?.unwrap_or(limits.capacity);
        self.report.holes += data - self.position;
        let len = limits.first_chunk(data, limits.capacity - data, limits.bytes_max);
        self.position = data + len;
        Ok((len > 0).then_some((data, len)))
    }

    fn submit(&mut self, offset: u64, len: u64) {
        let buffer = self.pool.take_whole(to_usize(len));
        let buffer = buffer.expect("there is a buffer for each read in flight");
        let mut bio = Bio::new(Op::Read, offset, len, Memory::Buffer(buffer));
        // A range is read again sector by sector, and only that is reported.
        bio.tentative = len > self.queue.limits().sector.bytes();
        self.in_flight += 1;
        if let Err(bio) = self.queue.submit(bio) {
            unreachable!("a volume's queue is never full: {bio:?}");
        }
    }

    fn take(&mut self, ended: &Ended) {
        let (offset, len) = (ended.bio.offset, ended.bio.len);
        let sector = self.queue.limits().sector.bytes();
        match ended.result {
            Ok(_) => self.report.verified += len,
            Err(_) if len > sector => self.narrow.push_back((offset, len)),
            Err(Error::Mismatch(mismatch)) => {
                self.report.corrupt += 1;
                if self.report.mismatches.len() < self.mismatches_max {
                    self.report.mismatches.push(mismatch);
                }
            }
            Err(error) => self.report.unreadable.push((offset, error)),
        }
    }
}
