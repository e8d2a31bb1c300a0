//! A file or block device through `io_uring`.

use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, DiskQueue, Ended, Error, GuardLimits, Limits, Op};
use holdfast_iov::{BUFFER_MAX, Memory, Region};
use holdfast_ring::{Channel, Completion, File, Operation, SharedRing};
use holdfast_units::{to_u64, to_usize};
use rustix::fs::{FallocateFlags, SeekFrom};
use slab::Slab;

use crate::mapped::Mapped;
use crate::open::Backing;

/// One queue of a file or block device, on the ring of one thread.
///
/// Transfers may be short, as those of the kernel are. Those of a file in tmpfs are copies, and have
/// ended when they are submitted.
#[derive(Debug)]
pub struct FileDevice {
    channel: Channel,
    file: File,
    limits: Limits,
    mapped: Option<Arc<Mapped>>,
    in_flight: Slab<Bio>,
    /// What ended at once.
    done: Vec<Ended>,
}

/// What mmap(2) says of a file system that cannot map files for writing.
const ENODEV: i32 = 19;

impl FileDevice {
    /// The most bios in flight, so that other users of the ring find room in it.
    const DEPTH: usize = 1024;

    /// Opens a queue of `backing` on `ring`.
    ///
    /// # Errors
    ///
    /// EMFILE.
    pub fn new(backing: &Backing, ring: &SharedRing) -> io::Result<Self> {
        let mapped = backing.mapped();
        let limits = Limits {
            capacity: backing.bytes(),
            sector: backing.block(),
            granularity: backing.block(),
            memory_alignment: backing.memory_alignment(),
            bytes_max: BUFFER_MAX,
            boundary: None,
            stable_pages: false,
            guards: None,
            read_only: backing.is_read_only(),
            in_memory: mapped.is_some(),
        };
        Ok(Self {
            channel: Channel::open(ring),
            file: Rc::new(backing.descriptor()?),
            limits,
            mapped,
            in_flight: Slab::new(),
            done: Vec::new(),
        })
    }

    /// Leaves all transfers to the kernel, also of a file in tmpfs: it finishes a sector that it has begun,
    /// though the process be killed.
    #[must_use]
    pub fn by_the_kernel(mut self) -> Self {
        (self.mapped, self.limits.in_memory) = (None, false);
        self
    }

    /// Returns the kernel's operation for a bio, whose memory it takes, or why there is none.
    fn operation(&self, bio: &mut Bio) -> Result<Operation, Error> {
        if bio.op.is_write() && self.limits.read_only {
            return Err(Error::ReadOnly);
        }
        let file = Rc::clone(&self.file);
        let (offset, len) = (bio.offset, bio.len);
        let keep_size = FallocateFlags::KEEP_SIZE;
        let allocate = |mode| Ok(Operation::Allocate { file: Rc::clone(&file), mode, offset, len });
        match bio.op {
            // The kernel would write to it all the same.
            Op::Read if !bio.memory.is_writable() => Err(Error::Unsupported),
            Op::Read => {
                let memory = std::mem::take(&mut bio.memory);
                Ok(Operation::Read { file, offset, memory, skip: bio.start, len: to_usize(len) })
            }
            Op::Write => {
                let memory = std::mem::take(&mut bio.memory);
                let (skip, len, durable) = (bio.start, to_usize(len), bio.fua);
                Ok(Operation::Write { file, offset, memory, skip, len, durable })
            }
            Op::Flush => Ok(Operation::Sync { file }),
            Op::Zero { keep: true, .. } => allocate(FallocateFlags::ZERO_RANGE | keep_size),
            Op::Zero { keep: false, .. } | Op::Discard => {
                allocate(FallocateFlags::PUNCH_HOLE | keep_size)
            }
            Op::Allocate => allocate(keep_size),
            Op::Map | Op::Repair => Err(Error::Unsupported),
        }
    }

    /// Reserves space for what is stored through a mapping: without it, a store kills the process
    /// when there is none.
    fn reserve(&self, offset: u64, len: u64) -> Result<(), Error> {
        use rustix::io::Errno;
        let fallocate = || rustix::fs::fallocate(&*self.file, FallocateFlags::empty(), offset, len);
        match rustix::io::retry_on_intr(fallocate) {
            // A block device has its space, and some file systems cannot reserve any.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NODEV | Errno::NOSYS) => Ok(()),
            Err(errno) => Err(Error::from_errno(errno.raw_os_error())),
        }
    }

    fn ended(&mut self, completion: Completion) -> Ended {
        let mut bio = self.in_flight.remove(to_usize(completion.token));
        let moves_data = match completion.operation {
            Operation::Read { memory, .. } | Operation::Write { memory, .. } => {
                bio.memory = memory;
                true
            }
            _ => false,
        };
        if let Some(mapped) = &self.mapped {
            mapped.forget_discarded(&bio);
        }
        let result = match &completion.result {
            Ok(moved) if moves_data => Ok(u64::from(*moved)),
            Ok(_) => Ok(bio.len),
            Err(error) => Err(Error::from(error)),
        };
        Ended { bio, result }
    }
}

