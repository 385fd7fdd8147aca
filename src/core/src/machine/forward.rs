//! The way forward: the current step's precondition, effect, end condition and deadline.

use super::observe::CLOUD_POLL;
use super::unwind::{backoff, later, put_back};
use super::{Action, Context, Effect, Next, State, StepState};
use crate::diagnosis::{Trouble, Verdict, diagnose};
use crate::evidence::{Evidence, MAX_AGE, PodFacts};
use crate::fact::Reading;
use crate::journal::{End, Mark, Outcome, TurnBack};
use crate::loss::{PodsGo, losses};
use crate::plan::{Plan, PlannedStep, Scope, Side, StepIx, before_scaling, general};
use crate::proof::NoUser;
use crate::runbook::{Holding, StepKind};
use crate::safety::Refusal;
use crate::stamp::{self, Stamp};
use crate::workload::{ScalePath, WorkloadFacts};
use jiff::{SignedDuration, Timestamp};

/// A busy cloud is asked again after so long.
pub(super) const BUSY: SignedDuration = SignedDuration::from_secs(5);

/// One look at the current step.
pub(super) struct Look<'a> {
    pub(super) plan: &'a Plan,
    pub(super) state: &'a State,
    pub(super) evidence: &'a Evidence,
    pub(super) cx: &'a Context<'a>,
    pub(super) ix: StepIx,
    pub(super) step: &'a PlannedStep,
    pub(super) entered: Timestamp,
}

/// The next thing on the way forward.
pub(super) fn next(plan: &Plan, state: &State, evidence: &Evidence, cx: &Context<'_>) -> Next {
    let Some(ix) = state.current() else { return Next::Record(Mark::Ended { end: End::Recovered }) };
    let Some(step) = plan.steps.get(ix.index()) else {
        return Next::Record(Mark::Ended { end: End::Recovered });
    };
    let entered = state.entered_at().unwrap_or(cx.now);
    let look = Look { plan, state, evidence, cx, ix, step, entered };
    let over = look.identity_lost().or_else(|| look.nothing_wrong()).or_else(|| look.machine_is_back());
    if over.is_none()
        && let Some(spared) = look.node_is_spared()
    {
        return spared;
    }
    let proposal = over.unwrap_or_else(|| match step.kind {
        StepKind::ScaleToZero => look.scale_to_zero(),
        StepKind::Hold => look.hold(),
        StepKind::Release => look.release(),
        StepKind::AwaitDetached => look.await_detached(),
        StepKind::CloudDetach => look.cloud_detach(),
        StepKind::Requeue => look.requeue(),
        StepKind::Restore => look.restore(),
        StepKind::Lift => look.lift(),
        StepKind::Verify => look.verify(),
        StepKind::Await => look.await_healing(),
        StepKind::PowerOff => look.power_off(),
        StepKind::Prove => look.prove(),
        StepKind::Quarantine => look.quarantine(),
        StepKind::TaintOutOfService => look.taint(),
        StepKind::Untaint => look.untaint(),
        StepKind::PowerOn => look.power_on(),
        StepKind::Challenge => look.challenge(),
        StepKind::DeleteAttachment => look.delete_attachment(),
        StepKind::Snapshot => look.snapshot(),
        StepKind::CloudForce => look.cloud_force(),
    });
    let proposal = match proposal {
        Next::Act(action) => look.unless_lost(action),
        other => other,
    };
    look.within_deadline(proposal)
}

