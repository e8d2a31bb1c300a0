//! Where the three parts of a split virtqueue are.

use holdfast_iov::Place;
use thiserror::Error;

/// The most descriptors of a queue. The specification allows 32768; block devices use 1024 at most.
pub const QUEUE_SIZE_MAX: u16 = 1024;

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR: usize = 16;
/// Where the ring of the available ring begins, behind `flags` and `idx`.
pub(crate) const AVAILABLE_RING: usize = 4;
/// Where the ring of the used ring begins, behind `flags` and `idx`.
pub(crate) const USED_RING: usize = 4;
/// Bytes of an element of the used ring.
pub(crate) const USED_ELEMENT: usize = 8;
/// Where both rings have their `flags`.
pub(crate) const FLAGS: usize = 0;
/// Where both rings have their `idx`.
pub(crate) const IDX: usize = 2;

/// Parts that are no virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RingError {
    /// The number of descriptors is none that a queue can have.
    #[error("a queue of {size} descriptors: it must be a power of two, at most {QUEUE_SIZE_MAX}")]
    Size {
        /// The number.
        size: u32,
    },
    /// A part is shorter than the number of descriptors needs, or misaligned.
    #[error("the {part} is misaligned, or has {found} bytes of the {needed} that it needs")]
    Part {
        /// Which part.
        part: &'static str,
        /// Bytes that it needs.
        needed: usize,
        /// Bytes that it has.
        found: usize,
    },
}

/// The three parts of a split virtqueue, which are as long and aligned as they must be.
#[derive(Clone, Debug)]
pub struct Rings {
    pub(crate) size: u16,
    pub(crate) descriptors: Place,
    pub(crate) available: Place,
    pub(crate) used: Place,
}

impl Rings {
    /// Joins the parts of a queue with `size` descriptors.
    ///
    /// # Errors
    ///
    /// [`RingError`].
    pub fn new(
        size: u32,
        descriptors: Place,
        available: Place,
        used: Place,
    ) -> Result<Self, RingError> {
        let size = Self::check_size(size)?;
        check("descriptor table", &descriptors, Self::descriptors_len(size), DESCRIPTOR)?;
        check("available ring", &available, Self::available_len(size), size_of::<u16>())?;
        check("used ring", &used, Self::used_len(size), size_of::<u32>())?;
        Ok(Self { size, descriptors, available, used })
    }

    /// Checks the number of descriptors.
    ///
    /// # Errors
    ///
    /// [`RingError::Size`].
    pub fn check_size(size: u32) -> Result<u16, RingError> {
        u16::try_from(size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= QUEUE_SIZE_MAX)
            .ok_or(RingError::Size { size })
    }

    /// Returns how many bytes the descriptor table has.
    pub fn descriptors_len(size: u16) -> usize {
        DESCRIPTOR * usize::from(size)
    }

    /// Returns how many bytes the available ring has, with `used_event`.
    pub fn available_len(size: u16) -> usize {
        AVAILABLE_RING + size_of::<u16>() * usize::from(size) + size_of::<u16>()
    }

    /// Returns how many bytes the used ring has, with `avail_event`.
    pub fn used_len(size: u16) -> usize {
        USED_RING + USED_ELEMENT * usize::from(size) + size_of::<u16>()
    }

    /// Returns the number of descriptors.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Returns where `used_event` is in the available ring.
    pub(crate) fn used_event(&self) -> usize {
        Self::available_len(self.size) - size_of::<u16>()
    }

    /// Returns where `avail_event` is in the used ring.
    pub(crate) fn available_event(&self) -> usize {
        Self::used_len(self.size) - size_of::<u16>()
    }

    /// Returns where the entry for the running number `index` is in the available ring.
    pub(crate) fn available_entry(&self, index: u16) -> usize {
        AVAILABLE_RING + size_of::<u16>() * usize::from(index % self.size)
    }

    /// Returns where the element for the running number `index` is in the used ring.
    pub(crate) fn used_element(&self, index: u16) -> usize {
        USED_RING + USED_ELEMENT * usize::from(index % self.size)
    }
}

fn check(
    part: &'static str,
    place: &Place,
    needed: usize,
    alignment: usize,
) -> Result<(), RingError> {
    let found = place.len();
    if found < needed || !place.is_aligned(alignment) {
        return Err(RingError::Part { part, needed, found });
    }
    Ok(())
}

/// Returns whether the other side wants to be told: `event` is the running number of which it wants
/// to hear, and lies among those from `old` up to but not including `new` (virtio 1.3, 2.7.7.2).
pub(crate) const fn needs_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_wanted_once_its_number_is_passed() {
        assert!(needs_event(5, 6, 5));
        assert!(!needs_event(6, 6, 5));
        assert!(!needs_event(4, 6, 5));
        assert!(needs_event(u16::MAX, 0, u16::MAX));
        assert!(!needs_event(0, 0, u16::MAX));
    }

    #[test]
    fn absurd_sizes_are_refused() {
        for size in [0, 3, 2048, 0x1_0001, u32::MAX] {
            assert_eq!(Rings::check_size(size), Err(RingError::Size { size }));
        }
    }
}
