//! The record of a mirror, byte for byte: which legs there are, and which of them are good. Each leg
//! has its own, in two copies. `docs/format.md` describes the same for people.
//!
//! Nothing here does I/O.

use core::mem::offset_of;
use core::ops::Range;

use holdfast_checksum::{GuardKind, checksum};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The most legs that a mirror has.
pub const LEGS_MAX: usize = 4;
/// The length of a record, and of a block of missed regions, in bytes.
pub const RECORD_LEN: usize = 4096;
/// Where the two copies are, in bytes from the start of the file or device. They are equal but while
/// they are written; the one with the greater generation counts.
pub const RECORD_OFFSETS: [u64; 2] = [256 << 10, 260 << 10];
/// What belongs to a leg alone, and differs from leg to leg, in bytes from the start of the file or
/// device.
pub const OWN_AREA: Range<u64> = 256 << 10..512 << 10;
/// The longest path of a leg, in bytes.
pub const PATH_MAX: usize = 200;

/// Where the missed regions of leg 0 are. Those of the others follow.
const MISSED_OFFSET: u64 = 272 << 10;
const MAGIC: [u8; 8] = *b"HFMIRROR";
const MISSED_MAGIC: [u8; 4] = *b"HFMM";
const VERSION: u32 = 1;
/// A generation that cannot be counted on is no generation.
const GENERATION_MAX: u64 = u64::MAX / 2;
const MISSED_ALL: u32 = 1;

/// What a leg is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LegState {
    /// There is no such leg.
    Empty = 0,
    /// It holds everything, and is read.
    InSync = 1,
    /// It gets what is written, and what it missed is being copied to it.
    Resyncing = 2,
    /// It failed or was missing, and misses what was written since.
    Out = 3,
    /// It was taken out on purpose.
    Detached = 4,
}

impl LegState {
    const ALL: [Self; 5] = [Self::Empty, Self::InSync, Self::Resyncing, Self::Out, Self::Detached];

    pub(crate) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }

    /// Returns whether the leg gets what is written.
    pub const fn is_written(self) -> bool {
        matches!(self, Self::InSync | Self::Resyncing)
    }

    /// Returns the name that messages use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Empty => "none",
            Self::InSync => "in sync",
            Self::Resyncing => "resyncing",
            Self::Out => "out",
            Self::Detached => "detached",
        }
    }
}

/// A leg as a record has it.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawLeg {
    /// The leg's name for machines.
    uuid: [u8; 16],
    /// A [`LegState`].
    state: U32,
    /// [`MISSED_ALL`] or 0.
    flags: U32,
    /// How many operations on it failed.
    errors: U64,
    /// How many sectors were repaired on it.
    repairs: U64,
    /// How long the path is, in bytes.
    path_len: U32,
    /// 0.
    reserved: U32,
    /// Where it is, relative to the directory of the leg that has the record, or absolute.
    path: [u8; PATH_MAX],
    /// The generation of the last record that the leg got with the others.
    seen: U64,
}

#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawRecord {
    /// [`MAGIC`].
    magic: [u8; 8],
    /// [`VERSION`].
    version: U32,
    /// CRC-32C of the 4096 bytes, computed with 0 in this field.
    checksum: U32,
    /// The mirror's name for machines.
    uuid: [u8; 16],
    /// Counts the changes of the mirror.
    generation: U64,
    /// When it was changed last, in seconds since 1970.
    changed: U64,
    /// How many bytes a region has of which it is remembered that a leg missed something.
    region: U64,
    /// Which leg has this record.
    leg: U32,
    /// 0.
    reserved: [u8; 196],
    legs: [RawLeg; LEGS_MAX],
    /// 0.
    rest: [u8; 2816],
}

const _: () = {
    assert!(size_of::<RawLeg>() == 256);
    assert!(size_of::<RawRecord>() == RECORD_LEN);
    assert!(offset_of!(RawRecord, uuid) == 16);
    assert!(offset_of!(RawRecord, leg) == 56);
    assert!(offset_of!(RawRecord, legs) == 256);
};

/// A leg of a mirror, as it is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// The leg's name for machines.
    pub uuid: [u8; 16],
    /// What it is.
    pub state: LegState,
    /// It misses everything, as far as is known.
    pub missed_all: bool,
    /// How many operations on it failed.
    pub errors: u64,
    /// How many sectors were repaired on it.
    pub repairs: u64,
    /// The generation of the last record that it got with the others.
    pub seen: u64,
    /// Where it is, relative to the directory of the leg that has the record, or absolute.
    pub path: String,
}

