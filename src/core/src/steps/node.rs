//! The holder's Node: what stands against an effect on the whole of it, whether it is back, and how a taint of ours comes off.

use super::StepKind;
use super::cx::StepCx;
use crate::cloud::InstanceState;
use crate::evidence::{EvidenceAt, NodeFacts};
use crate::fact::Missing;
use crate::ids::StepIx;
use crate::journal::Outcome;
use crate::plan::{Plan, general, may_touch_node};
use crate::run::{Action, Next, RunCx, StepState};

impl StepCx<'_> {
    /// The Node that is fenced, as it was read; a Node that is gone needs none of it.
    pub(super) fn fenced_node(&self) -> Result<&NodeFacts, Box<Next>> {
        match self.evidence.node(&self.plan.pins.node) {
            Ok(node) => Ok(node),
            Err(Missing::Absent) => Err(Box::new(self.skipped("the Node does not exist any more"))),
            _ => Err(Box::new(
                self.poll(&format!("Node {} must be read", self.plan.pins.node)),
            )),
        }
    }

    /// What stands against an effect on the whole node now (S7, S8): it is back, or more is on it than the plan lists.
    pub(crate) fn not_to_be_fenced(&self) -> Option<Next> {
        let pins = &self.plan.pins;
        let node = match self.fenced_node() {
            Ok(node) => node,
            Err(other) => return Some(*other),
        };
        if node.ready {
            return Some(self.refused(&format!("Node {} is Ready again", node.name)));
        }
        if let Some(change) = self.boot_change() {
            return Some(self.refused(&change));
        }
        if let Some(doubt) = self.trouble_is_over_untouched() {
            return Some(doubt);
        }
        if let Some(refusal) = general(self.evidence, &self.scope()).first() {
            let say = refusal.to_string();
            return Some(if refusal.may_pass() {
                self.poll(&say)
            } else {
                self.refused(&say)
            });
        }
        let Some(listed) = &pins.node_wide else {
            return Some(self.refused("the plan does not list what is on the node"));
        };
        // What came to the node after this run had powered the machine off never ran there: a DaemonSet's pod is made anew for
        // a node that is not Ready, and anybody may bind a pod to it.
        let off = self.state.powered_off(self.plan) || self.state.settled_the_restart(self.plan);
        if off && self.proof().is_ok_and(|p| p.shows_off_or_gone()) {
            return None;
        }
        let Ok(pods) = self.evidence.node_pods(&pins.node) else {
            return Some(self.poll(&format!("the pods on {} must be read", pins.node)));
        };
        if let Some((pod, _)) = pods.iter().find(|p| !listed.lists_pod(p)) {
            // The journal stands in the claim's namespace, whose people need not see the names of other ones.
            let pod = match pod.namespace == self.plan.claim.namespace {
                true => format!("pod {pod}"),
                false => "a pod of another namespace".to_owned(),
            };
            return Some(self.refused(&format!("{pod} is on {} and not in the plan", pins.node)));
        }
        let Ok(claims) = self.evidence.node_claims(&pins.node) else {
            return Some(self.poll(&format!(
                "the claims of the pods on {} must be read",
                pins.node
            )));
        };
        // A plan of an earlier version lists no claims.
        let new = claims
            .iter()
            .filter(|c| listed.pins_claims() && !listed.lists_claim(&c.claim))
            .count();
        if new > 0 {
            let node = &pins.node;
            return Some(self.refused(&format!(
                "{new} more of the claims in use on {node} than the plan has"
            )));
        }
        let more = node
            .volumes_attached
            .iter()
            .filter(|v| !listed.lists_volume(v))
            .count();
        let why = format!(
            "{more} more of the volumes that are attached to {} than the plan has",
            pins.node
        );
        (more > 0).then(|| self.refused(&why))
    }

    /// While our taint is on a node it must be down: one that is back turns the run, unless the volume is free already.
    pub(crate) fn machine_is_back(&self) -> Option<Next> {
        let untaint = self.plan.find(StepKind::Untaint)?;
        let taint = self.plan.find(StepKind::TaintOutOfService)?;
        let between = self.ix > taint && self.ix < untaint;
        if !between || !self.state.in_force(self.plan, StepKind::TaintOutOfService) {
            return None;
        }
        let why = node_recovered(self.plan, self.evidence)?;
        (self.still_held().is_some()).then(|| self.refused(&why))
    }

    /// What stands against touching the whole node, before each such effect: the word by which it is done may have been taken
    /// back since the last one. The wait for a brake, a boot or a maintenance has no deadline: the status says what is waited
    /// for, and a person is called.
    pub(crate) fn node_is_spared(&self) -> Option<Next> {
        let due = match self.state.step(self.ix) {
            StepState::Pending
            | StepState::Issued {
                outcome: Outcome::NotApplied { retry: true, .. } | Outcome::Withheld { .. },
                ..
            } => true,
            StepState::Started { .. } | StepState::Issued { .. } | StepState::Closed { .. } => {
                false
            }
        };
        if !due || !self.step.kind.spec().reaches_node {
            return None;
        }
        // The step itself says so.
        if let Some(Next::Record(_)) = self.not_to_be_fenced() {
            return None;
        }
        let mut refusals = may_touch_node(self.plan, self.evidence);
        // A machine that this run proved off is not booting, and no partition explains that.
        if self.state.settled_the_restart(self.plan)
            && self.proof().is_ok_and(|p| p.shows_off_or_gone())
        {
            refusals.retain(|r| !r.is_brake());
        }
        if let Some(refusal) = refusals.iter().find(|r| !r.may_pass()) {
            return Some(self.refused(&refusal.to_string()));
        }
        let refusal = refusals.first()?;
        Some(self.poll(&refusal.to_string()))
    }
}

