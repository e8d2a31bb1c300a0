use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::bmap::Bmap;
use crate::free::{ByPlace, BySize, Run};
use crate::refcount::{Shared, Sharing};
use crate::rmap::{Owned, Owner, Owners};
use holdfast_xfs_format::{Extent, FileBlock, FormatError, FsBlock, Ino, Structure};

/// Trees of blocks so small that a few records make them high.
const BLOCK: usize = 56 + 5 * 44;

/// Blocks in memory, and a root that is one of them or in a fork.
#[derive(Debug, Default)]
struct Memory {
    blocks: BTreeMap<u64, Vec<u8>>,
    root: u64,
    levels: u16,
    fork: Vec<u8>,
    next: u64,
}

impl Memory {
    fn with_block() -> Self {
        let mut memory = Self { root: 1, levels: 1, next: 2, ..Self::default() };
        memory.blocks.insert(1, empty());
        memory
    }

    /// A fork with a root that points to one leaf, which has one record.
    fn with_fork(first: &Extent) -> Self {
        let mut memory = Self { fork: vec![0; 4 + 3 * 16], next: 2, ..Self::default() };
        let mut leaf = empty();
        leaf[7] = 1;
        Bmap::encode(first, &mut leaf[72..88]);
        memory.blocks.insert(1, leaf);
        memory.fork[4..12].copy_from_slice(&first.file.0.to_be_bytes());
        memory.fork[..4].copy_from_slice(&[0, 1, 0, 1]);
        memory.fork[4 + 3 * 8..][..8].copy_from_slice(&1_u64.to_be_bytes());
        memory
    }
}

fn empty() -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[8..24].fill(u8::MAX);
    block
}

impl Home for &mut Memory {
    type Error = TreeError;

    fn root(&mut self) -> Result<Root, TreeError> {
        if self.fork.is_empty() {
            return Ok(Root { place: Place::Block(self.root), levels: self.levels });
        }
        Ok(Root { place: Place::Fork, levels: u16::from(self.fork[1]) + 1 })
    }

    fn set_root(&mut self, block: u64, levels: u16) -> Result<(), TreeError> {
        (self.root, self.levels) = (block, levels);
        Ok(())
    }

    fn view(&mut self, place: Place) -> Result<&[u8], TreeError> {
        self.edit(place).map(|bytes| &*bytes)
    }

    fn edit(&mut self, place: Place) -> Result<&mut [u8], TreeError> {
        let Place::Block(block) = place else {
            return Ok(&mut self.fork);
        };
        let fault = self.fault(place, "pointer", block);
        self.blocks.get_mut(&block).map(Vec::as_mut_slice).ok_or(fault)
    }

    fn take(&mut self) -> Result<u64, TreeError> {
        self.next += 1;
        self.blocks.insert(self.next, vec![0; BLOCK]);
        Ok(self.next)
    }

    fn give(&mut self, block: u64) -> Result<(), TreeError> {
        assert!(self.blocks.remove(&block).is_some(), "block {block} was given back twice");
        Ok(())
    }

    fn fault(&self, place: Place, field: &'static str, found: u64) -> TreeError {
        let block = if let Place::Block(block) = place { block } else { 0 };
        let structure = Structure::BmapBlock;
        TreeError::File {
            ino: Ino(1),
            block,
            source: FormatError::Range { structure, field, found },
        }
    }
}

/// What a check has found at one level: blocks from left to right, with the one that each says is next.
type Chains = Vec<Vec<(u64, Option<u64>)>>;

/// Checks fill, levels, keys and neighbours of all blocks, and that there are no others.
fn check<S: Shape>(memory: &mut Memory) {
    let root = (&mut &mut *memory).root().unwrap();
    let mut chains = vec![Vec::new(); usize::from(root.levels)];
    let mut tree = Tree::<S, _>::new(&mut *memory);
    let only = root.place == Place::Fork && {
        let (layout, bytes) = tree.look(root.place).unwrap();
        layout.count(bytes) == 1
    };
    check_below(&mut tree, root.place, root.levels - 1, (true, only), &mut chains);
    let blocks: usize = chains.iter().map(Vec::len).sum();
    assert_eq!(blocks, memory.blocks.len());
    for chain in chains {
        let mut before = None;
        for (index, &(block, right)) in chain.iter().enumerate() {
            assert_eq!(right, chain.get(index + 1).map(|&(block, _)| block));
            let left = &memory.blocks[&block][8..][..S::POINTER];
            let expected = before.unwrap_or(u64::MAX).to_be_bytes();
            assert_eq!(left, &expected[8 - S::POINTER..]);
            before = Some(block);
        }
    }
}

