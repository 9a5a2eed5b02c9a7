//! Resource use of containers and pods: one collector reads each file of a cgroup once per request, for all who ask.
//!
//! ```text
//! request ─▶ of_containers ─▶ one or two blocking threads: cgroup files, link counters ─▶ message (pure) ─▶ CRI
//!               │                    └▶ samples (pure): CPU time now and a second ago give nano cores
//!               └▶ layers: sizes of writable layers, walked on another thread, kept for a while
//! ```
//! Nothing runs while nobody asks: the sampler ends a minute after the last request.

pub(crate) mod layers;
mod message;
mod samples;

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crisp_cgroup::{Cgroup, Stats};
use crisp_domain::{ErrorKind, Timestamp};
use crisp_network::InterfaceStats;
use crisp_proto::cri;
use tokio::time::MissedTickBehavior;

use crate::blocking::{self, Kind};
use crate::cgroups;
use crate::container::Container;
use crate::container::state::ContainerState;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::index::Indexed as _;
use crate::pod::Pod;
use crate::pod::state::PodState;
use layers::{LayerUsage, Layers};
use samples::Samples;

/// How often the sampler reads CPU times while somebody asks.
const SAMPLE_PERIOD: Duration = Duration::from_secs(1);
/// How long after a request the sampler goes on.
const SAMPLE_AFTER_REQUEST: Duration = Duration::from_secs(60);

/// Threads that read for one request.
const READERS: usize = 2;
/// Fewer things than this are read on one thread.
const SHARED_FROM: usize = 16;

/// What is kept between requests.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    cpu: Mutex<Samples>,
    layers: Arc<Layers>,
    pub(crate) metrics: crate::metrics::Kept,
    sampler: Mutex<Sampler>,
    /// A route socket serves one dump at a time.
    links: Mutex<()>,
}

#[derive(Debug, Default)]
struct Sampler {
    asked_at: Option<Instant>,
    runs: bool,
}

impl Collector {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// CPU use in 10⁻⁹ cores; `None` until there are two samples far enough apart.
    fn nano_cores(&self, id: &str, stats: &Stats, at: Instant) -> Option<u64> {
        let usage_ns = stats.cpu.as_ref()?.usage_ns;
        lock(&self.cpu).add(id, at, usage_ns)
    }

    /// Notes a request; whether the sampler must be started.
    fn ask(&self, now: Instant) -> bool {
        let mut sampler = lock(&self.sampler);
        sampler.asked_at = Some(now);
        !std::mem::replace(&mut sampler.runs, true)
    }

