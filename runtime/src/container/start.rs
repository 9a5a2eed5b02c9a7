//! StartContainer: cgroup, init, the user's program. A container that cannot be started ends with the reason.

use std::sync::Arc;

use crisp_domain::Timestamp;
use crisp_proto::cri::ContainerEventType;

use super::state::{ContainerEvent, End, EndReason};
use super::{Container, exit};
use crate::blocking::{self, Kind};
use crate::cgroups;
use crate::checkpoint::{Origin, restore};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::supervisor::{ContainerSetup, Started, Stdio};
use crate::{events, nri};

/// Starts a created container, or joins the start that is under way.
///
/// # Errors
/// [`Error::WrongState`] unless it is created and its pod ready; otherwise the cause, which its status tells as well.
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
    let started = async {
        nri::start_container(daemon, container).await?;
        let Started { pid, start_time_ticks } = launch(daemon, container).await?;
        apply(container, ContainerEvent::Started { pid, start_time_ticks, at: Timestamp::now() }).await?;
        Ok::<_, Error>(pid)
    };
    match started.await {
        Ok(pid) => {
            tracing::info!(container_id = %container.id, pid, "container started");
            events::container(daemon, container, ContainerEventType::ContainerStartedEvent);
            nri::started_container(daemon, container).await;
            Ok(())
        }
        Err(error) => {
            exit::report(container, exit::clean_up(daemon, container).await);
            let end = End { reason: EndReason::StartError(error.to_string()), finished_at: Timestamp::now() };
            if let Err(unrecorded) = apply(container, ContainerEvent::Ended(end)).await {
                tracing::error!(container_id = %container.id, error = %unrecorded, "record the failed start");
                exit::spawn(daemon, &container.id, exit::Seen::ShimGone);
            } else {
                exit::tell(daemon, container).await;
            }
            Err(error)
        }
    }
}

async fn apply(container: &Arc<Container>, event: ContainerEvent) -> Result<()> {
    let container = Arc::clone(container);
    blocking::run(move || container.apply(event)).await
}

/// Init has its mounts in a namespace of its own now, so the daemon's keep no volume busy.
async fn release_views(container: &Arc<Container>) -> Result<()> {
    if !container.dir.views().exists() {
        return Ok(());
    }
    let created = Arc::clone(container);
    blocking::run(move || super::views::release_mounts(created.dir.views())).await
}

async fn launch(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<Started> {
    let cgroup = cgroups::make_container(daemon, container).await?;
    crate::pod::start::recheck_target(daemon, container)?;
    let supervisor = container.pod.supervisor()?;
    let restored = restore::handler(daemon, container).await?;
    let setup = ContainerSetup {
        id: container.id.clone(),
        bundle: container.dir.state().to_owned(),
        state_dir: container.dir.state().to_owned(),
        cgroup,
        stdio: stdio(daemon, container),
        handler: match &restored {
            Some(restored) => restored.clone(),
            None => daemon.handler_kind(&container.pod.record().handler)?,
        },
    };
    let started = supervisor.create(&setup).await.doing("create the container");
    let started = match restored {
        Some(_) => {
            let started = started.map_err(|error| restore::explain(container, &error))?;
            restore::verify(daemon, container, started.pid).await?;
            started
        }
        None => started?,
    };
    release_views(container).await?;
    cgroups::adopt_container(daemon, container).await?;
    limit_as_updated(daemon, container).await?;
    supervisor.start(&container.id).await.doing("start the container")?;
    if container.record().checkpoint.origin == Origin::Checkpoint {
        restore::forget_images(container).await;
    }
    Ok(started)
}

/// An OCI runtime program limits by the specification, which is older than an update of the created container. Init waits
/// still, so nothing ran with the old limits.
async fn limit_as_updated(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let record = container.record();
    let linux = record.config.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    if record.resources == crate::cri::container_config::resources(linux)? {
        return Ok(());
    }
    let (owner, created) = (Arc::clone(daemon), Arc::clone(container));
    blocking::run_as(Kind::Cgroup, move || {
        cgroups::update_container(&owner, &created, &record.resources, || Ok(()))
    })
    .await
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
