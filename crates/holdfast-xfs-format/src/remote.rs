//! Blocks that hold bytes of a value or of a target, and say so: remote attribute values
//! (`xfs_attr3_rmt_hdr`) and remote symbolic links (`xfs_dsymlink_hdr`).

use core::mem::offset_of;

use zerocopy::byteorder::big_endian::{U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::block::BlockKind;
use crate::error::{FormatError, expect, require, short};

/// The longest target of a symbolic link, in bytes.
pub const SYMLINK_LEN_MAX: u64 = 1024;

/// The header of such a block.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RemoteHeader {
    /// Which kind it is.
    pub magic: U32,
    /// Which byte of the value the first one here is.
    pub offset: U32,
    /// How many bytes of the value are here.
    pub bytes: U32,
    /// CRC-32C of the block, computed with 0 in this field.
    pub crc: little_endian::U32,
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// The inode it belongs to.
    pub owner: U64,
    /// Where this block says that it is, in units of 512 bytes.
    pub place: U64,
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
}

const _: () = {
    assert!(size_of::<RemoteHeader>() == 56);
    assert!(offset_of!(RemoteHeader, uuid) == 16);
    assert!(offset_of!(RemoteHeader, place) == 40);
};

/// A verified block of a value.
#[derive(Clone, Copy, Debug)]
pub struct RemoteBlock<'a> {
    /// The bytes of the value that are here.
    pub payload: &'a [u8],
}

impl<'a> RemoteBlock<'a> {
    /// Takes a verified block apart, which must hold the value from byte `offset` on, as far as it
    /// goes: to the end of `rest` bytes or of the block.
    ///
    /// # Errors
    ///
    /// The field that says otherwise.
    pub fn parse(
        kind: BlockKind,
        block: &'a [u8],
        offset: u64,
        rest: u64,
    ) -> Result<Self, FormatError> {
        let structure = kind.structure();
        let (header, payload) = RemoteHeader::ref_from_prefix(block)
            .map_err(|_| short(structure, size_of::<RemoteHeader>(), block.len()))?;
        expect(structure, "offset", offset, u64::from(header.offset.get()))?;
        let bytes = u64::from(header.bytes.get());
        let payload = payload.get(..holdfast_units::to_usize(bytes));
        let fits = payload.filter(|_| bytes > 0 && bytes <= rest);
        require(structure, "length", bytes, fits.is_some())?;
        Ok(Self { payload: fits.unwrap_or_default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_must_hold_the_part_that_is_looked_for() {
        let mut block = [0xaa; 128];
        block[4..8].copy_from_slice(&100_u32.to_be_bytes());
        block[8..12].copy_from_slice(&20_u32.to_be_bytes());
        let parse = |offset, rest| RemoteBlock::parse(BlockKind::Symlink, &block, offset, rest);
        assert_eq!(parse(100, 20).unwrap().payload, [0xaa; 20]);
        parse(99, 20).unwrap_err();
        parse(100, 19).unwrap_err();
    }

    #[test]
    fn a_length_behind_the_block_is_refused() {
        let mut block = [0; 128];
        block[8..12].copy_from_slice(&73_u32.to_be_bytes());
        RemoteBlock::parse(BlockKind::Symlink, &block, 0, 200).unwrap_err();
    }
}
