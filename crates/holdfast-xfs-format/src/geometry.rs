//! Where things are: arithmetic over what the superblock says.

use holdfast_units::BlockSize;

use crate::address::{FsBlock, Ino};

/// The sizes of a file system. They were checked, so that no arithmetic here overflows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The size of a block.
    pub block: BlockSize,
    /// The size of a sector: what the headers of an allocation group have.
    pub sector: BlockSize,
    /// The size of an inode.
    pub inode: BlockSize,
    /// The size of a block of a directory, which is one or more blocks.
    pub dir_block: BlockSize,
    /// All blocks.
    pub blocks: u64,
    /// How many allocation groups there are.
    pub ag_count: u32,
    /// How many blocks an allocation group has. The last may have fewer.
    pub ag_blocks: u32,
    /// How many bits of the number of a block are its number in its allocation group.
    pub ag_block_bits: u8,
    /// How many bits of the number of an inode are its number in its block.
    pub inode_bits: u8,
}

impl Geometry {
    /// Returns how many blocks an allocation group has.
    pub fn ag_len(&self, ag: u32) -> u32 {
        let before = u64::from(ag) * u64::from(self.ag_blocks);
        let rest = self.blocks.saturating_sub(before);
        u32::try_from(rest).map_or(self.ag_blocks, |rest| rest.min(self.ag_blocks))
    }

    /// Returns the allocation group of a block, and the block's number there, if there is such a
    /// block.
    pub fn split(&self, block: FsBlock) -> Option<(u32, u32)> {
        let ag = u32::try_from(block.0 >> self.ag_block_bits).ok()?;
        let number = u32::try_from(block.0 & ((1 << self.ag_block_bits) - 1)).ok()?;
        (ag < self.ag_count && number < self.ag_len(ag)).then_some((ag, number))
    }

    /// Returns whether so many blocks from `block` on lie in one allocation group.
    pub fn holds(&self, block: FsBlock, blocks: u64) -> bool {
        self.split(block)
            .is_some_and(|(ag, number)| u64::from(number) + blocks <= u64::from(self.ag_len(ag)))
    }

    /// Returns the byte at which a block begins, from the start of the device, or `None` when there
    /// is no such block.
    pub fn address_of(&self, block: FsBlock) -> Option<u64> {
        let (ag, number) = self.split(block)?;
        Some((self.ag_start(ag) + u64::from(number)) * self.block.bytes())
    }

    /// Returns the byte at which an allocation group begins.
    pub fn ag_address(&self, ag: u32) -> u64 {
        self.ag_start(ag) * self.block.bytes()
    }

    /// Returns the number of a block in an allocation group.
    pub fn block_in(&self, ag: u32, number: u32) -> FsBlock {
        FsBlock((u64::from(ag) << self.ag_block_bits) | u64::from(number))
    }

    /// Returns the block of an inode, and the byte at which it begins there, or `None` when there is
    /// no place for such an inode.
    pub fn locate(&self, ino: Ino) -> Option<(FsBlock, usize)> {
        /// The bits that inode numbers may have.
        const INO_MAX: u64 = (1 << 56) - 1;
        if ino.0 > INO_MAX {
            return None;
        }
        let block = FsBlock(ino.0 >> self.inode_bits);
        let (_, number) = self.split(block)?;
        // The headers of an allocation group are in its first four sectors.
        if u64::from(number) * self.block.bytes() < 4 * self.sector.bytes() {
            return None;
        }
        let index = ino.0 & ((1 << self.inode_bits) - 1);
        Some((block, holdfast_units::to_usize(index * self.inode.bytes())))
    }

    /// Returns the size of the file system in bytes.
    pub const fn bytes(&self) -> u64 {
        self.blocks * self.block.bytes()
    }

    fn ag_start(&self, ag: u32) -> u64 {
        u64::from(ag) * u64::from(self.ag_blocks)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Four groups of 1000 blocks, but for the last, which has 500.
    pub(crate) fn geometry() -> Geometry {
        Geometry {
            block: BlockSize::PAGE,
            sector: BlockSize::SECTOR,
            inode: BlockSize::SECTOR,
            dir_block: BlockSize::PAGE,
            blocks: 3500,
            ag_count: 4,
            ag_blocks: 1000,
            ag_block_bits: 10,
            inode_bits: 3,
        }
    }

    #[test]
    fn blocks_have_gaps_and_the_last_group_is_short() {
        let geometry = geometry();
        assert_eq!(geometry.address_of(FsBlock(1024)), Some(1000 * 4096));
        assert_eq!(geometry.address_of(FsBlock(1000)), None);
        assert_eq!(geometry.address_of(FsBlock(3 * 1024 + 499)), Some(3499 * 4096));
        assert_eq!(geometry.address_of(FsBlock(3 * 1024 + 500)), None);
        assert_eq!(geometry.address_of(FsBlock(u64::MAX)), None);
    }

    #[test]
    fn an_inode_is_neither_in_the_headers_nor_outside() {
        let geometry = geometry();
        assert_eq!(geometry.locate(Ino(128 + 3)), Some((FsBlock(16), 3 * 512)));
        assert_eq!(geometry.locate(Ino(0)), None);
        assert_eq!(geometry.locate(Ino(1000 << 3)), None);
        assert_eq!(geometry.locate(Ino(u64::MAX)), None);
    }

    #[test]
    fn a_range_must_lie_in_one_group() {
        let geometry = geometry();
        assert!(geometry.holds(FsBlock(990), 10));
        assert!(!geometry.holds(FsBlock(990), 11));
    }
}
