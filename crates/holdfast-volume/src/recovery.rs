//! After a crash: which tuple belongs to the data of each sector that may have been in flight.
//!
//! The tuple log names the sectors, and the tuples that they may have. One is only ever chosen
//! because it matches the data, so a corrupt sector stays what it is. Where nothing durable says
//! what a sector was to be, but only that it was being written, its data are taken as they are.
//! Everything here may be repeated: interrupted half-way, it is done again from the beginning.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::ops::Range;

use holdfast_bio::{BlockDevice, Error, Op};
use holdfast_checksum::generate;
use holdfast_iov::{BUFFER_MAX, Buffer, Pool};
use holdfast_units::{to_u64, to_usize};

use crate::error::VolumeError;
use crate::format::Durability;
use crate::geometry::{Geometry, TUPLE_BLOCK};
use crate::intents::Regions;
use crate::journal::find_batches;
use crate::judge::{Judge, is_zero};
use crate::log::{self, LOG_UNIT, Record};
use crate::raw::{device_error, sync_device, transfer, transfer_leg};
use crate::words::{put_words, words_at};

/// What came of opening a volume that was not closed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// How many records of the tuple log counted.
    pub records: u64,
    /// How many sectors had another tuple than the one that was stored.
    pub settled: u64,
    /// How many sectors were in the data journal and not in their place.
    pub restored: u64,
    /// How many sectors matched no tuple and were taken as they are, since nothing durable says
    /// what they were to be. Only with less than full durability.
    pub adopted: u64,
    /// The sectors that had neither their old nor their new data: torn by the crash, or corrupt. A
    /// read of them fails until they are written or accepted. By address.
    pub torn: Vec<u64>,
    /// The sectors whose data could not be read, or whose tuples could not. By address.
    pub unreadable: Vec<u64>,
}

/// A recovery, a group at a time.
pub(crate) struct Recovery<'r, D> {
    pub(crate) device: &'r mut D,
    pub(crate) geometry: &'r Geometry,
    pub(crate) judge: &'r Judge,
    /// The legs to read from, one after the other: those of a mirror that are there.
    legs: Vec<Option<u8>>,
    pool: Pool,
    /// Nothing may be written: what is settled is kept in memory.
    read_only: bool,
    /// Is told how many groups have been looked at, and of how many.
    progress: &'r mut dyn FnMut(u64, u64),
    pub(crate) report: RecoveryReport,
    /// The tuples of sectors whose stored tuple is not the one that belongs to the data, where it
    /// could not be stored.
    pub(crate) tuples: BTreeMap<u64, [u64; 2]>,
    /// The data of sectors that are in the data journal and could not be stored in their place.
    pub(crate) restored: BTreeMap<u64, Box<[u8]>>,
}

/// What the records of a sector say of it.
enum Verdict {
    /// The stored tuple is right.
    Stored,
    /// This tuple is right, since the write of the sector is known to be durable.
    Known([u64; 2]),
    /// The data decide.
    Doubtful,
}

impl<'r, D: BlockDevice> Recovery<'r, D> {
    /// Sectors between two that are to be read are read with them, up to so many bytes.
    const GAP_MAX: usize = 64 << 10;

    pub(crate) fn new(
        device: &'r mut D,
        geometry: &'r Geometry,
        judge: &'r Judge,
        read_only: bool,
        progress: &'r mut dyn FnMut(u64, u64),
    ) -> Result<Self, VolumeError> {
        let no_memory = |error| device_error("get memory")(Error::from(&error));
        let pool = Pool::new(2 * BUFFER_MAX).map_err(no_memory)?;
        let (report, tuples) = (RecoveryReport::default(), BTreeMap::new());
        let legs = legs_of(device, &pool);
        let restored = BTreeMap::new();
        Ok(Self {
            device,
            geometry,
            judge,
            legs,
            pool,
            read_only,
            progress,
            report,
            tuples,
            restored,
        })
    }

