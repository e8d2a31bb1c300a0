//! Blocks of an allocation group that files do not get, so that its trees can always grow.

use crate::blocks::Blocks;
use crate::group::Group;
use crate::node::Layout;
use crate::refcount::Sharing;
use crate::rmap::Owners;
use crate::shape::Shape;

/// Blocks of an allocation group that are kept whatever trees it has.
const SET_ASIDE: u32 = 8;
/// What of the file system is kept for trees of files that must grow when there is nothing free: one of so
/// many blocks, and at most so many blocks.
const POOL_SHARE: u64 = 20;
const POOL_MAX: u64 = 8192;
/// The most inodes that are in one record of the tree of free inodes.
const INODES_OF_RECORD: u64 = 64;
/// The size of a record of the tree of free inodes, and of a key with a pointer, in bytes.
const INODE_RECORD: u64 = 16;
const INODE_ENTRY: u64 = 8;
/// The size of the header of a block with short pointers, in bytes.
const HEADER: u64 = 56;

impl<B: Blocks> Group<'_, B> {
    /// Returns how many free blocks are kept, as the kernel keeps them from the mount on: as many as each
    /// tree would have if every block had a record, without those that it has, and a share of those for the
    /// trees of files.
    pub(crate) fn reserve(&mut self) -> Result<u32, B::Error> {
        let agf = self.agf()?;
        let (blocks, file_system) = (u64::from(self.len()), *self.file_system);
        let len = file_system.geometry.block.len();
        let pool =
            (POOL_MAX / u64::from(file_system.geometry.ag_count.max(1))).min(blocks / POOL_SHARE);
        let mut reserve = u64::from(SET_ASIDE) + pool;
        if file_system.has_sharing {
            let most = tree_max::<Sharing>(len, blocks);
            reserve += most.saturating_sub(u64::from(agf.refcount_blocks.get()));
        }
        if file_system.has_owners {
            let most = tree_max::<Owners>(len, blocks).max(blocks / 100);
            reserve += most.saturating_sub(u64::from(agf.rmap_blocks.get()));
        }
        if file_system.has_free_inodes {
            let inodes = blocks << file_system.geometry.inode_bits;
            let room = file_system.geometry.block.bytes() - HEADER;
            let least = [room / INODE_RECORD / 2, room / INODE_ENTRY / 2];
            reserve += blocks_max(least, inodes / INODES_OF_RECORD);
        }
        Ok(u32::try_from(reserve).unwrap_or(u32::MAX))
    }
}

/// Returns the most blocks that a tree can have.
fn tree_max<S: Shape>(len: usize, records: u64) -> u64 {
    let layout = Layout::<S>::block(len);
    blocks_max([layout.least(0), layout.least(1)].map(holdfast_units::to_u64), records)
}

/// Returns how many blocks a tree has, given the least that leaves and nodes hold.
fn blocks_max([leaf, node]: [u64; 2], records: u64) -> u64 {
    let mut level = records.div_ceil(leaf.max(1));
    let mut blocks = level;
    while level > 1 {
        level = level.div_ceil(node.max(2));
        blocks += level;
    }
    blocks
}
