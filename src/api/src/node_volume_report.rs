//! `NodeVolumeReport`: questions to one node's agent and its answers.

use crate::opaque::{Opaque, UnreadableField};
use kube::{CustomResource, KubeSchema};
use reattach_core::evidence::SeenMachine;
use reattach_core::guest::{Answer, Challenge, GuestInventory};
use serde::{Deserialize, Serialize};

/// Questions for the agent of the node that has the same name as this object. Only the controller writes them.
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
    doc = "NodeVolumeReport holds the controller's questions to one node's agent, and the agent's answers about devices and mounts. Its name is that of the Node.",
    printcolumn(
        name = "Boot",
        type_ = "string",
        json_path = ".status.inventory.bootId"
    ),
    printcolumn(
        name = "Booted",
        type_ = "date",
        json_path = ".status.inventory.bootedAt"
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct NodeVolumeReportSpec {
    /// Open challenges: one numbered question for each recovery that asks this node.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub challenges: Vec<Opaque<Challenge>>,
    /// Machines that the controller saw behind the Node of this name, the newest last. They are kept when the Node is gone,
    /// so that a machine which still has a volume is known to be this cluster's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub machines: Vec<Opaque<SeenMachine>>,
}

/// What the agent says. Only that node's agent writes it; admission checks the node name in its token.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeVolumeReportStatus {
    /// What the agent sees of devices and mounts without being asked. It is written on change and proves nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventory: Option<Opaque<GuestInventory>>,
    /// Answers to the challenges in the spec, each with the number of its question.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub answers: Vec<Opaque<Answer>>,
    /// Generation of the spec that the answers belong to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// An agent's words, all of them readable.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said<'a> {
    /// The unasked report, if there is one.
    pub inventory: Option<&'a GuestInventory>,
    /// The answers.
    pub answers: Vec<&'a Answer>,
}

impl NodeVolumeReport {
    /// What the agent says. Nothing, while it has not written yet.
    ///
    /// # Errors
    /// The first part that cannot be read. The agent counts as one that has not answered then: whoever wrote something
    /// that is not understood may have meant something else by the rest, too.
    pub fn said(&self) -> Result<Said<'_>, UnreadableField> {
        let Some(status) = &self.status else {
            return Ok(Said::default());
        };
        let inventory = UnreadableField::none_in(&status.inventory, "status.inventory")?;
        let answers = UnreadableField::none_of(&status.answers, "status.answers")?;
        Ok(Said { inventory, answers })
    }
}
