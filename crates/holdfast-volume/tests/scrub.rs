//! A scrub of a volume in use: where it is and what it found last, and nobody is blamed who only
//! writes meanwhile.

use holdfast_bio::{Bio, BlockDevice, Error, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_sim::{Fault, Faults, Random};
use holdfast_units::{BlockSize, to_usize};
use holdfast_volume::format::{ScrubRecord, features};
use holdfast_volume::{Client, Queue, ScrubBatch, ScrubReport, Volume};

use crate::common::{self, Disk, FileMedium, Medium, fill, formats, group_bytes, options};

/// Runs one batch from where the pass is, and returns what it found.
fn batch<D: BlockDevice>(queue: &mut Queue<D>, bytes: u64, now: u64) -> ScrubReport {
    let mut batch = ScrubBatch::new().unwrap();
    let mut ended = Vec::new();
    batch.begin(queue, queue.volume().scrub().position, bytes);
    while !batch.is_over() {
        queue.wait();
        queue.reap(&mut ended);
        for item in ended.drain(..) {
            batch.take(queue, item);
        }
        // What we wait for may be in another thread's hands.
        std::thread::yield_now();
    }
    let (position, found) = batch.finish().unwrap();
    let capacity = queue.volume().geometry().capacity();
    queue.volume().change_scrub(|record| record.advance(position, &found, capacity, now));
    found
}

/// Runs batches until the pass has ended.
fn finish<D: BlockDevice>(queue: &mut Queue<D>, bytes: u64, now: u64) -> ScrubRecord {
    while queue.volume().scrub().is_running() {
        batch(queue, bytes, now);
    }
    queue.volume().scrub()
}

/// A volume of two groups and a bit, full of data, with rotten bits in two sectors: one near the
/// beginning and one in the second group.
fn rotten(guard: GuardKind, sector: BlockSize) -> (Disk, [u64; 2]) {
    let group = group_bytes(guard, sector);
    let capacity = 2 * group + 5 * sector.bytes();
    let disk = Disk::new(guard, sector, capacity, 1 << 20);
    let mut bytes = vec![0; to_usize(capacity)];
    fill(&mut bytes, 1);
    let mut client = disk.client(ReadPolicy::Lazy);
    client.write_at(0, &bytes).unwrap();
    client.flush().unwrap();
    drop(client);
    let lbas = [3, sector.count(group) + 7];
    for lba in lbas {
        let at = disk.volume.geometry().data_at(lba * sector.bytes());
        common::flip(&mut disk.device.clone(), at, 77);
    }
    (disk, lbas)
}

#[test]
fn a_scrub_that_was_stopped_goes_on_where_it_was_also_in_the_next_server() {
    for (guard, sector) in formats() {
        let (disk, [first, second]) = rotten(guard, sector);
        let mut queue = disk.queue();
        disk.volume.change_scrub(|record| record.start(100));
        let found = batch(&mut queue, 16 * sector.bytes(), 101);
        let lbas: Vec<_> = found.mismatches.iter().map(|found| found.lba).collect();
        assert_eq!((found.verified, lbas), (15 * sector.bytes(), vec![first]));
        disk.volume.change_scrub(ScrubRecord::pause);
        drop(queue);
        let stopped = disk.volume.scrub();
        disk.volume.close(&mut disk.device.clone()).unwrap();

        let disk = Disk::open(disk.device, 1 << 20);
        assert_eq!(disk.volume.scrub(), stopped);
        assert_eq!((stopped.position, stopped.corrupt), (16 * sector.bytes(), 1));
        let mut queue = disk.queue();
        disk.volume.change_scrub(|record| record.start(200));
        let found = batch(&mut queue, disk.volume.geometry().capacity(), 201);
        let lbas: Vec<_> = found.mismatches.iter().map(|found| found.lba).collect();
        assert_eq!(lbas, [second]);
        let verified = disk.volume.geometry().capacity() - 2 * sector.bytes();
        let expected = ScrubRecord {
            position: disk.volume.geometry().capacity(),
            started: 100,
            finished: 201,
            verified,
            corrupt: 2,
            ..ScrubRecord::default()
        };
        assert_eq!(disk.volume.scrub(), expected);
        assert_eq!(disk.volume.errors().total(), 2, "each was met and counted once");
    }
}

#[test]
fn each_pass_counts_a_corrupt_sector_once_whatever_its_batches_are() {
    for (guard, sector) in formats() {
        let (disk, _) = rotten(guard, sector);
        let mut queue = disk.queue();
        for (pass, bytes) in [(1, 1), (2, 7 * sector.bytes()), (3, ScrubBatch::BYTES_MAX)] {
            disk.volume.change_scrub(|record| record.start(pass));
            let record = finish(&mut queue, bytes, pass);
            let all = disk.volume.geometry().capacity();
            assert_eq!((record.corrupt, record.verified), (2, all - 2 * sector.bytes()));
            assert_eq!(disk.volume.errors().total(), 2 * pass);
        }
    }
}

#[test]
fn a_flush_stores_the_record_when_it_is_asked_to() {
    let (disk, _) = rotten(GuardKind::Crc64, BlockSize::PAGE);
    let mut queue = disk.queue();
    let stored = || Volume::peek(&mut disk.device.clone()).unwrap();
    common::run(&mut queue, Bio::flush());
    assert_eq!((stored().scrub, stored().compatible), (ScrubRecord::default(), 0));
    disk.volume.change_scrub(|record| record.start(1));
    assert!(!disk.volume.has_news(), "nobody asked to store it");
    disk.volume.store_scrub();
    assert!(disk.volume.has_news());
    common::run(&mut queue, Bio::flush());
    assert!(!disk.volume.has_news());
    assert_eq!((stored().scrub, stored().compatible), (disk.volume.scrub(), features::SCRUB));
}

#[test]
fn holes_are_passed_over() {
    const CAPACITY: u64 = 64 << 20;
    let options = options(GuardKind::Crc16, BlockSize::PAGE, CAPACITY);
    let medium = FileMedium::new(options.geometry().unwrap().device_len());
    Volume::create(&mut medium.device(), &options).unwrap();
    let volume = common::open(&medium);
    let mut client = common::client(&medium, &volume);
    client.write_at(40 << 20, &[7; 8192]).unwrap();
    client.flush().unwrap();
    volume.change_scrub(|record| record.start(1));
    let found = batch(client.queue(), CAPACITY, 2);
    assert_eq!(found.verified + found.holes, CAPACITY);
    assert!(found.holes >= 60 << 20, "{} bytes of holes", found.holes);
    assert_eq!((volume.scrub().position, volume.scrub().finished), (CAPACITY, 2));
}

#[test]
fn what_the_device_cannot_read_is_counted_and_the_scrub_goes_on() {
    let (disk, _) = rotten(GuardKind::Crc32c, BlockSize::PAGE);
    let bad = disk.volume.geometry().data_at(20 * 4096);
    let fault = Fault { range: bad..bad + 4096, reads: true, error: Error::IO };
    let mut queue = disk.faulty_queue(Faults { faults: vec![fault], ..Faults::default() }, 1);
    disk.volume.change_scrub(|record| record.start(1));
    let record = finish(&mut queue, 1 << 20, 2);
    let all = disk.volume.geometry().capacity();
    assert_eq!((record.unreadable, record.corrupt), (1, 2));
    assert_eq!((record.verified, record.finished), (all - 3 * 4096, 2));
}

/// Overwrites sectors again and again, through a device that is in no hurry.
fn overwrite(disk: &Disk, seed: u64) {
    const WRITES: u64 = 200;
    let faults = Faults { short_percent: 20, reorder: true, ..Faults::default() };
    let queue = disk.faulty_queue(faults, seed);
    let mut client = Client::new(queue, disk.pool.clone(), ReadPolicy::Lazy);
    let capacity = disk.volume.geometry().capacity();
    let mut random = Random::new(seed);
    let mut bytes = vec![0; 64 << 10];
    for _ in 0..WRITES {
        // Also parts of sectors.
        let len = 512 * (1 + random.below(128));
        let offset = 512 * random.below((capacity - len) / 512);
        fill(&mut bytes, random.next());
        client.write_at(offset, &bytes[..to_usize(len)]).unwrap();
    }
}

#[test]
fn what_is_being_written_is_never_misjudged() {
    const CAPACITY: u64 = 1 << 20;
    let disk = Disk::new(GuardKind::Crc16, BlockSize::PAGE, CAPACITY, 1);
    disk.client(ReadPolicy::Lazy).write_at(0, &vec![1; to_usize(CAPACITY)]).unwrap();
    std::thread::scope(|scope| {
        let disk = &disk;
        let writers = [1, 2].map(|seed| scope.spawn(move || overwrite(disk, seed)));
        let mut queue: Queue<MemoryDevice> = disk.queue();
        for pass in 1.. {
            disk.volume.change_scrub(|record| record.start(pass));
            let record = finish(&mut queue, 64 << 10, pass);
            assert_eq!((record.verified, record.has_problems()), (CAPACITY, false));
            if writers.iter().all(|writer| writer.is_finished()) {
                break;
            }
        }
    });
    assert_eq!(disk.volume.errors().total(), 0);
}
