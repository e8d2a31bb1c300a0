//! Blocks that somebody has no more, while what is stored says that he has.
//!
//! Until the next sync has ended nobody else may get them or overwrite them: after a crash before that they
//! are the old owner's again.

use std::collections::BTreeMap;

use holdfast_xfs_tree::Run;

/// Blocks of allocation groups.
#[derive(Debug, Default)]
pub(crate) struct Released {
    /// The blocks behind the last ones, by allocation group and first block. No two runs touch.
    ends: BTreeMap<(u32, u32), u64>,
}

impl Released {
    pub(crate) fn insert(&mut self, ag: u32, run: Run) {
        let (mut start, mut end) = (run.start, run.end());
        while let Some((found, found_end)) = self.last_before(ag, end + 1) {
            if found_end < u64::from(start) {
                break;
            }
            self.ends.remove(&(ag, found));
            (start, end) = (start.min(found), end.max(found_end));
        }
        self.ends.insert((ag, start), end);
    }

    /// Returns the first of them that are in a run.
    pub(crate) fn first_in(&self, ag: u32, run: Run) -> Option<Run> {
        let start = u64::from(run.start);
        let before = self.last_before(ag, start + 1).filter(|&(_, end)| end > start);
        let after = || self.ends.range((ag, run.start)..).next();
        let after =
            || after().filter(|((found, _), _)| *found == ag).map(|(key, &end)| (key.1, end));
        let (found, end) = before.or_else(after)?;
        let (start, end) = (found.max(run.start), end.min(run.end()));
        let blocks = u32::try_from(end.checked_sub(u64::from(start))?).ok()?;
        (blocks > 0).then_some(Run { start, blocks })
    }

    /// Returns where the last run begins and ends that begins before a block.
    fn last_before(&self, ag: u32, block: u64) -> Option<(u32, u64)> {
        let last = u32::try_from(block.checked_sub(1)?).unwrap_or(u32::MAX);
        let (&(_, start), &end) = self.ends.range((ag, 0)..=(ag, last)).next_back()?;
        Some((start, end))
    }

    /// Returns how many runs there are.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(crate) fn clear(&mut self) {
        self.ends.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn run() -> impl Strategy<Value = (u32, Run)> {
        (0..3_u32, 0..60_u32, 1..9_u32).prop_map(|(ag, start, blocks)| (ag, Run { start, blocks }))
    }

    fn blocks_of(ag: u32, run: Run) -> impl Iterator<Item = (u32, u32)> {
        (run.start..run.start + run.blocks).map(move |block| (ag, block))
    }

    proptest! {
        #[test]
        fn the_first_of_them_are_found_in_any_run(
            freed in proptest::collection::vec(run(), 0..20),
            (ag, wanted) in run(),
        ) {
            let (mut found, mut model) = (Released::default(), BTreeSet::new());
            for (ag, run) in freed {
                found.insert(ag, run);
                model.extend(blocks_of(ag, run));
            }
            let first = blocks_of(ag, wanted).skip_while(|block| !model.contains(block));
            let expected: Vec<_> = first.take_while(|block| model.contains(block)).collect();
            let found: Vec<_> =
                found.first_in(ag, wanted).into_iter().flat_map(|run| blocks_of(ag, run)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
