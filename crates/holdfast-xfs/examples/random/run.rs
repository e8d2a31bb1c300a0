//! A mount, and random steps.

use std::ops::Range;

use holdfast_bio::ReadPolicy;
use holdfast_device::FileDevice;
use holdfast_iomap::{DirectIo, Direction, Error, Finished, Flags, Request};
use holdfast_iov::{Memory, Pool};
use holdfast_sim::Random;
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs::{Ino, MountOptions, Timestamp, Xfs, XfsError};

use crate::Outcome;
use crate::subject::{Doubt, Subject, byte};

/// What direct I/O is a multiple of.
const SECTOR: u64 = 512;
/// How many requests are in flight at most.
const DEPTH: u64 = 16;
/// How much is read at once when all is read.
const PIECE: u64 = 1 << 20;
/// The longest a request of many in flight is.
const REQUEST_MAX: u64 = 300 * SECTOR;

type Ended = Finished<Ino, XfsError>;

/// A mount, and the files that are worked on.
pub(crate) struct Run {
    xfs: Xfs<FileDevice>,
    direct: DirectIo<FileDevice, Ino, XfsError>,
    pool: Pool,
    subjects: Vec<Subject>,
    random: Random,
    tag: u8,
    /// How often there was no space.
    pub(crate) refused: u64,
    /// How many extents a file had at most.
    pub(crate) longest: usize,
}

/// A write of many in flight.
struct Write {
    subject: usize,
    range: Range<u64>,
    tag: u8,
}

fn is_full(error: &Error<XfsError>) -> bool {
    matches!(error, Error::FileSystem(XfsError::NoSpace))
}

impl Run {
    pub(crate) fn mount(
        [metadata, data]: [FileDevice; 2],
        subjects: Vec<Subject>,
        seed: u64,
    ) -> Outcome<Self> {
        let options = MountOptions { write: true, ..MountOptions::default() };
        let xfs = Xfs::mount(metadata, &options)?;
        let pool = Pool::new(16 << 20)?;
        let direct = DirectIo::new(data, pool.clone(), ReadPolicy::Always);
        let random = Random::new(seed);
        let mut run = Self { xfs, direct, pool, subjects, random, tag: 0, refused: 0, longest: 0 };
        for subject in &mut run.subjects {
            subject.ino = run.xfs.walk(subject.path().as_bytes(), true)?.ino();
            run.xfs.open(subject.ino)?;
        }
        Ok(run)
    }

    pub(crate) fn unmount(mut self) -> Outcome<Vec<Subject>> {
        for subject in &self.subjects {
            self.xfs.close(subject.ino)?;
        }
        self.xfs.unmount()?;
        Ok(self.subjects)
    }

    /// Leaves the file system after a sync, as a process does that dies.
    pub(crate) fn abandon(mut self) -> Outcome<Vec<Subject>> {
        self.xfs.sync()?;
        Ok(self.subjects)
    }

    /// Compares every byte of every file.
    pub(crate) fn check_all(&mut self) -> Outcome<()> {
        for subject in 0..self.subjects.len() {
            let found = self.read_all(subject)?;
            let asked = self.subjects[subject].longest;
            self.subjects[subject].compare(0, &found, asked)?;
        }
        Ok(())
    }

    fn buffer(&self, len: u64) -> Outcome<Memory> {
        let buffer = self.pool.take_whole(to_usize(len)).ok_or("the pool has no room")?;
        Ok(Memory::Buffer(buffer))
    }

    fn read_all(&mut self, subject: usize) -> Outcome<Vec<u8>> {
        let mut bytes = Vec::new();
        loop {
            let memory = self.buffer(PIECE)?;
            let (ino, at) = (self.subjects[subject].ino, to_u64(bytes.len()));
            let request = Request::new(Direction::Read, ino, at, PIECE, memory);
            let ended = self.direct.run(&mut self.xfs, request);
            let moved = to_usize(ended.result?);
            bytes.extend_from_slice(bytes_of(&ended.request.memory, moved)?);
            if to_u64(moved) < PIECE {
                return Ok(bytes);
            }
        }
    }

