//! Renders the post-mortem as JSON, for scripts.

use crate::postmortem::{TimelineLine, needs_human, timeline};
use crate::summary::{CloudDetach, RecoverySummary};
use crate::timing::{Timing, timings};
use crate::{Incident, Record, support_ticket};
use jiff::Timestamp;
use reattach_core::diagnosis::Class;
use reattach_core::ids::ObjectName;
use reattach_core::phase::Standing;
use reattach_core::plain;
use serde::Serialize;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PostMortem<'a> {
    title: &'a str,
    from: Timestamp,
    to: Timestamp,
    volumes: Vec<Volume<'a>>,
    timeline: Vec<TimelineLine>,
    records: &'a [Record],
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Volume<'a> {
    claim: &'a ObjectName,
    recovery: &'a ObjectName,
    class: Option<Class>,
    #[serde(flatten)]
    standing: Standing,
    why: Option<String>,
    down_from: Timestamp,
    down_to: Option<Timestamp>,
    accepted_at: Option<Timestamp>,
    authority: Option<&'a str>,
    heal_millis: Option<i64>,
    own_share_millis: Option<i64>,
    cloud_detach: CloudDetach,
    touched: bool,
    timings: Vec<Timing>,
    needs_human: Option<String>,
    support_ticket: Option<String>,
}

/// Renders the post-mortem as JSON: derived values (`volumes`, `timeline`) and the records that they are derived from.
///
/// Durations are in milliseconds, times in RFC 3339. `downTo` is null while the pod is not known to run again. Hidden
/// characters are written as `\u` escapes.
pub fn json(incident: &Incident) -> String {
    let post_mortem = PostMortem {
        title: &incident.title,
        from: incident.from,
        to: incident.to,
        volumes: incident.records.iter().map(volume).collect(),
        timeline: timeline(incident),
        records: &incident.records,
    };
    // No error can occur: strings, numbers and maps with string keys always serialise.
    plain::json(&serde_json::to_string_pretty(&post_mortem).unwrap_or_default())
}

fn volume(record: &Record) -> Volume<'_> {
    let recovery = RecoverySummary::of(record);
    let timings = record
        .plan
        .as_ref()
        .map(|plan| timings(plan, &record.journal))
        .unwrap_or_default();
    let ran = recovery.accepted.is_some() && record.plan.is_some();
    Volume {
        claim: &record.claim,
        recovery: &record.recovery,
        class: recovery.class(),
        down_from: record.created,
        down_to: recovery.healed_at(),
        accepted_at: recovery.accepted.map(|(at, _)| at),
        authority: recovery.accepted.map(|(_, authority)| authority),
        heal_millis: recovery.heal_millis(),
        own_share_millis: ran.then(|| timings.iter().map(|t| t.ours_millis).sum()),
        cloud_detach: recovery.cloud_detach,
        touched: recovery.touched(),
        timings,
        needs_human: needs_human(&recovery),
        support_ticket: support_ticket(record),
        why: recovery.why(),
        standing: recovery.standing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_incident_is_valid_json() {
        let at: Timestamp = "2021-07-11T01:13:00Z".parse().unwrap();
        let empty = Incident {
            title: "<none>".into(),
            from: at,
            to: at,
            records: Vec::new(),
            notes: Vec::new(),
        };
        let value: serde_json::Value = serde_json::from_str(&json(&empty)).unwrap();
        assert_eq!(value["title"], "<none>");
        assert_eq!(value["volumes"], serde_json::json!([]));
    }
}
