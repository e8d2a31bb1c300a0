//! Extents of files in real images: mapped, unmapped, converted, shared and replaced at random, and
//! judged by xfsprogs.

use std::collections::BTreeMap;

use holdfast_xfs_format::{Extent, FileBlock, FsBlock, Ino};
use holdfast_xfs_tree::{BmapFork, Owned, Owner, Run, Shared, Space, Span, TreeError, Wanted};

use crate::support::{Fault, Image, Random};

/// The files that every image has.
const FILES: u64 = 3;
/// How many blocks of each file are worked on.
const LEN: u32 = 6000;
const STEPS: u32 = 4000;

#[test]
fn blocks_of_1k_without_owners() {
    change_at_random(&["-b", "size=1k", "-m", "rmapbt=0,reflink=0"], 1);
}

#[test]
fn blocks_of_1k_with_owners_and_sharing() {
    change_at_random(&["-b", "size=1k", "-m", "rmapbt=1,reflink=1", "-i", "nrext64=1"], 2);
}

#[test]
fn blocks_of_2k_with_inodes_of_1k_and_sharing() {
    change_at_random(&["-b", "size=2k", "-i", "size=1024", "-m", "rmapbt=0,reflink=1"], 3);
}

#[test]
fn blocks_of_4k_with_sharing_and_owners() {
    change_at_random(&["-m", "rmapbt=1,reflink=1"], 4);
}

#[test]
fn blocks_of_4k_with_sectors_of_4k_and_owners() {
    change_at_random(&["-s", "size=4k", "-m", "rmapbt=1,reflink=0"], 5);
}

/// What each block of a file is.
type Model = BTreeMap<u64, (u64, bool)>;

/// Files and what they are to be.
struct Files {
    inodes: Vec<Ino>,
    forks: Vec<BmapFork>,
    models: Vec<Model>,
    /// How many blocks each had when its fork was taken.
    blocks: Vec<u64>,
}

fn change_at_random(options: &[&str], seed: u64) {
    let mut image = Image::make(options);
    let file_system = image.file_system();
    let mut files = Files::new(&image);
    let free = counted_free(&mut image);
    let mut random = Random(seed);
    files.fragment(&mut Space::new(&file_system, &mut image));
    let mut highest = 0;
    for step in 0..STEPS {
        let mut space = Space::new(&file_system, &mut image);
        files.change(&mut space, &mut random);
        highest = highest.max(files.forks.iter().map(BmapFork::count).max().unwrap());
        if step % 800 == 799 {
            files.compare(&mut space, free);
        }
        if step % 1600 == 1599 {
            files.store(&image);
            image.commit();
            image.check();
            files.forks = files.inodes.iter().map(|&ino| image.load_fork(ino)).collect();
        }
    }
    assert!(highest > 2000, "no file had more than {highest} extents");
    let mut space = Space::new(&file_system, &mut image);
    for index in 0..files.forks.len() {
        files.remove(&mut space, index, 0, u64::from(LEN) + 100);
    }
    files.compare(&mut space, free);
    assert!(space.group(0).all_shared().unwrap().is_empty());
    files.store(&image);
    image.commit();
    image.check();
}

#[test]
fn a_full_file_system_has_blocks_for_what_must_not_fail() {
    let mut image = Image::make(&["-b", "size=1k", "-m", "rmapbt=1,reflink=1"]);
    let file_system = image.file_system();
    let mut files = Files::new(&image);
    let free = counted_free(&mut image);
    let mut space = Space::new(&file_system, &mut image);
    let mut end = 0;
    loop {
        let wanted = Wanted { min: 1, max: 50_000, near: FsBlock(0), alignment: 1 };
        let found = match space.allocate(&wanted) {
            Ok(found) => found,
            Err(Fault::Tree(TreeError::Full)) => break,
            Err(fault) => panic!("{fault}"),
        };
        let (file, blocks) = (FileBlock(end), u64::from(found.blocks));
        end += blocks;
        let extent = Extent { file, block: found.block, blocks, unwritten: true };
        files.forks[0].insert(&mut space, &extent).unwrap();
        files.map(0, &extent);
    }
    assert!(end > 30_000, "the file system was full with {end} blocks");
    for file in (0..12_000).step_by(2) {
        files.forks[0].convert(&mut space, FileBlock(file), 1, false).unwrap();
        files.models[0].get_mut(&file).unwrap().1 = false;
    }
    files.compare(&mut space, free);
    files.store(&image);
    image.commit();
    image.check();
}

