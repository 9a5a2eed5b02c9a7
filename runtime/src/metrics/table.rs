//! The table of metrics. Pure.

use crisp_cgroup::{DeviceIo, IoCounts, MemoryStats, Psi, PsiLine, Stats};
use crisp_network::InterfaceStats;
use crisp_proto::cri::MetricType;

use super::facts::{Facts, Level};

const NANOS_PER_SECOND: u64 = 1_000_000_000;
/// Period and shares that the kernel gives a cgroup for which none are set.
const CPU_PERIOD_DEFAULT_US: u64 = 100_000;
const CPU_SHARES_DEFAULT: u64 = 1024;

/// One metric.
pub(super) struct Row {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) kind: MetricType,
    /// Keys that follow the base labels.
    pub(super) labels: &'static [&'static str],
    pub(super) of: Of,
    /// Adds the samples, each with a value for each of `labels`.
    pub(super) read: fn(&Facts, &mut Samples),
}

/// Who has the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Of {
    Both,
    Pods,
    Containers,
}

impl Of {
    pub(super) fn includes(self, level: Level) -> bool {
        match (self, level) {
            (Self::Both, Level::Pod | Level::Container)
            | (Self::Pods, Level::Pod)
            | (Self::Containers, Level::Container) => true,
            (Self::Pods, Level::Container) | (Self::Containers, Level::Pod) => false,
        }
    }
}

/// Values of the row's own labels, and the value.
#[derive(Debug, Default)]
pub(super) struct Samples(pub(super) Vec<(Vec<String>, u64)>);

impl Samples {
    fn one(&mut self, value: u64) {
        self.0.push((Vec::new(), value));
    }

    fn labelled<const N: usize>(&mut self, labels: [&str; N], value: u64) {
        self.0.push((labels.map(str::to_owned).into(), value));
    }

    /// For what may be absent altogether.
    fn maybe(&mut self, value: Option<u64>) {
        self.0.extend(value.map(|value| (Vec::new(), value)));
    }
}

const fn row(
    kind: MetricType,
    name: &'static str,
    help: &'static str,
    read: fn(&Facts, &mut Samples),
) -> Row {
    Row { name, help, kind, labels: &[], of: Of::Both, read }
}

const fn counter(name: &'static str, help: &'static str, read: fn(&Facts, &mut Samples)) -> Row {
    row(MetricType::Counter, name, help, read)
}

const fn gauge(name: &'static str, help: &'static str, read: fn(&Facts, &mut Samples)) -> Row {
    row(MetricType::Gauge, name, help, read)
}

impl Row {
    const fn by(self, labels: &'static [&'static str]) -> Self {
        Self { labels, ..self }
    }

    const fn of(self, of: Of) -> Self {
        Self { of, ..self }
    }
}

