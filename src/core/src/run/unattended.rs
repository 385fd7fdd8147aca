//! The time of a step in which nobody could act, which does not count against its deadline (S5).

use super::State;
use crate::evidence::Evidence;
use jiff::{SignedDuration, Timestamp};

/// Two looks that are farther apart than this were not made by a process that ran in between: it was stopped, or its machine
/// slept. Twice the longest pause between two turns of a driver.
const LONGEST_GAP: SignedDuration = SignedDuration::from_secs(40);

/// Counts the time in which nobody could act in the current step of one run.
///
/// # Expected flow
/// The driver of a run calls [`Unattended::look`] at each look, and [`Unattended::away`] when a look failed.
///
/// # Guarantees
/// A step's deadline counts from this process's first look at the step, and from then on only the time between two looks of
/// which both could act.
///
/// # Caveats
/// What another process attended to is not known and counts as unattended. A process that always dies before a deadline is
/// over therefore never turns a run back; a person can abort it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unattended {
    /// When the step that is counted for could begin.
    entered: Option<Timestamp>,
    /// How long nobody could act in it.
    lost: SignedDuration,
    /// The last look, and whether it could act.
    last: Option<(Timestamp, bool)>,
}

impl Unattended {
    /// Counts a look at the run. Returns the unattended time of its current step so far.
    pub fn look(&mut self, state: &State, evidence: &Evidence, now: Timestamp) -> SignedDuration {
        let able = !evidence.cloud_is_away();
        let entered = state.entered_at();
        let (since, counts) = match self.last {
            Some((last, could)) if self.entered == entered => (last, able && could),
            _ => {
                self.lost = SignedDuration::ZERO;
                (entered.unwrap_or(now), false)
            }
        };
        let gap = now.duration_since(since).max(SignedDuration::ZERO);
        if !counts || gap > LONGEST_GAP {
            self.lost = self.lost.saturating_add(gap);
        }
        (self.entered, self.last) = (entered, Some((now, able)));
        self.lost
    }

    /// A look failed: nobody could act until the next one.
    pub fn away(&mut self) {
        if let Some((_, able)) = &mut self.last {
            *able = false;
        }
    }
}
