//! A volume on a mirror: what is bad on one leg is served from another and repaired, whatever it is;
//! what is bad on all is an error and nothing else.

use std::path::PathBuf;
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Error, Op, ReadPolicy, Tag};
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_iov::{Memory, Pool};
use holdfast_mirror::{LEGS_MAX, LegState, Mirror, MirrorDevice, Missed, assemble, read_record};
use holdfast_sim::{Fault, Faults, FaultyDevice, Random};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::{Client, Durability, OpenOptions, Queue, Resync, Volume, VolumeError};

use crate::common::{fill, formats, group_bytes, options, run, scrub, tuple_at};

type Device = MirrorDevice<FaultyDevice<MemoryDevice>>;

/// A volume on legs in memory.
struct Mirrored {
    legs: Vec<MemoryDevice>,
    mirror: Arc<Mirror>,
    volume: Arc<Volume>,
}

fn path(leg: usize) -> PathBuf {
    PathBuf::from(format!("/legs/{leg}.hf"))
}

fn device_of(legs: &[MemoryDevice], mirror: &Arc<Mirror>, faults: &[Faults]) -> Device {
    let (legs, faults) = (legs.to_vec(), faults.to_vec());
    let open = move |index: usize| {
        let faults = faults.get(index).cloned().unwrap_or_default();
        Ok(legs.get(index).map(|leg| FaultyDevice::new(leg.clone(), faults, to_u64(index))))
    };
    MirrorDevice::new(mirror, open).unwrap()
}

impl Mirrored {
    fn new(guard: GuardKind, sector: BlockSize, legs: usize) -> Self {
        let options = options(guard, sector, 3 * group_bytes(guard, sector) - 8 * sector.bytes());
        let bytes = options.geometry().unwrap().device_len();
        let legs: Vec<_> = (0..legs).map(|_| MemoryDevice::new(bytes)).collect();
        let named = legs.iter().enumerate().map(|(leg, memory)| (path(leg), memory.clone()));
        let mirror = Mirror::create(named.collect()).unwrap();
        Volume::create(&mut device_of(&legs, &mirror, &[]), &options).unwrap();
        drop(mirror);
        Self::open(legs, 0)
    }

    /// Opens the volume by way of one of its legs.
    fn open(legs: Vec<MemoryDevice>, first: usize) -> Self {
        Self::open_with(legs, first, Durability::Full)
    }

    fn open_with(legs: Vec<MemoryDevice>, first: usize, durability: Durability) -> Self {
        let open = |wanted: &std::path::Path| {
            let leg = (0..legs.len()).find(|&leg| path(leg) == wanted);
            leg.map(|leg| legs[leg].clone()).ok_or_else(|| "it is not there".to_owned())
        };
        let found = assemble(&path(first), legs[first].clone(), None, open).unwrap().unwrap();
        let mirror = Mirror::open(found, false).unwrap();
        let options = OpenOptions { cache_bytes: 1 << 20, durability, ..OpenOptions::default() };
        let volume = Volume::open(&mut device_of(&legs, &mirror, &[]), &options).unwrap();
        Self { legs, mirror, volume }
    }

    fn close(self) -> Vec<MemoryDevice> {
        let mut device = device_of(&self.legs, &self.mirror, &[]);
        self.queue(&[]).run(Bio::flush()).result.unwrap();
        self.volume.close(&mut device).unwrap();
        self.mirror.close().unwrap();
        self.legs
    }

    /// Closes the volume and opens it with nothing in memory.
    fn reopen(self) -> Self {
        Self::open(self.close(), 0)
    }

    fn queue(&self, faults: &[Faults]) -> Queue<Device> {
        Queue::new(&self.volume, device_of(&self.legs, &self.mirror, faults), || {}).unwrap()
    }

    fn client(&self, faults: &[Faults]) -> Client<Device> {
        Client::new(self.queue(faults), Pool::new(4 << 20).unwrap(), ReadPolicy::Lazy)
    }

