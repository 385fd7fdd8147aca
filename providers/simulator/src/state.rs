//! The state of the simulated cloud and its rules. Pure: the time is an argument. Independent of any wire format.

use crate::{
    faults::Faults,
    history::{History, HoldSource, Pulled},
    log::RequestRecord,
    model::{
        DetachBehaviour, Instance, InstanceNo, InstanceStatus, Job, JobAction, JobNo, JobStatus,
        OpError, Timings, View, Volume, VolumeNo,
    },
};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Answer to a detach of an unattached volume. Linode's real answer is not documented, so clients must handle each of
/// these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UnattachedDetach {
    /// Success without an effect.
    #[default]
    Succeeds,
    /// HTTP 404.
    NotFound,
    /// HTTP 400.
    BadRequest,
}

/// What the API shows of an instance whose host died. Linode's real answer is not documented, so clients must handle each
/// of these. (A host that hangs while the API shows its instances as running is no loss of power.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadHost {
    /// The host is back at once: the watchdog's boot is under way from the loss of power on.
    #[default]
    BacksUp,
    /// "offline", without a job, until the host is back.
    Silent,
    /// "offline", with one boot of the watchdog, which fails.
    BootsFail,
}

/// Rights of the callers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Access {
    /// Scopes per token. Empty: every token is accepted with all scopes.
    pub(crate) tokens: BTreeMap<String, Vec<String>>,
    /// Tokens of another account, which owns none of the cloud's objects. They have all rights there.
    pub(crate) foreign: BTreeSet<String>,
    /// Whether the user of the tokens lacks the grants for mutations (403).
    pub(crate) read_only_user: bool,
}

/// The account's only user. All jobs that the cloud does not start by itself name it.
const USER: &str = "simulated";

/// State of the host of an instance that lost its power.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HostIs {
    Down,
    Back,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) view: View,
    /// Devices of each running guest, independent of what the API shows.
    pub(crate) devices: BTreeMap<InstanceNo, BTreeSet<VolumeNo>>,
    /// Devices that a guest has mounted or open, as set by a simulated kubelet.
    pub(crate) in_use: BTreeSet<(InstanceNo, VolumeNo)>,
    pub(crate) pending: BTreeSet<(Timestamp, JobNo)>,
    pub(crate) timings: Timings,
    /// Durations of the power jobs of single instances. `timings` holds for all others.
    pub(crate) power_timings: BTreeMap<InstanceNo, Timings>,
    pub(crate) unattached_detach: UnattachedDetach,
    pub(crate) dead_host: DeadHost,
    /// Whether the watchdog boots an instance that lost its power earlier, once the watchdog is switched on. Linode does not
    /// document that.
    pub(crate) watchdog_looks_back: bool,
    /// Instances that lost their power without a shutdown job, and whether their host is still down.
    pub(crate) lost_power: BTreeMap<InstanceNo, HostIs>,
    pub(crate) access: Access,
    pub(crate) faults: Faults,
    pub(crate) history: History,
    pub(crate) log: Vec<RequestRecord>,
    /// Older state that reads of the API answer, and the time until which they do.
    pub(crate) frozen: Option<(View, Timestamp)>,
    /// Requests allowed per minute. `None`: no limit.
    pub(crate) rate_limit: Option<u32>,
    pub(crate) rate_window: Option<(Timestamp, u32)>,
    /// Requests of other clients that were answered 429.
    pub(crate) refused_others: u32,
    pub(crate) random: u64,
    last_number: u64,
    last_job: u64,
    last_seen: Option<Timestamp>,
}

impl State {
    /// Finishes every job that is due, in order, each at its own time. Returns the time to use, which never runs
    /// backwards.
    pub(crate) fn advance(&mut self, now: Timestamp) -> Timestamp {
        let now = self.last_seen.map_or(now, |seen| seen.max(now));
        self.last_seen = Some(now);
        while let Some((due, id)) = self.pending.first().copied().filter(|(due, _)| *due <= now) {
            self.pending.remove(&(due, id));
            self.finish(id, due);
        }
        if self.frozen.as_ref().is_some_and(|(_, until)| *until <= now) {
            self.frozen = None;
        }
        now
    }

    /// Returns what reads of the API show: the present state, or the state that reads are frozen at.
    pub(crate) fn read_view(&self) -> &View {
        self.frozen.as_ref().map_or(&self.view, |(view, _)| view)
    }

