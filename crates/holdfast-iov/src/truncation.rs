//! Surviving memory that is taken away: whoever shares a file as memory may make it shorter, and a load
//! behind its new end then raises SIGBUS, which ends a process that does not expect it.
//!
//! The handler puts zeroed memory of our own where the region was, so that the load finds something,
//! and marks the region as lost: what is read from it means nothing any more. Other faults go to
//! whoever handled them before.

use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libc::{c_int, c_void, siginfo_t};

/// The most regions that are watched at a time.
const SLOTS: usize = 4096;

/// One watched region. It is free while `end` is 0.
#[derive(Debug)]
struct Slot {
    start: AtomicUsize,
    end: AtomicUsize,
    taken: AtomicBool,
    lost: AtomicBool,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        lost: AtomicBool::new(false),
    }
}; SLOTS];

/// Who handled SIGBUS before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Catches SIGBUS from now on, for watched regions only. Called again, it does nothing.
///
/// # Errors
///
/// Whatever sigaction(2) says.
fn install() -> io::Result<()> {
    static DONE: OnceLock<Result<(), i32>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        // SAFETY: a sigaction is integers and an optional pointer, for all of which zero is a value.
        let mut before: libc::sigaction = unsafe { std::mem::zeroed() };
        // SAFETY: `before` is writable, and asking changes nothing.
        unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut before) };
        // The handler needs it as soon as it is installed.
        BEFORE.get_or_init(|| before);
        // SAFETY: as for the one above.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = handle;
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY:
        // - the handler has the signature that SA_SIGINFO asks for, and only does what signal-safety(7)
        //   allows: atomic accesses, mmap(2), and what was there before it.
        // - both pointers are valid, or null.
        let result = unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) };
        if result == 0 {
            Ok(())
        } else {
            Err(io::Error::last_os_error().raw_os_error().unwrap_or(0))
        }
    });
    done.map_err(io::Error::from_raw_os_error)
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO a valid siginfo.
    let info_ref = unsafe { &*info };
    // SAFETY: SIGBUS has an address.
    let address = unsafe { info_ref.si_addr() }.addr();
    // Acquire pairs with the release in `watch`.
    let holds = |slot: &&Slot| {
        let end = slot.end.load(Ordering::Acquire);
        address < end && slot.start.load(Ordering::Relaxed) <= address
    };
    if let Some(slot) = TABLE.iter().find(holds)
        && replace(slot)
    {
        return;
    }
    pass_on(signal, info, context);
}

/// Puts zeroed memory where a region was.
fn replace(slot: &Slot) -> bool {
    let (start, end) = (slot.start.load(Ordering::Relaxed), slot.end.load(Ordering::Relaxed));
    // Before the memory is there: who reads zeros sees that they mean nothing.
    slot.lost.store(true, Ordering::SeqCst);
    // SAFETY: the range is a mapping of ours which is watched, so nobody has unmapped it; it is only
    // reached by volatile and atomic accesses, for which other contents are nothing special.
    let mapped = unsafe {
        libc::mmap(
            ptr::with_exposed_provenance_mut(start),
            end - start,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    mapped != libc::MAP_FAILED
}

/// Does what would have been done without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    let Some(before) = BEFORE.get() else { return };
    let handler = before.sa_sigaction;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        // The access is repeated, and ends the process as it would have.
        // SAFETY: `before` is what the kernel gave us.
        unsafe { libc::sigaction(libc::SIGBUS, ptr::from_ref(before), ptr::null_mut()) };
    } else if before.sa_flags & libc::SA_SIGINFO != 0 {
        // SAFETY: a handler that was installed with SA_SIGINFO has this signature.
        let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
            unsafe { std::mem::transmute(handler) };
        handler(signal, info, context);
    } else {
        // SAFETY: a handler that was installed without SA_SIGINFO has this signature.
        let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
        handler(signal);
    }
}

/// A region that is watched for as long as this lives.
#[derive(Debug)]
pub(crate) struct Watch(usize);

/// Watches a mapping. It must not be unmapped before the watch is dropped.
///
/// # Errors
///
/// ENOMEM when too many are watched, and whatever sigaction(2) says.
pub(crate) fn watch(start: *const u8, len: usize) -> io::Result<Watch> {
    install()?;
    let free = |slot: &Slot| !slot.taken.swap(true, Ordering::AcqRel);
    let index =
        TABLE.iter().position(free).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
    let slot = &TABLE[index];
    slot.lost.store(false, Ordering::Relaxed);
    slot.start.store(start.expose_provenance(), Ordering::Relaxed);
    slot.end.store(start.addr() + len, Ordering::Release);
    Ok(Watch(index))
}

impl Watch {
    /// Returns whether the memory was taken away.
    pub(crate) fn is_lost(&self) -> bool {
        TABLE[self.0].lost.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let slot = &TABLE[self.0];
        slot.end.store(0, Ordering::Release);
        // Release: who takes the slot finds it free.
        slot.taken.store(false, Ordering::Release);
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use crate::Region;
    use std::os::fd::AsFd;

    #[test]
    fn memory_that_is_taken_away_reads_as_zeros_and_is_lost() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 16).unwrap();
        let region = Region::shared(file.as_fd(), 0, 1 << 16).unwrap();
        region.write(1 << 15, b"here").unwrap();
        assert!(!region.is_lost());
        file.set_len(4096).unwrap();
        let mut found = [1; 4];
        region.read(1 << 15, &mut found).unwrap();
        // Once more: valgrind does not repeat a string instruction where it was interrupted.
        region.read(1 << 15, &mut found).unwrap();
        assert_eq!((found, region.is_lost()), ([0; 4], true));
        region.write(1 << 15, b"gone").unwrap();
    }

    #[test]
    fn other_regions_are_not_lost_with_one() {
        let files = [(); 2].map(|()| tempfile::tempfile().unwrap());
        let regions = files.each_ref().map(|file| {
            file.set_len(8192).unwrap();
            Region::shared(file.as_fd(), 0, 8192).unwrap()
        });
        regions[1].write(4096, b"kept").unwrap();
        files[0].set_len(0).unwrap();
        let mut found = [1; 4];
        regions[0].read(4096, &mut found).unwrap();
        assert_eq!(regions.each_ref().map(Region::is_lost), [true, false]);
        regions[1].read(4096, &mut found).unwrap();
        assert_eq!(&found, b"kept");
    }
}
