//! Files of XFS that the library wrote at random: Linux mounts what it left, reads what must be there and
//! goes on, and `xfs_repair` and `xfs_db` find nothing.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{XattrFlags, lsetxattr};

use super::kernel::Mount;
use super::{CONFIGS, Config, Special, make};
use crate::e2e::Outcome;
use crate::e2e::bytes::{Noise, noise};
use crate::e2e::scene::Scene;
use crate::packages::is_root;
use crate::run::{command, show};
use crate::workspace::Workspace;

/// How many random steps each configuration gets, half of them with hardly any space left.
pub(crate) const STEPS: u64 = 200;
/// How long one may take: this is for slow machines.
pub(crate) const MILLISECONDS_PER_STEP: u64 = 100;

/// The files that are written; the others have blocks that are shared with them.
const WRITTEN: &[&str] =
    &["plain", "fragments", "reserved", "attributes", "one", "other", "mosaic", "small", "sparse"];

/// How long Linux may take to let go of an image.
const GONE: Duration = Duration::from_secs(10);

/// How much free space is left where there is hardly any, in bytes.
const LEFT: u64 = 64 << 10;
/// And at least so many blocks, of which Linux needs some itself.
const BLOCKS_LEFT: u64 = 16;

pub(crate) fn run(scene: &Scene) -> Result<Outcome> {
    if !is_root()? {
        return Ok(Outcome::Skipped("only root can mount the file systems that are compared"));
    }
    let program = build()?;
    let memory = Mount::memory(scene)?;
    let mut refused = 0;
    for (number, config) in (1..).zip(CONFIGS) {
        let place = Place {
            scene,
            program: &program,
            image: format!("{}/{number}.img", memory.path),
            models: format!("{}/models", memory.path),
        };
        refused +=
            place.try_config(config, number).with_context(|| format!("with {}", config.name))?;
        fs::remove_file(&place.image)?;
    }
    ensure!(refused > 0, "there was always space");
    memory.close(scene)?;
    Ok(Outcome::Passed)
}

/// Builds the program that writes. It keeps the assertions that a release has not.
fn build() -> Result<String> {
    let workspace = Workspace::find()?;
    // For a crate alone, what it depends on is built once more, with other features.
    let build = ["build", "--workspace", "--example", "random"];
    show(command("cargo", &build).current_dir(&workspace.root))?;
    let program = workspace.target.join("debug/examples/random");
    Ok(program.to_str().context("a path is not UTF-8")?.to_owned())
}

/// Where everything is.
struct Place<'s> {
    scene: &'s Scene,
    program: &'s str,
    image: String,
    /// What must be in the files.
    models: String,
}

