//! A real kubelet, alone with static pods, on a daemon of ours. `KUBELET` names its binary.
//!
//! ```text
//! kubelet ──CRI──▶ crisp          files in <dir>/manifests are its pods
//!    ▲ https, port 10250: pods, logs, stats, run, exec, port-forward
//!    └── this test
//! ```
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::eventually::{Seconds, eventually};
use crate::node::{BUSYBOX, Node, Options, same};
use crate::registry::Registry;
use crate::say;
use crate::suite::REGISTRY_PORT;
use crate::web::{Client, Message};

/// Port of its API inside the namespaces.
const PORT: u16 = 10250;
/// Subnet and socket of the node under test.
const NODE: u8 = 1;
const NGINX: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
/// A kubelet looks at most every ten seconds or so at what it has to do.
const PATIENCE: Seconds = Seconds(90);
/// Gates that change which calls a kubelet makes.
const GATES: [&str; 3] = ["EventedPLEG", "PodAndContainerStatsFromCRI", "CRIListStreaming"];
/// Bytes of a log at which the kubelet rotates it.
const LOG_BYTES: u64 = 65_536;

/// Runs the kubelet's pods with all gates off, then with those of [`GATES`] on.
///
/// # Errors
/// What does not go as a kubelet needs it.
pub fn run() -> Result<bool> {
    let Some(binary) = std::env::var_os("KUBELET").map(PathBuf::from) else {
        say!("kubelet: not run: KUBELET does not name a binary");
        return Ok(true);
    };
    let mut registry = Registry::start(Path::new("/run/registry"), REGISTRY_PORT)?;
    let mut well = true;
    for (number, gates) in [&[][..], &GATES].into_iter().enumerate() {
        // A folder for each: logs that one run left would count as restarts in the next.
        let disk = crate::paths::cache().join(format!("kubelet{number}"));
        if disk.exists() {
            fs::remove_dir_all(&disk)?;
        }
        let options = Options { disk: Some(disk.join("root")), ..Options::default() };
        let mut node = Node::start("kubelet", NODE, &registry, &options)?;
        let mut kubelet = Kubelet::new(&binary, &node, &disk, gates)?;
        let done = scenario(&mut node, &mut kubelet);
        kubelet.end()?;
        kubelet.clean_up()?;
        let done = done.and_then(|()| node.finish().context("after the kubelet"));
        if let Err(error) = done {
            say!("kubelet with {gates:?}: FAILED: {error:?}");
            node.keep_log();
            kubelet.keep_log();
            well = false;
        } else {
            say!("kubelet with {gates:?}: ok");
        }
    }
    registry.stop()?;
    Ok(well)
}

fn scenario(node: &mut Node, kubelet: &mut Kubelet) -> Result<()> {
    kubelet.start(node)?;
    for (name, pod) in pods() {
        kubelet.put(name, &pod)?;
    }
    let check = |name: &str, done: Result<()>| {
        done.with_context(|| name.to_owned())?;
        say!("  ok {name}");
        Ok::<_, anyhow::Error>(())
    };
    check("a web server passes its probes", kubelet.ready("web"))?;
    check("init, sidecar and main containers start in order", ordered(kubelet))?;
    check("a crash loop is counted", crashed(kubelet))?;
    check("a pod on the host's network sees the node's links", host_network(kubelet))?;
    check("run, exec and port-forward through its API", sessions())?;
    check("a log is rotated and goes on", rotated(kubelet))?;
    check("statistics", statistics(kubelet))?;
    check("a new kubelet finds its pods", new_kubelet(node, kubelet))?;
    check("a new daemon keeps them", new_daemon(node, kubelet))?;
    check("a pod whose file goes, goes", gone(node, kubelet))
}

/// A kubelet and its folders.
struct Kubelet {
    binary: PathBuf,
    dir: PathBuf,
    process: Option<Child>,
}

