//! The memory of a guest that does not exist.

use std::fs::File;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_iov::{AddressError, GuestMemory, GuestRegion, Region};
use holdfast_units::{to_u64, to_usize};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};

use crate::ClientError;

/// What regions are multiples of, in bytes.
const PAGE: u64 = 4096;
/// Where the first region begins.
const BEGIN: u64 = 0x10_0000;
/// How far apart those regions are that are not neighbours.
const STEP: u64 = 1 << 36;
/// Where the first region is said to be in this process. The server gets it as a number only.
const USER: u64 = 0x5000_0000_0000;

/// The memory that a client shares with its server, by guest-physical address.
///
/// Each region with an odd number begins where the one before it ends, the others are far apart.
/// The first is a file of its own, all others are parts of a second file. What was allocated is
/// never given back.
#[derive(Debug)]
pub struct Memory {
    guest: GuestMemory,
    files: Vec<(Arc<File>, u64)>,
    /// The free guest addresses of each region.
    free: Mutex<Vec<Range<u64>>>,
    border: Option<Range<u64>>,
}

/// A region as the server is told of it.
#[derive(Debug)]
pub(crate) struct Shared<'a> {
    pub(crate) guest_address: u64,
    pub(crate) user_address: u64,
    pub(crate) len: u64,
    pub(crate) file: &'a File,
    pub(crate) offset: u64,
}

impl Memory {
    /// Bytes that are kept on each side of the border between the first two regions.
    const BORDER: u64 = 128 * 1024;

    /// Makes `count` regions with at least `len` bytes each to be allocated.
    pub(crate) fn new(count: u16, len: u64) -> Result<Self, ClientError> {
        let count = u64::from(count.max(1));
        let border = if count > 1 { Self::BORDER } else { 0 };
        let len = (len + border).next_multiple_of(PAGE);
        let first = Arc::new(memory_file("holdfast-guest-0", len)?);
        let others = Arc::new(memory_file("holdfast-guest-1", len * (count - 1).max(1))?);
        let mut regions = Vec::new();
        let mut files = Vec::new();
        for index in 0..count {
            let (file, offset) = match index {
                0 => (Arc::clone(&first), 0),
                _ => (Arc::clone(&others), len * (index - 1)),
            };
            let region = Region::shared(file.as_fd(), offset, to_usize(len));
            regions.push(GuestRegion {
                guest_address: BEGIN + STEP * (index / 2) + len * (index % 2),
                // In another order than for the guest.
                user_address: USER + STEP * (count - index),
                region: Arc::new(region.map_err(ClientError::system("map memory"))?),
            });
            files.push((file, offset));
        }
        let mut free: Vec<_> =
            regions.iter().map(|region| region.guest_address..region.guest_address + len).collect();
        let border = (count > 1).then(|| {
            free[0].end -= border;
            free[1].start += border;
            free[0].end..free[1].start
        });
        let guest = GuestMemory::new(regions)?;
        Ok(Self { guest, files, free: Mutex::new(free), border })
    }

    /// Returns the memory as a device would see it.
    pub const fn guest(&self) -> &GuestMemory {
        &self.guest
    }

    /// Returns the addresses of a buffer that lies in two regions, half in each. There is none where
    /// there is one region only. It belongs to whoever asked first.
    pub fn border(&self) -> Option<Range<u64>> {
        self.border.clone()
    }

    /// Returns the guest address of `len` bytes of one region, at a multiple of `alignment`, a power
    /// of two. They are zeros.
    ///
    /// # Errors
    ///
    /// [`ClientError::Memory`] when no region has so much left.
    pub fn allocate(&self, len: u64, alignment: u64) -> Result<u64, ClientError> {
        let regions = 0..self.files.len();
        regions
            .into_iter()
            .find_map(|region| self.allocate_in(region, len, alignment).ok())
            .ok_or(ClientError::Memory { len, alignment })
    }

    /// Does as [`allocate`](Self::allocate), in the region with a number.
    ///
    /// # Errors
    ///
    /// [`ClientError::Memory`].
    pub fn allocate_in(&self, region: usize, len: u64, alignment: u64) -> Result<u64, ClientError> {
        let none = || ClientError::Memory { len, alignment };
        // A panic elsewhere leaves whole numbers behind.
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let free = free.get_mut(region).ok_or_else(none)?;
        let address = free.start.next_multiple_of(alignment);
        let end = address.checked_add(len).filter(|end| *end <= free.end).ok_or_else(none)?;
        free.start = end;
        Ok(address)
    }

