//! The superblock, byte for byte. `docs/format.md` describes the same for people.
//!
//! Nothing here does I/O.

mod durability;
mod scrub;

use core::mem::offset_of;
use core::num::NonZeroU64;

use holdfast_checksum::{GuardKind, checksum};
use holdfast_integrity::{Protection, ProtectionType};
use holdfast_units::BlockSize;
use thiserror::Error;
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::geometry::Geometry;

pub use self::durability::{Durability, UnknownDurability};
pub use self::scrub::{RawScrub, ScrubRecord};

/// What a superblock begins with.
pub const MAGIC: [u8; 8] = *b"HOLDFAST";
/// The version of the format that this code writes.
pub const VERSION: u32 = 1;
/// The size of a superblock, in bytes.
pub const SUPERBLOCK_LEN: usize = 4096;
/// Where the two superblocks are, in bytes from the start of the file or device.
pub const SUPERBLOCK_OFFSETS: [u64; 2] = [0, 64 << 10];

/// The greatest sequence of a superblock that can be opened. No volume is opened so often, and one
/// more always fits.
const SEQUENCE_MAX: u64 = u64::MAX / 2;

/// The features that this code knows; a volume with an unknown one is refused as its kind says.
pub mod features {
    /// Unknown ones may be ignored.
    pub const COMPATIBLE: u64 = SCRUB;
    /// Unknown ones forbid writing.
    pub const READ_ONLY_COMPATIBLE: u64 = 0;
    /// Unknown ones forbid opening.
    pub const INCOMPATIBLE: u64 = TUPLE_LOG | DURABILITY | MIRROR | DATA_JOURNAL;
    /// Compatible: the superblock remembers scrubs.
    pub const SCRUB: u64 = 1;
    /// Tuples may be in the tuple log only, until the volume is closed.
    pub const TUPLE_LOG: u64 = 1;
    /// The fields `durability` and `boot` say what to do after a crash, and records of the log have
    /// old tuples. Until the volume is closed.
    pub const DURABILITY: u64 = 2;
    /// The file or device is a leg of a mirror, and must not be written without the others.
    pub const MIRROR: u64 = 4;
    /// The second half of the tuple log is a data journal. Until the volume is closed.
    pub const DATA_JOURNAL: u64 = 8;
}

/// The volume was closed: every tuple belongs to its data.
pub const STATE_CLEAN: u32 = 1;
/// The volume is open for writing, or was not closed.
pub const STATE_OPEN: u32 = 2;

/// The superblock, of which there are two copies. The valid one with the greater sequence counts.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSuperblock {
    /// [`MAGIC`].
    pub magic: [u8; 8],
    /// [`VERSION`].
    pub version: U32,
    /// CRC-32C of the 4096 bytes, computed with 0 in this field.
    pub checksum: U32,
    /// The volume's name for machines.
    pub uuid: [u8; 16],
    /// Bits that may be ignored when unknown.
    pub compatible: U64,
    /// Bits that forbid writing when unknown.
    pub read_only_compatible: U64,
    /// Bits that forbid opening when unknown.
    pub incompatible: U64,
    /// Counts the writes of either copy.
    pub sequence: U64,
    /// Which copy this is: 0 or 1.
    pub copy: U32,
    /// [`STATE_CLEAN`] or [`STATE_OPEN`].
    pub state: U32,
    /// The size of a sector, in bytes: 512 or 4096.
    pub sector_size: U32,
    /// The kind of guard: 1 for CRC-16/T10-DIF, 2 for CRC-32C, 3 for CRC-64/NVMe.
    pub guard: U16,
    /// The application tag of every sector, neither 0 nor 0xffff.
    pub application_tag: U16,
    /// The size of the disk that the volume presents, in bytes.
    pub capacity: U64,
    /// Where the write-intent log begins, in bytes.
    pub intent_offset: U64,
    /// How long the write-intent log is, in bytes.
    pub intent_len: U64,
    /// Where the tuple log begins, in bytes.
    pub log_offset: U64,
    /// How long the tuple log is, in bytes.
    pub log_len: U64,
    /// Where the first group begins, in bytes.
    pub groups_offset: U64,
    /// How many groups there are.
    pub groups: U64,
    /// When the volume was created, in seconds since 1970.
    pub created: U64,
    /// How many guard tag mismatches were met.
    pub guard_errors: U64,
    /// How many application tag mismatches were met.
    pub application_errors: U64,
    /// How many reference tag mismatches were met.
    pub reference_errors: U64,
    /// How often a never-written sector was found not to be zeros.
    pub unwritten_errors: U64,
    /// What records of the tuple log must say to count, if the volume has the feature.
    pub log_epoch: U64,
    /// How tuples are kept: 1 for full, 2 for bitmap, 3 for none, if the volume has the feature.
    pub durability: U32,
    /// 0.
    pub padding: U32,
    /// The running kernel of the machine that has the volume open, or 0.
    pub boot: [u8; 16],
    /// What is remembered of scrubs, if the volume has the feature.
    pub scrub: RawScrub,
    /// 0.
    pub reserved: [u8; 3824],
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == SUPERBLOCK_LEN);
    assert!(offset_of!(RawSuperblock, checksum) == 12);
    assert!(offset_of!(RawSuperblock, uuid) == 16);
    assert!(offset_of!(RawSuperblock, sequence) == 56);
    assert!(offset_of!(RawSuperblock, sector_size) == 72);
    assert!(offset_of!(RawSuperblock, capacity) == 80);
    assert!(offset_of!(RawSuperblock, groups_offset) == 120);
    assert!(offset_of!(RawSuperblock, guard_errors) == 144);
    assert!(offset_of!(RawSuperblock, log_epoch) == 176);
    assert!(offset_of!(RawSuperblock, durability) == 184);
    assert!(offset_of!(RawSuperblock, boot) == 192);
    assert!(offset_of!(RawSuperblock, scrub) == 208);
    assert!(offset_of!(RawSuperblock, reserved) == 272);
};

