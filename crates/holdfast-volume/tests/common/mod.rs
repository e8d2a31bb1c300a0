//! What the tests of a volume share: making one, running bios on its queues, and changing what is
//! stored behind its back.

#![allow(dead_code, reason = "each test uses its part of this")]

use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Ended, Op, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::{Backing, FileDevice, MemoryDevice};
use holdfast_iov::{Memory, Pool};
use holdfast_ring::{Ring, SharedRing};
use holdfast_sim::{Faults, FaultyDevice, Random};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::{
    Client, CreateOptions, Durability, OpenOptions, Queue, Scrub, ScrubReport, Volume,
};

/// A queue over a device that makes mistakes.
pub(crate) type FaultyQueue = Queue<FaultyDevice<MemoryDevice>>;

/// The formats that a volume can have.
pub(crate) fn formats() -> impl Iterator<Item = (GuardKind, BlockSize)> {
    GuardKind::ALL
        .into_iter()
        .flat_map(|guard| [BlockSize::SECTOR, BlockSize::PAGE].map(|sector| (guard, sector)))
}

/// The options for a volume with the usual application tag.
pub(crate) const fn options(guard: GuardKind, sector: BlockSize, capacity: u64) -> CreateOptions {
    CreateOptions { capacity, sector, guard, application_tag: CreateOptions::APPLICATION_TAG }
}

/// Returns how much data a group of this format holds, in bytes.
pub(crate) fn group_bytes(guard: GuardKind, sector: BlockSize) -> u64 {
    options(guard, sector, sector.bytes()).geometry().unwrap().group_data().bytes()
}

/// A volume in memory.
pub(crate) struct Disk {
    pub(crate) device: MemoryDevice,
    pub(crate) volume: Arc<Volume>,
    pub(crate) pool: Pool,
}

impl Disk {
    /// Creates a volume and opens it with a cache of `cache_bytes`.
    pub(crate) fn new(
        guard: GuardKind,
        sector: BlockSize,
        capacity: u64,
        cache_bytes: usize,
    ) -> Self {
        let open = OpenOptions { cache_bytes, ..OpenOptions::default() };
        Self::with(&options(guard, sector, capacity), &open)
    }

    /// Creates a volume that stores its tuples with each flush, and opens it.
    pub(crate) fn without_log(guard: GuardKind, sector: BlockSize, capacity: u64) -> Self {
        Self::with_durability(guard, sector, capacity, Durability::None)
    }

    /// Creates a volume and opens it to be as durable as this.
    pub(crate) fn with_durability(
        guard: GuardKind,
        sector: BlockSize,
        capacity: u64,
        durability: Durability,
    ) -> Self {
        let open = OpenOptions { durability, ..OpenOptions::default() };
        Self::with(&options(guard, sector, capacity), &open)
    }

    fn with(options: &CreateOptions, open: &OpenOptions) -> Self {
        let mut device = MemoryDevice::new(options.geometry().unwrap().device_len());
        Volume::create(&mut device, options).unwrap();
        let volume = Volume::open(&mut device, open).unwrap();
        Self { device, volume, pool: Pool::new(64 << 20).unwrap() }
    }

    /// Opens the volume on `device`.
    pub(crate) fn open(mut device: MemoryDevice, cache_bytes: usize) -> Self {
        let options = OpenOptions { cache_bytes, ..OpenOptions::default() };
        let volume = Volume::open(&mut device, &options).unwrap();
        Self { device, volume, pool: Pool::new(64 << 20).unwrap() }
    }

    /// Opens a queue whose device makes mistakes.
    pub(crate) fn faulty_queue(&self, faults: Faults, seed: u64) -> FaultyQueue {
        let device = FaultyDevice::new(self.device.clone(), faults, seed);
        Queue::new(&self.volume, device, || {}).unwrap()
    }

    /// Opens a queue.
    pub(crate) fn queue(&self) -> Queue<MemoryDevice> {
        Queue::new(&self.volume, self.device.clone(), || {}).unwrap()
    }

    /// Opens a queue for blocking calls.
    pub(crate) fn client(&self, read_policy: ReadPolicy) -> Client<MemoryDevice> {
        Client::new(self.queue(), self.pool.clone(), read_policy)
    }
}

/// What a volume is stored on, any number of queues of it.
pub(crate) trait Medium {
    type Device: BlockDevice;

    /// Opens another queue.
    fn device(&self) -> Self::Device;
}

impl Medium for MemoryDevice {
    type Device = Self;

    fn device(&self) -> Self {
        self.clone()
    }
}

/// A sparse file, which is removed at the end.
pub(crate) struct FileMedium {
    pub(crate) backing: Backing,
    ring: SharedRing,
    _dir: tempfile::TempDir,
}

impl FileMedium {
    /// Creates a file of `bytes`.
    pub(crate) fn new(bytes: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let backing = Backing::create(&dir.path().join("disk"), bytes).unwrap();
        Self { backing, ring: Ring::new(64).unwrap().shared(), _dir: dir }
    }
}

