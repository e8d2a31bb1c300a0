//! Directories: finding a name, and going through all.

use holdfast_bio::BlockDevice;
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs_format::{
    BlockKind, DirBlockLeaf, DirData, DirEntry, DirLeaf, FREE_OFFSET, FileBlock, FileType,
    FormatError, Ino, LEAF_OFFSET, RawDirLeafEntry, ShortDir, Structure, hash_name,
};

use crate::error::XfsError;
use crate::extents::{ExtentList, MappingState};
use crate::hashes::find_leaf;
use crate::inode::Inode;
use crate::mount::{Block, Xfs};
use crate::source::Piece;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: Box<[u8]>,
    /// The inode it leads to.
    pub ino: Ino,
    /// What that is. [`FileType::Unknown`] when the directory does not say.
    pub file_type: FileType,
    /// The position behind this entry, for [`Xfs::read_dir`].
    pub next: u64,
}

/// Where the entry of a directory for itself would be, in bytes.
const DOT: usize = 64;
/// Where the entry of a directory for its parent would be, in bytes.
const DOT_DOT: usize = 80;
/// Every position behind an entry and before the next one.
const BEHIND: u64 = 8;

const DATA: &[BlockKind] = &[BlockKind::DirData];
const ALONE: &[BlockKind] = &[BlockKind::DirBlock];
const LEAF: &[BlockKind] = &[BlockKind::DirNodeLeaf];
const HASHES: &[BlockKind] = &[BlockKind::DirNodeLeaf, BlockKind::DirLeaf, BlockKind::DaNode];

/// Which form a directory has.
enum Form<'a> {
    Short(ShortDir<'a>),
    /// One block.
    Block,
    /// Blocks of entries, and a tree of their hashes.
    Tree,
}

