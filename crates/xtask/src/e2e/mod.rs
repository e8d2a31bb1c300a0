//! End to end: the program as users run it, and other people's clients at its socket.
//!
//! Each scenario has a directory and a deadline of its own. What it ran and what that printed is in the
//! directory's `log`; the directory of a scenario that fails is kept.

mod bytes;
mod fio;
mod fsx;
mod full_disk;
mod import_export;
mod kill;
mod locked;
mod mirror;
mod mount;
mod nbdinfo;
mod qemu_img;
mod qemu_io;
mod scene;
mod scrub;
mod server;
mod xfs;

use std::cmp::Reverse;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use std::{env, fmt, fs, process};

use anyhow::{Context, Result, bail};
use clap::Args;

use self::scene::{Given, Scene};
use crate::packages;
use crate::program::Program;
use crate::together::{self, Job};
use crate::tools;
use crate::workspace::Workspace;

/// Which scenarios, and of which program.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// The scenarios to run; all of them when none is named
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Only say which scenarios there are
    #[arg(long)]
    pub(crate) list: bool,
    /// Run this program instead of building one from this workspace
    #[arg(long, value_name = "PATH")]
    program: Option<PathBuf>,
    /// How often the scenario kill kills the server
    #[arg(long, value_name = "N", default_value_t = kill::KILLS)]
    kills: u32,
    /// How many files the largest directory of the scenario xfs has
    #[arg(long, value_name = "N", default_value_t = xfs::FILES)]
    files: usize,
    /// How many random steps the scenario xfs-write makes in each file system
    #[arg(long, value_name = "N", default_value_t = xfs::write::STEPS)]
    steps: u64,
    /// How many operations fsx does on each mount of the scenario fsx
    #[arg(long, value_name = "N", default_value_t = fsx::OPERATIONS)]
    operations: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            names: Vec::new(),
            list: false,
            program: None,
            kills: kill::KILLS,
            files: xfs::FILES,
            steps: xfs::write::STEPS,
            operations: fsx::OPERATIONS,
        }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("e2e")?;
        if self.kills != kill::KILLS {
            write!(f, " --kills {}", self.kills)?;
        }
        if self.files != xfs::FILES {
            write!(f, " --files {}", self.files)?;
        }
        if self.steps != xfs::write::STEPS {
            write!(f, " --steps {}", self.steps)?;
        }
        if self.operations != fsx::OPERATIONS {
            write!(f, " --operations {}", self.operations)?;
        }
        self.program.iter().try_for_each(|path| write!(f, " --program {}", path.display()))?;
        self.names.iter().try_for_each(|name| write!(f, " {name}"))
    }
}

/// How a scenario ended that found nothing wrong.
enum Outcome {
    Passed,
    /// It could not be tried here, for this reason.
    Skipped(&'static str),
}

struct Scenario {
    name: &'static str,
    about: &'static str,
    /// Most of it is for slow machines: none takes more than a quarter of it on two cores.
    limit: Duration,
    run: fn(&Scene) -> Result<Outcome>,
}

const SCENARIOS: &[Scenario] = &[
    scenario(
        "qemu-img",
        "a file system goes in by qemu-img and comes out by nbdcopy",
        120,
        qemu_img::run,
    ),
    scenario("nbdinfo", "what the server says of itself, and its map of holes", 30, nbdinfo::run),
    scenario(
        "qemu-io",
        "patterns at odd sectors, for every guard and sector size",
        180,
        qemu_io::run,
    ),
    scenario("fio", "four jobs write and verify at depth 16", 180, fio::run),
    scenario(
        "import-export",
        "a sparse image comes back the same, and sparse",
        60,
        import_export::run,
    ),
    scenario("locked", "a served volume is refused to everybody else", 30, locked::run),
    scenario(
        "sigterm",
        "SIGTERM under load ends the server, and leaves nothing to repair",
        60,
        fio::sigterm,
    ),
    scenario(
        "kill",
        "SIGKILL under load, again and again, loses nothing that was acknowledged",
        60,
        kill::run,
    ),
    scenario(
        "mirror",
        "a leg rots, and is unplugged, under load: no client sees it, and both end equal",
        180,
        mirror::run,
    ),
    scenario(
        "full-disk",
        "no space below is an error of that write, and nothing else",
        60,
        full_disk::run,
    ),
    scenario(
        "mount",
        "the kernel's XFS, mounted by us and by the kernel: names, attributes, holes, contents",
        120,
        mount::run,
    ),
    scenario(
        fsx::NAME,
        "fsx on a mount for writing, around the page cache and through it; xfs_repair and Linux judge",
        120,
        fsx::run,
    ),
    scenario(
        "scrub",
        "a server finds a rotten sector in the background, and its result and position last",
        60,
        scrub::run,
    ),
    scenario(
        "xfs",
        "what Linux wrote to XFS, made in many ways, is read as Linux reads it",
        240,
        xfs::run,
    ),
    scenario(
        "xfs-write",
        "what is written at random to XFS that Linux filled is read by Linux, which goes on",
        240,
        xfs::write::run,
    ),
];

const fn scenario(
    name: &'static str,
    about: &'static str,
    seconds: u64,
    run: fn(&Scene) -> Result<Outcome>,
) -> Scenario {
    Scenario { name, about, limit: Duration::from_secs(seconds), run }
}

pub(crate) fn list() {
    for scenario in SCENARIOS {
        println!("{:<14} {}", scenario.name, scenario.about);
    }
}

/// Runs the scenarios asked for, all of them whatever fails, and fails if one did.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let scenarios = chosen(&options.names)?;
    packages::ensure(packages::ALL)?;
    let program = match &options.program {
        Some(path) => {
            path.canonicalize().with_context(|| format!("no program {}", path.display()))?
        }
        None => Program::Holdfast.build(workspace)?,
    };
    let wants_fsx = scenarios.iter().any(|scenario| scenario.name == fsx::NAME);
    let given = Given {
        kills: options.kills,
        files: options.files,
        steps: options.steps,
        operations: options.operations,
        fsx: if wants_fsx { tools::installed(workspace, "fsx").ok() } else { None },
    };
    // Not in the target directory: the path of a Unix socket has 107 bytes at most.
    let [scenario] = *scenarios else {
        return several(workspace, scenarios, &program, options);
    };
    let root = env::temp_dir().join(format!("holdfast-e2e-{}", process::id()));
    if !play(scenario, &root.join(scenario.name), &program, &given)? {
        bail!("failed: {}; evidence is in {}", scenario.name, root.display());
    }
    fs::remove_dir(&root).with_context(|| format!("cannot remove {}", root.display()))
}

