//! Binds claims to the volumes that are named for them, and protects claims that are in use.

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Context;
use super::workload::Controller;
use crate::kapi::{Informer, MERGE};
use crate::object::{claims_of, items, name, namespace, terminating, text, uid};

const PROTECTION: &str = "kubernetes.io/pvc-protection";

pub(super) async fn run(ctx: Context) {
    let mut c = Controller::new(
        ctx,
        "system:serviceaccount:kube-system:persistent-volume-binder",
    );
    let claims = c.follow("/api/v1/persistentvolumeclaims");
    let volumes = c.follow("/api/v1/persistentvolumes");
    let pods = c.follow("/api/v1/pods");
    let mut at = None;
    loop {
        c.next(at).await;
        at = c.after(look(&c, &claims, &volumes, &pods).await);
    }
}

fn volume_for(claim: &Value, volumes: &Informer) -> Option<std::sync::Arc<Value>> {
    let named = text(claim, "/spec/volumeName");
    if !named.is_empty() {
        return volumes.get("", named);
    }
    volumes.all().into_iter().find(|v| {
        let of = &v["spec"]["claimRef"];
        of["name"] == name(claim) && of["namespace"] == namespace(claim)
    })
}

async fn look(
    c: &Controller,
    claims: &Informer,
    volumes: &Informer,
    pods: &Informer,
) -> Result<Option<Instant>, kube::Error> {
    for claim in claims.all() {
        let path = format!(
            "/api/v1/namespaces/{}/persistentvolumeclaims/{}",
            namespace(&claim),
            name(&claim)
        );
        let protected = items(&claim, "/metadata/finalizers").any(|f| f == PROTECTION);
        if terminating(&claim) {
            let used = pods.all().iter().any(|p| {
                namespace(p) == namespace(&claim) && claims_of(p).any(|(_, n)| n == name(&claim))
            });
            if protected && !used {
                let keep: Vec<_> = items(&claim, "/metadata/finalizers")
                    .filter(|f| *f != PROTECTION)
                    .collect();
                let body = json!({"metadata": {"uid": uid(&claim), "finalizers": keep}});
                c.kapi.patch(&path, MERGE, &body).await?;
            }
            continue;
        }
        if !protected {
            let mut all: Vec<Value> = items(&claim, "/metadata/finalizers").cloned().collect();
            all.push(json!(PROTECTION));
            let body = json!({"metadata": {"uid": uid(&claim), "finalizers": all}});
            let written = c.kapi.patch(&path, MERGE, &body).await?;
            claims.saw(&written).await;
        }
        let Some(volume) = volume_for(&claim, volumes) else {
            continue;
        };
        let of = &volume["spec"]["claimRef"];
        if of["uid"] == uid(&claim) && text(&claim, "/status/phase") == "Bound" {
            continue;
        }
        // Bound to another claim, or reserved for one: a claim that names the volume stays Pending.
        let for_another = of["name"] != name(&claim) || of["namespace"] != namespace(&claim);
        if !of.is_null() && for_another || !of["uid"].is_null() && of["uid"] != uid(&claim) {
            continue;
        }
        let reference = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "name": name(&claim),
            "namespace": namespace(&claim), "uid": uid(&claim)});
        let pv = format!("/api/v1/persistentvolumes/{}", name(&volume));
        c.kapi
            .patch(&pv, MERGE, &json!({"spec": {"claimRef": reference}}))
            .await?;
        c.kapi
            .patch(
                &format!("{pv}/status"),
                MERGE,
                &json!({"status": {"phase": "Bound"}}),
            )
            .await?;
        let bind = json!({"spec": {"volumeName": name(&volume)}, "metadata": {"annotations": {"pv.kubernetes.io/bind-completed": "yes"}}});
        c.kapi.patch(&path, MERGE, &bind).await?;
        let status = json!({"status": {"phase": "Bound", "accessModes": volume["spec"]["accessModes"], "capacity": volume["spec"]["capacity"]}});
        c.kapi
            .patch(&format!("{path}/status"), MERGE, &status)
            .await?;
    }
    Ok(None)
}
