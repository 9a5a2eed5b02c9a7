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
    /// Pressure on I/O (v2).
    pub io_psi: Option<Psi>,
}

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
