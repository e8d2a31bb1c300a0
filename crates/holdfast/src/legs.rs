//! `holdfast attach` and `holdfast detach`, and the legs of a mirror for people.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use holdfast_bio::BlockDevice;
use holdfast_device::{Access, Backing, FileDevice};
use holdfast_mirror::{LegInfo, Mirror, MirrorError, Missed, OWN_AREA, read_record};
use holdfast_volume::{OpenOptions, RepairRun};
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::backing::{self, OpenVolume};
use crate::cli::{Attach, Detach};
use crate::progress::Progress;
use crate::store::open_in_time;

pub(crate) fn attach(arguments: &Attach) -> anyhow::Result<Outcome> {
    let Attach { path, leg, discard } = arguments;
    // A leg of a split brain would not let the mirror be opened.
    let without = discard.then_some(leg.as_path());
    let open = OpenVolume::open_without(path, without, &OpenOptions::default())?;
    let attached = resync(&open, leg, *discard);
    let closed = open.close();
    let copied = attached?;
    closed?;
    let _closed = writeln!(
        std::io::stdout(),
        "{} is in sync: {} were copied",
        leg.display(),
        indicatif::BinaryBytes(copied)
    );
    Ok(Outcome::Fine)
}

/// Lets a leg have what it missed. Returns how many bytes were copied.
fn resync(open: &OpenVolume, leg: &Path, discard: bool) -> anyhow::Result<u64> {
    let Some(mirror) = open.store.mirror() else {
        bail!(
            "{} is no mirror: `holdfast create PATH --mirror LEG` makes one",
            open.path().display()
        );
    };
    let backing = match open.store.leg_at(leg) {
        Some(backing) => backing,
        None => Arc::new(open_leg(open, leg)?),
    };
    let found = read_record(&backing);
    let is_leg = found.as_ref().is_some_and(|found| found.uuid == mirror.uuid());
    if !is_leg && !discard && !is_empty(&backing)? {
        bail!(
            "{} is not empty, and no leg of this mirror: --discard throws it away",
            leg.display()
        );
    }
    let set_leg = |number| open.store.set_leg(number, Arc::clone(&backing));
    let (number, missed) =
        mirror.attach(leg, Arc::clone(&backing), found.as_ref(), discard, set_leg)?;
    let number_of_leg = u8::try_from(number).context("a leg's number")?;
    if missed == Missed::All {
        let mut device = FileDevice::new(&backing, &open.ring)?;
        let end = device.limits().capacity;
        backing::zero(&mut device, 0..OWN_AREA.start)?;
        backing::zero(&mut device, OWN_AREA.end..end)?;
    }
    let mut queue = open.queue()?;
    let ranges = match &missed {
        Missed::All => None,
        Missed::Ranges(ranges) => Some(&ranges[..]),
    };
    let mut run = RepairRun::copy(&mut queue, number_of_leg, ranges)?;
    let total = run.left();
    let mut progress = Progress::new("resyncing", total);
    while run.step().with_context(|| format!("cannot copy to {}", leg.display()))? {
        progress.at(total - run.left());
    }
    // The logs, and what is beside the superblocks.
    let header = open.volume.geometry().groups_offset();
    open.store.copy_to(&open.ring, number_of_leg, header)?;
    let report = run.finish()?;
    drop(progress);
    mirror.resynced(number)?;
    Ok(report.done)
}

/// Opens what is to become a leg, and makes it if there is nothing.
fn open_leg(open: &OpenVolume, leg: &Path) -> anyhow::Result<Backing> {
    let (bytes, block) = (open.store.named().bytes(), open.volume.geometry().sector());
    let needed = open.volume.geometry().device_len();
    let backing = if leg.exists() {
        open_in_time(leg, Access::ReadWrite)?
    } else {
        Backing::create(leg, bytes)?
    };
    if backing.bytes() < needed || backing.block() > block {
        bail!(
            "{} cannot be a leg: it has {} bytes in blocks of {}, and the volume needs {needed} in \
             blocks of {block}",
            leg.display(),
            backing.bytes(),
            backing.block()
        );
    }
    Ok(backing)
}

/// Returns whether a file holds nothing. A block device is never known to.
fn is_empty(backing: &Backing) -> anyhow::Result<bool> {
    let ring = backing::ring()?;
    Ok(FileDevice::new(backing, &ring)?.data_after(0)?.is_none())
}

pub(crate) fn detach(arguments: &Detach) -> anyhow::Result<Outcome> {
    let Detach { path, leg } = arguments;
    let options = OpenOptions::default();
    let open = match OpenVolume::open(path, &options) {
        // The one that is detached is the one that is thrown away.
        Err(error) if is_split(&error) => OpenVolume::open_without(path, Some(leg), &options)?,
        opened => opened?,
    };
    let detached = open
        .store
        .mirror()
        .map_or_else(|| bail!("{} is no mirror", path.display()), |mirror| Ok(mirror.detach(leg)?));
    let closed = open.close();
    detached?;
    closed?;
    let _closed = writeln!(std::io::stdout(), "{} is detached", leg.display());
    Ok(Outcome::Fine)
}

fn is_split(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(MirrorError::SplitBrain { .. }))
}

/// A leg, for people and programs.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct LegReport {
    pub(crate) path: String,
    pub(crate) state: String,
    /// How many sectors were repaired on it.
    pub(crate) repairs: u64,
    /// How many operations on it failed.
    pub(crate) errors: u64,
}

/// Returns what is known of the legs of a mirror.
pub(crate) fn report(mirror: &Mirror) -> Vec<LegReport> {
    let report = |(_, leg): (usize, LegInfo)| LegReport {
        path: leg.path.display().to_string(),
        state: leg.state.name().to_owned(),
        repairs: leg.repairs,
        errors: leg.errors,
    };
    mirror.legs().into_iter().map(report).collect()
}
