//! What pods on a node would lose for good if they went away, from their objects.

use crate::names::{controller_of, is_object_name};
use crate::view::claims_of;
use k8s_openapi::api::batch::v1::{Job, PodFailurePolicyRule};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use reattach_api::metadata::{self, MissingField};
use reattach_core::loss::{Loss, PodLoss};

/// The annotation of a pod that kubelet runs from a file; the API server's object is only its image.
pub(crate) const MIRROR: &str = "kubernetes.io/config.mirror";
/// The condition that Kubernetes gives a pod that it evicts or deletes for its own reasons.
const DISRUPTED: &str = "DisruptionTarget";
/// The annotation of a pod of a Job with `backoffLimitPerIndex`: how often its index has failed before it.
pub(crate) const INDEX_FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// Exit codes of a container that is stopped: by SIGTERM, and by SIGKILL.
const STOPPED: [i32; 2] = [143, 137];

/// The Job that would have to make a new pod in the place of this one. What no Job can be called is none.
pub fn job_of(pod: &Pod) -> Option<&OwnerReference> {
    let owner = controller_of(&pod.metadata)?;
    (owner.kind == "Job" && owner.api_version.starts_with("batch/") && is_object_name(&owner.name))
        .then_some(owner)
}

/// Whether something may be lost with this pod at all: it has not ended, and is no image of a static pod.
pub fn counts(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    !matches!(phase, Some("Succeeded" | "Failed")) && !pod.annotations().contains_key(MIRROR)
}

/// Does the garbage collector delete this claim once the pod is gone? A claim of a generic ephemeral volume is left out:
/// that one is lost as a volume of the pod.
///
/// Other owners do not matter here: no step of reattach deletes one.
pub fn owns(pod: &Pod, claim: &PersistentVolumeClaim) -> bool {
    let ephemeral = |volume: &str| claim.name_any() == format!("{}-{volume}", pod.name_any());
    let mut volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let mut owners = claim.metadata.owner_references.iter().flatten();
    owners.any(|o| Some(&o.uid) == pod.metadata.uid.as_ref())
        && !volumes.any(|v| v.ephemeral.is_some() && ephemeral(&v.name))
}

/// What this pod would lose. `claims` are those that it names or owns and that exist, `job` is its Job, if it has one.
///
/// # Errors
/// The pod has no name or no namespace.
pub fn of_pod(
    pod: &Pod,
    claims: &[PersistentVolumeClaim],
    job: Option<&Job>,
) -> Result<Vec<PodLoss>, MissingField> {
    if !counts(pod) {
        return Ok(Vec::new());
    }
    let used = claims_of(pod);
    let (deleting, living): (Vec<_>, Vec<_>) = claims
        .iter()
        .partition(|c| c.metadata.deletion_timestamp.is_some());
    let deleting = deleting.into_iter().map(ResourceExt::name_any);
    let mut losses: Vec<Loss> = deleting
        .filter(|name| used.contains(name))
        .map(|claim| Loss::ClaimDeleting { claim })
        .collect();
    let owned = living.into_iter().filter(|c| owns(pod, c));
    losses.extend(owned.map(|c| Loss::ClaimOfPod {
        claim: c.name_any(),
    }));
    // Of a pod that is being deleted already the rest is lost, whatever reattach does. A claim could still be saved.
    if pod.metadata.deletion_timestamp.is_none() {
        let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
        let ephemeral = volumes
            .filter(|v| v.ephemeral.is_some())
            .map(|v| v.name.clone());
        losses.extend(ephemeral.map(|volume| Loss::EphemeralVolume { volume }));
        losses.extend(not_remade(pod, job).map(|why| Loss::NotRemade { why }));
    }
    let name = metadata::of(pod).object_name()?;
    Ok(losses
        .into_iter()
        .map(|loss| PodLoss {
            pod: name.clone(),
            loss,
        })
        .collect())
}

fn not_remade(pod: &Pod, job: Option<&Job>) -> Option<String> {
    if controller_of(&pod.metadata).is_none() {
        // Kubernetes never evicts a pod that tolerates the taint for ever: waiting for that would keep the node from being
        // fenced for good.
        return (!stays_for_ever(pod)).then(|| "no controller owns it".to_owned());
    }
    spent(job?, &[pod])
}

