//! Inodes.

use core::mem::offset_of;

use zerocopy::byteorder::big_endian::{U16, U32, U64};
use zerocopy::byteorder::little_endian;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::address::Ino;
use crate::block::check_crc;
use crate::error::{FormatError, Structure, expect, require, short};
use crate::extent::RawExtent;
use crate::time::Timestamp;

/// The core of an inode (`xfs_dinode`, version 3). The forks follow.
#[derive(Clone, Debug, FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned)]
#[repr(C)]
pub struct RawInode {
    /// `IN`.
    pub magic: [u8; 2],
    /// Type and permissions, as stat(2) has them; 0 when the inode is free.
    pub mode: U16,
    /// 3.
    pub version: u8,
    /// How the data fork is stored.
    pub format: u8,
    /// 0.
    pub old_links: U16,
    /// The owner.
    pub uid: U32,
    /// The group.
    pub gid: U32,
    /// How many names it has.
    pub links: U32,
    /// The lower half of the project's number.
    pub project_low: U16,
    /// The higher half of the project's number.
    pub project_high: U16,
    /// How many extents the data fork has, when [`Flags::LARGE_COUNTS`] is set.
    pub data_extents_large: U64,
    /// When it was last read.
    pub accessed: U64,
    /// When its data were last changed.
    pub modified: U64,
    /// When it was last changed itself.
    pub changed: U64,
    /// The size of the file, in bytes.
    pub size: U64,
    /// How many blocks it takes, its own metadata included.
    pub blocks: U64,
    /// How many blocks are to be allocated at a time.
    pub extent_size: U32,
    /// How many extents the data fork has; with [`Flags::LARGE_COUNTS`] the attribute fork.
    pub extents: U32,
    /// How many extents the attribute fork has; with [`Flags::LARGE_COUNTS`] 0.
    pub attribute_extents: U16,
    /// Where the attribute fork begins, in units of 8 bytes behind the core; 0 for none.
    pub fork_offset: u8,
    /// How the attribute fork is stored.
    pub attribute_format: u8,
    /// 0.
    pub dm_event_mask: U32,
    /// 0.
    pub dm_state: U16,
    /// [`Flags`].
    pub flags: U16,
    /// Tells this inode from those that had its number before.
    pub generation: U32,
    /// The next in a list of files that have no name any more, or all ones.
    pub next_unlinked: U32,
    /// CRC-32C of the inode, computed with 0 in this field.
    pub crc: little_endian::U32,
    /// How often it was changed.
    pub changes: U64,
    /// When it was last changed, as a place in the log.
    pub lsn: U64,
    /// More [`Flags`].
    pub more_flags: U64,
    /// How many blocks are to be allocated at a time for a copy on write.
    pub cow_extent_size: U32,
    /// 0.
    pub padding: [u8; 12],
    /// When it was made.
    pub created: U64,
    /// Its number.
    pub ino: U64,
    /// Of which file system it is.
    pub uuid: [u8; 16],
}

const _: () = {
    assert!(size_of::<RawInode>() == 176);
    assert!(offset_of!(RawInode, data_extents_large) == 24);
    assert!(offset_of!(RawInode, size) == 56);
    assert!(offset_of!(RawInode, attribute_extents) == 80);
    assert!(offset_of!(RawInode, crc) == 100);
    assert!(offset_of!(RawInode, more_flags) == 120);
    assert!(offset_of!(RawInode, ino) == 152);
};

/// What the flags of an inode mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags;

impl Flags {
    /// In `flags`: the data are on the realtime device.
    pub const REALTIME: u16 = 1;
    /// In `more_flags`: extents may be shared with other files.
    pub const SHARED: u64 = 1 << 1;
    /// In `more_flags`: timestamps are large (`bigtime`).
    pub const LARGE_TIMES: u64 = 1 << 3;
    /// In `more_flags`: counts of extents are large (`nrext64`).
    pub const LARGE_COUNTS: u64 = 1 << 4;
}

/// What a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A block device.
    Block,
    /// A character device.
    Character,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

impl Kind {
    /// Returns what the type in a mode means.
    pub const fn of_mode(mode: u16) -> Option<Self> {
        Some(match mode >> 12 {
            0o1 => Self::Fifo,
            0o2 => Self::Character,
            0o4 => Self::Directory,
            0o6 => Self::Block,
            0o10 => Self::Regular,
            0o12 => Self::Symlink,
            0o14 => Self::Socket,
            _ => return None,
        })
    }

    /// Returns whether there is nothing but the inode.
    pub const fn is_special(self) -> bool {
        matches!(self, Self::Block | Self::Character | Self::Fifo | Self::Socket)
    }
}

/// How a fork of an inode is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForkFormat {
    /// It holds the number of a device.
    Device,
    /// It holds the contents.
    Local,
    /// It holds the extents.
    Extents,
    /// It holds the root of a tree of extents.
    Btree,
}

impl ForkFormat {
    const fn decode(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Device,
            1 => Self::Local,
            2 => Self::Extents,
            3 => Self::Btree,
            _ => return None,
        })
    }
}

