//! A cluster for stages: a real control plane, a simulated Linode, the manifests of `deploy/`, and reattach's controllers as
//! processes with exactly the rights that those manifests give.

use super::stage::StageOptions;
use super::{LIMIT, Process};
use axum::http::Request;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind};
use kube::{Api, Client, Resource};
use reattach_cloud_simulator::{CloudSim, clock, router};
use reattach_sim::kubelet::SimKubelet;
use reattach_tests_controlplane::{ControlPlane, Options, eventually};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The token that the simulated cloud accepts.
pub const TOKEN: &str = "a-token-for-the-simulated-cloud";
/// The namespace of reattach itself.
pub const SYSTEM: &str = "reattach-system";
/// The group of kubelets' users.
pub const KUBELETS: &str = "system:nodes";
/// Stages that a shared cluster can have.
const STAGES: u64 = 40;

/// Users for a shared cluster: one of each name for each stage, see [`super::Stage::user`].
pub fn people(names: &[&str]) -> Vec<(String, Vec<&'static str>)> {
    let of = |number| {
        names
            .iter()
            .map(move |name| (format!("{name}-{number}"), Vec::new()))
    };
    (1..=STAGES).flat_map(of).collect()
}

/// A cluster that many stages share, started by the first and stopped by [`Shared::stop`].
pub struct Shared {
    options: fn() -> StageOptions,
    cluster: tokio::sync::Mutex<Option<Arc<Cluster>>>,
}

impl Shared {
    /// A cluster with these options; nothing is started yet.
    pub const fn new(options: fn() -> StageOptions) -> Self {
        Self {
            options,
            cluster: tokio::sync::Mutex::const_new(None),
        }
    }

    /// The cluster.
    pub async fn cluster(&self) -> Arc<Cluster> {
        let mut cluster = self.cluster.lock().await;
        if let Some(running) = &*cluster {
            return running.clone();
        }
        let started = Arc::new(Cluster::start(&(self.options)()).await);
        *cluster = Some(started.clone());
        started
    }

    /// Stops the cluster once its last stage is gone.
    pub async fn stop(&self) {
        drop(self.cluster.lock().await.take());
    }
}

