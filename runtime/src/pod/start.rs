//! RunPodSandbox: record, effects in order, confirmation. A failure is undone by the steps of a stop, which all
//! bear that their effect was never made.

use std::net::IpAddr;
use std::sync::Arc;

use crisp_domain::{ErrorKind, SandboxId, Timestamp};
use crisp_proto::cri::PodSandboxConfig;
use crisp_sys::mount::Tmpfs;
use crisp_sys::netns::{self, PodNamespacesRequest};
use crisp_sys::userns::IdMap;

use super::request::{PidMode, PodRequest, Scope};
use super::state::{PodEvent, PodState};
use super::{Pod, PodRecord, Process, files, metadata, network_request, stop, unique_name, watch};
use crate::blocking::{self, Kind};
use crate::cgroups;
use crate::container::state::ContainerState;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::supervisor::Supervision;
use crate::{events, nri};

/// A pod's `/dev/shm`.
const SHM: Tmpfs = Tmpfs { bytes_max: Some(64 << 20), mode: 0o1777 };
/// What pods get unless they ask otherwise: unprivileged processes may bind low ports and send pings.
const DEFAULT_NET_SYSCTLS: [(&str, &str); 2] =
    [("net/ipv4/ip_unprivileged_port_start", "0"), (PING_GROUPS, "0 2147483647")];

const PING_GROUPS: &str = "net/ipv4/ping_group_range";

/// Makes a pod, or joins the job that makes it, or claims the one that was made for a caller who hung up.
///
/// # Errors
/// [`Error::NameInUse`] when a client has the pod of this name already; whatever a step says.
pub(crate) async fn run(daemon: &Arc<Daemon>, request: PodRequest, handler: String) -> Result<SandboxId> {
    daemon.handler(&handler)?;
    if request.user.is_some() && !daemon.user_namespaces(&handler) {
        return Err(Error::Unimplemented("a user namespace with this handler, kernel and file system"));
    }
    let name = unique_name(&metadata(&request.config));
    let job = || make(Arc::clone(daemon), request, handler);
    let id = match claimable(daemon, &name)? {
        Some(pod) => pod.id.clone(),
        None => daemon.pod_jobs.join_or_start(name, job).await?,
    };
    if let Some(pod) = daemon.pods.find_any(id.as_str()) {
        // Only now does anybody see it.
        events::claim_pod(daemon, &pod);
    }
    Ok(id)
}

/// The finished pod of this name that nobody has claimed.
fn claimable(daemon: &Daemon, name: &str) -> Result<Option<Arc<Pod>>> {
    match daemon.pods.by_name(name) {
        Some(pod) if pod.is_claimed() => {
            Err(Error::NameInUse { what: "sandbox", name: name.to_owned(), holder: pod.id.to_string() })
        }
        Some(pod) if pod.state() == PodState::Ready => Ok(Some(pod)),
        // Under way, so there is a job to join; or its clean-up failed, so the job will find the name taken.
        Some(_) | None => Ok(None),
    }
}

async fn make(daemon: Arc<Daemon>, request: PodRequest, handler: String) -> Result<SandboxId> {
    let _creation = daemon.nri.creation().await;
    let pod = reserve(&daemon, &request, handler).await?;
    match effects(&daemon, &pod, request).await {
        Ok(()) => {
            tracing::info!(pod_id = %pod.id, "pod sandbox is ready");
            daemon.forget_unless_claimed(&pod);
            Ok(pod.id.clone())
        }
        Err(error) => {
            undo(&daemon, &pod).await;
            Err(error)
        }
    }
}

/// The intent: name and id are taken, and on disk, before anything else happens.
async fn reserve(daemon: &Arc<Daemon>, request: &PodRequest, handler: String) -> Result<Arc<Pod>> {
    let id = SandboxId::random().map_err(|error| {
        Error::step("make a sandbox id", ErrorKind::Internal, std::io::Error::other(error))
    })?;
    let record = PodRecord {
        cgroup: cgroups::of_pod(daemon, &request.config, &id)?,
        id: id.clone(),
        config: Arc::new(request.config.clone()),
        handler,
        created_at: Timestamp::now(),
        state: PodState::Creating,
        ips: Vec::new(),
        selinux: daemon.lsm.pod(&request.config)?,
        image_volumes: Vec::new(),
        stop_told: false,
        init: None,
        overhead: None,
        resources: None,
    };
    let pod = Arc::new(Pod::new(record, daemon.dirs.pod(id.as_str())));
    if let Err(error) = daemon.pods.insert(Arc::clone(&pod)) {
        daemon.lsm.released(&pod);
        return Err(error);
    }
    let recorded = blocking::run({
        let pod = Arc::clone(&pod);
        move || {
            crisp_store::ensure_dir(&pod.dir.namespaces()).doing("make the sandbox directory")?;
            pod.update(|_| ())
        }
    })
    .await;
    if let Err(error) = recorded {
        daemon.lsm.released(&pod);
        daemon.pods.remove(&pod);
        return Err(error);
    }
    Ok(pod)
}

