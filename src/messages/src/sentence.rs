//! A meaning as one or two sentences for the person on call.

use crate::Symptom;
use crate::meaning::{Meaning, MultiAttachUsers};
use crate::structure::Operation;

/// What the message means, with the names that it gave.
pub(crate) fn sentence(symptom: &Symptom) -> String {
    let text = body(symptom);
    // Names (kubelet, external-attacher, drivers) keep their case.
    match text.strip_prefix("volume ") {
        Some(rest) => format!("Volume {rest}"),
        None => text.strip_prefix("the volume ").map(|rest| format!("The volume {rest}")).unwrap_or(text),
    }
}

fn body(symptom: &Symptom) -> String {
    let volume = subject(symptom);
    let node = symptom.node.as_deref().map_or_else(|| "the node".to_owned(), |n| format!("node {n}"));
    let driver = symptom.driver.as_deref().unwrap_or("its driver");
    let doing = doing(symptom.operation);
    match &symptom.meaning {
        Meaning::DevicePathMissing { paths } => {
            let at = if paths.is_empty() { String::new() } else { format!(" at {}", paths.join(", ")) };
            format!(
                "{volume} counts as attached, but the guest shows no device{at}. Either the cloud holds it here without \
                 a device (node recycled), or the attachment is gone (reboot), or it is attached elsewhere: the cloud's \
                 holder by instance ID decides."
            )
        }
        Meaning::DeviceMismatch => format!(
            "The device that {node} shows for {volume} belongs to another volume; {driver} refuses to mount it, and so \
             should everyone until the device's identity is clear."
        ),
        Meaning::DeviceBusy => format!(
            "{volume} is there, but something on {node} still has its device or mount point: a forgotten mount, a \
             device mapping, or another container. Find the opener; a detach would pull the disk from under it."
        ),
        Meaning::IoError => format!(
            "Reads or writes of {volume} fail with I/O errors: the device vanished under its user or the storage is \
             down. Treat it as a data incident and read the node's kernel log first."
        ),
        Meaning::FilesystemDamaged => format!(
            "{volume} is attached, but its filesystem cannot be read or repaired automatically. Take a snapshot before \
             anyone runs fsck; attaching it elsewhere changes nothing."
        ),
        Meaning::AttachedElsewhere { holder, .. } => {
            let holder =
                holder.as_deref().map_or_else(|| "another machine".to_owned(), |h| format!("\"{h}\""));
            format!(
                "{doing} {volume} is refused because {holder} still has it. It may be a holder that is just letting go, \
                 a live one, or a dead one; detach only when that instance is proven unable to write."
            )
        }
        Meaning::ClientStillOpen => format!(
            "A client still has the image of {volume} open, usually the node that was lost. No cloud detach exists: \
             that client must be fenced at the storage system, or end by itself."
        ),
        Meaning::DetachBusy => format!(
            "{volume} cannot be detached because its old machine still uses it. If that instance is proven stopped, a \
             forced detach ends it; if it is alive, unmount there first."
        ),
        Meaning::DetachNotFinished => format!(
            "The detach of {volume} does not finish. If the cloud still works on it, wait; if the holder is proven off \
             and the cloud idles, detach there."
        ),
        Meaning::MultiAttach { users } => multi_attach(&volume, users),
        Meaning::VolumeAttachmentBeingDeleted => format!(
            "The VolumeAttachment of {volume} is marked for deletion and its detach has not finished. Normal for \
             seconds; after minutes the detach is stuck, and detachError says why."
        ),
        Meaning::VolumeAttachmentForbidden => format!(
            "kubelet may not read the VolumeAttachment of {volume}: it belongs to another node or was removed. The \
             record has to be renewed for this node."
        ),
        Meaning::VolumeAttachmentMissing => format!(
            "The VolumeAttachment of {volume} does not exist. The attach/detach controller makes a new one within about \
             a minute, unless it still believes in the old one."
        ),
        Meaning::NotAttachedToNode => format!(
            "Kubernetes takes {volume} for attached to {node}, the storage system does not. The record is stale: let \
             Kubernetes renew it."
        ),
        Meaning::WaitingForNodeStatus => {
            format!(
                "kubelet waits until {node}'s status lists {volume} in volumesInUse; it does so every 10 s."
            )
        }
        Meaning::PersistentVolumeBeingDeleted => format!(
            "The PersistentVolume of {volume} is being deleted while an attachment is still wanted; the left-over \
             VolumeAttachment keeps both alive."
        ),
        Meaning::DetachInputsMissing => format!(
            "The detach of {volume} needs a PersistentVolume or Secret that is gone, so it can never succeed as it is."
        ),
        Meaning::DriverNotRegistered => format!(
            "{driver} is not registered with kubelet on {node}: its node plugin is not up yet after a boot, or it is \
             broken. Nothing can be mounted or released there until it is."
        ),
        Meaning::AttacherTimeout => format!(
            "external-attacher of {driver} did not report on {volume} in time. It is slow, crashed, missing or without \
             rights; the cloud may have attached the volume all the same."
        ),
        Meaning::AttacherForbidden => format!(
            "The CSI controller of {driver} lacks rights in Kubernetes, so it cannot record what it did to {volume}. \
             Restore its RBAC."
        ),
        Meaning::OperationInProgress => {
            format!(
                "{driver} is still working on an earlier call for {volume} and refuses a second one meanwhile."
            )
        }
        Meaning::DeadlineExceeded => format!(
            "{doing} {volume} took longer than the caller waited. The call may still complete: its effect is not known \
             until the state is read back."
        ),
        Meaning::Throttled => {
            format!(
                "The cloud refuses calls for {volume} because of their rate. They are repeated by themselves."
            )
        }
        Meaning::Locked => format!(
            "Another job holds the lock on {volume} or its server. Jobs end by themselves; a lock without a job needs \
             the provider's support."
        ),
        Meaning::AttachInProgress => {
            format!(
                "{volume} is still being attached. If that lasts for minutes, the attachment is stuck at the cloud."
            )
        }
        Meaning::DetachInProgress => {
            format!(
                "{volume} is still being detached from its old machine; the attach follows when that has finished."
            )
        }
        Meaning::DeviceNameTaken => {
            format!(
                "The device name picked for {volume} is taken on the target; the driver retries with another."
            )
        }
        Meaning::NotReady => format!("The storage system is not ready to serve {volume} yet."),
        Meaning::ApiUnavailable => format!(
            "An API or socket that {driver} needs for {volume} does not answer. Calls are repeated; nothing can be \
             concluded about the volume meanwhile."
        ),
        Meaning::VolumeFaulted => {
            format!(
                "The storage system reports {volume} as failed. Its operator or the provider has to repair it."
            )
        }
        Meaning::InstanceNotFound { instance } => {
            let instance =
                instance.as_deref().map_or_else(|| "the instance".to_owned(), |i| format!("instance {i}"));
            format!(
                "The cloud does not know {instance} that {volume} belongs to: the node was replaced, or driver and node \
                 disagree on account or region. Waiting does not help."
            )
        }
        Meaning::InstanceNotRunning => {
            format!(
                "The instance that {volume} belongs to does not run, so the cloud refuses to attach or detach."
            )
        }
        Meaning::VolumeNotFound => format!(
            "The storage system does not know {volume}: deleted, renamed, or in another account or region. No \
             attachment work brings it back."
        ),
        Meaning::ClaimUsedByAnotherPod => {
            "Another pod uses the same ReadWriteOncePod claim; the scheduler waits until that pod is gone."
                .to_owned()
        }
        Meaning::Umbrella { volumes } => {
            let names = if volumes.is_empty() { "volumes of the pod".to_owned() } else { volumes.join(", ") };
            format!(
                "A summary only: {names} could not be mounted in time. The cause stands in another event of the same \
                 pod or in the VolumeAttachment's status."
            )
        }
        Meaning::Unknown => format!(
            "{doing} {volume} fails for a reason that this text does not tell. Compare VolumeAttachment, cloud and guest \
             before anything is touched."
        ),
        other => not_ours(other, &volume),
    }
}

