//! The headers of an allocation group: AGF, AGI and AGFL, a sector each.

use core::mem::offset_of;

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::check_crc;
use crate::error::{FormatError, Structure, expect, require, short};
use crate::geometry::Geometry;

/// Free space of an allocation group (`xfs_agf`), in its second sector.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawAgf {
    /// `XAGF`.
    pub magic: [u8; 4],
    /// 1.
    pub version: U32,
    /// Which allocation group this is.
    pub ag: U32,
    /// How many blocks the group has.
    pub blocks: U32,
    /// The roots of the trees of free space by place, free space by size, and owners.
    pub roots: [U32; 3],
    /// How many levels these have.
    pub levels: [U32; 3],
    /// The first entry of the AGFL in use.
    pub list_first: U32,
    /// The last entry of the AGFL in use.
    pub list_last: U32,
    /// How many entries of the AGFL are in use.
    pub list_count: U32,
    /// Free blocks, without those of the AGFL.
    pub free_blocks: U32,
    /// The longest free extent, in blocks.
    pub longest: U32,
    /// Blocks of the trees of free space and owners, without their roots.
    pub btree_blocks: U32,
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// Blocks of the tree of owners.
    pub rmap_blocks: U32,
    /// Blocks of the tree of shared extents.
    pub refcount_blocks: U32,
    /// The root of the tree of shared extents.
    pub refcount_root: U32,
    /// How many levels that has.
    pub refcount_levels: U32,
    /// 0.
    pub spare: [U64; 14],
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// CRC-32C of the sector, computed with 0 in this field.
    pub crc: little_endian::U32,
    /// 0.
    pub spare_last: U32,
}

/// Inodes of an allocation group (`xfs_agi`), in its third sector.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawAgi {
    /// `XAGI`.
    pub magic: [u8; 4],
    /// 1.
    pub version: U32,
    /// Which allocation group this is.
    pub ag: U32,
    /// How many blocks the group has.
    pub blocks: U32,
    /// How many inodes there are, free ones included.
    pub inodes: U32,
    /// The root of the tree of inodes.
    pub root: U32,
    /// How many levels that has.
    pub levels: U32,
    /// How many inodes are free.
    pub free_inodes: U32,
    /// The chunk of inodes that was allocated last, or all ones.
    pub newest: U32,
    /// All ones.
    pub unused: U32,
    /// Lists of files that have no name any more and are still open, by hash; all ones for none.
    pub unlinked: [U32; 64],
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// CRC-32C of the sector, computed with 0 in this field.
    pub crc: little_endian::U32,
    /// 0.
    pub padding: U32,
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// The root of the tree of free inodes.
    pub free_root: U32,
    /// How many levels that has.
    pub free_levels: U32,
    /// Blocks of the tree of inodes.
    pub inode_blocks: U32,
    /// Blocks of the tree of free inodes.
    pub free_inode_blocks: U32,
}

/// The header of the list of blocks for B+trees (`xfs_agfl`), in the fourth sector of an allocation
/// group. The numbers of blocks follow, to the end of the sector.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawAgfl {
    /// `XAFL`.
    pub magic: [u8; 4],
    /// Which allocation group this is.
    pub ag: U32,
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// CRC-32C of the sector, computed with 0 in this field.
    pub crc: little_endian::U32,
}

const _: () = {
    assert!(size_of::<RawAgf>() == 224);
    assert!(offset_of!(RawAgf, uuid) == 64);
    assert!(offset_of!(RawAgf, lsn) == 208);
    assert!(size_of::<RawAgi>() == 344);
    assert!(offset_of!(RawAgi, uuid) == 296);
    assert!(offset_of!(RawAgi, free_root) == 328);
    assert!(size_of::<RawAgfl>() == 36);
};

/// A verified AGF.
#[derive(Clone, Copy, Debug)]
pub struct Agf<'a> {
    /// Its fields.
    pub raw: &'a RawAgf,
}

/// A verified AGI.
#[derive(Clone, Copy, Debug)]
pub struct Agi<'a> {
    /// Its fields.
    pub raw: &'a RawAgi,
}

/// A verified AGFL.
#[derive(Clone, Copy, Debug)]
pub struct Agfl<'a> {
    /// The header.
    pub raw: &'a RawAgfl,
    /// The blocks, of which the AGF says which are in use.
    pub blocks: &'a [U32],
}

/// Checks what all headers of an allocation group have.
fn check(
    structure: Structure,
    sector: &[u8],
    crc: usize,
    (magic, found_magic): (&[u8; 4], &[u8; 4]),
    (uuid, found_uuid): (&[u8; 16], &[u8; 16]),
    (ag, found_ag): (u32, U32),
) -> Result<(), FormatError> {
    let number = |bytes: &[u8; 4]| u64::from(u32::from_be_bytes(*bytes));
    expect(structure, "magic", number(magic), number(found_magic))?;
    check_crc(structure, sector, crc)?;
    if uuid != found_uuid {
        return Err(FormatError::Uuid { structure });
    }
    expect(structure, "allocation group", u64::from(ag), u64::from(found_ag.get()))
}

