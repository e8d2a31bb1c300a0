//! Programs that run two at a time, since each alone leaves a processor idle.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::path::Path;
use std::process::{self, Command, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};

use crate::run::line;

/// How many programs run at the same time.
const AT_ONCE: usize = 2;

/// A program, and what it is called when it fails.
pub(crate) struct Job {
    pub(crate) name: String,
    pub(crate) command: Command,
}

/// Runs all of them whatever fails, begun in this order, and fails with the names of those that did.
///
/// Each is shown when it has ended, with all that it printed; files in `directory` hold that until then.
pub(crate) fn run(jobs: Vec<Job>, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    let jobs: Mutex<VecDeque<_>> = Mutex::new(jobs.into_iter().enumerate().collect());
    // A thread that panicked has left the queue as it was.
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let worker = || {
        let mut failed = Vec::new();
        while let Some((number, job)) = next() {
            let output = directory.join(format!("together-{}-{number}", process::id()));
            if !is_fine(job.command, &output)? {
                failed.push(job.name);
            }
        }
        Ok::<_, anyhow::Error>(failed)
    };
    let workers: Result<Vec<Vec<String>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().map_err(|_| anyhow!("a thread panicked"))?
        };
        threads.into_iter().map(join).collect()
    });
    let failed = workers?.concat();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// Runs one program, shows it, and returns whether it succeeded.
fn is_fine(mut command: Command, output: &Path) -> Result<bool> {
    let started = Instant::now();
    let status = keep(&mut command, output)?;
    let printed = fs::read(output).with_context(|| format!("cannot read {}", output.display()))?;
    fs::remove_file(output).with_context(|| format!("cannot remove {}", output.display()))?;
    let mut end = format!("  {:.1} s", started.elapsed().as_secs_f64());
    if !status.success() {
        end += &format!(", {status}");
    }
    // By one call, so that another thread's does not get between.
    println!("\n$ {}\n{}{end}", line(&command), String::from_utf8_lossy(&printed));
    Ok(status.success())
}

/// Runs a program to its end, which prints to a file.
fn keep(command: &mut Command, output: &Path) -> Result<ExitStatus> {
    let file = File::create(output).with_context(|| format!("cannot make {}", output.display()))?;
    command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
    command.status().with_context(|| format!("cannot run `{}`", line(command)))
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;
    use crate::run::command;

    fn job(name: &str, script: &str) -> Job {
        Job { name: name.to_owned(), command: command("timeout", &["10", "sh", "-c", script]) }
    }

    #[test]
    fn all_run_and_each_that_fails_is_named() {
        let directory = env::temp_dir().join(format!("xtask-together-{}", process::id()));
        let touch = format!("touch {}/last", directory.display());
        let jobs = vec![
            job("one", "exit 1"),
            job("two", "true"),
            job("three", "exit 3"),
            job("four", &touch),
        ];
        let error = run(jobs, &directory).unwrap_err().to_string();
        let left: Vec<_> =
            fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name()).collect();
        fs::remove_dir_all(&directory).unwrap();
        assert!(["failed: one, three", "failed: three, one"].contains(&&*error), "{error}");
        assert_eq!(left, ["last"]);
    }

    #[test]
    fn two_run_at_the_same_time() {
        let directory = env::temp_dir().join(format!("xtask-two-{}", process::id()));
        let at = |name: &str| format!("{}/{name}", directory.display());
        // Each ends when the other has begun.
        let meet = |mine: &str, other: &str| {
            format!("touch {}; until test -e {}; do sleep 0.01; done", at(mine), at(other))
        };
        let jobs = vec![job("a", &meet("a", "b")), job("b", &meet("b", "a"))];
        run(jobs, &directory).unwrap();
        fs::remove_dir_all(&directory).unwrap();
    }
}
