//! What a front end may say, with descriptors of every kind, to a server of a small volume; and what its guest may
//! do meanwhile.
//!
//! Nothing panics, hangs, or leaves threads, descriptors or mappings behind, and no sector of the volume becomes
//! corrupt.

#![no_main]

use std::cell::Cell;
use std::fs;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use holdfast_bio::{Bio, BlockDevice, Ended, Error, Limits, ReadPolicy};
use holdfast_checksum::GuardKind;
use holdfast_device::MemoryDevice;
use holdfast_iov::Region;
use holdfast_ring::{Channel, Operation, SharedRing, Waker};
use holdfast_units::BlockSize;
use holdfast_vhost_user_blk::fuzzing::Session;
use holdfast_vhost_user_blk::{Description, Options, Target};
use holdfast_volume::{CreateOptions, OpenOptions, Queue, Volume};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

/// Only so many steps are taken, so that each input is quick, and what is said fits the socket.
const STEPS_MAX: usize = 32;
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000_0000;
/// The bytes of each file that can be shared.
const MEMORY: u64 = 0x2_0000;
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x4000;
const USED: u64 = 0x5000;
const ROOM: u64 = 0x8000;

#[derive(Arbitrary, Debug)]
struct Input {
    always: bool,
    /// Whether to agree on nothing, on everything, or on everything and to start a queue with it.
    begin: u8,
    steps: Vec<Step>,
    /// Bytes that come last, and need not be whole messages.
    rest: Vec<u8>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Any message, whose length is true.
    Message {
        number: u8,
        flags: u8,
        body: Vec<u8>,
        files: Vec<File>,
    },
    /// What most conversations begin with.
    Agree {
        features: u8,
        protocol: u8,
    },
    Table {
        regions: Vec<Shared>,
    },
    Add {
        region: Shared,
    },
    Remove {
        region: Shared,
    },
    Number {
        queue: u8,
        order: u8,
    },
    Base {
        queue: u8,
        base: u16,
    },
    Addresses {
        queue: u8,
        log: bool,
        move_by: [u8; 3],
    },
    Event {
        queue: u8,
        what: u8,
        file: File,
    },
    Enable {
        queue: u8,
        enable: bool,
    },
    Stop {
        queue: u8,
    },
    /// Everything that starts a queue.
    Start {
        queue: u8,
        order: u8,
        region: Shared,
    },
    Inflight {
        file: File,
        queues: u8,
        order: u8,
        offset: u8,
        len: u16,
    },
    Log {
        file: File,
        offset: u8,
        len: u16,
    },
    WriteBack {
        value: u8,
    },
    Reset,
    /// The guest stores bytes.
    Store {
        file: bool,
        at: u16,
        bytes: [u8; 8],
    },
    Descriptor {
        index: u8,
        address: u16,
        len: u16,
        flags: u8,
        next: u8,
    },
    Request {
        head: u8,
        kind: u8,
        sector: u8,
        len: u16,
    },
    Offer {
        head: u8,
        kick: bool,
    },
    Kick,
    /// The file becomes shorter, or long again.
    Truncate {
        file: bool,
        pages: u8,
    },
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum File {
    Memory(bool),
    Log,
    Kick,
    Call,
    Pipe,
    Null,
    Socket,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Shared {
    file: File,
    /// In pages.
    guest: u8,
    user: u8,
    len: u8,
    offset: u8,
    odd: u8,
}

impl Shared {
    fn words(self) -> [u64; 4] {
        let pages = |count: u8| u64::from(count) << 12;
        let len = if self.len == 0 { MEMORY } else { pages(self.len) };
        let odd = if self.odd < 250 { 0 } else { u64::from(self.odd) };
        [GUEST + pages(self.guest), len, USER + pages(self.user), pages(self.offset) + odd]
    }
}

/// The descriptors of one front end.
struct Files {
    memory: [OwnedFd; 2],
    regions: [Region; 2],
    log: OwnedFd,
    kick: OwnedFd,
    call: OwnedFd,
    pipe: OwnedFd,
    null: OwnedFd,
    socket: OwnedFd,
}

impl Files {
    fn new() -> Self {
        let file = |len| {
            let file = memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, len).unwrap();
            file
        };
        let memory = [(); 2].map(|()| file(MEMORY));
        let regions =
            memory.each_ref().map(|file| Region::shared(file.as_fd(), 0, MEMORY as usize).unwrap());
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let null = fs::File::options().read(true).write(true).open("/dev/null").unwrap();
        Self {
            memory,
            regions,
            log: file(4096),
            kick: event(),
            call: event(),
            pipe: std::io::pipe().unwrap().1.into(),
            null: null.into(),
            socket: UnixStream::pair().unwrap().0.into(),
        }
    }

    fn get(&self, file: File) -> BorrowedFd<'_> {
        match file {
            File::Memory(second) => self.memory[usize::from(second)].as_fd(),
            File::Log => self.log.as_fd(),
            File::Kick => self.kick.as_fd(),
            File::Call => self.call.as_fd(),
            File::Pipe => self.pipe.as_fd(),
            File::Null => self.null.as_fd(),
            File::Socket => self.socket.as_fd(),
        }
    }

