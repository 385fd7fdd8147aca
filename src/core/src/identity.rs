//! Whose the volume is and whose the machine is (safety rule S10): claim and PersistentVolume are bound to each other
//! by UID, the handle is the driver's own for the volume that the cloud describes, one PersistentVolume leads to that
//! volume, one Node to each machine, the holder is a machine of this cluster, and the cloud's tags name no other owner.
//!
//! # Guarantees
//! Names, handles and provider IDs are text that others write. Nothing here compares such a text with another: the
//! collector has the provider read them, and this module compares the cloud's identifiers and Kubernetes' UIDs. Tags are
//! compared as the text that they are, and only ever refuse: a tag that fits makes nothing certain.
//!
//! # Errors
//! [`IdentityProblem`], one for each thing that does not fit together.

use crate::cloud::{CloudScope, OwnerTags};
use crate::evidence::{ClaimFacts, EvidenceAt, VolumeFacts};
use crate::fact::Missing;
use crate::ids::{
    BootId, CloudCluster, DriverName, InstanceId, NodeName, ObjectName, PvName, Uid, VolumeHandle,
    VolumeId,
};
use crate::plan::Refusal;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// The annotation of a PersistentVolume that accepts names in the tags of its cloud volume: of clusters, of
/// PersistentVolumes, and of claims as `namespace/name`, with commas between them. A PersistentVolume belongs to no
/// namespace, so whoever may annotate it has a right in the whole cluster.
pub const TAGGED_AS_ANNOTATION: &str = "reattach.dev/tagged-as";

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
    fn in_words(&self, namespace: &str) -> String {
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
const ELSEWHERE: &str = "a claim of another namespace";

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

/// Why it is not certain whose the volume or the machine is.
#[derive(
    Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(
    tag = "problem",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
#[allow(missing_docs)] // The sentences above the variants name the fields.
pub enum IdentityProblem {
    /// The PersistentVolume is for another claim.
    #[error(
        "claim {claim} names PersistentVolume {volume}, which is bound to {}; reattach treats it as no volume of {claim}",
        bound_to.as_ref().map_or_else(|| ELSEWHERE.to_owned(), |other| format!("claim {other}"))
    )]
    OtherClaim {
        claim: ObjectName,
        volume: PvName,
        /// The other claim; none for one of another namespace, whose name the people of this one need not know.
        bound_to: Option<ObjectName>,
    },
    /// The PersistentVolume is for a claim of this name that was deleted since.
    #[error(
        "claim {claim} names PersistentVolume {volume}, which is bound to an earlier claim of that name (UID {bound_to}); reattach treats it as no volume of {claim}"
    )]
    OtherUid {
        claim: ObjectName,
        volume: PvName,
        bound_to: Uid,
    },
    /// Kubernetes has not bound the two to each other.
    #[error(
        "claim {claim} names PersistentVolume {volume}, and Kubernetes has not bound the two to each other; reattach waits for that and treats it as no volume of {claim}"
    )]
    NotBound { claim: ObjectName, volume: PvName },
    /// The handle is another spelling than the driver's own.
    #[error(
        "volume handle {handle} is not the one that driver {driver} gives to cloud volume {volume} ({canonical}); reattach frees no volume through another spelling of its handle; if the volume was renamed at the cloud, give it its old name back"
    )]
    Alias {
        driver: DriverName,
        handle: VolumeHandle,
        canonical: VolumeHandle,
        volume: VolumeId,
    },
    /// More than one PersistentVolume leads to the cloud volume.
    #[error(
        "cloud volume {volume} is also used through {others}; with more than one way to it reattach touches nothing; delete what should not use it"
    )]
    ManyVolumes { volume: VolumeId, others: String },
    /// Several Nodes say that they are one machine.
    #[error(
        "Nodes {} all have the providerID of instance {instance}; reattach cannot tell which of them is the machine and touches nothing; delete the Nodes that are not",
        names(nodes)
    )]
    ManyNodes {
        instance: InstanceId,
        nodes: Vec<NodeName>,
    },
    /// The holder is no machine of this cluster.
    #[error(
        "instance {holder}, which has the volume, is behind no Node of this cluster, and reattach never saw it as one; it may be another cluster's machine, so reattach frees nothing from it; a person with the right to declare in the whole cluster may say that it is this cluster's (kubectl reattach declare --of-this-cluster)"
    )]
    ForeignHolder { holder: InstanceId },
    /// The holder's tags name another cluster than the tags of the other machines do. A Node's providerID is text.
    #[error(
        "instance {holder}, which has the volume, is tagged as cluster {}'s, and this cluster's other machines are tagged as {}'s; whatever its Node says, it may be another cluster's machine, so reattach frees nothing from it; correct its tags, or let a person with the right to declare in the whole cluster say that it is this cluster's (kubectl reattach declare --of-this-cluster)",
        Some3(tagged),
        Some3(own)
    )]
    HolderOfOtherCluster {
        holder: InstanceId,
        tagged: BTreeSet<CloudCluster>,
        own: BTreeSet<CloudCluster>,
    },
    /// The instance was another Node's machine than the one whose record is stuck.
    #[error(
        "instance {holder}, which has the volume, was seen as Node {seen_as} and never as {node}, whose VolumeAttachment is stuck; reattach frees nothing from it"
    )]
    OtherNode {
        holder: InstanceId,
        seen_as: NodeName,
        node: NodeName,
    },
    /// The cloud has the volume in another region or zone.
    #[error(
        "PersistentVolume {volume} asks for {asked}, and the cloud has its volume in {is}; they cannot be one volume, so reattach touches nothing"
    )]
    OtherRegion {
        volume: PvName,
        asked: String,
        is: String,
    },
    /// The volume's tags name another cluster than the tags of this cluster's machines do.
    #[error(
        "cloud volume {volume} is tagged as cluster {}'s, and this cluster's machines are tagged as {}'s; reattach frees no volume that may be another cluster's; if it is this cluster's, correct the volume's tags, or accept the name by the annotation {TAGGED_AS_ANNOTATION} on PersistentVolume {name}",
        Some3(tagged),
        Some3(own)
    )]
    OtherCluster {
        volume: VolumeId,
        name: PvName,
        tagged: BTreeSet<CloudCluster>,
        own: BTreeSet<CloudCluster>,
    },
    /// The volume's tags name another PersistentVolume.
    #[error(
        "cloud volume {volume} is tagged as made for PersistentVolume {}, and PersistentVolume {name} uses it; reattach frees no volume that may be meant for another one; if it was taken over on purpose, correct the volume's tags, or accept the name by the annotation {TAGGED_AS_ANNOTATION} on PersistentVolume {name}",
        Some3(tagged)
    )]
    MadeForOtherVolume {
        volume: VolumeId,
        name: PvName,
        tagged: BTreeSet<PvName>,
    },
    /// The volume's tags name another claim, and no PersistentVolume.
    #[error(
        "cloud volume {volume} is tagged as made for {}, and PersistentVolume {name}, which uses it, is for another claim; reattach frees no volume that may be meant for another claim; if it was taken over on purpose, correct the volume's tags, or accept the name by the annotation {TAGGED_AS_ANNOTATION} on PersistentVolume {name}",
        made_for.as_ref().map_or_else(|| ELSEWHERE.to_owned(), |other| format!("claim {other}"))
    )]
    MadeForOtherClaim {
        volume: VolumeId,
        name: PvName,
        /// The claim in the tags; none for one of another namespace, whose name the people of this one need not know.
        made_for: Option<ObjectName>,
    },
}

