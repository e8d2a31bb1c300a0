//! What the threads of a server share of its scrub: who wants what, and how far it is.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_bio::Error;
use holdfast_volume::format::ScrubRecord;
use holdfast_volume::{ScrubReport, Volume};
use indicatif::BinaryBytes;

use super::meter::Meter;
use super::pace::Plan;
use super::status::{State, Status, now};

/// How often the position is stored while it changes.
const STORE: Duration = Duration::from_secs(10);
/// How long a thread without a pass sleeps before it looks at the time of day again.
const LOOK: Duration = Duration::from_secs(60);
/// The most sectors that are named.
const NAMED: usize = 16;

/// The scrub of a server.
#[derive(Debug)]
pub(crate) struct Steering {
    volume: Arc<Volume>,
    plan: Plan,
    inner: Mutex<Inner>,
    /// Somebody wants something else than before.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    stopping: bool,
    /// The thread has ended, because it could not go on.
    broken: bool,
    /// Somebody asked for the pass, so that it need not last for the whole period.
    urgent: bool,
    /// What the volume remembers is to be stored.
    store: bool,
    /// When it was stored last.
    stored: Option<Instant>,
    corrupt: Vec<u64>,
    unreadable: Vec<u64>,
    meter: Meter,
}

/// What the thread of the scrub is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Task {
    /// End.
    End,
    /// Have the volume store what it remembers.
    Store,
    /// Read from this position on, as fast as this when there are no clients.
    Read {
        /// In bytes of the disk.
        position: u64,
        /// In bytes per second.
        rate: u64,
    },
}

impl Steering {
    pub(crate) fn new(volume: &Arc<Volume>, plan: Plan) -> Self {
        let steering = Self {
            volume: Arc::clone(volume),
            plan,
            inner: Mutex::default(),
            changed: Condvar::new(),
        };
        let record = volume.scrub();
        if record.under_way {
            let goes_on = if record.paused { "is stopped at" } else { "goes on at" };
            let position = BinaryBytes(record.position);
            tracing::info!("the scrub {goes_on} {position} of the disk");
        }
        steering
    }

    /// Begins a pass, or goes on with the one that is under way, as fast as it may go. `None` when the
    /// server cannot scrub any more.
    pub(crate) fn start(&self) -> Option<Status> {
        let mut inner = self.lock();
        if inner.broken {
            return None;
        }
        self.begin(&mut inner);
        inner.urgent = true;
        self.changed.notify_all();
        Some(self.status_of(&inner))
    }

    /// Lets the pass that is under way wait until it is started again.
    pub(crate) fn pause(&self) -> Status {
        let mut inner = self.lock();
        if self.volume.scrub().is_running() {
            self.volume.change_scrub(ScrubRecord::pause);
            tracing::info!("the scrub was stopped");
            (inner.urgent, inner.store) = (false, true);
            inner.meter = Meter::default();
            self.changed.notify_all();
        }
        self.status_of(&inner)
    }

    /// Returns how far the scrub is.
    pub(crate) fn status(&self) -> Status {
        self.status_of(&self.lock())
    }

    /// Ends the thread of the scrub, which first finishes what it has in flight.
    pub(super) fn end(&self) {
        self.lock().stopping = true;
        self.changed.notify_all();
    }

