//! The memory of the guest that requests take their pages from, in no order.

use std::ops::Range;

use holdfast_virtio_driver::Memory;

use crate::random::Random;

/// The bytes of a page.
pub(crate) const PAGE: u64 = 4096;

/// Pages of guest memory, by the order of their addresses.
#[derive(Debug)]
pub(crate) struct Arena {
    /// Each page's guest address, and whether nobody has it.
    pages: Vec<(u64, bool)>,
    /// The page that everybody may use at a time.
    dummy: u64,
}

/// Pages that follow each other in guest memory, until they are given back.
#[derive(Debug)]
pub(crate) struct Run {
    first: usize,
    pages: usize,
    /// The guest address of the first.
    pub(crate) address: u64,
}

impl Run {
    /// Returns how many bytes there are.
    pub(crate) fn len(&self) -> u64 {
        holdfast_units::to_u64(self.pages) * PAGE
    }
}

impl Arena {
    /// Takes all memory that is left, with what lies in two regions.
    pub(crate) fn new(memory: &Memory) -> Self {
        let mut ranges: Vec<Range<u64>> = memory.border().into_iter().collect();
        for region in 0..memory.guest().regions().len() {
            for len in [4 << 20, 1 << 20, 64 << 10, PAGE] {
                while let Ok(address) = memory.allocate_in(region, len, PAGE) {
                    ranges.push(address..address + len);
                }
            }
        }
        Self::of(ranges)
    }

    fn of(mut ranges: Vec<Range<u64>>) -> Self {
        ranges.sort_unstable_by_key(|range| range.start);
        let step = holdfast_units::to_usize(PAGE);
        let mut pages: Vec<_> =
            ranges.into_iter().flat_map(|range| range.step_by(step)).map(|at| (at, true)).collect();
        let (dummy, _) = pages.pop().expect("a guest has some memory");
        Self { pages, dummy }
    }

    /// Returns so many bytes in three ranges, of which two are neighbours.
    #[cfg(test)]
    pub(crate) fn for_tests(bytes: u64) -> Self {
        const FAR: u64 = 1 << 36;
        Self::of(vec![PAGE..PAGE + bytes, FAR..FAR + bytes, PAGE + bytes..PAGE + 2 * bytes])
    }

    /// Returns the address of the page that is nobody's.
    pub(crate) const fn dummy(&self) -> u64 {
        self.dummy
    }

    /// Takes pages that follow each other, anywhere; `None` when there are not so many.
    pub(crate) fn take(&mut self, bytes: u64, random: &mut Random) -> Option<Run> {
        let pages = holdfast_units::to_usize(bytes.div_ceil(PAGE));
        let start = random.index(self.pages.len());
        let first = self.find(start..self.pages.len(), pages).or_else(|| {
            let end = (start + pages).min(self.pages.len());
            self.find(0..end, pages)
        })?;
        for (_, is_free) in &mut self.pages[first..first + pages] {
            *is_free = false;
        }
        Some(Run { first, pages, address: self.pages[first].0 })
    }

    fn find(&self, within: Range<usize>, count: usize) -> Option<usize> {
        let mut first = within.start;
        let mut expected = None;
        for at in within {
            let (address, is_free) = self.pages[at];
            if !is_free {
                first = at + 1;
            } else if first != at && expected != Some(address) {
                first = at;
            }
            if is_free && at + 1 - first == count {
                return Some(first);
            }
            expected = Some(address + PAGE);
        }
        None
    }

    /// Takes pages back.
    pub(crate) fn give_back(&mut self, run: &Run) {
        for (_, is_free) in &mut self.pages[run.first..run.first + run.pages] {
            debug_assert!(!*is_free, "a page is given back once");
            *is_free = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_run_never_crosses_a_hole() {
        let mut random = Random::new(1);
        // The last page is the dummy.
        let mut arena = Arena::of(vec![MIB..MIB + 5 * PAGE, 2 * MIB..2 * MIB + 4 * PAGE]);
        for _ in 0..100 {
            let run = arena.take(3 * PAGE, &mut random).unwrap();
            assert!(run.address + run.len() <= MIB + 5 * PAGE || run.address == 2 * MIB);
            arena.give_back(&run);
        }
    }

    #[test]
    fn neighbours_make_one_run() {
        let mut random = Random::new(1);
        let mut arena = Arena::of(vec![MIB + 2 * PAGE..MIB + 5 * PAGE, MIB..MIB + 2 * PAGE]);
        assert_eq!(arena.take(4 * PAGE, &mut random).unwrap().address, MIB);
        assert!(arena.take(1, &mut random).is_none());
    }

    #[test]
    fn no_page_is_taken_twice() {
        let mut random = Random::new(2);
        let mut arena = Arena::of(vec![MIB..MIB + 33 * PAGE, MIB + 33 * PAGE..MIB + 65 * PAGE]);
        let mut taken: Vec<Run> = Vec::new();
        while let Some(run) = arena.take(2 * PAGE, &mut random) {
            let overlaps = |other: &Run| {
                run.address < other.address + other.len() && other.address < run.address + run.len()
            };
            assert!(!taken.iter().any(overlaps));
            taken.push(run);
        }
        taken.iter().for_each(|run| arena.give_back(run));
        assert_eq!(arena.take(64 * PAGE, &mut random).unwrap().address, MIB);
    }
}
