//! The superblock, in the first sector of each allocation group; that of the first group counts.

use core::fmt;
use core::mem::offset_of;

use holdfast_units::BlockSize;
use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::address::{FsBlock, Ino};
use crate::block::check_crc;
use crate::error::{FormatError, Structure, expect, require, short};
use crate::geometry::Geometry;

/// The largest sector, in bytes: so much of the device may be the superblock's checksum about.
pub const SECTOR_MAX: usize = 32 << 10;

const STRUCTURE: Structure = Structure::Superblock;

/// The superblock (`xfs_dsb`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawSuperblock {
    /// `XFSB`.
    pub magic: [u8; 4],
    /// The size of a block, in bytes.
    pub block_size: U32,
    /// Blocks of the data device.
    pub blocks: U64,
    /// Blocks of the realtime device.
    pub realtime_blocks: U64,
    /// Extents of the realtime device.
    pub realtime_extents: U64,
    /// The file system's name for people and boot loaders.
    pub uuid: [u8; 16],
    /// The first block of the log; 0 when it is on a device of its own.
    pub log_start: U64,
    /// The inode of the root directory.
    pub root: U64,
    /// The inode of the realtime bitmap.
    pub realtime_bitmap: U64,
    /// The inode of the realtime summary.
    pub realtime_summary: U64,
    /// Blocks of a realtime extent.
    pub realtime_extent_size: U32,
    /// Blocks of an allocation group.
    pub ag_blocks: U32,
    /// How many allocation groups there are.
    pub ag_count: U32,
    /// Blocks of the realtime bitmap.
    pub realtime_bitmap_blocks: U32,
    /// Blocks of the log.
    pub log_blocks: U32,
    /// The version in the lower four bits, and the oldest features.
    pub version: U16,
    /// The size of a sector, in bytes.
    pub sector_size: U16,
    /// The size of an inode, in bytes.
    pub inode_size: U16,
    /// How many inodes a block has.
    pub inodes_per_block: U16,
    /// The label.
    pub label: [u8; 12],
    /// The logarithm of the size of a block.
    pub block_bits: u8,
    /// The logarithm of the size of a sector.
    pub sector_bits: u8,
    /// The logarithm of the size of an inode.
    pub inode_size_bits: u8,
    /// The logarithm of the inodes of a block.
    pub inode_bits: u8,
    /// The logarithm of the blocks of an allocation group, rounded up.
    pub ag_block_bits: u8,
    /// The logarithm of the extents of the realtime device.
    pub realtime_extent_bits: u8,
    /// 1 while mkfs runs.
    pub in_progress: u8,
    /// How much of the space may be inodes, in percent.
    pub inode_percent: u8,
    /// How many inodes there are.
    pub inodes: U64,
    /// How many of them are free.
    pub free_inodes: U64,
    /// How many blocks are free.
    pub free_blocks: U64,
    /// How many realtime extents are free.
    pub free_realtime_extents: U64,
    /// The inode of the users' quota.
    pub user_quota: U64,
    /// The inode of the groups' quota.
    pub group_quota: U64,
    /// Which quota are kept.
    pub quota_flags: U16,
    /// 0.
    pub flags: u8,
    /// 0.
    pub shared_version: u8,
    /// What chunks of inodes begin at a multiple of, in blocks.
    pub inode_alignment: U32,
    /// The stripe unit, in blocks.
    pub stripe_unit: U32,
    /// The stripe width, in blocks.
    pub stripe_width: U32,
    /// The logarithm of the blocks of a directory block.
    pub dir_block_bits: u8,
    /// The logarithm of the size of a sector of the log.
    pub log_sector_bits: u8,
    /// The size of a sector of the log, in bytes.
    pub log_sector_size: U16,
    /// The stripe unit of the log, in bytes.
    pub log_stripe_unit: U32,
    /// More features.
    pub features2: U32,
    /// The same again.
    pub features2_copy: U32,
    /// Features that may be ignored.
    pub compatible: U32,
    /// Features that forbid writing when unknown.
    pub read_only_compatible: U32,
    /// Features that forbid reading when unknown.
    pub incompatible: U32,
    /// Features that forbid replaying the log when unknown.
    pub log_incompatible: U32,
    /// CRC-32C of the sector, computed with 0 in this field.
    pub crc: little_endian::U32,
    /// What sparse chunks of inodes begin at a multiple of, in blocks.
    pub sparse_alignment: U32,
    /// The inode of the projects' quota.
    pub project_quota: U64,
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// What all metadata have as UUID, when that is not the one above.
    pub metadata_uuid: [u8; 16],
}

