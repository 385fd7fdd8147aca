//! The share of one limit, as the generic cell rate algorithm: one moment says how much of the share is used.

use super::limit::{Allowance, Announced};
use std::time::Duration;

/// The part of a limit that this client may use, one half. The other half belongs to the CSI driver and to people.
const SHARE: u32 = 2;

/// One in so many requests of the share may be sent at once. The rest is spread over the window, so that a burst and a window's
/// worth together stay within the share, wherever the provider's window begins.
const BURST: u32 = 4;

/// Looks are held back while less than one in so many requests of a window is left. The client then has not used more than
/// its half, so other clients use more than theirs; what is left belongs to them and to effects.
const RESERVE: u32 = 4;

/// The share of one limit. All moments are durations since the limiter's origin.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    limit: Allowance,
    /// When the share will be full again. It moves on with each request.
    full_at: Duration,
    /// Requests that the provider says are left, and until when it says so.
    left: Option<(u32, Duration)>,
}

impl Bucket {
    pub(super) fn new(limit: Allowance) -> Self {
        Self {
            limit,
            full_at: Duration::ZERO,
            left: None,
        }
    }

    /// How long a look waits before it may be sent.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        let turn = self
            .full_at
            .max(now)
            .saturating_sub(self.interval() * (self.burst() - 1));
        let reset = match self.left {
            Some((left, until)) if left <= self.limit.requests / RESERVE => until,
            _ => Duration::ZERO,
        };
        turn.max(reset).saturating_sub(now)
    }

    /// Counts one request.
    pub(super) fn take(&mut self, now: Duration) {
        self.full_at = self.full_at.max(now) + self.interval();
    }

    /// Notes what an answer says about the limit. `window` is the shortest that the provider publishes.
    pub(super) fn announce(&mut self, announced: &Announced, window: Duration, now: Duration) {
        if let Some(requests) = announced.limit.filter(|requests| *requests > 0) {
            // The provider announces no length of the window. It is at least the time until its end.
            let window = announced.resets_in.unwrap_or_default().max(window);
            self.limit = Allowance {
                requests,
                window: window.max(self.limit.window),
            };
        }
        self.left = match (announced.remaining, announced.resets_in) {
            (Some(remaining), Some(resets_in)) => Some((remaining, now + resets_in)),
            _ => self.left.filter(|(_, until)| *until > now),
        };
    }

    /// Number of looks that may be sent at once.
    pub(super) fn at_once(&self, now: Duration) -> u32 {
        if !self.wait(now).is_zero() {
            return 0;
        }
        let used = self.full_at.saturating_sub(now).as_secs_f64() / self.interval().as_secs_f64();
        self.burst().saturating_sub(used.ceil() as u32)
    }

    /// Requests of all clients together that the provider said are left in its present window.
    pub(super) fn remaining(&self, now: Duration) -> Option<u32> {
        self.left
            .filter(|(_, until)| *until > now)
            .map(|(left, _)| left)
    }

    fn share(&self) -> u32 {
        (self.limit.requests / SHARE).max(1)
    }

    fn burst(&self) -> u32 {
        (self.share() / BURST).max(1)
    }

    /// Time between two looks once the burst is used up.
    fn interval(&self) -> Duration {
        self.limit.window / self.share().saturating_sub(self.burst()).max(1)
    }
}
