//! What the rest of a cluster does on this stage: agent, kubelet, attach/detach controller, CSI driver, StatefulSet
//! controller. As little of each as a recovery needs; the simulation has the faithful ones.

use super::{CLAIM, LEASE, NODE, NS, POD, Stage, TOKEN};
use prometheus_client::registry::Registry;
use reattach_cloud_simulator::{InstanceNo, VolumeNo};
use reattach_cluster::{Clients, Clock};
use reattach_controller::metrics::Metrics;
use reattach_controller::{Controller, Providers, Settings};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

const TICK: Duration = Duration::from_millis(100);

/// When the world stops turning.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Aborted,
    ScaledToZero,
}

/// Keeps the world turning until the stage's test ends.
pub fn turn(stage: &Arc<Stage>) -> JoinHandle<()> {
    tokio::spawn(turn_until(stage.clone(), Until::Aborted))
}

/// Keeps the world turning until the workload is to have no replica, and leaves its pod alone: a run cannot get past its first
/// step, however late the test notices.
pub fn turn_until_scaled_to_zero(stage: &Arc<Stage>) -> JoinHandle<()> {
    tokio::spawn(turn_until(stage.clone(), Until::ScaledToZero))
}

async fn turn_until(stage: Arc<Stage>, until: Until) {
    loop {
        stage.renew_node_lease();
        answer(&stage);
        let Some(set) = stage.server.read("apps", "statefulsets", NS, "redis") else {
            return;
        };
        if until == Until::ScaledToZero && set["spec"]["replicas"] == 0 {
            return;
        }
        workload(&stage, &set).await;
        tokio::time::sleep(TICK).await;
    }
}

/// The agent: one answer per challenge.
fn answer(stage: &Stage) {
    let Some(old) = stage
        .server
        .read("reattach.dev", "nodevolumereports", "", NODE)
    else {
        return;
    };
    let has_device = stage
        .cloud
        .guest_has_device(InstanceNo(100), VolumeNo(7001));
    let answers: Vec<Value> = old["spec"]["challenges"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|c| {
            let known = old["status"]["answers"].as_array().into_iter().flatten();
            let known = known
                .clone()
                .find(|a| a["recovery"] == c["recovery"] && a["epoch"] == c["epoch"]);
            known.cloned().unwrap_or_else(|| {
                json!({"recovery": c["recovery"], "epoch": c["epoch"], "identity": c["identity"],
                    "bootId": super::BOOT, "scannedAt": stage.server.clock().now().to_string(),
                    "seen": if has_device { json!("idle") } else { json!("noDevice") }})
            })
        })
        .collect();
    if old["status"]["answers"] != json!(answers) {
        let mut new = (*old).clone();
        new["status"]["answers"] = json!(answers);
        stage.server.insert(&new);
    }
}

async fn workload(stage: &Stage, set: &Value) {
    let server = &stage.server;
    let wanted = set["spec"]["replicas"].as_i64() == Some(1);
    let pod = server.read("", "pods", NS, POD);
    let attached = server
        .read(
            "storage.k8s.io",
            "volumeattachments",
            "",
            &Stage::attachment_name(),
        )
        .is_some();
    let mut status = set["status"].clone();
    status["observedGeneration"] = set["metadata"]["generation"].clone();
    status["replicas"] = set["spec"]["replicas"].clone();
    if status != set["status"] {
        let mut seen = set.clone();
        seen["status"] = status;
        server.insert(&seen);
        return;
    }
    match (wanted, pod.is_some(), attached) {
        (false, true, _) => remove(stage, "/api/v1/namespaces/cache/pods/redis-0").await,
        (false, false, true) => {
            set_node_volumes(stage, &json!([]));
            if stage
                .cloud
                .volume(VolumeNo(7001))
                .is_some_and(|v| v.holder.is_some())
            {
                // The job is asked for once; later calls find it under way.
                let _ = stage.cloud.detach(VolumeNo(7001));
            } else {
                let path = format!(
                    "/apis/storage.k8s.io/v1/volumeattachments/{}",
                    Stage::attachment_name()
                );
                remove(stage, &path).await;
            }
        }
        (true, false, _) => {
            if stage
                .cloud
                .volume(VolumeNo(7001))
                .is_some_and(|v| v.holder.is_none())
            {
                stage
                    .cloud
                    .attach_now(VolumeNo(7001), InstanceNo(100))
                    .unwrap();
            }
            stage.insert_attachment();
            stage.insert_node();
            stage.insert_report(&["pvc1"]);
            stage.insert_pod(set["metadata"]["uid"].as_str().unwrap(), true);
        }
        _ => {}
    }
}

