//! A closed plan: everything that will be touched, in order, with nothing left to choose.

mod begin;
mod build;
mod identity;
mod losses;
mod nodes;
mod refusal;
mod refusals;
mod sound;
mod target;
mod vetted;

use crate::budget::{BudgetFacts, StuckPods};
use crate::cloud::DeviceIdentity;
use crate::diagnosis::{Class, Trouble};
use crate::ids::{BootId, InstanceId, NodeName, ObjectName, PlanHash, StepIx, Uid, VolumeId};
use crate::loss::AcceptedLoss;
use crate::runbook::{Holding, hash16};
use crate::steps::{EffectClass, StepKind};
use crate::workload::WorkloadRef;
use serde::{Deserialize, Serialize};

pub use begin::may_begin;
pub(crate) use build::make;
pub use build::{Allowed, Commands, Request, Snapshots};
pub use identity::refusals as identity_refusals;
pub(crate) use losses::{Accepting, accepted_losses, losses};
pub(crate) use nodes::may_keep_off;
pub use nodes::{may_touch_node, may_touch_node_later};
pub use refusal::Refusal;
pub use refusals::{before_fencing, before_holding, before_scaling, general};
pub use sound::{SoundPlan, Unsound, may_have_freed, power_orders};
pub use target::{Releases, Scope, Target};
pub use vetted::make_vetted;

/// The version of the plan's shape. An executor runs plans of its own version only ([`SoundPlan`]).
pub const PLAN_VERSION: u32 = 2;

/// A plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// The claim.
    pub claim: ObjectName,
    /// What is wrong.
    pub trouble: Trouble,
    /// The runbook's name.
    pub runbook: String,
    /// The runbook's content hash.
    pub runbook_hash: String,
    /// Everything that the plan touches or relies on, by identity.
    pub pins: Pins,
    /// The steps in order.
    pub steps: Vec<PlannedStep>,
    /// What is lost for good by them, and why it may be. Everything else that would be lost refuses the plan.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<AcceptedLoss>,
    /// What becomes of the stuck pod where a PodDisruptionBudget refuses its eviction.
    #[serde(default, skip_serializing_if = "StuckPods::is_evict")]
    pub stuck_pods: StuckPods,
    /// PodDisruptionBudgets that would have refused the eviction when the plan was made. No part of the hash.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub budgets: Vec<BudgetFacts>,
    /// The hold closes the node that has to let go by a taint, instead of holding pods away by admission.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub closes_node: bool,
    /// How long the workload will be down from the first step.
    pub downtime: Downtime,
    /// The hash of all the above.
    pub hash: PlanHash,
}

/// Identities that are fixed before the first effect (safety rule S8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pins {
    /// The claim's UID.
    pub claim: Uid,
    /// The PersistentVolume's UID.
    pub pv: Uid,
    /// The cloud volume.
    pub volume: VolumeId,
    /// What the device calls itself.
    pub identity: DeviceIdentity,
    /// Its size.
    pub size_gib: u64,
    /// The instance that holds it.
    pub holder: InstanceId,
    /// The node of that instance; the one that waits for the volume, if none speaks for the instance.
    pub node: NodeName,
    /// That node's boot; none if the Node does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<BootId>,
    /// The VolumeAttachment that is to go; none if no VolumeAttachment speaks for the holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attachment: Option<PinnedAttachment>,
    /// The workload.
    pub workload: WorkloadRef,
    /// Its count before.
    pub replicas: i32,
    /// Every pod of it, by name and UID.
    pub pods: Vec<(ObjectName, Uid)>,
    /// What a node-wide effect reaches besides (safety rule S7).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_wide: Option<NodeWide>,
}

/// A VolumeAttachment by name and UID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinnedAttachment {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: Uid,
}

/// Everything on a node that is fenced as a whole.
///
/// A plan stands in the claim's namespace, whose people need not have the right to read anything of another one. So
/// objects of other namespaces are pinned and counted here, and not named: a pod by its UID, a volume by a hash.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeWide {
    /// Every pod of the claim's namespace that is bound to the node, by name and UID. Plans of earlier versions name
    /// those of other namespaces, too.
    pub pods: Vec<(ObjectName, Uid)>,
    /// Every pod of another namespace that is bound to the node, by UID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_pods: Vec<Uid>,
    /// Every volume in the node's `volumesAttached`: the claim's own by Kubernetes' unique name, each other one by
    /// [`volume_mark`].
    pub volumes: Vec<String>,
    /// Every claim of the claim's namespace that a pod on the node uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims: Vec<ObjectName>,
    /// Every claim of another namespace that a pod on the node uses, by [`claim_mark`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub other_claims: Vec<String>,
}

impl NodeWide {
    /// What is on a node, as a plan for a claim of `namespace` pins it. `own` is the unique name of the claim's volume.
    pub fn of(
        namespace: &str,
        own: Option<&str>,
        pods: &[(ObjectName, Uid)],
        volumes: &[String],
        claims: &[ObjectName],
    ) -> Self {
        let (mut named, others): (Vec<_>, Vec<_>) = pods
            .iter()
            .cloned()
            .partition(|(name, _)| name.namespace == namespace);
        let mut other_pods: Vec<Uid> = others.into_iter().map(|(_, uid)| uid).collect();
        let pin = |name: &String| {
            if Some(name.as_str()) == own {
                name.clone()
            } else {
                volume_mark(name)
            }
        };
        let mut volumes: Vec<String> = volumes.iter().map(pin).collect();
        // The order in which an API lists them must not change the plan's hash.
        named.sort();
        other_pods.sort();
        volumes.sort();
        let (mut claims, others): (Vec<_>, Vec<_>) = claims
            .iter()
            .cloned()
            .partition(|claim| claim.namespace == namespace);
        let mut other_claims: Vec<String> = others.iter().map(claim_mark).collect();
        claims.sort();
        claims.dedup();
        other_claims.sort();
        other_claims.dedup();
        Self {
            pods: named,
            other_pods,
            volumes,
            claims,
            other_claims,
        }
    }

