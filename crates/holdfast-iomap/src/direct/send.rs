//! The bios of a request, from submission to their end.

use holdfast_bio::{Bio, BlockDevice, Ended, Error as BioError, Limits, Op};
use holdfast_iov::Memory;
use holdfast_units::{to_u64, to_usize};

use super::DirectIo;
use super::flight::{Kind, Part, Stage};
use crate::Error;

impl<D: BlockDevice, F: Copy + Ord, E: Clone> DirectIo<D, F, E> {
    /// Sends the next bio of data, which lies inside the current mapping.
    pub(super) fn send_data(&mut self, key: usize) {
        let limits = self.limits();
        let flight = &mut self.flights[key];
        let (at, left) = (flight.extents.at(), flight.extents.left());
        let mapping = flight.extents.current().expect("bytes of it are left");
        let address = mapping.address_of(at).expect("what has no place was dealt with");
        let chunk = limits.first_chunk(address, left, limits.bytes_max);
        let chunk = if chunk < left { flight.unit.align_down(chunk) } else { chunk };
        let request = &flight.request;
        if chunk == 0 {
            flight.fail(BioError::Range { offset: address, len: flight.unit.bytes() });
            return;
        }
        if request.flags.atomic && !flight.is_whole(chunk) {
            let (offset, len) = (request.offset, request.len);
            flight.fail(Error::NotAtomic { offset, len });
            return;
        }
        let ends = chunk == left;
        let tail = if ends && request.is_write() { flight.tail(at + chunk) } else { None };
        let is_only = flight.is_whole(chunk) && !flight.padded && tail.is_none();
        let flags = request.flags;
        let op = if request.is_write() { Op::Write } else { Op::Read };
        flight.durable = is_only && op == Op::Write && flags.dsync;
        let fits = flight.is_whole(chunk) && fits(&limits, &flight.request, address, chunk);
        let memory = if fits {
            std::mem::take(&mut flight.request.memory)
        } else {
            Memory::Iov(flight.take_memory(chunk))
        };
        let mut bio = Bio::new(op, address, chunk, memory);
        bio.start = if fits { flight.request.start } else { 0 };
        bio.fua = flight.durable;
        bio.atomic = flags.atomic;
        bio.polled = flags.polled && is_only;
        flight.push_run(at, chunk, flight.kind_of_run());
        flight.extents.advance(chunk);
        flight.done += chunk;
        flight.padded |= tail.is_some();
        flight.pad = tail;
        self.send_new(key, Kind::Data, bio);
    }

    /// Sends the next bio of what is filled in. Returns `false` when that must wait for a buffer.
    pub(super) fn send_pad(&mut self, key: usize) -> bool {
        let limits = self.limits();
        let flight = &mut self.flights[key];
        let pad = flight.pad.as_mut().expect("there is something to fill in");
        let piece = pad.first_piece(limits.granularity);
        let want = to_usize(piece).saturating_add(2 * limits.sector.len());
        let Some(buffer) = self.pool.take_or_reserve(want) else {
            if flight.request.flags.nowait {
                flight.fail(Error::Again);
            }
            return flight.error.is_some();
        };
        let room = buffer.len();
        let chunk = limits.first_chunk(pad.target, piece, room);
        // Too much is read of a piece of zeros only, whose source does not matter then.
        let chunk = pad.source.map_or(chunk, |source| limits.first_chunk(source, chunk, room));
        let chunk = limits.granularity.align_down(chunk);
        if chunk == 0 {
            let (offset, len) = (pad.target, pad.len);
            flight.fail(BioError::Range { offset, len });
            return true;
        }
        let now = pad.split_to(chunk);
        if pad.len == 0 {
            flight.pad = None;
        }
        let bio = match now.source.filter(|_| now.keeps()) {
            Some(source) => now.read(&limits, source, buffer),
            None => now.write(&limits, buffer),
        };
        self.send_new(key, Kind::Pad(now), bio);
        true
    }

    /// Sends a flush of the device.
    pub(super) fn send_flush(&mut self, key: usize) {
        self.flights[key].stage = Stage::Flush;
        let user = self.part(key, Kind::Flush);
        self.send(Bio::flush().with_user(user));
    }

    /// Sends a bio that is not the continuation of another.
    fn send_new(&mut self, key: usize, kind: Kind, bio: Bio) {
        let user = self.part(key, kind);
        let bio = bio.with_user(user);
        if !self.flights[key].request.flags.nowait {
            self.send(bio);
            return;
        }
        let refused =
            if self.backlog.is_empty() { self.device.submit(bio).err() } else { Some(bio) };
        if let Some(bio) = refused {
            self.flights[key].fail(Error::Again);
            self.release(bio);
        }
    }

    fn part(&mut self, flight: usize, kind: Kind) -> u64 {
        self.flights[flight].in_flight += 1;
        to_u64(self.parts.insert(Part { flight, kind }))
    }

    fn send(&mut self, bio: Bio) {
        let refused =
            if self.backlog.is_empty() { self.device.submit(bio).err() } else { Some(bio) };
        self.backlog.extend(refused);
    }

    /// Sends what found the queue full. What has failed meanwhile is not sent any more.
    pub(super) fn send_backlog(&mut self) {
        while let Some(bio) = self.backlog.pop_front() {
            let flight = self.parts[to_usize(bio.user)].flight;
            if self.flights[flight].error.is_some() {
                self.release(bio);
            } else if let Err(bio) = self.device.submit(bio) {
                self.backlog.push_front(bio);
                return;
            }
        }
    }

    /// Takes a bio that has ended, and lets go of it unless it goes on.
    pub(super) fn bio_ended(&mut self, mut ended: Ended) {
        let limits = self.limits();
        let part = &self.parts[to_usize(ended.bio.user)];
        let flight = &mut self.flights[part.flight];
        ended.result = ended.result.and_then(|moved| {
            let is_short = moved < ended.bio.len;
            let is_torn = is_short && ended.bio.atomic;
            if is_torn { Err(BioError::IO) } else { Ok(limits.granularity.align_down(moved)) }
        });
        let bio = match ended.into_rest() {
            Ok(rest) if flight.error.is_some() => return self.release(rest),
            Ok(rest) => return self.send(rest),
            Err(Ended { bio, result: Ok(_) }) => bio,
            Err(Ended { bio, result: Err(error) }) => {
                flight.fail(error);
                return self.release(bio);
            }
        };
        match (&part.kind, bio.memory) {
            (Kind::Pad(pad), Memory::Buffer(buffer))
                if bio.op == Op::Read && flight.error.is_none() =>
            {
                let write = pad.write(&limits, buffer).with_user(bio.user);
                self.send(write);
            }
            (_, memory) => self.release(Bio { memory, ..bio }),
        }
    }

    /// Lets go of a bio that is not in flight any more.
    fn release(&mut self, bio: Bio) {
        let part = self.parts.remove(to_usize(bio.user));
        let flight = &mut self.flights[part.flight];
        flight.in_flight -= 1;
        if let (Kind::Data, Memory::Buffer(buffer)) = (part.kind, bio.memory) {
            flight.request.memory = Memory::Buffer(buffer);
        }
        self.touched.push(part.flight);
    }
}

/// Returns whether the one bio of a request can have its buffer as it is.
fn fits<F>(limits: &Limits, request: &crate::Request<F>, address: u64, len: u64) -> bool {
    match &request.memory {
        Memory::Buffer(buffer) => {
            to_u64(request.start) == limits.sector.offset_in(address)
                && limits.whole_sectors(address, len) <= buffer.len()
        }
        Memory::Iov(_) | Memory::Shared(_) | Memory::None => false,
    }
}
