//! The command line against a real daemon, as root, in mount and network namespaces of its own.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const CRISP: &str = env!("CARGO_BIN_EXE_crisp");
/// Set where `inside` may run, so that `--include-ignored` does not run it on the machine itself.
const INSIDE: &str = "CRISP_TEST_INSIDE";
/// A whole step: a build machine may be slow.
const STEP_MAX: Duration = Duration::from_secs(60);

/// Runs `inside` in new namespaces, by the program of util-linux: a test process has threads and cannot enter them itself.
#[test]
fn pods_run_from_the_command_line() {
    if !rustix::process::geteuid().is_root() || !Path::new("/bin/busybox").exists() {
        let mut stderr = std::io::stderr();
        writeln!(stderr, "pods_run_from_the_command_line: not run, it needs root and /bin/busybox").unwrap();
        return;
    }
    let inside = Command::new("unshare")
        .args(["--mount", "--net", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "inside", "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(inside.success());
}

/// A daemon with folders, bridge and cgroup of its own.
struct Node {
    dir: tempfile::TempDir,
    daemon: Child,
    cgroup: String,
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cgroup = format!("crisp-test-{}", std::process::id());
        let config = dir.path().join("config.toml");
        let text = format!(
            "cgroup_parent = \"/{cgroup}\"\n[network]\nbridge = \"crispt0\"\nsubnet = \"10.77.0.0/24\"\n"
        );
        fs::write(&config, text).unwrap();
        fs::create_dir(dir.path().join("state")).unwrap();
        let mut daemon = Command::new(CRISP)
            .arg("serve")
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(dir.path().join("root"))
            .arg("--state")
            .arg(dir.path().join("state"))
            .stdout(Stdio::piped())
            .stderr(fs::File::create(dir.path().join("daemon.log")).unwrap())
            .spawn()
            .unwrap();
        let (ready, is_ready) = mpsc::sync_channel(1);
        let stdout = daemon.stdout.take().unwrap();
        std::thread::spawn(move || {
            let mut line = String::new();
            BufReader::new(stdout).read_line(&mut line).unwrap();
            ready.send(line).unwrap();
        });
        let node = Self { dir, daemon, cgroup };
        let line = is_ready.recv_timeout(STEP_MAX).unwrap_or_default();
        assert!(line.contains("crisp.sock"), "ready line {line:?}; log: {}", node.log());
        node
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("daemon.log")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(CRISP);
        command.args(words).env("CRISP_ADDRESS", self.path("state/crisp.sock")).stdin(Stdio::null());
        command
    }

    fn crisp(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    /// Runs a manifest with `words` before it.
    fn run(&self, words: &[&str], manifest: &str) -> Output {
        let path = self.path("pod.yaml");
        fs::write(&path, manifest).unwrap();
        self.crisp(&[&["run"], words, &[path.to_str().unwrap()]].concat())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _stopped = self.crisp(&["stop", "--all", "-t", "0"]);
        if let Some(pid) = rustix::process::Pid::from_raw(self.daemon.id().try_into().unwrap()) {
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _status = self.daemon.wait();
        for hierarchy in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            remove_cgroups(&hierarchy.path().join(&self.cgroup));
        }
        remove_cgroups(&Path::new("/sys/fs/cgroup").join(&self.cgroup));
    }
}

fn remove_cgroups(dir: &Path) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroups(&entry.path());
    }
    let _busy_or_gone = fs::remove_dir(dir);
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn show(output: &Output) -> String {
    format!("{}\nstdout: {}\nstderr: {}", output.status, text(&output.stdout), text(&output.stderr))
}

/// A pod with one container that runs `script`; `spec` is more lines of the pod, each with two spaces in front. No script is waited
/// for when it is asked to end and does not: the grace is far above what any step may take.
fn pod(name: &str, spec: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n{spec}  terminationGracePeriodSeconds: 600\n  containers:\n  - \
         name: c\n    image: docker.io/library/busybox:local\n    imagePullPolicy: Never\n    command: [sh, -c, '{script}']\n"
    )
}

#[test]
#[ignore = "runs inside the namespaces that another test makes"]
fn inside() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let node = Node::start();
    import(&node);
    example(&node);
    exit_codes(&node);
    detached(&node);
    interrupted(&node);
    refused(&node);
    let left: Vec<_> = fs::read_dir(node.path("root/local")).unwrap().flatten().collect();
    assert!(left.is_empty(), "volumes or logs are left: {left:?}");
    let pods = node.crisp(&["ps", "-a", "-o", "json"]);
    assert_eq!(text(&pods.stdout).trim(), "[]", "{}", show(&pods));
}

fn import(node: &Node) {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples");
    let archive = node.path("busybox.tar");
    let made =
        Command::new(examples.join("busybox-image.sh")).arg(&archive).env("BUSYBOX", "/bin/busybox").output();
    assert!(made.as_ref().unwrap().status.success(), "{}", show(&made.unwrap()));
    let imported = node.crisp(&["image", "import", archive.to_str().unwrap()]);
    assert!(imported.status.success(), "{}", show(&imported));
    let listed = node.crisp(&["image", "ls"]);
    assert!(text(&listed.stdout).contains("docker.io/library/busybox  local"), "{}", show(&listed));
}

