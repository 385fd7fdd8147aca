//! Bad input and broken surroundings, against a real API server: one clear sentence each, and a non-zero exit code.

use crate::common::cluster::TOKEN;
use crate::common::command::{Ran, run};
use crate::common::{LIMIT, Process};
use reattach_cloud_simulator::{CloudSim, clock, router};
use reattach_tests_controlplane::{AuditEvent, ControlPlane, Options, say};
use serde_json::json;
use std::process::{Command, Stdio};

/// A user with all rights, at the command line only: every write of this user is a command's.
const PERSON: &str = "petra";

/// The arguments of a controller where no admission policies are installed.
const UNBOUNDED: [&str; 7] = [
    "--provider",
    "linode",
    "--listen",
    "127.0.0.1:0",
    "--log-format",
    "text",
    "--unbounded",
];

struct Ground {
    plane: ControlPlane,
    cloud: String,
}

impl Ground {
    /// An API server and a cloud, and nothing installed.
    async fn bare() -> Self {
        let cloud = CloudSim::new(clock::system());
        cloud.add_token(
            TOKEN,
            &[
                "volumes:read_write",
                "linodes:read_write",
                "events:read_only",
            ],
        );
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        tokio::spawn(async move { axum::serve(listener, router(cloud)).await });
        let options = Options {
            controller_manager: false,
            scheduler: false,
            ..Options::default()
        };
        let options = options
            .user("nobody", &[])
            .user(PERSON, &["system:masters"]);
        let plane = ControlPlane::start(options).await.expect("a control plane");
        Self {
            plane,
            cloud: address,
        }
    }

    fn apply(&self, folder: &str) {
        let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let applied = Command::new("kubectl")
            .args([
                "apply",
                "--server-side",
                "-k",
                &format!("{repository}/deploy/{folder}"),
                "--kubeconfig",
            ])
            .arg(self.plane.admin_kubeconfig())
            .stdout(Stdio::null())
            .output()
            .expect("kubectl");
        assert!(
            applied.status.success(),
            "{}",
            String::from_utf8_lossy(&applied.stderr)
        );
    }

    fn environment(
        &self,
        kubeconfig: &str,
        token: &str,
        cloud: &str,
    ) -> Vec<(&'static str, String)> {
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
        let person = self
            .plane
            .kubeconfig_for(PERSON)
            .expect("a user")
            .display()
            .to_string();
        let (token, cloud) = (token.unwrap_or(TOKEN), cloud.unwrap_or(&self.cloud));
        run(
            "kubectl-reattach",
            arguments,
            &self.environment(kubeconfig.unwrap_or(&person), token, cloud),
        )
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
        let arguments = [
            "--provider",
            "linode",
            "--listen",
            "127.0.0.1:0",
            "--log-format",
            "text",
        ];
        let ran = run("reattach-controller", &arguments, &environment).await;
        let errors: Vec<&str> = ran
            .err
            .lines()
            .filter(|l| l.contains("ERROR") && l.contains("reattach_controller"))
            .collect();
        assert!(ran.code == 1 && errors.len() == 1, "{ran:#?}");
        for name in names {
            assert!(
                errors[0].contains(name),
                "{name:?} is not named in: {}",
                errors[0]
            );
        }
        say!("  controller: {}", errors[0]);
    }

