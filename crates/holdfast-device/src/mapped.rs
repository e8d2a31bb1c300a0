//! A file that is memory: what tmpfs has of it is moved by copying, without the kernel.
//!
//! A load from a hole would give the file memory, and a store where there is no more of it raises
//! SIGBUS. So only pages that the file is known to have are touched; the rest is the kernel's.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_bio::{Bio, Error, GuardLimits, Op};
use holdfast_checksum::Stores;
use holdfast_iov::{IovIter, Memory, OutOfRange, Region};
use holdfast_units::{BlockSize, to_u64, to_usize};
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use zerocopy::FromZeros;

/// What fstatfs(2) calls tmpfs, which files without a name (memfd) lie in as well.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The bytes of a file in tmpfs, which all its queues share.
#[derive(Debug)]
pub(crate) struct Mapped {
    region: Region,
    /// A bit for each page that the file has. A page is taken from the file only by those who may
    /// discard it, with whom nobody else uses it.
    pages: Box<[AtomicU64]>,
}

impl Mapped {
    /// So many bytes come near in the time that it takes to find out whether they may be read.
    const EXPECTED: usize = 256;

    /// Maps all of a file, if it lies in memory and can be mapped for writing.
    pub(crate) fn new(file: impl AsFd, bytes: u64) -> Option<Self> {
        let magic = rustix::fs::fstatfs(&file).ok()?.f_type;
        if u64::try_from(magic) != Ok(TMPFS_MAGIC) || bytes == 0 {
            return None;
        }
        let region = Region::shared(file.as_fd(), 0, to_usize(bytes)).ok()?;
        let words = to_usize(BlockSize::PAGE.count(bytes)) / 64 + 1;
        let pages = <[AtomicU64]>::new_box_zeroed_with_elems(words).ok()?;
        let mapped = Self { region, pages };
        mapped.find_pages(file, bytes).ok()?;
        Some(mapped)
    }

    /// Finds out which pages the file has.
    fn find_pages(&self, file: impl AsFd, bytes: u64) -> Result<(), Errno> {
        let mut position = 0;
        while position < bytes {
            let data = match rustix::fs::seek(&file, SeekFrom::Data(position)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(other) => return Err(other),
            };
            position = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
            self.mark(data, position - data, true);
        }
        Ok(())
    }

    /// Carries out what can be done at once. `None` for what the kernel has to do.
    pub(crate) fn carry_out(&self, bio: &mut Bio) -> Option<Result<u64, Error>> {
        let (offset, len) = (bio.offset, bio.len);
        match bio.op {
            // Nothing is stored anywhere else, and nothing of it survives the machine.
            Op::Flush => return Some(Ok(len)),
            Op::Read if self.is_here(bio) => {}
            Op::Write if self.fits(bio) && (self.has(offset, len) || self.take(offset, len)) => {}
            _ => {
                self.forget_discarded(bio);
                return None;
            }
        }
        let copied = self.copy(bio);
        Some(self.checked(offset, len, copied).map(|()| len))
    }

    /// Forgets the pages that a discard takes: before the kernel has it and, for those who did not keep away from
    /// them meanwhile, when it has ended.
    pub(crate) fn forget_discarded(&self, bio: &Bio) {
        if matches!(bio.op, Op::Discard | Op::Zero { .. }) {
            let end = bio.offset.saturating_add(bio.len).min(to_u64(self.region.len()));
            self.mark(bio.offset, end.saturating_sub(bio.offset), false);
        }
    }

