//! A queue whose memory has anything in it, as the device sees it: requests are taken, read, given back, and
//! taken again by another device after a crash.
//!
//! Nothing panics or goes on for ever. While nobody has touched the in-flight log, what the next device takes
//! again is just what the last had not shown as given back, in the order in which it was taken.

#![no_main]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use holdfast_iov::{GuestMemory, GuestRegion, Place, Region};
use holdfast_units::BlockSize;
use holdfast_vhost_user_blk::Description;
use holdfast_vhost_user_blk::fuzzing::Requests;
use holdfast_virtqueue::{Chain, Inflight, Rings, Taken, Virtqueue};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

/// Two regions, neighbours for the guest, of so many bytes each.
const REGION: usize = 0x8000;
const GUEST: u64 = 0x10_0000;
/// Where the rings are in the first.
const DESCRIPTORS: usize = 0;
const AVAILABLE: usize = 0x1000;
const USED: usize = 0x2000;
/// Where requests mostly are.
const ROOM: u64 = 0x3000;
/// Only so many steps are taken, so that each input is quick.
const STEPS_MAX: usize = 64;

#[derive(Arbitrary, Debug)]
struct Input {
    /// The size of the queue is a power of two up to 32.
    order: u8,
    event_index: bool,
    /// What the in-flight log has, if there is one. Nothing means zeros.
    log: Option<Vec<u8>>,
    base: u16,
    used: u16,
    sector_4096: bool,
    capacity: u32,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    /// Bytes anywhere in the memory.
    Write {
        at: u16,
        bytes: [u8; 8],
    },
    Describe {
        index: u8,
        descriptor: Descriptor,
    },
    /// Descriptors in a table of their own, which is named by the one at `index`.
    Table {
        index: u8,
        at: u8,
        descriptors: Vec<Descriptor>,
    },
    /// A request that makes sense, or nearly.
    Request {
        head: u8,
        kind: u8,
        sector: u16,
        len: u16,
        status: Address,
    },
    /// The header of a request.
    Header {
        at: u8,
        kind: u8,
        sector: u64,
    },
    /// Makes a request available as the next, by its first descriptor.
    Offer {
        head: u8,
    },
    Index {
        index: u16,
    },
    Take,
    Complete {
        which: u8,
        written: u32,
    },
    Abandon {
        which: u8,
    },
    Publish,
    Kicks {
        enable: bool,
    },
    LogBytes {
        at: u16,
        byte: u8,
    },
    /// The device is gone, and another follows.
    Crash,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Address {
    Room(u8),
    Rings(u16),
    /// So many bytes before the end of a region, or behind it.
    Border {
        second: bool,
        before: i8,
    },
    Any(u64),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Descriptor {
    address: Address,
    len: Len,
    flags: u8,
    next: u8,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Len {
    Small(u8),
    Sectors(u8),
    Any(u32),
}

thread_local! {
    static MEMORY: Memory = Memory::new();
}

struct Memory {
    regions: [Arc<Region>; 2],
    guest: GuestMemory,
    log: Arc<Region>,
}

impl Memory {
    fn new() -> Self {
        let regions = [(); 2].map(|()| Arc::new(Region::anonymous(REGION).unwrap()));
        let guest = [0, 1].map(|index| GuestRegion {
            guest_address: GUEST + REGION as u64 * index,
            user_address: 0,
            region: Arc::clone(&regions[index as usize]),
        });
        let log = Arc::new(Region::anonymous(4096).unwrap());
        Self { regions, guest: GuestMemory::new(guest.into()).unwrap(), log }
    }

    fn clear(&self) {
        for region in self.regions.iter().chain([&self.log]) {
            region.write(0, &vec![0; region.len()]).unwrap();
        }
    }

    /// Stores bytes, as far as they fit.
    fn write(&self, at: usize, bytes: &[u8]) {
        let region = &self.regions[usize::from(at >= REGION)];
        let at = at % REGION;
        let len = bytes.len().min(REGION - at);
        region.write(at, &bytes[..len]).unwrap();
    }

    fn place(&self, at: usize, len: usize) -> Place {
        Place::new(&self.regions[0], at, len).unwrap()
    }
}

fuzz_target!(|input: Input| {
    MEMORY.with(|memory| {
        memory.clear();
        run(memory, &input);
    });
});

impl Address {
    fn get(self) -> u64 {
        match self {
            Self::Room(at) => GUEST + ROOM + u64::from(at) * 64,
            Self::Rings(at) => GUEST + u64::from(at),
            Self::Border { second, before } => {
                let end = GUEST + REGION as u64 * (1 + u64::from(second));
                end.wrapping_sub(i64::from(before) as u64)
            }
            Self::Any(address) => address,
        }
    }
}

impl Len {
    fn get(self) -> u32 {
        match self {
            Self::Small(len) => u32::from(len),
            Self::Sectors(count) => u32::from(count) * 512,
            Self::Any(len) => len,
        }
    }
}

impl Descriptor {
    fn bytes(&self) -> [u8; 16] {
        let rest = u64::from(self.len.get())
            | u64::from(self.flags & 7) << 32
            | u64::from(self.next) << 48;
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.get().to_le_bytes());
        bytes[8..].copy_from_slice(&rest.to_le_bytes());
        bytes
    }
}

/// The device, and what is known of it.
struct Device<'a> {
    memory: &'a Memory,
    input: &'a Input,
    size: u16,
    queue: Virtqueue,
    chain: Chain,
    requests: Vec<Requests>,
    disk: Description,
    /// Taken and not given back.
    taken: Vec<u16>,
    /// Taken and not shown as given back, in the order in which they were taken: what the log names.
    logged: Vec<u16>,
    /// Given back and not shown.
    given_back: Vec<u16>,
    /// Nobody but devices has stored to the log.
    log_is_ours: bool,
    /// The driver broke the queue.
    is_broken: bool,
}

fn rings(memory: &Memory, size: u16) -> Rings {
    Rings::new(
        u32::from(size),
        memory.place(DESCRIPTORS, Rings::descriptors_len(size)),
        memory.place(AVAILABLE, Rings::available_len(size)),
        memory.place(USED, Rings::used_len(size)),
    )
    .unwrap()
}

fn log(memory: &Memory, size: u16) -> Option<Inflight> {
    let place = Place::new(&memory.log, 0, Inflight::len_for(size)).unwrap();
    Inflight::new(place, size).ok()
}

fn run(memory: &Memory, input: &Input) {
    let size = 1 << (input.order % 6);
    let place = memory.place(USED, 4);
    place.store_u16(2, input.used, Ordering::Relaxed);
    let bytes = input.log.as_deref().unwrap_or_default();
    memory.log.write(0, &bytes[..bytes.len().min(4096)]).unwrap();
    let inflight = input.log.as_ref().and_then(|_| log(memory, size));
    let log_is_ours = inflight.is_some() && bytes.iter().all(|&byte| byte == 0);
    let sector = if input.sector_4096 { BlockSize::PAGE } else { BlockSize::SECTOR };
    let disk = Description::new(sector.align_down(u64::from(input.capacity)), sector, "");
    let mut device = Device {
        memory,
        input,
        size,
        queue: Virtqueue::new(rings(memory, size), input.event_index, input.base, inflight),
        chain: Chain::new(),
        requests: (0..size).map(|_| Requests::default()).collect(),
        disk,
        taken: Vec::new(),
        logged: Vec::new(),
        given_back: Vec::new(),
        log_is_ours,
        is_broken: false,
    };
    for step in input.steps.iter().take(STEPS_MAX) {
        device.step(step);
        assert_eq!(usize::from(device.queue.in_flight()), device.taken.len());
        assert!(device.taken.len() <= usize::from(size));
    }
}

impl Device<'_> {
    fn step(&mut self, step: &Step) {
        match *step {
            Step::Write { at, bytes } => self.memory.write(usize::from(at), &bytes),
            Step::Describe { index, descriptor } => {
                self.memory.write(usize::from(index) % 32 * 16, &descriptor.bytes());
            }
            Step::Table { index, at, ref descriptors } => self.table(index, at, descriptors),
            Step::Request { head, kind, sector, len, status } => {
                self.request(head, kind, sector, len, status);
            }
            Step::Header { at, kind, sector } => self.header(at, kind, sector),
            Step::Offer { head } => {
                let available = self.memory.place(AVAILABLE, Rings::available_len(self.size));
                let index = available.load_u16(2, Ordering::Relaxed);
                let entry = 4 + usize::from(index % self.size) * 2;
                available.store_u16(entry, u16::from(head), Ordering::Relaxed);
                available.store_u16(2, index.wrapping_add(1), Ordering::Relaxed);
            }
            Step::Index { index } => {
                self.memory.place(AVAILABLE, 4).store_u16(2, index, Ordering::Relaxed);
            }
            Step::Take => self.take(),
            Step::Complete { which, written } => {
                if let Some(head) = self.pick(which) {
                    self.queue.complete(head, written);
                    self.given_back.push(head);
                }
            }
            Step::Abandon { which } => {
                if let Some(head) = self.pick(which) {
                    self.queue.abandon(head);
                    // The same descriptor may begin another request now, which the log cannot tell.
                    self.log_is_ours = false;
                }
            }
            Step::Publish => {
                let (_, count) = self.queue.unpublished();
                assert_eq!(usize::from(count), self.given_back.len());
                self.queue.publish();
                for head in self.given_back.drain(..) {
                    let at = self.logged.iter().position(|&logged| logged == head);
                    at.map(|at| self.logged.remove(at));
                }
            }
            Step::Kicks { enable: true } => drop(self.queue.enable_kicks()),
            Step::Kicks { enable: false } => self.queue.disable_kicks(),
            Step::LogBytes { at, byte } => {
                self.memory.log.write(usize::from(at) % 4096, &[byte]).unwrap();
                self.log_is_ours = false;
            }
            Step::Crash => self.crash(),
        }
    }

