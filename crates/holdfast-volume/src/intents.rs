//! The write-intent log: which regions of the disk are being written.
//!
//! With [`Durability::Bitmap`](crate::Durability::Bitmap) that a region is dirty is durable before a
//! sector of it is written. After a crash only dirty regions need a look. A region becomes clean
//! again when it has not been written for some flushes; that is stored with whatever is stored next.
//! One queue at a time stores, so that what is stored later is newer. Nothing here does I/O.

use core::mem::offset_of;
use std::collections::BTreeSet;
use std::ops::Range;

use holdfast_bio::Error;
use holdfast_units::{BlockSize, to_u64, to_usize};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::geometry::Geometry;
use crate::inbox::Waiter;
use crate::log::checksum_of;
use crate::sync::{AtomicU32, Mutex, Ordering, lock};

/// What a block has behind its checksum.
const MAGIC: [u8; 4] = *b"HFWI";
/// The size of a block, in bytes: a power failure leaves it whole.
const BLOCK: usize = 512;
const BYTES_OF_BLOCK: usize = BLOCK - 16;
const REGIONS_OF_BLOCK: usize = BYTES_OF_BLOCK * 8;
/// There are not many more regions than this.
const REGIONS_MAX: u64 = 16 << 10;
/// The smallest region, in bytes.
const REGION_MIN: u64 = 1 << 20;

/// A region may have been written since it was last known to be durable.
const DIRTY: u32 = 1 << 31;
/// A region was written since the last look for those that were not.
const TOUCHED: u32 = 1 << 30;

/// A block as it is stored.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBlock {
    /// CRC-32C of all that follows.
    checksum: U32,
    /// [`MAGIC`].
    magic: [u8; 4],
    /// Which block this is.
    number: U64,
    /// One bit for each region, the lowest of a byte first.
    bits: [u8; BYTES_OF_BLOCK],
}

const _: () = {
    assert!(size_of::<RawBlock>() == BLOCK);
    assert!(offset_of!(RawBlock, bits) == 16);
};

impl RawBlock {
    fn new(number: usize, is_dirty: impl Fn(usize) -> bool) -> Self {
        let mut bits = [0; BYTES_OF_BLOCK];
        for (index, byte) in bits.iter_mut().enumerate() {
            let first = number * REGIONS_OF_BLOCK + index * 8;
            *byte = (0..8).fold(0, |byte, bit| byte | u8::from(is_dirty(first + bit)) << bit);
        }
        let number = U64::new(to_u64(number));
        let mut block = Self { checksum: U32::ZERO, magic: MAGIC, number, bits };
        block.checksum = U32::new(checksum_of(block.as_bytes()));
        block
    }

    /// Returns whether a region is dirty. All of a block that is not intact are.
    fn is_dirty(&self, number: usize, region: usize) -> bool {
        let is_intact = self.magic == MAGIC
            && self.number.get() == to_u64(number)
            && self.checksum.get() == checksum_of(self.as_bytes());
        let in_block = region % REGIONS_OF_BLOCK;
        !is_intact || self.bits[in_block / 8] & 1 << (in_block % 8) != 0
    }
}

/// Where regions are, and where what is known of them is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    size: BlockSize,
    count: usize,
    capacity: u64,
    /// Where the log is, in bytes of the device.
    offset: u64,
    /// What the device writes whole, in bytes.
    unit: usize,
}

impl Regions {
    pub(crate) fn new(geometry: &Geometry, granularity: BlockSize) -> Self {
        let capacity = geometry.capacity();
        let smallest = REGION_MIN.max(geometry.group_data().bytes());
        let size = (capacity / REGIONS_MAX).next_power_of_two().max(smallest);
        let size = BlockSize::new(size).expect("a power of two from 1 MiB to 2^46");
        let count = to_usize(capacity.div_ceil(size.bytes()));
        let (offset, len) = geometry.intent();
        let regions = Self { size, count, capacity, offset, unit: granularity.len().max(BLOCK) };
        assert!(to_u64(regions.stored_len()) <= len, "all blocks fit");
        regions
    }

    /// Returns how many bytes are stored.
    pub(crate) fn stored_len(&self) -> usize {
        (self.count.div_ceil(REGIONS_OF_BLOCK) * BLOCK).next_multiple_of(self.unit)
    }

    /// Returns where the log is, in bytes of the device.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the region of an offset of the disk.
    pub(crate) fn of(&self, offset: u64) -> usize {
        to_usize(self.size.count(offset))
    }

