//! What a client may attach to, and what a server may offer at all.

use holdfast_socket::Address;
use thiserror::Error;

use crate::wire;

/// Returns an address as clients write it (the NBD URI specification).
pub fn uri(address: &Address) -> String {
    match address {
        Address::Unix(path) => format!("nbd+unix:///?socket={}", path.display()),
        Address::Tcp(address) => format!("nbd://{address}"),
    }
}

/// What a client may attach to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Export {
    /// The name that clients ask for; `""` is the default export.
    pub name: String,
    /// One line for people; may be empty.
    pub description: String,
    /// In bytes.
    pub size: u64,
    /// Whether every request that would change data is refused.
    pub read_only: bool,
    /// What requests have to obey.
    pub block_size: BlockSizes,
}

impl Export {
    /// Says what a client could not make sense of, if anything.
    pub fn check(&self) -> Result<(), InvalidExport> {
        for text in [&self.name, &self.description] {
            if text.len() > wire::STRING_LEN_MAX {
                return Err(InvalidExport::TextTooLong {
                    maximum: wire::STRING_LEN_MAX,
                    found: text.len(),
                });
            }
            if text.contains('\0') {
                return Err(InvalidExport::Nul { text: text.clone() });
            }
        }
        self.block_size.check()?;
        if !self.size.is_multiple_of(u64::from(self.block_size.minimum)) {
            return Err(InvalidExport::UnevenSize {
                minimum: self.block_size.minimum,
                found: self.size,
            });
        }
        Ok(())
    }

    /// The transmission flags that are sent to a client.
    pub(crate) const fn flags(&self, structured: bool) -> u16 {
        let always = wire::FLAG_HAS_FLAGS
            | wire::FLAG_SEND_FLUSH
            | wire::FLAG_SEND_CACHE
            | wire::FLAG_CAN_MULTI_CONN;
        let access = if self.read_only {
            wire::FLAG_READ_ONLY
        } else {
            wire::FLAG_SEND_FUA
                | wire::FLAG_SEND_TRIM
                | wire::FLAG_SEND_WRITE_ZEROES
                | wire::FLAG_SEND_FAST_ZERO
        };
        // proto.md, "Transmission flags": clear unless structured replies were negotiated.
        let unfragmented = if structured { wire::FLAG_SEND_DF } else { 0 };
        always | access | unfragmented
    }
}

/// The sizes that requests have to obey, in bytes.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BlockSizes {
    /// Each offset and length is a multiple of it: a power of two up to 64 KiB.
    pub minimum: u32,
    /// From here on requests are efficient: a power of two, at least 512 and the minimum.
    pub preferred: u32,
    /// The most data in one read or write; at most [`PAYLOAD_LEN_MAX`].
    pub maximum: u32,
}

impl BlockSizes {
    /// The most data that one read or write may have, whatever was configured.
    pub fn payload_max(&self) -> u32 {
        self.maximum.min(PAYLOAD_LEN_MAX)
    }

    fn check(&self) -> Result<(), InvalidExport> {
        let Self { minimum, preferred, maximum } = *self;
        // proto.md, "Size constraints".
        if !minimum.is_power_of_two() || minimum > 1 << 16 {
            return Err(InvalidExport::Minimum { found: minimum });
        }
        if !preferred.is_power_of_two() || preferred < minimum.max(512) {
            return Err(InvalidExport::Preferred { minimum, found: preferred });
        }
        if maximum < preferred || maximum > PAYLOAD_LEN_MAX {
            return Err(InvalidExport::Maximum { preferred, found: maximum });
        }
        Ok(())
    }
}

impl Default for BlockSizes {
    /// What clients assume that were told nothing.
    fn default() -> Self {
        Self { minimum: 1, preferred: 4096, maximum: PAYLOAD_LEN_MAX }
    }
}

/// Checks each export, and that no two have one name.
///
/// Call it once when the server starts: what it refuses is a mistake in the configuration.
pub fn check_exports(exports: &[Export]) -> Result<(), InvalidExport> {
    for (index, export) in exports.iter().enumerate() {
        export.check()?;
        if exports[..index].iter().any(|earlier| earlier.name == export.name) {
            return Err(InvalidExport::DuplicateName { name: export.name.clone() });
        }
    }
    Ok(())
}

/// The most data that one read or write may have, in bytes.
///
/// proto.md, "Size constraints": a payload up to 2^25 bytes should not be taken for an attack. So that much is
/// read and dropped after a refused write, and a longer one ends the connection.
pub const PAYLOAD_LEN_MAX: u32 = 1 << 25;

