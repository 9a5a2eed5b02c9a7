//! The door to the blocking threads for what a call waits for: mounts, records, cgroup files, tree removal. Work that nobody waits for
//! (measuring writable layers) and the image store's own go to the same threads beside it.

use crate::error::{Error, Result};

/// Runs `work` on a blocking thread within the current span. Dropping the future does not stop the work.
///
/// # Errors
/// What `work` returns; [`Error::Internal`] when it panicked.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.unwrap_or_else(|join| {
        Err(Error::Internal { what: "a blocking task ended abnormally", cause: join.to_string() })
    })
}