    /// Fills the disk, and makes it durable. Returns what it holds.
    fn fill(&self, seed: u64) -> Vec<u8> {
        let mut bytes = vec![0; to_usize(self.volume.geometry().capacity())];
        fill(&mut bytes, seed);
        let mut client = self.client(&[]);
        client.write_at(0, &bytes).unwrap();
        client.flush().unwrap();
        bytes
    }

    fn read(&self, faults: &[Faults]) -> Vec<u8> {
        let mut bytes = vec![0; to_usize(self.volume.geometry().capacity())];
        self.client(faults).read_at(0, &mut bytes).unwrap();
        bytes
    }

    fn data_at(&self, lba: u64) -> u64 {
        let geometry = self.volume.geometry();
        geometry.data_at(lba * geometry.sector().bytes())
    }

    fn sectors(&self) -> u64 {
        self.volume.geometry().sector().count(self.volume.geometry().capacity())
    }

    fn repairs(&self) -> u64 {
        self.mirror.legs().iter().map(|(_, leg)| leg.repairs).sum()
    }

    /// Compares all legs and repairs them. Returns how many sectors could not be.
    fn repair(&self, faults: &[Faults]) -> u64 {
        let report = scrub(&mut self.queue(faults));
        assert!(report.unreadable.is_empty());
        report.corrupt
    }

    /// Brings a leg back.
    fn attach(&self, leg: usize) {
        let found = read_record(&self.legs[leg]);
        let memory = self.legs[leg].clone();
        let (number, missed) =
            self.mirror.attach(&path(leg), memory, found.as_ref(), false, |_| {}).unwrap();
        let Missed::Ranges(ranges) = missed else { panic!("what it missed is known") };
        let mut queue = self.queue(&[]);
        let number = u8::try_from(number).unwrap();
        let mut run = Resync::new(&mut queue, number, Some(&ranges)).unwrap();
        while run.step().unwrap() {}
        let mut device = device_of(&self.legs, &self.mirror, &[]);
        device.copy_to(number, self.volume.geometry().groups_offset()).unwrap();
        run.finish().unwrap();
        self.mirror.resynced(leg).unwrap();
    }
}

/// Checks that the legs are equal, but for what the mirror stores of itself.
fn assert_equal(legs: &[MemoryDevice]) {
    let len = to_usize(legs[0].limits().capacity);
    let bytes = |leg: &MemoryDevice| {
        let mut bytes = vec![0; len];
        leg.load(0, &mut bytes);
        bytes[256 << 10..512 << 10].fill(0);
        bytes
    };
    let first = bytes(&legs[0]);
    for (index, leg) in legs.iter().enumerate().skip(1) {
        let other = bytes(leg);
        let differs = (0..len).find(|&at| first[at] != other[at]);
        assert_eq!(differs, None, "leg {index} differs from the first at this byte");
    }
}

fn is_clean(volume: &Mirrored) -> bool {
    let report = scrub(&mut volume.queue(&[]));
    report.corrupt == 0 && report.unreadable.is_empty()
}

#[test]
fn data_that_rot_on_any_leg_are_served_from_another_and_repaired() {
    for (guard, sector) in formats() {
        let mirrored = Mirrored::new(guard, sector, 3);
        let bytes = mirrored.fill(1);
        let mut random = Random::new(2);
        let rotten = 40;
        for lba in (0..mirrored.sectors()).step_by(to_usize(mirrored.sectors() / rotten)) {
            let at = mirrored.data_at(lba) + random.below(sector.bytes());
            // Two of three legs, in no two sectors the same.
            mirrored.legs[to_usize(lba % 3)].corrupt(at, 0x10);
            mirrored.legs[to_usize((lba + 1) % 3)].corrupt(at, 0x01);
        }
        // Each queue prefers another leg.
        for _ in 0..3 {
            assert!(mirrored.read(&[]) == bytes, "{guard} {sector}");
        }
        assert_eq!(mirrored.repair(&[]), 0);
        assert!(mirrored.repairs() >= 2 * rotten, "{} of {rotten}", mirrored.repairs());
        assert_eq!(mirrored.volume.errors().total(), 0, "nothing was lost");
        assert_equal(&mirrored.close());
    }
}

