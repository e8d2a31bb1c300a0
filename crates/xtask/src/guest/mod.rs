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
mod play;
mod process;
mod server;

use std::path::{Path, PathBuf};
use std::time::Instant;
use std::{fmt, fs};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::case::{ALL, Case, SHORT};
use self::play::Play;
use self::process::Desk;
use self::server::Kind;
use crate::packages;
use crate::run::{command, show};
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
    /// Run one boot only, with what finds most (1 minute)
    #[arg(long, conflicts_with = "names")]
    short: bool,
    /// Run this program instead of building one from this workspace
    #[arg(long, value_name = "PATH", conflicts_with = "peer")]
    program: Option<PathBuf>,
    /// Serve a raw file with qemu-storage-daemon instead: to tell a fault of the guest from one of Holdfast
    #[arg(long)]
    peer: bool,
}

impl Options {
    /// The run that CI does.
    pub(crate) fn short() -> Self {
        Self { short: true, ..Self::default() }
    }
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
        None => Some(build(workspace)?),
    };
    let kind = program.as_deref().map_or(Kind::Peer, Kind::Holdfast);
    let root = workspace.target.join(format!("tmp/guest-{}", std::process::id()));
    let mut failed = Vec::new();
    println!();
    for case in cases {
        if !played(case, &root.join(case.name), kind, &image)? {
            failed.push(case.name);
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}; evidence is in {}", failed.join(", "), root.display());
    }
    fs::remove_dir(&root).with_context(|| format!("cannot remove {}", root.display()))
}

fn chosen(options: &Options) -> Result<Vec<&'static Case>> {
    if options.short {
        return Ok(vec![&SHORT]);
    }
    if options.names.is_empty() {
        return Ok(ALL.iter().filter(|case| case.peer || !options.peer).collect());
    }
    let find = |name: &String| ALL.iter().chain([&SHORT]).find(|case| case.name == name);
    let known = |name| {
        find(name).with_context(|| format!("no scenario {name}; --list says which there are"))
    };
    options.names.iter().map(known).collect()
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    show(command("cargo", &["build", "--release", "-p", "holdfast"]).current_dir(&workspace.root))?;
    Ok(workspace.target.join("release/holdfast"))
}

/// Plays one case, says how it ended, and returns whether that is fine.
fn played(case: &'static Case, directory: &Path, kind: Kind<'_>, image: &Path) -> Result<bool> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let started = Instant::now();
    let desk = Desk { directory, deadline: started + case.limit };
    let image = image.to_str().context("the path of the guest is not UTF-8")?;
    let result = (case.play)(&Play { desk: &desk, kind, case, image });
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
    fn the_short_run_is_one_scenario() {
        let options = Options { short: true, ..Options::default() };
        assert_eq!(chosen(&options).unwrap()[0].name, "short");
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
