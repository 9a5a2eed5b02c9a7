//! Pod sandboxes: what is recorded of them, and what the daemon holds of them while it runs.

pub(crate) mod check;
pub(crate) mod files;
mod network;
pub(crate) mod request;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod stop;
pub(crate) mod userns;
pub(crate) mod volumes;
pub(crate) mod watch;

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crisp_cgroup::CgroupPath;
use crisp_domain::{SandboxId, Timestamp};
use crisp_network::AttachRequest;
use crisp_proto::cri::{
    LinuxContainerResources, NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata,
};
use crisp_snapshot::ChainId;
use serde::{Deserialize, Serialize};
use tokio::sync::{RwLock, watch as channel};

use crate::dirs::PodDir;
use crate::error::{Doing as _, Error, Result};
use crate::index::Indexed;
use crate::published::{Change, Published, Record};
use crate::supervisor::SupervisorClient;
use check::NetworkCheck;
use state::{PodEvent, PodState};

/// What is on disk of a pod: `<state>/pods/<id>/sandbox.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) id: SandboxId,
    pub(crate) config: Arc<PodSandboxConfig>,
    /// Name of the handler as requested; empty is the default one.
    pub(crate) handler: String,
    pub(crate) created_at: Timestamp,
    pub(crate) cgroup: PodCgroup,
    pub(crate) state: PodState,
    /// Of the pod's network, preferred family first.
    pub(crate) ips: Vec<IpAddr>,
    /// SELinux labels, where there are some; the categories in them are this pod's alone.
    #[serde(default)]
    pub(crate) selinux: Option<crisp_lsm::selinux::Labels>,
    /// The reaping PID 1, where the containers share a PID namespace.
    pub(crate) init: Option<Process>,
    /// Layers of the images that are mounted as volumes, which must stay even when the image is removed.
    #[serde(default)]
    pub(crate) image_volumes: Vec<Vec<ChainId>>,
    /// Plugins were told of the stop, which they are once.
    #[serde(default)]
    pub(crate) stop_told: bool,
    /// UpdatePodSandboxResources; `None` until the first one.
    pub(crate) overhead: Option<LinuxContainerResources>,
    pub(crate) resources: Option<LinuxContainerResources>,
}

impl Record for PodRecord {
    const WHAT: &'static str = "sandbox";
    const VERSION: u32 = 1;
    fn id(&self) -> &str {
        self.id.as_str()
    }
}

/// A process, named for good: a pid alone may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) start_time_ticks: u64,
}

/// The cgroup below which a pod's containers get theirs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum PodCgroup {
    /// Named in the request; its owner (the kubelet) makes, limits and removes it.
    Given(String),
    /// The request named none, so we made this one and remove it.
    Ours(String),
}

impl PodCgroup {
    pub(crate) fn path(&self) -> &str {
        match self {
            Self::Given(path) | Self::Ours(path) => path,
        }
    }
}

/// A pod, as the daemon holds it.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) id: SandboxId,
    pub(crate) dir: PodDir,
    name: String,
    record: Published<PodRecord>,
    /// Creations and starts of containers hold it shared; a stop waits for them by taking it whole.
    pub(crate) gate: RwLock<()>,
    /// Replaced when a connection broke while the shim lives.
    supervisor: Mutex<Option<SupervisorClient>>,
    /// Route socket in the pod's network namespace, for statistics. It keeps that namespace alive, so a stop drops it.
    netlink: Mutex<Option<Arc<OwnedFd>>>,
    /// Serialises the mounting of image volumes.
    pub(crate) volumes: Mutex<()>,
    /// Layers of the image volumes.
    layers: Mutex<Vec<crisp_image::LayerPin>>,
    /// Serialises the start of the PID 1.
    pub(crate) init: tokio::sync::Mutex<()>,
    /// How the pod's network was found after the daemon's start.
    network_check: Mutex<NetworkCheck>,
    /// Whether a client got the id. A pod whose creator hung up stays invisible until a retry claims it.
    claimed: AtomicBool,
}

impl Pod {
    pub(crate) fn new(record: PodRecord, dir: PodDir) -> Self {
        Self {
            id: record.id.clone(),
            name: unique_name(&metadata(&record.config)),
            record: Published::new(dir.record(), record),
            dir,
            gate: RwLock::new(()),
            supervisor: Mutex::new(None),
            netlink: Mutex::new(None),
            volumes: Mutex::new(()),
            layers: Mutex::new(Vec::new()),
            init: tokio::sync::Mutex::new(()),
            network_check: Mutex::default(),
            claimed: AtomicBool::new(false),
        }
    }

    /// The published record.
    pub(crate) fn record(&self) -> Arc<PodRecord> {
        self.record.get()
    }

    pub(crate) fn state(&self) -> PodState {
        self.record.borrow().state
    }

    /// Tells of every change of the record.
    pub(crate) fn subscribe(&self) -> channel::Receiver<Arc<PodRecord>> {
        self.record.subscribe()
    }

    pub(crate) fn cgroup_path(&self) -> Result<CgroupPath> {
        CgroupPath::new(self.record().cgroup.path()).doing("check the pod's cgroup path")
    }