    /// Finds the tuple of each sector that records of `epoch` name, and stores it where it is
    /// another than the stored one. A sector without one is marked as
    /// torn, unless the program that wrote it knew no durability. What the data journal has and is not
    /// in its place is stored there.
    pub(crate) fn settle(
        &mut self,
        epoch: NonZeroU64,
        durability: Option<Durability>,
        journaled: bool,
    ) -> Result<(), VolumeError> {
        let logs = self.read_logs().map_err(device_error("read the tuple log"))?;
        let mut records = find_records(&logs, epoch, self.geometry, journaled);
        let in_group = to_u64(self.geometry.sectors_of_group());
        let key = |record: &Record<'_>| (record.lba / in_group, record.position);
        records.sort_unstable_by_key(|record| (key(record), record.data.is_none()));
        // Each leg of a mirror has all of them, unless it lacks or lost some; and the tuple log and the
        // data journal may have the same.
        records.dedup_by_key(|record| record.position);
        let durable = records.iter().map(|record| record.durable).max();
        let marks_torn = durability.is_some();
        let of_groups = records.chunk_by(|a, b| a.lba / in_group == b.lba / in_group);
        let groups = to_u64(of_groups.clone().count());
        for (done, of_group) in (0..).zip(of_groups) {
            let flushed = |record: &&Record<'_>| Some(record.position) < durable;
            let first_unflushed = of_group.iter().take_while(flushed).count();
            (self.progress)(done, groups);
            self.settle_group(of_group, first_unflushed, marks_torn)?;
        }
        self.report.records = to_u64(records.len());
        self.sync()
    }

    /// Makes what was stored durable.
    fn sync(&mut self) -> Result<(), VolumeError> {
        if self.read_only { Ok(()) } else { sync_device(self.device) }
    }

    /// Returns whether the device is a mirror that may be changed: then its legs are made equal.
    fn equalises(&self) -> bool {
        self.legs[0].is_some() && !self.read_only
    }

    /// Reads the logs of all legs that can be read.
    fn read_logs(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        let mut logs = Vec::new();
        let mut failed = Ok(());
        for leg in self.legs.clone() {
            match self.read_log(leg) {
                Ok(log) => logs.push(log),
                Err(error) => failed = Err(error),
            }
        }
        if logs.is_empty() { failed.map(|()| logs) } else { Ok(logs) }
    }

    fn read_log(&mut self, leg: Option<u8>) -> Result<Vec<u8>, Error> {
        let (offset, len) = self.geometry.log();
        let mut bytes = Vec::with_capacity(to_usize(len));
        while to_u64(bytes.len()) < len {
            let piece = (to_usize(len) - bytes.len()).min(BUFFER_MAX);
            let (at, buffer) = (offset + to_u64(bytes.len()), self.buffer(piece));
            let buffer = transfer_leg(self.device, Op::Read, at, buffer, piece, leg)?;
            bytes.extend_from_slice(&buffer.as_slice()[..piece]);
        }
        Ok(bytes)
    }

    fn buffer(&self, len: usize) -> Buffer {
        self.pool.take_whole(len).expect("two buffers are in use at most")
    }