/// All metrics. Those that may have no sample: network (a pod on the host's network), huge pages, pressure, the quota, the reservation
/// and the limit of open files.
pub(super) static ROWS: &[Row] = &[
    counter("container_cpu_usage_seconds_total", "CPU time used", |facts, samples| {
        samples.labelled(["total"], cpu_seconds(facts, |cpu| Some(cpu.usage_ns)));
    })
    .by(&["cpu"]),
    counter("container_cpu_user_seconds_total", "CPU time used in user mode", |facts, samples| {
        samples.one(cpu_seconds(facts, |cpu| cpu.user_ns));
    }),
    counter("container_cpu_system_seconds_total", "CPU time used in the kernel", |facts, samples| {
        samples.one(cpu_seconds(facts, |cpu| cpu.system_ns));
    }),
    counter("container_cpu_cfs_periods_total", "Periods of CPU quota that passed", |facts, samples| {
        samples.one(cpu(facts, |cpu| cpu.periods));
    }),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the CPU quota ran out",
        |facts, samples| samples.one(cpu(facts, |cpu| cpu.throttled_periods)),
    ),
    counter(
        "container_cpu_cfs_throttled_seconds_total",
        "Time spent waiting for CPU quota",
        |facts, samples| samples.one(cpu_seconds(facts, |cpu| cpu.throttled_ns)),
    ),
    gauge("container_memory_usage_bytes", "Memory charged, with page cache", |facts, samples| {
        samples.one(memory(facts, |memory| memory.usage));
    }),
    gauge("container_memory_working_set_bytes", "Memory that cannot be dropped at once", |facts, samples| {
        samples.one(memory(facts, MemoryStats::working_set));
    }),
    gauge("container_memory_rss", "Anonymous memory", |facts, samples| {
        samples.one(memory(facts, |memory| memory.rss));
    }),
    gauge("container_memory_cache", "Page cache", |facts, samples| {
        samples.one(memory(facts, |memory| memory.cache));
    }),
    gauge("container_memory_mapped_file", "Mapped files", |facts, samples| {
        samples.one(memory(facts, |memory| memory.mapped_file));
    }),
    gauge("container_memory_swap", "Memory swapped out", |facts, samples| {
        samples.one(facts.stats.swap.as_ref().map_or(0, |swap| swap.usage));
    }),
    gauge("container_memory_kernel_usage", "Kernel memory", |facts, samples| {
        samples.one(memory(facts, |memory| memory.kernel.unwrap_or(0)));
    }),
    gauge("container_memory_max_usage_bytes", "The most memory ever charged", |facts, samples| {
        samples.one(memory(facts, |memory| memory.max_usage.unwrap_or(memory.usage)));
    }),
    counter("container_memory_failcnt", "How often the memory limit was met", |facts, samples| {
        samples.one(memory(facts, |memory| memory.limit_hits.unwrap_or(0)));
    }),
    counter("container_memory_failures_total", "Page faults", page_faults).by(&["failure_type", "scope"]),
    counter("container_oom_events_total", "Processes killed for memory", |facts, samples| {
        samples.one(memory(facts, |memory| memory.oom_kills.unwrap_or(0)));
    }),
    counter("container_network_receive_bytes_total", "Bytes received", |facts, samples| {
        links(facts, samples, |link| link.rx_bytes);
    })
    .by(&["interface"])
    .of(Of::Pods),
    counter("container_network_receive_packets_total", "Packets received", |facts, samples| {
        links(facts, samples, |link| link.rx_packets);
    })
    .by(&["interface"])
    .of(Of::Pods),
    counter(
        "container_network_receive_packets_dropped_total",
        "Received packets dropped",
        |facts, samples| links(facts, samples, |link| link.rx_dropped),
    )
    .by(&["interface"])
    .of(Of::Pods),
    counter("container_network_receive_errors_total", "Errors in receiving", |facts, samples| {
        links(facts, samples, |link| link.rx_errors);
    })
    .by(&["interface"])
    .of(Of::Pods),
    counter("container_network_transmit_bytes_total", "Bytes sent", |facts, samples| {
        links(facts, samples, |link| link.tx_bytes);
    })
    .by(&["interface"])
    .of(Of::Pods),
    counter("container_network_transmit_packets_total", "Packets sent", |facts, samples| {
        links(facts, samples, |link| link.tx_packets);
    })
    .by(&["interface"])
    .of(Of::Pods),
    counter(
        "container_network_transmit_packets_dropped_total",
        "Packets to be sent dropped",
        |facts, samples| links(facts, samples, |link| link.tx_dropped),
    )
    .by(&["interface"])
    .of(Of::Pods),
    counter("container_network_transmit_errors_total", "Errors in sending", |facts, samples| {
        links(facts, samples, |link| link.tx_errors);
    })
    .by(&["interface"])
    .of(Of::Pods),
    gauge("container_fs_usage_bytes", "What the writable layer occupies", |facts, samples| {
        samples.labelled([&facts.disk.device], facts.layer_bytes);
    })
    .by(&["device"])
    .of(Of::Containers),
    gauge("container_fs_limit_bytes", "Size of the writable layer's file system", |facts, samples| {
        samples.labelled([&facts.disk.device], facts.disk.bytes);
    })
    .by(&["device"])
    .of(Of::Containers),
    gauge("container_fs_inodes_total", "Inodes of the writable layer's file system", |facts, samples| {
        samples.labelled([&facts.disk.device], facts.disk.inodes);
    })
    .by(&["device"])
    .of(Of::Containers),
    gauge("container_fs_inodes_free", "Free inodes of the writable layer's file system", |facts, samples| {
        samples.labelled([&facts.disk.device], facts.disk.inodes_free);
    })
    .by(&["device"])
    .of(Of::Containers),
    counter("container_fs_reads_total", "Reads completed", |facts, samples| {
        devices(facts, samples, |io| io.requests.read);
    })
    .by(&["device"]),
    counter("container_fs_writes_total", "Writes completed", |facts, samples| {
        devices(facts, samples, |io| io.requests.write);
    })
    .by(&["device"]),
    counter("container_fs_reads_bytes_total", "Bytes read", |facts, samples| {
        devices(facts, samples, |io| io.bytes.read);
    })
    .by(&["device"]),
    counter("container_fs_writes_bytes_total", "Bytes written", |facts, samples| {
        devices(facts, samples, |io| io.bytes.write);
    })
    .by(&["device"]),
    counter("container_blkio_device_usage_total", "Bytes by kind of I/O", block_io).by(&[
        "device",
        "major",
        "minor",
        "operation",
    ]),
    gauge("container_processes", "Processes", |facts, samples| samples.one(facts.processes.count))
        .of(Of::Containers),
    gauge("container_threads", "Threads", |facts, samples| {
        samples.one(facts.stats.pids.unwrap_or(facts.processes.threads));
    })
    .of(Of::Containers),
    gauge("container_threads_max", "Most threads there may be, 0 for no limit", |facts, samples| {
        samples.one(facts.stats.pids_max.unwrap_or(0));
    })
    .of(Of::Containers),
    gauge("container_file_descriptors", "Open descriptors", |facts, samples| {
        samples.one(facts.processes.descriptors);
    })
    .of(Of::Containers),
    gauge("container_sockets", "Open sockets", |facts, samples| samples.one(facts.processes.sockets))
        .of(Of::Containers),
    gauge("container_ulimits_soft", "Soft limits of the first process", |facts, samples| {
        if let Some(most) = facts.processes.open_files_max {
            samples.labelled(["max_open_files"], most);
        }
    })
    .by(&["ulimit"])
    .of(Of::Containers),
    gauge("container_hugetlb_usage_bytes", "Huge pages in use", |facts, samples| {
        for pages in &facts.stats.huge_pages {
            samples.labelled([&pages.size], pages.usage);
        }
    })
    .by(&["pagesize"]),
    gauge("container_hugetlb_max_usage_bytes", "The most huge pages ever in use", |facts, samples| {
        for pages in &facts.stats.huge_pages {
            samples.labelled([&pages.size], pages.max_usage.unwrap_or(pages.usage));
        }
    })
    .by(&["pagesize"]),
    counter(
        "container_pressure_cpu_waiting_seconds_total",
        "Time in which some task waited for CPU",
        |facts, samples| samples.maybe(pressure(cpu_psi(&facts.stats), |psi| &psi.some)),
    ),
    counter(
        "container_pressure_cpu_stalled_seconds_total",
        "Time in which all tasks waited for CPU",
        |facts, samples| samples.maybe(pressure(cpu_psi(&facts.stats), |psi| &psi.full)),
    ),
    counter(
        "container_pressure_memory_waiting_seconds_total",
        "Time in which some task waited for memory",
        |facts, samples| samples.maybe(pressure(memory_psi(&facts.stats), |psi| &psi.some)),
    ),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory",
        |facts, samples| samples.maybe(pressure(memory_psi(&facts.stats), |psi| &psi.full)),
    ),
    counter(
        "container_pressure_io_waiting_seconds_total",
        "Time in which some task waited for I/O",
        |facts, samples| samples.maybe(pressure(facts.stats.io_psi.as_ref(), |psi| &psi.some)),
    ),
    counter(
        "container_pressure_io_stalled_seconds_total",
        "Time in which all tasks waited for I/O",
        |facts, samples| samples.maybe(pressure(facts.stats.io_psi.as_ref(), |psi| &psi.full)),
    ),
    gauge("container_spec_cpu_period", "Period of the CPU quota in µs", |facts, samples| {
        samples.one(facts.limits.cpu_period_us.filter(|period| *period > 0).unwrap_or(CPU_PERIOD_DEFAULT_US));
    })
    .of(Of::Containers),
    gauge("container_spec_cpu_shares", "Relative weight in sharing CPU", |facts, samples| {
        samples.one(facts.limits.cpu_shares.filter(|shares| *shares > 0).unwrap_or(CPU_SHARES_DEFAULT));
    })
    .of(Of::Containers),
    gauge("container_spec_cpu_quota", "CPU time per period in µs", |facts, samples| {
        samples.maybe(Some(limit(facts.limits.cpu_quota_us)).filter(|quota| *quota > 0));
    })
    .of(Of::Containers),
    gauge("container_spec_memory_limit_bytes", "Limit of memory, 0 for none", |facts, samples| {
        samples.one(limit(facts.limits.memory_limit_bytes));
    })
    .of(Of::Containers),
    gauge(
        "container_spec_memory_swap_limit_bytes",
        "Limit of memory and swap together, 0 for none",
        |facts, samples| samples.one(limit(facts.limits.memory_swap_limit_bytes)),
    )
    .of(Of::Containers),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is left to it when memory is short",
        |facts, samples| {
            samples.maybe(facts.limits.unified.get("memory.low").and_then(|low| low.trim().parse().ok()));
        },
    )
    .of(Of::Containers),
    gauge("container_start_time_seconds", "When it was started, Unix time", |facts, samples| {
        samples.one(seconds_of(facts.started_at.0));
    }),
    gauge("container_last_seen", "When this was read, Unix time", |facts, samples| {
        samples.one(seconds_of(facts.now.0));
    }),
];

