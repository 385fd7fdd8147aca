//! Operations of EBS that Linode does not have: a detach that names its instance, waits for the guest and can be forced,
//! and snapshots.

use crate::{
    log::Effect,
    model::{
        DetachBehaviour, InstanceNo, InstanceStatus, Job, JobAction, OpError, Snapshot, SnapshotNo,
        VolumeNo,
    },
    state::{State, later},
};
use jiff::Timestamp;

impl State {
    /// Accepts a detach from this instance, or from the only holder when none is named. Unless it is forced, the detach
    /// waits while the guest of a running instance uses the device.
    pub(crate) fn detach_from(
        &mut self,
        volume: VolumeNo,
        instance: Option<InstanceNo>,
        force: bool,
        now: Timestamp,
    ) -> Result<Job, OpError> {
        let instance = self.check_detach(volume, instance)?;
        let behaviour = self.volume(volume)?.detach.clone();
        if let Some(job) = self
            .view
            .running_job(volume, instance)
            .filter(|j| j.due.is_none())
            .cloned()
        {
            // Further calls change nothing about a detach that is stuck; only force ends it.
            if force {
                self.set_due(&job, now);
            }
            return Ok(job);
        }
        self.check_free(volume, now)?;
        let waits = !force && self.guest_uses(volume, instance);
        let stuck = !force && (waits || behaviour == DetachBehaviour::Stuck);
        let lasting = (!stuck).then(|| self.timings.of(JobAction::VolumeDetach));
        let job = self.start(
            JobAction::VolumeDetach,
            Some(volume),
            Some(instance),
            now,
            lasting,
        );
        if let Some(begun) = self.view.jobs.get_mut(&job.id) {
            begun.waits_for_guest = waits;
        }
        Ok(job)
    }

    /// Checks a detach from this instance. Returns the instance that it is from.
    pub(crate) fn check_detach(
        &self,
        volume: VolumeNo,
        instance: Option<InstanceNo>,
    ) -> Result<InstanceNo, OpError> {
        let found = self.volume(volume)?;
        if let Some(instance) = instance {
            self.instance(instance)?;
        }
        let Some(holder) = found.holder else {
            return Err(OpError::NotAttached(volume));
        };
        let instance = instance.unwrap_or(holder);
        if instance != holder && !found.also_attached.contains(&instance) {
            return Err(OpError::NotHeldBy { volume, instance });
        }
        if let DetachBehaviour::Refused { status, reason } = &found.detach {
            return Err(OpError::Refused {
                status: *status,
                reason: reason.clone(),
            });
        }
        Ok(instance)
    }

    fn guest_uses(&self, volume: VolumeNo, instance: InstanceNo) -> bool {
        self.in_use.contains(&(instance, volume))
            && self
                .instance(instance)
                .is_ok_and(|i| i.status == InstanceStatus::Running)
    }

    /// Continues a detach that waited for the guest, which no longer uses the device.
    pub(crate) fn guest_released(&mut self, volume: VolumeNo, instance: InstanceNo, at: Timestamp) {
        let waiting = self
            .view
            .running_job(volume, instance)
            .filter(|j| j.waits_for_guest && j.due.is_none());
        if let Some(job) = waiting.cloned() {
            self.set_due(&job, at);
        }
    }

    fn set_due(&mut self, job: &Job, now: Timestamp) {
        let due = later(now, self.timings.of(job.action));
        if let Some(job) = self.view.jobs.get_mut(&job.id) {
            job.due = Some(due);
            self.pending.insert((due, job.id));
        }
    }

    /// Begins a snapshot.
    pub(crate) fn create_snapshot(
        &mut self,
        volume: VolumeNo,
        description: String,
        now: Timestamp,
    ) -> Result<(Snapshot, Effect), OpError> {
        let size_gib = self.volume(volume)?.size_gib;
        let id = SnapshotNo(self.next_number());
        let due = later(
            now,
            std::time::Duration::from_millis(self.timings.snapshot_ms),
        );
        let snapshot = Snapshot {
            id,
            volume,
            size_gib,
            description,
            started: now,
            due,
        };
        self.view.snapshots.insert(id, snapshot.clone());
        Ok((snapshot, Effect::Snapshot { volume }))
    }
}
