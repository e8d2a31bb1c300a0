//! The tuple log: what the tuples of sectors will be, stored before the sectors' data are.
//!
//! It is a mapping of the volume's file, so that a store into it outlives the process, and costs no
//! system call. After the process was killed each sector has the data of its stored tuple or of one
//! in the log; [`crate::recovery`] finds out which. A record that the kill has torn is none: its
//! data had not been submitted. Nothing is read from the log while the volume is open.

mod halves;

use core::mem::offset_of;
use std::num::NonZeroU64;

use holdfast_bio::Error;
use holdfast_checksum::{GuardKind, checksum};
use holdfast_iov::Region;
use holdfast_units::{to_u64, to_usize};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use self::halves::Halves;
pub(crate) use self::halves::{Position, Wait};
use crate::geometry::Geometry;
use crate::inbox::Waiter;

/// Records begin at multiples of this, and are padded to it with zeros. In bytes.
pub(crate) const LOG_UNIT: usize = 64;
/// What a record has behind its checksum.
pub(crate) const RECORD_MAGIC: [u8; 4] = *b"HFTL";
/// The flag of a record whose sectors are to read as zeros, and which has no tuples.
pub(crate) const RECORD_CLEARED: u32 = 1;

/// What a record begins with. The new tuples of its sectors follow, as they are in tuple blocks.
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
    /// 0 or [`RECORD_CLEARED`].
    pub(crate) flags: U32,
    /// 0.
    pub(crate) reserved: [u8; 8],
}

const HEADER: usize = size_of::<RawRecord>();

const _: () = {
    assert!(HEADER == 48);
    assert!(offset_of!(RawRecord, epoch) == 8);
    assert!(offset_of!(RawRecord, lba) == 24);
    assert!(offset_of!(RawRecord, reserved) == 40);
};

/// The tuples that some sectors are to have.
pub(crate) enum Change<T> {
    /// Those of data.
    Written(T),
    /// Those of sectors that were never written.
    Cleared,
}

/// The log of an open volume, into which all queues write.
#[derive(Debug)]
pub(crate) struct Log {
    region: Region,
    epoch: NonZeroU64,
    tuple_words: usize,
    halves: Halves,
}

impl Log {
    /// Begins an empty log in `region`.
    pub(crate) fn new(region: Region, epoch: NonZeroU64, geometry: &Geometry) -> Self {
        let halves = Halves::new(to_u64(half_len(geometry) / LOG_UNIT));
        let longest = HEADER + geometry.sectors_of_group() * geometry.tuple_words() * 8;
        assert!(longest.div_ceil(LOG_UNIT) <= to_usize(halves.units()), "a record fits in a half");
        Self { region, epoch, tuple_words: geometry.tuple_words(), halves }
    }

    /// Says what the tuples of `count` sectors will be. Their data may be submitted afterwards, and
    /// the place must be given back by [`release`](Self::release). `None` when there is no room.
    /// `record` is memory to work in.
    pub(crate) fn append(
        &self,
        record: &mut Vec<u8>,
        lba: u64,
        count: usize,
        change: Change<impl Iterator<Item = [u64; 2]>>,
    ) -> Option<Position> {
        let (flags, tuples) = match change {
            Change::Written(tuples) => (0, Some(tuples)),
            Change::Cleared => (RECORD_CLEARED, None),
        };
        let payload = tuples.as_ref().map_or(0, |_| count * self.tuple_words * 8);
        let len = (HEADER + payload).next_multiple_of(LOG_UNIT);
        let position = self.halves.reserve(to_u64(len / LOG_UNIT))?;
        let header = RawRecord {
            checksum: U32::ZERO,
            magic: RECORD_MAGIC,
            epoch: U64::new(self.epoch.get()),
            position: U64::new(position.number()),
            lba: U64::new(lba),
            count: U32::new(u32::try_from(count).expect("at most the sectors of a group")),
            flags: U32::new(flags),
            reserved: [0; 8],
        };
        record.clear();
        record.extend_from_slice(header.as_bytes());
        for words in tuples.into_iter().flatten() {
            for word in &words[..self.tuple_words] {
                record.extend_from_slice(&word.to_be_bytes());
            }
        }
        debug_assert_eq!(record.len(), HEADER + payload, "a tuple for each sector");
        record.resize(len, 0);
        let crc = checksum_of(record);
        record[..4].copy_from_slice(&crc.to_le_bytes());
        let units = to_u64(position.half()) * self.halves.units() + position.place();
        let offset = to_usize(units) * LOG_UNIT;
        self.region.write(offset, record).expect("the region is as long as both halves");
        Some(position)
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
pub(crate) fn half_len(geometry: &Geometry) -> usize {
    to_usize(geometry.log().1) / 2
}

fn checksum_of(record: &[u8]) -> u32 {
    let crc = checksum(GuardKind::Crc32c, &record[size_of::<U32>()..]);
    u32::try_from(crc).expect("a CRC-32C has 32 bits")
}

/// A record as it was found, every field of which has been checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record<'l> {
    pub(crate) position: Position,
    pub(crate) lba: u64,
    pub(crate) count: usize,
    /// The tuples as they are stored; empty when the sectors are to be zeros.
    tuples: &'l [u8],
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
        let bytes = half.get(place * LOG_UNIT..)?;
        let (raw, rest) = RawRecord::ref_from_prefix(bytes).ok()?;
        let position = Position::from_number(raw.position.get());
        let is_here = position.half() == half_index && to_usize(position.place()) == place;
        if raw.magic != RECORD_MAGIC || raw.epoch.get() != epoch.get() || !is_here {
            return None;
        }
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
        let count = to_usize(count);
        let len = match raw.flags.get() {
            0 => count * geometry.tuple_words() * 8,
            RECORD_CLEARED => 0,
            _ => return None,
        };
        let tuples = rest.get(..len)?;
        let whole = (HEADER + len).next_multiple_of(LOG_UNIT);
        let is_intact = bytes.get(..whole).map(checksum_of) == Some(raw.checksum.get());
        is_intact.then_some((Self { position, lba, count, tuples }, whole))
    }

    /// Returns what the tuple of sector `lba` was to be, if the record is about it.
    pub(crate) fn words(&self, lba: u64) -> Option<[u64; 2]> {
        let index = to_usize(lba.checked_sub(self.lba)?);
        if index >= self.count {
            return None;
        }
        let mut words = [0; 2];
        let size = self.tuples.len() / self.count;
        let tuple = &self.tuples[index * size..][..size];
        for (word, bytes) in words.iter_mut().zip(tuple.as_chunks().0) {
            *word = u64::from_be_bytes(*bytes);
        }
        Some(words)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
