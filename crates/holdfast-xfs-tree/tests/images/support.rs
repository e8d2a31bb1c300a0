//! A real image file, whose metadata are changed in memory and written back.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use holdfast_xfs_format::{
    Agf, Agfl, Agi, Flags, ForkFormat, Identity, Ino, Inode, RawInode, RawSuperblock, SECTOR_MAX,
    Superblock,
};
use holdfast_xfs_tree::{BlockRef, Blocks, BmapFork, FileSystem, Group, Role, TreeError};
use thiserror::Error;
use zerocopy::FromBytes;

/// What goes wrong in a test.
#[derive(Debug, Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error("{0:?}: {1}")]
    Block(BlockRef, String),
}

/// A root directory with three empty files, whose inodes follow that of the directory and those of the
/// realtime device.
const PROTOTYPE: &str = "/none\n0 0\nd--755 0 0\na ---644 0 0 /dev/null\nb ---644 0 0 /dev/null\n\
    c ---644 0 0 /dev/null\n$\n";

/// An image made by mkfs.xfs.
#[derive(Debug)]
pub(crate) struct Image {
    directory: tempfile::TempDir,
    file: File,
    pub(crate) superblock: Superblock,
    /// What was read, and whether it was changed.
    blocks: HashMap<BlockRef, (Vec<u8>, bool)>,
    /// Blocks were changed behind everybody's back, so that free ones may be in use.
    is_damaged: bool,
}

impl Image {
    /// Makes a file system of 64 MiB.
    pub(crate) fn make(options: &[&str]) -> Self {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = directory.path().join("image");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        let mut mkfs = Command::new("mkfs.xfs");
        mkfs.args(["-q", "-f", "--unsupported", "-d", "agcount=3"]);
        let prototype = directory.path().join("prototype");
        std::fs::write(&prototype, PROTOTYPE).unwrap();
        run(mkfs.args(options).arg("-p").arg(prototype).arg(&path));
        let mut bytes = vec![0; SECTOR_MAX];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let superblock = Superblock::parse(&bytes).unwrap();
        Self { directory, file, superblock, blocks: HashMap::new(), is_damaged: false }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("image")
    }

    pub(crate) fn file_system(&self) -> FileSystem {
        FileSystem::new(&self.superblock)
    }

    /// Writes back what was changed, and the superblock's count of free blocks.
    pub(crate) fn commit(&mut self) {
        let file_system = self.file_system();
        let groups = 0..file_system.geometry.ag_count;
        let free =
            groups.map(|ag| Group::new(&file_system, self, ag).counted_free().unwrap()).sum();
        for (block, (bytes, changed)) in &mut self.blocks {
            if *changed {
                block.seal(bytes).unwrap();
                self.file.write_all_at(bytes, block.address).unwrap();
            }
        }
        let mut sector = vec![0; file_system.geometry.sector.len()];
        self.file.read_exact_at(&mut sector, 0).unwrap();
        let (raw, _) = RawSuperblock::mut_from_prefix(&mut sector).unwrap();
        raw.free_blocks = u64::into(free);
        RawSuperblock::seal(&mut sector).unwrap();
        self.file.write_all_at(&sector, 0).unwrap();
        self.blocks.clear();
    }

    /// Returns the data fork of an inode.
    pub(crate) fn load_fork(&self, ino: Ino) -> BmapFork {
        let bytes = self.load_inode(ino);
        let inode = Inode::parse(&bytes, &self.superblock.metadata_uuid, ino).unwrap();
        let count = if inode.raw.more_flags.get() & Flags::LARGE_COUNTS == 0 {
            u64::from(inode.raw.extents.get())
        } else {
            inode.raw.data_extents_large.get()
        };
        BmapFork::new(ino, false, inode.data_format, inode.data_fork, count).unwrap()
    }

    /// Stores the data fork of an inode that has no other.
    pub(crate) fn store_fork(&self, ino: Ino, fork: &BmapFork) {
        let has_sharing = self.file_system().has_sharing;
        let mut bytes = self.load_inode(ino);
        let (raw, rest) = RawInode::mut_from_prefix(&mut bytes).unwrap();
        rest.copy_from_slice(fork.bytes());
        raw.format = if fork.format() == ForkFormat::Btree { 3 } else { 2 };
        raw.blocks = raw.blocks.get().checked_add_signed(fork.blocks_added()).unwrap().into();
        let flags = raw.more_flags.get();
        if flags & Flags::LARGE_COUNTS == 0 {
            raw.extents = u32::try_from(fork.count()).unwrap().into();
        } else {
            raw.data_extents_large = fork.count().into();
        }
        if has_sharing {
            raw.more_flags = (flags | Flags::SHARED).into();
        }
        RawInode::seal(&mut bytes).unwrap();
        let address = self.inode_address(ino);
        self.file.write_all_at(&bytes, address).unwrap();
    }

    fn load_inode(&self, ino: Ino) -> Vec<u8> {
        let mut bytes = vec![0; self.superblock.geometry.inode.len()];
        self.file.read_exact_at(&mut bytes, self.inode_address(ino)).unwrap();
        bytes
    }

