//! Opening a mirror: one leg names the others, and the newest record says which of them are good.

use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::error::MirrorError;
use crate::medium::{Medium, read_record};
use crate::record::{LEGS_MAX, Leg, LegState, Record};

/// The legs of a mirror that is about to be opened.
#[derive(Debug)]
pub struct Legs<M> {
    /// The newest record, with the states that the legs are in now.
    pub record: Record,
    /// The legs that can be reached.
    pub media: [Option<M>; LEGS_MAX],
    /// Where each is.
    pub paths: [PathBuf; LEGS_MAX],
    /// The legs that are there and out only because a crash came between: they can be attached at once.
    pub interrupted: Vec<usize>,
    /// What people should know: which legs are missing or out, and why.
    pub warnings: Vec<String>,
    /// The states are not those of the record.
    pub(crate) changed: bool,
    /// The leg whose record it is.
    pub(crate) newest: usize,
}

/// A leg that can be reached, and what it says.
#[derive(Debug)]
struct Reached<M> {
    path: PathBuf,
    medium: M,
    record: Record,
}

/// Finds the legs of the mirror of which `medium` at `path` is one. `open` opens another, or says why
/// that cannot be. `without` is left out as if it were missing. `None` when `medium` is no leg.
///
/// # Errors
///
/// [`MirrorError::SplitBrain`] and [`MirrorError::NoLeg`].
pub fn assemble<M: Medium>(
    path: &Path,
    medium: M,
    without: Option<&Path>,
    mut open: impl FnMut(&Path) -> Result<M, String>,
) -> Result<Option<Legs<M>>, MirrorError> {
    let Some(record) = read_record(&medium) else { return Ok(None) };
    let named = record.leg;
    let path = absolute(path);
    let mut reached: [Option<Reached<M>>; LEGS_MAX] = [const { None }; LEGS_MAX];
    let mut missing: [Option<String>; LEGS_MAX] = [const { None }; LEGS_MAX];
    reached[named] = Some(Reached { path, medium, record });
    // A record that is newer may name more.
    while let Some((index, path, uuid)) = next_to_open(&reached, &missing) {
        let left_out = without.is_some_and(|without| absolute(without) == path);
        let opened = if left_out { Err("it is left out".to_owned()) } else { open(&path) };
        let mirror = reached[named].as_ref().map(|named| named.record.uuid);
        let found = opened.and_then(|medium| {
            let record = read_record(&medium).filter(|record| {
                Some(record.uuid) == mirror && record.leg == index && record.own().uuid == uuid
            });
            let record = record.ok_or_else(|| "it is no leg of this mirror".to_owned())?;
            Ok(Reached { path: path.clone(), medium, record })
        });
        match found {
            Ok(found) => reached[index] = Some(found),
            Err(why) => missing[index] = Some(why),
        }
    }
    settle(named, reached, &missing).map(Some)
}

/// Returns the path of a leg that `own`, at `own_path`, names.
fn path_of(own_path: &Path, leg: &Leg) -> PathBuf {
    own_path.parent().map_or_else(|| PathBuf::from(&leg.path), |parent| parent.join(&leg.path))
}

/// Returns how a leg is remembered beside another one: by its name when both are in one directory.
pub(crate) fn path_text(own_path: &Path, path: &Path) -> Option<String> {
    let shared = own_path.parent() == path.parent();
    let text = if shared { path.file_name()?.to_str()? } else { path.to_str()? };
    Some(text.to_owned())
}

pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn next_to_open<M>(
    reached: &[Option<Reached<M>>; LEGS_MAX],
    missing: &[Option<String>; LEGS_MAX],
) -> Option<(usize, PathBuf, [u8; 16])> {
    let newest = reached.iter().flatten().max_by_key(|leg| leg.record.generation)?;
    let legs = newest.record.legs.iter().enumerate();
    legs.filter(|(_, leg)| !matches!(leg.state, LegState::Empty | LegState::Detached))
        .find(|&(index, _)| reached[index].is_none() && missing[index].is_none())
        .map(|(index, leg)| (index, path_of(&newest.path, leg), leg.uuid))
}

