//! The data journal: small writes to sectors that were written before, with their data, before they
//! are anywhere else.
//!
//! A write is in the journal together with the record that the tuple log would have of it, and is
//! acknowledged then. It goes to its place after the device was flushed, many at a time: what is a
//! write, a flush and another write without a journal is one write here. After a crash
//! [`crate::recovery`] stores what had not got to its place.
//!
//! Each queue that has a journal has a *lane* of it, which is a ring of [`SEGMENTS`] segments. Each
//! use of a segment is a *generation*, counted from 1 in each lane. Until its sectors are in their
//! place, the queue keeps their claims, so that nobody sees them; whoever needs one of them, or a
//! place that they hold, tells all lanes to hurry.

use core::mem::offset_of;
use std::num::NonZeroU64;
use std::sync::Arc;

use holdfast_units::{to_u64, to_usize};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::geometry::Geometry;
use crate::inbox::{Inbox, Note};
use crate::log::{LOG_UNIT, Position, Record, checksum_of};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, fence, lock};

/// The segments of a lane.
pub(crate) const SEGMENTS: usize = 4;
/// Batches, and the data in them, begin at multiples of this. In bytes.
pub(crate) const PAGE: usize = 4096;
/// The longest batch, in bytes.
pub(crate) const BATCH_MAX: usize = 128 << 10;
/// What a batch has behind its checksum.
const BATCH_MAGIC: [u8; 4] = *b"HFDJ";
const LANE_MAX: u64 = 2 << 20;
const _: () = assert!(LANE_MAX / SEGMENTS as u64 >= BATCH_MAX as u64, "a batch fits");

/// What a batch begins with. Its records follow, as they will be in the tuple log, and then the data
/// of their sectors, in the same order and without gaps.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBatch {
    /// CRC-32C of all that follows in the batch.
    checksum: U32,
    /// [`BATCH_MAGIC`].
    magic: [u8; 4],
    /// That of the superblock.
    epoch: U64,
    /// That of the segment.
    generation: U64,
    /// Where the batch is, in bytes from the start of the journal.
    place: U64,
    /// Where its first record belongs in the tuple log.
    position: U64,
    /// Where its records begin, in bytes from its start.
    records_at: U32,
    /// How long they are, in bytes.
    records_len: U32,
    /// Where its data begin, in bytes from its start.
    data_at: U32,
    /// How long it is, in bytes.
    len: U32,
}

pub(crate) const BATCH_HEADER: usize = size_of::<RawBatch>();

const _: () = {
    assert!(BATCH_HEADER == 56);
    assert!(offset_of!(RawBatch, generation) == 16);
    assert!(offset_of!(RawBatch, position) == 32);
    assert!(offset_of!(RawBatch, len) == 52);
};

/// Where what is in a batch, in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) records_at: usize,
    pub(crate) records_len: usize,
    pub(crate) data_at: usize,
    pub(crate) len: usize,
}

impl Layout {
    /// Returns the layout of a batch with so many bytes of records and of data, for a tuple log that
    /// is written in blocks of `block` bytes.
    pub(crate) const fn new(records_len: usize, data_len: usize, block: usize) -> Self {
        let records_at = BATCH_HEADER.next_multiple_of(block);
        let records_len = records_len.next_multiple_of(block);
        let data_at = (records_at + records_len).next_multiple_of(PAGE);
        Self { records_at, records_len, data_at, len: (data_at + data_len).next_multiple_of(PAGE) }
    }
}

/// Writes the header of a batch over its first bytes, when all else is there.
pub(crate) fn seal(
    batch: &mut [u8],
    layout: Layout,
    epoch: NonZeroU64,
    generation: u64,
    place: usize,
    position: Position,
) {
    let narrow = |value: usize| U32::new(u32::try_from(value).expect("less than a batch"));
    let header = RawBatch {
        checksum: U32::ZERO,
        magic: BATCH_MAGIC,
        epoch: U64::new(epoch.get()),
        generation: U64::new(generation),
        place: U64::new(to_u64(place)),
        position: U64::new(position.number()),
        records_at: narrow(layout.records_at),
        records_len: narrow(layout.records_len),
        data_at: narrow(layout.data_at),
        len: narrow(layout.len),
    };
    batch[..BATCH_HEADER].copy_from_slice(header.as_bytes());
    let crc = checksum_of(&batch[..layout.len]);
    batch[..size_of::<U32>()].copy_from_slice(&crc.to_le_bytes());
}

/// A batch as it was found, every field of which has been checked.
#[derive(Debug)]
pub(crate) struct Batch<'j> {
    generation: u64,
    len: usize,
    pub(crate) records: Vec<Record<'j>>,
}

