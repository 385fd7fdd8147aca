//! A whole cluster in memory: API server, controllers, kubelets, over a cloud of the caller's choice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use crate::apiserver::ApiServer;
use crate::clock::Clock;
use crate::cloud::{CloudVolumes, Hardware};
use crate::controllers::Controllers;
use crate::kapi::{condition, text};
use crate::kubelet::{KubeletConfig, SimKubelet};

/// Why a cluster could not be built.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BuildError {
    /// No cloud was given.
    #[error("a simulated cluster needs a cloud: call cloud() first")]
    NoCloud,
    /// A node did not become Ready in time.
    #[error("node {node} is not Ready after {seconds} s")]
    NotReady {
        /// The node.
        node: String,
        /// How long it was waited for.
        seconds: u64,
    },
}

/// Describes a cluster; see [`SimCluster::builder`].
pub struct SimClusterBuilder {
    seed: u64,
    start: Option<Timestamp>,
    nodes: Vec<KubeletConfig>,
    cloud: Option<(Arc<dyn CloudVolumes>, Arc<dyn Hardware>)>,
    driver: String,
    csi_timeout: Duration,
    mutating_policies: bool,
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

    /// The CSI controller that attaches volumes, and the machines that the guests run on.
    #[must_use]
    pub fn cloud(mut self, volumes: Arc<dyn CloudVolumes>, hardware: Arc<dyn Hardware>) -> Self {
        self.cloud = Some((volumes, hardware));
        self
    }

    /// The CSI driver that external-attacher serves (default: Linode's).
    #[must_use]
    pub fn driver(mut self, name: &str) -> Self {
        self.driver = name.to_owned();
        self
    }

    /// How long external-attacher gives one call of the CSI controller (default 60 s).
    #[must_use]
    pub fn csi_timeout(mut self, timeout: Duration) -> Self {
        self.csi_timeout = timeout;
        self
    }

    /// Whether the API server knows MutatingAdmissionPolicy (default: yes, with `reattach-hold` installed); without it it
    /// is one of Kubernetes 1.35.
    #[must_use]
    pub fn mutating_policies(mut self, served: bool) -> Self {
        self.mutating_policies = served;
        self
    }

    /// Starts everything and waits until all nodes are Ready (a few seconds of virtual time).
    ///
    /// # Errors
    /// Without a cloud, or when a node does not become Ready within 60 s.
    pub async fn build(self) -> Result<SimCluster, BuildError> {
        let (volumes, hardware) = self.cloud.ok_or(BuildError::NoCloud)?;
        let clock = self.start.map_or_else(Clock::wall, Clock::starting_at);
        let server = ApiServer::new(clock, self.seed);
        if !self.mutating_policies {
            server.without_mutating_policies();
        }
        let factory = server.clone();
        let mut controllers = Controllers::new(
            Arc::new(move |user| factory.client_as(user)),
            clock.as_fn(),
            self.seed,
        );
        controllers.start_manager();
        controllers.start_scheduler();
        controllers.start_attacher(&self.driver, volumes, self.csi_timeout);
        let mut nodes = BTreeMap::new();
        for config in self.nodes {
            let kubelet = machine(&server, config, &hardware);
            kubelet.power_on().await;
            nodes.insert(kubelet.node().to_owned(), kubelet);
        }
        let cluster = SimCluster {
            server,
            controllers,
            nodes,
            hardware,
        };
        let limit = Duration::from_secs(60);
        for node in cluster.nodes.keys() {
            if cluster.until(limit, |c| c.node_ready(node)).await.is_none() {
                return Err(BuildError::NotReady {
                    node: node.clone(),
                    seconds: limit.as_secs(),
                });
            }
        }
        Ok(cluster)
    }
}

/// A node that is off, in this cluster.
fn machine(server: &ApiServer, config: KubeletConfig, hardware: &Arc<dyn Hardware>) -> SimKubelet {
    let client = server.client_as(&format!("system:node:{}", config.node));
    SimKubelet::new(config, client, hardware.clone(), server.clock().as_fn())
}

/// A running cluster. Dropping it stops everything.
pub struct SimCluster {
    server: ApiServer,
    controllers: Controllers,
    nodes: BTreeMap<String, SimKubelet>,
    hardware: Arc<dyn Hardware>,
}

impl SimCluster {
    /// Describes a cluster.
    #[must_use]
    pub fn builder() -> SimClusterBuilder {
        SimClusterBuilder {
            seed: 0,
            start: None,
            nodes: Vec::new(),
            cloud: None,
            driver: "linodebs.csi.linode.com".into(),
            csi_timeout: Duration::from_secs(60),
            mutating_policies: true,
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
        let kubelet = machine(&self.server, config, &self.hardware);
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
            .is_some_and(|n| condition(&n, "Ready") == "True")
    }

    /// A pod.
    #[must_use]
    pub fn pod(&self, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.server.read("", "pods", namespace, name)
    }

    /// Whether a pod is there, Ready and not being deleted.
    #[must_use]
    pub fn pod_ready(&self, namespace: &str, name: &str) -> bool {
        self.pod(namespace, name).is_some_and(|p| {
            condition(&p, "Ready") == "True" && p["metadata"]["deletionTimestamp"].is_null()
        })
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
