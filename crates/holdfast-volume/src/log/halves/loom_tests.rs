//! Every interleaving of jobs that write records into a log of two places, and store tuples.

use super::*;
use crate::inbox::{Inbox, Note};
use holdfast_units::{to_u64, to_usize};
use loom::cell::UnsafeCell;
use loom::sync::{Arc, Notify};
use loom::thread;
use std::sync::Arc as StdArc;

/// A log of which each half holds one record, and the tuples that the records are for.
struct Log {
    halves: Halves,
    /// Which job's record is in each half, and one; 0 when there is none.
    records: [AtomicU64; 2],
    /// Loom watches that nobody writes where another does.
    watched: [UnsafeCell<()>; 2],
    /// The tuple of each job is in the cache and not stored.
    changed: [AtomicBool; JOBS],
    stored: [AtomicBool; JOBS],
    /// The flush gate: one flush at a time.
    gate: Mutex<()>,
}

const JOBS: usize = 4;

impl Log {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            halves: Halves::new(1),
            records: [AtomicU64::new(0), AtomicU64::new(0)],
            watched: [UnsafeCell::new(()), UnsafeCell::new(())],
            changed: std::array::from_fn(|_| AtomicBool::new(false)),
            stored: std::array::from_fn(|_| AtomicBool::new(false)),
            gate: Mutex::new(()),
        })
    }

    /// Does what was asked for by the halves.
    fn make_room(&self) {
        loop {
            {
                let _gate = lock(&self.gate);
                let round = self.halves.drained();
                for (changed, stored) in self.changed.iter().zip(&self.stored) {
                    if changed.swap(false, Ordering::AcqRel) {
                        stored.store(true, Ordering::Relaxed);
                    }
                }
                if let Some(round) = round {
                    self.halves.flushed(round);
                }
            }
            if !self.halves.end_request() {
                return;
            }
        }
    }

    fn reserve(&self, waiter: &Waiter, event: &Notify) -> Position {
        loop {
            if let Some(position) = self.halves.reserve(1, 1) {
                return position;
            }
            match self.halves.wait(waiter) {
                Wait::No => {}
                Wait::Flush => self.make_room(),
                Wait::Yes => loop {
                    let mut notes = Vec::new();
                    waiter.inbox.take(&mut notes);
                    if !notes.is_empty() {
                        assert!(notes.iter().all(|note| matches!(note, Note::Retry(_))));
                        break;
                    }
                    event.wait();
                },
            }
        }
    }

    fn work(&self, jobs: std::ops::Range<usize>) {
        let event = Arc::new(Notify::new());
        let inbox = Inbox::new({
            let event = Arc::clone(&event);
            Box::new(move || event.notify())
        });
        for job in jobs {
            let waiter = Waiter { inbox: StdArc::clone(&inbox), job };
            let position = self.reserve(&waiter, &event);
            self.watched[position.half()].with_mut(|_| ());
            let number = to_u64(job) + 1;
            let before = self.records[position.half()].swap(number, Ordering::Relaxed);
            if let Some(before) = before.checked_sub(1) {
                let stored = self.stored[to_usize(before)].load(Ordering::Relaxed);
                assert!(stored, "a record is written over whose tuple is not stored");
            }
            if self.halves.request() {
                self.make_room();
            }
            // An exchange, as `mark_dirty` does: loom does not order plain stores with others'.
            self.changed[job].swap(true, Ordering::Release);
            if self.halves.release(position) {
                self.make_room();
            }
        }
    }
}

#[test]
fn loom_a_half_is_used_again_only_when_its_tuples_are_stored_and_nobody_waits_for_ever() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let log = Log::new();
        let other = {
            let log = Arc::clone(&log);
            thread::spawn(move || log.work(0..2))
        };
        log.work(2..4);
        other.join().unwrap();
    });
}
