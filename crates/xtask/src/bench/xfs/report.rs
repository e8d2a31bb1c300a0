//! The tables, and the same as JSON.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::kernel::Mount;
use super::{Options, Rounds, SUBJECTS};
use crate::bench::fio::{Figures, Load, median};
use crate::run::{command, output};

/// Where and how it was measured.
pub(super) struct Facts {
    machine: String,
    date: String,
    /// The file system that the image is on.
    medium: String,
    is_direct: bool,
    rounds: usize,
    seconds: u32,
    read_policy: String,
}

impl Facts {
    pub(super) fn of(options: &Options, mount: &Mount, directory: &Path) -> Result<Self> {
        let line = |program: &str, arguments: &[&str]| -> Result<String> {
            Ok(output(&mut command(program, arguments))?.trim().to_owned())
        };
        let processors = fs::read_to_string("/proc/cpuinfo")?;
        let model = processors.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.unwrap_or_default().trim_start_matches([' ', '\t', ':']);
        let (count, kernel) = (line("nproc", &[])?, line("uname", &["-sr"])?);
        let mut medium = command("findmnt", &["--noheadings", "--output", "FSTYPE", "--target"]);
        Ok(Self {
            machine: format!("{kernel}, {count} x {model}"),
            date: line("date", &["--utc", "+%Y-%m-%d %H:%M"])?,
            medium: output(medium.arg(directory))?.trim().to_owned(),
            is_direct: mount.is_direct()?,
            rounds: options.rounds,
            seconds: options.seconds,
            read_policy: options.read_policy.clone(),
        })
    }
}

/// What the rounds of one subject came to.
struct Summary {
    per_second: f64,
    latency: f64,
    /// Of processors, for each request, in microseconds.
    cpu: f64,
    /// To Linux: of the medians, and the lowest and the highest of a round.
    ratio: f64,
    ratios: [f64; 2],
}

fn cpu(figures: &Figures) -> f64 {
    figures.cpu * 1e6 / figures.requests.max(1.0)
}

fn summary(rounds: &Rounds, subject: usize) -> Summary {
    let of = |subject: usize, figure: fn(&Figures) -> f64| {
        median(rounds.iter().map(|round| figure(&round[subject])).collect())
    };
    let per_second = of(subject, |it| it.per_second);
    let ratios = || rounds.iter().map(|round| round[subject].per_second / round[0].per_second);
    Summary {
        per_second,
        latency: of(subject, |it| it.latency),
        cpu: of(subject, cpu),
        ratio: per_second / of(0, |it| it.per_second),
        ratios: [ratios().fold(f64::INFINITY, f64::min), ratios().fold(0.0, f64::max)],
    }
}

fn summaries(rounds: &Rounds) -> [Summary; SUBJECTS.len()] {
    std::array::from_fn(|subject| summary(rounds, subject))
}

/// Prints both tables.
pub(super) fn print(facts: &Facts, loads: &[&Load], measured: &[Rounds]) {
    let Facts { machine, date, medium, rounds, seconds, read_policy, .. } = facts;
    println!("\n{machine}; {date}; {rounds} rounds of {seconds} s; reads: {read_policy}");
    println!("the image is on {medium}; the loop device {}", kind_of_loop(facts));
    println!(
        "\n| requests a second (median latency, processor time of each, in us) | {} |",
        SUBJECTS.join(" | ")
    );
    println!("|---|---|---|---|---|");
    for (load, rounds) in loads.iter().zip(measured) {
        let cells = summaries(rounds)
            .map(|it| format!("{:.0} ({:.0}, {:.1})", it.per_second, it.latency, it.cpu));
        println!("| {} | {} |", load.name, cells.join(" | "));
    }
    println!("\n| ratio to Linux (lowest to highest of a round) | {} |", SUBJECTS[1..].join(" | "));
    println!("|---|---|---|---|");
    for (load, rounds) in loads.iter().zip(measured) {
        let cells = summaries(rounds)
            .map(|it| format!("{:.2} ({:.2} to {:.2})", it.ratio, it.ratios[0], it.ratios[1]));
        println!("| {} | {} |", load.name, cells[1..].join(" | "));
    }
}

const fn kind_of_loop(facts: &Facts) -> &'static str {
    if facts.is_direct { "says that it does direct I/O" } else { "does buffered I/O" }
}

/// All figures of all rounds.
pub(super) fn json(facts: &Facts, loads: &[&Load], measured: &[Rounds]) -> Value {
    let rows = loads.iter().zip(measured).map(|(load, rounds)| {
        let subjects = SUBJECTS.iter().enumerate().map(|(subject, name)| {
            let it = summary(rounds, subject);
            let each = |round: &[Figures; SUBJECTS.len()]| {
                let it = &round[subject];
                json!({ "per_second": it.per_second, "latency_us": it.latency, "cpu_us": cpu(it) })
            };
            json!({
                "name": name,
                "per_second": it.per_second,
                "latency_us": it.latency,
                "cpu_us": it.cpu,
                "ratio": it.ratio,
                "ratio_min": it.ratios[0],
                "ratio_max": it.ratios[1],
                "rounds": rounds.iter().map(each).collect::<Vec<_>>(),
            })
        });
        json!({ "load": load.name, "subjects": subjects.collect::<Vec<_>>() })
    });
    json!({
        "machine": facts.machine,
        "date": facts.date,
        "image_on": facts.medium,
        "loop_direct_io": facts.is_direct,
        "seconds": facts.seconds,
        "read_policy": facts.read_policy,
        "loads": rows.collect::<Vec<_>>(),
    })
}
