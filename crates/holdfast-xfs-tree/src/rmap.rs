//! Who owns which blocks of an allocation group.

use holdfast_xfs_format::{BlockKind, FileBlock, Ino};

use crate::blocks::Blocks;
use crate::free::Run;
use crate::group::Group;
use crate::shape::{Shape, long, set_long, set_word, word};

/// Who owns blocks, and where they are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    /// An inode, or a number from the end for what belongs to none.
    number: u64,
    /// The block of the file, with flags in the highest bits.
    offset: u64,
}

impl Owner {
    const ATTRIBUTES: u64 = 1 << 63;
    const TREE: u64 = 1 << 62;
    const UNWRITTEN: u64 = 1 << 61;
    const FLAGS: u64 = Self::ATTRIBUTES | Self::TREE | Self::UNWRITTEN;

    /// The trees of free space and of owners, and the AGFL.
    pub const TREES: Self = Self::special(5);
    /// The tree of shared extents.
    pub const REFCOUNT: Self = Self::special(8);

    const fn special(code: u64) -> Self {
        Self { number: 0_u64.wrapping_sub(code), offset: 0 }
    }

    /// Blocks of a file, or of its attributes, from block `file` of these on.
    pub const fn file(ino: Ino, file: FileBlock, is_attribute: bool, is_unwritten: bool) -> Self {
        let attributes = if is_attribute { Self::ATTRIBUTES } else { 0 };
        let unwritten = if is_unwritten { Self::UNWRITTEN } else { 0 };
        Self { number: ino.0, offset: (file.0 & !Self::FLAGS) | attributes | unwritten }
    }

    /// Blocks of the tree of a file's extents, or of those of its attributes.
    pub const fn extent_tree(ino: Ino, is_attribute: bool) -> Self {
        let attributes = if is_attribute { Self::ATTRIBUTES } else { 0 };
        Self { number: ino.0, offset: Self::TREE | attributes }
    }

    /// Returns whether blocks of this owner are data of a file.
    pub const fn is_data_of(&self, ino: Ino) -> bool {
        self.number == ino.0 && self.offset & (Self::TREE | Self::ATTRIBUTES) == 0
    }

    /// Returns whether blocks of this owner have places in a file.
    const fn has_places(&self) -> bool {
        self.number >> 63 == 0 && self.offset & Self::TREE == 0
    }

    /// Returns the owner of what is `blocks` behind.
    const fn skip(&self, blocks: u64) -> Self {
        if self.has_places() {
            Self { number: self.number, offset: self.offset.wrapping_add(blocks) }
        } else {
            *self
        }
    }

    /// What the tree is ordered by: unwritten or not does not matter.
    const fn key(&self) -> (u64, u64) {
        (self.number, self.offset & !Self::UNWRITTEN)
    }
}

/// Blocks and who owns them (`xfs_rmap_rec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owned {
    /// The blocks.
    pub run: Run,
    /// The owner of the first.
    pub owner: Owner,
}

impl Owned {
    /// Returns one of the blocks with its owner.
    pub const fn block(&self, index: u32) -> Self {
        let mut block = self.rest(index);
        block.run.blocks = 1;
        block
    }

    /// Returns whether what follows can be one record with this.
    pub const fn continues_in(&self, next: &Self) -> bool {
        let owner = self.owner.skip(self.run.blocks as u64);
        self.run.end() == next.run.start as u64
            && owner.number == next.owner.number
            && owner.offset == next.owner.offset
            && self.run.blocks.checked_add(next.run.blocks).is_some()
    }

    /// Returns what begins so many blocks behind the first.
    const fn rest(&self, skip: u32) -> Self {
        let run = Run { start: self.run.start + skip, blocks: self.run.blocks - skip };
        Self { run, owner: self.owner.skip(skip as u64) }
    }
}

/// The tree of owners.
#[derive(Debug)]
pub(crate) struct Owners;

impl Shape for Owners {
    type Record = Owned;
    /// The block, the owner, and the place there.
    type Key = (u32, u64, u64);

    const KIND: BlockKind = BlockKind::Rmap;
    const RECORD: usize = 24;
    const KEY: usize = 40;
    const POINTER: usize = 4;
    const OVERLAPS: bool = true;
    const KEY_MAX: Self::Key = (u32::MAX, u64::MAX, u64::MAX);

    fn decode(bytes: &[u8]) -> Owned {
        Owned {
            run: Run { start: word(bytes, 0), blocks: word(bytes, 4) },
            owner: Owner { number: long(bytes, 8), offset: long(bytes, 16) },
        }
    }

    fn encode(record: &Owned, bytes: &mut [u8]) {
        set_word(bytes, 0, record.run.start);
        set_word(bytes, 4, record.run.blocks);
        set_long(bytes, 8, record.owner.number);
        set_long(bytes, 16, record.owner.offset);
    }

    fn key(record: &Owned) -> Self::Key {
        let (number, offset) = record.owner.key();
        (record.run.start, number, offset)
    }

    fn decode_key(bytes: &[u8]) -> Self::Key {
        (word(bytes, 0), long(bytes, 4), long(bytes, 12))
    }

    fn encode_key(key: &Self::Key, bytes: &mut [u8]) {
        set_word(bytes, 0, key.0);
        set_long(bytes, 4, key.1);
        set_long(bytes, 12, key.2);
    }

    fn high_key(record: &Owned) -> Self::Key {
        let last = record.run.blocks.saturating_sub(1);
        let (number, offset) = record.owner.skip(u64::from(last)).key();
        (record.run.start.saturating_add(last), number, offset)
    }
}

