//! From limits to unit properties: pure.

use crisp_cgroup::{Resources, weight_of_shares};

use crate::wire::{Property, Value};
use crate::{Result, SystemdError};

/// systemd's word for "no limit".
const INFINITY: u64 = u64::MAX;
/// The kernel's default period, in µs.
const PERIOD_DEFAULT_US: u64 = 100_000;
const SECOND_US: u64 = 1_000_000;
/// systemd before 254 stores a quota in whole percents of a CPU and cuts the rest off.
const PERCENT_US: u64 = 10_000;
/// Most CPUs or memory nodes (`CONFIG_NR_CPUS` is 8192 at most).
const CPUS_MAX: usize = 8192;

/// Whether the unit is being made or has been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// What is not asked for is said to be unlimited, since systemd has defaults of its own (`DefaultTasksMax=`).
    Fresh,
    /// What is not asked for stays.
    Live,
}

/// The properties that keep these limits in force whatever systemd writes. What has no property (huge pages, most of `unified`) is
/// not among them, nor are device rules: an unset `DevicePolicy=` leaves other programs on the cgroup alone.
///
/// # Errors
/// [`SystemdError::Resource`] for values that systemd cannot be told.
///
/// Source: systemd.resource-control(5); D-Bus types from org.freedesktop.systemd1(5).
pub fn of_resources(resources: &Resources, stage: Stage) -> Result<Vec<Property>> {
    let mut out = Vec::new();
    let mut number = |name, value: Option<u64>| {
        out.extend(value.map(|value| Property { name, value: Value::U64(value) }));
    };
    let shares = resources.cpu_shares;
    number("CPUWeight", (shares != 0).then(|| weight_of_shares(shares)));
    number("CPUQuotaPerSecUSec", quota(resources.cpu_quota_us, resources.cpu_period_us));
    number("CPUQuotaPeriodUSec", (resources.cpu_period_us != 0).then_some(resources.cpu_period_us));
    number("MemoryMax", limit(resources.memory_limit_bytes));
    number("MemorySwapMax", swap(resources, stage));
    let unlimited = (stage == Stage::Fresh).then_some(INFINITY);
    number("TasksMax", limit(resources.pids_max).or(unlimited));
    cpuset("AllowedCPUs", "cpuset_cpus", &resources.cpuset_cpus, &mut out)?;
    cpuset("AllowedMemoryNodes", "cpuset_mems", &resources.cpuset_mems, &mut out)?;
    for (file, value) in &resources.unified {
        unified(file, value, &mut out)?;
    }
    Ok(out)
}

/// What takes `wanted` back where `old` was in force: a property that was not set before becomes unset again.
#[must_use]
pub fn undo(wanted: &[Property], old: &[Property]) -> Vec<Property> {
    let unset = |property: &Property| Property {
        name: property.name,
        value: match (property.name, &property.value) {
            // Protections are off, limits are away, a weight is the kernel's own.
            ("MemoryMin" | "MemoryLow", _) => Value::U64(0),
            (_, Value::Bytes(_)) => Value::Bytes(Vec::new()),
            (_, Value::Bool(_) | Value::U64(_) | Value::Text(_) | Value::Numbers(_)) => Value::U64(INFINITY),
        },
    };
    let before = |property: &Property| old.iter().find(|before| before.name == property.name).cloned();
    wanted.iter().map(|property| before(property).unwrap_or_else(|| unset(property))).collect()
}

/// 0 → nothing, negative → unlimited.
fn limit(value: i64) -> Option<u64> {
    (value != 0).then(|| u64::try_from(value).unwrap_or(INFINITY))
}

/// CPU time per second, rounded up to what every version keeps; the cgroup itself gets the exact value.
fn quota(quota_us: i64, period_us: u64) -> Option<u64> {
    let period = if period_us == 0 { PERIOD_DEFAULT_US } else { period_us };
    match limit(quota_us)? {
        INFINITY => Some(INFINITY),
        quota => {
            let per_second = u128::from(quota) * u128::from(SECOND_US) / u128::from(period);
            let per_second = u64::try_from(per_second).unwrap_or(INFINITY - PERCENT_US);
            Some(per_second.div_ceil(PERCENT_US).max(1).saturating_mul(PERCENT_US))
        }
    }
}

