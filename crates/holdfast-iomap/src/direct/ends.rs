//! What follows when all bios of a request have ended.

use holdfast_bio::BlockDevice;

use super::DirectIo;
use super::flight::Stage;
use crate::{Direction, Finished, Ioend, Mapper};

impl<D: BlockDevice, F: Copy + Ord, E: Clone> DirectIo<D, F, E> {
    /// Tells the file system of what has ended, and ends the requests that are complete.
    pub(super) fn settle<M>(&mut self, mapper: &mut M)
    where
        M: Mapper<File = F, Error = E>,
    {
        let mut drained = std::mem::take(&mut self.settling);
        drained.append(&mut self.drained);
        drained.retain(|&key| !self.flushes(key));
        for &key in &drained {
            self.collect_ioends(key);
        }
        self.tell(mapper);
        for key in drained.drain(..) {
            let flight = &mut self.flights[key];
            if flight.stage == Stage::Gap && flight.error.is_none() {
                flight.begin_data();
                self.pump(mapper, key);
            } else {
                self.finish(mapper, key);
            }
        }
        self.settling = drained;
    }

    /// Flushes the device after a write that is to be durable and is not yet. Returns whether it does.
    fn flushes(&mut self, key: usize) -> bool {
        let flight = &mut self.flights[key];
        let needed = flight.stage == Stage::Data
            && flight.request.is_write()
            && flight.request.flags.dsync
            && !flight.durable
            && !flight.runs.is_empty()
            && flight.error.is_none();
        if needed {
            flight.drained = false;
            self.send_flush(key);
        }
        needed
    }

    fn collect_ioends(&mut self, key: usize) {
        let flight = &self.flights[key];
        let grows = flight.request.direction == Direction::Write && flight.stage != Stage::Gap;
        for run in &flight.runs {
            let end = run.offset + run.len;
            let size = (grows && flight.error.is_none() && end > flight.size).then_some(end);
            let ioend = Ioend {
                file: flight.request.file,
                offset: run.offset,
                len: run.len,
                kind: run.kind,
                size,
                result: flight.error.clone().map_or(Ok(()), Err),
            };
            self.ioends.push((ioend, key));
        }
    }

    /// Gives the ioends to the file system, those that belong together as one.
    fn tell<M>(&mut self, mapper: &mut M)
    where
        M: Mapper<File = F, Error = E>,
    {
        let mut ioends = std::mem::take(&mut self.ioends);
        ioends.sort_unstable_by_key(|(ioend, _)| (ioend.file, ioend.offset, ioend.len));
        let mut first = 0;
        while first < ioends.len() {
            let (merged, rest) = {
                let mut merged = ioends[first].0.clone();
                let mut next = first + 1;
                while next < ioends.len() && merged.try_merge(&ioends[next].0) {
                    next += 1;
                }
                (merged, next)
            };
            if let Err(error) = mapper.complete(&merged) {
                for (_, key) in &ioends[first..rest] {
                    self.flights[*key].fail(error.clone());
                }
            }
            first = rest;
        }
        ioends.clear();
        self.ioends = ioends;
    }

    fn finish<M>(&mut self, mapper: &mut M, key: usize)
    where
        M: Mapper<File = F, Error = E>,
    {
        let mut flight = self.flights.remove(key);
        let wrote = flight.request.is_write() && flight.done > 0;
        if wrote && flight.request.flags.dsync && flight.error.is_none() {
            flight.error = mapper.commit(flight.request.file).err();
        }
        flight.restore_memory();
        let result = match flight.error.take() {
            Some(error) => Err(error),
            None if flight.request.is_write() => Ok(flight.done),
            None => {
                let in_file = flight.size.saturating_sub(flight.request.offset);
                let moved = flight.done.min(in_file);
                flight.zero_memory(moved);
                Ok(moved)
            }
        };
        flight.runs.clear();
        self.spare.push(std::mem::take(&mut flight.runs));
        self.finished.push(Finished { request: flight.request, result });
    }
}
