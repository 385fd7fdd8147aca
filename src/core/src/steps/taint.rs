//! TaintOutOfService and Untaint: the out-of-service taint on the dead holder's Node, with which Kubernetes lets go of its pods and
//! volumes, and its end.

use super::StepKind;
use super::cx::StepCx;
use super::node::node_recovered;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, UndoneBy, Words};
use crate::evidence::PodFacts;
use crate::ids::{ObjectName, StepIx};
use crate::loss::PodsGo;
use crate::run::pace::{CLOUD_POLL, later, wait};
use crate::run::reconcile::TAINT;
use crate::run::{Action, Effect, Next, RunCx, StepState};
use jiff::SignedDuration;

/// The taint stays for so long after the volume is free, if something else of the node is still attached or a pod of the claim
/// is still there. Kubernetes deletes pods from a tainted node every 20 s (`gcCheckPeriod` in
/// `pkg/controller/podgc/gc_controller.go`).
const OTHERS_HAVE: SignedDuration = SignedDuration::from_secs(60);

pub(super) const TAINT_SPEC: StepSpec = StepSpec {
    kind: StepKind::TaintOutOfService,
    title: "taint out of service",
    colour: "hold",
    role: Role::Acts,
    effect_class: EffectClass::Conditional,
    lost: Lost::MayBeIssuedAgain,
    frees: false,
    pods_go: PodsGo::OfTheNode,
    repeats: false,
    undone_by: Some(UndoneBy {
        step: StepKind::Untaint,
        why: "no taint may be left",
    }),
    starts_work: true,
    goes_on: false,
    reaches_node: true,
    locks_node: true,
    patient: false,
    available_if: |_| true,
    describe: describe_taint,
    next: |cx| cx.taint(),
};

pub(super) const UNTAINT_SPEC: StepSpec = StepSpec {
    kind: StepKind::Untaint,
    title: "take the taint off",
    colour: "hold",
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
    available_if: |_| true,
    describe: describe_untaint,
    next: |cx| cx.untaint(),
};

fn describe_taint(d: &Describe<'_>) -> Words {
    Words {
        what: format!("put the out-of-service taint on {}", d.pins.node),
        precondition: "a proof that the instance is off, gone, or declared so; the Node is not Ready, read again; its lock is ours",
        command: format!(
            "kubectl taint node {} node.kubernetes.io/out-of-service=reattach:NoExecute",
            d.pins.node
        ),
        risk: "every pod of the node is removed and every volume detached: all that the plan lists",
        observed_by: "the taint is there",
    }
}

fn describe_untaint(d: &Describe<'_>) -> Words {
    Words {
        what: format!("take our out-of-service taint off {} again", d.pins.node),
        precondition: "nothing of the node is attached any more; at once if the node is back",
        command: format!(
            "kubectl taint node {} node.kubernetes.io/out-of-service-",
            d.pins.node
        ),
        risk: "none",
        observed_by: "the taint is gone",
    }
}

impl StepCx<'_> {
    pub(crate) fn taint(&self) -> Next {
        let node = match self.fenced_node() {
            Ok(node) => node,
            Err(other) => return *other,
        };
        if node.out_of_service_by_us {
            return self.done_or_skipped("the taint is there");
        }
        if matches!(self.state.step(self.ix), StepState::Issued { outcome, .. } if outcome.applied())
        {
            return self.completed("the taint is written");
        }
        if self.still_held().is_none() {
            // A skipped step is not unwound: a taint that arrived after it would stay.
            return self
                .maybe_in_flight(self.ix, TAINT)
                .unwrap_or_else(|| self.skipped("nothing of the node holds the volume any more"));
        }
        if let Some(other) = self.was_refused().or_else(|| self.not_to_be_fenced()) {
            return other;
        }
        match self.proof() {
            Ok(proof) if proof.fences_the_node() => Next::Act(Action {
                step: self.ix,
                intent: format!("put the out-of-service taint on Node {}", node.name),
                effect: Effect::TaintOutOfService {
                    proof,
                    node: node.name.clone(),
                    uid: node.uid.clone(),
                },
            }),
            Ok(_) => self.refused("the proof is about the volume and not about the whole node"),
            Err(lacks) => self.poll(&format!("no proof yet: {lacks}")),
        }
    }

    pub(crate) fn untaint(&self) -> Next {
        if !self.state.in_force(self.plan, StepKind::TaintOutOfService) {
            return self.skipped("nothing was tainted");
        }
        let node = self.evidence.node(&self.plan.pins.node);
        let until = later(self.entered, OTHERS_HAVE);
        let back = node_recovered(self.plan, self.evidence).is_some();
        if !back && self.state.tries(self.ix) == 0 && self.cx.now < until {
            let why = if node.is_ok_and(|n| !n.volumes_attached.is_empty()) {
                Some("other volumes of the node are still attached".to_owned())
            } else {
                self.left_on_the_node()
                    .map(|pod| format!("pod {pod} is not deleted from the node yet"))
            };
            if let Some(why) = why {
                return wait(why, until.min(later(self.cx.now, CLOUD_POLL)));
            }
        }
        self.untaint_next(self.ix)
            .unwrap_or_else(|| self.completed("our taint is gone"))
    }

    /// A pod of the claim that is being deleted and is still bound to the tainted node. The volume may be free before it is gone:
    /// the attach/detach controller drops a pod of which no container was ever reported running, and without the taint nobody
    /// would delete it.
    fn left_on_the_node(&self) -> Option<&ObjectName> {
        let pods = self.evidence.pods().ok()?;
        let here = |p: &&PodFacts| p.node.as_ref() == Some(&self.plan.pins.node);
        pods.iter()
            .filter(here)
            .find(|p| p.deleting_since.is_some())
            .map(|p| &p.name)
    }
}

impl RunCx<'_> {
    /// What is still to do until our taint is off. `None`: nothing.
    pub(crate) fn untaint_next(self, untaint: StepIx) -> Option<Next> {
        self.taint_off(
            untaint,
            |node| node.out_of_service_by_us,
            |node| Action {
                step: untaint,
                intent: format!("take our out-of-service taint off Node {}", node.name),
                effect: Effect::Untaint {
                    node: node.name.clone(),
                    uid: node.uid.clone(),
                },
            },
        )
    }
}
