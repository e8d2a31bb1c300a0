//! The client against the server of QEMU, so that both are known to speak the same language.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(clippy::print_stdout, reason = "a test says why it is skipped")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_virtio_driver::{
    Client, Completion, Options, Range, Request, Segment, Shape, Status, TableShape, Token,
};
use tempfile::TempDir;
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES};

const PROGRAM: &str = "qemu-storage-daemon";
const DISK_BYTES: u64 = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon with a disk of zeros, which is killed at the end.
struct Daemon {
    directory: TempDir,
    process: Child,
}

impl Daemon {
    /// Starts a daemon with two queues, or says why there is none.
    fn start() -> Option<Self> {
        if let Err(error) = Command::new(PROGRAM).arg("--version").stdout(Stdio::null()).status() {
            println!("skipped: cannot run {PROGRAM}: {error}");
            return None;
        }
        let directory = TempDir::new().unwrap();
        let disk = std::fs::File::create(directory.path().join("disk")).unwrap();
        disk.set_len(DISK_BYTES).unwrap();
        let process = Self::spawn(directory.path());
        Some(Self { directory, process })
    }

    fn spawn(directory: &Path) -> Child {
        let socket = directory.join("socket");
        let disk = directory.join("disk");
        let mut command = Command::new(PROGRAM);
        command
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=disk,discard=unmap,filename={}", disk.display()));
        command.arg("--export").arg(format!(
            "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=2,\
             addr.type=unix,addr.path={}",
            socket.display()
        ));
        command.spawn().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    fn disk(&self) -> Vec<u8> {
        std::fs::read(self.directory.path().join("disk")).unwrap()
    }

    fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    fn restart(&mut self) {
        self.process = Self::spawn(self.directory.path());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

fn options() -> Options {
    Options { queues: 2, regions: 3, memory_bytes: 8 << 20, ..Options::default() }
}

/// Runs one request to its end.
fn run(client: &mut Client, queue: u16, request: &Request<'_>, shape: Shape) -> Completion {
    let queue = client.queue(queue);
    let token = queue.submit(request, shape).unwrap();
    let mut ended = Vec::new();
    assert!(queue.drain(PATIENCE, &mut ended).unwrap(), "{request:?} has ended");
    assert_eq!(ended.len(), 1);
    assert_eq!(ended[0].token, token);
    ended[0]
}

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let byte = |at: usize| u8::try_from((at * 7 + at / 512 * 3) % 256).unwrap() ^ seed;
    (0..len).map(byte).collect()
}

#[test]
fn what_is_written_in_any_shape_is_read_in_any_shape() {
    let Some(daemon) = Daemon::start() else { return };
    for (event_index, indirect) in [(true, true), (false, false), (true, false), (false, true)] {
        let options = Options { event_index, indirect, ..options() };
        let mut client = Client::connect(&daemon.socket(), &options).unwrap();
        assert_eq!(client.config().capacity_bytes(), DISK_BYTES);
        write_and_read(&daemon, &mut client);
    }
}

fn write_and_read(daemon: &Daemon, client: &mut Client) {
    let memory = std::sync::Arc::clone(client.memory());
    let base = memory.allocate(0x1_0000, 4096).unwrap();
    // Not `TableShape::After`: the daemon looks for a table in the first descriptor only.
    let shapes = [
        Shape::default(),
        Shape { table: TableShape::Direct, ..Shape::default() },
        Shape { header_cuts: 1 << 4, ..Shape::default() },
        Shape { joins_header: true, joins_status: true, ..Shape::default() },
        Shape { header_cuts: 0xffff, joins_header: true, joins_status: true, ..Shape::default() },
    ];
    for (index, shape) in (0_u8..).zip(shapes) {
        let source = [
            Segment { address: base + 16, len: 512 },
            Segment { address: base + 0x1003, len: 1024 },
            Segment { address: base + 0x4000, len: 512 },
        ];
        let bytes = pattern(index, 2048);
        memory.write(source[0].address, &bytes[..512]).unwrap();
        memory.write(source[1].address, &bytes[512..1536]).unwrap();
        memory.write(source[2].address, &bytes[1536..]).unwrap();
        let sector = 8 * u64::from(index);
        let queue = u16::from(index % 2);
        let ended = run(client, queue, &Request::Write { sector, source: &source }, shape);
        assert_eq!((ended.status, ended.written), (Status::Ok, 1));
        let at = usize::from(index) * 4096;
        assert!(daemon.disk()[at..at + 2048] == bytes, "written in {shape:?}");
        let target = [
            Segment { address: base + 0x8001, len: 1536 },
            Segment { address: base + 0xa000, len: 512 },
        ];
        let ended = run(client, queue, &Request::Read { sector, target: &target }, shape);
        assert_eq!((ended.status, ended.written), (Status::Ok, 2049));
        let mut found = vec![0; 2048];
        memory.read(target[0].address, &mut found[..1536]).unwrap();
        memory.read(target[1].address, &mut found[1536..]).unwrap();
        assert!(found == bytes, "read in {shape:?}");
    }
}

#[test]
fn other_requests_are_answered() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = Client::connect(&daemon.socket(), &options()).unwrap();
    let memory = std::sync::Arc::clone(client.memory());
    let buffer = memory.allocate(4096, 512).unwrap();
    memory.write(buffer, &pattern(1, 4096)).unwrap();
    let shape = Shape::default();
    let segment = [Segment { address: buffer, len: 4096 }];
    let write = Request::Write { sector: 0, source: &segment };
    assert_eq!(run(&mut client, 0, &write, shape).status, Status::Ok);
    assert_eq!(run(&mut client, 1, &Request::Flush, shape).status, Status::Ok);
    let id = [Segment { address: buffer, len: 20 }];
    assert_eq!(run(&mut client, 0, &Request::Id { target: &id }, shape).status, Status::Ok);
    let mut name = [0; 20];
    memory.read(buffer, &mut name).unwrap();
    assert!(name.starts_with(b"vhost_user_blk"), "{name:?}");
    let other = Request::Other { kind: 77, sector: 0, readable: &[], writable: &[] };
    assert_eq!(run(&mut client, 0, &other, shape).status, Status::Unsupported);
    for bit in [VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] {
        assert!(client.has_feature(bit), "feature {bit}");
    }
    let ranges = [Range { sector: 0, sectors: 1, flags: 0 }];
    let zeroes = Request::WriteZeroes { ranges: &ranges };
    assert_eq!(run(&mut client, 0, &zeroes, shape).status, Status::Ok);
    assert_eq!(daemon.disk()[..512], [0; 512]);
    assert_eq!(daemon.disk()[512..4096], pattern(1, 4096)[512..]);
    let ranges = [Range { sector: 0, sectors: 8, flags: 0 }];
    let discard = Request::Discard { ranges: &ranges };
    let joined = Shape { joins_header: true, ..shape };
    assert_eq!(run(&mut client, 1, &discard, joined).status, Status::Ok);
    assert_eq!(daemon.disk()[..4096], [0; 4096]);
    let past = Request::Read { sector: DISK_BYTES / 512, target: &segment };
    assert_eq!(run(&mut client, 0, &past, shape).status, Status::IoError);
}

#[test]
fn a_buffer_may_lie_in_two_regions() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = Client::connect(&daemon.socket(), &options()).unwrap();
    let memory = std::sync::Arc::clone(client.memory());
    let border = memory.border().unwrap();
    let middle = u64::midpoint(border.start, border.end);
    memory.write(middle - 2048, &pattern(9, 4096)).unwrap();
    let source = [Segment { address: middle - 2048, len: 4096 }];
    let write = Request::Write { sector: 0, source: &source };
    // The daemon refuses more pieces than a table has descriptors, so the table is the queue's.
    let shape = Shape { table: TableShape::Direct, ..Shape::default() };
    assert_eq!(run(&mut client, 0, &write, shape).status, Status::Ok);
    assert!(daemon.disk()[..4096] == pattern(9, 4096));
}