fn set_node_volumes(stage: &Stage, volumes: &Value) {
    let node = stage.server.read("", "nodes", "", NODE).unwrap();
    if node["status"]["volumesInUse"] != *volumes {
        let mut new = (*node).clone();
        new["status"]["volumesInUse"] = volumes.clone();
        new["status"]["volumesAttached"] = volumes.clone();
        stage.server.insert(&new);
    }
}

pub async fn remove(stage: &Stage, path: &str) {
    let body = serde_json::to_vec(&json!({"gracePeriodSeconds": 0})).unwrap();
    let request = axum::http::Request::delete(path).body(body).unwrap();
    let _: Result<Value, _> = stage.server.client_as("world").request(request).await;
}

/// A controller process, in this one.
pub struct Running {
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn start(stage: &Stage) -> Self {
        let client = stage.server.client_as("controller");
        let token = reattach_linode::Token::new(TOKEN).unwrap();
        let config = reattach_linode::LinodeConfig::new(token, Some(&stage.cloud_url)).unwrap();
        let mut providers = Providers::default();
        providers.register(Arc::new(
            reattach_linode::LinodeProvider::connect(config).unwrap(),
        ));
        let settings = Settings {
            namespace: LEASE.0.into(),
            lease: LEASE.1.into(),
            identity: "controller-0/uid/1".into(),
            username: "controller".into(),
        };
        let metrics = Metrics::register(&mut Registry::default());
        let controller = Controller::new(
            Clients::over(client.clone(), client),
            providers,
            Clock::system(),
            settings,
            metrics,
        );
        let (ready, mut is_ready) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(controller.run(ready, stopped));
        is_ready.wait_for(|r| *r).await.unwrap();
        let leads = || {
            let lease = stage
                .server
                .read("coordination.k8s.io", "leases", LEASE.0, LEASE.1);
            lease.is_some_and(|l| l["spec"]["holderIdentity"] == "controller-0/uid/1")
        };
        while !leads() {
            tokio::time::sleep(TICK).await;
        }
        Self { stop, task }
    }

    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.task.await.unwrap();
    }
}

/// The claim's workload is as it was before: one Ready pod, no stamp, no finalizer, one holder.
pub fn assert_clean(stage: &Stage) {
    let set = stage
        .server
        .read("apps", "statefulsets", NS, "redis")
        .unwrap();
    assert_eq!(set["spec"]["replicas"], 1);
    assert!(
        set["metadata"]["annotations"]["reattach.dev/restore"].is_null(),
        "{set}"
    );
    for recovery in stage
        .server
        .list("reattach.dev", "volumerecoveries", Some(NS))
    {
        assert_eq!(
            recovery["metadata"]["finalizers"]
                .as_array()
                .map_or(0, Vec::len),
            0,
            "{recovery}"
        );
    }
    let report = stage
        .server
        .read("reattach.dev", "nodevolumereports", "", NODE)
        .unwrap();
    assert_eq!(
        report["spec"]["challenges"].as_array().map_or(0, Vec::len),
        0,
        "{report}"
    );
    assert!(stage.cloud.max_holders(VolumeNo(7001)) <= 1);
    assert!(
        stage
            .server
            .read("", "persistentvolumeclaims", NS, CLAIM)
            .is_some()
    );
}