impl IdentityProblem {
    /// Whether claim and PersistentVolume are not bound to each other.
    pub fn is_about_the_binding(&self) -> bool {
        match self {
            Self::OtherClaim { .. } | Self::OtherUid { .. } | Self::NotBound { .. } => true,
            Self::Alias { .. }
            | Self::ManyVolumes { .. }
            | Self::ManyNodes { .. }
            | Self::ForeignHolder { .. }
            | Self::OtherNode { .. }
            | Self::OtherRegion { .. }
            | Self::OtherCluster { .. }
            | Self::HolderOfOtherCluster { .. }
            | Self::MadeForOtherVolume { .. }
            | Self::MadeForOtherClaim { .. } => false,
        }
    }
}

/// Prints the first three names and how many more there are: others choose number and length of a volume's tags.
struct Some3<'a, T>(&'a BTreeSet<T>);

impl<T: fmt::Display> fmt::Display for Some3<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 3;
        let shown: Vec<String> = self.0.iter().take(SHOWN).map(ToString::to_string).collect();
        f.write_str(&shown.join(", "))?;
        match self.0.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

fn names(nodes: &[NodeName]) -> String {
    nodes
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Whether Kubernetes has bound this claim and this PersistentVolume to each other.
///
/// # Errors
/// The one problem that keeps them apart.
pub fn binding(
    name: &ObjectName,
    claim: &ClaimFacts,
    volume: &VolumeFacts,
) -> Result<(), IdentityProblem> {
    let (claim_name, volume_name) = (name.clone(), volume.name.clone());
    let not_bound = || IdentityProblem::NotBound {
        claim: name.clone(),
        volume: volume.name.clone(),
    };
    let Some(reserved) = &volume.claim_ref else {
        return Err(not_bound());
    };
    if reserved.claim != *name {
        let bound_to =
            Some(reserved.claim.clone()).filter(|other| other.namespace == name.namespace);
        return Err(IdentityProblem::OtherClaim {
            claim: claim_name,
            volume: volume_name,
            bound_to,
        });
    }
    match &reserved.uid {
        Some(uid) if *uid == claim.uid => {}
        Some(uid) => {
            let bound_to = uid.clone();
            return Err(IdentityProblem::OtherUid {
                claim: claim_name,
                volume: volume_name,
                bound_to,
            });
        }
        None => return Err(not_bound()),
    }
    if claim.phase != ClaimPhase::Bound || claim.volume_name.as_ref() != Some(&volume.name) {
        return Err(not_bound());
    }
    Ok(())
}

/// The binding of the evidence's claim and PersistentVolume. `Ok` where one of the two is not known to be there: the
/// readers of those facts say so.
///
/// # Errors
/// The one problem that keeps them apart.
pub fn binding_in(evidence: EvidenceAt<'_>) -> Result<(), IdentityProblem> {
    let claim = evidence.claim().ok();
    let volume = evidence.volume().ok();
    match (claim, volume) {
        (Some(claim), Some(volume)) => binding(&evidence.claim_name, claim, volume),
        _ => Ok(()),
    }
}

/// Every reason why it is not certain whose claim, volume and machine are. `holder` is the instance that a plan is
/// about, besides those that the cloud names. Empty: all is certain.
pub fn refusals(evidence: EvidenceAt<'_>, holder: Option<&InstanceId>) -> Vec<Refusal> {
    let mut out = Vec::new();
    let say = |problem: IdentityProblem| Refusal::Identity { problem };
    match (evidence.claim(), evidence.volume()) {
        (Ok(claim), Ok(volume)) => {
            out.extend(binding(&evidence.claim_name, claim, volume).err().map(say));
        }
        (claim, volume) => out.push(Refusal::Missing {
            what: "whether claim and PersistentVolume are bound to each other".to_owned(),
            why: match Missing::or_absent(claim).and(Missing::or_absent(volume)) {
                Err(missing) => missing.to_string(),
                Ok(_) => "one of them does not exist".to_owned(),
            },
        }),
    }
    match of_the_volume(evidence) {
        Ok(problems) => out.extend(problems.into_iter().map(say)),
        Err(missing) => out.push(missing),
    }
    out.extend(of_the_owner(evidence));
    let named = evidence
        .cloud_volume()
        .ok()
        .map_or(&[][..], |c| &c.holders[..]);
    let machines: BTreeSet<&InstanceId> = named.iter().chain(holder).collect();
    out.extend(
        machines
            .iter()
            .filter_map(|i| several_nodes(evidence, i))
            .map(say),
    );
    // With more than one holder nothing is touched anyway.
    if let [holder] = named {
        out.extend(of_this_cluster(evidence, holder).err());
        out.extend(tagged_as_anothers(evidence, holder).map(say));
    }
    out
}

/// What the cloud and the other PersistentVolumes say against the claim's handle.
///
/// # Errors
/// The refusal where the handles of the cluster were not read.
fn of_the_volume(evidence: EvidenceAt<'_>) -> Result<Vec<IdentityProblem>, Refusal> {
    let missing = |why: String| Refusal::Missing {
        what: "whether the volume's handle is its own and the only one".to_owned(),
        why,
    };
    let identity = evidence
        .identity()
        .map_err(|why| missing(why.to_string()))?;
    let volume = evidence.volume().ok();
    let (Some(volume), Some(id)) = (volume, &evidence.cloud_id) else {
        return Err(missing("the PersistentVolume was not read".to_owned()));
    };
    let Some(csi) = &volume.csi else {
        return Err(missing(
            "the PersistentVolume is not a CSI volume".to_owned(),
        ));
    };
    let mut out = Vec::new();
    match &identity.canonical {
        Some(canonical) if *canonical == csi.handle => {}
        Some(canonical) => out.push(IdentityProblem::Alias {
            driver: csi.driver.clone(),
            handle: csi.handle.clone(),
            canonical: canonical.clone(),
            volume: id.clone(),
        }),
        // That the cloud does not answer, or has no such volume, is said by those who read it.
        None if evidence.cloud_volume().is_err() => {}
        None => return Err(missing("the provider makes no handle for it".to_owned())),
    }
    if !identity.others.is_empty() {
        let others = identity
            .others
            .iter()
            .map(|o| o.in_words(&evidence.claim_name.namespace))
            .collect::<Vec<_>>()
            .join(", ");
        out.push(IdentityProblem::ManyVolumes {
            volume: id.clone(),
            others,
        });
    }
    if let Some(OtherRegion { asked, is }) = &identity.region {
        let (asked, is) = (asked.clone(), is.clone());
        out.push(IdentityProblem::OtherRegion {
            volume: volume.name.clone(),
            asked,
            is,
        });
    }
    Ok(out)
}

/// What the tags of the cloud volume say against this cluster, the PersistentVolume and the claim.
///
/// A tag that is not there refuses nothing, and a name that a person accepts by [`TAGGED_AS_ANNOTATION`] is as good as
/// the right one. Where a tag names our PersistentVolume, a tag that names another claim is no contradiction: the driver
/// writes both once, when it makes the volume, and a PersistentVolume that is kept may be given to another claim later.
/// Which claim has it now, Kubernetes says by UID ([`binding`]).
fn of_the_owner(evidence: EvidenceAt<'_>) -> Vec<Refusal> {
    let cloud = evidence.cloud_volume().ok();
    let volume = evidence.volume().ok();
    // That one of them is not known is said by those who read it.
    let (Some(cloud), Some(volume)) = (cloud, volume) else {
        return Vec::new();
    };
    let OwnerTags {
        clusters,
        volumes,
        claim,
    } = &cloud.owner;
    let accepted = |name: &str| volume.tagged_as.contains(name);
    let (id, name) = (cloud.id.clone(), volume.name.clone());
    let mut out = Vec::new();
    if !clusters.is_empty() && !clusters.iter().any(|c| accepted(c.as_str())) {
        let missing = |why: &str| Refusal::Missing {
            what: format!("whether cloud volume {id} is of this cluster, as its tags have it"),
            why: why.to_owned(),
        };
        match evidence.identity().ok().map(|i| &i.own_clusters) {
            // The machines carry no such tag, so there is nothing to compare with.
            Some(OwnClusters::Known { names }) if names.is_empty() => {}
            Some(OwnClusters::Known { names }) if !names.is_disjoint(clusters) => {}
            Some(OwnClusters::Known { names }) => out.push(Refusal::Identity {
                problem: IdentityProblem::OtherCluster {
                    volume: id.clone(),
                    name: name.clone(),
                    tagged: clusters.clone(),
                    own: names.clone(),
                },
            }),
            Some(OwnClusters::Unread { why }) => out.push(missing(why)),
            Some(OwnClusters::NotAsked) | None => {
                out.push(missing("the tags of its machines were not read"))
            }
        }
    }
    if !volumes.is_empty() {
        if !volumes.contains(&name) && !volumes.iter().any(|v| accepted(v.as_str())) {
            let problem = IdentityProblem::MadeForOtherVolume {
                volume: id,
                name,
                tagged: volumes.clone(),
            };
            out.push(Refusal::Identity { problem });
        }
    } else if let Some(other) = claim.as_ref().filter(|c| **c != evidence.claim_name)
        && !accepted(&other.to_string())
    {
        let made_for = Some(other.clone()).filter(|o| o.namespace == evidence.claim_name.namespace);
        let problem = IdentityProblem::MadeForOtherClaim {
            volume: id,
            name,
            made_for,
        };
        out.push(Refusal::Identity { problem });
    }
    out
}

/// Several Nodes with the providerID of one instance.
fn several_nodes(evidence: EvidenceAt<'_>, instance: &InstanceId) -> Option<IdentityProblem> {
    let nodes: Vec<NodeName> = nodes_of(evidence, instance).cloned().collect();
    (nodes.len() > 1).then(|| IdentityProblem::ManyNodes {
        instance: instance.clone(),
        nodes,
    })
}

fn nodes_of<'a>(
    evidence: EvidenceAt<'a>,
    instance: &InstanceId,
) -> impl Iterator<Item = &'a NodeName> {
    let is = move |name: &&NodeName| {
        evidence
            .node(name)
            .is_ok_and(|n| n.instance.as_ref() == Some(instance))
    };
    evidence.all().nodes.keys().filter(is)
}

