//! What a client sends during the handshake, cut in two ways.
//!
//! The first byte decides where the rest is cut. The pieces have to lead to the same answer as the whole, never
//! more may be consumed than there is, and the answer is bounded by what was sent.

#![no_main]

use std::sync::Arc;

use holdfast_nbd::{
    BlockSizes, Export, INPUT_LEN_MAX, Negotiation, NegotiationError, Outcome, PAYLOAD_LEN_MAX,
    Step,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&cuts, stream)) = data.split_first() else {
        return;
    };
    let whole = talk(stream, || usize::MAX);
    let mut state = u32::from(cuts);
    let pieces = talk(stream, || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as usize % 24
    });
    assert_eq!(whole, pieces);
    // A list of both exports is the longest answer, and no option is shorter than its header.
    assert!(whole.0.len() <= GREETING_LEN + (stream.len() / OPTION_HEADER_LEN + 1) * 256);
});

const GREETING_LEN: usize = 18;
const OPTION_HEADER_LEN: usize = 16;

type Talk = (Vec<u8>, Result<(usize, Outcome), NegotiationError>);

fn talk(stream: &[u8], mut piece: impl FnMut() -> usize) -> Talk {
    let mut negotiation = Negotiation::new(exports());
    let mut output = Vec::new();
    negotiation.greeting(&mut output);
    let (mut start, mut end) = (0, 0);
    loop {
        end = stream.len().min(piece().saturating_add(end));
        let Step { consumed, outcome } = match negotiation.advance(&stream[start..end], &mut output)
        {
            Ok(step) => step,
            Err(error) => return (output, Err(error)),
        };
        assert!(consumed <= end - start);
        start += consumed;
        if outcome != Outcome::NeedMore || end == stream.len() {
            return (output, Ok((start, outcome)));
        }
        assert!(end - start < INPUT_LEN_MAX);
    }
}

fn exports() -> Arc<[Export]> {
    let block_size = BlockSizes { minimum: 512, preferred: 4096, maximum: PAYLOAD_LEN_MAX };
    let export = |name: &str, read_only| Export {
        name: name.to_owned(),
        description: "for the fuzzer".to_owned(),
        size: 1 << 30,
        read_only,
        block_size,
    };
    [export("", false), export("ro", true)].into()
}
