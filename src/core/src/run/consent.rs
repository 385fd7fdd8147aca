//! Whether people still want a run that has begun (safety rule S5): policy, approval, opt-out and the claim itself are
//! read again before every effect.
//!
//! # Expected flow
//! The shell collects what policies and people say now as [`Said`]. [`withdrawal`] compares it with what the rest of the
//! plan would do. The machine turns a run back for the [`Withdrawal`] and puts everything back.
//!
//! # Guarantees
//! A run of which only steps are left that put something back is never turned back for this: it ends sooner by itself.

use crate::evidence::EvidenceAt;
use crate::fact::Missing;
use crate::journal::Withdrawal;
use crate::plan::Plan;
use crate::policy::Mode;
use crate::run::{State, StepState};
use crate::steps::StepKind;

/// What policies and people say now of a recovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// The recovery's own mode.
    pub mode: Mode,
    /// The plan hash that a person approved.
    pub approved: Option<String>,
    /// What rules a recovery that a policy made. None: a person made it.
    pub policy: Option<PolicySays>,
}

/// What the policies say of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PolicySays {
    /// No policy selects it.
    Nothing,
    /// The policy that rules it.
    Rules {
        /// The policy's name.
        policy: String,
        /// How far it goes.
        mode: Mode,
        /// Whether instances may be powered off: by the policy, or by a person for this recovery.
        power_off: bool,
    },
}

/// Why the rest of the plan may not be done. `None`: it may, or only putting back is left of it.
pub fn withdrawal(
    plan: &Plan,
    state: &State,
    evidence: EvidenceAt<'_>,
    said: &Said,
) -> Option<Withdrawal> {
    if only_puts_back(plan, state) {
        return None;
    }
    if let Some(what) = opted_out(evidence) {
        return Some(Withdrawal::OptedOut { what });
    }
    if claim_goes(evidence) {
        return Some(Withdrawal::ClaimDeleted {
            claim: plan.claim.to_string(),
        });
    }
    match &said.policy {
        Some(PolicySays::Nothing) => {
            return Some(Withdrawal::NoPolicy {
                claim: plan.claim.to_string(),
            });
        }
        Some(PolicySays::Rules { policy, mode, .. }) if *mode < said.mode => {
            return Some(Withdrawal::PolicyMode {
                policy: policy.clone(),
                mode: *mode,
            });
        }
        Some(PolicySays::Rules {
            policy,
            power_off: false,
            ..
        }) if power_off_is_due(plan, state) => {
            return Some(Withdrawal::PowerOff {
                policy: policy.clone(),
            });
        }
        Some(PolicySays::Rules { .. }) | None => {}
    }
    let unapproved =
        said.mode == Mode::Approve && said.approved.as_deref() != Some(plan.hash.as_str());
    unapproved.then(|| Withdrawal::Approval {
        plan: plan.hash.to_string(),
    })
}

/// Whether every step that is left puts something back or only looks.
fn only_puts_back(plan: &Plan, state: &State) -> bool {
    let Some(current) = state.current() else {
        return true;
    };
    plan.steps
        .iter()
        .skip(current.index())
        .all(|step| step.kind.spec().needs_no_mandate())
}

/// Whether the plan powers the instance off and has not yet.
fn power_off_is_due(plan: &Plan, state: &State) -> bool {
    let off = plan.find(StepKind::PowerOff);
    off.is_some_and(|ix| match state.step(ix) {
        StepState::Pending => true,
        StepState::Issued { outcome, .. } => !outcome.applied(),
        StepState::Started { .. } | StepState::Closed { .. } => false,
    })
}

/// What opted out: the claim or its namespace, or the workload. What cannot be read is looked at by the refusals.
fn opted_out(evidence: EvidenceAt<'_>) -> Option<String> {
    let claim = evidence.claim().ok().and_then(|c| c.opted_out.clone());
    let own = |name: &String| *name == evidence.claim_name.name;
    claim.or_else(|| {
        let workload = evidence.workload().ok()?;
        workload
            .claims
            .iter()
            .find(|(name, _)| own(name))?
            .1
            .as_ref()?
            .opted_out
            .clone()
    })
}

fn claim_goes(evidence: EvidenceAt<'_>) -> bool {
    match evidence.claim() {
        Ok(claim) => claim.deleting,
        Err(Missing::Absent) => true,
        Err(_) => false,
    }
}
