//! What is wrong with trees, or cannot be done to them.

use holdfast_xfs_format::{FileBlock, FormatError, Ino, Structure};
use thiserror::Error;

/// Why a change of a tree cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A header or a block of an allocation group is not what it must be.
    #[error("allocation group {ag}, block {block}: {source}; run xfs_repair")]
    Group {
        /// Which allocation group.
        ag: u32,
        /// The block's number in the group; 0 for the headers.
        block: u64,
        /// What is wrong.
        source: FormatError,
    },
    /// A block of the tree of a file's extents is not what it must be, or the root of that tree.
    #[error("inode {ino}, block {block}: {source}; run xfs_repair")]
    File {
        /// Whose tree it is.
        ino: Ino,
        /// The block of the file system; 0 for the root, which is in the inode.
        block: u64,
        /// What is wrong.
        source: FormatError,
    },
    /// A tree of an allocation group says something else of blocks than all the others do.
    #[error("allocation group {ag}, block {block}: {structure} {fault}; run xfs_repair")]
    Contradiction {
        /// Which allocation group.
        ag: u32,
        /// The block's number in the group.
        block: u64,
        /// Which tree.
        structure: Structure,
        /// What is wrong with what it says.
        fault: &'static str,
    },
    /// A file has blocks where it must have none, or none where it must have some.
    #[error("inode {ino}, block {file} of the file: {fault}")]
    Mapping {
        /// Which file.
        ino: Ino,
        /// The block of the file.
        file: FileBlock,
        /// What is wrong.
        fault: &'static str,
    },
    /// There is not enough free space.
    #[error("there is not enough free space: remove files, or grow the file system")]
    Full,
}
