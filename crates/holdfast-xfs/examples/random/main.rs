//! Random direct writes, holes, reservations and truncates of files of an image, with many requests in
//! flight, checked against a model of their bytes: for `cargo xtask e2e xfs-write`, where Linux is the judge.
//!
//! `random IMAGE MODELS SEED STEPS END PATH...`: `MODELS` is a directory with a copy of each file, at
//! the same path, which becomes what the file must have at the end. `END` is `unmount` or `abandon`;
//! the latter leaves the file system after a sync, as a process does that dies.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program for a terminal")]

mod run;
mod subject;

use std::env;
use std::error::Error;
use std::path::Path;
use std::sync::Arc;

use holdfast_device::{Access, Backing, FileDevice};
use holdfast_ring::Ring;

use run::Run;
use subject::Subject;

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [image, models, seed, steps, end, paths @ ..] = &arguments[..] else {
        return Err("usage: random IMAGE MODELS SEED STEPS unmount|abandon PATH...".into());
    };
    let (seed, steps): (u64, u64) = (seed.parse()?, steps.parse()?);
    let models = Path::new(models);
    let mut subjects = paths
        .iter()
        .map(|path| Subject::load(models, path).map_err(|error| format!("{path}: {error}").into()))
        .collect::<Outcome<Vec<_>>>()?;
    let (mut refused, mut longest) = (0, 0);
    for half in 0..2 {
        let mut run = Run::mount(queues(Path::new(image))?, subjects, seed + half)?;
        run.check_all()?;
        run.steps(steps.div_ceil(2)).map_err(|error| format!("seed {seed}: {error}"))?;
        run.check_all()?;
        (refused, longest) = (refused + run.refused, longest.max(run.longest));
        let is_last = half == 1;
        subjects = if is_last && end == "abandon" { run.abandon()? } else { run.unmount()? };
    }
    // What was stored is what the next mount reads.
    if end == "unmount" {
        let mut run = Run::mount(queues(Path::new(image))?, subjects, seed)?;
        run.check_all()?;
        subjects = run.unmount()?;
    }
    subjects.iter().try_for_each(|subject| subject.store(models))?;
    println!("{refused} found no space, the longest list had {longest} extents");
    Ok(())
}

/// Two queues on an image: for metadata, and for data.
fn queues(image: &Path) -> Outcome<[FileDevice; 2]> {
    let backing = Arc::new(Backing::open_in_time(image, Access::ReadWrite)?);
    let queue =
        || -> Outcome<FileDevice> { Ok(FileDevice::new(&backing, &Ring::new(64)?.shared())?) };
    Ok([queue()?, queue()?])
}
