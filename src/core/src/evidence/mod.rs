//! Everything that is known about one claim's volume at one moment, as a value. Each fact carries source and age.
//!
//! A collector fills it (from watch caches, live reads and the cloud); diagnosis, planning, checking and the
//! executor's next step read it. It serialises, so a fixture is a file that a person can read.

mod identity;
mod word;

use crate::authority::Mandate;
use crate::budget::{BudgetFacts, UnhealthyPods};
use crate::cloud::{
    CloudInstance, CloudJob, CloudScope, CloudSnapshot, CloudVolume, InstanceObservation,
    PowerFacts,
};
use crate::fact::{Fact, Missing, Source};
use crate::guest::{Answer, GuestInventory};
use crate::hold::hold_taint;
use crate::ids::{
    BootId, DriverName, InstanceId, NodeName, ObjectName, PvName, ResourceVersion, Uid,
    VolumeHandle, VolumeId,
};
use crate::loss::PodLoss;
use crate::outage::DownNode;
use crate::workload::WorkloadFacts;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;

pub(crate) use identity::ELSEWHERE;
pub use identity::{
    ClaimPhase, ClaimRef, OtherRegion, OtherUse, OwnClusters, SeenMachine, VolumeIdentity,
};
pub use word::{Declaration, Word};

/// How old a fact may be for a decision. Kubernetes' own status tick is 10 s; the cloud is polled every few seconds.
pub const MAX_AGE: SignedDuration = SignedDuration::from_secs(30);

/// All evidence about one claim.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// When the collection ended.
    pub collected_at: Timestamp,
    /// The claim asked about.
    pub claim_name: ObjectName,
    /// The PersistentVolumeClaim.
    pub claim: Fact<ClaimFacts>,
    /// The PersistentVolume it is bound to.
    pub volume: Fact<VolumeFacts>,
    /// Every VolumeAttachment of that PersistentVolume, sorted by name.
    pub attachments: Fact<Vec<AttachmentFacts>>,
    /// Every pod that names the claim, sorted by name.
    pub pods: Fact<Vec<PodFacts>>,
    /// The root owner of those pods. Absent: no pod has one.
    pub workload: Fact<WorkloadFacts>,
    /// The Nodes that an attachment or a pod names.
    pub nodes: BTreeMap<NodeName, Fact<NodeFacts>>,
    /// What the agents of those nodes reported.
    pub guests: BTreeMap<NodeName, Fact<GuestInventory>>,
    /// The challenge that is open, if this collection belongs to a recovery: its UID and epoch.
    pub asked: Option<(Uid, u64)>,
    /// Answers to that challenge, per node. Answers to other recoveries or epochs are left out by the collector and
    /// ignored by the readers.
    pub answers: BTreeMap<NodeName, Answer>,
    /// The cloud's volume ID, where a provider recognised the handle.
    pub cloud_id: Option<VolumeId>,
    /// Why the provider of the driver cannot read the handle, where it cannot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unreadable_handle: Option<String>,
    /// What else in the cluster leads to that cloud volume, as the provider reads the handles.
    #[serde(default = "not_collected")]
    pub identity: Fact<VolumeIdentity>,
    /// Machines behind the cloud's holders that reattach saw as Nodes of this cluster.
    #[serde(default = "not_collected")]
    pub machines: Fact<Vec<SeenMachine>>,
    /// The cloud's view of the volume.
    pub cloud_volume: Fact<CloudVolume>,
    /// The cloud's view of each instance that a node or the volume names.
    pub instances: BTreeMap<InstanceId, Fact<CloudInstance>>,
    /// The history of each such instance's power.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub power: BTreeMap<InstanceId, Fact<PowerFacts>>,
    /// Who answered for all of the cloud's words above.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_scope: Option<CloudScope>,
    /// The jobs of the volume at the provider, oldest first, without a gap up to now.
    pub jobs: Fact<Vec<CloudJob>>,
    /// After how many seconds the provider itself refuses a request that has not arrived. None: it never does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub orders_expire_after_seconds: Option<i64>,
    /// The volume's snapshots that were ordered by this recovery, oldest first. None: not asked, since its plan has no
    /// such step or has not come to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Fact<Vec<CloudSnapshot>>>,
    /// Whether the cluster can hold pods away by admission. Absent: it has no such policy. None: not asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold_policy: Option<Fact<String>>,
    /// PodDisruptionBudgets that cover pods of the claim, sorted by name. None: not read, since no pod is to be evicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budgets: Option<Fact<Vec<BudgetFacts>>>,
    /// Every pod that is bound to a node of which a holder is fenced, by name and UID: what a node-wide effect reaches.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_pods: BTreeMap<NodeName, Fact<Vec<(ObjectName, Uid)>>>,
    /// What pods on such a node would lose for good if they went away.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_losses: BTreeMap<NodeName, Fact<Vec<PodLoss>>>,
    /// What this recovery saw of instances before, as its record keeps it, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sightings: Vec<InstanceObservation>,
    /// A named human's word that a holder cannot write.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub declaration: Option<Declaration>,
    /// A named human's word that nothing which this recovery ordered is under way at the cloud.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nothing_under_way: Option<Word>,
    /// Every claim that a pod on a node of which a holder is fenced uses: what the fence would move.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_claims: BTreeMap<NodeName, Fact<Vec<NodeClaim>>>,
    /// Every Node that is not Ready. None: not read, since nothing on a whole node is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub down: Option<Fact<Vec<DownNode>>>,
    /// What the recovery may do, and by whose word. None: not read; then nothing may be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mandate: Option<Fact<Mandate>>,
    /// Events that name one of the pods, newest last.
    pub events: Vec<EventFacts>,
}