impl Place<'_> {
    /// Returns how often there was no space.
    fn try_config(&self, config: &Config, seed: u64) -> Result<u64> {
        make(self.scene, config, &self.image)?;
        let shares = config.special != Special::Unshared;
        self.with_linux(|root| fill(self.scene, root, shares).context("filling"))?;
        self.write(seed, "unmount", WRITTEN)?;
        self.check().context("after random steps")?;
        // Linux goes on, until there is hardly any space left.
        self.with_linux(|root| {
            self.compare(root)?;
            overwrite(root, seed)?;
            Ok(fs::remove_file(format!("{root}/sparse"))?)
        })?;
        // What was removed is free for certain after the next mount.
        self.with_linux(|root| crowd(self.scene, root))?;
        self.check().context("after Linux wrote")?;
        let (_, without_sparse) = WRITTEN.split_last().context("no files")?;
        let refused = self.write(seed + 100, "unmount", without_sparse)?;
        self.check().context("after random steps without space")?;
        self.with_linux(|root| self.compare(root))?;
        if config.special == Special::ManyFiles {
            self.write(seed + 200, "abandon", &["plain", "one", "mosaic"])?;
            self.repair_what_was_left()?;
        }
        self.with_linux(|root| {
            self.compare(root)?;
            fs::remove_file(format!("{root}/{FILLER}"))?;
            fs::remove_dir_all(format!("{root}/pieces"))?;
            overwrite(root, seed + 1)?;
            let files = fs::read_dir(root)?.map(|file| Ok(fs::remove_file(file?.path())?));
            files.collect::<Result<()>>()
        })?;
        self.check().context("after Linux removed all")?;
        Ok(refused)
    }

    /// Mounts the image, and makes a copy of all that is there after something was done.
    fn with_linux(&self, work: impl FnOnce(&str) -> Result<()>) -> Result<()> {
        let mount = Mount::new(self.scene, &self.image, false)?;
        work(&mount.path)?;
        fs::remove_dir_all(&self.models).or_else(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        })?;
        fs::create_dir(&self.models)?;
        for file in fs::read_dir(&mount.path)? {
            let file = file?;
            if file.file_type()?.is_file() && file.file_name() != FILLER {
                fs::copy(file.path(), Path::new(&self.models).join(file.file_name()))?;
            }
        }
        mount.close(self.scene)?;
        // Linux lets go of the image a little later.
        self.scene.poll("the loop device to go", Instant::now() + GONE, || {
            let found = self.scene.quiet(&mut command("losetup", &["-j", &self.image]))?;
            Ok(found.is_empty().then_some(()))
        })
    }

    /// Makes random steps, and returns how often there was no space.
    fn write(&self, seed: u64, end: &str, names: &[&str]) -> Result<u64> {
        let steps = (self.scene.given.steps / 2).max(2).to_string();
        let mut program =
            command(self.program, &[&self.image, &self.models, &seed.to_string(), &steps, end]);
        let said = self.scene.ok(program.args(names))?;
        let (refused, _) = said.split_once(' ').context("the program says nothing")?;
        Ok(refused.parse()?)
    }

    /// Has `xfs_repair` and `xfs_db` look: the latter also sees blocks that are nobody's.
    fn check(&self) -> Result<()> {
        self.scene.ok(&mut command("xfs_repair", &["-n", "-f", &self.image]))?;
        let lost = self.scene.ok(&mut command("xfs_db", &["-r", "-c", "blockget -n", &self.image]));
        let lost = lost?;
        ensure!(lost.is_empty(), "xfs_db: {lost}");
        Ok(())
    }

    /// Compares each file with its model.
    fn compare(&self, root: &str) -> Result<()> {
        for file in fs::read_dir(&self.models)? {
            let name = file?.file_name();
            let model = fs::read(Path::new(&self.models).join(&name))?;
            let found = fs::read(Path::new(root).join(&name))?;
            let at = found.iter().zip(&model).position(|(found, model)| found != model);
            let same = at.is_none() && found.len() == model.len();
            let name = name.to_string_lossy();
            ensure!(same, "{name}: Linux reads something else, from {at:?} on");
        }
        Ok(())
    }

    /// Everybody refuses a file system whose writer died, until it is repaired: then all is there that
    /// was synced.
    fn repair_what_was_left(&self) -> Result<()> {
        let ended = self.scene.code(&mut self.scene.holdfast(&["xfs", &self.image, "ls"]), 2)?;
        ensure!(ended.stderr.contains("never"), "another error: {}", ended.stderr);
        let refused = Mount::new(self.scene, &self.image, false);
        ensure!(refused.is_err(), "Linux mounts a file system whose writer died");
        self.scene.ok(&mut command("xfs_repair", &["-f", &self.image]))?;
        self.check()
    }
}

/// What has all the space.
const FILLER: &str = "filler";

