//! `holdfast attach` and `holdfast detach`, and the legs of a mirror for people.

use std::io::Write;

use anyhow::bail;
use holdfast_mirror::{LegInfo, Mirror, MirrorError};
use holdfast_volume::OpenOptions;
use indicatif::BinaryBytes;
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::backing::OpenVolume;
use crate::cli::{Attach, Detach};
use crate::progress::Progress;
use crate::resync::resync;

pub(crate) fn attach(arguments: &Attach) -> anyhow::Result<Outcome> {
    let Attach { path, leg, discard } = arguments;
    // A leg of a split brain would not let the mirror be opened.
    let without = discard.then_some(leg.as_path());
    let open = OpenVolume::open_without(path, without, &OpenOptions::default())?;
    let mut progress: Option<Progress> = None;
    let mut goes_on = |done, total| {
        progress.get_or_insert_with(|| Progress::new("resyncing", total)).at(done);
        true
    };
    let attached = resync(&open.store, &open.volume, leg, *discard, &mut goes_on);
    drop(progress);
    let closed = open.close();
    let copied = BinaryBytes(attached?.unwrap_or(0));
    closed?;
    let _closed = writeln!(std::io::stdout(), "{} is in sync: {copied} were copied", leg.display());
    Ok(Outcome::Fine)
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
