//! What a disk may hold, now and after a cut: which writes began, were answered and became durable,
//! and when.
//!
//! A sector is written by one write at a time, in an order of which only this is known: a write that
//! was answered before another began is before it. What is found in a sector must be what some of its
//! writes left, in one such order: all that are durable, with all that are before one of them. Nothing
//! here does I/O.

use std::ops::Range;

use crate::content::Found;

/// When something happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment {
    /// The number of the event: no two have the same.
    clock: u64,
    /// How many events the journal of the device had.
    pub(crate) position: usize,
}

/// A request that changes what is stored.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) units: Range<usize>,
    pub(crate) clears: bool,
    pub(crate) begun: Moment,
    ended: Option<Moment>,
    /// It was answered, and not by an error.
    is_sure: bool,
    /// The position at which it was known to be durable.
    durable: Option<usize>,
}

/// For whom something may be found.
#[derive(Clone, Copy, Debug)]
pub(crate) enum View {
    /// For a read that began at this moment and ends now.
    Read(Moment),
    /// After a power cut at `position`, when what was durable at `durable` must be there.
    Cut {
        /// How many events had happened.
        position: usize,
        /// How many of them count for what is durable.
        durable: usize,
    },
    /// After the process was killed at this position.
    Kill(usize),
}

/// All requests of a run that change what is stored.
#[derive(Debug)]
pub(crate) struct Model {
    writes: Vec<Write>,
    /// The writes of each unit, in the order in which they began.
    of_unit: Vec<Vec<usize>>,
    clock: u64,
}

/// The disk as it was created: zeros everywhere.
const CREATION: usize = 0;

impl Model {
    /// Returns the model of a disk of so many units of zeros.
    pub(crate) fn new(units: usize) -> Self {
        let start = Moment { clock: 0, position: 0 };
        let creation = Write {
            units: 0..units,
            clears: true,
            begun: start,
            ended: Some(start),
            is_sure: true,
            durable: Some(0),
        };
        Self { writes: vec![creation], of_unit: vec![vec![CREATION]; units], clock: 0 }
    }

    /// Returns how many units the disk has.
    pub(crate) fn units(&self) -> usize {
        self.of_unit.len()
    }

    /// Returns the number that the next write will have.
    pub(crate) fn next(&self) -> usize {
        self.writes.len()
    }

    /// Returns the moment of an event that happens at this position of the journal.
    pub(crate) fn now(&mut self, position: usize) -> Moment {
        self.clock += 1;
        Moment { clock: self.clock, position }
    }

    /// Says that a request begins that changes units. Returns its number.
    pub(crate) fn begin(&mut self, units: Range<usize>, clears: bool, position: usize) -> usize {
        let number = self.writes.len();
        for of_unit in &mut self.of_unit[units.clone()] {
            of_unit.push(number);
        }
        let begun = self.now(position);
        let write = Write { units, clears, begun, ended: None, is_sure: false, durable: None };
        self.writes.push(write);
        number
    }

    /// Says that a request has ended. When it failed, each of its sectors is the old or the new.
    pub(crate) fn end(&mut self, number: usize, is_sure: bool, fua: bool, position: usize) {
        let now = self.now(position);
        let write = &mut self.writes[number];
        (write.ended, write.is_sure) = (Some(now), is_sure);
        write.durable = (is_sure && fua).then_some(position);
    }

    /// Says that a flush has ended that began at `begun`.
    pub(crate) fn flushed(&mut self, begun: Moment, position: usize) {
        for write in &mut self.writes {
            if write.is_sure && write.durable.is_none() && write.ended < Some(begun) {
                write.durable = Some(position);
            }
        }
    }

