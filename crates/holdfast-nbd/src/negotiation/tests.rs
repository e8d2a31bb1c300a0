//! What a client may say in a handshake, and what it is answered.

use proptest::prelude::*;

use super::*;
use crate::export::BlockSizes;

const OLD: u32 = 0;
const FIXED: u32 = wire::FLAG_C_FIXED_NEWSTYLE;
const BOTH: u32 = wire::FLAG_C_FIXED_NEWSTYLE | wire::FLAG_C_NO_ZEROES;

fn exports() -> Arc<[Export]> {
    let block_size = BlockSizes { minimum: 512, preferred: 4096, maximum: 1 << 25 };
    let export = |name: &str, description: &str, size, read_only| Export {
        name: name.into(),
        description: description.into(),
        size,
        read_only,
        block_size,
    };
    [export("", "the default", 0x0010_0000, false), export("ro", "", 0x0020_0000, true)].into()
}

/// What a client sends: its flags, then options.
struct Client(Vec<u8>);

impl Client {
    fn new(flags: u32) -> Self {
        Self(flags.to_be_bytes().into())
    }

    fn option(mut self, option: u32, data: &[u8]) -> Self {
        self.0.extend(wire::OPTION_MAGIC.to_be_bytes());
        self.0.extend(option.to_be_bytes());
        self.0.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        self.0.extend(data);
        self
    }

    fn structured(self) -> Self {
        self.option(wire::OPT_STRUCTURED_REPLY, b"")
    }

    fn set_context(self, export: &str, queries: &[&str]) -> Self {
        self.option(wire::OPT_SET_META_CONTEXT, &contexts(export, queries))
    }

    fn go(self, export: &str) -> Self {
        self.option(wire::OPT_GO, &info(export, &[]))
    }

    fn talk(&self) -> Talk {
        let mut output = Vec::new();
        let result = Negotiation::new(exports()).advance(&self.0, &mut output);
        Talk { output, result }
    }
}

/// What the server made of it.
#[derive(Debug, PartialEq)]
struct Talk {
    output: Vec<u8>,
    result: Result<Step, NegotiationError>,
}

impl Talk {
    fn outcome(&self) -> Outcome {
        self.result.as_ref().expect("no error").outcome
    }

    fn agreed(&self) -> Agreed {
        match self.outcome() {
            Outcome::Transmission(agreed) => agreed,
            other => panic!("not in transmission: {other:?}"),
        }
    }

    /// Each reply: to which option, of which kind, with which data.
    fn replies(&self) -> Vec<(u32, u32, Vec<u8>)> {
        let mut rest = &self.output[..];
        let mut replies = Vec::new();
        while !rest.is_empty() {
            let (header, data) = wire::OptionReply::ref_from_prefix(rest).expect("a whole header");
            assert_eq!(header.magic.get(), wire::OPTION_REPLY_MAGIC);
            let (data, after) = data.split_at(header.length.get().try_into().unwrap());
            replies.push((header.option.get(), header.kind.get(), data.to_vec()));
            rest = after;
        }
        replies
    }

    /// The kind of each reply.
    fn kinds(&self) -> Vec<u32> {
        self.replies().into_iter().map(|(_, kind, _)| kind).collect()
    }
}

