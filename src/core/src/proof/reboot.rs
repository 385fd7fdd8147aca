//! *Rebooted and clean*: whatever the old boot had under way is gone with it, and the new one has nothing.

use super::names::under_another_name;
use super::veto::veto;
use super::{
    FenceProof, Ground, NoProof, ProofKind, for_a_while, ground, held, held_by, is_holder, missing,
    no_pod, the_volume,
};
use crate::cloud::CloudVolume;
use crate::evidence::{Evidence, EvidenceAt, NodeFacts};
use crate::fact::{Missing, Source};
use crate::guest::{Answer, ScanResult};
use crate::ids::{BootId, InstanceId, NodeName, Uid};
use jiff::{SignedDuration, Timestamp};

/// How long an agent's answer counts, from the question on. Longer than an agent takes at its full level on a busy machine,
/// and than the runbooks wait (90 s) between the deletion of a record and the cloud's detach.
pub const ANSWER_GOOD_FOR: SignedDuration = SignedDuration::from_mins(2);

/// What a reboot and the answer after it are told by.
///
/// A boot is told by its ID alone. The time at which a machine says it booted is of the machine's own clock, and there is
/// nothing of that clock to compare it with.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Before {
    /// The boot that was pinned earlier in this recovery.
    pub boot: Option<BootId>,
    /// When the open challenge was journaled, on the clock of this process. None: it was not asked, or by another leader.
    pub asked_at: Option<Timestamp>,
}

/// The open question.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// When it was journaled, on the clock of this process.
    pub(super) at: Timestamp,
    pub(super) recovery: &'a Uid,
}

/// Makes the *rebooted and clean* proof: the boot is not the pinned one; in this boot the
/// agent answered this recovery's open challenge with "no device" or, at the full level, "clean"; and nobody can begin
/// to use the volume there, because the workload is at zero by this recovery's stamp and no pod of the claim is left.
///
/// # Errors
/// One [`NoProof`]: the first missing piece, in the order hold, pods, node, reboot, answer, its age, volume, report, veto.
pub fn rebooted_and_clean(
    evidence: EvidenceAt<'_>,
    node: &NodeName,
    holder: &InstanceId,
    before: &Before,
    recovery: &Uid,
) -> Result<FenceProof, NoProof> {
    let away = held(evidence, node, recovery)?;
    no_pod(evidence, node, away)?;
    let facts = evidence
        .node(node)
        .map_err(|why| missing(format!("Node {node}"), why.to_string()))?;
    is_holder(facts, holder)?;
    if before
        .boot
        .as_ref()
        .is_none_or(|boot| *boot == facts.boot_id)
    {
        return Err(NoProof::NotRebooted {
            node: node.clone(),
            boot: facts.boot_id.clone(),
        });
    }
    let Some(at) = before.asked_at else {
        let why = "this leader has not challenged the agent yet".to_owned();
        return Err(NoProof::NotClean {
            node: node.clone(),
            why,
        });
    };
    let asked = Asked { at, recovery };
    let Clean {
        epoch,
        volume,
        grounds,
    } = clean(evidence, node, facts, holder, asked)?;
    let kind = ProofKind::RebootedAndClean {
        node: node.clone(),
        boot: facts.boot_id.clone(),
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

/// That the agent of the holder's living Node answered this recovery's open challenge clean. No proof by itself: the
/// kubelet has to say the same. `asked_at` is when the question was journaled, on the clock of this process.
///
/// # Errors
/// One [`NoProof`]: the first missing piece, in the order node, holder, answer, volume.
pub fn answers_clean(
    evidence: EvidenceAt<'_>,
    node: &NodeName,
    holder: &InstanceId,
    asked_at: Timestamp,
    recovery: &Uid,
) -> Result<(), NoProof> {
    let facts = evidence
        .node(node)
        .map_err(|why| missing(format!("Node {node}"), why.to_string()))?;
    is_holder(facts, holder)?;
    let asked = Asked {
        at: asked_at,
        recovery,
    };
    clean(evidence, node, facts, holder, asked).map(|_| ())
}

/// What both proofs by an agent's answer rest on.
pub(super) struct Clean<'a> {
    pub(super) epoch: u64,
    pub(super) volume: &'a CloudVolume,
    pub(super) grounds: Vec<Ground>,
}

/// That the agent of the Node's boot answered this recovery's open challenge clean, not long ago, about the volume that the
/// holder has, and that nothing it reported besides contradicts that.
pub(super) fn clean<'a>(
    evidence: EvidenceAt<'a>,
    node: &NodeName,
    facts: &NodeFacts,
    holder: &InstanceId,
    asked: Asked<'_>,
) -> Result<Clean<'a>, NoProof> {
    let fact = evidence.nodes.get(node);
    let fact =
        fact.ok_or_else(|| missing(format!("Node {node}"), Missing::NeverRead.to_string()))?;
    let not_clean = |why: String| NoProof::NotClean {
        node: node.clone(),
        why,
    };
    let answer = answer_to(&evidence, node, asked.recovery, &facts.boot_id).map_err(not_clean)?;
    if let Some(why) = too_old(answer, asked.at, facts, evidence.now) {
        return Err(not_clean(why));
    }
    let volume = the_volume(evidence, holder)?;
    if answer.identity != volume.identity {
        return Err(not_clean("its answer is about another device".into()));
    }
    let guest = evidence.guest(node);
    let guest = guest.map_err(|why| {
        missing(
            format!("the report of the agent on {node}"),
            why.to_string(),
        )
    })?;
    let csi = evidence
        .csi()
        .ok_or_else(|| missing("the PersistentVolume", "no fresh CSI source"))?;
    if answer.seen == ScanResult::NoDevice
        && let Some(device) = under_another_name(evidence, guest, facts, csi, volume)
    {
        return Err(not_clean(format!(
            "it saw no device {}, and device {} ({}) may be the volume under an earlier name",
            volume.identity, device.kernel_name, device.identity
        )));
    }
    veto(evidence, node)?;
    let says = if answer.seen == ScanResult::NoDevice {
        "no such device"
    } else {
        "nothing uses the device"
    };
    let grounds = vec![
        Ground {
            says: format!("the agent on {node} answered: {says}"),
            source: Source::Agent(node.to_string()),
            at: asked.at,
        },
        ground(&evidence.pods, "no pod with the claim is left"),
        ground(fact, format!("{node} runs boot {}", facts.boot_id)),
        held_by(evidence, holder),
    ];
    Ok(Clean {
        epoch: answer.epoch,
        volume,
        grounds,
    })
}

