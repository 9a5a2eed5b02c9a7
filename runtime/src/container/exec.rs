//! ExecSync. It takes no lock of the container: probes must not wait for anything but their own command.

use std::sync::Arc;
use std::time::Duration;

use crisp_spec::ExecRequest;
use oci_spec::runtime::Box as ConsoleSize;

use super::Container;
use crate::blocking;
use crate::cgroups;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::supervisor::{ExecOutput, ExecSync};

/// Runs `command` in a running container and collects its output; a `timeout` kills the whole process tree.
///
/// # Errors
/// [`Error::Timeout`] when the time was up; [`Error::WrongState`]; the cause when the command cannot be executed.
pub(crate) async fn exec_sync(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    command: Vec<String>,
    timeout: Option<Duration>,
) -> Result<ExecOutput> {
    if command.is_empty() {
        return Err(Error::Invalid("cmd is empty".to_owned()));
    }
    container.require_running()?;
    let request = ExecRequest { command, ..ExecRequest::default() };
    let process_json = process(container, request, None).await?;
    let cgroup = cgroups::container_entry(daemon, container)?;
    let exec = ExecSync { container: &container.id, process_json, cgroup: &cgroup, timeout };
    let output = container.pod.supervisor()?.exec_sync(exec).await.doing("run the command")?;
    if output.timed_out {
        let limit_ms = timeout.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX));
        return Err(Error::Timeout { what: "the command", limit_ms });
    }
    Ok(output)
}

/// The OCI `process` object: the container's own with another command, and its terminal's size where that is known.
///
/// # Errors
/// When the container's specification cannot be read.
pub(crate) async fn process(
    container: &Arc<Container>,
    request: ExecRequest,
    size: Option<ConsoleSize>,
) -> Result<Vec<u8>> {
    let path = container.dir.config();
    blocking::run(move || {
        let spec = oci_spec::runtime::Spec::load(&path).map_err(|error| Error::Internal {
            what: "read the container's specification",
            cause: error.to_string(),
        })?;
        let mut process = crisp_spec::exec_process(&spec, &request).doing("make the command's process")?;
        process.set_console_size(size);
        serde_json::to_vec(&process)
            .map_err(|error| Error::Internal { what: "encode a process", cause: error.to_string() })
    })
    .await
}
