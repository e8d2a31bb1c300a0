//! The driver's side of a virtqueue: for clients of our own, and for tests of the other side.
//!
//! What is in flight, and which descriptors are free, is remembered here and not in the shared memory.
//! So a device may be replaced by another at any time, and one that lies is found out.

use std::sync::atomic::{Ordering, fence};

use holdfast_iov::Place;
use holdfast_units::to_usize;
use thiserror::Error;
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
    VRING_USED_F_NO_NOTIFY,
};

use crate::layout::{DESCRIPTOR, FLAGS, IDX, Rings, needs_event};

/// What a device did that no device may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Misused {
    /// More requests are given back than are in flight.
    #[error("the used ring went from {from} to {to}, with {in_flight} requests in flight")]
    Index {
        /// Up to where used elements were collected.
        from: u16,
        /// Up to where there are said to be some.
        to: u16,
        /// How many requests are in flight.
        in_flight: u16,
    },
    /// A used element names no request in flight.
    #[error("descriptor {head} was given back, and begins no request in flight")]
    Head {
        /// The number of the descriptor.
        head: u32,
    },
    /// More bytes are said to be written than the request has room for.
    #[error("{written} bytes were written to a request with room for {room}")]
    Written {
        /// The number of bytes.
        written: u32,
        /// How many there may be.
        room: u64,
    },
}

/// Not enough descriptors are free for a request; it was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{needed} descriptors are needed, and {free} are free")]
pub struct Full {
    /// How many the request needs.
    pub needed: usize,
    /// How many there are.
    pub free: u16,
}

/// One buffer of a request that is added to a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The guest-physical address of the first byte.
    pub address: u64,
    /// The length in bytes.
    pub len: u32,
    /// The device may write it, and does not read it.
    pub is_writable: bool,
}

/// Where the descriptors of a request are.
#[derive(Clone, Copy, Debug)]
pub enum Table<'a> {
    /// All of them in the queue.
    Direct,
    /// Some of them in a table of the request's own.
    Indirect {
        /// How many are in the queue, before the one that points to the table.
        direct: usize,
        /// The guest-physical address of the table.
        address: u64,
        /// The same memory, as we see it: room for the rest of the descriptors.
        place: &'a Place,
    },
}

/// A request that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The number of its first descriptor, as [`Driver::add`] returned it.
    pub head: u16,
    /// How many bytes the device says that it has written.
    pub written: u32,
}

/// The driver's side of a virtqueue.
#[derive(Debug)]
pub struct Driver {
    rings: Rings,
    event_index: bool,
    /// The running number of the request that is added next.
    next_available: u16,
    /// Up to where the device has been shown requests.
    published: u16,
    /// The running number of the used element that is collected next.
    next_used: u16,
    /// For each descriptor the one that follows it: in its request, or among those that are free.
    links: Box<[u16]>,
    first_free: u16,
    free: u16,
    /// What begins with each descriptor, if something does.
    requests: Box<[Option<Request>]>,
    in_flight: u16,
    /// How many requests were added, ever.
    added: u64,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
struct Request {
    /// How many descriptors of the queue it has, and the last of them.
    descriptors: u16,
    last: u16,
    /// The bytes that the device may write.
    room: u64,
    /// When it was added.
    number: u64,
}

impl Driver {
    /// Begins to use a queue in which nothing is in flight, from the running number that its used ring
    /// has on: 0 in memory that is all zeros.
    pub fn new(rings: Rings, event_index: bool) -> Self {
        let size = rings.size;
        let begin = rings.used.load_u16(IDX, Ordering::Acquire);
        rings.available.store_u16(IDX, begin, Ordering::Release);
        Self {
            event_index,
            next_available: begin,
            published: begin,
            next_used: begin,
            links: (1..=size).collect(),
            first_free: 0,
            free: size,
            requests: vec![None; usize::from(size)].into(),
            in_flight: 0,
            added: 0,
            rings,
        }
    }

    /// Returns the number of descriptors.
    pub const fn size(&self) -> u16 {
        self.rings.size()
    }

    /// Returns how many descriptors are free.
    pub const fn free(&self) -> u16 {
        self.free
    }

    /// Returns how many requests were added and not collected.
    pub const fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Returns the running number of the request that is added next.
    pub const fn next_available(&self) -> u16 {
        self.next_available
    }

    /// Returns the index of the used ring as the device has stored it: where a new device goes on.
    pub fn used_index(&self) -> u16 {
        self.rings.used.load_u16(IDX, Ordering::Acquire)
    }

