//! The device's side of a virtqueue.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use holdfast_iov::GuestMemory;
use thiserror::Error;
use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

use crate::chain::{BadChain, Chain};
use crate::inflight::Inflight;
use crate::layout::{FLAGS, IDX, Rings, needs_event};

/// What a driver did that leaves no way to go on with the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Broken {
    /// More requests are announced than there are descriptors.
    #[error("the available ring went from {from} to {to}, further than its {size} entries")]
    Index {
        /// Up to where requests were taken.
        from: u16,
        /// Up to where requests are said to be.
        to: u16,
        /// The number of descriptors.
        size: u16,
    },
    /// A request begins with a descriptor that does not exist.
    #[error("a request begins with descriptor {head} of {size}")]
    Head {
        /// The number of the descriptor.
        head: u16,
        /// The number of descriptors.
        size: u16,
    },
    /// A request begins with the descriptor of one that has not ended.
    #[error("descriptor {head} was made available again before its request had ended")]
    Twice {
        /// The number of the descriptor.
        head: u16,
    },
}

/// A request that was taken off a queue, to be given back by [`Virtqueue::complete`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// The number of its first descriptor, by which the driver knows it.
    pub head: u16,
    /// What is wrong with its descriptors, if something is.
    pub bad: Option<BadChain>,
}

/// The device's side of a virtqueue.
#[derive(Debug)]
pub struct Virtqueue {
    rings: Rings,
    event_index: bool,
    /// The running number of the request that is taken next.
    next_available: u16,
    /// The index of the available ring as it was loaded last.
    seen_available: u16,
    /// The running number of the used element that is stored next.
    next_used: u16,
    /// Up to where the driver has been shown used elements.
    published: u16,
    /// Up to where the driver has been shown used elements when it was asked last whether it wants to
    /// be told.
    told: u16,
    /// Which descriptors begin a request that was taken.
    taken: Box<[bool]>,
    in_flight: u16,
    inflight: Option<Inflight>,
    /// Requests that another process had taken and not given back.
    resubmit: VecDeque<u16>,
}

impl Virtqueue {
    /// Begins to use a queue from the request with the running number `base` on. With an in-flight
    /// log that was used before, the requests that it names come first, and `base` is what follows
    /// from it.
    pub fn new(rings: Rings, event_index: bool, base: u16, mut inflight: Option<Inflight>) -> Self {
        let used = rings.used.load_u16(IDX, Ordering::Acquire);
        let mut resubmit = VecDeque::with_capacity(usize::from(rings.size));
        let mut next_available = base;
        if let Some(log) = &mut inflight
            && log.recover(used, &mut resubmit)
        {
            let count = u16::try_from(resubmit.len()).expect("no more than descriptors");
            next_available = used.wrapping_add(count);
        }
        Self {
            event_index,
            next_available,
            seen_available: next_available,
            next_used: used,
            published: used,
            told: used,
            taken: vec![false; usize::from(rings.size)].into(),
            in_flight: 0,
            inflight,
            resubmit,
            rings,
        }
    }

    /// Returns the running number of the request that is taken next.
    pub const fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Returns how many requests were taken and not given back.
    pub const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Returns the number of descriptors.
    pub const fn size(&self) -> u16 {
        self.rings.size()
    }

    /// Goes on with the same queue at other addresses of this process, after the guest's memory
    /// was mapped anew.
    pub fn move_to(&mut self, rings: Rings) {
        assert_eq!(rings.size, self.rings.size, "a queue keeps its size");
        self.rings = rings;
    }

    /// Returns whether there are requests to be taken, without taking one.
    pub fn has_requests(&self) -> bool {
        let available = self.rings.available.load_u16(IDX, Ordering::Relaxed);
        available != self.next_available || !self.resubmit.is_empty()
    }

    /// Takes the next request, if there is one, and collects its descriptors. They may be no memory
    /// of the guest.
    ///
    /// # Errors
    ///
    /// [`Broken`]: the queue cannot be used any more. A request with bad descriptors is no error of
    /// the queue.
    pub fn take(
        &mut self,
        chain: &mut Chain,
        memory: &GuestMemory,
    ) -> Result<Option<Taken>, Broken> {
        let again = self.resubmit.pop_front();
        let next = if again.is_some() { again } else { self.next_head()? };
        let Some(head) = next else { return Ok(None) };
        let taken = &mut self.taken[usize::from(head)];
        if std::mem::replace(taken, true) {
            return Err(Broken::Twice { head });
        }
        self.in_flight += 1;
        // One that comes again is in the log, and keeps its place there.
        if again.is_none()
            && let Some(log) = &mut self.inflight
        {
            log.begin(head);
        }
        let bad = chain.collect(&self.rings.descriptors, head, memory).err();
        Ok(Some(Taken { head, bad }))
    }

