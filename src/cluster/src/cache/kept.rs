//! What is kept of each watched object, and what it is found by. A cluster may have 150,000 pods, most of whose text nobody
//! reads here: container specs, annotations of others, managed fields.
//!
//! What a function of this product reads of a watched object has to be in its kind's list here; `tests` holds the facts of a
//! whole object against those of what is kept of it.

use crate::facts::KURED_ANNOTATION;
use crate::losses::{INDEX_FAILURES, MIRROR};
use crate::names::is_object_name;
use crate::view::claims_of;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateWaiting, ContainerStatus,
    EphemeralVolumeSource, Event, Namespace, Node, NodeStatus, PersistentVolume,
    PersistentVolumeClaim, PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, Pod,
    PodCondition, PodSpec, PodStatus, Volume,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode, VolumeAttachment};
use kube::api::ObjectMeta;
use reattach_api::{NodeVolumeReport, RecoveryPolicy, VolumeRecovery};
use reattach_core::ids::ObjectName;

/// Annotations whose key begins so are our own.
const OURS: &str = "reattach.dev/";

/// What an object is about, besides its own name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Key {
    /// The node that a pod is bound to, or that a VolumeAttachment names.
    Node(String),
    /// A claim that a pod names.
    Claim(ObjectName),
    /// The PersistentVolume that a VolumeAttachment names.
    Volume(String),
    /// The object's own UID, for a PersistentVolume or VolumeAttachment.
    Uid(String),
}

/// What is kept of an object of this kind.
pub trait Kept: Sized {
    /// The object without what nobody reads.
    fn kept(self) -> Self;

    /// What it is found by.
    fn keys(&self) -> Vec<Key> {
        Vec::new()
    }
}

/// Metadata without managed fields, and with no annotations but those that are read.
fn metadata(mut meta: ObjectMeta) -> ObjectMeta {
    meta.managed_fields = None;
    meta.generate_name = None;
    let is_read = |key: &str| {
        key.starts_with(OURS) || [MIRROR, INDEX_FAILURES, KURED_ANNOTATION].contains(&key)
    };
    if let Some(annotations) = &mut meta.annotations {
        annotations.retain(|key, _| is_read(key));
    }
    meta.annotations = meta.annotations.filter(|a| !a.is_empty());
    meta
}

impl Kept for Pod {
    fn kept(self) -> Self {
        Self {
            metadata: metadata(self.metadata),
            spec: self.spec.map(pod_spec),
            status: self.status.map(pod_status),
        }
    }

    fn keys(&self) -> Vec<Key> {
        let node = self.spec.as_ref().and_then(|s| s.node_name.clone());
        let mut keys: Vec<Key> = node
            .filter(|n| !n.is_empty())
            .map(Key::Node)
            .into_iter()
            .collect();
        if let Some(namespace) = self.metadata.namespace.as_deref() {
            let mut claims = claims_of(self);
            claims.dedup();
            let of = |claim| Key::Claim(ObjectName::new(namespace, claim));
            keys.extend(claims.into_iter().map(of));
        }
        keys
    }
}

fn pod_spec(spec: PodSpec) -> PodSpec {
    let claimed = |v: Volume| {
        let is_claimed = v.persistent_volume_claim.is_some() || v.ephemeral.is_some();
        is_claimed.then(|| Volume {
            name: v.name,
            persistent_volume_claim: v.persistent_volume_claim,
            // Its template describes the claim, which is an object of its own.
            ephemeral: v.ephemeral.map(|_| EphemeralVolumeSource::default()),
            ..Volume::default()
        })
    };
    let volumes: Vec<Volume> = spec
        .volumes
        .into_iter()
        .flatten()
        .filter_map(claimed)
        .collect();
    PodSpec {
        node_name: spec.node_name,
        scheduling_gates: spec.scheduling_gates,
        // Those that every pod has stay out: they have an end.
        tolerations: spec
            .tolerations
            .map(|all| {
                all.into_iter()
                    .filter(|t| t.toleration_seconds.is_none())
                    .collect()
            })
            .filter(|left: &Vec<_>| !left.is_empty()),
        volumes: Some(volumes).filter(|v| !v.is_empty()),
        ..PodSpec::default()
    }
}

