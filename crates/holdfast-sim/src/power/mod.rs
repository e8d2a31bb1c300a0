//! A device that loses what it had not made durable, when its power is cut.

mod journal;
mod pages;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Op};
use holdfast_iov::Memory;
use holdfast_units::{to_u64, to_usize};

use self::journal::{Change, Contents, Disk, Lie};
pub use self::journal::{Journal, Replay};
use self::pages::Pages;
use crate::random::Random;

/// One queue of a medium with a cache that does not survive a power cut.
///
/// What a write stores is in the cache when the write ends, and may have reached the medium in parts
/// before. A flush makes durable what had ended before it was submitted, by whichever queue. A write
/// with [`Bio::fua`] is durable when it ends, and makes nothing else durable. Zeroing and discarding
/// are as writing. The journal of all that keeps what a cut at any moment may leave.
///
/// The bytes of a write are those that its memory held when it was submitted.
///
/// A medium may be several disks, each with a cache of its own, that lose their power together.
#[derive(Debug)]
pub struct PowerDevice {
    medium: Arc<Mutex<Medium>>,
    disk: Disk,
    late_percent: u8,
    random: Random,
    flights: Vec<Flight>,
}

/// What all queues share.
#[derive(Debug)]
struct Medium {
    capacity: u64,
    /// What is read: everything that ended.
    view: Pages,
    journal: Journal,
    /// How many flushes were submitted.
    flushes: u64,
    /// Which of them do nothing.
    lies: BTreeSet<u64>,
}

/// A bio that has not ended.
#[derive(Debug)]
struct Flight {
    bio: Bio,
    work: Work,
}

/// What is left to be done when a bio ends.
#[derive(Clone, Copy, Debug)]
enum Work {
    Nothing,
    Read,
    Change(usize),
    /// A flush of so many changes that had ended.
    Flush(usize),
    Lie(Lie),
    Fail(Error),
}

impl PowerDevice {
    /// Returns a device of `capacity` bytes of zeros, which ends bios at once and in their order.
    pub fn new(capacity: u64) -> Self {
        Self::over(Pages::new(capacity), capacity)
    }

    fn over(pages: Pages, capacity: u64) -> Self {
        let (view, journal) = (pages.clone(), Journal::new(pages));
        let medium = Medium { capacity, view, journal, flushes: 0, lies: BTreeSet::new() };
        let medium = Arc::new(Mutex::new(medium));
        let disk = Disk { start: 0, len: capacity };
        Self { medium, disk, late_percent: 0, random: Random::new(0), flights: Vec::new() }
    }

    /// Opens another queue of the same medium. When a queue is reaped, `late_percent` of 100 bios
    /// stay in flight, of flushes more, and unless that is 0 the others end in any order.
    #[must_use]
    pub fn queue(&self, late_percent: u8, seed: u64) -> Self {
        let (medium, random) = (Arc::clone(&self.medium), Random::new(seed));
        Self { medium, disk: self.disk, late_percent, random, flights: Vec::new() }
    }

    /// Opens a queue of one disk of the medium: of those that have `len` bytes each, the one of this
    /// number. A flush of it makes nothing durable on the others.
    ///
    /// # Panics
    ///
    /// When there are not so many.
    #[must_use]
    pub fn disk(&self, number: usize, len: u64) -> Self {
        let start = to_u64(number) * len;
        assert!(start + len <= self.medium().capacity, "there are fewer disks");
        let mut disk = self.queue(0, 0);
        disk.disk = Disk { start, len };
        disk
    }

    /// Lets the flush of this number, from 0 over all queues, report success and do nothing.
    pub fn lie(&self, flush: u64) {
        self.medium().lies.insert(flush);
    }

    /// Flips bits of the stored byte at `offset`, as a medium that rots would: also in what is
    /// durable, at any position of the journal.
    ///
    /// # Panics
    ///
    /// When something was changed already.
    pub fn corrupt(&self, offset: u64, bits: u8) {
        let mut medium = self.medium();
        assert!(medium.journal.is_empty(), "the journal says how the medium was in the beginning");
        let (mut byte, at) = ([0], self.disk.start + offset);
        medium.view.read(at, &mut byte);
        medium.view.write(at, &[byte[0] ^ bits]);
        medium.journal = Journal::new(medium.view.clone());
    }

    /// Writes bytes to the cache, apart from all queues.
    pub fn store(&self, offset: u64, source: &[u8]) {
        let Medium { journal, view, .. } = &mut *self.medium();
        let (offset, len) = (self.disk.start + offset, to_u64(source.len()));
        let change = Change { offset, len, contents: Contents::Data(source.into()) };
        let number = journal.begin(change);
        journal.end(number, false, view);
    }

    /// Makes durable what has ended, apart from all queues.
    pub fn sync(&self) {
        let journal = &mut self.medium().journal;
        journal.flushed(journal.ended(), self.disk);
    }

    /// Reads what is in the cache.
    pub fn peek(&self, offset: u64, target: &mut [u8]) {
        self.medium().view.read(self.disk.start + offset, target);
    }

    /// Returns how many events the journal has.
    pub fn position(&self) -> usize {
        self.medium().journal.len()
    }

    /// Returns what happened until now.
    pub fn journal(&self) -> Journal {
        self.medium().journal.clone()
    }

    /// Returns a new device, all disks of it, with what a power cut leaves at the position of `replay`, which `seed`
    /// determines: all that is durable, and of all else each 512 bytes or not, in any order.
    #[must_use]
    pub fn after_cut(&self, replay: &Replay<'_>, seed: u64) -> Self {
        Self::over(replay.cut(&mut Random::new(seed)), self.medium().capacity)
    }

