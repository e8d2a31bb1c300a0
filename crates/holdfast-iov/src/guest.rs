//! The memory of a guest: volatile regions at guest addresses, and what is shared with it word by
//! word.
//!
//! A guest names its memory in two ways: requests have guest-physical addresses, and its VMM tells
//! where the rings are by its own virtual addresses (the vhost-user protocol, "memory region
//! description"). Both are untrusted numbers: whatever does not lie inside a region is an error.

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, Ordering};

use holdfast_checksum::copy_volatile;
use thiserror::Error;

use crate::iter::SegmentList;
use crate::volatile::{OutOfRange, Region, VolatileMemory};

/// Guest addresses that are no memory of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum AddressError {
    /// The range does not lie inside the guest's regions.
    #[error("{len:#x} bytes at address {address:#x} are no memory of the guest")]
    Outside {
        /// Where the range begins.
        address: u64,
        /// How long it is, in bytes.
        len: u64,
    },
    /// Two regions have addresses in common.
    #[error("the regions at {first:#x} and {second:#x} overlap")]
    Overlap {
        /// Where the lower region begins.
        first: u64,
        /// Where the other begins.
        second: u64,
    },
    /// A region has no bytes, or ends behind the last address.
    #[error("a region at {address:#x} of {len:#x} bytes cannot be")]
    Absurd {
        /// Where the region begins.
        address: u64,
        /// How long it is, in bytes.
        len: u64,
    },
}

/// A region of a guest's memory, and where the guest and its VMM have it.
#[derive(Clone, Debug)]
pub struct GuestRegion {
    /// The guest-physical address of its first byte.
    pub guest_address: u64,
    /// The address of its first byte in the VMM.
    pub user_address: u64,
    /// The memory.
    pub region: Arc<Region>,
}

impl GuestRegion {
    fn len(&self) -> u64 {
        holdfast_units::to_u64(self.region.len())
    }

    /// Returns how many bytes there are from `address` on, counted from where the region is at
    /// `start`; 0 when it is elsewhere.
    fn left_from(&self, start: u64, address: u64) -> u64 {
        address.checked_sub(start).map_or(0, |at| self.len().saturating_sub(at))
    }
}

/// All memory of a guest, at one moment. A change makes another; requests that began before keep
/// what they use.
#[derive(Debug, Default)]
pub struct GuestMemory {
    /// In the order of their guest addresses.
    regions: Vec<GuestRegion>,
    /// The same, for segment lists.
    volatile: Arc<VolatileMemory>,
}

impl GuestMemory {
    /// Joins regions.
    ///
    /// # Errors
    ///
    /// [`AddressError`] when they overlap or end behind the last address.
    pub fn new(mut regions: Vec<GuestRegion>) -> Result<Self, AddressError> {
        regions.sort_unstable_by_key(|region| region.guest_address);
        for region in &regions {
            let (address, len) = (region.guest_address, region.len());
            let wraps = |start: u64| start.checked_add(len).is_none();
            if wraps(address) || wraps(region.user_address) || len == 0 {
                return Err(AddressError::Absurd { address, len });
            }
        }
        for pair in regions.windows(2) {
            let [first, second] = [pair[0].guest_address, pair[1].guest_address];
            if pair[0].left_from(first, second) > 0 {
                return Err(AddressError::Overlap { first, second });
            }
        }
        let volatile = regions.iter().map(|region| Arc::clone(&region.region)).collect();
        Ok(Self { regions, volatile: Arc::new(VolatileMemory::of(volatile)) })
    }

    /// Returns the regions, in the order of their guest addresses.
    pub fn regions(&self) -> &[GuestRegion] {
        &self.regions
    }

    /// Returns the memory as segment lists need it: to be given to [`SegmentList::reset`] before
    /// [`push`](Self::push).
    pub const fn volatile(&self) -> &Arc<VolatileMemory> {
        &self.volatile
    }

