//! Sectors that a medium has corrupted, and which requests must fail for that.
//!
//! A request that verifies a corrupt sector must fail, and no other may. Around the moments at which
//! a sector rots or is written anew, requests in flight may do either.

use std::collections::BTreeSet;

use crate::model::Moment;
use crate::plan::{Kind, Plan};
use crate::random::Random;

/// What becomes of a sector by a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Touch {
    Nothing,
    /// It is read and checked, also where only a part of it is written.
    Verifies,
    /// It is written whole, or made zeros.
    Heals,
}

/// How a request may end that verifies such sectors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Expected {
    /// It must succeed.
    #[default]
    Success,
    /// It must fail.
    Failure,
    /// It may do either.
    Either,
}

/// A sector that was corrupted.
#[derive(Clone, Copy, Debug)]
struct Record {
    sector: u64,
    since: Moment,
    /// When the first write of all of it began.
    heal_begun: Moment,
    /// When such a write was answered.
    healed: Moment,
    /// A request has failed because of it.
    detected: bool,
}

/// The corrupt sectors of a disk.
#[derive(Debug)]
pub(crate) struct Rot {
    sector_blocks: u64,
    records: Vec<Record>,
    injected: u64,
    detected: u64,
}

impl Rot {
    /// Returns a disk of such sectors, all of which are good.
    pub(crate) const fn new(sector_blocks: u64) -> Self {
        Self { sector_blocks, records: Vec::new(), injected: 0, detected: 0 }
    }

    /// Returns how many sectors were corrupted, and how many of them were found by a request.
    pub(crate) const fn counts(&self) -> (u64, u64) {
        (self.injected, self.detected)
    }

    /// Says that a sector is corrupt from now on, to which nobody writes at the moment.
    pub(crate) fn inject(&mut self, sector: u64, now: Moment) {
        self.injected += 1;
        self.records.push(Record {
            sector,
            since: now,
            heal_begun: Moment::NEVER,
            healed: Moment::NEVER,
            detected: false,
        });
    }

    /// Returns the sectors that are corrupt.
    pub(crate) fn rotten(&self) -> BTreeSet<u64> {
        self.unhealed().map(|record| record.sector).collect()
    }

    fn unhealed(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().filter(|record| record.healed == Moment::NEVER)
    }

    /// Returns one of the corrupt sectors that were found already, or that were not.
    pub(crate) fn choose(&self, detected: bool, random: &mut Random) -> Option<u64> {
        let found: Vec<_> = self.unhealed().filter(|record| record.detected == detected).collect();
        (!found.is_empty()).then(|| found[random.index(found.len())].sector)
    }

    fn touch(&self, plan: &Plan, sector: u64) -> Touch {
        let (begin, end) = (sector * self.sector_blocks, (sector + 1) * self.sector_blocks);
        let mut touch = Touch::Nothing;
        for range in &plan.ranges {
            if range.end <= begin || end <= range.start {
                continue;
            }
            let is_whole = range.start <= begin && end <= range.end;
            match plan.kind {
                Kind::Read => return Touch::Verifies,
                Kind::Write | Kind::WriteZeroes { .. } if !is_whole => return Touch::Verifies,
                Kind::Discard if !is_whole => {}
                _ => touch = Touch::Heals,
            }
        }
        touch
    }

    /// Returns whether what becomes of a request will tell what has become of each sector: none is
    /// overwritten before it was found, and none by a request that must fail.
    pub(crate) fn allows(&self, plan: &Plan) -> bool {
        let (mut heals, mut verifies) = (false, false);
        for record in self.unhealed() {
            match self.touch(plan, record.sector) {
                Touch::Heals if !record.detected => return false,
                Touch::Heals => heals = true,
                Touch::Verifies => verifies = true,
                Touch::Nothing => {}
            }
        }
        !(heals && verifies)
    }

    /// Says that a request begins.
    pub(crate) fn begin(&mut self, begun: Moment, plan: &Plan) {
        for at in 0..self.records.len() {
            if self.touch(plan, self.records[at].sector) == Touch::Heals {
                let record = &mut self.records[at];
                record.heal_begun = record.heal_begun.min(begun);
            }
        }
    }

