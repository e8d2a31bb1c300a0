//! What the queues of a volume share of its scrub: the record, and whether it is stored.

use crate::format::ScrubRecord;
use crate::sync::{AtomicBool, Mutex, Ordering, lock};
use crate::volume::Volume;

/// The record as it is now, of which a superblock may say something older.
#[derive(Debug)]
pub(crate) struct SharedRecord {
    record: Mutex<ScrubRecord>,
    /// The next flush is to store it.
    news: AtomicBool,
}

impl SharedRecord {
    pub(crate) fn new(record: ScrubRecord) -> Self {
        Self { record: Mutex::new(record), news: AtomicBool::new(false) }
    }

    pub(crate) fn is_news(&self) -> bool {
        self.news.load(Ordering::Relaxed)
    }

    /// Returns the record, for a superblock that is about to be written.
    pub(crate) fn take_news(&self) -> ScrubRecord {
        // Relaxed: the mutex orders this before whatever changes the record afterwards.
        self.news.store(false, Ordering::Relaxed);
        *lock(&self.record)
    }

    fn change<T>(&self, change: impl FnOnce(&mut ScrubRecord) -> T) -> T {
        change(&mut lock(&self.record))
    }

    fn make_news(&self) {
        // Relaxed: the change is in the record already, so that who finds no news finds the change.
        self.news.store(true, Ordering::Relaxed);
    }
}

impl Volume {
    /// Returns how far a scrub is, and what it found.
    pub fn scrub(&self) -> ScrubRecord {
        self.scrub.change(|record| *record)
    }

    /// Changes what is remembered of scrubs, and returns what `change` does.
    pub fn change_scrub<T>(&self, change: impl FnOnce(&mut ScrubRecord) -> T) -> T {
        self.scrub.change(change)
    }

    /// Has the next flush store what is remembered of scrubs. Closing the volume stores it anyway.
    pub fn store_scrub(&self) {
        self.scrub.make_news();
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use loom::thread;
    use std::sync::Arc;

    #[test]
    fn loom_what_changes_while_the_record_is_stored_is_stored_later() {
        loom::model(|| {
            let shared = Arc::new(SharedRecord::new(ScrubRecord::default()));
            let scrubber = thread::spawn({
                let shared = Arc::clone(&shared);
                move || {
                    shared.change(|record| record.position = 1);
                    shared.make_news();
                }
            });
            let stored = shared.take_news();
            scrubber.join().unwrap();
            assert!(shared.is_news() || stored.position == 1, "the change is forgotten");
        });
    }
}
