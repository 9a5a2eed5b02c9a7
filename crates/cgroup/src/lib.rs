//! cgroup v1 and v2 behind one type: make a cgroup with its limits, change them, kill, count, remove.
//!
//! [`Cgroups`] is the machine's layout, detected once; [`Cgroup`] names one cgroup in it and holds no descriptor, so it costs
//! nothing to keep. The daemon makes a container's cgroup before its first process is there; the process joins by
//! itself (v1: writes `0` to each of [`Cgroup::join_v1_tasks`]; v2: is born in [`Cgroup::v2_dir`]), because a write to
//! `cgroup.procs` from outside waits for a lock of the whole machine.
//!
//! cgroups-rs finds the mounted trees. Limits, counters and removal go through descriptors of our own, at the same speed (0.7 ms
//! for nine trees, two levels and typical limits): a limit that the kernel refuses must be an error, with nothing left of the
//! attempt, while that crate's writers pass over refusals, take a rounded value for a failure, and undo nothing.
#![forbid(unsafe_code)]

mod cgroup;
mod create;
mod device_program;
mod devices;
mod error;
mod file;
mod kill;
mod layout;
mod limits;
mod path;
mod remove;
mod resources;
mod stats;
mod update;
mod wait;

pub use cgroup::Cgroup;
pub use devices::{DEVICE_RULES_MAX, DeviceAccess, DeviceKind, DeviceRule};
pub use error::{CgroupError, Result};
pub use file::SUBGROUPS_MAX;
pub use kill::{FREEZE_WAIT_MAX, KILL_WAIT_MAX};
pub use layout::{Cgroups, Version};
pub use limits::{CPUSET_BYTES_MAX, UNIFIED_ENTRIES_MAX, UNIFIED_VALUE_BYTES_MAX, weight_of_shares};
pub use path::{CgroupPath, NAME_BYTES_MAX, PATH_BYTES_MAX, PATH_DEPTH_MAX};
pub use remove::REMOVE_WAIT_MAX;
pub use resources::Resources;
pub use stats::{
    CpuStats, DEVICES_MAX, DeviceIo, HugePages, IoCounts, MemoryStats, PAGE_SIZES_MAX, Psi, PsiLine, Stats,
    SwapStats, oom_kills_in,
};
