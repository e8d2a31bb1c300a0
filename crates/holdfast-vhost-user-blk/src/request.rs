//! One request of a guest, read from its descriptors and checked (virtio 1.3, section 5.2.6).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_bio::Op;
use holdfast_iov::{AddressError, GuestMemory, IovIter, Place, SegmentList};
use holdfast_units::to_u64;
use holdfast_virtqueue::{Chain, Descriptor};
use thiserror::Error;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD,
    VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT,
    VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use crate::config::{RANGES_MAX, SECTOR};
use crate::target::{Description, ID};

/// Bytes of the header: type, reserved, sector.
const HEADER: usize = 16;
/// Bytes of one range to discard or to make zeros: sector, count of sectors, flags.
const RANGE: usize = 16;

/// How a request ended, as the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    Error,
    Unsupported,
}

impl Status {
    /// Returns the byte that stands for it.
    pub(crate) fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::Error => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        u8::try_from(value).expect("0, 1 or 2")
    }
}

/// Why a request cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum Refused {
    #[error(transparent)]
    Address(#[from] AddressError),
    #[error("its {found} readable bytes have no room for a header of {HEADER}")]
    Header { found: usize },
    #[error("there is no byte for the status")]
    NoStatus,
    #[error("{len} bytes at sector {sector} are no whole blocks of the disk")]
    Range { sector: u64, len: usize },
    #[error("its ranges have {len} bytes, which are no 1 to {RANGES_MAX} of them")]
    Ranges { len: usize },
    #[error("the flags {flags:#x} of a range mean nothing here")]
    Flags { flags: u32 },
    #[error("requests of type {kind} are not known")]
    Type { kind: u32 },
    #[error("there are {found} bytes for a name of {ID}")]
    Name { found: usize },
}

impl Refused {
    /// Returns what the guest is told.
    pub(crate) const fn status(&self) -> Status {
        match self {
            Self::Type { .. } | Self::Flags { .. } => Status::Unsupported,
            _ => Status::Error,
        }
    }
}

/// A part of a request: one run of the disk, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) op: Op,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// What a request asks for, as far as it was understood. It is used again for the next request in
/// its place.
#[derive(Debug, Default)]
pub(crate) struct Request {
    /// The runs of the disk, one after the other.
    pub(crate) runs: Vec<Run>,
    /// The guest's memory for data.
    list: Arc<SegmentList>,
    /// Where the guest looks for the status, if it said so.
    pub(crate) status: Option<Place>,
    /// The bytes that the device writes into, less the status.
    pub(crate) writable: u32,
    /// The buffers that the device writes into.
    pub(crate) written: Vec<Descriptor>,
    /// The guest asked for the name of the disk.
    pub(crate) wants_id: bool,
}

impl Request {
    /// Returns the guest's memory for data.
    pub(crate) fn data(&self) -> IovIter {
        IovIter::over(Arc::clone(&self.list))
    }

    /// Forgets the guest's memory.
    pub(crate) fn clear(&mut self) {
        self.runs.clear();
        self.written.clear();
        self.empty_list().clear();
        (self.status, self.writable, self.wants_id) = (None, 0, false);
    }

    /// Returns the list, which nobody else uses when the request has ended.
    fn empty_list(&mut self) -> &mut SegmentList {
        if Arc::get_mut(&mut self.list).is_none() {
            debug_assert!(false, "no bio is left of a request that has ended");
            self.list = Arc::default();
        }
        Arc::get_mut(&mut self.list).expect("it is ours alone, as was seen or made above")
    }

    /// Reads the descriptors of a request. The status is found first, so that also a request that
    /// is refused can be answered.
    ///
    /// # Errors
    ///
    /// [`Refused`].
    pub(crate) fn parse(
        &mut self,
        chain: &Chain,
        memory: &GuestMemory,
        disk: &Description,
    ) -> Result<(), Refused> {
        self.clear();
        self.written.extend_from_slice(chain.writable());
        let writable = bytes_of(chain.writable());
        if let Some(last) = chain.writable().iter().rev().find(|last| last.len > 0) {
            let address = last.address.wrapping_add(u64::from(last.len) - 1);
            self.status = Some(memory.place(address, 1)?);
        }
        let data_in = writable.checked_sub(1).ok_or(Refused::NoStatus)?;
        self.writable = u32::try_from(data_in).unwrap_or(u32::MAX);
        let readable = bytes_of(chain.readable());
        let data_out = readable.checked_sub(HEADER).ok_or(Refused::Header { found: readable })?;
        let (kind, sector) = self.header(chain, memory)?;
        match kind {
            VIRTIO_BLK_T_IN => {
                self.gather(memory, chain.writable(), 0, data_in)?;
                self.transfer(Op::Read, sector, data_in, disk)
            }
            VIRTIO_BLK_T_OUT => {
                self.gather(memory, chain.readable(), HEADER, data_out)?;
                self.transfer(Op::Write, sector, data_out, disk)
            }
            VIRTIO_BLK_T_FLUSH => {
                self.runs.push(Run { op: Op::Flush, offset: 0, len: 0 });
                Ok(())
            }
            VIRTIO_BLK_T_GET_ID => {
                if data_in < ID {
                    return Err(Refused::Name { found: data_in });
                }
                self.gather(memory, chain.writable(), 0, ID)?;
                self.wants_id = true;
                Ok(())
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                self.gather(memory, chain.readable(), HEADER, data_out)?;
                self.ranges(kind, data_out, disk)
            }
            kind => Err(Refused::Type { kind }),
        }
    }

