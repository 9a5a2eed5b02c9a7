//! Each case's specification is compared with `testdata/<case>.json`; `UPDATE_GOLDEN=1` rewrites the files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::capability::{CapabilityRequest, CapabilitySet};
use crate::host::tests::host;
use crate::input::*;
use crate::users::ResolvedUser;

/// What a kubelet sends for a simple pod, on a cgroup v1 machine.
pub(crate) fn input() -> ContainerInput {
    let run = PathBuf::from("/run/crisp/pods/s");
    ContainerInput {
        id: "c0ffee00".repeat(8).parse().unwrap(),
        config: ContainerConfig {
            args: vec!["--verbose".into()],
            envs: vec![("A".into(), b"from pod".to_vec()), ("HOSTNAME".into(), b"own".to_vec())],
            resources: kubelet_resources(),
            security: SecurityRequest {
                masked_paths: vec!["/proc/kcore".into(), "/sys/firmware".into()],
                readonly_paths: vec!["/proc/sys".into()],
                new_privileges: NewPrivileges::Forbidden,
                ..SecurityRequest::default()
            },
            ..ContainerConfig::default()
        },
        image: ImageConfig {
            env: vec![
                "PATH=/bin".into(),
                "A=from image".into(),
                "nonsense".into(),
                "=x".into(),
                "B=\0".into(),
            ],
            entrypoint: vec!["/bin/app".into()],
            cmd: vec!["--help".into()],
            working_dir: "/srv".into(),
            ..ImageConfig::default()
        },
        sandbox: SandboxFacts {
            hostname: "pod-1".into(),
            namespaces: Namespaces {
                network: Namespace::Join(run.join("ns/net")),
                pid: Namespace::New,
                ipc: Namespace::Join(run.join("ns/ipc")),
                uts: Namespace::Join(run.join("ns/uts")),
            },
            user: None,
            shm: Shm::Bind(run.join("shm")),
            files: SandboxFiles {
                hostname: Some(run.join("hostname")),
                hosts: Some(run.join("hosts")),
                resolv_conf: Some(run.join("resolv.conf")),
                sys: None,
            },
        },
        host: host(),
        user: ResolvedUser {
            uid: 1000,
            gid: 1000,
            additional_gids: vec![1000, 29],
            home: "/home/app".into(),
        },
        rootfs: "rootfs".into(),
        cgroups_path: format!("/kubepods/podx/{}", "c0ffee00".repeat(8)).into(),
        mounts: vec![BindMount {
            source: "/var/lib/kubelet/pods/x/etc-hosts".into(),
            destination: "/etc/hosts".into(),
            access: MountAccess::ReadWrite,
            propagation: Propagation::Private,
            options: Vec::new(),
            ids: None,
        }],
        devices: Vec::new(),
        seccomp: None,
        rlimits: Vec::new(),
        labels: Default::default(),
        allowed_annotations: BTreeSet::new(),
    }
}

fn kubelet_resources() -> Resources {
    Resources {
        cpu_shares: Some(102),
        cpu_quota_us: Some(20_000),
        cpu_period_us: Some(100_000),
        memory_limit_bytes: Some(64 << 20),
        memory_swap_limit_bytes: Some(64 << 20),
        hugepage_limits: BTreeMap::from([("2MB".into(), 0), ("1GB".into(), 0)]),
        oom_score_adj: Some(999),
        ..Resources::default()
    }
}

fn privileged() -> ContainerInput {
    let mut input = input();
    input.host.cgroup = CgroupVersion::V2;
    input.config.security.privilege = Privilege::Privileged;
    input.config.security.new_privileges = NewPrivileges::Allowed;
    input.config.resources = Resources::default();
    input.user = ResolvedUser::root();
    input.seccomp = Some(oci_spec::runtime::LinuxSeccomp::default());
    input.devices = vec![DeviceNode {
        host: "/dev/kvm".into(),
        path: "/dev/kvm".into(),
        kind: DeviceKind::Char,
        major: 10,
        minor: 232,
        mode: 0o660,
        uid: 0,
        gid: 104,
        access: DeviceAccess::all(),
    }];
    input
}

fn host_namespaces() -> ContainerInput {
    let mut input = input();
    input.sandbox.namespaces = Namespaces {
        network: Namespace::Host,
        pid: Namespace::Host,
        ipc: Namespace::Host,
        uts: Namespace::Host,
    };
    input.sandbox.shm = Shm::Bind("/dev/shm".into());
    input.config.security.root = RootAccess::ReadOnly;
    input.config.security.capabilities =
        CapabilityRequest::parse(&["NET_ADMIN".into()], &["ALL".into()], &[]).unwrap();
    input
}

