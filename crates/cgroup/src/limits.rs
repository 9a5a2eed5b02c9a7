//! From [`Resources`] to file contents: pure, for both versions.

use std::borrow::Cow;

use crate::{CgroupError, Resources, Result, Version};

/// Largest value of a `unified` entry in bytes.
pub const UNIFIED_VALUE_BYTES_MAX: usize = 4096;
/// Most `unified` entries of a cgroup.
pub const UNIFIED_ENTRIES_MAX: usize = 64;
/// Longest CPU or node list in bytes.
pub const CPUSET_BYTES_MAX: usize = 4096;
/// The period that the kernel gives a fresh cgroup, in µs.
const CPU_PERIOD_DEFAULT_US: u64 = 100_000;
const MEMORY_LIMIT: &str = "memory_limit_bytes";
const SWAP_LIMIT: &str = "memory_swap_limit_bytes";

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Whose tree the file lies in.
    pub(crate) controller: Cow<'static, str>,
    /// Name of the file.
    pub(crate) file: Cow<'static, str>,
    /// What is written.
    pub(crate) value: String,
    /// The field of [`Resources`] that asked for it.
    pub(crate) field: &'static str,
    /// What to do where the controller or the file is missing.
    pub(crate) absent: Absent,
    /// What to do when the kernel refuses it.
    pub(crate) refused: Refused,
}

/// A setting without its controller or file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    Fail,
    /// It has no effect on this machine.
    Skip,
}

/// A setting that the kernel finds invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    Fail,
    /// The kernel checks this one and the next against each other: the next goes first, then this one again.
    NextFirst,
}

impl Setting {
    fn new(controller: &'static str, file: &'static str, value: String, field: &'static str) -> Self {
        Self {
            controller: controller.into(),
            file: file.into(),
            value,
            field,
            absent: Absent::Fail,
            refused: Refused::Fail,
        }
    }

    fn optional(self) -> Self {
        Self { absent: Absent::Skip, ..self }
    }

    fn paired(self) -> Self {
        Self { refused: Refused::NextFirst, ..self }
    }
}

/// What is in force now, as far as a new value depends on it. A fresh cgroup has the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Current {
    /// The cgroup is being made.
    #[default]
    Fresh,
    /// It is there.
    Live {
        /// CPU quota in µs, `None` when unlimited.
        quota_us: Option<u64>,
        /// Memory limit, `None` when unlimited.
        memory: Option<u64>,
        /// v1: limit of memory plus swap, `None` when unlimited or not accounted.
        memory_and_swap: Option<u64>,
    },
}

impl Current {
    fn memory(&self) -> Option<u64> {
        match self {
            Self::Fresh => None,
            Self::Live { memory, .. } => *memory,
        }
    }

    fn quota_us(&self) -> Option<u64> {
        match self {
            Self::Fresh => None,
            Self::Live { quota_us, .. } => *quota_us,
        }
    }
}

/// `cpu.weight` (1–10000) of `cpu.shares` (2–262144): the logarithmic curve of runc 1.4, crun 1.23 and libcontainer 0.7, which
/// maps the defaults of both onto each other (1024 → 100); the older linear one gave 39.
///
/// Source: opencontainers/cgroups `ConvertCPUSharesToCgroupV2Value`.
#[must_use]
pub fn weight_of_shares(shares: u64) -> u64 {
    let log = match shares {
        0 => return 0,
        1..=2 => return 1,
        262_144.. => return 10_000,
        _ => f64::from(u32::try_from(shares).unwrap_or(u32::MAX)).log2(),
    };
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    let weight = 10f64.powf(exponent).ceil();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "within 1–10000 for 3–262143 shares"
    )]
    let weight = weight as u64;
    weight.clamp(1, 10_000)
}

/// All that has to be written, in order.
pub(crate) fn settings(version: Version, resources: &Resources, current: &Current) -> Result<Vec<Setting>> {
    let mut out = Vec::new();
    match version {
        Version::V1 => {
            cpu_v1(resources, &mut out)?;
            memory_v1(resources, current, &mut out)?;
        }
        Version::V2 => {
            cpu_v2(resources, current, &mut out)?;
            memory_v2(resources, current, &mut out)?;
        }
    }
    pids(resources, &mut out)?;
    huge_pages(version, resources, &mut out)?;
    unified(version, resources, &mut out)?;
    // Last, because an emptied list cannot always be restored to the letter.
    cpuset(resources, &mut out)?;
    Ok(out)
}

fn refuse(field: &'static str, value: impl ToString, reason: &'static str) -> CgroupError {
    CgroupError::Resource { field, value: value.to_string().chars().take(80).collect(), reason }
}

