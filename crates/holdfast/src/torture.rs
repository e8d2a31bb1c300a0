//! `holdfast torture`

use std::io::Write;
use std::path::Path;
use std::time::SystemTime;

use anyhow::Context;
use holdfast_bio::ReadPolicy;
use holdfast_torture::{Case, Outcome as Found, Restarts, Storage, Table};
use serde::Serialize;

use crate::Outcome;
use crate::cli::Torture;
use crate::progress::Progress;

/// The policies that are tried when none is named.
const POLICIES: [ReadPolicy; 3] = [ReadPolicy::Always, ReadPolicy::Lazy, ReadPolicy::Never];

pub(crate) fn run(arguments: &Torture) -> anyhow::Result<Outcome> {
    let seed = arguments.seed.unwrap_or_else(seed_of_now);
    let policies = if arguments.policy.is_empty() { &POLICIES[..] } else { &arguments.policy };
    let mut out = std::io::stdout();
    if !arguments.json {
        writeln!(out, "{}\n", heading(arguments, seed))?;
    }
    let mut rows = Vec::new();
    for &policy in policies {
        let case = Case {
            guard: arguments.guard,
            sector: arguments.sector,
            queues: arguments.queues,
            policy,
            requests: arguments.requests,
            seed,
        };
        let found = torture(arguments, &case)
            .with_context(|| format!("the torture of {} ended early", policy.name()))?;
        rows.push((policy, found));
    }
    // What goes wrong with `never` is what it shows.
    let is_fine =
        rows.iter().all(|(policy, found)| *policy == ReadPolicy::Never || found.is_clean());
    if arguments.json {
        serde_json::to_writer_pretty(&mut out, &Json::new(arguments, seed, &rows))?;
        writeln!(out)?;
    } else {
        write!(out, "{}", report(&rows))?;
    }
    Ok(if is_fine { Outcome::Fine } else { Outcome::Problems })
}

/// Runs one policy.
fn torture(arguments: &Torture, case: &Case) -> anyhow::Result<Found> {
    let name = case.policy.name();
    let temporary = std::env::temp_dir();
    let directory: &Path = arguments.dir.as_deref().unwrap_or(&temporary);
    if let Some(kills) = arguments.kills {
        let program = std::env::current_exe().context("where this program is")?;
        let mut progress = Progress::counting(name, kills);
        let restarts = Restarts { case: *case, program: &program, directory, kills };
        return Ok(restarts.run(|kills| progress.at(kills))?);
    }
    let storage =
        if arguments.corrupt { Storage::Memory { rots: true } } else { Storage::File(directory) };
    let mut progress = Progress::counting(name, case.requests);
    Ok(case.run(storage, |requests| progress.at(requests))?)
}

/// Returns a seed that nobody chose.
fn seed_of_now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |time| u64::from(time.subsec_nanos()) ^ time.as_secs() << 8)
}

fn heading(arguments: &Torture, seed: u64) -> String {
    let Torture { guard, sector, queues, .. } = arguments;
    let queues = if *queues == 1 { "1 queue".to_owned() } else { format!("{queues} queues") };
    format!("guard {guard}, sectors of {sector} bytes, {queues}, seed {seed}")
}

/// Returns the table, and what it says in words.
fn report(rows: &[(ReadPolicy, Found)]) -> String {
    let name = |policy: &ReadPolicy| policy.name().to_owned();
    let named: Vec<_> = rows.iter().map(|(policy, found)| (name(policy), found.clone())).collect();
    let mut text = format!("{}\n", Table(&named));
    for (policy, found) in rows {
        text += &remarks(*policy, found);
    }
    text
}

/// Returns what the table does not say of a row.
fn remarks(policy: ReadPolicy, found: &Found) -> String {
    let name = policy.name();
    let mut text = String::new();
    if found.kills > 0 {
        let Found { kills, interrupted, .. } = found;
        text += &format!(
            "\n{name}: the server was killed {kills} times, with {interrupted} requests in flight all \
             together\n"
        );
    }
    let corrupted = found.corrupted;
    if corrupted.injected > 0 {
        text += &format!(
            "\n{name}: of {} sectors that were corrupted on purpose requests found {}, and a scrub \
             found those {} that were left but {}; {} were delivered\n",
            corrupted.injected,
            corrupted.found_by_requests,
            corrupted.left,
            corrupted.missed_by_scrub,
            corrupted.delivered,
        );
    }
    if policy == ReadPolicy::Never {
        text += &format!(
            "\nnever is for measuring: nothing is copied, so a guest that changes its memory stores \
             data that\ndo not match their guards. The {} bad guards and {} false errors are what \
             the others prevent.\n",
            found.bad_guards, found.false_errors
        );
        return text;
    }
    if found.reported > 0 {
        text += &format!("\n{name}: the volume counted {} mismatches\n", found.reported);
    }
    if !found.is_clean() {
        text += &format!("\n{name} is NOT clean:\n");
        for fault in &found.faults {
            text += &format!("  {fault}\n");
        }
    }
    text
}

#[derive(Serialize)]
struct Json<'a> {
    seed: u64,
    guard: String,
    sector: u64,
    queues: u16,
    policies: Vec<JsonRow<'a>>,
}

#[derive(Serialize)]
struct JsonRow<'a> {
    policy: &'static str,
    is_clean: bool,
    #[serde(flatten)]
    found: &'a Found,
}

impl<'a> Json<'a> {
    fn new(arguments: &Torture, seed: u64, rows: &'a [(ReadPolicy, Found)]) -> Self {
        let row = |(policy, found): &'a (ReadPolicy, Found)| JsonRow {
            policy: policy.name(),
            is_clean: found.is_clean(),
            found,
        };
        Self {
            seed,
            guard: arguments.guard.to_string(),
            sector: arguments.sector.bytes(),
            queues: arguments.queues,
            policies: rows.iter().map(row).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clean_policy_needs_no_remark() {
        assert_eq!(remarks(ReadPolicy::Lazy, &Found::default()), "");
    }

    #[test]
    fn bad_guards_of_never_are_explained_and_those_of_others_are_faults() {
        let found = Found { bad_guards: 7, ..Found::default() };
        assert!(remarks(ReadPolicy::Never, &found).contains("The 7 bad guards"));
        assert!(remarks(ReadPolicy::Always, &found).contains("always is NOT clean"));
    }
}
