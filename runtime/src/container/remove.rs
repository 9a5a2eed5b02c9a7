//! RemoveContainer: killed if it runs, then its mounts, files, record and name go. Every step may be repeated.

use std::sync::Arc;
use std::time::Duration;

use crisp_proto::cri::ContainerEventType;

use super::{Container, exit, stop};
use crate::blocking::{self, Kind};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};

/// Of the removal's job.
pub(crate) fn key(container: &Container) -> String {
    format!("remove {}", container.id)
}

/// Removes a container, or joins the removal that is under way.
///
/// # Errors
/// The first step that failed; a repetition goes on from there.
pub(crate) async fn remove(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let job = || {
        let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
        async move { steps(&daemon, &container).await }
    };
    daemon.step_jobs.join_or_start(key(container), job).await
}

async fn steps(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    loop {
        stop::stop(daemon, container, Duration::ZERO).await?;
        let _change = daemon.nri.creation().await;
        let _ops = container.ops.lock().await;
        // A start may have come between the stop and the lock; there is none after it.
        if !container.state().may_run() {
            return stopped(daemon, container).await;
        }
    }
}

/// Called with `ops` held.
async fn stopped(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    container.close();
    exit::clean_up(daemon, container).await?;
    crate::nri::remove_container(daemon, container).await;
    let doomed = Arc::clone(container);
    blocking::run_as(Kind::Disk, move || delete(&doomed)).await?;
    daemon.containers.remove(container);
    crate::events::container(daemon, container, ContainerEventType::ContainerDeletedEvent);
    container.drop_layers();
    // Nobody asks whether the layers of a removed image went with its last container.
    drop(daemon.collect_layers());
    tracing::info!(container_id = %container.id, "container removed");
    Ok(())
}

/// Everything on disk: the mount, the writable layer, at last the record.
pub(crate) fn delete(container: &Container) -> Result<()> {
    super::views::release(container.dir.views())?;
    crisp_snapshot::Rootfs::unmount(&container.dir.rootfs()).doing("unmount the root filesystem")?;
    crisp_snapshot::Rootfs::remove_writable(container.dir.writable()).doing("delete the writable layer")?;
    crate::pod::stop::remove_dir(container.dir.state())
}
