//! What must not happen.

use std::fmt;

use holdfast_bio::Error;
use holdfast_volume::VolumeError;
use thiserror::Error as ThisError;

/// What was wrong.
#[derive(Clone, Debug, ThisError)]
pub(crate) enum Wrong {
    /// A volume cannot be opened.
    #[error("the volume does not open: {0}")]
    NotOpened(VolumeError),
    /// The legs of a mirror cannot be used.
    #[error("the mirror: {0}")]
    Mirror(String),
    /// A volume cannot be closed.
    #[error("the volume does not close: {0}")]
    NotClosed(VolumeError),
    /// Something was read that is not right.
    #[error("LBA {lba} has {found}, which is none of what may be there: {allowed}")]
    Contents {
        /// The sector.
        lba: u64,
        /// What it has.
        found: String,
        /// The writes of which it may have some.
        allowed: String,
    },
    /// A sector cannot be read, though nothing is wrong with it.
    #[error("a false alarm at LBA {lba}: {error}; stored is {stored}, and {allowed}")]
    FalseAlarm {
        /// The sector.
        lba: u64,
        /// What the volume said.
        error: Error,
        /// The data that are stored.
        stored: String,
        /// The writes of which it may have some.
        allowed: String,
    },
    /// A request failed, though nothing went wrong below.
    #[error("{what} failed: {error}")]
    Failed {
        /// Which request.
        what: String,
        /// What the volume said.
        error: Error,
    },
    /// A corrupt sector was read as if it were good.
    #[error("a flipped bit in the {place} of LBA {lba} was not found: {found}")]
    Missed {
        /// The sector.
        lba: u64,
        /// Data or tuple.
        place: &'static str,
        /// What was read.
        found: String,
    },
    /// A sector of which one leg is corrupt was not read from another.
    #[error("a flipped bit in the {place} of LBA {lba} of one leg was not healed: {error}")]
    NotHealed {
        /// The sector.
        lba: u64,
        /// Data or tuple.
        place: &'static str,
        /// What the volume said.
        error: Error,
    },
    /// The legs of a mirror differ.
    #[error("LBA {lba} differs between the legs {first} and {second}")]
    Legs {
        /// The sector.
        lba: u64,
        /// A leg.
        first: usize,
        /// Another.
        second: usize,
    },
    /// A sector changed although nobody wrote it.
    #[error("LBA {lba} had {before} after the recovery, and has {after} now")]
    Changed {
        /// The sector.
        lba: u64,
        /// What it had.
        before: String,
        /// What it has.
        after: String,
    },
    /// Mismatches were counted.
    #[error("{found} mismatches were counted, and {expected} sectors are corrupt")]
    Counted {
        /// How many were counted.
        found: u64,
        /// How many there are.
        expected: u64,
    },
    /// A volume that was closed is not clean.
    #[error("the volume was closed and is not clean")]
    NotClean,
    /// Nothing goes on.
    #[error("nothing was answered for {turns} turns")]
    Hung {
        /// How long.
        turns: u64,
    },
    /// There is no memory.
    #[error("no memory: {0}")]
    Memory(String),
}

/// Where in a run something was wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Before any cut.
    Live,
    /// After the cut.
    Cut,
    /// After a kill of the process.
    Kill,
    /// After the cut, with bits flipped.
    Flipped,
    /// After another cut while the volume was recovered.
    Recovery(usize),
    /// When the volume was used further after its recovery.
    Further,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Live => f.write_str("before any cut"),
            Self::Cut => f.write_str("after the cut"),
            Self::Kill => f.write_str("after the process was killed"),
            Self::Flipped => f.write_str("after the cut and flipped bits"),
            Self::Recovery(cut) => write!(f, "after another cut at {cut} of the recovery"),
            Self::Further => f.write_str("in further use after the recovery"),
        }
    }
}

/// Something that must not happen, and where it did.
#[derive(Clone, Debug)]
pub struct Alarm {
    pub(crate) seed: u64,
    pub(crate) cut: Option<usize>,
    pub(crate) stage: Stage,
    pub(crate) wrong: Wrong,
    pub(crate) plan: String,
}

impl fmt::Display for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, cut, stage, wrong, plan } = self;
        write!(f, "seed {seed} ({plan})")?;
        if let Some(cut) = cut {
            write!(f, ", cut {cut}")?;
        }
        write!(f, ", {stage}: {wrong}\n  to repeat: cargo xtask powercut --seed {seed}")?;
        cut.iter().try_for_each(|cut| write!(f, " --cut {cut}"))
    }
}
