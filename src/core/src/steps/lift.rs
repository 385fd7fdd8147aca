//! Lift: end the hold, its label off and the gates off the pods that wait, or the closing taint off the node.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::evidence::NodeFacts;
use crate::hold::HOLD_TAINT_PREFIX;
use crate::ids::{ObjectName, StepIx, Uid};
use crate::loss::PodsGo;
use crate::run::{Action, Effect, Next, RunCx, StepState};

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Lift,
    title: "end the hold",
    colour: "lift",
    role: Role::Restores,
    effect_class: EffectClass::Conditional,
    lost: Lost::MayBeIssuedAgain,
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: false,
    goes_on: true,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |a| a.gates,
    describe,
    next: |cx| cx.lift(),
};

fn describe(d: &Describe<'_>) -> Words {
    let node = &d.pins.node;
    if d.closes_node {
        return Words {
            what: format!("take that taint off {node}"),
            precondition: "the node, its VolumeAttachment and the cloud show the volume as detached",
            command: format!("kubectl taint node {node} {HOLD_TAINT_PREFIX}RECOVERY-"),
            risk: "none",
            observed_by: "the taint is gone",
        };
    }
    Words {
        what: "end the hold: its label off, the gates off the pods that wait".to_owned(),
        precondition: "no machine holds the volume, and no job on it is pending",
        command: format!(
            "kubectl -n {} label volumerecovery RECOVERY reattach.dev/hold-",
            d.namespace()
        ),
        risk: "none",
        observed_by: "no pod carries the gate, and a dry-run create comes back without it",
    }
}

impl StepCx<'_> {
    pub(crate) fn lift(&self) -> Next {
        if !self.state.in_force(self.plan, StepKind::Hold) {
            return self.skipped("nothing was held");
        }
        self.lift_next(self.ix).unwrap_or_else(|| {
            self.completed(if self.plan.closes_node {
                "our taint is gone"
            } else {
                "no pod carries the gate, and none would be given it"
            })
        })
    }
}

impl RunCx<'_> {
    /// What is still to do until pods may come again. `None`: nothing. The effect is issued at least once, since nothing else
    /// knows whether the label is on, and again while a pod is seen with the gate, or the closed node with the taint.
    pub(crate) fn lift_next(self, lift: StepIx) -> Option<Next> {
        if self.plan.closes_node {
            let open = |node: &NodeFacts| Action {
                step: lift,
                intent: format!("open Node {} to new pods again", node.name),
                effect: Effect::OpenNode {
                    node: node.name.clone(),
                    uid: node.uid.clone(),
                },
            };
            return self.taint_off(lift, |node| node.is_closed_by(self.cx.recovery), open);
        }
        let poll = |why: &str| Some(self.poll(why));
        let Ok(pods) = self.evidence.pods() else {
            return poll("the claim's pods must be read to lift the hold");
        };
        let waiting: Vec<(ObjectName, Uid)> = pods
            .iter()
            .filter(|p| p.held)
            .map(|p| (p.name.clone(), p.uid.clone()))
            .collect();
        if let StepState::Issued { outcome, at, .. } = self.state.step(lift) {
            if self.evidence.pods.at < *at || self.evidence.workload.at < *at {
                return poll("the claim's pods must be read again");
            }
            // The probe is a witness against, not one that is needed: without a workload there is none.
            let gated = self
                .evidence
                .workload
                .shown()
                .is_some_and(|w| w.dry_run_held == Some(true));
            if outcome.applied() && waiting.is_empty() && !gated {
                return None;
            }
            if let Some(pause) = self.pause(lift, *at, "waiting until no pod is seen with the gate")
            {
                return Some(pause);
            }
        }
        Some(Next::Act(Action {
            step: lift,
            intent: match waiting.len() {
                0 => "end the hold".to_owned(),
                n => format!("end the hold and take the gate off {n} waiting pod(s)"),
            },
            effect: Effect::Lift { pods: waiting },
        }))
    }
}
