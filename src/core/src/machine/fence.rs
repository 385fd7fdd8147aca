//! Fencing a node as a whole: powering it off, the proof, quarantine, the out-of-service taint, and their end.

use super::forward::{Look, wait};
use super::observe::CLOUD_POLL;
use super::unwind::{RETRY, TAINT, backoff, later, on_its_way};
use super::{Action, Context, Effect, Next, State, StepState};
use crate::cloud::InstanceState;
use crate::diagnosis::{Trouble, Verdict, diagnose};
use crate::evidence::{Evidence, MAX_AGE, NodeFacts, PodFacts};
use crate::fact::Reading;
use crate::identity;
use crate::ids::ObjectName;
use crate::journal::Outcome;
use crate::plan::{Plan, StepIx, general};
use crate::proof::{
    ATTEMPT, Before, FenceProof, answered_clean, kubelet_handshake, of_the_machine, of_the_whole_machine,
    rebooted_and_clean,
};
use crate::runbook::{Holding, StepKind};
use jiff::{SignedDuration, Timestamp};

/// The taint stays for so long after the volume is free, if something else of the node is still attached or a pod of the claim
/// is still there. Kubernetes deletes pods from a tainted node every 20 s (`gcCheckPeriod` in
/// `pkg/controller/podgc/gc_controller.go`).
const OTHERS_HAVE: SignedDuration = SignedDuration::from_secs(60);

