//! What the cloud does with detaches that hang, and with snapshots.

use super::{By, Walk, change, cloud};
use jiff::{SignedDuration, Timestamp};
use reattach_core::cloud::{
    CloudJob, CloudSnapshot, JobKind, JobStatus, SnapshotState, VolumeState,
};
use reattach_core::fact::Fact;
use reattach_core::testkit::Case;

/// Seconds after which a detach that hangs ends after all.
const HANGS: i64 = 300;
/// Seconds that a snapshot takes.
const SNAPSHOT: i64 = 20;

impl Walk {
    /// A detach that does not end.
    pub(super) fn begin_detaching(&mut self) {
        self.detaching = self.detaching.or(Some(self.case.now));
        change(&mut self.case.evidence.cloud_volume, |c| {
            c.state = VolumeState::Detaching
        });
    }

    pub(super) fn detached(&mut self) {
        (self.world.stuck, self.world.hangs, self.detaching) = (false, None, None);
        change(&mut self.case.evidence.cloud_volume, |c| {
            (c.holders, c.state) = (Vec::new(), VolumeState::Active);
        });
        self.set_free = Some(self.case.now);
    }

    /// The detach that hangs does so for half an hour more.
    pub fn hang_on(&mut self) {
        self.detaching = self.detaching.map(|at| at + SignedDuration::from_mins(30));
    }

    /// The cloud takes an order for a snapshot.
    pub fn begin_snapshot(&mut self) {
        self.snapshots.push(CloudSnapshot {
            id: format!("snap-{}", self.snapshots.len() + 1),
            volume: self.plan.pins.volume.clone(),
            label: Case::recovery().to_string(),
            state: SnapshotState::Pending,
            started: self.case.now,
        });
    }

    /// What is under way at the cloud goes on.
    pub(super) fn cloud_works(&mut self) {
        let now = self.case.now;
        let age = |at: Option<Timestamp>| at.map_or(-1, |at| now.duration_since(at).as_secs());
        if self.world.stuck && self.world.hangs == Some(By::Driver) && age(self.set_free) == 3 {
            self.begin_detaching();
        }
        if age(self.detaching) >= HANGS {
            self.detached();
        }
        for snapshot in &mut self.snapshots {
            if now.duration_since(snapshot.started).as_secs() >= SNAPSHOT {
                snapshot.state = match self.world.no_snapshot {
                    true => SnapshotState::Failed {
                        why: "the key is disabled".into(),
                    },
                    false => SnapshotState::Completed,
                };
            }
        }
    }

    /// As the collector does: what the machine does not ask for is not read.
    pub(super) fn read_what_is_asked_for(&mut self) {
        let (now, state) = (self.case.now, self.state());
        let e = &mut self.case.evidence;
        let needs = (
            state.needs_jobs(&self.plan) || state.weighs_a_change(&self.plan),
            state.needs_snapshots(&self.plan),
        );
        let job = |at: Timestamp| CloudJob {
            id: "5551".into(),
            kind: JobKind::Detach,
            action: "detach".into(),
            status: JobStatus::Started,
            volume: Some(self.plan.pins.volume.clone()),
            instance: Some(self.plan.pins.holder.clone()),
            created: at,
        };
        e.jobs = match needs.0 {
            true => Fact::present(self.detaching.map(job).into_iter().collect(), cloud(), now),
            false => Fact::unknown("not asked", cloud(), now),
        };
        e.snapshots = needs.1.then(|| match self.world.blind {
            true => Fact::unknown("403", cloud(), now),
            false => Fact::present(self.snapshots.clone(), cloud(), now),
        });
    }
}
