//! Reading the data of files beside the file system, on another queue of its device.

use std::fmt;
use std::ops::Range;

use holdfast_bio::{Bio, BlockDevice, Ended, Op};
use holdfast_iov::{IovIter, Memory, lend_mut};
use holdfast_units::{BlockSize, to_u64, to_usize};
use holdfast_xfs_format::Geometry;

use crate::error::XfsError;
use crate::extents::{ExtentList, MappingState};
use crate::inode::Inode;
use crate::mount::of;
use crate::source::{Piece, Source, fail, failed};

/// Reads the data of files of which the extents are known, while others use the
/// [`Xfs`](crate::Xfs).
///
/// What is read goes into memory that is reused by the next read, without another copy where the
/// device takes blocks of the file system as they are.
pub struct Reader<D> {
    source: Source<D>,
    geometry: Geometry,
    /// What the bounds of a read and its memory must be multiples of.
    unit: BlockSize,
    memory: Vec<u8>,
    ended: Vec<Ended>,
}

impl<D: BlockDevice + fmt::Debug> fmt::Debug for Reader<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("source", &self.source).finish_non_exhaustive()
    }
}

impl<D: BlockDevice> Reader<D> {
    /// Uses another queue of the device that a file system of this geometry is on.
    ///
    /// # Errors
    ///
    /// [`XfsError::Memory`].
    pub fn new(device: D, geometry: &Geometry) -> Result<Self, XfsError> {
        let source = Source::new(device)?;
        let limits = source.limits();
        let unit = limits.granularity.max(limits.sector).max(limits.memory_alignment);
        let unit = unit.max(BlockSize::SECTOR);
        let (memory, ended) = (Vec::new(), Vec::new());
        Ok(Self { source, geometry: *geometry, unit, memory, ended })
    }

    /// Reads `len` bytes of a file from byte `offset` on, and returns them: fewer only at its end.
    /// Holes and what was reserved and never written are zeros.
    ///
    /// # Errors
    ///
    /// Whatever the device says.
    pub fn read(
        &mut self,
        inode: &Inode,
        extents: &ExtentList,
        offset: u64,
        len: usize,
    ) -> Result<&[u8], XfsError> {
        let end = offset.saturating_add(to_u64(len)).min(inode.size());
        self.bytes(extents, offset..end).map_err(|error| of(inode.ino(), error))
    }

    fn bytes(&mut self, extents: &ExtentList, bytes: Range<u64>) -> Result<&[u8], XfsError> {
        if bytes.is_empty() {
            return Ok(&[]);
        }
        let is_in_place = self.geometry.block >= self.unit;
        let unit = if is_in_place { self.unit } else { BlockSize::SECTOR };
        let first = unit.align_down(bytes.start);
        let last = unit.align_up(bytes.end).unwrap_or(bytes.end);
        let room = self.room(to_usize(last - first));
        let target = &mut self.memory[room.clone()];
        let pieces = plan(extents, &self.geometry, first, target);
        if is_in_place {
            let (source, ended) = (&mut self.source, &mut self.ended);
            let mut reading = Reading { source, in_flight: 0, ended, result: Ok(()) };
            lend_mut(target, |memory| reading.run(&pieces, memory));
            reading.result?;
        } else {
            self.source.read(pieces.into_iter(), target)?;
        }
        let skip = to_usize(bytes.start - first);
        Ok(&self.memory[room][skip..skip + to_usize(bytes.end - bytes.start)])
    }

    /// Returns where in the memory there is room for `len` bytes, so that its address is aligned.
    fn room(&mut self, len: usize) -> Range<usize> {
        let needed = len + self.unit.len();
        if self.memory.len() < needed {
            self.memory = vec![0; needed];
        }
        let misalignment = to_usize(self.unit.offset_in(to_u64(self.memory.as_ptr().addr())));
        let start = if misalignment == 0 { 0 } else { self.unit.len() - misalignment };
        start..start + len
    }
}

/// Returns the pieces that a target is made of from byte `offset` of a file on. What is not stored is
/// made zeros.
pub(crate) fn plan(
    extents: &ExtentList,
    geometry: &Geometry,
    offset: u64,
    target: &mut [u8],
) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut done = 0;
    while done < target.len() {
        let at = offset + to_u64(done);
        let mapping = extents.map(at, geometry);
        let end = done + to_usize((mapping.end() - at).min(to_u64(target.len() - done)));
        match mapping.state {
            MappingState::Mapped { address } => {
                let address = address + (at - mapping.offset);
                pieces.push(Piece { address, target: done..end });
            }
            MappingState::Hole | MappingState::Unwritten { .. } => target[done..end].fill(0),
        }
        done = end;
    }
    pieces
}

/// How much one bio of a read moves at most, in bytes. Several at a time are faster than a large one.
const PART: usize = 256 << 10;

/// One read into memory that was lent.
struct Reading<'a, D> {
    source: &'a mut Source<D>,
    in_flight: usize,
    ended: &'a mut Vec<Ended>,
    /// The first error.
    result: Result<(), XfsError>,
}

