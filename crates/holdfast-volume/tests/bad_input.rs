//! Bad images, bad devices and bad requests: a clear error to the one who sent it, nothing changed,
//! and everybody else is served.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Mismatch, Op, ReadPolicy, Tag};
use holdfast_checksum::GuardKind;
use holdfast_device::{Access, Backing, FileDevice, MemoryDevice};
use holdfast_iov::Memory;
use holdfast_ring::Ring;
use holdfast_sim::{Fault, Faults, FaultyDevice};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_volume::format::{
    FormatError, RawSuperblock, SUPERBLOCK_LEN, SUPERBLOCK_OFFSETS, Superblock,
};
use holdfast_volume::{Client, CreateOptions, Durability, OpenOptions, Queue, Volume, VolumeError};
use zerocopy::byteorder::little_endian::{U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::common::{self, Disk, fill, flip, formats, options, peek, poke};

const CAPACITY: u64 = 1 << 20;
const READ_ONLY: OpenOptions = OpenOptions { read_only: true, ..READ_WRITE };
const READ_WRITE: OpenOptions = OpenOptions {
    cache_bytes: 1 << 20,
    read_only: false,
    durability: Durability::Full,
    boot: [0; 16],
};

fn new_device() -> MemoryDevice {
    let options = options(GuardKind::Crc32c, BlockSize::PAGE, CAPACITY);
    let mut device = MemoryDevice::new(options.geometry().unwrap().device_len());
    Volume::create(&mut device, &options).unwrap();
    device
}

fn open_error(device: &MemoryDevice, options: &OpenOptions) -> VolumeError {
    Volume::open(&mut device.clone(), options).unwrap_err()
}

/// Returns both superblocks, as they are stored.
fn superblocks(device: &MemoryDevice) -> [Vec<u8>; 2] {
    SUPERBLOCK_OFFSETS.map(|offset| peek(&mut device.clone(), offset, SUPERBLOCK_LEN))
}

fn parse(bytes: &[u8]) -> Result<Superblock, FormatError> {
    Superblock::parse(bytes.first_chunk().unwrap())
}

/// Changes fields of one superblock, and gives it the checksum that belongs to them.
fn change(device: &MemoryDevice, copy: usize, change: impl Fn(&mut RawSuperblock)) {
    let bytes = peek(&mut device.clone(), SUPERBLOCK_OFFSETS[copy], SUPERBLOCK_LEN);
    let mut raw = RawSuperblock::read_from_bytes(&bytes).unwrap();
    change(&mut raw);
    raw.checksum = U32::new(raw.compute_checksum());
    poke(&mut device.clone(), SUPERBLOCK_OFFSETS[copy], raw.as_bytes());
}

/// Makes a file of a volume and cuts it. Returns its path and the length it had.
fn cut_file(dir: &Path, len: u64) -> (PathBuf, u64) {
    let path = dir.join(format!("cut-{len}"));
    let options = options(GuardKind::Crc64, BlockSize::PAGE, 8 << 20);
    let needed = options.geometry().unwrap().device_len();
    let backing = Backing::create(&path, needed).unwrap();
    let ring = Ring::new(8).unwrap().shared();
    Volume::create(&mut FileDevice::new(&backing, &ring).unwrap(), &options).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
    (path, needed)
}

#[test]
fn a_truncated_file_is_refused_and_left_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let all = options(GuardKind::Crc64, BlockSize::PAGE, 8 << 20).geometry().unwrap().device_len();
    for len in [0, 100, 4095, 4096, 5000, 64 << 10, 70_000, 3 << 20, all / 2, all - 4096, all - 512]
    {
        let (path, needed) = cut_file(dir.path(), len);
        let before = fs::read(&path).unwrap();
        for read_only in [true, false] {
            let access = if read_only { Access::ReadOnly } else { Access::ReadWrite };
            let backing = Backing::open_in_time(&path, access).unwrap();
            let ring = Ring::new(8).unwrap().shared();
            let mut device = FileDevice::new(&backing, &ring).unwrap();
            let options = OpenOptions { cache_bytes: 1, read_only, ..OpenOptions::default() };
            let error = Volume::open(&mut device, &options).unwrap_err();
            let expected = if len < 4096 { 4096 } else { needed };
            let truncated = FormatError::Truncated { expected, found: len };
            let is_named = match &error {
                VolumeError::Format(found) => *found == truncated,
                VolumeError::Superblocks { first, .. } => *first == truncated && len < 4096,
                _ => false,
            };
            assert!(is_named, "{len}: {error}");
        }
        assert!(fs::read(&path).unwrap() == before, "{len}: the file was changed");
    }
}