    fn store(&self, second: bool, at: u64, bytes: &[u8]) {
        // What does not fit is not stored, nor what is not there any more: this process has no right to it
        // either.
        let _outside = self.regions[usize::from(second)].write(at as usize, bytes);
    }

    fn kick(&self) {
        let _full = rustix::io::write(&self.kick, &1_u64.to_ne_bytes());
    }
}

/// A volume in memory.
struct Disk {
    volume: Arc<Volume>,
    device: Mutex<MemoryDevice>,
}

impl Disk {
    fn new() -> Self {
        let options = CreateOptions {
            capacity: 1 << 20,
            sector: BlockSize::PAGE,
            guard: GuardKind::Crc16,
            application_tag: CreateOptions::APPLICATION_TAG,
        };
        let mut device = MemoryDevice::new(options.geometry().unwrap().device_len());
        Volume::create(&mut device, &options).unwrap();
        let options = OpenOptions { cache_bytes: 0, ..OpenOptions::default() };
        let volume = Volume::open(&mut device, &options).unwrap();
        Self { volume, device: Mutex::new(device) }
    }
}

impl Target for Disk {
    type Queue = Queue<Woken>;

    fn describe(&self) -> Description {
        let geometry = self.volume.geometry();
        Description::new(geometry.capacity(), geometry.sector(), &self.volume.uuid_text())
    }

    fn queue(&self, ring: &SharedRing, waker: &Arc<Waker>) -> std::io::Result<Self::Queue> {
        let waker = Arc::clone(waker);
        Queue::new(&self.volume, self.device(ring)?, move || waker.wake())
    }
}

impl Disk {
    fn device(&self, ring: &SharedRing) -> std::io::Result<Woken> {
        let waker = Waker::new()?;
        let channel = Channel::open(ring);
        let event = Rc::new(waker.event()?);
        channel.push(0, Operation::Event { event, value: Box::new(0) }).expect("the ring is new");
        Ok(Woken { device: self.device.lock().unwrap().clone(), channel, waker })
    }
}

/// A device that says through the ring that it has something to tell.
struct Woken {
    device: MemoryDevice,
    channel: Channel,
    waker: Arc<Waker>,
}

impl BlockDevice for Woken {
    fn limits(&self) -> Limits {
        self.device.limits()
    }

    fn submit(&mut self, bio: Bio) -> Result<(), Bio> {
        self.device.submit(bio)?;
        self.waker.wake();
        Ok(())
    }

    fn reap(&mut self, ended: &mut Vec<Ended>) {
        while let Some(completion) = self.channel.pop() {
            self.channel.push(0, completion.operation).expect("there was room for it before");
        }
        self.device.reap(ended);
    }

