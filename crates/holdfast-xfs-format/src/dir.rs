//! Directories in their forms: inside the inode, one block, and blocks of entries, of hashes and of
//! free space.

use core::mem::offset_of;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::address::Ino;
use crate::da::DaHeader;
use crate::error::{FormatError, Structure, expect, require, short};

/// The longest name, in bytes.
pub const NAME_LEN_MAX: usize = 255;
/// Where the hashes of a directory begin, in bytes from the start of its file.
pub const LEAF_OFFSET: u64 = 32 << 30;
/// Where the list of free space of a directory begins, in bytes from the start of its file.
pub const FREE_OFFSET: u64 = 64 << 30;

/// What all entries begin at a multiple of, and the unit of their addresses.
const ALIGNMENT: usize = 8;
/// What stands in the place of the first half of an inode's number where no entry is.
const FREE_TAG: u16 = 0xffff;

/// What blocks of entries and of free space begin with (`xfs_dir3_blk_hdr`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DirHeader {
    /// Which kind it is.
    pub magic: U32,
    /// CRC-32C of the block, computed with 0 in this field.
    pub crc: little_endian::U32,
    /// Where this block says that it is, in units of 512 bytes.
    pub place: U64,
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// Of which file system it is.
    pub uuid: [u8; 16],
    /// The directory.
    pub owner: U64,
}

/// The header of a block of entries (`xfs_dir3_data_hdr`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDirDataHeader {
    /// What such blocks begin with.
    pub header: DirHeader,
    /// The three longest free places, each an offset and a length.
    pub longest: [[U16; 2]; 3],
    /// 0.
    pub padding: U32,
}

/// The header of a leaf (`xfs_dir3_leaf_hdr`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDirLeafHeader {
    /// What such blocks begin with.
    pub info: DaHeader,
    /// How many entries follow.
    pub count: U16,
    /// How many of them are of no use any more.
    pub stale: U16,
    /// 0.
    pub padding: U32,
}

/// An entry of a leaf (`xfs_dir2_leaf_entry`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDirLeafEntry {
    /// The hash of the name.
    pub hash: U32,
    /// Where the entry is in the directory, in units of 8 bytes; 0 when it is of no use any more.
    pub address: U32,
}

/// The header of a block of free space (`xfs_dir3_free_hdr`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawDirFreeHeader {
    /// What such blocks begin with.
    pub header: DirHeader,
    /// The block of entries that the first number is about.
    pub first: U32,
    /// How many numbers follow.
    pub count: U32,
    /// How many of them are not all ones.
    pub used: U32,
    /// 0.
    pub padding: U32,
}

/// The end of a directory that is one block (`xfs_dir2_block_tail`).
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
struct RawBlockTail {
    count: U32,
    stale: U32,
}

const _: () = {
    assert!(size_of::<DirHeader>() == 48);
    assert!(offset_of!(DirHeader, owner) == 40);
    assert!(size_of::<RawDirDataHeader>() == 64);
    assert!(size_of::<RawDirLeafHeader>() == 64);
    assert!(size_of::<RawDirFreeHeader>() == 64);
};

/// What an entry says that it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileType {
    /// Nothing is said.
    Unknown,
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A character device.
    Character,
    /// A block device.
    Block,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink,
    /// What an overlay file system puts in the place of a removed file.
    Whiteout,
}

impl FileType {
    /// Returns what a byte on the disk means.
    pub const fn decode(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Unknown,
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::Character,
            4 => Self::Block,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            8 => Self::Whiteout,
            _ => return None,
        })
    }
}

/// An entry of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry<'a> {
    /// What it leads to.
    pub ino: Ino,
    /// The name: 1 to 255 bytes, none of them 0 or a slash.
    pub name: &'a [u8],
    /// What kind of file that is.
    pub file_type: FileType,
    /// Where the entry is, in bytes from the start of its block; inside an inode, where it would be in
    /// the first block.
    pub offset: usize,
}

fn check_entry(
    structure: Structure,
    ino: u64,
    name: &[u8],
    file_type: u8,
) -> Result<FileType, FormatError> {
    require(structure, "inode of an entry", ino, ino != 0)?;
    let strange = name.iter().find(|&&byte| byte == 0 || byte == b'/');
    let byte = strange.copied().unwrap_or_default();
    require(structure, "byte of a name", u64::from(byte), strange.is_none())?;
    FileType::decode(file_type).ok_or_else(|| FormatError::Range {
        structure,
        field: "file type",
        found: u64::from(file_type),
    })
}

