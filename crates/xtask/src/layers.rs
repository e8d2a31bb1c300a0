//! The direction of dependencies: a crate may depend only on crates in rows below its own.

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::workspace::Workspace;

/// The row of each crate. A new one must be placed; the picture is in ARCHITECTURE.md.
const ROWS: &[(u32, &[&str])] = &[
    (0, &["holdfast-units", "holdfast-checksum"]),
    (1, &["holdfast-iov", "holdfast-socket", "holdfast-xfs-format"]),
    (2, &["holdfast-bio", "holdfast-ring", "holdfast-virtqueue", "holdfast-xfs-tree"]),
    (3, &["holdfast-integrity", "holdfast-device", "holdfast-sim", "holdfast-virtio-driver"]),
    (4, &["holdfast-iomap", "holdfast-mirror", "holdfast-volume"]),
    (5, &["holdfast-xfs"]),
    (6, &["holdfast-target"]),
    (7, &["holdfast-fuse", "holdfast-nbd", "holdfast-vhost-user-blk"]),
    (8, &["holdfast-bench", "holdfast-torture"]),
    (9, &["holdfast", "holdfast-powercut", "xtask"]),
];

/// Only tests may use these, and each other.
const FOR_TESTS: &[&str] = &["holdfast-sim", "holdfast-powercut"];

/// Fails with each dependency of a workspace member that points sideways or up.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let packages = workspace.packages.iter().map(Package::parse).collect::<Result<Vec<_>>>()?;
    let faults = faults(&packages);
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    println!("the dependencies of {} crates point down", packages.len());
    Ok(())
}

/// A workspace member and what it depends on.
struct Package {
    name: String,
    dependencies: Vec<Dependency>,
}

struct Dependency {
    name: String,
    /// Of tests, examples and benchmarks.
    dev: bool,
}

impl Package {
    fn parse(package: &Value) -> Result<Self> {
        let name = |value: &Value| {
            value["name"].as_str().map(str::to_owned).context("a package without name")
        };
        let dependencies =
            package["dependencies"].as_array().context("a package without dependencies")?;
        let dependency = |value: &Value| {
            Ok(Dependency { name: name(value)?, dev: value["kind"].as_str() == Some("dev") })
        };
        Ok(Self {
            name: name(package)?,
            dependencies: dependencies.iter().map(dependency).collect::<Result<_>>()?,
        })
    }
}

fn faults(packages: &[Package]) -> Vec<String> {
    let mut faults = Vec::new();
    for package in packages {
        let Some(row) = row(&package.name) else {
            faults.push(format!("{} is in no row of crates/xtask/src/layers.rs", package.name));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|dependency| !dependency.dev) {
            let on = &dependency.name;
            let is_for_tests = |name: &String| FOR_TESTS.contains(&name.as_str());
            if is_for_tests(on) && !is_for_tests(&package.name) {
                faults.push(format!("{} depends on {on}, which is for tests only", package.name));
            }
            // One that has no row is from elsewhere, or is complained of as a package.
            if let Some(below) = self::row(on)
                && below >= row
            {
                faults.push(format!("{} (row {row}) depends on {on} (row {below})", package.name));
            }
        }
    }
    faults
}

fn row(name: &str) -> Option<u32> {
    ROWS.iter().find(|(_, names)| names.contains(&name)).map(|(row, _)| *row)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn faults_of(name: &str, on: &str, kind: &Value) -> Vec<String> {
        let package = json!({ "name": name, "dependencies": [{ "name": on, "kind": kind }] });
        faults(&[Package::parse(&package).unwrap()])
    }

    #[test]
    fn a_dependency_may_point_down() {
        assert!(faults_of("holdfast-nbd", "holdfast-units", &Value::Null).is_empty());
    }

    #[test]
    fn a_dependency_from_elsewhere_has_no_row() {
        assert!(faults_of("holdfast-units", "thiserror", &Value::Null).is_empty());
    }

    #[test]
    fn a_dependency_upwards_is_a_fault() {
        let faults = faults_of("holdfast-iov", "holdfast-bio", &Value::Null);
        assert_eq!(faults, ["holdfast-iov (row 1) depends on holdfast-bio (row 2)"]);
    }

    #[test]
    fn a_dependency_sideways_is_a_fault_also_in_a_build_script() {
        let faults = faults_of("holdfast-device", "holdfast-integrity", &json!("build"));
        assert_eq!(faults, ["holdfast-device (row 3) depends on holdfast-integrity (row 3)"]);
    }

    #[test]
    fn tests_may_depend_on_anything() {
        assert!(faults_of("holdfast-bio", "holdfast-sim", &json!("dev")).is_empty());
    }

    #[test]
    fn the_simulator_is_for_tests_only() {
        let faults = faults_of("holdfast-volume", "holdfast-sim", &Value::Null);
        assert_eq!(faults, ["holdfast-volume depends on holdfast-sim, which is for tests only"]);
    }

    #[test]
    fn what_is_for_tests_only_may_use_the_simulator() {
        assert!(faults_of("holdfast-powercut", "holdfast-sim", &Value::Null).is_empty());
        let faults = faults_of("xtask", "holdfast-powercut", &Value::Null);
        assert_eq!(faults[0], "xtask depends on holdfast-powercut, which is for tests only");
    }

    #[test]
    fn a_crate_must_be_in_a_row() {
        let faults = faults_of("holdfast-new", "holdfast-units", &Value::Null);
        assert_eq!(faults, ["holdfast-new is in no row of crates/xtask/src/layers.rs"]);
    }
}