fn example(node: &Node) {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("examples/pod.yaml");
    let ran = node.crisp(&["run", manifest.to_str().unwrap()]);
    assert!(ran.status.success(), "{}\n{}", show(&ran), node.log());
    assert!(text(&ran.stdout).contains("client | Hello from pod hello at 10.77.0."), "{}", show(&ran));
    for step in [
        "pod     default/hello",
        "exit    page  code 0",
        "start   server",
        "exit    client  code 0",
        "remove  default/hello",
    ] {
        assert!(text(&ran.stderr).contains(step), "{step}: {}", show(&ran));
    }
}

fn exit_codes(node: &Node) {
    let failed = node.run(&["-q"], &pod("fails", "", "echo out; echo err >&2; exit 3"));
    assert_eq!(failed.status.code(), Some(3), "{}", show(&failed));
    assert_eq!((text(&failed.stdout).as_str(), text(&failed.stderr).as_str()), ("out\n", "err\n"));
    let again = "  restartPolicy: OnFailure\n  volumes: [{name: v, emptyDir: {medium: Memory}}]\n";
    let script = "echo try; [ -e /v/x ] && exit 0; touch /v/x; exit 1";
    let manifest = pod("again", again, script) + "    volumeMounts: [{name: v, mountPath: /v}]\n";
    let restarted = node.run(&[], &manifest);
    assert_eq!(restarted.status.code(), Some(0), "{}", show(&restarted));
    assert_eq!(text(&restarted.stdout), "try\ntry\n");
    assert!(text(&restarted.stderr).contains("start   c, again (1)"), "{}", show(&restarted));
}

fn detached(node: &Node) {
    let manifest = pod("stays", "", "echo hello; exec sleep 1000");
    let started = node.run(&["--detach"], &manifest);
    assert!(started.status.success() && text(&started.stdout).trim().len() == 64, "{}", show(&started));
    let twice = node.run(&[], &manifest);
    assert_eq!(twice.status.code(), Some(125), "{}", show(&twice));
    assert!(text(&twice.stderr).contains("runs already"), "{}", show(&twice));
    let listed = node.crisp(&["ps"]);
    assert!(text(&listed.stdout).contains("stays  c          running"), "{}", show(&listed));
    let ran = node.crisp(&["exec", "stays", "--", "sh", "-c", "echo out; echo err >&2; exit 7"]);
    assert_eq!((text(&ran.stdout).as_str(), text(&ran.stderr).as_str()), ("out\n", "err\n"));
    assert_eq!(ran.status.code(), Some(7));
    let late = node.crisp(&["exec", "stays", "--timeout", "1", "--", "sleep", "100"]);
    assert_eq!(late.status.code(), Some(124), "{}", show(&late));
    // The container says it when it comes to run.
    let asked = Instant::now();
    let logs = loop {
        let logs = node.crisp(&["logs", "stays"]);
        if !logs.stdout.is_empty() || asked.elapsed() > STEP_MAX {
            break logs;
        }
    };
    assert_eq!(text(&logs.stdout), "hello\n", "{}", show(&logs));
    let stopped = node.crisp(&["stop", "-t", "0", "default/stays"]);
    assert!(stopped.status.success(), "{}", show(&stopped));
}

fn interrupted(node: &Node) {
    let script = "trap \"echo bye; exit 0\" TERM; echo up; while :; do sleep 0.1; done";
    fs::write(node.path("loop.yaml"), pod("loop", "", script)).unwrap();
    let manifest = node.path("loop.yaml");
    let mut command = node.command(&["run", manifest.to_str().unwrap()]);
    let mut run = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "up");
    let pid = rustix::process::Pid::from_raw(run.id().try_into().unwrap()).unwrap();
    let asked = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "bye", "what is said at the end is shown");
    assert_eq!(run.wait().unwrap().code(), Some(130));
    assert!(asked.elapsed() < STEP_MAX);
}

fn refused(node: &Node) {
    let table = [
        (pod("r", "  runtimeClassName: nosuch\n", "true"), "no runtime handler \"nosuch\""),
        (pod("r", "", "true").replace("sh, -c, 'true'", "/nonexistent"), "/nonexistent"),
        (
            pod("r", "", "true").replace("busybox:local", "absent:x"),
            "is not here, and imagePullPolicy is Never",
        ),
        (pod("r", "  nodeNaem: x\n", "true"), "nodeNaem"),
    ];
    for (manifest, says) in table {
        let refused = node.run(&[], &manifest);
        assert_eq!(refused.status.code(), Some(125), "{}", show(&refused));
        assert!(text(&refused.stderr).contains(says), "{says}: {}", show(&refused));
    }
}
