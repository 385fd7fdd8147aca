//! What the checker can object to.

use crate::evidence::AccessMode;
use crate::ids::{InstanceId, NodeName, ObjectName, PlanHash, StepIx, VolumeId};
use crate::plan::{PLAN_VERSION, Unsound};
use crate::steps::StepKind;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A safety rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // Numbers of rules, which the product's documentation explains.
pub enum Rule {
    S1,
    S2,
    S3,
    S4,
    S5,
    S6,
    S7,
    S8,
    S9,
    S10,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A safety rule that a plan breaks. The sentences name the fields. Nothing of another namespace is named: people of the
/// claim's namespace read them.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(
    tag = "violation",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
#[allow(missing_docs)] // The sentences above the variants say what is broken.
pub enum Violation {
    // S1: a volume is freed only from an instance that is proven not to write.
    #[error("S1: a cloud detach without the claim held away first ({step:?})")]
    DetachBeforeHold { step: StepKind },
    #[error("S1: a cloud detach that could be repeated blindly ({step:?})")]
    DetachMayRepeat { step: StepKind },
    #[error("S1: a cloud detach after pods may run again ({step:?})")]
    DetachAfterReturn { step: StepKind },
    #[error("S1: a VolumeAttachment deleted while pods may come")]
    AttachmentDeletedUnheld,
    #[error("S1: a cloud detach while pods of the claim may start on other nodes")]
    DetachUnderNodeTaint,
    #[error("S1: an out-of-service taint without a proof before it")]
    FenceWithoutProof,
    #[error("S1: a pod evicted while another may come")]
    ReleaseUnheld,
    #[error("S1: the claim is not for a single writer (access modes {modes:?})")]
    NotSingleWriter { modes: Vec<AccessMode> },
    #[error(
        "S1: the pinned holder is not the cloud's only holder (pinned {pinned}; the cloud names {})",
        listed(holders)
    )]
    HolderNotAlone {
        pinned: InstanceId,
        holders: Vec<InstanceId>,
    },
    #[error("S1: the node that is called dead is Ready ({node})")]
    DeadNodeIsReady { node: NodeName },
    #[error("S1: the cluster is not known to hold pods away by admission")]
    NoHoldPolicy,
    #[error("S1: a taint would not keep the workload's pods from the node ({node})")]
    TaintIgnored { node: NodeName },
    // S2: nothing is destroyed on the way, and the workload comes back.
    #[error("S2: a scale to zero without exactly one restore after it")]
    ScaleUnpaired,
    #[error("S2: both a hold and a scale to zero")]
    HoldAndScale,
    #[error("S2: a hold without exactly one lift after it")]
    HoldUnpaired,
    #[error("S2: pods that come back before the detach")]
    ReturnBeforeDetach,
    #[error("S2: the workload is not known")]
    WorkloadUnknown,
    #[error("S2: the workload is being changed")]
    WorkloadChanging,
    #[error("S2: a generic ephemeral volume would be deleted ({})", volumes.join(", "))]
    EphemeralVolumeLost { volumes: Vec<String> },
    #[error("S2: an emptyDir would be lost ({})", volumes.join(", "))]
    EmptyDirLost { volumes: Vec<String> },
    #[error("S2: an emptyDir that a running container uses would be lost ({pod})")]
    EmptyDirInUse { pod: String },
    #[error("S2: a claim of the workload would not survive ({claim})")]
    ClaimLost { claim: String },
    #[error("S2: a pod that its workload is taking away takes its claims with it")]
    PodTakesClaims,
    #[error("S2: no pod would come in the place of the one that goes")]
    NotRemade,
    #[error("S2: another pod on the node would lose something ({node})")]
    OtherPodLoses { node: NodeName },
    #[error("S2: another recovery's stamp, or an unreadable one, is on the workload")]
    Stamped,
    #[error("S2: a new pod is not known to be accepted")]
    PodNotAccepted,
    #[error("S2: someone keeps the workload at zero")]
    KeptAtZero,
    #[error("S2: a healthy pod's preStop hook would run")]
    PreStopHook,
    #[error("S2: the workload deletes its claims when scaled")]
    ScaleDeletesClaims,
    #[error("S2: an autoscaler may keep the workload at zero ({name})")]
    AutoscalerMinZero { name: String },
    #[error("S2: someone else owns the count ({manager})")]
    CountManaged { manager: String },
    #[error("S2: the workload cannot be scaled back")]
    NotScalable,
    #[error("S2: the count is not one, and no person confirmed the workload ({replicas} replicas)")]
    ReplicasUnconfirmed { replicas: i32 },
    #[error("S2: ordered pods would never reach zero")]
    OrderedStuck,
    // S3: no effect is repeated blindly.
    #[error("S3: a snapshot that could be repeated blindly, or that no detach by force follows")]
    SnapshotMisplaced,
    #[error("S3: an order about power that could be repeated blindly ({step:?})")]
    PowerMayRepeat { step: StepKind },
    // S5: each step ends.
    #[error("S5: a step without a deadline (step {step})")]
    NoDeadline { step: StepIx },
    // S7: nothing else is touched.
    #[error("S7: an effect on a whole node that does not list what is on it")]
    NodeNotListed,
    #[error("S7: the claim, its namespace or its workload is opted out")]
    OptedOut,
    #[error("S7: the plan does not list everything that is on the node ({node})")]
    NodeListIncomplete { node: NodeName },
    #[error("S7: another node has a VolumeAttachment of the volume{}", behind(node.as_ref()))]
    OtherAttachment { node: Option<NodeName> },
    #[error("S7: the workload's pods are not the pinned ones")]
    PodsNotPinned,
    #[error("S7: a pod outside the workload uses the claim")]
    ForeignPod,
    // S8: what is pinned is what there is.
    #[error("S8: the plan is of another version ({found}, not {PLAN_VERSION})")]
    OtherVersion { found: u32 },
    #[error(
        "S8: the plan's hash does not match its content (it names {hash}; its content has {content})"
    )]
    HashMismatch { hash: PlanHash, content: PlanHash },
    #[error("S8: the plan is for another claim ({claim})")]
    OtherClaim { claim: ObjectName },
    #[error("S8: the claim is not the pinned one, or is being deleted")]
    ClaimNotPinned,
    #[error("S8: the PersistentVolume is not the pinned one")]
    VolumeNotPinned,
    #[error("S8: the cloud volume is not the pinned one ({volume})")]
    CloudVolumeNotPinned { volume: VolumeId },
    #[error("S8: the diagnosis and the pins disagree")]
    TroubleNotPinned,
    #[error("S8: a boot is pinned of a Node that does not exist ({node})")]
    BootOfMissingNode { node: NodeName },
    #[error("S8: the node is another machine or another boot than pinned ({node})")]
    NodeNotPinned { node: NodeName },
    #[error("S8: the VolumeAttachment is not the pinned one ({attachment})")]
    AttachmentNotPinned { attachment: String },
    #[error(
        "S8: the workload is not the pinned one, or its count changed (from {pinned} to {replicas})"
    )]
    WorkloadNotPinned { pinned: i32, replicas: i32 },
    // S9: nobody else is at work.
    #[error("S9: an out-of-service taint without exactly one end of it")]
    FenceUnpaired,
    #[error(
        "S9: KeepOff and LetBoot do not stand once each, KeepOff first and before the wait for the proof"
    )]
    RestartUnpaired,
    #[error("S9: someone else is at work on the node (taint {taint})")]
    OthersAtWork { taint: String },
    // S10: whose the claim, the volume and the machine are.
    #[error("S10: the claim and the PersistentVolume are not bound to each other")]
    NotBound,
    #[error("S10: the handle is not the driver's own for the cloud volume")]
    HandleNotCanonical,
    #[error("S10: more than one PersistentVolume or VolumeAttachment leads to the cloud volume")]
    SharedCloudVolume,
    #[error("S10: the cloud has the volume in another region than the PersistentVolume asks for")]
    OtherRegion,
    #[error("S10: the cloud volume is tagged as another cluster's, or its tags could not be read")]
    OtherCluster,
    #[error("S10: the cloud volume is tagged as made for another PersistentVolume or claim")]
    MadeForAnother,
    #[error("S10: several Nodes claim one instance ({instance})")]
    InstanceShared { instance: InstanceId },
    #[error("S10: the holder is not known to be a machine of this cluster ({instance})")]
    HolderUnknown { instance: InstanceId },
    #[error("S10: the holder is tagged as a machine of another cluster ({instance})")]
    HolderOfOtherCluster { instance: InstanceId },
}

