//! A guest that sleeps is woken, also by a server that follows one that was killed.

use holdfast_virtio_driver::{BlkQueue, Client, Options, Request, Shape};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::common::{Setup, guest_options};

/// Returns whether the guest has been called, or is within so many seconds.
fn is_called(queue: &BlkQueue, seconds: i64) -> bool {
    let mut call = [PollFd::from_borrowed_fd(queue.call_fd(), PollFlags::IN)];
    poll(&mut call, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap();
    !call[0].revents().is_empty()
}

/// The server has shown that a request ended, and dies before it calls. The guest sleeps.
#[test]
fn a_call_that_a_killed_server_owes_is_made_by_the_next() {
    for event_index in [true, false] {
        let mut rig = Setup::default().start();
        let options = Options { event_index, ..guest_options() };
        let mut client = Client::connect(&rig.path(0), &options).unwrap();
        let queue = client.queue(0);
        queue.submit(&Request::Flush, Shape::default()).unwrap();
        queue.kick().unwrap();
        while !queue.driver().has_used() {
            std::thread::yield_now();
        }
        rig.stop(0);
        // The call that the dead server would not have made.
        if is_called(client.queue(0), 0) {
            rustix::io::read(client.queue(0).call_fd(), &mut [0; 8]).unwrap();
        }
        rig.start_again(0);
        client.reconnect().unwrap();
        assert!(is_called(client.queue(0), 5), "event index {event_index}");
    }
}