impl Kubelet {
    fn new(binary: &Path, node: &Node, disk: &Path, gates: &[&str]) -> Result<Self> {
        let dir = disk.join("kubelet");
        for folder in ["root", "manifests", "certs", "logs"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        let gates: serde_json::Map<_, _> =
            gates.iter().map(|gate| ((*gate).to_owned(), json!(true))).collect();
        let config = json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": format!("unix://{}", node.socket().display()),
            "staticPodPath": dir.join("manifests"), "podLogsDir": dir.join("logs"),
            "address": "127.0.0.1", "port": PORT, "readOnlyPort": 0, "healthzPort": 0,
            "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupRoot": "/", "failCgroupV1": false, "failSwapOn": false, "enforceNodeAllocatable": [],
            "makeIPTablesUtilChains": false, "enableControllerAttachDetach": false, "seccompDefault": true,
            "fileCheckFrequency": "2s", "localStorageCapacityIsolation": false,
            "containerLogMaxSize": format!("{LOG_BYTES}"), "containerLogMaxFiles": 3, "containerLogMonitorInterval": "3s",
            "imageMinimumGCAge": "1h", "volumePluginDir": dir.join("plugins"), "resolvConf": "/etc/resolv.conf",
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%",
                             "imagefs.available": "0%", "imagefs.inodesFree": "0%"},
            "featureGates": gates,
        });
        fs::write(dir.join("config.json"), serde_json::to_vec_pretty(&config)?)?;
        Ok(Self { binary: binary.to_owned(), dir, process: None })
    }

    /// Starts it and waits until its API answers.
    fn start(&mut self, node: &mut Node) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("kubelet.log"))?;
        let child = Command::new(&self.binary)
            .arg("--config")
            .arg(self.dir.join("config.json"))
            .arg("--root-dir")
            .arg(self.dir.join("root"))
            .arg("--cert-dir")
            .arg(self.dir.join("certs"))
            .args(["--hostname-override", "node", "--node-ip", "127.0.0.1", "-v", "2"])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", self.binary.display()))?;
        node.allow_process(child.id());
        self.process = Some(child);
        eventually(PATIENCE, || {
            if let Some(ended) = self.process.as_mut().and_then(|child| child.try_wait().transpose()) {
                anyhow::bail!("the kubelet ended: {}\n{}", ended?, self.log_tail());
            }
            self.get("/healthz").map(drop)
        })
    }

    fn end(&mut self) -> Result<()> {
        let Some(mut child) = self.process.take() else { return Ok(()) };
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::TERM,
        )?;
        eventually(Seconds(20), || child.try_wait()?.context("the kubelet still runs")).map(drop)
    }

    /// Removes what is the kubelet's own, and stays when it ends: the mount of its folder, the cgroups of its pods.
    fn clean_up(&self) -> Result<()> {
        crate::command::run(Command::new("umount").arg("-R").arg(self.dir.join("root")))?;
        let mut find = Command::new("find");
        find.args([
            "/sys/fs/cgroup",
            "-depth",
            "-path",
            "*/kubepods*",
            "-type",
            "d",
            "-exec",
            "rmdir",
            "{}",
            ";",
        ]);
        crate::command::run(&mut find).map(drop)
    }

    fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.dir.join("kubelet.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    fn keep_log(&self) {
        let reports = crate::paths::reports();
        drop(fs::create_dir_all(&reports));
        drop(fs::copy(self.dir.join("kubelet.log"), reports.join("failed-kubelet.log")));
    }

    fn put(&self, name: &str, spec: &Value) -> Result<()> {
        let pod = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": "default", "labels": {"app": name}}, "spec": spec});
        // A kubelet reads whatever is in the folder, half-written files too.
        let making = self.dir.join(format!("{name}.new"));
        fs::write(&making, serde_json::to_vec(&pod)?)?;
        Ok(fs::rename(making, self.manifest(name))?)
    }

    fn manifest(&self, name: &str) -> PathBuf {
        self.dir.join("manifests").join(format!("{name}.json"))
    }

    fn get(&self, path: &str) -> Result<Vec<u8>> {
        Client::tls(PORT)?.request("GET", path)
    }

    fn get_json(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_slice(&self.get(path)?)?)
    }

    /// What the kubelet thinks of a pod.
    fn pod(&self, name: &str) -> Result<Value> {
        let pods = self.get_json("/pods")?;
        let items = pods["items"].as_array().context("items")?;
        let full = format!("{name}-node");
        let found = items.iter().find(|pod| pod["metadata"]["name"] == full.as_str());
        found.cloned().with_context(|| format!("no pod {full}"))
    }

    /// The status of one of its containers.
    fn container(&self, pod: &str, name: &str) -> Result<Value> {
        let pod = self.pod(pod)?;
        let lists = ["containerStatuses", "initContainerStatuses"]
            .map(|list| pod["status"][list].as_array().cloned());
        let mut all = lists.into_iter().flatten().flatten();
        all.find(|status| status["name"] == name)
            .with_context(|| format!("no container {name} in {}", pod["status"]))
    }

    fn ready(&self, name: &str) -> Result<()> {
        eventually(PATIENCE, || {
            let status = self.pod(name)?["status"].clone();
            let conditions = status["conditions"].as_array().context("conditions")?;
            let ready = conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True");
            ensure!(ready, "{status}");
            Ok(())
        })
    }
}

