//! The calls that a kubelet was recorded to make, in its order, with its parameters, deadlines and concurrency.
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use crisp_proto::cri;
use crisp_proto::cri::image_service_client::ImageServiceClient;
use crisp_proto::cri::runtime_service_client::RuntimeServiceClient;
use rustix::process::Signal;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{BUSYBOX, Node, same};
use crate::objects::parse_log;
use crate::registry::Registry;

tests![
    a_kubelet_starts_up,
    a_kubelet_runs_seven_pods_at_once,
    a_kubelet_probes_rotates_and_restarts,
    a_kubelet_resizes_and_debugs,
    a_kubelet_collects_garbage,
    a_kubelet_meets_a_new_daemon,
];

/// The kubelet's `runtimeRequestTimeout`.
const DEADLINE: Duration = Duration::from_secs(120);
/// Calls that a kubelet was seen to have in flight.
const AT_ONCE: usize = 7;
const MASKED: [&str; 4] = ["/proc/acpi", "/proc/kcore", "/proc/keys", "/sys/firmware"];
const READONLY: [&str; 3] = ["/proc/bus", "/proc/fs", "/proc/sys"];

/// A kubelet's two connections.
#[derive(Clone)]
struct Kubelet {
    runtime: RuntimeServiceClient<Channel>,
    image: ImageServiceClient<Channel>,
}

/// A call with the kubelet's deadline.
fn call<T>(message: T) -> Request<T> {
    within(message, DEADLINE)
}

fn within<T>(message: T, deadline: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    request
}

fn kubelet(node: &Node) -> Kubelet {
    Kubelet { runtime: node.cri.client(), image: node.cri.image_client() }
}

/// What a pod of a kubelet is made of.
struct Wanted {
    config: cri::PodSandboxConfig,
    container: cri::ContainerConfig,
}

/// A burstable pod as the recorded one, its cgroup made beforehand as a kubelet does.
fn wanted(node: &Node, name: &str, image: &str, script: &str) -> Result<Wanted> {
    let mut config = node.pod(name);
    let uid = config.metadata.as_ref().context("metadata")?.uid.clone();
    config.labels = labels(name, &uid, None);
    let parent = format!("/kubepods/burstable/pod{uid}");
    make_pod_cgroup(&parent)?;
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.seccomp = Some(cri::SecurityProfile::default());
    let options = security.namespace_options.get_or_insert_default();
    options.userns_options =
        Some(cri::UserNamespace { mode: cri::NamespaceMode::Node.into(), ..Default::default() });
    let linux = config.linux.get_or_insert_default();
    linux.cgroup_parent = parent;
    linux.overhead = Some(cri::LinuxContainerResources::default());
    linux.resources = Some(cri::LinuxContainerResources {
        cpu_shares: 102,
        memory_limit_in_bytes: 64 << 20,
        ..Default::default()
    });
    let folder = node.dir().join("kubelet").join(&uid);
    fs::create_dir_all(Path::new(&config.log_directory).join("main"))?;
    fs::create_dir_all(&folder)?;
    for file in ["etc-hosts", "termination-log"] {
        fs::write(folder.join(file), "")?;
    }
    let mut container = node.container("main", &["sh", "-c", script]);
    container.image = Some(cri::ImageSpec {
        image: image.to_owned(),
        user_specified_image: BUSYBOX.to_owned(),
        ..Default::default()
    });
    container.log_path = "main/0.log".to_owned();
    container.labels = labels(name, &uid, Some("main"));
    container.annotations = [("io.kubernetes.container.restartCount".to_owned(), "0".to_owned())].into();
    container.envs =
        vec![cri::KeyValue { key: "KUBERNETES_PORT".into(), value: b"tcp://10.0.0.1:443".to_vec() }];
    let mount = |path: &str, file: &str| cri::Mount {
        container_path: path.to_owned(),
        host_path: folder.join(file).display().to_string(),
        ..Default::default()
    };
    container.mounts =
        vec![mount("/etc/hosts", "etc-hosts"), mount("/dev/termination-log", "termination-log")];
    let linux = container.linux.get_or_insert_default();
    linux.resources = Some(resources());
    let security = linux.security_context.get_or_insert_default();
    security.seccomp = Some(cri::SecurityProfile::default());
    security.masked_paths = MASKED.map(str::to_owned).to_vec();
    security.readonly_paths = READONLY.map(str::to_owned).to_vec();
    security.no_new_privs = true;
    Ok(Wanted { config, container })
}

