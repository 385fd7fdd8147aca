//! StatefulSets: ordinals, OrderedReady and Parallel, claims and their retention, partitioned updates.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Context;
use super::workload::{
    Controller, controller_of, delete_pod, owner, pod_of, pod_ready, write_status,
};
use crate::kapi::{Informer, MERGE, code_of};
use crate::names::short_hash;
use crate::object::{has_ended, items, name, namespace, terminating, text, uid};

const REVISION: &str = "controller-revision-hash";

struct Caches {
    sets: Informer,
    pods: Informer,
    claims: Informer,
}

pub(super) async fn run(ctx: Context) {
    let mut c = Controller::new(
        ctx,
        "system:serviceaccount:kube-system:statefulset-controller",
    );
    let caches = Caches {
        sets: c.follow("/apis/apps/v1/statefulsets"),
        pods: c.follow("/api/v1/pods"),
        claims: c.follow("/api/v1/persistentvolumeclaims"),
    };
    let mut at = None;
    loop {
        c.next(at).await;
        let mut result: Result<Option<Instant>, kube::Error> = Ok(None);
        for set in caches.sets.all().iter().filter(|s| !terminating(s)) {
            let synced = sync(&c, set, &caches).await;
            let reported = status(&c, set, &caches).await;
            if let Err(e) = synced.and(reported) {
                result = Err(e);
            }
        }
        at = c.after(result);
    }
}

fn ordinal(set: &Value, pod: &Value) -> Option<i64> {
    name(pod)
        .strip_prefix(name(set))?
        .strip_prefix('-')?
        .parse()
        .ok()
}

fn pods_of(set: &Value, caches: &Caches) -> BTreeMap<i64, Arc<Value>> {
    let ours = caches
        .pods
        .all()
        .into_iter()
        .filter(|p| controller_of(p) == uid(set));
    ours.filter_map(|p| Some((ordinal(set, &p)?, p))).collect()
}

fn update_revision(set: &Value) -> String {
    format!(
        "{}-{}",
        name(set),
        short_hash(&set["spec"]["template"].to_string(), 10)
    )
}

fn current_revision(set: &Value) -> String {
    let current = text(set, "/status/currentRevision");
    if current.is_empty() {
        update_revision(set)
    } else {
        current.to_owned()
    }
}

/// Pods from this ordinal on get the newest revision.
fn partition_of(set: &Value) -> i64 {
    set["spec"]["updateStrategy"]["rollingUpdate"]["partition"]
        .as_i64()
        .unwrap_or(0)
}

fn claim_name(template: &Value, set: &Value, ordinal: i64) -> String {
    format!("{}-{}-{ordinal}", name(template), name(set))
}

/// Whether a pod runs, is Ready and is not being deleted.
fn healthy(pod: &Value) -> bool {
    text(pod, "/status/phase") == "Running" && pod_ready(pod)
}

async fn sync(c: &Controller, set: &Value, caches: &Caches) -> Result<(), kube::Error> {
    let want = set["spec"]["replicas"].as_i64().unwrap_or(1);
    let ordered = set["spec"]["podManagementPolicy"] != "Parallel";
    let pods = pods_of(set, caches);
    ensure_revision(c, set).await?;
    let first_unhealthy = pods.iter().find(|(_, p)| !healthy(p)).map(|(n, _)| *n);
    for n in 0..want {
        match pods.get(&n) {
            None => {
                create(c, set, caches, n).await?;
                if ordered {
                    return Ok(());
                }
            }
            Some(pod) if has_ended(pod) && !terminating(pod) => {
                return delete_pod(&c.kapi, pod, json!({})).await;
            }
            Some(pod) => {
                ensure_claims(c, set, caches, n).await?;
                if ordered && !healthy(pod) {
                    return Ok(());
                }
            }
        }
    }
    let condemned: Vec<_> = pods.iter().rev().filter(|(n, _)| **n >= want).collect();
    let scaling_down = !condemned.is_empty();
    for (n, pod) in condemned {
        if terminating(pod) {
            if ordered {
                return Ok(());
            }
            continue;
        }
        // OrderedReady waits for everything below to be healthy, except that the lowest unhealthy pod itself may go.
        if ordered && !healthy(pod) && first_unhealthy != Some(*n) {
            return Ok(());
        }
        retain_or_release(c, set, caches, *n, pod).await?;
        delete_pod(&c.kapi, pod, json!({})).await?;
        if ordered {
            return Ok(());
        }
    }
    if scaling_down || set["spec"]["updateStrategy"]["type"] == "OnDelete" {
        return Ok(());
    }
    let partition = partition_of(set);
    let revision = update_revision(set);
    for (_, pod) in pods
        .iter()
        .rev()
        .filter(|(n, _)| **n >= partition && **n < want)
    {
        if pod["metadata"]["labels"][REVISION] != revision.as_str() {
            if !terminating(pod) {
                delete_pod(&c.kapi, pod, json!({})).await?;
            }
            return Ok(());
        }
        if !healthy(pod) {
            return Ok(());
        }
    }
    Ok(())
}

