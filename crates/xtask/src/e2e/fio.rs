//! Load by fio: everything that it wrote is there, also when the server was told to stop meanwhile.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Outcome;
use super::scene::Scene;
use super::server::Server;
use crate::run::command;

const JOBS: u64 = 4;
const JOB_MIB: u64 = 64;
/// How long the load runs before the server is told to stop.
const LOAD: Duration = Duration::from_secs(3);

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let volume = scene.path("volume.hf");
    let server = Server::create(scene, &volume, &volume_size(), &[])?;
    let verify = ["--verify=crc32c", "--verify_fatal=1"];
    scene.ok(fio(&server, "randwrite").args(verify))?;
    scene.ok(fio(&server, "randrw").args(verify))?;
    server.stop()?;
    scene.verify(&volume)?;
    Ok(Outcome::Passed)
}

/// SIGTERM while fio writes.
pub(super) fn sigterm(scene: &Scene) -> Result<Outcome> {
    let volume = scene.path("volume.hf");
    let server = Server::create(scene, &volume, &volume_size(), &[])?;
    let mut load =
        scene.start(fio(&server, "randwrite").args(["--time_based", "--runtime=60"]), "fio.log")?;
    let until = Instant::now() + LOAD;
    scene.poll("the load to go on for a while", until + LOAD, || {
        ensure!(load.is_running()?, "fio ended by itself; see fio.log");
        Ok((Instant::now() >= until).then_some(()))
    })?;
    server.stop()?;
    // What a client makes of it is its own affair.
    drop(load);
    scene.verify(&volume)?;
    Ok(Outcome::Passed)
}

/// Four jobs at depth 16, each in a region of its own.
pub(super) fn fio(server: &Server<'_>, pattern: &str) -> Command {
    let mut fio =
        command("fio", &["--name=load", "--ioengine=nbd", "--thread", "--group_reporting"]);
    fio.args(["--bs=4k", "--iodepth=16", "--randseed=1", &format!("--rw={pattern}")]);
    fio.args([format!("--uri={}", server.uri()), format!("--numjobs={JOBS}")]);
    fio.args([format!("--size={JOB_MIB}m"), format!("--offset_increment={JOB_MIB}m")]);
    fio
}

pub(super) fn volume_size() -> String {
    format!("{}M", JOBS * JOB_MIB)
}
