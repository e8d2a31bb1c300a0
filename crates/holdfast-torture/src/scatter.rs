//! How the data of a request lie in memory: cut at odd places, with pages that are listed twice.

use std::ops::Range;

use holdfast_units::{to_u64, to_usize};
use holdfast_virtio_driver::Segment;

use crate::arena::{Arena, PAGE, Run};
use crate::content::BLOCK;
use crate::random::Random;

/// In which way the data of a request are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Style {
    /// As guests do: runs of whole blocks, which need no copy.
    Blocks,
    /// Page by page, no two of which are neighbours but by chance.
    Pages,
    /// Page by page, and some pages are listed again.
    Duplicates,
    /// Page by page, and some of them are the one that everybody uses.
    Dummy,
    /// Anywhere in memory, at odd lengths.
    Odd,
}

impl Style {
    /// Returns a style for a request of so many bytes. Writes of the dummy page store what nobody
    /// knows, so there are few.
    pub(crate) fn choose(random: &mut Random, len: u64, is_write: bool) -> Self {
        match random.below(100) {
            0..25 => Self::Blocks,
            25..50 => Self::Pages,
            50..65 if len > PAGE => Self::Duplicates,
            65..80 if len >= PAGE && (!is_write || random.chance(5)) => Self::Dummy,
            _ => Self::Odd,
        }
    }
}

/// Where the bytes of a block of the request are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Home {
    /// In memory that is the same as that of this block of the request, itself or another.
    Block(usize),
    /// In memory that others use at the same time.
    Dummy,
}

/// The memory of a request, which belongs to it until it is given back.
#[derive(Debug, Default)]
pub(crate) struct Scatter {
    /// The pieces, in the order of the data.
    pub(crate) segments: Vec<Segment>,
    /// For each block; empty when all have memory of their own.
    homes: Vec<Home>,
    /// The 16 bytes before the first piece are the request's, too.
    pub(crate) has_room_before: bool,
    /// The byte behind the last piece is the request's, too.
    pub(crate) has_room_behind: bool,
    runs: Vec<Run>,
}

/// What the pieces are made with.
struct Cutter<'a> {
    arena: &'a mut Arena,
    random: &'a mut Random,
    scatter: Scatter,
    /// The pieces that are a page: the address, and the first block.
    pages: Vec<(u64, usize)>,
}

impl Scatter {
    /// Finds memory for `len` bytes, whole blocks, in at most `segments_max` pieces of at most
    /// `segment_max` bytes. `None` when there is not so much now.
    pub(crate) fn new(
        style: Style,
        len: u64,
        segments_max: usize,
        segment_max: u64,
        arena: &mut Arena,
        random: &mut Random,
    ) -> Option<Self> {
        let mut cutter = Cutter { arena, random, scatter: Self::default(), pages: Vec::new() };
        let is_done = cutter.cut(style, len, segments_max, segment_max).is_some();
        let scatter = cutter.scatter;
        if is_done {
            return Some(scatter);
        }
        scatter.give_back(arena);
        None
    }

    /// Gives the memory back.
    pub(crate) fn give_back(&self, arena: &mut Arena) {
        self.runs.iter().for_each(|run| arena.give_back(run));
    }

    /// Returns where the bytes of a block of the request are found.
    pub(crate) fn home(&self, block: usize) -> Home {
        self.homes.get(block).copied().unwrap_or(Home::Block(block))
    }

    /// Returns whether each block has memory of its own.
    pub(crate) const fn is_plain(&self) -> bool {
        self.homes.is_empty()
    }

