//! Mounting, and what is known of the file system as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_bio::BlockDevice;
use holdfast_units::to_usize;
use holdfast_xfs_format::{
    Agf, Agi, BlockKind, Features, Geometry, Identity, Ino, SECTOR_MAX, Superblock,
};

use crate::cache::Cache;
use crate::error::{Place, XfsError};
use crate::inode::Inode;
use crate::mapper::File;
use crate::source::{Piece, Source};
use crate::writer::Writer;

/// How to mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Take the file system as it is when its log is dirty, or on a device that is not there. What was
    /// changed last may be missing then, in part or as a whole, and metadata may contradict each other.
    pub no_recovery: bool,
    /// Also for writing. Until [`Xfs::unmount`] the file system is marked as being changed, from the
    /// first change on: should this process or the machine die, the kernel does not mount it before
    /// `xfs_repair` was run.
    pub write: bool,
    /// How many bytes of metadata are kept in memory for their next use.
    pub cache_bytes: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { no_recovery: false, write: false, cache_bytes: 32 << 20 }
    }
}

/// How much there is, and how much of it is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// The size of a block, in bytes.
    pub block_bytes: u64,
    /// How many blocks there are.
    pub blocks: u64,
    /// How many blocks are free.
    pub free_blocks: u64,
    /// How many inodes are allocated, free ones included. XFS makes more when it needs them.
    pub inodes: u64,
    /// How many of these are free.
    pub free_inodes: u64,
}

/// A file system that is mounted.
#[derive(Debug)]
pub struct Xfs<D> {
    pub(crate) source: Source<D>,
    pub(crate) superblock: Superblock,
    pub(crate) inodes: Cache<Ino, Inode>,
    pub(crate) blocks: Cache<(u64, bool), Block>,
    is_clean: bool,
    /// There is one when it is mounted for writing.
    pub(crate) writer: Option<Writer>,
    /// The files that are open for direct I/O.
    pub(crate) files: BTreeMap<Ino, File>,
}

/// A block of metadata that was verified.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    /// `None` for inodes, which are verified one by one.
    pub(crate) kind: Option<BlockKind>,
    pub(crate) owner: u64,
    pub(crate) bytes: Arc<[u8]>,
}

impl Block {
    pub(crate) const fn kind(&self) -> Option<BlockKind> {
        self.kind
    }
}

impl<D: BlockDevice> Xfs<D> {
    /// Mounts the file system on a device, on which nothing else is in flight.
    ///
    /// # Errors
    ///
    /// [`XfsError::Superblock`] for what is no XFS; [`XfsError::Features`] and
    /// [`XfsError::Unsupported`], by name; [`XfsError::DirtyLog`] and [`XfsError::ExternalLog`], unless
    /// the options allow it; [`XfsError::Truncated`], [`XfsError::NeedsRepair`], and whatever the device
    /// says.
    pub fn mount(device: D, options: &MountOptions) -> Result<Self, XfsError> {
        let mut source = Source::new(device)?;
        let found = source.capacity();
        let mut bytes = vec![0; SECTOR_MAX.min(to_usize(found))];
        source.read_at(0, &mut bytes)?;
        let superblock =
            Superblock::parse(&bytes).map_err(|source| XfsError::Superblock { source })?;
        check_features(&superblock)?;
        let expected = superblock.geometry.bytes();
        if expected > found {
            return Err(XfsError::Truncated { expected, found });
        }
        let mut xfs = Self {
            source,
            superblock,
            // Most of what an inode weighs are its extents.
            inodes: Cache::new(options.cache_bytes),
            blocks: Cache::new(options.cache_bytes),
            is_clean: false,
            writer: None,
            files: BTreeMap::new(),
        };
        xfs.is_clean = match xfs.log_is_clean() {
            Ok(is_clean) => is_clean,
            Err(_) if options.no_recovery => false,
            Err(error) => return Err(error),
        };
        if !xfs.is_clean && (options.write || !options.no_recovery) {
            return Err(XfsError::DirtyLog);
        }
        if options.write {
            xfs.writer = Some(xfs.writer()?);
        }
        Ok(xfs)
    }

    /// Returns the superblock as it was at the mount.
    pub const fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// Returns the sizes of the file system.
    pub const fn geometry(&self) -> &Geometry {
        &self.superblock.geometry
    }

    /// Returns the device.
    pub const fn device(&self) -> &D {
        self.source.device()
    }

    /// Returns the number of the root directory.
    pub const fn root(&self) -> Ino {
        self.superblock.root
    }

    /// Returns whether the log was clean, so that nothing is missing.
    pub const fn is_clean(&self) -> bool {
        self.is_clean
    }

    /// Returns how much there is and how much is free. After a mount without recovery it is counted in
    /// all allocation groups, since the superblock does not know.
    ///
    /// # Errors
    ///
    /// [`XfsError::Corrupt`], and whatever the device says.
    pub fn statistics(&mut self) -> Result<Statistics, XfsError> {
        if !self.is_clean || self.has_changed() {
            return self.count_all();
        }
        let Superblock { geometry, inodes, free_inodes, free_blocks, .. } = self.superblock;
        let (block_bytes, blocks) = (geometry.block.bytes(), geometry.blocks);
        Ok(Statistics { block_bytes, blocks, free_blocks, inodes, free_inodes })
    }