#[test]
fn many_requests_at_once_from_two_threads_all_end() {
    let Some(daemon) = Daemon::start() else { return };
    for (event_index, indirect) in [(true, true), (false, false)] {
        let options = Options { event_index, indirect, ..options() };
        let mut client = Client::connect(&daemon.socket(), &options).unwrap();
        let memory = std::sync::Arc::clone(client.memory());
        let buffer = memory.allocate(0x10_0000, 4096).unwrap();
        let queues = [client.take_queue(0), client.take_queue(1)];
        std::thread::scope(|scope| {
            for mut queue in queues {
                scope.spawn(move || {
                    let mut ended = Vec::new();
                    let mut submitted = 0;
                    while submitted < 2000 || queue.in_flight() > 0 {
                        let at = submitted % 32;
                        let target = [Segment { address: buffer + at * 4096, len: 4096 }];
                        let request = Request::Read { sector: at * 8, target: &target };
                        if submitted < 2000 && queue.in_flight() < 32 {
                            queue.submit(&request, Shape::default()).unwrap();
                            submitted += 1;
                            continue;
                        }
                        queue.kick().unwrap();
                        match queue.completed().unwrap() {
                            Some(completion) => ended.push(completion),
                            None => assert!(queue.wait(PATIENCE).unwrap(), "requests end"),
                        }
                    }
                    assert!(ended.iter().all(|completion| completion.status == Status::Ok));
                    let mut tokens: Vec<_> = ended.iter().map(|ended| ended.token).collect();
                    tokens.sort_unstable();
                    assert_eq!(tokens, (0..2000).map(Token).collect::<Vec<_>>());
                });
            }
        });
    }
}