fn labels(pod: &str, uid: &str, container: Option<&str>) -> std::collections::HashMap<String, String> {
    let pairs = [
        ("pod.name", Some(pod)),
        ("pod.namespace", Some("test")),
        ("pod.uid", Some(uid)),
        ("container.name", container),
    ];
    let set = pairs.into_iter().filter_map(|(key, value)| Some((key, value?)));
    set.map(|(key, value)| (format!("io.kubernetes.{key}"), value.to_owned())).collect()
}

/// With limits of zero for every size of huge pages, as a kubelet always sends them.
fn resources() -> cri::LinuxContainerResources {
    let none = |size: &str| cri::HugepageLimit { page_size: size.to_owned(), limit: 0 };
    cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 102,
        memory_limit_in_bytes: 64 << 20,
        memory_swap_limit_in_bytes: 64 << 20,
        oom_score_adj: 999,
        hugepage_limits: vec![none("2MB"), none("1GB")],
        ..Default::default()
    }
}

/// In every hierarchy that a container's limits need.
fn make_pod_cgroup(path: &str) -> Result<()> {
    let root = Path::new("/sys/fs/cgroup");
    for entry in
        fs::read_dir(root)?.flatten().filter(|entry| !entry.file_type().is_ok_and(|kind| kind.is_symlink()))
    {
        if entry.path().join("cgroup.procs").exists() {
            make_cgroup(&entry.path(), path)?;
        }
    }
    Ok(())
}

/// A new cpuset takes no process until it has what its parent has.
fn make_cgroup(hierarchy: &Path, path: &str) -> Result<()> {
    let mut at = hierarchy.to_owned();
    for part in path.trim_matches('/').split('/') {
        let parent = at.clone();
        at.push(part);
        fs::create_dir_all(&at)?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(value) = fs::read_to_string(parent.join(file)) {
                fs::write(at.join(file), value.trim())?;
            }
        }
    }
    Ok(())
}

fn remove_pod_cgroup(path: &str) -> Result<()> {
    for entry in fs::read_dir("/sys/fs/cgroup")?.flatten() {
        for at in Path::new(path.trim_matches('/')).ancestors().filter(|at| !at.as_os_str().is_empty()) {
            let folder = entry.path().join(at);
            if folder.join("cgroup.procs").exists() && !entry.file_type()?.is_symlink() {
                // A parent of other pods stays.
                drop(fs::remove_dir(folder));
            }
        }
    }
    Ok(())
}

impl Kubelet {
    async fn versions(&mut self) -> Result<()> {
        for version in ["", "0.1.0"] {
            let request = cri::VersionRequest { version: version.to_owned() };
            let answer = self.runtime.version(call(request)).await?.into_inner();
            same("version", &answer.version.as_str(), &"0.1.0")?;
        }
        Ok(())
    }

    /// Runs a pod and its container with the calls of one sync.
    async fn start(&mut self, wanted: &Wanted) -> Result<(String, String)> {
        let request =
            cri::RunPodSandboxRequest { config: Some(wanted.config.clone()), runtime_handler: String::new() };
        let pod =
            self.runtime.run_pod_sandbox(within(request, DEADLINE * 2)).await?.into_inner().pod_sandbox_id;
        let status = self.pod_status(&pod).await?;
        ensure!(!status.network.context("network")?.ip.is_empty(), "a pod without an address");
        let container = Box::pin(self.launch(&pod, wanted)).await?;
        Ok((pod, container))
    }

