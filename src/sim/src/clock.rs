//! One notion of "now" for everything that is simulated.

use jiff::Timestamp;
use tokio::time::Instant;

/// A wall clock that follows tokio's clock: `base` plus the time that tokio's `Instant` says has passed.
///
/// Under `tokio::time::pause` it moves with virtual time; otherwise it equals the wall clock up to later adjustments
/// of that clock.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base: Timestamp,
    start: Instant,
}

impl Clock {
    /// A clock that reads `base` now.
    #[must_use]
    pub fn starting_at(base: Timestamp) -> Self {
        Self {
            base,
            start: Instant::now(),
        }
    }

    /// A clock that reads the machine's wall clock now.
    #[must_use]
    #[allow(clippy::disallowed_methods)] // The one place of this crate where the system's clock is read.
    pub fn wall() -> Self {
        Self::starting_at(Timestamp::now())
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.base
            .checked_add(self.start.elapsed())
            .unwrap_or(Timestamp::MAX)
    }
}

/// A time as most Kubernetes fields write it: RFC 3339, UTC, whole seconds.
#[must_use]
pub(crate) fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time as `MicroTime` fields (leases, event series) write it.
#[must_use]
pub(crate) fn rfc3339_micro(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
