//! The free space of an allocation group: one tree by place, and one by size.

use holdfast_xfs_format::BlockKind;

use crate::blocks::Blocks;
use crate::group::{Group, add};
use crate::shape::{Shape, set_word, word};

/// Blocks of an allocation group, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Run {
    /// The number of the first in the group.
    pub start: u32,
    /// How many there are.
    pub blocks: u32,
}

impl Run {
    /// Returns the number of the block behind the last.
    pub const fn end(&self) -> u64 {
        self.start as u64 + self.blocks as u64
    }
}

/// What is to be allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The fewest blocks that are of use. Above 0.
    pub min: u32,
    /// How many blocks are wanted.
    pub max: u32,
    /// The block that they should be at or behind, or near.
    pub near: u32,
    /// What the first block must be a multiple of, in blocks. Above 0.
    pub alignment: u32,
}

/// How many extents are looked at on each side of the place that is wanted.
const NEARBY: usize = 32;

/// The tree of free space by place.
#[derive(Debug)]
pub(crate) struct ByPlace;

/// The tree of free space by size.
#[derive(Debug)]
pub(crate) struct BySize;

impl Shape for ByPlace {
    type Record = Run;
    /// The first block, and how many.
    type Key = (u32, u32);

    const KIND: BlockKind = BlockKind::FreeByPlace;
    const RECORD: usize = 8;
    const KEY: usize = 8;
    const POINTER: usize = 4;
    const KEY_MAX: Self::Key = (u32::MAX, u32::MAX);

    fn decode(bytes: &[u8]) -> Run {
        Run { start: word(bytes, 0), blocks: word(bytes, 4) }
    }

    fn encode(run: &Run, bytes: &mut [u8]) {
        set_word(bytes, 0, run.start);
        set_word(bytes, 4, run.blocks);
    }

    fn key(run: &Run) -> Self::Key {
        (run.start, run.blocks)
    }

    fn decode_key(bytes: &[u8]) -> Self::Key {
        (word(bytes, 0), word(bytes, 4))
    }

    fn encode_key(key: &Self::Key, bytes: &mut [u8]) {
        Self::encode(&Run { start: key.0, blocks: key.1 }, bytes);
    }
}

impl Shape for BySize {
    type Record = Run;
    /// How many blocks, and the first.
    type Key = (u32, u32);

    const KIND: BlockKind = BlockKind::FreeBySize;
    const RECORD: usize = 8;
    const KEY: usize = 8;
    const POINTER: usize = 4;
    const KEY_MAX: Self::Key = (u32::MAX, u32::MAX);

    fn decode(bytes: &[u8]) -> Run {
        ByPlace::decode(bytes)
    }

    fn encode(run: &Run, bytes: &mut [u8]) {
        ByPlace::encode(run, bytes);
    }

    fn key(run: &Run) -> Self::Key {
        (run.blocks, run.start)
    }

    fn decode_key(bytes: &[u8]) -> Self::Key {
        Self::key(&Self::decode(bytes))
    }

    fn encode_key(key: &Self::Key, bytes: &mut [u8]) {
        Self::encode(&Run { start: key.1, blocks: key.0 }, bytes);
    }
}