const _: () = {
    assert!(size_of::<RawSuperblock>() == 264);
    assert!(offset_of!(RawSuperblock, log_start) == 48);
    assert!(offset_of!(RawSuperblock, version) == 100);
    assert!(offset_of!(RawSuperblock, block_bits) == 120);
    assert!(offset_of!(RawSuperblock, inodes) == 128);
    assert!(offset_of!(RawSuperblock, dir_block_bits) == 192);
    assert!(offset_of!(RawSuperblock, crc) == 224);
    assert!(offset_of!(RawSuperblock, metadata_uuid) == 248);
};

/// Some features of one kind, which print as their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeatureSet {
    bits: u32,
    names: &'static [&'static str],
}

impl FeatureSet {
    /// Returns whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.bits == 0
    }

    /// Returns the bits.
    pub const fn bits(&self) -> u32 {
        self.bits
    }

    /// Returns whether one of these bits is set.
    pub const fn has(&self, bits: u32) -> bool {
        self.bits & bits != 0
    }

    const fn without(self, bits: u32) -> Self {
        Self { bits: self.bits & !bits, names: self.names }
    }
}

impl fmt::Display for FeatureSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for bit in (0..u32::BITS).filter(|bit| self.bits & (1 << bit) != 0) {
            f.write_str(separator)?;
            separator = ", ";
            match usize::try_from(bit).ok().and_then(|index| self.names.get(index)) {
                Some(name) => f.write_str(name)?,
                None => write!(f, "bit {bit}")?,
            }
        }
        Ok(())
    }
}

/// The features of a file system, by what it means not to know them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Those that forbid writing when unknown.
    pub read_only_compatible: FeatureSet,
    /// Those that forbid reading when unknown.
    pub incompatible: FeatureSet,
    /// Those that forbid replaying the log when unknown.
    pub log_incompatible: FeatureSet,
}

impl Features {
    /// Read-only compatible: `finobt`, `rmapbt`, `reflink`, `inobtcount`.
    const KNOWN_READ_ONLY: u32 = 0b1111;
    /// Incompatible: entries of directories say what they lead to.
    pub const FILE_TYPE: u32 = 1;
    /// Incompatible: metadata have another UUID than the file system.
    pub const METADATA_UUID: u32 = 1 << 2;
    /// Incompatible: `xfs_repair` has to be run.
    pub const NEEDS_REPAIR: u32 = 1 << 4;
    /// `ftype`, `sparse`, `metauuid`, `bigtime`, `nrext64`, `exchange`, `parent`.
    const KNOWN: u32 = 0b1110_1111;

    const NAMES_READ_ONLY: &'static [&'static str] = &["finobt", "rmapbt", "reflink", "inobtcount"];
    const NAMES: &'static [&'static str] = &[
        "ftype",
        "sparse",
        "metauuid",
        "bigtime",
        "needsrepair",
        "nrext64",
        "exchange",
        "parent",
        "metadir",
        "zoned",
        "zonegaps",
    ];
    const NAMES_LOG: &'static [&'static str] = &["xattrs"];

    /// Returns those that forbid reading, because they are not known.
    pub const fn forbidding(&self) -> FeatureSet {
        self.incompatible.without(Self::KNOWN)
    }

    /// Returns those that forbid writing, because they are not known.
    pub const fn forbidding_writes(&self) -> FeatureSet {
        self.read_only_compatible.without(Self::KNOWN_READ_ONLY)
    }
}

