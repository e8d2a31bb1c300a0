//! Direct I/O to a large file of XFS: the library on the image, and Linux on a loop device over the same image.
//!
//! The library bounces all that is written, and all that is read, since its memory is volatile and its device needs
//! stable pages. It is measured on the raw image, and on a volume that has a copy of the image, where every sector has
//! a guard. Linux has neither copies nor guards, and fio submits and reaps in batches, as the library does. Within a
//! round all take turns, and each opens or mounts anew.

mod kernel;
mod report;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use self::kernel::{Mount, kernel_threads_seconds};
use super::Place;
use super::fio::{self, Figures, Load};
use crate::packages::{self, is_root};
use crate::run::{command, output, show};
use crate::workspace::Workspace;

/// How often and how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How often each gets each load
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// How long each time
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    seconds: u32,
    /// The size of the file, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 512)]
    size: u64,
    #[command(flatten)]
    place: Place,
    /// Only loads whose name has this in it, as in "4k random", "write" or "QD16"
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// How the library reads: always (through a buffer), or lazy (through one only after a mismatch)
    #[arg(long, value_name = "POLICY", default_value = "always")]
    read_policy: String,
    /// Also write all figures to this file, as JSON
    #[arg(long, value_name = "PATH")]
    json: Option<PathBuf>,
}

/// Who is measured. Linux is the first, to which the others are compared.
const SUBJECTS: [&str; 4] = ["Linux", "image", "volume, none", "volume, full"];

macro_rules! loads {
    ($($size:literal)*) => {&[$(
        load!($size, "sequential read", "read", 1),
        load!($size, "sequential read", "read", 16),
        load!($size, "sequential write", "write", 1),
        load!($size, "sequential write", "write", 16),
        load!($size, "random read", "randread", 1),
        load!($size, "random read", "randread", 16),
        load!($size, "random write", "randwrite", 1),
        load!($size, "random write", "randwrite", 16),
    )*]};
}

macro_rules! load {
    ($size:literal, $name:literal, $pattern:literal, $depth:literal) => {
        Load {
            name: concat!($size, " ", $name, ", QD", $depth),
            pattern: $pattern,
            size: $size,
            depth: $depth,
            fsync: 0,
        }
    };
}

const LOADS: &[Load] = loads!("4k" "64k" "1M");

/// The figures of each round, for each subject.
type Rounds = Vec<[Figures; 4]>;

/// Measures, and prints the tables.
pub(super) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    ensure!(is_root()?, "only root can mount what the library is compared with");
    packages::ensure(packages::ALL)?;
    let loads: Vec<_> = LOADS.iter().filter(|load| load.name.contains(&options.only)).collect();
    ensure!(!loads.is_empty() && options.rounds > 0, "no load has {:?} in its name", options.only);
    let program = options.place.program(workspace)?;
    let mut build = command("cargo", &["build", "--release", "-p", "holdfast-xfs"]);
    show(build.args(["--example", "load"]).current_dir(&workspace.root))?;
    let library = workspace.target.join("release/examples/load");
    let (facts, measured) = options.place.within(workspace, |directory| {
        Bench { options, directory, program: &program, library: &library }.all(&loads)
    })?;
    report::print(&facts, &loads, &measured);
    if let Some(path) = &options.json {
        fs::write(path, format!("{:#}\n", report::json(&facts, &loads, &measured)))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What all measurements have in common.
struct Bench<'a> {
    options: &'a Options,
    directory: &'a Path,
    program: &'a Path,
    library: &'a Path,
}

/// The name of the file, in both file systems.
const FILE: &str = "file";

