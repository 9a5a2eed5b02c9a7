//! Containers: what is recorded of them, and what the daemon holds of them while it runs.

pub(crate) mod bundle;
pub(crate) mod create;
pub(crate) mod exec;
pub(crate) mod exit;
pub(crate) mod remove;
pub(crate) mod start;
pub(crate) mod state;
pub(crate) mod stop;
pub(crate) mod update;
pub(crate) mod views;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crisp_domain::{ContainerId, Timestamp};
use crisp_proto::cri::{ContainerConfig, ContainerMetadata, PodSandboxMetadata};
use crisp_snapshot::ChainId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch as channel;
use tokio::time::Instant;

use crate::dirs::ContainerDir;
use crate::error::{Error, Result};
use crate::index::Indexed;
use crate::pod::Pod;
use crate::published::{Change, Published, Record};
use state::{ContainerEvent, ContainerState};

/// What is on disk of a container: `<state>/containers/<id>/container.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) id: ContainerId,
    pub(crate) pod_id: crisp_domain::SandboxId,
    pub(crate) config: Arc<ContainerConfig>,
    pub(crate) image: ImageFacts,
    pub(crate) created_at: Timestamp,
    pub(crate) state: ContainerState,
    /// Absolute path of the CRI log; `None` discards the output.
    pub(crate) log_path: Option<PathBuf>,
    /// In force, as UpdateContainerResources left them.
    pub(crate) resources: crisp_spec::Resources,
    /// What the making of its files found out; `None` while they are being made.
    pub(crate) made: Option<Made>,
    /// What it has to do with checkpoints.
    #[serde(default)]
    pub(crate) checkpoint: crate::checkpoint::Facts,
}

impl Record for ContainerRecord {
    const WHAT: &'static str = "container";
    const VERSION: u32 = 1;
    fn id(&self) -> &str {
        self.id.as_str()
    }
}

/// What the making of a container's files found out.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Made {
    /// Whom its first process runs as.
    pub(crate) user: User,
    /// Kernel number.
    pub(crate) stop_signal: i32,
    /// For the CRI mounts that are images: their ids, by position in the configuration.
    pub(crate) image_mounts: Vec<Option<String>>,
}

/// A process's identity.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// The primary group among them.
    pub(crate) groups: Vec<u32>,
}

/// What a container keeps of its image, which may be removed under it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ImageFacts {
    /// CRI's `Image.id`.
    pub(crate) id: String,
    /// A repo digest, else the id.
    pub(crate) reference: String,
    /// A tag, else what was requested.
    pub(crate) name: String,
    /// Its layers, bottom first.
    pub(crate) chain: Vec<ChainId>,
}

/// A container, as the daemon holds it.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    pub(crate) pod: Arc<Pod>,
    pub(crate) dir: ContainerDir,
    name: String,
    record: Published<ContainerRecord>,
    /// Start, clean-up after an exit, update and removal exclude each other. A stop does not take it, an exec neither.
    pub(crate) ops: tokio::sync::Mutex<()>,
    /// When the stop under way loses its patience; `None` until one begins.
    stop: Mutex<Option<channel::Sender<Instant>>>,
    /// Layers that must stay while the container exists.
    layers: Mutex<Option<crisp_image::LayerPin>>,
    claimed: AtomicBool,
}

impl Container {
    pub(crate) fn new(
        record: ContainerRecord,
        pod: Arc<Pod>,
        dir: ContainerDir,
        layers: crisp_image::LayerPin,
    ) -> Self {
        Self {
            id: record.id.clone(),
            name: unique_name(&metadata(&record.config), &crate::pod::metadata(&pod.record().config)),
            pod,
            record: Published::new(dir.record(), record),
            dir,
            ops: tokio::sync::Mutex::new(()),
            stop: Mutex::new(None),
            layers: Mutex::new(Some(layers)),
            claimed: AtomicBool::new(false),
        }
    }

    /// The published record.
    pub(crate) fn record(&self) -> Arc<ContainerRecord> {
        self.record.get()
    }

    pub(crate) fn state(&self) -> ContainerState {
        self.record.borrow().state.clone()
    }

    /// Tells of every change of the record.
    pub(crate) fn subscribe(&self) -> channel::Receiver<Arc<ContainerRecord>> {
        self.record.subscribe()
    }

    /// Changes the record on disk, then the published one. Blocks: a file on tmpfs is written.
    ///
    /// # Errors
    /// As [`Published::update`].
    pub(crate) fn update(&self, change: impl FnOnce(&mut ContainerRecord)) -> Result<()> {
        self.record.update(|record| {
            change(record);
            Ok(Change::Made)
        })
    }

    /// Moves the state by `event`.
    ///
    /// # Errors
    /// [`Error::WrongState`] when it does not fit; otherwise as [`Container::update`].
    pub(crate) fn apply(&self, event: ContainerEvent) -> Result<()> {
        let needed = match event {
            ContainerEvent::Made => "being created",
            ContainerEvent::Start => "created",
            ContainerEvent::Started { .. } => "starting",
            ContainerEvent::Ended(_) => "alive",
        };
        self.record.update(|record| {
            record.state =
                state::next(&record.state, event).map_err(|state::Refused| self.wrong_state(needed))?;
            Ok(Change::Made)
        })
    }

    /// An error that tells the state it is in, and the one that is needed.
    pub(crate) fn wrong_state(&self, needed: &'static str) -> Error {
        let state = self.state().name().to_owned();
        Error::WrongState { what: "container", id: self.id.to_string(), state, needed }
    }

    /// Its files go now: from here on the record stays as it is, in memory, too.
    pub(crate) fn close(&self) {
        self.record.close();
    }

    /// # Errors
    /// [`Error::WrongState`] unless it runs.
    pub(crate) fn require_running(&self) -> Result<()> {
        match self.state() {
            ContainerState::Running { .. } => Ok(()),
            ContainerState::Creating
            | ContainerState::Created
            | ContainerState::Starting
            | ContainerState::Exited { .. } => Err(self.wrong_state("running")),
        }
    }

    /// Lets the layers go, when the root filesystem is gone.
    pub(crate) fn drop_layers(&self) {
        drop(self.layers.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// A client has the id now; whether it is the first one.
    pub(crate) fn claim(&self) -> bool {
        !self.claimed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_claimed(&self) -> bool {
        self.claimed.load(Ordering::Acquire)
    }
}

impl Indexed for Container {
    const WHAT: &'static str = "container";
    fn id(&self) -> &str {
        self.id.as_str()
    }
    fn name(&self) -> &str {
        &self.name
    }
    fn is_visible(&self) -> bool {
        self.is_claimed() && self.state() != ContainerState::Creating
    }
}

/// The metadata; its presence was checked when the request was parsed.
pub(crate) fn metadata(config: &ContainerConfig) -> ContainerMetadata {
    config.metadata.clone().unwrap_or_default()
}

/// The name that no two containers share.
pub(crate) fn unique_name(container: &ContainerMetadata, pod: &PodSandboxMetadata) -> String {
    let PodSandboxMetadata { name, uid, namespace, .. } = pod;
    format!("{}_{name}_{namespace}_{uid}_{}", container.name, container.attempt)
}
