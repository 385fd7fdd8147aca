//! What people read: plans and diagnoses on a terminal, the post-mortem, the support ticket.
//!
//! Values in, text out. Nothing here decides anything, and no colour or terminal code is ever written: text from
//! outside (events, provider errors, names) is stripped of control characters and escaped for its format.

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
use reattach_core::diagnosis::Diagnosis;
use reattach_core::ids::ObjectName;
use reattach_core::journal::Entry;
use reattach_core::phase::Phase;
use reattach_core::plan::Plan;
use reattach_core::policy::Mode;
use serde::{Deserialize, Serialize};

pub use format::proof_in_words;
pub use html::html;
pub use json::json;
pub use markdown::markdown;
pub use summary::{standing, title};
pub use text::{TEXT_WIDTH, diagnosis_text, journal_text, plan_text, status_line};
pub use ticket::{Escalation, SUMMARY_CHARS, TICKET_CHARS, escalation, support_ticket};
pub use timing::{Timing, own_share, timings};

/// What one VolumeRecovery holds, free of Kubernetes types.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The VolumeRecovery.
    pub recovery: ObjectName,
    /// The claim it is about.
    pub claim: ObjectName,
    /// How far it may go.
    pub mode: Mode,
    /// Who asked for it: a policy or a person.
    pub requester: String,
    /// Why, in the requester's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Phase of its status.
    pub phase: Phase,
    /// The sentence of its status.
    pub message: String,
    /// The last diagnosis.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub diagnosis: Option<Diagnosis>,
    /// Why there is no plan, one sentence each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<String>,
    /// The plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// Every line of the journal, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub journal: Vec<Entry>,
    /// When the VolumeRecovery was created: the moment at which reattach first acted on the trouble. The pod may have
    /// been down before.
    pub created: Timestamp,
    /// The cloud's view of the volume, where the caller has one. A support ticket takes label and region from it; a
    /// VolumeRecovery does not hold it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_volume: Option<CloudVolume>,
    /// What a person was told, while it waits for so long that one was called.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub escalation: Option<Escalation>,
}

/// Something that a person or another system did or saw, for the timeline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TimelineNote {
    /// When.
    pub at: Timestamp,
    /// What, as one sentence.
    pub text: String,
}

/// Several recoveries that belong together, and what else happened meanwhile.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// The title of the post-mortem.
    pub title: String,
    /// Where the timeline begins; relative times count from here.
    pub from: Timestamp,
    /// Where the timeline ends.
    pub to: Timestamp,
    /// The recoveries, in the order in which they are to be shown.
    pub records: Vec<Record>,
    /// What else happened.
    #[serde(default)]
    pub notes: Vec<TimelineNote>,
}
