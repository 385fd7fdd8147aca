//! The stage: a cluster in memory, a simulated cloud, the shipped agents and controllers, in virtual time.

use crate::agents::Agents;
use crate::app::App;
use crate::cloud_profile::CloudProfile;
use crate::names::AGENT_USER;
pub use crate::names::{APPS, PERSON};
use crate::replica::{CrashPoint, Replica, TOKEN};
use crate::request_log::RequestLog;
use crate::scratch::Scratch;
use crate::taint_recorder::TaintRecorder;
use jiff::Timestamp;
use kube::Client;
use reattach_api::VolumeRecovery;
use reattach_cloud_simulator::{CloudSim, InstanceNo, NewInstance, OpError, clock::tokio_from};
use reattach_core::names::QUARANTINE_TAINT;
use reattach_core::policy::Mode;
use reattach_sim::apiserver::AuditEntry;
use reattach_sim::cloud::{Ground, LinodeCsi, Power, SimulatedCloud, instance_no};
use reattach_sim::cluster::NodeNotReady;
use reattach_sim::kapi::lock;
use reattach_sim::kubelet::{DiskAfter, KubeletConfig, SimKubelet};
use reattach_sim::object::{is_ready, items, terminating, text};
use reattach_sim::{ApiServer, SimCluster, machines};
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::AbortHandle;

/// Why the stage could not be set.
#[derive(Debug, thiserror::Error)]
pub enum WorldError {
    /// The simulated cluster did not come up.
    #[error(transparent)]
    Cluster(#[from] NodeNotReady),
    /// The simulated cloud refused a step.
    #[error("the simulated cloud refuses: {0}")]
    Cloud(#[from] OpError),
    /// A host tree could not be made.
    #[error("no folder for the simulated hosts: {0}")]
    Scratch(#[from] std::io::Error),
    /// The simulated API server refused a request of the stage.
    #[error("the simulated API server refuses {what}: {source}")]
    Kubernetes {
        /// The request.
        what: String,
        /// Its answer.
        source: Box<kube::Error>,
    },
    /// Something did not happen in time.
    #[error("{what}: this did not happen within {seconds} s")]
    TooLate {
        /// What.
        what: String,
        /// How long it was waited for.
        seconds: u64,
    },
    /// A part of the product could not be loaded.
    #[error("{0}")]
    Product(String),
}

/// A whole world. Dropping it stops everything and removes the simulated hosts' files.
pub struct World {
    /// The cluster.
    pub cluster: SimCluster,
    /// The cloud.
    pub cloud: CloudSim,
    /// The CSI driver's controller. On EBS, too, it has the manner of Linode's; what differs at the cloud is the simulator's.
    pub csi: LinodeCsi,
    /// The requests of the controller's replicas.
    pub request_log: RequestLog,
    /// The taints and attachments of Nodes over time.
    pub taint_recorder: TaintRecorder,
    profile: CloudProfile,
    seed: u64,
    agents: Agents,
    power: Mutex<Option<AbortHandle>>,
    audit: Mutex<Vec<AuditEntry>>,
    scratch: Scratch,
}

impl World {
    /// A cluster of these nodes (name and instance), with agents, custom resources and the shipped default policy, and
    /// without a controller. Runs on a paused clock.
    ///
    /// # Errors
    /// [`WorldError`].
    pub async fn build(
        seed: u64,
        start: Timestamp,
        nodes: &[(&str, u64)],
    ) -> Result<Self, WorldError> {
        Self::build_on(CloudProfile::default(), seed, start, nodes).await
    }

    /// Builds a world on the cloud of this profile.
    ///
    /// # Errors
    /// [`WorldError`].
    pub async fn build_on(
        profile: CloudProfile,
        seed: u64,
        start: Timestamp,
        nodes: &[(&str, u64)],
    ) -> Result<Self, WorldError> {
        let ground = profile.ground;
        let scratch = Scratch::new()?;
        let cloud = CloudSim::new(tokio_from(start)).with_seed(seed);
        cloud.add_token(TOKEN, rights(ground));
        let csi = LinodeCsi::new(SimulatedCloud::on(cloud.clone(), ground));
        // The EBS driver does not tell which nodes have a volume.
        csi.set_publishes_nodes(ground == Ground::Linode);
        let mut builder = SimCluster::builder(csi.clone()).seed(seed).start_at(start);
        for (name, instance) in nodes {
            cloud.create_instance(new_instance(ground, name, *instance))?;
            let mut config = KubeletConfig::on(ground, name, *instance, seed);
            config.host_root = Some(scratch.path().join(name));
            builder = builder.node_with(config);
        }
        let cluster = builder.build().await?;
        let world = Self {
            taint_recorder: TaintRecorder::of(cluster.server()),
            agents: Agents::new(cluster.server().clone()),
            cluster,
            cloud,
            csi,
            request_log: RequestLog::default(),
            profile,
            seed,
            power: Mutex::default(),
            audit: Mutex::default(),
            scratch,
        };
        world.install()?;
        for (name, _) in nodes {
            world
                .agents
                .add(world.node(name)?, world.scratch.path().join(name));
        }
        Ok(world)
    }

    /// Creates the objects that `deploy/` applies: custom resources and the default policy.
    fn install(&self) -> Result<(), WorldError> {
        let unreadable = |e: &dyn std::fmt::Display| {
            WorldError::Product(format!("a shipped manifest cannot be read: {e}"))
        };
        for crd in reattach_api::all_crds() {
            let crd = serde_json::to_value(crd).map_err(|e| unreadable(&e))?;
            self.server().register_crd(&crd);
        }
        let policy: Value =
            serde_saphyr::from_str(include_str!("../../../deploy/base/default-policy.yaml"))
                .map_err(|e| unreadable(&e))?;
        self.server().insert(&policy);
        self.server().insert(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": crate::replica::NAMESPACE}}));
        // Of a controller that was stopped and asked for a lease of 1 s alone. The first leader waits for that long instead of
        // for a lease of ours, which no scenario is about.
        self.server().insert(&json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": crate::replica::LEASE, "namespace": crate::replica::NAMESPACE},
            "spec": {"holderIdentity": "", "leaseDurationSeconds": 1, "leaseTransitions": 0}
        }));
        self.server().insert(&json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver",
            "metadata": {"name": self.ground().driver()}, "spec": {"attachRequired": true}
        }));
        Ok(())
    }