#[test]
fn tuples_that_rot_on_one_leg_are_taken_from_another() {
    for (guard, sector) in formats() {
        let mirrored = Mirrored::new(guard, sector, 2);
        let bytes = mirrored.fill(3);
        let legs = mirrored.close();
        let mirrored = Mirrored::open(legs, 0);
        let (block, _) = tuple_at(&mirrored.volume, 0);
        let mut garbage = vec![0; 512];
        fill(&mut garbage, 4);
        // Different tuples of each leg, by garbage and by zeros, and a bit in a guard.
        mirrored.legs[0].store(block, &garbage);
        mirrored.legs[1].store(block + 1024, &[0; 512]);
        mirrored.legs[1].corrupt(block + 2048, 1);
        assert!(mirrored.read(&[]) == bytes, "{guard} {sector}");
        assert_eq!(mirrored.volume.errors().total(), 0);
        let mirrored = mirrored.reopen();
        assert!(is_clean(&mirrored));
        assert_equal(&mirrored.close());
    }
}

#[test]
fn a_leg_that_has_lost_everything_is_not_taken_for_one_that_was_never_written() {
    for lost in [0, 1] {
        let mirrored = Mirrored::new(GuardKind::Crc64, BlockSize::PAGE, 2);
        let bytes = mirrored.fill(18);
        let legs = mirrored.close();
        let mirrored = Mirrored::open(legs, 0);
        let (first, end) = (mirrored.volume.geometry().groups_offset(), mirrored.data_at(100));
        mirrored.legs[lost].store(first, &vec![0; to_usize(end - first)]);
        assert!(mirrored.read(&[]) == bytes, "leg {lost}");
        assert_eq!(mirrored.repair(&[]), 0);
        assert_equal(&mirrored.close());
    }
}

#[test]
fn both_superblocks_of_a_leg_may_rot() {
    for first in [0, 1] {
        let mirrored = Mirrored::new(GuardKind::Crc64, BlockSize::PAGE, 2);
        let bytes = mirrored.fill(5);
        let legs = mirrored.close();
        legs[0].store(0, &[0xaa; 4096]);
        legs[0].store(64 << 10, &[0x55; 4096]);
        let mirrored = Mirrored::open(legs, first);
        assert!(mirrored.read(&[]) == bytes);
        assert_equal(&mirrored.close());
    }
}

#[test]
fn sectors_that_a_leg_cannot_read_are_written_to_it_anew() {
    for (guard, sector) in formats() {
        let mirrored = Mirrored::new(guard, sector, 2);
        let bytes = mirrored.fill(6);
        let range = mirrored.data_at(3)..mirrored.data_at(5);
        let unreadable = Fault { range, reads: true, error: Error::IO };
        let faults = [Faults { faults: vec![unreadable], ..Faults::default() }];
        for _ in 0..LEGS_MAX {
            assert!(mirrored.read(&faults) == bytes, "{guard} {sector}");
        }
        let legs = mirrored.mirror.legs();
        assert!(legs[0].1.repairs >= 2 && legs[0].1.errors >= 2, "{legs:?}");
        assert_eq!((legs[0].1.state, legs[1].1.repairs), (LegState::InSync, 0));
    }
}

