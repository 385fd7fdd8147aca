//! Proofs that a holder cannot write (safety rule S1). Freeing effects take a [`FenceProof`], and nothing else makes one
//! than the one function of its kind, which checks the evidence:
//!
//! | Kind | Made by | Rests on |
//! |---|---|---|
//! | kubelet handshake | [`kubelet_handshake`] | the holder's live kubelet, after the last pod |
//! | answered clean | [`answered_clean`] | the holder's agent, asked when the last mount attempt had to be over |
//! | gone | [`gone`] | the cloud: deleted, or not found where it was seen before |
//! | off | [`off`] | the cloud: off twice, by a shutdown job that finished |
//! | kept off | [`kept_off`] | the cloud: off twice, with the automatic restart off, and no job that boots |
//! | rebooted and clean | [`rebooted_and_clean`] | another boot, whose agent answered this recovery's challenge |
//! | declared | [`declared`] | a named human's word, which no fact contradicts |
//!
//! # Guarantees
//! Unknown, stale and missing facts make no proof. A proof says what it rests on, how old that is, and how long it holds.
//! Every age is measured on the clock of the process that makes the proof: from the read of a fact, and from the question
//! on for an agent's answer, whose scan began after it. Times of a node are compared only with times of that node.
//!
//! # Assumptions
//! The caller makes a new proof right before each freeing effect, from evidence that was read for it.
//!
//! # Caveats
//! A timer is never a proof, and neither is a force-deleted pod.
//!
//! # Errors
//! [`NoProof`]: the first piece that is missing.

mod declared;
mod handshake;
mod names;
mod power;
mod reboot;
mod veto;

pub use declared::declared;
pub use handshake::{ATTEMPT, UnusedSince, answered_clean, kubelet_handshake};
pub(crate) use power::is_off_for_good;
pub use power::{gone, kept_off, off};
pub use reboot::{ANSWER_GOOD_FOR, Before, answers_clean, rebooted_and_clean};

use crate::cloud::CloudVolume;
use crate::evidence::{EvidenceAt, NodeFacts, PodFacts, Read};
use crate::fact::{Fact, Missing, Source};
use crate::ids::{BootId, InstanceId, NodeName, Uid, VolumeId};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

/// How long a proof holds that rests on what may change by itself: the longest effect (8 s) and a little more.
const HOLDS_FOR: SignedDuration = SignedDuration::from_secs(10);

/// Evidence-backed certainty that `holder` cannot write to `volume`. Not constructible outside this module and not
/// deserialisable: the executor makes a new one right before each effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FenceProof {
    volume: VolumeId,
    holder: InstanceId,
    kind: ProofKind,
    rests_on: Vec<Ground>,
    holds: Holds,
    made_at: Timestamp,
}

/// One fact that a proof rests on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Ground {
    /// What the fact says.
    pub says: String,
    /// Who said so.
    pub source: Source,
    /// When it was read, or earlier; of an agent's answer when it was asked for. The scan was not made before.
    pub at: Timestamp,
}

/// How long a proof holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Holds {
    /// For good: what is gone does not come back under the same identifier.
    ForGood,
    /// Until this moment.
    Until(Timestamp),
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
    /// The agent of the holder's node answered clean, asked after the last pod was gone and the last mount attempt over,
    /// while no new pod can come (DESIGN 6, P1, P2 and P4). kubelet may still list the volume.
    AnsweredClean {
        /// The node.
        node: NodeName,
        /// When no pod was first seen.
        no_user_since: Timestamp,
        /// The challenge that its agent answered.
        epoch: u64,
    },
    /// The instance does not exist any more.
    Gone {
        /// When it was last seen in this recovery, if "not found" is what the cloud says.
        last_seen: Option<Timestamp>,
    },
    /// The instance is off and stays off.
    Off {
        /// The shutdown job; none where the cloud never boots an instance by itself.
        job: Option<String>,
        /// The first of the two readings.
        first_seen: Timestamp,
    },
    /// The instance is off without a shutdown job, and its automatic restart is off, too.
    KeptOff {
        /// The first of the two readings.
        first_seen: Timestamp,
        /// The newest job in the history of its power, at both readings. None: the history was empty.
        newest_job: Option<String>,
    },
    /// The node runs another boot, in which nothing uses the volume and nothing can begin to.
    RebootedAndClean {
        /// The node.
        node: NodeName,
        /// The boot that is clean.
        boot: BootId,
        /// The challenge that its agent answered.
        epoch: u64,
    },
    /// A human says so.
    Declared {
        /// Who.
        by: String,
        /// Why.
        reason: String,
        /// When.
        at: Timestamp,
        /// By a right to declare in the whole cluster.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        cluster_wide: bool,
    },
}

