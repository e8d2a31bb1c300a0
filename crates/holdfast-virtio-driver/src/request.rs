//! The requests of a block device, and the descriptors they can be given.

use holdfast_virtqueue::Piece;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// Bytes of the header of a request.
pub(crate) const HEADER: usize = 16;
/// Bytes of a range.
pub(crate) const RANGE: usize = 16;

/// Memory of the guest that a request reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The guest-physical address of the first byte. It need not be memory of the guest.
    pub address: u64,
    /// The length in bytes.
    pub len: u32,
}

/// Sectors to be discarded or zeroed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// The first, in sectors of 512 bytes.
    pub sector: u64,
    /// How many.
    pub sectors: u32,
    /// The flags; see [`UNMAP`](Self::UNMAP).
    pub flags: u32,
}

impl Range {
    /// The flag by which zeroed sectors may be unmapped.
    pub const UNMAP: u32 = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;

    pub(crate) fn bytes(&self) -> [u8; RANGE] {
        let rest = u64::from(self.sectors) | u64::from(self.flags) << 32;
        let mut bytes = [0; RANGE];
        bytes.copy_from_slice([self.sector.to_le_bytes(), rest.to_le_bytes()].as_flattened());
        bytes
    }
}

/// What a block device is asked to do. Nothing is checked here: it may be asked the impossible.
#[derive(Clone, Copy, Debug)]
pub enum Request<'a> {
    /// To read from `sector` on into memory.
    Read {
        /// The first, in sectors of 512 bytes.
        sector: u64,
        /// The memory.
        target: &'a [Segment],
    },
    /// To write memory from `sector` on.
    Write {
        /// The first, in sectors of 512 bytes.
        sector: u64,
        /// The memory.
        source: &'a [Segment],
    },
    /// To make what was written durable.
    Flush,
    /// To forget what ranges hold.
    Discard {
        /// The ranges.
        ranges: &'a [Range],
    },
    /// To make ranges zeros.
    WriteZeroes {
        /// The ranges.
        ranges: &'a [Range],
    },
    /// To tell its name, of 20 bytes.
    Id {
        /// The memory for it.
        target: &'a [Segment],
    },
    /// Something else.
    Other {
        /// The type in the header.
        kind: u32,
        /// The sector in the header.
        sector: u64,
        /// The memory that the device may read.
        readable: &'a [Segment],
        /// The memory that the device may write, before the status.
        writable: &'a [Segment],
    },
}

impl Request<'_> {
    /// Returns the header.
    pub(crate) fn header(&self) -> [u8; HEADER] {
        let (kind, sector) = match *self {
            Self::Read { sector, .. } => (VIRTIO_BLK_T_IN, sector),
            Self::Write { sector, .. } => (VIRTIO_BLK_T_OUT, sector),
            Self::Flush => (VIRTIO_BLK_T_FLUSH, 0),
            Self::Discard { .. } => (VIRTIO_BLK_T_DISCARD, 0),
            Self::WriteZeroes { .. } => (VIRTIO_BLK_T_WRITE_ZEROES, 0),
            Self::Id { .. } => (VIRTIO_BLK_T_GET_ID, 0),
            Self::Other { kind, sector, .. } => (kind, sector),
        };
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    pub(crate) const fn ranges(&self) -> &[Range] {
        match self {
            Self::Discard { ranges } | Self::WriteZeroes { ranges } => ranges,
            _ => &[],
        }
    }

    const fn readable(&self) -> &[Segment] {
        match self {
            Self::Write { source, .. } => source,
            Self::Other { readable, .. } => readable,
            _ => &[],
        }
    }

    const fn writable(&self) -> &[Segment] {
        match self {
            Self::Read { target, .. } | Self::Id { target } => target,
            Self::Other { writable, .. } => writable,
            _ => &[],
        }
    }
}

/// Which descriptors are in a table of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TableShape {
    /// All, where the server takes such tables; otherwise none.
    #[default]
    Indirect,
    /// None.
    Direct,
    /// All but the first few, where the server takes such tables; otherwise none.
    After(usize),
}

/// How a request is put into descriptors. The default is what Linux does: one for the header, one for
/// each segment, one for the status, all in a table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Shape {
    /// Which descriptors are in a table of their own.
    pub table: TableShape,
    /// Where the header is cut into several descriptors: bit `n` before its byte `n`. Bit 0 has no
    /// meaning.
    pub header_cuts: u16,
    /// The header, or what is left of it behind the last cut, is in one descriptor with the first
    /// bytes behind it. For a write those are the data: the 16 bytes before the first segment must
    /// belong to it, and the header is stored there.
    pub joins_header: bool,
    /// The status is in one descriptor with the last writable segment, if there is one: the byte
    /// behind the segment must belong to it.
    pub joins_status: bool,
}

