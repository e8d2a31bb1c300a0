//! The program as a user runs it: what it says, and what it exits with.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use holdfast_virtio_driver::{Client, Options, Request, Segment, Shape};
use serde_json::Value;

fn holdfast(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast")).args(arguments).output().expect("it runs")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path_in(dir: &tempfile::TempDir, name: &str) -> PathBuf {
    dir.path().join(name)
}

fn str_of(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// Returns an image with a pattern of its own in each sector, and holes.
fn image(path: &Path, len: u64) {
    let file = File::create(path).expect("a temporary file");
    file.set_len(len).expect("a sparse file");
    for lba in (0..len / 4096).filter(|lba| lba % 7 < 3) {
        let byte = u8::try_from(lba % 251 + 1).expect("below 256");
        file.write_all_at(&[byte; 4096], lba * 4096).expect("space for an image");
    }
}

fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).expect("the volume");
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).expect("a byte of the volume");
    file.write_all_at(&[byte[0] ^ 0x10], offset).expect("a byte of the volume");
}

/// Returns where the data of the first group begin: behind the header of 1 MiB, the write-intent
/// log of 1 MiB, the tuple log of 1 MiB, and one block of tuples.
const FIRST_DATA: u64 = (3 << 20) + 4096;

/// A running server. It is killed if a test ends before it is stopped.
struct Server {
    child: Child,
    socket: PathBuf,
    /// What it said before it said where it listens.
    said: Vec<String>,
}

impl Server {
    fn start(volume: &Path, arguments: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(["serve", str_of(volume)])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut said = Vec::new();
        // It listens before it says so.
        loop {
            let line = lines.next().expect("the server listens").expect("text");
            if line.contains("listening") {
                break;
            }
            said.push(line);
        }
        Self { child, socket: volume.with_extension("sock"), said }
    }

