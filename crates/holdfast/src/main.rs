//! Protected disks for virtual machines and programs: the command line.

#![forbid(unsafe_code)]

mod announce;
mod backing;
mod bench;
mod cli;
mod control;
mod copy;
mod create;
mod http;
mod info;
mod legs;
mod limited;
mod live;
mod metrics;
mod mount;
mod progress;
mod resync;
mod scrub;
mod serve;
mod serve_xfs;
mod signals;
mod store;
mod torture;
mod verify;
mod xfs;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use holdfast_bio::Error;
use tracing_subscriber::EnvFilter;

use crate::cli::{Cli, Command};

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Everything is fine: exit code 0.
    Fine,
    /// It ran, and the data have problems: exit code 1.
    Problems,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    // What a scrub finds is in its report, and what ends an export is in its one line.
    let default = match cli.command {
        Command::Verify(_) | Command::Export(_) | Command::Xfs(_) => "info,holdfast::corrupt=off",
        // Its own server and its own corrupt sectors are no news.
        Command::Torture(_) => "warn,holdfast::progress=info,holdfast::corrupt=off",
        _ => "info",
    };
    let filter =
        EnvFilter::try_from_env("HOLDFAST_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    match run(&cli.command) {
        Ok(Outcome::Fine) => ExitCode::SUCCESS,
        Ok(Outcome::Problems) => ExitCode::from(1),
        Err(error) => {
            #[expect(clippy::print_stderr, reason = "the one line that says why")]
            {
                eprintln!("holdfast: {error:#}");
            }
            ExitCode::from(if is_corruption(&error) { 1 } else { 2 })
        }
    }
}

/// Returns whether a command ended because the data have problems.
fn is_corruption(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(Error::Mismatch(_))) || xfs::is_corruption(cause)
    })
}

fn run(command: &Command) -> anyhow::Result<Outcome> {
    match command {
        Command::Create(arguments) => create::run(arguments),
        Command::Serve(arguments) => serve::run(arguments),
        Command::Verify(arguments) => verify::run(arguments),
        Command::Attach(arguments) => legs::attach(arguments),
        Command::Detach(arguments) => legs::detach(arguments),
        Command::Info(arguments) => info::run(arguments),
        Command::Scrub(arguments) => scrub::run(arguments),
        Command::Import(arguments) => copy::import(arguments),
        Command::Export(arguments) => copy::export(arguments),
        Command::Torture(arguments) => torture::run(arguments),
        Command::Bench(arguments) => bench::run(arguments),
        Command::Xfs(arguments) => xfs::run(arguments),
        Command::Mount(arguments) => mount::run(arguments),
    }
}
