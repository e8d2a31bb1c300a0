//! A connection that is over at some moment, whatever its client does.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::SendFlags;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

/// A connection with a time limit, which reads and writes share.
#[derive(Debug)]
pub(crate) struct Limited {
    socket: OwnedFd,
    until: Instant,
}

impl Limited {
    /// Lets a client have `limit` from now on.
    pub(crate) fn new(socket: OwnedFd, limit: Duration) -> Self {
        Self { socket, until: Instant::now() + limit }
    }

    /// Lets the next system call wait for as long as is left.
    fn hurry(&self, direction: Timeout) -> io::Result<()> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        Ok(set_socket_timeout(&self.socket, direction, Some(left))?)
    }
}

impl Read for Limited {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.hurry(Timeout::Recv)?;
        Ok(rustix::io::read(&self.socket, bytes)?)
    }
}

impl Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hurry(Timeout::Send)?;
        Ok(rustix::net::send(&self.socket, bytes, SendFlags::NOSIGNAL)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
