//! Taking a request on: from mapping to mapping, and from bio to bio.

use holdfast_bio::{BlockDevice, Error as BioError};
use holdfast_iov::Memory;
use holdfast_units::{to_u64, to_usize};

use super::flight::Stage;
use super::{DirectIo, WINDOW};
use crate::{Direction, Error, IoendKind, Kind, Mapper, Mapping, MappingFault};

impl<D: BlockDevice, F: Copy + Ord, E: Clone> DirectIo<D, F, E> {
    /// Checks a request as far as no mapping is needed, and says how much it can move.
    pub(super) fn check<M>(&mut self, mapper: &M, key: usize) -> Result<(), Error<E>>
    where
        M: Mapper<File = F, Error = E>,
    {
        let limits = self.limits();
        let atomic_max = self.device.atomic_bytes_max();
        let flight = &mut self.flights[key];
        let request = &flight.request;
        let (offset, len, file) = (request.offset, request.len, request.file);
        flight.block = mapper.block(file);
        let aligned = request.flags.block_aligned;
        flight.unit =
            if aligned { limits.granularity.max(flight.block) } else { limits.granularity };
        let unit = flight.unit;
        let request = &flight.request;
        if offset.checked_add(len).is_none_or(|end| i64::try_from(end).is_err()) {
            return Err(Error::TooFar { offset, len });
        }
        let zeroes = request.direction == Direction::Zero;
        let aligned = unit.is_aligned(offset) && unit.is_aligned(len);
        if !(aligned || zeroes) {
            return Err(Error::Misaligned { offset, len, unit: unit.bytes() });
        }
        if limits.granularity > flight.block {
            // The file system was made for another device.
            return Err(BioError::Unsupported.into());
        }
        if request.is_write() && limits.read_only {
            return Err(BioError::ReadOnly.into());
        }
        if !request.is_write() && !request.memory.is_writable() {
            return Err(BioError::Unsupported.into());
        }
        let atomic = request.flags.atomic;
        if zeroes {
            flight.total = len;
            flight.claim(mapper.size(file));
            return if atomic { Err(Error::NotAtomic { offset, len }) } else { Ok(()) };
        }
        let skip = if matches!(request.memory, Memory::Iov(_)) { 0 } else { request.start };
        let found = to_u64(request.memory.len().saturating_sub(skip));
        flight.total = len.min(unit.align_down(found));
        if len > 0 && flight.total == 0 {
            return Err(Error::Memory { found, unit: unit.bytes() });
        }
        if atomic {
            let suits = request.is_write()
                && len.is_power_of_two()
                && offset.is_multiple_of(len)
                && len <= atomic_max.min(to_u64(limits.bytes_max))
                && flight.total == len
                && is_one_piece(&request.memory, len);
            if !suits {
                return Err(Error::NotAtomic { offset, len });
            }
        }
        flight.claim(mapper.size(file));
        Ok(())
    }

    /// Begins with a request that was checked or has failed.
    pub(super) fn start<M>(&mut self, mapper: &mut M, key: usize)
    where
        M: Mapper<File = F, Error = E>,
    {
        let flight = &mut self.flights[key];
        let size = mapper.size(flight.request.file);
        // Another write may have made the file longer since.
        flight.claim(size);
        flight.begin(size);
        self.pump(mapper, key);
    }

    /// Takes a request on until it has to wait.
    pub(super) fn pump<M>(&mut self, mapper: &mut M, key: usize)
    where
        M: Mapper<File = F, Error = E>,
    {
        loop {
            let Some(flight) = self.flights.get_mut(key) else { return };
            if flight.stage == Stage::Blocked || flight.drained {
                return;
            }
            if flight.error.is_some() || flight.submitted {
                break;
            }
            if flight.in_flight >= WINDOW {
                return;
            }
            if flight.pad.is_some() {
                if !self.send_pad(key) {
                    self.hungry.push(key);
                    return;
                }
            } else if flight.extents.left() > 0 {
                self.send_data(key);
            } else if let Err(error) = self.next_mapping(mapper, key) {
                self.flights[key].fail(error);
            }
        }
        let flight = &mut self.flights[key];
        // A mapping is left only when the request has failed, and so has its first error.
        let _second_error = flight.extents.finish(mapper, flight.request.file);
        flight.submitted = true;
        if flight.in_flight == 0 {
            flight.drained = true;
            self.drained.push(key);
        }
    }