fn shell(name: &str, script: &str) -> Value {
    json!({"name": name, "image": BUSYBOX, "command": ["sh", "-c", script]})
}

fn pods() -> Vec<(&'static str, Value)> {
    let probe = |seconds: u32| json!({"periodSeconds": seconds, "timeoutSeconds": 5, "failureThreshold": 6});
    let with = |mut base: Value, key: &str, value: Value| {
        base[key] = value;
        base
    };
    let web = json!({"name": "web", "image": NGINX,
        "readinessProbe": with(probe(1), "httpGet", json!({"path": "/", "port": 80})),
        "livenessProbe": with(probe(2), "exec", json!({"command": ["true"]})),
        "lifecycle": {"postStart": {"exec": {"command": ["true"]}}, "preStop": {"exec": {"command": ["true"]}}},
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}});
    let trap = "trap 'exit 0' TERM; while :; do sleep 1; done";
    let order = json!({"restartPolicy": "Always",
        "volumes": [{"name": "work", "emptyDir": {}}],
        "initContainers": [
            with(shell("first", "echo first >>/work/order"), "volumeMounts", json!([{"name": "work", "mountPath": "/work"}])),
            with(with(shell("side", &format!("echo side >>/work/order; {trap}")), "restartPolicy", json!("Always")),
                "volumeMounts", json!([{"name": "work", "mountPath": "/work"}]))],
        "containers": [with(shell("main", &format!("echo main >>/work/order; {trap}")), "volumeMounts",
            json!([{"name": "work", "mountPath": "/work"}]))],
        "terminationGracePeriodSeconds": 5});
    let noisy = "trap 'exit 0' TERM; i=0; while :; do echo line $i; i=$((i+1)); [ $((i % 100)) = 0 ] && usleep 100000; done";
    vec![
        ("web", json!({"containers": [web], "terminationGracePeriodSeconds": 5})),
        ("order", order),
        ("crash", json!({"containers": [shell("crash", "echo crashing; exit 3")]})),
        (
            "host",
            json!({"hostNetwork": true, "containers": [shell("host", trap)], "terminationGracePeriodSeconds": 5}),
        ),
        ("noisy", json!({"containers": [shell("noisy", noisy)], "terminationGracePeriodSeconds": 5})),
    ]
}

fn ordered(kubelet: &Kubelet) -> Result<()> {
    kubelet.ready("order")?;
    let order = run_command("order", "main", "cat%20/work/order")?;
    same("the order", &order.as_str(), &"first\nside\nmain\n")?;
    let first = kubelet.container("order", "first")?;
    same("the init container", &first["state"]["terminated"]["exitCode"], &json!(0))
}

fn crashed(kubelet: &Kubelet) -> Result<()> {
    eventually(PATIENCE, || {
        let status = kubelet.container("crash", "crash")?;
        ensure!(status["restartCount"].as_u64() >= Some(2), "{status}");
        let last = &status["lastState"]["terminated"];
        same(
            "its last exit",
            &(last["exitCode"].clone(), last["reason"].clone()),
            &(json!(3), json!("Error")),
        )
    })
}

fn host_network(kubelet: &Kubelet) -> Result<()> {
    kubelet.ready("host")?;
    // A kubelet that is alone tells no address of such a pod.
    let links = run_command("host", "host", "ls%20/sys/class/net")?;
    ensure!(links.lines().any(|link| link == format!("ct{NODE}")), "it sees {links}");
    Ok(())
}

/// What a command printed, through ExecSync.
fn run_command(pod: &str, container: &str, command: &str) -> Result<String> {
    let path = format!("/run/default/{pod}-node/{container}?cmd={command}");
    Ok(String::from_utf8(Client::tls(PORT)?.request("POST", &path)?)?)
}

fn sessions() -> Result<()> {
    same("run", &run_command("web", "web", "hostname")?.trim(), &"web-node")?;
    let query = "command=sh&command=-c&command=read+x%3B+echo+got+%24x%3B+exit+7&input=1&output=1&error=1";
    let path = format!("/exec/default/web-node/web?{query}");
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let mut session = Client::tls(PORT)?.websocket(&path, protocol).context(protocol)?;
        session.send(0, b"hello\n")?;
        let (mut out, mut status) = (Vec::new(), Vec::new());
        while let Message::Binary(bytes) = session.receive()? {
            match bytes.split_first() {
                Some((1, data)) => out.extend_from_slice(data),
                Some((3, data)) => status.extend_from_slice(data),
                _ => {}
            }
        }
        same("output", &String::from_utf8_lossy(&out).as_ref(), &"got hello\n")?;
        let status: Value = serde_json::from_slice(&status).context("the status")?;
        same("exit code", &status["details"]["causes"][0]["message"], &json!("7"))?;
    }
    port_forward()
}