impl Look<'_> {
    /// A proof that the holder cannot write, of whatever kind can be made now, or what each kind lacks.
    pub(super) fn proof(&self) -> Result<FenceProof, String> {
        // S10: a proof is about a machine and a volume; that they are the ones that are meant comes first.
        let holder = Some(&self.plan.pins.holder);
        if let Some(doubt) = identity::refusals(self.evidence, holder, self.cx.now).first() {
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
        let (e, pins, now) = (self.evidence, &self.plan.pins, self.cx.now);
        let mut lacks = Vec::new();
        let node = e.node(&pins.node, now).filter(|n| n.instance.as_ref() == Some(&pins.holder));
        let asked = self.state.challenged_in(self.cx.term, self.plan);
        if let Some(no_user) = self.no_user().filter(|_| node.is_some_and(|n| n.ready)) {
            match kubelet_handshake(e, &pins.node, &pins.holder, no_user, self.cx.recovery, now) {
                Ok(proof) => match self.unanswered(no_user) {
                    None => return Ok(proof),
                    Some(why) => lacks.push(why),
                },
                Err(why) => lacks.push(why.to_string()),
            }
            if let Some(asked) = asked {
                match answered_clean(e, &pins.node, &pins.holder, no_user, asked, self.cx.recovery, now) {
                    Ok(proof) => return Ok(proof),
                    Err(why) => lacks.push(why.to_string()),
                }
            }
        } else if node.is_some_and(|n| n.ready) {
            lacks.push("the pods' end must be seen first".to_owned());
        }
        let machine = match self.plan.fences() {
            true => of_the_whole_machine(e, &pins.holder, now),
            false => of_the_machine(e, &pins.holder, now),
        };
        match machine {
            Ok(proof) => return Ok(proof),
            Err(why) if node.is_none_or(|n| !n.ready) => lacks.push(why.to_string()),
            Err(_) => {}
        }
        // What the agent answered before the last mount attempt was over says nothing about that attempt.
        if node.is_some() && self.no_user().is_some_and(|n| asked >= Some(later(n.at, ATTEMPT))) {
            let before = Before { boot: pins.boot_id.clone(), asked_at: asked };
            if let Ok(proof) = rebooted_and_clean(e, &pins.node, &pins.holder, &before, self.cx.recovery, now)
            {
                return Ok(proof);
            }
        }
        Err(lacks.join("; "))
    }

    /// P1 for every kind of proof: where the order holds new pods away, that was seen in force.
    pub(super) fn no_pod_may_come(&self) -> Option<Next> {
        if self.plan.closes_node {
            return self.not_held_since(self.entered);
        }
        let gated = self.plan.holding() == Holding::ByGate;
        let held = self.evidence.workload.read(self.cx.now, MAX_AGE).present();
        let seen = held.is_some_and(|w| w.dry_run_held == Some(true));
        (gated && !seen).then(|| self.poll("the hold must be seen in force"))
    }

    pub(super) fn await_healing(&self) -> Next {
        let dead = matches!(self.plan.trouble, Trouble::DeadNode { .. });
        if dead && self.proof().is_ok() {
            return self.completed("there is a proof that the node cannot write");
        }
        // A machine that was not asked may just not have found the device of a new attach yet.
        let certain = |t: &Trouble| !matches!(t, Trouble::Phantom { confirmed: false, .. });
        if let Verdict::Ours { trouble } = diagnose(self.evidence, self.cx.now).verdict
            && certain(&trouble)
            && !trouble.is_same(&self.plan.trouble)
        {
            return self.refused(&format!("the diagnosis changed: {trouble}"));
        }
        let seconds = self.step.patience_seconds.unwrap_or(self.step.deadline_seconds);
        let over = later(self.entered, SignedDuration::from_secs(seconds.into()));
        if self.cx.now >= over {
            return self.skipped(&format!("it did not heal by itself within {seconds} s"));
        }
        wait("it may heal by itself".to_owned(), over.min(later(self.cx.now, CLOUD_POLL)))
    }

    pub(super) fn power_off(&self) -> Next {
        // Who cannot be powered off by us may be by others; the next step waits for the proof.
        if let Some(over) = self.accepted_or_given_up("the cloud accepted it") {
            return over;
        }
        if self.proof().is_ok() {
            return self.skipped("there is a proof already that it cannot write");
        }
        let refused = self.was_refused().or_else(|| self.not_to_be_fenced());
        if let Some(other) = refused.or_else(|| self.power_off_denied()) {
            return other;
        }
        let pins = &self.plan.pins;
        Next::Act(Action {
            step: self.ix,
            intent: format!("power instance {} ({}) off", pins.holder, pins.node),
            effect: Effect::PowerOff { instance: pins.holder.clone(), node: pins.node.clone() },
        })
    }

    pub(super) fn prove(&self) -> Next {
        let Some(cloud) = self.evidence.cloud_volume.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the cloud must be read");
        };
        if self.cloud_is_free(cloud) {
            return self.skipped("the cloud does not name it as a holder any more");
        }
        // Booted again by the cloud or by somebody: no proof about the machine will come, and its kubelet does the rest.
        let (node, dead) = (&self.plan.pins.node, matches!(self.plan.trouble, Trouble::DeadNode { .. }));
        if dead && self.evidence.node(node, self.cx.now).is_some_and(|n| n.ready) {
            return self.refused(&format!("Node {node} is Ready again"));
        }
        match self.proof() {
            Ok(proof) => {
                let grounds = proof.rests_on().iter().map(|g| format!("{} ({})", g.says, g.source));
                self.completed(&grounds.collect::<Vec<_>>().join("; "))
            }
            Err(lacks) => self
                .user_again()
                .or_else(|| self.handshake_begins())
                .or_else(|| self.asks_again())
                .unwrap_or_else(|| self.poll(&format!("no proof yet: {lacks}"))),
        }
    }

    pub(super) fn quarantine(&self) -> Next {
        let node = match self.fenced_node() {
            Ok(node) => node,
            Err(other) => return *other,
        };
        if node.quarantined {
            return self.done_or_skipped("the node is in quarantine");
        }
        let over = self.accepted_or_given_up("the taint is written");
        over.or_else(|| self.was_refused()).or_else(|| self.not_to_be_fenced()).unwrap_or_else(|| {
            Next::Act(Action {
                step: self.ix,
                intent: format!("put Node {} in quarantine", node.name),
                effect: Effect::Quarantine { node: node.name.clone(), uid: node.uid.clone() },
            })
        })
    }

    pub(super) fn taint(&self) -> Next {
        let node = match self.fenced_node() {
            Ok(node) => node,
            Err(other) => return *other,
        };
        if node.out_of_service_by_us {
            return self.done_or_skipped("the taint is there");
        }
        if matches!(self.state.step(self.ix), StepState::Issued { outcome, .. } if outcome.applied()) {
            return self.completed("the taint is written");
        }
        if self.still_held().is_none() {
            // A skipped step is not unwound: a taint that arrived after it would stay.
            return on_its_way(self.state, self.ix, self.cx, TAINT)
                .unwrap_or_else(|| self.skipped("nothing of the node holds the volume any more"));
        }
        if let Some(other) = self.was_refused().or_else(|| self.not_to_be_fenced()) {
            return other;
        }
        match self.proof() {
            Ok(proof) if proof.fences_the_node() => Next::Act(Action {
                step: self.ix,
                intent: format!("put the out-of-service taint on Node {}", node.name),
                effect: Effect::TaintOutOfService { proof, node: node.name.clone(), uid: node.uid.clone() },
            }),
            Ok(_) => self.refused("the proof is about the volume and not about the whole node"),
            Err(lacks) => self.poll(&format!("no proof yet: {lacks}")),
        }
    }

    /// A step that the run can do without: its effect was accepted, or refused for good.
    fn accepted_or_given_up(&self, accepted: &str) -> Option<Next> {
        match self.state.step(self.ix) {
            StepState::Issued { outcome, .. } if outcome.applied() => Some(self.completed(accepted)),
            StepState::Issued { outcome: Outcome::NotApplied { why, retry: false }, .. } => {
                Some(self.skipped(why))
            }
            _ => None,
        }
    }

    /// What is there by our own hand is done; what another recovery of ours did is not ours to end.
    fn done_or_skipped(&self, seen: &str) -> Next {
        match self.state.step(self.ix) {
            StepState::Pending | StepState::Issued { outcome: Outcome::NotApplied { .. }, .. }
                if self.state.unheard_since(self.ix).is_none() =>
            {
                self.skipped(&format!("{seen}, by another recovery"))
            }
            // The write was accepted, or the reply to an attempt was lost: then the mark may be ours.
            _ => self.completed(seen),
        }
    }

    /// The Node that is fenced, as it was read; a Node that is gone needs none of it.
    fn fenced_node(&self) -> Result<&NodeFacts, Box<Next>> {
        match self.evidence.nodes.get(&self.plan.pins.node).map(|f| f.read(self.cx.now, MAX_AGE)) {
            Some(Reading::Present(node)) => Ok(node),
            Some(Reading::Absent) => Err(Box::new(self.skipped("the Node does not exist any more"))),
            _ => Err(Box::new(self.poll(&format!("Node {} must be read", self.plan.pins.node)))),
        }
    }

    /// What stands against an effect on the whole node now (S7, S8): it is back, or more is on it than the plan lists.
    pub(super) fn not_to_be_fenced(&self) -> Option<Next> {
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
        if let Some(refusal) = general(self.evidence, &self.scope(), self.cx.now).first() {
            let say = refusal.to_string();
            return Some(if refusal.may_pass() { self.poll(&say) } else { self.refused(&say) });
        }
        let Some(listed) = &pins.node_wide else {
            return Some(self.refused("the plan does not list what is on the node"));
        };
        // What came to the node after this run had powered the machine off never ran there: a DaemonSet's pod is made anew for
        // a node that is not Ready, and anybody may bind a pod to it.
        if self.state.powered_off(self.plan) && self.proof().is_ok_and(|p| p.shows_off_or_gone()) {
            return None;
        }
        let Some(Reading::Present(pods)) =
            self.evidence.node_pods.get(&pins.node).map(|f| f.read(self.cx.now, MAX_AGE))
        else {
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
        let claims = self.evidence.node_claims.get(&pins.node).map(|f| f.read(self.cx.now, MAX_AGE));
        let Some(Reading::Present(claims)) = claims else {
            return Some(self.poll(&format!("the claims of the pods on {} must be read", pins.node)));
        };
        // A plan of an earlier version lists no claims.
        let new = claims.iter().filter(|c| listed.pins_claims() && !listed.lists_claim(&c.claim)).count();
        if new > 0 {
            let node = &pins.node;
            return Some(
                self.refused(&format!("{new} more of the claims in use on {node} than the plan has")),
            );
        }
        let more = node.volumes_attached.iter().filter(|v| !listed.lists_volume(v)).count();
        let why = format!("{more} more of the volumes that are attached to {} than the plan has", pins.node);
        (more > 0).then(|| self.refused(&why))
    }

    /// While our taint is on a node it must be down: one that is back turns the run, unless the volume is free already.
    pub(super) fn machine_is_back(&self) -> Option<Next> {
        let untaint = self.plan.find(StepKind::Untaint)?;
        let taint = self.plan.find(StepKind::TaintOutOfService)?;
        let between = self.ix > taint && self.ix < untaint;
        if !between || !self.state.in_force(self.plan, StepKind::TaintOutOfService) {
            return None;
        }
        let why = back_again(self.plan, self.evidence, self.cx.now)?;
        (self.still_held().is_some()).then(|| self.refused(&why))
    }

    pub(super) fn untaint(&self) -> Next {
        if !self.state.in_force(self.plan, StepKind::TaintOutOfService) {
            return self.skipped("nothing was tainted");
        }
        let node = self.evidence.node(&self.plan.pins.node, self.cx.now);
        let until = later(self.entered, OTHERS_HAVE);
        let back = back_again(self.plan, self.evidence, self.cx.now).is_some();
        if !back && self.state.attempts(self.ix) == 0 && self.cx.now < until {
            let why = if node.is_some_and(|n| !n.volumes_attached.is_empty()) {
                Some("other volumes of the node are still attached".to_owned())
            } else {
                self.left_on_the_node().map(|pod| format!("pod {pod} is not deleted from the node yet"))
            };
            if let Some(why) = why {
                return wait(why, until.min(later(self.cx.now, CLOUD_POLL)));
            }
        }
        take_off(self.ix, self.plan, self.state, self.evidence, self.cx)
            .unwrap_or_else(|| self.completed("our taint is gone"))
    }

    /// A pod of the claim that is being deleted and is still bound to the tainted node. The volume may be free before it is gone:
    /// the attach/detach controller drops a pod of which no container was ever reported running, and without the taint nobody
    /// would delete it.
    fn left_on_the_node(&self) -> Option<&ObjectName> {
        let pods = self.evidence.pods.read(self.cx.now, MAX_AGE).present()?;
        let here = |p: &&PodFacts| p.node.as_ref() == Some(&self.plan.pins.node);
        pods.iter().filter(here).find(|p| p.deleting_since.is_some()).map(|p| &p.name)
    }

    pub(super) fn power_on(&self) -> Next {
        if let Some(over) = self.accepted_or_given_up("the cloud accepted it") {
            return over;
        }
        if !self.state.powered_off(self.plan) {
            return self.skipped("this run powered nothing off");
        }
        let pins = &self.plan.pins;
        self.was_refused().unwrap_or_else(|| {
            Next::Act(Action {
                step: self.ix,
                intent: format!("power instance {} on again", pins.holder),
                effect: Effect::PowerOn { instance: pins.holder.clone(), node: pins.node.clone() },
            })
        })
    }
}