/// 0 → nothing, -1 → unlimited (`None`), positive → that.
fn limit(field: &'static str, value: i64) -> Result<Option<Option<u64>>> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(Some(value))),
        Err(_) if value == -1 => Ok(Some(None)),
        Err(_) => Err(refuse(field, value, "neither positive nor -1 (unlimited)")),
    }
}

fn or_max(value: Option<u64>) -> String {
    value.map_or_else(|| "max".to_owned(), |value| value.to_string())
}

fn or_minus_one(value: Option<u64>) -> String {
    value.map_or_else(|| "-1".to_owned(), |value| value.to_string())
}

fn cpuset(resources: &Resources, out: &mut Vec<Setting>) -> Result<()> {
    let lists = [
        ("cpuset.cpus", "cpuset_cpus", &resources.cpuset_cpus),
        ("cpuset.mems", "cpuset_mems", &resources.cpuset_mems),
    ];
    for (file, field, list) in lists {
        if list.len() > CPUSET_BYTES_MAX
            || !list.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b',' | b'-'))
        {
            return Err(refuse(field, list, "no list of numbers and ranges such as 0-3,7"));
        }
        if !list.is_empty() {
            out.push(Setting::new("cpuset", file, list.clone(), field));
        }
    }
    Ok(())
}

fn cpu_v1(resources: &Resources, out: &mut Vec<Setting>) -> Result<()> {
    if resources.cpu_shares != 0 {
        out.push(Setting::new("cpu", "cpu.shares", resources.cpu_shares.to_string(), "cpu_shares"));
    }
    let quota = limit("cpu_quota_us", resources.cpu_quota_us)?;
    if resources.cpu_period_us != 0 {
        let period =
            Setting::new("cpu", "cpu.cfs_period_us", resources.cpu_period_us.to_string(), "cpu_period_us");
        // Their quotient may not exceed the parent's, at any moment.
        out.push(if quota.is_some() { period.paired() } else { period });
    }
    if let Some(quota) = quota {
        out.push(Setting::new("cpu", "cpu.cfs_quota_us", or_minus_one(quota), "cpu_quota_us"));
    }
    Ok(())
}

fn cpu_v2(resources: &Resources, current: &Current, out: &mut Vec<Setting>) -> Result<()> {
    if resources.cpu_shares != 0 {
        let weight = weight_of_shares(resources.cpu_shares).to_string();
        out.push(Setting::new("cpu", "cpu.weight", weight, "cpu_shares"));
    }
    let quota = limit("cpu_quota_us", resources.cpu_quota_us)?;
    let value = match (quota, resources.cpu_period_us) {
        (None, 0) => return Ok(()),
        // One number alone leaves the period as it is.
        (Some(quota), 0) => or_max(quota),
        (quota, period) => format!("{} {period}", or_max(quota.unwrap_or_else(|| current.quota_us()))),
    };
    out.push(Setting::new("cpu", "cpu.max", value, "cpu_quota_us"));
    Ok(())
}

fn memory_v1(resources: &Resources, current: &Current, out: &mut Vec<Setting>) -> Result<()> {
    let memory = limit(MEMORY_LIMIT, resources.memory_limit_bytes)?;
    let total = limit(SWAP_LIMIT, resources.memory_swap_limit_bytes)?;
    check_total(memory, total, current)?;
    let total = total.or_else(|| memory.and_then(|memory| total_beside(memory, current)));
    if let Some(memory) = memory {
        let setting = Setting::new("memory", "memory.limit_in_bytes", or_minus_one(memory), MEMORY_LIMIT);
        // memory <= memory + swap, at any moment.
        out.push(if total.is_some() { setting.paired() } else { setting });
    }
    if let Some(total) = total {
        let value = or_minus_one(total);
        out.push(Setting::new("memory", "memory.memsw.limit_in_bytes", value, SWAP_LIMIT).optional());
    }
    Ok(())
}

/// v1, memory limit without a swap limit: no swap in a fresh cgroup, as much swap as before in a live one.
fn total_beside(memory: Option<u64>, current: &Current) -> Option<Option<u64>> {
    match (memory, current) {
        (None, _) => Some(None),
        (Some(memory), Current::Fresh) => Some(Some(memory)),
        (Some(memory), Current::Live { memory: Some(old), memory_and_swap: Some(total), .. }) => {
            Some(Some(memory.saturating_add(total.saturating_sub(*old))))
        }
        (Some(_), Current::Live { .. }) => None,
    }
}

fn check_total(memory: Option<Option<u64>>, total: Option<Option<u64>>, current: &Current) -> Result<()> {
    let Some(Some(total)) = total else { return Ok(()) };
    match memory.unwrap_or_else(|| current.memory()) {
        None => Err(refuse(SWAP_LIMIT, total, "memory plus swap cannot be limited where memory is not")),
        Some(memory) if total < memory => {
            Err(refuse(SWAP_LIMIT, total, "memory plus swap is below the memory limit"))
        }
        Some(_) => Ok(()),
    }
}

