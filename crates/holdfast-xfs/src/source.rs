//! Blocking reads and writes of a device, several bios at a time.

use std::ops::Range;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, Op};
use holdfast_iov::{BUFFER_MAX, Buffer, Memory, Pool};
use holdfast_units::{to_u64, to_usize};
use slab::Slab;

use crate::error::{Place, XfsError};

/// The memory that is read into, in bytes.
const POOL: usize = 8 * BUFFER_MAX;

/// One queue of a device.
#[derive(Debug)]
pub(crate) struct Source<D> {
    device: D,
    limits: Limits,
    pool: Pool,
    in_flight: Slab<Chunk>,
    ended: Vec<Ended>,
}

/// A part of what is read: from where, and which bytes of the target it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// In bytes from the start of the device.
    pub(crate) address: u64,
    pub(crate) target: Range<usize>,
}

/// What one bio is for.
#[derive(Debug)]
struct Chunk {
    /// How many bytes at its beginning nobody asked for.
    skip: usize,
    /// How many bytes there must be.
    needed: usize,
    /// How many bytes have been read.
    done: usize,
    target: Range<usize>,
}

impl<D: BlockDevice> Source<D> {
    pub(crate) fn new(device: D) -> Result<Self, XfsError> {
        let pool =
            Pool::new(POOL).map_err(|error| XfsError::Memory { source: Error::from(&error) })?;
        let limits = device.limits();
        Ok(Self { device, limits, pool, in_flight: Slab::new(), ended: Vec::new() })
    }

    /// Returns the size of the device, in bytes.
    pub(crate) const fn capacity(&self) -> u64 {
        self.limits.capacity
    }

