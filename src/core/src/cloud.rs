//! What a cloud says about volumes, instances and jobs, in one vocabulary for all providers.

use crate::ids::{CloudCluster, InstanceId, ObjectName, PvName, VolumeId};
use crate::plain;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// How a guest kernel names a cloud volume: the identity that the device itself carries (SCSI page 0x83 or NVMe
/// serial), never a by-id link or a filesystem UUID, which can be stale or copied.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceIdentity {
    /// What the device reports as its serial or vendor-specific designator. Linode: the volume's label. EBS: the
    /// volume ID without its dash.
    pub serial: String,
}

impl fmt::Display for DeviceIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.serial)
    }
}

/// The state of a cloud volume apart from who holds it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum VolumeState {
    /// Usable: attach and detach are accepted.
    Active,
    /// A job of the cloud's own runs on it (creating, resizing, migrating); it ends by itself.
    Busy {
        /// The cloud's own word for what it does.
        doing: String,
    },
    /// The provider refuses changes until its staff or a policy lifts the lock. It may last for hours.
    Locked {
        /// The cloud's own word for why.
        reason: String,
    },
    /// A detach was accepted and has not finished.
    Detaching,
    /// A word that this build does not know. Treated as "do nothing".
    Other(String),
}

impl fmt::Display for VolumeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("Active"),
            Self::Busy { doing } => write!(f, "busy ({doing})"),
            Self::Locked { reason } => write!(f, "locked ({reason})"),
            Self::Detaching => f.write_str("Detaching"),
            Self::Other(word) => write!(f, "{word} (a word that this build does not know)"),
        }
    }
}

/// What the tags of a volume or an instance say of its owner.
///
/// Each of them is text: whoever may write tags in the account wrote it, for many of them years ago. So a tag only ever
/// speaks against something; a tag that fits proves nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerTags {
    /// The clusters that the tags name.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub clusters: BTreeSet<CloudCluster>,
    /// The PersistentVolume that the volume was made for, by each of the tags that name one.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<PvName>,
    /// The claim that the volume was made for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ObjectName>,
}

impl OwnerTags {
    /// Maximum length of one name, in characters: EC2's own limit for the value of a tag (`docs.aws.amazon.com/AWSEC2`,
    /// "Tag restrictions"). A longer name is cut, and so is never one of Kubernetes'.
    pub const NAME_CHARS: usize = 256;
    /// Maximum number of names of one kind: EC2's limit for the tags of one object (the same page). Names beyond it are
    /// left out. They might have been the ones that fit, so leaving them out can only refuse.
    pub const NAMES: usize = 50;

    /// Whether no tag says anything of the owner.
    pub fn is_empty(&self) -> bool {
        self.clusters.is_empty() && self.volumes.is_empty() && self.claim.is_none()
    }

    /// Notes a cluster's name.
    pub fn add_cluster(&mut self, name: &str) {
        if !name.is_empty() && self.clusters.len() < Self::NAMES {
            self.clusters
                .insert(CloudCluster::new(plain::cut(name, Self::NAME_CHARS)));
        }
    }

    /// Notes a PersistentVolume's name.
    pub fn add_volume(&mut self, name: &str) {
        if !name.is_empty() && self.volumes.len() < Self::NAMES {
            self.volumes
                .insert(PvName::new(plain::cut(name, Self::NAME_CHARS)));
        }
    }

    /// Notes the claim.
    pub fn set_claim(&mut self, namespace: &str, name: &str) {
        let bounded = |text: &str| plain::cut(text, Self::NAME_CHARS);
        self.claim = Some(ObjectName::new(bounded(namespace), bounded(name)));
    }
}

/// One cloud volume as the provider described it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudVolume {
    /// The cloud's identifier.
    pub id: VolumeId,
    /// The name people see in the cloud's console.
    pub label: String,
    /// Region or zone, as the cloud spells it.
    pub region: String,
    /// Size in GiB.
    pub size_gib: u64,
    /// Every instance that the cloud says has it. More than one is never touched.
    pub holders: Vec<InstanceId>,
    /// What else the cloud says about it.
    pub state: VolumeState,
    /// How a guest would recognise it.
    pub identity: DeviceIdentity,
    /// What its tags say of its owner.
    #[serde(default, skip_serializing_if = "OwnerTags::is_empty")]
    pub owner: OwnerTags,
}

/// The power state of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InstanceState {
    /// Powered on.
    Running,
    /// On its way to off: it may still write.
    Stopping,
    /// Powered off. By itself no proof of anything: a watchdog may boot it again (Linode's Lassie).
    Off,
    /// Booting, rebooting, migrating and the like, in the cloud's own word.
    Transitional(String),
    /// The cloud reports it as deleted or terminated.
    Gone,
    /// A word that this build does not know.
    Unknown(String),
}