/// Runs each scenario in a process of its own: what one starts inherits no file from another.
fn several(
    workspace: &Workspace,
    mut scenarios: Vec<&'static Scenario>,
    program: &Path,
    options: &Options,
) -> Result<()> {
    // Otherwise a long one would be alone in the end.
    scenarios.sort_by_key(|scenario| Reverse(scenario.limit));
    let this = env::current_exe().context("where this program is")?;
    let job = |scenario: &Scenario| {
        let names = vec![scenario.name.to_owned()];
        let options = Options { names, program: None, ..options.clone() };
        let mut command = Command::new(&this);
        command.args(options.to_string().split(' ')).arg("--program").arg(program);
        Job { name: scenario.name.to_owned(), command }
    };
    together::run(scenarios.into_iter().map(job).collect(), &workspace.target.join("tmp"))
}

fn chosen(names: &[String]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        return Ok(SCENARIOS.iter().collect());
    }
    let find = |name: &String| SCENARIOS.iter().find(|scenario| scenario.name == name);
    names
        .iter()
        .map(|name| {
            find(name).with_context(|| format!("no scenario {name}; --list says which there are"))
        })
        .collect()
}

/// Runs one scenario, says how it ended, and returns whether that is fine.
fn play(scenario: &Scenario, directory: &Path, program: &Path, given: &Given) -> Result<bool> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let started = Instant::now();
    let steps_take = given.steps.saturating_mul(xfs::write::MILLISECONDS_PER_STEP);
    let more = Duration::from_millis(u64::try_from(given.files)?.saturating_add(steps_take))
        + fsx::LIMIT * given.operations;
    let limit = scenario.limit + kill::LIMIT * given.kills + more;
    let scene = Scene::new(directory, program, started + limit, given.clone())?;
    let result = (scenario.run)(&scene);
    let name = scenario.name;
    let seconds = started.elapsed().as_secs_f64();
    match result {
        Ok(Outcome::Passed) => println!("PASS {name} ({seconds:.1} s): {}", scenario.about),
        Ok(Outcome::Skipped(reason)) => println!("SKIP {name}: {reason}"),
        Err(error) => {
            println!("FAIL {name} ({seconds:.1} s): {error:#}");
            println!("{}", scene.evidence());
            return Ok(false);
        }
    }
    fs::remove_dir_all(directory)
        .with_context(|| format!("cannot remove {}", directory.display()))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_scenarios_run_when_none_is_named() {
        assert_eq!(chosen(&[]).unwrap().len(), SCENARIOS.len());
    }

    #[test]
    fn a_scenario_that_does_not_exist_is_an_error() {
        let error = chosen(&["nothing".to_owned()]).err().unwrap();
        assert_eq!(error.to_string(), "no scenario nothing; --list says which there are");
    }
}
