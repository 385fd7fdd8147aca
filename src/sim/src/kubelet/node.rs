//! The Node object, its Lease and its CSINode.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::Shared;
use crate::clock::{rfc3339, rfc3339_micro};
use crate::kapi::{Kapi, MERGE, STRATEGIC, code_of, lock};
use crate::object::{is_ready, items};

/// `nodeStatusUpdateFrequency`: volumesInUse changes only at this tick.
pub(super) const STATUS_TICK: Duration = Duration::from_secs(10);
/// `nodeStatusReportFrequency`: an unchanged status is repeated this often.
const REPORT_ANYWAY: Duration = Duration::from_secs(300);
/// Renewal of the node's Lease.
pub(super) const LEASE_TICK: Duration = Duration::from_secs(10);

/// Reports one node.
pub(super) struct NodeReporter {
    kapi: Kapi,
    last: Value,
    last_at: Option<Instant>,
    ready_since: String,
    /// Whether the driver's node plugin has registered with this kubelet since its start.
    registered: bool,
}

impl NodeReporter {
    pub fn new(kapi: Kapi, shared: &Shared) -> Self {
        let ready_since = rfc3339(shared.clock.now());
        Self {
            kapi,
            last: Value::Null,
            last_at: None,
            ready_since,
            registered: false,
        }
    }

    /// Makes sure that Node and CSINode exist.
    pub async fn register(&mut self, shared: &Shared) -> Result<(), kube::Error> {
        let c = &shared.config;
        let path = format!("/api/v1/nodes/{}", c.node);
        if self.kapi.get(&path).await?.is_none() {
            let mut labels = json!({"kubernetes.io/hostname": c.node, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"});
            for (k, v) in &c.labels {
                labels[k] = json!(v);
            }
            // The attach/detach controller looks after nodes with this annotation only.
            let annotations =
                json!({"volumes.kubernetes.io/controller-managed-attach-detach": "true"});
            let node = json!({"apiVersion": "v1", "kind": "Node",
                "metadata": {"name": c.node, "labels": labels, "annotations": annotations},
                "spec": {"providerID": c.provider_id}});
            self.kapi.create("/api/v1/nodes", &node).await?;
        }
        self.register_driver(shared).await
    }

    /// Writes the driver into CSINode when its plugin registers, and takes it out when it deregisters. What a kubelet
    /// before the last restart wrote stays: CSINode does not show that a plugin has not come back.
    async fn register_driver(&mut self, shared: &Shared) -> Result<(), kube::Error> {
        let c = &shared.config;
        let registers = !lock(&shared.faults).unregistered;
        let path = format!("/apis/storage.k8s.io/v1/csinodes/{}", c.node);
        let found = self.kapi.get(&path).await?;
        let driver = json!({"name": c.driver, "nodeID": c.instance, "topologyKeys": [],
            "allocatable": {"count": c.max_volumes}});
        let mut drivers: Vec<Value> = found
            .iter()
            .flat_map(|node| items(node, "/spec/drivers"))
            .cloned()
            .collect();
        let before = drivers.clone();
        if registers {
            drivers.retain(|d| d["name"] != *c.driver || *d == driver);
            if drivers.iter().all(|d| d["name"] != *c.driver) {
                drivers.push(driver);
            }
        } else if self.registered {
            drivers.retain(|d| d["name"] != *c.driver);
        }
        if found.is_none() {
            // It goes with its Node.
            let node = self
                .kapi
                .get(&format!("/api/v1/nodes/{}", c.node))
                .await?
                .unwrap_or_default();
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": c.node, "uid": node["metadata"]["uid"]});
            let body = json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSINode",
                "metadata": {"name": c.node, "ownerReferences": [owner]}, "spec": {"drivers": drivers}});
            self.kapi
                .create("/apis/storage.k8s.io/v1/csinodes", &body)
                .await?;
        } else if drivers != before {
            self.kapi
                .patch(&path, MERGE, &json!({"spec": {"drivers": drivers}}))
                .await?;
        }
        self.registered = registers;
        Ok(())
    }

    /// Posts the status when it changed or is old. Then the server has this `volumesInUse`.
    pub async fn report(
        &mut self,
        shared: &Shared,
        in_use: &BTreeSet<String>,
    ) -> Result<(), kube::Error> {
        let c = &shared.config;
        let boot = lock(&shared.boot).clone();
        let condition = |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason, "lastTransitionTime": self.ready_since});
        let status = json!({
            "addresses": [{"type": "Hostname", "address": c.node}],
            "capacity": {"cpu": "2", "memory": "4Gi", "pods": "110"},
            "allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"},
            "nodeInfo": {"bootID": boot, "machineID": c.instance, "systemUUID": c.instance, "kernelVersion": "6.1.0",
                "osImage": "simulated", "containerRuntimeVersion": "simulated://1", "kubeletVersion": "v1.36.3",
                "kubeProxyVersion": "", "operatingSystem": "linux", "architecture": "amd64"},
            "volumesInUse": in_use,
            "conditions": [
                condition("MemoryPressure", "False", "KubeletHasSufficientMemory"),
                condition("DiskPressure", "False", "KubeletHasNoDiskPressure"),
                condition("PIDPressure", "False", "KubeletHasSufficientPID"),
                condition("Ready", "True", "KubeletReady"),
            ],
        });
        // The node lifecycle controller may have changed the Ready condition: compare with the server as well.
        let live = self.kapi.get(&format!("/api/v1/nodes/{}", c.node)).await?;
        let ready = live.as_ref().is_some_and(is_ready);
        let fresh = self.last_at.is_some_and(|at| at.elapsed() < REPORT_ANYWAY);
        if live.is_none() {
            self.register(shared).await?;
        } else if self.last == status && fresh && ready {
            return Ok(());
        }
        let mut body = json!({"status": status});
        let at = rfc3339(shared.clock.now());
        for condition in body["status"]["conditions"]
            .as_array_mut()
            .into_iter()
            .flatten()
        {
            condition["lastHeartbeatTime"] = json!(at);
            if !ready && condition["type"] == "Ready" {
                condition["lastTransitionTime"] = json!(at);
            }
        }
        if !ready {
            self.ready_since = at;
        }
        self.kapi
            .patch(
                &format!("/api/v1/nodes/{}/status", c.node),
                STRATEGIC,
                &body,
            )
            .await?;
        self.last = status;
        self.last_at = Some(Instant::now());
        Ok(())
    }

    /// Renews the Lease.
    pub async fn renew(&self, shared: &Shared) -> Result<(), kube::Error> {
        let node = &shared.config.node;
        let collection = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
        let at = rfc3339_micro(shared.clock.now());
        let body = json!({"spec": {"renewTime": at}});
        match self
            .kapi
            .patch(&format!("{collection}/{node}"), MERGE, &body)
            .await
        {
            Err(e) if code_of(&e) == 404 => {
                let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": node, "namespace": "kube-node-lease"},
                    "spec": {"holderIdentity": node, "leaseDurationSeconds": 40, "renewTime": at}});
                self.kapi.create(collection, &lease).await.map(|_| ())
            }
            other => other.map(|_| ()),
        }
    }
}
