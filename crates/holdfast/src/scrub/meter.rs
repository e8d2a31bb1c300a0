//! How fast a pass is.

use std::time::{Duration, Instant};

/// Measures how fast a pass is.
#[derive(Debug, Default)]
pub(super) struct Meter {
    since: Option<Instant>,
    bytes: u64,
    rate: Option<u64>,
}

impl Meter {
    /// How long is measured before the result is shown.
    const WINDOW: Duration = Duration::from_secs(2);

    /// Counts bytes that were read by `now`.
    pub(super) fn add(&mut self, now: Instant, bytes: u64) {
        let Some(since) = self.since else {
            // What was read before is read in an unknown time.
            self.since = Some(now);
            return;
        };
        self.bytes = self.bytes.saturating_add(bytes);
        let passed = now.saturating_duration_since(since);
        if passed >= Self::WINDOW {
            let rate = u128::from(self.bytes) * 1000 / passed.as_millis().max(1);
            self.rate = u64::try_from(rate).ok();
            (self.since, self.bytes) = (Some(now), 0);
        }
    }

    /// Returns the bytes per second that were measured last.
    pub(super) const fn rate(&self) -> Option<u64> {
        self.rate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_known_when_it_was_measured_for_long_enough() {
        let (mut meter, begun) = (Meter::default(), Instant::now());
        meter.add(begun, 99);
        meter.add(begun + Duration::from_secs(1), 1000);
        assert_eq!(meter.rate(), None);
        meter.add(begun + Duration::from_secs(2), 3000);
        assert_eq!(meter.rate(), Some(2000));
    }
}
