//! How a queue is told, by itself or by a queue in another thread, that a job may go on.

use std::fmt;
use std::sync::Arc;

use holdfast_bio::Error;

use crate::sync::{AtomicBool, Mutex, Ordering, lock};

/// What a queue is told about one of its jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// What the job waits for may have come: try again.
    Retry(usize),
    /// The flush that the job joined has ended.
    Flushed(usize, Result<(), Error>),
    /// The job is to lead the next flush.
    Lead(usize),
    /// Somebody waits for sectors that are in the data journal.
    Hurry,
    /// The job waits for room in the tuple log, and the tuples that take it could not be stored.
    NoRoom(usize, Error),
}

/// The notes for one queue.
pub(crate) struct Inbox {
    notes: Mutex<Vec<Note>>,
    /// There may be notes. Looked at on every turn, so that an empty inbox costs one load.
    filled: AtomicBool,
    /// Wakes the queue's thread.
    notify: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").field("notes", &self.notes).finish_non_exhaustive()
    }
}

impl Inbox {
    pub(crate) fn new(notify: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self { notes: Mutex::default(), filled: AtomicBool::new(false), notify })
    }

    pub(crate) fn push(&self, note: Note) {
        lock(&self.notes).push(note);
        // Release pairs with the acquire in `take`.
        if !self.filled.swap(true, Ordering::Release) {
            (self.notify)();
        }
    }

    /// Moves the notes to the back of `notes`.
    pub(crate) fn take(&self, notes: &mut Vec<Note>) {
        // Acquire pairs with the release in `push`.
        if self.filled.load(Ordering::Acquire) && self.filled.swap(false, Ordering::Acquire) {
            notes.append(&mut lock(&self.notes));
        }
    }

    pub(crate) fn is_filled(&self) -> bool {
        // Acquire pairs with the release in `push`.
        self.filled.load(Ordering::Acquire)
    }
}

/// A job that waits, wherever its queue runs.
#[derive(Clone, Debug)]
pub(crate) struct Waiter {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) job: usize,
}

impl Waiter {
    pub(crate) fn retry(&self) {
        self.inbox.push(Note::Retry(self.job));
    }

    pub(crate) fn no_room(&self, error: Error) {
        self.inbox.push(Note::NoRoom(self.job, error));
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn the_thread_is_woken_once_until_it_has_looked() {
        let woken = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&woken);
        let inbox = Inbox::new(Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        inbox.push(Note::Retry(1));
        inbox.push(Note::Retry(2));
        let mut notes = Vec::new();
        inbox.take(&mut notes);
        inbox.push(Note::Retry(3));
        assert_eq!((notes.len(), woken.load(Ordering::Relaxed)), (2, 2));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::{sync::Notify, thread};

    #[test]
    fn loom_a_thread_that_sleeps_until_it_is_notified_gets_every_note() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let event = Arc::new(Notify::new());
            let inbox = Inbox::new({
                let event = Arc::clone(&event);
                Box::new(move || event.notify())
            });
            let pushers = [1, 2].map(|job| {
                let waiter = Waiter { inbox: Arc::clone(&inbox), job };
                thread::spawn(move || waiter.retry())
            });
            let mut notes = Vec::new();
            while notes.len() < 2 {
                inbox.take(&mut notes);
                // As a queue does: it sleeps only when it has seen that there is nothing.
                if notes.len() < 2 && !inbox.is_filled() {
                    event.wait();
                }
            }
            for pusher in pushers {
                pusher.join().unwrap();
            }
            assert!(notes.contains(&Note::Retry(1)) && notes.contains(&Note::Retry(2)));
        });
    }
}
