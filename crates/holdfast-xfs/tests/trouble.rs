//! Writing when something goes wrong: no space, a device that fails, somebody who may not write.
//! `xfs_repair` is the judge of what is left.

use std::process::Command;

use holdfast_bio::{Error as BioError, ReadPolicy};
use holdfast_device::MemoryDevice;
use holdfast_iomap::{DirectIo, Direction, Error, Request};
use holdfast_iov::{Memory, Pool};
use holdfast_sim::{Fault, Faults, FaultyDevice};
use holdfast_units::to_usize;
use holdfast_xfs::{Ino, MountOptions, Timestamp, Xfs, XfsError};

use crate::common::unpacked;
use crate::images::{Image, run, text};

/// What both files of the golden image hold, and how much of it.
const BYTE: u8 = 0x61;
const LEN: u64 = 64 << 10;

type Mounted = Xfs<FaultyDevice<MemoryDevice>>;
type Direct = DirectIo<FaultyDevice<MemoryDevice>, Ino, XfsError>;

fn mount(memory: &MemoryDevice, faults: Faults) -> Result<Mounted, XfsError> {
    let options = MountOptions { write: true, ..MountOptions::default() };
    Xfs::mount(FaultyDevice::new(memory.clone(), faults, 1), &options)
}

fn direct(memory: &MemoryDevice, faults: Faults) -> (Direct, Pool) {
    let pool = Pool::new(8 << 20).unwrap();
    let device = FaultyDevice::new(memory.clone(), faults, 2);
    (DirectIo::new(device, pool.clone(), ReadPolicy::Always), pool)
}

fn open(xfs: &mut Mounted, path: &str) -> Ino {
    let ino = xfs.walk(path.as_bytes(), true).unwrap().ino();
    xfs.open(ino).unwrap();
    ino
}

fn write(
    (direct, pool): &mut (Direct, Pool),
    xfs: &mut Mounted,
    (ino, offset, len): (Ino, u64, u64),
    byte: u8,
) -> Result<u64, Error<XfsError>> {
    let mut buffer = pool.take_whole(to_usize(len)).unwrap();
    buffer.as_mut_slice().fill(byte);
    let request = Request::new(Direction::Write, ino, offset, len, Memory::Buffer(buffer));
    direct.run(xfs, request).result
}

fn read(xfs: &mut Mounted, path: &str) -> Vec<u8> {
    let inode = xfs.walk(path.as_bytes(), true).unwrap();
    let mut bytes = vec![0; to_usize(inode.size())];
    xfs.read(&inode, 0, &mut bytes).unwrap();
    bytes
}

/// Has `xfs_repair` look at the golden image, of which it must say what it said before. It always
/// misses the log.
fn check(memory: &MemoryDevice) {
    let [before, after] = [&unpacked("shared"), memory].map(|memory| {
        // It has a thread for each allocation group.
        let said = text(&Image::stored(|at, bytes| memory.load(at, bytes)).repair(&["-n"]));
        said.lines().filter(|line| !line.contains("agno")).map(str::to_owned).collect::<Vec<_>>()
    });
    assert_eq!(after, before);
}

#[test]
fn who_may_not_write_changes_no_byte_of_a_file() {
    let device = FaultyDevice::new(unpacked("linux"), Faults::default(), 1);
    let mut xfs = Xfs::mount(device, &MountOptions::default()).unwrap();
    let ino = xfs.walk(b"/data", true).unwrap().ino();
    // A part of a block would be made zeros where it is.
    assert_eq!(xfs.punch(ino, 2, 3), Err(XfsError::ReadOnly));
    assert_eq!(xfs.zero(ino, 2, 3, true), Err(XfsError::ReadOnly));
    assert_eq!(xfs.truncate(ino, 2), Err(XfsError::ReadOnly));
    assert_eq!(xfs.allocate(ino, 2, 3, true), Err(XfsError::ReadOnly));
    assert_eq!(read(&mut xfs, "/data"), b"holdfast");
}