    /// Waits until there is something to do, and for reading until `ready`.
    pub(super) fn next(&self, ready: Instant) -> Task {
        let mut inner = self.lock();
        loop {
            if inner.stopping {
                return Task::End;
            }
            if std::mem::take(&mut inner.store) {
                inner.stored = Some(Instant::now());
                self.volume.store_scrub();
                return Task::Store;
            }
            let record = self.volume.scrub();
            let time = now();
            let due = self.plan.due(&record, time);
            if due.is_some_and(|due| due <= time) {
                self.begin(&mut inner);
                continue;
            }
            let left = if record.is_running() {
                let left = ready.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    let capacity = self.volume.geometry().capacity();
                    let rate = self.plan.rate(&record, capacity, inner.urgent, time);
                    return Task::Read { position: record.position, rate };
                }
                Some(left)
            } else {
                due.map(|due| LOOK.min(Duration::from_secs(due - time)))
            };
            inner = self.sleep(inner, left);
        }
    }

    /// Takes what was found up to `position`.
    pub(super) fn advance(&self, position: u64, found: &ScrubReport) {
        let mut inner = self.lock();
        let sector = self.volume.geometry().sector();
        let lbas = found.mismatches.iter().map(|found| found.lba);
        name(&mut inner.corrupt, lbas);
        for &(offset, error) in &found.unreadable {
            if inner.unreadable.len() < NAMED {
                tracing::error!(
                    "the sector at LBA {} cannot be read: {error}",
                    sector.count(offset)
                );
            }
            name(&mut inner.unreadable, std::iter::once(sector.count(offset)));
        }
        inner.meter.add(Instant::now(), found.verified);
        let capacity = self.volume.geometry().capacity();
        let record = self.volume.change_scrub(|record| {
            record.advance(position, found, capacity, now());
            *record
        });
        let is_old = inner.stored.is_none_or(|stored| stored.elapsed() >= STORE);
        inner.store |= is_old || !record.under_way;
        if !record.under_way {
            inner.urgent = false;
            inner.meter = Meter::default();
            say_result(&record);
        }
    }

    /// Stops the pass, since it cannot go on.
    pub(super) fn give_up(&self, error: &Error) {
        tracing::error!("the scrub is stopped, since nobody can tell where data are: {error}");
        self.pause();
    }

    /// Stops the pass for good: the volume is as good as without, and clients are served.
    pub(super) fn break_off(&self, error: &anyhow::Error) {
        tracing::error!("this server does not scrub any more: {error:#}");
        self.pause();
        self.lock().broken = true;
    }

    fn begin(&self, inner: &mut Inner) {
        let (before, record) = self.volume.change_scrub(|record| {
            let before = *record;
            record.start(now());
            (before, *record)
        });
        if before == record {
            return;
        }
        inner.store = true;
        inner.meter = Meter::default();
        if before.under_way {
            tracing::info!("the scrub goes on at {} of the disk", BinaryBytes(record.position));
        } else {
            (inner.corrupt, inner.unreadable) = (Vec::new(), Vec::new());
            tracing::info!("a scrub has begun");
        }
    }

    fn sleep<'a>(
        &self,
        inner: MutexGuard<'a, Inner>,
        left: Option<Duration>,
    ) -> MutexGuard<'a, Inner> {
        match left {
            Some(left) => {
                let slept = self.changed.wait_timeout(inner, left);
                slept.unwrap_or_else(PoisonError::into_inner).0
            }
            None => self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner),
        }
    }

    fn status_of(&self, inner: &Inner) -> Status {
        let (record, capacity) = (self.volume.scrub(), self.volume.geometry().capacity());
        let stored = Status::stored(&record, capacity);
        let rate = inner.meter.rate().filter(|_| record.is_running());
        Status {
            state: if record.is_running() { State::Running } else { stored.state },
            rate_bytes_per_second: rate,
            eta_seconds: rate.and_then(|rate| (capacity - record.position).checked_div(rate)),
            next: self.plan.due(&record, now()),
            corrupt_lbas: inner.corrupt.clone(),
            unreadable_lbas: inner.unreadable.clone(),
            ..stored
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds sectors to those that are named, as long as there is room.
fn name(named: &mut Vec<u64>, lbas: impl Iterator<Item = u64>) {
    named.extend(lbas.take(NAMED - named.len()));
}

fn say_result(record: &ScrubRecord) {
    let &ScrubRecord { verified, corrupt, unreadable, .. } = record;
    let verified = BinaryBytes(verified);
    if record.has_problems() {
        tracing::warn!(
            "the scrub has ended: verified {verified}, {corrupt} sectors corrupt, {unreadable} unreadable"
        );
    } else {
        tracing::info!("the scrub has ended: verified {verified}, and all is well");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_bio::{Mismatch, Tag};
    use holdfast_device::MemoryDevice;
    use holdfast_integrity::GuardKind;
    use holdfast_units::BlockSize;
    use holdfast_volume::{CreateOptions, OpenOptions};

    const CAPACITY: u64 = 1 << 20;

    fn steering(days: Option<u32>) -> Steering {
        let options = CreateOptions {
            capacity: CAPACITY,
            sector: BlockSize::PAGE,
            guard: GuardKind::Crc64,
            application_tag: CreateOptions::APPLICATION_TAG,
        };
        let mut device = MemoryDevice::new(options.geometry().unwrap().device_len());
        Volume::create(&mut device, &options).unwrap();
        let volume = Volume::open(&mut device, &OpenOptions::default()).unwrap();
        Steering::new(&volume, Plan { days, rate_max: 64 << 20 })
    }

    /// Returns what is to be done now.
    fn tasks<const N: usize>(steering: &Steering) -> [Task; N] {
        std::array::from_fn(|_| steering.next(Instant::now()))
    }

    fn found(corrupt: &[u64]) -> ScrubReport {
        let mismatch = |&lba| Mismatch { tag: Tag::Guard, lba, expected: 1, found: 2 };
        ScrubReport {
            corrupt: corrupt.len() as u64,
            mismatches: corrupt.iter().map(mismatch).collect(),
            ..ScrubReport::default()
        }
    }

    #[test]
    fn who_starts_a_scrub_gets_it_as_fast_as_it_may_go() {
        for days in [None, Some(30)] {
            let steering = steering(days);
            assert_eq!(steering.start().unwrap().state, State::Running);
            let read = Task::Read { position: 0, rate: 64 << 20 };
            assert_eq!(tasks(&steering), [Task::Store, read, read]);
        }
    }

    #[test]
    fn a_pass_that_is_due_begins_by_itself_and_takes_its_time() {
        let steering = steering(Some(30));
        assert_eq!(tasks(&steering), [Task::Store, Task::Read { position: 0, rate: 1 << 20 }]);
        assert!(steering.volume.has_news(), "its beginning is to be stored");
    }

    #[test]
    fn a_scrub_that_was_stopped_waits_and_goes_on_where_it_was() {
        let steering = steering(None);
        steering.start().unwrap();
        assert_eq!(tasks(&steering), [Task::Store]);
        steering.advance(8192, &found(&[1]));
        let stopped = steering.pause();
        assert_eq!((stopped.state, stopped.position_bytes), (State::Stopped, 8192));
        assert_eq!(tasks(&steering), [Task::Store]);
        steering.start().unwrap();
        let read = Task::Read { position: 8192, rate: 64 << 20 };
        assert_eq!(tasks(&steering), [Task::Store, read]);
        assert_eq!(steering.status().corrupt_lbas, [1]);
    }

    #[test]
    fn stopping_nothing_is_nothing() {
        let steering = steering(None);
        assert_eq!(steering.pause().state, State::Never);
        steering.end();
        assert_eq!(tasks(&steering), [Task::End]);
    }

    #[test]
    fn the_end_of_the_disk_ends_the_pass_and_the_next_one_forgets_its_sectors() {
        let steering = steering(Some(30));
        steering.start().unwrap();
        steering.advance(CAPACITY, &found(&(0..20).collect::<Vec<_>>()));
        let status = steering.status();
        assert_eq!((status.state, status.corrupt_sectors), (State::Finished, 20));
        assert_eq!(status.corrupt_lbas, (0..16).collect::<Vec<_>>());
        assert_eq!(status.next, status.started.map(|started| started + 30 * 86_400));
        let begun = steering.start().unwrap();
        assert_eq!((begun.corrupt_sectors, begun.corrupt_lbas.len()), (0, 0));
    }

    #[test]
    fn a_server_that_cannot_scrub_does_not_say_that_it_does() {
        let steering = steering(None);
        steering.start().unwrap();
        steering.break_off(&anyhow::anyhow!("no memory"));
        assert_eq!(steering.status().state, State::Stopped);
        assert!(steering.start().is_none());
    }
}
