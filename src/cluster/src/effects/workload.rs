//! Scaling a workload to zero and restoring it, with the stamp that says why.

use crate::gate::EffectPass;
use crate::reply::{failure, outcome};
use crate::workloads::api_resource;
use k8s_openapi::api::apps::v1::ReplicaSet;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use reattach_api::metadata;
use reattach_core::ids::ResourceVersion;
use reattach_core::journal::Outcome;
use reattach_core::stamp::{STAMP_ANNOTATION, Stamp};
use reattach_core::workload::{ScalePath, WorkloadRef};
use serde_json::{Value, json};

/// Stamps a workload and sets its replicas to zero: one write on the main resource, or, where only `/scale` may be
/// written, the stamp first and the count with the stamp's resourceVersion (`/scale` drops annotations).
pub async fn scale_to_zero(
    pass: &EffectPass,
    workload: &WorkloadRef,
    version: &ResourceVersion,
    path: ScalePath,
    stamp: &Stamp,
) -> Outcome {
    let annotations = json!({ STAMP_ANNOTATION: stamp.to_annotation() });
    match path {
        ScalePath::Replicas => {
            let body = conditional(workload, version, annotations, Some(0));
            outcome(
                patch(pass, workload, None, &body).await,
                "stamped and scaled to 0",
            )
        }
        ScalePath::ScaleSubresource => {
            let body = conditional(workload, version, annotations, None);
            let stamped = match patch(pass, workload, None, &body).await {
                Ok(object) => object,
                Err(error) => return failure(error),
            };
            // Without a resourceVersion the count would be written over whatever stands there now.
            let version = match metadata::of_kind(&workload.kind, &stamped.metadata).version() {
                Ok(version) => version,
                Err(missing) => return missing.into(),
            };
            let body = conditional(workload, &version, Value::Null, Some(0));
            outcome(
                patch(pass, workload, Some("scale"), &body).await,
                "stamped, then scaled to 0",
            )
        }
        ScalePath::None => Outcome::NotApplied {
            why: format!("{workload} cannot be scaled"),
            retry: false,
        },
    }
}

/// Sets the replicas (if given) and removes the stamp.
pub async fn restore(
    pass: &EffectPass,
    workload: &WorkloadRef,
    version: &ResourceVersion,
    path: ScalePath,
    replicas: Option<i32>,
) -> Outcome {
    let no_stamp = json!({ STAMP_ANNOTATION: null });
    let detail = replicas.map_or("stamp removed".to_owned(), |n| {
        format!("scaled to {n}, stamp removed")
    });
    match (path, replicas) {
        (ScalePath::ScaleSubresource, Some(n)) => {
            let body = conditional(workload, version, Value::Null, Some(n));
            if let Err(error) = patch(pass, workload, Some("scale"), &body).await {
                return failure(error);
            }
            // The count is back; the stamp goes in a write of its own. A crash in between leaves a stamp on a running
            // workload, which is removed the same way.
            let body = json!({ "metadata": { "uid": workload.uid, "annotations": no_stamp } });
            outcome(patch(pass, workload, None, &body).await, &detail)
        }
        _ => {
            let body = conditional(workload, version, no_stamp, replicas);
            let outcome = outcome(patch(pass, workload, None, &body).await, &detail);
            if outcome.applied() && workload.kind == "Deployment" {
                unstamp_copies(pass, workload).await;
            }
            outcome
        }
    }
}

/// The Deployment controller copies annotations to its ReplicaSets and never removes them again (Kubernetes
/// `pkg/controller/deployment/util/deployment_util.go`, `copyDeploymentAnnotationsToReplicaSet`); a rollback would bring
/// the stamp back. Best effort: a copy names another object's UID and restores nothing.
async fn unstamp_copies(pass: &EffectPass, workload: &WorkloadRef) {
    let api: Api<ReplicaSet> = Api::namespaced(pass.client().clone(), &workload.name.namespace);
    let stamped = |s: &&ReplicaSet| {
        let stamp = s
            .annotations()
            .get(STAMP_ANNOTATION)
            .and_then(|v| Stamp::from_annotation(v).ok());
        stamp.is_some_and(|stamp| stamp.workload == workload.uid)
    };
    let sets = match api.list(&ListParams::default()).await {
        Ok(sets) => sets,
        Err(error) => {
            return tracing::debug!(%workload, %error, "copies of the stamp may be left on its ReplicaSets");
        }
    };
    for set in sets.items.iter().filter(stamped) {
        if let Err(error) = unstamp_copy(&api, set).await {
            tracing::debug!(set = set.name_any(), %error, "a copy of the stamp is left");
        }
    }
}

async fn unstamp_copy(api: &Api<ReplicaSet>, set: &ReplicaSet) -> Result<(), kube::Error> {
    let meta = metadata::of(set);
    let uid = meta.uid()?;
    let body = json!({ "metadata": { "uid": uid, "annotations": { STAMP_ANNOTATION: null } } });
    api.patch(meta.name()?, &PatchParams::default(), &Patch::Merge(&body))
        .await
        .map(drop)
}

fn conditional(
    workload: &WorkloadRef,
    version: &ResourceVersion,
    annotations: Value,
    replicas: Option<i32>,
) -> Value {
    let mut body = json!({ "metadata": { "uid": workload.uid, "resourceVersion": version } });
    if !annotations.is_null() {
        body["metadata"]["annotations"] = annotations;
    }
    if let Some(n) = replicas {
        body["spec"] = json!({ "replicas": n });
    }
    body
}

async fn patch(
    pass: &EffectPass,
    workload: &WorkloadRef,
    subresource: Option<&str>,
    body: &Value,
) -> Result<DynamicObject, kube::Error> {
    let resource = api_resource(workload);
    let api: Api<DynamicObject> =
        Api::namespaced_with(pass.client().clone(), &workload.name.namespace, &resource);
    let (params, patch) = (PatchParams::default(), Patch::Merge(body));
    let name = &workload.name.name;
    match subresource {
        Some(sub) => api.patch_subresource(sub, name, &params, &patch).await,
        None => api.patch(name, &params, &patch).await,
    }
}
