//! StartContainer: cgroup, init, the user's program. A container that cannot be started ends with the reason.

use std::sync::Arc;

use crisp_domain::Timestamp;

use super::state::{ContainerEvent, End, EndReason};
use super::{Container, exit};
use crate::blocking;
use crate::cgroups;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};
use crate::supervisor::{ContainerSetup, Started, Stdio};

/// Starts a created container, or joins the start that is under way.
///
/// # Errors
/// [`crate::error::Error::WrongState`] unless it is created and its pod ready; otherwise the cause, which its status tells as well.
pub(crate) async fn start(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let key = format!("start {}", container.id);
    let job = || {
        let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
        async move { steps(&daemon, &container).await }
    };
    daemon.step_jobs.join_or_start(key, job).await
}

async fn steps(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let _gate = container.pod.gate.read().await;
    container.pod.require_ready()?;
    let _ops = container.ops.lock().await;
    apply(container, ContainerEvent::Start).await?;
    match launch(daemon, container).await {
        Ok(Started { pid, start_time_ticks }) => {
            apply(container, ContainerEvent::Started { pid, start_time_ticks, at: Timestamp::now() }).await?;
            tracing::info!(container_id = %container.id, pid, "container started");
            Ok(())
        }
        Err(error) => {
            exit::clean_up(daemon, container).await;
            let end = End { reason: EndReason::StartError(error.to_string()), finished_at: Timestamp::now() };
            apply(container, ContainerEvent::Ended(end)).await?;
            Err(error)
        }
    }
}

async fn apply(container: &Arc<Container>, event: ContainerEvent) -> Result<()> {
    let container = Arc::clone(container);
    blocking::run(move || container.apply(event)).await
}

async fn launch(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<Started> {
    let cgroup = blocking::run({
        let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
        move || cgroups::make_container(&daemon, &container)
    })
    .await?;
    let supervisor = container.pod.supervisor()?;
    let setup = ContainerSetup {
        id: container.id.clone(),
        bundle: container.dir.state().to_owned(),
        state_dir: container.dir.state().to_owned(),
        cgroup,
        stdio: stdio(daemon, container),
        handler: daemon.handler_kind(&container.pod.record().handler)?,
    };
    let started = supervisor.create(&setup).await.doing("create the container")?;
    supervisor.start(&container.id).await.doing("start the container")?;
    Ok(started)
}

fn stdio(daemon: &Daemon, container: &Container) -> Stdio {
    let record = container.record();
    Stdio {
        terminal: record.config.tty,
        stdin: record.config.stdin,
        stdin_once: record.config.stdin_once,
        log_path: record.log_path.clone(),
        log_line_bytes_max: Some(daemon.config.limits.log_line_bytes),
    }
}
