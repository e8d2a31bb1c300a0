//! The data journal: small writes are acknowledged when they are in it, and get to their place later.
//!
//! Jobs that wait are put into a *batch* together, which is one write. What a batch has is *staged*: the
//! jobs have ended, and the queue keeps their claims. When a segment of the lane is full, or somebody
//! needs what it holds, the device is flushed, so that the batches are durable; then the sectors go to
//! their place and the records to theirs in the tuple log, which was reserved when the batch was made. The
//! next flush makes that durable, and the segment can be used again.

use std::collections::VecDeque;
use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Op};
use holdfast_iov::{Buffer, GUARD_INTERVAL, Memory, Pool};
use holdfast_units::{to_u64, to_usize};
use slab::Slab;

use super::Queue;
use super::job::{Internal, Part, Place, Step, Token};
use crate::cache::Way;
use crate::claims::{Mode, Sectors};
use crate::flush::Aim;
use crate::journal::{BATCH_MAX, Layout, PAGE, SEGMENTS, seal};
use crate::log::{LOG_UNIT, Log, Position};

/// The longest write that is always staged, in bytes. A longer one costs a busy device more twice than a
/// flush does.
const STAGED_OFTEN: usize = 16 << 10;
/// The longest write that is staged, in bytes, when the queue has not many others in flight.
const STAGED_MAX: usize = 64 << 10;
/// So many are few.
const FEW: usize = 2;
/// So many batches are written at a time; what comes meanwhile waits, unless it fills another.
const WRITING_MAX: usize = 2;

/// A queue's lane of the data journal.
#[derive(Debug)]
pub(super) struct Stage {
    lane: usize,
    /// That of the segment which is being filled.
    generation: u64,
    pool: Pool,
    /// The longest that fits into a batch with its records, in bytes.
    data_max: usize,
    /// Jobs that are to be staged.
    waiting: VecDeque<usize>,
    batches: Slab<Batch>,
    runs: Slab<Run>,
    segments: [Segment; SEGMENTS],
    /// How many batches are being written.
    writing: usize,
    /// The device is being flushed for segments.
    is_flushing: bool,
    /// Somebody waits for what is staged.
    is_hurried: bool,
    /// Everything is to be durable in its place.
    is_draining: bool,
}

/// How far a segment is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    /// It can be used, or is being filled.
    #[default]
    Open,
    /// Nothing is added to it.
    Closed,
    /// The device is being flushed, so that its batches are durable.
    Syncing,
    /// Records go to the tuple log, durably, since a flush has failed.
    Logging,
    /// Sectors go to their place.
    Storing,
    /// They are in their place.
    Stored,
    /// The device is being flushed, so that they are durable there.
    Retiring,
}

#[derive(Debug, Default)]
struct Segment {
    phase: Phase,
    /// How much of it is in use, in bytes.
    used: usize,
    batches: Vec<usize>,
    /// Transfers that have not ended.
    in_flight: usize,
}

/// What was written to the journal by one bio.
#[derive(Debug)]
struct Batch {
    segment: usize,
    memory: Arc<Buffer>,
    layout: Layout,
    /// Where its records belong in the tuple log.
    position: Position,
    /// The jobs, while it is being written.
    jobs: Vec<usize>,
    /// Afterwards, what they wrote.
    entries: Vec<Entry>,
}

/// The sectors of a write, which are claimed.
#[derive(Clone, Copy, Debug)]
struct Entry {
    way: Way,
    sectors: Sectors,
    /// Where they begin on the disk, in bytes.
    offset: u64,
    /// Where their data are in the batch, in bytes.
    at: usize,
}

/// Entries of a batch that go to their place by one bio.
#[derive(Clone, Copy, Debug)]
struct Run {
    batch: usize,
    first: usize,
    count: usize,
}

impl Stage {
    fn open_segment(&self) -> usize {
        to_usize(self.generation % to_u64(SEGMENTS))
    }

    /// Lets nothing be added to the segment that is being filled. Returns whether there is something in it.
    fn close(&mut self) -> bool {
        let index = self.open_segment();
        let segment = &mut self.segments[index];
        let is_used = segment.phase == Phase::Open && segment.used > 0;
        if is_used {
            segment.phase = Phase::Closed;
            self.generation += 1;
        }
        is_used
    }

