use super::*;
use crisp_nri::api::{
    IoPrioClass, LinuxResources, LinuxSchedulerPolicy, LinuxSeccompArg, LinuxSyscall, OptionalFileMode,
    OptionalInt, OptionalInt64, OptionalString, OptionalUInt32,
};

fn spec() -> oci::Spec {
    serde_json::from_value(json!({
        "ociVersion": "1.2.0",
        "process": {
            "user": { "uid": 0, "gid": 0 }, "cwd": "/", "args": ["sleep"], "env": ["A=1", "AB=2"],
            "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 10, "soft": 5 }],
        },
        "mounts": [
            { "destination": "/proc", "type": "proc" },
            { "destination": "/data/sub", "type": "bind", "source": "/x", "options": ["bind"] },
        ],
        "annotations": { "a": "1", "b": "2" },
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "network", "path": "/n" }],
            "sysctl": { "net.x": "1" },
            "devices": [{ "path": "/dev/old", "type": "c", "major": 7, "minor": 1 }],
            "resources": { "devices": [
                { "allow": false, "access": "rwm" },
                { "allow": true, "type": "c", "major": 7, "minor": 1, "access": "rw" },
            ] },
        },
    }))
    .unwrap()
}

fn applied(adjust: &ContainerAdjustment) -> oci::Spec {
    let mut spec = spec();
    apply(&mut spec, adjust).unwrap();
    spec
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux), ..ContainerAdjustment::default() }
}

