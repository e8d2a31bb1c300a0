//! What blocks of metadata say of themselves, and whether it is true.

use core::mem::offset_of;

use holdfast_checksum::{GuardKind, Stream};
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::da::DaHeader;
use crate::dir::DirHeader;
use crate::error::{FormatError, Structure, expect, short};
use crate::remote::RemoteHeader;

mod seal;

/// The header of a B+tree block whose pointers have 64 bits (`xfs_btree_block`, long form).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct LongHeader {
    /// Which tree this is a block of.
    pub magic: U32,
    /// How far it is from the leaves, which are 0.
    pub level: U16,
    /// How many records or keys it has.
    pub records: U16,
    /// The block before it at this level, or all ones.
    pub left: U64,
    /// The block after it at this level, or all ones.
    pub right: U64,
    /// Where this block says that it is, in units of 512 bytes.
    pub place: U64,
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// The inode whose tree it is.
    pub owner: U64,
    /// CRC-32C of the block, computed with 0 in this field.
    pub crc: little_endian::U32,
    /// 0.
    pub padding: U32,
}

/// The header of a B+tree block whose pointers have 32 bits (`xfs_btree_block`, short form): the
/// trees of an allocation group.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ShortHeader {
    /// Which tree this is a block of.
    pub magic: U32,
    /// How far it is from the leaves, which are 0.
    pub level: U16,
    /// How many records or keys it has.
    pub records: U16,
    /// The block before it at this level, in its allocation group, or all ones.
    pub left: U32,
    /// The block after it at this level, or all ones.
    pub right: U32,
    /// Where this block says that it is, in units of 512 bytes.
    pub place: U64,
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// The allocation group whose tree it is.
    pub owner: U32,
    /// CRC-32C of the block, computed with 0 in this field.
    pub crc: little_endian::U32,
}

const _: () = {
    assert!(size_of::<LongHeader>() == 72);
    assert!(offset_of!(LongHeader, place) == 24);
    assert!(offset_of!(LongHeader, crc) == 64);
    assert!(size_of::<ShortHeader>() == 56);
    assert!(offset_of!(ShortHeader, place) == 16);
    assert!(offset_of!(ShortHeader, crc) == 52);
};

/// What a block must say of itself to be the one that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The UUID of the file system's metadata.
    pub uuid: &'a [u8; 16],
    /// Where the block is, in bytes from the start of the device.
    pub address: u64,
    /// Whose it is: an inode, or an allocation group.
    pub owner: u64,
}

/// The kinds of block that say what they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BlockKind {
    /// Extents of a file.
    Bmap,
    /// Free space by place.
    FreeByPlace,
    /// Free space by size.
    FreeBySize,
    /// Inodes.
    Inodes,
    /// Inodes that are free.
    FreeInodes,
    /// Owners of blocks.
    Rmap,
    /// Shared blocks.
    Refcount,
    /// A directory that is one block.
    DirBlock,
    /// Entries of a directory.
    DirData,
    /// Free space of a directory.
    DirFree,
    /// Hashes of a directory, in one leaf.
    DirLeaf,
    /// Hashes of a directory, in one leaf of several.
    DirNodeLeaf,
    /// A node over the leaves of a directory or of attributes.
    DaNode,
    /// Attributes.
    AttrLeaf,
    /// The value of an attribute.
    AttrRemote,
    /// The target of a symbolic link.
    Symlink,
}

/// Where a kind of block has what it says of itself.
struct Layout {
    header: usize,
    magic: usize,
    magic_is_short: bool,
    crc: usize,
    uuid: usize,
    place: usize,
    owner: usize,
    owner_is_short: bool,
}

const LONG: Layout = Layout {
    header: size_of::<LongHeader>(),
    magic: offset_of!(LongHeader, magic),
    magic_is_short: false,
    crc: offset_of!(LongHeader, crc),
    uuid: offset_of!(LongHeader, uuid),
    place: offset_of!(LongHeader, place),
    owner: offset_of!(LongHeader, owner),
    owner_is_short: false,
};

const SHORT: Layout = Layout {
    header: size_of::<ShortHeader>(),
    magic: offset_of!(ShortHeader, magic),
    magic_is_short: false,
    crc: offset_of!(ShortHeader, crc),
    uuid: offset_of!(ShortHeader, uuid),
    place: offset_of!(ShortHeader, place),
    owner: offset_of!(ShortHeader, owner),
    owner_is_short: true,
};

const DIRECTORY: Layout = Layout {
    header: size_of::<DirHeader>(),
    magic: offset_of!(DirHeader, magic),
    magic_is_short: false,
    crc: offset_of!(DirHeader, crc),
    uuid: offset_of!(DirHeader, uuid),
    place: offset_of!(DirHeader, place),
    owner: offset_of!(DirHeader, owner),
    owner_is_short: false,
};

const HASHES: Layout = Layout {
    header: size_of::<DaHeader>(),
    magic: offset_of!(DaHeader, magic),
    magic_is_short: true,
    crc: offset_of!(DaHeader, crc),
    uuid: offset_of!(DaHeader, uuid),
    place: offset_of!(DaHeader, place),
    owner: offset_of!(DaHeader, owner),
    owner_is_short: false,
};

