//! Support ticket for a volume that the provider keeps locked or busy, and the call for a person when a wait is too long.

use crate::Record;
use crate::format::date_clock;
use crate::summary::{refused_detach, standing, unfinished_detach};
use jiff::Timestamp;
use reattach_core::cloud::VolumeState;
use reattach_core::diagnosis::{StuckCause, Trouble, Verdict, WaitReason};
use reattach_core::journal::{Entry, Event, Outcome, is_withheld};
use reattach_core::phase::Phase;
use reattach_core::plain::{cut, quoted};
use reattach_core::plan::Plan;
use reattach_core::steps::StepKind;
use reattach_messages::{Meaning, Message, meaning};
use serde::{Deserialize, Serialize};
use std::fmt::Write;

/// Maximum length of a ticket in characters. The parts of a ticket are bounded so that the sum stays below it. The CRD has
/// the same bound, so the API server refuses a longer one.
pub const TICKET_CHARS: usize = 16_384;
/// Maximum length of an [`Escalation`]'s summary in characters. The CRD has the same bound.
pub const SUMMARY_CHARS: usize = 1_024;
/// Maximum number of lines of one list in a ticket. A diagnosis has about ten facts, and a run sends the cloud few orders.
const MAX_LINES: usize = 14;
/// Maximum length of one text from outside in a ticket, in characters.
const TEXT_CHARS: usize = 400;
/// Maximum length of one name from outside in a ticket, in characters.
const NAME_CHARS: usize = 200;

/// Call for a person, because a recovery has waited for too long.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Escalation {
    /// Begin of the wait.
    pub since: Timestamp,
    /// What is the case and what a person has to do, of at most [`SUMMARY_CHARS`] characters.
    pub summary: String,
    /// Ticket for the provider's support as it can be sent, of at most [`TICKET_CHARS`] characters. `None` if nothing at
    /// the provider stands in the way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

/// Obstacle at the provider. Its title has the volume as its subject and goes before "on your side".
struct Obstacle {
    title: &'static str,
    words: String,
    ask: &'static str,
}

impl Obstacle {
    fn locked(reason: &str) -> Self {
        Self {
            title: "is locked",
            words: format!("it is locked ({reason})"),
            ask: "lift the lock, or detach the volume from the instance on your side, and tell us when it is done.",
        }
    }

    fn busy(doing: &str) -> Self {
        Self {
            title: "is held by a job",
            words: format!("it is busy ({doing})"),
            ask: "let the pending job finish or cancel it, so that the volume can be detached, and tell us when it is done.",
        }
    }

    fn detaching(words: String) -> Self {
        Self {
            title: "does not finish detaching",
            words,
            ask: "finish the detach, or cancel it so that it can be asked for again, and tell us when it is done.",
        }
    }

    fn refused(why: &str) -> Self {
        Self {
            title: "cannot be detached",
            words: why.to_owned(),
            ask: "make the volume detachable again, or detach it from the instance on your side, and tell us when it is done.",
        }
    }
}

/// Writes a support ticket that can be sent as it stands. `None` if nothing at the provider stands in the way, or if the
/// pod runs with its volume already.
///
/// For a record without a view of the cloud, this is the ticket that the controller stored when it called a person.
///
/// A ticket names the volume, the instance and what was tried. It leaves out requesters, authorities, workloads and
/// policies, which do not concern the provider. Text that looks like a credential is masked.
pub fn support_ticket(record: &Record) -> Option<String> {
    if !still_down(record) {
        return None;
    }
    let escalation = record.escalation.as_ref();
    if record.cloud_volume.is_none()
        && let Some(ticket) = escalation.and_then(|e| e.ticket.as_ref())
    {
        return Some(ticket.clone());
    }
    let obstacle = obstacle(record, escalation.is_some())?;
    let since = escalation.map_or(record.created, |e| e.since);
    Some(ticket(record, &obstacle, since))
}

