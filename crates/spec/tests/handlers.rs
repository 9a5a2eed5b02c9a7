//! OCI runtime binaries take what [`crisp_spec::build`] makes: real containers on this kernel, as root, each in a cgroup and a
//! directory of its own. Without root, a static busybox or the binaries the tests say so and are not run.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends at the first thing that is not as it should be"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use crisp_domain::ContainerId;
use crisp_seccomp::{Target, default_profile};
use crisp_spec::capability::{CapabilityRequest, granted};
use crisp_spec::users::ResolvedUser;
use crisp_spec::*;

const BUSYBOX: &str = "/bin/busybox";
const HANDLERS: [&str; 2] = ["runc", "crun"];

/// A bundle, and the cgroups that the handler makes below a directory of this test.
struct Bundle {
    dir: tempfile::TempDir,
    id: ContainerId,
    cgroup: String,
}

impl Bundle {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        // Another process copies: one that a test beside is just starting would have a copy of a descriptor of ours, and what is
        // open for writing cannot be run.
        let copied = Command::new("cp").args([BUSYBOX.as_ref(), bin.join("busybox").as_path()]).status();
        assert!(copied.unwrap().success());
        symlink("busybox", bin.join("sh")).unwrap();
        for file in ["hostname", "hosts", "resolv.conf"] {
            fs::write(dir.path().join(file), format!("{file} of the pod\n")).unwrap();
        }
        for own in ["shm", "volume"] {
            fs::create_dir(dir.path().join(own)).unwrap();
        }
        let id = ContainerId::random().unwrap();
        let cgroup = format!("/crisp-test-{}", &id.as_str()[..12]);
        Self { dir, id, cgroup }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn input(&self, script: &str) -> ContainerInput {
        let file = |name: &str| Some(self.path(name));
        ContainerInput {
            id: self.id.clone(),
            config: ContainerConfig {
                command: vec!["/bin/sh".into(), "-c".into(), script.into()],
                envs: vec![("GREETING".into(), b"hello".to_vec())],
                resources: Resources {
                    memory_limit_bytes: Some(64 << 20),
                    cpu_shares: Some(512),
                    hugepage_limits: [("2MB".into(), 0), ("1GB".into(), 0)].into(),
                    oom_score_adj: Some(900),
                    ..Resources::default()
                },
                security: SecurityRequest {
                    masked_paths: DEFAULT_MASKED_PATHS.map(String::from).to_vec(),
                    readonly_paths: DEFAULT_READONLY_PATHS.map(String::from).to_vec(),
                    seccomp: SeccompRequest::RuntimeDefault,
                    ..SecurityRequest::default()
                },
                ..ContainerConfig::default()
            },
            image: ImageConfig::default(),
            sandbox: SandboxFacts {
                hostname: "pod-1".into(),
                namespaces: Namespaces {
                    network: Namespace::New,
                    pid: Namespace::New,
                    ipc: Namespace::New,
                    uts: Namespace::New,
                },
                user: None,
                shm: Shm::Bind(self.path("shm")),
                files: SandboxFiles {
                    hostname: file("hostname"),
                    hosts: file("hosts"),
                    resolv_conf: file("resolv.conf"),
                    sys: None,
                },
            },
            host: host::probe().unwrap(),
            user: ResolvedUser {
                uid: 1000,
                gid: 1001,
                additional_gids: vec![1001, 29],
                home: "/home/app".into(),
            },
            rootfs: self.path("rootfs"),
            cgroups_path: format!("{}/{}", self.cgroup, self.id).into(),
            mounts: vec![BindMount {
                source: self.path("volume"),
                destination: "/data".into(),
                access: MountAccess::ReadOnly,
                propagation: Propagation::Private,
                options: vec![MountOption::NoExec],
                ids: None,
            }],
            devices: Vec::new(),
            seccomp: None,
            rlimits: Vec::new(),
            labels: Default::default(),
            allowed_annotations: Default::default(),
        }
    }

    /// Runs the container to its end and gives its standard output.
    fn run(&self, handler: &str, input: ContainerInput) -> String {
        self.run_beside(handler, input, "")
    }

    /// The same beside a shell script, in a mount namespace where this bundle's volume is a shared mount.
    fn run_beside(&self, handler: &str, mut input: ContainerInput, script: &str) -> String {
        if input.config.security.seccomp == SeccompRequest::RuntimeDefault {
            let target = Target::native(granted(&input.config.security, &input.host).names());
            input.seccomp = Some(default_profile().to_linux_seccomp(&target));
        }
        let spec = build(&input).unwrap();
        fs::write(self.path("config.json"), serde_json::to_vec(&spec).unwrap()).unwrap();
        let output = self.handler(handler, script);
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{handler}: {stdout}{stderr}");
        stdout.into_owned()
    }

