//! Numbers and bytes that look random and are the same each time.

/// Marsaglia's xorshift, from a seed that is not zero.
#[derive(Clone, Debug)]
pub(super) struct Noise(u64);

impl Noise {
    pub(super) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub(super) const fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        // The low bits of consecutive values are alike.
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }
}

/// So many bytes from a seed.
pub(super) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut noise = Noise::new(seed);
    let words = (0..len.div_ceil(8)).map(|_| noise.next().to_le_bytes());
    let mut bytes: Vec<u8> = words.flatten().collect();
    bytes.truncate(len);
    bytes
}
