use std::fs;
use std::path::Path;

use super::*;
use crate::{CgroupPath, Cgroups};

fn put(dir: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    files.iter().for_each(|(name, text)| fs::write(dir.join(name), text).unwrap());
}

fn psi(total_ns: u64) -> PsiLine {
    PsiLine { avg10: 1.5, avg60: 0.25, avg300: 0.01, total_ns }
}

#[test]
fn v2_files_become_stats() {
    let tmp = tempfile::tempdir().unwrap();
    put(tmp.path(), &[("cgroup.controllers", "cpu io memory pids\n")]);
    let pressure =
        "some avg10=1.50 avg60=0.25 avg300=0.01 total=7\nfull avg10=1.50 avg60=0.25 avg300=0.01 total=3\n";
    put(
        &tmp.path().join("pod/c"),
        &[
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 2\nthrottled_usec 9\n",
            ),
            ("cpu.pressure", pressure),
            ("memory.current", "1000\n"),
            ("memory.max", "4096\n"),
            (
                "memory.stat",
                "anon 600\nfile 300\nfile_mapped 20\ninactive_file 200\nworkingset 9\npgfault 11\npgmajfault 3\n",
            ),
            ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n"),
            ("memory.swap.current", "50\n"),
            ("memory.swap.max", "80\n"),
            ("memory.pressure", pressure),
            ("io.pressure", pressure),
            ("pids.current", "5\n"),
        ],
    );
    let cgroups = Cgroups::v2_at(tmp.path()).unwrap();
    let cgroup = cgroups.open(&CgroupPath::new("/pod/c").unwrap());
    let (some, full) = (psi(7000), psi(3000));
    let pressure = Some(Psi { some, full });
    let want = Stats {
        cpu: Some(CpuStats {
            usage_ns: 1_500_000,
            user_ns: Some(1_000_000),
            system_ns: Some(500_000),
            periods: Some(4),
            throttled_periods: Some(2),
            throttled_ns: Some(9000),
            psi: pressure.clone(),
        }),
        memory: Some(MemoryStats {
            usage: 1000,
            limit: Some(4096),
            inactive_file: 200,
            rss: 600,
            page_faults: 11,
            major_page_faults: 3,
            cache: 300,
            mapped_file: 20,
            oom_kills: Some(1),
            psi: pressure.clone(),
        }),
        swap: Some(SwapStats { usage: 50, available: Some(30) }),
        pids: Some(5),
        io_psi: pressure,
    };
    let got = cgroup.stats().unwrap();
    assert_eq!(got, want);
    let memory = got.memory.unwrap();
    assert_eq!((memory.working_set(), memory.available()), (800, Some(3296)));
    assert_eq!((cgroup.cpu_usage_ns().unwrap(), cgroup.oom_kills().unwrap()), (Some(1_500_000), 1));
}

#[test]
fn v1_files_become_stats() {
    let tmp = tempfile::tempdir().unwrap();
    put(
        &tmp.path().join("cpu,cpuacct/c"),
        &[
            ("cpuacct.usage", "1500000\n"),
            ("cpuacct.stat", "user 3\nsystem 1\n"),
            ("cpu.stat", "nr_periods 4\nnr_throttled 2\nthrottled_time 9\n"),
        ],
    );
    put(
        &tmp.path().join("memory/c"),
        &[
            ("memory.usage_in_bytes", "1000\n"),
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            (
                "memory.stat",
                "inactive_file 1\nrss 2\ntotal_rss 600\ntotal_cache 300\ntotal_inactive_file 1200\ntotal_pgfault 11\n",
            ),
            ("memory.memsw.usage_in_bytes", "900\n"),
            ("memory.memsw.limit_in_bytes", "9223372036854771712\n"),
            ("memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
        ],
    );
    let mounts = [("cpu,cpuacct", vec!["cpu", "cpuacct"]), ("memory", vec!["memory"])];
    let mounts =
        mounts.map(|(dir, names)| (tmp.path().join(dir), names.into_iter().map(str::to_owned).collect()));
    let cgroup = Cgroups::v1_at(mounts.into()).unwrap().open(&CgroupPath::new("/c").unwrap());
    let got = cgroup.stats().unwrap();
    let memory = got.memory.unwrap();
    assert_eq!(
        (memory.rss, memory.working_set(), memory.available(), memory.oom_kills),
        (600, 0, None, Some(3))
    );
    assert_eq!(got.swap, Some(SwapStats { usage: 0, available: None }));
    assert_eq!(got.cpu.unwrap().user_ns, Some(30_000_000));
    assert_eq!(
        (got.pids, cgroup.cpu_usage_ns().unwrap(), cgroup.oom_kills().unwrap()),
        (None, Some(1_500_000), 3)
    );
}

#[test]
fn a_cgroup_that_is_gone_has_no_stats_and_garbage_is_an_error() {
    let tmp = tempfile::tempdir().unwrap();
    put(tmp.path(), &[("cgroup.controllers", "cpu memory pids\n")]);
    let cgroups = Cgroups::v2_at(tmp.path()).unwrap();
    let cgroup = cgroups.open(&CgroupPath::new("/c").unwrap());
    assert_eq!(cgroup.stats().unwrap(), Stats::default());
    assert_eq!(cgroup.oom_kills().unwrap(), 0);
    put(&tmp.path().join("c"), &[("memory.current", "lots\n")]);
    let error = cgroup.stats().unwrap_err();
    assert!(matches!(&error, crate::CgroupError::Parse { text, .. } if text == "lots\n"), "{error}");
}

#[test]
fn pressure_of_older_kernels_and_garbage() {
    let old = parse_psi("some avg10=1.50 avg60=0.25 avg300=0.01 total=7\n").unwrap();
    assert_eq!((old.some, old.full), (psi(7000), PsiLine::default()));
    assert_eq!((parse_psi(""), parse_psi("some avg10=x avg60=0 avg300=0 total=1")), (None, None));
}

#[test]
fn keys_are_matched_whole() {
    let text = "oom 5\noom_kill 2\noom_group_kill 7\n";
    assert_eq!(
        (value_of(text, "oom"), oom_kills_in(text), value_of(text, "oom_gr")),
        (Some(5), Some(2), None)
    );
}
