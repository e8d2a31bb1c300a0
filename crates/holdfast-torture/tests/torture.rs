//! Short runs of the worst guest against the server, in memory and in a file.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_bio::ReadPolicy;
use holdfast_checksum::GuardKind;
use holdfast_torture::{Case, Outcome, Storage};
use holdfast_units::BlockSize;

/// Waits until no other test runs: on few cores the others' mutators would only take its time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Every format, each with a number of queues and a policy in turn.
fn cases(requests: u64) -> impl Iterator<Item = Case> {
    let formats = GuardKind::ALL
        .into_iter()
        .flat_map(|guard| [BlockSize::SECTOR, BlockSize::PAGE].map(|sector| (guard, sector)));
    formats.zip(1..).map(move |((guard, sector), seed)| Case {
        guard,
        sector,
        queues: if seed % 4 < 2 { 1 } else { 4 },
        policy: if seed % 2 == 0 { ReadPolicy::Always } else { ReadPolicy::Lazy },
        requests,
        seed,
    })
}

fn assert_clean(case: &Case, outcome: &Outcome) {
    assert!(outcome.is_clean(), "{case:?}: {outcome:#?}");
    assert!(outcome.mutations > 0 && outcome.requests == case.requests, "{case:?}: {outcome:#?}");
}

#[test]
fn nothing_is_wrong_with_a_volume_in_memory() {
    let _turn = turn();
    for case in cases(3000) {
        let outcome = case.run(Storage::Memory { rots: false }, |_| ()).unwrap();
        assert_clean(&case, &outcome);
    }
}

#[test]
fn nothing_is_wrong_with_a_volume_in_a_file() {
    let _turn = turn();
    let directory = tempfile::tempdir().unwrap();
    for case in cases(1000) {
        let outcome = case.run(Storage::File(directory.path()), |_| ()).unwrap();
        assert_clean(&case, &outcome);
    }
}

#[test]
fn every_corrupt_sector_is_found_and_none_is_delivered() {
    let _turn = turn();
    let mut left = 0;
    for case in cases(3000) {
        let outcome = case.run(Storage::Memory { rots: true }, |_| ()).unwrap();
        assert_clean(&case, &outcome);
        let corrupted = outcome.corrupted;
        assert!(corrupted.found_by_requests > 0, "{corrupted:?}");
        left += corrupted.left;
    }
    // Of one case requests may find all.
    assert!(left > 0, "nothing was left for a scrub");
}

#[test]
fn without_bouncing_bad_guards_are_stored() {
    let _turn = turn();
    let deadline = Instant::now() + Duration::from_secs(60);
    let formats: Vec<_> = cases(3000).collect();
    let mut cases = formats.iter().cycle().zip(100..);
    let mut bad = 0;
    while bad == 0 {
        assert!(Instant::now() < deadline, "the mutator changes nothing");
        let (case, seed) = cases.next().unwrap();
        let case = Case { policy: ReadPolicy::Never, seed, ..*case };
        let outcome = case.run(Storage::Memory { rots: false }, |_| ()).unwrap();
        assert_eq!(outcome.server.reread_good, 0, "nothing is read again");
        bad = outcome.bad_guards;
    }
}
