//! AwaitDetached: wait until kubelet, the attach/detach controller, the cloud and the VolumeAttachment have let go.

use super::StepKind;
use super::cx::StepCx;
use super::spec::{Describe, EffectClass, Lost, Role, StepSpec, Words};
use crate::ids::StepIx;
use crate::loss::PodsGo;
use crate::plan::Releases;
use crate::run::pace::later;
use crate::run::{Next, StepState};
use jiff::SignedDuration;

pub(super) const SPEC: StepSpec = StepSpec {
    kind: StepKind::AwaitDetached,
    title: "wait for the detach",
    colour: "await",
    role: Role::Waits,
    effect_class: EffectClass::Repeatable,
    lost: Lost::NoEffect,
    frees: false,
    pods_go: PodsGo::None,
    repeats: true,
    undone_by: None,
    starts_work: false,
    goes_on: false,
    reaches_node: false,
    locks_node: false,
    patient: true,
    available_if: |_| true,
    describe,
    next: |cx| cx.await_detached(),
};

fn describe(d: &Describe<'_>) -> Words {
    let command = format!(
        "kubectl get volumeattachment {} --watch",
        d.pins.attachment_name()
    );
    if d.closes_node {
        return Words {
            what: format!(
                "wait until {} does not hold volume {} any more",
                d.pins.node, d.pins.volume
            ),
            precondition: "no pod of the claim is on the node or can come to it",
            command,
            risk: "the CSI driver may be unable to detach; then the run unwinds",
            observed_by: "the VolumeAttachment and the cloud",
        };
    }
    Words {
        what: format!("wait until volume {} is detached", d.pins.volume),
        precondition: "no pod of the claim can be on a node",
        command,
        risk: "the CSI driver may be unable to detach; then the next step takes over, or the run unwinds",
        observed_by: "volumesInUse, volumesAttached, the cloud and the VolumeAttachment, all four",
    }
}

impl StepCx<'_> {
    pub(crate) fn await_detached(&self) -> Next {
        if let Some(taken) = self.taken_over() {
            return taken;
        }
        if let Some(again) = self.user_again() {
            return again;
        }
        if self.follows_what_was_not_needed() {
            return self.skipped("this run did nothing that could have detached the volume");
        }
        let Some(why) = self.still_held() else {
            return self.completed(match self.plan.releases() {
                Releases::Everyone => {
                    "kubelet, the attach/detach controller, the cloud and the VolumeAttachment all show the volume as detached"
                }
                Releases::OldHolder => "the old holder's node, its VolumeAttachment and the cloud all show the volume as detached",
            });
        };
        let patience = self
            .step
            .patience_seconds
            .map(|s| later(self.entered, SignedDuration::from_secs(s.into())));
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
            && before.is_some_and(|ix| {
                matches!(self.state.step(ix), StepState::Closed { skipped: true })
            })
    }

    /// The VolumeAttachment is going and has not gone, or has gone and the cloud still holds on. An order that deletes it
    /// itself need not wait for that.
    fn detach_is_stuck(&self) -> bool {
        let Ok(all) = self.evidence.attachments() else {
            return false;
        };
        let deletes = self
            .plan
            .find(StepKind::DeleteAttachment)
            .is_some_and(|d| d > self.ix);
        deletes
            || self
                .old_records(all)
                .iter()
                .all(|a| a.deleting_since.is_some())
    }
}
