//! The stage of the control plane tier with real nodes on it.

use crate::common::cluster::{KUBELETS, SYSTEM, Shared};
use crate::common::logs::AGENT;
use crate::common::processes::binary_path;
use crate::common::workloads::{pin, prefer};
use crate::common::{LIMIT, Stage, StageOptions, measure};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use reattach_api::{Phase, RecoveryPolicy, VolumeRecovery};
use reattach_cloud_simulator::{InstanceNo, InstanceStatus, NewInstance, VolumeNo};
use reattach_sim::manifests;
use reattach_tests_controlplane::{AuditEvent, eventually, say};
use reattach_tests_node::{
    Disk, Hypervisor, IMAGE, Machine, MachineConfig, Program, Stamps, Tools, sweep,
};
use serde_json::{Value, json};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

/// The name of the one workload, of its claim and of its pods' label.
pub const APP: &str = "redis";
/// How long a recycled machine is off.
pub const AWAY: Duration = Duration::from_secs(3);

/// One test's cluster of real kubelets. Fields are dropped in their order.
pub struct Fixture {
    machines: Vec<Arc<Mutex<Machine>>>,
    /// Gives them their devices.
    pub hypervisor: Hypervisor,
    /// Control plane, cloud, controllers.
    pub stage: Stage,
    level: &'static str,
    begun: Instant,
}

impl Fixture {
    /// `nodes` real nodes that are Ready, each with an agent, and a controller, on a cluster of its own.
    pub async fn set(nodes: u64) -> Self {
        let fixture = Self::without_controller(nodes, "basic").await;
        fixture.stage.start_controller().await;
        fixture
    }

    /// A fixture with agents of this `--level`, and no controller.
    pub async fn without_controller(nodes: u64, level: &'static str) -> Self {
        let users = (1..=nodes).map(|n| kubelet(&format!("node-{n}"))).collect();
        let options = StageOptions {
            controllers: 0,
            users,
            ..options()
        };
        Self::on(Stage::set(options).await, nodes, level).await
    }

    /// A fixture on the shared cluster of this kind, where no other fixture has this name.
    pub async fn share(shared: &'static Shared, name: &str, nodes: u64) -> Self {
        Self::on(Stage::share(shared, name, options()).await, nodes, "basic").await
    }

    async fn on(stage: Stage, nodes: u64, level: &'static str) -> Self {
        let begun = Instant::now();
        sweep().expect("what others left is gone");
        let tools = tokio::task::spawn_blocking(Tools::find)
            .await
            .expect("it ran")
            .expect("tools");
        let tools = Arc::new(tools);
        let volumes = stage.folder.join(format!("volumes-{}", stage.node_name(0)));
        let hypervisor = Hypervisor::start(stage.cloud.clone(), tools.clone(), volumes);
        let hypervisor = hypervisor.expect("a hypervisor");
        let mut fixture = Self {
            machines: Vec::new(),
            hypervisor,
            stage,
            level,
            begun,
        };
        for n in 1..=nodes {
            fixture.add_machine(n, tools.clone());
        }
        for n in 1..=nodes {
            let node = fixture.stage.node_name(n);
            fixture.await_node(&node, true).await;
            fixture.add_agent(&node).await;
        }
        fixture.stage.namespace(fixture.namespace()).await;
        fixture.say("nodes are Ready, agents run");
        fixture
    }

    /// The namespace of the workload.
    pub fn namespace(&self) -> &str {
        self.stage.name.as_deref().unwrap_or("shop")
    }

    fn add_machine(&mut self, n: u64, tools: Arc<Tools>) {
        let (name, instance) = (self.stage.node_name(n), self.stage.instance_number(n));
        let new = NewInstance::new(name.as_str()).with_id(instance);
        self.stage.cloud.create_instance(new).expect("an instance");
        // 127.A.B.N: no other process and no other machine listens there.
        let process = std::process::id();
        let address = format!(
            "127.{}.{}.{}",
            1 + process / 250 % 250,
            1 + process % 250,
            address_number()
        );
        let kubeconfig = self
            .stage
            .plane
            .kubeconfig_for(&kubelet(&name).0)
            .expect("a user");
        let config = MachineConfig {
            name: name.clone(),
            instance,
            address,
            kubeconfig,
        };
        let mut machine =
            Machine::new(config, tools, self.stage.folder.join(&name)).expect("a machine");
        machine.power_on(Disk::Kept).expect("it boots");
        for program in [Program::Containerd, Program::CsiNode, Program::Kubelet] {
            machine.start(&program).expect("it starts");
        }
        let machine = Arc::new(Mutex::new(machine));
        self.hypervisor.adopt(machine.clone());
        self.machines.push(machine);
    }

