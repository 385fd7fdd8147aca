//! What pods on a node would lose for good if they went away, from their objects.

use crate::names::is_object_name;
use crate::view::claims_of;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use reattach_core::ids::ObjectName;
use reattach_core::loss::{Loss, PodLoss};

/// The annotation of a pod that kubelet runs from a file; the API server's object is only its image.
const MIRROR: &str = "kubernetes.io/config.mirror";
/// The condition that Kubernetes gives a pod that it evicts or deletes for its own reasons.
const DISRUPTED: &str = "DisruptionTarget";

/// The Job that would have to make a new pod in the place of this one. What no Job can be called is none.
pub fn job_of(pod: &Pod) -> Option<&OwnerReference> {
    let owner = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true))?;
    (owner.kind == "Job" && owner.api_version.starts_with("batch/") && is_object_name(&owner.name))
        .then_some(owner)
}

/// Whether something may be lost with this pod at all: it has not ended, and is no image of a static pod.
pub fn counts(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed")) && !pod.annotations().contains_key(MIRROR)
}

/// What this pod would lose. `claims` are those that it names and that exist, `job` is its Job, if it has one.
pub fn of_pod(pod: &Pod, claims: &[PersistentVolumeClaim], job: Option<&Job>) -> Vec<PodLoss> {
    if !counts(pod) {
        return Vec::new();
    }
    let used = claims_of(pod);
    let deleting = claims.iter().filter(|c| c.metadata.deletion_timestamp.is_some());
    let deleting = deleting.map(ResourceExt::name_any).filter(|name| used.contains(name));
    let mut losses: Vec<Loss> = deleting.map(|claim| Loss::ClaimDeleting { claim }).collect();
    // Of a pod that is being deleted already the rest is lost, whatever reattach does. A claim could still be saved.
    if pod.metadata.deletion_timestamp.is_none() {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let ephemeral = volumes.filter(|v| v.ephemeral.is_some()).map(|v| v.name.clone());
        losses.extend(ephemeral.map(|volume| Loss::EphemeralVolume { volume }));
        losses.extend(not_remade(pod, job).map(|why| Loss::NotRemade { why }));
    }
    let name = ObjectName::new(pod.namespace().unwrap_or_default(), pod.name_any());
    losses.into_iter().map(|loss| PodLoss { pod: name.clone(), loss }).collect()
}

fn not_remade(pod: &Pod, job: Option<&Job>) -> Option<String> {
    let mut owners = pod.metadata.owner_references.iter().flatten();
    if !owners.any(|o| o.controller == Some(true)) {
        // Kubernetes never evicts a pod that tolerates the taint for ever: waiting for that would keep the node from being
        // fenced for good.
        return (!stays_for_ever(pod)).then(|| "no controller owns it".to_owned());
    }
    spent(job?)
}

/// Does the pod tolerate the taint of an unreachable node without an end (`node.kubernetes.io/unreachable:NoExecute`)?
fn stays_for_ever(pod: &Pod) -> bool {
    let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
    tolerations.filter(|t| t.toleration_seconds.is_none()).any(|t| {
        let key = t.key.as_deref().unwrap_or_default();
        let effect = t.effect.as_deref().unwrap_or_default();
        matches!(key, "" | "node.kubernetes.io/unreachable") && matches!(effect, "" | "NoExecute")
    })
}

