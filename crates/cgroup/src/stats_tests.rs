use std::fs;
use std::path::Path;

use super::parse::{Counts, add_blkio, parse_io_stat, parse_psi, value_of};
use super::*;
use crate::{CgroupPath, Cgroups};

fn put(dir: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(dir).unwrap();
    files.iter().for_each(|(name, text)| fs::write(dir.join(name), text).unwrap());
}

fn psi(total_ns: u64) -> PsiLine {
    PsiLine { avg10: 1.5, avg60: 0.25, avg300: 0.01, total_ns }
}

const PRESSURE: &str =
    "some avg10=1.50 avg60=0.25 avg300=0.01 total=7\nfull avg10=1.50 avg60=0.25 avg300=0.01 total=3\n";

const V2_FILES: [(&str, &str); 17] = [
    (
        "cpu.stat",
        "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 4\nnr_throttled 2\nthrottled_usec 9\n",
    ),
    ("cpu.pressure", PRESSURE),
    ("memory.current", "1000\n"),
    ("memory.max", "4096\n"),
    (
        "memory.stat",
        "anon 600\nfile 300\nkernel 70\nkernel_stack 9\nfile_mapped 20\ninactive_file 200\nactive_file 90\nworkingset 9\npgfault 11\npgmajfault 3\n",
    ),
    ("memory.peak", "2000\n"),
    ("pids.max", "100\n"),
    ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=9\n7:1 \n"),
    ("hugetlb.2MB.current", "2097152\n"),
    ("hugetlb.2MB.rsvd.current", "7\n"),
    ("hugetlb.1GB.current", "0\n"),
    ("memory.events", "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n"),
    ("memory.swap.current", "50\n"),
    ("memory.swap.max", "80\n"),
    ("memory.pressure", PRESSURE),
    ("io.pressure", PRESSURE),
    ("pids.current", "5\n"),
];

#[test]
fn v2_files_become_stats() {
    let tmp = tempfile::tempdir().unwrap();
    put(tmp.path(), &[("cgroup.controllers", "cpu io memory pids hugetlb\n")]);
    put(&tmp.path().join("pod/c"), &V2_FILES);
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
            active_file: 90,
            max_usage: Some(2000),
            limit_hits: Some(3),
            kernel: Some(70),
            oom_kills: Some(1),
            psi: pressure.clone(),
        }),
        swap: Some(SwapStats { usage: 50, available: Some(30) }),
        pids: Some(5),
        pids_max: Some(100),
        io_psi: pressure,
        io: vec![
            DeviceIo {
                major: 8,
                minor: 0,
                bytes: IoCounts { read: 1, write: 2, discard: 5, ..IoCounts::default() },
                requests: IoCounts { read: 3, write: 4, discard: 6, ..IoCounts::default() },
            },
            DeviceIo { major: 7, minor: 1, ..DeviceIo::default() },
        ],
        huge_pages: vec![
            HugePages { size: "1GB".into(), usage: 0, max_usage: None },
            HugePages { size: "2MB".into(), usage: 2 << 20, max_usage: None },
        ],
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
            ("memory.max_usage_in_bytes", "5000\n"),
            ("memory.failcnt", "4\n"),
            ("memory.kmem.usage_in_bytes", "60\n"),
        ],
    );
    put(
        &tmp.path().join("blkio/c"),
        &[
            ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\nTotal 3\n"),
            ("blkio.throttle.io_service_bytes", "8:0 Read 0\n"),
            ("blkio.throttle.io_serviced", "8:0 Read 7\n8:0 Async 1\n"),
        ],
    );
    put(
        &tmp.path().join("hugetlb/c"),
        &[("hugetlb.2MB.usage_in_bytes", "0\n"), ("hugetlb.2MB.max_usage_in_bytes", "2097152\n")],
    );
    let mounts = [
        ("cpu,cpuacct", vec!["cpu", "cpuacct"]),
        ("memory", vec!["memory"]),
        ("blkio", vec!["blkio"]),
        ("hugetlb", vec!["hugetlb"]),
    ];
    let mounts =
        mounts.map(|(dir, names)| (tmp.path().join(dir), names.into_iter().map(str::to_owned).collect()));
    let cgroup = Cgroups::v1_at(mounts.into()).unwrap().open(&CgroupPath::new("/c").unwrap());
    let got = cgroup.stats().unwrap();
    let memory = got.memory.unwrap();
    assert_eq!(
        (memory.rss, memory.working_set(), memory.available(), memory.oom_kills),
        (600, 0, None, Some(3))
    );
    assert_eq!((memory.max_usage, memory.limit_hits, memory.kernel), (Some(5000), Some(4), Some(60)));
    assert_eq!(got.swap, Some(SwapStats { usage: 0, available: None }));
    let bytes = IoCounts { read: 1, write: 2, sync: Some(3), ..IoCounts::default() };
    let requests = IoCounts { read: 7, asynchronous: Some(1), ..IoCounts::default() };
    assert_eq!(got.io, [DeviceIo { major: 8, minor: 0, bytes, requests }]);
    assert_eq!(got.huge_pages, [HugePages { size: "2MB".into(), usage: 0, max_usage: Some(2 << 20) }]);
    assert_eq!(got.cpu.unwrap().user_ns, Some(30_000_000));
    assert_eq!(
        (got.pids, cgroup.cpu_usage_ns().unwrap(), cgroup.oom_kills().unwrap()),
        (None, Some(1_500_000), 3)
    );
}

