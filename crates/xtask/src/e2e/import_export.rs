//! A sparse image comes back the same, and sparse.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::{Result, ensure};

use super::scene::Scene;
use super::{Outcome, bytes};
use crate::run::command;

const SIZE: u64 = 256 << 20;
/// Where there is data, and how many bytes; aligned to nothing.
const DATA: &[(u64, usize)] =
    &[(0, 4096), ((5 << 20) + 123, 1_000_001), (100 << 20, 8 << 20), (SIZE - 777, 777)];
/// How much more than the original the copy may take: holes are found in larger pieces than they are made.
const SLACK: u64 = 8 << 20;

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let (original, volume, copy) =
        (scene.path("original.raw"), scene.path("volume.hf"), scene.path("copy.raw"));
    let file = File::create(&original)?;
    file.set_len(SIZE)?;
    for (seed, (offset, len)) in (1..).zip(DATA) {
        file.write_all_at(&bytes::noise(seed, *len), *offset)?;
    }
    file.sync_all()?;

    scene.ok(&mut scene.holdfast(&["import", &original, &volume]))?;
    scene.verify(&volume)?;
    scene.ok(&mut scene.holdfast(&["export", &volume, &copy]))?;
    scene.ok(&mut command("cmp", &[&original, &copy]))?;
    let (before, after) = (allocated(&original)?, allocated(&copy)?);
    ensure!(after <= before + SLACK, "the copy takes {after} bytes, the original {before}");
    Ok(Outcome::Passed)
}

/// The bytes that a file takes of its disk.
fn allocated(path: &str) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}