    async fn launch(&mut self, pod: &str, wanted: &Wanted) -> Result<String> {
        let image = wanted.container.image.clone();
        for annotations in [[("io.kubernetes.pod".to_owned(), "x".to_owned())].into(), Default::default()] {
            let spec = cri::ImageSpec { annotations, ..image.clone().context("image")? };
            let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
            let found = self.image.image_status(call(request)).await?.into_inner().image;
            ensure!(found.is_some_and(|image| image.size > 0), "the image is not there");
        }
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(wanted.container.clone()),
            sandbox_config: Some(wanted.config.clone()),
        };
        let id = self.runtime.create_container(call(request)).await?.into_inner().container_id;
        let request = cri::StartContainerRequest { container_id: id.clone() };
        self.runtime.start_container(call(request)).await?;
        let uid = &wanted.config.metadata.as_ref().context("metadata")?.uid;
        let listed = self.of_pod(uid).await?;
        ensure!(listed.iter().any(|container| container.id == id), "{id} is not listed by its pod's label");
        for _ in 0..2 {
            self.pod_status(pod).await?;
        }
        let status = self.status(&id).await?;
        ensure!(status.created_at > 0 && status.started_at > 0, "{status:?}");
        Ok(id)
    }

    async fn of_pod(&mut self, uid: &str) -> Result<Vec<cri::Container>> {
        let selector =
            std::collections::HashMap::from([("io.kubernetes.pod.uid".to_owned(), uid.to_owned())]);
        let filter = cri::PodSandboxFilter { label_selector: selector.clone(), ..Default::default() };
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let pods = self.runtime.list_pod_sandbox(call(request)).await?.into_inner().items;
        ensure!(!pods.is_empty(), "no pod has the uid {uid}");
        let filter = cri::ContainerFilter { label_selector: selector, ..Default::default() };
        let request = cri::ListContainersRequest { filter: Some(filter) };
        Ok(self.runtime.list_containers(call(request)).await?.into_inner().containers)
    }

    async fn pod_status(&mut self, id: &str) -> Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime.pod_sandbox_status(call(request)).await?.into_inner();
        answer.status.context("no status")
    }

    async fn status(&mut self, id: &str) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        self.runtime.container_status(call(request)).await?.into_inner().status.context("no status")
    }

    /// A probe: its deadline is the usual one and its own limit.
    async fn probe(&mut self, id: &str, command: &[&str]) -> Result<i32, tonic::Status> {
        let cmd = command.iter().map(|part| (*part).to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: id.to_owned(), cmd, timeout: 3 };
        let answer = self.runtime.exec_sync(within(request, DEADLINE + Duration::from_secs(3))).await?;
        Ok(answer.into_inner().exit_code)
    }

    async fn stop(&mut self, id: &str, grace: i64) -> Result<()> {
        let request = cri::StopContainerRequest { container_id: id.to_owned(), timeout: grace };
        let deadline = DEADLINE + Duration::from_secs(u64::try_from(grace)?);
        self.runtime.stop_container(within(request, deadline)).await?;
        Ok(())
    }

    async fn stop_pod(&mut self, id: &str) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.stop_pod_sandbox(call(request)).await?;
        Ok(())
    }

    /// What the garbage collection does with a dead container and its pod.
    async fn collect(&mut self, pod: &str, container: &str) -> Result<()> {
        for _ in 0..2 {
            let state = self.status(container).await?.state();
            same("state", &state, &cri::ContainerState::ContainerExited)?;
        }
        let request = cri::RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime.remove_container(call(request)).await?;
        self.stop_pod(pod).await?;
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime.remove_pod_sandbox(call(request)).await?;
        Ok(())
    }

    /// PreStop hook, graceful stop, pod stop, the lists after it, then garbage collection.
    async fn end(&mut self, wanted: &Wanted, pod: &str, container: &str) -> Result<()> {
        let hook =
            cri::ExecSyncRequest { container_id: container.to_owned(), cmd: vec!["true".into()], timeout: 0 };
        // A hook has no limit and no deadline.
        self.runtime.exec_sync(Request::new(hook)).await?;
        self.stop(container, 29).await?;
        self.stop_pod(pod).await?;
        let uid = &wanted.config.metadata.as_ref().context("metadata")?.uid;
        let exited = self.of_pod(uid).await?;
        ensure!(exited.iter().all(|it| it.state() == cri::ContainerState::ContainerExited), "{exited:?}");
        same("pod state", &self.pod_status(pod).await?.state(), &cri::PodSandboxState::SandboxNotready)?;
        self.collect(pod, container).await
    }
}