    fn wait(&mut self) {
        self.device.wait();
    }

    fn data_after(&self, offset: u64) -> Result<Option<u64>, Error> {
        self.device.data_after(offset)
    }
}

fuzz_target!(|input: Input| {
    run(&input);
    EXECUTIONS.with(|executions| {
        executions.set(executions.get() + 1);
        if executions.get() % 16 == 0 {
            check_leaks();
        }
    });
});

thread_local! {
    static EXECUTIONS: Cell<u64> = const { Cell::new(0) };
    /// What is written to it makes no difference to what is asked here.
    static DISK: Arc<Disk> = Arc::new(Disk::new());
    static BASELINE: Cell<Option<[usize; 2]>> = const { Cell::new(None) };
}

/// Fails when there are more threads than at the first look, many more descriptors, or memory of a
/// guest. The volume may list a queue that has ended among those who wait, and keeps its eventfd until the
/// list is emptied; what is lost each time soon exceeds that.
fn check_leaks() {
    const LISTED_MAX: usize = 64;
    let count = |path| fs::read_dir(path).map_or(0, Iterator::count);
    let look = || ["/proc/self/task", "/proc/self/fd"].map(count);
    let baseline = BASELINE.get().unwrap_or_else(look);
    let is_fine = || {
        let found = look();
        found[0] <= baseline[0] && found[1] <= baseline[1] + LISTED_MAX
    };
    // The kernel may list a thread for some time after it was joined.
    let mut patience = 1000;
    while !is_fine() {
        assert!(patience > 0, "{:?}, before {baseline:?}: {:?}", look(), open_files());
        std::thread::sleep(std::time::Duration::from_millis(10));
        patience -= 1;
    }
    BASELINE.set(Some(baseline));
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    assert!(!maps.contains("memfd:fuzz") && !maps.contains("memfd:holdfast"), "{maps}");
}

/// Returns what the descriptors are.
fn open_files() -> Vec<std::path::PathBuf> {
    let files = fs::read_dir("/proc/self/fd").unwrap();
    files.filter_map(|file| fs::read_link(file.unwrap().path()).ok()).collect()
}

/// A front end's side of the connection.
struct FrontEnd<'a> {
    stream: UnixStream,
    session: Session<Disk>,
    files: &'a Files,
    /// The session is over.
    is_over: bool,
}

fn run(input: &Input) {
    let disk = DISK.with(Arc::clone);
    let read_policy = if input.always { ReadPolicy::Always } else { ReadPolicy::Lazy };
    let options = Options { queues: 2, read_policy, buffer_bytes: 1, ..Options::default() };
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_nonblocking(true).unwrap();
    let files = Files::new();
    let session = Session::new(theirs, &disk, &options);
    let mut front_end = FrontEnd { stream: ours, session, files: &files, is_over: false };
    if input.begin > 0x10 {
        front_end.agree(0, 0);
    }
    if input.begin > 0x40 {
        let region =
            Shared { file: File::Memory(false), guest: 0, user: 0, len: 0, offset: 0, odd: 0 };
        front_end.step(&Step::Start { queue: 0, order: input.begin, region });
    }
    for step in input.steps.iter().take(STEPS_MAX) {
        front_end.step(step);
        if front_end.is_over {
            break;
        }
    }
    front_end.finish(&input.rest);
    drop(front_end);
    let errors = disk.volume.errors();
    assert_eq!(
        (errors.guard, errors.application, errors.reference, errors.unwritten),
        (0, 0, 0, 0)
    );
}

