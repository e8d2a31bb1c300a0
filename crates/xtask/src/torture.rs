//! The worst guest against every format: nothing may be wrong, also while sectors rot and while the server is
//! killed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Instant, SystemTime};
use std::{fmt, fs};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use serde_json::Value;

use crate::program::Program;
use crate::run::{command, line};
use crate::workspace::Workspace;

const GUARDS: [&str; 3] = ["crc16", "crc32c", "crc64"];
const SECTORS: [&str; 2] = ["512", "4096"];
const QUEUES: [&str; 2] = ["1", "4"];
const POLICIES: [&str; 2] = ["always", "lazy"];
/// The combinations of guard, sector and number of queues.
const COMBINATIONS: u64 = 12;

/// So many requests cannot be without a sector that rots meanwhile.
const REQUESTS_TO_ROT: u64 = 2_000;

/// How much, and with which program.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How many requests each policy gets, and the device that rots: all formats together
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    requests: u64,
    /// How often the server is killed, all formats together
    #[arg(long, value_name = "N", default_value_t = 100)]
    restarts: u64,
    /// Take little of everything (40 seconds)
    #[arg(long, conflicts_with_all = ["requests", "restarts"])]
    short: bool,
    /// Where all choices come from, as far as threads allow; a new one each time when there is none
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Run this program instead of building one from this workspace
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
}

impl Options {
    /// The run that CI does.
    pub(crate) const fn short() -> Self {
        Self { requests: 0, restarts: 0, short: true, seed: None, program: None }
    }

    const fn amounts(&self) -> (u64, u64) {
        if self.short { (24_000, 12) } else { (self.requests, self.restarts) }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("torture")?;
        if self.short {
            f.write_str(" --short")?;
        } else {
            write!(f, " --requests {} --restarts {}", self.requests, self.restarts)?;
        }
        self.program.iter().try_for_each(|path| write!(f, " --program {}", path.display()))?;
        self.seed.iter().try_for_each(|seed| write!(f, " --seed {seed}"))
    }
}

/// What a run is, besides its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Corrupt,
    Kills,
}

/// One run of the program.
#[derive(Clone, Copy, Debug)]
struct Run {
    kind: Kind,
    guard: &'static str,
    sector: &'static str,
    queues: &'static str,
    policy: &'static str,
    /// Requests, or kills.
    count: u64,
    seed: u64,
}

/// Runs everything, and fails with the first run in which something is wrong.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let program = match &options.program {
        Some(path) => {
            path.canonicalize().with_context(|| format!("no program {}", path.display()))?
        }
        None => Program::Holdfast.build(workspace)?,
    };
    let directory = workspace.target.join("tmp");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let seed = options.seed.unwrap_or_else(seed_of_now);
    let (requests, restarts) = options.amounts();
    println!("\nseed {seed}");
    for part in parts(requests, restarts, seed) {
        let mut total = Total::default();
        let started = Instant::now();
        for run in &part.runs {
            let found = carry_out(run, &program, &directory)?;
            println!("  {run}: {found}");
            total.add(&found);
        }
        println!("{}: {total} ({:.0} s)", part.name, started.elapsed().as_secs_f64());
    }
    Ok(())
}

fn seed_of_now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_secs() << 8)
}

/// Runs that belong together.
struct Part {
    name: String,
    runs: Vec<Run>,
}

/// Returns all runs, each with a seed of its own.
fn parts(requests: u64, restarts: u64, seed: u64) -> Vec<Part> {
    let mut seeds = seed..;
    let mut runs_of = |kind, count: u64, policy: fn(usize) -> &'static str| {
        let mut left = count;
        let mut runs = Vec::new();
        for (index, (guard, sector, queues)) in combinations().enumerate() {
            // What does not divide is with the first.
            let count = left.div_ceil(COMBINATIONS - index as u64);
            left -= count;
            let seed = seeds.next().unwrap_or_default();
            if count > 0 {
                runs.push(Run { kind, guard, sector, queues, policy: policy(index), count, seed });
            }
        }
        runs
    };
    // Each sector and number of queues has each policy with some guard.
    let in_turn = |index| POLICIES[(index / 4 + index / 2 + index) % 2];
    let part = |name: &str, runs| Part { name: name.to_owned(), runs };
    vec![
        part("always", runs_of(Kind::Plain, requests, |_| "always")),
        part("lazy", runs_of(Kind::Plain, requests, |_| "lazy")),
        part("while sectors rot", runs_of(Kind::Corrupt, requests, in_turn)),
        part("while the server is killed", runs_of(Kind::Kills, restarts, in_turn)),
    ]
}

