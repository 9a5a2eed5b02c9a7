//! The door to the blocking threads, for what a call waits for.
//!
//! Work is of a [`Kind`], by what it may hang for. Each kind has permits of its own, and one is taken *before* a thread: what hangs fills
//! the permits of its kind, and the other kinds go on. There are threads for the permits of all kinds and for what bounds itself and
//! comes past this door: pulls of images, look-ups of names, plugins that are launched, walks of writable layers.
//!
//! Work holds one permit and never waits for another, so permits cannot wait for each other.

use std::sync::OnceLock;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::{Error, Result};

/// Permits of a kind unless the configuration says otherwise.
const PERMITS_DEFAULT: usize = 64;
/// Threads beyond the permits, for what comes past this door.
const OTHER_THREADS: usize = 128;
/// How long work waits for a permit: less than a kubelet waits for its call, so that it hears the reason.
const PERMIT_WAIT_MAX: Duration = Duration::from_secs(100);

/// Work, by what it may hang for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Records, sockets, pinned namespaces: kernel and memory, which answer.
    State,
    /// Plugins that put a pod into its network, and the kernel's lock of network namespaces.
    Attach,
    /// Plugins that take a pod out: others can be stopped while no pod can be started.
    Detach,
    /// The making of a container's files: a volume's source may be on a network file system that is away.
    Bundle,
    /// Deleting and copying on disks.
    Disk,
    /// Killing what does not die, and limits that systemd is asked for.
    Cgroup,
    /// What is only looked at, for a status or statistics.
    Look,
}

impl Kind {
    const ALL: [Self; 7] =
        [Self::State, Self::Attach, Self::Detach, Self::Bundle, Self::Disk, Self::Cgroup, Self::Look];

    /// What its threads are for, in messages.
    fn name(self) -> &'static str {
        match self {
            Self::State => "records and namespaces",
            Self::Attach => "joining networks",
            Self::Detach => "leaving networks",
            Self::Bundle => "making containers' files",
            Self::Disk => "deleting and copying files",
            Self::Cgroup => "killing and limiting",
            Self::Look => "status and statistics",
        }
    }

    fn permits(self) -> &'static Permits {
        let [state, attach, detach, bundle, disk, cgroup, look] =
            PERMITS.get_or_init(|| all(PERMITS_DEFAULT));
        match self {
            Self::State => state,
            Self::Attach => attach,
            Self::Detach => detach,
            Self::Bundle => bundle,
            Self::Disk => disk,
            Self::Cgroup => cgroup,
            Self::Look => look,
        }
    }
}

/// The permits of one kind.
#[derive(Debug)]
struct Permits {
    all: usize,
    free: Semaphore,
}

impl Permits {
    fn new(all: usize) -> Self {
        Self { all, free: Semaphore::new(all) }
    }

    /// A permit for work of this kind; `None` when none got free in time.
    async fn take(&self) -> Option<SemaphorePermit<'_>> {
        if let Ok(free) = self.free.try_acquire() {
            return Some(free);
        }
        // It is never closed.
        tokio::time::timeout(PERMIT_WAIT_MAX, self.free.acquire()).await.ok()?.ok()
    }
}

static PERMITS: OnceLock<[Permits; Kind::ALL.len()]> = OnceLock::new();

fn all(permits: usize) -> [Permits; Kind::ALL.len()] {
    std::array::from_fn(|_| Permits::new(permits))
}

/// Gives every kind this many permits; how many threads that takes. Once, before any work.
pub(crate) fn allow(permits: usize) -> usize {
    let [first, ..] = PERMITS.get_or_init(|| all(permits));
    first.all * Kind::ALL.len() + OTHER_THREADS
}

/// What has no permit left now, for people; `None` when there is nothing of the kind.
pub(crate) fn busy() -> Option<String> {
    let none_is_free = |kind: &Kind| kind.permits().free.available_permits() == 0;
    let names: Vec<String> = Kind::ALL
        .into_iter()
        .filter(none_is_free)
        .map(|kind| format!("all {} threads for {} are busy", kind.permits().all, kind.name()))
        .collect();
    (!names.is_empty()).then(|| names.join(", "))
}

/// Runs `work` of [`Kind::State`]; see [`run_as`].
///
/// # Errors
/// As [`run_as`].
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    run_as(Kind::State, work).await
}

/// Runs `work` on a blocking thread within the current span. Once begun, it goes on when the future is dropped.
///
/// # Errors
/// What `work` returns; [`Error::Busy`] when no permit of its kind got free; [`Error::Internal`] when it panicked.
pub(crate) async fn run_as<T: Send + 'static>(
    kind: Kind,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let permits = kind.permits();
    let Some(permit) = permits.take().await else {
        let waited_ms = u64::try_from(PERMIT_WAIT_MAX.as_millis()).unwrap_or(u64::MAX);
        return Err(Error::Busy { threads: permits.all, kind: kind.name(), waited_ms });
    };
    let span = tracing::Span::current();
    let work = move || {
        // Held by the work, not by who waits for it.
        let _permit = permit;
        span.in_scope(work)
    };
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|join| {
        Err(Error::Internal { what: "a blocking task ended abnormally", cause: join.to_string() })
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use crisp_domain::ErrorKind;

    use super::*;

    /// One test, since permits are the process's: no other test of this program uses these kinds.
    #[tokio::test(start_paused = true)]
    async fn what_hangs_fills_its_own_kind_and_says_so() {
        let (release, gates): (Vec<_>, Vec<_>) = (0..PERMITS_DEFAULT).map(|_| mpsc::channel::<()>()).unzip();
        let (began, mut begun) = tokio::sync::mpsc::channel(PERMITS_DEFAULT);
        let hang = |gate: mpsc::Receiver<()>| {
            let began = began.clone();
            let work = move || {
                let _told = began.try_send(());
                let _released = gate.recv();
                Ok(())
            };
            tokio::spawn(run_as(Kind::Attach, work))
        };
        let mut hung: Vec<_> = gates.into_iter().map(hang).collect();
        for _ in 0..PERMITS_DEFAULT {
            begun.recv().await.unwrap();
        }
        assert_eq!(busy().unwrap(), "all 64 threads for joining networks are busy");
        let one_more = tokio::spawn(run_as(Kind::Attach, || Ok(())));
        tokio::task::yield_now().await;
        // Time does not pass by itself while work is under way.
        tokio::time::advance(PERMIT_WAIT_MAX * 2).await;
        let refused = one_more.await.unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Exhausted);
        assert_eq!(
            refused.to_string(),
            "all 64 threads for joining networks are busy, and none got free within 100000 ms"
        );
        assert_eq!(run_as(Kind::Disk, || Ok(7)).await.unwrap(), 7);
        // Nobody waits for this one any more, but its thread is not free.
        hung.remove(0).abort();
        assert!(busy().is_some());
        drop(release);
        for done in hung {
            done.await.unwrap().unwrap();
        }
        run_as(Kind::Attach, || Ok(())).await.unwrap();
        assert_eq!(busy(), None);
    }
}
