//! A queue in memory, with both sides of it.

#![allow(dead_code, reason = "each test uses its part of this")]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_iov::{GuestMemory, GuestRegion, Place, Region};
use holdfast_virtqueue::{Inflight, Piece, Rings};

/// Where the memory begins for the guest.
pub(crate) const BASE: u64 = 0x10_0000;
/// Bytes of the memory.
pub(crate) const LEN: usize = 0x2_0000;

const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
const LOG: usize = 0x4000;
/// Behind this, memory is free for tests.
pub(crate) const FREE: usize = 0x8000;

/// The memory of a guest with one queue of at most 256 descriptors.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) size: u16,
    pub(crate) region: Arc<Region>,
    pub(crate) memory: Arc<GuestMemory>,
}

impl Shared {
    /// Makes memory in which the next request of the queue has the running number `begin`.
    pub(crate) fn new(size: u16, begin: u16) -> Self {
        let shared = Self::of(size, Region::anonymous(LEN).unwrap());
        shared.place(USED, 4).store_u16(2, begin, Ordering::Relaxed);
        shared.place(AVAILABLE, 4).store_u16(2, begin, Ordering::Relaxed);
        shared
    }

    fn of(size: u16, region: Region) -> Self {
        let region = Arc::new(region);
        let guest =
            GuestRegion { guest_address: BASE, user_address: 0, region: Arc::clone(&region) };
        Self { size, region, memory: Arc::new(GuestMemory::new(vec![guest]).unwrap()) }
    }

    /// Returns a copy of the memory: what a device that is killed now leaves behind.
    pub(crate) fn copy(&self) -> Self {
        let mut bytes = vec![0; LEN];
        self.region.read(0, &mut bytes).unwrap();
        let region = Region::anonymous(LEN).unwrap();
        region.write(0, &bytes).unwrap();
        Self::of(self.size, region)
    }

    pub(crate) fn place(&self, at: usize, len: usize) -> Place {
        Place::new(&self.region, at, len).unwrap()
    }

    pub(crate) fn rings(&self) -> Rings {
        let size = self.size;
        Rings::new(
            u32::from(size),
            self.descriptors(),
            self.available(),
            self.place(USED, Rings::used_len(size)),
        )
        .unwrap()
    }

    pub(crate) fn descriptors(&self) -> Place {
        self.place(DESCRIPTORS, Rings::descriptors_len(self.size))
    }

    pub(crate) fn available(&self) -> Place {
        self.place(AVAILABLE, Rings::available_len(self.size))
    }

    pub(crate) fn used(&self) -> Place {
        self.place(USED, Rings::used_len(self.size))
    }

    pub(crate) fn log_place(&self) -> Place {
        self.place(LOG, Inflight::len_for(self.size))
    }

    pub(crate) fn log(&self) -> Inflight {
        Inflight::new(self.log_place(), self.size).unwrap()
    }

    /// Stores a descriptor.
    pub(crate) fn descriptor(
        &self,
        table: usize,
        index: u16,
        address: u64,
        len: u32,
        rest: (u32, u16),
    ) {
        let place = self.place(table + 16 * usize::from(index), 16);
        place.store_u64(0, address, Ordering::Relaxed);
        place.store_u32(8, len, Ordering::Relaxed);
        place.store_u16(12, u16::try_from(rest.0).unwrap(), Ordering::Relaxed);
        place.store_u16(14, rest.1, Ordering::Relaxed);
    }

    /// Stores heads into the available ring, which began at 0, and shows them.
    pub(crate) fn make_available(&self, heads: &[u16]) {
        let ring = self.available();
        for (head, at) in heads.iter().zip(0_usize..) {
            let at = 4 + 2 * (at % usize::from(self.size));
            ring.store_u16(at, *head, Ordering::Relaxed);
        }
        ring.store_u16(2, u16::try_from(heads.len()).unwrap(), Ordering::Release);
    }
}

/// A piece that the device reads.
pub(crate) const fn readable(address: u64, len: u32) -> Piece {
    Piece { address, len, is_writable: false }
}

/// A piece that the device writes.
pub(crate) const fn writable(address: u64, len: u32) -> Piece {
    Piece { address, len, is_writable: true }
}
