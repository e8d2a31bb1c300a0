//! The dirty log: which pages of a guest the device has written to, for the guest's migration (the
//! vhost-user protocol, "migration").

use holdfast_iov::Place;
use holdfast_units::to_usize;

/// One bit for each page of the guest.
#[derive(Debug)]
pub(crate) struct DirtyLog {
    bits: Place,
}

impl DirtyLog {
    const PAGE_SHIFT: u32 = 12;

    pub(crate) const fn new(bits: Place) -> Self {
        Self { bits }
    }

    /// Says that `len` bytes at a guest address have been written. Pages behind the end of the log
    /// are none that the front end wants to know of.
    pub(crate) fn mark(&self, address: u64, len: u64) {
        let Some(last) = len.checked_sub(1).and_then(|more| address.checked_add(more)) else {
            return;
        };
        for page in address >> Self::PAGE_SHIFT..=last >> Self::PAGE_SHIFT {
            let byte = to_usize(page / 8);
            if byte >= self.bits.len() {
                return;
            }
            self.bits.set_bits(byte, 1 << (page % 8));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_iov::Region;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_range_marks_all_pages_that_it_touches() {
        let region = Arc::new(Region::anonymous(4096).unwrap());
        let bits = Place::new(&region, 0, 2).unwrap();
        let log = DirtyLog::new(bits.clone());
        log.mark(0x1fff, 2);
        log.mark(0x9000, 1);
        log.mark(0xf_ffff, 1 << 20);
        log.mark(u64::MAX, 2);
        log.mark(0x3000, 0);
        let found = [0, 1].map(|at| bits.load_u8(at, Ordering::Relaxed));
        assert_eq!(found, [0b110, 0b10]);
    }
}
