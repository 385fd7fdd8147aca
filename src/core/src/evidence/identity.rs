//! What the cluster and the cloud say about whose the volume is, as the provider reads it.

use crate::cloud::CloudScope;
use crate::ids::{
    BootId, CloudCluster, InstanceId, NodeName, ObjectName, PvName, Uid, VolumeHandle,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// `status.phase` of a PersistentVolumeClaim.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ClaimPhase {
    /// Kubernetes has not bound it, or says nothing.
    #[default]
    Pending,
    /// Bound to a PersistentVolume.
    Bound,
    /// It was bound, and its PersistentVolume is gone.
    Lost,
}

/// `spec.claimRef` of a PersistentVolume: the claim that the volume is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClaimRef {
    /// The claim's namespace and name.
    pub claim: ObjectName,
    /// The claim's UID. None: reserved for a claim of that name, and bound to none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Uid>,
}

/// What the provider reads out of the handles and names that the cluster has for one cloud volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeIdentity {
    /// The handle that the driver gives to the volume, as the cloud describes it now. None: the cloud does not
    /// describe it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canonical: Option<VolumeHandle>,
    /// Everything else in the cluster that leads to the cloud volume, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<OtherUse>,
    /// Names in Node status, and other handles of agents' reports, that come to the cloud volume under another
    /// spelling than the claim's own.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub aliases: BTreeSet<String>,
    /// Where PersistentVolume and cloud name different regions or zones: the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<OtherRegion>,
    /// The names that this cluster has in the cloud's tags.
    #[serde(default, skip_serializing_if = "OwnClusters::is_not_asked")]
    pub own_clusters: OwnClusters,
    /// The clusters in the tags of the machine that holds the volume. Empty: it has no such tag, or it was not read.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub holder_clusters: BTreeSet<CloudCluster>,
}

/// The names that this cluster has in the cloud's tags, as the machines behind its Nodes carry them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "ownClusters",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum OwnClusters {
    /// Not read: the tags of volume and holder name no cluster, or a person accepts the name.
    #[default]
    NotAsked,
    /// Read.
    Known {
        /// The names. None: no machine that was looked at has such a tag.
        names: BTreeSet<CloudCluster>,
    },
    /// The cloud did not tell.
    Unread {
        /// Why.
        why: String,
    },
}

impl OwnClusters {
    fn is_not_asked(&self) -> bool {
        *self == Self::NotAsked
    }
}

/// A region or zone that the PersistentVolume asks for and the cloud contradicts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherRegion {
    /// What the PersistentVolume's node affinity names.
    pub asked: String,
    /// Where the cloud has the volume.
    pub is: String,
}

/// Another way in the cluster to the same cloud volume.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(
    tag = "other",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum OtherUse {
    /// Another PersistentVolume.
    PersistentVolume {
        /// Its name.
        name: PvName,
        /// The claim that it is for.
        claim: Option<ObjectName>,
        /// The VolumeAttachments that name it, as `name on node`.
        attachments: Vec<String>,
        /// The pods that name its claim.
        pods: Vec<ObjectName>,
    },
    /// A VolumeAttachment that carries the volume itself instead of a PersistentVolume's name.
    InlineAttachment {
        /// Its name.
        name: String,
        /// Its node.
        node: NodeName,
    },
}

impl OtherUse {
    /// In words, for the people of a namespace. Claims and pods of other namespaces are counted and not named: these people
    /// need not have the right to see them. By the PersistentVolume's name, those who may find the rest.
    pub(crate) fn in_words(&self, namespace: &str) -> String {
        match self {
            Self::PersistentVolume {
                name,
                claim,
                attachments,
                pods,
            } => {
                let claim = match claim {
                    Some(claim) if claim.namespace == namespace => format!("claim {claim}"),
                    Some(_) => ELSEWHERE.to_owned(),
                    None => "no claim".to_owned(),
                };
                let attachments = attachments.iter().map(|a| format!("VolumeAttachment {a}"));
                let own = pods.iter().filter(|p| p.namespace == namespace);
                let others = pods.iter().filter(|p| p.namespace != namespace).count();
                let mut parts = vec![claim];
                parts.extend(attachments);
                parts.extend(own.map(|pod| format!("pod {pod}")));
                parts.extend((others > 0).then(|| format!("pods of another namespace: {others}")));
                format!("PersistentVolume {name} ({})", parts.join(", "))
            }
            Self::InlineAttachment { name, node } => format!("VolumeAttachment {name} on {node}"),
        }
    }
}

/// Stands for a claim that the reader need not have the right to see.
pub(crate) const ELSEWHERE: &str = "a claim of another namespace";

/// A machine that reattach saw behind a Node of this cluster, kept when the Node is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeenMachine {
    /// The instance, as the cloud calls it.
    pub instance: InstanceId,
    /// The Node's name.
    pub node: NodeName,
    /// The Node's UID.
    pub node_uid: Uid,
    /// The cluster that the Node was in: the UID of namespace `kube-system`. Records that a backup brought into another
    /// cluster say nothing there.
    pub cluster: Uid,
    /// The last boot that was seen.
    pub boot_id: BootId,
    /// Credential, account and region under which the instance was seen. None: that could not be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<CloudScope>,
    /// Since when no Node has this machine. None: a Node has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_gone_since: Option<Timestamp>,
}
