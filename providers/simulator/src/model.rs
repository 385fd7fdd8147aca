//! The objects of the simulated cloud: instances, volumes, jobs, snapshots. Independent of any provider's wire format.

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
    /// The number of a simulated instance. Each wire format prints it in its own form.
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
    /// The number of a job. Later jobs have greater numbers.
    JobNo
);

/// The power state of an instance, as the API shows it.
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
    /// Any other word, shown as it is. It tests how a client treats words that it does not know.
    Other(String),
}

impl InstanceStatus {
    /// Returns Linode's word for it.
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
    /// Number of the object.
    pub id: InstanceNo,
    /// Name in the cloud's console.
    pub label: String,
    /// Region or zone in which the instance runs.
    pub region: String,
    /// Power state that the API shows.
    pub status: InstanceStatus,
    /// Whether the cloud boots the instance when it stopped without a shutdown job (Linode's watchdog, Lassie).
    pub watchdog_enabled: bool,
    /// Number of boots of its guest.
    pub boots: u32,
    /// Tags of the instance. Linode's tags are words: `key:value`, or the key alone.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// LKE cluster that the instance is a node of, as Linode shows it.
    #[serde(default)]
    pub lke_cluster_id: Option<u64>,
    /// Time of creation.
    pub created: Timestamp,
    /// Time of the last change.
    pub updated: Timestamp,
}

/// The behaviour of a detach that has passed the checks.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DetachBehaviour {
    /// The detach works, after [`Timings::detach_ms`].
    #[default]
    Normal,
    /// The detach is refused with this HTTP status and text.
    Refused {
        /// HTTP status, 4xx.
        status: u16,
        /// Text of the refusal.
        reason: String,
    },
    /// The detach is accepted and does not finish until the behaviour is changed.
    Stuck,
    /// The detach is accepted, its job fails, and the volume stays attached.
    Fails,
}

/// A simulated block volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Number of the object.
    pub id: VolumeNo,
    /// Name of the volume, which is also part of a guest's by-id link.
    pub label: String,
    /// Size in GiB.
    pub size_gib: u64,
    /// Region or zone. The volume attaches only to instances of the same region.
    pub region: String,
    /// Instance that the API names as the holder. The devices of guests are kept apart.
    pub holder: Option<InstanceNo>,
    /// Status that the API shows (`active`, `resizing`, …).
    pub status: String,
    /// Entries of the API's `locks` list.
    pub locks: Vec<String>,
    /// Reason for which attach and detach are refused. Independent of `locks`.
    pub locked: Option<String>,
    /// Time until which attach and detach are answered "busy".
    pub busy_until: Option<Timestamp>,
    /// Whether the API shows the volume as usable by the guest.
    pub io_ready: bool,
    /// Whether the attachment survives a reboot. Those of Linode's CSI driver do not.
    pub persist_across_boots: bool,
    /// Behaviour of the next detach.
    pub detach: DetachBehaviour,
    /// Tags of the volume, in the form of an instance's tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Time at which the volume was attached to its holder.
    #[serde(default)]
    pub attached_at: Option<Timestamp>,
    /// Further holders, beside `holder` (EBS Multi-Attach). Linode has none.
    #[serde(default)]
    pub also_attached: BTreeSet<InstanceNo>,
    /// Time of creation.
    pub created: Timestamp,
    /// Time of the last change.
    pub updated: Timestamp,
}

/// The kind of a job.
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
    /// Reboot an instance cleanly.
    Reboot,
    /// Power-cycle an instance uncleanly, as when a cluster node is recycled.
    Recycle,
    /// Boot an instance that stopped without a shutdown job, by the watchdog.
    WatchdogBoot,
    /// Delete an instance.
    Delete,
}

impl JobAction {
    /// Returns whether the cloud starts such a job by itself. The job names no user then.
    pub fn is_own(self) -> bool {
        matches!(self, Self::Recycle | Self::WatchdogBoot)
    }

    /// Returns Linode's word for it in `/account/events`.
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

/// The state of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobStatus {
    /// The job has not started.
    Scheduled,
    /// Running.
    Started,
    /// The job ended with its effect.
    Finished,
    /// The job ended without its effect.
    Failed,
}

