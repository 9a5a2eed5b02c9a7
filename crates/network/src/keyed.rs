//! One lock per key, for as long as somebody wants it.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Locks by key: holders of different keys never wait for each other.
#[derive(Debug)]
pub(crate) struct KeyedLock<K> {
    held: Mutex<HashSet<K>>,
    released: Condvar,
}

impl<K: Hash + Eq + Clone + fmt::Debug> KeyedLock<K> {
    pub(crate) fn new() -> Self {
        Self { held: Mutex::new(HashSet::new()), released: Condvar::new() }
    }

    /// Waits until nobody holds `key`, then holds it until the guard is dropped.
    pub(crate) fn lock(&self, key: &K) -> KeyedGuard<'_, K> {
        let mut held = self
            .released
            .wait_while(self.held(), |held| held.contains(key))
            .unwrap_or_else(PoisonError::into_inner);
        held.insert(key.clone());
        KeyedGuard { lock: self, key: key.clone() }
    }

    fn held(&self) -> MutexGuard<'_, HashSet<K>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key that is held.
#[derive(Debug)]
pub(crate) struct KeyedGuard<'a, K: Hash + Eq + Clone + fmt::Debug> {
    lock: &'a KeyedLock<K>,
    key: K,
}

impl<K: Hash + Eq + Clone + fmt::Debug> Drop for KeyedGuard<'_, K> {
    fn drop(&mut self) {
        self.lock.held().remove(&self.key);
        self.lock.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn a_key_has_one_holder_and_other_keys_are_free() {
        let lock = KeyedLock::new();
        let (inside, most) = (AtomicU32::new(0), AtomicU32::new(0));
        let other = lock.lock(&"b");
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let _held = lock.lock(&"a");
                        most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        drop(other);
        assert_eq!(most.into_inner(), 1);
        assert!(lock.held().is_empty());
    }
}