/// Why bytes are no volume, or none that can be opened.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The bytes do not begin as a volume does.
    #[error("this is no Holdfast volume: it begins with {found:02x?} and not with \"HOLDFAST\"")]
    Foreign {
        /// The first bytes.
        found: [u8; 8],
    },
    /// The checksum does not match: the superblock is corrupt.
    #[error("the superblock is corrupt: checksum {expected:#010x}, computed {found:#010x}")]
    Checksum {
        /// What is stored.
        expected: u32,
        /// What the bytes give.
        found: u32,
    },
    /// The version is newer than this program.
    #[error("the volume has format version {found}, and this program knows {VERSION}: update it")]
    Version {
        /// The volume's version.
        found: u32,
    },
    /// There are features that this program would do harm to.
    #[error("the volume uses {kind} features {bits:#x} that this program does not know: update it")]
    Features {
        /// Which kind of feature.
        kind: &'static str,
        /// The unknown bits.
        bits: u64,
    },
    /// A field has a value that no program wrote.
    #[error("the superblock's {field} is {found}, which cannot be")]
    Field {
        /// The field's name.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// The file or device ends before the volume does.
    #[error("the volume needs {expected} bytes and has {found}: it was truncated")]
    Truncated {
        /// The bytes that the volume needs.
        expected: u64,
        /// The bytes that are there.
        found: u64,
    },
}

impl FormatError {
    /// Returns whether the bytes are good, but written by a newer program.
    pub const fn is_newer(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Features { .. })
    }
}

/// How many mismatches were met, by tag. The same numbers are in the superblock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct ErrorCounts {
    /// Of the guard tag.
    pub guard: u64,
    /// Of the application tag.
    pub application: u64,
    /// Of the reference tag.
    pub reference: u64,
    /// Never-written sectors that were not zeros.
    pub unwritten: u64,
}

impl ErrorCounts {
    /// Returns all of them together.
    pub const fn total(&self) -> u64 {
        // A superblock may say anything.
        self.guard
            .saturating_add(self.application)
            .saturating_add(self.reference)
            .saturating_add(self.unwritten)
    }
}