    /// Asks for the next mapping, and does what needs no bio.
    fn next_mapping<M>(&mut self, mapper: &mut M, key: usize) -> Result<(), Error<E>>
    where
        M: Mapper<File = F, Error = E>,
    {
        let limits = self.limits();
        let flight = &mut self.flights[key];
        let (file, is_write) = (flight.request.file, flight.request.is_write());
        if flight.extents.next(mapper, file)?.is_none() {
            flight.submitted = true;
            return Ok(());
        }
        let (at, left) = (flight.extents.at(), flight.extents.left());
        let mapping = flight.extents.current().expect("there is one, as was just seen");
        let fault = |fault| Err(Error::Mapping { offset: at, fault });
        match &mapping.kind {
            Kind::Delayed => return fault(MappingFault::Delayed),
            Kind::Hole if is_write && !flight.only_zeroes() => {
                return fault(MappingFault::HoleForWrite);
            }
            Kind::Mapped { address } | Kind::Unwritten { address } => {
                let places = [Some(*address), mapping.source];
                for place in places.into_iter().flatten() {
                    if !limits.granularity.is_aligned(place) {
                        return fault(MappingFault::NotBlocks);
                    }
                    if place + mapping.len > limits.capacity {
                        return fault(MappingFault::OutsideDevice);
                    }
                }
            }
            Kind::Hole | Kind::Inline(_) => {}
        }
        if flight.only_zeroes() {
            return self.enter_zeros(mapper, key, left);
        }
        match &mapping.kind {
            Kind::Inline(_) if is_write => return self.write_inline(mapper, key, left),
            Kind::Hole | Kind::Unwritten { .. } if !is_write => flight.read_zeros(left),
            Kind::Inline(bytes) => {
                let from = to_usize(at - mapping.offset).min(bytes.len());
                let bytes = bytes[from..].to_vec();
                flight.read_inline(&bytes, left);
            }
            _ if is_write => flight.enter_write(at),
            _ => {}
        }
        Ok(())
    }

    /// Lets zeros be written, as far as something is there.
    fn enter_zeros<M>(&mut self, mapper: &mut M, key: usize, left: u64) -> Result<(), Error<E>>
    where
        M: Mapper<File = F, Error = E>,
    {
        let flight = &mut self.flights[key];
        let (file, at) = (flight.request.file, flight.extents.at());
        if let Some(Mapping { kind: Kind::Inline(bytes), offset, .. }) = flight.extents.current() {
            let there = (offset + to_u64(bytes.len())).saturating_sub(at).min(left);
            if there > 0 {
                mapper.store_inline(file, at, &vec![0; to_usize(there)])?;
            }
        }
        if flight.stage != Stage::Gap {
            flight.done += left;
        }
        flight.enter_zeros(left);
        Ok(())
    }

    fn write_inline<M>(&mut self, mapper: &mut M, key: usize, left: u64) -> Result<(), Error<E>>
    where
        M: Mapper<File = F, Error = E>,
    {
        let flight = &mut self.flights[key];
        let (file, at) = (flight.request.file, flight.extents.at());
        // No longer than a block, as the mapping was checked to be.
        let mut bytes = vec![0; to_usize(left)];
        flight.rest().copy_out(&mut bytes);
        mapper.store_inline(file, at, &bytes)?;
        flight.extents.advance(left);
        flight.done += left;
        Ok(())
    }
}

/// Returns whether one bio can have the first `len` bytes of the memory.
fn is_one_piece(memory: &Memory, len: u64) -> bool {
    match memory {
        Memory::Iov(iter) => iter.extract(to_usize(len), &mut Vec::new()) == to_usize(len),
        Memory::Buffer(_) | Memory::Shared(_) => true,
        Memory::None => false,
    }
}

impl<F: Copy + Ord, E> super::flight::Flight<F, E> {
    fn read_zeros(&mut self, left: u64) {
        self.rest().zero(to_usize(left));
        self.rest_moved(left);
    }

    fn read_inline(&mut self, bytes: &[u8], left: u64) {
        let bytes = &bytes[..bytes.len().min(to_usize(left))];
        let rest = self.rest();
        let copied = rest.copy_in(bytes);
        rest.zero(to_usize(left) - copied);
        self.rest_moved(left);
    }

    fn rest_moved(&mut self, bytes: u64) {
        self.extents.advance(bytes);
        self.done += bytes;
    }

    pub(super) fn kind_of_run(&self) -> IoendKind {
        let is_write = self.request.is_write();
        self.extents.current().map_or(IoendKind::Read, |mapping| run_kind(mapping, is_write))
    }
}

/// Returns what the file system must do when I/O to a mapping has ended.
pub(super) const fn run_kind(mapping: &Mapping, is_write: bool) -> IoendKind {
    match mapping.kind {
        _ if !is_write => IoendKind::Read,
        _ if mapping.shared => IoendKind::Shared,
        Kind::Unwritten { .. } => IoendKind::Unwritten,
        _ if mapping.new => IoendKind::New,
        _ => IoendKind::Overwrite,
    }
}
