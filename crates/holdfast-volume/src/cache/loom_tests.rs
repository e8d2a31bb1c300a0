//! What queues that share a cache may rely on, in every interleaving with two or three preemptions.

#![expect(clippy::arc_with_non_send_sync, reason = "loom watches what threads share")]

use super::*;
use crate::inbox::Inbox;
use loom::cell::UnsafeCell;
use loom::thread;
use std::sync::Arc;

const SECTOR: Sectors = Sectors { first: 0, count: 1 };
/// A run over two words of claims.
const RUN: Sectors = Sectors { first: 7, count: 2 };
const LAST_OF_RUN: Sectors = Sectors { first: 8, count: 1 };
const FIRST_OF_RUN: Sectors = Sectors { first: 7, count: 1 };

/// A set of two empty ways. Each group's only tuple tells the group's number.
fn two_ways() -> Arc<Cache> {
    Arc::new(Cache::with_sets(1, 2, WORDS_OF_BLOCK))
}

/// A set in which only one way is to be had.
fn cache() -> Arc<Cache> {
    let cache = two_ways();
    filled(&cache, 9);
    cache
}

fn waiter() -> Waiter {
    Waiter { inbox: Inbox::new(Box::new(|| {})), job: 0 }
}

fn was_told(waiter: &Waiter) -> bool {
    waiter.inbox.is_filled()
}

/// Checks what is left when all have done their part: nobody may wait for ever.
fn assert_nobody_waits(cache: &Cache) {
    let inner = lock(&cache.sets[0].inner);
    assert!(inner.waiters.is_empty(), "somebody waits and nobody is left to tell");
}

fn block(group: u64) -> [u8; 8 * WORDS_OF_BLOCK] {
    let mut block = [0; 8 * WORDS_OF_BLOCK];
    block.as_chunks_mut().0.fill((group + 100).to_be_bytes());
    block
}

fn assert_holds(cache: &Cache, way: Way, group: u64) {
    assert_eq!((cache.group(way), cache.tuple(way, 0)), (group, [group + 100; 2]));
}

/// Fills the way with `group` and returns it pinned.
fn filled(cache: &Cache, group: u64) -> Way {
    let Pinned::Fill(way) = cache.pin(group, &waiter()) else {
        unreachable!("the way is empty");
    };
    cache.filled(way, &block(group));
    way
}

/// Pins a way that is there once more.
fn pinned(cache: &Cache, group: u64) {
    assert!(matches!(cache.pin(group, &waiter()), Pinned::Ready(_)));
}

/// Pins a group, does what that asks for, and gives the way back. Returns the waiter that was
/// left behind.
fn visit(cache: &Cache, group: u64) -> Option<Waiter> {
    let waiter = waiter();
    match cache.pin(group, &waiter) {
        Pinned::Ready(way) => {
            assert_holds(cache, way, group);
            cache.unpin(way);
        }
        Pinned::Fill(way) => {
            cache.filled(way, &block(group));
            assert_holds(cache, way, group);
            cache.unpin(way);
        }
        Pinned::WriteBack(_) => unreachable!("nothing was changed"),
        Pinned::Wait => return Some(waiter),
    }
    None
}

/// Claims sectors of a pinned way and gives the claim and the pin up, or keeps the pin.
fn claim(cache: &Cache, way: Way, sectors: Sectors) -> Option<Waiter> {
    let waiter = waiter();
    if cache.claim(way, sectors, Mode::Exclusive, &waiter) {
        cache.release(way, sectors, Mode::Exclusive);
        return None;
    }
    Some(waiter)
}

fn model(preemptions: impl Into<Option<usize>>, body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemptions.into();
    builder.check(body);
}

#[test]
fn loom_a_claim_that_meets_another_is_granted_or_told() {
    model(None, || {
        let cache = cache();
        let way = filled(&cache, 1);
        pinned(&cache, 1);
        assert!(cache.claim(way, SECTOR, Mode::Exclusive, &waiter()));
        let holder = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.release(way, SECTOR, Mode::Exclusive))
        };
        let left = claim(&cache, way, SECTOR);
        holder.join().unwrap();
        assert!(left.is_none_or(|waiter| was_told(&waiter)));
        assert_nobody_waits(&cache);
    });
}

