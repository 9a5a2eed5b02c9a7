//! Times of a pod's calls at a daemon that somebody else started: on the node with systemd, by cgroup driver.
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crictl_tests::cri::Cri;
use crictl_tests::say;
use crisp_proto::cri;

/// Where the pods go, and how many.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Options {
    /// The daemon's socket.
    #[arg(long, default_value = "/run/crisp/crisp.sock")]
    socket: PathBuf,
    /// The cgroup of the pods; one of the daemon's own without it.
    #[arg(long, default_value = "")]
    parent: String,
    /// An image that is there, with a program `sleep`.
    #[arg(long)]
    image: String,
    /// One after the other.
    #[arg(long, default_value_t = 20)]
    pods: u32,
    /// What the table is called.
    #[arg(long)]
    title: String,
}

/// Brings pods of one container up and takes them away; prints the time of each call.
///
/// # Errors
/// When a call fails.
pub(crate) fn run(options: &Options) -> Result<()> {
    let cri = Cri::new(&options.socket)?;
    let mut calls = Calls::default();
    for number in 0..options.pods {
        let pod = pod(options, number);
        one(&cri, &mut calls, &pod, &container(&options.image)).with_context(|| format!("pod {number}"))?;
    }
    say!(
        "\n{}, {} pods one after the other (ms)\n{:<28}{:>9}{:>9}",
        options.title,
        options.pods,
        "call",
        "p50",
        "p95"
    );
    for (call, times) in calls.0 {
        let [middle, high] = [50, 95].map(|percent| millis(percentile(&times, percent)));
        say!("{call:<28}{middle:>9.2}{high:>9.2}");
    }
    Ok(())
}

/// Durations by call, in the order of a pod's life.
#[derive(Default)]
struct Calls(Vec<(&'static str, Vec<Duration>)>);

impl Calls {
    fn time<T>(&mut self, call: &'static str, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let value = work();
        let took = began.elapsed();
        match self.0.iter_mut().find(|(name, _)| *name == call) {
            Some((_, times)) => times.push(took),
            None => self.0.push((call, vec![took])),
        }
        value
    }
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn one(
    cri: &Cri,
    calls: &mut Calls,
    pod: &cri::PodSandboxConfig,
    config: &cri::ContainerConfig,
) -> Result<()> {
    let id = calls.time("RunPodSandbox", || cri.run_pod(pod, ""))?;
    let container = calls.time("CreateContainer", || cri.create(&id, config, pod))?;
    calls.time("StartContainer", || cri.start(&container))?;
    calls.time("StopContainer (kill)", || cri.stop(&container, 0))?;
    calls.time("RemoveContainer", || cri.remove(&container))?;
    calls.time("StopPodSandbox", || cri.stop_pod(&id))?;
    calls.time("RemovePodSandbox", || cri.remove_pod(&id))?;
    Ok(())
}

/// As a kubelet asks: the container has its own processes, so that the pod needs no PID 1.
fn namespaces() -> Option<cri::NamespaceOption> {
    Some(cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() })
}

fn pod(options: &Options, number: u32) -> cri::PodSandboxConfig {
    let name = format!("timed-{number}");
    let security = cri::LinuxSandboxSecurityContext { namespace_options: namespaces(), ..Default::default() };
    cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.clone(),
            uid: name,
            namespace: "default".to_owned(),
            attempt: 0,
        }),
        log_directory: Path::new("/run/logs").join(number.to_string()).display().to_string(),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: options.parent.clone(),
            security_context: Some(security),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn container(image: &str) -> cri::ContainerConfig {
    let security =
        cri::LinuxContainerSecurityContext { namespace_options: namespaces(), ..Default::default() };
    let resources = cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        ..Default::default()
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "timed".to_owned(), attempt: 0 }),
        image: Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: ["sleep", "1000"].map(str::to_owned).to_vec(),
        log_path: "timed.log".to_owned(),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources),
            security_context: Some(security),
        }),
        ..Default::default()
    }
}
