//! The in-flight log: which requests a device has taken and not given back, in memory that outlives
//! its process (the vhost-user protocol, "inflight I/O tracking", split virtqueues).
//!
//! The order of stores is what makes it work: whenever the process ends, the log and the used ring
//! together say which requests must be carried out again. The memory stays what it was when the
//! process was killed, so the order of the program is enough; every store is a release, so that
//! the compiler keeps it.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use holdfast_iov::Place;
use thiserror::Error;

/// Bytes of the header: features, version, number of descriptors, last batch head, used index.
const HEADER: usize = 16;
const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const BATCH_AT: usize = 12;
const USED_AT: usize = 14;
/// Bytes of the state of a descriptor: in flight, padding, next of its batch, counter.
const STATE: usize = 16;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;
const VERSION: u16 = 1;
/// What the areas of queues are multiples of, so that none shares a cache line.
const ALIGNMENT: usize = 64;

/// Memory that is no in-flight log of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InflightError {
    /// It is too short, or misaligned.
    #[error("the in-flight log has {found} bytes for a queue, and needs {needed}, aligned to 8")]
    Short {
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// Another version wrote it.
    #[error("the in-flight log has version {found}, and only {VERSION} is known")]
    Version {
        /// The version.
        found: u16,
    },
    /// It is that of a queue with another number of descriptors.
    #[error("the in-flight log is for {found} descriptors, and the queue has {size}")]
    Size {
        /// The number in the log.
        found: u16,
        /// The queue's number.
        size: u16,
    },
}

/// The in-flight log of one queue.
#[derive(Debug)]
pub struct Inflight {
    place: Place,
    size: u16,
    /// The log was in use before: by this process or by one that has ended.
    is_old: bool,
    counter: u64,
    /// The requests that were given back since the driver was shown the last.
    batch: Vec<u16>,
}

impl Inflight {
    /// Returns how many bytes the log of one queue takes.
    pub fn len_for(size: u16) -> usize {
        (HEADER + STATE * usize::from(size)).next_multiple_of(ALIGNMENT)
    }

    /// Uses `place` as the log of a queue of `size` descriptors. Zeros are a log that was not used
    /// yet.
    ///
    /// # Errors
    ///
    /// [`InflightError`].
    pub fn new(place: Place, size: u16) -> Result<Self, InflightError> {
        let (needed, found) = (HEADER + STATE * usize::from(size), place.len());
        if found < needed || !place.is_aligned(8) {
            return Err(InflightError::Short { needed, found });
        }
        let version = place.load_u16(VERSION_AT, Ordering::Acquire);
        let is_old = match version {
            0 => false,
            VERSION => true,
            found => return Err(InflightError::Version { found }),
        };
        let found = place.load_u16(COUNT_AT, Ordering::Acquire);
        if is_old && found != size {
            return Err(InflightError::Size { found, size });
        }
        let batch = Vec::with_capacity(usize::from(size));
        Ok(Self { place, size, is_old, counter: 0, batch })
    }

    fn state(head: u16) -> usize {
        HEADER + STATE * usize::from(head)
    }

    fn is_in_flight(&self, head: u16) -> bool {
        self.place.load_u8(Self::state(head), Ordering::Acquire) != 0
    }

    fn set_in_flight(&self, head: u16, value: bool) {
        self.place.store_u8(Self::state(head), u8::from(value), Ordering::Release);
    }

    /// Brings the log in line with the used ring, whose index is `used`, and appends the requests in
    /// flight to `heads`, in the order in which they were taken. Returns whether the log was in
    /// use before.
    pub(crate) fn recover(&mut self, used: u16, heads: &mut VecDeque<u16>) -> bool {
        if !self.is_old {
            self.place.store_u16(COUNT_AT, self.size, Ordering::Release);
            self.place.store_u16(USED_AT, used, Ordering::Release);
            self.place.store_u16(VERSION_AT, VERSION, Ordering::Release);
            self.is_old = true;
            return false;
        }
        // The last batch was shown to the driver, and the log may not say so yet.
        let batch = used.wrapping_sub(self.place.load_u16(USED_AT, Ordering::Acquire));
        let mut head = self.place.load_u16(BATCH_AT, Ordering::Acquire);
        for _ in 0..batch.min(self.size) {
            if head >= self.size {
                break;
            }
            self.set_in_flight(head, false);
            head = self.place.load_u16(Self::state(head) + NEXT_AT, Ordering::Acquire);
        }
        self.place.store_u16(USED_AT, used, Ordering::Release);
        let counter =
            |head: u16| self.place.load_u64(Self::state(head) + COUNTER_AT, Ordering::Acquire);
        let mut found: Vec<(u64, u16)> = (0..self.size)
            .filter(|&head| self.is_in_flight(head))
            .map(|head| (counter(head), head))
            .collect();
        found.sort_unstable();
        self.counter = found.last().map_or(0, |&(counter, _)| counter.wrapping_add(1));
        heads.extend(found.iter().map(|&(_, head)| head));
        true
    }

    /// Says that a request was taken.
    pub(crate) fn begin(&mut self, head: u16) {
        self.place.store_u64(Self::state(head) + COUNTER_AT, self.counter, Ordering::Release);
        self.counter = self.counter.wrapping_add(1);
        self.set_in_flight(head, true);
    }

    /// Says that a request is about to be given back.
    pub(crate) fn end(&mut self, head: u16) {
        // The first of a batch ends the list: what it points to is not looked at, since the batch
        // is as long as the used ring says.
        let last = self.place.load_u16(BATCH_AT, Ordering::Acquire);
        self.place.store_u16(Self::state(head) + NEXT_AT, last, Ordering::Release);
        self.place.store_u16(BATCH_AT, head, Ordering::Release);
        self.batch.push(head);
    }

    /// Says that the driver has been shown all that were given back: the used ring's index is
    /// `used`.
    pub(crate) fn published(&mut self, used: u16) {
        for &head in &self.batch {
            self.set_in_flight(head, false);
        }
        self.batch.clear();
        self.place.store_u16(USED_AT, used, Ordering::Release);
    }
}
