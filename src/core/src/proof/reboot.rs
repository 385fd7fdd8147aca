//! *Rebooted and clean*: whatever the old boot had under way is gone with it, and the new one has nothing.

use super::{
    FenceProof, Ground, NoProof, ProofKind, for_a_while, fresh, ground, held, held_by, is_holder, missing,
    no_pod, the_volume,
};
use crate::cloud::CloudVolume;
use crate::evidence::{Evidence, MAX_AGE, NodeFacts};
use crate::fact::{Fact, Reading};
use crate::guest::Seen;
use crate::ids::{BootId, InstanceId, NodeName, Uid};
use jiff::Timestamp;

/// What a reboot is told by. One of the two must show it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// The boot that was pinned earlier in this recovery.
    pub boot: Option<BootId>,
    /// When the VolumeAttachment was attached.
    pub attached_at: Option<Timestamp>,
}

/// Makes the *rebooted and clean* proof: the boot is not the pinned one, or began after the attach; in this boot the
/// agent answered this recovery's open challenge with "no device" or, at the full level, "clean"; and nobody can begin
/// to use the volume there, because the workload is at zero by this recovery's stamp and no pod of the claim is left.
///
/// # Errors
/// One [`NoProof`]: the first missing piece, in the order hold, pods, node, reboot, answer, volume.
pub fn rebooted_and_clean(
    evidence: &Evidence,
    node: &NodeName,
    holder: &InstanceId,
    before: &Before,
    recovery: &Uid,
    now: Timestamp,
) -> Result<FenceProof, NoProof> {
    let away = held(evidence, node, recovery, now)?;
    no_pod(evidence, node, away, now)?;
    let what = format!("Node {node}");
    let fact = evidence.nodes.get(node).ok_or_else(|| missing(what.clone(), "no such Node was read"))?;
    let facts = fresh(fact.read(now, MAX_AGE), &what)?.ok_or_else(|| missing(what, "it does not exist"))?;
    is_holder(facts, holder)?;
    let guest = match evidence.guest(node, now) {
        Reading::Present(guest) => guest,
        other => {
            let why = other.gap().unwrap_or_else(|| "it has reported nothing".to_owned());
            return Err(missing(format!("the report of the agent on {node}"), why));
        }
    };
    let other_boot = before.boot.as_ref().is_some_and(|boot| *boot != facts.boot_id);
    let later_boot = before.attached_at.is_some_and(|at| guest.booted_at > at);
    if !(other_boot || later_boot) {
        return Err(NoProof::NotRebooted { node: node.clone(), boot: facts.boot_id.clone() });
    }
    let Clean { epoch, volume, grounds } = clean(evidence, node, fact, facts, holder, recovery, now)?;
    let kind = ProofKind::RebootedAndClean { node: node.clone(), boot: facts.boot_id.clone(), epoch };
    Ok(FenceProof::new(volume, holder, kind, grounds, for_a_while(now), now))
}

/// What both proofs by an agent's answer rest on.
pub(super) struct Clean<'a> {
    pub(super) epoch: u64,
    pub(super) volume: &'a CloudVolume,
    pub(super) grounds: Vec<Ground>,
}

/// That the agent of the Node's boot answered this recovery's open challenge clean, about the volume that the holder has.
pub(super) fn clean<'a>(
    evidence: &'a Evidence,
    node: &NodeName,
    fact: &Fact<NodeFacts>,
    facts: &NodeFacts,
    holder: &InstanceId,
    recovery: &Uid,
    now: Timestamp,
) -> Result<Clean<'a>, NoProof> {
    let not_clean = |why: String| NoProof::NotClean { node: node.clone(), why };
    let epoch = epoch_answered(evidence, node, recovery, &facts.boot_id).map_err(not_clean)?;
    let volume = the_volume(evidence, holder, now)?;
    if evidence.answers.get(node).map(|a| &a.identity) != Some(&volume.identity) {
        return Err(not_clean("it was asked about another device".into()));
    }
    let grounds = vec![
        ground(&evidence.pods, "no pod with the claim is left"),
        ground(fact, format!("{node} runs boot {}", facts.boot_id)),
        held_by(evidence, holder),
    ];
    Ok(Clean { epoch, volume, grounds })
}

/// The epoch that the agent of this boot answered with "no device" or "clean".
fn epoch_answered(
    evidence: &Evidence,
    node: &NodeName,
    recovery: &Uid,
    boot: &BootId,
) -> Result<u64, String> {
    let Some((asked, epoch)) = evidence.asked.as_ref().filter(|(asked, _)| asked == recovery) else {
        return Err("no challenge of this recovery is open".to_owned());
    };
    let answer = evidence.answers.get(node).ok_or("no answer")?;
    if answer.recovery != *asked || answer.epoch != *epoch {
        return Err("its answer is to another question".to_owned());
    }
    if answer.boot_id != *boot {
        return Err(format!("its answer is from boot {}", answer.boot_id));
    }
    match &answer.seen {
        Seen::NoDevice | Seen::Clean if answer.is_clean() => Ok(*epoch),
        Seen::NoDevice | Seen::Clean => {
            Err(format!("a {:?} agent cannot say that a device is clean", answer.level))
        }
        Seen::DeadMount { paths } => Err(format!("dead mounts remain at {}", paths.join(", "))),
        Seen::InUse { users } => Err(format!("the device is in use: {users:?}")),
        Seen::Idle => Err("the device is there; that nobody has it open was not shown".to_owned()),
        Seen::Unreadable { items } => Err(format!("it could not read {}", items.join(", "))),
    }
}
