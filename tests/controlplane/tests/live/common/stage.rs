//! Setting the stage.

use super::{LIMIT, Process};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use reattach_api::{Phase, RecoveryPolicy, VolumeRecovery};
use reattach_cloud_simulator::{CloudSim, NewInstance, NewVolume, VolumeNo, clock, router};
use reattach_core::policy::Mode;
use reattach_core::runbook::SCALE_TO_ZERO;
use reattach_sim::Clock;
use reattach_sim::cloud::SimulatedCloud;
use reattach_sim::kubelet::{KubeletConfig, SimKubelet};
use reattach_tests_controlplane::{ControlPlane, Options, eventually};
use serde_json::{Value, json};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What a stage has.
pub struct StageOptions {
    /// How many nodes.
    pub nodes: u64,
    /// The policy's mode; none: no policy besides the shipped one.
    pub mode: Option<Mode>,
    /// How many controller processes.
    pub controllers: usize,
    /// How many volumes a node may have.
    pub volumes_per_node: u32,
    /// Whether every node has an agent.
    pub agents: bool,
    /// Whether no other stage may be up meanwhile: for measurements. Such a test's name begins with `alone_`, by which
    /// `tests/run` puts them last: among the others each would wait for those that are up, and hold up those to come.
    pub alone: bool,
    /// Further users of the API server, with their groups.
    pub users: Vec<(&'static str, Vec<&'static str>)>,
    /// Feature gates to turn on in kube-apiserver, beyond those that are on by default.
    pub feature_gates: Vec<&'static str>,
    /// More flags for external-attacher.
    pub attacher_flags: Vec<&'static str>,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            nodes: 2,
            mode: Some(Mode::Auto),
            controllers: 2,
            volumes_per_node: 8,
            agents: true,
            alone: false,
            users: Vec::new(),
            feature_gates: Vec::new(),
            attacher_flags: Vec::new(),
        }
    }
}

/// Stages are up side by side, or one is up alone.
static GROUND: RwLock<()> = RwLock::const_new(());

/// The right to be on it: held, never read.
#[allow(dead_code)]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// A stage with everything on it.
pub struct Stage {
    /// The control plane.
    pub plane: ControlPlane,
    /// The cloud.
    pub cloud: CloudSim,
    /// The cloud's URL.
    pub cloud_url: String,
    /// The nodes.
    pub kubelets: Vec<SimKubelet>,
    /// The agents, one per node.
    pub agents: Vec<Process>,
    /// The controllers.
    pub controllers: Vec<Process>,
    /// Where host trees and logs are.
    pub folder: PathBuf,
    /// An administrator.
    pub admin: Client,
    volumes: std::sync::atomic::AtomicU64,
    /// Dropped last.
    _turn: Turn,
}

/// The token that the simulated cloud accepts.
pub const TOKEN: &str = "a-token-for-the-simulated-cloud";
/// The namespace of reattach itself.
pub const SYSTEM: &str = "reattach-system";

impl Stage {
    /// Sets the stage; nothing is wrong yet.
    pub async fn set(options: StageOptions) -> Self {
        // The thread has the test's name, but where tests run one after another.
        if let Some((_, test)) = std::thread::current().name().and_then(|name| name.rsplit_once("::")) {
            assert_eq!(test.starts_with("alone_"), options.alone, "{test}: by its name it is put last");
        }
        let turn =
            if options.alone { Turn::Alone(GROUND.write().await) } else { Turn::Shared(GROUND.read().await) };
        let cloud = CloudSim::new(clock::system());
        cloud.add_token(TOKEN, &["volumes:read_write", "linodes:read_write", "events:read_only"]);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let cloud_url = format!("http://{}", listener.local_addr().expect("an address"));
        let app = router(cloud.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        let mut plane_options = Options::with_csi(&cloud_url, TOKEN);
        for (user, groups) in &options.users {
            plane_options = plane_options.user(*user, groups);
        }
        for gate in &options.feature_gates {
            plane_options = plane_options.feature_gate(gate);
        }
        if let Some(csi) = &mut plane_options.csi {
            csi.attacher_flags.extend(options.attacher_flags.iter().map(|f| (*f).to_owned()));
        }
        let plane = ControlPlane::start(plane_options).await.expect("a control plane");
        let admin = plane.admin_client();
        let folder = plane.folder().join("reattach");
        std::fs::create_dir_all(&folder).expect("a folder");
        let mut stage = Self {
            plane,
            cloud,
            cloud_url,
            kubelets: Vec::new(),
            agents: Vec::new(),
            controllers: Vec::new(),
            folder,
            admin,
            volumes: 1.into(),
            _turn: turn,
        };
        stage.install();
        stage.add_nodes(options.nodes, options.volumes_per_node).await;
        if let Some(mode) = options.mode {
            stage.policy("test", mode).await;
        }
        if options.agents {
            stage.start_agents().await;
        }
        for _ in 0..options.controllers {
            stage.start_controller().await;
        }
        stage
    }

    /// Applies the Linode overlay of `deploy/`, strictly.
    fn install(&self) {
        let repository = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
        let rendered = Command::new("kubectl")
            .args(["kustomize", &format!("{repository}/deploy/overlays/linode")])
            .output()
            .expect("kubectl");
        assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
        // Twice: custom resources need their definitions to be established first.
        let mut result = self.apply(&rendered.stdout);
        for _ in 0..20 {
            if result.is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(300));
            result = self.apply(&rendered.stdout);
        }
        result.expect("the manifests are accepted");
    }

