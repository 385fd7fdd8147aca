//! Before each effect of the way forward: may this recovery still do it? Policy, rights and approval are read again with the
//! other evidence, so that a run whose word was taken back turns back.

use super::forward::{self, Look, wait};
use super::observe::CLOUD_POLL;
use super::unwind::later;
use super::{Context, Next, State, StepState};
use crate::authority::{Mandate, mandate};
use crate::evidence::Evidence;
use crate::journal::{Mark, Outcome, TurnBack};
use crate::plan::{Plan, may_touch_node};
use crate::runbook::StepKind;

/// The next thing on the way forward, as far as the recovery's mandate allows it.
pub(super) fn next(plan: &Plan, state: &State, evidence: &Evidence, cx: &Context<'_>) -> Next {
    let step = state.current().and_then(|ix| plan.steps.get(ix.index())).map(|s| s.kind);
    // What only puts back, or looks, needs no word.
    if step.is_none_or(StepKind::only_puts_back) {
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

impl Look<'_> {
    /// What stands against touching the whole node, before each such effect: the word by which it is done may have been taken
    /// back since the last one. The wait for a brake, a boot or a maintenance has no deadline: the status says what is waited
    /// for, and a person is called.
    pub(super) fn node_is_spared(&self) -> Option<Next> {
        let steps = [StepKind::PowerOff, StepKind::Quarantine, StepKind::TaintOutOfService];
        let due = match self.state.step(self.ix) {
            StepState::Pending
            | StepState::Issued { outcome: Outcome::NotApplied { retry: true, .. }, .. } => true,
            StepState::Started { .. } | StepState::Issued { .. } | StepState::Closed { .. } => false,
        };
        if !due || !steps.contains(&self.step.kind) {
            return None;
        }
        // The step itself says so.
        if let Some(Next::Record(_)) = self.not_to_be_fenced() {
            return None;
        }
        let refusals = may_touch_node(self.plan, self.evidence, self.cx.now);
        if let Some(refusal) = refusals.iter().find(|r| !r.may_pass()) {
            return Some(self.refused(&refusal.to_string()));
        }
        let refusal = refusals.first()?;
        Some(wait(refusal.to_string(), later(self.cx.now, CLOUD_POLL)))
    }

    /// What stands against closing the node to new pods.
    pub(super) fn not_to_be_closed(&self) -> Option<Next> {
        let refusals = may_touch_node(self.plan, self.evidence, self.cx.now);
        let refusal = refusals.iter().find(|r| !r.may_pass()).or_else(|| refusals.first())?;
        let say = refusal.to_string();
        Some(if refusal.may_pass() { self.poll(&say) } else { self.refused(&say) })
    }

    /// May the machine not be powered off by the word that there is now?
    pub(super) fn power_off_denied(&self) -> Option<Next> {
        match mandate(self.evidence, self.cx.now).map(Mandate::may_power_off) {
            Ok(Ok(())) => None,
            Ok(Err(denial)) if !denial.may_pass() => Some(self.refused(&denial.to_string())),
            Ok(Err(denial)) => Some(self.poll(&denial.to_string())),
            Err(why) => Some(self.poll(&format!("what this recovery may do is not known ({why})"))),
        }
    }
}