const REMOTE: Layout = Layout {
    header: size_of::<RemoteHeader>(),
    magic: offset_of!(RemoteHeader, magic),
    magic_is_short: false,
    crc: offset_of!(RemoteHeader, crc),
    uuid: offset_of!(RemoteHeader, uuid),
    place: offset_of!(RemoteHeader, place),
    owner: offset_of!(RemoteHeader, owner),
    owner_is_short: false,
};

impl BlockKind {
    /// Returns the name of the structure.
    pub const fn structure(self) -> Structure {
        match self {
            Self::Bmap => Structure::BmapBlock,
            Self::FreeByPlace => Structure::FreeByPlace,
            Self::FreeBySize => Structure::FreeBySize,
            Self::Inodes => Structure::InodeBtree,
            Self::FreeInodes => Structure::FreeInodeBtree,
            Self::Rmap => Structure::RmapBtree,
            Self::Refcount => Structure::RefcountBtree,
            Self::DirBlock => Structure::DirBlock,
            Self::DirData => Structure::DirData,
            Self::DirFree => Structure::DirFree,
            Self::DirLeaf => Structure::DirLeaf,
            Self::DirNodeLeaf => Structure::DirNodeLeaf,
            Self::DaNode => Structure::DaNode,
            Self::AttrLeaf => Structure::AttrLeaf,
            Self::AttrRemote => Structure::AttrRemote,
            Self::Symlink => Structure::Symlink,
        }
    }

    /// Returns the number that blocks of this kind begin with; in hash trees it is at byte 8.
    pub const fn magic(self) -> u32 {
        match self {
            Self::Bmap => u32::from_be_bytes(*b"BMA3"),
            Self::FreeByPlace => u32::from_be_bytes(*b"AB3B"),
            Self::FreeBySize => u32::from_be_bytes(*b"AB3C"),
            Self::Inodes => u32::from_be_bytes(*b"IAB3"),
            Self::FreeInodes => u32::from_be_bytes(*b"FIB3"),
            Self::Rmap => u32::from_be_bytes(*b"RMB3"),
            Self::Refcount => u32::from_be_bytes(*b"R3FC"),
            Self::DirBlock => u32::from_be_bytes(*b"XDB3"),
            Self::DirData => u32::from_be_bytes(*b"XDD3"),
            Self::DirFree => u32::from_be_bytes(*b"XDF3"),
            Self::DirLeaf => 0x3df1,
            Self::DirNodeLeaf => 0x3dff,
            Self::DaNode => 0x3ebe,
            Self::AttrLeaf => 0x3bee,
            Self::AttrRemote => u32::from_be_bytes(*b"XARM"),
            Self::Symlink => u32::from_be_bytes(*b"XSLM"),
        }
    }

    const fn layout(self) -> &'static Layout {
        match self {
            Self::Bmap => &LONG,
            Self::FreeByPlace
            | Self::FreeBySize
            | Self::Inodes
            | Self::FreeInodes
            | Self::Rmap
            | Self::Refcount => &SHORT,
            Self::DirBlock | Self::DirData | Self::DirFree => &DIRECTORY,
            Self::DirLeaf | Self::DirNodeLeaf | Self::DaNode | Self::AttrLeaf => &HASHES,
            Self::AttrRemote | Self::Symlink => &REMOTE,
        }
    }

    /// Returns the first of several kinds that a block says it is of.
    ///
    /// # Errors
    ///
    /// [`FormatError::Value`] for none of them, which names the first, and [`FormatError::Short`].
    pub fn identify(block: &[u8], kinds: &[Self]) -> Result<Self, FormatError> {
        let mut fault = None;
        for &kind in kinds {
            match kind.check_magic(block) {
                Ok(()) => return Ok(kind),
                Err(error) => fault = fault.or(Some(error)),
            }
        }
        Err(fault.unwrap_or(short(Structure::DirBlock, size_of::<DirHeader>(), 0)))
    }

    fn check_magic(self, block: &[u8]) -> Result<(), FormatError> {
        let structure = self.structure();
        let layout = self.layout();
        if block.len() < layout.header {
            return Err(short(structure, layout.header, block.len()));
        }
        let found = if layout.magic_is_short {
            u64::from(U16::from_bytes(field(block, layout.magic)).get())
        } else {
            u64::from(U32::from_bytes(field(block, layout.magic)).get())
        };
        expect(structure, "magic", u64::from(self.magic()), found)
    }

    /// Checks that a block is of this kind, whole, and the one that was looked for.
    ///
    /// # Errors
    ///
    /// What is wrong first: kind, checksum, file system, place or owner.
    pub fn verify(self, block: &[u8], identity: &Identity<'_>) -> Result<(), FormatError> {
        self.check_magic(block)?;
        let (structure, layout) = (self.structure(), self.layout());
        check_crc(structure, block, layout.crc)?;
        if field::<16>(block, layout.uuid) != *identity.uuid {
            return Err(FormatError::Uuid { structure });
        }
        let place = U64::from_bytes(field(block, layout.place)).get();
        expect(structure, "place", identity.address / 512, place)?;
        let owner = if layout.owner_is_short {
            u64::from(U32::from_bytes(field(block, layout.owner)).get())
        } else {
            U64::from_bytes(field(block, layout.owner)).get()
        };
        expect(structure, "owner", identity.owner, owner)
    }
}

