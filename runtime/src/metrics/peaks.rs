//! The most that was ever used, where the kernel does not remember it: the most that was ever seen here.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crisp_cgroup::Stats;

/// What nobody asked for this long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);

/// By container or pod id.
#[derive(Debug, Default)]
pub(super) struct Peaks(Mutex<HashMap<String, Peak>>);

#[derive(Debug)]
struct Peak {
    memory: u64,
    /// By page size.
    huge_pages: BTreeMap<String, u64>,
    seen_at: Instant,
}

impl Peaks {
    fn peaks(&self) -> MutexGuard<'_, HashMap<String, Peak>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fills in the peaks that the kernel left out.
    pub(super) fn complete(&self, id: &str, mut stats: Stats) -> Stats {
        let known = stats.memory.as_ref().is_none_or(|memory| memory.max_usage.is_some())
            && stats.huge_pages.iter().all(|pages| pages.max_usage.is_some());
        if known {
            return stats;
        }
        let mut peaks = self.peaks();
        let new = || Peak { memory: 0, huge_pages: BTreeMap::new(), seen_at: Instant::now() };
        let peak = peaks.entry(id.to_owned()).or_insert_with(new);
        peak.seen_at = Instant::now();
        if let Some(memory) = &mut stats.memory {
            peak.memory = peak.memory.max(memory.usage);
            memory.max_usage.get_or_insert(peak.memory);
        }
        for pages in &mut stats.huge_pages {
            let most = peak.huge_pages.entry(pages.size.clone()).or_default();
            *most = pages.usage.max(*most);
            pages.max_usage.get_or_insert(*most);
        }
        stats
    }

    pub(super) fn forget_old(&self) {
        self.peaks().retain(|_, peak| peak.seen_at.elapsed() < FORGOTTEN_AFTER);
    }
}

#[cfg(test)]
mod tests {
    use crisp_cgroup::{HugePages, MemoryStats};

    use super::*;

    fn stats(usage: u64, max_usage: Option<u64>) -> Stats {
        Stats {
            memory: Some(MemoryStats { usage, max_usage, ..MemoryStats::default() }),
            huge_pages: vec![HugePages { size: "2MB".into(), usage, max_usage }],
            ..Stats::default()
        }
    }

    #[test]
    fn the_most_that_was_seen_stands_in_for_what_the_kernel_forgot() {
        let peaks = Peaks::default();
        let seen = |usage, known| {
            let stats = peaks.complete("a", stats(usage, known));
            (stats.memory.unwrap().max_usage, stats.huge_pages[0].max_usage)
        };
        assert_eq!(seen(5, None), (Some(5), Some(5)));
        assert_eq!(seen(9, None), (Some(9), Some(9)));
        assert_eq!(seen(2, None), (Some(9), Some(9)));
        assert_eq!(seen(2, Some(3)), (Some(3), Some(3)));
        assert_eq!(peaks.complete("b", stats(1, None)).memory.unwrap().max_usage, Some(1));
    }
}