/// Decides which legs are good.
fn settle<M>(
    named: usize,
    reached: [Option<Reached<M>>; LEGS_MAX],
    missing: &[Option<String>; LEGS_MAX],
) -> Result<Legs<M>, MirrorError> {
    let records: Vec<Option<&Record>> =
        reached.iter().map(|leg| leg.as_ref().map(|leg| &leg.record)).collect();
    let name = |index: usize| {
        reached[index].as_ref().map_or_else(String::new, |leg| leg.path.display().to_string())
    };
    let Verdict { newest, states } = judge(&records).map_err(|fault| match fault {
        Fault::Split(first, second) => MirrorError::SplitBrain {
            first: name(first),
            first_state: age(records[first]),
            second: name(second),
            second_state: age(records[second]),
        },
        Fault::None => MirrorError::NoLeg {
            path: name(named),
            state: records[named].map_or("", |record| record.own().state.name()),
            generation: records[named].map_or(0, |record| record.generation),
        },
    })?;
    let mut record = reached[newest].as_ref().expect("it was judged").record.clone();
    let own_path = reached[newest].as_ref().expect("it was judged").path.clone();
    let mut warnings = Vec::new();
    let mut interrupted = Vec::new();
    let mut changed = false;
    let mut paths = [const { PathBuf::new() }; LEGS_MAX];
    for (index, leg) in record.legs.iter_mut().enumerate() {
        paths[index] =
            reached[index].as_ref().map_or_else(|| path_of(&own_path, leg), |leg| leg.path.clone());
        let (state, missed_all) = states[index];
        let path = paths[index].display();
        if state == LegState::Out {
            if reached[index].is_some() && leg.state.is_written() {
                interrupted.push(index);
            }
            let why = match (&missing[index], leg.state) {
                (Some(why), _) => why.as_str(),
                (None, LegState::InSync) => "it is older than the others",
                (None, LegState::Resyncing) => "it was being resynced",
                (None, _) => "it failed, or was missing, before",
            };
            warnings.push(format!(
                "{path} is out of the mirror: {why}. The volume goes on without it; `holdfast attach` \
                 brings it back"
            ));
        }
        changed |= (leg.state, leg.missed_all) != (state, missed_all);
        (leg.state, leg.missed_all) = (state, missed_all);
    }
    let media = reached.map(|leg| leg.map(|leg| leg.medium));
    Ok(Legs { record, media, paths, interrupted, warnings, changed, newest })
}

#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    newest: usize,
    /// Of each leg, what it is, and whether all must be copied to it.
    states: [(LegState, bool); LEGS_MAX],
}

#[derive(Debug, PartialEq, Eq)]
enum Fault {
    /// Two legs were written apart.
    Split(usize, usize),
    /// No leg says of itself that it is good.
    None,
}

fn judge(records: &[Option<&Record>]) -> Result<Verdict, Fault> {
    let believes_itself = |record: &Record| record.own().state == LegState::InSync;
    let good = |index: usize| records[index].filter(|record| believes_itself(record));
    let newest = (0..LEGS_MAX)
        .filter_map(|index| good(index).map(|record| (record.generation, index)))
        .max()
        .map(|(_, index)| index)
        .ok_or(Fault::None)?;
    let record = good(newest).expect("it was found above");
    let mut states = [(LegState::Empty, false); LEGS_MAX];
    for (index, leg) in record.legs.iter().enumerate() {
        let other = good(index).filter(|_| index != newest);
        // A leg without which the newest was written, and that was written without the newest.
        let is_apart = |other: &Record| {
            let unwanted = |state: LegState| !state.is_written();
            unwanted(other.legs[newest].state)
                && (unwanted(leg.state) || other.generation >= record.generation)
        };
        if other.is_some_and(is_apart) {
            return Err(Fault::Split(index.min(newest), index.max(newest)));
        }
        let is_current = other.is_some_and(|other| {
            other.generation == record.generation && says_the_same(other, record)
        });
        states[index] = match leg.state {
            LegState::InSync if index == newest || is_current => (LegState::InSync, false),
            // It is there, and missed what made the newest newer: nobody knows what else.
            LegState::InSync if records[index].is_some() => (LegState::Out, true),
            LegState::InSync | LegState::Resyncing => (LegState::Out, leg.missed_all),
            state => (state, leg.missed_all),
        };
    }
    Ok(Verdict { newest, states })
}

/// Returns whether two records say the same of each leg.
fn says_the_same(one: &Record, other: &Record) -> bool {
    one.legs.iter().zip(&other.legs).all(|(one, other)| one.state == other.state)
}

/// Returns how old a record is, for people.
fn age(record: Option<&Record>) -> String {
    record.map_or_else(String::new, |record| {
        format!("generation {}, {}", record.generation, utc(record.changed))
    })
}

