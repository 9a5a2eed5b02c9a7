//! Making, finding, removing real cgroups.
#![allow(clippy::unwrap_used, clippy::panic, clippy::fn_params_excessive_bools, reason = "tests")]

mod support;

use crisp_cgroup::{CgroupError, DeviceAccess, DeviceKind, DeviceRule, Resources, Version};
use crisp_domain::ErrorKind;
use support::{Top, eventually, layouts, with};

#[test]
fn a_cgroup_is_made_in_every_tree_and_removed_again() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let cgroup = cgroups.create(&top.at("pod/container"), &Resources::default()).unwrap();
        assert!(top.dirs(&cgroup).iter().all(|dir| dir.is_dir()));
        assert_eq!(cgroups.children(&top.at("pod")).unwrap(), ["container"]);
        assert!(!cgroups.open(&top.at("pod")).remove_if_empty().unwrap());
        for _twice_is_fine in 0..2 {
            cgroup.remove().unwrap();
        }
        assert!(!top.dirs(&cgroup).iter().any(|dir| dir.exists()));
        assert!(cgroups.open(&top.at("pod")).remove_if_empty().unwrap());
        assert!(cgroups.children(&top.at("pod")).unwrap().is_empty());
    }
}

#[test]
fn limits_are_in_the_files() {
    let Some(cgroups) = with("memory") else { return };
    let top = Top::new(&cgroups);
    let resources = Resources {
        cpu_shares: 512,
        cpu_quota_us: 20_000,
        cpu_period_us: 50_000,
        cpuset_cpus: "0".into(),
        memory_limit_bytes: 32 << 20,
        pids_max: 77,
        hugepages: vec![("2MB".into(), 0)],
        ..Resources::default()
    };
    let cgroup = cgroups.create(&top.at("pod/container"), &resources).unwrap();
    let files: &[(&str, &str)] = match cgroups.version() {
        Version::V1 => &[
            ("cpu.shares", "512"),
            ("cpu.cfs_quota_us", "20000"),
            ("cpu.cfs_period_us", "50000"),
            ("cpuset.cpus", "0"),
            ("memory.limit_in_bytes", "33554432"),
            ("pids.max", "77"),
        ],
        Version::V2 => &[
            ("cpu.weight", "59"),
            ("cpu.max", "20000 50000"),
            ("cpuset.cpus", "0"),
            ("memory.max", "33554432"),
            ("pids.max", "77"),
        ],
    };
    for (file, value) in files {
        assert_eq!(top.read(&cgroup, file), *value, "{file}");
    }
}

#[test]
fn a_v1_cpuset_comes_from_above() {
    let Some(cgroups) = with("cpuset").filter(|cgroups| cgroups.version() == Version::V1) else { return };
    let top = Top::new(&cgroups);
    let cgroup = cgroups.create(&top.at("pod/container"), &Resources::default()).unwrap();
    let root = cgroups.open(&crisp_cgroup::CgroupPath::root());
    for file in ["cpuset.cpus", "cpuset.mems"] {
        assert_eq!(top.read(&cgroup, file), top.read(&root, file));
    }
}

#[test]
fn an_empty_leftover_is_replaced_and_a_used_one_is_refused() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let path = top.at("container");
        let pids = cgroups.controllers().any(|name| name == "pids");
        let resources = Resources { pids_max: if pids { 50 } else { 0 }, ..Resources::default() };
        let cgroup = cgroups.create(&path, &resources).unwrap();
        top.nested("container/below/deep");
        let again = cgroups.create(&path, &Resources::default()).unwrap();
        assert!(cgroups.children(&path).unwrap().is_empty());
        if pids {
            assert_eq!(top.read(&again, "pids.max"), "max");
        }
        let mut child = top.run(&cgroup, "exec sleep 1000");
        eventually("the process joins", || cgroup.processes().unwrap().len() == 1);
        let error = cgroups.create(&path, &Resources::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exists, "{error}");
        assert_eq!(cgroup.processes().unwrap().len(), 1);
        cgroup.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_cgroup_that_cannot_be_finished_leaves_nothing() {
    let Some(cgroups) = with("cpuset") else { return };
    let top = Top::new(&cgroups);
    let resources = Resources { cpuset_cpus: "1023".into(), ..Resources::default() };
    let error = cgroups.create(&top.at("pod/container"), &resources).unwrap_err();
    assert!(matches!(error, CgroupError::Write { .. }), "{error}");
    let made = cgroups.open(&top.path);
    assert!(!top.dirs(&made).iter().any(|dir| dir.exists()));
}

#[test]
fn removal_names_the_processes_that_are_left() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let cgroup = cgroups.create(&top.at("a"), &Resources::default()).unwrap();
        let below = top.nested("a/b");
        let mut child = top.run(&below, "exec sleep 1000");
        eventually("the process joins", || below.processes().unwrap().len() == 1);
        let error = cgroup.remove().unwrap_err();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(matches!(&error, CgroupError::Populated { pids, .. } if pids == &[pid]), "{error}");
        cgroup.kill().unwrap();
        assert!(!child.wait().unwrap().success());
    }
}

