//! Changes of metadata that belong together.
//!
//! A transaction has its own copies of what it changes, so that one which is dropped has changed
//! nothing. Committed, it is what everybody reads from then on. Who makes changes knows nothing of how
//! they get to the device: a journal has its place behind [`Transaction::commit`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_bio::BlockDevice;
use holdfast_xfs_format::{Agf, Agfl, Agi, FormatError, Ino, RawInode, Structure};
use holdfast_xfs_tree::{BlockRef, Blocks, Role, Run};
use zerocopy::FromBytes;

use crate::error::{Place, XfsError};
use crate::inode::cluster_of;
use crate::mount::{Block, Xfs, run};
use crate::writer::Writer;

/// A transaction.
#[derive(Debug)]
pub(crate) struct Transaction<'x, D> {
    pub(crate) xfs: &'x mut Xfs<D>,
    /// What was looked at.
    viewed: BTreeMap<u64, Arc<[u8]>>,
    changed: BTreeMap<u64, Changed>,
    /// Where there are no metadata any more.
    forgotten: BTreeSet<u64>,
    /// The inodes that were changed, and where they are: their block, and the byte in it.
    inodes: BTreeMap<Ino, (u64, usize)>,
}

/// Bytes that were changed.
#[derive(Debug)]
struct Changed {
    /// What they are; `None` for inodes, which have a checksum each.
    what: Option<BlockRef>,
    bytes: Vec<u8>,
}

impl<D: BlockDevice> Xfs<D> {
    /// Begins to change metadata.
    fn begin(&mut self) -> Result<Transaction<'_, D>, XfsError> {
        self.mark()?;
        Ok(Transaction {
            xfs: self,
            viewed: BTreeMap::new(),
            changed: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            inodes: BTreeMap::new(),
        })
    }

    /// Changes metadata, all that is said or nothing. Where there is no space, it is tried again after what was
    /// changed before is stored: what was freed can be used then.
    pub(crate) fn transact<T>(
        &mut self,
        change: impl Fn(&mut Transaction<'_, D>) -> Result<T, XfsError>,
    ) -> Result<T, XfsError> {
        let first = self.attempt(&change);
        let may_help = self.writer.as_ref().is_some_and(Writer::has_released);
        if first.as_ref().is_err_and(|error| *error == XfsError::NoSpace) && may_help {
            self.store()?;
            return self.attempt(&change);
        }
        first
    }

    fn attempt<T>(
        &mut self,
        change: impl Fn(&mut Transaction<'_, D>) -> Result<T, XfsError>,
    ) -> Result<T, XfsError> {
        let mut transaction = self.begin()?;
        let done = change(&mut transaction)?;
        transaction.commit()?;
        Ok(done)
    }

    /// Reads and verifies a block of metadata or a header of an allocation group.
    fn read_block(&mut self, block: BlockRef) -> Result<Arc<[u8]>, XfsError> {
        let BlockRef { address, len, role, owner } = block;
        if let Role::Block(kind) = role {
            return Ok(self.block(&run(address, len), &[kind], Ino(owner))?.bytes);
        }
        let mut bytes = vec![0; len];
        self.read_metadata(&run(address, len), &mut bytes)?;
        let (geometry, uuid) = (&self.superblock.geometry, &self.superblock.metadata_uuid);
        let ag = u32::try_from(owner).unwrap_or(u32::MAX);
        match role {
            Role::Agf => Agf::parse(&bytes, geometry, uuid, ag).map(drop),
            Role::Agfl => Agfl::parse(&bytes, uuid, ag).map(drop),
            Role::Agi | Role::Block(_) => Agi::parse(&bytes, geometry, uuid, ag).map(drop),
        }
        .map_err(corrupt_at(address))?;
        Ok(bytes.into())
    }
}

fn corrupt_at(address: u64) -> impl Fn(FormatError) -> XfsError {
    move |source| {
        let place = Place { ino: None, address: Some(address) };
        XfsError::Corrupt { place, source }
    }
}

/// Returns the core of an inode, which its bytes begin with.
pub(crate) fn raw_inode(ino: Ino, bytes: &mut [u8]) -> Result<&mut RawInode, XfsError> {
    let found = bytes.len();
    let (raw, _) = RawInode::mut_from_prefix(bytes).map_err(|_| {
        let expected = size_of::<RawInode>();
        let fault = FormatError::Short { structure: Structure::Inode, expected, found };
        XfsError::of_inode(ino)(fault)
    })?;
    Ok(raw)
}

impl<D: BlockDevice> Blocks for Transaction<'_, D> {
    type Error = XfsError;

    fn view(&mut self, block: BlockRef) -> Result<&[u8], XfsError> {
        let address = block.address;
        if let Some(changed) = self.changed.get(&address) {
            return Ok(&changed.bytes);
        }
        if !self.viewed.contains_key(&address) {
            self.viewed.insert(address, self.xfs.read_block(block)?);
        }
        Ok(&self.viewed[&address])
    }

    fn edit(&mut self, block: BlockRef) -> Result<&mut [u8], XfsError> {
        let address = block.address;
        if !self.changed.contains_key(&address) {
            let bytes = match self.viewed.remove(&address) {
                Some(bytes) => bytes,
                None => self.xfs.read_block(block)?,
            };
            let changed = Changed { what: Some(block), bytes: bytes.to_vec() };
            self.changed.insert(address, changed);
        }
        Ok(self.changed_at(address))
    }

    fn create(&mut self, block: BlockRef) -> Result<&mut [u8], XfsError> {
        let mut bytes = vec![0; block.len];
        let uuid = &self.xfs.superblock.metadata_uuid;
        block.stamp(&mut bytes, uuid).map_err(corrupt_at(block.address))?;
        self.forgotten.remove(&block.address);
        self.changed.insert(block.address, Changed { what: Some(block), bytes });
        Ok(self.changed_at(block.address))
    }

    fn forget(&mut self, block: BlockRef) {
        self.viewed.remove(&block.address);
        self.changed.remove(&block.address);
        self.forgotten.insert(block.address);
    }

    // Also when the transaction is dropped: they are held for longer than they must be then.
    fn note_released(&mut self, ag: u32, run: Run) {
        if let Some(writer) = &mut self.xfs.writer {
            writer.released.insert(ag, run);
        }
    }

    fn held(&self, ag: u32, run: Run) -> Option<Run> {
        self.xfs.writer.as_ref()?.released.first_in(ag, run)
    }
}

