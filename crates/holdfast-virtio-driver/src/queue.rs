//! One queue of a block device.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use holdfast_iov::Place;
use holdfast_units::{to_u64, to_usize};
use holdfast_virtqueue::{Driver, Piece, Rings, Table};
use rustix::event::Timespec;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};

use crate::bell::{self, Bell};
use crate::request::{HEADER, Parts, RANGE, Request, Shape, TableShape, lay_out};
use crate::{ClientError, Memory};

/// A request that was submitted: the number of those before it in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It was carried out.
    Ok,
    /// It could not be carried out.
    IoError,
    /// The device does not know such requests.
    Unsupported,
    /// Something that no device says. 0xff is what was there before: the device has said nothing.
    Other(u8),
}

impl Status {
    /// What is stored where the device will store its status.
    const UNSAID: u8 = 0xff;

    fn of(byte: u8) -> Self {
        match u32::from(byte) {
            VIRTIO_BLK_S_OK => Self::Ok,
            VIRTIO_BLK_S_IOERR => Self::IoError,
            VIRTIO_BLK_S_UNSUPP => Self::Unsupported,
            _ => Self::Other(byte),
        }
    }
}

/// A request that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Which.
    pub token: Token,
    /// How.
    pub status: Status,
    /// The bytes that the device says it has written, with the status.
    pub written: u32,
}

/// The parts of a queue, for those who want to store into them what no driver should.
#[derive(Clone, Debug)]
pub struct Places {
    /// The descriptor table: 16 bytes each.
    pub descriptors: Place,
    /// The available ring: `flags`, `idx`, the heads, `used_event`.
    pub available: Place,
    /// The used ring: `flags`, `idx`, the elements, `avail_event`.
    pub used: Place,
}

/// What a queue has in common with its client.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) index: u16,
    pub(crate) size: u16,
    /// The guest addresses of descriptor table, available ring and used ring.
    pub(crate) addresses: [u64; 3],
    pub(crate) places: Places,
    pub(crate) kick: Bell,
    pub(crate) call: Bell,
    pub(crate) error: Bell,
}

impl Link {
    /// Returns the index of the used ring.
    pub(crate) fn used_index(&self) -> u16 {
        self.places.used.load_u16(2, Ordering::Acquire)
    }
}

/// One queue of a block device. It can be driven by a thread of its own.
#[derive(Debug)]
pub struct BlkQueue {
    link: Arc<Link>,
    memory: Arc<Memory>,
    driver: Driver,
    takes_tables: bool,
    /// The scratch memory of each slot, and its guest address.
    slots: Box<[(Place, u64)]>,
    /// Where the table of each slot is; a part of its scratch memory.
    tables: Box<[Place]>,
    free_slots: Vec<u16>,
    /// By the number of its first descriptor.
    in_flight: Box<[Option<InFlight>]>,
    pieces: Vec<Piece>,
    submitted: u64,
}

#[derive(Clone, Copy, Debug)]
struct InFlight {
    token: Token,
    slot: u16,
    status: StatusAt,
}

#[derive(Clone, Copy, Debug)]
enum StatusAt {
    Slot,
    Address(u64),
    Nowhere,
}

/// What a slot has room for besides the table: the header, ranges behind it, the status.
const RANGES_MAX: usize = 32;
/// It is odd on purpose.
const STATUS_AT: usize = HEADER + RANGES_MAX * RANGE + 5;
const TABLE_AT: usize = (STATUS_AT + 1).next_multiple_of(16);
/// Descriptors of a request that are not segments: up to 16 of the header, ranges, the status.
const OTHERS_MAX: usize = 18;
const DESCRIPTOR: usize = 16;

/// How much memory the parts of a queue take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    size: u16,
    slot: usize,
}

impl Sizes {
    pub(crate) fn new(size: u16, segments_max: u16) -> Self {
        let table = DESCRIPTOR * (usize::from(segments_max) + OTHERS_MAX);
        Self { size, slot: (TABLE_AT + table).next_multiple_of(64) }
    }

    /// Returns bytes enough for one queue, wherever it begins.
    pub(crate) fn bytes(&self) -> u64 {
        let parts = [
            Rings::descriptors_len(self.size),
            Rings::available_len(self.size),
            Rings::used_len(self.size),
            self.slot * usize::from(self.size),
        ];
        parts.iter().map(|&len| to_u64(len) + 64).sum()
    }
}