const GRACEFUL: &str = "trap 'exit 0' TERM; echo up; while :; do usleep 100000; done";

fn finish(node: &Node, wanted: &[Wanted]) -> Result<()> {
    node.remove_all()?;
    for wanted in wanted {
        let parent = wanted.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone());
        remove_pod_cgroup(&parent.context("cgroup_parent")?)?;
    }
    Ok(())
}

fn a_kubelet_starts_up(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut kubelet = kubelet(node);
    node.cri.together(async {
        kubelet.versions().await?;
        kubelet.image.image_fs_info(call(cri::ImageFsInfoRequest {})).await?;
        for _ in 0..3 {
            let answer =
                kubelet.runtime.runtime_config(call(cri::RuntimeConfigRequest {})).await?.into_inner();
            ensure!(answer.linux.is_some(), "RuntimeConfig without `linux` leaves the driver open");
        }
        let status = kubelet.runtime.status(call(cri::StatusRequest::default())).await?.into_inner();
        let conditions = status.status.context("status")?.conditions;
        ensure!(conditions.len() >= 2 && conditions.iter().all(|it| it.status), "{conditions:?}");
        let burst = (0..AT_ONCE).map(|turn| lists(kubelet.clone(), turn));
        futures_util::future::try_join_all(burst).await?;
        let cidr = cri::RuntimeConfig {
            network_config: Some(cri::NetworkConfig { pod_cidr: "10.77.1.0/24".into() }),
        };
        let request = cri::UpdateRuntimeConfigRequest { runtime_config: Some(cidr) };
        kubelet.runtime.update_runtime_config(call(request)).await?;
        Ok(())
    })
}

/// With an empty filter message and without one, by turns.
async fn lists(mut kubelet: Kubelet, turn: usize) -> Result<()> {
    let filtered = turn.is_multiple_of(2);
    kubelet.image.list_images(call(cri::ListImagesRequest::default())).await?;
    let filter = filtered.then(cri::ContainerFilter::default);
    kubelet.runtime.list_containers(call(cri::ListContainersRequest { filter })).await?;
    let filter = filtered.then(cri::PodSandboxFilter::default);
    kubelet.runtime.list_pod_sandbox(call(cri::ListPodSandboxRequest { filter })).await?;
    kubelet.image.image_fs_info(call(cri::ImageFsInfoRequest {})).await?;
    kubelet.runtime.status(call(cri::StatusRequest::default())).await?;
    let filter = filtered.then(cri::ContainerStatsFilter::default);
    kubelet.runtime.list_container_stats(call(cri::ListContainerStatsRequest { filter })).await?;
    Ok(())
}

fn a_kubelet_runs_seven_pods_at_once(node: &mut Node, _: &mut Registry) -> Result<()> {
    let image = image_id(node)?;
    let wanted: Vec<Wanted> = (0..AT_ONCE)
        .map(|number| wanted(node, &format!("p{number}"), &image, GRACEFUL))
        .collect::<Result<_>>()?;
    let kubelet = kubelet(node);
    node.cri.together(async {
        let lives = wanted.iter().map(|wanted| {
            let mut kubelet = kubelet.clone();
            async move {
                let (pod, container) = Box::pin(kubelet.start(wanted)).await?;
                for _ in 0..5 {
                    same("a probe", &kubelet.probe(&container, &["true"]).await?, &0)?;
                }
                Box::pin(kubelet.end(wanted, &pod, &container)).await
            }
        });
        futures_util::future::try_join_all(lives).await.map(drop)
    })?;
    finish(node, &wanted)
}

