//! What a queue has done, for those who look on from another thread.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use holdfast_bio::{BounceCounters, Error, Tag};
use serde::{Deserialize, Serialize};

/// What a queue has done since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct QueueCounts {
    /// Requests that have ended, well or not.
    pub requests: u64,
    /// Requests that ended with an error.
    pub failed: u64,
    /// Bytes that were read or written by requests that ended well.
    pub bytes: u64,
    /// Bios that went through a buffer. A request is one bio or more.
    pub bounced: u64,
    /// Bios that went to the device with the guest's own memory.
    pub zero_copy: u64,
    /// Bios that were read again after a guard mismatch, and were good.
    pub reread_good: u64,
    /// Bios that were read again after a guard mismatch, and were bad.
    pub reread_bad: u64,
    /// Bios that failed because of a guard tag, or of data in a never-written sector.
    pub guard_errors: u64,
    /// Bios that failed because of an application tag.
    pub application_errors: u64,
    /// Bios that failed because of a reference tag.
    pub reference_errors: u64,
}

/// The counters of one queue. Only the thread of the queue adds to them.
#[derive(Debug, Default)]
pub(crate) struct QueueCounters {
    requests: AtomicU64,
    failed: AtomicU64,
    bytes: AtomicU64,
    bounced: AtomicU64,
    zero_copy: AtomicU64,
    reread_good: AtomicU64,
    reread_bad: AtomicU64,
    guard: AtomicU64,
    application: AtomicU64,
    reference: AtomicU64,
}

impl QueueCounters {
    /// Adds to a counter that only one thread at a time adds to, so that it costs no bus lock.
    fn add(counter: &AtomicU64, more: u64) {
        // Relaxed: nobody concludes anything from one counter about another.
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
    }

    /// Counts a request that has ended.
    pub(crate) fn ended(&self, bytes: u64, is_good: bool) {
        Self::add(&self.requests, 1);
        if is_good {
            Self::add(&self.bytes, bytes);
        } else {
            Self::add(&self.failed, 1);
        }
    }

    /// Counts why a bio failed, if a tag is why.
    pub(crate) fn mismatched(&self, error: &Error) {
        let Error::Mismatch(mismatch) = error else { return };
        let counter = match mismatch.tag {
            Tag::Guard | Tag::Unwritten | Tag::Torn => &self.guard,
            Tag::Application => &self.application,
            Tag::Reference => &self.reference,
        };
        Self::add(counter, 1);
    }

    /// Adds what the bouncing layer did between two looks.
    pub(crate) fn bounced(&self, before: BounceCounters, now: BounceCounters) {
        Self::add(&self.bounced, now.bounced - before.bounced);
        Self::add(&self.zero_copy, now.zero_copy - before.zero_copy);
        Self::add(&self.reread_good, now.reread_good - before.reread_good);
        Self::add(&self.reread_bad, now.reread_bad - before.reread_bad);
    }

    fn counts(&self) -> QueueCounts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QueueCounts {
            requests: load(&self.requests),
            failed: load(&self.failed),
            bytes: load(&self.bytes),
            bounced: load(&self.bounced),
            zero_copy: load(&self.zero_copy),
            reread_good: load(&self.reread_good),
            reread_bad: load(&self.reread_bad),
            guard_errors: load(&self.guard),
            application_errors: load(&self.application),
            reference_errors: load(&self.reference),
        }
    }
}

/// The counters of one socket: of the client that is connected, and of those before it.
#[derive(Debug)]
pub struct ClientCounters {
    socket: PathBuf,
    connected: AtomicBool,
    queues: Box<[Arc<QueueCounters>]>,
}

impl ClientCounters {
    pub(crate) fn new(socket: PathBuf, queues: u16) -> Self {
        let queues = (0..queues).map(|_| Arc::default()).collect();
        Self { socket, connected: AtomicBool::new(false), queues }
    }

    /// Returns the socket, by which a client is known.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns whether a client is connected.
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(crate) fn set_connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    pub(crate) fn queue(&self, index: usize) -> &Arc<QueueCounters> {
        &self.queues[index]
    }

    /// Returns what each queue has done.
    pub fn queues(&self) -> impl Iterator<Item = QueueCounts> + '_ {
        self.queues.iter().map(|queue| queue.counts())
    }
}
