//! The only place where time enters. Wall-clock time is derived from tokio's clock, so paused test time moves it too.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;
use tokio::time::Instant;

/// A clock: a moment of wall-clock time plus what tokio's clock has counted since.
///
/// # Caveats
/// A wall clock that is set while the process runs is not followed: durations stay right, which is what leases and
/// deadlines need.
#[derive(Clone, Debug)]
pub struct Clock {
    base: Timestamp,
    since: Instant,
}

impl Clock {
    /// The system's clock.
    #[allow(clippy::disallowed_methods)] // The one place where the system's clock is read.
    pub fn system() -> Self {
        Self::starting_at(Timestamp::now())
    }

    /// A clock that shows `base` now: for virtual time.
    pub fn starting_at(base: Timestamp) -> Self {
        Self {
            base,
            since: Instant::now(),
        }
    }

    /// Now.
    pub fn now(&self) -> Timestamp {
        let passed = SignedDuration::try_from(self.since.elapsed()).unwrap_or(SignedDuration::MAX);
        self.base.saturating_add(passed).unwrap_or(Timestamp::MAX)
    }

    /// How long until `at`; zero when it has passed.
    pub fn until(&self, at: Timestamp) -> Duration {
        Duration::try_from(at.duration_since(self.now())).unwrap_or(Duration::ZERO)
    }

    /// Waits until `at`.
    pub async fn sleep_until(&self, at: Timestamp) {
        tokio::time::sleep(self.until(at)).await;
    }
}
