//! Who may write where in the tuple log, and when a half of it may be used again.
//!
//! Records go to one half until it is full, then to the other. Each such use of a half is a
//! *round*; the round and the place in the half are one number, the cursor, which only grows. A
//! half is used again when every job with a record in it has ended, and after that all changed
//! tuples were stored. Reserving takes no lock and allocates nothing. Nothing here does I/O.

use holdfast_bio::Error;

use crate::inbox::Waiter;
use crate::sync::{AtomicBool, AtomicU64, Mutex, Ordering, fence, lock};

/// The bits of the cursor that are the place in the half. Above them is the round.
const PLACE_BITS: u32 = 24;

/// A place in the log, in units: the round and the place in its half. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(u64);

impl Position {
    pub(crate) const fn from_number(number: u64) -> Self {
        Self(number)
    }

    pub(crate) const fn number(self) -> u64 {
        self.0
    }

    pub(crate) const fn new(round: u64, place: u64) -> Self {
        Self(round << PLACE_BITS | place)
    }

    /// Returns the position so many units behind this one, in the same half.
    pub(crate) const fn after(self, units: u64) -> Self {
        Self(self.0 + units)
    }

    pub(crate) const fn round(self) -> u64 {
        self.0 >> PLACE_BITS
    }

    /// Returns the place in the half, in units.
    pub(crate) const fn place(self) -> u64 {
        self.0 & ((1 << PLACE_BITS) - 1)
    }

    /// Returns which half it is in, 0 or 1.
    pub(crate) const fn half(self) -> usize {
        half_of(self.round())
    }
}

const fn half_of(round: u64) -> usize {
    if round.is_multiple_of(2) { 0 } else { 1 }
}

#[derive(Debug)]
pub(crate) struct Halves {
    /// The length of a half, in units.
    units: u64,
    /// The [`Position`] of the next record.
    cursor: AtomicU64,
    /// How many users the places in each half have, or are about to.
    users: [AtomicU64; 2],
    /// The greatest round whose tuples are all stored. It is the last but one or the last but two.
    stored: AtomicU64,
    /// The greatest round for which somebody was asked to store all tuples.
    requested: AtomicU64,
    /// There is somebody in the list.
    waiting: AtomicBool,
    waiters: Mutex<Vec<Waiter>>,
}

impl Halves {
    /// Returns two halves of so many units each, with nothing in them.
    pub(crate) fn new(units: u64) -> Self {
        assert!(units < 1 << PLACE_BITS, "a half has {units} units, which the cursor cannot count");
        Self {
            units,
            cursor: AtomicU64::new(Position::new(1, 0).number()),
            users: [AtomicU64::new(0), AtomicU64::new(0)],
            stored: AtomicU64::new(0),
            requested: AtomicU64::new(0),
            waiting: AtomicBool::new(false),
            waiters: Mutex::default(),
        }
    }

    /// Returns the length of a half, in units.
    pub(crate) const fn units(&self) -> u64 {
        self.units
    }

    /// Returns where the next place will be, or one before it.
    pub(crate) fn position(&self) -> Position {
        // Acquire pairs with the release in `reserve`: those who have a place in an earlier round
        // are counted, and that the round before that was stored is seen.
        Position(self.cursor.load(Ordering::Acquire))
    }

    /// Reserves a place of so many units, which are fewer than a half's, until each of its users,
    /// who are at least one, has released it. `None` when both halves are in use.
    pub(crate) fn reserve(&self, units: u64, count: u64) -> Option<Position> {
        debug_assert!(units <= self.units);
        let mut found = self.position();
        loop {
            let users = &self.users[found.half()];
            // Before the place is taken, so that whoever sees the next round sees us, too. Release
            // pairs with the acquire in `wait`.
            users.fetch_add(count, Ordering::AcqRel);
            let round = found.round();
            while found.round() == round && found.place() + units <= self.units {
                match self.exchange(found, Position(found.number() + units)) {
                    Ok(()) => return Some(found),
                    Err(other) => found = other,
                }
            }
            self.release_half(half_of(round), count);
            if found.round() != round {
                continue;
            }
            // Acquire pairs with the release in `flushed`: the tuples of the half are stored.
            if self.stored.load(Ordering::Acquire) + 1 < round {
                return None;
            }
            found = match self.exchange(found, Position::new(round + 1, 0)) {
                Ok(()) => Position::new(round + 1, 0),
                Err(other) => other,
            };
        }
    }

