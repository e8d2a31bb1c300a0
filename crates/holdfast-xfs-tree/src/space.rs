//! The space of all allocation groups.

use holdfast_xfs_format::{FormatError, FsBlock, Structure};

use crate::blocks::Blocks;
use crate::error::TreeError;
use crate::file_system::FileSystem;
use crate::free::{Request, Run};
use crate::group::Group;
use crate::rmap::Owner;

/// Blocks of the file system, one after the other, in one allocation group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    /// The first.
    pub block: FsBlock,
    /// How many there are.
    pub blocks: u32,
}

/// What is to be allocated, anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The fewest blocks that are of use. Above 0.
    pub min: u32,
    /// How many blocks are wanted.
    pub max: u32,
    /// The block that they should be at, or near.
    pub near: FsBlock,
    /// What the number of the first in its group must be a multiple of. Above 0.
    pub alignment: u32,
}

/// The space of a file system, which is being changed.
#[derive(Debug)]
pub struct Space<'b, B> {
    file_system: &'b FileSystem,
    pub(crate) blocks: &'b mut B,
}

impl<'b, B: Blocks> Space<'b, B> {
    /// Returns the space of a file system, whose metadata are in `blocks`.
    pub const fn new(file_system: &'b FileSystem, blocks: &'b mut B) -> Self {
        Self { file_system, blocks }
    }

    /// Returns what the superblock says.
    pub const fn file_system(&self) -> &'b FileSystem {
        self.file_system
    }

    /// Returns an allocation group, which must exist.
    pub const fn group(&mut self, ag: u32) -> Group<'_, B> {
        Group::new(self.file_system, self.blocks, ag)
    }

    /// Allocates blocks for a file: in the group that is wanted, else in another; all that are wanted,
    /// else fewer. Whoever maps them says whose they are.
    ///
    /// # Errors
    ///
    /// [`TreeError::Full`], and as for [`Group::allocate`].
    pub fn allocate(&mut self, wanted: &Wanted) -> Result<Span, B::Error> {
        let whole = Wanted { min: wanted.max.max(wanted.min), ..*wanted };
        let mut found = self.in_some_group(&whole, |group, request| group.allocate(request))?;
        if found.is_none() && wanted.min < wanted.max {
            found = self.in_some_group(wanted, |group, request| group.allocate(request))?;
        }
        found.ok_or_else(|| TreeError::Full.into())
    }

    /// Allocates a block for the tree of a file's extents: of those that are kept, if there are no
    /// others.
    pub(crate) fn allocate_tree_block(&mut self, near: FsBlock) -> Result<FsBlock, B::Error> {
        let wanted = Wanted { min: 1, max: 1, near, alignment: 1 };
        let mut found = self.in_some_group(&wanted, |group, request| group.allocate(request))?;
        if found.is_none() {
            found = self.in_some_group(&wanted, |group, request| group.allocate_kept(request))?;
        }
        found.map(|span| span.block).ok_or_else(|| TreeError::Full.into())
    }

    /// Frees blocks that nobody owns any more.
    ///
    /// # Errors
    ///
    /// As for [`Group::free`].
    pub fn free(&mut self, span: Span) -> Result<(), B::Error> {
        let (ag, run) = self.locate(span)?;
        self.group(ag).free(run)
    }

    /// Stores that one file less has these blocks, and frees those that no other has.
    ///
    /// # Errors
    ///
    /// As for [`Group::release`].
    pub fn release(&mut self, span: Span) -> Result<(), B::Error> {
        let (ag, run) = self.locate(span)?;
        self.group(ag).release(run)
    }

    /// Stores that one more file has these blocks.
    ///
    /// # Errors
    ///
    /// As for [`Group::share`].
    pub fn share(&mut self, span: Span) -> Result<(), B::Error> {
        let (ag, run) = self.locate(span)?;
        self.group(ag).share(run)
    }

    /// Returns the first of these blocks that are shared, all that follow one another.
    ///
    /// # Errors
    ///
    /// As for [`Group::shared`].
    pub fn shared(&mut self, span: Span) -> Result<Option<Span>, B::Error> {
        let (ag, run) = self.locate(span)?;
        let block_in = |number| self.file_system.geometry.block_in(ag, number);
        let found = Group::new(self.file_system, self.blocks, ag).shared(run)?;
        Ok(found.map(|run| Span { block: block_in(run.start), blocks: run.blocks }))
    }

    /// Stores who owns blocks now.
    ///
    /// # Errors
    ///
    /// As for [`Group::add_owner`].
    pub fn add_owner(&mut self, span: Span, owner: &Owner) -> Result<(), B::Error> {
        let (ag, run) = self.locate(span)?;
        self.group(ag).add_owner(run, owner)
    }

    /// Stores that blocks are not this owner's any more.
    ///
    /// # Errors
    ///
    /// As for [`Group::remove_owner`].
    pub fn remove_owner(&mut self, span: Span, owner: &Owner) -> Result<(), B::Error> {
        let (ag, run) = self.locate(span)?;
        self.group(ag).remove_owner(run, owner)
    }

    /// Tries one group after the other, from the one that is wanted on.
    fn in_some_group(
        &mut self,
        wanted: &Wanted,
        allocate: impl Fn(&mut Group<'_, B>, &Request) -> Result<Option<Run>, B::Error>,
    ) -> Result<Option<Span>, B::Error> {
        let geometry = self.file_system.geometry;
        let (first, near) = geometry.split(wanted.near).unwrap_or((0, 0));
        for ag in (first..geometry.ag_count).chain(0..first) {
            let near = if ag == first { near } else { 0 };
            let Wanted { min, max, alignment, .. } = *wanted;
            let request = Request { min, max, near, alignment };
            if let Some(run) = allocate(&mut self.group(ag), &request)? {
                let block = geometry.block_in(ag, run.start);
                return Ok(Some(Span { block, blocks: run.blocks }));
            }
        }
        Ok(None)
    }

    fn locate(&self, span: Span) -> Result<(u32, Run), B::Error> {
        let geometry = &self.file_system.geometry;
        let inside = geometry.holds(span.block, u64::from(span.blocks)) && span.blocks > 0;
        match geometry.split(span.block).filter(|_| inside) {
            Some((ag, start)) => Ok((ag, Run { start, blocks: span.blocks })),
            None => {
                let (structure, field) = (Structure::Extent, "block");
                let source = FormatError::Range { structure, field, found: span.block.0 };
                let ag = u32::try_from(span.block.0 >> geometry.ag_block_bits).unwrap_or(u32::MAX);
                Err(TreeError::Group { ag, block: span.block.0, source }.into())
            }
        }
    }
}
