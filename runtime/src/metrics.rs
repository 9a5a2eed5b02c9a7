//! The metrics of pods and containers by their names in the field.

use std::sync::Arc;

use crisp_proto::cri::{MetricDescriptor, PodSandboxMetrics};

use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::pod::Pod;

/// Every metric that may be told.
pub(crate) fn descriptors() -> Result<Vec<MetricDescriptor>> {
    Err(Error::Unimplemented("ListMetricDescriptors"))
}

/// The metrics of those pods that are ready.
///
/// # Errors
/// Never for a single pod's sake.
#[expect(clippy::unused_async, reason = "cgroups are read on another thread")]
pub(crate) async fn of_pods(_daemon: &Arc<Daemon>, _pods: Vec<Arc<Pod>>) -> Result<Vec<PodSandboxMetrics>> {
    Err(Error::Unimplemented("ListPodSandboxMetrics"))
}
