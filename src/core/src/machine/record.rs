//! The record itself: a VolumeAttachment that Kubernetes does not delete, and the question that allows it.

use super::forward::{Look, wait};
use super::unwind::later;
use super::{Action, Effect, Next};
use crate::diagnosis::Trouble;
use crate::evidence::MAX_AGE;
use crate::plan::StepIx;
use crate::proof::ATTEMPT;
use crate::runbook::StepKind;
use jiff::SignedDuration;

/// An answer that is not clean is asked for again after so long.
const ASK_AGAIN: SignedDuration = SignedDuration::from_secs(30);
/// Maximum number of questions to an agent in one run: the journal has to fit into one object.
const MOST_QUESTIONS: u32 = 60;

impl Look<'_> {
    /// For a kubelet that keeps the volume in `volumesInUse` though no pod is left: the attach/detach controller waits for
    /// it for ever (measured). And for a living machine that has the volume without a VolumeAttachment.
    pub(super) fn challenge(&self) -> Next {
        let pins = &self.plan.pins;
        if self.still_held().is_none() {
            return self.skipped("the volume is free already");
        }
        let orphan = matches!(self.plan.trouble, Trouble::Orphan { .. });
        if orphan && self.living_holder().is_none() {
            return self.skipped("no living Node speaks for the holder");
        }
        let (Some(csi), Some(node)) =
            (self.evidence.csi(self.cx.now), self.evidence.node(&pins.node, self.cx.now))
        else {
            return self.poll("the PersistentVolume and the Node must be read");
        };
        if !orphan && !self.evidence.lists_volume(&node.volumes_in_use, csi) {
            return self.skipped("kubelet does not report the volume in use");
        }
        if let Some(line) = self.user_again().or_else(|| self.handshake_begins()) {
            return line;
        }
        if let Some(not_held) = self.no_pod_may_come() {
            return not_held;
        }
        let Some(no_user) = self.no_user().filter(|n| n.lease.is_some()) else {
            return self.poll("the pods' end must be seen first");
        };
        let from = later(no_user.at, ATTEMPT);
        if !orphan && self.cx.now < from {
            return wait("a mount attempt may still be under way".to_owned(), from);
        }
        let lacks = match self.proof() {
            Ok(_) => return self.completed("the agent's answer shows that nothing uses the volume"),
            Err(lacks) => lacks,
        };
        if self.asked_just_now() {
            return self.poll(&lacks);
        }
        self.question(self.ix)
    }

    /// Whether this leader asked so recently that the answer is still waited for.
    fn asked_just_now(&self) -> bool {
        let asked = self.state.challenged_in(self.cx.term, self.plan);
        asked.is_some_and(|at| self.cx.now < later(at, ASK_AGAIN))
    }

    fn question(&self, step: StepIx) -> Next {
        let node = self.plan.pins.node.clone();
        Next::Act(Action {
            step,
            intent: format!("ask the agent on {node} to look at the machine anew"),
            effect: Effect::Challenge { node },
        })
    }

    /// Where only an agent's answer can tell, and the one that is there has become too old, it is asked for again.
    pub(super) fn asks_again(&self) -> Option<Next> {
        let question = self.plan.find(StepKind::Challenge).filter(|ix| *ix < self.ix)?;
        let csi = self.evidence.csi(self.cx.now)?;
        let node = self.evidence.node(&self.plan.pins.node, self.cx.now)?;
        let no_user = self.no_user().filter(|n| n.lease.is_some())?;
        let orphan = matches!(self.plan.trouble, Trouble::Orphan { .. }) && self.living_holder().is_some();
        let from = later(no_user.at, ATTEMPT);
        if !(orphan || self.evidence.lists_volume(&node.volumes_in_use, csi))
            || self.state.attempts(question) >= MOST_QUESTIONS
            || self.asked_just_now()
        {
            return None;
        }
        if !orphan && self.cx.now < from {
            return Some(wait("a mount attempt may still be under way".to_owned(), from));
        }
        Some(self.question(question))
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
            Err(lacks) => self.asks_again().unwrap_or_else(|| self.poll(&format!("no proof yet: {lacks}"))),
        }
    }
}
