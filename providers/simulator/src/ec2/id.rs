//! EC2's spelling of identifiers: a kind, a dash, and 17 hexadecimal digits (8 in old accounts).

use super::reply::Refusal;
use crate::model::{InstanceNo, SnapshotNo, VolumeNo};

/// Returns EC2's identifier of a volume.
pub fn volume(number: VolumeNo) -> String {
    format!("vol-{:017x}", number.0)
}

/// Returns EC2's identifier of an instance.
pub fn instance(number: InstanceNo) -> String {
    format!("i-{:017x}", number.0)
}

/// Returns EC2's identifier of a snapshot.
pub fn snapshot(number: SnapshotNo) -> String {
    format!("snap-{:017x}", number.0)
}

/// Parses the identifier of a volume. A number beyond 64 bits becomes one that does not exist.
pub(super) fn parse_volume(text: &str) -> Result<VolumeNo, Refusal> {
    hex(text, "vol-").map(VolumeNo).ok_or_else(|| {
        let why = format!("Value ({text}) for parameter volumes is invalid. Expected: 'vol-...'.");
        Refusal::new(400, "InvalidParameterValue", why)
    })
}

pub(super) fn parse_instance(text: &str) -> Result<InstanceNo, Refusal> {
    hex(text, "i-").map(InstanceNo).ok_or_else(|| {
        Refusal::new(
            400,
            "InvalidInstanceID.Malformed",
            format!("Invalid id: \"{text}\""),
        )
    })
}

pub(super) fn parse_snapshot(text: &str) -> Result<SnapshotNo, Refusal> {
    hex(text, "snap-").map(SnapshotNo).ok_or_else(|| {
        let why =
            format!("Value ({text}) for parameter snapshotId is invalid. Expected: 'snap-...'.");
        Refusal::new(400, "InvalidParameterValue", why)
    })
}

fn hex(text: &str, prefix: &str) -> Option<u64> {
    let digits = text.strip_prefix(prefix)?;
    let good = matches!(digits.len(), 8 | 17)
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    good.then(|| u64::from_str_radix(digits, 16).unwrap_or(u64::MAX))
}
