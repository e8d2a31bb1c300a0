//! When to look for work by spinning, and when to sleep.

use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps: up to a limit, and not at all while that has not paid.
#[derive(Debug)]
pub(crate) struct Spin {
    max: Duration,
    window: Duration,
    /// Since when nothing was found.
    idle: Option<Instant>,
    /// When the thread went to sleep.
    slept: Option<Instant>,
}

impl Spin {
    const FIRST: Duration = Duration::from_micros(4);

    /// Spins for at most `max` at a time; never when that is 0.
    pub(crate) const fn new(max: Duration) -> Self {
        Self { max, window: Duration::ZERO, idle: None, slept: None }
    }

    /// Says that there was work. A window in which it came is good for another; a sleep that a larger
    /// window would have saved makes it larger.
    pub(crate) fn worked(&mut self) {
        if self.max.is_zero() {
            return;
        }
        self.idle = None;
        if let Some(slept) = self.slept.take() {
            let could_have = slept.elapsed() + self.window <= self.max;
            if could_have {
                self.window = (self.window * 2).clamp(Self::FIRST, self.max);
            }
        }
    }

    /// Says that there is nothing to do. Returns whether to look again rather than to sleep.
    pub(crate) fn keep_looking(&mut self) -> bool {
        if self.window.is_zero() {
            return false;
        }
        let now = Instant::now();
        let since = *self.idle.get_or_insert(now);
        now - since < self.window
    }

    /// Says that the thread is about to sleep, because nothing came in the window.
    pub(crate) fn sleeping(&mut self) {
        if self.max.is_zero() {
            return;
        }
        self.idle = None;
        self.window /= 2;
        if self.window < Self::FIRST {
            self.window = Duration::ZERO;
        }
        self.slept = Some(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_limit_nobody_spins() {
        let mut spin = Spin::new(Duration::ZERO);
        spin.sleeping();
        spin.worked();
        assert!(!spin.keep_looking());
    }

    #[test]
    fn a_short_sleep_opens_the_window_and_vain_looking_closes_it() {
        let mut spin = Spin::new(Duration::from_secs(1));
        assert!(!spin.keep_looking());
        spin.sleeping();
        spin.worked();
        assert!(spin.window > Duration::ZERO && spin.keep_looking());
        while !spin.window.is_zero() {
            spin.sleeping();
        }
        assert!(!spin.keep_looking());
    }
}
