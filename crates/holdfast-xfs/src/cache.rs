//! What was read and may be of use again, up to a bound.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Values by their keys. When they weigh too much, one that was not used for long goes.
#[derive(Debug)]
pub(crate) struct Cache<K, V> {
    entries: HashMap<K, Entry<V>>,
    /// Every key once, that which is looked at next in front.
    hand: VecDeque<K>,
    weight: usize,
    weight_max: usize,
}

#[derive(Debug)]
struct Entry<V> {
    value: V,
    weight: usize,
    /// It was asked for since the hand passed.
    is_used: bool,
}

impl<K: Copy + Eq + Hash, V: Clone> Cache<K, V> {
    pub(crate) fn new(weight_max: usize) -> Self {
        Self { entries: HashMap::new(), hand: VecDeque::new(), weight: 0, weight_max }
    }

    pub(crate) fn find(&mut self, key: K) -> Option<V> {
        let entry = self.entries.get_mut(&key)?;
        entry.is_used = true;
        Some(entry.value.clone())
    }

    /// Keeps a value, unless it is heavier than all may be.
    pub(crate) fn insert(&mut self, key: K, value: V, weight: usize) {
        if weight > self.weight_max {
            return;
        }
        match self.entries.insert(key, Entry { value, weight, is_used: false }) {
            Some(old) => self.weight -= old.weight,
            None => self.hand.push_back(key),
        }
        self.weight += weight;
        self.shrink();
    }

    /// Forgets a value, which is not true any more.
    pub(crate) fn remove(&mut self, key: K) {
        if let Some(entry) = self.entries.remove(&key) {
            self.weight -= entry.weight;
            self.hand.retain(|&other| other != key);
        }
    }

    /// Says that a value has become heavier.
    pub(crate) fn grow(&mut self, key: K, by: usize) {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.weight += by;
            self.weight += by;
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        while self.weight > self.weight_max
            && let Some(key) = self.hand.pop_front()
        {
            match self.entries.get_mut(&key) {
                Some(entry) if entry.is_used => {
                    entry.is_used = false;
                    self.hand.push_back(key);
                }
                _ => {
                    let gone = self.entries.remove(&key);
                    self.weight -= gone.map_or(0, |entry| entry.weight);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_used_stays() {
        let mut cache = Cache::new(3);
        for key in 0..3 {
            cache.insert(key, key, 1);
        }
        assert_eq!(cache.find(0), Some(0));
        cache.insert(3, 3, 1);
        assert_eq!([0, 1, 2, 3].map(|key| cache.find(key)), [Some(0), None, Some(2), Some(3)]);
    }

    #[test]
    fn what_grows_too_heavy_goes() {
        let mut cache = Cache::new(10);
        cache.insert(1, 'a', 1);
        cache.grow(1, 10);
        assert_eq!((cache.find(1), cache.weight), (None, 0));
    }

    proptest! {
        #[test]
        fn no_more_than_the_bound_is_kept(
            steps in proptest::collection::vec((0..20_u8, 0..8_usize, 0..4_u8), 0..200),
        ) {
            let mut cache = Cache::new(20);
            for (key, weight, step) in steps {
                match step {
                    0 => drop(cache.find(key)),
                    1 => {
                        cache.remove(key);
                        prop_assert!(cache.find(key).is_none());
                    }
                    _ => cache.insert(key, (), weight),
                }
                let sum: usize = cache.entries.values().map(|entry| entry.weight).sum();
                prop_assert!(sum == cache.weight && sum <= 20);
                prop_assert_eq!(cache.hand.len(), cache.entries.len());
            }
        }
    }
}