/// Files with extents in the inode and in trees, holes, reserved and shared space.
fn fill(scene: &Scene, root: &str, shares: bool) -> Result<()> {
    let at = |name: &str| format!("{root}/{name}");
    let block = rustix::fs::statvfs(root)?.f_bsize;
    fs::write(at("plain"), noise(1, 1_000_001))?;
    fs::write(at("small"), "small")?;
    fragments(&at("fragments"), block)?;
    let sparse = File::create(at("sparse"))?;
    let mut random = Noise::new(3);
    for seed in 1..50 {
        sparse.write_all_at(&noise(seed, 3000), random.below(2 << 20))?;
    }
    sparse.set_len(2 << 20)?;
    let reserve = ["-f", "-c", "falloc 0 1m", "-c", "pwrite 192k 64k", "-c", "falloc -k 2m 1m"];
    scene.ok(command("xfs_io", &reserve).arg(at("reserved")))?;
    // Attributes leave less room for extents in the inode.
    fs::write(at("attributes"), noise(4, 200_000))?;
    for number in 0..8 {
        let value = noise(number + 1, if number < 4 { 60 } else { 3000 });
        lsetxattr(at("attributes"), &*format!("user.{number}"), &value, XattrFlags::empty())?;
    }
    let attributes = File::options().write(true).open(at("attributes"))?;
    for number in 0..30 {
        attributes.write_all_at(b"fragment", (1 << 19) + number * 2 * block)?;
    }
    fs::write(at("one"), noise(5, 1 << 20))?;
    let how = if shares { "--reflink=always" } else { "--reflink=never" };
    for (from, to) in [
        ("one", "other"),
        ("one", "mosaic"),
        ("one", "one.kept"),
        ("fragments", "fragments.kept"),
        ("attributes", "attributes.kept"),
    ] {
        scene.ok(&mut command("cp", &[how, &at(from), &at(to)]))?;
    }
    if shares {
        let step = block.max(4096);
        let mut edit = command("xfs_io", &[]);
        for _ in 0..40 {
            let len = (1 + random.below((128 << 10) / step)) * step;
            let from = random.below(((1 << 20) - len) / step + 1) * step;
            let to = random.below((1 << 20) / step) * step;
            edit.args(["-c", &format!("reflink {} {from} {to} {len}", at("one"))]);
        }
        scene.ok(edit.arg(at("mosaic")))?;
        scene.ok(&mut command("cp", &[how, &at("mosaic"), &at("mosaic.kept")]))?;
    }
    let other = File::options().write(true).open(at("other"))?;
    Ok(other.write_all_at(&noise(6, 100_000), 500_000)?)
}

/// A file with every second block, so many that their tree has several levels.
fn fragments(path: &str, block: u64) -> Result<()> {
    let file = File::create(path)?;
    let piece = noise(2, usize::try_from(block)?);
    for number in 0..((12 << 20) / (2 * block)).min(4000) {
        file.write_all_at(&piece, number * 2 * block)?;
    }
    Ok(file.sync_all()?)
}

/// Linux writes to files that the library wrote.
fn overwrite(root: &str, seed: u64) -> Result<()> {
    for name in ["plain", "fragments", "one", "mosaic"] {
        let file = File::options().write(true).open(format!("{root}/{name}"))?;
        file.write_all_at(&noise(seed, 300_000), 123_456)?;
        file.sync_all()?;
    }
    Ok(())
}

/// Leaves hardly any space, in many places.
fn crowd(scene: &Scene, root: &str) -> Result<()> {
    const PIECES: u64 = 25;
    let dir = format!("{root}/pieces");
    fs::create_dir(&dir)?;
    for number in 0..2 * PIECES {
        fs::write(format!("{dir}/{number}"), noise(number + 1, 5000))?;
    }
    File::open(&dir)?.sync_all()?;
    // Otherwise Linux keeps up to 8192 blocks to itself.
    scene.ok(&mut command("xfs_io", &["-x", "-c", "resblks 1", root]))?;
    let stat = rustix::fs::statvfs(root)?;
    let len = (stat.f_bavail * stat.f_bsize).saturating_sub(LEFT.max(BLOCKS_LEFT * stat.f_bsize));
    let reserve = format!("falloc 0 {len}");
    scene.ok(&mut command("xfs_io", &["-f", "-c", &reserve, &format!("{root}/{FILLER}")]))?;
    for number in (0..2 * PIECES).step_by(2) {
        fs::remove_file(format!("{dir}/{number}"))?;
    }
    Ok(())
}
