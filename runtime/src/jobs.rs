//! Work that outlives the call that asked for it.
//!
//! A job is keyed by what it makes. It runs detached, so a client that hangs up leaves nothing half-made; a retry with the
//! same key joins it and gets its result. A job that is asked for nobody any more still ends and keeps its result claimable through
//! the object it made (`claimed` flags of pods and containers).

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use tracing::Instrument as _;

use crate::error::{Error, Result};

type Running<T> = Shared<BoxFuture<'static, Result<T>>>;

/// The jobs of one kind that are under way.
#[derive(Debug)]
pub(crate) struct Jobs<K, T: Clone> {
    running: Arc<Mutex<HashMap<K, Running<T>>>>,
}

impl<K, T> Jobs<K, T>
where
    K: Clone + Eq + Hash + Send + 'static,
    T: Clone + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        Self { running: Arc::default() }
    }

    /// Joins the job with this key, or starts `work` as that job, and waits for its result.
    pub(crate) async fn join_or_start<F>(&self, key: K, work: impl FnOnce() -> F) -> Result<T>
    where
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let job = {
            let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
            running.get(&key).cloned().unwrap_or_else(|| {
                let job = self.spawn(key.clone(), work());
                running.insert(key, job.clone());
                job
            })
        };
        job.await
    }

    /// Whether the job with this key is under way.
    pub(crate) fn is_running(&self, key: &K) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(key)
    }

    fn spawn(&self, key: K, work: impl Future<Output = Result<T>> + Send + 'static) -> Running<T> {
        let table = Arc::clone(&self.running);
        let task = tokio::spawn(
            async move {
                let result = work.await;
                table.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
                result
            }
            .instrument(tracing::Span::current()),
        );
        task.map(|joined| {
            joined.unwrap_or_else(|join| {
                Err(Error::Internal { what: "a job ended abnormally", cause: join.to_string() })
            })
        })
        .boxed()
        .shared()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[tokio::test]
    async fn a_retry_joins_and_a_hang_up_does_not_stop_the_work() {
        let jobs: Arc<Jobs<&str, usize>> = Arc::new(Jobs::new());
        let (runs, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
        let start = || {
            let (jobs, runs, gate) = (Arc::clone(&jobs), Arc::clone(&runs), Arc::clone(&gate));
            tokio::spawn(async move {
                let work = || async move {
                    let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
                    gate.notified().await;
                    Ok(run)
                };
                jobs.join_or_start("pod", work).await
            })
        };
        let first = start();
        while runs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert!(jobs.is_running(&"pod") && !jobs.is_running(&"other"));
        first.abort();
        assert!(first.await.unwrap_err().is_cancelled());
        let second = start();
        tokio::task::yield_now().await;
        gate.notify_one();
        assert_eq!(second.await.unwrap().unwrap(), 1);
        assert_eq!(runs.load(Ordering::SeqCst), 1);
    }
}