#[test]
fn a_sector_that_is_bad_on_all_legs_is_an_error_and_no_other_is() {
    for (guard, sector) in formats() {
        let mirrored = Mirrored::new(guard, sector, 2);
        let bytes = mirrored.fill(7);
        for leg in &mirrored.legs {
            leg.corrupt(mirrored.data_at(9), 0x80);
        }
        let mut client = mirrored.client(&[]);
        let mut found = vec![0; 32 * sector.len()];
        let Err(Error::Mismatch(mismatch)) = client.read_at(0, &mut found) else {
            panic!("corrupt data were delivered");
        };
        assert_eq!((mismatch.tag, mismatch.lba), (Tag::Guard, 9));
        for lba in (0..32).filter(|&lba| lba != 9) {
            let at = lba * sector.len();
            client.read_at(to_u64(at), &mut found[..sector.len()]).unwrap();
            assert!(found[..sector.len()] == bytes[at..][..sector.len()]);
        }
        assert_eq!(mirrored.volume.errors().guard, 1);
        let states: Vec<_> = mirrored.mirror.legs().iter().map(|(_, leg)| leg.state).collect();
        assert_eq!(states, [LegState::InSync; 2]);
        assert_eq!(mirrored.repair(&[]), 1);
    }
}

#[test]
fn a_part_of_a_sector_that_is_bad_on_one_leg_can_be_written() {
    let mirrored = Mirrored::new(GuardKind::Crc64, BlockSize::PAGE, 2);
    let mut bytes = mirrored.fill(8);
    for (lba, leg) in [(4, 0), (4, 1), (7, 0), (7, 1)] {
        mirrored.legs[leg].corrupt(mirrored.data_at(lba + to_u64(leg)), 0x80);
    }
    let mut client = mirrored.client(&[]);
    let (at, end) = (4 * 4096 + 512, 8 * 4096 + 1024);
    client.write_at(to_u64(at), &vec![0xee; end - at]).unwrap();
    bytes[at..end].fill(0xee);
    drop(client);
    assert!(mirrored.read(&[]) == bytes);
    assert_equal(&mirrored.close());
}

#[test]
fn a_leg_that_is_unplugged_and_comes_back_gets_what_it_missed() {
    for (guard, sector) in formats() {
        let mirrored = Mirrored::new(guard, sector, 2);
        let mut bytes = mirrored.fill(9);
        let all = |reads| Fault { range: 0..u64::MAX, reads, error: Error::IO };
        let flush = Some(Error::IO);
        let dead = Faults { faults: vec![all(true), all(false)], flush, ..Faults::default() };
        let faults = [Faults::default(), dead];
        let mut client = mirrored.client(&faults);
        let middle = bytes.len() / 2 / 4096 * 4096;
        client.write_at(0, &vec![0x77; 16 * 4096]).unwrap();
        bytes[..16 * 4096].fill(0x77);
        // What a hole replaces is cleared on the leg that comes back.
        let group = to_usize(group_bytes(guard, sector));
        client.clear(Op::Discard, to_u64(group), to_u64(group)).unwrap();
        bytes[group..2 * group].fill(0);
        client.flush().unwrap();
        assert_eq!(mirrored.mirror.state(1), LegState::Out);
        client.write_at(to_u64(middle), &[0x78; 4096]).unwrap();
        bytes[middle..middle + 4096].fill(0x78);
        drop(client);
        let mirrored = mirrored.reopen();
        assert_eq!(mirrored.mirror.state(1), LegState::Out);
        assert!(mirrored.read(&[]) == bytes, "{guard} {sector}");
        mirrored.attach(1);
        assert_eq!(mirrored.mirror.state(1), LegState::InSync);
        assert!(mirrored.read(&[]) == bytes, "{guard} {sector}");
        assert!(is_clean(&mirrored));
        assert_equal(&mirrored.close());
    }
}

#[test]
fn a_dead_leg_is_put_out_by_reads_alone() {
    let mirrored = Mirrored::new(GuardKind::Crc64, BlockSize::PAGE, 2);
    let bytes = mirrored.fill(10);
    let all = |reads| Fault { range: 0..u64::MAX, reads, error: Error::IO };
    let dead = Faults { faults: vec![all(true), all(false)], ..Faults::default() };
    let faults = [dead, Faults::default()];
    for _ in 0..LEGS_MAX {
        assert!(mirrored.read(&faults) == bytes);
    }
    assert_eq!(mirrored.mirror.state(0), LegState::Out);
}