/// "Volume pvc-1 (linodebs.csi.linode.com)".
fn subject(symptom: &Symptom) -> String {
    let name = symptom.volume.as_deref().map_or_else(|| "the volume".to_owned(), |v| format!("volume {v}"));
    match symptom.driver.as_deref() {
        Some(driver) => format!("{name} ({driver})"),
        None => name,
    }
}

fn doing(operation: Option<Operation>) -> &'static str {
    match operation {
        Some(Operation::Attach) => "Attaching",
        Some(Operation::Detach) => "Detaching",
        Some(Operation::WaitForAttach) => "Waiting for the attach of",
        Some(Operation::MountDevice) => "Staging",
        Some(Operation::SetUp | Operation::Mount) => "Mounting",
        Some(Operation::Map) => "Mapping",
        Some(Operation::Unmount) => "Unmounting",
        _ => "Work on",
    }
}

fn multi_attach(volume: &str, users: &MultiAttachUsers) -> String {
    match users {
        MultiAttachUsers::Exclusive | MultiAttachUsers::WaitingForDetach => format!(
            "Kubernetes still has {volume} attached to another node and waits for its detach. Normal for seconds in a \
             rollout; a fault only when the old node is lost or its VolumeAttachment does not go. The event is sent \
             once: its age says nothing."
        ),
        MultiAttachUsers::Pods { pods } => {
            let pods = if pods.is_empty() { "Pods".to_owned() } else { format!("Pod {}", pods.join(", ")) };
            format!(
                "{pods} on another node still uses {volume}. If that pod is alive, this is a rollout or a second \
                 replica and nothing is stuck; if its node is lost, the pod must go first."
            )
        }
        MultiAttachUsers::OtherNamespaces => format!(
            "Only pods of other namespaces use {volume}: two claims share one disk. That is a configuration error which \
             no detach cures."
        ),
    }
}

