//! Where data and holes of a file are, as lseek(2) tells it.

use holdfast_xfs_format::Geometry;

use super::{ExtentList, MappingState};

impl ExtentList {
    /// Returns the first byte from `offset` on that is stored, of a file of `size` bytes, or `None`
    /// when there is none. What was reserved and never written is not stored.
    pub fn data_after(&self, offset: u64, size: u64, geometry: &Geometry) -> Option<u64> {
        self.first(true, offset, size, geometry)
    }

    /// Returns the first byte from `offset` on that is not stored, of a file of `size` bytes, or `None`
    /// when the file ends before `offset`. Every file has a hole at its end.
    pub fn hole_after(&self, offset: u64, size: u64, geometry: &Geometry) -> Option<u64> {
        let found = self.first(false, offset, size, geometry);
        found.or_else(|| (offset < size).then_some(size))
    }

    fn first(&self, stored: bool, offset: u64, size: u64, geometry: &Geometry) -> Option<u64> {
        let mut at = offset;
        while at < size {
            let mapping = self.map(at, geometry);
            if matches!(mapping.state, MappingState::Mapped { .. }) == stored {
                return Some(at);
            }
            at = mapping.end();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use holdfast_xfs_format::{Extent, FileBlock, FsBlock};

    use super::super::tests::geometry;
    use super::*;

    /// Data in blocks 1 and 2, a reserved block 3, data in block 6.
    fn list() -> ExtentList {
        let extent = |file, blocks, unwritten| {
            let (file, block) = (FileBlock(file), FsBlock(100 + file));
            Extent { file, block, blocks, unwritten }
        };
        ExtentList::from(vec![extent(1, 2, false), extent(3, 1, true), extent(6, 1, false)])
    }

    #[test]
    fn data_begin_at_extents_that_were_written() {
        let (list, geometry) = (list(), geometry());
        let after = |offset| list.data_after(offset, 7 * 4096 - 5, &geometry);
        assert_eq!([0, 4095, 5000].map(after), [Some(4096), Some(4096), Some(5000)]);
        let rest = [3 * 4096, 6 * 4096 + 1, 7 * 4096 - 6, 7 * 4096 - 5].map(after);
        assert_eq!(rest, [Some(6 * 4096), Some(6 * 4096 + 1), Some(7 * 4096 - 6), None]);
    }

    #[test]
    fn reserved_space_and_the_end_are_holes() {
        let (list, geometry) = (list(), geometry());
        let after = |offset| list.hole_after(offset, 7 * 4096 - 5, &geometry);
        assert_eq!([7, 4096, 3 * 4096].map(after), [Some(7), Some(3 * 4096), Some(3 * 4096)]);
        assert_eq!([6 * 4096, 7 * 4096 - 5].map(after), [Some(7 * 4096 - 5), None]);
    }

    #[test]
    fn data_behind_the_end_are_none() {
        assert_eq!(list().data_after(2 * 4096, 2 * 4096, &geometry()), None);
        assert_eq!(list().data_after(0, 4096, &geometry()), None);
    }
}
