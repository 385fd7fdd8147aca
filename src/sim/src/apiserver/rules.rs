//! The rules of single kinds that clients rely on.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::request::{ApiRequest, Verb};
use super::resource::ResourceType;
use super::status::ApiStatus;
use crate::clock::rfc3339;
use crate::object::{has_ended, items, text, uid};

/// The fields of an apply, without those that identify the object.
pub(super) fn intent(body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(map) = body.as_object_mut() {
        map.remove("apiVersion");
        map.remove("kind");
    }
    if let Some(meta) = body["metadata"].as_object_mut() {
        for key in ["name", "namespace", "resourceVersion", "uid"] {
            meta.remove(key);
        }
    }
    body
}

/// The grace period of a pod's deletion: none for pods that no kubelet looks after.
pub(super) fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    if text(pod, "/spec/nodeName").is_empty() || has_ended(pod) {
        return 0;
    }
    asked
        .or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64())
        .unwrap_or(30)
        .max(0)
}

/// UID and resourceVersion that were sent along. A PUT takes the UID as a precondition and looks at it first; to a PATCH
/// it is a field that cannot be changed, looked at last.
pub(super) fn check_versions(
    req: &ApiRequest,
    name: &str,
    old: &Value,
    sent: &Value,
) -> Result<(), ApiStatus> {
    let rt = &req.rt;
    let (have, want) = (uid(old), text(sent, "/uid"));
    let other = !want.is_empty() && want != have;
    let patched = req.verb == Verb::Patch;
    if other && !patched {
        let why =
            format!("Precondition failed: UID in precondition: {want}, UID in object meta: {have}");
        return Err(ApiStatus::conflict(rt, name, &why));
    }
    let version = text(sent, "/resourceVersion");
    if !version.is_empty() && old["metadata"]["resourceVersion"] != version {
        return Err(ApiStatus::modified(rt, name));
    }
    if other {
        let why = format!("metadata.uid: Invalid value: \"{want}\": field is immutable");
        return Err(ApiStatus::invalid(rt, name, &why));
    }
    Ok(())
}

/// Drops nulls that copying of absent fields left behind.
pub(super) fn prune(object: &mut Value) {
    if let Some(meta) = object["metadata"].as_object_mut() {
        meta.retain(|_, v| !v.is_null());
        meta.remove("managedFields");
    }
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
}

pub(super) fn spec_differs(old: &Value, new: &Value) -> bool {
    let strip = |o: &Value| {
        let mut o = o.clone();
        if let Some(map) = o.as_object_mut() {
            map.remove("metadata");
            map.remove("status");
        }
        o
    };
    strip(old) != strip(new)
}

pub(super) fn gates(pod: &Value) -> Vec<&Value> {
    items(pod, "/spec/schedulingGates")
        .map(|g| &g["name"])
        .collect()
}

pub(super) fn check_new_pod(
    rt: &ResourceType,
    name: &str,
    pod: &mut Value,
) -> Result<(), ApiStatus> {
    if gates(pod).is_empty() {
        return Ok(());
    }
    if !text(pod, "/spec/nodeName").is_empty() {
        return Err(ApiStatus::invalid(
            rt,
            name,
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ));
    }
    pod["status"]["conditions"] = json!([{
        "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
        "message": "Scheduling is blocked due to non-empty scheduling gates",
    }]);
    Ok(())
}

pub(super) fn check_changed_pod(
    rt: &ResourceType,
    name: &str,
    old: &Value,
    new: &Value,
) -> Result<(), ApiStatus> {
    if old["spec"]["nodeName"] != new["spec"]["nodeName"]
        || old["spec"]["volumes"] != new["spec"]["volumes"]
    {
        return Err(ApiStatus::invalid(
            rt,
            name,
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
    let (before, after) = (gates(old), gates(new));
    if let Some((n, gate)) = after.iter().enumerate().find(|(_, g)| !before.contains(g)) {
        let gate = gate.as_str().unwrap_or_default();
        let why = format!(
            "spec.schedulingGates[{n}].name: Forbidden: only deletion is allowed, but found new scheduling gate '{gate}'"
        );
        return Err(ApiStatus::invalid(rt, name, &why));
    }
    // The condition SchedulingGated stays until the scheduler has something to say.
    Ok(())
}

pub(super) fn established(crd: &mut Value, now: Timestamp) {
    let at = rfc3339(now);
    crd["status"] = json!({
        "acceptedNames": crd["spec"]["names"],
        "storedVersions": items(crd, "/spec/versions")
            .filter(|v| v["storage"] == true).map(|v| v["name"].clone()).collect::<Vec<_>>(),
        "conditions": [
            {"type": "NamesAccepted", "status": "True", "reason": "NoConflicts", "message": "no conflicts found", "lastTransitionTime": at},
            {"type": "Established", "status": "True", "reason": "InitialNamesAccepted", "message": "the initial names have been accepted", "lastTransitionTime": at},
        ],
    });
}
