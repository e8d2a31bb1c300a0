//! Free space and owners of real images: allocated and freed at random, and judged by xfsprogs.

use holdfast_xfs_format::{FileBlock, Ino};
use holdfast_xfs_tree::{Group, Owned, Owner, Request, Run};

use crate::support::{Image, Random};

/// What a group is to be: what was allocated, for whom.
type Held = Vec<(Run, Owner)>;

const STEPS: u32 = 6000;

#[test]
fn blocks_of_1k_without_owners() {
    allocate_and_free(&["-b", "size=1k", "-m", "rmapbt=0,reflink=0"], 1);
}

#[test]
fn blocks_of_1k_with_owners_and_sharing() {
    allocate_and_free(&["-b", "size=1k", "-m", "rmapbt=1,reflink=1"], 2);
}

#[test]
fn blocks_of_4k_with_owners() {
    allocate_and_free(&["-m", "rmapbt=1,reflink=0"], 3);
}

#[test]
fn blocks_of_4k_with_sectors_of_4k_and_sharing() {
    allocate_and_free(&["-s", "size=4k", "-m", "rmapbt=0,reflink=1"], 4);
}

#[test]
fn blocks_of_2k_with_owners_and_without_free_inodes() {
    allocate_and_free(&["-b", "size=2k", "-m", "rmapbt=1,reflink=1,finobt=0"], 5);
}

#[test]
fn blocks_are_shared_and_freed_with_their_last_owner() {
    const LEN: u32 = 4000;
    let mut image = Image::make(&["-b", "size=1k", "-m", "rmapbt=0,reflink=1"]);
    let file_system = image.file_system();
    let mut group = Group::new(&file_system, &mut image, 0);
    let before = group.counted_free().unwrap();
    let request = Request { min: LEN, max: LEN, near: 0, alignment: 1 };
    let held = group.allocate(&request).unwrap().unwrap();
    let mut counts = vec![1_u32; usize::try_from(LEN).unwrap()];
    let mut random = Random(8);
    for step in 0..6000 {
        let start = random.below(LEN);
        let blocks = (1 + random.below(if step % 50 == 0 { 1000 } else { 20 })).min(LEN - start);
        let run = Run { start: held.start + start, blocks };
        let range = usize::try_from(start).unwrap()..usize::try_from(start + blocks).unwrap();
        let counts = &mut counts[range];
        let first = counts.iter().position(|&count| count > 1);
        let shared = first.map(|first| {
            let len = counts[first..].iter().take_while(|&&count| count > 1).count();
            let start = run.start + u32::try_from(first).unwrap();
            Run { start, blocks: u32::try_from(len).unwrap() }
        });
        assert_eq!(group.shared(run).unwrap(), shared);
        if counts.contains(&0) {
            continue;
        }
        if random.below(100) < if step < 5000 { 52 } else { 10 } {
            group.share(run).unwrap();
            counts.iter_mut().for_each(|count| *count += 1);
        } else {
            group.release(run).unwrap();
            counts.iter_mut().for_each(|count| *count -= 1);
        }
    }
    assert!(counts.contains(&0), "no block lost its last owner");
    assert!(group.sharing_blocks().unwrap() > 3, "the tree was never split");
    for (block, &count) in (held.start..).zip(&counts) {
        (0..count).for_each(|_| group.release(Run { start: block, blocks: 1 }).unwrap());
    }
    assert!(group.all_shared().unwrap().is_empty());
    assert_eq!(group.sharing_blocks().unwrap(), 1);
    assert_eq!(group.counted_free().unwrap(), before);
    image.commit();
    image.check();
}

/// Allocates and frees in all groups, compares with a model in between, frees all, and asks `xfs_repair`.
fn allocate_and_free(options: &[&str], seed: u64) {
    let mut image = Image::make(options);
    let file_system = image.file_system();
    let mut random = Random(seed);
    for ag in 0..file_system.geometry.ag_count {
        let mut group = Group::new(&file_system, &mut image, ag);
        let before = Model::of(&mut group);
        let mut held = Held::new();
        for step in 0..STEPS {
            let is_growing = step / 1000 % 3 != 1;
            change(&mut group, &mut held, &mut random, is_growing);
            if step % 1000 == 999 {
                before.compare(&mut group, &held);
            }
        }
        assert!(held.len() > 50, "only {} extents are left", held.len());
        image.commit();
        let mut group = Group::new(&file_system, &mut image, ag);
        before.compare(&mut group, &held);
        let mut expected: Vec<(u32, u32)> =
            group.free_space().unwrap()[0].iter().map(|run| (run.start, run.blocks)).collect();
        expected.extend(group.list().unwrap().into_iter().map(|block| (block, 1)));
        expected.sort_unstable();
        assert_eq!(image.free_space(ag), expected);
        let mut group = Group::new(&file_system, &mut image, ag);
        for (run, owner) in held {
            group.remove_owner(run, &owner).unwrap();
            group.free(run).unwrap();
        }
        before.compare(&mut group, &Held::new());
        image.commit();
        image.check();
    }
}