impl BlkQueue {
    /// Makes the queue with a number, in one of the regions.
    pub(crate) fn new(
        index: u16,
        sizes: Sizes,
        memory: &Arc<Memory>,
        event_index: bool,
        takes_tables: bool,
    ) -> Result<Self, ClientError> {
        let regions = memory.guest().regions().len();
        let part = |len: usize, alignment: u64| -> Result<(u64, Place), ClientError> {
            let region = usize::from(index) % regions;
            let address = memory.allocate_in(region, to_u64(len), alignment)?;
            Ok((address, memory.guest().place(address, len)?))
        };
        let size = sizes.size;
        let (d, descriptors) = part(Rings::descriptors_len(size), 16)?;
        let (a, available) = part(Rings::available_len(size), 2)?;
        let (u, used) = part(Rings::used_len(size), 4)?;
        let places = Places { descriptors, available, used };
        let slots = (0..size).map(|_| part(sizes.slot, 64)).collect::<Result<Vec<_>, _>>()?;
        let tables: Vec<_> = slots
            .iter()
            .map(|(address, _)| {
                memory.guest().place(address + to_u64(TABLE_AT), sizes.slot - TABLE_AT)
            })
            .collect::<Result<_, _>>()?;
        let rings = Rings::new(
            u32::from(size),
            places.descriptors.clone(),
            places.available.clone(),
            places.used.clone(),
        )?;
        let (kick, call, error) = (Bell::new()?, Bell::new()?, Bell::new()?);
        let link = Link { index, size, addresses: [d, a, u], places, kick, call, error };
        let driver = Driver::new(rings, event_index);
        driver.disable_interrupts();
        Ok(Self {
            link: Arc::new(link),
            memory: Arc::clone(memory),
            driver,
            takes_tables,
            slots: slots.into_iter().map(|(address, place)| (place, address)).collect(),
            tables: tables.into(),
            free_slots: (0..size).collect(),
            in_flight: vec![None; usize::from(size)].into(),
            pieces: Vec::new(),
            submitted: 0,
        })
    }

    pub(crate) const fn link(&self) -> &Arc<Link> {
        &self.link
    }

    /// Returns the number of this queue.
    pub fn index(&self) -> u16 {
        self.link.index
    }

    /// Returns how many requests have not ended.
    pub const fn in_flight(&self) -> u16 {
        self.driver.in_flight()
    }

    /// Returns how many descriptors of the queue are free: a request in a table of its own takes one,
    /// one without takes one for each of its pieces.
    pub const fn free(&self) -> u16 {
        self.driver.free()
    }

    /// Returns the driver's side of the ring, to look at it or to add what is no request. What is
    /// added there directly is not known here and makes [`completed`](Self::completed) panic; see
    /// [`submit_pieces`](Self::submit_pieces).
    pub const fn driver(&mut self) -> &mut Driver {
        &mut self.driver
    }

    /// Returns the memory of the ring, to be broken.
    pub fn places(&self) -> &Places {
        &self.link.places
    }

