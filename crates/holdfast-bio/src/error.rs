//! Why a bio failed.

use std::fmt;

use thiserror::Error;

/// Which part of the protection information disagrees with the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tag {
    /// The checksum of the data.
    Guard,
    /// The value that the volume gives all its sectors.
    Application,
    /// The address for which the sector was written.
    Reference,
    /// The tuple says that the sector was never written, but its data are not all zeros.
    Unwritten,
    /// The tuple says that after a crash or a failed write the sector had neither its old nor its
    /// new data: that tore it, or it is corrupt.
    Torn,
}

impl Tag {
    /// Returns the name that logs and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard tag",
            Self::Application => "application tag",
            Self::Reference => "reference tag",
            Self::Unwritten => "never-written sector",
            Self::Torn => "torn sector",
        }
    }

    /// Returns whether the tag is judged by the data, so that a mismatch may only mean that the
    /// memory they were read into has changed.
    pub const fn depends_on_data(self) -> bool {
        matches!(self, Self::Guard | Self::Unwritten)
    }
}

/// A sector whose data and protection information disagree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub struct Mismatch {
    /// What disagrees.
    pub tag: Tag,
    /// The sector's number, in sectors of the volume from its start.
    pub lba: u64,
    /// The value that belongs there. For a guard this is the stored one.
    pub expected: u64,
    /// The value that is there. For a guard this is the checksum of the data that were read.
    pub found: u64,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tag, lba, expected, found } = self;
        if *tag == Tag::Torn {
            return write!(f, "torn sector at LBA {lba}: a crash or a failed write left it so");
        }
        let name = tag.name();
        write!(f, "{name} mismatch at LBA {lba}: expected {expected:#x}, found {found:#x}")
    }
}

/// Why a bio failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
#[expect(clippy::error_impl_error, reason = "it is named by its crate, as `std::io::Error` is")]
pub enum Error {
    /// A sector is corrupt. Nothing of the bio's data may be used.
    #[error(transparent)]
    Mismatch(#[from] Mismatch),
    /// The storage below has no room for the data.
    #[error("no space left on the storage below")]
    NoSpace,
    /// The device takes no writes.
    #[error("the device is read-only")]
    ReadOnly,
    /// The range does not lie inside the device, or crosses a limit that the bio had to keep.
    #[error("{len} bytes at {offset} are no range for one bio of this device")]
    Range {
        /// Where the range begins, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
    },
    /// The device cannot do this operation, or not in the way that was asked for.
    #[error("the operation is not supported")]
    Unsupported,
    /// A flush has failed before: what was written since the flush before it may be lost, and no
    /// later flush can promise otherwise.
    #[error("an earlier flush failed, and what was written before it may be lost")]
    FlushFailed,
    /// Whatever else the device below said.
    #[error("device error: {}", std::io::Error::from_raw_os_error(*errno))]
    Device {
        /// The code of errno(3).
        errno: i32,
    },
}

impl Error {
    /// The code for an I/O error of no particular kind.
    const EIO: i32 = 5;
    const ENOSPC: i32 = 28;
    const EROFS: i32 = 30;
    const EOPNOTSUPP: i32 = 95;
    const EDQUOT: i32 = 122;

    /// An I/O error of no particular kind.
    pub const IO: Self = Self::Device { errno: Self::EIO };

    /// Returns the error for a code of errno(3).
    pub const fn from_errno(errno: i32) -> Self {
        match errno {
            Self::ENOSPC | Self::EDQUOT => Self::NoSpace,
            Self::EROFS => Self::ReadOnly,
            Self::EOPNOTSUPP => Self::Unsupported,
            errno => Self::Device { errno },
        }
    }
}

impl From<&std::io::Error> for Error {
    fn from(error: &std::io::Error) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(Self::EIO))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mismatch_names_tag_sector_and_both_values() {
        let mismatch = Mismatch { tag: Tag::Guard, lba: 42, expected: 0xbeef, found: 0xdead };
        let text = Error::from(mismatch).to_string();
        assert_eq!(text, "guard tag mismatch at LBA 42: expected 0xbeef, found 0xdead");
    }

    #[test]
    fn a_full_quota_is_no_space() {
        assert_eq!(Error::from_errno(122), Error::NoSpace);
    }
}
