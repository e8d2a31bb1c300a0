//! Why something cannot be read or written.

use std::fmt;

use holdfast_bio::Error;
use holdfast_xfs_format::{FeatureSet, FormatError, Ino};
use holdfast_xfs_tree::TreeError;
use thiserror::Error as ThisError;

/// Where something was to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The inode it belongs to.
    pub ino: Option<Ino>,
    /// Where it is, in bytes from the start of the device, if it is anywhere.
    pub address: Option<u64>,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.ino, self.address) {
            (Some(ino), Some(address)) => write!(f, "inode {ino}, at byte {address} of the device"),
            (Some(ino), None) => write!(f, "inode {ino}"),
            (None, Some(address)) => write!(f, "at byte {address} of the device"),
            (None, None) => f.write_str("the file system"),
        }
    }
}

/// Why something cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, ThisError)]
#[non_exhaustive]
pub enum XfsError {
    /// The device failed.
    #[error("{place}: cannot be read")]
    Device {
        /// Where.
        place: Place,
        /// What the device said.
        source: Error,
    },
    /// The device failed, and what was changed may be stored in part.
    #[error("{place}: cannot be written")]
    Write {
        /// Where.
        place: Place,
        /// What the device said.
        source: Error,
    },
    /// The file system was mounted for reading.
    #[error("the file system is mounted for reading only")]
    ReadOnly,
    /// The file system has features of which writing would have to know.
    #[error("the file system can be read, but not written: it has {features}")]
    FeaturesForWriting {
        /// Those.
        features: FeatureSet,
    },
    /// Metadata could not be written once, so that nothing is written any more.
    #[error(
        "metadata could not be written before, so nothing is changed any more: unmount, and run \
         `xfs_repair`"
    )]
    Broken,
    /// What says where things are, or what is free, contradicts itself, or cannot be changed so.
    #[error(transparent)]
    Tree(TreeError),
    /// A file was used for direct I/O that is not open for it.
    #[error("inode {ino} is not open")]
    NotOpen {
        /// The file.
        ino: Ino,
    },
    /// A file would become longer than any can be.
    #[error("inode {ino}: a file cannot be {size} bytes long")]
    TooLong {
        /// The file.
        ino: Ino,
        /// How long it was to be, in bytes.
        size: u64,
    },
    /// There is no space.
    #[error("there is no space left in the file system")]
    NoSpace,
    /// There is no memory to read into.
    #[error("no memory to read into")]
    Memory {
        /// What mmap(2) said.
        source: Error,
    },
    /// What is stored is corrupt. The kernel's `xfs_repair` may mend it.
    #[error("{place}: corrupt")]
    Corrupt {
        /// Where.
        place: Place,
        /// What is wrong.
        source: FormatError,
    },
    /// It is no file system that can be read.
    #[error("not a file system that can be read")]
    Superblock {
        /// What is wrong.
        source: FormatError,
    },
    /// The file system has features that are not supported.
    #[error("the file system has features that are not supported: {features}")]
    Features {
        /// Those.
        features: FeatureSet,
    },
    /// The file system has something that is not supported.
    #[error("{what} is not supported")]
    Unsupported {
        /// What.
        what: &'static str,
    },
    /// The file system was found corrupt before, or was being written when the writer ended.
    #[error(
        "the file system is marked as damaged, or as being written by somebody who never \
         unmounted it: run `xfs_repair` on it first"
    )]
    NeedsRepair,
    /// The device is shorter than the file system.
    #[error("the device is truncated: the file system has {expected} bytes, the device {found}")]
    Truncated {
        /// The size of the file system, in bytes.
        expected: u64,
        /// The size of the device, in bytes.
        found: u64,
    },
    /// The log holds changes that are not in their places yet.
    #[error(
        "the log is dirty: the file system was not unmounted. Mount and unmount it with Linux, \
         which replays the log, or read it as it is with --no-recovery"
    )]
    DirtyLog,
    /// The log is on a device of its own.
    #[error(
        "the log is on another device, which is not supported: read the file system as it is with \
         --no-recovery"
    )]
    ExternalLog,
    /// The data of the file are on the realtime device.
    #[error("inode {ino}: its data are on the realtime device, which is not supported")]
    Realtime {
        /// The file.
        ino: Ino,
    },
    /// There can be no inode of this number.
    #[error("there is no inode {ino}")]
    NoInode {
        /// The number.
        ino: Ino,
    },
    /// A name is not there.
    #[error("{}: no such file or directory", String::from_utf8_lossy(name))]
    NotFound {
        /// The name or path.
        name: Vec<u8>,
    },
    /// Something else than a directory was used as one.
    #[error("inode {ino}: not a directory")]
    NotDirectory {
        /// What was used.
        ino: Ino,
    },
    /// Something else than a regular file was used as one.
    #[error("inode {ino}: not a regular file")]
    NotFile {
        /// What was used.
        ino: Ino,
    },
    /// Something else than a symbolic link was used as one.
    #[error("inode {ino}: not a symbolic link")]
    NotSymlink {
        /// What was used.
        ino: Ino,
    },
    /// A path leads through too many symbolic links.
    #[error("too many symbolic links")]
    TooManySymlinks,
}

impl From<TreeError> for XfsError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Full => Self::NoSpace,
            error => Self::Tree(error),
        }
    }
}

impl XfsError {
    /// Returns whether something stored is corrupt, and the caller has made no mistake.
    pub const fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Device { source: Error::Mismatch(_), .. })
    }

    /// Says that something of an inode is corrupt.
    pub(crate) const fn of_inode(ino: Ino) -> impl Fn(FormatError) -> Self {
        move |source| Self::Corrupt { place: Place { ino: Some(ino), address: None }, source }
    }

    /// Says that something at a place is corrupt.
    pub(crate) const fn at(ino: Ino, address: u64) -> impl Fn(FormatError) -> Self {
        move |source| Self::Corrupt {
            place: Place { ino: Some(ino), address: Some(address) },
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_xfs_format::Structure;

    use super::*;

    #[test]
    fn an_error_says_where_and_what() {
        let uuid = FormatError::Uuid { structure: Structure::DirData };
        let error = XfsError::at(Ino(131), 8192)(uuid);
        assert_eq!(error.to_string(), "inode 131, at byte 8192 of the device: corrupt");
        assert!(error.is_corruption() && !XfsError::DirtyLog.is_corruption());
    }
}