    fn exchange(&self, found: Position, next: Position) -> Result<(), Position> {
        // Release pairs with the acquire in `position`. Acquire on failure for the same reason.
        self.cursor
            .compare_exchange(found.0, next.0, Ordering::AcqRel, Ordering::Acquire)
            .map(drop)
            .map_err(Position)
    }

    /// Gives a place up for one of its users, after the tuples that it is for were marked as changed or are not to be.
    /// Returns whether the caller has to see to it that all tuples are stored.
    #[must_use]
    pub(crate) fn release(&self, position: Position) -> bool {
        self.release_half(position.half(), 1) && {
            // Pairs with the fence in `wait`: either we see the round that it saw, or it sees that
            // the half has no users.
            fence(Ordering::SeqCst);
            self.request()
        }
    }

    /// Returns whether the half has no users now.
    fn release_half(&self, half: usize, count: u64) -> bool {
        // Release pairs with the acquire in `drained`: the tuples were marked.
        self.users[half].fetch_sub(count, Ordering::AcqRel) == count
    }

    /// Returns the round before the present one, if all who had a place in it have ended and its
    /// tuples are not known to be stored. Those that are stored from now on are.
    pub(crate) fn drained(&self) -> Option<u64> {
        let round = self.position().round() - 1;
        let unstored = self.stored.load(Ordering::Relaxed) < round;
        // Acquire pairs with the release in `release_half`.
        let drained = || self.users[half_of(round)].load(Ordering::Acquire) == 0;
        (unstored && drained()).then_some(round)
    }

    /// Returns whether the caller has to see to it that all tuples are stored: there is a half that
    /// only waits for it, and nobody else was asked.
    #[must_use]
    pub(crate) fn request(&self) -> bool {
        self.drained().is_some_and(|round| {
            self.requested.load(Ordering::Relaxed) < round
                && self.requested.fetch_max(round, Ordering::AcqRel) < round
        })
    }

    /// Says that all tuples were stored since a round was found drained.
    pub(crate) fn flushed(&self, round: u64) {
        // Release pairs with the acquire in `reserve`.
        self.stored.fetch_max(round, Ordering::AcqRel);
        self.tell(Waiter::retry);
    }

    /// Says that tuples could not be stored, to all who wait for it.
    pub(crate) fn failed(&self, error: Error) {
        self.tell(|waiter| waiter.no_room(error));
    }

    /// Ends what was asked for by [`request`](Self::request), whatever came of it. Returns whether
    /// the caller has to do it again, because somebody waits.
    #[must_use]
    pub(crate) fn end_request(&self) -> bool {
        // An exchange, and no store: loom lets a thread read behind its own store.
        self.requested.swap(self.stored.load(Ordering::Acquire), Ordering::AcqRel);
        // Pairs with the fence in `wait`: either we see that somebody waits, or it sees that
        // nobody is asked any more.
        fence(Ordering::SeqCst);
        self.waiting.load(Ordering::Relaxed) && self.request()
    }

    /// Puts somebody who found no place into the list of those who are told when tuples were
    /// stored, or could not be.
    pub(crate) fn wait(&self, waiter: &Waiter) -> Wait {
        lock(&self.waiters).push(waiter.clone());
        self.waiting.store(true, Ordering::Relaxed);
        // Pairs with those in `release`, `end_request` and `tell`.
        fence(Ordering::SeqCst);
        if self.stored.load(Ordering::Acquire) + 1 >= self.position().round() {
            return Wait::No;
        }
        if self.request() { Wait::Flush } else { Wait::Yes }
    }

    fn tell(&self, tell: impl Fn(&Waiter)) {
        // Pairs with the fence in `wait`: either it sees what we did, or we see that it waits.
        fence(Ordering::SeqCst);
        if !self.waiting.load(Ordering::Relaxed) {
            return;
        }
        let waiters = {
            let mut waiters = lock(&self.waiters);
            self.waiting.store(false, Ordering::Relaxed);
            std::mem::take(&mut *waiters)
        };
        for waiter in waiters {
            tell(&waiter);
        }
    }
}

/// What becomes of somebody who found no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It is to try again at once. It may be told all the same.
    No,
    /// It will be told.
    Yes,
    /// It will be told, and has to see to it that all tuples are stored.
    Flush,
}

#[cfg(all(test, loom))]
mod loom_tests;
