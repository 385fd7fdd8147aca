//! Remedies against a stuck volume, and the facts to look at before one is chosen.

use serde::{Deserialize, Serialize};

/// Defines an enum in which one literal is both the doc of a variant and its text for people.
macro_rules! described {
    ($(#[$attribute:meta])* pub enum $name:ident { $($variant:ident = $words:literal,)* }) => {
        $(#[$attribute])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum $name {
            $(#[doc = $words] $variant,)*
        }

        impl $name {
            /// Describes the variant in a clause without a full stop.
            pub fn in_words(self) -> &'static str {
                match self {
                    $(Self::$variant => $words,)*
                }
            }
        }
    };
}

described! {
    /// A remedy against a stuck volume.
    pub enum Remedy {
        ForceDetach = "detach at the cloud, once the holder is proven unable to write",
        DeleteVolumeattachment = "have Kubernetes delete or renew its record of the attachment",
        Wait = "it resolves by itself, or another step must finish first",
        Escalate = "a person, or the provider, must act",
        NotOurs = "no attachment is at fault; reattach does nothing, because detaching would not help",
    }
}

described! {
    /// A fact to look at before anything is done about a message.
    pub enum DecidingFact {
        VolumeAttachmentStatus = "the VolumeAttachment's status: attached, attachError, detachError",
        VolumeAttachmentDeletion = "whether the VolumeAttachment has a deletionTimestamp, and since when",
        VolumeAttachmentsPerNode = "all VolumeAttachments of the volume, and the node that each names",
        // Node names are recycled, instance IDs are not.
        CloudHolder = "which instance the cloud says holds the volume, by instance ID",
        CloudVolumeState = "the volume's state at the cloud: exists, locked, busy, attaching, detaching, failed",
        CloudJobs = "the cloud's job history of the volume",
        GuestDevice = "whether the machine itself sees the device",
        GuestMounts = "mounts and openers of the device on the machine",
        KernelLog = "the node's kernel log: I/O errors, hot-unplug",
        NodeReadiness = "whether the Node is Ready, and the age of its heartbeat",
        NodeBoot = "the node's boot ID and boot time, beside the time of the attach",
        InstanceState = "the instance behind the Node's providerID: exists, runs, is off",
        VolumesInUse = "the Node's status.volumesInUse: what kubelet says it uses",
        VolumesAttached = "the Node's status.volumesAttached: what the attach/detach controller says",
        LivePod = "a live pod that uses the claim",
        EventAge = "age and count of the event, and whether an attach succeeded afterwards",
        OtherEvents = "the more specific events of the same pod",
        CsiNodeRegistration = "the CSINode: whether the driver is registered on the node",
        CsiControllerHealth = "health and logs of the CSI controller and of external-attacher",
        ControllerPermissions = "RBAC of the CSI controller's service account",
        CloudCredentials = "the driver's credentials at the cloud",
        ProviderStatus = "the cloud provider's status page and rate limits",
        ClaimAndVolume = "the claim, its PersistentVolume, and whether one is being deleted",
        PodSpec = "the pod's own volumes and mounts",
        ReferencedObject = "the Secret, ConfigMap, token or key that is named",
        StorageServer = "the server of the file share",
        AttachLimits = "attach limits in the CSINode, and quotas at the cloud",
        Topology = "node selectors, zones and the volume's node affinity",
    }
}
