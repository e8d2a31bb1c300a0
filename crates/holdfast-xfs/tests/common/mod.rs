//! A file system that Linux made, in memory, and everything that is in it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test uses its part of this")]

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use holdfast_bio::{Bio, BlockDevice, Ended, Limits, Op};
use holdfast_device::MemoryDevice;
use holdfast_xfs::{ExtentList, Ino, Kind, MountOptions, Stat, Xfs, XfsError};

/// The unit in which a golden image is kept.
pub(crate) const SECTOR: usize = 512;

/// Puts the golden image of most tests into memory.
pub(crate) fn golden() -> MemoryDevice {
    unpacked("linux")
}

/// Puts a golden image into memory.
pub(crate) fn unpacked(name: &str) -> MemoryDevice {
    let packed: &[u8] = match name {
        "shared" => include_bytes!("../golden/shared"),
        _ => include_bytes!("../golden/linux"),
    };
    let (size, mut rest) = packed.split_first_chunk().unwrap();
    let device = MemoryDevice::new(u64::from_le_bytes(*size));
    while let Some((offset, after)) = rest.split_first_chunk() {
        let (sector, after) = after.split_at(SECTOR);
        device.store(u64::from_le_bytes(*offset), sector);
        rest = after;
    }
    device
}

/// Memory that remembers which ranges were read.
#[derive(Debug)]
pub(crate) struct Watched {
    memory: MemoryDevice,
    /// Offsets and lengths, in bytes.
    pub(crate) reads: Rc<RefCell<Vec<(u64, u64)>>>,
}

impl Watched {
    pub(crate) fn new(memory: MemoryDevice, reads: &Rc<RefCell<Vec<(u64, u64)>>>) -> Self {
        Self { memory, reads: Rc::clone(reads) }
    }
}

impl BlockDevice for Watched {
    fn limits(&self) -> Limits {
        self.memory.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        if bio.op == Op::Read {
            self.reads.borrow_mut().push((bio.offset, bio.len));
        }
        self.memory.submit(bio)
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        self.memory.reap(ended);
    }

    fn wait(&mut self) {
        self.memory.wait();
    }
}

pub(crate) fn mount(memory: MemoryDevice) -> Result<Xfs<Watched>, XfsError> {
    Xfs::mount(Watched::new(memory, &Rc::default()), &MountOptions::default())
}

/// All that is in a file system, but for data.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tree {
    /// Every path but that of the root, and where it leads.
    pub(crate) paths: Vec<(Vec<u8>, Ino)>,
    /// Every file once.
    pub(crate) files: Vec<File>,
}

/// All that is known of one file, but for its data.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct File {
    pub(crate) stat: Stat,
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) attributes: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) extents: ExtentList,
}

/// Reads everything but data, and each name also by looking it up. Every file is read once: bad entries can
/// make a tree a circle.
pub(crate) fn observe(xfs: &mut Xfs<Watched>) -> Result<Tree, XfsError> {
    let mut tree = Tree::default();
    let mut met = HashSet::new();
    let mut waiting = vec![(Vec::new(), xfs.root())];
    while let Some((path, ino)) = waiting.pop() {
        if !met.insert(ino) {
            continue;
        }
        let inode = xfs.inode(ino)?;
        let is_link = inode.kind() == Kind::Symlink;
        let target = is_link.then(|| xfs.read_link(&inode)).transpose()?;
        let mut attributes = Vec::new();
        for name in xfs.attributes(&inode)? {
            let value = xfs.attribute(&inode, &name)?.unwrap_or_default();
            attributes.push((name, value));
        }
        attributes.sort();
        let extents = xfs.extents(&inode)?.as_ref().clone();
        if inode.is_directory() {
            for (name, below) in names(xfs, ino)? {
                let path = [&path[..], b"/", &name].concat();
                tree.paths.push((path.clone(), below));
                waiting.push((path, below));
            }
        }
        tree.files.push(File { stat: *inode.stat(), target, attributes, extents });
    }
    Ok(tree)
}

/// A name, and the inode that was found by it.
type Name = (Box<[u8]>, Ino);

/// Returns the names of a directory but for its own, each looked up as well. A bad directory may have a
/// name twice.
fn names(xfs: &mut Xfs<Watched>, dir: Ino) -> Result<Vec<Name>, XfsError> {
    let dir = xfs.inode(dir)?;
    let mut names = Vec::new();
    let mut position = 0;
    loop {
        let entries = xfs.read_dir(&dir, position)?;
        let Some(last) = entries.last() else { return Ok(names) };
        assert!(last.next > position, "a directory without an end");
        position = last.next;
        for entry in entries {
            let found = xfs.lookup(&dir, &entry.name)?;
            if !matches!(&*entry.name, b"." | b"..") {
                names.push((entry.name, found.unwrap_or(Ino(0))));
            }
        }
    }
}
