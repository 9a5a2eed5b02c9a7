//! CheckpointContainer, and the restore of what it wrote.

use std::sync::Arc;

use crisp_proto::cri::CheckpointContainerRequest;

use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// Writes a running container's state to an archive; the container goes on.
///
/// # Errors
/// [`Error::Unimplemented`] without `criu`.
#[expect(clippy::unused_async, reason = "the program is waited for")]
pub(crate) async fn container(_daemon: &Arc<Daemon>, _request: CheckpointContainerRequest) -> Result<()> {
    Err(Error::Unimplemented("CheckpointContainer"))
}
