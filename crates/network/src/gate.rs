//! Lets many work at once, or one alone: attaching and detaching against telling plugins what is left.
//!
//! A plugin that is told who is attached frees the rest, so nobody may be attached in between. Unlike with a
//! read-write lock, the one who wants to be alone never holds others up while it waits, and gives up in time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The gate.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    working: usize,
    alone: bool,
}

impl Gate {
    /// Waits while somebody is alone, then works beside others.
    pub(crate) fn enter(&self) -> Working<'_> {
        let mut state = self
            .changed
            .wait_while(self.state(), |state| state.alone)
            .unwrap_or_else(PoisonError::into_inner);
        state.working += 1;
        Working { gate: self }
    }

    /// Waits for an instant in which nobody works, at most `longest`; `None` when there was none.
    pub(crate) fn alone(&self, longest: Duration) -> Option<Alone<'_>> {
        let busy = |state: &mut State| state.working > 0 || state.alone;
        let (mut state, waited) = self
            .changed
            .wait_timeout_while(self.state(), longest, busy)
            .unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            return None;
        }
        state.alone = true;
        Some(Alone { gate: self })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Somebody works, until it is dropped.
#[derive(Debug)]
pub(crate) struct Working<'a> {
    gate: &'a Gate,
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.gate.state().working -= 1;
        self.gate.changed.notify_all();
    }
}

/// Nobody else works, until it is dropped.
#[derive(Debug)]
pub(crate) struct Alone<'a> {
    gate: &'a Gate,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        self.gate.state().alone = false;
        self.gate.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_work_at_once_and_one_alone() {
        const NOW: Duration = Duration::from_millis(1);
        const LONG: Duration = Duration::from_secs(30);
        let gate = Gate::default();
        let (a, b) = (gate.enter(), gate.enter());
        assert!(gate.alone(NOW).is_none());
        drop((a, b));
        let alone = gate.alone(NOW).unwrap();
        assert!(gate.alone(NOW).is_none());
        std::thread::scope(|scope| {
            let other = scope.spawn(|| drop(gate.enter()));
            drop(alone);
            other.join().unwrap();
            assert!(gate.alone(LONG).is_some());
        });
    }
}
