//! Texts for people: plans and diagnoses on a terminal, the post-mortem, the support ticket.
//!
//! Each function takes values of core and returns text. Nothing here decides anything, and no text has colours or
//! terminal codes. Text from outside (events, provider errors, names) is stripped of control characters and escaped for
//! its format.

mod doc;
mod escape;
mod format;
mod html;
mod json;
mod markdown;
mod postmortem;
mod scale;
mod summary;
mod svg;
mod text;
mod ticket;
mod timing;

use jiff::Timestamp;
use reattach_core::cloud::CloudVolume;
use reattach_core::diagnosis::{Diagnosis, Verdict};
use reattach_core::ids::ObjectName;
use reattach_core::journal::Entry;
use reattach_core::phase::Phase;
use reattach_core::plan::Plan;
use reattach_core::policy::Mode;
use serde::{Deserialize, Serialize};

pub use format::{count, proof_in_words};
pub use html::html;
pub use json::json;
pub use markdown::markdown;
pub use summary::{standing, title};
pub use text::{
    TEXT_WIDTH, diagnosis_text, journal_text, paragraph, plan_text, shortened, status_line,
};
pub use ticket::{Escalation, SUMMARY_CHARS, TICKET_CHARS, escalation, support_ticket};
pub use timing::{Timing, timings};

/// Content of one VolumeRecovery, without Kubernetes types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Namespace and name of the VolumeRecovery.
    pub recovery: ObjectName,
    /// Claim that the recovery is about.
    pub claim: ObjectName,
    /// Mode of the recovery: how far it may go.
    pub mode: Mode,
    /// Policy or person that requested the recovery.
    pub requester: String,
    /// Reason in the requester's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Phase in the status.
    pub phase: Phase,
    /// Message of the status, one sentence.
    pub message: String,
    /// Time of the next attempt that reattach makes by itself, where this one did not heal the volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<Timestamp>,
    /// Last diagnosis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// Reasons against a plan, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<String>,
    /// Plan that was made, accepted or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Lines of the journal, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub journal: Vec<Entry>,
    /// Time of creation of the VolumeRecovery. The pod may have been down before.
    pub created: Timestamp,
    /// Volume as the cloud shows it, where the caller has read it. A support ticket takes label and region from it. A
    /// VolumeRecovery does not store it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_volume: Option<CloudVolume>,
    /// Call for a person, while the recovery waits for longer than its policy allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalation: Option<Escalation>,
}

impl Record {
    /// Returns the verdict of the last diagnosis.
    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        self.diagnosis.as_ref().map(|d| &d.verdict)
    }

    /// Returns the facts of the last diagnosis, one sentence each.
    pub(crate) fn facts(&self) -> &[String] {
        self.diagnosis.as_ref().map_or(&[], |d| &d.facts)
    }
}

/// Note for the timeline: something that a person or another system did or saw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineNote {
    /// Time of the event.
    pub at: Timestamp,
    /// One sentence.
    pub text: String,
}

/// Content of a post-mortem: recoveries that belong together, and notes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Title of the post-mortem.
    pub title: String,
    /// Begin of the timeline. Relative times count from here.
    pub from: Timestamp,
    /// End of the timeline.
    pub to: Timestamp,
    /// Recoveries, in the order in which they are shown.
    pub records: Vec<Record>,
    /// Other events during the incident.
    #[serde(default)]
    pub notes: Vec<TimelineNote>,
}