    /// Finds the tuples of one group, whose records are given in their order; the writes of those
    /// before `first_unflushed` are durable.
    fn settle_group(
        &mut self,
        records: &[Record<'_>],
        first_unflushed: usize,
        marks_torn: bool,
    ) -> Result<(), VolumeError> {
        let group = records[0].lba / to_u64(self.geometry.sectors_of_group());
        let Some(mut block) = self.read_tuples(group) else {
            let named = records.iter().flat_map(|it| it.lba..it.lba + to_u64(it.count));
            // Nothing can be found out of them.
            self.report.unreadable.extend(named.collect::<BTreeSet<_>>());
            return Ok(());
        };
        let (flushed, unflushed) = records.split_at(first_unflushed);
        let first_lba = group * to_u64(self.geometry.sectors_of_group());
        let mut doubtful = vec![false; self.geometry.sectors_of_group()];
        for record in records {
            for lba in record.lba..record.lba + to_u64(record.count) {
                let index = to_usize(lba - first_lba);
                let stored = block.words(index);
                match verdict(lba, flushed, unflushed, stored) {
                    Verdict::Stored => {}
                    Verdict::Known(words) => self.put(&mut block, lba, words),
                    Verdict::Doubtful => doubtful[index] = true,
                }
            }
        }
        let gap = (Self::GAP_MAX / self.geometry.sector().len()).max(1);
        for (first, count) in runs(&doubtful, gap, BUFFER_MAX / self.geometry.sector().len()) {
            let copies = self.read_copies(first_lba + to_u64(first), count);
            for (index, found) in (first..first + count).zip(copies) {
                if doubtful[index] {
                    let lba = first_lba + to_u64(index);
                    let stored = block.words(index);
                    let all = candidates(lba, flushed, unflushed, stored);
                    let chosen = choose(all, |words| self.copy_that_matches(lba, &found, words));
                    let unreadable = found.iter().all(Option::is_none);
                    let words = chosen.map(|(it, _)| it.words);
                    self.choose(&mut block, lba, words, unreadable, marks_torn);
                    match chosen {
                        Some((_, Some(copy))) => self.spread(lba, copy)?,
                        Some((Candidate { data: Some(data), .. }, None)) => {
                            self.restore(lba, data)?;
                        }
                        _ => {}
                    }
                }
            }
        }
        self.store_tuples(group, block)
    }

    /// Stores what the data journal has of a sector in its place.
    fn restore(&mut self, lba: u64, data: &[u8]) -> Result<(), VolumeError> {
        self.report.restored += 1;
        if self.read_only {
            self.restored.insert(lba, data.into());
            return Ok(());
        }
        let at = self.geometry.data_at(lba * self.geometry.sector().bytes());
        let mut buffer = self.buffer(data.len());
        buffer.as_mut_slice()[..data.len()].copy_from_slice(data);
        transfer(self.device, Op::Write, at, buffer, data.len())
            .map(drop)
            .map_err(device_error("store a sector of the data journal"))
    }

    fn choose(
        &mut self,
        block: &mut TupleBlock,
        lba: u64,
        chosen: Option<[u64; 2]>,
        unreadable: bool,
        marks_torn: bool,
    ) {
        if let Some(words) = chosen {
            return self.put(block, lba, words);
        }
        let list = if unreadable { &mut self.report.unreadable } else { &mut self.report.torn };
        list.push(lba);
        if marks_torn {
            let torn = self.judge.torn_words(lba);
            self.set(block, lba, torn);
        }
    }

    /// Makes `words` the tuple of a sector, if they are not.
    fn put(&mut self, block: &mut TupleBlock, lba: u64, words: [u64; 2]) {
        if self.set(block, lba, words) {
            self.report.settled += 1;
        }
    }

    fn set(&mut self, block: &mut TupleBlock, lba: u64, words: [u64; 2]) -> bool {
        let index = to_usize(lba % to_u64(self.geometry.sectors_of_group()));
        let changes = block.words(index) != words;
        if changes {
            block.set_words(index, words);
            if self.read_only {
                self.tuples.insert(lba, words);
            }
        }
        changes
    }

    /// Returns the ranges of the disk, in bytes, that the write-intent log calls dirty.
    pub(crate) fn dirty_ranges(&mut self) -> Result<Vec<Range<u64>>, VolumeError> {
        let regions = Regions::new(self.geometry, self.device.limits().granularity);
        let len = regions.stored_len();
        let mut dirty = Vec::new();
        for leg in self.legs.clone() {
            let buffer = self.buffer(len);
            match transfer_leg(self.device, Op::Read, regions.offset(), buffer, len, leg) {
                Ok(buffer) => dirty.append(&mut regions.dirty(&buffer.as_slice()[..len])),
                // Then nobody knows.
                Err(_) => return Ok(vec![Range { start: 0, end: self.geometry.capacity() }]),
            }
        }
        // The legs of a mirror say the same, unless one lost some.
        dirty.sort_unstable_by_key(|range| (range.start, range.end));
        dirty.dedup();
        Ok(dirty)
    }

    /// Takes the data between two offsets of the disk as they are, where they match no tuple. Both
    /// lie at sectors.
    pub(crate) fn adopt(&mut self, ranges: &[Range<u64>]) -> Result<(), VolumeError> {
        let group_data = self.geometry.group_data();
        let total = ranges.iter().map(|range| group_data.count(range.end - range.start)).sum();
        let mut done = 0;
        for range in ranges {
            let mut offset = range.start;
            while offset < range.end {
                let at = self.geometry.tuples_at(self.geometry.group_of(offset));
                let found = self.device.data_after(at).map_err(device_error("look for data"))?;
                let next = found.map_or(range.end, |at| self.geometry.first_offset_from(at));
                done += group_data.count(next.min(range.end).saturating_sub(offset));
                if next > offset {
                    offset = next;
                    continue;
                }
                let end = (group_data.align_down(offset) + group_data.bytes()).min(range.end);
                (self.progress)(done, total);
                self.adopt_in_group(offset, end)?;
                (offset, done) = (end, done + 1);
            }
        }
        self.sync()
    }

    /// Takes the data between two offsets of one group as they are.
    fn adopt_in_group(&mut self, from: u64, to: u64) -> Result<(), VolumeError> {
        let (sector, group) = (self.geometry.sector(), self.geometry.group_of(from));
        let (mut lba, end) = (sector.count(from), sector.count(to));
        let Some(mut block) = self.read_tuples(group) else {
            self.report.unreadable.extend(lba..end);
            return Ok(());
        };
        while lba < end {
            let count = to_usize(end - lba).min(BUFFER_MAX / sector.len());
            let first = lba;
            lba += to_u64(count);
            for (lba, copies) in (first..lba).zip(self.read_copies(first, count)) {
                let index = to_usize(lba % to_u64(self.geometry.sectors_of_group()));
                let words = block.words(index);
                let Some(any) = copies.iter().position(Option::is_some) else {
                    self.report.unreadable.push(lba);
                    continue;
                };
                let copy = self.copy_that_matches(lba, &copies, words).unwrap_or(any);
                let Some(found) = copies[copy] else { continue };
                // Also one that was torn: it may have been written since.
                if !self.matches(lba, &found, words) {
                    let taken = self.taken_words(lba, &found);
                    self.set(&mut block, lba, taken);
                    self.report.adopted += 1;
                }
                if copies.iter().any(|other| other != &Some(found)) {
                    self.spread(lba, copy)?;
                }
            }
        }
        self.store_tuples(group, block)
    }

    /// Returns the tuple that makes a sector what it is.
    fn taken_words(&self, lba: u64, found: &Content) -> [u64; 2] {
        if found.is_zero { [0, 0] } else { self.judge.words(lba, found.guard) }
    }

    /// Gives each of these sectors that does not match its tuple one that it matches, whatever is
    /// known of it. Returns how many that were.
    pub(crate) fn accept(&mut self, lbas: Range<u64>) -> Result<u64, VolumeError> {
        let in_group = to_u64(self.geometry.sectors_of_group());
        let (mut lba, mut accepted) = (lbas.start, 0);
        while lba < lbas.end {
            let group = lba / in_group;
            let end = ((group + 1) * in_group).min(lbas.end);
            let unreadable = |lba| VolumeError::Unreadable { lba };
            let mut block = self.read_tuples(group).ok_or_else(|| unreadable(lba))?;
            while lba < end {
                let copies = self.read_copies(lba, 1).remove(0);
                let words = block.words(to_usize(lba % in_group));
                if self.copy_that_matches(lba, &copies, words).is_none() {
                    let any = copies.iter().position(Option::is_some);
                    let any = any.ok_or_else(|| unreadable(lba))?;
                    let taken = copies[any].map(|found| self.taken_words(lba, &found));
                    self.set(&mut block, lba, taken.unwrap_or(words));
                    self.spread(lba, any)?;
                    accepted += 1;
                }
                lba += 1;
            }
            self.store_tuples(group, block)?;
        }
        self.sync()?;
        Ok(accepted)
    }

    fn matches(&self, lba: u64, found: &Content, words: [u64; 2]) -> bool {
        self.judge.check(lba, found.guard, words, || found.is_zero).is_ok()
    }

    /// Reads the tuples of a group from all legs. Where they differ, that one counts which the data of
    /// some leg match: a leg whose tuples have rotted must not get the others to have the same. `None`
    /// when none can be read.
    fn read_tuples(&mut self, group: u64) -> Option<TupleBlock> {
        let (at, tuple_words) = (self.geometry.tuples_at(group), self.geometry.tuple_words());
        let mut found: Option<TupleBlock> = None;
        let mut others: Vec<Vec<u8>> = Vec::new();
        for leg in self.legs.clone() {
            let buffer = self.buffer(TUPLE_BLOCK);
            let read = transfer_leg(self.device, Op::Read, at, buffer, TUPLE_BLOCK, leg);
            match (read, &found) {
                (Err(_), _) => {}
                (Ok(buffer), None) => {
                    found = Some(TupleBlock { buffer, tuple_words, changed: false });
                }
                (Ok(buffer), Some(_)) => others.push(buffer.as_slice()[..TUPLE_BLOCK].to_vec()),
            }
        }
        let mut block = found?;
        self.agree(group, &mut block, &others);
        Some(block)
    }

    /// Takes from `others` the tuples that the data match and that the block has not.
    fn agree(&mut self, group: u64, block: &mut TupleBlock, others: &[Vec<u8>]) {
        let (in_group, sector) = (self.geometry.sectors_of_group(), self.geometry.sector());
        let first_lba = group * to_u64(in_group);
        let sectors = to_usize(sector.count(self.geometry.capacity()) - first_lba).min(in_group);
        let tuple_words = block.tuple_words;
        let of_others = |index| others.iter().map(move |other| words_at(other, tuple_words, index));
        let differs = |index| of_others(index).any(|words| words != block.words(index));
        let differing: Vec<bool> = (0..sectors).map(differs).collect();
        for (first, count) in runs(&differing, 0, BUFFER_MAX / sector.len()) {
            let copies = self.read_copies(first_lba + to_u64(first), count);
            for (index, found) in (first..first + count).zip(copies) {
                let lba = first_lba + to_u64(index);
                let mut tuples: Vec<_> = of_others(index).chain([block.words(index)]).collect();
                // A leg that has lost everything looks as if nothing had been written.
                tuples.sort_by_key(|&words| words == [0, 0]);
                let matches = |words: &&[u64; 2]| self.copy_that_matches(lba, &found, **words);
                let right = tuples.iter().find(|words| matches(words).is_some());
                if let Some(&words) = right {
                    self.set(block, lba, words);
                }
            }
        }
    }

    fn store_tuples(&mut self, group: u64, block: TupleBlock) -> Result<(), VolumeError> {
        if (block.changed || self.equalises()) && !self.read_only {
            let at = self.geometry.tuples_at(group);
            transfer(self.device, Op::Write, at, block.buffer, TUPLE_BLOCK)
                .map_err(device_error("store tuples"))?;
        }
        Ok(())
    }

    /// Reads sectors, of one group, from all legs: of each sector, what each leg has, or `None` for
    /// one that cannot be read.
    fn read_copies(&mut self, first_lba: u64, count: usize) -> Vec<Vec<Option<Content>>> {
        let mut copies = vec![Vec::new(); count];
        for leg in self.legs.clone() {
            for (copies, found) in copies.iter_mut().zip(self.read_guards(leg, first_lba, count)) {
                copies.push(found);
            }
        }
        copies
    }

    /// Returns the first leg, by its place among those that are read, whose data match a tuple.
    fn copy_that_matches(
        &self,
        lba: u64,
        copies: &[Option<Content>],
        words: [u64; 2],
    ) -> Option<usize> {
        let matches = |found: &Content| self.matches(lba, found, words);
        copies.iter().position(|found| found.as_ref().is_some_and(matches))
    }

    /// Lets all legs of a mirror have the sector as one has it.
    fn spread(&mut self, lba: u64, copy: usize) -> Result<(), VolumeError> {
        if !self.equalises() {
            return Ok(());
        }
        let sector = self.geometry.sector();
        let at = self.geometry.data_at(lba * sector.bytes());
        let (len, leg) = (sector.len(), self.legs[copy]);
        let buffer = self.buffer(len);
        transfer_leg(self.device, Op::Read, at, buffer, len, leg)
            // To all legs, also those that have it: so it is known of one that is not there.
            .and_then(|buffer| transfer(self.device, Op::Write, at, buffer, len))
            .map(drop)
            .map_err(device_error("store a sector"))
    }

    /// Reads sectors, of one group, from a leg. `None` for one that cannot be read.
    fn read_guards(
        &mut self,
        leg: Option<u8>,
        first_lba: u64,
        count: usize,
    ) -> Vec<Option<Content>> {
        let (sector, kind) = (self.geometry.sector(), self.judge.protection().kind);
        let at = self.geometry.data_at(first_lba * sector.bytes());
        let (len, buffer) = (count * sector.len(), self.buffer(count * sector.len()));
        let Ok(buffer) = transfer_leg(self.device, Op::Read, at, buffer, len, leg) else {
            let halves = [(0, count / 2), (count / 2, count - count / 2)];
            return if count == 1 {
                vec![None]
            } else {
                halves
                    .into_iter()
                    .flat_map(|(from, count)| {
                        self.read_guards(leg, first_lba + to_u64(from), count)
                    })
                    .collect()
            };
        };
        let bytes = &buffer.as_slice()[..len];
        let mut guards = vec![0; count];
        generate(kind, sector.len(), bytes, &mut guards);
        guards
            .into_iter()
            .zip(bytes.chunks(sector.len()))
            .map(|(guard, bytes)| Some(Content { guard, is_zero: is_zero(bytes) }))
            .collect()
    }
}

/// What is known of the data of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Content {
    guard: u64,
    is_zero: bool,
}

