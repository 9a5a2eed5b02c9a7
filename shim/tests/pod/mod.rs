//! A shim under test: its pod directory, its cgroups, a root filesystem of busybox, and a daemon's end of the protocol.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test program uses its own part")]
#![allow(missing_debug_implementations, reason = "nobody prints these")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test's helpers")]
#![allow(clippy::cast_possible_wrap, clippy::disallowed_methods, reason = "a test's helpers")]

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crisp_proto::supervisor as pb;
use crisp_sys::clone::{Child, Spawn, sealed_program};
use crisp_sys::fdpass::{self, Wait};
use pb::message::Kind;
use pb::reply::Result as Answer;
use pb::request::Call;
use prost::Message as _;
use serde_json::{Value, json};

/// Nothing here takes longer, also on a slow and busy machine. Less than the shim gives a creation or a start, so that the end of these
/// by its limit does not pass for another one.
pub const LIMIT: Duration = Duration::from_secs(90);

const V1_CONTROLLERS: [&str; 5] = ["memory", "freezer", "pids", "cpu", "devices"];

/// Runs a test's body in a mount namespace of its own. Without root it is not run, and says so.
pub fn as_root(body: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        use std::io::Write as _;
        let _nobody_reads = writeln!(std::io::stderr(), "not run: needs root");
        return;
    }
    let thread = std::thread::spawn(|| {
        use rustix::mount::{MountPropagationFlags as P, mount_change};
        crisp_sys::clone::enter_new_mount_namespace().unwrap();
        mount_change("/", P::PRIVATE | P::REC).unwrap();
        body();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Waits for a condition, level-triggered and bounded.
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        let _slept = rustix::thread::nanosleep(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 2_000_000 });
    }
}

/// Waits for the end of a process; that nobody has taken its status yet does not matter.
pub fn ended(what: &str, pidfd: &OwnedFd) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(pidfd, PollFlags::IN)], Some(&limit)).unwrap();
    assert_eq!(ready, 1, "not within {LIMIT:?}: {what}");
}

/// What confines a process, as `/proc/<pid>/status` names it.
pub const CONFINEMENT: [&str; 10] = [
    "CapInh:",
    "CapPrm:",
    "CapEff:",
    "CapBnd:",
    "CapAmb:",
    "NoNewPrivs:",
    "Seccomp:",
    "Uid:",
    "Gid:",
    "Groups:",
];

/// The lines of a `/proc/<pid>/status` that begin with these names, each of which must be there.
pub fn status_fields(text: &str, names: &[&str]) -> Vec<String> {
    let field = |name: &&str| {
        let line =
            text.lines().find(|line| line.starts_with(*name)).unwrap_or_else(|| panic!("{name} in {text}"));
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    names.iter().map(field).collect()
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Cgroups of one container; removed when dropped.
pub struct Cgroups {
    dirs: Vec<PathBuf>,
    v2: bool,
}

impl Cgroups {
    pub fn new() -> Self {
        let name = format!("crisp-shim-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
        let root = Path::new("/sys/fs/cgroup");
        let dirs: Vec<_> = if v2 {
            vec![root.join(&name)]
        } else {
            V1_CONTROLLERS.iter().map(|controller| root.join(controller).join(&name)).collect()
        };
        for dir in &dirs {
            std::fs::create_dir(dir).unwrap();
        }
        Self { dirs, v2 }
    }

    pub fn dir(&self, controller: &str) -> &Path {
        let found =
            self.dirs.iter().find(|dir| dir.starts_with(Path::new("/sys/fs/cgroup").join(controller)));
        found.unwrap_or(&self.dirs[0])
    }

    pub fn limit_memory(&self, bytes: u64) {
        let dir = self.dir("memory");
        let file = if self.v2 { "memory.max" } else { "memory.limit_in_bytes" };
        std::fs::write(dir.join(file), bytes.to_string()).unwrap();
        let swap = if self.v2 { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", bytes) };
        let _no_swap_accounting = std::fs::write(dir.join(swap.0), swap.1.to_string());
    }

    pub fn entry(&self) -> pb::Cgroup {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        if self.v2 {
            let dir = self.dirs[0].clone();
            return pb::Cgroup {
                v1_tasks: vec![],
                oom_file: text(dir.join("memory.events")),
                v2_dir: text(dir),
            };
        }
        pb::Cgroup {
            v1_tasks: self.dirs.iter().map(|dir| text(dir.join("tasks"))).collect(),
            v2_dir: String::new(),
            oom_file: text(self.dir("memory").join("memory.oom_control")),
        }
    }

    pub fn processes(&self) -> Vec<i32> {
        fn below(dir: &Path, all: &mut Vec<i32>) {
            let text = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            all.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
            for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    below(&entry.path(), all);
                }
            }
        }
        let mut all = Vec::new();
        for dir in &self.dirs {
            below(dir, &mut all);
        }
        all.sort_unstable();
        all.dedup();
        all
    }

    fn clear(&self) {
        for pid in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        self.clear();
        let end = Instant::now() + LIMIT;
        // An OCI runtime makes its cgroups in every hierarchy; the unified one is hidden from it.
        let name = self.dirs[0].file_name().unwrap();
        let hierarchies = std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
        let everywhere: Vec<_> = hierarchies
            .map(|entry| entry.path())
            .filter(|path| !path.ends_with("unified"))
            .map(|path| path.join(name))
            .filter(|dir| dir.exists())
            .collect();
        for dir in self.dirs.iter().chain(&everywhere) {
            loop {
                for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
                    if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                        let _busy = std::fs::remove_dir(entry.path());
                    }
                }
                if std::fs::remove_dir(dir).is_ok() || !dir.exists() || Instant::now() > end {
                    break;
                }
                self.clear();
                let _slept =
                    rustix::thread::nanosleep(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 2_000_000 });
            }
        }
    }
}