fn check_below<S: Shape>(
    tree: &mut Tree<S, &mut Memory>,
    place: Place,
    level: u16,
    (is_root, may_be_poor): (bool, bool),
    chains: &mut Chains,
) {
    let (layout, bytes) = tree.check(place, level, is_root || may_be_poor).unwrap();
    let count = layout.count(bytes);
    let poor = is_root && (level == 0 || count > 1) || may_be_poor;
    assert!(poor || count >= layout.least(level), "{count} entries at level {level}");
    if let Place::Block(block) = place {
        chains[usize::from(level)].push((block, layout.right(bytes)));
    }
    if level == 0 {
        return;
    }
    let below: Vec<_> =
        (0..count).map(|n| (layout.pointer(bytes, n), layout.key(bytes, n).to_vec())).collect();
    for (block, key) in below {
        let place_below = Place::Block(block);
        let (layout, bytes) = tree.look(place_below).unwrap();
        if layout.count(bytes) > 0 {
            assert_eq!(layout.keys(bytes), key);
        }
        let may_be_poor = place == Place::Fork && count == 1;
        check_below(tree, place_below, level - 1, (false, may_be_poor), chains);
    }
}

/// Puts records in, takes them out and changes them, by numbers, and compares with a map.
fn run<S: Shape>(memory: &mut Memory, steps: &[(u8, u32)], record: impl Fn(u32, u32) -> S::Record) {
    let there = Tree::<S, _>::new(&mut *memory).all().unwrap();
    let mut model: BTreeMap<S::Key, S::Record> =
        there.iter().map(|record| (S::key(record), *record)).collect();
    for (index, &(what, number)) in steps.iter().enumerate() {
        let new = record(number, 1);
        let key = S::key(&new);
        let mut tree = Tree::<S, _>::new(&mut *memory);
        let found = tree.exactly(&key).unwrap();
        assert_eq!(found.as_ref().map(|(_, record)| *record), model.get(&key).copied());
        match (found, what % 4) {
            (None, 0..3) => {
                tree.insert(&new).unwrap();
                model.insert(key, new);
            }
            (None, _) => {
                let after = tree.at_or_after(&key).unwrap().map(|(_, record)| record);
                assert_eq!(after, model.range(key..).next().map(|(_, record)| *record));
                let before = tree.at_or_before(&key).unwrap().map(|(_, record)| record);
                assert_eq!(before, model.range(..key).next_back().map(|(_, record)| *record));
            }
            // The empty tree of a file has no blocks; it is never asked for.
            (Some((path, _)), 0 | 3) if model.len() > 1 => {
                tree.remove(path).unwrap();
                model.remove(&key);
            }
            (Some((path, _)), _) => {
                let changed = record(number, 2);
                if S::key(&changed) == key {
                    tree.update(&path, &changed).unwrap();
                    model.insert(key, changed);
                }
                tree.insert(&new).unwrap_err();
            }
        }
        if index % 16 == 0 || index + 1 == steps.len() {
            check::<S>(memory);
        }
    }
    let all = Tree::<S, _>::new(&mut *memory).all().unwrap();
    assert!(all.iter().eq(model.values()));
    let keys: Vec<_> = model.keys().rev().copied().collect();
    for key in keys.iter().take(keys.len().saturating_sub(1)) {
        let mut tree = Tree::<S, _>::new(&mut *memory);
        let (path, _) = tree.exactly(key).unwrap().unwrap();
        tree.remove(path).unwrap();
    }
    check::<S>(memory);
}

fn steps() -> impl Strategy<Value = Vec<(u8, u32)>> {
    let number = prop_oneof![0..4000_u32, 0..400_u32];
    proptest::collection::vec((any::<u8>(), number), 1..1500)
}

