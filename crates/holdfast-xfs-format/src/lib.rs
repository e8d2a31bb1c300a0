//! The bytes of XFS, version 5, as structs and verified views.
//!
//! A structure is a `zerocopy` struct whose numbers are big-endian by type. Whoever read bytes asks
//! [`BlockKind::verify`] first, or the `parse` of an inode, a superblock or a header of an
//! allocation group: it compares checksum, file system, place and owner. The views then check every
//! number before they use it, so no bytes make them panic or go on for ever.
//!
//! Nothing here does I/O or allocates.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), no_std)]

mod address;
mod ag;
mod attr;
mod block;
mod bmap;
mod da;
mod dir;
mod error;
mod extent;
mod geometry;
mod inode;
mod log;
mod remote;
mod sb;
mod seal;
mod time;

pub use address::{FileBlock, FsBlock, Ino};
pub use ag::{Agf, Agfl, Agi, RawAgf, RawAgfl, RawAgi};
pub use attr::{
    ATTRIBUTE_LEN_MAX, AttrEntry, AttrLeaf, AttrValue, Namespace, RawAttrLeafEntry,
    RawAttrLeafHeader, ShortAttr,
};
pub use block::{BlockKind, Identity, LongHeader, ShortHeader};
pub use bmap::{BmapBlock, BmapBody, BmapRoot, LEVELS_MAX};
pub use da::{DaHeader, DaNode, NODE_LEVEL_MAX, RawDaEntry, RawDaNodeHeader, hash_name};
pub use dir::{
    DirBlockLeaf, DirData, DirEntry, DirFree, DirHeader, DirLeaf, FREE_OFFSET, FileType,
    LEAF_OFFSET, NAME_LEN_MAX, RawDirDataHeader, RawDirFreeHeader, RawDirLeafEntry,
    RawDirLeafHeader, ShortDir,
};
pub use error::{FormatError, Structure};
pub use extent::{Extent, RawExtent};
pub use geometry::Geometry;
pub use inode::{Flags, ForkFormat, Inode, Kind, RawInode};
pub use log::{LOG_BLOCK, LogOperation, RawLogOperation, RawLogRecord, cycle_of};
pub use remote::{RemoteBlock, RemoteHeader, SYMLINK_LEN_MAX};
pub use sb::{FeatureSet, Features, RawSuperblock, SECTOR_MAX, Superblock};
pub use time::Timestamp;
