//! What all queues of a volume share.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use holdfast_bio::{BlockDevice, Mismatch, Op, Tag};
use holdfast_checksum::GuardKind;
use holdfast_integrity::Protection;
use holdfast_units::{BlockSize, to_usize};
use zerocopy::IntoBytes;

use crate::cache::Cache;
use crate::error::VolumeError;
use crate::flush::FlushGate;
use crate::format::{
    Durability, ErrorCounts, SUPERBLOCK_OFFSETS, ScrubRecord, Superblock, features,
};
use crate::geometry::{Geometry, TUPLE_BLOCK};
use crate::intents::Intents;
use crate::journal::Journal;
use crate::judge::Judge;
use crate::log::Log;
use crate::opening::{Recovered, begin_intents, begin_log, begins_journal, recover};
use crate::overlay::Overlay;
use crate::raw::{self, device_error, sync_device};
use crate::recovery::{Recovery, RecoveryReport};
use crate::scrub::SharedRecord;
use crate::superblock::{
    Found, copy_name, read_superblock, rewrite_superblock, scratch, warn_of_corrupt,
    write_superblock,
};
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, lock};

/// What a new volume is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// The size of the disk that the volume presents, in bytes.
    pub capacity: u64,
    /// The size of a sector: 512 or 4096 bytes.
    pub sector: BlockSize,
    /// The kind of guard.
    pub guard: GuardKind,
    /// The application tag of every sector, neither 0 nor 0xffff.
    pub application_tag: u16,
}

impl CreateOptions {
    /// The application tag of those who do not choose one: "HF".
    pub const APPLICATION_TAG: u16 = 0x4846;

    /// Returns where everything will be.
    ///
    /// # Errors
    ///
    /// What is wrong with the options.
    pub fn geometry(&self) -> Result<Geometry, VolumeError> {
        let &Self { capacity, sector, guard, application_tag: tag } = self;
        if tag == 0 || tag == Protection::ESCAPE {
            return Err(VolumeError::ApplicationTag { tag });
        }
        Geometry::new(capacity, sector, guard).ok_or(VolumeError::Capacity { capacity, sector })
    }
}

/// How a volume is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenOptions {
    /// How many bytes of tuples may be kept in memory.
    pub cache_bytes: usize,
    /// Take no writes, and change nothing of what is stored.
    pub read_only: bool,
    /// What is to survive a crash of the machine.
    pub durability: Durability,
    /// Identifies the kernel that runs, as `/proc/sys/kernel/random/boot_id` does. If it is the same
    /// after a crash, it was only the process that died. Zeros say that nobody knows.
    pub boot: [u8; 16],
}

impl OpenOptions {
    /// The size of the tuple cache of those who do not choose one: 64 MiB.
    pub const CACHE_BYTES: usize = 64 << 20;
}

impl Default for OpenOptions {
    fn default() -> Self {
        Self {
            cache_bytes: Self::CACHE_BYTES,
            read_only: false,
            durability: Durability::Full,
            boot: [0; 16],
        }
    }
}

/// An open volume. Each thread that uses it has a [`Queue`](crate::Queue) of its own.
#[derive(Debug)]
pub struct Volume {
    geometry: Geometry,
    judge: Judge,
    read_only: bool,
    durability: Durability,
    recovery: Option<RecoveryReport>,
    /// The tuples of sectors whose stored tuple is not theirs, on a volume that was not closed and
    /// that may not be changed.
    settled: BTreeMap<u64, [u64; 2]>,
    /// Where sectors that match no tuple are taken as they are, on such a volume: ranges of bytes
    /// of the disk.
    adopted: Vec<Range<u64>>,
    /// Where tuples are before their data. `None` when nothing is written, or when less than full
    /// durability is asked for and below is no storage that can be mapped.
    pub(crate) log: Option<Log>,
    /// Which regions are being written, for durability by bitmap.
    pub(crate) intents: Option<Intents>,
    /// Where small writes are before they are in their place.
    pub(crate) journal: Option<Journal>,
    /// What is in no place but in memory.
    pub(crate) overlay: Overlay,
    pub(crate) cache: Cache,
    pub(crate) flush: FlushGate,
    superblock: Mutex<Superblock>,
    counters: Counters,
    pub(crate) scrub: SharedRecord,
    /// The sectors that were reported, so that one that is read again and again fills no log.
    reported: Mutex<BTreeSet<u64>>,
    /// There are some, so that most writes need not look.
    has_reported: AtomicBool,
    /// A flush of the device has failed.
    flush_failed: AtomicBool,
}

