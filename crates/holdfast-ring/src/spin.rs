//! When to look for work by spinning, and when to sleep.

use std::time::{Duration, Instant};

/// How long a thread looks at its ring before it sleeps there: up to a limit, and not at all while that has not
/// paid.
///
/// The window doubles, from 4 us on, when what came so soon after falling asleep would have been found by looking; it
/// halves when the thread slept for longer.
#[derive(Debug)]
pub struct Spin {
    max: Duration,
    window: Duration,
    /// Since when nothing was found.
    idle: Option<Instant>,
    /// When the thread went to sleep.
    slept: Option<Instant>,
}

impl Spin {
    /// How long those look who do not choose: about as long as it takes to wake two threads that wait for each
    /// other on other processors.
    pub const PATIENCE: Duration = Duration::from_micros(64);
    const FIRST: Duration = Duration::from_micros(4);

    /// Spins for at most `max` at a time; never when that is 0.
    pub const fn new(max: Duration) -> Self {
        Self { max, window: Duration::ZERO, idle: None, slept: None }
    }

    /// Says that there was work. A sleep that the largest window would have saved makes the window larger, a
    /// longer one makes it smaller.
    pub fn worked(&mut self) {
        self.idle = None;
        let Some(slept) = self.slept.take() else { return };
        if slept.elapsed() + self.window <= self.max {
            self.window = (self.window * 2).clamp(Self::FIRST.min(self.max), self.max);
        } else {
            self.window /= 2;
            if self.window < Self::FIRST {
                self.window = Duration::ZERO;
            }
        }
    }

    /// Says that there is nothing to do. Returns whether to look again rather than to sleep.
    pub fn keep_looking(&mut self) -> bool {
        if self.window.is_zero() {
            return false;
        }
        let now = Instant::now();
        let since = *self.idle.get_or_insert(now);
        now - since < self.window
    }

    /// Says that the thread is about to sleep, because nothing came in the window.
    pub fn sleeping(&mut self) {
        self.idle = None;
        self.slept = (!self.max.is_zero()).then(Instant::now);
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
    fn short_sleeps_open_the_window_and_long_ones_close_it() {
        let max = Duration::from_secs(1000);
        let mut spin = Spin::new(max);
        assert!(!spin.keep_looking());
        for _ in 0..60 {
            spin.sleeping();
            spin.worked();
        }
        assert!(spin.window >= max / 4 && spin.keep_looking());
        let mut sleeps = 0;
        while spin.keep_looking() {
            spin.sleeping();
            spin.slept = Instant::now().checked_sub(2 * max);
            spin.worked();
            sleeps += 1;
        }
        assert!(sleeps < 60, "{sleeps} long sleeps");
    }

    #[test]
    fn looking_in_vain_once_leaves_the_window_as_it_is() {
        let mut spin = Spin::new(Duration::from_secs(1000));
        for _ in 0..2 {
            spin.sleeping();
            spin.worked();
        }
        let window = spin.window;
        spin.sleeping();
        assert_eq!(spin.window, window);
    }
}
