//! Images that rot, that are cut off, and that lie: an error or the right answer, never a panic and never
//! something without an end.
//!
//! `HOLDFAST_FLIPS=100000` flips more bits than the default.

use std::rc::Rc;

use holdfast_device::MemoryDevice;
use holdfast_iomap::{Error, How, Mapper, Purpose};
use holdfast_units::{to_u64, to_usize};
use holdfast_xfs::{MountOptions, Xfs, XfsError};

use crate::common::{SECTOR, Tree, Watched, golden, mount, observe, unpacked};

/// Marsaglia's xorshift, which is the same each time.
struct Choices(u64);

impl Choices {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8) % end
    }
}

/// How often each test damages the image.
fn rounds(default: usize) -> usize {
    std::env::var("HOLDFAST_FLIPS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn read_all(device: &MemoryDevice) -> Result<Tree, XfsError> {
    observe(&mut mount(device.clone())?)
}

/// What a good image holds, and the ranges that have to be read for it: offsets and lengths in bytes.
fn good() -> (Tree, Vec<(u64, u64)>) {
    let mut xfs = mount(golden()).unwrap();
    let files = observe(&mut xfs).unwrap();
    let mut ranges = Rc::clone(&xfs.device().reads).borrow().clone();
    ranges.sort_unstable();
    ranges.dedup();
    (files, ranges)
}

#[test]
fn a_flipped_bit_is_an_error_or_does_no_harm() {
    let (files, ranges) = good();
    let mut choices = Choices(1);
    let (device, mut errors) = (golden(), 0);
    let rounds = rounds(1000);
    for round in 0..rounds {
        let (start, len) = ranges[to_usize(choices.below(to_u64(ranges.len())))];
        let (offset, bit) = (start + choices.below(len), 1 << choices.below(8));
        device.corrupt(offset, bit);
        match read_all(&device) {
            Ok(found) => assert!(found == files, "round {round}: byte {offset} is believed"),
            Err(XfsError::Corrupt { .. } | XfsError::Superblock { .. } | XfsError::DirtyLog) => {
                errors += 1;
            }
            Err(error) => panic!("round {round}: byte {offset}: {error:?}"),
        }
        device.corrupt(offset, bit);
    }
    // Else no metadata were hit.
    assert!(errors > rounds / 4, "{errors} of {rounds}");
}

/// Returns where a block has its checksum, if it is metadata.
fn checksum_place(bytes: &[u8]) -> Option<usize> {
    Some(match (&bytes[..4], &bytes[8..10]) {
        (b"XFSB", _) => 224,
        (b"XAGF", _) => 216,
        (b"XAGI", _) => 312,
        ([b'I', b'N', ..], _) => 100,
        (b"XAFL", _) => 32,
        (b"AB3B" | b"AB3C" | b"RMB3" | b"R3FC", _) => 52,
        (b"BMA3", _) => 64,
        (b"XDB3" | b"XDD3" | b"XDF3", _) => 4,
        (b"XARM" | b"XSLM", _) => 12,
        (_, [0x3d, 0xf1 | 0xff] | [0x3e, 0xbe] | [0x3b, 0xee]) => 12,
        _ => return None,
    })
}

/// Changes some values of a block of metadata, under a good checksum. Returns where it is, and what it was.
fn spoil(
    device: &MemoryDevice,
    (mut start, mut len): (u64, u64),
    choices: &mut Choices,
) -> Option<(u64, Vec<u8>)> {
    let mut bytes = vec![0; to_usize(len)];
    device.load(start, &mut bytes);
    if bytes.starts_with(b"IN") || bytes.starts_with(b"XFSB") {
        // One of several inodes, and one of all sectors that could be the superblock.
        let index = choices.below(len / to_u64(SECTOR));
        start += if bytes[0] == b'I' { index * to_u64(SECTOR) } else { 0 };
        len = to_u64(SECTOR);
        bytes = vec![0; SECTOR];
        device.load(start, &mut bytes);
    }
    let before = bytes.clone();
    let place = checksum_place(&bytes)?;
    for _ in 0..=choices.below(3) {
        // Headers and the beginnings of lists more often than the rest.
        let end = if choices.below(2) == 0 { len.min(192) } else { len };
        let value = match choices.below(4) {
            0 => 0,
            1 => 0xff,
            _ => choices.below(256).to_le_bytes()[0],
        };
        bytes[to_usize(choices.below(end))] = value;
    }
    bytes[place..place + 4].fill(0);
    let crc = holdfast_checksum::checksum(holdfast_checksum::GuardKind::Crc32c, &bytes);
    bytes[place..place + 4].copy_from_slice(&u32::try_from(crc).unwrap().to_le_bytes());
    device.store(start, &bytes);
    Some((start, before))
}

#[test]
fn bad_values_under_good_checksums_do_no_harm() {
    let (files, ranges) = good();
    let mut choices = Choices(2);
    let device = golden();
    let (mut errors, mut believed) = (0, 0);
    for _ in 0..rounds(2000) {
        let range = ranges[to_usize(choices.below(to_u64(ranges.len())))];
        let Some((start, before)) = spoil(&device, range, &mut choices) else { continue };
        match read_all(&device) {
            Ok(found) => believed += u64::from(found != files),
            Err(_) => errors += 1,
        }
        device.store(start, &before);
    }
    // Names, times and owners can be anything; most else is an error.
    assert!(errors > 100 && believed > 100, "{errors} errors, {believed} believed");
}

/// Changes files, so that all kinds of metadata are changed.
fn change_all(device: Watched) -> Result<(), XfsError> {
    let options = MountOptions { write: true, ..MountOptions::default() };
    let mut xfs = Xfs::mount(device, &options)?;
    let [one, other] = [&b"/one"[..], b"/other"].map(|path| xfs.walk(path, true));
    let (one, other) = (one?.ino(), other?.ino());
    xfs.open(one)?;
    xfs.open(other)?;
    for number in 0..40 {
        xfs.allocate(other, (1 << 20) + number * 8192, 4096, true)?;
    }
    xfs.punch(one, 5000, 20_000)?;
    xfs.zero(other, 30_000, 9000, false)?;
    let write = How::new(Purpose::Write);
    if let Err(Error::FileSystem(error)) = xfs.begin(one, 40_960, 8192, write) {
        return Err(error);
    }
    xfs.truncate(one, 50_000)?;
    xfs.sync()?;
    xfs.truncate(other, 1000)?;
    [one, other].into_iter().try_for_each(|ino| xfs.close(ino))?;
    xfs.unmount()
}

#[test]
fn bad_values_are_no_harm_to_who_writes_either() {
    let reads = Rc::default();
    change_all(Watched::new(unpacked("shared"), &reads)).unwrap();
    let mut ranges = reads.borrow().clone();
    ranges.sort_unstable();
    ranges.dedup();
    let mut choices = Choices(3);
    let (mut errors, mut believed) = (0, 0);
    for _ in 0..rounds(2000) {
        let device = unpacked("shared");
        let range = ranges[to_usize(choices.below(to_u64(ranges.len())))];
        if spoil(&device, range, &mut choices).is_none() {
            continue;
        }
        match change_all(Watched::new(device, &Rc::default())) {
            Ok(()) => believed += 1,
            Err(_) => errors += 1,
        }
    }
    // Times and owners can be anything, and nobody looks at what is not needed.
    assert!(errors > 100 && believed > 100, "{errors} errors, {believed} believed");
}

#[test]
fn an_image_that_is_cut_off_is_refused() {
    let whole = golden();
    let size = mount(golden()).unwrap().geometry().bytes();
    let mut start = vec![0; 1 << 20];
    whole.load(0, &mut start);
    let mut choices = Choices(4);
    let any = (0..rounds(100)).map(|_| choices.below(size / 512) * 512);
    for len in [0, 512, 4096, 32 << 10, 1 << 20, size - 512].into_iter().chain(any) {
        let device = MemoryDevice::new(len);
        let len = to_usize(len).min(start.len());
        device.store(0, &start[..len]);
        let error = mount(device).unwrap_err();
        assert!(
            matches!(error, XfsError::Superblock { .. } | XfsError::Truncated { .. }),
            "{len}: {error:?}"
        );
    }
}

#[test]
fn a_dirty_log_is_refused_and_can_be_passed_over() {
    let device = golden();
    let xfs = mount(golden()).unwrap();
    let (start, _) = xfs.superblock().log.unwrap();
    device.store(xfs.geometry().address_of(start).unwrap(), &[0, 0, 0, 1]);
    assert_eq!(mount(device.clone()).unwrap_err(), XfsError::DirtyLog);
    let options = MountOptions { no_recovery: true, ..MountOptions::default() };
    Xfs::mount(device, &options).unwrap();
}

#[test]
fn little_memory_for_metadata_is_enough() {
    let (files, _) = good();
    let options = MountOptions { cache_bytes: 0, ..MountOptions::default() };
    let reads = Rc::default();
    let device = Watched::new(golden(), &reads);
    let mut xfs = Xfs::mount(device, &options).unwrap();
    assert!(observe(&mut xfs).unwrap() == files);
}
