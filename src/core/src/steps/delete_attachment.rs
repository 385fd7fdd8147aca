//! DeleteAttachment: delete a VolumeAttachment that Kubernetes does not delete, by its UID, with a proof.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::evidence::AttachmentFacts;
use crate::loss::PodsGo;
use crate::run::{Action, Effect, Next};

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::DeleteAttachment,
    title: "delete the attachment",
    colour: "nudge",
    role: Role::Acts,
    effect_class: EffectClass::Conditional,
    lost: Lost::MayBeIssuedAgain,
    frees: true,
    pods_go: PodsGo::None,
    repeats: false,
    undone_by: None,
    starts_work: true,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.delete_attachment(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "if VolumeAttachment {} still exists and is not being deleted: delete it, by its UID",
            d.pins.attachment_name()
        ),
        precondition: "a proof that its holder cannot write; the hold is in force",
        command: format!(
            "kubectl delete volumeattachment {} --wait=false",
            d.pins.attachment_name()
        ),
        risk: "the CSI driver may be unable to detach; then the next step takes over",
        observed_by: "it has a deletionTimestamp or is gone",
    }
}

impl StepCx<'_> {
    pub(crate) fn delete_attachment(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        let (Some(attachments), Some(cloud)) = (
            self.evidence.attachments().ok(),
            self.evidence.cloud_volume().ok(),
        ) else {
            return self.poll("VolumeAttachments and the cloud must be read");
        };
        let stays = |a: &&&AttachmentFacts| a.deleting_since.is_none();
        let old = self.old_records(attachments);
        let Some(va) = old.iter().find(stays) else {
            return if self.state.tries(self.ix) > 0 {
                self.completed("the VolumeAttachment is being deleted, or gone")
            } else {
                self.skipped("every VolumeAttachment of the volume is gone or is being deleted")
            };
        };
        if !self.plan.pins.is_attachment(&va.uid) {
            return self.refused(&format!(
                "VolumeAttachment {} is not the pinned one",
                va.name
            ));
        }
        if self.cloud_is_free(cloud) {
            return self
                .skipped("the cloud names no holder: Kubernetes clears the record by itself");
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
                effect: Effect::DeleteAttachment {
                    proof,
                    name: va.name.clone(),
                    uid: va.uid.clone(),
                },
            }),
            Err(lacks) => self
                .asks_again()
                .unwrap_or_else(|| self.poll(&format!("no proof yet: {lacks}"))),
        }
    }
}
