//! What is wrong, by the truth table over VolumeAttachments, cloud holder, nodes, pods and the guest's view.
//!
//! The text of an event only nominates a claim; the facts decide together. What matches no row is
//! [`Verdict::Unclassified`]: it is explained and nothing is touched.

mod guest_view;
mod records;
mod table;

use crate::fact::MissingFact;
use crate::identity::IdentityProblem;
use crate::ids::{InstanceId, NodeName, ObjectName, Uid};
use serde::{Deserialize, Serialize};
use std::fmt;

pub use guest_view::{GuestView, guest_view};
pub use table::diagnose;

/// A problem class of the design.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Class {
    /// Held by a dead node.
    A,
    /// Phantom attachment: both APIs say attached, the guest has no device.
    B,
    /// Lost attachment: Kubernetes says attached, the cloud does not.
    C,
    /// Stuck record: a VolumeAttachment that does not finish.
    D,
    /// Orphan attachment: the cloud's holder has no VolumeAttachment.
    E,
}

impl Class {
    /// The class in a few words.
    pub fn title(self) -> &'static str {
        match self {
            Self::A => "held by a dead node",
            Self::B => "phantom attachment",
            Self::C => "lost attachment",
            Self::D => "stuck record",
            Self::E => "orphan attachment",
        }
    }
}

impl Class {
    /// Letter and title, for people: "A (held by a dead node)".
    pub fn named(self) -> String {
        format!("{self} ({})", self.title())
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A diagnosis: the verdict, and the facts it rests on as sentences for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Diagnosis {
    /// The verdict.
    pub verdict: Verdict,
    /// What was looked at and what it said, in the order of looking.
    pub facts: Vec<String>,
}

impl Diagnosis {
    /// The class, where the verdict has one.
    pub fn class(&self) -> Option<Class> {
        match &self.verdict {
            Verdict::Ours { trouble } => Some(trouble.class()),
            Verdict::Wait { reason } => reason.class(),
            _ => None,
        }
    }
}

/// What the truth table says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    tag = "verdict",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Verdict {
    /// The claim's pods are as they should be, or nobody wants the volume.
    #[error("nothing is wrong: {why}")]
    Healthy {
        /// What was found.
        why: String,
    },
    /// One of the five classes.
    #[error("{trouble}")]
    Ours {
        /// Which, with its data.
        trouble: Trouble,
    },
    /// It is being dealt with, or something must happen first.
    #[error("{reason}")]
    Wait {
        /// What is waited for.
        reason: WaitReason,
    },
    /// The trouble is real and not one of attachments.
    #[error("not ours: {reason}")]
    NotOurs {
        /// What it is.
        reason: NotOurs,
    },
    /// No row of the table matches.
    #[error("not classified, because {}", missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
    Unclassified {
        /// What would have to be known.
        missing: Vec<MissingFact>,
    },
}

impl Verdict {
    /// Whether it is trouble of a class, now or once the cloud lets go of the volume.
    pub(crate) fn is_of_a_class(&self) -> bool {
        match self {
            Self::Ours { .. } => true,
            Self::Wait { reason } => reason.class().is_some(),
            Self::Healthy { .. } | Self::NotOurs { .. } | Self::Unclassified { .. } => false,
        }
    }
}

/// Who wants the volume and where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StuckPod {
    /// The pod.
    pub pod: ObjectName,
    /// Its UID.
    pub uid: Uid,
    /// The node it is bound to.
    pub node: NodeName,
    /// The instance behind that node.
    pub instance: InstanceId,
}

impl Verdict {
    /// The sentence for a place that names the class already.
    pub fn finding(&self) -> String {
        match self {
            Self::Ours { trouble } => trouble.finding(),
            Self::Healthy { .. }
            | Self::Wait { .. }
            | Self::NotOurs { .. }
            | Self::Unclassified { .. } => self.to_string(),
        }
    }
}

