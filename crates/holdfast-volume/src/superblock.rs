//! The two superblocks, read from a device and written to it.

use holdfast_bio::{BlockDevice, Error, Op};
use holdfast_iov::{BUFFER_MIN, Buffer, Pool};
use zerocopy::IntoBytes;

use crate::error::VolumeError;
use crate::format::{FormatError, SUPERBLOCK_LEN, SUPERBLOCK_OFFSETS, Superblock};
use crate::raw::{self, device_error, sync_device};

pub(crate) fn scratch() -> Result<Buffer, VolumeError> {
    let pool = Pool::new(BUFFER_MIN)
        .map_err(|error| VolumeError::Device { what: "get memory", source: Error::from(&error) })?;
    Ok(pool.take(SUPERBLOCK_LEN).expect("a new pool has a buffer"))
}

/// What the two superblocks say.
pub(crate) struct Found {
    /// The newer good one.
    pub(crate) superblock: Superblock,
    /// Which copy is corrupt, and how, if one is.
    pub(crate) corrupt: Option<(usize, FormatError)>,
}

pub(crate) const fn copy_name(copy: usize) -> &'static str {
    if copy == 0 { "the first superblock" } else { "the second superblock" }
}

pub(crate) fn warn_of_corrupt(corrupt: Option<&(usize, FormatError)>) {
    if let Some((copy, error)) = corrupt {
        tracing::warn!("{} cannot be used, the other is: {error}", copy_name(*copy));
    }
}

/// Reads both superblocks and takes the newer good one.
pub(crate) fn read_superblock<D: BlockDevice>(device: &mut D) -> Result<Found, VolumeError> {
    let found = device.limits().capacity;
    let [first, second] = [0, 1].map(|copy| read_copy(device, copy));
    let (superblock, corrupt) = match (first?, second?) {
        (Ok(first), Ok(second)) => {
            (if first.sequence >= second.sequence { first } else { second }, None)
        }
        // What a newer program wrote is not corrupt.
        (Ok(_), Err(error)) | (Err(error), Ok(_)) if error.is_newer() => return Err(error.into()),
        (Ok(good), Err(error)) => (good, Some((1, error))),
        (Err(error), Ok(good)) => (good, Some((0, error))),
        // A version or a feature that is too new is so in both copies, and so is a foreign file.
        (Err(first), Err(second)) if first == second => return Err(first.into()),
        (Err(first @ FormatError::Foreign { .. }), Err(FormatError::Foreign { .. })) => {
            return Err(first.into());
        }
        (Err(first), Err(second)) => return Err(VolumeError::Superblocks { first, second }),
    };
    let expected = superblock.geometry.device_len();
    if expected > found {
        return Err(FormatError::Truncated { expected, found }.into());
    }
    Ok(Found { superblock, corrupt })
}

/// Reads one superblock, of a mirror the newest of all legs. The outer error is the device's.
fn read_copy<D: BlockDevice>(
    device: &mut D,
    copy: usize,
) -> Result<Result<Superblock, FormatError>, VolumeError> {
    let legs = device.legs();
    if legs == 1 {
        return read_copy_of(device, copy, None);
    }
    let mut best: Result<Result<Superblock, _>, _> =
        Err(device_error("read the superblock")(Error::IO));
    for leg in 0..legs {
        let found = read_copy_of(device, copy, u8::try_from(leg).ok());
        let is_better = match (&best, &found) {
            (Ok(Ok(best)), Ok(Ok(found))) => found.sequence > best.sequence,
            (Ok(Err(_)) | Err(_), Ok(Ok(_))) | (Err(_), _) => true,
            _ => false,
        };
        if is_better {
            best = found;
        }
    }
    best
}

fn read_copy_of<D: BlockDevice>(
    device: &mut D,
    copy: usize,
    leg: Option<u8>,
) -> Result<Result<Superblock, FormatError>, VolumeError> {
    let offset = SUPERBLOCK_OFFSETS[copy];
    let (expected, found) = (offset + SUPERBLOCK_LEN as u64, device.limits().capacity);
    if expected > found {
        return Ok(Err(FormatError::Truncated { expected, found }));
    }
    let buffer = raw::transfer_leg(device, Op::Read, offset, scratch()?, SUPERBLOCK_LEN, leg)
        .map_err(device_error("read the superblock"))?;
    let bytes = buffer.as_slice().first_chunk().expect("a buffer is longer than a superblock");
    Ok(Superblock::parse(bytes))
}

/// Writes both copies, durably, so that each is newer than those before.
pub(crate) fn rewrite_superblock<D: BlockDevice>(
    device: &mut D,
    superblock: &mut Superblock,
) -> Result<(), VolumeError> {
    for copy in [0, 1] {
        superblock.sequence += 1;
        write_superblock(device, superblock, copy)?;
        // The first must be whole before the second may be torn, and the second at the end.
        sync_device(device)?;
    }
    Ok(())
}

pub(crate) fn write_superblock<D: BlockDevice>(
    device: &mut D,
    superblock: &Superblock,
    copy: usize,
) -> Result<(), VolumeError> {
    let mut buffer = scratch()?;
    let raw = superblock.to_raw(u32::try_from(copy).expect("0 or 1"));
    buffer.as_mut_slice()[..SUPERBLOCK_LEN].copy_from_slice(raw.as_bytes());
    let offset = SUPERBLOCK_OFFSETS[copy];
    raw::transfer(device, Op::Write, offset, buffer, SUPERBLOCK_LEN)
        .map(drop)
        .map_err(device_error("write the superblock"))
}
