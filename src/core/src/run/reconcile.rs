//! Effects that were started and whose outcome nobody recorded: they are observed, never repeated blindly (S3).

use super::pace::{IN_FLIGHT, later};
use super::{Next, RunCx, StepState};
use crate::ids::StepIx;
use crate::steps::{EffectClass, Lost};

/// The name of the out-of-service taint in sentences about a request that may still arrive.
pub(crate) const TAINT: &str = "the out-of-service taint";

impl RunCx<'_> {
    /// What to do about an outstanding effect. `None`: there is none.
    pub(super) fn outstanding(self) -> Option<Next> {
        let ix = self.state.outstanding()?;
        let started = match self.state.step(ix) {
            StepState::Started { at } | StepState::Issued { started: at, .. } => *at,
            StepState::Pending | StepState::Closed { .. } => return None,
        };
        let look = self.step(ix)?;
        Some(match look.step.kind.spec().lost {
            Lost::Observed(observe) => observe(&look, started),
            Lost::Order(observe) => observe(&look, self.state.sent_at(ix).unwrap_or(self.cx.now)),
            Lost::NoEffect => look.unobserved("such a step has no effect"),
            Lost::MayBeIssuedAgain => match look.step.effect_class {
                EffectClass::Repeatable | EffectClass::Conditional => look.unobserved(
                    "no reply was heard; the write names the object's UID and may be made again",
                ),
                EffectClass::Once => match self.declared_over(ix) {
                    Some(seen) => look.observed(false, &seen),
                    None => look.poll(&lost(&format!("the effect of step {ix}"))),
                },
            },
        })
    }

    /// The wait for a request whose reply nobody heard, while it may still arrive.
    pub(crate) fn maybe_in_flight(self, step: StepIx, what: &str) -> Option<Next> {
        let until = later(self.state.unheard_since(step)?, IN_FLIGHT);
        (self.cx.now < until).then(|| Next::Wait {
            why: format!("{what} may still take effect"),
            until,
        })
    }
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
