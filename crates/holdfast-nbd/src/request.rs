//! One request of the transmission phase, checked completely before any of it is done.

use thiserror::Error;

use crate::export::{Export, PAYLOAD_LEN_MAX};
use crate::negotiation::Agreed;
use crate::reply::ErrorCode;
use crate::wire::{self, RequestHeader};

/// The bytes of a request, before the data of a write.
pub const REQUEST_LEN: usize = size_of::<RequestHeader>();

/// A request that obeys each rule of the protocol and of its export.
///
/// A range is inside the export, is not empty, and is a multiple of the minimum block size. The offset and
/// length of a flush and of a disconnect are zero.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request {
    /// What the reply has to repeat.
    pub cookie: u64,
    /// What to do.
    pub command: Command,
    /// In bytes.
    pub offset: u64,
    /// In bytes. For a read or write at most the export's maximum, for all else up to 2^32 - 1.
    pub length: u32,
    /// The reply waits until what the request wrote is on stable storage. Only for commands that change data:
    /// clients may set it on all, where it means nothing.
    pub fua: bool,
    /// Zeroes must be allocated: no hole.
    pub no_hole: bool,
    /// The data of a read come in one chunk.
    pub dont_fragment: bool,
    /// One extent is enough, and may not be longer than the request.
    pub req_one: bool,
    /// Zero quickly, or fail with [`ErrorCode::NotSup`].
    pub fast_zero: bool,
}

impl Request {
    /// Returns the byte behind the range.
    pub fn end(&self) -> u64 {
        self.offset + u64::from(self.length)
    }
}

/// Checks one request header completely against what was agreed and the export.
pub fn parse(
    header: &[u8; REQUEST_LEN],
    export: &Export,
    agreed: &Agreed,
) -> Result<Request, Rejected> {
    let header: &RequestHeader = zerocopy::transmute_ref!(header);
    if header.magic.get() != wire::REQUEST_MAGIC {
        return Err(Rejected::BadMagic { found: header.magic.get() });
    }
    let command = Command::from_wire(header.command.get());
    let payload = if command == Some(Command::Write) { header.length.get() } else { 0 };
    if payload > PAYLOAD_LEN_MAX {
        return Err(Rejected::PayloadTooLarge { found: payload, maximum: PAYLOAD_LEN_MAX });
    }
    let cookie = header.cookie.get();
    let refused = |(error, why)| Rejected::Refused { cookie, error, payload, why, command };

    let Some(known) = command else {
        let why = RefusedWhy::UnknownCommand { found: header.command.get() };
        return Err(refused((ErrorCode::Inval, why)));
    };
    check(known, header, export, agreed).map_err(refused)?;
    Ok(request(known, header))
}

/// What a client may ask for.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Command {
    /// Send data.
    Read,
    /// Store the data that follow.
    Write,
    /// End the session; it has no reply.
    Disconnect,
    /// Make each write that was answered durable.
    Flush,
    /// Forget a range.
    Trim,
    /// A range will be read soon.
    Cache,
    /// Make a range read as zeroes.
    WriteZeroes,
    /// Say what is allocated.
    BlockStatus,
}

impl Command {
    /// Whether it changes what the export holds.
    pub const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Trim | Self::WriteZeroes)
    }

    const fn from_wire(number: u16) -> Option<Self> {
        Some(match number {
            wire::CMD_READ => Self::Read,
            wire::CMD_WRITE => Self::Write,
            wire::CMD_DISC => Self::Disconnect,
            wire::CMD_FLUSH => Self::Flush,
            wire::CMD_TRIM => Self::Trim,
            wire::CMD_CACHE => Self::Cache,
            wire::CMD_WRITE_ZEROES => Self::WriteZeroes,
            wire::CMD_BLOCK_STATUS => Self::BlockStatus,
            _ => return None,
        })
    }

    /// The flags that a client may set with it.
    const fn flags(self) -> u16 {
        // proto.md, "Command flags": a server that offers FUA accepts it on all commands.
        wire::CMD_FLAG_FUA
            | match self {
                Self::Read => wire::CMD_FLAG_DF,
                Self::WriteZeroes => wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO,
                Self::BlockStatus => wire::CMD_FLAG_REQ_ONE,
                _ => 0,
            }
    }
}