    fn handler(&self, handler: &str, beside: &str) -> Output {
        // crun takes no hybrid hierarchy with a controller on its v2 side: it gets a view without that side.
        let hybrid = handler == "crun" && Path::new("/sys/fs/cgroup/unified").exists();
        let umount = if hybrid { "umount /sys/fs/cgroup/unified" } else { "true" };
        let script = format!(
            "set -e; cd {dir}; {umount}; mount -t tmpfs tmpfs volume; mount --make-shared volume; \
             {handler} --root state run --bundle . {id} </dev/null & container=$!; {beside}; wait $container",
            dir = self.dir.path().display(),
            id = self.id,
            beside = if beside.is_empty() { "true" } else { beside },
        );
        let namespace = ["--mount", "--propagation", "private", "sh", "-c", &script];
        Command::new("unshare").args(namespace).stdin(Stdio::null()).output().unwrap()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Below every hierarchy there is at most the directory of this test, empty by now.
        let hierarchies = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().filter_map(Result::ok);
        let roots = hierarchies.map(|entry| entry.path()).chain([PathBuf::from("/sys/fs/cgroup")]);
        let deadline = Instant::now() + Duration::from_secs(60);
        for own in roots.map(|root| root.join(&self.cgroup[1..])) {
            // Processes of the container that is over may be at their very end.
            while own.exists() {
                drop(fs::remove_dir(own.join(self.id.as_str())));
                drop(fs::remove_dir(&own));
                if std::thread::panicking() {
                    break;
                }
                assert!(Instant::now() < deadline, "{} is left", own.display());
                std::thread::yield_now();
            }
        }
    }
}

fn handlers() -> Vec<&'static str> {
    if !rustix::process::geteuid().is_root() {
        report("needs root");
        return Vec::new();
    }
    if !Path::new(BUSYBOX).exists() {
        report("needs a static busybox");
        return Vec::new();
    }
    let runs = |handler: &&str| Command::new(handler).arg("--version").stdout(Stdio::null()).status().is_ok();
    let found: Vec<_> = HANDLERS.into_iter().filter(runs).collect();
    if found.len() < HANDLERS.len() {
        report("needs runc and crun");
    }
    found
}

#[expect(clippy::print_stderr, reason = "who runs the tests has to see what was not run")]
fn report(why: &str) {
    eprintln!("not run in full: {why}");
}

fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).trim()
}

#[test]
fn an_ordinary_container_runs_as_requested() {
    let script = "busybox=/bin/busybox; $busybox cat /proc/self/status; \
        echo greeting=$GREETING home=$HOME path=$PATH; echo cwd=$($busybox pwd); \
        echo hosts=$($busybox cat /etc/hosts); echo hostname=$($busybox hostname); \
        echo score=$($busybox cat /proc/self/oom_score_adj); \
        $busybox touch /data/x 2>/dev/null && echo volume=writable; \
        echo interrupts=$($busybox wc -c < /proc/interrupts); \
        $busybox unshare -U true 2>/dev/null && echo unshare=allowed; exit 0";
    for handler in handlers() {
        let bundle = Bundle::new();
        let out = bundle.run(handler, bundle.input(script));
        assert_eq!(field(&out, "Uid:"), "1000\t1000\t1000\t1000", "{handler}");
        assert_eq!(field(&out, "Gid:"), "1001\t1001\t1001\t1001", "{handler}");
        assert_eq!(field(&out, "Groups:"), "29 1001", "{handler}");
        assert_eq!(field(&out, "CapInh:"), "0000000000000000", "{handler}");
        assert_eq!(field(&out, "CapEff:"), "0000000000000000", "{handler}");
        assert_eq!(field(&out, "CapBnd:"), "00000000a80425fb", "{handler}");
        assert_eq!(field(&out, "Seccomp:"), "2", "{handler}");
        assert_eq!(field(&out, "NoNewPrivs:"), "0", "{handler}");
        assert_eq!(
            field(&out, "greeting="),
            format!("hello home=/home/app path={DEFAULT_PATH}"),
            "{handler}"
        );
        assert_eq!((field(&out, "cwd="), field(&out, "hosts=")), ("/", "hosts of the pod"), "{handler}");
        assert_eq!((field(&out, "hostname="), field(&out, "score=")), ("pod-1", "900"), "{handler}");
        assert_eq!(field(&out, "interrupts="), "0", "{handler}");
        assert!(!out.contains("volume=writable") && !out.contains("unshare=allowed"), "{handler}: {out}");
    }
}

