//! Hold: keep new pods of the claim away, by a scheduling gate that admission gives them, or by a taint on the node where the
//! cluster has no such admission policy.

use super::StepKind;
use super::cx::StepCx;
use super::pins::pin_changed;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, UndoneBy, Words};
use crate::fact::Missing;
use crate::hold::HOLD_TAINT_PREFIX;
use crate::loss::PodsGo;
use crate::plan::{Releases, before_fencing, before_holding, general, may_touch_node};
use crate::run::pace::{later, wait};
use crate::run::{Action, Effect, Next, StepState};
use crate::runbook::Holding;
use jiff::{SignedDuration, Timestamp};

/// How soon the hold is probed again.
const PROBE: SignedDuration = SignedDuration::from_millis(200);

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Hold,
    title: "hold new pods away",
    colour: "hold",
    role: Role::Acts,
    effect_class: EffectClass::Conditional,
    lost: Lost::MayBeIssuedAgain,
    frees: false,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: Some(UndoneBy {
        step: StepKind::Lift,
        why: "no pod may be left held",
    }),
    starts_work: true,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |a| a.gates,
    describe,
    next: |cx| cx.hold(),
};

fn describe(d: &Describe<'_>) -> Words {
    let node = &d.pins.node;
    if d.closes_node {
        return Words {
            what: format!(
                "keep new pods off {node} by a taint of our own: this cluster cannot hold pods of one claim away"
            ),
            precondition: "no pod of the workload tolerates it; a new pod of the workload would be accepted now",
            command: format!("kubectl taint node {node} {HOLD_TAINT_PREFIX}RECOVERY=:NoSchedule"),
            risk: "for as long as it lasts no new pod of any workload starts on the node; pods that are there stay",
            observed_by: "the taint is there",
        };
    }
    Words {
        what: format!(
            "keep new pods of claim {} away by a scheduling gate",
            d.claim
        ),
        precondition: "the cluster has the policy reattach-hold; a new pod of the workload would be accepted now",
        command: format!(
            "kubectl -n {} label volumerecovery RECOVERY reattach.dev/hold=true",
            d.namespace()
        ),
        risk: "none: only pods that are created during the hold wait, until the hold ends",
        observed_by: "a dry-run create of a pod with the claim comes back with the gate",
    }
}

impl StepCx<'_> {
    pub(crate) fn hold(&self) -> Next {
        // In the middle of an order it is there for the cloud's detach alone.
        if self.ix.0 > 0
            && self.plan.releases() == Releases::OldHolder
            && self.still_held().is_none()
        {
            return self.skipped("the volume is free already");
        }
        match self.state.step(self.ix) {
            StepState::Issued { outcome, at, .. } if outcome.applied() => {
                match self.not_held_since(*at) {
                    // Admission learns of the label within some 0.2 s (measured).
                    Some(Next::Wait { why, .. }) => wait(why, later(self.cx.now, PROBE)),
                    Some(other) => other,
                    None if self.plan.closes_node => self.completed("the taint is on the node"),
                    None => self.completed(
                        "a dry-run create of a pod with the claim comes back with the gate",
                    ),
                }
            }
            _ => self
                .was_refused()
                .or_else(|| self.stands_against())
                .unwrap_or_else(|| {
                    if self.plan.closes_node {
                        self.close_node()
                    } else {
                        self.by_gate()
                    }
                }),
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
        let Ok(node) = self.evidence.node(&self.plan.pins.node) else {
            return self.poll(&format!("Node {} must be read", self.plan.pins.node));
        };
        if let Some(spared) = self.not_to_be_closed() {
            return spared;
        }
        Next::Act(Action {
            step: self.ix,
            intent: format!("close Node {} to new pods", node.name),
            effect: Effect::CloseNode {
                node: node.name.clone(),
                uid: node.uid.clone(),
            },
        })
    }

    /// P1: why the hold was not seen in force after that moment. `None`: it was.
    pub(crate) fn not_held_since(&self, since: Timestamp) -> Option<Next> {
        if self.plan.closes_node {
            return self.not_closed_since(since);
        }
        if self.evidence.workload.at < since {
            return Some(self.poll("the hold must be probed again"));
        }
        match self.evidence.workload() {
            Ok(w) if w.dry_run_held == Some(true) => None,
            Ok(_) => {
                Some(self.poll(
                    "a dry-run create of a pod with the claim does not come back with the gate",
                ))
            }
            Err(Missing::Absent) => Some(self.refused("the workload is gone")),
            _ => Some(self.poll("the workload must be read")),
        }
    }

    /// The same where the node is closed by a taint.
    fn not_closed_since(&self, since: Timestamp) -> Option<Next> {
        let name = &self.plan.pins.node;
        match self.evidence.since(since).node(name) {
            Ok(node) if node.is_closed_by(self.cx.recovery) => match self.evidence.workload() {
                Ok(w) => w
                    .template
                    .ignores_taints
                    .as_ref()
                    .map(|why| self.refused(why)),
                Err(Missing::Absent) => Some(self.refused("the workload is gone")),
                _ => Some(self.poll("the workload must be read")),
            },
            Ok(_) => Some(self.poll(&format!("Node {name} does not carry our taint"))),
            Err(Missing::Absent) => Some(self.refused(&format!("Node {name} is gone"))),
            _ => Some(self.poll(&format!("Node {name} must be read again"))),
        }
    }

    /// What stands against the hold or the release now.
    pub(super) fn stands_against(&self) -> Option<Next> {
        let pins = &self.plan.pins;
        let mut refusals = general(self.evidence, &self.scope());
        let holding = self.plan.holding();
        refusals.extend(match (holding, self.plan.releases()) {
            (Holding::ByTaint, _) | (_, Releases::Everyone) => {
                before_holding(self.evidence, &pins.node, holding)
            }
            (_, Releases::OldHolder) => before_fencing(self.evidence, holding),
        });
        if let Some(refusal) = refusals.iter().find(|r| !r.may_pass()) {
            return Some(self.refused(&refusal.to_string()));
        }
        let workload = self.evidence.workload().ok();
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
        match (holding, self.plan.releases()) {
            // Once a pod is released its successor may wait elsewhere, and the trouble look different for that.
            (Holding::ByTaint, _)
                if self
                    .plan
                    .find(StepKind::Release)
                    .is_some_and(|ix| self.state.tries(ix) > 0) =>
            {
                None
            }
            (Holding::ByTaint, _) | (_, Releases::Everyone) => self.trouble_is_over(),
            (_, Releases::OldHolder) => self.trouble_is_over_untouched(),
        }
    }

    /// What stands against closing the node to new pods.
    pub(crate) fn not_to_be_closed(&self) -> Option<Next> {
        let refusals = may_touch_node(self.plan, self.evidence);
        let refusal = refusals
            .iter()
            .find(|r| !r.may_pass())
            .or_else(|| refusals.first())?;
        let say = refusal.to_string();
        Some(if refusal.may_pass() {
            self.poll(&say)
        } else {
            self.refused(&say)
        })
    }
}
