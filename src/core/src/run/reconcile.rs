//! Effects that were started and whose outcome nobody recorded: they are observed, never repeated blindly (S3).

use super::pace::{IN_FLIGHT, later};
use super::{Context, Next, State, StepState, orders};
use crate::evidence::EvidenceAt;
use crate::plan::{Plan, StepIx};
use crate::steps::{EffectClass, Lost, StepCx};

/// The name of the out-of-service taint in sentences about a request that may still arrive.
pub(crate) const TAINT: &str = "the out-of-service taint";

/// What to do about an outstanding effect. `None`: there is none.
pub(super) fn outstanding(
    plan: &Plan,
    state: &State,
    evidence: EvidenceAt<'_>,
    cx: &Context<'_>,
) -> Option<Next> {
    let ix = state.outstanding()?;
    let started = match state.step(ix) {
        StepState::Started { at } | StepState::Issued { started: at, .. } => *at,
        StepState::Pending | StepState::Closed { .. } => return None,
    };
    let look = StepCx::of(plan, state, evidence, cx, ix)?;
    Some(match look.step.kind.spec().lost {
        Lost::Observed(observe) => observe(&look, started),
        Lost::Order(observe) => observe(&look, state.sent_at(ix).unwrap_or(cx.now)),
        Lost::NoEffect => look.unobserved("such a step has no effect"),
        Lost::MayBeIssuedAgain => match look.step.effect_class {
            EffectClass::Repeatable | EffectClass::Conditional => look.unobserved(
                "no reply was heard; the write names the object's UID and may be made again",
            ),
            EffectClass::Once => match orders::declared_over(state, ix, cx) {
                Some(seen) => look.observed(false, &seen),
                None => look.poll(&lost(&format!("the effect of step {ix}"))),
            },
        },
    })
}

/// The wait for a request whose reply nobody heard, while it may still arrive.
pub(crate) fn maybe_in_flight(
    state: &State,
    step: StepIx,
    cx: &Context<'_>,
    what: &str,
) -> Option<Next> {
    let until = later(state.unheard_since(step)?, IN_FLIGHT);
    (cx.now < until).then(|| Next::Wait {
        why: format!("{what} may still be on its way"),
        until,
    })
}

/// What is waited for where nothing tells what became of an order.
pub(crate) fn lost(order: &str) -> String {
    format!(
        "{order} has no known outcome and the provider's history does not show it: it may still arrive, so nothing is lifted or restored; once you are sure that nothing is under way: kubectl reattach declare --nothing-under-way"
    )
}

/// What is waited for where nothing leads to the cloud any more.
pub(crate) fn unreachable(order: &str) -> String {
    format!(
        "{order} has no known outcome and the cloud cannot be asked, since the PersistentVolume is gone: it may still be under way, so nothing is lifted or restored; once you are sure that nothing is under way: kubectl reattach declare --nothing-under-way"
    )
}
