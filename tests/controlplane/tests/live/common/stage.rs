//! Setting the stage.

use super::cluster::{Cluster, SYSTEM, Shared};
use super::{LIMIT, Process};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use reattach_api::{Phase, RecoveryPolicy, VolumeRecovery};
use reattach_cloud_simulator::{
    InstanceNo, NewInstance, NewVolume, RequestRecord, Timings, VolumeNo,
};
use reattach_core::policy::Mode;
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_sim::Clock;
use reattach_sim::cloud::SimulatedCloud;
use reattach_sim::kubelet::{KubeletConfig, SimKubelet};
use reattach_tests_controlplane::{Unpublish, eventually};
use serde_json::{Value, json};
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Options of a stage. On a shared cluster only the first four count: the rest is the cluster's.
pub struct StageOptions {
    /// How many nodes.
    pub nodes: u64,
    /// The policy's mode; none: no policy besides the shipped one.
    pub mode: Option<Mode>,
    /// How many volumes a node may have.
    pub volumes_per_node: u32,
    /// Whether every node has an agent.
    pub agents: bool,
    /// How many controller processes.
    pub controllers: usize,
    /// Further users of the API server, with their groups.
    pub users: Vec<(String, Vec<&'static str>)>,
    /// Feature gates to turn on in kube-apiserver, beyond those that are on by default.
    pub feature_gates: Vec<&'static str>,
    /// More flags for external-attacher.
    pub attacher_flags: Vec<&'static str>,
    /// Whether the nodes are real ones; they are not the stage's to start.
    pub real_nodes: bool,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self {
            nodes: 2,
            mode: Some(Mode::Auto),
            volumes_per_node: 8,
            agents: true,
            controllers: 2,
            users: Vec::new(),
            feature_gates: Vec::new(),
            attacher_flags: Vec::new(),
            real_nodes: false,
        }
    }
}

/// Numbers of instances and volumes begin here, and each stage has so many of them.
const INSTANCES: u64 = 1_000;
const INSTANCES_EACH: u64 = 20;
const VOLUMES: u64 = 50_000;
const VOLUMES_EACH: u64 = 1_000;

/// The instance behind a node.
pub fn instance_of(kubelet: &SimKubelet) -> InstanceNo {
    InstanceNo(kubelet.instance().parse().expect("a number"))
}

/// A scenario's cluster: its own, or a part of a shared one.
///
/// On a shared cluster each name begins with the stage's: its namespace has the very name, its nodes are `NAME-1` and so on,
/// its policy has the name and selects the namespace. What the helpers of this folder assert is filtered to that: requests by
/// object ([`Stage::audit`]), requests to the cloud by volume and instance ([`Stage::cloud_mutations`]).
pub struct Stage {
    /// Where it is; also by deref.
    pub cluster: Arc<Cluster>,
    /// The name of its nodes and its policy; none on a cluster of its own, where nodes are `node-1` and so on.
    pub name: Option<String>,
    /// Its number in the cluster, which decides the numbers of its instances and volumes.
    number: u64,
    /// The nodes.
    pub kubelets: Vec<SimKubelet>,
    /// The agents, one per node.
    pub agents: Vec<Process>,
    volumes: AtomicU64,
}

impl Deref for Stage {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

/// The nodes of a stage go on after it: a node that vanished would be trouble of class A, which the controllers of a shared
/// cluster would try to heal.
impl Drop for Stage {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.cluster.plane.keep_folder();
        }
        self.cluster.retire(
            std::mem::take(&mut self.kubelets),
            std::mem::take(&mut self.agents),
        );
    }
}

impl Stage {
    /// Sets the stage on a cluster of its own; nothing is wrong yet.
    pub async fn set(options: StageOptions) -> Self {
        let cluster = Cluster::start(&options).await;
        Self::on(Arc::new(cluster), None, options).await
    }

    /// Sets the stage on the shared cluster of this kind; nothing is wrong yet. No other stage on it has this name.
    pub async fn share(shared: &'static Shared, name: &str, options: StageOptions) -> Self {
        let cluster = shared.cluster().await;
        Self::on(cluster, Some(name.to_owned()), options).await
    }

    async fn on(cluster: Arc<Cluster>, name: Option<String>, options: StageOptions) -> Self {
        let number = cluster.number_of(name.as_deref());
        let mut stage = Self {
            cluster,
            name,
            number,
            kubelets: Vec::new(),
            agents: Vec::new(),
            volumes: AtomicU64::new(1),
        };
        for n in 1..=options.nodes {
            let kubelet = stage
                .machine(
                    &stage.node_name(n),
                    stage.instance_number(n),
                    options.volumes_per_node,
                )
                .await;
            stage.kubelets.push(kubelet);
        }
        if let Some(mode) = options.mode {
            stage.policy(mode).await;
        }
        if options.agents {
            stage.start_agents().await;
        }
        stage
    }

