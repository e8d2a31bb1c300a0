//! Where everything is in a volume.

use std::ops::Range;

use holdfast_checksum::GuardKind;
use holdfast_integrity::Tuple;
use holdfast_units::{BlockSize, to_u64, to_usize};

use crate::claims::Sectors;

/// The size of a tuple block, in bytes.
pub const TUPLE_BLOCK: usize = 4096;

const MIB: u64 = 1 << 20;
/// The superblocks, and room for what future versions want to put beside them.
const HEADER: u64 = MIB;
const INTENT_LEN: u64 = MIB;
const LOG_LEN_MIN: u64 = MIB;
const LOG_LEN_MAX: u64 = 64 * MIB;
/// The tuple log has this part of the capacity, within its limits.
const LOG_SHARE: u64 = 256;

/// The places of a volume's parts.
///
/// The header is followed by the write-intent log, the tuple log, and the groups. A group is one
/// block of tuples and the sectors that they protect:
///
/// ```text
/// | header | intent log | tuple log | tuples, data | tuples, data | ..
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    capacity: u64,
    sector: BlockSize,
    tuple_words: usize,
    log_len: u64,
    group_data: BlockSize,
}

impl Geometry {
    /// Returns the geometry of a volume that presents `capacity` bytes, or `None` when that is 0,
    /// no multiple of the sector, or more than 2^60.
    pub fn new(capacity: u64, sector: BlockSize, guard: GuardKind) -> Option<Self> {
        if capacity == 0 || !sector.is_aligned(capacity) || capacity > 1 << 60 {
            return None;
        }
        let sectors_of_group = to_u64(TUPLE_BLOCK / Tuple::size(guard));
        let group_data = BlockSize::new(sectors_of_group * sector.bytes())?;
        let log_len = (capacity / LOG_SHARE).clamp(LOG_LEN_MIN, LOG_LEN_MAX).div_ceil(MIB) * MIB;
        Some(Self { capacity, sector, tuple_words: Tuple::words(guard), log_len, group_data })
    }

    /// Returns the size of the disk that the volume presents, in bytes.
    pub const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns the size of a sector.
    pub const fn sector(&self) -> BlockSize {
        self.sector
    }

    /// Returns how many words of 64 bits a tuple has.
    pub const fn tuple_words(&self) -> usize {
        self.tuple_words
    }

    /// Returns offset and length of the write-intent log, in bytes.
    pub const fn intent(&self) -> (u64, u64) {
        (HEADER, INTENT_LEN)
    }

    /// Returns offset and length of the tuple log, in bytes.
    pub const fn log(&self) -> (u64, u64) {
        (HEADER + INTENT_LEN, self.log_len)
    }

    /// Returns offset and length of the data journal of a volume that has one, in bytes: it lies in
    /// the second half of the tuple log, which is shorter then.
    pub const fn journal(&self) -> (u64, u64) {
        let (offset, len) = self.log();
        (offset + len / 2, len / 2)
    }

    /// Returns where the first group begins, in bytes.
    pub const fn groups_offset(&self) -> u64 {
        HEADER + INTENT_LEN + self.log_len
    }

    /// Returns how many groups there are. The last may be shorter than the others.
    pub const fn groups(&self) -> u64 {
        self.capacity.div_ceil(self.group_data.bytes())
    }

    /// Returns how much data a group holds: a power of two.
    pub const fn group_data(&self) -> BlockSize {
        self.group_data
    }

    /// Returns how many sectors a group holds.
    pub fn sectors_of_group(&self) -> usize {
        to_usize(self.sector.count(self.group_data.bytes()))
    }

    const fn stride(&self) -> u64 {
        TUPLE_BLOCK as u64 + self.group_data.bytes()
    }

    /// Returns which group holds the byte `offset` of the disk.
    pub const fn group_of(&self, offset: u64) -> u64 {
        self.group_data.count(offset)
    }

    /// Returns the group that holds the byte `offset` of the disk, and the sectors of it that `len` bytes from
    /// there on touch.
    pub(crate) fn sectors_of(&self, offset: u64, len: u64) -> (u64, Sectors) {
        let in_group = self.group_data.offset_in(offset);
        let first = self.sector.count(in_group);
        let end = self.sector.count(in_group + len + self.sector.bytes() - 1);
        let sectors = Sectors { first: to_usize(first), count: to_usize(end - first) };
        (self.group_of(offset), sectors)
    }

    /// Returns where the tuples of `group` are, in bytes from the start of the file or device.
    pub const fn tuples_at(&self, group: u64) -> u64 {
        self.groups_offset() + group * self.stride()
    }