/// Why an export cannot be offered: a mistake in the configuration.
#[derive(Clone, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum InvalidExport {
    /// The protocol's limit for strings.
    #[error("a name or description has {found} bytes, and {maximum} are allowed")]
    TextTooLong {
        /// In bytes.
        maximum: usize,
        /// In bytes.
        found: usize,
    },
    /// The protocol allows no such character in a string.
    #[error("the name or description {text:?} contains a NUL")]
    Nul {
        /// The whole name or description.
        text: String,
    },
    /// A client could never name the second one.
    #[error("two exports are named {name:?}")]
    DuplicateName {
        /// The name of both.
        name: String,
    },
    /// The last bytes could never be reached.
    #[error("the size {found} is not a multiple of the minimum block size {minimum}")]
    UnevenSize {
        /// In bytes.
        minimum: u32,
        /// In bytes.
        found: u64,
    },
    /// The minimum block size breaks the protocol's rule.
    #[error("the minimum block size {found} is not a power of two up to 65536")]
    Minimum {
        /// In bytes.
        found: u32,
    },
    /// The preferred block size breaks the protocol's rule.
    #[error(
        "the preferred block size {found} is not a power of two from 512 and the minimum {minimum} on"
    )]
    Preferred {
        /// In bytes.
        minimum: u32,
        /// In bytes.
        found: u32,
    },
    /// The maximum is too small for the protocol or too large for this server.
    #[error(
        "the maximum payload {found} is not between the preferred block size {preferred} and {PAYLOAD_LEN_MAX}"
    )]
    Maximum {
        /// In bytes.
        preferred: u32,
        /// In bytes.
        found: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export() -> Export {
        Export {
            name: "disk".into(),
            description: String::new(),
            size: 1 << 20,
            read_only: false,
            block_size: BlockSizes { minimum: 512, preferred: 4096, maximum: PAYLOAD_LEN_MAX },
        }
    }

    #[test]
    fn usual_block_sizes_are_accepted() {
        assert_eq!(export().check(), Ok(()));
    }

    #[test]
    fn default_block_sizes_are_accepted() {
        let export = Export { block_size: BlockSizes::default(), ..export() };
        assert_eq!(export.check(), Ok(()));
    }

    #[test]
    fn a_minimum_that_is_no_power_of_two_is_refused() {
        let mut export = export();
        export.block_size.minimum = 0;
        assert_eq!(export.check(), Err(InvalidExport::Minimum { found: 0 }));
    }

    #[test]
    fn a_preferred_size_below_the_minimum_is_refused() {
        let mut export = export();
        export.block_size = BlockSizes { minimum: 4096, preferred: 512, maximum: 1 << 20 };
        assert_eq!(export.check(), Err(InvalidExport::Preferred { minimum: 4096, found: 512 }));
    }

    #[test]
    fn a_maximum_over_the_limit_is_refused() {
        let mut export = export();
        export.block_size.maximum = PAYLOAD_LEN_MAX + 1;
        let expected = InvalidExport::Maximum { preferred: 4096, found: PAYLOAD_LEN_MAX + 1 };
        assert_eq!(export.check(), Err(expected));
    }

    #[test]
    fn a_size_with_a_torn_last_block_is_refused() {
        let export = Export { size: 1000, ..export() };
        assert_eq!(export.check(), Err(InvalidExport::UnevenSize { minimum: 512, found: 1000 }));
    }

    #[test]
    fn a_name_over_4096_bytes_is_refused() {
        let export = Export { name: "n".repeat(4097), ..export() };
        assert_eq!(export.check(), Err(InvalidExport::TextTooLong { maximum: 4096, found: 4097 }));
    }

    #[test]
    fn a_nul_in_a_name_is_refused() {
        let export = Export { name: "a\0b".into(), ..export() };
        assert_eq!(export.check(), Err(InvalidExport::Nul { text: "a\0b".into() }));
    }

    #[test]
    fn two_exports_of_one_name_are_refused() {
        let exports = [export(), export()];
        assert_eq!(
            check_exports(&exports),
            Err(InvalidExport::DuplicateName { name: "disk".into() })
        );
    }

    #[test]
    fn a_writable_export_offers_each_write_command() {
        // HAS_FLAGS, FLUSH, FUA, TRIM, WRITE_ZEROES, MULTI_CONN, CACHE, FAST_ZERO.
        assert_eq!(export().flags(false), 0b1101_0110_1101);
    }

    #[test]
    fn a_read_only_export_offers_no_write_command() {
        let export = Export { read_only: true, ..export() };
        // HAS_FLAGS, READ_ONLY, FLUSH, MULTI_CONN, CACHE.
        assert_eq!(export.flags(false), 0b0101_0000_0111);
    }

    #[test]
    fn unfragmented_reads_are_offered_with_structured_replies_only() {
        assert_eq!(export().flags(true) ^ export().flags(false), 1 << 7);
    }
}
