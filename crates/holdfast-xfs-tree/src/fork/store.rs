//! Single extents of a fork, wherever they are stored, and the change between the two forms.

use holdfast_units::{to_u64, to_usize};
use holdfast_xfs_format::{
    BlockKind, Extent, FileBlock, FormatError, FsBlock, Ino, LEVELS_MAX, Structure,
};

use super::{BmapFork, EXTENT};
use crate::blocks::{BlockRef, Blocks, Role};
use crate::bmap::Bmap;
use crate::error::TreeError;
use crate::node::{Entries, Layout};
use crate::rmap::Owner;
use crate::shape::Shape;
use crate::space::{Space, Span};
use crate::tree::{Home, Place, Root, Tree};

/// The tree of a fork: its root, and its blocks.
#[derive(Debug)]
struct ForkTree<'f, 's, 'b, B> {
    ino: Ino,
    is_attribute: bool,
    bytes: &'f mut Vec<u8>,
    blocks_added: &'f mut i64,
    space: &'s mut Space<'b, B>,
}

impl BmapFork {
    /// Returns the last extent that begins before a block of the file, or there.
    pub(super) fn before<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        file: FileBlock,
    ) -> Result<Option<Extent>, B::Error> {
        let found = if self.is_tree {
            self.tree(space).at_or_before(&file.0)?.map(|(_, found)| found)
        } else {
            self.inline().take_while(|found| found.file <= file).last()
        };
        let found = found.map(|found| self.check(found, space)).transpose()?;
        if found.is_some_and(|found| found.file > file) {
            return self.refuse(file.0, "the extents are not in order");
        }
        Ok(found)
    }

    /// Returns the first extent that begins at a block of the file, or behind it.
    pub(super) fn after<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        file: FileBlock,
    ) -> Result<Option<Extent>, B::Error> {
        let found = if self.is_tree {
            self.tree(space).at_or_after(&file.0)?.map(|(_, found)| found)
        } else {
            self.inline().find(|found| found.file >= file)
        };
        let found = found.map(|found| self.check(found, space)).transpose()?;
        if found.is_some_and(|found| found.file < file) {
            return self.refuse(file.0, "the extents are not in order");
        }
        Ok(found)
    }

    /// Stores an extent more.
    pub(super) fn put<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        extent: &Extent,
    ) -> Result<(), B::Error> {
        if !self.is_tree && self.count == self.inline_max() {
            self.become_tree(space)?;
        }
        if self.is_tree {
            self.tree(space).insert(extent)?;
        } else {
            let mut extents: Vec<Extent> = self.inline().collect();
            let index = extents.partition_point(|found| found.file < extent.file);
            extents.insert(index, *extent);
            self.store_inline(&extents);
        }
        self.count += 1;
        Ok(())
    }

    /// Stores an extent less.
    pub(super) fn take<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        extent: &Extent,
    ) -> Result<(), B::Error> {
        // A tree is never empty. Where a few extents are left, some may come soon again.
        if self.is_tree && self.count <= self.inline_max().saturating_sub(2).max(1) {
            self.become_inline(space)?;
        }
        if self.is_tree {
            match self.tree(space).exactly(&extent.file.0)? {
                Some((path, _)) => self.tree(space).remove(path)?,
                None => return self.missing(extent),
            }
        } else {
            let extents: Vec<Extent> = self.inline().filter(|found| found != extent).collect();
            self.store_inline(&extents);
        }
        self.count = self.count.saturating_sub(1);
        Ok(())
    }

    /// Stores one extent in the place of another.
    pub(super) fn set<B: Blocks>(
        &mut self,
        space: &mut Space<'_, B>,
        old: &Extent,
        new: &Extent,
    ) -> Result<(), B::Error> {
        if self.is_tree {
            return match self.tree(space).exactly(&old.file.0)? {
                Some((path, _)) => self.tree(space).update(&path, new),
                None => self.missing(old),
            };
        }
        let replaced = self.inline().map(|found| if found == *old { *new } else { found });
        let extents: Vec<Extent> = replaced.collect();
        self.store_inline(&extents);
        Ok(())
    }

    /// Stores the extents in the inode, if there is room for them.
    pub(super) fn settle<B: Blocks>(&mut self, space: &mut Space<'_, B>) -> Result<(), B::Error> {
        if self.is_tree && self.count <= self.inline_max() {
            self.become_inline(space)?;
        }
        Ok(())
    }

    fn missing<E: From<TreeError>>(&self, extent: &Extent) -> Result<(), E> {
        self.refuse(extent.file.0, "the tree does not have an extent that it has")
    }

    /// Returns how many extents the inode has room for.
    fn inline_max(&self) -> u64 {
        to_u64(self.bytes.len() / EXTENT)
    }

    /// Returns the extents that are in the inode.
    fn inline(&self) -> impl Iterator<Item = Extent> + '_ {
        self.bytes.chunks_exact(EXTENT).take(to_usize(self.count)).map(Bmap::decode)
    }

    fn store_inline(&mut self, extents: &[Extent]) {
        self.bytes.fill(0);
        for (extent, bytes) in extents.iter().zip(self.bytes.chunks_exact_mut(EXTENT)) {
            Bmap::encode(extent, bytes);
        }
    }

    /// Checks an extent that was found.
    fn check<B: Blocks>(&self, extent: Extent, space: &Space<'_, B>) -> Result<Extent, TreeError> {
        Extent::parse(&extent.encode(), &space.file_system().geometry, 0)
            .map_err(|source| TreeError::File { ino: self.ino, block: 0, source })
    }

    fn tree<'f, 's, 'b, B: Blocks>(
        &'f mut self,
        space: &'s mut Space<'b, B>,
    ) -> Tree<Bmap, ForkTree<'f, 's, 'b, B>> {
        Tree::new(ForkTree {
            ino: self.ino,
            is_attribute: self.is_attribute,
            bytes: &mut self.bytes,
            blocks_added: &mut self.blocks_added,
            space,
        })
    }

    /// Moves the extents from the inode to a block, which the inode then points to.
    fn become_tree<B: Blocks>(&mut self, space: &mut Space<'_, B>) -> Result<(), B::Error> {
        let extents: Vec<Extent> = self.inline().collect();
        let len = self.bytes.len();
        let room = Layout::<Bmap>::block(space.file_system().geometry.block.len()).most(0);
        let root = Layout::<Bmap>::fork(len);
        if root.most(1) == 0 || extents.is_empty() || extents.len() > room {
            return self.refuse(0, "the inode has no room for a tree of extents");
        }
        let mut tree = self.tree(space);
        let new = tree.home.take()?;
        let bytes = tree.home.edit(Place::Block(new))?;
        let layout = Layout::<Bmap>::block(bytes.len());
        layout.set_left(bytes, None);
        layout.set_right(bytes, None);
        for (index, extent) in extents.iter().enumerate() {
            layout.paste(bytes, index, &Entries::record::<Bmap>(extent));
        }
        let entry = Entries::pointer::<Bmap>(layout.keys(bytes), new);
        self.bytes.fill(0);
        root.set_level(&mut self.bytes, 1);
        root.paste(&mut self.bytes, 0, &entry);
        self.is_tree = true;
        Ok(())
    }

    /// Moves the extents from the tree to the inode, and gives the blocks of the tree back.
    fn become_inline<B: Blocks>(&mut self, space: &mut Space<'_, B>) -> Result<(), B::Error> {
        let max = to_usize(self.inline_max());
        let mut tree = self.tree(space);
        let (extents, blocks) = tree.everything(max)?;
        blocks.into_iter().try_for_each(|block| tree.home.give(block))?;
        if to_u64(extents.len()) != self.count {
            return self.refuse(0, "the inode does not count the extents that its tree has");
        }
        self.store_inline(&extents);
        self.is_tree = false;
        Ok(())
    }
}

