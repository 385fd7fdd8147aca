//! Getting the volume loose: waiting for Kubernetes' own detach, the cloud's detach with a proof, and the attacher's
//! next try.

use super::forward::{BUSY, Look, wait};
use super::unwind::later;
use super::{Action, Effect, Next, StepState};
use crate::cloud::{CloudVolume, VolumeState};
use crate::diagnosis::Trouble;
use crate::evidence::{AttachmentFacts, MAX_AGE};
use crate::fact::Reading;
use crate::journal::Outcome;
use crate::plan::{Side, StepIx, general};
use crate::runbook::StepKind;
use jiff::SignedDuration;

/// A plain detach has so long before a forced one takes over, where the plan has one.
const PLAIN_FOR: SignedDuration = SignedDuration::from_secs(60);
/// A requeue that lost against another writer is tried so often: external-attacher would try by itself.
const REQUEUES: u32 = 3;

impl Look<'_> {
    pub(super) fn await_detached(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        if let Some(again) = self.user_again() {
            return again;
        }
        if self.follows_what_was_not_needed() {
            return self.skipped("nothing was done that could have freed it");
        }
        let Some(why) = self.still_held() else {
            return self.completed(match self.plan.side() {
                Side::Whole => {
                    "kubelet, the attach/detach controller, the cloud and the VolumeAttachment have all let go"
                }
                Side::Old => "the old holder's node, its VolumeAttachment and the cloud have all let go",
            });
        };
        let patience =
            self.step.patience_seconds.map(|s| later(self.entered, SignedDuration::from_secs(s.into())));
        match patience {
            Some(at) if self.cx.now >= at && self.detach_is_stuck() => self.skipped(&format!(
                "Kubernetes' own detach is stuck after {} s: {why}",
                self.step.patience_seconds.unwrap_or(0)
            )),
            _ => self.poll(&why),
        }
    }

    /// A second wait that stands behind a step that was not needed would only lose time.
    fn follows_what_was_not_needed(&self) -> bool {
        let before = self.ix.0.checked_sub(1).map(StepIx);
        let kind = before.and_then(|ix| Some(self.plan.steps.get(ix.index())?.kind));
        self.step.patience_seconds.is_some()
            && kind == Some(StepKind::DeleteAttachment)
            && before.is_some_and(|ix| matches!(self.state.step(ix), StepState::Closed { skipped: true }))
    }

    /// The VolumeAttachments that have to go.
    pub(super) fn old_records<'b>(&self, all: &'b [AttachmentFacts]) -> Vec<&'b AttachmentFacts> {
        let pins = &self.plan.pins;
        let old = |a: &&AttachmentFacts| match (self.plan.side(), &self.plan.trouble) {
            (Side::Whole, _) => true,
            (_, Trouble::Orphan { .. }) => false,
            _ => a.node == pins.node || pins.is_attachment(&a.uid),
        };
        all.iter().filter(old).collect()
    }

    /// What still holds the volume, in the order in which it lets go. What cannot be read counts as holding; a Node that
    /// is gone does not.
    pub(super) fn still_held(&self) -> Option<String> {
        let (now, pins) = (self.cx.now, &self.plan.pins);
        let (Some(attachments), Some(cloud)) = (
            self.evidence.attachments.read(now, MAX_AGE).present(),
            self.evidence.cloud_volume.read(now, MAX_AGE).present(),
        ) else {
            return Some("VolumeAttachments and the cloud must be read".to_owned());
        };
        let Some(csi) = self.evidence.csi(now) else {
            return Some("the PersistentVolume must be read".to_owned());
        };
        let node = match self.evidence.nodes.get(&pins.node).map(|f| f.read(now, MAX_AGE)) {
            Some(Reading::Present(node)) => Some(node),
            Some(Reading::Absent) => None,
            _ => return Some(format!("Node {} must be read", pins.node)),
        };
        // Where others wait, record and cloud tell: what a dead kubelet said last stays, and the attach/detach controller's
        // own list may stay behind for minutes after a failed detach.
        let whole = node.filter(|_| self.plan.side() == Side::Whole);
        if whole.is_some_and(|n| self.evidence.lists_volume(&n.volumes_in_use, csi)) {
            return Some(format!("kubelet on {} reports the volume in use", pins.node));
        }
        if whole.is_some_and(|n| self.evidence.lists_volume(&n.volumes_attached, csi)) {
            return Some(format!("{} lists the volume in volumesAttached", pins.node));
        }
        if let Some(va) = self.old_records(attachments).first() {
            let error = va.detach_error.as_ref().map(|e| format!(" ({e})")).unwrap_or_default();
            return Some(format!("VolumeAttachment {} is still there{error}", va.name));
        }
        (!self.cloud_is_free(cloud)).then(|| "the cloud still names a holder".to_owned())
    }

    /// The VolumeAttachment is going and has not gone, or has gone and the cloud still holds on. An order that deletes it
    /// itself need not wait for that.
    fn detach_is_stuck(&self) -> bool {
        let Some(all) = self.evidence.attachments.read(self.cx.now, MAX_AGE).present() else { return false };
        let deletes = self.plan.find(StepKind::DeleteAttachment).is_some_and(|d| d > self.ix);
        deletes || self.old_records(all).iter().all(|a| a.deleting_since.is_some())
    }

    /// Whether the cloud names nobody that has to let go.
    pub(super) fn cloud_is_free(&self, cloud: &CloudVolume) -> bool {
        match self.plan.side() {
            Side::Whole => cloud.holders.is_empty(),
            Side::Old => !cloud.holders.contains(&self.plan.pins.holder),
        }
    }

    pub(super) fn cloud_detach(&self) -> Next {
        self.detach_at_the_cloud(false)
    }

    pub(super) fn cloud_force(&self) -> Next {
        self.detach_at_the_cloud(true)
    }

    fn detach_at_the_cloud(&self, force: bool) -> Next {
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
        let forced_next = self.plan.find(StepKind::CloudForce).is_some_and(|f| f > self.ix);
        match self.state.step(self.ix) {
            StepState::Issued { outcome, at, .. } if outcome.applied() => {
                return if self.cloud_is_free(cloud) && !pending {
                    self.completed("the cloud names no holder and no job is pending")
                } else if forced_next && self.cx.now >= later(*at, PLAIN_FOR) {
                    self.skipped(&format!("the plain detach has not ended after {} s", PLAIN_FOR.as_secs()))
                } else {
                    self.poll("the cloud's detach is under way")
                };
            }
            StepState::Issued { outcome: Outcome::NotApplied { why, retry: false }, .. } => {
                return self.failed(why);
            }
            StepState::Issued { outcome: Outcome::NotApplied { why, .. }, at, .. }
                if self.cx.now < later(*at, BUSY.max(self.backoff())) =>
            {
                return wait(
                    format!("the cloud did not accept the detach ({why}); it is asked again"),
                    later(*at, BUSY.max(self.backoff())),
                );
            }
            _ => {}
        }
        if self.cloud_is_free(cloud) && !pending {
            return self.skipped("the cloud names no holder already");
        }
        // A plain detach that does not end is what a forced one is for; it may be the driver's.
        if pending && !force {
            let hangs =
                cloud.state == VolumeState::Detaching && self.cx.now >= later(self.entered, PLAIN_FOR);
            if forced_next && hangs {
                let why = "another's detach has been under way for more than";
                return self.skipped(&format!("{why} {} s", PLAIN_FOR.as_secs()));
            }
            return self.poll("a job of the volume is pending at the provider");
        }
        self.propose_detach(force)
    }

    /// What comes next where a detach is due: the detach, if nothing stands against it.
    pub(super) fn propose_detach(&self, force: bool) -> Next {
        let pins = &self.plan.pins;
        let Some(attachments) = self.evidence.attachments.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the VolumeAttachments must be read");
        };
        // One that is not going would be published again by external-attacher (measured).
        if let Some(va) = self.old_records(attachments).iter().find(|a| a.deleting_since.is_none()) {
            return self.poll(&format!("VolumeAttachment {} is not being deleted yet", va.name));
        }
        if let Some(other) = general(self.evidence, &self.scope(), self.cx.now).first() {
            return self.poll(&other.to_string());
        }
        if let Some(change) = self.boot_change() {
            return self.refused(&change);
        }
        if let Some(line) = self.user_again().or_else(|| self.handshake_begins()) {
            return line;
        }
        if let Some(not_held) = self.no_pod_may_come() {
            return not_held;
        }
        match self.proof() {
            Ok(proof) if force && !proof.shows_off_or_gone() => {
                self.skipped("only an instance that is proven off or gone may lose a volume by force")
            }
            Ok(proof) => Next::Act(Action {
                step: self.ix,
                intent: format!(
                    "detach volume {} from instance {} at the cloud{}",
                    pins.volume,
                    pins.holder,
                    if force { " by force" } else { "" }
                ),
                effect: if force { Effect::CloudForce { proof } } else { Effect::CloudDetach { proof } },
            }),
            Err(missing) => self.asks_again().unwrap_or_else(|| self.poll(&missing)),
        }
    }

    pub(super) fn requeue(&self) -> Next {
        if let StepState::Issued { outcome, .. } = self.state.step(self.ix) {
            return match outcome {
                o if o.applied() => self.completed("external-attacher was told to try again"),
                // external-attacher writes to it as well: another version is looked at.
                Outcome::NotApplied { retry: true, .. } if self.state.attempts(self.ix) < REQUEUES => {
                    self.touch_a_record()
                }
                // It would try by itself: never worth failing for.
                _ => self.skipped("the attacher tries again by itself"),
            };
        }
        self.touch_a_record()
    }

    /// The record that is going, or the one that waits for what is free now.
    fn touch_a_record(&self) -> Next {
        let Some(attachments) = self.evidence.attachments.read(self.cx.now, MAX_AGE).present() else {
            return self.poll("the VolumeAttachments must be read");
        };
        if let Some(doubt) = self.trouble_is_over_untouched().filter(|_| self.ix.0 == 0) {
            return doubt;
        }
        let going = |a: &&AttachmentFacts| a.deleting_since.is_some() && self.plan.pins.is_attachment(&a.uid);
        // At the beginning of an order only a failed try is worth another one.
        let failed = |a: &&AttachmentFacts| self.ix.0 > 0 || a.detach_error.is_some();
        let waits = |a: &&AttachmentFacts| self.plan.side() == Side::Old && a.attach_error.is_some();
        let found = attachments.iter().find(|a| going(a) && failed(a)).or(attachments.iter().find(waits));
        match found {
            Some(va) => Next::Act(Action {
                step: self.ix,
                intent: format!("touch VolumeAttachment {}", va.name),
                effect: Effect::Requeue {
                    name: va.name.clone(),
                    uid: va.uid.clone(),
                    resource_version: va.resource_version.clone(),
                },
            }),
            None => self.skipped("no VolumeAttachment waits for another try"),
        }
    }
}
