//! The Debian packages that the tests need, and how they get onto the machine.

use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, bail};

use crate::run::{command, find, line, show};

/// A program of somebody else's, and the package that holds it on Debian 12.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tool {
    program: &'static str,
    package: &'static str,
}

/// What any step may need.
pub(crate) const ALL: &[Tool] = &[
    CXX,
    VALGRIND,
    tool("fio", "fio"),
    tool("fusermount3", "fuse3"),
    tool("getfacl", "acl"),
    tool("getfattr", "attr"),
    tool("mkfs.ext4", "e2fsprogs"),
    tool("mkfs.xfs", "xfsprogs"),
    tool("nbdcopy", "libnbd-bin"),
    tool("nbdinfo", "libnbd-bin"),
    tool("nbdkit", "nbdkit"),
    tool("qemu-img", "qemu-utils"),
    tool("qemu-io", "qemu-utils"),
    tool("qemu-nbd", "qemu-utils"),
    // With qemu 10 (Debian 13, and bookworm-backports) it is in qemu-utils.
    tool("qemu-storage-daemon", "qemu-system-common"),
];

/// What the guest is built from, and runs in.
pub(crate) const GUEST: &[Tool] = &[
    tool("busybox", "busybox-static"),
    tool("cc", "gcc"),
    tool("cpio", "cpio"),
    tool("depmod", "kmod"),
    tool("mke2fs", "e2fsprogs"),
    tool("mkfs.xfs", "xfsprogs"),
    tool("qemu-storage-daemon", "qemu-system-common"),
    tool("qemu-system-x86_64", "qemu-system-x86"),
    tool("xz", "xz-utils"),
];

/// libFuzzer is built from C++.
pub(crate) const CXX: Tool = tool("c++", "g++");
pub(crate) const VALGRIND: Tool = tool("valgrind", "valgrind");

const fn tool(program: &'static str, package: &'static str) -> Tool {
    Tool { program, package }
}

/// Installs the packages of the tools that are missing, or says how to.
pub(crate) fn ensure(tools: &[Tool]) -> Result<()> {
    let missing = missing(tools, |program| find(program).is_some());
    if missing.is_empty() {
        return Ok(());
    }
    let packages = packages(&missing);
    let mut install = command("apt-get", &["install", "--yes", "--no-install-recommends"]);
    install.args(&packages);
    if find("apt-get").is_none() || !is_root()? {
        let names: Vec<_> = missing.iter().map(|tool| tool.program).collect();
        bail!("missing {}; run, as root: apt-get update && {}", names.join(", "), line(&install));
    }
    println!("installing Debian packages: {}", packages.join(" "));
    show(&mut command("apt-get", &["--quiet", "update"]))?;
    show(install.env("DEBIAN_FRONTEND", "noninteractive"))?;
    match self::missing(tools, |program| find(program).is_some()).first() {
        None => Ok(()),
        Some(Tool { program, package }) => {
            bail!("{program} is still missing with {package} installed")
        }
    }
}

/// Whether this process may do anything, as mounting and installing.
pub(crate) fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}

fn missing(tools: &[Tool], present: impl Fn(&str) -> bool) -> Vec<Tool> {
    tools.iter().copied().filter(|tool| !present(tool.program)).collect()
}

/// The packages that hold the tools, each once.
fn packages(tools: &[Tool]) -> Vec<&'static str> {
    let mut packages: Vec<_> = tools.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_with_two_missing_programs_is_installed_once() {
        let missing = missing(ALL, |program| !program.starts_with("nbd"));
        assert_eq!(packages(&missing), ["libnbd-bin", "nbdkit"]);
    }
}
