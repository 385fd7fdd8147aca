//! What the machine looks at to find the next thing to do.

use super::pace::{self, CLOUD_POLL, later, wait};
use super::{Context, Next, State, StepState};
use crate::evidence::EvidenceAt;
use crate::journal::Outcome;
use crate::plan::{Plan, StepIx};
use jiff::SignedDuration;

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

    pub(crate) fn backoff(self, step: StepIx) -> SignedDuration {
        pace::backoff(self.state.attempts(step))
    }

    /// The pause before a step's write is sent again, after the last one was refused (at least `pause`) or withheld. `None`:
    /// there is nothing to wait for. `what` names the write.
    pub(crate) fn before_retry(
        self,
        step: StepIx,
        what: &str,
        pause: SignedDuration,
    ) -> Option<Next> {
        let StepState::Issued { outcome, at, .. } = self.state.step(step) else {
            return None;
        };
        let backoff = self.backoff(step);
        let (why, again) = match outcome {
            Outcome::NotApplied { why, .. } => (
                format!("{what} is tried again: {why}"),
                later(*at, backoff.max(pause)),
            ),
            Outcome::Withheld { shut } => (
                format!("{what} was not sent ({shut}); it will be"),
                later(*at, backoff),
            ),
            Outcome::Applied { .. }
            | Outcome::Unknown { .. }
            | Outcome::ObservedApplied { .. }
            | Outcome::ObservedNotApplied { .. }
            | Outcome::Repeatable { .. } => return None,
        };
        (self.cx.now < again).then(|| wait(why, again))
    }
}
