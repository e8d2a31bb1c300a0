//! Who serves the disk: Holdfast, or QEMU's own server to compare with.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::case::Case;
use super::counters::Counters;
use super::play::Play;
use super::process::{Desk, Running};
use crate::run::command;

/// What each scenario names in its own directory, where all programs run: so that the path of a
/// Unix socket is short, wherever the directory is.
pub(super) const SOCKET: &str = "guest.sock";
/// What the servers printed, one after the other.
pub(super) const LOG: &str = "server.log";
const VOLUME: &str = "volume.hf";
const SIZE: &str = "512M";
/// With a file system in the volume: its size, its image, and the file in it that is the disk.
const FILE_SYSTEM: &str = "768m";
const IMAGE: &str = "fs.img";
const FILE: &str = "/disk.img";

const START: Duration = Duration::from_secs(20);
const STOP: Duration = Duration::from_secs(20);

/// Whose server, and its program.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    Holdfast(&'a Path),
    /// `qemu-storage-daemon` with a raw file, which has neither tuples nor counters.
    Peer,
}

/// A disk that a scenario uses; served in between, and stopped, killed and started again.
pub(super) struct Server<'a> {
    desk: &'a Desk<'a>,
    kind: Kind<'a>,
    case: &'a Case,
    running: Option<Running>,
    /// Where in the log the last one that was started begins.
    log_start: usize,
}

impl<'a> Server<'a> {
    /// Makes a fresh disk, and serves it.
    pub(super) fn create(play: &Play<'a>) -> Result<Self> {
        let Play { desk, kind, case, .. } = *play;
        let mut create = match kind {
            Kind::Holdfast(program) if case.in_xfs => {
                create_in_xfs(desk, program, case)?;
                let mut put = Command::new(program);
                put.args(["xfs", VOLUME, "put", "hole", FILE]);
                put
            }
            Kind::Holdfast(program) => {
                let mut create = Command::new(program);
                create.args(["create", VOLUME, "--size", SIZE, "--guard", case.guard]);
                create.args(["--sector", case.sector]);
                create
            }
            Kind::Peer => command("truncate", &["--size", SIZE, VOLUME]),
        };
        desk.ok(&mut create)?;
        let mut server = Self { desk, kind, case, running: None, log_start: 0 };
        server.start()?;
        Ok(server)
    }

    /// Serves the disk, and waits for the socket.
    pub(super) fn start(&mut self) -> Result<()> {
        // A server that was killed has left its own behind. And to connect, to see whether there is
        // somebody, would be to be a client.
        let old = self.socket_made();
        self.log_start = self.desk.text(LOG).map_or(0, |text| text.len());
        let mut running = self.desk.start(&self.command(), LOG, LOG)?;
        self.desk.poll("the server to listen", Instant::now() + START, || {
            ensure!(running.is_running()?, "the server ended at once; see {LOG}");
            Ok(self.socket_made().filter(|made| Some(*made) != old))
        })?;
        self.running = Some(running);
        Ok(())
    }

    /// When the socket was made, in seconds and nanoseconds.
    fn socket_made(&self) -> Option<(i64, i64)> {
        let metadata = fs::symlink_metadata(self.desk.directory.join(SOCKET)).ok()?;
        Some((metadata.ctime(), metadata.ctime_nsec()))
    }

    fn command(&self) -> Command {
        let queues = self.case.queues;
        match self.kind {
            Kind::Holdfast(program) => {
                let mut serve = Command::new(program);
                serve.arg("serve");
                if self.case.in_xfs {
                    serve.args(["--xfs", &format!("{VOLUME}:{FILE}")]);
                } else {
                    serve.arg(VOLUME);
                }
                serve.args(["--vhost-user", SOCKET]);
                serve.args(["--queues", &queues.to_string()]);
                serve.args(["--read-policy", self.case.policy]);
                serve
            }
            Kind::Peer => {
                let disk = format!("driver=file,node-name=disk,filename={VOLUME},cache.direct=on");
                let export = format!(
                    "type=vhost-user-blk,id=guest,node-name=disk,writable=on,num-queues={queues},\
                     addr.type=unix,addr.path={SOCKET}"
                );
                command("qemu-storage-daemon", &["--blockdev", &disk, "--export", &export])
            }
        }
    }

    /// Fails when the server is not running any more, without having been asked to end.
    pub(super) fn ensure_running(&mut self) -> Result<()> {
        ensure!(self.running()?.is_running()?, "the server ended; see {LOG}");
        Ok(())
    }

    /// What this run of the server has counted so far; of a peer, nothing.
    pub(super) fn counters(&self) -> Result<Counters> {
        let Kind::Holdfast(program) = self.kind else { return Ok(Counters::default()) };
        if !self.has_counters() {
            return Ok(Counters::default());
        }
        let mut info = Command::new(program);
        let (status, text) = self.desk.ask(info.args(["info", "--live", VOLUME, "--json"]))?;
        ensure!(status.success(), "info --live ended with {status}");
        Counters::parse(&text)
    }

    pub(super) const fn has_counters(&self) -> bool {
        matches!(self.kind, Kind::Holdfast(_)) && !self.case.in_xfs
    }

