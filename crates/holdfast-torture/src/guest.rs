//! The guest: it drives all queues from one thread, so that there is one order of events, and checks
//! everything that it is given.

use std::collections::HashMap;
use std::fmt::Write;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_units::{to_u64, to_usize};
use holdfast_virtio_driver::{
    Client, Completion, Range as ClientRange, Request, Shape, Status, TableShape, Token,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::TortureError;
use crate::arena::{Arena, PAGE};
use crate::content::{BLOCK, Found, Origin};
use crate::model::{Effect, Model, Moment, Stored};
use crate::mutator::{Board, Change, Target};
use crate::plan::{Kind, Plan, Planner};
use crate::random::Random;
use crate::rot::{Expected, Rot};
use crate::scatter::{Home, Scatter, Style};

/// What a guest has found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Requests that have ended.
    pub(crate) requests: u64,
    /// Bytes that were read or written by them.
    pub(crate) bytes: u64,
    /// Requests that failed, though nothing was corrupt.
    pub(crate) false_errors: u64,
    /// Blocks that were read and hold what they must not.
    pub(crate) wrong_blocks: u64,
    /// Requests that succeeded, though they verified what is corrupt.
    pub(crate) undetected: u64,
    /// The first of all these, in words.
    pub(crate) faults: Vec<String>,
}

impl Tally {
    const FAULTS_MAX: usize = 20;

    fn say(&mut self, fault: impl FnOnce() -> String) {
        if self.faults.len() < Self::FAULTS_MAX {
            self.faults.push(fault());
        }
    }
}

/// How requests are made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manners {
    /// Whether memory changes while it is in flight.
    pub(crate) mutates: bool,
    /// Whether a page that is listed twice holds whole blocks after a read. Where nothing is
    /// bounced the device stores into it as it likes.
    pub(crate) checks_duplicates: bool,
}

/// Changes a stored byte of a sector behind the server's back, by the block and the bits to flip.
pub(crate) type Corrupt = Box<dyn Fn(u64, usize, u8)>;

/// The worst guest.
pub(crate) struct Guest {
    client: Client,
    lanes: Vec<Lane>,
    /// By which the server calls, for each queue.
    calls: Vec<OwnedFd>,
    arena: Arena,
    board: Arc<Board>,
    model: Model,
    planner: Planner,
    random: Random,
    manners: Manners,
    blocks: u64,
    sector_blocks: u64,
    rot: Option<(Rot, Corrupt)>,
    tally: Tally,
    /// Room for the data of one request.
    staging: Vec<u8>,
    /// When a request has ended last.
    last_end: Instant,
}

/// A queue.
#[derive(Debug)]
struct Lane {
    flights: HashMap<Token, Flight>,
    /// Places on the board that are free.
    places: Vec<usize>,
    /// How many requests there may be in flight.
    depth: usize,
}

/// A request in flight.
#[derive(Debug)]
struct Flight {
    begun: Moment,
    plan: Plan,
    scatter: Scatter,
    place: usize,
    /// Some words of what is read say nothing.
    scribbled: bool,
}

impl Guest {
    /// The most requests in flight in one queue.
    const DEPTH_MAX: usize = 32;
    /// For how long nothing may end while there is something in flight.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Returns the places that the guest needs on its board.
    pub(crate) const fn places(queues: usize) -> usize {
        // One for the page that everybody uses.
        queues * Self::DEPTH_MAX + 1
    }

    /// Returns how many requests there may be in flight in a queue for a while.
    const fn depth(random: &mut Random) -> usize {
        1 << random.below(6)
    }