impl Violation {
    /// The rule that is broken.
    pub fn rule(&self) -> Rule {
        match self {
            Self::DetachBeforeHold { .. }
            | Self::DetachMayRepeat { .. }
            | Self::DetachAfterReturn { .. }
            | Self::AttachmentDeletedUnheld
            | Self::DetachUnderNodeTaint
            | Self::FenceWithoutProof
            | Self::ReleaseUnheld
            | Self::NotSingleWriter { .. }
            | Self::HolderNotAlone { .. }
            | Self::DeadNodeIsReady { .. }
            | Self::NoHoldPolicy
            | Self::TaintIgnored { .. } => Rule::S1,
            Self::ScaleUnpaired
            | Self::HoldAndScale
            | Self::HoldUnpaired
            | Self::ReturnBeforeDetach
            | Self::WorkloadUnknown
            | Self::WorkloadChanging
            | Self::EphemeralVolumeLost { .. }
            | Self::EmptyDirLost { .. }
            | Self::EmptyDirInUse { .. }
            | Self::ClaimLost { .. }
            | Self::PodTakesClaims
            | Self::NotRemade
            | Self::OtherPodLoses { .. }
            | Self::Stamped
            | Self::PodNotAccepted
            | Self::KeptAtZero
            | Self::PreStopHook
            | Self::ScaleDeletesClaims
            | Self::AutoscalerMinZero { .. }
            | Self::CountManaged { .. }
            | Self::NotScalable
            | Self::ReplicasUnconfirmed { .. }
            | Self::OrderedStuck => Rule::S2,
            Self::SnapshotMisplaced | Self::PowerMayRepeat { .. } => Rule::S3,
            Self::NoDeadline { .. } => Rule::S5,
            Self::NodeNotListed
            | Self::OptedOut
            | Self::NodeListIncomplete { .. }
            | Self::OtherAttachment { .. }
            | Self::PodsNotPinned
            | Self::ForeignPod => Rule::S7,
            Self::OtherVersion { .. }
            | Self::HashMismatch { .. }
            | Self::OtherClaim { .. }
            | Self::ClaimNotPinned
            | Self::VolumeNotPinned
            | Self::CloudVolumeNotPinned { .. }
            | Self::TroubleNotPinned
            | Self::BootOfMissingNode { .. }
            | Self::NodeNotPinned { .. }
            | Self::AttachmentNotPinned { .. }
            | Self::WorkloadNotPinned { .. } => Rule::S8,
            Self::FenceUnpaired | Self::RestartUnpaired | Self::OthersAtWork { .. } => Rule::S9,
            Self::NotBound
            | Self::HandleNotCanonical
            | Self::SharedCloudVolume
            | Self::OtherRegion
            | Self::OtherCluster
            | Self::MadeForAnother
            | Self::InstanceShared { .. }
            | Self::HolderUnknown { .. }
            | Self::HolderOfOtherCluster { .. } => Rule::S10,
        }
    }
}

impl From<Unsound> for Violation {
    fn from(unsound: Unsound) -> Self {
        match unsound {
            Unsound::Version { found } => Self::OtherVersion { found },
            Unsound::Edited { hash, content } => Self::HashMismatch { hash, content },
        }
    }
}

fn listed(holders: &[InstanceId]) -> String {
    if holders.is_empty() {
        return "none".to_owned();
    }
    holders
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

fn behind(node: Option<&NodeName>) -> String {
    node.map(|n| format!(" ({n})")).unwrap_or_default()
}
