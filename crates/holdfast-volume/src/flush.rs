//! Group commit: one flush at a time, which all who ask meanwhile share.
//!
//! A flush makes durable what was acknowledged before it began. Whoever asks while one runs joins
//! the next, since the running one may have passed by what was written last.

use holdfast_bio::Error;

use crate::inbox::{Note, Waiter};
use crate::sync::{Mutex, lock};

#[derive(Debug, Default)]
pub(crate) struct FlushGate {
    state: Mutex<State>,
}

/// What a flush is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Aim {
    /// Store the tuples that are newer than the stored ones.
    pub(crate) store: bool,
    /// Make what was written durable.
    pub(crate) durable: bool,
}

impl Aim {
    const fn and(self, other: Self) -> Self {
        Self { store: self.store || other.store, durable: self.durable || other.durable }
    }
}

#[derive(Debug, Default)]
struct State {
    running: bool,
    /// What the running flush is to do.
    aim: Aim,
    /// What the next is to do.
    next_aim: Aim,
    /// Those who share the running flush, without its leader.
    current: Vec<Waiter>,
    /// Those who share the next.
    next: Vec<Waiter>,
}

impl FlushGate {
    /// Joins a flush that does what `aim` says, if not more. Returns whether the caller has to lead
    /// it now; otherwise its waiter is told.
    pub(crate) fn join(&self, waiter: &Waiter, aim: Aim) -> bool {
        let mut state = lock(&self.state);
        if state.running {
            state.next.push(waiter.clone());
            state.next_aim = state.next_aim.and(aim);
            return false;
        }
        (state.running, state.aim) = (true, aim);
        true
    }

    /// Returns what the running flush is to do. Its leader asks.
    pub(crate) fn aim(&self) -> Aim {
        lock(&self.state).aim
    }

    /// Ends the flush that the caller led, tells those who shared it, and appoints the next leader.
    pub(crate) fn finish(&self, result: Result<(), Error>) {
        let (shared, leader) = {
            let mut state = lock(&self.state);
            let next = std::mem::take(&mut state.next);
            state.aim = std::mem::take(&mut state.next_aim);
            let shared = std::mem::replace(&mut state.current, next);
            let leader = state.current.pop();
            state.running = leader.is_some();
            (shared, leader)
        };
        for waiter in shared {
            waiter.inbox.push(Note::Flushed(waiter.job, result));
        }
        if let Some(waiter) = leader {
            waiter.inbox.push(Note::Lead(waiter.job));
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::inbox::Inbox;

    const DURABLE: Aim = Aim { store: false, durable: true };
    const STORE: Aim = Aim { store: true, durable: false };

    #[test]
    fn those_who_ask_during_a_flush_share_the_next() {
        let gate = FlushGate::default();
        let inbox = Inbox::new(Box::new(|| {}));
        let waiter = |job| Waiter { inbox: inbox.clone(), job };
        assert!(gate.join(&waiter(1), DURABLE));
        assert!(!gate.join(&waiter(2), DURABLE) && !gate.join(&waiter(3), STORE));
        let mut notes = Vec::new();
        gate.finish(Ok(()));
        inbox.take(&mut notes);
        assert_eq!(notes, [Note::Lead(3)]);
        assert_eq!(gate.aim(), Aim { store: true, durable: true });
        gate.finish(Err(Error::IO));
        notes.clear();
        inbox.take(&mut notes);
        assert_eq!(notes, [Note::Flushed(2, Err(Error::IO))]);
        assert!(gate.join(&waiter(4), DURABLE));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::inbox::Inbox;
    use loom::thread;
    use std::sync::Arc;

    /// One who joins a flush that is about to end.
    struct Follower {
        waiter: Waiter,
        gate: Arc<FlushGate>,
    }

    impl Follower {
        fn new(job: usize, gate: &Arc<FlushGate>) -> Self {
            let waiter = Waiter { inbox: Inbox::new(Box::new(|| {})), job };
            Self { waiter, gate: Arc::clone(gate) }
        }

        /// Joins, and leads at once if it has to. Returns whether that was so.
        fn join(&self) -> bool {
            let leads = self.gate.join(&self.waiter, Aim::default());
            if leads {
                self.gate.finish(Ok(()));
            }
            leads
        }

        /// Leads if it was told to, and returns how often it has learnt of a flush's end.
        fn ends(&self, led: bool) -> usize {
            let mut notes = Vec::new();
            self.waiter.inbox.take(&mut notes);
            for note in &notes {
                match note {
                    Note::Lead(_) => {
                        assert!(lock(&self.gate.state).running, "others could lead as well");
                        self.gate.finish(Ok(()));
                    }
                    // The flush that was running when it joined may have passed it by.
                    note => assert_eq!(*note, Note::Flushed(self.waiter.job, Ok(()))),
                }
            }
            usize::from(led) + notes.len()
        }
    }

    #[test]
    fn loom_whoever_joins_leads_or_is_told_once_and_never_of_the_running_flush() {
        loom::model(|| {
            let gate = Arc::new(FlushGate::default());
            let leader = Follower::new(0, &gate);
            assert!(gate.join(&leader.waiter, Aim::default()));
            let followers = [1, 2].map(|job| {
                let follower = Follower::new(job, &gate);
                thread::spawn(move || {
                    let led = follower.join();
                    (follower, led)
                })
            });
            // What ran before anybody joined has another result than what they may share.
            gate.finish(Err(Error::IO));
            let followers = followers.map(|follower| follower.join().unwrap());
            // Whoever was appointed leads now, and the others learn of its end.
            let mut ends = [0, 0];
            for _ in &followers {
                for (end, (follower, led)) in ends.iter_mut().zip(&followers) {
                    *end += follower.ends(*led && *end == 0);
                }
            }
            assert_eq!(ends, [1, 1]);
            assert!(gate.join(&leader.waiter, Aim::default()), "nothing runs at the end");
        });
    }
}
