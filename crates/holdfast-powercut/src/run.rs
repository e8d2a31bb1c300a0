//! A run before any cut: sessions of requests, with everything known of when what happened.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use holdfast_bio::{BlockDevice, Error, Op, ReadPolicy};
use holdfast_iov::{Pool, lend};
use holdfast_sim::{Faults, Journal, PowerDevice, Random};
use holdfast_units::{to_u64, to_usize};
use holdfast_volume::{Client, OpenOptions, Queue, Volume};

use crate::alarm::Wrong;
use crate::content::{Found, UNIT, fill};
use crate::lane::{Answer, Lane};
use crate::model::{Model, Moment, View};
use crate::plan::{Ask, Path, Plan, Session, Trouble};
use crate::rig::{Device, Rig};

/// What is known of a run.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) model: Model,
    pub(crate) journal: Journal,
    /// A device as it was in the end, from which others are made.
    pub(crate) device: PowerDevice,
    /// The positions at which the volume began to be opened.
    pub(crate) opened: Vec<usize>,
    /// The positions at which it was open, so that nothing before that is in its log.
    pub(crate) ready: Vec<usize>,
    /// The positions at which the volume was closed cleanly, up to the next opening.
    pub(crate) closed: Vec<usize>,
}

/// The machine runs until the cut.
pub(crate) const BOOT: u8 = 1;

/// Opens the volume of a plan, on a machine that was booted for the `boot`th time.
pub(crate) fn open<D: BlockDevice>(
    device: &mut D,
    plan: &Plan,
    boot: u8,
) -> Result<Arc<Volume>, Wrong> {
    let options = OpenOptions {
        cache_bytes: plan.cache_bytes,
        read_only: false,
        durability: plan.durability,
        boot: [boot; 16],
    };
    Volume::open(device, &options).map_err(Wrong::NotOpened)
}

#[expect(clippy::needless_pass_by_value, reason = "it is for `map_err`")]
pub(crate) fn no_memory(error: std::io::Error) -> Wrong {
    Wrong::Memory(error.to_string())
}

impl Run {
    /// Runs what a plan says. What is wrong already before any cut is the error.
    pub(crate) fn new(plan: &Plan, random: &mut Random) -> Result<Self, Wrong> {
        let options = plan.options();
        let rig = Rig::create(plan)?;
        Volume::create(&mut rig.good_queue()?, &options).map_err(Wrong::NotOpened)?;
        let device = rig.power().settled();
        if let Trouble::Lie(flush) = plan.trouble {
            device.lie(flush);
        }
        let model = Model::new(to_usize(plan.capacity) / UNIT);
        let (opened, ready, closed) = (Vec::new(), Vec::new(), vec![0]);
        let mut run = Self { model, journal: device.journal(), device, opened, ready, closed };
        while run.device.journal().changes_before(run.device.position()) < plan.writes {
            run.session(plan, random)?;
        }
        run.journal = run.device.journal();
        Ok(run)
    }

    /// Returns whether the volume is closed at a position, and closed cleanly.
    pub(crate) fn is_closed(&self, position: usize) -> bool {
        let closed = self.closed.iter().rev().find(|&&closed| closed <= position);
        let opened = self.opened.iter().rev().find(|&&opened| opened < position);
        closed.is_some_and(|closed| opened.is_none_or(|opened| opened < closed))
    }

    /// Returns whether the first half of the tuple log was used once more after the second.
    pub(crate) fn has_turned(&self, plan: &Plan) -> bool {
        let Ok(geometry) = plan.options().geometry() else { return false };
        // Without the data journal.
        let (log, len) = (geometry.log().0, geometry.log().1 / if plan.legs == 1 { 2 } else { 1 });
        let (mut session, mut was_second) = (0, false);
        self.journal.places().any(|(position, at)| {
            let opened = self.opened.partition_point(|&opened| opened <= position);
            let ready = self.ready.partition_point(|&ready| ready <= position);
            if ready != session {
                (session, was_second) = (ready, false);
            }
            // Who opens the volume fills all of the log.
            let is_in_use = opened == ready;
            was_second |= is_in_use && (log + len / 2..log + len).contains(&at);
            is_in_use && was_second && (log..log + len / 2).contains(&at)
        })
    }