    /// Makes so many steps, of which each request is one.
    pub(crate) fn steps(&mut self, count: u64) -> Outcome<()> {
        let mut done = 0;
        while done < count {
            let subject = self.pick();
            let kind = self.random.below(20);
            done += match kind {
                0..8 => self.writes(subject)?,
                8..10 => self.reads(subject)?,
                _ => {
                    self.change(subject, kind)?;
                    1
                }
            };
            let Subject { ino, .. } = self.subjects[subject];
            let inode = self.xfs.inode(ino)?;
            self.longest = self.longest.max(self.xfs.extents(&inode)?.extents().len());
            let (found, expected) = (inode.size(), self.subjects[subject].size());
            if found != expected {
                let path = self.subjects[subject].path();
                return Err(format!("{path}: {found} bytes long, not {expected}").into());
            }
        }
        Ok(())
    }

    fn pick(&mut self) -> usize {
        to_usize(self.random.below(to_u64(self.subjects.len())))
    }

    /// A range of a file, in units of so many bytes.
    fn range(&mut self, subject: usize, unit: u64) -> Range<u64> {
        let longest = self.subjects[subject].longest;
        // Often at the end of the file.
        let around = self.subjects[subject].size().saturating_sub(8 * SECTOR);
        let from = if self.random.chance(15) { around } else { self.random.below(longest) };
        let start = from / unit * unit;
        let most = [2, 16, 300][to_usize(self.random.below(3))] * SECTOR;
        let len = (1 + self.random.below(most / unit)) * unit;
        start..(start + len).min(longest / SECTOR * SECTOR).max(start + unit)
    }

    /// Several writes in flight together, which may overlap, then reads of what they wrote.
    fn writes(&mut self, subject: usize) -> Outcome<u64> {
        let count = 1 + self.random.below(DEPTH);
        let mut writes = Vec::new();
        for _ in 0..count {
            let subject = if self.random.chance(70) { subject } else { self.pick() };
            let range = self.range(subject, SECTOR);
            self.tag = self.tag.wrapping_add(1);
            writes.push(Write { subject, range, tag: self.tag });
        }
        let mut requests = Vec::new();
        for (number, write) in (0..).zip(&writes) {
            let mut memory = self.buffer(write.range.end - write.range.start)?;
            if let Memory::Buffer(buffer) = &mut memory {
                for (target, offset) in buffer.as_mut_slice().iter_mut().zip(write.range.clone()) {
                    *target = byte(write.tag, offset);
                }
            }
            let (ino, range) = (self.subjects[write.subject].ino, &write.range);
            let len = range.end - range.start;
            let flags = Flags { dsync: self.random.chance(3), ..Flags::default() };
            let request = Request::new(Direction::Write, ino, range.start, len, memory);
            requests.push(request.with_flags(flags).with_user(number));
        }
        let ended = self.together(requests);
        let mut failed = Vec::new();
        for item in ended {
            match item.result {
                Ok(moved) if moved == item.request.len => {}
                Ok(moved) => return Err(format!("{moved} of {:?}", item.request).into()),
                Err(error) if is_full(&error) => failed.push(to_usize(item.request.user)),
                Err(error) => return Err(error.into()),
            }
        }
        self.settle(&writes, &failed)?;
        for write in &writes {
            self.check(write.subject, &write.range)?;
        }
        Ok(count)
    }

    /// Says what is in the files after writes of which some found no space.
    fn settle(&mut self, writes: &[Write], failed: &[usize]) -> Outcome<()> {
        self.refused += to_u64(failed.len());
        if failed.is_empty() {
            for write in writes {
                self.subjects[write.subject].write(&write.range, write.tag);
            }
            return Ok(());
        }
        for subject in 0..self.subjects.len() {
            let own = || writes.iter().enumerate().filter(|(_, write)| write.subject == subject);
            for (number, write) in own() {
                if !failed.contains(&number) {
                    self.subjects[subject].write(&write.range, write.tag);
                }
            }
            let doubt = |write: &Write| Doubt { range: write.range.clone(), tag: Some(write.tag) };
            let doubts: Vec<Doubt> = own().map(|(_, write)| doubt(write)).collect();
            if !doubts.is_empty() {
                self.adopt(subject, &doubts)?;
            }
        }
        Ok(())
    }

    /// Takes over what a file has, after checking that it may.
    fn adopt(&mut self, subject: usize, doubts: &[Doubt]) -> Outcome<()> {
        let found = self.read_all(subject)?;
        let least = self.subjects[subject].size();
        self.subjects[subject].adopt(found, least, doubts)
    }

    /// Submits all, and waits for all.
    fn together(&mut self, requests: Vec<Request<Ino>>) -> Vec<Ended> {
        let count = requests.len();
        for request in requests {
            self.direct.submit(&mut self.xfs, request);
        }
        let mut ended = Vec::new();
        while ended.len() < count {
            self.direct.wait();
            self.direct.reap(&mut self.xfs, &mut ended);
        }
        ended
    }

