//! Where blocks of metadata come from, and go back to.

use holdfast_xfs_format::{BlockKind, FormatError, Identity, RawAgf, RawAgfl, RawAgi};

use crate::error::TreeError;
use crate::free::Run;

/// What a run of bytes on the device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The header of an allocation group that counts its free space.
    Agf,
    /// The list of blocks that an allocation group keeps for its trees.
    Agfl,
    /// The header of an allocation group that counts its inodes.
    Agi,
    /// A block that says what it is.
    Block(BlockKind),
}

/// A block of metadata, or a header of an allocation group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockRef {
    /// Where it is, in bytes from the start of the device.
    pub address: u64,
    /// How long it is, in bytes.
    pub len: usize,
    /// What it is.
    pub role: Role,
    /// Whose it is: an inode, or an allocation group.
    pub owner: u64,
}

impl BlockRef {
    /// Stores what a block says of itself, but for the checksum. Headers of allocation groups are
    /// never new, and left as they are.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for less than the header of such a block.
    pub fn stamp(&self, bytes: &mut [u8], uuid: &[u8; 16]) -> Result<(), FormatError> {
        match self.role {
            Role::Agf | Role::Agfl | Role::Agi => Ok(()),
            Role::Block(kind) => {
                let identity = Identity { uuid, address: self.address, owner: self.owner };
                kind.stamp(bytes, &identity)
            }
        }
    }

    /// Computes and stores the checksum.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`] for less than the header of such a block.
    pub fn seal(&self, bytes: &mut [u8]) -> Result<(), FormatError> {
        match self.role {
            Role::Agf => RawAgf::seal(bytes),
            Role::Agfl => RawAgfl::seal(bytes),
            Role::Agi => RawAgi::seal(bytes),
            Role::Block(kind) => kind.seal(bytes),
        }
    }
}

/// Blocks of metadata that are being changed together.
///
/// An error in the middle of a change leaves it half done: nothing of it may be stored then.
pub trait Blocks {
    /// Why a block cannot be had, or a change not be made.
    type Error: From<TreeError>;

    /// Returns the bytes of a block as they are now, changes included. They were verified when they
    /// were read: checksum, kind, file system, place and owner.
    ///
    /// # Errors
    ///
    /// The block cannot be read, or is not the one that was looked for.
    fn view(&mut self, block: BlockRef) -> Result<&[u8], Self::Error>;

    /// Returns the same bytes, to be changed. The checksum is computed when the changes are committed.
    ///
    /// # Errors
    ///
    /// As for [`view`](Self::view).
    fn edit(&mut self, block: BlockRef) -> Result<&mut [u8], Self::Error>;

    /// Returns a block that was free until now: zeros, but for what [`BlockRef::stamp`] stores.
    ///
    /// # Errors
    ///
    /// There is no memory, or no room in the transaction.
    fn create(&mut self, block: BlockRef) -> Result<&mut [u8], Self::Error>;

    /// Forgets a block that is no metadata any more, and what was changed in it.
    fn forget(&mut self, block: BlockRef);

    /// Is told of blocks of an allocation group that become free, or are not shared any more.
    fn note_released(&mut self, ag: u32, run: Run) {
        let _unused = (ag, run);
    }

    /// Returns the first blocks of a run that were, and must not be overwritten yet: what is stored says
    /// that they are somebody else's.
    fn held(&self, ag: u32, run: Run) -> Option<Run> {
        let _unused = (ag, run);
        None
    }
}
