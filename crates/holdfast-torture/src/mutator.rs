//! A thread that keeps storing to memory of requests in flight.
//!
//! Of memory that is written from it changes the free bits of words, so that what is stored is
//! known but for those. Of memory that is read into it overwrites some of the words, which are not
//! looked at afterwards. The page that everybody uses may be overwritten anywhere.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use holdfast_iov::{GuestMemory, Place};
use holdfast_units::{to_u64, to_usize};

use crate::content::{FREE, SCRIBBLED_OF, WORD};
use crate::random::Random;
use crate::scatter::Scatter;

/// How memory may be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// The free bits of each word.
    FreeBits,
    /// All of the last of each few words.
    LastWords,
    /// Everything.
    All,
}

impl Change {
    /// The period of what changes, and the bytes of it that do, counted in the request's data.
    const fn bytes(self) -> (usize, std::ops::Range<usize>) {
        match self {
            Self::FreeBits => (WORD, 0..1),
            Self::LastWords => {
                (WORD * SCRIBBLED_OF, WORD * (SCRIBBLED_OF - 1)..WORD * SCRIBBLED_OF)
            }
            Self::All => (1, 0..1),
        }
    }
}

/// Memory of a request that may be changed while it is in flight.
#[derive(Debug)]
pub(crate) struct Target {
    change: Change,
    pieces: Vec<Piece>,
}

/// A piece inside one region.
#[derive(Debug)]
struct Piece {
    place: Place,
    /// Where in the request's data it begins.
    from: usize,
}

impl Target {
    /// Returns the memory of a request.
    pub(crate) fn of(scatter: &Scatter, change: Change, memory: &GuestMemory) -> Self {
        let mut pieces = Vec::with_capacity(scatter.segments.len());
        for (segment, range) in scatter.pieces() {
            add_places(memory, segment.address, range.len(), range.start, &mut pieces);
        }
        Self { change, pieces }
    }

    /// Returns some bytes of memory, all of which may change.
    pub(crate) fn all_of(address: u64, len: u64, memory: &GuestMemory) -> Self {
        let mut pieces = Vec::new();
        add_places(memory, address, to_usize(len), 0, &mut pieces);
        Self { change: Change::All, pieces }
    }

    /// Changes some bytes. Returns how many.
    fn change(&self, random: &mut Random) -> u64 {
        const STORES: usize = 12;
        let (period, bytes) = self.change.bytes();
        let mut done = 0;
        for _ in 0..STORES {
            let piece = &self.pieces[random.index(self.pieces.len())];
            let end = piece.from + piece.place.len();
            let first = piece.from / period;
            let group = first + random.index(end.div_ceil(period) - first);
            let at = group * period + bytes.start + random.index(bytes.len());
            if at < piece.from || at >= end {
                continue;
            }
            let at = at - piece.from;
            let value = random.next().to_le_bytes()[7];
            let value = match self.change {
                // Relaxed: it is a guest's store like any other.
                Change::FreeBits => {
                    piece.place.load_u8(at, Ordering::Relaxed) & !FREE | value & FREE
                }
                Change::LastWords | Change::All => value,
            };
            piece.place.store_u8(at, value, Ordering::Relaxed);
            done += 1;
        }
        done
    }
}

/// Appends the bytes at a guest address, which may lie in several regions that are neighbours.
fn add_places(
    memory: &GuestMemory,
    address: u64,
    len: usize,
    from: usize,
    pieces: &mut Vec<Piece>,
) {
    let mut done = 0;
    while done < len {
        let at = address + to_u64(done);
        let within = memory.regions().iter().find_map(|region| {
            let inside = at.checked_sub(region.guest_address)?;
            to_u64(region.region.len()).checked_sub(inside).filter(|left| *left > 0)
        });
        let left = within.expect("the arena has memory of the guest only");
        let piece = (len - done).min(to_usize(left));
        let place = memory.place(at, piece).expect("the piece lies in one region");
        pieces.push(Piece { place, from: from + done });
        done += piece;
    }
}

/// What the mutator may change now: one place for each request that can be in flight.
#[derive(Debug)]
pub(crate) struct Board {
    targets: Box<[Mutex<Option<Target>>]>,
    stores: AtomicU64,
    stopping: AtomicBool,
}

impl Board {
    /// Returns a board of so many places.
    pub(crate) fn new(places: usize) -> Self {
        Self {
            targets: (0..places).map(|_| Mutex::default()).collect(),
            stores: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        }
    }

    fn lock(&self, place: usize) -> MutexGuard<'_, Option<Target>> {
        self.targets[place].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets memory be changed from now on.
    pub(crate) fn put(&self, place: usize, target: Target) {
        *self.lock(place) = Some(target);
    }

