//! One queue of a device, for several users in one thread.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use holdfast_iov::Region;
use holdfast_units::{to_u64, to_usize};
use slab::Slab;

use crate::{Bio, BlockDevice, DiskQueue, Ended, Error, Limits};

/// A queue that several users of one thread submit to, as if it were of each alone.
///
/// Whoever reaps or waits lets the bios of all go on, so that none of them stands still while its user
/// waits for something that another one does. A clone is one more user.
pub struct SharedQueue<D: BlockDevice> {
    inner: Rc<RefCell<Inner<D>>>,
    me: usize,
}

struct Inner<D> {
    device: D,
    users: Slab<User>,
    /// Whose each bio is that the device has, and the number that its user gave it.
    in_flight: Slab<(usize, u64)>,
    ended: Vec<Ended>,
}

#[derive(Default)]
struct User {
    in_flight: usize,
    /// What ended and was not reaped.
    ended: Vec<Ended>,
}

impl<D: BlockDevice> SharedQueue<D> {
    /// Lets a device be shared. This is its first user.
    pub fn new(device: D) -> Self {
        let (mut users, in_flight, ended) = (Slab::new(), Slab::new(), Vec::new());
        let me = users.insert(User::default());
        Self { inner: Rc::new(RefCell::new(Inner { device, users, in_flight, ended })), me }
    }

    /// Lets what is in flight go on, without waiting. What ends is kept for whoever reaps.
    pub fn go_on(&self) {
        let mut inner = self.inner.borrow_mut();
        inner.device.poll();
        inner.collect();
    }
}

impl<D: BlockDevice> Inner<D> {
    /// Gives each user what ended of it.
    fn collect(&mut self) {
        self.device.reap(&mut self.ended);
        for mut ended in self.ended.drain(..) {
            let (user, number) = self.in_flight.remove(to_usize(ended.bio.user));
            ended.bio.user = number;
            let user = &mut self.users[user];
            user.in_flight -= 1;
            user.ended.push(ended);
        }
    }
}

impl<D: BlockDevice> Clone for SharedQueue<D> {
    fn clone(&self) -> Self {
        let me = self.inner.borrow_mut().users.insert(User::default());
        Self { inner: Rc::clone(&self.inner), me }
    }
}

impl<D: BlockDevice> Drop for SharedQueue<D> {
    fn drop(&mut self) {
        let mut inner = self.inner.borrow_mut();
        while inner.users[self.me].in_flight > 0 {
            inner.device.wait();
            inner.collect();
        }
        inner.users.remove(self.me);
    }
}

impl<D: BlockDevice + fmt::Debug> fmt::Debug for SharedQueue<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SharedQueue").field(&self.inner.borrow().device).finish()
    }
}

impl<D: BlockDevice> BlockDevice for SharedQueue<D> {
    fn limits(&self) -> Limits {
        self.inner.borrow().device.limits()
    }

    fn submit(&mut self, mut bio: Bio) -> Result<(), Bio> {
        let mut inner = self.inner.borrow_mut();
        let number = bio.user;
        let key = inner.in_flight.insert((self.me, number));
        bio.user = to_u64(key);
        if let Err(mut bio) = inner.device.submit(bio) {
            inner.in_flight.remove(key);
            bio.user = number;
            return Err(bio);
        }
        inner.users[self.me].in_flight += 1;
        Ok(())
    }

    fn atomic_bytes_max(&self) -> u64 {
        self.inner.borrow().device.atomic_bytes_max()
    }

    fn legs(&self) -> usize {
        self.inner.borrow().device.legs()
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let mut inner = self.inner.borrow_mut();
        inner.collect();
        ended.append(&mut inner.users[self.me].ended);
    }

    fn wait(&mut self) {
        let mut inner = self.inner.borrow_mut();
        if inner.users[self.me].ended.is_empty() {
            inner.device.wait();
        }
    }

    fn has_notes(&self) -> bool {
        let inner = self.inner.borrow();
        !inner.users[self.me].ended.is_empty() || inner.device.has_notes()
    }

    fn poll(&mut self) {
        self.go_on();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.inner.borrow().device.data_after(offset)
    }

    fn map(&self, offset: u64, len: usize) -> Result<Option<Region>, Error> {
        self.inner.borrow().device.map(offset, len)
    }
}

impl<D: DiskQueue> DiskQueue for SharedQueue<D> {
    fn has_news(&self) -> bool {
        self.inner.borrow().device.has_news()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Op;
    use holdfast_iov::Memory;

    /// A device with room for two, which ends the oldest when it is waited for.
    #[derive(Debug, Default)]
    struct Pair {
        in_flight: Vec<Bio>,
        ended: Vec<Ended>,
    }

    impl BlockDevice for Pair {
        fn limits(&self) -> Limits {
            Limits::of_sectors(1 << 20)
        }

        fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
            if self.in_flight.len() == 2 {
                return Err(bio);
            }
            self.in_flight.push(bio);
            Ok(())
        }

        fn reap(&mut self, ended: &mut Vec<Ended>) {
            ended.append(&mut self.ended);
        }

        fn wait(&mut self) {
            if !self.in_flight.is_empty() {
                let bio = self.in_flight.remove(0);
                self.ended.push(Ended { result: Ok(bio.len), bio });
            }
        }
    }

    fn bio(user: u64) -> Bio {
        Bio::new(Op::Discard, 0, 512, Memory::None).with_user(user)
    }

    fn reaped(queue: &mut SharedQueue<Pair>) -> Vec<u64> {
        let mut ended = Vec::new();
        queue.reap(&mut ended);
        ended.iter().map(|ended| ended.bio.user).collect()
    }

    #[test]
    fn each_user_gets_what_it_submitted_with_its_own_number_whoever_waits() {
        let mut first = SharedQueue::new(Pair::default());
        let mut second = first.clone();
        first.submit(bio(7)).unwrap();
        second.submit(bio(7)).unwrap();
        assert_eq!(first.submit(bio(8)).unwrap_err().user, 7 + 1, "the queue is full");
        second.wait();
        assert_eq!(reaped(&mut second), [], "the oldest has ended, which is of the other");
        second.wait();
        assert_eq!(reaped(&mut second), [7]);
        assert_eq!(reaped(&mut first), [7]);
    }

    #[test]
    fn one_that_has_something_to_reap_does_not_wait() {
        let mut first = SharedQueue::new(Pair::default());
        let mut second = first.clone();
        first.submit(bio(1)).unwrap();
        second.submit(bio(2)).unwrap();
        second.wait();
        second.go_on();
        first.wait();
        assert_eq!(reaped(&mut first), [1]);
        assert_eq!(reaped(&mut second), [], "it is in flight still");
    }

    #[test]
    fn a_user_that_goes_waits_for_its_own_and_leaves_those_of_others() {
        let mut first = SharedQueue::new(Pair::default());
        let mut second = first.clone();
        first.submit(bio(1)).unwrap();
        second.submit(bio(2)).unwrap();
        drop(second);
        assert_eq!(reaped(&mut first), [1]);
        assert_eq!(first.inner.borrow().in_flight.len(), 0);
        let mut third = first.clone();
        third.submit(bio(3)).unwrap();
        drop(first);
        third.wait();
        assert_eq!(reaped(&mut third), [3]);
    }
}