/// Where the parts of a request are, in guest addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts {
    pub(crate) header: u64,
    /// Behind the header in memory, unless the header is elsewhere.
    pub(crate) ranges: u64,
    pub(crate) status: u64,
}

/// Finds the places of header and status, and puts the descriptors of a request into `pieces`.
pub(crate) fn lay_out(
    request: &Request<'_>,
    shape: Shape,
    mut parts: Parts,
    pieces: &mut Vec<Piece>,
) -> Parts {
    pieces.clear();
    if let Some(first) = request.readable().first().filter(|_| shape.joins_header) {
        parts.header = first.address.wrapping_sub(16);
    }
    let cuts = (1..16).filter(|at| shape.header_cuts & 1 << at != 0);
    let mut from = 0_u32;
    for to in cuts.chain([16]) {
        pieces.push(readable(parts.header.wrapping_add(from.into()), to - from));
        from = to;
    }
    let mut joins = shape.joins_header;
    let ranges = u32::try_from(request.ranges().len() * RANGE).expect("no more than fit a page");
    let ranges = (ranges > 0).then_some(Segment { address: parts.ranges, len: ranges });
    for segment in ranges.iter().chain(request.readable()) {
        let joined = std::mem::take(&mut joins).then(|| {
            pieces.last_mut().and_then(|last| Some((last.len.checked_add(segment.len)?, last)))
        });
        match joined.flatten() {
            Some((len, last)) => last.len = len,
            None => pieces.push(readable(segment.address, segment.len)),
        }
    }
    for segment in request.writable() {
        pieces.push(writable(segment.address, segment.len));
    }
    let last = pieces.last_mut().filter(|last| shape.joins_status && last.is_writable);
    match last.and_then(|last| Some((last.len.checked_add(1)?, last))) {
        Some((len, last)) => {
            parts.status = last.address.wrapping_add(u64::from(last.len));
            last.len = len;
        }
        None => pieces.push(writable(parts.status, 1)),
    }
    parts
}

const fn readable(address: u64, len: u32) -> Piece {
    Piece { address, len, is_writable: false }
}

const fn writable(address: u64, len: u32) -> Piece {
    Piece { address, len, is_writable: true }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARTS: Parts = Parts { header: 0x1000, ranges: 0x1010, status: 0x1fff };

    fn pieces(request: &Request<'_>, shape: Shape) -> (Parts, Vec<Piece>) {
        let mut pieces = Vec::new();
        let parts = lay_out(request, shape, PARTS, &mut pieces);
        (parts, pieces)
    }

    #[test]
    fn a_header_is_cut_where_it_was_said() {
        let shape = Shape { header_cuts: 1 << 1 | 1 << 15, ..Shape::default() };
        let (_, found) = pieces(&Request::Flush, shape);
        let expected =
            [readable(0x1000, 1), readable(0x1001, 14), readable(0x100f, 1), writable(0x1fff, 1)];
        assert_eq!(found, expected);
    }

    #[test]
    fn header_and_data_can_share_a_descriptor() {
        let shape = Shape { joins_header: true, header_cuts: 1 << 8, ..Shape::default() };
        let source = [Segment { address: 0x5010, len: 512 }, Segment { address: 0x9000, len: 1 }];
        let (parts, found) = pieces(&Request::Write { sector: 0, source: &source }, shape);
        assert_eq!(parts.header, 0x5000);
        let expected = [
            readable(0x5000, 8),
            readable(0x5008, 8 + 512),
            readable(0x9000, 1),
            writable(0x1fff, 1),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn header_and_ranges_can_share_a_descriptor() {
        let shape = Shape { joins_header: true, ..Shape::default() };
        let (_, found) = pieces(&Request::Discard { ranges: &[Range::default(); 2] }, shape);
        assert_eq!(found, [readable(0x1000, 48), writable(0x1fff, 1)]);
    }

    #[test]
    fn data_and_status_can_share_a_descriptor() {
        let shape = Shape { joins_status: true, ..Shape::default() };
        let target = [Segment { address: 0x5000, len: 512 }];
        let (parts, found) = pieces(&Request::Read { sector: 0, target: &target }, shape);
        assert_eq!(parts.status, 0x5200);
        assert_eq!(found, [readable(0x1000, 16), writable(0x5000, 513)]);
    }

    #[test]
    fn a_status_without_data_is_alone() {
        let shape = Shape { joins_status: true, ..Shape::default() };
        let (_, found) = pieces(&Request::Flush, shape);
        assert_eq!(found, [readable(0x1000, 16), writable(0x1fff, 1)]);
    }
}
