//! A volume against a plain array: any mix of overlapping requests, on several queues, with devices
//! that move less than they are asked to, in any order.
//!
//! Requests in flight at the same time may take effect in any order, so the model keeps, for each
//! unit of 512 bytes, all writes with the times at which they began and ended. A read may return
//! what a write stored that began before the read ended, unless another write lies wholly between
//! the two.

use std::collections::HashMap;

use holdfast_bio::{Bio, BlockDevice, Ended, Op};
use holdfast_iov::Memory;
use holdfast_sim::{Faults, Random};
use holdfast_units::{BlockSize, to_usize};
use holdfast_volume::{Geometry, Scrub};

use crate::common::{self, Disk, FaultyQueue, formats};

const UNIT: u64 = 512;

/// A write to one unit.
#[derive(Clone, Copy, Debug)]
struct Store {
    user: u64,
    value: u8,
    began: u64,
    ended: u64,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    op: Op,
    first: u64,
    units: u64,
    began: u64,
}

/// The array, as the writes to each of its units.
struct Model {
    stores: Vec<Vec<Store>>,
    flights: HashMap<u64, Flight>,
    now: u64,
}

impl Model {
    fn new(units: u64) -> Self {
        let first = Store { user: u64::MAX, value: 0, began: 0, ended: 0 };
        let stores = vec![vec![first]; to_usize(units)];
        Self { stores, flights: HashMap::new(), now: 0 }
    }

    fn begin(&mut self, bio: &Bio, value: u8) {
        self.now += 1;
        let (first, units) = (bio.offset / UNIT, bio.len / UNIT);
        let flight = Flight { op: bio.op, first, units, began: self.now };
        self.flights.insert(bio.user, flight);
        if bio.op.is_write() {
            let store = Store { user: bio.user, value, began: self.now, ended: u64::MAX };
            for stores in &mut self.stores[to_usize(first)..to_usize(first + units)] {
                stores.push(store);
            }
        }
    }

    fn end(&mut self, ended: &Ended) {
        self.now += 1;
        let flight = self.flights.remove(&ended.bio.user).unwrap();
        assert_eq!(ended.result, Ok(ended.bio.len), "{flight:?}");
        for index in 0..to_usize(flight.units) {
            let stores = &mut self.stores[to_usize(flight.first) + index];
            if flight.op == Op::Read {
                let at = ended.bio.start + index * to_usize(UNIT);
                let bytes = &ended.bio.memory.buffer().unwrap().as_slice()[at..][..to_usize(UNIT)];
                let value = bytes[0];
                assert!(bytes.iter().all(|&byte| byte == value), "a unit is torn");
                let found = may_be_read(stores, &flight, value);
                assert!(found, "{value} in unit {index} of {flight:?}: {stores:?}");
            } else {
                let store = stores.iter_mut().find(|store| store.user == ended.bio.user);
                store.unwrap().ended = self.now;
            }
        }
    }
}

/// Returns whether a read may have found `value`.
fn may_be_read(stores: &[Store], read: &Flight, value: u8) -> bool {
    stores.iter().filter(|store| store.value == value).any(|store| {
        !stores.iter().any(|other| other.began > store.ended && other.ended < read.began)
    })
}

/// Returns a random bio for a volume of `capacity` bytes.
fn random_bio(random: &mut Random, disk: &Disk, capacity: u64, user: u64) -> (Bio, u8) {
    let geometry = disk.volume.geometry();
    let sector = geometry.sector();
    let value = u8::try_from(1 + random.below(255)).unwrap();
    // Few places, so that requests overlap, in more groups than a set of the cache has ways.
    let group = random.below(geometry.groups()).min(random.below(geometry.groups()));
    let offset = group * geometry.group_data().bytes() + random.below(48) * UNIT;
    let op = match random.below(10) {
        0..4 => Op::Read,
        4..8 => Op::Write,
        8 => Op::Zero { keep: false, fast: false },
        _ => Op::Discard,
    };
    let len = (1 + random.below(64)) * UNIT;
    let (offset, len) = match op {
        Op::Read | Op::Write => (offset, len),
        _ => (sector.align_down(offset), sector.align_up(len).unwrap()),
    };
    let limits = disk.queue().limits();
    let len = limits.first_chunk(offset, len.min(capacity - offset), 1 << 20);
    let memory = match op {
        Op::Read | Op::Write => {
            let mut buffer = disk.pool.take_whole(limits.whole_sectors(offset, len)).unwrap();
            buffer.as_mut_slice().fill(value);
            Memory::Buffer(buffer)
        }
        _ => Memory::None,
    };
    let start = if memory.is_empty() { 0 } else { to_usize(sector.offset_in(offset)) };
    let mut bio = Bio::new(op, offset, len, memory).with_start(start).with_user(user);
    bio.fua = op.is_write() && random.chance(5);
    let value = if op == Op::Write { value } else { 0 };
    (bio, value)
}