    /// The API server.
    pub fn server(&self) -> &ApiServer {
        self.cluster.server()
    }

    /// The cloud's names.
    pub fn ground(&self) -> Ground {
        self.profile.ground
    }

    /// The cloud under the stage.
    pub(crate) fn profile(&self) -> &CloudProfile {
        &self.profile
    }

    /// Virtual time.
    pub fn now(&self) -> Timestamp {
        self.cluster.clock().now()
    }

    /// A client of a person or of another program.
    pub fn client_as(&self, user: &str) -> Client {
        self.server().client_as(user)
    }

    /// Starts a controller replica.
    pub fn replica(&self, name: &str, crash: Option<CrashPoint>) -> Replica {
        Replica::start(
            name,
            self.server(),
            &self.cloud,
            &self.profile,
            &self.request_log,
            crash,
        )
    }

    /// Stops the agent of a node for good.
    pub fn stop_agent(&self, node: &str) {
        self.agents.stop(node);
    }

    /// From now on machines lose and get power as the cloud's jobs say: a shutdown, a boot, the watchdog's boot.
    pub fn follow_power(&self) {
        let (agents, cloud) = (self.agents.clone(), self.cloud.clone());
        let machines = self.cluster.nodes().values().cloned().collect();
        let follow = machines::follow(cloud, machines, move |machine, power| match power {
            Power::On => agents.up(machine.node()),
            Power::Off | Power::Recycle => agents.down(machine.node()),
        });
        if let Some(old) = lock(&self.power).replace(tokio::spawn(follow).abort_handle()) {
            old.abort();
        }
    }

    /// The kernel of a node hangs; see [`SimKubelet::hang`].
    ///
    /// # Errors
    /// No such node.
    pub fn hang(&self, node: &str) -> Result<(), WorldError> {
        self.node(node)?.hang();
        self.agents.down(node);
        Ok(())
    }

