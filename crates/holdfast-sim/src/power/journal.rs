//! What happened to a medium, in its order, and what may be left of it at any moment.

use std::sync::Arc;

use holdfast_units::{BlockSize, to_u64, to_usize};

use super::pages::Pages;
use crate::random::Random;

/// What survives or is lost as a whole: a power cut tears nothing smaller, in bytes.
const UNIT: u64 = BlockSize::SECTOR.bytes();

/// Something that changes what is stored.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) offset: u64,
    pub(super) len: u64,
    pub(super) contents: Contents,
}

/// What a change leaves.
#[derive(Clone, Debug)]
pub(super) enum Contents {
    Data(Arc<[u8]>),
    Zeros,
    Hole,
}

impl Change {
    /// Applies some units of the change, as a range of their numbers.
    fn apply(&self, units: std::ops::Range<u64>, pages: &mut Pages) {
        let (from, len) = (units.start * UNIT, (units.end - units.start) * UNIT);
        let at = self.offset + from;
        match &self.contents {
            Contents::Data(data) => pages.write(at, &data[to_usize(from)..][..to_usize(len)]),
            Contents::Zeros => pages.write(at, &vec![0; to_usize(len)]),
            Contents::Hole => pages.discard(at, len),
        }
    }

    /// Applies the units that `keep` says, in runs.
    fn apply_some(&self, pages: &mut Pages, mut keep: impl FnMut(u64) -> bool) {
        let count = self.len / UNIT;
        let mut from = 0;
        for unit in 0..count {
            if !keep(unit) {
                self.apply(from..unit, pages);
                from = unit + 1;
            }
        }
        self.apply(from..count, pages);
    }

    fn apply_all(&self, pages: &mut Pages) {
        self.apply(0..self.len / UNIT, pages);
    }

    fn overlaps(&self, offset: u64, len: u64) -> bool {
        self.offset < offset + len && offset < self.offset + self.len
    }
}

/// Something that changes what may be left after a cut.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// The change of this number may reach the medium from now on.
    Began(usize),
    /// It is in the cache.
    Ended(usize),
    /// It is on the medium.
    EndedDurable(usize),
    /// Of the first so many changes that ended, those to a disk are on the medium.
    Flushed(usize, Disk),
    /// A flush did nothing, and said that it had.
    Lied(Lie),
}

/// A part of the medium with a cache of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Disk {
    /// Where it begins, in bytes of the medium.
    pub(super) start: u64,
    /// How many bytes it has.
    pub(super) len: u64,
}

impl Disk {
    const fn has(&self, change: &Change) -> bool {
        self.start <= change.offset && change.offset < self.start + self.len
    }
}

/// A flush that did nothing.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lie {
    pub(super) disk: Disk,
    /// The position at which it was submitted.
    pub(super) submitted: usize,
    /// How many changes had ended then.
    pub(super) ended: usize,
}

/// What happened to a medium since it was made. A position in it is a number of events.
#[derive(Clone, Debug)]
pub struct Journal {
    base: Pages,
    changes: Vec<Change>,
    events: Vec<Event>,
    /// How many changes have ended.
    ended: usize,
}

impl Journal {
    pub(super) const fn new(base: Pages) -> Self {
        Self { base, changes: Vec::new(), events: Vec::new(), ended: 0 }
    }

    pub(super) fn begin(&mut self, change: Change) -> usize {
        self.changes.push(change);
        self.events.push(Event::Began(self.changes.len() - 1));
        self.changes.len() - 1
    }

    /// Applies a change to what is read from now on.
    pub(super) fn end(&mut self, number: usize, durable: bool, view: &mut Pages) {
        self.changes[number].apply_all(view);
        self.ended += 1;
        let event = if durable { Event::EndedDurable } else { Event::Ended };
        self.events.push(event(number));
    }

    pub(super) const fn ended(&self) -> usize {
        self.ended
    }

    pub(super) fn flushed(&mut self, ended: usize, disk: Disk) {
        self.events.push(Event::Flushed(ended, disk));
    }

    pub(super) fn lied(&mut self, lie: Lie) {
        self.events.push(Event::Lied(lie));
    }

    /// Returns how many events there were: a change began, a change ended, a flush ended.
    pub const fn len(&self) -> usize {
        self.events.len()
    }

