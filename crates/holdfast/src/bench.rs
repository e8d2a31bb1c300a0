//! `holdfast bench`

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_bench::{Plan, Subject, measure};
use uuid::Uuid;

use crate::Outcome;
use crate::backing::is_block_device;
use crate::cli::Bench;
use crate::progress::Progress;

/// How long each measurement takes, how often it is done, and on how many bytes.
const USUAL: (Duration, usize, u64) = (Duration::from_secs(1), 5, 1 << 30);
const QUICK: (Duration, usize, u64) = (Duration::from_millis(150), 3, 256 << 20);

pub(crate) fn run(arguments: &Bench) -> anyhow::Result<Outcome> {
    let (time, rounds, size) = if arguments.quick { QUICK } else { USUAL };
    let subject = subject(arguments, arguments.size.unwrap_or(size))?;
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let plan = Plan::new(subject.is_writable(), processors, rounds, time);
    let mut shown = None;
    let report = measure(&subject, &plan, &mut |done, total| {
        shown.get_or_insert_with(|| Progress::counting("measuring", total)).at(done);
    })?;
    drop(shown);
    std::io::stdout().write_all(report.text().as_bytes())?;
    let store = |path: &Path, text: String| {
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    if let Some(path) = &arguments.json {
        store(path, serde_json::to_string_pretty(&report)?)?;
    }
    if let Some(path) = &arguments.report {
        store(path, report.page()?)?;
    }
    Ok(Outcome::Fine)
}

fn subject(arguments: &Bench, size: u64) -> anyhow::Result<Subject> {
    let Some(path) = &arguments.path else {
        let name = format!("holdfast-bench-{}", Uuid::new_v4());
        return Ok(Subject::scratch(&Path::new("/dev/shm").join(name), size)?);
    };
    let measured = if is_block_device(path) {
        if !arguments.force {
            bail!("all that {} holds would be overwritten (--force does it)", path.display());
        }
        Subject::device(path, size)
    } else if path.exists() {
        if arguments.size.is_some() {
            bail!("--size is for what is made, and {} exists", path.display());
        }
        Subject::existing(path)
    } else {
        Subject::scratch(path, size)
    };
    measured.with_context(|| {
        format!(
            "cannot measure on {}, which must be a volume, a block device, or a file to be made",
            path.display()
        )
    })
}