fn unified() -> ContainerInput {
    let mut input = input();
    input.host.cgroup = CgroupVersion::V2;
    input.config.resources.unified = BTreeMap::from([("memory.high".into(), "1048576".into())]);
    input.config.resources.pids_limit = Some(100);
    input.config.resources.cpuset_cpus = "0-1".into();
    input.config.terminal = Terminal::Allocated;
    input.config.command = vec!["/bin/sh".into(), "-c".into()];
    input.config.working_dir = "/work//dir/".into();
    input.config.security.capabilities =
        CapabilityRequest::parse(&[], &["ALL".into()], &["NET_BIND_SERVICE".into()]).unwrap();
    input.config.annotations = [("keep", "1"), ("drop", "2"), ("org.systemd.property.TimeoutStopUSec", "3")]
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .into();
    input.allowed_annotations = ["keep", "org.systemd.property.TimeoutStopUSec"].map(String::from).into();
    input.rlimits =
        vec![Rlimit { kind: oci_spec::runtime::PosixRlimitType::RlimitNofile, soft: 1024, hard: 4096 }];
    input
}

fn user_namespace() -> ContainerInput {
    let mut input = host_namespaces();
    let ids = crisp_sys::userns::IdMap::shifted(65_536, 3);
    input.sandbox.user = Some(UserNamespace { path: "/run/crisp/pods/p/ns/user".into(), ids });
    input.sandbox.namespaces.pid = Namespace::New;
    input.sandbox.files.sys = Some("/sys".into());
    input.mounts[0].ids = Some(crisp_sys::userns::IdMap::shifted(65_536, 3));
    input.devices = privileged().devices;
    input
}

/// JSON with sorted sets: those of capabilities have no order.
fn canonical(spec: &Spec) -> Value {
    let mut value = serde_json::to_value(spec).unwrap();
    for set in value["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
        set.as_array_mut().unwrap().sort_by_key(|name| name.as_str().map(str::to_string));
    }
    value
}

#[test]
fn specifications_are_as_recorded() {
    let cases = [
        ("ordinary", input()),
        ("privileged", privileged()),
        ("host_namespaces", host_namespaces()),
        ("unified", unified()),
        ("user_namespace", user_namespace()),
    ];
    for (name, input) in cases {
        let got = canonical(&build(&input).unwrap());
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(name).with_extension("json");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, format!("{}\n", serde_json::to_string_pretty(&got).unwrap())).unwrap();
        }
        let wanted: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(got, wanted, "{name}: see {}", path.display());
    }
}

#[test]
fn a_specification_survives_its_json() {
    let spec = build(&unified()).unwrap();
    let text = serde_json::to_vec(&spec).unwrap();
    assert_eq!(serde_json::from_slice::<Spec>(&text).unwrap(), spec);
}

