//! Resyncing: a leg of a mirror gets what it missed.

use std::collections::VecDeque;
use std::ops::Range;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Op};
use holdfast_iov::{Memory, Pool};
use holdfast_units::to_usize;

use crate::queue::Queue;

/// A resync of a leg through one queue, a step at a time.
#[derive(Debug)]
pub struct Resync<'q, D: BlockDevice> {
    queue: &'q mut Queue<D>,
    pool: Pool,
    leg: u8,
    /// The ranges of the disk that are left.
    ranges: VecDeque<Range<u64>>,
    skip_holes: bool,
    in_flight: usize,
    ended: Vec<Ended>,
    /// How many bytes of the disk were copied.
    copied: u64,
}

impl<'q, D: BlockDevice> Resync<'q, D> {
    /// The most ranges in flight.
    const DEPTH: usize = 4;

    /// Begins to copy to a leg what it missed, in ranges of bytes of the device. Without them the leg
    /// holds nothing, and gets all that is stored.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn new(
        queue: &'q mut Queue<D>,
        leg: u8,
        missed: Option<&[Range<u64>]>,
    ) -> std::io::Result<Self> {
        let geometry = *queue.volume().geometry();
        let disk = 0..geometry.capacity();
        let ranges = missed.map_or_else(
            || VecDeque::from([disk]),
            |missed| missed.iter().map(|range| geometry.disk_range(range)).collect(),
        );
        Ok(Self {
            pool: Pool::new(Self::DEPTH << 20)?,
            queue,
            leg,
            ranges,
            skip_holes: missed.is_none(),
            in_flight: 0,
            ended: Vec::new(),
            copied: 0,
        })
    }

    /// Returns how many bytes of the disk are left.
    pub fn left(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// Goes on. Returns whether there is more to do.
    ///
    /// # Errors
    ///
    /// When a leg cannot tell where data are, or the one that is resynced cannot be written.
    pub fn step(&mut self) -> Result<bool, Error> {
        while self.in_flight < Self::DEPTH {
            let Some((offset, len)) = self.next_range()? else { break };
            let buffer = self.pool.take_whole(to_usize(len));
            let buffer = buffer.expect("there is a buffer for each range in flight");
            let bio = Bio::new(Op::Repair, offset, len, Memory::Buffer(buffer)).with_leg(self.leg);
            self.in_flight += 1;
            self.queue.start(bio);
        }
        if self.in_flight == 0 {
            return Ok(false);
        }
        self.queue.wait();
        self.queue.reap(&mut self.ended);
        if self.ended.is_empty() {
            // What we wait for may be in another thread's hands.
            std::thread::yield_now();
        }
        for ended in std::mem::take(&mut self.ended) {
            self.in_flight -= 1;
            self.copied += ended.result?;
        }
        Ok(true)
    }

    /// Makes durable what was copied, with the tuples and the superblocks. Returns how many bytes of the
    /// disk that were.
    ///
    /// # Errors
    ///
    /// When a flush fails.
    pub fn finish(self) -> Result<u64, Error> {
        for _ in 0..2 {
            // The copies of the superblock take turns.
            self.queue.volume().keep_news();
            let all = Bio { fua: true, ..Bio::flush() };
            self.queue.run(all).result?;
        }
        Ok(self.copied)
    }

    fn next_range(&mut self) -> Result<Option<(u64, u64)>, Error> {
        let limits = self.queue.limits();
        let mut range = loop {
            let Some(mut range) = self.ranges.pop_front() else { return Ok(None) };
            if self.skip_holes {
                let data = self.queue.data_after(range.start)?;
                let data = data.map_or(range.end, |data| data.min(range.end));
                range.start = data;
            }
            if !range.is_empty() {
                break range;
            }
        };
        let len = limits.first_chunk(range.start, range.end - range.start, limits.bytes_max);
        let next = (range.start, len);
        range.start += len;
        if !range.is_empty() {
            self.ranges.push_front(range);
        }
        Ok(Some(next))
    }
}
