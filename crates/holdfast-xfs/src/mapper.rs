//! What iomap asks of a file that is open: where its bytes are, and what follows when they were
//! written.
//!
//! A hole that is written gets unwritten blocks first, and blocks that are shared get others in their
//! place. Both become part of the file only when their data are there, so that nobody ever reads what
//! was in them before.

use std::collections::BTreeMap;
use std::ops::Range;

use holdfast_bio::BlockDevice;
use holdfast_iomap::{Error, How, Ioend, IoendKind, Kind, Mapper, Mapping, Purpose};
use holdfast_units::BlockSize;
use holdfast_xfs_format::{Extent, Ino, Kind as FileKind, Timestamp};

use crate::error::XfsError;
use crate::inode::Inode;
use crate::mount::Xfs;
use crate::times::now;

/// A file that is open for direct I/O.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) inode: Inode,
    /// How often it was opened.
    users: usize,
    /// Places for blocks that are shared now, by the block of the file where each begins. They are not
    /// part of the file before they have their data.
    pub(crate) copies: BTreeMap<u64, Extent>,
    /// When its data were changed, if its timestamps do not say so yet.
    pub(crate) touched: Option<Timestamp>,
}

impl<D: BlockDevice> Xfs<D> {
    /// Opens a regular file for direct I/O: from then on iomap may ask for it by its number.
    ///
    /// # Errors
    ///
    /// [`XfsError::NotFile`], [`XfsError::Realtime`], [`XfsError::NoInode`], [`XfsError::Corrupt`],
    /// and whatever the device says.
    pub fn open(&mut self, ino: Ino) -> Result<(), XfsError> {
        if let Some(file) = self.files.get_mut(&ino) {
            file.users += 1;
            return Ok(());
        }
        let inode = self.inode(ino)?;
        if inode.kind() != FileKind::Regular {
            return Err(XfsError::NotFile { ino });
        }
        self.extents(&inode)?;
        let file = File { inode, users: 1, copies: BTreeMap::new(), touched: None };
        self.files.insert(ino, file);
        Ok(())
    }

    /// Ends a use that [`open`](Self::open) began. Nothing of the file may be in flight.
    ///
    /// # Errors
    ///
    /// Whatever hinders its timestamps from being changed, or space from being freed.
    pub fn close(&mut self, ino: Ino) -> Result<(), XfsError> {
        let Some(file) = self.files.get_mut(&ino) else { return Ok(()) };
        file.users -= 1;
        if file.users > 0 {
            return Ok(());
        }
        let touched = self.touch(ino);
        // What a write left that failed before it had sent all.
        let dropped = self.drop_copies(ino, 0..u64::MAX);
        self.files.remove(&ino);
        touched.and(dropped)
    }

    pub(crate) fn file(&self, ino: Ino) -> Result<&File, XfsError> {
        self.files.get(&ino).ok_or(XfsError::NotOpen { ino })
    }

    /// Looks anew at a file that was changed, if it is open.
    pub(crate) fn refresh(&mut self, ino: Ino) -> Result<(), XfsError> {
        if self.files.contains_key(&ino) {
            let inode = self.inode(ino)?;
            self.extents(&inode)?;
            if let Some(file) = self.files.get_mut(&ino) {
                file.inode = inode;
            }
        }
        Ok(())
    }

