//! The cursor over memory segments, as the source or the destination of an I/O.

use std::ptr::NonNull;
use std::sync::Arc;

use holdfast_checksum::{GuardKind, Kernels, Stores, Stream, copy_volatile, generate_volatile};

use crate::lease::Lease;
use crate::memory::Memory;
use crate::pool::Buffer;
use crate::volatile::{OutOfRange, Region, VolatileMemory};

/// A run of memory inside one region, as [`IovIter`] keeps it.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    start: NonNull<u8>,
    len: usize,
    provider: u32,
}

/// A contiguous run of memory for a device: an address and a length, to be used only while the
/// memory that it was extracted from is owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bvec {
    /// Where it begins.
    pub start: NonNull<u8>,
    /// Its length in bytes, never 0.
    pub len: usize,
}

/// What keeps the segments valid.
#[derive(Clone, Debug)]
enum Backing {
    /// No memory: there are no segments.
    Nothing,
    Volatile(Arc<VolatileMemory>),
    Lent(Arc<Lease>),
    /// A buffer that is reached through the segments only.
    Owned(Arc<Buffer>),
    /// A buffer that others may read at the same time.
    Shared(Arc<Buffer>),
}

/// A list of segments, which any number of [`IovIter`]s share.
///
/// A list can be cleared and filled again, so that a request that comes in the place of one that has
/// ended needs no memory of its own.
#[derive(Clone, Debug)]
pub struct SegmentList {
    backing: Backing,
    segments: Vec<Segment>,
    count: usize,
}

// SAFETY: the addresses in `segments` stay valid on any thread while `backing` is held, and every
// access to what they point to obeys the rules of volatile or of borrowed memory.
unsafe impl Send for SegmentList {}
// SAFETY: as for `Send`; a shared list gives nothing but copies of addresses and lengths.
unsafe impl Sync for SegmentList {}

impl Default for SegmentList {
    fn default() -> Self {
        Self { backing: Backing::Nothing, segments: Vec::new(), count: 0 }
    }
}

impl SegmentList {
    /// Makes the list one of no segments of `memory`. Room for segments is kept.
    pub fn reset(&mut self, memory: &Arc<VolatileMemory>) {
        self.clear();
        self.backing = Backing::Volatile(Arc::clone(memory));
    }

    /// Lets go of the segments and their memory. Room for segments is kept.
    pub fn clear(&mut self) {
        self.segments.clear();
        self.count = 0;
        self.backing = Backing::Nothing;
    }

    /// Returns how many bytes the segments have.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Appends `len` bytes at `offset` of the region with this index. An empty segment is dropped.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when there is no such region or the range leaves it; the list is as it was.
    ///
    /// # Panics
    ///
    /// For a list of lent memory, or of none, which has no regions.
    pub fn push(&mut self, region: usize, offset: usize, len: usize) -> Result<(), OutOfRange> {
        let Backing::Volatile(memory) = &self.backing else {
            panic!("lent memory has no regions");
        };
        let region = memory.region(region).ok_or(OutOfRange { offset, len, region_len: 0 })?;
        let start = region.range(offset, len)?;
        if len > 0 {
            let provider = region.provider();
            self.segments.push(Segment { start, len, provider });
            self.count += len;
        }
        Ok(())
    }
}

/// A position in a list of segments.
///
/// All lengths are in bytes. Copies are short when the segments are; a copy moves the position by
/// what it returns. A clone shares the list.
#[derive(Clone, Debug)]
pub struct IovIter {
    list: Arc<SegmentList>,
    index: usize,
    skip: usize,
    count: usize,
}

impl IovIter {
    /// Returns an iterator over no segments of `memory`, to be filled by [`push`](Self::push).
    pub fn new(memory: Arc<VolatileMemory>) -> Self {
        let backing = Backing::Volatile(memory);
        Self::over(Arc::new(SegmentList { backing, ..SegmentList::default() }))
    }

    /// Returns an iterator over all of a list.
    pub fn over(list: Arc<SegmentList>) -> Self {
        Self { index: 0, skip: 0, count: list.count, list }
    }

    pub(crate) fn lent(lease: Arc<Lease>) -> Self {
        let (start, count) = (lease.start(), lease.len());
        Self::of_one(Backing::Lent(lease), start, count)
    }

