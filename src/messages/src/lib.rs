//! Explains one Kubernetes Event, VolumeAttachment error or log line.
//!
//! A text never decides. Kubernetes prints the same words for a phantom attachment and for a lost one, and for the
//! rollout of a healthy workload and for a dead node. A text only says which facts would decide and, most often, that no
//! attachment is at fault.
//!
//! Messages are read by meaning: structure (operation, volume, gRPC status), the storage behind the driver, and families
//! of phrases (`families`). So the wordings of other versions and other drivers are understood as well.
//!
//! ```
//! use reattach_messages::{explain, Message, Remedy};
//! let message = Message::from_line("MountVolume.SetUp failed for volume \"certs\" : secret \"tls\" not found");
//! assert_eq!(explain(&message).remedies, [Remedy::NotOurs]);
//! ```

mod advice;
mod classify;
mod driver;
mod explain;
mod families;
mod meaning;
mod phrase;
mod structure;

use serde::{Deserialize, Serialize};

pub use advice::{DecidingFact, Remedy};
pub use explain::explain;
pub use meaning::{Meaning, MultiAttachUsers};

/// One event, error field or log line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The event's reason ("FailedMount"), or the field that the text was read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Component that reported the event ("kubelet", "attachdetach-controller").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_component: Option<String>,
    /// Text of the event, the error field or the log line.
    pub message: String,
    /// CSI driver or in-tree plugin of the volume, where the caller knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

impl Message {
    /// Reads one line: a JSON object with at least `message`, or else a plain text.
    ///
    /// Never fails: a line that is not such an object is read as text.
    pub fn from_line(line: &str) -> Self {
        let line = line.trim();
        serde_json::from_str(line).unwrap_or_else(|_| Self {
            message: line.to_owned(),
            ..Self::default()
        })
    }

    /// Returns the event's reason in lower case; empty if there is none.
    pub(crate) fn lower_reason(&self) -> String {
        self.reason.as_deref().unwrap_or_default().to_lowercase()
    }
}

/// Finds the meaning of a message. Never fails: every text has a meaning, if only [`Meaning::Unknown`].
pub fn meaning(message: &Message) -> Meaning {
    classify::meaning(message, &structure::structure(message))
}

/// Explanation of a message for a person, with the facts to look at next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What the message means.
    pub meaning: Meaning,
    /// The meaning in sentences for a person, with the names that the message gave.
    pub sentence: String,
    /// Facts that decide between the remedies, most telling first.
    pub deciding_facts: &'static [DecidingFact],
    /// One to three remedies, best first; exactly `[NotOurs]` where no attachment is at fault.
    pub remedies: Vec<Remedy>,
}