#[test]
fn a_foreign_file_is_refused_by_what_it_begins_with() {
    let device = MemoryDevice::new(8 << 20);
    let mut text = vec![0; 4096];
    text[..4].copy_from_slice(b"QFI\xfb");
    poke(&mut device.clone(), 0, &text);
    let before = superblocks(&device);
    for options in [READ_ONLY, READ_WRITE] {
        let error = open_error(&device, &options);
        let found = *b"QFI\xfb\0\0\0\0";
        assert_eq!(error, VolumeError::Format(FormatError::Foreign { found }));
        assert!(error.to_string().contains("no Holdfast volume"), "{error}");
    }
    assert!(superblocks(&device) == before, "a foreign file was changed");
}

#[test]
fn one_corrupt_superblock_is_replaced_from_the_other() {
    for copy in [0, 1] {
        for bit in [3, 70, 100, 8 * 80, 8 * 4095] {
            let device = new_device();
            flip(&mut device.clone(), SUPERBLOCK_OFFSETS[copy], bit);
            parse(&superblocks(&device)[copy]).unwrap_err();
            let volume = Volume::open(&mut device.clone(), &READ_WRITE).unwrap();
            assert_eq!(volume.geometry().capacity(), CAPACITY);
            let both = superblocks(&device).map(|bytes| parse(&bytes).unwrap());
            assert_eq!(both[0].uuid, both[1].uuid);
            assert_ne!(both[0].sequence, both[1].sequence);
        }
    }
}

#[test]
fn a_corrupt_superblock_of_a_volume_that_is_only_read_stays_as_it_is() {
    for copy in [0, 1] {
        let device = new_device();
        flip(&mut device.clone(), SUPERBLOCK_OFFSETS[copy], 500);
        let before = superblocks(&device);
        let volume = Volume::open(&mut device.clone(), &READ_ONLY).unwrap();
        let queue = Queue::new(&volume, device.clone(), || {}).unwrap();
        let pool = holdfast_iov::Pool::new(1 << 20).unwrap();
        let mut client = Client::new(queue, pool, ReadPolicy::Lazy);
        client.read_at(0, &mut [0; 8192]).unwrap();
        client.flush().unwrap();
        volume.close(&mut device.clone()).unwrap();
        assert!(superblocks(&device) == before, "a read-only volume was changed");
    }
}

#[test]
fn two_corrupt_superblocks_are_both_named() {
    let device = new_device();
    flip(&mut device.clone(), SUPERBLOCK_OFFSETS[0], 8 * 16);
    flip(&mut device.clone(), SUPERBLOCK_OFFSETS[1], 8 * 100);
    let before = superblocks(&device);
    let error = open_error(&device, &READ_WRITE);
    assert!(
        matches!(
            error,
            VolumeError::Superblocks {
                first: FormatError::Checksum { .. },
                second: FormatError::Checksum { .. },
            }
        ),
        "{error:?}"
    );
    assert_eq!(error.to_string().matches("checksum").count(), 2, "{error}");
    assert!(superblocks(&device) == before);
}

#[test]
fn an_unknown_incompatible_feature_forbids_opening() {
    let device = new_device();
    for copy in [0, 1] {
        change(&device, copy, |raw| raw.incompatible = U64::new(1 << 40));
    }
    for options in [READ_ONLY, READ_WRITE] {
        let expected = FormatError::Features { kind: "incompatible", bits: 1 << 40 };
        assert_eq!(open_error(&device, &options), VolumeError::Format(expected));
    }
}

