//! Holding new pods of a claim away by admission, evicting the stuck one, and lifting the hold.
//!
//! # Expected flow
//! [`hold`] labels the VolumeRecovery; the MutatingAdmissionPolicy of `deploy/` then gates new pods of its claim. [`release`]
//! evicts the stuck pod. [`lift`] removes the label, then the gate of the pods that wait.
//!
//! # Guarantees
//! Each write names UID and resourceVersion, or the UID as a precondition, and takes a pass of the gate.
//!
//! # Assumptions
//! The journal line of the effect was stored before: the resourceVersion of the label is that of the object with this line,
//! so a label that arrives late is refused.
//!
//! # Caveats
//! The policy fails open and takes a moment to see the label: only a dry-run create proves the hold.
//!
//! # Errors
//! [`Outcome`] says what is known of the write.

use crate::conditional::{delete_uid, require_uid};
use crate::gate::EffectPass;
use crate::reply::{applied, failure, outcome};
use k8s_openapi::api::core::v1::{Pod, PodSchedulingGate};
use k8s_openapi::api::policy::v1::Eviction;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{DeleteOptions, ObjectMeta, Preconditions};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
};
use kube::core::Status;
use kube::core::response::StatusCause;
use kube::{Api, Client, ResourceExt};
use reattach_api::VolumeRecovery;
use reattach_api::metadata;
use reattach_core::fact::{Fact, Source};
use reattach_core::hold::{HOLD_GATE, HOLD_LABEL, HOLD_POLICY};
use reattach_core::ids::{ObjectName, Uid};
use reattach_core::journal::Outcome;
use serde_json::{Value, json};

/// The cause in the API server's refusal of an eviction (Kubernetes `policy/v1`, `DisruptionBudgetCause`).
const DISRUPTION_BUDGET: &str = "DisruptionBudget";
/// Seconds that a pod has to end where its spec says nothing (Kubernetes `core/v1`, `DefaultTerminationGracePeriodSeconds`).
const DEFAULT_GRACE: u32 = 30;

/// Whether a pod carries our scheduling gate.
pub fn is_gated(pod: &Pod) -> bool {
    gates(pod).any(|g| g.name == HOLD_GATE)
}

fn gates(pod: &Pod) -> impl Iterator<Item = &PodSchedulingGate> {
    pod.spec
        .iter()
        .flat_map(|s| s.scheduling_gates.iter().flatten())
}

/// Whether the cluster has our policy: its binding, which is of no use without it. An API server that does not serve the
/// kind (before Kubernetes 1.36) answers as one that has none.
pub async fn policy(client: &Client, now: jiff::Timestamp) -> Fact<String> {
    let source = Source::Kubernetes(format!("MutatingAdmissionPolicyBinding {HOLD_POLICY}"));
    let kind = GroupVersionKind::gvk(
        "admissionregistration.k8s.io",
        "v1",
        "MutatingAdmissionPolicyBinding",
    );
    let resource = ApiResource::from_gvk_with_plural(&kind, "mutatingadmissionpolicybindings");
    match Api::<DynamicObject>::all_with(client.clone(), &resource)
        .get(HOLD_POLICY)
        .await
    {
        Ok(_) => Fact::present(HOLD_POLICY.to_owned(), source, now),
        Err(kube::Error::Api(s)) if s.code == 404 => Fact::absent(source, now),
        Err(error) => Fact::unknown(error.to_string(), source, now),
    }
}

/// Puts the hold's label on the recovery.
pub async fn hold(pass: &EffectPass, recovery: &VolumeRecovery) -> Outcome {
    label(pass, recovery, json!("true"), "labelled").await
}

pub(crate) async fn label(
    pass: &EffectPass,
    recovery: &VolumeRecovery,
    value: Value,
    detail: &str,
) -> Outcome {
    let meta = metadata::of(recovery);
    let (name, (uid, version)) = match (meta.object_name(), meta.condition()) {
        (Ok(name), Ok(condition)) => (name, condition),
        (Err(missing), _) | (_, Err(missing)) => return missing.into(),
    };
    let api: Api<VolumeRecovery> = Api::namespaced(pass.client().clone(), &name.namespace);
    let body = json!({ "metadata": {
        "uid": uid,
        "resourceVersion": version,
        "labels": { HOLD_LABEL: value },
    } });
    outcome(
        api.patch(&name.name, &PatchParams::default(), &Patch::Merge(&body))
            .await,
        detail,
    )
}

