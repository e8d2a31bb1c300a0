use proptest::prelude::*;

use super::*;

/// Appends an entry to a block.
fn push(block: &mut Vec<u8>, ino: u64, name: &[u8], file_type: u8) {
    let at = block.len();
    block.extend(ino.to_be_bytes());
    block.push(u8::try_from(name.len()).unwrap());
    block.extend(name);
    block.push(file_type);
    block.resize((block.len() + 2).next_multiple_of(8) - 2, 0);
    block.extend(u16::try_from(at).unwrap().to_be_bytes());
}

/// Appends free space to a block.
fn push_free(block: &mut Vec<u8>, len: u16) {
    let at = block.len();
    block.extend([0xff, 0xff]);
    block.extend(len.to_be_bytes());
    block.resize(at + usize::from(len) - 2, 0);
    block.extend(u16::try_from(at).unwrap().to_be_bytes());
}

fn block() -> Vec<u8> {
    let mut block = vec![0; 64];
    push(&mut block, 131, b".", 2);
    push_free(&mut block, 24);
    push(&mut block, 4711, b"file", 1);
    block
}

fn names(data: &DirData<'_>) -> Result<Vec<Vec<u8>>, FormatError> {
    data.entries().map(|entry| entry.map(|entry| entry.name.to_vec())).collect()
}

#[test]
fn entries_are_found_around_free_space() {
    let block = block();
    let data = DirData::parse(&block).unwrap();
    assert_eq!(names(&data), Ok(vec![b".".to_vec(), b"file".to_vec()]));
}

#[test]
fn an_entry_is_found_at_its_offset_and_nowhere_else() {
    let block = block();
    let data = DirData::parse(&block).unwrap();
    let entry = data.entry_at(64 + 16 + 24).unwrap();
    assert_eq!(
        (entry.ino, entry.name, entry.file_type),
        (Ino(4711), &b"file"[..], FileType::Regular)
    );
    for offset in [0, 65, 64 + 16, 64 + 24, block.len(), usize::MAX] {
        data.entry_at(offset).unwrap_err();
    }
}

#[test]
fn bad_entries_are_refused() {
    for (at, value) in [
        // No inode, no name, a slash, a type that does not exist, another place.
        (71, 0),
        (72, 0),
        (73, b'/'),
        (74, 9),
        (79, 65),
    ] {
        let mut block = block();
        block[at] = value;
        let data = DirData::parse(&block).unwrap();
        assert!(names(&data).is_err(), "byte {at}");
    }
}

#[test]
fn a_directory_of_one_block_ends_with_its_hashes() {
    let mut block = block();
    for word in [0x2e_u32, 8, 0x77, 13, 2, 0] {
        block.extend(word.to_be_bytes());
    }
    let leaf = DirBlockLeaf::parse(&block).unwrap();
    let found: Vec<_> = leaf.find(0x77).iter().map(RawDirLeafEntry::offset).collect();
    assert_eq!(found, [Some(104)]);
    assert_eq!(names(&DirData::parse_block(&block).unwrap()).unwrap().len(), 2);
}

#[test]
fn more_hashes_than_the_block_has_room_for_are_refused() {
    let mut block = block();
    block.extend([0xff; 8]);
    DirBlockLeaf::parse(&block).unwrap_err();
    DirData::parse_block(&block).unwrap_err();
}

#[test]
fn a_directory_in_its_inode_has_narrow_or_wide_numbers() {
    let narrow = [&[1, 0, 0, 0, 0, 128, 3, 0, 96][..], b"abc", &[1, 0, 0, 0, 131]].concat();
    let wide =
        [&[1, 1, 0, 0, 0, 0, 0, 0, 0, 128, 3, 0, 96][..], b"abc", &[1, 0, 0, 0, 1, 0, 0, 0, 131]]
            .concat();
    for (fork, ino) in [(narrow, 131), (wide, (1 << 32) + 131)] {
        let dir = ShortDir::parse(&fork).unwrap();
        let entries: Result<Vec<_>, _> = dir.entries().collect();
        let expected =
            DirEntry { ino: Ino(ino), name: b"abc", file_type: FileType::Regular, offset: 96 };
        assert_eq!((dir.parent, entries), (Ino(128), Ok(vec![expected])));
        let cut = ShortDir::parse(&fork[..fork.len() - 1]).unwrap();
        assert!(cut.entries().any(|entry| entry.is_err()));
    }
}

#[test]
fn entries_with_the_same_hash_are_all_found() {
    let mut leaf = vec![0; 64];
    leaf[57] = 4;
    for word in [5_u32, 1, 7, 2, 7, 3, 9, 4] {
        leaf.extend(word.to_be_bytes());
    }
    let leaf = DirLeaf::parse(&leaf).unwrap();
    let found: Vec<_> = leaf.find(7).iter().map(|entry| entry.address.get()).collect();
    assert_eq!(found, [2, 3]);
    assert!(leaf.find(6).is_empty() && leaf.may_go_on(9) && !leaf.may_go_on(7));
}

proptest! {
    #[test]
    fn no_bytes_make_them_panic_or_go_on_for_ever(bytes: Vec<u8>, offset: usize) {
        let _leaf = DirLeaf::parse(&bytes);
        let _free = DirFree::parse(&bytes);
        if let Ok(dir) = ShortDir::parse(&bytes) {
            prop_assert!(dir.entries().count() <= 256);
        }
        for data in [DirData::parse(&bytes), DirData::parse_block(&bytes)].into_iter().flatten() {
            prop_assert!(data.entries().count() <= bytes.len());
            let _entry = data.entry_at(offset);
        }
    }

    #[test]
    fn no_entries_make_them_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut block = block();
        block.extend(&bytes);
        let data = DirData::parse(&block).unwrap();
        prop_assert!(data.entries().count() <= bytes.len() + 3);
    }
}