#[test]
fn an_unknown_read_only_compatible_feature_forbids_writing_and_any_change() {
    let device = new_device();
    for copy in [0, 1] {
        change(&device, copy, |raw| raw.read_only_compatible = U64::new(6));
    }
    // One copy is corrupt, and replacing it would be a change.
    flip(&mut device.clone(), SUPERBLOCK_OFFSETS[0], 9000);
    let before = superblocks(&device);
    assert_eq!(open_error(&device, &READ_WRITE), VolumeError::ReadOnlyFeatures { bits: 6 });
    assert!(Volume::open(&mut device.clone(), &READ_ONLY).unwrap().is_read_only());
    assert!(superblocks(&device) == before, "a volume that must not be written was");
}

#[test]
fn an_unknown_compatible_feature_is_kept() {
    let device = new_device();
    for copy in [0, 1] {
        change(&device, copy, |raw| raw.compatible = U64::new(5));
    }
    let volume = Volume::open(&mut device.clone(), &READ_WRITE).unwrap();
    volume.close(&mut device.clone()).unwrap();
    assert_eq!(superblocks(&device).map(|bytes| parse(&bytes).unwrap().compatible), [5, 5]);
}

#[test]
fn a_volume_that_cannot_be_is_not_created() {
    let create = |options: &CreateOptions, bytes| {
        Volume::create(&mut MemoryDevice::new(bytes), options).unwrap_err()
    };
    let sector = BlockSize::PAGE;
    for capacity in [0, 512, 4097, 8191, (1 << 60) + 4096, u64::MAX] {
        let options = options(GuardKind::Crc16, sector, capacity);
        let expected = VolumeError::Capacity { capacity, sector };
        assert_eq!(create(&options, 1 << 62), expected);
    }
    let good = options(GuardKind::Crc16, sector, CAPACITY);
    for tag in [0, 0xffff] {
        let options = CreateOptions { application_tag: tag, ..good };
        assert_eq!(create(&options, 1 << 62), VolumeError::ApplicationTag { tag });
    }
    let needed = good.geometry().unwrap().device_len();
    let too_small = VolumeError::TooSmall { needed, found: needed - 512 };
    assert_eq!(create(&good, needed - 512), too_small);
}

/// A device of which a larger block is written at a time.
struct LargeBlocks(MemoryDevice);

impl BlockDevice for LargeBlocks {
    fn limits(&self) -> Limits {
        let block = BlockSize::PAGE;
        Limits { sector: block, granularity: block, ..self.0.limits() }
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        assert!(self.limits().check(bio.offset, bio.len).is_ok(), "a misaligned bio: {bio:?}");
        self.0.submit(bio)
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        self.0.reap(ended);
    }

    fn wait(&mut self) {
        self.0.wait();
    }
}

#[test]
fn a_sector_smaller_than_a_block_of_the_device_is_refused() {
    let (sector, block) = (BlockSize::SECTOR, BlockSize::PAGE);
    let small = options(GuardKind::Crc16, sector, CAPACITY);
    let device = MemoryDevice::new(16 << 20);
    let expected = VolumeError::Sector { sector, block };
    assert_eq!(Volume::create(&mut LargeBlocks(device.clone()), &small).unwrap_err(), expected);
    assert_eq!(device.pages_in_use(), 0);
    // It may have been made on another device and copied.
    Volume::create(&mut device.clone(), &small).unwrap();
    let before = superblocks(&device);
    let found = Volume::open(&mut LargeBlocks(device.clone()), &READ_WRITE).unwrap_err();
    assert_eq!(found, expected);
    assert!(superblocks(&device) == before);
}

#[test]
fn large_blocks_get_only_whole_blocks() {
    let device = MemoryDevice::new(16 << 20);
    let options = options(GuardKind::Crc64, BlockSize::PAGE, CAPACITY);
    Volume::create(&mut LargeBlocks(device.clone()), &options).unwrap();
    let volume = Volume::open(&mut LargeBlocks(device.clone()), &READ_WRITE).unwrap();
    let queue = Queue::new(&volume, LargeBlocks(device), || {}).unwrap();
    let pool = holdfast_iov::Pool::new(1 << 20).unwrap();
    let mut client = Client::new(queue, pool, ReadPolicy::Lazy);
    client.write_at(512, &[7; 9 * 512]).unwrap();
    let mut found = [0; 3 * 4096];
    client.read_at(0, &mut found).unwrap();
    let expected = (0..found.len()).map(|at| if (512..10 * 512).contains(&at) { 7 } else { 0 });
    assert!(found.into_iter().eq(expected));
    client.flush().unwrap();
}

