//! One allocation group: its headers, and the trees that begin there.

use holdfast_xfs_format::{BlockKind, FormatError, LEVELS_MAX, RawAgf, Structure};
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::U32;

use crate::blocks::{BlockRef, Blocks, Role};
use crate::error::TreeError;
use crate::file_system::FileSystem;
use crate::free::{Request, Run};
use crate::rmap::Owner;
use crate::shape::Shape;
use crate::tree::{Home, Place, Root, Tree};

/// An allocation group, whose space is being changed.
#[derive(Debug)]
pub struct Group<'b, B> {
    pub(crate) file_system: &'b FileSystem,
    pub(crate) blocks: &'b mut B,
    pub(crate) ag: u32,
}

/// A tree of an allocation group: where it begins, and its blocks.
#[derive(Debug)]
pub(crate) struct GroupTree<'g, 'b, B> {
    pub(crate) group: &'g mut Group<'b, B>,
    kind: BlockKind,
}

impl<'b, B: Blocks> Group<'b, B> {
    /// Returns the allocation group `ag`, which must exist.
    pub const fn new(file_system: &'b FileSystem, blocks: &'b mut B, ag: u32) -> Self {
        Self { file_system, blocks, ag }
    }

    /// Returns how many blocks the superblock counts as free here: those that are free, and those that
    /// the trees have or keep for themselves, but for their roots.
    ///
    /// # Errors
    ///
    /// The AGF cannot be had.
    pub fn counted_free(&mut self) -> Result<u64, B::Error> {
        let agf = self.agf()?;
        Ok([agf.free_blocks, agf.list_count, agf.btree_blocks]
            .map(|count| u64::from(count.get()))
            .iter()
            .sum())
    }

    pub(crate) fn tree<S: Shape>(&mut self) -> Tree<S, GroupTree<'_, 'b, B>> {
        Tree::new(GroupTree { group: self, kind: S::KIND })
    }

    /// Returns how many blocks the group has.
    pub(crate) fn len(&self) -> u32 {
        self.file_system.geometry.ag_len(self.ag)
    }

    pub(crate) fn header(&self, role: Role) -> BlockRef {
        let sector = self.file_system.geometry.sector;
        let index = match role {
            Role::Agf => 1,
            Role::Agi => 2,
            Role::Agfl | Role::Block(_) => 3,
        };
        BlockRef {
            address: self.file_system.geometry.ag_address(self.ag) + index * sector.bytes(),
            len: sector.len(),
            role,
            owner: u64::from(self.ag),
        }
    }

    /// Returns a block of one of the trees, or `None` for a number that no such block has.
    fn block(&self, kind: BlockKind, number: u64) -> Option<BlockRef> {
        let geometry = &self.file_system.geometry;
        let number = u32::try_from(number).ok()?;
        let behind_headers =
            u64::from(number) * geometry.block.bytes() >= 4 * geometry.sector.bytes();
        let address = geometry.address_of(geometry.block_in(self.ag, number));
        Some(BlockRef {
            address: address.filter(|_| number < self.len() && behind_headers)?,
            len: geometry.block.len(),
            role: Role::Block(kind),
            owner: u64::from(self.ag),
        })
    }

    pub(crate) fn agf(&mut self) -> Result<RawAgf, B::Error> {
        let (at, ag) = (self.header(Role::Agf), self.ag);
        let bytes = self.blocks.view(at)?;
        let (agf, _) = RawAgf::ref_from_prefix(bytes).map_err(|_| short(ag, bytes.len()))?;
        Ok(agf.clone())
    }

    pub(crate) fn change_agf(
        &mut self,
        change: impl FnOnce(&mut RawAgf) -> bool,
    ) -> Result<(), B::Error> {
        let (at, ag) = (self.header(Role::Agf), self.ag);
        let bytes = self.blocks.edit(at)?;
        let found = bytes.len();
        let (agf, _) = RawAgf::mut_from_prefix(bytes).map_err(|_| short(ag, found))?;
        if change(agf) {
            return Ok(());
        }
        let field = "count of blocks";
        Err(self.fault(0, FormatError::Range { structure: Structure::Agf, field, found: 0 }).into())
    }

    /// Counts a block more or less of a tree whose blocks come from the AGFL.
    fn count_block(&mut self, kind: BlockKind, delta: i64) -> Result<(), B::Error> {
        self.change_agf(|agf| {
            let is_rmap = kind == BlockKind::Rmap;
            add(&mut agf.btree_blocks, delta) && (!is_rmap || add(&mut agf.rmap_blocks, delta))
        })
    }

    /// Takes a block from free space for the tree of shared extents.
    fn take_for_sharing(&mut self) -> Result<u32, B::Error> {
        let near = self.agf()?.refcount_root.get();
        let request = Request { min: 1, max: 1, near, alignment: 1 };
        let Some(run) = self.allocate_kept(&request)? else {
            return Err(TreeError::Full.into());
        };
        self.own(run, &Owner::REFCOUNT)?;
        self.change_agf(|agf| add(&mut agf.refcount_blocks, 1))?;
        Ok(run.start)
    }

