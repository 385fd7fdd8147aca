//! The four kinds of PATCH.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::request::ApiRequest;
use super::status::ApiStatus;

/// Kinds of patch, by content type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PatchKind {
    Merge,
    Json,
    Strategic,
    Apply,
}

/// The patch kind of a request; custom resources know no strategic merge.
pub(super) fn kind_of(req: &ApiRequest) -> Result<PatchKind, ApiStatus> {
    let unsupported = || {
        let why = "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";
        ApiStatus::new(415, why)
    };
    match req
        .content_type
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
    {
        "application/merge-patch+json" => Ok(PatchKind::Merge),
        "application/json-patch+json" => Ok(PatchKind::Json),
        "application/strategic-merge-patch+json" if !req.rt.custom => Ok(PatchKind::Strategic),
        "application/apply-patch+yaml" | "application/apply-patch+json" => {
            if req.query("fieldManager").is_none() {
                return Err(ApiStatus::bad_request(
                    "PatchOptions.meta.k8s.io is invalid: fieldManager: Required value: is required for apply patch",
                ));
            }
            Ok(PatchKind::Apply)
        }
        _ => Err(unsupported()),
    }
}

/// Applies a JSON patch, merge patch or strategic merge patch.
pub(super) fn apply(kind: PatchKind, target: &mut Value, patch: &Value) -> Result<(), ApiStatus> {
    match kind {
        PatchKind::Merge => json_patch::merge(target, patch),
        PatchKind::Json => {
            let ops: json_patch::Patch = serde_json::from_value(patch.clone())
                .map_err(|e| ApiStatus::bad_request(format!("error decoding patch: {e}")))?;
            // The real server does not say what of it failed either.
            json_patch::patch(target, &ops).map_err(|_| {
                ApiStatus::new(
                    422,
                    "the server rejected our request due to an error in our request",
                )
            })?;
        }
        PatchKind::Strategic | PatchKind::Apply => strategic(target, patch),
    }
    Ok(())
}

/// Removes what a field manager applied earlier and leaves out now.
pub(super) fn drop_unapplied(target: &mut Value, before: &Value, now: &Value) {
    let (Some(object), Some(before)) = (target.as_object_mut(), before.as_object()) else {
        return;
    };
    for (key, old) in before {
        match now.get(key) {
            None if old.is_object() => {
                if let Some(inner) = object.get_mut(key) {
                    drop_unapplied(inner, old, &Value::Object(Map::new()));
                    if inner.as_object().is_some_and(Map::is_empty) {
                        object.remove(key);
                    }
                }
            }
            None => {
                object.remove(key);
            }
            Some(new) => {
                if let Some(inner) = object.get_mut(key) {
                    if let (Some(have), Some(was), Some(is), Some(id)) = (
                        inner.as_array_mut(),
                        old.as_array(),
                        new.as_array(),
                        merge_key(key),
                    ) {
                        let kept: BTreeSet<String> = is.iter().map(|i| i[id].to_string()).collect();
                        let gone: BTreeSet<String> = was
                            .iter()
                            .map(|i| i[id].to_string())
                            .filter(|k| !kept.contains(k))
                            .collect();
                        have.retain(|i| !gone.contains(&i[id].to_string()));
                    } else {
                        drop_unapplied(inner, old, new);
                    }
                }
            }
        }
    }
}

/// The key by which a list of objects is merged; lists without one are replaced.
fn merge_key(field: &str) -> Option<&'static str> {
    match field {
        "containers" | "initContainers" | "volumes" | "env" | "imagePullSecrets"
        | "schedulingGates" | "secrets" => Some("name"),
        "conditions" | "addresses" => Some("type"),
        "ownerReferences" => Some("uid"),
        "volumeMounts" => Some("mountPath"),
        "volumeDevices" => Some("devicePath"),
        "ports" => Some("containerPort"),
        "hostAliases" => Some("ip"),
        _ => None,
    }
}

/// Strategic merge: maps merge, nulls delete, lists with a merge key merge by it, `finalizers` is a set.
fn strategic(target: &mut Value, patch: &Value) {
    let Some(changes) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(object) = target.as_object_mut() else {
        return;
    };
    if changes.get("$patch").and_then(Value::as_str) == Some("replace") {
        object.clear();
    }
    for (key, change) in changes {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(have), Some(gone)) = (
                object.get_mut(list).and_then(Value::as_array_mut),
                change.as_array(),
            ) {
                have.retain(|v| !gone.contains(v));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        match change {
            Value::Null => {
                object.remove(key);
            }
            Value::Object(_) => strategic(object.entry(key.clone()).or_insert(Value::Null), change),
            Value::Array(items) if key == "finalizers" => {
                let have = object
                    .entry(key.clone())
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Some(have) = have.as_array_mut() {
                    for item in items
                        .iter()
                        .filter(|i| !have.contains(i))
                        .cloned()
                        .collect::<Vec<_>>()
                    {
                        have.push(item);
                    }
                }
            }
            Value::Array(items) => match (merge_key(key), object.get_mut(key)) {
                (Some(id), Some(Value::Array(have))) => merge_list(have, items, id),
                _ => {
                    let clean = items
                        .iter()
                        .filter(|i| i["$patch"].is_null())
                        .cloned()
                        .collect();
                    object.insert(key.clone(), Value::Array(clean));
                }
            },
            plain => {
                object.insert(key.clone(), plain.clone());
            }
        }
    }
}

fn merge_list(have: &mut Vec<Value>, items: &[Value], id: &str) {
    for item in items {
        match item["$patch"].as_str() {
            Some("delete") => have.retain(|h| h[id] != item[id]),
            Some("replace") => have.clear(),
            _ => match have.iter_mut().find(|h| h[id] == item[id]) {
                Some(found) => strategic(found, item),
                None => have.push(item.clone()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn strategic_merges_conditions_by_type() {
        let mut o = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Disk", "status": "False"}],
            "volumesInUse": ["a"]}});
        strategic(
            &mut o,
            &json!({"status": {"conditions": [{"type": "Ready", "status": "False"}], "volumesInUse": ["b"]}}),
        );
        assert_eq!(
            o["status"]["conditions"][0],
            json!({"type": "Ready", "status": "False"})
        );
        assert_eq!(o["status"]["conditions"].as_array().unwrap().len(), 2);
        assert_eq!(o["status"]["volumesInUse"], json!(["b"]));
    }

    #[test]
    fn finalizers_are_a_set() {
        let mut o = json!({"metadata": {"finalizers": ["a"]}});
        strategic(&mut o, &json!({"metadata": {"finalizers": ["b", "a"]}}));
        assert_eq!(o["metadata"]["finalizers"], json!(["a", "b"]));
        strategic(
            &mut o,
            &json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]}}),
        );
        assert_eq!(o["metadata"]["finalizers"], json!(["b"]));
    }

    #[test]
    fn a_field_no_longer_applied_is_removed() {
        let mut o = json!({"metadata": {"labels": {"mine": "1", "other": "2"}}, "spec": {"n": 1}});
        let before = json!({"metadata": {"labels": {"mine": "1"}}, "spec": {"n": 1}});
        drop_unapplied(&mut o, &before, &json!({"spec": {"n": 2}}));
        assert_eq!(
            o,
            json!({"metadata": {"labels": {"other": "2"}}, "spec": {"n": 1}})
        );
    }
}