impl Look<'_> {
    /// S2: an effect by which pods go away is not issued while something would be lost with them. Asked for by the effect,
    /// and so for each step that has one, from the evidence that was read for it.
    fn unless_lost(&self, action: Action) -> Next {
        let going = self.plan.steps.get(action.step.index()).map_or(PodsGo::None, |s| s.kind.pods_go());
        let lost = losses(self.evidence, &self.plan.pins.node, going, self.cx.now);
        match lost.iter().find(|r| !r.may_pass()).or(lost.first()) {
            None => Next::Act(action),
            Some(refusal) if refusal.may_pass() => self.poll(&refusal.to_string()),
            Some(refusal) => self.refused(&refusal.to_string()),
        }
    }

    /// S5: a step that can only wait, past its deadline, turns the run back.
    fn within_deadline(&self, proposal: Next) -> Next {
        let deadline = later(self.entered, SignedDuration::from_secs(self.step.deadline_seconds.into()));
        let (why, until) = match proposal {
            Next::Wait { why, until } => (why, until),
            // An executor that was away starts nothing on an old decision. Restoring is never too late.
            Next::Act(Action { ref effect, .. })
                if self.cx.now >= deadline
                    && matches!(
                        effect,
                        Effect::ScaleToZero { .. }
                            | Effect::Hold
                            | Effect::CloseNode { .. }
                            | Effect::Release { .. }
                            | Effect::CloudDetach { .. }
                            | Effect::Snapshot { .. }
                            | Effect::CloudForce { .. }
                            | Effect::PowerOff { .. }
                            | Effect::Quarantine { .. }
                            | Effect::TaintOutOfService { .. }
                            | Effect::Challenge { .. }
                            | Effect::DeleteAttachment { .. }
                    ) =>
            {
                let refused = match self.state.step(self.ix) {
                    StepState::Issued { outcome: Outcome::NotApplied { why, .. }, .. } => why.clone(),
                    _ => "an executor that starts it".to_owned(),
                };
                (refused, deadline)
            }
            other => return other,
        };
        if self.cx.now < deadline {
            return Next::Wait { why, until: until.min(deadline) };
        }
        let seconds = self.step.deadline_seconds.into();
        // After PowerOn the volume is free; a machine that stays off is somebody's business and no reason to fail.
        if self.step.best_effort || self.step.kind == StepKind::PowerOn {
            return self.skipped(&format!("not done within {seconds} s: {why}"));
        }
        if self.step.kind == StepKind::Verify {
            // The workload is restored already: there is nothing to put back, only someone to tell.
            let why = format!("the workload was restored and its pod is not Ready after {seconds} s: {why}");
            return Next::Record(Mark::Ended { end: End::Failed { why } });
        }
        Next::Record(Mark::TurnedBack {
            why: TurnBack::Deadline { step: self.ix, seconds, waiting_for: why },
        })
    }

    /// An order that begins by waiting is over when there is nothing wrong any more: all that follows is skipped.
    fn nothing_wrong(&self) -> Option<Next> {
        let patient = |s: &PlannedStep| matches!(s.kind, StepKind::Await | StepKind::Requeue);
        if self.state.touched() || !self.plan.steps.first().is_some_and(patient) {
            return None;
        }
        let verdict = diagnose(self.evidence, self.cx.now).verdict;
        let Verdict::Healthy { .. } = verdict else { return None };
        Some(if self.step.kind == StepKind::Verify {
            self.completed(&verdict.to_string())
        } else {
            self.skipped(&verdict.to_string())
        })
    }

    fn scale_to_zero(&self) -> Next {
        let outcome = match self.state.step(self.ix) {
            StepState::Issued { outcome, at, .. } => Some((outcome, *at)),
            _ => None,
        };
        match outcome {
            Some((outcome, _)) if outcome.applied() => self.await_no_pods(),
            Some((Outcome::NotApplied { why, retry: false }, _)) => self.failed(why),
            // Two executors may both have issued it: one of them was told of a conflict, and it is in force.
            Some((_, at)) if self.at_zero_by_us(at) => self.await_no_pods(),
            Some((Outcome::NotApplied { why, .. }, at)) if self.cx.now < later(at, self.backoff()) => {
                wait(format!("tried again: {why}"), later(at, self.backoff()))
            }
            _ => self.propose_scale(),
        }
    }

    pub(super) fn backoff(&self) -> SignedDuration {
        backoff(self.state.attempts(self.ix))
    }

    fn at_zero_by_us(&self, since: Timestamp) -> bool {
        let workload = self.evidence.workload.read(self.cx.now, MAX_AGE).present();
        self.evidence.workload.at >= since && workload.is_some_and(|w| w.replicas == 0 && self.own_stamp(w))
    }

    fn own_stamp(&self, w: &WorkloadFacts) -> bool {
        matches!(&w.stamp, Some(Ok(s)) if stamp::own(s, &w.workload, self.cx.recovery).is_some())
    }

    fn propose_scale(&self) -> Next {
        let pins = &self.plan.pins;
        let workload = match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) => w,
            Reading::Absent => return self.refused("the workload is gone"),
            _ => return self.poll("the workload must be read"),
        };
        let own_stamp = self.own_stamp(workload);
        let mut refusals = general(self.evidence, &self.scope(), self.cx.now);
        // A stamp of our own is left by a crash between the two writes of the /scale path: go on from it.
        refusals.extend(
            before_scaling(self.evidence, self.cx.confirm_workload, self.cx.now)
                .into_iter()
                .filter(|r| !(own_stamp && matches!(r, Refusal::StampedByOther { .. }))),
        );
        if let Some(refusal) = refusals.iter().find(|r| !r.may_pass()) {
            return self.refused(&refusal.to_string());
        }
        if let Some(change) = self.pin_change(workload) {
            return self.refused(&change);
        }
        if let Some(refusal) = refusals.first() {
            return self.poll(&refusal.to_string());
        }
        if let Some(doubt) = self.trouble_is_over() {
            return doubt;
        }
        Next::Act(Action {
            step: self.ix,
            intent: format!(
                "scale {} from {} to 0, stamped with that count",
                workload.workload, workload.replicas
            ),
            effect: Effect::ScaleToZero {
                workload: workload.workload.clone(),
                resource_version: workload.resource_version.clone(),
                path: workload.scaling,
                stamp: Stamp {
                    replicas: pins.replicas,
                    workload: workload.workload.uid.clone(),
                    recovery: self.cx.recovery.clone(),
                    at: self.cx.now,
                },
            },
        })
    }

    pub(super) fn scope(&self) -> Scope<'_> {
        let pins = &self.plan.pins;
        Scope { node: &pins.node, side: self.plan.side(), holder: &pins.holder }
    }

    /// A plan may be old when its first effect is due, and kubelet may have mounted the volume a moment ago: the trouble
    /// itself must still be there. What is not clear now may be clear again before the deadline.
    pub(super) fn trouble_is_over(&self) -> Option<Next> {
        match diagnose(self.evidence, self.cx.now).verdict {
            Verdict::Ours { trouble } if trouble.is_same(&self.plan.trouble) => None,
            doubt @ (Verdict::Unclassified { .. } | Verdict::Wait { .. }) => {
                Some(self.poll(&doubt.to_string()))
            }
            other => Some(self.refused(&format!("the diagnosis changed: {other}"))),
        }
    }

    /// The same where something was done already and the trouble may look different for that.
    pub(super) fn trouble_is_over_untouched(&self) -> Option<Next> {
        if self.state.touched() { None } else { self.trouble_is_over() }
    }

    /// S8: what the plan pinned must still be so right before the first effect. What cannot be read is no change; the
    /// refusals say that it is missing.
    fn pin_change(&self, workload: &WorkloadFacts) -> Option<String> {
        let pins = &self.plan.pins;
        let say = |what: &str, was: &dyn std::fmt::Display, is: &dyn std::fmt::Display| {
            Some(pin_changed(what, was, is))
        };
        if workload.workload.uid != pins.workload.uid {
            return say("the workload's UID", &pins.workload.uid, &workload.workload.uid);
        }
        if workload.replicas != pins.replicas {
            return say("the replica count", &pins.replicas, &workload.replicas);
        }
        if workload.scaling == ScalePath::None {
            return say("how the workload scales", &"scalable", &"not scalable");
        }
        if let Some(pod) = workload.pods.iter().find(|p| !pins.pods.iter().any(|(_, uid)| *uid == p.uid)) {
            return say("the workload's pods", &"the pinned ones", &format!("also {}", pod.name));
        }
        self.volume_change()
    }

    /// S8: claim and PersistentVolume must be the pinned ones. One that is not there, or cannot be read, is no change.
    pub(super) fn claim_change(&self) -> Option<String> {
        let (pins, e) = (&self.plan.pins, self.evidence);
        let claim = e.claim.read(self.cx.now, MAX_AGE).present();
        if let Some(claim) = claim.filter(|c| c.uid != pins.claim) {
            return Some(pin_changed("the claim's UID", &pins.claim, &claim.uid));
        }
        let volume = e.volume.read(self.cx.now, MAX_AGE).present().filter(|v| v.uid != pins.pv)?;
        Some(pin_changed("the PersistentVolume's UID", &pins.pv, &volume.uid))
    }

    /// S8: claim, volume, boot, VolumeAttachment and the cloud's volume must be the pinned ones.
    pub(super) fn volume_change(&self) -> Option<String> {
        let pins = &self.plan.pins;
        let say = |what: &str, was: &dyn std::fmt::Display, is: &dyn std::fmt::Display| {
            Some(pin_changed(what, was, is))
        };
        if let Some(change) = self.claim_change() {
            return Some(change);
        }
        let e = self.evidence;
        if let Some(change) = self.boot_change() {
            return Some(change);
        }
        let attachments = e.attachments.read(self.cx.now, MAX_AGE).present();
        // What lets go in the course of a run of the old side is no change.
        let may_go = self.plan.side() == Side::Old && self.state.touched();
        let pinned = pins.attachment.as_ref().filter(|_| !may_go);
        if let (Some(pinned), Some(all)) = (pinned, attachments)
            && !all.iter().any(|a| a.uid == pinned.uid)
        {
            return say("the VolumeAttachment", &pinned.name, &"gone or another");
        }
        let cloud = e.cloud_volume.read(self.cx.now, MAX_AGE).present()?;
        let free = cloud.holders.is_empty();
        let as_pinned = match self.plan.trouble {
            Trouble::Lost { .. } => free,
            Trouble::StuckRecord { .. } => free || cloud.holders == [pins.holder.clone()],
            _ => cloud.holders == [pins.holder.clone()] || (may_go && free),
        };
        if !as_pinned {
            return say("the cloud's holder", &pins.holder, &format!("{:?}", cloud.holders));
        }
        if cloud.id != pins.volume || cloud.identity != pins.identity || cloud.size_gib != pins.size_gib {
            return say("the cloud volume", &pins.identity, &cloud.identity);
        }
        None
    }

    /// S8: another boot or another machine behind the pinned Node.
    pub(super) fn boot_change(&self) -> Option<String> {
        let pins = &self.plan.pins;
        let node = self.evidence.node(&pins.node, self.cx.now)?;
        if let Trouble::Orphan { .. } = self.plan.trouble {
            return None;
        }
        if let Some(boot) = pins.boot_id.as_ref().filter(|boot| **boot != node.boot_id) {
            return Some(pin_changed(&format!("the boot of {}", pins.node), boot, &node.boot_id));
        }
        if node.instance.as_ref() == Some(&pins.holder) {
            return None;
        }
        let is = node.instance.as_ref().map_or("unknown", |i| i.as_str());
        Some(pin_changed(&format!("the instance behind {}", pins.node), &pins.holder, &is))
    }

    fn await_no_pods(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let workload = self.evidence.workload.read(self.cx.now, MAX_AGE).present();
        let pods = self.evidence.pods.read(self.cx.now, MAX_AGE).present();
        let (Some(workload), Some(pods)) = (workload, pods) else {
            return self.poll("the pods must be read");
        };
        if let Some(again) = self.user_again() {
            return again;
        }
        if let Some(pod) = workload.pods.first().or(pods.first()) {
            return self.poll(&format!("pod {} is still there", pod.name));
        }
        if let Some(begin) = self.handshake_begins() {
            return begin;
        }
        self.completed("no pod of the workload and no pod with the claim is left")
    }

    /// A pod of the claim that is seen after the handshake began voids it (a line without a Lease).
    pub(super) fn user_again(&self) -> Option<Next> {
        let pods = self.evidence.pods.read(self.cx.now, MAX_AGE).present();
        let seen = pods.is_some_and(|p| !self.no_user_left(p));
        let begun = self.state.no_user().is_some_and(|n| n.lease.is_some());
        (seen && begun)
            .then_some(Next::Record(Mark::NoUser { seen: NoUser { at: self.cx.now, lease: None } }))
    }

    /// The start of the handshake, if this leader journaled it.
    pub(super) fn no_user(&self) -> Option<&NoUser> {
        self.state.no_user_in(self.cx.term)
    }

    /// With no pod left the handshake begins; without the node's Lease it begins again once that can be read, and so it
    /// does under another leader.
    pub(super) fn handshake_begins(&self) -> Option<Next> {
        let pods = self.evidence.pods.read(self.cx.now, MAX_AGE).present()?;
        let lease = self.evidence.node(&self.plan.pins.node, self.cx.now).and_then(|n| n.lease_renewed);
        let due = match self.no_user() {
            None => true,
            Some(begun) => begun.lease.is_none() && lease.is_some(),
        };
        (self.no_user_left(pods) && due)
            .then_some(Next::Record(Mark::NoUser { seen: NoUser { at: self.cx.now, lease } }))
    }

    /// Whether no pod of the claim is, or can come, where the volume has to be let go.
    pub(super) fn no_user_left(&self, pods: &[PodFacts]) -> bool {
        pods.iter().all(|p| self.is_away(p))
    }

    /// Whether this pod is neither there nor can come there.
    pub(super) fn is_away(&self, pod: &PodFacts) -> bool {
        let node = &self.plan.pins.node;
        match (self.plan.holding(), self.plan.side()) {
            // The scheduler keeps those from it that are on no node yet.
            (Holding::ByTaint, _) => pod.node.as_ref() != Some(node),
            (_, Side::Whole) => pod.is_held_away(),
            (_, Side::Old) => pod.is_kept_from(node),
        }
    }

    /// Someone who changed the count or the stamp while the workload was at zero wins.
    /// Under a hold the count is nobody's business.
    pub(super) fn taken_over(&self) -> Option<Next> {
        if self.plan.holding() != Holding::AtZero {
            return None;
        }
        let since = match self.state.step(self.ix) {
            StepState::Issued { at, .. } if self.step.kind == StepKind::ScaleToZero => *at,
            _ => self.entered,
        };
        if self.evidence.workload.at < since {
            return Some(self.poll("the workload must be read again"));
        }
        let what = match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) => match &w.stamp {
                _ if self.own_stamp(w) && w.replicas == 0 => return None,
                _ if self.own_stamp(w) => format!("{} was scaled to {}", w.workload, w.replicas),
                _ => format!("the stamp on {} is gone or changed", w.workload),
            },
            Reading::Absent => "the workload was deleted".to_owned(),
            _ => return None,
        };
        Some(Next::Record(Mark::TurnedBack { why: TurnBack::TakenOver { what } }))
    }

    fn restore(&self) -> Next {
        match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) => match self.state.step(self.ix) {
                StepState::Issued { outcome, .. } if outcome.applied() => {
                    self.completed("the count is restored and the stamp is off")
                }
                // Also one that was refused: what the run is for is done, and only the way back is left.
                _ => put_back(self.ix, self.plan, w, self.state, self.cx).unwrap_or_else(|| {
                    if w.replicas == 0 {
                        return self
                            .taken_over()
                            .unwrap_or_else(|| self.poll("the stamp must be read again"));
                    }
                    let why =
                        format!("{} carries no stamp of ours any more: someone else restored it", w.workload);
                    Next::Record(Mark::Skipped { step: self.ix, why })
                }),
            },
            Reading::Absent => {
                Next::Record(Mark::Skipped { step: self.ix, why: "the workload was deleted".to_owned() })
            }
            _ => self.poll("the workload must be read"),
        }
    }

    pub(super) fn skipped(&self, why: &str) -> Next {
        Next::Record(Mark::Skipped { step: self.ix, why: why.to_owned() })
    }

    pub(super) fn completed(&self, seen: &str) -> Next {
        Next::Record(Mark::Completed { step: self.ix, seen: seen.to_owned() })
    }

    pub(super) fn refused(&self, why: &str) -> Next {
        Next::Record(Mark::TurnedBack { why: TurnBack::Refused { step: self.ix, why: why.to_owned() } })
    }

    pub(super) fn failed(&self, why: &str) -> Next {
        Next::Record(Mark::TurnedBack { why: TurnBack::Failed { step: self.ix, why: why.to_owned() } })
    }

    pub(super) fn poll(&self, why: &str) -> Next {
        wait(why.to_owned(), later(self.cx.now, CLOUD_POLL))
    }
}

/// S8: the sentence of a pin that does not hold any more.
pub(super) fn pin_changed(what: &str, was: &dyn std::fmt::Display, is: &dyn std::fmt::Display) -> String {
    Refusal::PinChanged { what: what.to_owned(), was: was.to_string(), is: is.to_string() }.to_string()
}

pub(super) fn wait(why: String, until: Timestamp) -> Next {
    Next::Wait { why, until }
}