type FaultyClient = Client<FaultyDevice<MemoryDevice>>;

fn faulty(disk: &Disk, faults: Faults) -> FaultyClient {
    Client::new(disk.faulty_queue(faults, 1), disk.pool.clone(), ReadPolicy::Lazy)
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, seed);
    bytes
}

#[test]
fn a_write_that_fails_half_way_without_saying_where_leaves_every_sector_with_its_tuple() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, 1 << 20, 1 << 20);
        let len = 16 * sector.len();
        let (old, new) = (pattern(len, 1), pattern(len, 2));
        faulty(&disk, Faults::default()).write_at(0, &old).unwrap();
        let start = disk.volume.geometry().data_at(5 * sector.bytes());
        let range = start..start + 3 * sector.bytes();
        let fault = Fault { range, reads: false, error: Error::NoSpace };
        let mut client = faulty(&disk, Faults { faults: vec![fault], ..Faults::default() });
        assert_eq!(client.write_at(0, &new), Err(Error::NoSpace));
        drop(client);
        let mut found = vec![0; len];
        faulty(&disk, Faults::default()).read_at(0, &mut found).unwrap();
        let (from, to) = (5 * sector.len(), 8 * sector.len());
        assert!(found[..from] == new[..from] && found[to..] == new[to..], "not written");
        assert!(found[from..to] == old[from..to], "the sectors that fail are as they were");
        assert_eq!(disk.volume.errors().total(), 0);
    }
}

#[test]
fn a_sector_that_a_failed_write_has_torn_is_no_corruption_and_can_be_written_anew() {
    for guard in GuardKind::ALL {
        for written_before in [false, true] {
            let disk = Disk::new(guard, BlockSize::PAGE, CAPACITY, 1 << 20);
            let (old, new) = (pattern(4096, 1), pattern(4096, 2));
            if written_before {
                faulty(&disk, Faults::default()).write_at(4096, &old).unwrap();
            }
            // The first 1536 bytes are stored. It cannot be cleared either.
            let at = disk.volume.geometry().data_at(4096) + 1536;
            let fault = Fault { range: at..at + 512, reads: false, error: Error::IO };
            let mut client = faulty(&disk, Faults { faults: vec![fault], ..Faults::default() });
            assert_eq!(client.write_at(4096, &new), Err(Error::IO));
            drop(client);
            let mut client = faulty(&disk, Faults::default());
            let found = client.read_at(4096, &mut [0; 4096]);
            let torn = matches!(found, Err(Error::Mismatch(Mismatch { tag: Tag::Torn, .. })));
            assert!(torn, "{guard} {written_before}: {found:?}");
            assert_eq!(disk.volume.errors().total(), 0);
            client.write_at(4096, &new).unwrap();
            client.read_at(4096, &mut [0; 4096]).unwrap();
            common::assert_clean(client.queue());
        }
    }
}

/// Stores data, and says that it did not.
struct DoneAndFailed(MemoryDevice);

impl BlockDevice for DoneAndFailed {
    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        self.0.submit(bio)
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        self.0.reap(ended);
        // What is to be durable is the log.
        for item in ended.iter_mut().filter(|item| item.bio.op == Op::Write && !item.bio.fua) {
            item.result = Err(Error::IO);
        }
    }

    fn wait(&mut self) {
        self.0.wait();
    }
}

