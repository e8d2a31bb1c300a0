//! The data of options, taken apart. Nothing here knows the exports or remembers anything.
//!
//! Lengths inside an option have to add up exactly to the length of the option; strings have to be what the
//! protocol calls a string.

use zerocopy::FromBytes;
use zerocopy::byteorder::big_endian::{U16, U32};

use crate::wire;

/// The data of `OPT_INFO` and `OPT_GO`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct InfoQuery<'a> {
    pub(crate) export: &'a str,
    pub(crate) name: bool,
    pub(crate) description: bool,
}

impl<'a> InfoQuery<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(data);
        let export = fields.string()?;
        let count = fields.u16()?;
        let kinds = <[U16]>::ref_from_bytes(fields.0)
            .map_err(|_| Malformed("a half information request"))?;
        if kinds.len() != usize::from(count) {
            return Err(Malformed("the number of information requests and the length disagree"));
        }
        // Others are unknown, or are sent anyway.
        let asked = |kind: u16| kinds.iter().any(|found| found.get() == kind);
        Ok(Self {
            export,
            name: asked(wire::INFO_NAME),
            description: asked(wire::INFO_DESCRIPTION),
        })
    }
}

/// The data of `OPT_LIST_META_CONTEXT` and `OPT_SET_META_CONTEXT`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct ContextQuery<'a> {
    pub(crate) export: &'a str,
    /// Whether there is no query at all.
    pub(crate) none: bool,
    /// Whether a query is `base:`.
    pub(crate) base_wildcard: bool,
    /// Whether a query is `base:allocation`.
    pub(crate) base_allocation: bool,
}

impl<'a> ContextQuery<'a> {
    pub(crate) fn parse(data: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(data);
        let export = fields.string()?;
        let count = fields.u32()?;
        let mut query =
            Self { export, none: count == 0, base_wildcard: false, base_allocation: false };
        // Each has four bytes at least, so that a count that is too large soon fails.
        for _ in 0..count {
            match fields.string()? {
                wire::BASE_ALLOCATION => query.base_allocation = true,
                wire::BASE_WILDCARD => query.base_wildcard = true,
                // Of another namespace, unknown in this one, or without one: all are ignored.
                _ => {}
            }
        }
        if !fields.0.is_empty() {
            return Err(Malformed("there is more after the last query"));
        }
        Ok(query)
    }
}

/// Takes `bytes` for a string as the protocol has it.
pub(crate) fn string(bytes: &[u8]) -> Result<&str, Malformed> {
    if bytes.len() > wire::STRING_LEN_MAX {
        return Err(Malformed("a string is over 4096 bytes"));
    }
    let text = str::from_utf8(bytes).map_err(|_| Malformed("a string is not UTF-8"))?;
    if text.contains('\0') {
        return Err(Malformed("a string contains a NUL"));
    }
    Ok(text)
}

/// What is wrong with an option, for the person at the client.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// The part of an option that was not read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn u16(&mut self) -> Result<u16, Malformed> {
        let (value, rest) = U16::read_from_prefix(self.0).map_err(|_| SHORT)?;
        self.0 = rest;
        Ok(value.get())
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        let (value, rest) = U32::read_from_prefix(self.0).map_err(|_| SHORT)?;
        self.0 = rest;
        Ok(value.get())
    }

    /// A string after its length.
    fn string(&mut self) -> Result<&'a str, Malformed> {
        let len = usize::try_from(self.u32()?).map_err(|_| SHORT)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(SHORT)?;
        self.0 = rest;
        string(bytes)
    }
}

const SHORT: Malformed = Malformed("a field goes past the end of the option");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_information_request_is_found_among_others() {
        let query = InfoQuery::parse(b"\0\0\0\x01d\0\x03\0\x03\x12\x34\0\x02");
        assert_eq!(query, Ok(InfoQuery { export: "d", name: false, description: true }));
    }

    #[test]
    fn a_name_past_the_end_is_malformed() {
        assert_eq!(InfoQuery::parse(b"\xff\xff\xff\xffd\0\0"), Err(SHORT));
    }

    #[test]
    fn fewer_information_requests_than_counted_are_malformed() {
        let expected = Malformed("the number of information requests and the length disagree");
        assert_eq!(InfoQuery::parse(b"\0\0\0\0\0\x02\0\x01"), Err(expected));
    }

    #[test]
    fn half_an_information_request_is_malformed() {
        let expected = Malformed("a half information request");
        assert_eq!(InfoQuery::parse(b"\0\0\0\0\0\x01\0\x01\0"), Err(expected));
    }

    #[test]
    fn empty_data_are_malformed() {
        assert_eq!((InfoQuery::parse(b""), ContextQuery::parse(b"")), (Err(SHORT), Err(SHORT)));
    }

    #[test]
    fn unknown_queries_are_ignored() {
        let query = ContextQuery::parse(b"\0\0\0\x01d\0\0\0\x02\0\0\0\x06qemu:x\0\0\0\x06base:x");
        let expected =
            ContextQuery { export: "d", none: false, base_wildcard: false, base_allocation: false };
        assert_eq!(query, Ok(expected));
    }

    #[test]
    fn more_queries_than_fit_are_malformed() {
        assert_eq!(ContextQuery::parse(b"\0\0\0\0\xff\xff\xff\xff\0\0\0\0"), Err(SHORT));
    }

    #[test]
    fn bytes_after_the_last_query_are_malformed() {
        let expected = Malformed("there is more after the last query");
        assert_eq!(ContextQuery::parse(b"\0\0\0\0\0\0\0\0x"), Err(expected));
    }

    #[test]
    fn a_string_of_4097_bytes_is_malformed() {
        assert_eq!(string(&[b'a'; 4097]), Err(Malformed("a string is over 4096 bytes")));
    }

    #[test]
    fn a_string_that_is_not_utf8_is_malformed() {
        assert_eq!(string(b"\xc3"), Err(Malformed("a string is not UTF-8")));
    }

    #[test]
    fn a_string_with_a_nul_is_malformed() {
        assert_eq!(string(b"a\0"), Err(Malformed("a string contains a NUL")));
    }
}
