//! What the watched objects of a cluster take in memory: whole as the client library reads them, and as the cache keeps them.
//!
//! `cargo bench -p reattach-cluster --bench memory [-- NODES]` fills each way in a process of its own, prints resident memory and
//! the ratio. 30 pods a node, a third of them with a volume, each volume with PersistentVolume, claim and VolumeAttachment; the
//! objects have the managed fields, environments and images that kubelets and controllers write.

use k8s_openapi::api::core::v1::{Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use reattach_cluster::cache::Kept;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::error::Error;
use std::process::Command;

const NODES: u64 = 1_000;
const PODS_A_NODE: u64 = 30;
/// One pod of so many has a volume.
const WITH_VOLUME: u64 = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1).filter(|word| word != "--bench");
    let first = words.next();
    if let Some(way @ ("whole" | "kept")) = first.as_deref() {
        let nodes = words
            .next()
            .ok_or("the number of nodes is missing")?
            .parse()?;
        let held = hold(nodes, way == "kept")?;
        println!("{} {}", held.len(), resident_kib()?);
        return Ok(());
    }
    let nodes = first.map_or(Ok(NODES), |word| word.parse())?;
    println!("{nodes} nodes, {} pods:", nodes * PODS_A_NODE);
    let mut taken = Vec::new();
    for way in ["whole", "kept"] {
        let ran = Command::new(std::env::current_exe()?)
            .args([way, &nodes.to_string()])
            .output()?;
        let said = String::from_utf8(ran.stdout)?;
        let (objects, kib) = said.trim().split_once(' ').ok_or("no figure")?;
        let kib: u64 = kib.parse()?;
        println!("{way:<6} {:>6} MiB  ({objects} objects)", kib / 1024);
        taken.push(kib);
    }
    println!("kept / whole = 1/{:.1}", taken[0] as f64 / taken[1] as f64);
    Ok(())
}

/// Reads every object of the cluster, one at a time, and holds it.
fn hold(nodes: u64, kept: bool) -> Result<Vec<Box<dyn std::any::Any>>, Box<dyn Error>> {
    let mut held = Vec::new();
    for node in 0..nodes {
        held.push(read::<Node>(&self::node(node), kept)?);
        for pod in node * PODS_A_NODE..(node + 1) * PODS_A_NODE {
            held.push(read::<Pod>(&self::pod(pod, node), kept)?);
            if pod % WITH_VOLUME == 0 {
                held.push(read::<PersistentVolumeClaim>(&claim(pod), kept)?);
                held.push(read::<PersistentVolume>(&volume(pod), kept)?);
                held.push(read::<VolumeAttachment>(&attachment(pod, node), kept)?);
            }
        }
    }
    Ok(held)
}

fn read<K: Kept + DeserializeOwned + 'static>(
    object: &Value,
    kept: bool,
) -> Result<Box<dyn std::any::Any>, Box<dyn Error>> {
    // As the client library reads it: from the text of an answer.
    let whole: K = serde_json::from_slice(&serde_json::to_vec(object)?)?;
    Ok(Box::new(if kept { whole.kept() } else { whole }))
}

/// Resident memory of this process (`VmRSS` in `proc_pid_status(5)`).
fn resident_kib() -> Result<u64, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .ok_or("no VmRSS")?;
    let kib = line.trim().trim_end_matches("kB").trim();
    Ok(kib.parse()?)
}

fn metadata(kind: &str, name: &str, namespace: Option<&str>, managers: &[(&str, u64)]) -> Value {
    let fields = |count: u64| -> Value {
        let field = |n: u64| {
            (
                format!("f:field-of-{kind}-{n}"),
                json!({"f:name": {}, "f:value": {}, ".": {}}),
            )
        };
        json!({"f:spec": (0..count).map(field).collect::<serde_json::Map<_, _>>()})
    };
    let managers = managers.iter().map(|(manager, count)| {
        json!({"manager": manager, "operation": "Update", "apiVersion": "v1", "time": "2026-03-02T03:00:00Z",
            "fieldsType": "FieldsV1", "fieldsV1": fields(*count)})
    });
    json!({
        "name": name, "namespace": namespace, "uid": format!("5f0c3e1e-0000-4000-8000-{name:.12}"),
        "resourceVersion": "123456789", "creationTimestamp": "2026-03-02T03:00:00Z",
        "labels": {"app.kubernetes.io/name": "shop", "app.kubernetes.io/instance": "shop-1", "pod-template-hash": "6d4cf56db6"},
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "x".repeat(1_500), "checksum/config": "0123456789abcdef"},
        "managedFields": managers.collect::<Vec<_>>(),
    })
}

fn namespace(pod: u64) -> String {
    format!("team-{}", pod % 50)
}