    /// The name of the n-th node, from 1.
    pub fn node_name(&self, n: u64) -> String {
        format!("{}-{n}", self.name.as_deref().unwrap_or("node"))
    }

    /// The number of the n-th node's instance.
    pub fn instance_number(&self, n: u64) -> u64 {
        INSTANCES + self.number * INSTANCES_EACH + n
    }

    /// Whether a volume or an instance of this number is another stage's.
    fn is_of_another(&self, id: u64, first: u64, each: u64) -> bool {
        self.name.is_some()
            && id
                .checked_sub(first)
                .is_some_and(|id| id / each != self.number)
    }

    /// Whether a volume is another stage's.
    pub fn is_volume_of_another(&self, volume: VolumeNo) -> bool {
        self.is_of_another(volume.0, VOLUMES, VOLUMES_EACH)
    }

    /// Whether a request to the cloud is about a volume or an instance of another stage.
    pub fn is_request_of_another(&self, request: &RequestRecord) -> bool {
        let id = |part: &str| -> Option<u64> {
            request
                .path
                .split_once(part)?
                .1
                .split('/')
                .next()?
                .parse()
                .ok()
        };
        id("/volumes/").is_some_and(|id| self.is_of_another(id, VOLUMES, VOLUMES_EACH))
            || id("/linode/instances/")
                .is_some_and(|id| self.is_of_another(id, INSTANCES, INSTANCES_EACH))
    }

    /// Whether an object of this name, or in a namespace of this name, is another stage's.
    pub fn is_name_of_another(&self, name: &str) -> bool {
        let Some(own) = &self.name else { return false };
        self.cluster
            .stage_of(name)
            .is_some_and(|stage| stage != *own)
    }

    /// A new instance with a kubelet that calls its Node `name`.
    pub async fn machine(&self, name: &str, instance: u64, volumes: u32) -> SimKubelet {
        self.cloud
            .create_instance(NewInstance::new(name).with_id(instance))
            .expect("an instance");
        let mut config = KubeletConfig::linode(name, instance, instance % 1000);
        let host = self.folder.join("hosts").join(name);
        std::fs::create_dir_all(&host).expect("a folder");
        config.host_root = Some(host);
        config.max_volumes = volumes;
        let cloud = SimulatedCloud::new(self.cloud.clone());
        let kubelet = SimKubelet::new(config, self.admin.clone(), cloud, Clock::wall());
        kubelet.power_on();
        kubelet
    }

    /// Applies the stage's policy, which precedes the shipped one, with the founding runbook.
    pub async fn policy(&self, mode: Mode) {
        self.policy_by(mode, SCALE_TO_ZERO).await;
    }

    /// Applies the stage's policy with any runbook.
    pub async fn policy_by(&self, mode: Mode, runbook: &str) {
        self.policy_of(json!({"mode": mode, "runbook": runbook}))
            .await;
    }

    /// Applies the stage's policy with the default runbook, mode Auto, and these further fields.
    pub async fn policy_saying(&self, more: Value) {
        let mut spec = json!({"mode": Mode::Auto, "runbook": DEFAULT_RUNBOOK});
        spec.as_object_mut()
            .expect("an object")
            .extend(more.as_object().cloned().unwrap_or_default());
        self.policy_of(spec).await;
    }

