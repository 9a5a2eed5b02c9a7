//! Whether a pod's network is still as it was made. A pod that lost it goes on: its containers may do without, and who stops it decides.

use std::sync::Arc;

use serde::Serialize;

use super::Pod;
use super::state::PodState;
use crate::blocking::{self, Kind};
use crate::daemon::Daemon;

/// How a pod's network was found when the daemon had come back.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(tag = "outcome", content = "problem", rename_all = "camelCase")]
pub(crate) enum NetworkCheck {
    /// It was made by this daemon, or has not been its turn yet.
    #[default]
    NotAsked,
    /// As it was made, as far as its plugins can be asked.
    AsMade,
    /// It has lost something: what its plugin says.
    Changed(String),
}

/// Asks the pod's network, and keeps the answer for people. Plugins that cannot be asked are passed over.
pub(crate) async fn network(daemon: &Daemon, pod: Arc<Pod>) {
    let (network, checked) = (Arc::clone(&daemon.network), Arc::clone(&pod));
    let check = move || match checked.state() {
        PodState::Ready => Ok(network.check(&checked.id).err()),
        PodState::Creating | PodState::Stopping | PodState::NotReady => Ok(None),
    };
    match blocking::run_as(Kind::Attach, check).await {
        Ok(found) => {
            pod.set_network_check(found.map_or(NetworkCheck::AsMade, |error| {
                let error = crate::error::chain(&error);
                tracing::warn!(pod_id = %pod.id, error, "the pod's network has changed");
                NetworkCheck::Changed(error)
            }));
        }
        Err(error) => tracing::info!(pod_id = %pod.id, %error, "the pod's network was not looked at"),
    }
}
