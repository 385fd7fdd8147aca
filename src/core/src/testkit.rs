//! Builder of well-formed evidence for tests: a phantom attachment (class B) at Linode, which modifiers turn into
//! every other case. Behind the feature `testkit`; never part of a shipped binary.
//!
//! ```
//! use reattach_core::testkit::Case;
//! let case = Case::deployment().cloud(|c| c.holders.clear());
//! assert!(case.diagnosis().verdict.to_string().starts_with("class C"));
//! ```

mod plans;

use crate::authority::{Asker, Ceiling, Mandate, NodeRules};
use crate::cloud::{
    CloudInstance, CloudScope, CloudVolume, DeviceIdentity, InstanceState, OwnerTags, VolumeState,
};
use crate::evidence::{
    AccessMode, AttachmentFacts, ClaimFacts, ClaimPhase, ClaimRef, CsiSource, EventFacts, Evidence,
    NodeClaim, NodeFacts, OwnerFacts, PodFacts, SeenMachine, VolumeFacts, VolumeIdentity,
};
use crate::fact::{Fact, Known, Source};
use crate::guest::{
    Answer, DeviceUsers, GuestCsiVolume, GuestDevice, GuestInventory, GuestMount, Level, ScanResult,
};
use crate::ids::{BootId, NodeName, ObjectName, Uid};
use crate::outage::DownNode;
use crate::policy::Mode;
use crate::workload::{ScalePath, TemplateFacts, WorkloadFacts, WorkloadRef};
use jiff::{SignedDuration, Timestamp};
use std::collections::{BTreeMap, BTreeSet};

/// The node that holds the volume.
pub const NODE: &str = "lke-1";
/// The instance behind it.
pub const INSTANCE: &str = "26000001";
/// Another, healthy node.
pub const OTHER_NODE: &str = "lke-2";
/// The instance behind that.
pub const OTHER_INSTANCE: &str = "26000002";
/// An instance that was a node of the cluster.
pub const FORMER_INSTANCE: &str = "26000009";
/// The UID of the recovery whose challenge is open.
pub const RECOVERY: &str = "recovery-1";
/// The epoch of that challenge.
pub const EPOCH: u64 = 1;
/// How the volume calls itself to a guest.
pub const SERIAL: &str = "pvc-redis";
/// The VolumeAttachment of [`NODE`].
pub const ATTACHMENT: &str = "csi-redis-1";

/// The moment at which the evidence was collected: the time of the founding incident.
pub fn start() -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_626_006_000)
}

/// Evidence and the moment at which it is judged.
#[derive(Clone, Debug, PartialEq)]
pub struct Case {
    /// The evidence.
    pub evidence: Evidence,
    /// When it is judged.
    pub now: Timestamp,
}

fn kubernetes(what: &str) -> Source {
    Source::Kubernetes(what.to_owned())
}

fn value<T>(fact: &mut Fact<T>) -> &mut T {
    match &mut fact.value {
        Known::Present(value) => value,
        _ => panic!(
            "testkit: the fact from {} is not present, so it cannot be modified",
            fact.source
        ),
    }
}

fn ago(seconds: i64) -> Timestamp {
    start() - SignedDuration::from_secs(seconds)
}

impl Case {
    /// A phantom under a Deployment with one replica.
    pub fn deployment() -> Self {
        Self::of("Deployment", "deployments", "redis-6f7d9c5b8-x2x4p", false)
    }

    /// A phantom under a StatefulSet with one replica, OrderedReady.
    pub fn statefulset() -> Self {
        Self::of("StatefulSet", "statefulsets", "redis-0", true)
    }