impl FenceProof {
    fn new(
        volume: &CloudVolume,
        holder: &InstanceId,
        kind: ProofKind,
        rests_on: Vec<Ground>,
        holds: Holds,
        now: Timestamp,
    ) -> Self {
        Self {
            volume: volume.id.clone(),
            holder: holder.clone(),
            kind,
            rests_on,
            holds,
            made_at: now,
        }
    }

    /// The volume that may be freed.
    pub fn volume(&self) -> &VolumeId {
        &self.volume
    }

    /// The instance it may be freed from.
    pub fn holder(&self) -> &InstanceId {
        &self.holder
    }

    /// What kind it is.
    pub fn kind(&self) -> &ProofKind {
        &self.kind
    }

    /// The facts it rests on.
    pub fn rests_on(&self) -> &[Ground] {
        &self.rests_on
    }

    /// How old the oldest of these facts is at `now`.
    pub fn age(&self, now: Timestamp) -> SignedDuration {
        let oldest = self
            .rests_on
            .iter()
            .map(|g| g.at)
            .min()
            .unwrap_or(self.made_at);
        now.duration_since(oldest)
    }

    /// Whether it still holds at `now`. Never before it was made.
    pub fn holds_at(&self, now: Timestamp) -> bool {
        now >= self.made_at
            && match self.holds {
                Holds::ForGood => true,
                Holds::Until(end) => now <= end,
            }
    }

    /// Whether it shows that the instance does not run at all: what a forced detach needs.
    pub fn shows_off_or_gone(&self) -> bool {
        self.kind.shows_off_or_gone()
    }

    /// Whether it allows to fence the node as a whole ([`ProofKind::fences_the_node`]).
    pub fn fences_the_node(&self) -> bool {
        self.kind.fences_the_node()
    }

    /// When it was made.
    pub fn made_at(&self) -> Timestamp {
        self.made_at
    }
}

impl ProofKind {
    /// Whether it shows that the instance does not run at all. A human's word does not: it may be about the disk only.
    pub fn shows_off_or_gone(&self) -> bool {
        match self {
            Self::Gone { .. } | Self::Off { .. } | Self::KeptOff { .. } => true,
            Self::KubeletHandshake { .. }
            | Self::AnsweredClean { .. }
            | Self::RebootedAndClean { .. }
            | Self::Declared { .. } => false,
        }
    }

    /// Whether it allows to fence the node as a whole: the machine is off or gone, or a named human who may say so for the
    /// whole cluster says that it cannot write. What a living kubelet or agent says is about one volume.
    pub fn fences_the_node(&self) -> bool {
        self.shows_off_or_gone()
            || matches!(
                self,
                Self::Declared {
                    cluster_wide: true,
                    ..
                }
            )
    }
}

