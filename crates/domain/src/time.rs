use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Wall-clock time in nanoseconds since the Unix epoch, as CRI wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// The time now. A clock outside of 1970–2262 reads as 1, so that a time is never 0, which CRI takes as "unset".
    #[must_use]
    pub fn now() -> Self {
        let nanos = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |d| d.as_nanos());
        Self(i64::try_from(nanos).unwrap_or(1).max(1))
    }
}