impl<D: BlockDevice> Xfs<D> {
    /// Finds a name in a directory; `.` and `..` are names like others. In a large directory the tree
    /// of hashes leads to it, and nothing else is read.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotDirectory`], [`XfsError::Corrupt`], and whatever the device says.
    pub fn lookup(&mut self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>, XfsError> {
        let found = match self.form(dir)? {
            Form::Short(short) => Self::lookup_short(dir, &short, name)?,
            Form::Block => self.lookup_block(dir, name)?,
            Form::Tree => self.lookup_tree(dir, name)?,
        };
        if let Some(ino) = found
            && self.superblock.geometry.locate(ino).is_none()
        {
            return Err(XfsError::of_inode(dir.ino())(bad_ino(ino)));
        }
        Ok(found)
    }

    /// Returns entries of a directory from a position on, 0 for the first: as many as are in one block,
    /// and none behind the last. The entries for the directory and its parent come first.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotDirectory`], [`XfsError::Corrupt`], and whatever the device says.
    pub fn read_dir(&mut self, dir: &Inode, position: u64) -> Result<Vec<Entry>, XfsError> {
        let corrupt = XfsError::of_inode(dir.ino());
        match self.form(dir)? {
            Form::Short(short) => {
                let own = own_entries(dir.ino(), short.parent);
                let entries = own.into_iter().map(Ok).chain(short.entries());
                take_entries(entries, 0, position).map_err(corrupt)
            }
            Form::Block => {
                let block = self.dir_block(dir, 0, ALONE)?.ok_or_else(|| corrupt(missing(0)))?;
                let data = DirData::parse_block(&block.bytes).map_err(&corrupt)?;
                take_entries(data.entries(), 0, position).map_err(corrupt)
            }
            Form::Tree => self.read_blocks(dir, position),
        }
    }

    /// Returns the entries of the first block that has any from a position on.
    fn read_blocks(&mut self, dir: &Inode, position: u64) -> Result<Vec<Entry>, XfsError> {
        let corrupt = XfsError::of_inode(dir.ino());
        let size = self.superblock.geometry.dir_block;
        let block_size = self.superblock.geometry.block;
        let list = self.fork_extents(dir, dir.data())?;
        let mut at = size.align_down(position);
        while at < LEAF_OFFSET {
            // There may be holes of any length.
            let Some(extent) = list.at_or_after(FileBlock(block_size.count(at))) else { break };
            at = at.max(size.align_down(extent.file.0 * block_size.bytes()));
            if at >= LEAF_OFFSET {
                break;
            }
            if let Some(block) = self.dir_block(dir, at, DATA)? {
                let data = DirData::parse(&block.bytes).map_err(&corrupt)?;
                let entries = take_entries(data.entries(), at, position).map_err(&corrupt)?;
                if !entries.is_empty() {
                    return Ok(entries);
                }
            }
            at += size.bytes();
        }
        Ok(Vec::new())
    }

    fn form<'a>(&mut self, dir: &'a Inode) -> Result<Form<'a>, XfsError> {
        Self::expect_directory(dir)?;
        if let Some(bytes) = dir.local() {
            let short = ShortDir::parse(bytes).map_err(XfsError::of_inode(dir.ino()))?;
            return Ok(Form::Short(short));
        }
        let geometry = self.superblock.geometry;
        let list = self.fork_extents(dir, dir.data())?;
        let blocks = geometry.block.count(geometry.dir_block.bytes());
        Ok(if list.end() == blocks { Form::Block } else { Form::Tree })
    }

    fn lookup_short(
        dir: &Inode,
        short: &ShortDir<'_>,
        name: &[u8],
    ) -> Result<Option<Ino>, XfsError> {
        match name {
            b"." => return Ok(Some(dir.ino())),
            b".." => return Ok(Some(short.parent)),
            _ => {}
        }
        for entry in short.entries() {
            let entry = entry.map_err(XfsError::of_inode(dir.ino()))?;
            if entry.name == name {
                return Ok(Some(entry.ino));
            }
        }
        Ok(None)
    }

    fn lookup_block(&mut self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>, XfsError> {
        let corrupt = XfsError::of_inode(dir.ino());
        let block = self.dir_block(dir, 0, ALONE)?.ok_or_else(|| corrupt(missing(0)))?;
        let data = DirData::parse_block(&block.bytes).map_err(&corrupt)?;
        let leaf = DirBlockLeaf::parse(&block.bytes).map_err(&corrupt)?;
        for entry in leaf.find(hash_name(name)).iter().filter_map(RawDirLeafEntry::offset) {
            let entry = data.entry_at(to_usize(entry)).map_err(&corrupt)?;
            if entry.name == name {
                return Ok(Some(entry.ino));
            }
        }
        Ok(None)
    }

    fn lookup_tree(&mut self, dir: &Inode, name: &[u8]) -> Result<Option<Ino>, XfsError> {
        let corrupt = XfsError::of_inode(dir.ino());
        let hash = hash_name(name);
        let Some(mut block) = self.first_leaf(dir, hash)? else { return Ok(None) };
        let list = self.fork_extents(dir, dir.data())?;
        // A chain of leaves that is longer than there are leaves goes in a circle.
        let mut left = self.leaves(&list);
        loop {
            let leaf = DirLeaf::parse(&block.bytes).map_err(&corrupt)?;
            for offset in leaf.find(hash).iter().filter_map(RawDirLeafEntry::offset) {
                if let Some(ino) = self.entry_named(dir, offset, name)? {
                    return Ok(Some(ino));
                }
            }
            let Some(next) = leaf.next.filter(|_| leaf.may_go_on(hash)) else { return Ok(None) };
            left = left.checked_sub(1).ok_or_else(|| corrupt(circle(next)))?;
            block = self.hash_block(dir, next, LEAF)?;
        }
    }

    /// Goes down the tree of hashes to the first leaf that may have a hash.
    fn first_leaf(&mut self, dir: &Inode, hash: u32) -> Result<Option<Block>, XfsError> {
        let first = self.superblock.geometry.block.count(LEAF_OFFSET);
        let first = u32::try_from(first).expect("2^35 bytes are at most 2^25 blocks");
        find_leaf(dir.ino(), first, hash, |number, is_leaf| {
            self.hash_block(dir, number, if is_leaf { LEAF } else { HASHES })
        })
    }

    /// Returns how many leaves and nodes a directory may have.
    fn leaves(&self, list: &ExtentList) -> u64 {
        let block = self.superblock.geometry.block;
        let range = block.count(LEAF_OFFSET)..block.count(FREE_OFFSET);
        let extents = list.extents().iter().filter(|extent| range.contains(&extent.file.0));
        extents.map(|extent| extent.blocks).sum()
    }

    /// Returns the inode of the entry at a byte of the directory if it has the name.
    fn entry_named(
        &mut self,
        dir: &Inode,
        offset: u64,
        name: &[u8],
    ) -> Result<Option<Ino>, XfsError> {
        let corrupt = XfsError::of_inode(dir.ino());
        let size = self.superblock.geometry.dir_block;
        let at = size.align_down(offset);
        let block = self.dir_block(dir, at, DATA)?.ok_or_else(|| corrupt(missing(at)))?;
        let data = DirData::parse(&block.bytes).map_err(&corrupt)?;
        let entry = data.entry_at(to_usize(offset - at)).map_err(&corrupt)?;
        Ok((entry.name == name).then_some(entry.ino))
    }

    /// Returns a block of the tree of hashes by its number in blocks of the file system.
    fn hash_block(
        &mut self,
        dir: &Inode,
        number: u32,
        kinds: &[BlockKind],
    ) -> Result<Block, XfsError> {
        let corrupt = XfsError::of_inode(dir.ino());
        let at = u64::from(number) * self.superblock.geometry.block.bytes();
        let fault = || corrupt(missing(at));
        if !self.superblock.geometry.dir_block.is_aligned(at) {
            return Err(fault());
        }
        self.dir_block(dir, at, kinds)?.ok_or_else(fault)
    }

    /// Returns the block of a directory at a byte of it, or `None` in a hole.
    fn dir_block(
        &mut self,
        dir: &Inode,
        at: u64,
        kinds: &[BlockKind],
    ) -> Result<Option<Block>, XfsError> {
        let geometry = self.superblock.geometry;
        let list = self.fork_extents(dir, dir.data())?;
        let len = geometry.dir_block.len();
        let mut pieces = Vec::new();
        let mut done = 0;
        while done < len {
            let offset = at + to_u64(done);
            let mapping = list.map(offset, &geometry);
            let MappingState::Mapped { address } = mapping.state else {
                if done == 0 {
                    return Ok(None);
                }
                return Err(XfsError::of_inode(dir.ino())(missing(offset)));
            };
            let end = len.min(done + to_usize(mapping.end() - offset));
            let address = address + (offset - mapping.offset);
            pieces.push(Piece { address, target: done..end });
            done = end;
        }
        self.block(&pieces, kinds, dir.ino()).map(Some)
    }
}