impl BlockDevice for FileDevice {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn submit(&mut self, mut bio: Bio) -> Result<(), Bio> {
        if let Some(result) = self.mapped.as_ref().and_then(|mapped| mapped.carry_out(&mut bio)) {
            self.done.push(Ended { bio, result });
            return Ok(());
        }
        if self.in_flight.len() >= Self::DEPTH {
            return Err(bio);
        }
        let operation = match self.operation(&mut bio) {
            Ok(operation) => operation,
            Err(error) => {
                self.done.push(Ended { bio, result: Err(error) });
                return Ok(());
            }
        };
        let key = self.in_flight.insert(bio);
        self.channel.push(to_u64(key), operation).map_err(|operation| {
            let mut bio = self.in_flight.remove(key);
            if let Operation::Read { memory, .. } | Operation::Write { memory, .. } = operation {
                bio.memory = memory;
            }
            bio
        })
    }

    fn read_guarded(
        &mut self,
        offset: u64,
        memory: &mut Memory,
        format: GuardLimits,
        guards: &mut [u64],
    ) -> Option<Result<(), Error>> {
        self.mapped.as_ref()?.read_guarded(offset, memory, format, guards)
    }

    fn expect_read(&self, offset: u64) {
        if let Some(mapped) = &self.mapped {
            mapped.expect_read(offset);
        }
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.done);
        while let Some(completion) = self.channel.pop() {
            let item = self.ended(completion);
            ended.push(item);
        }
    }

    fn wait(&mut self) {
        let idle = self.in_flight.is_empty() || !self.done.is_empty();
        let mut ring = self.channel.ring().borrow_mut();
        let entered = if idle { ring.enter(0) } else { ring.wait() };
        if let Err(error) = entered {
            // The operations cannot be collected, and their memory cannot be given back.
            panic!("io_uring cannot be waited for: {error}");
        }
    }

    fn has_notes(&self) -> bool {
        !self.done.is_empty()
    }

    fn poll(&mut self) {
        // Who waits in the ring meets the error as well.
        let _later = self.channel.ring().borrow_mut().poll();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        match rustix::fs::seek(&*self.file, SeekFrom::Data(offset)) {
            Ok(found) => Ok(Some(found)),
            Err(rustix::io::Errno::NXIO) => Ok(None),
            // A block device knows no holes.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(Some(offset)),
            Err(errno) => Err(Error::from_errno(errno.raw_os_error())),
        }
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        if self.limits.read_only {
            return Err(Error::ReadOnly);
        }
        // A page behind the end of a file is mapped all the same, and kills whoever touches it.
        self.limits.check(offset, to_u64(len))?;
        self.reserve(offset, to_u64(len))?;
        match Region::shared(self.file.as_fd(), offset, len) {
            Ok(region) => Ok(Some(region)),
            Err(error) if error.raw_os_error() == Some(ENODEV) => Ok(None),
            Err(error) => Err(Error::from(&error)),
        }
    }
}

impl DiskQueue for FileDevice {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::Access;
    use holdfast_iov::{Pool, lend, lend_mut};
    use holdfast_ring::Ring;
    use std::os::unix::fs::MetadataExt;

    fn run(device: &mut FileDevice, bio: Bio) -> Ended {
        device.submit(bio).unwrap();
        let mut ended = Vec::new();
        while ended.is_empty() {
            device.wait();
            device.reap(&mut ended);
        }
        ended.pop().unwrap()
    }

