//! Who may touch which sectors of a group: any number of readers, or one writer.
//!
//! Data and tuple of a sector change together for any observer, because whoever changes them holds
//! the sector alone, and whoever reads and verifies it shares it only with others who read.
//!
//! Each sector has one byte: the number of readers, or [`WRITER`]. Eight of them are taken at once
//! by one compare-exchange. A claim that meets another is undone and reported; [`crate::cache`] has
//! the list of those who wait.

use crate::sync::{AtomicU64, Ordering};

pub(crate) const SECTORS_OF_WORD: usize = 8;
/// The byte of a sector that one writer has. The bits below count readers.
const WRITER: u64 = 0x80;
const ONES: u64 = 0x0101_0101_0101_0101;

/// How sectors are claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Shared,
    Exclusive,
}

/// A run of sectors of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sectors {
    pub(crate) first: usize,
    pub(crate) count: usize,
}

impl Sectors {
    /// Returns the words that the run touches, each with the ones of its bytes.
    fn words(self) -> impl Iterator<Item = (usize, u64)> {
        let end = self.first + self.count;
        (self.first / SECTORS_OF_WORD..end.div_ceil(SECTORS_OF_WORD)).map(move |word| {
            let from = self.first.saturating_sub(word * SECTORS_OF_WORD);
            let to = (end - word * SECTORS_OF_WORD).min(SECTORS_OF_WORD);
            let below = |sectors: usize| ONES.checked_shr(64 - 8 * len_u32(sectors)).unwrap_or(0);
            (word, below(to) & !below(from))
        })
    }
}

fn len_u32(sectors: usize) -> u32 {
    u32::try_from(sectors).expect("at most the sectors of a word")
}

/// Returns how many words the sectors of a group take.
pub(crate) const fn words_for(sectors: usize) -> usize {
    sectors.div_ceil(SECTORS_OF_WORD)
}

/// Claims the sectors, or none of them when one is claimed in a way that excludes this.
pub(crate) fn try_claim(words: &[AtomicU64], sectors: Sectors, mode: Mode) -> bool {
    for (index, ones) in sectors.words() {
        if !claim_word(&words[index], ones, mode) {
            for (done, ones) in sectors.words().take_while(|&(done, _)| done < index) {
                release_word(&words[done], ones, mode);
            }
            return false;
        }
    }
    true
}

/// Gives up a claim.
pub(crate) fn release(words: &[AtomicU64], sectors: Sectors, mode: Mode) {
    for (index, ones) in sectors.words() {
        release_word(&words[index], ones, mode);
    }
}

fn claim_word(word: &AtomicU64, ones: u64, mode: Mode) -> bool {
    // Relaxed: a guess, which the exchange confirms.
    let mut found = word.load(Ordering::Relaxed);
    loop {
        let claimed = match mode {
            // No byte overflows into its neighbour: the greatest is a writer's 0x80 and one more.
            Mode::Shared => Some(found + ones).filter(|sum| sum & (ones * WRITER) == 0),
            Mode::Exclusive => Some(found | (ones * WRITER)).filter(|_| found & (ones * 0xff) == 0),
        };
        let Some(claimed) = claimed else { return false };
        // Acquire pairs with the release in `release_word`: what the last holder did to the tuples
        // has happened. Relaxed on failure, as for the load.
        match word.compare_exchange_weak(found, claimed, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return true,
            Err(other) => found = other,
        }
    }
}