/// A verified inode.
#[derive(Clone, Copy, Debug)]
pub struct Inode<'a> {
    /// Its core.
    pub raw: &'a RawInode,
    /// What it is.
    pub kind: Kind,
    /// How the data fork is stored.
    pub data_format: ForkFormat,
    /// The data fork.
    pub data_fork: &'a [u8],
    /// How the attribute fork is stored, and its bytes, if there is one.
    pub attribute_fork: Option<(ForkFormat, &'a [u8])>,
}

impl<'a> Inode<'a> {
    const STRUCTURE: Structure = Structure::Inode;

    /// Returns whether the bytes are an inode that is free. Nothing else was checked.
    pub fn is_free(bytes: &[u8]) -> bool {
        RawInode::ref_from_prefix(bytes)
            .is_ok_and(|(raw, _)| raw.magic == *b"IN" && raw.mode.get() == 0)
    }

    /// Verifies the bytes of an inode, which are as many as inodes of the file system have.
    ///
    /// # Errors
    ///
    /// What is wrong first. A free inode has a mode that cannot be.
    pub fn parse(bytes: &'a [u8], uuid: &[u8; 16], ino: Ino) -> Result<Self, FormatError> {
        let inode = Self::verify(bytes, uuid, ino)?;
        inode.check_data_fork()?;
        inode.check_attribute_fork()?;
        Ok(inode)
    }

    /// Checks that this is the inode that was looked for, and finds its forks.
    fn verify(bytes: &'a [u8], uuid: &[u8; 16], ino: Ino) -> Result<Self, FormatError> {
        const STRUCTURE: Structure = Structure::Inode;
        let (raw, literal) = RawInode::ref_from_prefix(bytes)
            .map_err(|_| short(STRUCTURE, size_of::<RawInode>(), bytes.len()))?;
        let magic = |bytes| u64::from(u16::from_be_bytes(bytes));
        expect(STRUCTURE, "magic", magic(*b"IN"), magic(raw.magic))?;
        expect(STRUCTURE, "version", 3, u64::from(raw.version))?;
        check_crc(STRUCTURE, bytes, offset_of!(RawInode, crc))?;
        if raw.uuid != *uuid {
            return Err(FormatError::Uuid { structure: STRUCTURE });
        }
        expect(STRUCTURE, "number", ino.0, raw.ino.get())?;
        let (mode, size) = (raw.mode.get(), raw.size.get());
        let range = |field, found| FormatError::Range { structure: STRUCTURE, field, found };
        let kind = Kind::of_mode(mode).ok_or_else(|| range("mode", u64::from(mode)))?;
        require(STRUCTURE, "size", size, size <= i64::MAX.unsigned_abs())?;
        let format = u64::from(raw.format);
        let data_format =
            ForkFormat::decode(raw.format).ok_or_else(|| range("format of the data", format))?;
        let offset = usize::from(raw.fork_offset) * 8;
        require(STRUCTURE, "fork offset", u64::from(raw.fork_offset), offset < literal.len())?;
        let (data_fork, attribute_fork) = if offset == 0 {
            (literal, None)
        } else {
            let (data, attributes) = literal.split_at(offset);
            let format = ForkFormat::decode(raw.attribute_format)
                .filter(|&format| format != ForkFormat::Device)
                .ok_or_else(|| {
                    range("format of the attributes", u64::from(raw.attribute_format))
                })?;
            (data, Some((format, attributes)))
        };
        Ok(Self { raw, kind, data_format, data_fork, attribute_fork })
    }

    fn check_data_fork(&self) -> Result<(), FormatError> {
        let size = self.raw.size.get();
        let fits = |len: u64| len <= holdfast_units::to_u64(self.data_fork.len());
        let holds = match (self.kind, self.data_format) {
            (kind, ForkFormat::Device) => kind.is_special() && fits(4),
            (Kind::Directory | Kind::Symlink, ForkFormat::Local) => fits(size),
            (Kind::Regular | Kind::Directory | Kind::Symlink, ForkFormat::Extents) => {
                let bytes = self.data_extents().checked_mul(size_of::<RawExtent>() as u64);
                bytes.is_some_and(fits)
            }
            (Kind::Regular | Kind::Directory, ForkFormat::Btree) => true,
            _ => false,
        };
        require(Self::STRUCTURE, "format of the data", u64::from(self.raw.format), holds)?;
        let is_sized = self.kind != Kind::Symlink || size > 0;
        require(Self::STRUCTURE, "size", size, is_sized)
    }

    fn check_attribute_fork(&self) -> Result<(), FormatError> {
        let count = self.attribute_extents();
        let holds = match self.attribute_fork {
            None => count == 0,
            Some((ForkFormat::Extents, fork)) => {
                u64::from(count) * size_of::<RawExtent>() as u64 <= fork.len() as u64
            }
            Some(_) => true,
        };
        require(Self::STRUCTURE, "count of attribute extents", u64::from(count), holds)
    }

    const fn has(&self, flag: u64) -> bool {
        self.raw.more_flags.get() & flag != 0
    }

