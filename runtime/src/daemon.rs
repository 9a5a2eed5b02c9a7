//! The daemon: everything it holds, and its life from recovery to the end of serving.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crisp_cgroup::Cgroups;
use crisp_domain::{ContainerId, ErrorKind, SandboxId};
use crisp_image::{ImageStore, RegistryConfig};
use crisp_network::{BridgeConfig, Network, NetworkConfig};
use crisp_snapshot::LayerStore;

use crate::blocking::{self, Kind};
use crate::config::{Config, Handler, IpPreference};
use crate::container::Container;
use crate::dirs::Dirs;
use crate::error::{Doing as _, Error, Result};
use crate::index::Index;
use crate::jobs::Jobs;
use crate::pod::Pod;
use crate::stats::Collector;
use crate::supervisor::{CgroupEntry, HandlerKind, Launcher};
use crate::{cgroups, pod};

/// How long a pod or container stays for a retry when the client that asked for it hung up: longer than a kubelet waits
/// between two tries, shorter than anybody would miss its resources.
const UNCLAIMED_MAX: Duration = Duration::from_secs(5 * 60);

/// All that the daemon holds.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) config: Config,
    pub(crate) dirs: Dirs,
    pub(crate) pods: Index<Pod>,
    pub(crate) containers: Index<Container>,
    pub(crate) images: ImageStore,
    pub(crate) layers: LayerStore,
    pub(crate) features: crate::handlers::Features,
    pub(crate) network: Arc<Network>,
    pub(crate) cgroups: Cgroups,
    pub(crate) driver: cgroups::Driver,
    pub(crate) shim_cgroup: CgroupEntry,
    pub(crate) launcher: Launcher,
    pub(crate) seccomp: crisp_seccomp::Cache,
    pub(crate) seccomp_default: crisp_seccomp::Profile,
    pub(crate) host: crisp_spec::HostFacts,
    /// The limits of open files that containers get.
    pub(crate) files_max: crisp_spec::Rlimit,
    pub(crate) stats: Collector,
    pub(crate) streams: crate::streaming::Streams,
    pub(crate) events: crate::events::Hub,
    pub(crate) nri: crate::nri::Nri,
    pub(crate) cdi: crate::cdi::Cdi,
    pub(crate) lsm: crate::lsm::Lsm,
    /// By the pod's unique name.
    pub(crate) pod_jobs: Jobs<String, SandboxId>,
    /// By the container's unique name.
    pub(crate) container_jobs: Jobs<String, ContainerId>,
    /// By verb and id.
    pub(crate) step_jobs: Jobs<String, ()>,
    /// Held by the collection of layers that is under way.
    collecting: tokio::sync::Mutex<()>,
}

impl Daemon {
    /// Opens every store. Blocks.
    ///
    /// # Errors
    /// The first that cannot be opened, with what to do about it where that is known.
    pub(crate) fn open(config: Config) -> Result<Self> {
        let dirs = Dirs::new(&config.state, &config.root);
        for dir in [dirs.pods(), dirs.containers(), dirs.writable_layers(), dirs.network(), dirs.seccomp()] {
            crisp_store::ensure_dir(&dir).doing("make the daemon's directories")?;
        }
        for handler in config.handlers.values() {
            if let Handler::Oci(oci) = handler {
                crisp_store::ensure_dir(&oci.root).doing("make the directory of an OCI runtime's state")?;
            }
        }
        keep_mounts_apart(dirs.state())?;
        crate::container::views::open_passage(dirs.state(), &dirs.views())?;
        let layers = LayerStore::open(dirs.root()).doing("open the layer store")?;
        let images =
            ImageStore::open(dirs.root(), layers.clone(), registry(&config)).doing("open the image store")?;
        let cgroups = Cgroups::detect().doing("detect the cgroup hierarchies")?;
        let driver = cgroups::Driver::open(&config, &cgroups)?;
        Ok(Self {
            features: crate::handlers::Features::probe(&config.handlers, &layers, &dirs.views()),
            shim_cgroup: cgroups::make_shims(&driver, &cgroups, &config.cgroup_parent)?,
            network: Arc::new(Network::open(network(&config, &dirs)).doing("open the network")?),
            launcher: Launcher::new().doing("prepare the shim")?,
            seccomp: crisp_seccomp::Cache::open(&dirs.seccomp()).doing("open the seccomp cache")?,
            seccomp_default: crisp_seccomp::default_profile().clone(),
            host: crisp_spec::host::probe().doing("look at this machine")?,
            files_max: files_max(&config.limits),
            stats: Collector::new(),
            streams: crate::streaming::Streams::default(),
            events: crate::events::Hub::default(),
            nri: crate::nri::Nri::open(&config.nri),
            cdi: crate::cdi::Cdi::open(&config.cdi),
            lsm: crate::lsm::Lsm::open(&config.security, dirs.state())?,
            pods: Index::new(),
            containers: Index::new(),
            pod_jobs: Jobs::new(),
            container_jobs: Jobs::new(),
            step_jobs: Jobs::new(),
            collecting: tokio::sync::Mutex::default(),
            config,
            dirs,
            images,
            layers,
            cgroups,
            driver,
        })
    }

