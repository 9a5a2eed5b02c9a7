//! The metrics of pods and containers by the names that node exporters have given them, for a kubelet's `/metrics/cadvisor`.
//!
//! ```text
//! ready pods ─▶ facts (cgroup files, /proc, link counters, file system; one or two blocking threads) ─▶ table (pure) ─▶ samples
//! ```
//! [`table`] is all there is to say about a metric: name, help, type, labels, whose it is, and how it follows from the facts. Every
//! sample begins with the labels [`BASE_LABELS`]. What the kernel does not tell is 0, but for the rows that say so.

mod devices;
mod facts;
mod peaks;
mod processes;
mod table;

use std::sync::Arc;

use crisp_proto::cri::{ContainerMetrics, Metric, MetricDescriptor, PodSandboxMetrics, UInt64Value};

use crate::cgroups;
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};
use crate::pod::Pod;
use crate::pod::state::PodState;
use crate::stats::layers::LayerUsage;
use crate::stats::{self, ReadyPod};
use devices::{Devices, Disk};
use facts::{Facts, Level};
use peaks::Peaks;
use table::{ROWS, Row, Samples};

/// The labels that every sample begins with: path of the cgroup, id in CRI, name of the image, then the names in Kubernetes.
const BASE_LABELS: [&str; 6] = ["id", "name", "image", "container", "pod", "namespace"];
/// The container's name in the samples of a pod itself, as node exporters have it.
const POD: &str = "POD";

/// What is kept between requests.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    peaks: Peaks,
    devices: Devices,
}

/// Every metric that may be told.
pub(crate) fn descriptors() -> Vec<MetricDescriptor> {
    let descriptor = |row: &Row| MetricDescriptor {
        name: row.name.to_owned(),
        help: row.help.to_owned(),
        label_keys: BASE_LABELS.iter().chain(row.labels).map(|key| (*key).to_owned()).collect(),
    };
    ROWS.iter().map(descriptor).collect()
}

/// The metrics of those pods that are ready, and of their running containers.
///
/// # Errors
/// Never for a single pod's sake.
pub(crate) async fn of_pods(daemon: &Arc<Daemon>, pods: Vec<Arc<Pod>>) -> Result<Vec<PodSandboxMetrics>> {
    let ready = stats::ready_pods(daemon, pods).await;
    let (reader, root) = (Arc::clone(daemon), Arc::clone(daemon));
    let disk = crate::blocking::run_as(crate::blocking::Kind::Disk, move || {
        Ok(root.stats.metrics.devices.disk(root.dirs.root()))
    })
    .await?;
    let read = stats::read_each(ready, move |ready| pod_metrics(&reader, ready, &disk)).await;
    daemon.stats.metrics.peaks.forget_old();
    read
}

fn pod_metrics(daemon: &Daemon, ready: &ReadyPod, disk: &Disk) -> Option<PodSandboxMetrics> {
    let pod = &ready.pod;
    let own = stats::or_unset(pod, pod_facts(daemon, pod, disk));
    let metrics = own.map(|(facts, labels)| samples(&facts, &labels)).unwrap_or_default();
    let of_container = |(container, layer): &(Arc<Container>, Option<LayerUsage>)| match container_facts(
        daemon, container, *layer, disk,
    ) {
        Ok(read) => {
            let (facts, labels) = read?;
            let metrics = samples(&facts, &labels);
            Some(ContainerMetrics { container_id: container.id.to_string(), metrics })
        }
        Err(error) => {
            tracing::debug!(container_id = %container.id, %error, "container left out of the metrics");
            None
        }
    };
    let container_metrics = ready.containers.iter().filter_map(of_container).collect();
    (pod.state() == PodState::Ready).then(|| PodSandboxMetrics {
        pod_sandbox_id: pod.id.to_string(),
        metrics,
        container_metrics,
    })
}

type Labels = [String; BASE_LABELS.len()];

fn pod_facts(daemon: &Daemon, pod: &Pod, disk: &Disk) -> Result<(Facts, Labels)> {
    let record = pod.record();
    let path = pod.cgroup_path()?;
    let stats = daemon.cgroups.open(&path).stats().doing("read the pod's cgroup")?;
    let links = stats::or_unset(pod, stats::read_links(daemon, pod)).flatten();
    let kept = &daemon.stats.metrics;
    let facts = Facts {
        links: links.map(|(links, _)| links).unwrap_or_default(),
        started_at: record.created_at,
        ..Facts::new(Level::Pod, kept.peaks.complete(pod.id.as_str(), stats), kept, disk)
    };
    let metadata = crate::pod::metadata(&record.config);
    let labels = [
        path.as_str().to_owned(),
        record.id.to_string(),
        String::new(),
        POD.to_owned(),
        metadata.name,
        metadata.namespace,
    ];
    Ok((facts, labels))
}

/// `None` when the container ended while it was looked at.
fn container_facts(
    daemon: &Daemon,
    container: &Container,
    layer: Option<LayerUsage>,
    disk: &Disk,
) -> Result<Option<(Facts, Labels)>> {
    let before = stats::running_init(container);
    let record = container.record();
    let path = cgroups::container_path(container)?;
    let cgroup = daemon.cgroups.open(&path);
    let mut stats = cgroup.stats().doing("read the container's cgroup")?;
    let ours = cgroups::holders(&container.pod)?;
    stats.pids = stats.pids.map(|all| all.saturating_sub(ours));
    let pids = cgroup.processes().doing("list the container's processes")?;
    let kept = &daemon.stats.metrics;
    let facts = Facts {
        processes: processes::look_at(&pids, before.map(|(pid, _)| pid)),
        layer_bytes: layer.map_or(0, |layer| layer.usage.bytes),
        limits: record.resources.clone(),
        started_at: facts::started_at(&record.state),
        ..Facts::new(Level::Container, kept.peaks.complete(container.id.as_str(), stats), kept, disk)
    };
    let pod = crate::pod::metadata(&container.pod.record().config);
    let labels = [
        path.as_str().to_owned(),
        record.id.to_string(),
        record.image.name.clone(),
        crate::container::metadata(&record.config).name,
        pod.name,
        pod.namespace,
    ];
    Ok((before.is_some() && stats::running_init(container) == before).then_some((facts, labels)))
}

/// The samples of all metrics that there are at this level.
fn samples(facts: &Facts, base: &Labels) -> Vec<Metric> {
    let mut metrics = Vec::new();
    for row in ROWS.iter().filter(|row| row.of.includes(facts.level)) {
        let mut samples = Samples::default();
        (row.read)(facts, &mut samples);
        metrics.extend(samples.0.into_iter().map(|(labels, value)| Metric {
            name: row.name.to_owned(),
            // Live values: the reader's own time is theirs.
            timestamp: 0,
            metric_type: row.kind.into(),
            label_values: base.iter().cloned().chain(labels).collect(),
            value: Some(UInt64Value { value }),
        }));
    }
    metrics
}

#[cfg(test)]
mod tests;