/// What a sector may be.
#[derive(Clone, Copy, Debug)]
struct Candidate<'c> {
    words: [u64; 2],
    /// What the data journal has of it.
    data: Option<&'c [u8]>,
    /// Nothing was about to become of it afterwards.
    is_last: bool,
}

/// Returns what a sector is, of `candidates` with the newest first, and the copy that `find` has found to
/// match it; `None` for one that is to be restored from the journal. That is the last, when no copy is newer;
/// one before, when a copy is older than it, so that it never got to its place. When no copy matches
/// anything, what was to be written behind it tore the sector, and nobody knows which.
fn choose<'c>(
    candidates: impl Iterator<Item = Candidate<'c>>,
    find: impl Fn([u64; 2]) -> Option<usize>,
) -> Option<(Candidate<'c>, Option<usize>)> {
    let mut missed = None;
    for candidate in candidates {
        if let Some(copy) = find(candidate.words) {
            return Some(missed.map_or((candidate, Some(copy)), |missed| (missed, None)));
        }
        if candidate.data.is_some() {
            if candidate.is_last {
                return Some((candidate, None));
            }
            missed = missed.or(Some(candidate));
        }
    }
    None
}

/// Returns what sector `lba` may be, the newest first. The writes of `flushed` are
/// durable, so that of them only the last can be the sector's.
fn candidates<'c>(
    lba: u64,
    flushed: &'c [Record<'_>],
    unflushed: &'c [Record<'_>],
    stored: [u64; 2],
) -> impl Iterator<Item = Candidate<'c>> + 'c {
    let later = unflushed.iter().filter(move |record| record.names(lba));
    let base = flushed.iter().rev().find_map(|record| record.new_words(lba));
    // Without old tuples in the records it is the stored one that may be right.
    let has_old = later.clone().next().is_none_or(|record| record.old_words(lba).is_some());
    let before = base.or_else(|| (!has_old).then_some(stored));
    let known = |words| Candidate { words, data: None, is_last: false };
    let last = later.clone().next_back().map(|record| record.position);
    let of_record = move |record: &'c Record<'_>| {
        let (data, is_last) = (record.data_of(lba), Some(record.position) == last);
        let new = record.new_words(lba).map(|words| Candidate { words, data, is_last });
        [new, record.old_words(lba).map(known)]
    };
    later.rev().flat_map(of_record).flatten().chain(before.map(known))
}