impl Leg {
    /// Returns a leg that there is not.
    pub const fn empty() -> Self {
        Self {
            uuid: [0; 16],
            state: LegState::Empty,
            missed_all: false,
            errors: 0,
            repairs: 0,
            seen: 0,
            path: String::new(),
        }
    }
}

/// The record of a mirror.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The mirror's name for machines.
    pub uuid: [u8; 16],
    /// Counts the changes of the mirror.
    pub generation: u64,
    /// When it was changed last, in seconds since 1970.
    pub changed: u64,
    /// How many bytes a region has.
    pub region: u64,
    /// Which leg has this record.
    pub leg: usize,
    /// The legs.
    pub legs: [Leg; LEGS_MAX],
}

impl Record {
    /// Reads one copy. `None` for what is none; no bytes make it panic.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (raw, _) = RawRecord::ref_from_prefix(bytes).ok()?;
        let leg = usize::try_from(raw.leg.get()).ok().filter(|&leg| leg < LEGS_MAX)?;
        let region = raw.region.get();
        let is_good = raw.magic == MAGIC
            && raw.version.get() == VERSION
            && raw.checksum.get() == checksum_of(raw.as_bytes(), offset_of!(RawRecord, checksum))
            && raw.generation.get() <= GENERATION_MAX
            && region.is_power_of_two()
            && region >= 1 << 20;
        if !is_good {
            return None;
        }
        let mut legs = [const { Leg::empty() }; LEGS_MAX];
        for (leg, raw) in legs.iter_mut().zip(&raw.legs) {
            *leg = parse_leg(raw)?;
        }
        Some(Self {
            uuid: raw.uuid,
            generation: raw.generation.get(),
            changed: raw.changed.get(),
            region,
            leg,
            legs,
        })
    }

    /// Returns the bytes.
    ///
    /// # Panics
    ///
    /// When a path is longer than [`PATH_MAX`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut raw = RawRecord::new_zeroed();
        raw.magic = MAGIC;
        raw.version = U32::new(VERSION);
        raw.uuid = self.uuid;
        raw.generation = U64::new(self.generation);
        raw.changed = U64::new(self.changed);
        raw.region = U64::new(self.region);
        raw.leg = u32_of(self.leg);
        for (raw, leg) in raw.legs.iter_mut().zip(&self.legs) {
            raw.uuid = leg.uuid;
            raw.state = U32::new(u32::from(leg.state as u8));
            raw.flags = U32::new(if leg.missed_all { MISSED_ALL } else { 0 });
            raw.errors = U64::new(leg.errors);
            raw.repairs = U64::new(leg.repairs);
            raw.seen = U64::new(leg.seen);
            raw.path_len = u32_of(leg.path.len());
            raw.path[..leg.path.len()].copy_from_slice(leg.path.as_bytes());
        }
        raw.checksum = U32::new(checksum_of(raw.as_bytes(), offset_of!(RawRecord, checksum)));
        raw.as_bytes().to_vec()
    }

    /// Returns the leg that has this record.
    pub const fn own(&self) -> &Leg {
        &self.legs[self.leg]
    }
}

fn parse_leg(raw: &RawLeg) -> Option<Leg> {
    let path_len = usize::try_from(raw.path_len.get()).ok()?;
    let path = std::str::from_utf8(raw.path.get(..path_len)?).ok()?;
    Some(Leg {
        uuid: raw.uuid,
        state: LegState::from_code(raw.state.get())?,
        missed_all: raw.flags.get() & MISSED_ALL != 0,
        errors: raw.errors.get(),
        repairs: raw.repairs.get(),
        seen: raw.seen.get(),
        path: path.to_owned(),
    })
}

/// A block of bits, one for each region that a leg missed something of.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawMissed {
    /// CRC-32C of the 4096 bytes, computed with 0 in this field.
    checksum: U32,
    /// [`MISSED_MAGIC`].
    magic: [u8; 4],
    /// 0.
    reserved: [u8; 8],
    /// Bit `n` of the block is bit `n % 64` of word `n / 64`.
    words: [U64; WORDS_OF_BLOCK],
}

const WORDS_OF_BLOCK: usize = 510;
const BLOCKS_OF_LEG: usize = 2;
/// The words of bits that a leg has, in all its blocks.
pub(crate) const MISSED_WORDS: usize = WORDS_OF_BLOCK * BLOCKS_OF_LEG;
/// The most regions that a device has.
pub const REGIONS_MAX: u64 = MISSED_WORDS as u64 * 64;

