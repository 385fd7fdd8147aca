//! The finalizer of a VolumeRecovery, which is there while something of its run is in force.

use crate::recovery::{Executor, Turn, TurnError};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use reattach_api::{Opaque, StoredRecovery, VolumeRecovery};
use reattach_cluster::effects::node;
use reattach_cluster::store::SaveError;
use reattach_cluster::{open_orders, reports, tidy};
use reattach_core::ids::StepIx;
use reattach_core::journal::{Entry, Event};
use reattach_core::plan::SoundPlan;
use reattach_core::steps::StepKind;
use serde_json::json;

/// The finalizer that keeps a VolumeRecovery while its run may have a workload at zero replicas.
pub(crate) const FINALIZER: &str = "reattach.dev/restore";

/// Adds the finalizer. It must be there before the first journal line.
pub(crate) async fn ensure(
    executor: &Executor,
    recovery: StoredRecovery,
) -> Result<StoredRecovery, TurnError> {
    if recovery.finalizers().iter().any(|f| f == FINALIZER) {
        return Ok(recovery);
    }
    let status = recovery.status.clone();
    let all: Vec<&str> = recovery
        .finalizers()
        .iter()
        .map(String::as_str)
        .chain([FINALIZER])
        .collect();
    // Nothing else of the object is sent back: what people wrote into its spec stays as they wrote it, to the last digit.
    let body = json!({ "metadata": { "resourceVersion": recovery.resource_version(), "finalizers": all } });
    let (api, name) = (api(executor, &recovery), recovery.name_any());
    match api
        .patch(&name, &PatchParams::default(), &Patch::Merge(&body))
        .await
    {
        // The main resource ignores the status: carry ours over to the next write.
        Ok(stored) => {
            let mut stored = StoredRecovery::try_from(stored)?;
            stored.status = status;
            Ok(stored)
        }
        Err(kube::Error::Api(s)) if s.is_conflict() => Err(SaveError::Conflict.into()),
        Err(error) => Err(error.into()),
    }
}

/// Releases the node's lock, withdraws the questions to agents and removes the finalizer, so that nothing of the run is left. A
/// node that this recovery still has in quarantine keeps its question, because the agent's late answer ends the quarantine.
pub(crate) async fn remove(
    executor: &Executor,
    recovery: StoredRecovery,
) -> Result<Turn, TurnError> {
    let status = recovery.status.clone().unwrap_or_default();
    let plan = recovery.sound_plan();
    let node = plan.as_ref().map(|p| p.pins.node.clone());
    let uid = recovery.uid();
    if let Some(plan) = plan
        .as_ref()
        .filter(|_| recovery.finalizers().iter().any(|f| f == FINALIZER))
    {
        release_lock(executor, &recovery, plan).await?;
        // The run has ended, and it does not before it knows what became of what it ordered.
        for (at, _) in plan
            .steps
            .iter()
            .enumerate()
            .filter(|(_, step)| step.kind.spec().is_order() || step.kind == StepKind::KeepOff)
        {
            let step = StepIx(u32::try_from(at).unwrap_or(u32::MAX));
            let ordered = |e: &&Opaque<Entry>| {
                e.get()
                    .is_ok_and(|e| matches!(&e.event, Event::Started { step: s, .. } if *s == step))
            };
            if status.journal.iter().any(|e| ordered(&e)) {
                executor.take_note_away(&open_orders::name(uid, step)).await;
            }
        }
    }
    let turn = executor.reservations.turn_to_ask().await;
    if let Some(cache) = &executor.collector.cache {
        for report in cache
            .reports
            .filter(|r| r.spec.challenges.iter().any(|c| reports::is_of(c, uid)))
        {
            let node = cache.nodes.get("", &report.name_any());
            if node.is_some_and(|n| node::quarantined_by(&n).as_ref() == Some(uid)) {
                continue;
            }
            reports::withdraw(
                &executor.collector.clients.records,
                &report.name_any().into(),
                uid,
            )
            .await?;
        }
    } else if let Some(node) = node {
        reports::withdraw(&executor.collector.clients.records, &node, uid).await?;
    }
    drop(turn);
    if recovery.finalizers().iter().any(|f| f == FINALIZER) {
        if let Some(record) = exported(&recovery) {
            tracing::warn!(
                recovery = recovery.name().name,
                namespace = recovery.name().namespace,
                record,
                "this VolumeRecovery is being deleted; this line keeps its record"
            );
        }
        let rest: Vec<&String> = recovery
            .finalizers()
            .iter()
            .filter(|f| *f != FINALIZER)
            .collect();
        let body = json!({ "metadata": { "resourceVersion": recovery.resource_version(), "finalizers": rest } });
        match api(executor, &recovery)
            .patch(
                &recovery.name_any(),
                &PatchParams::default(),
                &Patch::Merge(&body),
            )
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
    let acted = recovery
        .status
        .as_ref()
        .is_some_and(|s| !s.journal.is_empty());
    acted
        .then(|| serde_json::to_string(recovery).ok())
        .flatten()
}

/// Releases the lock of the plan's node, if this run can have taken it.
async fn release_lock(
    executor: &Executor,
    recovery: &StoredRecovery,
    plan: &SoundPlan,
) -> Result<(), TurnError> {
    if !plan.steps.iter().any(|step| step.kind.spec().locks_node) {
        return Ok(());
    }
    let name = recovery.name();
    let pass = executor.gate.tidy().map_err(|_| TurnError::NotLeader)?;
    let outcome = tidy::give_back(&pass, &plan.pins.node, name).await;
    if !outcome.applied() {
        // The end of a recovery does not wait for that.
        tracing::warn!(node = %plan.pins.node, ?outcome, "the lock of the node was not released; it expires by itself");
    }
    Ok(())
}

fn api(executor: &Executor, recovery: &StoredRecovery) -> Api<VolumeRecovery> {
    Api::namespaced(
        executor.collector.clients.records.clone(),
        &recovery.name().namespace,
    )
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
}
