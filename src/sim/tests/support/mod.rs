//! A stage for the tests: one StatefulSet with one volume, and nodes on instances of the simulated cloud.
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reattach_cloud_simulator::clock::tokio_from;
use reattach_cloud_simulator::{CloudSim, InstanceNo, NewInstance, NewVolume, VolumeNo};
use reattach_sim::cloud::{LinodeCsi, SimulatedCloud};
use reattach_sim::kubelet::{DiskAfter, SimKubelet};
use reattach_sim::{SimCluster, manifests, names};
use serde_json::{Value, json};

pub const DRIVER: &str = "linodebs.csi.linode.com";
pub const HANDLE: &str = "7001-pvc1";
pub const VOLUME: VolumeNo = VolumeNo(7001);
pub const NS: &str = "default";
pub const POD: &str = "redis-0";

pub struct Stage {
    pub cluster: SimCluster,
    pub cloud: CloudSim,
    pub csi: LinodeCsi,
    pub client: kube::Client,
}

pub fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

/// Nodes `n0`… on the instances 100…, and `redis-0` Ready with its volume.
pub async fn stage(seed: u64, nodes: u64) -> Stage {
    Setup::new(seed, nodes).build().await
}

/// Settings of a stage.
pub struct Setup {
    pub seed: u64,
    pub nodes: u64,
    /// Directory for the nodes' host trees.
    pub host: Option<PathBuf>,
    /// Instead of the StatefulSet `redis`.
    pub workload: Option<Value>,
    /// Whether the cloud boots an instance again after a power cut. Off, so that a machine stays off until a test powers it on.
    pub watchdog: bool,
}

impl Setup {
    pub fn new(seed: u64, nodes: u64) -> Self {
        Self {
            seed,
            nodes,
            host: None,
            workload: None,
            watchdog: false,
        }
    }

    pub fn workload(self, workload: Value) -> Self {
        Self {
            workload: Some(workload),
            ..self
        }
    }

    pub async fn build(self) -> Stage {
        let start = "2021-07-11T00:00:00Z".parse().unwrap();
        let cloud = CloudSim::new(tokio_from(start)).with_seed(self.seed);
        let csi = LinodeCsi::new(SimulatedCloud::new(cloud.clone()));
        let mut builder = SimCluster::builder(csi.clone())
            .seed(self.seed)
            .start_at(start);
        for n in 0..self.nodes {
            let (name, instance) = (format!("n{n}"), 100 + n);
            add_instance(&cloud, &name, instance, self.watchdog);
            let host = self.host.as_ref().map(|h| h.join(&name));
            builder = builder.node(&name, instance, host);
        }
        let cluster = builder.build().await.unwrap();
        let client = cluster.server().client_as("test");
        let s = Stage {
            cluster,
            cloud,
            csi,
            client,
        };
        s.add_volume("pvc-1", HANDLE, "ext4", "data-redis-0");
        s.cluster
            .server()
            .insert(&manifests::claim(NS, "data-redis-0", "pvc-1"));
        let workload = self
            .workload
            .unwrap_or_else(|| manifests::stateful_set(NS, "redis", 1));
        s.create(&workload).await;
        s
    }
}

/// Adds a running instance to the cloud.
pub fn add_instance(cloud: &CloudSim, name: &str, number: u64, watchdog: bool) {
    let mut instance = NewInstance::new(name).with_id(number);
    instance.watchdog_enabled = watchdog;
    cloud.create_instance(instance).unwrap();
}

impl Stage {
    /// A detached volume of the cloud with this handle (`NUMBER-LABEL`), and its PersistentVolume for this claim.
    pub fn add_volume(&self, pv: &str, handle: &str, fs_type: &str, claim: &str) {
        let (number, label) = handle.split_once('-').unwrap();
        let volume = NewVolume::new(label).with_id(number.parse().unwrap());
        self.cloud.create_volume(volume).unwrap();
        let volume = manifests::linode_volume(pv, handle, fs_type, NS, claim);
        self.cluster.server().insert(&volume);
    }

    /// The instance that the cloud names as the holder of the stage's volume.
    pub fn holder(&self) -> Option<InstanceNo> {
        self.cloud.volume(VOLUME).unwrap().holder
    }

    pub async fn request(
        &self,
        method: &str,
        path: &str,
        content: &str,
        body: &Value,
    ) -> Result<Value, kube::Error> {
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .body(body.to_string().into_bytes())
            .unwrap();
        self.client.request(request).await
    }

    /// Merges a body into the object at this path.
    pub async fn merge(&self, path: &str, body: &Value) {
        self.request("PATCH", path, "application/merge-patch+json", body)
            .await
            .unwrap();
    }

