//! What the simulated cloud consists of: instances, volumes, jobs. Independent of any provider's wire format.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    str::FromStr,
    time::Duration,
};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<u64> for $name {
            fn from(number: u64) -> Self {
                Self(number)
            }
        }

        impl FromStr for $name {
            type Err = std::num::ParseIntError;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map(Self)
            }
        }
    };
}

number!(
    /// The number of a simulated instance. Each wire format prints it its own way.
    InstanceNo
);
number!(
    /// The number of a simulated volume.
    VolumeNo
);
number!(
    /// The number of a snapshot.
    SnapshotNo
);
number!(
    /// The number of a job; later jobs have greater numbers.
    JobNo
);

/// The power state of an instance as the API tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InstanceStatus {
    /// Powered on.
    Running,
    /// Powered off.
    Offline,
    /// A boot job runs.
    Booting,
    /// A reboot (clean or not) runs.
    Rebooting,
    /// A shutdown job runs; the guest may still write.
    ShuttingDown,
    /// Any other word, served as it is: for testing a client's treatment of words that it does not know.
    Other(String),
}

impl InstanceStatus {
    /// Linode's word for it.
    pub fn word(&self) -> &str {
        match self {
            Self::Running => "running",
            Self::Offline => "offline",
            Self::Booting => "booting",
            Self::Rebooting => "rebooting",
            Self::ShuttingDown => "shutting_down",
            Self::Other(word) => word,
        }
    }
}

/// A simulated virtual machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Instance {
    /// Its number.
    pub id: InstanceNo,
    /// Its name in the console.
    pub label: String,
    /// Where it runs.
    pub region: String,
    /// What the API says of its power.
    pub status: InstanceStatus,
    /// Whether the cloud boots it again after it stopped without a shutdown job (Linode's Lassie).
    pub watchdog_enabled: bool,
    /// How often its guest has started.
    pub boots: u32,
    /// Its tags. Linode knows words: key and value with a colon between them, or the key alone.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The LKE cluster that it is a node of, as Linode shows it.
    #[serde(default)]
    pub lke_cluster_id: Option<u64>,
    /// When it was created.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
}

/// What a detach does to a volume once it passed the checks.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DetachBehaviour {
    /// Works, and takes its time.
    #[default]
    Normal,
    /// Refused with this HTTP status and text.
    Refused {
        /// A 4xx status.
        status: u16,
        /// The provider's text.
        reason: String,
    },
    /// Accepted and never finished, until the behaviour is set to something else.
    Stuck,
    /// Accepted, then the job fails and the volume stays attached.
    Fails,
}

/// A simulated block volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Its number.
    pub id: VolumeNo,
    /// Its name, which is also what a guest's by-id link carries.
    pub label: String,
    /// Size in GiB.
    pub size_gib: u64,
    /// Where it lives; it attaches only to instances of the same region.
    pub region: String,
    /// Who has it, as the API tells it. What guests see is kept apart.
    pub holder: Option<InstanceNo>,
    /// The API's status word (`active`, `resizing`, …).
    pub status: String,
    /// Words in the API's `locks` list.
    pub locks: Vec<String>,
    /// Why attach and detach are refused, when they are, apart from what `locks` shows.
    pub locked: Option<String>,
    /// Until when attach and detach are answered "busy".
    pub busy_until: Option<Timestamp>,
    /// Whether the API says that the guest may use it.
    pub io_ready: bool,
    /// Whether the attachment survives a reboot (Linode's CSI driver says no).
    pub persist_across_boots: bool,
    /// What a detach does.
    pub detach: DetachBehaviour,
    /// Its tags, as those of an instance.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// When its holder got it.
    #[serde(default)]
    pub attached_at: Option<Timestamp>,
    /// Further holders of a volume that many may have (EBS Multi-Attach); Linode has none.
    #[serde(default)]
    pub also_attached: BTreeSet<InstanceNo>,
    /// When it was created.
    pub created: Timestamp,
    /// When it last changed.
    pub updated: Timestamp,
}

/// What a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobAction {
    /// Attach a volume.
    VolumeAttach,
    /// Detach a volume.
    VolumeDetach,
    /// Boot an instance.
    Boot,
    /// Shut an instance down.
    Shutdown,
    /// Reboot an instance in order.
    Reboot,
    /// Power-cycle an instance uncleanly, as a recycled cluster node is.
    Recycle,
    /// The watchdog boots an instance that stopped without a shutdown job.
    WatchdogBoot,
    /// An instance was deleted.
    Delete,
}

impl JobAction {
    /// Whether the cloud does it by itself: nobody is named for such a job.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Recycle | Self::WatchdogBoot)
    }

    /// Linode's word for it in `/account/events`.
    pub fn word(self) -> &'static str {
        match self {
            Self::VolumeAttach => "volume_attach",
            Self::VolumeDetach => "volume_detach",
            Self::Boot => "linode_boot",
            Self::Shutdown => "linode_shutdown",
            Self::Reboot => "linode_reboot",
            Self::Recycle => "host_reboot",
            Self::WatchdogBoot => "lassie_reboot",
            Self::Delete => "linode_delete",
        }
    }
}

/// How a job stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// Waiting for its time.
    Scheduled,
    /// Running.
    Started,
    /// Done.
    Finished,
    /// Ended without its effect.
    Failed,
}

impl JobStatus {
    /// Linode's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Started => "started",
            Self::Finished => "finished",
            Self::Failed => "failed",
        }
    }
}

