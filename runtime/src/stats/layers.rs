//! Sizes of writable layers: a walk of a tree that may be huge, so it happens aside and its result serves for a while, longer the
//! longer the walk took.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crisp_domain::{ContainerId, Timestamp};
use crisp_snapshot::{Rootfs, Usage};
use tokio::sync::Semaphore;

/// How long a measured size serves at least.
const SERVES_MIN: Duration = Duration::from_secs(10);
/// How long a measured size serves at most.
const SERVES_MAX: Duration = Duration::from_secs(300);
/// A size serves this many times as long as its walk took, so that walking one layer takes at most 1 % of a thread until
/// [`SERVES_MAX`] is reached, at a walk of 3 s.
const SERVES_FACTOR: u32 = 100;
/// How long a request waits for sizes that were never measured; without them it answers without.
const FIRST_WAIT_MAX: Duration = Duration::from_millis(200);
/// A size that nobody asked for this long is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(300);
/// Walks at the same time.
const WALKERS_MAX: usize = 2;

/// A measured writable layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LayerUsage {
    pub(crate) usage: Usage,
    /// When the walk ended.
    pub(super) at: Timestamp,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// `None` until the first walk ends well.
    known: Option<LayerUsage>,
    /// When the last walk began or ended.
    looked_at: Option<Instant>,
    /// How long the last size serves.
    serves: Duration,
    asked_at: Instant,
}

/// Whether a walk can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Walk {
    Begin,
    /// Enough are under way.
    NotNow,
}

/// The sizes known, and the walks under way.
#[derive(Debug)]
pub(super) struct Layers {
    entries: Mutex<HashMap<ContainerId, Entry>>,
    walkers: Arc<Semaphore>,
}

impl Default for Layers {
    fn default() -> Self {
        Self { entries: Mutex::default(), walkers: Arc::new(Semaphore::new(WALKERS_MAX)) }
    }
}

impl Layers {
    /// Sizes in the order of `wanted` (container, writable directory). Stale ones are given and measured again aside; for those
    /// never measured it waits a moment.
    pub(super) async fn measure(
        self: &Arc<Self>,
        wanted: Vec<(ContainerId, PathBuf)>,
    ) -> Vec<Option<LayerUsage>> {
        let ids: Vec<ContainerId> = wanted.iter().map(|(id, _)| id.clone()).collect();
        if let Some(walk) = self.start_walk(wanted) {
            let new = self.known(&ids).iter().any(Option::is_none);
            let patience = if new { FIRST_WAIT_MAX } else { Duration::ZERO };
            // The walk goes on when the wait is over.
            let _walked_in_time = tokio::time::timeout(patience, walk).await;
        }
        self.known(&ids)
    }

    /// Walks what is stale, unless enough walks are under way: the next request comes soon.
    fn start_walk(
        self: &Arc<Self>,
        wanted: Vec<(ContainerId, PathBuf)>,
    ) -> Option<tokio::task::JoinHandle<()>> {
        let permit = Arc::clone(&self.walkers).try_acquire_owned().ok();
        let walk = if permit.is_some() { Walk::Begin } else { Walk::NotNow };
        let due = self.take_due(wanted, Instant::now(), walk);
        let permit = permit.filter(|_| !due.is_empty())?;
        let layers = Arc::clone(self);
        Some(tokio::task::spawn_blocking(move || {
            let _permit = permit;
            for (id, path) in due {
                let began = Instant::now();
                let usage = Rootfs::writable_usage(&path).ok();
                layers.store(&id, usage, began.elapsed());
            }
        }))
    }

    /// Those to be measured again, none when nobody can walk. Marks them, so that another request does not walk them too.
    fn take_due(
        &self,
        wanted: Vec<(ContainerId, PathBuf)>,
        now: Instant,
        walk: Walk,
    ) -> Vec<(ContainerId, PathBuf)> {
        let mut entries = self.entries();
        entries.retain(|_, entry| now.saturating_duration_since(entry.asked_at) < FORGOTTEN_AFTER);
        let mut due = Vec::new();
        for (id, path) in wanted {
            let new = Entry { known: None, looked_at: None, serves: SERVES_MIN, asked_at: now };
            let entry = entries.entry(id.clone()).or_insert(new);
            entry.asked_at = now;
            if walk == Walk::Begin
                && entry.looked_at.is_none_or(|at| now.saturating_duration_since(at) >= entry.serves)
            {
                entry.looked_at = Some(now);
                due.push((id, path));
            }
        }
        due
    }