fn image_id(node: &Node) -> Result<String> {
    node.cri.pull(BUSYBOX).context("pull")
}

fn a_kubelet_probes_rotates_and_restarts(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut wanted = wanted(node, "web", &image_id(node)?, GRACEFUL)?;
    let mut kubelet = kubelet(node);
    node.cri.together(async {
        let (pod, first) = Box::pin(kubelet.start(&wanted)).await?;
        same("a failing probe", &kubelet.probe(&first, &["false"]).await?, &1)?;
        let slow = kubelet.probe(&first, &["sleep", "1000"]).await;
        same("a slow probe", &slow.map_err(|status| status.code()), &Err(Code::DeadlineExceeded))?;
        rotate(&mut kubelet, &first).await?;
        // The program crashes; a new attempt follows in the same pod, the dead one is collected when a third is there.
        kubelet.probe(&first, &["kill", "-9", "1"]).await.ok();
        kubelet.stop(&first, 2).await?;
        wanted.container.metadata.get_or_insert_default().attempt = 1;
        wanted.container.log_path = "main/1.log".to_owned();
        let second = Box::pin(kubelet.launch(&pod, &wanted)).await?;
        ensure!(first != second, "one id twice");
        let dead = kubelet.status(&first).await?;
        ensure!(dead.finished_at > 0 && dead.state() == cri::ContainerState::ContainerExited, "{dead:?}");
        let request = cri::RemoveContainerRequest { container_id: first.clone() };
        kubelet.runtime.remove_container(call(request)).await?;
        Box::pin(kubelet.end(&wanted, &pod, &second)).await
    })?;
    finish(node, &[wanted])
}

/// The kubelet renames the file, then asks for a new one.
async fn rotate(kubelet: &mut Kubelet, id: &str) -> Result<()> {
    let path = kubelet.status(id).await?.log_path;
    let old = format!("{path}.20260101-000000");
    fs::rename(&path, &old)?;
    let request = cri::ReopenContainerLogRequest { container_id: id.to_owned() };
    kubelet.runtime.reopen_container_log(call(request)).await?;
    ensure!(Path::new(&path).exists(), "no new log");
    let lines = parse_log(&fs::read_to_string(&old)?)?;
    ensure!(lines.iter().any(|line| line.text == "up"), "{lines:?}");
    Ok(())
}

fn a_kubelet_resizes_and_debugs(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut wanted = wanted(node, "resized", &image_id(node)?, GRACEFUL)?;
    let mut kubelet = kubelet(node);
    node.cri.together(async {
        let (pod, id) = Box::pin(kubelet.start(&wanted)).await?;
        resize(&mut kubelet, &pod, &id).await?;
        // An ephemeral container joins the pod.
        wanted.container.metadata.get_or_insert_default().name = "debugger".to_owned();
        wanted.container.log_path = "debugger/0.log".to_owned();
        let debugger = Box::pin(kubelet.launch(&pod, &wanted)).await?;
        kubelet.stop(&debugger, 2).await?;
        Box::pin(kubelet.end(&wanted, &pod, &id)).await
    })?;
    finish(node, &[wanted])
}