#[test]
fn commands_follow_cri() {
    type Case<'a> = (&'a [&'a str], &'a [&'a str], &'a [&'a str], &'a [&'a str], Option<&'a [&'a str]>);
    let cases: [Case<'_>; 8] = [
        (&[], &[], &["e"], &["c"], Some(&["e", "c"])),
        (&[], &["a"], &["e"], &["c"], Some(&["e", "a"])),
        (&["x"], &[], &["e"], &["c"], Some(&["x"])),
        (&["x"], &["a"], &["e"], &["c"], Some(&["x", "a"])),
        (&[], &[], &[""], &["c"], Some(&["c"])),
        (&[], &["a"], &[""], &["c"], Some(&["a"])),
        (&[], &[], &[], &[], None),
        (&[], &[], &[""], &[], None),
    ];
    let own = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    for (command, args, entrypoint, cmd, wanted) in cases {
        let config = ContainerConfig { command: own(command), args: own(args), ..ContainerConfig::default() };
        let image = ImageConfig { entrypoint: own(entrypoint), cmd: own(cmd), ..ImageConfig::default() };
        assert_eq!(process::effective_command(&config, &image).ok(), wanted.map(own), "{command:?} {args:?}");
    }
}

#[test]
fn an_environment_that_cannot_be_written_is_refused() {
    let with = |name: &str, value: &[u8]| {
        let mut input = input();
        input.config.envs = vec![(name.into(), value.to_vec())];
        build(&input).map(|spec| spec.process().clone().unwrap().env().clone().unwrap())
    };
    assert!(with("X", "grüße\nzwei".as_bytes()).unwrap().contains(&"X=grüße\nzwei".to_string()));
    assert!(with("X", b"").unwrap().contains(&"X=".to_string()));
    let long = vec![b'a'; 131_072];
    for (name, value) in
        [("X", &b"\xff"[..]), ("X", b"a\0b"), ("", b"a"), ("A=B", b"a"), ("A\0", b"a"), ("X", &long)]
    {
        let error = with(name, value).unwrap_err();
        assert_eq!(error.kind(), crisp_domain::ErrorKind::Invalid, "{name:?}");
    }
}

#[test]
fn working_directories_that_leave_are_refused() {
    let with = |dir: &str| {
        let config = ContainerConfig { working_dir: dir.into(), ..ContainerConfig::default() };
        process::working_dir(&config, &ImageConfig::default())
    };
    for (text, wanted) in
        [("", "/"), ("/a", "/a"), ("a//b/.", "/a/b"), ("/proc/self", "/proc/self"), ("/dev/fdx", "/dev/fdx")]
    {
        assert_eq!(with(text).unwrap(), wanted);
    }
    for text in [
        "/a/../..",
        "/proc/self/fd/7",
        "/proc/1/root/etc",
        "//proc/./thread-self/fd/3/",
        "/dev/fd/7",
        "/a\nb",
        "/a\0",
    ] {
        assert!(with(text).is_err(), "{text:?}");
    }
}

#[test]
fn no_process_starts_with_inheritable_capabilities() {
    for input in [input(), privileged(), host_namespaces()] {
        let spec = build(&input).unwrap();
        let exec = process::exec_process(
            &spec,
            &ExecRequest { command: vec!["x".into()], ..ExecRequest::default() },
        );
        for process in [spec.process().clone().unwrap(), exec.unwrap()] {
            let sets = process.capabilities().clone().unwrap();
            assert!(sets.inheritable().as_ref().unwrap().is_empty());
            assert!(sets.ambient().as_ref().unwrap().is_empty());
            assert!(!sets.bounding().as_ref().unwrap().is_empty());
        }
    }
}

#[test]
fn no_more_is_granted_than_the_daemon_holds() {
    let held = CapabilitySet::named("CHOWN").unwrap();
    for mut input in [input(), privileged(), host_namespaces()] {
        input.host.capabilities = held;
        let bounding = build(&input).unwrap().process().clone().unwrap().capabilities().clone().unwrap();
        assert!(bounding.bounding().as_ref().unwrap().len() <= 1);
    }
    let mut input = host_namespaces();
    input.host.capabilities = held;
    let net_admin = CapabilitySet::named("NET_ADMIN").unwrap();
    assert_eq!(warnings(&input)[0], Warning::CapabilitiesSkipped(net_admin));
}

#[test]
fn an_exec_keeps_the_containers_confinement() {
    let spec = build(&unified()).unwrap();
    let request = ExecRequest { command: vec!["ls".into()], terminal: Terminal::None };
    let exec = process::exec_process(&spec, &request).unwrap();
    let init = spec.process().clone().unwrap();
    assert_eq!(exec.args().clone().unwrap(), ["ls"]);
    assert_eq!(exec.terminal(), Some(false));
    assert_eq!(
        (exec.user(), exec.capabilities(), exec.cwd()),
        (init.user(), init.capabilities(), init.cwd())
    );
    assert_eq!(exec.no_new_privileges(), Some(true));
    let nothing = ExecRequest::default();
    assert!(matches!(process::exec_process(&spec, &nothing), Err(SpecError::NoCommand)));
}

#[test]
fn labels_are_passed_on() {
    let mut input = input();
    let label = |text: &str| Some(text.to_owned());
    input.labels =
        SecurityLabels { apparmor: label("mine"), process: label("u:r:p:s0"), mount: label("u:r:f:s0") };
    let spec = build(&input).unwrap();
    let process = spec.process().clone().unwrap();
    assert_eq!(process.apparmor_profile().as_deref(), Some("mine"));
    assert_eq!(process.selinux_label().as_deref(), Some("u:r:p:s0"));
    assert_eq!(spec.linux().clone().unwrap().mount_label().as_deref(), Some("u:r:f:s0"));
}
