//! How full a file system is, as statfs(2) of XFS in Linux tells it.

use holdfast_xfs::{Geometry, Statistics};

/// What statfs(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fullness {
    pub(crate) blocks: u64,
    pub(crate) free_blocks: u64,
    pub(crate) files: u64,
    pub(crate) free_files: u64,
    /// The size of a block, in bytes.
    pub(crate) block_bytes: u32,
}

/// Blocks that each allocation group keeps for its own B+trees, and never gives to a file.
const KEPT_BY_GROUP: u64 = 8;
/// How many inodes are made at a time.
const INODES_AT_A_TIME: u64 = 64;

/// Returns what is told of a file system with a log of so many blocks, of which so many percent may be
/// inodes, 0 for any. Inodes are made as they are needed, so there are as many free ones as free space
/// could hold, up to that limit.
pub(crate) fn fullness(
    geometry: &Geometry,
    log_blocks: u64,
    inode_percent: u8,
    statistics: &Statistics,
) -> Fullness {
    let kept = u64::from(geometry.ag_count) * KEPT_BY_GROUP;
    let free_blocks = statistics.free_blocks.saturating_sub(kept);
    let per_block = geometry.block.bytes() / geometry.inode.bytes();
    let mut files = statistics.inodes.saturating_add(free_blocks.saturating_mul(per_block));
    if inode_percent > 0 {
        let (whole, rest) = (geometry.blocks / 100, geometry.blocks % 100);
        let percent = u64::from(inode_percent);
        let blocks = whole.saturating_mul(percent).saturating_add(rest * percent / 100);
        let step = (INODES_AT_A_TIME / per_block).max(1);
        files = files.min((blocks / step * step).saturating_mul(per_block));
    }
    files = files.max(statistics.inodes);
    let used = statistics.inodes.saturating_sub(statistics.free_inodes);
    Fullness {
        blocks: statistics.blocks.saturating_sub(log_blocks),
        free_blocks,
        files,
        free_files: files.saturating_sub(used),
        // A block has at most 64 KiB.
        block_bytes: u32::try_from(statistics.block_bytes).unwrap_or(4096),
    }
}

#[cfg(test)]
mod tests {
    use holdfast_units::BlockSize;

    use super::*;

    /// An image of 1 GiB with the defaults of mkfs.xfs.
    fn geometry() -> Geometry {
        Geometry {
            block: BlockSize::PAGE,
            sector: BlockSize::SECTOR,
            inode: BlockSize::SECTOR,
            dir_block: BlockSize::PAGE,
            blocks: 262_144,
            ag_count: 4,
            ag_blocks: 65_536,
            ag_block_bits: 16,
            inode_bits: 3,
        }
    }

    fn counted(free_blocks: u64) -> Statistics {
        let (inodes, free_inodes) = (5056, 42);
        Statistics { block_bytes: 4096, blocks: 262_144, free_blocks, inodes, free_inodes }
    }

    #[test]
    fn the_numbers_are_those_of_linux() {
        // What `stat -f` said of the same image, mounted by Linux 6.18.
        let found = fullness(&geometry(), 16_384, 25, &counted(191_754));
        assert_eq!((found.blocks, found.free_blocks), (245_760, 191_722));
        assert_eq!((found.files, found.free_files), (524_288, 519_274));
    }

    #[test]
    fn a_full_file_system_has_the_inodes_that_it_has() {
        let found = fullness(&geometry(), 16_384, 25, &counted(7));
        assert_eq!((found.free_blocks, found.files, found.free_files), (0, 5056, 42));
    }

    #[test]
    fn counts_that_are_nonsense_do_not_overflow() {
        let all = Statistics { free_inodes: u64::MAX, inodes: u64::MAX, ..counted(u64::MAX) };
        let found = fullness(&geometry(), u64::MAX, 0, &all);
        assert_eq!((found.blocks, found.files), (0, u64::MAX));
    }
}
