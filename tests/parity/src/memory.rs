//! The cases on the cluster in memory.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use reattach_cloud_simulator::clock::tokio_from;
use reattach_cloud_simulator::{CloudSim, NewInstance, NewVolume};
use serde_json::json;

use crate::cases::{CASES, Figure};
use crate::fixture::{CaseError, Fixture};
use reattach_sim::cloud::{LinodeCsi, SimulatedCloud};
use reattach_sim::kapi::Kapi;
use reattach_sim::{SimCluster, manifests};

const NAMESPACE: &str = "default";
const SET: &str = "redis";
const DRIVER: &str = "linodebs.csi.linode.com";
/// The nodes and their instances.
const NODES: [(&str, u64); 2] = [("node-a", 101), ("node-b", 102)];
/// The clock's time at the start: any time, but a fixed one.
const START: Timestamp = Timestamp::constant(1_772_420_400, 0);

/// A cluster in memory with a fixture on it. It lives as long as this value.
pub struct InMemory {
    /// The fixture of the cases.
    pub fixture: Fixture,
    _cluster: SimCluster,
}

impl InMemory {
    /// Two nodes, one StatefulSet with one volume; runs on a paused clock.
    ///
    /// # Errors
    /// [`CaseError`], when the cluster cannot be built.
    pub async fn build(seed: u64) -> Result<Self, CaseError> {
        let wrong =
            |e: &dyn std::fmt::Display| CaseError::Fixture(format!("no cluster in memory: {e}"));
        let sim = CloudSim::new(tokio_from(START)).with_seed(seed);
        let cloud = SimulatedCloud::new(sim.clone());
        let csi = LinodeCsi::new(cloud.clone());
        let mut builder = SimCluster::builder(csi.clone()).seed(seed).start_at(START);
        for (node, instance) in NODES {
            sim.create_instance(NewInstance::new(node).with_id(instance))
                .map_err(|e| wrong(&e))?;
            builder = builder.node(node, instance, None);
        }
        let cluster = builder.build().await.map_err(|e| wrong(&e))?;
        let volume = NewVolume::new("pvcbb1d06139b334c1f").with_id(7001);
        let handle = format!("7001-{}", volume.label);
        sim.create_volume(volume).map_err(|e| wrong(&e))?;
        let (pv, claim) = ("pv-redis", "data-redis-0");
        let client = cluster.server().client();
        cluster.server().insert(
            &json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
            "metadata": {"name": DRIVER}, "spec": {"attachRequired": true}}),
        );
        cluster.server().insert(&manifests::linode_volume(
            pv, &handle, "ext4", NAMESPACE, claim,
        ));
        cluster
            .server()
            .insert(&manifests::claim(NAMESPACE, claim, pv));
        let sets = format!("/apis/apps/v1/namespaces/{NAMESPACE}/statefulsets");
        Kapi::new(client.clone())
            .create(&sets, &manifests::stateful_set(NAMESPACE, SET, 1))
            .await?;
        let fixture = Fixture {
            client,
            kubelets: cluster.nodes().clone(),
            cloud,
            unpublish_fails: Arc::new(move |fails| csi.set_unpublish_fails(fails)),
            driver: DRIVER.to_owned(),
            namespace: NAMESPACE.to_owned(),
            set: SET.to_owned(),
            handle,
            look: Duration::from_millis(50),
            settle: Duration::from_secs(12),
        };
        Ok(Self {
            fixture,
            _cluster: cluster,
        })
    }
}

/// Runs every case, each on a cluster of its own from this seed. Runs on a paused clock.
pub async fn all_in_memory(seed: u64) -> Vec<(&'static str, Result<Vec<Figure>, CaseError>)> {
    let mut all = Vec::new();
    for case in CASES {
        let result = match InMemory::build(seed).await {
            Ok(cluster) => cluster.fixture.run(case).await,
            Err(error) => Err(error),
        };
        all.push((case, result));
    }
    all
}