    /// The machine of a node. Not to be held across an await.
    pub fn machine(&self, node: &str) -> MutexGuard<'_, Machine> {
        let lock = |m: &'_ Arc<Mutex<Machine>>| {
            m.lock().unwrap_or_else(PoisonError::into_inner).name() == node
        };
        let found = self
            .machines
            .iter()
            .find(|m| lock(m))
            .expect("a machine of the fixture");
        found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Prints what happened, with the seconds since the fixture began.
    pub fn say(&self, what: &str) {
        say!("{:7.1} s: {what}", self.begun.elapsed().as_secs_f64());
    }

    /// Waits until a Node's condition Ready is True, or is not.
    pub async fn await_node(&self, node: &str, ready: bool) {
        let api: Api<Node> = Api::all(self.stage.admin.clone());
        let what = format!("{node} with Ready={ready}");
        let found = eventually(&what, LIMIT, async || {
            let conditions = api.get_opt(node).await.ok()??.status?.conditions?;
            let is = conditions
                .iter()
                .any(|c| c.type_ == "Ready" && c.status == "True");
            (is == ready).then_some(())
        });
        found
            .await
            .unwrap_or_else(|e| panic!("{e}\n{}", self.logs(node)));
    }

    /// A pod that stands for the DaemonSet's on a node, and the agent with that pod's token.
    async fn add_agent(&self, node: &str) {
        self.stage
            .create(json!({
                "apiVersion": "v1", "kind": "Pod",
                "metadata": {"name": format!("reattach-agent-{node}"), "namespace": SYSTEM},
                "spec": {
                    "serviceAccountName": "reattach-agent", "automountServiceAccountToken": false, "nodeName": node,
                    "hostNetwork": true, "tolerations": [{"operator": "Exists"}],
                    "containers": [{"name": "agent", "image": IMAGE, "imagePullPolicy": "Never"}],
                },
            }))
            .await;
        self.start_agent(node).await;
    }

    /// Starts the agent of a machine that has just booted.
    async fn start_agent(&self, node: &str) {
        let pod = format!("reattach-agent-{node}");
        let config = self
            .stage
            .plane
            .kubeconfig_for_service_account(SYSTEM, "reattach-agent", Some(&pod))
            .await;
        let arguments = ["--node-name", node, "--level", self.level]
            .map(str::to_owned)
            .to_vec();
        let program = Program::Agent {
            binary: binary_path("reattach-agent"),
            arguments,
            kubeconfig: config.expect("a kubeconfig"),
        };
        self.machine(node).start(&program).expect("it starts");
    }

    /// A Deployment of one canary over a new volume, on one node, that writes; answers the volume.
    pub async fn canary(&self, node: &str) -> VolumeNo {
        let volume = self.canary_unawaited(node).await;
        self.await_canary(node, 10).await;
        self.say("the canary writes");
        volume
    }

    /// As above, without waiting until it is up.
    pub async fn canary_unawaited(&self, node: &str) -> VolumeNo {
        let console = self.machine(node).path("console").display().to_string();
        self.stage
            .deployment_with(self.namespace(), APP, node, |object| {
                canary(object, &console, "/data/stamps")
            })
            .await
    }

    /// The same, and where that node cannot run it, another one may.
    pub async fn canary_anywhere(&self, node: &str, others: &[&str]) -> VolumeNo {
        let console = self.machine(node).path("console").display().to_string();
        let nodes: Vec<&str> = std::iter::once(node)
            .chain(others.iter().copied())
            .collect();
        let shape = |object: &mut Value| {
            canary(object, &console, "/data/stamps");
            prefer(object, &nodes);
        };
        let volume = self
            .stage
            .deployment_with(self.namespace(), APP, node, shape)
            .await;
        self.await_canary(node, 10).await;
        self.say("the canary writes");
        volume
    }

    /// As above, over a raw block volume.
    pub async fn raw_canary(&self, node: &str) -> VolumeNo {
        let (volume, handle) = self.stage.volume("raw");
        let pv = format!("pv-{}-{APP}", self.namespace());
        for mut object in [
            manifests::linode_volume(&pv, &handle, "", self.namespace(), APP),
            manifests::claim(self.namespace(), APP, &pv),
        ] {
            object["spec"]["volumeMode"] = json!("Block");
            self.stage.create(object).await;
        }
        let mut object = manifests::deployment(
            self.namespace(),
            APP,
            1,
            &[manifests::claim_volume("data", APP)],
        );
        pin(&mut object, node);
        let container = &mut object["spec"]["template"]["spec"]["containers"][0];
        container["volumeMounts"] = json!([]);
        container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/stamps"}]);
        canary(
            &mut object,
            &self.machine(node).path("console").display().to_string(),
            "/dev/stamps",
        );
        self.stage.create(object).await;
        self.await_canary(node, 10).await;
        self.say("the canary writes");
        volume
    }

    /// Waits until a canary has written this many acknowledged records more than now.
    pub async fn await_canary(&self, node: &str, more: usize) {
        let before = self.console(node).acknowledged().count();
        let what = format!("{more} more records of a canary on {node}");
        let found = eventually(&what, LIMIT, async || {
            (self.console(node).acknowledged().count() >= before + more).then_some(())
        });
        if let Err(e) = found.await {
            let pods = self.stage.pods(self.namespace(), APP).await;
            let pods = serde_json::to_string_pretty(&pods).unwrap_or_default();
            panic!("{e}\n{pods}\n{}", self.logs(node));
        }
    }

    /// The writes of canaries on a node, as recorded beside their volumes.
    pub fn console(&self, node: &str) -> Stamps {
        Stamps::consoles(&[self.machine(node).path("console")]).expect("records")
    }

    /// The content of the volume: read through the mount of the one pod that runs, or, of a raw one, from its device.
    async fn read_volume(&self, node: &str, volume: VolumeNo) -> Stamps {
        let pod = self.pod().await.uid().expect("a UID");
        let file = format!(
            "/var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~csi/pv-{}-{APP}/mount/stamps",
            self.namespace()
        );
        let (path, instance) = {
            let machine = self.machine(node);
            (machine.inside(&file).expect("it is on"), machine.instance())
        };
        if path.exists() {
            return Stamps::parse(&std::fs::read_to_string(&path).expect("the volume can be read"))
                .expect("records");
        }
        let device = self
            .hypervisor
            .device(instance, volume)
            .expect("the guest has the device");
        Stamps::parse_sectors(&std::fs::read(format!("/dev/{device}")).expect("it can be read"))
            .expect("records")
    }

    /// Checks on the volume and beside it that writers never overlapped and that nothing acknowledged is missing.
    async fn assert_writers_apart(&self, node: &str, volume: VolumeNo) {
        self.assert_writers_apart_at(node, node, volume).await;
    }

    /// As above, where the canary writes its console on one node and its volume is mounted on another.
    pub async fn assert_writers_apart_at(&self, console: &str, node: &str, volume: VolumeNo) {
        let console = self.console(console);
        let volume = self.read_volume(node, volume).await;
        let writers = console.one_after_another().expect("one after another");
        assert_eq!(
            volume.one_after_another().expect("one after another"),
            writers
        );
        let kept = console
            .all_in(&volume)
            .expect("nothing acknowledged is missing");
        self.say(&format!(
            "{writers} writers, one after another; all {kept} acknowledged records are on the volume"
        ));
    }

    /// The one pod of the workload.
    pub async fn pod(&self) -> Pod {
        let mut pods = self.stage.pods(self.namespace(), APP).await;
        assert_eq!(pods.len(), 1, "{pods:#?}");
        pods.remove(0)
    }

    /// The cloud recycles a machine uncleanly: it comes back with a new boot ID, without its devices, and the API still
    /// says that they are attached. Answers when the power went.
    pub async fn recycle(&self, node: &str, disk: Disk) -> Timestamp {
        self.recycle_with_agent_after(Duration::ZERO, node, disk)
            .await
    }

    /// The same, and its agent is this much later than its kubelet, as a pod of a DaemonSet may be.
    pub async fn recycle_with_agent_after(
        &self,
        late: Duration,
        node: &str,
        disk: Disk,
    ) -> Timestamp {
        let instance = self.machine(node).instance();
        self.machine(node).power_off().expect("the power goes");
        self.stage
            .cloud
            .recycle(InstanceNo(instance))
            .expect("an instance");
        let off = self.stage.cloud.now();
        self.say(&format!("{node} lost its power"));
        tokio::time::sleep(AWAY).await;
        {
            let mut machine = self.machine(node);
            machine.power_on(disk).expect("it boots");
            for program in [Program::Containerd, Program::CsiNode, Program::Kubelet] {
                machine.start(&program).expect("it starts");
            }
        }
        self.say(&format!("{node} has booted"));
        tokio::time::sleep(late).await;
        self.start_agent(node).await;
        off
    }

    /// Waits until the workload has this count, and reattach's stamp or not.
    pub async fn await_count(&self, replicas: i64, stamped: bool) {
        let what = format!("a workload at {replicas}, stamped: {stamped}");
        let there = eventually(&what, LIMIT, async || {
            (self.stage.count(self.namespace(), "Deployment", APP).await == (replicas, stamped))
                .then_some(())
        });
        there
            .await
            .unwrap_or_else(|e| panic!("{e}\n{}", self.stage.logs()));
    }

    /// The machine boots again, by the cloud's own doing, and its node's programs start.
    pub async fn boot(&self, node: &str) {
        let instance = InstanceNo(self.machine(node).instance());
        self.stage.cloud.boot(instance).expect("an instance");
        let up = async || {
            let found = self.stage.cloud.instance(instance)?;
            (found.status == InstanceStatus::Running).then_some(())
        };
        eventually("the cloud says that it runs", LIMIT, up)
            .await
            .expect("it boots");
        {
            let mut machine = self.machine(node);
            machine.power_off().expect("it is off");
            machine.power_on(Disk::Kept).expect("it boots");
            for program in [Program::Containerd, Program::CsiNode, Program::Kubelet] {
                machine.start(&program).expect("it starts");
            }
        }
        self.say(&format!("{node} has booted"));
        self.start_agent(node).await;
    }

    /// How often a kubelet has renewed its Lease.
    pub async fn heartbeats(&self, node: &str) -> usize {
        let renewal = |e: &&AuditEvent| {
            e.resource == "leases"
                && e.name.as_deref() == Some(node)
                && e.verb == "update"
                && e.took_effect()
        };
        self.stage.audit().iter().filter(renewal).count()
    }

    /// Applies a policy with this runbook, in mode Auto.
    pub async fn runbook(&self, name: &str) {
        let policies: Api<RecoveryPolicy> = Api::all(self.stage.admin.clone());
        self.stage
            .patch(
                &policies,
                self.stage.policy_name(),
                json!({"spec": {"runbook": name}}),
            )
            .await;
    }

    /// Waits until a recovery of class B has healed the workload, prints what happened when after `trouble` and how long it
    /// took without the cloud's own time, and checks that writers never overlapped, that nothing acknowledged is missing, that
    /// one guest at a time had the volume, and that nothing of reattach is left.
    pub async fn await_healed(&self, volume: VolumeNo, trouble: Timestamp) -> VolumeRecovery {
        let recovery = self
            .stage
            .await_phase(self.namespace(), APP, &[Phase::Recovered])
            .await;
        self.stage.await_ready(self.namespace(), APP, 1).await;
        self.say("Ready");
        let node = self
            .pod()
            .await
            .spec
            .and_then(|s| s.node_name)
            .expect("a node");
        self.await_canary(&node, 10).await;
        self.assert_writers_apart(&node, volume).await;
        self.stage.assert_one_holder(&[volume]);
        for (at, what) in self.moments(trouble) {
            let seconds = at.duration_since(trouble).as_secs_f64();
            self.say(&format!("  {seconds:.1} s after the trouble: {what}"));
        }
        self.stage.await_nothing_left().await;
        let pod = self.pod().await.name_any();
        measure::summary(&[self.stage.timeline(&recovery, volume, &pod)]);
        recovery
    }

    /// The course after `trouble`, from the audit log: when reattach noticed it, each effect, and the result.
    fn moments(&self, trouble: Timestamp) -> Vec<(Timestamp, String)> {
        let all = self.stage.audit();
        let events: Vec<&AuditEvent> = all
            .iter()
            .filter(|e| e.received > trouble && e.took_effect())
            .collect();
        let text =
            |e: &AuditEvent, at: &str| Some(e.body.as_ref()?.pointer(at)?.as_str()?.to_owned());
        let list = |e: &AuditEvent, at: &str| e.body.as_ref()?.pointer(at)?.as_array().cloned();
        let is =
            |e: &AuditEvent, verb: &str, resource: &str| e.verb == verb && e.resource == resource;
        let answered = |e: &AuditEvent| {
            e.user == AGENT && list(e, "/status/answers").is_some_and(|answers| !answers.is_empty())
        };
        let ready = |e: &AuditEvent| {
            let conditions = list(e, "/status/conditions").unwrap_or_default();
            e.resource == "pods"
                && e.namespace.as_deref() == Some(self.namespace())
                && conditions
                    .iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        type Wanted<'a> = &'a dyn Fn(&AuditEvent) -> bool;
        let firsts: [(&str, Wanted<'_>); 4] = [
            ("FailedMount", &|e| {
                is(e, "create", "events") && text(e, "/reason").is_some_and(|r| r == "FailedMount")
            }),
            ("recovery begun", &|e| is(e, "create", "volumerecoveries")),
            ("the agent's answer, the deciding fact", &answered),
            ("Kubernetes lets the VolumeAttachment go", &|e| {
                is(e, "delete", "volumeattachments")
            }),
        ];
        let first = |(what, wanted): (&str, Wanted<'_>)| {
            events
                .iter()
                .find(|e| wanted(e))
                .map(|e| (e.received, what.to_owned()))
        };
        let mut moments: Vec<_> = firsts.into_iter().filter_map(first).collect();
        let effect = |e: &AuditEvent| {
            let sub = e
                .subresource
                .as_deref()
                .map(|s| format!("/{s}"))
                .unwrap_or_default();
            (
                e.received,
                format!("reattach: {} {}{sub}", e.verb, e.resource),
            )
        };
        let ours = self.stage.foreign_writes(&[]);
        moments.extend(ours.iter().filter(|e| e.took_effect()).map(effect));
        moments.extend(
            events
                .iter()
                .rfind(|e| ready(e))
                .map(|e| (e.received, "Ready".to_owned())),
        );
        moments.sort();
        moments
    }

    /// The end of what everything on a node printed, for a failing test.
    pub fn logs(&self, node: &str) -> String {
        let machine = self.machine(node);
        let names = ["init", "containerd", "csi-node", "kubelet", "agent"];
        let end = |name: &str| {
            let log = machine.log(name);
            let lines: Vec<&str> = log.lines().collect();
            format!(
                "--- {node} {name}\n{}\n",
                lines[lines.len().saturating_sub(25)..].join("\n")
            )
        };
        names.map(end).concat()
    }
}

/// A number that no other machine of this process has.
fn address_number() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// Options of a stage with real nodes.
pub fn options() -> StageOptions {
    StageOptions {
        nodes: 0,
        agents: false,
        controllers: 1,
        real_nodes: true,
        ..StageOptions::default()
    }
}

/// The user that the kubelet of a node is.
pub fn kubelet(node: &str) -> (String, Vec<&'static str>) {
    (format!("system:node:{node}"), vec![KUBELETS])
}

/// Makes the one container of a workload a canary that writes to `stamps` and to a file of its own in `console`, a folder of
/// the computer.
fn canary(object: &mut Value, console: &str, stamps: &str) {
    let spec = &mut object["spec"]["template"]["spec"];
    spec["hostNetwork"] = json!(true);
    spec["automountServiceAccountToken"] = json!(false);
    spec["terminationGracePeriodSeconds"] = json!(2);
    let volumes = spec["volumes"].as_array_mut().expect("volumes");
    volumes.push(json!({"name": "console", "hostPath": {"path": console, "type": "Directory"}}));
    let field = |path: &str| json!({"fieldRef": {"fieldPath": path}});
    let container = &mut spec["containers"][0];
    container["image"] = json!(IMAGE);
    container["imagePullPolicy"] = json!("Never");
    container["command"] = json!(["/canary", stamps, "/console/$(POD_UID)"]);
    container["env"] = json!([
        {"name": "NODE_NAME", "valueFrom": field("spec.nodeName")},
        {"name": "POD_UID", "valueFrom": field("metadata.uid")},
    ]);
    let mounts = container["volumeMounts"].as_array_mut().expect("mounts");
    mounts.push(json!({"name": "console", "mountPath": "/console"}));
}
