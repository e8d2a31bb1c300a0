//! Up to where what the tuple log says is known to be durable.
//!
//! A record whose write had ended before the device was flushed needs no look at its data after a
//! crash: they are there. Each queue says which of its records is the oldest that is in use, so that
//! whoever flushes knows what had ended. Nothing here does I/O.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::halves::Position;
use crate::sync::{AtomicU64, Mutex, Ordering, lock};

/// What a queue says that has no record in use.
const NONE: u64 = u64::MAX;
/// What a queue says that is gone.
const GONE: u64 = NONE - 1;

#[derive(Debug, Default)]
pub(crate) struct Marks {
    known: Mutex<Known>,
    /// What the records before this position say is durable.
    durable: AtomicU64,
}

#[derive(Debug, Default)]
struct Known {
    /// A position for each queue: none of its records before it is in use.
    queues: Vec<Arc<AtomicU64>>,
    /// The first record of a round that may not have come true, because its write failed.
    failed: BTreeMap<u64, Position>,
}

impl Marks {
    pub(crate) fn join(&self) -> Oldest {
        let position = Arc::new(AtomicU64::new(NONE));
        let mut known = lock(&self.known);
        // Acquire pairs with the release of a queue that is gone: it will not be looked at again.
        known.queues.retain(|queue| queue.load(Ordering::Acquire) != GONE);
        known.queues.push(Arc::clone(&position));
        Oldest { position, in_use: VecDeque::new() }
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable.load(Ordering::Relaxed)
    }

    /// Returns what will be durable after a flush that begins now. `next` is a position up to which
    /// records are reserved.
    pub(crate) fn durable_after_flush(&self, next: Position) -> Position {
        let mut known = lock(&self.known);
        // The halves of earlier rounds are in use again.
        known.failed.retain(|round, _| round + 1 >= next.round());
        let failed = known.failed.values().next().map_or(NONE, |position| position.number());
        // Acquire pairs with the release in `Oldest`: those who had released a record have ended,
        // and whoever reserved one before `next` has said so.
        let oldest = known.queues.iter().map(|queue| queue.load(Ordering::Acquire)).min();
        Position::from_number(next.number().min(failed).min(oldest.unwrap_or(NONE)))
    }

    pub(crate) fn set_durable(&self, position: Position) {
        self.durable.fetch_max(position.number(), Ordering::Relaxed);
    }

    /// Says that a record may not come true. To be called before it is released.
    pub(crate) fn fail(&self, position: Position) {
        let mut known = lock(&self.known);
        let first = known.failed.entry(position.round()).or_insert(position);
        *first = position.min(*first);
    }
}

/// The records of one queue that are in use.
#[derive(Debug)]
pub(crate) struct Oldest {
    position: Arc<AtomicU64>,
    /// In their order, with whether they have been released.
    in_use: VecDeque<(Position, bool)>,
}

impl Oldest {
    /// Says that records from `next` on will be in use. To be called before they are reserved.
    pub(crate) fn announce(&self, next: Position) {
        if self.in_use.is_empty() {
            // Release, and so does who reserves: whoever sees the reservation sees this.
            self.position.store(next.number(), Ordering::Release);
        }
    }

    /// Takes the announcement back, when there was no room.
    pub(crate) fn withdraw(&self) {
        if self.in_use.is_empty() {
            self.position.store(NONE, Ordering::Release);
        }
    }

    /// Says that a record is in use, which is later than all before.
    pub(crate) fn push(&mut self, position: Position) {
        debug_assert!(self.in_use.back().is_none_or(|&(last, _)| last < position));
        self.in_use.push_back((position, false));
    }