fn owned(number: u32, blocks: u32) -> Owned {
    let owner = Owner::file(Ino(u64::from(number % 7)), FileBlock(u64::from(number)), false, false);
    Owned { run: Run { start: number / 3, blocks: blocks + number % 50 }, owner }
}

fn extent(number: u32, blocks: u32) -> Extent {
    Extent {
        file: FileBlock(u64::from(number)),
        block: FsBlock(u64::from(number) * 2),
        blocks: u64::from(blocks),
        unwritten: false,
    }
}

#[test]
fn records_that_come_in_order_fill_blocks() {
    let mut memory = Memory::with_fork(&extent(0, 1));
    let mut tree = Tree::<Bmap, _>::new(&mut memory);
    for number in 1..1200 {
        tree.insert(&extent(number, 1)).unwrap();
    }
    check::<Bmap>(&mut memory);
    // A leaf has room for twelve.
    let leaves = memory.blocks.values().filter(|block| block[5] == 0).count();
    assert!(leaves <= 105, "{leaves} leaves");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_tree_of_a_group_is_a_map(steps in steps()) {
        run::<ByPlace>(&mut Memory::with_block(), &steps, |start, blocks| {
            Run { start, blocks: blocks.min(1) }
        });
    }

    #[test]
    fn a_tree_by_size_is_a_map(steps in steps()) {
        run::<BySize>(&mut Memory::with_block(), &steps, |start, _| {
            Run { start, blocks: 1 + start % 13 }
        });
    }

    #[test]
    fn a_tree_of_shared_blocks_is_a_map(steps in steps()) {
        run::<Sharing>(&mut Memory::with_block(), &steps, |start, count| Shared {
            run: Run { start, blocks: 1 },
            count,
        });
    }

    #[test]
    fn a_tree_with_overlapping_records_is_a_map(steps in steps()) {
        run::<Owners>(&mut Memory::with_block(), &steps, owned);
    }

    #[test]
    fn a_tree_of_a_file_is_a_map(steps in steps()) {
        run::<Bmap>(&mut Memory::with_fork(&extent(9999, 1)), &steps, extent);
    }

    #[test]
    fn all_that_overlap_are_found(
        numbers in proptest::collection::btree_set(0..3000_u32, 1..400),
        at in 0..1100_u32,
    ) {
        let mut memory = Memory::with_block();
        let mut tree = Tree::<Owners, _>::new(&mut memory);
        let mut expected = 0;
        for &number in &numbers {
            let record = owned(number, 1);
            tree.insert(&record).unwrap();
            let holds = record.run.start <= at && record.run.end() > u64::from(at);
            expected += u32::from(holds);
        }
        let mut found = 0;
        let (low, high) = ((at, 0, 0), (at, u64::MAX, u64::MAX));
        tree.overlapping(&low, &high, &mut |_| {
            found += 1;
            true
        })
        .unwrap();
        prop_assert_eq!(found, expected);
    }

    #[test]
    fn damaged_blocks_make_nothing_panic(
        steps in steps(),
        damage in proptest::collection::vec((any::<u64>(), 0..BLOCK, any::<u8>()), 1..20),
    ) {
        let mut memory = Memory::with_block();
        let mut tree = Tree::<Owners, _>::new(&mut memory);
        for &(_, number) in steps.iter().take(300) {
            let _there = tree.insert(&owned(number, 1));
        }
        let blocks: Vec<u64> = memory.blocks.keys().copied().collect();
        for (block, at, byte) in damage {
            let block = blocks[usize::try_from(block % 1000).unwrap() % blocks.len()];
            memory.blocks.get_mut(&block).unwrap()[at % 80] = byte;
        }
        for &(_, number) in &steps {
            let record = owned(number, 1);
            let mut tree = Tree::<Owners, _>::new(&mut memory);
            let Ok(found) = tree.exactly(&Owners::key(&record)) else {
                continue;
            };
            let _result = match found {
                Some((path, _)) => tree.remove(path),
                None => tree.insert(&record),
            };
            let all = ((0, 0, 0), Owners::KEY_MAX);
            let _found = tree.overlapping(&all.0, &all.1, &mut |_| true);
        }
    }
}
