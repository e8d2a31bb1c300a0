use proptest::prelude::*;
use zerocopy::FromZeros;

use super::*;
use crate::block::tests::seal;

fn raw() -> RawSuperblock {
    let mut raw = RawSuperblock::new_zeroed();
    raw.magic = *b"XFSB";
    raw.block_size = 4096.into();
    raw.blocks = 3500.into();
    raw.uuid = [1; 16];
    raw.log_start = 1030.into();
    raw.root = 128.into();
    raw.ag_blocks = 1000.into();
    raw.ag_count = 4.into();
    raw.log_blocks = 900.into();
    raw.version = 0xb4a5.into();
    raw.sector_size = 512.into();
    raw.inode_size = 512.into();
    raw.inodes_per_block = 8.into();
    raw.label = *b"holdfast\0\0\0\0";
    (raw.block_bits, raw.sector_bits, raw.inode_size_bits) = (12, 9, 9);
    (raw.inode_bits, raw.ag_block_bits) = (3, 10);
    raw.read_only_compatible = 0b1111.into();
    raw.incompatible = 0b1011.into();
    raw
}

fn bytes(raw: &RawSuperblock) -> Vec<u8> {
    let mut bytes = raw.as_bytes().to_vec();
    bytes.resize(512, 0);
    seal(&mut bytes, offset_of!(RawSuperblock, crc));
    bytes.resize(SECTOR_MAX, 0xaa);
    bytes
}

#[test]
fn a_superblock_says_where_things_are() {
    let superblock = Superblock::parse(&bytes(&raw())).unwrap();
    assert_eq!(superblock.geometry, crate::geometry::tests::geometry());
    assert_eq!(superblock.log, Some((FsBlock(1030), 900)));
    assert_eq!(superblock.label(), b"holdfast");
    assert!(superblock.features.forbidding().is_empty());
}

#[test]
fn unknown_features_are_named() {
    let mut raw = raw();
    raw.incompatible = 0x8000_0311.into();
    raw.read_only_compatible = 0b10010.into();
    let features = Superblock::parse(&bytes(&raw)).unwrap().features;
    assert_eq!(features.forbidding().to_string(), "needsrepair, metadir, zoned, bit 31");
    assert_eq!(features.forbidding_writes().to_string(), "bit 4");
    assert_eq!(features.read_only_compatible.to_string(), "rmapbt, bit 4");
}

#[test]
fn metadata_may_have_a_uuid_of_their_own() {
    let mut raw = raw();
    raw.metadata_uuid = [2; 16];
    assert_eq!(Superblock::parse(&bytes(&raw)).unwrap().metadata_uuid, [1; 16]);
    raw.incompatible = 0b1111.into();
    assert_eq!(Superblock::parse(&bytes(&raw)).unwrap().metadata_uuid, [2; 16]);
}

#[test]
fn what_is_no_xfs_or_an_older_one_is_told_apart() {
    let mut old = raw();
    old.version = 0xb4a4.into();
    assert_eq!(Superblock::parse(&bytes(&old)).err(), Some(FormatError::Version { found: 4 }));
    let foreign = Superblock::parse(&[0; 512]).err();
    assert_eq!(foreign, Some(FormatError::Foreign { found: [0; 4] }));
}

#[test]
fn sizes_that_cannot_be_are_refused() {
    let changes: [fn(&mut RawSuperblock); 17] = [
        |raw| raw.block_size = 8192.into(),
        |raw| raw.block_bits = 13,
        |raw| raw.sector_bits = 80,
        |raw| raw.inode_bits = 4,
        |raw| raw.inodes_per_block = 16.into(),
        |raw| raw.ag_block_bits = 11,
        |raw| raw.ag_count = 0.into(),
        |raw| raw.ag_count = 3.into(),
        |raw| raw.ag_count = 5.into(),
        |raw| raw.ag_blocks = 0.into(),
        |raw| raw.ag_blocks = u32::MAX.into(),
        |raw| raw.blocks = u64::MAX.into(),
        |raw| raw.dir_block_bits = 5,
        |raw| raw.dir_block_bits = 255,
        |raw| raw.root = 0.into(),
        |raw| raw.log_blocks = 1000.into(),
        |raw| raw.in_progress = 1,
    ];
    for (index, change) in changes.into_iter().enumerate() {
        let mut raw = raw();
        change(&mut raw);
        assert!(Superblock::parse(&bytes(&raw)).is_err(), "change {index}");
    }
}

proptest! {
    #[test]
    fn a_flipped_bit_is_found(byte in 0..512_usize, bit in 0..8_u32) {
        let mut bytes = bytes(&raw());
        bytes[byte] ^= 1 << bit;
        prop_assert!(Superblock::parse(&bytes).is_err());
    }

    #[test]
    fn no_sealed_bytes_make_it_panic(changes in proptest::collection::vec((4..264_usize, any::<u8>()), 1..8)) {
        let mut bytes = bytes(&raw());
        for (at, value) in changes {
            bytes[at] = value;
        }
        bytes.truncate(512);
        seal(&mut bytes, offset_of!(RawSuperblock, crc));
        if let Ok(superblock) = Superblock::parse(&bytes) {
            let geometry = superblock.geometry;
            for number in [0, 1 << 20, 1 << 40, u64::MAX] {
                let _address = geometry.address_of(FsBlock(number));
                let _place = geometry.locate(Ino(number));
            }
        }
    }
}