    /// Begins with a disk of zeros. `border` is a block at which a group of its sectors ends.
    pub(crate) fn new(
        mut client: Client,
        queues: u16,
        border: u64,
        manners: Manners,
        board: Arc<Board>,
        mut random: Random,
    ) -> Result<Self, TortureError> {
        let config = client.config();
        let blocks = config.capacity_sectors;
        let sector_blocks = 1 << config.physical_block_exponent;
        if !(Planner::BLOCKS_MIN..=crate::content::BLOCKS_MAX).contains(&blocks) {
            return Err(TortureError::Disk { blocks });
        }
        let arena = Arena::new(client.memory());
        if manners.mutates {
            board.put(0, Target::all_of(arena.dummy(), PAGE, client.memory().guest()));
        }
        let calls = (0..queues).map(|index| client.queue(index).call_fd().try_clone_to_owned());
        let calls: Result<_, _> = calls.collect();
        let places = |lane: usize| {
            let first = 1 + lane * Self::DEPTH_MAX;
            (first..first + Self::DEPTH_MAX).collect()
        };
        let mut lane = |lane| Lane {
            flights: HashMap::new(),
            places: places(lane),
            depth: Self::depth(&mut random),
        };
        Ok(Self {
            calls: calls.map_err(TortureError::system("duplicate an eventfd"))?,
            lanes: (0..usize::from(queues)).map(&mut lane).collect(),
            arena,
            board,
            model: Model::new(to_usize(blocks)),
            planner: Planner::new(blocks, border, &mut random),
            random,
            manners,
            blocks,
            sector_blocks,
            rot: None,
            tally: Tally::default(),
            staging: Vec::new(),
            last_end: Instant::now(),
            client,
        })
    }

    /// Lets sectors be corrupted while requests run.
    pub(crate) fn corrupt_by(&mut self, corrupt: Corrupt) {
        self.rot = Some((Rot::new(self.sector_blocks), corrupt));
    }

    /// Returns what was found so far.
    pub(crate) const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Returns the sectors that are corrupt, how many there ever were, and how many were found.
    pub(crate) fn rot(&self) -> Option<&Rot> {
        self.rot.as_ref().map(|(rot, _)| rot)
    }