    /// Returns a new device, all disks of it, with what is read at the position of `replay` when only the process
    /// ended: all that had ended, and of what was in flight each 512 bytes or not.
    #[must_use]
    pub fn after_kill(&self, replay: &Replay<'_>, seed: u64) -> Self {
        Self::over(replay.kill(&mut Random::new(seed)), self.medium().capacity)
    }

    /// Returns a new device, all disks of it, with what is in the cache now, all of it durable.
    #[must_use]
    pub fn settled(&self) -> Self {
        let medium = self.medium();
        Self::over(medium.view.clone(), medium.capacity)
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        // A panic elsewhere left the journal whole: each event is added in one step.
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a bio, and returns what is to be done when it ends.
    fn begin(&mut self, bio: &mut Bio) -> Result<Work, Error> {
        let (offset, len) = (bio.offset, bio.len);
        self.limits().check(offset, len)?;
        let contents = match (bio.op, &mut bio.memory) {
            (Op::Read, Memory::Iov(iter)) if !iter.is_writable() => return Err(Error::Unsupported),
            (Op::Read, Memory::Buffer(_) | Memory::Iov(_)) => {
                // Volatile memory may change between the transfer and the answer.
                if self.random.chance(50) {
                    return Ok(Work::Read);
                }
                self.read(bio);
                return Ok(Work::Nothing);
            }
            (Op::Write, Memory::Buffer(buffer)) => {
                Contents::Data(buffer.as_slice()[bio.start..][..to_usize(len)].into())
            }
            (Op::Write, Memory::Shared(buffer)) => {
                Contents::Data(buffer.as_slice()[bio.start..][..to_usize(len)].into())
            }
            (Op::Write, Memory::Iov(iter)) => {
                let mut bytes = vec![0; to_usize(len)];
                let copied = iter.copy_out(&mut bytes);
                iter.revert(copied);
                Contents::Data(bytes.into())
            }
            (Op::Zero { keep: true, .. }, _) => Contents::Zeros,
            (Op::Zero { keep: false, .. } | Op::Discard, _) => Contents::Hole,
            (Op::Allocate, _) => return Ok(Work::Nothing),
            (Op::Flush, _) => return Ok(self.medium().begin_flush(self.disk)),
            (Op::Map | Op::Repair | Op::Read | Op::Write, _) => return Err(Error::Unsupported),
        };
        let offset = self.disk.start + offset;
        Ok(Work::Change(self.medium().journal.begin(Change { offset, len, contents })))
    }

    fn end(&self, flight: Flight) -> Ended {
        let Flight { mut bio, work } = flight;
        let mut result = Ok(bio.len);
        match work {
            Work::Nothing => {}
            Work::Read => self.read(&mut bio),
            Work::Change(number) => {
                let Medium { journal, view, .. } = &mut *self.medium();
                journal.end(number, bio.fua, view);
            }
            Work::Flush(ended) => self.medium().journal.flushed(ended, self.disk),
            Work::Lie(lie) => self.medium().journal.lied(lie),
            Work::Fail(error) => result = Err(error),
        }
        Ended { bio, result }
    }

    /// Moves what is stored into the memory of a bio.
    fn read(&self, bio: &mut Bio) {
        let len = to_usize(bio.len);
        match &mut bio.memory {
            Memory::Buffer(buffer) => {
                self.peek(bio.offset, &mut buffer.as_mut_slice()[bio.start..][..len]);
            }
            Memory::Iov(iter) => {
                let mut bytes = vec![0; len];
                self.peek(bio.offset, &mut bytes);
                let copied = iter.copy_in(&bytes);
                iter.revert(copied);
            }
            Memory::None | Memory::Shared(_) => {}
        }
    }
}

impl Medium {
    fn begin_flush(&mut self, disk: Disk) -> Work {
        let number = self.flushes;
        self.flushes += 1;
        let (ended, submitted) = (self.journal.ended(), self.journal.len());
        if self.lies.contains(&number) {
            Work::Lie(Lie { disk, submitted, ended })
        } else {
            Work::Flush(ended)
        }
    }
}

impl BlockDevice for PowerDevice {
    fn limits(&self) -> Limits {
        Limits::of_sectors(self.disk.len)
    }

    fn submit(&mut self, mut bio: Bio) -> Result<(), Bio> {
        let work = self.begin(&mut bio).unwrap_or_else(Work::Fail);
        self.flights.push(Flight { bio, work });
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        if self.late_percent == 0 {
            let flights = std::mem::take(&mut self.flights);
            ended.extend(flights.into_iter().map(|flight| self.end(flight)));
            return;
        }
        for _ in 0..self.flights.len() {
            let which = to_usize(self.random.below(to_u64(self.flights.len())));
            let is_flush = self.flights[which].bio.op == Op::Flush;
            let late_percent =
                if is_flush { self.late_percent.midpoint(100) } else { self.late_percent };
            if !self.random.chance(late_percent) {
                let flight = self.flights.swap_remove(which);
                ended.push(self.end(flight));
            }
        }
    }

    fn wait(&mut self) {}

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        let Disk { start, len } = self.disk;
        let data = self.medium().view.data_after(start + offset).map(|data| data - start);
        Ok(data.filter(|&data| data < len))
    }
}

impl Drop for PowerDevice {
    fn drop(&mut self) {
        // As a queue of the kernel does, it waits for what is in flight.
        for flight in std::mem::take(&mut self.flights) {
            drop(self.end(flight));
        }
    }
}

#[cfg(test)]
mod tests;
