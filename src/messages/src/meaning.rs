//! What a message can mean.

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

/// What a message says, by meaning and not by wording.
///
/// The first part can concern a volume that is held or lost somewhere; from [`Meaning::SecretMissing`] on, nothing
/// that is done to an attachment would help ([`Meaning::is_ours`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Meaning {
    /// The node plugin finds no device where the volume should be.
    DevicePathMissing {
        /// Paths that were tried.
        paths: Vec<String>,
    },
    /// The device that is there is another volume's; the driver refuses to mount it.
    DeviceMismatch,
    /// Something on the node holds the device or the mount point.
    DeviceBusy,
    /// Device or driver returned I/O errors.
    IoError,
    /// The filesystem itself is damaged.
    FilesystemDamaged,
    /// The storage system says that another machine has the volume.
    AttachedElsewhere {
        /// The volume as the message names it.
        volume: Option<String>,
        /// The holder as the message names it: a node, an instance or a path of one.
        holder: Option<String>,
    },
    /// A client of network storage (an RBD watcher, an exclusive lock) still has the image open.
    ClientStillOpen,
    /// A detach does not finish because the volume is in use in the guest.
    DetachBusy,
    /// A detach was accepted and does not finish, or failed for a reason that is not named.
    DetachNotFinished,
    /// The attach/detach controller will not attach a single-node volume to a second node.
    MultiAttach {
        /// Who it says uses the volume.
        users: MultiAttachUsers,
    },
    /// The VolumeAttachment has a deletionTimestamp.
    VolumeAttachmentBeingDeleted,
    /// kubelet may not read the VolumeAttachment: it belongs to another node or is gone.
    VolumeAttachmentForbidden,
    /// The VolumeAttachment does not exist.
    VolumeAttachmentMissing,
    /// Kubernetes takes the volume for attached; the driver, the node status or the cloud does not.
    NotAttachedToNode,
    /// The volume is not yet in the node's volumesInUse: kubelet waits for its own status tick.
    WaitingForNodeStatus,
    /// The PersistentVolume is being deleted while an attachment is still wanted.
    PersistentVolumeBeingDeleted,
    /// The PersistentVolume or Secret that a detach needs is gone.
    DetachInputsMissing,
    /// The driver's node plugin is not registered with kubelet.
    DriverNotRegistered,
    /// external-attacher did not answer within the attach/detach controller's time.
    AttacherTimeout,
    /// The CSI controller's service account lacks rights in Kubernetes.
    AttacherForbidden,
    /// The driver is still busy with an earlier call for the same volume.
    OperationInProgress,
    /// A call ran out of time; its effect is unknown.
    DeadlineExceeded,
    /// The cloud refused for the rate of requests.
    Throttled,
    /// The cloud or a controller has the volume or the server in another job, or an object changed meanwhile.
    Locked,
    /// The volume is being attached.
    AttachInProgress,
    /// The volume is being detached.
    DetachInProgress,
    /// The device name on the target is taken; the driver picks another.
    DeviceNameTaken,
    /// The storage system is not ready to serve the volume yet.
    NotReady,
    /// An API or a socket did not answer.
    ApiUnavailable,
    /// The storage system says that the volume has failed.
    VolumeFaulted,
    /// The cloud does not know the instance.
    InstanceNotFound {
        /// The instance or node as the message names it.
        instance: Option<String>,
    },
    /// The instance exists and does not run.
    InstanceNotRunning,
    /// The cloud does not know the volume.
    VolumeNotFound,
    /// The scheduler sees another pod that uses a ReadWriteOncePod claim.
    ClaimUsedByAnotherPod,
    /// "Unable to attach or mount volumes": a summary of other events that decide.
    Umbrella {
        /// The volumes of the pod that are not mounted, by their names in the pod.
        volumes: Vec<String>,
    },
    /// About a volume, of no kind that is known here.
    Unknown,

    /// A Secret, or a key of it, is missing or not readable.
    SecretMissing {
        /// Its name.
        name: Option<String>,
    },
    /// A ConfigMap, or a key of it, is missing or not readable.
    ConfigMapMissing {
        /// Its name.
        name: Option<String>,
    },
    /// A service account token or another projected volume could not be made.
    ProjectedToken,
    /// A volume that kubelet makes on the node itself: emptyDir, downward API, image, subPath.
    NodeLocal,
    /// A hostPath or local volume's directory is missing or of the wrong type.
    HostPath,
    /// NFS, SMB and other file shares, FUSE mounts and inline volumes: nothing is attached.
    NonAttachable,
    /// The node or the account has no room for another volume.
    AttachLimit,
    /// The volume's topology excludes the node.
    NodeAffinityConflict,
    /// The pod cannot be placed for another reason.
    Scheduling,
    /// Pod and claim disagree on Block and Filesystem.
    VolumeModeMismatch,
    /// The driver cannot do what was asked: raw block, an access mode, an option.
    CapabilityUnsupported,
    /// The device carries another filesystem than the one asked for, or the node cannot mount it.
    WrongFsType,
    /// A file or mount operation is not permitted on the node.
    MountDenied,
    /// SELinux contexts of two pods exclude each other.
    SelinuxConflict,
    /// The cloud refuses the driver's credentials.
    PermissionDenied,
    /// A key that decrypts the volume is missing, wrong or disabled.
    EncryptionKey,
    /// The claim is missing, unbound or being deleted, or belongs to another pod.
    ClaimProblem,
    /// No volume plugin handles the volume.
    PluginMissing,
    /// The node's own disk is full.
    NodeDiskFull,
    /// The call itself is malformed or asks for what the driver refuses.
    InvalidRequest,
    /// Deletion of a volume.
    DeletionPath,
    /// Creation of a volume.
    ProvisioningPath,
    /// Growth of a volume.
    ResizePath,
    /// A report of success.
    Succeeded,
    /// Nothing about volumes.
    NotAboutVolumes,
}

