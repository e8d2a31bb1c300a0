//! Memory that somebody else may change at any moment.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;

use holdfast_checksum::{GuardKind, Kernels, Stores, copy_generate, copy_volatile};
use thiserror::Error;

use crate::map::Map;
use crate::truncation::{self, Watch};
use crate::words::prefetch_line;

/// A range that does not lie inside the memory it was meant for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("{len} bytes at {offset} do not lie inside a region of {region_len} bytes")]
pub struct OutOfRange {
    /// Where the range begins, in bytes from the start of the region.
    pub offset: usize,
    /// How long it is, in bytes.
    pub len: usize,
    /// How long the region is, in bytes; 0 for a region that does not exist.
    pub region_len: usize,
}

/// One mapped run of volatile memory.
#[derive(Debug)]
pub struct Region {
    /// Dropped before the mapping.
    watch: Option<Watch>,
    map: Map,
    provider: u32,
}

impl Region {
    /// Maps `len` zeroed bytes of this process's own, which any number of its threads may change.
    ///
    /// # Errors
    ///
    /// Whatever mmap(2) says, ENOMEM in the first place.
    pub fn anonymous(len: usize) -> io::Result<Self> {
        Ok(Self { watch: None, map: Map::anonymous(len)?, provider: 0 })
    }

    /// Maps `len` bytes of `file` from `offset` on: memory shared with another process, which may take
    /// it away by making the file shorter. The region is then [lost](Self::is_lost): from the first
    /// access to what is missing it is memory of this process's own, and reads as zeros.
    ///
    /// # Errors
    ///
    /// Whatever mmap(2) says, EINVAL for an offset that is no multiple of a page. ENOMEM also when
    /// there are thousands of such regions.
    pub fn shared(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let map = Map::shared(file, offset, len)?;
        let watch = Some(truncation::watch(map.start().as_ptr(), len)?);
        Ok(Self { watch, map, provider: 0 })
    }

    /// Gives a range of a shared file memory that can be stored into, for as long as nobody takes it
    /// away.
    ///
    /// # Errors
    ///
    /// EFAULT where there is no more, EINVAL for an offset that is no multiple of a page or from a
    /// kernel before 5.14, and what else madvise(2) says.
    pub fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        self.range(offset, len).map_err(io::Error::other)?;
        self.map.populate(offset, len)
    }

    /// Says whose memory this is. Regions of different providers never share a bio, since a device
    /// may reach them in different ways (peer-to-peer memory beside guest memory).
    #[must_use]
    pub fn with_provider(mut self, provider: u32) -> Self {
        self.provider = provider;
        self
    }

    /// Returns the length in bytes.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Returns whether the region has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns whether the memory was taken away, so that what it holds means nothing.
    pub fn is_lost(&self) -> bool {
        self.watch.as_ref().is_some_and(Watch::is_lost)
    }

    pub(crate) const fn provider(&self) -> u32 {
        self.provider
    }

    /// Returns the address of `len` bytes at `offset`.
    pub(crate) fn range(&self, offset: usize, len: usize) -> Result<NonNull<u8>, OutOfRange> {
        let out_of_range = OutOfRange { offset, len, region_len: self.len() };
        let end = offset.checked_add(len).ok_or(out_of_range)?;
        if end > self.len() {
            return Err(out_of_range);
        }
        // SAFETY: `offset <= end <= len` of the mapping.
        Ok(unsafe { self.map.start().add(offset) })
    }

    /// Has the processor fetch bytes, as far as they lie in the region, without waiting for them.
    pub fn prefetch(&self, offset: usize, len: usize) {
        const LINE: usize = 64;
        if let Ok(start) = self.range(offset, len) {
            let lines = (0..len).step_by(LINE);
            lines.for_each(|line| prefetch_line(start.as_ptr().wrapping_add(line)));
        }
    }

    /// Copies bytes out of the region, loading each once.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and nothing is copied.
    pub fn read(&self, offset: usize, target: &mut [u8]) -> Result<(), OutOfRange> {
        let source = self.range(offset, target.len())?;
        // SAFETY:
        // - `source` is mapped for `target.len()` bytes, as `range` checked.
        // - `target` is a reference, so it is writable and overlaps no volatile memory.
        unsafe { copy_volatile(source.as_ptr(), target.as_mut_ptr(), target.len()) };
        Ok(())
    }

    /// Copies bytes out of the region and computes one guard for each `interval` bytes, in one pass:
    /// each byte is loaded once, and that load feeds both.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and nothing is copied.
    ///
    /// # Panics
    ///
    /// When `guards` does not fit `target`.
    pub fn read_generate(
        &self,
        offset: usize,
        target: &mut [u8],
        kind: GuardKind,
        interval: usize,
        guards: &mut [u64],
    ) -> Result<(), OutOfRange> {
        let source = self.range(offset, target.len())?.as_ptr();
        let (target, len) = (target.as_mut_ptr(), target.len());
        // SAFETY: as in `read`; `guards` is a reference as well.
        unsafe { copy_generate(kind, interval, source, target, len, guards) };
        Ok(())
    }

    /// Copies bytes into the region, storing each once.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and nothing is copied.
    pub fn write(&self, offset: usize, source: &[u8]) -> Result<(), OutOfRange> {
        self.write_storing(offset, source, Stores::Temporal)
    }

    /// As [`write`](Self::write), with the stores that suit who uses the bytes next.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`], and nothing is copied.
    pub fn write_storing(
        &self,
        offset: usize,
        source: &[u8],
        stores: Stores,
    ) -> Result<(), OutOfRange> {
        let target = self.range(offset, source.len())?;
        let kernels = Kernels::best().storing(stores);
        // SAFETY:
        // - `source` is a reference, so it is readable and overlaps no volatile memory.
        // - `target` is mapped for `source.len()` bytes, as `range` checked.
        unsafe { kernels.copy(source.as_ptr(), target.as_ptr(), source.len()) };
        Ok(())
    }
}

/// The regions from which one user's requests may take their segments, such as the memory of a
/// guest.
#[derive(Debug, Default)]
pub struct VolatileMemory {
    regions: Vec<Arc<Region>>,
}

impl VolatileMemory {
    /// Joins regions; a segment names them by their position.
    pub fn new(regions: Vec<Region>) -> Self {
        Self::of(regions.into_iter().map(Arc::new).collect())
    }

    /// Joins regions that others may use as well.
    pub const fn of(regions: Vec<Arc<Region>>) -> Self {
        Self { regions }
    }

    /// Returns the region at `index`, if there is one.
    pub fn region(&self, index: usize) -> Option<&Region> {
        self.regions.get(index).map(|region| &**region)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_range_past_the_end_is_refused() {
        let region = Region::anonymous(4096).unwrap();
        let found = region.write(4090, &[0; 7]);
        assert_eq!(found, Err(OutOfRange { offset: 4090, len: 7, region_len: 4096 }));
    }

    #[test]
    fn a_range_that_wraps_around_is_refused() {
        let region = Region::anonymous(4096).unwrap();
        let found = region.range(usize::MAX, 2).map(drop);
        assert_eq!(found, Err(OutOfRange { offset: usize::MAX, len: 2, region_len: 4096 }));
    }

    #[test]
    fn what_is_written_is_read() {
        let region = Region::anonymous(4096).unwrap();
        region.write(100, b"holdfast").unwrap();
        let mut found = [0; 8];
        region.read(100, &mut found).unwrap();
        assert_eq!(&found, b"holdfast");
    }
}