/// Trouble of one of the five classes, with what a remedy needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "trouble",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Trouble {
    /// Class A.
    DeadNode {
        /// The dead node.
        node: NodeName,
        /// Its instance.
        instance: InstanceId,
    },
    /// Class B.
    Phantom {
        /// The pod that cannot start, or runs on a dead mount.
        at: StuckPod,
        /// The VolumeAttachment.
        attachment: Uid,
        /// A mount of the vanished device remains.
        dead_mount: bool,
        /// The agent said so in answer to this recovery's challenge; otherwise it is its last unasked report.
        confirmed: bool,
    },
    /// Class C.
    Lost {
        /// The pod that cannot start.
        at: StuckPod,
        /// The VolumeAttachment.
        attachment: Uid,
    },
    /// Class D.
    StuckRecord {
        /// The VolumeAttachment, where there is one.
        attachment: Option<Uid>,
        /// The node it names.
        node: NodeName,
        /// What keeps it from finishing.
        cause: StuckCause,
    },
    /// Class E.
    Orphan {
        /// The cloud's holder.
        holder: InstanceId,
        /// The node that wants the volume.
        wanted_by: NodeName,
    },
}

impl Trouble {
    /// Its class.
    pub fn class(&self) -> Class {
        match self {
            Self::DeadNode { .. } => Class::A,
            Self::Phantom { .. } => Class::B,
            Self::Lost { .. } => Class::C,
            Self::StuckRecord { .. } => Class::D,
            Self::Orphan { .. } => Class::E,
        }
    }

    /// What was found, for a place that names the class already.
    pub fn finding(&self) -> String {
        match self {
            Self::DeadNode { node, instance } => format!(
                "node {node} (instance {instance}) is not Ready and still holds the volume, so no other node can have it"
            ),
            Self::Phantom { at, dead_mount, .. } => {
                let has = match dead_mount {
                    true => "only a dead mount of it",
                    false => "no such device",
                };
                let StuckPod { node, instance, .. } = at;
                format!(
                    "Kubernetes and the cloud say the volume is attached to {node} (instance {instance}), and that machine has {has}"
                )
            }
            Self::Lost { at, .. } => format!(
                "Kubernetes says the volume is attached to {}, and the cloud says it is attached nowhere",
                at.node
            ),
            Self::StuckRecord { cause, .. } => cause.to_string(),
            Self::Orphan { holder, .. } => format!(
                "the cloud says instance {holder} has the volume, and no VolumeAttachment names that instance's node"
            ),
        }
    }
}

/// The class and what was found.
impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "class {}: {}", self.class().named(), self.finding())
    }
}

/// What keeps a VolumeAttachment from finishing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    tag = "cause",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum StuckCause {
    /// The driver refused or failed the detach.
    #[error("the detach from {node} keeps failing: {error}")]
    DetachError {
        /// The node.
        node: NodeName,
        /// `status.detachError`.
        error: String,
    },
    /// It names a Node that does not exist.
    #[error("a VolumeAttachment names node {node}, which does not exist")]
    NodeMissing {
        /// The node.
        node: NodeName,
    },
    /// The PersistentVolume is gone, and external-attacher cannot detach without it.
    #[error(
        "PersistentVolume {pv} does not exist any more, so the detach from {node} cannot be carried out"
    )]
    VolumeMissing {
        /// The node.
        node: NodeName,
        /// The PersistentVolume.
        pv: String,
    },
    /// A Secret that the driver needs for the detach is gone.
    #[error("the detach from {node} needs a Secret that does not exist: {error}")]
    SecretMissing {
        /// The node.
        node: NodeName,
        /// `status.detachError`.
        error: String,
    },
    /// Neither a CSIDriver object nor any node knows the driver any more.
    #[error("the detach from {node} needs driver {driver}, which is not installed any more")]
    DriverMissing {
        /// The node.
        node: NodeName,
        /// The driver.
        driver: String,
    },
    /// A dead node lists the volume as attached and no VolumeAttachment says so: the attach/detach controller waits for
    /// something that nobody will do (seen after a restart of kube-controller-manager).
    #[error(
        "{node} lists the volume in volumesAttached, and the volume has no VolumeAttachment for it"
    )]
    Unrecorded {
        /// The node.
        node: NodeName,
    },
    /// The driver refused or failed the attach.
    #[error("the attach to {node} keeps failing: {error}")]
    AttachError {
        /// The node.
        node: NodeName,
        /// `status.attachError`.
        error: String,
    },
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    tag = "wait",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum WaitReason {
    /// The provider has locked the volume. Escalate.
    #[error("the provider has locked the volume ({reason}); nothing can be detached until it lifts the lock{}", class.map(|c| format!(" (class {c}, {}, until then)", c.title())).unwrap_or_default())]
    ProviderLock {
        /// The provider's word.
        reason: String,
        /// What it will be once the lock is gone.
        class: Option<Class>,
    },
    /// A job of the cloud runs on the volume.
    #[error("the cloud is busy with the volume ({doing})")]
    CloudBusy {
        /// The cloud's word.
        doing: String,
    },
    /// A detach is under way and has not failed.
    #[error("a detach from {node} is under way")]
    Detaching {
        /// The node.
        node: NodeName,
    },
    /// An attach is under way and has not failed.
    #[error("an attach to {node} is under way")]
    Attaching {
        /// The node.
        node: NodeName,
    },
    /// A pod on a Ready node ends.
    #[error("pod {pod} on Ready node {node} is still terminating")]
    PodTerminating {
        /// The pod.
        pod: ObjectName,
        /// The node.
        node: NodeName,
    },
    /// No pod is bound to a node yet.
    #[error("pod {pod} has not been bound to a node")]
    Unscheduled {
        /// The pod.
        pod: ObjectName,
    },
    /// The CSI node plugin has not registered with kubelet.
    #[error("driver {driver} has not registered with kubelet on {node} yet")]
    DriverNotRegistered {
        /// The driver.
        driver: String,
        /// The node.
        node: NodeName,
    },
}

