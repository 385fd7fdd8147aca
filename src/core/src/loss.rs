//! What is lost for good when a pod goes away (safety rule S2): one list, whatever makes the pod go.

use crate::ids::ObjectName;
use serde::{Deserialize, Serialize};

/// Which pods go away by the effect of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodsGo {
    /// None.
    None,
    /// Every pod of the workload, because its count becomes zero.
    WithTheCount,
    /// Pods of the claim, while the count stays.
    OfTheClaim,
    /// Every pod on the holder's node.
    OfTheNode,
}

/// What a policy says about the emptyDirs of pods that go away. Kubernetes deletes an emptyDir with its pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EmptyDirs {
    /// Those of a pod without a running container may be lost; the plan names them.
    #[default]
    Lose,
    /// A pod with an emptyDir on disk does not go away, unless the workload's owner declared its emptyDirs expendable.
    Keep,
}

/// Something that a plan loses for good, with the reason why it may be lost.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(
    tag = "loss",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum AcceptedLoss {
    /// An emptyDir on disk of the workload's pods.
    #[error("emptyDir {volume} of each pod that goes away ({accepted})")]
    EmptyDir {
        /// The volume in the pod template.
        volume: String,
        /// Why it may be lost.
        accepted: Acceptance,
    },
}

/// Why a loss is accepted.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "camelCase")]
pub enum Acceptance {
    /// No container of the pods runs, and the policy does not keep emptyDirs.
    #[error("the RecoveryPolicy's emptyDirs is Lose")]
    Policy,
    /// The workload's owner declared it.
    #[error("the workload carries reattach.dev/expendable-emptydirs")]
    Owner,
}

/// A pod on a node that would lose something for good if it went away.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLoss {
    /// The pod.
    pub pod: ObjectName,
    /// What it would lose.
    pub loss: Loss,
}

/// What a pod would lose.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(
    tag = "loss",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Loss {
    /// A claim that was deleted and lives only as long as this pod uses it.
    #[error("its claim {claim} is being deleted and would be gone for good")]
    ClaimDeleting {
        /// The claim.
        claim: String,
    },
    /// A claim that the garbage collector deletes once this pod is gone, because the pod owns it. So the StatefulSet
    /// controller marks the claims of a pod beyond the count under `whenScaled: Delete`.
    #[error("its claim {claim} is owned by the pod and would be deleted with it")]
    ClaimOfPod {
        /// The claim.
        claim: String,
    },
    /// A generic ephemeral volume, which is deleted with the pod.
    #[error("its generic ephemeral volume {volume} would be deleted")]
    EphemeralVolume {
        /// The volume in the pod's spec.
        volume: String,
    },
    /// No pod would be made in its place.
    #[error("no pod would be made in its place: {why}")]
    NotRemade {
        /// Why not.
        why: String,
    },
}

impl Loss {
    /// Whether waiting may end the loss without anyone's help: Kubernetes evicts pods from a node that stays unreachable.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NotRemade { .. } | Self::EphemeralVolume { .. } => true,
            // Kubernetes' eviction leaves the pod object, and with it the claim, until the node is fenced.
            Self::ClaimDeleting { .. } | Self::ClaimOfPod { .. } => false,
        }
    }
}
