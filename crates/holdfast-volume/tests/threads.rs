//! Queues in several threads over one volume: they meet in few groups, in a cache of one set, and
//! in the same sectors.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use holdfast_bio::{Bio, BlockDevice, Ended, Op, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::{Backing, FileDevice};
use holdfast_iov::{Memory, Pool};
use holdfast_ring::Ring;
use holdfast_sim::Random;
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::{OpenOptions, Queue, Volume};

use crate::common::{self, Disk, FileMedium, Medium, formats, open, options};

/// More than the ways of a set.
const GROUPS: u64 = 11;
/// Sectors of each group that are used.
const SECTORS: u64 = 6;
const DEPTH: usize = 6;

/// One thread's requests.
struct Worker<D: BlockDevice> {
    queue: Queue<D>,
    pool: Pool,
    random: Random,
    ended: Vec<Ended>,
    in_flight: usize,
}

impl<D: BlockDevice> Worker<D> {
    fn new(volume: &Arc<Volume>, device: D, number: u64) -> Self {
        Self {
            queue: Queue::new(volume, device, || {}).unwrap().with_journal().unwrap(),
            pool: Pool::new(1 << 20).unwrap(),
            random: Random::new(number),
            ended: Vec::new(),
            in_flight: 0,
        }
    }

    /// Returns a request of whole sectors, each of which is filled with a number of its own.
    fn request(&mut self) -> Bio {
        let volume = Arc::clone(self.queue.volume());
        let (geometry, random) = (volume.geometry(), &mut self.random);
        let sector = geometry.sector();
        let first = random.below(SECTORS);
        let count = 1 + random.below(SECTORS - first);
        let group = random.below(GROUPS);
        let offset = group * geometry.group_data().bytes() + first * sector.bytes();
        let len = count * sector.bytes();
        let op = match random.below(20) {
            0..9 => Op::Read,
            9..16 => Op::Write,
            16 => Op::Zero { keep: false, fast: false },
            17 => Op::Discard,
            _ => return Bio::flush(),
        };
        let memory = match op {
            Op::Read | Op::Write => {
                let mut buffer = self.pool.take_whole(to_usize(len)).unwrap();
                for bytes in buffer.as_mut_slice()[..to_usize(len)].chunks_mut(sector.len()) {
                    let number = random.next().to_le_bytes();
                    bytes.chunks_mut(8).for_each(|word| word.copy_from_slice(&number));
                }
                Memory::Buffer(buffer)
            }
            _ => Memory::None,
        };
        let mut bio = Bio::new(op, offset, len, memory);
        bio.fua = op == Op::Write && random.chance(10);
        bio
    }

    fn collect(&mut self) {
        self.queue.wait();
        self.queue.reap(&mut self.ended);
        if self.ended.is_empty() {
            // What we wait for is in another thread's hands.
            thread::yield_now();
        }
        let sector = self.queue.limits().sector.len();
        for Ended { bio, result } in self.ended.drain(..) {
            self.in_flight -= 1;
            assert_eq!(result, Ok(bio.len), "{:?} of {} at {}", bio.op, bio.len, bio.offset);
            if let (Op::Read, Memory::Buffer(buffer)) = (bio.op, &bio.memory) {
                for bytes in buffer.as_slice()[..to_usize(bio.len)].chunks(sector) {
                    assert!(bytes.chunks(8).all(|word| word == &bytes[..8]), "a torn sector");
                }
            }
        }
    }