    /// Says that a request has ended, and returns how it may have.
    pub(crate) fn end(
        &mut self,
        begun: Moment,
        now: Moment,
        plan: &Plan,
        succeeded: bool,
    ) -> Expected {
        let mut expected = Expected::Success;
        let mut verified = Vec::new();
        for at in 0..self.records.len() {
            let touch = self.touch(plan, self.records[at].sector);
            let record = &mut self.records[at];
            if touch == Touch::Heals && succeeded && record.since < begun {
                record.healed = record.healed.min(now);
            }
            if touch != Touch::Verifies || record.healed < begun {
                continue;
            }
            verified.push(at);
            let is_sure = record.since < begun && record.heal_begun > now;
            match (is_sure, expected) {
                (true, _) => expected = Expected::Failure,
                (false, Expected::Success) => expected = Expected::Either,
                (false, _) => {}
            }
        }
        // Of several only one is named by a request that failed.
        if let (Expected::Failure, false, &[only]) = (expected, succeeded, &verified[..])
            && !std::mem::replace(&mut self.records[only].detected, true)
        {
            self.detected += 1;
        }
        expected
    }

    /// Forgets what nobody meets who began at `oldest` or later.
    pub(crate) fn forget(&mut self, oldest: Moment) {
        self.records.retain(|record| record.healed >= oldest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECTOR: u64 = 5;

    fn at(number: u64) -> Moment {
        Moment::of_number(number)
    }

    fn plan(kind: Kind, first: u64, end: u64) -> Plan {
        Plan::of(kind, first..end)
    }

    /// Sectors of 4096 bytes, of which that of the blocks 40 to 47 is corrupt since 10.
    fn rot() -> Rot {
        let mut rot = Rot::new(8);
        rot.inject(SECTOR, at(10));
        rot
    }

    fn read() -> Plan {
        plan(Kind::Read, 47, 50)
    }

    fn overwrite() -> Plan {
        plan(Kind::Write, 40, 48)
    }

    #[test]
    fn a_read_of_a_corrupt_sector_must_fail() {
        let mut rot = rot();
        assert_eq!(rot.end(at(11), at(12), &read(), false), Expected::Failure);
        assert_eq!(rot.counts(), (1, 1));
    }

    #[test]
    fn a_read_of_other_sectors_must_not() {
        let mut rot = rot();
        for plan in [plan(Kind::Read, 30, 40), plan(Kind::Read, 48, 49)] {
            assert_eq!(rot.end(at(11), at(12), &plan, true), Expected::Success);
        }
    }

    #[test]
    fn a_read_in_flight_while_a_sector_rots_may_do_either() {
        assert_eq!(rot().end(at(9), at(12), &read(), true), Expected::Either);
    }

    #[test]
    fn a_write_of_a_part_must_fail_and_a_discard_of_a_part_must_not() {
        let part = |kind| plan(kind, 44, 60);
        assert_eq!(rot().end(at(11), at(12), &part(Kind::Write), false), Expected::Failure);
        let zeroes = Kind::WriteZeroes { unmap: true };
        assert_eq!(rot().end(at(11), at(12), &part(zeroes), false), Expected::Failure);
        assert_eq!(rot().end(at(11), at(12), &part(Kind::Discard), true), Expected::Success);
    }

    #[test]
    fn a_sector_is_good_again_after_all_of_it_was_written() {
        let mut rot = rot();
        rot.end(at(11), at(12), &read(), false);
        assert!(rot.allows(&overwrite()));
        rot.begin(at(13), &overwrite());
        assert_eq!(rot.end(at(11), at(14), &read(), true), Expected::Either);
        assert_eq!(rot.end(at(13), at(15), &overwrite(), true), Expected::Success);
        assert_eq!(rot.end(at(14), at(16), &read(), true), Expected::Either);
        assert_eq!(rot.end(at(16), at(17), &read(), true), Expected::Success);
        assert!(rot.rotten().is_empty());
    }

    #[test]
    fn a_sector_is_not_overwritten_before_it_was_found() {
        assert!(!rot().allows(&overwrite()));
        assert!(rot().allows(&plan(Kind::Write, 41, 48)));
    }

    #[test]
    fn a_request_does_not_fail_for_one_sector_and_heal_another() {
        let mut rot = rot();
        rot.end(at(11), at(12), &read(), false);
        rot.inject(6, at(13));
        assert!(!rot.allows(&plan(Kind::Write, 40, 50)));
    }

    #[test]
    fn of_two_corrupt_sectors_a_failed_read_finds_neither() {
        let mut rot = rot();
        rot.inject(6, at(10));
        assert_eq!(rot.end(at(11), at(12), &read(), false), Expected::Failure);
        assert_eq!(rot.counts(), (2, 0));
    }

    #[test]
    fn a_healed_sector_is_forgotten_when_nobody_can_meet_it() {
        let mut rot = rot();
        rot.end(at(13), at(15), &overwrite(), true);
        rot.forget(at(15));
        assert_eq!(rot.records.len(), 1);
        rot.forget(at(16));
        assert!(rot.records.is_empty());
    }
}