    /// Returns how many extents the data fork has.
    pub const fn data_extents(&self) -> u64 {
        if self.has(Flags::LARGE_COUNTS) {
            self.raw.data_extents_large.get()
        } else {
            self.raw.extents.get() as u64
        }
    }

    /// Returns how many extents the attribute fork has.
    pub const fn attribute_extents(&self) -> u32 {
        if self.has(Flags::LARGE_COUNTS) {
            self.raw.extents.get()
        } else {
            self.raw.attribute_extents.get() as u32
        }
    }

    /// Returns whether blocks of the file may be shared with other files.
    pub const fn may_be_shared(&self) -> bool {
        self.has(Flags::SHARED)
    }

    /// Returns whether the data are on the realtime device.
    pub const fn is_realtime(&self) -> bool {
        self.raw.flags.get() & Flags::REALTIME != 0
    }

    /// Returns the number of the project.
    pub fn project(&self) -> u32 {
        (u32::from(self.raw.project_high.get()) << 16) | u32::from(self.raw.project_low.get())
    }

    /// Returns the major and minor number of a device.
    pub fn device(&self) -> Option<(u32, u32)> {
        let (ForkFormat::Device, Kind::Block | Kind::Character) = (self.data_format, self.kind)
        else {
            return None;
        };
        let device = u32::from_be_bytes(*self.data_fork.first_chunk()?);
        Some(((device >> 18) & 0x3fff, device & 0x3_ffff))
    }

    /// Returns when the file was last read, modified, changed and made.
    pub fn times(&self) -> [Timestamp; 4] {
        let RawInode { accessed, modified, changed, created, .. } = self.raw;
        [accessed, modified, changed, created]
            .map(|time| Timestamp::decode(time.get(), self.has(Flags::LARGE_TIMES)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::FromZeros;

    use super::*;
    use crate::block::tests::seal;

    const UUID: [u8; 16] = [5; 16];
    const INO: Ino = Ino(131);

    fn with(change: impl FnOnce(&mut RawInode)) -> Vec<u8> {
        let mut raw = RawInode::new_zeroed();
        raw.magic = *b"IN";
        raw.version = 3;
        raw.mode = 0o100_644.into();
        raw.format = 2;
        raw.attribute_format = 2;
        raw.ino = INO.0.into();
        raw.uuid = UUID;
        change(&mut raw);
        let mut bytes = raw.as_bytes().to_vec();
        bytes.resize(512, 0);
        seal(&mut bytes, offset_of!(RawInode, crc));
        bytes
    }

    #[test]
    fn an_inode_has_its_forks_where_it_says() {
        let bytes = with(|raw| raw.fork_offset = 20);
        let inode = Inode::parse(&bytes, &UUID, INO).unwrap();
        let (format, attributes) = inode.attribute_fork.unwrap();
        assert_eq!((inode.kind, inode.data_fork.len()), (Kind::Regular, 160));
        assert_eq!((format, attributes.len()), (ForkFormat::Extents, 336 - 160));
    }

    #[test]
    fn counts_of_extents_have_two_places() {
        let counts = |more: u64| {
            let bytes = with(|raw| {
                raw.more_flags = more.into();
                raw.data_extents_large = 3.into();
                raw.extents = 2.into();
                raw.attribute_extents = 1.into();
                raw.fork_offset = 20;
            });
            let inode = Inode::parse(&bytes, &UUID, INO).unwrap();
            (inode.data_extents(), inode.attribute_extents())
        };
        assert_eq!((counts(0), counts(Flags::LARGE_COUNTS)), ((2, 1), (3, 2)));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let changes: [fn(&mut RawInode); 9] = [
            |raw| raw.mode = 0.into(),
            |raw| raw.ino = 132.into(),
            |raw| raw.uuid = [6; 16],
            |raw| raw.size = (1 << 63).into(),
            |raw| raw.fork_offset = 42,
            |raw| raw.format = 1,
            |raw| raw.extents = 22.into(),
            |raw| raw.attribute_extents = 1.into(),
            |raw| raw.more_flags = Flags::LARGE_COUNTS.into(),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            // Only the last needs this, for which nothing else changes.
            let bytes = with(|raw| {
                raw.data_extents_large = (1 << 60).into();
                change(raw);
            });
            assert!(Inode::parse(&bytes, &UUID, INO).is_err(), "change {index}");
        }
        Inode::parse(&with(|_| {}), &UUID, INO).unwrap();
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_found(byte in 0..512_usize, bit in 0..8_u32) {
            let mut bytes = with(|_| {});
            bytes[byte] ^= 1 << bit;
            prop_assert!(Inode::parse(&bytes, &UUID, INO).is_err());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 176..600)) {
            let mut bytes = bytes;
            let raw = with(|_| {});
            bytes[..2].copy_from_slice(&raw[..2]);
            bytes[4] = 3;
            bytes[152..176].copy_from_slice(&raw[152..176]);
            seal(&mut bytes, offset_of!(RawInode, crc));
            if let Ok(inode) = Inode::parse(&bytes, &UUID, INO) {
                let _device = inode.device();
                let _times = inode.times();
            }
        }
    }
}