impl<D: BlockDevice> Reading<'_, D> {
    /// Submits all pieces, and waits until nothing has the memory any more.
    fn run(&mut self, pieces: &[Piece], mut memory: IovIter) {
        let limits = *self.source.limits();
        let mut at = 0;
        for piece in pieces {
            memory.advance(piece.target.start - at);
            at = piece.target.end;
            let (mut address, end) = (piece.address, piece.address + to_u64(piece.target.len()));
            while address < end {
                let len = limits.first_chunk(address, end - address, PART);
                let part = memory.split_to(to_usize(len));
                self.in_flight += 1;
                self.submit(Bio::new(Op::Read, address, len, Memory::Iov(part)));
                address += len;
            }
        }
        drop(memory);
        while self.in_flight > 0 {
            self.collect();
        }
    }

    fn submit(&mut self, bio: Bio) {
        let mut waiting = Some(bio);
        while let Some(bio) = waiting.take() {
            waiting = self.source.device_mut().submit(bio).err();
            if waiting.is_some() {
                self.collect();
            }
        }
    }

    fn collect(&mut self) {
        self.source.device_mut().wait();
        let mut ended = std::mem::take(self.ended);
        self.source.device_mut().reap(&mut ended);
        if ended.is_empty() {
            // What we wait for may be in another thread's hands.
            std::thread::yield_now();
        }
        for ended in ended.drain(..) {
            self.settle(ended);
        }
        *self.ended = ended;
    }

    /// Goes on with a bio that moved too little, and is done with any other.
    fn settle(&mut self, ended: Ended) {
        match ended.into_rest() {
            Ok(rest) => self.submit(rest),
            Err(Ended { bio, result }) => {
                self.in_flight -= 1;
                if let Err(error) = result {
                    fail(&mut self.result, failed(bio.offset, error));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_device::MemoryDevice;
    use holdfast_xfs_format::{Extent, FileBlock, FsBlock};
    use proptest::prelude::*;

    use super::*;
    use crate::extents::tests::geometry;

    const BLOCKS: usize = 64;
    const BLOCK: usize = 4096;

    fn byte(at: usize) -> u8 {
        to_u64(at ^ (at >> 8) ^ (at >> 16)).to_le_bytes()[0]
    }

    /// A device that limits its bios as a volume does, by sectors and groups, and moves too little.
    struct Strict {
        device: MemoryDevice,
        sector: BlockSize,
    }

    impl BlockDevice for Strict {
        fn limits(&self) -> holdfast_bio::Limits {
            let boundary = BlockSize::new(8 * 4096);
            holdfast_bio::Limits { sector: self.sector, boundary, ..self.device.limits() }
        }

        fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
            assert_eq!(self.limits().to_boundary(bio.offset, bio.len), bio.len);
            if matches!(bio.memory, Memory::Iov(_)) {
                assert!(self.sector.is_aligned(bio.offset) && self.sector.is_aligned(bio.len));
            }
            self.device.submit(bio)
        }

        fn reap(&mut self, ended: &mut Vec<Ended>) {
            self.device.reap(ended);
            // Half of what it did: the kernel moves fewer bytes than it was asked to as well.
            for moved in ended.iter_mut().filter_map(|item| item.result.as_mut().ok()) {
                *moved = self.sector.align_up(*moved / 2).map_or(*moved, |half| half.min(*moved));
            }
        }

        fn wait(&mut self) {
            self.device.wait();
        }
    }

    fn reader(sector: u64) -> Reader<Strict> {
        let device = MemoryDevice::new(to_u64(BLOCKS * BLOCK));
        device.store(0, &(0..BLOCKS * BLOCK).map(byte).collect::<Vec<u8>>());
        let sector = BlockSize::new(sector).unwrap();
        Reader::new(Strict { device, sector }, &geometry()).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_is_stored_is_read_and_all_else_is_zeros(
            runs in proptest::collection::vec((0..4_usize, 1..9_usize, any::<bool>()), 0..6),
            reads in proptest::collection::vec((0..1_u64 << 18, 0..1_u64 << 17), 1..4),
            sector in prop::sample::select(vec![512_u64, 4096, 8192]),
        ) {
            let (mut model, mut extents, mut place) = (Vec::new(), Vec::new(), 1);
            for (gap, blocks, unwritten) in runs {
                model.resize(model.len() + gap * BLOCK, 0);
                let file = FileBlock(to_u64(model.len() / BLOCK));
                let block = FsBlock(to_u64(place));
                extents.push(Extent { file, block, blocks: to_u64(blocks), unwritten });
                let stored = (place * BLOCK..(place + blocks) * BLOCK).map(byte);
                model.extend(stored.map(|byte| if unwritten { 0 } else { byte }));
                place += blocks + 1;
            }
            model.resize(1 << 19, 0);
            let list = ExtentList::from(extents);
            let mut reader = reader(sector);
            for (offset, len) in reads {
                let found = reader.bytes(&list, offset..offset + len).unwrap();
                prop_assert!(found == &model[to_usize(offset)..to_usize(offset + len)]);
            }
        }
    }

    #[test]
    fn what_lies_behind_the_end_of_the_device_is_an_error_and_the_next_read_is_not() {
        let extent = |file, block| Extent {
            file: FileBlock(file),
            block: FsBlock(block),
            blocks: 1,
            unwritten: false,
        };
        let list = ExtentList::from(vec![extent(0, 1), extent(1, to_u64(BLOCKS))]);
        let mut reader = reader(4096);
        let error = reader.bytes(&list, 0..8192).unwrap_err();
        assert!(matches!(error, XfsError::Device { .. }), "{error}");
        assert_eq!(reader.bytes(&list, 10..12).unwrap(), [byte(4106), byte(4107)]);
    }
}
