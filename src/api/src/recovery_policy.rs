//! `RecoveryPolicy`: which claims reattach looks after, and how far it may go.

use kube::{CustomResource, KubeSchema};
use reattach_core::authority::NodeRules;
use reattach_core::budget::StuckPods;
use reattach_core::loss::EmptyDirs;
use reattach_core::policy::Mode;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// How far reattach may go for the claims that the policy selects. Of several policies that match a claim the one with the
/// highest precedence rules; among equals the one with the most cautious mode.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "reattach.dev",
    version = "v1alpha1",
    kind = "RecoveryPolicy",
    plural = "recoverypolicies",
    shortname = "rpol",
    category = "reattach",
    derive = "PartialEq",
    doc = "RecoveryPolicy says for which claims reattach acts, and how far it may go. Without a policy that selects a claim, reattach does nothing for it by itself.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Runbook", type_ = "string", json_path = ".spec.runbook"),
    printcolumn(name = "Precedence", type_ = "integer", json_path = ".spec.precedence"),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.selector.claimLabels.size() == 0 || self.selector.namespaces.size() > 0 || (self.powerOff == 'Never' && !has(self.nodes))").message("a policy with powerOff or nodes that selects by claimLabels must name namespaces as well: the people of a namespace write the labels of its claims"))]
pub struct RecoveryPolicySpec {
    /// Which claims the policy rules. An empty selector selects every claim of the cluster.
    #[serde(default)]
    pub selector: PolicySelector,
    /// How far reattach may go. `Observe` diagnoses, `DryRun` also plans, `Approve` acts after a person's approval, `Auto`
    /// acts by itself. Default: `DryRun`, which writes nothing but reattach's own records.
    #[serde(default, deserialize_with = "mode_or_observe")]
    #[schemars(with = "ModeSchema")]
    pub mode: Mode,
    /// Name of the runbook to follow, such as `lightest-first` (every class) or `scale-to-zero` (class B (phantom
    /// attachment) alone).
    #[serde(default = "default_runbook")]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("runbook must be the name of a runbook, such as scale-to-zero"))]
    #[schemars(length(max = 63))]
    pub runbook: String,
    /// Rank among the policies that match a claim: the highest rules. Default: 0.
    #[serde(default)]
    pub precedence: i32,
    /// How many recoveries of the policy's claims may be under way at once.
    #[serde(default)]
    pub budgets: Budgets,
    /// Whether a dead node's instance may be powered off at the cloud, and powered on again. `Never` is the default.
    /// Setting another value needs the RBAC verb `poweroff`.
    #[serde(default)]
    pub power_off: PowerOffRule,
    /// Whether the volume is snapshotted before it is detached by force, where the cloud can do both (EC2). It holds for
    /// every recovery of the policy's claims, whoever asked for it. Default: `Never`.
    #[serde(default)]
    pub snapshot_before_force: SnapshotRule,
    /// Whether a pod may lose its emptyDirs when reattach ends it. An emptyDir is always deleted with its pod; a stuck pod
    /// without a running container no longer writes to it. `Lose` lets the emptyDirs of such pods go, and the plan names them.
    /// `Keep` refuses every plan that would end a pod with an emptyDir, unless its workload has the annotation
    /// `reattach.dev/expendable-emptydirs: "true"`. emptyDirs with `medium: Memory` never count. Default: `Lose`.
    #[serde(default)]
    pub empty_dirs: EmptyDirRule,
    /// What reattach does about a stuck pod whose eviction a PodDisruptionBudget refuses. `Evict` asks for the eviction again
    /// until the step's time limit is over, and then unwinds. `DeleteByUid` deletes the pod by its UID, with its own grace
    /// period, once a budget has refused for `budgetPatienceSeconds`. Only a pod that is not Ready, or whose mount is known to
    /// be dead, is evicted or deleted. Default: `Evict`.
    #[serde(default)]
    pub stuck_pods: StuckPodRule,
    /// Seconds for which a PodDisruptionBudget must have refused the eviction of a stuck pod before the pod is deleted. It
    /// counts under `stuckPods: DeleteByUid` alone. Default: 120.
    #[serde(default = "default_budget_patience")]
    #[schemars(range(min = 10, max = 3600))]
    pub budget_patience_seconds: u32,
    /// Seconds after which a recovery that waits for others, such as for the end of a provider's lock or the answer of an agent,
    /// calls for a person. Default: 1800.
    #[serde(default = "default_escalation")]
    #[schemars(range(min = 60, max = 86400))]
    pub escalate_after_seconds: u32,
    /// When an attempt that did not heal the volume is made again.
    #[serde(default)]
    pub retries: Retries,
    /// Which nodes may be fenced unattended for the policy's claims, and when. Unset: every node with the default limits if
    /// `powerOff` is not `Never`, otherwise no node. Setting it needs the RBAC verb `poweroff`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<NodePolicy>,
}

