//! What a device asks of those who submit to it.

use holdfast_checksum::GuardKind;
use holdfast_iov::BUFFER_MAX;
use holdfast_units::{BlockSize, to_u64, to_usize};

use crate::Error;

/// The guards that a device computes over what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuardLimits {
    /// The kind of checksum.
    pub kind: GuardKind,
    /// How many bytes each covers.
    pub interval: usize,
}

/// The limits of a device, as the queue limits of the Linux block layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The size of the device, in bytes.
    pub capacity: u64,
    /// What the device reads and writes whole. Other ranges cost it a read before the write, if it
    /// takes them at all.
    pub sector: BlockSize,
    /// What offsets and lengths must be multiples of.
    pub granularity: BlockSize,
    /// What the addresses of memory must be multiples of.
    pub memory_alignment: BlockSize,
    /// The most bytes that one bio may move.
    pub bytes_max: usize,
    /// No bio may cross a multiple of this, in bytes.
    pub boundary: Option<BlockSize>,
    /// The memory of a write must not change while the bio is in flight.
    pub stable_pages: bool,
    /// The guards that a submitter may compute while it copies.
    pub guards: Option<GuardLimits>,
    /// No writes are taken.
    pub read_only: bool,
    /// What is stored is in memory, and gone with the machine: nothing makes it more durable.
    pub in_memory: bool,
}

impl Limits {
    /// Returns the limits of a device of `capacity` bytes that takes any sectors of 512 bytes, and as many at
    /// a time as fit into the largest buffer.
    pub const fn of_sectors(capacity: u64) -> Self {
        Self {
            capacity,
            sector: BlockSize::SECTOR,
            granularity: BlockSize::SECTOR,
            memory_alignment: BlockSize::SECTOR,
            bytes_max: BUFFER_MAX,
            boundary: None,
            stable_pages: false,
            guards: None,
            read_only: false,
            in_memory: false,
        }
    }

    /// Returns how many of the `len` bytes at `offset` may go into one bio of at most `bytes_max`:
    /// all, or as many as end at a sector.
    pub fn first_chunk(&self, offset: u64, len: u64, bytes_max: usize) -> u64 {
        let most = to_u64(bytes_max.min(self.bytes_max)) - self.sector.offset_in(offset);
        self.to_boundary(offset, len).min(most)
    }

    /// Returns how many of the `len` bytes at `offset` lie before the next boundary.
    pub fn to_boundary(&self, offset: u64, len: u64) -> u64 {
        self.boundary.map_or(len, |boundary| len.min(boundary.bytes() - boundary.offset_in(offset)))
    }

    /// Returns how large a buffer the first chunk of a range needs.
    pub fn buffer_len(&self, offset: u64, len: u64) -> usize {
        self.whole_sectors(offset, self.first_chunk(offset, len, self.bytes_max))
    }

    /// Cuts a range into ranges of one bio each.
    pub fn chunks(&self, offset: u64, len: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let mut offset = offset;
        let mut left = len;
        std::iter::from_fn(move || {
            let chunk = self.first_chunk(offset, left, self.bytes_max);
            let item = (left > 0).then_some((offset, chunk));
            offset += chunk;
            left -= chunk;
            item
        })
    }

    /// Checks that a range may be one bio of this device.
    ///
    /// # Errors
    ///
    /// [`Error::Range`] when it leaves the device, crosses a boundary, or is misaligned.
    pub fn check(&self, offset: u64, len: u64) -> Result<(), Error> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.capacity);
        let aligned = self.granularity.is_aligned(offset) && self.granularity.is_aligned(len);
        let crosses = self
            .boundary
            .is_some_and(|boundary| len > boundary.bytes() - boundary.offset_in(offset));
        if inside && aligned && !crosses { Ok(()) } else { Err(Error::Range { offset, len }) }
    }

    /// Returns how many bytes the whole sectors have that the range touches.
    pub fn whole_sectors(&self, offset: u64, len: u64) -> usize {
        let head = self.sector.offset_in(offset);
        let bytes = self.sector.align_up(head + len).expect("a bio is shorter than 2^63 bytes");
        to_usize(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits() -> Limits {
        Limits {
            capacity: 1 << 30,
            sector: BlockSize::PAGE,
            granularity: BlockSize::SECTOR,
            memory_alignment: BlockSize::SECTOR,
            bytes_max: 1 << 16,
            boundary: BlockSize::new(1 << 17),
            stable_pages: true,
            guards: None,
            read_only: false,
            in_memory: false,
        }
    }

    proptest! {
        #[test]
        fn chunks_cover_the_range_and_each_is_one_bio(offset in 0..1_u64 << 20, len in 0..1_u64 << 20) {
            let limits = limits();
            let (offset, len) = (offset & !511, len & !511);
            let mut at = offset;
            for (start, chunk) in limits.chunks(offset, len) {
                prop_assert_eq!(start, at);
                prop_assert!(chunk > 0);
                prop_assert_eq!(limits.check(start, chunk), Ok(()));
                prop_assert!(limits.whole_sectors(start, chunk) <= limits.bytes_max);
                at += chunk;
            }
            prop_assert_eq!(at, offset + len);
        }
    }

    #[test]
    fn a_range_that_wraps_around_is_refused() {
        assert!(limits().check(u64::MAX - 511, 1024).is_err());
    }

    #[test]
    fn a_length_that_wraps_around_is_refused() {
        assert!(limits().check(512, u64::MAX - 511).is_err());
    }

    #[test]
    fn a_range_across_the_boundary_is_refused() {
        let found = limits().check((1 << 17) - 512, 1024);
        assert_eq!(found, Err(Error::Range { offset: (1 << 17) - 512, len: 1024 }));
    }
}