fn pod_status(status: PodStatus) -> PodStatus {
    let conditions = status.conditions.map(|all| {
        let is_read = |c: &PodCondition| c.type_ == "Ready";
        all.into_iter()
            .filter(is_read)
            .map(|c| PodCondition {
                type_: c.type_,
                status: c.status,
                last_transition_time: c.last_transition_time,
                ..PodCondition::default()
            })
            .collect()
    });
    let containers = |all: Option<Vec<ContainerStatus>>| {
        all.map(|all| {
            all.into_iter()
                .filter_map(container_status)
                .collect::<Vec<_>>()
        })
        .filter(|left| !left.is_empty())
    };
    PodStatus {
        phase: status.phase,
        conditions,
        container_statuses: containers(status.container_statuses),
        init_container_statuses: containers(status.init_container_statuses),
        ..PodStatus::default()
    }
}

/// Whether a container runs, and why one waits. Nothing is kept of one that has ended.
fn container_status(status: ContainerStatus) -> Option<ContainerStatus> {
    let state = status.state?;
    let running = state.running.map(|_| ContainerStateRunning::default());
    let waiting = state.waiting.map(|w| ContainerStateWaiting {
        reason: w.reason,
        message: None,
    });
    if running.is_none() && waiting.is_none() {
        return None;
    }
    Some(ContainerStatus {
        state: Some(ContainerState {
            running,
            waiting,
            terminated: None,
        }),
        ..ContainerStatus::default()
    })
}

impl Kept for Node {
    fn kept(mut self) -> Self {
        self.metadata = metadata(self.metadata);
        self.status = self.status.map(|status| {
            let conditions = status.conditions.map(|all| {
                let ready = all.into_iter().filter(|c| c.type_ == "Ready");
                ready
                    .map(|mut c| {
                        c.last_heartbeat_time = None;
                        c.message = None;
                        c
                    })
                    .collect()
            });
            NodeStatus {
                conditions,
                node_info: status.node_info,
                volumes_attached: status.volumes_attached,
                volumes_in_use: status.volumes_in_use,
                ..NodeStatus::default()
            }
        });
        self
    }
}

impl Kept for PersistentVolumeClaim {
    fn kept(self) -> Self {
        Self {
            metadata: metadata(self.metadata),
            spec: self.spec.map(|spec| PersistentVolumeClaimSpec {
                access_modes: spec.access_modes,
                storage_class_name: spec.storage_class_name,
                volume_name: spec.volume_name,
                ..PersistentVolumeClaimSpec::default()
            }),
            status: self.status.map(|status| PersistentVolumeClaimStatus {
                phase: status.phase,
                ..PersistentVolumeClaimStatus::default()
            }),
        }
    }
}

impl Kept for PersistentVolume {
    fn kept(mut self) -> Self {
        self.metadata = metadata(self.metadata);
        if let Some(csi) = self.spec.as_mut().and_then(|s| s.csi.as_mut()) {
            csi.volume_attributes = None;
        }
        self
    }

    fn keys(&self) -> Vec<Key> {
        self.metadata
            .uid
            .clone()
            .map(Key::Uid)
            .into_iter()
            .collect()
    }
}

impl Kept for VolumeAttachment {
    fn kept(mut self) -> Self {
        self.metadata = metadata(self.metadata);
        if let Some(status) = &mut self.status {
            status.attachment_metadata = None;
        }
        self
    }

    fn keys(&self) -> Vec<Key> {
        let volume = self.spec.source.persistent_volume_name.clone();
        let node = Some(self.spec.node_name.clone()).filter(|n| is_object_name(n));
        let uid = self.metadata.uid.clone();
        let keys = [
            volume.map(Key::Volume),
            node.map(Key::Node),
            uid.map(Key::Uid),
        ];
        keys.into_iter().flatten().collect()
    }
}

