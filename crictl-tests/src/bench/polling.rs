//! What a kubelet's polling costs with many pods: the time of each list, and processor time when nothing else happens.
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crisp_proto::cri;

use super::{Extent, Stages, millis};
use crate::eventually::pause;
use crate::node::Node;
use crate::say;

const PODS: usize = 50;
const CALLS: usize = 100;
/// How long the processor time is watched: each call of a kubelet comes once at least.
const WATCHED: Duration = Duration::from_secs(30);
/// Clock ticks of `/proc/<pid>/stat` in a second: 100 on every machine (`sysconf(_SC_CLK_TCK)`).
pub(super) const TICKS_PER_SECOND: f64 = 100.0;

/// Brings up pods, times the lists, then polls as a kubelet does in its steady state, then not at all.
pub(super) fn run(node: &Node, extent: Extent) -> Result<()> {
    for number in 0..PODS {
        let pod = node.run(node.pod(&format!("q{number}")))?;
        node.launch(&pod, &node.container("c", &["sleep", "1000"]))?;
    }
    let mut stages = Stages::default();
    // The first request of statistics also measures writable layers, which is done once in a while.
    container_stats(node)?;
    for _ in 0..CALLS {
        stages.time("ListContainerStats", || container_stats(node))?;
        stages.time("ListPodSandboxStats", || pod_stats(node))?;
        stages.time("ListPodSandboxMetrics", || metrics(node))?;
        stages.time("ListContainers", || containers(node))?;
        stages.time("ListPodSandbox", || node.cri.pods().map(drop))?;
        stages.time("ListImages", || images(node))?;
        stages.time("Status", || status(node))?;
    }
    stages.print_calls(&format!("{PODS} pods of one container, {CALLS} calls each"));
    if extent == Extent::Short {
        return node.remove_all();
    }
    let busy = watch(node, || poll(node))?;
    let idle = watch(node, || {
        pause(WATCHED);
        Ok(())
    })?;
    say!(
        "\nprocessor time of daemon and {PODS} shims in {} s: polled by a kubelet {busy:.2} % of a core, left alone {idle:.2} %",
        WATCHED.as_secs()
    );
    node.remove_all()
}

fn container_stats(node: &Node) -> Result<(), tonic::Status> {
    let request = cri::ListContainerStatsRequest::default();
    node.cri.runtime(|mut c| async move { c.list_container_stats(request).await }).map(drop)
}

fn pod_stats(node: &Node) -> Result<(), tonic::Status> {
    let request = cri::ListPodSandboxStatsRequest::default();
    node.cri.runtime(|mut c| async move { c.list_pod_sandbox_stats(request).await }).map(drop)
}

fn metrics(node: &Node) -> Result<(), tonic::Status> {
    let request = cri::ListPodSandboxMetricsRequest::default();
    node.cri.runtime(|mut c| async move { c.list_pod_sandbox_metrics(request).await }).map(drop)
}

fn containers(node: &Node) -> Result<Vec<cri::Container>, tonic::Status> {
    let request = cri::ListContainersRequest::default();
    Ok(node.cri.runtime(|mut c| async move { c.list_containers(request).await })?.containers)
}

fn images(node: &Node) -> Result<(), tonic::Status> {
    let request = cri::ListImagesRequest::default();
    node.cri.image(|mut c| async move { c.list_images(request).await }).map(drop)
}

fn status(node: &Node) -> Result<(), tonic::Status> {
    node.cri.runtime(|mut c| async move { c.status(cri::StatusRequest::default()).await }).map(drop)
}

fn image_fs(node: &Node) -> Result<(), tonic::Status> {
    node.cri.image(|mut c| async move { c.image_fs_info(cri::ImageFsInfoRequest {}).await }).map(drop)
}

fn container_status(node: &Node, id: &str) -> Result<(), tonic::Status> {
    let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    node.cri.runtime(|mut c| async move { c.container_status(request).await }).map(drop)
}

/// The calls of a kubelet in its steady state, each at its period.
fn poll(node: &Node) -> Result<()> {
    let began = Instant::now();
    for second in 0..WATCHED.as_secs() {
        node.cri.pods()?;
        let all = containers(node)?;
        if second % 2 == 0 {
            node.cri.pods()?;
            containers(node)?;
        }
        if second % 5 == 0 {
            status(node)?;
        }
        if second % 10 == 0 {
            image_fs(node)?;
            container_stats(node)?;
        }
        if second % 30 == 0 {
            images(node)?;
        }
        // Each container once in ten seconds.
        for container in all.iter().skip(usize::try_from(second % 10)?).step_by(10) {
            container_status(node, &container.id)?;
        }
        pause((began + Duration::from_secs(second + 1)).saturating_duration_since(Instant::now()));
    }
    Ok(())
}

/// Percent of a core that daemon and shims use during the work.
fn watch(node: &Node, work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let (before, began) = (ticks(node)?, Instant::now());
    work()?;
    let used = f64::from(u32::try_from(ticks(node)?.saturating_sub(before))?);
    Ok(used / TICKS_PER_SECOND / began.elapsed().as_secs_f64() * 100.0)
}

/// Clock ticks that the daemon and the shims have used.
fn ticks(node: &Node) -> Result<u64> {
    let mut total = of_process(node.daemon_pid()?)?;
    for shim in super::shims() {
        total += of_process(shim)?;
    }
    Ok(total)
}

/// Fields 14 and 15 of `/proc/<pid>/stat` (proc_pid_stat(5)): user and system time.
pub(super) fn of_process(pid: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = stat.rsplit(')').next().unwrap_or_default();
    let times: Vec<u64> =
        rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    let [user, system] = times[..] else { return Err(anyhow::anyhow!("{stat}")).context("/proc/<pid>/stat") };
    Ok(user + system)
}

impl Stages {
    fn print_calls(&self, text: &str) {
        say!("\n{text} (ms)\n{:<28}{:>9}{:>9}", "call", "p50", "p95");
        for (call, times) in &self.0 {
            let [middle, high] = [50, 95].map(|percent| millis(super::percentile(times, percent)));
            say!("{call:<28}{middle:>9.2}{high:>9.2}");
        }
    }
}