/// A superblock whose every field has been checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// The volume's name for machines.
    pub uuid: [u8; 16],
    /// Counts the writes of either copy.
    pub sequence: u64,
    /// The volume was closed.
    pub clean: bool,
    /// There are unknown features that forbid writing.
    pub read_only: bool,
    /// The bits that may be ignored when unknown, which are kept.
    pub compatible: u64,
    /// The bits that forbid writing when unknown, which are kept.
    pub read_only_compatible: u64,
    /// The kind of guard.
    pub guard: GuardKind,
    /// The application tag of every sector.
    pub application_tag: u16,
    /// Where everything is.
    pub geometry: Geometry,
    /// When the volume was created, in seconds since 1970.
    pub created: u64,
    /// The mismatches that were met.
    pub errors: ErrorCounts,
    /// What records of the tuple log must say to count. Without it there is nothing in the log.
    pub log_epoch: Option<NonZeroU64>,
    /// There is a data journal, whose batches say the same.
    pub journaled: bool,
    /// What was promised since the volume was opened. `None` if it is closed, or was opened by a
    /// program that had no choice.
    pub durability: Option<Durability>,
    /// The running kernel of the machine that has the volume open, or zeros.
    pub boot: [u8; 16],
    /// What is remembered of scrubs.
    pub scrub: ScrubRecord,
    /// What has this superblock is a leg of a mirror.
    pub mirror: bool,
}

impl Superblock {
    /// Reads one copy. No bytes make it panic.
    ///
    /// # Errors
    ///
    /// What is wrong with the bytes.
    pub fn parse(bytes: &[u8; SUPERBLOCK_LEN]) -> Result<Self, FormatError> {
        let raw = RawSuperblock::ref_from_bytes(bytes).expect("the length is that of the struct");
        if raw.magic != MAGIC {
            return Err(FormatError::Foreign { found: raw.magic });
        }
        let (expected, found) = (raw.checksum.get(), raw.compute_checksum());
        if expected != found {
            return Err(FormatError::Checksum { expected, found });
        }
        if raw.version.get() != VERSION {
            return Err(FormatError::Version { found: raw.version.get() });
        }
        let unknown = raw.incompatible.get() & !features::INCOMPATIBLE;
        if unknown != 0 {
            return Err(FormatError::Features { kind: "incompatible", bits: unknown });
        }
        raw.check_fields()
    }

    /// Returns the bytes of copy 0 or 1.
    pub fn to_raw(&self, copy: u32) -> RawSuperblock {
        let mut raw = RawSuperblock::new_zeroed();
        let geometry = &self.geometry;
        raw.magic = MAGIC;
        raw.version = U32::new(VERSION);
        raw.uuid = self.uuid;
        raw.compatible = U64::new(self.compatible);
        raw.read_only_compatible = U64::new(self.read_only_compatible);
        raw.sequence = U64::new(self.sequence);
        raw.copy = U32::new(copy);
        raw.state = U32::new(if self.clean { STATE_CLEAN } else { STATE_OPEN });
        raw.sector_size = U32::new(u32::try_from(geometry.sector().bytes()).expect("512 or 4096"));
        raw.guard = U16::new(guard_code(self.guard));
        raw.application_tag = U16::new(self.application_tag);
        raw.capacity = U64::new(geometry.capacity());
        (raw.intent_offset, raw.intent_len) = pair(geometry.intent());
        (raw.log_offset, raw.log_len) = pair(geometry.log());
        raw.groups_offset = U64::new(geometry.groups_offset());
        raw.groups = U64::new(geometry.groups());
        raw.created = U64::new(self.created);
        raw.guard_errors = U64::new(self.errors.guard);
        raw.application_errors = U64::new(self.errors.application);
        raw.reference_errors = U64::new(self.errors.reference);
        raw.unwritten_errors = U64::new(self.errors.unwritten);
        let mut incompatible = if self.mirror { features::MIRROR } else { 0 };
        if let Some(epoch) = self.log_epoch {
            incompatible |= features::TUPLE_LOG;
            raw.log_epoch = U64::new(epoch.get());
            if self.journaled {
                incompatible |= features::DATA_JOURNAL;
            }
        }
        if let Some(durability) = self.durability {
            incompatible |= features::DURABILITY;
            raw.durability = U32::new(durability.code());
            raw.boot = self.boot;
        }
        if self.scrub != ScrubRecord::default() {
            raw.compatible |= U64::new(features::SCRUB);
            raw.scrub = self.scrub.to_raw();
        }
        raw.incompatible = U64::new(incompatible);
        raw.checksum = U32::new(raw.compute_checksum());
        raw
    }

    /// Returns the UUID as people write it.
    pub fn uuid_text(&self) -> String {
        uuid::Uuid::from_bytes(self.uuid).to_string()
    }

