//! Inodes, as they are kept in memory.

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use holdfast_bio::BlockDevice;
use holdfast_units::to_usize;
use holdfast_xfs_format::{self as format, ForkFormat, Geometry, Ino, Kind, Timestamp};

use crate::error::XfsError;
use crate::extents::ExtentList;
use crate::mount::{Xfs, of};

/// How many bytes of inodes are read at a time.
const CLUSTER: u64 = 16 << 10;

/// A verified inode. Clones share what was read of it.
#[derive(Clone, Debug)]
pub struct Inode {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    stat: Stat,
    bytes: Box<[u8]>,
    data: Fork,
    attributes: Option<Fork>,
    is_realtime: bool,
    may_be_shared: bool,
}

/// A fork of an inode.
#[derive(Debug)]
pub(crate) struct Fork {
    pub(crate) format: ForkFormat,
    range: Range<usize>,
    /// How many extents it has.
    pub(crate) count: u64,
    pub(crate) extents: OnceLock<Arc<ExtentList>>,
}

/// What is known of a file without reading it, as stat(2) and statx(2) have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// The number of its inode.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Type and permissions.
    pub mode: u16,
    /// How many names it has.
    pub links: u32,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The major and minor number of a device.
    pub device: Option<(u32, u32)>,
    /// The size, in bytes.
    pub size: u64,
    /// How much space it takes, in units of 512 bytes.
    pub sectors: u64,
    /// How many bytes should be read at a time.
    pub io_bytes: u64,
    /// When it was last read.
    pub accessed: Timestamp,
    /// When its data were last changed.
    pub modified: Timestamp,
    /// When it was last changed itself.
    pub changed: Timestamp,
    /// When it was made.
    pub created: Timestamp,
    /// Tells it from other files that had its number before.
    pub generation: u32,
    /// Its project.
    pub project: u32,
    /// How many extents its data have.
    pub extents: u64,
    /// How many extents its attributes have.
    pub attribute_extents: u32,
}

impl Stat {
    fn new(inode: &format::Inode<'_>, geometry: &Geometry) -> Self {
        const PAGE: u64 = 4096;
        let raw = inode.raw;
        let is_device = matches!(inode.kind, Kind::Block | Kind::Character);
        let [accessed, modified, changed, created] = inode.times();
        Self {
            ino: Ino(raw.ino.get()),
            kind: inode.kind,
            mode: raw.mode.get(),
            links: raw.links.get(),
            uid: raw.uid.get(),
            gid: raw.gid.get(),
            device: inode.device(),
            size: raw.size.get(),
            sectors: raw.blocks.get().saturating_mul(geometry.block.bytes() / 512),
            io_bytes: if is_device { PAGE } else { geometry.block.bytes().max(PAGE) },
            accessed,
            modified,
            changed,
            created,
            generation: raw.generation.get(),
            project: inode.project(),
            extents: inode.data_extents(),
            attribute_extents: inode.attribute_extents(),
        }
    }
}

