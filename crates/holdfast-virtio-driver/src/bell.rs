//! An eventfd that a server is given, and that can be waited for.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::ClientError;

/// An eventfd, which does not block.
#[derive(Debug)]
pub(crate) struct Bell {
    /// The protocol's crate wants this type, which lends no descriptor to wait for.
    event: EventFd,
    /// The same eventfd.
    file: File,
}

impl Bell {
    pub(crate) fn new() -> Result<Self, ClientError> {
        let event = EventFd::new(EFD_NONBLOCK).map_err(ClientError::system("make an eventfd"))?;
        let file = duplicate(&event).map_err(ClientError::system("duplicate an eventfd"))?;
        Ok(Self { event, file })
    }

    pub(crate) const fn event(&self) -> &EventFd {
        &self.event
    }

    pub(crate) fn ring(&self) -> Result<(), ClientError> {
        match self.event.write(1) {
            // The counter is at its end, so whoever waits is woken all the same.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            rung => rung.map_err(ClientError::system("write to an eventfd")),
        }
    }

    /// Returns whether it was rung, and forgets that.
    pub(crate) fn answer(&self) -> Result<bool, ClientError> {
        match self.event.read() {
            Ok(_times) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(ClientError::system("read an eventfd")(error)),
        }
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Waits until one of the bells was rung. Forever without a timeout.
pub(crate) fn wait(bells: [&Bell; 2], timeout: Option<&Timespec>) -> Result<(), ClientError> {
    let mut polled = bells.map(|bell| PollFd::new(bell, PollFlags::IN));
    match poll(&mut polled, timeout) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(ClientError::system("poll")(error)),
    }
}

/// Sends the descriptor to ourselves: the only way to one that can be borrowed without unsafe code.
fn duplicate(event: &EventFd) -> io::Result<File> {
    let (source, target) = UnixStream::pair()?;
    source.send_with_fd([0_u8].as_slice(), event.as_raw_fd())?;
    let (_bytes, file) = target.recv_with_fd(&mut [0])?;
    file.ok_or_else(|| io::Error::other("a message came without its descriptor"))
}