impl<'j> Batch<'j> {
    /// Reads the batch at `place` of the journal, if there is one of this epoch. No bytes make it
    /// panic.
    fn parse(
        journal: &'j [u8],
        place: usize,
        epoch: NonZeroU64,
        geometry: &Geometry,
    ) -> Option<Self> {
        let bytes = journal.get(place..)?;
        let (raw, _) = RawBatch::ref_from_prefix(bytes).ok()?;
        let is_here = raw.place.get() == to_u64(place);
        if raw.magic != BATCH_MAGIC || raw.epoch.get() != epoch.get() || !is_here {
            return None;
        }
        let field = |field: &U32| to_usize(u64::from(field.get()));
        let (records_at, data_at) = (field(&raw.records_at), field(&raw.data_at));
        let len = field(&raw.len);
        if !(BATCH_HEADER..=BATCH_MAX).contains(&len) {
            return None;
        }
        let batch = bytes.get(..len)?;
        if checksum_of(batch) != raw.checksum.get() {
            return None;
        }
        let records = batch.get(records_at..)?.get(..field(&raw.records_len))?;
        let mut data = batch.get(data_at..)?;
        let first = Position::from_number(raw.position.get());
        let mut found = Vec::new();
        let mut at = 0;
        while let Some((mut record, len)) = Record::parse_at(&records[at..], epoch, geometry) {
            let sector = geometry.sector().len();
            if record.position != first.after(to_u64(at / LOG_UNIT)) {
                return None;
            }
            let (of_record, rest) = data.split_at_checked(record.count * sector)?;
            (record.data, data) = (Some(of_record), rest);
            found.push(record);
            at += len;
        }
        Some(Self { generation: raw.generation.get(), len, records: found })
    }
}

/// Returns the batches of a journal whose sectors may not be in their place: those of the last
/// generations of each lane.
pub(crate) fn find_batches<'j>(
    journal: &'j [u8],
    epoch: NonZeroU64,
    geometry: &Geometry,
) -> Vec<Batch<'j>> {
    let lane_len = lane_len(geometry);
    let mut batches = Vec::new();
    for lane in 0..journal.len() / lane_len {
        let (mut place, end) = (lane * lane_len, (lane + 1) * lane_len);
        let mut of_lane = Vec::new();
        while place < end {
            match Batch::parse(journal, place, epoch, geometry) {
                Some(batch) => {
                    place += batch.len.next_multiple_of(PAGE);
                    of_lane.push(batch);
                }
                None => place += PAGE,
            }
        }
        let last = of_lane.iter().map(|batch| batch.generation).max().unwrap_or(0);
        // A segment is used again when all is in its place, durably, that was in it.
        of_lane.retain(|batch| batch.generation.saturating_add(to_u64(SEGMENTS)) > last);
        batches.append(&mut of_lane);
    }
    batches
}

/// Returns how long a lane is, in bytes.
pub(crate) fn lane_len(geometry: &Geometry) -> usize {
    to_usize((geometry.journal().1 / 2).min(LANE_MAX))
}

/// Groups share so many numbers of flushes.
const NEEDED: usize = if cfg!(loom) { 2 } else { 1024 };

fn slot_of(group: u64) -> usize {
    to_usize(group % to_u64(NEEDED))
}

/// The lanes of an open volume.
#[derive(Debug)]
pub(crate) struct Journal {
    offset: u64,
    lane_len: usize,
    lanes: Box<[Lane]>,
    /// How many flushes of the device were begun.
    begun: AtomicU64,
    /// The number of the last that was done.
    done: AtomicU64,
    /// From the number of a group: the flush that makes durable what has got to its place there.
    needed: [AtomicU64; NEEDED],
}

#[derive(Debug, Default)]
struct Lane {
    /// There are sectors in it that are not in their place.
    staged: AtomicBool,
    /// Its queue was told to hurry, and has not begun to.
    hurried: AtomicBool,
    owner: Mutex<Owner>,
}

#[derive(Debug, Default)]
struct Owner {
    /// The queue that has the lane.
    inbox: Option<Arc<Inbox>>,
    /// The last generation that was used.
    generation: u64,
}