/// Returns the bytes at an offset that is inside the header, as was checked.
fn field<const N: usize>(block: &[u8], at: usize) -> [u8; N] {
    let bytes = block.get(at..).and_then(|rest| rest.first_chunk());
    *bytes.expect("a field lies inside the header")
}

/// Checks the CRC-32C that is stored, little-endian, at byte `at`.
pub(crate) fn check_crc(structure: Structure, bytes: &[u8], at: usize) -> Result<(), FormatError> {
    const LEN: usize = size_of::<u32>();
    let Some((before, rest)) = bytes.split_at_checked(at) else {
        return Err(short(structure, at + LEN, bytes.len()));
    };
    let Some((stored, after)) = rest.split_first_chunk::<LEN>() else {
        return Err(short(structure, at + LEN, bytes.len()));
    };
    let mut stream = Stream::new(GuardKind::Crc32c);
    stream.update(before);
    stream.update(&[0; LEN]);
    stream.update(after);
    let expected = u32::from_le_bytes(*stored);
    let found = u32::try_from(stream.finish()).expect("a CRC-32C has 32 bits");
    if expected == found {
        Ok(())
    } else {
        Err(FormatError::Checksum { structure, expected, found })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) const KINDS: [BlockKind; 16] = [
        BlockKind::Bmap,
        BlockKind::FreeByPlace,
        BlockKind::FreeBySize,
        BlockKind::Inodes,
        BlockKind::FreeInodes,
        BlockKind::Rmap,
        BlockKind::Refcount,
        BlockKind::DirBlock,
        BlockKind::DirData,
        BlockKind::DirFree,
        BlockKind::DirLeaf,
        BlockKind::DirNodeLeaf,
        BlockKind::DaNode,
        BlockKind::AttrLeaf,
        BlockKind::AttrRemote,
        BlockKind::Symlink,
    ];

    const UUID: [u8; 16] = [7; 16];

    fn identity() -> Identity<'static> {
        Identity { uuid: &UUID, address: 40_960, owner: 131 }
    }

    /// Stores the checksum at `at`.
    pub(crate) fn seal(bytes: &mut [u8], at: usize) {
        bytes[at..at + 4].fill(0);
        let crc = holdfast_checksum::checksum(GuardKind::Crc32c, bytes);
        bytes[at..at + 4].copy_from_slice(&u32::try_from(crc).unwrap().to_le_bytes());
    }

    fn block(kind: BlockKind) -> Vec<u8> {
        let layout = kind.layout();
        let mut block: Vec<u8> = (0..1024_u32).map(|n| n.to_le_bytes()[0]).collect();
        let magic = kind.magic().to_be_bytes();
        let magic = if layout.magic_is_short { &magic[2..] } else { &magic[..] };
        block[layout.magic..][..magic.len()].copy_from_slice(magic);
        block[layout.uuid..][..16].copy_from_slice(&UUID);
        block[layout.place..][..8].copy_from_slice(&80_u64.to_be_bytes());
        if layout.owner_is_short {
            block[layout.owner..][..4].copy_from_slice(&131_u32.to_be_bytes());
        } else {
            block[layout.owner..][..8].copy_from_slice(&131_u64.to_be_bytes());
        }
        seal(&mut block, layout.crc);
        block
    }

    #[test]
    fn a_block_of_each_kind_is_verified() {
        for kind in KINDS {
            assert_eq!(kind.verify(&block(kind), &identity()), Ok(()), "{kind:?}");
            assert_eq!(BlockKind::identify(&block(kind), &KINDS), Ok(kind));
        }
    }

    #[test]
    fn a_block_of_another_place_owner_or_file_system_is_refused() {
        for kind in KINDS {
            let block = block(kind);
            let misplaced = kind.verify(&block, &Identity { address: 0, ..identity() });
            assert!(matches!(misplaced, Err(FormatError::Value { field: "place", .. })));
            let foreign = kind.verify(&block, &Identity { owner: 132, ..identity() });
            assert!(matches!(foreign, Err(FormatError::Value { field: "owner", .. })));
            let other = kind.verify(&block, &Identity { uuid: &[8; 16], ..identity() });
            assert!(matches!(other, Err(FormatError::Uuid { .. })));
        }
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(kind in 0..KINDS.len(), byte in 0..1024_usize, bit in 0..8_u32) {
            let kind = KINDS[kind];
            let mut block = block(kind);
            block[byte] ^= 1 << bit;
            prop_assert!(kind.verify(&block, &identity()).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, kind in 0..KINDS.len()) {
            KINDS[kind].verify(&bytes, &identity()).unwrap_err();
        }
    }
}
