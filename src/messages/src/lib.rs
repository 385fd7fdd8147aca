//! Explains one Kubernetes Event, VolumeAttachment error or log line.
//!
//! A text never decides: the same words are printed for a phantom attachment and for a lost one, and for a rollout of
//! a healthy workload as for a dead node. What a text can do is nominate: say which volume may need a look, which facts
//! would decide, and, most often, that no attachment is at fault at all.
//!
//! The reading goes by meaning: the structure of the message (operation, volume, gRPC status), the storage behind the
//! driver, and families of phrases (`families`), so that other versions and other drivers are understood as well.
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
pub use driver::StorageKind;
pub use explain::explain;
pub use meaning::{Meaning, MultiAttachUsers};
pub use structure::{GrpcCode, Operation};

/// One event, error field or log line.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The event's reason ("FailedMount"), or the field that the text was read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who reported it ("kubelet", "attachdetach-controller").
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_component: Option<String>,
    /// The text.
    pub message: String,
    /// The CSI driver or in-tree plugin, where the reader knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
}

impl Message {
    /// Reads one line: a JSON object with at least `message`, or else a plain text.
    ///
    /// Never fails: what is not such an object is text.
    pub fn from_line(line: &str) -> Self {
        let line = line.trim();
        serde_json::from_str(line).unwrap_or_else(|_| Self {
            message: line.to_owned(),
            ..Self::default()
        })
    }
}

/// A message taken apart, with its meaning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symptom {
    /// Which operation failed.
    pub operation: Option<Operation>,
    /// The volume as the message names it: a PersistentVolume, a volume of the pod or a handle.
    pub volume: Option<String>,
    /// The node as the message names it.
    pub node: Option<String>,
    /// The driver, from the field or from the text.
    pub driver: Option<String>,
    /// What stands behind the driver.
    pub storage: StorageKind,
    /// The gRPC status of the CSI call.
    pub code: Option<GrpcCode>,
    /// What the message means.
    pub meaning: Meaning,
}

/// A message in words for a person, and what to look at next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What the message means.
    pub meaning: Meaning,
    /// The same as a sentence, with the names that the message gave.
    pub sentence: String,
    /// Facts that decide between the remedies, most telling first.
    pub deciding_facts: Vec<DecidingFact>,
    /// One to three remedies, best first; exactly `[NotOurs]` where no attachment is at fault.
    pub remedies: Vec<Remedy>,
}

/// What a message is to the controller: a reason to gather facts, or none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", content = "why", rename_all = "kebab-case")]
pub enum Nomination {
    /// A volume may be stuck: gather the facts.
    Candidate(Meaning),
    /// No attachment is at fault.
    NotOurs(Meaning),
    /// The text does not tell.
    Unknown(Meaning),
}

/// Takes a message apart and finds its meaning. Total: every text has a reading.
pub fn read(message: &Message) -> Symptom {
    let structure = structure::structure(message);
    let meaning = classify::meaning(message, &structure);
    Symptom {
        operation: structure.operation,
        volume: structure.volume,
        node: structure.node,
        driver: structure.driver,
        storage: structure.storage,
        code: structure.code,
        meaning,
    }
}

/// Says whether a message is a reason to gather facts about a volume. It never decides more than that.
pub fn nominate(message: &Message) -> Nomination {
    let meaning = read(message).meaning;
    match meaning {
        Meaning::Unknown | Meaning::Umbrella { .. } => Nomination::Unknown(meaning),
        ours if ours.is_ours() => Nomination::Candidate(ours),
        other => Nomination::NotOurs(other),
    }
}
