//! SIGKILL under load. fio remembers which of its writes were acknowledged when the server was killed,
//! and finds all of them at the next.

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

const SIZE: &str = "256M";

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let volume = scene.path("volume.hf");
    let mut server = Server::create(scene, &volume, SIZE, &[])?;
    for round in 0..scene.kills {
        // The load is killed with the server: how it ends is its own affair.
        let trigger = format!("--trigger=kill -9 {}", server.pid());
        let seconds = format!("--trigger-timeout={}", 1 + round % 2);
        scene.run(fio(&server, round).args(["--do_verify=0", &seconds, &trigger]))?;
        server.wait_for_death()?;
        scene.verify(&volume)?;
        server = Server::start(scene, &volume)?;
        let check = ["--verify_only", "--verify_fatal=1", "--verify_state_load=1"];
        scene.ok(fio(&server, round).args(check))?;
    }
    server.stop()?;
    scene.verify(&volume)?;
    Ok(Outcome::Passed)
}

/// Writes of several sizes, some of them parts of sectors, at depth 16.
fn fio(server: &Server<'_>, seed: u32) -> Command {
    let mut fio =
        command("fio", &["--name=load", "--ioengine=nbd", "--thread", "--rw=randwrite", "--bs=4k"]);
    fio.args(["--iodepth=16", "--verify=crc32c", "--verify_state_save=1"]);
    fio.args([format!("--uri={}", server.uri()), format!("--size={SIZE}")]);
    fio.args([format!("--randseed={seed}"), "--norandommap=0".to_owned()]);
    // Without a server fio would ask for a new one, again and again.
    fio.args(["--fsync=64", "--exitall_on_error"]);
    fio
}