    /// Returns whether some of the memory was taken away: see [`Region::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.regions.iter().any(|region| region.region.is_lost())
    }

    /// Returns the index of the region with guest address `address`, and where in it that is.
    fn find(&self, address: u64) -> Option<(usize, u64)> {
        let behind = self.regions.partition_point(|region| region.guest_address <= address);
        let index = behind.checked_sub(1)?;
        let at = address - self.regions[index].guest_address;
        (at < self.regions[index].len()).then_some((index, at))
    }

    /// Appends the `len` bytes at a guest address to a list over [`volatile`](Self::volatile). They
    /// may reach over several regions.
    ///
    /// # Errors
    ///
    /// [`AddressError::Outside`]; the list may then have a part of them.
    pub fn push(&self, list: &mut SegmentList, address: u64, len: u32) -> Result<(), AddressError> {
        let outside = AddressError::Outside { address, len: u64::from(len) };
        let mut left = u64::from(len);
        let mut next = address;
        while left > 0 {
            let (index, at) = self.find(next).ok_or(outside)?;
            let piece = left.min(self.regions[index].len() - at);
            let (offset, bytes) = (holdfast_units::to_usize(at), holdfast_units::to_usize(piece));
            list.push(index, offset, bytes).map_err(|_| outside)?;
            left -= piece;
            // An end behind the last address is met when there is something left there.
            next = next.wrapping_add(piece);
        }
        Ok(())
    }

    /// Returns the `len` bytes at a guest address, inside one region.
    ///
    /// # Errors
    ///
    /// [`AddressError::Outside`].
    pub fn place(&self, address: u64, len: usize) -> Result<Place, AddressError> {
        let outside = AddressError::Outside { address, len: holdfast_units::to_u64(len) };
        let (index, at) = self.find(address).ok_or(outside)?;
        let region = &self.regions[index].region;
        Place::new(region, holdfast_units::to_usize(at), len).map_err(|_| outside)
    }

    /// Returns the `len` bytes that the VMM has at `address`, inside one region.
    ///
    /// # Errors
    ///
    /// [`AddressError::Outside`].
    pub fn user_place(&self, address: u64, len: usize) -> Result<Place, AddressError> {
        let outside = AddressError::Outside { address, len: holdfast_units::to_u64(len) };
        let holds = |region: &&GuestRegion| region.left_from(region.user_address, address) > 0;
        let region = self.regions.iter().find(holds).ok_or(outside)?;
        let offset = holdfast_units::to_usize(address - region.user_address);
        Place::new(&region.region, offset, len).map_err(|_| outside)
    }
}

/// Some bytes of a region, of which words are loaded and stored whole.
///
/// Words are little-endian, as everything of virtio is. An access outside of the bytes, or to a word
/// that is not aligned, is our own mistake.
#[derive(Clone, Debug)]
pub struct Place {
    /// Keeps the memory mapped.
    _region: Arc<Region>,
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: `_region` keeps the memory mapped, and every access is volatile or atomic.
unsafe impl Send for Place {}
// SAFETY: as for `Send`.
unsafe impl Sync for Place {}

macro_rules! words {
    ($($load:ident, $store:ident, $word:ty, $atomic:ty;)*) => {$(
        /// Loads the word at byte `at`.
        ///
        /// # Panics
        ///
        /// When it lies outside, or is not aligned.
        pub fn $load(&self, at: usize, order: Ordering) -> $word {
            let word = self.word(at, size_of::<$word>()).cast();
            // SAFETY:
            // - the word is mapped, readable and aligned, as `word` checked, and `_region` keeps it.
            // - whoever else has it mapped is another process, or this one through a `Place`.
            let word = unsafe { <$atomic>::from_ptr(word.as_ptr()) };
            <$word>::from_le(word.load(order))
        }

        /// Stores the word at byte `at`.
        ///
        /// # Panics
        ///
        /// When it lies outside, or is not aligned.
        pub fn $store(&self, at: usize, value: $word, order: Ordering) {
            let word = self.word(at, size_of::<$word>()).cast();
            // SAFETY: as for the load; the mapping is writable.
            let word = unsafe { <$atomic>::from_ptr(word.as_ptr()) };
            word.store(value.to_le(), order);
        }
    )*};
}

impl Place {
    /// Returns the `len` bytes at `offset` of a region.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`].
    pub fn new(region: &Arc<Region>, offset: usize, len: usize) -> Result<Self, OutOfRange> {
        let start = region.range(offset, len)?;
        Ok(Self { _region: Arc::clone(region), start, len })
    }

    /// Returns the length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the place begins at a multiple of `bytes`, a power of two.
    pub fn is_aligned(&self, bytes: usize) -> bool {
        self.start.addr().get() & (bytes - 1) == 0
    }

    fn word(&self, at: usize, bytes: usize) -> NonNull<u8> {
        assert!(at < self.len && bytes <= self.len - at, "{bytes} bytes at {at} of {}", self.len);
        // SAFETY: `at` is less than the length of the place.
        let word = unsafe { self.start.add(at) };
        assert!(word.addr().get().is_multiple_of(bytes), "a word at {at} is aligned");
        word
    }

    /// Copies the bytes at `at`, loading each once.
    ///
    /// # Panics
    ///
    /// When they lie outside.
    pub fn read(&self, at: usize, target: &mut [u8]) {
        assert!(at <= self.len && target.len() <= self.len - at, "the bytes lie inside");
        // SAFETY: `at` is at most the length of the place.
        let source = unsafe { self.start.add(at) };
        // SAFETY:
        // - `source` is mapped for `target.len()` bytes, as asserted, and `_region` keeps it.
        // - `target` is a reference, so it is writable and overlaps no volatile memory.
        unsafe { copy_volatile(source.as_ptr(), target.as_mut_ptr(), target.len()) };
    }

