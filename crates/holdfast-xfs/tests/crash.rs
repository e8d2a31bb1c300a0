//! What is left of files after a power cut, when blocks change hands between them.

use std::ops::RangeInclusive;

use holdfast_bio::{BlockDevice, ReadPolicy};
use holdfast_iomap::{DirectIo, Direction, Request};
use holdfast_iov::{Memory, Pool};
use holdfast_sim::{PowerDevice, Random};
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs::{Ino, MountOptions, Xfs, XfsError};
use holdfast_xfs_format::RawSuperblock;
use zerocopy::FromBytes;

use crate::common::{SECTOR, unpacked};
use crate::images::{Image, SIZE, text};

/// What both files hold in the beginning.
const BYTE: u8 = 0x61;
/// Both files, and what is written to them.
const FILES: [(&[u8], RangeInclusive<u8>); 2] = [(b"/one", 1..=90), (b"/other", 128..=250)];
/// No file becomes longer.
const LONGEST: u64 = 512 << 10;
/// How many times everything is stored.
const SYNCS: usize = 12;

/// A file system whose power is to be cut.
struct Bench {
    power: PowerDevice,
    xfs: Xfs<PowerDevice>,
    direct: DirectIo<PowerDevice, Ino, XfsError>,
    pool: Pool,
    files: [Ino; 2],
    random: Random,
    writes: u8,
}

/// What happened from one sync to the end of the next.
struct Stretch {
    begin: usize,
    sync: usize,
    end: usize,
    /// What the files had at its beginning.
    contents: [Vec<u8>; 2],
    changed: [bool; 2],
}

/// Puts the golden image on a medium.
fn medium() -> PowerDevice {
    let (golden, power) = (unpacked("shared"), PowerDevice::new(SIZE));
    let mut bytes = vec![0; 64 << 10];
    for offset in (0..SIZE).step_by(bytes.len()) {
        golden.load(offset, &mut bytes);
        if bytes.iter().any(|&byte| byte != 0) {
            power.store(offset, &bytes);
        }
    }
    power.settled()
}

fn contents<D: BlockDevice>(xfs: &mut Xfs<D>, file: usize) -> Result<Vec<u8>, XfsError> {
    let inode = xfs.walk(FILES[file].0, true)?;
    let mut bytes = vec![0; to_usize(inode.size())];
    xfs.read(&inode, 0, &mut bytes)?;
    Ok(bytes)
}

impl Bench {
    fn new(seed: u64) -> Self {
        let power = medium();
        let options = MountOptions { write: true, ..MountOptions::default() };
        let mut xfs = Xfs::mount(power.queue(0, seed), &options).unwrap();
        let files = FILES.map(|(path, _)| xfs.walk(path, true).unwrap().ino());
        files.iter().for_each(|&ino| xfs.open(ino).unwrap());
        let pool = Pool::new(8 << 20).unwrap();
        let direct = DirectIo::new(power.queue(0, seed), pool.clone(), ReadPolicy::Always);
        Self { power, xfs, direct, pool, files, random: Random::new(seed), writes: 0 }
    }

    fn contents(&mut self) -> [Vec<u8>; 2] {
        [0, 1].map(|file| contents(&mut self.xfs, file).unwrap())
    }

    fn change(&mut self, file: usize) {
        let ino = self.files[file];
        let block = |random: &mut Random, end: u64| random.below(end) * 4096;
        let offset = block(&mut self.random, 96);
        let len = 4096 + block(&mut self.random, 24);
        match self.random.below(10) {
            0..6 => {
                let tags = FILES[file].1.clone();
                self.writes = self.writes.wrapping_add(1);
                let tag = tags.start() + self.writes % (tags.end() - tags.start());
                let mut buffer = self.pool.take_whole(to_usize(len)).unwrap();
                buffer.as_mut_slice()[..to_usize(len)].fill(tag);
                let memory = Memory::Buffer(buffer);
                let request = Request::new(Direction::Write, ino, offset, len, memory);
                assert_eq!(self.direct.run(&mut self.xfs, request).result, Ok(len));
            }
            6 | 7 => self.xfs.punch(ino, offset, len).unwrap(),
            8 => self.xfs.zero(ino, offset, len, true).unwrap(),
            _ => self.xfs.truncate(ino, offset).unwrap(),
        }
        assert!(self.xfs.inode(ino).unwrap().size() <= LONGEST);
    }