    /// Another machine under a node's name, switched on: a node pool that keeps its names replaced the old one.
    ///
    /// # Errors
    /// The cloud has an instance of that number.
    pub async fn replace_node(&mut self, node: &str, instance: u64) -> Result<(), WorldError> {
        self.cloud
            .create_instance(new_instance(self.ground(), node, instance))?;
        let root = self.scratch.path().join(format!("{node}-{instance}"));
        let mut config = KubeletConfig::on(self.ground(), node, instance, self.seed);
        config.host_root = Some(root.clone());
        drop(self.cluster.replace_node(config));
        self.node(node)?.power_on();
        self.agents.add(self.node(node)?, root);
        if lock(&self.power).is_some() {
            self.follow_power();
        }
        Ok(())
    }

    /// A node of the cluster.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn node(&self, name: &str) -> Result<&SimKubelet, WorldError> {
        self.cluster
            .node(name)
            .ok_or_else(|| WorldError::Product(format!("the stage has no node {name}")))
    }

    /// The node is recycled uncleanly: off, and `off_for` later on again under the same name and instance ID. Its
    /// guest has lost every device; the cloud's API still names it as the holder.
    ///
    /// # Errors
    /// No such node.
    pub async fn recycle(
        &self,
        node: &str,
        disk: DiskAfter,
        off_for: Duration,
    ) -> Result<(), WorldError> {
        self.begin_recycle(node, disk, off_for)?.await;
        self.end_recycle(node);
        Ok(())
    }

    /// Begins a recycle; the future ends when the machine is on again. Then [`World::end_recycle`] is due.
    ///
    /// # Errors
    /// No such node.
    pub(crate) fn begin_recycle(
        &self,
        node: &str,
        disk: DiskAfter,
        off_for: Duration,
    ) -> Result<impl Future<Output = ()> + use<>, WorldError> {
        let kubelet = self.node(node)?.clone();
        self.agents.down(node);
        let task = tokio::spawn(async move { kubelet.recycle(disk, off_for).await });
        Ok(async move {
            if let Err(error) = task.await {
                tracing::error!(%error, "the simulated machine did not come back");
            }
        })
    }

    /// The agent starts again with its machine.
    pub(crate) fn end_recycle(&self, node: &str) {
        self.agents.up(node);
    }

    /// Creates an app with its volumes, and waits for nothing.
    ///
    /// # Errors
    /// The cloud or the API server refuses.
    pub async fn add(&self, app: &App) -> Result<(), WorldError> {
        for volume in &app.volumes {
            volume.create(&self.cloud, self.ground(), self.server())?;
        }
        for claim in &app.claims {
            self.server().insert(claim);
        }
        for object in &app.objects {
            self.create("system:admin", object).await?;
        }
        Ok(())
    }

    /// Creates an object by a request.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn create(&self, user: &str, object: &Value) -> Result<Value, WorldError> {
        self.request(
            user,
            "POST",
            &collection(object),
            "application/json",
            object,
        )
        .await
    }

    /// Sends one request.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn request(
        &self,
        user: &str,
        method: &str,
        path: &str,
        content: &str,
        body: &Value,
    ) -> Result<Value, WorldError> {
        let what = format!("{method} {path}");
        let failed = |source: kube::Error| WorldError::Kubernetes {
            what: what.clone(),
            source: Box::new(source),
        };
        let request = http::Request::builder()
            .method(method)
            .uri(path)
            .header("content-type", content)
            .body(body.to_string().into_bytes())
            .map_err(|e| failed(kube::Error::HttpError(e)))?;
        self.client_as(user).request(request).await.map_err(failed)
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn delete(&self, user: &str, path: &str, options: Value) -> Result<(), WorldError> {
        self.request(user, "DELETE", path, "application/json", &options)
            .await
            .map(drop)
    }

    /// Merges `body` into an object.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn merge(&self, user: &str, path: &str, body: &Value) -> Result<Value, WorldError> {
        self.request(user, "PATCH", path, "application/merge-patch+json", body)
            .await
    }

    /// Creates or replaces a policy for every claim.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn policy(
        &self,
        name: &str,
        mode: Mode,
        precedence: i32,
        runbook: &str,
    ) -> Result<(), WorldError> {
        let spec = json!({"mode": mode, "precedence": precedence, "runbook": runbook, "nodes": {"patienceSeconds": 60}});
        self.policy_of(name, &spec).await
    }

    /// Creates a policy with this spec.
    ///
    /// # Errors
    /// The API server refuses.
    pub async fn policy_of(&self, name: &str, spec: &Value) -> Result<(), WorldError> {
        let policy = json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "RecoveryPolicy", "metadata": {"name": name}, "spec": spec,
        });
        self.create(PERSON, &policy).await.map(drop)
    }

    /// Every VolumeRecovery, by namespace and name.
    pub fn recoveries(&self) -> Vec<VolumeRecovery> {
        let all = self.server().list("reattach.dev", "volumerecoveries", None);
        all.iter()
            .filter_map(|v| VolumeRecovery::deserialize(&**v).ok())
            .collect()
    }

    /// Pods of an app (label `app`), sorted by name.
    pub fn pods(&self, app: &str) -> Vec<Arc<Value>> {
        let pods = self.server().list("", "pods", Some(APPS));
        pods.into_iter()
            .filter(|p| p["metadata"]["labels"]["app"] == app)
            .collect()
    }

    /// Whether an app has exactly `replicas` pods, all Ready and none terminating.
    pub fn app_ready(&self, app: &str, replicas: usize) -> bool {
        let pods = self.pods(app);
        pods.len() == replicas && pods.iter().all(|p| is_ready(p) && !terminating(p))
    }

    /// Whether a node carries our quarantine.
    pub fn is_quarantined(&self, node: &str) -> bool {
        let node = self.server().read("", "nodes", "", node);
        node.is_some_and(|n| items(&n, "/spec/taints").any(|t| t["key"] == QUARANTINE_TAINT))
    }

    /// Every changing request of the agents so far, from the API server's log. Others' are dropped, so that hours of them
    /// do not fill the memory.
    pub fn agents_audit(&self) -> Vec<AuditEntry> {
        let mut kept = lock(&self.audit);
        let theirs = |e: &AuditEntry| e.user == AGENT_USER && e.verb.mutates();
        kept.extend(self.server().take_audit().into_iter().filter(theirs));
        kept.clone()
    }

    /// The instance behind a node.
    ///
    /// # Errors
    /// No such node.
    pub fn instance(&self, node: &str) -> Result<InstanceNo, WorldError> {
        let instance = self.node(node)?.instance();
        instance_no(instance).ok_or_else(|| {
            WorldError::Product(format!(
                "{instance} is no instance of the simulated cloud's"
            ))
        })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.agents.stop_all();
        if let Some(power) = lock(&self.power).take() {
            power.abort();
        }
    }
}

