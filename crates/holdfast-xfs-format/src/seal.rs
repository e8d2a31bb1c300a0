//! What is needed to write: checksums, and extents as they are stored.

use core::mem::offset_of;

use holdfast_checksum::{GuardKind, checksum};

use crate::ag::{RawAgf, RawAgfl, RawAgi};
use crate::error::{FormatError, Structure, short};
use crate::extent::{Extent, RawExtent};
use crate::inode::RawInode;
use crate::sb::RawSuperblock;

/// Computes the CRC-32C of `bytes` and stores it, little-endian, at byte `at`.
pub(crate) fn seal(structure: Structure, bytes: &mut [u8], at: usize) -> Result<(), FormatError> {
    const LEN: usize = size_of::<u32>();
    let found = bytes.len();
    let too_short = || short(structure, at + LEN, found);
    bytes.get_mut(at..at + LEN).ok_or_else(too_short)?.fill(0);
    let crc = u32::try_from(checksum(GuardKind::Crc32c, bytes)).expect("a CRC-32C has 32 bits");
    bytes[at..at + LEN].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

impl RawAgf {
    /// Computes and stores the checksum of the sector that holds an AGF.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for less than an AGF.
    pub fn seal(sector: &mut [u8]) -> Result<(), FormatError> {
        seal(Structure::Agf, sector, offset_of!(Self, crc))
    }
}

impl RawAgfl {
    /// Computes and stores the checksum of the sector that holds an AGFL.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for less than the header of an AGFL.
    pub fn seal(sector: &mut [u8]) -> Result<(), FormatError> {
        seal(Structure::Agfl, sector, offset_of!(Self, crc))
    }
}

impl RawAgi {
    /// Computes and stores the checksum of the sector that holds an AGI.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for less than an AGI.
    pub fn seal(sector: &mut [u8]) -> Result<(), FormatError> {
        seal(Structure::Agi, sector, offset_of!(Self, crc))
    }
}

impl RawInode {
    /// Computes and stores the checksum of an inode, its forks included.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for less than the core of an inode.
    pub fn seal(inode: &mut [u8]) -> Result<(), FormatError> {
        seal(Structure::Inode, inode, offset_of!(Self, crc))
    }
}

impl RawSuperblock {
    /// Computes and stores the checksum of the sector that holds a superblock.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for less than a superblock.
    pub fn seal(sector: &mut [u8]) -> Result<(), FormatError> {
        seal(Structure::Superblock, sector, offset_of!(Self, crc))
    }
}

impl Extent {
    /// The most blocks that one extent can have.
    pub const BLOCKS_MAX: u64 = (1 << 21) - 1;

    /// Puts an extent together as it is stored. Bits that have no room are lost.
    pub fn encode(&self) -> RawExtent {
        let file = self.file.0 & ((1 << 54) - 1);
        let block = self.block.0 & ((1 << 52) - 1);
        let high = (u64::from(self.unwritten) << 63) | (file << 9) | (block >> 43);
        let low = (block << 21) | (self.blocks & Self::BLOCKS_MAX);
        RawExtent { high: high.into(), low: low.into() }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::{FromZeros, IntoBytes};

    use super::*;
    use crate::address::{FileBlock, FsBlock};
    use crate::ag::Agfl;

    proptest! {
        #[test]
        fn an_extent_comes_back(
            unwritten: bool,
            file in 0..1_u64 << 54,
            block in 0..1_u64 << 52,
            blocks in 0..1_u64 << 21,
        ) {
            let extent =
                Extent { file: FileBlock(file), block: FsBlock(block), blocks, unwritten };
            prop_assert_eq!(Extent::decode(&extent.encode()), extent);
        }
    }

    #[test]
    fn a_sealed_list_is_verified() {
        let mut raw = RawAgfl::new_zeroed();
        raw.magic = *b"XAFL";
        raw.ag = 2.into();
        let mut sector = raw.as_bytes().to_vec();
        sector.resize(512, 7);
        Agfl::parse(&sector, &[0; 16], 2).unwrap_err();
        RawAgfl::seal(&mut sector).unwrap();
        Agfl::parse(&sector, &[0; 16], 2).unwrap();
        RawAgf::seal(&mut sector[..100]).unwrap_err();
        RawAgi::seal(&mut sector[..100]).unwrap_err();
        RawInode::seal(&mut sector[..100]).unwrap_err();
        RawSuperblock::seal(&mut sector[..100]).unwrap_err();
    }
}