/// Why a request was not accepted, and so what is to be done with the connection.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum Rejected {
    /// Where the next request begins is unknown: close.
    #[error("a request begins with {found:#x} instead of {:#x}", wire::REQUEST_MAGIC)]
    BadMagic {
        /// What the request began with.
        found: u32,
    },
    /// A write with more data than are worth reading to get to the next request: close.
    #[error("a write has {found} bytes of data, and at most {maximum} are read")]
    PayloadTooLarge {
        /// In bytes.
        found: u32,
        /// In bytes.
        maximum: u32,
    },
    /// Drop `payload` bytes of data, answer with `error`, and go on.
    #[error("refused: {why}")]
    Refused {
        /// What the reply has to repeat.
        cookie: u64,
        /// What the reply says.
        error: ErrorCode,
        /// How many bytes of a write's data follow the header; at most [`PAYLOAD_LEN_MAX`].
        payload: u32,
        /// For the log.
        why: RefusedWhy,
        /// What was asked for; `None` for an unknown command.
        command: Option<Command>,
    },
}

/// Which rule a request broke, for the log.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[non_exhaustive]
pub enum RefusedWhy {
    /// EINVAL.
    #[error("the command {found} is unknown")]
    UnknownCommand {
        /// Its number.
        found: u16,
    },
    /// EINVAL.
    #[error("the flags are {found:#x}, and only {allowed:#x} may be set for this command")]
    Flags {
        /// All that were set.
        found: u16,
        /// Those that may be set.
        allowed: u16,
    },
    /// EINVAL.
    #[error("an unfragmented reply was asked for without structured replies")]
    NotStructured,
    /// EPERM.
    #[error("the export is read-only")]
    ReadOnly,
    /// EINVAL.
    #[error("a flush has the offset {offset} and the length {length} instead of zeroes")]
    FlushRange {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u32,
    },
    /// EINVAL.
    #[error("no metadata context was selected")]
    NoContext,
    /// EINVAL.
    #[error("the length is zero")]
    Empty,
    /// EINVAL, or EOVERFLOW for a read with structured replies.
    #[error("the length {found} is over the maximum {maximum}")]
    TooLong {
        /// In bytes.
        found: u32,
        /// In bytes.
        maximum: u32,
    },
    /// EINVAL.
    #[error("the offset {offset} or the length {length} is not a multiple of {minimum}")]
    Unaligned {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u32,
        /// In bytes.
        minimum: u32,
    },
    /// ENOSPC for a write, EINVAL for all else.
    #[error("{length} bytes at {offset} are not inside the export's {size} bytes")]
    PastEnd {
        /// In bytes.
        offset: u64,
        /// In bytes.
        length: u32,
        /// In bytes.
        size: u64,
    },
}

type Refusal = (ErrorCode, RefusedWhy);

fn check(
    command: Command,
    header: &RequestHeader,
    export: &Export,
    agreed: &Agreed,
) -> Result<(), Refusal> {
    match command {
        // It has no reply that could say what is wrong, and the connection ends anyway.
        Command::Disconnect => Ok(()),
        Command::Flush => {
            check_flags(command, header, agreed)?;
            check_flush(header)
        }
        _ => {
            check_flags(command, header, agreed)?;
            if command.writes() && export.read_only {
                return Err((ErrorCode::Perm, RefusedWhy::ReadOnly));
            }
            if command == Command::BlockStatus && agreed.base_allocation.is_none() {
                return Err((ErrorCode::Inval, RefusedWhy::NoContext));
            }
            check_length(command, header, export, agreed)?;
            check_range(command, header, export)
        }
    }
}

fn check_flags(command: Command, header: &RequestHeader, agreed: &Agreed) -> Result<(), Refusal> {
    let found = header.flags.get();
    let allowed = command.flags();
    if found & !allowed != 0 {
        return Err((ErrorCode::Inval, RefusedWhy::Flags { found, allowed }));
    }
    if found & wire::CMD_FLAG_DF != 0 && !agreed.structured {
        return Err((ErrorCode::Inval, RefusedWhy::NotStructured));
    }
    Ok(())
}

/// proto.md, `NBD_CMD_FLUSH`: both are reserved, and must be zero. A server that let other values pass would
/// take from the protocol the meaning it may want to give them.
fn check_flush(header: &RequestHeader) -> Result<(), Refusal> {
    let (offset, length) = (header.offset.get(), header.length.get());
    if offset != 0 || length != 0 {
        return Err((ErrorCode::Inval, RefusedWhy::FlushRange { offset, length }));
    }
    Ok(())
}