    fn pick(&mut self, which: u8) -> Option<u16> {
        let at = usize::from(which).checked_rem(self.taken.len())?;
        Some(self.taken.swap_remove(at))
    }

    fn table(&self, index: u8, at: u8, descriptors: &[Descriptor]) {
        let begin = ROOM as usize + usize::from(at) * 64;
        for (descriptor, to) in descriptors.iter().take(200).zip((begin..).step_by(16)) {
            self.memory.write(to, &descriptor.bytes());
        }
        let len = u32::try_from(descriptors.len().min(200) * 16).unwrap();
        let pointer = Descriptor {
            address: Address::Any(GUEST + begin as u64),
            len: Len::Any(len),
            flags: 4,
            next: 0,
        };
        self.memory.write(usize::from(index) % 32 * 16, &pointer.bytes());
    }

    fn request(&self, head: u8, kind: u8, sector: u16, len: u16, status: Address) {
        let head = usize::from(head) % 32;
        self.header(0, kind, u64::from(sector));
        let next = |by: usize| u8::try_from((head + by) % 32).unwrap();
        let flags = 1 | if matches!(kind, 0 | 8) { 2 } else { 0 };
        let pieces = [
            Descriptor { address: Address::Room(0), len: Len::Small(16), flags: 1, next: next(1) },
            Descriptor {
                address: Address::Room(8),
                len: Len::Any(u32::from(len)),
                flags,
                next: next(2),
            },
            Descriptor { address: status, len: Len::Small(1), flags: 2, next: 0 },
        ];
        for (by, piece) in pieces.iter().enumerate() {
            self.memory.write((head + by) % 32 * 16, &piece.bytes());
        }
    }

