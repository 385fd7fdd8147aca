//! Names that Kubernetes derives.

use sha2::{Digest, Sha256};

/// Prefix of every volume handle of EBS.
const EBS: &str = "vol-";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Name of the VolumeAttachment of a CSI volume on a node: deterministic, so a re-created one has the same name.
///
/// # Example
/// ```
/// let name = reattach_sim::names::attachment_name("7-pvc1", "linodebs.csi.linode.com", "node-a");
/// assert!(name.starts_with("csi-") && name.len() == 68);
/// ```
#[must_use]
pub fn attachment_name(handle: &str, driver: &str, node: &str) -> String {
    format!(
        "csi-{}",
        hex(&Sha256::digest(format!("{handle}{driver}{node}")))
    )
}

/// How `node.status.volumesInUse` and `volumesAttached` name a CSI volume.
#[must_use]
pub fn unique_volume_name(handle: &str, driver: &str) -> String {
    format!("kubernetes.io/csi/{driver}^{handle}")
}

/// The folder of a volume below kubelet's `plugins/kubernetes.io/csi/DRIVER/`.
#[must_use]
pub fn staging_hash(handle: &str) -> String {
    hex(&Sha256::digest(handle))
}

/// The first `n` hexadecimal digits of a hash of `text`.
#[must_use]
pub fn short_hash(text: &str, n: usize) -> String {
    hex(&Sha256::digest(text))[..n.min(64)].to_owned()
}

/// The label part of a Linode volume handle (`<id>-<label>`, split at the first `-`); a handle of EBS as it is.
#[must_use]
pub fn label_of(handle: &str) -> &str {
    if handle.starts_with(EBS) {
        return handle;
    }
    handle.split_once('-').map_or(handle, |(_, label)| label)
}

/// The id part of a Linode volume handle; a handle of EBS as it is.
#[must_use]
pub fn id_of(handle: &str) -> &str {
    if handle.starts_with(EBS) {
        return handle;
    }
    handle.split_once('-').map_or(handle, |(id, _)| id)
}