fn check_length(
    command: Command,
    header: &RequestHeader,
    export: &Export,
    agreed: &Agreed,
) -> Result<(), Refusal> {
    let found = header.length.get();
    if found == 0 {
        // Unspecified for all commands. A block status could not even be answered: extents are not empty.
        return Err((ErrorCode::Inval, RefusedWhy::Empty));
    }
    let maximum = export.block_size.payload_max();
    let error = match command {
        // proto.md, "Error values": EOVERFLOW is for reads of clients that may know unfragmented ones.
        Command::Read if agreed.structured => ErrorCode::Overflow,
        Command::Read | Command::Write => ErrorCode::Inval,
        _ => return Ok(()),
    };
    if found > maximum {
        return Err((error, RefusedWhy::TooLong { found, maximum }));
    }
    Ok(())
}

fn check_range(command: Command, header: &RequestHeader, export: &Export) -> Result<(), Refusal> {
    let (offset, length) = (header.offset.get(), header.length.get());
    let minimum = export.block_size.minimum;
    if !offset.is_multiple_of(u64::from(minimum)) || !length.is_multiple_of(minimum) {
        return Err((ErrorCode::Inval, RefusedWhy::Unaligned { offset, length, minimum }));
    }
    let inside = offset.checked_add(u64::from(length)).is_some_and(|end| end <= export.size);
    if !inside {
        let error = match command {
            Command::Write | Command::WriteZeroes => ErrorCode::NoSpc,
            _ => ErrorCode::Inval,
        };
        return Err((error, RefusedWhy::PastEnd { offset, length, size: export.size }));
    }
    Ok(())
}