#[derive(Debug, Default)]
struct Counters {
    guard: AtomicU64,
    application: AtomicU64,
    reference: AtomicU64,
    unwritten: AtomicU64,
    /// Sectors that were bad on a leg of a mirror and intact on another.
    healed: AtomicU64,
    /// The mismatches are newer than those in the superblock.
    changed: AtomicBool,
}

impl Volume {
    /// The most sectors that are remembered as reported.
    const REPORTED_MAX: usize = 4096;

    /// Makes `device` an empty volume. Takes no time whatever the size: what was never written is
    /// a hole.
    ///
    /// # Errors
    ///
    /// What is wrong with the options, or what the device said.
    pub fn create<D: BlockDevice>(
        device: &mut D,
        options: &CreateOptions,
    ) -> Result<(), VolumeError> {
        let geometry = options.geometry()?;
        let (limits, sector) = (device.limits(), options.sector);
        if limits.granularity > sector {
            return Err(VolumeError::Sector { sector, block: limits.granularity });
        }
        let (needed, found) = (geometry.device_len(), limits.capacity);
        if needed > found {
            return Err(VolumeError::TooSmall { needed, found });
        }
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let mut superblock = Superblock {
            uuid: uuid::Uuid::new_v4().into_bytes(),
            sequence: 0,
            clean: true,
            read_only: false,
            compatible: 0,
            read_only_compatible: features::READ_ONLY_COMPATIBLE,
            guard: options.guard,
            application_tag: options.application_tag,
            geometry,
            created: since_1970.map_or(0, |time| time.as_secs()),
            errors: ErrorCounts::default(),
            log_epoch: None,
            journaled: false,
            durability: None,
            boot: [0; 16],
            scrub: ScrubRecord::default(),
            mirror: device.legs() > 1,
        };
        for copy in 0..SUPERBLOCK_OFFSETS.len() {
            superblock.sequence += 1;
            write_superblock(device, &superblock, copy)?;
        }
        sync_device(device)
    }

    /// Opens the volume on `device`. One superblock that is corrupt is replaced from the other,
    /// unless nothing may be written. If the volume was not closed, it is found out which sectors
    /// have their old and which their new data, as far as its [`Durability`] allows; see
    /// [`recovery`](Self::recovery). A device that is refused is left as it is.
    ///
    /// # Errors
    ///
    /// Why it is no volume, or none that can be opened like this, or what the device said.
    pub fn open<D: BlockDevice>(
        device: &mut D,
        options: &OpenOptions,
    ) -> Result<Arc<Self>, VolumeError> {
        Self::open_showing(device, options, &mut |_, _| {})
    }

