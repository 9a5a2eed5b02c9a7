//! The streaming lists: what their unary twins answer, in batches, with memory for one of them.

use std::sync::Arc;

use crisp_proto::cri::*;
use futures_util::stream::BoxStream;
use tonic::Status;

use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// Batches on their way to a client.
pub(super) type Batches<T> = BoxStream<'static, std::result::Result<T, Status>>;

pub(super) fn pods(
    _daemon: &Arc<Daemon>,
    _request: StreamPodSandboxesRequest,
) -> Result<Batches<StreamPodSandboxesResponse>> {
    Err(Error::Unimplemented("StreamPodSandboxes"))
}

pub(super) fn containers(
    _daemon: &Arc<Daemon>,
    _request: StreamContainersRequest,
) -> Result<Batches<StreamContainersResponse>> {
    Err(Error::Unimplemented("StreamContainers"))
}

pub(super) fn container_stats(
    _daemon: &Arc<Daemon>,
    _request: StreamContainerStatsRequest,
) -> Result<Batches<StreamContainerStatsResponse>> {
    Err(Error::Unimplemented("StreamContainerStats"))
}

pub(super) fn pod_stats(
    _daemon: &Arc<Daemon>,
    _request: StreamPodSandboxStatsRequest,
) -> Result<Batches<StreamPodSandboxStatsResponse>> {
    Err(Error::Unimplemented("StreamPodSandboxStats"))
}

pub(super) fn pod_metrics(
    _daemon: &Arc<Daemon>,
    _request: StreamPodSandboxMetricsRequest,
) -> Result<Batches<StreamPodSandboxMetricsResponse>> {
    Err(Error::Unimplemented("StreamPodSandboxMetrics"))
}

pub(super) fn images(
    _daemon: &Arc<Daemon>,
    _request: StreamImagesRequest,
) -> Result<Batches<StreamImagesResponse>> {
    Err(Error::Unimplemented("StreamImages"))
}