fn cpu(facts: &Facts, count: fn(&crisp_cgroup::CpuStats) -> Option<u64>) -> u64 {
    facts.stats.cpu.as_ref().and_then(count).unwrap_or(0)
}

fn cpu_seconds(facts: &Facts, nanos: fn(&crisp_cgroup::CpuStats) -> Option<u64>) -> u64 {
    cpu(facts, nanos) / NANOS_PER_SECOND
}

fn memory(facts: &Facts, bytes: fn(&MemoryStats) -> u64) -> u64 {
    facts.stats.memory.as_ref().map_or(0, bytes)
}

/// The kernel counts a container and all below it together, and a container has nothing below it.
fn page_faults(facts: &Facts, samples: &mut Samples) {
    for scope in ["container", "hierarchy"] {
        samples.labelled(["pgfault", scope], memory(facts, |memory| memory.page_faults));
        samples.labelled(["pgmajfault", scope], memory(facts, |memory| memory.major_page_faults));
    }
}

fn links(facts: &Facts, samples: &mut Samples, count: fn(&InterfaceStats) -> u64) {
    for link in &facts.links {
        samples.labelled([&link.name], count(link));
    }
}

fn devices(facts: &Facts, samples: &mut Samples, count: fn(&DeviceIo) -> u64) {
    for (device, io) in &facts.io {
        samples.labelled([device], count(io));
    }
}

