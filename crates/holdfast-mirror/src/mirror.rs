//! What all queues of a mirror share: what each leg is, what was missed by those that are out, and the
//! records that say so on the legs that remain.
//!
//! A leg that fails is out, for good until it is attached again. That is durable on the others before
//! anything is acknowledged that it does not have: otherwise a crash could let a leg that missed
//! writes come back as good.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use holdfast_bio::Error;

use crate::assemble::{Legs, absolute, path_text};
use crate::error::MirrorError;
use crate::medium::{Medium, is_stored, read_missed, write_missed, write_record};
use crate::record::{LEGS_MAX, Leg, LegState, MISSED_WORDS, PATH_MAX, REGIONS_MAX, Record};
use crate::regions::{self, Regions};

/// A mirror, of which each thread has a [`MirrorDevice`](crate::MirrorDevice).
#[derive(Debug)]
pub struct Mirror {
    region: u64,
    bytes: u64,
    read_only: bool,
    slots: [Slot; LEGS_MAX],
    /// What was written since the last flush began, and before it. Which is which changes.
    recent: [Regions; 2],
    current: AtomicUsize,
    flushing: AtomicBool,
    table: Mutex<Table>,
    /// Changes with the epoch of any leg.
    version: AtomicU64,
    /// How many queues there have been, so that each prefers another leg.
    queues: AtomicUsize,
}

#[derive(Debug)]
struct Slot {
    state: AtomicU8,
    errors: AtomicU64,
    repairs: AtomicU64,
    /// Counts the files or devices that it has been: each time it is attached it may be another.
    epoch: AtomicU64,
    /// What it missed, as far as that is durable.
    missed: Regions,
    missed_all: AtomicBool,
}

impl Slot {
    fn state(&self) -> LegState {
        let code = u32::from(self.state.load(Ordering::SeqCst));
        LegState::from_code(code).expect("only states are stored")
    }

    fn set_state(&self, state: LegState) {
        self.state.store(state as u8, Ordering::SeqCst);
    }
}

/// What is stored of the mirror. Whoever has it may write records.
#[derive(Debug)]
struct Table {
    record: Record,
    media: [Option<Box<dyn Medium>>; LEGS_MAX],
    paths: [PathBuf; LEGS_MAX],
    missed: [Vec<u64>; LEGS_MAX],
}

/// A leg, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LegInfo {
    /// Where it is.
    pub path: PathBuf,
    /// What it is.
    pub state: LegState,
    /// How many operations on it failed.
    pub errors: u64,
    /// How many sectors were repaired on it.
    pub repairs: u64,
}

/// What a leg that is attached has to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missed {
    /// Everything: nobody knows what it holds.
    All,
    /// Ranges of bytes of the device.
    Ranges(Vec<Range<u64>>),
}

/// Which legs an operation goes to, a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LegSet(pub(crate) u8);

impl LegSet {
    pub(crate) const fn contains(self, leg: usize) -> bool {
        self.0 >> leg & 1 != 0
    }

    pub(crate) const fn insert(&mut self, leg: usize) {
        self.0 |= 1 << leg;
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub(crate) fn iter(self) -> impl Iterator<Item = usize> {
        (0..LEGS_MAX).filter(move |&leg| self.contains(leg))
    }
}

impl Mirror {
    /// The least bytes of a region.
    const REGION_MIN: u64 = 4 << 20;

    /// Makes new legs a mirror, each at the path beside it. All are in sync, since they hold nothing.
    ///
    /// # Errors
    ///
    /// A path that is too long, and whatever the legs say.
    ///
    /// # Panics
    ///
    /// For no legs, or more than there can be.
    pub fn create<M: Medium + 'static>(legs: Vec<(PathBuf, M)>) -> Result<Arc<Self>, MirrorError> {
        assert!((1..=LEGS_MAX).contains(&legs.len()), "a mirror has 1 to 4 legs");
        let bytes = legs.iter().map(|(_, medium)| medium.bytes()).min().unwrap_or(0);
        let mut record = Record {
            uuid: uuid::Uuid::new_v4().into_bytes(),
            generation: 0,
            changed: 0,
            region: region_for(bytes),
            leg: 0,
            legs: [const { Leg::empty() }; LEGS_MAX],
        };
        let mut paths = [const { PathBuf::new() }; LEGS_MAX];
        let mut media = [const { None }; LEGS_MAX];
        for (index, (path, medium)) in legs.into_iter().enumerate() {
            record.legs[index].state = LegState::InSync;
            record.legs[index].uuid = uuid::Uuid::new_v4().into_bytes();
            paths[index] = absolute(&path);
            media[index] = Some(medium);
        }
        check_paths(&paths)?;
        Self::open(
            Legs {
                record,
                media,
                paths,
                interrupted: Vec::new(),
                warnings: Vec::new(),
                changed: true,
                newest: 0,
            },
            false,
        )
    }