    fn inode_address(&self, ino: Ino) -> u64 {
        let (block, at) = self.superblock.geometry.locate(ino).unwrap();
        self.superblock.geometry.address_of(block).unwrap() + u64::try_from(at).unwrap()
    }

    /// Fails unless `xfs_repair` finds nothing.
    pub(crate) fn check(&self) {
        run(Command::new("xfs_repair").arg("-n").arg(self.path()));
    }

    /// Returns what `xfs_db` finds free in a group, the AGFL included: first blocks and lengths.
    pub(crate) fn free_space(&self, ag: u32) -> Vec<(u32, u32)> {
        let freesp = format!("freesp -d -a {ag}");
        let output = run(Command::new("xfs_db").args(["-r", "-c", &freesp]).arg(self.path()));
        let mut found: Vec<(u32, u32)> = output.lines().filter_map(extent).collect();
        found.sort_unstable();
        found
    }

    /// Forgets all changes.
    pub(crate) fn roll_back(&mut self) {
        self.blocks.clear();
        self.is_damaged = false;
    }

    /// Changes a byte of a block in memory, which stays verified.
    pub(crate) fn damage(&mut self, random: &mut Random) {
        self.is_damaged = true;
        let mut blocks: Vec<BlockRef> = self.blocks.keys().copied().collect();
        blocks.sort_unstable_by_key(|block| block.address);
        let block =
            blocks[usize::try_from(random.below(u32::try_from(blocks.len()).unwrap())).unwrap()];
        let (bytes, _) = self.blocks.get_mut(&block).unwrap();
        // Most is decided by the first bytes.
        let end = if random.below(2) == 0 { 128 } else { u32::try_from(bytes.len()).unwrap() };
        let at = usize::try_from(random.below(end)).unwrap();
        bytes[at] = [0, 1, 0x7f, 0xff, bytes[at] ^ 1][usize::try_from(random.below(5)).unwrap()];
    }

    fn load(&mut self, block: BlockRef) -> Result<&mut (Vec<u8>, bool), Fault> {
        if !self.blocks.contains_key(&block) {
            let mut bytes = vec![0; block.len];
            self.file
                .read_exact_at(&mut bytes, block.address)
                .map_err(|error| Fault::Block(block, error.to_string()))?;
            self.verify(block, &bytes).map_err(|error| Fault::Block(block, error))?;
            self.blocks.insert(block, (bytes, false));
        }
        Ok(self.blocks.get_mut(&block).unwrap())
    }

    fn verify(&self, block: BlockRef, bytes: &[u8]) -> Result<(), String> {
        let (geometry, uuid) = (&self.superblock.geometry, &self.superblock.metadata_uuid);
        let ag = u32::try_from(block.owner).unwrap_or(u32::MAX);
        let result = match block.role {
            Role::Agf => Agf::parse(bytes, geometry, uuid, ag).map(|_| ()),
            Role::Agfl => Agfl::parse(bytes, uuid, ag).map(|_| ()),
            Role::Agi => Agi::parse(bytes, geometry, uuid, ag).map(|_| ()),
            Role::Block(kind) => {
                kind.verify(bytes, &Identity { uuid, address: block.address, owner: block.owner })
            }
        };
        result.map_err(|error| error.to_string())
    }
}

impl Blocks for Image {
    type Error = Fault;

    fn view(&mut self, block: BlockRef) -> Result<&[u8], Fault> {
        self.load(block).map(|(bytes, _)| bytes.as_slice())
    }

    fn edit(&mut self, block: BlockRef) -> Result<&mut [u8], Fault> {
        let (bytes, changed) = self.load(block)?;
        *changed = true;
        Ok(bytes)
    }

    fn create(&mut self, block: BlockRef) -> Result<&mut [u8], Fault> {
        let mut bytes = vec![0; block.len];
        block.stamp(&mut bytes, &self.superblock.metadata_uuid).unwrap();
        let is_used = self.blocks.contains_key(&block);
        assert!(!is_used || self.is_damaged, "{block:?} is in use");
        self.blocks.insert(block, (bytes, true));
        self.edit(block)
    }

    fn forget(&mut self, block: BlockRef) {
        let was_used = self.blocks.remove(&block).is_some();
        assert!(was_used || self.is_damaged, "{block:?} was never read");
    }
}

/// A line of `xfs_db`'s `freesp -d`: group, first block, length.
fn extent(line: &str) -> Option<(u32, u32)> {
    let numbers: Option<Vec<u32>> = line.split_whitespace().map(|word| word.parse().ok()).collect();
    match numbers?[..] {
        [_, start, blocks] => Some((start, blocks)),
        _ => None,
    }
}

/// Runs a command that must succeed, and returns what it printed.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}{errors}", output.status);
    text
}

/// Numbers that look random, from a seed.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let high = u32::try_from(self.0 >> 32).unwrap();
        high % end
    }
}
