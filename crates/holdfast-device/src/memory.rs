//! A sparse device in memory, for tests and for measuring without a medium.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_bio::{Bio, BlockDevice, DiskQueue, Ended, Error, Limits, Op};
use holdfast_iov::Memory;
use holdfast_units::{BlockSize, to_usize};

const PAGE: usize = 4096;
type Page = Box<[u8; PAGE]>;

/// Memory that answers bios. Clones share the bytes, each as a queue of its own.
///
/// Pages that were never written cost nothing, so the device may be of any size.
#[derive(Debug)]
pub struct MemoryDevice {
    pages: Arc<Mutex<HashMap<u64, Page>>>,
    capacity: u64,
    ended: Vec<Ended>,
}

impl MemoryDevice {
    /// Returns a device of `capacity` bytes of zeros.
    pub fn new(capacity: u64) -> Self {
        Self { pages: Arc::default(), capacity, ended: Vec::new() }
    }

    fn pages(&self) -> MutexGuard<'_, HashMap<u64, Page>> {
        // A panic elsewhere left whole pages behind: each is filled in one step.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flips bits of the stored byte at `offset`, as a medium that rots would.
    pub fn corrupt(&self, offset: u64, bits: u8) {
        let mut pages = self.pages();
        let page = pages.entry(BlockSize::PAGE.count(offset)).or_insert_with(new_page);
        page[to_usize(BlockSize::PAGE.offset_in(offset))] ^= bits;
    }

    /// Copies stored bytes, without a bio.
    pub fn load(&self, offset: u64, target: &mut [u8]) {
        self.read(offset, target);
    }

    /// Stores bytes, without a bio.
    pub fn store(&self, offset: u64, source: &[u8]) {
        self.write(offset, source);
    }

    /// Returns how many pages of 4096 bytes hold data.
    pub fn pages_in_use(&self) -> usize {
        self.pages().len()
    }

    fn carry_out(&self, bio: &mut Bio) -> Result<u64, Error> {
        let (offset, len, start) = (bio.offset, to_usize(bio.len), bio.start);
        self.limits().check(bio.offset, bio.len)?;
        match (bio.op, &mut bio.memory) {
            (Op::Read, Memory::Buffer(buffer)) => {
                self.read(offset, &mut buffer.as_mut_slice()[start..][..len]);
            }
            (Op::Write, Memory::Buffer(buffer)) => {
                self.write(offset, &buffer.as_slice()[start..][..len]);
            }
            (Op::Write, Memory::Shared(buffer)) => {
                self.write(offset, &buffer.as_slice()[start..][..len]);
            }
            (Op::Read, Memory::Iov(iter)) if iter.is_writable() => {
                let mut bytes = vec![0; len];
                self.read(offset, &mut bytes);
                iter.copy_in(&bytes);
                iter.revert(len);
            }
            (Op::Write, Memory::Iov(iter)) => {
                let mut bytes = vec![0; len];
                iter.copy_out(&mut bytes);
                iter.revert(len);
                self.write(offset, &bytes);
            }
            (Op::Zero { keep: false, .. } | Op::Discard, _) => self.discard(offset, bio.len),
            (Op::Flush | Op::Allocate, _) => {}
            (Op::Zero { .. } | Op::Map | Op::Repair | Op::Read | Op::Write, _) => {
                return Err(Error::Unsupported);
            }
        }
        Ok(bio.len)
    }

    fn read(&self, offset: u64, target: &mut [u8]) {
        let pages = self.pages();
        for (page, at, piece) in BlockSize::PAGE.pieces(offset, target.len()) {
            let target = &mut target[piece.clone()];
            match pages.get(&page) {
                Some(page) => target.copy_from_slice(&page[at..][..piece.len()]),
                None => target.fill(0),
            }
        }
    }

    fn write(&self, offset: u64, source: &[u8]) {
        let mut pages = self.pages();
        for (page, at, piece) in BlockSize::PAGE.pieces(offset, source.len()) {
            let page = pages.entry(page).or_insert_with(new_page);
            page[at..][..piece.len()].copy_from_slice(&source[piece]);
        }
    }

    fn discard(&self, offset: u64, len: u64) {
        let mut pages = self.pages();
        for (page, at, piece) in BlockSize::PAGE.pieces(offset, to_usize(len)) {
            if piece.len() == PAGE {
                pages.remove(&page);
            } else if let Some(page) = pages.get_mut(&page) {
                page[at..][..piece.len()].fill(0);
            }
        }
    }
}

