//! Getting the volume loose: waiting for Kubernetes' own detach, the cloud's detach with a proof, and the attacher's
//! next try.

use super::forward::{BUSY, Look, wait};
use super::observe::CLOUD_POLL;
use super::unwind::later;
use super::{Action, Effect, Next, StepState};
use crate::evidence::{AttachmentFacts, MAX_AGE};
use crate::fact::Reading;
use crate::journal::{Mark, Outcome};
use crate::plan::general;
use crate::proof::kubelet_handshake;
use jiff::SignedDuration;

impl Look<'_> {
    pub(super) fn await_detached(&self) -> Next {
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

    pub(super) fn cloud_detach(&self) -> Next {
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

    pub(super) fn requeue(&self) -> Next {
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
        match attachments.iter().find(|a| a.deleting_since.is_some() && self.plan.pins.is_attachment(&a.uid))
        {
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
}
