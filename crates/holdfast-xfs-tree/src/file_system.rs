//! What a superblock says that matters here.

use holdfast_xfs_format::{Geometry, Superblock};

/// The sizes of a file system, and which trees its allocation groups have.
#[derive(Clone, Copy, Debug)]
pub struct FileSystem {
    /// The sizes.
    pub geometry: Geometry,
    /// There is a tree of owners (`rmapbt`).
    pub has_owners: bool,
    /// There is a tree of shared extents (`reflink`).
    pub has_sharing: bool,
    /// There is a tree of free inodes (`finobt`).
    pub has_free_inodes: bool,
}

impl FileSystem {
    /// The read-only compatible features.
    const FINOBT: u32 = 1;
    const RMAPBT: u32 = 1 << 1;
    const REFLINK: u32 = 1 << 2;

    /// Takes from a superblock what matters here.
    pub const fn new(superblock: &Superblock) -> Self {
        let features = superblock.features.read_only_compatible;
        Self {
            geometry: superblock.geometry,
            has_owners: features.has(Self::RMAPBT),
            has_sharing: features.has(Self::REFLINK),
            has_free_inodes: features.has(Self::FINOBT),
        }
    }
}
