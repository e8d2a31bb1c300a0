//! What a volume is stored on: a file or block device, or a mirror of several.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context;
use holdfast_device::{Access, Backing, FileDevice, OpenError};
use holdfast_mirror::{Disk, LEGS_MAX, Mirror, MirrorDevice, MirrorError, assemble, read_record};
use holdfast_ring::SharedRing;

/// A queue of a store.
pub(crate) type Device = Disk<FileDevice>;

/// What a volume is stored on.
#[derive(Debug)]
pub(crate) struct Store {
    /// What was named on the command line.
    named: Arc<Backing>,
    mirror: Option<Legs>,
}

/// The legs of a mirror that are open.
#[derive(Debug)]
struct Legs {
    mirror: Arc<Mirror>,
    backings: Arc<Mutex<Backings>>,
    /// Legs that are to get what they missed, since a crash kept them from it.
    interrupted: Vec<PathBuf>,
}

type Backings = [Option<Arc<Backing>>; LEGS_MAX];

fn lock(backings: &Mutex<Backings>) -> MutexGuard<'_, Backings> {
    // Each is replaced in one step.
    backings.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    /// Opens what is at `path`, and of a mirror the other legs, but for `without`.
    pub(crate) fn open(
        path: &Path,
        access: Access,
        without: Option<&Path>,
    ) -> anyhow::Result<Self> {
        let named = Arc::new(Backing::open_in_time(path, access)?);
        if read_record(&named).is_none() {
            return Ok(Self { named, mirror: None });
        }
        let mut in_use = None;
        let open = |path: &Path| {
            Backing::open_in_time(path, access).map(Arc::new).map_err(|error| {
                let is_used = matches!(error, OpenError::InUse { .. });
                let text = format!("{:#}", anyhow::Error::from(error));
                if is_used {
                    in_use = Some(text.clone());
                }
                text
            })
        };
        let found = assemble(path, Arc::clone(&named), without, open);
        if let Some(why) = in_use {
            // It is there, and somebody may be writing to it.
            anyhow::bail!("{why}");
        }
        let Some(legs) = found? else { return Ok(Self { named, mirror: None }) };
        let backings = Arc::new(Mutex::new(legs.media.clone()));
        let interrupted = legs.interrupted.iter().map(|&leg| legs.paths[leg].clone()).collect();
        let read_only = access != Access::ReadWrite;
        let mirror = Mirror::open(legs, read_only)
            .with_context(|| format!("cannot open the mirror of {}", path.display()))?;
        Ok(Self { named, mirror: Some(Legs { mirror, backings, interrupted }) })
    }

    /// Makes new files or devices a store: a mirror when there are several. The first is the one that
    /// is named.
    pub(crate) fn create(backings: Vec<Arc<Backing>>) -> Result<Self, MirrorError> {
        let named = Arc::clone(&backings[0]);
        if backings.len() == 1 {
            return Ok(Self { named, mirror: None });
        }
        let of_leg = std::array::from_fn(|leg| backings.get(leg).map(Arc::clone));
        let legs = backings.into_iter().map(|backing| (backing.path().to_owned(), backing));
        let mirror = Mirror::create(legs.collect())?;
        let backings = Arc::new(Mutex::new(of_leg));
        Ok(Self { named, mirror: Some(Legs { mirror, backings, interrupted: Vec::new() }) })
    }

    /// Returns what was named on the command line.
    pub(crate) const fn named(&self) -> &Arc<Backing> {
        &self.named
    }

    /// Returns the mirror, if it is one.
    pub(crate) fn mirror(&self) -> Option<&Arc<Mirror>> {
        self.mirror.as_ref().map(|legs| &legs.mirror)
    }

    /// Returns the legs that are to get what they missed, since a crash kept them from it.
    pub(crate) fn interrupted(&self) -> Vec<PathBuf> {
        self.mirror.as_ref().map_or_else(Vec::new, |legs| legs.interrupted.clone())
    }

    /// Opens a queue on a ring.
    pub(crate) fn device(&self, ring: &SharedRing) -> io::Result<Device> {
        let Some(legs) = &self.mirror else {
            return FileDevice::new(&self.named, ring).map(|device| Disk::Plain(Box::new(device)));
        };
        let (backings, ring) = (Arc::clone(&legs.backings), Rc::clone(ring));
        let open = move |leg: usize| {
            let backing = lock(&backings)[leg].clone();
            let queue = |backing: Arc<Backing>| FileDevice::new(&backing, &ring);
            // A mirror has no log that a killed process would leave whole.
            backing.map(|backing| queue(backing).map(FileDevice::by_the_kernel)).transpose()
        };
        MirrorDevice::new(&legs.mirror, open).map(|device| Disk::Mirror(Box::new(device)))
    }

    /// Copies the first `bytes` as they are to a leg that is being resynced.
    pub(crate) fn copy_to(&self, ring: &SharedRing, leg: u8, bytes: u64) -> anyhow::Result<()> {
        if let Disk::Mirror(mut device) = self.device(ring)? {
            device.copy_to(leg, bytes)?;
        }
        Ok(())
    }

    /// Returns a leg that is open already.
    pub(crate) fn leg_at(&self, path: &Path) -> Option<Arc<Backing>> {
        let legs = self.mirror.as_ref()?;
        let path = std::path::absolute(path).ok()?;
        let number = legs.mirror.legs().into_iter().find(|(_, leg)| leg.path == path)?.0;
        lock(&legs.backings)[number].clone()
    }

    /// Takes a leg out of the mirror.
    pub(crate) fn detach(&self, leg: &Path) -> anyhow::Result<()> {
        let Some(legs) = &self.mirror else {
            anyhow::bail!("{} is no mirror", self.named.path().display());
        };
        let number = legs.mirror.detach(leg)?;
        let left = lock(&legs.backings)[number].take();
        // Queues that are idle close it only when they have something to do again.
        left.iter().for_each(|leg| leg.release());
        legs.mirror.reopen(number);
        Ok(())
    }

    /// Lets queues that are opened from now on have a leg.
    pub(crate) fn set_leg(&self, number: usize, backing: Arc<Backing>) {
        if let Some(legs) = &self.mirror {
            lock(&legs.backings)[number] = Some(backing);
        }
    }
}
