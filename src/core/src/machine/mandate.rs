//! Before each effect of the way forward: may this recovery still do it? Policy, rights and approval are read again with the
//! other evidence, so that a run whose word was taken back turns back.

use super::pace::{CLOUD_POLL, later, wait};
use super::{Context, Next, State, forward};
use crate::authority::mandate;
use crate::evidence::Evidence;
use crate::journal::{Mark, TurnBack};
use crate::plan::Plan;

/// The next thing on the way forward, as far as the recovery's mandate allows it.
pub(super) fn next(plan: &Plan, state: &State, evidence: &Evidence, cx: &Context<'_>) -> Next {
    let step = state.current().and_then(|ix| plan.steps.get(ix.index())).map(|s| s.kind);
    // What only puts back, or looks, needs no word.
    if step.is_none_or(|kind| kind.spec().needs_no_mandate()) {
        return forward::next(plan, state, evidence, cx);
    }
    let doubt = match mandate(evidence, cx.now) {
        Ok(mandate) => match mandate.may_act(&plan.hash) {
            Ok(()) => return forward::next(plan, state, evidence, cx),
            Err(denial) if !denial.may_pass() => {
                return Next::Record(Mark::TurnedBack { why: TurnBack::Denied { denial } });
            }
            Err(denial) => denial.to_string(),
        },
        Err(why) => format!("what this recovery may do is not known ({why})"),
    };
    match forward::next(plan, state, evidence, cx) {
        // None of these steps has an effect that puts back.
        Next::Act(_) => wait(doubt, later(cx.now, CLOUD_POLL)),
        other => other,
    }
}