impl WaitReason {
    /// The class that it waits under.
    pub fn class(&self) -> Option<Class> {
        match self {
            Self::ProviderLock { class, .. } => *class,
            _ => None,
        }
    }
}

/// Trouble that no detach heals.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    tag = "notOurs",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum NotOurs {
    /// The claim does not exist.
    #[error("the claim does not exist")]
    NoClaim,
    /// The claim is not bound.
    #[error("the claim is not bound to a PersistentVolume")]
    Unbound,
    /// Its PersistentVolume is gone.
    #[error("the claim's PersistentVolume {pv} does not exist")]
    VolumeMissing {
        /// Its name.
        pv: String,
    },
    /// In-tree, local or host path.
    #[error("PersistentVolume {pv} is not a CSI volume")]
    NotCsi {
        /// Its name.
        pv: String,
    },
    /// The driver attaches nothing.
    #[error("driver {driver} needs no attachment (attachRequired is false)")]
    AttachNotRequired {
        /// The driver.
        driver: String,
    },
    /// The driver is a provider's, and the handle is none that it gives.
    #[error(
        "{why}; driver {driver} gives no volume such a handle, so reattach touches nothing through it"
    )]
    UnreadableHandle {
        /// The driver.
        driver: String,
        /// The handle, and what is wrong with it.
        why: String,
    },
    /// No provider of this build knows the driver.
    #[error("no cloud provider of this installation knows volume {handle} of driver {driver}")]
    UnknownProvider {
        /// The driver.
        driver: String,
        /// The handle.
        handle: String,
    },
    /// A running pod on a Ready node holds it: a rollout of an RWO workload, or two workloads with one claim.
    #[error(
        "pod {pod} runs healthily on {node} and holds the volume; a second node must wait for it"
    )]
    HeldByLivePod {
        /// The pod.
        pod: ObjectName,
        /// The node.
        node: NodeName,
    },
    /// The volume is where it should be; what the pod waits for is something else.
    #[error(
        "the volume is attached and the machine has the device; the pod waits for something else: {what}"
    )]
    Other {
        /// The newest message about it.
        what: String,
    },
    /// The cloud does not have the volume any more.
    #[error("the cloud does not know volume {volume} any more")]
    CloudVolumeGone {
        /// Its ID.
        volume: String,
    },
    /// It is not certain that the volume is the claim's.
    #[error("{problem}")]
    Identity {
        /// What does not fit together.
        problem: IdentityProblem,
    },
}
