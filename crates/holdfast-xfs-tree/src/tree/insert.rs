//! Putting a record in: blocks that are full are split in two.

use super::{Home, Path, Place, Root, Step, Tree};
use crate::node::Entries;
use crate::shape::Shape;

impl<S: Shape, H: Home> Tree<S, H> {
    /// Puts a record in. There must be none with its key.
    pub(crate) fn insert(&mut self, record: &S::Record) -> Result<(), H::Error> {
        let mut path = self.descend(&S::key(record))?;
        let Step { place, index } = path.steps[0];
        let (layout, bytes) = self.look(place)?;
        if index > 0 && layout.low_key(bytes, 0, index - 1) == S::key(record) {
            let index = u64::try_from(index).unwrap_or(u64::MAX);
            return Err(self.home.fault(place, "record that is there already", index).into());
        }
        let mut entries = Entries::record::<S>(record);
        let mut level = 0;
        while let Some(above) = self.insert_at(&mut path, level, &entries)? {
            entries = above;
            level += 1;
        }
        Ok(())
    }

    /// Puts an entry where the path leads to at a level, and returns what is to be put in above.
    fn insert_at(
        &mut self,
        path: &mut Path,
        level: usize,
        entries: &Entries,
    ) -> Result<Option<Entries>, H::Error> {
        if self.is_full(path.steps[level].place)? && path.steps[level].place == Place::Fork {
            self.push_down(path)?;
        }
        let Step { place, index } = path.steps[level];
        if !self.is_full(place)? {
            let (layout, bytes) = self.edit(place)?;
            layout.paste(bytes, index, entries);
            self.refresh(path, level)?;
            return Ok(None);
        }
        if self.insert_beside(path, level, entries)? {
            return Ok(None);
        }
        let (right, left_count) = self.split(place, path)?;
        let right_place = Place::Block(right);
        let (target, index) =
            if index <= left_count { (place, index) } else { (right_place, index - left_count) };
        let (layout, bytes) = self.edit(target)?;
        layout.paste(bytes, index, entries);
        let (layout, bytes) = self.look(right_place)?;
        let entry = Entries::pointer::<S>(layout.keys(bytes), right);
        let Some(above) = path.steps.get(level + 1).copied() else {
            self.grow(place, &entry, path)?;
            return Ok(None);
        };
        self.refresh_key(place, above)?;
        path.steps[level + 1].index += 1;
        Ok(Some(entry))
    }

    /// Takes a block from free space, which cannot be one that is being changed.
    fn take(&mut self, path: &Path) -> Result<u64, H::Error> {
        let new = self.home.take()?;
        let place = Place::Block(new);
        if path.steps.iter().any(|step| step.place == place) {
            return Err(self.home.fault(place, "free block in use", new).into());
        }
        Ok(new)
    }

    fn is_full(&mut self, place: Place) -> Result<bool, H::Error> {
        let (layout, bytes) = self.look(place)?;
        Ok(layout.count(bytes) >= layout.most(layout.level(bytes)))
    }