    fn of(kind: &str, plural: &str, pod: &str, ordered: bool) -> Self {
        let at = start();
        let claim_name = ObjectName::new("default", "redis-data");
        let node = NodeName::from(NODE);
        let pod = PodFacts {
            name: ObjectName::new("default", pod),
            uid: "pod-1".into(),
            node: Some(node.clone()),
            phase: "Running".to_owned(),
            ready: false,
            ready_since: Some(ago(300)),
            containers_running: false,
            deleting_since: None,
            created: ago(864_000),
            waiting_reason: Some("ContainerCreating".to_owned()),
            held: false,
        };
        let workload = WorkloadRef {
            api_version: "apps/v1".to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            name: ObjectName::new("default", "redis"),
            uid: "workload-1".into(),
        };
        let claim = ClaimFacts {
            uid: "claim-1".into(),
            access_modes: vec![AccessMode::ReadWriteOnce],
            phase: ClaimPhase::Bound,
            volume_name: Some("pvc-redis".into()),
            deleting: false,
            owners: Vec::new(),
            opted_out: None,
            storage_class: Some("linode-block-storage-retain".to_owned()),
            labels: BTreeMap::new(),
        };
        let evidence = Evidence {
            collected_at: at,
            claim_name: claim_name.clone(),
            claim: Fact::present(
                claim.clone(),
                kubernetes("PersistentVolumeClaim default/redis-data"),
                at,
            ),
            volume: Fact::present(volume(), kubernetes("PersistentVolume pvc-redis"), at),
            attachments: Fact::present(
                vec![attachment(ATTACHMENT, NODE)],
                kubernetes("VolumeAttachments"),
                at,
            ),
            pods: Fact::present(vec![pod.clone()], kubernetes("Pods of default"), at),
            workload: Fact::present(
                WorkloadFacts {
                    workload,
                    resource_version: "100".into(),
                    generation: 3,
                    deleting: false,
                    replicas: 1,
                    scaling: ScalePath::Replicas,
                    stamp: None,
                    rollout: None,
                    deletes_claims_when_scaled: false,
                    ordered,
                    autoscalers: Vec::new(),
                    managers: Vec::new(),
                    pods: vec![pod],
                    claims: vec![(claim_name.name, Some(claim))],
                    template: TemplateFacts::default(),
                    pod_dry_run: Some(Ok(())),
                    dry_run_held: None,
                    emptydirs_expendable: false,
                    not_remade: None,
                },
                kubernetes(&format!("{kind} default/redis")),
                at,
            ),
            nodes: BTreeMap::new(),
            guests: BTreeMap::new(),
            asked: Some((RECOVERY.into(), EPOCH)),
            answers: BTreeMap::new(),
            cloud_id: Some("5551".into()),
            unreadable_handle: None,
            identity: Fact::present(own_handle(), kubernetes("PersistentVolumes"), at),
            machines: Fact::present(
                [
                    (NODE, INSTANCE),
                    (OTHER_NODE, OTHER_INSTANCE),
                    ("lke-9", FORMER_INSTANCE),
                ]
                .map(machine)
                .into(),
                kubernetes("NodeVolumeReports"),
                at,
            ),
            cloud_volume: Fact::present(cloud_volume(), Source::Cloud("linode".to_owned()), at),
            instances: BTreeMap::new(),
            power: BTreeMap::new(),
            cloud_scope: None,
            snapshots: None,
            jobs: Fact::present(Vec::new(), Source::Cloud("linode".to_owned()), at),
            orders_expire_after_seconds: None,
            hold_policy: None,
            budgets: None,
            node_pods: BTreeMap::new(),
            node_losses: BTreeMap::new(),
            sightings: Vec::new(),
            declaration: None,
            nothing_under_way: None,
            node_claims: BTreeMap::new(),
            down: None,
            mandate: Some(Fact::present(mandate(), kubernetes("rights"), at)),
            events: vec![EventFacts {
                pod: ObjectName::new("default", "redis-0"),
                reason: "FailedMount".to_owned(),
                component: "kubelet".to_owned(),
                message: NO_DEVICE.to_owned(),
                last_seen: ago(20),
            }],
        };
        let mut case = Self { evidence, now: at };
        case.evidence.events[0].pod = value(&mut case.evidence.pods)[0].name.clone();
        let mut case = case.with_node(NODE, INSTANCE);
        value(
            case.evidence
                .nodes
                .get_mut(&node)
                .unwrap_or_else(|| panic!("testkit: no such node")),
        )
        .volumes_attached = vec![volume_name()];
        case.node(|n| n.volumes_in_use = vec![volume_name()])
            .answer(ScanResult::NoDevice)
    }

