//! The cloud simulator as the cloud under a simulated cluster.
//!
//! The CSI controller and the guests use the simulator directly, not its HTTP API: its request log then holds only
//! the requests of the program under test. The requests of the CSI controller count against the account's rate limit.

use futures::future::{BoxFuture, ready};
use reattach_cloud_simulator::{CloudSim, InstanceNo, InstanceStatus, OpError, Volume, VolumeNo};

use super::{CloudApi, CloudApiError, CloudVolume, Ground, GuestDevice, Hardware, Power, ground};

/// [`CloudSim`] as cloud API and hardware of a simulated cluster.
#[derive(Debug, Clone)]
pub struct SimulatedCloud {
    sim: CloudSim,
    ground: Ground,
}

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

    /// Counts a request of the CSI controller against the rate limit that it shares with the program under test.
    fn admit(&self) -> Result<(), CloudApiError> {
        self.sim.count_other_request().map_err(|e| refusal(&e))
    }

    /// The simulator.
    #[must_use]
    pub fn sim(&self) -> &CloudSim {
        &self.sim
    }
}

fn volume_no(handle: &str) -> Result<VolumeNo, CloudApiError> {
    ground::volume_no(handle).ok_or(CloudApiError::NotFound)
}

fn instance_no(instance: &str) -> Result<InstanceNo, CloudApiError> {
    ground::instance_no(instance).ok_or(CloudApiError::NotFound)
}

/// Linode's words for a refusal.
fn refusal(e: &OpError) -> CloudApiError {
    let refused = |reason: String| CloudApiError::Refused {
        status: 400,
        reason,
    };
    match e {
        OpError::NoInstance(_) | OpError::NoVolume(_) => CloudApiError::NotFound,
        OpError::Busy => refused("Linode busy.".into()),
        OpError::Refused { status, reason } => CloudApiError::Refused {
            status: *status,
            reason: reason.clone(),
        },
        other => refused(other.to_string()),
    }
}

fn describe(v: &Volume, ground: Ground) -> CloudVolume {
    CloudVolume {
        handle: ground.handle(v.id, &v.label),
        holder: v.holder.map(|i| ground.instance(i)),
        ready: v.holder.is_some() && v.io_ready,
    }
}

impl CloudApi for SimulatedCloud {
    fn volume<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<CloudVolume, CloudApiError>> {
        let found = self
            .admit()
            .and_then(|()| volume_no(handle))
            .and_then(|v| self.sim.volume(v).ok_or(CloudApiError::NotFound));
        Box::pin(ready(found.map(|v| describe(&v, self.ground))))
    }

    fn volumes(&self) -> BoxFuture<'_, Result<Vec<CloudVolume>, CloudApiError>> {
        let describe = |v: &Volume| describe(v, self.ground);
        let all = self
            .admit()
            .map(|()| self.sim.volumes().iter().map(describe).collect());
        Box::pin(ready(all))
    }

    fn instance_exists<'a>(
        &'a self,
        instance: &'a str,
    ) -> BoxFuture<'a, Result<bool, CloudApiError>> {
        let exists = || instance_no(instance).is_ok_and(|i| self.sim.instance(i).is_some());
        Box::pin(ready(self.admit().map(|()| exists())))
    }

    fn attach<'a>(
        &'a self,
        handle: &'a str,
        instance: &'a str,
    ) -> BoxFuture<'a, Result<(), CloudApiError>> {
        let done = self.admit().and_then(|()| volume_no(handle)).and_then(|v| {
            let i = instance_no(instance)?;
            self.sim.attach(v, i).map(|_| ()).map_err(|e| refusal(&e))
        });
        Box::pin(ready(done))
    }

    fn detach<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), CloudApiError>> {
        let detach = |v| match self.ground {
            Ground::Linode => self.sim.detach(v).map(|_| ()),
            // EBS waits until a running guest stops using the device. Its driver takes a volume without a holder for detached.
            Ground::Ebs => match self.sim.detach_from(v, None, false) {
                Ok(_) | Err(OpError::NotAttached(_)) => Ok(()),
                Err(error) => Err(error),
            },
        };
        let admitted = self.admit().and_then(|()| volume_no(handle));
        let done = admitted.and_then(|v| detach(v).map_err(|e| refusal(&e)));
        Box::pin(ready(done))
    }
}

impl Hardware for SimulatedCloud {
    fn guest_devices<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Vec<GuestDevice>> {
        let numbers = instance_no(instance)
            .map(|i| self.sim.guest_devices(i))
            .unwrap_or_default();
        let devices = numbers
            .into_iter()
            .filter_map(|n| self.sim.volume(n))
            .map(|v| GuestDevice {
                handle: self.ground.handle(v.id, &v.label),
                label: self.ground.serial(&v),
                size: v.size_gib << 30,
            });
        Box::pin(ready(devices.collect()))
    }

    fn in_use<'a>(&'a self, instance: &'a str, handle: &'a str, in_use: bool) -> BoxFuture<'a, ()> {
        if let (Ok(i), Ok(v)) = (instance_no(instance), volume_no(handle)) {
            self.sim.set_in_use(i, v, in_use);
        }
        Box::pin(ready(()))
    }

    fn power<'a>(&'a self, instance: &'a str, power: Power) -> BoxFuture<'a, ()> {
        if let Ok(i) = instance_no(instance) {
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
        Box::pin(ready(()))
    }
}
