//! A volume as ordinary, blocking reads and writes.

use holdfast_bio::{Bio, BlockDevice, Bounce, BounceCounters, Ended, Error, Op, ReadPolicy};
use holdfast_iov::{IovIter, Memory, Pool, lend, lend_mut};
use holdfast_units::to_u64;

use crate::queue::Queue;

/// Blocking access to a volume, for programs that do one thing at a time.
///
/// Memory that is borrowed for the time of a call is stable, and used without a copy where its
/// alignment allows; volatile memory is bounced by the [`ReadPolicy`].
#[derive(Debug)]
pub struct Client<D: BlockDevice> {
    bounce: Bounce<Queue<D>>,
    ended: Vec<Ended>,
}

impl<D: BlockDevice> Client<D> {
    /// Uses `queue`, with bounce buffers from `pool`.
    pub fn new(queue: Queue<D>, pool: Pool, read_policy: ReadPolicy) -> Self {
        Self { bounce: Bounce::new(queue, pool, read_policy), ended: Vec::new() }
    }

    /// Returns the queue.
    pub const fn queue(&mut self) -> &mut Queue<D> {
        self.bounce.device_mut()
    }

    /// Returns what was bounced so far.
    pub const fn bounce_counters(&self) -> BounceCounters {
        self.bounce.counters()
    }

    /// Reads at `offset`. Offset and length are multiples of 512 bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Mismatch`] for a corrupt sector, and whatever the device says; `target` then holds
    /// bytes of no meaning.
    pub fn read_at(&mut self, offset: u64, target: &mut [u8]) -> Result<(), Error> {
        lend_mut(target, |iter| self.move_data(Op::Read, offset, iter, false))
    }

    /// Writes at `offset`. Offset and length are multiples of 512 bytes.
    ///
    /// # Errors
    ///
    /// Whatever the device says; the range then holds old and new sectors.
    pub fn write_at(&mut self, offset: u64, source: &[u8]) -> Result<(), Error> {
        lend(source, |iter| self.move_data(Op::Write, offset, iter, false))
    }

    /// Reads into volatile memory, or writes from it, durably if `fua` says so.
    ///
    /// # Errors
    ///
    /// As for [`read_at`](Self::read_at) and [`write_at`](Self::write_at).
    pub fn move_data(
        &mut self,
        op: Op,
        offset: u64,
        mut iter: IovIter,
        fua: bool,
    ) -> Result<(), Error> {
        let len = to_u64(iter.count());
        let limits = self.bounce.limits();
        let chunks: Vec<_> = limits.chunks(offset, len).collect();
        self.run(chunks.into_iter().map(|(at, chunk)| {
            let memory = Memory::Iov(iter.split_to(holdfast_units::to_usize(chunk)));
            let mut bio = Bio::new(op, at, chunk, memory);
            bio.fua = fua;
            bio
        }))
    }

    /// Makes a range of whole sectors read as zeros, in the way that `op` says.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] when the way is none that the storage knows, and whatever it says.
    pub fn clear(&mut self, op: Op, offset: u64, len: u64) -> Result<(), Error> {
        let limits = self.bounce.limits();
        let chunks: Vec<_> = limits.chunks(offset, len).collect();
        self.run(chunks.into_iter().map(|(at, chunk)| Bio::new(op, at, chunk, Memory::None)))
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    ///
    /// Whatever the device says; what was written since the flush before may then be lost.
    pub fn flush(&mut self) -> Result<(), Error> {
        self.run([Bio::flush()].into_iter())
    }

    /// Submits all bios and waits for all. The first error counts.
    fn run(&mut self, bios: impl Iterator<Item = Bio>) -> Result<(), Error> {
        let mut result = Ok(());
        let mut in_flight = 0_usize;
        for mut bio in bios {
            in_flight += 1;
            while let Err(refused) = self.bounce.submit(bio) {
                bio = refused;
                in_flight -= self.collect(&mut result);
            }
        }
        while in_flight > 0 {
            in_flight -= self.collect(&mut result);
        }
        // The volume may have begun something of its own, for which other queues wait.
        self.bounce.device_mut().drain();
        result
    }

    /// Waits for what ends next, and returns how many bios that was.
    fn collect(&mut self, result: &mut Result<(), Error>) -> usize {
        self.bounce.wait();
        self.bounce.reap(&mut self.ended);
        let ended = self.ended.len();
        if ended == 0 {
            // What we wait for may be in another thread's hands.
            std::thread::yield_now();
        }
        for item in self.ended.drain(..) {
            *result = result.and(item.result.map(drop));
        }
        ended
    }
}