/// Returns a time in seconds since 1970 as people write it, or as it is when there is no such date.
fn utc(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok().and_then(|it| Timestamp::from_second(it).ok());
    time.map_or_else(|| format!("second {seconds}"), |it| it.strftime("%F %T UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use LegState::{Detached, Empty, InSync, Out, Resyncing};

    /// The record of a leg, by its generation and what it says of all legs.
    fn record(leg: usize, generation: u64, states: [LegState; LEGS_MAX]) -> Record {
        let mut legs = [const { Leg::empty() }; LEGS_MAX];
        for (leg, state) in legs.iter_mut().zip(states) {
            leg.state = state;
        }
        Record { uuid: [1; 16], generation, changed: 0, region: 4 << 20, leg, legs }
    }

    fn judged(records: &[Record]) -> Result<(usize, Vec<(LegState, bool)>), Fault> {
        let of = |index: usize| records.iter().find(|record| record.leg == index);
        let all: Vec<_> = (0..LEGS_MAX).map(of).collect();
        judge(&all).map(|verdict| (verdict.newest, verdict.states[..3].to_vec()))
    }

    const BOTH: [LegState; LEGS_MAX] = [InSync, InSync, Empty, Empty];
    const FIRST: [LegState; LEGS_MAX] = [InSync, Out, Empty, Empty];
    const SECOND: [LegState; LEGS_MAX] = [Out, InSync, Empty, Empty];

    #[test]
    fn legs_of_one_generation_are_both_good() {
        let found = judged(&[record(0, 5, BOTH), record(1, 5, BOTH)]).unwrap().1;
        assert_eq!(found, [(InSync, false), (InSync, false), (Empty, false)]);
    }

    #[test]
    fn a_leg_that_the_newest_put_out_stays_out() {
        let found = judged(&[record(0, 6, FIRST), record(1, 5, BOTH)]);
        assert_eq!(found, Ok((0, vec![(InSync, false), (Out, false), (Empty, false)])));
    }

    #[test]
    fn a_missing_leg_is_out_and_its_regions_are_known_from_then_on() {
        let found = judged(&[record(1, 5, BOTH)]);
        assert_eq!(found, Ok((1, vec![(Out, false), (InSync, false), (Empty, false)])));
    }

    #[test]
    fn a_leg_that_is_behind_without_a_reason_missed_everything() {
        let found = judged(&[record(0, 6, BOTH), record(1, 5, BOTH)]);
        assert_eq!(found, Ok((0, vec![(InSync, false), (Out, true), (Empty, false)])));
    }

    #[test]
    fn legs_that_each_put_the_other_out_are_a_split_brain() {
        for generations in [(6, 6), (6, 9), (9, 6)] {
            let (first, second) = generations;
            let found = judged(&[record(0, first, FIRST), record(1, second, SECOND)]);
            assert_eq!(found, Err(Fault::Split(0, 1)), "{generations:?}");
        }
    }

    #[test]
    fn a_leg_that_was_resynced_later_is_no_split_brain() {
        // The second put the first out, which then came back, and put the second out.
        let found = judged(&[record(0, 9, FIRST), record(1, 8, BOTH)]);
        assert_eq!(found.unwrap().1[..2], [(InSync, false), (Out, false)]);
    }

    #[test]
    fn a_leg_that_was_being_resynced_is_no_good_alone() {
        let resyncing = [InSync, Resyncing, Empty, Empty];
        assert_eq!(judged(&[record(1, 7, resyncing)]), Err(Fault::None));
        let found = judged(&[record(0, 7, resyncing), record(1, 7, resyncing)]);
        assert_eq!(found.unwrap().1[..2], [(InSync, false), (Out, false)]);
    }

    #[test]
    fn one_of_three_that_was_written_apart_from_two_is_a_split_brain() {
        let two = [Out, InSync, InSync, Empty];
        let one = [InSync, Out, Out, Empty];
        let found = judged(&[record(0, 6, one), record(1, 7, two), record(2, 7, two)]);
        assert_eq!(found, Err(Fault::Split(0, 2)));
    }

    #[test]
    fn a_detached_leg_stays_detached() {
        let found = judged(&[record(0, 6, [InSync, Detached, Empty, Empty])]);
        assert_eq!(found.unwrap().1[1], (Detached, false));
    }

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(utc(u64::MAX), "second 18446744073709551615");
        assert_eq!(utc(1_795_282_096), "2026-11-21 17:28:16 UTC");
    }
}
