//! CPU times of the last moments, and the CPU use that follows from two of them. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Two samples closer than this say nothing reliable.
const APART_MIN: Duration = Duration::from_secs(1);
/// Older samples are another time's.
const AGE_MAX: Duration = Duration::from_secs(120);
/// Samples of one thing that are kept, this far apart at least: the oldest of them is always [`APART_MIN`] old.
const KEPT_MAX: usize = 4;
const KEPT_APART: Duration = Duration::from_millis(400);

/// CPU times by container or pod id.
#[derive(Debug, Default)]
pub(super) struct Samples(HashMap<String, VecDeque<Sample>>);

#[derive(Debug, Clone, Copy)]
struct Sample {
    at: Instant,
    usage_ns: u64,
}

impl Samples {
    /// Takes a sample and gives the use since the newest one that is old enough, in 10⁻⁹ cores.
    pub(super) fn add(&mut self, id: &str, at: Instant, usage_ns: u64) -> Option<u64> {
        let kept = match self.0.get_mut(id) {
            Some(kept) => kept,
            None => self.0.entry(id.to_owned()).or_default(),
        };
        if kept.back().is_some_and(|last| last.usage_ns > usage_ns) {
            // It counts from 0 again: another cgroup by the same name.
            kept.clear();
        }
        kept.retain(|sample| at.saturating_duration_since(sample.at) <= AGE_MAX);
        let rate = kept.iter().rev().find_map(|earlier| rate(*earlier, Sample { at, usage_ns }));
        if kept.back().is_none_or(|last| at.saturating_duration_since(last.at) >= KEPT_APART) {
            kept.push_back(Sample { at, usage_ns });
        }
        if kept.len() > KEPT_MAX {
            kept.pop_front();
        }
        rate
    }

    /// Drops what has had no sample for long.
    pub(super) fn forget_old(&mut self, now: Instant) {
        let fresh = |sample: &Sample| now.saturating_duration_since(sample.at) <= AGE_MAX;
        self.0.retain(|_, kept| kept.back().is_some_and(fresh));
    }
}

/// `None` when the two are too close.
fn rate(earlier: Sample, later: Sample) -> Option<u64> {
    let apart = later.at.saturating_duration_since(earlier.at);
    let used = u128::from(later.usage_ns.checked_sub(earlier.usage_ns)?);
    (apart >= APART_MIN).then(|| u64::try_from(used * 1_000_000_000 / apart.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds samples of (milliseconds, CPU milliseconds) and gives the last answer.
    fn after(samples: &[(u64, u64)]) -> Option<u64> {
        let (mut kept, start) = (Samples::default(), Instant::now());
        let mut add =
            |(at, used): &(u64, u64)| kept.add("a", start + Duration::from_millis(*at), used * 1_000_000);
        samples.iter().map(&mut add).last().flatten()
    }

    #[test]
    fn use_is_told_once_two_samples_are_a_second_apart() {
        assert_eq!(after(&[(0, 0)]), None);
        assert_eq!(after(&[(0, 0), (999, 500)]), None);
        assert_eq!(after(&[(0, 0), (1000, 500)]), Some(500_000_000));
        assert_eq!(after(&[(0, 0), (2000, 8000)]), Some(4_000_000_000));
    }

    #[test]
    fn the_newest_old_enough_sample_counts() {
        assert_eq!(after(&[(0, 0), (1000, 1000), (2000, 1100)]), Some(100_000_000));
        assert_eq!(after(&[(0, 0), (1000, 1000), (1500, 1100), (2000, 1200)]), Some(200_000_000));
    }

    #[test]
    fn many_requests_do_not_push_out_the_sample_that_is_needed() {
        let samples: Vec<_> = (0..=300).map(|n| (n * 10, n * 5)).collect();
        assert_eq!(after(&samples), Some(500_000_000));
    }

    #[test]
    fn a_counter_that_begins_again_gives_no_use() {
        assert_eq!(after(&[(0, 5000), (1000, 6000), (2000, 100)]), None);
        assert_eq!(after(&[(0, 5000), (1000, 100), (2000, 350)]), Some(250_000_000));
    }

    #[test]
    fn old_samples_are_forgotten() {
        assert_eq!(after(&[(0, 0), (121_000, 1000)]), None);
        let (mut samples, start) = (Samples::default(), Instant::now());
        samples.add("a", start, 1);
        samples.add("b", start + Duration::from_secs(100), 1);
        samples.forget_old(start + Duration::from_secs(130));
        assert_eq!(samples.0.keys().collect::<Vec<_>>(), ["b"]);
    }
}
