//! A mapping of memory that is unmapped when it is dropped.

use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};

use rustix::mm::{self, MapFlags, ProtFlags};

/// Mapped, readable and writable memory. It hands out its address and never a reference.
#[derive(Debug)]
pub(crate) struct Map {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a `Map` is an address and a length; every access is made by those who were given them,
// under their own rules.
unsafe impl Send for Map {}
// SAFETY: as for `Send`; a shared `Map` gives nothing but copies of the two numbers.
unsafe impl Sync for Map {}

impl Map {
    /// Maps `len` zeroed bytes that no other process sees. The kernel fills pages in when they are
    /// first touched.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory
        // that exists.
        let start =
            unsafe { mm::mmap_anonymous(ptr::null_mut(), len, protection, MapFlags::PRIVATE) }?;
        Ok(Self::adopt(start, len))
    }

    /// Maps `len` bytes of `file` from `offset` on, shared with all who have it mapped.
    pub(crate) fn shared(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
        let start =
            unsafe { mm::mmap(ptr::null_mut(), len, protection, MapFlags::SHARED, file, offset) }?;
        Ok(Self::adopt(start, len))
    }

    fn adopt(start: *mut c_void, len: usize) -> Self {
        let start = NonNull::new(start.cast()).expect("mmap never maps the page at zero");
        Self { start, len }
    }

    /// Asks for huge pages, which cost fewer misses of the TLB. The kernel may decline.
    pub(crate) fn prefer_huge_pages(&self) {
        // SAFETY: the range is our own mapping, and this advice changes none of its contents.
        // Kernels without transparent huge pages say EINVAL; small pages serve as well.
        let _unadvised =
            unsafe { mm::madvise(self.start.as_ptr().cast(), self.len, mm::Advice::LinuxHugepage) };
    }

    /// Has the kernel give all pages of a range memory that can be stored into. `Err` where that
    /// finds none, instead of SIGBUS at the store.
    pub(crate) fn populate(&self, offset: usize, len: usize) -> io::Result<()> {
        // SAFETY: `offset` is inside our own mapping, as the caller checked.
        let start = unsafe { self.start.as_ptr().add(offset) };
        // SAFETY: the range is our own mapping, and this advice changes none of its contents.
        unsafe { mm::madvise(start.cast(), len, mm::Advice::LinuxPopulateWrite) }?;
        Ok(())
    }

    pub(crate) const fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(crate) const fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by us, and whoever was given its address keeps us alive.
        let unmapped = unsafe { mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert_eq!(unmapped, Ok(()));
    }
}
