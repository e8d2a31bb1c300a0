//! A process that is killed while it writes: everything that was acknowledged is there, also
//! without a flush, and nothing is a false alarm.
//!
//! The process is this program, once more, which writes to a file in several threads and appends to
//! another what it begins and what has ended. `HOLDFAST_KILLS` says how many rounds there are, and
//! `HOLDFAST_SEED` where they begin.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "how to repeat what failed")]

mod common;

use std::collections::HashMap;
use std::env;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{fill, formats, options};
use holdfast_bio::{Bio, BlockDevice, Op, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::{Access, Backing, FileDevice};
use holdfast_iov::{Memory, Pool};
use holdfast_ring::Ring;
use holdfast_sim::Random;
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::{Client, OpenOptions as VolumeOptions, Queue, Volume};

/// What is known is known of so many bytes at a time.
const UNIT: u64 = 512;
/// The bios of a thread that are in flight.
const DEPTH: usize = 24;
/// The size of the disk: its log is the smallest there is.
const CAPACITY: u64 = 6 << 20;

/// What the process that is to be killed has noted, in three numbers: what, from where, how long.
#[derive(Clone, Copy)]
struct Event {
    /// The number of the write, and the two bits below.
    what: u64,
    offset: u64,
    len: u64,
}

impl Event {
    const SIZE: usize = 24;
    const ENDED: u64 = 1;
    const CLEARS: u64 = 2;

    fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (bytes, number) in bytes.chunks_mut(8).zip([self.what, self.offset, self.len]) {
            bytes.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let number = |at: usize| u64::from_le_bytes(bytes[at..][..8].try_into().unwrap());
        Self { what: number(0), offset: number(8), len: number(16) }
    }
}

/// Returns the bytes that a write puts into a unit.
fn contents(what: u64, offset: u64) -> Vec<u8> {
    let mut bytes = vec![0; to_usize(UNIT)];
    if what & Event::CLEARS == 0 {
        fill(&mut bytes, (what & !Event::ENDED) ^ offset << 20);
    }
    bytes
}

/// One thread of the process that is to be killed.
struct Writer {
    queue: Queue<FileDevice>,
    pool: Pool,
    random: Random,
    notes: File,
    next: u64,
    /// Some bios are flushes, or durable.
    flushes: bool,
    /// One of so many writes may be long, so that the log is full soon.
    long_each: u64,
}

impl Writer {
    fn note(&mut self, event: Event) {
        self.notes.write_all(&event.to_bytes()).unwrap();
    }

    fn submit(&mut self) {
        let (limits, random) = (self.queue.limits(), &mut self.random);
        let kind = random.below(100);
        let op = match kind {
            0..86 => Op::Write,
            86..91 => Op::Discard,
            91..94 => Op::Zero { keep: true, fast: false },
            94..97 => Op::Zero { keep: false, fast: false },
            _ if self.flushes => Op::Flush,
            _ => Op::Discard,
        };
        if op == Op::Flush {
            return self.queue.submit(Bio::flush()).unwrap();
        }
        // Parts of sectors are written, but only whole ones cleared.
        let grain = if op == Op::Write { UNIT } else { limits.sector.bytes() };
        let grains = limits.capacity / grain;
        let offset = match random.below(4) {
            // Some ranges are written again and again.
            0 => random.below(24.min(grains)) * grain,
            _ => random.below(grains) * grain,
        };
        let most = if kind.is_multiple_of(self.long_each) { 256 } else { 12 };
        let want = (1 + random.below(most)) * grain;
        let left = (limits.capacity - offset).min(want);
        let len = limits.to_boundary(offset, left);
        self.next += 1;
        let clears = if op == Op::Write { 0 } else { Event::CLEARS };
        let event = Event { what: self.next << 2 | clears, offset, len };
        let memory = if op == Op::Write {
            let whole = limits.whole_sectors(offset, len);
            let mut buffer = self.pool.take_whole(whole).unwrap();
            let head = to_usize(limits.sector.offset_in(offset));
            let bytes = &mut buffer.as_mut_slice()[head..][..to_usize(len)];
            for (at, unit) in (offset..).step_by(512).zip(bytes.chunks_mut(to_usize(UNIT))) {
                unit.copy_from_slice(&contents(event.what, at));
            }
            Memory::Buffer(buffer)
        } else {
            Memory::None
        };
        let mut bio = Bio::new(op, offset, len, memory).with_user(event.what);
        bio.start = if op == Op::Write { to_usize(limits.sector.offset_in(offset)) } else { 0 };
        bio.fua = self.flushes && self.random.chance(3);
        self.note(event);
        self.queue.submit(bio).unwrap();
    }

    fn run(mut self) -> ! {
        let mut ended = Vec::new();
        let mut in_flight = 0;
        loop {
            while in_flight < DEPTH {
                self.submit();
                in_flight += 1;
            }
            self.queue.wait();
            self.queue.reap(&mut ended);
            for item in ended.drain(..) {
                in_flight -= 1;
                let bio = &item.bio;
                assert_eq!(item.result, Ok(bio.len), "{:?} at {}", bio.op, bio.offset);
                if bio.op != Op::Flush {
                    let what = bio.user | Event::ENDED;
                    self.note(Event { what, offset: bio.offset, len: bio.len });
                }
            }
        }
    }
}

fn open(path: &Path, read_only: bool) -> (Backing, Arc<Volume>) {
    let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
    let backing = Backing::open_in_time(path, access).unwrap();
    let options = VolumeOptions { cache_bytes: 1 << 20, read_only, ..VolumeOptions::default() };
    let ring = Ring::new(64).unwrap().shared();
    let mut device = FileDevice::new(&backing, &ring).unwrap();
    let volume = Volume::open(&mut device, &options).unwrap();
    (backing, volume)
}

/// What the process does that is to be killed. For the others this is no test.
#[test]
fn a_process_writes_until_it_is_killed() {
    let Ok(dir) = env::var("HOLDFAST_KILL_DIR") else { return };
    let number = |name| env::var(name).unwrap().parse::<u64>().unwrap();
    let (seed, threads) = (number("HOLDFAST_KILL_SEED"), number("HOLDFAST_KILL_THREADS"));
    let dir = PathBuf::from(dir);
    let (backing, volume) = open(&dir.join("disk"), false);
    thread::scope(|scope| {
        for index in 0..threads {
            let (backing, volume, dir) = (&backing, &volume, &dir);
            scope.spawn(move || {
                let ring = Ring::new(64).unwrap().shared();
                let device = FileDevice::new(backing, &ring).unwrap();
                let notes = OpenOptions::new().append(true).open(dir.join("notes")).unwrap();
                let writer = Writer {
                    flushes: (seed / 2).is_multiple_of(2),
                    long_each: if (seed / 3).is_multiple_of(2) { 2 } else { 10 },
                    queue: Queue::new(volume, device, || {}).unwrap().with_journal().unwrap(),
                    pool: Pool::new(8 << 20).unwrap(),
                    random: Random::new(seed * 8 + index),
                    notes,
                    next: (seed * 8 + index) << 32,
                };
                writer.run()
            });
        }
    });
}

/// A write of which a unit may have the bytes.
#[derive(Clone, Copy)]
struct Version {
    what: u64,
    began: usize,
    ended: Option<usize>,
}

/// What is known of each unit: the writes whose bytes it may have.
struct Model(Vec<Vec<Version>>);

impl Model {
    fn new() -> Self {
        let zeros = Version { what: Event::CLEARS, began: 0, ended: Some(0) };
        Self(vec![vec![zeros]; to_usize(CAPACITY / UNIT)])
    }

    /// Takes in what was noted before the process was killed.
    fn learn(&mut self, notes: &[u8]) {
        // What ended in an earlier round did so before this one.
        for (number, bytes) in notes.chunks_exact(Event::SIZE).enumerate() {
            let event = Event::from_bytes(bytes);
            let has_ended = event.what & Event::ENDED != 0;
            let what = event.what & !Event::ENDED;
            let first = to_usize(event.offset / UNIT);
            for unit in &mut self.0[first..first + to_usize(event.len / UNIT)] {
                if !has_ended {
                    unit.push(Version { what, began: number + 1, ended: None });
                    continue;
                }
                let version = unit.iter_mut().find(|version| version.what == what).unwrap();
                version.ended = Some(number + 1);
                let began = version.began;
                // Whatever ended before this one began is written over.
                unit.retain(|version| version.ended.is_none_or(|ended| ended > began));
            }
        }
    }

    /// Checks all that the disk reads as, and remembers what it was found to be.
    fn check(&mut self, found: &[u8]) {
        let mut offset = 0;
        for (unit, bytes) in self.0.iter_mut().zip(found.chunks(to_usize(UNIT))) {
            let matches = |version: &&Version| contents(version.what, offset) == bytes;
            let Some(&version) = unit.iter().rev().find(matches) else {
                panic!("the bytes at {offset} are none that may be there");
            };
            *unit = vec![Version { began: 0, ended: Some(0), ..version }];
            offset += UNIT;
        }
    }
}

/// Reads everything, and fails for anything that is corrupt.
fn read_all(path: &Path, read_only: bool, close: bool) -> Vec<u8> {
    let (backing, volume) = open(path, read_only);
    let ring = Ring::new(64).unwrap().shared();
    let device = || FileDevice::new(&backing, &ring).unwrap();
    let mut queue = Queue::new(&volume, device(), || {}).unwrap();
    common::assert_clean(&mut queue);
    let mut client = Client::new(queue, Pool::new(4 << 20).unwrap(), ReadPolicy::Lazy);
    let mut found = vec![0; to_usize(CAPACITY)];
    client.read_at(0, &mut found).unwrap();
    assert_eq!(volume.errors().total(), 0, "a false alarm was counted");
    if close {
        client.flush().unwrap();
        volume.close(&mut device()).unwrap();
    }
    found
}

fn start(dir: &Path, seed: u64, threads: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_process_writes_until_it_is_killed", "--nocapture"])
        .env("HOLDFAST_KILL_DIR", dir)
        .env("HOLDFAST_KILL_SEED", seed.to_string())
        .env("HOLDFAST_KILL_THREADS", threads.to_string())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Lets a process write until it has noted so many events, and kills it.
fn kill(dir: &Path, seed: u64, threads: u64, events: usize) -> Vec<u8> {
    let deadline = Instant::now() + Duration::from_secs(60);
    let path = dir.join("notes");
    File::create(&path).unwrap();
    let mut child = start(dir, seed, threads);
    while fs::metadata(&path).unwrap().len() < to_u64(events * Event::SIZE) {
        assert!(child.try_wait().unwrap().is_none(), "the process ended by itself");
        assert!(Instant::now() < deadline, "the process writes no more");
        thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // What the process had submitted has ended when its file is no longer locked.
    drop(Backing::open_in_time(&dir.join("disk"), Access::ReadOnly).unwrap());
    fs::read(path).unwrap()
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("--sparse=always").args([from, to]).status().unwrap();
    assert!(status.success());
}

struct Case {
    guard: GuardKind,
    sector: BlockSize,
    dir: tempfile::TempDir,
    model: Model,
}

impl Case {
    fn new(guard: GuardKind, sector: BlockSize) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = options(guard, sector, CAPACITY);
        let len = options.geometry().unwrap().device_len();
        let backing = Backing::create(&dir.path().join("disk"), len).unwrap();
        let ring = Ring::new(8).unwrap().shared();
        Volume::create(&mut FileDevice::new(&backing, &ring).unwrap(), &options).unwrap();
        Self { guard, sector, dir, model: Model::new() }
    }

    fn round(&mut self, seed: u64) {
        let mut random = Random::new(seed);
        let threads = 1 + random.below(3);
        // Few, or so many that the log is used several times over.
        let most = if random.chance(50) { 400 } else { 12_000 };
        let events = 1 + to_usize(random.below(most));
        println!(
            "HOLDFAST_SEED={seed} HOLDFAST_KILLS=1: {} in sectors of {}, {threads} threads, {events} events",
            self.guard,
            self.sector.bytes()
        );
        let disk = self.dir.path().join("disk");
        let notes = kill(self.dir.path(), seed, threads, events);
        self.model.learn(&notes);
        let before = self.dir.path().join("before");
        copy(&disk, &before);
        // Looking at it changes nothing, and finds the same as opening it for writing.
        let found = read_all(&disk, true, false);
        self.model.check(&found);
        assert!(fs::read(&disk).unwrap() == fs::read(&before).unwrap(), "read-only, and changed");
        for close in [false, random.chance(50)] {
            assert!(read_all(&disk, false, close) == found, "opened again, and different");
        }
    }
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there_and_nothing_is_a_false_alarm() {
    let number = |name, default| env::var(name).map_or(default, |text| text.parse().unwrap());
    let (rounds, first) = (number("HOLDFAST_KILLS", 18), number("HOLDFAST_SEED", 1));
    let formats: Vec<_> = formats().collect();
    let mut cases = HashMap::new();
    for seed in first..first + rounds {
        let index = to_usize(seed) % formats.len();
        let (guard, sector) = formats[index];
        cases.entry(index).or_insert_with(|| Case::new(guard, sector)).round(seed);
    }
}
