//! What a file system is told when I/O has ended.

use crate::Error;

/// What a file system must do about a range that was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoendKind {
    /// It was read.
    Read,
    /// Blocks that were there were overwritten.
    Overwrite,
    /// Blocks that were allocated for the write have their data now.
    New,
    /// Unwritten blocks have their data now, and are to be converted.
    Unwritten,
    /// A new place has what is to be in place of a shared one.
    Shared,
}

/// A range of a file whose I/O has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ioend<F, E> {
    /// The file.
    pub file: F,
    /// Where in the file the range begins, in bytes. Blocks that it touches in part only have been
    /// filled in.
    pub offset: u64,
    /// How long it is, in bytes.
    pub len: u64,
    /// What is to be done.
    pub kind: IoendKind,
    /// What the size of the file must be at least from now on, in bytes. `None` when it is already,
    /// and for zeros behind the end of the file.
    pub size: Option<u64>,
    /// How it ended. After an error nothing is known of what is stored there, and what is new,
    /// unwritten or shared must stay as it was.
    pub result: Result<(), Error<E>>,
}

impl<F: Copy + Eq, E> Ioend<F, E> {
    /// Returns where in the file the range ends, in bytes.
    pub const fn end(&self) -> u64 {
        self.offset + self.len
    }

    /// Makes `next` part of this when both are the same to a file system: writes of one kind, one
    /// right behind the other, that succeeded. Reads stay apart, since nothing is saved by merging
    /// them. Returns whether it did.
    pub fn try_merge(&mut self, next: &Self) -> bool {
        let merges = self.file == next.file
            && self.kind == next.kind
            && self.kind != IoendKind::Read
            && self.end() == next.offset
            && self.result.is_ok()
            && next.result.is_ok();
        if merges {
            self.len += next.len;
            self.size = self.size.max(next.size);
        }
        merges
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    fn ioend(file: u32, offset: u64, kind: IoendKind) -> Ioend<u32, Infallible> {
        Ioend { file, offset, len: 512, kind, size: None, result: Ok(()) }
    }

    #[test]
    fn adjacent_writes_of_one_kind_become_one() {
        let mut first = ioend(1, 0, IoendKind::Unwritten);
        let next = Ioend { size: Some(1024), ..ioend(1, 512, IoendKind::Unwritten) };
        assert!(first.try_merge(&next));
        assert_eq!((first.offset, first.len, first.size), (0, 1024, Some(1024)));
    }

    #[test]
    fn what_differs_stays_apart() {
        let first = ioend(1, 0, IoendKind::Unwritten);
        let failed = Ioend { result: Err(Error::Again), ..ioend(1, 512, IoendKind::Unwritten) };
        let others = [
            ioend(2, 512, IoendKind::Unwritten),
            ioend(1, 1024, IoendKind::Unwritten),
            ioend(1, 512, IoendKind::Overwrite),
            failed,
        ];
        assert!(others.iter().all(|next| !first.clone().try_merge(next)));
    }

    #[test]
    fn reads_are_never_merged() {
        let mut first = ioend(1, 0, IoendKind::Read);
        assert!(!first.try_merge(&ioend(1, 512, IoendKind::Read)));
    }
}
