//! What a volume holds after a cut, sector by sector, and whether it may.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Error, Op, Tag};
use holdfast_checksum::checksum;
use holdfast_iov::{Memory, Pool};
use holdfast_sim::PowerDevice;
use holdfast_units::to_usize;
use holdfast_volume::{Queue, Volume};

use crate::alarm::Wrong;
use crate::content::{Found, UNIT, fill};
use crate::flip::{Duty, Flip};
use crate::model::View;
use crate::plan::Plan;
use crate::report::Counts;
use crate::rig::{Device, Rig};
use crate::run::{Run, no_memory, open};

/// The most that is read at a time.
const PIECE: usize = 256 << 10;

/// When a run was cut.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cut {
    /// Where in the journal of the run.
    pub(crate) position: usize,
    pub(crate) view: View,
    /// A flush has lied, and what it was to make durable may be gone.
    pub(crate) is_doubtful: bool,
}

/// A device after a cut.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) device: PowerDevice,
    pub(crate) cut: Cut,
    /// How often the machine was booted.
    pub(crate) boot: u8,
    pub(crate) flips: Vec<Flip>,
}

/// The volume of an image.
#[derive(Debug)]
pub(crate) struct Opened {
    volume: Arc<Volume>,
    rig: Rig,
}

impl Opened {
    fn new(image: &Image, plan: &Plan, boot: u8) -> Result<Self, Wrong> {
        let rig = Rig::open(&image.device, plan)?;
        let volume = open(&mut rig.good_queue()?, plan, boot)?;
        Ok(Self { volume, rig })
    }

    fn queue(&self) -> Result<Queue<Device>, Wrong> {
        Queue::new(&self.volume, self.rig.good_queue()?, || {}).map_err(no_memory)
    }

    /// Returns where the data at an offset of the volume are on each leg, in bytes.
    fn data_at(&self, offset: u64) -> u64 {
        self.volume.geometry().data_at(offset)
    }
}

/// What was read.
#[derive(Debug)]
pub(crate) struct Seen {
    units: Vec<Found>,
    /// The sectors that cannot be read.
    pub(crate) failed: BTreeMap<u64, Error>,
}

/// Judges images of one run.
#[derive(Debug)]
pub(crate) struct Judge<'r> {
    pub(crate) plan: &'r Plan,
    pub(crate) run: &'r Run,
    pool: Pool,
    pub(crate) counts: Counts,
}

impl<'r> Judge<'r> {
    pub(crate) fn new(plan: &'r Plan, run: &'r Run) -> Result<Self, Wrong> {
        let pool = Pool::new(2 * PIECE).map_err(no_memory)?;
        Ok(Self { plan, run, pool, counts: Counts::default() })
    }

    /// Returns the units of a sector.
    pub(crate) fn units_of(&self, lba: u64) -> Range<usize> {
        let of_sector = self.plan.sector.len() / UNIT;
        to_usize(lba) * of_sector..(to_usize(lba) + 1) * of_sector
    }

    fn sectors(&self) -> u64 {
        self.plan.sector.count(self.plan.capacity)
    }

    /// Opens the volume of an image, reads all of it, and judges it.
    pub(crate) fn judge(&mut self, image: &Image) -> Result<(Opened, Seen), Wrong> {
        let opened = Opened::new(image, self.plan, image.boot)?;
        let volume = &opened.volume;
        self.counts.restored += volume.recovery().map_or(0, |report| report.restored);
        let (counted, damaged) = (volume.errors().total(), self.counts.damaged);
        let seen = self.look(&opened)?;
        for lba in 0..self.sectors() {
            match image.flips.iter().find(|flip| flip.lba == lba) {
                Some(flip) => self.judge_flip(image, flip, &seen)?,
                None => self.judge_sector(image, &opened, lba, &seen)?,
            }
        }
        self.counts.sectors += self.sectors();
        // One that a failed write has damaged is counted as any other that is corrupt.
        let found =
            (volume.errors().total() + damaged - counted).saturating_sub(self.counts.damaged);
        if found > 0 && image.flips.is_empty() && !image.cut.is_doubtful {
            return Err(Wrong::Counted { found, expected: 0 });
        }
        if image.flips.is_empty() && !image.cut.is_doubtful {
            self.compare_legs(&opened, &seen)?;
        }
        Ok((opened, seen))
    }