async fn ensure_revision(c: &Controller, set: &Value) -> Result<(), kube::Error> {
    let revision = update_revision(set);
    if text(set, "/status/updateRevision") == revision {
        return Ok(());
    }
    let body = json!({"apiVersion": "apps/v1", "kind": "ControllerRevision", "revision": 1,
        "metadata": {"name": revision, "namespace": namespace(set), "ownerReferences": [owner("StatefulSet", set)]},
        "data": {"spec": {"template": set["spec"]["template"]}}});
    let path = format!(
        "/apis/apps/v1/namespaces/{}/controllerrevisions",
        namespace(set)
    );
    match c.kapi.create(&path, &body).await {
        Err(e) if code_of(&e) != 409 => Err(e),
        _ => Ok(()),
    }
}

async fn ensure_claims(
    c: &Controller,
    set: &Value,
    caches: &Caches,
    n: i64,
) -> Result<(), kube::Error> {
    for template in items(set, "/spec/volumeClaimTemplates") {
        let claim = claim_name(template, set, n);
        if caches.claims.get(namespace(set), &claim).is_some() {
            continue;
        }
        let mut body = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": template["spec"],
            "metadata": {"name": claim, "namespace": namespace(set), "labels": set["spec"]["selector"]["matchLabels"]}});
        if set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenDeleted"] == "Delete" {
            let mut reference = owner("StatefulSet", set);
            if let Some(map) = reference.as_object_mut() {
                map.remove("controller");
                map.remove("blockOwnerDeletion");
            }
            body["metadata"]["ownerReferences"] = json!([reference]);
        }
        let path = format!(
            "/api/v1/namespaces/{}/persistentvolumeclaims",
            namespace(set)
        );
        match c.kapi.create(&path, &body).await {
            Ok(made) => caches.claims.saw(&made).await,
            Err(e) if code_of(&e) == 409 => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

async fn create(c: &Controller, set: &Value, caches: &Caches, n: i64) -> Result<(), kube::Error> {
    ensure_claims(c, set, caches, n).await?;
    let pod_name = format!("{}-{n}", name(set));
    let mut pod = pod_of(&set["spec"]["template"], "StatefulSet", set);
    let partition = partition_of(set);
    let revision = if n < partition {
        current_revision(set)
    } else {
        update_revision(set)
    };
    pod["metadata"]["name"] = json!(pod_name);
    pod["metadata"]["labels"]["statefulset.kubernetes.io/pod-name"] = json!(pod_name);
    pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"] = json!(n.to_string());
    pod["metadata"]["labels"][REVISION] = json!(revision);
    pod["spec"]["hostname"] = json!(pod_name);
    let mut volumes: Vec<Value> = items(&pod, "/spec/volumes").cloned().collect();
    for template in items(set, "/spec/volumeClaimTemplates") {
        volumes.retain(|v| v["name"] != template["metadata"]["name"]);
        volumes.push(json!({"name": name(template), "persistentVolumeClaim": {"claimName": claim_name(template, set, n)}}));
    }
    pod["spec"]["volumes"] = json!(volumes);
    match c
        .kapi
        .create(&format!("/api/v1/namespaces/{}/pods", namespace(set)), &pod)
        .await
    {
        Ok(made) => {
            caches.pods.saw(&made).await;
            Ok(())
        }
        Err(e) if code_of(&e) == 409 => Ok(()),
        Err(e) => Err(e),
    }
}

/// With `whenScaled: Delete` the claims of a condemned pod are made its property, and go with it.
async fn retain_or_release(
    c: &Controller,
    set: &Value,
    caches: &Caches,
    n: i64,
    pod: &Value,
) -> Result<(), kube::Error> {
    if set["spec"]["persistentVolumeClaimRetentionPolicy"]["whenScaled"] != "Delete" {
        return Ok(());
    }
    for template in items(set, "/spec/volumeClaimTemplates") {
        let claim = claim_name(template, set, n);
        if caches.claims.get(namespace(set), &claim).is_some() {
            let body = json!({"metadata": {"ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": name(pod), "uid": uid(pod)}]}});
            let path = format!(
                "/api/v1/namespaces/{}/persistentvolumeclaims/{claim}",
                namespace(set)
            );
            c.kapi.patch(&path, MERGE, &body).await?;
        }
    }
    Ok(())
}

async fn status(c: &Controller, set: &Value, caches: &Caches) -> Result<(), kube::Error> {
    let pods = pods_of(set, caches);
    let (update, current) = (update_revision(set), current_revision(set));
    let of = |revision: &str| {
        pods.values()
            .filter(|p| !terminating(p) && p["metadata"]["labels"][REVISION] == revision)
            .count()
    };
    let want = set["spec"]["replicas"].as_i64().unwrap_or(1);
    let ready = pods.values().filter(|p| healthy(p)).count();
    let updated = of(&update);
    let all = i64::try_from(pods.len()).unwrap_or(0);
    let complete = all == want
        && i64::try_from(updated).unwrap_or(0) == want
        && i64::try_from(ready).unwrap_or(0) == want;
    let current = if complete { update.clone() } else { current };
    let status = json!({
        "replicas": pods.len(), "readyReplicas": ready, "availableReplicas": ready, "updatedReplicas": updated,
        "currentReplicas": of(&current), "currentRevision": current, "updateRevision": update,
        "observedGeneration": set["metadata"]["generation"], "collisionCount": 0,
    });
    write_status(&c.kapi, "statefulsets", set, &status).await
}