    /// A kubeconfig for an address without a listener.
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

pub async fn each_error_is_one_sentence() {
    let ground = Ground::bare().await;
    let nowhere = ground.unreachable();
    let nobody = ground
        .plane
        .kubeconfig_for("nobody")
        .expect("a user")
        .display()
        .to_string();
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
    ground
        .controller(None, None, None, &["reattach.dev", "deploy/crds"])
        .await;
    ground.apply("crds");
    let established = async || {
        let group = ground
            .plane
            .admin_client()
            .list_api_group_resources("reattach.dev/v1alpha1")
            .await
            .ok()?;
        (group
            .resources
            .iter()
            .filter(|r| !r.name.contains('/'))
            .count()
            == 3)
            .then_some(())
    };
    reattach_tests_controlplane::eventually("the custom resources", LIMIT, established)
        .await
        .expect("served");

    for verb in ["diagnose", "plan", "recover"] {
        let said = ground
            .command(&[verb, "no-such-claim", "-n", "default"], None, None, None)
            .await;
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
    ground
        .command(&diagnose, Some("/no/such/file"), None, None)
        .await
        .one_sentence(1, &["/no/such/file"]);
    claim(&ground).await;
    ground
        .command(&diagnose, None, Some("wrong"), None)
        .await
        .one_sentence(1, &["linode", "LINODE_TOKEN"]);
    ground
        .command(&diagnose, None, None, Some("http://127.0.0.1:1"))
        .await
        .one_sentence(1, &["linode", "127.0.0.1:1"]);
    runbooks(&ground).await;
    nothing_was_written(&ground);

    ground
        .controller(None, Some("wrong"), None, &["linode", "token"])
        .await;
    ground
        .controller(
            Some(&nowhere),
            None,
            None,
            &["127.0.0.1:1", "does not answer"],
        )
        .await;
    // The policies that would bound it are not installed here.
    ground
        .controller(
            None,
            None,
            None,
            &[
                "do not bound",
                "reattach-controller-pods is not installed",
                "--unbounded",
            ],
        )
        .await;
    a_controller_outlives_its_cloud(&ground).await;
    a_controller_without_rights_says_so(&ground, &nobody).await;
}

/// A runbook that cannot be used: the sentence names the file, the place or field in it, and what would do.
async fn runbooks(ground: &Ground) {
    let good = include_str!("../../../../runbooks/scale-to-zero.yaml");
    let bad: [(&str, String, &[&str]); 7] = [
        (
            "broken",
            good.replace("orders:", "orders: {"),
            &["line", "column"],
        ),
        (
            "unknown-field",
            good.replace("orders:", "retries: 999\norders:"),
            &["line", "retries", "orders"],
        ),
        (
            "unknown-step",
            good.replace("step: Requeue", "step: Reboot"),
            &["line", "Reboot", "Requeue"],
        ),
        (
            "no-summary",
            good.replace("summary: ", "# summary: "),
            &["line", "summary"],
        ),
        (
            "a-word",
            good.replace("deadlineSeconds: 300", "deadlineSeconds: soon"),
            &["line", "deadlineSeconds: soon"],
        ),
        (
            "left-at-zero",
            good.replace("step: Restore", "step: Requeue"),
            &["class B", "no Restore", "add Restore"],
        ),
        (
            "too-early",
            good.replace("patienceSeconds: 60", "patienceSeconds: 601"),
            &[
                "patienceSeconds of AwaitDetached is",
                "must be 1 to its deadlineSeconds",
            ],
        ),
    ];
    for (name, text, names) in bad {
        assert_ne!(text, good, "{name} changes nothing");
        let file = ground.plane.folder().join(format!("{name}.yaml"));
        std::fs::write(&file, text).expect("written");
        let file = file.display().to_string();
        let plan = ["plan", "data", "-n", "default", "--runbook-file", &file];
        let sentence = ground
            .command(&plan, None, None, None)
            .await
            .one_sentence(2, &["--runbook-file", &file]);
        for name in names {
            assert!(
                sentence.contains(name),
                "{name:?} is not named in: {sentence}"
            );
        }
    }
    let plan = [
        "plan",
        "data",
        "-n",
        "default",
        "--runbook-file",
        "/no/such/runbook.yaml",
    ];
    ground
        .command(&plan, None, None, None)
        .await
        .one_sentence(2, &["/no/such/runbook.yaml", "No such file"]);
    for verb in ["plan", "recover"] {
        let named = [verb, "data", "-n", "default", "--runbook", "pray"];
        ground
            .command(&named, None, None, None)
            .await
            .one_sentence(2, &["\"pray\"", "scale-to-zero"]);
    }
}

/// Bad input changes nothing: no command of the person wrote anything, not even a record.
fn nothing_was_written(ground: &Ground) {
    let events = ground.plane.audit_events().expect("the audit log");
    let hers: Vec<&AuditEvent> = events.iter().filter(|e| e.user == PERSON).collect();
    let question =
        |e: &AuditEvent| e.group == "authorization.k8s.io" || e.group == "authentication.k8s.io";
    let written: Vec<_> = hers
        .iter()
        .filter(|e| e.is_write() && !e.dry_run && !question(e))
        .collect();
    assert!(
        hers.len() > 5 && written.is_empty(),
        "{} requests, of them {written:#?}",
        hers.len()
    );
    say!("  {} requests of the commands, nothing written", hers.len());
}

/// A cloud that is away is no reason to end: the controller says so and watches on.
async fn a_controller_outlives_its_cloud(ground: &Ground) {
    let admin = ground.plane.admin_kubeconfig().display().to_string();
    let environment = ground.environment(&admin, TOKEN, "http://127.0.0.1:1");
    let arguments = UNBOUNDED;
    let log = ground.plane.folder().join("without-a-cloud.log");
    let mut controller = Process::start("reattach-controller", &log, &arguments, &environment);
    let said =
        reattach_tests_controlplane::eventually("a word about the cloud", LIMIT, async || {
            controller
                .output()
                .lines()
                .find(|l| l.contains("WARN") && l.contains("the cloud does not answer"))
                .map(str::to_owned)
        });
    say!("  controller: {}", said.await.expect("in time"));
    let watch = |e: &AuditEvent| e.resource == "volumerecoveries" && e.verb == "watch";
    ground
        .plane
        .await_audit("a watch of the recoveries", watch)
        .await
        .expect("it goes on");
    controller.kill();
}

/// Rights may be given while it runs: a controller without them says which it lacks, and tries again.
async fn a_controller_without_rights_says_so(ground: &Ground, nobody: &str) {
    let environment = ground.environment(nobody, TOKEN, &ground.cloud);
    let arguments = UNBOUNDED;
    let log = ground.plane.folder().join("without-rights.log");
    let mut controller = Process::start("reattach-controller", &log, &arguments, &environment);
    for resource in ["volumerecoveries", "pods", "volumeattachments"] {
        let what = format!("a word about {resource}");
        let said = reattach_tests_controlplane::eventually(&what, LIMIT, async || {
            let lacks = format!("cannot list resource \"{resource}\"");
            controller
                .output()
                .lines()
                .find(|l| l.contains("WARN") && l.contains(&lacks))
                .map(str::to_owned)
        });
        say!("  controller: {}", said.await.expect("in time"));
    }
    controller.kill();
}

/// A claim `data` that exists, so that the cloud is asked.
async fn claim(ground: &Ground) {
    use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
    use kube::{Api, api::PostParams};
    let admin = ground.plane.admin_client();
    let claim = reattach_sim::manifests::claim("default", "data", "pv-data");
    let volume =
        reattach_sim::manifests::linode_volume("pv-data", "1-data", "ext4", "default", "data");
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(admin.clone(), "default");
    let volumes: Api<PersistentVolume> = Api::all(admin);
    let parse = "an object";
    let made = reattach_tests_controlplane::eventually("namespace default", LIMIT, async || {
        claims
            .create(
                &PostParams::default(),
                &serde_json::from_value(claim.clone()).expect(parse),
            )
            .await
            .ok()
    });
    made.await.expect("created");
    volumes
        .create(
            &PostParams::default(),
            &serde_json::from_value(volume).expect(parse),
        )
        .await
        .expect("created");
}
