//! The chores of this workspace, as `cargo xtask NAME`; `cargo xtask --help` lists them.
//!
//! Nothing here is part of the product: it runs other programs, shows how, and stops at the first that fails.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

mod bench;
mod cargo;
mod e2e;
mod fuzz;
mod guest;
mod layers;
mod packages;
mod powercut;
mod program;
mod run;
mod steps;
mod tidy;
mod together;
mod tools;
mod torture;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::steps::Step;
use crate::workspace::Workspace;

fn main() -> ExitCode {
    match chore(Arguments::parse().chore) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The chores of the Holdfast workspace.
///
/// Each chore prints the commands that it runs and the time they took, and stops at the first that fails.
/// Times are those of two cores after a first build; the first build adds a few minutes.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Debug, Subcommand)]
enum Chore {
    /// Everything that CI checks: `lint`, then `test` (about 21 minutes)
    Ci,
    /// Formatting, clippy, rustdoc, `layers` and `tidy`, with warnings as errors (1 minute)
    Lint,
    /// Every test: Debian packages, then `unit`, `loom`, `asan`, `valgrind`, `fuzz`, `e2e`, `powercut`, and a short `torture` and `guest` (about 20 minutes)
    Test,
    /// Unit, integration and documentation tests of every crate (7 minutes with the first build)
    Unit,
    /// The loom models: every interleaving of the few things that threads share (1 minute)
    Loom,
    /// The tests of the crates that hold unsafe code, under the address sanitizer (2 minutes)
    Asan,
    /// The tests of the memory and checksum crates under valgrind (1 minute)
    ///
    /// Tests see `HOLDFAST_VALGRIND=1` and `PROPTEST_CASES=16`. `HOLDFAST_VALGRIND_SKIP=NAME,NAME` leaves out
    /// the tests whose path contains a name.
    Valgrind,
    /// Runs the fuzz targets for a while each, two at a time; installs cargo-fuzz when it is missing (5 seconds a target)
    Fuzz(fuzz::Options),
    /// Drives the program with qemu, libnbd, fio and Linux's XFS, two scenarios at a time (3 minutes, and a build)
    E2e(e2e::Options),
    /// Boots Linux with a volume as its disk: file systems, swap, buffers that change in flight, outages (16 minutes)
    Guest(guest::Options),
    /// The worst guest against every format, while sectors rot, and while the server is killed (25 minutes)
    Torture(torture::Options),
    /// What durability costs: fio with each setting, and with a raw file, in one run (8 minutes); what XFS costs: `bench xfs`
    Bench(bench::Options),
    /// Holdfast and the servers of nbdkit and QEMU with the same clients, over NBD and vhost-user, in one run (8 minutes)
    Compare(bench::Comparison),
    /// Random workloads on simulated disks, with the power cut at every event of each (3 minutes for 500 seeds)
    Powercut(powercut::Options),
    /// Checks that each crate depends only on crates of the rows below its own (1 second)
    Layers,
    /// Checks the rules that neither rustfmt nor clippy knows (1 second)
    Tidy,
}

fn chore(chore: Chore) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let steps = match chore {
        Chore::Ci => lint().into_iter().chain(test()).collect(),
        Chore::Lint => lint(),
        Chore::Test => test(),
        Chore::Unit => vec![unit()],
        Chore::Loom => vec![loom()],
        Chore::Asan => vec![asan()],
        Chore::Valgrind => vec![valgrind()],
        Chore::Fuzz(options) => {
            let repeat = options.to_string();
            vec![Step::new("fuzz", repeat, move |workspace| fuzz::run(workspace, &options))]
        }
        Chore::E2e(options) if options.list => {
            e2e::list();
            return Ok(ExitCode::SUCCESS);
        }
        Chore::E2e(options) => {
            let repeat = options.to_string();
            vec![Step::new("e2e", repeat, move |workspace| e2e::run(workspace, &options))]
        }
        Chore::Guest(options) if options.list => {
            guest::list();
            return Ok(ExitCode::SUCCESS);
        }
        Chore::Guest(options) => {
            let repeat = options.to_string();
            vec![Step::new("guest", repeat, move |workspace| guest::run(workspace, &options))]
        }
        Chore::Torture(options) => {
            let repeat = options.to_string();
            vec![Step::new("torture", repeat, move |workspace| torture::run(workspace, &options))]
        }
        Chore::Bench(options) => {
            vec![Step::new("bench", options.name(), move |workspace| {
                bench::run(workspace, &options)
            })]
        }
        Chore::Compare(options) => {
            vec![Step::new("compare", "compare", move |workspace| {
                bench::compare(workspace, &options)
            })]
        }
        Chore::Powercut(options) => {
            let repeat = options.to_string();
            vec![Step::new("powercut", repeat, move |workspace| powercut::run(workspace, &options))]
        }
        Chore::Layers => vec![layers()],
        Chore::Tidy => vec![tidy()],
    };
    Ok(steps::run(&workspace, &steps))
}

fn lint() -> Vec<Step> {
    vec![
        Step::new("fmt", "lint", cargo::fmt),
        Step::new("clippy", "lint", cargo::clippy),
        Step::new("doc", "lint", cargo::doc),
        layers(),
        tidy(),
    ]
}

fn test() -> Vec<Step> {
    vec![
        Step::new("packages", "test", |_| packages::ensure(packages::ALL)),
        unit(),
        loom(),
        asan(),
        valgrind(),
        Step::new("fuzz", "fuzz", |workspace| fuzz::run(workspace, &fuzz::Options::default())),
        Step::new("e2e", "e2e", |workspace| e2e::run(workspace, &e2e::Options::default())),
        Step::new("torture", "torture --short", |workspace| {
            torture::run(workspace, &torture::Options::short())
        }),
        Step::new("powercut", powercut::Options::default().to_string(), |workspace| {
            powercut::run(workspace, &powercut::Options::default())
        }),
        Step::new("guest", "guest --short", |workspace| {
            guest::run(workspace, &guest::Options::short())
        }),
    ]
}

fn unit() -> Step {
    Step::new("unit", "unit", cargo::unit)
}

fn loom() -> Step {
    Step::new("loom", "loom", cargo::loom)
}

fn asan() -> Step {
    Step::new("asan", "asan", cargo::asan)
}

fn valgrind() -> Step {
    Step::new("valgrind", "valgrind", cargo::valgrind)
}

fn layers() -> Step {
    Step::new("layers", "layers", layers::check)
}

fn tidy() -> Step {
    Step::new("tidy", "tidy", tidy::check)
}
