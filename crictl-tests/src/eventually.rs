//! Waiting for a condition, bounded, with what was seen last in the error.
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

/// A length of time in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Seconds(pub u64);

/// For what takes a moment: enough on a machine that is many times slower, or busy with something else. Less than the minute after
/// which the daemon tries again what failed, so that a second try does not pass for the first.
pub const SOON: Seconds = Seconds(45);

const POLL: Duration = Duration::from_millis(20);

/// Asks again until the answer is `Ok` or the time is up.
///
/// # Errors
/// The last answer, when the time is up.
pub fn eventually<T>(limit: Seconds, mut check: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + Duration::from_secs(limit.0);
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error).with_context(|| format!("not within {} s", limit.0));
            }
            Err(_) => pause(POLL),
        }
    }
}

/// Lets time pass between two looks at a condition, or where time itself is the subject.
pub fn pause(length: Duration) {
    let deadline = Instant::now() + length;
    while let Some(left) = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        std::thread::park_timeout(left);
    }
}