/// A directory inside its inode (`xfs_dir2_sf`). It has no entries for itself and its parent.
#[derive(Clone, Copy, Debug)]
pub struct ShortDir<'a> {
    /// The parent.
    pub parent: Ino,
    count: usize,
    /// Whether numbers of inodes have 8 bytes and not 4.
    is_wide: bool,
    entries: &'a [u8],
}

/// Cuts the number of an inode off.
fn take_ino(bytes: &[u8], is_wide: bool) -> Option<(u64, &[u8])> {
    if is_wide {
        let (ino, rest) = bytes.split_first_chunk()?;
        return Some((u64::from_be_bytes(*ino), rest));
    }
    let (ino, rest) = bytes.split_first_chunk()?;
    Some((u64::from(u32::from_be_bytes(*ino)), rest))
}

impl<'a> ShortDir<'a> {
    const STRUCTURE: Structure = Structure::ShortDir;

    /// Takes the fork of an inode apart, which has as many bytes as the directory has.
    ///
    /// # Errors
    ///
    /// The field that cannot be so. Entries are checked when they are asked for.
    pub fn parse(fork: &'a [u8]) -> Result<Self, FormatError> {
        let too_short = || short(Self::STRUCTURE, 6, fork.len());
        let (&[count, wide], rest) = fork.split_first_chunk().ok_or_else(too_short)?;
        let (parent, entries) = take_ino(rest, wide > 0).ok_or_else(too_short)?;
        require(Self::STRUCTURE, "parent", parent, parent != 0)?;
        Ok(Self { parent: Ino(parent), count: usize::from(count), is_wide: wide > 0, entries })
    }

    /// Returns the entries, and where one is bad an error and no more.
    pub fn entries(&self) -> impl Iterator<Item = Result<DirEntry<'a>, FormatError>> + use<'a> {
        let Self { count, is_wide, entries, .. } = *self;
        let mut rest = Some(entries);
        (0..count).map_while(move |_| {
            let parsed = Self::entry(rest?, is_wide);
            rest = parsed.as_ref().ok().map(|(_, rest)| *rest);
            Some(parsed.map(|(entry, _)| entry))
        })
    }

    fn entry(bytes: &'a [u8], is_wide: bool) -> Result<(DirEntry<'a>, &'a [u8]), FormatError> {
        let whole = || {
            let (&[len, high, low], rest) = bytes.split_first_chunk()?;
            let (name, rest) = rest.split_at_checked(usize::from(len))?;
            let (&file_type, rest) = rest.split_first()?;
            let (ino, rest) = take_ino(rest, is_wide)?;
            Some((usize::from(u16::from_be_bytes([high, low])), name, file_type, ino, rest))
        };
        let (offset, name, file_type, ino, rest) =
            whole().ok_or_else(|| short(Self::STRUCTURE, 8, bytes.len()))?;
        require(Self::STRUCTURE, "length of a name", 0, !name.is_empty())?;
        let file_type = check_entry(Self::STRUCTURE, ino, name, file_type)?;
        Ok((DirEntry { ino: Ino(ino), name, file_type, offset }, rest))
    }
}

/// A block of entries, also one that is the whole directory.
#[derive(Clone, Copy, Debug)]
pub struct DirData<'a> {
    structure: Structure,
    /// The block up to where its entries end.
    bytes: &'a [u8],
}

impl<'a> DirData<'a> {
    /// Takes a verified block of several apart.
    ///
    /// # Errors
    ///
    /// [`FormatError::Short`]. Entries are checked when they are asked for.
    pub fn parse(block: &'a [u8]) -> Result<Self, FormatError> {
        Self::new(Structure::DirData, block)
    }

    /// Takes the entries of a verified block that is the whole directory apart.
    ///
    /// # Errors
    ///
    /// The field that cannot be so. Entries are checked when they are asked for.
    pub fn parse_block(block: &'a [u8]) -> Result<Self, FormatError> {
        let leaf = DirBlockLeaf::parse(block)?;
        let end = block.len() - size_of::<RawBlockTail>() - size_of_val(leaf.entries);
        Self::new(Structure::DirBlock, &block[..end])
    }

