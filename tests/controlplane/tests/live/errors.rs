//! Bad input and broken surroundings, against a real API server: one clear sentence each, and a non-zero exit code.

use crate::common::command::{Ran, run};
use crate::common::stage::TOKEN;
use crate::common::{LIMIT, Process};
use reattach_cloud_simulator::{CloudSim, clock, router};
use reattach_tests_controlplane::{AuditEvent, ControlPlane, Options};
use serde_json::json;
use std::process::{Command, Stdio};

struct Ground {
    plane: ControlPlane,
    cloud: String,
}

impl Ground {
    /// An API server and a cloud, and nothing installed.
    async fn bare() -> Self {
        let cloud = CloudSim::new(clock::system());
        cloud.add_token(TOKEN, &["volumes:read_write", "linodes:read_write", "events:read_only"]);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router(cloud)).await });
        let options = Options { controller_manager: false, scheduler: false, ..Options::default() };
        let plane = ControlPlane::start(options.user("nobody", &[])).await.expect("a control plane");
        Self { plane, cloud: address }
    }

    fn apply(&self, folder: &str) {
        let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let applied = Command::new("kubectl")
            .args(["apply", "--server-side", "-k", &format!("{repository}/deploy/{folder}"), "--kubeconfig"])
            .arg(self.plane.admin_kubeconfig())
            .stdout(Stdio::null())
            .output()
            .expect("kubectl");
        assert!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    }

    fn environment(&self, kubeconfig: &str, token: &str, cloud: &str) -> Vec<(&'static str, String)> {
        vec![
            ("KUBECONFIG", kubeconfig.to_owned()),
            ("LINODE_TOKEN", token.to_owned()),
            ("LINODE_URL", cloud.to_owned()),
        ]
    }

    /// A command with these surroundings; `None`: the good one.
    async fn command(
        &self,
        arguments: &[&str],
        kubeconfig: Option<&str>,
        token: Option<&str>,
        cloud: Option<&str>,
    ) -> Ran {
        let admin = self.plane.admin_kubeconfig().display().to_string();
        let (token, cloud) = (token.unwrap_or(TOKEN), cloud.unwrap_or(&self.cloud));
        run("kubectl-reattach", arguments, &self.environment(kubeconfig.unwrap_or(&admin), token, cloud))
            .await
    }

    /// The controller must end by itself with one error line that names all this.
    async fn controller(
        &self,
        kubeconfig: Option<&str>,
        token: Option<&str>,
        cloud: Option<&str>,
        names: &[&str],
    ) {
        let admin = self.plane.admin_kubeconfig().display().to_string();
        let (token, cloud) = (token.unwrap_or(TOKEN), cloud.unwrap_or(&self.cloud));
        let environment = self.environment(kubeconfig.unwrap_or(&admin), token, cloud);
        let arguments = ["--provider", "linode", "--listen", "127.0.0.1:0", "--log-format", "text"];
        let ran = run("reattach-controller", &arguments, &environment).await;
        let errors: Vec<&str> =
            ran.err.lines().filter(|l| l.contains("ERROR") && l.contains("reattach_controller")).collect();
        assert!(ran.code == 1 && errors.len() == 1, "{ran:#?}");
        for name in names {
            assert!(errors[0].contains(name), "{name:?} is not named in: {}", errors[0]);
        }
        println!("  controller: {}", errors[0]);
    }

    /// A kubeconfig for an address where nobody listens.
    fn unreachable(&self) -> String {
        let path = self.plane.folder().join("nowhere.json");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:1"}}],
            "users": [{"name": "c", "user": {"token": "t"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(&path, config.to_string()).expect("written");
        path.display().to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_sentence_each() {
    let ground = Ground::bare().await;
    let nowhere = ground.unreachable();
    let nobody = ground.plane.kubeconfig_for("nobody").expect("a user").display().to_string();
    let stranger = ground
        .plane
        .kubeconfig_with_token("stranger", "no-such-token")
        .expect("written")
        .display()
        .to_string();

    ground
        .command(&["diagnose", "data"], None, None, None)
        .await
        .one_sentence(1, &["reattach.dev", "deploy/crds"]);
    ground.controller(None, None, None, &["reattach.dev", "deploy/crds"]).await;
    ground.apply("crds");
    let established = async || {
        let group =
            ground.plane.admin_client().list_api_group_resources("reattach.dev/v1alpha1").await.ok()?;
        (group.resources.iter().filter(|r| !r.name.contains('/')).count() == 3).then_some(())
    };
    reattach_tests_controlplane::eventually("the custom resources", LIMIT, established)
        .await
        .expect("served");

    for verb in ["diagnose", "plan", "recover"] {
        let said = ground.command(&[verb, "no-such-claim", "-n", "default"], None, None, None).await;
        said.one_sentence(1, &["no-such-claim", "default"]);
    }
    let diagnose = ["diagnose", "data", "-n", "default"];
    ground
        .command(&diagnose, Some(&nobody), None, None)
        .await
        .one_sentence(1, &["nobody", "may not", "persistentvolumeclaims"]);
    ground
        .command(&diagnose, Some(&stranger), None, None)
        .await
        .one_sentence(1, &["does not accept the credentials"]);
    ground
        .command(&diagnose, Some(&nowhere), None, None)
        .await
        .one_sentence(1, &["127.0.0.1:1", "does not answer"]);
    ground.command(&diagnose, Some("/no/such/file"), None, None).await.one_sentence(1, &["/no/such/file"]);
    claim(&ground).await;
    ground.command(&diagnose, None, Some("wrong"), None).await.one_sentence(1, &["linode", "LINODE_TOKEN"]);
    ground
        .command(&diagnose, None, None, Some("http://127.0.0.1:1"))
        .await
        .one_sentence(1, &["linode", "127.0.0.1:1"]);
    let runbook = ground.plane.folder().join("runbook.yaml");
    std::fs::write(&runbook, "name: mine\nsteps: {scale: down").expect("written");
    let runbook = runbook.display().to_string();
    let said =
        ground.command(&["plan", "data", "-n", "default", "--runbook", &runbook], None, None, None).await;
    said.one_sentence(2, &["runbook"]);

    ground.controller(None, Some("wrong"), None, &["linode", "token"]).await;
    ground.controller(Some(&nowhere), None, None, &["127.0.0.1:1", "does not answer"]).await;
    a_controller_outlives_its_cloud(&ground).await;
}

/// A cloud that is away is no reason to end: the controller says so and watches on.
async fn a_controller_outlives_its_cloud(ground: &Ground) {
    let admin = ground.plane.admin_kubeconfig().display().to_string();
    let environment = ground.environment(&admin, TOKEN, "http://127.0.0.1:1");
    let arguments = ["--provider", "linode", "--listen", "127.0.0.1:0", "--log-format", "text"];
    let log = ground.plane.folder().join("without-a-cloud.log");
    let mut controller = Process::start("reattach-controller", &log, &arguments, &environment);
    let said = reattach_tests_controlplane::eventually("a word about the cloud", LIMIT, async || {
        controller
            .output()
            .lines()
            .find(|l| l.contains("WARN") && l.contains("the cloud does not answer"))
            .map(str::to_owned)
    });
    println!("  controller: {}", said.await.expect("in time"));
    let watch = |e: &AuditEvent| e.resource == "volumerecoveries" && e.verb == "watch";
    ground.plane.await_audit("a watch of the recoveries", watch).await.expect("it goes on");
    controller.kill();
}

/// A claim `data` that exists, so that the cloud is asked.
async fn claim(ground: &Ground) {
    use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
    use kube::{Api, api::PostParams};
    let admin = ground.plane.admin_client();
    let claim = reattach_sim::manifests::claim("default", "data", "pv-data");
    let volume = reattach_sim::manifests::linode_volume("pv-data", "1-data", "ext4", "default", "data");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(admin.clone(), "default");
    let volumes: Api<PersistentVolume> = Api::all(admin);
    let parse = "an object";
    let made = reattach_tests_controlplane::eventually("namespace default", LIMIT, async || {
        claims.create(&PostParams::default(), &serde_json::from_value(claim.clone()).expect(parse)).await.ok()
    });
    made.await.expect("created");
    volumes
        .create(&PostParams::default(), &serde_json::from_value(volume).expect(parse))
        .await
        .expect("created");
}
