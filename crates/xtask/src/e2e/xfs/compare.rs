//! What the program reads, against what Linux reads.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{SeekFrom, seek};
use serde_json::Value;

use super::fill::MAPPED;
use super::kernel::{self, Extent};
use crate::e2e::scene::Scene;

/// How many paths the program gets at a time.
const PATHS: usize = 4000;

/// Compares everything. The image is mounted read-only, and a copy of its files is made.
pub(super) fn all(scene: &Scene, image: &str, mount: &str, copy: &str) -> Result<()> {
    let expected = kernel::tree(Path::new(mount))?;
    let root = kernel::describe(Path::new(mount))?;
    let found = listed(scene, image)?;
    let missing = expected.keys().find(|path| !found.contains_key(*path));
    let strange = found.keys().find(|path| !expected.contains_key(*path));
    ensure!(missing.is_none() && strange.is_none(), "missing {missing:?}, strange {strange:?}");
    for (path, expected) in &expected {
        same(path, expected, &found[path])?;
    }
    let stat = scene.ok(&mut scene.holdfast(&["xfs", image, "stat", "--json", "/"]))?;
    same(b"/", &root, &serde_json::from_str::<Value>(&stat)?[0])?;
    let paths: Vec<_> = expected.keys().map(Vec::as_slice).collect();
    attributes(scene, image, mount, &paths)?;
    contents(scene, image, (mount, copy), &expected)?;
    for name in MAPPED {
        extents(scene, image, mount, name).with_context(|| format!("extents of {name}"))?;
    }
    Ok(())
}

/// All that the program lists, by path.
fn listed(scene: &Scene, image: &str) -> Result<BTreeMap<Vec<u8>, Value>> {
    let text = scene.quiet(&mut scene.holdfast(&["xfs", image, "ls", "-R", "--json", "/"]))?;
    let Value::Array(files) = serde_json::from_str(&text)? else { bail!("ls printed no list") };
    files.into_iter().map(|file| Ok((path_of(&file)?, file))).collect()
}

fn path_of(file: &Value) -> Result<Vec<u8>> {
    if let Some(bytes) = file["path_bytes"].as_str() {
        let digits =
            |at| Ok(u8::from_str_radix(bytes.get(at..at + 2).context("half a byte")?, 16)?);
        return (0..bytes.len()).step_by(2).map(digits).collect();
    }
    Ok(file["path"].as_str().context("a file without path")?.as_bytes().to_vec())
}

/// Checks everything that Linux says.
fn same(path: &[u8], expected: &Value, found: &Value) -> Result<()> {
    for (field, expected) in expected.as_object().context("no description")? {
        let (path, found) = (String::from_utf8_lossy(path), &found[field]);
        ensure!(found == expected, "{path}: {field} is {found}, and Linux says {expected}");
    }
    Ok(())
}

fn holdfast(scene: &Scene, arguments: &[&str], paths: &[&[u8]]) -> Command {
    let mut command = scene.holdfast(arguments);
    command.args(paths.iter().map(|path| OsStr::from_bytes(path)));
    command
}

/// Compares the attributes of all files, which are looked up by their paths.
fn attributes(scene: &Scene, image: &str, mount: &str, paths: &[&[u8]]) -> Result<()> {
    for paths in paths.chunks(PATHS) {
        let stat = ["xfs", image, "stat", "--json"];
        let text = scene.quiet(&mut holdfast(scene, &stat, paths))?;
        let files: Vec<Value> = serde_json::from_str(&text)?;
        ensure!(files.len() == paths.len(), "stat printed {} files", files.len());
        for (path, file) in paths.iter().zip(files) {
            let relative = OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path));
            let expected = kernel::attributes(&Path::new(mount).join(relative))?;
            let list = file["attributes"].as_array().context("no attributes")?;
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let found: BTreeMap<_, _> =
                list.iter().map(|one| (text(&one["name"]), text(&one["value"]))).collect();
            ensure!(found == expected, "attributes of {}", String::from_utf8_lossy(path));
        }
    }
    Ok(())
}

