//! What can go wrong with the cloud: locks, phantoms, lost and orphaned attachments, refused credentials, limits, stale
//! reads, faults of the API.

use crate::{
    CloudSim,
    faults::{FaultNo, FaultRule},
    model::{DetachBehaviour, InstanceNo, InstanceStatus, Job, JobAction, OpError, VolumeNo},
    state::{UnattachedDetach, later},
};
use std::time::Duration;

impl CloudSim {
    /// Sets the word that the API shows for an instance's power state; guest and devices stay as they are.
    pub fn set_instance_status(&self, instance: InstanceNo, status: InstanceStatus) -> Result<(), OpError> {
        self.with(|state, now| {
            state.instance(instance)?;
            state.set_status(instance, status, now);
            Ok(())
        })
    }

    /// Sets the word that the API shows for a volume's status.
    pub fn set_volume_status(&self, volume: VolumeNo, status: impl Into<String>) -> Result<(), OpError> {
        self.with(|state, _| {
            state.volume_mut(volume)?.status = status.into();
            Ok(())
        })
    }

    /// The provider locks the volume: attach and detach are refused. `shown` says whether the API's `locks` list
    /// tells so; in the incident of 2021 it did not.
    pub fn lock_volume(&self, volume: VolumeNo, reason: &str, shown: bool) -> Result<(), OpError> {
        self.with(|state, _| {
            let found = state.volume_mut(volume)?;
            found.locked = Some(reason.to_owned());
            found.locks = if shown { vec![reason.to_owned()] } else { Vec::new() };
            Ok(())
        })
    }

    /// The provider lifts the lock.
    pub fn unlock_volume(&self, volume: VolumeNo) -> Result<(), OpError> {
        self.with(|state, _| {
            let found = state.volume_mut(volume)?;
            found.locked = None;
            found.locks.clear();
            Ok(())
        })
    }

    /// Attach and detach of the volume are answered "busy" for this long from now.
    pub fn make_busy(&self, volume: VolumeNo, lasting: Duration) -> Result<(), OpError> {
        self.with(|state, now| {
            state.volume_mut(volume)?.busy_until = Some(later(now, lasting));
            Ok(())
        })
    }

    /// Sets what a detach of the volume does. A stuck detach under way ends by the new behaviour.
    pub fn set_detach(&self, volume: VolumeNo, behaviour: DetachBehaviour) -> Result<(), OpError> {
        self.with(|state, now| state.set_detach(volume, behaviour, now))
    }

    /// Deletes an instance, and the API goes on naming it as the holder of its volumes: the record of an attachment
    /// outlives its machine.
    pub fn vanish(&self, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| {
            let held = state.held_by(instance);
            state.delete_instance(instance, now)?;
            held.into_iter().for_each(|volume| state.set_holder(volume, Some(instance), now));
            Ok(())
        })
    }

    /// The cloud shuts an instance down on its own account, as for maintenance: the job names nobody.
    pub fn shutdown_by_nobody(&self, instance: InstanceNo) -> Result<Job, OpError> {
        self.with(|state, now| {
            let job = state.power(instance, JobAction::Shutdown, now)?;
            Ok(state.disown(job.id).unwrap_or(job))
        })
    }

    /// Phantom attachment: the guest of the holder loses the device, the API still names the holder.
    pub fn make_phantom(&self, volume: VolumeNo) -> Result<(), OpError> {
        self.with(|state, now| {
            if let Some(holder) = state.volume(volume)?.holder {
                state.unplug(volume, holder, now, false);
            }
            Ok(())
        })
    }

    /// Lost attachment: the API says detached, and the guest has no device.
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

    /// Orphan attachment: the volume is attached to `instance` at the API and in its guest, whoever had it before.
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

    /// One more instance gets the volume beside its holder, as EBS Multi-Attach allows: at the API and in its guest.
    pub fn also_attach(&self, volume: VolumeNo, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| {
            state.instance(instance)?;
            state.volume_mut(volume)?.also_attached.insert(instance);
            state.plug(volume, instance, now);
            Ok(())
        })
    }

    /// A guest gets the device although the API names another holder or none: what no cloud should do, for testing
    /// that the record notices.
    pub fn leak_device(&self, volume: VolumeNo, instance: InstanceNo) -> Result<(), OpError> {
        self.with(|state, now| {
            state.volume(volume)?;
            state.instance(instance)?;
            state.plug(volume, instance, now);
            Ok(())
        })
    }

    /// How a detach of an unattached volume is answered.
    pub fn set_unattached_detach(&self, answer: UnattachedDetach) {
        self.with(|state, _| state.unattached_detach = answer);
    }

    /// Accepts this token with these scopes (`volumes:read_write`, … or `*`). Once one token is known, others are
    /// refused.
    pub fn add_token(&self, token: impl Into<String>, scopes: &[&str]) {
        let scopes = scopes.iter().map(|s| (*s).to_owned()).collect();
        self.with(|state, _| state.access.tokens.insert(token.into(), scopes));
    }

    /// Accepts this token as one of another account, which has none of this cloud's objects.
    pub fn add_foreign_token(&self, token: impl Into<String>) {
        self.with(|state, _| state.access.foreign.insert(token.into()));
    }

    /// Whether the user behind the tokens lacks the grants for mutations, which answers 403.
    pub fn set_read_only_user(&self, read_only: bool) {
        self.with(|state, _| state.access.read_only_user = read_only);
    }

    /// Requests allowed per minute; more are answered 429 with `Retry-After`. `None` (the default): no limit.
    pub fn set_rate_limit(&self, per_minute: Option<u32>) {
        self.with(|state, _| state.rate_limit = per_minute);
    }

    /// Reads of the API answer the state of this moment for so long, while the truth moves on.
    pub fn freeze_reads(&self, lasting: Duration) {
        self.with(|state, now| state.frozen = Some((state.view.clone(), later(now, lasting))));
    }

    /// Adds a fault of the API; rules apply in the order in which they were added.
    pub fn add_fault(&self, rule: FaultRule) -> FaultNo {
        self.with(|state, _| state.faults.add(rule))
    }

    /// Removes a fault. Answers whether it was still in force.
    pub fn remove_fault(&self, number: FaultNo) -> bool {
        self.with(|state, _| state.faults.remove(number))
    }

    /// Removes all faults of the API.
    pub fn clear_faults(&self) {
        self.with(|state, _| state.faults.clear());
    }
}