    fn session(&mut self, plan: &Plan, random: &mut Random) -> Result<(), Wrong> {
        let session = plan.session(random);
        let faults = plan.faults(random);
        // Opening and closing have their own tests of what fails below.
        let kind = Faults { failures: Vec::new(), ..faults.clone() };
        self.opened.push(self.device.position());
        let rig = Rig::open(&self.device, plan)?;
        let volume = open(&mut queue(&rig, &kind, random)?, plan, BOOT)?;
        self.ready.push(self.device.position());
        if random.chance(50) {
            rig.resync(&volume)?;
        }
        let is_sound = if session.lanes == [Path::Client] {
            let device = queue(&rig, &faults, random)?;
            self.client_session(plan, &session, &volume, device, random)?
        } else {
            let lanes = session.lanes.iter().map(|path| {
                let device = queue(&rig, &faults, random)?;
                let random = Random::new(random.next());
                Lane::new(&volume, device, *path, session.depth, random).map_err(no_memory)
            });
            let lanes = lanes.collect::<Result<_, _>>()?;
            self.lane_session(plan, &session, lanes, random)?
        };
        if session.closes && is_sound {
            let mut device = queue(&rig, &kind, random)?;
            volume.close(&mut device).map_err(Wrong::NotClosed)?;
            rig.close()?;
            self.closed.push(self.device.position());
        }
        Ok(())
    }

    /// Runs requests by several queues. Returns whether the volume may be closed, all being flushed.
    fn lane_session(
        &mut self,
        plan: &Plan,
        session: &Session,
        lanes: Vec<Lane>,
        random: &mut Random,
    ) -> Result<bool, Wrong> {
        // Queues that wait for each other for ever cannot be dropped.
        let mut lanes = ManuallyDrop::new(lanes);
        let result = self.requests(plan, session, &mut lanes, random);
        if !matches!(result, Err(Wrong::Hung { .. })) {
            drop(ManuallyDrop::into_inner(lanes));
        }
        result
    }

    fn requests(
        &mut self,
        plan: &Plan,
        session: &Session,
        lanes: &mut [Lane],
        random: &mut Random,
    ) -> Result<bool, Wrong> {
        const PATIENCE: u64 = 100_000;
        let mut left = session.requests;
        let (mut is_flushing, mut is_flushed) = (false, false);
        let mut result = Ok(());
        let mut answers = Vec::new();
        let mut quiet = 0;
        while quiet < PATIENCE {
            let which = to_usize(random.below(to_u64(lanes.len())));
            let lane = &mut lanes[which];
            if left > 0 && lane.has_room() && random.chance(70) {
                left -= 1;
                self.submit(lane, plan.ask(random));
            }
            lane.change_memory();
            lane.reap(&mut answers);
            quiet = if answers.is_empty() { quiet + 1 } else { 0 };
            for answer in answers.drain(..) {
                is_flushed |= is_flushing && answer.result.is_ok();
                result = result.and_then(|()| self.take(plan, &answer));
            }
            if result.is_err() {
                left = 0;
            }
            if left == 0 && lanes.iter_mut().all(Lane::is_idle) {
                if is_flushing || !session.closes || result.is_err() {
                    return result.map(|()| is_flushed);
                }
                is_flushing = true;
                let flush = Ask { op: Op::Flush, offset: 0, len: 0, fua: false };
                self.submit(&mut lanes[0], flush);
            }
        }
        Err(Wrong::Hung { turns: quiet })
    }

    fn submit(&mut self, lane: &mut Lane, ask: Ask) {
        let (begun, write) = self.begin(ask);
        lane.submit(ask, begun, write);
    }

    /// Says that a request begins.
    fn begin(&mut self, ask: Ask) -> (Moment, Option<usize>) {
        let position = self.device.position();
        let clears = ask.op != Op::Write;
        let write = ask.op.is_write().then(|| self.model.begin(units(ask), clears, position));
        (self.model.now(position), write)
    }

