//! The edges of a recovery: the finalizer while something of ours is in force, the questions to agents, and telling
//! people.

use crate::metrics::{ClassLabels, EndLabels};
use crate::recovery::{Executor, Memory, Turn, TurnError};
use crate::status;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Resource, ResourceExt};
use reattach_api::{Opaque, Phase, RecoveryPolicy, VolumeRecovery};
use reattach_cluster::store::SaveError;
use reattach_cluster::{node, open_orders, reports, tidy};
use reattach_core::ids::ObjectName;
use reattach_core::journal::{self, Entry};
use reattach_core::plain;
use reattach_core::plan::{SoundPlan, StepIx};
use reattach_core::workload::WorkloadRef;
use serde_json::json;

/// Maximum size of an Event's note in bytes (Kubernetes `pkg/apis/core/validation/events.go`).
const NOTE_BYTES: usize = 1_024;

/// Keeps a VolumeRecovery from vanishing while a workload may be at zero by its hand.
pub(crate) const FINALIZER: &str = "reattach.dev/restore";

/// Puts the finalizer on, before the first journal line.
pub(crate) async fn hold(executor: &Executor, recovery: VolumeRecovery) -> Result<VolumeRecovery, TurnError> {
    if recovery.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(recovery);
    }
    let status = recovery.status.clone();
    let all: Vec<&str> = recovery.finalizers().iter().map(String::as_str).chain([FINALIZER]).collect();
    // Nothing else of the object is sent back: what people wrote into its spec stays as they wrote it, to the last digit.
    let body = json!({ "metadata": { "resourceVersion": recovery.resource_version(), "finalizers": all } });
    let (api, name) = (api(executor, &recovery), recovery.name_any());
    match api.patch(&name, &PatchParams::default(), &Patch::Merge(&body)).await {
        // The main resource ignores the status: carry ours over to the next write.
        Ok(stored) => Ok(VolumeRecovery { status, ..stored }),
        Err(kube::Error::Api(s)) if s.is_conflict() => Err(SaveError::Conflict.into()),
        Err(error) => Err(error.into()),
    }
}

