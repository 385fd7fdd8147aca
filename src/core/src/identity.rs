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

use crate::evidence::{ClaimFacts, ClaimPhase, ELSEWHERE, EvidenceAt, OtherRegion, VolumeFacts};
use crate::fact::MissingFact;
use crate::ids::{
    CloudCluster, DriverName, InstanceId, NodeName, ObjectName, PvName, Uid, VolumeHandle, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;

/// The annotation of a PersistentVolume that accepts names in the tags of its cloud volume: of clusters, of
/// PersistentVolumes, and of claims as `namespace/name`, with commas between them. A PersistentVolume belongs to no
/// namespace, so whoever may annotate it has a right in the whole cluster.
pub const TAGGED_AS_ANNOTATION: &str = "reattach.dev/tagged-as";

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

/// What the cloud and the other PersistentVolumes say against the claim's handle.
///
/// # Errors
/// What is missing where the handles of the cluster were not read.
pub(crate) fn of_the_volume(evidence: EvidenceAt<'_>) -> Result<Vec<IdentityProblem>, MissingFact> {
    let missing = |why: String| MissingFact {
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

/// The first thing that is wrong with the volume's own identity: such trouble is not one that reattach heals. Machines
/// are judged with the plan, since a person may still say whose they are.
pub(crate) fn not_ours(evidence: EvidenceAt<'_>) -> Option<IdentityProblem> {
    binding_in(evidence)
        .err()
        .or_else(|| of_the_volume(evidence).ok()?.into_iter().next())
}