    /// Reads all sectors, in large pieces, and those of a piece that fails one by one.
    pub(crate) fn look(&self, opened: &Opened) -> Result<Seen, Wrong> {
        let mut queue = opened.queue()?;
        let mut seen = Seen { units: Vec::new(), failed: BTreeMap::new() };
        let limits = queue.limits();
        let mut offset = 0;
        while offset < self.plan.capacity {
            let len = limits.first_chunk(offset, self.plan.capacity - offset, PIECE);
            if self.read(&mut queue, offset, len, true, &mut seen).is_err() {
                for at in (offset..offset + len).step_by(self.plan.sector.len()) {
                    let sector = self.plan.sector.bytes();
                    if let Err(error) = self.read(&mut queue, at, sector, false, &mut seen) {
                        let zeros = seen.units.len() + self.plan.sector.len() / UNIT;
                        seen.units.resize(zeros, Found::Zeros);
                        seen.failed.insert(self.plan.sector.count(at), error);
                    }
                }
            }
            offset += len;
        }
        Ok(seen)
    }

    fn read(
        &self,
        queue: &mut Queue<Device>,
        offset: u64,
        len: u64,
        tentative: bool,
        seen: &mut Seen,
    ) -> Result<(), Error> {
        let buffer = self.pool.take_whole(to_usize(len)).expect("one is in use at a time");
        let mut bio = Bio::new(Op::Read, offset, len, Memory::Buffer(buffer));
        bio.tentative = tentative;
        let ended = queue.run(bio);
        ended.result?;
        let buffer = ended.bio.memory.buffer().expect("a bio comes back with its memory");
        let units = buffer.as_slice()[..to_usize(len)].chunks(UNIT).zip(to_usize(offset) / UNIT..);
        seen.units.extend(units.map(|(bytes, unit)| Found::of(bytes, unit, false)));
        Ok(())
    }

    fn is_allowed(&self, view: View, lba: u64, found: &[Found]) -> bool {
        let (model, units) = (&self.run.model, self.units_of(lba));
        if self.plan.adopts() {
            // Each unit is known of, but not which of them belong together.
            return units.zip(found).all(|(unit, found)| model.allows(unit, &[*found], view));
        }
        model.allows(units.start, found, view)
    }

    fn judge_sector(
        &mut self,
        image: &Image,
        opened: &Opened,
        lba: u64,
        seen: &Seen,
    ) -> Result<(), Wrong> {
        if let Some(&error) = seen.failed.get(&lba) {
            return self.judge_failure(image, opened, lba, error);
        }
        let found = &seen.units[self.units_of(lba)];
        if self.is_allowed(image.cut.view, lba, found) {
            let position = image.cut.position;
            let promised = View::Cut { position, durable: position };
            if image.cut.is_doubtful && !self.is_allowed(promised, lba, found) {
                self.counts.silent += 1;
            }
            return Ok(());
        }
        if self.has_guard_by_chance(image, opened, lba) {
            self.counts.chance += 1;
            return Ok(());
        }
        let allowed = self.run.model.history(self.units_of(lba), image.cut.view);
        Err(Wrong::Contents { lba, found: text(found), allowed })
    }

