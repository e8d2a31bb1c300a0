//! One engine for all B+trees: here what looks, in `insert` and `remove` what changes.
//!
//! What is met on the way down must have the level that belongs there, so no bytes make it go round
//! in circles; records that are met one after the other must ascend.

mod insert;
mod remove;
#[cfg(test)]
mod tests;

use std::marker::PhantomData;

use crate::error::TreeError;
use crate::node::Layout;
use crate::shape::Shape;

/// Where a part of a tree is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// In the fork of an inode: a root.
    Fork,
    /// In a block, by its number as pointers have it.
    Block(u64),
}

/// Where a tree begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Root {
    pub(crate) place: Place,
    /// How many levels there are, leaves included. Above 0 and at most `LEVELS_MAX`.
    pub(crate) levels: u16,
}

/// Where a tree lives: its root, and the blocks that it is made of.
pub(crate) trait Home {
    type Error: From<TreeError>;

    fn root(&mut self) -> Result<Root, Self::Error>;
    /// Stores where the tree begins now. Never called when that is in an inode.
    fn set_root(&mut self, block: u64, levels: u16) -> Result<(), Self::Error>;
    fn view(&mut self, place: Place) -> Result<&[u8], Self::Error>;
    fn edit(&mut self, place: Place) -> Result<&mut [u8], Self::Error>;
    /// Takes a block from free space and creates it.
    fn take(&mut self) -> Result<u64, Self::Error>;
    /// Gives a block back.
    fn give(&mut self, block: u64) -> Result<(), Self::Error>;
    /// Returns the error for a field that cannot be so.
    fn fault(&self, place: Place, field: &'static str, found: u64) -> TreeError;
}

/// A tree that is looked at or changed.
#[derive(Debug)]
pub(crate) struct Tree<S, H> {
    pub(crate) home: H,
    shape: PhantomData<S>,
}

/// All records of a tree, and all its blocks, but for a root in an inode.
pub(crate) type Contents<R> = (Vec<R>, Vec<u64>);

/// A way from the root to a record, or to behind the last one of a leaf.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    /// The leaf comes first.
    steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    place: Place,
    index: usize,
}

impl<S: Shape, H: Home> Tree<S, H> {
    pub(crate) const fn new(home: H) -> Self {
        Self { home, shape: PhantomData }
    }

    /// Returns the last record whose key is not above `key`.
    pub(crate) fn at_or_before(
        &mut self,
        key: &S::Key,
    ) -> Result<Option<(Path, S::Record)>, H::Error> {
        let mut path = self.descend(key)?;
        Ok(self.step_back(&mut path)?.map(|record| (path, record)))
    }

    /// Returns the first record whose key is not below `key`.
    pub(crate) fn at_or_after(
        &mut self,
        key: &S::Key,
    ) -> Result<Option<(Path, S::Record)>, H::Error> {
        let path = self.descend(key)?;
        let mut before = path.clone();
        if let Some(record) = self.step_back(&mut before)?
            && S::key(&record) == *key
        {
            return Ok(Some((before, record)));
        }
        let mut path = path;
        Ok(self.settle(&mut path)?.map(|record| (path, record)))
    }

    /// Returns the record with just this key.
    pub(crate) fn exactly(&mut self, key: &S::Key) -> Result<Option<(Path, S::Record)>, H::Error> {
        Ok(self.at_or_before(key)?.filter(|(_, record)| S::key(record) == *key))
    }

    /// Returns the record before the one that a path leads to, and moves the path there.
    pub(crate) fn previous(&mut self, path: &mut Path) -> Result<Option<S::Record>, H::Error> {
        let key = self.key_at(path)?;
        let found = self.step_back(path)?;
        self.ascending(path, found.map(|record| S::key(&record)), Some(key))?;
        Ok(found)
    }

    /// Returns the record after the one that a path leads to, and moves the path there.
    pub(crate) fn next(&mut self, path: &mut Path) -> Result<Option<S::Record>, H::Error> {
        let key = self.key_at(path)?;
        path.steps[0].index += 1;
        let found = self.settle(path)?;
        self.ascending(path, Some(key), found.map(|record| S::key(&record)))?;
        Ok(found)
    }

    /// Returns all records.
    pub(crate) fn all(&mut self) -> Result<Vec<S::Record>, H::Error> {
        let mut records = Vec::new();
        let mut path = self.first_path()?;
        let mut next = self.settle(&mut path)?;
        while let Some(record) = next {
            records.push(record);
            next = self.next(&mut path)?;
        }
        Ok(records)
    }