    /// Returns an iterator over all of a buffer, so that several operations can move parts of it at
    /// the same time.
    pub fn of_buffer(buffer: Buffer) -> Self {
        let (start, count) = (buffer.start(), buffer.len());
        Self::of_one(Backing::Owned(Arc::new(buffer)), start, count)
    }

    /// Returns an iterator over all of a shared buffer, as a source only.
    pub fn of_shared(buffer: Arc<Buffer>) -> Self {
        let (start, count) = (buffer.start(), buffer.len());
        Self::of_one(Backing::Shared(buffer), start, count)
    }

    fn of_one(backing: Backing, start: NonNull<u8>, count: usize) -> Self {
        let segment = Segment { start, len: count, provider: 0 };
        Self::over(Arc::new(SegmentList { backing, segments: vec![segment], count }))
    }

    /// Returns the buffer that the iterator was made of. Without one, or while another iterator over
    /// the buffer exists, the iterator itself is returned.
    pub fn into_memory(mut self) -> Memory {
        if let Backing::Shared(buffer) = &self.list.backing {
            return Memory::Shared(Arc::clone(buffer));
        }
        if let Some(list) = Arc::get_mut(&mut self.list) {
            match std::mem::replace(&mut list.backing, Backing::Nothing) {
                Backing::Owned(buffer) => match Arc::try_unwrap(buffer) {
                    Ok(buffer) => return Memory::Buffer(buffer),
                    Err(buffer) => list.backing = Backing::Owned(buffer),
                },
                other => list.backing = other,
            }
        }
        Memory::Iov(self)
    }

    /// Appends `len` bytes at `offset` of the region with this index to the iterator, and to none
    /// that it was cloned from. An empty segment is dropped.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when there is no such region or the range leaves it; the iterator is as it
    /// was.
    ///
    /// # Panics
    ///
    /// For an iterator over lent memory, which has no regions.
    pub fn push(&mut self, region: usize, offset: usize, len: usize) -> Result<(), OutOfRange> {
        Arc::make_mut(&mut self.list).push(region, offset, len)?;
        self.count += len;
        Ok(())
    }

    /// Returns the bytes that are left.
    pub const fn count(&self) -> usize {
        self.count
    }

    /// Returns whether somebody else may change the memory at any moment.
    pub fn is_volatile(&self) -> bool {
        matches!(self.list.backing, Backing::Volatile(_))
    }

    /// Moves the position forward.
    ///
    /// # Panics
    ///
    /// Past the end.
    pub fn advance(&mut self, bytes: usize) {
        assert!(bytes <= self.count, "{bytes} bytes forward of {} that are left", self.count);
        self.count -= bytes;
        self.skip += bytes;
        let segments = &self.list.segments;
        while self.index < segments.len() && self.skip >= segments[self.index].len {
            self.skip -= segments[self.index].len;
            self.index += 1;
        }
    }

    /// Moves the position back.
    ///
    /// # Panics
    ///
    /// Past the beginning.
    pub fn revert(&mut self, bytes: usize) {
        let mut left = bytes;
        while left > self.skip {
            left -= self.skip;
            self.index = self.index.checked_sub(1).expect("no further back than was advanced");
            self.skip = self.list.segments[self.index].len;
        }
        self.skip -= left;
        self.count += bytes;
    }

    /// Keeps only the next `bytes` bytes, if there are more.
    pub fn truncate(&mut self, bytes: usize) {
        self.count = self.count.min(bytes);
    }

    /// Takes the next `bytes` bytes off as an iterator of their own.
    ///
    /// # Panics
    ///
    /// When there are fewer.
    #[must_use]
    pub fn split_to(&mut self, bytes: usize) -> Self {
        let mut head = self.clone();
        head.truncate(bytes);
        self.advance(bytes);
        head
    }

