//! A server that is killed again and again while the guest goes on.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use holdfast_units::to_u64;
use holdfast_virtio_driver::Client;
use rustix::process::{Pid, Signal, kill_process};

use crate::TortureError;
use crate::case::{Case, border, judge_scrub, outcome_of, scratch_directory, with_mutator};
use crate::guest::{Guest, Tally};
use crate::host::{Medium, scrub};
use crate::mutator::Board;
use crate::outcome::Outcome;
use crate::random::Random;

/// A run in which the server is another process, which is killed.
#[derive(Clone, Copy, Debug)]
pub struct Restarts<'a> {
    /// What the volume is and how it is served. The number of requests means nothing.
    pub case: Case,
    /// The `holdfast` program.
    pub program: &'a Path,
    /// Where the volume is made, in a directory of its own that is removed at the end.
    pub directory: &'a Path,
    /// How often the server is killed.
    pub kills: u64,
}

impl Restarts<'_> {
    /// For how long a server runs at most, between being connected to and being killed.
    const LIFE_MS: u64 = 120;
    /// For how long one runs that is killed while it starts.
    const BIRTH_MS: u64 = 30;
    const STOP: Duration = Duration::from_secs(30);

    /// Carries the run out. `each` is told how often the server was killed.
    ///
    /// # Errors
    ///
    /// [`TortureError`], when it could not go on. What the server did wrong is in the outcome.
    pub fn run(&self, each: impl FnMut(u64)) -> Result<Outcome, TortureError> {
        let directory = scratch_directory(self.directory)?;
        let options = self.case.create_options();
        let mut server = Process {
            program: self.program,
            socket: directory.path().join("guest.sock"),
            log: directory.path().join("log"),
            volume: directory.path().join("volume.hf"),
            case: &self.case,
            child: None,
        };
        drop(Medium::file(&server.volume, &options)?);
        server.start()?;
        let mut outcome = self.torture(&mut server, border(&options.geometry()?), each)?;
        server.stop()?;
        let is_fine = server.verify(&mut outcome)?;
        let (report, errors) = scrub(&Medium::open(&server.volume)?)?;
        outcome.reported = errors;
        judge_scrub(&mut outcome, &report, &BTreeSet::new());
        if !is_fine {
            outcome.bad_guards = outcome.bad_guards.max(1);
        }
        Ok(outcome)
    }

    /// Lets the guest run, with its mutator.
    fn torture(
        &self,
        server: &mut Process<'_>,
        border: u64,
        each: impl FnMut(u64),
    ) -> Result<Outcome, TortureError> {
        let mut random = Random::new(self.case.seed);
        let client = Client::connect(&server.socket, &self.case.client_options(&mut random))?;
        let queues = self.case.queues;
        let board = Arc::new(Board::new(Guest::places(usize::from(queues))));
        let (mutations, chaos) = (random.fork(), random.fork());
        let (manners, ours) = (self.case.manners(), Arc::clone(&board));
        let mut guest = Guest::new(client, queues, border, manners, ours, random)?;
        let interrupted = with_mutator(&board, mutations, || {
            self.kill_again_and_again(&mut guest, server, chaos, each)
        });
        // What the server said last may tell why the guest cannot go on.
        let interrupted = interrupted.map_err(|error| server.explain(error))?;
        let Tally { requests, bytes, .. } = guest.tally().clone();
        guest.sweep()?;
        let found = outcome_of(&guest, &board);
        Ok(Outcome { requests, bytes, kills: self.kills, interrupted, ..found })
    }

    /// Returns how many requests were in flight at the kills, all together.
    fn kill_again_and_again(
        &self,
        guest: &mut Guest,
        server: &mut Process<'_>,
        mut random: Random,
        mut each: impl FnMut(u64),
    ) -> Result<u64, TortureError> {
        let (mut kills, mut interrupted) = (0, 0);
        while kills < self.kills {
            let life = Duration::from_micros(random.below(Self::LIFE_MS * 1000));
            guest.run_until(Instant::now() + life)?;
            server.kill()?;
            kills += 1;
            interrupted += to_u64(guest.in_flight());
            if random.chance(50) {
                // Those that nobody has taken.
                guest.submit(u64::MAX)?;
            }
            server.start()?;
            if kills < self.kills && random.chance(20) {
                // While it settles what the one before it has left.
                thread::sleep(Duration::from_micros(random.below(Self::BIRTH_MS * 1000)));
                server.kill()?;
                kills += 1;
                server.start()?;
            }
            guest.reconnect()?;
            each(kills);
        }
        guest.run_until(Instant::now() + Duration::from_millis(Self::LIFE_MS))?;
        guest.drain()?;
        Ok(interrupted)
    }
}

