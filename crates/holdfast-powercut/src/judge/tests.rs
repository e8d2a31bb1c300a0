use holdfast_sim::Random;

use super::*;
use crate::flip::Place;
use crate::plan::Trouble;
use crate::run::BOOT;

/// A run without trouble that has stored data, and where its volume was closed last.
fn closed() -> (Plan, Run, usize) {
    let mut runs = (0..).filter_map(|seed| {
        let mut random = Random::new(seed);
        let plan = Plan::new(seed, &mut random);
        if plan.trouble != Trouble::None || plan.legs > 1 {
            return None;
        }
        let run = Run::new(&plan, &mut random).ok()?;
        let position = *run.closed.last()?;
        let view = View::Cut { position, durable: position };
        let has_data = |unit| !run.model.allows(unit, &[Found::Zeros], view);
        (0..run.model.units()).any(has_data).then_some((plan, run, position))
    });
    runs.next().unwrap()
}

/// Judges what is left at one position as if it were another.
fn judge(
    (plan, run, position): &(Plan, Run, usize),
    cut_at: usize,
    prepare: impl FnOnce(&PowerDevice) -> Vec<Flip>,
) -> Result<Seen, Wrong> {
    let mut replay = run.journal.replay();
    replay.advance_to(cut_at);
    let device = run.device.after_cut(&replay, 1);
    let flips = prepare(&device);
    let position = *position;
    let view = View::Cut { position, durable: position };
    let cut = Cut { position, view, is_doubtful: false };
    let image = Image { device, cut, boot: BOOT + 1, flips };
    Judge::new(plan, run)?.judge(&image).map(|(_, seen)| seen)
}

/// Returns a sector that was never written, and where its data are.
fn untouched((plan, run, position): &(Plan, Run, usize)) -> (u64, u64) {
    let judge = Judge::new(plan, run).unwrap();
    let view = View::Cut { position: *position, durable: 0 };
    let mut lbas = 0..judge.sectors();
    let is_untouched = |lba: &u64| run.model.writes_of(judge.units_of(*lba), view).count() == 1;
    let lba = lbas.find(is_untouched).unwrap();
    (lba, plan.options().geometry().unwrap().data_at(lba * plan.sector.bytes()))
}

#[test]
fn a_volume_that_was_closed_is_right() {
    let closed = closed();
    assert!(judge(&closed, closed.2, |_| Vec::new()).unwrap().failed.is_empty());
}

#[test]
fn a_volume_without_what_was_flushed_is_wrong() {
    let closed = closed();
    let found = judge(&closed, 0, |_| Vec::new());
    assert!(matches!(found, Err(Wrong::Contents { .. })), "{:?}", found.err());
}

#[test]
fn a_volume_with_what_was_written_later_is_wrong() {
    let (plan, run, position) = closed();
    let earlier = (plan, run, 1);
    let found = judge(&earlier, position, |_| Vec::new());
    assert!(matches!(found, Err(Wrong::Contents { .. })), "{:?}", found.err());
}

#[test]
fn a_sector_that_fails_without_a_reason_is_a_false_alarm() {
    let closed = closed();
    let (lba, at) = untouched(&closed);
    let found = judge(&closed, closed.2, |device| {
        device.corrupt(at + 5, 1);
        Vec::new()
    });
    assert!(
        matches!(found, Err(Wrong::FalseAlarm { lba: found, .. }) if found == lba),
        "{found:?}"
    );
}

#[test]
fn a_flipped_bit_that_is_read_is_missed() {
    let closed = closed();
    let (lba, at) = untouched(&closed);
    let flip = Flip { lba, place: Place::Data, duty: Duty::Find };
    let found = judge(&closed, closed.2, |device| {
        device.corrupt(at + 5, 1);
        vec![flip]
    });
    assert!(found.is_ok_and(|seen| seen.failed.contains_key(&lba)));
    let found = judge(&closed, closed.2, |_| vec![flip]);
    assert!(matches!(found, Err(Wrong::Missed { .. })), "{:?}", found.err());
}
