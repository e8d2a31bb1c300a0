//! Which blocks of an allocation group several files share, and how many do.

use holdfast_xfs_format::BlockKind;

use crate::blocks::Blocks;
use crate::free::Run;
use crate::group::Group;
use crate::shape::{Shape, set_word, word};

/// Blocks that are shared (`xfs_refcount_rec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// The blocks.
    pub run: Run,
    /// How many owners they have.
    pub count: u32,
}

/// The bit of the first block that says that a copy is being made: those records come last.
const COPY: u32 = 1 << 31;
/// A count that does not change any more.
const STUCK: u32 = u32::MAX;

/// The tree of shared extents.
#[derive(Debug)]
pub(crate) struct Sharing;

impl Shape for Sharing {
    type Record = Shared;
    type Key = u32;

    const KIND: BlockKind = BlockKind::Refcount;
    const RECORD: usize = 12;
    const KEY: usize = 4;
    const POINTER: usize = 4;
    const KEY_MAX: u32 = u32::MAX;

    fn decode(bytes: &[u8]) -> Shared {
        let run = Run { start: word(bytes, 0), blocks: word(bytes, 4) };
        Shared { run, count: word(bytes, 8) }
    }

    fn encode(record: &Shared, bytes: &mut [u8]) {
        set_word(bytes, 0, record.run.start);
        set_word(bytes, 4, record.run.blocks);
        set_word(bytes, 8, record.count);
    }

    fn key(record: &Shared) -> u32 {
        record.run.start
    }

    fn decode_key(bytes: &[u8]) -> u32 {
        word(bytes, 0)
    }

    fn encode_key(key: &u32, bytes: &mut [u8]) {
        set_word(bytes, 0, *key);
    }
}

impl<B: Blocks> Group<'_, B> {
    /// Returns the first blocks of a run that are shared, all that follow one another, or that
    /// [must not be overwritten](Blocks::held) because they were.
    ///
    /// # Errors
    ///
    /// [`TreeError::Group`](crate::TreeError::Group).
    pub fn shared(&mut self, run: Run) -> Result<Option<Run>, B::Error> {
        let mut found: Option<Run> = None;
        for piece in self.pieces(run)?.into_iter().filter(|piece| piece.count > 1) {
            match &mut found {
                Some(found) if found.end() == u64::from(piece.run.start) => {
                    found.blocks += piece.run.blocks;
                }
                Some(_) => break,
                None => found = Some(piece.run),
            }
        }
        let held = self.blocks.held(self.ag, run);
        Ok([found, held].into_iter().flatten().min_by_key(|run| run.start))
    }

    /// Stores that one more file has these blocks.
    ///
    /// # Errors
    ///
    /// [`TreeError::Full`](crate::TreeError::Full), [`TreeError::Group`](crate::TreeError::Group) and
    /// [`TreeError::Contradiction`](crate::TreeError::Contradiction).
    pub fn share(&mut self, run: Run) -> Result<(), B::Error> {
        self.adjust(run, |count| count.saturating_add(1)).map(|_| ())
    }

    /// Stores that one file less has these blocks, and frees those that no other has.
    ///
    /// # Errors
    ///
    /// As for [`share`](Self::share), and for [`free`](Self::free).
    pub fn release(&mut self, run: Run) -> Result<(), B::Error> {
        if !self.file_system.has_sharing {
            return self.free(run);
        }
        let less = |count| if count == STUCK { count } else { count - 1 };
        self.adjust(run, less)?.into_iter().try_for_each(|run| self.free(run))
    }

    /// Returns all shared extents.
    ///
    /// # Errors
    ///
    /// [`TreeError::Group`](crate::TreeError::Group).
    pub fn all_shared(&mut self) -> Result<Vec<Shared>, B::Error> {
        if self.file_system.has_sharing { self.tree::<Sharing>().all() } else { Ok(Vec::new()) }
    }

    /// Returns how many blocks the tree of shared extents has, which come from free space.
    ///
    /// # Errors
    ///
    /// The AGF cannot be had.
    pub fn sharing_blocks(&mut self) -> Result<u64, B::Error> {
        Ok(u64::from(self.agf()?.refcount_blocks.get()))
    }

    /// Changes how many files have blocks, and returns those that none has any more.
    fn adjust(&mut self, run: Run, change: impl Fn(u32) -> u32) -> Result<Vec<Run>, B::Error> {
        if !self.file_system.has_sharing {
            return self.contradiction(Sharing::KIND, run.start, "is not there");
        }
        self.check_run(run)?;
        let old = self.touching(run)?;
        let mut new = Vec::new();
        let mut freed = Vec::new();
        new.extend(old.first().and_then(|first| part(first, 0, u64::from(run.start))));
        for piece in pieces(run, &old) {
            let piece = Shared { count: change(piece.count), ..piece };
            match piece.count {
                0 => freed.push(piece.run),
                1 => self.blocks.note_released(self.ag, piece.run),
                _ => join(&mut new, piece),
            }
        }
        if let Some(last) = old.last().and_then(|last| part(last, run.end(), u64::MAX)) {
            join(&mut new, last);
        }
        self.replace_shared(&old, &new)?;
        Ok(freed)
    }

    /// Returns the records that have blocks of a run, or end or begin where it begins or ends.
    fn touching(&mut self, run: Run) -> Result<Vec<Shared>, B::Error> {
        let mut tree = self.tree::<Sharing>();
        let before = run.start.saturating_sub(1);
        let mut next = tree.at_or_before(&before)?;
        if next.as_ref().is_none_or(|(_, found)| found.run.end() < u64::from(run.start)) {
            next = tree.at_or_after(&before)?;
        }
        let mut records: Vec<Shared> = Vec::new();
        while let Some((mut path, found)) = next {
            if found.run.start & COPY != 0 || u64::from(found.run.start) > run.end() {
                break;
            }
            let previous_end = records.last().map_or(0, |last| last.run.end());
            if found.count < 2 || u64::from(found.run.start) < previous_end {
                return self.contradiction(Sharing::KIND, found.run.start, "has a bad record");
            }
            records.push(found);
            next = tree.next(&mut path)?.map(|found| (path, found));
        }
        records.iter().try_for_each(|found| self.check_run(found.run))?;
        Ok(records)
    }

    /// Returns all parts of a run with how many owners they have.
    fn pieces(&mut self, run: Run) -> Result<Vec<Shared>, B::Error> {
        if !self.file_system.has_sharing {
            return Ok(vec![Shared { run, count: 1 }]);
        }
        self.check_run(run)?;
        Ok(pieces(run, &self.touching(run)?))
    }

    /// Takes records out, and puts others in. Both are in order.
    fn replace_shared(&mut self, old: &[Shared], new: &[Shared]) -> Result<(), B::Error> {
        for record in old.iter().filter(|record| !holds(new, record)) {
            let mut tree = self.tree::<Sharing>();
            match tree.exactly(&record.run.start)? {
                Some((path, _)) => tree.remove(path)?,
                None => {
                    let start = record.run.start;
                    return self.contradiction(Sharing::KIND, start, "does not have a record");
                }
            }
        }
        let mut missing = new.iter().filter(|record| !holds(old, record));
        missing.try_for_each(|record| self.tree::<Sharing>().insert(record))
    }
}

