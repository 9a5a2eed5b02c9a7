//! UpdateContainerResources: the cgroup first, then the record; zero and empty mean "as it is".

use std::sync::Arc;

use crisp_spec::Resources;

use super::Container;
use super::state::ContainerState;
use crate::blocking::{self, Kind};
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
    detached(async move { locked(&daemon, &container, requested).await }).await
}

/// In a task of its own: a client that hangs up must not end the exclusion before the work.
async fn detached(work: impl Future<Output = Result<()>> + Send + 'static) -> Result<()> {
    tokio::spawn(work).await.unwrap_or_else(|join| {
        Err(Error::Internal { what: "an update ended abnormally", cause: join.to_string() })
    })
}

async fn locked(daemon: &Arc<Daemon>, container: &Arc<Container>, requested: Resources) -> Result<()> {
    let _ops = container.ops.lock().await;
    let requested = crate::nri::update_container(daemon, container, requested).await?;
    apply(daemon, container, requested).await?;
    crate::nri::updated_container(daemon, container).await;
    Ok(())
}

/// Changes the limits as a plugin wants it; plugins are not asked about it.
///
/// # Errors
/// As [`update`].
pub(crate) async fn update_for_plugin(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    requested: Resources,
) -> Result<()> {
    let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
    let work = async move {
        let _ops = container.ops.lock().await;
        apply(&daemon, &container, requested).await
    };
    detached(work).await
}

async fn apply(daemon: &Arc<Daemon>, container: &Arc<Container>, requested: Resources) -> Result<()> {
    let (owner, target) = (Arc::clone(daemon), Arc::clone(container));
    blocking::run_as(Kind::Cgroup, move || {
        let merged = target.record().resources.updated(&requested);
        // Checked in every state, so that a bad value is refused now and not at the start.
        cgroups::check(&owner, &merged)?;
        if let ContainerState::Running { .. } = target.state() {
            // Limits that could not be recorded are not kept either.
            let record = || target.update(|record| record.resources.clone_from(&merged));
            return cgroups::update_container(&owner, &target, &merged, record);
        }
        target.update(|record| record.resources = merged)
    })
    .await
}