#[test]
fn loom_a_claim_that_met_one_that_was_taken_back_is_not_forgotten() {
    model(3, || {
        let cache = cache();
        let way = filled(&cache, 1);
        pinned(&cache, 1);
        pinned(&cache, 1);
        assert!(cache.claim(way, LAST_OF_RUN, Mode::Exclusive, &waiter()));
        let holder = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.release(way, LAST_OF_RUN, Mode::Exclusive))
        };
        // It has the first word for a moment, until it meets the holder in the second.
        let both_words = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || claim(&cache, way, RUN))
        };
        let left = [claim(&cache, way, FIRST_OF_RUN), both_words.join().unwrap()];
        holder.join().unwrap();
        assert!(left.iter().flatten().all(was_told));
        assert_nobody_waits(&cache);
    });
}

#[test]
fn loom_a_claim_that_met_an_entry_that_was_taken_back_is_not_forgotten() {
    model(3, || {
        let cache = cache();
        let way = filled(&cache, 1);
        pinned(&cache, 1);
        assert!(cache.claim(way, LAST_OF_RUN, Mode::Exclusive, &waiter()));
        let holder = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.release(way, LAST_OF_RUN, Mode::Exclusive))
        };
        // It has the first word for a moment, until it meets the holder in the second.
        let entry = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                if let Some(way) = cache.enter(1, RUN, Mode::Shared) {
                    cache.release(way, RUN, Mode::Shared);
                }
            })
        };
        let left = claim(&cache, way, FIRST_OF_RUN);
        holder.join().unwrap();
        entry.join().unwrap();
        assert!(left.is_none_or(|waiter| was_told(&waiter)));
        assert_nobody_waits(&cache);
    });
}

#[test]
fn loom_an_absent_group_is_filled_once_and_the_others_see_it_or_are_told() {
    model(3, || {
        let cache = two_ways();
        let others = [(); 2].map(|()| {
            let cache = Arc::clone(&cache);
            thread::spawn(move || visit(&cache, 1))
        });
        let left = others.map(|other| other.join().unwrap());
        assert!(left.iter().flatten().all(was_told));
        assert_nobody_waits(&cache);
        let tags = cache.sets[0].tags.iter();
        let holders = tags.filter(|tag| tag.load(Ordering::Relaxed) == 1 + 1).count();
        assert_eq!(holders, 1);
    });
}

#[test]
fn loom_whoever_waits_for_tuples_is_told_when_they_are_read_and_still_in_use() {
    model(3, || {
        let cache = cache();
        let Pinned::Fill(way) = cache.pin(1, &waiter()) else {
            unreachable!("the way is empty");
        };
        let filler = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.filled(way, &block(1)))
        };
        let left = visit(&cache, 1);
        filler.join().unwrap();
        assert!(left.is_none_or(|waiter| was_told(&waiter)));
        assert_nobody_waits(&cache);
    });
}

#[test]
fn loom_whoever_waits_for_tuples_that_cannot_be_read_is_told() {
    model(3, || {
        let cache = cache();
        let Pinned::Fill(way) = cache.pin(1, &waiter()) else {
            unreachable!("the way is empty");
        };
        let filler = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || cache.abandon(way))
        };
        let left = visit(&cache, 1);
        filler.join().unwrap();
        assert!(left.is_none_or(|waiter| was_told(&waiter)));
        assert_nobody_waits(&cache);
    });
}

#[test]
fn loom_a_pinned_way_is_not_emptied() {
    model(3, || {
        let cache = cache();
        cache.unpin(filled(&cache, 1));
        let others = [1, 2].map(|group| {
            let cache = Arc::clone(&cache);
            thread::spawn(move || visit(&cache, group))
        });
        let left = others.map(|other| other.join().unwrap());
        assert!(left.iter().flatten().all(was_told));
        assert_nobody_waits(&cache);
    });
}