    pub async fn create(&self, object: &Value) {
        let plural = format!("{}s", object["kind"].as_str().unwrap().to_lowercase());
        let group = object["apiVersion"].as_str().unwrap();
        let root = if group == "v1" {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{group}")
        };
        let path = format!("{root}/namespaces/{NS}/{plural}");
        self.request("POST", &path, "application/json", object)
            .await
            .unwrap();
    }

    pub async fn ready(&self) {
        self.cluster
            .until(secs(120), |c| c.pod_ready(NS, POD))
            .await
            .expect("the stage is set");
    }

    pub fn pod(&self) -> Option<Arc<Value>> {
        self.cluster.pod(NS, POD)
    }

    pub fn node_name(&self) -> String {
        self.pod().unwrap()["spec"]["nodeName"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    pub fn kubelet(&self) -> &SimKubelet {
        self.cluster.node(&self.node_name()).unwrap()
    }

    pub fn attachment(&self, node: &str) -> Option<Arc<Value>> {
        self.cluster.server().read(
            "storage.k8s.io",
            "volumeattachments",
            "",
            &names::attachment_name(HANDLE, DRIVER, node),
        )
    }

    pub fn in_use(&self, node: &str) -> bool {
        self.node_list(node, "volumesInUse")
    }

    pub fn attached(&self, node: &str) -> bool {
        self.node_list(node, "volumesAttached")
    }

    fn node_list(&self, node: &str, field: &str) -> bool {
        let volume = names::unique_volume_name(HANDLE, DRIVER);
        let node = self.cluster.server().read("", "nodes", "", node).unwrap();
        let list = node["status"][field]
            .as_array()
            .cloned()
            .unwrap_or_default();
        list.iter()
            .any(|v| v == volume.as_str() || v["name"] == volume.as_str())
    }

    /// The node is recycled uncleanly and comes back with its pod stuck: class B.
    pub async fn class_b(&self, disk: DiskAfter) {
        self.kubelet().recycle(disk, secs(5)).await;
        let stuck = self.cluster.until(secs(60), |c| {
            let failed = c.events(NS, POD, "FailedMount");
            failed
                .iter()
                .any(|(m, _)| m.contains("Unable to find device path"))
                && !c.pod_ready(NS, POD)
        });
        stuck.await.expect("FailedMount after the recycle");
    }

    pub async fn scale(&self, replicas: i64) {
        let body = json!({"spec": {"replicas": replicas}});
        let path = format!("/apis/apps/v1/namespaces/{NS}/statefulsets/redis/scale");
        self.merge(&path, &body).await;
    }

    pub async fn delete_pod(&self) {
        let path = format!("/api/v1/namespaces/{NS}/pods/{POD}");
        self.delete(&path).await;
    }

    /// A person declares the node dead.
    pub async fn out_of_service(&self, node: &str) {
        let object = self.cluster.server().read("", "nodes", "", node).unwrap();
        let mut taints = object["spec"]["taints"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        let key = "node.kubernetes.io/out-of-service";
        taints.push(json!({"key": key, "value": "nodeshutdown", "effect": "NoExecute"}));
        let (path, body) = (
            format!("/api/v1/nodes/{node}"),
            json!({"spec": {"taints": taints}}),
        );
        self.merge(&path, &body).await;
    }

    /// Deletes what is at this path.
    pub async fn delete(&self, path: &str) {
        self.request("DELETE", path, "application/json", &json!({}))
            .await
            .unwrap();
    }

    /// Deletes the pod without waiting for its node.
    pub async fn force_delete_pod(&self) {
        let path = format!("/api/v1/namespaces/{NS}/pods/{POD}");
        let body = json!({"gracePeriodSeconds": 0});
        self.request("DELETE", &path, "application/json", &body)
            .await
            .unwrap();
    }

    /// The path of the VolumeAttachment of the volume on a node.
    pub fn attachment_path(node: &str) -> String {
        let name = names::attachment_name(HANDLE, DRIVER, node);
        format!("/apis/storage.k8s.io/v1/volumeattachments/{name}")
    }

    /// The error that external-attacher wrote last on a VolumeAttachment.
    pub fn error(&self, node: &str, field: &str) -> String {
        let va = self.attachment(node);
        let message = va.and_then(|va| va["status"][field]["message"].as_str().map(str::to_owned));
        message.unwrap_or_default()
    }

    /// Waits until the pod is Ready.
    pub async fn healed(&self, limit: u64) -> Option<Duration> {
        self.cluster
            .until(secs(limit), |c| c.pod_ready(NS, POD))
            .await
    }
}

/// Median of durations in seconds.
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
