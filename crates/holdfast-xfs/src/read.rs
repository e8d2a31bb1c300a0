//! The data of files.

use holdfast_bio::BlockDevice;
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs_format::Kind;

use crate::error::XfsError;
use crate::inode::Inode;
use crate::mount::{Xfs, of};
use crate::reader::plan;

impl<D: BlockDevice> Xfs<D> {
    /// Reads a regular file from byte `offset` on, and returns how many bytes there were: fewer than
    /// asked for only at its end. Holes and what was reserved and never written are zeros. Several
    /// transfers are in flight at the same time.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotFile`], [`XfsError::Realtime`], [`XfsError::Corrupt`], and whatever the device
    /// says; the target then holds bytes of no meaning.
    pub fn read(
        &mut self,
        inode: &Inode,
        offset: u64,
        target: &mut [u8],
    ) -> Result<usize, XfsError> {
        if inode.kind() != Kind::Regular {
            return Err(XfsError::NotFile { ino: inode.ino() });
        }
        let rest = inode.size().saturating_sub(offset);
        let len = to_usize(rest.min(to_u64(target.len())));
        let target = &mut target[..len];
        let list = self.extents(inode)?;
        let pieces = plan(&list, &self.superblock.geometry, offset, target);
        self.source.read(pieces.into_iter(), target).map_err(|error| of(inode.ino(), error))?;
        Ok(len)
    }
}