/// Why no proof could be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "camelCase")]
pub enum NoProof {
    /// Neither is the workload at zero by our stamp nor is the hold in force, so a new pod may come at any moment.
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
    /// A fresh fact says the opposite.
    #[error("{what} contradicts it")]
    Contradicted {
        /// Which fact, and what it says.
        what: String,
    },
    /// The cloud still runs the instance, or will.
    #[error("instance {holder} is not {needed}: the cloud says {found}")]
    Power {
        /// The instance.
        holder: InstanceId,
        /// `off` or `gone`.
        needed: String,
        /// What the cloud says.
        found: String,
    },
    /// "Not found" without having been seen before proves nothing: another account answers the same, and so may a credential
    /// that may see the volume and not the instance.
    #[error(
        "the cloud does not know instance {holder}, and neither it nor, without a Node of it, its volume was seen there before with the same credential in this recovery"
    )]
    NeverSeen {
        /// The instance.
        holder: InstanceId,
    },
    /// An instance that is off without a finished shutdown job may be booted again by the cloud's watchdog.
    #[error("instance {holder} is off, but by no shutdown job that has finished: {why}")]
    NoShutdown {
        /// The instance.
        holder: InstanceId,
        /// What the history of its power shows.
        why: String,
    },
    /// One reading of a power state may be of the past.
    #[error("instance {holder} was seen off only once; it is read again")]
    SeenOnce {
        /// The instance.
        holder: InstanceId,
    },
    /// The cloud may boot the instance by itself at any moment.
    #[error("instance {holder} is off, but the cloud may boot it: {why}")]
    MayBoot {
        /// The instance.
        holder: InstanceId,
        /// What was read.
        why: String,
    },
    /// Neither is the boot another one nor did it begin after the attach.
    #[error("node {node} has not rebooted since the volume was attached to it (boot {boot})")]
    NotRebooted {
        /// The node.
        node: NodeName,
        /// Its boot.
        boot: BootId,
    },
    /// The new boot's agent has not answered this recovery's challenge with "no device".
    #[error("the agent on {node} has not answered clean in this boot: {why}")]
    NotClean {
        /// The node.
        node: NodeName,
        /// What is missing, or what it saw.
        why: String,
    },
    /// A declaration that does not hold here and now.
    #[error("the declaration of {by} does not hold: {why}")]
    Declaration {
        /// Who declared it.
        by: String,
        /// Why.
        why: String,
    },
    /// A fact is missing, stale or unknown.
    #[error("{what} is not known: {why}")]
    Missing {
        /// Which fact.
        what: String,
        /// Why it is no answer.
        why: String,
    },
}

fn for_a_while(now: Timestamp) -> Holds {
    Holds::Until(now.saturating_add(HOLDS_FOR).unwrap_or(now))
}

fn ground<T>(fact: &Fact<T>, says: impl Into<String>) -> Ground {
    Ground {
        says: says.into(),
        source: fact.source.clone(),
        at: fact.at,
    }
}

/// That the cloud names this holder and nobody else: see [`the_volume`].
fn held_by(evidence: EvidenceAt<'_>, holder: &InstanceId) -> Ground {
    ground(
        &evidence.cloud_volume,
        format!("instance {holder} is the only holder that the cloud names"),
    )
}

fn missing(what: impl Into<String>, why: impl Into<String>) -> NoProof {
    NoProof::Missing {
        what: what.into(),
        why: why.into(),
    }
}

/// The value, or none where there is none for certain.
fn fresh<'a, T>(read: Read<'a, T>, what: &str) -> Result<Option<&'a T>, NoProof> {
    Missing::or_absent(read).map_err(|why| missing(what, why.to_string()))
}

/// A proof about the machine itself, without its kubelet or agent: gone, off, or declared.
///
/// # Errors
/// Why the one that is nearest could not be made.
pub fn of_the_machine(
    evidence: EvidenceAt<'_>,
    holder: &InstanceId,
) -> Result<FenceProof, NoProof> {
    let seen = || evidence.sightings.iter().map(Some).chain([None]);
    if let Some(proof) = seen().find_map(|s| gone(evidence, holder, s).ok()) {
        return Ok(proof);
    }
    if let Some(proof) = seen().find_map(|s| off(evidence, holder, s).ok()) {
        return Ok(proof);
    }
    if let Some(word) = &evidence.declaration {
        return declared(evidence, holder, word);
    }
    match evidence.instance(holder) {
        Err(Missing::Absent) => gone(evidence, holder, None),
        _ => off(evidence, holder, evidence.sightings.last()),
    }
}

/// A proof about the machine itself by which the node as a whole may be fenced.
///
/// # Errors
/// As [`of_the_machine`], and a declaration by a right in one namespace.
pub fn of_the_whole_machine(
    evidence: EvidenceAt<'_>,
    holder: &InstanceId,
) -> Result<FenceProof, NoProof> {
    let proof = of_the_machine(evidence, holder)?;
    match proof.kind() {
        ProofKind::Declared { by, cluster_wide: false, .. } => Err(NoProof::Declaration {
            by: by.clone(),
            why: "it was given by a right in one namespace, and about a whole node it takes the verb declare on volumerecoveries at cluster scope".to_owned(),
        }),
        _ => Ok(proof),
    }
}