/// A claim that a pod on a node uses, or whose volume a VolumeAttachment has there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeClaim {
    /// The claim.
    pub claim: ObjectName,
    /// What keeps reattach away from it, in words: an annotation, or a policy that only observes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opted_out: Option<String>,
}

/// A PersistentVolumeClaim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimFacts {
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.accessModes`.
    pub access_modes: Vec<AccessMode>,
    /// `status.phase`. A claim that names a PersistentVolume without being bound to it has no right to it.
    #[serde(default)]
    pub phase: ClaimPhase,
    /// `spec.volumeName`: written by Kubernetes when it binds the claim, or by anybody who creates one.
    pub volume_name: Option<PvName>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// Controllers that own it (kind, name, UID).
    pub owners: Vec<OwnerFacts>,
    /// The opt-out annotation is on the claim, its namespace or its workload.
    pub opted_out: Option<String>,
    /// `spec.storageClassName`.
    pub storage_class: Option<String>,
    /// `metadata.labels`, for policy selectors.
    pub labels: BTreeMap<String, String>,
}

/// An owner reference.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerFacts {
    /// The owner's `apiVersion`.
    pub api_version: String,
    /// The owner's kind.
    pub kind: String,
    /// The owner's name.
    pub name: String,
    /// The owner's UID.
    pub uid: Uid,
}

/// An access mode of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum AccessMode {
    /// One node.
    ReadWriteOnce,
    /// One pod.
    ReadWriteOncePod,
    /// Many nodes, reading.
    ReadOnlyMany,
    /// Many nodes, writing.
    ReadWriteMany,
}

/// A PersistentVolume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeFacts {
    /// `metadata.name`.
    pub name: PvName,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.claimRef`; none if it is for no claim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim_ref: Option<ClaimRef>,
    /// `spec.csi`; none for in-tree and local volumes.
    pub csi: Option<CsiSource>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `spec.nodeAffinity.required`: for each key, every value that one of the terms allows.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub topology: BTreeMap<String, BTreeSet<String>>,
    /// `CSIDriver.spec.attachRequired`; `None` when no CSIDriver object exists (Kubernetes then attaches).
    pub attach_required: Option<bool>,
    /// Names in the cloud's tags that a person accepts for this PersistentVolume by annotation
    /// ([`crate::identity::TAGGED_AS_ANNOTATION`]).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub tagged_as: BTreeSet<String>,
}

/// `spec.csi` of a PersistentVolume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CsiSource {
    /// The driver.
    pub driver: DriverName,
    /// The handle.
    pub handle: VolumeHandle,
}

impl CsiSource {
    /// The name under which kubelet and the attach/detach controller list the volume in Node status:
    /// `kubernetes.io/csi/<driver>^<handle>` (Kubernetes `pkg/volume/util/util.go`, `GetUniqueVolumeName`).
    pub fn unique_name(&self) -> String {
        format!("kubernetes.io/csi/{}^{}", self.driver, self.handle)
    }

    /// Driver and handle of a name that [`CsiSource::unique_name`] makes. A driver's name has no `^`.
    pub fn of_unique_name(name: &str) -> Option<Self> {
        let (driver, handle) = name.strip_prefix("kubernetes.io/csi/")?.split_once('^')?;
        Some(Self {
            driver: DriverName::from(driver),
            handle: VolumeHandle::from(handle),
        })
    }
}

