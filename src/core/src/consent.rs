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
use crate::plan::Plan;
use crate::policy::Mode;
use crate::run::{State, StepState};
use crate::steps::StepKind;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Why a run that has begun may not go on. Each variant carries what its sentence names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    tag = "withdrawn",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
#[allow(missing_docs)] // The sentences above the variants name the fields.
pub enum Withdrawal {
    /// The policy that the recovery was made under allows less now.
    #[error("RecoveryPolicy {policy} now says mode {mode} for this claim")]
    PolicyMode { policy: String, mode: Mode },
    /// The recovery was made under a policy and no policy selects the claim any more.
    #[error("no RecoveryPolicy selects claim {claim} any more")]
    NoPolicy { claim: String },
    /// The policy no longer lets instances be powered off, and the plan is about to.
    #[error("RecoveryPolicy {policy} no longer allows to power instances off")]
    PowerOff { policy: String },
    /// Somebody opted out of reattach.
    #[error("{what} has opted out of reattach")]
    OptedOut { what: String },
    /// The claim is going or gone.
    #[error("claim {claim} is being deleted or is gone")]
    ClaimDeleted { claim: String },
    /// The approval is not there, or is for another plan.
    #[error("plan {plan} is not approved any more")]
    Approval { plan: String },
}

/// A named person's word, with its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Word {
    /// The authenticated user name.
    pub by: String,
    /// Why they are sure.
    pub reason: String,
    /// When they gave it.
    pub at: Timestamp,
}

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
