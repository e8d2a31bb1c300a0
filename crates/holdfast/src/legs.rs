//! `holdfast attach` and `holdfast detach`, and the legs of a mirror for people.

use std::fmt;
use std::io::Write;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_device::Access;
use holdfast_mirror::{LegInfo, Mirror, MirrorError};
use holdfast_volume::{OpenOptions, Volume};
use indicatif::BinaryBytes;
use serde::{Deserialize, Serialize};

use crate::Outcome;
use crate::backing::{self, OpenVolume};
use crate::cli::{Attach, Detach};
use crate::control::{self, Done, Request};
use crate::live::Live;
use crate::progress::Progress;
use crate::resync::resync;
use crate::store::Store;

pub(crate) fn attach(arguments: &Attach) -> anyhow::Result<Outcome> {
    let Attach { path, leg, discard } = arguments;
    let request = Request::Attach { leg: std::path::absolute(leg)?, discard: *discard };
    if let Some(server) = ask_server(path, &request)? {
        follow(&server, path)?;
        return said(format_args!("{} is in sync", leg.display()));
    }
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
    said(format_args!("{} is in sync: {copied} were copied", leg.display()))
}

/// A server that carries out what was asked.
struct Serving {
    uuid: String,
    store: Store,
}

/// Asks the server of a mirror to do something. `None` when nobody serves it.
fn ask_server(path: &Path, request: &Request) -> anyhow::Result<Option<Serving>> {
    let store = match Store::open(path, Access::Peek, None) {
        // Nobody serves that.
        Err(error) if is_split(&error) => return Ok(None),
        opened => opened?,
    };
    let superblock = Volume::peek(&mut store.device(&backing::ring()?)?)
        .with_context(|| format!("cannot read {}", path.display()))?;
    let uuid = superblock.uuid_text();
    let done: Option<Done> = control::ask(&uuid, &store, request)?;
    Ok(done.map(|_| Serving { uuid, store }))
}

/// Shows how far a server is with a resync, until it is over.
fn follow(server: &Serving, path: &Path) -> anyhow::Result<()> {
    /// How often the server is asked.
    const INTERVAL: Duration = Duration::from_millis(100);
    let mut progress: Option<Progress> = None;
    loop {
        let live = control::ask(&server.uuid, &server.store, &Request::Counters)?;
        let Some(Live { resync: Some(status), .. }) = live else {
            bail!("the server of {} ended: the next one goes on", path.display());
        };
        if let Some(error) = status.error {
            bail!("the server of {} says: {error}", path.display());
        }
        if !status.running {
            return Ok(());
        }
        if status.total > 0 {
            let new = || Progress::new("resyncing", status.total);
            progress.get_or_insert_with(new).at(status.done);
        }
        thread::sleep(INTERVAL);
    }
}

fn said(what: fmt::Arguments<'_>) -> anyhow::Result<Outcome> {
    // It is done, also when nobody reads the answer.
    let _closed = writeln!(std::io::stdout(), "{what}");
    Ok(Outcome::Fine)
}

pub(crate) fn detach(arguments: &Detach) -> anyhow::Result<Outcome> {
    let Detach { path, leg } = arguments;
    let detached = format_args!("{} is detached", leg.display());
    if ask_server(path, &Request::Detach { leg: std::path::absolute(leg)? })?.is_some() {
        return said(detached);
    }
    let options = OpenOptions::default();
    let open = match OpenVolume::open(path, &options) {
        // The one that is detached is the one that is thrown away.
        Err(error) if is_split(&error) => OpenVolume::open_without(path, Some(leg), &options)?,
        opened => opened?,
    };
    let done = open.store.detach(leg);
    let closed = open.close();
    done?;
    closed?;
    said(detached)
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