    fn check(&mut self, subject: usize, range: &Range<u64>) -> Outcome<()> {
        let memory = self.buffer(range.end - range.start)?;
        let (ino, len) = (self.subjects[subject].ino, range.end - range.start);
        let request = Request::new(Direction::Read, ino, range.start, len, memory);
        let ended = self.direct.run(&mut self.xfs, request);
        let moved = to_usize(ended.result?);
        let found = bytes_of(&ended.request.memory, moved)?;
        self.subjects[subject].compare(range.start, found, len)
    }

    /// Several reads in flight together.
    fn reads(&mut self, subject: usize) -> Outcome<u64> {
        let count = 1 + self.random.below(DEPTH);
        let mut requests = Vec::new();
        for _ in 0..count {
            let range = self.range(subject, SECTOR);
            let len = (range.end - range.start).min(REQUEST_MAX);
            let (ino, memory) = (self.subjects[subject].ino, self.buffer(len)?);
            requests.push(Request::new(Direction::Read, ino, range.start, len, memory));
        }
        for ended in self.together(requests) {
            let found = bytes_of(&ended.request.memory, to_usize(ended.result?))?;
            self.subjects[subject].compare(ended.request.offset, found, ended.request.len)?;
        }
        Ok(count)
    }

    /// One change of another kind.
    fn change(&mut self, subject: usize, kind: u64) -> Outcome<()> {
        let range = self.range(subject, 1);
        let (ino, offset, len) = (self.subjects[subject].ino, range.start, range.end - range.start);
        let keep_size = self.random.chance(50);
        let mut clears = true;
        let result = match kind {
            10 => {
                let ended = self.direct.run(&mut self.xfs, Request::zero(ino, offset, len));
                match ended.result {
                    Ok(_) => Ok(()),
                    Err(Error::FileSystem(error)) => Err(error),
                    Err(error) => return Err(error.into()),
                }
            }
            11..13 => self.xfs.punch(ino, offset, len),
            13..15 => self.xfs.zero(ino, offset, len, keep_size),
            15..17 => {
                clears = false;
                self.xfs.allocate(ino, offset, len, keep_size)
            }
            17 => {
                // Seldom much, so that files stay large.
                let near = self.subjects[subject].size().saturating_sub(offset % (64 * SECTOR));
                return self.truncate(subject, if keep_size { near } else { near + len % 5000 });
            }
            18 => return Ok(self.xfs.sync()?),
            _ => {
                let time = Timestamp { seconds: 1 << 30, nanoseconds: 5 };
                self.xfs.set_times(ino, Some(time), None)?;
                self.xfs.close(ino)?;
                return Ok(self.xfs.open(ino)?);
            }
        };
        match result {
            Ok(()) => {
                if clears {
                    self.subjects[subject].clear(&range);
                }
                if (13..17).contains(&kind) && !keep_size {
                    self.subjects[subject].grow(range.end);
                }
                self.check(subject, &(offset / SECTOR * SECTOR..range.end.next_multiple_of(SECTOR)))
            }
            Err(XfsError::NoSpace) => {
                self.refused += 1;
                let doubts = if clears { vec![Doubt { range, tag: None }] } else { Vec::new() };
                self.adopt(subject, &doubts)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn truncate(&mut self, subject: usize, near: u64) -> Outcome<()> {
        let is_far = self.random.chance(5);
        let near = near.min(self.subjects[subject].longest);
        let size = if is_far { self.random.below(near + 1) } else { near };
        let old = self.subjects[subject].size();
        match self.xfs.truncate(self.subjects[subject].ino, size) {
            Ok(()) => {
                self.subjects[subject].model.resize(to_usize(size), 0);
                Ok(())
            }
            Err(XfsError::NoSpace) => {
                self.refused += 1;
                let range = old.min(size)..u64::MAX;
                let found = self.read_all(subject)?;
                if ![old, size].contains(&to_u64(found.len())) {
                    return Err(format!("truncated to {}, not {size}", found.len()).into());
                }
                self.subjects[subject].adopt(found, old.min(size), &[Doubt { range, tag: None }])
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn bytes_of(memory: &Memory, len: usize) -> Outcome<&[u8]> {
    match memory {
        Memory::Buffer(buffer) => Ok(&buffer.as_slice()[..len]),
        _ => Err("the buffer did not come back".into()),
    }
}