    /// Adds a request and returns the number of its first descriptor. The device sees it after the
    /// next [`publish`](Self::publish).
    ///
    /// # Errors
    ///
    /// [`Full`].
    ///
    /// # Panics
    ///
    /// When the request has no descriptor in one of its tables, or the table of its own is too short.
    pub fn add(&mut self, pieces: &[Piece], table: Table<'_>) -> Result<u16, Full> {
        let direct = match table {
            Table::Direct => pieces.len(),
            Table::Indirect { direct, .. } => direct,
        };
        let (direct, indirect) = pieces.split_at(direct);
        let needed = direct.len() + usize::from(!indirect.is_empty());
        assert!(needed > 0, "a request has descriptors");
        if needed > usize::from(self.free) {
            return Err(Full { needed, free: self.free });
        }
        let head = self.first_free;
        let last = self.store_direct(direct, table, indirect.len());
        let entry = self.rings.available_entry(self.next_available);
        self.rings.available.store_u16(entry, head, Ordering::Relaxed);
        self.next_available = self.next_available.wrapping_add(1);
        if let Table::Indirect { place, .. } = table {
            store_table(place, indirect);
        }
        let writable = pieces.iter().filter(|piece| piece.is_writable);
        self.requests[usize::from(head)] = Some(Request {
            descriptors: u16::try_from(needed).expect("no more than are free"),
            last,
            room: writable.map(|piece| u64::from(piece.len)).sum(),
            number: self.added,
        });
        self.added += 1;
        self.in_flight += 1;
        Ok(head)
    }

    /// Stores descriptors in the queue, with one for a table of `indirect` descriptors behind them if
    /// there are such, and returns the last.
    fn store_direct(&mut self, pieces: &[Piece], table: Table<'_>, indirect: usize) -> u16 {
        let mut raw: RawPiece;
        let mut last = self.first_free;
        let count = pieces.len() + usize::from(indirect > 0);
        for index in 0..count {
            last = self.first_free;
            self.first_free = self.links[usize::from(last)];
            self.free -= 1;
            raw = match (pieces.get(index), table) {
                (Some(piece), _) => RawPiece::of(piece),
                (None, Table::Indirect { address, .. }) => {
                    let len = u32::try_from(indirect * DESCRIPTOR).expect("a table of some pages");
                    RawPiece { address, len, flags: VRING_DESC_F_INDIRECT }
                }
                (None, Table::Direct) => unreachable!("all descriptors are in the queue"),
            };
            let next = (index + 1 < count).then_some(self.first_free);
            raw.store(&self.rings.descriptors, usize::from(last), next);
        }
        last
    }

    /// Shows the device what was added. Returns whether it wants to be told.
    pub fn publish(&mut self) -> bool {
        if self.published == self.next_available {
            return false;
        }
        // Release: the descriptors, the entries and what the requests' memory has are there.
        self.rings.available.store_u16(IDX, self.next_available, Ordering::Release);
        // The device stores what it waits for and then looks at the index: one of us sees the other.
        fence(Ordering::SeqCst);
        let old = std::mem::replace(&mut self.published, self.next_available);
        if self.event_index {
            let event = self.rings.available_event();
            let event = self.rings.used.load_u16(event, Ordering::Relaxed);
            needs_event(event, self.published, old)
        } else {
            let flags = self.rings.used.load_u16(FLAGS, Ordering::Relaxed);
            u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0
        }
    }

    /// Returns whether there are used elements to be collected.
    pub fn has_used(&self) -> bool {
        self.rings.used.load_u16(IDX, Ordering::Relaxed) != self.next_used
    }

    /// Collects the next request that the device has given back, if there is one.
    ///
    /// # Errors
    ///
    /// [`Misused`]: the device is not to be trusted. The element is not collected.
    pub fn collect(&mut self) -> Result<Option<Used>, Misused> {
        // Acquire: the elements, and what was written to the requests' memory, are there.
        let (from, to) = (self.next_used, self.used_index());
        let in_flight = self.in_flight;
        if to.wrapping_sub(from) > in_flight {
            return Err(Misused::Index { from, to, in_flight });
        }
        if from == to {
            return Ok(None);
        }
        let element = self.rings.used_element(from);
        let head = self.rings.used.load_u32(element, Ordering::Relaxed);
        let written = self.rings.used.load_u32(element + 4, Ordering::Relaxed);
        let known = self.requests.get_mut(to_usize(u64::from(head)));
        let slot = known.ok_or(Misused::Head { head })?;
        let request = slot.ok_or(Misused::Head { head })?;
        if u64::from(written) > request.room {
            return Err(Misused::Written { written, room: request.room });
        }
        *slot = None;
        let head = u16::try_from(head).expect("it names one of the descriptors");
        self.links[usize::from(request.last)] = self.first_free;
        self.first_free = head;
        self.free += request.descriptors;
        self.in_flight -= 1;
        self.next_used = from.wrapping_add(1);
        Ok(Some(Used { head, written }))
    }

