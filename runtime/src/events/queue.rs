//! What one listener has not taken yet.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crisp_domain::ErrorKind;
use tokio::sync::Notify;

use super::Event;
use crate::error::{Error, Result};

/// Events that wait for a listener, beside those of its snapshot. A kubelet with 110 pods that are deleted at once fits.
pub(super) const EVENTS_WAITING_MAX: usize = 1024;

/// One producer (the hub), one consumer (the stream).
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// What was there when the listener came; bounded by what there was.
    present: VecDeque<Arc<Event>>,
    events: VecDeque<Arc<Event>>,
    end: Option<End>,
}

/// Why no more events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    TooSlow,
    Closed,
}

/// The listener missed events.
#[derive(Debug, thiserror::Error)]
#[error("{EVENTS_WAITING_MAX} events wait for this client; list anew and listen again")]
struct TooSlow;

impl Queue {
    pub(super) fn new(present: VecDeque<Arc<Event>>) -> Self {
        let state = State { present, events: VecDeque::new(), end: None };
        Self { state: Mutex::new(state), changed: Notify::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event; whether the listener wants more. One that is too slow loses what waits for it.
    pub(super) fn push(&self, event: &Arc<Event>) -> bool {
        let mut state = self.state();
        if state.events.len() >= EVENTS_WAITING_MAX {
            *state = State { present: VecDeque::new(), events: VecDeque::new(), end: Some(End::TooSlow) };
        } else {
            state.events.push_back(Arc::clone(event));
        }
        self.changed.notify_one();
        state.end.is_none()
    }

    /// No more events come; those that wait are still given.
    pub(super) fn close(&self) {
        self.state().end.get_or_insert(End::Closed);
        self.changed.notify_one();
    }

    /// The next event, as soon as there is one; `None` at the end.
    ///
    /// Errors: of kind [`ErrorKind::Exhausted`] when the listener was too slow.
    pub(super) async fn next(&self) -> Option<Result<Arc<Event>>> {
        loop {
            // A notification that comes between the look and the wait is kept: there is one consumer.
            let (next, end) = {
                let mut state = self.state();
                (state.present.pop_front().or_else(|| state.events.pop_front()), state.end)
            };
            match (next, end) {
                (_, Some(End::TooSlow)) => {
                    return Some(Err(Error::step("tell events", ErrorKind::Exhausted, TooSlow)));
                }
                (Some(event), Some(End::Closed) | None) => return Some(Ok(event)),
                (None, Some(End::Closed)) => return None,
                (None, None) => self.changed.notified().await,
            }
        }
    }
}