fn drive(disk: &Disk, queues: &mut [FaultyQueue], random: &mut Random, steps: u64) {
    let capacity = disk.volume.geometry().capacity();
    let mut model = Model::new(capacity / UNIT);
    let mut ended = Vec::new();
    for user in 0..steps {
        let (bio, value) = random_bio(random, disk, capacity, user);
        model.begin(&bio, value);
        let which = to_usize(random.below(queues.len() as u64));
        queues[which].submit(bio).unwrap();
        while model.flights.len() > 24 || random.chance(30) {
            turn(queues, &mut model, &mut ended);
            if model.flights.is_empty() {
                break;
            }
        }
    }
    // Also what the journal does by itself: a queue that is dropped may wait for another's flush.
    while !model.flights.is_empty() || queues.iter().any(|queue| queue.in_flight() > 0) {
        turn(queues, &mut model, &mut ended);
    }
}

fn turn(queues: &mut [FaultyQueue], model: &mut Model, ended: &mut Vec<Ended>) {
    for queue in queues {
        queue.reap(ended);
        for item in ended.drain(..) {
            model.end(&item);
        }
    }
}

fn check(guard: holdfast_checksum::GuardKind, sector: BlockSize, seed: u64) {
    let random = &mut Random::new(seed);
    // One set of eight ways and three groups in use, or plenty.
    let cache_bytes = if seed.is_multiple_of(2) { 1 } else { 1 << 20 };
    let group = Geometry::new(4096, sector, guard).unwrap().group_data().bytes();
    let disk = Disk::new(guard, sector, 20 * group + (32 << 10), cache_bytes);
    let faults = Faults {
        short_percent: 30,
        reorder: true,
        full_percent: 10,
        plain: seed.is_multiple_of(3),
        ..Faults::default()
    };
    let count = 1 + seed % 3;
    let mut queues: Vec<_> = (0..count)
        .map(|index| {
            let queue = disk.faulty_queue(faults.clone(), seed + index);
            if (seed + index).is_multiple_of(4) { queue } else { queue.with_journal().unwrap() }
        })
        .collect();
    drive(&disk, &mut queues, random, 400);
    assert_eq!(disk.volume.errors().total(), 0);

    // Everything is where the tuples say, before and after it has been stored.
    drop(queues);
    let mut queue = disk.queue();
    common::run(&mut queue, Bio::flush());
    drop(queue);
    let reopened = Disk::open(disk.device.clone(), 1 << 20);
    let mut queue = reopened.queue();
    let mut scrub = Scrub::new(&mut queue, 10).unwrap();
    while scrub.step().unwrap().is_some() {}
    let report = scrub.finish();
    assert_eq!((report.corrupt, report.mismatches, report.unreadable), (0, vec![], vec![]));
}

#[test]
fn overlapping_requests_of_every_kind_equal_an_array() {
    // Set by whoever wants another run than the last one's.
    let first: u64 = std::env::var("HOLDFAST_SEED").map_or(1, |seed| seed.parse().unwrap());
    let seeds: u64 = std::env::var("HOLDFAST_SEEDS").map_or(40, |seeds| seeds.parse().unwrap());
    for (guard, sector) in formats() {
        for seed in first..first + seeds {
            println!("{guard} {sector} HOLDFAST_SEED={seed} HOLDFAST_SEEDS=1");
            check(guard, sector, seed);
        }
    }
}
