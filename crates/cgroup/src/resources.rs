use std::collections::BTreeMap;

use crate::DeviceRule;

/// Limits of a cgroup in the words of CRI. 0, empty and `None` mean: leave as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// Relative CPU weight, 2–262144 (v1 `cpu.shares`; v2 `cpu.weight` through [`crate::weight_of_shares`]).
    pub cpu_shares: u64,
    /// CPU time per period in µs; -1 is unlimited.
    pub cpu_quota_us: i64,
    /// Period in µs.
    pub cpu_period_us: u64,
    /// CPUs, such as `0-3,7`.
    pub cpuset_cpus: String,
    /// Memory nodes, such as `0`.
    pub cpuset_mems: String,
    /// Memory in bytes; -1 is unlimited.
    pub memory_limit_bytes: i64,
    /// Memory **plus** swap in bytes; -1 is unlimited. 0 beside a memory limit means no swap when a cgroup is made, and
    /// the same swap as before when it is updated. Without swap accounting in the kernel it has no effect.
    pub memory_swap_limit_bytes: i64,
    /// Huge page limits: size as the kernel writes it (`2MB`, `1GB`) and bytes. Ignored where the controller is missing.
    pub hugepages: Vec<(String, u64)>,
    /// v2 only: file name → value, such as `memory.high`. Refused on v1.
    pub unified: BTreeMap<String, String>,
    /// Most processes and threads; -1 is unlimited.
    pub pids_max: i64,
    /// Device access: nothing is allowed but what these rules, in order, allow. `None` inherits the parent's access.
    /// Only for making a cgroup: an update refuses it.
    pub devices: Option<Vec<DeviceRule>>,
}