    /// Says that a record is in use no more: its write has ended, or has been said to have failed.
    pub(crate) fn release(&mut self, position: Position) {
        let index = self.in_use.binary_search_by_key(&position, |&(found, _)| found);
        let index = index.expect("the record is in use");
        self.in_use[index].1 = true;
        if index > 0 {
            return;
        }
        while self.in_use.front().is_some_and(|&(_, released)| released) {
            self.in_use.pop_front();
        }
        let first = self.in_use.front().map_or(NONE, |&(position, _)| position.number());
        // Release pairs with the acquire in `durable_after_flush`.
        self.position.store(first, Ordering::Release);
    }
}

impl Drop for Oldest {
    fn drop(&mut self) {
        // One that has records in use, after a panic, lets nothing be called durable any more.
        if self.in_use.is_empty() {
            self.position.store(GONE, Ordering::Release);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    const fn at(round: u64, place: u64) -> Position {
        Position::new(round, place)
    }

    #[test]
    fn what_is_in_use_is_not_durable_and_what_was_released_out_of_order_is() {
        let marks = Marks::default();
        let (mut one, mut two) = (marks.join(), marks.join());
        assert_eq!(marks.durable_after_flush(at(1, 9)), at(1, 9));
        one.announce(at(1, 9));
        assert_eq!(marks.durable_after_flush(at(1, 12)), at(1, 9));
        one.push(at(1, 10));
        one.push(at(1, 11));
        two.announce(at(1, 11));
        two.push(at(1, 12));
        one.release(at(1, 11));
        assert_eq!(marks.durable_after_flush(at(1, 13)), at(1, 9), "as it was announced");
        one.release(at(1, 10));
        assert_eq!(marks.durable_after_flush(at(1, 13)), at(1, 11));
        two.release(at(1, 12));
        drop((two, marks.join()));
        assert_eq!(marks.durable_after_flush(at(1, 13)), at(1, 13), "a queue that is gone");
    }

    #[test]
    fn nothing_from_a_failure_on_is_durable_until_its_half_is_used_again() {
        let marks = Marks::default();
        marks.fail(at(3, 5));
        marks.fail(at(4, 3));
        marks.fail(at(4, 1));
        assert_eq!(marks.durable_after_flush(at(4, 4)), at(3, 5));
        assert_eq!(marks.durable_after_flush(at(5, 2)), at(4, 1));
        assert_eq!(marks.durable_after_flush(at(6, 2)), at(6, 2));
    }

    #[test]
    fn what_is_durable_stays_so() {
        let marks = Marks::default();
        marks.set_durable(at(2, 7));
        marks.set_durable(at(2, 3));
        assert_eq!(marks.durable(), at(2, 7).number());
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::log::halves::Halves;
    use crate::sync::AtomicBool;
    use holdfast_units::to_usize;
    use loom::sync::Arc;
    use loom::thread;

    const RECORDS: usize = 2;

    struct Log {
        halves: Halves,
        marks: Marks,
        /// The write of the record at this place has ended.
        written: [AtomicBool; RECORDS],
    }

    impl Log {
        fn write(&self) {
            let mut oldest = self.marks.join();
            oldest.announce(self.halves.position());
            let position = self.halves.reserve(1, 1).expect("there is room");
            oldest.push(position);
            self.written[to_usize(position.place())].store(true, Ordering::Relaxed);
            oldest.release(position);
        }
    }

    #[test]
    fn loom_what_is_called_durable_was_written_before_the_flush() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let log = Arc::new(Log {
                halves: Halves::new(8),
                marks: Marks::default(),
                written: std::array::from_fn(|_| AtomicBool::new(false)),
            });
            let writers: [_; RECORDS] = std::array::from_fn(|_| {
                let log = Arc::clone(&log);
                thread::spawn(move || log.write())
            });
            let leader = {
                let log = Arc::clone(&log);
                thread::spawn(move || {
                    let durable = log.marks.durable_after_flush(log.halves.position());
                    for written in &log.written[..to_usize(durable.place())] {
                        assert!(written.load(Ordering::Relaxed), "it was in flight");
                    }
                })
            };
            leader.join().unwrap();
            for writer in writers {
                writer.join().unwrap();
            }
        });
    }
}