fn release_word(word: &AtomicU64, ones: u64, mode: Mode) {
    // Release pairs with the acquire in `claim_word`.
    match mode {
        Mode::Shared => word.fetch_sub(ones, Ordering::Release),
        Mode::Exclusive => word.fetch_and(!(ones * 0xff), Ordering::Release),
    };
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECTORS: usize = 40;

    fn words() -> Vec<AtomicU64> {
        (0..words_for(SECTORS)).map(|_| AtomicU64::new(0)).collect()
    }

    fn runs() -> impl Strategy<Value = (Sectors, Mode)> {
        let modes = prop::sample::select(vec![Mode::Shared, Mode::Exclusive]);
        (0..SECTORS, 1..SECTORS, modes).prop_map(|(first, count, mode)| {
            (Sectors { first, count: count.min(SECTORS - first) }, mode)
        })
    }

    fn excludes(a: &(Sectors, Mode), b: &(Sectors, Mode)) -> bool {
        let overlap = a.0.first < b.0.first + b.0.count && b.0.first < a.0.first + a.0.count;
        overlap && (a.1 == Mode::Exclusive || b.1 == Mode::Exclusive)
    }

    proptest! {
        #[test]
        fn a_claim_is_granted_just_when_no_holder_excludes_it(
            steps in prop::collection::vec((runs(), any::<prop::sample::Index>(), any::<bool>()), 1..80),
        ) {
            let words = words();
            let mut held: Vec<(Sectors, Mode)> = Vec::new();
            for (run, which, claim) in steps {
                if claim {
                    let free = !held.iter().any(|holder| excludes(holder, &run));
                    prop_assert_eq!(try_claim(&words, run.0, run.1), free);
                    held.extend(free.then_some(run));
                } else if !held.is_empty() {
                    let (sectors, mode) = held.swap_remove(which.index(held.len()));
                    release(&words, sectors, mode);
                }
            }
            for (sectors, mode) in held {
                release(&words, sectors, mode);
            }
            prop_assert!(words.iter().all(|word| word.load(Ordering::Relaxed) == 0));
        }
    }

    #[test]
    fn more_readers_than_can_be_counted_wait() {
        let words = words();
        let sector = Sectors { first: 3, count: 1 };
        let granted = (0..200).filter(|_| try_claim(&words, sector, Mode::Shared)).count();
        assert_eq!(granted, 127);
    }
}

#[cfg(all(test, loom))]
#[expect(clippy::arc_with_non_send_sync, reason = "loom watches what threads share")]
mod loom_tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::thread;
    use std::sync::Arc;

    /// Two words of claims. Loom watches the two sectors at their border for races.
    struct Watched {
        words: [AtomicU64; 2],
        border: [UnsafeCell<u32>; 2],
    }

    impl Watched {
        fn new() -> Arc<Self> {
            let words = [AtomicU64::new(0), AtomicU64::new(0)];
            Arc::new(Self { words, border: [UnsafeCell::new(0), UnsafeCell::new(0)] })
        }

        /// Claims the sectors, touches those of the border, and gives them up.
        fn visit(&self, first: usize, count: usize, mode: Mode) -> bool {
            let sectors = Sectors { first, count };
            let granted = try_claim(&self.words, sectors, mode);
            if granted {
                let end = (first + count).min(9);
                for cell in &self.border[first.max(7) - 7..end - 7] {
                    match mode {
                        Mode::Shared => cell.with(|_| ()),
                        Mode::Exclusive => cell.with_mut(|_| ()),
                    }
                }
                release(&self.words, sectors, mode);
            }
            granted
        }

        fn is_free(&self) -> bool {
            self.words.iter().all(|word| word.load(Ordering::Relaxed) == 0)
        }
    }

    #[test]
    fn loom_overlapping_claims_exclude_each_other_and_leave_nothing() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let watched = Watched::new();
            let others = [(6, 3, Mode::Exclusive), (7, 2, Mode::Shared)].map(|run| {
                let watched = Arc::clone(&watched);
                thread::spawn(move || watched.visit(run.0, run.1, run.2))
            });
            watched.visit(7, 4, Mode::Exclusive);
            for other in others {
                other.join().unwrap();
            }
            assert!(watched.is_free());
        });
    }

    #[test]
    fn loom_readers_do_not_exclude_each_other() {
        loom::model(|| {
            let watched = Watched::new();
            let other = {
                let watched = Arc::clone(&watched);
                thread::spawn(move || watched.visit(6, 3, Mode::Shared))
            };
            assert!(watched.visit(7, 3, Mode::Shared));
            assert!(other.join().unwrap());
            assert!(watched.is_free());
        });
    }

    #[test]
    fn loom_a_failed_claim_takes_back_only_its_own() {
        loom::model(|| {
            let watched = Watched::new();
            assert!(try_claim(&watched.words, Sectors { first: 8, count: 1 }, Mode::Exclusive));
            let other = {
                let watched = Arc::clone(&watched);
                thread::spawn(move || watched.visit(6, 2, Mode::Shared))
            };
            assert!(!watched.visit(6, 3, Mode::Shared));
            assert!(other.join().unwrap());
            release(&watched.words, Sectors { first: 8, count: 1 }, Mode::Exclusive);
            assert!(watched.is_free());
        });
    }
}
