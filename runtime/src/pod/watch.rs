//! One task per pod hears from its shim. Events only say "look now": when the connection breaks, the shim's own account, or its
//! death, is what counts.

use std::sync::Arc;
use std::time::Duration;

use super::Pod;
use super::state::{PodEvent, PodState};
use crate::blocking;
use crate::container::Container;
use crate::container::exit::{self, Seen};
use crate::container::state::ContainerState;
use crate::daemon::Daemon;
use crate::supervisor::{self, ContainerPhase, Event, ShimState, Supervision};

/// Pause after a failed try to reach a shim; it doubles up to [`CONNECT_PAUSE_MAX`].
const CONNECT_PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause between two tries.
const CONNECT_PAUSE_MAX: Duration = Duration::from_secs(5);

/// Starts the task. It ends when the shim does.
pub(crate) fn spawn(daemon: Arc<Daemon>, pod: Arc<Pod>, supervision: Supervision) {
    let span = tracing::info_span!(parent: None, "pod", pod_id = %pod.id);
    tokio::spawn(tracing::Instrument::instrument(watch(daemon, pod, supervision), span));
}

async fn watch(daemon: Arc<Daemon>, pod: Arc<Pod>, mut supervision: Supervision) {
    loop {
        for (container, seen) in ends(&daemon, &pod, &supervision.state) {
            exit::spawn(&daemon, &container.id, seen);
        }
        while let Some(event) = supervision.events.recv().await {
            heard(&daemon, event);
        }
        // Broken, or gone with the shim: connecting again tells which.
        match meet(&pod).await {
            Some(again) => {
                pod.set_supervisor(Some(again.client.clone()));
                supervision = again;
            }
            None => return gone(&daemon, &pod).await,
        }
    }
}

/// Connects to the pod's shim, again and again while it may live; `None` when it is proved to be dead.
pub(crate) async fn meet(pod: &Pod) -> Option<Supervision> {
    let mut pause = CONNECT_PAUSE_MIN;
    loop {
        match supervisor::connect(&pod.dir.socket()).await {
            Ok(supervision) => return Some(supervision),
            Err(error) if error.proves_death() => return None,
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::warn!(pod_id = %pod.id, error, "the pod's shim cannot be reached; trying again");
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(CONNECT_PAUSE_MAX);
    }
}

fn heard(daemon: &Arc<Daemon>, event: Event) {
    let Event::ContainerExited { id, exit } = event;
    exit::spawn(daemon, &id, Seen::Exit(exit));
}

/// The ends that the shim's account tells of. A container that runs by its record and that the shim does not know was lost.
pub(crate) fn ends(daemon: &Daemon, pod: &Pod, state: &ShimState) -> Vec<(Arc<Container>, Seen)> {
    let seen = |container: Arc<Container>| {
        let known = state.containers.iter().find(|known| known.id == container.id);
        let running = matches!(container.state(), ContainerState::Running { .. });
        match known.map(|known| known.phase) {
            Some(ContainerPhase::Exited(exit)) => Some((container, Seen::Exit(exit))),
            Some(ContainerPhase::Alive) => None,
            None => running.then_some((container, Seen::ShimGone)),
        }
    };
    daemon.containers_of(pod).into_iter().filter_map(seen).collect()
}

/// The shim is dead: what it ran is killed, and the pod can start nothing more.
pub(crate) async fn gone(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    pod.set_supervisor(None);
    if pod.state() == PodState::Ready {
        tracing::error!(pod_id = %pod.id, "the pod's shim died; the pod is not ready any more");
    }
    for container in daemon.containers_of(pod) {
        exit::spawn(daemon, &container.id, Seen::ShimGone);
    }
    let dead = Arc::clone(pod);
    if let Err(error) = blocking::run(move || dead.apply(PodEvent::ShimDied)).await {
        tracing::warn!(pod_id = %pod.id, %error, "record the death of the shim");
    }
    crate::events::pod(daemon, pod, crisp_proto::cri::ContainerEventType::ContainerStoppedEvent);
}