fn pod(number: u64, node: u64) -> Value {
    let env = |n: u64| json!({"name": format!("SETTING_{n}"), "value": "a value of some length, as charts write them"});
    let probe = json!({"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 10, "timeoutSeconds": 1});
    let mount = json!({"name": "kube-api-access", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount", "readOnly": true});
    let container = |name: &str| {
        json!({"name": name, "image": format!("registry.example.org/shop/{name}:1.2.3"), "env": (0..20).map(env).collect::<Vec<_>>(),
            "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "requests": {"cpu": "100m", "memory": "128Mi"}},
            "livenessProbe": probe, "readinessProbe": probe, "volumeMounts": [mount],
            "terminationMessagePath": "/dev/termination-log", "imagePullPolicy": "IfNotPresent"})
    };
    let status = |name: &str| {
        json!({"name": name, "image": format!("registry.example.org/shop/{name}:1.2.3"), "imageID": format!("sha256:{number:064}"),
            "containerID": format!("containerd://{number:064}"), "ready": true, "restartCount": 0, "started": true,
            "state": {"running": {"startedAt": "2026-03-02T03:00:30Z"}}})
    };
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-03-02T03:00:30Z"});
    let conditions = ["PodScheduled", "Initialized", "ContainersReady", "Ready"].map(condition);
    let mut volumes = vec![json!({"name": "kube-api-access", "projected": {"sources": [
        {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [{"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}}]}}]}})];
    if number % WITH_VOLUME == 0 {
        volumes.push(json!({"name": "data", "persistentVolumeClaim": {"claimName": format!("data-{number}")}}));
    }
    let toleration = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300});
    let managers = [("kube-controller-manager", 40), ("kubelet", 40)];
    let (name, namespace) = (format!("shop-{number:08}"), namespace(number));
    json!({
        "metadata": metadata("pod", &name, Some(&namespace), &managers),
        "spec": {"nodeName": format!("node-{node:05}"), "containers": [container("app"), container("proxy")], "volumes": volumes,
            "serviceAccountName": "default", "restartPolicy": "Always", "schedulerName": "default-scheduler",
            "tolerations": [toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable")]},
        "status": {"phase": "Running", "podIP": "10.1.2.3", "hostIP": "10.0.0.1", "qosClass": "Burstable",
            "conditions": conditions,
            "containerStatuses": [status("app"), status("proxy")]},
    })
}

fn claim(number: u64) -> Value {
    let (name, namespace) = (format!("data-{number}"), namespace(number));
    json!({
        "metadata": metadata("claim", &name, Some(&namespace), &[("kube-controller-manager", 15)]),
        "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": "linode-block-storage", "volumeMode": "Filesystem",
            "volumeName": format!("pvc-{number:032}"), "resources": {"requests": {"storage": "10Gi"}}},
        "status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}},
    })
}

fn volume(number: u64) -> Value {
    let name = format!("pvc-{number:032}");
    json!({
        "metadata": metadata("volume", &name, None, &[("csi-provisioner", 15), ("kube-controller-manager", 5)]),
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "10Gi"}, "storageClassName": "linode-block-storage",
            "claimRef": {"namespace": namespace(number), "name": format!("data-{number}"), "uid": format!("{number:036}")},
            "csi": {"driver": "linodebs.csi.linode.com", "volumeHandle": format!("{number}-pvc{number:016}"), "fsType": "ext4",
                "volumeAttributes": {"storage.kubernetes.io/csiProvisionerIdentity": "1700000000000-8081-linodebs.csi.linode.com"}}},
        "status": {"phase": "Bound"},
    })
}

fn attachment(number: u64, node: u64) -> Value {
    json!({
        "metadata": metadata("attachment", &format!("csi-{number:064}"), None, &[("csi-attacher", 10), ("kube-controller-manager", 5)]),
        "spec": {"attacher": "linodebs.csi.linode.com", "nodeName": format!("node-{node:05}"),
            "source": {"persistentVolumeName": format!("pvc-{number:032}")}},
        "status": {"attached": true, "attachmentMetadata": {"devicePath": "/dev/disk/by-id/scsi-0Linode_Volume_pvc"}},
    })
}

fn node(number: u64) -> Value {
    let image = |n: u64| json!({"names": [format!("registry.example.org/image-{n}@sha256:{n:064}"), format!("registry.example.org/image-{n}:1.2.3")], "sizeBytes": 123_456_789});
    let condition = |kind: &str| {
        json!({"type": kind, "status": "False", "lastHeartbeatTime": "2026-03-02T03:00:00Z", "lastTransitionTime": "2026-03-02T02:00:00Z",
            "reason": "KubeletHasSufficientMemory", "message": "kubelet has sufficient memory available"})
    };
    let conditions = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"].map(condition);
    json!({
        "metadata": metadata("node", &format!("node-{number:05}"), None, &[("kubelet", 60), ("kube-controller-manager", 10)]),
        "spec": {"providerID": format!("linode://{number}"), "podCIDR": "10.0.0.0/24"},
        "status": {"conditions": conditions,
            "images": (0..50).map(image).collect::<Vec<_>>(), "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "addresses": [{"type": "InternalIP", "address": "10.0.0.1"}],
            "volumesInUse": (0..10).map(|n| format!("kubernetes.io/csi/linodebs.csi.linode.com^{n}")).collect::<Vec<_>>(),
            "volumesAttached": (0..10).map(|n| json!({"name": format!("kubernetes.io/csi/linodebs.csi.linode.com^{n}"), "devicePath": ""})).collect::<Vec<_>>(),
            "nodeInfo": {"bootID": "b", "machineID": "m", "systemUUID": "s", "architecture": "amd64", "containerRuntimeVersion": "containerd://2",
                "kernelVersion": "6", "kubeProxyVersion": "", "kubeletVersion": "v1.36.0", "operatingSystem": "linux", "osImage": "Debian"}},
    })
}
