//! Counters to CRI messages. Pure.

use crisp_cgroup::{Psi, PsiLine, Stats};
use crisp_domain::Timestamp;
use crisp_network::InterfaceStats;
use crisp_proto::cri::{
    ContainerStats, CpuUsage, FilesystemIdentifier, FilesystemUsage, IoUsage, LinuxPodSandboxStats,
    MemoryUsage, NetworkInterfaceUsage, NetworkUsage, ProcessUsage, PsiData, PsiStats, SwapUsage,
    UInt64Value,
};

use super::layers::LayerUsage;

#[expect(clippy::unnecessary_wraps, reason = "an optional field that is set")]
fn set(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

fn maybe(value: Option<u64>) -> Option<UInt64Value> {
    value.map(|value| UInt64Value { value })
}

pub(super) fn cpu(stats: &Stats, nano_cores: Option<u64>, at: Timestamp) -> Option<CpuUsage> {
    let cpu = stats.cpu.as_ref()?;
    Some(CpuUsage {
        timestamp: at.0,
        usage_core_nano_seconds: set(cpu.usage_ns),
        usage_nano_cores: maybe(nano_cores),
        psi: cpu.psi.as_ref().map(psi),
    })
}

pub(super) fn memory(stats: &Stats, at: Timestamp) -> Option<MemoryUsage> {
    let memory = stats.memory.as_ref()?;
    Some(MemoryUsage {
        timestamp: at.0,
        working_set_bytes: set(memory.working_set()),
        available_bytes: maybe(memory.available()),
        usage_bytes: set(memory.usage),
        rss_bytes: set(memory.rss),
        page_faults: set(memory.page_faults),
        major_page_faults: set(memory.major_page_faults),
        psi: memory.psi.as_ref().map(psi),
    })
}

pub(super) fn swap(stats: &Stats, at: Timestamp) -> Option<SwapUsage> {
    let swap = stats.swap.as_ref()?;
    Some(SwapUsage {
        timestamp: at.0,
        swap_available_bytes: maybe(swap.available),
        swap_usage_bytes: set(swap.usage),
    })
}

pub(super) fn io(stats: &Stats, at: Timestamp) -> Option<IoUsage> {
    Some(IoUsage { timestamp: at.0, psi: Some(psi(stats.io_psi.as_ref()?)) })
}

fn psi(psi: &Psi) -> PsiStats {
    PsiStats { full: Some(psi_line(&psi.full)), some: Some(psi_line(&psi.some)) }
}

fn psi_line(line: &PsiLine) -> PsiData {
    PsiData { total: line.total_ns, avg10: line.avg10, avg60: line.avg60, avg300: line.avg300 }
}

pub(super) fn writable_layer(layer: LayerUsage, fs_id: FilesystemIdentifier) -> FilesystemUsage {
    FilesystemUsage {
        timestamp: layer.at.0,
        fs_id: Some(fs_id),
        used_bytes: set(layer.usage.bytes),
        inodes_used: set(layer.usage.inodes),
    }
}

/// The groups of a pod; each is unset when its source is missing.
pub(super) fn pod(
    own: Option<(&Stats, Option<u64>, Timestamp)>,
    links: Option<(Vec<InterfaceStats>, Timestamp)>,
    containers: Vec<ContainerStats>,
) -> LinuxPodSandboxStats {
    LinuxPodSandboxStats {
        cpu: own.and_then(|(stats, nano_cores, at)| cpu(stats, nano_cores, at)),
        memory: own.and_then(|(stats, _, at)| memory(stats, at)),
        network: links.and_then(|(links, at)| network(links, at)),
        process: own.and_then(|(stats, _, at)| process(stats, at)),
        containers,
        io: own.and_then(|(stats, _, at)| io(stats, at)),
    }
}

fn process(stats: &Stats, at: Timestamp) -> Option<ProcessUsage> {
    Some(ProcessUsage { timestamp: at.0, process_count: set(stats.pids?) })
}

/// The first interface is the default one, and is not repeated among the others.
fn network(links: Vec<InterfaceStats>, at: Timestamp) -> Option<NetworkUsage> {
    let mut links = links.into_iter().map(interface);
    let default_interface = Some(links.next()?);
    Some(NetworkUsage { timestamp: at.0, default_interface, interfaces: links.collect() })
}

fn interface(link: InterfaceStats) -> NetworkInterfaceUsage {
    NetworkInterfaceUsage {
        name: link.name,
        rx_bytes: set(link.rx_bytes),
        rx_errors: set(link.rx_errors),
        tx_bytes: set(link.tx_bytes),
        tx_errors: set(link.tx_errors),
    }
}

#[cfg(test)]
mod tests {
    use crisp_cgroup::{CpuStats, MemoryStats, SwapStats};

    use super::*;

    const AT: Timestamp = Timestamp(42);

    fn stats() -> Stats {
        let psi = Psi {
            some: PsiLine { avg10: 1.5, total_ns: 7000, ..PsiLine::default() },
            full: PsiLine::default(),
        };
        Stats {
            cpu: Some(CpuStats { usage_ns: 9, psi: Some(psi.clone()), ..CpuStats::default() }),
            memory: Some(MemoryStats {
                usage: 100,
                limit: Some(300),
                inactive_file: 30,
                rss: 50,
                page_faults: 4,
                major_page_faults: 1,
                ..MemoryStats::default()
            }),
            swap: Some(SwapStats { usage: 5, available: None }),
            pids: Some(3),
            io_psi: Some(psi),
            ..Stats::default()
        }
    }

    fn number(value: Option<UInt64Value>) -> Option<u64> {
        value.map(|value| value.value)
    }

    #[test]
    fn each_counter_goes_to_its_field() {
        let stats = stats();
        let cpu = cpu(&stats, Some(11), AT).unwrap();
        let numbers = (number(cpu.usage_core_nano_seconds), number(cpu.usage_nano_cores), cpu.timestamp);
        assert_eq!(numbers, (Some(9), Some(11), 42));
        let some = cpu.psi.unwrap().some.unwrap();
        assert_eq!((some.total, some.avg10), (7000, 1.5));
        let memory = memory(&stats, AT).unwrap();
        let numbers = [
            memory.working_set_bytes,
            memory.available_bytes,
            memory.usage_bytes,
            memory.rss_bytes,
            memory.page_faults,
        ];
        assert_eq!(numbers.map(number), [70, 230, 100, 50, 4].map(Some));
        assert_eq!((number(memory.major_page_faults), memory.psi), (Some(1), None));
        let swap = swap(&stats, AT).unwrap();
        assert_eq!((number(swap.swap_usage_bytes), swap.swap_available_bytes), (Some(5), None));
        assert_eq!(io(&stats, AT).unwrap().psi.unwrap().some.unwrap().total, 7000);
    }

    #[test]
    fn what_was_not_counted_is_unset() {
        let none = Stats::default();
        assert_eq!(
            (cpu(&none, None, AT), memory(&none, AT), swap(&none, AT), io(&none, AT)),
            (None, None, None, None)
        );
        assert_eq!(pod(None, None, Vec::new()), LinuxPodSandboxStats::default());
        assert_eq!(number(cpu(&stats(), None, AT).unwrap().usage_nano_cores), None);
    }

    #[test]
    fn the_default_interface_is_not_repeated() {
        let link = |name: &str, rx_bytes| InterfaceStats {
            name: name.into(),
            rx_bytes,
            ..InterfaceStats::default()
        };
        let links = vec![link("eth0", 5), link("net1", 6)];
        let network = pod(Some((&stats(), None, AT)), Some((links, AT)), Vec::new()).network.unwrap();
        assert_eq!(network.default_interface.unwrap().name, "eth0");
        let others: Vec<_> =
            network.interfaces.iter().map(|link| (link.name.as_str(), number(link.rx_bytes))).collect();
        assert_eq!(others, [("net1", Some(6))]);
        assert_eq!(super::network(Vec::new(), AT), None);
    }

    #[test]
    fn a_pod_counts_its_processes() {
        let message = pod(Some((&stats(), Some(1), AT)), None, Vec::new());
        assert_eq!(number(message.process.unwrap().process_count), Some(3));
        assert!(message.cpu.is_some() && message.network.is_none());
    }
}