    fn work(&mut self, requests: usize, deadline: Instant) {
        for _ in 0..requests {
            let bio = self.request();
            self.queue.submit(bio).unwrap();
            self.in_flight += 1;
            while self.in_flight >= DEPTH {
                self.collect();
                assert!(Instant::now() < deadline, "{:?} never ends", self.queue.in_flight());
            }
        }
        while self.in_flight > 0 {
            self.collect();
            assert!(Instant::now() < deadline, "{:?} never ends", self.queue.in_flight());
        }
    }
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn capacity(guard: GuardKind, sector: BlockSize) -> u64 {
    GROUPS * common::group_bytes(guard, sector)
}

#[test]
fn threads_over_one_device_in_memory_see_whole_sectors_and_end() {
    for (guard, sector) in formats() {
        for threads in [2, 3, 4] {
            let disk = Disk::new(guard, sector, capacity(guard, sector), 1);
            let deadline = deadline();
            thread::scope(|scope| {
                for number in 0..threads {
                    let (volume, device) = (&disk.volume, disk.device.clone());
                    scope.spawn(move || {
                        Worker::new(volume, device, number).work(1500, deadline);
                    });
                }
            });
            assert_eq!(disk.volume.errors().total(), 0);
            let queue = &mut disk.queue();
            common::assert_clean(queue);
            common::run(queue, Bio::flush()).result.unwrap();
            common::assert_clean(&mut Disk::open(disk.device, 1).queue());
        }
    }
}

#[test]
fn threads_over_one_file_see_whole_sectors_and_end() {
    for (guard, sector) in [
        (GuardKind::Crc16, BlockSize::SECTOR),
        (GuardKind::Crc32c, BlockSize::PAGE),
        (GuardKind::Crc64, BlockSize::PAGE),
    ] {
        let options = options(guard, sector, capacity(guard, sector));
        let medium = FileMedium::new(options.geometry().unwrap().device_len());
        Volume::create(&mut medium.device(), &options).unwrap();
        let one_set = OpenOptions { cache_bytes: 1, ..OpenOptions::default() };
        let volume = Volume::open(&mut medium.device(), &one_set).unwrap();
        let deadline = deadline();
        let backing: &Backing = &medium.backing;
        thread::scope(|scope| {
            for number in 0..3 {
                let volume = &volume;
                scope.spawn(move || {
                    let ring = Ring::new(64).unwrap().shared();
                    let device = FileDevice::new(backing, &ring).unwrap();
                    Worker::new(volume, device, number).work(300, deadline);
                });
            }
        });
        assert_eq!(volume.errors().total(), 0);
        let mut queue = Queue::new(&volume, medium.device(), || {}).unwrap();
        common::assert_clean(&mut queue);
        common::run(&mut queue, Bio::flush()).result.unwrap();
        drop((queue, volume));
        let reopened = open(&medium);
        let mut queue = Queue::new(&reopened, medium.device(), || {}).unwrap();
        common::assert_clean(&mut queue);
    }
}

#[test]
fn parts_of_one_sector_written_by_several_threads_are_all_kept() {
    const THREADS: u64 = 4;
    for guard in GuardKind::ALL {
        let disk = Disk::new(guard, BlockSize::PAGE, 1 << 20, 1);
        thread::scope(|scope| {
            for number in 0..THREADS {
                let mut client = disk.client(ReadPolicy::Lazy);
                scope.spawn(move || {
                    // Two parts of sector 0, or one part across its end.
                    let offset = if number == 3 { 3584 } else { number * 1024 };
                    for round in 0..500_u64 {
                        let value = u8::try_from(round % 255 + 1).unwrap();
                        client.write_at(offset, &[value; 1024]).unwrap();
                        let mut found = [0; 1024];
                        client.read_at(offset, &mut found).unwrap();
                        assert_eq!(found, [value; 1024], "somebody else's write took ours away");
                    }
                });
            }
        });
        let last = u8::try_from(499 % 255 + 1).unwrap();
        let mut found = [0; 8192];
        disk.client(ReadPolicy::Lazy).read_at(0, &mut found).unwrap();
        let is_written = |at: usize| (0..3072).contains(&at) || (3584..4608).contains(&at);
        let expected = (0..found.len()).map(|at| if is_written(at) { last } else { 0 });
        assert!(found.into_iter().eq(expected), "a part was lost");
        assert_eq!(disk.volume.errors().total(), 0);
        common::assert_clean(&mut disk.queue());
    }
}

#[test]
fn what_a_thread_flushed_is_stored_whoever_led_the_flush() {
    const THREADS: u64 = 3;
    let (guard, sector) = (GuardKind::Crc16, BlockSize::SECTOR);
    let disk = Disk::without_log(guard, sector, capacity(guard, sector));
    let group = common::group_bytes(guard, sector);
    thread::scope(|scope| {
        for number in 0..THREADS {
            let (mut client, mut device) = (disk.client(ReadPolicy::Lazy), disk.device.clone());
            let volume = &disk.volume;
            scope.spawn(move || {
                for round in 0..300_u64 {
                    let lba = (round % GROUPS) * sector.count(group) + number;
                    let value = u8::try_from(1 + round % 250).unwrap();
                    client.write_at(lba * sector.bytes(), &[value; 512]).unwrap();
                    client.flush().unwrap();
                    // The stored tuple has the guard of what was written, whatever the others do.
                    let tuple = common::stored_tuple(&mut device, volume, lba);
                    let expected = holdfast_checksum::checksum(guard, &[value; 512]);
                    let found = u16::from_be_bytes([tuple[0], tuple[1]]);
                    assert_eq!(u64::from(found), expected, "round {round}");
                }
            });
        }
    });
    assert_eq!(to_u64(disk.queue().in_flight()), 0);
}