    /// Whether the plan pins claims. Plans of earlier versions do not, and a node that is fenced has at least the plan's own.
    pub fn pins_claims(&self) -> bool {
        !self.claims.is_empty() || !self.other_claims.is_empty()
    }

    /// Whether the claim is pinned.
    pub fn lists_claim(&self, claim: &ObjectName) -> bool {
        self.claims.contains(claim) || self.other_claims.contains(&claim_mark(claim))
    }

    /// Whether the pod is pinned.
    pub fn lists_pod(&self, pod: &(ObjectName, Uid)) -> bool {
        self.pods.contains(pod) || self.other_pods.contains(&pod.1)
    }

    /// Whether the volume with this unique name is pinned.
    pub fn lists_volume(&self, unique_name: &str) -> bool {
        let mark = volume_mark(unique_name);
        self.volumes.iter().any(|v| v == unique_name || *v == mark)
    }

    /// The volumes that are pinned by their unique name.
    pub fn named_volumes(&self) -> impl Iterator<Item = &str> {
        // A unique name has the driver and the handle, with `^` between them.
        self.volumes
            .iter()
            .map(String::as_str)
            .filter(|v| v.contains('^'))
    }

    /// How many pods are pinned.
    pub fn pod_count(&self) -> usize {
        self.pods.len() + self.other_pods.len()
    }
}

/// Stands for a volume of a node in a plan whose readers need not know it: a hash of the unique name.
pub fn volume_mark(unique_name: &str) -> String {
    hash16(&unique_name)
}

/// Stands for a claim of another namespace in a plan whose readers need not know it: a hash of its name.
pub fn claim_mark(claim: &ObjectName) -> String {
    hash16(claim)
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedStep {
    /// Its kind.
    pub kind: StepKind,
    /// What will happen, for people.
    pub what: String,
    /// What must hold before.
    pub precondition: String,
    /// What a person would type instead.
    pub command: String,
    /// What could go wrong.
    pub risk: String,
    /// How its end is seen.
    pub observed_by: String,
    /// What may happen after a crash in the middle.
    pub effect_class: EffectClass,
    /// It fails after so many seconds.
    pub deadline_seconds: u32,
    /// For waits: the next step takes over after so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience_seconds: Option<u32>,
    /// The run goes on without this step where it fails or is not done by its deadline.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub best_effort: bool,
}

/// Expected downtime in seconds, counted from the first step. The pod is down already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Downtime {
    /// When Kubernetes' own detach works.
    pub typical_seconds: u32,
    /// When the cloud detach is needed.
    pub with_cloud_detach_seconds: u32,
}

impl Pins {
    /// The name of the VolumeAttachment that is to go; empty if there is none.
    pub fn attachment_name(&self) -> &str {
        self.attachment.as_ref().map_or("", |a| a.name.as_str())
    }

    /// Whether this UID is the pinned VolumeAttachment's.
    pub fn is_attachment(&self, uid: &Uid) -> bool {
        self.attachment.as_ref().is_some_and(|a| a.uid == *uid)
    }
}

impl Plan {
    /// The problem class.
    pub fn class(&self) -> Class {
        self.trouble.class()
    }

    /// How it keeps the claim's pods away.
    pub fn holding(&self) -> Holding {
        Holding::by(self.closes_node, |kind| self.find(kind).is_some())
    }

    /// What has to let go before pods may use the volume. Where only the node is closed, pods may wait elsewhere.
    pub fn releases(&self) -> Releases {
        if self.closes_node {
            Releases::OldHolder
        } else {
            self.trouble.releases()
        }
    }

    /// The step that lets pods of the claim come again.
    pub fn closing(&self) -> Option<StepIx> {
        match self.holding() {
            Holding::ByGate | Holding::ByTaint => self.find(StepKind::Lift),
            Holding::AtZero => self.find(StepKind::Restore),
            Holding::Nothing => None,
        }
    }

    /// The position of the only step of a kind, if there is one.
    pub fn find(&self, kind: StepKind) -> Option<StepIx> {
        let at = self.steps.iter().position(|s| s.kind == kind)?;
        u32::try_from(at).ok().map(StepIx)
    }

    /// The hash that the content has, to compare with [`Plan::hash`].
    pub fn computed_hash(&self) -> PlanHash {
        let mut content = self.clone();
        content.hash = PlanHash::from("");
        // How many pods are healthy now is no part of what will be done, and must not take an approval away.
        content.budgets.clear();
        // How the agent came to say it is no part of what will be done.
        if let Trouble::Phantom { confirmed, .. } = &mut content.trouble {
            *confirmed = true;
        }
        PlanHash::from(hash16(&content))
    }
}

/// Eight hexadecimal digits that name a list of strings: for object names.
pub fn short_hash(parts: &[String]) -> String {
    hash16(&parts).chars().take(8).collect()
}
