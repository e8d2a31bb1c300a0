//! What opening a volume begins with: finding out what a crash has left, and empty logs.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::ops::Range;

use holdfast_bio::{BlockDevice, Error, Op};
use holdfast_iov::{BUFFER_MAX, Pool};
use holdfast_units::{to_u64, to_usize};

use crate::error::VolumeError;
use crate::format::{Durability, Superblock};
use crate::geometry::Geometry;
use crate::intents::{Intents, Regions};
use crate::judge::Judge;
use crate::log::Log;
use crate::raw::{self, device_error, sync_device};
use crate::recovery::{Recovery, RecoveryReport};
use crate::volume::OpenOptions;

/// What is known of a volume that was not closed.
#[derive(Default)]
pub(crate) struct Recovered {
    pub(crate) report: Option<RecoveryReport>,
    pub(crate) tuples: BTreeMap<u64, [u64; 2]>,
    pub(crate) overlay: BTreeMap<u64, Box<[u8]>>,
    pub(crate) adopted: Vec<Range<u64>>,
}

/// Finds out what sectors hold, if the volume was not closed.
pub(crate) fn recover<D: BlockDevice>(
    device: &mut D,
    superblock: &Superblock,
    judge: &Judge,
    options: &OpenOptions,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Recovered, VolumeError> {
    if superblock.clean {
        return Ok(Recovered::default());
    }
    let &Superblock { geometry, durability, log_epoch, journaled, boot, .. } = superblock;
    let read_only = options.read_only;
    let mut recovery = Recovery::new(device, &geometry, judge, read_only, progress)?;
    let mut adopted = Vec::new();
    // What a program that had no choice left in its log outlives a process, as a mapped log does.
    let outlived = match durability {
        None | Some(Durability::Full) => true,
        Some(_) => boot == options.boot && boot != [0; 16],
    };
    match log_epoch {
        Some(epoch) if outlived => recovery.settle(epoch, durability, journaled)?,
        _ if matches!(durability, None | Some(Durability::Full)) => {}
        _ => {
            adopted = match durability {
                Some(Durability::Bitmap) => recovery.dirty_ranges()?,
                _ => vec![Range { start: 0, end: geometry.capacity() }],
            };
            if !read_only {
                recovery.adopt(&std::mem::take(&mut adopted))?;
            }
        }
    }
    let Recovery { report, tuples, restored: overlay, .. } = recovery;
    let RecoveryReport { records, settled, restored, adopted: taken, torn, unreadable } = &report;
    let (torn, unreadable) = (torn.len(), unreadable.len());
    tracing::info!(
        records,
        settled,
        restored,
        taken,
        torn,
        unreadable,
        "the volume was not closed"
    );
    Ok(Recovered { report: Some(report), tuples, overlay, adopted })
}

/// Begins an empty tuple log: one that is written, for full durability, and otherwise one that is
/// mapped, where the storage below can be mapped. Storage that is gone with the machine needs none that
/// is written: what is mapped survives as much there.
pub(crate) fn begin_log<D: BlockDevice>(
    device: &mut D,
    geometry: &Geometry,
    options: &OpenOptions,
) -> Result<Option<Log>, VolumeError> {
    let (offset, len) = geometry.log();
    let no_room = device_error("reserve space for the tuple log");
    let (limits, is_full) = (device.limits(), options.durability == Durability::Full);
    if !is_full || limits.in_memory {
        let region = device.map(offset, to_usize(len)).map_err(&no_room)?;
        if let Some(region) = region {
            return Ok(Some(Log::mapped(region, new_epoch(), geometry)));
        }
    }
    if !is_full {
        return Ok(None);
    }
    fill_holes(device, offset, len).map_err(no_room)?;
    let journaled = begins_journal(device);
    Ok(Some(Log::written(limits.granularity, new_epoch(), geometry, journaled)))
}

/// Returns whether there is a data journal with a log that is written: not on a mirror, whose legs are
/// compared and healed sector by sector.
pub(crate) fn begins_journal<D: BlockDevice>(device: &D) -> bool {
    device.legs() == 1
}

/// Says that no region is being written, for durability by bitmap.
pub(crate) fn begin_intents<D: BlockDevice>(
    device: &mut D,
    geometry: &Geometry,
    options: &OpenOptions,
) -> Result<Option<Intents>, VolumeError> {
    if options.durability != Durability::Bitmap {
        return Ok(None);
    }
    let regions = Regions::new(geometry, device.limits().granularity);
    let len = regions.stored_len();
    let pool = Pool::new(len).map_err(|error| device_error("get memory")(Error::from(&error)))?;
    let mut buffer = pool.take_whole(len).expect("nothing is in use");
    regions.encode_clean(&mut buffer.as_mut_slice()[..len]);
    raw::transfer(device, Op::Write, regions.offset(), buffer, len)
        .map_err(device_error("write the write-intent log"))?;
    // What says that it counts is written after it.
    sync_device(device)?;
    Ok(Some(Intents::new(regions)))
}

/// Writes zeros to where the log is a hole, so that a write to it changes nothing of the file but
/// its data: it must be durable fast.
fn fill_holes<D: BlockDevice>(device: &mut D, offset: u64, len: u64) -> Result<(), Error> {
    let pool = Pool::new(BUFFER_MAX).map_err(|error| Error::from(&error))?;
    let (mut position, end) = (offset, offset + len);
    while position < end {
        let data = device.data_after(position)?.unwrap_or(end).min(end);
        while position < data {
            let piece = to_usize(data - position).min(BUFFER_MAX);
            let mut buffer = pool.take_whole(piece).expect("one buffer is in use");
            buffer.as_mut_slice()[..piece].fill(0);
            raw::transfer(device, Op::Write, position, buffer, piece)?;
            position += to_u64(piece);
        }
        // What is no hole is passed a piece at a time, since nothing says where it ends.
        position = (position + (64 << 10)).min(end);
    }
    Ok(())
}

/// Returns a number that no volume has had for its log, and that nobody can foresee: what clients
/// write becomes part of records, and must not be taken for one.
fn new_epoch() -> NonZeroU64 {
    let (_, number) = uuid::Uuid::new_v4().as_u64_pair();
    NonZeroU64::new(number).expect("a UUID has its variant there, which is not 0")
}