    /// The handler of this name; empty is the default one.
    ///
    /// # Errors
    /// [`Error::Invalid`] that names those there are.
    pub(crate) fn handler(&self, name: &str) -> Result<&Handler> {
        let name = if name.is_empty() { &self.config.default_handler } else { name };
        self.config.handlers.get(name).ok_or_else(|| {
            let known: Vec<_> = self.config.handlers.keys().map(String::as_str).collect();
            Error::Invalid(format!("no runtime handler {name:?}; there are: {}", known.join(", ")))
        })
    }

    /// Whether pods of this handler may have a user namespace.
    pub(crate) fn user_namespaces(&self, handler: &str) -> bool {
        let name = if handler.is_empty() { &self.config.default_handler } else { handler };
        self.features.user_namespaces(name)
    }

    /// The handler of this name, for a shim.
    pub(crate) fn handler_kind(&self, name: &str) -> Result<HandlerKind> {
        Ok(match self.handler(name)? {
            Handler::Builtin => HandlerKind::Builtin,
            Handler::Oci(oci) => HandlerKind::OciBinary {
                path: oci.path.clone(),
                root: oci.root.clone(),
                systemd_cgroup: oci.systemd_cgroup.unwrap_or(self.driver.is_systemd()),
                global_args: oci.args.clone(),
            },
        })
    }

    /// The containers of a pod, visible or not.
    pub(crate) fn containers_of(&self, pod: &Pod) -> Vec<Arc<Container>> {
        self.containers.all().into_iter().filter(|container| container.pod.id == pod.id).collect()
    }

    /// Makes the filter and loads the profile that most containers get, so that the first one does not wait for them.
    pub(crate) fn warm_up(self: &Arc<Self>) {
        crate::lsm::warm_up(self);
        let daemon = Arc::clone(self);
        tokio::task::spawn_blocking(move || {
            let granted =
                crisp_spec::capability::granted(&crisp_spec::SecurityRequest::default(), &daemon.host);
            let filter =
                daemon.seccomp_default.to_linux_seccomp(&crisp_seccomp::Target::native(granted.names()));
            if let Err(error) = daemon.seccomp.program(&filter) {
                tracing::warn!(error = %crate::error::chain(&error), "compile the default seccomp profile");
            }
        });
    }

    /// Deletes the layers that no image and no container needs any more: those let go before the call are off the disk when the
    /// task ends. It goes on when nobody waits for it.
    pub(crate) fn collect_layers(self: &Arc<Self>) -> tokio::task::JoinHandle<()> {
        let daemon = Arc::clone(self);
        tokio::spawn(async move {
            // A collection passes over what another one is deleting, so its end alone would not say that all is gone.
            let _alone = daemon.collecting.lock().await;
            let images = daemon.images.clone();
            let collected =
                blocking::run_as(Kind::Disk, move || images.collect().doing("collect unused layers")).await;
            if let Err(error) = collected {
                tracing::warn!(error = %crate::error::chain(&error), "layers stay that nothing needs");
            }
        })
    }

