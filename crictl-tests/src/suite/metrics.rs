//! Metrics, and the lists that come in parts.
use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use tonic::{Response, Status, Streaming};

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, same};
use crate::registry::Registry;

tests![every_metric_is_told, a_pod_on_the_hosts_network_has_metrics, lists_in_parts_are_the_lists];

/// The names that a kubelet's `/metrics/cadvisor` has; those in the second list are not to be had on every kernel.
const ALWAYS: [&str; 45] = [
    "container_blkio_device_usage_total",
    "container_cpu_cfs_periods_total",
    "container_cpu_cfs_throttled_periods_total",
    "container_cpu_cfs_throttled_seconds_total",
    "container_cpu_system_seconds_total",
    "container_cpu_usage_seconds_total",
    "container_cpu_user_seconds_total",
    "container_file_descriptors",
    "container_fs_inodes_free",
    "container_fs_inodes_total",
    "container_fs_limit_bytes",
    "container_fs_reads_bytes_total",
    "container_fs_reads_total",
    "container_fs_usage_bytes",
    "container_fs_writes_bytes_total",
    "container_fs_writes_total",
    "container_last_seen",
    "container_memory_cache",
    "container_memory_failcnt",
    "container_memory_failures_total",
    "container_memory_kernel_usage",
    "container_memory_mapped_file",
    "container_memory_max_usage_bytes",
    "container_memory_rss",
    "container_memory_swap",
    "container_memory_usage_bytes",
    "container_memory_working_set_bytes",
    "container_network_receive_bytes_total",
    "container_network_receive_errors_total",
    "container_network_receive_packets_dropped_total",
    "container_network_receive_packets_total",
    "container_network_transmit_bytes_total",
    "container_network_transmit_errors_total",
    "container_network_transmit_packets_dropped_total",
    "container_network_transmit_packets_total",
    "container_oom_events_total",
    "container_processes",
    "container_sockets",
    "container_spec_cpu_period",
    "container_spec_cpu_shares",
    "container_spec_memory_limit_bytes",
    "container_spec_memory_swap_limit_bytes",
    "container_start_time_seconds",
    "container_threads",
    "container_threads_max",
];
const SOMETIMES: [&str; 11] = [
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_spec_cpu_quota",
    "container_spec_memory_reservation_limit_bytes",
    "container_ulimits_soft",
];

fn descriptors(node: &Node) -> Result<BTreeMap<String, Vec<String>>> {
    let request = cri::ListMetricDescriptorsRequest {};
    let answer = node.cri.runtime(|mut c| async move { c.list_metric_descriptors(request).await })?;
    ensure!(answer.descriptors.iter().all(|descriptor| !descriptor.help.is_empty()), "a metric without help");
    Ok(answer.descriptors.into_iter().map(|descriptor| (descriptor.name, descriptor.label_keys)).collect())
}

fn metrics(node: &Node, pod: &str) -> Result<cri::PodSandboxMetrics> {
    let request = cri::ListPodSandboxMetricsRequest {};
    let answer = node.cri.runtime(|mut c| async move { c.list_pod_sandbox_metrics(request).await })?;
    answer.pod_metrics.into_iter().find(|metrics| metrics.pod_sandbox_id == pod).context("metrics of the pod")
}

/// The sum of a metric's samples.
fn value(metrics: &[cri::Metric], name: &str) -> Result<u64> {
    let samples: Vec<u64> = metrics
        .iter()
        .filter(|metric| metric.name == name)
        .filter_map(|metric| Some(metric.value?.value))
        .collect();
    ensure!(!samples.is_empty(), "no {name}");
    Ok(samples.iter().sum())
}

