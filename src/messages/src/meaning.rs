//! What a message can mean, and the table of what follows from each meaning.

use crate::advice::DecidingFact::{self, *};
use crate::advice::Remedy::{self, DeleteVolumeattachment, Escalate, ForceDetach, NotOurs, Wait};
use crate::structure::Operation;
use serde::{Deserialize, Serialize};

/// Who uses a volume, in the attach/detach controller's own words.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum MultiAttachUsers {
    /// "already exclusively attached to one node": the controller's memory lists another node, no pod is named.
    Exclusive,
    /// "waiting on detach before it can be attached to another node" (kubernetes/kubernetes#138837).
    WaitingForDetach,
    /// "already used by pod(s) …": pods of the same namespace on another node still request it.
    Pods {
        /// Their names, as listed.
        pods: Vec<String>,
    },
    /// "already used by N pod(s) in different namespaces".
    OtherNamespaces,
}

/// What a message says, by meaning and not by wording. `Meaning::row` tells what each one stands for.
///
/// The first part can concern a volume that is held or lost somewhere; from [`Meaning::SecretMissing`] on, nothing that
/// is done to an attachment would help ([`Meaning::is_ours`]). Names are as the message gives them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[expect(
    missing_docs,
    reason = "a row's sentence describes the variant; only what it does not say is added here"
)]
pub enum Meaning {
    /// By the node plugin, after it looked at these paths.
    DevicePathMissing {
        paths: Vec<String>,
    },
    DeviceMismatch,
    DeviceBusy,
    IoError,
    FilesystemDamaged,
    AttachedElsewhere {
        volume: Option<String>,
        /// A node, an instance or a path of one.
        holder: Option<String>,
    },
    /// An RBD watcher, an exclusive lock and the like.
    ClientStillOpen,
    DetachBusy,
    /// Or it failed for a reason that is not named.
    DetachNotFinished,
    MultiAttach {
        users: MultiAttachUsers,
    },
    VolumeAttachmentBeingDeleted,
    VolumeAttachmentForbidden,
    VolumeAttachmentMissing,
    /// By the driver, the node status or the cloud.
    NotAttachedToNode,
    WaitingForNodeStatus,
    PersistentVolumeBeingDeleted,
    DetachInputsMissing,
    DriverNotRegistered,
    AttacherTimeout,
    AttacherForbidden,
    OperationInProgress,
    DeadlineExceeded,
    Throttled,
    /// Or an object changed meanwhile.
    Locked,
    AttachInProgress,
    DetachInProgress,
    DeviceNameTaken,
    NotReady,
    ApiUnavailable,
    VolumeFaulted,
    InstanceNotFound {
        /// The instance or its node.
        instance: Option<String>,
    },
    InstanceNotRunning,
    VolumeNotFound,
    ClaimUsedByAnotherPod,
    /// "Unable to attach or mount volumes" and the like, with the volumes by their names in the pod.
    Umbrella {
        volumes: Vec<String>,
    },
    Unknown,

    SecretMissing {
        name: Option<String>,
    },
    ConfigMapMissing {
        name: Option<String>,
    },
    ProjectedToken,
    /// emptyDir, downward API, image, subPath.
    NodeLocal,
    /// Of a hostPath or a local volume.
    HostPath,
    NonAttachable,
    AttachLimit,
    NodeAffinityConflict,
    Scheduling,
    VolumeModeMismatch,
    CapabilityUnsupported,
    WrongFsType,
    MountDenied,
    SelinuxConflict,
    PermissionDenied,
    EncryptionKey,
    ClaimProblem,
    PluginMissing,
    NodeDiskFull,
    InvalidRequest,
    DeletionPath,
    ProvisioningPath,
    ResizePath,
    Succeeded,
    NotAboutVolumes,
}

/// What follows from a meaning.
pub(crate) struct Row {
    /// What the message means, for the person on call, with placeholders that `explain` fills.
    pub sentence: &'static str,
    /// The facts that decide between the remedies, most telling first.
    pub facts: &'static [DecidingFact],
    /// One to three remedies, best first; `[NotOurs]` where no attachment is at fault. They are what the facts may turn out to
    /// demand, not an instruction: one text stands for causes with different remedies.
    pub remedies: &'static [Remedy],
}

const fn row(
    sentence: &'static str,
    facts: &'static [DecidingFact],
    remedies: &'static [Remedy],
) -> Row {
    Row {
        sentence,
        facts,
        remedies,
    }
}

/// A row of a trouble that nothing done to an attachment would help.
macro_rules! not_ours {
    ($cause:literal, $facts:expr) => {
        row(
            concat!(
                "Not an attachment problem of {volume}: ",
                $cause,
                ". Detaching or waiting would not help."
            ),
            $facts,
            &[NotOurs],
        )
    };
}