    /// Judges that a sector cannot be read: only one that is really torn may be so, which a sector of
    /// 512 bytes never is.
    fn judge_failure(
        &mut self,
        image: &Image,
        opened: &Opened,
        lba: u64,
        error: Error,
    ) -> Result<(), Wrong> {
        let units = self.units_of(lba);
        if image.cut.is_doubtful && self.is_in_session(units.clone(), image.cut.position) {
            self.counts.lost += 1;
            return Ok(());
        }
        if self.run.model.is_damaged(units.clone(), image.cut.view) {
            self.counts.damaged += 1;
            return Ok(());
        }
        let is_whole = |leg: &usize| {
            let (stored, found) = self.stored(opened, *leg, lba);
            self.is_allowed(image.cut.view, lba, &found)
                && self.versions(image, opened, *leg, lba).contains(&stored)
        };
        let legs = opened.rig.good_legs();
        let is_called_torn =
            matches!(error, Error::Mismatch(mismatch) if mismatch.tag == Tag::Torn);
        if is_called_torn && !legs.iter().any(is_whole) {
            self.counts.torn += 1;
            return Ok(());
        }
        let stored = legs.iter().map(|&leg| text(&self.stored(opened, leg, lba).1));
        let stored = stored.collect::<Vec<_>>().join(" / ");
        let allowed = self.run.model.history(units, image.cut.view);
        Err(Wrong::FalseAlarm { lba, error, stored, allowed })
    }

    /// Returns the bytes of a sector that a leg has stored, and what they are.
    fn stored(&self, opened: &Opened, leg: usize, lba: u64) -> (Vec<u8>, Vec<Found>) {
        let sector = self.plan.sector;
        let mut stored = vec![0; sector.len()];
        opened.rig.disk(leg).peek(opened.data_at(lba * sector.bytes()), &mut stored);
        let units = stored.chunks(UNIT).zip(self.units_of(lba));
        let found = units.map(|(bytes, unit)| Found::of(bytes, unit, false)).collect();
        (stored, found)
    }

    /// Returns all that the volume was about to make of a sector on a leg.
    fn versions(&self, image: &Image, opened: &Opened, leg: usize, lba: u64) -> Vec<Vec<u8>> {
        let sector = self.plan.sector.bytes();
        let at = opened.rig.start_of(leg) + opened.data_at(lba * sector);
        self.run.journal.versions(at, sector, image.cut.position)
    }

    /// Returns whether a sector is torn and has the guard of what it was to be, as one of 65,536 has
    /// with the shortest guard. What was whole once is not torn.
    fn has_guard_by_chance(&self, image: &Image, opened: &Opened, lba: u64) -> bool {
        let kind = self.plan.guard;
        if kind.bits() != 16 || self.plan.adopts() {
            return false;
        }
        opened.rig.good_legs().into_iter().any(|leg| {
            let stored = self.stored(opened, leg, lba).0;
            let versions = self.versions(image, opened, leg, lba);
            let guard = checksum(kind, &stored);
            !versions.contains(&stored)
                && versions.iter().any(|version| checksum(kind, version) == guard)
        })
    }

    /// Returns whether something was written to these units that the log may name.
    pub(crate) fn is_in_session(&self, units: Range<usize>, position: usize) -> bool {
        let ready = self.run.ready.iter().rev().find(|&&ready| ready <= position);
        let from = ready.copied().unwrap_or(0);
        let view = View::Cut { position, durable: 0 };
        let mut writes = self.run.model.writes_of(units, view).skip(1);
        writes.any(|write| write.begun.position >= from)
    }

    fn judge_flip(&mut self, image: &Image, flip: &Flip, seen: &Seen) -> Result<(), Wrong> {
        self.counts.injected += 1;
        let (lba, place) = (flip.lba, flip.place.name());
        if let Some(&error) = seen.failed.get(&lba) {
            if flip.duty == Duty::Mend {
                return Err(Wrong::NotHealed { lba, place, error });
            }
            self.counts.found += 1;
            return Ok(());
        }
        let found = &seen.units[self.units_of(lba)];
        match flip.duty {
            Duty::Find => {}
            Duty::FindOrMend | Duty::Mend if self.is_allowed(image.cut.view, lba, found) => {
                self.counts.found += 1;
                return Ok(());
            }
            Duty::FindOrMend | Duty::Mend => {}
            Duty::Nothing => {
                self.counts.excused += 1;
                return Ok(());
            }
        }
        Err(Wrong::Missed { lba, place, found: text(found) })
    }

