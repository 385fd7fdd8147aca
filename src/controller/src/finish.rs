//! The edges of a recovery: the finalizer while something of ours is in force, the questions to agents, and telling
//! people.

use crate::metrics::EndLabels;
use crate::recovery::{Executor, Memory, Turn, TurnError};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Resource, ResourceExt};
use reattach_api::{Opaque, Phase, VolumeRecovery};
use reattach_cluster::reports;
use reattach_cluster::store::SaveError;
use reattach_core::journal::Entry;
use serde_json::json;

/// Keeps a VolumeRecovery from vanishing while a workload may be at zero by its hand.
pub(crate) const FINALIZER: &str = "reattach.dev/restore";

/// Puts the finalizer on, before the first journal line.
pub(crate) async fn hold(executor: &Executor, recovery: VolumeRecovery) -> Result<VolumeRecovery, TurnError> {
    if recovery.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(recovery);
    }
    let status = recovery.status.clone();
    let mut held = recovery;
    held.finalizers_mut().push(FINALIZER.to_owned());
    let api = api(executor, &held);
    match api.replace(&held.name_any(), &PostParams::default(), &held).await {
        // The main resource ignores the status: carry ours over to the next write.
        Ok(stored) => Ok(VolumeRecovery { status, ..stored }),
        Err(kube::Error::Api(s)) if s.is_conflict() => Err(SaveError::Conflict.into()),
        Err(error) => Err(error.into()),
    }
}

/// Takes the finalizer off and withdraws the questions: nothing of ours is left.
pub(crate) async fn release(executor: &Executor, recovery: VolumeRecovery) -> Result<Turn, TurnError> {
    let status = recovery.status.clone().unwrap_or_default();
    let node = status.plan.as_ref().and_then(|p| p.get().ok()).map(|p| p.pins.node.clone());
    let uid = Executor::uid_of(&recovery);
    let turn = executor.reservations.turn_to_ask().await;
    if let Some(cache) = &executor.collector.cache {
        for report in cache.reports.filter(|r| r.spec.challenges.iter().any(|c| reports::is_of(c, &uid))) {
            reports::withdraw(&executor.collector.clients.records, &report.name_any().into(), &uid).await?;
        }
    } else if let Some(node) = node {
        reports::withdraw(&executor.collector.clients.records, &node, &uid).await?;
    }
    drop(turn);
    if recovery.finalizers().iter().any(|f| f == FINALIZER) {
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
    let event = Event {
        type_: if bad { EventType::Warning } else { EventType::Normal },
        reason: format!("{:?}", status.phase),
        note: Some(status.message.chars().take(900).collect()),
        action: "Recover".to_owned(),
        secondary: None,
    };
    let reporter = Reporter { controller: "reattach".to_owned(), instance: Some(executor.identity.clone()) };
    let recorder = Recorder::new(executor.collector.clients.records.clone(), reporter);
    if let Err(error) = recorder.publish(&event, &recovery.object_ref(&())).await {
        tracing::debug!(%error, "the Event could not be written");
    }
}

fn api(executor: &Executor, recovery: &VolumeRecovery) -> Api<VolumeRecovery> {
    Api::namespaced(executor.collector.clients.records.clone(), &recovery.namespace().unwrap_or_default())
}
