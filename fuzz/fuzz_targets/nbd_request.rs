//! A request header against some export and some agreement.
//!
//! What is accepted lies inside the export and obeys each limit; what is refused has no more data to drop than
//! is worth reading.

#![no_main]

use holdfast_nbd::{
    Agreed, BlockSizes, Command, Export, PAYLOAD_LEN_MAX, REQUEST_LEN, Rejected, Request, parse,
};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    flags: u8,
    command: u8,
    offset: u64,
    length: u32,
    size: u64,
    maximum: u32,
    structured: bool,
    context: Option<u32>,
    read_only: bool,
    valid_magic: bool,
    minimum: u32,
    /// Whether the range is counted in minimum blocks, and the minimum is a power of two.
    blocks: bool,
}

fuzz_target!(|input: Input| {
    let minimum = if input.blocks { 1 << (input.minimum % 17) } else { input.minimum };
    let unit = if input.blocks { minimum } else { 1 };
    let offset = input.offset.wrapping_mul(u64::from(unit));
    let length = input.length.wrapping_mul(unit);
    let export = Export {
        name: String::new(),
        description: String::new(),
        size: input.size,
        read_only: input.read_only,
        block_size: BlockSizes { minimum, preferred: 4096, maximum: input.maximum },
    };
    let agreed = Agreed { export: 0, structured: input.structured, base_allocation: input.context };
    let header = header(&input, offset, length);
    match parse(&header, &export, &agreed) {
        Ok(request) => check(&request, &export, &agreed),
        Err(Rejected::BadMagic { found }) => assert!(!input.valid_magic, "{found:#x}"),
        Err(Rejected::PayloadTooLarge { found, .. }) => assert!(found > PAYLOAD_LEN_MAX),
        Err(Rejected::Refused { payload, command, .. }) => {
            assert_eq!(payload, if command == Some(Command::Write) { length } else { 0 });
            assert!(payload <= PAYLOAD_LEN_MAX);
        }
        Err(other) => panic!("{other}"),
    }
});

fn check(request: &Request, export: &Export, agreed: &Agreed) {
    let Request { command, offset, length, .. } = *request;
    if matches!(command, Command::Disconnect | Command::Flush) {
        assert_eq!((offset, length), (0, 0));
        return;
    }
    assert!(length > 0);
    assert!(u128::from(offset) + u128::from(length) <= u128::from(export.size));
    assert!(offset.is_multiple_of(u64::from(export.block_size.minimum)));
    assert!(length.is_multiple_of(export.block_size.minimum));
    if matches!(command, Command::Read | Command::Write) {
        assert!(length <= export.block_size.maximum.min(PAYLOAD_LEN_MAX));
    }
    assert!(!(export.read_only && command.writes()));
    assert!(command != Command::BlockStatus || agreed.base_allocation.is_some());
    assert!(!request.dont_fragment || (agreed.structured && command == Command::Read));
    assert!(!request.fua || command.writes());
    assert!(!(request.no_hole || request.fast_zero) || command == Command::WriteZeroes);
    assert!(!request.req_one || command == Command::BlockStatus);
}

fn header(input: &Input, offset: u64, length: u32) -> [u8; REQUEST_LEN] {
    let magic: u32 = if input.valid_magic { 0x2560_9513 } else { 0x2560_9514 };
    let mut header = [0; REQUEST_LEN];
    header[0..4].copy_from_slice(&magic.to_be_bytes());
    header[5] = input.flags;
    // Mostly commands that exist.
    header[7] = input.command % 10;
    header[8..16].copy_from_slice(&0x1122_3344_5566_7788_u64.to_be_bytes());
    header[16..24].copy_from_slice(&offset.to_be_bytes());
    header[24..28].copy_from_slice(&length.to_be_bytes());
    header
}