/// A verified superblock.
#[derive(Clone, Debug)]
pub struct Superblock {
    /// The sizes.
    pub geometry: Geometry,
    /// The features.
    pub features: Features,
    /// The file system's UUID.
    pub uuid: [u8; 16],
    /// What all metadata have as UUID.
    pub metadata_uuid: [u8; 16],
    /// The root directory.
    pub root: Ino,
    /// The first block of the log and how many it has, or `None` when it is on a device of its own.
    pub log: Option<(FsBlock, u32)>,
    /// There is a realtime device.
    pub has_realtime: bool,
    /// The label, without the zeros at its end.
    label: [u8; 12],
    /// How many inodes there are, as of the last unmount.
    pub inodes: u64,
    /// How many of them are free, as of the last unmount.
    pub free_inodes: u64,
    /// How many blocks are free, as of the last unmount.
    pub free_blocks: u64,
    /// How much of the space may be inodes, in percent; 0 for any.
    pub inode_percent: u8,
    /// Names are found whatever their case (`ascii-ci`).
    pub ignores_case: bool,
}

impl Superblock {
    /// The bit of `version` for names whose case does not matter.
    const IGNORES_CASE: u16 = 0x4000;

    /// Verifies the first sector of a device, of which `bytes` are the first [`SECTOR_MAX`] or all.
    ///
    /// # Errors
    ///
    /// [`FormatError::Foreign`] for what is no XFS, [`FormatError::Version`] for version 4 and older,
    /// or what is wrong first.
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let (raw, _) = RawSuperblock::ref_from_prefix(bytes)
            .map_err(|_| short(STRUCTURE, size_of::<RawSuperblock>(), bytes.len()))?;
        if raw.magic != *b"XFSB" {
            return Err(FormatError::Foreign { found: raw.magic });
        }
        let version = raw.version.get();
        if version & 0xf != 5 {
            return Err(FormatError::Version { found: version & 0xf });
        }
        let sector =
            size("sector size", u32::from(raw.sector_size.get()), raw.sector_bits, 9..=15)?;
        let bytes =
            bytes.get(..sector.len()).ok_or_else(|| short(STRUCTURE, sector.len(), bytes.len()))?;
        check_crc(STRUCTURE, bytes, offset_of!(RawSuperblock, crc))?;
        expect(STRUCTURE, "mkfs in progress", 0, u64::from(raw.in_progress))?;
        let geometry = geometry(raw, sector)?;
        let features = Features {
            read_only_compatible: FeatureSet {
                bits: raw.read_only_compatible.get(),
                names: Features::NAMES_READ_ONLY,
            },
            incompatible: FeatureSet { bits: raw.incompatible.get(), names: Features::NAMES },
            log_incompatible: FeatureSet {
                bits: raw.log_incompatible.get(),
                names: Features::NAMES_LOG,
            },
        };
        let has_own = features.incompatible.has(Features::METADATA_UUID);
        let root = Ino(raw.root.get());
        require(STRUCTURE, "root inode", root.0, geometry.locate(root).is_some())?;
        Ok(Self {
            geometry,
            features,
            uuid: raw.uuid,
            metadata_uuid: if has_own { raw.metadata_uuid } else { raw.uuid },
            root,
            log: log(raw, &geometry)?,
            has_realtime: raw.realtime_blocks.get() != 0,
            label: raw.label,
            inodes: raw.inodes.get(),
            free_inodes: raw.free_inodes.get(),
            free_blocks: raw.free_blocks.get(),
            inode_percent: raw.inode_percent,
            ignores_case: version & Self::IGNORES_CASE != 0,
        })
    }

    /// Returns the label.
    pub fn label(&self) -> &[u8] {
        self.label.split(|&byte| byte == 0).next().unwrap_or_default()
    }
}