impl Bench<'_> {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory.display())
    }

    fn holdfast(&self, arguments: &[&str]) -> Command {
        let mut holdfast = Command::new(self.program);
        holdfast.args(arguments);
        holdfast
    }

    fn mount(&self) -> Result<Mount> {
        Mount::new(&self.path("image"), &self.path("mount"))
    }

    fn all(&self, loads: &[&Load]) -> Result<(report::Facts, Vec<Rounds>)> {
        self.make()?;
        let mount = self.mount()?;
        let facts = report::Facts::of(self.options, &mount, self.directory)?;
        mount.close()?;
        let steps = loads.len() * self.options.rounds * SUBJECTS.len();
        let style = ProgressStyle::with_template("{msg:28} {wide_bar} {pos}/{len} {eta}")?;
        let bar = ProgressBar::new(steps.try_into()?).with_style(style);
        let mut measured = Vec::new();
        for load in loads {
            bar.set_message(load.name);
            let mut rounds = vec![[Figures::default(); SUBJECTS.len()]; self.options.rounds];
            for round in &mut rounds {
                for (subject, figures) in round.iter_mut().enumerate() {
                    *figures = self.one(subject, load)?;
                    bar.inc(1);
                }
            }
            measured.push(rounds);
        }
        bar.finish_and_clear();
        self.check()?;
        Ok((facts, measured))
    }

    /// Makes the image, with a file that Linux writes, and a volume with a copy of it.
    fn make(&self) -> Result<()> {
        /// For the log and the rest of the file system.
        const REST_MIB: u64 = 192;
        const XFS_MIB_MIN: u64 = 320;
        let (image, volume) = (self.path("image"), self.path("volume"));
        let bytes = (self.options.size + REST_MIB).max(XFS_MIB_MIN) << 20;
        fs::File::create(&image)?.set_len(bytes)?;
        show(&mut command("mkfs.xfs", &["-q", &image]))?;
        fs::create_dir_all(self.path("mount"))?;
        let mount = self.mount()?;
        let fill = Load { name: "", pattern: "write", size: "1M", depth: 4, fsync: 0 };
        let mut target = self.target(&fill).to_vec();
        target.push("--end_fsync=1".to_owned());
        fio::run(&target, &fill, None)?;
        mount.close()?;
        show(&mut self.holdfast(&["import", &image, &volume]))
    }

    /// Says to fio what to do on the mount: as little besides I/O as it can.
    fn target(&self, load: &Load) -> [String; 10] {
        [
            "--ioengine=io_uring".to_owned(),
            "--direct=1".to_owned(),
            "--fixedbufs".to_owned(),
            "--registerfiles".to_owned(),
            "--scramble_buffers=0".to_owned(),
            format!("--iodepth_batch_submit={}", load.depth),
            "--iodepth_batch_complete_min=1".to_owned(),
            format!("--iodepth_batch_complete_max={}", load.depth),
            format!("--filename={}/{FILE}", self.path("mount")),
            format!("--size={}M", self.options.size),
        ]
    }

    /// Measures a subject once.
    fn one(&self, subject: usize, load: &Load) -> Result<Figures> {
        let before = kernel_threads_seconds()?;
        let mut figures = match subject {
            0 => {
                let mount = self.mount()?;
                let figures = fio::run(&self.target(load), load, Some(self.options.seconds))?;
                mount.close()?;
                figures
            }
            1 => self.library("image", "full", load)?,
            2 => self.library("volume", "none", load)?,
            _ => self.library("volume", "full", load)?,
        };
        figures.cpu += kernel_threads_seconds()? - before;
        Ok(figures)
    }

    fn library(&self, name: &str, durability: &str, load: &Load) -> Result<Figures> {
        let is_random = load.pattern.starts_with("rand");
        let op = load.pattern.trim_start_matches("rand");
        let pattern = if is_random { "random" } else { "sequential" };
        let mut run = Command::new(self.library);
        run.arg(self.path(name)).arg(format!("/{FILE}"));
        run.args(["--op", op, "--pattern", pattern, "--block", &load.bytes().to_string()]);
        run.args(["--depth", &load.depth.to_string()]);
        run.args(["--seconds", &self.options.seconds.to_string()]);
        run.args(["--durability", durability, "--read-policy", &self.options.read_policy]);
        let text = output(&mut run)?;
        let json: Value = serde_json::from_str(&text).context("`load` printed no JSON")?;
        let number = |name: &str| json[name].as_f64().context("`load` printed other JSON");
        let (requests, seconds) = (number("requests")?, number("seconds")?);
        Ok(Figures {
            per_second: requests / seconds,
            latency: number("p50_ns")? / 1e3,
            requests,
            cpu: number("cpu_seconds")?,
        })
    }

    /// What was measured must have worked.
    fn check(&self) -> Result<()> {
        output(&mut command("xfs_repair", &["-n", "-f", &self.path("image")]))?;
        show(&mut self.holdfast(&["verify", &self.path("volume")]))
    }
}
