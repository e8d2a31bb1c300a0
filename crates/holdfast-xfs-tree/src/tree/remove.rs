//! Taking a record out: blocks that have too little are merged with a neighbour, or get from it.

use super::{Home, Path, Place, Step, Tree};
use crate::shape::Shape;

/// Two blocks under one node, which are neighbours.
#[derive(Clone, Copy, Debug)]
struct Pair {
    left: u64,
    right: u64,
    /// The entry of the left one in the node above.
    index: usize,
}

impl<S: Shape, H: Home> Tree<S, H> {
    /// Takes out the record that a path leads to.
    pub(crate) fn remove(&mut self, path: Path) -> Result<(), H::Error> {
        let mut path = path;
        let mut level = 0;
        while self.remove_at(&mut path, level)? {
            level += 1;
        }
        self.lower()
    }

    /// Takes an entry out of a block on the path, and returns whether the entry that the path leads to
    /// above is to be taken out as well, because two blocks are one now.
    fn remove_at(&mut self, path: &mut Path, level: usize) -> Result<bool, H::Error> {
        let Step { place, index } = path.steps[level];
        let (layout, bytes) = self.edit(place)?;
        layout.cut(bytes, index..index + 1);
        let (number, count) = (layout.level(bytes), layout.count(bytes));
        let Some(above) = path.steps.get(level + 1).copied() else {
            return Ok(false);
        };
        if count >= layout.least(number) {
            self.refresh(path, level)?;
            return Ok(false);
        }
        let Some(pair) = self.pair(above)? else {
            // The only block under a root in an inode may have few entries.
            if count == 0 {
                return Err(self.home.fault(place, "count", 0).into());
            }
            self.refresh(path, level)?;
            return Ok(false);
        };
        self.check(Place::Block(pair.left), number, false)?;
        self.check(Place::Block(pair.right), number, false)?;
        self.refill(path, level, pair)
    }

    /// Returns a block on the path and its neighbour, given the path's step above it.
    fn pair(&mut self, above: Step) -> Result<Option<Pair>, H::Error> {
        let (layout, bytes) = self.look(above.place)?;
        if layout.count(bytes) < 2 {
            return Ok(None);
        }
        let index = above.index.saturating_sub(1);
        let (left, right) = (layout.pointer(bytes, index), layout.pointer(bytes, index + 1));
        if left == right {
            return Err(self.home.fault(above.place, "pointer", left).into());
        }
        Ok(Some(Pair { left, right, index }))
    }

    /// Makes one block of two, if one has room for both; else both get as much.
    fn refill(&mut self, path: &mut Path, level: usize, pair: Pair) -> Result<bool, H::Error> {
        let (left, right) = (Place::Block(pair.left), Place::Block(pair.right));
        let above = path.steps[level + 1].place;
        let (layout, bytes) = self.look(left)?;
        let (most, left_count) = (layout.most(layout.level(bytes)), layout.count(bytes));
        let (layout, bytes) = self.look(right)?;
        let right_count = layout.count(bytes);
        let total = left_count + right_count;
        if total <= most {
            self.merge(pair)?;
            path.steps[level + 1].index = pair.index;
            self.refresh_key(left, path.steps[level + 1])?;
            path.steps[level + 1].index += 1;
            return Ok(true);
        }
        let target = total / 2;
        if left_count < target {
            let (layout, bytes) = self.edit(right)?;
            let moved = layout.cut(bytes, 0..target - left_count);
            let (layout, bytes) = self.edit(left)?;
            layout.paste(bytes, left_count, &moved);
        } else {
            let (layout, bytes) = self.edit(left)?;
            let moved = layout.cut(bytes, target..left_count);
            let (layout, bytes) = self.edit(right)?;
            layout.paste(bytes, 0, &moved);
        }
        self.refresh_key(left, Step { place: above, index: pair.index })?;
        self.refresh_key(right, Step { place: above, index: pair.index + 1 })?;
        self.refresh(path, level + 1)?;
        Ok(false)
    }

    /// Moves all of the right block to the left one, and gives the right one back.
    fn merge(&mut self, pair: Pair) -> Result<(), H::Error> {
        let (left, right) = (Place::Block(pair.left), Place::Block(pair.right));
        let (layout, bytes) = self.edit(right)?;
        let (count, after) = (layout.count(bytes), layout.right(bytes));
        let moved = layout.cut(bytes, 0..count);
        let (layout, bytes) = self.edit(left)?;
        let left_count = layout.count(bytes);
        layout.paste(bytes, left_count, &moved);
        layout.set_right(bytes, after);
        if let Some(after) = after {
            let (layout, bytes) = self.edit(Place::Block(after))?;
            layout.set_left(bytes, Some(pair.left));
        }
        self.home.give(pair.right)
    }

    /// Makes the tree lower while its root points to one block only, which can be the root.
    fn lower(&mut self) -> Result<(), H::Error> {
        loop {
            let root = self.home.root()?;
            if root.levels < 2 {
                return Ok(());
            }
            let (layout, bytes) = self.check(root.place, root.levels - 1, true)?;
            if layout.count(bytes) != 1 {
                return Ok(());
            }
            let room = layout.most(root.levels - 1);
            let child = layout.pointer(bytes, 0);
            match root.place {
                Place::Block(old) => {
                    self.check(Place::Block(child), root.levels - 2, false)?;
                    self.home.set_root(child, root.levels - 1)?;
                    self.home.give(old)?;
                }
                Place::Fork => {
                    let (layout, bytes) =
                        self.check(Place::Block(child), root.levels - 2, false)?;
                    // Records are never in a root in an inode.
                    if root.levels == 2 || layout.count(bytes) > room {
                        return Ok(());
                    }
                    self.pull_up(child)?;
                }
            }
        }
    }

    /// Moves all entries of the only block under a root in an inode into the root.
    fn pull_up(&mut self, child: u64) -> Result<(), H::Error> {
        let (layout, bytes) = self.edit(Place::Block(child))?;
        let (level, count) = (layout.level(bytes), layout.count(bytes));
        let moved = layout.cut(bytes, 0..count);
        let (layout, bytes) = self.edit(Place::Fork)?;
        layout.cut(bytes, 0..1);
        layout.set_level(bytes, level);
        layout.paste(bytes, 0, &moved);
        self.home.give(child)
    }
}
