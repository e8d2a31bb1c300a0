//! The trees of hashes over the names of a directory or of attributes: nodes, and what their blocks
//! and their leaves begin with.

use core::mem::offset_of;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::error::{FormatError, Structure, require, short};

/// The greatest level of a node; leaves are 0.
pub const NODE_LEVEL_MAX: u16 = 5;

/// What nodes and leaves begin with (`xfs_da3_blkinfo`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DaHeader {
    /// The block after it at this level, in blocks of the file, or 0.
    pub forward: U32,
    /// The block before it at this level, or 0.
    pub backward: U32,
    /// Which kind it is.
    pub magic: U16,
    /// 0.
    pub padding: U16,
    /// CRC-32C of the block, computed with 0 in this field.
    pub crc: little_endian::U32,
    /// Where this block says that it is, in units of 512 bytes.
    pub place: U64,
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// The inode whose tree it is.
    pub owner: U64,
}

/// The header of a node (`xfs_da3_node_hdr`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDaNodeHeader {
    /// What every block begins with.
    pub info: DaHeader,
    /// How many entries follow.
    pub count: U16,
    /// How far it is from the leaves.
    pub level: U16,
    /// 0.
    pub padding: U32,
}

/// An entry of a node (`xfs_da_node_entry`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDaEntry {
    /// The greatest hash in the block below.
    pub hash: U32,
    /// The block below, in blocks of the file.
    pub below: U32,
}

const _: () = {
    assert!(size_of::<DaHeader>() == 56);
    assert!(offset_of!(DaHeader, owner) == 48);
    assert!(size_of::<RawDaNodeHeader>() == 64);
    assert!(size_of::<RawDaEntry>() == 8);
};

/// A node.
#[derive(Clone, Copy, Debug)]
pub struct DaNode<'a> {
    /// How far it is from the leaves.
    pub level: u16,
    /// Its entries, in the order of their hashes.
    pub entries: &'a [RawDaEntry],
}

impl<'a> DaNode<'a> {
    /// Takes a verified block apart.
    ///
    /// # Errors
    ///
    /// The field that cannot be so.
    pub fn parse(block: &'a [u8]) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::DaNode;
        let (header, rest) = RawDaNodeHeader::ref_from_prefix(block)
            .map_err(|_| short(STRUCTURE, size_of::<RawDaNodeHeader>(), block.len()))?;
        let (level, count) = (header.level.get(), header.count.get());
        require(STRUCTURE, "level", u64::from(level), (1..=NODE_LEVEL_MAX).contains(&level))?;
        let entries = <[RawDaEntry]>::ref_from_prefix_with_elems(rest, usize::from(count));
        let entries = entries.ok().map(|(entries, _)| entries).filter(|_| count > 0);
        require(STRUCTURE, "count", u64::from(count), entries.is_some())?;
        Ok(Self { level, entries: entries.unwrap_or_default() })
    }

    /// Returns the block below in which the first entry with a hash would be, or `None` when all
    /// hashes are smaller.
    pub fn find(&self, hash: u32) -> Option<u32> {
        let index = self.entries.partition_point(|entry| entry.hash.get() < hash);
        self.entries.get(index).map(|entry| entry.below.get())
    }
}

/// Returns the hash by which names of files and attributes are found.
pub fn hash_name(name: &[u8]) -> u32 {
    name.iter().fold(0_u32, |hash, &byte| hash.rotate_left(7) ^ u32::from(byte))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_have_the_hashes_that_xfs_db_prints() {
        // `xfs_db -c 'hash NAME'`
        for (name, hash) in [("", 0), (".", 0x2e), ("..", 0x172e), ("lost+found", 0x021a_a60c)] {
            assert_eq!(hash_name(name.as_bytes()), hash, "{name}");
        }
    }

    #[test]
    fn a_hash_is_found_below_the_first_entry_that_is_not_smaller() {
        let mut block = vec![0; 64];
        block[57] = 2;
        block[59] = 1;
        for word in [10_u32, 100, 20, 200] {
            block.extend(word.to_be_bytes());
        }
        let node = DaNode::parse(&block).unwrap();
        let found = [0, 10, 11, 20, 21].map(|hash| node.find(hash));
        assert_eq!(found, [Some(100), Some(100), Some(200), Some(200), None]);
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>) {
            let _node = DaNode::parse(&bytes);
        }
    }
}
