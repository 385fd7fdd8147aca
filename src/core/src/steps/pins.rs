//! What the plan pinned, and whose the volume is, looked at again at every step that may free it (safety rules S8 and S10).

use super::cx::StepCx;
use crate::diagnosis::Trouble;
use crate::plan::Refusal;
use crate::plan::{Releases, identity_refusals};
use crate::run::Next;

impl StepCx<'_> {
    /// S8: claim and PersistentVolume must be the pinned ones. One that is not there, or cannot be read, is no change.
    pub(crate) fn claim_change(&self) -> Option<String> {
        let (pins, e) = (&self.plan.pins, self.evidence);
        let claim = e.claim().ok();
        if let Some(claim) = claim.filter(|c| c.uid != pins.claim) {
            return Some(pin_changed("the claim's UID", &pins.claim, &claim.uid));
        }
        let volume = e.volume().ok().filter(|v| v.uid != pins.pv)?;
        Some(pin_changed(
            "the PersistentVolume's UID",
            &pins.pv,
            &volume.uid,
        ))
    }

    /// S8: claim, volume, boot, VolumeAttachment and the cloud's volume must be the pinned ones.
    pub(crate) fn volume_change(&self) -> Option<String> {
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
        let attachments = e.attachments().ok();
        // What lets go in the course of a run of the old side is no change.
        let may_go = self.plan.releases() == Releases::OldHolder && self.state.touched();
        let pinned = pins.attachment.as_ref().filter(|_| !may_go);
        if let (Some(pinned), Some(all)) = (pinned, attachments)
            && !all.iter().any(|a| a.uid == pinned.uid)
        {
            return say("the VolumeAttachment", &pinned.name, &"gone or another");
        }
        let cloud = e.cloud_volume().ok()?;
        let free = cloud.holders.is_empty();
        let as_pinned = match self.plan.trouble {
            Trouble::Lost { .. } => free,
            Trouble::StuckRecord { .. } => free || cloud.holders == [pins.holder.clone()],
            _ => cloud.holders == [pins.holder.clone()] || (may_go && free),
        };
        if !as_pinned {
            return say(
                "the cloud's holder",
                &pins.holder,
                &format!("{:?}", cloud.holders),
            );
        }
        if cloud.id != pins.volume
            || cloud.identity != pins.identity
            || cloud.size_gib != pins.size_gib
        {
            return say("the cloud volume", &pins.identity, &cloud.identity);
        }
        None
    }

    /// S8: another boot or another machine behind the pinned Node.
    pub(crate) fn boot_change(&self) -> Option<String> {
        let pins = &self.plan.pins;
        let node = self.evidence.node(&pins.node).ok()?;
        if let Trouble::Orphan { .. } = self.plan.trouble {
            return None;
        }
        if let Some(boot) = pins.boot_id.as_ref().filter(|boot| **boot != node.boot_id) {
            return Some(pin_changed(
                &format!("the boot of {}", pins.node),
                boot,
                &node.boot_id,
            ));
        }
        if node.instance.as_ref() == Some(&pins.holder) {
            return None;
        }
        let is = node.instance.as_ref().map_or("unknown", |i| i.as_str());
        Some(pin_changed(
            &format!("the instance behind {}", pins.node),
            &pins.holder,
            &is,
        ))
    }

    /// Turns the run back where claim, volume or holder turn out not to be what the plan takes them for: others by name, or
    /// other objects of the same name, which nobody planned or approved for. What is only not known is left to the step, which
    /// waits for it.
    pub(crate) fn identity_lost(&self) -> Option<Next> {
        if self.step.kind.spec().needs_no_mandate() {
            return None;
        }
        let found = identity_refusals(self.evidence, Some(&self.plan.pins.holder));
        let lost = found
            .iter()
            .find(|r| matches!(r, Refusal::Identity { .. }))
            .map(ToString::to_string);
        Some(self.refused(&lost.or_else(|| self.claim_change())?))
    }
}

/// S8: the sentence of a pin that does not hold any more.
pub(crate) fn pin_changed(
    what: &str,
    was: &dyn std::fmt::Display,
    is: &dyn std::fmt::Display,
) -> String {
    Refusal::PinChanged {
        what: what.to_owned(),
        was: was.to_string(),
        is: is.to_string(),
    }
    .to_string()
}
