use super::*;

fn written(version: Version, resources: &Resources, current: &Current) -> Vec<String> {
    let settings = settings(version, resources, current).unwrap();
    settings.iter().map(|setting| format!("{}={}", setting.file, setting.value)).collect()
}

fn live(quota_us: Option<u64>, memory: Option<u64>, memory_and_swap: Option<u64>) -> Current {
    Current::Live { quota_us, memory, memory_and_swap }
}

#[test]
fn shares_become_the_weights_of_current_oci_runtimes() {
    // The ends, both defaults, and values worked out by hand from the curve.
    let table =
        [(0, 0), (1, 1), (2, 1), (100, 17), (1024, 100), (4096, 303), (262_144, 10_000), (u64::MAX, 10_000)];
    for (shares, weight) in table {
        assert_eq!(weight_of_shares(shares), weight, "{shares}");
    }
    let weights: Vec<u64> = (0..=262_144).step_by(31).map(weight_of_shares).collect();
    assert!(weights.is_sorted());
}

#[test]
fn nothing_asked_is_nothing_written() {
    for version in [Version::V1, Version::V2] {
        assert!(written(version, &Resources::default(), &Current::Fresh).is_empty());
    }
}

#[test]
fn a_typical_container_on_both_versions() {
    let resources = Resources {
        cpu_shares: 512,
        cpu_quota_us: 50_000,
        cpu_period_us: 100_000,
        cpuset_cpus: "0-1".into(),
        memory_limit_bytes: 1 << 20,
        hugepages: vec![("2MB".into(), 0)],
        pids_max: 100,
        ..Resources::default()
    };
    let v1 = "cpu.shares=512 cpu.cfs_period_us=100000 cpu.cfs_quota_us=50000 memory.limit_in_bytes=1048576 \
        memory.memsw.limit_in_bytes=1048576 pids.max=100 hugetlb.2MB.limit_in_bytes=0 cpuset.cpus=0-1";
    let v2 = "cpu.weight=59 cpu.max=50000 100000 memory.swap.max=0 memory.max=1048576 pids.max=100 hugetlb.2MB.max=0 cpuset.cpus=0-1";
    assert_eq!(written(Version::V1, &resources, &Current::Fresh).join(" "), v1);
    assert_eq!(written(Version::V2, &resources, &Current::Fresh).join(" "), v2);
}

#[test]
fn cpu_max_follows_what_is_given() {
    let table = [
        (-1, 0, Current::Fresh, "cpu.max=max"),
        (5000, 0, Current::Fresh, "cpu.max=5000"),
        (0, 20_000, Current::Fresh, "cpu.max=max 20000"),
        (0, 20_000, live(Some(7000), None, None), "cpu.max=7000 20000"),
        (-1, 20_000, live(Some(7000), None, None), "cpu.max=max 20000"),
    ];
    for (cpu_quota_us, cpu_period_us, current, want) in table {
        let resources = Resources { cpu_quota_us, cpu_period_us, ..Resources::default() };
        assert_eq!(written(Version::V2, &resources, &current), [want]);
    }
}

#[test]
fn swap_follows_the_memory_limit() {
    // (memory, memory + swap, current) → v1, v2
    type Row<'a> = (i64, i64, Current, &'a [&'a str], &'a [&'a str]);
    let table: [Row<'_>; 9] = [
        (100, 0, Current::Fresh, &["100", "t100"], &["s0", "100"]),
        (100, 100, Current::Fresh, &["100", "t100"], &["s0", "100"]),
        (100, 150, Current::Fresh, &["100", "t150"], &["s50", "100"]),
        (100, -1, Current::Fresh, &["100", "t-1"], &["smax", "100"]),
        (-1, 0, Current::Fresh, &["-1", "t-1"], &["max"]),
        (0, 150, live(None, Some(100), Some(100)), &["t150"], &["s50"]),
        (200, 0, live(None, Some(100), Some(130)), &["200", "t230"], &["200"]),
        (200, 0, live(None, Some(100), None), &["200"], &["200"]),
        (200, 250, live(None, Some(100), Some(130)), &["200", "t250"], &["s50", "200"]),
    ];
    let short = |text: String| {
        let pairs = [
            ("memory.limit_in_bytes=", ""),
            ("memory.memsw.limit_in_bytes=", "t"),
            ("memory.max=", ""),
            ("memory.swap.max=", "s"),
        ];
        pairs.iter().fold(text, |text, (from, to)| text.replace(from, to))
    };
    for (memory, swap, current, v1, v2) in table {
        let resources =
            Resources { memory_limit_bytes: memory, memory_swap_limit_bytes: swap, ..Resources::default() };
        let of = |version| written(version, &resources, &current).into_iter().map(short).collect::<Vec<_>>();
        assert_eq!(
            (of(Version::V1), of(Version::V2)),
            (to_vec(v1), to_vec(v2)),
            "{memory} {swap} {current:?}"
        );
    }
}

fn to_vec(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn values_without_meaning_are_refused() {
    let unified =
        |key: &str| Resources { unified: [(key.to_owned(), "1".to_owned())].into(), ..Resources::default() };
    let both = [
        Resources { memory_limit_bytes: -2, ..Resources::default() },
        Resources { cpu_quota_us: -5, ..Resources::default() },
        Resources { pids_max: -3, ..Resources::default() },
        Resources { cpuset_cpus: "0\n1".into(), ..Resources::default() },
        Resources { cpuset_mems: "all".into(), ..Resources::default() },
        Resources { memory_limit_bytes: 100, memory_swap_limit_bytes: 50, ..Resources::default() },
        Resources { memory_swap_limit_bytes: 50, ..Resources::default() },
        Resources { hugepages: vec![("../x".into(), 0)], ..Resources::default() },
        Resources { hugepages: vec![("2MB.max/".into(), 0)], ..Resources::default() },
        unified("cgroup.procs"),
        unified("../memory.max"),
        unified("a/memory.max"),
        unified("memory..max"),
        unified("memory"),
        unified(""),
        unified("memory.\nmax"),
    ];
    for resources in both {
        for version in [Version::V1, Version::V2] {
            let error = settings(version, &resources, &Current::Fresh).unwrap_err();
            assert_eq!(error.kind(), crisp_domain::ErrorKind::Invalid, "{resources:?}");
        }
    }
    assert!(settings(Version::V1, &unified("memory.high"), &Current::Fresh).is_err());
    assert_eq!(written(Version::V2, &unified("memory.high"), &Current::Fresh), ["memory.high=1"]);
}

#[test]
fn a_unified_value_is_written_line_by_line() {
    let unified = [("io.max".to_owned(), "8:0 rbps=1\n8:16 wbps=2\n".to_owned())].into();
    let resources = Resources { unified, ..Resources::default() };
    assert_eq!(
        written(Version::V2, &resources, &Current::Fresh),
        ["io.max=8:0 rbps=1", "io.max=8:16 wbps=2"]
    );
}

#[test]
fn limit_files_are_understood() {
    assert_eq!(parse_cpu_max("max 100000\n"), Some((None, 100_000)));
    assert_eq!(parse_cpu_max("5000 20000\n"), Some((Some(5000), 20_000)));
    assert_eq!((parse_cpu_max(""), parse_cpu_max("x 1")), (None, None));
    let table = [
        ("max\n", Some(None)),
        ("-1", Some(None)),
        ("9223372036854771712\n", Some(None)),
        ("4096\n", Some(Some(4096))),
        ("x", None),
    ];
    for (text, want) in table {
        assert_eq!(parse_limit(text), want, "{text:?}");
    }
}
