//! Sparse bytes. Nothing here knows what is durable.

use std::sync::Arc;

use holdfast_units::{BlockSize, to_u64, to_usize};

const PAGE: usize = BlockSize::PAGE.len();

/// Bytes of which clones share what neither has changed.
#[derive(Clone, Debug)]
pub(super) struct Pages {
    /// `None` is a hole.
    pages: Vec<Option<Arc<[u8; PAGE]>>>,
}

impl Pages {
    /// Returns `capacity` bytes of holes.
    pub(super) fn new(capacity: u64) -> Self {
        Self { pages: vec![None; to_usize(capacity.div_ceil(BlockSize::PAGE.bytes()))] }
    }

    pub(super) fn read(&self, offset: u64, target: &mut [u8]) {
        for (page, at, piece) in BlockSize::PAGE.pieces(offset, target.len()) {
            let target = &mut target[piece];
            match &self.pages[to_usize(page)] {
                Some(page) => target.copy_from_slice(&page[at..][..target.len()]),
                None => target.fill(0),
            }
        }
    }

    pub(super) fn write(&mut self, offset: u64, source: &[u8]) {
        for (page, at, piece) in BlockSize::PAGE.pieces(offset, source.len()) {
            let source = &source[piece];
            match source.as_array() {
                Some(whole) => self.pages[to_usize(page)] = Some(Arc::new(*whole)),
                None => self.page_mut(to_usize(page))[at..][..source.len()].copy_from_slice(source),
            }
        }
    }

    /// Makes bytes zeros, and whole pages holes.
    pub(super) fn discard(&mut self, offset: u64, len: u64) {
        for (page, at, piece) in BlockSize::PAGE.pieces(offset, to_usize(len)) {
            if piece.len() == PAGE {
                self.pages[to_usize(page)] = None;
            } else if self.pages[to_usize(page)].is_some() {
                self.page_mut(to_usize(page))[at..][..piece.len()].fill(0);
            }
        }
    }

    /// Returns the first offset from `offset` on that is in no hole.
    pub(super) fn data_after(&self, offset: u64) -> Option<u64> {
        let first = to_usize(BlockSize::PAGE.count(offset));
        let found = (first..self.pages.len()).find(|&page| self.pages[page].is_some())?;
        Some(offset.max(to_u64(found * PAGE)))
    }

    fn page_mut(&mut self, page: usize) -> &mut [u8; PAGE] {
        Arc::make_mut(self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE])))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_keeps_what_it_was_cloned_with() {
        let mut pages = Pages::new(1 << 20);
        pages.write(4000, &[7; 5000]);
        let before = pages.clone();
        pages.write(4096, &[8; 4096]);
        pages.write(0, &[9; 512]);
        let mut bytes = [0; 5000];
        before.read(4000, &mut bytes);
        assert_eq!(bytes, [7; 5000]);
    }

    #[test]
    fn a_discarded_page_is_a_hole() {
        let mut pages = Pages::new(1 << 20);
        pages.write(8192, &[7; 8192]);
        pages.discard(8192, 4608);
        assert_eq!((pages.data_after(0), pages.data_after(13000)), (Some(12288), Some(13000)));
        let mut bytes = [1; 1024];
        pages.read(12288, &mut bytes);
        assert_eq!((bytes[511], bytes[512]), (0, 7));
    }
}
