//! The tuple log: what the tuples of sectors will be, and what they were, stored before the sectors'
//! data are.
//!
//! With [`Durability::Full`](crate::Durability::Full) records are written, and durable before their
//! data are submitted: they survive the machine. Otherwise the log is a mapping of the volume's
//! file, so that a store into it outlives the process, and costs no system call. After a crash each
//! sector has the data of a tuple in the log; [`crate::recovery`] finds out which. A record that the
//! crash has torn is none: its data had not been submitted. Nothing is read from the log while the
//! volume is open.

mod halves;
mod marks;

use core::mem::offset_of;
use std::num::NonZeroU64;

use holdfast_bio::Error;
use holdfast_checksum::{GuardKind, checksum};
use holdfast_iov::Region;
use holdfast_units::{BlockSize, to_u64, to_usize};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use self::halves::Halves;
pub(crate) use self::halves::{Position, Wait};
use self::marks::Marks;
pub(crate) use self::marks::Oldest;
use crate::geometry::{Geometry, TUPLE_BLOCK};
use crate::inbox::Waiter;
use crate::words::words_at;

/// Records begin at multiples of this, and are padded to it with zeros. In bytes.
pub(crate) const LOG_UNIT: usize = 64;
/// What a record has behind its checksum.
pub(crate) const RECORD_MAGIC: [u8; 4] = *b"HFTL";
/// The flag of a record whose sectors are to read as zeros, and which has no new tuples.
pub(crate) const RECORD_CLEARED: u32 = 1;
/// The flag of a record that has the old tuples behind the new ones.
pub(crate) const RECORD_OLD: u32 = 2;
/// The longest record, in bytes: a tuple block of new tuples, and one of old.
const RECORD_MAX: usize = (HEADER + 2 * TUPLE_BLOCK).next_multiple_of(LOG_UNIT);

/// What a record begins with. The new tuples of its sectors follow, as they are in tuple blocks, and
/// then the old.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct RawRecord {
    /// CRC-32C of all that follows in the record, with its tuples and padding.
    pub(crate) checksum: U32,
    /// [`RECORD_MAGIC`].
    pub(crate) magic: [u8; 4],
    /// That of the superblock.
    pub(crate) epoch: U64,
    /// The round, 40 bits, and the place in the half, 24 bits, in [`LOG_UNIT`]s.
    pub(crate) position: U64,
    /// The first sector.
    pub(crate) lba: U64,
    /// How many sectors there are, all in one group.
    pub(crate) count: U32,
    /// [`RECORD_CLEARED`] and [`RECORD_OLD`], or neither.
    pub(crate) flags: U32,
    /// A position as above, or 0. What the records before it say has been done, and is durable.
    pub(crate) durable: U64,
}

const HEADER: usize = size_of::<RawRecord>();

const _: () = {
    assert!(HEADER == 48);
    assert!(offset_of!(RawRecord, epoch) == 8);
    assert!(offset_of!(RawRecord, lba) == 24);
    assert!(offset_of!(RawRecord, durable) == 40);
};

/// What is about to become of some sectors of one group.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Intent {
    /// The first sector.
    pub(crate) lba: u64,
    pub(crate) count: usize,
    /// They become ones that were never written.
    pub(crate) clears: bool,
}

impl Intent {
    /// Returns how long its record is, in bytes.
    pub(crate) const fn record_len(&self, tuple_words: usize) -> usize {
        let copies = if self.clears { 1 } else { 2 };
        (HEADER + copies * self.count * tuple_words * 8).next_multiple_of(LOG_UNIT)
    }
}

/// How records get to the storage.
#[derive(Debug)]
enum Medium {
    /// By stores into a mapping of the log.
    Mapped(Region),
    /// By writes of blocks of so many bytes.
    Written { block: usize },
}

/// The log of an open volume, into which all queues write.
#[derive(Debug)]
pub(crate) struct Log {
    medium: Medium,
    epoch: NonZeroU64,
    tuple_words: usize,
    /// Where the log is, in bytes of the device.
    offset: u64,
    halves: Halves,
    marks: Marks,
}