fn combinations() -> impl Iterator<Item = (&'static str, &'static str, &'static str)> {
    GUARDS.into_iter().flat_map(|guard| {
        SECTORS.into_iter().flat_map(move |sector| QUEUES.map(|queues| (guard, sector, queues)))
    })
}

impl Run {
    fn arguments(&self, directory: &str) -> Vec<String> {
        let Self { guard, sector, queues, policy, count, seed, .. } = self;
        let mut arguments = format!(
            "torture --json --guard {guard} --sector {sector} --queues {queues} --policy {policy} \
             --seed {seed}"
        )
        .split(' ')
        .map(str::to_owned)
        .collect::<Vec<_>>();
        arguments.extend(match self.kind {
            Kind::Plain => vec!["--requests".to_owned(), count.to_string()],
            Kind::Corrupt => {
                vec!["--requests".to_owned(), count.to_string(), "--corrupt".to_owned()]
            }
            Kind::Kills => vec!["--kills".to_owned(), count.to_string()],
        });
        if self.kind != Kind::Corrupt {
            arguments.extend(["--dir".to_owned(), directory.to_owned()]);
        }
        arguments
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { guard, sector, queues, policy, .. } = self;
        write!(f, "{guard:<6} {sector:>4} {queues} {policy:<6}")
    }
}

/// Runs the program, and fails when it says that something is wrong.
fn carry_out(run: &Run, program: &Path, directory: &Path) -> Result<Total> {
    let program = program.to_str().context("the path of the program is not UTF-8")?;
    let directory = directory.to_str().context("the target directory is not UTF-8")?;
    let arguments = run.arguments(directory);
    let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
    let mut torture = command(program, &arguments);
    let shown = line(&torture);
    let output = torture.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("cannot run `{shown}`"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        bail!("`{shown}` ended with {}: {text}", output.status);
    }
    let found = Total::parse(&text)?;
    ensure!(found.requests > 0, "`{shown}` made no requests");
    if run.kind == Kind::Kills {
        ensure!(found.kills == run.count, "`{shown}` killed {} servers", found.kills);
    } else {
        ensure!(found.requests == run.count, "`{shown}` made {} requests", found.requests);
    }
    if run.kind == Kind::Corrupt && run.count >= REQUESTS_TO_ROT {
        ensure!(found.injected > 0, "`{shown}` corrupted nothing");
    }
    Ok(found)
}

/// What the program has found, of one run or of several. What is wrong is not here: it ends the run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Total {
    requests: u64,
    bytes: u64,
    mutations: u64,
    bounced: u64,
    zero_copy: u64,
    reread: u64,
    kills: u64,
    interrupted: u64,
    injected: u64,
    found: u64,
    left: u64,
}

impl Total {
    fn parse(text: &str) -> Result<Self> {
        let json: Value = serde_json::from_str(text).context("torture --json printed no JSON")?;
        let row = &json["policies"][0];
        ensure!(row["is_clean"] == true, "not clean: {row}");
        let count = |value: &Value, name: &str| {
            value[name].as_u64().with_context(|| format!("no {name} in {row}"))
        };
        let (server, corrupted) = (&row["server"], &row["corrupted"]);
        let faults = ["false_errors", "wrong_blocks", "bad_guards", "reported"];
        for name in faults {
            ensure!(count(row, name)? == 0, "{name} in {row}");
        }
        for name in ["delivered", "missed_by_scrub"] {
            ensure!(count(corrupted, name)? == 0, "{name} in {row}");
        }
        Ok(Self {
            requests: count(row, "requests")?,
            bytes: count(row, "bytes")?,
            mutations: count(row, "mutations")?,
            bounced: count(server, "bounced")?,
            zero_copy: count(server, "zero_copy")?,
            reread: count(server, "reread_good")?,
            kills: count(row, "kills")?,
            interrupted: count(row, "interrupted")?,
            injected: count(corrupted, "injected")?,
            found: count(corrupted, "found_by_requests")?,
            left: count(corrupted, "left")?,
        })
    }