#[test]
fn damaged_blocks_make_nothing_panic() {
    let mut image = Image::make(&["-b", "size=1k", "-m", "rmapbt=1,reflink=1"]);
    let file_system = image.file_system();
    let mut files = Files::new(&image);
    let mut random = Random(7);
    let mut space = Space::new(&file_system, &mut image);
    files.fragment(&mut space);
    for _ in 0..300 {
        files.share(&mut space, 1, 0, &mut random);
    }
    files.store(&image);
    image.commit();
    let mut faults = 0;
    for _ in 0..150 {
        let mut fork = image.load_fork(files.inodes[0]);
        let mut space = Space::new(&file_system, &mut image);
        fork.extents(&mut space).unwrap();
        for ag in 0..file_system.geometry.ag_count {
            let mut group = space.group(ag);
            group.free_space().unwrap();
            group.list().unwrap();
            group.all_shared().unwrap();
            group.owners().unwrap();
        }
        for _ in 0..1 + random.below(3) {
            image.damage(&mut random);
        }
        let mut space = Space::new(&file_system, &mut image);
        let results = (0..20).map(|_| hostile(&mut fork, &mut space, &mut random));
        faults += results.filter(Result::is_err).count();
        image.roll_back();
    }
    assert!(faults > 100, "the damage was found {faults} times only");
}

/// Does anything, and returns what was found to be wrong.
fn hostile(
    fork: &mut BmapFork,
    space: &mut Space<'_, Image>,
    random: &mut Random,
) -> Result<(), Fault> {
    let file = FileBlock(u64::from(random.below(LEN)));
    let len = 1 + u64::from(random.below(600));
    match random.below(6) {
        0 => {
            for extent in fork.remove(space, file, len)? {
                space.release(span(extent.block.0, extent.blocks))?;
            }
        }
        1 => fork.convert(space, file, 1, random.below(2) == 0)?,
        2 => space.share(span(u64::from(random.below(6000)), 1 + len % 20))?,
        3 => {
            fork.extents(space)?;
            space.group(0).free_space()?;
            space.group(0).owners()?;
            space.group(0).all_shared()?;
        }
        _ => {
            let (min, max) = (1, 1 + random.below(100));
            let wanted = Wanted { min, max, near: FsBlock(file.0), alignment: 1 };
            let Span { block, blocks } = space.allocate(&wanted)?;
            let extent = Extent { file, block, blocks: u64::from(blocks), unwritten: false };
            let removed = fork.replace(space, &extent)?;
            removed.iter().try_for_each(|old| space.release(span(old.block.0, old.blocks)))?;
        }
    }
    Ok(())
}

fn counted_free(image: &mut Image) -> u64 {
    let file_system = image.file_system();
    let mut space = Space::new(&file_system, image);
    let groups = 0..file_system.geometry.ag_count;
    groups.map(|ag| space.group(ag).counted_free().unwrap()).sum()
}

impl Files {
    fn new(image: &Image) -> Self {
        let root = image.superblock.root.0;
        let inodes: Vec<Ino> = (0..FILES).map(|index| Ino(root + 3 + index)).collect();
        let forks = inodes.iter().map(|&ino| image.load_fork(ino)).collect();
        let models = inodes.iter().map(|_| Model::new()).collect();
        Self { inodes, forks, models, blocks: vec![0; 3] }
    }

    /// Fills every second block of a file, with blocks between which others are free.
    fn fragment(&mut self, space: &mut Space<'_, Image>) {
        for file in (0..u64::from(LEN)).step_by(2) {
            let wanted = Wanted { min: 1, max: 1, near: FsBlock(1000 + file), alignment: 2 };
            let block = space.allocate(&wanted).unwrap().block;
            let file = FileBlock(file);
            let extent = Extent { file, block, blocks: 1, unwritten: false };
            self.forks[0].insert(space, &extent).unwrap();
            self.map(0, &extent);
        }
    }

    fn change(&mut self, space: &mut Space<'_, Image>, random: &mut Random) {
        let index = usize::try_from(random.below(3)).unwrap();
        let file = u64::from(random.below(LEN));
        let len = 1 + u64::from(random.below(8));
        match random.below(10) {
            0..=3 => self.fill(space, index, file, random),
            4 | 5 => self.remove(space, index, file, len),
            6 | 7 => self.convert(space, index, file, random),
            8 => self.share(space, index, file, random),
            _ => self.replace(space, index, file),
        }
    }

