//! What named people say: their words count as facts, with a time and a reason.

use crate::ids::InstanceId;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// A named person's word, with its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Word {
    /// The authenticated user name.
    pub by: String,
    /// Why they are sure.
    pub reason: String,
    /// When they gave it.
    pub at: Timestamp,
}

/// A declaration is about now: an older one is given anew.
const GOOD_FOR: SignedDuration = SignedDuration::from_hours(1);

/// What a human declares. Admission sees to it that `by` is who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Declaration {
    /// The instance that cannot write.
    pub holder: InstanceId,
    /// Who says so: the authenticated user.
    pub by: String,
    /// Why they are sure.
    pub reason: String,
    /// When they said it.
    pub at: Timestamp,
    /// They also say that the instance is a machine of this cluster, though no Node shows it. Admission lets only those
    /// say so who may declare in the whole cluster.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub of_this_cluster: bool,
    /// They may declare in the whole cluster, so it is a word about the machine. With a right in one namespace it is a word
    /// about that namespace's volume alone (S10). Set by the access review, never by what the record says.
    #[serde(skip)]
    pub cluster_wide: bool,
}

impl Declaration {
    /// Whether somebody gave it, with a reason, within the last hour.
    ///
    /// # Errors
    /// What is missing.
    pub fn is_valid(&self, now: Timestamp) -> Result<(), &'static str> {
        if self.by.trim().is_empty() || self.reason.trim().is_empty() {
            return Err("it lacks a person's name or a reason");
        }
        let age = now.duration_since(self.at);
        if age > GOOD_FOR || age < SignedDuration::ZERO {
            return Err("it was not given within the last hour");
        }
        Ok(())
    }
}
