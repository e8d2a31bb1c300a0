//! The tuple cache: tuple blocks in memory, bounded, and shared by all queues of a volume.
//!
//! It is set-associative: a group may lie in any of the eight *ways* of one *set*. A way holds the
//! group's tuples and the claims on its sectors. Whoever works on a group has its way pinned, and a
//! pinned way stays what it is. Finding and pinning a way that holds the group takes no lock and
//! allocates nothing; filling and emptying ways is done under the lock of the set.
//!
//! All who have to wait, for whatever reason, wait in the list of the set, and are told to try
//! again whenever something in the set is given up.

#[cfg(not(loom))]
use holdfast_iov::{ZeroedWords, prefetch};
use holdfast_units::{to_u64, to_usize};

use crate::claims::{self, Mode, Sectors};
use crate::inbox::Waiter;
use crate::sync::{AtomicBool, AtomicU32, AtomicU64, Mutex, Ordering, fence, lock};

/// Ways of a set. Loom has fewer, or it would never be done.
const WAYS: usize = if cfg!(loom) { 2 } else { 8 };
/// The tuples are being read or written back: nobody else may look at them.
const BUSY: u32 = 1 << 31;
/// Somebody waits for a claim in this way: who comes later waits behind.
const CONTENDED: u32 = 1 << 30;
/// The whole tuple block was zeros when it was read, and its space may not be allocated yet.
const FRESH: u32 = 1 << 29;
/// The way was used since the last look for one to empty.
const USED: u32 = 1 << 28;
const PINS: u32 = USED - 1;

const WORDS_OF_BLOCK: usize =
    if cfg!(loom) { 2 } else { crate::geometry::TUPLE_BLOCK / size_of::<u64>() };

/// A pinned way. It must be given back by [`Cache::unpin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    set: usize,
    way: usize,
}

impl Way {
    /// Returns its position among all ways.
    pub(crate) const fn index(self) -> usize {
        self.set * WAYS + self.way
    }

    /// Returns the way at a position among all ways.
    pub(crate) const fn at(index: usize) -> Self {
        Self { set: index / WAYS, way: index % WAYS }
    }
}

/// What became of the wish to pin a group.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Pinned {
    /// The way holds the group's tuples.
    Ready(Way),
    /// The way is for the group, empty and busy: its tuples must be read, and
    /// [`Cache::filled`] or [`Cache::abandon`] called.
    Fill(Way),
    /// The way holds changed tuples of another group, and is busy: they must be written, and
    /// [`Cache::emptied`] called.
    WriteBack(Way),
    /// Nothing can be done now. The waiter will be told.
    Wait,
}

/// What each visit looks at lies in two lines of the processor's caches.
#[derive(Debug)]
#[repr(C, align(64))]
struct Set {
    /// The group of each way and one, or 0.
    tags: [AtomicU64; WAYS],
    states: [AtomicU32; WAYS],
    /// There is somebody in the list.
    waiting: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    waiters: Vec<Waiter>,
    /// The way at which the search for one to empty begins.
    hand: usize,
}

