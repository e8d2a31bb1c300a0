//! What durability costs: fio over NBD, with each setting and with a raw file, side by side in one run. And, with
//! `bench xfs`, a file of XFS as the library has it and as Linux has it.
//!
//! A machine is never quite alone, so each round measures all servers one after the other, and what is shown are
//! the medians of the rounds.

mod cpu;
mod fio;
mod peers;
mod server;
mod xfs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, Subcommand};

pub(crate) use self::peers::{Options as Comparison, run as compare};

use self::fio::{Figures, Load, median};
use self::server::Server;
use crate::packages;
use crate::run::{command, show};
use crate::workspace::Workspace;

const SERVERS: [&str; 4] = ["full", "bitmap", "none", "raw"];
const SIZE: &str = "1G";

/// How often and how long.
#[derive(Args, Clone, Debug)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    subject: Option<Subject>,
    /// How often each server gets each load
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// How long each time
    #[arg(long, value_name = "SECONDS", default_value_t = 3)]
    seconds: u32,
    #[command(flatten)]
    place: Place,
}

/// What else is measured.
#[derive(Clone, Debug, Subcommand)]
enum Subject {
    /// A large file of XFS, with the library and with Linux on a loop device, in one run (25 minutes; as root)
    Xfs(xfs::Options),
}

impl Options {
    /// What repeats it.
    pub(crate) const fn name(&self) -> &'static str {
        match self.subject {
            None => "bench",
            Some(Subject::Xfs(_)) => "bench xfs",
        }
    }
}

const LOADS: &[Load] = &[
    Load { name: "4k random, QD1", pattern: "randwrite", size: "4k", depth: 1, fsync: 0 },
    Load { name: "4k random, QD16", pattern: "randwrite", size: "4k", depth: 16, fsync: 0 },
    Load {
        name: "4k random, QD1, fsync 32",
        pattern: "randwrite",
        size: "4k",
        depth: 1,
        fsync: 32,
    },
    Load {
        name: "4k random, QD16, fsync 32",
        pattern: "randwrite",
        size: "4k",
        depth: 16,
        fsync: 32,
    },
    Load { name: "1M sequential, QD1", pattern: "write", size: "1M", depth: 1, fsync: 0 },
    Load { name: "1M sequential, QD16", pattern: "write", size: "1M", depth: 16, fsync: 0 },
    Load {
        name: "1M sequential, QD1, fsync 32",
        pattern: "write",
        size: "1M",
        depth: 1,
        fsync: 32,
    },
    Load {
        name: "1M sequential, QD16, fsync 32",
        pattern: "write",
        size: "1M",
        depth: 16,
        fsync: 32,
    },
];

/// A server of a volume or of a raw file.
struct Measured {
    _server: Server,
    uri: String,
}

impl Measured {
    /// Says to fio where it is.
    fn target(&self) -> [String; 3] {
        ["--ioengine=nbd".to_owned(), format!("--uri={}", self.uri), format!("--size={SIZE}")]
    }
}

/// Where servers are measured, and which.
#[derive(Args, Clone, Debug)]
struct Place {
    /// Where the volumes are made; the default is in the target directory
    #[arg(long, value_name = "DIRECTORY")]
    directory: Option<PathBuf>,
    /// Measure this program instead of building one from this workspace
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

impl Place {
    /// Builds the program, unless there is one.
    fn program(&self, workspace: &Workspace) -> Result<PathBuf> {
        if let Some(path) = &self.program {
            return path.canonicalize().with_context(|| format!("no {}", path.display()));
        }
        let mut build = command("cargo", &["build", "--release", "-p", "holdfast"]);
        show(build.current_dir(&workspace.root))?;
        Ok(workspace.target.join("release/holdfast"))
    }

    /// Makes a directory as long as something is done in it.
    fn within<R>(
        &self,
        workspace: &Workspace,
        measure: impl FnOnce(&Path) -> Result<R>,
    ) -> Result<R> {
        let parent = self.directory.clone().unwrap_or_else(|| workspace.target.join("tmp"));
        let directory = parent.join(format!("bench-{}", std::process::id()));
        fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let measured = measure(&directory);
        fs::remove_dir_all(&directory)
            .with_context(|| format!("cannot remove {}", directory.display()))?;
        measured
    }
}

/// Measures and prints the table.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    if let Some(Subject::Xfs(options)) = &options.subject {
        return xfs::run(workspace, options);
    }
    packages::ensure(packages::ALL)?;
    let program = options.place.program(workspace)?;
    let (measured, [plain, durable]) = options.place.within(workspace, |directory| {
        Ok((measure(&program, directory, options)?, durable(directory, options)?))
    })?;
    print(&measured);
    println!(
        "\n4 KiB to a file here take {plain:.0} us, and {durable:.0} us to be durable: with full \
         durability a write waits for one of each"
    );
    Ok(())
}