impl Kept for Event {
    fn kept(mut self) -> Self {
        self.metadata = metadata(self.metadata);
        self
    }
}

impl Kept for Namespace {
    fn kept(self) -> Self {
        Self {
            metadata: metadata(self.metadata),
            ..Self::default()
        }
    }
}

impl Kept for CSINode {
    fn kept(mut self) -> Self {
        self.metadata = metadata(self.metadata);
        self
    }
}

impl Kept for CSIDriver {
    fn kept(mut self) -> Self {
        self.metadata = metadata(self.metadata);
        self
    }
}

impl Kept for VolumeRecovery {
    fn kept(mut self) -> Self {
        self.metadata.managed_fields = None;
        self
    }
}

impl Kept for RecoveryPolicy {
    fn kept(mut self) -> Self {
        self.metadata.managed_fields = None;
        self
    }
}

impl Kept for NodeVolumeReport {
    fn kept(mut self) -> Self {
        self.metadata.managed_fields = None;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effects::hold::is_gated;
    use crate::effects::node::{closed_by, is_out_of_service_by_us, quarantined_by, silence};
    use crate::{facts, losses};
    use serde_json::{Value, json};

    fn of<K: serde::de::DeserializeOwned>(object: Value) -> K {
        serde_json::from_value(object).unwrap_or_else(|e| panic!("{e}"))
    }

    fn meta(name: &str) -> Value {
        json!({
            "name": name, "namespace": "shop", "uid": format!("uid-of-{name}"), "resourceVersion": "7",
            "creationTimestamp": "2026-03-02T03:00:00Z", "labels": {"app": "db"}, "generateName": "db-",
            "annotations": {
                "kubectl.kubernetes.io/last-applied-configuration": "x".repeat(4_000),
                "reattach.dev/opt-out": "true", "batch.kubernetes.io/job-index-failure-count": "2",
                "weave.works/kured-reboot-in-progress": "now", "reattach.dev/tagged-as": "a,b",
            },
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "j", "uid": "j", "controller": true}],
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": {"f:status": {}}}],
        })
    }

    /// A pod in one of the states that a container can be in.
    fn pod(state: &Value, toleration: &Value) -> Pod {
        let container = json!({"name": "db", "image": "db:1", "env": [{"name": "A", "value": "x".repeat(2_000)}]});
        of(json!({
            "metadata": meta("db-0"),
            "spec": {
                "nodeName": "n1", "containers": [container], "schedulingGates": [{"name": "reattach.dev/hold"}],
                "tolerations": [toleration],
                "volumes": [
                    {"name": "data", "persistentVolumeClaim": {"claimName": "data-db-0"}},
                    {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
                    {"name": "kube-api-access", "projected": {"sources": []}}, {"name": "tmp", "emptyDir": {}},
                ],
            },
            "status": {
                "phase": "Pending", "podIP": "10.0.0.1",
                "conditions": [
                    {"type": "Ready", "status": "False", "lastTransitionTime": "2026-03-02T03:01:00Z", "reason": "ContainersNotReady"},
                    {"type": "PodScheduled", "status": "True"},
                ],
                "containerStatuses": [{"name": "db", "image": "db:1", "imageID": "i", "ready": false, "restartCount": 0, "state": state}],
            },
        }))
    }

    #[test]
    fn what_is_kept_of_a_pod_gives_the_same_facts() {
        let states = [
            json!({"running": {"startedAt": "2026-03-02T03:00:30Z"}}),
            json!({"waiting": {"reason": "ContainerCreating"}}),
            json!({"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}),
            json!({"terminated": {"exitCode": 143}}),
            json!({}),
        ];
        let tolerations = [
            json!({"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
            json!({"operator": "Exists"}),
        ];
        let claim = json!({"metadata": meta("data-db-0"), "spec": {"volumeName": "pv"}});
        let claims = [of::<PersistentVolumeClaim>(claim)];
        for (state, toleration) in states
            .iter()
            .flat_map(|s| tolerations.iter().map(move |t| (s, t)))
        {
            let whole = pod(state, toleration);
            let kept = whole.clone().kept();
            assert_eq!(facts::pod(&kept), facts::pod(&whole));
            assert_eq!(claims_of(&kept), claims_of(&whole));
            assert_eq!(is_gated(&kept), is_gated(&whole));
            assert!(is_gated(&kept));
            assert_eq!(losses::counts(&kept), losses::counts(&whole));
            assert_eq!(losses::job_of(&kept), losses::job_of(&whole));
            assert_eq!(
                losses::of_pod(&kept, &claims, None),
                losses::of_pod(&whole, &claims, None)
            );
            assert_eq!(kept.metadata.labels, whole.metadata.labels);
            let bytes = |pod: &Pod| serde_json::to_vec(pod).unwrap().len();
            assert!(bytes(&kept) < 1_200, "{} bytes are kept", bytes(&kept));
            assert_eq!(kept.clone().kept(), kept);
        }
    }

    #[test]
    fn what_is_kept_of_a_volume_gives_the_same_facts() {
        let volume = of::<PersistentVolume>(json!({
            "metadata": meta("pv"),
            "spec": {
                "claimRef": {"namespace": "shop", "name": "data-db-0", "uid": "c"},
                "csi": {"driver": "linodebs.csi.linode.com", "volumeHandle": "1-a", "volumeAttributes": {"x": "y"}},
                "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions":
                    [{"key": "topology.linode.com/region", "operator": "In", "values": ["eu-west"]}]}]}},
            },
        }));
        let kept = volume.clone().kept();
        assert_eq!(facts::volume(&kept, None), facts::volume(&volume, None));
        let claim = of::<PersistentVolumeClaim>(json!({
            "metadata": meta("data-db-0"),
            "spec": {"volumeName": "pv", "accessModes": ["ReadWriteOnce"], "storageClassName": "fast",
                "resources": {"requests": {"storage": "10Gi"}}},
            "status": {"phase": "Bound", "capacity": {"storage": "10Gi"}},
        }));
        assert_eq!(facts::claim(&claim.clone().kept()), facts::claim(&claim));
    }

    #[test]
    fn what_is_kept_of_a_node_says_the_same_of_it() {
        let taint = |key: &str| json!({"key": key, "value": "r", "effect": "NoSchedule"});
        let node = of::<Node>(json!({
            "metadata": meta("n1"),
            "spec": {"providerID": "linode://1", "taints": [taint("reattach.dev/quarantine"), taint("dedicated")]},
            "status": {
                "conditions": [
                    {"type": "MemoryPressure", "status": "False", "lastHeartbeatTime": "2026-03-02T03:00:00Z"},
                    {"type": "Ready", "status": "Unknown", "lastHeartbeatTime": "2026-03-02T03:00:00Z",
                        "lastTransitionTime": "2026-03-02T03:01:00Z"},
                ],
                "images": [{"names": ["a"], "sizeBytes": 1}], "capacity": {"cpu": "2"},
                "volumesInUse": ["kubernetes.io/csi/d^1"],
                "volumesAttached": [{"name": "kubernetes.io/csi/d^1", "devicePath": ""}],
                "nodeInfo": {"bootID": "b", "machineID": "m", "systemUUID": "s", "architecture": "amd64",
                    "containerRuntimeVersion": "", "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "",
                    "operatingSystem": "", "osImage": ""},
            },
        }));
        let kept = node.clone().kept();
        let said = |n: &Node| facts::node(n, None, None, &|_| None);
        assert_eq!(said(&kept), said(&node));
        assert_eq!(silence(&kept), silence(&node));
        assert_eq!(quarantined_by(&kept), quarantined_by(&node));
        assert_eq!(closed_by(&kept), closed_by(&node));
        assert_eq!(
            is_out_of_service_by_us(&kept),
            is_out_of_service_by_us(&node)
        );
        assert!(kept.status.is_some_and(|s| s.images.is_none()));
    }
}
