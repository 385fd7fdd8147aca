//! Where the simulated cloud takes its time from.
//!
//! The simulator has no background tasks: it is told the time and catches up on what fell due whenever somebody looks.
//! That makes it exact under tokio's paused clock as well as on a wall clock.

use jiff::{SignedDuration, Timestamp};
use std::sync::{Arc, Mutex, PoisonError};

/// Answers the present moment. It may stand still, but should not run backwards; where it does, the simulator keeps
/// the latest moment that it has seen.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The machine's wall clock, for the stand-alone binary.
#[allow(clippy::disallowed_methods)] // The one place of this crate where the system's clock is read.
pub fn system() -> Clock {
    Arc::new(Timestamp::now)
}

/// tokio's clock, counted from `start`: follows `tokio::time::pause` and `advance`.
///
/// Call it inside a runtime: the present tokio instant becomes `start`.
pub fn tokio_from(start: Timestamp) -> Clock {
    let origin = tokio::time::Instant::now();
    Arc::new(move || {
        let elapsed = SignedDuration::try_from(origin.elapsed()).unwrap_or(SignedDuration::ZERO);
        start.checked_add(elapsed).unwrap_or(start)
    })
}

/// A clock that moves only when told to.
#[derive(Clone, Debug)]
pub struct ManualClock(Arc<Mutex<Timestamp>>);

impl ManualClock {
    /// Starts at `start` and stands still there.
    pub fn new(start: Timestamp) -> Self {
        Self(Arc::new(Mutex::new(start)))
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: SignedDuration) {
        let mut now = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *now = now.checked_add(by).unwrap_or(*now);
    }

    /// This clock in the form that the simulator takes.
    pub fn clock(&self) -> Clock {
        let now = self.0.clone();
        Arc::new(move || *now.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
