//! The door to the runtime's blocking threads. Whatever hangs on the images' disk, others find threads that are free.
//!
//! Work here waits for no other work here: what is unpacked waits for its download, which comes past this door, and a commit for
//! nothing.

use tokio::sync::Semaphore;
use tokio::task::JoinError;

/// Threads that images hold at once: more than there are layers in the making, each of which holds one.
const THREADS_MAX: usize = 32;

static FREE: Semaphore = Semaphore::const_new(THREADS_MAX);

/// Runs `work` on a blocking thread. Once begun, it goes on when the future is dropped.
///
/// # Errors
/// When the runtime ends meanwhile.
pub(crate) async fn run<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    // It is never closed.
    let permit = FREE.acquire().await;
    let work = move || {
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work).await
}