fn not_ours(meaning: &Meaning, volume: &str) -> String {
    let named = |kind: &str, name: &Option<String>| match name {
        Some(name) => format!("{kind} {name}"),
        None => format!("a {kind}"),
    };
    let cause = match meaning {
        Meaning::SecretMissing { name: None } => {
            "a Secret or ConfigMap (or a key of one) is missing or not readable".to_owned()
        }
        Meaning::SecretMissing { name } => format!("{} is missing or not readable", named("Secret", name)),
        Meaning::ConfigMapMissing { name } => {
            format!("{} is missing or not readable", named("ConfigMap", name))
        }
        Meaning::ProjectedToken => "a service account token or projected volume could not be made".to_owned(),
        Meaning::NodeLocal => "kubelet cannot make a volume that exists on the node only".to_owned(),
        Meaning::HostPath => "a directory or file of the node is missing or of the wrong type".to_owned(),
        Meaning::NonAttachable => {
            "a file share or inline volume cannot be mounted; look at its server and options".to_owned()
        }
        Meaning::AttachLimit => "the node or the account has no room for another volume".to_owned(),
        Meaning::NodeAffinityConflict => "the volume's zone or node affinity excludes the node".to_owned(),
        Meaning::Scheduling => {
            "the scheduler finds no node for the pod, not because of an attachment".to_owned()
        }
        Meaning::VolumeModeMismatch => "pod and claim disagree on Block and Filesystem".to_owned(),
        Meaning::CapabilityUnsupported => {
            "the driver cannot do what the claim asks for (raw block, access mode, option)".to_owned()
        }
        Meaning::WrongFsType => {
            "the device carries another filesystem than the one asked for, or the node cannot mount it"
                .to_owned()
        }
        Meaning::MountDenied => "a file or mount operation is not permitted on the node".to_owned(),
        Meaning::SelinuxConflict => "SELinux contexts of two pods exclude each other".to_owned(),
        Meaning::PermissionDenied => "the cloud refuses the driver's credentials or rights".to_owned(),
        Meaning::EncryptionKey => "the key that decrypts the volume is missing, wrong or disabled".to_owned(),
        Meaning::ClaimProblem => "the claim is missing, not bound, being deleted or another pod's".to_owned(),
        Meaning::PluginMissing => "no volume plugin handles this kind of volume".to_owned(),
        Meaning::NodeDiskFull => "the node's own disk is full".to_owned(),
        Meaning::InvalidRequest => {
            "the driver refuses the call as malformed; look at the volume's attributes".to_owned()
        }
        Meaning::DeletionPath => "this is the deletion of a volume, not a mount".to_owned(),
        Meaning::ProvisioningPath => "this is the creation of a volume, not an attach".to_owned(),
        Meaning::ResizePath => "this is the growth of a volume, not an attach".to_owned(),
        Meaning::Succeeded => return "This reports success; nothing is to be done.".to_owned(),
        _ => return "This is not about volumes.".to_owned(),
    };
    format!("Not an attachment problem of {volume}: {cause}. Detaching or waiting would not help.")
}
