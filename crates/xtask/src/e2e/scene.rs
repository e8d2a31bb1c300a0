//! What a scenario has to work with: a directory, a deadline, the program, and a log.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::run;

const EVIDENCE_LINES: usize = 20;
const POLL: Duration = Duration::from_millis(10);

/// One run of one scenario.
pub(super) struct Scene {
    directory: String,
    program: String,
    deadline: Instant,
    pub(super) given: Given,
    /// How many programs were started, to name the files of what they print.
    started: Cell<u32>,
}

/// What is the same for all scenarios of a run.
#[derive(Clone, Debug)]
pub(super) struct Given {
    /// How often a server is to be killed.
    pub(super) kills: u32,
    /// How many files the largest directory is to have.
    pub(super) files: usize,
    /// How many random steps are to be made.
    pub(super) steps: u64,
    /// How many operations fsx is to do on each mount.
    pub(super) operations: u32,
    /// Where fsx is, if it could be had.
    pub(super) fsx: Option<PathBuf>,
}

/// What a program left behind.
pub(super) struct Ended {
    pub(super) status: ExitStatus,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

/// A program that runs beside the scenario; killed when it is dropped.
pub(super) struct Background {
    child: Child,
    name: String,
}

impl Scene {
    pub(super) fn new(
        directory: &Path,
        program: &Path,
        deadline: Instant,
        given: Given,
    ) -> Result<Self> {
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path is not UTF-8");
        Ok(Self {
            directory: text(directory)?,
            program: text(program)?,
            deadline,
            given,
            started: Cell::new(0),
        })
    }

    /// The path of a file of the scenario's own.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.directory)
    }

    /// The program under test, with these arguments.
    pub(super) fn holdfast(&self, arguments: &[&str]) -> Command {
        run::command(&self.program, arguments)
    }

    /// Runs a program to its end, and fails unless it succeeds.
    pub(super) fn ok(&self, command: &mut Command) -> Result<String> {
        Ok(self.code(command, 0)?.stdout)
    }

    /// Runs a program to its end, and fails unless it exits with `code`.
    pub(super) fn code(&self, command: &mut Command, code: i32) -> Result<Ended> {
        let ended = self.run(command)?;
        if ended.status.code() != Some(code) {
            bail!("`{}`: {}, not {code}{}", run::line(command), ended.status, last_words(&ended));
        }
        Ok(ended)
    }

    /// Runs a program to its end, however that is.
    pub(super) fn run(&self, command: &mut Command) -> Result<Ended> {
        let ended = self.execute(command)?;
        let Ended { status, stdout, stderr } = &ended;
        self.log(&format!("{stdout}{stderr}({status})\n"))?;
        Ok(ended)
    }

    /// Runs a program that prints much to its end, and fails unless it succeeds.
    pub(super) fn quiet(&self, command: &mut Command) -> Result<String> {
        let ended = self.execute(command)?;
        if !ended.status.success() {
            bail!("`{}`: {}{}", run::line(command), ended.status, last_words(&ended));
        }
        Ok(ended.stdout)
    }

    fn execute(&self, command: &mut Command) -> Result<Ended> {
        let stem = self.path(&format!("{:03}", self.started.replace(self.started.get() + 1)));
        let (out, err) = (format!("{stem}.stdout"), format!("{stem}.stderr"));
        self.log(&format!("$ {}\n", run::line(command)))?;
        // Files, since a pipe that nobody reads would stop the program.
        command.stdin(Stdio::null()).stdout(File::create(&out)?).stderr(File::create(&err)?);
        let mut background = self.spawn(command)?;
        let status = self.wait(&mut background, self.deadline);
        let read =
            |path| Ok::<_, anyhow::Error>(String::from_utf8_lossy(&fs::read(path)?).into_owned());
        let (stdout, stderr) = (read(&out)?, read(&err)?);
        match status {
            Ok(status) => Ok(Ended { status, stdout, stderr }),
            Err(error) => {
                self.log(&format!("{stdout}{stderr}"))?;
                Err(error)
            }
        }
    }

    /// Starts a program that prints to the file `name`, after what is there.
    pub(super) fn start(&self, command: &mut Command, name: &str) -> Result<Background> {
        self.log(&format!("$ {} &\n", run::line(command)))?;
        let file = OpenOptions::new().create(true).append(true).open(self.path(name))?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        self.spawn(command)
    }

    fn spawn(&self, command: &mut Command) -> Result<Background> {
        let name = run::line(command);
        let child = command.current_dir(&self.directory).spawn();
        Ok(Background { child: child.with_context(|| format!("cannot run `{name}`"))?, name })
    }

