//! Objects for setting a stage: volumes, claims and small workloads as JSON.

use crate::cloud::Ground;
use serde_json::{Value, json};

/// A PersistentVolume of Linode's CSI driver that is reserved for a claim.
#[must_use]
pub fn linode_volume(pv: &str, handle: &str, fs_type: &str, namespace: &str, claim: &str) -> Value {
    csi_volume(Ground::Linode, pv, handle, fs_type, namespace, claim)
}

/// A PersistentVolume of this cloud's CSI driver that is reserved for a claim.
#[must_use]
pub fn csi_volume(
    ground: Ground,
    pv: &str,
    handle: &str,
    fs_type: &str,
    namespace: &str,
    claim: &str,
) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": pv},
        "spec": {
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "volumeMode": "Filesystem",
            "persistentVolumeReclaimPolicy": "Retain", "storageClassName": "linode-block-storage-retain",
            "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": claim},
            "csi": {"driver": ground.driver(), "volumeHandle": handle, "fsType": fs_type},
        },
        "status": {"phase": "Available"},
    })
}

/// The PersistentVolume as Kubernetes leaves it when it has bound it to this claim.
#[must_use]
pub fn bound_to(mut volume: Value, claim: &Value) -> Value {
    volume["spec"]["claimRef"]["uid"] = claim["metadata"]["uid"].clone();
    volume["status"]["phase"] = json!("Bound");
    volume
}

/// A claim that is bound to `pv`.
#[must_use]
pub fn claim(namespace: &str, name: &str, pv: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name, "namespace": namespace},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": pv, "volumeMode": "Filesystem",
            "storageClassName": "linode-block-storage-retain", "resources": {"requests": {"storage": "10Gi"}}},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}},
    })
}

/// A StatefulSet with one claim template `data`; its claims are `data-NAME-0` and so on.
#[must_use]
pub fn stateful_set(namespace: &str, name: &str, replicas: i64) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas, "serviceName": name, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "containers": [{"name": name, "image": format!("{name}:1"), "volumeMounts": [{"name": "data", "mountPath": "/data"}]}]}},
            "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"],
                "storageClassName": "linode-block-storage-retain", "resources": {"requests": {"storage": "10Gi"}}}}],
        },
    })
}

/// A Deployment that mounts `volumes` (entries of a pod's `spec.volumes`), with strategy Recreate.
#[must_use]
pub fn deployment(namespace: &str, name: &str, replicas: i64, volumes: &[Value]) -> Value {
    let mounts: Vec<Value> =
        volumes.iter().map(|v| json!({"name": v["name"], "mountPath": format!("/{}", v["name"].as_str().unwrap_or_default())})).collect();
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": replicas, "strategy": {"type": "Recreate"}, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "containers": [{"name": name, "image": format!("{name}:1"), "volumeMounts": mounts}], "volumes": volumes}},
        },
    })
}

/// A pod volume over a claim.
#[must_use]
pub fn claim_volume(name: &str, claim: &str) -> Value {
    json!({"name": name, "persistentVolumeClaim": {"claimName": claim}})
}

/// A pod volume over a Secret.
#[must_use]
pub fn secret_volume(name: &str, secret: &str) -> Value {
    json!({"name": name, "secret": {"secretName": secret}})
}
