//! Await: wait for Kubernetes or the machine to heal it; the next step takes over when the patience is over.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::diagnosis::{Trouble, Verdict, diagnose};
use crate::loss::PodsGo;
use crate::run::Next;
use crate::run::pace::{CLOUD_POLL, later, wait};
use jiff::SignedDuration;

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Await,
    title: "wait for it to heal",
    colour: "await",
    role: Role::Waits,
    effect_class: EffectClass::Repeatable,
    lost: Lost::NoEffect,
    frees: false,
    pods_go: PodsGo::None,
    repeats: true,
    undone_by: None,
    starts_work: false,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: true,
    available_if: |_| true,
    describe,
    next: |cx| cx.await_healing(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: "wait: Kubernetes may heal this by itself".to_owned(),
        precondition: "none",
        command: d.watch_pods(),
        risk: "none; the next step takes over when the patience is over",
        observed_by: "the diagnosis",
    }
}

impl StepCx<'_> {
    pub(crate) fn await_healing(&self) -> Next {
        let dead = matches!(self.plan.trouble, Trouble::DeadNode { .. });
        if dead && self.proof().is_ok() {
            return self.completed("there is a proof that the node cannot write");
        }
        // What its machine came back with has another class, whose order begins at once.
        if dead && self.living_holder().is_some() {
            return self.refused(&format!("Node {} is Ready again", self.plan.pins.node));
        }
        // A machine that was not asked may just not have found the device of a new attach yet.
        let certain = |t: &Trouble| {
            !matches!(
                t,
                Trouble::Phantom {
                    confirmed: false,
                    ..
                }
            )
        };
        if let Verdict::Ours { trouble } = diagnose(self.evidence).verdict
            && certain(&trouble)
            && !trouble.is_same(&self.plan.trouble)
        {
            return self.refused(&format!("the diagnosis changed: {trouble}"));
        }
        let seconds = self
            .step
            .patience_seconds
            .unwrap_or(self.step.deadline_seconds);
        let over = later(self.entered, SignedDuration::from_secs(seconds.into()));
        if self.cx.now >= over {
            return self.skipped(&format!("it did not heal by itself within {seconds} s"));
        }
        wait(
            "it may heal by itself".to_owned(),
            over.min(later(self.cx.now, CLOUD_POLL)),
        )
    }
}