    /// Fills `target` with blocks from the first of the unit `unit` on.
    fn encode(&self, target: &mut [u8], unit: usize, is_dirty: impl Fn(usize) -> bool) {
        let first = unit * (self.unit / BLOCK);
        let is_dirty = |region| region < self.count && is_dirty(region);
        for (number, bytes) in (first..).zip(target.chunks_mut(BLOCK)) {
            bytes.copy_from_slice(RawBlock::new(number, is_dirty).as_bytes());
        }
    }

    /// Fills `target` with what is stored when all regions are clean.
    pub(crate) fn encode_clean(&self, target: &mut [u8]) {
        self.encode(target, 0, |_| false);
    }

    /// Returns the dirty ranges of the disk, in bytes, by what is stored.
    pub(crate) fn dirty(&self, stored: &[u8]) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for region in 0..self.count {
            let number = region / REGIONS_OF_BLOCK;
            let bytes = &stored[number * BLOCK..][..BLOCK];
            let block = RawBlock::ref_from_bytes(bytes).expect("the length is that of the struct");
            if !block.is_dirty(number, region) {
                continue;
            }
            let start = to_u64(region) * self.size.bytes();
            let end = (start + self.size.bytes()).min(self.capacity);
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end = end,
                _ => ranges.push(start..end),
            }
        }
        ranges
    }
}

/// What becomes of somebody who wants to write to a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It may.
    Ready,
    /// It will be told.
    Wait,
    /// It will be told, and has to store what is wanted.
    Store,
}

/// The regions of an open volume.
#[derive(Debug)]
pub(crate) struct Intents {
    regions: Regions,
    /// Of each region [`DIRTY`], [`TOUCHED`], and how many are writing to it.
    states: Box<[AtomicU32]>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Somebody is storing.
    storing: bool,
    /// Regions that are to be dirty.
    wanted: BTreeSet<usize>,
    /// Those of them that are being stored.
    coming: Vec<usize>,
    waiters: Vec<Waiter>,
    /// Flushes since the last look for regions that are not written any more.
    flushes: u32,
}

impl Intents {
    /// A region is clean when it was not written for so many flushes, or twice as many.
    const FLUSHES: u32 = if cfg!(loom) { 1 } else { 16 };

    pub(crate) fn new(regions: Regions) -> Self {
        let states = (0..regions.count).map(|_| AtomicU32::new(0)).collect();
        Self { regions, states, inner: Mutex::default() }
    }

    /// Returns the region of an offset of the disk.
    pub(crate) fn region_of(&self, offset: u64) -> usize {
        self.regions.of(offset)
    }