    /// Lets it rest. When this returns the last store has been made.
    pub(crate) fn take(&self, place: usize) {
        *self.lock(place) = None;
    }

    /// Returns how many stores were made.
    pub(crate) fn stores(&self) -> u64 {
        self.stores.load(Ordering::Relaxed)
    }

    /// Ends [`run`](Self::run).
    pub(crate) fn stop(&self) {
        // Relaxed: nothing is concluded from it but that it is time to end.
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Stores to whatever is on the board, until it is stopped.
    pub(crate) fn run(&self, mut random: Random) {
        const STORES_AT_A_TIME: u64 = 4096;
        let mut since_yield = 0;
        while !self.stopping.load(Ordering::Relaxed) {
            let mut stores = 0;
            for target in &self.targets {
                let target = match target.try_lock() {
                    Ok(target) => target,
                    Err(TryLockError::Poisoned(target)) => target.into_inner(),
                    Err(TryLockError::WouldBlock) => continue,
                };
                stores += target.as_ref().map_or(0, |target| target.change(&mut random));
            }
            // Relaxed: it is read for the report only.
            self.stores.fetch_add(stores, Ordering::Relaxed);
            since_yield += stores;
            // Or a busy machine would let it store for whole time slices to nobody's memory.
            if stores == 0 || since_yield > STORES_AT_A_TIME {
                since_yield = 0;
                std::thread::yield_now();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use holdfast_iov::{GuestRegion, Region};
    use holdfast_virtio_driver::Segment;

    use super::*;
    use crate::content::{BLOCK, Found, Origin};
    use crate::model::Moment;

    /// Two regions that are neighbours.
    fn memory() -> GuestMemory {
        let region = |guest_address| GuestRegion {
            guest_address,
            user_address: guest_address,
            region: Arc::new(Region::anonymous(4096).unwrap()),
        };
        GuestMemory::new(vec![region(0), region(4096)]).unwrap()
    }

    /// A request of a block, cut at odd places, with a piece in both regions.
    fn scatter() -> Scatter {
        let lens = [(4000, 197), (101, 3), (5000, 312)];
        let mut scatter = Scatter::default();
        scatter.segments.extend(lens.map(|(address, len)| Segment { address, len }));
        scatter
    }

    fn move_data(memory: &GuestMemory, mut each: impl FnMut(&Region, usize, usize)) {
        for (segment, range) in scatter().pieces() {
            for (byte, at) in range.enumerate() {
                let address = to_usize(segment.address) + byte;
                each(&memory.regions()[address / 4096].region, address % 4096, at);
            }
        }
    }

    /// Lets the memory of a block be changed for a while, and returns what it is then.
    fn changed(change: Change) -> [u8; BLOCK] {
        let memory = memory();
        let mut block = [0; BLOCK];
        Origin { request: Moment::of_number(9), block: 5 }.fill(&mut block);
        move_data(&memory, |region, offset, at| region.write(offset, &[block[at]]).unwrap());
        let target = Target::of(&scatter(), change, &memory);
        assert_eq!(target.pieces.len(), 4);
        let mut random = Random::new(4);
        for _ in 0..1000 {
            target.change(&mut random);
        }
        let mut found = [0; BLOCK];
        move_data(&memory, |region, offset, at| {
            region.read(offset, &mut found[at..=at]).unwrap();
        });
        assert_ne!(found, block);
        found
    }

    #[test]
    fn only_free_bits_of_what_is_written_change() {
        let expected = Origin { request: Moment::of_number(9), block: 5 };
        assert_eq!(Found::of(&changed(Change::FreeBits), false), Found::Whole(expected));
    }

    #[test]
    fn only_words_that_say_nothing_change_where_is_read() {
        let found = changed(Change::LastWords);
        let expected = Origin { request: Moment::of_number(9), block: 5 };
        assert_eq!(Found::of(&found, true), Found::Whole(expected));
        assert!(matches!(Found::of(&found, false), Found::Torn { .. }));
    }

    #[test]
    fn what_is_off_the_board_rests() {
        let memory = memory();
        let board = Board::new(2);
        std::thread::scope(|scope| {
            scope.spawn(|| board.run(Random::new(5)));
            board.put(1, Target::all_of(0, 8192, &memory));
            while board.stores() == 0 {
                std::thread::yield_now();
            }
            board.take(1);
            let bytes = || {
                let mut bytes = [[0; 4096]; 2];
                for (region, bytes) in memory.regions().iter().zip(&mut bytes) {
                    region.region.read(0, bytes).unwrap();
                }
                bytes
            };
            let before = bytes();
            assert_ne!(before, [[0; 4096]; 2]);
            assert_eq!(bytes(), before);
            board.stop();
        });
    }
}
