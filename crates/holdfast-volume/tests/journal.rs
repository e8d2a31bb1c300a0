//! The data journal: what it saves, and that nobody sees that it is there.

use std::cell::Cell;
use std::mem::ManuallyDrop;
use std::rc::Rc;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Op, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_iov::Memory;
use holdfast_sim::{Fault, Faults, FaultyDevice};
use holdfast_units::{BlockSize, to_u64};
use holdfast_volume::{Client, OpenOptions, Queue, Volume};

use crate::common::{self, Disk, fill, formats};

const CAPACITY: u64 = 4 << 20;

/// Opens a queue that has a lane of the journal.
fn journaled(disk: &Disk) -> Queue<MemoryDevice> {
    disk.queue().with_journal().unwrap()
}

fn data(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}

fn write<D: BlockDevice>(
    disk: &Disk,
    queue: &mut D,
    offset: u64,
    bytes: &[u8],
) -> Result<u64, Error> {
    let mut buffer = disk.pool.take_whole(bytes.len()).unwrap();
    buffer.as_mut_slice()[..bytes.len()].copy_from_slice(bytes);
    let bio = Bio::new(Op::Write, offset, to_u64(bytes.len()), Memory::Buffer(buffer));
    common::run(queue, bio).result
}

fn read<D: BlockDevice>(disk: &Disk, queue: &mut D, offset: u64, len: usize) -> Vec<u8> {
    let buffer = disk.pool.take_whole(len).unwrap();
    let bio = Bio::new(Op::Read, offset, to_u64(len), Memory::Buffer(buffer));
    let ended = common::run(queue, bio);
    assert_eq!(ended.result, Ok(to_u64(len)));
    ended.bio.memory.buffer().unwrap().as_slice()[..len].to_vec()
}

/// Counts what is written and flushed.
struct Counting {
    device: MemoryDevice,
    writes: Rc<Cell<usize>>,
    flushes: Rc<Cell<usize>>,
}

impl BlockDevice for Counting {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        let is_durable = bio.op == Op::Flush || bio.fua;
        self.writes.set(self.writes.get() + usize::from(bio.op == Op::Write));
        self.flushes.set(self.flushes.get() + usize::from(is_durable));
        self.device.submit(bio)
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        self.device.reap(ended);
    }

    fn wait(&mut self) {
        self.device.wait();
    }
}

#[test]
fn a_small_overwrite_is_one_write_and_no_flush() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1 << 20);
        let (writes, flushes) = (Rc::default(), Rc::default());
        let device = Counting {
            device: disk.device.clone(),
            writes: Rc::clone(&writes),
            flushes: Rc::clone(&flushes),
        };
        let mut queue = Queue::new(&disk.volume, device, || {}).unwrap().with_journal().unwrap();
        let len = 4 * sector.len();
        write(&disk, &mut queue, 0, &data(len, 1)).unwrap();
        let first = (writes.replace(0), flushes.replace(0));
        assert_eq!(first, (2, 1), "a record and the data of what was never written");
        write(&disk, &mut queue, 0, &data(len, 2)).unwrap();
        assert_eq!((writes.get(), flushes.get()), (1, 0));
        assert_eq!(queue.in_flight(), 0);
        drop(queue);
        assert!(read(&disk, &mut disk.queue(), 0, len) == data(len, 2));
        common::assert_clean(&mut disk.queue());
    }
}

#[test]
fn what_another_queue_has_staged_is_read_and_overwritten_and_cleared() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1 << 20);
        let (mut first, mut second) = (journaled(&disk), journaled(&disk));
        let len = 4 * sector.len();
        write(&disk, &mut first, 0, &data(len, 1)).unwrap();
        write(&disk, &mut first, 0, &data(len, 2)).unwrap();
        let bios = [
            Bio::new(Op::Read, 0, to_u64(len), Memory::Buffer(disk.pool.take_whole(len).unwrap())),
            Bio::new(Op::Discard, 0, to_u64(len), Memory::None),
        ];
        for bio in bios {
            let mut ended = Vec::new();
            second.submit(bio).unwrap();
            while ended.is_empty() {
                second.reap(&mut ended);
                first.reap(&mut Vec::new());
            }
            assert!(ended[0].result.is_ok(), "{:?}", ended[0]);
            if let Some(buffer) = ended[0].bio.memory.buffer() {
                assert!(buffer.as_slice()[..len] == data(len, 2), "{guard} {sector}");
            }
        }
        drop(first);
        assert!(read(&disk, &mut second, 0, len) == vec![0; len]);
    }
}

