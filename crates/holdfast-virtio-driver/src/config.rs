//! The device configuration of a block device.

use crate::ClientError;

/// What a block device says of itself (virtio 1.3, 5.2.4). A field whose feature was not agreed on
/// means nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// The capacity in sectors of 512 bytes.
    pub capacity_sectors: u64,
    /// The most bytes of a segment.
    pub segment_bytes_max: u32,
    /// The most segments of a request.
    pub segments_max: u32,
    /// The block size in bytes.
    pub block_bytes: u32,
    /// How many blocks are a physical block, as a power of two.
    pub physical_block_exponent: u8,
    /// The first aligned block.
    pub alignment_offset: u8,
    /// The suggested smallest request, in blocks.
    pub io_blocks_min: u16,
    /// The suggested best request, in blocks.
    pub io_blocks_best: u32,
    /// Whether the cache is a write-back cache.
    pub is_write_back: bool,
    /// The number of queues.
    pub queues: u16,
    /// The most sectors of a range to be discarded.
    pub discard_sectors_max: u32,
    /// The most ranges of one discard.
    pub discard_ranges_max: u32,
    /// What ranges to be discarded should be aligned to, in sectors.
    pub discard_alignment_sectors: u32,
    /// The most sectors of a range to be zeroed.
    pub zero_sectors_max: u32,
    /// The most ranges of one request to write zeros.
    pub zero_ranges_max: u32,
    /// Whether writing zeros may also unmap.
    pub zeroes_may_unmap: bool,
}

impl BlkConfig {
    /// Bytes up to and with the fields for writing zeros.
    pub(crate) const LEN: usize = 60;

    /// Parses the bytes of the configuration.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, ClientError> {
        let found = bytes.len();
        let bytes: &[u8; Self::LEN] =
            bytes.first_chunk().ok_or(ClientError::Config { needed: Self::LEN, found })?;
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)) << 16;
        Ok(Self {
            capacity_sectors: u64::from(u32_at(0)) | u64::from(u32_at(4)) << 32,
            segment_bytes_max: u32_at(8),
            segments_max: u32_at(12),
            // 16 to 19 are a geometry.
            block_bytes: u32_at(20),
            physical_block_exponent: bytes[24],
            alignment_offset: bytes[25],
            io_blocks_min: u16_at(26),
            io_blocks_best: u32_at(28),
            is_write_back: bytes[32] != 0,
            queues: u16_at(34),
            discard_sectors_max: u32_at(36),
            discard_ranges_max: u32_at(40),
            discard_alignment_sectors: u32_at(44),
            zero_sectors_max: u32_at(48),
            zero_ranges_max: u32_at(52),
            zeroes_may_unmap: bytes[56] != 0,
        })
    }

    /// Returns the capacity in bytes.
    pub const fn capacity_bytes(&self) -> u64 {
        self.capacity_sectors.saturating_mul(512)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let bytes: Vec<u8> = (0..60).collect();
        let config = BlkConfig::parse(&bytes).unwrap();
        assert_eq!(config.capacity_sectors, 0x0706_0504_0302_0100);
        assert_eq!(config.segments_max, 0x0f0e_0d0c);
        assert_eq!(config.block_bytes, 0x1716_1514);
        assert_eq!(config.queues, 0x2322);
        assert_eq!(config.zero_ranges_max, 0x3736_3534);
    }

    #[test]
    fn a_short_configuration_is_refused() {
        BlkConfig::parse(&[0; 59]).unwrap_err();
    }
}
