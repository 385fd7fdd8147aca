//! The cloud simulator as the cloud under a simulated cluster.
//!
//! The CSI controller and the guests use the simulator directly, not its HTTP API: its request log then holds only
//! the requests of the program under test. The requests of the CSI controller count against the account's rate limit.

use reattach_cloud_simulator::{CloudSim, InstanceNo, InstanceStatus, OpError, Volume, VolumeNo};

use super::{Ground, ground};

/// An error of the cloud's API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudApiError {
    /// 404.
    #[error("[404] Not found")]
    NotFound,
    /// 400: another job runs on the volume or the instance.
    #[error("[400] Linode busy.")]
    Busy,
    /// 400: the volume to attach has a holder.
    #[error("[400] {0}")]
    AlreadyAttached(OpError),
    /// Any other refusal.
    #[error("[{status}] {reason}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// The reason that the cloud gives.
        reason: String,
    },
}

/// A volume as the cloud's API describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudVolume {
    /// The handle.
    pub handle: String,
    /// Instance that the API names as holder.
    pub holder: Option<String>,
    /// Whether the attachment is complete (Linode: `io_ready`).
    pub ready: bool,
}

/// A block device that a guest's kernel has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestDevice {
    /// Handle of the volume.
    pub handle: String,
    /// The identity that the device reports (Linode: the volume's label, in SCSI page 0x83).
    pub label: String,
    /// Size in bytes.
    pub size: u64,
}

/// A change of the power of the machine under a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    /// It loses power; its memory and devices are gone, the cloud's attachments stay.
    Off,
    /// The cloud recycles it uncleanly: as `Off`, and it comes back without its devices.
    Recycle,
    /// It boots.
    On,
}

/// [`CloudSim`] as the cloud's API and the hardware of a simulated cluster. Clones share one simulator.
#[derive(Debug, Clone)]
pub struct SimulatedCloud {
    sim: CloudSim,
    ground: Ground,
}

/// The machines: what guests see, apart from what the cloud's API says.
impl SimulatedCloud {
    /// Wraps a simulator as Linode; it should run on the cluster's clock.
    #[must_use]
    pub fn new(sim: CloudSim) -> Self {
        Self::on(sim, Ground::Linode)
    }

    /// Wraps a simulator as the cloud of this kind.
    #[must_use]
    pub fn on(sim: CloudSim, ground: Ground) -> Self {
        Self { sim, ground }
    }

    pub(crate) fn ground(&self) -> Ground {
        self.ground
    }

    /// The volumes that the guest of `instance` has a device for.
    pub(crate) fn guest_devices(&self, instance: &str) -> Vec<GuestDevice> {
        let Ok(instance) = instance_no(instance) else {
            return Vec::new();
        };
        let volumes = self.sim.guest_devices(instance);
        volumes
            .into_iter()
            .filter_map(|n| self.sim.volume(n))
            .map(|v| GuestDevice {
                handle: self.ground.handle(v.id, &v.label),
                label: self.ground.serial(&v),
                size: v.size_gib << 30,
            })
            .collect()
    }

    /// Notes that a guest mounted or unmounted a device.
    pub(crate) fn set_in_use(&self, instance: &str, handle: &str, in_use: bool) {
        if let (Ok(i), Ok(v)) = (instance_no(instance), volume_no(handle)) {
            self.sim.set_in_use(i, v, in_use);
        }
    }

    /// Notes that a simulated node lost or got power.
    pub(crate) fn set_power(&self, instance: &str, power: Power) {
        let Ok(i) = instance_no(instance) else {
            return;
        };
        let result = match power {
            Power::Off => self.sim.kill(i),
            Power::Recycle => self.sim.recycle(i).map(|_| ()),
            // The end of a recycle is the simulator's own job; only a machine that was off is switched on here.
            Power::On => match self.sim.instance(i).map(|i| i.status) {
                Some(InstanceStatus::Offline) => {
                    self.sim.set_instance_status(i, InstanceStatus::Running)
                }
                _ => Ok(()),
            },
        };
        if let Err(e) = result {
            tracing::warn!(instance, error = %e, "the cloud simulator does not know this machine");
        }
    }
}

/// The cloud's API as a CSI driver uses it: calls that start jobs, and reads.
impl SimulatedCloud {
    /// Describes a volume.
    ///
    /// # Errors
    /// The cloud refuses.
    pub fn volume(&self, handle: &str) -> Result<CloudVolume, CloudApiError> {
        self.admit()?;
        let volume = self.sim.volume(volume_no(handle)?);
        volume
            .map(|v| self.describe(&v))
            .ok_or(CloudApiError::NotFound)
    }

    /// Describes all volumes.
    pub(crate) fn volumes(&self) -> Result<Vec<CloudVolume>, CloudApiError> {
        self.admit()?;
        let all = self.sim.volumes();
        Ok(all.iter().map(|v| self.describe(v)).collect())
    }

    /// Whether an instance exists.
    pub(crate) fn instance_exists(&self, instance: &str) -> Result<bool, CloudApiError> {
        self.admit()?;
        Ok(instance_no(instance).is_ok_and(|i| self.sim.instance(i).is_some()))
    }

    /// Begins to attach.
    pub(crate) fn attach(&self, handle: &str, instance: &str) -> Result<(), CloudApiError> {
        self.admit()?;
        let (volume, instance) = (volume_no(handle)?, instance_no(instance)?);
        self.sim.attach(volume, instance)?;
        Ok(())
    }

    /// Begins to detach from whichever instance holds it.
    ///
    /// # Errors
    /// The cloud refuses.
    pub fn detach(&self, handle: &str) -> Result<(), CloudApiError> {
        self.admit()?;
        let volume = volume_no(handle)?;
        match self.ground {
            Ground::Linode => self.sim.detach(volume).map(drop)?,
            // EBS waits until a running guest stops using the device. Its driver takes a volume without a holder for detached.
            Ground::Ebs => match self.sim.detach_from(volume, None, false) {
                Ok(_) | Err(OpError::NotAttached(_)) => {}
                Err(error) => return Err(error.into()),
            },
        }
        Ok(())
    }

    /// Counts a request of the CSI controller against the rate limit that it shares with the program under test.
    fn admit(&self) -> Result<(), CloudApiError> {
        Ok(self.sim.count_other_request()?)
    }

    fn describe(&self, v: &Volume) -> CloudVolume {
        CloudVolume {
            handle: self.ground.handle(v.id, &v.label),
            holder: v.holder.map(|i| self.ground.instance(i)),
            ready: v.holder.is_some() && v.io_ready,
        }
    }
}

fn volume_no(handle: &str) -> Result<VolumeNo, CloudApiError> {
    ground::volume_no(handle).ok_or(CloudApiError::NotFound)
}

fn instance_no(instance: &str) -> Result<InstanceNo, CloudApiError> {
    ground::instance_no(instance).ok_or(CloudApiError::NotFound)
}

/// Linode's words for a refusal.
impl From<OpError> for CloudApiError {
    fn from(e: OpError) -> Self {
        match e {
            OpError::NoInstance(_) | OpError::NoVolume(_) => Self::NotFound,
            OpError::Busy => Self::Busy,
            OpError::AlreadyAttached { .. } => Self::AlreadyAttached(e),
            OpError::Refused { status, reason } => Self::Refused { status, reason },
            other => Self::Refused {
                status: 400,
                reason: other.to_string(),
            },
        }
    }
}
