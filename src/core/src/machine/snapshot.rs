//! A snapshot of a volume that is about to be detached by force.

use super::forward::{Look, wait};
use super::unwind::later;
use super::{Action, Effect, Next, StepState};
use crate::cloud::{CloudSnapshot, SnapshotState};
use crate::evidence::MAX_AGE;
use crate::journal::Outcome;
use jiff::Timestamp;

impl Look<'_> {
    pub(super) fn snapshot(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let Some(cloud) = self.evidence.cloud_volume.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the cloud must be read");
        };
        if self.cloud_is_free(cloud) {
            return match self.state.step(self.ix) {
                StepState::Issued { outcome, .. } if outcome.applied() => self.completed(
                    "the cloud names no holder any more; what the snapshot will contain was settled before",
                ),
                _ => self.skipped("the cloud names no holder already"),
            };
        }
        match self.state.step(self.ix) {
            StepState::Issued { outcome, at, .. } if outcome.applied() => self.await_snapshot(*at),
            StepState::Issued { outcome: Outcome::NotApplied { why, retry: false }, .. } => {
                self.without_snapshot(why)
            }
            StepState::Issued { outcome: Outcome::NotApplied { why, .. }, at, .. }
                if self.cx.now < later(*at, self.backoff()) =>
            {
                wait(format!("tried again: {why}"), later(*at, self.backoff()))
            }
            _ => self.propose_snapshot(),
        }
    }

    /// It is due where a detach by force is what comes next, and where that is not needed or not safe it is neither.
    fn propose_snapshot(&self) -> Next {
        match self.propose_detach(true) {
            Next::Act(_) => Next::Act(Action {
                step: self.ix,
                intent: format!("make a snapshot of volume {}", self.plan.pins.volume),
                effect: Effect::Snapshot { volume: self.plan.pins.volume.clone() },
            }),
            other => other,
        }
    }

    fn await_snapshot(&self, issued: Timestamp) -> Next {
        let fact = self.evidence.snapshots.as_ref().filter(|f| f.at >= issued);
        let Some(all) = fact.and_then(|f| f.read(self.cx.now, MAX_AGE).present()) else {
            return self.poll("the snapshots must be read");
        };
        let complete = |s: &&CloudSnapshot| s.state == SnapshotState::Completed;
        if let Some(done) = all.iter().find(complete) {
            return self.completed(&format!("snapshot {} is complete", done.id));
        }
        let failed = |s: &CloudSnapshot| match &s.state {
            SnapshotState::Failed { why } => Some(format!("snapshot {} failed: {why}", s.id)),
            _ => None,
        };
        match all.iter().find(|s| failed(s).is_none()) {
            Some(goes_on) => self.poll(&format!("snapshot {} is under way", goes_on.id)),
            None => match all.last().and_then(failed) {
                Some(why) => self.without_snapshot(&why),
                None => self.poll("the snapshot does not show yet"),
            },
        }
    }

    fn without_snapshot(&self, why: &str) -> Next {
        if self.step.best_effort { self.skipped(why) } else { self.failed(why) }
    }
}
