//! A real Linux guest, whose disk is a volume over vhost-user-blk.
//!
//! The guest is a Debian kernel with the programs of `tests/guest`, in QEMU with software emulation. It says
//! on its serial console how each step ended. For each scenario there is a fresh volume; after it the server's
//! counters must show no error, and `holdfast verify` must find none. What ran and what was printed is in the
//! scenario's directory, which is kept when it fails.

mod case;
mod counters;
mod image;
mod machine;
mod outage;
mod play;
mod process;
mod server;

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};
use std::{fmt, fs};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::case::{ALL, Case, OUTAGE_EXT4, OUTAGE_XFS, SHORT};
use self::outage::Outages;
use self::play::Play;
use self::process::Desk;
use self::server::Kind;
use crate::packages;
use crate::program::Program;
use crate::workspace::Workspace;

/// How many lines of each log are shown of a scenario that failed.
const EVIDENCE_LINES: usize = 25;

/// Which scenarios, and with whose server.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct Options {
    /// The scenarios to run; all when none is named, or all that the peer passes
    #[arg(value_name = "SCENARIO")]
    names: Vec<String>,
    /// Only say which scenarios there are
    #[arg(long)]
    pub(crate) list: bool,
    /// Run what finds most only: one boot, and one outage with each file system (2 minutes)
    #[arg(long, conflicts_with = "names")]
    short: bool,
    /// Run this program instead of building one from this workspace
    #[arg(long, value_name = "PATH", conflicts_with = "peer")]
    program: Option<PathBuf>,
    /// Serve a raw file with qemu-storage-daemon instead: to tell a fault of the guest from one of Holdfast
    #[arg(long)]
    peer: bool,
    /// How often each outage scenario kills guest and server [default: 20, or 1 with --short]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// The seed of what outage scenarios write, and when they kill [default: from the time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
}

impl Options {
    /// The run that CI does.
    pub(crate) fn short() -> Self {
        Self { short: true, ..Self::default() }
    }

    fn outages(&self) -> Outages {
        let rounds = self.rounds.unwrap_or(if self.short { 1 } else { outage::ROUNDS });
        Outages { rounds, seed: self.seed.unwrap_or_else(seed_of_now) }
    }
}

fn seed_of_now() -> u64 {
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since_1970.map_or(0, |time| time.as_secs())
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("guest")?;
        self.program.iter().try_for_each(|path| write!(f, " --program {}", path.display()))?;
        if self.peer {
            f.write_str(" --peer")?;
        }
        if self.short {
            f.write_str(" --short")?;
        }
        self.rounds.iter().try_for_each(|rounds| write!(f, " --rounds {rounds}"))?;
        self.seed.iter().try_for_each(|seed| write!(f, " --seed {seed}"))?;
        self.names.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

pub(crate) fn list() {
    for Case { name, about, .. } in ALL.iter().chain([&SHORT]) {
        println!("{name:<14} {about}");
    }
}

/// Runs the scenarios asked for, all of them whatever fails, and fails if one did.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let cases = chosen(options)?;
    packages::ensure(packages::GUEST)?;
    let image = image::ensure_built(workspace)?;
    let program = match &options.program {
        _ if options.peer => None,
        Some(path) => {
            Some(path.canonicalize().with_context(|| format!("no program {}", path.display()))?)
        }
        None => Some(Program::Holdfast.build(workspace)?),
    };
    let kind = program.as_deref().map_or(Kind::Peer, Kind::Holdfast);
    let root = workspace.target.join(format!("tmp/guest-{}", std::process::id()));
    let outages = options.outages();
    let mut failed = Vec::new();
    println!("\nseed {}", outages.seed);
    for case in cases {
        if !played(case, &root.join(case.name), kind, &image, outages)? {
            failed.push(case.name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}; evidence is in {}", failed.join(", "), root.display());
    }
    fs::remove_dir(&root).with_context(|| format!("cannot remove {}", root.display()))
}

fn chosen(options: &Options) -> Result<Vec<&'static Case>> {
    let suits = |case: &&Case| case.peer || !options.peer;
    if options.short {
        return Ok([&SHORT, &OUTAGE_EXT4, &OUTAGE_XFS].into_iter().filter(suits).collect());
    }
    if options.names.is_empty() {
        return Ok(ALL.iter().filter(suits).collect());
    }
    let find = |name: &String| ALL.iter().chain([&SHORT]).find(|case| case.name == name);
    let known = |name| {
        find(name).with_context(|| format!("no scenario {name}; --list says which there are"))
    };
    options.names.iter().map(known).collect()
}

