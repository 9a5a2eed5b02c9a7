use crate::file::{parse_error, read_if_there};
use crate::limits::parse_limit;
use crate::{Cgroup, Result, Version};

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

/// Clock ticks of `cpuacct.stat` per second: `USER_HZ`, fixed by the kernel's interface.
const TICKS_PER_SECOND: u64 = 100;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// The value of `key` in a file of `key value` lines.
pub(crate) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The counter of OOM kills in the text of [`Cgroup::oom_file`]; `None` when the kernel does not count them.
#[must_use]
pub fn oom_kills_in(text: &str) -> Option<u64> {
    value_of(text, "oom_kill")
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same with `full`; total in µs.
fn parse_psi(text: &str) -> Option<Psi> {
    let line = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(parse_psi_line);
    // cpu.pressure of older kernels has no line "full".
    Some(Psi { some: line("some ")??, full: line("full ").flatten().unwrap_or_default() })
}

fn parse_psi_line(line: &str) -> Option<PsiLine> {
    let word =
        |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    Some(PsiLine {
        avg10: word("avg10")?.parse().ok()?,
        avg60: word("avg60")?.parse().ok()?,
        avg300: word("avg300")?.parse().ok()?,
        total_ns: word("total")?.parse::<u64>().ok()?.checked_mul(1000)?,
    })
}

/// The texts of one cgroup's files; each is read once.
struct Files<'a>(&'a Cgroup);

impl Files<'_> {
    fn text(&self, controller: &str, file: &str) -> Result<Option<String>> {
        let Some(hierarchy) = self.0.layout.of(controller) else { return Ok(None) };
        read_if_there(hierarchy, self.0.path.relative(), file)
    }

    fn number(&self, controller: &str, file: &str) -> Result<Option<u64>> {
        self.parsed(controller, file, |text| text.trim().parse().ok())
    }

    fn limit(&self, controller: &str, file: &str) -> Result<Option<Option<u64>>> {
        self.parsed(controller, file, parse_limit)
    }

    fn psi(&self, controller: &str, file: &str) -> Result<Option<Psi>> {
        self.parsed(controller, file, parse_psi)
    }

    fn parsed<T>(
        &self,
        controller: &str,
        file: &str,
        parse: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(hierarchy) = self.0.layout.of(controller) else { return Ok(None) };
        let Some(text) = read_if_there(hierarchy, self.0.path.relative(), file)? else { return Ok(None) };
        parse(&text).map(Some).ok_or_else(|| parse_error(hierarchy, self.0.path.relative(), file, &text))
    }
}

impl Cgroup {
    /// All counters. What is not there, controller, file or the cgroup itself, is `None`.
    ///
    /// # Errors
    /// [`CgroupError::Read`] for other failures than absence; [`CgroupError::Parse`].
    pub fn stats(&self) -> Result<Stats> {
        let files = Files(self);
        let (cpu, memory, swap) = match self.layout.version {
            Version::V1 => {
                let memory = memory_v1(&files)?;
                (cpu_v1(&files)?, memory.clone(), swap_v1(&files, memory)?)
            }
            Version::V2 => (cpu_v2(&files)?, memory_v2(&files)?, swap_v2(&files)?),
        };
        let (io, pids) = (files.psi("io", "io.pressure")?, files.number("pids", "pids.current")?);
        Ok(Stats { cpu, memory, swap, pids, io_psi: io.filter(|_| self.layout.version == Version::V2) })
    }

    /// CPU time ever used, in nanoseconds: the one file that a sampler needs.
    ///
    /// # Errors
    /// As for [`Cgroup::stats`].
    pub fn cpu_usage_ns(&self) -> Result<Option<u64>> {
        let files = Files(self);
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
        let text = Files(self).text("memory", self.oom_file_name())?;
        Ok(text.and_then(|text| oom_kills_in(&text)).unwrap_or(0))
    }
}

