//! The API server that the agents in a guest report to: the in-memory one, on this machine's loopback.

use axum::body::Body;
use kube::CustomResourceExt;
use kube::api::{Api, Patch, PatchParams};
use reattach_api::{NodeVolumeReport, NodeVolumeReportStatus};
use reattach_core::guest::Challenge;
use reattach_core::ids::NodeName;
use reattach_sim::{ApiServer, Clock};
use serde_json::json;
use tokio::runtime::Runtime;
use tower::Service;

/// How the server is reached from inside a guest: QEMU's name for the loopback of the machine that runs it.
const HOST: &str = "10.0.2.2";
/// The agents' identity.
const AGENT: &str = "system:serviceaccount:reattach-system:reattach-agent";

/// A cluster that consists of an API server.
pub struct Cluster {
    runtime: Runtime,
    server: ApiServer,
    port: u16,
}

impl Cluster {
    /// One with these nodes and the product's custom resources.
    pub fn start(nodes: &[NodeName]) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build();
        let runtime = runtime.expect("a runtime");
        let (server, port) = runtime.block_on(async {
            let server = ApiServer::new(Clock::wall(), 1);
            for crd in reattach_api::all_crds() {
                assert!(server.register_crd(&serde_json::to_value(crd).expect("JSON")));
            }
            for node in nodes {
                server.insert(
                    &json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": node } }),
                );
            }
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
                .await
                .expect("a port");
            let port = listener.local_addr().expect("an address").port();
            let service = server.service_as(AGENT);
            let answer = move |request: axum::extract::Request| {
                let mut service = service.clone();
                async move {
                    service
                        .call(request)
                        .await
                        .map(|answer| answer.map(Body::new))
                }
            };
            let router = axum::Router::new().fallback_service(tower::service_fn(move |request| {
                let answer = answer(request);
                async move { Ok(answer.await.expect("the in-memory server answers")) }
            }));
            tokio::spawn(async move { axum::serve(listener, router).await });
            (server, port)
        });
        Self {
            runtime,
            server,
            port,
        }
    }

    /// Configuration that leads an agent in a guest here. No certificate is needed for plain HTTP, and without this file, which has none, the
    /// agent would look for the system's.
    pub fn kubeconfig(&self) -> String {
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
            clusters: [{{name: c, cluster: {{server: 'http://{HOST}:{}', certificate-authority: /dev/null}}}}]\n\
            users: [{{name: u, user: {{}}}}]\ncontexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            self.port
        )
    }

    /// Sets the one challenge of a node's report.
    pub fn ask(&self, node: &NodeName, challenge: &Challenge) {
        self.runtime.block_on(async {
            let reports: Api<NodeVolumeReport> = Api::all(self.server.client());
            let patch = Patch::Merge(json!({ "spec": { "challenges": [challenge] } }));
            reports
                .patch(node.as_str(), &PatchParams::default(), &patch)
                .await
                .expect("a report to ask in");
        });
    }

    /// The status that the agent of a node wrote; `None` if it has written none yet.
    pub fn said(&self, node: &NodeName) -> Option<NodeVolumeReportStatus> {
        let plural = NodeVolumeReport::api_resource().plural;
        let report = self
            .server
            .read("reattach.dev", &plural, "", node.as_str())?;
        serde_json::from_value(report.get("status")?.clone()).expect("a status")
    }
}
