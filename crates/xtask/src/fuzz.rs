//! The fuzz targets of `fuzz/`, each for a while.

use std::path::Path;
use std::process::Command;
use std::{fmt, fs};

use anyhow::{Result, bail};
use clap::Args;

use crate::packages;
use crate::run::{command, find, output, show};
use crate::together::{self, Job};
use crate::tools;
use crate::workspace::Workspace;

/// How long, and what.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How long each target runs
    #[arg(long, value_name = "N", default_value_t = Self::default().seconds)]
    seconds: u32,
    /// The targets to run; all of them when none is named
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { seconds: 5, targets: Vec::new() }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fuzz --seconds {}", self.seconds)?;
        self.targets.iter().try_for_each(|target| write!(f, " {target}"))
    }
}

pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    packages::ensure(&[packages::CXX])?;
    let program = match find("cargo-fuzz") {
        // cargo finds it by itself.
        Some(_) => None,
        None => Some(tools::installed(workspace, "cargo-fuzz")?),
    };
    let fuzz = |arguments: &[&str]| {
        let mut fuzz = fuzz_command(program.as_deref(), arguments);
        fuzz.current_dir(&workspace.root);
        fuzz
    };
    let list = output(&mut fuzz(&["list"]))?;
    let known: Vec<_> = list.lines().map(str::trim).filter(|name| !name.is_empty()).collect();
    let wanted = targets(&known, &options.targets)?;
    // By one command, so that one is compiled while another is linked.
    let one = if let [target] = *wanted { Some(target) } else { None };
    show(fuzz(&["build"]).args(one).env("RUSTC_BOOTSTRAP", "1"))?;
    let mut jobs = Vec::new();
    for target in wanted {
        // What libFuzzer finds goes to the first directory, so that a run leaves the work tree alone.
        let found = workspace.target.join("fuzz-corpus").join(target);
        fs::create_dir_all(&found)?;
        let mut fuzz = fuzz(&["run", target]);
        fuzz.arg(found);
        let corpus = Path::new("fuzz/corpus").join(target);
        if workspace.root.join(&corpus).is_dir() {
            fuzz.arg(corpus);
        }
        // Without -len_control=0 a slow target hardly gets inputs of more than a few bytes.
        fuzz.args(["--", "-timeout=30", "-verbosity=0", "-print_final_stats=1", "-len_control=0"]);
        fuzz.arg(format!("-max_total_time={}", options.seconds)).env("RUSTC_BOOTSTRAP", "1");
        jobs.push(Job { name: target.to_owned(), command: fuzz });
    }
    together::run(jobs, &workspace.target.join("tmp"))
}

/// The targets asked for, or all.
fn targets<'a>(known: &[&'a str], wanted: &'a [String]) -> Result<Vec<&'a str>> {
    if known.is_empty() {
        bail!("fuzz/ has no targets");
    }
    if let Some(unknown) = wanted.iter().find(|target| !known.contains(&target.as_str())) {
        bail!("no fuzz target {unknown}; there are {}", known.join(", "));
    }
    Ok(if wanted.is_empty() { known.to_vec() } else { wanted.iter().map(String::as_str).collect() })
}

fn fuzz_command(program: Option<&Path>, arguments: &[&str]) -> Command {
    let mut fuzz = program.map_or_else(|| command("cargo", &["fuzz"]), Command::new);
    fuzz.args(arguments);
    fuzz
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_targets_run_when_none_is_named() {
        assert_eq!(targets(&["nbd", "volume"], &[]).unwrap(), ["nbd", "volume"]);
    }

    #[test]
    fn a_target_that_does_not_exist_is_an_error_that_names_those_that_do() {
        let error = targets(&["nbd", "volume"], &["xfs".to_owned()]).unwrap_err();
        assert_eq!(error.to_string(), "no fuzz target xfs; there are nbd, volume");
    }

    #[test]
    fn no_targets_at_all_is_an_error() {
        assert_eq!(targets(&[], &[]).unwrap_err().to_string(), "fuzz/ has no targets");
    }

    #[test]
    fn the_way_to_repeat_names_the_targets() {
        let options = Options { seconds: 5, targets: vec!["nbd".to_owned()] };
        assert_eq!(options.to_string(), "fuzz --seconds 5 nbd");
    }
}