impl Meaning {
    /// Whether an attachment may be at fault, so that attaching, detaching, waiting or the provider can help.
    pub fn is_ours(&self) -> bool {
        self.row(None).remedies != [NotOurs]
    }

    /// The row of this meaning, for a message about `operation`.
    pub(crate) fn row(&self, operation: Option<Operation>) -> Row {
        let detach = operation == Some(Operation::Detach);
        let wait_for_attach = operation == Some(Operation::WaitForAttach);
        match self {
            // Attached by name only: renew the record (a reboot dropped it), detach at the cloud (a recycled node), or a
            // node whose device names the driver does not expect.
            Self::DevicePathMissing { .. } => row(
                "{volume} counts as attached, but the guest shows no device{at paths}. Either the cloud holds it here \
                 without a device (node recycled), or the attachment is gone (reboot), or it is attached elsewhere: the \
                 cloud's holder by instance ID decides.",
                &[
                    GuestDevice,
                    CloudHolder,
                    VolumeAttachmentStatus,
                    NodeBoot,
                    NodeReadiness,
                ],
                &[DeleteVolumeattachment, ForceDetach, Escalate],
            ),
            Self::DeviceMismatch => row(
                "The device that {node} shows for {volume} belongs to another volume; {driver} refuses to mount it, and \
                 so should everyone until the device's identity is clear.",
                &[GuestDevice, CloudHolder, VolumeAttachmentsPerNode],
                &[Escalate, DeleteVolumeattachment, Wait],
            ),
            Self::DeviceBusy => row(
                "{volume} is there, but something on {node} still has its device or mount point: a forgotten mount, a \
                 device mapping, or another container. Find the opener; a detach would pull the disk from under it.",
                &[GuestMounts, LivePod, NodeBoot],
                &[Escalate, Wait],
            ),
            Self::IoError => row(
                "Reads or writes of {volume} fail with I/O errors: the device vanished under its user or the storage is \
                 down. Treat it as a data incident and read the node's kernel log first.",
                &[KernelLog, GuestDevice, CloudVolumeState],
                &[Escalate],
            ),
            Self::FilesystemDamaged => row(
                "{volume} is attached, but its filesystem cannot be read or repaired automatically. Take a snapshot \
                 before anyone runs fsck; attaching it elsewhere changes nothing.",
                &[KernelLog, CloudVolumeState, CloudHolder],
                &[Escalate],
            ),
            Self::AttachedElsewhere { .. } => row(
                "{doing} {volume} is refused because {holder} still has it. It may be a holder that is just letting go, \
                 a live one, or a dead one; detach only when that instance is proven unable to write.",
                &[
                    CloudHolder,
                    InstanceState,
                    VolumeAttachmentsPerNode,
                    LivePod,
                    NodeReadiness,
                ],
                &[ForceDetach, DeleteVolumeattachment, Wait],
            ),
            Self::ClientStillOpen => row(
                "A client still has the image of {volume} open, usually the node that was lost. No cloud detach exists: \
                 that client must be fenced at the storage system, or end by itself.",
                &[InstanceState, LivePod, VolumeAttachmentsPerNode],
                &[Escalate, Wait],
            ),
            Self::DetachBusy => row(
                "{volume} cannot be detached because its old machine still uses it. If that instance is proven stopped, \
                 a forced detach ends it; if it is alive, unmount there first.",
                &[InstanceState, GuestMounts, CloudVolumeState, LivePod],
                &[ForceDetach, Wait, Escalate],
            ),
            Self::DetachNotFinished => row(
                "The detach of {volume} does not finish. If the cloud still works on it, wait; if the holder is proven \
                 off and the cloud idles, detach there.",
                &[
                    VolumeAttachmentStatus,
                    CloudVolumeState,
                    CloudJobs,
                    InstanceState,
                    VolumeAttachmentDeletion,
                ],
                &[Wait, ForceDetach, Escalate],
            ),
            Self::DetachInProgress => row(
                "{volume} is still being detached from its old machine; the attach follows when that has finished.",
                &[
                    VolumeAttachmentStatus,
                    CloudVolumeState,
                    CloudJobs,
                    InstanceState,
                    VolumeAttachmentDeletion,
                ],
                &[Wait, ForceDetach, Escalate],
            ),
            Self::MultiAttach {
                users: MultiAttachUsers::Exclusive | MultiAttachUsers::WaitingForDetach,
            } => row(
                "Kubernetes still has {volume} attached to another node and waits for its detach. Normal for seconds in \
                 a rollout; a fault only when the old node is lost or its VolumeAttachment does not go. The event is \
                 sent once: its age says nothing.",
                USERS,
                &[Wait, ForceDetach, DeleteVolumeattachment],
            ),
            // The pods go first; only then is there anything to detach.
            Self::MultiAttach {
                users: MultiAttachUsers::Pods { .. },
            } => row(
                "{pods} on another node still uses {volume}. If that pod is alive, this is a rollout or a second \
                 replica and nothing is stuck; if its node is lost, the pod must go first.",
                USERS,
                &[Wait, ForceDetach, Escalate],
            ),
            Self::MultiAttach {
                users: MultiAttachUsers::OtherNamespaces,
            } => row(
                "Only pods of other namespaces use {volume}: two claims share one disk. That is a configuration error \
                 which no detach cures.",
                USERS,
                &[Escalate, Wait],
            ),
            Self::ClaimUsedByAnotherPod => row(
                "Another pod uses the same ReadWriteOncePod claim; the scheduler waits until that pod is gone.",
                USERS,
                &[Wait, ForceDetach, Escalate],
            ),
            Self::VolumeAttachmentBeingDeleted => row(
                "The VolumeAttachment of {volume} is marked for deletion and its detach has not finished. Normal for \
                 seconds; after minutes the detach is stuck, and detachError says why.",
                &[
                    VolumeAttachmentDeletion,
                    VolumeAttachmentStatus,
                    CloudHolder,
                    EventAge,
                ],
                // For kubelet it means that a controller lost track; for the attach it is normal for seconds.
                if wait_for_attach {
                    &[DeleteVolumeattachment, Wait, Escalate]
                } else {
                    &[Wait, DeleteVolumeattachment, Escalate]
                },
            ),
            Self::VolumeAttachmentForbidden => row(
                "kubelet may not read the VolumeAttachment of {volume}: it belongs to another node or was removed. The \
                 record has to be renewed for this node.",
                &[VolumeAttachmentsPerNode, VolumesAttached, EventAge],
                &[DeleteVolumeattachment, Wait, Escalate],
            ),
            Self::VolumeAttachmentMissing => row(
                "The VolumeAttachment of {volume} does not exist. The attach/detach controller makes a new one within \
                 about a minute, unless it still believes in the old one.",
                &[VolumeAttachmentsPerNode, VolumesAttached, EventAge],
                &[Wait, DeleteVolumeattachment, Escalate],
            ),
            Self::NotAttachedToNode => row(
                "Kubernetes takes {volume} for attached to {node}, the storage system does not. The record is stale: let \
                 Kubernetes renew it.",
                &[
                    VolumeAttachmentStatus,
                    CloudHolder,
                    VolumesAttached,
                    NodeBoot,
                ],
                &[DeleteVolumeattachment, Wait, Escalate],
            ),
            Self::WaitingForNodeStatus => row(
                "kubelet waits until {node}'s status lists {volume} in volumesInUse; it does so every 10 s.",
                &[VolumesInUse, NodeReadiness, EventAge],
                &[Wait],
            ),
            Self::PersistentVolumeBeingDeleted => row(
                "The PersistentVolume of {volume} is being deleted while an attachment is still wanted; the left-over \
                 VolumeAttachment keeps both alive.",
                &[
                    ClaimAndVolume,
                    VolumeAttachmentDeletion,
                    VolumeAttachmentStatus,
                ],
                &[DeleteVolumeattachment, Escalate],
            ),
            Self::DetachInputsMissing => row(
                "The detach of {volume} needs a PersistentVolume or Secret that is gone, so it can never succeed as it \
                 is.",
                &[
                    ClaimAndVolume,
                    ReferencedObject,
                    VolumeAttachmentStatus,
                    CloudHolder,
                ],
                &[DeleteVolumeattachment, Escalate, ForceDetach],
            ),
            Self::DriverNotRegistered => row(
                "{driver} is not registered with kubelet on {node}: its node plugin is not up yet after a boot, or it is \
                 broken. Nothing can be mounted or released there until it is.",
                &[CsiNodeRegistration, NodeBoot, EventAge],
                if detach {
                    RECORD_ONLY
                } else {
                    &[Wait, Escalate]
                },
            ),
            Self::AttacherTimeout => row(
                "external-attacher of {driver} did not report on {volume} in time. It is slow, crashed, missing or \
                 without rights; the cloud may have attached the volume all the same.",
                &[
                    CsiControllerHealth,
                    VolumeAttachmentStatus,
                    ControllerPermissions,
                    CloudHolder,
                ],
                &[Escalate, Wait],
            ),
            Self::AttacherForbidden => row(
                "The CSI controller of {driver} lacks rights in Kubernetes, so it cannot record what it did to {volume}. \
                 Restore its RBAC.",
                &[ControllerPermissions, CsiControllerHealth],
                &[Escalate],
            ),
            Self::OperationInProgress => row(
                "{driver} is still working on an earlier call for {volume} and refuses a second one meanwhile.",
                &[
                    EventAge,
                    CloudVolumeState,
                    VolumeAttachmentStatus,
                    CsiControllerHealth,
                ],
                &[Wait, Escalate],
            ),
            Self::DeadlineExceeded => row(
                "{doing} {volume} took longer than the caller waited. The call may still complete: its effect is not \
                 known until the state is read back.",
                &[
                    EventAge,
                    CloudVolumeState,
                    VolumeAttachmentStatus,
                    CsiControllerHealth,
                ],
                if wait_for_attach {
                    &[Wait, DeleteVolumeattachment, Escalate]
                } else {
                    &[Wait, Escalate]
                },
            ),
            Self::AttachInProgress => row(
                "{volume} is still being attached. If that lasts for minutes, the attachment is stuck at the cloud.",
                &[
                    EventAge,
                    CloudVolumeState,
                    VolumeAttachmentStatus,
                    CsiControllerHealth,
                ],
                &[Wait, Escalate],
            ),
            Self::Throttled => row(
                "The cloud refuses calls for {volume} because of their rate. They are repeated by themselves.",
                &[ProviderStatus, EventAge, VolumeAttachmentStatus],
                &[Wait, Escalate],
            ),
            Self::Locked => row(
                "Another job holds the lock on {volume} or its server. Jobs end by themselves; a lock without a job \
                 needs the provider's support.",
                &[CloudVolumeState, CloudJobs, EventAge],
                &[Wait, Escalate],
            ),
            Self::DeviceNameTaken => row(
                "The device name picked for {volume} is taken on the target; the driver retries with another.",
                &[EventAge, CloudHolder],
                &[Wait, Escalate],
            ),
            Self::NotReady => row(
                "The storage system is not ready to serve {volume} yet.",
                &[CloudVolumeState, EventAge],
                &[Wait, Escalate],
            ),
            Self::ApiUnavailable => row(
                "An API or socket that {driver} needs for {volume} does not answer. Calls are repeated; nothing can be \
                 concluded about the volume meanwhile.",
                &[ProviderStatus, CsiControllerHealth, EventAge],
                &[Wait, Escalate],
            ),
            Self::VolumeFaulted => row(
                "The storage system reports {volume} as failed. Its operator or the provider has to repair it.",
                &[CloudVolumeState, EventAge],
                &[Escalate, Wait],
            ),
            Self::InstanceNotFound { .. } => row(
                "The cloud does not know {instance} that {volume} belongs to: the node was replaced, or driver and node \
                 disagree on account or region. Waiting does not help.",
                &[InstanceState, NodeReadiness, CloudHolder],
                if detach { RECORD_ONLY } else { &[Escalate] },
            ),
            Self::InstanceNotRunning => row(
                "The instance that {volume} belongs to does not run, so the cloud refuses to attach or detach.",
                &[InstanceState, NodeReadiness, CloudHolder],
                if detach {
                    &[Wait, ForceDetach, Escalate]
                } else {
                    &[Wait, Escalate]
                },
            ),
            Self::VolumeNotFound => row(
                "The storage system does not know {volume}: deleted, renamed, or in another account or region. No \
                 attachment work brings it back.",
                &[CloudVolumeState, ClaimAndVolume, CloudCredentials],
                if detach { RECORD_ONLY } else { &[Escalate] },
            ),
            Self::Umbrella { .. } => row(
                "A summary only: {volumes of the pod} could not be mounted in time. The cause stands in another event of \
                 the same pod or in the VolumeAttachment's status.",
                &[OtherEvents, VolumeAttachmentStatus, GuestDevice, PodSpec],
                &[Wait, ForceDetach, Escalate],
            ),
            Self::Unknown => row(
                "{doing} {volume} fails for a reason that this text does not tell. Compare VolumeAttachment, cloud and \
                 guest before anything is touched.",
                &[OtherEvents, VolumeAttachmentStatus, CloudHolder, EventAge],
                &[Escalate, Wait],
            ),

            Self::SecretMissing { name: Some(_) } => {
                not_ours!(
                    "Secret {name} is missing or not readable",
                    &[ReferencedObject, PodSpec]
                )
            }
            Self::SecretMissing { name: None } => not_ours!(
                "a Secret or ConfigMap (or a key of one) is missing or not readable",
                &[ReferencedObject, PodSpec]
            ),
            Self::ConfigMapMissing { name: Some(_) } => {
                not_ours!(
                    "ConfigMap {name} is missing or not readable",
                    &[ReferencedObject, PodSpec]
                )
            }
            Self::ConfigMapMissing { name: None } => {
                not_ours!(
                    "a ConfigMap is missing or not readable",
                    &[ReferencedObject, PodSpec]
                )
            }
            Self::ProjectedToken => not_ours!(
                "a service account token or projected volume could not be made",
                &[ReferencedObject, PodSpec]
            ),
            Self::NodeLocal => {
                not_ours!(
                    "kubelet cannot make a volume that exists on the node only",
                    &[PodSpec, ClaimAndVolume]
                )
            }
            Self::HostPath => not_ours!(
                "a directory or file of the node is missing or of the wrong type",
                &[PodSpec, ClaimAndVolume]
            ),
            Self::NonAttachable => not_ours!(
                "a file share or inline volume cannot be mounted; look at its server and options",
                &[StorageServer, PodSpec]
            ),
            Self::AttachLimit => {
                not_ours!(
                    "the node or the account has no room for another volume",
                    &[AttachLimits]
                )
            }
            Self::NodeAffinityConflict => {
                not_ours!(
                    "the volume's zone or node affinity excludes the node",
                    &[Topology, PodSpec]
                )
            }
            Self::Scheduling => not_ours!(
                "the scheduler finds no node for the pod, not because of an attachment",
                &[Topology, PodSpec]
            ),
            Self::VolumeModeMismatch => {
                not_ours!(
                    "pod and claim disagree on Block and Filesystem",
                    &[PodSpec, ClaimAndVolume]
                )
            }
            Self::CapabilityUnsupported => not_ours!(
                "the driver cannot do what the claim asks for (raw block, access mode, option)",
                &[PodSpec, ClaimAndVolume]
            ),
            Self::WrongFsType => not_ours!(
                "the device carries another filesystem than the one asked for, or the node cannot mount it",
                &[PodSpec, ClaimAndVolume]
            ),
            Self::MountDenied => {
                not_ours!(
                    "a file or mount operation is not permitted on the node",
                    &[PodSpec, ClaimAndVolume]
                )
            }
            Self::SelinuxConflict => {
                not_ours!(
                    "SELinux contexts of two pods exclude each other",
                    &[PodSpec, ClaimAndVolume]
                )
            }
            Self::PermissionDenied => {
                not_ours!(
                    "the cloud refuses the driver's credentials or rights",
                    &[CloudCredentials]
                )
            }
            Self::EncryptionKey => not_ours!(
                "the key that decrypts the volume is missing, wrong or disabled",
                &[ReferencedObject, CloudCredentials]
            ),
            Self::ClaimProblem => not_ours!(
                "the claim is missing, not bound, being deleted or another pod's",
                &[ClaimAndVolume, CloudHolder]
            ),
            Self::PluginMissing => not_ours!(
                "no volume plugin handles this kind of volume",
                &[CsiNodeRegistration, ClaimAndVolume]
            ),
            Self::NodeDiskFull => not_ours!("the node's own disk is full", &[NodeReadiness]),
            Self::InvalidRequest => not_ours!(
                "the driver refuses the call as malformed; look at the volume's attributes",
                &[PodSpec, ClaimAndVolume]
            ),
            Self::DeletionPath => {
                not_ours!(
                    "this is the deletion of a volume, not a mount",
                    &[ClaimAndVolume, CloudHolder]
                )
            }
            Self::ProvisioningPath => {
                not_ours!(
                    "this is the creation of a volume, not an attach",
                    &[ClaimAndVolume, CloudHolder]
                )
            }
            Self::ResizePath => {
                not_ours!(
                    "this is the growth of a volume, not an attach",
                    &[ClaimAndVolume, CloudHolder]
                )
            }
            Self::Succeeded => row(
                "This reports success; nothing is to be done.",
                &[],
                &[NotOurs],
            ),
            Self::NotAboutVolumes => row("This is not about volumes.", &[], &[NotOurs]),
        }
    }
}

/// Facts that tell whether another user of the volume is alive.
const USERS: &[DecidingFact] = &[
    LivePod,
    NodeReadiness,
    VolumeAttachmentsPerNode,
    VolumesInUse,
    CloudHolder,
    EventAge,
];

/// Class D: what the detach asks for is gone, so only the record can go.
const RECORD_ONLY: &[Remedy] = &[DeleteVolumeattachment, Escalate, Wait];