impl Journal {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let ((offset, len), lane_len) = (geometry.journal(), lane_len(geometry));
        let lanes = (0..to_usize(len) / lane_len).map(|_| Lane::default()).collect();
        let (begun, done) = (AtomicU64::new(0), AtomicU64::new(0));
        let needed = std::array::from_fn(|_| AtomicU64::new(0));
        Self { offset, lane_len, lanes, begun, done, needed }
    }

    /// Takes a lane that nobody has. Returns its number and the last generation of it.
    pub(crate) fn join(&self, inbox: &Arc<Inbox>) -> Option<(usize, u64)> {
        self.lanes.iter().enumerate().find_map(|(number, lane)| {
            let mut owner = lock(&lane.owner);
            owner.inbox.is_none().then(|| {
                owner.inbox = Some(Arc::clone(inbox));
                (number, owner.generation)
            })
        })
    }

    /// Gives a lane back, in which nothing is that is not durable in its place.
    pub(crate) fn leave(&self, lane: usize, generation: u64) {
        *lock(&self.lanes[lane].owner) = Owner { inbox: None, generation };
    }

    pub(crate) const fn segment_len(&self) -> usize {
        self.lane_len / SEGMENTS
    }

    /// Returns where something in a lane is, in bytes from the start of the journal.
    pub(crate) const fn place(&self, lane: usize, at: usize) -> usize {
        lane * self.lane_len + at
    }

    /// Returns where something in the journal is, in bytes of the device.
    pub(crate) fn offset_of(&self, place: usize) -> u64 {
        self.offset + to_u64(place)
    }

    /// Says that a flush of the device is about to begin. Returns its number.
    pub(crate) fn begin_flush(&self) -> u64 {
        self.begun.fetch_add(1, Ordering::AcqRel) + 1
    }

    /// Says that a flush was done.
    pub(crate) fn flushed(&self, number: u64) {
        self.done.fetch_max(number, Ordering::AcqRel);
    }

    /// Says that sectors of a group have got to their place. To be called before they are given up.
    pub(crate) fn stored(&self, group: u64) {
        // Acquire: a flush whose number we do not see begins after the write that has ended.
        let needed = self.begun.load(Ordering::Acquire) + 1;
        // Relaxed: whoever claims such a sector does so after it was given up.
        self.needed[slot_of(group)].fetch_max(needed, Ordering::Relaxed);
    }

    /// Returns whether the device must be flushed before there is a record in the tuple log of sectors of
    /// a group that were claimed. A record says that the journal does not count any more: what came from
    /// there must be durable in its place.
    pub(crate) fn needs_flush(&self, group: u64) -> bool {
        self.needed[slot_of(group)].load(Ordering::Relaxed) > self.done.load(Ordering::Acquire)
    }

    /// Says that there are sectors in a lane that are not in their place. To be called before others
    /// can be kept from anything by that; afterwards it is to be looked whether somebody waits already.
    pub(crate) fn stage(&self, lane: usize) {
        self.lanes[lane].staged.store(true, Ordering::Relaxed);
        // Pairs with the fence in `hurry`.
        fence(Ordering::SeqCst);
    }

    /// Says that all sectors of a lane are in their place.
    pub(crate) fn unstage(&self, lane: usize) {
        self.lanes[lane].staged.store(false, Ordering::Relaxed);
    }

    /// Says that a queue begins to hurry. Who wants it to after that tells it again.
    pub(crate) fn begin_hurry(&self, lane: usize) {
        self.lanes[lane].hurried.store(false, Ordering::Relaxed);
        // Pairs with the one in `hurry`: whoever found that it was told already waits for what is seen now.
        fence(Ordering::SeqCst);
    }

    /// Tells all queues to bring their sectors to their place. To be called by who waits, after it is in
    /// a list of those who wait.
    pub(crate) fn hurry(&self) {
        // Either we see that a lane has sectors, or its queue sees that we wait.
        fence(Ordering::SeqCst);
        for lane in &self.lanes {
            let is_staged = lane.staged.load(Ordering::Relaxed);
            if is_staged
                && !lane.hurried.swap(true, Ordering::Relaxed)
                && let Some(inbox) = &lock(&lane.owner).inbox
            {
                inbox.push(Note::Hurry);
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests;

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use holdfast_checksum::GuardKind;
    use holdfast_units::BlockSize;
    use loom::sync::Notify;
    use loom::thread;

    /// One sector, which somebody keeps until somebody who waits for it is seen.
    struct Place {
        journal: Journal,
        /// It is claimed.
        is_kept: AtomicBool,
        /// Somebody is in the list of those who wait for it.
        is_awaited: AtomicBool,
        given_up: Notify,
    }

    #[test]
    fn loom_whoever_waits_for_what_is_staged_is_seen_by_its_queue() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(|| {
            let geometry = Geometry::new(1 << 20, BlockSize::PAGE, GuardKind::Crc64).unwrap();
            let place = Arc::new(Place {
                journal: Journal::new(&geometry),
                is_kept: AtomicBool::new(true),
                is_awaited: AtomicBool::new(false),
                given_up: Notify::new(),
            });
            let told = Arc::new(Notify::new());
            let inbox = Inbox::new({
                let told = Arc::clone(&told);
                Box::new(move || told.notify())
            });
            let (lane, _) = place.journal.join(&inbox).unwrap();
            let owner = {
                let place = Arc::clone(&place);
                thread::spawn(move || {
                    // As `write_batch` and `batch_written` do.
                    place.journal.stage(lane);
                    if !place.is_awaited.load(Ordering::Relaxed) {
                        told.wait();
                        place.journal.begin_hurry(lane);
                    }
                    place.is_kept.store(false, Ordering::Release);
                    place.given_up.notify();
                })
            };
            // As `claim` does, which puts itself into the list before it looks once more.
            place.is_awaited.store(true, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if place.is_kept.load(Ordering::Acquire) {
                place.journal.hurry();
                place.given_up.wait();
            }
            owner.join().unwrap();
        });
    }
}
