//! Disks that are no volumes: memory, a file with holes, and devices that have large blocks, are full, or move
//! less than they were asked to.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Mutex};

use holdfast_bio::{Bio, BlockDevice, DiskQueue, Ended, Limits};
use holdfast_device::{Backing, FileDevice, MemoryDevice};
use holdfast_ring::{SharedRing, Waker};
use holdfast_sim::{Faults, FaultyDevice};
use holdfast_socket::{Address, Listener};
use holdfast_units::{BlockSize, to_u64};
use holdfast_vhost_user_blk::{Description, Options, Server, Target};
use holdfast_virtio_driver::{Range, Request, Segment, Shape, Status};
use tempfile::TempDir;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_RO};

use crate::common::{Guest, MIB, assert_same, drain, guest_options, pattern};

/// A disk of which queues are opened by a function.
struct Disk<F> {
    described: Description,
    open: F,
}

impl<Q, F> Target for Disk<F>
where
    Q: DiskQueue,
    F: Fn(&SharedRing) -> io::Result<Q> + Send + Sync + 'static,
{
    type Queue = Q;

    fn describe(&self) -> Description {
        self.described
    }

    fn queue(&self, ring: &SharedRing, _waker: &Arc<Waker>) -> io::Result<Q> {
        (self.open)(ring)
    }
}

/// A server of a disk, stopped when this is dropped.
struct Served {
    server: Option<Server>,
    directory: TempDir,
}

impl Served {
    fn start<T: Target>(disk: T, options: &Options) -> io::Result<Self> {
        let directory = tempfile::tempdir()?;
        let listener = Listener::bind(Address::Unix(directory.path().join("blk"))).unwrap();
        let server = Some(Server::start(listener, Arc::new(disk), options)?);
        Ok(Self { server, directory })
    }

    /// Serves memory as it is.
    fn memory(described: Description, device: &MemoryDevice, options: &Options) -> Self {
        let device = Mutex::new(device.clone());
        let open = move |_ring: &SharedRing| Ok(device.lock().unwrap().clone());
        Self::start(Disk { described, open }, options).unwrap()
    }

    /// Serves memory with faults.
    fn faulty(described: Description, faults: Faults) -> Self {
        let device = Mutex::new(MemoryDevice::new(described.capacity));
        let open = move |_ring: &SharedRing| {
            let device = device.lock().unwrap().clone();
            Ok(Polled::new(FaultyDevice::new(device, faults.clone(), 1)))
        };
        Self::start(Disk { described, open }, &Options::default()).unwrap()
    }

    fn guest(&self) -> Guest {
        let options = holdfast_virtio_driver::Options { queues: 1, ..guest_options() };
        Guest::new(&self.directory.path().join("blk"), &options)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.server.take().unwrap().stop();
    }
}

/// A device that nobody wakes: it is asked as long as it has something in flight, or has refused something.
struct Polled<D> {
    device: D,
    in_flight: usize,
    has_refused: bool,
}

impl<D> Polled<D> {
    const fn new(device: D) -> Self {
        Self { device, in_flight: 0, has_refused: false }
    }
}

impl<D: BlockDevice> BlockDevice for Polled<D> {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        let submitted = self.device.submit(bio);
        self.has_refused = submitted.is_err();
        self.in_flight += usize::from(submitted.is_ok());
        submitted
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let before = ended.len();
        self.device.reap(ended);
        self.in_flight -= ended.len() - before;
    }

    fn wait(&mut self) {
        self.device.wait();
    }

    fn has_notes(&self) -> bool {
        self.in_flight > 0 || self.has_refused
    }
}

impl<D: BlockDevice> DiskQueue for Polled<D> {}

/// Memory that takes whole blocks of 4096 bytes only.
struct Blocks(MemoryDevice);

impl BlockDevice for Blocks {
    fn limits(&self) -> Limits {
        let (sector, granularity) = (BlockSize::PAGE, BlockSize::PAGE);
        Limits { sector, granularity, ..self.0.limits() }
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        assert_eq!(self.limits().check(bio.offset, bio.len), Ok(()), "{bio:?}");
        self.0.submit(bio)
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        self.0.reap(ended);
    }

    fn wait(&mut self) {
        self.0.wait();
    }

    fn has_notes(&self) -> bool {
        self.0.has_notes()
    }
}

impl DiskQueue for Blocks {}

fn described(capacity: u64, block: BlockSize) -> Description {
    Description::new(capacity, block, "a disk of the tests")
}