async fn effects(daemon: &Arc<Daemon>, pod: &Arc<Pod>, request: PodRequest) -> Result<()> {
    let pid = request.pid;
    // A shim needs none of what containers find around them, and takes about as long.
    let (ips, supervision) = tokio::join!(surround(daemon, pod, request), supervise(daemon, pod));
    // Whatever failed first, a shim that was started must be known, so that the undoing ends it.
    let supervision = supervision?;
    let client = supervision.client.clone();
    pod.set_supervisor(Some(client.clone()));
    let ips = ips?;
    if pid == PidMode::Shared {
        start_init(daemon, pod).await?;
    }
    let addressed = Arc::clone(pod);
    blocking::run(move || addressed.update(|record| record.ips = ips)).await?;
    nri::run_pod(daemon, pod).await?;
    let made = Arc::clone(pod);
    blocking::run(move || made.apply(PodEvent::Made)).await?;
    watch::spawn(Arc::clone(daemon), Arc::clone(pod), supervision);
    Ok(())
}

/// All that containers will find around them; the pod's addresses.
async fn surround(daemon: &Arc<Daemon>, pod: &Arc<Pod>, request: PodRequest) -> Result<Vec<IpAddr>> {
    let kind = match request.network {
        // While the kernel cannot take a network namespace away, it makes none.
        Scope::Pod => Kind::Attach,
        Scope::Host => Kind::State,
    };
    blocking::run_as(kind, {
        let (daemon, pod) = (Arc::clone(daemon), Arc::clone(pod));
        move || local(&daemon, &pod, &request)
    })
    .await?;
    attach(daemon, pod).await
}

/// What takes no other program: namespaces, files, shared memory, cgroup.
fn local(daemon: &Daemon, pod: &Pod, request: &PodRequest) -> Result<()> {
    let wanted = namespaces_request(pod, request);
    let namespaces = match &request.user {
        Some(ids) => netns::create_pod_namespaces_for(&wanted, ids),
        None => netns::create_pod_namespaces(&wanted),
    };
    pod.set_netlink(namespaces.doing("make the pod's namespaces")?.netlink);
    let root = request.user.as_ref().and_then(IdMap::root);
    files::write(&pod.dir, &request.config, &hostname(&request.config), root)?;
    if request.ipc == Scope::Pod {
        std::fs::create_dir(pod.dir.shm()).doing("make the pod's shm directory")?;
        crisp_sys::mount::tmpfs(&pod.dir.shm(), &SHM).doing("mount the pod's shm")?;
        if let Some((uid, gid)) = root {
            std::os::unix::fs::chown(pod.dir.shm(), Some(uid), Some(gid))
                .doing("set the owner of the pod's shm")?;
        }
    }
    crate::lsm::label_files(pod)?;
    cgroups::make_pod(daemon, pod)
}

fn namespaces_request(pod: &Pod, request: &PodRequest) -> PodNamespacesRequest {
    let own_network = request.network == Scope::Pod;
    PodNamespacesRequest {
        dir: pod.dir.namespaces(),
        net: own_network,
        ipc: request.ipc == Scope::Pod,
        // A pod on the host's network keeps the host's name.
        hostname: own_network.then(|| hostname(&request.config)),
        sysctls: sysctls(request),
    }
}

fn sysctls(request: &PodRequest) -> Vec<(String, String)> {
    let mut sysctls = request.sysctls.clone();
    if request.network == Scope::Pod {
        for (name, value) in DEFAULT_NET_SYSCTLS {
            // Groups that a user namespace does not have cannot be named there.
            let applies = request.user.is_none() || name != PING_GROUPS;
            if applies && !sysctls.iter().any(|(requested, _)| requested == name) {
                sysctls.push((name.to_owned(), value.to_owned()));
            }
        }
    }
    sysctls
}

/// The pod's host name: the requested one, else this machine's.
pub(crate) fn hostname(config: &PodSandboxConfig) -> String {
    if config.hostname.is_empty() {
        rustix::system::uname().nodename().to_string_lossy().into_owned()
    } else {
        config.hostname.clone()
    }
}