impl RecoveryPolicySpec {
    /// Do labels of claims alone choose the claims? The people of any namespace write such labels. The schema refuses such a
    /// policy with `powerOff` or `nodes`; one that was stored before the schema did lets no node be fenced.
    fn selects_by_labels_alone(&self) -> bool {
        !self.selector.claim_labels.is_empty() && self.selector.namespaces.is_empty()
    }

    /// `powerOff`, as far as it counts.
    pub fn counting_power_off(&self) -> PowerOffRule {
        if self.selects_by_labels_alone() {
            PowerOffRule::Never
        } else {
            self.power_off
        }
    }

    /// `stuckPods`, with the patience that it needs.
    pub fn stuck_pods(&self) -> StuckPods {
        match self.stuck_pods {
            StuckPodRule::Evict => StuckPods::Evict,
            StuckPodRule::DeleteByUid => StuckPods::DeleteByUid {
                after_seconds: self.budget_patience_seconds,
            },
        }
    }

    /// `nodes`, as far as they count.
    pub fn counting_nodes(&self) -> Option<&NodePolicy> {
        self.nodes
            .as_ref()
            .filter(|_| !self.selects_by_labels_alone())
    }
}

/// When an attempt that did not heal a volume is made again. The first pause is 10 s after an attempt that had no effect and a
/// minute after one that failed; each further pause is twice as long.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Retries {
    /// Largest number of attempts that reattach makes by itself for one problem, the first included. Unset: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub attempts: Option<u32>,
    /// Longest pause between two attempts, in seconds. Default: 3600.
    #[serde(default = "default_longest_pause")]
    #[schemars(range(min = 10, max = 86400))]
    pub longest_pause_seconds: u32,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            attempts: None,
            longest_pause_seconds: default_longest_pause(),
        }
    }
}

fn default_longest_pause() -> u32 {
    3600
}

/// Which nodes may be fenced, and how.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodePolicy {
    /// Labels that a Node must carry to be fenced, such as `pool: workers`. Empty: every node may be fenced.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = { "type": "string", "maxLength": 63 }))]
    pub match_labels: BTreeMap<String, String>,
    /// Seconds for which reattach must have seen the Node not Ready before it powers the machine off. Choose more than a boot
    /// takes.
    #[serde(default = "default_patience")]
    #[schemars(range(min = 0, max = 86400))]
    pub patience_seconds: u32,
    /// Largest number of nodes that may have gone down within 15 minutes of each other, this one included, for a machine to
    /// be powered off. More are taken for a fault of the network, the control plane or a rollout.
    #[serde(default = "default_together")]
    #[schemars(range(min = 1, max = 1000))]
    pub most_together: u32,
    /// What happens to a node that carries a claim which is opted out of reattach. `Respect` leaves the node alone and is
    /// the default; `Override` fences it.
    #[serde(default)]
    pub opt_outs: OptOutRule,
}

impl Default for NodePolicy {
    fn default() -> Self {
        Self {
            match_labels: BTreeMap::new(),
            patience_seconds: default_patience(),
            most_together: default_together(),
            opt_outs: OptOutRule::default(),
        }
    }
}

impl From<&NodePolicy> for NodeRules {
    fn from(policy: &NodePolicy) -> Self {
        Self {
            match_labels: policy.match_labels.clone(),
            patience_seconds: policy.patience_seconds,
            most_together: policy.most_together,
            override_opt_outs: policy.opt_outs == OptOutRule::Override,
        }
    }
}

/// What it means for a node that a claim on it is opted out.
#[derive(
    schemars::JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
)]
pub enum OptOutRule {
    /// The node is not fenced.
    #[default]
    Respect,
    /// The node is fenced, and the pod of the opted-out claim stops with it.
    Override,
}