#[test]
fn a_write_that_was_done_and_told_to_have_failed_leaves_an_intact_sector() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1 << 20);
        let (old, new) = (pattern(sector.len(), 1), pattern(sector.len(), 2));
        faulty(&disk, Faults::default()).write_at(0, &old).unwrap();
        let mut queue =
            Queue::new(&disk.volume, DoneAndFailed(disk.device.clone()), || {}).unwrap();
        let mut buffer = disk.pool.take_whole(sector.len()).unwrap();
        buffer.as_mut_slice()[..sector.len()].copy_from_slice(&new);
        let write = Bio::new(Op::Write, 0, sector.bytes(), Memory::Buffer(buffer));
        assert_eq!(common::run(&mut queue, write).result, Err(Error::IO));
        drop(queue);
        let mut found = vec![0; sector.len()];
        faulty(&disk, Faults::default()).read_at(0, &mut found).unwrap();
        assert!(found == new, "{guard} {sector}");
        common::assert_clean(&mut disk.queue());
    }
}

#[test]
fn a_flush_that_waited_for_one_that_failed_fails() {
    let disk = Disk::new(GuardKind::Crc64, BlockSize::PAGE, 1 << 20, 1 << 20);
    let mut queue = disk.faulty_queue(Faults { flush: Some(Error::IO), ..Faults::default() }, 1);
    let mut ended = Vec::new();
    queue.submit(Bio::flush()).unwrap();
    queue.submit(Bio::flush()).unwrap();
    while ended.len() < 2 {
        queue.reap(&mut ended);
    }
    let results: Vec<_> = ended.iter().map(|item| item.result).collect();
    assert_eq!(results, [Err(Error::IO), Err(Error::FlushFailed)]);
}

/// Writes 16 sectors where there is space for fewer, over sectors that were written before or not.
fn run_out_of_space(disk: &Disk, space: u64, written_before: bool) {
    let sector = disk.volume.geometry().sector();
    let len = 16 * sector.len();
    let (old, new) = (pattern(len, 1), pattern(len, 2));
    if written_before {
        faulty(disk, Faults::default()).write_at(0, &old).unwrap();
    }
    let mut client = faulty(disk, Faults { space: Some(space), ..Faults::default() });
    assert_eq!(client.write_at(0, &new), Err(Error::NoSpace), "{space} bytes of space");
    drop(client);
    let mut client = faulty(disk, Faults::default());
    common::assert_clean(client.queue());
    let cut = to_usize(sector.align_down(space));
    let mut found = vec![0; len];
    client.read_at(0, &mut found).unwrap();
    assert!(found[..cut] == new[..cut], "what was stored is not there");
    client.write_at(0, &new).unwrap();
    client.read_at(0, &mut found).unwrap();
    assert!(found == new);
    common::assert_clean(client.queue());
    assert_eq!(disk.volume.errors().total(), 0);
}

#[test]
fn a_full_device_fails_the_write_and_leaves_no_sector_corrupt() {
    for (guard, sector) in formats() {
        for written_before in [false, true] {
            for sectors in [0, 1, 7, 15] {
                let disk = Disk::without_log(guard, sector, CAPACITY);
                run_out_of_space(&disk, sectors * sector.bytes(), written_before);
            }
        }
    }
}

#[test]
fn a_full_device_that_stored_a_part_of_a_new_sector_leaves_it_unwritten() {
    for guard in GuardKind::ALL {
        for sectors in [0, 1, 7, 15] {
            let disk = Disk::without_log(guard, BlockSize::PAGE, CAPACITY);
            run_out_of_space(&disk, sectors * 4096 + 1536, false);
        }
    }
}

#[test]
fn a_failed_write_is_told_and_leaves_its_neighbours_alone() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1 << 20);
        let mut client = faulty(&disk, Faults::default());
        let bytes = pattern(16 * sector.len(), 3);
        client.write_at(0, &bytes).unwrap();
        drop(client);
        let at = disk.volume.geometry().data_at(5 * sector.bytes());
        let fault = Fault { range: at..at + sector.bytes(), reads: false, error: Error::IO };
        let mut client = faulty(&disk, Faults { faults: vec![fault], ..Faults::default() });
        let new = pattern(16 * sector.len(), 4);
        let of = |lba: usize| lba * sector.len()..(lba + 1) * sector.len();
        let offset = |lba| to_u64(lba * sector.len());
        assert_eq!(client.write_at(offset(5), &new[of(5)]), Err(Error::IO));
        client.write_at(offset(4), &new[of(4)]).unwrap();
        client.write_at(offset(6), &new[of(6)]).unwrap();
        for (lba, expected) in [(4, &new), (5, &bytes), (6, &new), (7, &bytes)] {
            let mut found = vec![0; sector.len()];
            client.read_at(offset(lba), &mut found).unwrap();
            assert!(found == expected[of(lba)], "sector {lba}");
        }
        common::assert_clean(client.queue());
    }
}