async fn attach(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<Vec<IpAddr>> {
    let Some(netns) = pod.netns() else { return Ok(Vec::new()) };
    let request = network_request(pod, netns)?;
    let network = Arc::clone(&daemon.network);
    let attach = move || network.attach(&request).doing("set up the pod's network").map(|made| made.ips);
    blocking::run_as(Kind::Attach, attach).await
}

async fn supervise(daemon: &Daemon, pod: &Pod) -> Result<Supervision> {
    cgroups::keep_shims(daemon).await?;
    daemon.launcher.spawn(pod.dir.path(), &daemon.shim_cgroup).await.doing("start the pod's shim")
}

/// Starts the pod's PID 1, unless it runs.
async fn start_init(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<Process> {
    let _one_at_a_time = pod.init.lock().await;
    if let Some(init) = pod.record().init {
        let pinned = Arc::clone(pod);
        blocking::run(move || pin_init(&pinned, init)).await?;
        return Ok(init);
    }
    let cgroup = cgroups::make_pod_init(daemon, pod).await?;
    // The user namespace first: what follows belongs to it.
    let paths = [pod.dir.user(), pod.dir.net(), pod.dir.ipc(), pod.dir.uts()];
    let paths: Vec<_> =
        paths.iter().map(AsRef::as_ref).filter(|path: &&std::path::Path| path.exists()).collect();
    let started = pod
        .supervisor()?
        .start_pod_init(&paths, &cgroup, crate::lsm::root_label(pod))
        .await
        .doing("start the pod's init")?;
    let init = Process { pid: started.pid, start_time_ticks: started.start_time_ticks };
    let recorded = Arc::clone(pod);
    blocking::run(move || {
        recorded.update(|record| record.init = Some(init))?;
        pin_init(&recorded, init)
    })
    .await?;
    Ok(init)
}

/// Pins the namespace of the pod's PID 1, unless it is: a daemon before this one may not have come to it, or only to the file.
fn pin_init(pod: &Pod, init: Process) -> Result<()> {
    let path = pod.dir.pid();
    if crisp_sys::mount::is_mountpoint(&path).doing("look for the pinned PID namespace")? {
        return Ok(());
    }
    netns::unpin(&path).doing("clear the PID namespace's file")?;
    super::userns::pin_pid(init, &path)
}

/// The process whose PID namespace the container joins; none where it has its own or the host's.
///
/// # Errors
/// [`Error::Invalid`] for a target that is no running container of this pod.
pub(crate) async fn init_for(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    config: &crisp_spec::ContainerConfig,
) -> Result<Option<Process>> {
    use crisp_spec::NamespaceMode as Mode;
    let namespaces = &config.security.namespaces;
    match namespaces.pid {
        Mode::Container | Mode::Node => Ok(None),
        // A pod of another mode gets its PID 1 when the first container asks for it.
        Mode::Pod => start_init(daemon, pod).await.map(Some),
        Mode::Target => target(daemon, pod, namespaces.target_id.as_deref().unwrap_or_default()).map(Some),
    }
}

/// That the container whose PID namespace a created one is to join still runs. Its namespace is pinned, but nothing can be born in
/// one whose first process has ended.
///
/// # Errors
/// [`Error::Invalid`].
pub(crate) fn recheck_target(daemon: &Daemon, container: &crate::container::Container) -> Result<()> {
    let record = container.record();
    let security = record.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    match security.and_then(|security| security.namespace_options.as_ref()) {
        Some(options) if options.pid() == crisp_proto::cri::NamespaceMode::Target => {
            target(daemon, &container.pod, &options.target_id).map(drop)
        }
        Some(_) | None => Ok(()),
    }
}

fn target(daemon: &Daemon, pod: &Pod, id: &str) -> Result<Process> {
    let target = daemon.containers.get(id)?;
    match target.state() {
        ContainerState::Running { pid, start_time_ticks, .. } if target.pod.id == pod.id => {
            Ok(Process { pid, start_time_ticks })
        }
        _ => Err(Error::Invalid(format!("target_id {id:?} is no running container of this pod"))),
    }
}

/// Takes a half-made pod apart. What cannot be undone stays as a pod that is not ready, so that a client's stop can finish it.
async fn undo(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    let undone = async {
        // Plugins have not heard of it, or of its end as well.
        let unheard = Arc::clone(pod);
        blocking::run(move || unheard.update(|record| record.stop_told = true)).await?;
        stop::stop(daemon, pod).await?;
        stop::forget(daemon, pod).await
    };
    if let Err(error) = undone.await {
        tracing::error!(pod_id = %pod.id, %error, "a failed pod cannot be taken apart; stop and remove it again");
        pod.claim();
    }
}