/// Checks a size of which the logarithm is there as well.
fn size(
    field: &'static str,
    bytes: u32,
    bits: u8,
    range: core::ops::RangeInclusive<u8>,
) -> Result<BlockSize, FormatError> {
    let size = BlockSize::new(u64::from(bytes));
    let fits = range.contains(&bits) && u64::from(bytes) == 1_u64 << bits.min(63);
    size.filter(|_| fits).ok_or_else(|| FormatError::Range {
        structure: STRUCTURE,
        field,
        found: u64::from(bytes),
    })
}

/// Checks all that arithmetic relies on.
fn geometry(raw: &RawSuperblock, sector: BlockSize) -> Result<Geometry, FormatError> {
    let block = size("block size", raw.block_size.get(), raw.block_bits, 10..=16)?;
    let inode = u32::from(raw.inode_size.get());
    let inode = size("inode size", inode, raw.inode_size_bits, 9..=11)?;
    let check = |field, found, holds| require(STRUCTURE, field, found, holds);
    check("sector size", sector.bytes(), sector <= block)?;
    check("inode size", inode.bytes(), inode <= block)?;
    let (per_block, inode_bits) = (u64::from(raw.inodes_per_block.get()), raw.inode_bits);
    expect(STRUCTURE, "inodes per block", block.bytes() / inode.bytes(), per_block)?;
    let bits = u64::from(raw.block_bits - raw.inode_size_bits);
    expect(STRUCTURE, "bits of inodes per block", bits, u64::from(inode_bits))?;
    let dir_bits = u64::from(raw.dir_block_bits);
    let dir_block = (dir_bits <= 6).then(|| block.bytes() << dir_bits).and_then(BlockSize::new);
    let dir_block = dir_block.filter(|size| size.bytes() <= 64 << 10);
    check("directory block size", dir_bits, dir_block.is_some())?;
    let (ag_blocks, ag_count) = (raw.ag_blocks.get(), raw.ag_count.get());
    let ag_block_bits = raw.ag_block_bits;
    // The headers are in the first four sectors, and a group has at most 1 TiB.
    let ag_bytes = u64::from(ag_blocks) * block.bytes();
    let ag_fits = ag_bytes > 4 * sector.bytes() && ag_bytes <= 1 << 40;
    check("allocation group size", u64::from(ag_blocks), ag_fits)?;
    let bits = u64::from(ag_blocks.next_power_of_two().trailing_zeros());
    expect(STRUCTURE, "allocation group bits", bits, u64::from(ag_block_bits))?;
    let (blocks, all) = (raw.blocks.get(), u64::from(ag_blocks) * u64::from(ag_count));
    let last = blocks.checked_sub(all - u64::from(ag_blocks).min(all));
    let count_fits = ag_count > 0 && last.is_some_and(|last| last > 0) && blocks <= all;
    check("count of blocks", blocks, count_fits)?;
    check("count of blocks", blocks, blocks.checked_mul(block.bytes()).is_some())?;
    let dir_block = dir_block.unwrap_or(block);
    Ok(Geometry {
        block,
        sector,
        inode,
        dir_block,
        blocks,
        ag_count,
        ag_blocks,
        ag_block_bits,
        inode_bits,
    })
}

/// Finds the log.
fn log(raw: &RawSuperblock, geometry: &Geometry) -> Result<Option<(FsBlock, u32)>, FormatError> {
    let (start, blocks) = (FsBlock(raw.log_start.get()), raw.log_blocks.get());
    if start.0 == 0 {
        return Ok(None);
    }
    let fits = blocks > 0 && geometry.holds(start, u64::from(blocks));
    require(STRUCTURE, "log", start.0, fits)?;
    Ok(Some((start, blocks)))
}

#[cfg(test)]
mod tests;