/// A VolumeAttachment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AttachmentFacts {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `metadata.resourceVersion`.
    pub resource_version: ResourceVersion,
    /// `spec.nodeName`.
    pub node: NodeName,
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// `metadata.deletionTimestamp`.
    pub deleting_since: Option<Timestamp>,
    /// `status.attached`.
    pub attached: bool,
    /// `status.attachError`.
    pub attach_error: Option<String>,
    /// `status.detachError`.
    pub detach_error: Option<String>,
}

/// A pod that names the claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodFacts {
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.nodeName`, once bound.
    pub node: Option<NodeName>,
    /// `status.phase`. After a reboot a stuck pod's phase is `Running`.
    pub phase: String,
    /// Condition `Ready`.
    pub ready: bool,
    /// When `Ready` last changed.
    pub ready_since: Option<Timestamp>,
    /// Some container runs, by the kubelet's last word. Says nothing when the node is unreachable.
    pub containers_running: bool,
    /// `metadata.deletionTimestamp`.
    pub deleting_since: Option<Timestamp>,
    /// `metadata.creationTimestamp`.
    pub created: Timestamp,
    /// A container waits on something that is not a volume (`ImagePullBackOff`, `CrashLoopBackOff`): its reason.
    pub waiting_reason: Option<String>,
    /// It carries [`crate::hold::HOLD_GATE`]: the scheduler leaves it alone until the gate is taken off.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub held: bool,
}

impl PodFacts {
    /// Whether the pod has ended for good (its containers will not run again).
    pub fn is_finished(&self) -> bool {
        matches!(self.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Whether it cannot come to this node: it is held away, or bound to another one for good.
    pub fn is_kept_from(&self, node: &NodeName) -> bool {
        self.is_held_away() || self.node.as_ref().is_some_and(|n| n != node)
    }

    /// Whether this PodDisruptionBudget would make Kubernetes refuse the pod's eviction now (Kubernetes
    /// `pkg/registry/core/pod/storage/eviction.go`).
    pub fn is_kept_by(&self, budget: &BudgetFacts) -> bool {
        // Pods that have not begun or have ended are evicted without a look at any budget.
        if self.phase == "Pending" || self.is_finished() || !budget.pods.contains(&self.uid) {
            return false;
        }
        let healthy = budget.current_healthy >= budget.desired_healthy;
        let unhealthy_may_go = match budget.unhealthy {
            UnhealthyPods::AlwaysAllow => true,
            UnhealthyPods::IfHealthyBudget => budget.desired_healthy > 0 && healthy,
        };
        (self.ready || !unhealthy_may_go) && budget.disruptions_allowed <= 0
    }

    /// Whether it is kept from every node by a hold of ours. A pod that was bound before is not, whatever it carries.
    pub fn is_held_away(&self) -> bool {
        self.held && self.node.is_none()
    }
}

/// A Node with its Lease and CSINode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFacts {
    /// `metadata.name`.
    pub name: NodeName,
    /// `metadata.uid`.
    pub uid: Uid,
    /// `spec.providerID`, as the provider reads it.
    pub instance: Option<InstanceId>,
    /// Condition `Ready` is `True`.
    pub ready: bool,
    /// `status.nodeInfo.bootID`.
    pub boot_id: BootId,
    /// `status.volumesInUse`.
    pub volumes_in_use: Vec<String>,
    /// Names in `status.volumesAttached`.
    pub volumes_attached: Vec<String>,
    /// Keys of `spec.taints`.
    pub taints: Vec<String>,
    /// `spec.renewTime` of the node's Lease in `kube-node-lease`, on the kubelet's clock: compare for change only.
    pub lease_renewed: Option<Timestamp>,
    /// Drivers in the CSINode, by name.
    pub csi_drivers: Vec<DriverName>,
    /// Its out-of-service taint is ours (value [`crate::names::TAINT_VALUE`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub out_of_service_by_us: bool,
    /// It carries our quarantine taint ([`crate::names::QUARANTINE_TAINT`]).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub quarantined: bool,
    /// `metadata.labels`, for the selectors of rules for nodes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The annotation by which someone says that the node is under maintenance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub maintenance: Option<String>,
}

impl NodeFacts {
    /// Whether this recovery's closing taint is on it.
    pub fn is_closed_by(&self, recovery: &Uid) -> bool {
        self.taints.contains(&hold_taint(recovery))
    }
}

/// An Event that names one of the pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EventFacts {
    /// The pod's name.
    pub pod: ObjectName,
    /// `reason`.
    pub reason: String,
    /// `source.component` or `reportingComponent`.
    pub component: String,
    /// `message` or `note`.
    pub message: String,
    /// The last time it was seen.
    pub last_seen: Timestamp,
}

/// For evidence that another version collected: what it does not say is not known.
fn not_collected<T>() -> Fact<T> {
    let nobody = Source::Kubernetes("none".to_owned());
    Fact::unknown("the evidence does not say", nobody, Timestamp::UNIX_EPOCH)
}

impl Evidence {
    /// The facts as they read at `now`.
    pub fn at(&self, now: Timestamp) -> EvidenceAt<'_> {
        EvidenceAt {
            evidence: self,
            now,
            since: Timestamp::MIN,
        }
    }

    /// Whether the cloud was away when it was asked for any of these facts.
    pub fn cloud_is_away(&self) -> bool {
        self.cloud_volume.is_away()
            || self.jobs.is_away()
            || self.snapshots.as_ref().is_some_and(Fact::is_away)
            || self.instances.values().any(Fact::is_away)
            || self.power.values().any(Fact::is_away)
    }

    /// When the cloud may be asked again, if its rate limit cut this collection short. `None`: everything was asked that had
    /// to be.
    pub fn cloud_throttled_until(&self) -> Option<Timestamp> {
        let volume = [
            self.cloud_volume.throttled_until(),
            self.jobs.throttled_until(),
        ];
        let instances = self.instances.values().map(Fact::throttled_until);
        let power = self.power.values().map(Fact::throttled_until);
        let snapshots = self.snapshots.iter().map(Fact::throttled_until);
        volume
            .into_iter()
            .chain(instances)
            .chain(power)
            .chain(snapshots)
            .flatten()
            .max()
    }

    /// The only node that a providerID maps to this instance. None: there is no such node, or more than one.
    pub fn node_of_instance(&self, instance: &InstanceId) -> Option<&NodeName> {
        let is = |f: &Fact<NodeFacts>| {
            f.shown()
                .is_some_and(|n| n.instance.as_ref() == Some(instance))
        };
        let mut all = self
            .nodes
            .iter()
            .filter(|(_, f)| is(f))
            .map(|(name, _)| name);
        all.next().filter(|_| all.next().is_none())
    }

    /// Whether one of these names of a Node's status is the volume's, under any spelling that comes to it.
    pub fn lists_volume(&self, names: &[String], csi: &CsiSource) -> bool {
        let own = csi.unique_name();
        let aliases = self.identity.shown().map(|i| &i.aliases);
        names
            .iter()
            .any(|n| *n == own || aliases.is_some_and(|a| a.contains(n)))
    }

    /// Whether a volume that an agent reports by driver and handle is this one, under any spelling that comes to it.
    pub fn is_volume(&self, driver: &DriverName, handle: &VolumeHandle, csi: &CsiSource) -> bool {
        let named = CsiSource {
            driver: driver.clone(),
            handle: handle.clone(),
        };
        self.lists_volume(&[named.unique_name()], csi)
    }
}

/// Evidence at a moment. Each read answers with the value, or why there is none: what is not known, or was read longer than
/// [`MAX_AGE`] ago, is an error and never "no".
#[derive(Clone, Copy, Debug)]
pub struct EvidenceAt<'a> {
    evidence: &'a Evidence,
    /// The moment.
    pub now: Timestamp,
    since: Timestamp,
}

/// The facts themselves, with the times at which they were read.
impl Deref for EvidenceAt<'_> {
    type Target = Evidence;

    fn deref(&self) -> &Evidence {
        self.evidence
    }
}

/// The result of reading one fact.
pub type Read<'a, T> = Result<&'a T, Missing>;

impl<'a> EvidenceAt<'a> {
    /// The facts themselves, for as long as they are borrowed.
    pub(crate) fn all(self) -> &'a Evidence {
        self.evidence
    }

    /// The same without what was read before `since`.
    pub fn since(self, since: Timestamp) -> Self {
        Self { since, ..self }
    }

    fn read<T>(self, fact: &'a Fact<T>) -> Read<'a, T> {
        if fact.at < self.since {
            Err(Missing::NeverRead)
        } else {
            fact.read(self.now, MAX_AGE)
        }
    }

    fn read_some<T>(self, fact: Option<&'a Fact<T>>) -> Read<'a, T> {
        self.read(fact.ok_or(Missing::NeverRead)?)
    }

    /// The PersistentVolumeClaim.
    pub fn claim(self) -> Read<'a, ClaimFacts> {
        self.read(&self.evidence.claim)
    }

    /// The PersistentVolume that the claim is bound to.
    pub fn volume(self) -> Read<'a, VolumeFacts> {
        self.read(&self.evidence.volume)
    }

    /// The CSI source of the PersistentVolume. None: it is not known, or the volume has none.
    pub fn csi(self) -> Option<&'a CsiSource> {
        self.volume().ok()?.csi.as_ref()
    }

    /// The VolumeAttachments of the PersistentVolume.
    pub fn attachments(self) -> Read<'a, Vec<AttachmentFacts>> {
        self.read(&self.evidence.attachments)
    }

    /// The pods that name the claim.
    pub fn pods(self) -> Read<'a, Vec<PodFacts>> {
        self.read(&self.evidence.pods)
    }

    /// The root owner of those pods.
    pub fn workload(self) -> Read<'a, WorkloadFacts> {
        self.read(&self.evidence.workload)
    }

    /// The Node of that name.
    pub fn node(self, name: &NodeName) -> Read<'a, NodeFacts> {
        self.read_some(self.evidence.nodes.get(name))
    }

    /// Every Node that was asked for, by name.
    pub fn nodes(self) -> impl Iterator<Item = (&'a NodeName, Read<'a, NodeFacts>)> {
        self.evidence
            .nodes
            .iter()
            .map(move |(name, fact)| (name, self.read(fact)))
    }

    /// What the agent of that node says. Agents report on change only, so age does not spoil a report; a boot ID that
    /// differs from the Node's does.
    pub fn guest(self, name: &NodeName) -> Read<'a, GuestInventory> {
        let failed = |why: &str| Missing::Failed {
            why: why.to_owned(),
        };
        let fact = self.evidence.guests.get(name);
        let fact = fact.ok_or_else(|| failed("no agent report was collected for this node"))?;
        let Some(report) = fact.shown() else {
            return fact.read(self.now, SignedDuration::MAX);
        };
        match self.node(name) {
            Ok(node) if report.boot_id != node.boot_id => Err(failed(
                "the agent's report is from another boot than the Node's",
            )),
            _ => Ok(report),
        }
    }

    /// What else in the cluster leads to the cloud volume.
    pub fn identity(self) -> Read<'a, VolumeIdentity> {
        self.read(&self.evidence.identity)
    }

    /// Machines behind the cloud's holders that reattach saw as Nodes of this cluster.
    pub fn machines(self) -> Read<'a, Vec<SeenMachine>> {
        self.read(&self.evidence.machines)
    }

    /// The cloud's view of the volume.
    pub fn cloud_volume(self) -> Read<'a, CloudVolume> {
        self.read(&self.evidence.cloud_volume)
    }

    /// The jobs of the volume at the provider, oldest first.
    pub fn jobs(self) -> Read<'a, Vec<CloudJob>> {
        self.read(&self.evidence.jobs)
    }

    /// The cloud's view of an instance.
    pub fn instance(self, instance: &InstanceId) -> Read<'a, CloudInstance> {
        self.read_some(self.evidence.instances.get(instance))
    }

    /// The history of an instance's power.
    pub fn power(self, instance: &InstanceId) -> Read<'a, PowerFacts> {
        self.read_some(self.evidence.power.get(instance))
    }

    /// The volume's snapshots that this recovery ordered.
    pub fn snapshots(self) -> Read<'a, Vec<CloudSnapshot>> {
        self.read_some(self.evidence.snapshots.as_ref())
    }

    /// The policy by which admission holds pods away.
    pub fn hold_policy(self) -> Read<'a, String> {
        self.read_some(self.evidence.hold_policy.as_ref())
    }

    /// PodDisruptionBudgets that cover pods of the claim.
    pub fn budgets(self) -> Read<'a, Vec<BudgetFacts>> {
        self.read_some(self.evidence.budgets.as_ref())
    }

    /// Every pod that is bound to a node of which a holder is fenced, by name and UID.
    pub fn node_pods(self, node: &NodeName) -> Read<'a, Vec<(ObjectName, Uid)>> {
        self.read_some(self.evidence.node_pods.get(node))
    }

    /// What pods on such a node would lose for good if they went away.
    pub fn node_losses(self, node: &NodeName) -> Read<'a, Vec<PodLoss>> {
        self.read_some(self.evidence.node_losses.get(node))
    }

    /// Every claim that a pod on such a node uses.
    pub fn node_claims(self, node: &NodeName) -> Read<'a, Vec<NodeClaim>> {
        self.read_some(self.evidence.node_claims.get(node))
    }

    /// Every Node that is not Ready.
    pub fn down(self) -> Read<'a, Vec<DownNode>> {
        self.read_some(self.evidence.down.as_ref())
    }

    /// What the recovery may do, and by whose word.
    pub fn mandate(self) -> Read<'a, Mandate> {
        self.read_some(self.evidence.mandate.as_ref())
    }
}
