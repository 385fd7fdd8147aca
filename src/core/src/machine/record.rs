//! The record itself: a VolumeAttachment that Kubernetes does not delete, and the question that allows it.

use super::forward::{Look, wait};
use super::unwind::later;
use super::{Action, Effect, Next, StepState};
use crate::evidence::MAX_AGE;
use crate::proof::ATTEMPT;
use jiff::SignedDuration;

/// An answer that is not clean is asked for again after so long.
const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(30);

impl Look<'_> {
    /// Only for a kubelet that keeps the volume in `volumesInUse` though no pod is left: the attach/detach controller waits
    /// for it for ever (measured).
    pub(super) fn challenge(&self) -> Next {
        let pins = &self.plan.pins;
        if self.still_held().is_none() {
            return self.skipped("the volume is free already");
        }
        let (Some(csi), Some(node)) =
            (self.evidence.csi(self.cx.now), self.evidence.node(&pins.node, self.cx.now))
        else {
            return self.poll("the PersistentVolume and the Node must be read");
        };
        if !node.volumes_in_use.contains(&csi.unique_name()) {
            return self.skipped("kubelet does not report the volume in use");
        }
        if let Some(line) = self.user_again().or_else(|| self.handshake_begins()) {
            return line;
        }
        if let Some(not_held) = self.no_pod_may_come() {
            return not_held;
        }
        let Some(no_user) = self.state.no_user().filter(|n| n.lease.is_some()) else {
            return self.poll("the pods' end must be seen first");
        };
        let from = later(no_user.at, ATTEMPT);
        if self.cx.now < from {
            return wait("a mount attempt may still be under way".to_owned(), from);
        }
        let lacks = match self.proof() {
            Ok(_) => return self.completed("the agent's answer shows that nothing uses the volume"),
            Err(lacks) => lacks,
        };
        if let StepState::Issued { at, .. } = self.state.step(self.ix)
            && self.cx.now < later(*at, ASK_AGAIN)
        {
            return self.poll(&lacks);
        }
        Next::Act(Action {
            step: self.ix,
            intent: format!("ask the agent on {} to look at the machine anew", pins.node),
            effect: Effect::Challenge { node: pins.node.clone() },
        })
    }

    pub(super) fn delete_attachment(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let (Some(attachments), Some(cloud)) = (
            self.evidence.attachments.read(self.cx.now, MAX_AGE).present(),
            self.evidence.cloud_volume.read(self.cx.now, MAX_AGE).present(),
        ) else {
            return self.poll("VolumeAttachments and the cloud must be read");
        };
        let stays = |a: &&&crate::evidence::AttachmentFacts| a.deleting_since.is_none();
        let old = self.old_records(attachments);
        let Some(va) = old.iter().find(stays) else {
            return if self.state.attempts(self.ix) > 0 {
                self.completed("the VolumeAttachment is being deleted, or gone")
            } else {
                self.skipped("no VolumeAttachment is left that nobody deletes")
            };
        };
        if !self.plan.pins.is_attachment(&va.uid) {
            return self.refused(&format!("VolumeAttachment {} is not the pinned one", va.name));
        }
        if self.cloud_is_free(cloud) {
            return self.skipped("the cloud names no holder: Kubernetes clears the record by itself");
        }
        if let Some(other) = self.was_refused() {
            return other;
        }
        if let Some(line) = self.user_again().or_else(|| self.handshake_begins()) {
            return line;
        }
        if let Some(not_held) = self.no_pod_may_come() {
            return not_held;
        }
        match self.proof() {
            Ok(proof) => Next::Act(Action {
                step: self.ix,
                intent: format!("delete VolumeAttachment {} (UID {})", va.name, va.uid),
                effect: Effect::DeleteAttachment { proof, name: va.name.clone(), uid: va.uid.clone() },
            }),
            Err(lacks) => self.poll(&format!("no proof yet: {lacks}")),
        }
    }
}