impl Set {
    fn new() -> Self {
        Self {
            tags: std::array::from_fn(|_| AtomicU64::new(0)),
            states: std::array::from_fn(|_| AtomicU32::new(0)),
            waiting: AtomicBool::new(false),
            inner: Mutex::default(),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Cache {
    sets: Box<[Set]>,
    /// The tuples of all ways, as big-endian words.
    words: ZeroedWords,
    /// The claims of all ways.
    claims: ZeroedWords,
    /// One bit for each way whose tuples are newer than those stored.
    dirty: ZeroedWords,
    claim_words: usize,
    tuple_words: usize,
}

impl Cache {
    /// Returns a cache of about `bytes`, at least one set, and no larger than what `groups` groups fill by half:
    /// what is used of it then lies close together.
    pub(crate) fn new(
        bytes: usize,
        groups: u64,
        sectors_of_group: usize,
        tuple_words: usize,
    ) -> Self {
        let claim_words = claims::words_for(sectors_of_group);
        let of_way = (WORDS_OF_BLOCK + claim_words) * size_of::<u64>();
        let most = groups.div_ceil(to_u64(WAYS / 2));
        let sets = to_u64(bytes / (of_way * WAYS)).min(most).max(1);
        Self::with_sets(to_usize(sets), claim_words, tuple_words)
    }

    fn with_sets(sets: usize, claim_words: usize, tuple_words: usize) -> Self {
        let ways = sets * WAYS;
        Self {
            sets: (0..sets).map(|_| Set::new()).collect(),
            words: zeroed(ways * WORDS_OF_BLOCK),
            claims: zeroed(ways * claim_words),
            dirty: zeroed(ways.div_ceil(64)),
            claim_words,
            tuple_words,
        }
    }

    fn set_of(&self, group: u64) -> usize {
        // Fibonacci hashing: neighbours go to sets apart, as do groups at a power of two.
        let hash = group.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let scaled = (u128::from(hash) * self.sets.len() as u128) >> 64;
        usize::try_from(scaled).expect("less than the number of sets")
    }

    /// Pins the way of `group` and claims sectors of it, where nothing is in the way: the usual case, for which
    /// nobody needs to be told of anything.
    pub(crate) fn enter(&self, group: u64, sectors: Sectors, mode: Mode) -> Option<Way> {
        let set = self.set_of(group);
        let way = self.find(set, group)?;
        self.prefetch(way, sectors);
        if !self.pin_found(way, group) {
            return None;
        }
        // Relaxed: who misses that somebody waits only goes first.
        let state = self.sets[way.set].states[way.way].load(Ordering::Relaxed);
        if state & CONTENDED == 0 && claims::try_claim(self.claims_of(way), sectors, mode) {
            return Some(way);
        }
        // It had some of the sectors for a moment. Who met that and waits is told with this.
        self.unpin(way);
        None
    }

    /// Has the processor fetch what a visit to the first of some sectors needs, all at the same time.
    fn prefetch(&self, way: Way, sectors: Sectors) {
        #[cfg(not(loom))]
        {
            prefetch(&self.sets[way.set].states);
            prefetch(&self.claims_of(way)[sectors.first / claims::SECTORS_OF_WORD]);
            prefetch(&self.words[self.tuple_at(way, sectors.first)]);
        }
        #[cfg(loom)]
        let _nothing_is_far = (way, sectors);
    }

    /// Pins the way of `group`, or says what has to be done first.
    pub(crate) fn pin(&self, group: u64, waiter: &Waiter) -> Pinned {
        let set = self.set_of(group);
        match self.pin_present(set, group) {
            Some(way) => Pinned::Ready(way),
            None => self.pin_absent(set, group, waiter),
        }
    }

    /// Pins the way that holds `group`, if one does and nobody is filling or emptying it.
    fn pin_present(&self, index: usize, group: u64) -> Option<Way> {
        self.find(index, group).filter(|&way| self.pin_found(way, group))
    }

    /// Returns the way that seems to hold `group`.
    fn find(&self, index: usize, group: u64) -> Option<Way> {
        // Relaxed: a guess, which is confirmed once the way is pinned.
        let holds = |tag: &AtomicU64| tag.load(Ordering::Relaxed) == group + 1;
        let way = self.sets[index].tags.iter().position(holds)?;
        Some(Way { set: index, way })
    }

    /// Pins a way if it does hold `group`, and nobody is filling or emptying it.
    fn pin_found(&self, Way { set, way }: Way, group: u64) -> bool {
        let set = &self.sets[set];
        // Acquire pairs with the release in `filled`: the tag and the tuples are there.
        let before = set.states[way].fetch_add(1, Ordering::Acquire);
        let is_ours = before & BUSY == 0 && set.tags[way].load(Ordering::Relaxed) == group + 1;
        if !is_ours {
            // Nobody is told: who met this pin while looking for a way to empty is followed by us,
            // who empty or wait for one ourselves.
            set.states[way].fetch_sub(1, Ordering::Release);
            return false;
        }
        if before & USED == 0 {
            set.states[way].fetch_or(USED, Ordering::Relaxed);
        }
        true
    }

    fn pin_absent(&self, index: usize, group: u64, waiter: &Waiter) -> Pinned {
        let set = &self.sets[index];
        let mut inner = lock(&set.inner);
        // Before the search: who gives something up afterwards sees that somebody waits.
        self.announce(set);
        if let Some(way) = self.pin_present(index, group) {
            return Pinned::Ready(way);
        }
        let is_coming = set.tags.iter().any(|tag| tag.load(Ordering::Relaxed) == group + 1);
        if !is_coming && let Some(way) = self.evict(set, &mut inner) {
            let found = Way { set: index, way };
            if self.is_dirty(found) {
                return Pinned::WriteBack(found);
            }
            set.tags[way].store(group + 1, Ordering::Relaxed);
            return Pinned::Fill(found);
        }
        inner.waiters.push(waiter.clone());
        Pinned::Wait
    }

    /// Says that somebody is about to wait for something in the set.
    fn announce(&self, set: &Set) {
        set.waiting.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either we see what was given up before it, or whoever
        // gave it up sees that we wait.
        fence(Ordering::SeqCst);
    }

    /// Makes an unpinned way busy: an empty one, or one that was not used lately.
    fn evict(&self, set: &Set, inner: &mut Inner) -> Option<usize> {
        let empty = (0..WAYS).find(|&way| set.tags[way].load(Ordering::Relaxed) == 0);
        let round = (0..2 * WAYS).map(|step| (inner.hand + step) % WAYS);
        for way in empty.into_iter().chain(round) {
            let state = &set.states[way];
            // Acquire: what those who had it pinned did has happened.
            let found = state.load(Ordering::Acquire);
            if found & (PINS | BUSY) != 0 {
                continue;
            }
            if found & USED != 0 && empty != Some(way) {
                state.fetch_and(!USED, Ordering::Relaxed);
                continue;
            }
            // Acquire, as for the load. Relaxed on failure: somebody pinned it, or has a pin that
            // is about to be taken back.
            let exchanged =
                state.compare_exchange(found, BUSY, Ordering::Acquire, Ordering::Relaxed);
            if exchanged.is_ok() {
                inner.hand = (way + 1) % WAYS;
                return Some(way);
            }
        }
        None
    }

    /// Puts the tuples that were read into a way to be filled, and turns it into a pinned one.
    pub(crate) fn filled(&self, way: Way, block: &[u8]) {
        let words = &self.words[way.index() * WORDS_OF_BLOCK..][..WORDS_OF_BLOCK];
        let mut fresh = FRESH;
        for (word, bytes) in words.iter().zip(block.as_chunks().0) {
            let value = u64::from_be_bytes(*bytes);
            if value != 0 {
                fresh = 0;
            }
            word.store(value, Ordering::Relaxed);
        }
        let state = &self.sets[way.set].states[way.way];
        // One pin, for the caller, in exchange for BUSY; others' pins that are about to be taken
        // back stay counted. Release pairs with the acquire in `pin_present`.
        state.fetch_or(fresh | USED, Ordering::Relaxed);
        state.fetch_sub(BUSY - 1, Ordering::Release);
        self.wake(way.set);
    }

    /// Makes a way to be filled an empty one, because its tuples could not be read.
    pub(crate) fn abandon(&self, way: Way) {
        let set = &self.sets[way.set];
        set.tags[way.way].store(0, Ordering::Relaxed);
        set.states[way.way].fetch_and(!BUSY, Ordering::Release);
        self.wake(way.set);
    }

    /// Makes a way whose tuples have been written an empty one, or leaves it what it was when they
    /// could not be.
    pub(crate) fn emptied(&self, way: Way, written: bool) {
        let set = &self.sets[way.set];
        if written {
            self.clear_dirty(way);
            set.tags[way.way].store(0, Ordering::Relaxed);
        }
        set.states[way.way].fetch_and(!BUSY, Ordering::Release);
        self.wake(way.set);
    }

    /// Gives a pin back.
    pub(crate) fn unpin(&self, way: Way) {
        // Release pairs with the acquire in `evict`.
        self.sets[way.set].states[way.way].fetch_sub(1, Ordering::Release);
        self.wake(way.set);
    }

    /// Claims sectors of a pinned way. `false` when that has to wait: the waiter will be told.
    pub(crate) fn claim(&self, way: Way, sectors: Sectors, mode: Mode, waiter: &Waiter) -> bool {
        let set = &self.sets[way.set];
        let state = &set.states[way.way];
        // Relaxed: who misses that somebody waits only goes first.
        let contended = state.load(Ordering::Relaxed) & CONTENDED != 0;
        if !contended && claims::try_claim(self.claims_of(way), sectors, mode) {
            return true;
        }
        let mut inner = lock(&set.inner);
        self.announce(set);
        // Whoever tried above tries again also behind others: it had some of the sectors for a moment,
        // and they may wait because they met that. If it succeeds, they are told when it is done;
        // if it fails, it met a holder, who will tell them all.
        let is_first = !contended || state.load(Ordering::Relaxed) & CONTENDED == 0;
        if is_first && claims::try_claim(self.claims_of(way), sectors, mode) {
            return true;
        }
        state.fetch_or(CONTENDED, Ordering::Relaxed);
        inner.waiters.push(waiter.clone());
        false
    }

    /// Gives up a claim and the pin.
    pub(crate) fn release(&self, way: Way, sectors: Sectors, mode: Mode) {
        claims::release(self.claims_of(way), sectors, mode);
        self.unpin(way);
    }

    /// Tells all who wait in a set to try again, after something in it was given up.
    fn wake(&self, index: usize) {
        let set = &self.sets[index];
        // Pairs with the fence in `announce`.
        fence(Ordering::SeqCst);
        if !set.waiting.load(Ordering::Relaxed) {
            return;
        }
        let waiters = {
            let mut inner = lock(&set.inner);
            set.waiting.store(false, Ordering::Relaxed);
            for state in &set.states {
                if state.load(Ordering::Relaxed) & CONTENDED != 0 {
                    state.fetch_and(!CONTENDED, Ordering::Relaxed);
                }
            }
            std::mem::take(&mut inner.waiters)
        };
        for waiter in waiters {
            waiter.retry();
        }
    }

    fn claims_of(&self, way: Way) -> &[AtomicU64] {
        &self.claims[way.index() * self.claim_words..][..self.claim_words]
    }

    /// Returns whether somebody waits for something in the set of a way. To be asked after a fence.
    pub(crate) fn is_awaited(&self, way: Way) -> bool {
        self.sets[way.set].waiting.load(Ordering::Relaxed)
    }

    /// Returns the group that a pinned or busy way holds.
    pub(crate) fn group(&self, way: Way) -> u64 {
        self.sets[way.set].tags[way.way].load(Ordering::Relaxed) - 1
    }

    /// Returns the tuple of a sector that the caller has claimed.
    pub(crate) fn tuple(&self, way: Way, sector: usize) -> [u64; 2] {
        let words = &self.words[self.tuple_at(way, sector)..][..self.tuple_words];
        let mut tuple = [0; 2];
        for (to, from) in tuple.iter_mut().zip(words) {
            // Relaxed: the claim orders it behind what the last holder stored.
            *to = from.load(Ordering::Relaxed);
        }
        tuple
    }

    /// Stores the tuple of a sector that the caller has claimed alone. [`mark_dirty`] must follow.
    ///
    /// [`mark_dirty`]: Self::mark_dirty
    pub(crate) fn set_tuple(&self, way: Way, sector: usize, tuple: [u64; 2]) {
        let words = &self.words[self.tuple_at(way, sector)..][..self.tuple_words];
        for (to, from) in words.iter().zip(tuple) {
            // Relaxed: the claim orders it before what the next holder loads.
            to.store(from, Ordering::Relaxed);
        }
    }

    fn tuple_at(&self, way: Way, sector: usize) -> usize {
        way.index() * WORDS_OF_BLOCK + sector * self.tuple_words
    }

    /// Returns whether the space of the tuple block may not be allocated yet.
    pub(crate) fn is_fresh(&self, way: Way) -> bool {
        self.sets[way.set].states[way.way].load(Ordering::Relaxed) & FRESH != 0
    }

    /// Says that the space of the tuple block is allocated.
    pub(crate) fn set_allocated(&self, way: Way) {
        self.sets[way.set].states[way.way].fetch_and(!FRESH, Ordering::Relaxed);
    }

    /// Says that tuples of a way are newer than those stored.
    pub(crate) fn mark_dirty(&self, way: Way) {
        let (word, bit) = self.dirty_bit(way.index());
        // Release pairs with the acquire in `clear_dirty`: the tuples are stored before.
        word.fetch_or(bit, Ordering::Release);
    }

    /// Forgets that a way is dirty. What is copied from it afterwards has all that was marked.
    pub(crate) fn clear_dirty(&self, way: Way) {
        let (word, bit) = self.dirty_bit(way.index());
        // Release pairs with the acquire in `next_dirty`: what was written back is on the device.
        word.fetch_and(!bit, Ordering::AcqRel);
    }

    fn is_dirty(&self, way: Way) -> bool {
        let (word, bit) = self.dirty_bit(way.index());
        word.load(Ordering::Acquire) & bit != 0
    }

    fn dirty_bit(&self, index: usize) -> (&AtomicU64, u64) {
        (&self.dirty[index / 64], 1 << (index % 64))
    }

    /// Pins the first dirty way from position `from` on. `Err` has the position of one that is
    /// being written back by somebody else: the waiter will be told.
    pub(crate) fn pin_dirty(&self, mut from: usize, waiter: &Waiter) -> Option<Result<Way, usize>> {
        loop {
            let index = self.next_dirty(from)?;
            let way = Way::at(index);
            if !self.pin_quiet(way, waiter) {
                return Some(Err(index));
            }
            // Before it was pinned, somebody may have written it back and emptied it.
            if self.is_dirty(way) {
                return Some(Ok(way));
            }
            self.unpin(way);
            from = Self::position_after(way);
        }
    }

    /// Pins a way whatever it holds, unless it is busy.
    fn pin_quiet(&self, way: Way, waiter: &Waiter) -> bool {
        let set = &self.sets[way.set];
        let state = &set.states[way.way];
        let pin = || {
            let quiet = state.fetch_add(1, Ordering::Acquire) & BUSY == 0;
            if !quiet {
                state.fetch_sub(1, Ordering::Release);
            }
            quiet
        };
        if pin() {
            return true;
        }
        let mut inner = lock(&set.inner);
        self.announce(set);
        let quiet = pin();
        if !quiet {
            inner.waiters.push(waiter.clone());
        }
        quiet
    }

    /// Returns the first dirty way from position `from` on, while nobody uses the cache.
    pub(crate) fn next_dirty_way(&self, from: usize) -> Option<Way> {
        self.next_dirty(from).map(Way::at)
    }

    fn next_dirty(&self, from: usize) -> Option<usize> {
        let first = from / 64;
        self.dirty.get(first..)?.iter().enumerate().find_map(|(offset, word)| {
            let below = if offset == 0 { (1 << (from % 64)) - 1 } else { 0 };
            // Acquire pairs with the release in `clear_dirty`: a flush passes a clean way by.
            let bits = word.load(Ordering::Acquire) & !below;
            let bit = bits.trailing_zeros() as usize;
            (bits != 0).then_some((first + offset) * 64 + bit)
        })
    }

    /// Returns the position behind that of a way.
    pub(crate) const fn position_after(way: Way) -> usize {
        way.index() + 1
    }

    /// Copies the tuples of a pinned or busy way.
    pub(crate) fn copy_tuples(&self, way: Way, block: &mut [u8]) {
        let words = &self.words[way.index() * WORDS_OF_BLOCK..][..WORDS_OF_BLOCK];
        for (bytes, word) in block.as_chunks_mut().0.iter_mut().zip(words) {
            *bytes = word.load(Ordering::Relaxed).to_be_bytes();
        }
    }

    /// Returns how many bytes of tuples and claims there is room for.
    pub(crate) fn bytes(&self) -> u64 {
        to_u64((self.words.len() + self.claims.len()) * size_of::<u64>())
    }
}

#[cfg(loom)]
type ZeroedWords = Box<[AtomicU64]>;

#[cfg(not(loom))]
fn zeroed(count: usize) -> ZeroedWords {
    ZeroedWords::new(count).expect("the cache fits in memory")
}

#[cfg(loom)]
fn zeroed(count: usize) -> ZeroedWords {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

#[cfg(all(test, loom))]
mod loom_tests;