impl FrontEnd<'_> {
    /// Sends a message and has it carried out.
    fn tell(&mut self, number: u32, flags: u32, body: &[u8], files: &[BorrowedFd<'_>]) {
        if self.is_over {
            return;
        }
        let len = u32::try_from(body.len()).unwrap();
        let mut bytes: Vec<u8> =
            [number, flags, len].iter().flat_map(|n| n.to_le_bytes()).collect();
        bytes.extend_from_slice(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(files));
        }
        let sent =
            sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL);
        assert_eq!(sent, Ok(bytes.len()));
        // A message with too many descriptors is dropped by the protocol's crate, which then waits for another.
        if files.len() > 32 {
            self.stream.shutdown(Shutdown::Write).unwrap();
        }
        self.is_over = !self.session.step();
        let mut answer = [0; 8192];
        while matches!(self.stream.read(&mut answer), Ok(1..)) {}
    }

    fn words(&mut self, number: u32, words: &[u64], files: &[BorrowedFd<'_>]) {
        let body: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.tell(number, 9, &body, files);
    }

    fn state(&mut self, number: u32, queue: u8, value: u32) {
        let value = u64::from(queue) | u64::from(value) << 32;
        self.words(number, &[value], &[]);
    }

    fn table(&mut self, regions: &[Shared]) {
        let regions = &regions[..regions.len().min(32)];
        let mut words = vec![regions.len() as u64];
        words.extend(regions.iter().flat_map(|region| region.words()));
        let files: Vec<_> = regions.iter().map(|region| self.files.get(region.file)).collect();
        self.words(5, &words, &files);
    }

    fn addresses(&mut self, queue: u8, log: bool, move_by: [u8; 3]) {
        let flags = u64::from(queue) | u64::from(log) << 32;
        let [d, u, a] = move_by.map(|by| u64::from(by) * 8);
        let words =
            [flags, USER + DESCRIPTORS + d, USER + USED + u, USER + AVAILABLE + a, GUEST + USED];
        self.words(9, &words, &[]);
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Message { number, flags, ref body, ref files } => {
                let flags = if flags < 200 { 1 | u32::from(flags & 8) } else { u32::from(flags) };
                let files: Vec<_> =
                    files.iter().take(40).map(|file| self.files.get(*file)).collect();
                self.tell(u32::from(number % 50), flags, &body[..body.len().min(4096)], &files);
            }
            Step::Agree { features, protocol } => self.agree(features, protocol),
            Step::Table { ref regions } => self.table(regions),
            Step::Add { region } => {
                let file = self.files.get(region.file);
                self.words(37, &[&[0][..], &region.words()].concat(), &[file]);
            }
            Step::Remove { region } => self.words(38, &[&[0][..], &region.words()].concat(), &[]),
            Step::Number { queue, order } => self.state(8, queue, 1 << (order % 16)),
            Step::Base { queue, base } => self.state(10, queue, u32::from(base)),
            Step::Addresses { queue, log, move_by } => self.addresses(queue, log, move_by),
            Step::Event { queue, what, file } => {
                let file = self.files.get(file);
                self.words(12 + u32::from(what % 3), &[u64::from(queue)], &[file]);
            }
            Step::Enable { queue, enable } => self.state(18, queue, u32::from(enable)),
            Step::Stop { queue } => self.state(11, queue, 0),
            Step::Start { queue, order, region } => {
                let region = Shared { guest: 0, user: 0, offset: 0, odd: 0, ..region };
                self.table(&[region]);
                self.state(8, queue % 2, 1 << (order % 8));
                self.addresses(queue % 2, false, [0; 3]);
                let [kick, call] = [File::Kick, File::Call].map(|file| self.files.get(file));
                self.words(13, &[u64::from(queue % 2)], &[call]);
                self.words(12, &[u64::from(queue % 2)], &[kick]);
                self.state(18, queue % 2, 1);
            }
            Step::Inflight { file, queues, order, offset, len } => {
                let sizes = u64::from(queues) | 1 << (16 + order % 12);
                let words = [u64::from(len), u64::from(offset) << 12, sizes];
                self.words(32, &words, &[self.files.get(file)]);
            }
            Step::Log { file, offset, len } => {
                let words = [u64::from(len), u64::from(offset) << 12];
                self.words(6, &words, &[self.files.get(file)]);
            }
            Step::WriteBack { value } => {
                let mut body = [32_u32, 1, 1].map(u32::to_le_bytes).concat();
                body.push(value);
                self.tell(25, 9, &body, &[]);
            }
            Step::Reset => self.tell(34, 9, &[], &[]),
            ref other => self.guest(other),
        }
    }

    fn agree(&mut self, features: u8, protocol: u8) {
        self.tell(1, 1, &[], &[]);
        self.words(16, &[0xb20b ^ u64::from(protocol & 0x80)], &[]);
        // The flush, the write cache, event indexes, logging, and features of the protocol.
        let bits = [9, 11, 29, 26, 28, 0, 0, 0];
        let off = (0..8)
            .filter(|bit| features >> bit & 1 != 0)
            .fold(0, |all, bit| all | 1_u64 << bits[bit]);
        let all =
            1 << 32 | 1 << 30 | 1 << 9 | 1 << 11 | 1 << 29 | 1 << 26 | 1 << 28 | 1 << 13 | 1 << 14;
        self.words(2, &[all & !(off & !1)], &[]);
    }

    /// What the guest does.
    fn guest(&mut self, step: &Step) {
        let files = self.files;
        match *step {
            Step::Store { file, at, ref bytes } => files.store(file, u64::from(at), bytes),
            Step::Descriptor { index, address, len, flags, next } => {
                let rest = u64::from(len) | u64::from(flags & 7) << 32 | u64::from(next) << 48;
                let bytes =
                    [(GUEST + u64::from(address)).to_le_bytes(), rest.to_le_bytes()].concat();
                files.store(false, DESCRIPTORS + u64::from(index) * 16, &bytes);
            }
            Step::Request { head, kind, sector, len } => {
                let header = [u64::from(kind), u64::from(sector)].map(u64::to_le_bytes).concat();
                files.store(false, ROOM, &header);
                let writable = if matches!(kind, 0 | 8) { 2 } else { 0 };
                let pieces = [(0, 16, 1), (0x1000, u64::from(len), 1 | writable), (0x800, 1, 2)];
                for (by, (at, len, flags)) in (0_u64..).zip(pieces) {
                    let index = u64::from(head) + by;
                    let rest = len | flags << 32 | (index + 1) << 48;
                    let bytes = [(GUEST + ROOM + at).to_le_bytes(), rest.to_le_bytes()].concat();
                    files.store(false, DESCRIPTORS + index * 16, &bytes);
                }
            }
            Step::Offer { head, kick } => {
                let mut index = [0; 2];
                files.regions[0].read(AVAILABLE as usize + 2, &mut index).unwrap();
                let index = u16::from_le_bytes(index);
                // The place depends on the size of the queue, which is mostly small.
                for size in [1, 2, 4, 8, 16, 32, 64, 128] {
                    let at = AVAILABLE + 4 + u64::from(index % size) * 2;
                    files.store(false, at, &u16::from(head).to_le_bytes());
                }
                files.store(false, AVAILABLE + 2, &index.wrapping_add(1).to_le_bytes());
                if kick {
                    files.kick();
                }
            }
            Step::Kick => files.kick(),
            Step::Truncate { file, pages } => {
                let len = if pages > 128 { MEMORY } else { u64::from(pages) << 12 };
                ftruncate(&files.memory[usize::from(file)], len).unwrap();
            }
            _ => unreachable!("the others are said on the socket"),
        }
    }

    /// Says the rest, and goes.
    fn finish(&mut self, rest: &[u8]) {
        if self.is_over {
            return;
        }
        rustix::io::write(&self.stream, &rest[..rest.len().min(4096)]).unwrap();
        self.stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = [0; 8192];
        while self.session.step() {
            while matches!(self.stream.read(&mut answer), Ok(1..)) {}
        }
    }
}