/// Plays one case, says how it ended, and returns whether that is fine.
fn played(
    case: &'static Case,
    directory: &Path,
    kind: Kind<'_>,
    image: &Path,
    outages: Outages,
) -> Result<bool> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let started = Instant::now();
    let desk = Desk { directory, deadline: started + case.limit };
    let image = image.to_str().context("the path of the guest is not UTF-8")?;
    let result = (case.play)(&Play { desk: &desk, kind, case, image, outages });
    let Case { name, about, guard, sector, queues, policy, .. } = case;
    let seconds = started.elapsed().as_secs_f64();
    let with = format!("{guard}, sectors of {sector}, queues: {queues}, {policy}");
    match result {
        Ok(_) if matches!(kind, Kind::Peer) => println!("PASS {name} ({seconds:.1} s): {about}"),
        Ok(note) => println!("PASS {name} ({seconds:.1} s): {about} ({with})\n     {note}"),
        Err(error) => {
            println!("FAIL {name} ({seconds:.1} s): {error:#} ({with})");
            for log in [process::LOG, machine::COMPLAINTS, machine::SERIAL, server::LOG] {
                print!("{}", desk.tail(log, EVIDENCE_LINES));
            }
            return Ok(false);
        }
    }
    fs::remove_dir_all(directory)
        .with_context(|| format!("cannot remove {}", directory.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn all_scenarios_run_when_none_is_named() {
        assert_eq!(chosen(&Options::default()).unwrap().len(), ALL.len());
    }

    #[test]
    fn the_short_run_has_one_outage_of_each_file_system() {
        let options = Options::short();
        let names: Vec<_> = chosen(&options).unwrap().iter().map(|case| case.name).collect();
        assert_eq!(names, ["short", "outage-ext4", "outage-xfs"]);
        assert_eq!(options.outages().rounds, 1);
    }

    #[test]
    fn a_run_with_outages_can_be_repeated() {
        let options = Options { rounds: Some(3), seed: Some(7), ..Options::short() };
        assert_eq!(options.to_string(), "guest --short --rounds 3 --seed 7");
    }

    #[test]
    fn the_peer_has_no_outages() {
        let options = Options { peer: true, ..Options::short() };
        assert_eq!(chosen(&options).unwrap().len(), 1);
    }

    #[test]
    fn a_scenario_that_does_not_exist_is_an_error() {
        let options = Options { names: vec!["nothing".to_owned()], ..Options::default() };
        let error = chosen(&options).err().unwrap();
        assert_eq!(error.to_string(), "no scenario nothing; --list says which there are");
    }

    #[test]
    fn the_scenarios_cover_every_guard_sector_policy_and_number_of_queues() {
        let covered = |of: fn(&Case) -> String| ALL.iter().map(of).collect::<HashSet<_>>().len();
        let counts = [
            covered(|case| case.guard.to_owned()),
            covered(|case| case.sector.to_owned()),
            covered(|case| case.policy.to_owned()),
            covered(|case| case.queues.to_string()),
        ];
        assert_eq!(counts, [3, 2, 3, 2]);
    }

    #[test]
    fn a_run_can_be_repeated() {
        let options = Options {
            names: vec!["swap".to_owned(), "xfs".to_owned()],
            peer: true,
            ..Options::default()
        };
        assert_eq!(options.to_string(), "guest --peer swap xfs");
    }
}
