//! Where the bytes of a file are.

mod seek;

use holdfast_iomap as iomap;
use holdfast_units::to_u64;
use holdfast_xfs_format::{Extent, FileBlock, FormatError, Geometry, RawExtent, Structure};

/// A part of a file that is stored in one way, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Where it begins in the file, a multiple of the block size.
    pub offset: u64,
    /// How long it is. The last one is a hole that goes on to 2^63.
    pub len: u64,
    /// How it is stored.
    pub state: MappingState,
}

/// How a part of a file is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MappingState {
    /// Not at all: it reads as zeros.
    Hole,
    /// At this byte from the start of the device.
    Mapped {
        /// The byte.
        address: u64,
    },
    /// Space is reserved at this byte from the start of the device, and it reads as zeros.
    Unwritten {
        /// The byte.
        address: u64,
    },
}

impl Mapping {
    /// Returns the byte of the file at which it ends.
    pub const fn end(&self) -> u64 {
        self.offset + self.len
    }
}

impl From<Mapping> for iomap::Mapping {
    fn from(mapping: Mapping) -> Self {
        let kind = match mapping.state {
            MappingState::Hole => iomap::Kind::Hole,
            MappingState::Mapped { address } => iomap::Kind::Mapped { address },
            MappingState::Unwritten { address } => iomap::Kind::Unwritten { address },
        };
        Self::new(mapping.offset, mapping.len, kind)
    }
}

/// All extents of a file, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExtentList {
    extents: Vec<Extent>,
}

/// Where every file ends, in bytes.
const FILE_END: u64 = 1 << 63;

impl ExtentList {
    /// Returns the extents, in blocks.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Returns the extent that holds a block of the file, or the next one behind it.
    pub fn at_or_after(&self, block: FileBlock) -> Option<&Extent> {
        self.extents.get(self.index(block))
    }

    /// Returns the extent that holds a block of the file.
    pub fn find(&self, block: FileBlock) -> Option<&Extent> {
        self.at_or_after(block).filter(|extent| extent.file <= block)
    }

    fn index(&self, block: FileBlock) -> usize {
        self.extents.partition_point(|extent| extent.file_end() <= block.0)
    }

    /// Returns the extent or the hole that holds a byte of the file, as a whole. No file reaches
    /// 2^63.
    pub fn map(&self, offset: u64, geometry: &Geometry) -> Mapping {
        let block = geometry.block;
        let index = self.index(FileBlock(block.count(offset)));
        let bytes = |blocks: u64| blocks << block.bytes().trailing_zeros();
        let next = self.extents.get(index);
        if let Some(extent) = next.filter(|extent| bytes(extent.file.0) <= offset) {
            // Extents were checked to lie inside the file system.
            let address = geometry.address_of(extent.block).expect("an extent has an address");
            let state = if extent.unwritten {
                MappingState::Unwritten { address }
            } else {
                MappingState::Mapped { address }
            };
            return Mapping { offset: bytes(extent.file.0), len: bytes(extent.blocks), state };
        }
        let before = index.checked_sub(1).and_then(|index| self.extents.get(index));
        let start = before.map_or(0, |extent| bytes(extent.file_end()));
        let end = next.map_or(FILE_END, |extent| bytes(extent.file.0));
        Mapping { offset: start, len: end - start, state: MappingState::Hole }
    }

    /// Returns all extents as parts of the file, without holes.
    pub fn mappings<'a>(&'a self, geometry: &'a Geometry) -> impl Iterator<Item = Mapping> + 'a {
        let start = |extent: &Extent| extent.file.0 << geometry.block.bytes().trailing_zeros();
        self.extents.iter().map(move |extent| self.map(start(extent), geometry))
    }

    /// Returns how much memory it takes.
    pub(crate) const fn weight(&self) -> usize {
        self.extents.capacity() * size_of::<Extent>()
    }

    /// Appends extents as they are stored, which must follow each other.
    pub(crate) fn append(
        &mut self,
        raw: &[RawExtent],
        geometry: &Geometry,
    ) -> Result<(), FormatError> {
        for raw in raw {
            let extent = Extent::parse(raw, geometry, self.end())?;
            self.extents.push(extent);
        }
        Ok(())
    }

    /// Checks that a list that was read to its end has as many extents as its inode says.
    pub(crate) fn check_count(&self, expected: u64) -> Result<(), FormatError> {
        let found = to_u64(self.extents.len());
        if found == expected {
            return Ok(());
        }
        let (structure, field) = (Structure::Inode, "count of extents");
        Err(FormatError::Value { structure, field, expected: found, found: expected })
    }

    /// Returns the block of the file behind the last extent.
    pub(crate) fn end(&self) -> u64 {
        self.extents.last().map_or(0, Extent::file_end)
    }
}

#[cfg(test)]
impl From<Vec<Extent>> for ExtentList {
    fn from(extents: Vec<Extent>) -> Self {
        Self { extents }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use holdfast_units::BlockSize;
    use holdfast_xfs_format::FsBlock;
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn geometry() -> Geometry {
        Geometry {
            block: BlockSize::PAGE,
            sector: BlockSize::SECTOR,
            inode: BlockSize::SECTOR,
            dir_block: BlockSize::PAGE,
            blocks: 1 << 20,
            ag_count: 1,
            ag_blocks: 1 << 20,
            ag_block_bits: 20,
            inode_bits: 3,
        }
    }

    proptest! {
        #[test]
        fn every_byte_is_in_the_mapping_that_is_returned(
            runs in proptest::collection::vec((0..4_u64, 1..5_u64, any::<bool>()), 0..20),
            offset in 0..1_u64 << 20,
        ) {
            let mut list = ExtentList::default();
            // One number for each block: 0 in a hole, else its address, odd when it is unwritten.
            let mut model = Vec::new();
            let mut place = 100;
            for (gap, blocks, unwritten) in runs {
                model.extend((0..gap).map(|_| 0));
                let file = FileBlock(to_u64(model.len()));
                list.extents.push(Extent { file, block: FsBlock(place), blocks, unwritten });
                model.extend((place..place + blocks).map(|at| at * 4096 + u64::from(unwritten)));
                place += blocks + 1;
            }
            let geometry = geometry();
            let mapping = list.map(offset, &geometry);
            prop_assert!(mapping.offset <= offset && offset < mapping.end());
            let block = holdfast_units::to_usize(offset / 4096);
            let inside = (offset - mapping.offset) / 4096 * 4096;
            let found = match mapping.state {
                MappingState::Hole => 0,
                MappingState::Mapped { address } => address + inside,
                MappingState::Unwritten { address } => address + inside + 1,
            };
            prop_assert_eq!(found, model.get(block).copied().unwrap_or(0));
        }
    }

    #[test]
    fn the_last_hole_goes_on_to_the_end_of_every_file() {
        let mapping = ExtentList::default().map(i64::MAX.unsigned_abs(), &geometry());
        assert_eq!(mapping, Mapping { offset: 0, len: 1 << 63, state: MappingState::Hole });
    }
}