/// Does the pod tolerate the taint of an unreachable node without an end (`node.kubernetes.io/unreachable:NoExecute`)?
fn stays_for_ever(pod: &Pod) -> bool {
    let tolerations = pod.spec.iter().flat_map(|s| s.tolerations.iter().flatten());
    tolerations
        .filter(|t| t.toleration_seconds.is_none())
        .any(|t| {
            let key = t.key.as_deref().unwrap_or_default();
            let effect = t.effect.as_deref().unwrap_or_default();
            matches!(key, "" | "node.kubernetes.io/unreachable")
                && matches!(effect, "" | "NoExecute")
        })
}

/// What a Job's `podFailurePolicy` makes of a pod that is evicted or deleted by Kubernetes.
enum Disruption {
    /// It is no failure.
    Ignored,
    /// It counts as one.
    Counts,
    /// It ends the Job, or the pod's index.
    Fails {
        /// The action of the rule.
        action: String,
    },
}

fn matches_disruption(rule: &PodFailurePolicyRule) -> bool {
    let mut conditions = rule.on_pod_conditions.iter().flatten();
    conditions.any(|c| c.type_ == DISRUPTED && c.status == "True")
}

fn matches_a_signal(rule: &PodFailurePolicyRule) -> bool {
    let Some(codes) = rule.on_exit_codes.as_ref() else {
        return false;
    };
    match codes.operator.as_str() {
        "In" => STOPPED.iter().any(|code| codes.values.contains(code)),
        "NotIn" => STOPPED.iter().any(|code| !codes.values.contains(code)),
        _ => true,
    }
}

/// The first rule that matches decides. Rules for exit codes may match or not: the pod of a dead node has none, and an
/// evicted one usually that of a signal.
fn disruption(job: &Job) -> Disruption {
    let rules = job
        .spec
        .iter()
        .filter_map(|s| s.pod_failure_policy.as_ref())
        .flat_map(|p| &p.rules);
    let mut may_count = false;
    for rule in rules {
        let (disrupted, signalled) = (matches_disruption(rule), matches_a_signal(rule));
        if !disrupted && !signalled {
            continue;
        }
        match rule.action.as_str() {
            "Ignore" if disrupted && !may_count => return Disruption::Ignored,
            "Count" if disrupted => return Disruption::Counts,
            // A rule for exit codes that does not match leaves the decision to the next one.
            "Ignore" if !disrupted => {}
            "Ignore" | "Count" => may_count = true,
            action => {
                return Disruption::Fails {
                    action: action.to_owned(),
                };
            }
        }
    }
    Disruption::Counts
}

/// Why a Job, or an index of it, would fail for good if one of these pods of it went away.
pub fn spent(job: &Job, pods: &[&Pod]) -> Option<String> {
    let spec = job.spec.as_ref()?;
    let name = job.name_any();
    match disruption(job) {
        Disruption::Ignored => return None,
        Disruption::Fails { action } => {
            return Some(format!(
                "Job {name} has a podFailurePolicy with {action} for a disrupted pod"
            ));
        }
        Disruption::Counts => {}
    }
    if let Some(limit) = spec.backoff_limit_per_index {
        if limit == 0 {
            return Some(format!("Job {name} has backoffLimitPerIndex 0"));
        }
        if let Some(why) = pods.iter().find_map(|pod| spent_index(pod, limit)) {
            return Some(format!(
                "Job {name} has backoffLimitPerIndex {limit} and {why}"
            ));
        }
    }
    let failed = job.status.as_ref().and_then(|s| s.failed).unwrap_or(0);
    // Kubernetes' defaults: 6, and no limit at all where each index has its own.
    let limit = match (spec.backoff_limit, spec.backoff_limit_per_index) {
        (None, Some(_)) => return None,
        (limit, _) => limit.unwrap_or(6),
    };
    (failed >= limit)
        .then(|| format!("Job {name} has backoffLimit {limit} and {failed} failed pod(s) already"))
}

