//! The refusals of a plan because it is not certain whose the volume or the machine is (safety rule S10).

use crate::cloud::OwnerTags;
use crate::evidence::{EvidenceAt, OwnClusters, SeenMachine, VolumeIdentity};
use crate::fact::Missing;
use crate::identity::{IdentityProblem, binding, of_the_volume};
use crate::ids::{InstanceId, NodeName};
use crate::plan::Refusal;
use std::collections::BTreeSet;

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
        Err(missing) => out.push(missing.into()),
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

/// What the tags of the cloud volume say against this cluster, the PersistentVolume and the claim.
///
/// A tag that is not there refuses nothing, and a name that a person accepts by [`crate::identity::TAGGED_AS_ANNOTATION`] is as good as
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
fn of_this_cluster(evidence: EvidenceAt<'_>, holder: &InstanceId) -> Result<(), Refusal> {
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
pub(super) fn was_node(
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
