//! What the fuzz targets need of this crate, and nobody else. It exists in their builds only.

use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_bio::Op;
use holdfast_iov::GuestMemory;
use holdfast_units::to_u64;
use holdfast_virtqueue::Chain;
use vhost::vhost_user::BackendReqHandler;

use crate::control::Control;
use crate::counters::ClientCounters;
use crate::request::Request;
use crate::server::Options;
use crate::target::{Description, ID, Target};

/// A front end's connection, of which the caller takes each step.
pub struct Session<T: Target> {
    control: Arc<Mutex<Control<T>>>,
    handler: BackendReqHandler<Mutex<Control<T>>>,
}

impl<T: Target> fmt::Debug for Session<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl<T: Target> Session<T> {
    /// Begins to serve a connection.
    ///
    /// # Panics
    ///
    /// When the target cannot be served.
    pub fn new(stream: UnixStream, target: &Arc<T>, options: &Options) -> Self {
        let disk = target.describe().checked().expect("the target can be served");
        let counters = Arc::new(ClientCounters::new("fuzz".into(), options.queues));
        let (target, tuning) = (Arc::clone(target), options.tuning());
        let control = Control::new(target, disk, tuning, counters, options.queues);
        let control = Arc::new(Mutex::new(control));
        let handler = BackendReqHandler::from_stream(stream, Arc::clone(&control));
        Self { control, handler }
    }

    /// Takes one message and does what it says. Returns whether the connection goes on.
    pub fn step(&mut self) -> bool {
        self.handler.handle_request().is_ok()
    }
}

impl<T: Target> Drop for Session<T> {
    fn drop(&mut self) {
        self.control.lock().unwrap_or_else(PoisonError::into_inner).stop_all();
    }
}

/// Reads requests from their descriptors, one after the other in the same place.
#[derive(Debug, Default)]
pub struct Requests {
    request: Request,
}

impl Requests {
    /// Reads a request, and checks that what is accepted can be asked of the disk.
    ///
    /// # Panics
    ///
    /// When it does not.
    pub fn read(&mut self, chain: &Chain, memory: &GuestMemory, disk: &Description) {
        let Ok(()) = self.request.parse(chain, memory, disk) else { return };
        let Request { runs, status, wants_id, .. } = &self.request;
        assert!(status.is_some(), "whoever asks is answered");
        let data = to_u64(self.request.data().count());
        for run in runs {
            let end = run.offset.checked_add(run.len).expect("a run has an end");
            let block = disk.logical_block;
            assert!(end <= disk.capacity && block.is_aligned(run.offset));
            match run.op {
                Op::Read | Op::Write => assert!(run.len == data && data > 0),
                Op::Flush => assert_eq!((run.offset, run.len), (0, 0)),
                Op::Discard => {
                    assert!(run.len > 0);
                    assert!(disk.discard_block.is_aligned(run.offset | run.len));
                }
                Op::Zero { fast: false, .. } => assert!(block.is_aligned(run.len)),
                other => panic!("nobody can ask for {other:?}"),
            }
        }
        assert!(!wants_id || (runs.is_empty() && data == to_u64(ID)));
        let mut bytes = vec![0; self.request.data().count().min(1 << 16)];
        self.request.data().copy_out(&mut bytes);
    }
}
