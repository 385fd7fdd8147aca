//! Prove: wait for a proof that the holder cannot write: off, gone, declared, rebooted and clean, or its kubelet's word. The
//! proofs that the other steps ask for stand here, too.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::diagnosis::Trouble;
use crate::evidence::NodeFacts;
use crate::loss::PodsGo;
use crate::plan::identity_refusals;
use crate::proof::{
    ATTEMPT, Before, FenceProof, UnusedSince, answered_clean, answers_clean, kept_off,
    kubelet_handshake, of_the_machine, of_the_whole_machine, rebooted_and_clean,
};
use crate::run::Next;
use crate::run::pace::later;
use crate::runbook::Holding;

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Prove,
    title: "wait for the proof",
    colour: "await",
    role: Role::Waits,
    effect_class: EffectClass::Repeatable,
    lost: Lost::NoEffect,
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: false,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.prove(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "wait for a proof that instance {} cannot write",
            d.pins.holder
        ),
        precondition: "none",
        command: format!(
            "kubectl reattach declare RECOVERY --holder {} --reason TEXT",
            d.pins.holder
        ),
        risk: "none; without a proof nothing is freed, and the run unwinds at the deadline",
        observed_by: "gone, off by a finished shutdown or with its automatic restart off (read twice), rebooted and clean, kubelet's report, or a named person's declaration",
    }
}

impl StepCx<'_> {
    pub(crate) fn prove(&self) -> Next {
        let Ok(cloud) = self.evidence.cloud_volume() else {
            return self.poll("the cloud must be read");
        };
        if self.cloud_is_free(cloud) {
            return self.skipped("the cloud does not name it as a holder any more");
        }
        // Booted again by the cloud or by somebody: no proof about the machine will come, and its kubelet does the rest.
        let (node, dead) = (
            &self.plan.pins.node,
            matches!(self.plan.trouble, Trouble::DeadNode { .. }),
        );
        if dead && self.evidence.node(node).is_ok_and(|n| n.ready) {
            return self.refused(&format!("Node {node} is Ready again"));
        }
        match self.proof() {
            Ok(proof) => {
                let grounds = proof
                    .rests_on()
                    .iter()
                    .map(|g| format!("{} ({})", g.says, g.source));
                self.completed(&grounds.collect::<Vec<_>>().join("; "))
            }
            Err(lacks) => self
                .user_again()
                .or_else(|| self.handshake_begins())
                .or_else(|| self.asks_again())
                .unwrap_or_else(|| self.poll(&format!("no proof yet: {lacks}"))),
        }
    }

    /// A proof that the holder cannot write, of whatever kind can be made now, or what each kind lacks.
    pub(crate) fn proof(&self) -> Result<FenceProof, String> {
        // S10: a proof is about a machine and a volume; that they are the ones that are meant comes first.
        let holder = Some(&self.plan.pins.holder);
        if let Some(doubt) = identity_refusals(self.evidence, holder).first() {
            return Err(doubt.to_string());
        }
        let proof = self.any_proof()?;
        // S8: what the cloud calls the volume now must be what was pinned.
        if *proof.volume() == self.plan.pins.volume {
            Ok(proof)
        } else {
            Err(format!("the proof is for volume {}", proof.volume()))
        }
    }

    fn any_proof(&self) -> Result<FenceProof, String> {
        let (e, pins) = (self.evidence, &self.plan.pins);
        let mut lacks = Vec::new();
        let node = e
            .node(&pins.node)
            .ok()
            .filter(|n| n.instance.as_ref() == Some(&pins.holder));
        let asked = self.state.challenged_in(self.cx.term, self.plan);
        if let Some(unused) = self
            .unused_since()
            .filter(|_| node.is_some_and(|n| n.ready))
        {
            match kubelet_handshake(e, &pins.node, &pins.holder, unused, self.cx.recovery) {
                Ok(proof) => match self.unanswered(unused) {
                    None => return Ok(proof),
                    Some(why) => lacks.push(why),
                },
                Err(why) => lacks.push(why.to_string()),
            }
            if let Some(asked) = asked {
                match answered_clean(e, &pins.node, &pins.holder, unused, asked, self.cx.recovery) {
                    Ok(proof) => return Ok(proof),
                    Err(why) => lacks.push(why.to_string()),
                }
            }
        } else if node.is_some_and(|n| n.ready) {
            lacks.push("the end of the pods must be observed first".to_owned());
        }
        let machine = match self.plan.fences() {
            true => of_the_whole_machine(e, &pins.holder),
            false => of_the_machine(e, &pins.holder),
        };
        match machine {
            Ok(proof) => return Ok(proof),
            Err(why) if node.is_none_or(|n| !n.ready) => lacks.push(why.to_string()),
            Err(_) => {}
        }
        if self.state.settled_the_restart(self.plan) {
            for seen in &e.sightings {
                if let Ok(proof) = kept_off(e, &pins.holder, seen, self.cx.term) {
                    return Ok(proof);
                }
            }
            if let Some(Err(why)) = e
                .sightings
                .last()
                .map(|seen| kept_off(e, &pins.holder, seen, self.cx.term))
            {
                lacks.push(why.to_string());
            }
        }
        // What the agent answered before the last mount attempt was over says nothing about that attempt.
        if node.is_some()
            && self
                .unused_since()
                .is_some_and(|n| asked >= Some(later(n.at, ATTEMPT)))
        {
            let before = Before {
                boot: pins.boot_id.clone(),
                asked_at: asked,
            };
            if let Ok(proof) =
                rebooted_and_clean(e, &pins.node, &pins.holder, &before, self.cx.recovery)
            {
                return Ok(proof);
            }
        }
        Err(lacks.join("; "))
    }

    /// P1 for every kind of proof: where the order holds new pods away, that was seen in force.
    pub(crate) fn no_pod_may_come(&self) -> Option<Next> {
        if self.plan.closes_node {
            return self.not_held_since(self.entered);
        }
        let gated = self.plan.holding() == Holding::ByGate;
        let held = self.evidence.workload().ok();
        let seen = held.is_some_and(|w| w.dry_run_held == Some(true));
        (gated && !seen).then(|| self.poll("the hold must be seen in force"))
    }

    /// The holder's own Node, where it lives.
    pub(crate) fn living_holder(&self) -> Option<&NodeFacts> {
        let pins = &self.plan.pins;
        let node = self.evidence.node(&pins.node).ok()?;
        (node.ready && node.instance.as_ref() == Some(&pins.holder)).then_some(node)
    }

    /// What a living machine still has to say before its silence about a volume counts, where no VolumeAttachment speaks
    /// for it: kubelet reports what it mounts through Kubernetes, and nothing else that runs there. So its agent answers
    /// this recovery's question, asked when no pod of the claim was left. `None`: nothing is missing.
    pub(crate) fn unanswered(&self, unused: &UnusedSince) -> Option<String> {
        let Trouble::Orphan { .. } = self.plan.trouble else {
            return None;
        };
        let pins = &self.plan.pins;
        let asked = self.state.challenged_in(self.cx.term, self.plan);
        let Some(asked) = asked.filter(|at| *at >= unused.at) else {
            return Some(format!("the agent on {} has not been asked yet", pins.node));
        };
        let (holder, recovery) = (&pins.holder, self.cx.recovery);
        let answer = answers_clean(self.evidence, &pins.node, holder, asked, recovery);
        answer.err().map(|why| why.to_string())
    }
}
