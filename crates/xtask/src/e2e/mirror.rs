//! Mirrors: legs that rot and legs that are unplugged under load, of which clients see nothing.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Outcome;
use super::bytes::Noise;
use super::fio;
use super::scene::{Background, Scene};
use super::server::Server;
use crate::packages::is_root;
use crate::run::command;

/// How many blocks of a leg are overwritten.
const PLACES: u64 = 10_000;
/// How many by one run of qemu-io.
const BATCH: u64 = 500;
const BLOCK: u64 = 4096;
/// Where the groups of a volume of this size begin.
const GROUPS: u64 = 3 << 20;
const START: Duration = Duration::from_secs(10);
const LOAD: Duration = Duration::from_secs(120);

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let (volume, leg) = (scene.path("volume.hf"), scene.path("leg.hf"));
    let server = Server::create(scene, &volume, &fio::volume_size(), &["--mirror", &leg])?;
    rot_under_load(scene, &server, &leg)?;
    let (state, repairs) = leg_of(scene, &volume, &leg, true)?;
    ensure!(state == "in sync" && repairs > 0, "the leg is {state}, with {repairs} repairs");
    server.stop()?;
    scene.ok(&mut scene.holdfast(&["verify", "--repair", &volume]))?;
    scene.verify(&volume)?;
    ensure_equal(&volume, &leg)?;
    kill_under_load(scene, &volume, &leg)?;
    if is_root()? {
        unplug_under_load(scene, &volume, &leg)?;
    }
    split(scene, &volume, &leg)?;
    Ok(Outcome::Passed)
}

/// Overwrites blocks of a leg while clients write and verify.
fn rot_under_load(scene: &Scene, server: &Server<'_>, leg: &str) -> Result<()> {
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--loops=2"];
    let mut load = scene.start(fio::fio(server, "randwrite").args(verify), "fio.log")?;
    let blocks = (fs::metadata(leg)?.len() - GROUPS) / BLOCK;
    let mut random = Noise::new(7);
    for _ in 0..PLACES / BATCH {
        // Both superblocks, and sectors and their tuples. What lies between is not used.
        let mut places = vec![0, 64 << 10];
        places.extend((0..BATCH).map(|_| GROUPS + random.below(blocks) * BLOCK));
        let write = |at: u64| format!("write -P {} {at} {BLOCK}\n", 1 + at / BLOCK % 255);
        let commands: String = places.into_iter().map(write).collect();
        fs::write(scene.path("rot"), commands)?;
        // Direct I/O, since pages that are written back later would bring back what lies beside.
        let rot = format!("qemu-io -f raw -t none {leg} < rot");
        scene.ok(&mut command("sh", &["-c", &rot]))?;
    }
    expect_success(scene, &mut load)
}

fn expect_success(scene: &Scene, load: &mut Background) -> Result<()> {
    let status = scene.wait(load, Instant::now() + LOAD)?;
    ensure!(status.success(), "a client saw an error: {status}; see fio.log");
    Ok(())
}

/// Kills the server while clients write, and checks that whoever opens the volume makes the legs equal.
fn kill_under_load(scene: &Scene, volume: &str, leg: &str) -> Result<()> {
    let server = Server::start(scene, volume, &[])?;
    let load = scene.start(&mut fio::fio(&server, "randwrite"), "fio.log")?;
    std::thread::sleep(Duration::from_secs(1));
    drop(server);
    // It lost its server, and that is all that it can say.
    drop(load);
    scene.ok(&mut scene.holdfast(&["verify", "--repair", volume]))?;
    scene.verify(volume)?;
    ensure_equal(volume, leg)
}

