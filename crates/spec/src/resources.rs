//! CRI's resource limits in the specification's words.

use std::collections::HashMap;

use oci_spec::runtime::{
    LinuxCpu, LinuxHugepageLimit, LinuxHugepageLimitBuilder, LinuxMemory, LinuxPids, LinuxResources,
};

use crate::error::SpecError;
use crate::input::{CgroupVersion, HostFacts, Resources, SwapAccounting};

/// The kernel's range of `cpu.shares`.
const CPU_SHARES_MIN: u64 = 2;
const CPU_SHARES_MAX: u64 = 262_144;
/// The kernel's range of a CFS period and the least quota, microseconds.
const CPU_PERIOD_US_MIN: u64 = 1_000;
const CPU_PERIOD_US_MAX: u64 = 1_000_000;
const CPU_QUOTA_US_MIN: i64 = 1_000;
/// `NR_CPUS` and the highest memory node of any kernel configuration.
const CPUSET_INDEX_MAX: u32 = 8191;
/// Bytes of a cpuset list.
const CPUSET_BYTES_MAX: usize = 4096;
/// The kernel's range of `oom_score_adj`.
const OOM_SCORE_ADJ_MIN: i32 = -1000;
const OOM_SCORE_ADJ_MAX: i32 = 1000;
/// Entries of `unified` and bytes of one of them.
const UNIFIED_ENTRIES_MAX: usize = 128;
const UNIFIED_BYTES_MAX: usize = 4096;
/// cgroup v2 controllers whose files `unified` may name; the core files (`cgroup.procs`, `cgroup.kill`, …) are the runtime's own.
const UNIFIED_CONTROLLERS: [&str; 9] =
    ["cpu", "cpuset", "hugetlb", "io", "memory", "misc", "pids", "rdma", "dmem"];

/// Checks limits and puts them into the specification's form; devices are not part of it.
///
/// Limits that this machine has no controller for are left out: hugepage sizes of [`HostFacts::hugepage_sizes`], and swap.
///
/// # Errors
/// [`SpecError::Field`] for a value that the kernel would refuse, [`SpecError::Combination`] for `unified` on cgroup v1
/// or a swap limit without a memory limit.
pub fn to_oci(resources: &Resources, host: &HostFacts) -> Result<LinuxResources, SpecError> {
    let mut oci = LinuxResources::default();
    oci.set_cpu(cpu(resources)?)
        .set_memory(memory(resources, host)?)
        .set_pids(pids(resources)?)
        .set_hugepage_limits(hugepages(resources, host)?)
        .set_unified(unified(resources, host)?)
        .set_devices(None);
    Ok(oci)
}

impl Resources {
    /// The limits after an update: what `update` sets replaces, what it leaves out stays, `unified` and hugepage limits
    /// are merged by key (CRI's `UpdateContainerResources`). `oom_score_adj` of a container does not change.
    #[must_use]
    pub fn updated(&self, update: &Self) -> Self {
        let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
        let mut hugepage_limits = self.hugepage_limits.clone();
        hugepage_limits.extend(update.hugepage_limits.clone());
        let mut unified = self.unified.clone();
        unified.extend(update.unified.clone());
        Self {
            cpu_shares: update.cpu_shares.or(self.cpu_shares),
            cpu_quota_us: update.cpu_quota_us.or(self.cpu_quota_us),
            cpu_period_us: update.cpu_period_us.or(self.cpu_period_us),
            cpuset_cpus: text(&update.cpuset_cpus, &self.cpuset_cpus),
            cpuset_mems: text(&update.cpuset_mems, &self.cpuset_mems),
            memory_limit_bytes: update.memory_limit_bytes.or(self.memory_limit_bytes),
            memory_swap_limit_bytes: self.updated_swap(update),
            hugepage_limits,
            unified,
            oom_score_adj: self.oom_score_adj,
            pids_limit: update.pids_limit.or(self.pids_limit),
        }
    }

    /// A total of memory and swap that the new memory limit alone exceeds no longer means anything.
    fn updated_swap(&self, update: &Self) -> Option<i64> {
        let fits =
            |total: &i64| *total == -1 || update.memory_limit_bytes.is_none_or(|memory| memory <= *total);
        update.memory_swap_limit_bytes.or(self.memory_swap_limit_bytes.filter(fits))
    }
}

