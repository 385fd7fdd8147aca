//! Proofs that a holder cannot write (safety rule S1). Freeing effects take a [`FenceProof`] and nothing else makes one
//! than the function that checks its evidence.
//!
//! A timer is never a proof, and neither is a force-deleted pod.

use crate::evidence::{Evidence, MAX_AGE};
use crate::fact::Reading;
use crate::guest::Seen;
use crate::ids::{InstanceId, NodeName, VolumeId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Evidence-backed certainty that `holder` cannot write to `volume`. Not constructible outside this module, not
/// deserialisable, and valid for the moment of its making: the executor makes a new one right before each effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceProof {
    volume: VolumeId,
    holder: InstanceId,
    kind: ProofKind,
    made_at: Timestamp,
}

/// What a proof rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProofKind {
    /// The holder's live kubelet reported that it does not use the volume, after the last pod was gone and after a
    /// newer Lease renewal, while no new pod can come (DESIGN 6, P1–P3).
    KubeletHandshake {
        /// The node.
        node: NodeName,
        /// When no pod was first seen.
        no_user_since: Timestamp,
        /// The Lease renewal that came after it.
        lease_renewed: Timestamp,
    },
}

impl FenceProof {
    /// The volume that may be freed.
    pub fn volume(&self) -> &VolumeId {
        &self.volume
    }

    /// The instance it may be freed from.
    pub fn holder(&self) -> &InstanceId {
        &self.holder
    }

    /// What it rests on.
    pub fn kind(&self) -> &ProofKind {
        &self.kind
    }

    /// When it was made.
    pub fn made_at(&self) -> Timestamp {
        self.made_at
    }
}

/// The moment at which no pod of the claim was first seen, journaled, with the node's Lease as it stood then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NoUser {
    /// When it was seen.
    pub at: Timestamp,
    /// The node's Lease `renewTime` at that moment. None: it could not be read, or a pod of the claim was seen again;
    /// no proof can rest on this line then.
    pub lease: Option<Timestamp>,
}

/// Why no proof could be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum NoProof {
    /// The workload is not at zero by our stamp, so a new pod may come at any moment.
    #[error("new pods of the claim are not held away: {why}")]
    NoHold {
        /// What was found.
        why: String,
    },
    /// A pod object with the claim is still there.
    #[error("pod {pod} still names the claim")]
    PodPresent {
        /// The pod.
        pod: String,
    },
    /// The node's kubelet is not known to live.
    #[error("node {node} is not Ready, so its kubelet's word proves nothing")]
    NodeNotReady {
        /// The node.
        node: NodeName,
    },
    /// kubelet still lists the volume.
    #[error("kubelet on {node} still reports the volume in volumesInUse")]
    InUse {
        /// The node.
        node: NodeName,
    },
    /// The Lease was not renewed since the last pod was seen gone.
    #[error("kubelet on {node} has not renewed its Lease since the last pod was gone")]
    LeaseNotRenewed {
        /// The node.
        node: NodeName,
    },
    /// An agent sees a mount or an opener.
    #[error("the agent on {node} sees the volume in use: {what}")]
    Veto {
        /// The node.
        node: NodeName,
        /// What it sees.
        what: String,
    },
    /// The cloud's holder is another one, several, or none.
    #[error("the cloud names {found} as holder, the plan expects instance {expected}")]
    Holder {
        /// What the cloud says.
        found: String,
        /// What the plan pinned.
        expected: InstanceId,
    },
    /// A fact is missing, stale or unknown.
    #[error("{what} is not known well enough: {why}")]
    Missing {
        /// Which fact.
        what: String,
        /// Why it is no answer.
        why: String,
    },
}

