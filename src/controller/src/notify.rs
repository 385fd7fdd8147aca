//! What people are told: Events, log lines and counts.

use crate::attempts;
use crate::metrics::{ClassLabels, EndLabels};
use crate::recovery::{DriverState, Executor};
use crate::status;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Resource, ResourceExt};
use reattach_api::{Opaque, Phase, RecoveryPolicy, StoredRecovery};
use reattach_core::ids::ObjectName;
use reattach_core::journal::Entry;
use reattach_core::plain;
use reattach_core::workload::WorkloadRef;

/// Maximum size of an Event's note in bytes (Kubernetes `pkg/apis/core/validation/events.go`).
const NOTE_BYTES: usize = 1_024;

/// Writes the log line of a recovery that only a person can settle.
pub(crate) fn stuck(recovery: &StoredRecovery, why: &str) {
    tracing::error!(recovery = %recovery.claim(), why, "a person is needed: the recovery cannot go on by itself");
}

/// Writes one Event, one log line and one count for a wait that needs a person. Best effort: the condition is the record.
pub(crate) async fn escalated(executor: &Executor, recovery: &StoredRecovery) {
    let Some(status) = &recovery.status else {
        return;
    };
    let class = status.class.clone().unwrap_or_default();
    let ObjectName { namespace, name } = recovery.name();
    let since = status
        .waiting_since
        .as_ref()
        .map(|t| t.0.to_string())
        .unwrap_or_default();
    tracing::error!(
        recovery = name,
        namespace,
        class = status.class_name(),
        since,
        message = status.message,
        "a person is needed"
    );
    executor
        .metrics
        .escalated
        .get_or_create(&ClassLabels { class })
        .inc();
    let told = status.escalation.as_ref();
    let needed = plain::cut(told.map_or(&status.message, |t| &t.summary), 500);
    let shows = if told.is_some_and(|t| t.ticket.is_some()) {
        "prints the ticket, ready to be sent"
    } else {
        "shows what is known"
    };
    let note = format!(
        "the recovery has waited since {since}: {needed}. It continues by itself once that is over. kubectl reattach status -n {namespace} {name} {shows}"
    );
    publish(
        executor,
        &recovery.object_ref(&()),
        status::ESCALATED,
        true,
        &note,
    )
    .await;
}

/// Writes one Event, one log line and one count for a fault that only a person can mend and that no status can show.
pub(crate) async fn person_needed(
    executor: &Executor,
    about: &ObjectReference,
    reason: &str,
    note: String,
) {
    let class = String::new();
    tracing::error!(
        recovery = about.name,
        namespace = about.namespace,
        reason,
        note,
        "a person is needed"
    );
    executor
        .metrics
        .escalated
        .get_or_create(&ClassLabels { class })
        .inc();
    publish(executor, about, reason, true, &note).await;
}

/// Writes one Event and one log line about an object of others that reattach leaves alone.
pub(crate) async fn left_alone(
    executor: &Executor,
    about: &ObjectReference,
    reason: &str,
    note: String,
) {
    tracing::warn!(
        object = about.name,
        namespace = about.namespace,
        reason,
        note,
        "left alone"
    );
    publish(executor, about, reason, true, &note).await;
}

/// Returns the reference to a workload that an Event carries.
pub(crate) fn reference(workload: &WorkloadRef) -> ObjectReference {
    ObjectReference {
        api_version: Some(workload.api_version.clone()),
        kind: Some(workload.kind.clone()),
        namespace: Some(workload.name.namespace.to_string()),
        name: Some(workload.name.name.to_string()),
        uid: Some(workload.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// Writes one Event and one log line for each change of phase. Best effort: the status is the record.
pub(crate) async fn phase(
    executor: &Executor,
    recovery: &StoredRecovery,
    memory: &mut DriverState,
) {
    let Some(status) = &recovery.status else {
        return;
    };
    if memory.told == Some(status.phase) {
        return;
    }
    memory.told = Some(status.phase);
    let class = status.class.clone().unwrap_or_default();
    let claim = recovery.claim();
    tracing::info!(recovery = %recovery.name_any(), %claim, class = status.class_name(), phase = ?status.phase, message = status.message, "recovery");
    if status.phase.is_final() || status.phase == Phase::Stuck {
        let labels = EndLabels {
            phase: format!("{:?}", status.phase),
            class,
        };
        executor.metrics.ended.get_or_create(&labels).inc();
        let (first, last) = (status.journal.first(), status.journal.last());
        let at = |e: Option<&Opaque<Entry>>| Some(e?.get().ok()?.at);
        if let (Phase::Recovered, Some(from), Some(to)) = (status.phase, at(first), at(last)) {
            executor
                .metrics
                .duration
                .observe(to.duration_since(from).as_secs_f64());
        }
    }
    let bad = match status.phase {
        Phase::Failed | Phase::Stuck | Phase::Refused => true,
        Phase::Withdrawn => recovery.spec.attempt >= attempts::CALLS_A_PERSON,
        Phase::Diagnosing
        | Phase::NotOurs
        | Phase::Waiting
        | Phase::Planned
        | Phase::AwaitingApproval
        | Phase::Running
        | Phase::Restoring
        | Phase::Recovered
        | Phase::Resolved
        | Phase::Aborted => false,
    };
    publish(
        executor,
        &recovery.object_ref(&()),
        &format!("{:?}", status.phase),
        bad,
        &status.message,
    )
    .await;
}

/// Writes one Event and one log line for a policy that selects drivers of no provider. The claims of these drivers are left alone.
pub(crate) async fn unknown_drivers(executor: &Executor, policy: &RecoveryPolicy) {
    let providers = &executor.collector.providers;
    for why in policy
        .spec
        .selector
        .drivers
        .iter()
        .filter_map(|driver| providers.unknown_driver(driver))
    {
        let note =
            format!("claims that the policy selects by this driver are not recovered: {why}");
        tracing::warn!(
            policy = policy.name_any(),
            note,
            "a policy selects a driver that no provider knows"
        );
        publish(
            executor,
            &policy.object_ref(&()),
            "UnknownDriver",
            true,
            &note,
        )
        .await;
    }
}

async fn publish(
    executor: &Executor,
    about: &ObjectReference,
    reason: &str,
    bad: bool,
    note: &str,
) {
    let event = Event {
        type_: if bad {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: reason.to_owned(),
        note: Some(note_of(note)),
        action: "Recover".to_owned(),
        secondary: None,
    };
    let reporter = Reporter {
        controller: "reattach".to_owned(),
        instance: Some(executor.identity.clone()),
    };
    let recorder = Recorder::new(executor.collector.clients.records.clone(), reporter);
    if let Err(error) = recorder.publish(&event, about).await {
        tracing::debug!(%error, "the Event could not be written");
    }
}

/// The note of an Event: plain, and of at most as many bytes as the API server takes.
fn note_of(text: &str) -> String {
    let mut note = plain::sentence(text, NOTE_BYTES);
    for most in (0..NOTE_BYTES).rev().step_by(64) {
        if note.len() <= NOTE_BYTES {
            break;
        }
        note = plain::sentence(text, most);
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_fits_into_an_event_in_any_alphabet() {
        for word in ["wort ", "日本語 ", "\u{1b}[31mß\n"] {
            let note = note_of(&word.repeat(2_000));
            assert!(note.len() <= NOTE_BYTES, "{} bytes", note.len());
            assert!(
                note.len() > NOTE_BYTES / 2
                    && note.contains('…')
                    && !note.contains(['\u{1b}', '\n']),
                "{note}"
            );
        }
        assert_eq!(note_of("short"), "short");
    }
}