    /// Returns how many requests are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.lanes.iter().map(|lane| lane.flights.len()).sum()
    }

    /// Makes requests, a burst in each queue, until there are `most` with those that have ended.
    pub(crate) fn submit(&mut self, most: u64) -> Result<(), TortureError> {
        for lane in 0..self.lanes.len() {
            if self.random.chance(2) {
                self.lanes[lane].depth = Self::depth(&mut self.random);
            }
            let burst = 1 + self.random.index(8);
            for _ in 0..burst {
                let is_full = self.lanes[lane].flights.len() >= self.lanes[lane].depth;
                let made = self.tally.requests + to_u64(self.in_flight());
                if is_full || made >= most || !self.submit_one(lane)? {
                    break;
                }
            }
            self.queue(lane).kick()?;
        }
        self.decay();
        Ok(())
    }

    fn queue(&mut self, lane: usize) -> &mut holdfast_virtio_driver::BlkQueue {
        self.client.queue(u16::try_from(lane).expect("there are few queues"))
    }

    /// Makes one request. `false` when there is no memory or no descriptor for it.
    fn submit_one(&mut self, lane: usize) -> Result<bool, TortureError> {
        let Some(plan) = self.plan() else { return Ok(true) };
        let style = Style::choose(&mut self.random, plan.bytes(), plan.kind == Kind::Write);
        let mutates = self.manners.mutates && self.random.chance(85);
        self.submit_plan(lane, plan, style, mutates)
    }

    /// Returns the next request, unless what it does to corrupt sectors could not be judged.
    fn plan(&mut self) -> Option<Plan> {
        let plan = self.planner.next(&mut self.random);
        let Some((rot, _)) = &self.rot else { return Some(plan) };
        let (random, sector_blocks) = (&mut self.random, self.sector_blocks);
        let choice = random.below(100);
        let special = match choice {
            0..10 => rot.choose(false, random).map(|sector| (Kind::Read, sector)),
            10..13 => rot.choose(true, random).map(|sector| (Kind::Write, sector)),
            _ => None,
        };
        let plan = special.map_or(plan, |(kind, sector)| {
            Plan::of(kind, sector * sector_blocks..(sector + 1) * sector_blocks)
        });
        rot.allows(&plan).then_some(plan)
    }

    fn submit_plan(
        &mut self,
        lane: usize,
        plan: Plan,
        style: Style,
        mutates: bool,
    ) -> Result<bool, TortureError> {
        if self.queue(lane).free() == 0 {
            return Ok(false);
        }
        let config = self.client.config();
        let segments_max = to_usize(u64::from(config.segments_max));
        let segment_max = u64::from(config.segment_bytes_max);
        let len = plan.bytes();
        let (arena, random) = (&mut self.arena, &mut self.random);
        let scatter = Scatter::new(style, len, segments_max, segment_max, arena, random);
        let Some(scatter) = scatter else { return Ok(false) };
        let place = self.lanes[lane].places.pop().expect("there is one for each request");
        let begun = self.model.begin();
        self.write_memory(begun, &plan, &scatter)?;
        let flight =
            Flight { begun, scribbled: mutates && plan.kind == Kind::Read, scatter, place, plan };
        if mutates && len > 0 {
            let change = if flight.scribbled { Change::LastWords } else { Change::FreeBits };
            let target = Target::of(&flight.scatter, change, self.client.memory().guest());
            self.board.put(place, target);
        }
        let shape = self.shape(lane, &flight);
        if let Some((rot, _)) = &mut self.rot {
            rot.begin(begun, &flight.plan);
        }
        let token = self.send(lane, &flight, shape)?;
        self.lanes[lane].flights.insert(token, flight);
        Ok(true)
    }

    /// Puts what is to be written into memory, or what is not to be found there after a read; and
    /// tells the model.
    fn write_memory(
        &mut self,
        begun: Moment,
        plan: &Plan,
        scatter: &Scatter,
    ) -> Result<(), TortureError> {
        let (model, staging) = (&mut self.model, &mut self.staging);
        staging.clear();
        staging.resize(scatter.bytes(), 0xee);
        let first = plan.ranges.first().map_or(0, |range| range.start);
        for (bytes, at) in
            staging.chunks_exact_mut(BLOCK).zip(0..).filter(|_| plan.kind == Kind::Write)
        {
            let stored = match scatter.home(at) {
                Home::Dummy => Stored::Anything,
                Home::Block(home) => {
                    let origin = Origin { request: begun, block: first + to_u64(home) };
                    origin.fill(bytes);
                    Stored::Data(origin)
                }
            };
            model.write(begun, first + to_u64(at), stored);
        }
        if !matches!(plan.kind, Kind::Read | Kind::Write) {
            for block in plan.changed(self.sector_blocks).flatten() {
                model.write(begun, block, Stored::Zeros);
            }
        }
        for (segment, range) in scatter.pieces() {
            if scatter.home(range.start / BLOCK) != Home::Dummy {
                self.client.memory().write(segment.address, &staging[range])?;
            }
        }
        Ok(())
    }

    /// Chooses how a request is put into descriptors.
    fn shape(&mut self, lane: usize, flight: &Flight) -> Shape {
        let free = usize::from(self.queue(lane).free());
        let random = &mut self.random;
        let header_cuts = if random.chance(25) {
            // Few cuts, or all there can be.
            let cuts = random.next() & random.next();
            u16::try_from(cuts & 0xfffe).expect("16 bits")
        } else {
            0
        };
        let joins_header = random.chance(30)
            && (flight.scatter.has_room_before || flight.plan.kind != Kind::Write);
        let joins_status = random.chance(30) && flight.scatter.has_room_behind;
        // Those of the header, ranges and status, and one that points to a table.
        let others = 19;
        let direct = match random.below(10) {
            0..3 if flight.scatter.segments.len() + others <= free => TableShape::Direct,
            3..6 if others <= free => TableShape::After(1 + random.index(others - 2)),
            _ => TableShape::Indirect,
        };
        Shape { table: direct, header_cuts, joins_header, joins_status }
    }

    fn send(&mut self, lane: usize, flight: &Flight, shape: Shape) -> Result<Token, TortureError> {
        let Flight { plan, scatter, .. } = flight;
        let first = plan.ranges.first().map_or(0, |range| range.start);
        let flags = match plan.kind {
            Kind::WriteZeroes { unmap: true } => ClientRange::UNMAP,
            _ => 0,
        };
        let to_range = |range: &Range<u64>| ClientRange {
            sector: range.start,
            sectors: u32::try_from(range.end - range.start).expect("a range is short"),
            flags,
        };
        let ranges: Vec<_> = plan.ranges.iter().map(to_range).collect();
        let request = match plan.kind {
            Kind::Read => Request::Read { sector: first, target: &scatter.segments },
            Kind::Write => Request::Write { sector: first, source: &scatter.segments },
            Kind::Flush => Request::Flush,
            Kind::Discard => Request::Discard { ranges: &ranges },
            Kind::WriteZeroes { .. } => Request::WriteZeroes { ranges: &ranges },
        };
        Ok(self.queue(lane).submit(&request, shape)?)
    }

    /// Takes everything that has ended. Returns whether there was something.
    pub(crate) fn collect(&mut self) -> Result<bool, TortureError> {
        let before = self.tally.requests;
        for lane in 0..self.lanes.len() {
            while let Some(completion) = self.queue(lane).completed()? {
                self.end(lane, &completion)?;
            }
        }
        let is_busy = self.tally.requests > before;
        if is_busy {
            self.last_end = Instant::now();
        }
        Ok(is_busy)
    }

    fn end(&mut self, lane: usize, completion: &Completion) -> Result<(), TortureError> {
        let flight = self.lanes[lane].flights.remove(&completion.token);
        let flight = flight.expect("the queue knows what is in flight");
        self.board.take(flight.place);
        self.lanes[lane].places.push(flight.place);
        self.tally.requests += 1;
        let succeeded = completion.status == Status::Ok;
        self.judge_status(lane, &flight, completion);
        if succeeded {
            self.tally.bytes += flight.plan.bytes();
            if flight.plan.kind == Kind::Read {
                self.check(lane, &flight)?;
            }
        }
        let effect = if succeeded { Effect::Sure } else { Effect::Unsure };
        self.model.end(flight.begun, flight.plan.changed(self.sector_blocks), effect);
        flight.scatter.give_back(&mut self.arena);
        Ok(())
    }

    fn judge_status(&mut self, lane: usize, flight: &Flight, completion: &Completion) {
        let succeeded = completion.status == Status::Ok;
        let expected = self.rot.as_mut().map_or(Expected::Success, |(rot, _)| {
            let now = Moment::of_number(self.model.events() + 1);
            rot.end(flight.begun, now, &flight.plan, succeeded)
        });
        let room = if flight.plan.kind == Kind::Read { flight.plan.bytes() } else { 0 };
        let in_words = |what: &str| {
            let Flight { begun, plan, .. } = flight;
            let mut text = format!("queue {lane}, request {begun}, {:?} of", plan.kind);
            for range in &plan.ranges {
                let _written = write!(text, " {}..{}", range.start, range.end);
            }
            format!("{text}: {what}")
        };
        let is_io_error = completion.status == Status::IoError;
        match expected {
            Expected::Failure if succeeded => {
                self.tally.undetected += 1;
                self.tally.say(|| in_words("succeeded, and should have met a corrupt sector"));
            }
            Expected::Failure | Expected::Either if is_io_error => {}
            _ if !succeeded => {
                self.tally.false_errors += 1;
                self.tally.say(|| in_words(&format!("ended with {:?}", completion.status)));
            }
            _ if u64::from(completion.written) < room + 1 => {
                self.tally.false_errors += 1;
                let written = completion.written;
                self.tally
                    .say(|| in_words(&format!("only {written} bytes are said to be written")));
            }
            _ => {}
        }
    }

    /// Checks what was read.
    fn check(&mut self, lane: usize, flight: &Flight) -> Result<(), TortureError> {
        let Flight { begun, plan, scatter, scribbled, .. } = flight;
        let first = plan.ranges[0].start;
        let staging = &mut self.staging;
        staging.resize(scatter.bytes(), 0);
        for (segment, range) in scatter.pieces() {
            self.client.memory().read(segment.address, &mut staging[range])?;
        }
        for (bytes, at) in staging.chunks_exact(BLOCK).zip(0..) {
            let Home::Block(home) = scatter.home(at) else { continue };
            let found = Found::of(bytes, *scribbled);
            let block = first + to_u64(at);
            let others = if scatter.is_plain() { Vec::new() } else { scatter.same(home).collect() };
            let is_right = if others.len() < 2 {
                self.model.check(*begun, block, found)
            } else {
                let is_any = !self.manners.checks_duplicates
                    || others
                        .iter()
                        .any(|&at| self.model.allows(*begun, first + to_u64(at), found));
                if is_any { Ok(()) } else { self.model.check(*begun, block, found) }
            };
            if let Err(fault) = is_right {
                self.tally.wrong_blocks += 1;
                self.tally.say(|| format!("queue {lane}, read {begun}: {fault}"));
            }
        }
        Ok(())
    }

    /// Now and then corrupts a sector to which nobody writes.
    fn decay(&mut self) {
        const ROTTEN_MAX: usize = 24;
        const TRIES: usize = 16;
        let Some((rot, corrupt)) = &mut self.rot else { return };
        rot.forget(self.model.oldest());
        let rotten = rot.rotten();
        if rotten.len() >= ROTTEN_MAX || !self.random.chance(30) {
            return;
        }
        let is_free = |block| self.model.is_data(block) && !self.model.is_written_now(block);
        // Many were never written, or zeroed since.
        let found = (0..TRIES).find_map(|_| {
            let sector = self.random.below(self.blocks / self.sector_blocks);
            let mut blocks = sector * self.sector_blocks..(sector + 1) * self.sector_blocks;
            (!rotten.contains(&sector) && blocks.all(is_free)).then_some(sector)
        });
        let Some(sector) = found else { return };
        let now = self.model.tick();
        let block = sector * self.sector_blocks + self.random.below(self.sector_blocks);
        let bits = u8::try_from(1 + self.random.below(255)).expect("8 bits");
        corrupt(block, self.random.index(BLOCK), bits);
        rot.inject(sector, now);
    }

    /// Waits until something has ended, or for some milliseconds.
    pub(crate) fn wait(&mut self) -> Result<(), TortureError> {
        let mut ready = false;
        for lane in 0..self.lanes.len() {
            // Forgets earlier calls.
            ready |= self.queue(lane).wait(Duration::ZERO)?;
        }
        for lane in 0..self.lanes.len() {
            ready |= self.queue(lane).arm();
        }
        if ready {
            return Ok(());
        }
        let in_flight = self.in_flight();
        if in_flight > 0 && self.last_end.elapsed() > Self::PATIENCE {
            let seconds = Self::PATIENCE.as_secs();
            return Err(TortureError::Hung { in_flight, seconds });
        }
        let timeout = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        let calls = self.calls.iter();
        let mut polled: Vec<_> = calls.map(|call| PollFd::new(call, PollFlags::IN)).collect();
        match poll(&mut polled, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(TortureError::system("poll")(error)),
        }
    }

    /// Makes requests until so many have ended. `each` is told how many have, now and then.
    pub(crate) fn run(
        &mut self,
        requests: u64,
        mut each: impl FnMut(u64),
    ) -> Result<(), TortureError> {
        self.last_end = Instant::now();
        while self.tally.requests < requests {
            self.submit(requests)?;
            if !self.collect()? {
                self.wait_connected()?;
            }
            each(self.tally.requests);
        }
        Ok(())
    }

    /// Makes requests until a moment, and takes those that have ended till then.
    pub(crate) fn run_until(&mut self, deadline: Instant) -> Result<(), TortureError> {
        self.last_end = Instant::now();
        while Instant::now() < deadline {
            self.submit(u64::MAX)?;
            if !self.collect()? {
                self.wait_connected()?;
            }
        }
        Ok(())
    }

    /// Waits until nothing is in flight.
    pub(crate) fn drain(&mut self) -> Result<(), TortureError> {
        self.last_end = Instant::now();
        while self.in_flight() > 0 {
            if !self.collect()? {
                self.wait_connected()?;
            }
        }
        Ok(())
    }

    fn wait_connected(&mut self) -> Result<(), TortureError> {
        self.wait()?;
        if self.client.is_closed()? { Err(TortureError::Gone) } else { Ok(()) }
    }

    /// Reads everything, and checks it. Nothing may be in flight.
    pub(crate) fn sweep(&mut self) -> Result<(), TortureError> {
        const CHUNK: u64 = 256;
        let rotten = self.rot().map(Rot::rotten).unwrap_or_default();
        let mut chunks = Vec::new();
        for first in (0..self.blocks).step_by(to_usize(CHUNK)) {
            let end = (first + CHUNK).min(self.blocks);
            let sectors = first / self.sector_blocks..end.div_ceil(self.sector_blocks);
            if rotten.range(sectors.clone()).next().is_none() {
                chunks.push(first..end);
                continue;
            }
            // Each alone, so that each that is good must be read.
            chunks.extend(sectors.map(|sector| {
                let first = sector * self.sector_blocks;
                first..(first + self.sector_blocks).min(self.blocks)
            }));
        }
        for chunk in chunks {
            let plan = Plan::of(Kind::Read, chunk);
            while !self.submit_plan(0, plan.clone(), Style::Pages, false)? {
                self.drain()?;
            }
            self.queue(0).kick()?;
            if self.in_flight() == Self::DEPTH_MAX {
                self.drain()?;
            }
        }
        self.drain()
    }

    /// Connects again after the server has ended.
    pub(crate) fn reconnect(&mut self) -> Result<(), TortureError> {
        self.client.reconnect()?;
        self.last_end = Instant::now();
        Ok(())
    }
}
