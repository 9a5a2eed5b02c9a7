//! cgroup v1: a tree per controller.

use super::files::Files;
use super::parse::{Counts, add_blkio, oom_kills_in, value_of, values_of};
use super::{CpuStats, DeviceIo, Extent, HugePages, MemoryStats, Stats, SwapStats};
use crate::Result;

/// Clock ticks of `cpuacct.stat` per second: `USER_HZ`, fixed by the kernel's interface.
const TICKS_PER_SECOND: u64 = 100;
const NANOS_PER_SECOND: u64 = 1_000_000_000;

pub(super) fn read(files: &mut Files<'_>, extent: Extent) -> Result<Stats> {
    let memory = memory(files)?;
    let mut stats = Stats {
        cpu: files
            .number("cpuacct", "cpuacct.usage")?
            .map(|usage_ns| CpuStats { usage_ns, ..CpuStats::default() }),
        swap: swap(files, memory.as_ref())?,
        memory,
        pids: files.number("pids", "pids.current")?,
        ..Stats::default()
    };
    if extent == Extent::Everything {
        more(files, &mut stats)?;
    }
    Ok(stats)
}

fn memory(files: &mut Files<'_>) -> Result<Option<MemoryStats>> {
    let Some(usage) = files.number("memory", "memory.usage_in_bytes")? else { return Ok(None) };
    let limit = files.limit("memory", "memory.limit_in_bytes")?.flatten();
    let keys = [
        "total_inactive_file",
        "total_active_file",
        "total_rss",
        "total_pgfault",
        "total_pgmajfault",
        "total_cache",
        "total_mapped_file",
    ];
    let values = files.parsed("memory", "memory.stat", |text| Some(values_of(text, keys)))?;
    let [inactive_file, active_file, rss, page_faults, major_page_faults, cache, mapped_file] =
        values.unwrap_or_default().map(Option::unwrap_or_default);
    Ok(Some(MemoryStats {
        usage,
        limit,
        inactive_file,
        active_file,
        rss,
        page_faults,
        major_page_faults,
        cache,
        mapped_file,
        ..MemoryStats::default()
    }))
}

/// v1 counts memory and swap together.
fn swap(files: &mut Files<'_>, memory: Option<&MemoryStats>) -> Result<Option<SwapStats>> {
    let Some(memory) = memory else { return Ok(None) };
    let Some(total) = files.number("memory", "memory.memsw.usage_in_bytes")? else { return Ok(None) };
    let limit = files.limit("memory", "memory.memsw.limit_in_bytes")?.flatten();
    // The two are read one after the other: their difference may come out below 0.
    let usage = total.saturating_sub(memory.usage);
    let room = limit.zip(memory.limit).map(|(total, memory)| total.saturating_sub(memory));
    Ok(Some(SwapStats { usage, available: room.map(|room| room.saturating_sub(usage)) }))
}

fn more(files: &mut Files<'_>, stats: &mut Stats) -> Result<()> {
    if let Some(cpu) = &mut stats.cpu {
        more_cpu(files, cpu)?;
    }
    if let Some(memory) = &mut stats.memory {
        memory.max_usage = files.number("memory", "memory.max_usage_in_bytes")?;
        memory.limit_hits = files.number("memory", "memory.failcnt")?;
        memory.kernel = files.number("memory", "memory.kmem.usage_in_bytes")?;
        memory.oom_kills = files.text("memory", "memory.oom_control")?.as_deref().and_then(oom_kills_in);
    }
    stats.pids_max = files.limit("pids", "pids.max")?.flatten();
    stats.io = io(files)?;
    stats.huge_pages = huge_pages(files)?;
    Ok(())
}

fn more_cpu(files: &mut Files<'_>, cpu: &mut CpuStats) -> Result<()> {
    let nanos = |ticks: u64| ticks.saturating_mul(NANOS_PER_SECOND / TICKS_PER_SECOND);
    if let Some(text) = files.text("cpuacct", "cpuacct.stat")? {
        cpu.user_ns = value_of(&text, "user").map(nanos);
        cpu.system_ns = value_of(&text, "system").map(nanos);
    }
    if let Some(text) = files.text("cpu", "cpu.stat")? {
        cpu.periods = value_of(&text, "nr_periods");
        cpu.throttled_periods = value_of(&text, "nr_throttled");
        cpu.throttled_ns = value_of(&text, "throttled_time");
    }
    Ok(())
}

fn io(files: &mut Files<'_>) -> Result<Vec<DeviceIo>> {
    let mut devices = Vec::new();
    for (file, counts) in
        [("blkio.throttle.io_service_bytes", Counts::Bytes), ("blkio.throttle.io_serviced", Counts::Requests)]
    {
        // Without "_recursive" what the cgroups below did is not in it; kernels before 5.4 have no other.
        let text = match files.text("blkio", &format!("{file}_recursive"))? {
            Some(text) => Some(text),
            None => files.text("blkio", file)?,
        };
        add_blkio(&mut devices, &text.unwrap_or_default(), counts);
    }
    Ok(devices)
}

fn huge_pages(files: &mut Files<'_>) -> Result<Vec<HugePages>> {
    let mut found = Vec::new();
    for size in files.page_sizes(".usage_in_bytes")? {
        let Some(usage) = files.number("hugetlb", &format!("hugetlb.{size}.usage_in_bytes"))? else {
            continue;
        };
        let max_usage = files.number("hugetlb", &format!("hugetlb.{size}.max_usage_in_bytes"))?;
        found.push(HugePages { size, usage, max_usage });
    }
    Ok(found)
}
