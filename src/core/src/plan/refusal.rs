//! Every refusal: why a plan may not be made or may not go on (safety rules S1, S2, S7, S9). Data, printed as sentences.

use crate::authority::Denial;
use crate::check::Violation;
use crate::diagnosis::Class;
use crate::evidence::AccessMode;
use crate::fact::MissingFact;
use crate::identity::IdentityProblem;
use crate::ids::InstanceId;
use crate::loss::Loss;
use serde::{Deserialize, Serialize};

/// Why reattach will not act. The fields are what the sentences name. Each variant carries what the sentence needs.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(
    tag = "refusal",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
#[allow(missing_docs)] // The sentences above the variants name the fields.
pub enum Refusal {
    /// S2: claims would be deleted by the scale to zero.
    #[error(
        "{workload} deletes its claims when scaled down (persistentVolumeClaimRetentionPolicy.whenScaled is Delete); set it to Retain first"
    )]
    ScaleDeletesClaims { workload: String },
    /// S2: a claim of the workload is being deleted.
    #[error("claim {claim} is being deleted; it is deleted for good once its pod is gone")]
    ClaimDeleting { claim: String },
    /// S2: something other than the StatefulSet owns the claim.
    #[error("claim {claim} is owned by {owner}, which may delete it while no pod uses it")]
    ClaimForeignOwner { claim: String, owner: String },
    /// S2: a claim that the pods name does not exist.
    #[error("claim {claim} of {workload} does not exist, so its pods would not start again")]
    ClaimMissing { workload: String, claim: String },
    /// S2: a generic ephemeral volume dies with its pod.
    #[error(
        "{workload} has the generic ephemeral volume {volume}, whose data is deleted with its pod"
    )]
    EphemeralVolume { workload: String, volume: String },
    /// S2: an emptyDir dies with its pod, and nobody accepted that.
    #[error(
        "{workload} has the emptyDir {volume}, which is deleted with its pod and may not be lost; set emptyDirs of the RecoveryPolicy to Lose, or annotate the workload with reattach.dev/expendable-emptydirs=true"
    )]
    EmptyDir { workload: String, volume: String },
    /// S2: an emptyDir that a container still uses.
    #[error(
        "pod {pod} has a running container and the emptyDir {volume}, which is in use and would be deleted with the pod; reattach goes on once no container of the pod runs, or once the workload is annotated with reattach.dev/expendable-emptydirs=true"
    )]
    EmptyDirInUse { pod: String, volume: String },
    /// S2: more than one replica would stop.
    #[error(
        "{workload} has {replicas} replicas and all of them would stop; a person may accept that by naming the workload (--confirm-workload {short})"
    )]
    ManyReplicas {
        workload: String,
        short: String,
        replicas: i32,
    },
    /// S2: an OrderedReady StatefulSet with several stuck pods never reaches zero.
    #[error("{workload} stops its pods in order and waits for each to be Ready, and {count} of them are not: scaling to zero would never finish", count = pods.len())]
    OrderedStuck { workload: String, pods: Vec<String> },
    /// S2: a rollout or a partition.
    #[error("{workload} is being rolled out ({what}); scaling to zero would complete the rollout")]
    RolloutInProgress { workload: String, what: String },
    /// S2: a preStop hook of a healthy pod would run.
    #[error(
        "pod {pod} is Ready and has a preStop hook (container {container}), whose effect is not known"
    )]
    PreStopHook { pod: String, container: String },
    /// S2: an autoscaler that may keep the workload at zero.
    #[error(
        "HorizontalPodAutoscaler {name} has minReplicas 0, so the autoscaler itself may choose zero"
    )]
    AutoscalerMinZero { name: String },
    /// S2: something else owns the count.
    #[error(
        "{manager} owns the replica count of {workload} ({evidence}) and would scale it back at once; pause it first"
    )]
    CountManaged {
        workload: String,
        manager: String,
        evidence: String,
    },
    /// S2: pods could not come back.
    #[error(
        "a pod made from the template of {workload} would be refused now ({why}), so the workload would not come back"
    )]
    PodWouldBeRefused {
        workload: String,
        why: String,
        /// The user who asked has no right to create pods; another user may have it.
        #[serde(default)]
        no_right: bool,
    },
    /// S2: the dry-run create was not made.
    #[error("whether a new pod of {workload} would be accepted is not known yet")]
    PodDryRunMissing { workload: String },
    /// The workload is at zero already, and not by us.
    #[error(
        "{workload} already has 0 replicas, and not by reattach; scale it up by hand if it should run"
    )]
    AtZero { workload: String },
    /// Another recovery works on the same workload.
    #[error(
        "{workload} was scaled to zero by another recovery ({recovery}); wait for that recovery"
    )]
    StampedByOther { workload: String, recovery: String },
    /// The stamp cannot be read.
    #[error("{workload}: {why}; look at it and remove the annotation by hand")]
    StampUnreadable { workload: String, why: String },
    /// The workload is being deleted.
    #[error("{workload} is being deleted")]
    WorkloadDeleting { workload: String },
    /// Bare pods are not recreated.
    #[error(
        "pod {pod} has no owner that would make a new one; reattach never deletes or recreates a bare pod"
    )]
    BarePod { pod: String },
    /// The cluster cannot hold pods away by admission.
    #[error(
        "this cluster has no MutatingAdmissionPolicy reattach-hold (it needs Kubernetes 1.36 or newer and reattach's own manifests), so new pods could not be kept away while a volume whose node may be gone is freed; runbook scale-to-zero heals class B (phantom attachment) only"
    )]
    NoHoldPolicy,
    /// The cluster cannot hold pods away by admission, and a taint would not keep this workload's pods from the node.
    #[error(
        "this cluster has no MutatingAdmissionPolicy reattach-hold, and closing the node by a taint would not keep pods of {workload} away ({why}); use runbook scale-to-zero"
    )]
    IgnoresTaints { workload: String, why: String },
    /// Jobs, DaemonSets and the like.
    #[error("{workload} cannot be scaled to zero and back")]
    NotScalable { workload: String },
    /// Another pod uses the claim.
    #[error("pod {pod} uses the claim too and does not belong to {workload}")]
    ForeignPod { pod: String, workload: String },
    /// S1: shared volumes.
    #[error("the claim allows {modes:?}: a volume that several nodes may use is never detached")]
    SharedAccess { modes: Vec<AccessMode> },
    /// S1: no access mode.
    #[error(
        "the claim names no access mode, so it is not known whether one writer is all there may be"
    )]
    NoAccessMode,
    /// S1: several cloud holders.
    #[error("the cloud names {count} holders of the volume ({list}); with more than one holder reattach touches nothing", count = holders.len(), list = holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))]
    ManyHolders { holders: Vec<InstanceId> },
    /// S7: another node has a VolumeAttachment of the volume too.
    #[error(
        "VolumeAttachment {attachment} of node {node} names the volume too; with two VolumeAttachments reattach touches nothing"
    )]
    OtherAttachment { attachment: String, node: String },
    /// A fact is not known.
    #[error("{what} is not known ({why}); reattach does nothing until it is")]
    Missing { what: String, why: String },
    /// The agent has not answered this recovery's challenge.
    #[error("the agent on {node} has not yet answered this recovery's challenge")]
    Unchallenged { node: String },
    /// This build or runbook has no remedy for the class.
    #[error("this is class {}, and runbook {runbook} does not heal it: {advice}", class.named())]
    NoRemedy {
        class: Class,
        runbook: String,
        advice: String,
    },
    /// The cause is one that only people can mend.
    #[error("{trouble}: {advice}; reattach goes on by itself once that is done")]
    NeedsPeople { trouble: String, advice: String },
    /// S1: no proof yet, and no step of the plan can bring one about.
    #[error("there is no proof yet that instance {holder} cannot write ({why}); {advice}")]
    NoProofYet {
        holder: InstanceId,
        why: String,
        advice: String,
    },
    /// S7: too much under way.
    #[error("{running} recoveries are under way {scope} and the budget is {limit}; this one waits")]
    Budget {
        scope: String,
        running: u32,
        limit: u32,
    },
    /// S7: the cloud's API does not answer.
    #[error("the cloud's API does not answer ({why}); nothing is done without it")]
    ProviderOutage { why: String },
    /// The opt-out annotation.
    #[error("{what} carries reattach.dev/opt-out")]
    OptedOut { what: String },
    /// S8: something that the plan pinned has changed.
    #[error("{what} changed since the plan was made (was {was}, is {is}); a new plan is needed")]
    PinChanged {
        what: String,
        was: String,
        is: String,
    },
    /// S9: someone else is at work on the node.
    #[error(
        "node {node} carries the taint {taint}: another remediator or a person is at work there"
    )]
    OthersAtWork { node: String, taint: String },
    /// S2: no pod would come in the place of the one that goes.
    #[error(
        "no new pod of {workload} would be made in the place of one that goes away ({why}); raise the limit, or wait until its pod has ended"
    )]
    NotRemade { workload: String, why: String },
    /// S2: another pod on the node would lose something.
    #[error(
        "pod {pod} is on node {node} and would go away with the fence, and {loss}; move the pod away or delete it yourself, and reattach goes on"
    )]
    LostOnNode {
        node: String,
        pod: String,
        loss: Loss,
    },
    /// S10: it is not certain whose the claim, the volume or the machine is.
    #[error("{problem}")]
    Identity { problem: IdentityProblem },
    /// S2: pods of other namespaces on the node would lose something. The people of the claim's namespace read this, and need
    /// not have the right to see those pods.
    #[error(
        "{pods} of other namespaces on node {node} would go away with the fence and lose something for good; kubectl reattach plan names them to whoever may see them; once they are moved away or deleted, reattach goes on",
        pods = if *pods == 1 { "1 pod".to_owned() } else { format!("{pods} pods") }
    )]
    LostElsewhereOnNode {
        node: String,
        pods: usize,
        may_pass: bool,
    },
    /// Nobody's word reaches so far.
    #[error("{denial}")]
    Denied { denial: Denial },
    /// S7: the node is under maintenance.
    #[error(
        "node {node} carries the annotation {annotation}, so it is under maintenance and is not fenced; reattach goes on by itself once the annotation is off"
    )]
    Maintenance { node: String, annotation: String },
    /// S7: a claim on the node is opted out.
    #[error(
        "claim {claim} is on node {node} and is opted out by {what}, so the node is not fenced; take the opt-out off, move the claim's pod away, or set spec.nodes.optOuts of the RecoveryPolicy to Override"
    )]
    OptedOutOnNode {
        node: String,
        claim: String,
        what: String,
    },
    /// S7: the node may only be booting.
    #[error(
        "node {node} has been down for {seconds} s and may only be booting, so its machine is not powered off before {patience} s (spec.nodes.patienceSeconds); shut the machine down at the cloud if it must go faster"
    )]
    MayBeBooting {
        node: String,
        seconds: i64,
        patience: u32,
    },
    /// S7: the outage brake.
    #[error(
        "node {node} went down together with {list}, which points to the network, the control plane or a rollout; reattach powers none of them off (spec.nodes.mostTogether is {limit}); repair that, or shut down at the cloud each machine that is certainly dead", list = others.join(", ")
    )]
    DownTogether {
        node: String,
        others: Vec<String>,
        limit: u32,
    },
    /// S7: the kubelet lives.
    #[error(
        "kubelet on node {node} is alive and reports its node as not Ready, so its pods may write and reattach does not power the machine off unattended; repair the node (kubectl describe node {node}), or shut its machine down at the cloud if it must go"
    )]
    KubeletPosts { node: String },
    /// The independent checker objects to the plan that was made: planner or checker is wrong.
    #[error(
        "the plan that reattach made breaks a rule of reattach's own safety checker ({}). This is a fault of reattach. Nothing is done by this plan. Please send an issue to reattach's repository, with the output of kubectl reattach --version and of kubectl reattach plan -o json for this claim", violations.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    )]
    Vetoed { violations: Vec<Violation> },
}