#[test]
fn a_cgroup_of_another_owner_is_limited_as_one_of_our_own() {
    let Some(cgroups) = with("memory") else { return };
    let top = Top::new(&cgroups);
    let path = top.at("pod/scope");
    let resources = Resources { memory_limit_bytes: 8 << 20, ..Resources::default() };
    assert!(cgroups.limit(&path, &resources).is_err(), "it is not there yet");
    cgroups.ensure(&path).unwrap();
    let scope = cgroups.limit(&path, &resources).unwrap();
    let file = if cgroups.version() == Version::V1 { "memory.limit_in_bytes" } else { "memory.max" };
    assert_eq!(top.read(&scope, file), "8388608");
    let bad = Resources { cpu_quota_us: -7, ..Resources::default() };
    assert_eq!(cgroups.limit(&path, &bad).unwrap_err().kind(), ErrorKind::Invalid);
    assert!(scope.exists());
}

#[test]
fn a_nested_cgroup_leaves_room_for_processes_above_it() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let outer = cgroups.ensure(&top.at("scope")).unwrap();
        assert!(cgroups.nest(&top.at("gone/hold")).is_err(), "without a parent");
        if cgroups.version() == Version::V1 {
            // A fresh cpuset takes no process; nobody nests there.
            continue;
        }
        let inner = cgroups.nest(&top.at("scope/hold")).unwrap();
        cgroups.nest(&top.at("scope/hold")).unwrap();
        let mut children = [top.run(&outer, "exec sleep 1000"), top.run(&inner, "exec sleep 1000")];
        eventually("both join", || outer.processes().unwrap().len() == 2);
        outer.kill().unwrap();
        for child in &mut children {
            child.wait().unwrap();
        }
        outer.remove().unwrap();
    }
}

#[test]
fn an_update_that_is_not_confirmed_is_undone() {
    let Some(cgroups) = with("memory") else { return };
    let top = Top::new(&cgroups);
    let of = |mib: i64| Resources { memory_limit_bytes: mib << 20, ..Resources::default() };
    let cgroup = cgroups.create(&top.at("container"), &of(8)).unwrap();
    let file = if cgroups.version() == Version::V1 { "memory.limit_in_bytes" } else { "memory.max" };
    let seen = std::cell::RefCell::new(String::new());
    let confirm = || {
        seen.replace(top.read(&cgroup, file));
        Err("no")
    };
    assert_eq!(cgroup.update_and(&of(16), confirm).unwrap(), Err("no"));
    assert_eq!((seen.take().as_str(), top.read(&cgroup, file).as_str()), ("16777216", "8388608"));
    cgroup.update_and(&of(16), || Ok::<_, ()>(())).unwrap().unwrap();
    assert_eq!(top.read(&cgroup, file), "16777216");
}

fn device(allow: bool, kind: DeviceKind, minor: Option<u32>, access: &str) -> DeviceRule {
    let access = DeviceAccess::parse(access).unwrap();
    DeviceRule { allow, kind, major: minor.map(|_| 1), minor, access }
}

/// /dev/null is 1:3, /dev/zero 1:5, /dev/full 1:7.
#[test]
fn devices_are_filtered() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let rules = vec![
            device(false, DeviceKind::All, None, "rwm"),
            device(true, DeviceKind::Char, Some(3), "rw"),
            device(true, DeviceKind::Char, Some(5), "r"),
        ];
        let resources = Resources { devices: Some(rules), ..Resources::default() };
        let cgroup = cgroups.create(&top.at("c"), &resources).unwrap();
        let script = "ok() { \"$@\" 2>/dev/null && echo yes || echo no; }; \
            ok dd if=/dev/zero of=/dev/null bs=1 count=1; ok dd if=/dev/full of=/dev/null bs=1 count=1; \
            ok dd if=/dev/null of=/dev/zero bs=1 count=1; t=$(mktemp -d); ok mknod $t/null c 1 3; rm -r $t";
        let out = top.run(&cgroup, script).wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout), "yes\nno\nno\nno\n", "{:?}", cgroups.version());
    }
}

#[test]
fn open_device_access_changes_nothing() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let resources = Resources {
            devices: Some(vec![device(true, DeviceKind::All, None, "rwm")]),
            ..Resources::default()
        };
        let cgroup = cgroups.create(&top.at("c"), &resources).unwrap();
        let out = top.run(&cgroup, "head -c 1 /dev/full | wc -c").wait_with_output().unwrap();
        assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "1");
    }
}

#[test]
fn the_root_is_neither_made_nor_removed() {
    for cgroups in layouts() {
        let root = crisp_cgroup::CgroupPath::root();
        assert_eq!(cgroups.create(&root, &Resources::default()).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(cgroups.open(&root).remove().unwrap_err().kind(), ErrorKind::Invalid);
        assert!(cgroups.ensure(&root).unwrap().exists());
    }
}
