//! Injects faults into the cloud: locks, phantom, lost and orphaned attachments, refused credentials, rate limits, stale
//! reads, faults of the API.

use crate::{
    CloudSim,
    faults::{FaultNo, FaultRule},
    http::Limits,
    model::{DetachBehaviour, InstanceNo, InstanceStatus, Job, JobAction, OpError, VolumeNo},
    state::{UnattachedDetach, later},
};
use std::time::Duration;

impl CloudSim {
    /// Sets the power state that the API shows for an instance. Guest and devices do not change.
    pub fn set_instance_status(
        &self,
        instance: InstanceNo,
        status: InstanceStatus,
    ) -> Result<(), OpError> {
        self.with(|state, now| {
            state.instance(instance)?;
            state.set_status(instance, status, now);
            Ok(())
        })
    }

    /// Sets the status that the API shows for a volume.
    pub fn set_volume_status(
        &self,
        volume: VolumeNo,
        status: impl Into<String>,
    ) -> Result<(), OpError> {
        self.with(|state, _| {
            state.volume_mut(volume)?.status = status.into();
            Ok(())
        })
    }

    /// Locks the volume for attach and detach, as the provider's staff does. `shown`: the API's `locks` list has the lock.
    /// In the incident of 2021 it did not.
    pub fn lock_volume(&self, volume: VolumeNo, reason: &str, shown: bool) -> Result<(), OpError> {
        self.with(|state, _| {
            let found = state.volume_mut(volume)?;
            found.locked = Some(reason.to_owned());
            found.locks = if shown {
                vec![reason.to_owned()]
            } else {
                Vec::new()
            };
            Ok(())
        })
    }

    /// Lifts the provider's lock.
    pub fn unlock_volume(&self, volume: VolumeNo) -> Result<(), OpError> {
        self.with(|state, _| {
            let found = state.volume_mut(volume)?;
            found.locked = None;
            found.locks.clear();
            Ok(())
        })
    }

    /// Answers attach and detach of the volume with "busy" for `lasting` from now on.
    pub fn make_busy(&self, volume: VolumeNo, lasting: Duration) -> Result<(), OpError> {
        self.with(|state, now| {
            state.volume_mut(volume)?.busy_until = Some(later(now, lasting));
            Ok(())
        })
    }

    /// Sets the behaviour of a detach of the volume. A stuck detach that is under way follows the new behaviour.
    pub fn set_detach(&self, volume: VolumeNo, behaviour: DetachBehaviour) -> Result<(), OpError> {
        self.with(|state, now| state.set_detach(volume, behaviour, now))
    }