    /// Removes a pod that nobody claims in time.
    pub(crate) fn forget_unless_claimed(self: &Arc<Self>, pod: &Arc<Pod>) {
        let (daemon, pod) = (Arc::downgrade(self), Arc::downgrade(pod));
        tokio::spawn(async move {
            tokio::time::sleep(UNCLAIMED_MAX).await;
            let (Some(daemon), Some(pod)) = (daemon.upgrade(), pod.upgrade()) else { return };
            if !pod.is_claimed() {
                tracing::warn!(pod_id = %pod.id, "nobody came back for this pod; removing it");
                report(pod::stop::remove(&daemon, &pod).await);
            }
        });
    }

    /// Removes a container that nobody claims in time.
    pub(crate) fn forget_container_unless_claimed(self: &Arc<Self>, container: &Arc<Container>) {
        let (daemon, container) = (Arc::downgrade(self), Arc::downgrade(container));
        tokio::spawn(async move {
            tokio::time::sleep(UNCLAIMED_MAX).await;
            let (Some(daemon), Some(container)) = (daemon.upgrade(), container.upgrade()) else { return };
            if !container.is_claimed() {
                tracing::warn!(container_id = %container.id, "nobody came back for this container; removing it");
                report(crate::container::remove::remove(&daemon, &container).await);
            }
        });
    }
}

fn report(result: Result<()>) {
    if let Err(error) = result {
        tracing::warn!(%error, "removal failed");
    }
}

/// Takes as many descriptors as the daemon may have, and tells what containers get: not what the daemon happens to have.
fn files_max(limits: &crate::config::Limits) -> crisp_spec::Rlimit {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let own = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: own.maximum, maximum: own.maximum };
    if let Err(errno) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%errno, "raise the limit of open files");
    }
    let bound = own.maximum.unwrap_or(u64::MAX);
    crisp_spec::Rlimit {
        kind: oci_spec::runtime::PosixRlimitType::RlimitNofile,
        soft: limits.open_files_soft.min(bound),
        hard: limits.open_files_hard.min(bound),
    }
}

/// Makes the state directory a private mount, so that what is mounted below it shows in no other mount namespace.
fn keep_mounts_apart(state: &Path) -> Result<()> {
    use crisp_sys::mount::{self, Reach};
    if !mount::is_mountpoint(state).doing("look at the state directory")? {
        mount::bind(state, state, Reach::Single).doing("bind the state directory on itself")?;
    }
    mount::make_private(state, Reach::Single).doing("make the state directory a private mount")
}

fn registry(config: &Config) -> RegistryConfig {
    let mut registry = RegistryConfig::default();
    registry.config_roots.clone_from(&config.registry.config_path);
    registry.progress_timeout = config.registry.progress_timeout;
    registry.layers_parallel = config.registry.layers_parallel;
    registry.search.clone_from(&config.registry.search);
    registry.pinned.clone_from(&config.registry.pinned);
    registry
}

/// The settings of pods' networks.
pub(crate) fn network(config: &Config, dirs: &Dirs) -> NetworkConfig {
    let mut network = NetworkConfig::new(dirs.network());
    network.cni_conf_dir.clone_from(&config.cni.conf_dir);
    network.cni_bin_dirs.clone_from(&config.cni.bin_dirs);
    network.plugin_timeout = config.cni.plugin_timeout;
    network.cni_networks_max = config.cni.max_networks;
    network.cni_template.clone_from(&config.cni.template);
    network.prefer = match config.cni.ip_preference {
        IpPreference::Ipv4 => crisp_network::IpPreference::Ipv4,
        IpPreference::Ipv6 => crisp_network::IpPreference::Ipv6,
        IpPreference::Cni => crisp_network::IpPreference::Result,
    };
    network.bridge = BridgeConfig {
        enabled: config.network.enabled,
        name: config.network.bridge.clone(),
        subnet: config.network.subnet.to_string(),
        ipv6_subnet: config.network.ipv6_subnet.map(|subnet| subnet.to_string()),
        mtu: config.network.mtu,
        masquerade: config.network.masquerade,
    };
    network
}

/// An error of starting up.
pub(crate) fn startup(what: &'static str, source: std::io::Error) -> Error {
    Error::step(what, ErrorKind::Internal, source)
}