/// One instance as the provider described it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudInstance {
    /// The cloud's identifier.
    pub id: InstanceId,
    /// The name people see in the cloud's console.
    pub label: String,
    /// Power state.
    pub state: InstanceState,
    /// Whether the cloud boots it again by itself after an unclean stop (Linode `watchdog_enabled`).
    pub auto_restart: bool,
    /// The clusters that its tags name; PersistentVolumes and claims are never among them.
    #[serde(default, skip_serializing_if = "OwnerTags::is_empty")]
    pub owner: OwnerTags,
}

/// How a job of the cloud's own history ended, if it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobStatus {
    /// Accepted, not begun.
    Scheduled,
    /// Running.
    Started,
    /// Finished well.
    Finished,
    /// Failed.
    Failed,
    /// A notification or a word that this build does not know.
    Other(String),
}

/// Kind of a volume's job at the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum JobKind {
    /// The job attaches the volume.
    Attach,
    /// The job detaches the volume.
    Detach,
    /// The job does something else, or this build does not know the provider's word for it.
    Other,
}

/// One entry of the provider's job history (Linode: account events).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudJob {
    /// The provider's identifier of the job.
    pub id: String,
    /// Kind of the job, as the provider's crate reads its word.
    pub kind: JobKind,
    /// The provider's word for the job, such as `volume_detach`. For people only.
    pub action: String,
    /// How it stands.
    pub status: JobStatus,
    /// The volume it concerns, if any.
    pub volume: Option<VolumeId>,
    /// The instance it concerns, if any.
    pub instance: Option<InstanceId>,
    /// When it was created.
    pub created: Timestamp,
}

impl CloudJob {
    /// Whether the job can still change something.
    pub fn is_pending(&self) -> bool {
        matches!(self.status, JobStatus::Scheduled | JobStatus::Started)
    }
}

/// How a snapshot stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum SnapshotState {
    /// Under way. What it will contain is settled.
    Pending,
    /// Done.
    Completed,
    /// It did not work.
    Failed {
        /// The provider's words.
        why: String,
    },
    /// A word that this build does not know.
    Other(String),
}

/// One snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CloudSnapshot {
    /// The cloud's identifier.
    pub id: String,
    /// The volume.
    pub volume: VolumeId,
    /// The text that it was ordered with.
    pub label: String,
    /// How it stands.
    pub state: SnapshotState,
    /// When it was begun.
    pub started: Timestamp,
}

/// Who answers for what is read from a cloud: credential, account and region, as a fingerprint that reveals nothing.
/// "Not found" under one scope says nothing about another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CloudScope(pub String);

/// Which way a job changes the power of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PowerChange {
    /// It ends with the instance off.
    Off,
    /// It ends with the instance running: boots and reboots, the cloud's own watchdog's too.
    On,
}

/// One entry of the history of an instance's power.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PowerJob {
    /// The provider's identifier of the job.
    pub id: String,
    /// Which way.
    pub change: PowerChange,
    /// How it stands.
    pub status: JobStatus,
    /// Who asked for it; none if the cloud does not say, or did it by itself.
    pub by: Option<String>,
    /// When it was created.
    pub created: Timestamp,
    /// When it ended.
    pub finished: Option<Timestamp>,
}

impl PowerJob {
    /// Whether the job can still change something.
    pub fn is_pending(&self) -> bool {
        matches!(self.status, JobStatus::Scheduled | JobStatus::Started)
    }
}

/// What is known of an instance's power besides its state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PowerFacts {
    /// The recent jobs, oldest first.
    pub jobs: Vec<PowerJob>,
    /// This cloud never boots an instance by itself, so that its state alone tells (EC2). Linode's watchdog does.
    pub off_stays_off: bool,
}

/// What a reading of an instance that is off with its automatic restart off was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct KeptOff {
    /// The term of the leader that read it: the time between two readings counts on one clock alone.
    pub term: u64,
    /// The newest job in the history of its power. None: the history was empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub newest_job: Option<String>,
}

/// What this recovery saw of the holder before, journaled: "not found" and "off" mean something only after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InstanceObservation {
    /// The instance.
    pub instance: InstanceId,
    /// Credential, account and region that described it, or its volume with it as the holder.
    pub scope: CloudScope,
    /// Its power state then; none if only its volume was described.
    pub state: Option<InstanceState>,
    /// It was off, and its automatic restart too. None: it was not off, or the cloud might have booted it by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_off: Option<KeptOff>,
    /// When.
    pub at: Timestamp,
}
