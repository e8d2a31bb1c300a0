//! The descriptors of one request.

use std::sync::atomic::Ordering;

use holdfast_iov::{GuestMemory, Place};
use holdfast_units::to_usize;
use thiserror::Error;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use crate::layout::DESCRIPTOR;

/// What is wrong with the descriptors of a request. Another request of the same queue may be fine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BadChain {
    /// A descriptor names one behind the end of its table.
    #[error("descriptor {index} is none of a table of {table}")]
    Index {
        /// The number of the descriptor.
        index: u32,
        /// How many the table has.
        table: u32,
    },
    /// There are more descriptors than a request may have, or they go round in a loop.
    #[error("more than {} descriptors in a request, or a loop of them", Chain::DESCRIPTORS_MAX)]
    TooLong,
    /// A descriptor with a table of its own is not the last, or is in such a table itself.
    #[error("a descriptor with a table must be the last, and in no such table")]
    Indirect,
    /// The table is no memory of the guest, or its length is no multiple of a descriptor's.
    #[error("a table of {len:#x} bytes at {address:#x} cannot be")]
    Table {
        /// The guest-physical address.
        address: u64,
        /// The length in bytes.
        len: u32,
    },
    /// A descriptor that the device may only read is behind one that it may write.
    #[error("a readable descriptor behind a writable one")]
    Order,
    /// The descriptors have more bytes than 2^32 (virtio 1.3, 2.7.4.2).
    #[error("a request of more than 2^32 bytes")]
    TooLarge,
}

/// One buffer of a request: memory of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The guest-physical address of the first byte. It need not be memory of the guest.
    pub address: u64,
    /// The length in bytes.
    pub len: u32,
}

/// The descriptors of one request: those that the device reads, and behind them those that it
/// writes. Its room is used again for the next request.
#[derive(Debug, Default)]
pub struct Chain {
    descriptors: Vec<Descriptor>,
    readable: usize,
    bytes: u32,
}

/// A descriptor as it is in the table.
#[derive(Clone, Copy, Debug)]
struct Raw {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Raw {
    /// Loads descriptor `index` of a table, each byte once.
    fn load(table: &Place, index: usize) -> Self {
        let at = index * DESCRIPTOR;
        let (address, rest) = if table.is_aligned(size_of::<u64>()) {
            // Relaxed: the index of the available ring was loaded before, with acquire.
            (table.load_u64(at, Ordering::Relaxed), table.load_u64(at + 8, Ordering::Relaxed))
        } else {
            // The table of an indirect descriptor may be anywhere.
            let mut words = [[0; 8]; 2];
            table.read(at, words.as_flattened_mut());
            let [address, rest] = words.map(u64::from_le_bytes);
            (address, rest)
        };
        let [l0, l1, l2, l3, f0, f1, n0, n1] = rest.to_le_bytes();
        Self {
            address,
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            flags: u16::from_le_bytes([f0, f1]),
            next: u16::from_le_bytes([n0, n1]),
        }
    }

    fn has(&self, flag: u32) -> bool {
        u32::from(self.flags) & flag != 0
    }
}

impl Chain {
    /// The most descriptors of a request. A table of its own may have more than the queue.
    pub const DESCRIPTORS_MAX: usize = 1024;

    /// Returns an empty chain with room for any request.
    pub fn new() -> Self {
        Self { descriptors: Vec::with_capacity(Self::DESCRIPTORS_MAX), ..Self::default() }
    }

    /// Returns the buffers that the device reads.
    pub fn readable(&self) -> &[Descriptor] {
        &self.descriptors[..self.readable]
    }

    /// Returns the buffers that the device writes.
    pub fn writable(&self) -> &[Descriptor] {
        &self.descriptors[self.readable..]
    }

    fn clear(&mut self) {
        self.descriptors.clear();
        (self.readable, self.bytes) = (0, 0);
    }

    /// Collects the descriptors of the request that begins with `head`, which the table has. After an
    /// error the chain has those that came before.
    pub(crate) fn collect(
        &mut self,
        table: &Place,
        head: u16,
        memory: &GuestMemory,
    ) -> Result<(), BadChain> {
        self.clear();
        let Some(indirect) = self.follow(table, head)? else { return Ok(()) };
        let Raw { address, len, .. } = indirect;
        let bad = BadChain::Table { address, len };
        let bytes = to_usize(u64::from(len));
        if bytes == 0 || !bytes.is_multiple_of(DESCRIPTOR) {
            return Err(bad);
        }
        let table = memory.place(address, bytes).map_err(|_| bad)?;
        match self.follow(&table, 0)? {
            None => Ok(()),
            Some(_) => Err(BadChain::Indirect),
        }
    }

    /// Follows the descriptors of one table to the last. Returns it if it has a table of its own.
    fn follow(&mut self, table: &Place, head: u16) -> Result<Option<Raw>, BadChain> {
        let in_table = table.len() / DESCRIPTOR;
        let mut index = head;
        loop {
            if usize::from(index) >= in_table {
                let table = u32::try_from(in_table).unwrap_or(u32::MAX);
                return Err(BadChain::Index { index: u32::from(index), table });
            }
            let raw = Raw::load(table, usize::from(index));
            let has_next = raw.has(VRING_DESC_F_NEXT);
            if raw.has(VRING_DESC_F_INDIRECT) {
                return if has_next { Err(BadChain::Indirect) } else { Ok(Some(raw)) };
            }
            self.push(&raw)?;
            if !has_next {
                return Ok(None);
            }
            index = raw.next;
        }
    }

    fn push(&mut self, raw: &Raw) -> Result<(), BadChain> {
        if self.descriptors.len() == Self::DESCRIPTORS_MAX {
            return Err(BadChain::TooLong);
        }
        self.bytes = self.bytes.checked_add(raw.len).ok_or(BadChain::TooLarge)?;
        if !raw.has(VRING_DESC_F_WRITE) {
            if self.readable < self.descriptors.len() {
                return Err(BadChain::Order);
            }
            self.readable += 1;
        }
        self.descriptors.push(Descriptor { address: raw.address, len: raw.len });
        Ok(())
    }
}
