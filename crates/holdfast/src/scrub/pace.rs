//! When a scrub is due, and how fast it may go. Nothing here looks at a clock or does I/O.

use std::time::Duration;

use holdfast_volume::ScrubBatch;
use holdfast_volume::format::ScrubRecord;

use super::activity::Traffic;

/// A pass that is under way goes at least so fast, in bytes per second.
const RATE_MIN: u64 = 1 << 20;
/// While clients are active a pass has one read in flight for one part in so many of the time: more
/// where reads are quick, less where clients keep the storage busy.
const CLIENT_SHARE: u64 = 20;
/// How long clients count as active after their last request.
const HOLD: Duration = Duration::from_millis(250);
/// What is read at a time when somebody may be kept waiting, in bytes.
const SLICE: u64 = 256 << 10;
/// The seconds of a day.
const DAY: u64 = 24 * 60 * 60;

/// What the user has asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    /// How often the whole disk is to be read, in days. Without it only when somebody says so.
    pub(crate) days: Option<u32>,
    /// The most bytes per second.
    pub(crate) rate_max: u64,
}

impl Plan {
    fn period(&self) -> Option<u64> {
        self.days.map(|days| u64::from(days) * DAY)
    }

    /// Returns when the next pass is due, if none is under way: in seconds since 1970, and not after
    /// `now` when it is to begin at once.
    pub(crate) fn due(&self, record: &ScrubRecord, now: u64) -> Option<u64> {
        let period = self.period().filter(|_| !record.under_way)?;
        // A clock that was set back would otherwise put the next pass off for as long.
        let is_known = (1..=now).contains(&record.started);
        Some(if is_known { record.started.saturating_add(period) } else { now })
    }

    /// Returns how fast a pass is to go, in bytes per second, when there are no clients: evenly, so
    /// that it ends in time, or as fast as it may when it is `urgent`.
    pub(crate) fn rate(&self, record: &ScrubRecord, capacity: u64, urgent: bool, now: u64) -> u64 {
        let Some(period) = self.period().filter(|_| !urgent) else { return self.rate_max };
        let passed = now.saturating_sub(record.started);
        let left = period.saturating_sub(passed).max(1);
        (capacity - record.position).div_ceil(left).max(RATE_MIN).min(self.rate_max)
    }
}

/// What a pass may do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    /// How many bytes to read.
    pub(crate) bytes: u64,
    /// How fast, in bytes per second.
    rate: u64,
}

impl Turn {
    /// Returns when the next turn may begin, after one that was allowed at `ready`, began at `begun`
    /// and has read so many bytes. One that began late is followed by one that makes up for it.
    pub(crate) fn next(&self, ready: Duration, begun: Duration, bytes: u64) -> Duration {
        let nanoseconds = u128::from(bytes) * 1_000_000_000 / u128::from(self.rate.max(1));
        let spacing = Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX));
        ready.max(begun.saturating_sub(spacing)).saturating_add(spacing)
    }
}

/// Watches the clients, and lets a scrub go on in their pauses.
#[derive(Debug, Default)]
pub(crate) struct Pacer {
    seen: Traffic,
    /// Until when clients count as active. Times are those since some moment.
    active_until: Duration,
    /// How fast the storage was when it was read last, in bytes per second.
    speed: u64,
}

impl Pacer {
    /// Takes note of what clients have done by `now`.
    pub(crate) fn look(&mut self, now: Duration, traffic: Traffic) {
        if traffic != self.seen || traffic.begun != traffic.ended {
            self.active_until = now + HOLD;
        }
        self.seen = traffic;
    }

    /// Takes note of how long it took to read so many bytes.
    pub(crate) fn took(&mut self, bytes: u64, time: Duration) {
        if bytes > 0 {
            let speed = u128::from(bytes) * 1_000_000 / time.as_micros().max(1);
            self.speed = u64::try_from(speed).unwrap_or(u64::MAX);
        }
    }