#[test]
fn memory_is_served_up_to_its_last_whole_sector() {
    let device = MemoryDevice::new(1_000_000);
    let told = described(1_000_000, BlockSize::SECTOR);
    let served = Served::memory(told, &device, &Options::default());
    let mut guest = served.guest();
    let end = guest.client.config().capacity_bytes();
    assert_eq!(end, 1953 * 512);
    let data = pattern(1, 4096);
    assert_eq!(guest.write(end - 4096, &data), Status::Ok);
    assert_same(&guest.read(end - 4096, 4096).unwrap(), &data);
    assert_eq!(guest.read(end - 512, 1024).unwrap_err(), Status::IoError);
    assert_eq!(guest.write(end, &[1; 512]), Status::IoError);
    assert_eq!(guest.zero(end - 512, 512, Range::UNMAP), Status::Ok);
    assert_eq!(guest.discard(end - 1024, 512), Status::Ok);
    assert_eq!(guest.flush(), Status::Ok);
    assert_same(&guest.read(end - 1024, 1024).unwrap(), &[0; 1024]);
    let mut behind = [0xff; 64];
    device.load(end, &mut behind);
    assert_eq!(behind, [0; 64]);
}

#[test]
fn the_name_is_as_long_as_guests_have_room_for() {
    let served = Served::faulty(described(MIB, BlockSize::SECTOR), Faults::default());
    let mut guest = served.guest();
    let target = [Segment { address: guest.base, len: 20 }];
    assert_eq!(guest.ask(&Request::Id { target: &target }), Status::Ok);
    let mut name = [0; 20];
    guest.memory.read(guest.base, &mut name).unwrap();
    assert_eq!(&name, b"a disk of the tests\0");
}

#[test]
fn a_read_only_disk_offers_no_discard() {
    let told = Description { read_only: true, ..described(MIB, BlockSize::PAGE) };
    let served = Served::faulty(told, Faults::default());
    let guest = served.guest();
    assert!(guest.client.has_feature(VIRTIO_BLK_F_RO));
    assert!(!guest.client.has_feature(VIRTIO_BLK_F_DISCARD));
}

/// Each bio needs several small buffers, one after the other, of which the thread hears nothing through its ring.
#[test]
fn what_ends_at_once_and_in_parts_does_not_wait_for_anybody() {
    let device = MemoryDevice::new(8 * MIB);
    let options = Options { buffer_bytes: 1, ..Options::default() };
    let served = Served::memory(described(8 * MIB, BlockSize::SECTOR), &device, &options);
    let mut guest = served.guest();
    let data = pattern(3, 1_000_448);
    for at in [0, 7] {
        assert_eq!(guest.write_from(at, 512, &data), Status::Ok);
        assert_same(&guest.read_to(at, 512, data.len()).unwrap(), &data);
    }
}

#[test]
fn a_file_gives_space_back_or_keeps_it_as_it_is_asked() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("disk");
    let backing = Backing::create(&path, 4 * MIB).unwrap();
    let told = Description {
        discard_block: BlockSize::new(1 << 16).unwrap(),
        ..described(backing.bytes(), backing.block())
    };
    let open = move |ring: &SharedRing| FileDevice::new(&backing, ring);
    let served = Served::start(Disk { described: told, open }, &Options::default()).unwrap();
    let mut guest = served.guest();
    assert_eq!(guest.client.config().discard_alignment_sectors, 128);
    let stored = || path.metadata().unwrap().blocks() * 512;
    let kib = |count: u64| count << 10;
    assert_same(&guest.read(kib(512), 8192).unwrap(), &[0; 8192]);
    assert_eq!(guest.write(0, &pattern(5, 1 << 20)), Status::Ok);
    let all = stored();
    assert!(all >= MIB);
    match guest.zero(0, kib(256), 0) {
        Status::Ok => {}
        // As Linux does where the file system below cannot.
        Status::Unsupported => assert_eq!(guest.write(0, &[0; 256 << 10]), Status::Ok),
        other => panic!("{other:?}"),
    }
    assert_eq!(stored(), all);
    assert_eq!(guest.zero(kib(256), kib(256), Range::UNMAP), Status::Ok);
    assert_eq!(all - stored(), kib(256));
    // Of three blocks to be discarded the first and the last are not whole.
    assert_eq!(guest.discard(kib(512 + 4), kib(3 * 64 - 8)), Status::Ok);
    assert_eq!(all - stored(), kib(256 + 64));
    assert_eq!(guest.flush(), Status::Ok);
    let mut expected = pattern(5, 1 << 20);
    expected[..512 << 10].fill(0);
    expected[(512 + 64) << 10..(512 + 128) << 10].fill(0);
    assert_same(&guest.read(0, 1 << 20).unwrap(), &expected);
}

