//! Counters of a cgroup: one type for both versions of the interface, each file read once.

mod files;
mod parse;
mod v1;
mod v2;

use crate::{Cgroup, Result, Version};
use files::Files;
pub use parse::oom_kills_in;
pub(crate) use parse::value_of;

/// What the kernel counted for a cgroup and all below it. A value is `None` when the controller or the file is missing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Stats {
    /// CPU.
    pub cpu: Option<CpuStats>,
    /// Memory.
    pub memory: Option<MemoryStats>,
    /// Swap.
    pub swap: Option<SwapStats>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Most processes and threads there may be; `None` is unlimited.
    pub pids_max: Option<u64>,
    /// Pressure on I/O (v2).
    pub io_psi: Option<Psi>,
    /// I/O by block device, in the kernel's order; at most [`DEVICES_MAX`].
    pub io: Vec<DeviceIo>,
    /// Huge pages by their size, in order of the name; at most [`PAGE_SIZES_MAX`].
    pub huge_pages: Vec<HugePages>,
}

/// Most block devices that are told apart in [`Stats::io`].
pub const DEVICES_MAX: usize = 256;
/// Most sizes of huge pages in [`Stats::huge_pages`].
pub const PAGE_SIZES_MAX: usize = 16;

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct CpuStats {
    /// All CPU time ever used.
    pub usage_ns: u64,
    /// Part of it in user mode.
    pub user_ns: Option<u64>,
    /// Part of it in the kernel.
    pub system_ns: Option<u64>,
    /// Enforcement periods that passed.
    pub periods: Option<u64>,
    /// Periods in which the quota ran out.
    pub throttled_periods: Option<u64>,
    /// Time spent throttled.
    pub throttled_ns: Option<u64>,
    /// Pressure (v2).
    pub psi: Option<Psi>,
}

/// Memory in bytes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MemoryStats {
    /// All that is charged.
    pub usage: u64,
    /// The limit; `None` is unlimited.
    pub limit: Option<u64>,
    /// Page cache that can be dropped.
    pub inactive_file: u64,
    /// Page cache in use.
    pub active_file: u64,
    /// Anonymous memory (v2 `anon`, v1 `total_rss`).
    pub rss: u64,
    /// Page faults.
    pub page_faults: u64,
    /// Page faults that had to read.
    pub major_page_faults: u64,
    /// Page cache.
    pub cache: u64,
    /// Mapped files.
    pub mapped_file: u64,
    /// The most that was ever charged (v2 since Linux 5.19).
    pub max_usage: Option<u64>,
    /// How often the limit was met.
    pub limit_hits: Option<u64>,
    /// Kernel memory charged to it.
    pub kernel: Option<u64>,
    /// OOM kills of processes of this cgroup.
    pub oom_kills: Option<u64>,
    /// Pressure (v2).
    pub psi: Option<Psi>,
}

impl MemoryStats {
    /// What cannot be dropped without swapping: usage without inactive page cache.
    #[must_use]
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }

    /// What is left below the limit; `None` when unlimited.
    #[must_use]
    pub fn available(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.working_set()))
    }
}

/// Swap in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SwapStats {
    /// Swapped out.
    pub usage: u64,
    /// What is left; `None` when unlimited.
    pub available: Option<u64>,
}

/// What was read from and written to one block device.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// Bytes.
    pub bytes: IoCounts,
    /// Requests.
    pub requests: IoCounts,
}

/// One kind of I/O counter.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoCounts {
    /// Read.
    pub read: u64,
    /// Written.
    pub write: u64,
    /// Discarded.
    pub discard: u64,
    /// Synchronous ones among them (v1 only: `None` where the kernel does not tell).
    pub sync: Option<u64>,
    /// The others (v1).
    pub asynchronous: Option<u64>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePages {
    /// As the kernel writes it: `2MB`, `1GB`.
    pub size: String,
    /// Bytes in use.
    pub usage: u64,
    /// The most bytes that ever were (v1).
    pub max_usage: Option<u64>,
}

/// Pressure stall information.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Psi {
    /// Some task waited.
    pub some: PsiLine,
    /// All tasks waited.
    pub full: PsiLine,
}

/// One line of a pressure file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct PsiLine {
    /// Percent over 10 s.
    pub avg10: f64,
    /// Percent over 60 s.
    pub avg60: f64,
    /// Percent over 300 s.
    pub avg300: f64,
    /// All time stalled, in nanoseconds.
    pub total_ns: u64,
}

/// How much is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    Usage,
    Everything,
}

impl Cgroup {
    /// All counters. What is not there, controller, file or the cgroup itself, is `None` or empty.
    ///
    /// # Errors
    /// [`crate::CgroupError::Read`] for other failures than absence; [`crate::CgroupError::Parse`].
    pub fn stats(&self) -> Result<Stats> {
        self.read(Extent::Everything)
    }

    /// The counters that CRI's statistics tell, from about half as many files: CPU time, memory without its history, swap,
    /// number of processes, pressure. The others are `None` or empty.
    ///
    /// # Errors
    /// As for [`Cgroup::stats`].
    pub fn usage(&self) -> Result<Stats> {
        self.read(Extent::Usage)
    }

    fn read(&self, extent: Extent) -> Result<Stats> {
        let mut files = Files::of(self);
        match self.layout.version {
            Version::V1 => v1::read(&mut files, extent),
            Version::V2 => v2::read(&mut files, extent),
        }
    }

    /// CPU time ever used, in nanoseconds: the one file that a sampler needs.
    ///
    /// # Errors
    /// As for [`Cgroup::stats`].
    pub fn cpu_usage_ns(&self) -> Result<Option<u64>> {
        let mut files = Files::of(self);
        match self.layout.version {
            Version::V1 => files.number("cpuacct", "cpuacct.usage"),
            Version::V2 => files.parsed("cpu", "cpu.stat", |text| Some(value_of(text, "usage_usec")? * 1000)),
        }
    }

    /// How many processes the OOM killer took here, see [`Cgroup::oom_file`]. 0 without a memory controller or cgroup.
    ///
    /// # Errors
    /// As for [`Cgroup::stats`].
    pub fn oom_kills(&self) -> Result<u64> {
        let text = Files::of(self).text("memory", self.oom_file_name())?;
        Ok(text.as_deref().and_then(oom_kills_in).unwrap_or(0))
    }
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