    /// Returns what is left as runs, each inside one segment.
    fn runs(&self) -> impl Iterator<Item = Segment> + '_ {
        let mut skip = self.skip;
        let mut left = self.count;
        let segments = &self.list.segments;
        segments[self.index.min(segments.len())..].iter().map_while(move |segment| {
            // SAFETY: `skip` is less than the length of the segment that the position is in, and
            // 0 for those behind it.
            let start = unsafe { segment.start.add(skip) };
            let len = (segment.len - skip).min(left);
            skip = 0;
            left -= len;
            (len > 0).then_some(Segment { start, len, provider: segment.provider })
        })
    }

    /// Returns the bits in which any address or length is not a multiple of a power of two: for
    /// direct I/O that wants blocks of 512 bytes, `alignment() & 511` must be 0.
    pub fn alignment(&self) -> usize {
        self.runs().fold(0, |bits, run| bits | run.start.addr().get() | run.len)
    }

    /// Appends at most `bytes_max` bytes to `bvecs` and returns how many they are. Contiguous
    /// segments of one provider become one bvec; what follows of another provider is left for
    /// another bio.
    pub fn extract(&self, bytes_max: usize, bvecs: &mut Vec<Bvec>) -> usize {
        let first_new = bvecs.len();
        let mut total = 0;
        let mut provider = None;
        for run in self.runs() {
            let len = run.len.min(bytes_max - total);
            if len == 0 || *provider.get_or_insert(run.provider) != run.provider {
                break;
            }
            total += len;
            match bvecs[first_new..].last_mut() {
                Some(last) if last.start.addr().get() + last.len == run.start.addr().get() => {
                    last.len += len;
                }
                _ => bvecs.push(Bvec { start: run.start, len }),
            }
        }
        total
    }

    /// Returns whether a page is listed twice, so that a read would deliver two sectors to one
    /// place and no check of the memory can succeed afterwards. Windows lists one dummy page many
    /// times. Answers yes when there are too many pieces to tell cheaply.
    pub fn has_duplicate_pages(&self) -> bool {
        // One run has each of its pages once.
        self.runs().nth(1).is_some() && self.lists_a_page_twice()
    }

    fn lists_a_page_twice(&self) -> bool {
        const PAGE_SHIFT: u32 = 12;
        const PAGES_MAX: usize = 512;
        let mut pages = [0; PAGES_MAX];
        let mut found = 0;
        for run in self.runs() {
            let first = run.start.addr().get() >> PAGE_SHIFT;
            let last = (run.start.addr().get() + run.len - 1) >> PAGE_SHIFT;
            for page in first..=last {
                if found == PAGES_MAX {
                    return true;
                }
                pages[found] = page;
                found += 1;
            }
        }
        let pages = &mut pages[..found];
        pages.sort_unstable();
        pages.windows(2).any(|pair| pair[0] == pair[1])
    }

    /// Copies out of the segments, loading each byte once, and returns how many bytes were copied.
    pub fn copy_out(&mut self, target: &mut [u8]) -> usize {
        self.copy_out_storing(target, Stores::Temporal)
    }

    /// As [`copy_out`](Self::copy_out), with the stores that suit who uses the target next.
    pub fn copy_out_storing(&mut self, target: &mut [u8], stores: Stores) -> usize {
        // SAFETY: `target` is a reference, so it is writable and overlaps no segment.
        unsafe { self.load_runs(target.as_mut_ptr(), target.len(), stores) }
    }

    /// Copies into the segments, storing each byte once, and returns how many bytes were copied:
    /// none when the memory was lent as a source only.
    pub fn copy_in(&mut self, source: &[u8]) -> usize {
        if !self.is_writable() {
            return 0;
        }
        // SAFETY: `source` is a reference, so it is readable and overlaps no segment.
        unsafe { self.store_runs(source.as_ptr(), source.len()) }
    }

    /// Copies from `region`, from `offset` on, into all segments that are left, and leaves the position at
    /// their end. Each byte is loaded and stored once.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when the region has fewer bytes, and nothing is copied.
    ///
    /// # Panics
    ///
    /// For memory that was lent as a source only.
    pub fn copy_in_from(&mut self, region: &Region, offset: usize) -> Result<(), OutOfRange> {
        assert!(self.is_writable(), "what was lent as a source takes nothing");
        let source = region.range(offset, self.count)?.as_ptr();
        // SAFETY: the source is mapped for `count` bytes, as `range` checked, apart from the segments.
        unsafe { self.store_runs(source, self.count) };
        Ok(())
    }

    /// Copies all segments that are left to `region`, which is storage, from `offset` on, and leaves the position
    /// at their end. Each byte is loaded and stored once.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when the region has fewer bytes, and nothing is copied.
    pub fn copy_out_to(&mut self, region: &Region, offset: usize) -> Result<(), OutOfRange> {
        let target = region.range(offset, self.count)?.as_ptr();
        let stores = Stores::for_storage(self.count);
        // SAFETY: the target is mapped for `count` bytes, as `range` checked, apart from the segments, and
        // is volatile memory, to which no reference exists.
        unsafe { self.load_runs(target, self.count, stores) };
        Ok(())
    }

    /// Copies the next bytes to `target`, at most `bytes`, moves past them, and returns how many they are.
    ///
    /// # Safety
    ///
    /// `target` is writable for `bytes` bytes, nothing else refers to them, and they overlap no segment.
    unsafe fn load_runs(&mut self, target: *mut u8, bytes: usize, stores: Stores) -> usize {
        let kernels = Kernels::best().storing(stores);
        let mut copied = 0;
        for run in self.runs() {
            let len = run.len.min(bytes - copied);
            // SAFETY:
            // - the run is readable, since `backing` keeps it mapped, borrowed or owned.
            // - of the target's bytes, `copied` are done, and `len` are left at least.
            unsafe { kernels.copy(run.start.as_ptr(), target.wrapping_add(copied), len) };
            copied += len;
        }
        self.advance(copied);
        copied
    }

    /// Copies into the next bytes, at most `bytes`, moves past them, and returns how many they are.
    ///
    /// # Safety
    ///
    /// The segments are [writable](Self::is_writable). `source` is readable for `bytes` bytes, and they
    /// overlap no segment.
    unsafe fn store_runs(&mut self, source: *const u8, bytes: usize) -> usize {
        let kernels = Kernels::best().storing(Stores::for_later(bytes));
        let mut copied = 0;
        for run in self.runs() {
            let len = run.len.min(bytes - copied);
            // SAFETY:
            // - of the source's bytes, `copied` are done, and `len` are left at least.
            // - the run is writable: `backing` keeps it mapped, mutably borrowed, or owned.
            unsafe { kernels.copy(source.wrapping_add(copied), run.start.as_ptr(), len) };
            copied += len;
        }
        self.advance(copied);
        copied
    }

    /// Copies from `region`, from `offset` on, into the next segments and computes one guard for each
    /// `interval` bytes, in one pass: the guards are those of the bytes that were stored, whoever changes
    /// them afterwards. Leaves the position where it is.
    ///
    /// # Errors
    ///
    /// [`OutOfRange`] when the region has fewer bytes, and nothing is copied.
    ///
    /// # Panics
    ///
    /// For memory that was lent as a source only, or when the segments have fewer bytes than
    /// the `guards` are of.
    pub fn copy_in_generate_from(
        &self,
        region: &Region,
        offset: usize,
        kind: GuardKind,
        interval: usize,
        guards: &mut [u64],
    ) -> Result<(), OutOfRange> {
        assert!(self.is_writable(), "what was lent as a source takes nothing");
        let bytes = guards.len() * interval;
        assert!(bytes <= self.count, "a guard needs all of its sector");
        let source = region.range(offset, bytes)?.as_ptr();
        let kernels = Kernels::best().storing(Stores::for_later(bytes));
        self.generate_runs(kind, interval, bytes, guards, |run, at| {
            // SAFETY: `at` is less than the `bytes` that the region has there.
            let source = unsafe { source.add(at) };
            match run {
                Piece::Whole(kind, start, len, guards) => {
                    // SAFETY: as for the piece below.
                    unsafe {
                        kernels.copy_generate(
                            kind,
                            interval,
                            source,
                            start.cast_mut(),
                            len,
                            guards,
                        );
                    }
                }
                Piece::Part(stream, start, len) => {
                    // SAFETY:
                    // - the source is mapped for what is left, as `range` checked.
                    // - the run is writable: `backing` keeps it mapped, mutably borrowed, or owned.
                    unsafe { stream.copy(source, start.cast_mut(), len) };
                }
            }
        });
        Ok(())
    }

    /// Copies out of the segments until `target` is full and computes one guard for each
    /// `interval` bytes, in one pass: each byte is loaded once, and that load feeds both. The stores are those
    /// that suit who uses the target next.
    ///
    /// # Panics
    ///
    /// When fewer bytes are left than `target` has, or `guards` does not fit it.
    pub fn copy_out_generate(
        &mut self,
        kind: GuardKind,
        interval: usize,
        target: &mut [u8],
        guards: &mut [u64],
        stores: Stores,
    ) {
        assert!(target.len() <= self.count, "a guard needs all of its sector");
        let bytes = target.len();
        let kernels = Kernels::best().storing(stores);
        self.generate_runs(kind, interval, bytes, guards, |run, at| match run {
            Piece::Whole(kind, start, len, guards) => {
                let target = &mut target[at..][..len];
                // SAFETY: the run is readable, since `backing` keeps it mapped, borrowed or owned.
                unsafe { kernels.copy_out_generate(kind, interval, start, target, guards) };
            }
            Piece::Part(stream, start, len) => {
                let target = target[at..][..len].as_mut_ptr();
                // SAFETY: the run is readable, as above, and `target` is borrowed, so it overlaps no segment.
                unsafe { stream.copy(start, target, len) };
            }
        });
        self.advance(bytes);
    }

    /// Computes one guard for each `interval` of the next `bytes` bytes, loading each once, and
    /// leaves the position where it is.
    ///
    /// # Panics
    ///
    /// When fewer bytes are left, or `guards` does not fit.
    pub fn generate(&self, kind: GuardKind, interval: usize, bytes: usize, guards: &mut [u64]) {
        assert!(bytes <= self.count, "a guard needs all of its sector");
        self.generate_runs(kind, interval, bytes, guards, |run, _| match run {
            Piece::Whole(kind, start, len, guards) => {
                // SAFETY: the run is readable, since `backing` keeps it mapped, borrowed or owned.
                unsafe { generate_volatile(kind, interval, start, len, guards) };
            }
            Piece::Part(stream, start, len) => {
                // SAFETY: the run is readable, since `backing` keeps it mapped, borrowed or owned.
                unsafe { stream.update_volatile(start, len) };
            }
        });
    }

    /// Walks the next `bytes` bytes as whole intervals inside one run, and as parts of an interval
    /// that is cut by the end of a run. `each` is told where in the walk the piece begins.
    fn generate_runs(
        &self,
        kind: GuardKind,
        interval: usize,
        bytes: usize,
        guards: &mut [u64],
        mut each: impl FnMut(Piece<'_>, usize),
    ) {
        assert_eq!(bytes, guards.len() * interval, "one guard for each interval");
        let mut at = 0;
        let mut open: Option<Stream> = None;
        for run in self.runs() {
            let mut start = run.start.as_ptr().cast_const();
            let mut left = run.len.min(bytes - at);
            while left > 0 {
                let in_interval = at % interval;
                let len = if in_interval == 0 && left >= interval {
                    let len = left - left % interval;
                    let guards = &mut guards[at / interval..][..len / interval];
                    each(Piece::Whole(kind, start, len, guards), at);
                    len
                } else {
                    let len = left.min(interval - in_interval);
                    let stream = open.get_or_insert_with(|| Stream::new(kind));
                    each(Piece::Part(stream, start, len), at);
                    if in_interval + len == interval {
                        let stream = open.take().expect("it was opened above or before");
                        guards[at / interval] = stream.finish();
                    }
                    len
                };
                // SAFETY: `len` is at most what is left of the run.
                start = unsafe { start.add(len) };
                left -= len;
                at += len;
            }
        }
    }

    /// Stores zeros in the next `bytes` bytes, or in all that are left, and returns how many they
    /// were: none when the memory was lent as a source only.
    pub fn zero(&mut self, bytes: usize) -> usize {
        static ZEROS: [u8; 4096] = [0; 4096];
        if !self.is_writable() {
            return 0;
        }
        let mut zeroed = 0;
        for run in self.runs() {
            let len = run.len.min(bytes - zeroed);
            for at in (0..len).step_by(ZEROS.len()) {
                // SAFETY: `at` is less than the length of the run.
                let target = unsafe { run.start.add(at) };
                let piece = (len - at).min(ZEROS.len());
                // SAFETY: the run is writable: `backing` keeps it mapped, mutably borrowed, or owned.
                unsafe { copy_volatile(ZEROS.as_ptr(), target.as_ptr(), piece) };
            }
            zeroed += len;
        }
        self.advance(zeroed);
        zeroed
    }

    /// Returns whether the `len` bytes behind the next `skip` are all 0, loading each once.
    pub fn is_zero(&self, skip: usize, len: usize) -> bool {
        const PIECE: usize = 512;
        let mut rest = self.clone();
        rest.advance(skip);
        rest.truncate(len);
        let mut piece = [0; PIECE];
        while rest.count() > 0 {
            let copied = rest.copy_out(&mut piece);
            if piece[..copied].iter().fold(0, |all, byte| all | byte) != 0 {
                return false;
            }
        }
        true
    }

    /// Returns whether the segments may be written to: not when they were lent as a source only.
    pub fn is_writable(&self) -> bool {
        match &self.list.backing {
            Backing::Nothing | Backing::Volatile(_) | Backing::Owned(_) => true,
            Backing::Lent(lease) => lease.is_writable(),
            Backing::Shared(_) => false,
        }
    }
}