    /// Fills a hole.
    fn fill(&mut self, space: &mut Space<'_, Image>, index: usize, file: u64, random: &mut Random) {
        let model = &self.models[index];
        let hole = model.range(file..).next().map_or(100, |(&next, _)| next - file);
        let max = hole.min(1 + u64::from(random.below(8)));
        if max == 0 {
            let extent =
                Extent { file: FileBlock(file), block: FsBlock(100), blocks: 1, unwritten: false };
            self.forks[index].insert(space, &extent).unwrap_err();
            return;
        }
        let before = model.range(..file).next_back().map(|(_, &(block, _))| block + 1);
        let near = before.unwrap_or_else(|| u64::from(random.below(20_000)));
        let max = u32::try_from(max).unwrap();
        let wanted = Wanted { min: 1, max, near: FsBlock(near), alignment: 1 };
        let found = space.allocate(&wanted).unwrap();
        let unwritten = random.below(2) == 0;
        let blocks = u64::from(found.blocks);
        let extent = Extent { file: FileBlock(file), block: found.block, blocks, unwritten };
        self.forks[index].insert(space, &extent).unwrap();
        self.map(index, &extent);
    }

    fn map(&mut self, index: usize, extent: &Extent) {
        for skip in 0..extent.blocks {
            let block = (extent.block.0 + skip, extent.unwritten);
            self.models[index].insert(extent.file.0 + skip, block);
        }
    }

    /// Makes a hole.
    fn remove(&mut self, space: &mut Space<'_, Image>, index: usize, file: u64, len: u64) {
        let removed = self.forks[index].remove(space, FileBlock(file), len).unwrap();
        self.unmap(space, index, file..file + len, &removed);
    }

    fn unmap(
        &mut self,
        space: &mut Space<'_, Image>,
        index: usize,
        range: std::ops::Range<u64>,
        removed: &[Extent],
    ) {
        let mut found = Model::new();
        for extent in removed {
            for skip in 0..extent.blocks {
                found.insert(extent.file.0 + skip, (extent.block.0 + skip, extent.unwritten));
            }
            space.release(span(extent.block.0, extent.blocks)).unwrap();
        }
        let model = &mut self.models[index];
        let expected: Model = model.range(range).map(|(&file, &block)| (file, block)).collect();
        assert_eq!(found, expected);
        model.retain(|file, _| !expected.contains_key(file));
    }