impl Log {
    /// Begins an empty log in a mapping.
    pub(crate) fn mapped(region: Region, epoch: NonZeroU64, geometry: &Geometry) -> Self {
        Self::new(Medium::Mapped(region), epoch, geometry, false)
    }

    /// Begins an empty log that is written in blocks of `block` bytes. With a data journal it is shorter.
    pub(crate) fn written(
        block: BlockSize,
        epoch: NonZeroU64,
        geometry: &Geometry,
        journaled: bool,
    ) -> Self {
        let medium = Medium::Written { block: block.len().max(LOG_UNIT) };
        Self::new(medium, epoch, geometry, journaled)
    }

    fn new(medium: Medium, epoch: NonZeroU64, geometry: &Geometry, journaled: bool) -> Self {
        let halves = Halves::new(to_u64(half_len(geometry, journaled) / LOG_UNIT));
        assert!(RECORD_MAX / LOG_UNIT <= to_usize(halves.units()), "a record fits in a half");
        let (tuple_words, offset) = (geometry.tuple_words(), geometry.log().0);
        Self { medium, epoch, tuple_words, offset, halves, marks: Marks::default() }
    }

    /// Returns what its records say that no other log's do.
    pub(crate) const fn epoch(&self) -> NonZeroU64 {
        self.epoch
    }

    /// Returns whether records are written by the queues, and durable before their data.
    pub(crate) const fn is_written(&self) -> bool {
        matches!(self.medium, Medium::Written { .. })
    }

    /// Returns how long the record of `intent` is, in bytes.
    pub(crate) const fn record_len(&self, intent: &Intent) -> usize {
        intent.record_len(self.tuple_words)
    }

    /// Returns how long records of `len` bytes together are when they are written.
    pub(crate) const fn written_len(&self, len: usize) -> usize {
        match self.medium {
            Medium::Mapped(_) => len,
            Medium::Written { block } => len.next_multiple_of(block),
        }
    }

    /// Reserves a place for the records of so many jobs, which have `len` bytes together. Each job
    /// must [`release`](Self::release) it. `None` when there is no room.
    pub(crate) fn reserve(&self, len: usize, jobs: u64) -> Option<Position> {
        debug_assert_eq!(len % LOG_UNIT, 0, "records are padded");
        self.halves.reserve(to_u64(self.written_len(len) / LOG_UNIT), jobs)
    }