#[test]
fn loom_a_pin_that_was_taken_back_leaves_nobody_waiting() {
    model(2, || {
        let cache = cache();
        let Pinned::Fill(way) = cache.pin(1, &waiter()) else {
            unreachable!("the way is empty");
        };
        let pins = [1, 2].map(|group| {
            let cache = Arc::clone(&cache);
            thread::spawn(move || visit(&cache, group))
        });
        // Group 1 is pinned for a moment while it is being abandoned, and group 2 meets that.
        cache.abandon(way);
        let left = pins.map(|pin| pin.join().unwrap());
        assert!(left.iter().flatten().all(was_told));
        assert_nobody_waits(&cache);
    });
}

#[test]
fn loom_a_marked_tuple_is_in_the_copy_of_a_flush_or_the_way_is_dirty_again() {
    model(None, || {
        let cache = cache();
        let way = filled(&cache, 1);
        cache.mark_dirty(way);
        let writer = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                cache.set_tuple(way, 0, [7; 2]);
                cache.mark_dirty(way);
                cache.unpin(way);
            })
        };
        assert_eq!(cache.pin_dirty(0, &waiter()), Some(Ok(way)));
        cache.clear_dirty(way);
        let mut copy = block(0);
        cache.copy_tuples(way, &mut copy);
        cache.unpin(way);
        writer.join().unwrap();
        let is_in_copy = copy.as_chunks().0.iter().all(|word| *word == 7_u64.to_be_bytes());
        assert!(is_in_copy || cache.is_dirty(way));
    });
}

#[test]
fn loom_a_tuple_is_written_back_before_its_way_is_emptied() {
    model(3, || {
        let cache = cache();
        let way = filled(&cache, 1);
        let writer = {
            let cache = Arc::clone(&cache);
            thread::spawn(move || {
                cache.set_tuple(way, 0, [7; 2]);
                cache.mark_dirty(way);
                cache.unpin(way);
            })
        };
        let waiter = waiter();
        match cache.pin(2, &waiter) {
            Pinned::WriteBack(way) => {
                let mut copy = block(0);
                cache.copy_tuples(way, &mut copy);
                assert!(copy.as_chunks().0.iter().all(|word| *word == 7_u64.to_be_bytes()));
                cache.emptied(way, true);
                writer.join().unwrap();
            }
            Pinned::Wait => {
                writer.join().unwrap();
                assert!(was_told(&waiter));
            }
            other => unreachable!("the changed tuple is dropped: {other:?}"),
        }
        assert_nobody_waits(&cache);
    });
}

#[test]
fn loom_a_flush_passes_no_way_whose_tuples_are_on_their_way_to_the_device() {
    model(3, || {
        let cache = cache();
        let way = filled(&cache, 1);
        cache.mark_dirty(way);
        cache.unpin(way);
        // Loom watches that the device has been written to when the flush goes on.
        let device = Arc::new(UnsafeCell::new(()));
        let flush = {
            let (cache, device) = (Arc::clone(&cache), Arc::clone(&device));
            thread::spawn(move || flush_first(&cache, &device))
        };
        let evictor = waiter();
        match cache.pin(2, &evictor) {
            Pinned::WriteBack(way) => {
                device.with_mut(|_| ());
                cache.emptied(way, true);
            }
            Pinned::Fill(way) => cache.abandon(way),
            Pinned::Ready(_) => unreachable!("group 2 was never filled"),
            Pinned::Wait => {
                flush.join().unwrap();
                assert!(was_told(&evictor));
                return;
            }
        }
        assert!(flush.join().unwrap().is_none_or(|waiter| was_told(&waiter)));
        assert_nobody_waits(&cache);
    });
}

/// Does what a flush does with the first dirty way. Returns the waiter that was left behind.
fn flush_first(cache: &Cache, device: &UnsafeCell<()>) -> Option<Waiter> {
    let waiter = waiter();
    match cache.pin_dirty(0, &waiter) {
        Some(Ok(way)) => {
            cache.clear_dirty(way);
            assert_holds(cache, way, 1);
            cache.unpin(way);
        }
        Some(Err(_)) => return Some(waiter),
        None => device.with(|_| ()),
    }
    None
}