    /// Returns all records, if there are at most so many, and all blocks.
    pub(crate) fn everything(&mut self, max: usize) -> Result<Contents<S::Record>, H::Error> {
        let root = self.home.root()?;
        let mut level = root.levels - 1;
        let mut places = vec![root.place];
        let mut blocks = Vec::new();
        while level > 0 {
            let mut below = Vec::new();
            for place in places {
                let (layout, bytes) = self.check(place, level, false)?;
                below.extend((0..layout.count(bytes)).map(|n| layout.pointer(bytes, n)));
                // Every block has at least one record.
                if below.len() > max {
                    return Err(self.home.fault(place, "count", u64::from(level)).into());
                }
            }
            blocks.extend_from_slice(&below);
            places = below.into_iter().map(Place::Block).collect();
            level -= 1;
        }
        let mut records = Vec::new();
        for place in places {
            let (layout, bytes) = self.check(place, 0, false)?;
            let count = layout.count(bytes);
            records.extend((0..count).map(|n| S::decode(layout.record(bytes, n))));
            if records.len() > max {
                return Err(self.home.fault(place, "count", 0).into());
            }
        }
        Ok((records, blocks))
    }

    /// Returns the way to the first record.
    fn first_path(&mut self) -> Result<Path, H::Error> {
        let root = self.home.root()?;
        let mut steps = Vec::new();
        let mut place = root.place;
        for level in (0..root.levels).rev() {
            let (layout, bytes) = self.check(place, level, level + 1 == root.levels)?;
            let below = if level > 0 { Some(layout.pointer(bytes, 0)) } else { None };
            steps.push(Step { place, index: 0 });
            place = below.map_or(place, Place::Block);
        }
        steps.reverse();
        Ok(Path { steps })
    }

    /// Stores another record in the place of the one that a path leads to. Its neighbours must not be
    /// beyond it.
    pub(crate) fn update(&mut self, path: &Path, record: &S::Record) -> Result<(), H::Error> {
        let step = path.steps[0];
        let (layout, bytes) = self.edit(step.place)?;
        S::encode(record, layout.record_mut(bytes, step.index));
        self.refresh(path, 0)
    }

    /// Calls `visit` with each record that reaches into what is between two keys, until it returns
    /// `false`. For trees whose records overlap.
    pub(crate) fn overlapping(
        &mut self,
        low: &S::Key,
        high: &S::Key,
        visit: &mut impl FnMut(&S::Record) -> bool,
    ) -> Result<bool, H::Error> {
        let root = self.home.root()?;
        self.overlapping_below(root.place, root.levels - 1, true, (low, high), visit)
    }