    /// Reads what can be read at once, and computes guards by the same loads. `None` when it cannot.
    pub(crate) fn read_guarded(
        &self,
        offset: u64,
        memory: &mut Memory,
        format: GuardLimits,
        guards: &mut [u64],
    ) -> Option<Result<(), Error>> {
        let GuardLimits { kind, interval } = format;
        let bytes = guards.len() * interval;
        let (at, len) = (to_usize(offset), to_u64(bytes));
        let is_inside = self.is_inside(offset, len) && bytes <= memory.len();
        if !(is_inside && memory.is_writable() && self.has(offset, len)) {
            return None;
        }
        let copied = match memory {
            Memory::Buffer(buffer) => {
                let target = &mut buffer.as_mut_slice()[..bytes];
                self.region.read_generate(at, target, kind, interval, guards)
            }
            Memory::Iov(iter) => {
                iter.copy_in_generate_from(&self.region, at, kind, interval, guards)
            }
            Memory::Shared(_) | Memory::None => return None,
        };
        Some(self.checked(offset, len, copied))
    }

    /// Has the processor fetch the first bytes of what will be read.
    pub(crate) fn expect_read(&self, offset: u64) {
        self.region.prefetch(to_usize(offset), Self::EXPECTED);
    }

    fn copy(&self, bio: &mut Bio) -> Result<(), OutOfRange> {
        let (at, start, len) = (to_usize(bio.offset), bio.start, to_usize(bio.len));
        match (bio.op, &mut bio.memory) {
            (Op::Read, Memory::Buffer(buffer)) => {
                self.region.read(at, &mut buffer.as_mut_slice()[start..][..len])
            }
            (_, Memory::Buffer(buffer)) => self.store(at, &buffer.as_slice()[start..][..len]),
            (_, Memory::Shared(buffer)) => self.store(at, &buffer.as_slice()[start..][..len]),
            (Op::Read, Memory::Iov(iter)) => {
                part_of(iter, start, len).copy_in_from(&self.region, at)
            }
            (_, Memory::Iov(iter)) => part_of(iter, start, len).copy_out_to(&self.region, at),
            (_, Memory::None) => Ok(()),
        }
    }

    fn store(&self, at: usize, bytes: &[u8]) -> Result<(), OutOfRange> {
        self.region.write_storing(at, bytes, Stores::for_storage(bytes.len()))
    }

    /// What was copied while somebody took the file's memory away means nothing.
    fn checked(&self, offset: u64, len: u64, copied: Result<(), OutOfRange>) -> Result<(), Error> {
        if self.region.is_lost() {
            return Err(Error::IO);
        }
        copied.map_err(|_| Error::Range { offset, len })
    }

    fn is_inside(&self, offset: u64, len: u64) -> bool {
        offset.checked_add(len).is_some_and(|end| end <= to_u64(self.region.len()))
    }

    /// Returns whether the file and the memory have all bytes of a transfer.
    fn fits(&self, bio: &Bio) -> bool {
        let end = bio.start.checked_add(to_usize(bio.len));
        self.is_inside(bio.offset, bio.len) && end.is_some_and(|end| end <= bio.memory.len())
    }

    /// Returns whether a read can be carried out at once.
    fn is_here(&self, bio: &Bio) -> bool {
        self.fits(bio) && bio.memory.is_writable() && self.has(bio.offset, bio.len)
    }

    /// Returns whether the file has all pages of a range.
    fn has(&self, offset: u64, len: u64) -> bool {
        // Relaxed: who stored into a page told its next user.
        words_of(offset, len)
            .all(|(word, mask)| self.pages[word].load(Ordering::Relaxed) & mask == mask)
    }

    /// Gives the file all pages of a range. Returns whether it has them.
    fn take(&self, offset: u64, len: u64) -> bool {
        let first = BlockSize::PAGE.align_down(offset);
        let whole = offset + len - first;
        let is_there = self.region.populate(to_usize(first), to_usize(whole)).is_ok();
        if is_there {
            self.mark(first, whole, true);
        }
        is_there
    }

    /// Remembers which pages the file has: those that the range touches.
    fn mark(&self, offset: u64, len: u64, is_there: bool) {
        for (word, mask) in words_of(offset, len) {
            if is_there {
                self.pages[word].fetch_or(mask, Ordering::Relaxed);
            } else {
                self.pages[word].fetch_and(!mask, Ordering::Relaxed);
            }
        }
    }
}

