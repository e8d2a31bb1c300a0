//! Holdfast and the servers of others that Debian has, with the same client in one run.
//!
//! Holdfast has its guards, its tuple log and its defaults; the others have no checksums.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use super::fio::{self, Figures, Load, median};
use super::server::Server;
use super::{Place, SIZE};
use crate::packages;
use crate::run::{command, output, show};
use crate::workspace::Workspace;

/// How often and how long.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How often each server gets each load
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: usize,
    /// How long each time
    #[arg(long, value_name = "SECONDS", default_value_t = 1)]
    seconds: u32,
    #[command(flatten)]
    place: Place,
}

/// What servers speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Nbd,
    VhostUser,
}

const NBD: &[&str] = &["holdfast", "nbdkit", "qemu-nbd", "qemu-storage-daemon"];
const VHOST_USER: &[&str] = &["holdfast", "qemu-storage-daemon"];

const LOADS: &[Load] = &[
    load("4k read, QD1", "randread", "4k", 1),
    load("4k read, QD16", "randread", "4k", 16),
    load("4k write, QD1", "randwrite", "4k", 1),
    load("4k write, QD16", "randwrite", "4k", 16),
    load("64k read, QD1", "randread", "64k", 1),
    load("64k read, QD16", "randread", "64k", 16),
    load("64k write, QD1", "randwrite", "64k", 1),
    load("64k write, QD16", "randwrite", "64k", 16),
    load("1M read, QD1", "randread", "1M", 1),
    load("1M read, QD16", "randread", "1M", 16),
    load("1M write, QD1", "randwrite", "1M", 1),
    load("1M write, QD16", "randwrite", "1M", 16),
];

const fn load(name: &'static str, pattern: &'static str, size: &'static str, depth: u32) -> Load {
    Load { name, pattern, size, depth, fsync: 0 }
}

/// Measures and prints the tables.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    packages::ensure(packages::ALL)?;
    let program = options.place.program(workspace)?;
    let mut build = command("cargo", &["build", "--release", "--example", "blkbench"]);
    show(build.args(["-p", "holdfast-virtio-driver"]).current_dir(&workspace.root))?;
    let client = workspace.target.join("release/examples/blkbench");
    options.place.within(workspace, |directory| {
        let run = Run { options, directory, program: &program, client: &client };
        for (protocol, names) in [(Protocol::VhostUser, VHOST_USER), (Protocol::Nbd, NBD)] {
            print(protocol, names, &run.measure(protocol, names)?);
        }
        Ok(())
    })
}

/// A comparison.
struct Run<'r> {
    options: &'r Options,
    directory: &'r Path,
    program: &'r Path,
    /// The client for vhost-user.
    client: &'r Path,
}