#[test]
fn a_failed_read_is_told_only_to_those_that_cover_it() {
    for (guard, sector) in formats() {
        let disk = Disk::new(guard, sector, CAPACITY, 1 << 20);
        faulty(&disk, Faults::default()).write_at(0, &pattern(16 * sector.len(), 3)).unwrap();
        let at = disk.volume.geometry().data_at(5 * sector.bytes());
        let fault = Fault { range: at..at + 512, reads: true, error: Error::IO };
        let mut client = faulty(&disk, Faults { faults: vec![fault], ..Faults::default() });
        for first in 0..10 {
            for count in 1..6 {
                let mut found = vec![0; count * sector.len()];
                let result = client.read_at(to_u64(first * sector.len()), &mut found);
                let covers = (first..first + count).contains(&5);
                assert_eq!(result, if covers { Err(Error::IO) } else { Ok(()) });
            }
        }
        let report = common::scrub(client.queue());
        let unreadable = vec![(5 * sector.bytes(), Error::IO)];
        assert_eq!((report.corrupt, report.unreadable), (0, unreadable));
        assert_eq!(disk.volume.errors().total(), 0, "what cannot be read is not corrupt");
    }
}

#[test]
fn tuples_that_cannot_be_read_fail_only_their_group() {
    let (guard, sector) = (GuardKind::Crc64, BlockSize::SECTOR);
    let group = common::group_bytes(guard, sector);
    let disk = Disk::new(guard, sector, 3 * group, 1 << 20);
    let at = disk.volume.geometry().tuples_at(1);
    let fault = Fault { range: at..at + 4096, reads: true, error: Error::IO };
    let mut client = faulty(&disk, Faults { faults: vec![fault], ..Faults::default() });
    for _ in 0..2 {
        let mut found = |group_number| client.read_at(group_number * group, &mut [0; 512]);
        assert_eq!([found(0), found(1), found(2)], [Ok(()), Err(Error::IO), Ok(())]);
    }
    assert_eq!(client.write_at(group, &[1; 512]), Err(Error::IO));
    client.write_at(2 * group, &[1; 512]).unwrap();
}

#[test]
fn after_a_failed_flush_no_flush_succeeds() {
    let disk = Disk::new(GuardKind::Crc16, BlockSize::PAGE, CAPACITY, 1 << 20);
    let mut client = faulty(&disk, Faults { flush: Some(Error::IO), ..Faults::default() });
    client.write_at(0, &[1; 4096]).unwrap();
    assert_eq!(client.flush(), Err(Error::IO));
    drop(client);
    let mut client = faulty(&disk, Faults::default());
    assert_eq!(client.flush(), Err(Error::FlushFailed));
    let fua = |client: &mut FaultyClient| {
        holdfast_iov::lend(&[2; 4096], |iter| client.move_data(Op::Write, 0, iter, true))
    };
    assert_eq!(fua(&mut client), Err(Error::FlushFailed));
    client.read_at(0, &mut [0; 4096]).unwrap();
    drop(client);
    disk.volume.close(&mut disk.device.clone()).unwrap();
    assert!(!Volume::peek(&mut disk.device.clone()).unwrap().clean, "it must not be called clean");
}

#[test]
fn tuples_that_could_not_be_flushed_are_flushed_by_the_next() {
    let disk = Disk::without_log(GuardKind::Crc16, BlockSize::PAGE, CAPACITY);
    let at = disk.volume.geometry().tuples_at(0);
    let fault = Fault { range: at..at + 4096, reads: false, error: Error::IO };
    let mut client = faulty(&disk, Faults { faults: vec![fault], ..Faults::default() });
    // The space for the tuples cannot be reserved either, which is no reason to refuse.
    client.write_at(0, &[1; 4096]).unwrap();
    assert_eq!(client.flush(), Err(Error::IO));
    drop(client);
    faulty(&disk, Faults::default()).flush().unwrap();
    let reopened = Disk::open(disk.device, 1);
    common::assert_clean(&mut reopened.queue());
    let mut found = [0; 4096];
    reopened.client(ReadPolicy::Lazy).read_at(0, &mut found).unwrap();
    assert_eq!(found, [1; 4096]);
}

