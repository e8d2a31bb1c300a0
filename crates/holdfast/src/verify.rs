//! `holdfast verify`

use std::io::Write;

use anyhow::bail;
use holdfast_bio::{BlockDevice, Mismatch};
use holdfast_volume::{OpenOptions, Queue, Scrub, ScrubReport};
use indicatif::BinaryBytes;
use serde::Serialize;

use crate::Outcome;
use crate::backing::OpenVolume;
use crate::cli::Verify;
use crate::progress::Progress;
use crate::store::Device;

/// The most corrupt sectors that are named. All are counted.
const MISMATCHES_MAX: usize = 100_000;

pub(crate) fn run(arguments: &Verify) -> anyhow::Result<Outcome> {
    if !arguments.accept.is_empty() {
        return accept(arguments);
    }
    let options = OpenOptions { read_only: !arguments.repair, ..OpenOptions::default() };
    let open = OpenVolume::open(&arguments.path, &options)?;
    let is_mirror = open.store.mirror().is_some();
    if arguments.repair && !is_mirror {
        open.close()?;
        bail!("{} is no mirror, so nothing can be repaired", arguments.path.display());
    }
    let mut queue = open.queue()?;
    let sector = queue.limits().sector.bytes();
    let report = scrub(&mut queue)?;
    drop(queue);
    let healed = open.volume.healed();
    if arguments.repair {
        open.close()?;
    }
    let is_fine = report.corrupt == 0 && report.unreadable.is_empty();
    let mut out = std::io::stdout().lock();
    if arguments.json {
        let repairs = is_mirror.then_some(Repairs { bad: healed, repaired: arguments.repair });
        serde_json::to_writer_pretty(&mut out, &Json::new(arguments, &report, repairs))?;
        writeln!(out)?;
    } else {
        write_report(&mut out, &report, sector)?;
        if healed > 0 {
            let what = if arguments.repair { "repaired" } else { "--repair repairs them" };
            writeln!(out, "{healed} sectors were bad on a leg and intact on another: {what}")?;
        }
    }
    let is_fine = is_fine && (healed == 0 || arguments.repair);
    Ok(if is_fine { Outcome::Fine } else { Outcome::Problems })
}

/// Takes sectors as they are.
fn accept(arguments: &Verify) -> anyhow::Result<Outcome> {
    let open = OpenVolume::open(&arguments.path, &OpenOptions::default())?;
    let mut device = open.store.device(&open.ring)?;
    let mut accepted = 0;
    let result = arguments.accept.iter().try_for_each(|lbas| {
        accepted += open.volume.accept(&mut device, *lbas.start()..*lbas.end() + 1)?;
        Ok(())
    });
    open.close()?;
    writeln!(std::io::stdout(), "{accepted} sectors are taken as they are")?;
    result.map(|()| Outcome::Fine)
}

fn scrub(queue: &mut Queue<Device>) -> anyhow::Result<ScrubReport> {
    let mut progress = Progress::new("verifying", queue.limits().capacity);
    let mut scrub = Scrub::new(queue, MISMATCHES_MAX)?;
    while let Some(position) = scrub.step()? {
        progress.at(position);
    }
    Ok(scrub.finish())
}

fn write_report(out: &mut impl Write, report: &ScrubReport, sector: u64) -> std::io::Result<()> {
    for mismatch in &report.mismatches {
        writeln!(out, "{mismatch}")?;
    }
    for (offset, error) in &report.unreadable {
        writeln!(out, "unreadable sector at LBA {}: {error}", offset / sector)?;
    }
    let named = report.mismatches.len() as u64;
    if report.corrupt > named {
        writeln!(out, "and {} more corrupt sectors", report.corrupt - named)?;
    }
    let (verified, holes) = (BinaryBytes(report.verified), BinaryBytes(report.holes));
    writeln!(
        out,
        "verified {verified}, passed over {holes} of holes: {} corrupt, {} unreadable",
        report.corrupt,
        report.unreadable.len()
    )
}

#[derive(Serialize)]
struct Json {
    path: String,
    verified_bytes: u64,
    hole_bytes: u64,
    corrupt_sectors: u64,
    errors: Vec<JsonError>,
    unreadable: Vec<JsonUnreadable>,
    /// Of a mirror.
    #[serde(flatten)]
    repairs: Option<Repairs>,
}

/// Sectors that were bad on a leg and intact on another.
#[derive(Serialize)]
struct Repairs {
    #[serde(rename = "bad_on_a_leg")]
    bad: u64,
    repaired: bool,
}

#[derive(Serialize)]
struct JsonError {
    lba: u64,
    tag: &'static str,
    expected: String,
    found: String,
}

#[derive(Serialize)]
struct JsonUnreadable {
    offset: u64,
    error: String,
}

impl Json {
    fn new(arguments: &Verify, report: &ScrubReport, repairs: Option<Repairs>) -> Self {
        let error = |&Mismatch { tag, lba, expected, found }: &Mismatch| JsonError {
            lba,
            tag: tag.name(),
            expected: format!("{expected:#x}"),
            found: format!("{found:#x}"),
        };
        let unreadable = |(offset, error): &(u64, holdfast_bio::Error)| JsonUnreadable {
            offset: *offset,
            error: error.to_string(),
        };
        Self {
            path: arguments.path.display().to_string(),
            verified_bytes: report.verified,
            hole_bytes: report.holes,
            corrupt_sectors: report.corrupt,
            errors: report.mismatches.iter().map(error).collect(),
            unreadable: report.unreadable.iter().map(unreadable).collect(),
            repairs,
        }
    }
}
