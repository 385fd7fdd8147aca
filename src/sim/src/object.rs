//! Fields of Kubernetes objects as JSON, which the simulated components read.

use serde_json::Value;

/// A string field by JSON pointer; empty when absent.
pub fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The items of an array by JSON pointer.
pub fn items<'a>(object: &'a Value, pointer: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    object
        .pointer(pointer)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    text(object, "/metadata/name")
}

/// `metadata.namespace`.
pub fn namespace(object: &Value) -> &str {
    text(object, "/metadata/namespace")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    text(object, "/metadata/uid")
}

/// Whether the object has a deletionTimestamp.
pub fn terminating(object: &Value) -> bool {
    !text(object, "/metadata/deletionTimestamp").is_empty()
}

/// Status of a condition; empty when absent.
pub fn condition<'a>(object: &'a Value, kind: &str) -> &'a str {
    items(object, "/status/conditions")
        .find(|c| c["type"] == kind)
        .map_or("", |c| text(c, "/status"))
}

/// Whether a pod or a Node is Ready.
pub fn is_ready(object: &Value) -> bool {
    condition(object, "Ready") == "True"
}

/// Whether a pod has ended by itself.
pub(crate) fn has_ended(pod: &Value) -> bool {
    matches!(text(pod, "/status/phase"), "Failed" | "Succeeded")
}

/// Whether nothing keeps kubelet and the attach/detach controller from using the claim's volume: the claim is Bound, and
/// the PersistentVolume is for it.
pub(crate) fn is_bound(claim: &Value, volume: &Value) -> bool {
    let of = &volume["spec"]["claimRef"];
    let same = of["name"] == claim["metadata"]["name"]
        && of["namespace"] == claim["metadata"]["namespace"];
    let other_uid = !of["uid"].is_null() && of["uid"] != claim["metadata"]["uid"];
    claim["status"]["phase"] == "Bound" && (of.is_null() || same && !other_uid)
}

/// The claims that a pod uses, generic ephemeral volumes included: name of the volume and of the claim.
pub(crate) fn claims_of(pod: &Value) -> impl Iterator<Item = (&str, String)> {
    items(pod, "/spec/volumes").filter_map(|v| {
        let volume = text(v, "/name");
        let claim = match v["persistentVolumeClaim"]["claimName"].as_str() {
            Some(claim) => claim.to_owned(),
            None if v["ephemeral"].is_object() => format!("{}-{volume}", name(pod)),
            None => return None,
        };
        Some((volume, claim))
    })
}

/// An int-or-percent of `total`. A percentage is rounded up or down.
pub(crate) fn int_or_percent(value: &Value, total: i64, up: bool) -> Option<i64> {
    let Some(percent) = value.as_str() else {
        return value.as_i64();
    };
    let percent: i64 = percent.trim_end_matches('%').parse().unwrap_or(0);
    Some((total * percent + if up { 99 } else { 0 }) / 100)
}

/// The API path of a pod.
pub(crate) fn pod_path(pod: &Value) -> String {
    format!("/api/v1/namespaces/{}/pods/{}", namespace(pod), name(pod))
}
