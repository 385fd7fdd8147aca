//! When to look unasked: seldom while nothing happens, soon after news, and never so often that it costs the node.

use std::time::Duration;
use tokio::time::Instant;

/// How long to wait after news: one event seldom comes alone, and the next look sees them all.
const SETTLE: Duration = Duration::from_millis(250);
/// The shortest time between the end of a look and the next one that news cause.
const BREATH: Duration = Duration::from_secs(1);
/// That time as a multiple of the processor time of the look: news cost one part in so many of one core.
const SHARE: u32 = 200;
/// When to look again after a change: what came without news (a process, a mount in a namespace of its own) goes without
/// news. Doubles with each look that finds nothing new, up to the usual time.
const AGAIN: Duration = Duration::from_secs(10);

/// The times of unasked looks.
#[derive(Debug)]
pub(super) struct Pace {
    usual: Duration,
    current: Duration,
    next: Instant,
    /// Before this no news cause a look.
    rest_until: Instant,
    hurried: bool,
}

impl Pace {
    /// Looks at once, and `usual` after each look that found nothing new at the latest.
    pub(super) fn new(usual: Duration, now: Instant) -> Self {
        Self { usual, current: usual, next: now, rest_until: now, hurried: false }
    }

    /// When to look next.
    pub(super) fn next_look(&self) -> Instant {
        self.next
    }

    /// Whether news have been heard that no look has followed yet. Until then more news say nothing more.
    pub(super) fn is_hurried(&self) -> bool {
        self.hurried
    }

    /// There are news.
    pub(super) fn hurry(&mut self, now: Instant) {
        self.hurried = true;
        self.next = self.next.min((now + SETTLE).max(self.rest_until));
    }

    /// A look was made that took so much processor time; `changed`: it brought something new.
    pub(super) fn looked(&mut self, ended: Instant, cost: Duration, changed: bool) {
        self.current = if changed { AGAIN } else { self.current * 2 }.min(self.usual);
        self.next = ended + self.current;
        self.rest_until = ended + (cost * SHARE).max(BREATH).min(self.usual);
        self.hurried = false;
    }

    /// It was time to look, and there was no report to look for.
    pub(super) fn put_off(&mut self, now: Instant) {
        self.next = now + self.usual;
        self.hurried = false;
    }

    /// The look failed, or may not be made before `at`, whatever the news.
    pub(super) fn retry(&mut self, at: Instant) {
        self.next = at;
        self.rest_until = at;
    }
}
