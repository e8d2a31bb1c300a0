//! Letting a leg of a mirror have what it missed: by the command itself, or in the background of a
//! server.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use holdfast_bio::BlockDevice;
use holdfast_device::{Access, Backing, FileDevice};
use holdfast_mirror::{Missed, OWN_AREA, read_record};
use holdfast_ring::SharedRing;
use holdfast_volume::{Queue, Resync, Volume};
use serde::{Deserialize, Serialize};

use crate::backing;
use crate::store::Store;

/// Lets a leg have what it missed. `goes_on` is told how many bytes of the disk are done, and of how
/// many, and says whether to go on. Returns how many were copied, or `None` when it did not go on.
pub(crate) fn resync(
    store: &Store,
    volume: &Arc<Volume>,
    leg: &Path,
    discard: bool,
    goes_on: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<Option<u64>> {
    let Some(mirror) = store.mirror() else {
        let path = store.named().path().display();
        bail!("{path} is no mirror: `holdfast create PATH --mirror LEG` makes one");
    };
    let existed = leg.exists();
    let backing = match store.leg_at(leg).filter(|backing| is_at(backing, leg)) {
        Some(backing) => backing,
        None => Arc::new(open_leg(store, volume, leg)?),
    };
    let ring = backing::ring()?;
    let found = read_record(&backing);
    let is_leg = found.as_ref().is_some_and(|found| found.uuid == mirror.uuid());
    if !is_leg && !discard && FileDevice::new(&backing, &ring)?.data_after(0)?.is_some() {
        let leg = leg.display();
        bail!("{leg} is not empty, and no leg of this mirror: --discard throws it away");
    }
    let forgotten = mirror.forget(leg, found.as_ref(), discard).inspect_err(|_| {
        if !existed {
            // It was made here, and is of no use; the first error is the one to tell.
            let _removed = std::fs::remove_file(leg);
        }
    })?;
    if forgotten && existed {
        wipe(&backing, &ring)?;
    }
    let set_leg = |number| store.set_leg(number, Arc::clone(&backing));
    let (number, missed) =
        mirror.attach(leg, Arc::clone(&backing), found.as_ref(), discard, set_leg)?;
    let copied = copy(store, volume, &ring, number, &missed, goes_on)
        .with_context(|| format!("cannot copy to {}", leg.display()))?;
    if copied.is_some() {
        mirror.resynced(number)?;
    }
    Ok(copied)
}

/// Makes what is to get everything a leg that holds nothing.
fn wipe(backing: &Backing, ring: &SharedRing) -> anyhow::Result<()> {
    let mut device = FileDevice::new(backing, ring)?;
    let end = device.limits().capacity;
    backing::zero(&mut device, 0..OWN_AREA.start)?;
    backing::zero(&mut device, OWN_AREA.end..end)
}

fn copy(
    store: &Store,
    volume: &Arc<Volume>,
    ring: &SharedRing,
    number: usize,
    missed: &Missed,
    goes_on: &mut dyn FnMut(u64, u64) -> bool,
) -> anyhow::Result<Option<u64>> {
    let leg = u8::try_from(number).context("a leg has a small number")?;
    let mut queue = Queue::new(volume, store.device(ring)?, || {})?;
    let ranges = match missed {
        Missed::All => None,
        Missed::Ranges(ranges) => Some(&ranges[..]),
    };
    let mut run = Resync::new(&mut queue, leg, ranges)?;
    let total = run.left();
    while run.step()? {
        if !goes_on(total - run.left(), total) {
            return Ok(None);
        }
    }
    // The logs, and what is beside the superblocks.
    store.copy_to(ring, leg, volume.geometry().groups_offset())?;
    Ok(Some(run.finish()?))
}

/// Returns whether what is open is what is at the path now.
fn is_at(backing: &Backing, path: &Path) -> bool {
    let place = |meta: &std::fs::Metadata| (meta.dev(), meta.ino(), meta.rdev());
    let open = backing.descriptor().and_then(|descriptor| File::from(descriptor).metadata());
    match (open, std::fs::metadata(path)) {
        (Ok(open), Ok(found)) => place(&open) == place(&found),
        _ => false,
    }
}

/// Opens what is to become a leg, and makes it if there is nothing.
fn open_leg(store: &Store, volume: &Volume, leg: &Path) -> anyhow::Result<Backing> {
    let (needed, sector) = (volume.geometry().device_len(), volume.geometry().sector());
    let backing = if leg.exists() {
        Backing::open_in_time(leg, Access::ReadWrite)?
    } else {
        Backing::create(leg, store.named().bytes())?
    };
    let (bytes, block) = (backing.bytes(), backing.block());
    if bytes < needed || block > sector {
        bail!(
            "{} cannot be a leg: it has {bytes} bytes in blocks of {block}, and the volume needs \
             {needed} in blocks of {sector}",
            leg.display()
        );
    }
    Ok(backing)
}

/// How far a resync is, or how it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct Status {
    /// The leg.
    pub(crate) path: PathBuf,
    pub(crate) running: bool,
    /// How many bytes of the disk are done, and of how many.
    pub(crate) done: u64,
    pub(crate) total: u64,
    /// Why the leg is not in sync.
    pub(crate) error: Option<String>,
}

