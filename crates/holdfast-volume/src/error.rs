//! Why a volume cannot be created, opened or closed.

use holdfast_bio::Error;
use holdfast_units::BlockSize;
use thiserror::Error as ThisError;

use crate::format::FormatError;

/// Why a volume cannot be created, opened or closed.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum VolumeError {
    /// The size is none that a volume can have.
    #[error(
        "a volume of {capacity} bytes cannot be: give a multiple of the sector of {sector} bytes, above 0"
    )]
    Capacity {
        /// The size that was asked for, in bytes.
        capacity: u64,
        /// The size of a sector.
        sector: BlockSize,
    },
    /// The device below has no room for the volume.
    #[error("the volume needs {needed} bytes, and the device has {found}")]
    TooSmall {
        /// The bytes that the volume needs.
        needed: u64,
        /// The bytes that the device has.
        found: u64,
    },
    /// The device below writes larger blocks than the volume's sectors.
    #[error(
        "the storage below writes blocks of {block} bytes: a sector of {sector} bytes is too small for it"
    )]
    Sector {
        /// The size of a sector.
        sector: BlockSize,
        /// The size of the device's blocks.
        block: BlockSize,
    },
    /// The application tag is one that has another meaning.
    #[error("the application tag {tag:#06x} is reserved: give one from 0x0001 to 0xfffe")]
    ApplicationTag {
        /// The tag that was asked for.
        tag: u16,
    },
    /// Neither superblock can be used.
    #[error("neither superblock can be used: {first}; the copy: {second}")]
    Superblocks {
        /// What is wrong with the first.
        first: FormatError,
        /// What is wrong with the second.
        second: FormatError,
    },
    /// The superblock is good, but the volume cannot be opened.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The volume has features that this program would not keep up to date.
    #[error(
        "the volume uses features {bits:#x} that this program can only read: open it read-only"
    )]
    ReadOnlyFeatures {
        /// The unknown bits.
        bits: u64,
    },
    /// There is no such sector.
    #[error("there is no LBA {lba}: the volume has {sectors} sectors")]
    Lba {
        /// The address that was asked for.
        lba: u64,
        /// How many sectors there are.
        sectors: u64,
    },
    /// A sector cannot be accepted, since it cannot be read.
    #[error("the sector at LBA {lba}, or its tuple, cannot be read: write it anew")]
    Unreadable {
        /// The sector's address.
        lba: u64,
    },
    /// A leg of a mirror is used alone, or what is no leg as one.
    #[error("{}", if *is_leg {
        "this is a leg of a mirror, which must not be used without the others"
    } else {
        "this is a volume of its own, and no leg of a mirror"
    })]
    Mirror {
        /// It is a leg.
        is_leg: bool,
    },
    /// The device below failed.
    #[error("cannot {what}: {source}")]
    Device {
        /// What was being done.
        what: &'static str,
        /// What the device said.
        source: Error,
    },
}