/// Lets a leg fail altogether while clients write and verify, and attaches it again meanwhile.
fn unplug_under_load(scene: &Scene, volume: &str, leg: &str) -> Result<()> {
    let plug = plug(scene, leg)?;
    let server = Server::start(scene, volume, &[])?;
    let verify = ["--verify=crc32c", "--verify_fatal=1", "--loops=2"];
    let mut load = scene.start(fio::fio(&server, "randwrite").args(verify), "fio.log")?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(load.is_running()?, "fio ended too early for this; see fio.log");
    // Killed: whoever has the file open gets an error from everything.
    drop(plug);
    expect_success(scene, &mut load)?;
    let (state, _) = leg_of(scene, volume, leg, true)?;
    ensure!(state == "out", "the leg that was unplugged is {state}");
    scene.run(&mut command("umount", &["-l", leg]))?;
    let mut load = scene.start(fio::fio(&server, "randwrite").args(verify), "fio.log")?;
    scene.ok(&mut scene.holdfast(&["attach", volume, leg]))?;
    let (state, _) = leg_of(scene, volume, leg, true)?;
    ensure!(state == "in sync", "the leg that was attached is {state}");
    expect_success(scene, &mut load)?;
    server.stop()?;
    scene.verify(volume)?;
    ensure_equal(volume, leg)
}

/// Puts a process between a file and those who open it, without which everything fails.
fn plug(scene: &Scene, leg: &str) -> Result<Background> {
    let file = format!("driver=file,filename={leg},node-name=leg,cache.direct=on");
    let export = format!("type=fuse,id=leg,node-name=leg,mountpoint={leg},writable=on");
    let mut storage: Command =
        command("qemu-storage-daemon", &["--blockdev", &file, "--export", &export]);
    let mut plug = scene.start(&mut storage, "plug.log")?;
    scene.poll("the leg to be plugged in", Instant::now() + START, || {
        ensure!(plug.is_running()?, "qemu-storage-daemon ended; see plug.log");
        let mounts = fs::read_to_string("/proc/mounts")?;
        Ok(mounts.contains(leg).then_some(()))
    })?;
    Ok(plug)
}

/// Opens each leg without the other, and checks that nobody guesses which is right.
fn split(scene: &Scene, volume: &str, leg: &str) -> Result<()> {
    for (away, alone) in [(leg, volume), (volume, leg)] {
        let hidden = format!("{away}.away");
        fs::rename(away, &hidden)?;
        let server = Server::start(scene, alone, &[])?;
        let uri = server.uri();
        scene.ok(&mut command("qemu-io", &["-f", "raw", "-c", "write -P 9 0 64k", &uri]))?;
        server.stop()?;
        fs::rename(&hidden, away)?;
    }
    let refused = scene.code(&mut scene.holdfast(&["serve", volume]), 2)?;
    ensure!(refused.stderr.contains("split brain"), "not refused: {}", refused.stderr);
    scene.ok(&mut scene.holdfast(&["attach", "--discard", leg, volume]))?;
    scene.verify(volume)?;
    ensure_equal(volume, leg)
}

/// Returns the state of a leg, and how many sectors were repaired on it.
fn leg_of(scene: &Scene, volume: &str, leg: &str, live: bool) -> Result<(String, u64)> {
    let mut info = scene.holdfast(&["info", "--json", volume]);
    if live {
        info.arg("--live");
    }
    let info: Value = serde_json::from_str(&scene.ok(&mut info)?)?;
    let legs = info["legs"].as_array().context("info says nothing of legs")?;
    let found = legs.iter().find(|found| found["path"].as_str() == Some(leg));
    let found = found.with_context(|| format!("info does not know the leg {leg}"))?;
    let state = found["state"].as_str().context("a leg without a state")?;
    Ok((state.to_owned(), found["repairs"].as_u64().context("a leg without repairs")?))
}

/// Checks that the legs have the same superblocks, sectors and tuples. After a crash a record of a
/// write that was never begun may be in the log of one only.
fn ensure_equal(volume: &str, leg: &str) -> Result<()> {
    let (one, other) = (fs::read(volume)?, fs::read(leg)?);
    ensure!(one.len() == other.len(), "the legs have {} and {} bytes", one.len(), other.len());
    let groups = usize::try_from(GROUPS)?;
    let counts = |at: &usize| *at >= groups || *at % (64 << 10) < 4096 && *at < 68 << 10;
    let differs = (0..one.len()).filter(counts).find(|&at| one[at] != other[at]);
    ensure!(differs.is_none(), "the legs differ from byte {differs:?} on");
    Ok(())
}