/// One entry of the cloud's own job history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub id: JobNo,
    /// What it does.
    pub action: JobAction,
    /// The volume that it concerns.
    pub volume: Option<VolumeNo>,
    /// The instance that it concerns.
    pub instance: Option<InstanceNo>,
    /// How it stands.
    pub status: JobStatus,
    /// When it was accepted.
    pub created: Timestamp,
    /// When it ends; `None` for one that is stuck.
    pub due: Option<Timestamp>,
    /// When it ended.
    pub finished: Option<Timestamp>,
    /// Who asked for it; none for what the cloud does by itself.
    #[serde(default)]
    pub by: Option<String>,
    /// Whether it is a detach that waits for the guest to let go of the device (EBS calls that `busy`).
    #[serde(default)]
    pub waits_for_guest: bool,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its number.
    pub id: SnapshotNo,
    /// The volume.
    pub volume: VolumeNo,
    /// The volume's size in GiB.
    pub size_gib: u64,
    /// What it was ordered with.
    pub description: String,
    /// When it was begun.
    pub started: Timestamp,
    /// When it is done.
    pub due: Timestamp,
}

/// How long the cloud's work takes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timings {
    /// From an accepted attach to the device in the guest, in milliseconds.
    pub attach_ms: u64,
    /// From an accepted detach to the volume being free, in milliseconds.
    pub detach_ms: u64,
    /// A boot, in milliseconds.
    pub boot_ms: u64,
    /// A shutdown, in milliseconds.
    pub shutdown_ms: u64,
    /// A clean reboot, in milliseconds.
    pub reboot_ms: u64,
    /// An unclean recycle, in milliseconds.
    pub recycle_ms: u64,
    /// From an unclean stop to the watchdog's boot having finished, in milliseconds.
    pub watchdog_ms: u64,
    /// A snapshot, in milliseconds.
    pub snapshot_ms: u64,
}

impl Default for Timings {
    /// Attach and detach as measured beside Kubernetes with Linode's driver (2 s); boot and shutdown as recorded
    /// from Linode's API (67 s and 28 s); the rest are round numbers of the same order.
    fn default() -> Self {
        Self {
            attach_ms: 2_000,
            detach_ms: 2_000,
            boot_ms: 67_000,
            shutdown_ms: 28_000,
            reboot_ms: 95_000,
            recycle_ms: 5_000,
            watchdog_ms: 120_000,
            snapshot_ms: 20_000,
        }
    }
}

impl Timings {
    /// How long a job of this kind runs.
    pub fn of(&self, action: JobAction) -> Duration {
        Duration::from_millis(match action {
            JobAction::VolumeAttach => self.attach_ms,
            JobAction::VolumeDetach => self.detach_ms,
            JobAction::Boot => self.boot_ms,
            JobAction::Shutdown => self.shutdown_ms,
            JobAction::Reboot => self.reboot_ms,
            JobAction::Recycle => self.recycle_ms,
            JobAction::WatchdogBoot => self.watchdog_ms,
            JobAction::Delete => 0,
        })
    }
}

/// What the API shows: the part of the state that a stale read can lag behind in.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Instances by number.
    pub instances: BTreeMap<InstanceNo, Instance>,
    /// Volumes by number.
    pub volumes: BTreeMap<VolumeNo, Volume>,
    /// Jobs by number.
    pub jobs: BTreeMap<JobNo, Job>,
    /// Snapshots by number.
    pub snapshots: BTreeMap<SnapshotNo, Snapshot>,
}

impl View {
    /// The job that runs on a volume for one of its holders, if one does.
    pub(crate) fn running_job(&self, volume: VolumeNo, instance: InstanceNo) -> Option<&Job> {
        let mine = |j: &&Job| j.volume == Some(volume) && j.instance == Some(instance);
        self.jobs.values().rev().filter(mine).find(|j| j.status == JobStatus::Started)
    }
}

/// Why the simulated cloud refuses an operation. A face turns it into its own status and text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// No such instance.
    #[error("instance {0} does not exist")]
    NoInstance(InstanceNo),
    /// No such volume.
    #[error("volume {0} does not exist")]
    NoVolume(VolumeNo),
    /// Another job has the volume or instance.
    #[error("another job is running, try again later")]
    Busy,
    /// The provider keeps the volume locked.
    #[error("volume {volume} is locked: {reason}")]
    Locked {
        /// The volume.
        volume: VolumeNo,
        /// The provider's reason.
        reason: String,
    },
    /// An attach of a volume that has a holder.
    #[error("volume {volume} is already attached to instance {holder}")]
    AlreadyAttached {
        /// The volume.
        volume: VolumeNo,
        /// Who has it.
        holder: InstanceNo,
    },
    /// A detach from an instance that is not the holder.
    #[error("volume {volume} is not attached to instance {instance}")]
    NotHeldBy {
        /// The volume.
        volume: VolumeNo,
        /// Who was thought to have it.
        instance: InstanceNo,
    },
    /// A detach of a volume that has no holder.
    #[error("volume {0} is not attached")]
    NotAttached(VolumeNo),
    /// An attach across regions.
    #[error("volume {volume} and instance {instance} are in different regions")]
    OtherRegion {
        /// The volume.
        volume: VolumeNo,
        /// The instance.
        instance: InstanceNo,
    },
    /// The operation needs another power state.
    #[error("instance {instance} is {status}")]
    WrongPower {
        /// The instance.
        instance: InstanceNo,
        /// Its state.
        status: String,
    },
    /// Refused because a test asked for it.
    #[error("{reason}")]
    Refused {
        /// The HTTP status to answer with.
        status: u16,
        /// The text to answer with.
        reason: String,
    },
    /// The number of a new object is taken.
    #[error("{0} is already taken")]
    Taken(String),
}