    /// Deletes an instance, while the API still names it as the holder of its volumes.
    pub fn vanish(&self, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| {
            let held = state.held_by(instance);
            state.delete_instance(instance, now)?;
            held.into_iter()
                .for_each(|volume| state.set_holder(volume, Some(instance), now));
            Ok(())
        })
    }

    /// Shuts an instance down without a request, as for maintenance: the job names no user.
    pub fn shutdown_by_cloud(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| {
            let job = state.power(instance, JobAction::Shutdown, now)?;
            Ok(state.clear_user(job.id).unwrap_or(job))
        })
    }

    /// Makes a phantom attachment: the holder's guest loses the device, and the API still names the holder.
    pub fn make_phantom(&self, volume: VolumeNo) -> Result<(), OpError> {
        self.with(|state, now| {
            if let Some(holder) = state.volume(volume)?.holder {
                state.unplug(volume, holder, now, false);
            }
            Ok(())
        })
    }

    /// Makes a lost attachment: the API shows the volume as detached, and the guest has no device.
    pub fn make_lost(&self, volume: VolumeNo) -> Result<(), OpError> {
        self.with(|state, now| {
            if let Some(holder) = state.volume(volume)?.holder {
                state.unplug(volume, holder, now, false);
                state.volume_mut(volume)?.io_ready = false;
                state.set_holder(volume, None, now);
            }
            Ok(())
        })
    }

    /// Makes an orphan attachment: the volume is attached to `instance` at the API and in its guest. A previous holder loses it.
    pub fn make_orphan(&self, volume: VolumeNo, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| {
            state.instance(instance)?;
            if let Some(holder) = state.volume(volume)?.holder {
                state.unplug(volume, holder, now, false);
            }
            state.volume_mut(volume)?.io_ready = true;
            state.set_holder(volume, Some(instance), now);
            state.plug(volume, instance, now);
            Ok(())
        })
    }

    /// Attaches the volume to one more instance, at the API and in its guest, as EBS Multi-Attach allows.
    pub fn also_attach(&self, volume: VolumeNo, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| {
            state.instance(instance)?;
            state.volume_mut(volume)?.also_attached.insert(instance);
            state.plug(volume, instance, now);
            Ok(())
        })
    }

    /// Gives a guest the device although the API names another holder or none. No cloud should do this; it tests that the
    /// history notices.
    pub fn leak_device(&self, volume: VolumeNo, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| {
            state.volume(volume)?;
            state.instance(instance)?;
            state.plug(volume, instance, now);
            Ok(())
        })
    }

    /// Sets the answer to a detach of an unattached volume.
    pub fn set_unattached_detach(&self, answer: UnattachedDetach) {
        self.with(|state, _| state.unattached_detach = answer);
    }

    /// Accepts this token with these scopes (`volumes:read_write`, … or `*`). Once a token has been added, all others
    /// are refused.
    pub fn add_token(&self, token: impl Into<String>, scopes: &[&str]) {
        let scopes = scopes.iter().map(|s| (*s).to_owned()).collect();
        self.with(|state, _| state.access.tokens.insert(token.into(), scopes));
    }

    /// Accepts this token as one of another account, which owns none of this cloud's objects.
    pub fn add_foreign_token(&self, token: impl Into<String>) {
        self.with(|state, _| state.access.foreign.insert(token.into()));
    }

    /// Sets whether the user of the tokens lacks the grants for mutations, which are then answered 403.
    pub fn set_read_only_user(&self, read_only: bool) {
        self.with(|state, _| state.access.read_only_user = read_only);
    }

    /// Sets the number of requests allowed per minute. More are answered 429 with `Retry-After`. `None` (the default): no limit.
    pub fn set_rate_limit(&self, per_minute: Option<u32>) {
        self.with(|state, _| state.rate_limit = per_minute);
    }

    /// Counts a request of another client with the same credential, such as a CSI driver. It shares the limit of
    /// [`Self::set_rate_limit`] and is not logged.
    ///
    /// # Errors
    /// The limit is exceeded: the request is answered 429. [`Self::refused_others`] counts it.
    pub fn count_other_request(&self) -> Result<(), OpError> {
        self.with(|state, now| {
            if !Limits::count(state, now, u32::MAX).exceeded {
                return Ok(());
            }
            state.refused_others += 1;
            Err(OpError::Refused {
                status: 429,
                reason: "Too many requests".to_owned(),
            })
        })
    }

    /// Returns how many requests of other clients were answered 429.
    pub fn refused_others(&self) -> u32 {
        self.with(|state, _| state.refused_others)
    }

    /// Freezes the reads of the API at the present state for `lasting`, while the real state changes.
    pub fn freeze_reads(&self, lasting: Duration) {
        self.with(|state, now| state.frozen = Some((state.view.clone(), later(now, lasting))));
    }

    /// Adds a fault of the API. Rules apply in the order in which they were added.
    pub fn add_fault(&self, rule: FaultRule) -> FaultNo {
        self.with(|state, _| state.faults.add(rule))
    }

    /// Removes a fault. Returns whether it was still in force.
    pub fn remove_fault(&self, number: FaultNo) -> bool {
        self.with(|state, _| state.faults.remove(number))
    }

    /// Removes all faults of the API.
    pub fn clear_faults(&self) {
        self.with(|state, _| state.faults.clear());
    }
}