    fn new(structure: Structure, bytes: &'a [u8]) -> Result<Self, FormatError> {
        const LEN: usize = size_of::<RawDirDataHeader>();
        if bytes.len() < LEN {
            return Err(short(structure, LEN, bytes.len()));
        }
        Ok(Self { structure, bytes })
    }

    /// Returns the entries in their order, and where one is bad an error and no more.
    pub fn entries(&self) -> impl Iterator<Item = Result<DirEntry<'a>, FormatError>> + use<'a> {
        let data = *self;
        let mut at = size_of::<RawDirDataHeader>();
        core::iter::from_fn(move || {
            while at < data.bytes.len() {
                match data.piece(at) {
                    Ok((None, len)) => at += len,
                    Ok((Some(entry), len)) => {
                        at += len;
                        return Some(Ok(entry));
                    }
                    Err(error) => {
                        at = data.bytes.len();
                        return Some(Err(error));
                    }
                }
            }
            None
        })
    }

    /// Returns the entry that is so many bytes from the start of the block.
    ///
    /// # Errors
    ///
    /// [`FormatError::Range`] when there is none, or what is wrong with it.
    pub fn entry_at(&self, offset: usize) -> Result<DirEntry<'a>, FormatError> {
        let structure = self.structure;
        let found = holdfast_units::to_u64(offset);
        let inside = offset.is_multiple_of(ALIGNMENT)
            && (size_of::<RawDirDataHeader>()..self.bytes.len()).contains(&offset);
        require(structure, "offset of an entry", found, inside)?;
        let (entry, _) = self.piece(offset)?;
        entry.ok_or(FormatError::Range { structure, field: "offset of an entry", found })
    }

    /// Returns the entry, or that there is none, and its length, which is not 0.
    fn piece(&self, at: usize) -> Result<(Option<DirEntry<'a>>, usize), FormatError> {
        let structure = self.structure;
        let bytes = self.bytes.get(at..).unwrap_or_default();
        let too_short = || short(structure, at + 2 * ALIGNMENT, self.bytes.len());
        let word: &[u8; 8] = bytes.first_chunk().ok_or_else(too_short)?;
        let [tag_high, tag_low, len_high, len_low, ..] = *word;
        if u16::from_be_bytes([tag_high, tag_low]) == FREE_TAG {
            let len = usize::from(u16::from_be_bytes([len_high, len_low]));
            let found = holdfast_units::to_u64(len);
            require(
                structure,
                "length of free space",
                found,
                len.is_multiple_of(ALIGNMENT) && len > 0,
            )?;
            self.check_tag(at, bytes.get(..len))?;
            return Ok((None, len));
        }
        let ino = u64::from_be_bytes(*word);
        let name_len = usize::from(*bytes.get(8).ok_or_else(too_short)?);
        require(structure, "length of a name", 0, name_len > 0)?;
        // Inode, length, name, type and tag.
        let len = (8 + 1 + name_len + 1 + 2).next_multiple_of(ALIGNMENT);
        self.check_tag(at, bytes.get(..len))?;
        let name = bytes.get(9..9 + name_len).ok_or_else(too_short)?;
        let file_type = *bytes.get(9 + name_len).ok_or_else(too_short)?;
        let file_type = check_entry(structure, ino, name, file_type)?;
        Ok((Some(DirEntry { ino: Ino(ino), name, file_type, offset: at }), len))
    }

    /// Checks that an entry or a free place is inside the block, and ends with where it begins.
    fn check_tag(&self, at: usize, piece: Option<&[u8]>) -> Result<(), FormatError> {
        let tag = piece.and_then(|piece| piece.last_chunk());
        let tag = tag.ok_or_else(|| short(self.structure, at + 2 * ALIGNMENT, self.bytes.len()))?;
        let at = holdfast_units::to_u64(at);
        expect(self.structure, "tag of an entry", at, u64::from(u16::from_be_bytes(*tag)))
    }
}

/// Returns the entries that have a hash.
fn find(entries: &[RawDirLeafEntry], hash: u32) -> &[RawDirLeafEntry] {
    let first = entries.partition_point(|entry| entry.hash.get() < hash);
    let rest = entries.get(first..).unwrap_or_default();
    let same = rest.iter().take_while(|entry| entry.hash.get() == hash).count();
    rest.get(..same).unwrap_or_default()
}