    /// Adds a healthy node with its instance and an agent that sees nothing.
    pub fn with_node(mut self, name: &str, instance: &str) -> Self {
        let at = start();
        let facts = NodeFacts {
            name: name.into(),
            uid: format!("uid-{name}").into(),
            instance: Some(instance.into()),
            ready: true,
            boot_id: boot(name),
            volumes_in_use: Vec::new(),
            volumes_attached: Vec::new(),
            taints: Vec::new(),
            lease_renewed: Some(ago(4)),
            csi_drivers: vec!["linodebs.csi.linode.com".into()],
            out_of_service_by_us: false,
            quarantined: false,
            labels: BTreeMap::new(),
            maintenance: None,
        };
        let guest = GuestInventory {
            boot_id: boot(name),
            booted_at: ago(300),
            level: Level::Basic,
            devices: Vec::new(),
            csi_volumes: Vec::new(),
            unreadable: Vec::new(),
        };
        let cloud = CloudInstance {
            id: instance.into(),
            label: name.to_owned(),
            state: InstanceState::Running,
            auto_restart: true,
            owner: OwnerTags::default(),
        };
        self.evidence.nodes.insert(
            name.into(),
            Fact::present(facts, kubernetes(&format!("Node {name}")), at),
        );
        self.evidence.guests.insert(
            name.into(),
            Fact::present(guest, Source::Agent(name.to_owned()), ago(200)),
        );
        self.evidence.instances.insert(
            instance.into(),
            Fact::present(cloud, Source::Cloud("linode".to_owned()), at),
        );
        self
    }

    /// The node is the only one that is down, for ten minutes now, and [`Self::deployment`]'s claim the only one on it.
    pub fn alone_down(mut self, node: &str) -> Self {
        let at = start();
        let down = DownNode {
            name: node.into(),
            since: ago(600),
            fell: true,
            changed: Some(ago(600)),
            silent: true,
        };
        self.evidence.down = Some(Fact::present(vec![down], kubernetes("Nodes"), at));
        let used = vec![NodeClaim {
            claim: self.evidence.claim_name.clone(),
            opted_out: None,
        }];
        let fact = Fact::present(used, kubernetes("the claims of the node's pods"), at);
        self.evidence.node_claims.insert(node.into(), fact);
        self
    }

    /// Changes what the recovery may do.
    pub fn mandate(mut self, change: impl FnOnce(&mut Mandate)) -> Self {
        match &mut self.evidence.mandate {
            Some(fact) => change(value(fact)),
            None => panic!("testkit: there is no mandate"),
        }
        self
    }

    /// Changes the claim, also as the workload's own list of claims shows it.
    pub fn claim(mut self, change: impl Fn(&mut ClaimFacts)) -> Self {
        change(value(&mut self.evidence.claim));
        self.workload(|w| {
            for (_, claim) in &mut w.claims {
                claim.iter_mut().for_each(&change);
            }
        })
    }

    /// Changes the PersistentVolume.
    pub fn volume(mut self, change: impl FnOnce(&mut VolumeFacts)) -> Self {
        change(value(&mut self.evidence.volume));
        self
    }

    /// Changes what else leads to the cloud volume.
    pub fn identity(mut self, change: impl FnOnce(&mut VolumeIdentity)) -> Self {
        change(value(&mut self.evidence.identity));
        self
    }

    /// Changes the machines that reattach saw as nodes.
    pub fn machines(mut self, change: impl FnOnce(&mut Vec<SeenMachine>)) -> Self {
        change(value(&mut self.evidence.machines));
        self
    }

    /// Changes the VolumeAttachment of [`NODE`].
    pub fn attachment(self, change: impl FnOnce(&mut AttachmentFacts)) -> Self {
        self.attachments(|all| {
            all.first_mut()
                .map(change)
                .unwrap_or_else(|| panic!("testkit: no VolumeAttachment"))
        })
    }

    /// Changes the list of VolumeAttachments.
    pub fn attachments(mut self, change: impl FnOnce(&mut Vec<AttachmentFacts>)) -> Self {
        change(value(&mut self.evidence.attachments));
        self
    }

    /// Changes the pod, also as the workload's own list of pods shows it.
    pub fn pod(self, change: impl Fn(&mut PodFacts)) -> Self {
        self.pods(|pods| {
            pods.first_mut()
                .map(&change)
                .unwrap_or_else(|| panic!("testkit: no pod"))
        })
    }

    /// Changes the list of pods, also as the workload's own list shows it.
    pub fn pods(mut self, change: impl Fn(&mut Vec<PodFacts>)) -> Self {
        change(value(&mut self.evidence.pods));
        if self.evidence.workload.shown().is_some() {
            change(&mut value(&mut self.evidence.workload).pods);
        }
        self
    }

    /// Changes the workload.
    pub fn workload(mut self, change: impl FnOnce(&mut WorkloadFacts)) -> Self {
        change(value(&mut self.evidence.workload));
        self
    }

