//! Metadata that were changed and are not in their places yet.
//!
//! What a transaction has committed is kept here, in whole blocks, and read from here by all who come
//! later. It gets to its places by [`Xfs::sync`], in no order that a crash could rely on; so the file
//! system is marked before anything is changed, and the mark is taken away when all is in its place. A
//! journal would make what is here durable before, and need no mark.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_bio::BlockDevice;
use holdfast_units::to_u64;
use holdfast_xfs_format::{Features, FormatError, RawSuperblock, Structure};
use zerocopy::FromBytes;

use crate::error::XfsError;
use crate::mount::Xfs;
use crate::released::Released;
use crate::source::Piece;

/// What is needed to write.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    /// The newest bytes of blocks, by their place on the device.
    pending: BTreeMap<u64, Arc<[u8]>>,
    pending_bytes: usize,
    /// The longest that there ever was, in bytes: none that begins farther back reaches anywhere.
    longest: usize,
    /// What nothing may overwrite before the next sync has ended.
    pub(crate) released: Released,
    /// The superblock says that the file system is being changed.
    is_marked: bool,
    /// Something could not be written.
    is_broken: bool,
}

impl Writer {
    /// How many bytes wait for a sync at most.
    const PENDING_MAX: usize = 32 << 20;
    /// How many runs of such blocks wait for it at most.
    const RELEASED_MAX: usize = 1 << 16;

    /// Returns whether there are blocks that can be used only after a sync.
    pub(crate) fn has_released(&self) -> bool {
        self.released.len() > 0
    }

    pub(crate) fn insert(&mut self, address: u64, bytes: Arc<[u8]>) {
        self.longest = self.longest.max(bytes.len());
        self.pending_bytes += bytes.len();
        if let Some(old) = self.pending.insert(address, bytes) {
            self.pending_bytes -= old.len();
        }
    }

    /// Forgets a block that is none any more, so that it never overwrites what comes in its place.
    pub(crate) fn remove(&mut self, address: u64) {
        self.pending_bytes -= self.pending.remove(&address).map_or(0, |bytes| bytes.len());
    }

    /// Copies what waits over what was read from the device.
    fn overlay(&self, piece: &Piece, target: &mut [u8]) {
        let target = &mut target[piece.target.clone()];
        let end = piece.address + to_u64(target.len());
        let from = piece.address.saturating_sub(to_u64(self.longest));
        for (&at, bytes) in self.pending.range(from..end) {
            let first = at.max(piece.address);
            let last = (at + to_u64(bytes.len())).min(end);
            if first < last {
                let [skip, to, until] = [first - at, first - piece.address, last - piece.address]
                    .map(holdfast_units::to_usize);
                target[to..until].copy_from_slice(&bytes[skip..skip + until - to]);
            }
        }
    }
}

impl<D: BlockDevice> Xfs<D> {
    /// Returns what is needed to write, if the file system may be written.
    pub(crate) fn writer(&self) -> Result<Writer, XfsError> {
        let forbidding = self.superblock.features.forbidding_writes();
        if !forbidding.is_empty() {
            return Err(XfsError::FeaturesForWriting { features: forbidding });
        }
        if self.source.limits().read_only {
            return Err(XfsError::ReadOnly);
        }
        Ok(Writer::default())
    }

    /// Returns whether the file system is mounted for writing.
    pub const fn is_writable(&self) -> bool {
        self.writer.is_some()
    }

    /// Reads metadata as they are now, wherever they are.
    pub(crate) fn read_metadata(
        &mut self,
        pieces: &[Piece],
        target: &mut [u8],
    ) -> Result<(), XfsError> {
        self.source.read(pieces.iter().cloned(), target)?;
        if let Some(writer) = &self.writer {
            pieces.iter().for_each(|piece| writer.overlay(piece, target));
        }
        Ok(())
    }

    /// Returns whether the counters of the superblock are not those of now.
    pub(crate) fn has_changed(&self) -> bool {
        self.writer.as_ref().is_some_and(|writer| writer.is_marked)
    }

    /// Returns whether anything may be written, and if not, why.
    pub(crate) fn check_writable(&self) -> Result<&Writer, XfsError> {
        let writer = self.writer.as_ref().ok_or(XfsError::ReadOnly)?;
        if writer.is_broken { Err(XfsError::Broken) } else { Ok(writer) }
    }