fn change(group: &mut Group<'_, Image>, held: &mut Held, random: &mut Random, is_growing: bool) {
    let wanted = 1 + random.below(12);
    if random.below(10) < if is_growing { 7 } else { 3 } || held.is_empty() {
        let alignment = [1, 1, 1, 4, 16][usize::try_from(random.below(5)).unwrap()];
        let near = random.below(20_000);
        let min = 1 + random.below(wanted);
        let request = Request { min, max: wanted, near, alignment };
        let Some(run) = group.allocate(&request).unwrap() else {
            return;
        };
        assert!(run.blocks >= min && run.blocks <= wanted && run.start % alignment == 0);
        let ino = Ino(u64::from(200 + random.below(3)));
        let file = FileBlock(u64::from(run.start));
        let owner = Owner::file(ino, file, false, random.below(2) == 0);
        group.add_owner(run, &owner).unwrap();
        held.push((run, owner));
        return;
    }
    let index = usize::try_from(random.below(u32::try_from(held.len()).unwrap())).unwrap();
    let (run, owner) = held.swap_remove(index);
    group.remove_owner(run, &owner).unwrap();
    group.free(run).unwrap();
}

/// What a group was before the test.
struct Model {
    /// Blocks that are free, kept or in trees.
    counted: u64,
    /// What is not the trees' of the group.
    owners: Vec<Owned>,
}

impl Model {
    fn of(group: &mut Group<'_, Image>) -> Self {
        let counted = group.counted_free().unwrap();
        Self { counted, owners: others(group.owners().unwrap()) }
    }

    /// Compares all trees of a group with what it was and what is held.
    fn compare(&self, group: &mut Group<'_, Image>, held: &Held) {
        let [places, mut sizes] = group.free_space().unwrap();
        sizes.sort_unstable();
        assert_eq!(places, sizes);
        for pair in places.windows(2) {
            assert!(pair[0].end() < u64::from(pair[1].start), "{pair:?} are not one");
        }
        let taken: u64 = held.iter().map(|(run, _)| u64::from(run.blocks)).sum();
        assert_eq!(group.counted_free().unwrap(), self.counted - taken);
        let mut used: Vec<Run> = held.iter().map(|&(run, _)| run).chain(places).collect();
        used.extend(group.list().unwrap().iter().map(|&start| Run { start, blocks: 1 }));
        used.sort_unstable();
        for pair in used.windows(2) {
            assert!(pair[0].end() <= u64::from(pair[1].start), "{pair:?} overlap");
        }
        let owners = group.owners().unwrap();
        if owners.is_empty() {
            return;
        }
        let mut expected: Vec<Owned> =
            held.iter().map(|&(run, owner)| Owned { run, owner }).collect();
        expected.extend(&self.owners);
        let expected = single_blocks(&expected);
        assert!(single_blocks(&others(owners.clone())) == expected, "the owners are others");
        for (index, first) in owners.iter().enumerate() {
            let next = owners[index + 1..].first();
            let merged = next.is_some_and(|next| first.continues_in(next));
            assert!(!merged, "{first:?} and {next:?} are not one");
        }
    }
}

/// Leaves out the trees of free space and owners, which change.
fn others(owners: Vec<Owned>) -> Vec<Owned> {
    owners.into_iter().filter(|owned| owned.owner != Owner::TREES).collect()
}

/// Returns each block with its owner.
fn single_blocks(owners: &[Owned]) -> Vec<Owned> {
    let mut blocks: Vec<Owned> = owners
        .iter()
        .flat_map(|owned| (0..owned.run.blocks).map(|skip| owned.block(skip)))
        .collect();
    blocks.sort_unstable_by_key(|owned| (owned.run, owned.owner));
    blocks
}
