//! Requests to a shim, many at once over one connection.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crisp_domain::ContainerId;
use crisp_proto::supervisor as pb;
use crisp_proto::supervisor::reply::Result as Answer;
use crisp_proto::supervisor::request::Call;
use tokio::io::Interest;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::{CgroupEntry, ContainerSetup, Error, Event, ShimState, Started, wire};

/// The protocol that this daemon speaks.
const PROTOCOL: u32 = 1;

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
///
/// # Errors
/// [`Error::Connect`] when no shim listens there.
pub(crate) async fn connect(socket: &Path) -> Result<Supervision, Error> {
    let (connection, events) = Connection::open(socket)?;
    let state = hello(&connection).await?;
    // The shim answered on this connection just now, so its pid is still its own.
    let pidfd = crisp_sys::pidfd::open(state.shim_pid)
        .map_err(|source| Error::Connect { path: socket.into(), source })?;
    Ok(Supervision { client: SupervisorClient { connection, pidfd: Arc::new(pidfd) }, events, state })
}

async fn hello(connection: &Connection) -> Result<ShimState, Error> {
    match connection.ask("Hello", Call::Hello(pb::Hello { protocol: PROTOCOL }), &[]).await? {
        (Answer::State(state), _) => wire::state(state),
        _ => Err(Error::Answer { what: "Hello" }),
    }
}

/// Asks a shim. Cloning is cheap; calls may overlap; a dropped call is carried out all the same.
#[derive(Debug, Clone)]
pub(crate) struct SupervisorClient {
    pub(super) connection: Arc<Connection>,
    pidfd: Arc<OwnedFd>,
}

impl SupervisorClient {
    /// Starts the pod's reaping PID 1 in a new PID namespace; it joins the namespaces at these paths. Its root has
    /// this SELinux label.
    pub(crate) async fn start_pod_init(
        &self,
        namespaces: &[&Path],
        cgroup: &CgroupEntry,
        mount_label: Option<String>,
    ) -> Result<Started, Error> {
        let call = pb::StartPodInit {
            mount_label: mount_label.unwrap_or_default(),
            namespace_paths: namespaces.iter().map(|path| path.display().to_string()).collect(),
            cgroup: Some(wire::cgroup(cgroup)),
        };
        self.started("StartPodInit", Call::StartPodInit(call)).await
    }

    /// Makes a container up to the point where its init waits for [`Self::start`].
    pub(crate) async fn create(&self, setup: &ContainerSetup) -> Result<Started, Error> {
        self.started("CreateContainer", Call::Create(wire::create(setup))).await
    }

    /// Lets the container's program run; `Ok` once it was executed, else the cause.
    pub(crate) async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        self.done("StartContainer", Call::Start(pb::StartContainer { container_id: id.to_string() })).await
    }

    /// Sends a signal (kernel number) to the container's init.
    pub(crate) async fn signal(&self, id: &ContainerId, signal: i32) -> Result<(), Error> {
        let call = pb::Signal { container_id: id.to_string(), signal, exec_id: String::new(), after_ms: 0 };
        self.done("Signal", Call::Signal(call)).await
    }

    /// Opens the container's log anew; the file exists afterwards.
    pub(crate) async fn reopen_log(&self, id: &ContainerId) -> Result<(), Error> {
        self.done("ReopenLog", Call::ReopenLog(pb::ReopenLog { container_id: id.to_string() })).await
    }

    /// Forgets a container that has exited or never started; also fine for one that is unknown.
    pub(crate) async fn delete(&self, id: &ContainerId) -> Result<(), Error> {
        self.done("DeleteContainer", Call::Delete(pb::DeleteContainer { container_id: id.to_string() })).await
    }

    /// Kills what is left and ends the shim; returns when it has answered or is gone.
    pub(crate) async fn shutdown(&self) -> Result<(), Error> {
        self.done("Shutdown", Call::Shutdown(pb::Shutdown {})).await
    }

    /// Is ready when the shim's process has ended.
    pub(crate) async fn died(&self) {
        let ended = async {
            let pidfd = super::registered(self.pidfd.try_clone()?, Interest::READABLE)?;
            pidfd.readable().await.map(drop)
        };
        if let Err(error) = ended.await {
            tracing::warn!(%error, "wait for the end of a shim");
        }
    }

    async fn started(&self, what: &'static str, call: Call) -> Result<Started, Error> {
        match self.connection.ask(what, call, &[]).await? {
            (Answer::Started(started), _) => Ok(wire::started(started)),
            _ => Err(Error::Answer { what }),
        }
    }

    async fn done(&self, what: &'static str, call: Call) -> Result<(), Error> {
        match self.connection.ask(what, call, &[]).await? {
            (Answer::Done(pb::Done {}), _) => Ok(()),
            _ => Err(Error::Answer { what }),
        }
    }
}