/// By the fixed channels: 0 carries the data of the first port, 1 its errors; both begin with the port's number.
fn port_forward() -> Result<()> {
    let path = "/portForward/default/web-node?port=80";
    let mut session = Client::tls(PORT)?.websocket(path, "v4.channel.k8s.io")?;
    session.send(0, b"GET / HTTP/1.0\r\n\r\n")?;
    let mut data = Vec::new();
    while let Message::Binary(bytes) = session.receive()? {
        match bytes.split_first() {
            Some((0, more)) => data.extend_from_slice(more),
            Some((1, error)) if error.len() != 2 => anyhow::bail!("{}", String::from_utf8_lossy(error)),
            _ => {}
        }
        if String::from_utf8_lossy(&data).contains("Welcome to nginx!</body>") {
            return Ok(());
        }
    }
    anyhow::bail!("{}", String::from_utf8_lossy(&data))
}

fn rotated(kubelet: &Kubelet) -> Result<()> {
    let uid = kubelet.pod("noisy")?["metadata"]["uid"].as_str().context("uid")?.to_owned();
    let folder = kubelet.dir.join("logs").join(format!("default_noisy-node_{uid}/noisy"));
    eventually(PATIENCE, || {
        let names: Vec<String> = fs::read_dir(&folder)?
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect();
        ensure!(names.len() >= 2, "{names:?}");
        Ok(())
    })?;
    let before = fs::metadata(folder.join("0.log"))?.len();
    eventually(PATIENCE, || {
        let now = fs::metadata(folder.join("0.log"))?.len();
        ensure!(now != before, "the log stands still at {now} bytes");
        Ok(())
    })?;
    let log = kubelet.get("/containerLogs/default/noisy-node/noisy?tailLines=5")?;
    let log = String::from_utf8_lossy(&log);
    ensure!(log.lines().count() == 5 && log.starts_with("line "), "{log}");
    Ok(())
}

/// `/stats/summary` is not asked: it needs file systems that cAdvisor finds, and finds none in a namespace like ours.
fn statistics(kubelet: &Kubelet) -> Result<()> {
    eventually(PATIENCE, || {
        let metrics = String::from_utf8_lossy(&kubelet.get("/metrics/resource")?).into_owned();
        for name in [
            "container_memory_working_set_bytes",
            "container_cpu_usage_seconds_total",
            "pod_memory_working_set_bytes",
        ] {
            let line = metrics.lines().find(|line| line.starts_with(name) && line.contains("web-node"));
            line.with_context(|| format!("no {name} of the web server in {metrics}"))?;
        }
        Ok(())
    })
}

/// Ids of the containers that go on whatever restarts.
fn lasting(kubelet: &Kubelet) -> Result<Vec<Value>> {
    let containers =
        [("web", "web"), ("order", "main"), ("order", "side"), ("host", "host"), ("noisy", "noisy")];
    containers.iter().map(|(pod, name)| Ok(kubelet.container(pod, name)?["containerID"].clone())).collect()
}

fn new_kubelet(node: &mut Node, kubelet: &mut Kubelet) -> Result<()> {
    let before = lasting(kubelet)?;
    kubelet.end()?;
    kubelet.start(node)?;
    eventually(PATIENCE, || same("container ids", &lasting(kubelet)?, &before))?;
    kubelet.ready("web")
}

fn new_daemon(node: &mut Node, kubelet: &Kubelet) -> Result<()> {
    let before = lasting(kubelet)?;
    node.signal_daemon(rustix::process::Signal::KILL)?;
    node.start_daemon()?;
    // A command that runs says that the kubelet has met the new daemon.
    eventually(PATIENCE, || same("run", &run_command("web", "web", "hostname")?.trim(), &"web-node"))?;
    eventually(PATIENCE, || same("container ids", &lasting(kubelet)?, &before))?;
    kubelet.ready("web")
}

fn gone(node: &Node, kubelet: &Kubelet) -> Result<()> {
    for (name, _) in pods() {
        fs::remove_file(kubelet.manifest(name))?;
    }
    eventually(PATIENCE, || {
        let left: Vec<String> = node.cri.pods()?.iter().map(|pod| format!("{:?}", pod.metadata)).collect();
        let running = node.cri.pods()?.iter().filter(|pod| pod.state == 0).count();
        ensure!(running == 0, "{left:?}");
        Ok(())
    })
}