    fn apply(&self, manifests: &[u8]) -> Result<(), String> {
        let mut child = Command::new("kubectl")
            .args(["apply", "--server-side", "--validate=strict", "-f", "-", "--kubeconfig"])
            .arg(self.plane.admin_kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl");
        child.stdin.take().expect("a pipe").write_all(manifests).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    async fn add_nodes(&mut self, count: u64, volumes: u32) {
        for n in 1..=count {
            let kubelet = self.machine(&format!("node-{n}"), 1000 + n, volumes).await;
            self.kubelets.push(kubelet);
        }
    }

    /// A new instance with a kubelet that calls its Node `name`.
    pub async fn machine(&self, name: &str, instance: u64, volumes: u32) -> SimKubelet {
        self.cloud.create_instance(NewInstance::new(name).with_id(instance)).expect("an instance");
        let mut config = KubeletConfig::linode(name, instance, instance % 1000);
        let host = self.folder.join("hosts").join(name);
        std::fs::create_dir_all(&host).expect("a folder");
        config.host_root = Some(host);
        config.max_volumes = volumes;
        let machines = Arc::new(SimulatedCloud::new(self.cloud.clone()));
        let kubelet = SimKubelet::new(config, self.admin.clone(), machines, Clock::wall().as_fn());
        kubelet.power_on().await;
        kubelet
    }

    /// Puts a policy in force that beats the shipped one.
    pub async fn policy(&self, name: &str, mode: Mode) {
        self.policy_by(name, mode, SCALE_TO_ZERO).await;
    }

    /// The same with any runbook.
    pub async fn policy_by(&self, name: &str, mode: Mode, runbook: &str) {
        let policy: RecoveryPolicy = serde_json::from_value(json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": {"name": name},
            "spec": {"mode": mode, "runbook": runbook, "precedence": 10},
        }))
        .expect("a policy");
        let api: Api<RecoveryPolicy> = Api::all(self.admin.clone());
        let params = kube::api::PatchParams::apply("test").force();
        api.patch(name, &params, &kube::api::Patch::Apply(&policy)).await.expect("accepted");
    }

    /// One agent per node, each with the token of its own pod of the DaemonSet.
    async fn start_agents(&mut self) {
        for kubelet in self.kubelets.clone() {
            let node = kubelet.node().to_owned();
            let config = self.agent_config(&node).await;
            let host = self.folder.join("hosts").join(&node);
            let boot = host.join("proc/sys/kernel/random/boot_id");
            let shown = eventually("the host's boot ID", LIMIT, async || boot.exists().then_some(()));
            shown.await.expect("the machine is on");
            let host = host.display().to_string();
            let log = self.folder.join(format!("agent-{node}.log"));
            let arguments = ["--host-root", &host, "--node-name", &node, "--rescan", "5s"];
            self.agents.push(Process::start("reattach-agent", &log, &arguments, &[("KUBECONFIG", config)]));
        }
    }

    /// The kubeconfig of a node's agent, with the token of its pod there.
    pub async fn agent_config(&self, node: &str) -> String {
        let pod = self.pod_on(SYSTEM, "reattach-agent", node).await;
        let config = self.plane.kubeconfig_for_service_account(SYSTEM, "reattach-agent", Some(&pod)).await;
        config.expect("a kubeconfig").display().to_string()
    }