impl<B: Blocks> ForkTree<'_, '_, '_, B> {
    fn locate(&self, place: Place) -> Result<BlockRef, TreeError> {
        let geometry = &self.space.file_system().geometry;
        let found = match place {
            Place::Fork => None,
            Place::Block(block) => geometry.address_of(FsBlock(block)),
        };
        let address = found.ok_or_else(|| self.fault(place, "pointer", 0))?;
        let role = Role::Block(BlockKind::Bmap);
        Ok(BlockRef { address, len: geometry.block.len(), role, owner: self.ino.0 })
    }
}

impl<B: Blocks> Home for ForkTree<'_, '_, '_, B> {
    type Error = B::Error;

    fn root(&mut self) -> Result<Root, B::Error> {
        let found = self.bytes.first_chunk().map_or(0, |bytes| u16::from_be_bytes(*bytes));
        if !(1..LEVELS_MAX).contains(&found) {
            return Err(self.fault(Place::Fork, "level", u64::from(found)).into());
        }
        Ok(Root { place: Place::Fork, levels: found + 1 })
    }

    fn set_root(&mut self, block: u64, _levels: u16) -> Result<(), B::Error> {
        // The root of this tree stays where it is.
        Err(self.fault(Place::Fork, "pointer", block).into())
    }

    fn view(&mut self, place: Place) -> Result<&[u8], B::Error> {
        if place == Place::Fork {
            return Ok(self.bytes);
        }
        let block = self.locate(place)?;
        self.space.blocks.view(block)
    }

    fn edit(&mut self, place: Place) -> Result<&mut [u8], B::Error> {
        if place == Place::Fork {
            return Ok(self.bytes);
        }
        let block = self.locate(place)?;
        self.space.blocks.edit(block)
    }

    fn take(&mut self) -> Result<u64, B::Error> {
        let near = FsBlock(self.ino.0 >> self.space.file_system().geometry.inode_bits);
        let block = self.space.allocate_tree_block(near)?;
        let owner = Owner::extent_tree(self.ino, self.is_attribute);
        self.space.add_owner(Span { block, blocks: 1 }, &owner)?;
        let at = self.locate(Place::Block(block.0))?;
        self.space.blocks.create(at)?;
        *self.blocks_added = self.blocks_added.saturating_add(1);
        Ok(block.0)
    }

    fn give(&mut self, block: u64) -> Result<(), B::Error> {
        let at = self.locate(Place::Block(block))?;
        self.space.blocks.forget(at);
        let span = Span { block: FsBlock(block), blocks: 1 };
        let owner = Owner::extent_tree(self.ino, self.is_attribute);
        self.space.remove_owner(span, &owner)?;
        *self.blocks_added = self.blocks_added.saturating_sub(1);
        self.space.free(span)
    }

    fn fault(&self, place: Place, field: &'static str, found: u64) -> TreeError {
        let (structure, block) = match place {
            Place::Fork => (Structure::BmapRoot, 0),
            Place::Block(block) => (Structure::BmapBlock, block),
        };
        let source = FormatError::Range { structure, field, found };
        TreeError::File { ino: self.ino, block, source }
    }
}