/// What [`IovIter::generate_runs`] meets.
enum Piece<'a> {
    Whole(GuardKind, *const u8, usize, &'a mut [u64]),
    Part(&'a mut Stream, *const u8, usize),
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::Region;
    use proptest::prelude::*;

    const REGION: usize = 1 << 16;

    fn memory() -> Arc<VolatileMemory> {
        let regions: Vec<Region> = (0..2)
            .map(|provider| Region::anonymous(REGION).unwrap().with_provider(provider))
            .collect();
        for (index, region) in regions.iter().enumerate() {
            let byte = |at| u8::try_from((at * 7 + at / 251 + index) % 256).unwrap();
            let bytes: Vec<u8> = (0..REGION).map(byte).collect();
            region.write(0, &bytes).unwrap();
        }
        Arc::new(VolatileMemory::new(regions))
    }

    fn iter_over(pieces: &[(usize, usize, usize)]) -> (IovIter, Vec<u8>) {
        let memory = memory();
        let mut iter = IovIter::new(Arc::clone(&memory));
        let mut flat = Vec::new();
        for &(region, offset, len) in pieces {
            iter.push(region, offset, len).unwrap();
            let mut bytes = vec![0; len];
            memory.region(region).unwrap().read(offset, &mut bytes).unwrap();
            flat.extend_from_slice(&bytes);
        }
        (iter, flat)
    }

    fn pieces() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
        prop::collection::vec((0..2_usize, 0..REGION - 5000, 0..5000_usize), 0..8)
    }

    proptest! {
        #[test]
        fn copying_out_in_any_cuts_gives_the_bytes_in_order(
            pieces in pieces(), cuts in prop::collection::vec(0..6000_usize, 0..8),
        ) {
            let (mut iter, flat) = iter_over(&pieces);
            let mut at = 0;
            for cut in cuts {
                let mut target = vec![0; cut];
                let copied = iter.copy_out(&mut target);
                prop_assert_eq!(copied, cut.min(flat.len() - at));
                prop_assert_eq!(&target[..copied], &flat[at..][..copied]);
                at += copied;
                prop_assert_eq!(iter.count(), flat.len() - at);
            }
        }

        #[test]
        fn reverting_an_advance_restores_the_position(pieces in pieces(), part in 0.0..1.0_f64) {
            let (mut iter, flat) = iter_over(&pieces);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            let bytes = (flat.len() as f64 * part) as usize;
            iter.advance(bytes);
            iter.revert(bytes);
            let mut found = vec![0; flat.len()];
            prop_assert_eq!(iter.copy_out(&mut found), flat.len());
            prop_assert_eq!(found, flat);
        }

        #[test]
        fn a_copy_with_guards_equals_a_copy_and_then_guards(
            pieces in pieces(), interval in prop::sample::select(vec![512_usize, 4096]),
            kind in prop::sample::select(GuardKind::ALL.to_vec()),
            stores in prop::sample::select(vec![Stores::Temporal, Stores::NonTemporal]),
        ) {
            let (mut iter, flat) = iter_over(&pieces);
            let sectors = flat.len() / interval;
            let bytes = sectors * interval;
            let mut expected = vec![0; sectors];
            holdfast_checksum::generate(kind, interval, &flat[..bytes], &mut expected);
            let mut seen = vec![0; sectors];
            iter.generate(kind, interval, bytes, &mut seen);
            prop_assert_eq!(&seen, &expected);
            let (mut target, mut guards) = (vec![0; bytes], vec![0; sectors]);
            iter.copy_out_generate(kind, interval, &mut target, &mut guards, stores);
            prop_assert_eq!(&target[..], &flat[..bytes]);
            prop_assert_eq!(guards, expected);
            prop_assert_eq!(iter.count(), flat.len() - bytes);
        }

        #[test]
        fn extracted_bvecs_are_the_same_bytes_and_stay_with_one_provider(
            pieces in pieces(), limit in 1..20_000_usize,
        ) {
            let (iter, flat) = iter_over(&pieces);
            let mut bvecs = Vec::new();
            let total = iter.extract(limit, &mut bvecs);
            prop_assert_eq!(bvecs.iter().map(|bvec| bvec.len).sum::<usize>(), total);
            let one_provider: usize = pieces.iter().filter(|piece| piece.2 > 0)
                .scan(None, |first, piece| {
                    (*first.get_or_insert(piece.0) == piece.0).then_some(piece.2)
                }).sum();
            prop_assert_eq!(total, one_provider.min(limit).min(flat.len()));
            prop_assert!(bvecs.iter().all(|bvec| bvec.len > 0));
        }
    }

    #[test]
    fn contiguous_segments_become_one_bvec() {
        let (iter, _) = iter_over(&[(0, 0, 4096), (0, 4096, 512), (0, 8192, 512)]);
        let mut bvecs = Vec::new();
        iter.extract(usize::MAX, &mut bvecs);
        assert_eq!(bvecs.iter().map(|bvec| bvec.len).collect::<Vec<_>>(), [4608, 512]);
    }

    #[test]
    fn a_buffer_is_moved_in_parts_and_is_a_buffer_again() {
        let pool = crate::Pool::new(1 << 20).unwrap();
        let mut iter = IovIter::of_buffer(pool.take(512).unwrap());
        assert!(iter.is_writable() && !iter.is_volatile());
        let mut head = iter.split_to(3);
        assert_eq!((iter.copy_in(b"def"), head.copy_in(b"abc???")), (3, 3));
        let Memory::Iov(iter) = iter.into_memory() else { panic!("a part is still held") };
        drop(head);
        let Memory::Buffer(buffer) = iter.into_memory() else { panic!("no part is held") };
        assert_eq!(&buffer.as_slice()[..6], b"abcdef");
    }

    #[test]
    fn a_shared_buffer_is_a_source_only() {
        let buffer = Arc::new(crate::Pool::new(1 << 20).unwrap().take(512).unwrap());
        let mut iter = IovIter::of_shared(Arc::clone(&buffer));
        assert_eq!((iter.is_writable(), iter.copy_in(b"abc")), (false, 0));
        let Memory::Shared(found) = iter.into_memory() else { panic!("it was shared") };
        assert!(Arc::ptr_eq(&found, &buffer));
    }

    #[test]
    fn a_split_takes_the_front() {
        let (mut iter, flat) = iter_over(&[(0, 10, 100), (1, 0, 100)]);
        let mut head = iter.split_to(150);
        let mut found = vec![0; 200];
        assert_eq!((head.copy_out(&mut found), iter.copy_out(&mut found[150..])), (150, 50));
        assert_eq!(found, flat);
    }

    #[test]
    fn a_page_listed_twice_is_seen() {
        let (once, _) = iter_over(&[(0, 0, 4096), (0, 8192, 4096)]);
        let (twice, _) = iter_over(&[(0, 0, 4096), (0, 8192, 4096), (0, 100, 8)]);
        assert_eq!((once.has_duplicate_pages(), twice.has_duplicate_pages()), (false, true));
    }

    #[test]
    fn alignment_has_the_bits_of_every_address_and_length() {
        let (iter, _) = iter_over(&[(0, 4096, 4096), (0, 512, 1024)]);
        assert_eq!(iter.alignment() & 1023, 512);
    }

    #[test]
    fn zeroing_is_short_when_the_segments_are() {
        let (mut iter, _) = iter_over(&[(0, 0, 100)]);
        assert_eq!(iter.zero(200), 100);
    }
}
