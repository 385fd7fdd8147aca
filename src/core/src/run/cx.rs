//! What the machine looks at to find the next thing to do.

use super::pace::{self, CLOUD_POLL, later, wait};
use super::{Context, Next, State, StepState};
use crate::evidence::EvidenceAt;
use crate::ids::StepIx;
use crate::journal::Outcome;
use crate::plan::Plan;
use jiff::{SignedDuration, Timestamp};

/// One look at a run.
#[derive(Clone, Copy)]
pub(crate) struct RunCx<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) state: &'a State,
    pub(crate) evidence: EvidenceAt<'a>,
    pub(crate) cx: &'a Context<'a>,
}

impl RunCx<'_> {
    /// A wait until the next look at cloud and cluster.
    pub(crate) fn poll(self, why: &str) -> Next {
        wait(why.to_owned(), later(self.cx.now, CLOUD_POLL))
    }

    /// The pause after a step's last write of `at`, which grows with the step's attempts. `None`: it is over.
    pub(crate) fn pause(self, step: StepIx, at: Timestamp, why: &str) -> Option<Next> {
        self.until(later(at, self.backoff(step)), why)
    }

    pub(crate) fn backoff(self, step: StepIx) -> SignedDuration {
        pace::backoff(self.state.attempts(step))
    }

    pub(crate) fn until(self, again: Timestamp, why: &str) -> Option<Next> {
        (self.cx.now < again).then(|| wait(why.to_owned(), again))
    }

    /// The pause before a step's write is sent again, after the last one was refused (at least `least`) or withheld. `None`:
    /// there is nothing to wait for. `what` names the write.
    pub(crate) fn before_retry(
        self,
        step: StepIx,
        what: &str,
        least: SignedDuration,
    ) -> Option<Next> {
        let StepState::Issued { outcome, at, .. } = self.state.step(step) else {
            return None;
        };
        match outcome {
            Outcome::NotApplied { why, .. } => self.until(
                later(*at, self.backoff(step).max(least)),
                &format!("{what} is tried again: {why}"),
            ),
            Outcome::Withheld { shut } => self.pause(
                step,
                *at,
                &format!("{what} was not sent ({shut}); it will be"),
            ),
            // The step that evicts says when it asks again.
            Outcome::RefusedByBudget { .. }
            | Outcome::Applied { .. }
            | Outcome::Unknown { .. }
            | Outcome::ObservedApplied { .. }
            | Outcome::ObservedNotApplied { .. }
            | Outcome::Repeatable { .. } => None,
        }
    }
}