    /// Changes files for a while, and stores everything.
    fn stretch(&mut self) -> Stretch {
        let (begin, contents) = (self.power.position(), self.contents());
        let mut changed = [false; 2];
        let only = to_usize(self.random.below(3));
        for _ in 0..2 + self.random.below(12) {
            let file = if only < 2 { only } else { to_usize(self.random.below(2)) };
            self.change(file);
            changed[file] = true;
        }
        let sync = self.power.position();
        self.xfs.sync().unwrap();
        Stretch { begin, sync, end: self.power.position(), contents, changed }
    }
}

/// Takes the mark away that `xfs_repair` would take away.
fn unmark(device: &PowerDevice) {
    let mut sector = vec![0; SECTOR];
    device.peek(0, &mut sector);
    let (raw, _) = RawSuperblock::mut_from_prefix(&mut sector).unwrap();
    raw.incompatible = (raw.incompatible.get() & !0x10).into();
    RawSuperblock::seal(&mut sector).unwrap();
    device.store(0, &sector);
    device.sync();
}

/// Returns where the first byte is that was never written to this file, and is no zero.
fn foreign(file: usize, bytes: &[u8]) -> Option<usize> {
    bytes.iter().position(|byte| ![0, BYTE].contains(byte) && !FILES[file].1.contains(byte))
}

/// Looks at what a cut has left, as it is.
fn check(left: &PowerDevice, stretch: &Stretch, in_sync: bool, at: &str) {
    unmark(left);
    let mut xfs = Xfs::mount(left.queue(0, 0), &MountOptions::default()).unwrap();
    check_files(&mut xfs, stretch, in_sync, at);
}

/// Looks at what `xfs_repair` makes of what a cut has left.
fn check_repaired(left: &PowerDevice, stretch: &Stretch, in_sync: bool, at: &str) {
    let image = Image::stored(|at, bytes| left.peek(at, bytes));
    let repaired = image.repair(&[]);
    assert!(repaired.status.success(), "{at}: {}", text(&repaired));
    check_files(&mut image.mount(false).unwrap(), stretch, in_sync, at);
}

fn check_files<D: BlockDevice>(xfs: &mut Xfs<D>, stretch: &Stretch, in_sync: bool, at: &str) {
    for file in 0..FILES.len() {
        let found = contents(xfs, file);
        if !stretch.changed[file] {
            assert!(found.unwrap() == stretch.contents[file], "{at}: file {file}");
            continue;
        }
        match found {
            Ok(found) => {
                assert_eq!(foreign(file, &found), None, "{at}: file {file} has other data");
            }
            // Several blocks of metadata are not changed at the same moment.
            Err(error) => assert!(in_sync, "{at}: file {file}: {error}"),
        }
    }
}

/// Cuts the power so many times before each sync, and in it.
fn cut(seed: u64, cuts: u64, check: fn(&PowerDevice, &Stretch, bool, &str)) {
    let mut bench = Bench::new(seed);
    let stretches: Vec<Stretch> = (0..SYNCS).map(|_| bench.stretch()).collect();
    let Bench { power, mut random, .. } = bench;
    let journal = power.journal();
    let mut replay = journal.replay();
    for stretch in &stretches {
        for (in_sync, from, until) in
            [(false, stretch.begin, stretch.sync), (true, stretch.sync, stretch.end)]
        {
            let mut places: Vec<u64> =
                (0..cuts).map(|_| random.below(to_u64(until - from) + 1)).collect();
            places.sort_unstable();
            for place in places {
                replay.advance_to(from + to_usize(place));
                let left = power.after_cut(&replay, place);
                let at = format!("seed {seed}, position {}", replay.position());
                check(&left, stretch, in_sync, &at);
            }
        }
    }
}

#[test]
fn after_a_cut_no_file_has_what_another_wrote_and_what_was_synced_is_there() {
    (1..=5).for_each(|seed| cut(seed, 5, check));
}

#[test]
fn the_same_is_there_when_it_was_repaired() {
    cut(1, 1, check_repaired);
}