    async fn policy_of(&self, mut spec: Value) {
        spec["precedence"] = json!(10);
        // The nodes of other stages fall silent too, and no kubelet here takes a boot's time.
        let nodes = json!({"patienceSeconds": 60, "mostTogether": 100});
        spec.as_object_mut()
            .expect("an object")
            .entry("nodes")
            .or_insert(nodes);
        if let Some(name) = &self.name {
            spec["selector"] = json!({"namespaces": [name]});
            // Those of other stages count too.
            spec["budgets"] = json!({"cluster": 100});
        }
        let name = self.policy_name();
        let policy: RecoveryPolicy = serde_json::from_value(json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": {"name": name}, "spec": spec,
        }))
        .expect("a policy");
        let api: Api<RecoveryPolicy> = Api::all(self.admin.clone());
        let params = kube::api::PatchParams::apply("test").force();
        api.patch(name, &params, &kube::api::Patch::Apply(&policy))
            .await
            .expect("accepted");
    }

    /// Sets how long the cloud's work on the stage's instances takes.
    pub fn set_timings(&self, timings: Timings) {
        if self.name.is_none() {
            return self.cloud.set_timings(timings);
        }
        for kubelet in &self.kubelets {
            self.cloud
                .set_power_timings(instance_of(kubelet), timings.clone());
        }
    }

    /// Sets how the CSI controller detaches these volumes from now on.
    pub async fn unpublish(&self, volumes: &[VolumeNo], how: Unpublish) {
        for volume in volumes {
            self.plane
                .csi_unpublish(volume.0, how)
                .await
                .expect("the switch moves");
        }
    }

    /// The name of the stage's policy.
    pub fn policy_name(&self) -> &str {
        self.name.as_deref().unwrap_or("test")
    }

    /// The stage's own of the users that [`super::cluster::people`] gives a shared cluster, e.g. `olga`.
    pub fn user(&self, name: &str) -> String {
        match self.number {
            0 => name.to_owned(),
            number => format!("{name}-{number}"),
        }
    }

    /// One agent per node, each with the token of its own pod of the DaemonSet.
    async fn start_agents(&mut self) {
        for kubelet in self.kubelets.clone() {
            let node = kubelet.node().to_owned();
            let config = self.agent_config(&node).await;
            let host = self.folder.join("hosts").join(&node);
            let boot = host.join("proc/sys/kernel/random/boot_id");
            let shown = eventually("the host's boot ID", LIMIT, async || {
                boot.exists().then_some(())
            });
            shown.await.expect("the machine is on");
            let host = host.display().to_string();
            let log = self.folder.join(format!("agent-{node}.log"));
            let arguments = ["--host-root", &host, "--node-name", &node, "--rescan", "5s"];
            self.agents.push(Process::start(
                "reattach-agent",
                &log,
                &arguments,
                &[("KUBECONFIG", config)],
            ));
        }
    }

    /// The kubeconfig of a node's agent, with the token of its pod there.
    pub async fn agent_config(&self, node: &str) -> String {
        let pod = self.pod_on(SYSTEM, "reattach-agent", node).await;
        let config = self
            .plane
            .kubeconfig_for_service_account(SYSTEM, "reattach-agent", Some(&pod))
            .await;
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

    /// Creates a cloud volume and gives its number and CSI handle.
    pub fn volume(&self, label: &str) -> (VolumeNo, String) {
        let no =
            VOLUMES + self.number * VOLUMES_EACH + self.volumes.fetch_add(1, Ordering::Relaxed);
        let volume = self
            .cloud
            .create_volume(NewVolume::new(label).with_id(no))
            .expect("a volume");
        (volume, format!("{no}-{label}"))
    }

    /// The recoveries of a namespace, the newest last. Of two of the same second the one that was given up is the older.
    pub async fn recoveries(&self, namespace: &str) -> Vec<VolumeRecovery> {
        let api: Api<VolumeRecovery> = Api::namespaced(self.admin.clone(), namespace);
        let mut all = api
            .list(&ListParams::default())
            .await
            .map(|l| l.items)
            .unwrap_or_default();
        let given_up =
            |r: &VolumeRecovery| r.status.as_ref().is_some_and(|s| s.phase == Phase::Aborted);
        all.sort_by_key(|r| (r.creation_timestamp(), !given_up(r)));
        all
    }

    /// The kubelet of a node.
    pub fn kubelet(&self, node: &str) -> &SimKubelet {
        self.kubelets
            .iter()
            .find(|k| k.node() == node)
            .expect("a node of the stage")
    }

    /// The end of what each process printed, for a failing test. Of controllers that serve other stages too, what names this
    /// one.
    pub fn logs(&self) -> String {
        let agents = self.agents.iter().map(|a| (a.log.clone(), a.output()));
        let end = |(log, output): (PathBuf, String)| {
            let lines: Vec<&str> = output.lines().collect();
            format!(
                "--- {}\n{}\n",
                log.display(),
                lines[lines.len().saturating_sub(15)..].join("\n")
            )
        };
        let of_this = |(log, output): (PathBuf, String)| {
            let names = |line: &&str| {
                self.name
                    .as_ref()
                    .is_none_or(|name| line.contains(name.as_str()))
            };
            (
                log,
                output.lines().filter(names).collect::<Vec<_>>().join("\n"),
            )
        };
        self.controller_output()
            .into_iter()
            .map(of_this)
            .chain(agents)
            .map(end)
            .collect()
    }
}