fn block_io(facts: &Facts, samples: &mut Samples) {
    for (device, io) in &facts.io {
        let (major, minor) = (io.major.to_string(), io.minor.to_string());
        let IoCounts { read, write, discard, sync, asynchronous } = io.bytes;
        let total = read.saturating_add(write).saturating_add(discard);
        let told = [
            ("Read", Some(read)),
            ("Write", Some(write)),
            ("Discard", Some(discard)),
            ("Sync", sync),
            ("Async", asynchronous),
            ("Total", Some(total)),
        ];
        for (operation, value) in told {
            if let Some(value) = value {
                samples.labelled([device, &major, &minor, operation], value);
            }
        }
    }
}

fn cpu_psi(stats: &Stats) -> Option<&Psi> {
    stats.cpu.as_ref()?.psi.as_ref()
}

fn memory_psi(stats: &Stats) -> Option<&Psi> {
    stats.memory.as_ref()?.psi.as_ref()
}

fn pressure(psi: Option<&Psi>, line: fn(&Psi) -> &PsiLine) -> Option<u64> {
    psi.map(|psi| line(psi).total_ns / NANOS_PER_SECOND)
}

/// A limit in force; none, and -1 for none, are 0.
fn limit(limit: Option<i64>) -> u64 {
    limit.and_then(|limit| u64::try_from(limit).ok()).unwrap_or(0)
}

fn seconds_of(nanos: i64) -> u64 {
    u64::try_from(nanos).unwrap_or(0) / NANOS_PER_SECOND
}