#[test]
fn blocks_for_a_write_that_failed_are_free_again() {
    let memory = unpacked("shared");
    let mut xfs = mount(&memory, Faults::default()).unwrap();
    let ino = open(&mut xfs, "/one");
    let before = xfs.statistics().unwrap().free_blocks;
    // Nothing can be written but metadata, which have a queue of their own.
    let fault = Fault { range: 0..u64::MAX, reads: false, error: BioError::IO };
    let mut data = direct(&memory, Faults { faults: vec![fault], ..Faults::default() });
    let failed = write(&mut data, &mut xfs, (ino, 4096, 16 << 10), 1);
    assert_eq!(failed, Err(Error::Bio(BioError::IO)));
    assert_eq!(xfs.statistics().unwrap().free_blocks, before);
    xfs.close(ino).unwrap();
    assert!(read(&mut xfs, "/one").iter().all(|&byte| byte == BYTE));
    xfs.unmount().unwrap();
    check(&memory);
}

#[test]
fn blocks_that_were_meant_for_a_write_are_free_when_the_file_is_closed() {
    use holdfast_iomap::{How, Mapper, Purpose};
    let memory = unpacked("shared");
    let mut xfs = mount(&memory, Faults::default()).unwrap();
    let ino = open(&mut xfs, "/one");
    let before = xfs.statistics().unwrap().free_blocks;
    // As a request does that fails before it has sent all.
    let mapping = xfs.begin(ino, 0, LEN, How::new(Purpose::Write)).unwrap();
    assert!(mapping.shared && xfs.statistics().unwrap().free_blocks < before);
    xfs.close(ino).unwrap();
    assert_eq!(xfs.statistics().unwrap().free_blocks, before);
    xfs.unmount().unwrap();
    check(&memory);
}

#[test]
fn a_full_file_system_says_so_and_goes_on_when_there_is_space_again() {
    let memory = unpacked("shared");
    let mut xfs = mount(&memory, Faults::default()).unwrap();
    let mut data = direct(&memory, Faults::default());
    let (one, other) = (open(&mut xfs, "/one"), open(&mut xfs, "/other"));
    let at = fill(&mut xfs, one, 1 << 20);
    assert_eq!(xfs.allocate(one, at, 4096, true), Err(XfsError::NoSpace));
    // What is shared would need another place.
    let full = Err(Error::FileSystem(XfsError::NoSpace));
    assert_eq!(write(&mut data, &mut xfs, (other, 0, 4096), 2), full);
    assert_eq!(xfs.punch(other, 5000, 100), Err(XfsError::NoSpace));
    assert_eq!(write(&mut data, &mut xfs, (other, LEN, 4096), 2), full);
    assert!(read(&mut xfs, "/other").iter().all(|&byte| byte == BYTE));
    assert_eq!(xfs.inode(other).unwrap().size(), LEN);
    // What is reserved can be written.
    assert_eq!(write(&mut data, &mut xfs, (one, 2 << 20, 4096), 3), Ok(4096));
    xfs.punch(one, 3 << 20, 1 << 20).unwrap();
    assert_eq!(write(&mut data, &mut xfs, (other, 0, LEN), 2), Ok(LEN));
    xfs.unmount().unwrap();
    check(&memory);
}

#[test]
fn what_a_failed_write_left_behind_the_end_does_not_come_to_light_when_the_file_grows() {
    let memory = unpacked("shared");
    let mut xfs = mount(&memory, Faults::default()).unwrap();
    let mut data = direct(&memory, Faults::default());
    let (one, other) = (open(&mut xfs, "/one"), open(&mut xfs, "/other"));
    // One block with data, one that is reserved, and no more space.
    assert_eq!(write(&mut data, &mut xfs, (other, LEN, 512), 2), Ok(512));
    xfs.allocate(other, LEN + 4096, 4096, true).unwrap();
    fill(&mut xfs, one, 1 << 20);
    let full = Err(Error::FileSystem(XfsError::NoSpace));
    assert_eq!(write(&mut data, &mut xfs, (other, LEN + 512, 12_288), 3), full);
    assert_eq!(xfs.inode(other).unwrap().size(), LEN + 512);
    for (start, end) in [(1000, 2000), (3000, 5000), (5000, 8192)] {
        xfs.allocate(other, LEN + start, end - start, false).unwrap();
        let found = read(&mut xfs, "/other").split_off(to_usize(LEN) + 512);
        assert_eq!(found.len(), to_usize(end) - 512);
        assert!(found.iter().all(|&byte| byte == 0), "up to {end}");
    }
    xfs.unmount().unwrap();
    check(&memory);
}