    /// Opens a mirror. For writing, what changed since the newest record is recorded first.
    ///
    /// # Errors
    ///
    /// Whatever the legs say.
    pub fn open<M: Medium + 'static>(
        legs: Legs<M>,
        read_only: bool,
    ) -> Result<Arc<Self>, MirrorError> {
        let Legs { record, media, paths, warnings, changed, newest, .. } = legs;
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        let bytes = media.iter().flatten().map(Medium::bytes).min().unwrap_or(0);
        let media = media.map(|medium| medium.map(|medium| Box::new(medium) as Box<dyn Medium>));
        let newest = media[newest].as_deref();
        let missed: [Vec<u64>; LEGS_MAX] = std::array::from_fn(|index| {
            let leg = &record.legs[index];
            let is_known = matches!(leg.state, LegState::Out | LegState::Detached);
            match newest.filter(|_| is_known && !leg.missed_all) {
                Some(newest) => read_missed(newest, index),
                None => vec![0; MISSED_WORDS],
            }
        });
        let slots = std::array::from_fn(|index| {
            let leg = &record.legs[index];
            let slot = Slot {
                state: AtomicU8::new(leg.state as u8),
                epoch: AtomicU64::new(0),
                errors: AtomicU64::new(leg.errors),
                repairs: AtomicU64::new(leg.repairs),
                missed: Regions::new(),
                missed_all: AtomicBool::new(leg.missed_all),
            };
            slot.missed.assign(&missed[index]);
            slot
        });
        // Whatever the record says, each byte must be in a region that can be counted.
        let region = record.region.max(region_for(bytes));
        let mirror = Self {
            region,
            bytes,
            read_only,
            slots,
            recent: [Regions::new(), Regions::new()],
            current: AtomicUsize::new(0),
            flushing: AtomicBool::new(false),
            table: Mutex::new(Table { record: Record { region, ..record }, media, paths, missed }),
            version: AtomicU64::new(0),
            queues: AtomicUsize::new(0),
        };
        if !read_only {
            let mut table = mirror.table();
            // A copy that has rotted is written again, before the other may rot as well.
            if changed || !mirror.is_stored(&table) {
                mirror.commit(&mut table).map_err(device_error("record what the legs are"))?;
            }
        }
        Ok(Arc::new(mirror))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // What a panic left behind is at worst a record that was not written.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the mirror's name for machines.
    pub fn uuid(&self) -> [u8; 16] {
        self.table().record.uuid
    }

    /// Returns what a leg is.
    pub fn state(&self, leg: usize) -> LegState {
        self.slots[leg].state()
    }

    /// Returns the legs that there are, with their numbers.
    pub fn legs(&self) -> Vec<(usize, LegInfo)> {
        let table = self.table();
        let legs = self.slots.iter().zip(&table.paths).enumerate();
        let info = |slot: &Slot, path: &Path| LegInfo {
            path: path.to_owned(),
            state: slot.state(),
            errors: slot.errors.load(Ordering::Relaxed),
            repairs: slot.repairs.load(Ordering::Relaxed),
        };
        legs.filter(|(_, (slot, _))| slot.state() != LegState::Empty)
            .map(|(index, (slot, path))| (index, info(slot, path)))
            .collect()
    }

    /// Returns how many legs there may be to ask: at least 2.
    pub(crate) fn leg_count(&self) -> usize {
        let last = self.slots.iter().rposition(|slot| slot.state() != LegState::Empty);
        last.map_or(2, |last| last + 1).max(2)
    }

    pub(crate) fn next_queue(&self) -> usize {
        self.queues.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns what changes when a leg is another file or device than before.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    pub(crate) fn epoch(&self, leg: usize) -> u64 {
        self.slots[leg].epoch.load(Ordering::SeqCst)
    }

    pub(crate) fn in_sync(&self) -> LegSet {
        self.set_of(|state| state == LegState::InSync)
    }

    pub(crate) fn written(&self) -> LegSet {
        self.set_of(LegState::is_written)
    }

    fn set_of(&self, which: impl Fn(LegState) -> bool) -> LegSet {
        let mut set = LegSet::default();
        for (index, slot) in self.slots.iter().enumerate() {
            if which(slot.state()) {
                set.insert(index);
            }
        }
        set
    }

    pub(crate) fn count_error(&self, leg: usize) {
        self.slots[leg].errors.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn count_repair(&self, leg: usize) {
        // What is copied to a leg that missed it is no repair.
        if self.slots[leg].state() == LegState::InSync {
            self.slots[leg].repairs.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn regions(&self, offset: u64, len: u64) -> Range<u64> {
        let end = offset.saturating_add(len).min(self.bytes.max(1));
        offset.min(end) / self.region..end.div_ceil(self.region)
    }

    /// Returns the legs that a write goes to. That the others miss it is durable by then.
    pub(crate) fn begin_write(&self, offset: u64, len: u64) -> Result<LegSet, Error> {
        let regions = self.regions(offset, len);
        self.recent[self.current.load(Ordering::SeqCst)].insert(regions.clone());
        // Pairs with the one in `expel`: either we see that a leg is out, or who puts it out sees
        // that we write.
        fence(Ordering::SeqCst);
        self.ensure_missed(regions)?;
        Ok(self.written())
    }

    /// Says that a write has ended on all legs that it went to. What is acknowledged after this is
    /// known to be missed by every leg that is out.
    pub(crate) fn end_write(&self, offset: u64, len: u64) -> Result<(), Error> {
        let regions = self.regions(offset, len);
        self.recent[self.current.load(Ordering::SeqCst)].insert(regions.clone());
        fence(Ordering::SeqCst);
        self.ensure_missed(regions)
    }

    fn ensure_missed(&self, regions: Range<u64>) -> Result<(), Error> {
        let is_known = |slot: &Slot| match slot.state() {
            LegState::Out | LegState::Detached => {
                slot.missed_all.load(Ordering::SeqCst) || slot.missed.contains(regions.clone())
            }
            LegState::Empty | LegState::InSync | LegState::Resyncing => true,
        };
        if self.slots.iter().all(is_known) { Ok(()) } else { self.record_missed(regions) }
    }

    #[cold]
    fn record_missed(&self, regions: Range<u64>) -> Result<(), Error> {
        if self.read_only {
            return Ok(());
        }
        let mut table = self.table();
        let mut news = LegSet::default();
        for (index, slot) in self.slots.iter().enumerate() {
            let is_out = matches!(slot.state(), LegState::Out | LegState::Detached);
            if is_out && !slot.missed_all.load(Ordering::SeqCst) {
                // More than once, when another has been faster.
                regions::insert(&mut table.missed[index], regions.clone());
                if !slot.missed.contains(regions.clone()) {
                    news.insert(index);
                }
            }
        }
        if news.is_empty() {
            return Ok(());
        }
        let mut failed = LegSet::default();
        for leg in self.in_sync().iter() {
            let Some(medium) = &table.media[leg] else { continue };
            let written = news
                .iter()
                .try_for_each(|index| write_missed(&**medium, index, &table.missed[index]))
                .and_then(|()| medium.sync());
            if let Err(error) = written {
                self.expel(&mut table, leg, error)?;
                failed.insert(leg);
            }
        }
        if !failed.is_empty() {
            self.commit(&mut table)?;
        }
        self.publish(&table);
        Ok(())
    }

    /// Lets all see what is durable.
    fn publish(&self, table: &Table) {
        for (slot, missed) in self.slots.iter().zip(&table.missed) {
            slot.missed.assign(missed);
        }
    }

    /// Begins a flush. Returns whether its end says what is durable.
    pub(crate) fn begin_flush(&self) -> bool {
        let owns = !self.flushing.swap(true, Ordering::SeqCst);
        if owns {
            self.current.fetch_xor(1, Ordering::SeqCst);
        }
        owns
    }

    /// Ends a flush.
    pub(crate) fn end_flush(&self, owns: bool, durable: bool) {
        if !owns {
            return;
        }
        if durable {
            self.recent[1 - self.current.load(Ordering::SeqCst)].clear();
        }
        self.flushing.store(false, Ordering::SeqCst);
    }

    /// Waits until it is durable which legs are out.
    pub(crate) fn settled(&self) {
        drop(self.table());
    }

    /// Puts a leg out on which an operation failed, so that the volume goes on without it.
    ///
    /// # Errors
    ///
    /// The leg's error when no other holds everything, or none could record it.
    pub(crate) fn fail(&self, leg: usize, error: Error) -> Result<(), Error> {
        let mut table = self.table();
        if !self.slots[leg].state().is_written() {
            return Ok(());
        }
        self.expel(&mut table, leg, error)?;
        self.commit(&mut table)
    }

    /// Takes a leg out, in memory. `commit` must follow.
    fn expel(&self, table: &mut Table, leg: usize, error: Error) -> Result<(), Error> {
        let others = self.in_sync().iter().any(|other| other != leg);
        if !others || self.read_only {
            return Err(error);
        }
        self.slots[leg].set_state(LegState::Out);
        // Pairs with the one in `begin_write`.
        fence(Ordering::SeqCst);
        // What it has acknowledged and not flushed may be lost with it.
        self.recent.iter().for_each(|recent| recent.add_to(&mut table.missed[leg]));
        tracing::error!(
            "{} failed, and is out of the mirror: {error}. The volume goes on without it",
            table.paths[leg].display()
        );
        Ok(())
    }

    /// Records the states of the legs on all that are written, durably.
    fn commit(&self, table: &mut Table) -> Result<(), Error> {
        'again: loop {
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            table.record.generation += 1;
            table.record.changed = since_1970.map_or(0, |time| time.as_secs());
            for (leg, slot) in table.record.legs.iter_mut().zip(&self.slots) {
                leg.state = slot.state();
                leg.missed_all = slot.missed_all.load(Ordering::SeqCst);
                leg.errors = slot.errors.load(Ordering::Relaxed);
                leg.repairs = slot.repairs.load(Ordering::Relaxed);
                if leg.state.is_written() {
                    leg.seen = table.record.generation;
                }
            }
            for leg in self.written().iter() {
                if let Err(error) = self.write_all(table, leg) {
                    self.expel(table, leg, error)?;
                    continue 'again;
                }
            }
            self.publish(table);
            return Ok(());
        }
    }

    /// Writes all that is known of the mirror to one leg.
    fn write_all(&self, table: &Table, leg: usize) -> Result<(), Error> {
        let Some(medium) = table.media[leg].as_deref() else { return Err(Error::IO) };
        for (index, slot) in self.slots.iter().enumerate() {
            if matches!(slot.state(), LegState::Out | LegState::Detached | LegState::Resyncing) {
                write_missed(medium, index, &table.missed[index])?;
            }
        }
        medium.sync()?;
        write_record(medium, &table.record_of(leg))
    }

    /// Returns whether the records of all legs are as they should be.
    fn is_stored(&self, table: &Table) -> bool {
        self.written().iter().all(|leg| {
            let medium = table.media[leg].as_deref();
            medium.is_some_and(|medium| is_stored(medium, &table.record_of(leg)))
        })
    }

    /// Stores the counters, and what has rotted of the records, when the mirror is closed.
    ///
    /// # Errors
    ///
    /// When no leg can be written.
    pub fn close(&self) -> Result<(), MirrorError> {
        let mut table = self.table();
        let changed = table.record.legs.iter().zip(&self.slots).any(|(leg, slot)| {
            leg.errors != slot.errors.load(Ordering::Relaxed)
                || leg.repairs != slot.repairs.load(Ordering::Relaxed)
        });
        if self.read_only || (!changed && self.is_stored(&table)) {
            return Ok(());
        }
        self.commit(&mut table).map_err(device_error("store the mirror's counters"))
    }

    /// Returns whether a leg that is to be attached has to get everything, so that it may be wiped. If
    /// so, that is durable.
    ///
    /// # Errors
    ///
    /// As for [`attach`](Self::attach).
    pub fn forget(
        &self,
        path: &Path,
        found: Option<&Record>,
        discard: bool,
    ) -> Result<bool, MirrorError> {
        let path = absolute(path);
        let mut table = self.table();
        let leg = table.place_for(&path, found)?;
        let slot = &self.slots[leg];
        check_attachable(&path, slot.state())?;
        if slot.state() == LegState::Empty {
            return Ok(true);
        }
        let known = !discard && found.is_some_and(|found| table.knows(leg, found));
        if !known && !slot.missed_all.swap(true, Ordering::SeqCst) {
            self.commit(&mut table).map_err(device_error("record that a leg holds nothing"))?;
        }
        Ok(slot.missed_all.load(Ordering::SeqCst))
    }

    /// Lets a leg get what is written from now on. Returns its number, and what it missed before.
    /// With `discard`, or when it is new or was written apart, that is everything. `ready` is called
    /// with its number before any queue writes to it.
    ///
    /// # Errors
    ///
    /// When it is in the mirror already, when there are too many, and whatever the legs say.
    pub fn attach<M: Medium + 'static>(
        &self,
        path: &Path,
        medium: M,
        found: Option<&Record>,
        discard: bool,
        ready: impl FnOnce(usize),
    ) -> Result<(usize, Missed), MirrorError> {
        let path = absolute(path);
        let mut table = self.table();
        let leg = table.place_for(&path, found)?;
        let slot = &self.slots[leg];
        let old = slot.state();
        check_attachable(&path, old)?;
        let known = found.is_some_and(|found| table.knows(leg, found));
        let mut paths = table.paths.clone();
        paths[leg].clone_from(&path);
        check_paths(&paths)?;
        table.paths = paths;
        if !known || discard || old == LegState::Empty {
            table.record.legs[leg].uuid = uuid::Uuid::new_v4().into_bytes();
            slot.missed_all.store(true, Ordering::SeqCst);
        }
        table.media[leg] = Some(Box::new(medium));
        ready(leg);
        self.reopen(leg);
        // After the version: whoever sees that it is written sees that it is another.
        slot.set_state(LegState::Resyncing);
        self.commit(&mut table).map_err(device_error("record that a leg is attached"))?;
        if slot.state() != LegState::Resyncing {
            return Err(device_error("write to the leg")(Error::IO));
        }
        let ranges = regions::runs(&table.missed[leg])
            .into_iter()
            .map(|run| run.start * self.region..(run.end * self.region).min(self.bytes))
            .collect();
        let all = slot.missed_all.load(Ordering::SeqCst);
        Ok((leg, if all { Missed::All } else { Missed::Ranges(ranges) }))
    }

    /// Says that a leg has got all that it missed, durably: it is read from now on.
    ///
    /// # Errors
    ///
    /// When it failed meanwhile, and whatever the legs say.
    pub fn resynced(&self, leg: usize) -> Result<(), MirrorError> {
        let mut table = self.table();
        let slot = &self.slots[leg];
        if slot.state() != LegState::Resyncing {
            return Err(device_error("write to the leg")(Error::IO));
        }
        table.missed[leg].fill(0);
        slot.missed_all.store(false, Ordering::SeqCst);
        slot.set_state(LegState::InSync);
        self.commit(&mut table).map_err(device_error("record that a leg is in sync"))
    }

    /// Takes a leg out on purpose, and returns its number. What is written from now on is remembered, so
    /// that it can come back.
    ///
    /// # Errors
    ///
    /// When it is none, or the last, and whatever the others say.
    pub fn detach(&self, path: &Path) -> Result<usize, MirrorError> {
        let path = absolute(path);
        let mut table = self.table();
        let text = path.display().to_string();
        let found = (0..LEGS_MAX)
            .find(|&leg| self.slots[leg].state() != LegState::Empty && table.paths[leg] == path);
        let Some(leg) = found else {
            return Err(MirrorError::State { path: text, state: "no leg", what: "detached" });
        };
        if self.in_sync() == LegSet(1 << leg) {
            return Err(MirrorError::Last { path: text });
        }
        self.recent.iter().for_each(|recent| recent.add_to(&mut table.missed[leg]));
        self.slots[leg].set_state(LegState::Detached);
        fence(Ordering::SeqCst);
        self.commit(&mut table).map_err(device_error("record that a leg is detached"))?;
        // It is to know that it is no leg any more. When it cannot be told, the others know.
        let told =
            table.media[leg].as_deref().map(|medium| write_record(medium, &table.record_of(leg)));
        if let Some(Err(error)) = told {
            tracing::warn!("{text} cannot be told that it is detached: {error}");
        }
        table.media[leg] = None;
        Ok(leg)
    }

    /// Lets each queue open a leg anew, or close it if it is not there any more.
    pub fn reopen(&self, leg: usize) {
        self.slots[leg].epoch.fetch_add(1, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

impl Table {
    /// Returns the record as a leg has it.
    fn record_of(&self, leg: usize) -> Record {
        let mut record = Record { leg, ..self.record.clone() };
        for (of_leg, path) in record.legs.iter_mut().zip(&self.paths) {
            if of_leg.state != LegState::Empty {
                of_leg.path = path_text(&self.paths[leg], path).unwrap_or_default();
            }
        }
        record
    }

    /// Returns the number that a leg has, or gets.
    fn place_for(&self, path: &Path, found: Option<&Record>) -> Result<usize, MirrorError> {
        let legs = || self.record.legs.iter().zip(&self.paths);
        let same = found.filter(|found| found.uuid == self.record.uuid).and_then(|found| {
            legs().position(|(leg, _)| leg.state != LegState::Empty && leg.uuid == found.own().uuid)
        });
        same.or_else(|| legs().position(|(leg, at)| leg.state != LegState::Empty && at == path))
            .or_else(|| legs().position(|(leg, _)| leg.state == LegState::Empty))
            .ok_or(MirrorError::Full)
    }

    /// Returns whether what a leg missed is known: it was a leg of this mirror, and was not written
    /// since by others.
    fn knows(&self, leg: usize, found: &Record) -> bool {
        let is_same = found.uuid == self.record.uuid
            && found.leg == leg
            && found.own().uuid == self.record.legs[leg].uuid;
        let in_sync = |leg: &Leg| leg.state == LegState::InSync;
        let went_on_alone = in_sync(found.own())
            && self
                .record
                .legs
                .iter()
                .zip(&found.legs)
                .any(|(own, found)| in_sync(own) && !found.state.is_written());
        // It may not have got the last one, if that is when it failed. An older one is that of a copy.
        let last = self.record.legs[leg].seen.saturating_sub(1);
        is_same && !went_on_alone && (last..=self.record.generation).contains(&found.generation)
    }
}

fn device_error(what: &'static str) -> impl Fn(Error) -> MirrorError {
    move |source| MirrorError::Device { what, source }
}

/// Refuses a leg that is in the mirror already.
fn check_attachable(path: &Path, state: LegState) -> Result<(), MirrorError> {
    if !state.is_written() {
        return Ok(());
    }
    let (path, state) = (path.display().to_string(), state.name());
    Err(MirrorError::State { path, state, what: "attached" })
}

/// Refuses paths that cannot be remembered by all legs.
fn check_paths(paths: &[PathBuf; LEGS_MAX]) -> Result<(), MirrorError> {
    let named = || paths.iter().filter(|path| !path.as_os_str().is_empty());
    let too_long = named().find(|path| {
        named().any(|own| path_text(own, path).is_none_or(|text| text.len() > PATH_MAX))
    });
    too_long.map_or(Ok(()), |path| Err(MirrorError::Path { path: path.display().to_string() }))
}

/// Returns how large the regions of a device are.
fn region_for(bytes: u64) -> u64 {
    (bytes / REGIONS_MAX + 1).next_power_of_two().max(Mirror::REGION_MIN)
}
