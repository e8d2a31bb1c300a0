//! The bytes of one block of a tree: where its entries are, and how some are taken out or put in.

use std::marker::PhantomData;
use std::ops::Range;

use holdfast_xfs_format::{LEVELS_MAX, LongHeader, ShortHeader};

use crate::shape::{Shape, long, set_long, set_word, word};

/// The size of the header of a root in an inode, in bytes.
const FORK_HEADER: usize = 4;
/// Where a block has the number of the block before it.
const LEFT: usize = 8;

/// Where what is in a block, or in the fork of an inode that is a root.
#[derive(Debug)]
pub(crate) struct Layout<S> {
    level_at: usize,
    count_at: usize,
    start: usize,
    leaf_max: usize,
    node_max: usize,
    shape: PhantomData<S>,
}

impl<S> Clone for Layout<S> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<S> Copy for Layout<S> {}

/// Some entries: records, or keys and pointers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries {
    count: usize,
    /// Records or keys.
    first: Vec<u8>,
    /// Pointers, or nothing.
    second: Vec<u8>,
}

impl Entries {
    pub(crate) fn record<S: Shape>(record: &S::Record) -> Self {
        let mut first = vec![0; S::RECORD];
        S::encode(record, &mut first);
        Self { count: 1, first, second: Vec::new() }
    }

    pub(crate) fn pointer<S: Shape>(key: Vec<u8>, pointer: u64) -> Self {
        let mut second = vec![0; S::POINTER];
        set_pointer(&mut second, 0, S::POINTER, pointer);
        Self { count: 1, first: key, second }
    }

    pub(crate) fn append(&mut self, other: &Self) {
        self.count += other.count;
        self.first.extend_from_slice(&other.first);
        self.second.extend_from_slice(&other.second);
    }
}

impl<S: Shape> Layout<S> {
    /// The layout of a block.
    pub(crate) const fn block(len: usize) -> Self {
        let start = if S::POINTER == size_of::<u32>() {
            size_of::<ShortHeader>()
        } else {
            size_of::<LongHeader>()
        };
        Self::new(4, 6, start, len)
    }

    /// The layout of a root in an inode.
    pub(crate) const fn fork(len: usize) -> Self {
        Self::new(0, 2, FORK_HEADER, len)
    }

    const fn new(level_at: usize, count_at: usize, start: usize, len: usize) -> Self {
        let room = len.saturating_sub(start);
        let (leaf_max, node_max) = (room / S::RECORD, room / (S::KEY + S::POINTER));
        Self { level_at, count_at, start, leaf_max, node_max, shape: PhantomData }
    }

    /// Returns how many entries there is room for.
    pub(crate) const fn most(&self, level: u16) -> usize {
        if level == 0 { self.leaf_max } else { self.node_max }
    }

    /// Returns how many entries a block must have that is no root.
    pub(crate) const fn least(&self, level: u16) -> usize {
        self.most(level) / 2
    }

    pub(crate) fn level(&self, bytes: &[u8]) -> u16 {
        half(bytes, self.level_at)
    }

    pub(crate) fn set_level(&self, bytes: &mut [u8], level: u16) {
        bytes[self.level_at..self.level_at + 2].copy_from_slice(&level.to_be_bytes());
    }

    /// Returns how many entries there are. [`fault`](Self::fault) says whether it can be so many.
    pub(crate) fn count(&self, bytes: &[u8]) -> usize {
        usize::from(half(bytes, self.count_at))
    }

    fn set_count(&self, bytes: &mut [u8], count: usize) {
        let count = u16::try_from(count).expect("a block has no room for 65536 entries");
        bytes[self.count_at..self.count_at + 2].copy_from_slice(&count.to_be_bytes());
    }

    /// Returns the field of a header that cannot be so, and its value.
    pub(crate) fn fault(
        &self,
        bytes: &[u8],
        level: u16,
        may_be_empty: bool,
    ) -> Option<(&'static str, u64)> {
        if bytes.len() < self.start || level >= LEVELS_MAX {
            return Some(("level", u64::from(level)));
        }
        let (found, count) = (self.level(bytes), self.count(bytes));
        if found != level {
            return Some(("level", u64::from(found)));
        }
        let fits = count <= self.most(level) && (count > 0 || may_be_empty);
        (!fits).then(|| ("count", u64::from(half(bytes, self.count_at))))
    }