/// Allocates all that there is for a file, from byte `at` on. Returns where that ends.
fn fill(xfs: &mut Mounted, ino: Ino, mut at: u64) -> u64 {
    for blocks in (0..18).rev().map(|power| 1_u64 << power) {
        let len = blocks * 4096;
        while xfs.allocate(ino, at, len, true).is_ok() {
            at += len;
        }
    }
    at
}

#[test]
fn who_has_blocks_alone_since_a_moment_ago_can_write_them_without_space() {
    let memory = unpacked("shared");
    let mut xfs = mount(&memory, Faults::default()).unwrap();
    let mut data = direct(&memory, Faults::default());
    let (one, other) = (open(&mut xfs, "/one"), open(&mut xfs, "/other"));
    let (end, half) = (fill(&mut xfs, one, 1 << 20), LEN / 2);
    for number in 0..2 {
        // Just enough for a copy of half of what both have.
        xfs.punch(one, end - (number + 1) * half, half).unwrap();
        xfs.sync().unwrap();
        assert_eq!(write(&mut data, &mut xfs, (one, number * half, half), 2), Ok(half));
        // It is stored as shared, and there is no place for another copy.
        if number == 0 {
            xfs.punch(other, 100, 50).unwrap();
        } else {
            assert_eq!(write(&mut data, &mut xfs, (other, half, half), 3), Ok(half));
        }
    }
    xfs.unmount().unwrap();
    check(&memory);
}

/// Changes something of many kinds, and returns the first error.
fn changes(image: &Image, faults: Faults) -> Result<(), XfsError> {
    let [device] = image.queues(true);
    let options = MountOptions { write: true, ..MountOptions::default() };
    let mut xfs = Xfs::mount(FaultyDevice::new(device, faults, 1), &options)?;
    let ino = xfs.walk(b"/plain", true)?.ino();
    let time = Some(Timestamp { seconds: 1, nanoseconds: 1 });
    let mut steps = || {
        xfs.open(ino)?;
        for number in 0..40 {
            xfs.allocate(ino, number * 8192, 4096, false)?;
        }
        xfs.punch(ino, 5000, 20_000)?;
        xfs.sync()?;
        xfs.truncate(ino, 100_001)?;
        xfs.set_times(ino, time, None)?;
        xfs.sync()?;
        xfs.close(ino)
    };
    let result = steps();
    if matches!(result, Err(XfsError::Write { .. })) {
        // What failed was metadata, or zeros at the edge of a hole.
        let next = xfs.set_times(ino, time, None).and_then(|()| xfs.sync());
        assert!(matches!(next, Ok(()) | Err(XfsError::Broken)), "{next:?}");
    }
    let unmounted = xfs.unmount();
    result.and(unmounted)
}

#[test]
fn after_metadata_that_could_not_be_written_the_mark_stays_until_it_is_repaired() {
    let original = Image::new(&["-m", "rmapbt=1"]);
    let mut failed = 0;
    // The superblock with the first group's headers, its trees, and inodes.
    for block in (0..12).chain([16, 17, 20]) {
        let image = Image::empty();
        run(Command::new("cp").arg("--sparse=always").args([original.path(), image.path()]));
        let range = block * 4096..(block + 1) * 4096;
        let fault = Fault { range, reads: false, error: BioError::IO };
        let result = changes(&image, Faults { faults: vec![fault], ..Faults::default() });
        match result {
            // Nothing was written there.
            Ok(()) => image.check(),
            Err(XfsError::Write { .. } | XfsError::Broken) => {
                failed += 1;
                match image.mount(true).map(drop) {
                    // The mark could not be written, so that nothing else was.
                    Ok(()) => assert_eq!(block, 0),
                    Err(error) => {
                        assert_eq!(error, XfsError::NeedsRepair, "block {block}");
                        // It wants to be run again when it met what it did not expect.
                        let mut repaired = image.repair(&[]);
                        if !repaired.status.success() {
                            repaired = image.repair(&[]);
                        }
                        assert!(repaired.status.success(), "{block}: {}", text(&repaired));
                    }
                }
                image.check();
            }
            Err(error) => panic!("block {block}: {error}"),
        }
    }
    assert!(failed > 3, "only {failed} were written");
}