    pub(crate) const fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) const fn device(&self) -> &D {
        &self.device
    }

    pub(crate) const fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    /// Reads one piece, as long as the target.
    pub(crate) fn read_at(&mut self, address: u64, target: &mut [u8]) -> Result<(), XfsError> {
        let piece = Piece { address, target: 0..target.len() };
        self.read(std::iter::once(piece), target)
    }

    /// Reads all pieces. The first error counts; the target then holds bytes of no meaning.
    pub(crate) fn read(
        &mut self,
        pieces: impl Iterator<Item = Piece>,
        target: &mut [u8],
    ) -> Result<(), XfsError> {
        let mut result = Ok(());
        for piece in pieces {
            self.read_piece(&piece, target, &mut result);
            if result.is_err() {
                break;
            }
        }
        while !self.in_flight.is_empty() {
            self.collect(target, &mut result);
        }
        result
    }

    /// Writes bytes anywhere. What the device writes with them is read first.
    pub(crate) fn write_at(&mut self, address: u64, bytes: &[u8]) -> Result<(), XfsError> {
        // A part of a sector could be written, but not from the beginning of a buffer.
        let unit = self.limits.granularity.max(self.limits.sector);
        let first = unit.align_down(address);
        let whole = unit.align_up(address + to_u64(bytes.len()));
        let range = Error::Range { offset: address, len: to_u64(bytes.len()) };
        let last = whole.filter(|&last| last <= self.limits.capacity);
        let last = last.ok_or_else(|| unwritten(address, range))?;
        let mut all = vec![0; to_usize(last - first)];
        if all.len() != bytes.len() {
            self.read_at(first, &mut all)?;
        }
        all[to_usize(address - first)..][..bytes.len()].copy_from_slice(bytes);
        let mut at = first;
        while at < last {
            let chunk = self.limits.first_chunk(at, last - at, BUFFER_MAX);
            // The device completes the sectors itself, so that who writes beside it loses nothing.
            let start = to_usize(self.limits.sector.offset_in(at));
            let buffer = self.pool.take_whole(self.limits.whole_sectors(at, chunk));
            let mut buffer = buffer.expect("no buffer is in use between calls");
            let bytes = &all[to_usize(at - first)..][..to_usize(chunk)];
            buffer.as_mut_slice()[start..start + bytes.len()].copy_from_slice(bytes);
            let bio = Bio::new(Op::Write, at, chunk, Memory::Buffer(buffer)).with_start(start);
            self.write_whole(bio)?;
            at += chunk;
        }
        Ok(())
    }

    fn write_whole(&mut self, mut bio: Bio) -> Result<(), XfsError> {
        loop {
            match self.device.run(bio).into_rest() {
                Ok(rest) => bio = rest,
                Err(Ended { bio, result }) => {
                    return result.map(drop).map_err(|error| unwritten(bio.offset, error));
                }
            }
        }
    }

    /// Makes durable what was written, by whichever queue.
    pub(crate) fn flush(&mut self) -> Result<(), XfsError> {
        self.device.run(Bio::flush()).result.map(drop).map_err(|error| unwritten(0, error))
    }

    /// Submits the bios of a piece.
    fn read_piece(&mut self, piece: &Piece, target: &mut [u8], result: &mut Result<(), XfsError>) {
        let len = to_u64(piece.target.len());
        let end = piece.address.checked_add(len).filter(|&end| end <= self.limits.capacity);
        // Whole sectors, which a volume reads to verify them in any case.
        let sector = self.limits.sector;
        let Some((end, whole_end)) = end.and_then(|end| Some((end, sector.align_up(end)?))) else {
            let source = Error::Range { offset: piece.address, len };
            *result = Err(failed(piece.address, source));
            return;
        };
        let mut at = sector.align_down(piece.address);
        while at < end {
            // The last sector of a file that is cut off may be short.
            let chunk = self.limits.first_chunk(at, whole_end - at, BUFFER_MAX);
            let from = at.max(piece.address);
            let until = (at + chunk).min(end);
            let target_at = piece.target.start + to_usize(from - piece.address);
            let job = Chunk {
                skip: to_usize(from - at),
                needed: to_usize(until - at),
                done: 0,
                target: target_at..target_at + to_usize(until - from),
            };
            let buffer = self.take(to_usize(chunk), target, result);
            let user = to_u64(self.in_flight.insert(job));
            let bio = Bio::new(Op::Read, at, chunk, Memory::Buffer(buffer)).with_user(user);
            self.submit(bio, target, result);
            at += chunk;
        }
    }

    /// Takes a buffer, after waiting for one.
    fn take(&mut self, len: usize, target: &mut [u8], result: &mut Result<(), XfsError>) -> Buffer {
        loop {
            if let Some(buffer) = self.pool.take_whole(len) {
                return buffer;
            }
            self.collect(target, result);
        }
    }

    fn submit(&mut self, bio: Bio, target: &mut [u8], result: &mut Result<(), XfsError>) {
        let mut waiting = Some(bio);
        while let Some(bio) = waiting.take() {
            waiting = self.device.submit(bio).err();
            if waiting.is_some() {
                self.collect(target, result);
            }
        }
    }

    /// Waits for bios to end, and copies what they read.
    fn collect(&mut self, target: &mut [u8], result: &mut Result<(), XfsError>) {
        self.device.wait();
        let mut ended = std::mem::take(&mut self.ended);
        self.device.reap(&mut ended);
        if ended.is_empty() {
            // What we wait for may be in another thread's hands.
            std::thread::yield_now();
        }
        for ended in ended.drain(..) {
            self.go_on(ended, target, result);
        }
        self.ended = ended;
    }

    /// Copies what a bio read, or reads the rest when that was too little.
    fn go_on(&mut self, ended: Ended, target: &mut [u8], result: &mut Result<(), XfsError>) {
        let key = to_usize(ended.bio.user);
        let chunk = &mut self.in_flight[key];
        chunk.done += ended.result.map_or(0, to_usize);
        // Nobody needs the rest of the last sector, and it may not be there.
        let ended = if chunk.done >= chunk.needed { Err(ended) } else { ended.into_rest() };
        match ended {
            Ok(rest) => self.submit(rest, target, result),
            Err(Ended { bio, result: moved }) => {
                let chunk = self.in_flight.remove(key);
                if let Err(source) = moved {
                    return fail(result, failed(bio.offset, source));
                }
                let bytes = bio.memory.buffer().map(Buffer::as_slice).unwrap_or_default();
                target[chunk.target].copy_from_slice(&bytes[chunk.skip..chunk.needed]);
            }
        }
    }
}

/// Keeps the first error.
pub(crate) fn fail(result: &mut Result<(), XfsError>, error: XfsError) {
    if result.is_ok() {
        *result = Err(error);
    }
}

