//! GetContainerEvents: every change of a pod or container, told to whoever listens.

use std::sync::Arc;

use crisp_proto::cri::{ContainerEventResponse, ContainerEventType};
use futures_util::stream::BoxStream;
use tonic::Status;

use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::pod::Pod;

/// Who listens.
#[derive(Debug, Default)]
pub(crate) struct Hub {}

/// Tells of a pod. Called after the change was published; never waits.
pub(crate) fn pod(_daemon: &Daemon, _pod: &Pod, _what: ContainerEventType) {}

/// Tells of a container. Called after the change was published; never waits.
pub(crate) fn container(_daemon: &Daemon, _container: &Container, _what: ContainerEventType) {}

/// Every event from now on.
///
/// # Errors
/// When there are too many listeners.
pub(crate) fn subscribe(
    _daemon: &Arc<Daemon>,
) -> Result<BoxStream<'static, std::result::Result<ContainerEventResponse, Status>>> {
    Err(Error::Unimplemented("GetContainerEvents"))
}
