//! Which remedies can follow from a meaning, and which facts decide between them.

use crate::driver::StorageKind;
use crate::meaning::{DecidingFact as Fact, Meaning, MultiAttachUsers};
use crate::structure::Operation;
use crate::{Remedy, Symptom};

use Remedy::{DeleteVolumeattachment, Escalate, ForceDetach, Wait};

/// One to three remedies, best first. They are what the facts may turn out to demand, not an instruction: the same
/// text stands for causes with different remedies.
pub(crate) fn remedies(symptom: &Symptom) -> Vec<Remedy> {
    if !symptom.meaning.is_ours() {
        return vec![Remedy::NotOurs];
    }
    let detach = symptom.operation == Some(Operation::Detach);
    let wait_for_attach = symptom.operation == Some(Operation::WaitForAttach);
    let listed: &[Remedy] = match &symptom.meaning {
        // Attached by name only: renew the record (a reboot dropped it), detach at the cloud (a recycled node), or a
        // node whose device names the driver does not expect.
        Meaning::DevicePathMissing { .. } => &[DeleteVolumeattachment, ForceDetach, Escalate],
        Meaning::NotAttachedToNode => &[DeleteVolumeattachment, Wait, Escalate],
        Meaning::VolumeAttachmentForbidden => &[DeleteVolumeattachment, Wait, Escalate],
        Meaning::VolumeAttachmentMissing => &[Wait, DeleteVolumeattachment, Escalate],
        // For kubelet it means that a controller lost track; for the attach it is normal for seconds.
        Meaning::VolumeAttachmentBeingDeleted if wait_for_attach => &[DeleteVolumeattachment, Wait, Escalate],
        Meaning::VolumeAttachmentBeingDeleted => &[Wait, DeleteVolumeattachment, Escalate],
        Meaning::PersistentVolumeBeingDeleted => &[DeleteVolumeattachment, Escalate],
        Meaning::DetachInputsMissing => &[DeleteVolumeattachment, Escalate, ForceDetach],
        Meaning::AttachedElsewhere { .. } => &[ForceDetach, DeleteVolumeattachment, Wait],
        Meaning::DetachBusy => &[ForceDetach, Wait, Escalate],
        Meaning::DetachNotFinished => &[Wait, ForceDetach, Escalate],
        Meaning::MultiAttach { users: MultiAttachUsers::Exclusive | MultiAttachUsers::WaitingForDetach } => {
            &[Wait, ForceDetach, DeleteVolumeattachment]
        }
        // The pods go first; only then is there anything to detach.
        Meaning::MultiAttach { users: MultiAttachUsers::Pods { .. } } => &[Wait, ForceDetach, Escalate],
        Meaning::MultiAttach { users: MultiAttachUsers::OtherNamespaces } => &[Escalate, Wait],
        Meaning::ClaimUsedByAnotherPod => &[Wait, ForceDetach, Escalate],
        Meaning::Umbrella { .. } => &[Wait, ForceDetach, Escalate],
        Meaning::AttacherTimeout => &[Escalate, Wait],
        Meaning::AttacherForbidden => &[Escalate],
        // Class D: what the detach asks for is gone, so only the record can go.
        Meaning::VolumeNotFound | Meaning::InstanceNotFound { .. } | Meaning::DriverNotRegistered
            if detach =>
        {
            &[DeleteVolumeattachment, Escalate, Wait]
        }
        Meaning::InstanceNotRunning if detach => &[Wait, ForceDetach, Escalate],
        Meaning::VolumeNotFound | Meaning::InstanceNotFound { .. } => &[Escalate],
        Meaning::IoError | Meaning::FilesystemDamaged => &[Escalate],
        Meaning::ClientStillOpen | Meaning::DeviceBusy | Meaning::VolumeFaulted => &[Escalate, Wait],
        Meaning::DeviceMismatch => &[Escalate, DeleteVolumeattachment, Wait],
        Meaning::WaitingForNodeStatus => &[Wait],
        Meaning::AttachInProgress => &[Wait, Escalate],
        Meaning::DeadlineExceeded if wait_for_attach => &[Wait, DeleteVolumeattachment, Escalate],
        Meaning::DetachInProgress => &[Wait, ForceDetach, Escalate],
        Meaning::DriverNotRegistered
        | Meaning::OperationInProgress
        | Meaning::DeadlineExceeded
        | Meaning::Throttled
        | Meaning::Locked
        | Meaning::DeviceNameTaken
        | Meaning::NotReady
        | Meaning::ApiUnavailable
        | Meaning::InstanceNotRunning => &[Wait, Escalate],
        _ => &[Escalate, Wait],
    };
    without_cloud(symptom.storage, listed)
}

