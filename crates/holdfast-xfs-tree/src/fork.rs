//! The extents of a file, or of its attributes, as an edit of the inode's fork.

mod store;

use holdfast_units::to_u64;
use holdfast_xfs_format::{Extent, FileBlock, ForkFormat, FormatError, FsBlock, Ino, Structure};

use crate::blocks::Blocks;
use crate::error::TreeError;
use crate::rmap::Owner;
use crate::space::{Space, Span};

/// The size of an extent in an inode, in bytes.
const EXTENT: usize = 16;

/// A fork of an inode that has extents, or the root of a tree of them.
///
/// It is a copy: whoever took it from an inode stores it there again, with format and count, and adds
/// [`blocks_added`](Self::blocks_added) to the inode's count of blocks.
#[derive(Clone, Debug)]
pub struct BmapFork {
    ino: Ino,
    is_attribute: bool,
    is_tree: bool,
    bytes: Vec<u8>,
    count: u64,
    blocks_added: i64,
}

impl BmapFork {
    /// Takes a fork of an inode: all bytes that it may have there, and how many extents it has.
    ///
    /// # Errors
    ///
    /// [`TreeError::File`] for a fork that holds something else, or has no room for its extents.
    pub fn new(
        ino: Ino,
        is_attribute: bool,
        format: ForkFormat,
        bytes: &[u8],
        count: u64,
    ) -> Result<Self, TreeError> {
        let is_tree = format == ForkFormat::Btree;
        let fault = |field, found| {
            let source = FormatError::Range { structure: Structure::Inode, field, found };
            TreeError::File { ino, block: 0, source }
        };
        if !is_tree && format != ForkFormat::Extents {
            return Err(fault("fork format", 0));
        }
        if count > to_u64(bytes.len() / EXTENT) && !is_tree {
            return Err(fault("count of extents", count));
        }
        let bytes = bytes.to_vec();
        Ok(Self { ino, is_attribute, is_tree, bytes, count, blocks_added: 0 })
    }

    /// Returns how the fork is stored now.
    pub const fn format(&self) -> ForkFormat {
        if self.is_tree { ForkFormat::Btree } else { ForkFormat::Extents }
    }

    /// Returns the bytes of the fork, as many as there were.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns how many extents there are.
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns how many blocks more the inode has than when the fork was taken, its tree included.
    pub const fn blocks_added(&self) -> i64 {
        self.blocks_added
    }

