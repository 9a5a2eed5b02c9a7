//! cgroup v2: one tree.

use super::files::Files;
use super::parse::{oom_kills_in, parse_io_stat, value_of, values_of};
use super::{CpuStats, Extent, HugePages, MemoryStats, Stats, SwapStats};
use crate::Result;

pub(super) fn read(files: &mut Files<'_>, extent: Extent) -> Result<Stats> {
    let mut stats = Stats {
        cpu: cpu(files)?,
        memory: memory(files)?,
        swap: swap(files)?,
        pids: files.number("pids", "pids.current")?,
        io_psi: files.psi("io", "io.pressure")?,
        ..Stats::default()
    };
    if extent == Extent::Everything {
        more(files, &mut stats)?;
    }
    Ok(stats)
}

fn cpu(files: &mut Files<'_>) -> Result<Option<CpuStats>> {
    let keys = ["usage_usec", "user_usec", "system_usec", "nr_periods", "nr_throttled", "throttled_usec"];
    // The core keeps cpu.stat even where the controller is not handed down.
    let Some(values) = files.parsed("cpu", "cpu.stat", |text| Some(values_of(text, keys)))? else {
        return Ok(None);
    };
    let [usage, user, system, periods, throttled_periods, throttled] = values;
    let nanos = |micros: Option<u64>| micros.map(|micros| micros.saturating_mul(1000));
    Ok(Some(CpuStats {
        usage_ns: nanos(usage).unwrap_or(0),
        user_ns: nanos(user),
        system_ns: nanos(system),
        periods,
        throttled_periods,
        throttled_ns: nanos(throttled),
        psi: files.psi("cpu", "cpu.pressure")?,
    }))
}

fn memory(files: &mut Files<'_>) -> Result<Option<MemoryStats>> {
    let Some(usage) = files.number("memory", "memory.current")? else { return Ok(None) };
    let limit = files.limit("memory", "memory.max")?.flatten();
    let keys = [
        "inactive_file",
        "active_file",
        "anon",
        "pgfault",
        "pgmajfault",
        "file",
        "file_mapped",
        "kernel",
        "kernel_stack",
        "slab",
    ];
    let values = files.parsed("memory", "memory.stat", |text| Some(values_of(text, keys)))?;
    let [inactive_file, active_file, rss, faults, major_faults, cache, mapped_file, kernel, stack, slab] =
        values.unwrap_or_default();
    Ok(Some(MemoryStats {
        usage,
        limit,
        inactive_file: inactive_file.unwrap_or(0),
        active_file: active_file.unwrap_or(0),
        rss: rss.unwrap_or(0),
        page_faults: faults.unwrap_or(0),
        major_page_faults: major_faults.unwrap_or(0),
        cache: cache.unwrap_or(0),
        mapped_file: mapped_file.unwrap_or(0),
        // "kernel" is there since Linux 5.18; before it, its two largest parts.
        kernel: kernel.or_else(|| Some(stack?.saturating_add(slab.unwrap_or(0)))),
        psi: files.psi("memory", "memory.pressure")?,
        ..MemoryStats::default()
    }))
}

fn swap(files: &mut Files<'_>) -> Result<Option<SwapStats>> {
    let Some(usage) = files.number("memory", "memory.swap.current")? else { return Ok(None) };
    let limit = files.limit("memory", "memory.swap.max")?.flatten();
    Ok(Some(SwapStats { usage, available: limit.map(|limit| limit.saturating_sub(usage)) }))
}

fn more(files: &mut Files<'_>, stats: &mut Stats) -> Result<()> {
    if let Some(memory) = &mut stats.memory {
        memory.max_usage = files.number("memory", "memory.peak")?;
        if let Some(events) = files.text("memory", "memory.events")? {
            memory.limit_hits = value_of(&events, "max");
            memory.oom_kills = oom_kills_in(&events);
        }
    }
    stats.pids_max = files.limit("pids", "pids.max")?.flatten();
    stats.io = files.parsed("io", "io.stat", |text| Some(parse_io_stat(text)))?.unwrap_or_default();
    for size in files.page_sizes(".current")? {
        if let Some(usage) = files.number("hugetlb", &format!("hugetlb.{size}.current"))? {
            stats.huge_pages.push(HugePages { size, usage, max_usage: None });
        }
    }
    Ok(())
}
