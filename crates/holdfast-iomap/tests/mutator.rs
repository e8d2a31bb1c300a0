//! Memory that a thread keeps storing to while files on a protected volume are written from it and read
//! into it: every request succeeds, and the volume finds nothing wrong.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use holdfast_bio::ReadPolicy;
use holdfast_device::MemoryDevice;
use holdfast_iomap::{DirectIo, Direction, Flags, Request};
use holdfast_iov::{IovIter, Memory, Pool, Region, VolatileMemory};
use holdfast_sim::Random;
use holdfast_units::{BlockSize, to_usize};
use holdfast_volume::{Client, Queue, Volume};

use crate::common::fs::TestFs;
use crate::common::volume::volume;
use crate::common::world::CAPACITY;
use crate::common::{BLOCK, FILE, Log, STALE};

/// All that the mutator ever stores.
const VALUES: [u8; 4] = [0x11, 0x2d, 0x88, 0xf4];
const REGION: usize = 64 << 10;
const FILE_LEN: usize = 40 * BLOCK;
const UNIT: usize = 512;

/// Stores to the memory until it is told to stop.
fn mutate(memory: &VolatileMemory, stop: &AtomicBool) {
    let mut random = Random::new(99);
    while !stop.load(Ordering::Relaxed) {
        let number = random.next();
        if number.is_multiple_of(256) {
            thread::yield_now();
        }
        let byte = VALUES[to_usize(number >> 62)];
        memory.region(0).unwrap().write(to_usize(number) % REGION, &[byte]).unwrap();
    }
}

/// Writes and reads at random, and returns which sectors of the file were written.
fn requests(
    volume: &Arc<Volume>,
    device: &MemoryDevice,
    memory: &Arc<VolatileMemory>,
    fs: &mut TestFs,
) -> Vec<bool> {
    let pool = Pool::new(8 << 20).unwrap();
    let queue = Queue::new(volume, device.clone(), || {}).unwrap();
    let mut io = DirectIo::new(queue, pool, ReadPolicy::Lazy);
    let mut random = Random::new(7);
    let mut below = |limit: usize| to_usize(random.below(limit as u64));
    let mut written = vec![false; FILE_LEN / UNIT];
    for number in 0..4000 {
        let mut finished = Vec::new();
        for user in 0..4 {
            let len = (1 + below(24)) * UNIT;
            let at = below((FILE_LEN - len) / UNIT) * UNIT;
            let mut iter = IovIter::new(Arc::clone(memory));
            // Pieces that begin and end anywhere.
            let cut = below(len);
            iter.push(0, below(REGION - len), cut).unwrap();
            iter.push(0, below(REGION - len), len - cut).unwrap();
            let is_write = below(3) > 0;
            if is_write {
                written[at / UNIT..(at + len) / UNIT].fill(true);
            }
            let direction = if is_write { Direction::Write } else { Direction::Read };
            let flags = Flags { dsync: number % 8 == 0, ..Flags::default() };
            let memory = Memory::Iov(iter);
            let request = Request::new(direction, FILE, at as u64, len as u64, memory);
            io.submit(fs, request.with_flags(flags).with_user(user));
        }
        while finished.len() < 4 {
            io.wait();
            io.reap(fs, &mut finished);
        }
        for item in finished {
            assert_eq!(item.result, Ok(item.request.len));
        }
    }
    written
}

#[test]
fn memory_that_changes_makes_no_request_fail_and_no_sector_bad() {
    for sector in [BlockSize::SECTOR, BlockSize::PAGE] {
        let (device, volume) = volume(sector);
        let queue = Queue::new(&volume, device.clone(), || {}).unwrap();
        let mut client = Client::new(queue, Pool::new(1 << 20).unwrap(), ReadPolicy::Always);
        client.write_at(0, &vec![STALE; CAPACITY]).unwrap();
        let memory = Arc::new(VolatileMemory::new(vec![Region::anonymous(REGION).unwrap()]));
        memory.region(0).unwrap().write(0, &[VALUES[0]; REGION]).unwrap();
        let mut fs = TestFs::new(Log::default());
        fs.run = 3;
        fs.inode(FILE).size = FILE_LEN as u64;
        let stop = AtomicBool::new(false);
        let written = thread::scope(|scope| {
            scope.spawn(|| mutate(&memory, &stop));
            // What panics here would let the scope wait for ever.
            let work = || requests(&volume, &device, &memory, &mut fs);
            let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
            stop.store(true, Ordering::Relaxed);
            written.unwrap()
        });
        // Reading verifies every sector.
        client.read_at(0, &mut vec![0; CAPACITY]).unwrap();
        let mut load = |address, target: &mut [u8]| client.read_at(address, target).unwrap();
        let bytes = fs.contents(FILE, &mut load);
        for (unit, is_written) in bytes.chunks(UNIT).zip(written) {
            let holds = |byte: &u8| if is_written { VALUES.contains(byte) } else { *byte == 0 };
            // Reads stored zeros to the memory, too.
            assert!(unit.iter().all(|byte| holds(byte) || *byte == 0));
        }
    }
}
