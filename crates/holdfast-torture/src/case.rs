//! One run: a scratch volume, a server for it, the guest, and a scrub at the end.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::thread;

use holdfast_bio::ReadPolicy;
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_units::{BlockSize, to_u64};
use holdfast_virtio_driver::{Client, Options};
use holdfast_volume::{CreateOptions, Geometry, ScrubReport, Volume};
use tempfile::TempDir;

use crate::TortureError;
use crate::content::BLOCK;
use crate::guest::{Corrupt, Guest, Manners};
use crate::host::{Host, Medium, corrupt_sectors};
use crate::mutator::Board;
use crate::outcome::{Corrupted, Outcome};
use crate::random::Random;
use crate::rot::Rot;

/// What a scratch volume is stored on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage<'a> {
    /// Memory of this process, which is corrupted at random if that is asked for.
    Memory {
        /// Whether it is.
        rots: bool,
    },
    /// A file in this directory, which is removed at the end.
    File(&'a Path),
}

/// One run.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The guard of the volume.
    pub guard: GuardKind,
    /// The sector size of the volume.
    pub sector: BlockSize,
    /// How many queues the guest uses.
    pub queues: u16,
    /// How the server checks reads.
    pub policy: ReadPolicy,
    /// How many requests there are.
    pub requests: u64,
    /// From which all choices come, as far as threads allow.
    pub seed: u64,
}

impl Case {
    /// The size of the disk: some groups of every format, and no whole number of them.
    const CAPACITY: u64 = (32 << 20) + 5 * 4096;

    /// Returns how the volume of this run is made.
    pub(crate) const fn create_options(&self) -> CreateOptions {
        CreateOptions {
            capacity: Self::CAPACITY,
            sector: self.sector,
            guard: self.guard,
            application_tag: CreateOptions::APPLICATION_TAG,
        }
    }

    /// Returns how the guest behaves.
    pub(crate) fn manners(&self) -> Manners {
        Manners { mutates: true, checks_duplicates: self.policy != ReadPolicy::Never }
    }

    /// Returns what the guest asks of the server, in one of several ways.
    pub(crate) fn client_options(&self, random: &mut Random) -> Options {
        Options {
            queues: self.queues,
            queue_size: 128,
            segments_max: 126,
            memory_bytes: 40 << 20,
            regions: 3,
            event_index: random.chance(50),
            memory_slots: random.chance(50),
            ..Options::default()
        }
    }

    /// Carries the run out. `each` is told how many requests have ended, now and then.
    ///
    /// # Errors
    ///
    /// [`TortureError`], when it could not go on. What the server did wrong is in the outcome.
    pub fn run(
        &self,
        storage: Storage<'_>,
        each: impl FnMut(u64),
    ) -> Result<Outcome, TortureError> {
        let mut random = Random::new(self.seed);
        let parent = match storage {
            Storage::Memory { .. } => std::env::temp_dir(),
            Storage::File(directory) => directory.into(),
        };
        let directory = scratch_directory(&parent)?;
        let medium = match storage {
            Storage::Memory { .. } => Medium::memory(&self.create_options())?,
            Storage::File(_) => {
                Medium::file(&directory.path().join("volume.hf"), &self.create_options())?
            }
        };
        // Less than all tuples take, so that some have to go, or enough.
        let cache_bytes = [128 << 10, 8 << 20][random.index(2)];
        let socket = directory.path().join("guest.sock");
        let rots = matches!(storage, Storage::Memory { rots: true });
        let (queues, policy) = (self.queues, self.policy);
        let host = Host::start(medium.clone(), &socket, queues, policy, cache_bytes, rots)?;
        let corrupt = match (&medium, storage) {
            (Medium::Memory(device), Storage::Memory { rots: true }) => {
                Some(corrupt_by(device.clone(), Arc::clone(host.volume())))
            }
            _ => None,
        };
        let (mut outcome, rotten) = self.torture(&host, corrupt, random, each)?;
        let (server, report, errors) = host.finish()?;
        outcome.server = server;
        if outcome.corrupted.injected == 0 {
            outcome.reported = errors;
        }
        judge_scrub(&mut outcome, &report, &rotten);
        Ok(outcome)
    }