/// Evicts one pod, by its UID, with its own grace period. A PodDisruptionBudget that refuses it is shown and not
/// overridden.
pub async fn release(pass: &EffectPass, pod: &ObjectName, uid: &Uid) -> Outcome {
    if let Err(refused) = require_uid(uid) {
        return refused;
    }
    let api: Api<Pod> = Api::namespaced(pass.client().clone(), &pod.namespace);
    // Written by hand: `Api::evict` of kube 5.0 spells `deleteOptions` in a way that the API server does not read, and drops
    // the UID without a word.
    let eviction = Eviction {
        metadata: ObjectMeta {
            name: Some(pod.name.clone()),
            ..ObjectMeta::default()
        },
        delete_options: Some(DeleteOptions {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_string()),
                resource_version: None,
            }),
            ..DeleteOptions::default()
        }),
    };
    let params = PostParams::default();
    match api
        .create_subresource::<_, Value>("eviction", &pod.name, &params, &eviction)
        .await
    {
        // It is gone, or another pod has its name: the run reads again what is there now.
        Err(kube::Error::Api(s)) if s.is_not_found() => applied("the pod is gone"),
        Err(kube::Error::Api(s)) if is_by_a_budget(&s) => Outcome::RefusedByBudget {
            why: budget_said(&s),
        },
        reply => outcome(reply, "evicted"),
    }
}

/// Whether a PodDisruptionBudget refused an eviction. An API server that is busy answers 429, too (Kubernetes
/// `pkg/registry/core/pod/storage/eviction.go` gives this cause).
fn is_by_a_budget(status: &Status) -> bool {
    status.code == 429 && causes(status).any(|c| c.reason == DISRUPTION_BUDGET)
}

fn causes(status: &Status) -> impl Iterator<Item = &StatusCause> {
    status.details.iter().flat_map(|d| &d.causes)
}

/// The API server's words, with those of the cause, which names the budget.
fn budget_said(status: &Status) -> String {
    let named: Vec<&str> = causes(status).map(|c| c.message.as_str()).collect();
    format!("{} {}", status.message, named.join("; "))
        .trim()
        .to_owned()
}

/// Deletes one pod by its UID, with its own grace period and never without one: a deletion without grace would take the object
/// away while its containers may still run.
pub async fn delete_pod(pass: &EffectPass, pod: &ObjectName, uid: &Uid) -> Outcome {
    if let Err(refused) = require_uid(uid) {
        return refused;
    }
    let api: Api<Pod> = Api::namespaced(pass.client().clone(), &pod.namespace);
    let found = match api.get_opt(&pod.name).await {
        Ok(Some(found)) if found.uid().as_deref() == Some(uid.as_str()) => found,
        Ok(_) => return applied("the pod is gone"),
        Err(error) => return failure(error),
    };
    let own = found.spec.and_then(|s| s.termination_grace_period_seconds);
    let params = DeleteParams {
        grace_period_seconds: Some(own.map_or(DEFAULT_GRACE, grace)),
        ..delete_uid(uid)
    };
    match api.delete(&pod.name, &params).await {
        Err(kube::Error::Api(s)) if s.is_not_found() => applied("the pod is gone"),
        reply => outcome(reply, "deleted"),
    }
}

/// A pod that asks for no grace gets the shortest that there is.
fn grace(own: i64) -> u32 {
    u32::try_from(own).unwrap_or(u32::MAX).max(1)
}

/// Removes the label, then the gate of each of these pods.
pub async fn lift(
    pass: &EffectPass,
    recovery: &VolumeRecovery,
    pods: &[(ObjectName, Uid)],
) -> Outcome {
    if recovery.labels().contains_key(HOLD_LABEL) {
        let unlabelled = label(pass, recovery, Value::Null, "unlabelled").await;
        if !unlabelled.applied() {
            return unlabelled;
        }
    }
    for (pod, uid) in pods {
        let ungated = ungate(pass, pod, uid).await;
        if !ungated.applied() {
            return ungated;
        }
    }
    applied(&format!(
        "the hold is lifted; {} pod(s) released",
        pods.len()
    ))
}

pub(crate) async fn ungate(pass: &EffectPass, pod: &ObjectName, uid: &Uid) -> Outcome {
    if let Err(refused) = require_uid(uid) {
        return refused;
    }
    let api: Api<Pod> = Api::namespaced(pass.client().clone(), &pod.namespace);
    let found = match api.get_opt(&pod.name).await {
        Ok(Some(found)) if found.uid().as_deref() == Some(uid.as_str()) && is_gated(&found) => {
            found
        }
        Ok(_) => return applied("the gate is off"),
        Err(error) => return failure(error),
    };
    let version = match metadata::of(&found).version() {
        Ok(version) => version,
        Err(missing) => return missing.into(),
    };
    let others: Vec<_> = gates(&found).filter(|g| g.name != HOLD_GATE).collect();
    let body = json!({
        "metadata": { "uid": uid, "resourceVersion": version },
        "spec": { "schedulingGates": others },
    });
    outcome(
        api.patch(&pod.name, &PatchParams::default(), &Patch::Merge(&body))
            .await,
        "the gate is off",
    )
}
