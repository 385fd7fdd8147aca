//! A device under another name: what an agent's "no device" may have missed.
//!
//! An agent looks for the name that the cloud has for the volume now. Where names can be changed (Linode: the label), the
//! guest keeps the old name until the volume is attached again.

use crate::cloud::CloudVolume;
use crate::evidence::{CsiSource, EvidenceAt, NodeFacts};
use crate::guest::{GuestDevice, GuestInventory};

/// Whether this CSI handle names the device: Linode's `<id>-<label>`, whose label the device has for a serial, or EBS'
/// `vol-0123`, which the device has without the dash.
fn names(handle: &str, device: &GuestDevice) -> bool {
    let serial = device.identity.serial.as_str();
    !serial.is_empty()
        && (handle.ends_with(&format!("-{serial}")) || handle.replacen('-', "", 1) == serial)
}

/// A device of the volume's size that the node's other volumes do not account for, or one that the volume's own handle
/// names: it may be the volume under an earlier name.
pub(super) fn under_another_name<'a>(
    evidence: EvidenceAt<'_>,
    guest: &'a GuestInventory,
    node: &NodeFacts,
    csi: &CsiSource,
    cloud: &CloudVolume,
) -> Option<&'a GuestDevice> {
    let own = |name: &String| evidence.lists_volume(std::slice::from_ref(name), csi);
    let listed = node
        .volumes_attached
        .iter()
        .chain(&node.volumes_in_use)
        .filter(|name| !own(name));
    let handles: Vec<&str> = listed
        .filter_map(|name| name.split_once('^'))
        .map(|(_, handle)| handle)
        .collect();
    let others = |device: &GuestDevice| {
        let mut known = guest
            .csi_volumes
            .iter()
            .filter(|v| !evidence.is_volume(&v.driver, &v.handle, csi));
        handles.iter().any(|handle| names(handle, device))
            || known.any(|v| {
                names(v.handle.as_str(), device)
                    || v.mounts.iter().any(|m| !m.dead && m.dev == device.dev)
            })
    };
    let of_its_size =
        |device: &GuestDevice| device.size_bytes == cloud.size_gib.saturating_mul(1 << 30);
    // The disk that the machine booted from.
    let is_root = |device: &GuestDevice| device.users.mounts.iter().any(|mount| mount == "/");
    guest
        .devices
        .iter()
        .filter(|d| d.identity != cloud.identity)
        .find(|device| {
            names(csi.handle.as_str(), device)
                || of_its_size(device) && !is_root(device) && !others(device)
        })
}