/// Where no cloud API detaches, a detach at the cloud is no remedy: Kubernetes' record or the storage's operator is.
fn without_cloud(storage: StorageKind, listed: &[Remedy]) -> Vec<Remedy> {
    if storage != StorageKind::ClusterBlock || !listed.contains(&ForceDetach) {
        return listed.to_vec();
    }
    let mut out: Vec<Remedy> = listed.iter().copied().filter(|r| *r != ForceDetach).collect();
    for substitute in [DeleteVolumeattachment, Escalate] {
        if out.len() < 3 && !out.contains(&substitute) {
            out.push(substitute);
        }
    }
    out
}

/// The facts that decide, most telling first.
pub(crate) fn deciding_facts(symptom: &Symptom) -> Vec<Fact> {
    let facts: &[Fact] = match &symptom.meaning {
        Meaning::DevicePathMissing { .. } => &[
            Fact::GuestDevice,
            Fact::CloudHolder,
            Fact::VolumeAttachmentStatus,
            Fact::NodeBoot,
            Fact::NodeReadiness,
        ],
        Meaning::DeviceMismatch => &[Fact::GuestDevice, Fact::CloudHolder, Fact::VolumeAttachmentsPerNode],
        Meaning::DeviceBusy => &[Fact::GuestMounts, Fact::LivePod, Fact::NodeBoot],
        Meaning::IoError => &[Fact::KernelLog, Fact::GuestDevice, Fact::CloudVolumeState],
        Meaning::FilesystemDamaged => &[Fact::KernelLog, Fact::CloudVolumeState, Fact::CloudHolder],
        Meaning::AttachedElsewhere { .. } => &[
            Fact::CloudHolder,
            Fact::InstanceState,
            Fact::VolumeAttachmentsPerNode,
            Fact::LivePod,
            Fact::NodeReadiness,
        ],
        Meaning::ClientStillOpen => &[Fact::InstanceState, Fact::LivePod, Fact::VolumeAttachmentsPerNode],
        Meaning::DetachBusy => {
            &[Fact::InstanceState, Fact::GuestMounts, Fact::CloudVolumeState, Fact::LivePod]
        }
        Meaning::DetachNotFinished | Meaning::DetachInProgress => &[
            Fact::VolumeAttachmentStatus,
            Fact::CloudVolumeState,
            Fact::CloudJobs,
            Fact::InstanceState,
            Fact::VolumeAttachmentDeletion,
        ],
        Meaning::MultiAttach { .. } | Meaning::ClaimUsedByAnotherPod => &[
            Fact::LivePod,
            Fact::NodeReadiness,
            Fact::VolumeAttachmentsPerNode,
            Fact::VolumesInUse,
            Fact::CloudHolder,
            Fact::EventAge,
        ],
        Meaning::VolumeAttachmentBeingDeleted => {
            &[Fact::VolumeAttachmentDeletion, Fact::VolumeAttachmentStatus, Fact::CloudHolder, Fact::EventAge]
        }
        Meaning::VolumeAttachmentForbidden | Meaning::VolumeAttachmentMissing => {
            &[Fact::VolumeAttachmentsPerNode, Fact::VolumesAttached, Fact::EventAge]
        }
        Meaning::NotAttachedToNode => {
            &[Fact::VolumeAttachmentStatus, Fact::CloudHolder, Fact::VolumesAttached, Fact::NodeBoot]
        }
        Meaning::WaitingForNodeStatus => &[Fact::VolumesInUse, Fact::NodeReadiness, Fact::EventAge],
        Meaning::PersistentVolumeBeingDeleted => {
            &[Fact::ClaimAndVolume, Fact::VolumeAttachmentDeletion, Fact::VolumeAttachmentStatus]
        }
        Meaning::DetachInputsMissing => {
            &[Fact::ClaimAndVolume, Fact::ReferencedObject, Fact::VolumeAttachmentStatus, Fact::CloudHolder]
        }
        Meaning::DriverNotRegistered => &[Fact::CsiNodeRegistration, Fact::NodeBoot, Fact::EventAge],
        Meaning::AttacherTimeout => &[
            Fact::CsiControllerHealth,
            Fact::VolumeAttachmentStatus,
            Fact::ControllerPermissions,
            Fact::CloudHolder,
        ],
        Meaning::AttacherForbidden => &[Fact::ControllerPermissions, Fact::CsiControllerHealth],
        Meaning::OperationInProgress | Meaning::DeadlineExceeded | Meaning::AttachInProgress => {
            &[Fact::EventAge, Fact::CloudVolumeState, Fact::VolumeAttachmentStatus, Fact::CsiControllerHealth]
        }
        Meaning::Throttled => &[Fact::ProviderStatus, Fact::EventAge, Fact::VolumeAttachmentStatus],
        Meaning::Locked => &[Fact::CloudVolumeState, Fact::CloudJobs, Fact::EventAge],
        Meaning::DeviceNameTaken => &[Fact::EventAge, Fact::CloudHolder],
        Meaning::NotReady | Meaning::VolumeFaulted => &[Fact::CloudVolumeState, Fact::EventAge],
        Meaning::ApiUnavailable => &[Fact::ProviderStatus, Fact::CsiControllerHealth, Fact::EventAge],
        Meaning::InstanceNotFound { .. } | Meaning::InstanceNotRunning => {
            &[Fact::InstanceState, Fact::NodeReadiness, Fact::CloudHolder]
        }
        Meaning::VolumeNotFound => &[Fact::CloudVolumeState, Fact::ClaimAndVolume, Fact::CloudCredentials],
        Meaning::Umbrella { .. } => {
            &[Fact::OtherEvents, Fact::VolumeAttachmentStatus, Fact::GuestDevice, Fact::PodSpec]
        }
        Meaning::SecretMissing { .. } | Meaning::ConfigMapMissing { .. } | Meaning::ProjectedToken => {
            &[Fact::ReferencedObject, Fact::PodSpec]
        }
        Meaning::NodeLocal
        | Meaning::HostPath
        | Meaning::VolumeModeMismatch
        | Meaning::CapabilityUnsupported
        | Meaning::WrongFsType
        | Meaning::MountDenied
        | Meaning::SelinuxConflict
        | Meaning::InvalidRequest => &[Fact::PodSpec, Fact::ClaimAndVolume],
        Meaning::NonAttachable => &[Fact::StorageServer, Fact::PodSpec],
        Meaning::AttachLimit => &[Fact::AttachLimits],
        Meaning::NodeAffinityConflict | Meaning::Scheduling => &[Fact::Topology, Fact::PodSpec],
        Meaning::PermissionDenied => &[Fact::CloudCredentials],
        Meaning::EncryptionKey => &[Fact::ReferencedObject, Fact::CloudCredentials],
        Meaning::ClaimProblem | Meaning::DeletionPath | Meaning::ProvisioningPath | Meaning::ResizePath => {
            &[Fact::ClaimAndVolume, Fact::CloudHolder]
        }
        Meaning::PluginMissing => &[Fact::CsiNodeRegistration, Fact::ClaimAndVolume],
        Meaning::NodeDiskFull => &[Fact::NodeReadiness],
        Meaning::Succeeded | Meaning::NotAboutVolumes => &[],
        Meaning::Unknown => {
            &[Fact::OtherEvents, Fact::VolumeAttachmentStatus, Fact::CloudHolder, Fact::EventAge]
        }
    };
    facts.to_vec()
}