    fn device(dir: &tempfile::TempDir, bytes: u64) -> FileDevice {
        let path = dir.path().join("disk");
        let backing = Backing::create(&path, bytes).unwrap();
        FileDevice::new(&backing, &Ring::new(8).unwrap().shared()).unwrap()
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 1 << 20);
        let pool = Pool::new(1 << 20).unwrap();
        let mut buffer = pool.take(8192).unwrap();
        buffer.as_mut_slice()[..4096].fill(7);
        let write = Bio::new(Op::Write, 8192, 4096, Memory::Buffer(buffer));
        assert_eq!(run(&mut device, write).result, Ok(4096));
        let read = Bio::new(Op::Read, 8192, 4096, Memory::Buffer(pool.take(8192).unwrap()));
        let ended = run(&mut device, read.with_start(4096));
        let found = &ended.bio.memory.buffer().unwrap().as_slice()[4096..8192];
        assert_eq!((ended.result, found), (Ok(4096), &[7; 4096][..]));
    }

    #[test]
    fn lent_memory_is_used_in_place() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 1 << 20);
        let pool = Pool::new(1 << 20).unwrap();
        let mut memory = pool.take(4096).unwrap();
        memory.as_mut_slice().fill(9);
        let written = lend(&memory.as_slice()[..4096], |iter| {
            run(&mut device, Bio::new(Op::Write, 0, 4096, Memory::Iov(iter))).result
        });
        memory.as_mut_slice().fill(0);
        let read = lend_mut(&mut memory.as_mut_slice()[..4096], |iter| {
            run(&mut device, Bio::new(Op::Read, 0, 4096, Memory::Iov(iter))).result
        });
        assert_eq!((written, read, memory.as_slice()[4095]), (Ok(4096), Ok(4096), 9));
    }

    #[test]
    fn a_discarded_range_is_a_hole() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 1 << 20);
        let pool = Pool::new(1 << 20).unwrap();
        let memory = Memory::Buffer(pool.take(4096).unwrap());
        run(&mut device, Bio::new(Op::Write, 1 << 16, 4096, memory));
        assert_eq!(device.data_after(0), Ok(Some(1 << 16)));
        let discard = Bio::new(Op::Discard, 1 << 16, 4096, Memory::None);
        assert_eq!(run(&mut device, discard).result, Ok(4096));
        assert_eq!(device.data_after(0), Ok(None));
    }

    #[test]
    fn what_is_stored_into_a_mapping_is_read_and_needs_no_more_space() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 1 << 20);
        let region = device.map(1 << 16, 8192).unwrap().unwrap();
        let blocks = dir.path().join("disk").metadata().unwrap().blocks();
        region.write(4096, &[5; 512]).unwrap();
        let memory = Memory::Buffer(Pool::new(1 << 20).unwrap().take(512).unwrap());
        let ended = run(&mut device, Bio::new(Op::Read, (1 << 16) + 4096, 512, memory));
        assert_eq!(ended.bio.memory.buffer().unwrap().as_slice()[..512], [5; 512]);
        assert!(blocks >= 16, "8192 bytes are reserved, and not {blocks} blocks of 512");
    }

    #[test]
    fn what_lies_behind_the_end_is_not_mapped() {
        let dir = tempfile::tempdir().unwrap();
        let found = device(&dir, 8192).map(4096, 8192).map(drop);
        assert_eq!(found, Err(Error::Range { offset: 4096, len: 8192 }));
    }

    #[test]
    fn a_read_only_device_takes_no_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        drop(Backing::create(&path, 4096).unwrap());
        let backing = Backing::open(&path, Access::ReadOnly).unwrap();
        let mut device = FileDevice::new(&backing, &Ring::new(8).unwrap().shared()).unwrap();
        let discard = Bio::new(Op::Discard, 0, 4096, Memory::None);
        assert_eq!(run(&mut device, discard).result, Err(Error::ReadOnly));
    }

    #[test]
    fn a_read_at_the_end_of_the_file_is_short_and_behind_it_moves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 8192);
        let pool = Pool::new(1 << 20).unwrap();
        let mut read = |offset| {
            let memory = Memory::Buffer(pool.take(8192).unwrap());
            run(&mut device, Bio::new(Op::Read, offset, 8192, memory)).result
        };
        assert_eq!([read(0), read(4096), read(8192)], [Ok(8192), Ok(4096), Ok(0)]);
    }

    #[test]
    fn what_a_file_cannot_do_comes_back_with_its_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 8192);
        let memory = Memory::Buffer(Pool::new(1 << 20).unwrap().take(4096).unwrap());
        let ended = run(&mut device, Bio::new(Op::Map, 0, 4096, memory).with_user(7));
        assert_eq!((ended.result, ended.bio.user), (Err(Error::Unsupported), 7));
        assert!(ended.bio.memory.buffer().is_some());
    }

    #[test]
    fn memory_lent_as_a_source_is_not_read_into() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 1 << 20);
        let memory = Pool::new(1 << 20).unwrap().take(4096).unwrap();
        let found = lend(&memory.as_slice()[..4096], |iter| {
            run(&mut device, Bio::new(Op::Read, 0, 4096, Memory::Iov(iter))).result
        });
        assert_eq!(found, Err(Error::Unsupported));
    }

    #[test]
    fn a_full_ring_gives_the_bio_back_with_its_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 1 << 20);
        let pool = Pool::new(1 << 20).unwrap();
        let mut submitted = 0;
        let refused = loop {
            let memory = Memory::Buffer(pool.take(512).unwrap());
            match device.submit(Bio::new(Op::Read, 512, 512, memory).with_user(submitted)) {
                Ok(()) => submitted += 1,
                Err(bio) => break bio,
            }
            assert!(submitted < 100, "the ring is never full");
        };
        assert_eq!((refused.user, refused.offset, refused.len), (submitted, 512, 512));
        assert!(refused.memory.buffer().is_some());
        let mut ended = Vec::new();
        while to_u64(ended.len()) < submitted {
            device.wait();
            device.reap(&mut ended);
        }
        assert!(ended.iter().all(|ended| ended.result == Ok(512)));
    }

    #[test]
    fn the_kernels_errors_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut device = device(&dir, 1 << 20);
        // fallocate(2) refuses an empty range, and one behind the largest offset.
        let mut allocate = |offset, len| {
            run(&mut device, Bio::new(Op::Allocate, offset, len, Memory::None)).result
        };
        assert_eq!(allocate(0, 0), Err(Error::Device { errno: 22 }));
        assert_eq!(allocate((1 << 63) - 4096, 8192), Err(Error::Device { errno: 27 }));
        assert_eq!(allocate(0, 4096), Ok(4096));
    }
}