/// The program that serves the volume, whether it runs or not.
struct Process<'a> {
    program: &'a Path,
    socket: PathBuf,
    log: PathBuf,
    volume: PathBuf,
    case: &'a Case,
    child: Option<Child>,
}

impl Process<'_> {
    fn start(&mut self) -> Result<(), TortureError> {
        let log = File::options().create(true).append(true).open(&self.log);
        let log = log.map_err(TortureError::system("open the log of the server"))?;
        let mut serve = Command::new(self.program);
        serve.arg("serve").arg(&self.volume).arg("--vhost-user").arg(&self.socket);
        serve.args(["--queues", &self.case.queues.to_string()]);
        serve.args(["--read-policy", self.case.policy.name(), "--cache-size", "256K"]);
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = serve.spawn().map_err(TortureError::system("start the program"))?;
        self.child = Some(child);
        Ok(())
    }

    fn kill(&mut self) -> Result<(), TortureError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let mut kill = || -> io::Result<Option<ExitStatus>> {
            if let Some(status) = child.try_wait()? {
                return Ok(Some(status));
            }
            child.kill()?;
            child.wait()?;
            Ok(None)
        };
        match kill().map_err(TortureError::system("kill the server"))? {
            Some(status) => Err(self.ended(status)),
            None => Ok(()),
        }
    }

    /// Asks the server to end, and waits until it has.
    fn stop(&mut self) -> Result<(), TortureError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let doing = "stop the server";
        let id = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("it is an id");
        kill_process(id, Signal::TERM).map_err(TortureError::system(doing))?;
        let deadline = Instant::now() + Restarts::STOP;
        loop {
            match child.try_wait().map_err(TortureError::system(doing))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(self.ended(status)),
                None if Instant::now() > deadline => {
                    self.child = Some(child);
                    self.kill()?;
                    let seconds = Restarts::STOP.as_secs();
                    return Err(TortureError::Hung { in_flight: 0, seconds });
                }
                None => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// Has the program itself check the volume. Returns whether nothing is wrong with it.
    fn verify(&self, outcome: &mut Outcome) -> Result<bool, TortureError> {
        let mut verify = Command::new(self.program);
        let output = verify.arg("verify").arg(&self.volume).stdin(Stdio::null()).output();
        let output = output.map_err(TortureError::system("start the program"))?;
        let is_fine = output.status.success();
        if !is_fine {
            let said = String::from_utf8_lossy(&output.stdout);
            outcome.faults.push(format!("verify ended with {}: {said}", output.status));
        }
        Ok(is_fine)
    }

    fn ended(&self, status: ExitStatus) -> TortureError {
        TortureError::Program {
            program: self.program.into(),
            status: status.to_string(),
            said: self.last_words(),
        }
    }

    /// Returns why the server has ended, if it has, rather than that nobody answers.
    fn explain(&mut self, error: TortureError) -> TortureError {
        match self.child.as_mut().map(Child::try_wait) {
            Some(Ok(Some(status))) => self.ended(status),
            _ => error,
        }
    }

    fn last_words(&self) -> String {
        const LINES: usize = 10;
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let last = &lines[lines.len().saturating_sub(LINES)..];
        if last.is_empty() { String::new() } else { format!(":\n{}", last.join("\n")) }
    }
}

impl Drop for Process<'_> {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself.
            let _ended = child.kill();
            let _reaped = child.wait();
        }
    }
}
