//! The configuration space of the disk (virtio 1.3, section 5.2.4).

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_TOPOLOGY, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::target::Description;

/// The unit of the disk's addresses, whatever its block size is.
pub(crate) const SECTOR: u64 = 512;
/// The most ranges in one request to discard or to write zeros.
pub(crate) const RANGES_MAX: u8 = 16;
/// The most bytes of one such range. A request may run for as long as these take.
const RANGE_BYTES_MAX: u64 = 1 << 30;
/// The most buffers of one request: a queue of 128, the usual size, less the header and the status.
const SEGMENTS_MAX: u32 = 126;
/// The most bytes of one buffer.
const SEGMENT_BYTES_MAX: u32 = 1 << 20;
/// The feature by which a front end asks that pages which are written to be logged, for migration.
pub(crate) const LOG_ALL: u32 = 26;
/// The feature by which the vhost-user protocol tells that it has features of its own.
pub(crate) const PROTOCOL_FEATURES: u32 = 30;

/// `struct virtio_blk_config`.
#[derive(Clone, Copy, Debug, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Config {
    capacity: U64,
    size_max: U32,
    seg_max: U32,
    geometry: [u8; 4],
    blk_size: U32,
    physical_block_exp: u8,
    alignment_offset: u8,
    min_io_size: U16,
    opt_io_size: U32,
    writeback: u8,
    unused0: u8,
    num_queues: U16,
    max_discard_sectors: U32,
    max_discard_seg: U32,
    discard_sector_alignment: U32,
    max_write_zeroes_sectors: U32,
    max_write_zeroes_seg: U32,
    write_zeroes_may_unmap: u8,
    unused1: [u8; 3],
}

const _: () = {
    assert!(size_of::<Config>() == 60);
    assert!(std::mem::offset_of!(Config, writeback) == Config::WRITEBACK);
    assert!(std::mem::offset_of!(Config, max_discard_sectors) == 36);
};

impl Config {
    /// Where the one field is that a driver may change.
    pub(crate) const WRITEBACK: usize = 32;

    /// Returns the configuration of a disk with so many queues.
    pub(crate) fn new(disk: &Description, queues: u16) -> Self {
        let logical = disk.logical_block.bytes();
        let whole = disk.physical_block.bytes() / logical;
        let range = u32::try_from(RANGE_BYTES_MAX / SECTOR).expect("2^21 fits");
        let discard = disk.discard_block.bytes() / SECTOR;
        Self {
            capacity: U64::new(disk.capacity / SECTOR),
            size_max: U32::new(SEGMENT_BYTES_MAX),
            seg_max: U32::new(SEGMENTS_MAX),
            blk_size: U32::new(u32::try_from(logical).expect("at most 2^20")),
            physical_block_exp: u8::try_from(whole.ilog2()).expect("at most 11"),
            min_io_size: U16::new(u16::try_from(whole).expect("at most 2^11")),
            writeback: 1,
            num_queues: U16::new(queues),
            max_discard_sectors: U32::new(range),
            max_discard_seg: U32::new(u32::from(RANGES_MAX)),
            discard_sector_alignment: U32::new(u32::try_from(discard).expect("at most 2^21")),
            max_write_zeroes_sectors: U32::new(range),
            max_write_zeroes_seg: U32::new(u32::from(RANGES_MAX)),
            write_zeroes_may_unmap: 1,
            ..Self::new_zeroed()
        }
    }

    /// Returns `len` bytes from `offset` on. Behind the end there are zeros.
    pub(crate) fn read(&self, offset: usize, len: usize) -> Vec<u8> {
        let rest = self.as_bytes().get(offset..).unwrap_or_default();
        let mut bytes = rest[..rest.len().min(len)].to_vec();
        bytes.resize(len, 0);
        bytes
    }

    /// Changes what a driver may change. `false` when it may not.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        match (offset, bytes) {
            (Self::WRITEBACK, &[value]) => {
                // A guest chooses it, and must not be able to make its front end lose the connection.
                self.writeback = u8::from(value != 0);
                true
            }
            _ => false,
        }
    }

    /// Returns how many queues there are.
    pub(crate) const fn queues(&self) -> u16 {
        self.num_queues.get()
    }

    /// Returns whether writes may be acknowledged before they are durable.
    pub(crate) const fn writeback(&self) -> bool {
        self.writeback != 0
    }
}

/// Returns the features that are offered for a disk.
pub(crate) fn features(disk: &Description) -> u64 {
    let always = [
        VIRTIO_F_VERSION_1,
        VIRTIO_RING_F_INDIRECT_DESC,
        VIRTIO_RING_F_EVENT_IDX,
        VIRTIO_BLK_F_SIZE_MAX,
        VIRTIO_BLK_F_SEG_MAX,
        VIRTIO_BLK_F_BLK_SIZE,
        VIRTIO_BLK_F_FLUSH,
        VIRTIO_BLK_F_TOPOLOGY,
        VIRTIO_BLK_F_CONFIG_WCE,
        VIRTIO_BLK_F_MQ,
        LOG_ALL,
        PROTOCOL_FEATURES,
    ];
    let by_mode: &[u32] = if disk.read_only {
        &[VIRTIO_BLK_F_RO]
    } else {
        &[VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES]
    };
    always.iter().chain(by_mode).fold(0, |all, bit| all | 1 << bit)
}

/// Returns whether a feature is among those that were agreed on.
pub(crate) const fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}