impl Run<'_> {
    /// Returns the medians of each load, in the order of the servers.
    fn measure(&self, protocol: Protocol, names: &[&str]) -> Result<Vec<Vec<Figures>>> {
        let servers = names.iter().map(|name| self.start(protocol, name));
        let servers = servers.collect::<Result<Vec<_>>>()?;
        let fill = load("", "write", "1M", 4);
        for (server, name) in servers.iter().zip(names) {
            // What was never written costs the file system more than what is written again.
            match protocol {
                Protocol::Nbd => drop(fio::run(&self.fio_target(name), &fill, None)?),
                Protocol::VhostUser => drop(self.once(protocol, server, name, &LOADS[11], 4)?),
            }
        }
        let mut medians = Vec::new();
        for load in LOADS {
            let mut found = vec![Vec::new(); names.len()];
            for _ in 0..self.options.rounds {
                for ((found, server), name) in found.iter_mut().zip(&servers).zip(names) {
                    found.push(self.once(protocol, server, name, load, self.options.seconds)?);
                }
            }
            println!("measured: {}", load.name);
            medians.push(found.iter().map(|rounds| middle(rounds)).collect());
        }
        Ok(medians)
    }

    fn path(&self, protocol: Protocol, name: &str, suffix: &str) -> String {
        format!("{}/{protocol:?}-{name}.{suffix}", self.directory.display())
    }

    fn socket(&self, protocol: Protocol, name: &str) -> String {
        self.path(protocol, name, "sock")
    }

    /// Measures a server once. The processor time is that of the server.
    fn once(
        &self,
        protocol: Protocol,
        server: &Server,
        name: &str,
        load: &Load,
        seconds: u32,
    ) -> Result<Figures> {
        let before = server.cpu()?;
        let figures = match protocol {
            Protocol::Nbd => fio::run(&self.fio_target(name), load, Some(seconds)),
            Protocol::VhostUser => self.vhost_user(&self.socket(protocol, name), load, seconds),
        };
        let figures = figures.with_context(|| format!("{name}: {}", load.name))?;
        Ok(Figures { cpu: server.cpu()? - before, ..figures })
    }

    /// Says to fio where a server is.
    fn fio_target(&self, name: &str) -> [String; 3] {
        // QEMU's daemon calls an export as its disk.
        let export = if name == "qemu-storage-daemon" { "disk" } else { "" };
        let uri = format!("--uri=nbd+unix:///{export}?socket={}", self.socket(Protocol::Nbd, name));
        ["--ioengine=nbd".to_owned(), uri, format!("--size={SIZE}")]
    }

    fn vhost_user(&self, socket: &str, load: &Load, seconds: u32) -> Result<Figures> {
        let mut client = Command::new(self.client);
        let op = load.pattern.trim_start_matches("rand");
        client.args([&format!("server={socket}"), "--json", "--rounds=1", "--warm-up=0"]);
        client.args(["--op", op, "--block", load.size]);
        client.args([format!("--depth={}", load.depth), format!("--seconds={seconds}")]);
        let json: Value = serde_json::from_str(&output(&mut client)?)?;
        let number = |name: &str| json[name].as_f64().with_context(|| format!("no {name}"));
        Ok(Figures {
            per_second: number("requests_per_second")?,
            latency: number("p50_us")?,
            requests: number("requests")?,
            cpu: 0.0,
        })
    }

    /// Starts a server of a new disk.
    fn start(&self, protocol: Protocol, name: &str) -> Result<Server> {
        let socket = self.socket(protocol, name);
        let disk = self.path(protocol, name, "disk");
        if name != "holdfast" {
            show(&mut command("truncate", &["--size", SIZE, &disk]))?;
        }
        let serve = match name {
            "holdfast" => {
                let mut serve = Command::new(self.program);
                serve.args(["serve", &disk, "--create", SIZE]);
                match protocol {
                    Protocol::Nbd => serve.args(["--nbd", &format!("unix:{socket}")]),
                    Protocol::VhostUser => serve.args(["--vhost-user", &socket]),
                };
                serve
            }
            // The storage is compared, and not the page cache.
            "nbdkit" => {
                let mut serve = command("nbdkit", &["--foreground", "--unix", &socket, "file"]);
                serve.args([&disk, "cache=none"]);
                serve
            }
            "qemu-nbd" => {
                let how = ["--cache=none", "--aio=io_uring", "--persistent", "--format=raw"];
                let mut serve = command("qemu-nbd", &how);
                serve.args(["--socket", &socket, "--discard=unmap", "--shared=4", &disk]);
                serve
            }
            _ => storage_daemon(protocol, &disk, &socket),
        };
        Server::start(serve, &socket, &self.path(protocol, name, "log"))
    }
}

fn storage_daemon(protocol: Protocol, disk: &str, socket: &str) -> Command {
    let file = format!("driver=file,node-name=file,filename={disk},cache.direct=on,aio=io_uring");
    let mut serve = command("qemu-storage-daemon", &["--blockdev", &file]);
    serve.args(["--blockdev", "driver=raw,node-name=disk,file=file"]);
    match protocol {
        // In its main thread: with an iothread version 7.2 ends when a client does, by an assertion.
        Protocol::Nbd => serve.args([
            "--nbd-server",
            &format!("addr.type=unix,addr.path={socket}"),
            "--export",
            "type=nbd,id=e,node-name=disk,writable=on",
        ]),
        Protocol::VhostUser => serve.args([
            "--object",
            "iothread,id=thread",
            "--export",
            &format!(
                "type=vhost-user-blk,id=e,node-name=disk,writable=on,iothread=thread,\
                 addr.type=unix,addr.path={socket}"
            ),
        ]),
    };
    serve
}

fn middle(rounds: &[Figures]) -> Figures {
    let of = |figure: fn(&Figures) -> f64| median(rounds.iter().map(figure).collect());
    Figures {
        per_second: of(|it| it.per_second),
        latency: of(|it| it.latency),
        requests: of(|it| it.requests),
        cpu: of(|it| it.cpu / it.requests),
    }
}

/// Prints a table: MB/s, the median latency, and processor seconds of the server for each GiB.
fn print(protocol: Protocol, names: &[&str], measured: &[Vec<Figures>]) {
    const GIBIBYTE: f64 = 1_073_741_824.0;
    println!(
        "\n| {protocol:?}: MB/s (p50 us; CPU s/GiB) | {} | holdfast / best |",
        names.join(" | ")
    );
    println!("|{}", "---|".repeat(names.len() + 2));
    for (load, servers) in LOADS.iter().zip(measured) {
        let bytes = f64::from(load.bytes());
        let cells = servers.iter().map(|it| {
            let (rate, cpu) = (it.per_second * bytes / 1e6, it.cpu * GIBIBYTE / bytes);
            format!("{rate:.0} ({:.0}; {cpu:.2})", it.latency)
        });
        let best = servers[1..].iter().map(|it| it.per_second).fold(0.0, f64::max);
        let ratio = servers[0].per_second / best;
        println!("| {} | {} | {ratio:.2} |", load.name, cells.collect::<Vec<_>>().join(" | "));
    }
    println!();
}
