//! One extent of a file: the 16 bytes that inodes and B+tree leaves hold.

use zerocopy::byteorder::big_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::address::{FileBlock, FsBlock};
use crate::error::{FormatError, Structure, require};
use crate::geometry::Geometry;

/// An extent as it is stored (`bmbt_rec`): one bit for unwritten, 54 for the block of the file, 52
/// for the block of the file system, 21 for the length in blocks.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawExtent {
    /// The higher 64 bits.
    pub high: U64,
    /// The lower 64 bits.
    pub low: U64,
}

const _: () = assert!(size_of::<RawExtent>() == 16);

/// Blocks of a file that are stored one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first block, in the file.
    pub file: FileBlock,
    /// The first block, in the file system.
    pub block: FsBlock,
    /// How many blocks, above 0 and below 2^21.
    pub blocks: u64,
    /// The blocks are reserved and read as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// The first byte that no file has.
    const FILE_END: u64 = 1 << 63;

    /// Returns the block of the file that follows.
    pub const fn file_end(&self) -> u64 {
        self.file.0 + self.blocks
    }

    /// Takes an extent apart.
    pub const fn decode(raw: &RawExtent) -> Self {
        let (high, low) = (raw.high.get(), raw.low.get());
        Self {
            file: FileBlock((high >> 9) & ((1 << 54) - 1)),
            block: FsBlock(((high & 0x1ff) << 43) | (low >> 21)),
            blocks: low & ((1 << 21) - 1),
            unwritten: high >> 63 != 0,
        }
    }

    /// Takes an extent apart, which must lie inside one allocation group and behind block
    /// `previous_end` of the file.
    ///
    /// # Errors
    ///
    /// The field that says otherwise.
    pub fn parse(
        raw: &RawExtent,
        geometry: &Geometry,
        previous_end: u64,
    ) -> Result<Self, FormatError> {
        let extent = Self::decode(raw);
        let check = |field, found, holds| require(Structure::Extent, field, found, holds);
        check("length", extent.blocks, extent.blocks > 0)?;
        check("file block", extent.file.0, extent.file.0 >= previous_end)?;
        check(
            "file block",
            extent.file.0,
            extent.file_end() <= geometry.block.count(Self::FILE_END),
        )?;
        let inside = geometry.holds(extent.block, extent.blocks);
        check("block", extent.block.0, inside)?;
        Ok(extent)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::tests::geometry;

    fn encode(unwritten: bool, file: u64, block: u64, blocks: u64) -> RawExtent {
        let high = (u64::from(unwritten) << 63) | (file << 9) | (block >> 43);
        RawExtent { high: high.into(), low: ((block << 21) | blocks).into() }
    }

    proptest! {
        #[test]
        fn the_four_fields_come_apart(
            unwritten: bool,
            file in 0..1_u64 << 54,
            block in 0..1_u64 << 52,
            blocks in 0..1_u64 << 21,
        ) {
            let extent = Extent::decode(&encode(unwritten, file, block, blocks));
            prop_assert_eq!((extent.file.0, extent.block.0), (file, block));
            prop_assert_eq!((extent.blocks, extent.unwritten), (blocks, unwritten));
        }
    }

    #[test]
    fn extents_must_be_in_order_and_inside_a_group() {
        let geometry = geometry();
        let last = u64::from(geometry.ag_blocks) - 1;
        Extent::parse(&encode(false, 10, 20, 5), &geometry, 10).unwrap();
        for (raw, previous_end) in [
            (encode(false, 10, 20, 5), 11),
            (encode(false, 10, 20, 0), 0),
            (encode(false, (1 << 51) - 1, 20, 2), 0),
            (encode(false, 0, last, 2), 0),
            (encode(false, 0, (1 << 52) - 1, 1), 0),
        ] {
            Extent::parse(&raw, &geometry, previous_end).unwrap_err();
        }
    }
}
