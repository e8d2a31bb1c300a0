//! The B+tree of a file's extents: its root, which is in the inode, and its blocks.

use zerocopy::byteorder::big_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::LongHeader;
use crate::error::{FormatError, Structure, expect, require, short};
use crate::extent::RawExtent;

/// The most levels that a tree may have.
pub const LEVELS_MAX: u16 = 12;

/// What a root in an inode begins with (`xfs_bmdr_block`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RootHeader {
    level: U16,
    records: U16,
}

const _: () = assert!(size_of::<RootHeader>() == 4);

/// The root of a tree. It points to blocks.
#[derive(Clone, Copy, Debug)]
pub struct BmapRoot<'a> {
    /// How far it is from the leaves, which are 0.
    pub level: u16,
    /// The first block of the file that each block below has.
    pub keys: &'a [U64],
    /// The blocks below, blocks of the file system.
    pub pointers: &'a [U64],
}

/// A block of a tree.
#[derive(Clone, Copy, Debug)]
pub struct BmapBlock<'a> {
    /// Its header.
    pub header: &'a LongHeader,
    /// What it holds.
    pub body: BmapBody<'a>,
}

/// What a block of a tree holds.
#[derive(Clone, Copy, Debug)]
pub enum BmapBody<'a> {
    /// Extents.
    Leaf(&'a [RawExtent]),
    /// Pointers to blocks below.
    Node {
        /// The first block of the file that each block below has.
        keys: &'a [U64],
        /// The blocks below, blocks of the file system.
        pointers: &'a [U64],
    },
}

/// Cuts keys and pointers out of the room for `most` of each.
fn keys_and_pointers(bytes: &[u8], most: usize, count: usize) -> Option<(&[U64], &[U64])> {
    let (keys, rest) = <[U64]>::ref_from_prefix_with_elems(bytes, most).ok()?;
    let (pointers, _) = <[U64]>::ref_from_prefix_with_elems(rest, most).ok()?;
    Some((keys.get(..count)?, pointers.get(..count)?))
}

impl<'a> BmapRoot<'a> {
    /// Takes the fork of an inode apart.
    ///
    /// # Errors
    ///
    /// The field that cannot be so.
    pub fn parse(fork: &'a [u8]) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::BmapRoot;
        let too_short = || short(STRUCTURE, size_of::<RootHeader>(), fork.len());
        let (header, rest) = RootHeader::ref_from_prefix(fork).map_err(|_| too_short())?;
        let level = header.level.get();
        require(STRUCTURE, "level", u64::from(level), (1..LEVELS_MAX).contains(&level))?;
        let most = rest.len() / (2 * size_of::<U64>());
        let count = usize::from(header.records.get());
        let found = keys_and_pointers(rest, most, count).filter(|_| count > 0);
        let (keys, pointers) = found.ok_or_else(|| FormatError::Range {
            structure: STRUCTURE,
            field: "count",
            found: u64::from(header.records.get()),
        })?;
        Ok(Self { level, keys, pointers })
    }
}

impl<'a> BmapBlock<'a> {
    /// Takes a verified block apart, which must be at `level`.
    ///
    /// # Errors
    ///
    /// The field that cannot be so.
    pub fn parse(block: &'a [u8], level: u16) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::BmapBlock;
        let (header, rest) = LongHeader::ref_from_prefix(block)
            .map_err(|_| short(STRUCTURE, size_of::<LongHeader>(), block.len()))?;
        expect(STRUCTURE, "level", u64::from(level), u64::from(header.level.get()))?;
        let count = usize::from(header.records.get());
        let body = if level == 0 {
            <[RawExtent]>::ref_from_prefix_with_elems(rest, count)
                .ok()
                .map(|(extents, _)| BmapBody::Leaf(extents))
        } else {
            let most = rest.len() / (2 * size_of::<U64>());
            keys_and_pointers(rest, most, count)
                .map(|(keys, pointers)| BmapBody::Node { keys, pointers })
        };
        let body = body.filter(|_| count > 0).ok_or_else(|| FormatError::Range {
            structure: STRUCTURE,
            field: "count",
            found: u64::from(header.records.get()),
        })?;
        Ok(Self { header, body })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pointers_follow_the_room_for_keys() {
        // A root for three keys, of which one is in use.
        let mut fork = vec![0, 1, 0, 1];
        for word in [5_u64, 0, 0, 99, 0, 0] {
            fork.extend(word.to_be_bytes());
        }
        let root = BmapRoot::parse(&fork).unwrap();
        assert_eq!((root.level, root.keys, root.pointers), (1, &[5.into()][..], &[99.into()][..]));
    }

    #[test]
    fn more_than_there_is_room_for_is_refused() {
        let mut fork = vec![0, 1, 0, 2];
        fork.extend([0; 16]);
        BmapRoot::parse(&fork).unwrap_err();
        let mut block = vec![0; 72 + 32];
        block[7] = 3;
        BmapBlock::parse(&block, 0).unwrap_err();
        block[7] = 2;
        BmapBlock::parse(&block, 0).unwrap();
    }

    proptest! {
        #[test]
        fn no_bytes_make_them_panic(bytes: Vec<u8>, level in 0..3_u16) {
            let _root = BmapRoot::parse(&bytes);
            let _block = BmapBlock::parse(&bytes, level);
        }
    }
}
