//! Random workloads on simulated disks, cut at every event: nothing that was promised may be gone.

use std::fmt;

use anyhow::Result;
use clap::Args;

use crate::program::Program;
use crate::run::{command, show};
use crate::workspace::Workspace;

/// How much, or what is repeated.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// How many seeds are run
    #[arg(long, value_name = "N", default_value_t = Self::CI_SEEDS)]
    seeds: u64,
    /// The first of them
    #[arg(long, value_name = "N", default_value_t = 0)]
    first: u64,
    /// Run only this seed
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "first"])]
    seed: Option<u64>,
    /// Make only this cut: after so many events of the disk
    #[arg(long, value_name = "K")]
    cut: Option<usize>,
    /// Go on after a seed in which something is wrong
    #[arg(long)]
    keep_going: bool,
}

impl Options {
    /// The seeds that CI runs.
    const CI_SEEDS: u64 = 200;
}

impl Default for Options {
    fn default() -> Self {
        Self { seeds: Self::CI_SEEDS, first: 0, seed: None, cut: None, keep_going: false }
    }
}

impl fmt::Display for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.seed {
            Some(seed) => write!(f, "powercut --seed {seed}")?,
            None => write!(f, "powercut --seeds {} --first {}", self.seeds, self.first)?,
        }
        self.cut.iter().try_for_each(|cut| write!(f, " --cut {cut}"))?;
        f.write_str(if self.keep_going { " --keep-going" } else { "" })
    }
}

/// Builds the program that does it, and runs it with the same options.
pub(crate) fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let program = Program::Powercut.build(workspace)?;
    let arguments = options.to_string();
    show(command(&program.to_string_lossy(), &[]).args(arguments.split(' ').skip(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_repeats_the_run() {
        let options = Options { seed: Some(7), cut: Some(31), ..Options::default() };
        assert_eq!(options.to_string(), "powercut --seed 7 --cut 31");
        assert_eq!(Options::default().to_string(), "powercut --seeds 200 --first 0");
    }
}