/// Why the fenced node is not down any more.
pub(crate) fn node_recovered(plan: &Plan, evidence: EvidenceAt<'_>) -> Option<String> {
    let pins = &plan.pins;
    if let Ok(node) = evidence.node(&pins.node) {
        if node.ready {
            return Some(format!("Node {} is Ready again", pins.node));
        }
        if pins
            .boot_id
            .as_ref()
            .is_some_and(|boot| *boot != node.boot_id)
        {
            return Some(format!("Node {} has booted again", pins.node));
        }
    }
    let instance = evidence.instance(&pins.holder).ok()?;
    let runs = matches!(
        instance.state,
        InstanceState::Running | InstanceState::Transitional(_)
    );
    let declared = matches!(&evidence.declaration, Some(d) if d.holder == pins.holder && d.is_valid(evidence.now).is_ok());
    (runs && !declared).then(|| format!("instance {} runs again", pins.holder))
}

impl RunCx<'_> {
    /// What is still to do until a taint of ours is off the pinned Node: tried until it is seen gone.
    pub(crate) fn taint_off(
        self,
        step: StepIx,
        is_there: impl Fn(&NodeFacts) -> bool,
        action: impl Fn(&NodeFacts) -> Action,
    ) -> Option<Next> {
        let poll = |why: &str| Some(self.poll(why));
        let name = &self.plan.pins.node;
        let node = match self.evidence.node(name) {
            Ok(node) => node,
            Err(Missing::Absent) => return None,
            Err(_) => return poll("the Node must be read to take the taint off"),
        };
        if let StepState::Issued { outcome, at, .. } = self.state.step(step) {
            if self.evidence.since(*at).node(name).is_err() {
                return poll("the Node must be read again");
            }
            if !is_there(node) && outcome.applied() {
                return None;
            }
            if let Some(pause) = self.pause(
                step,
                *at,
                "waiting until the Node is seen without the taint",
            ) {
                return Some(pause);
            }
        }
        Some(Next::Act(action(node)))
    }
}
