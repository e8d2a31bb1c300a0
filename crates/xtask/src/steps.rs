//! Steps in order, each timed; the first that fails ends the run.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::workspace::Workspace;

type Work = Box<dyn Fn(&Workspace) -> Result<()>>;

/// One row of the summary.
pub(crate) struct Step {
    name: &'static str,
    /// What to say after `cargo xtask` to run it again alone.
    repeat: String,
    work: Work,
}

impl Step {
    pub(crate) fn new(
        name: &'static str,
        repeat: impl Into<String>,
        work: impl Fn(&Workspace) -> Result<()> + 'static,
    ) -> Self {
        Self { name, repeat: repeat.into(), work: Box::new(work) }
    }
}

/// Runs the steps until one fails, and prints a summary.
pub(crate) fn run(workspace: &Workspace, steps: &[Step]) -> ExitCode {
    let mut times = Vec::new();
    let mut failure = None;
    for step in steps {
        println!("\n==> {}", step.name);
        let started = Instant::now();
        let result = (step.work)(workspace);
        times.push(started.elapsed());
        if let Err(error) = result {
            failure = Some((step, error));
            break;
        }
    }
    if steps.len() > 1 {
        println!("\n{}", summary(steps, &times, failure.is_some()));
    }
    let Some((step, error)) = failure else {
        return ExitCode::SUCCESS;
    };
    eprintln!("\nerror: {}: {error:#}", step.name);
    eprintln!("to repeat just this step: cargo xtask {}", step.repeat);
    ExitCode::FAILURE
}

/// A table with a line for each step; when the run failed, the last time is that of the step that did.
fn summary(steps: &[Step], times: &[Duration], failed: bool) -> String {
    let mut lines = vec![format!("{:<10} {:<8} {:>9}", "step", "result", "time")];
    for (index, step) in steps.iter().enumerate() {
        let result = match times.len() {
            ran if index >= ran => "not run",
            ran if failed && index + 1 == ran => "FAILED",
            _ => "ok",
        };
        let time =
            times.get(index).map_or_else(String::new, |t| format!("{:.1} s", t.as_secs_f64()));
        lines.push(format!("{:<10} {result:<8} {time:>9}", step.name).trim_end().to_owned());
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_summary_tells_failed_steps_from_those_that_never_ran() {
        let steps = ["fmt", "unit", "e2e"].map(|name| Step::new(name, name, |_| Ok(())));
        let times = [Duration::from_millis(1234), Duration::from_secs(70)];
        let expected = "\
step       result        time
fmt        ok           1.2 s
unit       FAILED      70.0 s
e2e        not run";
        assert_eq!(summary(&steps, &times, true), expected);
    }
}
