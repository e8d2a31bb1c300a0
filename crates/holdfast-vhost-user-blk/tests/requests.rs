//! What is answered to each kind of request, also to those that make no sense.

use holdfast_units::BlockSize;
use holdfast_virtio_driver::{BlkQueue, Range, Request, Segment, Shape, Status, TableShape, Token};
use holdfast_virtqueue::Piece;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_WRITE_ZEROES,
};

use crate::common::{self, Guest, MIB, Setup, ask, assert_same, drain, guest_options, pattern};

const READ: u32 = 0;
const WRITE: u32 = 1;
const GET_ID: u32 = 8;

fn other<'a>(kind: u32, sector: u64, writable: &'a [Segment]) -> Request<'a> {
    Request::Other { kind, sector, readable: &[], writable }
}

#[test]
fn the_disk_tells_what_it_is() {
    for (sector, blocks) in [(BlockSize::SECTOR, 1), (BlockSize::PAGE, 8)] {
        let rig = Setup { sector, ..Setup::default() }.start();
        let guest = rig.guest();
        let config = guest.client.config();
        assert_eq!(config.capacity_bytes(), 64 * MIB);
        assert_eq!((config.block_bytes, 1 << config.physical_block_exponent), (512, blocks));
        assert_eq!((config.queues, config.is_write_back), (2, true));
        assert_eq!(config.discard_alignment_sectors, blocks);
        for feature in [VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES] {
            assert!(guest.client.has_feature(feature));
        }
        assert!(!guest.client.has_feature(VIRTIO_BLK_F_RO));
    }
}

#[test]
fn the_name_is_the_beginning_of_the_volumes_uuid() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    for len in [20, 21, 512] {
        guest.memory.write(guest.base, &[0xee; 512]).unwrap();
        let target = [Segment { address: guest.base, len }];
        assert_eq!(guest.ask(&Request::Id { target: &target }), Status::Ok);
        let mut name = [0; 21];
        guest.memory.read(guest.base, &mut name).unwrap();
        assert_eq!(&name[..20], &rig.volume().uuid_text().as_bytes()[..20]);
        assert_eq!(name[20], 0xee);
    }
    let short = [Segment { address: guest.base, len: 19 }];
    assert_eq!(guest.ask(&Request::Id { target: &short }), Status::IoError);
}

#[test]
fn unknown_requests_are_unsupported() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let target = [Segment { address: guest.base, len: 512 }];
    // 2 is a SCSI command, 10 asks for the lifetime, 14 is a secure erase, 15 and more are zones.
    for kind in [2, 3, 5, 6, 7, 9, 10, 12, 14, 15, 16, 26, 0x100, 0x8000_0000, 0xffff_ffff] {
        assert_eq!(guest.ask(&other(kind, 0, &target)), Status::Unsupported, "{kind}");
    }
    assert_eq!(guest.ask(&other(READ, 0, &target)), Status::Ok);
}

#[test]
fn unknown_flags_of_ranges_are_unsupported() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let data = pattern(1, 4096);
    assert_eq!(guest.write(0, &data), Status::Ok);
    for flags in [2, 3, 0x8000_0000] {
        assert_eq!(guest.zero(0, 4096, flags), Status::Unsupported);
    }
    let ranges = [Range { sector: 0, sectors: 8, flags: Range::UNMAP }];
    assert_eq!(guest.ask(&Request::Discard { ranges: &ranges }), Status::Unsupported);
    assert_same(&guest.read(0, 4096).unwrap(), &data);
}

#[test]
fn a_range_list_that_is_none_is_an_error() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    assert_eq!(guest.ask(&Request::Discard { ranges: &[] }), Status::IoError);
    let many = [Range { sector: 0, sectors: 1, flags: 0 }; 17];
    assert_eq!(guest.ask(&Request::WriteZeroes { ranges: &many }), Status::IoError);
    let half = [Segment { address: guest.base, len: 8 }];
    let request = Request::Other { kind: 13, sector: 0, readable: &half, writable: &[] };
    assert_eq!(guest.ask(&request), Status::IoError);
    // No sectors at all is little to ask, and no error.
    assert_eq!(guest.zero(0, 0, 0), Status::Ok);
}

#[test]
fn what_lies_outside_of_the_disk_is_an_error_and_changes_nothing() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let capacity = 64 * MIB / 512;
    let data = pattern(1, 4096);
    assert_eq!(guest.write(64 * MIB - 4096, &data), Status::Ok);
    let buffer = [Segment { address: guest.base, len: 1024 }];
    for sector in [capacity - 1, capacity, u64::MAX, u64::MAX / 512, u64::MAX / 512 + 1, 1 << 55] {
        assert_eq!(guest.ask(&Request::Read { sector, target: &buffer }), Status::IoError);
        assert_eq!(guest.ask(&Request::Write { sector, source: &buffer }), Status::IoError);
        let ranges = [Range { sector, sectors: 2, flags: 0 }];
        assert_eq!(guest.ask(&Request::Discard { ranges: &ranges }), Status::IoError);
        assert_eq!(guest.ask(&Request::WriteZeroes { ranges: &ranges }), Status::IoError);
    }
    let all = [Range { sector: 1, sectors: u32::MAX, flags: 0 }];
    assert_eq!(guest.ask(&Request::WriteZeroes { ranges: &all }), Status::IoError);
    // One range that is fine goes nowhere beside one that is not.
    let ranges = [
        Range { sector: capacity - 8, sectors: 8, flags: 0 },
        Range { sector: capacity, sectors: 1, flags: 0 },
    ];
    assert_eq!(guest.ask(&Request::WriteZeroes { ranges: &ranges }), Status::IoError);
    assert_same(&guest.read(64 * MIB - 4096, 4096).unwrap(), &data);
}