/// Returns the `len` bytes behind the next `start`.
fn part_of(iter: &IovIter, start: usize, len: usize) -> IovIter {
    let mut part = iter.clone();
    part.advance(start);
    part.truncate(len);
    part
}

/// Returns the words that have the bits of the pages of a range, with those bits.
fn words_of(offset: u64, len: u64) -> impl Iterator<Item = (usize, u64)> {
    const BITS: u64 = u64::BITS as u64;
    let first = BlockSize::PAGE.count(offset);
    let end = if len == 0 { first } else { BlockSize::PAGE.count(offset + len - 1) + 1 };
    let mut page = first;
    std::iter::from_fn(move || {
        let bit = page % BITS;
        let count = (end - page).min(BITS - bit);
        let mask = (u64::MAX >> (BITS - count.max(1))) << bit;
        let item = (count > 0).then_some((to_usize(page / BITS), mask));
        page += count;
        item
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Backing, FileDevice};
    use holdfast_bio::{BlockDevice, Ended};
    use holdfast_checksum::{GuardKind, checksum};
    use holdfast_iov::{Pool, VolatileMemory};
    use holdfast_ring::Ring;
    use proptest::prelude::*;
    use rustix::fs::MemfdFlags;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::path::PathBuf;
    use std::sync::Arc;

    const FILE: u64 = 1 << 20;

    /// A file in memory, and a queue of it.
    fn device() -> (OwnedFd, FileDevice) {
        let file = rustix::fs::memfd_create("disk", MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&file, FILE).unwrap();
        let device = open(&file);
        (file, device)
    }

    fn open(file: &OwnedFd) -> FileDevice {
        let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let backing = Backing::open(&path, Access::ReadWrite).unwrap();
        assert!(backing.mapped().is_some(), "a file in memory is mapped");
        FileDevice::new(&backing, &Ring::new(8).unwrap().shared()).unwrap()
    }

    fn filled(byte: u8, len: usize) -> Memory {
        let mut buffer = Pool::new(1 << 20).unwrap().take_whole(len).unwrap();
        buffer.as_mut_slice().fill(byte);
        Memory::Buffer(buffer)
    }

    fn bytes_of(ended: &Ended) -> &[u8] {
        ended.bio.memory.buffer().unwrap().as_slice()
    }

    fn pages_of(file: &OwnedFd) -> i64 {
        rustix::fs::fstat(file).unwrap().st_blocks / 8
    }

    #[test]
    fn what_is_written_has_ended_at_once_and_is_in_the_file() {
        let (file, mut device) = device();
        device.submit(Bio::new(Op::Write, 8192, 4096, filled(7, 8192)).with_start(512)).unwrap();
        assert!(device.has_notes());
        let mut ended = Vec::new();
        device.reap(&mut ended);
        let mut found = [0; 4096];
        rustix::io::pread(&file, &mut found, 8192).unwrap();
        assert_eq!((ended[0].result, found), (Ok(4096), [7; 4096]));
        assert_eq!(device.run(Bio::flush()).result, Ok(0));
    }

    #[test]
    fn a_hole_is_read_and_stays_one() {
        let (file, mut device) = device();
        device.run(Bio::new(Op::Write, 4096, 512, filled(7, 512)));
        let ended = device.run(Bio::new(Op::Read, 0, 16384, filled(9, 16384)));
        let bytes = bytes_of(&ended);
        assert_eq!((ended.result, &bytes[4096..4608]), (Ok(16384), &[7; 512][..]));
        assert!([&bytes[..4096], &bytes[4608..16384]].concat().iter().all(|&byte| byte == 0));
        assert_eq!(pages_of(&file), 1);
    }

    #[test]
    fn what_is_discarded_is_a_hole_until_it_is_written_again() {
        let (file, mut device) = device();
        for round in 1..3 {
            device.run(Bio::new(Op::Write, 0, 8192, filled(round, 8192)));
            assert_eq!(pages_of(&file), 2);
            device.run(Bio::new(Op::Discard, 0, 8192, Memory::None));
            assert_eq!(pages_of(&file), 0);
            let ended = device.run(Bio::new(Op::Read, 0, 8192, filled(9, 8192)));
            assert_eq!(bytes_of(&ended)[..8192], [0; 8192]);
        }
    }

    #[test]
    fn what_the_file_has_when_it_is_opened_is_read_at_once() {
        let (file, first) = device();
        drop(first);
        rustix::io::pwrite(&file, &[5; 100], FILE - 100).unwrap();
        let mut device = open(&file);
        device.submit(Bio::new(Op::Read, FILE - 4096, 4096, filled(0, 4096))).unwrap();
        assert!(device.has_notes());
    }

    #[test]
    fn guards_are_of_what_was_delivered() {
        let (_file, mut device) = device();
        let format = GuardLimits { kind: GuardKind::Crc64, interval: 512 };
        let mut guards = [0; 8];
        let mut memory = filled(0, 4096);
        let found = device.read_guarded(4096, &mut memory, format, &mut guards);
        assert_eq!(found, None, "it is a hole");
        device.run(Bio::new(Op::Write, 4096, 4096, filled(3, 4096)));
        let guard = checksum(GuardKind::Crc64, &[3; 512]);
        let found = device.read_guarded(4096, &mut memory, format, &mut guards);
        assert_eq!((found, guards), (Some(Ok(())), [guard; 8]));
        let region = Region::anonymous(8192).unwrap();
        let mut iter = IovIter::new(Arc::new(VolatileMemory::new(vec![region])));
        iter.push(0, 100, 3000).unwrap();
        iter.push(0, 5000, 1096).unwrap();
        let mut memory = Memory::Iov(iter);
        guards = [0; 8];
        let found = device.read_guarded(4096, &mut memory, format, &mut guards);
        let Memory::Iov(mut iter) = memory else { panic!("the memory stays what it is") };
        assert_eq!(found, Some(Ok(())));
        let mut found = [0; 4096];
        assert_eq!((iter.copy_out(&mut found), found, guards), (4096, [3; 4096], [guard; 8]));
    }

    #[test]
    fn a_file_that_somebody_made_shorter_is_an_error() {
        let (file, mut device) = device();
        device.run(Bio::new(Op::Write, 0, 8192, filled(7, 8192)));
        rustix::fs::ftruncate(&file, 4096).unwrap();
        let ended = device.run(Bio::new(Op::Read, 4096, 4096, filled(9, 4096)));
        assert_eq!(ended.result, Err(Error::IO));
        let ended = device.run(Bio::new(Op::Write, 0, 512, filled(9, 512)));
        assert_eq!(ended.result, Err(Error::IO));
    }

    #[test]
    fn what_reaches_behind_the_end_is_for_the_kernel() {
        let (_file, mut device) = device();
        let ended = device.run(Bio::new(Op::Read, FILE - 512, 4096, filled(9, 4096)));
        assert_eq!(ended.result, Ok(512));
        let ended = device.run(Bio::new(Op::Read, u64::MAX - 511, 512, filled(9, 512)));
        assert_eq!(ended.result, Err(Error::Device { errno: 22 }));
    }

    proptest! {
        #[test]
        fn the_words_of_a_range_have_the_bits_of_its_pages(
            offset in 0..1_u64 << 21, len in 0..1_u64 << 20,
        ) {
            let bits = words_of(offset, len).flat_map(|(word, mask)| {
                (0..64).filter(move |bit| mask & 1 << bit != 0).map(move |bit| to_u64(word) * 64 + bit)
            });
            let end = if len == 0 { offset / 4096 } else { (offset + len).div_ceil(4096) };
            prop_assert!(bits.eq(offset / 4096..end));
        }
    }
}