/// Why an answer does not count any more. Its scan began after the question was journaled, so the time since then is the
/// most that it can be old. By the machine's own clock it must not be older either than the machine's last sign of life.
fn too_old(
    answer: &Answer,
    asked_at: Timestamp,
    node: &NodeFacts,
    now: Timestamp,
) -> Option<String> {
    let ago = now.duration_since(asked_at);
    if ago < SignedDuration::ZERO || ago > ANSWER_GOOD_FOR {
        return Some(format!(
            "it was asked {} s ago, which is too long",
            ago.as_secs()
        ));
    }
    let before = node
        .lease_renewed
        .map(|renewed| renewed.duration_since(answer.scanned_at));
    let before = before.filter(|before| *before > ANSWER_GOOD_FOR)?;
    Some(format!(
        "it looked {} s before its kubelet's last sign of life",
        before.as_secs()
    ))
}

/// What the agent of this boot answered to the open question, if that is "no device" or "clean".
fn answer_to<'a>(
    evidence: &'a Evidence,
    node: &NodeName,
    recovery: &Uid,
    boot: &BootId,
) -> Result<&'a Answer, String> {
    let Some((asked, epoch)) = evidence
        .asked
        .as_ref()
        .filter(|(asked, _)| asked == recovery)
    else {
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
        ScanResult::NoDevice | ScanResult::Clean if answer.is_clean() => Ok(answer),
        ScanResult::NoDevice | ScanResult::Clean => Err(format!(
            "a {:?} agent cannot say that a device is clean",
            answer.level
        )),
        ScanResult::DeadMount { paths } => {
            Err(format!("dead mounts remain at {}", paths.join(", ")))
        }
        ScanResult::InUse { users } => Err(format!("the device is in use: {users:?}")),
        ScanResult::Idle => {
            Err("the device is there, and the scan did not show that it is unused".to_owned())
        }
        ScanResult::Unreadable { items } => Err(format!("it could not read {}", items.join(", "))),
    }
}
