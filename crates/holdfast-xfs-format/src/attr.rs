//! Attributes: inside the inode, and in leaves.

use zerocopy::byteorder::big_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::da::DaHeader;
use crate::error::{FormatError, Structure, require, short};

/// The longest value of an attribute, in bytes.
pub const ATTRIBUTE_LEN_MAX: u32 = 65_536;

/// The header of a leaf (`xfs_attr3_leaf_hdr`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawAttrLeafHeader {
    /// What every block of the tree begins with.
    pub info: DaHeader,
    /// How many entries follow.
    pub count: U16,
    /// How many bytes names and values take.
    pub used: U16,
    /// Where the first of these is; 0 for 65,536.
    pub first_used: U16,
    /// Not 0 when there may be free places that the list lacks.
    pub holes: u8,
    /// 0.
    pub padding: u8,
    /// The three longest free places, each an offset and a length.
    pub longest: [[U16; 2]; 3],
    /// 0.
    pub padding_last: U32,
}

/// An entry of a leaf (`xfs_attr_leaf_entry`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawAttrLeafEntry {
    /// The hash of the name.
    pub hash: U32,
    /// Where name and value are, in bytes from the start of the block.
    pub offset: U16,
    /// Where the value is, whose name it is, and whether it is complete.
    pub flags: u8,
    /// 0.
    pub padding: u8,
}

const _: () = {
    assert!(size_of::<RawAttrLeafHeader>() == 80);
    assert!(size_of::<RawAttrLeafEntry>() == 8);
};

/// Whose an attribute is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Namespace {
    /// The owner's: `user.`.
    User,
    /// The administrator's: `trusted.`. Access control lists are here, too.
    Trusted,
    /// The security modules': `security.`.
    Security,
    /// The file system's own: a name of the file, in one of its parents.
    Parent,
}

/// What the byte of flags of an attribute says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AttrFlags {
    namespace: Namespace,
    is_local: bool,
    is_incomplete: bool,
}

impl AttrFlags {
    const LOCAL: u8 = 1;
    const ROOT: u8 = 1 << 1;
    const SECURE: u8 = 1 << 2;
    const PARENT: u8 = 1 << 3;
    const INCOMPLETE: u8 = 1 << 7;

    fn decode(structure: Structure, byte: u8) -> Result<Self, FormatError> {
        let namespace = match byte & !(Self::LOCAL | Self::INCOMPLETE) {
            0 => Namespace::User,
            Self::ROOT => Namespace::Trusted,
            Self::SECURE => Namespace::Security,
            Self::PARENT => Namespace::Parent,
            _ => {
                let found = u64::from(byte);
                return Err(FormatError::Range { structure, field: "flags", found });
            }
        };
        Ok(Self {
            namespace,
            is_local: byte & Self::LOCAL != 0,
            is_incomplete: byte & Self::INCOMPLETE != 0,
        })
    }
}

/// The value of an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttrValue<'a> {
    /// It is here.
    Local(&'a [u8]),
    /// It is in blocks of its own.
    Remote {
        /// The first, in blocks of the attributes.
        block: u32,
        /// How many bytes it has, at most [`ATTRIBUTE_LEN_MAX`].
        len: u32,
    },
}

/// An attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttrEntry<'a> {
    /// Whose it is.
    pub namespace: Namespace,
    /// The name, without the prefix of the namespace: 1 to 255 bytes.
    pub name: &'a [u8],
    /// The value.
    pub value: AttrValue<'a>,
    /// It is being set or removed, and does not count.
    pub is_incomplete: bool,
}

/// Attributes inside their inode (`xfs_attr_sf`).
#[derive(Clone, Copy, Debug)]
pub struct ShortAttr<'a> {
    count: usize,
    entries: &'a [u8],
}

impl<'a> ShortAttr<'a> {
    const STRUCTURE: Structure = Structure::ShortAttr;

    /// Takes the attribute fork of an inode apart.
    ///
    /// # Errors
    ///
    /// The field that cannot be so. Entries are checked when they are asked for.
    pub fn parse(fork: &'a [u8]) -> Result<Self, FormatError> {
        let (&[high, low, count, _], _) =
            fork.split_first_chunk().ok_or_else(|| short(Self::STRUCTURE, 4, fork.len()))?;
        let len = u16::from_be_bytes([high, low]);
        let entries = fork.get(4..usize::from(len));
        require(Self::STRUCTURE, "length", u64::from(len), entries.is_some())?;
        Ok(Self { count: usize::from(count), entries: entries.unwrap_or_default() })
    }