/// The adjustment to set: the requested one, 0 when none was requested, no lower than the daemon may go. Always one: what a
/// container would inherit is its supervisor's, which the kernel is told to spare.
///
/// # Errors
/// [`SpecError::Field`] outside of -1000 to 1000.
pub(crate) fn oom_score_adj(resources: &Resources, host: &HostFacts) -> Result<Option<i32>, SpecError> {
    let requested = resources.oom_score_adj.unwrap_or(0);
    if !(OOM_SCORE_ADJ_MIN..=OOM_SCORE_ADJ_MAX).contains(&requested) {
        return Err(SpecError::field("oom_score_adj", &requested.to_string(), "outside of -1000 to 1000"));
    }
    Ok(Some(requested.max(host.oom_score_adj_min)))
}

/// Requested page sizes that this machine does not limit. A limit of 0 is what a kubelet always sends: no loss.
pub(crate) fn skipped_hugepages(resources: &Resources, host: &HostFacts) -> Vec<String> {
    let lost = |(size, limit): &(&String, &u64)| **limit > 0 && !host.hugepage_sizes.contains(*size);
    resources.hugepage_limits.iter().filter(lost).map(|(size, _)| size.clone()).collect()
}

fn cpu(resources: &Resources) -> Result<Option<LinuxCpu>, SpecError> {
    let shares = resources.cpu_shares.map(|shares| shares.clamp(CPU_SHARES_MIN, CPU_SHARES_MAX));
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(shares)
        .set_quota(quota(resources)?)
        .set_period(period(resources)?)
        .set_cpus(cpuset("cpuset_cpus", &resources.cpuset_cpus)?)
        .set_mems(cpuset("cpuset_mems", &resources.cpuset_mems)?);
    Ok((cpu != LinuxCpu::default()).then_some(cpu))
}

fn quota(resources: &Resources) -> Result<Option<i64>, SpecError> {
    match resources.cpu_quota_us {
        Some(quota) if quota != -1 && quota < CPU_QUOTA_US_MIN => Err(SpecError::field(
            "cpu_quota",
            &quota.to_string(),
            "neither -1 nor at least 1000 microseconds",
        )),
        quota => Ok(quota),
    }
}

fn period(resources: &Resources) -> Result<Option<u64>, SpecError> {
    match resources.cpu_period_us {
        Some(period) if !(CPU_PERIOD_US_MIN..=CPU_PERIOD_US_MAX).contains(&period) => Err(SpecError::field(
            "cpu_period",
            &period.to_string(),
            "outside of 1000 to 1000000 microseconds",
        )),
        period => Ok(period),
    }
}

/// `0-2,7`: ranges in digits, commas and hyphens.
fn cpuset(field: &'static str, list: &str) -> Result<Option<String>, SpecError> {
    if list.is_empty() {
        return Ok(None);
    }
    let index = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u32>().ok().filter(|index| digits && *index <= CPUSET_INDEX_MAX)
    };
    let range = |text: &str| match text.split_once('-') {
        Some((from, to)) => index(from).zip(index(to)).is_some_and(|(from, to)| from <= to),
        None => index(text).is_some(),
    };
    if list.len() <= CPUSET_BYTES_MAX && list.split(',').all(range) {
        Ok(Some(list.to_string()))
    } else {
        Err(SpecError::field(field, list, "not a list like 0-2,7"))
    }
}

