//! What a remedy is about: whose hold on the volume is ended, and who may keep theirs.

use crate::diagnosis::{StuckCause, Trouble};
use crate::evidence::EvidenceAt;
use crate::ids::{InstanceId, NodeName, ObjectName, Uid};
use crate::plan::Refusal;

/// What has to let go before pods may use the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Releases {
    /// Everyone: the pod that wants the volume is on the very node that holds it.
    Everyone,
    /// The old holder: whoever waits elsewhere may keep pod and VolumeAttachment.
    OldHolder,
}

impl Trouble {
    /// What has to let go.
    pub fn releases(&self) -> Releases {
        match self {
            Self::Phantom { .. } | Self::Lost { .. } => Releases::Everyone,
            Self::DeadNode { .. } | Self::StuckRecord { .. } | Self::Orphan { .. } => {
                Releases::OldHolder
            }
        }
    }

    /// Whether it is the same trouble: class, node and holder.
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::DeadNode {
                    node: a,
                    instance: i,
                },
                Self::DeadNode {
                    node: b,
                    instance: j,
                },
            ) => a == b && i == j,
            (
                Self::Phantom {
                    at: a,
                    attachment: u,
                    ..
                },
                Self::Phantom {
                    at: b,
                    attachment: v,
                    ..
                },
            )
            | (
                Self::Lost {
                    at: a,
                    attachment: u,
                },
                Self::Lost {
                    at: b,
                    attachment: v,
                },
            ) => a.node == b.node && u == v,
            (
                Self::StuckRecord {
                    attachment: u,
                    node: a,
                    ..
                },
                Self::StuckRecord {
                    attachment: v,
                    node: b,
                    ..
                },
            ) => a == b && u == v,
            (Self::Orphan { holder: a, .. }, Self::Orphan { holder: b, .. }) => a == b,
            _ => false,
        }
    }
}

/// Whose hold on the volume is ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The holder's node; the node that waits for the volume, where none speaks for the holder.
    pub node: NodeName,
    /// The instance.
    pub holder: InstanceId,
    /// The VolumeAttachment that is to go.
    pub attachment: Option<Uid>,
    /// The pod that is stuck there.
    pub pod: Option<ObjectName>,
    releases: Releases,
}

/// Where a plan may find what it does not expect.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The node that it is about.
    pub node: &'a NodeName,
    /// What has to let go.
    pub releases: Releases,
    /// The instance that it is about.
    pub holder: &'a InstanceId,
}

impl Target {
    /// What a remedy for this trouble is about.
    ///
    /// # Errors
    /// The refusal where that is not known.
    pub fn of(evidence: EvidenceAt<'_>, trouble: &Trouble) -> Result<Self, Refusal> {
        let releases = trouble.releases();
        let on = |node: &NodeName| {
            let all = evidence.attachments().ok();
            all.and_then(|all| all.iter().find(|a| a.node == *node))
                .map(|a| a.uid.clone())
        };
        Ok(match trouble {
            Trouble::Phantom { at, attachment, .. } | Trouble::Lost { at, attachment } => Self {
                node: at.node.clone(),
                holder: at.instance.clone(),
                attachment: Some(attachment.clone()),
                pod: Some(at.pod.clone()),
                releases,
            },
            Trouble::DeadNode { node, instance } => Self {
                node: node.clone(),
                holder: instance.clone(),
                attachment: on(node),
                pod: None,
                releases,
            },
            Trouble::StuckRecord {
                attachment,
                node,
                cause,
            } => Self {
                node: node.clone(),
                holder: recorded_holder(evidence, node, cause)?,
                attachment: attachment.clone(),
                pod: None,
                releases,
            },
            Trouble::Orphan { holder, wanted_by } => Self {
                node: evidence
                    .node_of_instance(holder)
                    .unwrap_or(wanted_by)
                    .clone(),
                holder: holder.clone(),
                attachment: None,
                pod: None,
                releases,
            },
        })
    }

    /// Where the plan looks.
    pub fn scope(&self) -> Scope<'_> {
        Scope {
            node: &self.node,
            releases: self.releases,
            holder: &self.holder,
        }
    }
}

/// The instance for which a stuck VolumeAttachment speaks: the one behind its Node; where the Node is gone, the cloud's
/// holder, if no other node speaks for that.
fn recorded_holder(
    evidence: EvidenceAt<'_>,
    node: &NodeName,
    cause: &StuckCause,
) -> Result<InstanceId, Refusal> {
    let missing = |what: String, why: &str| Refusal::Missing {
        what,
        why: why.to_owned(),
    };
    if let Ok(facts) = evidence.node(node) {
        let unknown = || {
            missing(
                format!("the instance behind Node {node}"),
                "its providerID names none",
            )
        };
        return facts.instance.clone().ok_or_else(unknown);
    }
    if !matches!(cause, StuckCause::NodeMissing { .. }) {
        return Err(missing(format!("Node {node}"), "no fresh read of it"));
    }
    let cloud = evidence.cloud_volume().ok();
    let Some(holder) = cloud.and_then(|c| c.holders.first()) else {
        return Err(missing(
            "a holder of the volume".to_owned(),
            "the cloud names none; the attach/detach controller clears the record of a missing Node within 6 minutes",
        ));
    };
    match evidence.node_of_instance(holder) {
        None => super::identity::was_node(evidence, holder, node).map(|()| holder.clone()),
        Some(other) => Err(missing(
            format!("the instance that was Node {node}"),
            &format!("the cloud's holder {holder} is Node {other}"),
        )),
    }
}