    /// Counts in all allocation groups.
    pub(crate) fn count_all(&mut self) -> Result<Statistics, XfsError> {
        let geometry = self.superblock.geometry;
        let (block_bytes, blocks) = (geometry.block.bytes(), geometry.blocks);
        let (free_blocks, inodes, free_inodes) = (0, 0, 0);
        let mut statistics = Statistics { block_bytes, blocks, free_blocks, inodes, free_inodes };
        for ag in 0..geometry.ag_count {
            self.count(ag, &mut statistics)?;
        }
        Ok(statistics)
    }

    /// Adds what is in an allocation group.
    fn count(&mut self, ag: u32, statistics: &mut Statistics) -> Result<(), XfsError> {
        let geometry = self.superblock.geometry;
        let sector = geometry.sector;
        let uuid = self.superblock.metadata_uuid;
        let start = geometry.ag_address(ag);
        let mut bytes = vec![0; 4 * sector.len()];
        self.read_metadata(&run(start, bytes.len()), &mut bytes)?;
        let corrupt = |address| {
            move |source| XfsError::Corrupt {
                place: Place { ino: None, address: Some(address) },
                source,
            }
        };
        let part = |index: usize| &bytes[index * sector.len()..][..sector.len()];
        let agf =
            Agf::parse(part(1), &geometry, &uuid, ag).map_err(corrupt(start + sector.bytes()))?.raw;
        let agi = Agi::parse(part(2), &geometry, &uuid, ag)
            .map_err(corrupt(start + 2 * sector.bytes()))?
            .raw;
        let free = [agf.free_blocks, agf.list_count, agf.btree_blocks];
        statistics.free_blocks += free.map(|count| u64::from(count.get())).iter().sum::<u64>();
        statistics.inodes += u64::from(agi.inodes.get());
        statistics.free_inodes += u64::from(agi.free_inodes.get());
        Ok(())
    }

    /// Returns a block of metadata that is of one of the kinds and belongs to `owner`. The pieces are
    /// where it is on the device.
    pub(crate) fn block(
        &mut self,
        pieces: &[Piece],
        kinds: &[BlockKind],
        owner: Ino,
    ) -> Result<Block, XfsError> {
        let len = pieces.last().map_or(0, |piece| piece.target.end);
        let address = pieces.first().map_or(0, |piece| piece.address);
        let key = (address, false);
        if let Some(block) = self.blocks.find(key)
            && block.owner == owner.0
            && block.bytes.len() == len
            && block.kind.is_some_and(|kind| kinds.contains(&kind))
        {
            return Ok(block);
        }
        let mut bytes = vec![0; len];
        self.read_metadata(pieces, &mut bytes).map_err(|error| of(owner, error))?;
        let corrupt = XfsError::at(owner, address);
        let kind = BlockKind::identify(&bytes, kinds).map_err(&corrupt)?;
        let uuid = &self.superblock.metadata_uuid;
        let identity = Identity { uuid, address, owner: owner.0 };
        kind.verify(&bytes, &identity).map_err(&corrupt)?;
        let block = Block { kind: Some(kind), owner: owner.0, bytes: bytes.into() };
        self.blocks.insert(key, block.clone(), len + size_of::<Block>());
        Ok(block)
    }

    /// Returns bytes that hold inodes, which are not verified yet.
    pub(crate) fn inode_cluster(
        &mut self,
        address: u64,
        len: usize,
    ) -> Result<Arc<[u8]>, XfsError> {
        let key = (address, true);
        if let Some(block) = self.blocks.find(key)
            && block.bytes.len() == len
        {
            return Ok(block.bytes);
        }
        let mut bytes = vec![0; len];
        self.read_metadata(&run(address, len), &mut bytes)?;
        let block = Block { kind: None, owner: 0, bytes: bytes.into() };
        let bytes = Arc::clone(&block.bytes);
        self.blocks.insert(key, block, len + size_of::<Block>());
        Ok(bytes)
    }
}

/// Says to which inode a failure belongs.
pub(crate) fn of(ino: Ino, error: XfsError) -> XfsError {
    match error {
        XfsError::Device { place, source } => {
            XfsError::Device { place: Place { ino: Some(ino), ..place }, source }
        }
        other => other,
    }
}

/// Refuses what cannot be read, by name.
fn check_features(superblock: &Superblock) -> Result<(), XfsError> {
    let features = &superblock.features;
    if features.incompatible.has(Features::NEEDS_REPAIR) {
        return Err(XfsError::NeedsRepair);
    }
    if !features.forbidding().is_empty() {
        return Err(XfsError::Features { features: features.forbidding() });
    }
    if !features.incompatible.has(Features::FILE_TYPE) {
        return Err(XfsError::Unsupported {
            what: "a directory format without file types (ftype=0)",
        });
    }
    if superblock.ignores_case {
        return Err(XfsError::Unsupported { what: "finding names whatever their case (ascii-ci)" });
    }
    Ok(())
}

/// Returns the pieces of one run of bytes.
pub(crate) fn run(address: u64, len: usize) -> [Piece; 1] {
    [Piece { address, target: 0..len }]
}