    /// Waits for a program to end; fails at `until`, or at the scenario's deadline.
    pub(super) fn wait(&self, program: &mut Background, until: Instant) -> Result<ExitStatus> {
        self.poll(&format!("`{}` to end", program.name), until, || Ok(program.child.try_wait()?))
    }

    /// Asks again and again until there is an answer; fails at `until`, or at the scenario's deadline.
    pub(super) fn poll<T>(
        &self,
        what: &str,
        until: Instant,
        mut ask: impl FnMut() -> Result<Option<T>>,
    ) -> Result<T> {
        let started = Instant::now();
        loop {
            if let Some(answer) = ask()? {
                return Ok(answer);
            }
            if Instant::now() >= until.min(self.deadline) {
                bail!("waited {:.1} s for {what}", started.elapsed().as_secs_f64());
            }
            thread::sleep(POLL);
        }
    }

    /// Checks that nothing is wrong with a volume that nobody serves.
    pub(super) fn verify(&self, volume: &str) -> Result<()> {
        let report = self.ok(&mut self.holdfast(&["verify", "--json", volume]))?;
        let report: Value =
            serde_json::from_str(&report).context("verify --json printed no JSON")?;
        let none = match &report["errors"] {
            Value::Number(count) => count.as_u64() == Some(0),
            Value::Array(errors) => errors.is_empty(),
            _ => false,
        };
        ensure!(none, "verify does not say that there are no errors: {report}");
        Ok(())
    }

    /// The end of what was run and printed, and of what the server said.
    pub(super) fn evidence(&self) -> String {
        let part = |name| {
            let text = fs::read(self.path(name)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).into_owned();
            let lines: Vec<_> = text.lines().collect();
            let last = &lines[lines.len().saturating_sub(EVIDENCE_LINES)..];
            let shown = last.iter().map(|line| format!("  | {line}\n")).collect::<String>();
            format!("  {}:\n{shown}", self.path(name))
        };
        part("log") + &part("server.log")
    }

    fn log(&self, text: &str) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.path("log"))?;
        Ok(file.write_all(text.as_bytes())?)
    }
}

impl Background {
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has not ended yet.
    pub(super) fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // It may have ended, and then there is nothing to do.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last line of a program's complaints.
fn last_words(ended: &Ended) -> String {
    let text = if ended.stderr.trim().is_empty() { &ended.stdout } else { &ended.stderr };
    text.trim().lines().next_back().map_or_else(String::new, |line| format!(": {line}"))
}

#[cfg(test)]
mod tests {
    use std::env;

    use super::*;

    fn scene(name: &str, limit: Duration) -> Scene {
        let directory = env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let given = Given { kills: 1, files: 1, steps: 1, operations: 1, fsx: None };
        Scene::new(&directory, Path::new("/bin/echo"), Instant::now() + limit, given).unwrap()
    }

    /// What is made of a report, which a script prints in the place of the program.
    fn verdict(name: &str, report: &str) -> Result<()> {
        let scene = Scene { program: "/bin/sh".to_owned(), ..scene(name, Duration::from_secs(10)) };
        fs::write(scene.path("verify"), format!("echo '{report}'\n")).unwrap();
        let result = scene.verify("volume");
        fs::remove_dir_all(&scene.directory).unwrap();
        result
    }

    #[test]
    fn a_program_that_hangs_is_stopped_at_the_deadline() {
        let scene = scene("hang", Duration::from_millis(50));
        let error = scene.ok(&mut run::command("sleep", &["60"])).unwrap_err();
        fs::remove_dir_all(&scene.directory).unwrap();
        assert!(error.to_string().ends_with("for `sleep 60` to end"), "{error}");
    }

    #[test]
    fn another_exit_status_than_expected_is_an_error_with_the_last_words() {
        let scene = scene("code", Duration::from_secs(10));
        let error =
            scene.code(&mut run::command("sh", &["-c", "echo gone >&2; exit 3"]), 2).err().unwrap();
        fs::remove_dir_all(&scene.directory).unwrap();
        assert!(error.to_string().ends_with("exit status: 3, not 2: gone"), "{error}");
    }

    #[test]
    fn a_report_without_errors_is_fine() {
        verdict("fine", r#"{"errors": 0}"#).unwrap();
    }

    #[test]
    fn a_report_that_counts_errors_is_not_fine() {
        assert!(verdict("errors", r#"{"errors": 1}"#).is_err());
    }

    #[test]
    fn a_report_that_does_not_speak_of_errors_is_not_fine() {
        assert!(verdict("silent", r#"{"sectors": 8}"#).is_err());
    }
}