    fn overlapping_below(
        &mut self,
        place: Place,
        level: u16,
        is_root: bool,
        (low, high): (&S::Key, &S::Key),
        visit: &mut impl FnMut(&S::Record) -> bool,
    ) -> Result<bool, H::Error> {
        let mut below = Vec::new();
        let (layout, bytes) = self.check(place, level, is_root)?;
        let until = layout.upper_bound(bytes, level, high);
        for index in 0..until {
            if layout.high_key(bytes, level, index) < *low {
                continue;
            }
            if level > 0 {
                below.push((layout.pointer(bytes, index), layout.low_key(bytes, level, index)));
            } else if !visit(&S::decode(layout.record(bytes, index))) {
                return Ok(false);
            }
        }
        for (pointer, key) in below {
            let place = Place::Block(pointer);
            // Keys that are not those of the blocks would let blocks be met again and again.
            let (layout, bytes) = self.check(place, level - 1, false)?;
            if layout.low_key(bytes, level - 1, 0) != key {
                return Err(self.home.fault(place, "first key", pointer).into());
            }
            if !self.overlapping_below(place, level - 1, false, (low, high), visit)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the way to where a record with `key` is, or would be put: behind all that are not above
    /// it.
    fn descend(&mut self, key: &S::Key) -> Result<Path, H::Error> {
        let root = self.home.root()?;
        let mut steps = Vec::with_capacity(usize::from(root.levels) + 1);
        let mut place = root.place;
        for level in (0..root.levels).rev() {
            let is_root = level + 1 == root.levels;
            let (layout, bytes) = self.check(place, level, is_root)?;
            let above = layout.upper_bound(bytes, level, key);
            if level == 0 {
                steps.push(Step { place, index: above });
                break;
            }
            let index = above.saturating_sub(1);
            let pointer = layout.pointer(bytes, index);
            steps.push(Step { place, index });
            place = Place::Block(pointer);
        }
        steps.reverse();
        Ok(Path { steps })
    }

    /// Returns the record that a path leads to. From behind the end of a leaf it goes to the next.
    fn settle(&mut self, path: &mut Path) -> Result<Option<S::Record>, H::Error> {
        let step = path.steps[0];
        let (layout, bytes) = self.look(step.place)?;
        if step.index < layout.count(bytes) {
            return Ok(Some(S::decode(layout.record(bytes, step.index))));
        }
        for level in 1..path.steps.len() {
            let step = path.steps[level];
            let (layout, bytes) = self.look(step.place)?;
            if step.index + 1 < layout.count(bytes) {
                path.steps[level].index += 1;
                return self.walk_down(path, level, false).map(Some);
            }
        }
        Ok(None)
    }

    /// Moves a path one record back.
    fn step_back(&mut self, path: &mut Path) -> Result<Option<S::Record>, H::Error> {
        let Some(level) = path.steps.iter().position(|step| step.index > 0) else {
            return Ok(None);
        };
        path.steps[level].index -= 1;
        self.walk_down(path, level, true).map(Some)
    }

    /// Goes from an entry of a node to the first or last record below it.
    fn walk_down(
        &mut self,
        path: &mut Path,
        level: usize,
        to_last: bool,
    ) -> Result<S::Record, H::Error> {
        for level in (0..level).rev() {
            let above = path.steps[level + 1];
            let (layout, bytes) = self.look(above.place)?;
            let place = Place::Block(layout.pointer(bytes, above.index));
            let level_number = u16::try_from(level).unwrap_or(u16::MAX);
            let (layout, bytes) = self.check(place, level_number, false)?;
            let index = if to_last { layout.count(bytes) - 1 } else { 0 };
            path.steps[level] = Step { place, index };
        }
        self.record_at(path)
    }

    fn record_at(&mut self, path: &Path) -> Result<S::Record, H::Error> {
        let step = path.steps[0];
        let (layout, bytes) = self.look(step.place)?;
        Ok(S::decode(layout.record(bytes, step.index)))
    }

    fn key_at(&mut self, path: &Path) -> Result<S::Key, H::Error> {
        self.record_at(path).map(|record| S::key(&record))
    }

    fn ascending(
        &self,
        path: &Path,
        before: Option<S::Key>,
        after: Option<S::Key>,
    ) -> Result<(), H::Error> {
        match (before, after) {
            (Some(before), Some(after)) if before >= after => {
                let step = path.steps[0];
                let index = u64::try_from(step.index).unwrap_or(u64::MAX);
                Err(self.home.fault(step.place, "order of record", index).into())
            }
            _ => Ok(()),
        }
    }

    /// Returns a part of the tree whose level and count were checked.
    fn check(
        &mut self,
        place: Place,
        level: u16,
        is_root: bool,
    ) -> Result<(Layout<S>, &[u8]), H::Error> {
        let (layout, bytes) = self.look(place)?;
        if let Some((field, found)) = layout.fault(bytes, level, is_root && level == 0) {
            return Err(self.home.fault(place, field, found).into());
        }
        self.look(place)
    }

    /// Returns a part of the tree that was checked when the path came by.
    fn look(&mut self, place: Place) -> Result<(Layout<S>, &[u8]), H::Error> {
        let bytes = self.home.view(place)?;
        Ok((layout(place, bytes.len()), bytes))
    }

    fn edit(&mut self, place: Place) -> Result<(Layout<S>, &mut [u8]), H::Error> {
        let bytes = self.home.edit(place)?;
        Ok((layout(place, bytes.len()), bytes))
    }

    /// Stores what blocks on a path have as keys in the nodes above them, from `level` up.
    fn refresh(&mut self, path: &Path, level: usize) -> Result<(), H::Error> {
        for (step, above) in path.steps[level..].iter().zip(&path.steps[level + 1..]) {
            if !self.refresh_key(step.place, *above)? {
                break;
            }
        }
        Ok(())
    }

    /// Stores the key of a block in an entry of the node above, and returns whether it is another.
    fn refresh_key(&mut self, place: Place, above: Step) -> Result<bool, H::Error> {
        let (layout, bytes) = self.look(place)?;
        let keys = layout.keys(bytes);
        let (layout, bytes) = self.look(above.place)?;
        if layout.key(bytes, above.index) == keys {
            return Ok(false);
        }
        let (layout, bytes) = self.edit(above.place)?;
        layout.key_mut(bytes, above.index).copy_from_slice(&keys);
        Ok(true)
    }
}

const fn layout<S: Shape>(place: Place, len: usize) -> Layout<S> {
    match place {
        Place::Fork => Layout::fork(len),
        Place::Block(_) => Layout::block(len),
    }
}
