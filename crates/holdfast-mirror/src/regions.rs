//! Sets of regions of a device, which threads share.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_units::to_usize;

use crate::record::MISSED_WORDS;

/// A set of regions.
#[derive(Debug)]
pub(crate) struct Regions {
    words: Box<[AtomicU64]>,
}

impl Regions {
    pub(crate) fn new() -> Self {
        Self { words: (0..MISSED_WORDS).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Adds regions. Those that are there already cost a load.
    pub(crate) fn insert(&self, regions: Range<u64>) {
        for region in regions {
            let (word, bit) = self.bit(region);
            if word.load(Ordering::SeqCst) & bit == 0 {
                word.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }

    /// Returns whether all of these regions are in the set.
    pub(crate) fn contains(&self, regions: Range<u64>) -> bool {
        regions.into_iter().all(|region| {
            let (word, bit) = self.bit(region);
            word.load(Ordering::Acquire) & bit != 0
        })
    }

    /// Adds all regions to plain words.
    pub(crate) fn add_to(&self, words: &mut [u64]) {
        for (word, own) in words.iter_mut().zip(&self.words) {
            *word |= own.load(Ordering::SeqCst);
        }
    }

    /// Makes the set that of plain words.
    pub(crate) fn assign(&self, words: &[u64]) {
        for (own, &word) in self.words.iter().zip(words) {
            own.store(word, Ordering::SeqCst);
        }
    }

    pub(crate) fn clear(&self) {
        for word in &self.words {
            word.store(0, Ordering::SeqCst);
        }
    }

    fn bit(&self, region: u64) -> (&AtomicU64, u64) {
        (&self.words[to_usize(region / 64)], 1 << (region % 64))
    }
}

/// Adds regions to plain words. Returns whether some were not there.
pub(crate) fn insert(words: &mut [u64], regions: Range<u64>) -> bool {
    let mut news = false;
    for region in regions {
        let (word, bit) = (&mut words[to_usize(region / 64)], 1 << (region % 64));
        news |= *word & bit == 0;
        *word |= bit;
    }
    news
}

/// Returns the runs of regions in plain words.
pub(crate) fn runs(words: &[u64]) -> Vec<Range<u64>> {
    let mut runs: Vec<Range<u64>> = Vec::new();
    for (word, first) in words.iter().zip((0..).step_by(64)) {
        for region in (0..64).filter(|bit| word >> bit & 1 != 0).map(|bit| first + bit) {
            match runs.last_mut() {
                Some(last) if last.end == region => last.end += 1,
                _ => runs.push(region..region + 1),
            }
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_is_found_again_as_runs() {
        let regions = Regions::new();
        regions.insert(62..66);
        regions.insert(100..101);
        let mut words = vec![0; MISSED_WORDS];
        regions.add_to(&mut words);
        assert_eq!(runs(&words), [62..66, 100..101]);
        assert!(regions.contains(63..66) && !regions.contains(65..67));
        assert!(insert(&mut words, 100..102) && !insert(&mut words, 100..102));
    }
}