    /// Returns where the byte `offset` of the disk is, in bytes from the start of the file or
    /// device.
    pub const fn data_at(&self, offset: u64) -> u64 {
        let in_group = self.group_data.offset_in(offset);
        self.tuples_at(self.group_of(offset)) + TUPLE_BLOCK as u64 + in_group
    }

    /// Returns the first byte of the disk whose data or tuple may be stored at `position` of the
    /// file or device or behind it: the beginning of a group.
    pub fn first_offset_from(&self, position: u64) -> u64 {
        let group = position.saturating_sub(self.groups_offset()) / self.stride();
        (group * self.group_data.bytes()).min(self.capacity)
    }

    /// Returns the bytes of the disk in the groups that a range of the file or device touches.
    pub fn disk_range(&self, range: &Range<u64>) -> Range<u64> {
        let end = range.end.saturating_sub(self.groups_offset()).div_ceil(self.stride());
        let end = end.saturating_mul(self.group_data.bytes()).min(self.capacity);
        self.first_offset_from(range.start).min(end)..end
    }

    /// Returns how many bytes the file or device must have.
    pub const fn device_len(&self) -> u64 {
        self.data_at(self.capacity - 1) + 1
    }

    /// Returns the greatest capacity for which a device of `len` bytes has room, or `None` when it
    /// has room for none.
    pub fn capacity_of_device(len: u64, sector: BlockSize, guard: GuardKind) -> Option<u64> {
        let fits = |capacity: u64| {
            Self::new(capacity, sector, guard).is_some_and(|found| found.device_len() <= len)
        };
        let (mut low, mut high) = (0, sector.count(len) + 1);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if fits(middle * sector.bytes()) { low = middle } else { high = middle }
        }
        (low > 0).then(|| low * sector.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn geometries() -> impl Strategy<Value = Geometry> {
        let sectors = prop::sample::select(vec![BlockSize::SECTOR, BlockSize::PAGE]);
        let guards = prop::sample::select(GuardKind::ALL.to_vec());
        (1..1_u64 << 34, sectors, guards).prop_map(|(blocks, sector, guard)| {
            Geometry::new(blocks * sector.bytes(), sector, guard).unwrap()
        })
    }

    #[test]
    fn a_tuple_block_of_t10_tuples_covers_2_mib() {
        let geometry = Geometry::new(64 << 40, BlockSize::PAGE, GuardKind::Crc16).unwrap();
        assert_eq!(geometry.group_data().bytes(), 2 << 20);
    }

    #[test]
    fn a_size_that_is_no_multiple_of_the_sector_has_no_geometry() {
        assert_eq!(Geometry::new(4096 + 512, BlockSize::PAGE, GuardKind::Crc16), None);
    }

    proptest! {
        #[test]
        fn parts_follow_each_other_and_do_not_overlap(geometry in geometries(), at in 0.0..1.0_f64) {
            let (intent, intent_len) = geometry.intent();
            let (log, log_len) = geometry.log();
            prop_assert!(intent + intent_len <= log && log + log_len <= geometry.groups_offset());
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share")]
            #[expect(clippy::cast_precision_loss, reason = "a share")]
            let offset = (geometry.capacity() as f64 * at) as u64;
            let group = geometry.group_of(offset);
            let data = geometry.data_at(offset);
            prop_assert!(geometry.tuples_at(group) + to_u64(TUPLE_BLOCK) <= data);
            prop_assert!(data < geometry.tuples_at(group + 1));
            prop_assert!(data < geometry.device_len());
            let first = geometry.first_offset_from(data);
            prop_assert_eq!(first, group * geometry.group_data().bytes());
            let around = geometry.disk_range(&(data..data + 1));
            prop_assert!(around.start == first && around.contains(&offset));
            let before = geometry.disk_range(&(0..geometry.groups_offset()));
            prop_assert!(before.is_empty());
        }

        #[test]
        fn the_capacity_of_a_device_is_the_greatest_that_fits(
            len in 4_u64 << 20..1 << 44,
            guard in prop::sample::select(GuardKind::ALL.to_vec()),
        ) {
            let sector = BlockSize::PAGE;
            let capacity = Geometry::capacity_of_device(len, sector, guard).unwrap();
            let needs = |capacity| Geometry::new(capacity, sector, guard).unwrap().device_len();
            prop_assert!(needs(capacity) <= len && needs(capacity + sector.bytes()) > len);
        }
    }
}