    /// Converts what is mapped and shared with nobody, from a block on.
    fn convert(
        &mut self,
        space: &mut Space<'_, Image>,
        index: usize,
        file: u64,
        random: &mut Random,
    ) {
        let is_own = |block: u64, space: &mut Space<'_, Image>| {
            space.shared(span(block, 1)).unwrap().is_none()
        };
        let mut len = 0;
        while let Some(&(block, _)) = self.models[index].get(&(file + len))
            && is_own(block, space)
            && len < 5
        {
            len += 1;
        }
        let unwritten = random.below(2) == 0;
        if len == 0 {
            if !self.models[index].contains_key(&file) {
                let fork = &mut self.forks[index];
                fork.convert(space, FileBlock(file), 1, unwritten).unwrap_err();
            }
            return;
        }
        self.forks[index].convert(space, FileBlock(file), len, unwritten).unwrap();
        for at in file..file + len {
            self.models[index].get_mut(&at).unwrap().1 = unwritten;
        }
    }

    /// Maps what another file has here as well.
    fn share(
        &mut self,
        space: &mut Space<'_, Image>,
        index: usize,
        file: u64,
        random: &mut Random,
    ) {
        if !space.file_system().has_sharing {
            return;
        }
        let source = usize::try_from(random.below(3)).unwrap();
        let Some(found) = self.forks[source].find(space, FileBlock(file)).unwrap() else {
            return;
        };
        let target = u64::from(random.below(LEN));
        let hole = self.models[index].range(target..).next().map_or(50, |(&next, _)| next - target);
        let blocks = hole.min(found.blocks);
        if blocks == 0 || found.unwritten {
            return;
        }
        let extent = Extent { file: FileBlock(target), blocks, ..found };
        space.share(span(extent.block.0, blocks)).unwrap();
        self.forks[index].insert(space, &extent).unwrap();
        self.map(index, &extent);
    }

    /// Writes elsewhere what is shared, or not.
    fn replace(&mut self, space: &mut Space<'_, Image>, index: usize, file: u64) {
        let len = (file..file + 6).take_while(|at| self.models[index].contains_key(at)).count();
        if len == 0 {
            return;
        }
        let max = u32::try_from(len).unwrap();
        let wanted = Wanted { min: 1, max, near: FsBlock(file), alignment: 1 };
        let found = space.allocate(&wanted).unwrap();
        let blocks = u64::from(found.blocks);
        let extent = Extent { file: FileBlock(file), block: found.block, blocks, unwritten: false };
        let removed = self.forks[index].replace(space, &extent).unwrap();
        self.unmap(space, index, file..file + blocks, &removed);
        self.map(index, &extent);
    }

    fn store(&mut self, image: &Image) {
        let forks = self.forks.iter().zip(&self.inodes).zip(&mut self.blocks);
        for ((fork, &ino), blocks) in forks {
            image.store_fork(ino, fork);
            *blocks = blocks.checked_add_signed(fork.blocks_added()).unwrap();
        }
    }

    /// Compares extents, free space, owners and shared blocks with the models.
    fn compare(&mut self, space: &mut Space<'_, Image>, free: u64) {
        let mut taken = 0;
        let mut counts: BTreeMap<u64, u32> = BTreeMap::new();
        let forks = self.forks.iter_mut().zip(&self.models).zip(&self.blocks);
        for ((fork, model), blocks) in forks {
            let extents = fork.extents(space).unwrap();
            assert_eq!(u64::try_from(extents.len()).unwrap(), fork.count());
            let found: Model = extents
                .iter()
                .flat_map(|extent| (0..extent.blocks).map(move |skip| (extent, skip)))
                .map(|(extent, skip)| {
                    (extent.file.0 + skip, (extent.block.0 + skip, extent.unwritten))
                })
                .collect();
            assert!(found == *model, "the extents are others");
            for pair in extents.windows(2) {
                assert!(!is_one(&pair[0], &pair[1]), "{pair:?} are not one");
            }
            for &(block, _) in model.values() {
                *counts.entry(block).or_default() += 1;
            }
            let blocks = blocks.checked_add_signed(fork.blocks_added()).unwrap();
            taken += blocks - u64::try_from(model.len()).unwrap();
        }
        taken += u64::try_from(counts.len()).unwrap();
        let geometry = space.file_system().geometry;
        let mut counted = 0;
        for ag in 0..geometry.ag_count {
            let mut group = space.group(ag);
            counted += group.counted_free().unwrap();
            // The tree of shared extents takes free blocks.
            counted += group.sharing_blocks().unwrap();
            let number = |block: u64| geometry.split(FsBlock(block)).filter(|split| split.0 == ag);
            let shared = counts.iter().filter(|&(_, &count)| count > 1);
            let shared: Vec<(u32, u32)> =
                shared.filter_map(|(&block, &count)| Some((number(block)?.1, count))).collect();
            compare_shared(&group.all_shared().unwrap(), &shared);
            if group.owners().unwrap().is_empty() {
                continue;
            }
            let mut expected = Vec::new();
            for (model, &ino) in self.models.iter().zip(&self.inodes) {
                expected.extend(model.iter().filter_map(|(&file, &(block, unwritten))| {
                    let run = Run { start: number(block)?.1, blocks: 1 };
                    let owner = Owner::file(ino, FileBlock(file), false, unwritten);
                    Some(Owned { run, owner })
                }));
            }
            expected.sort_unstable_by_key(|owned| (owned.run, owned.owner));
            let mut found: Vec<Owned> = group
                .owners()
                .unwrap()
                .into_iter()
                .filter(|owned| self.inodes.iter().any(|&ino| owned.owner.is_data_of(ino)))
                .flat_map(|owned| (0..owned.run.blocks).map(move |skip| owned.block(skip)))
                .collect();
            found.sort_unstable_by_key(|owned| (owned.run, owned.owner));
            assert!(found == expected, "the owners are others");
        }
        let trees = u64::from(geometry.ag_count) * u64::from(space.file_system().has_sharing);
        assert_eq!(counted, free + trees - taken);
    }
}

fn compare_shared(found: &[Shared], expected: &[(u32, u32)]) {
    let blocks: Vec<(u32, u32)> = found
        .iter()
        .flat_map(|shared| {
            (0..shared.run.blocks).map(|skip| (shared.run.start + skip, shared.count))
        })
        .collect();
    assert_eq!(blocks, expected);
    for pair in found.windows(2) {
        let adjacent = pair[0].run.end() == u64::from(pair[1].run.start);
        assert!(!adjacent || pair[0].count != pair[1].count, "{pair:?} are not one");
    }
}

fn is_one(first: &Extent, second: &Extent) -> bool {
    first.file_end() == second.file.0
        && first.block.0 + first.blocks == second.block.0
        && first.unwritten == second.unwritten
}

fn span(block: u64, blocks: u64) -> Span {
    Span { block: FsBlock(block), blocks: u32::try_from(blocks).unwrap() }
}