/// Why the fenced node is not down any more.
fn back_again(plan: &Plan, evidence: &Evidence, now: Timestamp) -> Option<String> {
    let pins = &plan.pins;
    if let Some(node) = evidence.node(&pins.node, now) {
        if node.ready {
            return Some(format!("Node {} is Ready again", pins.node));
        }
        if pins.boot_id.as_ref().is_some_and(|boot| *boot != node.boot_id) {
            return Some(format!("Node {} has booted again", pins.node));
        }
    }
    let instance = evidence.instances.get(&pins.holder).and_then(|f| f.read(now, MAX_AGE).present())?;
    let runs = matches!(instance.state, InstanceState::Running | InstanceState::Transitional(_));
    let declared =
        matches!(&evidence.declaration, Some(d) if d.holder == pins.holder && d.is_valid(now).is_ok());
    (runs && !declared).then(|| format!("instance {} runs again", pins.holder))
}

/// What is still to do until our taint is off. `None`: nothing.
pub(super) fn take_off(
    untaint: StepIx,
    plan: &Plan,
    state: &State,
    evidence: &Evidence,
    cx: &Context<'_>,
) -> Option<Next> {
    taint_off(
        untaint,
        plan,
        state,
        evidence,
        cx,
        |node| node.out_of_service_by_us,
        |node| Action {
            step: untaint,
            intent: format!("take our out-of-service taint off Node {}", node.name),
            effect: Effect::Untaint { node: node.name.clone(), uid: node.uid.clone() },
        },
    )
}

/// What is still to do until a taint of ours is off the pinned Node: tried until it is seen gone.
pub(super) fn taint_off(
    step: StepIx,
    plan: &Plan,
    state: &State,
    evidence: &Evidence,
    cx: &Context<'_>,
    is_there: impl Fn(&NodeFacts) -> bool,
    action: impl Fn(&NodeFacts) -> Action,
) -> Option<Next> {
    let poll = |why: &str| Some(wait(why.to_owned(), later(cx.now, RETRY)));
    let name = &plan.pins.node;
    let node = match evidence.nodes.get(name).map(|f| (f.at, f.read(cx.now, MAX_AGE))) {
        Some((at, Reading::Present(node))) => (at, node),
        Some((_, Reading::Absent)) => return None,
        _ => return poll("the Node must be read to take the taint off"),
    };
    if let StepState::Issued { outcome, at, .. } = state.step(step) {
        if node.0 < *at {
            return poll("the Node must be read again");
        }
        if !is_there(node.1) && outcome.applied() {
            return None;
        }
        let again = later(*at, backoff(state.attempts(step)));
        if cx.now < again {
            return Some(wait("the taint is looked at again".to_owned(), again));
        }
    }
    Some(Next::Act(action(node.1)))
}
