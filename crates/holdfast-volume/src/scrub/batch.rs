//! A scrub of a volume that is in use, in batches between which others may go first.

use std::io;

use holdfast_bio::{BlockDevice, Ended, Error};

use super::ScrubReport;
use super::sweep::Sweep;
use crate::queue::Queue;

/// Reads a part of the disk, so that position and result belong together when it is over.
///
/// The reads take the claims of the volume like those of any client, so that what is being written
/// is never misjudged; what they find corrupt is counted and reported by the volume. Whoever owns
/// the queue reaps it, and hands the reads over.
#[derive(Debug)]
pub struct ScrubBatch {
    sweep: Sweep,
    failed: Option<Error>,
}

impl ScrubBatch {
    /// The most bytes that are worth to be one batch: more would wait for the first to end.
    pub const BYTES_MAX: u64 = (Self::DEPTH as u64) << 20;
    /// The most reads in flight.
    const DEPTH: usize = 4;
    /// The most corrupt sectors that a batch names.
    const MISMATCHES_MAX: usize = 64;

    /// Gets memory for the reads.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn new() -> io::Result<Self> {
        Ok(Self { sweep: Sweep::new(Self::DEPTH, Self::MISMATCHES_MAX)?, failed: None })
    }

    /// Begins to read `bytes`, at least a sector, from `position` of the disk on, a multiple of a
    /// sector. What is a hole is passed over.
    pub fn begin<D: BlockDevice>(&mut self, queue: &mut Queue<D>, position: u64, bytes: u64) {
        let sector = queue.limits().sector;
        self.sweep.allow(position, sector.align_down(bytes).max(sector.bytes()));
        self.go_on(queue);
    }

    /// Takes a read that has ended, and goes on.
    pub fn take<D: BlockDevice>(&mut self, queue: &mut Queue<D>, ended: Ended) {
        self.sweep.take(&ended, queue.limits().sector.bytes());
        // What is read next needs its buffer.
        drop(ended);
        self.go_on(queue);
    }

    /// Returns whether everything that was to be read has been.
    pub const fn is_over(&self) -> bool {
        self.sweep.is_idle()
    }

    /// Ends a batch that is over. Returns up to where the disk is done, and what was found.
    ///
    /// # Errors
    ///
    /// When the device could not tell where data are. What cannot be read is in the report.
    pub fn finish(&mut self) -> Result<(u64, ScrubReport), Error> {
        let report = self.sweep.take_report();
        match self.failed.take() {
            Some(error) => Err(error),
            None => Ok((self.sweep.position(), report)),
        }
    }

    fn go_on<D: BlockDevice>(&mut self, queue: &mut Queue<D>) {
        if self.failed.is_none() {
            self.failed = self.sweep.submit(queue).err();
        }
    }
}
