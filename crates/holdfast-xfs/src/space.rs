//! The space of files: what is allocated for them, put in place of other blocks, and given back.
//!
//! Who changes what of a file has space may not do so while I/O to the same blocks is in flight.

use std::ops::Range;

use holdfast_bio::BlockDevice;
use holdfast_iomap::IoendKind;
use holdfast_units::to_usize;
use holdfast_xfs_format::{Extent, FileBlock, Flags, ForkFormat, FsBlock, Ino, RawInode};
use holdfast_xfs_tree::{BmapFork, FileSystem, Space, Span, Wanted};

use crate::error::XfsError;
use crate::inode::Inode;
use crate::mount::{Xfs, of};
use crate::times::now;
use crate::transaction::{Transaction, raw_inode};

/// No file is longer than this, in bytes.
const SIZE_MAX: u64 = i64::MAX.unsigned_abs();
/// The most extents that one transaction gives back.
const REMOVED_MAX: usize = 64;

impl<D: BlockDevice> Transaction<'_, D> {
    /// Does something to the space of the file system.
    fn space<T>(
        &mut self,
        change: impl FnOnce(&mut Space<'_, Self>) -> Result<T, XfsError>,
    ) -> Result<T, XfsError> {
        let file_system = FileSystem::new(&self.xfs.superblock);
        change(&mut Space::new(&file_system, self))
    }

    /// Allocates up to so many blocks in one place, at a block or near it. Nobody owns them yet.
    fn allocate(&mut self, near: FsBlock, blocks: u64) -> Result<Span, XfsError> {
        let max = u32::try_from(blocks.min(Extent::BLOCKS_MAX)).unwrap_or(u32::MAX);
        self.space(|space| space.allocate(&Wanted { min: 1, max, near, alignment: 1 }))
    }

    /// Changes the extents of a file.
    fn edit_extents<T>(
        &mut self,
        ino: Ino,
        change: impl FnOnce(&mut BmapFork, &mut Space<'_, Self>) -> Result<T, XfsError>,
    ) -> Result<T, XfsError> {
        let range = self.xfs.inode(ino)?.data_range();
        let bytes = self.inode(ino)?;
        let raw = raw_inode(ino, bytes)?;
        let format = if raw.format == BTREE { ForkFormat::Btree } else { ForkFormat::Extents };
        let count = extents_of(raw);
        let mut fork = BmapFork::new(ino, false, format, &bytes[range.clone()], count)?;
        let result = self.space(|space| change(&mut fork, space))?;
        self.inode(ino)?[range].copy_from_slice(fork.bytes());
        self.edit_inode(ino, |raw| {
            raw.format = if fork.format() == ForkFormat::Btree { BTREE } else { EXTENTS };
            set_extents(raw, fork.count());
            raw.blocks = raw.blocks.get().saturating_add_signed(fork.blocks_added()).into();
        })?;
        Ok(result)
    }

    /// Gives blocks back that a file had.
    fn release(&mut self, extents: &[Extent]) -> Result<(), XfsError> {
        extents.iter().try_for_each(|extent| {
            let place = span_of(extent);
            self.space(|space| space.release(place))
        })
    }

    /// Makes a file as long as this.
    fn set_size(&mut self, ino: Ino, size: u64) -> Result<(), XfsError> {
        self.edit_inode(ino, |raw| raw.size = size.into())
    }
}

/// How an inode says that its fork has the extents, or the root of a tree of them.
const EXTENTS: u8 = 2;
const BTREE: u8 = 3;

const fn has_large_counts(raw: &RawInode) -> bool {
    raw.more_flags.get() & Flags::LARGE_COUNTS != 0
}

const fn extents_of(raw: &RawInode) -> u64 {
    if has_large_counts(raw) { raw.data_extents_large.get() } else { raw.extents.get() as u64 }
}

fn set_extents(raw: &mut RawInode, count: u64) {
    if has_large_counts(raw) {
        raw.data_extents_large = count.into();
    } else {
        // There is no tree of so many blocks.
        raw.extents = u32::try_from(count).unwrap_or(u32::MAX).into();
    }
}

fn span_of(extent: &Extent) -> Span {
    // No extent is longer than 21 bits say.
    Span { block: extent.block, blocks: u32::try_from(extent.blocks).unwrap_or(u32::MAX) }
}

/// Returns the part of an extent that has these blocks of the file, if any.
fn part(extent: &Extent, blocks: &Range<u64>) -> Option<Extent> {
    let from = blocks.start.max(extent.file.0);
    let until = blocks.end.min(extent.file_end());
    let blocks = until.checked_sub(from).filter(|&blocks| blocks > 0)?;
    let block = FsBlock(extent.block.0 + (from - extent.file.0));
    Some(Extent { file: FileBlock(from), block, blocks, ..*extent })
}

impl<D: BlockDevice> Xfs<D> {
    /// Gives a hole unwritten blocks.
    pub(crate) fn fill_hole(&mut self, ino: Ino, blocks: Range<u64>) -> Result<(), XfsError> {
        let near = self.near(ino, blocks.start)?;
        self.transact(|transaction| {
            let (mut at, mut near) = (blocks.start, near);
            while at < blocks.end {
                let place = transaction.allocate(near, blocks.end - at)?;
                let (file, blocks) = (FileBlock(at), u64::from(place.blocks));
                let extent = Extent { file, block: place.block, blocks, unwritten: true };
                transaction.edit_extents(ino, |fork, space| fork.insert(space, &extent))?;
                near = FsBlock(place.block.0 + blocks);
                at += blocks;
            }
            Ok(())
        })?;
        self.refresh(ino)
    }

    /// Returns the block at which a block of a file is best put: behind the one before it.
    fn near(&mut self, ino: Ino, block: u64) -> Result<FsBlock, XfsError> {
        let inode = self.inode(ino)?;
        let list = self.extents(&inode)?;
        let before = block.checked_sub(1).and_then(|before| list.find(FileBlock(before)));
        let own = self.superblock.geometry.locate(ino).map_or(FsBlock(0), |(block, _)| block);
        Ok(before.map_or(own, |extent| FsBlock(extent.block.0 + extent.blocks)))
    }

    /// Returns the first blocks of a range that other files have as well. The range is of one extent.
    pub(crate) fn first_shared(
        &mut self,
        ino: Ino,
        blocks: Range<u64>,
    ) -> Result<Option<Range<u64>>, XfsError> {
        let inode = self.inode(ino)?;
        let list = self.extents(&inode)?;
        let Some(extent) = list.find(FileBlock(blocks.start)).and_then(|it| part(it, &blocks))
        else {
            return Ok(None);
        };
        let place = span_of(&extent);
        let shared = self.transact(|transaction| transaction.space(|space| space.shared(place)))?;
        Ok(shared.map(|shared| {
            let start = extent.file.0 + (shared.block.0 - extent.block.0);
            start..start + u64::from(shared.blocks)
        }))
    }

    /// Allocates a place for blocks that are shared, which becomes the file's when it has its data.
    pub(crate) fn allocate_copy(
        &mut self,
        ino: Ino,
        blocks: Range<u64>,
    ) -> Result<Extent, XfsError> {
        let near = self.near(ino, blocks.start)?;
        let count = blocks.end - blocks.start;
        let place = self.transact(|transaction| transaction.allocate(near, count))?;
        let (file, blocks) = (FileBlock(blocks.start), u64::from(place.blocks));
        let copy = Extent { file, block: place.block, blocks, unwritten: false };
        if let Some(file) = self.files.get_mut(&ino) {
            file.copies.insert(copy.file.0, copy);
        }
        Ok(copy)
    }

    /// Takes the places of these blocks out of those that are to be the file's.
    fn take_copies(&mut self, ino: Ino, blocks: &Range<u64>) -> Vec<Extent> {
        let Some(file) = self.files.get_mut(&ino) else { return Vec::new() };
        let all = std::mem::take(&mut file.copies);
        let mut taken = Vec::new();
        for copy in all.into_values() {
            let rest = [copy.file.0..blocks.start, blocks.end..copy.file_end()];
            for kept in rest.iter().filter_map(|rest| part(&copy, rest)) {
                file.copies.insert(kept.file.0, kept);
            }
            taken.extend(part(&copy, blocks));
        }
        taken
    }

    /// Frees the places of these blocks that did not get their data.
    pub(crate) fn drop_copies(&mut self, ino: Ino, blocks: Range<u64>) -> Result<(), XfsError> {
        let dropped = self.take_copies(ino, &blocks);
        if dropped.is_empty() {
            return Ok(());
        }
        let freed = self.free_all(&dropped);
        self.kept_after(ino, &dropped, freed)
    }

    fn free_all(&mut self, places: &[Extent]) -> Result<(), XfsError> {
        self.transact(|transaction| {
            let mut places = places.iter().map(span_of);
            places.try_for_each(|place| transaction.space(|space| space.free(place)))
        })
    }

    /// Keeps places in mind that are neither the file's nor free, because something failed.
    fn kept_after<T>(
        &mut self,
        ino: Ino,
        copies: &[Extent],
        result: Result<T, XfsError>,
    ) -> Result<T, XfsError> {
        if let (Err(_), Some(file)) = (&result, self.files.get_mut(&ino)) {
            file.copies.extend(copies.iter().map(|copy| (copy.file.0, *copy)));
        }
        result
    }

    /// Frees all places that did not get their data.
    pub(crate) fn drop_all_copies(&mut self) -> Result<(), XfsError> {
        let files: Vec<Ino> = self.files.keys().copied().collect();
        files.into_iter().try_for_each(|ino| self.drop_copies(ino, 0..u64::MAX))
    }

    /// Makes blocks that were written part of the file, and the file at least as long as is said.
    pub(crate) fn written(
        &mut self,
        ino: Ino,
        kind: IoendKind,
        blocks: Range<u64>,
        size: Option<u64>,
    ) -> Result<(), XfsError> {
        let copies =
            if kind == IoendKind::Shared { self.take_copies(ino, &blocks) } else { Vec::new() };
        let stored = self.store_written(ino, kind, &blocks, size, &copies);
        self.kept_after(ino, &copies, stored)?;
        self.refresh(ino)
    }

    fn store_written(
        &mut self,
        ino: Ino,
        kind: IoendKind,
        blocks: &Range<u64>,
        size: Option<u64>,
        copies: &[Extent],
    ) -> Result<(), XfsError> {
        let grows = size.filter(|&size| self.file(ino).is_ok_and(|it| it.inode.size() < size));
        self.transact(|transaction| {
            if matches!(kind, IoendKind::Unwritten | IoendKind::New) {
                let (first, count) = (FileBlock(blocks.start), blocks.end - blocks.start);
                transaction
                    .edit_extents(ino, |fork, space| fork.convert(space, first, count, false))?;
            }
            for copy in copies {
                let old = transaction.edit_extents(ino, |fork, space| fork.replace(space, copy))?;
                transaction.release(&old)?;
            }
            grows.map_or(Ok(()), |size| transaction.set_size(ino, size))
        })
    }

    /// Reserves space for all holes of a range, in bytes: fallocate(2). It reads as zeros. Unless
    /// `keep_size` says otherwise, the file becomes as long as the range reaches.
    ///
    /// # Errors
    ///
    /// [`XfsError::NoSpace`], which leaves what was reserved before; [`XfsError::NotFile`],
    /// [`XfsError::TooLong`], and as for all that changes something.
    pub fn allocate(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
        keep_size: bool,
    ) -> Result<(), XfsError> {
        let (inode, end) = self.file_to_change(ino, offset, len)?;
        let (blocks, size) = (self.blocks_of(offset, len), inode.size());
        let grows = !keep_size && end > size;
        if grows {
            // What a write left behind the end that failed may not come to light.
            self.unwrite(ino, size, self.end_of_block(end) - size)?;
        }
        let mut at = blocks.start;
        while at < blocks.end {
            let inode = self.inode(ino)?;
            let list = self.extents(&inode)?;
            let next = list.at_or_after(FileBlock(at)).copied();
            match next.filter(|next| next.file.0 < blocks.end) {
                Some(next) if next.file.0 <= at => at = next.file_end(),
                next => {
                    let hole = at..next.map_or(blocks.end, |next| next.file.0);
                    at = hole.end;
                    self.fill_hole(ino, hole)?;
                }
            }
        }
        self.changed(ino, grows.then_some(end))
    }

    /// Makes a range, in bytes, a hole, as far as it has whole blocks, and the rest of it zeros:
    /// fallocate(2) with `FALLOC_FL_PUNCH_HOLE`. The size stays.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotFile`], [`XfsError::TooLong`], and as for all that changes something.
    pub fn punch(&mut self, ino: Ino, offset: u64, len: u64) -> Result<(), XfsError> {
        let (_, end) = self.file_to_change(ino, offset, len)?;
        let whole = self.zero_edges(ino, offset..end)?;
        self.unmap(ino, whole)?;
        self.changed(ino, None)
    }

    /// Makes a range, in bytes, zeros, and reserves its space: fallocate(2) with
    /// `FALLOC_FL_ZERO_RANGE`.
    ///
    /// # Errors
    ///
    /// As for [`allocate`](Self::allocate).
    pub fn zero(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
        keep_size: bool,
    ) -> Result<(), XfsError> {
        self.punch(ino, offset, len)?;
        self.allocate(ino, offset, len, keep_size)
    }

    /// Makes a range, in bytes, zeros, and leaves it the space that it has. Unlike all else here this may be
    /// done while I/O to the same blocks is in flight: they stay the file's, and what is written meanwhile
    /// is there or not.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotFile`], [`XfsError::TooLong`], and as for all that changes something.
    pub fn unwrite(&mut self, ino: Ino, offset: u64, len: u64) -> Result<(), XfsError> {
        let (_, end) = self.file_to_change(ino, offset, len)?;
        let whole = self.zero_edges(ino, offset..end)?;
        let inode = self.inode(ino)?;
        let list = self.extents(&inode)?;
        let written = list.extents().iter().filter(|extent| !extent.unwritten);
        let written: Vec<Extent> = written.filter_map(|it| part(it, &whole)).collect();
        if written.is_empty() {
            return Ok(());
        }
        self.transact(|transaction| {
            written.iter().try_for_each(|extent| {
                transaction.edit_extents(ino, |fork, space| {
                    fork.convert(space, extent.file, extent.blocks, true)
                })
            })
        })?;
        self.changed(ino, None)
    }

    /// Makes a file as long as this, in bytes: truncate(2). What is cut off is given back, and what is
    /// added reads as zeros.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotFile`], [`XfsError::TooLong`], and as for all that changes something.
    pub fn truncate(&mut self, ino: Ino, size: u64) -> Result<(), XfsError> {
        let (inode, _) = self.file_to_change(ino, size, 0)?;
        let old = inode.size();
        let (from, until) = (old.min(size), old.max(size));
        // Nothing behind the end of a file may come to light when it grows.
        let whole = self.zero_edges(ino, from..self.end_of_block(until))?;
        if size < old {
            self.changed(ino, Some(size))?;
            return self.unmap(ino, whole.start..u64::MAX);
        }
        self.unmap(ino, whole)?;
        self.changed(ino, Some(size))
    }

    fn end_of_block(&self, offset: u64) -> u64 {
        self.superblock.geometry.block.align_up(offset).unwrap_or(offset)
    }

    /// Returns a file that may be changed up to the end of a range, and that end.
    fn file_to_change(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
    ) -> Result<(Inode, u64), XfsError> {
        // Before zeros go to blocks that stay where they are, which needs no transaction.
        self.check_writable()?;
        let inode = self.inode(ino)?;
        if inode.kind() != holdfast_xfs_format::Kind::Regular {
            return Err(XfsError::NotFile { ino });
        }
        inode.check_data()?;
        let size = offset.saturating_add(len);
        if size > SIZE_MAX {
            return Err(XfsError::TooLong { ino, size });
        }
        Ok((inode, size))
    }

    /// Says that a file was changed now, and how long it is.
    fn changed(&mut self, ino: Ino, size: Option<u64>) -> Result<(), XfsError> {
        self.transact(|transaction| {
            size.map_or(Ok(()), |size| transaction.set_size(ino, size))?;
            transaction.touch(ino, now())
        })?;
        self.untouch(ino);
        self.refresh(ino)
    }

    /// Makes zeros of a range what lies in blocks of which it has only a part. Returns the blocks that
    /// it has as a whole.
    fn zero_edges(&mut self, ino: Ino, range: Range<u64>) -> Result<Range<u64>, XfsError> {
        let block = self.superblock.geometry.block;
        let (first, last) = (self.end_of_block(range.start), block.align_down(range.end));
        if first > last {
            self.zero_in_block(ino, range)?;
            return Ok(0..0);
        }
        self.zero_in_block(ino, range.start..first)?;
        self.zero_in_block(ino, last..range.end)?;
        Ok(block.count(first)..block.count(last))
    }

    /// Makes bytes of one block zeros, if there are any.
    fn zero_in_block(&mut self, ino: Ino, range: Range<u64>) -> Result<(), XfsError> {
        if range.is_empty() {
            return Ok(());
        }
        let geometry = self.superblock.geometry;
        let at = geometry.block.count(range.start);
        let inode = self.inode(ino)?;
        let list = self.extents(&inode)?;
        let found = list.find(FileBlock(at)).and_then(|extent| part(extent, &(at..at + 1)));
        let Some(found) = found.filter(|found| !found.unwritten) else { return Ok(()) };
        // Extents were checked to lie inside the file system.
        let address_of = |block| geometry.address_of(block).expect("an extent has an address");
        let is_shared = inode.may_be_shared() && self.first_shared(ino, at..at + 1)?.is_some();
        let inside = geometry.block.offset_in(range.start);
        let zeros = vec![0; to_usize(range.end - range.start)];
        let with_ino = |error| of(ino, error);
        if !is_shared {
            let address = address_of(found.block) + inside;
            return self.source.write_at(address, &zeros).map_err(with_ino);
        }
        let mut bytes = vec![0; geometry.block.len()];
        self.source.read_at(address_of(found.block), &mut bytes).map_err(with_ino)?;
        bytes[to_usize(inside)..][..zeros.len()].fill(0);
        let copied = self.transact(|transaction| {
            let place = transaction.allocate(found.block, 1)?;
            let copy = Extent { block: place.block, ..found };
            let old = transaction.edit_extents(ino, |fork, space| fork.replace(space, &copy))?;
            transaction.release(&old)?;
            let written = transaction.xfs.source.write_at(address_of(place.block), &bytes);
            written.map_err(with_ino)
        });
        // For want of space all was stored: it may not be held any more.
        if copied == Err(XfsError::NoSpace) && self.first_shared(ino, at..at + 1)?.is_none() {
            return self.zero_in_block(ino, range);
        }
        copied?;
        self.refresh(ino)
    }

    /// Gives the blocks of a range back, in several transactions when they are many.
    fn unmap(&mut self, ino: Ino, blocks: Range<u64>) -> Result<(), XfsError> {
        loop {
            let inode = self.inode(ino)?;
            let list = self.extents(&inode)?;
            let mapped = list.extents().iter().filter_map(|extent| part(extent, &blocks));
            let mapped: Vec<Extent> = mapped.take(REMOVED_MAX).collect();
            if mapped.is_empty() {
                return Ok(());
            }
            self.transact(|transaction| {
                mapped.iter().try_for_each(|extent| {
                    let old = transaction.edit_extents(ino, |fork, space| {
                        fork.remove(space, extent.file, extent.blocks)
                    })?;
                    transaction.release(&old)
                })
            })?;
            self.refresh(ino)?;
        }
    }
}
