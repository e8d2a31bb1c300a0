//! Images that mkfs.xfs made, and what `xfs_repair` says of them.

#![allow(dead_code, reason = "each test uses its part of this")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use holdfast_device::{Access, Backing, FileDevice};
use holdfast_ring::Ring;
use holdfast_xfs::{Ino, MountOptions, Xfs, XfsError};
use tempfile::TempDir;

/// The size of all images, in bytes.
pub(crate) const SIZE: u64 = 320 << 20;
/// How much of one is copied at a time.
const STEP: usize = 1 << 20;

/// An image with some files.
pub(crate) struct Image {
    directory: TempDir,
}

impl Image {
    pub(crate) fn new(options: &[&str]) -> Self {
        let directory = TempDir::new().unwrap();
        let image = Self { directory };
        let contents: Vec<u8> = (0..100_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        std::fs::write(image.beside("contents"), contents).unwrap();
        let proto = format!(
            "/\n0 0\nd--755 0 0\nplain ---644 0 0 {}\n$\n",
            image.beside("contents").display()
        );
        std::fs::write(image.beside("proto"), proto).unwrap();
        let path = image.path();
        let mut mkfs = Command::new("mkfs.xfs");
        mkfs.args(["-q", "-p", image.beside("proto").to_str().unwrap()]).args(options);
        run(mkfs.arg("-d").arg(format!("file,name={},size=320m", path.display())));
        image
    }

    /// A place for an image.
    pub(crate) fn empty() -> Self {
        Self { directory: TempDir::new().unwrap() }
    }

    /// Puts into a file what is somewhere else, as `load` tells from an offset on.
    pub(crate) fn stored(load: impl Fn(u64, &mut [u8])) -> Self {
        let image = Self::empty();
        let file = File::create(image.path()).unwrap();
        file.set_len(SIZE).unwrap();
        let mut bytes = vec![0; STEP];
        for offset in (0..SIZE).step_by(STEP) {
            load(offset, &mut bytes);
            if bytes.iter().any(|&byte| byte != 0) {
                file.write_all_at(&bytes, offset).unwrap();
            }
        }
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.beside("image")
    }

    pub(crate) fn beside(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Opens it, and as many queues on it as are wanted.
    pub(crate) fn queues<const N: usize>(&self, write: bool) -> [FileDevice; N] {
        let access = if write { Access::ReadWrite } else { Access::ReadOnly };
        let backing = Arc::new(Backing::open_in_time(&self.path(), access).unwrap());
        std::array::from_fn(|_| {
            let ring = Ring::new(64).unwrap().shared();
            FileDevice::new(&backing, &ring).unwrap()
        })
    }

    pub(crate) fn mount(&self, write: bool) -> Result<Xfs<FileDevice>, XfsError> {
        let [device] = self.queues(write);
        Xfs::mount(device, &MountOptions { write, ..MountOptions::default() })
    }

    pub(crate) fn repair(&self, options: &[&str]) -> Output {
        let mut repair = Command::new("xfs_repair");
        repair.args(options).arg("-f").arg(self.path()).output().unwrap()
    }

    /// Has `xfs_repair` look at it.
    pub(crate) fn check(&self) {
        let output = self.repair(&["-n"]);
        assert!(output.status.success(), "{}", text(&output));
    }
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", text(&output));
}

pub(crate) fn text(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

pub(crate) fn find(xfs: &mut Xfs<FileDevice>, path: &str) -> Ino {
    xfs.walk(path.as_bytes(), true).unwrap().ino()
}
