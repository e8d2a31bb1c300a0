//! Bytes that are written and are not the submitter's: zeros, and what of a block stays.

use std::ops::Range;

use holdfast_bio::{Bio, Limits, Op};
use holdfast_iov::{Buffer, Memory};
use holdfast_units::{BlockSize, to_usize};

use super::flight::{Flight, Stage};
use super::pump::run_kind;
use crate::{Kind, Mapping};

/// Bytes that the submitter of a request did not give.
#[derive(Clone, Debug)]
pub(super) struct Pad {
    /// Where on the device.
    pub(super) target: u64,
    pub(super) len: u64,
    /// Where what is not zeroed comes from.
    pub(super) source: Option<u64>,
    /// Which of the bytes become zeros, counted from the beginning.
    zeros: Range<u64>,
}

impl Pad {
    /// Returns `len` bytes of which those in `zeros` become zeros, or all without a source.
    fn new(target: u64, len: u64, source: Option<u64>, zeros: Range<u64>) -> Self {
        let zeros = if source.is_some() { zeros } else { 0..len };
        Self { target, len, source, zeros }
    }

    /// Returns whether something of it must be read.
    pub(super) const fn keeps(&self) -> bool {
        self.zeros.start > 0 || self.zeros.end < self.len
    }

    /// Returns how much belongs together: what is only zeros, or what is not.
    pub(super) fn first_piece(&self, unit: BlockSize) -> u64 {
        let zeros_end = unit.align_down(self.zeros.end);
        let piece = if self.zeros.start > 0 {
            unit.align_up(self.zeros.start).unwrap_or(self.len)
        } else if zeros_end > 0 {
            zeros_end
        } else {
            self.len
        };
        piece.min(self.len)
    }

    /// Takes the first `len` bytes off.
    pub(super) fn split_to(&mut self, len: u64) -> Self {
        let cut = |range: &Range<u64>| range.start.min(len)..range.end.min(len);
        let head = Self { len, zeros: cut(&self.zeros), ..self.clone() };
        self.target = self.target.saturating_add(len);
        self.source = self.source.map(|source| source.saturating_add(len));
        self.len -= len;
        self.zeros = self.zeros.start.saturating_sub(len)..self.zeros.end.saturating_sub(len);
        head
    }

    /// Returns the bio that reads what is kept.
    pub(super) fn read(&self, limits: &Limits, source: u64, buffer: Buffer) -> Bio {
        let bio = Bio::new(Op::Read, source, self.len, Memory::Buffer(buffer));
        bio.with_start(to_usize(limits.sector.offset_in(source)))
    }

    /// Returns the bio that writes it. The buffer has what was read, if anything had to be.
    pub(super) fn write(&self, limits: &Limits, mut buffer: Buffer) -> Bio {
        let start = to_usize(limits.sector.offset_in(self.target));
        let bytes = buffer.as_mut_slice();
        if let Some(source) = self.source.filter(|_| self.keeps()) {
            let from = to_usize(limits.sector.offset_in(source));
            bytes.copy_within(from..from + to_usize(self.len), start);
        }
        bytes[start..][to_usize(self.zeros.start)..to_usize(self.zeros.end)].fill(0);
        let bio = Bio::new(Op::Write, self.target, self.len, Memory::Buffer(buffer));
        bio.with_start(start)
    }
}

impl<F: Copy + Ord, E> Flight<F, E> {
    /// Lets zeros be written to what is mapped of the next `left` bytes.
    pub(super) fn enter_zeros(&mut self, left: u64) {
        let at = self.extents.at();
        let mapping = self.extents.current().expect("it was entered");
        if let Kind::Mapped { address } = mapping.kind {
            // Of a block that moves, all must move.
            let whole = if mapping.shared { self.block } else { self.unit };
            let first = whole.align_down(at);
            let end = whole.align_up(at + left).unwrap_or(u64::MAX);
            let source = if mapping.shared { mapping.source } else { Some(address) };
            // Behind the end of the file nothing is kept.
            let zeros_end = if self.stage == Stage::Gap { end } else { at + left };
            let pad = Pad::new(
                address + (first - mapping.offset),
                end - first,
                source.map(|source| source + (first - mapping.offset)),
                at - first..zeros_end - first,
            );
            let kind = run_kind(mapping, true);
            self.pad = Some(pad);
            self.push_run(first, end - first, kind);
        }
        self.extents.advance(left);
    }

    /// Lets what lies before a write in its first block be filled in.
    pub(super) fn enter_write(&mut self, at: u64) {
        let first = self.block.align_down(at);
        let mapping = self.extents.current().expect("it was entered");
        if first == at || !mapping.is_fresh() {
            return;
        }
        let len = at - first;
        let target = mapping.address_of(first).expect("it has a place");
        self.pad = Some(Pad::new(target, len, source_of(mapping, first), len..len));
        self.padded = true;
    }

    /// Returns what lies behind a write in its last block, if that must be filled in: in a block that
    /// is not in use yet, and always when it is the last of the file.
    pub(super) fn tail(&self, end: u64) -> Option<Pad> {
        let mapping = self.extents.current()?;
        let len = self.block.align_up(end)? - end;
        if len == 0 || !(mapping.is_fresh() || end >= self.size) {
            return None;
        }
        let kept = self.size.saturating_sub(end).min(len);
        Some(Pad::new(mapping.address_of(end)?, len, source_of(mapping, end), kept..len))
    }
}

/// Returns where the old bytes of a block that moves are.
fn source_of(mapping: &Mapping, at: u64) -> Option<u64> {
    mapping.source.map(|source| source + (at - mapping.offset))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pieces_are_the_whole_and_are_read_only_where_something_is_kept(
            units in 1..20_u64, ends in (0..10_240_u64, 0..10_240_u64),
        ) {
            let len = units * 512;
            let (start, end) = (ends.0.min(ends.1).min(len), ends.0.max(ends.1).min(len));
            let mut pad = Pad::new(1 << 20, len, Some(1 << 30), start..end);
            let mut at = 0;
            while pad.len > 0 {
                let piece = pad.first_piece(BlockSize::SECTOR);
                prop_assert!(piece > 0 && piece.is_multiple_of(512));
                let head = pad.split_to(piece);
                prop_assert_eq!((head.target, head.source), ((1 << 20) + at, Some((1 << 30) + at)));
                for byte in 0..piece {
                    let is_zeroed = (start..end).contains(&(at + byte));
                    prop_assert_eq!(head.zeros.contains(&byte), is_zeroed);
                }
                at += piece;
            }
            prop_assert_eq!(at, len);
        }
    }

    #[test]
    fn zeros_in_the_middle_are_not_read() {
        let mut pad = Pad::new(0, 4096, Some(0), 100..3000);
        let mut found = Vec::new();
        while pad.len > 0 {
            let piece = pad.first_piece(BlockSize::SECTOR);
            let head = pad.split_to(piece);
            found.push((piece, head.keeps()));
        }
        assert_eq!(found, [(512, true), (2048, false), (1536, true)]);
    }

    #[test]
    fn without_a_source_all_are_zeros() {
        let pad = Pad::new(0, 4096, None, 100..3000);
        assert!(!pad.keeps() && pad.first_piece(BlockSize::SECTOR) == 4096);
    }
}
