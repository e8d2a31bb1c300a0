//! `holdfast info`

use std::fmt;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, anyhow};
use holdfast_device::{Access, Backing, OpenError};
use holdfast_vhost_user_blk::QueueCounts;
use holdfast_volume::Volume;
use holdfast_volume::format::{ErrorCounts, Superblock};
use indicatif::{BinaryBytes, FormattedDuration};
use serde::Serialize;

use crate::Outcome;
use crate::backing;
use crate::cli::Info;
use crate::control::{self, Request};
use crate::legs::{self, LegReport};
use crate::live::{Live, Running};
use crate::resync;
use crate::scrub::{State, Status};
use crate::store::Store;

pub(crate) fn run(arguments: &Info) -> anyhow::Result<Outcome> {
    let path = &arguments.path;
    let store = Store::open(path, Access::Peek, None)?;
    let peeked = store.named();
    let mut device = store.device(&backing::ring()?)?;
    let superblock =
        Volume::peek(&mut device).with_context(|| format!("cannot read {}", path.display()))?;
    let mut info = Json::new(path, &superblock, Use::of(peeked, &superblock)?)?;
    info.legs = store.mirror().map(|mirror| legs::report(mirror));
    if arguments.live {
        match control::ask(&info.uuid, &store, &Request::Counters)? {
            Some(live) => info.add(live),
            None => return Err(nobody_counts(peeked, info.in_use_by)),
        }
    }
    let mut out = std::io::stdout().lock();
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &info)?;
        writeln!(out)?;
    } else {
        write!(out, "{info}")?;
    }
    Ok(Outcome::Fine)
}

/// Says why there are no counters.
fn nobody_counts(peeked: &Backing, holder: Option<u32>) -> anyhow::Error {
    let path = peeked.path().display();
    match holder {
        Some(pid) => control::silent(peeked, pid),
        None => anyhow!(
            "nobody serves {path}, so nothing is counted: start `holdfast serve {path}`, or leave \
             --live out"
        ),
    }
}

/// Whether somebody uses a volume.
pub(crate) enum Use {
    By(Option<u32>),
    Nobody,
}

impl Use {
    /// Returns the process, if it is known.
    pub(crate) const fn holder(&self) -> Option<u32> {
        match self {
            Self::By(pid) => *pid,
            Self::Nobody => None,
        }
    }

    /// Finds out, and takes a lock only where there is no other way: who begins to serve at that moment
    /// is refused.
    pub(crate) fn of(peeked: &Backing, superblock: &Superblock) -> anyhow::Result<Self> {
        if let Some(pid) = peeked.holder() {
            return Ok(Self::By(Some(pid)));
        }
        if superblock.clean {
            // Who writes says first that it is not.
            return Ok(Self::Nobody);
        }
        match Backing::open(peeked.path(), Access::ReadOnly) {
            Err(OpenError::InUse { holder, .. }) => Ok(Self::By(holder)),
            Err(error) => Err(error.into()),
            Ok(_) => Ok(Self::Nobody),
        }
    }
}

#[derive(Serialize)]
struct Json {
    path: String,
    uuid: String,
    size_bytes: u64,
    allocated_bytes: u64,
    sector_bytes: u64,
    guard: String,
    application_tag: u16,
    created: u64,
    state: &'static str,
    in_use_by: Option<u32>,
    errors: ErrorCounts,
    scrub: Status,
    /// Of a mirror.
    #[serde(skip_serializing_if = "Option::is_none")]
    legs: Option<Vec<LegReport>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    resync: Option<resync::Status>,
    #[serde(flatten)]
    running: Option<Running>,
}

impl Json {
    fn new(path: &Path, superblock: &Superblock, in_use: Use) -> anyhow::Result<Self> {
        let (state, in_use_by) = match (in_use, superblock.clean) {
            (Use::By(pid), _) => ("in use", pid),
            (Use::Nobody, true) => ("closed", None),
            (Use::Nobody, false) => ("not closed", None),
        };
        // stat(2) counts in 512 bytes.
        let allocated_bytes = std::fs::metadata(path)?.blocks() * 512;
        Ok(Self {
            path: path.display().to_string(),
            uuid: superblock.uuid_text(),
            size_bytes: superblock.geometry.capacity(),
            allocated_bytes,
            sector_bytes: superblock.geometry.sector().bytes(),
            guard: superblock.guard.to_string(),
            application_tag: superblock.application_tag,
            created: superblock.created,
            state,
            in_use_by,
            errors: superblock.errors,
            scrub: Status::stored(&superblock.scrub, superblock.geometry.capacity()),
            legs: None,
            resync: None,
            running: None,
        })
    }

    /// Adds what the server says, which is newer than what is stored.
    fn add(&mut self, live: Live) {
        let Live { errors, scrub, legs, resync, running } = live;
        if let Some(scrub) = scrub {
            self.scrub = scrub;
        }
        self.resync = resync;
        self.legs = legs.or_else(|| self.legs.take());
        (self.state, self.in_use_by, self.errors) = ("in use", Some(running.pid), errors);
        self.running = Some(running);
    }
}

