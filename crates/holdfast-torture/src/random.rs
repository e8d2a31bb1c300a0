//! Numbers from a seed.

/// A generator of numbers, the same for the same seed: Vigna's `SplitMix64`.
#[derive(Clone, Debug)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// Returns the generator for `seed`.
    pub(crate) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// Returns the next number.
    pub(crate) const fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number below `limit`, which is above 0.
    pub(crate) const fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// Returns an index below `limit`, which is above 0.
    pub(crate) const fn index(&mut self, limit: usize) -> usize {
        holdfast_units::to_usize(self.below(holdfast_units::to_u64(limit)))
    }

    /// Returns `true` in `percent` of 100 cases.
    pub(crate) const fn chance(&mut self, percent: u8) -> bool {
        self.below(100) < percent as u64
    }

    /// Returns a generator of its own for something else.
    pub(crate) const fn fork(&mut self) -> Self {
        Self::new(self.next())
    }
}