    fn header(&self, at: u8, kind: u8, sector: u64) {
        let begin = ROOM as usize + usize::from(at) * 64;
        self.memory.write(begin, &u64::from(kind).to_le_bytes());
        self.memory.write(begin + 8, &sector.to_le_bytes());
    }

    fn take(&mut self) {
        if self.is_broken {
            return;
        }
        match self.queue.take(&mut self.chain, &self.memory.guest) {
            Ok(None) => {}
            Ok(Some(Taken { head, bad })) => {
                assert!(head < self.size && !self.taken.contains(&head));
                self.taken.push(head);
                // Given back and not shown, and offered again: the log has one place for both.
                if self.logged.contains(&head) {
                    self.log_is_ours = false;
                }
                self.logged.push(head);
                if bad.is_none() {
                    let place = &mut self.requests[usize::from(head)];
                    place.read(&self.chain, &self.memory.guest, &self.disk);
                }
            }
            Err(_) => self.is_broken = true,
        }
    }

    fn crash(&mut self) {
        let Some(log) = self.input.log.as_ref().and_then(|_| log(self.memory, self.size)) else {
            return;
        };
        // The used ring is the driver's as well.
        let used = self.memory.place(USED, 4).load_u16(2, Ordering::Relaxed);
        let shown = self.queue.unpublished().0;
        let is_known = self.log_is_ours && used == shown;
        let rings = rings(self.memory, self.size);
        self.queue = Virtqueue::new(rings, self.input.event_index, self.input.base, Some(log));
        self.taken.clear();
        self.given_back.clear();
        self.is_broken = false;
        let expected = std::mem::take(&mut self.logged);
        if !is_known {
            self.log_is_ours = false;
            return;
        }
        for head in &expected {
            self.take();
            assert_eq!(self.taken.last(), Some(head), "taken again in its order");
        }
        assert_eq!(self.logged, expected);
        let next = self.queue.next_available();
        assert_eq!(next, used.wrapping_add(u16::try_from(expected.len()).unwrap()));
    }
}
