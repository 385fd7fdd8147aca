//! Meanings of messages, and for each one a row: sentence, deciding facts, remedies.

use crate::advice::DecidingFact::{self, *};
use crate::advice::Remedy::{self, DeleteVolumeattachment, Escalate, ForceDetach, NotOurs, Wait};
use crate::structure::Operation;
use serde::{Deserialize, Serialize};

/// Users of a volume, as a Multi-Attach error of the attach/detach controller names them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum MultiAttachUsers {
    /// "already exclusively attached to one node": the controller's memory lists another node. No pod is named.
    Exclusive,
    /// "waiting on detach before it can be attached to another node" (kubernetes/kubernetes#138837).
    WaitingForDetach,
    /// "already used by pod(s) …": pods of the same namespace on another node still request it.
    Pods {
        /// Names of the pods, in the order of the message.
        pods: Vec<String>,
    },
    /// "already used by N pod(s) in different namespaces".
    OtherNamespaces,
}

/// Meaning of a message, independent of its wording. `Meaning::row` describes each variant.
///
/// Up to [`Meaning::Unknown`] an attachment may be at fault. From [`Meaning::SecretMissing`] on, no change of an
/// attachment would help ([`Meaning::is_ours`]). Names are as the message gives them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[expect(
    missing_docs,
    reason = "a row's sentence describes the variant; a doc here only adds what the sentence leaves out"
)]
pub enum Meaning {
    /// The node plugin looked at these paths.
    DevicePathMissing {
        paths: Vec<String>,
    },
    DeviceMismatch,
    DeviceBusy,
    IoError,
    FilesystemDamaged,
    AttachedElsewhere {
        volume: Option<String>,
        /// Node, instance, or a path that names one.
        holder: Option<String>,
    },
    /// Such as an RBD watcher or an exclusive lock.
    ClientStillOpen,
    DetachBusy,
    /// Also a detach that failed for a reason that is not named.
    DetachNotFinished,
    MultiAttach {
        users: MultiAttachUsers,
    },
    VolumeAttachmentBeingDeleted,
    VolumeAttachmentForbidden,
    VolumeAttachmentMissing,
    /// As the driver, the node status or the cloud says.
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
    /// Also a write that lost against another change of the object.
    Locked,
    AttachInProgress,
    DetachInProgress,
    DeviceNameTaken,
    NotReady,
    ApiUnavailable,
    VolumeFaulted,
    InstanceNotFound {
        /// ID of the instance, or name of its node.
        instance: Option<String>,
    },
    InstanceNotRunning,
    VolumeNotFound,
    ClaimUsedByAnotherPod,
    /// "Unable to attach or mount volumes" and the like. The volumes have their names in the pod.
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
    /// Such as emptyDir, downward API, image, subPath.
    NodeLocal,
    /// Path of a hostPath or a local volume.
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

/// Row of the table: what `explain` says about a meaning.
pub(crate) struct Row {
    /// Sentences for the person on call, with placeholders that `explain` fills.
    pub sentence: &'static str,
    /// Facts that decide between the remedies, most telling first.
    pub facts: &'static [DecidingFact],
    /// One to three remedies, best first; `[NotOurs]` where no attachment is at fault. They are candidates and no
    /// instruction: one text stands for causes with different remedies, and the facts choose between them.
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

/// Row of a problem that no change of an attachment would help.
macro_rules! not_ours {
    ($cause:literal, $facts:expr) => {
        row(
            concat!(
                "Not an attachment problem of {volume}: ",
                $cause,
                ". Detaching or waiting would not help, so reattach leaves it alone."
            ),
            $facts,
            &[NotOurs],
        )
    };
}

impl Meaning {
    /// May an attachment be at fault, so that attaching, detaching, waiting or the provider can help?
    pub fn is_ours(&self) -> bool {
        self.row(None).remedies != [NotOurs]
    }

