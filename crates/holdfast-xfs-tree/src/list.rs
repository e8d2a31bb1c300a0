//! The AGFL: a ring of free blocks, from which trees take blocks while free space itself changes.

use holdfast_xfs_format::{FormatError, RawAgfl, Structure};
use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::U32;

use crate::blocks::{Blocks, Role};
use crate::free::Run;
use crate::group::{Group, add};
use crate::rmap::Owner;

impl<B: Blocks> Group<'_, B> {
    /// Returns how many blocks must be in the list before trees change: any tree may be split at every
    /// level, and get a new root, twice.
    pub(crate) fn list_need(&mut self) -> Result<u32, B::Error> {
        let agf = self.agf()?;
        let trees = if self.file_system.has_owners { 3 } else { 2 };
        let levels = agf.levels.iter().take(trees).map(|levels| levels.get());
        Ok(levels
            .map(|levels| levels.saturating_add(1).saturating_mul(2))
            .fold(0, u32::saturating_add))
    }

    /// Puts blocks into the list until there are enough, or gives those back that are far too many.
    pub(crate) fn fix_list(&mut self) -> Result<(), B::Error> {
        // Each turn moves at least one block; more turns than these only damage asks for.
        for _ in 0..4 * self.list_size() {
            let (need, count) = (self.list_need()?, self.agf()?.list_count.get());
            if count < need {
                let Some((free, run)) = self.smallest()? else {
                    break;
                };
                let run = Run { start: run.start, blocks: run.blocks.min(need - count) };
                self.take_out(free, run)?;
                for number in run.start..run.start + run.blocks {
                    self.push(number)?;
                }
                self.own(run, &Owner::TREES)?;
            } else if count > need.saturating_mul(2) {
                let run = Run { start: self.pop()?, blocks: 1 };
                self.disown(run, &Owner::TREES)?;
                self.put_back(run)?;
            } else {
                break;
            }
        }
        Ok(())
    }

    /// Takes the first block off the list.
    pub(crate) fn pop(&mut self) -> Result<u32, B::Error> {
        let agf = self.agf()?;
        let (first, count) = (agf.list_first.get(), agf.list_count.get());
        let size = self.list_size();
        self.check_ring(&agf.list_first, size)?;
        if count == 0 {
            return Err(self.list_fault("count", 0).into());
        }
        let number = self.entry(first)?.get();
        if number >= self.len() {
            return Err(self.list_fault("block", number).into());
        }
        self.change_agf(|agf| {
            agf.list_first.set((first + 1) % size);
            add(&mut agf.list_count, -1)
        })?;
        Ok(number)
    }

    /// Puts a block at the end of the list.
    pub(crate) fn push(&mut self, number: u32) -> Result<(), B::Error> {
        let agf = self.agf()?;
        let (last, count) = (agf.list_last.get(), agf.list_count.get());
        let size = self.list_size();
        self.check_ring(&agf.list_last, size)?;
        if count >= size {
            return Err(self.list_fault("count", count).into());
        }
        let last = (last + 1) % size;
        self.entry(last)?.set(number);
        self.change_agf(|agf| {
            agf.list_last.set(last);
            add(&mut agf.list_count, 1)
        })
    }

    /// Returns all blocks of the list, which are free, and kept for the trees.
    ///
    /// # Errors
    ///
    /// [`TreeError::Group`](crate::TreeError::Group).
    pub fn list(&mut self) -> Result<Vec<u32>, B::Error> {
        let agf = self.agf()?;
        let size = self.list_size();
        self.check_ring(&agf.list_first, size)?;
        let (first, count) = (agf.list_first.get(), agf.list_count.get().min(size));
        (0..count).map(|index| Ok(self.entry((first + index) % size)?.get())).collect()
    }

    /// Returns how many blocks there is room for.
    fn list_size(&self) -> u32 {
        let room = self.header(Role::Agfl).len.saturating_sub(size_of::<RawAgfl>());
        u32::try_from(room / size_of::<U32>()).unwrap_or(1).max(1)
    }

    fn check_ring(&self, index: &U32, size: u32) -> Result<(), B::Error> {
        if index.get() < size {
            return Ok(());
        }
        Err(self.list_fault("index", index.get()).into())
    }

    fn entry(&mut self, index: u32) -> Result<&mut U32, B::Error> {
        let fault = self.list_fault("index", index);
        let at = self.header(Role::Agfl);
        let bytes = self.blocks.edit(at)?;
        let at =
            size_of::<RawAgfl>() + holdfast_units::to_usize(u64::from(index)) * size_of::<U32>();
        let entry = bytes.get_mut(at..).and_then(|rest| U32::mut_from_prefix(rest).ok());
        entry.map(|(entry, _)| entry).ok_or_else(|| fault.into())
    }

    fn list_fault(&self, field: &'static str, found: u32) -> crate::TreeError {
        let structure = Structure::Agfl;
        self.fault(0, FormatError::Range { structure, field, found: u64::from(found) })
    }
}
