use std::collections::BTreeSet;

use crisp_cgroup::{CpuStats, DeviceIo, HugePages, IoCounts, MemoryStats, Psi, PsiLine, Stats};
use crisp_network::InterfaceStats;
use crisp_spec::Resources;

use super::table::Of;
use super::*;

/// Rows that may have no sample for a container or pod of which nothing is known.
const MAY_BE_ABSENT: [&str; 12] = [
    "container_hugetlb_max_usage_bytes",
    "container_hugetlb_usage_bytes",
    "container_pressure_cpu_stalled_seconds_total",
    "container_pressure_cpu_waiting_seconds_total",
    "container_pressure_io_stalled_seconds_total",
    "container_pressure_io_waiting_seconds_total",
    "container_pressure_memory_stalled_seconds_total",
    "container_pressure_memory_waiting_seconds_total",
    "container_spec_cpu_quota",
    "container_spec_memory_reservation_limit_bytes",
    "container_ulimits_soft",
    // Of a pod on the host's network.
    "container_network_",
];

fn base() -> Labels {
    BASE_LABELS.map(str::to_owned)
}

fn facts(level: Level, stats: Stats) -> Facts {
    Facts::new(level, stats, &Kept::default(), &Disk { device: "/dev/x".into(), ..Disk::default() })
}

fn psi(total_ns: u64) -> Psi {
    Psi { some: PsiLine { total_ns, ..PsiLine::default() }, full: PsiLine::default() }
}

/// `many` devices, interfaces and page sizes.
fn full(level: Level, many: u32) -> Facts {
    let stats = Stats {
        cpu: Some(CpuStats { usage_ns: 7_900_000_000, psi: Some(psi(3_000_000_000)), ..CpuStats::default() }),
        memory: Some(MemoryStats {
            usage: 100,
            inactive_file: 30,
            psi: Some(psi(0)),
            ..MemoryStats::default()
        }),
        io_psi: Some(psi(0)),
        io: (0..many)
            .map(|minor| DeviceIo {
                major: 4000,
                minor,
                bytes: IoCounts { read: 5, write: 6, sync: Some(1), ..IoCounts::default() },
                ..DeviceIo::default()
            })
            .collect(),
        huge_pages: (0..many)
            .map(|size| HugePages { size: format!("{size}MB"), ..HugePages::default() })
            .collect(),
        ..Stats::default()
    };
    let link = |n| InterfaceStats { name: format!("eth{n}"), rx_bytes: 8, ..InterfaceStats::default() };
    Facts {
        links: (0..many).map(link).collect(),
        processes: processes::Processes { open_files_max: Some(1024), threads: 3, ..Default::default() },
        limits: Resources {
            cpu_quota_us: Some(20_000),
            memory_limit_bytes: Some(-1),
            unified: [("memory.low".to_owned(), "4096\n".to_owned())].into(),
            ..Resources::default()
        },
        ..facts(level, stats)
    }
}

#[test]
fn the_descriptors_are_complete() {
    let names: BTreeSet<&str> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!((names.len(), ROWS.len()), (56, 56));
    for descriptor in descriptors() {
        assert!(!descriptor.help.is_empty(), "{descriptor:?}");
        assert_eq!(descriptor.label_keys[..BASE_LABELS.len()], BASE_LABELS);
        let keys: BTreeSet<&String> = descriptor.label_keys.iter().collect();
        assert_eq!(keys.len(), descriptor.label_keys.len(), "{descriptor:?}");
    }
}

#[test]
fn every_sample_has_a_value_for_each_label_and_comes_once() {
    let described: std::collections::HashMap<_, _> =
        descriptors().into_iter().map(|descriptor| (descriptor.name, descriptor.label_keys)).collect();
    for level in [Level::Pod, Level::Container] {
        for facts in (0..4).map(|many| full(level, many)).chain([facts(level, Stats::default())]) {
            let metrics = samples(&facts, &base());
            let mut seen = BTreeSet::new();
            for metric in &metrics {
                assert_eq!(metric.label_values.len(), described[&metric.name].len(), "{metric:?}");
                assert!(seen.insert((&metric.name, &metric.label_values)), "twice: {metric:?}");
            }
        }
    }
}

#[test]
fn what_is_not_known_is_zero_or_may_be_absent() {
    for level in [Level::Pod, Level::Container] {
        let told = samples(&facts(level, Stats::default()), &base());
        for row in ROWS.iter().filter(|row| row.of.includes(level)) {
            let absent = !told.iter().any(|metric| metric.name == row.name);
            let may = MAY_BE_ABSENT.iter().any(|name| row.name.starts_with(name));
            assert!(!absent || may, "{level:?} {}", row.name);
        }
    }
    let told = samples(&full(Level::Container, 1), &base());
    let all = ROWS.iter().filter(|row| row.of != Of::Pods);
    for row in all {
        assert!(told.iter().any(|metric| metric.name == row.name), "{}", row.name);
    }
}

#[test]
fn values_are_those_of_the_facts() {
    let told = samples(&full(Level::Container, 1), &base());
    let value = |name: &str, own: &[&str]| {
        let found = told.iter().find(|metric| {
            metric.name == name && metric.label_values[BASE_LABELS.len()..].iter().eq(own.iter())
        });
        found.unwrap_or_else(|| panic!("{name} {own:?}")).value.unwrap().value
    };
    assert_eq!(value("container_cpu_usage_seconds_total", &["total"]), 7);
    assert_eq!(value("container_memory_working_set_bytes", &[]), 70);
    assert_eq!(value("container_pressure_cpu_waiting_seconds_total", &[]), 3);
    assert_eq!(value("container_threads", &[]), 3);
    assert_eq!(value("container_spec_cpu_quota", &[]), 20_000);
    assert_eq!(value("container_spec_cpu_period", &[]), 100_000);
    assert_eq!(value("container_spec_memory_limit_bytes", &[]), 0);
    assert_eq!(value("container_spec_memory_reservation_limit_bytes", &[]), 4096);
    assert_eq!(value("container_blkio_device_usage_total", &["4000:0", "4000", "0", "Total"]), 11);
    assert_eq!(value("container_blkio_device_usage_total", &["4000:0", "4000", "0", "Sync"]), 1);
    assert_eq!(value("container_fs_reads_total", &["/dev/x"]), 0);
    assert_eq!(value("container_ulimits_soft", &["max_open_files"]), 1024);
}

#[test]
fn interfaces_belong_to_pods() {
    let named = |level| {
        let told = samples(&full(level, 2), &base());
        told.iter().filter(|metric| metric.name == "container_network_receive_bytes_total").count()
    };
    assert_eq!((named(Level::Pod), named(Level::Container)), (2, 0));
}