    /// The name of a pod of `app` that is bound to `node`.
    async fn pod_on(&self, namespace: &str, app: &str, node: &str) -> String {
        let api: Api<Pod> = Api::namespaced(self.admin.clone(), namespace);
        let what = format!("a pod of {app} on {node}");
        let found = eventually(&what, LIMIT, async || {
            let pods = api.list(&ListParams::default()).await.ok()?;
            let here = |p: &&Pod| {
                p.name_any().starts_with(app)
                    && p.spec.as_ref().and_then(|s| s.node_name.as_deref()) == Some(node)
            };
            pods.items.iter().find(here).map(ResourceExt::name_any)
        });
        found.await.expect("the DaemonSet makes one")
    }

    /// The environment of a controller or of the command line.
    pub fn cloud_environment(&self) -> Vec<(&'static str, String)> {
        vec![("LINODE_TOKEN", TOKEN.to_owned()), ("LINODE_URL", self.cloud_url.clone())]
    }

    /// Starts one more controller process, with the controller's service account.
    pub async fn start_controller(&mut self) {
        let config = self.plane.kubeconfig_for_service_account(SYSTEM, "reattach-controller", None).await;
        let config = config.expect("a kubeconfig").display().to_string();
        let n = self.controllers.len();
        let log = self.folder.join(format!("controller-{n}.log"));
        let name = format!("controller-{n}");
        let arguments =
            ["--provider", "linode", "--listen", "127.0.0.1:0", "--pod-name", &name, "--pod-uid", "test"];
        let mut environment = self.cloud_environment();
        environment.push(("KUBECONFIG", config));
        environment.push(("RUST_LOG", "info,reattach_controller=debug".to_owned()));
        self.controllers.push(Process::start("reattach-controller", &log, &arguments, &environment));
    }

    /// Waits until one of the controllers holds the leader Lease; answers its number.
    pub async fn leader(&self) -> usize {
        let api: Api<Lease> = Api::namespaced(self.admin.clone(), SYSTEM);
        let found = eventually("a leader", LIMIT, async || {
            let lease = api.get_opt("reattach-controller").await.ok()??.spec?;
            let holder = lease.holder_identity.filter(|h| !h.is_empty())?;
            let number: usize = holder.strip_prefix("controller-")?.split('/').next()?.parse().ok()?;
            self.controllers.get(number)?.runs().then_some(number)
        });
        found.await.expect("a controller that leads")
    }

    /// Stops every controller as the kubelet does.
    pub fn stop_controllers(&mut self) {
        for controller in &mut self.controllers {
            if controller.runs() {
                assert!(controller.terminate(), "a controller did not end well: {}", controller.output());
            }
        }
    }

    /// Creates a cloud volume and gives its number and CSI handle.
    pub fn volume(&self, label: &str) -> (VolumeNo, String) {
        let no = 50_000 + self.volumes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let volume = self.cloud.create_volume(NewVolume::new(label).with_id(no)).expect("a volume");
        (volume, format!("{no}-{label}"))
    }

    /// Creates any object from JSON, status included.
    pub async fn create(&self, object: Value) {
        let mut child = Command::new("kubectl")
            .args(["create", "-f", "-", "--kubeconfig"])
            .arg(self.plane.admin_kubeconfig())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("kubectl");
        child.stdin.take().expect("a pipe").write_all(object.to_string().as_bytes()).expect("kubectl reads");
        let output = child.wait_with_output().expect("kubectl ends");
        assert!(output.status.success(), "{}\n{object}", String::from_utf8_lossy(&output.stderr));
    }

    /// The recoveries of a namespace, the newest last. Of two of the same second the one that was given up is the older.
    pub async fn recoveries(&self, namespace: &str) -> Vec<VolumeRecovery> {
        let api: Api<VolumeRecovery> = Api::namespaced(self.admin.clone(), namespace);
        let mut all = api.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default();
        let given_up = |r: &VolumeRecovery| r.status.as_ref().is_some_and(|s| s.phase == Phase::Aborted);
        all.sort_by_key(|r| (r.creation_timestamp(), !given_up(r)));
        all
    }

    /// The kubelet of a node.
    pub fn kubelet(&self, node: &str) -> &SimKubelet {
        self.kubelets.iter().find(|k| k.node() == node).expect("a node of the stage")
    }

    /// The end of what each process printed, for a failing test.
    pub fn logs(&self) -> String {
        let all = self.controllers.iter().chain(&self.agents);
        all.map(|p| {
            let output = p.output();
            let lines: Vec<&str> = output.lines().collect();
            format!("--- {}\n{}\n", p.log.display(), lines[lines.len().saturating_sub(15)..].join("\n"))
        })
        .collect()
    }
}
