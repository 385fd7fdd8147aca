//! One agent's loop with an API server in memory, under virtual time.

use super::Tree;
use futures::{Stream, stream};
use kube::CustomResourceExt;
use reattach_agent::{AgentConfig, ScanOn};
use reattach_api::{NodeVolumeReport, NodeVolumeReportStatus};
use reattach_core::guest::{Answer, Challenge, GuestInventory, Level};
use reattach_core::ids::NodeName;
use reattach_sim::apiserver::{ApiStatus, AuditEntry, Fault, RequestMatch, Verb};
use reattach_sim::{ApiServer, Clock};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::sleep;

pub const AGENT: &str = "system:serviceaccount:reattach:agent";
pub const RESCAN: Duration = Duration::from_secs(10);
pub const LONG: Duration = Duration::from_secs(600);

pub struct World {
    pub server: ApiServer,
    pub tree: Tree,
    pub stop: Option<oneshot::Sender<()>>,
    pub agent: Option<JoinHandle<()>>,
}

impl World {
    /// A cluster with Node n1 and the CRD, and no agent yet.
    pub fn new(tree: Tree) -> Self {
        let server = Self::bare();
        server.register_crd(&serde_json::to_value(NodeVolumeReport::crd()).unwrap());
        Self {
            server,
            tree,
            stop: None,
            agent: None,
        }
    }

    pub fn bare() -> ApiServer {
        let server = ApiServer::new(
            Clock::starting_at("2026-01-01T00:00:00Z".parse().unwrap()),
            1,
        );
        server.insert(&json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" } }));
        server
    }

    pub fn start(&mut self) {
        self.start_with(RESCAN, Level::Basic, stream::pending());
    }

    pub fn start_with(
        &mut self,
        rescan: Duration,
        level: Level,
        news: impl Stream<Item = ()> + Send + 'static,
    ) {
        let (stop, stopped) = oneshot::channel();
        let config = AgentConfig {
            node: NodeName::new("n1"),
            root: self.tree.root().with_level(level),
            rescan,
            scan_on: ScanOn::CallingTask,
        };
        let clock = self.server.clock();
        let client = self.server.client_as(AGENT);
        self.stop = Some(stop);
        self.agent = Some(tokio::spawn(async move {
            let shutdown = async {
                let _ = stopped.await;
            };
            reattach_agent::run(client, config, move || clock.now(), news, shutdown).await;
        }));
    }

    pub async fn running(tree: Tree) -> Self {
        let mut world = Self::new(tree);
        world.start();
        sleep(Duration::from_secs(1)).await;
        world
    }

    pub fn report(&self) -> Value {
        let report = self
            .server
            .read("reattach.dev", "nodevolumereports", "", "n1");
        (*report.expect("no report")).clone()
    }

    pub fn status(&self) -> NodeVolumeReportStatus {
        serde_json::from_value(self.report()["status"].clone()).unwrap()
    }

    pub fn inventory(&self) -> GuestInventory {
        self.status()
            .inventory
            .expect("no inventory")
            .get()
            .expect("an inventory")
            .clone()
    }

    pub fn answers(&self) -> Vec<Answer> {
        self.status()
            .answers
            .iter()
            .map(|answer| answer.get().unwrap().clone())
            .collect()
    }

    /// Returns the agent's writes since the last call.
    pub fn writes(&self) -> Vec<AuditEntry> {
        let mut entries = self.server.take_audit();
        entries.retain(|entry| entry.user == AGENT && entry.verb.mutates());
        entries
    }

    /// Writes the challenges of a report as the controller does.
    pub async fn ask(&self, node: &str, challenges: &[Challenge]) {
        let reports: kube::Api<NodeVolumeReport> = kube::Api::all(self.server.client());
        let patch = kube::api::Patch::Merge(json!({ "spec": { "challenges": challenges } }));
        reports
            .patch(node, &kube::api::PatchParams::default(), &patch)
            .await
            .unwrap();
    }
}

pub fn on(verb: Verb) -> RequestMatch {
    RequestMatch {
        verb: Some(verb),
        resource: Some("nodevolumereports".to_owned()),
        client: Some(AGENT.to_owned()),
        ..RequestMatch::default()
    }
}

pub fn refusal(code: u16) -> Fault {
    Fault::Status {
        status: ApiStatus::new(code, "injected"),
        after_effect: false,
        retry_after: None,
    }
}