impl Medium for FileMedium {
    type Device = FileDevice;

    fn device(&self) -> FileDevice {
        FileDevice::new(&self.backing, &self.ring).unwrap()
    }
}

/// Opens the volume on a medium.
pub(crate) fn open<M: Medium>(medium: &M) -> Arc<Volume> {
    let options = OpenOptions { cache_bytes: 1 << 20, ..OpenOptions::default() };
    Volume::open(&mut medium.device(), &options).unwrap()
}

/// Opens a queue for blocking calls, which re-reads after a guard mismatch.
pub(crate) fn client<M: Medium>(medium: &M, volume: &Arc<Volume>) -> Client<M::Device> {
    let queue = Queue::new(volume, medium.device(), || {}).unwrap();
    Client::new(queue, Pool::new(4 << 20).unwrap(), ReadPolicy::Lazy)
}

/// Runs one bio to its end.
pub(crate) fn run<D: BlockDevice>(queue: &mut D, bio: Bio) -> Ended {
    let mut ended = Vec::new();
    let mut waiting = queue.submit(bio).err();
    while ended.is_empty() {
        queue.wait();
        queue.reap(&mut ended);
        if let Some(bio) = waiting.take() {
            waiting = queue.submit(bio).err();
        }
    }
    ended.pop().unwrap()
}

/// Scrubs everything.
pub(crate) fn scrub<D: BlockDevice>(queue: &mut Queue<D>) -> ScrubReport {
    let mut scrub = Scrub::new(queue, 1000).unwrap();
    while scrub.step().unwrap().is_some() {}
    scrub.finish()
}

/// Scrubs everything and fails if something is corrupt or cannot be read.
pub(crate) fn assert_clean<D: BlockDevice>(queue: &mut Queue<D>) {
    let report = scrub(queue);
    assert_eq!((report.corrupt, report.mismatches, report.unreadable), (0, vec![], vec![]));
}

/// Returns the stored bytes at `offset` of the device below. Both numbers are multiples of 512.
pub(crate) fn peek<D: BlockDevice>(device: &mut D, offset: u64, len: usize) -> Vec<u8> {
    let buffer = Pool::new(len).unwrap().take_whole(len).unwrap();
    let ended = run(device, Bio::new(Op::Read, offset, to_u64(len), Memory::Buffer(buffer)));
    assert_eq!(ended.result, Ok(to_u64(len)), "{len} at {offset}");
    ended.bio.memory.buffer().unwrap().as_slice()[..len].to_vec()
}

/// Changes the stored bytes at `offset` of the device below. Offset and length are multiples of 512.
pub(crate) fn poke<D: BlockDevice>(device: &mut D, offset: u64, bytes: &[u8]) {
    let mut buffer = Pool::new(bytes.len()).unwrap().take_whole(bytes.len()).unwrap();
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    let len = to_u64(bytes.len());
    let ended = run(device, Bio::new(Op::Write, offset, len, Memory::Buffer(buffer)));
    assert_eq!(ended.result, Ok(len), "{len} at {offset}");
}

/// Flips one stored bit: bit `bit % 8` of byte `offset + bit / 8` of the device below.
pub(crate) fn flip<D: BlockDevice>(device: &mut D, offset: u64, bit: u64) {
    let at = offset + bit / 8;
    let block = BlockSize::SECTOR;
    let mut bytes = peek(device, block.align_down(at), block.len());
    bytes[to_usize(block.offset_in(at))] ^= 1 << (bit % 8);
    poke(device, block.align_down(at), &bytes);
}

/// Returns where the tuple of a sector is, in bytes of the device below, and how long it is.
pub(crate) fn tuple_at(volume: &Volume, lba: u64) -> (u64, u64) {
    let geometry = volume.geometry();
    let offset = lba * geometry.sector().bytes();
    let size = to_u64(geometry.tuple_words() * 8);
    let index = geometry.sector().count(geometry.group_data().offset_in(offset));
    (geometry.tuples_at(geometry.group_of(offset)) + index * size, size)
}

/// Returns the stored tuple of a sector.
pub(crate) fn stored_tuple<D: BlockDevice>(device: &mut D, volume: &Volume, lba: u64) -> Vec<u8> {
    let (at, size) = tuple_at(volume, lba);
    let block = BlockSize::SECTOR;
    let bytes = peek(device, block.align_down(at), block.len());
    bytes[to_usize(block.offset_in(at))..][..to_usize(size)].to_vec()
}

/// Fills memory with bytes that a seed determines, none of which is 0.
pub(crate) fn fill(bytes: &mut [u8], seed: u64) {
    let mut random = Random::new(seed);
    for chunk in bytes.chunks_mut(8) {
        let number = random.next() | 0x0101_0101_0101_0101;
        chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
    }
}