/// The rights that the product asks for (docs/providers.md), and no other.
fn rights(ground: Ground) -> &'static [&'static str] {
    match ground {
        Ground::Linode => &[
            "volumes:read_write",
            "linodes:read_write",
            "events:read_only",
        ],
        Ground::Ebs => &[
            "ec2:DescribeVolumes",
            "ec2:DescribeInstances",
            "ec2:DescribeSnapshots",
            "ec2:DetachVolume",
            "ec2:StopInstances",
            "ec2:StartInstances",
            "ec2:CreateSnapshot",
        ],
    }
}

/// A running machine of the cluster. EC2 boots none by itself.
fn new_instance(ground: Ground, name: &str, number: u64) -> NewInstance {
    let mut new = ground.node(NewInstance::new(name).with_id(number));
    new.watchdog_enabled = ground == Ground::Linode;
    new
}

/// The collection that an object belongs to.
fn collection(object: &Value) -> String {
    let (version, kind) = (
        text(object, "/apiVersion"),
        text(object, "/kind").to_lowercase(),
    );
    let root = if version.contains('/') {
        format!("/apis/{version}")
    } else {
        format!("/api/{version}")
    };
    let plural = match kind.strip_suffix('y') {
        Some(stem) => format!("{stem}ies"),
        None => format!("{kind}s"),
    };
    match text(object, "/metadata/namespace") {
        "" => format!("{root}/{plural}"),
        namespace => format!("{root}/namespaces/{namespace}/{plural}"),
    }
}
