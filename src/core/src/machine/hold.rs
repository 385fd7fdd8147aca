//! Hold, release, lift: keeping new pods of the claim away, letting the stuck one go, and letting pods come again.

use super::fence::taint_off;
use super::forward::{Look, pin_changed, wait};
use super::unwind::{RETRY, backoff, later};
use super::{Action, Context, Effect, Next, State, StepState};
use crate::diagnosis::Trouble;
use crate::evidence::{Evidence, MAX_AGE, NodeFacts, PodFacts};
use crate::fact::Reading;
use crate::ids::{ObjectName, Uid};
use crate::journal::Outcome;
use crate::plan::{Plan, Side, StepIx, before_fencing, before_holding, general};
use crate::runbook::{Holding, StepKind};
use jiff::{SignedDuration, Timestamp};

/// How soon the hold is probed again.
const PROBE: SignedDuration = SignedDuration::from_millis(200);

impl Look<'_> {
    pub(super) fn hold(&self) -> Next {
        // In the middle of an order it is there for the cloud's detach alone.
        if self.ix.0 > 0 && self.plan.side() == Side::Old && self.still_held().is_none() {
            return self.skipped("the volume is free already");
        }
        match self.state.step(self.ix) {
            StepState::Issued { outcome, at, .. } if outcome.applied() => {
                match self.not_held_since(*at) {
                    // Admission learns of the label within some 0.2 s (measured).
                    Some(Next::Wait { why, .. }) => wait(why, later(self.cx.now, PROBE)),
                    Some(other) => other,
                    None if self.plan.closes_node => self.completed("the taint is on the node"),
                    None => {
                        self.completed("a dry-run create of a pod with the claim comes back with the gate")
                    }
                }
            }
            _ => self
                .was_refused()
                .or_else(|| self.stands_against())
                .unwrap_or_else(|| if self.plan.closes_node { self.close_node() } else { self.by_gate() }),
        }
    }

    fn by_gate(&self) -> Next {
        Next::Act(Action {
            step: self.ix,
            intent: format!("hold new pods of claim {} away", self.plan.claim),
            effect: Effect::Hold,
        })
    }

    fn close_node(&self) -> Next {
        let Some(node) = self.evidence.node(&self.plan.pins.node, self.cx.now) else {
            return self.poll(&format!("Node {} must be read", self.plan.pins.node));
        };
        if let Some(spared) = self.not_to_be_closed() {
            return spared;
        }
        Next::Act(Action {
            step: self.ix,
            intent: format!("close Node {} to new pods", node.name),
            effect: Effect::CloseNode { node: node.name.clone(), uid: node.uid.clone() },
        })
    }

    /// The step's write was refused: for good, or it is tried again later.
    pub(super) fn was_refused(&self) -> Option<Next> {
        let StepState::Issued { outcome: Outcome::NotApplied { why, retry }, at, .. } =
            self.state.step(self.ix)
        else {
            return None;
        };
        if !retry {
            return Some(self.failed(why));
        }
        let again = later(*at, self.backoff());
        (self.cx.now < again).then(|| wait(format!("tried again: {why}"), again))
    }

    /// P1: why the hold was not seen in force after that moment. `None`: it was.
    pub(super) fn not_held_since(&self, since: Timestamp) -> Option<Next> {
        if self.plan.closes_node {
            return self.not_closed_since(since);
        }
        if self.evidence.workload.at < since {
            return Some(self.poll("the hold must be probed again"));
        }
        match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) if w.dry_run_held == Some(true) => None,
            Reading::Present(_) => {
                Some(self.poll("a dry-run create of a pod with the claim does not come back with the gate"))
            }
            Reading::Absent => Some(self.refused("the workload is gone")),
            _ => Some(self.poll("the workload must be read")),
        }
    }

    /// The same where the node is closed by a taint.
    fn not_closed_since(&self, since: Timestamp) -> Option<Next> {
        let name = &self.plan.pins.node;
        let read = self.evidence.nodes.get(name).filter(|f| f.at >= since);
        match read.map(|f| f.read(self.cx.now, MAX_AGE)) {
            Some(Reading::Present(node)) if node.is_closed_by(self.cx.recovery) => {
                match self.evidence.workload.read(self.cx.now, MAX_AGE) {
                    Reading::Present(w) => w.template.ignores_taints.as_ref().map(|why| self.refused(why)),
                    Reading::Absent => Some(self.refused("the workload is gone")),
                    _ => Some(self.poll("the workload must be read")),
                }
            }
            Some(Reading::Present(_)) => Some(self.poll(&format!("Node {name} does not carry our taint"))),
            Some(Reading::Absent) => Some(self.refused(&format!("Node {name} is gone"))),
            _ => Some(self.poll(&format!("Node {name} must be read again"))),
        }
    }

    /// What stands against the hold or the release now.
    fn stands_against(&self) -> Option<Next> {
        let pins = &self.plan.pins;
        let mut refusals = general(self.evidence, &self.scope(), self.cx.now);
        let holding = self.plan.holding();
        refusals.extend(match (holding, self.plan.side()) {
            (Holding::ByTaint, _) | (_, Side::Whole) => {
                before_holding(self.evidence, &pins.node, holding, self.cx.now)
            }
            (_, Side::Old) => before_fencing(self.evidence, holding, self.cx.now),
        });
        if let Some(refusal) = refusals.iter().find(|r| !r.may_pass()) {
            return Some(self.refused(&refusal.to_string()));
        }
        let workload = self.evidence.workload.read(self.cx.now, MAX_AGE).present();
        if let Some(w) = workload.filter(|w| w.workload.uid != pins.workload.uid) {
            let change = pin_changed("the workload's UID", &pins.workload.uid, &w.workload.uid);
            return Some(self.refused(&change));
        }
        if let Some(change) = self.volume_change() {
            return Some(self.refused(&change));
        }
        if let Some(refusal) = refusals.first() {
            return Some(self.poll(&refusal.to_string()));
        }
        match (holding, self.plan.side()) {
            // Once a pod is released its successor may wait elsewhere, and the trouble look different for that.
            (Holding::ByTaint, _) if self.state.attempts_of(self.plan, StepKind::Release) > 0 => None,
            (Holding::ByTaint, _) | (_, Side::Whole) => self.trouble_is_over(),
            (_, Side::Old) => self.trouble_is_over_untouched(),
        }
    }

    pub(super) fn release(&self) -> Next {
        let Some(pods) = self.evidence.pods.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the claim's pods must be read");
        };
        if matches!(self.state.step(self.ix), StepState::Issued { at, .. } if self.evidence.pods.at < *at) {
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
        match pods.iter().find(|p| !self.is_away(p) && p.deleting_since.is_none()) {
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
        if let Some(other) = self.not_held_since(self.entered).or_else(|| self.stands_against()) {
            return other;
        }
        let dead_mount = matches!(self.plan.trouble, Trouble::Phantom { dead_mount: true, .. });
        if pod.ready && !dead_mount {
            return self.poll(&format!("pod {} is Ready and its mount is not known to be dead", pod.name));
        }
        Next::Act(Action {
            step: self.ix,
            intent: format!("evict pod {} (UID {})", pod.name, pod.uid),
            effect: Effect::Release { pod: pod.name.clone(), uid: pod.uid.clone() },
        })
    }

    pub(super) fn lift(&self) -> Next {
        if !self.state.in_force(self.plan, StepKind::Hold) {
            return self.skipped("nothing was held");
        }
        let_come(self.ix, self.plan, self.state, self.evidence, self.cx).unwrap_or_else(|| {
            self.completed(if self.plan.closes_node {
                "our taint is gone"
            } else {
                "no pod carries the gate, and none would be given it"
            })
        })
    }
}

