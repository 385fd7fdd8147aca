//! Release: evict the stuck pod; its owner creates a new pod, which the hold keeps away.

use super::StepKind;
use super::cx::StepCx;
use super::pins::pin_changed;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::diagnosis::Trouble;
use crate::evidence::PodFacts;
use crate::loss::PodsGo;
use crate::run::{Action, Effect, Next, StepState};

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Release,
    title: "release the stuck pod",
    colour: "release",
    role: Role::Acts,
    effect_class: EffectClass::Conditional,
    lost: Lost::MayBeIssuedAgain,
    frees: true,
    pods_go: PodsGo::OfTheClaim,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: true,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.release(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "evict the stuck pod of {}, so that its node unmounts and detaches the volume",
            d.pins.workload
        ),
        precondition: "the hold is in force; the pod is not Ready or its mount is dead; its node is Ready and runs the CSI driver; its owner creates a new pod",
        command: format!(
            "kubectl -n {} delete pod {}",
            d.namespace(),
            d.pod.map_or("POD", |p| p.name.as_str())
        ),
        risk: "a PodDisruptionBudget may refuse the eviction; the run then unwinds",
        observed_by: "the pod object is gone",
    }
}

impl StepCx<'_> {
    pub(crate) fn release(&self) -> Next {
        let Ok(pods) = self.evidence.pods() else {
            return self.poll("the claim's pods must be read");
        };
        if matches!(self.state.step(self.ix), StepState::Issued { at, .. } if self.evidence.pods.at < *at)
        {
            return self.poll("the claim's pods must be read again");
        }
        if self.no_user_left(pods) {
            return self.handshake_begins().unwrap_or_else(|| {
                self.completed(if self.plan.closes_node {
                    "no pod of the claim is on the node, and none can come to it"
                } else {
                    "no pod of the claim is on a node, and none can come to one"
                })
            });
        }
        if let Some(refused) = self.was_refused() {
            return refused;
        }
        match pods
            .iter()
            .find(|p| !self.is_away(p) && p.deleting_since.is_none())
        {
            Some(pod) => self.propose_release(pod),
            None => self.poll("kubelet takes the evicted pod down"),
        }
    }

    fn propose_release(&self, pod: &PodFacts) -> Next {
        let pins = &self.plan.pins;
        if !pins.pods.iter().any(|(_, uid)| *uid == pod.uid) {
            return self.refused(&pin_changed(
                "the claim's pods",
                &"the pinned ones",
                &format!("also {}", pod.name),
            ));
        }
        if let Some(node) = pod.node.as_ref().filter(|n| **n != pins.node) {
            return self.refused(&pin_changed("the pod's node", &pins.node, node));
        }
        if let Some(other) = self
            .not_held_since(self.entered)
            .or_else(|| self.stands_against())
        {
            return other;
        }
        let dead_mount = matches!(
            self.plan.trouble,
            Trouble::Phantom {
                dead_mount: true,
                ..
            }
        );
        if pod.ready && !dead_mount {
            return self.poll(&format!(
                "pod {} is Ready and its mount is not known to be dead",
                pod.name
            ));
        }
        Next::Act(Action {
            step: self.ix,
            intent: format!("evict pod {} (UID {})", pod.name, pod.uid),
            effect: Effect::Release {
                pod: pod.name.clone(),
                uid: pod.uid.clone(),
            },
        })
    }
}