    /// Fills `target`, which is as long as the record of `intent`, with that record. `new` and
    /// `old` are the tuples that its sectors are to have, and those that they have.
    pub(crate) fn encode(
        &self,
        target: &mut [u8],
        position: Position,
        intent: &Intent,
        new: impl Iterator<Item = [u64; 2]>,
        old: impl Iterator<Item = [u64; 2]>,
    ) {
        let cleared = if intent.clears { RECORD_CLEARED } else { 0 };
        let header = RawRecord {
            checksum: U32::ZERO,
            magic: RECORD_MAGIC,
            epoch: U64::new(self.epoch.get()),
            position: U64::new(position.number()),
            lba: U64::new(intent.lba),
            count: U32::new(u32::try_from(intent.count).expect("at most the sectors of a group")),
            flags: U32::new(cleared | RECORD_OLD),
            durable: U64::new(self.marks.durable()),
        };
        let (head, payload) = target.split_at_mut(HEADER);
        head.copy_from_slice(header.as_bytes());
        payload.fill(0);
        let new = new.take(if intent.clears { 0 } else { intent.count });
        let words = new.chain(old.take(intent.count)).flat_map(|tuple| {
            let [first, second] = tuple;
            [Some(first), (self.tuple_words == 2).then_some(second)].into_iter().flatten()
        });
        for (bytes, word) in payload.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.to_be_bytes();
        }
        let crc = checksum_of(target);
        target[..size_of::<U32>()].copy_from_slice(&crc.to_le_bytes());
    }

    /// Returns where the record at `position` is, in bytes of the device.
    pub(crate) fn offset_of(&self, position: Position) -> u64 {
        self.offset + self.in_log(position)
    }

    fn in_log(&self, position: Position) -> u64 {
        let units = to_u64(position.half()) * self.halves.units() + position.place();
        units * to_u64(LOG_UNIT)
    }

    /// Stores a record into the mapping.
    pub(crate) fn store(&self, position: Position, record: &[u8]) {
        let Medium::Mapped(region) = &self.medium else {
            unreachable!("a log that is written has no mapping");
        };
        let at = to_usize(self.in_log(position));
        region.write(at, record).expect("the region is as long as both halves");
    }

    /// Returns what a queue needs to say which of its records are in use.
    pub(crate) fn join(&self) -> Oldest {
        self.marks.join()
    }

    /// Returns the position that the next record will have, or one before it.
    pub(crate) fn next(&self) -> Position {
        self.halves.position()
    }

    /// Remembers that what a record says may not have been done.
    pub(crate) fn fail(&self, position: Position) {
        self.marks.fail(position);
    }

    /// Returns the position before which everything will be durable when the device has been
    /// flushed: to be asked before that, and given to [`set_durable`](Self::set_durable) after it.
    pub(crate) fn durable_after_flush(&self) -> Position {
        self.marks.durable_after_flush(self.halves.position())
    }

    /// Says that the device was flushed.
    pub(crate) fn set_durable(&self, position: Position) {
        self.marks.set_durable(position);
    }

    /// Gives a record up, after the tuples that it names were stored in the cache and marked, or
    /// are not to be. Returns whether the caller has to store all tuples.
    #[must_use]
    pub(crate) fn release(&self, position: Position) -> bool {
        self.halves.release(position)
    }

    /// Returns whether the caller has to store all tuples, so that there will be room. To be asked
    /// after each record.
    #[must_use]
    pub(crate) fn request_flush(&self) -> bool {
        self.halves.request()
    }

    /// Lets somebody wait who found no room.
    pub(crate) fn wait(&self, waiter: &Waiter) -> Wait {
        self.halves.wait(waiter)
    }

    /// Returns what to give to [`flushed`](Self::flushed) when all tuples are stored that are
    /// marked now.
    pub(crate) fn begin_flush(&self) -> Option<u64> {
        self.halves.drained()
    }

    /// Says that all tuples were stored.
    pub(crate) fn flushed(&self, round: u64) {
        self.halves.flushed(round);
    }

    /// Says that tuples could not be stored.
    pub(crate) fn flush_failed(&self, error: Error) {
        self.halves.failed(error);
    }

    /// Ends what the caller was asked to do. Returns whether it has to do it again.
    #[must_use]
    pub(crate) fn end_request(&self) -> bool {
        self.halves.end_request()
    }
}

/// Returns the length of a half, in bytes.
pub(crate) fn half_len(geometry: &Geometry, journaled: bool) -> usize {
    to_usize(geometry.log().1) / if journaled { 4 } else { 2 }
}

/// Returns the CRC-32C of what is behind the checksum with which a record or a block begins.
pub(crate) fn checksum_of(stored: &[u8]) -> u32 {
    let crc = checksum(GuardKind::Crc32c, &stored[size_of::<U32>()..]);
    u32::try_from(crc).expect("a CRC-32C has 32 bits")
}

/// A record as it was found, every field of which has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'l> {
    pub(crate) position: Position,
    pub(crate) lba: u64,
    pub(crate) count: usize,
    /// The position before which everything is durable, as far as the writer knew.
    pub(crate) durable: Position,
    /// The new tuples as they are stored. `None` when the sectors are to be zeros.
    new: Option<&'l [u8]>,
    /// The old ones, which a record of an older program has not.
    old: Option<&'l [u8]>,
    /// The data of the sectors, of a record in the data journal.
    pub(crate) data: Option<&'l [u8]>,
}