    /// Returns what a pass may do at `now`, which may go at `rate` when there are no clients.
    pub(crate) fn turn(&self, now: Duration, rate: u64) -> Turn {
        if now >= self.active_until {
            return Turn { bytes: (rate / 8).clamp(SLICE, ScrubBatch::BYTES_MAX), rate };
        }
        let beside = (self.speed / CLIENT_SHARE).max(RATE_MIN);
        Turn { bytes: SLICE, rate: rate.min(beside) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;
    const TIB: u64 = 1 << 40;
    const MONTH: Plan = Plan { days: Some(30), rate_max: 64 * MIB };
    /// Some moment.
    const THEN: u64 = 1_800_000_000;

    fn begun(position: u64) -> ScrubRecord {
        ScrubRecord { position, started: THEN, under_way: true, ..ScrubRecord::default() }
    }

    const fn at(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    #[test]
    fn a_volume_that_was_never_scrubbed_is_due_at_once() {
        assert_eq!(MONTH.due(&ScrubRecord::default(), THEN), Some(THEN));
    }

    #[test]
    fn passes_begin_a_period_apart() {
        let ended = ScrubRecord { started: THEN, finished: THEN + 5, ..ScrubRecord::default() };
        assert_eq!(MONTH.due(&ended, THEN + 10), Some(THEN + 30 * DAY));
        // The clock was wrong then, or is now.
        assert_eq!(MONTH.due(&ended, THEN - 1), Some(THEN - 1));
    }

    #[test]
    fn nothing_is_due_while_a_pass_is_under_way_or_without_a_period() {
        let paused = ScrubRecord { paused: true, ..begun(0) };
        assert_eq!(MONTH.due(&paused, THEN + 99 * DAY), None);
        let plan = Plan { days: None, ..MONTH };
        assert_eq!(plan.due(&ScrubRecord::default(), THEN), None);
    }

    #[test]
    fn a_pass_goes_evenly_but_neither_too_slowly_nor_too_fast() {
        let rate = |position, capacity, now| MONTH.rate(&begun(position), capacity, false, now);
        // 10 TiB in 30 days.
        assert_eq!(rate(0, 10 * TIB, THEN), (10 * TIB).div_ceil(30 * DAY));
        // It was held up: 5 TiB in one day.
        assert_eq!(rate(5 * TIB, 10 * TIB, THEN + 29 * DAY), (5 * TIB).div_ceil(DAY));
        assert_eq!(rate(0, TIB / 1024, THEN), MIB);
        assert_eq!(rate(5 * TIB, 10 * TIB, THEN + 31 * DAY), 64 * MIB);
        assert_eq!(rate(10 * TIB, 10 * TIB, THEN), MIB, "only its end is left");
    }

    #[test]
    fn who_asks_for_a_scrub_gets_it_as_fast_as_it_may_go() {
        assert_eq!(MONTH.rate(&begun(0), TIB, true, THEN), 64 * MIB);
        let plan = Plan { days: None, ..MONTH };
        assert_eq!(plan.rate(&begun(0), TIB, false, THEN), 64 * MIB);
    }

    #[test]
    fn the_most_is_the_most_also_below_the_least() {
        let plan = Plan { rate_max: 100_000, ..MONTH };
        assert_eq!(plan.rate(&begun(0), TIB, false, THEN), 100_000);
    }

    #[test]
    fn without_clients_a_pass_keeps_its_rate() {
        let mut pacer = Pacer::default();
        let (mut ready, mut read) = (Duration::ZERO, 0);
        while ready < at(10_000) {
            // It always wakes up too late.
            let begun = ready + at(9);
            pacer.look(begun, Traffic::default());
            let turn = pacer.turn(begun, 64 * MIB);
            read += turn.bytes;
            ready = turn.next(ready, begun, turn.bytes);
        }
        assert_eq!(read, 640 * MIB);
    }

    #[test]
    fn a_pass_that_was_held_up_does_not_make_up_for_all_of_it() {
        let turn = Turn { bytes: 4 * MIB, rate: 64 * MIB };
        assert_eq!(turn.next(at(0), at(5000), 4 * MIB), at(5000));
        assert_eq!(turn.next(at(5000), at(5001), 4 * MIB), at(5000) + at(125) / 2);
    }

    /// Returns what a pass reads in ten seconds beside clients that are always active, when the
    /// storage takes so many microseconds for a slice.
    fn beside(microseconds: u64) -> u64 {
        let mut pacer = Pacer::default();
        let (mut ready, mut read, mut requests) = (Duration::ZERO, 0, 0);
        pacer.took(SLICE, Duration::from_micros(microseconds));
        while ready < at(10_000) {
            requests += 1;
            pacer.look(ready, Traffic { begun: requests, ended: requests });
            let turn = pacer.turn(ready, 64 * MIB);
            read += turn.bytes;
            ready = turn.next(ready, ready, turn.bytes);
        }
        read
    }

    #[test]
    fn beside_clients_a_pass_takes_a_small_share_or_the_least() {
        // 20 ms for each slice.
        assert_eq!(beside(1000), 500 * SLICE);
        assert_eq!(beside(1_000_000), 10 * MIB);
        // However fast the storage is, a pass keeps to its own rate.
        assert_eq!(beside(1), 640 * MIB);
    }

    #[test]
    fn a_request_in_flight_is_a_client() {
        let mut pacer = Pacer::default();
        let waiting = Traffic { begun: 5, ended: 4 };
        for milliseconds in [0, 1000, 2000] {
            pacer.look(at(milliseconds), waiting);
            assert_eq!(pacer.turn(at(milliseconds), 64 * MIB), Turn { bytes: SLICE, rate: MIB });
        }
    }

    #[test]
    fn a_client_that_has_gone_is_forgotten_soon() {
        let mut pacer = Pacer::default();
        let gone = Traffic { begun: 5, ended: 5 };
        pacer.look(at(1000), gone);
        pacer.look(at(1249), gone);
        assert_eq!(pacer.turn(at(1249), 64 * MIB).bytes, SLICE);
        assert_eq!(pacer.turn(at(1250), 64 * MIB).bytes, 4 * MIB);
    }

    #[test]
    fn holes_cost_no_time() {
        assert_eq!(Pacer::default().turn(at(7), MIB).next(at(5), at(7), 0), at(7));
    }

    proptest! {
        #[test]
        fn no_numbers_are_too_much(
            position: u64, started: u64, now: u64, rate_max in 1..u64::MAX, counts: [u64; 3],
            days in 1..u32::MAX, milliseconds in 0..1_u64 << 50,
        ) {
            let plan = Plan { days: Some(days), rate_max };
            let record = ScrubRecord { position, started, under_way: true, ..ScrubRecord::default() };
            let rate = plan.rate(&record, u64::MAX, false, now);
            prop_assert!((1..=rate_max).contains(&rate));
            let ended = ScrubRecord { under_way: false, ..record };
            prop_assert!(plan.due(&ended, now).is_some());
            let [begun, ended, bytes] = counts;
            let mut pacer = Pacer::default();
            pacer.look(at(milliseconds), Traffic { begun, ended });
            pacer.took(bytes, at(milliseconds));
            let turn = pacer.turn(at(milliseconds), rate);
            prop_assert!(turn.rate <= rate && turn.bytes <= ScrubBatch::BYTES_MAX);
            let begun = at(milliseconds);
            prop_assert!(turn.next(begun, begun, turn.bytes) >= begun);
        }
    }
}
