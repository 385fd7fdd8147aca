//! Defaults that the API server sets when an object is created.

use serde_json::{Value, json};

use super::resource::ResourceType;
use crate::object::text;

/// Sets a field that the object does not have.
pub(super) fn default(object: &mut Value, key: &str, value: Value) {
    if object[key].is_null() {
        object[key] = value;
    }
}

/// Defaults and initial status of a new object.
pub(super) fn on_create(rt: &ResourceType, object: &mut Value) {
    // A Node's registration carries its status; everything else starts without one.
    if rt.status
        && !rt.is("", "nodes")
        && let Some(map) = object.as_object_mut()
    {
        map.remove("status");
    }
    match (rt.group.as_str(), rt.plural.as_str()) {
        ("", "pods") => pod(object),
        ("", "namespaces") => object["status"] = json!({"phase": "Active"}),
        ("", "persistentvolumes" | "persistentvolumeclaims") => {
            object["status"] = json!({"phase": "Pending"});
            default(&mut object["spec"], "volumeMode", json!("Filesystem"));
        }
        ("apps", "deployments") => {
            default(&mut object["spec"], "replicas", json!(1));
            default(&mut object["spec"], "revisionHistoryLimit", json!(10));
            default(&mut object["spec"], "progressDeadlineSeconds", json!(600));
            default(
                &mut object["spec"],
                "strategy",
                json!({"type": "RollingUpdate"}),
            );
            if object["spec"]["strategy"]["type"] == "RollingUpdate" {
                let rolling = json!({"maxSurge": "25%", "maxUnavailable": "25%"});
                default(&mut object["spec"]["strategy"], "rollingUpdate", rolling);
            }
            object["status"] = json!({});
        }
        ("apps", "replicasets") => {
            default(&mut object["spec"], "replicas", json!(1));
            object["status"] = json!({"replicas": 0});
        }
        ("apps", "statefulsets") => {
            let spec = &mut object["spec"];
            default(spec, "replicas", json!(1));
            default(spec, "podManagementPolicy", json!("OrderedReady"));
            default(
                spec,
                "updateStrategy",
                json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
            );
            default(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
            default(
                &mut spec["persistentVolumeClaimRetentionPolicy"],
                "whenDeleted",
                json!("Retain"),
            );
            default(
                &mut spec["persistentVolumeClaimRetentionPolicy"],
                "whenScaled",
                json!("Retain"),
            );
            object["status"] = json!({"replicas": 0, "availableReplicas": 0});
        }
        _ => {}
    }
    if matches!(
        (rt.group.as_str(), rt.plural.as_str()),
        ("apps", "deployments" | "replicasets" | "statefulsets")
    ) {
        pod_spec(&mut object["spec"]["template"]["spec"]);
    }
}

/// Fills in the `default`s of an OpenAPI schema, as the server does for custom resources.
pub(super) fn from_schema(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            for (key, inner) in schema["properties"].as_object().into_iter().flatten() {
                if !map.contains_key(key)
                    && let Some(default) = inner.get("default")
                {
                    map.insert(key.clone(), default.clone());
                }
                if let Some(found) = map.get_mut(key) {
                    from_schema(inner, found);
                }
            }
            if schema["additionalProperties"].is_object() {
                map.values_mut()
                    .for_each(|v| from_schema(&schema["additionalProperties"], v));
            }
        }
        Value::Array(items) => items
            .iter_mut()
            .for_each(|v| from_schema(&schema["items"], v)),
        _ => {}
    }
}

fn pod_spec(spec: &mut Value) {
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    default(spec, "dnsPolicy", json!("ClusterFirst"));
    default(spec, "schedulerName", json!("default-scheduler"));
}

fn pod(object: &mut Value) {
    pod_spec(&mut object["spec"]);
    default(&mut object["spec"], "tolerations", json!([]));
    default(&mut object["spec"], "enableServiceLinks", json!(true));
    // The DefaultTolerationSeconds admission plugin.
    if let Some(list) = object["spec"]["tolerations"].as_array_mut() {
        for key in [
            "node.kubernetes.io/not-ready",
            "node.kubernetes.io/unreachable",
        ] {
            let tolerated = list.iter().any(|t| {
                let any_key = text(t, "/key").is_empty() && t["operator"] == "Exists";
                (any_key || t["key"] == key) && matches!(text(t, "/effect"), "" | "NoExecute")
            });
            if !tolerated {
                list.push(json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}));
            }
        }
    }
    object["status"] = json!({"phase": "Pending", "qosClass": "BestEffort"});
}