impl<'l> Record<'l> {
    /// Reads the record at `place` of a half, if there is one of this epoch. No bytes make it
    /// panic. Returns the record and its length in bytes.
    pub(crate) fn parse(
        half: &'l [u8],
        half_index: usize,
        place: usize,
        epoch: NonZeroU64,
        geometry: &Geometry,
    ) -> Option<(Self, usize)> {
        let found = Self::parse_at(half.get(place * LOG_UNIT..)?, epoch, geometry);
        found.filter(|(Self { position, .. }, _)| {
            position.half() == half_index && to_usize(position.place()) == place
        })
    }

    /// Reads the record at the beginning of `bytes` in the same way, wherever it belongs.
    pub(crate) fn parse_at(
        bytes: &'l [u8],
        epoch: NonZeroU64,
        geometry: &Geometry,
    ) -> Option<(Self, usize)> {
        let (raw, rest) = RawRecord::ref_from_prefix(bytes).ok()?;
        if raw.magic != RECORD_MAGIC || raw.epoch.get() != epoch.get() {
            return None;
        }
        let position = Position::from_number(raw.position.get());
        let (lba, count) = (raw.lba.get(), u64::from(raw.count.get()));
        let sectors_of_group = to_u64(geometry.sectors_of_group());
        let in_group = lba % sectors_of_group;
        let end = lba.checked_add(count)?;
        if count == 0
            || count > sectors_of_group - in_group
            || end > geometry.sector().count(geometry.capacity())
        {
            return None;
        }
        let (count, flags) = (to_usize(count), raw.flags.get());
        if flags & !(RECORD_CLEARED | RECORD_OLD) != 0 {
            return None;
        }
        let tuples = count * geometry.tuple_words() * 8;
        let part = |is_there: bool| if is_there { tuples } else { 0 };
        let (new_len, old_len) = (part(flags & RECORD_CLEARED == 0), part(flags & RECORD_OLD != 0));
        let (new, rest) = rest.split_at_checked(new_len)?;
        let old = rest.get(..old_len)?;
        let whole = (HEADER + new_len + old_len).next_multiple_of(LOG_UNIT);
        let is_intact = bytes.get(..whole).map(checksum_of) == Some(raw.checksum.get());
        let durable = Position::from_number(raw.durable.get());
        let new = Some(new).filter(|bytes| !bytes.is_empty());
        let old = Some(old).filter(|bytes| !bytes.is_empty());
        let data = None;
        is_intact.then_some((Self { position, lba, count, durable, new, old, data }, whole))
    }

    /// Returns whether the record is about sector `lba`.
    pub(crate) fn names(&self, lba: u64) -> bool {
        (self.lba..self.lba + to_u64(self.count)).contains(&lba)
    }

    /// Returns what the tuple of sector `lba` was to be, if the record is about it.
    pub(crate) fn new_words(&self, lba: u64) -> Option<[u64; 2]> {
        self.names(lba).then(|| self.new.map_or([0, 0], |tuples| self.words_in(tuples, lba)))
    }

    /// Returns the data of sector `lba`, if the record is about it and has them.
    pub(crate) fn data_of(&self, lba: u64) -> Option<&'l [u8]> {
        let data = self.data.filter(|_| self.names(lba))?;
        let len = data.len() / self.count;
        data.get(to_usize(lba - self.lba) * len..)?.get(..len)
    }

    /// Returns what the tuple of sector `lba` was before, if the record is about it and says so.
    pub(crate) fn old_words(&self, lba: u64) -> Option<[u64; 2]> {
        self.old.filter(|_| self.names(lba)).map(|tuples| self.words_in(tuples, lba))
    }

    fn words_in(&self, tuples: &[u8], lba: u64) -> [u64; 2] {
        words_at(tuples, tuples.len() / self.count / size_of::<u64>(), to_usize(lba - self.lba))
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
