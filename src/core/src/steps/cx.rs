//! What a step looks at, and the answers that every step can give.

use super::StepKind;
use crate::diagnosis::{Verdict, diagnose};
use crate::fact::Missing;
use crate::ids::StepIx;
use crate::journal::{Event, Outcome, UnwindReason};
use crate::plan::{PlannedStep, Scope};
use crate::run::pace::RETRY;
use crate::run::{Next, RunCx, StepState};
use crate::runbook::Holding;
use crate::stamp;
use crate::workload::WorkloadFacts;
use jiff::Timestamp;
use std::ops::Deref;

/// One look at the current step.
pub(crate) struct StepCx<'a> {
    run: RunCx<'a>,
    pub(crate) ix: StepIx,
    pub(crate) step: &'a PlannedStep,
    pub(crate) entered: Timestamp,
}

impl<'a> Deref for StepCx<'a> {
    type Target = RunCx<'a>;

    fn deref(&self) -> &RunCx<'a> {
        &self.run
    }
}

impl<'a> RunCx<'a> {
    /// The look at the step of this number; none if the plan has no such step.
    pub(crate) fn step(self, ix: StepIx) -> Option<StepCx<'a>> {
        Some(StepCx {
            run: self,
            ix,
            step: self.plan.steps.get(ix.index())?,
            entered: self.state.entered_at().unwrap_or(self.cx.now),
        })
    }
}

impl StepCx<'_> {
    /// The next thing to do for the step.
    pub(crate) fn next(&self) -> Next {
        (self.step.kind.spec().next)(self)
    }

    pub(crate) fn scope(&self) -> Scope<'_> {
        let pins = &self.plan.pins;
        Scope {
            node: &pins.node,
            releases: self.plan.releases(),
            holder: &pins.holder,
        }
    }

    /// A plan may be old when its first effect is due, and kubelet may have mounted the volume a moment ago: the trouble
    /// itself must still be there. What is not clear now may be clear again before the deadline.
    pub(crate) fn trouble_is_over(&self) -> Option<Next> {
        match diagnose(self.evidence).verdict {
            Verdict::Ours { trouble } if trouble.is_same(&self.plan.trouble) => None,
            doubt @ (Verdict::Unclassified { .. } | Verdict::Wait { .. }) => {
                Some(self.poll(&doubt.to_string()))
            }
            other => Some(self.refused(&format!("the diagnosis changed: {other}"))),
        }
    }

    /// The same where something was done already and the trouble may look different for that.
    pub(crate) fn trouble_is_over_untouched(&self) -> Option<Next> {
        if self.state.touched() {
            None
        } else {
            self.trouble_is_over()
        }
    }

    /// The step's write was refused for good, or it was refused or withheld and is issued again later.
    pub(crate) fn was_refused(&self) -> Option<Next> {
        if let StepState::Issued {
            outcome: Outcome::NotApplied { why, retry: false },
            ..
        } = self.state.step(self.ix)
        {
            return Some(self.failed(why));
        }
        self.before_retry(self.ix, &format!("{:?}", self.step.kind), RETRY)
    }

    /// A step that the run can do without: its effect was accepted, or refused for good.
    pub(super) fn accepted_or_given_up(&self, accepted: &str) -> Option<Next> {
        match self.state.step(self.ix) {
            StepState::Issued { outcome, .. } if outcome.applied() => {
                Some(self.completed(accepted))
            }
            StepState::Issued {
                outcome: Outcome::NotApplied { why, retry: false },
                ..
            } => Some(self.skipped(why)),
            _ => None,
        }
    }

    /// What is there by our own hand is done; what another recovery of ours did is not ours to end.
    pub(super) fn done_or_skipped(&self, seen: &str) -> Next {
        match self.state.step(self.ix) {
            StepState::Pending
            | StepState::Issued {
                outcome:
                    Outcome::NotApplied { .. }
                    | Outcome::RefusedByBudget { .. }
                    | Outcome::Withheld { .. },
                ..
            } if self.state.unheard_since(self.ix).is_none() => {
                self.skipped(&format!("{seen}, by another recovery"))
            }
            // The write was accepted, or the reply to an attempt was lost: then the mark may be ours.
            _ => self.completed(seen),
        }
    }

    pub(super) fn own_stamp(&self, w: &WorkloadFacts) -> bool {
        matches!(&w.stamp, Some(Ok(s)) if stamp::own(s, &w.workload, self.cx.recovery).is_some())
    }

    /// Someone who changed the count or the stamp while the workload was at zero wins.
    /// Under a hold the count is nobody's business.
    pub(crate) fn taken_over(&self) -> Option<Next> {
        if self.plan.holding() != Holding::AtZero {
            return None;
        }
        let since = match self.state.step(self.ix) {
            StepState::Issued { at, .. } if self.step.kind == StepKind::ScaleToZero => *at,
            _ => self.entered,
        };
        if self.evidence.workload.at < since {
            return Some(self.poll("the workload must be read again"));
        }
        let what = match self.evidence.workload() {
            Ok(w) => match &w.stamp {
                _ if self.own_stamp(w) && w.replicas == 0 => return None,
                _ if self.own_stamp(w) => format!("{} was scaled to {}", w.workload, w.replicas),
                _ => format!("the stamp on {} is gone or changed", w.workload),
            },
            Err(Missing::Absent) => "the workload was deleted".to_owned(),
            _ => return None,
        };
        Some(Next::Record(Event::UnwindStarted {
            why: UnwindReason::TakenOver { what },
        }))
    }

    pub(crate) fn skipped(&self, why: &str) -> Next {
        Next::Record(Event::Skipped {
            step: self.ix,
            why: why.to_owned(),
        })
    }

    pub(crate) fn completed(&self, seen: &str) -> Next {
        Next::Record(Event::Completed {
            step: self.ix,
            seen: seen.to_owned(),
        })
    }

    pub(crate) fn refused(&self, why: &str) -> Next {
        Next::Record(Event::UnwindStarted {
            why: UnwindReason::Refused {
                step: self.ix,
                why: why.to_owned(),
            },
        })
    }

    pub(crate) fn failed(&self, why: &str) -> Next {
        Next::Record(Event::UnwindStarted {
            why: UnwindReason::Failed {
                step: self.ix,
                why: why.to_owned(),
            },
        })
    }

    /// The outcome of the step's effect, as it was seen.
    pub(crate) fn observed(&self, applied: bool, seen: &str) -> Next {
        let seen = seen.to_owned();
        let outcome = if applied {
            Outcome::ObservedApplied { seen }
        } else {
            Outcome::ObservedNotApplied { seen }
        };
        Next::Record(Event::Outcome {
            step: self.ix,
            outcome,
        })
    }

    /// Nothing was seen of the step's effect, and nothing has to be.
    pub(crate) fn unobserved(&self, why: &str) -> Next {
        Next::Record(Event::Outcome {
            step: self.ix,
            outcome: Outcome::Repeatable {
                why: why.to_owned(),
            },
        })
    }
}
