use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::host::tests::host;

fn v2() -> HostFacts {
    HostFacts { cgroup: CgroupVersion::V2, ..host() }
}

#[test]
fn nothing_asked_is_nothing_set() {
    let oci = to_oci(&Resources::default(), &host()).unwrap();
    assert_eq!(serde_json::to_value(&oci).unwrap(), serde_json::json!({}));
}

#[test]
fn shares_are_clamped_to_the_kernels_range() {
    for (asked, set) in [(0, 2), (1, 2), (2, 2), (1024, 1024), (262_144, 262_144), (u64::MAX, 262_144)] {
        let resources = Resources { cpu_shares: Some(asked), ..Resources::default() };
        assert_eq!(
            to_oci(&resources, &host()).unwrap().cpu().as_ref().unwrap().shares(),
            Some(set),
            "{asked}"
        );
    }
}

#[test]
fn swap_is_memory_and_swap_together() {
    const MIB: i64 = 1 << 20;
    let cases = [
        (None, None, Some(None)),
        (Some(64 * MIB), None, Some(Some(64 * MIB))),
        (Some(64 * MIB), Some(64 * MIB), Some(Some(64 * MIB))),
        (Some(64 * MIB), Some(96 * MIB), Some(Some(96 * MIB))),
        (Some(64 * MIB), Some(-1), Some(Some(-1))),
        (Some(-1), None, Some(None)),
        (Some(64 * MIB), Some(32 * MIB), None),
        (None, Some(32 * MIB), None),
        (Some(-2), None, None),
        (Some(0), None, None),
    ];
    for (memory, swap, wanted) in cases {
        let resources =
            Resources { memory_limit_bytes: memory, memory_swap_limit_bytes: swap, ..Resources::default() };
        let got =
            to_oci(&resources, &host()).ok().map(|oci| oci.memory().as_ref().and_then(LinuxMemory::swap));
        assert_eq!(got, wanted, "{memory:?} {swap:?}");
    }
    let resources = Resources { memory_limit_bytes: Some(MIB), ..Resources::default() };
    let unaccounted = HostFacts { swap: SwapAccounting::Absent, ..host() };
    assert_eq!(to_oci(&resources, &unaccounted).unwrap().memory().as_ref().unwrap().swap(), None);
}

#[test]
fn hugepages_without_a_controller_are_left_out() {
    let limits = BTreeMap::from([("2MB".to_string(), 0), ("1GB".to_string(), 1 << 30)]);
    let resources = Resources { hugepage_limits: limits, ..Resources::default() };
    let none = HostFacts { hugepage_sizes: BTreeSet::new(), ..host() };
    assert!(to_oci(&resources, &none).unwrap().hugepage_limits().is_none());
    assert_eq!(skipped_hugepages(&resources, &none), ["1GB"]);
    let small = HostFacts { hugepage_sizes: BTreeSet::from(["2MB".to_string()]), ..host() };
    assert_eq!(to_oci(&resources, &small).unwrap().hugepage_limits().as_ref().unwrap().len(), 1);
    for size in ["", "MB", "2", "2MB/../x", "-1MB", "2mb"] {
        let limits = BTreeMap::from([(size.to_string(), 0)]);
        let resources = Resources { hugepage_limits: limits, ..Resources::default() };
        assert!(to_oci(&resources, &none).is_err(), "{size:?}");
    }
}

#[test]
fn unified_keys_are_files_of_controllers() {
    let one = |key: &str, value: &str, host: &HostFacts| {
        let unified = BTreeMap::from([(key.to_string(), value.to_string())]);
        to_oci(&Resources { unified, ..Resources::default() }, host)
    };
    for key in ["memory.min", "memory.oom.group", "hugetlb.2MB.max", "io.max", "cpu.uclamp.max"] {
        assert!(one(key, "1", &v2()).is_ok(), "{key}");
        assert!(one(key, "1", &host()).is_err(), "{key} on v1");
    }
    for key in [
        "",
        "memory",
        "memory.",
        "../memory.max",
        "memory/../x.max",
        "memory...max",
        "cgroup.procs",
        "cgroup.kill",
        "a.b",
        "MEMORY.max",
    ] {
        assert!(one(key, "1", &v2()).is_err(), "{key:?}");
    }
    assert!(one("memory.max", "", &v2()).is_err());
    assert!(one("memory.max", "1\0", &v2()).is_err());
}

#[test]
fn what_the_kernel_would_refuse_is_refused() {
    let quota = |quota| Resources { cpu_quota_us: Some(quota), ..Resources::default() };
    let period = |period| Resources { cpu_period_us: Some(period), ..Resources::default() };
    let cpus = |cpus: &str| Resources { cpuset_cpus: cpus.into(), ..Resources::default() };
    let good =
        [quota(-1), quota(1000), period(1000), period(1_000_000), cpus("0"), cpus("0-3,7"), cpus("7,0")];
    let bad = [
        quota(0),
        quota(-2),
        quota(999),
        period(0),
        period(999),
        period(1_000_001),
        cpus("a"),
        cpus("3-1"),
        cpus("0,"),
        cpus("0-"),
        cpus("-1"),
        cpus("0\n"),
        cpus("99999"),
        cpus("+1"),
    ];
    for resources in good {
        assert!(to_oci(&resources, &host()).is_ok(), "{resources:?}");
    }
    for resources in bad {
        assert!(to_oci(&resources, &host()).is_err(), "{resources:?}");
    }
}

#[test]
fn oom_score_is_raised_to_the_floor() {
    let at = |requested| Resources { oom_score_adj: Some(requested), ..Resources::default() };
    let floor = HostFacts { oom_score_adj_min: -200, ..host() };
    for (requested, set) in [(-998, -200), (-200, -200), (0, 0), (1000, 1000)] {
        assert_eq!(oom_score_adj(&at(requested), &floor).unwrap(), Some(set), "{requested}");
    }
    assert!(oom_score_adj(&at(-1001), &floor).is_err());
    assert!(oom_score_adj(&at(1001), &floor).is_err());
    assert_eq!(oom_score_adj(&Resources::default(), &floor).unwrap(), Some(0));
    let raised = HostFacts { oom_score_adj_min: 300, ..host() };
    assert_eq!(oom_score_adj(&Resources::default(), &raised).unwrap(), Some(300));
}

#[test]
fn an_update_changes_what_it_names() {
    let old = Resources {
        cpu_shares: Some(100),
        cpuset_cpus: "0".into(),
        memory_limit_bytes: Some(1 << 20),
        oom_score_adj: Some(5),
        unified: BTreeMap::from([("memory.min".to_string(), "1".to_string())]),
        ..Resources::default()
    };
    let update = Resources {
        cpu_shares: Some(200),
        oom_score_adj: Some(7),
        unified: BTreeMap::from([("memory.high".to_string(), "2".to_string())]),
        ..Resources::default()
    };
    let new = old.updated(&update);
    assert_eq!((new.cpu_shares, new.oom_score_adj, new.unified.len()), (Some(200), Some(5), 2));
    assert_eq!((new.cpuset_cpus.as_str(), new.memory_limit_bytes), ("0", Some(1 << 20)));
}