    words! {
        load_u8, store_u8, u8, AtomicU8;
        load_u16, store_u16, u16, AtomicU16;
        load_u32, store_u32, u32, AtomicU32;
        load_u64, store_u64, u64, AtomicU64;
    }

    /// Sets bits of the byte at `at`.
    ///
    /// # Panics
    ///
    /// When it lies outside.
    pub fn set_bits(&self, at: usize, bits: u8) {
        let byte = self.word(at, 1);
        // SAFETY: as for `store_u8`.
        let byte = unsafe { AtomicU8::from_ptr(byte.as_ptr()) };
        // SeqCst: what was written to the page is there when the bit is.
        byte.fetch_or(bits, Ordering::SeqCst);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::IovIter;

    const LEN: u64 = 0x1_0000;

    /// Two regions side by side for the guest, and one apart.
    fn memory() -> GuestMemory {
        let region = |guest_address, user_address| GuestRegion {
            guest_address,
            user_address,
            region: Arc::new(Region::anonymous(0x1_0000).unwrap()),
        };
        let regions =
            vec![region(0x9_0000, 0), region(0x1_0000, 0x7000_0000), region(0, 0x8000_0000)];
        GuestMemory::new(regions).unwrap()
    }

    fn count(address: u64, len: u32) -> Result<usize, AddressError> {
        let memory = memory();
        let mut list = SegmentList::default();
        list.reset(memory.volatile());
        memory.push(&mut list, address, len)?;
        Ok(IovIter::over(Arc::new(list)).count())
    }

    #[test]
    fn a_range_may_reach_over_neighbours() {
        assert_eq!(count(0xff00, 0x200), Ok(0x200));
        assert_eq!(memory().place(0xff00, 0x200).map(|_| ()), Err(outside(0xff00, 0x200)));
    }

    const fn outside(address: u64, len: u64) -> AddressError {
        AddressError::Outside { address, len }
    }

    #[test]
    fn a_range_into_a_hole_is_refused() {
        assert_eq!(count(0x1_ff00, 0x200), Err(outside(0x1_ff00, 0x200)));
        assert_eq!(count(0x8_ffff, 2), Err(outside(0x8_ffff, 2)));
    }

    #[test]
    fn a_range_that_wraps_around_is_refused() {
        assert_eq!(count(u64::MAX, 2), Err(outside(u64::MAX, 2)));
        let last = GuestRegion {
            guest_address: u64::MAX - LEN,
            user_address: 0,
            region: Arc::new(Region::anonymous(0x1_0000).unwrap()),
        };
        let memory = GuestMemory::new(vec![last]).unwrap();
        let mut list = SegmentList::default();
        list.reset(memory.volatile());
        memory.push(&mut list, u64::MAX - 1, 4).unwrap_err();
        memory.push(&mut list, u64::MAX - 1, 1).unwrap();
    }

    #[test]
    fn rings_are_found_by_the_addresses_of_the_vmm() {
        let memory = memory();
        memory.place(0x1_0010, 8).unwrap().store_u64(0, 7, Ordering::Relaxed);
        let place = memory.user_place(0x7000_0010, 8).unwrap();
        assert_eq!(place.load_u64(0, Ordering::Relaxed), 7);
        memory.user_place(0x7001_0000, 1).unwrap_err();
        memory.user_place(0x7000_ffff, 2).unwrap_err();
    }

    #[test]
    fn regions_that_overlap_are_refused() {
        let region = |guest_address| GuestRegion {
            guest_address,
            user_address: 0,
            region: Arc::new(Region::anonymous(0x2000).unwrap()),
        };
        let found = GuestMemory::new(vec![region(0x1000), region(0)]).map(|_| ());
        assert_eq!(found, Err(AddressError::Overlap { first: 0, second: 0x1000 }));
        let found = GuestMemory::new(vec![region(u64::MAX - 1)]).map(|_| ());
        assert!(matches!(found, Err(AddressError::Absurd { .. })));
    }

    #[test]
    fn words_are_little_endian() {
        let region = Arc::new(Region::anonymous(4096).unwrap());
        let place = Place::new(&region, 8, 8).unwrap();
        place.store_u32(4, 0x0102_0304, Ordering::Relaxed);
        place.set_bits(0, 0x80);
        let mut bytes = [0; 8];
        region.read(8, &mut bytes).unwrap();
        assert_eq!(bytes, [0x80, 0, 0, 0, 4, 3, 2, 1]);
    }
}
