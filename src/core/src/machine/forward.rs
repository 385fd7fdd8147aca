//! The way forward: the current step's precondition, effect, end condition and deadline.

use super::observe::CLOUD_POLL;
use super::unwind::{RETRY, later, put_back};
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
    let Some(step) = plan.steps.get(ix.index()) else { return Next::Record(Mark::Ended { end: End::Recovered }) };
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
        let Next::Wait { why, until } = proposal else { return proposal };
        let deadline = later(self.entered, SignedDuration::from_secs(self.step.deadline_seconds.into()));
        if self.cx.now < deadline {
            return Next::Wait { why, until: until.min(deadline) };
        }
        let seconds = self.step.deadline_seconds.into();
        if self.step.kind == StepKind::Verify {
            // The workload is restored already: there is nothing to put back, only someone to tell.
            let why = format!("the workload was restored and its pod is not Ready after {seconds} s: {why}");
            return Next::Record(Mark::Ended { end: End::Failed { why } });
        }
        Next::Record(Mark::TurnedBack { why: TurnBack::Deadline { step: self.ix, seconds, waiting_for: why } })
    }

    fn scale_to_zero(&self) -> Next {
        let outcome = match self.state.step(self.ix) {
            StepState::Issued { outcome, at, .. } => Some((outcome, *at)),
            _ => None,
        };
        match outcome {
            Some((outcome, _)) if outcome.applied() => self.await_no_pods(),
            Some((Outcome::NotApplied { why, retry: false }, _)) => self.failed(why),
            Some((Outcome::NotApplied { why, .. }, at)) if self.cx.now < later(at, RETRY) => {
                wait(format!("tried again: {why}"), later(at, RETRY))
            }
            _ => self.propose_scale(),
        }
    }

    fn propose_scale(&self) -> Next {
        let pins = &self.plan.pins;
        let workload = match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) => w,
            Reading::Absent => return self.refused("the workload is gone"),
            _ => return self.poll("the workload must be read"),
        };
        let own_stamp = matches!(&workload.stamp, Some(Ok(s)) if s.recovery == *self.cx.recovery);
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
        if let Some(refusal) = refusals.first() {
            return self.poll(&refusal.to_string());
        }
        if let Some(change) = self.pin_change(workload) {
            return self.refused(&change);
        }
        // The trouble itself must still be there: kubelet may have mounted the volume a moment ago.
        let today = diagnose(self.evidence, self.cx.now).verdict;
        if !matches!(&today, Verdict::Ours { trouble: Trouble::Phantom { attachment, .. } } if *attachment == pins.attachment) {
            return self.refused(&format!("the diagnosis changed: {today}"));
        }
        Next::Act(Action {
            step: self.ix,
            intent: format!("scale {} from {} to 0, stamped with that count", workload.workload, workload.replicas),
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

    /// S8: what the plan pinned must still be so right before the first effect.
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
        let node = self.evidence.node(&pins.node, self.cx.now)?;
        if node.boot_id != pins.boot_id {
            return say(&format!("the boot of {}", pins.node), &pins.boot_id, &node.boot_id);
        }
        if node.instance.as_ref() != Some(&pins.holder) {
            return say(&format!("the instance behind {}", pins.node), &pins.holder, &"another");
        }
        let attachments = self.evidence.attachments.read(self.cx.now, MAX_AGE).present()?;
        if !attachments.iter().any(|a| a.uid == pins.attachment) {
            return say("the VolumeAttachment", &pins.attachment, &"gone or another");
        }
        let cloud = self.evidence.cloud_volume.read(self.cx.now, MAX_AGE).present()?;
        if cloud.holders != [pins.holder.clone()] {
            return say("the cloud's holder", &pins.holder, &format!("{:?}", cloud.holders));
        }
        None
    }

    fn await_no_pods(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let workload = self.evidence.workload.read(self.cx.now, MAX_AGE).present();
        let pods = self.evidence.pods.read(self.cx.now, MAX_AGE).present();
        let (Some(workload), Some(pods)) = (workload, pods) else { return self.poll("the pods must be read") };
        if let Some(pod) = workload.pods.first().or(pods.first()) {
            return self.poll(&format!("pod {} is still there", pod.name));
        }
        if self.state.no_user().is_none() {
            let lease = self.evidence.node(&self.plan.pins.node, self.cx.now).and_then(|n| n.lease_renewed);
            return Next::Record(Mark::NoUser { seen: NoUser { at: self.cx.now, lease } });
        }
        self.completed("no pod of the workload and no pod with the claim is left")
    }

    /// Someone who changed the count or the stamp while the workload was at zero wins.
    fn taken_over(&self) -> Option<Next> {
        let what = match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) => match &w.stamp {
                Some(Ok(s)) if s.recovery == *self.cx.recovery && w.replicas == 0 => return None,
                Some(Ok(s)) if s.recovery == *self.cx.recovery => format!("{} was scaled to {}", w.workload, w.replicas),
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
        let (Some(attachments), Some(cloud)) = (
            self.evidence.attachments.read(self.cx.now, MAX_AGE).present(),
            self.evidence.cloud_volume.read(self.cx.now, MAX_AGE).present(),
        ) else {
            return self.poll("VolumeAttachments and the cloud must be read");
        };
        if let Some(why) = self.still_held(attachments, !cloud.holders.is_empty()) {
            let patience = self.step.patience_seconds.map(|s| later(self.entered, SignedDuration::from_secs(s.into())));
            return match patience {
                Some(at) if self.cx.now >= at && self.detach_is_stuck(attachments) => {
                    let why = format!("Kubernetes' own detach is stuck after {} s: {why}", self.step.patience_seconds.unwrap_or(0));
                    Next::Record(Mark::Skipped { step: self.ix, why })
                }
                Some(at) if self.cx.now < at => wait(why, at.min(later(self.cx.now, CLOUD_POLL))),
                _ => self.poll(&why),
            };
        }
        self.completed("kubelet, the attach/detach controller, the cloud and the VolumeAttachment have all let go")
    }

    /// What still holds the volume, in the order in which it lets go.
    fn still_held(&self, attachments: &[AttachmentFacts], cloud: bool) -> Option<String> {
        let name = self.evidence.csi(self.cx.now).map(crate::evidence::CsiSource::unique_name)?;
        let node = self.evidence.node(&self.plan.pins.node, self.cx.now);
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
            StepState::Issued { outcome: Outcome::NotApplied { why, retry: false }, .. } => return self.failed(why),
            StepState::Issued { outcome: Outcome::NotApplied { why, .. }, at, .. } if self.cx.now < later(*at, BUSY) => {
                return wait(format!("the cloud did not accept the detach ({why}); it is asked again"), later(*at, BUSY));
            }
            _ => {}
        }
        if cloud.holders.is_empty() && !pending {
            return Next::Record(Mark::Skipped { step: self.ix, why: "the cloud names no holder already".to_owned() });
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
        let Some(no_user) = self.state.no_user() else { return self.poll("the pods' end must be seen first") };
        match kubelet_handshake(self.evidence, &pins.node, &pins.holder, no_user, self.cx.recovery, self.cx.now) {
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
                _ => Next::Record(Mark::Skipped { step: self.ix, why: "the attacher tries again by itself".to_owned() }),
            };
        }
        let Some(attachments) = self.evidence.attachments.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the VolumeAttachments must be read");
        };
        match attachments.iter().find(|a| a.deleting_since.is_some()) {
            Some(va) => Next::Act(Action {
                step: self.ix,
                intent: format!("touch VolumeAttachment {}", va.name),
                effect: Effect::Requeue {
                    name: va.name.clone(),
                    uid: va.uid.clone(),
                    resource_version: va.resource_version.clone(),
                },
            }),
            None => Next::Record(Mark::Skipped { step: self.ix, why: "no VolumeAttachment is left".to_owned() }),
        }
    }

    fn restore(&self) -> Next {
        match self.evidence.workload.read(self.cx.now, MAX_AGE) {
            Reading::Present(w) => match self.state.step(self.ix) {
                StepState::Issued { outcome, .. } if outcome.applied() => self.completed("the count is restored and the stamp is off"),
                StepState::Issued { outcome: Outcome::NotApplied { why, retry: false }, .. } => self.failed(why),
                _ => put_back(self.ix, w, self.state, self.cx).unwrap_or_else(|| {
                    let why = format!("{} carries no stamp of ours any more: someone else restored it", w.workload);
                    Next::Record(Mark::Skipped { step: self.ix, why })
                }),
            },
            Reading::Absent => Next::Record(Mark::Skipped { step: self.ix, why: "the workload was deleted".to_owned() }),
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
        let Some(pod) = pods.iter().find(|p| p.ready && p.deleting_since.is_none()) else {
            return self.poll("no pod of the claim is Ready");
        };
        let node = pod.node.as_ref().and_then(|n| self.evidence.node(n, self.cx.now));
        let instance = node.and_then(|n| n.instance.as_ref());
        let attached = attachments.iter().any(|a| Some(&a.node) == pod.node.as_ref() && a.attached && a.deleting_since.is_none());
        if !attached || instance.is_none() || cloud.holders.iter().ne(instance) {
            return self.poll("the pod is Ready; its node must be the only holder by Kubernetes and by the cloud");
        }
        let settled = later(pod.ready_since.unwrap_or(self.cx.now), SETTLED);
        if self.cx.now < settled {
            return wait(format!("pod {} is Ready", pod.name), settled);
        }
        self.completed(&format!("pod {} is Ready on {} with the volume", pod.name, pod.node.as_ref().map_or("", |n| n.as_str())))
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
