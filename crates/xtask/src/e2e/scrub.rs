//! A server scrubs in the background: what it finds and where it is outlast it.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Outcome;
use super::scene::Scene;
use super::server::Server;
use crate::run::command;

/// The sector that rots.
const LBA: u64 = 5;
/// Where its data are in a volume of 64 MiB with the default guard: behind the header and the
/// write-intent log, 1 MiB each, a tuple log of 1 MiB, and the first tuple block.
const DATA: u64 = (3 << 20) + 4096 + LBA * 4096;
const WRITTEN: u64 = 16 << 20;
/// How long a pass over so little may take.
const PASS: Duration = Duration::from_secs(20);

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let volume = scene.path("volume.hf");
    let server = Server::create(scene, &volume, "64M", &[])?;
    let write = format!("write -P 0x5a 0 {WRITTEN}");
    scene.ok(&mut command("qemu-io", &["-f", "raw", "-c", &write, &server.uri()]))?;
    server.stop()?;
    rot(&volume)?;

    let server = Server::start(scene, &volume, &[])?;
    is(&status(scene, &volume, 0)?, "state", &"never".into())?;
    scene.ok(&mut scene.holdfast(&["scrub", "start", &volume]))?;
    let ended = finished(scene, &volume)?;
    is(&ended, "corrupt_lbas", &vec![LBA].into())?;
    let live = scene.ok(&mut scene.holdfast(&["info", "--live", "--json", &volume]))?;
    is(&serde_json::from_str::<Value>(&live)?["scrub"], "corrupt_sectors", &1.into())?;
    server.stop()?;
    is(&status(scene, &volume, 1)?, "state", &"finished".into())?;
    let refused = scene.code(&mut scene.holdfast(&["scrub", "start", &volume]), 2)?;
    ensure!(refused.stderr.contains("nobody serves"), "not refused by: {}", refused.stderr.trim());

    // So slowly that it does not get far.
    let server = Server::start(scene, &volume, &["--scrub", "30", "--scrub-rate", "64K"])?;
    scene.ok(&mut scene.holdfast(&["scrub", "start", &volume]))?;
    scene.poll("the scrub to get on", Instant::now() + PASS, || {
        let position = status_of_any(scene, &volume)?["position_bytes"].as_u64();
        Ok(position.filter(|&position| position > LBA * 4096))
    })?;
    scene.ok(&mut scene.holdfast(&["scrub", "stop", &volume]))?;
    server.stop()?;
    let stopped = status(scene, &volume, 1)?;
    is(&stopped, "state", &"stopped".into())?;

    let server = Server::start(scene, &volume, &["--scrub", "30"])?;
    let found = status(scene, &volume, 1)?;
    is(&found, "state", &"stopped".into())?;
    is(&found, "position_bytes", &stopped["position_bytes"])?;
    scene.ok(&mut scene.holdfast(&["scrub", "start", &volume]))?;
    let ended = finished(scene, &volume)?;
    // It was found by the server before.
    is(&ended, "corrupt_lbas", &Value::Array(Vec::new()))?;
    is(&ended, "started", &stopped["started"])?;
    server.stop()?;
    Ok(Outcome::Passed)
}

/// Flips a stored bit.
fn rot(volume: &str) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(volume)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, DATA)?;
    ensure!(byte == [0x5a], "{byte:?} at {DATA}, which is not what was written");
    Ok(file.write_all_at(&[byte[0] ^ 1], DATA)?)
}

/// Waits for the end of a pass, and checks what it says of itself.
fn finished(scene: &Scene, volume: &str) -> Result<Value> {
    scene.poll("the scrub to end", Instant::now() + PASS, || {
        let state = status_of_any(scene, volume)?["state"].clone();
        Ok((state == "finished").then_some(()))
    })?;
    let ended = status(scene, volume, 1)?;
    is(&ended, "corrupt_sectors", &1.into())?;
    is(&ended, "verified_bytes", &(WRITTEN - 4096).into())?;
    is(&ended, "percent", &100.0.into())?;
    Ok(ended)
}

/// What the program says of the scrub, when it exits with `code`.
fn status(scene: &Scene, volume: &str, code: i32) -> Result<Value> {
    let said = scene.code(&mut scene.holdfast(&["scrub", "status", "--json", volume]), code)?;
    serde_json::from_str(&said.stdout).context("scrub status --json printed no JSON")
}

/// What the program says of the scrub, whatever it exits with.
fn status_of_any(scene: &Scene, volume: &str) -> Result<Value> {
    let said = scene.run(&mut scene.holdfast(&["scrub", "status", "--json", volume]))?;
    serde_json::from_str(&said.stdout).context("scrub status --json printed no JSON")
}

fn is(status: &Value, name: &str, expected: &Value) -> Result<()> {
    let found = &status[name];
    ensure!(found == expected, "{name} is {found}, and not {expected}: {status}");
    Ok(())
}
