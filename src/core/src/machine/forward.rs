//! The way forward: the current step's precondition, effect, end condition and deadline.

use super::observe::CLOUD_POLL;
use super::unwind::{backoff, later, put_back};
use super::{Action, Context, Effect, Next, State, StepState};
use crate::diagnosis::{Trouble, Verdict, diagnose};
use crate::evidence::{AttachmentFacts, Evidence, MAX_AGE};
use crate::fact::Reading;
use crate::journal::{End, Mark, Outcome, TurnBack};
use crate::plan::{Plan, PlannedStep, StepIx, before_scaling, general};
use crate::proof::{NoUser, kubelet_handshake};
use crate::runbook::StepKind;
use crate::stamp::Stamp;
use crate::workload::{ScalePath, WorkloadFacts};
use jiff::{SignedDuration, Timestamp};

/// How long a pod must have been Ready before the run counts as recovered.
const SETTLED: SignedDuration = SignedDuration::from_secs(3);
/// A busy cloud is asked again after so long.
const BUSY: SignedDuration = SignedDuration::from_secs(5);

/// One look at the current step.
struct Look<'a> {
    plan: &'a Plan,
    state: &'a State,
    evidence: &'a Evidence,
    cx: &'a Context<'a>,
    ix: StepIx,
    step: &'a PlannedStep,
    entered: Timestamp,
}

/// The next thing on the way forward.
pub(super) fn next(plan: &Plan, state: &State, evidence: &Evidence, cx: &Context<'_>) -> Next {
    let Some(ix) = state.current() else { return Next::Record(Mark::Ended { end: End::Recovered }) };
    let Some(step) = plan.steps.get(ix.index()) else {
        return Next::Record(Mark::Ended { end: End::Recovered });
    };
    let entered = state.entered_at().unwrap_or(cx.now);
    let look = Look { plan, state, evidence, cx, ix, step, entered };
    let proposal = match step.kind {
        StepKind::ScaleToZero => look.scale_to_zero(),
        StepKind::AwaitDetached => look.await_detached(),
        StepKind::CloudDetach => look.cloud_detach(),
        StepKind::Requeue => look.requeue(),
        StepKind::Restore => look.restore(),
        StepKind::Verify => look.verify(),
    };
    look.within_deadline(proposal)
}

