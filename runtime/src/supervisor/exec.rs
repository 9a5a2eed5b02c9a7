//! Execs: a session with the caller's own descriptors, and the collected one of ExecSync.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crisp_domain::{ContainerId, ExitStatus};

use super::{CgroupEntry, Error, Exit, Started, SupervisorClient};

/// An exec whose output is collected.
#[derive(Debug, Clone)]
pub(crate) struct ExecSync<'a> {
    pub(crate) container: &'a ContainerId,
    /// JSON of an OCI `process` object.
    pub(crate) process_json: Vec<u8>,
    /// The container's cgroup.
    pub(crate) cgroup: &'a CgroupEntry,
    /// `None` is no limit.
    pub(crate) timeout: Option<Duration>,
}

/// What an exec printed and how it ended; each stream is cut so that both fit one CRI message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecOutput {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: ExitStatus,
    /// The whole process tree was killed because its time was up.
    pub(crate) timed_out: bool,
}

/// A running exec; dropping it kills its whole process tree.
#[derive(Debug)]
pub(crate) struct ExecSession {
    pub(crate) started: Started,
    /// The terminal's master, when one was asked for.
    pub(crate) terminal: Option<OwnedFd>,
}

impl ExecSession {
    /// Waits for its end; the flag tells that its time was up.
    pub(crate) async fn wait(self) -> Result<(Exit, bool), Error> {
        Err(Error::Closed)
    }
}

impl SupervisorClient {
    /// Runs a process in the container and collects its output. Dropping the future kills the process tree.
    pub(crate) async fn exec_sync(&self, exec: ExecSync<'_>) -> Result<ExecOutput, Error> {
        Err(Error::Closed)
    }
    /// Runs a process in the container on these descriptors (stdin, stdout, stderr), or on a new terminal when `None`.
    pub(crate) async fn exec(&self, exec: ExecSync<'_>, stdio: Option<[OwnedFd; 3]>) -> Result<ExecSession, Error> {
        Err(Error::Closed)
    }
}
