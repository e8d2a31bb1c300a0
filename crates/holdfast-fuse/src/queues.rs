//! A device of which each thread has a queue of its own.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, SharedQueue};

type Open = dyn Fn() -> io::Result<Box<dyn BlockDevice>> + Send + Sync;

thread_local! {
    /// The queues of this thread.
    static QUEUES: RefCell<Vec<Queue>> = const { RefCell::new(Vec::new()) };
}

/// A thread's queue of a device, for one of its users.
struct Queue {
    device: u64,
    user: User,
    queue: SharedQueue<Box<dyn BlockDevice>>,
}

/// What a thread uses its queue of a device for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    /// Calls that block until all they submitted has ended.
    Blocking,
    /// What may be in flight while the other blocks.
    Beside,
}

/// A device as any thread may use it: with the thread's queue, which is opened when it is first
/// needed and closed when the thread ends.
///
/// What is submitted in a thread must be reaped there before another thread goes on: so it is for
/// those whose calls block.
pub(crate) struct Queues {
    device: Arc<Device>,
    user: User,
    /// What could not be submitted, since there is no queue.
    refused: Vec<Ended>,
}

struct Device {
    number: u64,
    limits: Limits,
    open: Box<Open>,
}

impl fmt::Debug for Queues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queues").field("device", &self.device.number).finish_non_exhaustive()
    }
}

impl Clone for Queues {
    fn clone(&self) -> Self {
        Self { device: Arc::clone(&self.device), user: self.user, refused: Vec::new() }
    }
}

impl Queues {
    /// Opens the first queue, for this thread. `open` opens one for the thread it is called in.
    pub(crate) fn new<D: BlockDevice + 'static>(
        open: impl Fn() -> io::Result<D> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let first = open()?;
        // Relaxed: it only has to be another one each time.
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let limits = first.limits();
        let queue = SharedQueue::new(Box::new(first) as Box<dyn BlockDevice>);
        let user = User::Blocking;
        QUEUES.with_borrow_mut(|queues| queues.push(Queue { device: number, user, queue }));
        let open = Box::new(move || open().map(|queue| Box::new(queue) as Box<dyn BlockDevice>));
        let device = Arc::new(Device { number, limits, open });
        Ok(Self { device, user, refused: Vec::new() })
    }

    /// Returns the same device for what may be in flight while calls to this one block.
    pub(crate) fn beside(&self) -> Self {
        Self { user: User::Beside, ..self.clone() }
    }

    /// Lets what this thread has in flight go on, without waiting.
    pub(crate) fn go_on(&self) {
        // Without a queue nothing is in flight.
        let _none = self.with(|queue| queue.go_on());
    }

    /// Does something with the queue of this thread, which is opened if there is none yet.
    fn with<R>(
        &self,
        run: impl FnOnce(&mut SharedQueue<Box<dyn BlockDevice>>) -> R,
    ) -> io::Result<R> {
        let &Device { number, ref open, .. } = &*self.device;
        QUEUES.with_borrow_mut(|queues| {
            let is_wanted = |queue: &Queue| queue.device == number && queue.user == self.user;
            let index = match queues.iter().position(is_wanted) {
                Some(index) => index,
                None => {
                    let other = queues.iter().find(|queue| queue.device == number);
                    let queue = match other {
                        Some(other) => other.queue.clone(),
                        None => SharedQueue::new(open()?),
                    };
                    queues.push(Queue { device: number, user: self.user, queue });
                    queues.len() - 1
                }
            };
            Ok(run(&mut queues[index].queue))
        })
    }
}

impl Drop for Device {
    /// Closes the queue of this thread. The others' are closed with their threads.
    fn drop(&mut self) {
        // At the end of a thread its queues may be gone already.
        let _closed = QUEUES.try_with(|queues| {
            queues.borrow_mut().retain(|queue| queue.device != self.number);
        });
    }
}

impl BlockDevice for Queues {
    fn limits(&self) -> Limits {
        self.device.limits
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        let mut waiting = Some(bio);
        let submitted = self.with(|queue| waiting.take().map_or(Ok(()), |bio| queue.submit(bio)));
        match submitted {
            Ok(result) => result,
            Err(error) => {
                tracing::error!("cannot open another queue of the device: {error}");
                let refused = waiting.take();
                self.refused.extend(refused.map(|bio| Ended { bio, result: Err(Error::IO) }));
                Ok(())
            }
        }
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        ended.append(&mut self.refused);
        // Without a queue nothing was submitted.
        let _none = self.with(|queue| queue.reap(ended));
    }

    fn has_notes(&self) -> bool {
        !self.refused.is_empty() || self.with(|queue| queue.has_notes()).unwrap_or_default()
    }

    fn wait(&mut self) {
        if self.refused.is_empty() {
            let _none = self.with(|queue| queue.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use holdfast_bio::Op;
    use holdfast_device::MemoryDevice;
    use holdfast_iov::{Memory, Pool};

    use super::*;

    fn read(queues: &mut Queues) -> Result<u64, Error> {
        let memory = Memory::Buffer(Pool::new(1 << 20).unwrap().take(512).unwrap());
        queues.run(Bio::new(Op::Read, 512, 512, memory)).result
    }

    #[test]
    fn each_thread_opens_a_queue_of_its_own_once() {
        let opened = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&opened);
        let queues = Queues::new(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok(MemoryDevice::new(4096))
        });
        let queues = queues.unwrap();
        std::thread::scope(|scope| {
            for _ in 0..3 {
                let mut queues = queues.clone();
                scope.spawn(move || {
                    assert_eq!([read(&mut queues), read(&mut queues)], [Ok(512); 2]);
                });
            }
        });
        assert_eq!([read(&mut queues.clone()), read(&mut queues.beside())], [Ok(512); 2]);
        assert_eq!(opened.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn a_thread_that_gets_no_queue_gets_an_error() {
        let first = AtomicUsize::new(0);
        let queues = Queues::new(move || match first.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(MemoryDevice::new(4096)),
            _ => Err(io::ErrorKind::OutOfMemory.into()),
        });
        let mut queues = queues.unwrap();
        let found = std::thread::scope(|scope| {
            let mut queues = queues.clone();
            scope.spawn(move || read(&mut queues)).join().unwrap()
        });
        assert_eq!((found, read(&mut queues)), (Err(Error::IO), Ok(512)));
    }

    #[test]
    fn the_queue_of_this_thread_is_closed_with_the_device() {
        let alive = Arc::new(());
        let held = Arc::clone(&alive);
        struct Holder(MemoryDevice, #[expect(dead_code, reason = "it is counted")] Arc<()>);
        impl BlockDevice for Holder {
            fn limits(&self) -> Limits {
                self.0.limits()
            }
            fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
                self.0.submit(bio)
            }
            fn reap(&mut self, ended: &mut Vec<Ended>) {
                self.0.reap(ended);
            }
            fn wait(&mut self) {
                self.0.wait();
            }
        }
        let queues =
            Queues::new(move || Ok(Holder(MemoryDevice::new(4096), Arc::clone(&held)))).unwrap();
        assert_eq!(Arc::strong_count(&alive), 3);
        drop(queues);
        assert_eq!(Arc::strong_count(&alive), 1);
    }
}
