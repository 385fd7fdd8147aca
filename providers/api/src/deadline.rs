//! The time limit of one call to the cloud.

use crate::ProviderError;
use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// Least time that must be left before a request that changes something is sent, 500 ms. With less, the answer would
/// hardly arrive in time, and the outcome would be unknown for no gain.
const LEAST_TIME_TO_SEND: Duration = Duration::from_millis(500);

/// The moment by which a whole call must be over: its reads and its one request that changes something.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// The deadline of a call that begins now and may take `timeout`.
    pub fn after(timeout: Duration) -> Self {
        Self(Instant::now() + timeout)
    }

    /// Returns the output of `work`, or `None` when the deadline passed first. `work` is dropped then.
    pub async fn bound<F: Future>(self, work: F) -> Option<F::Output> {
        tokio::time::timeout_at(self.0, work).await.ok()
    }

    /// Returns the time that is left, zero when the deadline has passed.
    pub fn left(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Returns whether enough time is left to send a request that changes something and to learn its outcome.
    pub fn leaves_time_to_send(self) -> bool {
        self.left() >= LEAST_TIME_TO_SEND
    }

    /// Reads the object that `operation` is about before anything is sent. `what` names the object: "the volume".
    ///
    /// # Errors
    /// The error of `reading`, or [`ProviderError::NotApplied`] when `reading` left too little time to send anything.
    pub async fn read_first<T>(
        self,
        operation: &str,
        what: &str,
        reading: impl Future<Output = Result<T, ProviderError>>,
    ) -> Result<T, ProviderError> {
        match self.bound(reading).await {
            Some(found) => found,
            None => {
                let reason = format!("reading {what} first took all the time allowed");
                Err(ProviderError::not_applied(operation, reason))
            }
        }
    }

    /// Checks, after [`Self::read_first`], that enough time is left to send a request that changes something.
    ///
    /// # Errors
    /// [`ProviderError::NotApplied`] when it is not.
    pub fn check_time_to_send(self, operation: &str, what: &str) -> Result<(), ProviderError> {
        if self.leaves_time_to_send() {
            return Ok(());
        }
        Err(ProviderError::not_applied(
            operation,
            format!("reading {what} first left too little time"),
        ))
    }
}
