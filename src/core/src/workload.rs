//! The workload that owns the stuck pod, as far as scaling it to zero and back needs to know it.

use crate::evidence::{ClaimFacts, PodFacts};
use crate::ids::{ObjectName, ResourceVersion, Uid};
use crate::stamp::Stamp;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A workload's kind and name. Everything that has a `/scale` subresource can be one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadRef {
    /// `apiVersion`, such as `apps/v1`.
    pub api_version: String,
    /// Kind, such as `StatefulSet`.
    pub kind: String,
    /// The resource's plural name, such as `statefulsets`.
    pub plural: String,
    /// Namespace and name.
    pub name: ObjectName,
    /// `metadata.uid`.
    pub uid: Uid,
}

impl fmt::Display for WorkloadRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.name)
    }
}

/// A workload as read from the API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadFacts {
    /// Which workload.
    pub workload: WorkloadRef,
    /// `metadata.resourceVersion` at that read.
    pub resource_version: ResourceVersion,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    /// `spec.replicas` (1 when unset, as the API server defaults it).
    pub replicas: i32,
    /// How the count can be changed.
    pub scaling: ScalePath,
    /// The restore stamp on it, if any. `Err` is a stamp that cannot be read: someone edited it.
    pub stamp: Option<Result<Stamp, String>>,
    /// A rollout or partition in progress, in words.
    pub rollout: Option<String>,
    /// `persistentVolumeClaimRetentionPolicy.whenScaled` of a StatefulSet is `Delete`.
    pub deletes_claims_when_scaled: bool,
    /// `podManagementPolicy` of a StatefulSet is `OrderedReady`.
    pub ordered: bool,
    /// HorizontalPodAutoscalers that target it.
    pub autoscalers: Vec<AutoscalerFacts>,
    /// Who else owns the count (KEDA, Flux, Argo CD, an operator), in the words that found it.
    pub managers: Vec<ManagerFacts>,
    /// All of its pods, not only those that use the claim.
    pub pods: Vec<PodFacts>,
    /// All claims that its pods use, by name. `None`: named, and not found.
    pub claims: Vec<(String, Option<ClaimFacts>)>,
    /// What its pod template carries.
    pub template: TemplateFacts,
    /// The server's answer to a dry-run create of one pod from the template. `None`: not asked yet.
    pub pod_dry_run: Option<Result<(), PodRefusal>>,
    /// Whether that pod, with the stuck claim, came back with our scheduling gate: what proves a hold (DESIGN 6, P1).
    /// `None`: not asked, or refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dry_run_held: Option<bool>,
    /// The owner declared that its emptyDirs may be lost (annotation `reattach.dev/expendable-emptydirs`).
    pub emptydirs_expendable: bool,
    /// Why no pod would be made in the place of one that goes away, in words: a Job at its limit of failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_remade: Option<String>,
}

/// Why the API server would not accept a new pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRefusal {
    /// The API server's message, or what is missing.
    pub why: String,
    /// Authorization refused the request: the user who asked has no right to create pods. The pod itself was not judged.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub no_right: bool,
}

/// How a workload's count can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ScalePath {
    /// `spec.replicas` of the main resource: stamp and count in one PATCH.
    Replicas,
    /// Only the `/scale` subresource: stamp first, then scale with the stamp's resourceVersion.
    ScaleSubresource,
    /// Neither: it cannot be scaled.
    None,
}

/// What a pod template carries that a scale to zero would lose or run into.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TemplateFacts {
    /// Names of emptyDir volumes on disk. One with `medium: Memory` is not among them: its data is gone with the containers.
    pub empty_dirs: Vec<String>,
    /// Names of generic ephemeral volumes.
    pub ephemeral_volumes: Vec<String>,
    /// Containers with a preStop hook.
    pub pre_stop: Vec<String>,
    /// Why a closing taint would not keep its pods from a node, in words: they tolerate every taint, or name the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ignores_taints: Option<String>,
}

/// A HorizontalPodAutoscaler.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalerFacts {
    /// Its name.
    pub name: String,
    /// `spec.minReplicas` (1 when unset).
    pub min_replicas: i32,
}

/// Something that owns the replica count besides the workload's author.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManagerFacts {
    /// What kind of manager.
    pub kind: ManagerKind,
    /// The object, label or annotation that showed it.
    pub evidence: String,
    /// Its own pause is set and was verified.
    pub paused: bool,
}

/// Known kinds of managers of a replica count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ManagerKind {
    /// A KEDA ScaledObject.
    Keda,
    /// Flux (kustomize or helm toolkit labels).
    Flux,
    /// Argo CD (tracking annotation or instance label with self-heal possible).
    ArgoCd,
    /// A custom resource owns the workload.
    Operator,
}

impl fmt::Display for ManagerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keda => "KEDA",
            Self::Flux => "Flux",
            Self::ArgoCd => "Argo CD",
            Self::Operator => "an operator",
        })
    }
}
