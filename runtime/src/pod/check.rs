//! Whether a pod's network is still as it was made. A pod that lost it goes on: its containers may do without, and who stops it decides.

use std::sync::Arc;

use super::Pod;
use super::state::PodState;
use crate::blocking::{self, Kind};
use crate::daemon::Daemon;

/// Asks the pod's network, and keeps the answer for people. Plugins that cannot be asked are passed over.
pub(crate) async fn network(daemon: &Daemon, pod: Arc<Pod>) {
    let (network, checked) = (Arc::clone(&daemon.network), Arc::clone(&pod));
    let check = move || match checked.state() {
        PodState::Ready => Ok(network.check(&checked.id).err()),
        PodState::Creating | PodState::Stopping | PodState::NotReady => Ok(None),
    };
    match blocking::run_as(Kind::Attach, check).await {
        Ok(found) => {
            let problem = found.map(|error| crate::error::chain(&error));
            if let Some(error) = &problem {
                tracing::warn!(pod_id = %pod.id, error, "the pod's network is not as it was made");
            }
            pod.set_network_problem(problem);
        }
        Err(error) => tracing::info!(pod_id = %pod.id, %error, "the pod's network was not looked at"),
    }
}
