//! Both sides of a queue in threads of their own, each of which sleeps when the queue says that it may,
//! and wakes the other when the queue says that it must.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{hint, thread};

use holdfast_iov::Place;
use holdfast_virtqueue::{Chain, Driver, Table, Virtqueue};

use crate::common::{BASE, FREE, Shared, readable, writable};

/// How long requests are added to each queue.
const TIME: Duration = Duration::from_millis(500);

/// How one side wakes the other. It spins, so that both are at it at nearly the same time as often as
/// can be.
#[derive(Default)]
struct Bell {
    rings: AtomicBool,
    /// Nobody will ring it again.
    is_over: AtomicBool,
}

impl Bell {
    fn ring(&self) {
        // Release: pairs with the swap in `sleep`.
        self.rings.store(true, Ordering::Release);
    }

    /// Waits until the bell rings. Returns false when nobody is left to ring it.
    fn sleep(&self) -> bool {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut turns = 0_u32;
        loop {
            // Acquire: pairs with the store in `ring`.
            if self.rings.swap(false, Ordering::Acquire) {
                return true;
            }
            if self.is_over.load(Ordering::Acquire) {
                return false;
            }
            turns = turns.saturating_add(1);
            if turns < 1000 {
                hint::spin_loop();
            } else {
                // The other side has no processor, perhaps.
                assert!(Instant::now() < deadline, "nobody wakes us");
                thread::yield_now();
            }
        }
    }
}

/// Says at the end of a side, also when it panics, that nobody rings any more.
struct Over<'a>(&'a Bell);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// Numbers that look random, to vary what the two sides do.
struct Random(u32);

impl Random {
    fn below(&mut self, end: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) % end
    }
}

/// Returns where the question and the answer of the request with a head are, in words.
const fn words(head: u16) -> (usize, usize) {
    (head as usize * 8, head as usize * 8 + 4)
}

/// Adds requests, each with a question, and checks that each answer fits.
fn drive(mut driver: Driver, data: &Place, kick: &Bell, call: &Bell) {
    let mut random = Random(1);
    let base = BASE + u64::try_from(FREE).unwrap();
    let mut asked = vec![0; usize::from(driver.size())];
    let (mut added, mut collected) = (0, 0);
    let end = Instant::now() + TIME;
    let mut is_over = false;
    while !is_over || collected < added {
        is_over |= Instant::now() > end;
        for _ in 0..=random.below(8) {
            if is_over || driver.free() < 2 {
                break;
            }
            // The head is known only when the request is added, and so is its question: publishing
            // shows both.
            let slot = added % u32::from(driver.size() / 2);
            let at = base + u64::from(slot) * 8;
            let head = driver.add(&[readable(at, 4), writable(at + 4, 4)], Table::Direct).unwrap();
            let (question, _) = words(u16::try_from(slot).unwrap());
            data.store_u32(question, added, Ordering::Relaxed);
            asked[usize::from(head)] = added;
            added += 1;
        }
        if driver.publish() {
            kick.ring();
        }
        while let Some(used) = driver.collect().unwrap() {
            let asked = asked[usize::from(used.head)];
            let (_, answer) = words(u16::try_from(asked % u32::from(driver.size() / 2)).unwrap());
            assert_eq!(data.load_u32(answer, Ordering::Relaxed), asked ^ u32::MAX);
            collected += 1;
        }
        let may_add = !is_over && driver.free() >= 2;
        if collected < added && !may_add && !driver.enable_interrupts() {
            assert!(call.sleep(), "the device ends last");
            driver.disable_interrupts();
        }
    }
}

/// Answers the questions until there is nobody to ask.
fn serve(mut device: Virtqueue, shared: &Shared, data: &Place, call: &Bell, kick: &Bell) {
    let mut random = Random(2);
    let mut chain = Chain::new();
    let base = BASE + u64::try_from(FREE).unwrap();
    loop {
        let batch = random.below(8) + 1;
        let mut count = 0;
        while count < batch
            && let Some(taken) = device.take(&mut chain, &shared.memory).unwrap()
        {
            let at = |address: u64| usize::try_from(address - base).unwrap();
            let question = data.load_u32(at(chain.readable()[0].address), Ordering::Relaxed);
            let answer = at(chain.writable()[0].address);
            data.store_u32(answer, question ^ u32::MAX, Ordering::Relaxed);
            device.complete(taken.head, 4);
            count += 1;
            if random.below(3) == 0 && device.publish() {
                call.ring();
            }
        }
        if device.publish() {
            call.ring();
        }
        if count < batch && !device.enable_kicks() {
            if !kick.sleep() {
                return;
            }
            device.disable_kicks();
        }
    }
}

fn run(size: u16, event_index: bool) {
    let shared = Shared::new(size, 0xff00);
    let driver = Driver::new(shared.rings(), event_index);
    let device = Virtqueue::new(shared.rings(), event_index, 0xff00, None);
    let data = shared.place(FREE, usize::from(size) * 8);
    let (kick, call) = (Bell::default(), Bell::default());
    thread::scope(|scope| {
        scope.spawn(|| {
            let _over = Over(&kick);
            drive(driver, &data, &kick, &call);
        });
        let _over = Over(&call);
        serve(device, &shared, &data, &call, &kick);
    });
}

/// One test, so that no two of its runs fight for the processors.
#[test]
fn no_notification_is_lost() {
    for event_index in [true, false] {
        for size in [2, 4, 64] {
            run(size, event_index);
        }
    }
}
