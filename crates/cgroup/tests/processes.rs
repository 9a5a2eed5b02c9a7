//! Killing, freezing, counting, changing limits with real processes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod support;

use std::os::unix::process::ExitStatusExt;

use crisp_cgroup::{Cgroup, CgroupError, Resources, Version};
use support::{Top, WAIT_MAX, eventually, layouts, with};

const SIGKILL: i32 = 9;

#[test]
fn kill_ends_everything_below_and_nothing_else() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let cgroup = cgroups.create(&top.at("c"), &Resources::default()).unwrap();
        let below = top.nested("c/a/b");
        let beside = cgroups.create(&top.at("d"), &Resources::default()).unwrap();
        let mut other = top.run(&beside, "exec sleep 1000");
        let mut first = top.run(&cgroup, "sleep 1000 & sleep 1000 & exec sleep 1000");
        let mut second = top.run(&below, "trap '' TERM; exec sleep 1000");
        eventually("all join", || cgroup.processes().unwrap().len() == 4 && beside.is_populated().unwrap());
        cgroup.kill().unwrap();
        assert!(!cgroup.is_populated().unwrap());
        assert!(cgroup.processes().unwrap().is_empty());
        for child in [&mut first, &mut second] {
            assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
        }
        assert!(other.try_wait().unwrap().is_none());
        cgroup.remove().unwrap();
        beside.kill().unwrap();
        assert_eq!(other.wait().unwrap().signal(), Some(SIGKILL));
    }
}

#[test]
fn kill_reaches_what_forks_all_the_time() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let cgroup = cgroups.create(&top.at("c"), &Resources::default()).unwrap();
        let script = "f() { while :; do (exec sleep 1000) & done; }; f & f & wait";
        let limit = "ulimit -u unlimited 2>/dev/null; ";
        let mut child = top.run(&cgroup, &format!("{limit}{script}"));
        eventually("many processes", || cgroup.processes().unwrap().len() > 300);
        cgroup.kill_within(WAIT_MAX).unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
        cgroup.remove().unwrap();
    }
}

#[test]
fn frozen_processes_are_killed_too() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let cgroup = cgroups.create(&top.at("c"), &Resources::default()).unwrap();
        let below = top.nested("c/b");
        let mut children = [top.run(&cgroup, "exec sleep 1000"), top.run(&below, "while :; do :; done")];
        eventually("both join", || cgroup.processes().unwrap().len() == 2);
        below.freeze().unwrap();
        cgroup.freeze().unwrap();
        cgroup.kill().unwrap();
        for child in &mut children {
            assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
        }
    }
}

#[test]
fn what_is_frozen_stands_still_until_it_is_thawed() {
    let Some(cgroups) = layouts().into_iter().next() else { return };
    let top = Top::new(&cgroups);
    let cgroup = cgroups.create(&top.at("c"), &Resources::default()).unwrap();
    let beside = cgroups.create(&top.at("d"), &Resources::default()).unwrap();
    let mut children = [&cgroup, &beside].map(|cgroup| top.run(cgroup, "while :; do :; done"));
    let used_by = |cgroup: &Cgroup| cgroup.cpu_usage_ns().unwrap().unwrap();
    let used = || used_by(&cgroup);
    let at_start = used();
    eventually("it uses the CPU", || used() > at_start + 1_000_000);
    cgroup.freeze().unwrap();
    let (file, frozen) = match cgroups.version() {
        Version::V1 => ("freezer.state", "FROZEN"),
        Version::V2 => ("cgroup.events", "frozen 1"),
    };
    // Freezing may take longer than the call waits.
    eventually("it stands still", || top.read(&cgroup, file).lines().any(|line| line == frozen));
    let (frozen_at, beside_at) = (used(), used_by(&beside));
    eventually("what is not frozen gets on", || used_by(&beside) > beside_at + 100_000_000);
    assert!(used() - frozen_at < 5_000_000, "{} ns while frozen", used() - frozen_at);
    cgroup.thaw().unwrap();
    eventually("it goes on", || used() > frozen_at + 10_000_000);
    for cgroup in [&cgroup, &beside] {
        cgroup.kill().unwrap();
    }
    for child in &mut children {
        child.wait().unwrap();
    }
}

#[test]
fn killing_what_is_gone_is_fine() {
    for cgroups in layouts() {
        let top = Top::new(&cgroups);
        let cgroup = cgroups.open(&top.at("never"));
        cgroup.kill().unwrap();
        cgroup.thaw().unwrap();
        assert!(!cgroup.exists() && !cgroup.is_populated().unwrap());
        assert_eq!(cgroup.stats().unwrap(), crisp_cgroup::Stats::default());
    }
}

#[test]
fn an_oom_kill_is_counted() {
    let Some(cgroups) = with("memory") else { return };
    let top = Top::new(&cgroups);
    let resources =
        Resources { memory_limit_bytes: 15 << 20, memory_swap_limit_bytes: 15 << 20, ..Resources::default() };
    let cgroup = cgroups.create(&top.at("c"), &resources).unwrap();
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    let mut child = top.run(&cgroup, "exec dd if=/dev/zero of=/dev/null bs=20M count=1");
    assert_eq!(child.wait().unwrap().signal(), Some(SIGKILL));
    assert_eq!(cgroup.oom_kills().unwrap(), 1);
    let text = std::fs::read_to_string(cgroup.oom_file().unwrap()).unwrap();
    assert_eq!(crisp_cgroup::oom_kills_in(&text), Some(1));
}