    /// Returns how the volume's sectors are protected: type 1, and no escapes, since a volume never
    /// writes them.
    pub const fn protection(&self) -> Protection {
        Protection {
            kind: self.guard,
            protection_type: ProtectionType::Type1,
            application: self.application_tag,
            escapes: false,
        }
    }
}

impl RawSuperblock {
    /// Computes the checksum that belongs into the field of that name.
    pub fn compute_checksum(&self) -> u32 {
        let mut zeroed = self.clone();
        zeroed.checksum = U32::ZERO;
        let crc = checksum(GuardKind::Crc32c, zeroed.as_bytes());
        u32::try_from(crc).expect("a CRC-32C has 32 bits")
    }

    fn check_fields(&self) -> Result<Superblock, FormatError> {
        let wrong = |field, found| FormatError::Field { field, found };
        let guard =
            guard_of(self.guard.get()).ok_or_else(|| wrong("guard", self.guard.get().into()))?;
        let sector_size = u64::from(self.sector_size.get());
        let sector = BlockSize::new(sector_size)
            .filter(|size| [512, 4096].contains(&size.bytes()))
            .ok_or_else(|| wrong("sector size", sector_size))?;
        let tag = self.application_tag.get();
        if tag == 0 || tag == Protection::ESCAPE {
            return Err(wrong("application tag", tag.into()));
        }
        let geometry = Geometry::new(self.capacity.get(), sector, guard)
            .ok_or_else(|| wrong("capacity", self.capacity.get()))?;
        for (field, found, expected) in [
            ("write-intent log offset", self.intent_offset, geometry.intent().0),
            ("write-intent log length", self.intent_len, geometry.intent().1),
            ("tuple log offset", self.log_offset, geometry.log().0),
            ("tuple log length", self.log_len, geometry.log().1),
            ("first group", self.groups_offset, geometry.groups_offset()),
            ("number of groups", self.groups, geometry.groups()),
        ] {
            if found.get() != expected {
                return Err(wrong(field, found.get()));
            }
        }
        let sequence = self.sequence.get();
        if sequence > SEQUENCE_MAX {
            return Err(wrong("sequence", sequence));
        }
        let clean = match self.state.get() {
            STATE_CLEAN => true,
            STATE_OPEN => false,
            other => return Err(wrong("state", other.into())),
        };
        let read_only_compatible = self.read_only_compatible.get();
        let has = |feature| self.incompatible.get() & feature != 0;
        let durability = match (has(features::DURABILITY), self.durability.get()) {
            (false, _) => None,
            (true, code) => {
                Some(Durability::from_code(code).ok_or_else(|| wrong("durability", code.into()))?)
            }
        };
        let has_scrub = self.compatible.get() & features::SCRUB != 0;
        let scrub = has_scrub.then(|| self.scrub.parse(geometry.capacity(), sector));
        Ok(Superblock {
            uuid: self.uuid,
            sequence,
            clean,
            read_only: read_only_compatible & !features::READ_ONLY_COMPATIBLE != 0,
            compatible: self.compatible.get(),
            read_only_compatible,
            guard,
            application_tag: tag,
            geometry,
            created: self.created.get(),
            errors: ErrorCounts {
                guard: self.guard_errors.get(),
                application: self.application_errors.get(),
                reference: self.reference_errors.get(),
                unwritten: self.unwritten_errors.get(),
            },
            log_epoch: NonZeroU64::new(self.log_epoch.get()).filter(|_| has(features::TUPLE_LOG)),
            journaled: has(features::DATA_JOURNAL),
            durability,
            boot: if durability.is_some() { self.boot } else { [0; 16] },
            scrub: scrub.unwrap_or_default(),
            mirror: has(features::MIRROR),
        })
    }
}

fn pair((offset, len): (u64, u64)) -> (U64, U64) {
    (U64::new(offset), U64::new(len))
}

const fn guard_code(kind: GuardKind) -> u16 {
    match kind {
        GuardKind::Crc16 => 1,
        GuardKind::Crc32c => 2,
        GuardKind::Crc64 => 3,
    }
}