#[test]
fn usage_is_a_part_of_the_stats() {
    let tmp = tempfile::tempdir().unwrap();
    put(tmp.path(), &[("cgroup.controllers", "cpu memory pids\n")]);
    put(
        &tmp.path().join("c"),
        &[("memory.current", "10\n"), ("memory.peak", "20\n"), ("pids.current", "1\n"), ("pids.max", "9\n")],
    );
    let cgroup = Cgroups::v2_at(tmp.path()).unwrap().open(&CgroupPath::new("/c").unwrap());
    let (usage, stats) = (cgroup.usage().unwrap(), cgroup.stats().unwrap());
    assert_eq!((usage.pids, usage.pids_max, stats.pids_max), (Some(1), None, Some(9)));
    let peak = |stats: &Stats| stats.memory.as_ref().unwrap().max_usage;
    assert_eq!((peak(&usage), peak(&stats)), (None, Some(20)));
}

#[test]
fn a_file_longer_than_the_buffer_is_read_whole() {
    let tmp = tempfile::tempdir().unwrap();
    put(tmp.path(), &[("cgroup.controllers", "memory\n")]);
    let filler = "filler 1\n".repeat(5000);
    put(&tmp.path().join("c"), &[("memory.current", "10\n"), ("memory.stat", &format!("{filler}anon 7\n"))]);
    let cgroup = Cgroups::v2_at(tmp.path()).unwrap().open(&CgroupPath::new("/c").unwrap());
    assert_eq!(cgroup.usage().unwrap().memory.unwrap().rss, 7);
}

#[test]
fn devices_are_bounded_and_odd_lines_are_passed_over() {
    let text: String = (0..1000).map(|minor| format!("8:{minor} rbytes=1 wbytes=x\n")).collect();
    let devices = parse_io_stat(&text);
    assert_eq!((devices.len(), devices[0].bytes), (DEVICES_MAX, IoCounts { read: 1, ..IoCounts::default() }));
    for text in ["", "8:0\n", "garbage", "8 rbytes=1", "x:y Read 1\n8:0 Read\n8:0 Read -1\n"] {
        let mut devices = parse_io_stat(text);
        add_blkio(&mut devices, text, Counts::Bytes);
        assert!(devices.iter().all(|device| device.bytes == IoCounts::default()), "{text:?}");
    }
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
