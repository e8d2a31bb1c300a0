//! No space below a sparse volume is an error of the write that met it, and of nothing else.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail, ensure};

use super::Outcome;
use super::scene::{Ended, Scene};
use super::server::Server;
use crate::packages::is_root;
use crate::run::command;

const DISK_MIB: u64 = 64;
const FILLER: usize = 24 << 20;
const PIECE_MIB: u64 = 4;
/// Written first, and then only read, until it is trimmed.
const EARLY_MIB: u64 = 8;

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    if !is_root()? {
        return Ok(Outcome::Skipped("only root can mount a small file system"));
    }
    let disk = Disk::mount(scene)?;
    let filler = format!("{}/filler", disk.path);
    fs::write(&filler, vec![0xff; FILLER])?;
    let volume = format!("{}/volume.hf", disk.path);
    let server = Server::create(scene, &volume, "256M", &[])?;

    let early = format!("-P 0x5a 0 {EARLY_MIB}M");
    expect(scene, &server, &format!("write {early}"))?;
    let full = fill(scene, &server, EARLY_MIB)?;
    expect(scene, &server, &format!("read {early}"))?;

    fs::remove_file(&filler)?;
    expect(scene, &server, &write(full))?;
    expect(scene, &server, &format!("read {early}"))?;

    let full = fill(scene, &server, full)?;
    expect(scene, &server, &format!("discard 0 {EARLY_MIB}M"))?;
    expect(scene, &server, &write(full))?;
    expect(scene, &server, &write(full).replace("write", "read"))?;

    server.stop()?;
    scene.verify(&volume)?;
    Ok(Outcome::Passed)
}

/// Writes piece after piece from an offset until there is no space, and returns where that was, in MiB.
fn fill(scene: &Scene, server: &Server<'_>, from_mib: u64) -> Result<u64> {
    for piece in 0..DISK_MIB / PIECE_MIB {
        let offset_mib = from_mib + piece * PIECE_MIB;
        let ended = scene.run(&mut qemu_io(server, &write(offset_mib)))?;
        let said = said(&ended);
        if said.contains("failed") {
            ensure!(
                said.contains("No space left"),
                "another error than that of a full disk: {said}"
            );
            return Ok(offset_mib);
        }
    }
    bail!("{DISK_MIB} MiB were written to a disk of that size with other things on it");
}

fn write(offset_mib: u64) -> String {
    format!("write -P 0xa5 {offset_mib}M {PIECE_MIB}M")
}

/// Runs one command of qemu-io's that must not fail.
fn expect(scene: &Scene, server: &Server<'_>, line: &str) -> Result<()> {
    let ended = scene.run(&mut qemu_io(server, line))?;
    ensure!(ended.status.success() && !said(&ended).contains("failed"), "{line}: {}", said(&ended));
    Ok(())
}

fn qemu_io(server: &Server<'_>, line: &str) -> Command {
    command("qemu-io", &["-f", "raw", "-c", line, &server.uri()])
}

fn said(ended: &Ended) -> String {
    format!("{}{}", ended.stdout, ended.stderr).trim().to_owned()
}

/// A small file system in memory; unmounted when it is dropped.
struct Disk {
    path: String,
}

impl Disk {
    fn mount(scene: &Scene) -> Result<Self> {
        let path = scene.path("disk");
        fs::create_dir(&path)?;
        let size = format!("size={DISK_MIB}M");
        scene.ok(&mut command("mount", &["-t", "tmpfs", "-o", &size, "tmpfs", &path]))?;
        Ok(Self { path })
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: a server that hangs must not keep the mount.
        let _ = command("umount", &["--lazy", &self.path]).status();
    }
}