    /// Returns the descriptor that becomes readable when the device calls. It does so when it was asked
    /// to by [`arm`](Self::arm); [`wait`](Self::wait) does all of this.
    pub fn call_fd(&self) -> BorrowedFd<'_> {
        self.link.call.as_fd()
    }

    /// Asks the device to call for the next request that ends. Returns whether one has ended already.
    pub fn arm(&self) -> bool {
        self.driver.enable_interrupts()
    }

    /// Adds a request. The device is shown it by the next [`kick`](Self::kick). The memory that it
    /// names must not be used otherwise until it has ended; that of lists given here may.
    ///
    /// # Errors
    ///
    /// [`ClientError::Full`]; [`ClientError::TooMany`] segments or ranges; [`ClientError::Address`] when header or
    /// status shall be joined with what is no memory.
    pub fn submit(&mut self, request: &Request<'_>, shape: Shape) -> Result<Token, ClientError> {
        let found = request.ranges().len();
        if found > RANGES_MAX {
            return Err(ClientError::TooMany { what: "ranges", found, max: RANGES_MAX });
        }
        let slot = self.next_slot()?;
        let (place, base) = &self.slots[usize::from(slot)];
        let at_slot = Parts {
            header: *base,
            ranges: base + to_u64(HEADER),
            status: base + to_u64(STATUS_AT),
        };
        let mut pieces = std::mem::take(&mut self.pieces);
        let parts = lay_out(request, shape, at_slot, &mut pieces);
        self.pieces = pieces;
        let header = request.header();
        if parts.header == at_slot.header {
            store(place, 0, &header);
        } else {
            self.memory.write(parts.header, &header)?;
        }
        for (range, at) in request.ranges().iter().zip((HEADER..).step_by(RANGE)) {
            store(place, at, &range.bytes());
        }
        let status = if parts.status == at_slot.status {
            place.store_u8(STATUS_AT, Status::UNSAID, Ordering::Relaxed);
            StatusAt::Slot
        } else {
            self.memory.write(parts.status, &[Status::UNSAID])?;
            StatusAt::Address(parts.status)
        };
        self.add(slot, shape.table, status)
    }

    /// Adds any descriptors, which need not be a request of any kind. The status, if the request has
    /// one, is at a guest address that must be memory; without one, [`Status::Other`] with 0xff is
    /// what it ends with.
    ///
    /// # Errors
    ///
    /// As [`submit`](Self::submit).
    pub fn submit_pieces(
        &mut self,
        pieces: &[Piece],
        table: TableShape,
        status: Option<u64>,
    ) -> Result<Token, ClientError> {
        let slot = self.next_slot()?;
        if let Some(address) = status {
            self.memory.write(address, &[Status::UNSAID])?;
        }
        self.pieces.clear();
        self.pieces.extend_from_slice(pieces);
        self.add(slot, table, status.map_or(StatusAt::Nowhere, StatusAt::Address))
    }

    fn next_slot(&self) -> Result<u16, ClientError> {
        let full = holdfast_virtqueue::Full { needed: 1, free: 0 };
        self.free_slots.last().copied().ok_or_else(|| full.into())
    }

    /// Adds the request whose descriptors are in `pieces`, and takes the slot for it.
    fn add(
        &mut self,
        slot: u16,
        shape: TableShape,
        status: StatusAt,
    ) -> Result<Token, ClientError> {
        let index = usize::from(slot);
        let direct = match shape {
            TableShape::Indirect if self.takes_tables => 0,
            TableShape::After(direct) if self.takes_tables => direct.min(self.pieces.len()),
            _ => self.pieces.len(),
        };
        let found = self.pieces.len() - direct;
        let max = self.tables[index].len() / DESCRIPTOR;
        if found > max {
            return Err(ClientError::TooMany { what: "descriptors", found, max });
        }
        let table = Table::Indirect {
            direct,
            address: self.slots[index].1 + to_u64(TABLE_AT),
            place: &self.tables[index],
        };
        let head = self.driver.add(&self.pieces, table)?;
        self.free_slots.pop();
        let token = Token(self.submitted);
        self.submitted += 1;
        self.in_flight[usize::from(head)] = Some(InFlight { token, slot, status });
        Ok(token)
    }

    /// Shows the device what was added, and tells it when it wants to be told. Returns whether it was
    /// told.
    ///
    /// # Errors
    ///
    /// [`ClientError::System`].
    pub fn kick(&mut self) -> Result<bool, ClientError> {
        let wanted = self.driver.publish();
        if wanted {
            self.link.kick.ring()?;
        }
        Ok(wanted)
    }

    /// Tells the device to look at the queue, whether it wants to be told or not.
    ///
    /// # Errors
    ///
    /// [`ClientError::System`].
    pub fn kick_always(&mut self) -> Result<(), ClientError> {
        self.driver.publish();
        self.link.kick.ring()
    }

    /// Returns the next request that has ended, if there is one, without waiting.
    ///
    /// # Errors
    ///
    /// [`ClientError::Misused`] when the device has given back what it does not have.
    pub fn completed(&mut self) -> Result<Option<Completion>, ClientError> {
        let Some(used) = self.driver.collect()? else { return Ok(None) };
        let known = self.in_flight[usize::from(used.head)].take();
        let InFlight { token, slot, status } = known.expect("what is in flight was submitted");
        let byte = match status {
            StatusAt::Slot => self.slots[usize::from(slot)].0.load_u8(STATUS_AT, Ordering::Relaxed),
            StatusAt::Nowhere => Status::UNSAID,
            StatusAt::Address(address) => {
                let mut byte = [0];
                self.memory.read(address, &mut byte)?;
                byte[0]
            }
        };
        self.free_slots.push(slot);
        Ok(Some(Completion { token, status: Status::of(byte), written: used.written }))
    }

    /// Waits until a request has ended, or `timeout` is over. Returns whether there is one. Does not
    /// kick.
    ///
    /// # Errors
    ///
    /// [`ClientError::GivenUp`] when the device says that it cannot go on; [`ClientError::System`].
    pub fn wait(&mut self, timeout: Duration) -> Result<bool, ClientError> {
        // Longer than the clock can count is for ever.
        let deadline = Instant::now().checked_add(timeout);
        loop {
            if self.driver.has_used() {
                return Ok(true);
            }
            // A call for what was collected already.
            self.link.call.answer()?;
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if !self.driver.enable_interrupts() {
                let left = left.and_then(|left| Timespec::try_from(left).ok());
                bell::wait([&self.link.call, &self.link.error], left.as_ref())?;
                self.link.call.answer()?;
            }
            self.driver.disable_interrupts();
            if self.driver.has_used() {
                return Ok(true);
            }
            if self.link.error.answer()? {
                return Err(ClientError::GivenUp { queue: self.link.index });
            }
            // A device may also call for nothing.
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(false);
            }
        }
    }

    /// Waits until all requests have ended, and appends them to `ended`. Returns whether they have
    /// before none has ended for `timeout`.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait) and [`completed`](Self::completed).
    pub fn drain(
        &mut self,
        timeout: Duration,
        ended: &mut Vec<Completion>,
    ) -> Result<bool, ClientError> {
        self.kick()?;
        while self.in_flight() > 0 {
            match self.completed()? {
                Some(completion) => ended.push(completion),
                None if self.wait(timeout)? => {}
                None => return Ok(false),
            }
        }
        Ok(true)
    }
}

fn store(place: &Place, at: usize, bytes: &[u8; 16]) {
    let (words, _) = bytes.as_chunks();
    for (word, at) in words.iter().zip((at..).step_by(8)) {
        place.store_u64(at, u64::from_le_bytes(*word), Ordering::Relaxed);
    }
}

const _: () = assert!(to_usize(16) == HEADER && RANGE == 16, "`store` is for both");