fn cpu_v1(files: &Files<'_>) -> Result<Option<CpuStats>> {
    let Some(usage_ns) = files.number("cpuacct", "cpuacct.usage")? else { return Ok(None) };
    let split = files.text("cpuacct", "cpuacct.stat")?.unwrap_or_default();
    let periods = files.text("cpu", "cpu.stat")?.unwrap_or_default();
    let nanos =
        |key| value_of(&split, key).map(|ticks| ticks.saturating_mul(NANOS_PER_SECOND / TICKS_PER_SECOND));
    Ok(Some(CpuStats {
        usage_ns,
        user_ns: nanos("user"),
        system_ns: nanos("system"),
        periods: value_of(&periods, "nr_periods"),
        throttled_periods: value_of(&periods, "nr_throttled"),
        throttled_ns: value_of(&periods, "throttled_time"),
        psi: None,
    }))
}

fn cpu_v2(files: &Files<'_>) -> Result<Option<CpuStats>> {
    // The core keeps cpu.stat even where the controller is not handed down.
    let Some(text) = files.text("cpu", "cpu.stat")? else { return Ok(None) };
    let nanos = |key| value_of(&text, key).map(|micros| micros.saturating_mul(1000));
    Ok(Some(CpuStats {
        usage_ns: nanos("usage_usec").unwrap_or(0),
        user_ns: nanos("user_usec"),
        system_ns: nanos("system_usec"),
        periods: value_of(&text, "nr_periods"),
        throttled_periods: value_of(&text, "nr_throttled"),
        throttled_ns: nanos("throttled_usec"),
        psi: files.psi("cpu", "cpu.pressure")?,
    }))
}

fn memory_v1(files: &Files<'_>) -> Result<Option<MemoryStats>> {
    let Some(usage) = files.number("memory", "memory.usage_in_bytes")? else { return Ok(None) };
    let stat = files.text("memory", "memory.stat")?.unwrap_or_default();
    let value = |key| value_of(&stat, key).unwrap_or(0);
    Ok(Some(MemoryStats {
        usage,
        limit: files.limit("memory", "memory.limit_in_bytes")?.flatten(),
        inactive_file: value("total_inactive_file"),
        rss: value("total_rss"),
        page_faults: value("total_pgfault"),
        major_page_faults: value("total_pgmajfault"),
        cache: value("total_cache"),
        mapped_file: value("total_mapped_file"),
        oom_kills: files.text("memory", "memory.oom_control")?.as_deref().and_then(oom_kills_in),
        psi: None,
    }))
}

fn memory_v2(files: &Files<'_>) -> Result<Option<MemoryStats>> {
    let Some(usage) = files.number("memory", "memory.current")? else { return Ok(None) };
    let stat = files.text("memory", "memory.stat")?.unwrap_or_default();
    let value = |key| value_of(&stat, key).unwrap_or(0);
    Ok(Some(MemoryStats {
        usage,
        limit: files.limit("memory", "memory.max")?.flatten(),
        inactive_file: value("inactive_file"),
        rss: value("anon"),
        page_faults: value("pgfault"),
        major_page_faults: value("pgmajfault"),
        cache: value("file"),
        mapped_file: value("file_mapped"),
        oom_kills: files.text("memory", "memory.events")?.as_deref().and_then(oom_kills_in),
        psi: files.psi("memory", "memory.pressure")?,
    }))
}

/// v1 counts memory and swap together.
fn swap_v1(files: &Files<'_>, memory: Option<MemoryStats>) -> Result<Option<SwapStats>> {
    let Some(memory) = memory else { return Ok(None) };
    let Some(total) = files.number("memory", "memory.memsw.usage_in_bytes")? else { return Ok(None) };
    let limit = files.limit("memory", "memory.memsw.limit_in_bytes")?.flatten();
    // The two are read one after the other: their difference may come out below 0.
    let usage = total.saturating_sub(memory.usage);
    let room = limit.zip(memory.limit).map(|(total, memory)| total.saturating_sub(memory));
    Ok(Some(SwapStats { usage, available: room.map(|room| room.saturating_sub(usage)) }))
}

fn swap_v2(files: &Files<'_>) -> Result<Option<SwapStats>> {
    let Some(usage) = files.number("memory", "memory.swap.current")? else { return Ok(None) };
    let limit = files.limit("memory", "memory.swap.max")?.flatten();
    Ok(Some(SwapStats { usage, available: limit.map(|limit| limit.saturating_sub(usage)) }))
}

#[cfg(test)]
#[path = "stats_tests.rs"]
mod tests;
