//! The states of a pod sandbox.
//!
//! ```text
//!  Creating ──made──▶ Ready ──stop──▶ Stopping ──stopped──▶ NotReady ──remove──▶ (gone)
//!     │                 └──shim or PID 1 died──────────────▲
//!     └──failed──▶ (gone, or NotReady when the clean-up failed too)
//! ```
//! Ready never comes back. `Creating` is invisible to clients.
#![warn(clippy::wildcard_enum_match_arm)]

use serde::{Deserialize, Serialize};

/// Where a pod is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum PodState {
    /// The name is reserved and recorded; effects are under way.
    Creating,
    /// Network, namespaces and shim are there.
    Ready,
    /// No more containers may be made; what runs is being killed.
    Stopping,
    /// Nothing of it is left in the kernel.
    NotReady,
}

impl PodState {
    /// One word for messages.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Ready => "ready",
            Self::Stopping => "stopping",
            Self::NotReady => "not ready",
        }
    }
}

/// What happens to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodEvent {
    /// Everything that a pod needs was made.
    Made,
    /// StopPodSandbox, or the undoing of a failed creation, began.
    Stop,
    /// Every step of the stop succeeded.
    Stopped,
    /// The shim is gone, so nothing can be started any more.
    ShimDied,
    /// The PID 1 that its containers share is gone, so nothing can be started any more.
    InitDied,
}

/// The event does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// The state after an event.
pub(crate) fn next(state: PodState, event: PodEvent) -> Result<PodState, Refused> {
    use {PodEvent as E, PodState as S};
    match (state, event) {
        (S::Creating, E::Made) => Ok(S::Ready),
        (S::Creating | S::Ready | S::Stopping | S::NotReady, E::Stop) => Ok(match state {
            S::NotReady => S::NotReady,
            S::Creating | S::Ready | S::Stopping => S::Stopping,
        }),
        (S::Stopping | S::NotReady, E::Stopped) => Ok(S::NotReady),
        (S::Ready, E::ShimDied | E::InitDied) => Ok(S::NotReady),
        (S::Creating | S::Stopping | S::NotReady, E::ShimDied | E::InitDied) => Ok(state),
        (S::Ready | S::Stopping | S::NotReady, E::Made) | (S::Creating | S::Ready, E::Stopped) => {
            Err(Refused)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PodEvent as E;
    use PodState as S;

    #[test]
    fn ready_never_comes_back() {
        for first in [S::Stopping, S::NotReady] {
            for event in [E::Made, E::Stop, E::Stopped, E::ShimDied, E::InitDied] {
                assert_ne!(next(first, event), Ok(S::Ready), "{first:?} {event:?}");
            }
        }
    }

    #[test]
    fn stopping_twice_is_stopping_once() {
        assert_eq!(next(S::Stopping, E::Stop), Ok(S::Stopping));
        assert_eq!(next(S::NotReady, E::Stop), Ok(S::NotReady));
        assert_eq!(next(S::NotReady, E::Stopped), Ok(S::NotReady));
    }
}