/// CRI counts memory plus swap, systemd swap alone.
fn swap(resources: &Resources, stage: Stage) -> Option<u64> {
    match (resources.memory_limit_bytes, resources.memory_swap_limit_bytes, stage) {
        (_, ..=-1, _) => Some(INFINITY),
        (1.., 0, Stage::Fresh) => Some(0),
        (memory @ 1.., total @ 1.., _) => Some(total.saturating_sub(memory).max(0).unsigned_abs()),
        _ => None,
    }
}

fn cpuset(name: &'static str, field: &'static str, list: &str, out: &mut Vec<Property>) -> Result<()> {
    if !list.is_empty() {
        let bits =
            bits(list).ok_or_else(|| refuse(field, list, "no list of numbers and ranges such as 0-3,7"))?;
        out.push(Property { name, value: Value::Bytes(bits) });
    }
    Ok(())
}

/// `0-2,4` → 0b10111, lowest byte first.
fn bits(list: &str) -> Option<Vec<u8>> {
    let mut bits = Vec::new();
    for part in list.split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        if first > last || last >= CPUS_MAX {
            return None;
        }
        bits.resize(bits.len().max(last / 8 + 1), 0);
        for number in first..=last {
            bits[number / 8] |= 1 << (number % 8);
        }
    }
    Some(bits)
}

fn refuse(field: &'static str, value: &str, reason: &'static str) -> SystemdError {
    SystemdError::Resource { field, value: value.chars().take(80).collect(), reason }
}

/// Those files of cgroup v2 that systemd writes as well.
fn unified(file: &str, value: &str, out: &mut Vec<Property>) -> Result<()> {
    let name = match file {
        "cpu.weight" => "CPUWeight",
        "memory.min" => "MemoryMin",
        "memory.low" => "MemoryLow",
        "memory.high" => "MemoryHigh",
        "memory.max" => "MemoryMax",
        "memory.swap.max" => "MemorySwapMax",
        "pids.max" => "TasksMax",
        "cpu.max" => return cpu_max(value, out),
        "cpuset.cpus" => return replace_list("AllowedCPUs", value, out),
        "cpuset.mems" => return replace_list("AllowedMemoryNodes", value, out),
        _ => return Ok(()),
    };
    let number = or_infinity(value).ok_or_else(|| refuse("unified", value, "neither a number nor max"))?;
    replace(name, Value::U64(number), out);
    Ok(())
}

fn or_infinity(value: &str) -> Option<u64> {
    match value.trim() {
        "max" => Some(INFINITY),
        number => number.parse().ok(),
    }
}

fn cpu_max(value: &str, out: &mut Vec<Property>) -> Result<()> {
    let bad = || refuse("unified", value, "no quota and period such as \"50000 100000\"");
    let mut words = value.split_ascii_whitespace();
    let number = words.next().and_then(or_infinity).ok_or_else(bad)?;
    let period = words.next().map(str::parse).transpose().map_err(|_not_a_number| bad())?.unwrap_or(0);
    let number = i64::try_from(number).unwrap_or(-1);
    if let Some(per_second) = quota(number, period) {
        replace("CPUQuotaPerSecUSec", Value::U64(per_second), out);
    }
    if period != 0 {
        replace("CPUQuotaPeriodUSec", Value::U64(period), out);
    }
    Ok(())
}

fn replace_list(name: &'static str, value: &str, out: &mut Vec<Property>) -> Result<()> {
    let bits = bits(value.trim()).ok_or_else(|| refuse("unified", value, "no list such as 0-3,7"))?;
    replace(name, Value::Bytes(bits), out);
    Ok(())
}