/// A server's thread that lets one leg after the other have what it missed.
#[derive(Debug)]
pub(crate) struct Resyncer {
    store: Arc<Store>,
    volume: Arc<Volume>,
    stops: AtomicBool,
    status: Mutex<Option<Status>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Resyncer {
    /// How many bytes are copied in a second at most, so that clients get their share.
    const RATE: u64 = 256 << 20;

    pub(crate) fn new(store: &Arc<Store>, volume: &Arc<Volume>) -> Arc<Self> {
        Arc::new(Self {
            store: Arc::clone(store),
            volume: Arc::clone(volume),
            stops: AtomicBool::new(false),
            status: Mutex::new(None),
            thread: Mutex::new(None),
        })
    }

    /// Begins to let legs have what they missed, one after the other.
    ///
    /// # Errors
    ///
    /// While that is being done to others, and when the volume is no mirror or takes no writes.
    pub(crate) fn begin(self: &Arc<Self>, legs: Vec<PathBuf>, discard: bool) -> anyhow::Result<()> {
        let mut thread = lock(&self.thread);
        if thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            bail!("another leg is being resynced");
        }
        if self.volume.is_read_only() {
            bail!("it takes no writes");
        }
        *lock(&self.status) = legs.first().map(|path| Status::of(path));
        let this = Arc::clone(self);
        let run = move || legs.iter().for_each(|leg| this.run(leg, discard));
        *thread = Some(thread::Builder::new().name("resync".to_owned()).spawn(run)?);
        Ok(())
    }

    /// Takes a leg out.
    pub(crate) fn detach(&self, leg: &Path) -> anyhow::Result<()> {
        self.store.detach(leg)
    }

    /// Ends what is being done. The next server goes on with it.
    pub(crate) fn stop(&self) {
        // Relaxed: the thread is joined.
        self.stops.store(true, Ordering::Relaxed);
        let thread = lock(&self.thread).take();
        if let Some(Err(panic)) = thread.map(JoinHandle::join) {
            std::panic::resume_unwind(panic);
        }
    }

    /// Returns how far the last resync is, if there was one.
    pub(crate) fn status(&self) -> Option<Status> {
        lock(&self.status).clone()
    }

    fn run(&self, leg: &Path, discard: bool) {
        let began = Instant::now();
        *lock(&self.status) = Some(Status::of(leg));
        let mut goes_on = |done, total| {
            if let Some(status) = &mut *lock(&self.status) {
                (status.done, status.total) = (done, total);
            }
            let least = Duration::from_millis(done * 1000 / Self::RATE);
            thread::sleep(least.saturating_sub(began.elapsed()));
            !self.stops.load(Ordering::Relaxed)
        };
        tracing::info!("{} gets what it missed", leg.display());
        let error = match resync(&self.store, &self.volume, leg, discard, &mut goes_on) {
            Ok(Some(bytes)) => {
                let copied = indicatif::BinaryBytes(bytes);
                tracing::info!("{} is in sync: {copied} were copied", leg.display());
                None
            }
            Ok(None) => {
                tracing::info!("{} gets the rest from the next server", leg.display());
                Some("the server ended".to_owned())
            }
            Err(error) => {
                tracing::error!("{} is not in sync: {error:#}", leg.display());
                Some(format!("{error:#}"))
            }
        };
        if let Some(status) = &mut *lock(&self.status) {
            (status.running, status.error) = (false, error);
        }
    }
}

impl Status {
    fn of(leg: &Path) -> Self {
        Self { path: leg.to_owned(), running: true, ..Self::default() }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in them is replaced in one step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