    /// Says that the caller is writing to a region, until it [leaves](Self::leave).
    pub(crate) fn enter(&self, region: usize) {
        let entered = |state: u32| Some((state | TOUCHED) + 1);
        let state = &self.states[region];
        let _always = state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, entered);
    }

    /// Returns whether the region is known to be dirty where it counts, or what else to do.
    pub(crate) fn ask(&self, region: usize, waiter: &Waiter) -> Entry {
        // Acquire pairs with the release in `stored`.
        let is_dirty = || self.states[region].load(Ordering::Acquire) & DIRTY != 0;
        if is_dirty() {
            return Entry::Ready;
        }
        let mut inner = lock(&self.inner);
        if is_dirty() {
            return Entry::Ready;
        }
        inner.waiters.push(waiter.clone());
        inner.wanted.insert(region);
        if std::mem::replace(&mut inner.storing, true) { Entry::Wait } else { Entry::Store }
    }

    /// Says that the caller has written what it wanted to.
    pub(crate) fn leave(&self, region: usize) {
        let left = |state: u32| Some((state | TOUCHED) - 1);
        let state = &self.states[region];
        let _always = state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, left);
    }

    /// Fills the beginning of `target` with what is to be stored next. Returns where, in bytes of
    /// the device, and how long it is.
    pub(crate) fn encode(&self, target: &mut [u8]) -> (u64, usize) {
        let mut inner = lock(&self.inner);
        let of_unit = self.regions.unit / BLOCK * REGIONS_OF_BLOCK;
        let unit = inner.wanted.first().expect("somebody wants a region") / of_unit;
        let regions = unit * of_unit..(unit + 1) * of_unit;
        let coming: Vec<usize> = inner.wanted.range(regions).copied().collect();
        for region in &coming {
            inner.wanted.remove(region);
        }
        let target = &mut target[..self.regions.unit];
        self.regions.encode(target, unit, |region| {
            let state = self.states[region].load(Ordering::Relaxed);
            state & DIRTY != 0 || coming.binary_search(&region).is_ok()
        });
        inner.coming = coming;
        (self.regions.offset + to_u64(unit * self.regions.unit), self.regions.unit)
    }

    /// Says what became of it. Returns whether the caller has to store more.
    pub(crate) fn stored(&self, result: Result<(), Error>) -> bool {
        let (waiters, again) = {
            let mut inner = lock(&self.inner);
            let coming = std::mem::take(&mut inner.coming);
            if result.is_ok() {
                for region in coming {
                    // Release pairs with the acquire in `ask`.
                    self.states[region].fetch_or(DIRTY, Ordering::Release);
                }
            }
            inner.storing = !inner.wanted.is_empty();
            (std::mem::take(&mut inner.waiters), inner.storing)
        };
        for waiter in waiters {
            match result {
                Ok(()) => waiter.retry(),
                Err(error) => waiter.no_room(error),
            }
        }
        again
    }

    /// Says that all tuples were stored and the device was flushed. To be called before another
    /// flush may begin.
    pub(crate) fn flushed(&self) {
        let mut inner = lock(&self.inner);
        inner.flushes += 1;
        if inner.flushes < Self::FLUSHES {
            return;
        }
        inner.flushes = 0;
        for state in &self.states {
            let _busy = state.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |state| {
                // What was written before the last look was durable with the flushes since.
                let quiet = if state == DIRTY { 0 } else { state & !TOUCHED };
                (quiet != state).then_some(quiet)
            });
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::inbox::{Inbox, Note};
    use holdfast_checksum::GuardKind;
    use std::sync::Arc;

    fn regions(capacity: u64) -> Regions {
        let geometry = Geometry::new(capacity, BlockSize::PAGE, GuardKind::Crc64).unwrap();
        Regions::new(&geometry, BlockSize::SECTOR)
    }

    /// Stores what is wanted, and returns what is dirty then.
    fn store(intents: &Intents, stored: &mut [u8]) -> Vec<Range<u64>> {
        let mut target = [0; 4096];
        loop {
            let (at, len) = intents.encode(&mut target);
            let at = to_usize(at - intents.regions.offset);
            stored[at..at + len].copy_from_slice(&target[..len]);
            if !intents.stored(Ok(())) {
                return intents.regions.dirty(stored);
            }
        }
    }

    fn clean(regions: &Regions) -> Vec<u8> {
        let mut stored = vec![0; regions.stored_len()];
        regions.encode_clean(&mut stored);
        assert_eq!(regions.dirty(&stored), []);
        stored
    }

    #[test]
    fn regions_cover_a_volume_of_any_size() {
        for capacity in [4096, 1 << 20, (3 << 30) + 4096, 64 << 40, 1 << 60] {
            let regions = regions(capacity);
            let size = regions.size.bytes();
            assert!(to_u64(regions.count) * size >= capacity);
            assert!(to_u64(regions.count - 1) * size < capacity);
            // What is no log says that everything may have been written.
            let dirty = regions.dirty(&vec![0; regions.stored_len()]);
            assert_eq!(dirty, std::slice::from_ref(&(0..capacity)));
        }
    }

    #[test]
    fn a_region_is_dirty_before_it_is_written_and_clean_some_flushes_after() {
        let regions = regions(40 << 30);
        let (mut stored, intents) = (clean(&regions), Intents::new(regions));
        let size = regions.size.bytes();
        let inbox = Inbox::new(Box::new(|| {}));
        let waiter = |job| Waiter { inbox: Arc::clone(&inbox), job };
        // The last region is in another block.
        let last = regions.count - 1;
        for region in [3, 4, last] {
            intents.enter(region);
        }
        assert_eq!(intents.ask(3, &waiter(1)), Entry::Store);
        assert_eq!(intents.ask(4, &waiter(2)), Entry::Wait);
        assert_eq!(intents.ask(last, &waiter(3)), Entry::Wait);
        let end = to_u64(last) * size;
        assert_eq!(store(&intents, &mut stored), [3 * size..5 * size, end..regions.capacity]);
        let mut notes = Vec::new();
        inbox.take(&mut notes);
        assert_eq!(notes, [1, 2, 3].map(Note::Retry));
        assert_eq!(intents.ask(4, &waiter(2)), Entry::Ready);
        intents.leave(4);
        let flushes = |count| (0..count).for_each(|_| intents.flushed());
        flushes(Intents::FLUSHES);
        assert_eq!(intents.ask(4, &waiter(2)), Entry::Ready, "it was written before that");
        flushes(Intents::FLUSHES);
        intents.enter(4);
        assert_eq!(intents.ask(4, &waiter(2)), Entry::Store);
        assert_eq!(intents.ask(3, &waiter(1)), Entry::Ready, "it is being written");
        intents.leave(3);
        flushes(2 * Intents::FLUSHES);
        assert_eq!(store(&intents, &mut stored)[0], 4 * size..5 * size);
    }

    #[test]
    fn who_waits_is_told_that_it_cannot_be_stored_and_may_ask_again() {
        let intents = Intents::new(regions(1 << 30));
        let inbox = Inbox::new(Box::new(|| {}));
        let waiter = Waiter { inbox: Arc::clone(&inbox), job: 7 };
        intents.enter(0);
        assert_eq!(intents.ask(0, &waiter), Entry::Store);
        intents.encode(&mut [0; 4096]);
        assert!(!intents.stored(Err(Error::IO)));
        let mut notes = Vec::new();
        inbox.take(&mut notes);
        assert_eq!(notes, [Note::NoRoom(7, Error::IO)]);
        assert_eq!(intents.ask(0, &waiter), Entry::Store);
    }

    #[test]
    fn a_block_that_is_torn_or_another_makes_all_its_regions_dirty() {
        let regions = regions(40 << 30);
        let mut stored = clean(&regions);
        stored[100] ^= 1;
        let of_block = to_u64(REGIONS_OF_BLOCK) * regions.size.bytes();
        assert_eq!(regions.dirty(&stored), std::slice::from_ref(&(0..of_block)));
        let mut stored = clean(&regions);
        stored.copy_within(..BLOCK, BLOCK);
        assert_eq!(regions.dirty(&stored), std::slice::from_ref(&(of_block..2 * of_block)));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use super::*;
    use crate::inbox::Inbox;
    use holdfast_checksum::GuardKind;
    use loom::sync::{Arc, Notify};
    use loom::thread;
    use std::sync::Arc as StdArc;

    /// The regions, and what is stored of them.
    struct Disk {
        intents: Intents,
        stored: Mutex<[u8; BLOCK]>,
    }

    impl Disk {
        fn is_stored(&self, region: usize) -> bool {
            let block = RawBlock::read_from_bytes(&*lock(&self.stored)).unwrap();
            block.is_dirty(0, region)
        }

        fn store(&self) {
            loop {
                let mut target = [0; BLOCK];
                self.intents.encode(&mut target);
                *lock(&self.stored) = target;
                if !self.intents.stored(Ok(())) {
                    break;
                }
            }
        }

        fn write(&self, region: usize) {
            let event = Arc::new(Notify::new());
            let inbox = Inbox::new({
                let event = Arc::clone(&event);
                Box::new(move || event.notify())
            });
            let waiter = Waiter { inbox: StdArc::clone(&inbox), job: region };
            self.intents.enter(region);
            loop {
                match self.intents.ask(region, &waiter) {
                    Entry::Ready => break,
                    Entry::Store => self.store(),
                    Entry::Wait => event.wait(),
                }
                inbox.take(&mut Vec::new());
            }
            assert!(self.is_stored(region), "it is written and not known to be dirty");
            self.intents.leave(region);
        }
    }

    #[test]
    fn loom_a_region_that_is_written_is_stored_as_dirty_whoever_stores_and_flushes() {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(|| {
            let geometry = Geometry::new(4 << 20, BlockSize::PAGE, GuardKind::Crc64).unwrap();
            let regions = Regions::new(&geometry, BlockSize::SECTOR);
            let mut stored = [0; BLOCK];
            regions.encode_clean(&mut stored);
            let intents = Intents::new(regions);
            let disk = Arc::new(Disk { intents, stored: Mutex::new(stored) });
            let other = {
                let disk = Arc::clone(&disk);
                thread::spawn(move || {
                    disk.write(1);
                    disk.write(1);
                })
            };
            disk.write(2);
            disk.intents.flushed();
            disk.intents.flushed();
            disk.write(1);
            other.join().unwrap();
        });
    }
}
