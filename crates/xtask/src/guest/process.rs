//! Programs beside the test: what they print is in files, and they end with the test.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::run::{command, line};

/// The file with what was run, and what came of it.
pub(super) const LOG: &str = "log";

/// How long it takes at most until an answer is noticed; less where it comes soon.
const POLL_MAX: Duration = Duration::from_millis(50);
const POLL_MIN: Duration = Duration::from_millis(1);

/// A directory for what programs print, and the time when all of them must have ended.
pub(super) struct Desk<'a> {
    pub(super) directory: &'a Path,
    pub(super) deadline: Instant,
}

/// A program that runs; killed when it is dropped.
pub(super) struct Running {
    child: Child,
    name: String,
}

impl Desk<'_> {
    /// Starts a program that prints to the file `out`, and complains to the file `err`, after what is there.
    pub(super) fn start(&self, command: &Command, out: &str, err: &str) -> Result<Running> {
        self.log(&format!("$ {} &\n", line(command)))?;
        // A test that is killed takes its programs along.
        let mut with = self::command("setpriv", &["--pdeathsig", "KILL"]);
        with.arg(command.get_program()).args(command.get_args());
        with.stdin(Stdio::piped()).stdout(self.append(out)?).stderr(self.append(err)?);
        self.spawn(&mut with)
    }

    /// Runs a program to its end; returns how it ended, and what it printed on its standard output.
    pub(super) fn run(&self, command: &mut Command) -> Result<(ExitStatus, String)> {
        self.log(&format!("$ {}\n", line(command)))?;
        let (status, text) = self.ask(command)?;
        self.log(&format!("{text}({status})\n"))?;
        Ok((status, text))
    }

    /// Does the same for what is asked again and again, and so is not in the log.
    pub(super) fn ask(&self, command: &mut Command) -> Result<(ExitStatus, String)> {
        // Files, since a pipe that nobody reads would stop the program.
        let out = self.directory.join("stdout");
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(self.append(LOG)?);
        let mut running = self.spawn(command)?;
        let status = self.wait(&mut running, self.deadline)?;
        Ok((status, String::from_utf8_lossy(&fs::read(out)?).into_owned()))
    }

    /// Runs a program to its end, and fails unless it succeeds.
    pub(super) fn ok(&self, command: &mut Command) -> Result<()> {
        let (status, _) = self.run(command)?;
        if !status.success() {
            bail!("`{}` ended with {status}", line(command));
        }
        Ok(())
    }

    fn spawn(&self, command: &mut Command) -> Result<Running> {
        let name = line(command);
        let child = command.current_dir(self.directory).spawn();
        Ok(Running { child: child.with_context(|| format!("cannot run `{name}`"))?, name })
    }

    /// Waits for a program to end; fails at `until`, or at the deadline.
    pub(super) fn wait(&self, program: &mut Running, until: Instant) -> Result<ExitStatus> {
        let what = format!("`{}` to end", program.name);
        self.poll(&what, until, || Ok(program.child.try_wait()?))
    }

    /// Asks again and again until there is an answer; fails at `until`, or at the deadline.
    pub(super) fn poll<T>(
        &self,
        what: &str,
        until: Instant,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        let mut pause = POLL_MIN;
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            if Instant::now() >= until.min(self.deadline) {
                bail!("waited {:.1} s for {what}", started.elapsed().as_secs_f64());
            }
            thread::sleep(pause);
            pause = POLL_MAX.min(2 * pause);
        }
    }

    /// What a program has printed to a file so far.
    pub(super) fn text(&self, name: &str) -> Result<String> {
        let path = self.directory.join(name);
        let text = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// The last lines of a file, indented, after its path.
    pub(super) fn tail(&self, name: &str, lines: usize) -> String {
        let text = self.text(name).unwrap_or_default();
        let all: Vec<_> = text.lines().collect();
        let last = all[all.len().saturating_sub(lines)..].iter();
        let last: String = last.map(|line| format!("  | {}\n", line.trim_end())).collect();
        format!("  {}:\n{last}", self.directory.join(name).display())
    }

    /// Adds to the log.
    pub(super) fn log(&self, text: &str) -> Result<()> {
        Ok(self.append(LOG)?.write_all(text.as_bytes())?)
    }

    fn append(&self, name: &str) -> Result<File> {
        let path = self.directory.join(name);
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Running {
    /// Whether it has not ended yet.
    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Sends a signal, by the name that a shell knows.
    pub(super) fn signal(&self, name: &str) -> Result<()> {
        // The shell has a kill of its own; Debian's smallest systems have no other.
        crate::run::output(&mut command(
            "sh",
            &["-c", &format!("kill -{name} {}", self.child.id())],
        ))?;
        Ok(())
    }

    /// Kills two programs at once, and waits for both.
    pub(super) fn kill_both(first: Self, second: Self) -> Result<()> {
        let both = format!("kill -KILL {} {}", first.child.id(), second.child.id());
        crate::run::output(&mut command("sh", &["-c", &both]))?;
        // That is what waits.
        drop((first, second));
        Ok(())
    }

    /// The program's standard input, the first time.
    pub(super) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