fn memory(resources: &Resources, host: &HostFacts) -> Result<Option<LinuxMemory>, SpecError> {
    for (field, bytes) in [
        ("memory_limit_in_bytes", resources.memory_limit_bytes),
        ("memory_swap_limit_in_bytes", resources.memory_swap_limit_bytes),
    ] {
        if let Some(bytes) = bytes.filter(|bytes| *bytes < -1 || *bytes == 0) {
            return Err(SpecError::field(field, &bytes.to_string(), "neither -1 nor a number of bytes"));
        }
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(resources.memory_limit_bytes).set_swap(swap(resources, host)?);
    Ok((memory != LinuxMemory::default()).then_some(memory))
}

/// Memory and swap together. Without a word on swap a container with a memory limit gets none.
fn swap(resources: &Resources, host: &HostFacts) -> Result<Option<i64>, SpecError> {
    let limit = resources.memory_limit_bytes.filter(|limit| *limit > 0);
    let swap = match (limit, resources.memory_swap_limit_bytes) {
        (limit, None) => limit,
        (_, Some(-1)) => Some(-1),
        (None, Some(_)) => return Err(SpecError::Combination("a swap limit needs a memory limit")),
        (Some(limit), Some(total)) if total < limit => {
            return Err(SpecError::Combination(
                "memory_swap_limit_in_bytes is memory and swap together: not below the memory limit",
            ));
        }
        (Some(_), Some(total)) => Some(total),
    };
    Ok(swap.filter(|_| host.swap == SwapAccounting::Present))
}

fn pids(resources: &Resources) -> Result<Option<LinuxPids>, SpecError> {
    let Some(limit) = resources.pids_limit else { return Ok(None) };
    if limit < -1 || limit == 0 {
        return Err(SpecError::field(
            "pids limit",
            &limit.to_string(),
            "neither -1 nor a number of processes",
        ));
    }
    let mut pids = LinuxPids::default();
    pids.set_limit(limit);
    Ok(Some(pids))
}

fn hugepages(resources: &Resources, host: &HostFacts) -> Result<Option<Vec<LinuxHugepageLimit>>, SpecError> {
    let mut limits = Vec::new();
    for (size, limit) in &resources.hugepage_limits {
        let unit = ["KB", "MB", "GB"].iter().find_map(|unit| size.strip_suffix(unit));
        if !unit.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())) {
            return Err(SpecError::field("hugepage page_size", size, "not a size like 2MB"));
        }
        let bytes = i64::try_from(*limit).map_err(|_out_of_range| {
            SpecError::field("hugepage limit", &limit.to_string(), "more bytes than a limit holds")
        })?;
        if host.hugepage_sizes.contains(size) {
            let built = LinuxHugepageLimitBuilder::default().page_size(size.clone()).limit(bytes).build();
            limits.push(built.map_err(|_missing| SpecError::Unsupported("this hugepage limit"))?);
        }
    }
    Ok((!limits.is_empty()).then_some(limits))
}

fn unified(resources: &Resources, host: &HostFacts) -> Result<Option<HashMap<String, String>>, SpecError> {
    if resources.unified.is_empty() {
        return Ok(None);
    }
    if host.cgroup == CgroupVersion::V1 {
        return Err(SpecError::Combination("unified resources need cgroup v2"));
    }
    if resources.unified.len() > UNIFIED_ENTRIES_MAX {
        return Err(SpecError::TooMany { what: "unified resources", max: UNIFIED_ENTRIES_MAX });
    }
    for (file, content) in &resources.unified {
        check_unified(file, content)?;
    }
    Ok(Some(resources.unified.clone().into_iter().collect()))
}

fn check_unified(file: &str, content: &str) -> Result<(), SpecError> {
    let characters = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    let controller =
        file.split_once('.').filter(|(_, rest)| !rest.is_empty()).map(|(controller, _)| controller);
    let known = controller.is_some_and(|controller| UNIFIED_CONTROLLERS.contains(&controller));
    // 2MB and 1GB are part of the hugetlb files' names.
    let upper = |b: u8| file.starts_with("hugetlb.") && matches!(b, b'K' | b'M' | b'G' | b'B');
    if !known || file.contains("..") || !file.bytes().all(|b| characters(b) || upper(b)) {
        return Err(SpecError::field("unified key", file, "not a file of a cgroup controller"));
    }
    if content.is_empty()
        || content.len() > UNIFIED_BYTES_MAX
        || content.chars().any(|c| c.is_control() && c != '\n')
    {
        return Err(SpecError::field("unified value", content, "empty, too long or not printable"));
    }
    Ok(())
}

#[cfg(test)]
#[path = "resources_tests.rs"]
mod tests;