fn sized(text: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

fn info(export: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = sized(export);
    data.extend(u16::try_from(kinds.len()).unwrap().to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn contexts(export: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = sized(export);
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    data.extend(queries.iter().flat_map(|query| sized(query)));
    data
}

// The greeting and the client's flags.

#[test]
fn the_greeting_offers_fixed_newstyle_without_zeroes() {
    let mut output = Vec::new();
    Negotiation::new(exports()).greeting(&mut output);
    assert_eq!(output, b"NBDMAGICIHAVEOPT\0\x03");
}

#[test]
fn an_unknown_client_flag_ends_the_connection() {
    let expected = NegotiationError::UnknownClientFlags { found: 0b101 };
    assert_eq!(Client::new(0b101).talk().result, Err(expected));
}

#[test]
fn three_bytes_of_flags_are_not_consumed() {
    let talk = Client(vec![0; 3]).talk();
    assert_eq!(talk.result, Ok(Step { consumed: 0, outcome: Outcome::NeedMore }));
}

#[test]
fn an_old_client_may_choose_an_export() {
    let talk = Client::new(OLD).option(wire::OPT_EXPORT_NAME, b"ro").talk();
    assert_eq!(talk.agreed(), Agreed { export: 1, structured: false, base_allocation: None });
}

#[test]
fn an_old_client_may_do_nothing_else() {
    let talk = Client::new(OLD).option(wire::OPT_LIST, b"").talk();
    let expected = NegotiationError::NotFixedNewstyle { option: wire::OPT_LIST };
    assert_eq!((talk.result, talk.output), (Err(expected), vec![]));
}

// EXPORT_NAME.

#[test]
fn an_export_name_is_answered_with_size_flags_and_zeroes() {
    let talk = Client::new(FIXED).option(wire::OPT_EXPORT_NAME, b"").talk();
    let mut expected = b"\0\0\0\0\0\x10\0\0\x0d\x6d".to_vec();
    expected.extend([0; 124]);
    assert_eq!(talk.output, expected);
}

#[test]
fn the_zeroes_are_left_out_when_both_sides_agreed() {
    let talk = Client::new(BOTH).option(wire::OPT_EXPORT_NAME, b"").talk();
    assert_eq!(talk.output, b"\0\0\0\0\0\x10\0\0\x0d\x6d");
}

#[test]
fn an_unknown_export_name_ends_the_connection() {
    let talk = Client::new(BOTH).option(wire::OPT_EXPORT_NAME, b"nope").talk();
    assert_eq!(talk.result, Err(NegotiationError::UnknownExport { name: "nope".into() }));
}

#[test]
fn an_export_name_that_is_not_utf8_ends_the_connection() {
    let talk = Client::new(BOTH).option(wire::OPT_EXPORT_NAME, b"\xff").talk();
    assert_eq!(talk.result, Err(NegotiationError::UnknownExport { name: "\u{fffd}".into() }));
}

// ABORT, LIST, and what is not supported.

#[test]
fn an_abort_is_answered_and_closes() {
    let talk = Client::new(BOTH).option(wire::OPT_ABORT, b"ignored").talk();
    let replies = vec![(wire::OPT_ABORT, wire::REP_ACK, vec![])];
    assert_eq!((talk.outcome(), talk.replies()), (Outcome::Closed, replies));
}

#[test]
fn a_list_has_each_export_with_its_description() {
    let talk = Client::new(BOTH).option(wire::OPT_LIST, b"").talk();
    let expected = [
        (wire::OPT_LIST, wire::REP_SERVER, b"\0\0\0\0the default".to_vec()),
        (wire::OPT_LIST, wire::REP_SERVER, b"\0\0\0\x02ro".to_vec()),
        (wire::OPT_LIST, wire::REP_ACK, vec![]),
    ];
    assert_eq!(talk.replies(), expected);
}

#[test]
fn a_list_with_data_is_invalid() {
    assert_eq!(
        Client::new(BOTH).option(wire::OPT_LIST, b"x").talk().kinds(),
        [wire::REP_ERR_INVALID]
    );
}

#[test]
fn lists_that_add_up_to_too_much_are_too_big() {
    let name = "n".repeat(4096);
    let export = exports()[0].clone();
    let long: Arc<[Export]> = vec![Export { name, ..export }; 600].into();
    let client = Client::new(BOTH).option(wire::OPT_LIST, b"").option(wire::OPT_LIST, b"");
    let mut output = Vec::new();
    let result = Negotiation::new(long).advance(&client.0, &mut output);
    let kinds = Talk { output, result }.kinds();
    assert_eq!(kinds[600..], [wire::REP_ACK, wire::REP_ERR_TOO_BIG]);
}

#[test]
fn options_that_are_not_supported_say_so_and_change_nothing() {
    for option in [0, 4, 5, 11, 12, u32::MAX] {
        let talk = Client::new(BOTH).option(option, b"data").go("ro").talk();
        let expected = [wire::REP_ERR_UNSUP, wire::REP_INFO, wire::REP_INFO, wire::REP_ACK];
        assert_eq!(talk.kinds(), expected, "option {option}");
    }
}

// INFO and GO.

#[test]
fn information_has_the_size_the_flags_and_the_block_sizes_unasked() {
    let talk = Client::new(BOTH).option(wire::OPT_INFO, &info("", &[])).talk();
    let sizes = b"\0\x03\0\0\x02\0\0\0\x10\0\x02\0\0\0".to_vec();
    let expected = [
        (wire::OPT_INFO, wire::REP_INFO, b"\0\0\0\0\0\0\0\x10\0\0\x0d\x6d".to_vec()),
        (wire::OPT_INFO, wire::REP_INFO, sizes),
        (wire::OPT_INFO, wire::REP_ACK, vec![]),
    ];
    assert_eq!(talk.replies(), expected);
}

#[test]
fn information_has_the_name_and_the_description_when_asked() {
    let kinds = [wire::INFO_DESCRIPTION, 99, wire::INFO_NAME];
    let talk = Client::new(BOTH).option(wire::OPT_INFO, &info("", &kinds)).talk();
    let texts: Vec<_> = talk.replies().into_iter().skip(2).map(|(_, _, data)| data).collect();
    assert_eq!(texts, [b"\0\x01".to_vec(), b"\0\x02the default".to_vec(), vec![]]);
}

#[test]
fn information_does_not_end_the_negotiation() {
    let talk = Client::new(BOTH).option(wire::OPT_INFO, &info("ro", &[])).talk();
    assert_eq!(talk.outcome(), Outcome::NeedMore);
}

#[test]
fn going_begins_the_transmission() {
    let talk = Client::new(BOTH).go("ro").talk();
    assert_eq!(talk.agreed(), Agreed { export: 1, structured: false, base_allocation: None });
}

#[test]
fn requests_after_going_are_not_consumed() {
    let mut client = Client::new(BOTH).go("ro");
    let handshake = client.0.len();
    client.0.extend(b"requests");
    assert_eq!(client.talk().result.unwrap().consumed, handshake);
}

#[test]
fn structured_replies_add_unfragmented_reads_to_the_flags() {
    let talk = Client::new(BOTH).structured().go("ro").talk();
    assert_eq!(talk.replies()[1].2, b"\0\0\0\0\0\0\0\x20\0\0\x05\x87");
}

#[test]
fn an_unknown_export_is_unknown_and_another_may_be_tried() {
    let talk = Client::new(BOTH).go("nope").go("ro").talk();
    assert_eq!((talk.kinds()[0], talk.agreed().export), (wire::REP_ERR_UNKNOWN, 1));
}

#[test]
fn going_with_lengths_that_disagree_is_invalid() {
    let mut data = info("ro", &[wire::INFO_NAME]);
    data.pop();
    assert_eq!(
        Client::new(BOTH).option(wire::OPT_GO, &data).talk().kinds(),
        [wire::REP_ERR_INVALID]
    );
}

#[test]
fn going_with_a_name_that_is_not_utf8_is_invalid() {
    let talk = Client::new(BOTH).option(wire::OPT_GO, b"\0\0\0\x01\xff\0\0").talk();
    assert_eq!(talk.kinds(), [wire::REP_ERR_INVALID]);
}

// STRUCTURED_REPLY and metadata contexts.

#[test]
fn structured_replies_may_be_asked_for_twice() {
    let talk = Client::new(BOTH).structured().structured().go("").talk();
    assert!(talk.agreed().structured);
}

#[test]
fn structured_replies_with_data_are_invalid() {
    let talk = Client::new(BOTH).option(wire::OPT_STRUCTURED_REPLY, b"x").go("").talk();
    assert_eq!((talk.kinds()[0], talk.agreed().structured), (wire::REP_ERR_INVALID, false));
}

#[test]
fn contexts_need_structured_replies() {
    let data = contexts("", &["base:allocation"]);
    for option in [wire::OPT_LIST_META_CONTEXT, wire::OPT_SET_META_CONTEXT] {
        let talk = Client::new(BOTH).option(option, &data).talk();
        assert_eq!(talk.kinds(), [wire::REP_ERR_INVALID], "option {option}");
    }
}

#[test]
fn a_selected_context_is_agreed_on() {
    let talk =
        Client::new(BOTH).structured().set_context("ro", &["base:allocation"]).go("ro").talk();
    let reply =
        (wire::OPT_SET_META_CONTEXT, wire::REP_META_CONTEXT, b"\0\0\0\x01base:allocation".to_vec());
    assert_eq!((&talk.replies()[1], talk.agreed().base_allocation), (&reply, Some(1)));
}

#[test]
fn a_context_selected_twice_in_one_query_is_one_context() {
    let queries = ["base:allocation", "x-mine:a", "base:allocation"];
    let talk = Client::new(BOTH).structured().set_context("", &queries).talk();
    assert_eq!(talk.kinds(), [wire::REP_ACK, wire::REP_META_CONTEXT, wire::REP_ACK]);
}

#[test]
fn a_context_selected_for_another_export_is_dropped() {
    let talk = Client::new(BOTH).structured().set_context("ro", &["base:allocation"]).go("").talk();
    assert_eq!(talk.agreed().base_allocation, None);
}

#[test]
fn a_context_also_counts_for_an_export_name() {
    let client = Client::new(BOTH).structured().set_context("ro", &["base:allocation"]);
    let talk = client.option(wire::OPT_EXPORT_NAME, b"ro").talk();
    assert_eq!(talk.agreed().base_allocation, Some(1));
}

#[test]
fn selecting_nothing_drops_what_was_selected() {
    let client = Client::new(BOTH).structured().set_context("", &["base:allocation"]);
    assert_eq!(client.set_context("", &[]).go("").talk().agreed().base_allocation, None);
}

#[test]
fn a_selection_that_fails_drops_what_was_selected() {
    let client = Client::new(BOTH).structured().set_context("", &["base:allocation"]);
    let talk = client.option(wire::OPT_SET_META_CONTEXT, b"?").go("").talk();
    assert_eq!(talk.agreed().base_allocation, None);
}

#[test]
fn the_wildcard_selects_nothing() {
    let talk = Client::new(BOTH).structured().set_context("", &["base:"]).go("").talk();
    assert_eq!((talk.kinds()[1], talk.agreed().base_allocation), (wire::REP_ACK, None));
}

#[test]
fn a_selection_for_an_unknown_export_is_unknown() {
    let talk = Client::new(BOTH).structured().set_context("nope", &["base:allocation"]).talk();
    assert_eq!(talk.kinds()[1..], [wire::REP_ERR_UNKNOWN]);
}

#[test]
fn contexts_are_listed_for_no_query_the_wildcard_and_the_name() {
    for queries in [&[][..], &["base:"], &["x-mine:a", "base:allocation"]] {
        let data = contexts("", queries);
        let talk = Client::new(BOTH).structured().option(wire::OPT_LIST_META_CONTEXT, &data).talk();
        let expected = b"\0\0\0\0base:allocation".to_vec();
        assert_eq!(talk.replies()[1].2, expected, "queries {queries:?}");
    }
}

#[test]
fn no_context_is_listed_for_another_query() {
    let data = contexts("", &["base:other", "qemu:", "nonsense"]);
    let talk = Client::new(BOTH).structured().option(wire::OPT_LIST_META_CONTEXT, &data).talk();
    assert_eq!(talk.kinds()[1..], [wire::REP_ACK]);
}

#[test]
fn listing_contexts_selects_none() {
    let data = contexts("", &["base:allocation"]);
    let talk =
        Client::new(BOTH).structured().option(wire::OPT_LIST_META_CONTEXT, &data).go("").talk();
    assert_eq!(talk.agreed().base_allocation, None);
}

// Limits and the end.

#[test]
fn a_wrong_magic_ends_the_connection() {
    let mut client = Client::new(BOTH).option(wire::OPT_LIST, b"");
    client.0[4] ^= 1;
    assert!(matches!(client.talk().result, Err(NegotiationError::BadMagic { .. })));
}

#[test]
fn an_option_of_the_longest_length_is_answered() {
    let talk = Client::new(BOTH).option(99, &[0; OPTION_LEN_MAX]).talk();
    assert_eq!(talk.kinds(), [wire::REP_ERR_UNSUP]);
}

#[test]
fn a_longer_option_ends_the_connection_before_its_data_came() {
    let mut client = Client::new(BOTH).option(99, b"");
    client.0[16..].copy_from_slice(&16369u32.to_be_bytes());
    let expected = NegotiationError::OptionTooLong { option: 99, maximum: 16368, found: 16369 };
    assert_eq!(client.talk().result, Err(expected));
}

#[test]
fn one_option_too_many_ends_the_connection() {
    let mut client = Client::new(BOTH);
    for _ in 0..=OPTIONS_MAX {
        client = client.option(99, b"");
    }
    let talk = client.talk();
    let expected = NegotiationError::TooManyOptions { maximum: OPTIONS_MAX };
    assert_eq!((talk.kinds().len(), talk.result), (1024, Err(expected)));
}

#[test]
fn an_error_is_followed_by_the_end() {
    let mut negotiation = Negotiation::new(exports());
    let mut output = Vec::new();
    negotiation.advance(&[0xff; 4], &mut output).unwrap_err();
    let step = negotiation.advance(&Client::new(BOTH).go("").0, &mut output);
    assert_eq!(step, Ok(Step { consumed: 0, outcome: Outcome::Closed }));
}

#[test]
fn the_end_is_said_again() {
    let mut negotiation = Negotiation::new(exports());
    let mut output = Vec::new();
    let first = negotiation.advance(&Client::new(BOTH).go("").0, &mut output).unwrap();
    let second = negotiation.advance(b"a request", &mut output).unwrap();
    assert_eq!((second.consumed, second.outcome), (0, first.outcome));
}

#[test]
fn a_long_description_is_cut_between_characters() {
    let description = "\u{e9}".repeat(2049);
    assert_eq!(clipped(&format!("x{description}")).len(), 4095);
}

/// Feeds `stream` in pieces, as a session does, and says how much was consumed of it.
fn talk_in_pieces(stream: &[u8], pieces: &[usize]) -> Talk {
    let mut negotiation = Negotiation::new(exports());
    let (mut output, mut start, mut end) = (Vec::new(), 0, 0);
    let mut pieces = pieces.iter();
    loop {
        end = pieces.next().map_or(stream.len(), |piece| stream.len().min(end + piece));
        let step = match negotiation.advance(&stream[start..end], &mut output) {
            Ok(step) => step,
            Err(error) => return Talk { output, result: Err(error) },
        };
        start += step.consumed;
        assert!(start <= end && end - start < INPUT_LEN_MAX, "{start} consumed of {end}");
        if step.outcome != Outcome::NeedMore || end == stream.len() {
            return Talk { output, result: Ok(Step { consumed: start, ..step }) };
        }
    }
}

fn any_name() -> impl Strategy<Value = &'static str> {
    prop_oneof![Just(""), Just("ro"), Just("nope")]
}

fn any_option() -> impl Strategy<Value = (u32, Vec<u8>)> {
    let query = prop_oneof![Just("base:allocation"), Just("base:"), Just("base:x"), Just("x-a:b")];
    let queries = prop::collection::vec(query, 0..3);
    let kinds = prop::collection::vec(0..5u16, 0..4);
    prop_oneof![
        8 => (6..=7u32, any_name(), kinds).prop_map(|(option, name, kinds)| (option, info(name, &kinds))),
        8 => (9..=10u32, any_name(), queries)
            .prop_map(|(option, name, queries)| (option, contexts(name, &queries))),
        8 => prop_oneof![Just(3), Just(8), Just(8)].prop_map(|option| (option, vec![])),
        1 => any_name().prop_map(|name| (1, name.into())),
        1 => Just((2, vec![])),
        4 => (0..14u32, prop::collection::vec(any::<u8>(), 0..40)),
    ]
}

fn any_stream() -> impl Strategy<Value = Vec<u8>> {
    (0..4u32, prop::collection::vec(any_option(), 0..12)).prop_map(|(flags, options)| {
        options
            .iter()
            .fold(Client::new(flags), |client, (option, data)| client.option(*option, data))
            .0
    })
}

proptest! {
    #[test]
    fn where_the_stream_is_cut_makes_no_difference(
        stream in any_stream(),
        pieces in prop::collection::vec(0..30usize, 0..60),
    ) {
        prop_assert_eq!(talk_in_pieces(&stream, &pieces), talk_in_pieces(&stream, &[]));
    }

    #[test]
    fn no_bytes_make_it_panic(
        stream in any_stream(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        pieces in prop::collection::vec(0..30usize, 0..20),
    ) {
        let mut stream = stream;
        for (index, byte) in damage {
            let index = index.index(stream.len());
            stream[index] = byte;
        }
        let output = talk_in_pieces(&stream, &pieces).output;
        // No answer to these exports is longer than a list, and no option is shorter than its header.
        prop_assert!(output.len() <= (stream.len() / 16 + 1) * 256);
    }
}