/// Whether an instance is a machine of this cluster: behind a Node that exists, seen as one before in the account that
/// answers now, or by the word of a person who may give it for the whole cluster.
///
/// # Errors
/// The refusal to free anything from it.
pub fn of_this_cluster(evidence: EvidenceAt<'_>, holder: &InstanceId) -> Result<(), Refusal> {
    if nodes_of(evidence, holder).next().is_some() {
        return Ok(());
    }
    if is_vouched_for(evidence, holder) {
        return Ok(());
    }
    let missing = |why: String| Refusal::Missing {
        what: format!("whether instance {holder} is a machine of this cluster"),
        why,
    };
    // A Node that could not be read may be the one.
    for (name, read) in evidence.nodes() {
        Missing::or_absent(read).map_err(|why| missing(format!("Node {name}: {why}")))?;
    }
    let seen = Missing::or_absent(evidence.machines()).map_err(|why| missing(why.to_string()))?;
    let seen = seen.map_or(&[][..], Vec::as_slice);
    let here = |m: &&SeenMachine| {
        m.instance == *holder && m.scope.is_some() && m.scope == evidence.cloud_scope
    };
    match seen.iter().find(here) {
        Some(_) => Ok(()),
        None => Err(Refusal::Identity {
            problem: IdentityProblem::ForeignHolder {
                holder: holder.clone(),
            },
        }),
    }
}

