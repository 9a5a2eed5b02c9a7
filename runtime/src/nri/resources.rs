//! Limits in the plugins' words and in ours. Ours are what a cgroup of every handler can be given and what is kept in the record; what
//! plugins can say beyond that is refused by name, never left out.

use crisp_nri::api::{
    HugepageLimit, LinuxCpu, LinuxMemory, LinuxPids, LinuxResources, OptionalInt64, OptionalUInt64,
};
use crisp_spec::{CgroupVersion, Resources};

/// The file that a reservation is on cgroup v2, as OCI runtimes map it.
const RESERVATION_V2: &str = "memory.low";

/// Limits as a message.
pub(super) fn to_nri(limits: &Resources) -> LinuxResources {
    let signed = |value: Option<i64>| value.map(|value| OptionalInt64 { value });
    let natural = |value: Option<u64>| value.map(|value| OptionalUInt64 { value });
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: signed(limits.memory_limit_bytes),
            swap: signed(limits.memory_swap_limit_bytes),
            ..LinuxMemory::default()
        }),
        cpu: Some(LinuxCpu {
            shares: natural(limits.cpu_shares),
            quota: signed(limits.cpu_quota_us),
            period: natural(limits.cpu_period_us),
            cpus: limits.cpuset_cpus.clone(),
            mems: limits.cpuset_mems.clone(),
            ..LinuxCpu::default()
        }),
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|(size, limit)| HugepageLimit { page_size: size.clone(), limit: *limit })
            .collect(),
        unified: limits.unified.clone(),
        pids: limits.pids_limit.map(|limit| LinuxPids { limit }),
        ..LinuxResources::default()
    }
}

/// What a plugin sets, as limits; what it leaves out is "not set". Device rules and classes are not looked at here.
///
/// # Errors
/// What cannot be had, by name.
pub(super) fn from_nri(limits: &LinuxResources, cgroup: CgroupVersion) -> Result<Resources, String> {
    let memory = limits.memory.unwrap_or_default();
    let cpu = limits.cpu.clone().unwrap_or_default();
    refuse(limits, &memory, &cpu)?;
    let mut unified = limits.unified.clone();
    match (memory.reservation, cgroup) {
        (None, _) => {}
        (Some(OptionalInt64 { value }), CgroupVersion::V2) => {
            let text = if value < 0 { "max".to_owned() } else { value.to_string() };
            unified.insert(RESERVATION_V2.to_owned(), text);
        }
        (Some(_), CgroupVersion::V1) => return Err("a memory reservation needs cgroup v2".to_owned()),
    }
    Ok(Resources {
        cpu_shares: cpu.shares.map(|shares| shares.value),
        cpu_quota_us: cpu.quota.map(|quota| quota.value),
        cpu_period_us: cpu.period.map(|period| period.value),
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        memory_limit_bytes: memory.limit.map(|limit| limit.value),
        memory_swap_limit_bytes: memory.swap.map(|limit| limit.value),
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|limit| (limit.page_size.clone(), limit.limit))
            .collect(),
        unified,
        oom_score_adj: None,
        pids_limit: limits.pids.map(|pids| pids.limit),
    })
}

fn refuse(limits: &LinuxResources, memory: &LinuxMemory, cpu: &LinuxCpu) -> Result<(), String> {
    let set = [
        ("memory.kernel", memory.kernel.is_some()),
        ("memory.kernel_tcp", memory.kernel_tcp.is_some()),
        ("memory.swappiness", memory.swappiness.is_some()),
        ("memory.disable_oom_killer", memory.disable_oom_killer.is_some_and(|disable| disable.value)),
        ("memory.use_hierarchy false", memory.use_hierarchy.is_some_and(|hierarchical| !hierarchical.value)),
        ("cpu.realtime_runtime", cpu.realtime_runtime.is_some()),
        ("cpu.realtime_period", cpu.realtime_period.is_some()),
        ("blockio_class", limits.blockio_class.is_some()),
        ("rdt_class", limits.rdt_class.is_some()),
    ];
    match set.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(format!("{name} cannot be set")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crisp_nri::api::{OptionalBool, OptionalString};

    #[test]
    fn limits_survive_the_way_there_and_back() {
        let limits = Resources {
            cpu_shares: Some(512),
            cpu_quota_us: Some(-1),
            cpu_period_us: Some(100_000),
            cpuset_cpus: "0-1".to_owned(),
            memory_limit_bytes: Some(1 << 30),
            hugepage_limits: [("2MB".to_owned(), 4 << 20)].into(),
            unified: [("memory.high".to_owned(), "max".to_owned())].into(),
            pids_limit: Some(7),
            ..Resources::default()
        };
        assert_eq!(from_nri(&to_nri(&limits), CgroupVersion::V2), Ok(limits));
        let nothing = Resources::default();
        assert_eq!(from_nri(&to_nri(&nothing), CgroupVersion::V1), Ok(nothing));
    }

    #[test]
    fn what_cannot_be_had_is_named() {
        let class = LinuxResources {
            rdt_class: Some(OptionalString { value: "gold".to_owned() }),
            ..LinuxResources::default()
        };
        assert_eq!(from_nri(&class, CgroupVersion::V2), Err("rdt_class cannot be set".to_owned()));
        let hierarchical =
            LinuxMemory { use_hierarchy: Some(OptionalBool { value: true }), ..LinuxMemory::default() };
        let fine = LinuxResources { memory: Some(hierarchical), ..LinuxResources::default() };
        assert!(from_nri(&fine, CgroupVersion::V2).is_ok());
    }

    #[test]
    fn a_reservation_is_memory_low() {
        let memory =
            LinuxMemory { reservation: Some(OptionalInt64 { value: 4096 }), ..LinuxMemory::default() };
        let limits = LinuxResources { memory: Some(memory), ..LinuxResources::default() };
        assert_eq!(from_nri(&limits, CgroupVersion::V2).unwrap().unified["memory.low"], "4096");
        assert!(from_nri(&limits, CgroupVersion::V1).is_err());
    }
}
