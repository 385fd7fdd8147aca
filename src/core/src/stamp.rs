//! The restore stamp: the annotation that alone suffices to bring a workload back.

use crate::ids::Uid;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The annotation's key.
pub const STAMP_ANNOTATION: &str = "reattach.dev/restore";

/// What the stamp says. It is written in the same write that sets the replicas to zero, so a workload is never at zero
/// by our hand without it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Stamp {
    /// The count to restore.
    pub replicas: i32,
    /// The workload's own UID: a stamp copied onto another object restores nothing.
    pub workload: Uid,
    /// The VolumeRecovery that scaled it.
    pub recovery: Uid,
    /// When.
    pub at: Timestamp,
}

impl Stamp {
    /// The annotation's value.
    pub fn to_annotation(&self) -> String {
        // A struct of strings and numbers always serialises.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads an annotation's value; the error is one sentence.
    pub fn from_annotation(value: &str) -> Result<Self, String> {
        let stamp: Self = serde_json::from_str(value)
            .map_err(|e| format!("annotation {STAMP_ANNOTATION} is not a stamp of ours ({e})"))?;
        if stamp.replicas < 1 {
            return Err(format!(
                "annotation {STAMP_ANNOTATION} would restore to {} replicas",
                stamp.replicas
            ));
        }
        Ok(stamp)
    }
}
