//! What a front end shares: memory and eventfds. Nothing of it is used before it was checked here.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;

use holdfast_iov::{GuestRegion, Region};
use rustix::fs::{FileType, OFlags};
use vhost::vhost_user::Result;
use vhost::vhost_user::message::VhostUserMemoryRegion;

use crate::control::{failed, refuse};

/// The most bytes of a guest's memory: 16 TiB. The addresses of this process are those of all front ends.
const MEMORY_MAX: u64 = 1 << 44;

/// Maps the memory that a front end shares.
pub(crate) fn map(file: &File, offset: u64, len: u64) -> Result<Arc<Region>> {
    let found = file.metadata().map_err(failed)?;
    let end = offset.checked_add(len).ok_or_else(|| refuse("a region wraps around"))?;
    // Memory behind the end of a file would be lost at the first touch. A device has no length.
    if found.is_file() && end > found.len() {
        let found = found.len();
        return Err(refuse(format!("a region ends at byte {end} of a file of {found}")));
    }
    let bytes = usize::try_from(len).map_err(|_| refuse("a region larger than memory"))?;
    Region::shared(file.as_fd(), offset, bytes).map(Arc::new).map_err(|error| {
        refuse(format!("{len:#x} bytes at {offset:#x} of shared memory cannot be mapped: {error}"))
    })
}

/// Checks that a front end gave an eventfd. What is read or written of other files may take as long as
/// their owner likes, and a pipe may end the process.
pub(crate) fn check_event(file: Option<&File>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let mode = rustix::fs::fstat(file).map_err(|errno| failed(errno.into()))?.st_mode;
    // The kernel gives eventfds, and few other descriptors that are nobody's file, no type.
    match FileType::from_raw_mode(mode) {
        FileType::Unknown => Ok(()),
        other => Err(refuse(format!("{other:?} is no eventfd"))),
    }
}

/// Makes sure that nobody waits who writes to an eventfd, though its counter may be full.
pub(crate) fn check_call(file: Option<&File>) -> Result<()> {
    check_event(file)?;
    let Some(file) = file else { return Ok(()) };
    let flags = rustix::fs::fcntl_getfl(file).map_err(|errno| failed(errno.into()))?;
    rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK).map_err(|errno| failed(errno.into()))
}

/// Checks how much memory a guest has, before it is mapped.
pub(crate) fn check_size(mut lens: impl Iterator<Item = u64>) -> Result<()> {
    let total = lens.try_fold(0_u64, u64::checked_add);
    match total {
        Some(total) if total <= MEMORY_MAX => Ok(()),
        _ => Err(refuse(format!("more than {MEMORY_MAX:#x} bytes of memory"))),
    }
}

/// Maps a region of a guest's memory.
pub(crate) fn region(region: &VhostUserMemoryRegion, file: &File) -> Result<GuestRegion> {
    Ok(GuestRegion {
        guest_address: region.guest_phys_addr,
        user_address: region.user_addr,
        region: map(file, region.mmap_offset, region.memory_size)?,
    })
}
