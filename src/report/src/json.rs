//! Renders the post-mortem as JSON, for scripts.

use crate::summary::{CloudDetach, RecoverySummary};
use crate::timing::{Timing, own_share, timings};
use crate::{Incident, Record, postmortem, support_ticket};
use jiff::Timestamp;
use reattach_core::diagnosis::Class;
use reattach_core::ids::ObjectName;
use reattach_core::phase::Standing;
use reattach_core::plain::{self, clean};
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

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TimelineLine {
    at: Timestamp,
    claim: Option<String>,
    by: Option<String>,
    text: String,
}

/// Renders the post-mortem as JSON: derived values (`volumes`, `timeline`) and the records that they are derived from.
///
/// Durations are in milliseconds, times in RFC 3339. `downTo` is null while the pod is not known to run again. Hidden
/// characters are written as `\u` escapes.
pub fn json(incident: &Incident) -> String {
    let volumes = incident.records.iter().map(volume).collect();
    let timeline = postmortem::timeline(incident)
        .into_iter()
        .map(|item| TimelineLine {
            at: item.at,
            claim: item.claim.map(|s| s.to_string()),
            by: item.by.map(clean),
            text: item.text,
        })
        .collect();
    let Incident {
        title,
        from,
        to,
        records,
        ..
    } = incident;
    let post_mortem = PostMortem {
        title,
        from: *from,
        to: *to,
        volumes,
        timeline,
        records,
    };
    // No error can occur: strings, numbers and maps with string keys always serialise.
    plain::json(&serde_json::to_string_pretty(&post_mortem).unwrap_or_default())
}

fn volume(record: &Record) -> Volume<'_> {
    let recovery = RecoverySummary::of(record);
    let plan = record.plan.as_ref();
    Volume {
        claim: &record.claim,
        recovery: &record.recovery,
        class: recovery.class(),
        down_from: record.created,
        down_to: recovery.healed_at(),
        accepted_at: recovery.accepted.map(|(at, _)| at),
        authority: recovery.accepted.map(|(_, authority)| authority),
        heal_millis: recovery.heal_millis(),
        own_share_millis: plan
            .filter(|_| recovery.accepted.is_some())
            .map(|p| own_share(p, &record.journal)),
        cloud_detach: recovery.cloud_detach,
        touched: recovery.touched(),
        timings: plan
            .map(|p| timings(p, &record.journal))
            .unwrap_or_default(),
        needs_human: postmortem::needs_human(&recovery),
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