    /// Puts an entry into a full block, of which a part goes to a neighbour under the same node. Returns
    /// whether one has room.
    fn insert_beside(
        &mut self,
        path: &Path,
        level: usize,
        entries: &Entries,
    ) -> Result<bool, H::Error> {
        let Some(&above) = path.steps.get(level + 1) else {
            return Ok(false);
        };
        let Step { place, index } = path.steps[level];
        let (layout, bytes) = self.look(above.place)?;
        let siblings = layout.count(bytes);
        let pointer = |index| Place::Block(layout.pointer(bytes, index));
        let left = above.index.checked_sub(1).map(|at| (pointer(at), at));
        let right = Some(above.index + 1).filter(|&at| at < siblings).map(|at| (pointer(at), at));
        for (beside, at) in [left, right].into_iter().flatten() {
            if beside == place {
                return Err(self.home.fault(above.place, "pointer", 0).into());
            }
            let is_left = at < above.index;
            if !self.insert_with(place, index, (beside, is_left), entries)? {
                continue;
            }
            self.refresh_key(beside, Step { place: above.place, index: at })?;
            self.refresh_key(place, above)?;
            self.refresh(path, level + 1)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Puts an entry into a full block, if a neighbour has room: half of it is filled from the block, or
    /// the entry goes there itself when it belongs between the two.
    fn insert_with(
        &mut self,
        place: Place,
        index: usize,
        (beside, is_left): (Place, bool),
        entries: &Entries,
    ) -> Result<bool, H::Error> {
        let (layout, bytes) = self.look(place)?;
        let (number, count) = (layout.level(bytes), layout.count(bytes));
        let (layout, bytes) = self.check(beside, number, false)?;
        let count_beside = layout.count(bytes);
        let room = layout.most(number) - count_beside;
        if room == 0 {
            return Ok(false);
        }
        let movable = if is_left { index } else { count - index };
        let moved = room.div_ceil(2).min(movable);
        let (from, to) = if is_left { (0..moved, count_beside) } else { (count - moved..count, 0) };
        let (layout, bytes) = self.edit(place)?;
        let cut = layout.cut(bytes, from);
        let (layout, bytes) = self.edit(beside)?;
        layout.paste(bytes, to, &cut);
        if moved == 0 {
            layout.paste(bytes, to, entries);
            return Ok(true);
        }
        let (layout, bytes) = self.edit(place)?;
        layout.paste(bytes, if is_left { index - moved } else { index }, entries);
        Ok(true)
    }

    /// Moves the upper half of a block to a new one, and returns that, and how many are left.
    fn split(&mut self, place: Place, path: &Path) -> Result<(u64, usize), H::Error> {
        let new = self.take(path)?;
        let (layout, bytes) = self.edit(place)?;
        let (level, count) = (layout.level(bytes), layout.count(bytes));
        let left_count = count.div_ceil(2);
        let moved = layout.cut(bytes, left_count..count);
        let after = layout.right(bytes);
        layout.set_right(bytes, Some(new));
        let left = match place {
            Place::Block(block) => Some(block),
            Place::Fork => None,
        };
        self.fill(new, level, &moved, (left, after))?;
        if let Some(after) = after {
            let (layout, bytes) = self.edit(Place::Block(after))?;
            layout.set_left(bytes, Some(new));
        }
        Ok((new, left_count))
    }

    /// Fills a new block.
    fn fill(
        &mut self,
        block: u64,
        level: u16,
        entries: &Entries,
        (left, right): (Option<u64>, Option<u64>),
    ) -> Result<(), H::Error> {
        let (layout, bytes) = self.edit(Place::Block(block))?;
        layout.set_level(bytes, level);
        layout.set_left(bytes, left);
        layout.set_right(bytes, right);
        layout.paste(bytes, 0, entries);
        Ok(())
    }

    /// Puts a new root over one that was split.
    fn grow(&mut self, left: Place, right: &Entries, path: &Path) -> Result<(), H::Error> {
        let Root { levels, .. } = self.home.root()?;
        let Place::Block(pointer) = left else {
            return Err(self.home.fault(left, "count", 0).into());
        };
        let new = self.take(path)?;
        let (layout, bytes) = self.look(left)?;
        let mut entries = Entries::pointer::<S>(layout.keys(bytes), pointer);
        entries.append(right);
        self.fill(new, levels, &entries, (None, None))?;
        self.home.set_root(new, levels + 1)
    }

    /// Moves all entries of a root in an inode to a new block. The path goes through it then.
    fn push_down(&mut self, path: &mut Path) -> Result<(), H::Error> {
        let new = self.take(path)?;
        let (layout, bytes) = self.edit(Place::Fork)?;
        let (level, count) = (layout.level(bytes), layout.count(bytes));
        let moved = layout.cut(bytes, 0..count);
        self.fill(new, level, &moved, (None, None))?;
        let (layout, bytes) = self.look(Place::Block(new))?;
        let entry = Entries::pointer::<S>(layout.keys(bytes), new);
        let (layout, bytes) = self.edit(Place::Fork)?;
        layout.set_level(bytes, level + 1);
        layout.paste(bytes, 0, &entry);
        if let Some(step) = path.steps.last_mut() {
            step.place = Place::Block(new);
        }
        path.steps.push(Step { place: Place::Fork, index: 0 });
        Ok(())
    }
}