    /// Returns the writes of some units that had begun for `view`.
    pub(crate) fn writes_of(
        &self,
        units: Range<usize>,
        view: View,
    ) -> impl Iterator<Item = &Write> + '_ {
        self.involved(units, view).into_iter().map(|number| &self.writes[number])
    }

    /// Returns whether a write that failed may have left a sector of these units as nothing whole:
    /// none has written all of it since.
    pub(crate) fn is_damaged(&self, units: Range<usize>, view: View) -> bool {
        let involved = self.involved(units.clone(), view);
        let has_failed =
            |number: usize| self.writes[number].ended.is_some() && !self.writes[number].is_sure;
        let is_mended = |failed: usize| {
            involved.iter().any(|&later| {
                let of_later = &self.writes[later].units;
                let covers = of_later.start <= units.start && units.end <= of_later.end;
                covers && self.precedes(failed, later) && self.is_required(later, view)
            })
        };
        involved.iter().any(|&number| has_failed(number) && !is_mended(number))
    }

    /// Returns the writes of which some may be found in these units, for people.
    pub(crate) fn history(&self, units: Range<usize>, view: View) -> String {
        let mut history = String::from("zeros at first");
        for number in self.involved(units, view) {
            let Write { units, clears, begun, ended, is_sure, durable } = &self.writes[number];
            if number == CREATION {
                continue;
            }
            let what = if *clears { "clears" } else { "writes" };
            let ended = ended.map_or(usize::MAX, |ended| ended.position);
            let text = format!(
                "; {number} {what} units {units:?} from {} to {ended} (sure: {is_sure}, durable: {durable:?})",
                begun.position
            );
            history.push_str(&text);
        }
        history
    }

    fn involved(&self, units: Range<usize>, view: View) -> Vec<usize> {
        let mut involved: Vec<usize> = self.of_unit[units]
            .iter()
            .flatten()
            .copied()
            .filter(|&number| self.has_begun(number, view))
            .collect();
        involved.sort_unstable();
        involved.dedup();
        involved
    }

    fn has_begun(&self, number: usize, view: View) -> bool {
        match view {
            View::Read(_) => true,
            View::Cut { position, .. } | View::Kill(position) => {
                // The latest moment at which the device was like that.
                self.writes[number].begun.position <= position
            }
        }
    }

    fn is_required(&self, number: usize, view: View) -> bool {
        let write = &self.writes[number];
        match view {
            View::Read(begun) => write.is_sure && write.ended < Some(begun),
            View::Cut { durable, .. } => write.durable.is_some_and(|at| at <= durable),
            View::Kill(position) => {
                write.is_sure && write.ended.is_some_and(|ended| ended.position <= position)
            }
        }
    }

    /// Returns whether one write had ended before the other began.
    fn precedes(&self, first: usize, second: usize) -> bool {
        self.writes[first].ended.is_some_and(|ended| ended < self.writes[second].begun)
    }

    /// Returns whether this may be found in the units of a sector from `first` on.
    pub(crate) fn allows(&self, first: usize, found: &[Found], view: View) -> bool {
        if let Some(allowed) = self.allows_whole(first, found, view) {
            return allowed;
        }
        let units = first..first + found.len();
        let involved = self.involved(units, view);
        let clearing = involved.iter().copied().filter(|&number| self.writes[number].clears);
        let zeros: Vec<usize> = if found.contains(&Found::Zeros) {
            clearing.collect()
        } else {
            // Any number will do.
            vec![CREATION]
        };
        zeros.into_iter().any(|zeros| {
            let last = found.iter().map(|found| match *found {
                Found::Zeros => Some(zeros),
                Found::Write(number) => involved.contains(&number).then_some(number),
                Found::Foreign { .. } => None,
            });
            let last: Option<Vec<usize>> = last.collect();
            last.is_some_and(|last| self.is_order(first, &last, &involved, view))
        })
    }

    /// Answers when all units are from one write: then it must only be the last.
    fn allows_whole(&self, first: usize, found: &[Found], view: View) -> Option<bool> {
        let same = *found.first()?;
        if found.iter().any(|found| *found != same) {
            return None;
        }
        let of_units = &self.of_unit[first..first + found.len()];
        let is_last = |number: usize| {
            let mut others = of_units.iter().flatten();
            !others.any(|&other| self.precedes(number, other) && self.is_required(other, view))
        };
        Some(match same {
            Found::Foreign { .. } => false,
            Found::Write(number) => {
                let is_here = of_units.iter().all(|of_unit| of_unit.contains(&number));
                is_here && self.has_begun(number, view) && is_last(number)
            }
            // What clears, clears all of a sector.
            Found::Zeros => of_units[0].iter().any(|&number| {
                self.writes[number].clears && self.has_begun(number, view) && is_last(number)
            }),
        })
    }

    /// Returns whether there is an order of writes after which these are the last of their units.
    fn is_order(&self, first: usize, last: &[usize], involved: &[usize], view: View) -> bool {
        let is_seed = |number: &usize| last.contains(number) || self.is_required(*number, view);
        let seeds: Vec<usize> = involved.iter().copied().filter(is_seed).collect();
        // What is before one of them is there, too.
        let is_there = |number: &usize| {
            is_seed(number)
                || self.writes[*number].is_sure
                    && seeds.iter().any(|&seed| self.precedes(*number, seed))
        };
        let mut left: Vec<usize> = involved.iter().copied().filter(is_there).collect();
        let covers =
            |number: usize, unit: usize| self.writes[number].units.contains(&(first + unit));
        let is_before = |one: usize, other: usize| {
            self.precedes(one, other)
                || last.iter().enumerate().any(|(unit, &last)| last == other && covers(one, unit))
        };
        // Take away what nothing is before, until nothing is left or all are before each other.
        while !left.is_empty() {
            let is_first =
                |&one: &usize| !left.iter().any(|&other| other != one && is_before(other, one));
            let Some(at) = left.iter().position(is_first) else { return false };
            left.swap_remove(at);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: View = View::Cut { position: 1000, durable: 1000 };
    const ZEROS: Found = Found::Zeros;

    fn write(model: &mut Model, units: Range<usize>, at: usize) -> usize {
        let number = model.begin(units, false, at);
        model.end(number, true, false, at + 1);
        number
    }

    fn flush(model: &mut Model, at: usize) {
        let begun = model.now(at);
        model.flushed(begun, at + 1);
    }

    fn pair(one: usize, other: usize) -> [Found; 2] {
        [Found::Write(one), Found::Write(other)]
    }

    #[test]
    fn what_was_not_flushed_is_there_or_not() {
        let mut model = Model::new(2);
        let one = write(&mut model, 0..2, 1);
        assert!(model.allows(0, &pair(one, one), CUT));
        assert!(model.allows(0, &[ZEROS, ZEROS], CUT));
        assert!(!model.allows(0, &[ZEROS, Found::Write(one)], CUT));
    }

    #[test]
    fn what_was_flushed_is_there() {
        let mut model = Model::new(2);
        let one = write(&mut model, 0..2, 1);
        flush(&mut model, 3);
        assert!(model.allows(0, &pair(one, one), CUT));
        assert!(!model.allows(0, &[ZEROS, ZEROS], CUT));
        let before = View::Cut { position: 4, durable: 3 };
        assert!(model.allows(0, &[ZEROS, ZEROS], before));
    }

    #[test]
    fn a_flush_that_began_before_the_answer_says_nothing() {
        let mut model = Model::new(1);
        let number = model.begin(0..1, false, 1);
        let begun = model.now(2);
        model.end(number, true, false, 3);
        model.flushed(begun, 4);
        assert!(model.allows(0, &[ZEROS], CUT));
    }

    #[test]
    fn a_durable_write_that_failed_is_there_or_not() {
        let mut model = Model::new(1);
        let number = model.begin(0..1, false, 1);
        model.end(number, false, true, 2);
        assert!(model.allows(0, &[ZEROS], CUT));
        assert!(model.allows(0, &[Found::Write(number)], CUT));
    }

    #[test]
    fn what_had_not_begun_is_not_there() {
        let mut model = Model::new(1);
        let one = write(&mut model, 0..1, 5);
        let view = View::Cut { position: 4, durable: 4 };
        assert!(!model.allows(0, &[Found::Write(one)], view));
        assert!(model.allows(0, &[ZEROS], view));
    }

    #[test]
    fn what_took_no_event_is_there_with_the_last_event_before_it() {
        let mut model = Model::new(1);
        let number = model.begin(0..1, true, 5);
        model.end(number, true, true, 5);
        for view in [View::Cut { position: 5, durable: 5 }, View::Kill(5)] {
            assert!(model.allows(0, &[ZEROS], view));
        }
    }

    #[test]
    fn a_part_of_a_sector_comes_with_what_was_written_to_the_rest_before() {
        let mut model = Model::new(2);
        let one = write(&mut model, 0..1, 1);
        let other = write(&mut model, 1..2, 3);
        assert!(model.allows(0, &pair(one, other), CUT));
        assert!(model.allows(0, &[Found::Write(one), ZEROS], CUT));
        assert!(!model.allows(0, &[ZEROS, Found::Write(other)], CUT));
    }

    #[test]
    fn parts_of_a_sector_that_are_written_at_once_come_in_any_order() {
        let mut model = Model::new(2);
        let (one, other) = (model.begin(0..1, false, 1), model.begin(1..2, false, 1));
        assert!(model.allows(0, &[ZEROS, Found::Write(other)], CUT));
        assert!(model.allows(0, &[Found::Write(one), ZEROS], CUT));
        assert!(model.allows(0, &pair(one, other), CUT));
    }

    #[test]
    fn two_writes_to_all_of_a_sector_leave_one_of_them() {
        let mut model = Model::new(2);
        let (one, other) = (model.begin(0..2, false, 1), model.begin(0..2, false, 1));
        assert!(model.allows(0, &pair(one, one), CUT));
        assert!(model.allows(0, &pair(other, other), CUT));
        assert!(!model.allows(0, &pair(one, other), CUT));
    }

    #[test]
    fn an_older_write_is_not_read_after_a_newer() {
        let mut model = Model::new(1);
        let (one, other) = (write(&mut model, 0..1, 1), write(&mut model, 0..1, 3));
        let begun = model.now(5);
        assert!(model.allows(0, &[Found::Write(other)], View::Read(begun)));
        assert!(!model.allows(0, &[Found::Write(one)], View::Read(begun)));
        assert!(model.allows(0, &[Found::Write(one)], CUT));
        assert!(!model.allows(0, &[Found::Write(one)], View::Kill(1000)));
    }

    #[test]
    fn zeros_may_be_those_of_a_later_write() {
        let mut model = Model::new(2);
        write(&mut model, 0..2, 1);
        let clear = model.begin(0..2, true, 3);
        model.end(clear, true, false, 4);
        flush(&mut model, 5);
        let part = write(&mut model, 0..1, 7);
        assert!(model.allows(0, &[Found::Write(part), ZEROS], CUT));
        assert!(model.allows(0, &[ZEROS, ZEROS], CUT));
    }

    #[test]
    fn a_write_that_failed_damages_until_all_of_the_sector_is_written() {
        let mut model = Model::new(2);
        assert!(!model.is_damaged(0..2, CUT));
        let failed = model.begin(0..2, false, 1);
        model.end(failed, false, false, 2);
        assert!(model.is_damaged(0..2, CUT));
        write(&mut model, 0..1, 3);
        flush(&mut model, 5);
        assert!(model.is_damaged(0..2, CUT));
        write(&mut model, 0..2, 7);
        assert!(model.is_damaged(0..2, CUT));
        flush(&mut model, 9);
        assert!(!model.is_damaged(0..2, CUT));
    }

    #[test]
    fn what_nobody_wrote_is_never_right() {
        let mut model = Model::new(1);
        assert!(!model.allows(0, &[Found::Foreign { word: 1 }], CUT));
        write(&mut model, 0..1, 1);
        assert!(!model.allows(0, &[Found::Foreign { word: 1 }], CUT));
        assert!(!model.allows(0, &[Found::Write(9)], CUT));
    }
}
