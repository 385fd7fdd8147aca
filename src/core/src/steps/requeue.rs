//! Requeue: touch a VolumeAttachment whose attach or detach failed, so that external-attacher retries at once.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::evidence::AttachmentFacts;
use crate::journal::Outcome;
use crate::loss::PodsGo;
use crate::plan::Releases;
use crate::run::pace::RETRY;
use crate::run::{Action, Effect, Next, StepState};

/// A requeue that lost against another writer is tried so often: external-attacher would try by itself.
const REQUEUES: u32 = 3;

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::Requeue,
    title: "nudge the attacher",
    colour: "nudge",
    role: Role::Acts,
    effect_class: EffectClass::Conditional,
    lost: Lost::MayBeIssuedAgain,
    frees: false,
    pods_go: PodsGo::None,
    repeats: true,
    undone_by: None,
    starts_work: false,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: false,
    available_if: |_| true,
    describe,
    next: |cx| cx.requeue(),
};

fn describe(d: &Describe<'_>) -> Words {
    Words {
        what: format!(
            "if VolumeAttachment {} is still there: touch it, so that external-attacher tries again now",
            d.pins.attachment_name()
        ),
        precondition: "the cloud names no holder",
        command: format!(
            "kubectl annotate volumeattachment {} reattach.dev/requeued=$(date +%s) --overwrite",
            d.pins.attachment_name()
        ),
        risk: "none: the attacher would try by itself within 5 minutes",
        observed_by: "the write is accepted",
    }
}

impl StepCx<'_> {
    pub(crate) fn requeue(&self) -> Next {
        if let StepState::Issued { outcome, .. } = self.state.step(self.ix) {
            return match outcome {
                o if o.applied() => self.completed("external-attacher was told to try again"),
                // external-attacher writes to it as well: another version is looked at.
                Outcome::NotApplied { retry: true, .. } if self.state.tries(self.ix) < REQUEUES => {
                    self.touch_a_record()
                }
                Outcome::Withheld { .. } => self
                    .before_retry(self.ix, "the touch", RETRY)
                    .unwrap_or_else(|| self.touch_a_record()),
                // It would try by itself: never worth failing for.
                _ => self.skipped("the attacher tries again by itself"),
            };
        }
        self.touch_a_record()
    }

    /// The record that is going, or the one that waits for what is free now.
    fn touch_a_record(&self) -> Next {
        let Ok(attachments) = self.evidence.attachments() else {
            return self.poll("the VolumeAttachments must be read");
        };
        if let Some(doubt) = self.trouble_is_over_untouched().filter(|_| self.ix.0 == 0) {
            return doubt;
        }
        let going = |a: &&AttachmentFacts| {
            a.deleting_since.is_some() && self.plan.pins.is_attachment(&a.uid)
        };
        // At the beginning of an order only a failed try is worth another one.
        let failed = |a: &&AttachmentFacts| self.ix.0 > 0 || a.detach_error.is_some();
        let waits = |a: &&AttachmentFacts| {
            self.plan.releases() == Releases::OldHolder && a.attach_error.is_some()
        };
        let found = attachments
            .iter()
            .find(|a| going(a) && failed(a))
            .or(attachments.iter().find(waits));
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
