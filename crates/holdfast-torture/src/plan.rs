//! Which requests are made: where on the disk, and how many blocks.

use std::ops::Range;

use holdfast_units::to_u64;

use crate::content::BLOCK;
use crate::random::Random;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes { unmap: bool },
}

/// A request, before it has memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub(crate) kind: Kind,
    /// The blocks, in one range for a read or a write. No two ranges overlap.
    pub(crate) ranges: Vec<Range<u64>>,
}

impl Plan {
    /// Returns the request for one range.
    pub(crate) fn of(kind: Kind, range: Range<u64>) -> Self {
        Self { kind, ranges: std::iter::once(range).collect() }
    }

    /// Returns how many bytes of memory the request reads or writes.
    pub(crate) fn bytes(&self) -> u64 {
        match self.kind {
            Kind::Read | Kind::Write => {
                let blocks: u64 = self.ranges.iter().map(|range| range.end - range.start).sum();
                blocks * to_u64(BLOCK)
            }
            Kind::Flush | Kind::Discard | Kind::WriteZeroes { .. } => 0,
        }
    }

    /// Returns the blocks that the request changes, for a disk of such sectors. A discard leaves
    /// alone what is no whole sector.
    pub(crate) fn changed(&self, sector_blocks: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        self.ranges.iter().filter_map(move |range| {
            let range = match self.kind {
                Kind::Read | Kind::Flush => return None,
                Kind::Write | Kind::WriteZeroes { .. } => range.clone(),
                Kind::Discard => {
                    let first = range.start.next_multiple_of(sector_blocks);
                    first..range.end / sector_blocks * sector_blocks
                }
            };
            (!range.is_empty()).then_some(range)
        })
    }
}

/// Makes plans for a disk.
#[derive(Debug)]
pub(crate) struct Planner {
    blocks: u64,
    /// Where most requests are, so that they overlap.
    hot: Range<u64>,
    /// A few sectors for short requests, of which all at a time want the same.
    anvil: Range<u64>,
}

/// The most blocks of a request: 1 MiB.
pub(crate) const BLOCKS_MAX: u64 = 2048;

impl Planner {
    /// The fewest blocks of a disk.
    pub(crate) const BLOCKS_MIN: u64 = 32768;
    /// The most ranges of a request to discard or to make zeros.
    const RANGES_MAX: u64 = 4;

    /// Returns the planner for a disk of so many blocks, [`BLOCKS_MIN`](Self::BLOCKS_MIN) or more.
    /// Requests are close around
    /// `border`, where a group of its sectors ends.
    pub(crate) fn new(blocks: u64, border: u64, random: &mut Random) -> Self {
        let half = 512 << random.below(4);
        let hot = border.saturating_sub(half)..(border + half).min(blocks);
        let first = (hot.start + random.below(hot.end - hot.start - 64)) & !7;
        Self { blocks, hot, anvil: first..first + 40 }
    }

    /// Returns the next request.
    pub(crate) fn next(&self, random: &mut Random) -> Plan {
        let kind = match random.below(200) {
            0..90 => Kind::Read,
            90..180 => Kind::Write,
            180..182 => Kind::Flush,
            182..191 => Kind::Discard,
            number => Kind::WriteZeroes { unmap: number % 2 == 0 },
        };
        let ranges = match kind {
            Kind::Flush => Vec::new(),
            Kind::Read | Kind::Write => std::iter::once(self.range(random)).collect(),
            Kind::Discard | Kind::WriteZeroes { .. } => self.ranges(random),
        };
        Plan { kind, ranges }
    }

    fn range(&self, random: &mut Random) -> Range<u64> {
        let count = 1 + match random.below(100) {
            0..40 => random.below(16),
            40..75 => random.below(64),
            75..97 => random.below(256),
            _ => random.below(BLOCKS_MAX),
        };
        let within = match random.below(100) {
            0..10 if count <= 16 => &self.anvil,
            0..60 if count < self.hot.end - self.hot.start => &self.hot,
            _ => &(0..self.blocks),
        };
        let count = count.min(within.end - within.start);
        let first = within.start + random.below(within.end - within.start - count + 1);
        if random.chance(50) {
            return first..first + count;
        }
        // As file systems do.
        let first = first & !7;
        first..(first + count).next_multiple_of(8).min(self.blocks).min(first + BLOCKS_MAX)
    }

    /// Returns ranges of which no two overlap.
    fn ranges(&self, random: &mut Random) -> Vec<Range<u64>> {
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for _ in 0..=random.below(Self::RANGES_MAX) {
            let range = self.range(random);
            let overlaps = |other: &Range<u64>| range.start < other.end && other.start < range.end;
            if !ranges.iter().any(overlaps) {
                ranges.push(range);
            }
        }
        ranges
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans() -> impl Iterator<Item = Plan> {
        let mut random = Random::new(8);
        let planner = Planner::new(40_000, 4096, &mut random);
        (0..20_000).map(move |_| planner.next(&mut random))
    }

    #[test]
    fn requests_lie_on_the_disk() {
        for plan in plans() {
            for range in &plan.ranges {
                assert!(range.start < range.end && range.end <= 40_000, "{plan:?}");
                assert!(range.end - range.start <= BLOCKS_MAX, "{plan:?}");
            }
            assert_eq!(plan.ranges.is_empty(), plan.kind == Kind::Flush, "{plan:?}");
        }
    }

    #[test]
    fn ranges_of_a_request_do_not_overlap() {
        for mut plan in plans() {
            plan.ranges.sort_unstable_by_key(|range| range.start);
            assert!(plan.ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "{plan:?}");
        }
    }

    #[test]
    fn a_discard_changes_whole_sectors_only() {
        let ranges = vec![3..21, 25..31, 40..48];
        let discard = Plan { kind: Kind::Discard, ranges };
        assert_eq!(discard.changed(8).collect::<Vec<_>>(), [8..16, 40..48]);
        assert_eq!(discard.changed(1).collect::<Vec<_>>(), discard.ranges);
        let zeroes = Plan { kind: Kind::WriteZeroes { unmap: true }, ..discard };
        assert_eq!(zeroes.changed(8).collect::<Vec<_>>(), zeroes.ranges);
    }
}