/// The latency of a write of 4 KiB to a file, in microseconds: plain, and durable.
fn durable(directory: &Path, options: &Options) -> Result<[f64; 2]> {
    let file = format!("--filename={}", directory.join("raw.disk").display());
    let load = Load { name: "", pattern: "randwrite", size: "4k", depth: 1, fsync: 0 };
    let mut rounds = vec![[0.0; 2]; options.rounds];
    for round in &mut rounds {
        for (latency, sync) in round.iter_mut().zip(["none", "dsync"]) {
            let (sync, size) = (format!("--sync={sync}"), format!("--size={SIZE}"));
            let target = ["--ioengine=psync", "--direct=1", &file, &sync, &size];
            *latency = fio::run(&target, &load, Some(options.seconds))?.latency;
        }
    }
    Ok([0, 1].map(|which| median(rounds.iter().map(|round| round[which]).collect())))
}

/// The medians for each load and server.
fn measure(program: &Path, directory: &Path, options: &Options) -> Result<Vec<[Figures; 4]>> {
    let servers = SERVERS.map(|name| start(program, directory, name));
    let [full, bitmap, none, raw] = servers;
    let servers = [full?, bitmap?, none?, raw?];
    let fill = Load { name: "", pattern: "write", size: "1M", depth: 4, fsync: 0 };
    for server in &servers {
        // What was never written costs the file system more than what is written again.
        fio::run(&server.target(), &fill, None)?;
    }
    let mut medians = Vec::new();
    for load in LOADS {
        let mut rounds = vec![[Figures::default(); 4]; options.rounds];
        for round in &mut rounds {
            for (figures, server) in round.iter_mut().zip(&servers) {
                *figures = fio::run(&server.target(), load, Some(options.seconds))?;
            }
        }
        println!("measured: {}", load.name);
        medians.push(std::array::from_fn(|server| {
            let of = |figure: fn(&Figures) -> f64| {
                median(rounds.iter().map(|round| figure(&round[server])).collect())
            };
            let (per_second, latency) = (of(|it| it.per_second), of(|it| it.latency));
            Figures { per_second, latency, ..Figures::default() }
        }));
    }
    Ok(medians)
}

/// Serves a new volume with a durability, or a raw file with QEMU's server.
fn start(program: &Path, directory: &Path, name: &str) -> Result<Measured> {
    let path = |suffix: &str| format!("{}/{name}.{suffix}", directory.display());
    let (disk, socket) = (path("disk"), path("sock"));
    let serve = if name == "raw" {
        show(&mut command("truncate", &["--size", SIZE, &disk]))?;
        let cached = ["--cache=none", "--aio=io_uring", "--persistent", "--format=raw"];
        let mut serve = command("qemu-nbd", &cached);
        serve.args(["--socket", &socket, "--discard=unmap", &disk]);
        serve
    } else {
        let mut serve = Command::new(program);
        serve.args(["serve", &disk, "--create", SIZE, "--durability", name]);
        serve.args(["--nbd", &format!("unix:{socket}")]);
        serve
    };
    let server = Server::start(serve, &socket, &path("log"))?;
    Ok(Measured { _server: server, uri: format!("nbd+unix:///?socket={socket}") })
}

fn print(measured: &[[Figures; 4]]) {
    println!("\n| writes a second (median latency in us) | {} |", SERVERS.join(" | "));
    println!("|---|---|---|---|---|");
    for (load, servers) in LOADS.iter().zip(measured) {
        let cells = servers.map(|it| format!("{:.0} ({:.0})", it.per_second, it.latency));
        println!("| {} | {} |", load.name, cells.join(" | "));
    }
    println!("\n| ratio | full / none | bitmap / none | none / raw |\n|---|---|---|---|");
    for (load, [full, bitmap, none, raw]) in LOADS.iter().zip(measured) {
        let ratio = |one: &Figures, other: &Figures| one.per_second / other.per_second;
        println!(
            "| {} | {:.2} | {:.2} | {:.2} |",
            load.name,
            ratio(full, none),
            ratio(bitmap, none),
            ratio(none, raw)
        );
    }
}
