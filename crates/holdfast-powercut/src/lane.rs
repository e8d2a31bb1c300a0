//! A front end's way to the volume, with requests in flight: in buffers of a pool, as NBD does, or in
//! memory of a guest that goes on changing it.

use std::sync::Arc;

use holdfast_bio::{Bio, BlockDevice, Bounce, Ended, Error, Op, ReadPolicy};
use holdfast_iov::{IovIter, Memory, Pool, Region, VolatileMemory};
use holdfast_sim::Random;
use holdfast_units::{to_u64, to_usize};
use holdfast_volume::{Queue, Volume};

use crate::content::{UNIT, changed, fill, is_scribbled};
use crate::model::Moment;
use crate::plan::{Ask, Path};
use crate::rig::Device;

/// A request that has been answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) ask: Ask,
    pub(crate) begun: Moment,
    /// Its number, if it changes what is stored.
    pub(crate) write: Option<usize>,
    pub(crate) result: Result<(), Error>,
    /// What was read.
    pub(crate) data: Vec<u8>,
    /// Some of that was overwritten meanwhile.
    pub(crate) is_scribbled: bool,
}

/// A request in flight.
#[derive(Debug)]
struct Request {
    answer: Answer,
    /// Bios that have not ended.
    left: usize,
    /// The guest's memory, all of it.
    memory: Option<IovIter>,
}

/// A queue, as one front end uses it.
#[derive(Debug)]
pub(crate) struct Lane {
    front: Bounce<Queue<Device>>,
    is_guest: bool,
    changes_memory: bool,
    pool: Pool,
    /// Memory of a guest: a piece for each request.
    memory: Arc<VolatileMemory>,
    requests: Vec<Option<Request>>,
    ended: Vec<Ended>,
    random: Random,
}

/// The memory of a guest for one request: the most that a request may have, and some more.
const PIECE: usize = (256 << 10) + 4096;

impl Lane {
    /// Opens a queue of `volume` for requests of which at most `depth` are in flight.
    pub(crate) fn new(
        volume: &Arc<Volume>,
        device: Device,
        path: Path,
        depth: usize,
        mut random: Random,
    ) -> std::io::Result<Self> {
        let queue = Queue::new(volume, device, || {})?;
        let queue = if random.chance(75) { queue.with_journal()? } else { queue };
        let policy = if let Path::Guest(policy) = path { policy } else { ReadPolicy::Lazy };
        let pool = Pool::new(4 << 20)?;
        let is_guest = matches!(path, Path::Guest(_));
        let regions = if is_guest { vec![Region::anonymous(depth * PIECE)?] } else { Vec::new() };
        Ok(Self {
            front: Bounce::new(queue, pool.clone(), policy),
            is_guest,
            // Nobody promises anything about memory that changes without a buffer.
            changes_memory: policy != ReadPolicy::Never,
            pool,
            memory: Arc::new(VolatileMemory::new(regions)),
            requests: (0..depth).map(|_| None).collect(),
            ended: Vec::new(),
            random,
        })
    }

    /// Returns whether another request may be submitted.
    pub(crate) fn has_room(&self) -> bool {
        self.requests.iter().any(Option::is_none)
    }

    /// Returns whether nothing is in flight, also nothing of the volume's own.
    pub(crate) fn is_idle(&mut self) -> bool {
        self.requests.iter().all(Option::is_none) && self.front.device_mut().in_flight() == 0
    }

    /// Begins a request. `write` is its number, if it changes what is stored.
    pub(crate) fn submit(&mut self, ask: Ask, begun: Moment, write: Option<usize>) {
        let slot = self.requests.iter().position(Option::is_none).expect("there is room");
        let has_data = matches!(ask.op, Op::Read | Op::Write);
        let data = if has_data { vec![0; to_usize(ask.len)] } else { Vec::new() };
        let is_scribbled = self.is_guest && self.changes_memory;
        let mut answer = Answer { ask, begun, write, result: Ok(()), data, is_scribbled };
        if let (Op::Write, Some(write)) = (ask.op, write) {
            fill(&mut answer.data, write, to_usize(ask.offset) / UNIT);
        }
        let memory = (self.is_guest && has_data).then(|| self.scatter(slot, &answer.data));
        let bios = self.bios(ask, &answer.data, memory.clone());
        let left = bios.len();
        self.requests[slot] = Some(Request { answer, left, memory });
        for bio in bios {
            if let Err(bio) = self.front.submit(bio.with_user(to_u64(slot))) {
                unreachable!("a volume's queue is never full: {bio:?}");
            }
        }
    }

