//! What a scrub reads next, and what it makes of what it has read. Waits for nothing.

use std::collections::VecDeque;
use std::io;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Op};
use holdfast_iov::{Memory, Pool};
use holdfast_units::to_usize;

use super::ScrubReport;
use crate::queue::Queue;

/// Reads of a volume from some position on, several at a time.
#[derive(Debug)]
pub(super) struct Sweep {
    pool: Pool,
    /// The most reads in flight.
    depth: usize,
    /// Where the next range begins that has not been looked at.
    position: u64,
    /// How many more bytes may be read, when none is read twice.
    budget: u64,
    /// Ranges that have to be read a sector at a time, because something in them is corrupt.
    narrow: VecDeque<(u64, u64)>,
    in_flight: usize,
    mismatches_max: usize,
    report: ScrubReport,
}

impl Sweep {
    pub(super) fn new(depth: usize, mismatches_max: usize) -> io::Result<Self> {
        Ok(Self {
            pool: Pool::new(depth << 20)?,
            depth,
            position: 0,
            budget: 0,
            narrow: VecDeque::new(),
            in_flight: 0,
            mismatches_max,
            report: ScrubReport::default(),
        })
    }

    /// Allows to read `budget` bytes, whole sectors, from `position` on. Holes cost nothing.
    pub(super) const fn allow(&mut self, position: u64, budget: u64) {
        (self.position, self.budget) = (position, budget);
    }

    /// Submits what there is to read.
    pub(super) fn submit<D: BlockDevice>(&mut self, queue: &mut Queue<D>) -> Result<(), Error> {
        while self.in_flight < self.depth {
            let Some((offset, len)) = self.next_range(queue)? else { break };
            let buffer = self.pool.take_whole(to_usize(len));
            let buffer = buffer.expect("there is a buffer for each read in flight");
            // Of a mirror all legs are read, and get what is intact on others.
            let op = if queue.legs() > 1 { Op::Repair } else { Op::Read };
            let mut bio = Bio::new(op, offset, len, Memory::Buffer(buffer));
            // A range is read again sector by sector, and only that is reported.
            bio.tentative = len > queue.limits().sector.bytes();
            self.in_flight += 1;
            queue.start(bio);
        }
        Ok(())
    }

    /// Takes a read that has ended, on a volume with sectors of `sector` bytes.
    pub(super) fn take(&mut self, ended: &Ended, sector: u64) {
        self.in_flight -= 1;
        let (offset, len) = (ended.bio.offset, ended.bio.len);
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

    /// Returns whether nothing is in flight. After [`submit`](Self::submit) there is then nothing
    /// left to read.
    pub(super) const fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Returns the position, from which on nothing was looked at.
    pub(super) const fn position(&self) -> u64 {
        self.position
    }

    /// Returns what was found since this was asked last, sorted by address, and forgets what was still
    /// to be read.
    pub(super) fn take_report(&mut self) -> ScrubReport {
        self.narrow.clear();
        let mut report = std::mem::take(&mut self.report);
        report.mismatches.sort_unstable_by_key(|mismatch| mismatch.lba);
        report.unreadable.sort_unstable_by_key(|&(offset, _)| offset);
        report
    }

    /// Returns what is to be read next.
    fn next_range<D: BlockDevice>(
        &mut self,
        queue: &Queue<D>,
    ) -> Result<Option<(u64, u64)>, Error> {
        let limits = queue.limits();
        if let Some((offset, left)) = self.narrow.pop_front() {
            let sector = limits.sector.bytes();
            if left > sector {
                self.narrow.push_front((offset + sector, left - sector));
            }
            return Ok(Some((offset, sector)));
        }
        if self.position == limits.capacity || self.budget == 0 {
            return Ok(None);
        }
        let data = queue.data_after(self.position)?.unwrap_or(limits.capacity);
        self.report.holes += data - self.position;
        let most = (limits.capacity - data).min(self.budget);
        let len = limits.first_chunk(data, most, limits.bytes_max);
        self.position = data + len;
        self.budget -= len;
        Ok((len > 0).then_some((data, len)))
    }
}