pub(crate) const fn failed(address: u64, source: Error) -> XfsError {
    XfsError::Device { place: Place { ino: None, address: Some(address) }, source }
}

const fn unwritten(address: u64, source: Error) -> XfsError {
    XfsError::Write { place: Place { ino: None, address: Some(address) }, source }
}

#[cfg(test)]
mod tests {
    use holdfast_device::MemoryDevice;
    use holdfast_sim::{Faults, FaultyDevice};
    use holdfast_units::BlockSize;
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 4 << 20;

    fn byte(at: usize) -> u8 {
        to_u64(at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]
    }

    /// A device that moves less than it was asked to, also less than a sector.
    fn source(seed: u64) -> Source<FaultyDevice<MemoryDevice>> {
        let device = MemoryDevice::new(to_u64(SIZE));
        let bytes: Vec<u8> = (0..SIZE).map(byte).collect();
        device.store(0, &bytes);
        let faults =
            Faults { short_percent: 50, full_percent: 20, reorder: true, ..Faults::default() };
        let mut source = Source::new(FaultyDevice::new(device, faults, seed)).unwrap();
        source.limits.sector = BlockSize::PAGE;
        source
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn pieces_of_any_place_and_length_are_read(
            pieces in proptest::collection::vec((0..SIZE / 2, 0..SIZE / 2), 1..6),
            seed: u64,
        ) {
            let mut source = source(seed);
            let mut expected = Vec::new();
            let mut wanted = Vec::new();
            for (at, len) in pieces {
                let start = expected.len();
                expected.extend((at..at + len).map(byte));
                wanted.push(Piece { address: to_u64(at), target: start..expected.len() });
            }
            let mut target = vec![0; expected.len()];
            source.read(wanted.into_iter(), &mut target).unwrap();
            prop_assert!(target == expected);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_bytes_are_written_and_nothing_beside_them(
            at in 0..SIZE,
            len in 0..70_000_usize,
            seed: u64,
        ) {
            let mut source = source(seed);
            let len = len.min(SIZE - at);
            let bytes: Vec<u8> = (0..len).map(|index| !byte(at + index)).collect();
            source.write_at(to_u64(at), &bytes).unwrap();
            let mut all = vec![0; SIZE];
            source.read_at(0, &mut all).unwrap();
            let expected = |index: usize| {
                if (at..at + len).contains(&index) { !byte(index) } else { byte(index) }
            };
            prop_assert!(all.iter().enumerate().all(|(index, &found)| found == expected(index)));
        }
    }

    /// A device that asks for the room of whole sectors when a part of them is written, as a volume.
    struct Sectors(MemoryDevice);

    impl BlockDevice for Sectors {
        fn limits(&self) -> Limits {
            Limits { sector: BlockSize::PAGE, ..self.0.limits() }
        }

        fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
            let limits = self.limits();
            let len = bio.memory.len();
            assert_eq!(to_u64(bio.start), limits.sector.offset_in(bio.offset));
            assert!(limits.whole_sectors(bio.offset, bio.len) <= len, "{} bytes", bio.len);
            self.0.submit(bio)
        }

        fn reap(&mut self, ended: &mut Vec<Ended>) {
            self.0.reap(ended);
        }

        fn wait(&mut self) {
            self.0.wait();
        }
    }

    #[test]
    fn a_part_of_a_sector_is_written_from_where_it_is_in_the_sector() {
        for (at, len) in [(512, 512), (0, 512), (3584, 8192), (1024, 2 << 20)] {
            let mut source = Source::new(Sectors(MemoryDevice::new(to_u64(SIZE)))).unwrap();
            source.write_at(at, &vec![7; len]).unwrap();
            let mut all = vec![0; SIZE];
            source.read_at(0, &mut all).unwrap();
            let range = to_usize(at)..to_usize(at) + len;
            assert!(
                all.iter()
                    .enumerate()
                    .all(|(index, &found)| (found == 7) == range.contains(&index))
            );
        }
    }

    #[test]
    fn what_lies_outside_the_device_is_an_error() {
        for address in [to_u64(SIZE) - 511, to_u64(SIZE), u64::MAX] {
            let error = source(1).read_at(address, &mut [0; 512]).unwrap_err();
            assert!(matches!(error, XfsError::Device { source: Error::Range { .. }, .. }));
        }
    }
}