    /// Changes Node [`NODE`].
    pub fn node(self, change: impl FnOnce(&mut NodeFacts)) -> Self {
        self.node_named(NODE, change)
    }

    /// Changes a Node.
    pub fn node_named(mut self, name: &str, change: impl FnOnce(&mut NodeFacts)) -> Self {
        match self.evidence.nodes.get_mut(&NodeName::from(name)) {
            Some(fact) => change(value(fact)),
            None => panic!("testkit: there is no Node {name}"),
        }
        self
    }

    /// Changes what the agent on [`NODE`] reported unasked.
    pub fn guest(mut self, change: impl FnOnce(&mut GuestInventory)) -> Self {
        match self.evidence.guests.get_mut(&NodeName::from(NODE)) {
            Some(fact) => change(value(fact)),
            None => panic!("testkit: there is no agent on {NODE}"),
        }
        self
    }

    /// Changes the cloud's view of the volume.
    pub fn cloud(mut self, change: impl FnOnce(&mut CloudVolume)) -> Self {
        change(value(&mut self.evidence.cloud_volume));
        self
    }

    /// Lets the agent on [`NODE`] answer the open challenge.
    pub fn answer(mut self, seen: ScanResult) -> Self {
        let answer = Answer {
            recovery: RECOVERY.into(),
            epoch: EPOCH,
            identity: identity(),
            boot_id: boot(NODE),
            scanned_at: ago(1),
            level: Level::Basic,
            seen,
        };
        self.evidence.answers.insert(NODE.into(), answer);
        self
    }

    /// No recovery has asked yet: only the agent's unasked report speaks.
    pub fn unasked(mut self) -> Self {
        self.evidence.asked = None;
        self.evidence.answers.clear();
        self
    }

    /// The device is there and its file system is mounted.
    pub fn device_in_use(self) -> Self {
        let users = DeviceUsers {
            mounts: vec!["/var/lib/kubelet/plugins/globalmount".to_owned()],
            ..DeviceUsers::default()
        };
        let seen = ScanResult::InUse {
            users: users.clone(),
        };
        self.guest(|g| g.devices = vec![GuestDevice { users, ..device() }])
            .with_mount(false)
            .answer(seen)
    }

    /// The device is there and nothing uses it.
    pub fn device_idle(self) -> Self {
        self.guest(|g| g.devices = vec![device()])
            .answer(ScanResult::Idle)
    }

    /// A mount of the volume is there; `dead`: over a device that is gone.
    pub fn with_mount(self, dead: bool) -> Self {
        let path = "/var/lib/kubelet/plugins/globalmount".to_owned();
        let mount = GuestMount {
            path: path.clone(),
            dev: "8:32".to_owned(),
            dead,
            read_only: false,
        };
        let case = self.guest(|g| {
            g.csi_volumes = vec![GuestCsiVolume {
                pv: Some("pvc-redis".into()),
                driver: "linodebs.csi.linode.com".into(),
                handle: "5551-pvc-redis".into(),
                pods: vec!["pod-1".into()],
                mounts: vec![mount],
            }];
        });
        if dead {
            case.answer(ScanResult::DeadMount { paths: vec![path] })
        } else {
            case
        }
    }

    /// The pod runs and is Ready.
    pub fn pod_ready(self) -> Self {
        self.pod(|p| {
            p.ready = true;
            p.containers_running = true;
            p.waiting_reason = None;
        })
    }

    /// Replaces the events by one about the pod.
    pub fn event(mut self, reason: &str, message: &str) -> Self {
        self.evidence.events.truncate(1);
        for event in &mut self.evidence.events {
            reason.clone_into(&mut event.reason);
            message.clone_into(&mut event.message);
        }
        self
    }

    /// Adds a pod on a node, of the workload or not.
    pub fn with_pod(mut self, name: &str, node: Option<&str>, own: bool) -> Self {
        let pod = PodFacts {
            name: ObjectName::new("default", name),
            uid: format!("uid-{name}").into(),
            node: node.map(NodeName::from),
            phase: "Pending".to_owned(),
            ready: false,
            ready_since: None,
            containers_running: false,
            deleting_since: None,
            created: ago(60),
            waiting_reason: None,
            held: false,
        };
        if own {
            value(&mut self.evidence.workload).pods.push(pod.clone());
        }
        let pods = value(&mut self.evidence.pods);
        pods.push(pod);
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        self
    }

