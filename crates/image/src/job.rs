//! Work that several callers may want at the same time is done once, as long as one of them still waits.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::Instrument as _;

use crate::error::{ImageError, Result};

type Outcome<T> = Option<Result<T, Arc<ImageError>>>;

/// A running or finished piece of work with its progress. Dropping the last handle stops it.
#[derive(Debug)]
pub(crate) struct Job<T, P> {
    subject: String,
    outcome: watch::Receiver<Outcome<T>>,
    progress: watch::Receiver<P>,
    abort: AbortHandle,
}

impl<T, P> Drop for Job<T, P> {
    fn drop(&mut self) {
        self.abort.abort();
    }
}

impl<T: Clone, P> Job<T, P> {
    /// The result. `on_progress` is called with each state of the progress that is seen on the way, the last one included.
    pub(crate) async fn wait(&self, mut on_progress: impl FnMut(&P)) -> Result<T> {
        let (mut outcome, mut progress) = (self.outcome.clone(), self.progress.clone());
        let mut more = true;
        loop {
            on_progress(&progress.borrow_and_update());
            if let Some(done) = outcome.borrow_and_update().as_ref() {
                return done.clone().map_err(ImageError::Shared);
            }
            tokio::select! {
                biased;
                changed = progress.changed(), if more => more = changed.is_ok(),
                changed = outcome.changed() => {
                    if changed.is_err() && outcome.borrow().is_none() {
                        return Err(ImageError::Cancelled { subject: self.subject.clone() });
                    }
                }
            }
        }
    }

    fn is_running(&self) -> bool {
        self.outcome.borrow().is_none() && self.outcome.has_changed().is_ok()
    }
}

/// The jobs that run, by what they make.
#[derive(Debug)]
pub(crate) struct Jobs<K, T, P>(Mutex<HashMap<K, Weak<Job<T, P>>>>);

impl<K, T, P> Default for Jobs<K, T, P> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K, T, P> Jobs<K, T, P>
where
    K: Hash + Eq,
    T: Clone + Send + Sync + 'static,
    P: Default + Send + Sync + 'static,
{
    /// Joins the job that makes `key`, or starts it with the future that `start` gives. The flag tells which: `true`, started.
    pub(crate) fn join<F>(
        &self,
        key: K,
        subject: &str,
        start: impl FnOnce(watch::Sender<P>) -> F,
    ) -> (Arc<Job<T, P>>, bool)
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(job) = jobs.get(&key).and_then(Weak::upgrade).filter(|job| job.is_running()) {
            return (job, false);
        }
        jobs.retain(|_, job| job.strong_count() > 0);
        let (progress_to, progress) = watch::channel(P::default());
        let (outcome_to, outcome) = watch::channel(None);
        let work = start(progress_to);
        let task = async move {
            let done = work.await.map_err(ImageError::into_shared);
            outcome_to.send_replace(Some(done));
        };
        let abort = tokio::spawn(task.in_current_span()).abort_handle();
        let job = Arc::new(Job { subject: subject.into(), outcome, progress, abort });
        jobs.insert(key, Arc::downgrade(&job));
        (job, true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    type Numbers = Jobs<&'static str, u32, u32>;

    #[tokio::test]
    async fn equal_keys_share_one_run() {
        let (jobs, runs) = (Numbers::default(), Arc::new(AtomicUsize::new(0)));
        let (go, gate) = watch::channel(());
        let start = || {
            let (runs, mut gate) = (Arc::clone(&runs), gate.clone());
            move |progress: watch::Sender<u32>| async move {
                runs.fetch_add(1, Ordering::Relaxed);
                progress.send_replace(5);
                drop(gate.changed().await);
                Ok(7)
            }
        };
        let ((a, first), (b, second)) = (jobs.join("k", "k", start()), jobs.join("k", "k", start()));
        assert_eq!((first, second), (true, false));
        let mut seen = 0;
        let both = async { tokio::join!(a.wait(|p| seen = *p), b.wait(|_| ())) };
        let ((x, y), ()) = tokio::join!(both, async { go.send(()).unwrap() });
        assert_eq!((x.unwrap(), y.unwrap(), seen, runs.load(Ordering::Relaxed)), (7, 7, 5, 1));
        // A finished job is not joined, even while somebody still holds it.
        assert!(jobs.join("k", "k", |_| async { Ok(8) }).1);
    }

    #[tokio::test]
    async fn the_last_waiter_takes_the_work_along() {
        struct Flag(Arc<AtomicUsize>);
        impl Drop for Flag {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let (jobs, dropped) = (Numbers::default(), Arc::new(AtomicUsize::new(0)));
        let flag = Flag(Arc::clone(&dropped));
        let start = |_| async move {
            let _flag = flag;
            std::future::pending::<()>().await;
            Ok(1)
        };
        let (a, _) = jobs.join("k", "k", start);
        let (b, _) = jobs.join("k", "k", |_| async { Ok(2) });
        drop(a);
        tokio::task::yield_now().await;
        assert_eq!(dropped.load(Ordering::Relaxed), 0);
        drop(b);
        let gone = async {
            while dropped.load(Ordering::Relaxed) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), gone).await.unwrap();
        let (c, started) = jobs.join("k", "k", |_| async { Ok(3) });
        assert!(started);
        assert_eq!(c.wait(|_| ()).await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_failure_reaches_everyone_with_its_kind() {
        let jobs = Numbers::default();
        let fail = |_| async { Err(ImageError::Ambiguous { text: "ab".into() }) };
        let (a, _) = jobs.join("k", "k", fail);
        let error = a.wait(|_| ()).await.unwrap_err();
        assert_eq!(error.kind(), crisp_domain::ErrorKind::Invalid);
        assert_eq!(error.to_string(), r#"image id "ab" is ambiguous"#);
    }
}