#[test]
fn a_leg_is_not_opened_alone_and_a_volume_of_its_own_is_no_leg() {
    let legs = Mirrored::new(GuardKind::Crc64, BlockSize::PAGE, 2).close();
    let alone = Volume::open(&mut legs[0].clone(), &OpenOptions::default()).map(drop);
    assert_eq!(alone, Err(VolumeError::Mirror { is_leg: true }));
    let options = options(GuardKind::Crc64, BlockSize::PAGE, 1 << 20);
    let bytes = options.geometry().unwrap().device_len();
    let legs = [MemoryDevice::new(bytes), MemoryDevice::new(bytes)];
    Volume::create(&mut legs[0].clone(), &options).unwrap();
    let named = legs.iter().enumerate().map(|(leg, memory)| (path(leg), memory.clone()));
    let mirror = Mirror::create(named.collect()).unwrap();
    let mut device = device_of(&legs, &mirror, &[]);
    let found = Volume::open(&mut device, &OpenOptions::default()).map(drop);
    assert_eq!(found, Err(VolumeError::Mirror { is_leg: false }));
}

#[test]
fn a_read_of_any_legs_data_is_right_while_others_write() {
    let mirrored = Mirrored::new(GuardKind::Crc16, BlockSize::PAGE, 2);
    mirrored.fill(11);
    let clumsy = Faults { short_percent: 30, reorder: true, full_percent: 10, ..Faults::default() };
    let mut queue = mirrored.queue(&[clumsy.clone(), clumsy]);
    let pool = Pool::new(8 << 20).unwrap();
    let mut random = Random::new(12);
    let (mut in_flight, mut left, mut ended) = (0, 3000, Vec::new());
    while left > 0 || in_flight > 0 {
        while left > 0 && in_flight < 16 {
            let offset = random.below(32) * 4096;
            let len = (1 + random.below(8)) * 4096;
            let op = if random.chance(50) { Op::Write } else { Op::Read };
            let buffer = pool.take_whole(to_usize(len)).unwrap();
            queue.submit(Bio::new(op, offset, len, Memory::Buffer(buffer))).unwrap();
            (left, in_flight) = (left - 1, in_flight + 1);
        }
        queue.wait();
        queue.reap(&mut ended);
        for item in ended.drain(..) {
            assert_eq!(item.result, Ok(item.bio.len));
            in_flight -= 1;
        }
    }
    let flushed = run(&mut queue, Bio::flush());
    drop(queue);
    assert_eq!(
        (flushed.result, mirrored.repairs(), mirrored.volume.errors().total()),
        (Ok(0), 0, 0)
    );
    assert_equal(&mirrored.close());
}

/// Changes sectors, and returns what they held before and hold now.
fn change(mirrored: &Mirrored, old: &[u8], seed: u64) -> Vec<u8> {
    let sector = mirrored.volume.geometry().sector().len();
    let mut new = old.to_vec();
    let mut client = mirrored.client(&[]);
    let mut random = Random::new(seed);
    for lba in 0..to_usize(mirrored.sectors()) {
        if random.chance(20) {
            let range = lba * sector..(lba + 1) * sector;
            fill(&mut new[range.clone()], seed + to_u64(lba));
            client.write_at(to_u64(range.start), &new[range]).unwrap();
        }
    }
    new
}