impl<B: Blocks> Group<'_, B> {
    /// Stores who owns blocks now. Without a tree of owners it does nothing.
    ///
    /// # Errors
    ///
    /// [`TreeError::Contradiction`](crate::TreeError::Contradiction) when they have an owner already who
    /// shares them with nobody, and [`TreeError::Group`](crate::TreeError::Group).
    pub fn add_owner(&mut self, run: Run, owner: &Owner) -> Result<(), B::Error> {
        if self.file_system.has_owners {
            self.fix_list()?;
        }
        self.own(run, owner)
    }

    /// Stores that blocks are not this owner's any more. Without a tree of owners it does nothing.
    ///
    /// # Errors
    ///
    /// [`TreeError::Contradiction`](crate::TreeError::Contradiction) when they are not his, and
    /// [`TreeError::Group`](crate::TreeError::Group).
    pub fn remove_owner(&mut self, run: Run, owner: &Owner) -> Result<(), B::Error> {
        if self.file_system.has_owners {
            self.fix_list()?;
        }
        self.disown(run, owner)
    }

    /// Returns who owns what.
    ///
    /// # Errors
    ///
    /// [`TreeError::Group`](crate::TreeError::Group).
    pub fn owners(&mut self) -> Result<Vec<Owned>, B::Error> {
        if self.file_system.has_owners { self.tree::<Owners>().all() } else { Ok(Vec::new()) }
    }

    /// As [`add_owner`](Self::add_owner), for blocks of the AGFL.
    pub(crate) fn own(&mut self, run: Run, owner: &Owner) -> Result<(), B::Error> {
        if !self.file_system.has_owners {
            return Ok(());
        }
        self.check_run(run)?;
        let new = Owned { run, owner: *owner };
        let before = match run.start.checked_sub(1) {
            None => None,
            Some(last) => self.owned(last, |found| found.continues_in(&new))?,
        };
        let end = new.rest(run.blocks);
        let after = self.tree::<Owners>().exactly(&Owners::key(&end))?.map(|(_, found)| found);
        let after = after.filter(|after| new.continues_in(after));
        let first = before.unwrap_or(new);
        let blocks = [before, Some(new), after].into_iter().flatten();
        let blocks = blocks.fold(0_u32, |sum, owned| sum.saturating_add(owned.run.blocks));
        let run = Run { start: first.run.start, blocks };
        self.check_run(run)?;
        let merged = Owned { run, owner: first.owner };
        if let Some(after) = after {
            self.replace_owned(&after, None)?;
        }
        match before {
            Some(before) => self.replace_owned(&before, Some(&merged)),
            None => self.tree::<Owners>().insert(&merged),
        }
    }

    /// As [`remove_owner`](Self::remove_owner), for blocks of the AGFL.
    pub(crate) fn disown(&mut self, run: Run, owner: &Owner) -> Result<(), B::Error> {
        if !self.file_system.has_owners {
            return Ok(());
        }
        self.check_run(run)?;
        let old = Owned { run, owner: *owner };
        let Some(found) = self.owned(run.start, |found| covers(found, &old))? else {
            return self.contradiction(Owners::KIND, run.start, "has another owner of a block");
        };
        let skip = run.start - found.run.start;
        let before = Owned { run: Run { blocks: skip, ..found.run }, owner: found.owner };
        let after = found.rest(skip + run.blocks);
        let has_after = after.run.blocks > 0;
        if skip == 0 {
            return self.replace_owned(&found, has_after.then_some(&after));
        }
        self.replace_owned(&found, Some(&before))?;
        if has_after { self.tree::<Owners>().insert(&after) } else { Ok(()) }
    }

    /// Returns the first record that holds a block and satisfies a condition.
    fn owned(
        &mut self,
        block: u32,
        holds: impl Fn(&Owned) -> bool,
    ) -> Result<Option<Owned>, B::Error> {
        let mut tree = self.tree::<Owners>();
        // What is not shared has one owner, who is found without a search.
        if let Some((_, found)) = tree.at_or_before(&(block, u64::MAX, u64::MAX))?
            && holds(&found)
        {
            return Ok(Some(found));
        }
        let mut result = None;
        let (low, high) = ((block, 0, 0), (block, u64::MAX, u64::MAX));
        tree.overlapping(&low, &high, &mut |found| {
            result = Some(*found).filter(&holds);
            result.is_none()
        })?;
        Ok(result)
    }

    /// Takes a record out, and puts another in that may begin further on.
    fn replace_owned(&mut self, old: &Owned, new: Option<&Owned>) -> Result<(), B::Error> {
        let mut tree = self.tree::<Owners>();
        let found = tree.exactly(&Owners::key(old))?;
        match (found, new) {
            (Some((path, _)), Some(new)) if new.run.start == old.run.start => {
                tree.update(&path, new)
            }
            (Some((path, _)), new) => {
                tree.remove(path)?;
                new.map_or(Ok(()), |new| tree.insert(new))
            }
            (None, _) => self.contradiction(Owners::KIND, old.run.start, "does not have a record"),
        }
    }
}

/// Returns whether a record has all of these blocks of this owner.
fn covers(found: &Owned, part: &Owned) -> bool {
    let Some(skip) = part.run.start.checked_sub(found.run.start) else {
        return false;
    };
    found.run.end() >= part.run.end() && found.owner.skip(u64::from(skip)) == part.owner
}