impl Inode {
    fn new(bytes: &[u8], inode: &format::Inode<'_>, geometry: &Geometry) -> Self {
        let core = size_of::<format::RawInode>();
        let data_end = core + inode.data_fork.len();
        let fork = |format, range, count| Fork { format, range, count, extents: OnceLock::new() };
        let attributes = inode.attribute_fork.map(|(format, _)| {
            fork(format, data_end..bytes.len(), u64::from(inode.attribute_extents()))
        });
        let shared = Shared {
            stat: Stat::new(inode, geometry),
            bytes: bytes.into(),
            data: fork(inode.data_format, core..data_end, inode.data_extents()),
            attributes,
            is_realtime: inode.is_realtime(),
            may_be_shared: inode.may_be_shared(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns its number.
    pub fn ino(&self) -> Ino {
        self.shared.stat.ino
    }

    /// Returns what it is.
    pub fn kind(&self) -> Kind {
        self.shared.stat.kind
    }

    /// Returns the size of the file, in bytes.
    pub fn size(&self) -> u64 {
        self.shared.stat.size
    }

    /// Returns whether it is a directory.
    pub fn is_directory(&self) -> bool {
        self.kind() == Kind::Directory
    }

    /// Returns what is known of the file.
    pub fn stat(&self) -> &Stat {
        &self.shared.stat
    }

    pub(crate) fn data(&self) -> &Fork {
        &self.shared.data
    }

    pub(crate) fn attributes(&self) -> Option<&Fork> {
        self.shared.attributes.as_ref()
    }

    pub(crate) fn bytes_of(&self, fork: &Fork) -> &[u8] {
        &self.shared.bytes[fork.range.clone()]
    }

    /// Returns which of the bytes of the inode are its data fork.
    pub(crate) fn data_range(&self) -> Range<usize> {
        self.shared.data.range.clone()
    }

    /// Returns whether other files may have some of its blocks, too.
    pub fn may_be_shared(&self) -> bool {
        self.shared.may_be_shared
    }

    /// Returns the contents that are in the inode itself.
    pub(crate) fn local(&self) -> Option<&[u8]> {
        let bytes = self.bytes_of(self.data());
        (self.data().format == ForkFormat::Local).then(|| &bytes[..to_usize(self.size())])
    }

    /// Fails when the data are on another device.
    pub(crate) fn check_data(&self) -> Result<(), XfsError> {
        if self.shared.is_realtime && self.kind() == Kind::Regular {
            return Err(XfsError::Realtime { ino: self.ino() });
        }
        Ok(())
    }

    /// How much memory it takes, without its extents.
    fn weight(&self) -> usize {
        size_of::<Shared>() + self.shared.bytes.len()
    }
}

/// Returns where the bytes are with which an inode is read, how many they are, and where it is in them.
pub(crate) fn cluster_of(geometry: &Geometry, ino: Ino) -> Result<(u64, usize, usize), XfsError> {
    let (block, offset) = geometry.locate(ino).ok_or(XfsError::NoInode { ino })?;
    let (ag, number) = geometry.split(block).ok_or(XfsError::NoInode { ino })?;
    let blocks = u32::try_from(geometry.block.count(CLUSTER)).map_or(1, |count| count.max(1));
    let first = number - number % blocks;
    let blocks = blocks.min(geometry.ag_len(ag) - first);
    let address = geometry.ag_address(ag) + u64::from(first) * geometry.block.bytes();
    let len = to_usize(u64::from(blocks) * geometry.block.bytes());
    let at = to_usize(u64::from(number - first) * geometry.block.bytes()) + offset;
    Ok((address, len, at))
}

impl<D: BlockDevice> Xfs<D> {
    /// Returns an inode by its number.
    ///
    /// # Errors
    ///
    /// [`XfsError::NoInode`] when there is no place for such an inode or it is free,
    /// [`XfsError::Corrupt`], and whatever the device says.
    pub fn inode(&mut self, ino: Ino) -> Result<Inode, XfsError> {
        if let Some(inode) = self.inodes.find(ino) {
            return Ok(inode);
        }
        let geometry = self.superblock.geometry;
        let (address, len, at) = cluster_of(&geometry, ino)?;
        let cluster = self.inode_cluster(address, len).map_err(|error| of(ino, error))?;
        let bytes = &cluster[at..][..geometry.inode.len()];
        if format::Inode::is_free(bytes) {
            return Err(XfsError::NoInode { ino });
        }
        let parsed = format::Inode::parse(bytes, &self.superblock.metadata_uuid, ino)
            .map_err(XfsError::at(ino, address + holdfast_units::to_u64(at)))?;
        let inode = Inode::new(bytes, &parsed, &geometry);
        self.inodes.insert(ino, inode.clone(), inode.weight());
        Ok(inode)
    }

    /// Returns an inode that must be of a directory.
    pub(crate) fn expect_directory(inode: &Inode) -> Result<(), XfsError> {
        if inode.is_directory() {
            return Ok(());
        }
        Err(XfsError::NotDirectory { ino: inode.ino() })
    }
}