#[test]
fn after_a_crash_each_sector_is_old_or_new_and_the_same_on_all_legs() {
    for (guard, sector) in formats() {
        let mirrored = Mirrored::new(guard, sector, 2);
        let old = mirrored.fill(13);
        let new = change(&mirrored, &old, 14);
        let mut random = Random::new(15);
        let len = sector.len();
        // The device lost what was not flushed, a different part on each leg, and tore some.
        for lba in 0..mirrored.sectors() {
            let (at, stored) = (mirrored.data_at(lba), to_usize(lba) * len);
            for leg in &mirrored.legs {
                match random.below(4) {
                    0 => leg.store(at, &old[stored..stored + len]),
                    1 if lba % 2 == 0 && stored > 0 => {
                        leg.store(at, &old[stored..stored + len / 2]);
                        break;
                    }
                    _ => {}
                }
            }
        }
        let mirrored = Mirrored::open(mirrored.legs, 0);
        // Before anything is read, which would heal it.
        assert_equal(&mirrored.legs);
        let report = mirrored.volume.recovery().unwrap();
        assert_eq!((report.torn.len(), report.unreadable.len()), (0, 0), "{guard} {sector}");
        let found = mirrored.read(&[]);
        for (lba, found) in found.chunks(len).enumerate() {
            let (old, new) = (&old[lba * len..][..len], &new[lba * len..][..len]);
            assert!(found == old || found == new, "{guard} {sector} LBA {lba}");
        }
        assert_eq!(mirrored.volume.errors().total(), 0);
        assert!(is_clean(&mirrored));
        assert_equal(&mirrored.close());
    }
}

#[test]
fn where_no_log_tells_what_a_crash_left_in_flight_the_legs_are_made_equal_all_the_same() {
    for durability in [Durability::Bitmap, Durability::None] {
        let legs = Mirrored::new(GuardKind::Crc64, BlockSize::PAGE, 2).close();
        let mirrored = Mirrored::open_with(legs, 0, durability);
        let old = mirrored.fill(19);
        let new = change(&mirrored, &old, 20);
        let mut random = Random::new(21);
        for lba in 0..mirrored.sectors() {
            let leg = &mirrored.legs[to_usize(random.below(2))];
            let stored = to_usize(lba) * 4096;
            leg.store(mirrored.data_at(lba), &old[stored..stored + 4096]);
        }
        let mirrored = Mirrored::open_with(mirrored.legs, 0, durability);
        assert_equal(&mirrored.legs);
        for (lba, found) in mirrored.read(&[]).chunks(4096).enumerate() {
            let (old, new) = (&old[lba * 4096..][..4096], &new[lba * 4096..][..4096]);
            assert!(found == old || found == new, "{durability} LBA {lba}");
        }
        assert!(is_clean(&mirrored) && mirrored.volume.errors().total() == 0);
        assert_equal(&mirrored.close());
    }
}

#[test]
fn what_was_in_flight_at_a_crash_is_known_to_be_missed_by_a_leg_that_is_lost_with_it() {
    let mirrored = Mirrored::new(GuardKind::Crc64, BlockSize::PAGE, 2);
    let old = mirrored.fill(16);
    let new = change(&mirrored, &old, 17);
    let Mirrored { legs, .. } = mirrored;
    // The second leg has none of it, and is away when the volume is opened.
    let geometry =
        options(GuardKind::Crc64, BlockSize::PAGE, to_u64(old.len())).geometry().unwrap();
    for (lba, bytes) in (0..).zip(old.chunks(4096)) {
        legs[1].store(geometry.data_at(lba * 4096), bytes);
    }
    let open = |_: &std::path::Path| Err("it is away".to_owned());
    let found = assemble(&path(0), legs[0].clone(), None, open).unwrap().unwrap();
    let mirror = Mirror::open(found, false).unwrap();
    let mut device = device_of(&legs, &mirror, &[]);
    let volume = Volume::open(&mut device, &OpenOptions::default()).unwrap();
    drop(device);
    let mirrored = Mirrored { legs, mirror, volume };
    assert_eq!(mirrored.mirror.state(1), LegState::Out);
    mirrored.attach(1);
    assert!(mirrored.read(&[]) == new);
    assert!(is_clean(&mirrored));
    assert_equal(&mirrored.close());
}