/// Makes the call for a person about a recovery that has waited for too long, since `since`. After such a wait even a
/// normal state, such as a detach that was accepted, counts as an obstacle at the provider.
pub fn escalation(record: &Record, since: Timestamp) -> Escalation {
    let Some(obstacle) = obstacle(record, true).filter(|_| still_down(record)) else {
        return Escalation {
            since,
            summary: cut(&quoted(&record.message), SUMMARY_CHARS),
            ticket: None,
        };
    };
    let summary = format!(
        "{} {} on the provider's side. reattach goes on by itself once this is over. Send the ticket to the provider's support; its API says: {}",
        volume_name(record),
        obstacle.title,
        quoted(&obstacle.words)
    );
    Escalation {
        since,
        summary: cut(&summary, SUMMARY_CHARS),
        ticket: Some(ticket(record, &obstacle, since)),
    }
}

fn still_down(record: &Record) -> bool {
    !matches!(
        standing(record).phase,
        Phase::Recovered | Phase::Resolved | Phase::NotOurs
    )
}

/// Names the volume by its ID, where the ID is known.
fn volume_name(record: &Record) -> String {
    let id = match (&record.cloud_volume, &record.plan) {
        (Some(volume), _) => &volume.id,
        (None, Some(plan)) => &plan.pins.volume,
        (None, None) => return "a volume".to_owned(),
    };
    format!("volume {}", cut(id.as_str(), NAME_CHARS))
}

fn ticket(record: &Record, obstacle: &Obstacle, since: Timestamp) -> String {
    let bounded = |text: &str| cut(&quoted(text), TEXT_CHARS);
    let name = capitalised(&volume_name(record));
    let title = obstacle.title;
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(
        out,
        "Subject: {name} {title} on your side; please release it"
    );
    let _ = writeln!(
        out,
        "\nHello,\n\n{name} {title} on your side. Your API says: {}.",
        bounded(obstacle.words.trim_end_matches('.'))
    );
    let _ = writeln!(out, "A service of ours is down until it is released.\n");
    for (label, value) in &volume_properties(record) {
        let _ = writeln!(
            out,
            "{:<16}{}",
            format!("{label}:"),
            cut(&quoted(value), NAME_CHARS)
        );
    }
    let _ = writeln!(
        out,
        "{:<16}{} UTC (when we first saw it; it may have begun earlier)",
        "Since:",
        date_clock(since)
    );
    let facts = record.facts();
    if !facts.is_empty() {
        let _ = writeln!(out, "\nWhat we see:");
        for fact in facts.iter().take(MAX_LINES) {
            let _ = writeln!(out, "- {}", bounded(fact));
        }
    }
    let _ = writeln!(out, "\nWhat we tried:");
    let tried = tried(record);
    // Only the last lines are kept: they show the present state.
    for line in &tried[tried.len().saturating_sub(MAX_LINES)..] {
        let _ = writeln!(out, "- {line}");
    }
    let _ = writeln!(out, "\nWhat we ask: {}", obstacle.ask);
    let _ = writeln!(
        out,
        "Please also tell us what caused it and whether our other volumes may be affected.\n\nThank you."
    );
    out
}

/// Finds the obstacle at the provider. With `long` the recovery has waited for too long, so that a state that is normal for
/// a while is an obstacle, too.
fn obstacle(record: &Record, long: bool) -> Option<Obstacle> {
    match record.cloud_volume.as_ref().map(|v| &v.state) {
        Some(VolumeState::Locked { reason }) => return Some(Obstacle::locked(reason)),
        Some(VolumeState::Busy { doing }) => return Some(Obstacle::busy(doing)),
        Some(VolumeState::Detaching) if long => {
            return Some(Obstacle::detaching("it is detaching".to_owned()));
        }
        _ => {}
    }
    match record.verdict() {
        Some(Verdict::Wait {
            reason: WaitReason::ProviderLock { reason, .. },
        }) => {
            return Some(Obstacle::locked(reason));
        }
        Some(Verdict::Wait {
            reason: WaitReason::CloudBusy { doing },
        }) => return Some(Obstacle::busy(doing)),
        _ => {}
    }
    // The provider did not accept the last detach of the run.
    if let Some((_, words)) = refused_detach(record) {
        return Some(Obstacle::refused(words));
    }
    if !long {
        return None;
    }
    if let Some((at, words)) = unfinished_detach(record) {
        return Some(Obstacle::detaching(format!(
            "it accepted the detach at {} UTC ({words})",
            date_clock(at)
        )));
    }
    // The detach of the CSI driver failed with an error that comes from the cloud.
    match record.verdict() {
        Some(Verdict::Ours {
            trouble:
                Trouble::StuckRecord {
                    cause: StuckCause::DetachError { error, .. },
                    ..
                },
        }) if is_cloud_side(error) => Some(Obstacle::refused(error)),
        _ => None,
    }
}

