//! Blocks that are written: what they say of themselves, and their checksum.

use super::{BlockKind, Identity};
use crate::error::FormatError;
use crate::seal::seal;

impl BlockKind {
    /// Stores what a block of this kind says of itself: magic, place, file system and owner. The
    /// checksum is left to [`seal`](Self::seal).
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for a block without room for its header.
    pub fn stamp(self, block: &mut [u8], identity: &Identity<'_>) -> Result<(), FormatError> {
        let (structure, layout) = (self.structure(), self.layout());
        let found = block.len();
        let too_short = FormatError::Short { structure, expected: layout.header, found };
        let header = block.get_mut(..layout.header).ok_or(too_short)?;
        let magic = self.magic().to_be_bytes();
        store(header, layout.magic, if layout.magic_is_short { &magic[2..] } else { &magic });
        store(header, layout.uuid, identity.uuid);
        store(header, layout.place, &(identity.address / 512).to_be_bytes());
        let owner = identity.owner.to_be_bytes();
        store(header, layout.owner, if layout.owner_is_short { &owner[4..] } else { &owner });
        Ok(())
    }

    /// Computes and stores the checksum of a block of this kind.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for a block without room for its header.
    pub fn seal(self, block: &mut [u8]) -> Result<(), FormatError> {
        seal(self.structure(), block, self.layout().crc)
    }
}

/// Stores a field, which lies inside the header.
fn store(header: &mut [u8], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use crate::block::Identity;
    use crate::block::tests::KINDS;

    #[test]
    fn a_stamped_and_sealed_block_is_the_one_that_was_meant() {
        let identity = Identity { uuid: &[9; 16], address: 8192, owner: 77 };
        for kind in KINDS {
            let mut block = [0; 512];
            kind.stamp(&mut block, &identity).unwrap();
            kind.verify(&block, &identity).unwrap_err();
            kind.seal(&mut block).unwrap();
            kind.verify(&block, &identity).unwrap();
            kind.verify(&block, &Identity { owner: 78, ..identity }).unwrap_err();
        }
    }

    #[test]
    fn a_block_without_room_for_its_header_is_refused() {
        let identity = Identity { uuid: &[9; 16], address: 8192, owner: 77 };
        for kind in KINDS {
            kind.stamp(&mut [0; 40], &identity).unwrap_err();
            kind.seal(&mut [0; 7]).unwrap_err();
        }
    }
}