impl Clone for MemoryDevice {
    fn clone(&self) -> Self {
        Self { pages: Arc::clone(&self.pages), capacity: self.capacity, ended: Vec::new() }
    }
}

fn new_page() -> Page {
    Box::new([0; PAGE])
}

impl BlockDevice for MemoryDevice {
    fn limits(&self) -> Limits {
        Limits::of_sectors(self.capacity)
    }

    fn atomic_bytes_max(&self) -> u64 {
        // Everything is stored under one lock, and gone with the process.
        holdfast_units::to_u64(holdfast_iov::BUFFER_MAX)
    }

    fn submit(&mut self, mut bio: Bio) -> Result<(), Bio> {
        let result = self.carry_out(&mut bio);
        self.ended.push(Ended { bio, result });
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.ended);
    }

    fn wait(&mut self) {}

    fn has_notes(&self) -> bool {
        !self.ended.is_empty()
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        let first = BlockSize::PAGE.count(offset);
        let found = self.pages().keys().copied().filter(|&page| page >= first).min();
        Ok(found.map(|page| offset.max(page * BlockSize::PAGE.bytes())))
    }
}

impl DiskQueue for MemoryDevice {}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_iov::Pool;

    fn run(device: &mut MemoryDevice, bio: Bio) -> Ended {
        device.submit(bio).unwrap();
        let mut ended = Vec::new();
        device.reap(&mut ended);
        ended.pop().unwrap()
    }

    #[test]
    fn only_written_pages_cost_memory() {
        let mut device = MemoryDevice::new(1 << 46);
        let pool = Pool::new(1 << 20).unwrap();
        let memory = Memory::Buffer(pool.take(8192).unwrap());
        let write = Bio::new(Op::Write, (1 << 45) + 512, 4096, memory);
        assert_eq!(run(&mut device, write).result, Ok(4096));
        assert_eq!(device.pages_in_use(), 2);
        assert_eq!(device.data_after(0), Ok(Some(1 << 45)));
    }

    #[test]
    fn a_clone_sees_what_was_written() {
        let mut device = MemoryDevice::new(1 << 20);
        let pool = Pool::new(1 << 20).unwrap();
        let mut buffer = pool.take(4096).unwrap();
        buffer.as_mut_slice().fill(3);
        run(&mut device, Bio::new(Op::Write, 0, 4096, Memory::Buffer(buffer)));
        let read = Bio::new(Op::Read, 0, 512, Memory::Buffer(pool.take(4096).unwrap()));
        let ended = run(&mut device.clone(), read);
        assert_eq!(ended.bio.memory.buffer().unwrap().as_slice()[511], 3);
    }

    #[test]
    fn a_range_past_the_end_is_refused() {
        let mut device = MemoryDevice::new(4096);
        let found = run(&mut device, Bio::new(Op::Discard, 4096, 512, Memory::None)).result;
        assert_eq!(found, Err(Error::Range { offset: 4096, len: 512 }));
    }

    #[test]
    fn volatile_memory_comes_back_where_it_was() {
        let region = holdfast_iov::Region::anonymous(8192).unwrap();
        let memory = Arc::new(holdfast_iov::VolatileMemory::new(vec![region]));
        let mut device = MemoryDevice::new(1 << 20);
        for op in [Op::Write, Op::Read] {
            let mut iter = holdfast_iov::IovIter::new(Arc::clone(&memory));
            iter.push(0, 4096, 4096).unwrap();
            iter.push(0, 100, 3996).unwrap();
            // Less than the memory has, as when a transfer was cut short above.
            let ended = run(&mut device, Bio::new(op, 0, 4608, Memory::Iov(iter)));
            assert_eq!((ended.result, ended.bio.memory.len()), (Ok(4608), 8092));
        }
    }

    #[test]
    fn a_flipped_bit_is_read() {
        let mut device = MemoryDevice::new(1 << 20);
        device.corrupt(4097, 0x40);
        let pool = Pool::new(1 << 20).unwrap();
        let read = Bio::new(Op::Read, 4096, 512, Memory::Buffer(pool.take(4096).unwrap()));
        let ended = run(&mut device, read);
        assert_eq!(ended.bio.memory.buffer().unwrap().as_slice()[..3], [0, 0x40, 0]);
    }
}