/// The cloud volume, which the cloud says this holder has and nobody else.
fn the_volume<'a>(
    evidence: EvidenceAt<'a>,
    holder: &InstanceId,
) -> Result<&'a CloudVolume, NoProof> {
    let cloud = fresh(evidence.cloud_volume(), "the cloud volume")?
        .ok_or_else(|| missing("the cloud volume", "the cloud does not know it"))?;
    if cloud.holders != [holder.clone()] {
        let found = cloud
            .holders
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        let found = if found.is_empty() {
            "no instance".into()
        } else {
            found
        };
        return Err(NoProof::Holder {
            found,
            expected: holder.clone(),
        });
    }
    Ok(cloud)
}

/// The instance behind the Node is the holder.
fn is_holder(node: &NodeFacts, holder: &InstanceId) -> Result<(), NoProof> {
    if node.instance.as_ref() == Some(holder) {
        return Ok(());
    }
    let found = node.instance.as_ref().map_or("no instance".into(), |i| {
        format!("{i} behind Node {}", node.name)
    });
    Err(NoProof::Holder {
        found,
        expected: holder.clone(),
    })
}

/// From where new pods of the claim are kept away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Away {
    /// From every node.
    Everywhere,
    /// From the holder's node alone, by the closing taint.
    FromTheNode,
}

/// P1: no new pod can come to the holder's node. Either the workload is at zero and carries this recovery's stamp, or a pod
/// made now would be given our gate, or the node carries our closing taint and the workload's pods do not tolerate it.
fn held(evidence: EvidenceAt<'_>, node: &NodeName, recovery: &Uid) -> Result<Away, NoProof> {
    let no_hold = |why: String| Err(NoProof::NoHold { why });
    let workload = fresh(evidence.workload(), "the workload")?;
    let Some(workload) = workload else {
        return no_hold("the workload is not there".into());
    };
    match &workload.stamp {
        Some(Ok(stamp)) if workload.replicas == 0 => {
            if stamp.recovery != *recovery {
                return no_hold("the stamp is another recovery's".into());
            }
            if stamp.workload != workload.workload.uid {
                return no_hold("the stamp is another object's".into());
            }
            Ok(Away::Everywhere)
        }
        Some(Err(why)) => no_hold(why.clone()),
        _ => match workload.dry_run_held {
            Some(true) => Ok(Away::Everywhere),
            _ if evidence.node(node).is_ok_and(|n| n.is_closed_by(recovery)) => {
                match &workload.template.ignores_taints {
                    None => Ok(Away::FromTheNode),
                    Some(why) => no_hold(format!("node {node} is closed by a taint, and {why}")),
                }
            }
            Some(false) => no_hold("a pod that is created now would not get the gate".into()),
            None => no_hold(format!(
                "{} has {} replicas",
                workload.workload, workload.replicas
            )),
        },
    }
}

/// P2: no pod object with the claim is left that is on the holder's node or could come to it. A pod that is bound to
/// another node never moves, and the scheduler sends none to a node that is closed.
fn no_pod(evidence: EvidenceAt<'_>, node: &NodeName, away: Away) -> Result<(), NoProof> {
    let pods = fresh(evidence.pods(), "the list of pods")?;
    let kept = |p: &PodFacts| p.is_kept_from(node) || away == Away::FromTheNode && p.node.is_none();
    match pods.and_then(|p| p.iter().find(|p| !kept(p))) {
        Some(pod) => Err(NoProof::PodPresent {
            pod: pod.name.to_string(),
        }),
        None => Ok(()),
    }
}

/// For proofs that the machine does not run: no Node of that instance may be Ready. A Node that was not read freshly
/// is no answer either.
fn nothing_lives(evidence: EvidenceAt<'_>, holder: &InstanceId) -> Result<Vec<Ground>, NoProof> {
    let mut grounds = Vec::new();
    for (name, fact) in &evidence.nodes {
        let Some(node) = fresh(evidence.node(name), &format!("Node {name}"))? else {
            continue;
        };
        if node.instance.as_ref() != Some(holder) {
            continue;
        }
        if node.ready {
            return Err(NoProof::Contradicted {
                what: format!("Node {name}, which instance {holder} is, is Ready: that"),
            });
        }
        grounds.push(ground(fact, format!("Node {name} is not Ready")));
    }
    Ok(grounds)
}
