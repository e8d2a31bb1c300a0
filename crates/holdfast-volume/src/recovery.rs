//! After the process that had a volume open was killed: which tuple belongs to the data of each
//! sector that the log names.
//!
//! A tuple is only ever chosen because it matches the data, so a corrupt sector stays what it is.
//! Everything here may be repeated: killed half-way, it is done again from the beginning.

use std::collections::BTreeMap;
use std::num::NonZeroU64;

use holdfast_bio::{BlockDevice, Error, Op};
use holdfast_checksum::generate;
use holdfast_iov::{BUFFER_MAX, Buffer, Pool};
use holdfast_units::{to_u64, to_usize};

use crate::error::VolumeError;
use crate::geometry::{Geometry, TUPLE_BLOCK};
use crate::judge::Judge;
use crate::log::{self, LOG_UNIT, Record};
use crate::raw::{device_error, sync_device, transfer};

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Recovered {
    /// The tuples of sectors whose stored tuple is not the one that belongs to the data, where it
    /// could not be stored.
    pub(crate) tuples: BTreeMap<u64, [u64; 2]>,
    /// How many tuples were found that differ from the stored ones.
    settled: u64,
    /// How many sectors match neither their stored tuple nor one in the log, or cannot be read.
    unmatched: u64,
}

/// Finds the tuple of each sector that records of `epoch` name. What differs from what is stored is
/// stored and made durable, or returned when nothing may be changed.
pub(crate) fn recover<D: BlockDevice>(
    device: &mut D,
    geometry: &Geometry,
    judge: &Judge,
    epoch: NonZeroU64,
    read_only: bool,
) -> Result<Recovered, VolumeError> {
    let no_memory = |error| device_error("get memory")(Error::from(&error));
    let pool = Pool::new(2 * BUFFER_MAX).map_err(no_memory)?;
    let bytes = read_log(device, geometry, &pool).map_err(device_error("read the tuple log"))?;
    let mut records = find_records(&bytes, epoch, geometry);
    let sectors_of_group = to_u64(geometry.sectors_of_group());
    records.sort_unstable_by_key(|record| (record.lba / sectors_of_group, record.position));
    let recovered = Recovered::default();
    let mut recovery = Recovery { device, geometry, judge, pool, read_only, recovered };
    for of_group in records.chunk_by(|a, b| a.lba / sectors_of_group == b.lba / sectors_of_group) {
        recovery.settle(of_group)?;
    }
    let Recovered { settled, unmatched, .. } = recovery.recovered;
    if settled > 0 && !read_only {
        sync_device(recovery.device)?;
    }
    let records = records.len();
    tracing::info!(records, settled, unmatched, "tuples were settled from the log");
    Ok(recovery.recovered)
}

fn read_log<D: BlockDevice>(
    device: &mut D,
    geometry: &Geometry,
    pool: &Pool,
) -> Result<Vec<u8>, Error> {
    let (offset, len) = geometry.log();
    let mut bytes = Vec::with_capacity(to_usize(len));
    while to_u64(bytes.len()) < len {
        let piece = (to_usize(len) - bytes.len()).min(BUFFER_MAX);
        let buffer = take(pool, piece);
        let buffer = transfer(device, Op::Read, offset + to_u64(bytes.len()), buffer, piece)?;
        bytes.extend_from_slice(&buffer.as_slice()[..piece]);
    }
    Ok(bytes)
}

fn take(pool: &Pool, len: usize) -> Buffer {
    pool.take_whole(len).expect("two buffers are in use at most")
}

/// Returns the records of the last two rounds. The tuples of those before are stored.
fn find_records<'l>(bytes: &'l [u8], epoch: NonZeroU64, geometry: &Geometry) -> Vec<Record<'l>> {
    let mut records = Vec::new();
    for (index, half) in bytes.chunks(log::half_len(geometry)).enumerate() {
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
    let last = records.iter().map(|record| record.position.round()).max().unwrap_or(0);
    records.retain(|record| record.position.round() + 1 >= last);
    records
}

/// A recovery, a group at a time.
struct Recovery<'r, D> {
    device: &'r mut D,
    geometry: &'r Geometry,
    judge: &'r Judge,
    pool: Pool,
    read_only: bool,
    recovered: Recovered,
}

