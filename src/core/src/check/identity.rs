//! S10, derived again from the evidence: whose the claim, the volume and the machine are.

use super::{Findings, Violation};
use crate::evidence::{ClaimPhase, EvidenceAt, OwnClusters};
use crate::plan::Plan;

pub(super) fn identity(plan: &Plan, e: EvidenceAt<'_>, found: &mut Findings) {
    let claim = e.claim().ok();
    let volume = e.volume().ok();
    let bound = match (claim, volume.and_then(|v| v.claim_ref.as_ref())) {
        (Some(c), Some(of)) => {
            of.claim == e.claim_name
                && of.uid.as_ref() == Some(&c.uid)
                && c.phase == ClaimPhase::Bound
        }
        _ => false,
    };
    let named = claim.is_some_and(|c| c.volume_name.as_ref() == volume.map(|v| &v.name));
    found.require(bound && named, Violation::NotBound);
    let identity = e.identity().ok();
    let handle = volume.and_then(|v| v.csi.as_ref()).map(|c| &c.handle);
    found.require(
        identity.is_some_and(|i| i.canonical.is_some() && i.canonical.as_ref() == handle),
        Violation::HandleNotCanonical,
    );
    found.require(
        identity.is_some_and(|i| i.others.is_empty()),
        Violation::SharedCloudVolume,
    );
    found.require(
        identity.is_some_and(|i| i.region.is_none()),
        Violation::OtherRegion,
    );
    let cloud = e.cloud_volume().ok();
    let tags = cloud.map(|c| &c.owner);
    let known_as = |name: &str| volume.is_some_and(|v| v.tagged_as.iter().any(|n| n == name));
    let clusters = tags
        .into_iter()
        .flat_map(|t| &t.clusters)
        .collect::<Vec<_>>();
    let here = match identity.map(|i| &i.own_clusters) {
        Some(OwnClusters::Known { names }) => {
            names.is_empty() || clusters.iter().any(|c| names.contains(*c))
        }
        Some(OwnClusters::NotAsked | OwnClusters::Unread { .. }) | None => false,
    };
    found.require(
        clusters.is_empty() || here || clusters.iter().any(|c| known_as(c.as_str())),
        Violation::OtherCluster,
    );
    let made_for = match tags {
        Some(t) if !t.volumes.is_empty() => t
            .volumes
            .iter()
            .any(|pv| known_as(pv.as_str()) || volume.is_some_and(|v| v.name == *pv)),
        Some(t) => t
            .claim
            .as_ref()
            .is_none_or(|c| *c == e.claim_name || known_as(&c.to_string())),
        None => true,
    };
    found.require(made_for, Violation::MadeForAnother);
    let strange = identity.is_some_and(|i| match &i.own_clusters {
        OwnClusters::Known { names } => {
            let known = i.holder_clusters.iter().any(|c| names.contains(c));
            !i.holder_clusters.is_empty() && !names.is_empty() && !known
        }
        OwnClusters::NotAsked | OwnClusters::Unread { .. } => false,
    });
    let held = cloud.map_or(&[][..], |c| c.holders.as_slice());
    for instance in held.iter().chain([&plan.pins.holder]) {
        let is = |n: &crate::evidence::NodeFacts| n.instance.as_ref() == Some(instance);
        let nodes = e
            .nodes()
            .filter_map(|(_, read)| read.ok())
            .filter(|n| is(n))
            .count();
        found.require(
            nodes <= 1,
            Violation::InstanceShared {
                instance: instance.clone(),
            },
        );
        let seen = e.machines().is_ok_and(|all| {
            all.iter()
                .any(|m| m.instance == *instance && m.scope.is_some() && m.scope == e.cloud_scope)
        });
        let declared = e.declaration.as_ref().is_some_and(|d| {
            d.holder == *instance && d.of_this_cluster && d.is_valid(e.now).is_ok()
        });
        found.require(
            !held.contains(instance) || nodes == 1 || seen || declared,
            Violation::HolderUnknown {
                instance: instance.clone(),
            },
        );
        found.require(
            !strange || !held.contains(instance) || declared,
            Violation::HolderOfOtherCluster {
                instance: instance.clone(),
            },
        );
    }
}