/// Whether a person who may give their word for the whole cluster says that the instance is this cluster's.
fn is_vouched_for(evidence: EvidenceAt<'_>, holder: &InstanceId) -> bool {
    let word = evidence.declaration.as_ref();
    word.is_some_and(|d| {
        d.of_this_cluster && d.holder == *holder && d.is_valid(evidence.now).is_ok()
    })
}

/// The tags of the holder against those of this cluster's other machines. Tags that are not there, or could not be read,
/// say nothing: the Node is what makes the machine this cluster's.
fn tagged_as_anothers(evidence: EvidenceAt<'_>, holder: &InstanceId) -> Option<IdentityProblem> {
    let VolumeIdentity {
        own_clusters,
        holder_clusters: tagged,
        ..
    } = evidence.identity().ok()?;
    let OwnClusters::Known { names: own } = own_clusters else {
        return None;
    };
    if tagged.is_empty()
        || own.is_empty()
        || !tagged.is_disjoint(own)
        || is_vouched_for(evidence, holder)
    {
        return None;
    }
    let (tagged, own) = (tagged.clone(), own.clone());
    Some(IdentityProblem::HolderOfOtherCluster {
        holder: holder.clone(),
        tagged,
        own,
    })
}

/// Whether the instance was seen as this Node, whose record is stuck and which does not exist any more.
///
/// # Errors
/// The refusal where it was seen, and as other Nodes alone.
pub fn was_node(
    evidence: EvidenceAt<'_>,
    holder: &InstanceId,
    node: &NodeName,
) -> Result<(), Refusal> {
    let seen = evidence.machines().ok().map_or(&[][..], Vec::as_slice);
    let mut as_nodes = seen
        .iter()
        .filter(|m| m.instance == *holder)
        .map(|m| &m.node);
    let Some(first) = as_nodes.next() else {
        return Ok(());
    };
    if first == node || as_nodes.any(|n| n == node) {
        return Ok(());
    }
    let (holder, seen_as, node) = (holder.clone(), first.clone(), node.clone());
    Err(Refusal::Identity {
        problem: IdentityProblem::OtherNode {
            holder,
            seen_as,
            node,
        },
    })
}

/// The first thing that is wrong with the volume's own identity: such trouble is not one that reattach heals. Machines
/// are judged with the plan, since a person may still say whose they are.
pub(crate) fn not_ours(evidence: EvidenceAt<'_>) -> Option<IdentityProblem> {
    binding_in(evidence)
        .err()
        .or_else(|| of_the_volume(evidence).ok()?.into_iter().next())
}
