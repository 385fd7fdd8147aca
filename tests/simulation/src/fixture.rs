//! Stages that many tests begin with, and redis, the app that they look at.

use crate::{NODES, redis, secs};
use futures::future::BoxFuture;
use kube::Api;
use kube::api::{Patch, PatchParams};
use reattach_api::VolumeRecovery;
use reattach_core::runbook::DEFAULT_RUNBOOK;
use reattach_drill::app::App;
use reattach_drill::baseline::on_one_node;
use reattach_drill::stage::{self, Expect, START, Stage};
use reattach_drill::world::{APPS, World, WorldError};
use reattach_sim::kubelet::DiskAfter;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};

/// A stage of these nodes, without apps and controllers, whose clock starts at 03:00 UTC.
///
/// # Errors
/// [`WorldError`].
pub async fn new_stage(seed: u64, nodes: &[(&str, u64)]) -> Result<Stage, WorldError> {
    Stage::new(seed, START, nodes, Arc::new(|_| {})).await
}

/// A stage with redis running under a policy of mode Auto with this runbook, and one controller.
///
/// # Errors
/// [`WorldError`].
pub async fn redis_under(seed: u64, runbook: &str) -> Result<Stage, WorldError> {
    let mut s = new_stage(seed, &NODES).await?;
    s.add(redis(), Expect::Running).await?;
    let policy = json!({"mode": "Auto", "precedence": 0, "runbook": runbook});
    s.world.policy_of("everything", &policy).await?;
    s.running(&["redis"], secs(180)).await?;
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(5)).await;
    Ok(s)
}

/// A stage with these apps on the first node, and machines whose power the cloud decides. No policy and no controller.
///
/// # Errors
/// [`WorldError`].
pub async fn on_first_node(
    seed: u64,
    apps: impl IntoIterator<Item = (App, Expect)>,
) -> Result<Stage, WorldError> {
    let mut s = new_stage(seed, &NODES).await?;
    s.world.follow_power();
    on_one_node(&mut s, &NODES, apps.into_iter()).await?;
    Ok(s)
}

/// A policy for everything of mode Auto under the default runbook, with these further or other fields.
///
/// # Errors
/// The API server refuses it.
pub async fn policy(s: &Stage, fields: &Value) -> Result<(), WorldError> {
    let mut spec = json!({"mode": "Auto", "precedence": 0, "runbook": DEFAULT_RUNBOOK});
    for (key, value) in fields.as_object().into_iter().flatten() {
        spec[key] = value.clone();
    }
    s.world.policy_of("everything", &spec).await
}

/// Recycles the node of redis uncleanly: a phantom attachment.
///
/// # Errors
/// [`WorldError`].
pub async fn recycle_redis(s: &mut Stage) -> Result<(), WorldError> {
    let node = s.node_of("redis");
    s.recycle(&node, DiskAfter::Kept, secs(6)).await
}

/// Recycles the node of redis, and waits until the run has scaled redis to zero.
///
/// # Errors
/// [`WorldError`].
pub async fn redis_to_zero(s: &mut Stage) -> Result<(), WorldError> {
    recycle_redis(s).await?;
    s.until("redis at zero", secs(300), |w| replicas(w) == 0)
        .await
        .map(|_| ())
}

/// The replica count of redis.
///
/// # Panics
/// Without the Deployment.
pub fn replicas(w: &World) -> i64 {
    let deployment = redis().read(w.server()).expect("the Deployment redis");
    deployment["spec"]["replicas"].as_i64().expect("a count")
}

/// Path of the newest recovery of redis.
///
/// # Panics
/// Without a recovery.
pub fn recovery_path(s: &Stage) -> String {
    let recovery = s.recovery_of("redis").expect("a recovery of redis");
    stage::recovery_path(&recovery).expect("a name")
}

/// The controllers' effects so far, a line for each.
pub fn effects(s: &Stage) -> Vec<String> {
    let effects = s.world.request_log.effects();
    effects.iter().map(|e| e.line()).collect()
}

/// Stores an abort in every recovery right before the first replica's `number`th request leaves. Returns the length of the
/// request log at the last abort.
pub fn abort_before(s: &Stage, number: u64) -> Arc<Mutex<Option<usize>>> {
    let aborted: Arc<Mutex<Option<usize>>> = Arc::default();
    let api: Api<VolumeRecovery> = Api::namespaced(s.world.client_as("oncall"), APPS);
    let (stored, request_log) = (aborted.clone(), s.world.request_log.clone());
    let hook = move || -> BoxFuture<'static, ()> {
        let (api, stored, at) = (api.clone(), stored.clone(), request_log.len());
        Box::pin(async move {
            let body = json!({"spec": {"abort": {"by": "oncall", "reason": "not tonight"}}});
            for recovery in api.list(&Default::default()).await.expect("a list") {
                let name = recovery.metadata.name.unwrap_or_default();
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&body))
                    .await
                    .expect("patched");
                *stored.lock().expect("unpoisoned") = Some(at);
            }
        })
    };
    s.replicas[0].meanwhile(number, Arc::new(hook));
    aborted
}
