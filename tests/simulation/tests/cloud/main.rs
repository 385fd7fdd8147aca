//! The collector's requests to the cloud, and their number; and that the proofs *gone* and *off* can be made from what it
//! collects, by the shipped Linode provider over the simulated cloud, and from nothing less.

mod answers;
mod looks;
mod proofs;

use jiff::Timestamp;
use reattach_cloud_simulator::{CloudSim, InstanceNo, RequestRecord, VolumeNo, in_memory};
use reattach_cluster::{Clients, Clock};
use reattach_controller::collect::{Collector, Needs};
use reattach_controller::providers::Providers;
use reattach_core::evidence::Evidence;
use reattach_core::ids::{InstanceId, ObjectName};
use reattach_drill::app::App;
use reattach_drill::in_virtual_time;
use reattach_drill::stage::{Expect, Stage};
use reattach_drill::world::APPS;
use reattach_linode::{LinodeConfig, LinodeProvider, Token};
use reattach_tests_simulation::NODES;
use std::sync::Arc;
use std::time::Duration;

const TOKEN: &str = "evidence";

/// The database's volume.
const VOLUME: VolumeNo = VolumeNo(7002);

fn start() -> Timestamp {
    "2026-03-02T03:00:00Z".parse().expect("a time")
}

fn linode(cloud: &CloudSim) -> Providers {
    cloud.add_token(TOKEN, &["*"]);
    let config = LinodeConfig::new(
        Token::new(TOKEN).expect("a token"),
        Some("https://linode.invalid"),
    );
    let mut providers = Providers::default();
    providers.register(Arc::new(LinodeProvider::new(
        in_memory(cloud.clone()),
        config.expect("settings"),
    )));
    providers
}

fn run<F: Future<Output = ()> + 'static>(fixture: impl FnOnce() -> F + Send + 'static) {
    in_virtual_time(fixture).expect("virtual time");
}

/// A database whose node can be switched off, and the collector of a process with the Linode provider.
struct Fixture {
    stage: Stage,
    collector: Collector,
    claim: ObjectName,
    node: String,
    holder: InstanceNo,
}

impl Fixture {
    async fn set() -> Self {
        let mut stage = Stage::new(1, start(), &NODES, Arc::new(|_| {}))
            .await
            .expect("a stage");
        let app = App::stateful_set(
            "postgres",
            VOLUME.0,
            "pvc5c1f6f0e6a0d4d0e",
            1,
            "the database",
        );
        let claim = ObjectName::new(APPS, app.volumes[0].claim.as_str());
        stage.add(app, Expect::Running).await.expect("an app");
        stage
            .running(&["postgres"], Duration::from_secs(180))
            .await
            .expect("it runs");
        let node = stage.node_of("postgres");
        let holder = stage.world.instance(&node).expect("an instance");
        let client = stage.world.client_as("system:admin");
        let collector = Collector::new(
            Clients::over(client.clone(), client),
            None,
            linode(&stage.world.cloud),
            Clock::starting_at(stage.world.now()),
        );
        Self {
            stage,
            collector,
            claim,
            node,
            holder,
        }
    }

    fn cloud(&self) -> &CloudSim {
        &self.stage.world.cloud
    }

    fn now(&self) -> Timestamp {
        self.stage.world.now()
    }

    fn instance(&self) -> InstanceId {
        InstanceId::new(self.holder.to_string())
    }

    async fn pass(&mut self, seconds: u64) {
        self.stage.pass(Duration::from_secs(seconds)).await;
    }

    /// The machine dies, once jobs of its power are over, and Kubernetes notices.
    async fn die(&mut self) {
        self.pass(40).await;
        self.stage
            .world
            .node(&self.node)
            .expect("a node")
            .power_off();
        self.pass(90).await;
    }

    async fn collect(&self) -> Evidence {
        self.collector
            .collect(&self.claim, None, Needs::Diagnose)
            .await
            .expect("evidence")
    }

    /// Looks once, and lets the look's other answers grow old; what it asked for. Tags of machines are kept for ten minutes.
    async fn read_tags_of_machines(&mut self) -> Vec<String> {
        let before = self.cloud().requests().len();
        self.collect().await;
        let paths = self.asked(before).into_iter().map(|r| r.path).collect();
        self.pass(4).await;
        paths
    }

    /// The cloud's requests since so many.
    fn asked(&self, since: usize) -> Vec<RequestRecord> {
        self.cloud().requests().split_off(since)
    }
}
