//! The *kubelet handshake*: the holder's own live kubelet says that it does not use the volume (DESIGN 6, P1–P3).

use super::reboot::{Asked, Clean, clean};
use super::veto::veto;
use super::{
    FenceProof, NoProof, ProofKind, for_a_while, fresh, ground, held, held_by, is_holder, missing,
    no_pod, the_volume,
};
use crate::evidence::EvidenceAt;
use crate::ids::{InstanceId, NodeName, Uid};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// The moment at which no pod of the claim was first seen, journaled, with the node's Lease as it stood then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnusedSince {
    /// When it was seen.
    pub at: Timestamp,
    /// The node's Lease `renewTime` at that moment. None: it could not be read, or a pod of the claim was seen again;
    /// no proof can rest on this line then.
    pub lease: Option<Timestamp>,
}

/// Makes the *kubelet handshake* proof, or says what is missing.
///
/// # Assumptions
/// `evidence` was collected after `unused` was journaled. New pods are kept away: the workload is at zero by a stamp of
/// this recovery, a dry-run create was seen to be given the gate, or the node carries this recovery's closing taint. A pod
/// that the scheduler sent just before it saw the taint is on the node by the Lease renewal that the proof waits for.
///
/// # Errors
/// One [`NoProof`] per missing piece; the first one found, in the order P1, P2, P3, veto, holder.
pub fn kubelet_handshake(
    evidence: EvidenceAt<'_>,
    node: &NodeName,
    holder: &InstanceId,
    unused: &UnusedSince,
    recovery: &Uid,
) -> Result<FenceProof, NoProof> {
    let away = held(evidence, node, recovery)?;
    no_pod(evidence, node, away)?;
    let csi = evidence.csi().ok_or_else(|| NoProof::Missing {
        what: "the PersistentVolume".into(),
        why: "no fresh CSI source".into(),
    })?;
    let fact = evidence.nodes.get(node);
    let facts = match fact {
        Some(_) => fresh(evidence.node(node), &format!("Node {node}"))?,
        None => None,
    };
    let (Some(facts), Some(fact)) = (facts, fact) else {
        return Err(NoProof::Missing {
            what: format!("Node {node}"),
            why: "no such Node was read".into(),
        });
    };
    if !facts.ready {
        return Err(NoProof::NodeNotReady { node: node.clone() });
    }
    is_holder(facts, holder)?;
    if evidence.lists_volume(&facts.volumes_in_use, csi) {
        return Err(NoProof::InUse { node: node.clone() });
    }
    // volumesInUse counts only as read after the last pod was gone (P3 after P2).
    let read_after =
        evidence.collected_at > unused.at && fact.at >= unused.at && evidence.pods.at >= unused.at;
    let lease_renewed = match (facts.lease_renewed, unused.lease) {
        (Some(new), Some(old)) if new > old && read_after => new,
        _ => return Err(NoProof::LeaseNotRenewed { node: node.clone() }),
    };
    veto(evidence, node)?;
    let cloud = the_volume(evidence, holder)?;
    let grounds = vec![
        ground(&evidence.pods, "no pod with the claim is left"),
        ground(
            fact,
            format!("kubelet on {node} does not report the volume in use"),
        ),
        held_by(evidence, holder),
    ];
    let kind = ProofKind::KubeletHandshake {
        node: node.clone(),
        no_user_since: unused.at,
        lease_renewed,
    };
    Ok(FenceProof::new(
        cloud,
        holder,
        kind,
        grounds,
        for_a_while(evidence.now),
        evidence.now,
    ))
}

/// How long one mount attempt of kubelet may last: two minutes (`csiTimeout` in Kubernetes
/// `pkg/volume/csi/csi_plugin.go`).
pub const ATTEMPT: SignedDuration = SignedDuration::from_mins(2);

/// Makes the *answered clean* proof, for a kubelet that keeps the volume in `volumesInUse` though no pod is left: a mount
/// attempt that was under way is over, and the agent, asked after that, sees nothing of the volume.
///
/// # Assumptions
/// `asked_at` is when the open challenge of this recovery was journaled, by the same leader as `unused` and on the same
/// clock as `now`. Otherwise as [`kubelet_handshake`].
///
/// # Errors
/// One [`NoProof`]: the first missing piece, in the order P1, P2, node, time, answer, holder, veto.
pub fn answered_clean(
    evidence: EvidenceAt<'_>,
    node: &NodeName,
    holder: &InstanceId,
    unused: &UnusedSince,
    asked_at: Timestamp,
    recovery: &Uid,
) -> Result<FenceProof, NoProof> {
    let away = held(evidence, node, recovery)?;
    no_pod(evidence, node, away)?;
    let facts = evidence
        .node(node)
        .map_err(|why| missing(format!("Node {node}"), why.to_string()))?;
    if !facts.ready {
        return Err(NoProof::NodeNotReady { node: node.clone() });
    }
    is_holder(facts, holder)?;
    if unused.lease.is_none()
        || asked_at < unused.at.saturating_add(ATTEMPT).unwrap_or(Timestamp::MAX)
    {
        let why = "it was asked while a mount attempt could be under way".to_owned();
        return Err(NoProof::NotClean {
            node: node.clone(),
            why,
        });
    }
    let asked = Asked {
        at: asked_at,
        recovery,
    };
    let Clean {
        epoch,
        volume,
        grounds,
    } = clean(evidence, node, facts, holder, asked)?;
    let kind = ProofKind::AnsweredClean {
        node: node.clone(),
        no_user_since: unused.at,
        epoch,
    };
    Ok(FenceProof::new(
        volume,
        holder,
        kind,
        grounds,
        for_a_while(evidence.now),
        evidence.now,
    ))
}