#[test]
fn stats_of_a_busy_process() {
    let Some(cgroups) = with("memory") else { return };
    let top = Top::new(&cgroups);
    let resources = Resources { memory_limit_bytes: 256 << 20, ..Resources::default() };
    let cgroup = cgroups.create(&top.at("c"), &resources).unwrap();
    let mut child = top.run(&cgroup, "x=$(head -c 20000000 /dev/zero | tr '\\0' x); while :; do :; done");
    let stats = || cgroup.stats().unwrap();
    eventually("memory is used", || stats().memory.unwrap().rss > 20_000_000);
    eventually("it is done with it", || stats().pids == Some(1));
    eventually("the CPU is used", || stats().cpu.unwrap().usage_ns > 50_000_000);
    let seen = stats();
    let memory = seen.memory.unwrap();
    assert_eq!((seen.pids, memory.limit), (Some(1), Some(256 << 20)));
    assert!(memory.usage >= memory.working_set() && memory.page_faults > 1000, "{memory:?}");
    cgroup.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_refused_update_changes_nothing() {
    let Some(cgroups) = with("cpuset") else { return };
    let top = Top::new(&cgroups);
    let before =
        Resources { cpu_shares: 200, pids_max: 9, memory_limit_bytes: 64 << 20, ..Resources::default() };
    let cgroup = cgroups.create(&top.at("c"), &before).unwrap();
    let weight = if cgroups.version() == Version::V1 { "cpu.shares" } else { "cpu.weight" };
    // v2: a list that was empty is afterwards the one that was in force.
    let cpus = if cgroups.version() == Version::V1 { "cpuset.cpus" } else { "cpuset.cpus.effective" };
    let files = [weight, "pids.max", cpus];
    let read = || files.map(|file| top.read(&cgroup, file));
    let old = read();
    let mut child = top.run(&cgroup, "exec sleep 1000");
    eventually("the process joins", || cgroup.is_populated().unwrap());
    let too_many = Resources { cpu_shares: 900, pids_max: i64::MAX, ..Resources::default() };
    let no_node = Resources {
        cpu_shares: 900,
        cpuset_cpus: "0".into(),
        cpuset_mems: "63".into(),
        ..Resources::default()
    };
    for bad in [too_many, no_node] {
        let error = cgroup.update(&bad).unwrap_err();
        assert!(matches!(error, CgroupError::Write { .. }), "{error}");
        assert_eq!(read(), old);
    }
    cgroup.update(&Resources { cpu_shares: 900, pids_max: 10, ..Resources::default() }).unwrap();
    assert_ne!(read(), old);
    assert_eq!(top.read(&cgroup, "pids.max"), "10");
    cgroup.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn memory_limits_go_up_and_down() {
    let Some(cgroups) = with("memory") else { return };
    let top = Top::new(&cgroups);
    let limit = |bytes: i64| Resources { memory_limit_bytes: bytes, ..Resources::default() };
    let cgroup = cgroups.create(&top.at("c"), &limit(64 << 20)).unwrap();
    let file = if cgroups.version() == Version::V1 { "memory.limit_in_bytes" } else { "memory.max" };
    for bytes in [128 << 20, 32 << 20, 64 << 20] {
        cgroup.update(&limit(bytes)).unwrap();
        assert_eq!(top.read(&cgroup, file), bytes.to_string());
        if cgroups.version() == Version::V1 {
            assert_eq!(top.read(&cgroup, "memory.memsw.limit_in_bytes"), bytes.to_string());
        }
    }
    let both = Resources { memory_swap_limit_bytes: 200 << 20, ..limit(100 << 20) };
    cgroup.update(&both).unwrap();
    cgroup.update(&limit(-1)).unwrap();
    assert_eq!(cgroup.stats().unwrap().memory.unwrap().limit, None);
}

#[test]
fn a_memory_limit_below_usage_is_refused_with_the_number() {
    let Some(cgroups) = with("memory") else { return };
    let top = Top::new(&cgroups);
    let limit = |bytes: i64| Resources { memory_limit_bytes: bytes, ..Resources::default() };
    let cgroup = cgroups.create(&top.at("c"), &limit(256 << 20)).unwrap();
    let mut child = top.run(&cgroup, "x=$(head -c 40000000 /dev/zero | tr '\\0' x); sleep 1000");
    eventually("memory is used", || cgroup.stats().unwrap().memory.unwrap().rss > 40_000_000);
    let error = cgroup.update(&limit(8 << 20)).unwrap_err();
    assert!(
        matches!(error, CgroupError::BelowUsage { limit: 8_388_608, usage, .. } if usage > 40_000_000),
        "{error}"
    );
    assert_eq!(cgroup.stats().unwrap().memory.unwrap().limit, Some(256 << 20));
    assert!(child.try_wait().unwrap().is_none());
    cgroup.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_quota_changes_together_with_its_period() {
    let Some(cgroups) = with("cpu") else { return };
    let top = Top::new(&cgroups);
    let quota =
        |quota, period| Resources { cpu_quota_us: quota, cpu_period_us: period, ..Resources::default() };
    // The parent has half a CPU; the child may never claim more, not even between two writes.
    let _parent = cgroups.create(&top.at("p"), &quota(50_000, 100_000)).unwrap();
    let cgroup = cgroups.create(&top.at("p/c"), &quota(50_000, 100_000)).unwrap();
    for (us, period) in [(5_000, 10_000), (50_000, 100_000), (10_000, 20_000)] {
        cgroup.update(&quota(us, period)).unwrap();
        let got = match cgroups.version() {
            Version::V1 => format!(
                "{} {}",
                top.read(&cgroup, "cpu.cfs_quota_us"),
                top.read(&cgroup, "cpu.cfs_period_us")
            ),
            Version::V2 => top.read(&cgroup, "cpu.max"),
        };
        assert_eq!(got, format!("{us} {period}"));
    }
}