#[test]
fn a_disk_of_large_blocks_is_asked_for_whole_ones_only() {
    let device = Mutex::new(MemoryDevice::new(MIB + 2048));
    let open = move |_ring: &SharedRing| Ok(Blocks(device.lock().unwrap().clone()));
    let told =
        Description { logical_block: BlockSize::PAGE, ..described(MIB + 2048, BlockSize::PAGE) };
    let served = Served::start(Disk { described: told, open }, &Options::default()).unwrap();
    let mut guest = served.guest();
    let config = guest.client.config();
    assert_eq!((config.capacity_bytes(), config.block_bytes), (MIB, 4096));
    assert_eq!((config.physical_block_exponent, config.io_blocks_min), (0, 1));
    assert_eq!(config.discard_alignment_sectors, 8);
    let data = pattern(7, 8192);
    assert_eq!(guest.write_from(1, MIB - 8192, &data), Status::Ok);
    for (offset, len) in [(MIB - 4096, 512), (MIB - 3584, 3584), (MIB - 4608, 4096)] {
        assert_eq!(guest.write(offset, &vec![1; len]), Status::IoError);
        assert_eq!(guest.read(offset, len).unwrap_err(), Status::IoError);
        assert_eq!(guest.zero(offset, to_u64(len), 0), Status::IoError);
        assert_eq!(guest.discard(offset, to_u64(len)), Status::IoError);
    }
    assert_same(&guest.read(MIB - 8192, 8192).unwrap(), &data);
    assert_eq!(guest.zero(MIB - 8192, 4096, Range::UNMAP), Status::Ok);
    assert_same(&guest.read_to(3, MIB - 8192, 4096).unwrap(), &[0; 4096]);
}

#[test]
fn without_space_writes_fail_and_nothing_else_does() {
    let faults = Faults { space: Some(8192), ..Faults::default() };
    let served = Served::faulty(described(MIB, BlockSize::PAGE), faults);
    let mut guest = served.guest();
    let data = pattern(9, 8192);
    assert_eq!(guest.write(0, &data), Status::Ok);
    assert_eq!(guest.write(65536, &data), Status::IoError);
    assert_eq!(guest.flush(), Status::Ok);
    assert_same(&guest.read(0, 8192).unwrap(), &data);
    assert_same(&guest.read(65536, 8192).unwrap(), &[0; 8192]);
    assert_eq!(guest.discard(0, 8192), Status::Ok);
}

#[test]
fn what_the_disk_cannot_do_is_unsupported() {
    let faults = Faults { plain: true, ..Faults::default() };
    let served = Served::faulty(described(MIB, BlockSize::PAGE), faults);
    let mut guest = served.guest();
    assert_eq!(guest.zero(0, 8192, Range::UNMAP), Status::Unsupported);
    assert_eq!(guest.discard(0, 8192), Status::Unsupported);
    assert_eq!(guest.write(0, &[1; 512]), Status::Ok);
}

/// Writes and reads up to 16 ranges at once, `shift` bytes behind a page, and checks what was read.
fn fill_and_check(guest: &mut Guest, len: usize, shift: u64) {
    let half = Guest::BUFFER / 2;
    let data = pattern(shift, half / len * len);
    guest.memory.write(guest.base + shift, &data).unwrap();
    let (read, memory) = (guest.base + to_u64(half) + shift, Arc::clone(&guest.memory));
    for is_write in [true, false] {
        for at in (0..data.len()).step_by(len).map(to_u64) {
            let base = if is_write { guest.base + shift } else { read };
            let segment = [Segment { address: base + at, len: u32::try_from(len).unwrap() }];
            let request = if is_write {
                Request::Write { sector: at / 512, source: &segment }
            } else {
                Request::Read { sector: at / 512, target: &segment }
            };
            guest.client.queue(0).submit(&request, Shape::default()).unwrap();
        }
        assert!(drain(guest.client.queue(0)).iter().all(|ended| ended.status == Status::Ok));
    }
    let mut found = vec![0; data.len()];
    memory.read(read, &mut found).unwrap();
    assert_same(&found, &data);
}

#[test]
fn what_found_no_room_or_was_cut_short_goes_on() {
    for (short_percent, full_percent) in [(60, 0), (0, 60), (40, 40)] {
        let faults = Faults { short_percent, full_percent, reorder: true, ..Faults::default() };
        let served = Served::faulty(described(4 * MIB, BlockSize::PAGE), faults);
        let mut guest = served.guest();
        for (len, shift) in [(65536, 0), (65536, 9), (130_560, 512)] {
            fill_and_check(&mut guest, len, shift);
        }
        assert_eq!(guest.zero(512, 65536, Range::UNMAP), Status::Ok);
        assert_same(&guest.read(0, 66560).unwrap()[512..66048], &[0; 65536]);
        assert_eq!(guest.flush(), Status::Ok);
    }
}

#[test]
fn a_disk_whose_blocks_cannot_be_told_is_not_served() {
    let told = Description { logical_block: BlockSize::PAGE, ..described(MIB, BlockSize::SECTOR) };
    let open = |_ring: &SharedRing| Ok(MemoryDevice::new(MIB));
    let refused = Served::start(Disk { described: told, open }, &Options::default());
    assert_eq!(refused.err().unwrap().kind(), io::ErrorKind::InvalidInput);
}
