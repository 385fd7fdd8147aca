//! Clocks of the simulated cloud.
//!
//! The simulator has no background tasks: every call reads the clock and first finishes the jobs that are due. So it is
//! exact under tokio's paused clock as well as on a wall clock.

use jiff::{SignedDuration, Timestamp};
use std::sync::{Arc, Mutex, PoisonError};

/// Returns the present time. The time may stand still. It should not run backwards; when it does, the simulator keeps
/// the latest time that it has seen.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine's wall clock, for the stand-alone binary.
#[allow(clippy::disallowed_methods)] // The one place of this crate where the system's clock is read.
pub fn system() -> Clock {
    Arc::new(Timestamp::now)
}

/// tokio's clock, counted from `start`. Follows `tokio::time::pause` and `advance`.
///
/// Call it inside a runtime: the present tokio instant becomes `start`.
pub fn tokio_from(start: Timestamp) -> Clock {
    let origin = tokio::time::Instant::now();
    Arc::new(move || {
        let elapsed = SignedDuration::try_from(origin.elapsed()).unwrap_or(SignedDuration::ZERO);
        start.checked_add(elapsed).unwrap_or(start)
    })
}

/// A clock that moves only by [`ManualClock::advance`].
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Timestamp>>);

impl ManualClock {
    /// A clock that stands still at `start`.
    pub fn new(start: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(start)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: SignedDuration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.checked_add(by).unwrap_or(*now);
    }

    /// Returns this clock in the form that the simulator takes.
    pub fn clock(&self) -> Clock {
        let now = self.0.clone();
        Arc::new(move || *now.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
