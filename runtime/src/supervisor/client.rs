//! Requests to a shim, many at once over one connection.

use std::path::Path;

use crisp_domain::ContainerId;
use tokio::sync::mpsc;

use super::{CgroupEntry, ContainerSetup, Error, Event, ShimState, Started};

/// A connection to a shim, just made.
#[derive(Debug)]
pub(crate) struct Supervision {
    pub(crate) client: SupervisorClient,
    /// Ends when the connection does: then the shim is dead or did not keep up; [`connect`] again tells which.
    pub(crate) events: mpsc::Receiver<Event>,
    /// The shim's account at the time of the connection; events tell what changed since.
    pub(crate) state: ShimState,
}

/// Connects to the shim that listens at `socket` and asks for its account.
pub(crate) async fn connect(socket: &Path) -> Result<Supervision, Error> {
    Err(Error::Connect { path: socket.into(), source: std::io::ErrorKind::NotFound.into() })
}

/// Asks a shim. Cloning is cheap; calls may overlap; a dropped call is carried out all the same.
#[derive(Debug, Clone)]
pub(crate) struct SupervisorClient;

impl SupervisorClient {
    /// The shim's account of what it holds.
    pub(crate) async fn hello(&self) -> Result<ShimState, Error> {
        Err(Error::Closed)
    }
    /// Starts the pod's reaping PID 1 in a new PID namespace; it joins the namespaces at these paths.
    pub(crate) async fn start_pod_init(&self, namespaces: &[&Path], cgroup: &CgroupEntry) -> Result<Started, Error> {
        Err(Error::Closed)
    }
    /// Makes a container up to the point where its init waits for [`Self::start`].
    pub(crate) async fn create(&self, setup: &ContainerSetup) -> Result<Started, Error> {
        Err(Error::Closed)
    }
    /// Lets the container's program run; `Ok` once it was executed, else the cause.
    pub(crate) async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        Err(Error::Closed)
    }
    /// Sends a signal (kernel number) to the container's init.
    pub(crate) async fn signal(&self, id: &ContainerId, signal: i32) -> Result<(), Error> {
        Err(Error::Closed)
    }
    /// Opens the container's log anew; the file exists afterwards.
    pub(crate) async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        Err(Error::Closed)
    }
    /// Forgets a container that has exited or never started; also fine for one that is unknown.
    pub(crate) async fn delete(&self, id: &ContainerId) -> Result<(), Error> {
        Err(Error::Closed)
    }
    /// Kills what is left and ends the shim; returns when it is gone.
    pub(crate) async fn shutdown(&self) -> Result<(), Error> {
        Err(Error::Closed)
    }
    /// Is ready when the shim's process has ended.
    pub(crate) async fn died(&self) {}
}