    /// Returns the extent that holds a block of the file, or the first one behind it.
    ///
    /// # Errors
    ///
    /// [`TreeError::File`].
    pub fn find<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        file: FileBlock,
    ) -> Result<Option<Extent>, B::Error> {
        let before = self.before(space, file)?;
        match before.filter(|before| before.file_end() > file.0) {
            None => self.after(space, file),
            found => Ok(found),
        }
    }

    /// Returns all extents.
    ///
    /// # Errors
    ///
    /// [`TreeError::File`].
    pub fn extents<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
    ) -> Result<Vec<Extent>, B::Error> {
        let mut extents = Vec::new();
        let mut at = 0;
        while let Some(extent) = self.find(space, FileBlock(at))? {
            at = extent.file_end();
            extents.push(extent);
        }
        Ok(extents)
    }

    /// Maps blocks, where the file has a hole. They become this file's.
    ///
    /// # Errors
    ///
    /// [`TreeError::Mapping`] when there is no hole, [`TreeError::Full`], and what is found to be damaged.
    pub fn insert<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        extent: &Extent,
    ) -> Result<(), B::Error> {
        self.map(space, extent)?;
        self.settle(space)
    }

    /// Makes a hole, and returns what was mapped there. It is not this file's any more, and is to be
    /// released by [`Space::release`].
    ///
    /// # Errors
    ///
    /// [`TreeError::Full`], and what is found to be damaged.
    pub fn remove<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        file: FileBlock,
        blocks: u64,
    ) -> Result<Vec<Extent>, B::Error> {
        let removed = self.unmap(space, file, blocks)?;
        self.settle(space)?;
        Ok(removed)
    }

    /// Makes blocks unwritten, or written. All must be mapped.
    ///
    /// # Errors
    ///
    /// [`TreeError::Mapping`] when there is a hole, [`TreeError::Full`], and what is found to be damaged.
    pub fn convert<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        file: FileBlock,
        blocks: u64,
        unwritten: bool,
    ) -> Result<(), B::Error> {
        let end = self.end(file, blocks)?;
        let mut at = file.0;
        while at < end {
            let found = self.find(space, FileBlock(at))?;
            let Some(found) = found.filter(|found| found.file.0 <= at) else {
                return self.refuse(at, "there is a hole where blocks are to be converted");
            };
            let until = found.file_end().min(end);
            if found.unwritten != unwritten {
                for part in self.unmap(space, FileBlock(at), until - at)? {
                    self.map(space, &Extent { unwritten, ..part })?;
                }
            }
            at = until;
        }
        self.settle(space)
    }

    /// Maps other blocks, and returns what was mapped there until now, which is to be released by
    /// [`Space::release`].
    ///
    /// # Errors
    ///
    /// [`TreeError::Full`], and what is found to be damaged.
    pub fn replace<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        extent: &Extent,
    ) -> Result<Vec<Extent>, B::Error> {
        let removed = self.unmap(space, extent.file, extent.blocks)?;
        self.map(space, extent)?;
        self.settle(space)?;
        Ok(removed)
    }

    fn map<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        extent: &Extent,
    ) -> Result<(), B::Error> {
        let end = self.end(extent.file, extent.blocks)?;
        if self.find(space, extent.file)?.is_some_and(|found| found.file.0 < end) {
            return self.refuse(extent.file.0, "there is no hole where blocks are to be mapped");
        }
        space.add_owner(self.span(extent)?, &self.owner(extent))?;
        self.blocks_added = self.blocks_added.saturating_add_unsigned(extent.blocks);
        let before = self.before(space, extent.file)?.filter(|before| joins(before, extent));
        let first = before.unwrap_or(*extent);
        let joined = Extent { blocks: extent.file_end() - first.file.0, ..first };
        let after = self.after(space, FileBlock(end))?.filter(|after| joins(&joined, after));
        let all =
            Extent { blocks: after.map_or(end, |after| after.file_end()) - first.file.0, ..first };
        if let Some(after) = after {
            self.take(space, &after)?;
        }
        match before {
            Some(before) => self.set(space, &before, &all),
            None => self.put(space, &all),
        }
    }

    fn unmap<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        file: FileBlock,
        blocks: u64,
    ) -> Result<Vec<Extent>, B::Error> {
        let end = self.end(file, blocks)?;
        let mut removed = Vec::new();
        let mut at = file.0;
        while let Some(found) = self.find(space, FileBlock(at))? {
            if found.file.0 >= end {
                break;
            }
            let before = cut(&found, found.file.0, at);
            let part = cut(&found, at.max(found.file.0), end);
            let after = cut(&found, end, found.file_end());
            match (before, after) {
                (None, None) => self.take(space, &found)?,
                (Some(rest), None) | (None, Some(rest)) => self.set(space, &found, &rest)?,
                (Some(before), Some(after)) => {
                    self.set(space, &found, &before)?;
                    self.put(space, &after)?;
                }
            }
            at = found.file_end().min(end);
            if let Some(part) = part {
                space.remove_owner(self.span(&part)?, &self.owner(&part))?;
                self.blocks_added = self.blocks_added.saturating_sub_unsigned(part.blocks);
                removed.push(part);
            }
        }
        Ok(removed)
    }

    /// Returns the block of the file behind a range.
    fn end(&self, file: FileBlock, blocks: u64) -> Result<u64, TreeError> {
        const END: u64 = 1 << 54;
        let end = file.0.checked_add(blocks).filter(|&end| end <= END && blocks > 0);
        let fault = "a range is empty, or ends where no file can";
        end.ok_or(TreeError::Mapping { ino: self.ino, file, fault })
    }

    fn span(&self, extent: &Extent) -> Result<Span, TreeError> {
        let blocks = u32::try_from(extent.blocks).ok();
        let fault = "an extent is too long";
        let blocks = blocks.filter(|_| extent.blocks <= Extent::BLOCKS_MAX);
        let blocks =
            blocks.ok_or(TreeError::Mapping { ino: self.ino, file: extent.file, fault })?;
        Ok(Span { block: extent.block, blocks })
    }

    const fn owner(&self, extent: &Extent) -> Owner {
        Owner::file(self.ino, extent.file, self.is_attribute, extent.unwritten)
    }

    fn refuse<T, E: From<TreeError>>(&self, file: u64, fault: &'static str) -> Result<T, E> {
        Err(TreeError::Mapping { ino: self.ino, file: FileBlock(file), fault }.into())
    }
}

/// Returns the part of an extent between two blocks of the file.
fn cut(extent: &Extent, from: u64, until: u64) -> Option<Extent> {
    let from = from.max(extent.file.0);
    let blocks = until.min(extent.file_end()).checked_sub(from).filter(|&blocks| blocks > 0)?;
    let block = FsBlock(extent.block.0 + (from - extent.file.0));
    Some(Extent { file: FileBlock(from), block, blocks, unwritten: extent.unwritten })
}

/// Returns whether two extents can be one.
const fn joins(first: &Extent, second: &Extent) -> bool {
    first.file_end() == second.file.0
        && first.block.0 + first.blocks == second.block.0
        && first.unwritten == second.unwritten
        && first.blocks + second.blocks <= Extent::BLOCKS_MAX
}
