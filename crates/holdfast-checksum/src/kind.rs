//! Which checksum a guard is.

use std::error::Error;
use std::fmt;
use std::str::FromStr;

use crc_fast::CrcAlgorithm;

/// The kinds of guard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GuardKind {
    /// CRC-16/T10-DIF: the guard of SCSI and of the 16-bit format of NVMe.
    Crc16,
    /// CRC-32C, the Castagnoli CRC of iSCSI: the guard of the 32-bit format of NVMe.
    Crc32c,
    /// CRC-64/NVMe: the guard of the 64-bit format of NVMe.
    Crc64,
}

impl GuardKind {
    /// Every kind, the shortest guard first.
    pub const ALL: [Self; 3] = [Self::Crc16, Self::Crc32c, Self::Crc64];

    /// Returns how many low bits of a guard are used; the others are zero.
    pub const fn bits(self) -> u32 {
        match self {
            Self::Crc16 => 16,
            Self::Crc32c => 32,
            Self::Crc64 => 64,
        }
    }

    /// Returns what the CRC register holds before the first byte, which is also what is added to it
    /// after the last.
    pub(crate) const fn seed(self) -> u64 {
        match self {
            Self::Crc16 => 0,
            Self::Crc32c => u32::MAX as u64,
            Self::Crc64 => u64::MAX,
        }
    }

    pub(crate) const fn algorithm(self) -> CrcAlgorithm {
        match self {
            Self::Crc16 => CrcAlgorithm::Crc16T10Dif,
            Self::Crc32c => CrcAlgorithm::Crc32Iscsi,
            Self::Crc64 => CrcAlgorithm::Crc64Nvme,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Crc16 => "crc16",
            Self::Crc32c => "crc32c",
            Self::Crc64 => "crc64",
        }
    }
}

impl fmt::Display for GuardKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for GuardKind {
    type Err = UnknownGuard;

    fn from_str(name: &str) -> Result<Self, UnknownGuard> {
        let known = Self::ALL.into_iter().find(|kind| kind.name() == name);
        known.ok_or_else(|| UnknownGuard { found: name.to_owned() })
    }
}

/// The error for a name that no kind of guard has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownGuard {
    found: String,
}

impl fmt::Display for UnknownGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected a guard (crc16, crc32c or crc64), found {:?}", self.found)
    }
}

impl Error for UnknownGuard {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_name() {
        let found = GuardKind::ALL.map(|kind| kind.to_string().parse());
        assert_eq!(found, GuardKind::ALL.map(Ok));
    }

    #[test]
    fn an_unknown_name_is_quoted_in_the_error() {
        let error = "crc8".parse::<GuardKind>().unwrap_err();
        assert_eq!(error.to_string(), r#"expected a guard (crc16, crc32c or crc64), found "crc8""#);
    }
}
