//! UpdateContainerResources: the cgroup first, then the record; zero and empty mean "as it is".

use std::sync::Arc;

use crisp_spec::Resources;

use super::Container;
use super::state::ContainerState;
use crate::blocking;
use crate::cgroups;
use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// Changes the limits of a container: of a running one at once, of a created one when it starts.
///
/// # Errors
/// [`crate::error::Error::Invalid`] for values that cannot be; whatever the kernel says, with the old limits in force.
pub(crate) async fn update(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    requested: Resources,
) -> Result<()> {
    let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
    // A task of its own: a client that hangs up must not end the exclusion before the work.
    let update = tokio::spawn(async move { locked(&daemon, &container, requested).await });
    update.await.unwrap_or_else(|join| {
        Err(Error::Internal { what: "an update ended abnormally", cause: join.to_string() })
    })
}

async fn locked(daemon: &Arc<Daemon>, container: &Arc<Container>, requested: Resources) -> Result<()> {
    let _ops = container.ops.lock().await;
    let requested = crate::nri::update_container(daemon, container, requested).await?;
    let (owner, target) = (Arc::clone(daemon), Arc::clone(container));
    blocking::run(move || {
        let merged = target.record().resources.updated(&requested);
        // Checked in every state, so that a bad value is refused now and not at the start.
        cgroups::check(&owner, &merged)?;
        if let ContainerState::Running { .. } = target.state() {
            cgroups::update_container(&owner, &target, &merged)?;
        }
        target.update(|record| record.resources = merged)
    })
    .await?;
    crate::nri::updated_container(daemon, container).await;
    Ok(())
}
