//! Reading all extents of a fork, also from its tree.

use std::sync::Arc;

use holdfast_bio::BlockDevice;
use holdfast_units::to_u64;
use holdfast_xfs_format::{
    BlockKind, BmapBlock, BmapBody, BmapRoot, ForkFormat, FormatError, FsBlock, RawExtent,
    Structure,
};
use zerocopy::FromBytes;

use crate::error::XfsError;
use crate::extents::{ExtentList, Mapping};
use crate::inode::{Fork, Inode};
use crate::mount::{Xfs, run};

impl<D: BlockDevice> Xfs<D> {
    /// Returns all extents of a file. They are read once, and kept with the inode.
    ///
    /// # Errors
    ///
    /// [`XfsError::Realtime`], [`XfsError::Corrupt`], and whatever the device says.
    pub fn extents(&mut self, inode: &Inode) -> Result<Arc<ExtentList>, XfsError> {
        inode.check_data()?;
        self.fork_extents(inode, inode.data())
    }

    /// Returns the extent or the hole that holds byte `offset` of a file, as a whole, also behind the
    /// end of the file.
    ///
    /// # Errors
    ///
    /// As for [`extents`](Self::extents).
    pub fn map(&mut self, inode: &Inode, offset: u64) -> Result<Mapping, XfsError> {
        Ok(self.extents(inode)?.map(offset, &self.superblock.geometry))
    }

    /// Returns the extents of either fork.
    pub(crate) fn fork_extents(
        &mut self,
        inode: &Inode,
        fork: &Fork,
    ) -> Result<Arc<ExtentList>, XfsError> {
        if let Some(list) = fork.extents.get() {
            return Ok(Arc::clone(list));
        }
        let list = Arc::new(self.load_extents(inode, fork)?);
        if fork.extents.set(Arc::clone(&list)).is_ok() {
            self.inodes.grow(inode.ino(), list.weight());
        }
        Ok(list)
    }

    fn load_extents(&mut self, inode: &Inode, fork: &Fork) -> Result<ExtentList, XfsError> {
        let corrupt = XfsError::of_inode(inode.ino());
        let mut list = ExtentList::default();
        let bytes = inode.bytes_of(fork);
        match fork.format {
            ForkFormat::Device | ForkFormat::Local => return Ok(list),
            ForkFormat::Extents => {
                let count = usize::try_from(fork.count).unwrap_or(usize::MAX);
                let (raw, _) = <[RawExtent]>::ref_from_prefix_with_elems(bytes, count)
                    .map_err(|_| corrupt(too_many(fork.count)))?;
                list.append(raw, &self.superblock.geometry).map_err(&corrupt)?;
            }
            ForkFormat::Btree => {
                let root = BmapRoot::parse(bytes).map_err(&corrupt)?;
                let pointers = root.pointers.iter().map(|pointer| FsBlock(pointer.get()));
                for pointer in pointers {
                    self.load_below(inode, pointer, root.level - 1, fork.count, &mut list)?;
                }
            }
        }
        list.check_count(fork.count).map_err(&corrupt)?;
        Ok(list)
    }

    /// Appends all extents below a block of a tree. Levels fall by one, so there are no loops, and a block
    /// that is met again has extents that are not in order.
    fn load_below(
        &mut self,
        inode: &Inode,
        block: FsBlock,
        level: u16,
        count: u64,
        list: &mut ExtentList,
    ) -> Result<(), XfsError> {
        let ino = inode.ino();
        let geometry = self.superblock.geometry;
        let address = geometry.address_of(block).ok_or_else(|| {
            let structure = Structure::BmapBlock;
            let fault = FormatError::Range { structure, field: "pointer", found: block.0 };
            XfsError::of_inode(ino)(fault)
        })?;
        let found = self.block(&run(address, geometry.block.len()), &[BlockKind::Bmap], ino)?;
        let corrupt = XfsError::at(ino, address);
        match BmapBlock::parse(&found.bytes, level).map_err(&corrupt)?.body {
            BmapBody::Leaf(raw) => {
                list.append(raw, &geometry).map_err(&corrupt)?;
                if to_u64(list.extents().len()) > count {
                    list.check_count(count).map_err(&corrupt)?;
                }
                Ok(())
            }
            BmapBody::Node { pointers, .. } => pointers.iter().try_for_each(|pointer| {
                self.load_below(inode, FsBlock(pointer.get()), level - 1, count, list)
            }),
        }
    }
}

const fn too_many(found: u64) -> FormatError {
    FormatError::Range { structure: Structure::Inode, field: "count of extents", found }
}