/// Checks what those have besides that count something of the group.
fn check_length(
    structure: Structure,
    found_version: U32,
    (blocks, found_blocks): (u32, U32),
) -> Result<(), FormatError> {
    expect(structure, "version", 1, u64::from(found_version.get()))?;
    expect(structure, "length", u64::from(blocks), u64::from(found_blocks.get()))
}

/// Returns what a sector begins with.
fn take<T>(structure: Structure, sector: &[u8]) -> Result<&T, FormatError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    let found = T::ref_from_prefix(sector);
    found.map(|(raw, _)| raw).map_err(|_| short(structure, size_of::<T>(), sector.len()))
}

impl<'a> Agf<'a> {
    /// Verifies the AGF of an allocation group.
    ///
    /// # Errors
    ///
    /// What is wrong first.
    pub fn parse(
        sector: &'a [u8],
        geometry: &Geometry,
        uuid: &[u8; 16],
        ag: u32,
    ) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::Agf;
        let raw: &RawAgf = take(STRUCTURE, sector)?;
        let crc = offset_of!(RawAgf, crc);
        check(STRUCTURE, sector, crc, (b"XAGF", &raw.magic), (uuid, &raw.uuid), (ag, raw.ag))?;
        let blocks = geometry.ag_len(ag);
        check_length(STRUCTURE, raw.version, (blocks, raw.blocks))?;
        for (field, value) in [
            ("count of free blocks", raw.free_blocks),
            ("longest free extent", raw.longest),
            ("count of tree blocks", raw.btree_blocks),
            ("count of the AGFL", raw.list_count),
        ] {
            require(STRUCTURE, field, u64::from(value.get()), value.get() <= blocks)?;
        }
        Ok(Self { raw })
    }
}

impl<'a> Agi<'a> {
    /// Verifies the AGI of an allocation group.
    ///
    /// # Errors
    ///
    /// What is wrong first.
    pub fn parse(
        sector: &'a [u8],
        geometry: &Geometry,
        uuid: &[u8; 16],
        ag: u32,
    ) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::Agi;
        let raw: &RawAgi = take(STRUCTURE, sector)?;
        let crc = offset_of!(RawAgi, crc);
        check(STRUCTURE, sector, crc, (b"XAGI", &raw.magic), (uuid, &raw.uuid), (ag, raw.ag))?;
        check_length(STRUCTURE, raw.version, (geometry.ag_len(ag), raw.blocks))?;
        let (inodes, free) = (raw.inodes.get(), raw.free_inodes.get());
        require(STRUCTURE, "count of free inodes", u64::from(free), free <= inodes)?;
        Ok(Self { raw })
    }
}

impl<'a> Agfl<'a> {
    /// Verifies the AGFL of an allocation group.
    ///
    /// # Errors
    ///
    /// What is wrong first.
    pub fn parse(sector: &'a [u8], uuid: &[u8; 16], ag: u32) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::Agfl;
        let too_short = || short(STRUCTURE, size_of::<RawAgfl>(), sector.len());
        let (raw, rest) = RawAgfl::ref_from_prefix(sector).map_err(|_| too_short())?;
        let crc = offset_of!(RawAgfl, crc);
        check(STRUCTURE, sector, crc, (b"XAFL", &raw.magic), (uuid, &raw.uuid), (ag, raw.ag))?;
        let count = rest.len() / size_of::<U32>();
        let (blocks, _) =
            <[U32]>::ref_from_prefix_with_elems(rest, count).map_err(|_| too_short())?;
        Ok(Self { raw, blocks })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::*;
    use crate::block::tests::seal;
    use crate::geometry::tests::geometry;

    const UUID: [u8; 16] = [3; 16];

    fn agf() -> Vec<u8> {
        let mut raw = RawAgf::new_zeroed();
        raw.magic = *b"XAGF";
        raw.version = 1.into();
        raw.ag = 3.into();
        raw.blocks = 500.into();
        raw.free_blocks = 400.into();
        raw.uuid = UUID;
        let mut sector = raw.as_bytes().to_vec();
        sector.resize(512, 0);
        seal(&mut sector, offset_of!(RawAgf, crc));
        sector
    }

    #[test]
    fn an_agf_is_verified_with_its_number_and_length() {
        let sector = agf();
        let found = Agf::parse(&sector, &geometry(), &UUID, 3).unwrap();
        assert_eq!(found.raw.free_blocks.get(), 400);
        Agf::parse(&sector, &geometry(), &UUID, 2).unwrap_err();
        Agf::parse(&sector, &geometry(), &[4; 16], 3).unwrap_err();
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(byte in 0..512_usize, bit in 0..8_u32) {
            let mut sector = agf();
            sector[byte] ^= 1 << bit;
            prop_assert!(Agf::parse(&sector, &geometry(), &UUID, 3).is_err());
        }

        #[test]
        fn no_bytes_make_them_panic(bytes: Vec<u8>, ag: u32) {
            Agf::parse(&bytes, &geometry(), &UUID, ag).unwrap_err();
            Agi::parse(&bytes, &geometry(), &UUID, ag).unwrap_err();
            Agfl::parse(&bytes, &UUID, ag).unwrap_err();
        }
    }
}
