//! What still holds the volume.

use super::cx::StepCx;
use crate::cloud::CloudVolume;
use crate::diagnosis::Trouble;
use crate::evidence::AttachmentFacts;
use crate::fact::Missing;
use crate::plan::Releases;

impl StepCx<'_> {
    /// The VolumeAttachments that have to go.
    pub(crate) fn old_records<'b>(&self, all: &'b [AttachmentFacts]) -> Vec<&'b AttachmentFacts> {
        let pins = &self.plan.pins;
        let old = |a: &&AttachmentFacts| match (self.plan.releases(), &self.plan.trouble) {
            (Releases::Everyone, _) => true,
            (_, Trouble::Orphan { .. }) => false,
            _ => a.node == pins.node || pins.is_attachment(&a.uid),
        };
        all.iter().filter(old).collect()
    }

    /// What still holds the volume, in the order in which it lets go. What cannot be read counts as holding; a Node that
    /// is gone does not.
    pub(crate) fn still_held(&self) -> Option<String> {
        let pins = &self.plan.pins;
        let (Some(attachments), Some(cloud)) = (
            self.evidence.attachments().ok(),
            self.evidence.cloud_volume().ok(),
        ) else {
            return Some("VolumeAttachments and the cloud must be read".to_owned());
        };
        let Some(csi) = self.evidence.csi() else {
            return Some("the PersistentVolume must be read".to_owned());
        };
        let node = match self.evidence.node(&pins.node) {
            Ok(node) => Some(node),
            Err(Missing::Absent) => None,
            _ => return Some(format!("Node {} must be read", pins.node)),
        };
        // Where others wait, record and cloud tell: what a dead kubelet said last stays, and the attach/detach controller's
        // own list may stay behind for minutes after a failed detach.
        let whole = node.filter(|_| self.plan.releases() == Releases::Everyone);
        if whole.is_some_and(|n| self.evidence.lists_volume(&n.volumes_in_use, csi)) {
            return Some(format!(
                "kubelet on {} reports the volume in use",
                pins.node
            ));
        }
        if whole.is_some_and(|n| self.evidence.lists_volume(&n.volumes_attached, csi)) {
            return Some(format!("{} lists the volume in volumesAttached", pins.node));
        }
        if let Some(va) = self.old_records(attachments).first() {
            let error = va
                .detach_error
                .as_ref()
                .map(|e| format!(" ({e})"))
                .unwrap_or_default();
            return Some(format!(
                "VolumeAttachment {} is still there{error}",
                va.name
            ));
        }
        (!self.cloud_is_free(cloud)).then(|| "the cloud still names a holder".to_owned())
    }

    /// Whether the cloud names nobody that has to let go.
    pub(crate) fn cloud_is_free(&self, cloud: &CloudVolume) -> bool {
        match self.plan.releases() {
            Releases::Everyone => cloud.holders.is_empty(),
            Releases::OldHolder => !cloud.holders.contains(&self.plan.pins.holder),
        }
    }
}