    /// A walk that failed leaves the size as it was known.
    fn store(&self, id: &ContainerId, usage: Option<Usage>, took: Duration) {
        if let Some(entry) = self.entries().get_mut(id.as_str()) {
            entry.looked_at = Some(Instant::now());
            entry.serves = took.saturating_mul(SERVES_FACTOR).clamp(SERVES_MIN, SERVES_MAX);
            entry.known = usage.map(|usage| LayerUsage { usage, at: Timestamp::now() }).or(entry.known);
        }
    }

    fn known(&self, ids: &[ContainerId]) -> Vec<Option<LayerUsage>> {
        let entries = self.entries();
        ids.iter().map(|id| entries.get(id.as_str()).and_then(|entry| entry.known)).collect()
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ContainerId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> ContainerId {
        digit.to_string().repeat(64).parse().unwrap()
    }

    fn wanted(digits: &str) -> Vec<(ContainerId, PathBuf)> {
        digits.chars().map(|digit| (id(digit), PathBuf::from(digit.to_string()))).collect()
    }

    fn names(due: Vec<(ContainerId, PathBuf)>) -> String {
        due.into_iter().map(|(_, path)| path.display().to_string()).collect()
    }

    #[test]
    fn a_size_serves_for_ten_seconds_and_nobody_walks_twice() {
        let (layers, start) = (Layers::default(), Instant::now());
        assert_eq!(names(layers.take_due(wanted("a"), start, Walk::Begin)), "a");
        assert_eq!(names(layers.take_due(wanted("ab"), start, Walk::Begin)), "b");
        let late = start + SERVES_MIN + Duration::from_secs(1);
        assert_eq!(names(layers.take_due(wanted("ab"), late, Walk::NotNow)), "");
        assert_eq!(names(layers.take_due(wanted("ab"), late, Walk::Begin)), "ab");
    }

    #[test]
    fn a_layer_that_takes_long_is_walked_less_often() {
        let layers = Layers::default();
        for (took, serves) in [(0, SERVES_MIN), (1000, Duration::from_secs(100)), (60_000, SERVES_MAX)] {
            layers.take_due(wanted("a"), Instant::now(), Walk::Begin);
            // It is stored between the two.
            let before = Instant::now();
            layers.store(&id('a'), Some(Usage::default()), Duration::from_millis(took));
            let after = Instant::now();
            let early = before + serves - Duration::from_millis(1);
            assert_eq!(names(layers.take_due(wanted("a"), early, Walk::Begin)), "");
            assert_eq!(names(layers.take_due(wanted("a"), after + serves, Walk::Begin)), "a");
        }
    }

    #[test]
    fn a_failed_walk_keeps_what_was_known_and_what_nobody_asks_for_is_forgotten() {
        let (layers, start) = (Layers::default(), Instant::now());
        layers.take_due(wanted("a"), start, Walk::Begin);
        let usage = Usage { bytes: 7, inodes: 2 };
        layers.store(&id('a'), Some(usage), Duration::ZERO);
        layers.store(&id('a'), None, Duration::ZERO);
        layers.store(&id('b'), Some(usage), Duration::ZERO);
        let known = layers.known(&[id('a'), id('b')]);
        assert_eq!((known[0].map(|known| known.usage), known[1]), (Some(usage), None));
        layers.take_due(wanted("b"), start + FORGOTTEN_AFTER, Walk::Begin);
        assert_eq!(layers.known(&[id('a')]), [None]);
    }

    /// Time does not pass by itself while the walk is under way: however slow the machine is, the layer is small.
    #[tokio::test(start_paused = true)]
    async fn the_first_request_waits_for_a_small_layer() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("upper")).unwrap();
        std::fs::write(dir.path().join("upper/file"), [0; 5000]).unwrap();
        let layers = Arc::new(Layers::default());
        let sizes = layers.measure(vec![(id('a'), dir.path().to_owned())]).await;
        let size = sizes[0].unwrap();
        assert!(size.usage.bytes >= 5000 && size.usage.inodes >= 1 && size.at.0 > 0, "{size:?}");
    }
}
