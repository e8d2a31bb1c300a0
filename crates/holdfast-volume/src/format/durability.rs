//! How much a crash of the machine may cost, and the code for it.

use core::fmt;
use core::str::FromStr;

use thiserror::Error;

/// What survives a crash of the machine, and what it costs. `docs/durability.md` tells them apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Durability {
    /// Tuples are durable before their data are: after a crash each sector is known to be what it
    /// was or what was being written, or else is torn or corrupt.
    #[default]
    Full,
    /// It is durable which regions are being written: after a crash sectors of those regions are
    /// taken as they are, so that one that is torn or corrupt is not found there.
    Bitmap,
    /// Nothing is done for a crash of the machine: after one every sector is taken as it is.
    None,
}

impl Durability {
    /// All that there are.
    pub const ALL: [Self; 3] = [Self::Full, Self::Bitmap, Self::None];

    /// Returns the name that options and reports use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Bitmap => "bitmap",
            Self::None => "none",
        }
    }

    pub(super) const fn code(self) -> u32 {
        match self {
            Self::Full => 1,
            Self::Bitmap => 2,
            Self::None => 3,
        }
    }

    pub(super) fn from_code(code: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|durability| durability.code() == code)
    }
}

impl FromStr for Durability {
    type Err = UnknownDurability;

    fn from_str(text: &str) -> Result<Self, UnknownDurability> {
        let named = Self::ALL.into_iter().find(|durability| durability.name() == text);
        named.ok_or(UnknownDurability)
    }
}

/// A name that no [`Durability`] has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("a durability is full, bitmap or none")]
pub struct UnknownDurability;

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
