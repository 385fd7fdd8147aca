//! Class D by its causes: a VolumeAttachment that does not finish, or one that is missing where a node says attached.

use super::table::{Table, ours, stuck, wait};
use super::{StuckCause, Trouble, Verdict, WaitReason};
use crate::evidence::AttachmentFacts;
use crate::fact::{Missing, MissingFact, known};
use crate::ids::NodeName;

impl Table<'_> {
    /// A VolumeAttachment in error, of a dead or of a missing node. A node that is not known may be either,
    /// so nothing is said about the rest then.
    pub(super) fn stuck_records(&self) -> Result<Option<Verdict>, MissingFact> {
        for va in self.attachments {
            let what = format!("Node {}", va.node);
            let Some(node) = known(self.evidence.node(&va.node), &what)? else {
                return Ok(self.missing_node(&va.node));
            };
            let holder = node
                .instance
                .as_ref()
                .filter(|i| !node.ready && self.cloud.holders.contains(i));
            if let Some(instance) = holder {
                let instance = instance.clone();
                return Ok(Some(ours(Trouble::DeadNode {
                    node: va.node.clone(),
                    instance,
                })));
            }
            if va.deleting_since.is_some()
                && let Some(cause) = self.cannot_detach(va)
            {
                return Ok(Some(stuck(va, cause)));
            }
        }
        Ok(self.unrecorded().map(|node| {
            ours(Trouble::StuckRecord {
                attachment: None,
                node: node.clone(),
                cause: StuckCause::Unrecorded { node },
            })
        }))
    }

    pub(super) fn missing_node(&self, node: &NodeName) -> Option<Verdict> {
        let va = self.attachments.iter().find(|a| a.node == *node)?;
        Some(stuck(va, StuckCause::NodeMissing { node: node.clone() }))
    }

    /// A VolumeAttachment that is being attached or detached.
    pub(super) fn record_in_motion(&self, va: &AttachmentFacts) -> Option<Verdict> {
        let node = va.node.clone();
        match (va.deleting_since.is_some(), va.attached) {
            (true, _) => Some(match self.cannot_detach(va) {
                Some(cause) => stuck(va, cause),
                None => wait(WaitReason::Detaching { node }),
            }),
            (false, false) => Some(match &va.attach_error {
                Some(error) => stuck(
                    va,
                    StuckCause::AttachError {
                        node,
                        error: error.clone(),
                    },
                ),
                None => wait(WaitReason::Attaching { node }),
            }),
            (false, true) => None,
        }
    }

    /// Why a VolumeAttachment that is being deleted does not go.
    fn cannot_detach(&self, va: &AttachmentFacts) -> Option<StuckCause> {
        let node = va.node.clone();
        match &va.detach_error {
            Some(error) if about_a_secret(error) => Some(StuckCause::SecretMissing {
                node,
                error: error.clone(),
            }),
            Some(error) => Some(StuckCause::DetachError {
                node,
                error: error.clone(),
            }),
            None => self
                .driver_missing()
                .map(|driver| StuckCause::DriverMissing { node, driver }),
        }
    }

    /// The driver, if neither a CSIDriver object nor any of the nodes that were read knows it.
    fn driver_missing(&self) -> Option<String> {
        let volume = self.evidence.volume().ok()?;
        let csi = volume
            .csi
            .as_ref()
            .filter(|_| volume.attach_required.is_none())?;
        let nobody = self.evidence.nodes().all(|(_, read)| match read {
            Ok(node) => !node.csi_drivers.contains(&csi.driver),
            Err(Missing::Absent) => true,
            Err(_) => false,
        });
        nobody.then(|| csi.driver.to_string())
    }

    /// A dead node that lists the volume, without a VolumeAttachment and without a pod there.
    fn unrecorded(&self) -> Option<NodeName> {
        let csi = self.evidence.csi()?;
        let dead = self.evidence.nodes().filter_map(|(_, read)| read.ok());
        dead.filter(|n| !n.ready && self.evidence.lists_volume(&n.volumes_attached, csi))
            .find(|n| !self.attachments.iter().any(|a| a.node == n.name))
            .map(|n| n.name.clone())
    }
}

/// external-attacher reads the Secret that `csi.storage.k8s.io/controller-publish-secret-name` names before it calls the
/// driver, and shows the API server's words (`pkg/controller/csi_handler.go`, `getCredentialsFromPV`).
fn about_a_secret(error: &str) -> bool {
    error.contains("secrets \"") && error.contains("not found")
}
