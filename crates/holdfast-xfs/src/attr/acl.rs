//! Access control lists: XFS keeps them as attributes of the administrator, big-endian; Linux hands them
//! out as `system.posix_acl_*`, little-endian (`linux/posix_acl_xattr.h`).

use holdfast_units::to_u64;
use holdfast_xfs_format::{FormatError, Structure};
use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The names, in XFS and in Linux.
const NAMES: [(&[u8], &[u8]); 2] = [
    (b"SGI_ACL_FILE", b"system.posix_acl_access"),
    (b"SGI_ACL_DEFAULT", b"system.posix_acl_default"),
];

/// The version that Linux hands out.
const VERSION: u32 = 2;
/// The user or group of an entry that is about neither.
const NOBODY: u32 = u32::MAX;
/// Entries about a user and about a group.
const NAMED: [u16; 2] = [2, 8];

/// An entry in XFS (`xfs_acl_entry`).
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Stored {
    tag: U32,
    id: U32,
    permissions: U16,
    padding: U16,
}

/// An entry in Linux.
#[derive(Clone, Copy, Immutable, IntoBytes, Unaligned)]
#[repr(C)]
struct HandedOut {
    tag: little_endian::U16,
    permissions: little_endian::U16,
    id: little_endian::U32,
}

const _: () = {
    assert!(size_of::<Stored>() == 12);
    assert!(size_of::<HandedOut>() == 8);
};

/// Returns the name that XFS has for an access control list, if the name is that of one.
pub(super) fn stored_name(name: &[u8]) -> Option<&'static [u8]> {
    NAMES.iter().find(|(_, linux)| *linux == name).map(|(stored, _)| *stored)
}

/// Returns the name that Linux has for an access control list, if the name is that of one.
pub(super) fn linux_name(name: &[u8]) -> Option<&'static [u8]> {
    NAMES.iter().find(|(stored, _)| *stored == name).map(|(_, linux)| *linux)
}

/// Turns what XFS keeps into what Linux hands out.
pub(super) fn decode(value: &[u8]) -> Result<Vec<u8>, FormatError> {
    const STRUCTURE: Structure = Structure::Acl;
    let range = |field, found| FormatError::Range { structure: STRUCTURE, field, found };
    let short = FormatError::Short { structure: STRUCTURE, expected: 4, found: value.len() };
    let (count, entries) = U32::ref_from_prefix(value).map_err(|_| short)?;
    let count = count.get();
    let entries = <[Stored]>::ref_from_bytes(entries).ok();
    let entries = entries.filter(|entries| to_u64(entries.len()) == u64::from(count));
    let entries = entries.ok_or_else(|| range("count", u64::from(count)))?;
    let mut decoded = VERSION.to_le_bytes().to_vec();
    for entry in entries {
        let tag =
            u16::try_from(entry.tag.get()).map_err(|_| range("tag", u64::from(entry.tag.get())))?;
        let id = if NAMED.contains(&tag) { entry.id.get() } else { NOBODY };
        let entry = HandedOut {
            tag: tag.into(),
            permissions: entry.permissions.get().into(),
            id: id.into(),
        };
        decoded.extend_from_slice(entry.as_bytes());
    }
    Ok(decoded)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_entry_changes_its_form() {
        let stored = [0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 3, 0xe8, 0, 6, 0, 0];
        let expected = [2, 0, 0, 0, 2, 0, 6, 0, 0xe8, 3, 0, 0];
        assert_eq!(decode(&stored), Ok(expected.to_vec()));
    }

    #[test]
    fn a_count_that_is_wrong_is_refused() {
        decode(&[0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 3, 0xe8, 0, 6, 0, 0]).unwrap_err();
        decode(&[0, 0]).unwrap_err();
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(value: Vec<u8>) {
            let _decoded = decode(&value);
        }
    }
}