const _: () = {
    assert!(size_of::<RawMissed>() == RECORD_LEN);
    assert!(OWN_AREA.start == RECORD_OFFSETS[0]);
    let missed = (LEGS_MAX * BLOCKS_OF_LEG * RECORD_LEN) as u64;
    assert!(MISSED_OFFSET + missed <= OWN_AREA.end);
};

/// Returns where the blocks of missed regions of a leg are.
pub(crate) fn missed_offsets(leg: usize) -> impl Iterator<Item = u64> {
    let block = RECORD_LEN as u64;
    let first = MISSED_OFFSET + leg as u64 * BLOCKS_OF_LEG as u64 * block;
    (0..BLOCKS_OF_LEG as u64).map(move |index| first + index * block)
}

/// Returns the bytes of the block with this index.
pub(crate) fn missed_to_bytes(words: &[u64], index: usize) -> Vec<u8> {
    let mut raw = RawMissed::new_zeroed();
    raw.magic = MISSED_MAGIC;
    for (raw, &word) in raw.words.iter_mut().zip(&words[index * WORDS_OF_BLOCK..]) {
        *raw = U64::new(word);
    }
    raw.checksum = U32::new(checksum_of(raw.as_bytes(), 0));
    raw.as_bytes().to_vec()
}

/// Reads the block with this index into `words`. What cannot be understood, because a crash has torn
/// it, says that all of its regions were missed.
pub(crate) fn missed_from_bytes(bytes: Option<&[u8]>, words: &mut [u64], index: usize) {
    let words = &mut words[index * WORDS_OF_BLOCK..][..WORDS_OF_BLOCK];
    let raw = bytes.and_then(|bytes| RawMissed::ref_from_prefix(bytes).ok());
    match raw {
        Some((raw, _))
            if raw.magic == MISSED_MAGIC
                && raw.checksum.get() == checksum_of(raw.as_bytes(), 0) =>
        {
            for (word, raw) in words.iter_mut().zip(&raw.words) {
                *word = raw.get();
            }
        }
        _ => words.fill(u64::MAX),
    }
}

/// Computes the CRC-32C of bytes with 0 in the four from `at` on.
fn checksum_of(bytes: &[u8], at: usize) -> u32 {
    let mut zeroed = bytes.to_vec();
    zeroed[at..at + 4].fill(0);
    u32::try_from(checksum(GuardKind::Crc32c, &zeroed)).expect("a CRC-32C has 32 bits")
}

fn u32_of(number: usize) -> U32 {
    U32::new(u32::try_from(number).expect("a leg's number, or the length of its path"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn record() -> Record {
        let leg = |number: u8| Leg {
            uuid: [number; 16],
            state: LegState::InSync,
            missed_all: number == 2,
            errors: 3,
            repairs: 4,
            seen: 5,
            path: format!("leg{number}.hf"),
        };
        Record {
            uuid: [9; 16],
            generation: 7,
            changed: 1_800_000_000,
            region: 4 << 20,
            leg: 1,
            legs: [leg(1), leg(2), Leg::empty(), Leg::empty()],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Record::parse(&record().to_bytes()), Some(record()));
    }

    #[test]
    fn a_torn_block_says_that_everything_was_missed() {
        let words: Vec<u64> = (0..MISSED_WORDS as u64).collect();
        let mut found = vec![0; MISSED_WORDS];
        let mut second = missed_to_bytes(&words, 1);
        missed_from_bytes(Some(&missed_to_bytes(&words, 0)), &mut found, 0);
        missed_from_bytes(Some(&second), &mut found, 1);
        assert_eq!(found, words);
        second[512] ^= 1;
        missed_from_bytes(Some(&second), &mut found, 1);
        assert!(found[..WORDS_OF_BLOCK] == words[..WORDS_OF_BLOCK]);
        assert!(found[WORDS_OF_BLOCK..].iter().all(|&word| word == u64::MAX));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_never_accepted(bit in 0..RECORD_LEN * 8) {
            let mut bytes = record().to_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Record::parse(&bytes), None);
        }

        #[test]
        fn no_values_make_the_parser_panic(state: u32, path_len: u32, leg: u32, region: u64) {
            let bytes = record().to_bytes();
            let mut raw = RawRecord::read_from_bytes(&bytes).unwrap();
            raw.legs[0].state = U32::new(state);
            raw.legs[1].path_len = U32::new(path_len);
            raw.leg = U32::new(leg);
            raw.region = U64::new(region);
            raw.checksum = U32::new(checksum_of(raw.as_bytes(), 12));
            let found = Record::parse(raw.as_bytes());
            prop_assert!(found.is_none_or(|found| found.leg < LEGS_MAX));
        }
    }
}