    /// Returns the next head of the available ring.
    fn next_head(&mut self) -> Result<Option<u16>, Broken> {
        let size = self.rings.size;
        if self.seen_available == self.next_available {
            // Acquire: the descriptors and the entries of the ring are there.
            let to = self.rings.available.load_u16(IDX, Ordering::Acquire);
            let from = self.next_available;
            if to.wrapping_sub(from) > size {
                return Err(Broken::Index { from, to, size });
            }
            self.seen_available = to;
            if from == to {
                return Ok(None);
            }
        }
        let entry = self.rings.available_entry(self.next_available);
        let head = self.rings.available.load_u16(entry, Ordering::Relaxed);
        if head >= size {
            return Err(Broken::Head { head, size });
        }
        self.next_available = self.next_available.wrapping_add(1);
        Ok(Some(head))
    }

    /// Gives a request back, into whose memory `written` bytes were written. The driver sees it
    /// after the next [`publish`](Self::publish).
    pub fn complete(&mut self, head: u16, written: u32) {
        let was_taken = std::mem::replace(&mut self.taken[usize::from(head)], false);
        debug_assert!(was_taken, "a request is given back once");
        self.in_flight -= 1;
        if let Some(log) = &mut self.inflight {
            log.end(head);
        }
        let element = self.rings.used_element(self.next_used);
        self.rings.used.store_u32(element, u32::from(head), Ordering::Relaxed);
        self.rings.used.store_u32(element + 4, written, Ordering::Relaxed);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Forgets a request that can never be given back. The in-flight log goes on naming it.
    pub fn abandon(&mut self, head: u16) {
        self.taken[usize::from(head)] = false;
        self.in_flight -= 1;
    }

    /// Shows the driver what was given back. Returns whether it wants to be told.
    pub fn publish(&mut self) -> bool {
        if self.published != self.next_used {
            // Release: the elements, and what was written to the requests' memory, are there.
            self.rings.used.store_u16(IDX, self.next_used, Ordering::Release);
            self.published = self.next_used;
            if let Some(log) = &mut self.inflight {
                log.published(self.next_used);
            }
        }
        if self.told == self.published {
            return false;
        }
        // The driver stores what it waits for and then looks at the index: one of us sees the other.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.told, self.published);
        if self.event_index {
            let event = self.rings.used_event();
            let event = self.rings.available.load_u16(event, Ordering::Relaxed);
            needs_event(event, self.published, old)
        } else {
            let flags = self.rings.available.load_u16(FLAGS, Ordering::Relaxed);
            u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// Returns how many elements of the used ring are stored since the last [`publish`], and the
    /// running number of the first: for a dirty log.
    ///
    /// [`publish`]: Self::publish
    pub const fn unpublished(&self) -> (u16, u16) {
        (self.published, self.next_used.wrapping_sub(self.published))
    }

    /// Returns where the element with a running number is in the used ring, in bytes.
    pub fn used_element(&self, index: u16) -> usize {
        self.rings.used_element(index)
    }

    /// Asks the driver to tell of new requests. Returns whether there are some already, so that
    /// nobody must sleep.
    pub fn enable_kicks(&self) -> bool {
        if self.event_index {
            let event = self.rings.available_event();
            self.rings.used.store_u16(event, self.next_available, Ordering::Relaxed);
        } else {
            self.rings.used.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // The driver stores the index and then looks whether to tell: one of us sees the other.
        fence(Ordering::SeqCst);
        self.has_requests()
    }

    /// Tells the driver that it need not tell of new requests. It may do so all the same.
    pub fn disable_kicks(&self) {
        if !self.event_index {
            let flag = u16::try_from(VRING_USED_F_NO_NOTIFY).expect("it is 1");
            self.rings.used.store_u16(FLAGS, flag, Ordering::Relaxed);
        }
        // With event indexes the driver tells once of the number that it was given, and then no more.
    }
}