impl Look<'_> {
    /// S5: a step that can only wait, past its deadline, turns the run back.
    fn within_deadline(&self, proposal: Next) -> Next {
        let deadline = later(self.entered, SignedDuration::from_secs(self.step.deadline_seconds.into()));
        let (why, until) = match proposal {
            Next::Wait { why, until } => (why, until),
            // An executor that was away starts nothing on an old decision. Restoring is never too late.
            Next::Act(Action { ref effect, .. })
                if self.cx.now >= deadline
                    && matches!(effect, Effect::ScaleToZero { .. } | Effect::CloudDetach { .. }) =>
            {
                ("an executor that starts it".to_owned(), deadline)
            }
            other => return other,
        };
        if self.cx.now < deadline {
            return Next::Wait { why, until: until.min(deadline) };
        }
        let seconds = self.step.deadline_seconds.into();
        if self.step.kind == StepKind::Verify {
            // The workload is restored already: there is nothing to put back, only someone to tell.
            let why = format!("the workload was restored and its pod is not Ready after {seconds} s: {why}");
            return Next::Record(Mark::Ended { end: End::Failed { why } });
        }
        Next::Record(Mark::TurnedBack {
            why: TurnBack::Deadline { step: self.ix, seconds, waiting_for: why },
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

    fn backoff(&self) -> SignedDuration {
        backoff(self.state.attempts(self.ix))
    }

    fn at_zero_by_us(&self, since: Timestamp) -> bool {
        let workload = self.evidence.workload.read(self.cx.now, MAX_AGE).present();
        self.evidence.workload.at >= since && workload.is_some_and(|w| w.replicas == 0 && self.own_stamp(w))
    }

    fn own_stamp(&self, w: &WorkloadFacts) -> bool {
        matches!(&w.stamp, Some(Ok(s)) if s.recovery == *self.cx.recovery && s.workload == w.workload.uid)
    }

    fn propose_scale(&self) -> Next {
        let pins = &self.plan.pins;
        let workload = match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) => w,
            Reading::Absent => return self.refused("the workload is gone"),
            _ => return self.poll("the workload must be read"),
        };
        let own_stamp = self.own_stamp(workload);
        let mut refusals = general(self.evidence, &pins.node, self.cx.now);
        // A stamp of our own is left by a crash between the two writes of the /scale path: go on from it.
        refusals.extend(
            before_scaling(self.evidence, self.cx.confirm_workload, self.cx.now)
                .into_iter()
                .filter(|r| !(own_stamp && matches!(r, crate::safety::Refusal::StampedByOther { .. }))),
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
        if let Some(doubt) = self.no_phantom_any_more() {
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

    /// A plan may be old when its first effect is due, and kubelet may have mounted the volume a moment ago: the trouble
    /// itself must still be there. What is not clear now may be clear again before the deadline.
    fn no_phantom_any_more(&self) -> Option<Next> {
        let pins = &self.plan.pins;
        match diagnose(self.evidence, self.cx.now).verdict {
            Verdict::Ours { trouble: Trouble::Phantom { at, attachment, .. } }
                if at.node == pins.node && attachment == pins.attachment =>
            {
                None
            }
            doubt @ (Verdict::Unclassified { .. } | Verdict::Wait { .. }) => {
                Some(self.poll(&doubt.to_string()))
            }
            other => Some(self.refused(&format!("the diagnosis changed: {other}"))),
        }
    }

    /// S8: what the plan pinned must still be so right before the first effect. What cannot be read is no change; the
    /// refusals say that it is missing.
    fn pin_change(&self, workload: &WorkloadFacts) -> Option<String> {
        let pins = &self.plan.pins;
        let say = |what: &str, was: &dyn std::fmt::Display, is: &dyn std::fmt::Display| {
            Some(format!("{what} changed since the plan was made (was {was}, is {is})"))
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
        let e = self.evidence;
        let claim = e.claim.read(self.cx.now, MAX_AGE).present();
        if let Some(claim) = claim.filter(|c| c.uid != pins.claim) {
            return say("the claim's UID", &pins.claim, &claim.uid);
        }
        let volume = e.volume.read(self.cx.now, MAX_AGE).present();
        if let Some(volume) = volume.filter(|v| v.uid != pins.pv) {
            return say("the PersistentVolume's UID", &pins.pv, &volume.uid);
        }
        if let Some(change) = self.boot_change() {
            return Some(change);
        }
        let attachments = e.attachments.read(self.cx.now, MAX_AGE).present();
        if attachments.is_some_and(|all| !all.iter().any(|a| a.uid == pins.attachment)) {
            return say("the VolumeAttachment", &pins.attachment, &"gone or another");
        }
        let cloud = e.cloud_volume.read(self.cx.now, MAX_AGE).present()?;
        if cloud.holders != [pins.holder.clone()] {
            return say("the cloud's holder", &pins.holder, &format!("{:?}", cloud.holders));
        }
        if cloud.id != pins.volume || cloud.identity != pins.identity || cloud.size_gib != pins.size_gib {
            return say("the cloud volume", &pins.identity, &cloud.identity);
        }
        None
    }

    /// S8: another boot or another machine behind the pinned Node.
    fn boot_change(&self) -> Option<String> {
        let pins = &self.plan.pins;
        let node = self.evidence.node(&pins.node, self.cx.now)?;
        if node.boot_id != pins.boot_id {
            let (was, is) = (&pins.boot_id, &node.boot_id);
            return Some(format!(
                "the boot of {} changed since the plan was made (was {was}, is {is})",
                pins.node
            ));
        }
        (node.instance.as_ref() != Some(&pins.holder))
            .then(|| format!("the instance behind {} is not {} any more", pins.node, pins.holder))
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
    fn user_again(&self) -> Option<Next> {
        let seen = self.evidence.pods.read(self.cx.now, MAX_AGE).present().is_some_and(|p| !p.is_empty());
        let begun = self.state.no_user().is_some_and(|n| n.lease.is_some());
        (seen && begun)
            .then_some(Next::Record(Mark::NoUser { seen: NoUser { at: self.cx.now, lease: None } }))
    }

    /// With no pod left the handshake begins; without the node's Lease it begins again once that can be read.
    fn handshake_begins(&self) -> Option<Next> {
        let pods = self.evidence.pods.read(self.cx.now, MAX_AGE).present()?;
        let lease = self.evidence.node(&self.plan.pins.node, self.cx.now).and_then(|n| n.lease_renewed);
        let due = match self.state.no_user() {
            None => true,
            Some(begun) => begun.lease.is_none() && lease.is_some(),
        };
        (pods.is_empty() && due)
            .then_some(Next::Record(Mark::NoUser { seen: NoUser { at: self.cx.now, lease } }))
    }

    /// Someone who changed the count or the stamp while the workload was at zero wins.
    fn taken_over(&self) -> Option<Next> {
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

    fn await_detached(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        if let Some(again) = self.user_again() {
            return again;
        }
        let (Some(attachments), Some(cloud)) = (
            self.evidence.attachments.read(self.cx.now, MAX_AGE).present(),
            self.evidence.cloud_volume.read(self.cx.now, MAX_AGE).present(),
        ) else {
            return self.poll("VolumeAttachments and the cloud must be read");
        };
        if let Some(why) = self.still_held(attachments, !cloud.holders.is_empty()) {
            let patience =
                self.step.patience_seconds.map(|s| later(self.entered, SignedDuration::from_secs(s.into())));
            return match patience {
                Some(at) if self.cx.now >= at && self.detach_is_stuck(attachments) => {
                    let why = format!(
                        "Kubernetes' own detach is stuck after {} s: {why}",
                        self.step.patience_seconds.unwrap_or(0)
                    );
                    Next::Record(Mark::Skipped { step: self.ix, why })
                }
                Some(at) if self.cx.now < at => wait(why, at.min(later(self.cx.now, CLOUD_POLL))),
                _ => self.poll(&why),
            };
        }
        self.completed(
            "kubelet, the attach/detach controller, the cloud and the VolumeAttachment have all let go",
        )
    }

    /// What still holds the volume, in the order in which it lets go. What cannot be read counts as holding; a Node that
    /// is gone does not.
    fn still_held(&self, attachments: &[AttachmentFacts], cloud: bool) -> Option<String> {
        let Some(csi) = self.evidence.csi(self.cx.now) else {
            return Some("the PersistentVolume must be read".to_owned());
        };
        let name = csi.unique_name();
        let node = match self.evidence.nodes.get(&self.plan.pins.node).map(|f| f.read(self.cx.now, MAX_AGE)) {
            Some(Reading::Present(node)) => Some(node),
            Some(Reading::Absent) => None,
            _ => return Some(format!("Node {} must be read", self.plan.pins.node)),
        };
        let lists = |list: &dyn Fn(&crate::evidence::NodeFacts) -> bool| node.is_some_and(list);
        if lists(&|n| n.volumes_in_use.contains(&name)) {
            return Some(format!("kubelet on {} reports the volume in use", self.plan.pins.node));
        }
        if lists(&|n| n.volumes_attached.contains(&name)) {
            return Some(format!("{} lists the volume in volumesAttached", self.plan.pins.node));
        }
        if let Some(va) = attachments.first() {
            let error = va.detach_error.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
            return Some(format!("VolumeAttachment {} is still there{error}", va.name));
        }
        cloud.then(|| "the cloud still names a holder".to_owned())
    }

    /// The VolumeAttachment is going and has not gone, or has gone and the cloud still holds on.
    fn detach_is_stuck(&self, attachments: &[AttachmentFacts]) -> bool {
        attachments.iter().all(|a| a.deleting_since.is_some())
    }

    fn cloud_detach(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let Some(cloud) = self.evidence.cloud_volume.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the cloud must be read");
        };
        let pending = match self.evidence.jobs.read(self.cx.now, MAX_AGE).present() {
            Some(jobs) => jobs.iter().any(crate::cloud::CloudJob::is_pending),
            None => return self.poll("the provider's job history must be read"),
        };
        match self.state.step(self.ix) {
            StepState::Issued { outcome, .. } if outcome.applied() => {
                return if cloud.holders.is_empty() && !pending {
                    self.completed("the cloud names no holder and no job is pending")
                } else {
                    self.poll("the cloud's detach is under way")
                };
            }
            StepState::Issued { outcome: Outcome::NotApplied { why, retry: false }, .. } => {
                return self.failed(why);
            }
            StepState::Issued { outcome: Outcome::NotApplied { why, .. }, at, .. }
                if self.cx.now < later(*at, BUSY) =>
            {
                return wait(
                    format!("the cloud did not accept the detach ({why}); it is asked again"),
                    later(*at, BUSY),
                );
            }
            _ => {}
        }
        if cloud.holders.is_empty() && !pending {
            return Next::Record(Mark::Skipped {
                step: self.ix,
                why: "the cloud names no holder already".to_owned(),
            });
        }
        if pending {
            return self.poll("a job of the volume is pending at the provider");
        }
        self.propose_detach()
    }

    fn propose_detach(&self) -> Next {
        let pins = &self.plan.pins;
        let Some(attachments) = self.evidence.attachments.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the VolumeAttachments must be read");
        };
        // One that is not going would be published again by external-attacher (measured).
        if let Some(va) = attachments.iter().find(|a| a.deleting_since.is_none()) {
            return self.poll(&format!("VolumeAttachment {} is not being deleted yet", va.name));
        }
        if let Some(other) = general(self.evidence, &pins.node, self.cx.now).first() {
            return self.poll(&other.to_string());
        }
        if let Some(change) = self.boot_change() {
            return self.refused(&change);
        }
        if let Some(line) = self.user_again().or_else(|| self.handshake_begins()) {
            return line;
        }
        let Some(no_user) = self.state.no_user() else {
            return self.poll("the pods' end must be seen first");
        };
        match kubelet_handshake(
            self.evidence,
            &pins.node,
            &pins.holder,
            no_user,
            self.cx.recovery,
            self.cx.now,
        ) {
            Ok(proof) if *proof.volume() == pins.volume => Next::Act(Action {
                step: self.ix,
                intent: format!("detach volume {} from instance {} at the cloud", pins.volume, pins.holder),
                effect: Effect::CloudDetach { proof },
            }),
            Ok(proof) => self.refused(&format!("the proof is for volume {}", proof.volume())),
            Err(missing) => self.poll(&missing.to_string()),
        }
    }

    fn requeue(&self) -> Next {
        if let StepState::Issued { outcome, .. } = self.state.step(self.ix) {
            return match outcome {
                o if o.applied() => self.completed("external-attacher was told to try again"),
                // It would try by itself: never worth failing for.
                _ => Next::Record(Mark::Skipped {
                    step: self.ix,
                    why: "the attacher tries again by itself".to_owned(),
                }),
            };
        }
        let Some(attachments) = self.evidence.attachments.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the VolumeAttachments must be read");
        };
        match attachments.iter().find(|a| a.deleting_since.is_some() && a.uid == self.plan.pins.attachment) {
            Some(va) => Next::Act(Action {
                step: self.ix,
                intent: format!("touch VolumeAttachment {}", va.name),
                effect: Effect::Requeue {
                    name: va.name.clone(),
                    uid: va.uid.clone(),
                    resource_version: va.resource_version.clone(),
                },
            }),
            None => {
                Next::Record(Mark::Skipped { step: self.ix, why: "no VolumeAttachment is left".to_owned() })
            }
        }
    }

    fn restore(&self) -> Next {
        match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) => match self.state.step(self.ix) {
                StepState::Issued { outcome, .. } if outcome.applied() => {
                    self.completed("the count is restored and the stamp is off")
                }
                StepState::Issued { outcome: Outcome::NotApplied { why, retry: false }, .. } => {
                    self.failed(why)
                }
                _ => put_back(self.ix, w, self.state, self.cx).unwrap_or_else(|| {
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

    fn verify(&self) -> Next {
        let (Some(pods), Some(cloud), Some(attachments)) = (
            self.evidence.pods.read(self.cx.now, MAX_AGE).present(),
            self.evidence.cloud_volume.read(self.cx.now, MAX_AGE).present(),
            self.evidence.attachments.read(self.cx.now, MAX_AGE).present(),
        ) else {
            return self.poll("pods, cloud and VolumeAttachments must be read");
        };
        let pins = &self.plan.pins;
        if cloud.identity != pins.identity || cloud.size_gib != pins.size_gib {
            return self.failed("the cloud volume's identity or size is not the pinned one");
        }
        // A pod of before the restore may be Ready on a dead mount.
        let new = |uid: &crate::ids::Uid| !pins.pods.iter().any(|(_, old)| old == uid);
        let Some(pod) = pods.iter().find(|p| p.ready && p.deleting_since.is_none() && new(&p.uid)) else {
            return self.poll("no pod of the claim is Ready");
        };
        let node = pod.node.as_ref().and_then(|n| self.evidence.node(n, self.cx.now));
        let instance = node.and_then(|n| n.instance.as_ref());
        let attached = attachments
            .iter()
            .any(|a| Some(&a.node) == pod.node.as_ref() && a.attached && a.deleting_since.is_none());
        if !attached || instance.is_none() || cloud.holders.iter().ne(instance) {
            return self
                .poll("the pod is Ready; its node must be the only holder by Kubernetes and by the cloud");
        }
        let settled = later(pod.ready_since.unwrap_or(self.cx.now), SETTLED);
        if self.cx.now < settled {
            return wait(format!("pod {} is Ready", pod.name), settled);
        }
        self.completed(&format!(
            "pod {} is Ready on {} with the volume",
            pod.name,
            pod.node.as_ref().map_or("", |n| n.as_str())
        ))
    }

    fn completed(&self, seen: &str) -> Next {
        Next::Record(Mark::Completed { step: self.ix, seen: seen.to_owned() })
    }

    fn refused(&self, why: &str) -> Next {
        Next::Record(Mark::TurnedBack { why: TurnBack::Refused { step: self.ix, why: why.to_owned() } })
    }

    fn failed(&self, why: &str) -> Next {
        Next::Record(Mark::TurnedBack { why: TurnBack::Failed { step: self.ix, why: why.to_owned() } })
    }

    fn poll(&self, why: &str) -> Next {
        wait(why.to_owned(), later(self.cx.now, CLOUD_POLL))
    }
}

fn wait(why: String, until: Timestamp) -> Next {
    Next::Wait { why, until }
}