    /// Returns the attributes, and where one is bad an error and no more.
    pub fn entries(&self) -> impl Iterator<Item = Result<AttrEntry<'a>, FormatError>> + use<'a> {
        let Self { count, entries } = *self;
        let mut rest = Some(entries);
        (0..count).map_while(move |_| {
            let parsed = Self::entry(rest?);
            rest = parsed.as_ref().ok().map(|(_, rest)| *rest);
            Some(parsed.map(|(entry, _)| entry))
        })
    }

    fn entry(bytes: &'a [u8]) -> Result<(AttrEntry<'a>, &'a [u8]), FormatError> {
        let whole = || {
            let (&[name_len, value_len, flags], rest) = bytes.split_first_chunk()?;
            let (name, rest) = rest.split_at_checked(usize::from(name_len))?;
            let (value, rest) = rest.split_at_checked(usize::from(value_len))?;
            Some((flags, name, value, rest))
        };
        let (flags, name, value, rest) =
            whole().ok_or_else(|| short(Self::STRUCTURE, 4, bytes.len()))?;
        require(Self::STRUCTURE, "length of a name", 0, !name.is_empty())?;
        let AttrFlags { namespace, is_incomplete, .. } = AttrFlags::decode(Self::STRUCTURE, flags)?;
        let value = AttrValue::Local(value);
        Ok((AttrEntry { namespace, name, value, is_incomplete }, rest))
    }
}

/// A leaf of attributes.
#[derive(Clone, Copy, Debug)]
pub struct AttrLeaf<'a> {
    block: &'a [u8],
    /// The leaf that follows, in blocks of the attributes, if there is one.
    pub next: Option<u32>,
    /// The entries, in the order of their hashes.
    pub raw: &'a [RawAttrLeafEntry],
}

impl<'a> AttrLeaf<'a> {
    const STRUCTURE: Structure = Structure::AttrLeaf;

    /// Takes a verified block apart.
    ///
    /// # Errors
    ///
    /// The field that cannot be so. Entries are checked when they are asked for.
    pub fn parse(block: &'a [u8]) -> Result<Self, FormatError> {
        let (header, rest) = RawAttrLeafHeader::ref_from_prefix(block)
            .map_err(|_| short(Self::STRUCTURE, size_of::<RawAttrLeafHeader>(), block.len()))?;
        let count = header.count.get();
        let raw = <[RawAttrLeafEntry]>::ref_from_prefix_with_elems(rest, usize::from(count));
        let raw = raw.ok().map(|(raw, _)| raw);
        require(Self::STRUCTURE, "count", u64::from(count), raw.is_some())?;
        let next = header.info.forward.get();
        Ok(Self { block, next: (next != 0).then_some(next), raw: raw.unwrap_or_default() })
    }

    /// Returns the attributes, each for itself or what is wrong with it.
    pub fn entries(&self) -> impl Iterator<Item = Result<AttrEntry<'a>, FormatError>> + use<'a> {
        let leaf = *self;
        leaf.raw.iter().map(move |raw| leaf.entry(raw))
    }

    /// Returns the attributes that have a hash, each for itself or what is wrong with it.
    pub fn find(
        &self,
        hash: u32,
    ) -> impl Iterator<Item = Result<AttrEntry<'a>, FormatError>> + use<'a> {
        let leaf = *self;
        let first = leaf.raw.partition_point(|entry| entry.hash.get() < hash);
        let same = leaf.raw.iter().skip(first).take_while(move |entry| entry.hash.get() == hash);
        same.map(move |raw| leaf.entry(raw))
    }

    /// Returns whether the leaf that follows may have attributes with a hash, too.
    pub fn may_go_on(&self, hash: u32) -> bool {
        self.raw.last().is_none_or(|entry| entry.hash.get() <= hash)
    }

    fn entry(&self, raw: &RawAttrLeafEntry) -> Result<AttrEntry<'a>, FormatError> {
        let AttrFlags { namespace, is_local, is_incomplete } =
            AttrFlags::decode(Self::STRUCTURE, raw.flags)?;
        let offset = usize::from(raw.offset.get());
        let found = u64::from(raw.offset.get());
        let behind_entries = size_of::<RawAttrLeafHeader>() + size_of_val(self.raw);
        let bytes = self.block.get(offset..).filter(|_| offset >= behind_entries);
        let parts =
            bytes.and_then(|bytes| if is_local { local_parts(bytes) } else { remote_parts(bytes) });
        require(Self::STRUCTURE, "offset of an entry", found, parts.is_some())?;
        let (name, value) = parts.unwrap_or((&[], AttrValue::Local(&[])));
        require(Self::STRUCTURE, "length of a name", 0, !name.is_empty())?;
        if let AttrValue::Remote { len, .. } = value {
            let fits = len <= ATTRIBUTE_LEN_MAX;
            require(Self::STRUCTURE, "length of a value", u64::from(len), fits)?;
        }
        Ok(AttrEntry { namespace, name, value, is_incomplete })
    }
}