#[test]
fn after_a_log_could_not_be_written_no_flush_succeeds_and_what_was_flushed_is_there() {
    for durability in [Durability::Full, Durability::Bitmap] {
        let (old, new) = (pattern(4096, 1), pattern(4096, 2));
        let disk = Disk::with_durability(GuardKind::Crc16, BlockSize::PAGE, CAPACITY, durability);
        let geometry = *disk.volume.geometry();
        let (at, len) =
            if durability == Durability::Full { geometry.log() } else { geometry.intent() };
        let fault = Fault { range: at..at + len, reads: false, error: Error::IO };
        let mut client = faulty(&disk, Faults::default());
        if durability == Durability::Full {
            client.write_at(0, &old).unwrap();
            client.flush().unwrap();
        }
        drop(client);
        let mut client = faulty(&disk, Faults { faults: vec![fault], ..Faults::default() });
        assert_eq!(client.write_at(0, &new), Err(Error::IO), "{durability}");
        assert_eq!(client.flush(), Err(Error::FlushFailed));
        drop(client);
        assert_eq!(faulty(&disk, Faults::default()).flush(), Err(Error::FlushFailed));
        let reopened = Disk::open(disk.device, 1);
        let mut found = vec![0; 4096];
        reopened.client(ReadPolicy::Lazy).read_at(0, &mut found).unwrap();
        assert!(found == if durability == Durability::Full { old } else { vec![0; 4096] });
        common::assert_clean(&mut reopened.queue());
    }
}

#[test]
fn a_volume_whose_tuples_cannot_be_stored_is_not_closed_and_they_are_in_the_log() {
    let disk = Disk::new(GuardKind::Crc16, BlockSize::PAGE, CAPACITY, 1 << 20);
    let at = disk.volume.geometry().tuples_at(0);
    let fault = Fault { range: at..at + 4096, reads: false, error: Error::IO };
    faulty(&disk, Faults::default()).write_at(0, &[1; 4096]).unwrap();
    let faults = Faults { faults: vec![fault], ..Faults::default() };
    let mut failing = FaultyDevice::new(disk.device.clone(), faults, 1);
    let refused = disk.volume.close(&mut failing);
    assert!(matches!(refused, Err(VolumeError::Device { .. })), "{refused:?}");
    let reopened = Disk::open(disk.device, 1);
    assert_eq!(reopened.volume.recovery().unwrap().settled, 1);
    let mut found = [0; 4096];
    reopened.client(ReadPolicy::Lazy).read_at(0, &mut found).unwrap();
    assert_eq!(found, [1; 4096]);
}

#[test]
fn a_read_only_volume_takes_no_write_and_changes_nothing() {
    let device = new_device();
    let before = superblocks(&device);
    let volume = Volume::open(&mut device.clone(), &READ_ONLY).unwrap();
    let queue = Queue::new(&volume, device.clone(), || {}).unwrap();
    let pool = holdfast_iov::Pool::new(1 << 20).unwrap();
    let mut client = Client::new(queue, pool, ReadPolicy::Lazy);
    assert!(client.queue().limits().read_only);
    assert_eq!(client.write_at(0, &[1; 4096]), Err(Error::ReadOnly));
    for op in [Op::Discard, Op::Zero { keep: false, fast: false }] {
        assert_eq!(client.clear(op, 0, 4096), Err(Error::ReadOnly));
    }
    client.read_at(0, &mut [0; 4096]).unwrap();
    client.flush().unwrap();
    drop(client);
    volume.close(&mut device.clone()).unwrap();
    assert!(superblocks(&device) == before);
}