/// Why the index of this pod may not fail once more.
fn spent_index(pod: &Pod, limit: i32) -> Option<String> {
    let failures = pod.annotations().get(INDEX_FAILURES);
    match failures.and_then(|n| n.parse::<i32>().ok()) {
        Some(failures) if failures < limit => None,
        Some(failures) => Some(format!(
            "the index of pod {} has failed {failures} time(s) already",
            pod.name_any()
        )),
        None => Some(format!(
            "pod {} does not say how often its index has failed",
            pod.name_any()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(owner: Value, change: impl FnOnce(&mut Value)) -> Pod {
        let mut pod = json!({
            "metadata": { "name": "p", "namespace": "default", "uid": "pod", "ownerReferences": owner },
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
        let mut job =
            json!({ "metadata": { "name": "o" }, "spec": spec, "status": { "failed": failed } });
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
        of_pod(pod, &[claim], job)
            .unwrap()
            .iter()
            .map(|l| l.loss.to_string())
            .collect()
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
    fn a_bare_pod_is_a_loss() {
        let bare = said(&pod(json!([]), |_| {}), claim(false), None);
        assert_eq!(
            bare,
            ["no pod would be made in its place: no controller owns it"]
        );
        let stays = |p: &mut Value| p["spec"]["tolerations"] = json!([{ "operator": "Exists" }]);
        assert_eq!(
            said(&pod(json!([]), stays), claim(false), None),
            [""; 0],
            "it is never evicted"
        );
        let mirror = |p: &mut Value| p["metadata"]["annotations"] = json!({ MIRROR: "x" });
        let going =
            |p: &mut Value| p["metadata"]["deletionTimestamp"] = json!("2026-03-01T00:00:00Z");
        let ended = |p: &mut Value| p["status"] = json!({ "phase": "Succeeded" });
        for (what, change) in [
            ("mirror", &mirror as &dyn Fn(&mut Value)),
            ("going", &going),
            ("ended", &ended),
        ] {
            assert_eq!(
                said(&pod(json!([]), change), claim(false), None),
                Vec::<String>::new(),
                "{what}"
            );
        }
    }

    #[test]
    fn a_deleted_claim_is_lost_with_its_last_pod() {
        let going =
            |p: &mut Value| p["metadata"]["deletionTimestamp"] = json!("2026-03-01T00:00:00Z");
        for pod in [
            pod(owned_by("StatefulSet"), |_| {}),
            pod(owned_by("StatefulSet"), going),
        ] {
            assert_eq!(
                said(&pod, claim(true), None),
                ["its claim data is being deleted and would be gone for good"]
            );
        }
    }

    #[test]
    fn a_job_at_its_limit_makes_no_new_pod() {
        let of = |spec: Value, failed| {
            said(
                &pod(owned_by("Job"), |_| {}),
                claim(false),
                Some(&job(&spec, failed)),
            )
        };
        assert_eq!(
            of(json!({ "backoffLimit": 0 }), 0),
            [
                "no pod would be made in its place: Job o has backoffLimit 0 and 0 failed pod(s) already"
            ]
        );
        assert_eq!(of(json!({}), 6).len(), 1, "Kubernetes' default");
        assert_eq!(of(json!({ "backoffLimitPerIndex": 0 }), 0).len(), 1);
        for (spec, failed) in [(json!({}), 5), (json!({ "backoffLimit": 2 }), 1)] {
            assert_eq!(
                of(spec.clone(), failed),
                Vec::<String>::new(),
                "{spec}, {failed}"
            );
        }
    }

    #[test]
    fn an_index_at_its_own_limit_gets_no_new_pod() {
        let of = |spec: Value, failures: Option<&str>| {
            let pod = pod(owned_by("Job"), |p| {
                if let Some(n) = failures {
                    p["metadata"]["annotations"] = json!({ INDEX_FAILURES: n });
                }
            });
            said(&pod, claim(false), Some(&job(&spec, 9)))
        };
        let two = || json!({ "backoffLimitPerIndex": 2 });
        assert_eq!(of(two(), Some("1")), Vec::<String>::new());
        assert_eq!(
            of(two(), Some("2")),
            [
                "no pod would be made in its place: Job o has backoffLimitPerIndex 2 and the index of pod p has failed 2 time(s) already"
            ]
        );
        for unknown in [None, Some("many")] {
            let said = of(two(), unknown);
            assert!(said[0].contains("does not say how often"), "{said:?}");
        }
        let both = json!({ "backoffLimitPerIndex": 2, "backoffLimit": 9 });
        assert!(
            of(both, Some("0"))[0].contains("backoffLimit 9 and 9 failed"),
            "the Job's own limit counts as well"
        );
    }

    #[test]
    fn a_pod_failure_policy_decides_what_a_disruption_costs() {
        let disrupted = |action: &str| json!({ "action": action, "onPodConditions": [{ "type": DISRUPTED, "status": "True" }] });
        let exits = |action: &str, operator: &str, code: i32| json!({ "action": action, "onExitCodes": { "operator": operator, "values": [code] } });
        let of = |limit: i32, rules: Value| {
            let spec = json!({ "backoffLimit": limit, "podFailurePolicy": { "rules": rules } });
            said(
                &pod(owned_by("Job"), |_| {}),
                claim(false),
                Some(&job(&spec, 0)),
            )
        };
        for rules in [
            json!([disrupted("Ignore")]),
            // The example of Kubernetes' own documentation.
            json!([exits("FailJob", "In", 42), disrupted("Ignore")]),
            json!([exits("Ignore", "In", 143), disrupted("Ignore")]),
            json!([disrupted("Ignore"), disrupted("FailJob")]),
        ] {
            assert_eq!(
                of(0, rules.clone()),
                Vec::<String>::new(),
                "{rules}: a disruption is no failure"
            );
        }
        for (action, rules) in [
            ("FailJob", json!([disrupted("FailJob")])),
            (
                "FailIndex",
                json!([disrupted("FailIndex"), disrupted("Ignore")]),
            ),
            ("Later", json!([disrupted("Later")])),
            (
                "FailJob",
                json!([exits("FailJob", "NotIn", 0), disrupted("Ignore")]),
            ),
            (
                "FailJob",
                json!([exits("FailJob", "In", 137), disrupted("Ignore")]),
            ),
        ] {
            assert_eq!(
                of(9, rules.clone()),
                [format!(
                    "no pod would be made in its place: Job o has a podFailurePolicy with {action} for a disrupted pod"
                )],
                "{rules}"
            );
        }
        for rules in [
            json!([disrupted("Count")]),
            json!([exits("Count", "In", 143), disrupted("Ignore")]),
        ] {
            assert_eq!(of(1, rules.clone()), Vec::<String>::new(), "{rules}");
            assert!(
                of(0, rules.clone())[0].contains("backoffLimit 0"),
                "{rules}"
            );
        }
    }

    #[test]
    fn a_claim_owned_by_a_pod_is_lost_with_it() {
        let owned = |uid: &str, name: &str| -> PersistentVolumeClaim {
            serde_json::from_value(json!({ "metadata": { "name": name, "namespace": "default",
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid }] } }))
            .unwrap()
        };
        let going =
            |p: &mut Value| p["metadata"]["deletionTimestamp"] = json!("2026-03-01T00:00:00Z");
        for pod in [
            pod(owned_by("ReplicaSet"), |_| {}),
            pod(owned_by("ReplicaSet"), going),
        ] {
            for name in ["data", "not-mounted"] {
                assert_eq!(
                    said(&pod, owned("pod", name), None),
                    [format!(
                        "its claim {name} is owned by the pod and would be deleted with it"
                    )]
                );
            }
            assert_eq!(
                said(&pod, owned("another", "data"), None),
                Vec::<String>::new()
            );
        }
        let scratch =
            json!({ "name": "scratch", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } });
        let with_scratch = pod(owned_by("ReplicaSet"), |p| {
            p["spec"]["volumes"] = json!([scratch])
        });
        assert_eq!(
            said(&with_scratch, owned("pod", "p-scratch"), None),
            ["its generic ephemeral volume scratch would be deleted"]
        );
    }

    #[test]
    fn a_generic_ephemeral_volume_is_lost_with_its_pod() {
        let scratch =
            json!({ "name": "scratch", "ephemeral": { "volumeClaimTemplate": { "spec": {} } } });
        let pod = pod(owned_by("ReplicaSet"), |p| {
            p["spec"]["volumes"] = json!([scratch])
        });
        assert_eq!(
            said(&pod, claim(false), None),
            ["its generic ephemeral volume scratch would be deleted"]
        );
    }
}
