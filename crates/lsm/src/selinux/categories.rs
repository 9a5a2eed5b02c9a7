//! Pairs of categories: which are in use on this node.

use std::collections::HashMap;
use std::fmt;

use crate::{LsmError, Result};

/// Categories of a policy with MCS: `c0` to `c1023`.
pub(super) const CATEGORIES: u16 = 1024;
/// Ways to choose two of them.
const PAIRS: usize = CATEGORIES as usize * (CATEGORIES as usize - 1) / 2;

/// Two different categories, the smaller one first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    low: u16,
    high: u16,
}

impl Pair {
    /// The pair of a level like `s0:c1,c2`.
    pub(super) fn of_level(level: &str) -> Option<Self> {
        let (_, categories) = level.split_once(':')?;
        let (one, other) = categories.split_once(',')?;
        let (one, other) = (number(one)?, number(other)?);
        let pair = Self { low: one.min(other), high: one.max(other) };
        (pair.low < pair.high && pair.high < CATEGORIES).then_some(pair)
    }

    /// The pairs in a row: all with the high part 1, then all with 2, and so on.
    fn nth(mut index: usize) -> Self {
        let mut high = 1;
        while index >= usize::from(high) {
            index -= usize::from(high);
            high += 1;
        }
        Self { low: u16::try_from(index).unwrap_or(0), high }
    }

    fn next(self) -> Self {
        match (self.low + 1 < self.high, self.high + 1 < CATEGORIES) {
            (true, _) => Self { low: self.low + 1, ..self },
            (false, true) => Self { low: 0, high: self.high + 1 },
            (false, false) => Self { low: 0, high: 1 },
        }
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "c{},c{}", self.low, self.high)
    }
}

/// The number of a category like `c17`.
pub(super) fn number(text: &str) -> Option<u16> {
    let digits = text.strip_prefix('c')?;
    digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
}

/// The pairs in use, each with the number of pods that have it: a request may name one that another pod has.
#[derive(Debug, Default)]
pub(super) struct Pool {
    used: HashMap<Pair, usize>,
}

impl Pool {
    /// A pair that nobody has. Chosen at random, so that one which was used before comes back late.
    ///
    /// # Errors
    /// [`LsmError::NoCategories`].
    pub(super) fn take(&mut self) -> Result<Pair> {
        let mut random = [0; 8];
        // Where it does not matter who can guess it, no randomness is no reason to fail.
        getrandom::fill(&mut random).ok();
        let mut pair = Pair::nth(usize::from_ne_bytes(random) % PAIRS);
        if self.used.len() >= PAIRS {
            return Err(LsmError::NoCategories(PAIRS));
        }
        while self.used.contains_key(&pair) {
            pair = pair.next();
        }
        self.reserve(pair);
        Ok(pair)
    }

    pub(super) fn reserve(&mut self, pair: Pair) {
        *self.used.entry(pair).or_insert(0) += 1;
    }

    pub(super) fn give_back(&mut self, pair: Pair) {
        let left = self.used.get(&pair).copied().unwrap_or(0);
        if left > 1 {
            self.used.insert(pair, left - 1);
        } else {
            self.used.remove(&pair);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_pair_is_reached_once() {
        let mut seen = HashSet::new();
        let mut pair = Pair::nth(0);
        for _ in 0..PAIRS {
            assert!(pair.low < pair.high && pair.high < CATEGORIES);
            assert!(seen.insert(pair));
            pair = pair.next();
        }
        assert_eq!(pair, Pair::nth(0));
        assert_eq!(Pair::nth(PAIRS - 1), Pair { low: 1022, high: 1023 });
    }

    #[test]
    fn the_last_free_pair_is_found_and_then_there_is_none() {
        let mut pool = Pool::default();
        let some = Pair { low: 3, high: 700 };
        let mut pair = Pair::nth(0);
        for _ in 0..PAIRS {
            pool.reserve(pair);
            pair = pair.next();
        }
        assert!(matches!(pool.take(), Err(LsmError::NoCategories(_))));
        pool.give_back(some);
        assert_eq!(pool.take().unwrap(), some);
    }

    #[test]
    fn a_pair_with_two_owners_is_free_when_both_are_gone() {
        let mut pool = Pool::default();
        let pair = pool.take().unwrap();
        pool.reserve(pair);
        pool.give_back(pair);
        assert!(pool.used.contains_key(&pair));
        pool.give_back(pair);
        pool.give_back(pair);
        assert!(pool.used.is_empty());
    }

    #[test]
    fn pairs_read_back_from_levels() {
        let pair = Pair { low: 1, high: 1023 };
        assert_eq!(Pair::of_level(&format!("s0:{pair}")), Some(pair));
        assert_eq!(Pair::of_level("s0:c1023,c1"), Some(pair));
        for other in ["s0", "s0:c1", "s0:c1.c2", "s0:c1,c2,c3", "s0:c1,c1", "s0:c1,c1024", "s0:c1,c+2"] {
            assert_eq!(Pair::of_level(other), None, "{other}");
        }
    }
}