fn text(texts: &[(&str, &str)]) -> std::collections::BTreeMap<String, String> {
    texts.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

#[test]
fn nothing_changes_nothing() {
    assert_eq!(applied(&ContainerAdjustment::default()), spec());
}

#[test]
fn variables_arguments_and_annotations_are_set_and_removed() {
    let variable = |key: &str, value: &str| KeyValue { key: key.to_owned(), value: value.to_owned() };
    let spec = applied(&ContainerAdjustment {
        env: vec![variable("-A", ""), variable("AB", "x=y"), variable("C", "3")],
        args: vec!["other".to_owned()],
        annotations: text(&[("-a", ""), ("c", "3")]),
        ..ContainerAdjustment::default()
    });
    let process = spec.process().clone().unwrap();
    assert_eq!(process.env().clone().unwrap(), ["AB=x=y", "C=3"]);
    assert_eq!(process.args().clone().unwrap(), ["other"]);
    let annotations = spec.annotations().clone().unwrap();
    assert_eq!(annotations.len(), 2);
    assert_eq!((annotations["b"].as_str(), annotations["c"].as_str()), ("2", "3"));
}

#[test]
fn a_mount_hides_none_of_those_below_it() {
    let mount = |destination: &str, source: &str| Mount {
        destination: destination.to_owned(),
        source: source.to_owned(),
        r#type: "bind".to_owned(),
        options: vec!["rbind".to_owned(), "ro".to_owned()],
    };
    let spec = applied(&ContainerAdjustment {
        mounts: vec![mount("-/proc", ""), mount("/data", "/d"), mount("/last", "/l")],
        ..ContainerAdjustment::default()
    });
    let mounts = spec.mounts().clone().unwrap();
    let at: Vec<_> = mounts.iter().map(|mount| mount.destination().display().to_string()).collect();
    assert_eq!(at, ["/data", "/data/sub", "/last"]);
    assert_eq!(mounts[0].options().clone().unwrap(), ["rbind", "ro"]);
}

#[test]
fn what_a_process_is_given() {
    let limit = |kind: &str| PosixRlimit { r#type: kind.to_owned(), hard: 7, soft: 6 };
    let spec = applied(&ContainerAdjustment {
        rlimits: vec![limit("RLIMIT_NOFILE"), limit("RLIMIT_CORE")],
        linux: Some(LinuxContainerAdjustment {
            oom_score_adj: Some(OptionalInt { value: 500 }),
            io_priority: Some(LinuxIoPriority { class: IoPrioClass::IoprioClassBe.into(), priority: 5 }),
            scheduler: Some(LinuxScheduler {
                policy: LinuxSchedulerPolicy::SchedFifo.into(),
                priority: 3,
                flags: vec![LinuxSchedulerFlag::SchedFlagResetOnFork.into()],
                ..LinuxScheduler::default()
            }),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    });
    let process = serde_json::to_value(spec.process()).unwrap();
    assert_eq!(process["rlimits"].as_array().unwrap().len(), 2);
    assert_eq!(process["rlimits"][0], json!({ "type": "RLIMIT_NOFILE", "hard": 7, "soft": 6 }));
    assert_eq!(process["oomScoreAdj"], 500);
    assert_eq!(process["ioPriority"], json!({ "class": "IOPRIO_CLASS_BE", "priority": 5 }));
    assert_eq!(process["scheduler"]["policy"], "SCHED_FIFO");
    assert_eq!(process["scheduler"]["flags"], json!(["SCHED_RESET_ON_FORK"]));
}

#[test]
fn devices_bring_and_take_their_rules() {
    let device = |path: &str, minor| LinuxDevice {
        path: path.to_owned(),
        r#type: "c".to_owned(),
        major: 10,
        minor,
        file_mode: Some(OptionalFileMode { value: 0o600 }),
        ..LinuxDevice::default()
    };
    let rule = LinuxDeviceCgroup {
        allow: true,
        r#type: "b".to_owned(),
        major: Some(OptionalInt64 { value: 8 }),
        access: "r".to_owned(),
        ..LinuxDeviceCgroup::default()
    };
    let spec = applied(&linux(LinuxContainerAdjustment {
        devices: vec![device("-/dev/old", 0), device("/dev/new", 200)],
        resources: Some(LinuxResources { devices: vec![rule], ..LinuxResources::default() }),
        ..LinuxContainerAdjustment::default()
    }));
    let linux = serde_json::to_value(spec.linux()).unwrap();
    assert_eq!(
        linux["devices"],
        json!([{ "path": "/dev/new", "type": "c", "major": 10, "minor": 200, "fileMode": 384 }])
    );
    let rules = linux["resources"]["devices"].as_array().unwrap();
    let majors: Vec<_> = rules.iter().map(|rule| rule["major"].clone()).collect();
    assert_eq!(majors, [json!(null), json!(10), json!(8)]);
}

#[test]
fn namespaces_sysctls_interfaces_and_classes() {
    let namespace =
        |kind: &str, path: &str| LinuxNamespace { r#type: kind.to_owned(), path: path.to_owned() };
    let spec = applied(&linux(LinuxContainerAdjustment {
        namespaces: vec![namespace("-network", ""), namespace("ipc", "/i")],
        sysctl: text(&[("-net.x", ""), ("net.y", "2")]),
        net_devices: [("eth9".to_owned(), LinuxNetDevice { name: "fast".to_owned() })].into(),
        rdt: Some(LinuxRdt {
            clos_id: Some(OptionalString { value: "gold".to_owned() }),
            ..LinuxRdt::default()
        }),
        memory_policy: Some(LinuxMemoryPolicy {
            mode: MpolMode::MpolBind.into(),
            nodes: "0".to_owned(),
            flags: vec![MpolFlag::MpolFStaticNodes.into()],
        }),
        ..LinuxContainerAdjustment::default()
    }));
    let linux = serde_json::to_value(spec.linux()).unwrap();
    assert_eq!(linux["namespaces"], json!([{ "type": "mount" }, { "type": "ipc", "path": "/i" }]));
    assert_eq!(linux["sysctl"], json!({ "net.y": "2" }));
    assert_eq!(linux["netDevices"]["eth9"], json!({ "name": "fast" }));
    assert_eq!(linux["intelRdt"], json!({ "closID": "gold" }));
    assert_eq!(
        linux["memoryPolicy"],
        json!({ "mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"] })
    );
}

#[test]
fn hooks_are_added() {
    let hook = Hook {
        path: "/bin/hook".to_owned(),
        args: vec!["hook".to_owned()],
        timeout: Some(OptionalInt { value: 2 }),
        ..Hook::default()
    };
    let hooks = Hooks { create_runtime: vec![hook], ..Hooks::default() };
    let spec = applied(&ContainerAdjustment { hooks: Some(hooks), ..ContainerAdjustment::default() });
    let hooks = serde_json::to_value(spec.hooks()).unwrap();
    assert_eq!(hooks, json!({ "createRuntime": [{ "path": "/bin/hook", "args": ["hook"], "timeout": 2 }] }));
}

#[test]
fn a_filter_is_read_in_the_specifications_words() {
    let policy = LinuxSeccomp {
        default_action: "SCMP_ACT_ERRNO".to_owned(),
        default_errno: Some(OptionalUInt32 { value: 38 }),
        architectures: vec!["SCMP_ARCH_X86_64".to_owned()],
        syscalls: vec![LinuxSyscall {
            names: vec!["read".to_owned()],
            action: "SCMP_ACT_ALLOW".to_owned(),
            args: vec![LinuxSeccompArg { op: "SCMP_CMP_EQ".to_owned(), ..LinuxSeccompArg::default() }],
            ..LinuxSyscall::default()
        }],
        ..LinuxSeccomp::default()
    };
    let filter = serde_json::to_value(seccomp(&policy).unwrap()).unwrap();
    assert_eq!(filter["defaultErrnoRet"], 38);
    assert_eq!(filter["syscalls"][0]["args"][0]["op"], "SCMP_CMP_EQ");
    assert!(seccomp(&LinuxSeccomp { default_action: "NO".to_owned(), ..policy }).is_err());
}

#[test]
fn what_cannot_be_is_refused_by_name() {
    let mount = |destination: &str| ContainerAdjustment {
        mounts: vec![Mount { destination: destination.to_owned(), ..Mount::default() }],
        ..ContainerAdjustment::default()
    };
    let score = |value| {
        linux(LinuxContainerAdjustment { oom_score_adj: Some(OptionalInt { value }), ..Default::default() })
    };
    let cases = [
        (mount("data"), "mount"),
        (mount("/a/../b"), "mount"),
        (score(2000), "oom_score_adj"),
        (
            linux(LinuxContainerAdjustment { cgroups_path: "/x".to_owned(), ..Default::default() }),
            "the cgroups path",
        ),
        (
            ContainerAdjustment {
                rlimits: vec![PosixRlimit { r#type: "NOFILE".to_owned(), ..Default::default() }],
                ..Default::default()
            },
            "rlimit NOFILE",
        ),
        (
            ContainerAdjustment {
                env: vec![KeyValue { key: "A=B".to_owned(), value: String::new() }],
                ..Default::default()
            },
            "environment variable",
        ),
        (
            linux(LinuxContainerAdjustment {
                devices: vec![LinuxDevice { path: "/dev/x".to_owned(), ..Default::default() }],
                ..Default::default()
            }),
            "device /dev/x",
        ),
        (
            linux(LinuxContainerAdjustment {
                namespaces: vec![LinuxNamespace { r#type: "nothing".to_owned(), ..Default::default() }],
                ..Default::default()
            }),
            "namespace nothing",
        ),
    ];
    for (adjust, problem) in cases {
        let error = apply(&mut spec(), &adjust).unwrap_err();
        assert!(error.starts_with(problem), "{error}");
    }
}

/// Every word of the protocol's enumerations is one of the specification's.
#[test]
fn all_words_are_known() {
    for class in IoPrioClass::IoprioClassRt.into()..=IoPrioClass::IoprioClassIdle.into() {
        io_priority(&LinuxIoPriority { class, priority: 0 }).unwrap();
    }
    let known =
        |policy: i32, flags: Vec<i32>| scheduler(&LinuxScheduler { policy, flags, ..Default::default() });
    for policy in LinuxSchedulerPolicy::SchedOther.into()..=LinuxSchedulerPolicy::SchedDeadline.into() {
        known(policy, Vec::new()).unwrap();
    }
    for flag in 0..=LinuxSchedulerFlag::SchedFlagUtilClampMax.into() {
        known(LinuxSchedulerPolicy::SchedOther.into(), vec![flag]).unwrap();
    }
    for mode in 0..=MpolMode::MpolWeightedInterleave.into() {
        let flags = vec![MpolFlag::MpolFNumaBalancing.into(), MpolFlag::MpolFRelativeNodes.into()];
        memory_policy(&LinuxMemoryPolicy { mode, nodes: "0".to_owned(), flags }).unwrap();
    }
    for kind in ["mount", "network", "ipc", "uts", "pid", "user", "cgroup", "time"] {
        let change = LinuxNamespace { r#type: kind.to_owned(), ..LinuxNamespace::default() };
        namespaces(&mut oci::Linux::default(), &[change]).unwrap();
    }
}