    /// Draws a number below 1000 from the seed (SplitMix64).
    pub(crate) fn draw(&mut self) -> u16 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u16::try_from((z ^ (z >> 31)) % 1000).unwrap_or(0)
    }

    pub(crate) fn next_number(&mut self) -> u64 {
        self.last_number = self.last_number.max(1000) + 1;
        self.last_number
    }

    pub(crate) fn reserve_number(&mut self, number: u64) {
        self.last_number = self.last_number.max(number);
    }

    pub(crate) fn instance(&self, id: InstanceNo) -> Result<&Instance, OpError> {
        self.view.instances.get(&id).ok_or(OpError::NoInstance(id))
    }

    pub(crate) fn volume(&self, id: VolumeNo) -> Result<&Volume, OpError> {
        self.view.volumes.get(&id).ok_or(OpError::NoVolume(id))
    }

    pub(crate) fn volume_mut(&mut self, id: VolumeNo) -> Result<&mut Volume, OpError> {
        self.view.volumes.get_mut(&id).ok_or(OpError::NoVolume(id))
    }

    pub(crate) fn instance_mut(&mut self, id: InstanceNo) -> Result<&mut Instance, OpError> {
        self.view
            .instances
            .get_mut(&id)
            .ok_or(OpError::NoInstance(id))
    }

    pub(crate) fn running_job_of_volume(&self, volume: VolumeNo) -> Option<&Job> {
        self.view
            .jobs
            .values()
            .rev()
            .find(|j| j.volume == Some(volume) && j.status == JobStatus::Started)
    }

    fn power_job_of(&self, instance: InstanceNo) -> Option<&Job> {
        self.view.jobs.values().rev().find(|j| {
            j.volume.is_none() && j.instance == Some(instance) && j.status == JobStatus::Started
        })
    }

    pub(crate) fn start(
        &mut self,
        action: JobAction,
        volume: Option<VolumeNo>,
        instance: Option<InstanceNo>,
        now: Timestamp,
        lasting: Option<Duration>,
    ) -> Job {
        self.last_job += 1;
        let id = JobNo(self.last_job);
        let due = lasting.map(|d| later(now, d));
        let job = Job {
            id,
            action,
            volume,
            instance,
            status: JobStatus::Started,
            created: now,
            due,
            finished: None,
            by: (!action.is_own()).then(|| USER.to_owned()),
            waits_for_guest: false,
        };
        if let Some(due) = due {
            self.pending.insert((due, id));
        }
        self.view.jobs.insert(id, job.clone());
        job
    }

    /// Sets the holder that the API shows.
    pub(crate) fn set_holder(
        &mut self,
        volume: VolumeNo,
        holder: Option<InstanceNo>,
        at: Timestamp,
    ) {
        let Some(found) = self.view.volumes.get_mut(&volume) else {
            return;
        };
        if found.holder == holder {
            return;
        }
        let before = std::mem::replace(&mut found.holder, holder);
        found.updated = at;
        found.attached_at = holder.map(|_| at);
        if let Some(before) = before {
            self.history.lost(volume, before, HoldSource::Api, at);
        }
        if let Some(holder) = holder {
            self.history.gained(volume, holder, HoldSource::Api, at);
        }
    }

    /// Gives a guest the device.
    pub(crate) fn plug(&mut self, volume: VolumeNo, instance: InstanceNo, at: Timestamp) {
        self.devices.entry(instance).or_default().insert(volume);
        self.history.gained(volume, instance, HoldSource::Guest, at);
    }

    /// Takes the device from a guest. `powered`: the guest keeps running, so taking a device that it uses is recorded as
    /// an accident.
    pub(crate) fn unplug(
        &mut self,
        volume: VolumeNo,
        instance: InstanceNo,
        at: Timestamp,
        powered: bool,
    ) {
        let had = self
            .devices
            .get_mut(&instance)
            .is_some_and(|devices| devices.remove(&volume));
        if self.in_use.remove(&(instance, volume)) && had && powered {
            self.history.pulled.push(Pulled {
                volume,
                instance,
                at,
            });
        }
        for source in [HoldSource::Guest, HoldSource::Writer] {
            self.history.lost(volume, instance, source, at);
        }
    }

    /// Takes all devices from a guest that stops.
    pub(crate) fn unplug_all(&mut self, instance: InstanceNo, at: Timestamp) {
        for volume in self.devices.remove(&instance).unwrap_or_default() {
            self.in_use.remove(&(instance, volume));
            for source in [HoldSource::Guest, HoldSource::Writer] {
                self.history.lost(volume, instance, source, at);
            }
            self.guest_released(volume, instance, at);
        }
    }

    /// Accepts an attach. The API names the holder at once; the guest has the device when the job is done.
    pub(crate) fn attach(
        &mut self,
        volume: VolumeNo,
        instance: InstanceNo,
        persist: bool,
        now: Timestamp,
    ) -> Result<Job, OpError> {
        let found = self.volume(volume)?;
        let target = self.instance(instance)?;
        if let Some(holder) = found.holder {
            return Err(OpError::AlreadyAttached { volume, holder });
        }
        if found.region != target.region {
            return Err(OpError::OtherRegion { volume, instance });
        }
        if !persist && target.status != InstanceStatus::Running {
            return Err(OpError::WrongPower {
                instance,
                status: target.status.word().to_owned(),
            });
        }
        self.check_free(volume, now)?;
        self.set_holder(volume, Some(instance), now);
        let lasting = self.timings.of(JobAction::VolumeAttach);
        let found = self.volume_mut(volume)?;
        found.io_ready = false;
        found.persist_across_boots = persist;
        Ok(self.start(
            JobAction::VolumeAttach,
            Some(volume),
            Some(instance),
            now,
            Some(lasting),
        ))
    }

    /// Accepts a detach from the present holder. `Ok(None)`: the volume has no holder, and the detach counts as a success.
    pub(crate) fn detach(
        &mut self,
        volume: VolumeNo,
        now: Timestamp,
    ) -> Result<Option<Job>, OpError> {
        let found = self.volume(volume)?;
        let Some(holder) = found.holder else {
            return match self.unattached_detach {
                UnattachedDetach::Succeeds => Ok(None),
                UnattachedDetach::NotFound => Err(OpError::NoVolume(volume)),
                UnattachedDetach::BadRequest => Err(OpError::NotAttached(volume)),
            };
        };
        if let DetachBehaviour::Refused { status, reason } = &found.detach {
            return Err(OpError::Refused {
                status: *status,
                reason: reason.clone(),
            });
        }
        let behaviour = found.detach.clone();
        if let Some(job) = self
            .running_job_of_volume(volume)
            .filter(|j| j.due.is_none())
        {
            // Further calls change nothing about a detach that is stuck.
            return Ok(Some(job.clone()));
        }
        self.check_free(volume, now)?;
        let lasting =
            (behaviour != DetachBehaviour::Stuck).then(|| self.timings.of(JobAction::VolumeDetach));
        Ok(Some(self.start(
            JobAction::VolumeDetach,
            Some(volume),
            Some(holder),
            now,
            lasting,
        )))
    }

    pub(crate) fn check_free(&self, volume: VolumeNo, now: Timestamp) -> Result<(), OpError> {
        let found = self.volume(volume)?;
        if let Some(reason) = &found.locked {
            return Err(OpError::Locked {
                volume,
                reason: reason.clone(),
            });
        }
        if found.busy_until.is_some_and(|until| now < until)
            || self.running_job_of_volume(volume).is_some()
        {
            return Err(OpError::Busy);
        }
        Ok(())
    }

    /// Sets the behaviour of a detach. A stuck detach that is under way gets an end.
    pub(crate) fn set_detach(
        &mut self,
        volume: VolumeNo,
        behaviour: DetachBehaviour,
        now: Timestamp,
    ) -> Result<(), OpError> {
        self.volume_mut(volume)?.detach = behaviour.clone();
        let stuck = self
            .running_job_of_volume(volume)
            .filter(|j| j.due.is_none())
            .map(|j| j.id);
        if let (Some(id), true) = (stuck, behaviour != DetachBehaviour::Stuck) {
            let due = later(now, self.timings.of(JobAction::VolumeDetach));
            if let Some(job) = self.view.jobs.get_mut(&id) {
                job.due = Some(due);
                self.pending.insert((due, id));
            }
        }
        Ok(())
    }

    /// Accepts a boot, shutdown or reboot.
    pub(crate) fn power(
        &mut self,
        instance: InstanceNo,
        action: JobAction,
        now: Timestamp,
    ) -> Result<Job, OpError> {
        let status = self.instance(instance)?.status.clone();
        if self.power_job_of(instance).is_some() {
            return Err(OpError::Busy);
        }
        let (wanted, next) = match action {
            JobAction::Boot => (InstanceStatus::Offline, InstanceStatus::Booting),
            JobAction::Shutdown => (InstanceStatus::Running, InstanceStatus::ShuttingDown),
            _ => (InstanceStatus::Running, InstanceStatus::Rebooting),
        };
        if status != wanted {
            return Err(OpError::WrongPower {
                instance,
                status: status.word().to_owned(),
            });
        }
        self.set_status(instance, next, now);
        let lasting = self.power_timings(instance).of(action);
        Ok(self.start(action, None, Some(instance), now, Some(lasting)))
    }

    fn power_timings(&self, instance: InstanceNo) -> &Timings {
        self.power_timings.get(&instance).unwrap_or(&self.timings)
    }

    /// Power-cycles the instance uncleanly: it comes back under its number, the API still names it as the holder of its
    /// volumes, and its guest has none of the devices.
    pub(crate) fn recycle(&mut self, instance: InstanceNo, now: Timestamp) -> Result<Job, OpError> {
        self.instance(instance)?;
        self.cancel_power_job(instance, now);
        self.unplug_all(instance, now);
        self.set_status(instance, InstanceStatus::Rebooting, now);
        let lasting = self.power_timings(instance).of(JobAction::Recycle);
        Ok(self.start(JobAction::Recycle, None, Some(instance), now, Some(lasting)))
    }

    /// Cuts the instance's power. A watchdog boots it again. An instance that is off stays as it is, since a watchdog does
    /// not boot after an ordered shutdown.
    pub(crate) fn kill(&mut self, instance: InstanceNo, now: Timestamp) -> Result<(), OpError> {
        if self.instance(instance)?.status == InstanceStatus::Offline {
            return Ok(());
        }
        self.cancel_power_job(instance, now);
        self.unplug_all(instance, now);
        self.set_status(instance, InstanceStatus::Offline, now);
        let host = match self.dead_host {
            DeadHost::BacksUp => HostIs::Back,
            DeadHost::Silent | DeadHost::BootsFail => HostIs::Down,
        };
        self.lost_power.insert(instance, host);
        if self.dead_host != DeadHost::Silent {
            self.watchdog_boots(instance, now);
        }
        Ok(())
    }

    /// The host of an instance that lost its power is back. The watchdog boots the instance.
    pub(crate) fn host_is_back(
        &mut self,
        instance: InstanceNo,
        now: Timestamp,
    ) -> Result<(), OpError> {
        self.instance(instance)?;
        if let Some(host) = self.lost_power.get_mut(&instance) {
            *host = HostIs::Back;
            self.watchdog_boots(instance, now);
        }
        Ok(())
    }

    /// Switches the watchdog of an instance.
    pub(crate) fn set_watchdog(
        &mut self,
        instance: InstanceNo,
        on: bool,
        now: Timestamp,
    ) -> Result<(), OpError> {
        let found = self.instance_mut(instance)?;
        let was_on = std::mem::replace(&mut found.watchdog_enabled, on);
        found.updated = now;
        if on
            && !was_on
            && self.watchdog_looks_back
            && self.lost_power.get(&instance) == Some(&HostIs::Back)
        {
            self.watchdog_boots(instance, now);
        }
        Ok(())
    }

    /// Begins the watchdog's boot of an instance that is off, if its watchdog is on and no job is under way.
    fn watchdog_boots(&mut self, instance: InstanceNo, now: Timestamp) {
        let boots = self
            .instance(instance)
            .is_ok_and(|i| i.watchdog_enabled && i.status == InstanceStatus::Offline);
        if !boots || self.power_job_of(instance).is_some() {
            return;
        }
        let lasting = self.power_timings(instance).of(JobAction::WatchdogBoot);
        self.start(
            JobAction::WatchdogBoot,
            None,
            Some(instance),
            now,
            Some(lasting),
        );
    }

    /// Deletes an instance; the cloud detaches its volumes.
    pub(crate) fn delete_instance(
        &mut self,
        instance: InstanceNo,
        now: Timestamp,
    ) -> Result<(), OpError> {
        self.instance(instance)?;
        self.cancel_power_job(instance, now);
        self.unplug_all(instance, now);
        self.view.instances.remove(&instance);
        self.history.powered(instance, None, now);
        for volume in self.held_by(instance) {
            self.set_holder(volume, None, now);
        }
        let job = self.start(JobAction::Delete, None, Some(instance), now, None);
        self.end(job.id, JobStatus::Finished, now);
        Ok(())
    }

    pub(crate) fn held_by(&self, instance: InstanceNo) -> Vec<VolumeNo> {
        self.view
            .volumes
            .values()
            .filter(|v| v.holder == Some(instance))
            .map(|v| v.id)
            .collect()
    }

    pub(crate) fn set_status(
        &mut self,
        instance: InstanceNo,
        status: InstanceStatus,
        at: Timestamp,
    ) {
        if let Ok(found) = self.instance_mut(instance) {
            found.status = status.clone();
            found.updated = at;
            self.history.powered(instance, Some(status), at);
        }
    }

    /// Removes the user from a job. Returns the changed job.
    pub(crate) fn clear_user(&mut self, id: JobNo) -> Option<Job> {
        let job = self.view.jobs.get_mut(&id)?;
        job.by = None;
        Some(job.clone())
    }

    fn cancel_power_job(&mut self, instance: InstanceNo, now: Timestamp) {
        if let Some((id, due)) = self.power_job_of(instance).map(|j| (j.id, j.due)) {
            if let Some(due) = due {
                self.pending.remove(&(due, id));
            }
            self.end(id, JobStatus::Failed, now);
        }
    }

    fn end(&mut self, id: JobNo, status: JobStatus, at: Timestamp) {
        if let Some(job) = self.view.jobs.get_mut(&id) {
            job.status = status;
            job.finished = Some(at);
        }
    }

    fn finish(&mut self, id: JobNo, at: Timestamp) {
        let Some(job) = self.view.jobs.get(&id).cloned() else {
            return;
        };
        let done = match (job.action, job.volume, job.instance) {
            (JobAction::VolumeAttach, Some(volume), Some(instance)) => {
                self.attached(volume, instance, at)
            }
            (JobAction::VolumeDetach, Some(volume), Some(instance)) => {
                self.detached(volume, instance, at)
            }
            (action, None, Some(instance)) => self.powered(action, instance, at),
            _ => false,
        };
        self.end(
            id,
            if done {
                JobStatus::Finished
            } else {
                JobStatus::Failed
            },
            at,
        );
    }

    fn attached(&mut self, volume: VolumeNo, instance: InstanceNo, at: Timestamp) -> bool {
        let runs = self
            .instance(instance)
            .is_ok_and(|i| i.status == InstanceStatus::Running);
        let Ok(found) = self.volume_mut(volume) else {
            return false;
        };
        if found.holder != Some(instance) {
            return false;
        }
        found.io_ready = true;
        found.updated = at;
        if runs {
            self.plug(volume, instance, at);
        }
        true
    }

    fn detached(&mut self, volume: VolumeNo, instance: InstanceNo, at: Timestamp) -> bool {
        let Ok(found) = self.volume_mut(volume) else {
            return false;
        };
        if found.also_attached.remove(&instance) {
            self.unplug(volume, instance, at, true);
            return true;
        }
        if found.holder != Some(instance) || found.detach == DetachBehaviour::Fails {
            return false;
        }
        found.io_ready = false;
        self.unplug(volume, instance, at, true);
        self.set_holder(volume, None, at);
        true
    }

    fn powered(&mut self, action: JobAction, instance: InstanceNo, at: Timestamp) -> bool {
        if self.instance(instance).is_err() {
            return false;
        }
        if self.lost_power.get(&instance) == Some(&HostIs::Down) && action != JobAction::Shutdown {
            return false;
        }
        self.lost_power.remove(&instance);
        if action == JobAction::Shutdown {
            self.unplug_all(instance, at);
            self.set_status(instance, InstanceStatus::Offline, at);
            return true;
        }
        self.unplug_all(instance, at);
        self.set_status(instance, InstanceStatus::Running, at);
        if let Ok(found) = self.instance_mut(instance) {
            found.boots += 1;
        }
        if action != JobAction::Recycle {
            self.restore_devices(instance, at);
        }
        true
    }

    /// Restores the devices after a boot: persistent attachments return in the guest, all others end at the API too.
    fn restore_devices(&mut self, instance: InstanceNo, at: Timestamp) {
        for volume in self.held_by(instance) {
            let Ok(found) = self.volume_mut(volume) else {
                continue;
            };
            found.io_ready = found.persist_across_boots;
            if found.persist_across_boots {
                self.plug(volume, instance, at);
            } else {
                self.set_holder(volume, None, at);
            }
        }
    }
}

/// Returns `at` plus `by`, at most the greatest timestamp.
pub(crate) fn later(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| at.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}