    pub(crate) fn record<'b>(&self, bytes: &'b [u8], index: usize) -> &'b [u8] {
        let at = self.start + index * S::RECORD;
        &bytes[at..at + S::RECORD]
    }

    pub(crate) fn record_mut<'b>(&self, bytes: &'b mut [u8], index: usize) -> &'b mut [u8] {
        let at = self.start + index * S::RECORD;
        &mut bytes[at..at + S::RECORD]
    }

    /// Returns the key of an entry of a node, with its high key.
    pub(crate) fn key<'b>(&self, bytes: &'b [u8], index: usize) -> &'b [u8] {
        let at = self.start + index * S::KEY;
        &bytes[at..at + S::KEY]
    }

    pub(crate) fn key_mut<'b>(&self, bytes: &'b mut [u8], index: usize) -> &'b mut [u8] {
        let at = self.start + index * S::KEY;
        &mut bytes[at..at + S::KEY]
    }

    /// Returns the block that an entry of a node points to.
    pub(crate) fn pointer(&self, bytes: &[u8], index: usize) -> u64 {
        let at = self.start + self.node_max * S::KEY + index * S::POINTER;
        pointer(bytes, at, S::POINTER)
    }

    /// Returns how many entries, from the first on, have a key that is not above `key`.
    pub(crate) fn upper_bound(&self, bytes: &[u8], level: u16, key: &S::Key) -> usize {
        let (mut low, mut high) = (0, self.count(bytes));
        while low < high {
            let middle = usize::midpoint(low, high);
            if self.low_key(bytes, level, middle) <= *key {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// Returns the key of an entry.
    pub(crate) fn low_key(&self, bytes: &[u8], level: u16, index: usize) -> S::Key {
        if level == 0 {
            S::key(&S::decode(self.record(bytes, index)))
        } else {
            S::decode_key(self.key(bytes, index))
        }
    }

    /// Returns the highest key of an entry.
    pub(crate) fn high_key(&self, bytes: &[u8], level: u16, index: usize) -> S::Key {
        if level == 0 {
            S::high_key(&S::decode(self.record(bytes, index)))
        } else if S::OVERLAPS {
            S::decode_key(&self.key(bytes, index)[S::KEY / 2..])
        } else {
            S::KEY_MAX
        }
    }

    /// Returns what a node above stores as the key of a block that is not empty.
    pub(crate) fn keys(&self, bytes: &[u8]) -> Vec<u8> {
        let level = self.level(bytes);
        let mut keys = vec![0; S::KEY];
        S::encode_key(&self.low_key(bytes, level, 0), &mut keys);
        if S::OVERLAPS {
            let count = self.count(bytes);
            let high = (0..count).map(|index| self.high_key(bytes, level, index)).max();
            if let Some(high) = high {
                S::encode_key(&high, &mut keys[S::KEY / 2..]);
            }
        }
        keys
    }

    /// Returns the block after this one at its level, which is no root in an inode.
    pub(crate) fn right(&self, bytes: &[u8]) -> Option<u64> {
        not_null(pointer(bytes, LEFT + S::POINTER, S::POINTER), S::POINTER)
    }

    pub(crate) fn set_left(&self, bytes: &mut [u8], block: Option<u64>) {
        set_pointer(bytes, LEFT, S::POINTER, block.unwrap_or(u64::MAX));
    }

    pub(crate) fn set_right(&self, bytes: &mut [u8], block: Option<u64>) {
        set_pointer(bytes, LEFT + S::POINTER, S::POINTER, block.unwrap_or(u64::MAX));
    }

    /// Takes entries out of a block.
    pub(crate) fn cut(&self, bytes: &mut [u8], range: Range<usize>) -> Entries {
        let count = self.count(bytes);
        let columns = self.columns(self.level(bytes));
        let [first, second] = columns.map(|(start, width)| {
            let (from, until) = (start + range.start * width, start + range.end * width);
            let cut = bytes[from..until].to_vec();
            let end = start + count * width;
            bytes.copy_within(until..end, from);
            bytes[end - cut.len()..end].fill(0);
            cut
        });
        self.set_count(bytes, count - range.len());
        Entries { count: range.len(), first, second }
    }

    /// Puts entries into a block, which has room for them.
    pub(crate) fn paste(&self, bytes: &mut [u8], index: usize, entries: &Entries) {
        let count = self.count(bytes);
        let index = index.min(count);
        let columns = self.columns(self.level(bytes));
        for ((start, width), new) in columns.into_iter().zip([&entries.first, &entries.second]) {
            let at = start + index * width;
            bytes.copy_within(at..start + count * width, at + new.len());
            bytes[at..at + new.len()].copy_from_slice(new);
        }
        self.set_count(bytes, count + entries.count);
    }

    /// Returns where records, or keys and pointers, begin, and the width of one.
    const fn columns(&self, level: u16) -> [(usize, usize); 2] {
        if level == 0 {
            [(self.start, S::RECORD), (self.start, 0)]
        } else {
            [(self.start, S::KEY), (self.start + self.node_max * S::KEY, S::POINTER)]
        }
    }
}

fn half(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |half| u16::from_be_bytes(*half))
}

fn pointer(bytes: &[u8], at: usize, width: usize) -> u64 {
    if width == size_of::<u32>() { u64::from(word(bytes, at)) } else { long(bytes, at) }
}

/// Stores a pointer, whose lower half is enough where pointers have 32 bits.
fn set_pointer(bytes: &mut [u8], at: usize, width: usize, value: u64) {
    if width == size_of::<u32>() {
        let low = value & u64::from(u32::MAX);
        set_word(bytes, at, u32::try_from(low).unwrap_or(u32::MAX));
    } else {
        set_long(bytes, at, value);
    }
}

/// All ones mean that there is no such block.
fn not_null(pointer: u64, width: usize) -> Option<u64> {
    let null = if width == size_of::<u32>() { u64::from(u32::MAX) } else { u64::MAX };
    (pointer != null).then_some(pointer)
}