fn verdict(
    lba: u64,
    flushed: &[Record<'_>],
    unflushed: &[Record<'_>],
    stored: [u64; 2],
) -> Verdict {
    let known = flushed.iter().rev().find_map(|record| record.new_words(lba));
    let is_doubtful = unflushed.iter().any(|record| record.names(lba));
    match known {
        Some(words) if !is_doubtful && words == stored => Verdict::Stored,
        Some(words) if !is_doubtful => Verdict::Known(words),
        _ if candidates(lba, flushed, unflushed, stored).all(|it| it.words == stored) => {
            Verdict::Stored
        }
        _ => Verdict::Doubtful,
    }
}

/// Returns the legs to read from: of a mirror those that are there.
fn legs_of<D: BlockDevice>(device: &mut D, pool: &Pool) -> Vec<Option<u8>> {
    let legs = device.legs();
    if legs == 1 {
        return vec![None];
    }
    let all = (0..legs).filter_map(|leg| u8::try_from(leg).ok()).map(Some);
    let mut is_there = |leg: &Option<u8>| {
        let buffer = pool.take_whole(TUPLE_BLOCK).expect("no buffer is in use yet");
        let read = transfer_leg(device, Op::Read, 0, buffer, TUPLE_BLOCK, *leg);
        !matches!(read, Err(Error::Unsupported))
    };
    all.filter(|leg| is_there(leg)).collect()
}

/// Returns the records of the last two rounds. The tuples of those before are stored.
fn find_records<'l>(
    logs: &'l [Vec<u8>],
    epoch: NonZeroU64,
    geometry: &Geometry,
    journaled: bool,
) -> Vec<Record<'l>> {
    let mut records = Vec::new();
    let half_len = log::half_len(geometry, journaled);
    let halves = |log: &'l Vec<u8>| log.chunks(half_len).take(2).enumerate();
    for (index, half) in logs.iter().flat_map(halves) {
        let mut place = 0;
        while place < half.len() / LOG_UNIT {
            match Record::parse(half, index, place, epoch, geometry) {
                Some((record, len)) => {
                    records.push(record);
                    place += len / LOG_UNIT;
                }
                None => place += 1,
            }
        }
    }
    if journaled {
        let journals = logs.iter().map(|log| &log[2 * half_len..]);
        let batches = journals.flat_map(|journal| find_batches(journal, epoch, geometry));
        records.extend(batches.flat_map(|batch| batch.records));
    }
    let last = records.iter().map(|record| record.position.round()).max().unwrap_or(0);
    records.retain(|record| record.position.round() + 1 >= last);
    records
}