    /// Returns the row of this meaning, for a message about `operation`.
    pub(crate) fn row(&self, operation: Option<Operation>) -> Row {
        let detach = operation == Some(Operation::Detach);
        let wait_for_attach = operation == Some(Operation::WaitForAttach);
        match self {
            // Three causes print this text, so there are three remedies: renew the record (a reboot dropped the
            // attachment), detach at the cloud (a recycled node), or a person (device names that the driver does not know).
            Self::DevicePathMissing { .. } => row(
                "{volume} counts as attached, but the guest shows no device{at paths}. Either the \
                 cloud holds it here without a device (node recycled), or the attachment is gone \
                 (reboot), or it is attached elsewhere. The cloud's holder, by instance ID, \
                 decides.",
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
                "The device that {node} shows for {volume} belongs to another volume, and {driver} \
                 refuses to mount it. Do not use the device until its identity is clear.",
                &[GuestDevice, CloudHolder, VolumeAttachmentsPerNode],
                &[Escalate, DeleteVolumeattachment, Wait],
            ),
            Self::DeviceBusy => row(
                "{volume} is attached, but its device or mount point is in use on {node}: by a \
                 forgotten mount, a device mapping or another container. Find the user first; a \
                 detach would pull the disk from under it.",
                &[GuestMounts, LivePod, NodeBoot],
                &[Escalate, Wait],
            ),
            Self::IoError => row(
                "Reads or writes of {volume} fail with I/O errors: the device vanished under its \
                 user, or the storage is down. Treat this as a data incident, and read the node's \
                 kernel log first.",
                &[KernelLog, GuestDevice, CloudVolumeState],
                &[Escalate],
            ),
            Self::FilesystemDamaged => row(
                "{volume} is attached, but its filesystem cannot be read or repaired \
                 automatically. Attaching it elsewhere changes nothing. Take a snapshot before you \
                 run fsck.",
                &[KernelLog, CloudVolumeState, CloudHolder],
                &[Escalate],
            ),
            Self::AttachedElsewhere { .. } => row(
                "{doing} {volume} is refused because {holder} still has it. That holder may be \
                 detaching, alive or dead. Detach only when that instance is proven unable to \
                 write.",
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
                "A client still has the image of {volume} open, usually the node that was lost. No \
                 cloud detach exists for it. Fence that client at the storage system, or wait \
                 until it ends by itself.",
                &[InstanceState, LivePod, VolumeAttachmentsPerNode],
                &[Escalate, Wait],
            ),
            Self::DetachBusy => row(
                "{volume} cannot be detached because its old machine still uses it. If that \
                 instance is proven stopped, a forced detach frees the volume. If it is alive, \
                 unmount the volume there first.",
                &[InstanceState, GuestMounts, CloudVolumeState, LivePod],
                &[ForceDetach, Wait, Escalate],
            ),
            Self::DetachNotFinished => row(
                "The detach of {volume} does not finish. If the cloud still works on it, wait. If \
                 the holder is proven off and the cloud is idle, detach at the cloud.",
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
                "{volume} is still being detached from its old machine. The attach follows when \
                 the detach has finished.",
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
                "Kubernetes still has {volume} attached to another node and waits for its detach. \
                 This is normal for seconds in a rollout. It is a fault only when the old node is \
                 lost or its VolumeAttachment stays. The event is sent once, so its age says \
                 nothing.",
                USERS,
                &[Wait, ForceDetach, DeleteVolumeattachment],
            ),
            // No DeleteVolumeattachment here: the record is right as long as the pod uses the volume.
            Self::MultiAttach {
                users: MultiAttachUsers::Pods { .. },
            } => row(
                "{volume} is still in use on another node, by {pods}. If that pod is alive, this is a \
                 rollout or a second replica, and nothing is stuck. If its node is lost, the pod must \
                 be deleted first.",
                USERS,
                &[Wait, ForceDetach, Escalate],
            ),
            Self::MultiAttach {
                users: MultiAttachUsers::OtherNamespaces,
            } => row(
                "Only pods of other namespaces use {volume}: two claims share one disk. No detach \
                 cures this configuration error. Give each claim a disk of its own.",
                USERS,
                &[Escalate, Wait],
            ),
            Self::ClaimUsedByAnotherPod => row(
                "Another pod uses the same ReadWriteOncePod claim. The scheduler waits until that \
                 pod is gone.",
                USERS,
                &[Wait, ForceDetach, Escalate],
            ),
            Self::VolumeAttachmentBeingDeleted => row(
                "The VolumeAttachment of {volume} is marked for deletion, and its detach has not \
                 finished. This is normal for seconds. After minutes the detach is stuck, and \
                 detachError says why.",
                &[
                    VolumeAttachmentDeletion,
                    VolumeAttachmentStatus,
                    CloudHolder,
                    EventAge,
                ],
                // When kubelet waits for this attachment, a controller lost track of it, so the record goes first. When an
                // attach waits for it, the detach usually ends within seconds.
                if wait_for_attach {
                    &[DeleteVolumeattachment, Wait, Escalate]
                } else {
                    &[Wait, DeleteVolumeattachment, Escalate]
                },
            ),
            Self::VolumeAttachmentForbidden => row(
                "kubelet may not read the VolumeAttachment of {volume}: it belongs to another node \
                 or was deleted. Kubernetes has to make a new one for this node.",
                &[VolumeAttachmentsPerNode, VolumesAttached, EventAge],
                &[DeleteVolumeattachment, Wait, Escalate],
            ),
            Self::VolumeAttachmentMissing => row(
                "The VolumeAttachment of {volume} does not exist. The attach/detach controller \
                 makes a new one within about a minute, unless its memory still has the old one.",
                &[VolumeAttachmentsPerNode, VolumesAttached, EventAge],
                &[Wait, DeleteVolumeattachment, Escalate],
            ),
            Self::NotAttachedToNode => row(
                "Kubernetes has {volume} as attached to {node}, and the storage system does not. \
                 The VolumeAttachment is stale, and Kubernetes has to renew it.",
                &[
                    VolumeAttachmentStatus,
                    CloudHolder,
                    VolumesAttached,
                    NodeBoot,
                ],
                &[DeleteVolumeattachment, Wait, Escalate],
            ),
            Self::WaitingForNodeStatus => row(
                "kubelet waits until the status of {node} lists {volume} in volumesInUse. It \
                 writes that status every 10 s.",
                &[VolumesInUse, NodeReadiness, EventAge],
                &[Wait],
            ),
            Self::PersistentVolumeBeingDeleted => row(
                "The PersistentVolume of {volume} is being deleted while an attachment is still \
                 wanted. The left-over VolumeAttachment keeps both from going away.",
                &[
                    ClaimAndVolume,
                    VolumeAttachmentDeletion,
                    VolumeAttachmentStatus,
                ],
                &[DeleteVolumeattachment, Escalate],
            ),
            Self::DetachInputsMissing => row(
                "The detach of {volume} needs a PersistentVolume or Secret that is gone. Without \
                 that object the detach can never succeed.",
                &[
                    ClaimAndVolume,
                    ReferencedObject,
                    VolumeAttachmentStatus,
                    CloudHolder,
                ],
                &[DeleteVolumeattachment, Escalate, ForceDetach],
            ),
            Self::DriverNotRegistered => row(
                "{driver} is not registered with kubelet on {node}: its node plugin is not up yet \
                 after a boot, or it is broken. Nothing can be mounted or unmounted there until it \
                 is registered.",
                &[CsiNodeRegistration, NodeBoot, EventAge],
                if detach {
                    RECORD_ONLY
                } else {
                    &[Wait, Escalate]
                },
            ),
            Self::AttacherTimeout => row(
                "external-attacher of {driver} did not report on {volume} in time. It is slow, \
                 crashed, missing or without rights. The cloud may have attached the volume all \
                 the same.",
                &[
                    CsiControllerHealth,
                    VolumeAttachmentStatus,
                    ControllerPermissions,
                    CloudHolder,
                ],
                &[Escalate, Wait],
            ),
            Self::AttacherForbidden => row(
                "The CSI controller of {driver} lacks rights in Kubernetes, so it cannot record \
                 what it did to {volume}. Restore its RBAC rights.",
                &[ControllerPermissions, CsiControllerHealth],
                &[Escalate],
            ),
            Self::OperationInProgress => row(
                "{driver} is still working on an earlier call for {volume} and refuses a second \
                 one meanwhile.",
                &[
                    EventAge,
                    CloudVolumeState,
                    VolumeAttachmentStatus,
                    CsiControllerHealth,
                ],
                &[Wait, Escalate],
            ),
            Self::DeadlineExceeded => row(
                "{doing} {volume} took longer than the caller waited. The call may still complete: \
                 its effect is unknown until the state is read again.",
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
                "{volume} is still being attached. If that lasts for minutes, the attach is stuck \
                 at the cloud.",
                &[
                    EventAge,
                    CloudVolumeState,
                    VolumeAttachmentStatus,
                    CsiControllerHealth,
                ],
                &[Wait, Escalate],
            ),
            Self::Throttled => row(
                "The cloud refuses calls for {volume} because of their rate. The caller retries \
                 them by itself.",
                &[ProviderStatus, EventAge, VolumeAttachmentStatus],
                &[Wait, Escalate],
            ),
            Self::Locked => row(
                "Another job holds the lock on {volume} or its server. A job ends by itself. A \
                 lock without a job needs the provider's support.",
                &[CloudVolumeState, CloudJobs, EventAge],
                &[Wait, Escalate],
            ),
            Self::DeviceNameTaken => row(
                "The device name picked for {volume} is taken on the target. The driver retries \
                 with another name.",
                &[EventAge, CloudHolder],
                &[Wait, Escalate],
            ),
            Self::NotReady => row(
                "The storage system is not ready to serve {volume} yet.",
                &[CloudVolumeState, EventAge],
                &[Wait, Escalate],
            ),
            Self::ApiUnavailable => row(
                "An API or socket that {driver} needs for {volume} does not answer. The caller \
                 retries. Nothing is known about the volume meanwhile.",
                &[ProviderStatus, CsiControllerHealth, EventAge],
                &[Wait, Escalate],
            ),
            Self::VolumeFaulted => row(
                "The storage system reports {volume} as failed. Its operator or the provider has to repair it.",
                &[CloudVolumeState, EventAge],
                &[Escalate, Wait],
            ),
            Self::InstanceNotFound { .. } => row(
                "The cloud does not know {instance} that {volume} belongs to. The node was \
                 replaced, or driver and node disagree on account or region. Waiting does not \
                 help.",
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
                "The storage system does not know {volume}: it was deleted or renamed, or it is in \
                 another account or region. No attach or detach brings it back.",
                &[CloudVolumeState, ClaimAndVolume, CloudCredentials],
                if detach { RECORD_ONLY } else { &[Escalate] },
            ),
            Self::Umbrella { .. } => row(
                "This is only a summary: {volumes of the pod} could not be mounted in time. The \
                 cause is in another event of the same pod or in the VolumeAttachment's status.",
                &[OtherEvents, VolumeAttachmentStatus, GuestDevice, PodSpec],
                &[Wait, ForceDetach, Escalate],
            ),
            Self::Unknown => row(
                "{doing} {volume} fails for a reason that this text does not name. Compare \
                 VolumeAttachment, cloud and guest before you change anything.",
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

/// Facts that show whether another user of the volume is alive.
const USERS: &[DecidingFact] = &[
    LivePod,
    NodeReadiness,
    VolumeAttachmentsPerNode,
    VolumesInUse,
    CloudHolder,
    EventAge,
];

/// Remedies of class D (stuck record) where the object that the detach asks for is gone: only the record can be deleted.
const RECORD_ONLY: &[Remedy] = &[DeleteVolumeattachment, Escalate, Wait];