/// Gives the node's lock back, withdraws the questions and takes the finalizer off: nothing of ours is left. A node that
/// is still in quarantine by it keeps its question, which a late agent has to answer.
pub(crate) async fn release(executor: &Executor, recovery: VolumeRecovery) -> Result<Turn, TurnError> {
    let status = recovery.status.clone().unwrap_or_default();
    let plan = recovery.sound_plan();
    let node = plan.as_ref().map(|p| p.pins.node.clone());
    let uid = Executor::uid_of(&recovery);
    if let Some(plan) = plan.as_ref().filter(|_| recovery.finalizers().iter().any(|f| f == FINALIZER)) {
        give_lock_back(executor, &recovery, plan).await?;
        // The run has ended, and it does not before it knows what became of what it ordered.
        for (at, _) in plan.steps.iter().enumerate().filter(|(_, step)| step.kind.spec().is_order()) {
            let step = StepIx(u32::try_from(at).unwrap_or(u32::MAX));
            let ordered = |e: &&Opaque<Entry>| {
                e.get()
                    .is_ok_and(|e| matches!(&e.event, journal::Event::Started { step: s, .. } if *s == step))
            };
            if status.journal.iter().any(|e| ordered(&e)) {
                executor.take_note_away(&open_orders::name(&uid, step)).await;
            }
        }
    }
    let turn = executor.reservations.turn_to_ask().await;
    if let Some(cache) = &executor.collector.cache {
        for report in cache.reports.filter(|r| r.spec.challenges.iter().any(|c| reports::is_of(c, &uid))) {
            let node = cache.nodes.get("", &report.name_any());
            if node.is_some_and(|n| node::quarantined_by(&n).as_ref() == Some(&uid)) {
                continue;
            }
            reports::withdraw(&executor.collector.clients.records, &report.name_any().into(), &uid).await?;
        }
    } else if let Some(node) = node {
        reports::withdraw(&executor.collector.clients.records, &node, &uid).await?;
    }
    drop(turn);
    if recovery.finalizers().iter().any(|f| f == FINALIZER) {
        if let Some(record) = exported(&recovery) {
            let (name, namespace) = (recovery.name_any(), recovery.namespace().unwrap_or_default());
            tracing::warn!(
                recovery = name,
                namespace,
                record,
                "this VolumeRecovery is being deleted; this line keeps its record"
            );
        }
        let rest: Vec<&String> = recovery.finalizers().iter().filter(|f| *f != FINALIZER).collect();
        let body =
            json!({ "metadata": { "resourceVersion": recovery.resource_version(), "finalizers": rest } });
        match api(executor, &recovery)
            .patch(&recovery.name_any(), &PatchParams::default(), &Patch::Merge(&body))
            .await
        {
            Ok(_) => {}
            Err(kube::Error::Api(s)) if s.is_not_found() => {}
            Err(kube::Error::Api(s)) if s.is_conflict() => return Err(SaveError::Conflict.into()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Turn::Final(status.phase))
}

/// Returns the record of a recovery that was deleted after it had begun to act, as one line of JSON. The object goes with its
/// finalizer, whoever had it deleted: a person, the namespace's end, or Kubernetes' garbage collector.
fn exported(recovery: &VolumeRecovery) -> Option<String> {
    recovery.metadata.deletion_timestamp.as_ref()?;
    record_that_acted(recovery)
}

/// Returns the record of a recovery that began to act, as one line of JSON.
pub(crate) fn record_that_acted(recovery: &VolumeRecovery) -> Option<String> {
    let acted = recovery.status.as_ref().is_some_and(|s| !s.journal.is_empty());
    acted.then(|| serde_json::to_string(recovery).ok()).flatten()
}

/// Gives the lock of the plan's node back, if this run can have taken it.
async fn give_lock_back(
    executor: &Executor,
    recovery: &VolumeRecovery,
    plan: &SoundPlan,
) -> Result<(), TurnError> {
    if !plan.steps.iter().any(|step| step.kind.spec().locks_node) {
        return Ok(());
    }
    let name = ObjectName::new(recovery.namespace().unwrap_or_default(), recovery.name_any());
    let pass = executor.gate.tidy().map_err(|_| TurnError::NotLeader)?;
    let outcome = tidy::give_back(&pass, &plan.pins.node, &name).await;
    if !outcome.applied() {
        // It expires by itself; the end of a recovery does not wait for that.
        tracing::warn!(node = %plan.pins.node, ?outcome, "the lock of the node was not given back");
    }
    Ok(())
}

/// One Event, one log line and one count for a wait that calls for a person. Best effort: the condition is the record.
pub(crate) async fn escalate(executor: &Executor, recovery: &VolumeRecovery) {
    let Some(status) = &recovery.status else { return };
    let class = status.class.clone().unwrap_or_default();
    let (name, namespace) = (recovery.name_any(), recovery.namespace().unwrap_or_default());
    let since = status.waiting_since.as_ref().map(|t| t.0.to_string()).unwrap_or_default();
    tracing::error!(recovery = name, namespace, class, since, message = status.message, "a person is needed");
    executor.metrics.escalated.get_or_create(&ClassLabels { class }).inc();
    let told = status.escalation.as_ref();
    let needed = plain::cut(told.map_or(&status.message, |t| &t.summary), 500);
    let shows = if told.is_some_and(|t| t.ticket.is_some()) {
        "prints the ticket, ready to be sent"
    } else {
        "shows what is known"
    };
    let note = format!(
        "it has waited since {since} and goes on by itself once this is over: {needed}. kubectl reattach status -n {namespace} {name} {shows}"
    );
    publish(executor, &recovery.object_ref(&()), status::ESCALATED, true, &note).await;
}

/// One Event, one log line and one count for what only a person can mend, where the status cannot say it.
pub(crate) async fn call(executor: &Executor, about: &ObjectReference, reason: &str, note: String) {
    let class = String::new();
    tracing::error!(recovery = about.name, namespace = about.namespace, reason, note, "a person is needed");
    executor.metrics.escalated.get_or_create(&ClassLabels { class }).inc();
    publish(executor, about, reason, true, &note).await;
}

/// One Event and one log line about what others wrote and reattach leaves alone.
pub(crate) async fn remark(executor: &Executor, about: &ObjectReference, reason: &str, note: String) {
    tracing::warn!(object = about.name, namespace = about.namespace, reason, note, "left alone");
    publish(executor, about, reason, true, &note).await;
}

/// A workload, as the object that an Event is about.
pub(crate) fn about(workload: &WorkloadRef) -> ObjectReference {
    ObjectReference {
        api_version: Some(workload.api_version.clone()),
        kind: Some(workload.kind.clone()),
        namespace: Some(workload.name.namespace.to_string()),
        name: Some(workload.name.name.to_string()),
        uid: Some(workload.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// One Event and one log line for every change of phase. Best effort: the status is the record.
pub(crate) async fn tell(executor: &Executor, recovery: &VolumeRecovery, memory: &mut Memory) {
    let Some(status) = &recovery.status else { return };
    if memory.told == Some(status.phase) {
        return;
    }
    memory.told = Some(status.phase);
    let class = status.class.clone().unwrap_or_default();
    let claim = Executor::claim_of(recovery);
    tracing::info!(recovery = %recovery.name_any(), %claim, class, phase = ?status.phase, message = status.message, "recovery");
    if status.phase.is_final() || status.phase == Phase::Stuck {
        let labels = EndLabels { phase: format!("{:?}", status.phase), class };
        executor.metrics.ended.get_or_create(&labels).inc();
        let (first, last) = (status.journal.first(), status.journal.last());
        let at = |e: Option<&Opaque<Entry>>| Some(e?.get().ok()?.at);
        if let (Phase::Recovered, Some(from), Some(to)) = (status.phase, at(first), at(last)) {
            executor.metrics.duration.observe(to.duration_since(from).as_secs_f64());
        }
    }
    let bad = matches!(status.phase, Phase::Failed | Phase::Stuck | Phase::Refused);
    publish(executor, &recovery.object_ref(&()), &format!("{:?}", status.phase), bad, &status.message).await;
}

/// One Event and one log line for a policy that selects drivers which no provider knows: its claims are left alone.
pub(crate) async fn warn(executor: &Executor, policy: &RecoveryPolicy) {
    let providers = &executor.collector.providers;
    for why in policy.spec.selector.drivers.iter().filter_map(|driver| providers.unknown_driver(driver)) {
        let note = format!("the claims that it selects by their driver are left alone: {why}");
        tracing::warn!(policy = policy.name_any(), note, "a policy that cannot be followed");
        publish(executor, &policy.object_ref(&()), "UnknownDriver", true, &note).await;
    }
}

async fn publish(executor: &Executor, about: &ObjectReference, reason: &str, bad: bool, note: &str) {
    let event = Event {
        type_: if bad { EventType::Warning } else { EventType::Normal },
        reason: reason.to_owned(),
        note: Some(note_of(note)),
        action: "Recover".to_owned(),
        secondary: None,
    };
    let reporter = Reporter { controller: "reattach".to_owned(), instance: Some(executor.identity.clone()) };
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

fn api(executor: &Executor, recovery: &VolumeRecovery) -> Api<VolumeRecovery> {
    Api::namespaced(executor.collector.clients.records.clone(), &recovery.namespace().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recovery(deleted: bool, journal: serde_json::Value) -> VolumeRecovery {
        let mut object = json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": { "name": "data-b", "namespace": "shop" },
            "spec": { "claimName": "data", "mode": "Auto", "runbook": "lightest-first", "requester": "controller" },
            "status": { "phase": "Recovered", "message": "done", "journal": journal },
        });
        if deleted {
            object["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_deleted_record_that_acted_is_exported_on_one_line() {
        let line = json!([{ "anything": "a line\nof two" }]);
        let exported_line = exported(&recovery(true, line.clone())).unwrap();
        assert!(!exported_line.contains('\n'), "{exported_line}");
        let read: VolumeRecovery = serde_json::from_str(&exported_line).unwrap();
        assert_eq!(read.status.unwrap().journal.len(), 1);
        assert_eq!(exported(&recovery(false, line)), None);
        assert_eq!(exported(&recovery(true, json!([]))), None);
    }

    #[test]
    fn a_note_fits_into_an_event_in_any_alphabet() {
        for word in ["wort ", "日本語 ", "\u{1b}[31mß\n"] {
            let note = note_of(&word.repeat(2_000));
            assert!(note.len() <= NOTE_BYTES, "{} bytes", note.len());
            assert!(
                note.len() > NOTE_BYTES / 2 && note.contains('…') && !note.contains(['\u{1b}', '\n']),
                "{note}"
            );
        }
        assert_eq!(note_of("short"), "short");
    }
}