impl Meaning {
    /// Whether an attachment may be at fault, so that attaching, detaching, waiting or the provider can help.
    pub fn is_ours(&self) -> bool {
        !matches!(
            self,
            Self::SecretMissing { .. }
                | Self::ConfigMapMissing { .. }
                | Self::ProjectedToken
                | Self::NodeLocal
                | Self::HostPath
                | Self::NonAttachable
                | Self::AttachLimit
                | Self::NodeAffinityConflict
                | Self::Scheduling
                | Self::VolumeModeMismatch
                | Self::CapabilityUnsupported
                | Self::WrongFsType
                | Self::MountDenied
                | Self::SelinuxConflict
                | Self::PermissionDenied
                | Self::EncryptionKey
                | Self::ClaimProblem
                | Self::PluginMissing
                | Self::NodeDiskFull
                | Self::InvalidRequest
                | Self::DeletionPath
                | Self::ProvisioningPath
                | Self::ResizePath
                | Self::Succeeded
                | Self::NotAboutVolumes
        )
    }
}

/// What to look at before anything is done about a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DecidingFact {
    /// `VolumeAttachment.status`: attached, attachError, detachError.
    VolumeAttachmentStatus,
    /// Whether the VolumeAttachment has a deletionTimestamp, and since when.
    VolumeAttachmentDeletion,
    /// All VolumeAttachments of the volume, and the node that each names.
    VolumeAttachmentsPerNode,
    /// Which instance the cloud says holds the volume, by instance ID and not by node name.
    CloudHolder,
    /// The volume's own state at the provider: exists, locked, busy, attaching, detaching, failed.
    CloudVolumeState,
    /// The provider's job history for the volume.
    CloudJobs,
    /// The device as the guest sees it.
    GuestDevice,
    /// Mounts and openers of the device in the guest.
    GuestMounts,
    /// The kernel log of the node: I/O errors, hot-unplug.
    KernelLog,
    /// Readiness and age of the Node's heartbeat.
    NodeReadiness,
    /// Boot ID and boot time of the node, beside the time of the attach.
    NodeBoot,
    /// The instance behind the Node's providerID: exists, runs, is off.
    InstanceState,
    /// `Node.status.volumesInUse`: what kubelet says it uses.
    VolumesInUse,
    /// `Node.status.volumesAttached`: what the attach/detach controller says is attached.
    VolumesAttached,
    /// A live pod that uses the claim.
    LivePod,
    /// Age and count of the event, and whether an attach succeeded afterwards.
    EventAge,
    /// The more specific events of the same pod.
    OtherEvents,
    /// CSINode: whether the driver is registered on the node.
    CsiNodeRegistration,
    /// Health and logs of the CSI controller and external-attacher.
    CsiControllerHealth,
    /// RBAC of the CSI controller's service account.
    ControllerPermissions,
    /// The driver's credentials at the cloud.
    CloudCredentials,
    /// The provider's status and rate limits.
    ProviderStatus,
    /// The claim, its PersistentVolume and their deletionTimestamps.
    ClaimAndVolume,
    /// The pod's own volumes and mounts.
    PodSpec,
    /// The Secret, ConfigMap, token or key that is named.
    ReferencedObject,
    /// The server of a file share.
    StorageServer,
    /// Attach limits in CSINode and quotas at the provider.
    AttachLimits,
    /// Node selectors, zones and the volume's node affinity.
    Topology,
}
