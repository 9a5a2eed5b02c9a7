//! One task per pod hears from its shim. Events only say "look now": when the connection breaks, the shim's own account, or its
//! death, is what counts.

use std::sync::Arc;
use std::time::Duration;

use crisp_proto::cri::ContainerEventType;

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
        if init_is_gone(&pod).await {
            init_died(&daemon, &pod).await;
        }
        while let Some(event) = supervision.events.recv().await {
            heard(&daemon, &pod, event).await;
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

async fn heard(daemon: &Arc<Daemon>, pod: &Arc<Pod>, event: Event) {
    match event {
        Event::ContainerExited { id, exit } => exit::spawn(daemon, &id, Seen::Exit(exit)),
        Event::PodInitExited => init_died(daemon, pod).await,
    }
}

/// Whether the PID 1 that the record names has ended, unheard. The shim's account does not tell: it may be older than the record.
async fn init_is_gone(pod: &Arc<Pod>) -> bool {
    let Some(init) = pod.record().init else { return false };
    let looked = blocking::run(move || Ok::<_, crate::error::Error>(!is_there(init))).await;
    looked.unwrap_or(false)
}

/// A process with this pid and start time exists, a zombie included: its shim takes its status in a moment, and tells.
fn is_there(process: super::Process) -> bool {
    let stat = match std::fs::read(format!("/proc/{}/stat", process.pid)) {
        Ok(stat) => stat,
        // Only absence proves an end.
        Err(error) => return error.kind() != std::io::ErrorKind::NotFound,
    };
    start_time_ticks(&stat).is_none_or(|ticks| ticks == process.start_time_ticks)
}

/// Field 22 of `/proc/<pid>/stat`; the second one is a name in brackets that may hold anything.
fn start_time_ticks(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

/// Without its PID 1 nothing can be started in the pod any more, and what ran in its PID namespace is dead.
async fn init_died(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    lost(daemon, pod, PodEvent::InitDied, "PID 1").await;
}

/// The pod has lost what it cannot do without: it turns not ready, and clients are told.
async fn lost(daemon: &Arc<Daemon>, pod: &Arc<Pod>, event: PodEvent, what: &'static str) {
    if pod.state() == PodState::Ready {
        tracing::error!(pod_id = %pod.id, what, "the pod has lost a process; it is not ready any more");
    }
    let losing = Arc::clone(pod);
    if let Err(error) = blocking::run(move || losing.apply(event)).await {
        tracing::warn!(pod_id = %pod.id, what, %error, "record the loss of a pod's process");
    }
    // Its containers' ends are told as they are settled.
    crate::events::pod(daemon, pod, ContainerEventType::ContainerStoppedEvent);
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
    for container in daemon.containers_of(pod) {
        exit::spawn(daemon, &container.id, Seen::ShimGone);
    }
    lost(daemon, pod, PodEvent::ShimDied, "shim").await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Process;

    #[test]
    fn a_process_is_there_while_pid_and_start_time_are_its_own() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let stat = std::fs::read("/proc/self/stat").unwrap();
        let start_time_ticks = super::start_time_ticks(&stat).unwrap();
        assert!(is_there(Process { pid, start_time_ticks }));
        // The number was given to another one.
        assert!(!is_there(Process { pid, start_time_ticks: start_time_ticks - 1 }));
        assert!(!is_there(Process { pid: i32::MAX, start_time_ticks }));
    }

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["sh", "a b", "x) S 1 2"] {
            assert_eq!(start_time_ticks(format!("12 ({name}) {fields}").as_bytes()), Some(4711), "{name}");
        }
        assert_eq!(start_time_ticks(b"12 (sh) S 1"), None);
    }
}
