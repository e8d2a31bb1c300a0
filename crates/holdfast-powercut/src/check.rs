//! One seed: a run, cut at every event of its device.

use holdfast_sim::{PowerDevice, Random, Replay};
use holdfast_units::to_u64;
use holdfast_volume::Durability;

use crate::alarm::{Alarm, Stage, Wrong};
use crate::flip::Flip;
use crate::judge::{Cut, Image, Judge};
use crate::model::View;
use crate::plan::Plan;
use crate::report::Counts;
use crate::run::{BOOT, Run};

/// What came of a seed.
#[derive(Debug)]
pub struct Outcome {
    /// The durability of the volume.
    pub durability: Durability,
    /// What was done.
    pub counts: Counts,
    /// The first that was wrong.
    pub alarm: Option<Box<Alarm>>,
}

/// Runs what `seed` stands for and cuts it at every event, or only at the event `only`.
pub fn check(seed: u64, only: Option<usize>) -> Outcome {
    let mut random = Random::new(seed);
    let plan = Plan::new(seed, &mut random);
    let mut counts = Counts { runs: 1, ..Counts::default() };
    let found = run_and_cut(seed, &plan, only, &mut counts, &mut random);
    counts.alarms = u64::from(found.is_err());
    let alarm = found.err().map(|(cut, stage, wrong)| {
        let plan = plan.to_string();
        Box::new(Alarm { seed, cut, stage, wrong: *wrong, plan })
    });
    Outcome { durability: plan.durability, counts, alarm }
}

/// Where something was wrong, and what.
type Found = (Option<usize>, Stage, Box<Wrong>);

fn run_and_cut(
    seed: u64,
    plan: &Plan,
    only: Option<usize>,
    counts: &mut Counts,
    random: &mut Random,
) -> Result<(), Found> {
    let live = |wrong| (None, Stage::Live, Box::new(wrong));
    let run = Run::new(plan, random).map_err(live)?;
    let judge = Judge::new(plan, &run).map_err(live)?;
    let mut cuts = Cuts { seed, judge, stage: Stage::Cut };
    let positions = only.map_or(1..run.journal.len() + 1, |cut| cut..cut + 1);
    let turned = u64::from(run.has_turned(plan));
    let mut replay = run.journal.replay();
    for position in positions {
        replay.advance_to(position.min(run.journal.len()));
        let result = cuts.at(&replay);
        *counts = Counts { runs: 1, turned, ..cuts.judge.counts };
        result.map_err(|wrong| (Some(replay.position()), cuts.stage, Box::new(wrong)))?;
    }
    Ok(())
}

/// The cuts of one run.
struct Cuts<'r> {
    seed: u64,
    judge: Judge<'r>,
    /// What is being done.
    stage: Stage,
}

/// How often, in 100 cuts, more is done than to open the volume and to read it.
const FURTHER_PERCENT: u8 = 10;
const RECOVERY_PERCENT: u8 = 2;
const FLIPPED_PERCENT: u8 = 12;
const KILL_PERCENT: u8 = 15;
/// At how many events of a recovery the power is cut at most.
const RECOVERY_CUTS: usize = 50;

impl Cuts<'_> {
    /// Cuts the power here, and judges what is left.
    fn at(&mut self, replay: &Replay<'_>) -> Result<(), Wrong> {
        let position = replay.position();
        // The same for a cut whether others are made before it or not.
        let mixed = self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = Random::new(mixed ^ to_u64(position) << 40);
        let doubt = self.judge.run.journal.doubtful_since(position);
        let view = View::Cut { position, durable: doubt.unwrap_or(position) };
        let cut = Cut { position, view, is_doubtful: doubt.is_some() };
        let from = &self.judge.run.device;
        let device = from.after_cut(replay, random.next());
        if random.chance(FLIPPED_PERCENT) && !cut.is_doubtful {
            self.flipped(device.settled(), cut, &mut random)?;
        }
        if random.chance(KILL_PERCENT) {
            self.stage = Stage::Kill;
            self.judge.counts.kills += 1;
            let device = from.after_kill(replay, random.next());
            let cut = Cut { view: View::Kill(position), is_doubtful: false, ..cut };
            self.judge.judge(&Image { device, cut, boot: BOOT, flips: Vec::new() })?;
        }
        self.stage = Stage::Cut;
        self.judge.counts.cuts += 1;
        let image = Image { device, cut, boot: BOOT + 1, flips: Vec::new() };
        let (opened, seen) = self.judge.judge(&image)?;
        if random.chance(RECOVERY_PERCENT) {
            self.recoveries(&image, &mut random)?;
        }
        if random.chance(FURTHER_PERCENT) {
            self.stage = Stage::Further;
            let sectors = self.judge.plan.sector.count(self.judge.plan.capacity);
            let lbas = (0..3).map(|_| random.below(sectors)).collect();
            self.judge.go_on(&image, &opened, seen, lbas)?;
        }
        Ok(())
    }

    /// Flips bits before the volume is opened.
    fn flipped(&mut self, device: PowerDevice, cut: Cut, random: &mut Random) -> Result<(), Wrong> {
        self.stage = Stage::Flipped;
        let mut flips: Vec<Flip> = Vec::new();
        for _ in 0..=random.below(3) {
            let flip = Flip::new(&self.judge, &device, cut.position, &flips, random);
            flips.extend(flip);
        }
        self.judge.judge(&Image { device, cut, boot: BOOT + 1, flips })?;
        Ok(())
    }

    /// Cuts the power once more, at events of the recovery that has just been.
    fn recoveries(&mut self, image: &Image, random: &mut Random) -> Result<(), Wrong> {
        let journal = image.device.journal();
        let mut replay = journal.replay();
        // That of a mirror may have thousands.
        let step = journal.len().div_ceil(RECOVERY_CUTS).max(1);
        for position in (1..=journal.len()).step_by(step) {
            self.stage = Stage::Recovery(position);
            self.judge.counts.recoveries += 1;
            replay.advance_to(position);
            let device = image.device.after_cut(&replay, random.next());
            let cut = image.cut;
            self.judge.judge(&Image { device, cut, boot: BOOT + 2, flips: Vec::new() })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_format_loses_anything_at_any_cut() {
        // Each guard, sector and durability is in one of them, and mirrors with each durability.
        for seed in [0, 4, 8, 9, 13, 17, 57, 61, 62] {
            let outcome = check(seed, None);
            assert!(outcome.alarm.is_none(), "{}", outcome.alarm.unwrap());
            assert!(outcome.counts.cuts > 50, "seed {seed}");
        }
    }

    #[test]
    fn a_seed_is_the_same_again() {
        let (first, again) = (check(2, None), check(2, None));
        assert_eq!(first.counts, again.counts);
    }

    #[test]
    fn one_cut_alone_is_the_same_as_among_all() {
        let all = check(1, None).counts;
        let alone: u64 = (1..=all.cuts)
            .map(|cut| check(1, Some(holdfast_units::to_usize(cut))).counts.sectors)
            .sum();
        assert_eq!(alone, all.sectors);
    }
}
