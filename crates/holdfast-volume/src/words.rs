//! Tuples as they are stored, one behind the other: big-endian words of 64 bits, one or two for each.

/// Returns the tuple at `index`; the second word is 0 where a tuple has one.
pub(crate) fn words_at(bytes: &[u8], tuple_words: usize, index: usize) -> [u64; 2] {
    let len = tuple_words * 8;
    let mut words = [0; 2];
    for (word, bytes) in words.iter_mut().zip(bytes[index * len..][..len].as_chunks().0) {
        *word = u64::from_be_bytes(*bytes);
    }
    words
}

/// Makes `words` the tuple at `index`.
pub(crate) fn put_words(bytes: &mut [u8], tuple_words: usize, index: usize, words: [u64; 2]) {
    let len = tuple_words * 8;
    for (bytes, word) in bytes[index * len..][..len].as_chunks_mut().0.iter_mut().zip(words) {
        *bytes = word.to_be_bytes();
    }
}
