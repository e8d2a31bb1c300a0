//! Random direct writes, truncates, holes and reservations, against a model of the bytes; `xfs_repair` is
//! the judge of everything else.

use holdfast_bio::ReadPolicy;
use holdfast_device::FileDevice;
use holdfast_iomap::{DirectIo, Direction, Flags, Request};
use holdfast_iov::{Memory, Pool};
use holdfast_sim::Random;
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs::{Ino, MountOptions, Xfs, XfsError};

use crate::images::{Image, find};

/// No file becomes longer.
const SIZE_MAX: u64 = 3 << 20;
/// What direct I/O is a multiple of.
const SECTOR: u64 = 512;

/// A file, and what must be in it.
struct Bench {
    xfs: Xfs<FileDevice>,
    direct: DirectIo<FileDevice, Ino, XfsError>,
    pool: Pool,
    ino: Ino,
    model: Vec<u8>,
    random: Random,
    writes: u8,
}

impl Bench {
    fn open(image: &Image, model: Option<Vec<u8>>, seed: u64) -> Self {
        let [metadata, data] = image.queues(true);
        let options = MountOptions { write: true, ..MountOptions::default() };
        let mut xfs = Xfs::mount(metadata, &options).unwrap();
        let ino = find(&mut xfs, "/plain");
        xfs.open(ino).unwrap();
        let pool = Pool::new(8 << 20).unwrap();
        let direct = DirectIo::new(data, pool.clone(), ReadPolicy::Always);
        let size = to_usize(xfs.inode(ino).unwrap().size());
        let mut bench = Self {
            xfs,
            direct,
            pool,
            ino,
            model: vec![0; size],
            random: Random::new(seed),
            writes: 0,
        };
        let found = bench.read(0, SIZE_MAX);
        bench.model = model.unwrap_or_else(|| found.clone());
        bench.compare(0, &found);
        bench
    }

    /// Closes it, and lets `xfs_repair` look at it.
    fn close(mut self, image: &Image) -> Vec<u8> {
        self.xfs.close(self.ino).unwrap();
        self.xfs.unmount().unwrap();
        drop(self.direct);
        image.check();
        self.model
    }

    /// A range, of whole sectors or of any bytes.
    fn range(&mut self, unit: u64) -> (u64, u64) {
        let most = [2, 16, 300][to_usize(self.random.below(3))];
        let offset = self.random.below(SIZE_MAX / unit) * unit;
        let len = (1 + self.random.below(most * SECTOR / unit)) * unit;
        (offset, len.min(SIZE_MAX - offset))
    }

    fn read(&mut self, offset: u64, len: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while to_u64(bytes.len()) < len {
            let at = offset + to_u64(bytes.len());
            let piece = (len - to_u64(bytes.len())).min(1 << 20);
            let memory = Memory::Buffer(self.pool.take_whole(to_usize(piece)).unwrap());
            let request = Request::new(Direction::Read, self.ino, at, piece, memory);
            let finished = self.direct.run(&mut self.xfs, request);
            let moved = to_usize(finished.result.unwrap());
            let Memory::Buffer(buffer) = finished.request.memory else { panic!("no buffer") };
            bytes.extend_from_slice(&buffer.as_slice()[..moved]);
            if to_u64(moved) < piece {
                break;
            }
        }
        bytes
    }

    fn compare(&self, offset: u64, found: &[u8]) {
        let from = to_usize(offset).min(self.model.len());
        let until = (from + found.len()).min(self.model.len());
        let expected = &self.model[from..until];
        assert_eq!(found.len(), expected.len(), "the length at {offset}");
        let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
        assert_eq!(differs, None, "from {offset} on");
    }

    fn write(&mut self) {
        let (offset, len) = self.range(SECTOR);
        self.writes = self.writes.wrapping_add(1).max(1);
        let mut buffer = self.pool.take_whole(to_usize(len)).unwrap();
        buffer.as_mut_slice()[..to_usize(len)].fill(self.writes);
        let flags = Flags { dsync: self.random.chance(5), ..Flags::default() };
        let memory = Memory::Buffer(buffer);
        let request = Request::new(Direction::Write, self.ino, offset, len, memory);
        let finished = self.direct.run(&mut self.xfs, request.with_flags(flags));
        assert_eq!(finished.result.unwrap(), len);
        self.grow(offset + len);
        self.model[to_usize(offset)..to_usize(offset + len)].fill(self.writes);
    }

    fn grow(&mut self, size: u64) {
        let len = self.model.len().max(to_usize(size));
        self.model.resize(len, 0);
    }

    fn clear(&mut self, offset: u64, len: u64) {
        let end = to_usize(offset + len).min(self.model.len());
        let from = to_usize(offset).min(end);
        self.model[from..end].fill(0);
    }

    fn step(&mut self) {
        let (offset, len) = self.range(1);
        match self.random.below(20) {
            0..10 => self.write(),
            10..13 => {
                let (offset, len) = self.range(SECTOR);
                let found = self.read(offset, len);
                self.compare(offset, &found);
            }
            13 => {
                self.xfs.punch(self.ino, offset, len).unwrap();
                self.clear(offset, len);
            }
            14 => {
                self.xfs.unwrite(self.ino, offset, len).unwrap();
                self.clear(offset, len);
            }
            15 => {
                let keep_size = self.random.chance(50);
                self.xfs.zero(self.ino, offset, len, keep_size).unwrap();
                self.clear(offset, len);
                if !keep_size {
                    self.grow(offset + len);
                }
            }
            16..18 => {
                let keep_size = self.random.chance(50);
                self.xfs.allocate(self.ino, offset, len, keep_size).unwrap();
                if !keep_size {
                    self.grow(offset + len);
                }
            }
            18 => {
                self.xfs.truncate(self.ino, offset).unwrap();
                self.model.resize(to_usize(offset), 0);
            }
            _ => self.xfs.sync().unwrap(),
        }
        assert_eq!(self.xfs.inode(self.ino).unwrap().size(), to_u64(self.model.len()));
    }
}

/// Runs so many steps, with a mount in the middle.
fn steps(options: &[&str], count: usize, seed: u64) {
    let image = Image::new(options);
    let mut bench = Bench::open(&image, None, seed);
    (0..count / 2).for_each(|_| bench.step());
    let model = bench.close(&image);
    let mut bench = Bench::open(&image, Some(model), seed + 1);
    (count / 2..count).for_each(|_| bench.step());
    let model = bench.close(&image);
    Bench::open(&image, Some(model), seed + 2).close(&image);
}

#[test]
fn random_steps_with_the_defaults() {
    steps(&[], 600, 1);
}

#[test]
fn random_steps_with_small_blocks_and_owners() {
    steps(&["-b", "size=1024", "-m", "rmapbt=1"], 600, 2);
}

#[test]
fn random_steps_without_anything_new() {
    steps(&["-m", "reflink=0,finobt=0,bigtime=0"], 600, 3);
}
