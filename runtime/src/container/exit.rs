//! The end of a container: what was seen is settled into its record, and what it leaves in the kernel goes.

use std::sync::Arc;
use std::time::Duration;

use crisp_domain::{ContainerId, ExitStatus, Timestamp};
use crisp_proto::cri::ContainerEventType;

use super::Container;
use super::state::{ContainerEvent, End, EndReason};
use crate::blocking::{self, Kind};
use crate::cgroups;
use crate::daemon::Daemon;
use crate::error::Result;
use crate::supervisor::{self, Exit};

/// Pause after a failed try to settle an end; it doubles up to [`SETTLE_PAUSE_MAX`].
const SETTLE_PAUSE_MIN: Duration = Duration::from_millis(200);
/// Longest pause between two tries.
const SETTLE_PAUSE_MAX: Duration = Duration::from_secs(10);

/// How the end of a container was noticed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Seen {
    /// Its shim reaped it.
    Exit(Exit),
    /// Its shim is gone; an exit record may be there, or it still runs.
    ShimGone,
}

/// Settles an end in a task of its own, since a start that is under way is waited for.
pub(crate) fn spawn(daemon: &Arc<Daemon>, id: &ContainerId, seen: Seen) {
    let Some(container) = daemon.containers.find_any(id.as_str()) else { return };
    let daemon = Arc::clone(daemon);
    let span = tracing::info_span!("exit", container_id = %id);
    tokio::spawn(tracing::Instrument::instrument(
        async move { settle(&daemon, &container, seen).await },
        span,
    ));
}

/// Brings a container that runs to its end; one that does not is left as it is.
pub(crate) async fn settle(daemon: &Arc<Daemon>, container: &Arc<Container>, seen: Seen) {
    let _ops = container.ops.lock().await;
    if !container.state().may_run() {
        return;
    }
    let mut pause = SETTLE_PAUSE_MIN;
    while let Err(error) = end(daemon, container, seen).await {
        // A process that cannot be killed yet, or a full state directory: the end must be told, and told truly.
        tracing::error!(%error, "settle the end of the container; trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(SETTLE_PAUSE_MAX);
    }
    tell(daemon, container).await;
    report(container, clean_up(daemon, container).await);
}

/// Tells of a recorded end.
pub(crate) async fn tell(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    crate::events::container(daemon, container, ContainerEventType::ContainerStoppedEvent);
    crate::nri::stop_container(daemon, container).await;
}

/// Says that something of an ended container stays for now; its removal, and its pod's stop, try again.
pub(crate) fn report(container: &Container, cleaned: Result<()>) {
    if let Err(error) = cleaned {
        tracing::warn!(container_id = %container.id, %error, "clean up after the container");
    }
}

async fn end(daemon: &Arc<Daemon>, container: &Arc<Container>, seen: Seen) -> Result<()> {
    let (owner, ended) = (Arc::clone(daemon), Arc::clone(container));
    let kind = match seen {
        Seen::Exit(_) => Kind::State,
        Seen::ShimGone => Kind::Cgroup,
    };
    blocking::run_as(kind, move || {
        let end = match seen {
            Seen::Exit(exit) => of_exit(exit),
            Seen::ShimGone => {
                // What nobody supervises must not go on.
                cgroups::kill_container(&owner, &ended)?;
                supervisor::exit_record(ended.dir.state()).map_or_else(lost, of_exit)
            }
        };
        tracing::info!(code = end.reason.code(), reason = end.reason.name(), "container ended");
        ended.apply(ContainerEvent::Ended(end))
    })
    .await
}

/// Frees what an ended container holds in the kernel and in its shim. May be repeated. Called with `ops` held.
///
/// # Errors
/// When processes or cgroups of it stay.
pub(crate) async fn clean_up(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    if let Ok(supervisor) = container.pod.supervisor()
        && let Err(error) = supervisor.delete(&container.id).await
    {
        // A shim that is gone has forgotten everything.
        tracing::debug!(container_id = %container.id, %error, "let the shim forget the container");
    }
    let ended = Arc::clone(container);
    blocking::run(move || super::views::release(ended.dir.views())).await?;
    cgroups::remove_container(daemon, container).await
}

fn of_exit(exit: Exit) -> End {
    let killed = exit.status == ExitStatus::Signal(9) || exit.status == ExitStatus::Code(137);
    let reason = match exit.oom_killed && killed {
        true => EndReason::OomKilled(exit.status),
        false => EndReason::Exited(exit.status),
    };
    End { reason, finished_at: exit.finished_at }
}

fn lost() -> End {
    End { reason: EndReason::Lost, finished_at: Timestamp::now() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(status: ExitStatus) -> Exit {
        Exit { status, finished_at: Timestamp(9), oom_killed: false }
    }

    fn after_a_kill_for_memory(status: ExitStatus) -> Exit {
        Exit { oom_killed: true, ..exit(status) }
    }

    #[test]
    fn a_child_killed_for_memory_does_not_rename_a_normal_exit() {
        assert_eq!(
            of_exit(after_a_kill_for_memory(ExitStatus::Code(0))).reason,
            EndReason::Exited(ExitStatus::Code(0))
        );
        assert_eq!(
            of_exit(after_a_kill_for_memory(ExitStatus::Signal(15))).reason,
            EndReason::Exited(ExitStatus::Signal(15))
        );
    }

    #[test]
    fn killed_for_memory_is_told() {
        let killed = ExitStatus::Signal(9);
        assert_eq!(of_exit(after_a_kill_for_memory(killed)).reason, EndReason::OomKilled(killed));
        assert_eq!(of_exit(exit(killed)).reason, EndReason::Exited(killed));
    }
}
