//! Challenge: ask the holder's agent to scan the machine again.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::diagnosis::Trouble;
use crate::ids::StepIx;
use crate::loss::PodsGo;
use crate::proof::ATTEMPT;
use crate::run::pace::{later, wait};
use crate::run::{Action, Effect, Next};
use jiff::SignedDuration;

/// An answer that is not clean is asked for again after so long.
const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(30);

/// Maximum number of questions to an agent in one run: the journal has to fit into one object.
const MOST_QUESTIONS: u32 = 60;

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Challenge,
    title: "ask the agent",
    colour: "await",
    role: Role::Acts,
    effect_class: EffectClass::Repeatable,
    lost: Lost::MayBeIssuedAgain,
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: true,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.challenge(),
};

fn describe(d: &Describe<'_>) -> Words {
    let node = &d.pins.node;
    let (what, precondition) = match d.pins.attachment {
        None => (
            format!(
                "if {node} is the holder's node and lives: ask its agent to scan the machine again"
            ),
            "no pod of the claim is on the node, and none can come to it",
        ),
        Some(_) => (
            format!(
                "if kubelet on {node} keeps the volume in volumesInUse: ask its agent to scan the machine again"
            ),
            "no pod of the claim has been on the node for 2 min, so that no mount attempt is left",
        ),
    };
    Words {
        what,
        precondition,
        command: format!("kubectl get nodevolumereport {node} -o yaml"),
        risk: "none: it only looks",
        observed_by: "its answer to this challenge shows no device, or (full level) a clean one",
    }
}

impl StepCx<'_> {
    /// For a kubelet that keeps the volume in `volumesInUse` though no pod is left: the attach/detach controller waits for
    /// it for ever (measured). And for a living machine that has the volume without a VolumeAttachment.
    pub(crate) fn challenge(&self) -> Next {
        let pins = &self.plan.pins;
        if self.still_held().is_none() {
            return self.skipped("the volume is free already");
        }
        let orphan = matches!(self.plan.trouble, Trouble::Orphan { .. });
        if orphan && self.living_holder().is_none() {
            return self.skipped("the holder has no Node whose kubelet is alive");
        }
        let (Some(csi), Ok(node)) = (self.evidence.csi(), self.evidence.node(&pins.node)) else {
            return self.poll("the PersistentVolume and the Node must be read");
        };
        if !orphan && !self.evidence.lists_volume(&node.volumes_in_use, csi) {
            return self.skipped("kubelet does not report the volume in use");
        }
        if let Some(line) = self.user_again().or_else(|| self.handshake_begins()) {
            return line;
        }
        if let Some(not_held) = self.no_pod_may_come() {
            return not_held;
        }
        let Some(unused) = self.unused_since().filter(|n| n.lease.is_some()) else {
            return self.poll("the end of the pods must be observed first");
        };
        let from = later(unused.at, ATTEMPT);
        if !orphan && self.cx.now < from {
            return wait("a mount attempt may still be under way".to_owned(), from);
        }
        let lacks = match self.proof() {
            Ok(_) => {
                return self.completed("the agent's answer shows that nothing uses the volume");
            }
            Err(lacks) => lacks,
        };
        if self.asked_just_now() {
            return self.poll(&lacks);
        }
        self.question(self.ix)
    }

    /// Whether this leader asked so recently that the answer is still waited for.
    fn asked_just_now(&self) -> bool {
        let asked = self.state.challenged_in(self.cx.term, self.plan);
        asked.is_some_and(|at| self.cx.now < later(at, ASK_AGAIN))
    }

    fn question(&self, step: StepIx) -> Next {
        let node = self.plan.pins.node.clone();
        Next::Act(Action {
            step,
            intent: format!("ask the agent on {node} to scan the machine again"),
            effect: Effect::Challenge { node },
        })
    }

    /// Where only an agent's answer can tell, and the one that is there has become too old, it is asked for again.
    pub(crate) fn asks_again(&self) -> Option<Next> {
        let question = self
            .plan
            .find(StepKind::Challenge)
            .filter(|ix| *ix < self.ix)?;
        let csi = self.evidence.csi()?;
        let node = self.evidence.node(&self.plan.pins.node).ok()?;
        let unused = self.unused_since().filter(|n| n.lease.is_some())?;
        let orphan =
            matches!(self.plan.trouble, Trouble::Orphan { .. }) && self.living_holder().is_some();
        let from = later(unused.at, ATTEMPT);
        if !(orphan || self.evidence.lists_volume(&node.volumes_in_use, csi))
            || self.state.tries(question) >= MOST_QUESTIONS
            || self.asked_just_now()
        {
            return None;
        }
        if !orphan && self.cx.now < from {
            return Some(wait(
                "a mount attempt may still be under way".to_owned(),
                from,
            ));
        }
        Some(self.question(question))
    }
}
