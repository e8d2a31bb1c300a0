//! Files of XFS that Linux wrote, read by the program: all is as Linux itself reads it.

mod compare;
mod fill;
mod kernel;
pub(super) mod write;

use std::fs;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use self::kernel::Mount;
use super::Outcome;
use super::scene::Scene;
use crate::packages::is_root;
use crate::run::command;

/// How many files the largest directory has.
pub(super) const FILES: usize = 20_000;
/// How many it has where that is not the point.
const FEW_FILES: usize = 1500;
/// The size of an image, which is sparse.
const IMAGE: u64 = 512 << 20;

/// A way to make a file system.
struct Config {
    name: &'static str,
    /// What mkfs.xfs is told.
    options: &'static [&'static str],
    /// What is special about it.
    special: Special,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Special {
    Nothing,
    /// The large directory is large.
    ManyFiles,
    /// Timestamps end in 2038.
    SmallTimes,
    /// Nothing can be shared.
    Unshared,
    /// It gets another UUID than its metadata.
    OtherUuid,
    /// It gets incompatible features that mkfs.xfs may not know, but Linux.
    Features(u32),
}

/// `exchange` and `parent`.
const NEWER: u32 = 1 << 6 | 1 << 7;

const fn config(name: &'static str, options: &'static [&'static str], special: Special) -> Config {
    Config { name, options, special }
}

const CONFIGS: &[Config] = &[
    config("default", &[], Special::ManyFiles),
    config("blocks of 1 KiB", &["-b", "size=1024"], Special::Nothing),
    config(
        "blocks of 2 KiB, sectors of 512",
        &["-b", "size=2048", "-s", "size=512"],
        Special::Nothing,
    ),
    config("blocks of 64 KiB", &["-b", "size=65536", "-l", "size=64m"], Special::Nothing),
    config("sectors of 4096", &["-s", "size=4096"], Special::Nothing),
    config("rmapbt and reflink", &["-m", "rmapbt=1,reflink=1"], Special::Nothing),
    config("nrext64", &["-i", "nrext64=1"], Special::Nothing),
    config("no bigtime", &["-m", "bigtime=0"], Special::SmallTimes),
    config(
        "no finobt, no inobtcount, no reflink",
        &["-m", "finobt=0,inobtcount=0,reflink=0,rmapbt=0"],
        Special::Unshared,
    ),
    config("directory blocks of 16 KiB", &["-n", "size=16384"], Special::Nothing),
    config(
        "directory blocks of 64 KiB over blocks of 1 KiB",
        &["-b", "size=1024", "-n", "size=65536", "-i", "nrext64=1", "-m", "rmapbt=1"],
        Special::Nothing,
    ),
    config("inodes of 1 KiB", &["-i", "size=1024"], Special::Nothing),
    config("inodes of 2 KiB", &["-i", "size=2048"], Special::Nothing),
    config("no sparse inodes", &["-i", "sparse=0"], Special::Nothing),
    config("stripes", &["-d", "su=64k,sw=2,agcount=4", "-l", "su=64k,size=64m"], Special::Nothing),
    config("metadata with a UUID of their own", &[], Special::OtherUuid),
    config("exchange and parent", &["-l", "size=64m"], Special::Features(NEWER)),
];

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    if !is_root()? {
        return Ok(Outcome::Skipped("only root can mount the file systems that are compared"));
    }
    let memory = Mount::memory(scene)?;
    let path = |name: &str| format!("{}/{name}", memory.path);
    for (number, config) in CONFIGS.iter().enumerate() {
        let image = path(&format!("{number}.img"));
        try_config(scene, config, &image).with_context(|| format!("with {}", config.name))?;
        // Two are of use later.
        if number > 1 {
            fs::remove_file(&image)?;
        }
    }
    in_a_volume(scene, &path("0.img"), &path("volume.hf"))?;
    dirty(scene, &path("1.img"))?;
    memory.close(scene)?;
    Ok(Outcome::Passed)
}

fn try_config(scene: &Scene, config: &Config, image: &str) -> Result<()> {
    make(scene, config, image)?;
    let many = if config.special == Special::ManyFiles { scene.given.files } else { FEW_FILES };
    let shape = fill::Shape {
        files: many.min(scene.given.files),
        large_times: config.special != Special::SmallTimes,
        shares: config.special != Special::Unshared,
    };
    let mount = Mount::new(scene, image, false)?;
    fill::fill(scene, &mount.path, &shape)?;
    mount.close(scene)?;
    let mount = Mount::new(scene, image, true)?;
    compare::all(scene, image, &mount.path, &format!("{image}.copy"))?;
    mount.close(scene)
}

/// Makes an empty file system.
fn make(scene: &Scene, config: &Config, image: &str) -> Result<()> {
    fs::File::create(image)?.set_len(IMAGE)?;
    let mut mkfs = command("mkfs.xfs", &["-q", "-f"]);
    scene.ok(mkfs.args(config.options).arg(image))?;
    match config.special {
        Special::OtherUuid => {
            scene.ok(&mut command("xfs_admin", &["-U", "generate", image]))?;
        }
        Special::Features(bits) => {
            /// Where the superblock has them.
            const INCOMPATIBLE: u64 = 216;
            let mut found = [0; 4];
            fs::File::open(image)?.read_exact_at(&mut found, INCOMPATIBLE)?;
            let write = format!("write features_incompat {:#x}", u32::from_be_bytes(found) | bits);
            scene.ok(&mut command("xfs_db", &["-x", "-c", "sb 0", "-c", &write, image]))?;
        }
        _ => {}
    }
    Ok(())
}

/// A volume holds the file system, and the same is read.
fn in_a_volume(scene: &Scene, image: &str, volume: &str) -> Result<()> {
    scene.ok(&mut scene.holdfast(&["import", image, volume]))?;
    let list = |path: &str| scene.quiet(&mut scene.holdfast(&["xfs", path, "ls", "-R", "--json"]));
    ensure!(list(volume)? == list(image)?, "a volume and the image that is in it differ");
    scene.code(&mut scene.holdfast(&["xfs", volume, "stat", "/missing"]), 2)?;
    Ok(fs::remove_file(volume)?)
}

/// A file system that was not unmounted is refused, unless the user wants it as it is.
fn dirty(scene: &Scene, image: &str) -> Result<()> {
    let mount = Mount::new(scene, image, false)?;
    fs::write(format!("{}/new", mount.path), "new")?;
    let shutdown = ["-x", "-c", "shutdown -f", &mount.path];
    scene.ok(&mut command("xfs_io", &shutdown))?;
    mount.close(scene)?;
    let ended = scene.code(&mut scene.holdfast(&["xfs", image, "ls"]), 2)?;
    ensure!(ended.stderr.contains("the log is dirty"), "another error: {}", ended.stderr);
    scene.ok(&mut scene.holdfast(&["xfs", image, "--no-recovery", "ls", "-l"]))?;
    // Linux replays it, and then it can be read.
    Mount::new(scene, image, false)?.close(scene)?;
    let names = scene.ok(&mut scene.holdfast(&["xfs", image, "ls"]))?;
    ensure!(names.lines().any(|name| name == "new"), "what Linux replayed is not there");
    Ok(())
}