const fn guard_of(code: u16) -> Option<GuardKind> {
    match code {
        1 => Some(GuardKind::Crc16),
        2 => Some(GuardKind::Crc32c),
        3 => Some(GuardKind::Crc64),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn superblock() -> Superblock {
        Superblock {
            uuid: [7; 16],
            sequence: 3,
            clean: true,
            read_only: false,
            compatible: features::SCRUB,
            read_only_compatible: 0,
            guard: GuardKind::Crc64,
            application_tag: 0x4846,
            geometry: Geometry::new(1 << 30, BlockSize::PAGE, GuardKind::Crc64).unwrap(),
            created: 1_800_000_000,
            errors: ErrorCounts { guard: 1, application: 2, reference: 3, unwritten: 4 },
            log_epoch: NonZeroU64::new(5),
            journaled: true,
            durability: Some(Durability::Bitmap),
            boot: [9; 16],
            scrub: ScrubRecord { position: 8192, corrupt: 6, ..ScrubRecord::default() },
            mirror: true,
        }
    }

    fn bytes_of(raw: &RawSuperblock) -> [u8; SUPERBLOCK_LEN] {
        raw.as_bytes().try_into().unwrap()
    }

    fn parse_changed(change: impl FnOnce(&mut RawSuperblock)) -> Result<Superblock, FormatError> {
        let mut raw = superblock().to_raw(0);
        change(&mut raw);
        raw.checksum = U32::new(raw.compute_checksum());
        Superblock::parse(&bytes_of(&raw))
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(Superblock::parse(&bytes_of(&superblock().to_raw(1))), Ok(superblock()));
    }

    #[test]
    fn an_unknown_incompatible_feature_is_refused_by_its_bit() {
        let found = parse_changed(|raw| raw.incompatible = U64::new(1 << 9));
        assert_eq!(found, Err(FormatError::Features { kind: "incompatible", bits: 1 << 9 }));
    }

    #[test]
    fn an_unknown_read_only_compatible_feature_forbids_writing() {
        let found = parse_changed(|raw| raw.read_only_compatible = U64::new(2)).unwrap();
        assert!(found.read_only);
    }

    #[test]
    fn what_is_said_of_scrubs_counts_with_its_feature_only() {
        let found = parse_changed(|raw| raw.compatible = U64::new(1 << 9)).unwrap();
        assert_eq!((found.scrub, found.compatible), (ScrubRecord::default(), 1 << 9));
    }

    #[test]
    fn a_feature_whose_fields_a_program_did_not_keep_says_that_there_was_no_scrub() {
        let found = parse_changed(|raw| raw.scrub = RawScrub::new_zeroed()).unwrap();
        assert_eq!((found.scrub, found.compatible), (ScrubRecord::default(), features::SCRUB));
    }

    #[test]
    fn a_newer_version_is_refused() {
        let found = parse_changed(|raw| raw.version = U32::new(2));
        assert_eq!(found, Err(FormatError::Version { found: 2 }));
    }

    #[test]
    fn a_sequence_that_cannot_be_counted_on_is_refused() {
        let found = parse_changed(|raw| raw.sequence = U64::new(u64::MAX - 1));
        assert_eq!(found, Err(FormatError::Field { field: "sequence", found: u64::MAX - 1 }));
    }

    #[test]
    fn counts_of_any_size_add_up() {
        let errors = ErrorCounts { guard: u64::MAX, application: 1, reference: 2, unwritten: 3 };
        assert_eq!(errors.total(), u64::MAX);
    }

    #[test]
    fn another_file_is_foreign() {
        let found = Superblock::parse(&[0; SUPERBLOCK_LEN]);
        assert_eq!(found, Err(FormatError::Foreign { found: [0; 8] }));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_never_accepted(bit in 0..SUPERBLOCK_LEN * 8) {
            let mut bytes = bytes_of(&superblock().to_raw(0));
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Superblock::parse(&bytes).is_err());
        }

        #[test]
        fn no_values_make_the_parser_panic(
            sector: u32, guard: u16, tag: u16, capacity: u64, groups: u64, state: u32,
        ) {
            let result = parse_changed(|raw| {
                raw.sector_size = U32::new(sector);
                raw.guard = U16::new(guard % 5);
                raw.application_tag = U16::new(tag);
                raw.capacity = U64::new(capacity);
                raw.groups = U64::new(groups);
                raw.state = U32::new(state % 4);
            });
            prop_assert!(result.is_err());
        }
    }
}
