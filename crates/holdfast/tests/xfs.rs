//! `holdfast xfs` as a user runs it, on an image that Linux made.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// What the tests of `holdfast-xfs` read, too.
const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../holdfast-xfs/tests/golden/linux");

/// Unpacks the image: its size, and its sectors behind their offsets.
fn unpack(dir: &TempDir) -> PathBuf {
    let path = dir.path().join("linux.img");
    let bytes = fs::read(GOLDEN).unwrap();
    let (size, rest) = bytes.split_first_chunk().unwrap();
    let file = File::create(&path).unwrap();
    file.set_len(u64::from_le_bytes(*size)).unwrap();
    for piece in rest.chunks_exact(8 + 512) {
        let (offset, sector) = piece.split_first_chunk().unwrap();
        file.write_all_at(sector, u64::from_le_bytes(*offset)).unwrap();
    }
    path
}

fn run(image: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    command.arg("xfs").arg(image).args(arguments).output().unwrap()
}

fn ok(image: &Path, arguments: &[&str]) -> String {
    let output = run(image, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that must fail, and returns why.
fn fails(image: &Path, arguments: &[&str], code: i32) -> String {
    let output = run(image, arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {text}");
    text
}

fn json(image: &Path, arguments: &[&str]) -> Value {
    serde_json::from_str(&ok(image, arguments)).unwrap()
}

/// Finds where an inode is, by its number behind `IN`.
fn flip_inode(image: &Path, ino: u64) {
    let file = File::options().read(true).write(true).open(image).unwrap();
    let len = file.metadata().unwrap().len();
    let mut sector = [0; 512];
    let is_it =
        |sector: &[u8; 512]| sector.starts_with(b"IN") && sector[152..160] == ino.to_be_bytes();
    for offset in (0..len).step_by(512) {
        file.read_exact_at(&mut sector, offset).unwrap();
        if is_it(&sector) {
            file.write_all_at(&[sector[56] ^ 1], offset + 56).unwrap();
            return;
        }
    }
    panic!("there is no inode {ino}");
}

/// Returns where the log begins, in bytes, from what the superblock says.
fn log_start(file: &File) -> u64 {
    let mut sector = [0; 512];
    file.read_exact_at(&mut sector, 0).unwrap();
    let word = |at: usize| u64::from(u32::from_be_bytes(*sector[at..].first_chunk().unwrap()));
    let (block_size, group_blocks, group_bits) = (word(4), word(84), sector[124]);
    let start = (word(48) << 32) | word(52);
    let (group, block) = (start >> group_bits, start & ((1 << group_bits) - 1));
    (group * group_blocks + block) * block_size
}

#[test]
fn a_directory_is_listed_by_name_at_length_and_as_json() {
    let dir = TempDir::new().unwrap();
    let image = unpack(&dir);
    assert_eq!(ok(&image, &["ls", "/short"]), "file-1\nfile-2\n");
    let long = ok(&image, &["ls", "-l", "/"]);
    assert!(long.contains(" link -> data\n") && long.contains("259, 70000"), "{long}");
    assert!(long.lines().any(|line| line.starts_with("prw-r--r--")), "{long}");
    let late = ok(&image, &["ls", "-l", "/short"]);
    assert!(late.contains("1901-12-13 20:45:52 file-1"), "{late}");
    let all = json(&image, &["ls", "-R", "--json"]);
    assert_eq!(all.as_array().unwrap().len(), 4 + 2 + 60 + 249 + 799 + 10);
    let recursive = ok(&image, &["ls", "-R"]);
    assert!(recursive.contains("\n\n/short:\nfile-1\nfile-2\n"), "{recursive}");
}

#[test]
fn a_file_is_shown_with_its_attributes_and_extents() {
    let dir = TempDir::new().unwrap();
    let image = unpack(&dir);
    let file = &json(&image, &["stat", "--json", "/data"])[0];
    assert_eq!((&file["type"], &file["size"]), (&"file".into(), &8.into()));
    assert_eq!(file["attributes"][0]["name"], "user.short");
    assert_eq!(file["attributes"][0]["value"], "76616c7565");
    let text = ok(&image, &["stat", "/data", "/link"]);
    assert!(text.contains("attribute   user.short = \"value\"\n"), "{text}");
    assert!(text.contains("path        /link -> data\n"), "{text}");
    let extents = &json(&image, &["extents", "--json", "/reserved"])[0]["extents"];
    let unwritten: Vec<_> =
        extents.as_array().unwrap().iter().map(|extent| &extent["unwritten"]).collect();
    assert_eq!(unwritten, [true, false, true]);
    assert!(ok(&image, &["extents", "/reserved"]).contains("unwritten\n"));
}

#[test]
fn files_are_printed_and_links_followed() {
    let dir = TempDir::new().unwrap();
    let image = unpack(&dir);
    assert_eq!(ok(&image, &["cat", "/data", "/link"]), "holdfastholdfast");
    assert_eq!(run(&image, &["cat", "/reserved"]).stdout.len(), 64 << 10);
    let why = fails(&image, &["cat", "/short"], 2);
    assert!(why.contains("/short") && why.contains("not a regular file"), "{why}");
    fails(&image, &["cat", "/none"], 2);
}

#[test]
fn a_tree_is_copied_with_its_holes_and_links() {
    let dir = TempDir::new().unwrap();
    let (image, copy) = (unpack(&dir), dir.path().join("copy"));
    let target = copy.to_str().unwrap();
    ok(&image, &["get", "/", target]);
    assert_eq!(fs::read(copy.join("data")).unwrap(), b"holdfast");
    let [data, hard] = ["data", "hard"].map(|name| fs::metadata(copy.join(name)).unwrap());
    assert_eq!((data.ino(), data.permissions().mode() & 0o777), (hard.ino(), 0o644));
    assert_eq!(fs::read_link(copy.join("link")).unwrap(), Path::new("data"));
    assert_eq!(fs::read_dir(copy.join("node")).unwrap().count(), 799);
    let late = fs::metadata(copy.join("data")).unwrap();
    let original = &json(&image, &["stat", "--json", "/data"])[0]["modified"];
    assert_eq!(original["seconds"], late.mtime());
    let reserved = fs::metadata(copy.join("reserved")).unwrap();
    assert!(reserved.len() == 64 << 10 && reserved.blocks() * 512 <= 24 << 10);
    let why = fails(&image, &["get", "/data", target], 2);
    assert!(why.contains("exists"), "{why}");
}

#[test]
fn what_is_corrupt_is_named_and_the_rest_is_copied() {
    let dir = TempDir::new().unwrap();
    let (image, copy) = (unpack(&dir), dir.path().join("copy"));
    let ino = json(&image, &["stat", "--json", "/short/file-2"])[0]["inode"].as_u64().unwrap();
    flip_inode(&image, ino);
    let why = fails(&image, &["stat", "/short/file-2"], 1);
    assert!(why.contains("/short/file-2") && why.contains(&format!("inode {ino}")), "{why}");
    assert!(why.contains("inode: checksum mismatch"), "{why}");
    let why = fails(&image, &["get", "/", copy.to_str().unwrap()], 1);
    assert!(why.contains("/short/file-2"), "{why}");
    assert!(copy.join("short/file-1").exists() && !copy.join("short/file-2").exists());
}

#[test]
fn a_volume_is_read_as_the_image_that_is_in_it() {
    let dir = TempDir::new().unwrap();
    let (image, volume) = (unpack(&dir), dir.path().join("volume.hf"));
    let mut import = Command::new(env!("CARGO_BIN_EXE_holdfast"));
    assert!(import.arg("import").arg(&image).arg(&volume).status().unwrap().success());
    let list = ["ls", "-R", "--json"];
    assert_eq!(ok(&volume, &list), ok(&image, &list));
}

#[test]
fn a_dirty_log_and_what_is_no_file_system_are_refused() {
    let dir = TempDir::new().unwrap();
    let image = unpack(&dir);
    let other = dir.path().join("other");
    fs::write(&other, [7; 8192]).unwrap();
    let why = fails(&other, &["ls"], 2);
    assert!(why.contains("holds no XFS"), "{why}");
    // A cycle, and no record.
    let file = File::options().read(true).write(true).open(&image).unwrap();
    file.write_all_at(&[0, 0, 0, 1], log_start(&file)).unwrap();
    let why = fails(&image, &["ls"], 2);
    assert!(why.contains("the log is dirty") && why.contains("--no-recovery"), "{why}");
    assert_eq!(ok(&image, &["--no-recovery", "cat", "/data"]), "holdfast");
}

/// Puts files into one of an image or a volume, and returns what it has then, and what it must have.
fn put(image: &Path, dir: &TempDir) -> (Vec<u8>, Vec<u8>) {
    let (long, short) = (dir.path().join("long"), dir.path().join("short"));
    let mut expected: Vec<u8> = (0..300_001_u32).map(|n| n.to_le_bytes()[1]).collect();
    fs::write(&long, &expected).unwrap();
    fs::write(&short, [7; 777]).unwrap();
    ok(image, &["put", long.to_str().unwrap(), "/data"]);
    ok(image, &["put", short.to_str().unwrap(), "/data", "--offset", "12345"]);
    expected[12345..12345 + 777].fill(7);
    (ok_bytes(image, &["cat", "/data"]), expected)
}

fn ok_bytes(image: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = run(image, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Makes an image with a file, as any `mkfs.xfs` does.
fn mkfs(dir: &TempDir) -> PathBuf {
    let [image, proto, contents] = ["image", "proto", "contents"].map(|name| dir.path().join(name));
    fs::write(&contents, "holdfast").unwrap();
    fs::write(&proto, format!("/\n0 0\nd--755 0 0\ndata ---644 0 0 {}\n$\n", contents.display()))
        .unwrap();
    let mut mkfs = Command::new("mkfs.xfs");
    mkfs.arg("-q").arg("-p").arg(&proto);
    mkfs.arg("-d").arg(format!("file,name={},size=320m", image.display()));
    assert!(mkfs.status().unwrap().success());
    image
}

#[test]
fn what_is_put_into_a_file_is_there_and_xfs_repair_finds_nothing() {
    let dir = TempDir::new().unwrap();
    let image = mkfs(&dir);
    let (found, expected) = put(&image, &dir);
    assert!(found == expected);
    let mut repair = Command::new("xfs_repair");
    let repaired = repair.args(["-n", "-f"]).arg(&image).output().unwrap();
    assert!(repaired.status.success(), "{}", String::from_utf8_lossy(&repaired.stdout));
    fails(&image, &["put", "/no/such/file", "/data"], 2);
    fails(&image, &["put", image.to_str().unwrap(), "/"], 2);
    fails(&image, &["--no-recovery", "put", image.to_str().unwrap(), "/data"], 2);
}

#[test]
fn what_is_put_into_a_file_on_a_volume_is_there_and_every_sector_is_intact() {
    let dir = TempDir::new().unwrap();
    let (image, volume) = (unpack(&dir), dir.path().join("disk.hf"));
    let holdfast = || Command::new(env!("CARGO_BIN_EXE_holdfast"));
    assert!(holdfast().arg("import").args([&image, &volume]).output().unwrap().status.success());
    let (found, expected) = put(&volume, &dir);
    assert!(found == expected);
    assert!(holdfast().arg("verify").arg(&volume).output().unwrap().status.success());
}