/// Seconds since the epoch.
fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn every_metric_is_told(node: &mut Node, _: &mut Registry) -> Result<()> {
    const MEMORY: i64 = 64 << 20;
    let pod = node.run(node.pod("metrics"))?;
    let mut config = node.container("main", &["sh", "-c", "sleep 1000 & sleep 1000"]);
    config.linux.as_mut().context("linux")?.resources = Some(cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 20_000,
        cpu_shares: 1024,
        memory_limit_in_bytes: MEMORY,
        memory_swap_limit_in_bytes: MEMORY,
        ..Default::default()
    });
    let before = now()?;
    let id = node.launch(&pod, &config)?;
    node.exec(&id, &["sh", "-c", "head -c 1000000 /dev/zero >/data; ping -c 1 10.77.1.1"])?;
    let described = descriptors(node)?;
    let names: BTreeSet<&str> = ALWAYS.into_iter().chain(SOMETIMES).collect();
    same("descriptors", &described.keys().map(String::as_str).collect(), &names)?;

    // The shell needs a moment to start the others, and a large writable layer to be measured.
    let told = eventually(SOON, || {
        let told = metrics(node, &pod.id)?;
        ensure!(value(&told.metrics, "container_network_receive_packets_total")? > 0, "packets");
        let container = told.container_metrics.first().context("metrics of the container")?;
        same("processes", &value(&container.metrics, "container_processes")?, &3)?;
        same("threads", &value(&container.metrics, "container_threads")?, &3)?;
        ensure!(value(&container.metrics, "container_file_descriptors")? >= 6, "descriptors");
        ensure!(value(&container.metrics, "container_fs_usage_bytes")? > 0, "writable layer");
        Ok(told)
    })?;
    let [container] = &told.container_metrics[..] else { anyhow::bail!("{:?}", told.container_metrics) };
    same("container", &container.container_id, &id)?;
    let all: Vec<_> = told.metrics.iter().chain(&container.metrics).collect();
    for metric in &all {
        let keys = described.get(&metric.name).with_context(|| format!("{metric:?} is not described"))?;
        same(&metric.name, &metric.label_values.len(), &keys.len())?;
    }
    for name in ALWAYS {
        ensure!(all.iter().any(|metric| metric.name == name), "no sample of {name}");
    }
    same("labels", &container.metrics[0].label_values[1..6].to_vec(), &{
        let image = crate::node::BUSYBOX;
        vec![id.clone(), image.to_owned(), "main".to_owned(), "metrics".to_owned(), "test".to_owned()]
    })?;
    let of_container = |name: &str| value(&container.metrics, name);
    same("quota", &of_container("container_spec_cpu_quota")?, &20_000)?;
    same("limit", &of_container("container_spec_memory_limit_bytes")?, &u64::try_from(MEMORY)?)?;
    ensure!(of_container("container_memory_usage_bytes")? > 0, "memory");
    ensure!(
        of_container("container_memory_max_usage_bytes")?
            >= of_container("container_memory_working_set_bytes")?,
        "the most memory is less than the memory"
    );
    ensure!(of_container("container_fs_limit_bytes")? > 1_000_000, "size of the file system");
    let (started, after) = (of_container("container_start_time_seconds")?, now()?);
    ensure!((before..=after).contains(&started), "started at {started}, between {before} and {after}");
    same(
        "crictl metricsp",
        &node.crictl_json(&["metricsp"])?["podMetrics"][0]["podSandboxId"],
        &pod.id.into(),
    )?;
    let listed = node.crictl_json(&["metricdescs"])?;
    same("crictl metricdescs", &listed["descriptors"].as_array().map(Vec::len), &Some(names.len()))
}

fn a_pod_on_the_hosts_network_has_metrics(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = node.pod("host");
    let security =
        config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).context("linux")?;
    security.namespace_options.as_mut().context("namespaces")?.network = cri::NamespaceMode::Node.into();
    let pod = node.run(config)?;
    let told = metrics(node, &pod.id)?;
    ensure!(told.container_metrics.is_empty(), "metrics of a container that is not there");
    ensure!(
        value(&told.metrics, "container_network_receive_bytes_total").is_err(),
        "the host's network was told"
    );
    value(&told.metrics, "container_memory_usage_bytes")?;
    node.cri.stop_pod(&pod.id)?;
    ensure!(metrics(node, &pod.id).is_err(), "a pod that is not ready was told of");
    Ok(())
}

