//! A file, and what must be in it.

use std::fs;
use std::ops::Range;
use std::path::Path;

use holdfast_units::{to_u64, to_usize};
use holdfast_xfs::Ino;

use crate::Outcome;

/// A file, and what must be in it.
pub(crate) struct Subject {
    path: String,
    pub(crate) ino: Ino,
    pub(crate) model: Vec<u8>,
    /// It does not become longer, in bytes.
    pub(crate) longest: u64,
}

/// Something that may or may not have happened to a range: what it writes, or zeros.
pub(crate) struct Doubt {
    pub(crate) range: Range<u64>,
    pub(crate) tag: Option<u8>,
}

/// Returns the byte that a write with this tag puts at an offset.
pub(crate) fn byte(tag: u8, offset: u64) -> u8 {
    let sector = (offset / 512).to_le_bytes();
    tag.wrapping_add(sector[0].wrapping_mul(37)).wrapping_add(sector[1].wrapping_mul(11))
}

impl Subject {
    pub(crate) fn load(models: &Path, path: &str) -> Outcome<Self> {
        let model = fs::read(models.join(path))?;
        let longest = to_u64(model.len()).max(256 << 10) + (192 << 10);
        Ok(Self { path: path.to_owned(), ino: Ino(0), model, longest })
    }

    pub(crate) fn store(&self, models: &Path) -> Outcome<()> {
        Ok(fs::write(models.join(&self.path), &self.model)?)
    }

    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn size(&self) -> u64 {
        to_u64(self.model.len())
    }

    pub(crate) fn write(&mut self, range: &Range<u64>, tag: u8) {
        self.grow(range.end);
        for offset in range.clone() {
            self.model[to_usize(offset)] = byte(tag, offset);
        }
    }

    pub(crate) fn grow(&mut self, size: u64) {
        self.model.resize(self.model.len().max(to_usize(size)), 0);
    }

    pub(crate) fn clear(&mut self, range: &Range<u64>) {
        let end = to_usize(range.end).min(self.model.len());
        let from = to_usize(range.start).min(end);
        self.model[from..end].fill(0);
    }

    /// Compares what was read from `offset` on, until the end of the file.
    pub(crate) fn compare(&self, offset: u64, found: &[u8], asked: u64) -> Outcome<()> {
        let from = to_usize(offset).min(self.model.len());
        let until = to_usize(offset.saturating_add(asked)).min(self.model.len());
        let expected = &self.model[from..until];
        let path = &self.path;
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(format!("{path}: {found} bytes from {offset} on, not {expected}").into());
        }
        let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
        differs.map_or(Ok(()), |at| {
            let (found, expected) = (found[at], expected[at]);
            let at = to_u64(at) + offset;
            Err(format!("{path}: byte {at} of {} is {found}, not {expected}", self.size()).into())
        })
    }

    /// Takes over what was found after something failed, if it may be there. The file is at least
    /// `least` bytes long.
    pub(crate) fn adopt(&mut self, found: Vec<u8>, least: u64, doubts: &[Doubt]) -> Outcome<()> {
        if to_u64(found.len()) < least {
            return Err(format!("{}: {} bytes, not {least}", self.path, found.len()).into());
        }
        for (at, &byte_found) in found.iter().enumerate() {
            let old = self.model.get(at).copied().unwrap_or(0);
            let at = to_u64(at);
            let may_be = |doubt: &Doubt| {
                let value = doubt.tag.map_or(0, |tag| byte(tag, at));
                doubt.range.contains(&at) && value == byte_found
            };
            if byte_found != old && !doubts.iter().any(may_be) {
                let path = &self.path;
                return Err(
                    format!("{path}: byte {at} is {byte_found}, was {old}, and failed").into()
                );
            }
        }
        self.model = found;
        Ok(())
    }
}