/// Compares what all files hold, by a copy of the whole tree.
fn contents(
    scene: &Scene,
    image: &str,
    (mount, copy): (&str, &str),
    expected: &BTreeMap<Vec<u8>, Value>,
) -> Result<()> {
    scene.ok(&mut scene.holdfast(&["xfs", image, "get", "/", copy]))?;
    for (path, file) in expected {
        let relative = OsStr::from_bytes(path.strip_prefix(b"/").unwrap_or(path));
        let (original, copied) = (Path::new(mount).join(relative), Path::new(copy).join(relative));
        let name = || String::from_utf8_lossy(path).into_owned();
        match file["type"].as_str() {
            Some("file") => same_file(&original, &copied).with_context(name)?,
            Some("symlink") => {
                let same = fs::read_link(&original)? == fs::read_link(&copied)?;
                ensure!(same, "{}: another target", name());
            }
            _ => {}
        }
    }
    let cat = holdfast(scene, &["xfs", image, "cat"], &[b"/plain"]);
    let bytes = { cat }.output()?.stdout;
    ensure!(bytes == fs::read(format!("{mount}/plain"))?, "cat prints something else");
    Ok(fs::remove_dir_all(copy)?)
}

/// Compares the data of either file with the other, so that holes are passed over.
fn same_file(original: &Path, copied: &Path) -> Result<()> {
    let (original, copied) = (File::open(original)?, File::open(copied)?);
    let len = original.metadata()?.len();
    ensure!(copied.metadata()?.len() == len, "another length");
    for (one, other) in [(&original, &copied), (&copied, &original)] {
        let mut end = 0;
        while let Ok(start) = seek(one, SeekFrom::Data(end)) {
            end = seek(one, SeekFrom::Hole(start))?;
            same_range(one, other, start, end)?;
        }
    }
    Ok(())
}

fn same_range(one: &File, other: &File, start: u64, end: u64) -> Result<()> {
    const STEP: u64 = 1 << 20;
    let mut at = start;
    while at < end {
        let len = usize::try_from(STEP.min(end - at))?;
        let (mut first, mut second) = (vec![0; len], vec![0; len]);
        one.read_exact_at(&mut first, at)?;
        other.read_exact_at(&mut second, at)?;
        ensure!(first == second, "other data between bytes {at} and {}", at + len as u64);
        at += len as u64;
    }
    Ok(())
}

fn extents(scene: &Scene, image: &str, mount: &str, name: &str) -> Result<()> {
    let path = format!("/{name}");
    let text = scene.quiet(&mut scene.holdfast(&["xfs", image, "extents", "--json", &path]))?;
    let files: Value = serde_json::from_str(&text)?;
    let number = |value: &Value| value.as_u64().context("no number");
    let found = files[0]["extents"].as_array().context("no extents")?.iter().map(|extent| {
        let unwritten = extent["unwritten"] == Value::Bool(true);
        let [offset, len, address] = ["offset", "len", "address"].map(|key| number(&extent[key]));
        Ok((offset?, len?, address?, unwritten))
    });
    let found = merged(found.collect::<Result<Vec<Extent>>>()?);
    let expected = merged(kernel::extents(scene, &format!("{mount}{path}"))?);
    ensure!(found == expected, "found {found:?}, and Linux says {expected:?}");
    Ok(())
}

/// Joins extents that follow each other in the file and on the device.
fn merged(extents: Vec<Extent>) -> Vec<Extent> {
    let mut merged: Vec<Extent> = Vec::new();
    for (offset, len, address, unwritten) in extents {
        match merged.last_mut() {
            Some(last)
                if last.0 + last.1 == offset
                    && last.2 + last.1 == address
                    && last.3 == unwritten =>
            {
                last.1 += len;
            }
            _ => merged.push((offset, len, address, unwritten)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_joined_where_both_places_follow() {
        let extents =
            vec![(0, 8, 100, false), (8, 8, 108, false), (16, 8, 116, true), (24, 8, 9, true)];
        assert_eq!(merged(extents), [(0, 16, 100, false), (16, 8, 116, true), (24, 8, 9, true)]);
    }

    #[test]
    fn a_path_that_is_no_text_is_in_hexadecimal() {
        let file = serde_json::json!({ "path": "/?", "path_bytes": "2fff" });
        assert_eq!(path_of(&file).unwrap(), b"/\xff");
    }
}