/// A name with its value (`xfs_attr_leaf_name_local`).
fn local_parts(bytes: &[u8]) -> Option<(&[u8], AttrValue<'_>)> {
    let (&[high, low, name_len], rest) = bytes.split_first_chunk()?;
    let (name, rest) = rest.split_at_checked(usize::from(name_len))?;
    let value = rest.get(..usize::from(u16::from_be_bytes([high, low])))?;
    Some((name, AttrValue::Local(value)))
}

/// A name, and where its value is (`xfs_attr_leaf_name_remote`).
fn remote_parts(bytes: &[u8]) -> Option<(&[u8], AttrValue<'_>)> {
    let (block, rest) = bytes.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let (&name_len, rest) = rest.split_first()?;
    let name = rest.get(..usize::from(name_len))?;
    let (block, len) = (u32::from_be_bytes(*block), u32::from_be_bytes(*len));
    Some((name, AttrValue::Remote { block, len }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_in_the_inode_follow_each_other() {
        let fork = [&[0, 16, 2, 0, 1, 2, 0][..], b"abc", &[2, 0, 2], b"xy", &[0; 5]].concat();
        // The length is that of the header, 3 + 3 bytes and 3 + 2.
        let mut fork = fork;
        fork[1] = 15;
        let entries: Result<Vec<_>, _> = ShortAttr::parse(&fork).unwrap().entries().collect();
        let (first, second) = (AttrValue::Local(b"bc"), AttrValue::Local(b""));
        let (user, trusted) = (Namespace::User, Namespace::Trusted);
        let is_incomplete = false;
        assert_eq!(
            entries,
            Ok(vec![
                AttrEntry { namespace: user, name: b"a", value: first, is_incomplete },
                AttrEntry { namespace: trusted, name: b"xy", value: second, is_incomplete },
            ])
        );
    }

    fn leaf() -> Vec<u8> {
        let mut leaf = vec![0; 128];
        leaf[57] = 2;
        leaf[80..88].copy_from_slice(&[0, 0, 0, 7, 0, 100, 1, 0]);
        leaf[88..96].copy_from_slice(&[0, 0, 0, 9, 0, 110, 4, 0]);
        leaf[100..106].copy_from_slice(&[0, 2, 1, b'a', 8, 9]);
        leaf[110..121].copy_from_slice(&[0, 0, 0, 5, 0, 1, 0, 0, 2, b'b', b'c']);
        leaf
    }

    #[test]
    fn values_are_in_the_leaf_or_elsewhere() {
        let leaf = leaf();
        let leaf = AttrLeaf::parse(&leaf).unwrap();
        let entries: Vec<_> = leaf.entries().map(Result::unwrap).collect();
        assert_eq!((entries[0].name, entries[0].value), (&b"a"[..], AttrValue::Local(&[8, 9])));
        let value = AttrValue::Remote { block: 5, len: 65_536 };
        assert_eq!((entries[1].name, entries[1].value), (&b"bc"[..], value));
        assert_eq!(entries[1].namespace, Namespace::Security);
        let found: Vec<_> = leaf.find(9).collect();
        assert_eq!(found, [Ok(entries[1])]);
    }

    #[test]
    fn entries_outside_the_leaf_or_too_long_are_refused() {
        for (at, value) in [(85, 90), (85, 127), (100, 1), (86, 6), (117, 1)] {
            let mut leaf = leaf();
            leaf[at] = value;
            let leaf = AttrLeaf::parse(&leaf).unwrap();
            assert!(leaf.entries().any(|entry| entry.is_err()), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_them_panic(bytes: Vec<u8>, hash: u32) {
            if let Ok(attributes) = ShortAttr::parse(&bytes) {
                prop_assert!(attributes.entries().count() <= 256);
            }
            if let Ok(leaf) = AttrLeaf::parse(&bytes) {
                prop_assert!(leaf.entries().chain(leaf.find(hash)).count() <= 2 * bytes.len());
            }
        }

        #[test]
        fn no_entries_make_them_panic(
            bytes in proptest::collection::vec(any::<u8>(), 48),
        ) {
            let mut leaf = leaf();
            leaf[80..].copy_from_slice(&bytes);
            prop_assert_eq!(AttrLeaf::parse(&leaf).unwrap().entries().count(), 2);
        }
    }
}