    /// Attaches by the oldest option, so that replies are simple. Returns the size of the export.
    fn attach(&self) -> (UnixStream, u64) {
        let mut stream = UnixStream::connect(&self.socket).expect("a listening server");
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).expect("a greeting");
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        // Fixed newstyle without padding; the default export.
        let mut hello = 3_u32.to_be_bytes().to_vec();
        hello.extend_from_slice(b"IHAVEOPT");
        hello.extend_from_slice(&1_u32.to_be_bytes());
        hello.extend_from_slice(&0_u32.to_be_bytes());
        stream.write_all(&hello).expect("the server listens");
        let mut answer = [0; 10];
        stream.read_exact(&mut answer).expect("an export");
        let (size, _) = answer.split_first_chunk().expect("8 bytes of size");
        (stream, u64::from_be_bytes(*size))
    }

    /// Stops it as a user does, and returns what it logged.
    fn stop(mut self) -> (Option<i32>, String) {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().expect("kill(1)");
        let mut log = String::new();
        self.child.stderr.take().expect("its log").read_to_string(&mut log).expect("text");
        (self.child.wait().expect("it ends").code(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended, which is fine.
        let _ended = self.child.kill();
    }
}

/// Reads from an export, and returns the error code or the bytes.
fn read(stream: &mut UnixStream, offset: u64, len: u32) -> Result<Vec<u8>, u32> {
    let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
    request.extend_from_slice(&[0, 0, 0, 0]);
    request.extend_from_slice(&7_u64.to_be_bytes());
    request.extend_from_slice(&offset.to_be_bytes());
    request.extend_from_slice(&len.to_be_bytes());
    stream.write_all(&request).expect("the server listens");
    let mut reply = [0; 16];
    stream.read_exact(&mut reply).expect("a reply");
    let code = u32::from_be_bytes([reply[4], reply[5], reply[6], reply[7]]);
    if code != 0 {
        return Err(code);
    }
    let mut bytes = vec![0; usize::try_from(len).expect("usize has 64 bits")];
    stream.read_exact(&mut bytes).expect("data");
    Ok(bytes)
}

#[test]
fn an_image_comes_back_as_it_went_in_and_sparse() {
    let dir = tempfile::tempdir().expect("a directory");
    let (raw, volume, back) =
        (path_in(&dir, "raw"), path_in(&dir, "disk.hf"), path_in(&dir, "back"));
    // Not a multiple of the sector: the disk ends with zeros.
    image(&raw, (8 << 20) + 512);
    for arguments in
        [["import", str_of(&raw), str_of(&volume)], ["export", str_of(&volume), str_of(&back)]]
    {
        let output = holdfast(&arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let (mut expected, found) = (fs::read(&raw).expect("raw"), fs::read(&back).expect("back"));
    expected.resize(found.len(), 0);
    assert!(expected == found, "the bytes differ");
    let blocks = |path: &Path| fs::metadata(path).expect("a file").blocks();
    assert!(blocks(&back) <= blocks(&raw) + 8, "the holes were filled");
}

#[test]
fn verify_names_the_corrupt_sector_and_exits_with_1() {
    let dir = tempfile::tempdir().expect("a directory");
    let (raw, volume) = (path_in(&dir, "raw"), path_in(&dir, "disk.hf"));
    image(&raw, 8 << 20);
    holdfast(&["import", str_of(&raw), str_of(&volume)]);
    assert_eq!(holdfast(&["verify", str_of(&volume)]).status.code(), Some(0));
    flip(&volume, FIRST_DATA + 2 * 4096 + 77);
    let output = holdfast(&["verify", str_of(&volume)]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("guard tag mismatch at LBA 2:"));
    let json = holdfast(&["verify", "--json", str_of(&volume)]);
    let value: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!((&value["corrupt_sectors"], &value["errors"][0]["lba"]), (&1.into(), &2.into()));
}

#[test]
fn a_corrupt_sector_fails_its_reads_is_logged_once_and_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let (raw, volume) = (path_in(&dir, "raw"), path_in(&dir, "disk.hf"));
    image(&raw, 8 << 20);
    holdfast(&["import", str_of(&raw), str_of(&volume)]);
    flip(&volume, FIRST_DATA + 4096 + 5);
    let server = Server::start(&volume, &[]);
    let (mut stream, size) = server.attach();
    assert_eq!(size, 8 << 20);
    assert_eq!(read(&mut stream, 0, 4096), Ok(vec![1; 4096]));
    assert_eq!(read(&mut stream, 4096, 4096), Err(5));
    assert_eq!(read(&mut stream, 4096 + 1024, 512), Err(5));
    assert_eq!(read(&mut stream, 0, 16384), Err(5));
    assert_eq!(read(&mut stream, 8192, 4096), Ok(vec![3; 4096]));
    drop(stream);
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    assert_eq!(log.matches("mismatch at LBA 1: expected").count(), 1, "{log}");
    let info = holdfast(&["info", "--json", str_of(&volume)]);
    let value: Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!((&value["errors"]["guard"], &value["state"]), (&3.into(), &"closed".into()));
}

#[test]
fn a_served_volume_is_refused_with_the_pid_of_its_server() {
    let dir = tempfile::tempdir().expect("a directory");
    let volume = path_in(&dir, "disk.hf");
    let server = Server::start(&volume, &["--create", "4M"]);
    let holder = format!("is in use by process {}", server.child.id());
    for command in ["serve", "verify"] {
        let output = holdfast(&[command, str_of(&volume)]);
        assert_eq!(output.status.code(), Some(2), "{command}");
        assert!(text(&output.stderr).contains(&holder), "{}", text(&output.stderr));
    }
    let info = text(&holdfast(&["info", str_of(&volume)]).stdout);
    assert!(info.contains(&format!("in use by process {}", server.child.id())), "{info}");
    assert_eq!(server.stop().0, Some(0));
    assert!(!volume.with_extension("sock").exists(), "the socket was left behind");
}

#[test]
fn a_flipped_bit_in_a_superblock_is_repaired_with_a_warning() {
    let dir = tempfile::tempdir().expect("a directory");
    let volume = path_in(&dir, "disk.hf");
    holdfast(&["create", str_of(&volume), "--size", "4M"]);
    flip(&volume, 100);
    let server = Server::start(&volume, &[]);
    let (code, log) = server.stop();
    assert_eq!(code, Some(0));
    assert!(log.contains("the first superblock was replaced from the other"), "{log}");
    let output = holdfast(&["verify", str_of(&volume)]);
    assert_eq!((output.status.code(), text(&output.stderr)), (Some(0), String::new()));
}

/// Runs a command that cannot work, and returns the one line that says why.
fn refusal(arguments: &[&str]) -> String {
    let output = holdfast(arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let volume = path_in(&dir, "disk.hf");
    let path = str_of(&volume);
    assert!(refusal(&["info", path]).contains("No such file"));
    assert!(refusal(&["create", path, "--size", "4097"]).contains("a multiple of the sector"));
    assert!(!volume.exists(), "a failed creation left a file");
    assert!(refusal(&["create", path, "--size", "4M", "--app-tag", "65535"]).contains("reserved"));
    holdfast(&["create", path, "--size", "4M"]);
    assert!(refusal(&["create", path, "--size", "4M"]).contains("File exists"));
    let file = OpenOptions::new().write(true).open(&volume).expect("the volume");
    file.set_len(5 << 20).expect("a shorter file");
    assert!(refusal(&["verify", path]).contains("it was truncated"));
    fs::write(&volume, vec![7; 1 << 20]).expect("a foreign file");
    assert!(refusal(&["serve", path]).contains("this is no Holdfast volume"));
    fs::write(&volume, b"short").expect("a short file");
    assert!(refusal(&["serve", path]).contains("superblock"));
    assert!(refusal(&["verify", str_of(dir.path())]).contains("neither a file nor a block device"));
}

#[test]
fn an_export_destroys_neither_its_source_nor_what_is_in_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let (volume, other) = (path_in(&dir, "disk.hf"), path_in(&dir, "other.hf"));
    let (path, to) = (str_of(&volume), str_of(&other));
    holdfast(&["create", path, "--size", "4M"]);
    assert!(refusal(&["export", path, path]).contains("--force overwrites it"));
    assert!(refusal(&["export", path, path, "--force"]).contains("is the volume itself"));
    let link = path_in(&dir, "link.hf");
    fs::hard_link(&volume, &link).expect("a link");
    assert!(refusal(&["export", path, str_of(&link), "--force"]).contains("the volume itself"));
    let server = Server::start(&other, &["--create", "4M"]);
    assert!(refusal(&["export", path, to, "--force"]).contains("is in use by another process"));
    assert_eq!(server.stop().0, Some(0));
    for volume in [path, to] {
        assert_eq!(holdfast(&["verify", volume]).status.code(), Some(0), "{volume}");
    }
    let output = holdfast(&["export", path, to, "--force"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(fs::read(&other).expect("the image"), vec![0; 4 << 20]);
}

#[test]
fn an_import_replaces_a_volume_only_by_force() {
    let dir = tempfile::tempdir().expect("a directory");
    let (raw, volume) = (path_in(&dir, "raw"), path_in(&dir, "disk.hf"));
    let (from, path) = (str_of(&raw), str_of(&volume));
    image(&raw, 8 << 20);
    holdfast(&["create", path, "--size", "4M"]);
    assert!(refusal(&["import", from, path]).contains("would be replaced"));
    // It is too large, which leaves the volume closed.
    assert!(refusal(&["import", from, path, "--force"]).contains("make a larger one"));
    assert!(text(&holdfast(&["info", path]).stdout).contains("closed"));
    image(&raw, 4 << 20);
    assert!(holdfast(&["import", from, path, "--force"]).status.success());
    assert_eq!(holdfast(&["verify", path]).status.code(), Some(0));
}

#[test]
fn a_server_that_cannot_listen_leaves_a_closed_volume() {
    let dir = tempfile::tempdir().expect("a directory");
    let volume = path_in(&dir, "disk.hf");
    let path = str_of(&volume);
    holdfast(&["create", path, "--size", "4M"]);
    let nowhere = format!("unix:{}", str_of(&path_in(&dir, "none/socket")));
    assert!(refusal(&["serve", path, "--nbd", &nowhere]).contains("cannot listen at"));
    let info = holdfast(&["info", "--json", path]);
    let value: Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(value["state"], "closed");
}

#[test]
fn an_export_of_a_corrupt_volume_exits_with_1_and_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (raw, volume, back) =
        (path_in(&dir, "raw"), path_in(&dir, "disk.hf"), path_in(&dir, "back"));
    image(&raw, 8 << 20);
    holdfast(&["import", str_of(&raw), str_of(&volume)]);
    flip(&volume, FIRST_DATA + 4096 + 5);
    let output = holdfast(&["export", str_of(&volume), str_of(&back)]);
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("mismatch at LBA 1"), "{said}");
    assert!(!back.exists(), "a partial image was left behind");
}

fn json(arguments: &[&str]) -> Value {
    let output = holdfast(arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Returns the objects of a queue that has counted `changed`, and nothing else.
fn queue(changed: &[(&str, u64)]) -> Value {
    let names = [
        "requests",
        "failed",
        "bytes",
        "bounced",
        "zero_copy",
        "reread_good",
        "reread_bad",
        "guard_errors",
        "application_errors",
        "reference_errors",
    ];
    let mut counts: serde_json::Map<_, _> =
        names.iter().map(|name| ((*name).to_owned(), Value::from(0))).collect();
    counts.extend(changed.iter().map(|(name, count)| ((*name).to_owned(), Value::from(*count))));
    counts.into()
}

#[test]
fn the_counters_of_a_server_without_clients_are_zero() {
    let dir = tempfile::tempdir().expect("a directory");
    let (volume, socket) = (path_in(&dir, "disk.hf"), path_in(&dir, "vm.sock"));
    let arguments = ["--create", "4M", "--queues", "2", "--vhost-user", str_of(&socket)];
    let server = Server::start(&volume, &arguments);
    let info = json(&["info", "--live", "--json", str_of(&volume)]);
    assert_eq!(info["clients"].as_array().map(Vec::len), Some(1));
    assert_eq!(info["clients"][0]["socket"], str_of(&socket));
    assert_eq!(info["clients"][0]["connected"], false);
    assert_eq!(info["clients"][0]["queues"], Value::from(vec![queue(&[]), queue(&[])]));
    assert_eq!((&info["pid"], &info["read_policy"]), (&server.child.id().into(), &"auto".into()));
    assert_eq!((&info["errors"]["guard"], &info["state"]), (&0.into(), &"in use".into()));
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn each_queue_of_a_virtual_machine_is_counted() {
    let dir = tempfile::tempdir().expect("a directory");
    let (volume, socket) = (path_in(&dir, "disk.hf"), path_in(&dir, "vm.sock"));
    let arguments = ["--create", "4M", "--queues", "2", "--vhost-user", str_of(&socket)];
    let server = Server::start(&volume, &arguments);
    let options = Options { queues: 2, ..Options::default() };
    let mut client = Client::connect(&socket, &options).expect("a disk");
    let address = client.memory().allocate(8192, 4096).expect("memory");
    let source = &[Segment { address, len: 8192 }];
    let writing = client.queue(1);
    writing.submit(&Request::Write { sector: 8, source }, Shape::default()).expect("room");
    // The last sector is the disk's, the others are behind its end.
    let beyond = Request::Write { sector: 8191, source };
    writing.submit(&beyond, Shape::default()).expect("room");
    writing.kick().expect("a server");
    // A server may call more often than it must.
    for _ in 0..100 {
        while writing.completed().expect("answers").is_some() {}
        if writing.in_flight() == 0 {
            break;
        }
        writing.wait(Duration::from_secs(1)).expect("a server");
    }
    assert_eq!(writing.in_flight(), 0);
    let info = json(&["info", "--live", "--json", str_of(&volume)]);
    let second = queue(&[("requests", 2), ("failed", 1), ("bytes", 8192), ("bounced", 1)]);
    assert_eq!(info["clients"][0]["queues"], Value::from(vec![queue(&[]), second]));
    assert_eq!(info["clients"][0]["connected"], true);
    let table = text(&holdfast(&["info", "--live", str_of(&volume)]).stdout);
    let sums = table.lines().last().unwrap_or_default();
    let words: Vec<_> = sums.split_ascii_whitespace().collect();
    assert_eq!(words[..7], ["all", "2", "1", "8.00", "KiB", "1", "0"], "{table}");
    drop(client);
    assert_eq!(server.stop().0, Some(0));
}

/// Connects to the control socket of a server.
fn control(volume: &Path) -> UnixStream {
    let uuid = json(&["info", "--json", str_of(volume)])["uuid"].as_str().map(str::to_owned);
    let file = fs::metadata(volume).expect("the volume");
    let name = format!("holdfast/{}/{:x}-{:x}", uuid.expect("a uuid"), file.dev(), file.ino());
    let address = SocketAddr::from_abstract_name(name).expect("a short name");
    UnixStream::connect_addr(&address).expect("a listening server")
}

#[test]
fn what_makes_no_sense_on_the_control_socket_is_refused_and_keeps_nobody_waiting() {
    let dir = tempfile::tempdir().expect("a directory");
    let volume = path_in(&dir, "disk.hf");
    let server = Server::start(&volume, &["--create", "4M"]);
    for request in [b"\n".to_vec(), b"{\"request\":\"format\"}\n".to_vec(), vec![b'a'; 5000]] {
        let mut client = control(&volume);
        client.write_all(&request).expect("a server");
        let mut answer = [0; 1000];
        let len = client.read(&mut answer).expect("an answer");
        let answer: Value = serde_json::from_slice(&answer[..len]).expect("JSON");
        assert!(answer["error"].is_string(), "{answer}");
    }
    let _silent = control(&volume);
    assert_eq!(json(&["scrub", "status", "--json", str_of(&volume)])["state"], "never");
    assert_eq!(server.stop().0, Some(0));
}

#[test]
fn a_volume_that_nobody_serves_has_no_counters() {
    let dir = tempfile::tempdir().expect("a directory");
    let (volume, copy) = (path_in(&dir, "disk.hf"), path_in(&dir, "copy.hf"));
    let server = Server::start(&volume, &["--create", "4M"]);
    // It has the same uuid.
    fs::copy(&volume, &copy).expect("a copy");
    let said = refusal(&["info", "--live", str_of(&copy)]);
    assert!(said.contains("nobody serves") && said.contains("holdfast serve"), "{said}");
    assert_eq!(server.stop().0, Some(0));
    assert!(refusal(&["info", "--live", str_of(&volume)]).contains("nobody serves"));
}

#[test]
fn of_two_servers_of_a_volume_one_is_asked() {
    let dir = tempfile::tempdir().expect("a directory");
    let (volume, socket) = (path_in(&dir, "disk.hf"), path_in(&dir, "other.sock"));
    holdfast(&["create", str_of(&volume), "--size", "4M"]);
    let first = Server::start(&volume, &["--read-only"]);
    let address = format!("unix:{}", str_of(&socket));
    let second = Server::start(&volume, &["--read-only", "--nbd", &address]);
    let info = json(&["info", "--live", "--json", str_of(&volume)]);
    assert_eq!(info["pid"], first.child.id());
    let (code, log) = second.stop();
    assert!(log.contains("does not answer `holdfast info --live`"), "{log}");
    assert_eq!((code, first.stop().0), (Some(0), Some(0)));
}

#[test]
fn the_next_server_may_follow_a_killed_one_at_once() {
    let dir = tempfile::tempdir().expect("a directory");
    let (volume, socket) = (path_in(&dir, "disk.hf"), path_in(&dir, "vm.sock"));
    for _ in 0..5 {
        let mut server =
            Server::start(&volume, &["--create", "4M", "--vhost-user", str_of(&socket)]);
        server.child.kill().expect("a process");
        server.child.wait().expect("its end");
    }
    let info = json(&["info", "--json", str_of(&volume)]);
    assert_eq!(info["state"], "not closed");
}

/// Asks a server for a page, and returns all that it says.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a listening server");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n").expect("a server");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

#[test]
fn metrics_are_at_their_path_and_nowhere_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let (volume, socket) = (path_in(&dir, "disk.hf"), path_in(&dir, "vm.sock"));
    let arguments =
        ["--create", "4M", "--metrics", "tcp:127.0.0.1:0", "--vhost-user", str_of(&socket)];
    let server = Server::start(&volume, &arguments);
    let address = |line: &String| {
        let address = line.strip_prefix("metrics at http://")?.strip_suffix("/metrics")?;
        Some(address.to_owned())
    };
    let address = server.said.iter().find_map(address).expect("it says where");
    let page = get(&address, "/metrics");
    assert!(page.starts_with("HTTP/1.1 200 OK\r\n") && page.ends_with("# EOF\n"), "{page}");
    let client = format!("client=\"{}\"", str_of(&socket));
    for line in [
        format!("holdfast_requests_total{{{client},queue=\"0\"}} 0"),
        format!("holdfast_rereads_total{{{client},queue=\"0\",result=\"good\"}} 0"),
        format!("holdfast_tag_errors_total{{{client},queue=\"0\",tag=\"reference\"}} 0"),
        format!("holdfast_client_connected{{{client}}} 0"),
        "holdfast_volume_errors_total{tag=\"guard\"} 0".to_owned(),
        "holdfast_scrub_running 0".to_owned(),
        "holdfast_scrub_size_bytes 4194304".to_owned(),
    ] {
        assert!(page.lines().any(|found| found == line), "no {line} in {page}");
    }
    assert!(get(&address, "/").starts_with("HTTP/1.1 404 Not Found\r\n"));
    assert_eq!(server.stop().0, Some(0));
}