fn memory_v2(resources: &Resources, current: &Current, out: &mut Vec<Setting>) -> Result<()> {
    let memory = limit(MEMORY_LIMIT, resources.memory_limit_bytes)?;
    let total = limit(SWAP_LIMIT, resources.memory_swap_limit_bytes)?;
    check_total(memory, total, current)?;
    let bound = memory.unwrap_or_else(|| current.memory());
    let swap = match (total, memory, current) {
        (Some(total), ..) => Some(total.zip(bound).map(|(total, memory)| total - memory)),
        (None, Some(Some(_)), Current::Fresh) => Some(Some(0)),
        (None, ..) => None,
    };
    if let Some(swap) = swap {
        out.push(Setting::new("memory", "memory.swap.max", or_max(swap), SWAP_LIMIT).optional());
    }
    if let Some(memory) = memory {
        out.push(Setting::new("memory", "memory.max", or_max(memory), MEMORY_LIMIT));
    }
    Ok(())
}

fn pids(resources: &Resources, out: &mut Vec<Setting>) -> Result<()> {
    if let Some(max) = limit("pids_max", resources.pids_max)? {
        out.push(Setting::new("pids", "pids.max", or_max(max), "pids_max"));
    }
    Ok(())
}

fn huge_pages(version: Version, resources: &Resources, out: &mut Vec<Setting>) -> Result<()> {
    for (size, bytes) in &resources.hugepages {
        let digits = size.trim_end_matches(char::is_alphabetic);
        let (number, unit) = (digits.parse::<u32>(), &size[digits.len()..]);
        if number.is_err() || !matches!(unit, "KB" | "MB" | "GB") {
            return Err(refuse("hugepages", size, "no page size such as 2MB"));
        }
        let file = match version {
            Version::V1 => format!("hugetlb.{size}.limit_in_bytes"),
            Version::V2 => format!("hugetlb.{size}.max"),
        };
        let setting = Setting::new("hugetlb", "", bytes.to_string(), "hugepages").optional();
        out.push(Setting { file: file.into(), ..setting });
    }
    Ok(())
}

fn unified(version: Version, resources: &Resources, out: &mut Vec<Setting>) -> Result<()> {
    if version == Version::V1 && !resources.unified.is_empty() {
        let key = resources.unified.keys().next().map_or("", String::as_str);
        return Err(refuse("unified", key, "this machine has cgroup v1"));
    }
    if resources.unified.len() > UNIFIED_ENTRIES_MAX {
        return Err(refuse("unified", resources.unified.len(), "too many entries"));
    }
    for (key, value) in &resources.unified {
        let controller = unified_controller(key)?;
        if value.len() > UNIFIED_VALUE_BYTES_MAX {
            return Err(refuse("unified", key, "the value is too long"));
        }
        // Files such as io.max take one device per write.
        for line in value.lines().filter(|line| !line.trim().is_empty()) {
            let setting = Setting::new("", "", line.trim().to_owned(), "unified");
            out.push(Setting {
                controller: controller.to_owned().into(),
                file: key.clone().into(),
                ..setting
            });
        }
    }
    Ok(())
}

/// The controller of a file name; names that could lead elsewhere or move processes are refused.
fn unified_controller(key: &str) -> Result<&str> {
    let bad = key.len() > crate::NAME_BYTES_MAX
        || key.contains('/')
        || key.contains("..")
        || key.contains(char::is_control);
    match key.split_once('.') {
        _ if bad => Err(refuse("unified", key, "no plain file name")),
        Some(("cgroup", _)) => Err(refuse("unified", key, "files of the cgroup core are the runtime's own")),
        Some((controller, rest)) if !controller.is_empty() && !rest.is_empty() => Ok(controller),
        _ => Err(refuse("unified", key, "names no controller file such as memory.high")),
    }
}

/// The parts of `cpu.max`: quota (`None` is unlimited) and period.
pub(crate) fn parse_cpu_max(text: &str) -> Option<(Option<u64>, u64)> {
    let mut words = text.split_ascii_whitespace();
    let quota = match words.next()? {
        "max" => None,
        number => Some(number.parse().ok()?),
    };
    Some((quota, words.next().map_or(Some(CPU_PERIOD_DEFAULT_US), |period| period.parse().ok())?))
}

/// A limit file's number; `max`, negative and anything beyond 2⁶² mean unlimited.
pub(crate) fn parse_limit(text: &str) -> Option<Option<u64>> {
    const UNLIMITED_FROM: u64 = 1 << 62;
    match text.trim() {
        "max" | "-1" => Some(None),
        number => number.parse().ok().map(|value: u64| (value < UNLIMITED_FROM).then_some(value)),
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