/// The tuples of a group.
struct TupleBlock {
    buffer: Buffer,
    tuple_words: usize,
    changed: bool,
}

impl TupleBlock {
    fn words(&self, index: usize) -> [u64; 2] {
        words_at(self.buffer.as_slice(), self.tuple_words, index)
    }

    fn set_words(&mut self, index: usize, words: [u64; 2]) {
        put_words(self.buffer.as_mut_slice(), self.tuple_words, index, words);
        self.changed = true;
    }
}

/// Returns the runs of what is true, without gaps of up to `gap` between them, and none longer than
/// `longest`: first and count of each.
fn runs(which: &[bool], gap: usize, longest: usize) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for index in (0..which.len()).filter(|&index| which[index]) {
        match runs.last_mut() {
            Some((first, count))
                if index - (*first + *count) <= gap && index + 1 - *first <= longest =>
            {
                *count = index + 1 - *first;
            }
            _ => runs.push((index, 1)),
        }
    }
    runs
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn runs_cover_what_is_true_in_order_and_are_short_enough(
            which in prop::collection::vec(any::<bool>(), 0..200), gap in 0..9_usize, longest in 1..40_usize,
        ) {
            let runs = runs(&which, gap, longest);
            let mut covered = vec![false; which.len()];
            for &(first, count) in &runs {
                prop_assert!((1..=longest).contains(&count));
                prop_assert!(which[first] && which[first + count - 1]);
                prop_assert!(!covered[first..first + count].contains(&true));
                covered[first..first + count].fill(true);
            }
            prop_assert!(runs.is_sorted());
            prop_assert!(which.iter().zip(covered).all(|(&wanted, covered)| covered || !wanted));
        }
    }
}