/// One for all shims, as in a daemon.
pub fn shim_program() -> BorrowedFd<'static> {
    static PROGRAM: std::sync::OnceLock<OwnedFd> = std::sync::OnceLock::new();
    PROGRAM.get_or_init(read_program).as_fd()
}

fn read_program() -> OwnedFd {
    let path = std::env::var_os("CRISP_SHIM")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_crisp-shim")), PathBuf::from);
    sealed_program("crisp-shim", &std::fs::read(path).unwrap()).unwrap()
}

/// One pod: a shim and its directory.
pub struct Pod {
    dir: tempfile::TempDir,
    pub shim: Child,
    pub daemon: Daemon,
    pub cgroups: Cgroups,
}

impl Pod {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("crisp-").tempdir_in("/tmp").unwrap();
        let cgroups = Cgroups::new();
        let shim = start_shim(dir.path());
        let daemon = Daemon::connect(&dir.path().join("shim.sock"));
        Self { dir, shim, daemon, cgroups }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn shim_log(&self) -> String {
        std::fs::read_to_string(self.path().join("shim.log")).unwrap_or_default()
    }

    /// A container with this command, not made yet.
    pub fn container(&self, args: &[&str]) -> Setup {
        Setup::new(self.path(), args, self.cgroups.entry())
    }

    /// Makes and starts it.
    /// Starts the pod's PID 1; gives its pid here.
    pub fn start_init(&mut self) -> i32 {
        let cgroup = Some(self.cgroups.entry());
        let order = pb::StartPodInit { namespace_paths: vec![], cgroup, ..Default::default() };
        match self.daemon.call(Call::StartPodInit(order)).unwrap() {
            Answer::Started(started) => started.pid,
            other => panic!("{other:?}"),
        }
    }

    pub fn run(&mut self, setup: &Setup) -> pb::Started {
        let started = self.daemon.create(setup).unwrap();
        self.daemon.start(&setup.id).unwrap();
        started
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let log = self.shim_log();
        let _gone = crisp_sys::pidfd::kill(&self.shim.pidfd);
        let _reaped = crisp_sys::pidfd::wait(&self.shim.pidfd);
        self.cgroups.clear();
        if std::thread::panicking() && !log.is_empty() {
            use std::io::Write as _;
            let _nobody_reads = writeln!(std::io::stderr(), "shim.log: {log}");
        }
    }
}

