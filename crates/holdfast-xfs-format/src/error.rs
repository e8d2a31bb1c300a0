//! What is wrong with bytes that were to be a structure of XFS.

use core::fmt;

use thiserror::Error;

/// The structures of XFS, as errors name them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Structure {
    /// The superblock.
    Superblock,
    /// The header of an allocation group that counts its free space.
    Agf,
    /// The header of an allocation group that counts its inodes.
    Agi,
    /// The list of free blocks that an allocation group keeps for its B+trees.
    Agfl,
    /// An inode.
    Inode,
    /// The root of a B+tree of extents, in an inode.
    BmapRoot,
    /// A block of a B+tree of extents.
    BmapBlock,
    /// One extent of a file.
    Extent,
    /// A block of a B+tree of free space by place.
    FreeByPlace,
    /// A block of a B+tree of free space by size.
    FreeBySize,
    /// A block of the B+tree of inodes.
    InodeBtree,
    /// A block of the B+tree of free inodes.
    FreeInodeBtree,
    /// A block of the B+tree of owners.
    RmapBtree,
    /// A block of the B+tree of shared extents.
    RefcountBtree,
    /// A directory inside its inode.
    ShortDir,
    /// A directory that is one block.
    DirBlock,
    /// A block of a directory's entries.
    DirData,
    /// A block of a directory's free space.
    DirFree,
    /// A leaf of a directory's hashes, the only one.
    DirLeaf,
    /// A leaf of a directory's hashes, one of several.
    DirNodeLeaf,
    /// A node of the tree of hashes of a directory or of attributes.
    DaNode,
    /// Attributes inside their inode.
    ShortAttr,
    /// A block of attributes.
    AttrLeaf,
    /// A block of the value of an attribute.
    AttrRemote,
    /// The value of an attribute that is an access control list.
    Acl,
    /// A block of the target of a symbolic link.
    Symlink,
    /// The head of a record of the log.
    LogRecord,
}

impl Structure {
    /// Returns the name that errors and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Superblock => "superblock",
            Self::Agf => "AGF",
            Self::Agi => "AGI",
            Self::Agfl => "AGFL",
            Self::Inode => "inode",
            Self::BmapRoot => "extent B+tree root",
            Self::BmapBlock => "extent B+tree block",
            Self::Extent => "extent",
            Self::FreeByPlace => "free space B+tree block (by place)",
            Self::FreeBySize => "free space B+tree block (by size)",
            Self::InodeBtree => "inode B+tree block",
            Self::FreeInodeBtree => "free inode B+tree block",
            Self::RmapBtree => "reverse mapping B+tree block",
            Self::RefcountBtree => "reference count B+tree block",
            Self::ShortDir => "short form directory",
            Self::DirBlock => "directory block",
            Self::DirData => "directory data block",
            Self::DirFree => "directory free space block",
            Self::DirLeaf => "directory leaf block",
            Self::DirNodeLeaf => "directory node leaf block",
            Self::DaNode => "hash tree node",
            Self::ShortAttr => "short form attributes",
            Self::AttrLeaf => "attribute leaf block",
            Self::AttrRemote => "remote attribute value block",
            Self::Acl => "access control list",
            Self::Symlink => "symbolic link block",
            Self::LogRecord => "log record",
        }
    }
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Why bytes are not the structure that they were to be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FormatError {
    /// This is no XFS.
    #[error("no XFS: it begins with {found:02x?} and not with \"XFSB\"")]
    Foreign {
        /// The first bytes.
        found: [u8; 4],
    },
    /// This is XFS of a version that is not known.
    #[error("XFS version {found}: only version 5 is supported")]
    Version {
        /// The version.
        found: u16,
    },
    /// There are fewer bytes than the structure has.
    #[error("{structure}: {found} bytes, where {expected} are needed")]
    Short {
        /// What it was to be.
        structure: Structure,
        /// How many bytes it needs.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A field has not the one value that it must have.
    #[error("{structure}: {field} is {found:#x}, not {expected:#x}")]
    Value {
        /// What it was to be.
        structure: Structure,
        /// Which field.
        field: &'static str,
        /// The value that belongs there.
        expected: u64,
        /// The value that is there.
        found: u64,
    },
    /// A field has a value that it cannot have.
    #[error("{structure}: {field} cannot be {found:#x}")]
    Range {
        /// What it was to be.
        structure: Structure,
        /// Which field.
        field: &'static str,
        /// The value that is there.
        found: u64,
    },
    /// The bytes are not those that the checksum was computed over.
    #[error("{structure}: checksum mismatch, stored {expected:#010x}, computed {found:#010x}")]
    Checksum {
        /// What it was to be.
        structure: Structure,
        /// The checksum that is stored.
        expected: u32,
        /// The checksum of the bytes.
        found: u32,
    },
    /// The structure belongs to another file system.
    #[error("{structure}: it has the UUID of another file system")]
    Uuid {
        /// What it was to be.
        structure: Structure,
    },
}

/// Fails unless a field has its one value.
pub(crate) fn expect(
    structure: Structure,
    field: &'static str,
    expected: u64,
    found: u64,
) -> Result<(), FormatError> {
    if found == expected {
        return Ok(());
    }
    Err(FormatError::Value { structure, field, expected, found })
}

/// Fails unless a field has a value that it may have.
pub(crate) fn require(
    structure: Structure,
    field: &'static str,
    found: u64,
    holds: bool,
) -> Result<(), FormatError> {
    if holds { Ok(()) } else { Err(FormatError::Range { structure, field, found }) }
}

/// The error for bytes that are too few.
pub(crate) const fn short(structure: Structure, expected: usize, found: usize) -> FormatError {
    FormatError::Short { structure, expected, found }
}