#[test]
fn lengths_that_are_no_sectors_are_errors() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    for len in [1, 511, 513, 4095] {
        let buffer = [Segment { address: guest.base, len }];
        assert_eq!(guest.ask(&Request::Read { sector: 0, target: &buffer }), Status::IoError);
        assert_eq!(guest.ask(&Request::Write { sector: 0, source: &buffer }), Status::IoError);
    }
}

#[test]
fn no_data_at_all_are_read_and_written_well() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let empty = [Segment { address: guest.base, len: 0 }];
    for buffer in [&empty[..], &[]] {
        for sector in [0, 64 * MIB / 512] {
            assert_eq!(guest.ask(&Request::Read { sector, target: buffer }), Status::Ok);
            assert_eq!(guest.ask(&Request::Write { sector, source: buffer }), Status::Ok);
        }
    }
}

#[test]
fn memory_that_is_none_fails_only_its_request() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    let end = guest.memory.guest().regions().last().unwrap();
    let end = end.guest_address + u64::try_from(end.region.len()).unwrap();
    let good = Segment { address: guest.base, len: 512 };
    for (address, len) in
        [(0, 512), (end, 512), (end - 256, 512), (u64::MAX - 255, 512), (end, 1 << 31)]
    {
        for buffer in [[good, Segment { address, len }], [Segment { address, len }, good]] {
            assert_eq!(guest.ask(&Request::Read { sector: 0, target: &buffer }), Status::IoError);
            assert_eq!(guest.ask(&Request::Write { sector: 0, source: &buffer }), Status::IoError);
        }
    }
    assert_eq!(guest.write(0, &pattern(1, 512)), Status::Ok);
    assert_eq!(rig.counts(0).failed, 20);
}

#[test]
fn a_read_only_volume_refuses_to_change_and_may_be_read() {
    let rig = Setup { read_only: true, ..Setup::default() }.start();
    let mut guest = rig.guest();
    assert!(guest.client.has_feature(VIRTIO_BLK_F_RO));
    assert!(!guest.client.has_feature(VIRTIO_BLK_F_DISCARD));
    assert_eq!(guest.write(0, &[1; 512]), Status::IoError);
    assert_eq!(guest.write(0, &[1; 4096]), Status::IoError);
    assert_eq!(guest.zero(0, 4096, 0), Status::IoError);
    assert_eq!(guest.zero(0, 512, 0), Status::IoError);
    assert_eq!(guest.discard(0, 4096), Status::IoError);
    assert_eq!(guest.flush(), Status::Ok);
    assert_same(&guest.read(0, 4096).unwrap(), &[0; 4096]);
}

/// Adds descriptors as they are, with the status in one of its own at the end of the buffer.
fn submit_raw(queue: &mut BlkQueue, guest_base: u64, pieces: &[Piece]) -> Token {
    let status = guest_base + 4096;
    let mut pieces = pieces.to_vec();
    pieces.push(Piece { address: status, len: 1, is_writable: true });
    queue.submit_pieces(&pieces, TableShape::Direct, Some(status)).unwrap()
}

#[test]
fn a_header_that_is_cut_off_is_an_error() {
    let rig = Setup::default().start();
    let Guest { mut client, base, .. } = rig.guest();
    for len in [0, 1, 8, 15] {
        let queue = client.queue(0);
        submit_raw(queue, base, &[Piece { address: base, len, is_writable: false }]);
        let ended = drain(queue);
        assert_eq!(ended[0].status, Status::IoError);
    }
}

#[test]
fn every_sector_of_every_kind_of_header_is_answered_with_data_or_an_error() {
    let rig = Setup::default().start();
    let mut guest = Guest::new(&rig.path(0), &guest_options());
    let buffer = [Segment { address: guest.base, len: 512 }];
    for kind in 0..20 {
        for sector in [0, 7, 64 * MIB / 512 - 1, 64 * MIB / 512, u64::MAX] {
            let request = Request::Other { kind, sector, readable: &buffer, writable: &buffer };
            let ended = ask(guest.client.queue(0), &request, Shape::default());
            assert!(matches!(ended.status, Status::Ok | Status::IoError | Status::Unsupported));
            // A write may come with room for data, and a read with data; nobody looks at them.
            let is_fine = matches!(kind, READ | WRITE) && sector < 64 * MIB / 512;
            assert!(!is_fine || ended.status == Status::Ok, "{kind} {sector}");
            assert!(kind != GET_ID || ended.status == Status::Ok);
        }
    }
}

#[test]
fn each_request_is_counted_once() {
    let rig = Setup::default().start();
    let mut guest = rig.guest();
    guest.write(0, &pattern(1, 8192));
    guest.read(0, 4096).unwrap();
    guest.flush();
    guest.zero(0, 512, 0);
    guest.read(64 * MIB, 512).unwrap_err();
    let counts = rig.counts(0);
    assert_eq!((counts.requests, counts.failed), (5, 1));
    assert_eq!(counts.bytes, 8192 + 4096);
    assert!(rig.server(0).counters().is_connected());
    drop(guest);
    common::eventually("the client has gone", || !rig.server(0).counters().is_connected());
}