impl<D: BlockDevice> Transaction<'_, D> {
    fn changed_at(&mut self, address: u64) -> &mut [u8] {
        let changed = self.changed.get_mut(&address);
        &mut changed.expect("it was put there").bytes
    }

    /// Returns the bytes of an inode, all of them, to be changed. They are that inode, verified.
    pub(crate) fn inode(&mut self, ino: Ino) -> Result<&mut [u8], XfsError> {
        let geometry = self.xfs.superblock.geometry;
        let (block, at) = geometry.locate(ino).ok_or(XfsError::NoInode { ino })?;
        let address = geometry.address_of(block).ok_or(XfsError::NoInode { ino })?;
        if !self.inodes.contains_key(&ino) {
            // Verifies it.
            self.xfs.inode(ino)?;
            if !self.changed.contains_key(&address) {
                // What lies beside this block may be anything, and is not ours to write.
                let mut bytes = vec![0; geometry.block.len()];
                self.xfs.read_metadata(&run(address, bytes.len()), &mut bytes)?;
                self.changed.insert(address, Changed { what: None, bytes });
            }
            self.inodes.insert(ino, (address, at));
        }
        let inode_len = geometry.inode.len();
        Ok(&mut self.changed_at(address)[at..][..inode_len])
    }

    /// Changes the core of an inode.
    pub(crate) fn edit_inode(
        &mut self,
        ino: Ino,
        change: impl FnOnce(&mut RawInode),
    ) -> Result<(), XfsError> {
        let raw = raw_inode(ino, self.inode(ino)?)?;
        change(raw);
        raw.changes = raw.changes.get().wrapping_add(1).into();
        Ok(())
    }

    /// Makes the changes what everybody reads, and in time what is stored.
    ///
    /// # Errors
    ///
    /// [`XfsError::Write`] when so much had been committed before that it had to be written.
    fn commit(mut self) -> Result<(), XfsError> {
        let geometry = self.xfs.superblock.geometry;
        for (&ino, &(address, at)) in &self.inodes {
            if let Some(block) = self.changed.get_mut(&address) {
                RawInode::seal(&mut block.bytes[at..][..geometry.inode.len()])
                    .map_err(XfsError::of_inode(ino))?;
            }
            let (cluster, _, _) = cluster_of(&geometry, ino)?;
            self.xfs.blocks.remove((cluster, true));
            self.xfs.inodes.remove(ino);
        }
        for &address in &self.forgotten {
            self.xfs.writer_mut()?.remove(address);
            self.xfs.blocks.remove((address, false));
        }
        for (address, Changed { what, mut bytes }) in std::mem::take(&mut self.changed) {
            if let Some(block) = what {
                block.seal(&mut bytes).map_err(corrupt_at(address))?;
            }
            let bytes: Arc<[u8]> = bytes.into();
            self.xfs.writer_mut()?.insert(address, Arc::clone(&bytes));
            if let Some(BlockRef { role: Role::Block(kind), owner, .. }) = what {
                let weight = bytes.len() + size_of::<Block>();
                let block = Block { kind: Some(kind), owner, bytes };
                self.xfs.blocks.insert((address, false), block, weight);
            }
        }
        self.xfs.relieve()
    }
}