    fn has(&self, phase: Phase) -> bool {
        self.segments.iter().any(|segment| segment.phase == phase)
    }

    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.batches.is_empty() && !self.is_flushing
    }

    fn is_retired(&self) -> bool {
        self.is_idle() && self.segments.iter().all(|it| it.phase == Phase::Open && it.used == 0)
    }
}

impl<D: BlockDevice> Queue<D> {
    /// Lets small writes be acknowledged when they are in the data journal, if the volume has one and a
    /// lane of it is free. Others may wait then for what the queue has written: its thread has to
    /// reap it whenever it is notified, until it is dropped.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn with_journal(mut self) -> std::io::Result<Self> {
        let volume = Arc::clone(&self.volume);
        let Some(journal) = &volume.journal else { return Ok(self) };
        if self.device.limits().memory_alignment > self.limits.sector {
            return Ok(self);
        }
        // A batch takes less than twice its length, and no less than the smallest buffer.
        let pool = Pool::new(SEGMENTS * journal.segment_len() * 2)?;
        if let Some((lane, last)) = journal.join(&self.inbox) {
            self.stage = Some(Box::new(Stage {
                lane,
                generation: last + 1,
                pool,
                data_max: journal.segment_len().min(BATCH_MAX) - 4 * PAGE,
                waiting: VecDeque::new(),
                batches: Slab::new(),
                runs: Slab::new(),
                segments: Default::default(),
                writing: 0,
                is_flushing: false,
                is_hurried: false,
                is_draining: false,
            }));
        }
        Ok(self)
    }

    /// Tells all queues that somebody waits for what they may have staged.
    pub(super) fn hurry_others(&self) {
        if let Some(journal) = &self.volume.journal {
            journal.hurry();
        }
    }

    pub(super) fn hurry(&mut self) {
        if let (Some(journal), Some(stage)) = (&self.volume.journal, &mut self.stage) {
            journal.begin_hurry(stage.lane);
            stage.is_hurried = true;
            self.advance_stage();
        }
    }

    /// Returns how many transfers of the journal are in flight.
    pub(super) fn stage_in_flight(&self) -> usize {
        let in_flight = |stage: &Stage| stage.segments.iter().map(|it| it.in_flight).sum();
        self.stage.as_deref().map_or(0, in_flight)
    }

    /// Lets everything be durable in its place.
    pub(super) fn begin_to_drain_stage(&mut self) {
        if let Some(stage) = &mut self.stage {
            stage.is_draining = true;
            self.advance_stage();
        }
    }

    /// Returns whether everything is durable in its place, or cannot be.
    pub(super) fn is_stage_drained(&self) -> bool {
        self.stage.as_deref().is_none_or(|stage| {
            stage.is_retired() || (stage.is_idle() && self.volume.flush_failed())
        })
    }

    pub(super) fn end_to_drain_stage(&mut self) {
        if let Some(stage) = &mut self.stage {
            stage.is_draining = false;
        }
    }

    /// Gives the lane back, unless something in it is needed after a crash.
    pub(super) fn leave_stage(&self) {
        if let (Some(journal), Some(stage)) = (&self.volume.journal, &self.stage)
            && stage.is_retired()
        {
            journal.leave(stage.lane, stage.generation);
        }
    }

    /// Takes a job that ends from those that wait.
    pub(super) fn unwait_stage(&mut self, key: usize) {
        if let Some(stage) = &mut self.stage {
            stage.waiting.retain(|&waiting| waiting != key);
        }
    }

    /// Returns whether a job's sectors go to the journal first. Those that were never written may find no
    /// space in their place, which their writer has to be told.
    pub(super) fn stages(&self, key: usize) -> bool {
        let Some(stage) = &self.stage else { return false };
        let (job, cache) = (&self.jobs[key], &self.volume.cache);
        let Sectors { first, count } = job.sectors;
        let len = count * self.limits.sector.len();
        job.bio.op == Op::Write
            && (len <= STAGED_OFTEN || (len <= STAGED_MAX && self.jobs.len() <= FEW))
            && len <= stage.data_max
            && !self.volume.flush_failed()
            && !stage.is_draining
            && (first..first + count).all(|sector| cache.tuple(job.way(), sector) != [0, 0])
    }

    /// Puts a job into the next batch.
    pub(super) fn stage(&mut self, key: usize) {
        if let Some(stage) = &mut self.stage {
            stage.waiting.push_back(key);
            self.jobs[key].step = Step::Commit;
            self.advance_stage();
        }
    }

    /// Does everything for the journal that can be done now.
    pub(super) fn advance_stage(&mut self) {
        let Some(stage) = &mut self.stage else { return };
        if self.volume.flush_failed() {
            // The journal cannot be trusted any more. The tuple log says whether it can.
            for key in std::mem::take(&mut stage.waiting) {
                self.records.waiting.push_back(key);
            }
            self.commit();
        }
        while self.write_batch() {}
        let Some(stage) = &mut self.stage else { return };
        if stage.is_hurried || stage.is_draining {
            stage.close();
            stage.is_hurried = false;
        }
        if stage.is_flushing {
            return;
        }
        let is_ready = |it: &Segment| it.phase == Phase::Closed && it.in_flight == 0;
        let is_wanted = stage.is_draining || !stage.waiting.is_empty();
        let is_blocked = stage.segments[stage.open_segment()].phase == Phase::Stored;
        let retires = is_wanted && (is_blocked || stage.is_draining) && stage.has(Phase::Stored);
        if !stage.segments.iter().any(is_ready) && (!retires || self.volume.flush_failed()) {
            return;
        }
        for segment in &mut stage.segments {
            match segment.phase {
                Phase::Closed if segment.in_flight == 0 => segment.phase = Phase::Syncing,
                Phase::Stored => segment.phase = Phase::Retiring,
                _ => {}
            }
        }
        stage.is_flushing = true;
        self.flush_for(Internal::Stage, Aim { store: false, durable: true });
    }

    /// Goes on after the device was flushed, or could not be.
    pub(super) fn stage_flushed(&mut self, result: Result<(), Error>) {
        let Some(stage) = &mut self.stage else { return };
        stage.is_flushing = false;
        for segment in 0..SEGMENTS {
            let Some(stage) = &mut self.stage else { return };
            match (stage.segments[segment].phase, result) {
                (Phase::Syncing, Ok(())) => self.store_segment(segment),
                (Phase::Syncing, Err(_)) => self.log_segment(segment),
                (Phase::Retiring, Ok(())) => stage.segments[segment] = Segment::default(),
                (Phase::Retiring, Err(_)) => stage.segments[segment].phase = Phase::Stored,
                _ => {}
            }
        }
        self.advance_stage();
    }

    /// Writes the next batch. Returns whether there may be another.
    fn write_batch(&mut self) -> bool {
        let volume = Arc::clone(&self.volume);
        let (Some(journal), Some(log)) = (&volume.journal, &volume.log) else { return false };
        let Some(stage) = &self.stage else { return false };
        let (lane, generation, index) = (stage.lane, stage.generation, stage.open_segment());
        let (used, phase) = (stage.segments[index].used, stage.segments[index].phase);
        if stage.waiting.is_empty() || phase != Phase::Open {
            return false;
        }
        let Plan { layout, count, is_full } =
            self.plan_batch(log, (journal.segment_len() - used).min(BATCH_MAX));
        let Some(stage) = &mut self.stage else { return false };
        if count == 0 {
            return stage.close();
        }
        if stage.writing >= WRITING_MAX && !is_full {
            return false;
        }
        let Some(mut buffer) = stage.pool.take_whole(layout.len) else { return stage.close() };
        let first = stage.waiting[0];
        journal.stage(lane);
        let Some(position) = self.reserve_record(first, layout.records_len, 1) else {
            self.unstage_if_empty();
            return false;
        };
        self.use_record(position);
        let jobs = self.fill_batch(&mut buffer, layout, position, count);
        let place = journal.place(lane, index * journal.segment_len() + used);
        seal(buffer.as_mut_slice(), layout, log.epoch(), generation, place, position);
        let memory = Arc::new(buffer);
        let shared = Memory::Shared(Arc::clone(&memory));
        let batch = Batch { segment: index, memory, layout, position, jobs, entries: Vec::new() };
        let Some(stage) = &mut self.stage else { return false };
        let key = stage.batches.insert(batch);
        let segment = &mut stage.segments[index];
        segment.used += layout.len;
        segment.batches.push(key);
        segment.in_flight += 1;
        stage.writing += 1;
        let bio = Bio::new(Op::Write, journal.offset_of(place), to_u64(layout.len), shared);
        self.send_staged(Part::Batch, key, bio);
        self.make_room_if_asked();
        true
    }

    /// Returns how many of those who wait go into a batch of at most `room` bytes.
    fn plan_batch(&self, log: &Log, room: usize) -> Plan {
        let block = log.written_len(1);
        let mut plan = Plan { layout: Layout::new(0, 0, block), count: 0, is_full: false };
        let Some(stage) = &self.stage else { return plan };
        let (mut records_len, mut data_len) = (0, 0);
        for &key in &stage.waiting {
            records_len += log.record_len(&self.intent(key));
            data_len += self.jobs[key].sectors.count * self.limits.sector.len();
            let layout = Layout::new(records_len, data_len, block);
            if layout.len > room {
                plan.is_full = true;
                break;
            }
            plan = Plan { layout, count: plan.count + 1, is_full: false };
        }
        plan
    }

    /// Puts the records and the data of the first who wait into a batch. Returns who they were.
    fn fill_batch(
        &mut self,
        buffer: &mut Buffer,
        layout: Layout,
        start: Position,
        count: usize,
    ) -> Vec<usize> {
        let Some(stage) = &mut self.stage else { return Vec::new() };
        let jobs: Vec<usize> = stage.waiting.drain(..count).collect();
        let (bytes, guards) = buffer.parts_mut();
        bytes[..layout.data_at].fill(0);
        let (mut at, mut data_at) = (layout.records_at, layout.data_at);
        for &key in &jobs {
            let position = start.after(to_u64((at - layout.records_at) / LOG_UNIT));
            at += self.encode(&mut bytes[at..], key, position);
            let job = &self.jobs[key];
            let (len, count) = (job.sectors.count * self.limits.sector.len(), job.sectors.count);
            match &job.bio.memory {
                Memory::Buffer(from) => {
                    bytes[data_at..][..len].copy_from_slice(&from.as_slice()[..len]);
                }
                Memory::Iov(iter) => {
                    iter.clone().copy_out(&mut bytes[data_at..][..len]);
                }
                Memory::Shared(_) | Memory::None => unreachable!("`check` saw memory"),
            }
            guards[data_at / GUARD_INTERVAL..][..count].copy_from_slice(&job.new_guards()[..count]);
            data_at += len;
        }
        bytes[data_at..layout.len].fill(0);
        jobs
    }

    fn send_staged(&mut self, part: Part, key: usize, bio: Bio) {
        let token = Token { part, job: key, way: None };
        self.send_bio(bio.with_user(token.encode()));
    }

    /// Ends the jobs of a batch that is in the journal, and keeps what they hold.
    pub(super) fn batch_written(&mut self, key: usize, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let result = ended.result;
        drop(ended);
        let Some(stage) = &mut self.stage else { return };
        let batch = &mut stage.batches[key];
        let jobs = std::mem::take(&mut batch.jobs);
        let (mut at, segment) = (batch.layout.data_at, batch.segment);
        stage.segments[segment].in_flight -= 1;
        stage.writing -= 1;
        if let Err(error) = result {
            let position = stage.batches.remove(key).position;
            stage.segments[segment].batches.retain(|&batch| batch != key);
            if let Some(log) = &self.volume.log {
                log.fail(position);
            }
            self.give_up_record(position);
            self.durable_write_failed(error);
            for job in jobs {
                self.finish(job, Err(error));
            }
            self.unstage_if_empty();
            return self.advance_stage();
        }
        let (mut entries, mut is_awaited) = (Vec::with_capacity(jobs.len()), false);
        for &job in &jobs {
            let job = &mut self.jobs[job];
            let (way, sectors) = (job.way(), job.sectors);
            let offset = self.limits.sector.align_down(job.bio.offset);
            entries.push(Entry { way, sectors, offset, at });
            job.place = Place::Nowhere;
            at += sectors.count * self.limits.sector.len();
            is_awaited |= self.volume.cache.is_awaited(way);
        }
        if let Some(stage) = &mut self.stage {
            stage.batches[key].entries = entries;
            stage.is_hurried |= is_awaited;
        }
        for job in jobs {
            self.finish(job, Ok(()));
        }
        self.advance_stage();
    }

    /// Stores the records of a segment in the tuple log, and its sectors in their place.
    fn store_segment(&mut self, segment: usize) {
        self.send_segment_records(segment, false);
        self.send_sectors(segment);
    }

    /// Stores the records of a segment in the tuple log, so that they are durable there before its sectors
    /// are stored.
    fn log_segment(&mut self, segment: usize) {
        self.send_segment_records(segment, true);
        if let Some(stage) = &mut self.stage {
            stage.segments[segment].phase = Phase::Logging;
        }
        self.go_on_with_segment(segment);
    }

    /// Sends the records of a segment to the tuple log: what follows each other there, together.
    fn send_segment_records(&mut self, segment: usize, durably: bool) {
        let Some(stage) = &self.stage else { return };
        let mut batches: Vec<_> =
            stage.segments[segment].batches.iter().map(|&key| &stage.batches[key]).collect();
        batches.sort_unstable_by_key(|batch| batch.position);
        let follows = |one: &&Batch, next: &&Batch| {
            let units = to_u64(one.layout.records_len / LOG_UNIT);
            one.position.after(units) == next.position
        };
        let mut bios = Vec::new();
        for run in batches.chunk_by(follows) {
            let len: usize = run.iter().map(|batch| batch.layout.records_len).sum();
            let merged = if run.len() > 1 { stage.pool.take_whole(len) } else { None };
            match merged.filter(|buffer| buffer.len() >= len) {
                Some(mut buffer) => {
                    let mut at = 0;
                    for Batch { memory, layout, .. } in run {
                        let Layout { records_at, records_len, .. } = *layout;
                        let records = &memory.as_slice()[records_at..][..records_len];
                        buffer.as_mut_slice()[at..][..records_len].copy_from_slice(records);
                        at += records_len;
                    }
                    bios.push((run[0].position, 0, len, Memory::Buffer(buffer)));
                }
                None => bios.extend(run.iter().map(|batch| {
                    let Layout { records_at, records_len, .. } = batch.layout;
                    let memory = Memory::Shared(Arc::clone(&batch.memory));
                    (batch.position, records_at, records_len, memory)
                })),
            }
        }
        if let Some(stage) = &mut self.stage {
            stage.segments[segment].in_flight += bios.len();
        }
        for (position, start, len, memory) in bios {
            let Some(log) = &self.volume.log else { return };
            let at = log.offset_of(position);
            let mut bio = Bio::new(Op::Write, at, to_u64(len), memory).with_start(start);
            bio.fua = durably;
            self.send_staged(Part::SegmentRecords, segment, bio);
        }
    }

    pub(super) fn segment_records_written(&mut self, segment: usize, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        if let Err(error) = ended.result {
            self.durable_write_failed(error);
        }
        drop(ended);
        if let Some(stage) = &mut self.stage {
            stage.segments[segment].in_flight -= 1;
        }
        self.go_on_with_segment(segment);
    }

    /// Sends the sectors of a segment to their place: in their order, and those that follow each other in
    /// a batch, too, together.
    fn send_sectors(&mut self, segment: usize) {
        if let Some(stage) = &mut self.stage {
            stage.segments[segment].phase = Phase::Storing;
        }
        let Some(stage) = &self.stage else { return };
        let keys = &stage.segments[segment].batches;
        let of_batch = |&batch: &usize| {
            (0..stage.batches[batch].entries.len()).map(move |first| (batch, first))
        };
        let mut all: Vec<_> = keys.iter().flat_map(of_batch).collect();
        all.sort_unstable_by_key(|&(batch, entry)| stage.batches[batch].entries[entry].offset);
        let mut runs: Vec<Run> = Vec::with_capacity(all.len());
        for (batch, entry) in all {
            let entries = &stage.batches[batch].entries;
            match runs.last_mut() {
                Some(run)
                    if run.batch == batch
                        && run.first + run.count == entry
                        && self.is_behind(&entries[entry - 1], &entries[entry]) =>
                {
                    run.count += 1;
                }
                _ => runs.push(Run { batch, first: entry, count: 1 }),
            }
        }
        for run in runs {
            self.send_run(run);
        }
        self.go_on_with_segment(segment);
    }

    /// Returns whether the sectors of an entry follow those of another in their place.
    fn is_behind(&self, entry: &Entry, next: &Entry) -> bool {
        let end = entry.offset + to_u64(entry.sectors.count * self.limits.sector.len());
        end == next.offset && !self.volume.geometry().group_data().is_aligned(end)
    }

    fn send_run(&mut self, run: Run) {
        let Some(stage) = &mut self.stage else { return };
        let batch = &stage.batches[run.batch];
        let entries = &batch.entries[run.first..run.first + run.count];
        let sectors: usize = entries.iter().map(|entry| entry.sectors.count).sum();
        let Entry { offset, at, .. } = entries[0];
        let (place, len) =
            (self.volume.geometry().data_at(offset), sectors * self.limits.sector.len());
        let memory = Memory::Shared(Arc::clone(&batch.memory));
        let mut bio = Bio::new(Op::Write, place, to_u64(len), memory).with_start(at);
        // No flush will do it.
        bio.fua = self.volume.flush_failed();
        stage.segments[batch.segment].in_flight += 1;
        let key = stage.runs.insert(run);
        self.send_staged(Part::Sectors, key, bio);
    }

    /// Gives up what is in its place now. What cannot be brought there stays in memory, from where it is
    /// read, and in the journal.
    pub(super) fn sectors_written(&mut self, key: usize, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let result = ended.result;
        drop(ended);
        let Some(stage) = &mut self.stage else { return };
        let run = stage.runs.remove(key);
        let segment = stage.batches[run.batch].segment;
        stage.segments[segment].in_flight -= 1;
        match result {
            Err(_) if run.count > 1 => {
                for first in run.first..run.first + run.count {
                    self.send_run(Run { first, count: 1, ..run });
                }
            }
            _ => {
                for entry in run.first..run.first + run.count {
                    self.release_entry(run.batch, entry, result.map(drop));
                }
            }
        }
        self.go_on_with_segment(segment);
    }

    fn release_entry(&self, batch: usize, entry: usize, result: Result<(), Error>) {
        let volume = Arc::clone(&self.volume);
        let Some(stage) = &self.stage else { return };
        let Batch { memory, entries, position, .. } = &stage.batches[batch];
        let Entry { way, sectors, offset, at } = entries[entry];
        let (first_lba, len) = (self.limits.sector.count(offset), self.limits.sector.len());
        let guards = &memory.guards()[at / GUARD_INTERVAL..][..sectors.count];
        for ((sector, lba), &guard) in (sectors.first..).zip(first_lba..).zip(guards) {
            volume.cache.set_tuple(way, sector, volume.tuple_words(lba, guard));
        }
        volume.cache.mark_dirty(way);
        volume.forget_reported(first_lba, to_u64(sectors.count));
        if let Err(error) = result {
            volume.set_flush_failed();
            tracing::error!(
                "what was written to LBA {first_lba} is in the journal and cannot be stored in its \
                 place, and no later flush succeeds: {error}"
            );
            if let Some(log) = &volume.log {
                log.fail(*position);
            }
            let data = memory.as_slice()[at..].chunks(len);
            for (lba, data) in (first_lba..).zip(data).take(sectors.count) {
                volume.overlay.put(lba, data);
            }
        }
        if let Some(journal) = &volume.journal {
            journal.stored(volume.cache.group(way));
        }
        volume.cache.release(way, sectors, Mode::Exclusive);
    }

    /// Goes on with a segment when nothing of it is in flight.
    fn go_on_with_segment(&mut self, index: usize) {
        let Some(stage) = &mut self.stage else { return };
        let segment = &mut stage.segments[index];
        if segment.in_flight > 0 {
            return;
        }
        match segment.phase {
            Phase::Logging => return self.send_sectors(index),
            Phase::Storing => segment.phase = Phase::Stored,
            _ => return,
        }
        for batch in std::mem::take(&mut segment.batches) {
            let Some(stage) = &mut self.stage else { return };
            let position = stage.batches.remove(batch).position;
            self.give_up_record(position);
        }
        self.unstage_if_empty();
        self.advance_stage();
    }

    fn unstage_if_empty(&self) {
        if let (Some(stage), Some(journal)) = (&self.stage, &self.volume.journal)
            && stage.batches.is_empty()
        {
            journal.unstage(stage.lane);
        }
    }
}

/// What is to be in a batch.
struct Plan {
    layout: Layout,
    count: usize,
    /// More would not fit.
    is_full: bool,
}