impl fmt::Display for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ErrorCounts { guard, application, reference, unwritten } = self.errors;
        writeln!(f, "volume           {}", self.path)?;
        writeln!(f, "uuid             {}", self.uuid)?;
        let size = self.size_bytes;
        writeln!(f, "disk size        {} ({size} bytes)", BinaryBytes(size))?;
        writeln!(f, "allocated        {}", BinaryBytes(self.allocated_bytes))?;
        writeln!(f, "sector           {} bytes", self.sector_bytes)?;
        writeln!(f, "guard            {}", self.guard)?;
        writeln!(f, "application tag  {:#06x}", self.application_tag)?;
        match self.in_use_by {
            Some(pid) => writeln!(f, "state            in use by process {pid}")?,
            None => writeln!(f, "state            {}", self.state)?,
        }
        writeln!(
            f,
            "errors met       {guard} guard tag, {application} application tag, {reference} reference tag, {unwritten} never-written sector"
        )?;
        if self.scrub.state != State::Never {
            writeln!(f, "scrub            {}", self.scrub.line())?;
        }
        for LegReport { path, state, repairs, errors } in self.legs.iter().flatten() {
            writeln!(f, "leg              {path}: {state}, {repairs} repairs, {errors} errors")?;
        }
        if let Some(resync) = self.resync.as_ref().filter(|resync| resync.running) {
            let (done, total) = (BinaryBytes(resync.done), BinaryBytes(resync.total));
            writeln!(f, "resync           {}: {done} of {total}", resync.path.display())?;
        }
        self.running.as_ref().map_or(Ok(()), |running| write_running(f, running))
    }
}

fn write_running(f: &mut fmt::Formatter<'_>, running: &Running) -> fmt::Result {
    let up = std::time::Duration::from_secs(running.uptime_seconds);
    writeln!(f, "server up for    {}", FormattedDuration(up))?;
    if running.clients.is_empty() {
        return writeln!(f, "clients          NBD only, which is not counted by client");
    }
    writeln!(f, "read policy      {}", running.read_policy)?;
    for client in &running.clients {
        let state = if client.connected { "connected" } else { "not connected" };
        writeln!(f, "client           {}, {state}", client.socket)?;
    }
    writeln!(f)?;
    write_table(f, &rows(running))
}

/// What is counted of a queue, and the heads of its columns.
const COLUMNS: [&str; 12] = [
    "client",
    "queue",
    "requests",
    "failed",
    "data",
    "bounced",
    "zero-copy",
    "reread good",
    "reread bad",
    "guard errors",
    "app. errors",
    "ref. errors",
];

type Row = [String; COLUMNS.len()];

/// Returns a row for each queue, and one with their sums if there are several.
fn rows(running: &Running) -> Vec<Row> {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    let mut sum = QueueCounts::default();
    for client in &running.clients {
        for (index, queue) in client.queues.iter().enumerate() {
            rows.push(row(client.socket.clone(), index.to_string(), queue));
            sum = add(sum, *queue);
        }
    }
    if rows.len() > 2 {
        rows.push(row("all".to_owned(), String::new(), &sum));
    }
    rows
}

fn row(client: String, index: String, queue: &QueueCounts) -> Row {
    let QueueCounts { requests, failed, bytes, bounced, zero_copy, .. } = *queue;
    let QueueCounts { reread_good, reread_bad, guard_errors, .. } = *queue;
    let text = |count: u64| count.to_string();
    [
        client,
        index,
        text(requests),
        text(failed),
        BinaryBytes(bytes).to_string(),
        text(bounced),
        text(zero_copy),
        text(reread_good),
        text(reread_bad),
        text(guard_errors),
        text(queue.application_errors),
        text(queue.reference_errors),
    ]
}

fn add(one: QueueCounts, other: QueueCounts) -> QueueCounts {
    let sum = |count: fn(&QueueCounts) -> u64| count(&one).wrapping_add(count(&other));
    QueueCounts {
        requests: sum(|queue| queue.requests),
        failed: sum(|queue| queue.failed),
        bytes: sum(|queue| queue.bytes),
        bounced: sum(|queue| queue.bounced),
        zero_copy: sum(|queue| queue.zero_copy),
        reread_good: sum(|queue| queue.reread_good),
        reread_bad: sum(|queue| queue.reread_bad),
        guard_errors: sum(|queue| queue.guard_errors),
        application_errors: sum(|queue| queue.application_errors),
        reference_errors: sum(|queue| queue.reference_errors),
    }
}

/// Writes the names of clients to the left, and all else to the right of its column.
fn write_table(f: &mut fmt::Formatter<'_>, rows: &[Row]) -> fmt::Result {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: [usize; COLUMNS.len()] = std::array::from_fn(width);
    for row in rows {
        write!(f, "{:<1$}", row[0], widths[0])?;
        for (cell, width) in row.iter().zip(widths).skip(1) {
            write!(f, "  {cell:>width$}")?;
        }
        writeln!(f)?;
    }
    Ok(())
}
