//! Targets of symbolic links.

use holdfast_bio::BlockDevice;
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs_format::{BlockKind, FormatError, Kind, RemoteBlock, SYMLINK_LEN_MAX, Structure};

use crate::error::XfsError;
use crate::extents::{Mapping, MappingState};
use crate::inode::Inode;
use crate::mount::{Xfs, run};

/// No run of blocks of a target is longer, in bytes: 1024 bytes with headers fit into two of the smallest
/// blocks, or one of any other.
const RUN_MAX: u64 = 64 << 10;

impl<D: BlockDevice> Xfs<D> {
    /// Returns the target of a symbolic link.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotSymlink`], [`XfsError::Corrupt`], and whatever the device says.
    pub fn read_link(&mut self, inode: &Inode) -> Result<Vec<u8>, XfsError> {
        let ino = inode.ino();
        if inode.kind() != Kind::Symlink {
            return Err(XfsError::NotSymlink { ino });
        }
        if let Some(target) = inode.local() {
            return Ok(target.to_vec());
        }
        let corrupt = XfsError::of_inode(ino);
        let size = inode.size();
        if size > SYMLINK_LEN_MAX {
            return Err(corrupt(range("length", size)));
        }
        let geometry = self.superblock.geometry;
        let list = self.fork_extents(inode, inode.data())?;
        let mut target = Vec::new();
        for mapping in list.mappings(&geometry) {
            let Mapping { len, state: MappingState::Mapped { address }, .. } = mapping else {
                return Err(corrupt(range("unwritten extent at byte", mapping.offset)));
            };
            if len > RUN_MAX {
                return Err(corrupt(range("length of an extent", len)));
            }
            let done = to_u64(target.len());
            if done == size {
                break;
            }
            // The blocks of an extent have one header together.
            let block = self.block(&run(address, to_usize(len)), &[BlockKind::Symlink], ino)?;
            let part = RemoteBlock::parse(BlockKind::Symlink, &block.bytes, done, size - done)
                .map_err(XfsError::at(ino, address))?;
            target.extend_from_slice(part.payload);
        }
        let found = to_u64(target.len());
        if found != size {
            return Err(corrupt(range("length", found)));
        }
        Ok(target)
    }
}

const fn range(field: &'static str, found: u64) -> FormatError {
    FormatError::Range { structure: Structure::Symlink, field, found }
}