    /// Opens the volume on `device` as [`open`](Self::open) does. If it was not closed, `progress`
    /// is told how much of what has to be looked at is done, and how much that is.
    ///
    /// # Errors
    ///
    /// As for [`open`](Self::open).
    pub fn open_showing<D: BlockDevice>(
        device: &mut D,
        options: &OpenOptions,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Arc<Self>, VolumeError> {
        let read_only = options.read_only;
        let Found { mut superblock, corrupt } = read_superblock(device)?;
        if superblock.read_only && !read_only {
            let bits = superblock.read_only_compatible & !features::READ_ONLY_COMPATIBLE;
            return Err(VolumeError::ReadOnlyFeatures { bits });
        }
        if superblock.mirror != (device.legs() > 1) {
            return Err(VolumeError::Mirror { is_leg: superblock.mirror });
        }
        let geometry = superblock.geometry;
        let (sector, limits) = (geometry.sector(), device.limits());
        if limits.granularity > sector {
            return Err(VolumeError::Sector { sector, block: limits.granularity });
        }
        let judge = Judge::new(superblock.protection(), sector);
        let recovered = recover(device, &superblock, &judge, options, progress)?;
        let (mut log, mut intents, mut journal) = (None, None, None);
        if !read_only {
            log = begin_log(device, &geometry, options)?;
            intents = begin_intents(device, &geometry, options)?;
            let has_room = log.as_ref().is_some_and(Log::is_written) && begins_journal(device);
            journal = has_room.then(|| Journal::new(&geometry));
        }
        if read_only {
            warn_of_corrupt(corrupt.as_ref());
        } else {
            superblock.clean = false;
            // What was in the log is stored now, and counts no more.
            superblock.log_epoch = log.as_ref().map(Log::epoch);
            superblock.journaled = journal.is_some();
            (superblock.durability, superblock.boot) = (Some(options.durability), options.boot);
            if let Some((copy, error)) = &corrupt {
                superblock.sequence += 1;
                write_superblock(device, &superblock, *copy)?;
                // From here on there are two again, of which one may be torn.
                sync_device(device)?;
                tracing::warn!("{} was replaced from the other: {error}", copy_name(*copy));
            }
            rewrite_superblock(device, &mut superblock)?;
        }
        let Recovered { report, tuples: settled, overlay, adopted } = recovered;
        let overlay = Overlay::new(overlay);
        let volume = Self::assemble(superblock, options, judge);
        let logs = Self { log, intents, journal, ..volume };
        Ok(Arc::new(Self { recovery: report, settled, adopted, overlay, ..logs }))
    }

    fn assemble(superblock: Superblock, options: &OpenOptions, judge: Judge) -> Self {
        let geometry = superblock.geometry;
        let (sectors, tuple_words) = (geometry.sectors_of_group(), geometry.tuple_words());
        let counters = Counters::default();
        counters.guard.store(superblock.errors.guard, Ordering::Relaxed);
        counters.application.store(superblock.errors.application, Ordering::Relaxed);
        counters.reference.store(superblock.errors.reference, Ordering::Relaxed);
        counters.unwritten.store(superblock.errors.unwritten, Ordering::Relaxed);
        Self {
            geometry,
            judge,
            read_only: options.read_only,
            durability: options.durability,
            recovery: None,
            settled: BTreeMap::new(),
            adopted: Vec::new(),
            log: None,
            intents: None,
            journal: None,
            overlay: Overlay::default(),
            cache: Cache::new(options.cache_bytes, geometry.groups(), sectors, tuple_words),
            flush: FlushGate::default(),
            scrub: SharedRecord::new(superblock.scrub),
            superblock: Mutex::new(superblock),
            counters,
            reported: Mutex::default(),
            has_reported: AtomicBool::new(false),
            flush_failed: AtomicBool::new(false),
        }
    }

    /// Reads what the superblock says, without opening the volume.
    ///
    /// # Errors
    ///
    /// Why it is no volume, or what the device said.
    pub fn peek<D: BlockDevice>(device: &mut D) -> Result<Superblock, VolumeError> {
        let Found { superblock, corrupt } = read_superblock(device)?;
        warn_of_corrupt(corrupt.as_ref());
        Ok(superblock)
    }

    /// Stores the tuples and marks the volume as closed, after everything was flushed and all
    /// queues are gone.
    ///
    /// # Errors
    ///
    /// What the device said; the volume is then not marked.
    pub fn close<D: BlockDevice>(&self, device: &mut D) -> Result<(), VolumeError> {
        if self.read_only || self.flush_failed() {
            return Ok(());
        }
        self.store_tuples(device)?;
        let mut superblock = self.next_superblock();
        superblock.clean = true;
        superblock.log_epoch = None;
        superblock.journaled = false;
        (superblock.durability, superblock.boot) = (None, [0; 16]);
        rewrite_superblock(device, &mut superblock)
    }

    /// Stores the tuples that are newer than the stored ones, and makes them durable.
    fn store_tuples<D: BlockDevice>(&self, device: &mut D) -> Result<(), VolumeError> {
        let mut from = 0;
        while let Some(way) = self.cache.next_dirty_way(from) {
            let mut buffer = scratch()?;
            self.cache.clear_dirty(way);
            self.cache.copy_tuples(way, &mut buffer.as_mut_slice()[..TUPLE_BLOCK]);
            let at = self.geometry.tuples_at(self.cache.group(way));
            if let Err(error) = raw::transfer(device, Op::Write, at, buffer, TUPLE_BLOCK) {
                self.cache.mark_dirty(way);
                return Err(device_error("store tuples")(error));
            }
            from = Cache::position_after(way);
        }
        sync_device(device)
    }

    /// Makes sectors, by address, what their data are, whether or not they match their tuples: they
    /// will be read without an error. To be called before there is a queue. Returns how many did not
    /// match.
    ///
    /// # Errors
    ///
    /// [`VolumeError::Lba`] for a sector that there is not, and what the device said; those before
    /// are then accepted.
    pub fn accept<D: BlockDevice>(
        &self,
        device: &mut D,
        lbas: Range<u64>,
    ) -> Result<u64, VolumeError> {
        let sectors = self.geometry.sector().count(self.geometry.capacity());
        if lbas.end > sectors {
            return Err(VolumeError::Lba { lba: lbas.end - 1, sectors });
        }
        let mut progress = |_, _| {};
        let (geometry, judge) = (&self.geometry, &self.judge);
        Recovery::new(device, geometry, judge, self.read_only, &mut progress)?.accept(lbas)
    }

    /// Returns the volume's name for machines, as text.
    pub fn uuid_text(&self) -> String {
        lock(&self.superblock).uuid_text()
    }

    /// Returns where everything is.
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Returns how sectors are protected.
    pub const fn protection(&self) -> &Protection {
        self.judge.protection()
    }

    /// Returns whether no writes are taken.
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Returns what survives a crash of the machine.
    pub const fn durability(&self) -> Durability {
        self.durability
    }

    /// Returns whether tuples are durable in the log before their data are submitted.
    pub(crate) fn log_is_durable(&self) -> bool {
        self.log.as_ref().is_some_and(Log::is_written)
    }

    /// Returns what was found when the volume was opened. `None` if it had been closed.
    pub const fn recovery(&self) -> Option<&RecoveryReport> {
        self.recovery.as_ref()
    }

    /// Returns how much memory the tuple cache may take, in bytes.
    pub fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Returns the mismatches that were met since the volume was created.
    pub fn errors(&self) -> ErrorCounts {
        ErrorCounts {
            guard: self.counters.guard.load(Ordering::Relaxed),
            application: self.counters.application.load(Ordering::Relaxed),
            reference: self.counters.reference.load(Ordering::Relaxed),
            unwritten: self.counters.unwritten.load(Ordering::Relaxed),
        }
    }

    /// Returns how often a sector was bad on a leg of a mirror and intact on another, since the volume
    /// was opened.
    pub fn healed(&self) -> u64 {
        self.counters.healed.load(Ordering::Relaxed)
    }

    pub(crate) fn count_healed(&self) {
        self.counters.healed.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns whether there is something that the superblock does not say yet: mismatches that were
    /// met, or how far a scrub is. The next flush stores it.
    pub fn has_news(&self) -> bool {
        let has_met = self.counters.changed.load(Ordering::Relaxed);
        (has_met || self.scrub.is_news()) && !self.read_only
    }

    /// Says that the counters were not stored after all.
    pub(crate) fn keep_news(&self) {
        self.counters.changed.store(true, Ordering::Relaxed);
    }

    /// Counts a corrupt sector, and logs it if it is met for the first time.
    pub(crate) fn report(&self, mismatch: &Mismatch) {
        let counter = match mismatch.tag {
            Tag::Guard => &self.counters.guard,
            Tag::Application => &self.counters.application,
            Tag::Reference => &self.counters.reference,
            Tag::Unwritten => &self.counters.unwritten,
            // It was named when the volume was opened.
            Tag::Torn => return tracing::debug!("{mismatch}"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.counters.changed.store(true, Ordering::Relaxed);
        let mut reported = lock(&self.reported);
        if reported.len() < Self::REPORTED_MAX && reported.insert(mismatch.lba) {
            // A target of its own, for those who report corrupt sectors themselves.
            tracing::error!(target: "holdfast::corrupt", "{mismatch}");
            self.has_reported.store(true, Ordering::Relaxed);
        }
    }

    /// Forgets that sectors were reported, and what else they were, because they have been written anew.
    pub(crate) fn forget_reported(&self, first: u64, count: u64) {
        self.overlay.forget(first, count);
        // Relaxed: whether a sector that is being read and written is logged is a matter of luck.
        if self.has_reported.load(Ordering::Relaxed) {
            let mut reported = lock(&self.reported);
            let rewritten: Vec<u64> = reported.range(first..first + count).copied().collect();
            for lba in rewritten {
                reported.remove(&lba);
            }
        }
    }

    /// Returns the stored words of the tuple of sector `lba` with this guard.
    pub(crate) fn tuple_words(&self, lba: u64, guard: u64) -> [u64; 2] {
        self.judge.words(lba, guard)
    }

    /// Returns the words of the tuple of a sector that is torn.
    pub(crate) fn torn_words(&self, lba: u64) -> [u64; 2] {
        self.judge.torn_words(lba)
    }

    /// Checks the stored words of sector `lba` against the checksum of its data. `is_zero` is asked
    /// whether a sector that was never written consists of zeros.
    pub(crate) fn check(
        &self,
        lba: u64,
        guard: u64,
        words: [u64; 2],
        is_zero: impl Fn() -> bool,
    ) -> Result<(), Mismatch> {
        let checked = self.judge.check(lba, guard, words, &is_zero);
        if checked.is_ok() || (self.settled.is_empty() && self.adopted.is_empty()) {
            return checked;
        }
        let checked = match self.settled.get(&lba) {
            Some(&settled) => self.judge.check(lba, guard, settled, &is_zero),
            None => checked,
        };
        let offset = lba * self.geometry.sector().bytes();
        let is_adopted = || self.adopted.iter().any(|range| range.contains(&offset));
        checked.or_else(|mismatch| if is_adopted() { Ok(()) } else { Err(mismatch) })
    }

    /// Returns the words of the tuple of sector `lba`, of which `stored` are those that are stored.
    pub(crate) fn settled_words(&self, lba: u64, stored: [u64; 2]) -> [u64; 2] {
        if self.settled.is_empty() {
            return stored;
        }
        self.settled.get(&lba).copied().unwrap_or(stored)
    }

    pub(crate) fn flush_failed(&self) -> bool {
        self.flush_failed.load(Ordering::Relaxed)
    }

    pub(crate) fn set_flush_failed(&self) {
        self.flush_failed.store(true, Ordering::Relaxed);
    }

    /// Returns the superblock with the present counters, and remembers it as the last.
    pub(crate) fn next_superblock(&self) -> Superblock {
        self.counters.changed.store(false, Ordering::Relaxed);
        let mut superblock = lock(&self.superblock);
        superblock.sequence += 1;
        superblock.errors = self.errors();
        superblock.scrub = self.scrub.take_news();
        superblock.clone()
    }

    /// Returns where the next superblock goes and fills `target` with it. The copies take turns, so
    /// that a torn write leaves the other.
    pub(crate) fn encode_next_superblock(&self, target: &mut [u8]) -> u64 {
        let superblock = self.next_superblock();
        let copy = superblock.sequence % 2;
        let raw = superblock.to_raw(u32::try_from(copy).expect("0 or 1"));
        target.copy_from_slice(raw.as_bytes());
        SUPERBLOCK_OFFSETS[to_usize(copy)]
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::format::SUPERBLOCK_LEN;
    use holdfast_device::MemoryDevice;

    #[test]
    fn a_sector_that_is_written_anew_is_logged_again_also_when_its_error_was_stored() {
        let options = CreateOptions {
            capacity: 1 << 20,
            sector: BlockSize::PAGE,
            guard: GuardKind::Crc16,
            application_tag: CreateOptions::APPLICATION_TAG,
        };
        let mut device = MemoryDevice::new(8 << 20);
        Volume::create(&mut device, &options).unwrap();
        let volume = Volume::open(&mut device, &OpenOptions::default()).unwrap();
        volume.report(&Mismatch { tag: Tag::Guard, lba: 7, expected: 1, found: 2 });
        volume.encode_next_superblock(&mut [0; SUPERBLOCK_LEN]);
        volume.forget_reported(5, 2);
        assert_eq!(lock(&volume.reported).len(), 1, "another was written");
        volume.forget_reported(7, 1);
        assert_eq!(lock(&volume.reported).len(), 0);
    }
}
