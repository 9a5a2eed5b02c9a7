//! Exec, Attach and PortForward: the calls give out addresses, the streaming server serves the sessions.

use std::sync::Arc;

use crisp_proto::cri::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest, PortForwardResponse,
};

use crate::daemon::Daemon;
use crate::error::{Error, Result};

/// The streaming server.
#[derive(Debug, Default)]
pub(crate) struct Streams {}

/// Binds the streaming server; called once, before the daemon's socket appears.
///
/// # Errors
/// When the address cannot be bound or the certificate not be read.
#[expect(clippy::unused_async, reason = "binding waits")]
pub(crate) async fn serve(_daemon: &Arc<Daemon>) -> Result<()> {
    Ok(())
}

pub(crate) fn exec(_daemon: &Arc<Daemon>, _request: ExecRequest) -> Result<ExecResponse> {
    Err(Error::Unimplemented("Exec"))
}

pub(crate) fn attach(_daemon: &Arc<Daemon>, _request: AttachRequest) -> Result<AttachResponse> {
    Err(Error::Unimplemented("Attach"))
}

pub(crate) fn port_forward(
    _daemon: &Arc<Daemon>,
    _request: PortForwardRequest,
) -> Result<PortForwardResponse> {
    Err(Error::Unimplemented("PortForward"))
}