/// Memory first, then processor time; the status must then say what was asked for.
async fn resize(kubelet: &mut Kubelet, pod: &str, id: &str) -> Result<()> {
    let memory = cri::LinuxContainerResources {
        memory_limit_in_bytes: 96 << 20,
        memory_swap_limit_in_bytes: 96 << 20,
        ..Default::default()
    };
    let cpu = cri::LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 80_000,
        cpu_shares: 204,
        ..Default::default()
    };
    for linux in [memory, cpu] {
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.to_owned(),
            overhead: Some(cri::LinuxContainerResources::default()),
            resources: Some(linux.clone()),
        };
        kubelet.runtime.update_pod_sandbox_resources(call(request)).await?;
        let request = cri::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(linux),
            ..Default::default()
        };
        kubelet.runtime.update_container_resources(call(request)).await?;
    }
    let told = kubelet.status(id).await?.resources.and_then(|all| all.linux).context("resources")?;
    let told = [told.memory_limit_in_bytes, told.cpu_quota, told.cpu_shares, told.cpu_period];
    same("resources", &told, &[96 << 20, 80_000, 204, 100_000])
}

fn a_kubelet_collects_garbage(node: &mut Node, _: &mut Registry) -> Result<()> {
    let other = "gcr.io/k8s-staging-cri-tools/test-image-1:latest";
    let unused = node.cri.pull(other).context("pull")?;
    let used = image_id(node)?;
    let wanted = wanted(node, "short", &used, "exit 4")?;
    let mut kubelet = kubelet(node);
    let dead = node.cri.together(async {
        let (pod, container) = Box::pin(kubelet.start(&wanted)).await?;
        Ok::<_, anyhow::Error>((pod, container))
    })?;
    let status = node.wait_exit(&dead.1)?;
    same("exit code", &(status.exit_code, status.reason.as_str()), &(4, "Error"))?;
    node.cri.together(async {
        // An exited container is not stopped once more; its pod is.
        kubelet.stop_pod(&dead.0).await?;
        kubelet.collect(&dead.0, &dead.1).await?;
        let images =
            kubelet.image.list_images(call(cri::ListImagesRequest::default())).await?.into_inner().images;
        ensure!(images.iter().any(|image| image.id == unused), "the unused image is not listed");
        kubelet.image.image_fs_info(call(cri::ImageFsInfoRequest {})).await?;
        let spec = cri::ImageSpec { image: unused.clone(), ..Default::default() };
        kubelet.image.remove_image(call(cri::RemoveImageRequest { image: Some(spec) })).await?;
        let images =
            kubelet.image.list_images(call(cri::ListImagesRequest::default())).await?.into_inner().images;
        ensure!(images.iter().all(|image| image.id != unused), "the removed image is listed");
        Ok(())
    })?;
    finish(node, &[wanted])
}

/// Lists fail while the daemon is away; afterwards everything has the ids that it had.
fn a_kubelet_meets_a_new_daemon(node: &mut Node, _: &mut Registry) -> Result<()> {
    let image = image_id(node)?;
    let wanted: Vec<Wanted> = (0..3)
        .map(|number| wanted(node, &format!("kept{number}"), &image, GRACEFUL))
        .collect::<Result<_>>()?;
    let mut kubelet = kubelet(node);
    let mut kept = Vec::new();
    for wanted in &wanted {
        kept.push(node.cri.together(Box::pin(kubelet.start(wanted)))?);
    }
    node.signal_daemon(Signal::KILL)?;
    // A call on the connection that breaks just now fails otherwise.
    eventually(SOON, || {
        let list = kubelet.runtime.list_pod_sandbox(call(cri::ListPodSandboxRequest::default()));
        match node.cri.together(list) {
            Err(status) if status.code() == Code::Unavailable => Ok(()),
            other => bail!("a list of nobody: {other:?}"),
        }
    })?;
    node.start_daemon()?;
    eventually(SOON, || node.cri.together(kubelet.versions()))?;
    for (wanted, (pod, container)) in wanted.iter().zip(&kept) {
        node.cri.together(async {
            same("pod", &kubelet.pod_status(pod).await?.state(), &cri::PodSandboxState::SandboxReady)?;
            same(
                "container",
                &kubelet.status(container).await?.state(),
                &cri::ContainerState::ContainerRunning,
            )?;
            same("a probe", &kubelet.probe(container, &["true"]).await?, &0)?;
            Box::pin(kubelet.end(wanted, pod, container)).await
        })?;
    }
    finish(node, &wanted)
}
