//! Deployments: one ReplicaSet per template; RollingUpdate or Recreate.

use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Context;
use super::workload::{
    Controller, active, app_path, controller_of, owner, pod_ready, write_status,
};
use crate::clock::rfc3339;
use crate::kapi::{Informer, MERGE};
use crate::names::short_hash;
use crate::object::{int_or_percent, items, name, namespace, terminating, text, uid};

const HASH: &str = "pod-template-hash";

pub(super) async fn run(ctx: Context) {
    let mut c = Controller::new(
        ctx,
        "system:serviceaccount:kube-system:deployment-controller",
    );
    let deployments = c.follow("/apis/apps/v1/deployments");
    let sets = c.follow("/apis/apps/v1/replicasets");
    let pods = c.follow("/api/v1/pods");
    let mut at = None;
    loop {
        c.next(at).await;
        at = c.after(look(&c, &deployments, &sets, &pods).await);
    }
}

fn replicas(set: &Value) -> i64 {
    set["spec"]["replicas"].as_i64().unwrap_or(0)
}

async fn look(
    c: &Controller,
    deployments: &Informer,
    sets: &Informer,
    pods: &Informer,
) -> Result<Option<Instant>, kube::Error> {
    for d in deployments.all().iter().filter(|d| !terminating(d)) {
        if d["spec"]["paused"] != true {
            sync(c, d, sets, pods).await?;
        }
        status(c, d, sets, pods).await?;
    }
    Ok(None)
}

async fn scale(c: &Controller, sets: &Informer, set: &Value, to: i64) -> Result<(), kube::Error> {
    if replicas(set) != to {
        let body = json!({"metadata": {"uid": uid(set)}, "spec": {"replicas": to}});
        let written = c
            .kapi
            .patch(&app_path("replicasets", set), MERGE, &body)
            .await?;
        sets.saw(&written).await;
    }
    Ok(())
}

fn owned(d: &Value, sets: &Informer) -> Vec<Arc<Value>> {
    sets.all()
        .into_iter()
        .filter(|s| controller_of(s) == uid(d) && !terminating(s))
        .collect()
}

fn max_unavailable(d: &Value, want: i64) -> i64 {
    let value = &d["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"];
    int_or_percent(value, want, false).unwrap_or(0)
}

fn hash_of(d: &Value) -> String {
    short_hash(&d["spec"]["template"].to_string(), 10)
}

async fn sync(
    c: &Controller,
    d: &Value,
    sets: &Informer,
    pods: &Informer,
) -> Result<(), kube::Error> {
    let hash = hash_of(d);
    let want = d["spec"]["replicas"].as_i64().unwrap_or(1);
    let is_new = |s: &Value| s["metadata"]["labels"][HASH] == hash.as_str();
    let ours = owned(d, sets);
    let recreate = d["spec"]["strategy"]["type"] == "Recreate";
    let pods_of = |set: &Value| {
        pods.all()
            .iter()
            .filter(|p| controller_of(p) == uid(set))
            .count()
    };
    let old: Vec<_> = ours.iter().filter(|s| !is_new(s)).collect();
    let old_running: i64 = old.iter().map(|s| replicas(s)).sum();
    let Some(new) = ours.iter().find(|s| is_new(s)) else {
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": format!("{}-{hash}", name(d)), "namespace": namespace(d),
                "labels": d["spec"]["template"]["metadata"]["labels"], "ownerReferences": [owner("Deployment", d)],
                "annotations": {"deployment.kubernetes.io/revision": (ours.len() + 1).to_string()}},
            "spec": {"replicas": if old_running > 0 { 0 } else { want }, "selector": d["spec"]["selector"], "template": d["spec"]["template"]},
        });
        set["metadata"]["labels"][HASH] = json!(hash);
        set["spec"]["selector"]["matchLabels"][HASH] = json!(hash);
        set["spec"]["template"]["metadata"]["labels"][HASH] = json!(hash);
        let made = c
            .kapi
            .create(
                &format!("/apis/apps/v1/namespaces/{}/replicasets", namespace(d)),
                &set,
            )
            .await?;
        sets.saw(&made).await;
        return Ok(());
    };
    if old
        .iter()
        .all(|s| replicas(s) == 0 && (!recreate || pods_of(s) == 0))
    {
        return scale(c, sets, new, want).await;
    }
    if recreate {
        for s in old {
            scale(c, sets, s, 0).await?;
        }
        return Ok(());
    }
    let rolling = &d["spec"]["strategy"]["rollingUpdate"];
    let surge = int_or_percent(&rolling["maxSurge"], want, true).unwrap_or(0);
    let mut unavailable = max_unavailable(d, want);
    if surge == 0 && unavailable == 0 {
        unavailable = 1;
    }
    scale(
        c,
        sets,
        new,
        want.min(replicas(new) + (want + surge - replicas(new) - old_running).max(0)),
    )
    .await?;
    let all = pods.all();
    let ready = all
        .iter()
        .filter(|p| ours.iter().any(|s| controller_of(p) == uid(s)) && pod_ready(p))
        .count();
    let mut spare = i64::try_from(ready).unwrap_or(0) - (want - unavailable);
    for s in old {
        // Pods that are not ready may go in any case.
        let unready = all
            .iter()
            .filter(|p| controller_of(p) == uid(s) && active(p) && !pod_ready(p))
            .count();
        let unready = i64::try_from(unready).unwrap_or(0);
        let new_ready = all
            .iter()
            .any(|p| controller_of(p) == uid(new) && pod_ready(p));
        let drop = spare
            .max(0)
            .max(if new_ready { unready } else { 0 })
            .min(replicas(s));
        spare -= drop;
        scale(c, sets, s, replicas(s) - drop).await?;
    }
    Ok(())
}

async fn status(
    c: &Controller,
    d: &Value,
    sets: &Informer,
    pods: &Informer,
) -> Result<(), kube::Error> {
    let ours = owned(d, sets);
    let hash = hash_of(d);
    let all: Vec<_> = pods
        .all()
        .into_iter()
        .filter(|p| active(p) && ours.iter().any(|s| controller_of(p) == uid(s)))
        .collect();
    let ready = all.iter().filter(|p| pod_ready(p)).count();
    let updated = all
        .iter()
        .filter(|p| p["metadata"]["labels"][HASH] == hash.as_str())
        .count();
    let want = d["spec"]["replicas"].as_i64().unwrap_or(1);
    let missing = (want - i64::try_from(ready).unwrap_or(0)).max(0);
    let available = missing <= max_unavailable(d, want);
    let complete =
        missing == 0 && i64::try_from(updated).unwrap_or(0) == want && all.len() == updated;
    let now = rfc3339(c.ctx.now());
    let condition = |kind: &str, on: bool, reason: &str| {
        let value = if on { "True" } else { "False" };
        let old = items(d, "/status/conditions")
            .find(|x| x["type"] == kind && x["status"] == value && x["reason"] == reason);
        let since = old.map_or(now.as_str(), |o| text(o, "/lastTransitionTime"));
        json!({"type": kind, "status": value, "reason": reason, "lastTransitionTime": since, "lastUpdateTime": since})
    };
    let progress = if complete {
        "NewReplicaSetAvailable"
    } else {
        "ReplicaSetUpdated"
    };
    let status = json!({
        "replicas": all.len(), "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready,
        "unavailableReplicas": missing, "observedGeneration": d["metadata"]["generation"],
        "conditions": [
            condition("Available", available, if available { "MinimumReplicasAvailable" } else { "MinimumReplicasUnavailable" }),
            condition("Progressing", true, progress),
        ],
    });
    write_status(&c.kapi, "deployments", d, &status).await
}