/// Why a Job would fail for good if one of its pods went away.
pub fn spent(job: &Job) -> Option<String> {
    let spec = job.spec.as_ref()?;
    let rules = spec.pod_failure_policy.iter().flat_map(|p| &p.rules).filter(|r| r.action == "Ignore");
    let mut ignored = rules.flat_map(|r| r.on_pod_conditions.iter().flatten());
    if ignored.any(|c| c.type_ == DISRUPTED && c.status == "True") {
        return None;
    }
    let failed = job.status.as_ref().and_then(|s| s.failed).unwrap_or(0);
    // Kubernetes' defaults: 6, and no limit at all where each index has its own.
    let limit = match (spec.backoff_limit, spec.backoff_limit_per_index) {
        (_, Some(0)) => return Some(format!("Job {} has backoffLimitPerIndex 0", job.name_any())),
        (None, Some(_)) => return None,
        (limit, _) => limit.unwrap_or(6),
    };
    (failed >= limit).then(|| {
        format!("Job {} has backoffLimit {limit} and {failed} failed pod(s) already", job.name_any())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(owner: Value, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": { "name": "p", "namespace": "default", "ownerReferences": owner },
            "spec": { "containers": [], "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] },
        });
        change(&mut pod);
        serde_json::from_value(pod).unwrap()
    }

    fn owned_by(kind: &str) -> Value {
        let group = if kind == "Job" { "batch/v1" } else { "apps/v1" };
        json!([{ "apiVersion": group, "kind": kind, "name": "o", "uid": "u", "controller": true }])
    }

    fn job(spec: &Value, failed: i32) -> Job {
        let template = json!({ "spec": { "containers": [] } });
        let mut job = json!({ "metadata": { "name": "o" }, "spec": spec, "status": { "failed": failed } });
        job["spec"]["template"] = template;
        serde_json::from_value(job).unwrap()
    }

    fn claim(deleting: bool) -> PersistentVolumeClaim {
        let mut claim = json!({ "metadata": { "name": "data", "namespace": "default" } });
        if deleting {
            claim["metadata"]["deletionTimestamp"] = json!("2026-03-01T00:00:00Z");
        }
        serde_json::from_value(claim).unwrap()
    }

    fn said(pod: &Pod, claim: PersistentVolumeClaim, job: Option<&Job>) -> Vec<String> {
        of_pod(pod, &[claim], job).iter().map(|l| l.loss.to_string()).collect()
    }

    #[test]
    fn a_pod_of_a_controller_loses_nothing() {
        for kind in ["ReplicaSet", "StatefulSet", "DaemonSet"] {
            assert_eq!(
                said(&pod(owned_by(kind), |_| {}), claim(false), None),
                Vec::<String>::new(),
                "{kind}"
            );
        }
    }

    #[test]
    fn a_bare_pod_is_not_made_again() {
        let bare = said(&pod(json!([]), |_| {}), claim(false), None);
        assert_eq!(bare, ["no pod would be made in its place: no controller owns it"]);
        let stays = |p: &mut Value| p["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
        assert_eq!(said(&pod(json!([]), stays), claim(false), None), [""; 0], "it is never evicted");
        let mirror = |p: &mut Value| p["metadata"]["annotations"] = json!({ MIRROR: "x" });
        let going = |p: &mut Value| p["metadata"]["deletionTimestamp"] = json!("2026-03-01T00:00:00Z");
        let ended = |p: &mut Value| p["status"] = json!({ "phase": "Succeeded" });
        for (what, change) in
            [("mirror", &mirror as &dyn Fn(&mut Value)), ("going", &going), ("ended", &ended)]
        {
            assert_eq!(said(&pod(json!([]), change), claim(false), None), Vec::<String>::new(), "{what}");
        }
    }

    #[test]
    fn a_deleted_claim_goes_with_its_last_pod() {
        let going = |p: &mut Value| p["metadata"]["deletionTimestamp"] = json!("2026-03-01T00:00:00Z");
        for pod in [pod(owned_by("StatefulSet"), |_| {}), pod(owned_by("StatefulSet"), going)] {
            assert_eq!(
                said(&pod, claim(true), None),
                ["its claim data is being deleted and would go for good"]
            );
        }
    }

    #[test]
    fn a_job_at_its_limit_makes_no_new_pod() {
        let of = |spec: Value, failed| {
            said(&pod(owned_by("Job"), |_| {}), claim(false), Some(&job(&spec, failed)))
        };
        assert_eq!(
            of(json!({ "backoffLimit": 0 }), 0),
            ["no pod would be made in its place: Job o has backoffLimit 0 and 0 failed pod(s) already"]
        );
        assert_eq!(of(json!({}), 6).len(), 1, "Kubernetes' default");
        assert_eq!(of(json!({ "backoffLimitPerIndex": 0 }), 0).len(), 1);
        for (spec, failed) in
            [(json!({}), 5), (json!({ "backoffLimit": 2 }), 1), (json!({ "backoffLimitPerIndex": 1 }), 9)]
        {
            assert_eq!(of(spec.clone(), failed), Vec::<String>::new(), "{spec}, {failed}");
        }
        let ignores = json!({ "backoffLimit": 0, "podFailurePolicy": { "rules": [
            { "action": "Ignore", "onPodConditions": [{ "type": DISRUPTED, "status": "True" }] } ] } });
        assert_eq!(of(ignores, 0), Vec::<String>::new(), "a disruption is no failure of it");
    }

    #[test]
    fn a_generic_ephemeral_volume_goes_with_its_pod() {
        let scratch = json!({ "name": "scratch", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } });
        let pod = pod(owned_by("ReplicaSet"), |p| p["spec"]["volumes"] = json!([scratch]));
        assert_eq!(said(&pod, claim(false), None), ["its generic ephemeral volume scratch would be deleted"]);
    }
}
