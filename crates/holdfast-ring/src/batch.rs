//! When the kernel is told of what was pushed.
//!
//! One system call for many operations is cheapest, but meanwhile the device may have nothing to do, and
//! afterwards the processor. So a device that has little to do is given each transfer at once, except that
//! transfers which follow each other in a file are given some at a time: the kernel makes one request of them.

use std::os::fd::RawFd;

use holdfast_units::to_u64;

/// The transfers of files, as far as the kernel has not completed them.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    /// Those that the kernel does not know of, and their bytes.
    unsent: usize,
    unsent_bytes: usize,
    /// How many the kernel knows of.
    sent: usize,
    last: Option<Transfer>,
}

/// What a transfer does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) file: RawFd,
    pub(crate) writes: bool,
    /// In bytes.
    pub(crate) offset: u64,
    pub(crate) len: usize,
}

impl Transfer {
    fn is_followed_by(self, next: Self) -> bool {
        (self.file, self.writes) == (next.file, next.writes)
            && self.offset.checked_add(to_u64(self.len)) == Some(next.offset)
    }
}

impl Batch {
    /// A device that has fewer transfers than these has little to do.
    const BUSY: usize = 16;
    /// So many that follow each other are given to it at a time.
    const RUN: usize = 4;
    /// So many bytes are worth a system call of their own, however busy the device is: whoever copies or
    /// computes what comes next would keep it waiting for longer.
    const BYTES: usize = 256 << 10;

    /// Takes a transfer that was pushed. Returns whether the kernel should be told now.
    pub(crate) fn push(&mut self, transfer: Transfer) -> bool {
        let continues = self.last.is_some_and(|last| last.is_followed_by(transfer));
        self.last = Some(transfer);
        self.unsent += 1;
        self.unsent_bytes += transfer.len;
        let enough = if continues { Self::RUN } else { 1 };
        self.unsent_bytes >= Self::BYTES || (self.sent < Self::BUSY && self.unsent >= enough)
    }

    /// The kernel has been told of all.
    pub(crate) fn submitted(&mut self) {
        self.sent += self.unsent;
        (self.unsent, self.unsent_bytes) = (0, 0);
    }

    /// The kernel has completed one.
    pub(crate) fn completed(&mut self) {
        self.sent -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn transfer(writes: bool, number: u64) -> Transfer {
        Transfer { file: 3, writes, offset: number * 4096, len: 4096 }
    }

    /// Returns after which of these transfers the kernel is told.
    fn told(batch: &mut Batch, transfers: impl IntoIterator<Item = Transfer>) -> Vec<bool> {
        let push = |transfer| {
            let is_due = batch.push(transfer);
            if is_due {
                batch.submitted();
            }
            is_due
        };
        transfers.into_iter().map(push).collect()
    }

    #[test]
    fn an_idle_device_is_told_of_each_transfer() {
        let mut batch = Batch::default();
        let apart = [9, 3, 5, 5].map(|number| transfer(false, number));
        assert_eq!(told(&mut batch, apart), [true; 4]);
        // A write does not continue a read.
        assert_eq!(told(&mut batch, [transfer(true, 6), transfer(true, 8)]), [true; 2]);
    }

    #[test]
    fn a_busy_device_is_told_later() {
        let mut batch = Batch::default();
        let apart = (0..20).map(|number| transfer(false, number * 2));
        let is_told = |number| number < Batch::BUSY;
        assert_eq!(told(&mut batch, apart), (0..20).map(is_told).collect::<Vec<_>>());
        batch.submitted();
        assert!(!batch.push(transfer(false, 50)));
        (0..5).for_each(|_| batch.completed());
        assert!(batch.push(transfer(false, 60)));
    }

    #[test]
    fn what_follows_in_a_file_is_told_together() {
        let mut batch = Batch::default();
        let sequence = (7..16).map(|number| transfer(true, number));
        let expected = [true, false, false, false, true, false, false, false, true];
        assert_eq!(told(&mut batch, sequence), expected);
        // What does not follow takes those with it that wait.
        let mixed = [transfer(true, 16), transfer(true, 40)];
        assert_eq!(told(&mut batch, mixed), [false, true]);
    }

    #[test]
    fn many_bytes_are_told_of_at_once() {
        let mut batch = Batch::default();
        let large =
            |number: u64| Transfer { len: Batch::BYTES, offset: number << 18, ..transfer(true, 0) };
        assert_eq!(told(&mut batch, (0..40).map(large)), [true; 40]);
    }
}