/// Returns whether a record is one of those, which are in order.
fn holds(records: &[Shared], record: &Shared) -> bool {
    let found = records.binary_search_by_key(&record.run.start, |found| found.run.start);
    found.is_ok_and(|index| records[index] == *record)
}

/// Returns all parts of a run, those that are in no record with the one owner that they have.
fn pieces(run: Run, records: &[Shared]) -> Vec<Shared> {
    let mut pieces = Vec::with_capacity(2 * records.len() + 1);
    let mut at = u64::from(run.start);
    let inside = |record| part(record, u64::from(run.start), run.end());
    for record in records.iter().filter_map(inside) {
        let start = u64::from(record.run.start);
        pieces.extend(between(at, start).map(|run| Shared { run, count: 1 }));
        pieces.push(record);
        at = record.run.end();
    }
    pieces.extend(between(at, run.end()).map(|run| Shared { run, count: 1 }));
    pieces
}

/// Returns the part of a record between two blocks.
fn part(record: &Shared, from: u64, until: u64) -> Option<Shared> {
    let run = between(from.max(u64::from(record.run.start)), until.min(record.run.end()))?;
    Some(Shared { run, count: record.count })
}

/// Returns the blocks between two.
fn between(from: u64, until: u64) -> Option<Run> {
    let start = u32::try_from(from).ok()?;
    let blocks = u32::try_from(until.checked_sub(from)?).ok()?;
    (blocks > 0).then_some(Run { start, blocks })
}

/// Appends a record, to the last one if they can be one.
fn join(records: &mut Vec<Shared>, new: Shared) {
    match records.last_mut() {
        Some(last) if last.run.end() == u64::from(new.run.start) && last.count == new.count => {
            last.run.blocks += new.run.blocks;
        }
        _ => records.push(new),
    }
}