    fn give_from_sharing(&mut self, number: u32) -> Result<(), B::Error> {
        let run = Run { start: number, blocks: 1 };
        self.change_agf(|agf| add(&mut agf.refcount_blocks, -1))?;
        self.remove_owner(run, &Owner::REFCOUNT)?;
        self.free(run)
    }

    pub(crate) const fn fault(&self, block: u64, source: FormatError) -> TreeError {
        TreeError::Group { ag: self.ag, block, source }
    }

    /// The error for a tree that says something of a block that cannot be.
    pub(crate) fn contradiction<T>(
        &self,
        kind: BlockKind,
        block: u32,
        fault: &'static str,
    ) -> Result<T, B::Error> {
        let structure = kind.structure();
        Err(TreeError::Contradiction { ag: self.ag, block: u64::from(block), structure, fault }
            .into())
    }
}

const fn short(ag: u32, found: usize) -> TreeError {
    let (structure, expected) = (Structure::Agf, size_of::<RawAgf>());
    TreeError::Group { ag, block: 0, source: FormatError::Short { structure, expected, found } }
}

/// Adds to a number of a header, and returns whether it can be so.
#[must_use]
pub(crate) fn add(field: &mut U32, delta: i64) -> bool {
    let sum = i64::from(field.get()).checked_add(delta).and_then(|sum| u32::try_from(sum).ok());
    if let Some(sum) = sum {
        field.set(sum);
    }
    sum.is_some()
}

/// Returns where the AGF has the root of a tree, and its levels.
fn root_of(agf: &mut RawAgf, kind: BlockKind) -> (&mut U32, &mut U32) {
    let [place, size, rmap] = &mut agf.roots;
    let [place_levels, size_levels, rmap_levels] = &mut agf.levels;
    match kind {
        BlockKind::FreeByPlace => (place, place_levels),
        BlockKind::FreeBySize => (size, size_levels),
        BlockKind::Rmap => (rmap, rmap_levels),
        _ => (&mut agf.refcount_root, &mut agf.refcount_levels),
    }
}

impl<B: Blocks> Home for GroupTree<'_, '_, B> {
    type Error = B::Error;

    fn root(&mut self) -> Result<Root, B::Error> {
        let mut agf = self.group.agf()?;
        let (root, levels) = root_of(&mut agf, self.kind);
        let found = u64::from(levels.get());
        let levels = u16::try_from(found).ok().filter(|levels| (1..=LEVELS_MAX).contains(levels));
        let Some(levels) = levels else {
            let source = FormatError::Range { structure: Structure::Agf, field: "levels", found };
            return Err(self.group.fault(0, source).into());
        };
        Ok(Root { place: Place::Block(u64::from(root.get())), levels })
    }

    fn set_root(&mut self, block: u64, levels: u16) -> Result<(), B::Error> {
        let kind = self.kind;
        self.group.change_agf(|agf| {
            let (root, stored) = root_of(agf, kind);
            stored.set(u32::from(levels));
            let block = u32::try_from(block).ok();
            block.inspect(|&block| root.set(block)).is_some()
        })
    }

    fn view(&mut self, place: Place) -> Result<&[u8], B::Error> {
        let block = self.locate(place)?;
        self.group.blocks.view(block)
    }

    fn edit(&mut self, place: Place) -> Result<&mut [u8], B::Error> {
        let block = self.locate(place)?;
        self.group.blocks.edit(block)
    }

    fn take(&mut self) -> Result<u64, B::Error> {
        let number = match self.kind {
            BlockKind::Refcount => self.group.take_for_sharing()?,
            kind => {
                self.group.count_block(kind, 1)?;
                self.group.pop()?
            }
        };
        let number = u64::from(number);
        let block = self.locate(Place::Block(number))?;
        self.group.blocks.create(block)?;
        Ok(number)
    }

    fn give(&mut self, block: u64) -> Result<(), B::Error> {
        let at = self.locate(Place::Block(block))?;
        self.group.blocks.forget(at);
        let number = u32::try_from(block).unwrap_or(u32::MAX);
        if self.kind == BlockKind::Refcount {
            return self.group.give_from_sharing(number);
        }
        self.group.count_block(self.kind, -1)?;
        self.group.push(number)
    }

    fn fault(&self, place: Place, field: &'static str, found: u64) -> TreeError {
        let block = match place {
            Place::Fork => 0,
            Place::Block(block) => block,
        };
        let structure = self.kind.structure();
        self.group.fault(block, FormatError::Range { structure, field, found })
    }
}

impl<B: Blocks> GroupTree<'_, '_, B> {
    fn locate(&self, place: Place) -> Result<BlockRef, B::Error> {
        let Place::Block(number) = place else {
            return Err(self.fault(place, "pointer", 0).into());
        };
        let block = self.group.block(self.kind, number);
        block.ok_or_else(|| self.fault(place, "pointer", number).into())
    }
}