    /// Returns whether nothing happened.
    pub const fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Returns how many bios of those that began before `position` change what is stored.
    pub fn changes_before(&self, position: usize) -> usize {
        let events = self.events[..position].iter();
        events.filter(|event| matches!(event, Event::Began(_))).count()
    }

    /// Returns at which position each change began, and where it begins, in bytes of the device.
    pub fn places(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.events.iter().enumerate().filter_map(|(position, event)| match *event {
            Event::Began(number) => Some((position, self.changes[number].offset)),
            _ => None,
        })
    }

    /// Returns how the `len` bytes at `offset` looked whenever a change to them was complete, as far as a
    /// cut at `position` may leave them so: what came before something durable is gone. A change of
    /// several bios is complete with the one that reaches the end of the range.
    pub fn versions(&self, offset: u64, len: u64, position: usize) -> Vec<Vec<u8>> {
        let mut pages = self.base.clone();
        let look = |pages: &Pages| {
            let mut bytes = vec![0; to_usize(len)];
            pages.read(offset, &mut bytes);
            bytes
        };
        let is_here = |number: usize| self.changes[number].overlaps(offset, len);
        let mut ended = Vec::new();
        // Each with the change that made it.
        let mut versions = vec![(None, look(&pages))];
        for event in &self.events[..position] {
            let durable = match *event {
                Event::Began(number) if is_here(number) => {
                    let change = &self.changes[number];
                    change.apply_all(&mut pages);
                    if change.offset + change.len >= offset + len {
                        versions.push((Some(number), look(&pages)));
                    }
                    None
                }
                Event::Ended(number) => {
                    ended.push(number);
                    None
                }
                Event::EndedDurable(number) => {
                    ended.push(number);
                    Some(number).filter(|&number| is_here(number))
                }
                Event::Flushed(count, disk) => {
                    let flushed = ended[..count].iter().copied();
                    flushed.filter(|&it| is_here(it) && disk.has(&self.changes[it])).max()
                }
                Event::Began(_) | Event::Lied(_) => None,
            };
            if durable.is_some() {
                versions.retain(|(number, _)| *number >= durable);
            }
        }
        versions.into_iter().map(|(_, version)| version).collect()
    }

    /// Returns where a flush was submitted that lied, if at `position` what it was to make durable
    /// still is not.
    pub fn doubtful_since(&self, position: usize) -> Option<usize> {
        let mut lies: Vec<Lie> = Vec::new();
        for event in &self.events[..position] {
            match *event {
                Event::Lied(lie) => lies.push(lie),
                // One that was submitted before those who relied on the lie wrote more is enough.
                Event::Flushed(ended, disk) => {
                    lies.retain(|lie| lie.disk != disk || lie.ended > ended);
                }
                _ => {}
            }
        }
        lies.iter().map(|lie| lie.submitted).min()
    }

    /// Returns the medium as it was in the beginning, to go on from there.
    pub fn replay(&self) -> Replay<'_> {
        Replay { journal: self, position: 0, ended: 0, durable: self.base.clone(), pending: vec![] }
    }
}

/// A change that is not durable, or not all of it.
#[derive(Debug)]
struct Pending {
    number: usize,
    /// The number of changes that ended before it, if it has.
    ended: Option<usize>,
    /// The units over which there is something durable that is newer; empty when there are none.
    superseded: Vec<bool>,
}

impl Pending {
    fn is_superseded(&self, unit: u64) -> bool {
        self.superseded.get(to_usize(unit)).copied().unwrap_or(false)
    }
}

/// A medium at one position of its journal.
#[derive(Debug)]
pub struct Replay<'j> {
    journal: &'j Journal,
    position: usize,
    ended: usize,
    durable: Pages,
    pending: Vec<Pending>,
}

/// How much of what is not durable a power cut leaves.
#[derive(Clone, Copy, Debug)]
enum Mood {
    /// So many of 100 units, each on its own.
    Units(u8),
    /// So many of 100 changes, each as a whole.
    Changes(u8),
    /// What had ended, and nothing else.
    Ended,
    /// A percentage of its own for each change.
    Mixed,
}

