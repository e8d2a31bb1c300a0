//! SIGKILL under load. fio remembers which of its writes were acknowledged when the server was killed,
//! and finds all of them at the next.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::Outcome;
use super::scene::Scene;
use super::server::Server;
use crate::run::command;

/// How often the server is killed if nobody says otherwise.
pub(super) const KILLS: u32 = 3;
/// How long each of them may take.
pub(super) const LIMIT: Duration = Duration::from_secs(60);

/// Each has one request in flight: of several, fio takes one that others have overtaken for
/// acknowledged.
const JOBS: u32 = 16;
/// More than a job writes before it is over.
const JOB_MIB: u32 = 128;

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let volume = scene.path("volume.hf");
    let mut server = Server::create(scene, &volume, &format!("{}M", JOBS * JOB_MIB), &[])?;
    for round in 0..scene.given.kills {
        // The load is killed with the server: how it ends is its own affair.
        // fio says what was acknowledged before it does this. It does so once more at its end, and
        // then counts what has failed.
        let (saved, pid) = (scene.path("saved"), server.pid());
        let trigger = format!("--trigger=cp *-verify.state {saved} && kill -9 {pid}");
        fs::create_dir(&saved)?;
        let seconds = format!("--trigger-timeout={}", 1 + round % 2);
        scene.run(fio(&server, round).args(["--do_verify=0", &seconds, &trigger]))?;
        server.wait_for_death()?;
        scene.verify(&volume)?;
        server = Server::start(scene, &volume, &[])?;
        scene.ok(&mut command("sh", &["-c", "mv saved/* . && rmdir saved"]))?;
        let check = ["--verify_only", "--verify_fatal=1", "--verify_state_load=1"];
        scene.ok(fio(&server, round).args(check))?;
    }
    server.stop()?;
    scene.verify(&volume)?;
    Ok(Outcome::Passed)
}

/// Writes of several sizes, some of them parts of sectors, each job in a region of its own.
fn fio(server: &Server<'_>, seed: u32) -> Command {
    let mut fio = command("fio", &["--name=load", "--ioengine=nbd", "--thread", "--rw=randwrite"]);
    fio.args(["--bsrange=512-64k", "--fsync=64", "--exitall_on_error", "--group_reporting"]);
    fio.args([format!("--numjobs={JOBS}"), format!("--offset_increment={JOB_MIB}m")]);
    fio.args(["--verify=crc32c", "--verify_state_save=1", &format!("--randseed={seed}")]);
    fio.args([format!("--uri={}", server.uri()), format!("--size={JOB_MIB}m")]);
    fio
}
