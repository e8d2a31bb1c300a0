//! Scrubbing: everything is read and checked, and every corrupt sector is named.

mod batch;
mod shared;
mod sweep;

use holdfast_bio::{BlockDevice, Ended, Error, Mismatch};

use self::sweep::Sweep;
use crate::queue::Queue;

pub use self::batch::ScrubBatch;
pub(crate) use self::shared::SharedRecord;

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
    sweep: Sweep,
    ended: Vec<Ended>,
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
        let mut sweep = Sweep::new(Self::DEPTH, mismatches_max)?;
        sweep.allow(0, queue.limits().capacity);
        Ok(Self { queue, sweep, ended: Vec::new() })
    }

    /// Goes on. Returns how many bytes of the disk are done, or `None` when all are.
    ///
    /// # Errors
    ///
    /// When the device cannot tell where data are. What cannot be read is in the report.
    pub fn step(&mut self) -> Result<Option<u64>, Error> {
        self.sweep.submit(self.queue)?;
        if self.sweep.is_idle() {
            return Ok(None);
        }
        self.queue.wait();
        self.queue.reap(&mut self.ended);
        let sector = self.queue.limits().sector.bytes();
        for ended in self.ended.drain(..) {
            self.sweep.take(&ended, sector);
        }
        Ok(Some(self.sweep.position()))
    }

    /// Returns what was found, sorted by address.
    pub fn finish(mut self) -> ScrubReport {
        self.sweep.take_report()
    }
}