/// All parts of a streamed list, none of them empty.
fn parts<A: 'static, T>(
    node: &Node,
    begun: impl Future<Output = Result<Response<Streaming<A>>, Status>>,
    items: fn(A) -> Vec<T>,
) -> Result<Vec<Vec<T>>> {
    node.cri.together(async {
        let (mut stream, mut all) = (begun.await?.into_inner(), Vec::new());
        while let Some(part) = stream.message().await? {
            let part = items(part);
            ensure!(!part.is_empty(), "an empty part");
            all.push(part);
        }
        Ok(all)
    })
}

/// More containers than fit into one part.
const CONTAINERS: usize = 150;

fn lists_in_parts_are_the_lists(node: &mut Node, _: &mut Registry) -> Result<()> {
    nothing_is_no_part(node)?;
    let (pod, running) = node.one("running", &["sleep", "1000"])?;
    let crowd = node.run(node.pod("crowd"))?;
    for number in 0..CONTAINERS {
        node.cri.create(&crowd.id, &node.container(&format!("c{number}"), &["true"]), &crowd.config)?;
    }
    node.cri.pull("nginx")?;
    let mut client = node.cri.client();
    let containers =
        parts(node, client.stream_containers(cri::StreamContainersRequest::default()), |part| {
            part.containers
        })?;
    ensure!(containers.len() > 1, "{} containers in one part", CONTAINERS + 1);
    same("containers", &containers.concat(), &node.cri.containers()?)?;
    let filter = Some(cri::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() });
    let few = parts(node, client.stream_containers(cri::StreamContainersRequest { filter }), |part| {
        part.containers
    })?;
    same("of a pod", &few.concat().iter().map(|item| item.id.clone()).collect(), &vec![running.clone()])?;
    let pods = parts(node, client.stream_pod_sandboxes(cri::StreamPodSandboxesRequest::default()), |part| {
        part.pod_sandboxes
    })?;
    same("pods", &pods.concat(), &node.cri.pods()?)?;
    let request = cri::StreamImagesRequest::default();
    let begun = node.cri.image(|mut c| async move { c.stream_images(request).await });
    let images = parts(node, async { begun.map(Response::new) }, |part| part.images)?;
    same("images", &images.concat(), &node.cri.images()?)?;
    numbers_in_parts(node, &[pod.id, crowd.id], &running)
}

fn nothing_is_no_part(node: &Node) -> Result<()> {
    let mut client = node.cri.client();
    let none = parts(node, client.stream_containers(cri::StreamContainersRequest::default()), |part| {
        part.containers
    })?;
    same("containers", &none.len(), &0)?;
    let request = cri::StreamPodSandboxMetricsRequest {};
    let none = parts(node, client.stream_pod_sandbox_metrics(request), |part| part.pod_sandbox_metrics)?;
    same("metrics", &none.len(), &0)
}

fn numbers_in_parts(node: &Node, pods: &[String], running: &str) -> Result<()> {
    let mut client = node.cri.client();
    let mut pods = pods.to_vec();
    pods.sort();
    let request = cri::StreamContainerStatsRequest::default();
    let stats = parts(node, client.stream_container_stats(request), |part| part.container_stats)?.concat();
    let ids: Vec<_> = stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect();
    same("statistics of containers", &ids, &vec![running.to_owned()])?;
    let request = cri::StreamPodSandboxStatsRequest::default();
    let stats =
        parts(node, client.stream_pod_sandbox_stats(request), |part| part.pod_sandbox_stats)?.concat();
    let ids: Vec<_> = stats.into_iter().filter_map(|stats| Some(stats.attributes?.id)).collect();
    same("statistics of pods", &ids, &pods)?;
    let request = cri::StreamPodSandboxMetricsRequest {};
    let told =
        parts(node, client.stream_pod_sandbox_metrics(request), |part| part.pod_sandbox_metrics)?.concat();
    same("metrics", &told.into_iter().map(|metrics| metrics.pod_sandbox_id).collect(), &pods)
}