/// What is still to do until pods may come again. `None`: nothing. The effect is issued at least once, since nothing else
/// knows whether the label is on, and again while a pod is seen with the gate, or the closed node with the taint.
pub(super) fn let_come(
    lift: StepIx,
    plan: &Plan,
    state: &State,
    evidence: &Evidence,
    cx: &Context<'_>,
) -> Option<Next> {
    if plan.closes_node {
        let open = |node: &NodeFacts| Action {
            step: lift,
            intent: format!("open Node {} to new pods again", node.name),
            effect: Effect::OpenNode { node: node.name.clone(), uid: node.uid.clone() },
        };
        return taint_off(lift, plan, state, evidence, cx, |node| node.is_closed_by(cx.recovery), open);
    }
    let poll = |why: &str| Some(wait(why.to_owned(), later(cx.now, RETRY)));
    let Some(pods) = evidence.pods.read(cx.now, MAX_AGE).present() else {
        return poll("the claim's pods must be read to lift the hold");
    };
    let waiting: Vec<(ObjectName, Uid)> =
        pods.iter().filter(|p| p.held).map(|p| (p.name.clone(), p.uid.clone())).collect();
    if let StepState::Issued { outcome, at, .. } = state.step(lift) {
        if evidence.pods.at < *at || evidence.workload.at < *at {
            return poll("the claim's pods must be read again");
        }
        // The probe is a witness against, not one that is needed: without a workload there is none.
        let gated = evidence.workload.shown().is_some_and(|w| w.dry_run_held == Some(true));
        if outcome.applied() && waiting.is_empty() && !gated {
            return None;
        }
        let again = later(*at, backoff(state.attempts(lift)));
        if cx.now < again {
            return Some(wait("the gates are looked at again".to_owned(), again));
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
