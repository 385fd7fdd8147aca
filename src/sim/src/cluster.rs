//! A whole cluster in memory: API server, controllers and kubelets, over a simulated cloud.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use crate::apiserver::ApiServer;
use crate::clock::Clock;
use crate::cloud::{LinodeCsi, SimulatedCloud};
use crate::controllers::Controllers;
use crate::kubelet::{KubeletConfig, SimKubelet};
use crate::object::{is_ready, terminating, text};

/// How long a node may take to become Ready.
const BOOT: Duration = Duration::from_secs(60);

/// A node did not become Ready in time, so that the cluster could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("node {node} is not Ready after {} s", BOOT.as_secs())]
pub struct NodeNotReady {
    /// The node.
    pub node: String,
}

/// Describes a cluster; see [`SimCluster::builder`].
pub struct SimClusterBuilder {
    seed: u64,
    start: Option<Timestamp>,
    nodes: Vec<KubeletConfig>,
    csi: LinodeCsi,
}

impl SimClusterBuilder {
    /// Seed of everything random (default 0).
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Sets the clock's time at the start (default: the wall clock).
    #[must_use]
    pub fn start_at(mut self, start: Timestamp) -> Self {
        self.start = Some(start);
        self
    }

    /// A node on a Linode instance; `host_root`: where its host's files are shown.
    #[must_use]
    pub fn node(mut self, name: &str, instance: u64, host_root: Option<PathBuf>) -> Self {
        let mut config = KubeletConfig::linode(name, instance, self.seed);
        config.host_root = host_root;
        self.nodes.push(config);
        self
    }

    /// A node with a configuration of the caller's own.
    #[must_use]
    pub fn node_with(mut self, config: KubeletConfig) -> Self {
        self.nodes.push(config);
        self
    }

    /// Starts everything and waits until all nodes are Ready (a few seconds of virtual time).
    ///
    /// # Errors
    /// A node does not become Ready within a minute.
    pub async fn build(self) -> Result<SimCluster, NodeNotReady> {
        let clock = self.start.map_or_else(Clock::wall, Clock::starting_at);
        let server = ApiServer::new(clock, self.seed);
        let cloud = self.csi.cloud().clone();
        let controllers = Controllers::start(server.clone(), self.csi, self.seed);
        let mut nodes = BTreeMap::new();
        for config in self.nodes {
            let kubelet = machine(&server, config, &cloud);
            kubelet.power_on();
            nodes.insert(kubelet.node().to_owned(), kubelet);
        }
        let cluster = SimCluster {
            server,
            controllers,
            nodes,
            cloud,
        };
        for node in cluster.nodes.keys() {
            if cluster.until(BOOT, |c| c.node_ready(node)).await.is_none() {
                return Err(NodeNotReady { node: node.clone() });
            }
        }
        Ok(cluster)
    }
}

/// A node that is off, in this cluster.
fn machine(server: &ApiServer, config: KubeletConfig, cloud: &SimulatedCloud) -> SimKubelet {
    let client = server.client_as(&format!("system:node:{}", config.node));
    SimKubelet::new(config, client, cloud.clone(), server.clock())
}

/// A running cluster. Dropping it stops everything.
pub struct SimCluster {
    server: ApiServer,
    controllers: Controllers,
    nodes: BTreeMap<String, SimKubelet>,
    cloud: SimulatedCloud,
}

impl SimCluster {
    /// Describes a cluster whose external-attacher drives this CSI controller. The nodes' machines are those of its cloud.
    #[must_use]
    pub fn builder(csi: LinodeCsi) -> SimClusterBuilder {
        SimClusterBuilder {
            seed: 0,
            start: None,
            nodes: Vec::new(),
            csi,
        }
    }

    /// The API server.
    #[must_use]
    pub fn server(&self) -> &ApiServer {
        &self.server
    }

    /// The clock.
    #[must_use]
    pub fn clock(&self) -> Clock {
        self.server.clock()
    }

    /// The controllers, to stop and restart them.
    #[must_use]
    pub fn controllers(&self) -> &Controllers {
        &self.controllers
    }

    /// A node.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&SimKubelet> {
        self.nodes.get(name)
    }

    /// Another machine under a node's name, as a node pool that keeps its names makes one; it is off. Answers the machine
    /// that had the name: dropping it ends it.
    pub fn replace_node(&mut self, config: KubeletConfig) -> Option<SimKubelet> {
        let kubelet = machine(&self.server, config, &self.cloud);
        self.nodes.insert(kubelet.node().to_owned(), kubelet)
    }

    /// All nodes by name.
    #[must_use]
    pub fn nodes(&self) -> &BTreeMap<String, SimKubelet> {
        &self.nodes
    }

    /// Waits until `condition` holds: how long that took, or `None` after `limit`. Looks every 50 ms.
    pub async fn until(
        &self,
        limit: Duration,
        condition: impl Fn(&Self) -> bool,
    ) -> Option<Duration> {
        let start = Instant::now();
        loop {
            if condition(self) {
                return Some(start.elapsed());
            }
            if start.elapsed() >= limit {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether a Node is Ready.
    #[must_use]
    pub fn node_ready(&self, node: &str) -> bool {
        self.server
            .read("", "nodes", "", node)
            .is_some_and(|n| is_ready(&n))
    }

    /// A pod.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.server.read("", "pods", namespace, name)
    }

    /// Whether a pod is there, Ready and not being deleted.
    #[must_use]
    pub fn pod_ready(&self, namespace: &str, name: &str) -> bool {
        self.pod(namespace, name)
            .is_some_and(|p| is_ready(&p) && !terminating(&p))
    }

    /// Messages and counts of the events with `reason` about `name`, oldest first.
    #[must_use]
    pub fn events(&self, namespace: &str, name: &str, reason: &str) -> Vec<(String, i64)> {
        let all = self.server.list("", "events", Some(namespace));
        let mut ours: Vec<_> = all
            .iter()
            .filter(|e| e["involvedObject"]["name"] == name && e["reason"] == reason)
            .collect();
        ours.sort_by_key(|e| text(e, "/firstTimestamp").to_owned());
        ours.iter()
            .map(|e| {
                (
                    text(e, "/message").to_owned(),
                    e["count"].as_i64().unwrap_or(1),
                )
            })
            .collect()
    }
}