impl From<MissingFact> for Refusal {
    fn from(MissingFact { what, why }: MissingFact) -> Self {
        Self::Missing { what, why }
    }
}

impl Refusal {
    /// Whether it is about what only looks like a dead node: a boot, a kubelet that still posts, an outage.
    pub fn is_brake(&self) -> bool {
        matches!(
            self,
            Self::MayBeBooting { .. } | Self::DownTogether { .. } | Self::KubeletPosts { .. }
        )
    }

    /// Whether waiting may remove the refusal without anyone's help.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Budget { .. }
                | Self::ProviderOutage { .. }
                | Self::Missing { .. }
                | Self::Unchallenged { .. }
                | Self::PodDryRunMissing { .. }
                | Self::StampedByOther { .. }
                | Self::RolloutInProgress { .. }
                | Self::PodWouldBeRefused { .. }
                | Self::NeedsPeople { .. }
                | Self::NoProofYet { .. }
                | Self::EmptyDirInUse { .. }
                | Self::Maintenance { .. }
                | Self::MayBeBooting { .. }
                | Self::DownTogether { .. }
                | Self::KubeletPosts { .. }
        ) || match self {
            Self::LostOnNode { loss, .. } => loss.may_pass(),
            Self::LostElsewhereOnNode { may_pass, .. } => *may_pass,
            Self::Denied { denial } => denial.may_pass(),
            _ => false,
        }
    }
}