impl Replay<'_> {
    /// Returns how many events are behind.
    pub const fn position(&self) -> usize {
        self.position
    }

    /// Goes on to `position`, which is not before the present one.
    pub fn advance_to(&mut self, position: usize) {
        while self.position < position {
            self.step();
        }
    }

    fn step(&mut self) {
        match self.journal.events[self.position] {
            Event::Began(number) => {
                self.pending.push(Pending { number, ended: None, superseded: Vec::new() });
            }
            Event::Ended(number) => {
                let order = self.ended;
                self.pending_of(number).ended = Some(order);
                self.ended += 1;
            }
            Event::EndedDurable(number) => {
                self.pending.retain(|pending| pending.number != number);
                self.supersede(number);
                self.journal.changes[number].apply_all(&mut self.durable);
                self.ended += 1;
            }
            Event::Flushed(count, disk) => self.flush(count, disk),
            Event::Lied(_) => {}
        }
        self.position += 1;
    }

    fn pending_of(&mut self, number: usize) -> &mut Pending {
        let pending = self.pending.iter_mut().find(|pending| pending.number == number);
        pending.expect("a change ends after its begin, and once")
    }

    /// Lets nothing that has ended come back over a newer change that is durable.
    fn supersede(&mut self, number: usize) {
        let newer = &self.journal.changes[number];
        for pending in &mut self.pending {
            let older = &self.journal.changes[pending.number];
            if pending.ended.is_none() || !older.overlaps(newer.offset, newer.len) {
                continue;
            }
            pending.superseded.resize(to_usize(older.len / UNIT), false);
            for (unit, superseded) in pending.superseded.iter_mut().enumerate() {
                *superseded |= newer.overlaps(older.offset + to_u64(unit) * UNIT, UNIT);
            }
        }
    }

    /// Makes what the first `count` changes that ended did to a disk durable.
    fn flush(&mut self, count: usize, disk: Disk) {
        let changes = &self.journal.changes;
        let is_covered = |pending: &mut Pending| {
            pending.ended.is_some_and(|order| order < count) && disk.has(&changes[pending.number])
        };
        let mut covered: Vec<_> = self.pending.extract_if(.., is_covered).collect();
        covered.sort_unstable_by_key(|pending| pending.ended);
        for pending in covered {
            let change = &self.journal.changes[pending.number];
            change.apply_some(&mut self.durable, |unit| !pending.is_superseded(unit));
        }
    }

    /// Returns what a power cut may leave here: all that is durable, and of all else each 512 bytes
    /// or not, in any order.
    pub(super) fn cut(&self, random: &mut Random) -> Pages {
        let mood = match random.below(8) {
            0 => Mood::Changes(0),
            1 => Mood::Changes(100),
            2 => Mood::Ended,
            3 => Mood::Changes(50),
            4 => Mood::Units(10),
            5 => Mood::Units(90),
            6 => Mood::Units(50),
            _ => Mood::Mixed,
        };
        let mut pages = self.durable.clone();
        let mut order: Vec<&Pending> = self.pending.iter().collect();
        while !order.is_empty() {
            let which = random.below(to_u64(order.len()));
            let pending = order.swap_remove(to_usize(which));
            let percent = match mood {
                Mood::Units(percent) => percent,
                Mood::Changes(percent) => 100 * u8::from(random.chance(percent)),
                Mood::Ended => 100 * u8::from(pending.ended.is_some()),
                Mood::Mixed => [0, 20, 80, 100][to_usize(random.below(4))],
            };
            self.keep(pending, percent, random, &mut pages);
        }
        pages
    }

    /// Returns what is read here by others when only the process that used the device was killed:
    /// all that has ended, and of what was in flight each 512 bytes or not.
    pub(super) fn kill(&self, random: &mut Random) -> Pages {
        let mut pages = self.durable.clone();
        let mut order: Vec<&Pending> = self.pending.iter().collect();
        // What never ended is last.
        order.sort_unstable_by_key(|pending| pending.ended.unwrap_or(usize::MAX));
        for pending in order {
            let percent = if pending.ended.is_some() { 100 } else { 50 };
            self.keep(pending, percent, random, &mut pages);
        }
        pages
    }

    fn keep(&self, pending: &Pending, percent: u8, random: &mut Random, pages: &mut Pages) {
        let change = &self.journal.changes[pending.number];
        change.apply_some(pages, |unit| {
            let is_kept = percent == 100 || (percent > 0 && random.chance(percent));
            is_kept && !pending.is_superseded(unit)
        });
    }
}