#[test]
fn a_privileged_container_has_what_the_host_has() {
    let script = "/bin/busybox cat /proc/self/status; /bin/busybox mount; /bin/busybox touch /dev/shm/x && echo shm=writable";
    for handler in handlers() {
        let bundle = Bundle::new();
        let mut input = bundle.input(script);
        input.config.security.privilege = Privilege::Privileged;
        input.config.security.seccomp = SeccompRequest::RuntimeDefault;
        input.user = ResolvedUser::root();
        let mut devices = devices::host_devices().unwrap();
        devices.truncate(32);
        input.devices = devices;
        let held = fs::read_to_string("/proc/self/status").unwrap();
        let out = bundle.run(handler, input);
        assert_eq!(field(&out, "CapBnd:"), field(&held, "CapPrm:"), "{handler}");
        assert_eq!(field(&out, "CapInh:"), "0000000000000000", "{handler}");
        assert_eq!(field(&out, "Seccomp:"), field(&held, "Seccomp:"), "{handler}");
        let sys = out.lines().find(|line| line.contains(" on /sys type sysfs")).unwrap();
        assert!(sys.contains("(rw"), "{handler}: {sys}");
        assert!(out.contains("shm=writable"), "{handler}: {out}");
        assert!(bundle.path("shm/x").exists(), "{handler}");
    }
}

#[test]
fn no_new_privileges_and_dropped_capabilities_hold() {
    for handler in handlers() {
        let bundle = Bundle::new();
        let mut input = bundle.input("/bin/busybox cat /proc/self/status");
        input.config.security.new_privileges = NewPrivileges::Forbidden;
        input.config.security.root = RootAccess::ReadOnly;
        input.config.security.capabilities =
            CapabilityRequest::parse(&["NET_BIND_SERVICE".into()], &["ALL".into()], &[]).unwrap();
        input.user = ResolvedUser::root();
        let out = bundle.run(handler, input);
        assert_eq!(field(&out, "NoNewPrivs:"), "1", "{handler}");
        assert_eq!(field(&out, "CapEff:"), "0000000000000400", "{handler}");
        assert_eq!(field(&out, "CapBnd:"), "0000000000000400", "{handler}");
    }
}

#[test]
fn a_user_has_the_ambient_capabilities_that_were_asked_for() {
    for handler in handlers() {
        let bundle = Bundle::new();
        let mut input = bundle.input("/bin/busybox cat /proc/self/status");
        input.config.security.capabilities =
            CapabilityRequest::parse(&[], &["ALL".into()], &["NET_BIND_SERVICE".into()]).unwrap();
        let out = bundle.run(handler, input);
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(field(&out, set), "0000000000000400", "{handler} {set}");
        }
    }
}

#[test]
fn mounts_propagate_as_requested() {
    // Each side waits for the other's mount, and for a minute at most.
    const WAIT: &str = "until [ -e $file ]; do sleep 0.02; n=$((n+1)); [ $n -lt 3000 ] || exit 9; done";
    for handler in handlers() {
        for (propagation, seen) in [(Propagation::HostToContainer, false), (Propagation::Bidirectional, true)]
        {
            let bundle = Bundle::new();
            let script = format!(
                "export PATH=/bin; sleep() {{ busybox sleep $1; }}; busybox touch /data/ready; file=/data/host/x; {WAIT}; \
                 busybox mkdir /data/own; busybox mount -t tmpfs tmpfs /data/own; \
                 busybox touch /data/own/x /data/done; file=/data/end; {WAIT}"
            );
            let beside = format!(
                "file=volume/ready; {WAIT}; mkdir volume/host; mount -t tmpfs tmpfs volume/host; touch volume/host/x; \
                 file=volume/done; {WAIT}; [ -e volume/own/x ] && echo seen=yes; touch volume/end"
            );
            let mut input = bundle.input(&script);
            input.config.security.privilege = Privilege::Privileged;
            input.user = ResolvedUser::root();
            input.mounts[0].access = MountAccess::ReadWrite;
            input.mounts[0].propagation = propagation;
            input.mounts[0].options = Vec::new();
            let out = bundle.run_beside(handler, input, &beside);
            assert_eq!(out.contains("seen=yes"), seen, "{handler} {propagation:?}: {out}");
        }
    }
}