impl JobStatus {
    /// Returns Linode's word for it.
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
    /// Number of the object.
    pub id: JobNo,
    /// Kind of the job.
    pub action: JobAction,
    /// Volume that the job is about.
    pub volume: Option<VolumeNo>,
    /// Instance that the job is about.
    pub instance: Option<InstanceNo>,
    /// State of the job.
    pub status: JobStatus,
    /// Time of acceptance.
    pub created: Timestamp,
    /// Time at which the job will end. `None`: it is stuck.
    pub due: Option<Timestamp>,
    /// Time of its end.
    pub finished: Option<Timestamp>,
    /// User who requested the job. `None`: the cloud started it by itself.
    #[serde(default)]
    pub by: Option<String>,
    /// Whether the job is a detach that waits until the guest stops using the device (EBS: `busy`).
    #[serde(default)]
    pub waits_for_guest: bool,
}

/// A snapshot of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Number of the object.
    pub id: SnapshotNo,
    /// Volume of which the snapshot was made.
    pub volume: VolumeNo,
    /// Size of the volume in GiB.
    pub size_gib: u64,
    /// Description given in the request.
    pub description: String,
    /// Time at which the snapshot was begun.
    pub started: Timestamp,
    /// Time at which the snapshot is complete.
    pub due: Timestamp,
}

/// Durations of the cloud's jobs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timings {
    /// Milliseconds from an accepted attach to the device in the guest.
    pub attach_ms: u64,
    /// Milliseconds from an accepted detach to an unattached volume.
    pub detach_ms: u64,
    /// Milliseconds of a boot.
    pub boot_ms: u64,
    /// Milliseconds of a shutdown.
    pub shutdown_ms: u64,
    /// Milliseconds of a clean reboot.
    pub reboot_ms: u64,
    /// Milliseconds of an unclean recycle.
    pub recycle_ms: u64,
    /// Milliseconds from an unclean stop to the end of the watchdog's boot.
    pub watchdog_ms: u64,
    /// Milliseconds of a snapshot.
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
    /// Returns the duration of a job of this kind.
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

/// The objects that the API shows. A stale read shows an earlier view.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// All instances.
    pub instances: BTreeMap<InstanceNo, Instance>,
    /// All volumes.
    pub volumes: BTreeMap<VolumeNo, Volume>,
    /// All jobs.
    pub jobs: BTreeMap<JobNo, Job>,
    /// All snapshots.
    pub snapshots: BTreeMap<SnapshotNo, Snapshot>,
}

impl View {
    /// Returns the job that runs on a volume for one of its holders, if there is one.
    pub(crate) fn running_job(&self, volume: VolumeNo, instance: InstanceNo) -> Option<&Job> {
        let mine = |j: &&Job| j.volume == Some(volume) && j.instance == Some(instance);
        self.jobs
            .values()
            .rev()
            .filter(mine)
            .find(|j| j.status == JobStatus::Started)
    }
}

/// Reason for which the simulated cloud refuses an operation. Each API turns it into its own status and text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// The instance does not exist.
    #[error("instance {0} does not exist")]
    NoInstance(InstanceNo),
    /// The volume does not exist.
    #[error("volume {0} does not exist")]
    NoVolume(VolumeNo),
    /// Another job runs on the volume or instance.
    #[error("another job is running, try again later")]
    Busy,
    /// The provider has locked the volume.
    #[error("volume {volume} is locked: {reason}")]
    Locked {
        /// The volume.
        volume: VolumeNo,
        /// Reason of the lock.
        reason: String,
    },
    /// The volume to attach has a holder.
    #[error("volume {volume} is already attached to instance {holder}")]
    AlreadyAttached {
        /// The volume.
        volume: VolumeNo,
        /// Instance that has the volume.
        holder: InstanceNo,
    },
    /// The instance to detach from is not the holder.
    #[error("volume {volume} is not attached to instance {instance}")]
    NotHeldBy {
        /// The volume.
        volume: VolumeNo,
        /// Instance of the request.
        instance: InstanceNo,
    },
    /// The volume to detach has no holder.
    #[error("volume {0} is not attached")]
    NotAttached(VolumeNo),
    /// Volume and instance are in different regions.
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
        /// Power state of the instance.
        status: String,
    },
    /// The refusal was set by [`DetachBehaviour::Refused`].
    #[error("{reason}")]
    Refused {
        /// HTTP status of the answer.
        status: u16,
        /// Text of the answer.
        reason: String,
    },
    /// The number or label of a new object is in use.
    #[error("{0} is already taken")]
    Taken(String),
}