    /// Marks the file system as being changed, before anything is.
    pub(crate) fn mark(&mut self) -> Result<(), XfsError> {
        if !self.check_writable()?.is_marked {
            self.rewrite_superblock(|raw| {
                let incompatible = raw.incompatible.get() | Features::NEEDS_REPAIR;
                raw.incompatible = incompatible.into();
                // Space changes hands without those who count it: the kernel counts anew.
                raw.quota_flags = (raw.quota_flags.get() & !QUOTA_CHECKED).into();
            })?;
            self.writer_mut()?.is_marked = true;
        }
        Ok(())
    }

    pub(crate) fn writer_mut(&mut self) -> Result<&mut Writer, XfsError> {
        self.writer.as_mut().ok_or(XfsError::ReadOnly)
    }

    /// Stores what waits when it has become much.
    pub(crate) fn relieve(&mut self) -> Result<(), XfsError> {
        let is_much = |writer: &Writer| {
            writer.pending_bytes > Writer::PENDING_MAX
                || writer.released.len() > Writer::RELEASED_MAX
        };
        if self.writer.as_ref().is_some_and(is_much) { self.store() } else { Ok(()) }
    }

    /// Makes everything durable that was written to files and changed in metadata.
    ///
    /// # Errors
    ///
    /// [`XfsError::Write`]; after that nothing is written any more, and every call says
    /// [`XfsError::Broken`]: what was lost is not known.
    pub fn sync(&mut self) -> Result<(), XfsError> {
        if self.writer.as_ref().is_some_and(|writer| writer.is_broken) {
            return Err(XfsError::Broken);
        }
        self.touch_all()?;
        self.store()
    }

    /// Makes durable what was committed.
    pub(crate) fn store(&mut self) -> Result<(), XfsError> {
        // The data first: no extent may be durable before what is in it.
        let result = self.source.flush().and_then(|()| {
            let is_idle = self.writer.as_ref().is_none_or(|writer| writer.pending.is_empty());
            if is_idle { Ok(()) } else { self.write_pending().and_then(|()| self.source.flush()) }
        });
        if let (Ok(()), Some(writer)) = (&result, &mut self.writer) {
            writer.released.clear();
        }
        self.broken_after(result)
    }

    /// Remembers that something could not be written.
    fn broken_after<T>(&mut self, result: Result<T, XfsError>) -> Result<T, XfsError> {
        if let (Err(_), Some(writer)) = (&result, &mut self.writer) {
            writer.is_broken = true;
        }
        result
    }

    fn write_pending(&mut self) -> Result<(), XfsError> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        let pending = std::mem::take(&mut writer.pending);
        writer.pending_bytes = 0;
        let result = pending.iter().try_for_each(|(&at, bytes)| self.source.write_at(at, bytes));
        self.broken_after(result)
    }

    /// Ends the use of the file system: all is in its place, and the mark is taken away.
    ///
    /// # Errors
    ///
    /// As for [`sync`](Self::sync); the mark then stays.
    pub fn unmount(mut self) -> Result<(), XfsError> {
        if self.writer.is_none() {
            return Ok(());
        }
        self.drop_all_copies()?;
        self.sync()?;
        if !self.writer_mut()?.is_marked {
            return Ok(());
        }
        let counted = self.count_all()?;
        self.rewrite_superblock(|raw| {
            raw.free_blocks = counted.free_blocks.into();
            raw.inodes = counted.inodes.into();
            raw.free_inodes = counted.free_inodes.into();
            raw.incompatible = (raw.incompatible.get() & !Features::NEEDS_REPAIR).into();
        })
    }

    /// Changes the superblock, durably.
    fn rewrite_superblock(
        &mut self,
        change: impl FnOnce(&mut RawSuperblock),
    ) -> Result<(), XfsError> {
        let mut bytes = vec![0; self.superblock.geometry.sector.len()];
        self.source.read_at(0, &mut bytes)?;
        let short = FormatError::Short {
            structure: Structure::Superblock,
            expected: size_of::<RawSuperblock>(),
            found: bytes.len(),
        };
        let (raw, _) = RawSuperblock::mut_from_prefix(&mut bytes)
            .map_err(|_| XfsError::Superblock { source: short })?;
        change(raw);
        RawSuperblock::seal(&mut bytes).map_err(|source| XfsError::Superblock { source })?;
        let result = self.source.write_at(0, &bytes).and_then(|()| self.source.flush());
        self.broken_after(result)
    }
}

/// The bits of `quota_flags` that say that the counts of users, groups and projects are right.
const QUOTA_CHECKED: u16 = 0x0004 | 0x0100 | 0x0400;
