//! A queue of a device that two of one thread look at.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;

use holdfast_bio::{Bio, BlockDevice, DiskQueue, Ended, Limits};

/// A queue, and what ended while somebody else looked at it.
pub(crate) struct Shared<Q>(Rc<RefCell<Inner<Q>>>);

struct Inner<Q> {
    queue: Q,
    ended: Vec<Ended>,
    /// Has the kernel take what was submitted and tell what has ended, without waiting.
    poll: Box<dyn Fn()>,
}

impl<Q> Shared<Q> {
    pub(crate) fn new(queue: Q, poll: impl Fn() + 'static) -> Self {
        let (ended, poll) = (Vec::new(), Box::new(poll));
        Self(Rc::new(RefCell::new(Inner { queue, ended, poll })))
    }
}

impl<Q> Clone for Shared<Q> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<Q: fmt::Debug> fmt::Debug for Shared<Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.0.borrow().queue).finish()
    }
}

impl<Q: BlockDevice> Shared<Q> {
    /// Lets what is in flight go on. What ends is kept for whoever reaps.
    pub(crate) fn go_on(&self) {
        let Inner { queue, ended, poll } = &mut *self.0.borrow_mut();
        poll();
        queue.reap(ended);
    }
}

impl<Q: BlockDevice> BlockDevice for Shared<Q> {
    fn limits(&self) -> Limits {
        self.0.borrow().queue.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        self.0.borrow_mut().queue.submit(bio)
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        let mut inner = self.0.borrow_mut();
        ended.append(&mut inner.ended);
        inner.queue.reap(ended);
    }

    fn wait(&mut self) {
        let mut inner = self.0.borrow_mut();
        if inner.ended.is_empty() {
            inner.queue.wait();
        }
    }
}

impl<Q: DiskQueue> DiskQueue for Shared<Q> {
    fn has_notes(&self) -> bool {
        let inner = self.0.borrow();
        !inner.ended.is_empty() || inner.queue.has_notes()
    }
}
