//! A controller over the API server in memory, in virtual time.
#![allow(dead_code, reason = "each test binary uses its own part")]

pub mod cloud;

use prometheus_client::registry::Registry;
use reattach_cluster::{Clients, Clock};
use reattach_controller::metrics::Metrics;
use reattach_controller::{Controller, Providers, Settings};
use reattach_sim::apiserver::{Fault, FaultRule, RequestMatch, Verb, WatchBreak};
use reattach_sim::{ApiServer, manifests};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

pub const START: &str = "2026-03-01T00:00:00Z";
pub const NS: &str = "cache";
pub const CLAIM: &str = "data-redis-0";
pub const NODE: &str = "n1";
pub const BOOT: &str = "boot-2";
pub const DRIVER: &str = "linodebs.csi.linode.com";
pub const HANDLE: &str = "7001-pvc1";

pub struct Stage {
    pub server: ApiServer,
    tasks: JoinSet<()>,
    stop: watch::Sender<bool>,
}

impl Stage {
    /// The custom resources, one claim with its volume, and a policy that acts.
    pub fn new() -> Self {
        let server = ApiServer::new(reattach_sim::Clock::starting_at(START.parse().unwrap()), 1);
        for crd in reattach_api::all_crds() {
            assert!(server.register_crd(&serde_json::to_value(crd).unwrap()));
        }
        for namespace in [NS, "reattach-system"] {
            server.insert(
                &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}),
            );
        }
        // Of a controller that was stopped and asked for a lease of 1 s alone: the next one leads after that.
        server.insert(
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "reattach-controller", "namespace": "reattach-system"},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 0}}),
        );
        let claim = server.insert(&manifests::claim(NS, CLAIM, "pvc-1"));
        let volume = manifests::linode_volume("pvc-1", HANDLE, "ext4", NS, CLAIM);
        server.insert(&manifests::bound_to(volume, &claim));
        Self {
            server,
            tasks: JoinSet::new(),
            stop: watch::channel(false).0,
        }
    }

    /// Starts a controller with these providers, and lets it become leader.
    pub async fn start(&mut self, providers: Providers) {
        let client = self.server.client_as("controller");
        let settings = Settings {
            namespace: "reattach-system".into(),
            lease: "reattach-controller".into(),
            identity: "controller-0/uid/1".into(),
            username: "controller".into(),
        };
        let clock = Clock::starting_at(self.server.clock().now());
        let clients = Clients::over(client.clone(), client);
        let metrics = Metrics::register(&mut Registry::default());
        let controller = Controller::new(clients, providers, clock, settings, metrics);
        let stopped = self.stop.subscribe();
        self.tasks
            .spawn(controller.run(watch::channel(false).0, stopped));
        tokio::time::sleep(Duration::from_secs(10)).await;
        let lease = self.get(
            "coordination.k8s.io",
            "leases",
            "reattach-system",
            "reattach-controller",
        );
        assert_eq!(
            lease["spec"]["holderIdentity"], "controller-0/uid/1",
            "it leads"
        );
    }

    pub fn clock(&self) -> Clock {
        Clock::starting_at(self.server.clock().now())
    }

    pub fn get(&self, group: &str, plural: &str, namespace: &str, name: &str) -> Arc<Value> {
        self.server
            .read(group, plural, namespace, name)
            .expect("it is there")
    }

    /// Stores an object, with the UID of the stored object of its name, if there is one.
    pub fn put(&self, mut object: Value, group: &str, plural: &str) -> Arc<Value> {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
        let (namespace, name) = (
            text(&object["metadata"]["namespace"]),
            text(&object["metadata"]["name"]),
        );
        if let Some(old) = self.server.read(group, plural, &namespace, &name) {
            object["metadata"]["uid"] = old["metadata"]["uid"].clone();
        }
        self.server.insert(&object)
    }

    /// A Node of instance 100 with these taints.
    pub fn node(&self, ready: &str, taints: &Value) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE},
            "spec": {"providerID": "linode://100", "taints": taints},
            "status": {"nodeInfo": {"architecture": "amd64", "bootID": BOOT, "containerRuntimeVersion": "containerd://2",
                    "kernelVersion": "6.18", "kubeProxyVersion": "", "kubeletVersion": "v1.36.3", "machineID": "m",
                    "operatingSystem": "linux", "osImage": "x", "systemUUID": "u"},
                "conditions": [{"type": "Ready", "status": ready}]},
        });
        self.put(node, "", "nodes");
    }

    /// The keys of the Node's taints.
    pub fn taints(&self) -> Vec<String> {
        let node = self.get("", "nodes", "", NODE);
        let all = node["spec"]["taints"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        all.iter()
            .map(|t| t["key"].as_str().unwrap_or_default().to_owned())
            .collect()
    }

    /// A recovery of the claim in this phase; answers its UID.
    pub fn recovery(&self, name: &str, phase: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut recovery = json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": {"name": name, "namespace": NS},
            "spec": {"claimName": CLAIM, "mode": "Auto", "runbook": "lightest-first", "requester": "jane"},
            "status": {"phase": phase, "message": "", "epoch": 0},
        });
        change(&mut recovery);
        let stored = self.put(recovery, "reattach.dev", "volumerecoveries");
        stored["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// Stores the report of the agent of this boot.
    pub fn report(&self, boot: &str, dead_mount: bool, answers: &Value) {
        let mut volumes = json!([]);
        if dead_mount {
            volumes = json!([{"driver": DRIVER, "handle": HANDLE, "pods": [],
                "mounts": [{"path": "/m", "dev": "8:1", "dead": true, "readOnly": false}]}]);
        }
        let old = self
            .server
            .read("reattach.dev", "nodevolumereports", "", NODE);
        let spec = old.map_or_else(|| json!({"challenges": []}), |o| o["spec"].clone());
        let report = json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": {"name": NODE}, "spec": spec,
            "status": {"answers": answers, "inventory": {"bootId": boot, "bootedAt": START, "level": "full",
                "devices": [], "csiVolumes": volumes, "unreadable": []}},
        });
        self.put(report, "reattach.dev", "nodevolumereports");
    }

    /// Breaks the watches of recoveries: from now on they report nothing new.
    pub fn the_watch_of_recoveries_lags(&self) {
        let watches = RequestMatch {
            verb: Some(Verb::Watch),
            resource: Some("volumerecoveries".into()),
            ..RequestMatch::default()
        };
        self.server.break_watches(&watches, WatchBreak::End);
        self.server
            .add_fault(FaultRule::always(watches, Fault::Hang));
    }

    pub fn challenges(&self) -> Vec<Value> {
        let report = self
            .server
            .read("reattach.dev", "nodevolumereports", "", NODE);
        report
            .and_then(|r| r["spec"]["challenges"].as_array().cloned())
            .unwrap_or_default()
    }
}

/// Long enough for everything that is done once a minute.
pub async fn a_while() {
    tokio::time::sleep(Duration::from_secs(70)).await;
}
