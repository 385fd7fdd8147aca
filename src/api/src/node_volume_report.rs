//! `NodeVolumeReport`: questions to one node's agent and its answers.

use crate::Opaque;
use kube::{CustomResource, KubeSchema};
use reattach_core::guest::{Answer, Challenge, GuestInventory};
use serde::{Deserialize, Serialize};

/// Questions for the agent of the node that has the same name as this object. Written by the controller only.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "reattach.dev",
    version = "v1alpha1",
    kind = "NodeVolumeReport",
    plural = "nodevolumereports",
    shortname = "nvr",
    category = "reattach",
    status = "NodeVolumeReportStatus",
    derive = "PartialEq",
    printcolumn(name = "Boot", type_ = "string", json_path = ".status.inventory.bootId"),
    printcolumn(name = "Booted", type_ = "date", json_path = ".status.inventory.bootedAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct NodeVolumeReportSpec {
    /// Open challenges: one per recovery that asks this node.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub challenges: Vec<Opaque<Challenge>>,
}

/// What the agent says. Written by that node's agent only; admission checks the node name in its token.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeVolumeReportStatus {
    /// The unasked report: a hint, written on change only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Opaque<GuestInventory>>,
    /// Answers to the challenges in the spec.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub answers: Vec<Opaque<Answer>>,
    /// The spec's generation that the answers belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}