    /// Asks the device to tell of used elements. Returns whether there are some already, so that nobody
    /// must sleep.
    pub fn enable_interrupts(&self) -> bool {
        if self.event_index {
            let event = self.rings.used_event();
            self.rings.available.store_u16(event, self.next_used, Ordering::Relaxed);
        } else {
            self.rings.available.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // The device stores the index and then looks whether to tell: one of us sees the other.
        fence(Ordering::SeqCst);
        self.has_used()
    }

    /// Tells the device that it need not tell of used elements. It may do so all the same.
    pub fn disable_interrupts(&self) {
        if !self.event_index {
            let flag = u16::try_from(VRING_AVAIL_F_NO_INTERRUPT).expect("it is 1");
            self.rings.available.store_u16(FLAGS, flag, Ordering::Relaxed);
        }
        // With event indexes the device tells once of the number that it was given, and then no more.
    }

    /// Makes every request in flight that was not given back available once more, in the order in
    /// which they were added: for a new device that has no in-flight log and begins at
    /// [`used_index`](Self::used_index). No device may use the queue meanwhile. What was added and
    /// not published is published.
    ///
    /// # Errors
    ///
    /// [`Misused`], when the old device has given back what it never had.
    pub fn rewind(&mut self) -> Result<(), Misused> {
        let (from, to) = (self.next_used, self.used_index());
        let mut ended = Vec::with_capacity(usize::from(self.in_flight));
        if to.wrapping_sub(from) > self.in_flight {
            return Err(Misused::Index { from, to, in_flight: self.in_flight });
        }
        for index in 0..to.wrapping_sub(from) {
            let element = self.rings.used_element(from.wrapping_add(index));
            ended.push(self.rings.used.load_u32(element, Ordering::Relaxed));
        }
        let begins = self.requests.iter().zip(0_u16..);
        let mut again: Vec<(u64, u16)> = begins
            .filter_map(|(request, head)| request.map(|request| (request.number, head)))
            .filter(|(_, head)| !ended.contains(&u32::from(*head)))
            .collect();
        again.sort_unstable();
        let mut next = to;
        for &(_, head) in &again {
            let entry = self.rings.available_entry(next);
            self.rings.available.store_u16(entry, head, Ordering::Relaxed);
            next = next.wrapping_add(1);
        }
        // The running number stays what it was, unless the device gave back something twice.
        if next != self.next_available {
            let head = ended.last().copied().unwrap_or(u32::MAX);
            return Err(Misused::Head { head });
        }
        self.published = next;
        self.rings.available.store_u16(IDX, next, Ordering::Release);
        Ok(())
    }
}

/// A descriptor without its link.
#[derive(Clone, Copy)]
struct RawPiece {
    address: u64,
    len: u32,
    flags: u32,
}

impl RawPiece {
    fn of(piece: &Piece) -> Self {
        let flags = if piece.is_writable { VRING_DESC_F_WRITE } else { 0 };
        Self { address: piece.address, len: piece.len, flags }
    }

    fn store(self, table: &Place, index: usize, next: Option<u16>) {
        let at = index * DESCRIPTOR;
        let flags = self.flags | next.map_or(0, |_| VRING_DESC_F_NEXT);
        let link = u64::from(next.unwrap_or(0)) << 48;
        let rest = u64::from(self.len) | u64::from(flags) << 32 | link;
        if table.is_aligned(size_of::<u64>()) {
            // Relaxed: the index is stored with release after this.
            table.store_u64(at, self.address, Ordering::Relaxed);
            table.store_u64(at + 8, rest, Ordering::Relaxed);
        } else {
            let bytes = [self.address.to_le_bytes(), rest.to_le_bytes()];
            for (at, &byte) in (at..).zip(bytes.as_flattened()) {
                table.store_u8(at, byte, Ordering::Relaxed);
            }
        }
    }
}

fn store_table(table: &Place, pieces: &[Piece]) {
    for (index, piece) in pieces.iter().enumerate() {
        let next = (index + 1 < pieces.len())
            .then(|| u16::try_from(index + 1).expect("a table has at most 2^16 descriptors"));
        RawPiece::of(piece).store(table, index, next);
    }
}