    /// Uses a volume further after it was judged: writes, closes, opens and scrubs it. Nothing changes
    /// but what is written, and what was corrupt and is written is no longer.
    pub(crate) fn go_on(
        &self,
        image: &Image,
        opened: &Opened,
        before: Seen,
        mut lbas: Vec<u64>,
    ) -> Result<(), Wrong> {
        let Seen { mut units, mut failed } = before;
        lbas.extend(failed.keys().next());
        let sector = self.plan.sector;
        let mut queue = opened.queue()?;
        for (lba, number) in lbas.into_iter().zip(self.run.model.next()..) {
            let range = self.units_of(lba);
            let mut buffer = self.pool.take_whole(sector.len()).expect("one is in use at a time");
            fill(&mut buffer.as_mut_slice()[..sector.len()], number, range.start);
            let offset = lba * sector.bytes();
            let bio = Bio::new(Op::Write, offset, sector.bytes(), Memory::Buffer(buffer));
            let failed_to = |error| Wrong::Failed { what: format!("a write of LBA {lba}"), error };
            queue.run(bio).result.map_err(failed_to)?;
            failed.remove(&lba);
            units[range].fill(Found::Write(number));
        }
        let flush = queue.run(Bio::flush()).result;
        flush.map_err(|error| Wrong::Failed { what: "a flush".to_owned(), error })?;
        queue.drain();
        drop(queue);
        opened.volume.close(&mut opened.rig.good_queue()?).map_err(Wrong::NotClosed)?;
        opened.rig.close()?;
        let again = Opened::new(image, self.plan, image.boot + 1)?;
        if again.volume.recovery().is_some() {
            return Err(Wrong::NotClean);
        }
        let after = self.look(&again)?;
        self.compare(&Seen { units, failed }, &after)
    }

    /// Compares what the legs of a mirror have stored of all sectors that can be read.
    fn compare_legs(&self, opened: &Opened, seen: &Seen) -> Result<(), Wrong> {
        let (sector, limits) = (self.plan.sector, opened.queue()?.limits());
        for pair in opened.rig.good_legs().windows(2) {
            for (offset, len) in limits.chunks(0, self.plan.capacity) {
                let [first, second] = [pair[0], pair[1]].map(|leg| {
                    let mut bytes = vec![0; to_usize(len)];
                    opened.rig.disk(leg).peek(opened.data_at(offset), &mut bytes);
                    bytes
                });
                let sectors = first.chunks(sector.len()).zip(second.chunks(sector.len()));
                let differs = sectors.zip(sector.count(offset)..).find(|((first, second), lba)| {
                    first != second && !seen.failed.contains_key(lba)
                });
                if let Some((_, lba)) = differs {
                    return Err(Wrong::Legs { lba, first: pair[0], second: pair[1] });
                }
            }
        }
        Ok(())
    }

    fn compare(&self, before: &Seen, after: &Seen) -> Result<(), Wrong> {
        let say = |seen: &Seen, lba| match seen.failed.get(&lba) {
            Some(error) => error.to_string(),
            None => text(&seen.units[self.units_of(lba)]),
        };
        for lba in 0..self.sectors() {
            let range = self.units_of(lba);
            let is_same = before.failed.contains_key(&lba) == after.failed.contains_key(&lba)
                && before.units[range.clone()] == after.units[range];
            if !is_same {
                let (before, after) = (say(before, lba), say(after, lba));
                return Err(Wrong::Changed { lba, before, after });
            }
        }
        Ok(())
    }
}

/// Returns what units have, for people.
fn text(units: &[Found]) -> String {
    if units.windows(2).all(|pair| pair[0] == pair[1]) {
        return units.first().map_or_else(String::new, ToString::to_string);
    }
    let units: Vec<String> = units.iter().map(ToString::to_string).collect();
    format!("[{}]", units.join(", "))
}

#[cfg(test)]
mod tests;
