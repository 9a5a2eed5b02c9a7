//! Which layers must stay although no image here has them, and which are just being removed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use crisp_snapshot::ChainId;
use tokio::sync::Notify;

/// Layers that containers and pulls hold.
#[derive(Debug, Default)]
pub(crate) struct Pins {
    state: Mutex<State>,
    removed: Notify,
}

#[derive(Debug, Default)]
struct State {
    held: HashMap<ChainId, usize>,
    /// On their way out: too late to hold them, but soon they can be made again.
    dying: HashSet<ChainId>,
}

/// Keeps layers from being collected until it is dropped. It does not make them exist: mounting says whether they do. Who holds one and
/// then finds it in the layer store has it.
#[derive(Debug)]
#[must_use = "the layers may be collected when it is dropped"]
pub struct LayerPin {
    pins: Arc<Pins>,
    chain: Vec<ChainId>,
}

impl Drop for LayerPin {
    fn drop(&mut self) {
        let mut state = self.pins.lock();
        for id in &self.chain {
            if let Some(count) = state.held.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    state.held.remove(id);
                }
            }
        }
    }
}

/// A layer that is being removed; dropping it says that this is over.
#[derive(Debug)]
pub(crate) struct Dying<'a> {
    pins: &'a Pins,
    id: &'a ChainId,
}

impl Drop for Dying<'_> {
    fn drop(&mut self) {
        self.pins.lock().dying.remove(self.id);
        self.pins.removed.notify_waiters();
    }
}

impl Pins {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds these layers from now on.
    pub(crate) fn hold(self: &Arc<Self>, chain: &[ChainId]) -> LayerPin {
        let mut state = self.lock();
        for id in chain {
            *state.held.entry(id.clone()).or_default() += 1;
        }
        LayerPin { pins: Arc::clone(self), chain: chain.to_vec() }
    }

    /// As [`Self::hold`], but a layer that is being removed is gone when this returns.
    pub(crate) async fn hold_settled(self: &Arc<Self>, chain: &[ChainId]) -> LayerPin {
        let pin = self.hold(chain);
        loop {
            // Registered before the look, so that a removal that ends in between is not missed.
            let removed = self.removed.notified();
            if !chain.iter().any(|id| self.lock().dying.contains(id)) {
                return pin;
            }
            removed.await;
        }
    }

    /// Whether somebody holds the layer.
    pub(crate) fn is_held(&self, id: &ChainId) -> bool {
        self.lock().held.contains_key(id)
    }

    /// Begins the removal of a layer, unless it is held, removed already, or `referenced` says so under the lock.
    pub(crate) fn condemn<'a>(
        &'a self,
        id: &'a ChainId,
        referenced: impl FnOnce() -> bool,
    ) -> Option<Dying<'a>> {
        let mut state = self.lock();
        if state.held.contains_key(id) || referenced() || !state.dying.insert(id.clone()) {
            return None;
        }
        Some(Dying { pins: self, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(n: u8) -> ChainId {
        format!("sha256:{:064x}", n).parse().unwrap()
    }

    #[test]
    fn what_is_held_is_not_condemned() {
        let pins = Arc::new(Pins::default());
        let (a, b) = (pins.hold(&[chain(1), chain(2)]), pins.hold(&[chain(2)]));
        assert!(pins.condemn(&chain(1), || false).is_none());
        assert!(pins.condemn(&chain(3), || true).is_none());
        drop(a);
        assert!(pins.condemn(&chain(1), || false).is_some());
        assert!(pins.condemn(&chain(2), || false).is_none());
        drop(b);
        assert!(pins.condemn(&chain(2), || false).is_some());
    }

    #[tokio::test]
    async fn a_hold_waits_for_a_removal_to_end() {
        let pins = Arc::new(Pins::default());
        let id = chain(1);
        let dying = pins.condemn(&id, || false).unwrap();
        assert!(pins.condemn(&id, || false).is_none(), "it is removed once");
        let (late, ids) = (Arc::clone(&pins), [chain(1)]);
        let mut hold = tokio::spawn(async move { late.hold_settled(&ids).await });
        for _ in 0..3 {
            tokio::task::yield_now().await;
            assert!(!hold.is_finished());
        }
        drop(dying);
        let pin = (&mut hold).await.unwrap();
        assert!(pins.condemn(&id, || false).is_none());
        drop(pin);
    }
}
