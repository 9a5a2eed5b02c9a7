//! The labels and annotations by which clients know what belongs together.

/// Labels that every Kubernetes client writes, and that `crictl` reads.
pub(crate) const POD_NAME: &str = "io.kubernetes.pod.name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
pub(crate) const POD_UID: &str = "io.kubernetes.pod.uid";
pub(crate) const CONTAINER_NAME: &str = "io.kubernetes.container.name";
/// Label of a pod that `crisp run` made; no other is stopped by `crisp stop`.
pub(crate) const MANAGED_BY: &str = "crisp.v1/managed-by";
pub(crate) const MANAGED_BY_RUN: &str = "crisp-run";
/// Annotation: seconds between the stop signal and the kill.
pub(crate) const GRACE_SECONDS: &str = "crisp.v1/grace-seconds";
