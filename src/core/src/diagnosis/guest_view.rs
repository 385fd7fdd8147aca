//! What the guest shows of one volume, from the answer to a challenge where there is one.

use crate::evidence::EvidenceAt;
use crate::fact::Missing;
use crate::guest::ScanResult;
use crate::ids::NodeName;

/// What the guest shows of the volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestView {
    /// No device, and no mount of it.
    NoDevice {
        /// By an answer to this recovery's challenge.
        confirmed: bool,
    },
    /// No device, and mounts of it remain.
    DeadMount {
        /// By an answer to this recovery's challenge.
        confirmed: bool,
    },
    /// The device is there.
    Device,
    /// Not known.
    Unknown {
        /// Why.
        why: String,
    },
}

/// Judges the guest's view of the volume on one node. An answer to the open challenge beats the unasked report; an
/// answer from another boot than the Node's, or about another device, is none.
pub fn guest_view(evidence: EvidenceAt<'_>, node: &NodeName) -> GuestView {
    if let Some(why) = renamed(evidence, node) {
        return GuestView::Unknown { why };
    }
    if let Some(answer) = evidence.answers.get(node) {
        let same_device = evidence
            .cloud_volume
            .shown()
            .is_some_and(|c| c.identity == answer.identity);
        let same_boot = evidence
            .node(node)
            .is_ok_and(|n| n.boot_id == answer.boot_id);
        let ours = evidence
            .asked
            .as_ref()
            .is_some_and(|(r, e)| *r == answer.recovery && *e == answer.epoch);
        if same_boot && same_device && ours {
            // An agent writes its report with each answer and on every change: what it lists may have come since.
            let inventory = evidence.guest(node).ok();
            let came =
                inventory.is_some_and(|g| g.devices.iter().any(|d| d.identity == answer.identity));
            return match &answer.seen {
                ScanResult::NoDevice | ScanResult::DeadMount { .. } if came => GuestView::Device,
                ScanResult::NoDevice => GuestView::NoDevice { confirmed: true },
                ScanResult::DeadMount { .. } => GuestView::DeadMount { confirmed: true },
                ScanResult::InUse { .. } | ScanResult::Idle | ScanResult::Clean => {
                    GuestView::Device
                }
                ScanResult::Unreadable { items } => GuestView::Unknown {
                    why: format!("unreadable: {}", items.join(", ")),
                },
            };
        }
    }
    let guest = match evidence.guest(node) {
        Ok(guest) => guest,
        Err(Missing::Absent) => {
            return GuestView::Unknown {
                why: format!("no agent has reported from {node}"),
            };
        }
        Err(Missing::TooOld { age_secs }) => {
            return GuestView::Unknown {
                why: format!("the report is {age_secs} s old"),
            };
        }
        Err(missing) => {
            return GuestView::Unknown {
                why: missing.to_string(),
            };
        }
    };
    let (Some(cloud), Some(csi)) = (evidence.cloud_volume.shown(), evidence.csi()) else {
        return GuestView::Unknown {
            why: "the device's identity is not known without the cloud's answer".to_owned(),
        };
    };
    if guest.devices.iter().any(|d| d.identity == cloud.identity) {
        return GuestView::Device;
    }
    if !guest.unreadable.is_empty() {
        return GuestView::Unknown {
            why: format!("unreadable on {node}: {}", guest.unreadable.join(", ")),
        };
    }
    let mounts: Vec<_> = guest
        .csi_volumes
        .iter()
        .filter(|v| evidence.is_volume(&v.driver, &v.handle, csi))
        .flat_map(|v| &v.mounts)
        .collect();
    if mounts.is_empty() {
        GuestView::NoDevice { confirmed: false }
    } else if mounts.iter().all(|m| m.dead) {
        GuestView::DeadMount { confirmed: false }
    } else {
        // A live mount of the volume on a device that is called otherwise: the device is there.
        GuestView::Device
    }
}

/// A volume that was renamed in the cloud keeps its old name in the guest until it is attached again, and the CSI
/// handle keeps it for good (Linode: `<id>-<label>`). Looking for the new name would find no device that is there.
fn renamed(evidence: EvidenceAt<'_>, node: &NodeName) -> Option<String> {
    let (cloud, csi) = (evidence.cloud_volume.shown()?, evidence.csi()?);
    let guest = evidence.guest(node).ok()?;
    let named =
        |serial: &str| !serial.is_empty() && csi.handle.as_str().ends_with(&format!("-{serial}"));
    if guest.devices.iter().any(|d| d.identity == cloud.identity) || named(&cloud.identity.serial) {
        return None;
    }
    // The same device mounted is no question: the mount tells.
    let device = guest
        .devices
        .iter()
        .find(|d| named(&d.identity.serial) && d.users.mounts.is_empty())?;
    Some(format!(
        "it has device {}, which volume handle {} names, and the cloud calls the volume {}; it seems to have been renamed",
        device.identity, csi.handle, cloud.identity
    ))
}