/// Does a driver's error show that the cloud works on the volume or refuses to detach it? A missing Secret, right or driver
/// is no such error: the provider's support cannot repair it.
fn is_cloud_side(error: &str) -> bool {
    let reason = Some("VolumeAttachment.status.detachError".to_owned());
    let message = Message {
        reason,
        message: error.to_owned(),
        ..Message::default()
    };
    matches!(
        meaning(&message),
        Meaning::Locked
            | Meaning::DetachBusy
            | Meaning::DetachNotFinished
            | Meaning::DetachInProgress
            | Meaning::AttachInProgress
            | Meaning::VolumeFaulted
    )
}

/// Returns the lines that identify the volume to the provider.
fn volume_properties(record: &Record) -> Vec<(&'static str, String)> {
    let pins = record.plan.as_ref().map(|p| &p.pins);
    let mut out = Vec::new();
    match (&record.cloud_volume, pins) {
        (Some(v), _) => {
            out.push(("Volume ID", v.id.to_string()));
            out.push(("Label", v.label.clone()));
            out.push(("Region", v.region.clone()));
            out.push(("Size", format!("{} GiB", v.size_gib)));
            let holders: Vec<String> = v.holders.iter().map(ToString::to_string).collect();
            if !holders.is_empty() {
                out.push(("Instance", holders.join(", ")));
            }
        }
        (None, Some(p)) => {
            out.push(("Volume ID", p.volume.to_string()));
            out.push(("Device serial", p.identity.to_string()));
            out.push(("Size", format!("{} GiB", p.size_gib)));
            out.push(("Instance", p.holder.to_string()));
        }
        (None, None) => {}
    }
    let node = match record.verdict() {
        Some(Verdict::Ours {
            trouble: Trouble::Phantom { at, .. } | Trouble::Lost { at, .. },
        }) => Some(at.node.to_string()),
        _ => pins.map(|p| p.node.to_string()),
    };
    out.extend(node.map(|n| ("Node", n)));
    out
}

/// Returns the orders to detach and the provider's answers, one line each.
fn tried(record: &Record) -> Vec<String> {
    let mut out: Vec<String> = record
        .plan
        .iter()
        .flat_map(|plan| detach_orders(plan, &record.journal))
        .map(|(at, words)| {
            let words = cut(&quoted(&words), TEXT_CHARS);
            format!("{} UTC: {words}", date_clock(at))
        })
        .collect();
    if out.is_empty() {
        out.push(
            "Nothing yet by API: we do not send a detach while the volume is locked or busy."
                .to_owned(),
        );
    }
    out
}

fn detach_orders(plan: &Plan, journal: &[Entry]) -> Vec<(Timestamp, String)> {
    let Some(detach) = plan.find(StepKind::CloudDetach) else {
        return Vec::new();
    };
    let words = |ix: usize, event: &Event| match event {
        Event::Started { step, .. } if *step == detach && !is_withheld(journal, ix) => {
            Some(format!(
                "we asked your API to detach volume {} from instance {}",
                plan.pins.volume, plan.pins.holder
            ))
        }
        Event::Outcome { step, outcome } if *step == detach => answer(outcome),
        _ => None,
    };
    let lines = journal.iter().enumerate();
    lines
        .filter_map(|(ix, e)| Some((e.at, words(ix, &e.event)?)))
        .collect()
}

/// Describes what the provider answered to an order. `None` if the order was not sent.
fn answer(outcome: &Outcome) -> Option<String> {
    Some(match outcome {
        Outcome::Applied { detail } => format!("it answered: {detail}"),
        Outcome::NotApplied { why, .. } => format!("it did not accept: {why}"),
        Outcome::Withheld { .. } | Outcome::RefusedByBudget { .. } => return None,
        Outcome::Unknown { why } | Outcome::Repeatable { why } => {
            format!("we got no usable answer: {why}")
        }
        Outcome::ObservedApplied { seen } | Outcome::ObservedNotApplied { seen } => {
            format!("we then saw: {seen}")
        }
    })
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| {
        format!("{}{}", c.to_uppercase(), chars.as_str())
    })
}
