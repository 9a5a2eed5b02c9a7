use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::PROGRESS_BYTES_MIN;

/// Longest time between two looks at the meter.
const LOOK_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// How one piece of network work gets on: what came, and whether it waits for the network right now. Time spent on anything
/// else, as a disk that is slower than the network, is no lack of progress.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: AtomicU64,
    waiting: AtomicUsize,
}

/// Too little arrived for a whole window.
#[derive(Debug)]
pub(crate) struct Stalled;

impl Meter {
    /// Counts bytes that arrived.
    pub(crate) fn add(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A request that was answered is worth a window, however small the answer.
    pub(crate) fn answered(&self) {
        self.bytes.fetch_add(PROGRESS_BYTES_MIN, Ordering::Relaxed);
    }

    /// Awaits something that the network has to bring.
    pub(crate) async fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        future.await
    }

    /// Runs `work` until it is done or its window passes without progress; zero is no window.
    pub(crate) async fn guard<T>(
        &self,
        window: Duration,
        work: impl Future<Output = T>,
    ) -> Result<T, Stalled> {
        if window.is_zero() {
            return Ok(work.await);
        }
        tokio::select! {
            done = work => Ok(done),
            stalled = self.stalled(window) => Err(stalled),
        }
    }

    async fn stalled(&self, window: Duration) -> Stalled {
        let interval = LOOK_INTERVAL_MAX.min(window / 4).max(Duration::from_millis(1));
        let mut mark = (self.bytes.load(Ordering::Relaxed), Instant::now());
        loop {
            tokio::time::sleep(interval).await;
            let bytes = self.bytes.load(Ordering::Relaxed);
            let idle = self.waiting.load(Ordering::Relaxed) == 0;
            if idle || bytes - mark.0 >= PROGRESS_BYTES_MIN {
                mark = (bytes, Instant::now());
            } else if mark.1.elapsed() >= window {
                return Stalled;
            }
        }
    }
}

struct Waiting<'a>(&'a AtomicUsize);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Duration = Duration::from_secs(300);

    enum On {
        Network,
        Disk,
    }

    async fn run(step: Duration, bytes: usize, on: On) -> Result<(), Stalled> {
        let meter = Meter::default();
        let work = async {
            for _ in 0..100 {
                let step = tokio::time::sleep(step);
                match on {
                    On::Network => meter.wait(step).await,
                    On::Disk => step.await,
                }
                meter.add(bytes);
            }
        };
        meter.guard(WINDOW, work).await
    }

    #[tokio::test(start_paused = true)]
    async fn a_trickle_is_no_progress() {
        let second = Duration::from_secs(1);
        assert!(run(10 * second, 16, On::Network).await.is_err());
        assert!(run(10 * second, 1024, On::Network).await.is_ok());
        assert!(run(400 * second, 1 << 20, On::Network).await.is_err());
        assert!(run(400 * second, 0, On::Disk).await.is_ok(), "it did not wait for the network");
    }

    #[tokio::test(start_paused = true)]
    async fn zero_disables_the_window() {
        let meter = Meter::default();
        let day = Duration::from_secs(86400);
        assert!(meter.guard(Duration::ZERO, meter.wait(tokio::time::sleep(day))).await.is_ok());
    }
}
