//! Snapshot: make a snapshot of a volume that is about to be detached by force. Planned only where a policy asks for it.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::cloud::{CloudSnapshot, SnapshotState};
use crate::journal::Outcome;
use crate::loss::PodsGo;
use crate::plan::Snapshots;
use crate::run::pace::{IN_FLIGHT, later};
use crate::run::{Action, Effect, Next, StepState};
use jiff::{SignedDuration, Timestamp};

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Snapshot,
    title: "snapshot the volume",
    colour: "cloud",
    role: Role::Acts,
    effect_class: EffectClass::Once,
    lost: Lost::Observed(|cx, started| cx.snapshotted(started)),
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |a| a.detaches && a.allowed.force && a.allowed.snapshot != Snapshots::Never,
    describe,
    next: |cx| cx.snapshot(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "if the plain detach does not end: make a snapshot of volume {} at the cloud",
            d.pins.volume
        ),
        precondition: "all that the detach by force needs, which is the next step",
        command: d.commands.snapshot.to_owned(),
        risk: match d.snapshots {
            Snapshots::Required => {
                "the volume stays where it is until the snapshot is complete; the run unwinds if it fails"
            }
            Snapshots::Never | Snapshots::BestEffort => {
                "the volume stays where it is until the snapshot is complete; the run goes on without it if it fails"
            }
        },
        observed_by: "a complete snapshot with this recovery's label; it is kept",
    }
}

impl StepCx<'_> {
    pub(crate) fn snapshot(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let Ok(cloud) = self.evidence.cloud_volume() else {
            return self.poll("the cloud must be read");
        };
        if self.cloud_is_free(cloud) {
            return match self.state.step(self.ix) {
                StepState::Issued { outcome, .. } if outcome.applied() => self.completed(
                    "the cloud names no holder any more; the content of the snapshot is fixed already",
                ),
                _ => self.skipped("the cloud names no holder already"),
            };
        }
        match self.state.step(self.ix) {
            StepState::Issued { outcome, at, .. } if outcome.applied() => self.await_snapshot(*at),
            StepState::Issued {
                outcome: Outcome::NotApplied { why, retry: false },
                ..
            } => self.without_snapshot(why),
            _ => self
                .was_refused()
                .unwrap_or_else(|| self.propose_snapshot()),
        }
    }

    /// It is due where a detach by force is what comes next, and where that is not needed or not safe it is neither.
    fn propose_snapshot(&self) -> Next {
        match self.propose_detach(true) {
            Next::Act(_) => Next::Act(Action {
                step: self.ix,
                intent: format!("make a snapshot of volume {}", self.plan.pins.volume),
                effect: Effect::Snapshot {
                    volume: self.plan.pins.volume.clone(),
                },
            }),
            other => other,
        }
    }

    fn await_snapshot(&self, issued: Timestamp) -> Next {
        let Ok(all) = self.evidence.since(issued).snapshots() else {
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
        if self.step.best_effort {
            self.skipped(why)
        } else {
            self.failed(why)
        }
    }

    /// What became of the request for a snapshot whose reply was lost: a snapshot carries this recovery's label, or none does
    /// after a while. Where nothing could be read until the step's deadline, the step is over without an answer.
    fn snapshotted(&self, started: Timestamp) -> Next {
        let deadline = later(
            started,
            SignedDuration::from_secs(self.step.deadline_seconds.into()),
        );
        let read = self.evidence.since(started).snapshots().ok();
        match self.evidence.snapshots.as_ref().map(|f| f.at).zip(read) {
            Some((_, all)) if !all.is_empty() => self.observed(
                true,
                &format!("snapshot {} carries this recovery's label", all[0].id),
            ),
            Some((at, _)) if at.duration_since(started) > IN_FLIGHT => {
                self.observed(false, "no snapshot carries this recovery's label")
            }
            Some(_) => self.poll("the request for a snapshot may still take effect"),
            None if self.cx.now > deadline => {
                self.unobserved("the snapshots could not be read until the deadline")
            }
            None => self.poll("the snapshots must be read to know whether one was begun"),
        }
    }
}