    /// Cuts a request into bios.
    fn bios(&self, ask: Ask, data: &[u8], mut memory: Option<IovIter>) -> Vec<Bio> {
        if ask.op == Op::Flush {
            return vec![Bio::flush()];
        }
        let limits = self.front.limits();
        let chunks = limits.chunks(ask.offset, ask.len);
        chunks
            .map(|(at, len)| {
                let head = to_usize(limits.sector.offset_in(at));
                let from = to_usize(at - ask.offset);
                let (start, memory) = match (&mut memory, ask.op) {
                    (Some(iter), _) => (0, Memory::Iov(iter.split_to(to_usize(len)))),
                    (None, Op::Read | Op::Write) => {
                        let whole = limits.buffer_len(at, len);
                        let mut buffer = self.pool.take_whole(whole).expect("enough for all");
                        let target = &mut buffer.as_mut_slice()[head..][..to_usize(len)];
                        target.copy_from_slice(&data[from..][..to_usize(len)]);
                        (head, Memory::Buffer(buffer))
                    }
                    (None, _) => (0, Memory::None),
                };
                let mut bio = Bio::new(ask.op, at, len, memory).with_start(start);
                bio.fua = ask.fua;
                bio
            })
            .collect()
    }

    /// Puts data into memory of the guest: in one piece, at an odd place, or page by page backwards.
    fn scatter(&mut self, slot: usize, data: &[u8]) -> IovIter {
        const PAGE: usize = 4096;
        let from = slot * PIECE;
        let mut iter = IovIter::new(Arc::clone(&self.memory));
        let mut push = |offset, len| iter.push(0, offset, len).expect("the piece is long enough");
        match self.random.below(4) {
            0 => push(from + to_usize(1 + self.random.below(4095)), data.len()),
            1 => {
                let mut at = from + data.len().next_multiple_of(PAGE);
                for page in data.chunks(PAGE) {
                    at -= PAGE;
                    push(at, page.len());
                }
            }
            _ => push(from, data.len()),
        }
        let copied = iter.copy_in(data);
        iter.revert(copied);
        iter
    }

    /// Changes some memory of requests in flight, as guests do.
    pub(crate) fn change_memory(&mut self) {
        if !self.changes_memory {
            return;
        }
        for request in self.requests.iter().flatten() {
            let Some(memory) = &request.memory else { continue };
            let at = to_usize(self.random.below(to_u64(memory.count())));
            let value = self.random.next().to_le_bytes()[7];
            let (at, value) = match request.answer.ask.op {
                Op::Write => (at & !7, changed(at & !7, value)),
                _ => (at, is_scribbled(at).then_some(value)),
            };
            if let Some(value) = value {
                let mut byte = memory.clone();
                byte.advance(at);
                byte.copy_in(&[value]);
            }
        }
    }

    /// Goes on. Appends the requests that were answered.
    pub(crate) fn reap(&mut self, answers: &mut Vec<Answer>) {
        self.front.wait();
        self.front.reap(&mut self.ended);
        for Ended { bio, result } in self.ended.drain(..) {
            let slot = &mut self.requests[to_usize(bio.user)];
            let request = slot.as_mut().expect("a request ends once");
            let Request { answer, left, memory } = request;
            let result = result.map(drop);
            answer.result = answer.result.and(result);
            if let (Op::Read, Some(buffer)) = (bio.op, bio.memory.buffer()) {
                let (from, len) = (to_usize(bio.offset - answer.ask.offset), to_usize(bio.len));
                answer.data[from..][..len].copy_from_slice(&buffer.as_slice()[bio.start..][..len]);
            }
            *left -= 1;
            if *left > 0 {
                continue;
            }
            if let (Op::Read, Some(memory)) = (bio.op, memory) {
                memory.copy_out(&mut answer.data);
            }
            answers.extend(slot.take().map(|request| request.answer));
        }
    }
}