/// A running cluster.
pub struct Cluster {
    controllers: Mutex<Vec<Process>>,
    /// The nodes of stages that are over, see [`Cluster::retire`].
    retired: Mutex<(Vec<SimKubelet>, Vec<Process>)>,
    /// Numbers of stages by their names.
    stages: Mutex<BTreeMap<String, u64>>,
    /// The control plane.
    pub plane: ControlPlane,
    /// The cloud.
    pub cloud: CloudSim,
    /// The cloud's URL.
    pub cloud_url: String,
    /// Where host trees and logs are.
    pub folder: PathBuf,
    /// An administrator.
    pub admin: Client,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Cluster {
    /// Starts everything but nodes.
    pub async fn start(options: &StageOptions) -> Self {
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
        let cloud_url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = router(cloud.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut plane_options = Options::with_csi(&cloud_url, TOKEN);
        for (user, groups) in &options.users {
            plane_options = plane_options.user(user, groups);
        }
        for gate in &options.feature_gates {
            plane_options = plane_options.feature_gate(gate);
        }
        if let Some(csi) = &mut plane_options.csi {
            csi.attacher_flags
                .extend(options.attacher_flags.iter().map(|f| (*f).to_owned()));
        }
        let plane = ControlPlane::start(plane_options)
            .await
            .expect("a control plane");
        let admin = plane.admin_client();
        let folder = plane.folder().join("reattach");
        std::fs::create_dir_all(&folder).expect("a folder");
        let cluster = Self {
            controllers: Mutex::default(),
            retired: Mutex::default(),
            stages: Mutex::default(),
            plane,
            cloud,
            cloud_url,
            folder,
            admin,
        };
        cluster.install().await;
        if options.real_nodes {
            cluster.expect_real_nodes().await;
        }
        for _ in 0..options.controllers {
            cluster.start_controller().await;
        }
        cluster
    }

    /// The number of the stage of this name, from 1; 0 for the only one.
    pub(super) fn number_of(&self, stage: Option<&str>) -> u64 {
        let Some(stage) = stage else { return 0 };
        let mut stages = lock(&self.stages);
        let number = stages.len() as u64 + 1;
        assert!(
            number <= STAGES,
            "{stage} is stage {number} of this cluster: raise STAGES"
        );
        assert!(
            stages.insert(stage.to_owned(), number).is_none(),
            "two stages are called {stage}"
        );
        number
    }

    /// The stage that an object or namespace of this name belongs to: its own, its PersistentVolume's, its node's lock.
    pub(super) fn stage_of(&self, name: &str) -> Option<String> {
        let name = name
            .strip_prefix("pv-")
            .or(name.strip_prefix("node-"))
            .unwrap_or(name);
        let of = |stage: &&String| {
            name.strip_prefix(stage.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
        };
        lock(&self.stages)
            .keys()
            .filter(of)
            .max_by_key(|stage| stage.len())
            .cloned()
    }

    /// Keeps nodes and agents of a stage that is over.
    pub(super) fn retire(&self, kubelets: Vec<SimKubelet>, agents: Vec<Process>) {
        let mut retired = lock(&self.retired);
        retired.0.extend(kubelets);
        retired.1.extend(agents);
    }

    /// Applies the Linode overlay of `deploy/`, strictly.
    async fn install(&self) {
        let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let rendered = Command::new("kubectl")
            .args(["kustomize", &format!("{repository}/deploy/overlays/linode")])
            .output()
            .expect("kubectl");
        assert!(
            rendered.status.success(),
            "{}",
            String::from_utf8_lossy(&rendered.stderr)
        );
        let manifests = String::from_utf8(rendered.stdout).expect("text");
        // More than once: custom resources need their definitions to be established first.
        let mut refused = String::new();
        let accepted = eventually("the manifests", LIMIT, async || {
            let answer = self
                .kubectl(
                    &["apply", "--server-side", "--validate=strict"],
                    manifests.clone(),
                )
                .await;
            answer.map_err(|e| refused = e).ok()
        });
        accepted.await.unwrap_or_else(|e| panic!("{e}\n{refused}"));
    }

    /// On real nodes the manifests' pods cannot start: their images are nowhere, and nothing may be asked of a registry. The same
    /// binaries run as processes. Kubelets may do everything; the Node authorizer, which gives them less, is not part of the
    /// control plane.
    async fn expect_real_nodes(&self) {
        let foreground = DeleteParams::foreground();
        let agents: Api<DaemonSet> = Api::namespaced(self.admin.clone(), SYSTEM);
        agents
            .delete("reattach-agent", &foreground)
            .await
            .expect("deleted");
        let controllers: Api<Deployment> = Api::namespaced(self.admin.clone(), SYSTEM);
        controllers
            .delete("reattach-controller", &foreground)
            .await
            .expect("deleted");
        let gone = eventually("the end of the installed pods", LIMIT, async || {
            let left = agents.get_opt("reattach-agent").await.ok()?.is_some()
                || controllers
                    .get_opt("reattach-controller")
                    .await
                    .ok()?
                    .is_some();
            (!left).then_some(())
        });
        gone.await.expect("deleted");
        self.create(json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
            "metadata": {"name": "kubelets"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": KUBELETS}],
        }))
        .await;
    }

    /// Runs kubectl as the administrator with a file on its standard input; an error is what it says.
    async fn kubectl(&self, arguments: &[&str], file: String) -> Result<(), String> {
        let mut command = Command::new("kubectl");
        command
            .args(arguments)
            .args(["-f", "-", "--kubeconfig"])
            .arg(self.plane.admin_kubeconfig());
        let run = move || {
            let mut child = command
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("kubectl");
            child
                .stdin
                .take()
                .expect("a pipe")
                .write_all(file.as_bytes())
                .expect("kubectl reads");
            child.wait_with_output().expect("kubectl ends")
        };
        let output = tokio::task::spawn_blocking(run).await.expect("it ran");
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    }

    /// Creates an object, or the objects of a List, from JSON.
    pub async fn create(&self, object: Value) {
        match object.get("items").and_then(Value::as_array) {
            Some(items) => {
                for item in items {
                    self.create_one(item).await;
                }
            }
            None => self.create_one(&object).await,
        }
    }

    async fn create_one(&self, object: &Value) {
        let text = |at: &str| {
            object
                .pointer(at)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let (api_version, kind, namespace) = (
            text("/apiVersion"),
            text("/kind"),
            text("/metadata/namespace"),
        );
        let (group, version) = api_version.split_once('/').unwrap_or(("", &api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &kind));
        let namespace = Some(namespace.as_str()).filter(|n| !n.is_empty());
        // `Api::create` cannot ask for strict validation (kube 5.0), and a misspelt field must not be dropped.
        let url = format!(
            "{}?fieldValidation=Strict",
            DynamicObject::url_path(&resource, namespace)
        );
        let request = Request::post(url).header("content-type", "application/json");
        let request = request
            .body(object.to_string().into_bytes())
            .expect("a request");
        let created: kube::Result<DynamicObject> = self.admin.request(request).await;
        created.unwrap_or_else(|e| panic!("{e}\n{object}"));
    }

    /// The environment of a controller or of the command line.
    pub fn cloud_environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("LINODE_TOKEN", TOKEN.to_owned()),
            ("LINODE_URL", self.cloud_url.clone()),
        ]
    }

    /// Starts one more controller process, with the controller's service account.
    pub async fn start_controller(&self) {
        let config = self
            .plane
            .kubeconfig_for_service_account(SYSTEM, "reattach-controller", None)
            .await;
        let config = config.expect("a kubeconfig").display().to_string();
        let n = lock(&self.controllers).len();
        let log = self.folder.join(format!("controller-{n}.log"));
        let name = format!("controller-{n}");
        let arguments = [
            "--provider",
            "linode",
            "--listen",
            "127.0.0.1:0",
            "--pod-name",
            &name,
            "--pod-uid",
            "test",
        ];
        let mut environment = self.cloud_environment();
        environment.push(("KUBECONFIG", config));
        environment.push(("RUST_LOG", "info,reattach_controller=debug".to_owned()));
        let process = Process::start("reattach-controller", &log, &arguments, &environment);
        lock(&self.controllers).push(process);
    }

    /// Waits until one of the controllers holds the leader Lease; answers its number.
    pub async fn leader(&self) -> usize {
        let api: Api<Lease> = Api::namespaced(self.admin.clone(), SYSTEM);
        let found = eventually("a leader", LIMIT, async || {
            let lease = api.get_opt("reattach-controller").await.ok()??.spec?;
            let holder = lease.holder_identity.filter(|h| !h.is_empty())?;
            let number: usize = holder
                .strip_prefix("controller-")?
                .split('/')
                .next()?
                .parse()
                .ok()?;
            lock(&self.controllers)
                .get(number)?
                .runs()
                .then_some(number)
        });
        found.await.expect("a controller that leads")
    }

    /// Ends a controller as a power cut does.
    pub fn kill_controller(&self, number: usize) {
        lock(&self.controllers)[number].kill();
    }

    /// Ends a controller as the kubelet does.
    pub fn stop_controller(&self, number: usize) {
        let controller = &mut lock(&self.controllers)[number];
        assert!(
            controller.terminate(),
            "a controller did not end well: {}",
            controller.output()
        );
    }

    /// Ends every controller as the kubelet does.
    pub fn stop_controllers(&self) {
        for controller in lock(&self.controllers).iter_mut().filter(|c| c.runs()) {
            assert!(
                controller.terminate(),
                "a controller did not end well: {}",
                controller.output()
            );
        }
    }

    /// The output of each controller so far, with the path of its log.
    pub(super) fn controller_output(&self) -> Vec<(PathBuf, String)> {
        lock(&self.controllers)
            .iter()
            .map(|c| (c.log.clone(), c.output()))
            .collect()
    }
}