/// The entries that a directory inside its inode does not have.
const fn own_entries(ino: Ino, parent: Ino) -> [DirEntry<'static>; 2] {
    let file_type = FileType::Directory;
    [
        DirEntry { ino, name: b".", file_type, offset: DOT },
        DirEntry { ino: parent, name: b"..", file_type, offset: DOT_DOT },
    ]
}

/// Keeps the entries of a block that are not before a position. The block begins at a byte of the
/// directory.
fn take_entries<'a>(
    entries: impl Iterator<Item = Result<DirEntry<'a>, FormatError>>,
    block: u64,
    position: u64,
) -> Result<Vec<Entry>, FormatError> {
    let wanted = |entry: &DirEntry<'_>| block + to_u64(entry.offset) >= position;
    entries
        .filter(|entry| entry.as_ref().map_or(true, wanted))
        .map(|entry| {
            let DirEntry { ino, name, file_type, offset } = entry?;
            let next = block + to_u64(offset) + BEHIND;
            Ok(Entry { name: name.into(), ino, file_type, next })
        })
        .collect()
}

/// A part of a directory is in a hole.
const fn missing(offset: u64) -> FormatError {
    FormatError::Range { structure: Structure::DirData, field: "hole at byte", found: offset }
}

const fn circle(next: u32) -> FormatError {
    let found = next as u64;
    FormatError::Range { structure: Structure::DirNodeLeaf, field: "next leaf", found }
}

const fn bad_ino(ino: Ino) -> FormatError {
    FormatError::Range { structure: Structure::DirData, field: "inode of an entry", found: ino.0 }
}
