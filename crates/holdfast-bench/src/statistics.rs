//! What several measurements of the same thing say together.

use serde::Serialize;

use crate::drive::Sample;

/// The middle of some measurements, and the least and the most of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The one in the middle; of an even number, the lower of the two.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of some numbers, zeros of none.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Self {
        let mut numbers: Vec<f64> = numbers.into_iter().collect();
        numbers.sort_by(f64::total_cmp);
        let at = |index: usize| numbers.get(index).copied().unwrap_or(0.0);
        let last = numbers.len().saturating_sub(1);
        Self { median: at(last / 2), min: at(0), max: at(last) }
    }
}

/// What was found of one load in one mode.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    /// Mebibytes a second.
    pub mebibytes: Spread,
    /// Requests a second.
    pub requests: Spread,
    /// Requests for each second of processor time that the process and the kernel used for it.
    pub requests_per_processor: Spread,
    /// Processor time of the process itself, in per cent of one processor.
    pub user_percent: f64,
    /// Processor time of the kernel, in per cent of one processor.
    pub system_percent: f64,
    /// The median latency, in microseconds.
    pub p50: Spread,
    /// The 99th percentile, in microseconds.
    pub p99: Spread,
    /// Percentiles of all measurements together and their latency, in microseconds.
    pub curve: Vec<(f64, f64)>,
}

/// The percentiles of which a latency curve is drawn.
const CURVE: [f64; 10] = [1.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99];

impl Cell {
    pub(crate) fn of(samples: &[Sample], block: u64) -> Self {
        const MEBIBYTE: f64 = 1_048_576.0;
        let spread = |of: &dyn Fn(&Sample) -> f64| Spread::of(samples.iter().map(of));
        let rate = |sample: &Sample| float(sample.requests()) / sample.seconds;
        let percentile = |sample: &Sample, at| micros(sample.latency.value_at_percentile(at));
        let mut all = Sample::default();
        samples.iter().for_each(|sample| all.add(sample));
        Self {
            mebibytes: spread(&|sample| rate(sample) * float(block) / MEBIBYTE),
            requests: spread(&rate),
            requests_per_processor: spread(&|sample| {
                float(sample.requests()) / (sample.user + sample.system).max(f64::MIN_POSITIVE)
            }),
            user_percent: spread(&|sample| 100.0 * sample.user / sample.seconds).median,
            system_percent: spread(&|sample| 100.0 * sample.system / sample.seconds).median,
            p50: spread(&|sample| percentile(sample, 50.0)),
            p99: spread(&|sample| percentile(sample, 99.0)),
            curve: CURVE.iter().map(|&at| (at, percentile(&all, at))).collect(),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "no more than 52 bits are counted")]
pub(crate) const fn float(number: u64) -> f64 {
    number as f64
}

fn micros(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_of_the_numbers_in_any_order() {
        let spread = Spread::of([3.0, 1.0, 2.0]);
        assert_eq!(spread, Spread { median: 2.0, min: 1.0, max: 3.0 });
        assert_eq!(Spread::of([]), Spread { median: 0.0, min: 0.0, max: 0.0 });
    }

    #[test]
    fn a_cell_has_rates_of_requests_and_of_bytes() {
        let mut sample = Sample { seconds: 2.0, user: 0.5, system: 0.5, ..Sample::default() };
        (0..1024).for_each(|_| sample.latency.record(20_000).unwrap());
        let cell = Cell::of(&[sample], 4096);
        assert_eq!((cell.requests.median, cell.mebibytes.median), (512.0, 2.0));
        assert_eq!((cell.requests_per_processor.median, cell.user_percent), (1024.0, 25.0));
        assert!((19.9..20.1).contains(&cell.p50.median));
    }
}