fn request(command: Command, header: &RequestHeader) -> Request {
    let ranged = command != Command::Disconnect;
    let flags = header.flags.get() & command.flags();
    Request {
        cookie: header.cookie.get(),
        command,
        offset: if ranged { header.offset.get() } else { 0 },
        length: if ranged { header.length.get() } else { 0 },
        fua: command.writes() && flags & wire::CMD_FLAG_FUA != 0,
        no_hole: flags & wire::CMD_FLAG_NO_HOLE != 0,
        dont_fragment: flags & wire::CMD_FLAG_DF != 0,
        req_one: flags & wire::CMD_FLAG_REQ_ONE != 0,
        fast_zero: flags & wire::CMD_FLAG_FAST_ZERO != 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::*;
    use crate::export::BlockSizes;

    const COOKIE: u64 = 0x1122_3344_5566_7788;
    const SIZE: u64 = 1 << 30;
    const MIB: u32 = 1 << 20;

    fn export() -> Export {
        Export {
            name: String::new(),
            description: String::new(),
            size: SIZE,
            read_only: false,
            block_size: BlockSizes { minimum: 512, preferred: 4096, maximum: 4 * MIB },
        }
    }

    const AGREED: Agreed = Agreed { export: 0, structured: true, base_allocation: Some(1) };
    const SIMPLE: Agreed = Agreed { export: 0, structured: false, base_allocation: None };

    fn header(command: u16, flags: u16, offset: u64, length: u32) -> RequestHeader {
        RequestHeader {
            magic: wire::REQUEST_MAGIC.into(),
            flags: flags.into(),
            command: command.into(),
            cookie: COOKIE.into(),
            offset: offset.into(),
            length: length.into(),
        }
    }

    fn parse_with(
        header: RequestHeader,
        export: &Export,
        agreed: &Agreed,
    ) -> Result<Request, Rejected> {
        parse(&zerocopy::transmute!(header), export, agreed)
    }

    fn accept(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        parse_with(header(command, flags, offset, length), &export(), &AGREED)
            .expect("it obeys the rules")
    }

    fn refuse(header: RequestHeader, export: &Export, agreed: &Agreed) -> (ErrorCode, RefusedWhy) {
        match parse_with(header, export, agreed) {
            Err(Rejected::Refused { cookie: COOKIE, error, why, .. }) => (error, why),
            other => panic!("not refused: {other:?}"),
        }
    }

    #[test]
    fn a_request_is_read_from_its_bytes() {
        let bytes = b"\x25\x60\x95\x13\0\x01\0\x01\x11\x22\x33\x44\x55\x66\x77\x88\
            \0\0\0\0\0\0\x10\0\0\0\x02\0";
        let expected = Request {
            cookie: COOKIE,
            command: Command::Write,
            offset: 0x1000,
            length: 0x200,
            fua: true,
            no_hole: false,
            dont_fragment: false,
            req_one: false,
            fast_zero: false,
        };
        assert_eq!(parse(bytes, &export(), &AGREED), Ok(expected));
    }

    #[test]
    fn each_command_is_known_by_its_number() {
        let found: Vec<_> = (0..8)
            .map(|number| {
                let length = if number == wire::CMD_FLUSH { 0 } else { 512 };
                accept(number, 0, 0, length).command
            })
            .collect();
        let expected = [
            Command::Read,
            Command::Write,
            Command::Disconnect,
            Command::Flush,
            Command::Trim,
            Command::Cache,
            Command::WriteZeroes,
            Command::BlockStatus,
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_wrong_magic_ends_the_connection() {
        let header = RequestHeader { magic: 7.into(), ..header(wire::CMD_READ, 0, 0, 512) };
        assert_eq!(parse_with(header, &export(), &AGREED), Err(Rejected::BadMagic { found: 7 }));
    }

    #[test]
    fn a_write_over_the_limit_ends_the_connection() {
        let header = header(wire::CMD_WRITE, 0, 0, PAYLOAD_LEN_MAX + 512);
        let expected =
            Rejected::PayloadTooLarge { found: PAYLOAD_LEN_MAX + 512, maximum: PAYLOAD_LEN_MAX };
        assert_eq!(parse_with(header, &export(), &AGREED), Err(expected));
    }

    #[test]
    fn a_refused_write_says_how_much_to_drop() {
        let found = parse_with(header(wire::CMD_WRITE, 0, 0, 8 * MIB), &export(), &AGREED);
        let expected = Rejected::Refused {
            cookie: COOKIE,
            error: ErrorCode::Inval,
            payload: 8 * MIB,
            why: RefusedWhy::TooLong { found: 8 * MIB, maximum: 4 * MIB },
            command: Some(Command::Write),
        };
        assert_eq!(found, Err(expected));
    }

    #[test]
    fn a_refused_read_has_nothing_to_drop() {
        let found = parse_with(header(wire::CMD_READ, 0, 1, 512), &export(), &AGREED);
        assert!(matches!(found, Err(Rejected::Refused { payload: 0, .. })), "{found:?}");
    }

    #[test]
    fn an_unknown_command_is_einval() {
        let expected = (ErrorCode::Inval, RefusedWhy::UnknownCommand { found: 8 });
        assert_eq!(refuse(header(8, 0, 0, 512), &export(), &AGREED), expected);
    }

    #[test]
    fn an_unknown_flag_is_einval() {
        let expected = (ErrorCode::Inval, RefusedWhy::Flags { found: 1 << 5, allowed: 1 });
        assert_eq!(refuse(header(wire::CMD_WRITE, 1 << 5, 0, 512), &export(), &AGREED), expected);
    }

    #[test]
    fn a_flag_of_another_command_is_einval() {
        let read = header(wire::CMD_READ, wire::CMD_FLAG_NO_HOLE, 0, 512);
        let expected = (ErrorCode::Inval, RefusedWhy::Flags { found: 0b10, allowed: 0b101 });
        assert_eq!(refuse(read, &export(), &AGREED), expected);
    }

    #[test]
    fn fua_is_accepted_on_a_read_and_means_nothing() {
        assert!(!accept(wire::CMD_READ, wire::CMD_FLAG_FUA, 0, 512).fua);
    }

    #[test]
    fn fua_is_accepted_on_a_flush_and_means_nothing() {
        assert!(!accept(wire::CMD_FLUSH, wire::CMD_FLAG_FUA, 0, 0).fua);
    }

    #[test]
    fn zeroing_has_its_flags() {
        let flags = wire::CMD_FLAG_FUA | wire::CMD_FLAG_NO_HOLE | wire::CMD_FLAG_FAST_ZERO;
        let request = accept(wire::CMD_WRITE_ZEROES, flags, 0, 512);
        assert!(request.fua && request.no_hole && request.fast_zero, "{request:?}");
    }

    #[test]
    fn a_block_status_may_ask_for_one_extent() {
        assert!(accept(wire::CMD_BLOCK_STATUS, wire::CMD_FLAG_REQ_ONE, 0, 512).req_one);
    }

    #[test]
    fn a_read_may_ask_for_one_chunk() {
        assert!(accept(wire::CMD_READ, wire::CMD_FLAG_DF, 0, 512).dont_fragment);
    }

    #[test]
    fn one_chunk_without_structured_replies_is_einval() {
        let read = header(wire::CMD_READ, wire::CMD_FLAG_DF, 0, 512);
        let expected = (ErrorCode::Inval, RefusedWhy::NotStructured);
        assert_eq!(refuse(read, &export(), &SIMPLE), expected);
    }

    #[test]
    fn a_block_status_without_a_context_is_einval() {
        let expected = (ErrorCode::Inval, RefusedWhy::NoContext);
        assert_eq!(refuse(header(wire::CMD_BLOCK_STATUS, 0, 0, 512), &export(), &SIMPLE), expected);
    }

    #[test]
    fn each_command_that_writes_is_eperm_on_a_read_only_export() {
        let export = Export { read_only: true, ..export() };
        for command in [wire::CMD_WRITE, wire::CMD_TRIM, wire::CMD_WRITE_ZEROES] {
            let found = refuse(header(command, 0, 0, 512), &export, &AGREED);
            assert_eq!(found, (ErrorCode::Perm, RefusedWhy::ReadOnly), "command {command}");
        }
    }

    #[test]
    fn each_other_command_is_accepted_on_a_read_only_export() {
        let export = Export { read_only: true, ..export() };
        for command in [wire::CMD_READ, wire::CMD_CACHE, wire::CMD_BLOCK_STATUS] {
            let found = parse_with(header(command, 0, 0, 512), &export, &AGREED);
            assert!(found.is_ok(), "command {command}: {found:?}");
        }
    }

    #[test]
    fn no_range_may_be_empty() {
        for command in [0, 1, 4, 5, 6, 7] {
            let found = refuse(header(command, 0, 0, 0), &export(), &AGREED);
            assert_eq!(found, (ErrorCode::Inval, RefusedWhy::Empty), "command {command}");
        }
    }

    #[test]
    fn a_flush_with_an_offset_is_einval() {
        let expected = (ErrorCode::Inval, RefusedWhy::FlushRange { offset: 512, length: 0 });
        assert_eq!(refuse(header(wire::CMD_FLUSH, 0, 512, 0), &export(), &AGREED), expected);
    }

    #[test]
    fn a_flush_with_a_length_is_einval() {
        let expected = (ErrorCode::Inval, RefusedWhy::FlushRange { offset: 0, length: 512 });
        assert_eq!(refuse(header(wire::CMD_FLUSH, 0, 0, 512), &export(), &AGREED), expected);
    }

    #[test]
    fn a_disconnect_is_accepted_whatever_it_says() {
        let request = accept(wire::CMD_DISC, 0xffff, u64::MAX, u32::MAX);
        assert_eq!((request.offset, request.length, request.fua), (0, 0, false));
    }

    #[test]
    fn a_read_over_the_maximum_is_eoverflow_with_structured_replies() {
        let read = header(wire::CMD_READ, 0, 0, 4 * MIB + 512);
        let why = RefusedWhy::TooLong { found: 4 * MIB + 512, maximum: 4 * MIB };
        assert_eq!(refuse(read, &export(), &AGREED), (ErrorCode::Overflow, why));
    }

    #[test]
    fn a_read_over_the_maximum_is_einval_with_simple_replies() {
        let read = header(wire::CMD_READ, 0, 0, 4 * MIB + 512);
        assert_eq!(refuse(read, &export(), &SIMPLE).0, ErrorCode::Inval);
    }

    #[test]
    fn a_read_of_the_maximum_is_accepted() {
        assert_eq!(accept(wire::CMD_READ, 0, 0, 4 * MIB).length, 4 * MIB);
    }

    #[test]
    fn commands_without_data_may_be_longer_than_the_maximum() {
        for command in
            [wire::CMD_TRIM, wire::CMD_CACHE, wire::CMD_WRITE_ZEROES, wire::CMD_BLOCK_STATUS]
        {
            assert_eq!(accept(command, 0, 0, 1 << 30).length, 1 << 30);
        }
    }

    #[test]
    fn an_offset_inside_a_block_is_einval() {
        let why = RefusedWhy::Unaligned { offset: 256, length: 512, minimum: 512 };
        let found = refuse(header(wire::CMD_READ, 0, 256, 512), &export(), &AGREED);
        assert_eq!(found, (ErrorCode::Inval, why));
    }

    #[test]
    fn half_a_block_is_einval() {
        let why = RefusedWhy::Unaligned { offset: 512, length: 256, minimum: 512 };
        let found = refuse(header(wire::CMD_WRITE, 0, 512, 256), &export(), &AGREED);
        assert_eq!(found, (ErrorCode::Inval, why));
    }

    #[test]
    fn the_last_block_is_accepted() {
        assert_eq!(accept(wire::CMD_READ, 0, SIZE - 512, 512).offset, SIZE - 512);
    }

    #[test]
    fn a_write_past_the_end_is_enospc() {
        for command in [wire::CMD_WRITE, wire::CMD_WRITE_ZEROES] {
            let found = refuse(header(command, 0, SIZE - 512, 1024), &export(), &AGREED);
            let why = RefusedWhy::PastEnd { offset: SIZE - 512, length: 1024, size: SIZE };
            assert_eq!(found, (ErrorCode::NoSpc, why), "command {command}");
        }
    }

    #[test]
    fn all_else_past_the_end_is_einval() {
        for command in [wire::CMD_READ, wire::CMD_TRIM, wire::CMD_CACHE, wire::CMD_BLOCK_STATUS] {
            let found = refuse(header(command, 0, SIZE - 512, 1024), &export(), &AGREED);
            let why = RefusedWhy::PastEnd { offset: SIZE - 512, length: 1024, size: SIZE };
            assert_eq!(found, (ErrorCode::Inval, why), "command {command}");
        }
    }

    #[test]
    fn a_range_that_wraps_around_is_past_the_end() {
        let offset = u64::MAX - 511;
        let why = RefusedWhy::PastEnd { offset, length: 1024, size: SIZE };
        let found = refuse(header(wire::CMD_READ, 0, offset, 1024), &export(), &AGREED);
        assert_eq!(found, (ErrorCode::Inval, why));
    }

    fn any_export() -> impl Strategy<Value = Export> {
        let wild = (any::<u64>(), any::<u32>(), any::<u32>());
        // Small, so that requests happen to end at the end.
        let usual = (0..32u64, 0..=16u32, 0..32u32)
            .prop_map(|(blocks, power, maximum)| (blocks << power, 1 << power, maximum << power));
        (any::<bool>(), prop_oneof![1 => wild, 4 => usual]).prop_map(|(read_only, sizes)| {
            let (size, minimum, maximum) = sizes;
            let block_size = BlockSizes { minimum, preferred: 4096, maximum };
            Export { size, read_only, block_size, ..export() }
        })
    }

    proptest! {
        #[test]
        fn what_is_accepted_lies_inside_the_export(
            export in any_export(),
            structured: bool,
            context: Option<u32>,
            command in 0..9u16,
            flags in 0..64u16,
            (start, blocks) in (0..32u32, 0..32u32),
            stray in prop_oneof![9 => Just(0u64), 1 => any::<u64>()],
        ) {
            let agreed = Agreed { export: 0, structured, base_allocation: context };
            let unit = export.block_size.minimum;
            let offset = (u64::from(start) * u64::from(unit)).wrapping_add(stray);
            let length = blocks.wrapping_mul(unit);
            if let Ok(request) = parse_with(header(command, flags, offset, length), &export, &agreed) {
                let end = u128::from(request.offset) + u128::from(request.length);
                prop_assert!(end <= u128::from(export.size));
            }
        }

        #[test]
        fn no_bytes_make_it_panic(
            mut bytes: [u8; REQUEST_LEN],
            export in any_export(),
            structured: bool,
            context: Option<u32>,
        ) {
            let agreed = Agreed { export: 0, structured, base_allocation: context };
            let _: Result<_, _> = parse(&bytes, &export, &agreed);
            bytes[..4].copy_from_slice(wire::REQUEST_MAGIC.to_be_bytes().as_bytes());
            bytes[6] = 0;
            let _: Result<_, _> = parse(&bytes, &export, &agreed);
        }
    }
}
