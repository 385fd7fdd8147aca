//! Quarantine: keep new pods off the fenced node until its agent answers clean.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::loss::PodsGo;
use crate::run::{Action, Effect, Next};

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Quarantine,
    title: "quarantine the node",
    colour: "hold",
    role: Role::Acts,
    effect_class: EffectClass::Conditional,
    lost: Lost::MayBeIssuedAgain,
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: false,
    reaches_node: true,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.quarantine(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "keep new pods off {} until the agent of its next boot answers clean",
            d.pins.node
        ),
        precondition: "the node has no such taint yet",
        command: format!(
            "kubectl taint node {} reattach.dev/quarantine=RECOVERY:NoSchedule",
            d.pins.node
        ),
        risk: "none: the node is down",
        observed_by: "the taint is there",
    }
}

impl StepCx<'_> {
    pub(crate) fn quarantine(&self) -> Next {
        let node = match self.fenced_node() {
            Ok(node) => node,
            Err(other) => return *other,
        };
        if node.quarantined {
            return self.done_or_skipped("the node is in quarantine");
        }
        let over = self.accepted_or_given_up("the taint is written");
        over.or_else(|| self.was_refused())
            .or_else(|| self.not_to_be_fenced())
            .unwrap_or_else(|| {
                Next::Act(Action {
                    step: self.ix,
                    intent: format!("put Node {} in quarantine", node.name),
                    effect: Effect::Quarantine {
                        node: node.name.clone(),
                        uid: node.uid.clone(),
                    },
                })
            })
    }
}