    /// Whether the sampler goes on; one that is told no has ended.
    fn goes_on(&self, now: Instant) -> bool {
        let mut sampler = lock(&self.sampler);
        sampler.runs =
            sampler.asked_at.is_some_and(|at| now.saturating_duration_since(at) < SAMPLE_AFTER_REQUEST);
        sampler.runs
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A sandbox whose statistics are asked for while it does not run.
#[derive(Debug, thiserror::Error)]
#[error("sandbox {id} is {state:?}, not ready")]
struct NotReady {
    id: String,
    state: PodState,
}

/// ContainerStats. Of a container that does not run: who it is and its writable layer.
///
/// # Errors
/// When a file of a running container's cgroup cannot be read.
pub(crate) async fn of_container(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
) -> Result<cri::ContainerStats> {
    keep_sampling(daemon);
    let layers = measure(daemon, std::slice::from_ref(container)).await;
    let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
    blocking::run_as(Kind::Look, move || {
        let counted = if runs(&container) { count(&daemon, &container)? } else { None };
        Ok(container_message(&daemon, &container, counted, layers.first().copied().flatten()))
    })
    .await
}

/// ListContainerStats: of those that run. One that cannot be read, or ends meanwhile, is left out.
///
/// # Errors
/// Never for a single container's sake.
pub(crate) async fn of_containers(
    daemon: &Arc<Daemon>,
    containers: Vec<Arc<Container>>,
) -> Result<Vec<cri::ContainerStats>> {
    keep_sampling(daemon);
    let running: Vec<_> = containers.into_iter().filter(|container| runs(container)).collect();
    let layers = measure(daemon, &running).await;
    let daemon = Arc::clone(daemon);
    let measured = running.into_iter().zip(layers).collect();
    read_each(measured, move |(container, layer)| collect_container(&daemon, container, *layer)).await
}

/// What `read` makes of each thing, in their order, on [`READERS`] blocking threads when there are many.
pub(crate) async fn read_each<T, R>(
    mut things: Vec<T>,
    read: impl Fn(&T) -> Option<R> + Send + Sync + 'static,
) -> Result<Vec<R>>
where
    T: Send + 'static,
    R: Send + 'static,
{
    let readers = if things.len() < SHARED_FROM { 1 } else { READERS };
    let share = things.len().div_ceil(readers);
    let read = Arc::new(read);
    let mut reading = Vec::new();
    while !things.is_empty() {
        let rest = things.split_off(share.min(things.len()));
        let (share, read) = (std::mem::replace(&mut things, rest), Arc::clone(&read));
        reading.push(blocking::run_as(Kind::Look, move || {
            Ok(share.iter().filter_map(|thing| read(thing)).collect::<Vec<_>>())
        }));
    }
    Ok(futures_util::future::try_join_all(reading).await?.into_iter().flatten().collect())
}

/// PodSandboxStats: of the pod's own cgroup, its interfaces and its running containers.
///
/// # Errors
/// Of kind [`ErrorKind::NotReady`] unless the pod is ready.
pub(crate) async fn of_pod(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<cri::PodSandboxStats> {
    let not_ready = || NotReady { id: pod.id.to_string(), state: pod.state() };
    let stats = of_pods(daemon, vec![Arc::clone(pod)]).await?.pop();
    stats.ok_or_else(|| Error::step("read the sandbox's statistics", ErrorKind::NotReady, not_ready()))
}

/// ListPodSandboxStats: of those that are ready.
///
/// # Errors
/// Never for a single pod's sake.
pub(crate) async fn of_pods(daemon: &Arc<Daemon>, pods: Vec<Arc<Pod>>) -> Result<Vec<cri::PodSandboxStats>> {
    keep_sampling(daemon);
    let ready = ready_pods(daemon, pods).await;
    let daemon = Arc::clone(daemon);
    read_each(ready, move |pod| collect_pod(&daemon, pod)).await
}

/// A pod and its running containers, with what their writable layers occupy.
pub(crate) struct ReadyPod {
    pub(crate) pod: Arc<Pod>,
    pub(crate) containers: Vec<Measured>,
}

/// A running container and what its writable layer occupies.
pub(crate) type Measured = (Arc<Container>, Option<LayerUsage>);

/// Those of `pods` that are ready, in their order.
pub(crate) async fn ready_pods(daemon: &Daemon, pods: Vec<Arc<Pod>>) -> Vec<ReadyPod> {
    let mut ready: Vec<_> = pods.into_iter().filter(|pod| pod.state() == PodState::Ready).collect();
    let ids: HashSet<&str> = ready.iter().map(|pod| pod.id.as_str()).collect();
    let mut running = daemon.containers.visible();
    running.retain(|container| ids.contains(container.pod.id.as_str()) && runs(container));
    drop(ids);
    let layers = measure(daemon, &running).await;
    let mut by_pod: HashMap<String, Vec<Measured>> = HashMap::new();
    for (container, layer) in running.into_iter().zip(layers) {
        by_pod.entry(container.pod.id.to_string()).or_default().push((container, layer));
    }
    ready
        .drain(..)
        .map(|pod| ReadyPod { containers: by_pod.remove(pod.id.as_str()).unwrap_or_default(), pod })
        .collect()
}

/// The process that a running container's numbers belong to.
pub(crate) fn running_init(container: &Container) -> Option<(i32, u64)> {
    match container.state() {
        ContainerState::Running { pid, start_time_ticks, .. } => Some((pid, start_time_ticks)),
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Exited { .. } => None,
    }
}

fn runs(container: &Container) -> bool {
    running_init(container).is_some()
}

/// Sizes of the writable layers, in the order of `containers`.
async fn measure(daemon: &Daemon, containers: &[Arc<Container>]) -> Vec<Option<LayerUsage>> {
    let wanted = containers
        .iter()
        .map(|container| (container.id.clone(), container.dir.writable().to_owned()))
        .collect();
    daemon.stats.layers.measure(wanted).await
}

/// What a cgroup counted, and its CPU use in 10⁻⁹ cores.
struct Counted {
    stats: Stats,
    nano_cores: Option<u64>,
    at: Timestamp,
}

fn count_cgroup(daemon: &Daemon, id: &str, cgroup: &Cgroup) -> Result<Counted> {
    let stats = cgroup.usage().doing("read the cgroup's statistics")?;
    let nano_cores = daemon.stats.nano_cores(id, &stats, Instant::now());
    Ok(Counted { stats, nano_cores, at: Timestamp::now() })
}

/// `None` when the container ended while its files were read: they may be gone, or another's.
fn count(daemon: &Daemon, container: &Container) -> Result<Option<Counted>> {
    let before = running_init(container);
    let cgroup = daemon.cgroups.open(&cgroups::container_path(container)?);
    let counted = count_cgroup(daemon, container.id.as_str(), &cgroup)?;
    Ok((before.is_some() && running_init(container) == before).then_some(counted))
}

fn container_message(
    daemon: &Daemon,
    container: &Container,
    counted: Option<Counted>,
    layer: Option<LayerUsage>,
) -> cri::ContainerStats {
    let record = container.record();
    let writable_layer =
        layer.map(|layer| message::writable_layer(layer, crate::cri::filesystem(daemon.dirs.root())));
    let attributes = Some(cri::ContainerAttributes {
        id: record.id.to_string(),
        metadata: Some(crate::container::metadata(&record.config)),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    });
    let Some(Counted { stats, nano_cores, at }) = counted else {
        return cri::ContainerStats { attributes, writable_layer, ..cri::ContainerStats::default() };
    };
    cri::ContainerStats {
        attributes,
        cpu: message::cpu(&stats, nano_cores, at),
        memory: message::memory(&stats, at),
        writable_layer,
        swap: message::swap(&stats, at),
        io: message::io(&stats, at),
    }
}

fn collect_container(
    daemon: &Daemon,
    container: &Container,
    layer: Option<LayerUsage>,
) -> Option<cri::ContainerStats> {
    match count(daemon, container) {
        Ok(counted) => Some(container_message(daemon, container, Some(counted?), layer)),
        Err(error) => {
            tracing::debug!(container_id = %container.id, %error, "container left out of the statistics");
            None
        }
    }
}

fn collect_pod(daemon: &Daemon, ready: &ReadyPod) -> Option<cri::PodSandboxStats> {
    let containers = ready.containers.iter();
    let containers = containers.filter_map(|(container, layer)| collect_container(daemon, container, *layer));
    let message = pod_message(daemon, &ready.pod, containers.collect());
    (ready.pod.state() == PodState::Ready).then_some(message)
}

fn pod_message(daemon: &Daemon, pod: &Pod, containers: Vec<cri::ContainerStats>) -> cri::PodSandboxStats {
    let counted = or_unset(pod, count_pod(daemon, pod));
    let links = or_unset(pod, read_links(daemon, pod)).flatten();
    let linux =
        message::pod(counted.as_ref().map(|own| (&own.stats, own.nano_cores, own.at)), links, containers);
    let record = pod.record();
    cri::PodSandboxStats {
        attributes: Some(cri::PodSandboxAttributes {
            id: record.id.to_string(),
            metadata: Some(crate::pod::metadata(&record.config)),
            labels: record.config.labels.clone(),
            annotations: record.config.annotations.clone(),
        }),
        linux: Some(linux),
        windows: None,
    }
}

fn count_pod(daemon: &Daemon, pod: &Pod) -> Result<Counted> {
    let cgroup = daemon.cgroups.open(&pod.cgroup_path()?);
    let mut counted = count_cgroup(daemon, pod.id.as_str(), &cgroup)?;
    if counted.stats.pids.is_none() {
        // No controller counts them.
        let processes = cgroup.processes().doing("list the pod's processes")?;
        counted.stats.pids = u64::try_from(processes.len()).ok();
    }
    // What keeps the scopes of systemd is ours, not the pod's.
    let scopes = daemon.containers_of(pod).iter().filter(|container| runs(container)).count()
        + usize::from(pod.record().init.is_some());
    let ours = cgroups::holders(pod)?.saturating_mul(scopes.try_into().unwrap_or(u64::MAX));
    counted.stats.pids = counted.stats.pids.map(|all| all.saturating_sub(ours));
    Ok(counted)
}

/// `None` on the host's network.
pub(crate) fn read_links(daemon: &Daemon, pod: &Pod) -> Result<Option<(Vec<InterfaceStats>, Timestamp)>> {
    let Some(socket) = pod.netlink() else { return Ok(None) };
    let _one_dump_at_a_time = lock(&daemon.stats.links);
    let links = crisp_network::interface_stats(socket.as_fd()).doing("read the pod's interfaces")?;
    Ok(Some((links, Timestamp::now())))
}

/// One group of numbers that fails does not take the others with it.
pub(crate) fn or_unset<T>(pod: &Pod, read: Result<T>) -> Option<T> {
    read.inspect_err(|error| tracing::debug!(pod_id = %pod.id, %error, "left out of the pod's statistics"))
        .ok()
}

/// Sees to it that CPU times are sampled for the next while, so that the next request finds a second sample.
fn keep_sampling(daemon: &Arc<Daemon>) {
    if daemon.stats.ask(Instant::now()) {
        tokio::spawn(sample_while_asked(Arc::downgrade(daemon)));
    }
}

async fn sample_while_asked(daemon: Weak<Daemon>) {
    let mut ticks = tokio::time::interval(SAMPLE_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(daemon) = daemon.upgrade() else { return };
        if !daemon.stats.goes_on(Instant::now()) {
            return;
        }
        // What fails here fails in the next request too, and is told there.
        let sampling = move || {
            sample(&daemon);
            Ok(())
        };
        let _sampled = blocking::run_as(Kind::Look, sampling).await;
    }
}

/// One file per container and pod.
fn sample(daemon: &Daemon) {
    let containers = daemon.containers.all().into_iter().filter(|container| runs(container));
    let containers = containers
        .filter_map(|container| Some((container.id().to_owned(), cgroups::container_path(&container).ok()?)));
    let pods = daemon.pods.all().into_iter().filter(|pod| pod.state() == PodState::Ready);
    let pods = pods.filter_map(|pod| Some((pod.id().to_owned(), pod.cgroup_path().ok()?)));
    let targets: Vec<_> = containers.chain(pods).collect();
    for (id, path) in &targets {
        if let Ok(Some(usage_ns)) = daemon.cgroups.open(path).cpu_usage_ns() {
            lock(&daemon.stats.cpu).add(id, Instant::now(), usage_ns);
        }
    }
    lock(&daemon.stats.cpu).forget_old(Instant::now());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sampler_starts_once_and_ends_a_minute_after_the_last_request() {
        let (collector, start) = (Collector::new(), Instant::now());
        assert!(collector.ask(start));
        assert!(!collector.ask(start + Duration::from_secs(30)));
        assert!(collector.goes_on(start + Duration::from_secs(89)));
        assert!(!collector.goes_on(start + Duration::from_secs(90)));
        assert!(collector.ask(start + Duration::from_secs(91)), "an ended one is started again");
    }
}
