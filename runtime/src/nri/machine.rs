//! What plugins ask of this machine.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crisp_nri::api::{ContainerEviction, ContainerUpdate};
use crisp_nri::{Runtime, State};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use super::{message, read_spec, resources};
use crate::blocking;
use crate::container::state::ContainerState;
use crate::container::{stop, update};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::pod::state::PodState;

/// What an evicted container gets to end by itself: a pod's default.
const EVICTION_GRACE: Duration = Duration::from_secs(30);

/// The daemon, which outlives its plugins' connections but is not kept by them.
#[derive(Debug)]
pub(super) struct Machine(Weak<Daemon>);

impl Machine {
    pub(super) fn new(daemon: &Arc<Daemon>) -> Self {
        Self(Arc::downgrade(daemon))
    }
}

impl Runtime for Machine {
    fn state(&self) -> BoxFuture<'_, State> {
        async {
            let Some(daemon) = self.0.upgrade() else { return State::default() };
            blocking::run(move || Ok(state(&daemon))).await.unwrap_or_default()
        }
        .boxed()
    }

    fn update(&self, updates: Vec<ContainerUpdate>) -> BoxFuture<'_, Vec<ContainerUpdate>> {
        async {
            let Some(daemon) = self.0.upgrade() else { return updates };
            let failed = update(&daemon, updates).await.into_iter();
            failed
                .map(|(failed, error)| {
                    tracing::warn!(container_id = failed.container_id, %error, "an update by a plugin cannot be done");
                    failed
                })
                .collect()
        }
        .boxed()
    }

    fn evict(&self, evictions: Vec<ContainerEviction>) -> BoxFuture<'_, ()> {
        async {
            if let Some(daemon) = self.0.upgrade() {
                evict(&daemon, evictions);
            }
        }
        .boxed()
    }
}

/// All whose creation has ended. Reads every container's specification.
fn state(daemon: &Daemon) -> State {
    let pods = daemon.pods.all().into_iter().filter(|pod| pod.state() != PodState::Creating);
    let containers = daemon.containers.all().into_iter();
    let containers = containers.filter(|container| container.state() != ContainerState::Creating);
    State {
        pods: pods.map(|pod| message::pod(&pod.record())).collect(),
        containers: containers
            .map(|container| message::container(&container.record(), &read_spec(&container)))
            .collect(),
    }
}

/// Changes containers one after the other; gives back what could not be done and may not be ignored.
pub(super) async fn update(
    daemon: &Arc<Daemon>,
    updates: Vec<ContainerUpdate>,
) -> Vec<(ContainerUpdate, Error)> {
    let mut failed = Vec::new();
    for update in updates {
        match update_one(daemon, &update).await {
            Err(error) if update.ignore_failure => {
                tracing::info!(container_id = update.container_id, %error, "an update by a plugin is left out, as it allows");
            }
            Err(error) => failed.push((update, error)),
            Ok(()) => {}
        }
    }
    failed
}

async fn update_one(daemon: &Arc<Daemon>, update: &ContainerUpdate) -> Result<()> {
    let limits = update.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let Some(limits) = limits else { return Ok(()) };
    let found = daemon.containers.find_any(&update.container_id);
    let container =
        found.ok_or_else(|| Error::NotFound { what: "container", id: update.container_id.clone() })?;
    let limits = resources::from_nri(limits, daemon.host.cgroup).map_err(Error::Invalid)?;
    update::update_for_plugin(daemon, &container, limits).await
}

/// Stops containers, each in a task of its own.
pub(super) fn evict(daemon: &Arc<Daemon>, evictions: Vec<ContainerEviction>) {
    for ContainerEviction { container_id, reason } in evictions {
        let Some(container) = daemon.containers.find_any(&container_id) else {
            tracing::warn!(container_id, "a plugin evicts a container that does not exist");
            continue;
        };
        tracing::warn!(container_id, reason, "a plugin evicts a container");
        let daemon = Arc::clone(daemon);
        tokio::spawn(async move {
            if let Err(error) = stop::stop(&daemon, &container, EVICTION_GRACE).await {
                tracing::warn!(container_id, %error, "stop an evicted container");
            }
        });
    }
}