impl<B: Blocks> Group<'_, B> {
    /// Allocates blocks for a file: as many as are wanted if there are so many in one place, else the
    /// most there are. `None` when there are fewer than are of use, or they are needed for the trees.
    ///
    /// Whoever maps the blocks says whose they are.
    ///
    /// # Errors
    ///
    /// [`TreeError::Group`](crate::TreeError::Group) and [`TreeError::Contradiction`](crate::TreeError::Contradiction).
    pub fn allocate(&mut self, request: &Request) -> Result<Option<Run>, B::Error> {
        let kept = self.reserve()?;
        self.allocate_but(request, kept)
    }

    /// Allocates blocks for trees, for which some are kept.
    pub(crate) fn allocate_kept(&mut self, request: &Request) -> Result<Option<Run>, B::Error> {
        self.allocate_but(request, 0)
    }

    /// Frees blocks that nobody owns any more.
    ///
    /// # Errors
    ///
    /// [`TreeError::Contradiction`](crate::TreeError::Contradiction) for blocks that are free already, and [`TreeError::Group`](crate::TreeError::Group).
    pub fn free(&mut self, run: Run) -> Result<(), B::Error> {
        self.fix_list()?;
        self.put_back(run)?;
        self.fix_list()
    }

    fn allocate_but(&mut self, request: &Request, kept: u32) -> Result<Option<Run>, B::Error> {
        self.fix_list()?;
        let need = self.list_need()?;
        let agf = self.agf()?;
        let wanting = need.saturating_sub(agf.list_count.get());
        let left = agf.free_blocks.get().saturating_sub(kept).saturating_sub(wanting);
        let request = Request { max: request.max.min(left), ..*request };
        if request.min == 0 || request.max < request.min {
            return Ok(None);
        }
        let Some((free, run)) = self.choose(&request)? else {
            return Ok(None);
        };
        self.take_out(free, run)?;
        self.fix_list()?;
        Ok(Some(run))
    }

    /// Looks for a free extent, and returns it with the part to be taken.
    fn choose(&mut self, request: &Request) -> Result<Option<(Run, Run)>, B::Error> {
        if let Some(found) = self.nearby(request)? {
            return Ok(Some(found));
        }
        let mut tree = self.tree::<BySize>();
        // The smallest that is long enough, also where it has to begin at a multiple.
        let longest = request.max.saturating_add(request.alignment.saturating_sub(1));
        if let Some((_, free)) = tree.at_or_after(&(longest, 0))?
            && let Some(run) = tree.home.group.part(free, request)
        {
            return Ok(Some((free, run)));
        }
        let mut best: Option<(Run, Run)> = None;
        let mut next = tree.at_or_before(&BySize::KEY_MAX)?;
        while let Some((mut path, free)) = next {
            let found = best.map_or(0, |(_, run)| run.blocks);
            if free.blocks < request.min || free.blocks <= found {
                break;
            }
            let part = tree.home.group.part(free, request);
            if let Some(run) = part.filter(|run| run.blocks > found) {
                best = Some((free, run));
            }
            next = tree.previous(&mut path)?.map(|free| (path, free));
        }
        Ok(best)
    }

    /// Looks for all that is wanted near the place that is wanted.
    fn nearby(&mut self, request: &Request) -> Result<Option<(Run, Run)>, B::Error> {
        let whole = Request { min: request.max, ..*request };
        let key = (request.near, u32::MAX);
        let mut tree = self.tree::<ByPlace>();
        let mut next = tree.at_or_before(&key)?;
        if let Some((_, free)) = next
            && let Some(behind) = behind(free, request.near)
            && let Some(run) = tree.home.group.part(behind, &whole)
        {
            return Ok(Some((free, run)));
        }
        let mut best: Option<(Run, Run)> = None;
        let mut nearest = u32::MAX;
        for is_after in [false, true] {
            if is_after {
                next = tree.at_or_after(&key)?;
            }
            for _ in 0..NEARBY {
                let Some((mut path, free)) = next else {
                    break;
                };
                let run = tree.home.group.part(free, &whole);
                let distance = run.map_or(u32::MAX, |run| run.start.abs_diff(request.near));
                if let Some(run) = run.filter(|_| distance < nearest) {
                    (best, nearest) = (Some((free, run)), distance);
                }
                let found = if is_after { tree.next(&mut path) } else { tree.previous(&mut path) };
                next = found?.map(|free| (path, free));
            }
        }
        Ok(best)
    }

    /// Returns the shortest free extent, and blocks of it that may be used. Only if there are none at all,
    /// they are such as are held.
    pub(crate) fn smallest(&mut self) -> Result<Option<(Run, Run)>, B::Error> {
        let mut tree = self.tree::<BySize>();
        let mut next = tree.at_or_after(&(0, 0))?;
        let first = next.as_ref().map(|&(_, free)| (free, free));
        let any = Request { min: 1, max: u32::MAX, near: 0, alignment: 1 };
        while let Some((mut path, free)) = next {
            tree.home.group.check_run(free)?;
            if let Some(run) = tree.home.group.part(free, &any) {
                return Ok(Some((free, run)));
            }
            next = tree.next(&mut path)?.map(|free| (path, free));
        }
        Ok(first)
    }

    /// Returns the longest part of a free extent that satisfies a request and may be used.
    fn part(&self, free: Run, request: &Request) -> Option<Run> {
        let mut best: Option<Run> = None;
        let mut rest = Some(free);
        while let Some(free) = rest {
            let held = self.blocks.held(self.ag, free);
            let usable = match held {
                Some(held) => before(free, held.start),
                None => Some(free),
            };
            let longest = best.map_or(0, |best| best.blocks);
            let found = usable.and_then(|run| part(run, request));
            best = found.filter(|run| run.blocks > longest).or(best);
            rest = held.and_then(|held| behind(free, u32::try_from(held.end()).ok()?));
        }
        best
    }

    /// Takes `run`, which is a part of it, out of a free extent.
    pub(crate) fn take_out(&mut self, free: Run, run: Run) -> Result<(), B::Error> {
        self.check_run(free)?;
        let before = Run { start: free.start, blocks: run.start - free.start };
        let after =
            Run { start: run.start + run.blocks, blocks: free.blocks - before.blocks - run.blocks };
        let [first, second] = if before.blocks > 0 { [before, after] } else { [after, before] };
        self.replace_free(Some(free), Some(first).filter(|run| run.blocks > 0))?;
        if second.blocks > 0 {
            self.replace_free(None, Some(second))?;
        }
        self.change_agf(|agf| add(&mut agf.free_blocks, -i64::from(run.blocks)))?;
        self.store_longest()
    }

    /// Makes blocks free, one extent with their neighbours if those are.
    pub(crate) fn put_back(&mut self, run: Run) -> Result<(), B::Error> {
        self.check_run(run)?;
        self.blocks.note_released(self.ag, run);
        let mut tree = self.tree::<ByPlace>();
        let before = tree.at_or_before(&(run.start, u32::MAX))?.map(|(_, found)| found);
        let after = tree.at_or_after(&(run.start, u32::MAX))?.map(|(_, found)| found);
        let overlaps = before.is_some_and(|before| before.end() > u64::from(run.start))
            || after.is_some_and(|after| u64::from(after.start) < run.end());
        if overlaps {
            return self.contradiction(
                ByPlace::KIND,
                run.start,
                "has a block already that is freed",
            );
        }
        let before = before.filter(|before| before.end() == u64::from(run.start));
        let after = after.filter(|after| u64::from(after.start) == run.end());
        after.map_or(Ok(()), |after| self.check_run(after))?;
        let start = before.map_or(run.start, |before| before.start);
        let blocks = [before, Some(run), after].into_iter().flatten().map(|run| run.blocks).sum();
        if before.is_some() && after.is_some() {
            self.replace_free(after, None)?;
        }
        self.replace_free(before.or(after), Some(Run { start, blocks }))?;
        self.change_agf(|agf| add(&mut agf.free_blocks, i64::from(run.blocks)))?;
        self.store_longest()
    }

    /// Takes one extent out of both trees, and puts another in that begins or ends where it did.
    fn replace_free(&mut self, old: Option<Run>, new: Option<Run>) -> Result<(), B::Error> {
        let mut sizes = self.tree::<BySize>();
        if let Some(old) = old {
            let Some((path, _)) = sizes.exactly(&BySize::key(&old))? else {
                return self.contradiction(BySize::KIND, old.start, "does not have a free extent");
            };
            sizes.remove(path)?;
        }
        if let Some(new) = new {
            sizes.insert(&new)?;
        }
        let mut places = self.tree::<ByPlace>();
        let Some(old) = old else {
            return new.map_or(Ok(()), |new| places.insert(&new));
        };
        match (places.exactly(&ByPlace::key(&old))?, new) {
            (Some((path, _)), Some(new)) => places.update(&path, &new),
            (Some((path, _)), None) => places.remove(path),
            (None, _) => {
                self.contradiction(ByPlace::KIND, old.start, "does not have a free extent")
            }
        }
    }

    fn store_longest(&mut self) -> Result<(), B::Error> {
        let last = self.tree::<BySize>().at_or_before(&BySize::KEY_MAX)?;
        let longest = last.map_or(0, |(_, run)| run.blocks);
        self.change_agf(|agf| {
            agf.longest.set(longest);
            true
        })
    }

    /// Checks that blocks are in this group.
    pub(crate) fn check_run(&self, run: Run) -> Result<(), B::Error> {
        if run.blocks > 0 && run.end() <= u64::from(self.len()) {
            return Ok(());
        }
        self.contradiction(ByPlace::KIND, run.start, "has blocks outside the allocation group")
    }

    /// Returns all free extents by place, and all by size.
    ///
    /// # Errors
    ///
    /// [`TreeError::Group`](crate::TreeError::Group).
    pub fn free_space(&mut self) -> Result<[Vec<Run>; 2], B::Error> {
        Ok([self.tree::<ByPlace>().all()?, self.tree::<BySize>().all()?])
    }
}

/// Returns the first part of a free extent that satisfies a request.
fn part(free: Run, request: &Request) -> Option<Run> {
    let start = free.start.checked_next_multiple_of(request.alignment)?;
    let blocks = free.blocks.checked_sub(start - free.start)?.min(request.max);
    (blocks >= request.min).then_some(Run { start, blocks })
}

/// Returns the part of a run from a block on.
fn behind(run: Run, start: u32) -> Option<Run> {
    let blocks = run.blocks.checked_sub(start.checked_sub(run.start)?)?;
    (blocks > 0).then_some(Run { start, blocks })
}

/// Returns the part of a run before a block of it.
fn before(run: Run, end: u32) -> Option<Run> {
    let blocks = end.checked_sub(run.start)?;
    (blocks > 0).then_some(Run { start: run.start, blocks })
}