pub fn start_shim(dir: &Path) -> Child {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .unwrap();
    rustix::net::bind(&socket, &SocketAddrUnix::new(dir.join("shim.sock")).unwrap()).unwrap();
    rustix::net::listen(&socket, 16).unwrap();
    let program = shim_program();
    let null = File::options().read(true).write(true).open("/dev/null").unwrap();
    let dir = dir.to_str().unwrap();
    let args = ["crisp-shim", "serve", "--pod-dir", dir].map(|arg| std::ffi::CString::new(arg).unwrap());
    let fds = [null.as_fd(), null.as_fd(), null.as_fd(), socket.as_fd()];
    Spawn { program, args: &args, env: &[], fds: &fds, tasks: &[], cgroup: None }.start().unwrap()
}

/// A container to be made.
pub struct Setup {
    pub id: String,
    pub dir: PathBuf,
    pub spec: Value,
    pub order: pb::CreateContainer,
}

impl Setup {
    fn new(pod: &Path, args: &[&str], cgroup: pb::Cgroup) -> Self {
        let id = format!("c{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = pod.join(&id);
        make_rootfs(&dir.join("rootfs"));
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let order = pb::CreateContainer {
            container_id: id.clone(),
            bundle: text(dir.clone()),
            state_dir: text(dir.clone()),
            cgroup: Some(cgroup),
            stdio: Some(pb::Stdio { log_path: text(dir.join("logs/0.log")), ..pb::Stdio::default() }),
            handler: Some(pb::Handler { kind: Some(pb::handler::Kind::Builtin(pb::Builtin {})) }),
        };
        Self { id, dir, spec: spec(args), order }
    }

    pub fn process(&mut self) -> &mut Value {
        &mut self.spec["process"]
    }

    /// The `process` of an exec in this container.
    pub fn exec_process(&self, args: &[&str]) -> Value {
        let mut process = self.spec["process"].clone();
        process["args"] = json!(args);
        process
    }

    pub fn stdio(&mut self) -> &mut pb::Stdio {
        self.order.stdio.as_mut().unwrap()
    }

    pub fn log_path(&self) -> PathBuf {
        self.dir.join("logs/0.log")
    }

    /// The log's entries without their times. What is being written may be seen in part: then it is read again.
    pub fn log(&self) -> Vec<String> {
        let text = eventually("a log of whole entries", || {
            let text = std::fs::read_to_string(self.log_path()).unwrap_or_default();
            (text.is_empty() || text.ends_with('\n')).then_some(text)
        });
        text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
    }

    /// The content of all entries, a line each.
    pub fn output(&self) -> String {
        self.log().iter().map(|entry| format!("{}\n", entry.splitn(3, ' ').nth(2).unwrap())).collect()
    }

    pub fn exit_record(&self) -> Option<Value> {
        let text = std::fs::read_to_string(self.dir.join("exit.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// A filter that answers mkdir with EPERM and allows the rest.
    pub fn with_seccomp(&mut self) {
        let load = (0x20u16, 0u8, 0u8, 0u32);
        let program = [load, (0x15, 0, 1, 83), (0x06, 0, 0, 0x0005_0001), (0x06, 0, 0, 0x7fff_0000)];
        let mut bytes = Vec::new();
        for (code, jt, jf, k) in program {
            bytes.extend(code.to_ne_bytes());
            bytes.extend([jt, jf]);
            bytes.extend(k.to_ne_bytes());
        }
        std::fs::write(self.dir.join("seccomp.bpf"), bytes).unwrap();
        self.spec["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}],
        });
    }

    pub fn write(&self) {
        std::fs::write(self.dir.join("config.json"), self.spec.to_string()).unwrap();
    }
}

fn make_rootfs(root: &Path) {
    for dir in ["bin", "dev", "proc", "sys", "tmp", "etc", "root"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    busybox(&["cp".as_ref(), "/bin/busybox".as_ref(), root.join("bin").as_os_str()]);
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .unwrap();
    let list = std::process::Command::new("/bin/busybox").arg("--list").output().unwrap();
    for applet in String::from_utf8(list.stdout).unwrap().lines().filter(|name| *name != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// Writes a program that everybody may execute.
pub fn write_program(path: &Path, text: &str) {
    let script = r#"printf %s "$2" >"$1" && chmod 755 "$1""#;
    let args = ["sh", "-c", script, "sh"].map(std::ffi::OsStr::new);
    busybox(&[&args[..], &[path.as_os_str(), text.as_ref()]].concat());
}

/// Programs are written by a child. Were one open for writing in this process, others that tests begin at the same time would hold it
/// for a moment, too; and what somebody may write to is not executed (ETXTBSY).
fn busybox(args: &[&std::ffi::OsStr]) {
    let ended = std::process::Command::new("/bin/busybox").args(args).status().unwrap();
    assert!(ended.success(), "{args:?}: {ended}");
}

pub const DEFAULT_CAPS: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

fn spec(args: &[&str]) -> Value {
    let mount = |destination: &str, typ: &str, options: &[&str]| json!({"destination": destination, "type": typ, "source": typ, "options": options});
    json!({
        "ociVersion": "1.0.2",
        "hostname": "test",
        "root": {"path": "rootfs"},
        "process": {
            "args": args,
            "cwd": "/",
            "env": ["PATH=/bin", "NAME=value"],
            "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": DEFAULT_CAPS, "effective": DEFAULT_CAPS, "permitted": DEFAULT_CAPS},
        },
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
            ],
            "maskedPaths": ["/proc/kcore", "/proc/keys"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}

/// A daemon's end of a connection.
pub struct Daemon {
    socket: OwnedFd,
    next: u64,
    pub events: Vec<Kind>,
}

/// Why the shim let an attacher go.
#[derive(Debug, PartialEq)]
pub enum End {
    Exited(pb::Exit),
    StreamsEnded,
    TooSlow,
}

/// A client's ends; dropping one closes it.
#[derive(Debug)]
pub struct Attached {
    pub id: String,
    pub stdin: Option<File>,
    pub stdout: Option<File>,
    pub stderr: Option<File>,
}

impl Attached {
    /// Reads this many bytes of its stdout, as text.
    pub fn read(&mut self, len: usize) -> String {
        let mut text = vec![0; len];
        self.stdout.as_mut().unwrap().read_exact(&mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    /// Reads stdout to its end.
    pub fn rest(&mut self) -> String {
        let mut text = String::new();
        self.stdout.as_mut().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    pub fn write(&mut self, text: &str) {
        use std::io::Write as _;
        self.stdin.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }
}

#[derive(Debug)]
pub struct ExecResult {
    pub code: u32,
    pub signal: u32,
    pub timed_out: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Daemon {
    pub fn connect(path: &Path) -> Self {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let mut daemon = Self { socket, next: 0, events: Vec::new() };
        daemon.hello();
        daemon
    }

    pub fn send(&mut self, call: Call, fds: &[BorrowedFd<'_>]) -> u64 {
        self.next += 1;
        let request = pb::Request { id: self.next, call: Some(call) };
        fdpass::send(&self.socket, &request.encode_to_vec(), fds, Wait::Block).unwrap();
        self.next
    }

    /// The next message, within the limit; `None` when the connection has ended.
    pub fn receive(&mut self) -> Option<(Kind, Vec<OwnedFd>)> {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let limit = Timespec { tv_sec: LIMIT.as_secs() as i64, tv_nsec: 0 };
        let ready = poll(&mut [PollFd::new(&self.socket, PollFlags::IN)], Some(&limit)).unwrap();
        assert_eq!(ready, 1, "no message within {LIMIT:?}");
        let packet = fdpass::receive(&self.socket, 1 << 20, Wait::Block).ok()??;
        Some((pb::Message::decode(packet.data.as_slice()).unwrap().kind.unwrap(), packet.fds))
    }

    pub fn answer(&mut self, id: u64) -> (Result<Answer, pb::Failure>, Vec<OwnedFd>) {
        loop {
            match self.receive().expect("the connection lives") {
                (Kind::Reply(reply), fds) => {
                    assert_eq!(reply.id, id);
                    return match reply.result.unwrap() {
                        Answer::Failure(failure) => (Err(failure), fds),
                        answer => (Ok(answer), fds),
                    };
                }
                (event, _) => self.events.push(event),
            }
        }
    }

    pub fn call(&mut self, call: Call) -> Result<Answer, pb::Failure> {
        let id = self.send(call, &[]);
        self.answer(id).0
    }

    pub fn hello(&mut self) -> pb::State {
        match self.call(Call::Hello(pb::Hello { protocol: 1 })) {
            Ok(Answer::State(state)) => state,
            other => panic!("{other:?}"),
        }
    }

    pub fn create(&mut self, setup: &Setup) -> Result<pb::Started, pb::Failure> {
        setup.write();
        match self.call(Call::Create(setup.order.clone()))? {
            Answer::Started(started) => Ok(started),
            other => panic!("{other:?}"),
        }
    }

    pub fn start(&mut self, id: &str) -> Result<(), pb::Failure> {
        self.call(Call::Start(pb::StartContainer { container_id: id.into() })).map(|_| ())
    }

    pub fn signal(&mut self, id: &str, signal: i32) {
        let order = pb::Signal { container_id: id.into(), signal, exec_id: String::new(), after_ms: 0 };
        self.call(Call::Signal(order)).unwrap();
    }

    /// Kills an exec after this time.
    pub fn kill_exec(&mut self, id: &str, exec_id: &str, after_ms: u64) {
        let order = pb::Signal { container_id: id.into(), signal: 9, exec_id: exec_id.into(), after_ms };
        self.call(Call::Signal(order)).unwrap();
    }

    /// Makes it without waiting; the number of the request.
    pub fn begin_create(&mut self, setup: &Setup) -> u64 {
        setup.write();
        self.send(Call::Create(setup.order.clone()), &[])
    }

    /// The answers to several requests, in the order asked for, however they come.
    pub fn answers<const N: usize>(&mut self, ids: [u64; N]) -> [Result<Answer, pb::Failure>; N] {
        let mut answers = [const { None }; N];
        while answers.iter().any(Option::is_none) {
            match self.receive().expect("the connection lives") {
                (Kind::Reply(reply), _) => {
                    let at = ids.iter().position(|&id| id == reply.id).expect("one of these");
                    answers[at] = Some(match reply.result.unwrap() {
                        Answer::Failure(failure) => Err(failure),
                        answer => Ok(answer),
                    });
                }
                (event, _) => self.events.push(event),
            }
        }
        answers.map(Option::unwrap)
    }

    pub fn delete(&mut self, id: &str) -> Result<(), pb::Failure> {
        self.call(Call::Delete(pb::DeleteContainer { container_id: id.into() })).map(|_| ())
    }

    pub fn reopen(&mut self, id: &str) -> Result<(), pb::Failure> {
        self.call(Call::ReopenLog(pb::ReopenLog { container_id: id.into() })).map(|_| ())
    }

    /// Waits for the first event that this picks.
    pub fn event<T>(&mut self, mut pick: impl FnMut(&Kind) -> Option<T>) -> T {
        if let Some(at) = self.events.iter().position(|event| pick(event).is_some()) {
            return pick(&self.events.remove(at)).unwrap();
        }
        loop {
            let (event, _) = self.receive().expect("the connection lives");
            match pick(&event) {
                Some(picked) => return picked,
                None => self.events.push(event),
            }
        }
    }

    pub fn exit(&mut self, id: &str) -> pb::Exit {
        self.event(|event| match event {
            Kind::ContainerExited(exited) if exited.container_id == id => exited.exit,
            _ => None,
        })
    }

    pub fn resize(&mut self, id: &str, width: u32, height: u32) -> Result<(), pb::Failure> {
        let order = pb::ResizeTerminal { container_id: id.into(), width, height };
        self.call(Call::ResizeTerminal(order)).map(|_| ())
    }

    /// Attaches; `wanted`: of stdin, stdout, stderr.
    pub fn attach(&mut self, id: &str, wanted: [bool; 3]) -> Result<Attached, pb::Failure> {
        let [stdin, stdout, stderr] = wanted;
        let attach_id = format!("a{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let (input, out, err) = (stdin.then(pipe), stdout.then(pipe), stderr.then(pipe));
        for (_, writer) in [&out, &err].into_iter().flatten() {
            rustix::pipe::fcntl_setpipe_size(writer, 1 << 20).unwrap();
        }
        let mut fds: Vec<_> = input.iter().map(|(reader, _)| reader.as_fd()).collect();
        fds.extend([&out, &err].into_iter().flatten().map(|(_, writer)| writer.as_fd()));
        let order =
            pb::Attach { container_id: id.into(), attach_id: attach_id.clone(), stdin, stdout, stderr };
        let id = self.send(Call::Attach(order), &fds);
        self.answer(id).0?;
        Ok(Attached {
            id: attach_id,
            stdin: input.map(|(_, writer)| writer.into()),
            stdout: out.map(|(reader, _)| reader.into()),
            stderr: err.map(|(reader, _)| reader.into()),
        })
    }

    /// How an attachment ended.
    pub fn attach_end(&mut self, id: &str) -> End {
        self.event(|event| match event {
            Kind::AttachEnded(ended) if ended.attach_id == id => Some(match ended.exit {
                Some(exit) => End::Exited(exit),
                None if ended.streams_ended => End::StreamsEnded,
                None => End::TooSlow,
            }),
            _ => None,
        })
    }

    /// Begins an exec whose process comes in a memory file and whose output goes nowhere; its id.
    pub fn exec_from_file(&mut self, setup: &Setup, process: &Value) -> (String, Result<(), pb::Failure>) {
        use std::io::{Seek as _, Write as _};
        let exec_id = format!("e{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let flags = rustix::fs::MemfdFlags::CLOEXEC;
        let mut file = File::from(rustix::fs::memfd_create("process", flags).unwrap());
        file.write_all(process.to_string().as_bytes()).unwrap();
        file.rewind().unwrap();
        let null = File::options().read(true).write(true).open("/dev/null").unwrap();
        let order = pb::Exec {
            container_id: setup.id.clone(),
            exec_id: exec_id.clone(),
            process_json: Vec::new(),
            terminal: false,
            cgroup: setup.order.cgroup.clone(),
            timeout_ms: 0,
        };
        let fds = [null.as_fd(), null.as_fd(), null.as_fd(), file.as_fd()];
        let id = self.send(Call::Exec(order), &fds);
        (exec_id, self.answer(id).0.map(|_| ()))
    }

    /// Execs with a terminal; the master, and the id of the exec.
    pub fn exec_terminal(&mut self, setup: &Setup, process: &Value) -> Result<(File, String), pb::Failure> {
        let exec_id = format!("e{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let order = pb::Exec {
            container_id: setup.id.clone(),
            exec_id: exec_id.clone(),
            process_json: process.to_string().into_bytes(),
            terminal: true,
            cgroup: setup.order.cgroup.clone(),
            timeout_ms: 0,
        };
        let id = self.send(Call::Exec(order), &[]);
        let (answer, fds) = self.answer(id);
        answer?;
        Ok((fds.into_iter().next().expect("a master").into(), exec_id))
    }

    pub fn exec_exit(&mut self, exec_id: &str) -> (pb::Exit, bool) {
        self.event(|event| match event {
            Kind::ExecExited(exited) if exited.exec_id == exec_id => {
                Some((exited.exit.unwrap(), exited.timed_out))
            }
            _ => None,
        })
    }

    pub fn exec(
        &mut self,
        setup: &Setup,
        process: &Value,
        timeout_ms: u64,
    ) -> Result<ExecResult, pb::Failure> {
        let exec_id = format!("e{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let null = File::open("/dev/null").unwrap();
        let pipe = || rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let ((out, out_writer), (err, err_writer)) = (pipe(), pipe());
        let order = pb::Exec {
            container_id: setup.id.clone(),
            exec_id: exec_id.clone(),
            process_json: process.to_string().into_bytes(),
            terminal: false,
            cgroup: setup.order.cgroup.clone(),
            timeout_ms,
        };
        let id = self.send(Call::Exec(order), &[null.as_fd(), out_writer.as_fd(), err_writer.as_fd()]);
        drop((out_writer, err_writer));
        self.answer(id).0?;
        let (exit, timed_out) = self.event(|event| match event {
            Kind::ExecExited(exited) if exited.exec_id == exec_id => {
                Some((exited.exit.unwrap(), exited.timed_out))
            }
            _ => None,
        });
        Ok(ExecResult {
            code: exit.code,
            signal: exit.signal,
            timed_out,
            stdout: available(out),
            stderr: available(err),
        })
    }
}

/// What is in a pipe now.
pub fn available(fd: OwnedFd) -> String {
    rustix::io::ioctl_fionbio(&fd, true).unwrap();
    let mut all = Vec::new();
    let _would_block = File::from(fd).read_to_end(&mut all);
    String::from_utf8_lossy(&all).into_owned()
}
