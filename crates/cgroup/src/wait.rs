use std::time::{Duration, Instant};

use rustix::event::{PollFd, Timespec, poll};

/// Shortest and longest time between two looks at a condition that has no descriptor to wake us.
const PAUSE_MIN: Duration = Duration::from_micros(200);
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// A bounded wait for a condition that the caller looks at again and again; descriptors wake it early.
pub(crate) struct Patience {
    start: Instant,
    bound: Duration,
    pause: Duration,
}

impl Patience {
    pub(crate) fn new(bound: Duration) -> Self {
        Self { start: Instant::now(), bound, pause: PAUSE_MIN }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.start.elapsed() >= self.bound
    }

    pub(crate) fn waited_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Until one of `wakers` has something, or it is time to look again.
    pub(crate) fn rest(&mut self, wakers: &mut [PollFd<'_>]) {
        let left = self.bound.saturating_sub(self.start.elapsed());
        let pause = Timespec::try_from(self.pause.min(left)).unwrap_or(Timespec { tv_sec: 0, tv_nsec: 1 });
        // An interrupted poll is one more look.
        let _looks_again = poll(wakers, Some(&pause));
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}
