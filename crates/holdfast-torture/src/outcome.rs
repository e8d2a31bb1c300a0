//! What came out, as a table and for programs.

use std::fmt;

use holdfast_vhost_user_blk::QueueCounts;
use serde::Serialize;

/// What a server has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServerCounts {
    /// Bios that went through a buffer.
    pub bounced: u64,
    /// Bios that went to the device with the guest's own memory.
    pub zero_copy: u64,
    /// Bios that were read again after a guard mismatch, and were good.
    pub reread_good: u64,
    /// Bios that were read again after a guard mismatch, and were bad.
    pub reread_bad: u64,
}

impl ServerCounts {
    pub(crate) const fn plus(self, queue: QueueCounts) -> Self {
        Self {
            bounced: self.bounced + queue.bounced,
            zero_copy: self.zero_copy + queue.zero_copy,
            reread_good: self.reread_good + queue.reread_good,
            reread_bad: self.reread_bad + queue.reread_bad,
        }
    }

    const fn and(self, other: Self) -> Self {
        Self {
            bounced: self.bounced + other.bounced,
            zero_copy: self.zero_copy + other.zero_copy,
            reread_good: self.reread_good + other.reread_good,
            reread_bad: self.reread_bad + other.reread_bad,
        }
    }
}

/// What became of sectors that were corrupted on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Corrupted {
    /// How many there were.
    pub injected: u64,
    /// How many were found by requests, which failed.
    pub found_by_requests: u64,
    /// How many were left at the end, to be found by a scrub.
    pub left: u64,
    /// How many of those the scrub did not find.
    pub missed_by_scrub: u64,
    /// Requests that succeeded, though they verified a corrupt sector.
    pub delivered: u64,
}

/// What came out of a run, or of several.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    /// Requests that have ended.
    pub requests: u64,
    /// Bytes that they have read or written.
    pub bytes: u64,
    /// Stores to memory in flight.
    pub mutations: u64,
    /// Requests that failed, though nothing was corrupt.
    pub false_errors: u64,
    /// Blocks of 512 bytes that were read and held what they must not.
    pub wrong_blocks: u64,
    /// Sectors that a scrub found to be corrupt, though nobody had corrupted them.
    pub bad_guards: u64,
    /// Mismatches that the volume has counted, though nobody had corrupted anything.
    pub reported: u64,
    /// What the server counted. What a server counted that was killed is not in it.
    pub server: ServerCounts,
    /// Sectors that were corrupted on purpose.
    pub corrupted: Corrupted,
    /// How often the server was killed.
    pub kills: u64,
    /// Requests that were in flight when it was, all together.
    pub interrupted: u64,
    /// The first faults, in words.
    pub faults: Vec<String>,
}

impl Outcome {
    /// Returns whether nothing was wrong.
    pub const fn is_clean(&self) -> bool {
        let Self { false_errors, wrong_blocks, bad_guards, reported, corrupted, .. } = self;
        *false_errors == 0
            && *wrong_blocks == 0
            && *bad_guards == 0
            && *reported == 0
            && corrupted.missed_by_scrub == 0
            && corrupted.delivered == 0
    }

    /// Adds what came out of another run.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.bytes += other.bytes;
        self.mutations += other.mutations;
        self.false_errors += other.false_errors;
        self.wrong_blocks += other.wrong_blocks;
        self.bad_guards += other.bad_guards;
        self.reported += other.reported;
        self.server = self.server.and(other.server);
        self.corrupted.injected += other.corrupted.injected;
        self.corrupted.found_by_requests += other.corrupted.found_by_requests;
        self.corrupted.left += other.corrupted.left;
        self.corrupted.missed_by_scrub += other.corrupted.missed_by_scrub;
        self.corrupted.delivered += other.corrupted.delivered;
        self.kills += other.kills;
        self.interrupted += other.interrupted;
        self.faults.extend(other.faults);
    }
}

/// Rows of a table: a name, and what came out.
#[derive(Debug)]
pub struct Table<'a>(pub &'a [(String, Outcome)]);

impl Table<'_> {
    const HEADS: [&'static str; 10] = [
        "requests",
        "MiB",
        "mutations",
        "bounced",
        "zero-copy",
        "read again",
        "still bad",
        "false errors",
        "wrong blocks",
        "bad guards",
    ];

    const fn cells(outcome: &Outcome) -> [u64; 10] {
        [
            outcome.requests,
            outcome.bytes >> 20,
            outcome.mutations,
            outcome.server.bounced,
            outcome.server.zero_copy,
            outcome.server.reread_good,
            outcome.server.reread_bad,
            outcome.false_errors,
            outcome.wrong_blocks,
            outcome.bad_guards,
        ]
    }
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|(name, _)| name.len());
        let first = names.max().unwrap_or(0).max("policy".len());
        let rows: Vec<_> = self.0.iter().map(|(_, outcome)| Self::cells(outcome)).collect();
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].to_string().len());
            cells.max().unwrap_or(0).max(Self::HEADS[column].len())
        };
        write!(f, "{:<first$}", "policy")?;
        for (column, head) in Self::HEADS.iter().enumerate() {
            write!(f, "  {head:>0$}", width(column))?;
        }
        for ((name, _), row) in self.0.iter().zip(&rows) {
            write!(f, "\n{name:<first$}")?;
            for (column, cell) in row.iter().enumerate() {
                write!(f, "  {cell:>0$}", width(column))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let outcome = Outcome { requests: 123_456_789, bad_guards: 7, ..Outcome::default() };
        let text = Table(&[("never".to_owned(), outcome)]).to_string();
        let (head, row) = text.split_once('\n').unwrap();
        assert_eq!(head.len(), row.len());
        assert!(head.starts_with("policy   requests  MiB"), "{head}");
        assert!(row.starts_with("never   123456789    0"), "{row}");
        assert!(row.ends_with("           7"), "{row}");
    }

    #[test]
    fn what_is_delivered_though_it_is_corrupt_is_not_clean() {
        let mut outcome = Outcome::default();
        assert!(outcome.is_clean());
        outcome.corrupted.injected = 3;
        assert!(outcome.is_clean());
        outcome.corrupted.delivered = 1;
        assert!(!outcome.is_clean());
    }
}