    const fn add(&mut self, other: &Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.mutations += other.mutations;
        self.bounced += other.bounced;
        self.zero_copy += other.zero_copy;
        self.reread += other.reread;
        self.kills += other.kills;
        self.interrupted += other.interrupted;
        self.injected += other.injected;
        self.found += other.found;
        self.left += other.left;
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, bytes, mutations, reread, .. } = self;
        write!(f, "{requests} requests of {} MiB, {mutations} stores to them", bytes >> 20)?;
        if self.kills > 0 {
            write!(f, ", {} kills with {} in flight", self.kills, self.interrupted)?;
        } else {
            let Self { bounced, zero_copy, .. } = self;
            write!(f, ", {bounced} bounced, {zero_copy} not, {reread} read again")?;
        }
        if self.injected > 0 {
            let Self { injected, found, left, .. } = self;
            write!(f, "; {injected} corrupted, {found} found by requests, {left} by the scrub")?;
        }
        f.write_str("; nothing wrong")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use serde_json::json;

    use super::*;

    #[test]
    fn all_requests_are_spread_over_all_formats() {
        for part in parts(1_000_000, 100, 1) {
            let sum: u64 = part.runs.iter().map(|run| run.count).sum();
            let expected = if part.runs[0].kind == Kind::Kills { 100 } else { 1_000_000 };
            assert_eq!((sum, part.runs.len()), (expected, 12), "{}", part.name);
        }
    }

    #[test]
    fn policies_alternate_for_each_number_of_queues() {
        let part = parts(12, 12, 1).pop().unwrap();
        let seen: HashSet<_> =
            part.runs.iter().map(|run| (run.queues, run.policy, run.sector)).collect();
        assert_eq!(seen.len(), 8);
    }

    #[test]
    fn no_two_runs_have_the_same_seed() {
        let parts = parts(1000, 100, 7);
        let seeds: HashSet<_> =
            parts.iter().flat_map(|part| &part.runs).map(|run| run.seed).collect();
        assert_eq!(seeds.len(), 48);
    }

    #[test]
    fn a_few_kills_need_not_reach_all_formats() {
        let part = parts(12, 5, 1).pop().unwrap();
        assert_eq!(part.runs.iter().map(|run| run.count).sum::<u64>(), 5);
    }

    fn report(is_clean: bool, delivered: u64) -> String {
        let row = json!({
            "is_clean": is_clean, "requests": 5, "bytes": 1 << 20, "mutations": 6, "kills": 0,
            "interrupted": 0,
            "false_errors": 0, "wrong_blocks": 0, "bad_guards": 0, "reported": 0,
            "server": { "bounced": 1, "zero_copy": 2, "reread_good": 3 },
            "corrupted": {
                "injected": 4, "found_by_requests": 3, "left": 1,
                "delivered": delivered, "missed_by_scrub": 0,
            },
        });
        json!({ "policies": [row] }).to_string()
    }

    #[test]
    fn what_was_found_is_said() {
        let expected = "5 requests of 1 MiB, 6 stores to them, 1 bounced, 2 not, 3 read again; \
                        4 corrupted, 3 found by requests, 1 by the scrub; nothing wrong";
        assert_eq!(Total::parse(&report(true, 0)).unwrap().to_string(), expected);
    }

    #[test]
    fn what_is_not_clean_is_an_error() {
        Total::parse(&report(false, 0)).unwrap_err();
        Total::parse(&report(true, 1)).unwrap_err();
        Total::parse("{}").unwrap_err();
    }

    #[test]
    fn a_run_can_be_repeated() {
        let options = Options { seed: Some(7), ..Options::short() };
        assert_eq!(options.to_string(), "torture --short --seed 7");
    }
}