impl RawDirLeafEntry {
    /// Returns where the entry is in the directory, in bytes, if it is of use.
    pub fn offset(&self) -> Option<u64> {
        let address = self.address.get();
        (address != 0).then(|| u64::from(address) * 8)
    }
}

/// The hashes at the end of a directory that is one block.
#[derive(Clone, Copy, Debug)]
pub struct DirBlockLeaf<'a> {
    /// The entries, in the order of their hashes.
    pub entries: &'a [RawDirLeafEntry],
}

impl<'a> DirBlockLeaf<'a> {
    /// Takes a verified block apart.
    ///
    /// # Errors
    ///
    /// The field that cannot be so.
    pub fn parse(block: &'a [u8]) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::DirBlock;
        let (rest, tail) = RawBlockTail::ref_from_suffix(block)
            .map_err(|_| short(STRUCTURE, size_of::<RawBlockTail>(), block.len()))?;
        let count = tail.count.get();
        let room = rest.get(size_of::<RawDirDataHeader>()..).unwrap_or_default();
        let count_len = usize::try_from(count).unwrap_or(usize::MAX);
        let entries = if count_len <= room.len() / size_of::<RawDirLeafEntry>() {
            <[RawDirLeafEntry]>::ref_from_suffix_with_elems(room, count_len).ok()
        } else {
            None
        };
        require(STRUCTURE, "count of hashes", u64::from(count), entries.is_some())?;
        Ok(Self { entries: entries.map(|(_, entries)| entries).unwrap_or_default() })
    }

    /// Returns the entries that have a hash.
    pub fn find(&self, hash: u32) -> &'a [RawDirLeafEntry] {
        find(self.entries, hash)
    }
}

/// A leaf of the hashes of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirLeaf<'a> {
    /// The leaf that follows, in blocks of the file, if there is one.
    pub next: Option<u32>,
    /// The entries, in the order of their hashes.
    pub entries: &'a [RawDirLeafEntry],
}

impl<'a> DirLeaf<'a> {
    /// Takes a verified block apart.
    ///
    /// # Errors
    ///
    /// The field that cannot be so.
    pub fn parse(block: &'a [u8]) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::DirNodeLeaf;
        let (header, rest) = RawDirLeafHeader::ref_from_prefix(block)
            .map_err(|_| short(STRUCTURE, size_of::<RawDirLeafHeader>(), block.len()))?;
        let count = header.count.get();
        let entries = <[RawDirLeafEntry]>::ref_from_prefix_with_elems(rest, usize::from(count));
        let entries = entries.ok().map(|(entries, _)| entries);
        require(STRUCTURE, "count", u64::from(count), entries.is_some())?;
        let next = header.info.forward.get();
        Ok(Self { next: (next != 0).then_some(next), entries: entries.unwrap_or_default() })
    }

    /// Returns the entries that have a hash.
    pub fn find(&self, hash: u32) -> &'a [RawDirLeafEntry] {
        find(self.entries, hash)
    }

    /// Returns whether the leaf that follows may have entries with a hash, too.
    pub fn may_go_on(&self, hash: u32) -> bool {
        self.entries.last().is_none_or(|entry| entry.hash.get() <= hash)
    }
}

/// A block of the free space of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DirFree<'a> {
    /// The block of entries that the first number is about.
    pub first: u32,
    /// The longest free place of each block of entries, in bytes; all ones where there is no block.
    pub longest: &'a [U16],
}

impl<'a> DirFree<'a> {
    /// Takes a verified block apart.
    ///
    /// # Errors
    ///
    /// The field that cannot be so.
    pub fn parse(block: &'a [u8]) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::DirFree;
        let (header, rest) = RawDirFreeHeader::ref_from_prefix(block)
            .map_err(|_| short(STRUCTURE, size_of::<RawDirFreeHeader>(), block.len()))?;
        let count = header.count.get();
        let room = rest.len() / size_of::<U16>();
        let fits = usize::try_from(count).ok().filter(|&count| count <= room);
        let longest = fits.and_then(|count| <[U16]>::ref_from_prefix_with_elems(rest, count).ok());
        require(STRUCTURE, "count", u64::from(count), longest.is_some())?;
        let longest = longest.map(|(longest, _)| longest).unwrap_or_default();
        Ok(Self { first: header.first.get(), longest })
    }
}

#[cfg(test)]
mod tests;
