//! A support ticket for a volume that the provider keeps locked or busy.

use super::Record;
use super::story::{Fate, fate, refused_detach};
use super::words::{date_clock, quoted};
use crate::cloud::VolumeState;
use crate::diagnosis::{Trouble, Verdict, WaitReason};
use crate::journal::Mark;
use crate::runbook::StepKind;
use std::fmt::Write;

/// What stands in the way at the provider.
struct Obstacle {
    title: &'static str,
    words: String,
    ask: &'static str,
}

/// A ticket that can be sent as it stands, or `None` when nothing at the provider stands in the way: the volume is
/// neither locked nor busy, or the pod runs with it already.
///
/// It names the volume, the instance and what was tried. Requesters, authorities, workloads and policies are none of the
/// provider's business and left out; whatever looks like a credential in a quoted message is masked.
pub fn support_ticket(record: &Record) -> Option<String> {
    if matches!(fate(record), Fate::Recovered | Fate::Resolved | Fate::Healthy | Fate::NotOurs { .. }) {
        return None;
    }
    let obstacle = obstacle(record)?;
    let volume = volume(record);
    let name = volume.first().map_or_else(|| "a volume".to_owned(), |(_, v)| format!("volume {v}"));
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(out, "Subject: {} {}; please release it", capital(&name), obstacle.title);
    let _ = writeln!(
        out,
        "\nHello,\n\n{} {}. Your API says: {}.",
        capital(&name),
        obstacle.title,
        quoted(&obstacle.words)
    );
    let _ = writeln!(out, "A service of ours is down until it is released.\n");
    for (label, value) in &volume {
        let _ = writeln!(out, "{:<16}{}", format!("{label}:"), quoted(value));
    }
    let _ = writeln!(
        out,
        "{:<16}{} UTC (when we first saw it; it may have begun earlier)",
        "Since:",
        date_clock(record.created)
    );
    let facts = record.diagnosis.as_ref().map(|d| d.facts.as_slice()).unwrap_or_default();
    if !facts.is_empty() {
        let _ = writeln!(out, "\nWhat we see:");
        for fact in facts {
            let _ = writeln!(out, "- {}", quoted(fact));
        }
    }
    let _ = writeln!(out, "\nWhat we tried:");
    for line in tried(record) {
        let _ = writeln!(out, "- {line}");
    }
    let _ = writeln!(out, "\nWhat we ask: {}", obstacle.ask);
    let _ = writeln!(
        out,
        "Please also tell us what caused it and whether our other volumes may be affected.\n\nThank you."
    );
    Some(out)
}

fn obstacle(record: &Record) -> Option<Obstacle> {
    let locked = |words: &str| Obstacle {
        title: "is locked on your side",
        words: format!("it is locked ({words})"),
        ask: "lift the lock, or detach the volume from the instance on your side, and tell us when it is done.",
    };
    let busy = |words: &str| Obstacle {
        title: "is held by a job on your side",
        words: format!("it is busy ({words})"),
        ask: "let the pending job finish or cancel it, so that the volume can be detached, and tell us when it is done.",
    };
    match record.cloud_volume.as_ref().map(|v| &v.state) {
        Some(VolumeState::Locked { reason }) => return Some(locked(reason)),
        Some(VolumeState::Busy { doing }) => return Some(busy(doing)),
        _ => {}
    }
    match record.diagnosis.as_ref().map(|d| &d.verdict) {
        Some(Verdict::Wait { reason: WaitReason::ProviderLock { reason, .. } }) => {
            return Some(locked(reason));
        }
        Some(Verdict::Wait { reason: WaitReason::CloudBusy { doing } }) => return Some(busy(doing)),
        _ => {}
    }
    // The run asked for the detach and the provider did not accept it, to the end.
    let (_, words) = refused_detach(record)?;
    Some(Obstacle {
        title: "cannot be detached on your side",
        words: words.to_owned(),
        ask: "make the volume detachable again, or detach it from the instance on your side, and tell us when it is done.",
    })
}

/// What identifies the volume to the provider; its ID first, where it is known.
fn volume(record: &Record) -> Vec<(&'static str, String)> {
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
    let node = match record.diagnosis.as_ref().map(|d| &d.verdict) {
        Some(Verdict::Ours { trouble: Trouble::Phantom { at, .. } | Trouble::Lost { at, .. } }) => {
            Some(at.node.to_string())
        }
        _ => pins.map(|p| p.node.to_string()),
    };
    out.extend(node.map(|n| ("Node", n)));
    out
}

fn tried(record: &Record) -> Vec<String> {
    let step = record.plan.as_ref().and_then(|p| p.find(StepKind::CloudDetach));
    let mut out: Vec<String> = record
        .journal
        .iter()
        .filter_map(|e| {
            let words = match &e.mark {
                Mark::Started { step: s, .. } if Some(*s) == step => {
                    let pins = record.plan.as_ref().map(|p| &p.pins)?;
                    format!(
                        "we asked your API to detach volume {} from instance {}",
                        pins.volume, pins.holder
                    )
                }
                Mark::Outcome { step: s, outcome } if Some(*s) == step => {
                    use crate::journal::Outcome as O;
                    match outcome {
                        O::Applied { detail } => format!("it answered: {detail}"),
                        O::NotApplied { why, .. } => format!("it did not accept: {why}"),
                        O::Unknown { why } => format!("we got no usable answer: {why}"),
                        O::ObservedApplied { seen } | O::ObservedNotApplied { seen } => {
                            format!("we then saw: {seen}")
                        }
                    }
                }
                _ => return None,
            };
            Some(format!("{} UTC: {}", date_clock(e.at), quoted(&words)))
        })
        .collect();
    if out.is_empty() {
        out.push(
            "Nothing yet by API: we do not send a detach while the volume is locked or busy.".to_owned(),
        );
    }
    out
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |c| format!("{}{}", c.to_uppercase(), chars.as_str()))
}
