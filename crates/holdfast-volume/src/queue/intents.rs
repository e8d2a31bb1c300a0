//! The write-intent log: a region is dirty where it counts before anything in it is written.

use holdfast_bio::{Bio, BlockDevice, Ended, Op};
use holdfast_iov::Memory;
use holdfast_units::to_u64;

use super::Queue;
use super::job::{Part, Token};
use crate::geometry::TUPLE_BLOCK;
use crate::intents::Entry;

impl<D: BlockDevice> Queue<D> {
    /// Enters the region of a job. Returns whether to proceed.
    pub(super) fn enter_region(&mut self, key: usize) -> bool {
        let Some(intents) = &self.volume.intents else { return true };
        let waiter = self.waiter(key);
        let job = &mut self.jobs[key];
        let region = *job.region.get_or_insert_with(|| {
            let region = intents.region_of(job.bio.offset);
            intents.enter(region);
            region
        });
        match intents.ask(region, &waiter) {
            Entry::Ready => true,
            Entry::Wait => false,
            Entry::Store => {
                self.store_intents(key);
                false
            }
        }
    }

    fn store_intents(&mut self, key: usize) {
        let Some(intents) = &self.volume.intents else { return };
        let buffer = self.records.take_block();
        let mut buffer = buffer.expect("one queue stores at a time, with one buffer");
        let (at, len) = intents.encode(&mut buffer.as_mut_slice()[..TUPLE_BLOCK]);
        let mut bio = Bio::new(Op::Write, at, to_u64(len), Memory::Buffer(buffer));
        bio.fua = true;
        let token = Token { part: Part::Intents, job: key, way: None };
        self.send_bio(bio.with_user(token.encode()));
    }

    pub(super) fn intents_stored(&mut self, key: usize, ended: Ended) {
        let Some(ended) = self.complete(ended) else { return };
        let result = ended.result.map(drop);
        drop(ended);
        if let Err(error) = result {
            self.durable_write_failed(error);
        }
        if self.volume.intents.as_ref().is_some_and(|intents| intents.stored(result)) {
            self.store_intents(key);
        }
    }

    /// Leaves the region of a job that ends.
    pub(super) fn leave_region(&mut self, key: usize) {
        let region = self.jobs[key].region.take();
        if let (Some(intents), Some(region)) = (&self.volume.intents, region) {
            intents.leave(region);
        }
    }
}
