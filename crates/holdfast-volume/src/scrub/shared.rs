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
}

impl Volume {
    /// Returns how far a scrub is, and what it found.
    pub fn scrub(&self) -> ScrubRecord {
        *lock(&self.scrub.record)
    }

    /// Changes what is remembered of scrubs, and returns what `change` does.
    pub fn change_scrub<T>(&self, change: impl FnOnce(&mut ScrubRecord) -> T) -> T {
        change(&mut lock(&self.scrub.record))
    }

    /// Has the next flush store what is remembered of scrubs. Closing the volume stores it anyway.
    pub fn store_scrub(&self) {
        self.scrub.news.store(true, Ordering::Relaxed);
    }
}