    /// Asks the server to end, and checks that it does so in time and in peace.
    pub(super) fn stop(&mut self) -> Result<()> {
        let mut running = self.take()?;
        running.signal("TERM")?;
        let status = self.desk.wait(&mut running, Instant::now() + STOP)?;
        if !status.success() {
            bail!("the server ended with {status} after SIGTERM");
        }
        let said = self.desk.text(LOG)?;
        ensure!(!said.contains("panicked at"), "the server panicked; see {LOG}");
        Ok(())
    }

    /// Kills the server, as a crash of it would.
    pub(super) fn kill(&mut self) -> Result<()> {
        drop(self.take()?);
        Ok(())
    }

    /// Gives its program away, to whoever ends it.
    pub(super) fn take(&mut self) -> Result<Running> {
        self.ensure_running()?;
        self.running.take().context("no server")
    }

    /// How many faults `verify` finds in the disk, which nobody serves; of a peer's, none.
    pub(super) fn verify(&self) -> Result<u64> {
        let Kind::Holdfast(program) = self.kind else { return Ok(0) };
        let mut verify = Command::new(program);
        let (status, report) = self.desk.run(verify.args(["verify", "--json", VOLUME]))?;
        let faults = faults_of(&report)?;
        let expected = i32::from(faults > 0);
        ensure!(status.code() == Some(expected), "verify found {faults} faults, and then {status}");
        if self.case.in_xfs {
            let mut export = Command::new(program);
            self.desk.ok(export.args(["export", VOLUME, "after.img"]))?;
            self.desk.ok(&mut command("xfs_repair", &["-n", "-f", "after.img"]))?;
        }
        Ok(faults)
    }

    /// What this server found of the log of one that was killed.
    pub(super) fn recovery(&self) -> Result<Recovery> {
        let said = self.desk.text(LOG)?;
        let since = said.get(self.log_start..).unwrap_or_default();
        Recovery::parse(since).context("the server did not say what it recovered")
    }

    fn running(&mut self) -> Result<&mut Running> {
        self.running.as_mut().context("no server")
    }
}

/// Makes a volume with an XFS in it, which has a file, and a hole as long as the disk is to be.
fn create_in_xfs(desk: &Desk<'_>, program: &Path, case: &Case) -> Result<()> {
    let size = format!("file,name={IMAGE},size={FILE_SYSTEM}");
    fs::write(desk.directory.join("few"), "holdfast")?;
    let name = FILE.trim_start_matches('/');
    let proto = format!("/\n0 0\nd--755 0 0\n{name} ---644 0 0 few\n$\n");
    fs::write(desk.directory.join("proto"), proto)?;
    desk.ok(&mut command("mkfs.xfs", &["-q", "-p", "proto", "-d", &size]))?;
    desk.ok(&mut command("truncate", &["--size", SIZE, "hole"]))?;
    let mut import = Command::new(program);
    import.args(["import", IMAGE, VOLUME, "--guard", case.guard, "--sector", case.sector]);
    desk.ok(&mut import)?;
    Ok(())
}

/// What a server said of a volume that was not closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Recovery {
    /// How many records of the tuple log counted.
    pub(super) records: u64,
    /// How many sectors had another tuple than the one that was stored.
    pub(super) settled: u64,
    /// How many sectors are of no use, or were taken as they are.
    pub(super) doubtful: u64,
}

impl Recovery {
    /// Finds what the log of a server says, if it says all of it.
    fn parse(log: &str) -> Option<Self> {
        let line = log.lines().find(|line| line.contains("the volume was not closed"))?;
        let count = |name: &str| {
            let value = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
            value.strip_prefix('=')?.parse::<u64>().ok()
        };
        let doubtful = count("torn")? + count("unreadable")? + count("taken")?;
        Some(Self { records: count("records")?, settled: count("settled")?, doubtful })
    }
}

/// The number of faults in what `verify --json` printed; fails when it verified nothing.
fn faults_of(report: &str) -> Result<u64> {
    let json: Value = serde_json::from_str(report).context("verify --json printed no JSON")?;
    let count =
        |name: &str| json[name].as_u64().with_context(|| format!("verify: no {name}: {json}"));
    let unreadable =
        json["unreadable"].as_array().context("verify: no list of unreadable sectors")?;
    ensure!(count("verified_bytes")? > 0, "there was nothing to verify");
    Ok(count("corrupt_sectors")? + u64::try_from(unreadable.len())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_what_it_recovered() {
        let log = "2026-11-21T18:00:00Z  INFO the volume was not closed records=912 settled=17 \
                   taken=1 torn=2 unreadable=4\nserving";
        let recovery = Recovery { records: 912, settled: 17, doubtful: 7 };
        assert_eq!(Recovery::parse(log), Some(recovery));
    }

    #[test]
    fn a_server_of_a_closed_volume_recovers_nothing() {
        assert_eq!(Recovery::parse("INFO serving records=1 settled=1\n"), None);
    }

    #[test]
    fn corrupt_and_unreadable_sectors_are_faults() {
        let report = r#"{"verified_bytes": 8192, "corrupt_sectors": 2, "unreadable": [{}]}"#;
        assert_eq!(faults_of(report).unwrap(), 3);
    }

    #[test]
    fn to_verify_nothing_is_an_error() {
        let report = r#"{"verified_bytes": 0, "corrupt_sectors": 0, "unreadable": []}"#;
        faults_of(report).unwrap_err();
    }

    #[test]
    fn a_report_without_a_count_is_an_error() {
        faults_of(r#"{"verified_bytes": 8192, "unreadable": []}"#).unwrap_err();
    }
}