    /// Copies bytes to a guest address. They may reach over regions that are neighbours.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`]; a part may have been copied.
    pub fn write(&self, address: u64, mut source: &[u8]) -> Result<(), ClientError> {
        self.walk(address, source.len(), |region, at, len| {
            let (piece, rest) = source.split_at(len);
            source = rest;
            region.write(at, piece).expect("the piece lies inside");
        })
    }

    /// Copies bytes from a guest address. They may reach over regions that are neighbours.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`]; a part may have been copied.
    pub fn read(&self, address: u64, target: &mut [u8]) -> Result<(), ClientError> {
        let mut done = 0;
        let len = target.len();
        self.walk(address, len, |region, at, len| {
            region.read(at, &mut target[done..done + len]).expect("the piece lies inside");
            done += len;
        })
    }

    /// Calls `each` with the region, the offset in it and the length of each piece of a range.
    fn walk(
        &self,
        address: u64,
        len: usize,
        mut each: impl FnMut(&Region, usize, usize),
    ) -> Result<(), ClientError> {
        let outside = AddressError::Outside { address, len: to_u64(len) };
        let (mut next, mut left) = (address, to_u64(len));
        while left > 0 {
            let regions = self.guest.regions().iter();
            let found = regions.rev().find(|region| region.guest_address <= next);
            let region = found.ok_or(outside)?;
            let at = next - region.guest_address;
            let there = to_u64(region.region.len()).saturating_sub(at);
            if there == 0 {
                return Err(outside.into());
            }
            let piece = left.min(there);
            each(&region.region, to_usize(at), to_usize(piece));
            (next, left) = (next + piece, left - piece);
        }
        Ok(())
    }

    /// Returns the regions as the server is told of them.
    pub(crate) fn shared(&self) -> impl Iterator<Item = Shared<'_>> {
        // The guest's memory is in the order of the addresses, and so are the files.
        self.guest.regions().iter().zip(&self.files).map(|(region, (file, offset))| Shared {
            guest_address: region.guest_address,
            user_address: region.user_address,
            len: to_u64(region.region.len()),
            file,
            offset: *offset,
        })
    }

    /// Returns the address of this process, as the server was told it, of a guest address.
    pub(crate) fn user_address(&self, guest_address: u64) -> Option<u64> {
        let mut regions = self.guest.regions().iter().rev();
        let region = regions.find(|region| region.guest_address <= guest_address)?;
        Some(region.user_address + (guest_address - region.guest_address))
    }
}

/// Makes a file in memory that nobody can shorten, so that no access to it can fail.
fn memory_file(name: &str, len: u64) -> Result<File, ClientError> {
    let doing = "make a file in memory";
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = memfd_create(name, flags).map_err(ClientError::system(doing))?;
    ftruncate(&file, len).map_err(ClientError::system(doing))?;
    let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(ClientError::system(doing))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_border_is_in_two_regions() {
        let memory = Memory::new(3, 0x10_0000).unwrap();
        let border = memory.border().unwrap();
        let bytes: Vec<u8> = (0..=255).cycle().take(to_usize(border.end - border.start)).collect();
        memory.write(border.start, &bytes).unwrap();
        let mut found = vec![0; bytes.len()];
        memory.read(border.start, &mut found).unwrap();
        assert_eq!(found, bytes);
        memory.guest().place(border.start, found.len()).unwrap_err();
    }

    #[test]
    fn what_is_allocated_is_nobody_elses() {
        let memory = Memory::new(2, 0x1_0000).unwrap();
        let first = memory.allocate(100, 1).unwrap();
        let second = memory.allocate(100, 512).unwrap();
        assert!(second >= first + 100 && second.is_multiple_of(512));
        let third = memory.allocate(0xffc0, 1).unwrap();
        assert!(memory.border().unwrap().end <= third);
        memory.allocate(0xffc0, 1).unwrap_err();
    }

    #[test]
    fn a_hole_is_no_memory() {
        let memory = Memory::new(2, 0x1_0000).unwrap();
        memory.write(0, &[0]).unwrap_err();
        let last = memory.guest().regions().last().unwrap();
        let end = last.guest_address + to_u64(last.region.len());
        memory.write(end - 1, &[1, 2]).unwrap_err();
    }
}
