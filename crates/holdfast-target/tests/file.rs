//! A file of an image that mkfs.xfs made, as a disk of several queues.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Error, Op, ReadPolicy};
use holdfast_device::{Access, Backing, FileDevice};
use holdfast_iov::{Memory, Pool};
use holdfast_ring::Ring;
use holdfast_sim::Random;
use holdfast_target::{FileDisk, FileError, FileQueue};
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs::{MountOptions, Xfs, XfsError};
use tempfile::TempDir;

const BLOCK: u64 = 4096;
const BLOCK_LEN: usize = 4096;
const BLOCKS: u64 = 512;
const PATH: &[u8] = b"/disk";

/// Makes an image with a file that is a hole but for its beginning.
fn image(dir: &TempDir, options: &[&str]) -> PathBuf {
    let [image, proto, contents] = ["image", "proto", "contents"].map(|name| dir.path().join(name));
    std::fs::write(&contents, [0x5a; 100_000]).unwrap();
    let files = format!("disk ---644 0 0 {0}\nother ---644 0 0 {0}\n", contents.display());
    std::fs::write(&proto, format!("/\n0 0\nd--755 0 0\n{files}$\n")).unwrap();
    let mut mkfs = Command::new("mkfs.xfs");
    mkfs.arg("-q").arg("-p").arg(&proto).args(options);
    mkfs.arg("-d").arg(format!("file,name={},size=320m", image.display()));
    assert!(mkfs.status().unwrap().success());
    let mut xfs = mount(&image);
    let ino = xfs.walk(PATH, true).unwrap().ino();
    xfs.truncate(ino, BLOCKS * BLOCK + 100).unwrap();
    xfs.unmount().unwrap();
    image
}

fn device(backing: &Arc<Backing>) -> io::Result<FileDevice> {
    FileDevice::new(backing, &Ring::new(64)?.shared())
}

fn backing(image: &Path) -> Arc<Backing> {
    Arc::new(Backing::open_in_time(image, Access::ReadWrite).unwrap())
}

fn mount(image: &Path) -> Xfs<FileDevice> {
    let options = MountOptions { write: true, ..MountOptions::default() };
    Xfs::mount(device(&backing(image)).unwrap(), &options).unwrap()
}

fn serve(image: &Path) -> (FileDisk, Vec<FileQueue<FileDevice>>) {
    let backing = backing(image);
    let theirs = Arc::clone(&backing);
    let disk = FileDisk::open(move || device(&theirs), PATH).unwrap();
    let queue = || FileQueue::new(&disk, device(&backing).unwrap(), ReadPolicy::Lazy).unwrap();
    let queues = (0..2).map(|_| queue()).collect();
    (disk, queues)
}

fn check(image: &Path) {
    let output = Command::new("xfs_repair").args(["-n", "-f"]).arg(image).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

fn bytes(model: &[u8]) -> Vec<u8> {
    model.iter().flat_map(|&byte| [byte; BLOCK_LEN]).collect()
}

#[test]
fn all_queues_see_what_any_has_written_or_discarded() {
    for options in [&["-m", "rmapbt=1"][..], &["-b", "size=1024"]] {
        let dir = TempDir::new().unwrap();
        let image = image(&dir, options);
        let (disk, mut queues) = serve(&image);
        assert_eq!(disk.capacity(), BLOCKS * BLOCK);
        let pool = Pool::new(4 << 20).unwrap();
        let mut random = Random::new(1);
        // What mkfs.xfs put there ends in the middle of block 24.
        let mut model = vec![0_u8; to_usize(BLOCKS)];
        let begin = Bio::new(Op::Discard, 0, 25 * BLOCK, Memory::None);
        assert_eq!(queues[0].run(begin).result, Ok(25 * BLOCK));
        for step in 0..1500_u32 {
            let queue = &mut queues[to_usize(random.below(2))];
            let first = random.below(BLOCKS);
            let count = (1 + random.below(16)).min(BLOCKS - first);
            let (offset, len) = (first * BLOCK, count * BLOCK);
            let blocks = to_usize(first)..to_usize(first + count);
            let memory = || Memory::Buffer(pool.take_whole(to_usize(len)).unwrap());
            match random.below(10) {
                0..5 => {
                    let value = step.to_le_bytes()[0] | 1;
                    let mut buffer = pool.take_whole(to_usize(len)).unwrap();
                    buffer.as_mut_slice()[..to_usize(len)].fill(value);
                    let mut bio = Bio::new(Op::Write, offset, len, Memory::Buffer(buffer));
                    bio.fua = random.chance(5);
                    assert_eq!(queue.run(bio).result, Ok(len));
                    model[blocks].fill(value);
                }
                5..8 => {
                    let ended = queue.run(Bio::new(Op::Read, offset, len, memory()));
                    assert_eq!(ended.result, Ok(len));
                    let found = &ended.bio.memory.buffer().unwrap().as_slice()[..to_usize(len)];
                    assert!(found == bytes(&model[blocks]), "step {step}");
                }
                8 => {
                    let op = [Op::Discard, Op::Zero { keep: true, fast: false }]
                        [to_usize(random.below(2))];
                    let ended = queue.run(Bio::new(op, offset, len, Memory::None));
                    assert_eq!(ended.result, Ok(len));
                    model[blocks].fill(0);
                }
                _ => assert_eq!(queue.run(Bio::flush()).result, Ok(0)),
            }
        }
        drop(queues);
        disk.close().unwrap();
        check(&image);
        let mut xfs = mount(&image);
        let inode = xfs.walk(PATH, true).unwrap();
        let mut found = vec![0; to_usize(BLOCKS * BLOCK)];
        xfs.read(&inode, 0, &mut found).unwrap();
        assert!(found == bytes(&model));
    }
}

#[test]
fn what_is_no_file_or_too_short_is_refused_by_name() {
    let dir = TempDir::new().unwrap();
    let image = image(&dir, &[]);
    let open = |path: &'static [u8]| {
        let backing = backing(&image);
        FileDisk::open(move || device(&backing), path)
    };
    assert!(matches!(open(b"/"), Err(FileError::Xfs(XfsError::NotFile { .. }))));
    assert!(matches!(open(b"/none"), Err(FileError::Xfs(XfsError::NotFound { .. }))));
    let mut xfs = mount(&image);
    let ino = xfs.walk(b"/other", true).unwrap().ino();
    xfs.truncate(ino, 17).unwrap();
    xfs.unmount().unwrap();
    assert!(matches!(open(b"/other"), Err(FileError::Short { size: 17, .. })));
    check(&image);
}

#[test]
fn a_request_outside_the_disk_or_of_an_unknown_kind_fails_alone() {
    let dir = TempDir::new().unwrap();
    let image = image(&dir, &[]);
    let (disk, mut queues) = serve(&image);
    let queue = &mut queues[0];
    let outside = Bio::new(Op::Discard, disk.capacity(), to_u64(4096), Memory::None);
    assert!(matches!(queue.run(outside).result, Err(Error::Range { .. })));
    let map = Bio::new(Op::Map, 0, 4096, Memory::None);
    assert_eq!(queue.run(map).result, Err(Error::Unsupported));
    assert_eq!(queue.run(Bio::flush()).result, Ok(0));
    drop(queues);
    disk.close().unwrap();
    check(&image);
}