    /// Reads the header, which may lie in any number of buffers.
    fn header(&mut self, chain: &Chain, memory: &GuestMemory) -> Result<(u32, u64), Refused> {
        let first = chain.readable().first().map_or(0, |first| first.address);
        let is_whole = chain.readable().first().is_some_and(|first| first.len >= 16);
        if is_whole
            && let Ok(place) = memory.place(first, HEADER)
            && place.is_aligned(size_of::<u64>())
        {
            let kind = place.load_u32(0, Ordering::Relaxed);
            return Ok((kind, place.load_u64(8, Ordering::Relaxed)));
        }
        self.gather(memory, chain.readable(), 0, HEADER)?;
        let mut bytes = [0; HEADER];
        self.data().copy_out(&mut bytes);
        let [kind, _, low, high] = words(&bytes);
        Ok((kind, u64::from(high) << 32 | u64::from(low)))
    }

    /// Makes the list that of `len` bytes of buffers, behind the first `skip`.
    fn gather(
        &mut self,
        memory: &GuestMemory,
        buffers: &[Descriptor],
        mut skip: usize,
        mut len: usize,
    ) -> Result<(), AddressError> {
        let list = self.empty_list();
        list.reset(memory.volatile());
        for buffer in buffers {
            let bytes = len_of(buffer);
            let passed = skip.min(bytes);
            let piece = (bytes - passed).min(len);
            let address = buffer.address.wrapping_add(to_u64(passed));
            memory.push(list, address, u32::try_from(piece).expect("a part of a u32"))?;
            skip -= passed;
            len -= piece;
        }
        Ok(())
    }

    fn transfer(
        &mut self,
        op: Op,
        sector: u64,
        len: usize,
        disk: &Description,
    ) -> Result<(), Refused> {
        let refused = Refused::Range { sector, len };
        let bytes = to_u64(len);
        let offset = sector.checked_mul(SECTOR).ok_or(refused)?;
        let end = offset.checked_add(bytes).ok_or(refused)?;
        if end > disk.capacity || !disk.logical_block.is_aligned(offset | bytes) {
            return Err(refused);
        }
        if bytes > 0 {
            self.runs.push(Run { op, offset, len: bytes });
        }
        Ok(())
    }

    /// Reads the ranges to discard or to make zeros.
    fn ranges(&mut self, kind: u32, len: usize, disk: &Description) -> Result<(), Refused> {
        let mut bytes = [0; RANGE * RANGES_MAX as usize];
        if len == 0 || !len.is_multiple_of(RANGE) || len > bytes.len() {
            return Err(Refused::Ranges { len });
        }
        self.data().copy_out(&mut bytes[..len]);
        for range in bytes[..len].as_chunks::<RANGE>().0 {
            let [low, high, count, flags] = words(range);
            let sector = u64::from(high) << 32 | u64::from(low);
            let op = operation(kind, flags)?;
            let len = u64::from(count) * SECTOR;
            let refused = Refused::Range { sector, len: holdfast_units::to_usize(len) };
            let offset = sector.checked_mul(SECTOR).ok_or(refused)?;
            let end = offset.checked_add(len).ok_or(refused)?;
            if end > disk.capacity || !disk.logical_block.is_aligned(offset | len) {
                return Err(refused);
            }
            let (offset, end) = if op == Op::Discard {
                // A discard may do less: what is no whole block stays.
                let first = disk.discard_block.align_up(offset).unwrap_or(end);
                (first, disk.discard_block.align_down(end))
            } else {
                (offset, end)
            };
            if offset < end {
                self.runs.push(Run { op, offset, len: end - offset });
            }
        }
        Ok(())
    }
}

/// Returns what is to be done with a range.
fn operation(kind: u32, flags: u32) -> Result<Op, Refused> {
    let unmap = VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP;
    match (kind, flags) {
        // Virtio 1.3, 5.2.6.2: a flag of a discard, or an unknown one, makes the request unsupported.
        (VIRTIO_BLK_T_DISCARD, 0) => Ok(Op::Discard),
        (VIRTIO_BLK_T_WRITE_ZEROES, 0) => Ok(Op::Zero { keep: true, fast: false }),
        (VIRTIO_BLK_T_WRITE_ZEROES, flags) if flags == unmap => {
            Ok(Op::Zero { keep: false, fast: false })
        }
        (_, flags) => Err(Refused::Flags { flags }),
    }
}

/// Takes four little-endian words apart.
fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    for (word, bytes) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    words
}

fn len_of(buffer: &Descriptor) -> usize {
    holdfast_units::to_usize(u64::from(buffer.len))
}

fn bytes_of(buffers: &[Descriptor]) -> usize {
    buffers.iter().map(len_of).sum()
}
