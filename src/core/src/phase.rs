//! How a recovery stands: the phase that its custom resource stores, and the reason for it with its data.

use crate::diagnosis::{NotOurs, WaitReason};
use crate::fact::MissingFact;
use crate::ids::StepIx;
use crate::journal::UnwindReason;
use crate::policy::Mode;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Phase of a recovery. A variant is spelled as the custom resource stores it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub enum Phase {
    /// reattach gathers evidence.
    #[default]
    Diagnosing,
    /// The problem is real, and no detach heals it.
    NotOurs,
    /// Something must happen before reattach can act, such as the end of a provider's lock.
    Waiting,
    /// A safety rule stands against acting.
    Refused,
    /// The diagnosis or the plan is shown, and the mode allows no more than that.
    Planned,
    /// The plan waits for a person's approval.
    AwaitingApproval,
    /// The run performs its steps.
    Running,
    /// The run stopped early and unwinds what it changed.
    Restoring,
    /// The run ended: the pod runs with its volume.
    Recovered,
    /// The problem went away without reattach.
    Resolved,
    /// The recovery was aborted, and everything was put back.
    Aborted,
    /// The run ended before it had any effect. Another attempt begins anew.
    Withdrawn,
    /// The run ended without success, and everything was put back.
    Failed,
    /// Only a person can go on.
    Stuck,
}

impl Phase {
    /// Does reattach do nothing more for a recovery in this phase?
    pub fn is_final(self) -> bool {
        match self {
            Self::Recovered | Self::Resolved | Self::Aborted | Self::Withdrawn | Self::Failed => {
                true
            }
            Self::Diagnosing
            | Self::NotOurs
            | Self::Waiting
            | Self::Refused
            | Self::Planned
            | Self::AwaitingApproval
            | Self::Running
            | Self::Restoring
            | Self::Stuck => false,
        }
    }
}

impl fmt::Display for Phase {
    /// Writes the phase as the custom resource stores it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a recovery is in its phase.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reason {
    /// Every pod of the claim has its volume.
    Healthy,
    /// The problem is this one, which no detach heals.
    NotOurs(NotOurs),
    /// Diagnosis found what must happen first.
    Wait(WaitReason),
    /// These facts are missing for a diagnosis.
    Missing(Vec<MissingFact>),
    /// The problem has a class, and no plan was made yet.
    NoPlan,
    /// These refusals stand against the plan, one sentence each.
    Refusals(Vec<String>),
    /// The recovery's mode decides what becomes of the plan that is there.
    Mode(Mode),
    /// The run performs this step. `None`: the journal does not tell which.
    Step(Option<StepIx>),
    /// The run unwinds for this reason.
    Unwinding(UnwindReason),
    /// The journal's last line or the status says it in this sentence.
    Sentence(String),
}

/// A phase together with its reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Standing {
    /// Phase of the recovery.
    pub phase: Phase,
    /// Reason for the phase, where one is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

impl Standing {
    /// A phase that is its own reason.
    pub fn of(phase: Phase) -> Self {
        Self {
            phase,
            reason: None,
        }
    }

    /// A phase for this reason.
    pub fn because(phase: Phase, reason: Reason) -> Self {
        Self {
            phase,
            reason: Some(reason),
        }
    }
}