/// Makes the *kubelet handshake* proof, or says what is missing.
///
/// # Assumptions
/// `evidence` was collected after `no_user` was journaled. The workload is at zero by a stamp of this recovery (that is
/// the hold of the scale-to-zero runbook).
///
/// # Errors
/// One [`NoProof`] per missing piece; the first one found, in the order P1, P2, P3, veto, holder.
pub fn kubelet_handshake(
    evidence: &Evidence,
    node: &NodeName,
    holder: &InstanceId,
    no_user: &NoUser,
    recovery: &crate::ids::Uid,
    now: Timestamp,
) -> Result<FenceProof, NoProof> {
    held_at_zero(evidence, recovery, now)?;
    let pods = fresh(evidence.pods.read(now, MAX_AGE), "the list of pods")?;
    if let Some(pod) = pods.and_then(|p| p.first()) {
        return Err(NoProof::PodPresent { pod: pod.name.to_string() });
    }
    let csi = evidence.csi(now).ok_or_else(|| NoProof::Missing {
        what: "the PersistentVolume".into(),
        why: "no fresh CSI source".into(),
    })?;
    let fact = evidence.nodes.get(node);
    let facts = match fact {
        Some(fact) => fresh(fact.read(now, MAX_AGE), &format!("Node {node}"))?,
        None => None,
    };
    let (Some(facts), Some(fact)) = (facts, fact) else {
        return Err(NoProof::Missing { what: format!("Node {node}"), why: "no such Node was read".into() });
    };
    if !facts.ready {
        return Err(NoProof::NodeNotReady { node: node.clone() });
    }
    if facts.instance.as_ref() != Some(holder) {
        return Err(NoProof::Holder {
            found: facts
                .instance
                .as_ref()
                .map_or("no instance".into(), |i| format!("{i} behind Node {node}")),
            expected: holder.clone(),
        });
    }
    if facts.volumes_in_use.contains(&csi.unique_name()) {
        return Err(NoProof::InUse { node: node.clone() });
    }
    // volumesInUse counts only as read after the last pod was gone (P3 after P2).
    let read_after =
        evidence.collected_at > no_user.at && fact.at >= no_user.at && evidence.pods.at >= no_user.at;
    let lease_renewed = match (facts.lease_renewed, no_user.lease) {
        (Some(new), Some(old)) if new > old && read_after => new,
        _ => return Err(NoProof::LeaseNotRenewed { node: node.clone() }),
    };
    veto(evidence, node, now)?;
    let cloud = fresh(evidence.cloud_volume.read(now, MAX_AGE), "the cloud volume")?;
    let Some(cloud) = cloud else {
        return Err(NoProof::Missing {
            what: "the cloud volume".into(),
            why: "the cloud does not know it".into(),
        });
    };
    if cloud.holders != [holder.clone()] {
        let found = cloud.holders.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return Err(NoProof::Holder {
            found: if found.is_empty() { "nobody".into() } else { found },
            expected: holder.clone(),
        });
    }
    Ok(FenceProof {
        volume: cloud.id.clone(),
        holder: holder.clone(),
        kind: ProofKind::KubeletHandshake { node: node.clone(), no_user_since: no_user.at, lease_renewed },
        made_at: now,
    })
}

/// P1 for the scale-to-zero runbook: the workload is at zero and carries this recovery's stamp.
fn held_at_zero(evidence: &Evidence, recovery: &crate::ids::Uid, now: Timestamp) -> Result<(), NoProof> {
    let workload = fresh(evidence.workload.read(now, MAX_AGE), "the workload")?;
    let Some(workload) = workload else {
        return Err(NoProof::NoHold { why: "the workload is not there".into() });
    };
    match &workload.stamp {
        Some(Ok(stamp)) if workload.replicas == 0 => {
            if stamp.recovery != *recovery {
                return Err(NoProof::NoHold { why: "the stamp is another recovery's".into() });
            }
            if stamp.workload != workload.workload.uid {
                return Err(NoProof::NoHold { why: "the stamp is another object's".into() });
            }
            Ok(())
        }
        Some(Err(why)) => Err(NoProof::NoHold { why: why.clone() }),
        _ => {
            Err(NoProof::NoHold { why: format!("{} has {} replicas", workload.workload, workload.replicas) })
        }
    }
}

/// An agent that sees a user of the device, or a live mount of the volume, vetoes.
fn veto(evidence: &Evidence, node: &NodeName, now: Timestamp) -> Result<(), NoProof> {
    if let Some(answer) = evidence.answers.get(node)
        && evidence.asked.as_ref().is_some_and(|(r, e)| *r == answer.recovery && *e == answer.epoch)
        && evidence.node(node, now).is_some_and(|n| n.boot_id == answer.boot_id)
        && let Seen::InUse { users } = &answer.seen
    {
        return Err(NoProof::Veto { node: node.clone(), what: format!("{users:?}") });
    }
    let (Reading::Present(guest), Some(csi)) = (evidence.guest(node, now), evidence.csi(now)) else {
        // No agent is no veto: the handshake itself is the proof (DESIGN 6, P5).
        return Ok(());
    };
    let identity = evidence.cloud_volume.shown().map(|v| &v.identity);
    if let Some(device) = guest.devices.iter().find(|d| Some(&d.identity) == identity && !d.users.is_empty())
    {
        return Err(NoProof::Veto { node: node.clone(), what: format!("{:?}", device.users) });
    }
    let live = guest
        .csi_volumes
        .iter()
        .filter(|v| v.driver == csi.driver && v.handle == csi.handle)
        .flat_map(|v| &v.mounts)
        .find(|m| !m.dead);
    match live {
        Some(mount) => Err(NoProof::Veto { node: node.clone(), what: format!("mounted at {}", mount.path) }),
        None => Ok(()),
    }
}

/// A fresh answer as an option, or why it is none.
fn fresh<'a, T>(reading: Reading<'a, T>, what: &str) -> Result<Option<&'a T>, NoProof> {
    match reading {
        Reading::Present(value) => Ok(Some(value)),
        Reading::Absent => Ok(None),
        Reading::Stale { age_secs } => {
            Err(NoProof::Missing { what: what.to_owned(), why: format!("{age_secs} s old") })
        }
        Reading::Unknown { why } => Err(NoProof::Missing { what: what.to_owned(), why: why.to_owned() }),
    }
}