    /// Lets the guest run, with its mutator. Returns what it found, and which sectors are corrupt.
    fn torture(
        &self,
        host: &Host,
        corrupt: Option<Corrupt>,
        mut random: Random,
        each: impl FnMut(u64),
    ) -> Result<(Outcome, BTreeSet<u64>), TortureError> {
        let client = Client::connect(host.socket(), &self.client_options(&mut random))?;
        let border = border(host.volume().geometry());
        let board = Arc::new(Board::new(Guest::places(usize::from(self.queues))));
        let mutations = random.fork();
        let ours = Arc::clone(&board);
        let (manners, queues) = (self.manners(), self.queues);
        let mut guest = Guest::new(client, queues, border, manners, ours, random)?;
        if let Some(corrupt) = corrupt {
            guest.corrupt_by(corrupt);
        }
        with_mutator(&board, mutations, || {
            guest.run(self.requests, each)?;
            guest.drain()
        })?;
        let made = guest.tally().clone();
        if self.policy != ReadPolicy::Never {
            guest.sweep()?;
        }
        let rotten = guest.rot().map(Rot::rotten).unwrap_or_default();
        let outcome = outcome_of(&guest, &board);
        // What was read at the end, by nobody's wish, is not counted.
        Ok((Outcome { requests: made.requests, bytes: made.bytes, ..outcome }, rotten))
    }
}

/// Makes a directory that is removed when it is dropped.
pub(crate) fn scratch_directory(parent: &Path) -> Result<TempDir, TortureError> {
    let made = tempfile::Builder::new().prefix("holdfast-torture-").tempdir_in(parent);
    made.map_err(TortureError::system("make a directory"))
}

/// Returns a block at which a group ends, in the middle of the disk.
pub(crate) fn border(geometry: &Geometry) -> u64 {
    geometry.group_data().align_down(geometry.capacity() / 2) / to_u64(BLOCK)
}

/// Runs `work` while the mutator runs.
pub(crate) fn with_mutator<R>(board: &Board, random: Random, work: impl FnOnce() -> R) -> R {
    struct Stop<'a>(&'a Board);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.stop();
        }
    }
    thread::scope(|scope| {
        // Also when `work` panics, or the scope would wait for ever.
        let _stopped = Stop(board);
        scope.spawn(|| board.run(random));
        work()
    })
}

/// Returns what a guest has found.
pub(crate) fn outcome_of(guest: &Guest, board: &Board) -> Outcome {
    let tally = guest.tally();
    let (injected, found_by_requests) = guest.rot().map_or((0, 0), Rot::counts);
    Outcome {
        requests: tally.requests,
        bytes: tally.bytes,
        mutations: board.stores(),
        false_errors: tally.false_errors,
        wrong_blocks: tally.wrong_blocks,
        corrupted: Corrupted {
            injected,
            found_by_requests,
            delivered: tally.undetected,
            ..Corrupted::default()
        },
        faults: tally.faults.clone(),
        ..Outcome::default()
    }
}

/// Adds what a scrub found, which must be just the sectors that are corrupt.
pub(crate) fn judge_scrub(outcome: &mut Outcome, report: &ScrubReport, rotten: &BTreeSet<u64>) {
    let found: BTreeSet<u64> = corrupt_sectors(report).collect();
    let unreadable = to_u64(report.unreadable.len());
    // Those that are not named are too many to be right.
    let unnamed = report.corrupt - to_u64(found.len());
    outcome.bad_guards = to_u64(found.difference(rotten).count()) + unnamed + unreadable;
    outcome.corrupted.left = to_u64(rotten.len());
    outcome.corrupted.missed_by_scrub = to_u64(rotten.difference(&found).count());
}

/// Returns what flips bits of stored data.
fn corrupt_by(device: MemoryDevice, volume: Arc<Volume>) -> Corrupt {
    Box::new(move |block, byte, bits| {
        let offset = block * to_u64(BLOCK);
        device.corrupt(volume.geometry().data_at(offset) + to_u64(byte), bits);
    })
}