fn default_patience() -> u32 {
    NodeRules::default().patience_seconds
}

fn default_together() -> u32 {
    NodeRules::default().most_together
}

/// Whether instances may be powered off.
#[derive(
    schemars::JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
)]
pub enum PowerOffRule {
    /// Never: a person powers it off, or declares that it cannot write.
    #[default]
    Never,
    /// Off, and left off.
    Allowed,
    /// Off, and on again once the volume is free.
    AllowedAndOn,
}

/// Whether a volume is snapshotted before it is detached by force.
#[derive(
    schemars::JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
)]
pub enum SnapshotRule {
    /// No snapshot is made.
    #[default]
    Never,
    /// One is begun and waited for, half an hour at most; the detach goes on without it where it fails.
    BestEffort,
    /// Nothing is detached by force before one is complete; where it fails the recovery ends, and calls for a person.
    Required,
}

/// What reattach does about a stuck pod whose eviction a PodDisruptionBudget refuses.
#[derive(
    schemars::JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
)]
pub enum StuckPodRule {
    /// It asks for the eviction again.
    #[default]
    Evict,
    /// It deletes the pod by its UID, with its own grace period.
    DeleteByUid,
}

fn default_budget_patience() -> u32 {
    120
}

/// Whether a pod may lose its emptyDirs when reattach ends it.
#[derive(
    schemars::JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
)]
pub enum EmptyDirRule {
    /// It may, where no container of it runs. The plan names the emptyDirs.
    #[default]
    Lose,
    /// It may not, unless its workload declares them expendable.
    Keep,
}

impl From<EmptyDirRule> for EmptyDirs {
    fn from(rule: EmptyDirRule) -> Self {
        match rule {
            EmptyDirRule::Lose => Self::Lose,
            EmptyDirRule::Keep => Self::Keep,
        }
    }
}

fn default_escalation() -> u32 {
    1800
}

fn default_runbook() -> String {
    reattach_core::runbook::DEFAULT_RUNBOOK.to_owned()
}

/// Which claims a policy selects. Every given part must match.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySelector {
    /// Names of the namespaces whose claims are selected. Empty: every namespace.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    pub namespaces: Vec<String>,
    /// Labels that the claim must carry. The people of a namespace write them, so a policy with `powerOff` or `nodes` must
    /// name namespaces as well.
    #[serde(default)]
    #[schemars(extend("maxProperties" = 64, "additionalProperties" = { "type": "string", "maxLength": 63 }))]
    pub claim_labels: BTreeMap<String, String>,
    /// Names of the StorageClasses whose claims are selected. Empty: every StorageClass.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    pub storage_classes: Vec<String>,
    /// Names of the CSI drivers whose claims are selected, such as `linodebs.csi.linode.com`. Empty: every driver that a
    /// provider knows.
    #[serde(default)]
    #[schemars(length(max = 256), inner(length(max = 253)))]
    pub drivers: Vec<String>,
}

/// How many recoveries may be under way at once. Beyond a budget a recovery waits; it is not dropped. A recovery that has
/// changed nothing yet and waits for something else does not count.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Budgets {
    /// Largest number of recoveries under way in the whole cluster. A recovery beyond it waits. Default: 10.
    #[serde(default = "default_cluster")]
    #[schemars(range(min = 1, max = 100))]
    pub cluster: u32,
    /// Largest number of recoveries under way on one node. A recovery beyond it waits. Default: 5.
    #[serde(default = "default_node")]
    #[schemars(range(min = 1, max = 100))]
    pub node: u32,
}

fn default_cluster() -> u32 {
    10
}

fn default_node() -> u32 {
    5
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            cluster: default_cluster(),
            node: default_node(),
        }
    }
}

/// A mode of another version must not spoil the list that it is in: it reads as the most cautious of ours.
pub(crate) fn mode_or_observe<'de, D: Deserializer<'de>>(from: D) -> Result<Mode, D::Error> {
    Ok(Mode::deserialize(&serde_json::Value::deserialize(from)?).unwrap_or(Mode::Observe))
}

/// The schema of [`Mode`], which lives in the core crate without schema code.
#[derive(schemars::JsonSchema)]
#[allow(dead_code)]
pub(crate) enum ModeSchema {
    Observe,
    DryRun,
    Approve,
    Auto,
}