    /// An owner reference of the kind and UID.
    pub fn owner(kind: &str, uid: &str) -> OwnerFacts {
        OwnerFacts {
            api_version: "apps/v1".to_owned(),
            kind: kind.to_owned(),
            name: "redis".to_owned(),
            uid: uid.into(),
        }
    }

    /// The recovery that asks.
    pub fn recovery() -> Uid {
        RECOVERY.into()
    }
}

/// The event text of the founding incident, as measured with Linode's CSI driver.
pub const NO_DEVICE: &str = "MountVolume.MountDevice failed for volume \"pvc-redis\" : rpc error: code = Internal desc = Unable to find device path out of attempted paths: [/dev/disk/by-id/linode-pvc-redis /dev/disk/by-id/scsi-0Linode_Volume_pvc-redis]";

/// The boot ID of a node's current boot.
pub fn boot(node: &str) -> BootId {
    BootId::new(format!("boot-of-{node}"))
}

/// The name of the volume in a Node's status.
pub fn volume_name() -> String {
    "kubernetes.io/csi/linodebs.csi.linode.com^5551-pvc-redis".to_owned()
}

/// The device's identity.
pub fn identity() -> DeviceIdentity {
    DeviceIdentity {
        serial: SERIAL.to_owned(),
    }
}

/// The volume's device as an agent sees it when it is there.
pub fn device() -> GuestDevice {
    GuestDevice {
        kernel_name: "sdc".to_owned(),
        dev: "8:32".to_owned(),
        identity: identity(),
        size_bytes: 10 << 30,
        users: DeviceUsers::default(),
    }
}

/// An attached VolumeAttachment of a node.
pub fn attachment(name: &str, node: &str) -> AttachmentFacts {
    AttachmentFacts {
        name: name.to_owned(),
        uid: format!("uid-{name}").into(),
        resource_version: "50".into(),
        node: node.into(),
        created: ago(864_000),
        deleting_since: None,
        attached: true,
        attach_error: None,
        detach_error: None,
    }
}

/// What a recovery may do that the controller made under a policy that allows everything.
pub fn mandate() -> Mandate {
    Mandate {
        mode: Mode::Auto,
        runbook: crate::runbook::DEFAULT_RUNBOOK.to_owned(),
        ceiling: Some(Ceiling {
            policy: "everything".to_owned(),
            mode: Mode::Auto,
            runbook: crate::runbook::DEFAULT_RUNBOOK.to_owned(),
            power_off: true,
            deletes_stuck_pods: true,
            nodes: Some(NodeRules {
                patience_seconds: 0,
                ..NodeRules::default()
            }),
        }),
        asker: Asker::Controller,
        approved: None,
        power_off: None,
        declared: None,
    }
}

fn volume() -> VolumeFacts {
    VolumeFacts {
        name: "pvc-redis".into(),
        uid: "pv-1".into(),
        claim_ref: Some(ClaimRef {
            claim: ObjectName::new("default", "redis-data"),
            uid: Some("claim-1".into()),
        }),
        csi: Some(CsiSource {
            driver: "linodebs.csi.linode.com".into(),
            handle: "5551-pvc-redis".into(),
        }),
        topology: BTreeMap::new(),
        deleting: false,
        attach_required: Some(true),
        tagged_as: BTreeSet::new(),
    }
}

/// The PersistentVolume's handle is the driver's own, and nothing else leads to the volume.
fn own_handle() -> VolumeIdentity {
    VolumeIdentity {
        canonical: Some("5551-pvc-redis".into()),
        ..VolumeIdentity::default()
    }
}

/// A machine that reattach saw as a node, in the account that tests call `account`.
pub fn machine((node, instance): (&str, &str)) -> SeenMachine {
    SeenMachine {
        instance: instance.into(),
        node: node.into(),
        node_uid: format!("uid-{node}").into(),
        cluster: "cluster-1".into(),
        boot_id: boot(node),
        scope: Some(CloudScope("account".to_owned())),
        node_gone_since: None,
    }
}

fn cloud_volume() -> CloudVolume {
    CloudVolume {
        id: "5551".into(),
        label: SERIAL.to_owned(),
        region: "eu-central".to_owned(),
        size_gib: 10,
        holders: vec![INSTANCE.into()],
        state: VolumeState::Active,
        identity: identity(),
        owner: OwnerTags::default(),
    }
}