    /// Changes the record on disk, then the published one. Blocks: a file on tmpfs is written.
    ///
    /// # Errors
    /// As [`Published::update`].
    pub(crate) fn update(&self, change: impl FnOnce(&mut PodRecord)) -> Result<()> {
        self.record.update(|record| {
            change(record);
            Ok(Change::Made)
        })
    }

    /// Moves the state by `event`. Blocks as [`Pod::update`] does.
    ///
    /// # Errors
    /// [`Error::WrongState`] when it does not fit; otherwise as [`Pod::update`].
    pub(crate) fn apply(&self, event: PodEvent) -> Result<()> {
        self.record.update(|record| {
            let before = record.state;
            record.state = state::next(before, event)
                .map_err(|state::Refused| self.wrong_state(before, "in a state for this"))?;
            Ok(if record.state == before { Change::Needless } else { Change::Made })
        })
    }

    /// Its files go now: from here on the record stays as it is, in memory, too.
    pub(crate) fn close(&self) {
        self.record.close();
    }

    fn wrong_state(&self, state: PodState, needed: &'static str) -> Error {
        Error::WrongState { what: "sandbox", id: self.id.to_string(), state: state.name().to_owned(), needed }
    }

    /// # Errors
    /// [`Error::WrongState`] unless the pod is ready.
    pub(crate) fn require_ready(&self) -> Result<()> {
        match self.state() {
            PodState::Ready => Ok(()),
            state @ (PodState::Creating | PodState::Stopping | PodState::NotReady) => {
                Err(self.wrong_state(state, "ready"))
            }
        }
    }

    /// The shim.
    ///
    /// # Errors
    /// [`Error::WrongState`] when the pod has none.
    pub(crate) fn supervisor(&self) -> Result<SupervisorClient> {
        let supervisor = self.supervisor.lock().unwrap_or_else(PoisonError::into_inner);
        supervisor.clone().ok_or_else(|| Error::WrongState {
            what: "sandbox",
            id: self.id.to_string(),
            state: "without its shim".to_owned(),
            needed: "supervised",
        })
    }

    pub(crate) fn set_supervisor(&self, client: Option<SupervisorClient>) {
        *self.supervisor.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    pub(crate) fn netlink(&self) -> Option<Arc<OwnedFd>> {
        self.netlink.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_netlink(&self, socket: Option<OwnedFd>) {
        *self.netlink.lock().unwrap_or_else(PoisonError::into_inner) = socket.map(Arc::new);
    }

    pub(crate) fn network_check(&self) -> NetworkCheck {
        self.network_check.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_network_check(&self, check: NetworkCheck) {
        *self.network_check.lock().unwrap_or_else(PoisonError::into_inner) = check;
    }

    /// Keeps the layers of an image volume until [`Pod::drop_layers`].
    pub(crate) fn keep_layers(&self, pin: crisp_image::LayerPin) {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).push(pin);
    }

    pub(crate) fn drop_layers(&self) {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// A client has the id now; whether it is the first one.
    pub(crate) fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }

    pub(crate) fn namespaces(&self) -> NamespaceOption {
        namespaces(&self.record().config)
    }

    /// The ids of the pod's user namespace; `None` where it has the host's.
    pub(crate) fn user_ids(&self) -> Option<crisp_sys::userns::IdMap> {
        userns::ids(&self.record().config)
    }

    /// Path of the pinned network namespace; `None` on the host's network.
    pub(crate) fn netns(&self) -> Option<PathBuf> {
        (self.namespaces().network() == NamespaceMode::Pod).then(|| self.dir.net())
    }
}

impl Indexed for Pod {
    const WHAT: &'static str = "sandbox";
    fn id(&self) -> &str {
        self.id.as_str()
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn is_visible(&self) -> bool {
        self.is_claimed() && self.state() != PodState::Creating
    }
}

/// The requested namespace modes; nothing requested means the API's zero values.
pub(crate) fn namespaces(config: &PodSandboxConfig) -> NamespaceOption {
    let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    security.and_then(|security| security.namespace_options.clone()).unwrap_or_default()
}

/// The metadata; its presence was checked when the request was parsed.
pub(crate) fn metadata(config: &PodSandboxConfig) -> PodSandboxMetadata {
    config.metadata.clone().unwrap_or_default()
}

/// The name that no two sandboxes share.
pub(crate) fn unique_name(metadata: &PodSandboxMetadata) -> String {
    let PodSandboxMetadata { name, uid, namespace, attempt } = metadata;
    format!("{name}_{namespace}_{uid}_{attempt}")
}

/// What the pod's network is asked for.
///
/// # Errors
/// [`Error::Invalid`] for port mappings and bandwidths that cannot be.
pub(crate) fn network_request(pod: &Pod, netns: PathBuf) -> Result<AttachRequest> {
    let record = pod.record();
    let PodSandboxMetadata { name, uid, namespace, .. } = metadata(&record.config);
    Ok(AttachRequest {
        pod_name: name,
        pod_namespace: namespace,
        pod_uid: uid,
        port_mappings: network::port_mappings(&record.config.port_mappings)?,
        bandwidth: network::bandwidth(&record.config.annotations)?,
        dns: record.config.dns_config.as_ref().map(network::dns),
        cgroup_path: Some(record.cgroup.path().to_owned()),
        annotations: record.config.annotations.clone().into_iter().collect(),
        netlink: pod.netlink(),
        ..AttachRequest::new(pod.id.clone(), netns)
    })
}