    /// Takes an answer, and judges what was read.
    fn take(&mut self, plan: &Plan, answer: &Answer) -> Result<(), Wrong> {
        let &Answer { ask, begun, result, .. } = answer;
        let position = self.device.position();
        if let Some(write) = answer.write {
            self.model.end(write, result.is_ok(), ask.fua, position);
        }
        if let Err(error) = result {
            let may_fail = plan.may_fail()
                && match error {
                    Error::Mismatch(mismatch) => {
                        let of_sector = plan.sector.len() / UNIT;
                        let first = to_usize(mismatch.lba) * of_sector;
                        self.model.is_damaged(first..first + of_sector, View::Read(begun))
                    }
                    _ => true,
                };
            return if may_fail {
                Ok(())
            } else {
                Err(Wrong::Failed { what: format!("{:?} of {}", ask.op, ask.offset), error })
            };
        }
        match ask.op {
            Op::Flush => self.model.flushed(begun, position),
            Op::Read => self.judge(plan, answer)?,
            _ => {}
        }
        Ok(())
    }

    fn judge(&self, plan: &Plan, answer: &Answer) -> Result<(), Wrong> {
        for (bytes, unit) in answer.data.chunks(UNIT).zip(units(answer.ask)) {
            let found = Found::of(bytes, unit, answer.is_scribbled);
            let view = View::Read(answer.begun);
            if !self.model.allows(unit, &[found], view) {
                let lba = plan.sector.count(to_u64(unit * UNIT));
                let allowed = self.model.history(unit..unit + 1, view);
                return Err(Wrong::Contents { lba, found: found.to_string(), allowed });
            }
        }
        Ok(())
    }

    /// Runs requests one by one. Returns whether the volume may be closed, all being flushed.
    fn client_session(
        &mut self,
        plan: &Plan,
        session: &Session,
        volume: &Arc<Volume>,
        device: Device,
        random: &mut Random,
    ) -> Result<bool, Wrong> {
        let queue = Queue::new(volume, device, || {}).map_err(no_memory)?;
        let pool = Pool::new(1 << 20).map_err(no_memory)?;
        let mut client = Client::new(queue, pool, ReadPolicy::Lazy);
        let flush = Ask { op: Op::Flush, offset: 0, len: 0, fua: false };
        let mut result = Ok(());
        for number in 0..=session.requests {
            let is_last = number == session.requests;
            if is_last && !session.closes {
                return Ok(false);
            }
            let mut ask = if is_last { flush } else { plan.ask(random) };
            // A client clears without more.
            ask.fua &= ask.op == Op::Write;
            let (begun, write) = self.begin(ask);
            let has_data = matches!(ask.op, Op::Read | Op::Write);
            let mut data = if has_data { vec![0; to_usize(ask.len)] } else { Vec::new() };
            result = match (ask.op, write) {
                (Op::Flush, _) => client.flush(),
                (Op::Read, _) => client.read_at(ask.offset, &mut data),
                (Op::Write, Some(write)) => {
                    fill(&mut data, write, to_usize(ask.offset) / UNIT);
                    lend(&data, |iter| client.move_data(Op::Write, ask.offset, iter, ask.fua))
                }
                _ => client.clear(ask.op, ask.offset, ask.len),
            };
            let answer = Answer { ask, begun, write, result, data, is_scribbled: false };
            self.take(plan, &answer)?;
        }
        Ok(result.is_ok())
    }
}

/// Opens a queue for a session.
fn queue(rig: &Rig, faults: &Faults, random: &mut Random) -> Result<Device, Wrong> {
    let late_percent = [0, 30, 60][to_usize(random.below(3))];
    rig.queue(late_percent, faults, random)
}

fn units(ask: Ask) -> std::ops::Range<usize> {
    to_usize(ask.offset) / UNIT..to_usize(ask.offset + ask.len) / UNIT
}