/// `unified` is the more exact word for the same thing: it wins, as in the cgroup.
fn replace(name: &'static str, value: Value, out: &mut Vec<Property>) {
    out.retain(|property| property.name != name);
    out.push(Property { name, value });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(resources: &Resources, stage: Stage) -> Vec<String> {
        let show = |property: Property| match property.value {
            Value::U64(INFINITY) => format!("{}=infinity", property.name),
            Value::U64(number) => format!("{}={number}", property.name),
            Value::Bytes(bytes) => format!("{}={bytes:02x?}", property.name),
            other => format!("{}={other:?}", property.name),
        };
        of_resources(resources, stage).unwrap().into_iter().map(show).collect()
    }

    #[test]
    fn what_the_kubelet_sends_becomes_properties() {
        let burstable = Resources {
            cpu_shares: 102,
            cpu_quota_us: 12_500,
            cpu_period_us: 100_000,
            memory_limit_bytes: 64 << 20,
            memory_swap_limit_bytes: 64 << 20,
            hugepages: vec![("2MB".into(), 0)],
            cpuset_cpus: "0-2,9".into(),
            cpuset_mems: "0".into(),
            pids_max: 100,
            ..Resources::default()
        };
        let want = [
            "CPUWeight=17",
            // 12.5 % is not kept by every version.
            "CPUQuotaPerSecUSec=130000",
            "CPUQuotaPeriodUSec=100000",
            "MemoryMax=67108864",
            "MemorySwapMax=0",
            "TasksMax=100",
            "AllowedCPUs=[07, 02]",
            "AllowedMemoryNodes=[01]",
        ];
        assert_eq!(shown(&burstable, Stage::Fresh), want);
    }

    #[test]
    fn what_is_not_said_is_unlimited_at_first_and_stays_later() {
        assert_eq!(shown(&Resources::default(), Stage::Fresh), ["TasksMax=infinity"]);
        assert!(shown(&Resources::default(), Stage::Live).is_empty());
        let memory = Resources { memory_limit_bytes: 1 << 20, ..Resources::default() };
        assert_eq!(shown(&memory, Stage::Fresh)[..2], ["MemoryMax=1048576", "MemorySwapMax=0"]);
        assert_eq!(shown(&memory, Stage::Live), ["MemoryMax=1048576"]);
        let unlimited = Resources {
            cpu_quota_us: -1,
            memory_limit_bytes: -1,
            memory_swap_limit_bytes: -1,
            pids_max: -1,
            ..Resources::default()
        };
        let want = ["CPUQuotaPerSecUSec", "MemoryMax", "MemorySwapMax", "TasksMax"]
            .map(|name| format!("{name}=infinity"));
        assert_eq!(shown(&unlimited, Stage::Live), want);
    }

    #[test]
    fn quotas_are_per_second_and_in_whole_percents() {
        for (quota_us, period_us, want) in [
            (50_000, 0, 500_000),
            (1_000, 100_000, 10_000),
            (1, 1_000_000, 10_000),
            (i64::MAX, 1, u64::MAX / 10_000 * 10_000),
        ] {
            assert_eq!(quota(quota_us, period_us), Some(want), "{quota_us}/{period_us}");
        }
        assert_eq!(quota(0, 100_000), None);
    }

    #[test]
    fn unified_values_that_systemd_writes_too_become_properties() {
        let pairs = [
            ("memory.high", "max"),
            ("memory.min", "4096"),
            ("memory.oom.group", "1"),
            ("cpu.max", "50000 100000"),
            ("pids.max", "7"),
            ("cpuset.cpus", "1"),
            ("io.weight", "default 50"),
        ];
        let unified = pairs.map(|(file, value)| (file.to_owned(), value.to_owned())).into();
        let resources = Resources { unified, pids_max: 3, ..Resources::default() };
        let mut got = shown(&resources, Stage::Fresh);
        got.sort();
        let want = [
            "AllowedCPUs=[02]",
            "CPUQuotaPerSecUSec=500000",
            "CPUQuotaPeriodUSec=100000",
            "MemoryHigh=infinity",
            "MemoryMin=4096",
            "TasksMax=7",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn what_was_not_set_before_is_unset_again() {
        let number = |name, value| Property { name, value: Value::U64(value) };
        let list = |bytes: &[u8]| Property { name: "AllowedCPUs", value: Value::Bytes(bytes.into()) };
        let wanted = [number("MemoryMax", 5), number("MemoryMin", 4), number("CPUWeight", 3), list(&[1])];
        let old = [number("CPUWeight", 100), number("TasksMax", 9)];
        let want =
            [number("MemoryMax", INFINITY), number("MemoryMin", 0), number("CPUWeight", 100), list(&[])];
        assert_eq!(undo(&wanted, &old), want);
    }

    #[test]
    fn what_cannot_be_said_is_refused() {
        for list in ["a", "3-1", "8192", "0-99999999", "-1", "1-"] {
            let resources = Resources { cpuset_cpus: list.into(), ..Resources::default() };
            let refused = of_resources(&resources, Stage::Live).unwrap_err();
            assert_eq!(refused.kind(), crisp_domain::ErrorKind::Invalid, "{list}");
        }
        for (file, value) in
            [("memory.high", "10%"), ("cpu.max", ""), ("cpu.max", "1 x"), ("cpuset.mems", "x")]
        {
            let unified = [(file.to_owned(), value.to_owned())].into();
            assert!(
                of_resources(&Resources { unified, ..Resources::default() }, Stage::Live).is_err(),
                "{file}"
            );
        }
    }
}