#[test]
fn a_lane_is_used_again_and_again_and_given_back() {
    let disk = Disk::new(GuardKind::Crc64, BlockSize::PAGE, CAPACITY, 1 << 20);
    let page = |number: u64| data(4096, number);
    for round in 0..6 {
        let mut queue = journaled(&disk);
        for number in 0..300 {
            write(&disk, &mut queue, number % 40 * 4096, &page(round * 1000 + number)).unwrap();
        }
        for number in 260..300 {
            let found = read(&disk, &mut queue, number % 40 * 4096, 4096);
            assert!(found == page(round * 1000 + number), "{number} of round {round}");
        }
    }
    common::assert_clean(&mut disk.queue());
    let Disk { device, volume, .. } = disk;
    volume.close(&mut device.clone()).unwrap();
    assert!(Disk::open(device, 1 << 20).volume.recovery().is_none());
}

/// Leaves what is staged where it is, as a process that is killed does.
fn kill(disk: Disk, queue: Queue<MemoryDevice>) -> MemoryDevice {
    let _killed = ManuallyDrop::new(queue);
    disk.device
}

#[test]
fn what_was_acknowledged_is_there_after_the_process_was_killed() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1 << 20);
        let mut queue = journaled(&disk);
        let len = 3 * sector.len();
        for round in 1..4 {
            for place in 0..5 {
                let offset = place * to_u64(len);
                write(&disk, &mut queue, offset, &data(len, round * 10 + place)).unwrap();
            }
        }
        let device = kill(disk, queue);
        let options = OpenOptions { read_only: true, ..OpenOptions::default() };
        for options in [options, OpenOptions::default()] {
            let volume = Volume::open(&mut device.clone(), &options).unwrap();
            assert!(volume.recovery().unwrap().restored > 0, "{guard} {sector}");
            let queue = Queue::new(&volume, device.clone(), || {}).unwrap();
            let pool = holdfast_iov::Pool::new(1 << 20).unwrap();
            let mut client = Client::new(queue, pool, ReadPolicy::Lazy);
            common::assert_clean(client.queue());
            for place in 0..5 {
                let mut found = vec![0; len];
                client.read_at(place * to_u64(len), &mut found).unwrap();
                assert!(found == data(len, 30 + place), "{guard} {sector}");
            }
            // A part of a sector, and of the next.
            let at = sector.len() - 512;
            let mut found = vec![0; 1024];
            client.read_at(to_u64(at), &mut found).unwrap();
            assert!(found == data(len, 30)[at..at + 1024]);
        }
    }
}

#[test]
fn a_first_write_that_finds_no_space_is_told() {
    let disk = Disk::new(GuardKind::Crc64, BlockSize::PAGE, CAPACITY, 1 << 20);
    let faults = Faults { space: Some(0), ..Faults::default() };
    let mut queue = disk.faulty_queue(faults, 1).with_journal().unwrap();
    assert_eq!(write(&disk, &mut queue, 0, &data(4096, 1)), Err(Error::NoSpace));
}

#[test]
fn what_cannot_be_stored_in_its_place_is_read_from_memory_and_no_flush_succeeds() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1 << 20);
        let len = sector.len();
        write(&disk, &mut disk.queue(), 0, &data(2 * len, 1)).unwrap();
        let at = disk.volume.geometry().data_at(0);
        let fault = Fault { range: at..at + to_u64(len), reads: false, error: Error::IO };
        let device = FaultyDevice::new(
            disk.device.clone(),
            Faults { faults: vec![fault], ..Faults::default() },
            1,
        );
        let mut queue = Queue::new(&disk.volume, device, || {}).unwrap().with_journal().unwrap();
        write(&disk, &mut queue, 0, &data(2 * len, 2)).unwrap();
        assert_eq!(common::run(&mut queue, Bio::flush()).result, Ok(0), "it is in the journal");
        assert!(read(&disk, &mut queue, 0, 2 * len) == data(2 * len, 2), "{guard} {sector}");
        assert_eq!(common::run(&mut queue, Bio::flush()).result, Err(Error::FlushFailed));
        // A part of the sector is written, which needs the rest.
        let part = write(&disk, &mut disk.queue(), 0, &data(512, 3));
        assert_eq!(part, Ok(512), "by a queue whose device works");
        let mut expected = data(2 * len, 2);
        expected[..512].copy_from_slice(&data(512, 3));
        assert!(read(&disk, &mut queue, 0, 2 * len) == expected, "{guard} {sector}");
        drop(queue);
        let Disk { device, volume, .. } = disk;
        volume.close(&mut device.clone()).unwrap();
        let again = Disk::open(device, 1 << 20);
        assert!(again.volume.recovery().is_some(), "it was not closed");
        assert!(read(&again, &mut again.queue(), 0, 2 * len) == expected, "{guard} {sector}");
        common::assert_clean(&mut again.queue());
    }
}
