//! ScaleToZero: stamp the workload and set its replicas to zero, in one write; then wait until no pod of it is left.

use super::StepKind;
use super::cx::StepCx;
use super::pins::pin_changed;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, UndoneBy, Words};
use crate::fact::Missing;
use crate::journal::Outcome;
use crate::loss::PodsGo;
use crate::plan::Refusal;
use crate::plan::{before_scaling, general};
use crate::run::{Action, Effect, Next, StepState};
use crate::stamp::Stamp;
use crate::workload::{ScalePath, WorkloadFacts};
use jiff::Timestamp;

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::ScaleToZero,
    title: "scale to zero",
    colour: "scale",
    role: Role::Acts,
    effect_class: EffectClass::Conditional,
    lost: Lost::Observed(|cx, started| cx.scaled(started, true)),
    frees: false,
    pods_go: PodsGo::WithTheCount,
    repeats: false,
    undone_by: Some(UndoneBy {
        step: StepKind::Restore,
        why: "nothing may be left at zero",
    }),
    starts_work: true,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.scale_to_zero(),
};

fn describe(d: &Describe<'_>) -> Words {
    let w = &d.pins.workload;
    Words {
        what: format!(
            "scale {w} from {} to 0 and stamp it with the count to restore, in one write",
            d.pins.replicas
        ),
        precondition: "every refusal of scaling to zero is absent, read again; the write is refused if the workload changed meanwhile",
        command: d.scale_command(0),
        risk: "the workload stays down until it is restored; the stamp on it suffices for that",
        observed_by: "no pod of the workload is left",
    }
}

impl StepCx<'_> {
    fn scale_to_zero(&self) -> Next {
        match self.state.step(self.ix) {
            StepState::Issued { outcome, .. } if outcome.applied() => self.await_no_pods(),
            StepState::Issued {
                outcome: Outcome::NotApplied { why, retry: false },
                ..
            } => self.failed(why),
            // Two executors may both have issued it: one of them was told of a conflict, and it is in force.
            StepState::Issued { at, .. } if self.at_zero_by_us(*at) => self.await_no_pods(),
            _ => self.was_refused().unwrap_or_else(|| self.propose_scale()),
        }
    }

    fn at_zero_by_us(&self, since: Timestamp) -> bool {
        let workload = self.evidence.workload().ok();
        self.evidence.workload.at >= since
            && workload.is_some_and(|w| w.replicas == 0 && self.own_stamp(w))
    }

    fn propose_scale(&self) -> Next {
        let pins = &self.plan.pins;
        let workload = match self.evidence.workload() {
            Ok(w) => w,
            Err(Missing::Absent) => return self.refused("the workload is gone"),
            _ => return self.poll("the workload must be read"),
        };
        let own_stamp = self.own_stamp(workload);
        let mut refusals = general(self.evidence, &self.scope());
        // A stamp of our own is left by a crash between the two writes of the /scale path: go on from it.
        refusals.extend(
            before_scaling(self.evidence, self.cx.confirm_workload)
                .into_iter()
                .filter(|r| !(own_stamp && matches!(r, Refusal::StampedByOther { .. }))),
        );
        if let Some(refusal) = refusals.iter().find(|r| !r.may_pass()) {
            return self.refused(&refusal.to_string());
        }
        if let Some(change) = self.pin_change(workload) {
            return self.refused(&change);
        }
        if let Some(refusal) = refusals.first() {
            return self.poll(&refusal.to_string());
        }
        if let Some(doubt) = self.trouble_is_over() {
            return doubt;
        }
        Next::Act(Action {
            step: self.ix,
            intent: format!(
                "scale {} from {} to 0, stamped with that count",
                workload.workload, workload.replicas
            ),
            effect: Effect::ScaleToZero {
                workload: workload.workload.clone(),
                resource_version: workload.resource_version.clone(),
                path: workload.scaling,
                stamp: Stamp {
                    replicas: pins.replicas,
                    workload: workload.workload.uid.clone(),
                    recovery: self.cx.recovery.clone(),
                    at: self.cx.now,
                },
            },
        })
    }

    /// S8: what the plan pinned must still be so right before the first effect. What cannot be read is no change; the
    /// refusals say that it is missing.
    fn pin_change(&self, workload: &WorkloadFacts) -> Option<String> {
        let pins = &self.plan.pins;
        let say = |what: &str, was: &dyn std::fmt::Display, is: &dyn std::fmt::Display| {
            Some(pin_changed(what, was, is))
        };
        if workload.workload.uid != pins.workload.uid {
            return say(
                "the workload's UID",
                &pins.workload.uid,
                &workload.workload.uid,
            );
        }
        if workload.replicas != pins.replicas {
            return say("the replica count", &pins.replicas, &workload.replicas);
        }
        if workload.scaling == ScalePath::None {
            return say("how the workload scales", &"scalable", &"not scalable");
        }
        if let Some(pod) = workload
            .pods
            .iter()
            .find(|p| !pins.pods.iter().any(|(_, uid)| *uid == p.uid))
        {
            return say(
                "the workload's pods",
                &"the pinned ones",
                &format!("also {}", pod.name),
            );
        }
        self.volume_change()
    }

    fn await_no_pods(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let workload = self.evidence.workload().ok();
        let pods = self.evidence.pods().ok();
        let (Some(workload), Some(pods)) = (workload, pods) else {
            return self.poll("the pods must be read");
        };
        if let Some(again) = self.user_again() {
            return again;
        }
        if let Some(pod) = workload.pods.first().or(pods.first()) {
            return self.poll(&format!("pod {} is still there", pod.name));
        }
        if let Some(begin) = self.handshake_begins() {
            return begin;
        }
        self.completed("no pod of the workload and no pod with the claim is left")
    }

    /// What became of a scale to zero, or of a restore, whose reply was lost: our stamp is on the workload or not.
    pub(crate) fn scaled(&self, started: Timestamp, to_zero: bool) -> Next {
        if self.evidence.workload.at < started {
            return self.poll("the workload was read before the last write was started");
        }
        match self.evidence.workload() {
            Ok(w) => {
                let stamped = matches!(&w.stamp, Some(Ok(s)) if s.recovery == *self.cx.recovery);
                let seen = format!(
                    "{} has {} replicas, stamp of ours: {stamped}",
                    w.workload, w.replicas
                );
                // A stamp without the zero (a crash between the two writes of the /scale path) counts as not applied; the
                // effect is then issued again on the stamp that is there.
                let applied = if to_zero {
                    stamped && w.replicas == 0
                } else {
                    !stamped
                };
                self.observed(applied, &seen)
            }
            Err(Missing::Absent) => self.observed(!to_zero, "the workload is gone"),
            _ => self.poll("the workload must be read to know whether the last write was applied"),
        }
    }
}
