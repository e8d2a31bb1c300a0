//! A file system goes in by qemu-img, and comes out by nbdcopy.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::scene::Scene;
use super::server::Server;
use super::{Outcome, bytes};
use crate::run::{command, find};

const IMAGE_SIZE: u64 = 256 << 20;
/// Real files: documentation, in many sizes.
const DOCUMENTS: &str = "/usr/share/doc";
const DOCUMENT_BYTES_MAX: u64 = 64 << 20;
/// Files of noise, so that there is something also on a machine without documentation.
const NOISE_FILES: u64 = 8;
const NOISE_BYTES: usize = 4 << 20;

pub(super) fn run(scene: &Scene) -> Result<Outcome> {
    let image = scene.path("image.raw");
    make_image(scene, &image)?;
    let volume = scene.path("volume.hf");
    let server = Server::create(scene, &volume, &IMAGE_SIZE.to_string(), &[])?;
    let uri = server.uri();

    scene
        .ok(&mut command("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &image, &uri]))?;
    scene.ok(&mut command("qemu-img", &["compare", "-f", "raw", "-F", "raw", &image, &uri]))?;
    let copy = scene.path("copy.raw");
    scene.ok(&mut command("nbdcopy", &[&uri, &copy]))?;
    scene.ok(&mut command("cmp", &[&image, &copy]))?;

    server.stop()?;
    scene.verify(&volume)?;
    Ok(Outcome::Passed)
}

/// Makes an ext4 image full of files.
fn make_image(scene: &Scene, image: &str) -> Result<()> {
    let tree = PathBuf::from(scene.path("tree"));
    fs::create_dir_all(&tree)?;
    let mut left = DOCUMENT_BYTES_MAX;
    copy_tree(Path::new(DOCUMENTS), &tree, &mut left)?;
    for index in 0..NOISE_FILES {
        fs::write(tree.join(format!("noise-{index}")), bytes::noise(index + 1, NOISE_BYTES))?;
    }
    fs::File::create(image)?.set_len(IMAGE_SIZE)?;
    let mkfs = find("mkfs.ext4").context("no mkfs.ext4")?;
    let tree = tree.display().to_string();
    scene.ok(&mut command(&mkfs.display().to_string(), &["-q", "-d", &tree, image]))?;
    Ok(())
}

/// Copies the files of a directory and those below, until `left` bytes are used up.
fn copy_tree(from: &Path, to: &Path, left: &mut u64) -> Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let (kind, target) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            fs::create_dir(&target)?;
            copy_tree(&entry.path(), &target, left)?;
        } else if kind.is_file() {
            let size = entry.metadata()?.len();
            if size > *left {
                return Ok(());
            }
            *left -= size;
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}
