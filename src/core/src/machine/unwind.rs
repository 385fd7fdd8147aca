//! After turning back: put the workload back as it was, then end.

use super::{Action, Context, Effect, Next, State, StepState};
use crate::evidence::{Evidence, MAX_AGE};
use crate::fact::Reading;
use crate::journal::{End, Mark, Outcome, TurnBack};
use crate::plan::{Plan, StepIx};
use crate::runbook::StepKind;
use crate::workload::WorkloadFacts;
use jiff::{SignedDuration, Timestamp};

/// A write that was refused is tried again after so long.
pub(super) const RETRY: SignedDuration = SignedDuration::from_secs(1);

/// The next thing while unwinding. No effect is outstanding here: `observe` has dealt with it.
pub(super) fn next(plan: &Plan, state: &State, evidence: &Evidence, cx: &Context<'_>, why: &TurnBack) -> Next {
    let scaled = plan.find(StepKind::ScaleToZero).is_some_and(|s| !matches!(state.step(s), StepState::Pending));
    let Some(restore) = plan.find(StepKind::Restore).filter(|_| scaled) else {
        return end(why);
    };
    if let StepState::Issued { outcome: Outcome::NotApplied { why, retry: false }, .. } = state.step(restore) {
        return Next::Record(Mark::Ended {
            end: End::Stuck { why: format!("the workload could not be restored ({why}); its stamp says how") },
        });
    }
    match evidence.workload.read(cx.now, MAX_AGE) {
        Reading::Present(w) => match put_back(restore, w, state, cx) {
            Some(next) => next,
            None => end(why),
        },
        Reading::Absent => end(why),
        _ => Next::Wait {
            why: "the workload must be read to restore it".to_owned(),
            until: later(cx.now, RETRY),
        },
    }
}

/// The restoring effect, if one is still due: the stamp alone decides.
pub(super) fn put_back(restore: StepIx, w: &WorkloadFacts, state: &State, cx: &Context<'_>) -> Option<Next> {
    let Some(Ok(stamp)) = &w.stamp else { return None };
    if stamp.recovery != *cx.recovery || stamp.workload != w.workload.uid {
        return None;
    }
    if let StepState::Issued { outcome: Outcome::NotApplied { why, .. }, at, .. } = state.step(restore)
        && cx.now < later(*at, RETRY)
    {
        return Some(Next::Wait { why: format!("the restoring write is tried again: {why}"), until: later(*at, RETRY) });
    }
    let replicas = (w.replicas == 0).then_some(stamp.replicas);
    let intent = match replicas {
        Some(n) => format!("scale {} back to {n} and remove the stamp", w.workload),
        None => format!("remove the stamp from {}; its {} replicas are someone else's and stand", w.workload, w.replicas),
    };
    Some(Next::Act(Action {
        step: restore,
        intent,
        effect: Effect::Restore {
            workload: w.workload.clone(),
            resource_version: w.resource_version.clone(),
            path: w.scaling,
            replicas,
        },
    }))
}

fn end(why: &TurnBack) -> Next {
    let end = match why {
        TurnBack::Aborted { .. } => End::Aborted,
        other => End::Failed { why: other.to_string() },
    };
    Next::Record(Mark::Ended { end })
}

/// `at + by`, without a panic at the end of time.
pub(super) fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}
