//! Which instructions this processor has.

use std::sync::OnceLock;

/// The sets of instructions for which there is code, the fastest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// AVX-512 F, BW and VL with VPCLMULQDQ: the data goes through registers only.
    Avx512,
    /// AVX2 with PCLMULQDQ: as well, a quarter of them at a time. CRC-32C is as in [`Self::Portable`].
    Avx2,
    /// Any processor: where others reach both source and target, the data goes through a private copy in the
    /// first-level cache.
    Portable,
}

impl Level {
    /// Every level, the fastest first.
    pub const ALL: [Self; 3] = [Self::Avx512, Self::Avx2, Self::Portable];

    /// Returns the fastest level of this processor.
    #[inline]
    pub fn best() -> Self {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            Self::ALL.into_iter().find(|level| level.is_available()).unwrap_or(Self::Portable)
        })
    }

    /// Returns whether this processor, and the operating system on it, has the level.
    pub fn is_available(self) -> bool {
        match self {
            Self::Avx512 => has_avx512(),
            Self::Avx2 => has_avx2(),
            Self::Portable => true,
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn has_avx512() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("vpclmulqdq")
}

#[cfg(target_arch = "x86_64")]
fn has_avx2() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("pclmulqdq")
}

#[cfg(not(target_arch = "x86_64"))]
const fn has_avx512() -> bool {
    false
}

#[cfg(not(target_arch = "x86_64"))]
const fn has_avx2() -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_level_is_available() {
        assert!(Level::best().is_available());
    }
}