impl<D: BlockDevice> Recovery<'_, D> {
    /// Sectors between two that are to be read are read with them, up to so many bytes.
    const GAP_MAX: usize = 64 << 10;

    /// Finds the tuples of one group, whose records are given in their order.
    fn settle(&mut self, records: &[Record<'_>]) -> Result<(), VolumeError> {
        let sector = self.geometry.sector();
        let group = self.geometry.group_of(records[0].lba * sector.bytes());
        let first_lba = group * to_u64(self.geometry.sectors_of_group());
        let at = self.geometry.tuples_at(group);
        let block = take(&self.pool, TUPLE_BLOCK);
        let Ok(mut block) = transfer(self.device, Op::Read, at, block, TUPLE_BLOCK) else {
            // Whoever reads the sectors is told.
            self.recovered.unmatched +=
                records.iter().map(|record| to_u64(record.count)).sum::<u64>();
            return Ok(());
        };
        let stored = |block: &Buffer, index| words_at(block, self.geometry.tuple_words(), index);
        let mut doubtful = vec![false; self.geometry.sectors_of_group()];
        for record in records {
            for lba in record.lba..record.lba + to_u64(record.count) {
                let index = to_usize(lba - first_lba);
                doubtful[index] |= record.words(lba) != Some(stored(&block, index));
            }
        }
        let mut changed = false;
        let gap = (Self::GAP_MAX / sector.len()).max(1);
        for (first, count) in runs(&doubtful, gap, BUFFER_MAX / sector.len()) {
            let guards = self.read_guards(first_lba + to_u64(first), count);
            for (index, found) in (first..first + count).zip(guards) {
                if !doubtful[index] {
                    continue;
                }
                let (lba, old) = (first_lba + to_u64(index), stored(&block, index));
                match found.and_then(|found| self.choose(lba, found, records, old)) {
                    None => self.recovered.unmatched += 1,
                    Some(words) if words == old => {}
                    Some(words) => {
                        self.recovered.settled += 1;
                        if self.read_only {
                            self.recovered.tuples.insert(lba, words);
                        }
                        put_words(&mut block, self.geometry.tuple_words(), index, words);
                        changed = true;
                    }
                }
            }
        }
        if changed && !self.read_only {
            transfer(self.device, Op::Write, at, block, TUPLE_BLOCK)
                .map_err(device_error("store tuples from the log"))?;
        }
        Ok(())
    }

    /// Returns the newest tuple that the data match, if there is one.
    fn choose(
        &self,
        lba: u64,
        (guard, is_zero): (u64, bool),
        records: &[Record<'_>],
        stored: [u64; 2],
    ) -> Option<[u64; 2]> {
        let logged = records.iter().rev().filter_map(|record| record.words(lba));
        logged
            .chain([stored])
            .find(|&words| self.judge.check(lba, guard, words, || is_zero).is_ok())
    }

    /// Reads sectors, and returns of each the guard and whether it is all zeros. `None` for one
    /// that cannot be read.
    fn read_guards(&mut self, first_lba: u64, count: usize) -> Vec<Option<(u64, bool)>> {
        let (sector, kind) = (self.geometry.sector(), self.judge.protection().kind);
        let at = self.geometry.data_at(first_lba * sector.bytes());
        let len = count * sector.len();
        let buffer = take(&self.pool, len);
        let Ok(buffer) = transfer(self.device, Op::Read, at, buffer, len) else {
            let halves = [(0, count / 2), (count / 2, count - count / 2)];
            return if count == 1 {
                vec![None]
            } else {
                halves
                    .into_iter()
                    .flat_map(|(from, count)| self.read_guards(first_lba + to_u64(from), count))
                    .collect()
            };
        };
        let bytes = &buffer.as_slice()[..len];
        let mut guards = vec![0; count];
        generate(kind, sector.len(), bytes, &mut guards);
        let is_zero = |bytes: &[u8]| bytes.iter().all(|&byte| byte == 0);
        guards
            .into_iter()
            .zip(bytes.chunks(sector.len()))
            .map(|(guard, bytes)| Some((guard, is_zero(bytes))))
            .collect()
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

fn words_at(block: &Buffer, tuple_words: usize, index: usize) -> [u64; 2] {
    let mut words = [0; 2];
    let bytes = &block.as_slice()[index * tuple_words * 8..][..tuple_words * 8];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_be_bytes(*bytes);
    }
    words
}

fn put_words(block: &mut Buffer, tuple_words: usize, index: usize, words: [u64; 2]) {
    let bytes = &mut block.as_mut_slice()[index * tuple_words * 8..][..tuple_words * 8];
    for (bytes, word) in bytes.as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_be_bytes();
    }
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
