//! The simulated cloud as the simulated cluster sees it: its API for the CSI driver, its machines for kubelets.
//!
//! The CSI driver and the machines use the cloud directly, not over HTTP, so the cloud's request log holds reattach's
//! requests and nothing else.

use futures::future::{BoxFuture, ready};
use reattach_cloud_simulator::{CloudSim, InstanceNo, OpError, VolumeNo};
use reattach_sim::cloud::{CloudApi, CloudApiError, CloudVolume, GuestDevice, Hardware, Power};
use reattach_sim::names::id_of;

/// A [`CloudSim`] for `reattach_sim`. Clones share the cloud.
#[derive(Clone, Debug)]
pub struct SimulatedCloud {
    sim: CloudSim,
}

impl SimulatedCloud {
    /// Over this cloud.
    pub fn new(sim: CloudSim) -> Self {
        Self { sim }
    }

    fn numbers(&self, handle: &str, instance: &str) -> Result<(VolumeNo, InstanceNo), CloudApiError> {
        Ok((volume_no(handle)?, instance.parse().map_err(|_| CloudApiError::NotFound)?))
    }

    fn describe(volume: &reattach_cloud_simulator::Volume) -> CloudVolume {
        CloudVolume {
            handle: format!("{}-{}", volume.id, volume.label),
            holder: volume.holder.map(|h| h.to_string()),
            ready: volume.io_ready,
        }
    }
}

/// The cloud's number of a volume, from its CSI handle.
///
/// # Errors
/// `NotFound`: the handle is not one of Linode's driver.
fn volume_no(handle: &str) -> Result<VolumeNo, CloudApiError> {
    id_of(handle).parse().map_err(|_| CloudApiError::NotFound)
}

fn refused(error: OpError) -> CloudApiError {
    match error {
        OpError::NoInstance(_) | OpError::NoVolume(_) => CloudApiError::NotFound,
        OpError::Refused { status, reason } => CloudApiError::Refused { status, reason },
        other => CloudApiError::Refused { status: 400, reason: other.to_string() },
    }
}

impl CloudApi for SimulatedCloud {
    fn volume<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<CloudVolume, CloudApiError>> {
        let found = volume_no(handle).and_then(|no| self.sim.volume(no).ok_or(CloudApiError::NotFound));
        Box::pin(ready(found.map(|v| Self::describe(&v))))
    }

    fn volumes(&self) -> BoxFuture<'_, Result<Vec<CloudVolume>, CloudApiError>> {
        Box::pin(ready(Ok(self.sim.volumes().iter().map(Self::describe).collect())))
    }

    fn instance_exists<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Result<bool, CloudApiError>> {
        let known = instance.parse().ok().and_then(|no| self.sim.instance(no)).is_some();
        Box::pin(ready(Ok(known)))
    }

    fn attach<'a>(&'a self, handle: &'a str, instance: &'a str) -> BoxFuture<'a, Result<(), CloudApiError>> {
        let done = self.numbers(handle, instance).and_then(|(v, i)| self.sim.attach(v, i).map_err(refused));
        Box::pin(ready(done.map(|_job| ())))
    }

    fn detach<'a>(&'a self, handle: &'a str) -> BoxFuture<'a, Result<(), CloudApiError>> {
        let done = volume_no(handle).and_then(|v| self.sim.detach(v).map_err(refused));
        Box::pin(ready(done.map(|_job| ())))
    }
}

impl Hardware for SimulatedCloud {
    fn guest_devices<'a>(&'a self, instance: &'a str) -> BoxFuture<'a, Vec<GuestDevice>> {
        let numbers = instance.parse().map(|no| self.sim.guest_devices(no)).unwrap_or_default();
        let devices = numbers.into_iter().filter_map(|no| self.sim.volume(no)).map(|v| GuestDevice {
            handle: format!("{}-{}", v.id, v.label),
            label: v.label.clone(),
            size: v.size_gib << 30,
        });
        Box::pin(ready(devices.collect()))
    }

    /// What the machine does is done to the cloud's instance as well. Booting one that is not off does nothing.
    fn power<'a>(&'a self, instance: &'a str, power: Power) -> BoxFuture<'a, ()> {
        if let Ok(no) = instance.parse() {
            let done = match power {
                Power::Off => self.sim.kill(no),
                Power::Recycle => self.sim.recycle(no).map(|_job| ()),
                Power::On => match self.sim.boot(no) {
                    Err(OpError::WrongPower { .. }) => Ok(()),
                    other => other.map(|_job| ()),
                },
            };
            if let Err(error) = done {
                tracing::error!(instance, %error, "the simulated cloud refuses what happened to a machine");
            }
        }
        Box::pin(ready(()))
    }
}