    /// Returns the blocks of the request whose bytes are those of a block.
    pub(crate) fn same(&self, block: usize) -> impl Iterator<Item = usize> + '_ {
        let home = self.home(block);
        let own = self.homes.is_empty().then_some(block);
        let others = self.homes.iter().enumerate().filter(move |&(_, other)| *other == home);
        own.into_iter().chain(others.map(|(at, _)| at))
    }

    /// Returns how many bytes there are.
    pub(crate) fn bytes(&self) -> usize {
        self.segments.iter().map(|segment| to_usize(u64::from(segment.len))).sum()
    }

    /// Returns each piece with the bytes of the request that are in it.
    pub(crate) fn pieces(&self) -> impl Iterator<Item = (Segment, Range<usize>)> + '_ {
        let mut from = 0;
        self.segments.iter().map(move |segment| {
            let range = from..from + to_usize(u64::from(segment.len));
            from = range.end;
            (*segment, range)
        })
    }
}

impl Cutter<'_> {
    fn cut(&mut self, style: Style, len: u64, segments_max: usize, segment_max: u64) -> Option<()> {
        let mut left = len;
        while left > 0 {
            let pieces_left = to_u64(segments_max - self.scatter.segments.len());
            // So that what is left still fits, whatever is cut from now on.
            let least = left.div_ceil(pieces_left).next_multiple_of(PAGE);
            let is_tight = pieces_left < 2 || left / pieces_left >= PAGE;
            let piece = match style {
                _ if is_tight => least.min(left),
                Style::Blocks => (to_u64(BLOCK) << self.random.below(9)).min(left),
                Style::Pages | Style::Duplicates | Style::Dummy => PAGE.min(left),
                Style::Odd => (1 + self.random.below(3 * PAGE)).min(left),
            };
            let piece = piece.min(segment_max);
            let is_page = piece == PAGE && (len - left).is_multiple_of(PAGE) && !is_tight;
            match style {
                Style::Duplicates
                    if is_page && !self.pages.is_empty() && self.random.chance(40) =>
                {
                    self.list_again(len - left);
                }
                Style::Dummy if is_page && self.random.chance(40) => self.list_dummy(len - left),
                _ => self.list_own(style, len - left, piece)?,
            }
            if is_page {
                let last = self.scatter.segments[self.scatter.segments.len() - 1];
                self.pages.push((last.address, to_usize(len - left) / BLOCK));
            }
            left -= piece;
        }
        Some(())
    }

    /// Lists memory that nobody has.
    fn list_own(&mut self, style: Style, done: u64, piece: u64) -> Option<()> {
        let skip = match style {
            Style::Blocks if self.random.chance(50) => self.random.below(8) * to_u64(BLOCK),
            Style::Odd => self.random.below(PAGE),
            _ => 0,
        };
        let run = self.arena.take(skip + piece, self.random)?;
        if done == 0 {
            self.scatter.has_room_before = skip >= 16;
        }
        self.scatter.has_room_behind = skip + piece < run.len();
        self.list(run.address + skip, piece);
        self.scatter.runs.push(run);
        self.say_homes(done, piece, None);
        Some(())
    }

    /// Lists a page that was listed before.
    fn list_again(&mut self, done: u64) {
        let (address, first) = self.pages[self.random.index(self.pages.len())];
        self.scatter.has_room_behind = false;
        self.list(address, PAGE);
        self.say_homes(done, PAGE, Some(Home::Block(first)));
    }

    fn list_dummy(&mut self, done: u64) {
        let dummy = self.arena.dummy();
        self.scatter.has_room_before &= done > 0;
        self.scatter.has_room_behind = false;
        self.list(dummy, PAGE);
        self.say_homes(done, PAGE, Some(Home::Dummy));
    }

    fn list(&mut self, address: u64, len: u64) {
        let len = u32::try_from(len).expect("a piece is shorter than 4 GiB");
        self.scatter.segments.push(Segment { address, len });
    }

    /// Says where the blocks of a piece are found: in their own memory, or from `first` on.
    fn say_homes(&mut self, done: u64, piece: u64, first: Option<Home>) {
        let homes = &mut self.scatter.homes;
        if first.is_none() && homes.is_empty() {
            return;
        }
        let [begin, end] = [done, done + piece].map(|at| to_usize(at) / BLOCK);
        homes.extend((homes.len()..begin).map(Home::Block));
        for block in begin..end {
            let home = match first {
                None => Home::Block(block),
                Some(Home::Dummy) => Home::Dummy,
                // What is listed again may itself be listed again.
                Some(Home::Block(first)) => homes[first + (block - begin)],
            };
            homes.push(home);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_virtio_driver::Segment;

    const STYLES: [Style; 5] =
        [Style::Blocks, Style::Pages, Style::Duplicates, Style::Dummy, Style::Odd];

    /// Calls `each` with scatter lists of many shapes.
    fn for_many(mut each: impl FnMut(Style, u64, usize, &Scatter, &Arena)) {
        let mut random = Random::new(3);
        let mut arena = Arena::for_tests(4 << 20);
        for number in 0..500 {
            let style = STYLES[number % STYLES.len()];
            let len = (1 + random.below(random.clone().below(2048) + 1)) * 512;
            let segments_max = 2 + random.index(125);
            let scatter =
                Scatter::new(style, len, segments_max, 1 << 20, &mut arena, &mut random).unwrap();
            each(style, len, segments_max, &scatter, &arena);
            scatter.give_back(&mut arena);
        }
    }

    #[test]
    fn pieces_have_all_bytes_and_are_few_enough() {
        for_many(|style, len, segments_max, scatter, _| {
            let bytes: u64 = scatter.segments.iter().map(|piece| u64::from(piece.len)).sum();
            assert_eq!(bytes, len, "{style:?}");
            assert!(scatter.segments.len() <= segments_max, "{style:?} {len} {segments_max}");
        });
    }

    /// Returns the guest address of each byte.
    fn addresses(scatter: &Scatter) -> Vec<u64> {
        let each = |segment: &Segment| segment.address..segment.address + u64::from(segment.len);
        scatter.segments.iter().flat_map(each).collect()
    }

    #[test]
    fn blocks_have_the_memory_that_is_said() {
        for_many(|style, len, _, scatter, arena| {
            let addresses = addresses(scatter);
            let begin = |block: usize| addresses[block * BLOCK];
            let blocks = to_usize(len) / BLOCK;
            for block in 0..blocks {
                match scatter.home(block) {
                    Home::Block(other) => assert_eq!(begin(block), begin(other), "{style:?}"),
                    Home::Dummy => assert_eq!(begin(block) & !4095, arena.dummy()),
                }
                assert!(scatter.same(block).any(|other| other == block));
            }
            if scatter.is_plain() {
                let mut sorted = addresses.clone();
                sorted.sort_unstable();
                sorted.dedup();
                assert_eq!(sorted.len(), addresses.len(), "{style:?}");
            }
        });
    }

    #[test]
    fn duplicates_are_found_by_each_other() {
        let mut found = 0;
        for_many(|_, len, _, scatter, _| {
            for block in 0..to_usize(len) / BLOCK {
                if let Home::Block(other) = scatter.home(block)
                    && other != block
                {
                    found += 1;
                    assert!(scatter.same(other).any(|same| same == block));
                }
            }
        });
        assert!(found > 200, "{found}");
    }

    #[test]
    fn room_beside_the_data_is_nobody_elses() {
        for_many(|style, _, _, scatter, _| {
            let inside = |address: u64| {
                scatter
                    .runs
                    .iter()
                    .any(|run| (run.address..run.address + run.len()).contains(&address))
            };
            let addresses = addresses(scatter);
            if scatter.has_room_before {
                let first = addresses[0];
                assert!(inside(first - 16) && !addresses.contains(&(first - 1)), "{style:?}");
            }
            if scatter.has_room_behind {
                let last = addresses[addresses.len() - 1];
                assert!(inside(last + 1) && !addresses.contains(&(last + 1)), "{style:?}");
            }
        });
    }
}