#[test]
fn what_is_no_range_of_the_volume_is_refused() {
    let (guard, sector) = (GuardKind::Crc64, BlockSize::PAGE);
    let group = common::group_bytes(guard, sector);
    let disk = Disk::new(guard, sector, 2 * group, 1 << 20);
    let queue = &mut disk.queue();
    let mut result = |op, offset, len, buffer_len: usize, start| {
        let memory = Memory::Buffer(disk.pool.take_whole(buffer_len).unwrap());
        common::run(queue, Bio::new(op, offset, len, memory).with_start(start)).result
    };
    for op in [Op::Read, Op::Write] {
        for (offset, len, buffer_len, start) in [
            (1, 512, 4096, 1),                   // misaligned
            (0, 511, 4096, 0),                   // a part of a unit
            (0, 0, 4096, 0),                     // nothing
            (2 * group, 4096, 4096, 0),          // behind the end
            (2 * group - 512, 1024, 8192, 3584), // across the end
            (group - 4096, 8192, 8192, 0),       // across a border between groups
            (512, 512, 4096, 0),                 // not at its place in the buffer
            (0, 4096, 4096, 512),                // the same
            (0, 32_768, 16_384, 0),              // more than the buffer
        ] {
            let expected = Err(Error::Range { offset, len });
            assert_eq!(result(op, offset, len, buffer_len, start), expected, "{op:?}");
        }
    }
    assert_eq!(result(Op::Allocate, 0, 4096, 4096, 0), Err(Error::Unsupported));
    let mut without =
        |op, offset, len| common::run(queue, Bio::new(op, offset, len, Memory::None)).result;
    let range = |offset, len| Err(Error::Range { offset, len });
    assert_eq!(without(Op::Discard, 512, 512), range(512, 512));
    assert_eq!(without(Op::Zero { keep: true, fast: false }, 0, 2048), range(0, 2048));
    assert_eq!(without(Op::Read, 0, 4096), Err(Error::Unsupported));
    assert_eq!(without(Op::Write, 0, 4096), Err(Error::Unsupported));
    assert_eq!(without(Op::Map, 0, 4096), Err(Error::Unsupported));
}

#[test]
fn memory_lent_to_be_read_is_never_written_to() {
    let disk = Disk::new(GuardKind::Crc16, BlockSize::PAGE, CAPACITY, 1 << 20);
    let mut client = disk.client(ReadPolicy::Lazy);
    client.write_at(0, &[7; 8192]).unwrap();
    // Aligned, so that it would go down without a copy.
    let pool = holdfast_iov::Pool::new(1 << 20).unwrap();
    let buffer = pool.take(4096).unwrap();
    for source in [&buffer.as_slice()[..4096], &buffer.as_slice()[1..4097]] {
        let found = holdfast_iov::lend(source, |iter| client.move_data(Op::Read, 0, iter, false));
        assert_eq!(found, Err(Error::Unsupported));
        assert!(source.iter().all(|&byte| byte == 0), "it was written to");
    }
}

#[test]
fn a_file_that_shrinks_while_it_is_open_gives_errors_and_no_zeros() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let options = options(GuardKind::Crc16, BlockSize::PAGE, CAPACITY);
    let geometry = options.geometry().unwrap();
    let backing = Backing::create(&path, geometry.device_len()).unwrap();
    let ring = Ring::new(8).unwrap().shared();
    let device = || FileDevice::new(&backing, &ring).unwrap();
    Volume::create(&mut device(), &options).unwrap();
    let volume: Arc<Volume> = Volume::open(&mut device(), &READ_WRITE).unwrap();
    let queue = Queue::new(&volume, device(), || {}).unwrap();
    let pool = holdfast_iov::Pool::new(1 << 20).unwrap();
    let mut client = Client::new(queue, pool, ReadPolicy::Lazy);
    client.write_at(0, &[7; 8192]).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(geometry.data_at(4096)).unwrap();
    assert_eq!(client.read_at(4096, &mut [0; 4096]), Err(Error::IO));
    assert_eq!(client.read_at(0, &mut [0; 8192]), Err(Error::IO));
    client.read_at(0, &mut [0; 4096]).unwrap();
}
