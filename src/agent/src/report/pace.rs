//! The times of scans without a challenge: seldom while nothing happens, soon after an event, and with bounded cost.

use std::time::Duration;
use tokio::time::Instant;

/// Wait between an event and its scan. Events often come together, and one scan covers them all.
const SETTLE: Duration = Duration::from_millis(250);
/// Minimum time between the end of a scan and the next scan because of an event.
const MIN_REST: Duration = Duration::from_secs(1);
/// That time as a multiple of the processor time of the scan: events cost at most one part in `SHARE` of one core.
const SHARE: u32 = 200;
/// First time to the next scan after a change. A change without an event (a process, a mount in another namespace) also ends
/// without one. The time doubles with each scan that finds no change, up to `usual`.
const RESCAN_AFTER_CHANGE: Duration = Duration::from_secs(10);

/// The times of scans without a challenge.
#[derive(Debug)]
pub(super) struct Pace {
    usual: Duration,
    current: Duration,
    next: Instant,
    /// Until this time no event causes a scan.
    rest_until: Instant,
    has_event: bool,
}

impl Pace {
    /// Scans at once, and at most `usual` after each scan.
    pub(super) fn new(usual: Duration, now: Instant) -> Self {
        Self {
            usual,
            current: usual,
            next: now,
            rest_until: now,
            has_event: false,
        }
    }

    /// Returns the time of the next scan.
    pub(super) fn next_scan(&self) -> Instant {
        self.next
    }

    /// Returns whether there was an event since the last scan. Further events need not be read then.
    pub(super) fn has_event(&self) -> bool {
        self.has_event
    }

    /// Registers an event.
    pub(super) fn event(&mut self, now: Instant) {
        self.has_event = true;
        self.next = self.next.min((now + SETTLE).max(self.rest_until));
    }

    /// Registers a finished scan and its processor time. `changed`: it found a change.
    pub(super) fn scanned(&mut self, ended: Instant, cost: Duration, changed: bool) {
        self.current = if changed {
            RESCAN_AFTER_CHANGE
        } else {
            self.current * 2
        }
        .min(self.usual);
        self.next = ended + self.current;
        self.rest_until = ended + (cost * SHARE).max(MIN_REST).min(self.usual);
        self.has_event = false;
    }

    /// Postpones a due scan, because there is no report yet.
    pub(super) fn postpone(&mut self, now: Instant) {
        self.next = now + self.usual;
        self.has_event = false;
    }

    /// Sets the next scan to `at` after a failure. Events do not cause an earlier one.
    pub(super) fn retry(&mut self, at: Instant) {
        self.next = at;
        self.rest_until = at;
    }
}
