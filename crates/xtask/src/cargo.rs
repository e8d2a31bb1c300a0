//! The steps that are cargo's: lints, tests, models and sanitizers.

use std::collections::HashSet;
use std::env::{self, consts::ARCH};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::packages;
use crate::run::{command, output, show};
use crate::together::{self, Job};
use crate::workspace::Workspace;

/// Crates with loom models, which are unit tests with `loom` in their path.
const LOOM: &[&str] = &["holdfast-iov", "holdfast-volume"];

/// Crates with unsafe code, or right above it.
const ASAN: &[&str] = &[
    "holdfast-checksum",
    "holdfast-iov",
    "holdfast-ring",
    "holdfast-device",
    "holdfast-virtqueue",
    "holdfast-vhost-user-blk",
];

/// Crates with unsafe code, or right above it, that need no `io_uring`, of which valgrind knows little.
const VALGRIND: &[&str] = &["holdfast-checksum", "holdfast-iov", "holdfast-virtqueue"];

pub(crate) fn fmt(workspace: &Workspace) -> Result<()> {
    show(&mut cargo(workspace, &["fmt", "--all", "--check"]))
}

pub(crate) fn clippy(workspace: &Workspace) -> Result<()> {
    show(&mut cargo(workspace, &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))
}

pub(crate) fn doc(workspace: &Workspace) -> Result<()> {
    let mut doc = cargo(workspace, &["doc", "--workspace", "--no-deps"]);
    show(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

pub(crate) fn unit(workspace: &Workspace) -> Result<()> {
    show(&mut cargo(workspace, &["test", "--workspace"]))
}

pub(crate) fn loom(workspace: &Workspace) -> Result<()> {
    let mut build = cargo(workspace, &["test", "--release", "--lib"]);
    build.args(LOOM.iter().flat_map(|name| ["-p", name]));
    build.env("RUSTFLAGS", "--cfg loom").env("CARGO_TARGET_DIR", workspace.target.join("loom"));
    // The models build faster and check more.
    build
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .env("CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS", "true");
    let binaries = test_binaries(build)?;
    for binary in tests_of(LOOM, &binaries)? {
        let models = |arguments: &[&str]| {
            let mut models = Command::new(&binary.executable);
            models.arg("loom").args(arguments).current_dir(&binary.directory);
            models
        };
        // A filter that matches nothing passes.
        if !output(&mut models(&["--list"]))?.contains(": test") {
            let directory = binary.directory.display();
            bail!("{directory} has no loom model: add one, or take it out of LOOM in {}", file!());
        }
        show(&mut models(&[]))?;
    }
    Ok(())
}

pub(crate) fn asan(workspace: &Workspace) -> Result<()> {
    let triple = format!("{ARCH}-unknown-linux-gnu");
    let mut test = cargo(workspace, &["test", "--target", &triple]);
    test.args(ASAN.iter().flat_map(|name| ["-p", name]));
    test.env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", workspace.target.join("asan"));
    show(test.env("RUSTFLAGS", "-Zsanitizer=address").env("RUSTDOCFLAGS", "-Zsanitizer=address"))
}

pub(crate) fn valgrind(workspace: &Workspace) -> Result<()> {
    packages::ensure(&[packages::VALGRIND])?;
    let skips = env::var("HOLDFAST_VALGRIND_SKIP").unwrap_or_default();
    let skips: Vec<_> = skips.split(',').filter(|name| !name.is_empty()).collect();
    // Of all crates, since what they depend on is built once more, with other features, for a few.
    let binaries = test_binaries(cargo(workspace, &["test", "--workspace"]))?;
    let mut jobs = Vec::new();
    for binary in tests_of(VALGRIND, &binaries)? {
        let mut valgrind = command("valgrind", &["--error-exitcode=9", "--quiet"]);
        valgrind.arg(&binary.executable).args(skips.iter().flat_map(|name| ["--skip", name]));
        valgrind.env("HOLDFAST_VALGRIND", "1").env("PROPTEST_CASES", "16");
        valgrind.current_dir(&binary.directory);
        jobs.push(Job { name: binary.executable.display().to_string(), command: valgrind });
    }
    together::run(jobs, &workspace.target.join("tmp"))
}

/// An executable that cargo would run, and where it would run it.
struct TestBinary {
    executable: PathBuf,
    directory: PathBuf,
}

/// The tests of these crates; fails for a crate that has none.
fn tests_of<'a>(crates: &[&str], binaries: &'a [TestBinary]) -> Result<Vec<&'a TestBinary>> {
    let mut found = Vec::new();
    for name in crates {
        let before = found.len();
        found.extend(binaries.iter().filter(|binary| binary.directory.ends_with(name)));
        if found.len() == before {
            bail!("cargo built no test of {name}");
        }
    }
    Ok(found)
}

/// Builds the tests that the command would run.
fn test_binaries(mut build: Command) -> Result<Vec<TestBinary>> {
    build.args(["--no-run", "--message-format=json-render-diagnostics"]);
    println!("\n$ {}", crate::run::line(&build));
    let mut seen = HashSet::new();
    let mut binaries = Vec::new();
    for message in output(&mut build)?.lines() {
        let message: Value = serde_json::from_str(message).context("a message of cargo's")?;
        let Some(binary) = test_binary(&message) else { continue };
        if seen.insert(binary.executable.clone()) {
            binaries.push(binary);
        }
    }
    Ok(binaries)
}

fn test_binary(message: &Value) -> Option<TestBinary> {
    let is_test = message["reason"] == "compiler-artifact" && message["profile"]["test"] == true;
    let manifest = PathBuf::from(message["manifest_path"].as_str()?);
    let executable = PathBuf::from(message["executable"].as_str()?);
    is_test.then(|| TestBinary {
        executable,
        directory: manifest.parent().unwrap_or(&manifest).to_owned(),
    })
}

/// Cargo, in the workspace's own directory.
fn cargo(workspace: &Workspace, arguments: &[&str]) -> Command {
    let mut cargo = command("cargo", arguments);
    cargo.current_dir(&workspace.root);
    cargo
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn artifact(test: bool) -> Value {
        json!({
            "reason": "compiler-artifact",
            "manifest_path": "/w/crates/iov/Cargo.toml",
            "profile": { "test": test },
            "executable": "/w/target/debug/deps/iov-1",
        })
    }

    #[test]
    fn a_test_runs_in_the_directory_of_its_crate() {
        assert_eq!(test_binary(&artifact(true)).unwrap().directory, PathBuf::from("/w/crates/iov"));
    }

    #[test]
    fn a_crate_without_tests_is_an_error_that_names_it() {
        let binaries = [test_binary(&artifact(true)).unwrap()];
        assert_eq!(tests_of(&["iov"], &binaries).unwrap().len(), 1);
        let error = tests_of(&["iov", "bio"], &binaries).err().unwrap();
        assert_eq!(error.to_string(), "cargo built no test of bio");
    }

    #[test]
    fn a_program_is_no_test() {
        assert!(test_binary(&artifact(false)).is_none());
    }

    #[test]
    fn a_library_has_nothing_to_run() {
        let message = json!({
            "reason": "compiler-artifact",
            "manifest_path": "/w/crates/iov/Cargo.toml",
            "profile": { "test": false },
            "executable": null,
        });
        assert!(test_binary(&message).is_none());
    }
}
