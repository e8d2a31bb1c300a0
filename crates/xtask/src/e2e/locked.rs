//! A served volume is refused to everybody else.

use anyhow::{Result, ensure};

use super::Outcome;
use super::scene::Scene;
use super::server::Server;
use crate::run::command;

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let volume = scene.path("volume.hf");
    let server = Server::create(scene, &volume, "64M", &[])?;
    let other = format!("unix:{}", scene.path("other.sock"));
    let pid = server.pid().to_string();

    for arguments in [&["serve", &volume, "--nbd", &other][..], &["verify", &volume]] {
        let refused = scene.code(&mut scene.holdfast(arguments), 2)?;
        ensure!(refused.stderr.contains(&pid), "no pid {pid} in: {}", refused.stderr.trim());
    }
    // Those who were refused broke nothing.
    scene.ok(&mut command("qemu-io", &["-f", "raw", "-c", "write -P 1 0 64k", &server.uri()]))?;

    server.stop()?;
    scene.verify(&volume)?;
    Ok(Outcome::Passed)
}