    /// Says that the data of an open file were changed now, which its timestamps are to say in time.
    pub fn set_touched(&mut self, ino: Ino) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.touched = Some(now());
        }
    }

    /// Gives a file that is open the timestamps of its last write, which otherwise wait for
    /// [`sync`](Self::sync) or [`close`](Self::close).
    ///
    /// # Errors
    ///
    /// As for [`set_times`](Self::set_times).
    pub fn touch(&mut self, ino: Ino) -> Result<(), XfsError> {
        let Some(time) = self.files.get(&ino).and_then(|file| file.touched) else { return Ok(()) };
        self.transact(|transaction| transaction.touch(ino, time))?;
        self.untouch(ino);
        self.refresh(ino)
    }

    /// Says that the timestamps of a file are right.
    pub(crate) fn untouch(&mut self, ino: Ino) {
        if let Some(file) = self.files.get_mut(&ino) {
            file.touched = None;
        }
    }

    /// Gives the timestamps of all files that were written.
    pub(crate) fn touch_all(&mut self) -> Result<(), XfsError> {
        let touched = self.files.iter().filter(|(_, file)| file.touched.is_some());
        let touched: Vec<Ino> = touched.map(|(&ino, _)| ino).collect();
        touched.into_iter().try_for_each(|ino| self.touch(ino))
    }

    /// Returns the part of a file that has byte `offset`, as it is.
    fn mapping(&mut self, ino: Ino, offset: u64) -> Result<Mapping, XfsError> {
        let inode = self.file(ino)?.inode.clone();
        Ok(self.map(&inode, offset)?.into())
    }

    /// Returns the blocks that a range of bytes touches.
    pub(crate) fn blocks_of(&self, offset: u64, len: u64) -> Range<u64> {
        let block = self.superblock.geometry.block;
        let end = offset.saturating_add(len);
        block.count(offset)..block.count(end) + u64::from(!block.is_aligned(end))
    }

    /// Returns where a range can be written that begins at `offset`, after making room for it.
    fn mapping_for_write(
        &mut self,
        ino: Ino,
        offset: u64,
        len: u64,
        nowait: bool,
    ) -> Result<Mapping, Error<XfsError>> {
        if !self.is_writable() {
            return Err(XfsError::ReadOnly.into());
        }
        let wanted = self.blocks_of(offset, len);
        let found = self.mapping(ino, offset)?;
        match found.kind {
            Kind::Hole if nowait => Err(Error::Again),
            Kind::Hole => {
                let end =
                    wanted.end.min(self.superblock.geometry.block.count(found.offset + found.len));
                self.fill_hole(ino, wanted.start..end)?;
                Ok(self.mapping(ino, offset)?)
            }
            Kind::Mapped { .. } if self.file(ino)?.inode.may_be_shared() => {
                self.unshared(ino, &wanted, &found, nowait)
            }
            _ => Ok(found),
        }
    }

    /// Returns where a range can be written whose blocks may be shared: its first blocks, if those are
    /// not, or a new place for them.
    fn unshared(
        &mut self,
        ino: Ino,
        wanted: &Range<u64>,
        found: &Mapping,
        nowait: bool,
    ) -> Result<Mapping, Error<XfsError>> {
        let block = self.superblock.geometry.block;
        let end = wanted.end.min(block.count(found.offset + found.len));
        let blocks = wanted.start..end;
        if let Some(copy) = self.file(ino)?.copy_with(blocks.start) {
            return Ok(self.copied(found, &copy));
        }
        if nowait {
            return Err(Error::Again);
        }
        let shared = self.first_shared(ino, blocks.clone())?;
        match shared {
            Some(shared) if shared.start == blocks.start => {
                match self.allocate_copy(ino, shared.clone()) {
                    Ok(copy) => Ok(self.copied(found, &copy)),
                    // For want of space all was stored: they may not be held any more.
                    Err(XfsError::NoSpace)
                        if self.first_shared(ino, blocks)?.as_ref() != Some(&shared) =>
                    {
                        self.unshared(ino, wanted, found, nowait)
                    }
                    Err(error) => Err(error.into()),
                }
            }
            // As far as it is known to be the file's alone.
            shared => {
                let end = shared.map_or(blocks.end, |shared| shared.start);
                Ok(part_of(found, blocks.start * block.bytes()..end * block.bytes()))
            }
        }
    }

    /// Returns the mapping of a place that is to be in place of another.
    fn copied(&self, found: &Mapping, copy: &Extent) -> Mapping {
        let geometry = &self.superblock.geometry;
        let bytes = geometry.block.bytes();
        // It was allocated inside the file system.
        let address = geometry.address_of(copy.block).expect("an extent has an address");
        let all = Mapping::new(copy.file.0 * bytes, copy.blocks * bytes, Kind::Mapped { address });
        let from = all.offset.max(found.offset);
        let end = (all.offset + all.len).min(found.offset + found.len);
        let source = found.address_of(from);
        Mapping { shared: true, source, ..part_of(&all, from..end) }
    }
}

/// Returns a part of a mapping, which has all of it.
fn part_of(mapping: &Mapping, range: Range<u64>) -> Mapping {
    let kind = match mapping.address_of(range.start) {
        Some(address) => match mapping.kind {
            Kind::Unwritten { .. } => Kind::Unwritten { address },
            _ => Kind::Mapped { address },
        },
        None => mapping.kind.clone(),
    };
    Mapping { kind, ..Mapping::new(range.start, range.end - range.start, Kind::Hole) }
}

impl File {
    /// Returns the new place of a block of the file, if it has one.
    fn copy_with(&self, block: u64) -> Option<Extent> {
        let (_, copy) = self.copies.range(..=block).next_back()?;
        (block < copy.file_end()).then_some(*copy)
    }
}

impl<D: BlockDevice> Mapper for Xfs<D> {
    type File = Ino;
    type Error = XfsError;

    fn block(&self, _file: Ino) -> BlockSize {
        self.superblock.geometry.block
    }

    fn size(&self, file: Ino) -> u64 {
        self.file(file).map_or(0, |file| file.inode.size())
    }

    fn begin(
        &mut self,
        file: Ino,
        offset: u64,
        len: u64,
        how: How,
    ) -> Result<Mapping, Error<XfsError>> {
        match how.purpose {
            Purpose::Write => self.mapping_for_write(file, offset, len, how.nowait),
            // What is shared may not be zeroed where it is.
            Purpose::Zero => {
                let found = self.mapping(file, offset)?;
                let is_shared = self.file(file)?.inode.may_be_shared();
                match found.kind {
                    Kind::Mapped { .. } if is_shared => {
                        self.mapping_for_write(file, offset, len, how.nowait)
                    }
                    _ => Ok(found),
                }
            }
            Purpose::Read | Purpose::Report => Ok(self.mapping(file, offset)?),
        }
    }

    fn complete(&mut self, ioend: &Ioend<Ino, XfsError>) -> Result<(), Error<XfsError>> {
        let blocks = self.blocks_of(ioend.offset, ioend.len);
        if ioend.result.is_err() {
            if ioend.kind == IoendKind::Shared {
                self.drop_copies(ioend.file, blocks)?;
            }
            return Ok(());
        }
        if ioend.kind == IoendKind::Read {
            return Ok(());
        }
        self.set_touched(ioend.file);
        if ioend.size.is_none() && ioend.kind == IoendKind::Overwrite {
            return Ok(());
        }
        self.written(ioend.file, ioend.kind, blocks, ioend.size)?;
        Ok(())
    }

    fn commit(&mut self, _file: Ino) -> Result<(), Error<XfsError>> {
        Ok(self.sync()?)
    }
}

impl From<XfsError> for Error<XfsError> {
    fn from(error: XfsError) -> Self {
        Self::FileSystem(error)
    }
}