#[test]
fn requests_in_flight_survive_a_killed_daemon() {
    let Some(mut daemon) = Daemon::start() else { return };
    let mut client = Client::connect(&daemon.socket(), &options()).unwrap();
    println!(
        "protocol features {:#x}, an in-flight log: {}",
        client.protocol_features(),
        client.has_in_flight_log()
    );
    let memory = std::sync::Arc::clone(client.memory());
    let buffer = memory.allocate(64 * 4096, 4096).unwrap();
    let expected = pattern(5, 64 * 4096);
    memory.write(buffer, &expected).unwrap();
    for round in 0_u64..4 {
        let mut ended = Vec::new();
        for at in 0..64 {
            let source = [Segment { address: buffer + at * 4096, len: 4096 }];
            let sector = (round * 64 + at) * 8;
            let queue = client.queue(u16::from(at % 2 == 0));
            queue.submit(&Request::Write { sector, source: &source }, Shape::default()).unwrap();
            queue.kick().unwrap();
        }
        daemon.kill();
        let deadline = Instant::now() + PATIENCE;
        while !client.is_closed().unwrap() {
            assert!(Instant::now() < deadline, "the end of a process is seen");
        }
        daemon.restart();
        client.reconnect().unwrap();
        for queue in 0..2 {
            assert!(client.queue(queue).drain(PATIENCE, &mut ended).unwrap(), "all have ended");
        }
        assert_eq!(ended.len(), 64);
        assert!(ended.iter().all(|completion| completion.status == Status::Ok));
        let at = usize::try_from(round).unwrap() * 64 * 4096;
        assert!(daemon.disk()[at..at + 64 * 4096] == expected);
    }
}

#[test]
fn a_stopped_client_goes_on() {
    let Some(daemon) = Daemon::start() else { return };
    let mut client = Client::connect(&daemon.socket(), &options()).unwrap();
    let shape = Shape::default();
    for round in 0..3 {
        assert_eq!(run(&mut client, 0, &Request::Flush, shape).status, Status::Ok);
        assert_eq!(client.stop().unwrap(), [2 * round + 1, 0]);
        client.queue(0).submit(&Request::Flush, shape).unwrap();
        client.queue(0).kick().unwrap();
        assert!(!client.queue(0).wait(Duration::from_millis(20)).unwrap(), "nothing is served");
        client.resume().unwrap();
        let mut ended = Vec::new();
        assert!(client.queue(0).drain(PATIENCE, &mut ended).unwrap());
        assert_eq!(ended.len(), 1);
    }
}
