//! Runs many seeds on all cores, and says what came out. `cargo xtask powercut` is how it is called.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a program for a terminal")]

use std::cell::Cell;
use std::ops::Range;
use std::panic;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use holdfast_powercut::{Outcome, Table, check};
use indicatif::{ProgressBar, ProgressStyle};

/// Random workloads on simulated disks, cut at every event.
#[derive(Debug, Parser)]
#[command(name = "holdfast-powercut")]
struct Arguments {
    /// How many seeds are run
    #[arg(long, value_name = "N", default_value_t = 500)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// Only this seed
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Only this cut of it: the number of events of the disk before it
    #[arg(long, value_name = "K")]
    cut: Option<usize>,
    /// Go on after a seed in which something is wrong
    #[arg(long)]
    keep_going: bool,
}

thread_local! {
    /// The seed that this thread runs, to be named by a panic.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let default = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if let Some(seed) = SEED.get() {
            eprintln!("seed {seed} panics; to repeat: cargo xtask powercut --seed {seed}");
        }
        default(info);
    }));
    // Each image opens a volume with pools of its own, of which little is used: to clear 2 MiB for the
    // first byte would take a third of the time. Where it cannot be turned off, it takes that.
    let _slower = rustix::thread::disable_transparent_huge_pages(true);
    let seeds = match arguments.seed {
        Some(seed) => seed..seed + 1,
        None => arguments.first..arguments.first + arguments.seeds,
    };
    let started = Instant::now();
    let (table, alarms) = run(seeds, arguments.cut, arguments.keep_going);
    println!("{table}\n{:.1} s", started.elapsed().as_secs_f64());
    if alarms == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs seeds on all cores. Returns the sums, and in how many something was wrong.
fn run(seeds: Range<u64>, cut: Option<usize>, keep_going: bool) -> (Table, u64) {
    let (next, is_over) = (AtomicU64::new(seeds.start), AtomicBool::new(false));
    let (sender, receiver) = mpsc::channel();
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            let (sender, seeds, next, is_over) = (sender.clone(), &seeds, &next, &is_over);
            scope.spawn(move || work(&sender, seeds, cut, next, is_over));
        }
        drop(sender);
        collect(&receiver, seeds.end - seeds.start, keep_going, &is_over)
    })
}

/// Takes one seed after the other.
fn work(
    sender: &Sender<Outcome>,
    seeds: &Range<u64>,
    cut: Option<usize>,
    next: &AtomicU64,
    is_over: &AtomicBool,
) {
    // Relaxed: each seed is taken once, and a late end does no harm.
    while !is_over.load(Ordering::Relaxed) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds.end {
            break;
        }
        SEED.set(Some(seed));
        if sender.send(check(seed, cut)).is_err() {
            break;
        }
    }
}

/// Adds up what comes, and shows how far it is.
fn collect(
    receiver: &Receiver<Outcome>,
    count: u64,
    keep_going: bool,
    is_over: &AtomicBool,
) -> (Table, u64) {
    /// How often a line is printed where there is no terminal.
    const LINES: Duration = Duration::from_secs(10);
    let (mut table, mut alarms, mut done) = (Table::default(), 0, 0);
    let style = ProgressStyle::with_template("seeds {wide_bar} {human_pos}/{human_len} {eta}");
    let bar = ProgressBar::new(count);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    let mut said = Instant::now();
    for outcome in receiver {
        done += 1;
        bar.inc(1);
        table.add(outcome.durability, &outcome.counts);
        if let Some(alarm) = &outcome.alarm {
            alarms += 1;
            bar.suspend(|| println!("{alarm}"));
            // Relaxed: as above.
            is_over.fetch_or(!keep_going, Ordering::Relaxed);
        }
        if bar.is_hidden() && said.elapsed() > LINES {
            said = Instant::now();
            println!("{done} of {count} seeds");
        }
    }
    bar.finish_and_clear();
    (table, alarms)
}
