//! The executor's brain: the state that a journal adds up to, and the one next thing to do.
//!
//! # Expected flow
//! The shell reads the journal ([`State::replay`]), gathers evidence, asks [`next`], does exactly that one thing, and
//! starts again. It chooses nothing.
//!
//! # Guarantees
//! Both functions are total and pure. An effect is only ever proposed from a state in which the journal shows no
//! outstanding effect (S3). After [`Event::UnwindStarted`] only effects that put back are proposed. While a cloud mutation's
//! outcome is unknown nothing is restored and no hold lifted. Every wait carries a deadline (S5).
//!
//! # Assumptions
//! The evidence was collected after the journal was read. The shell stores an entry before it acts on it.
//!
//! # Caveats
//! `next` may propose the same effect again when the journal could not be written; the effect was not issued then.
//!
//! # Errors
//! [`Illegal`]: a journal that no executor could have written. The shell stops and pages a human.

mod consent;
mod cx;
mod next;
pub(crate) mod orders;
pub(crate) mod pace;
pub(crate) mod reconcile;
mod state;
mod unattended;
mod unwind;

use crate::evidence::{Evidence, Word};
use crate::ids::{InstanceId, NodeName, ObjectName, ResourceVersion, StepIx, Uid, VolumeId};
use crate::journal::{End, Event, NewestJob, Withdrawal};
use crate::plan::SoundPlan;
use crate::proof::FenceProof;
use crate::stamp::Stamp;
use crate::workload::{ScalePath, WorkloadRef};
use jiff::{SignedDuration, Timestamp};

pub use consent::{PolicySays, Said, withdrawal};
pub(crate) use cx::RunCx;
pub use orders::{History, Sent, accounted_for};
pub use state::{Illegal, OpenSteps, State, StepState, open_steps};
pub use unattended::Unattended;
pub use unwind::{Left, refused_to_put_back, without_journal};

/// The one next thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    /// Append this line and look again.
    Record(Event),
    /// Journal `Started`, pass the gate, issue the effect, journal its outcome.
    Act(Action),
    /// Look again when something changes, or at `until` at the latest.
    Wait {
        /// What is waited for, as one sentence.
        why: String,
        /// The latest moment to look again.
        until: Timestamp,
    },
    /// The run is over.
    Done(End),
}

/// An effect with the step it belongs to and the intent to be journaled.
#[derive(Clone, Debug, PartialEq)]
pub struct Action {
    /// The step.
    pub step: StepIx,
    /// The effect in words.
    pub intent: String,
    /// The effect.
    pub effect: Effect,
}

/// An effect as it will be issued. Every Kubernetes mutation carries UID and resourceVersion.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Stamp the workload and set its replicas to zero.
    ScaleToZero {
        /// Which.
        workload: WorkloadRef,
        /// The version that the decision was made on.
        resource_version: ResourceVersion,
        /// How.
        path: ScalePath,
        /// The stamp.
        stamp: Stamp,
    },
    /// Set the replicas (if given) and remove the stamp.
    Restore {
        /// Which.
        workload: WorkloadRef,
        /// The version that the decision was made on.
        resource_version: ResourceVersion,
        /// How.
        path: ScalePath,
        /// The count to set; `None` when someone else has set one already, which stands.
        replicas: Option<i32>,
    },
    /// Put the label on the VolumeRecovery that makes admission hold new pods of its claim.
    Hold,
    /// Evict one stuck pod, by its UID.
    Release {
        /// The pod.
        pod: ObjectName,
        /// Its UID.
        uid: Uid,
    },
    /// Delete one stuck pod by its UID, with its own grace period, because a PodDisruptionBudget refuses its eviction.
    DeletePod {
        /// The pod.
        pod: ObjectName,
        /// Its UID.
        uid: Uid,
    },
    /// Take the label off, and the gate off these pods.
    Lift {
        /// The pods that wait.
        pods: Vec<(ObjectName, Uid)>,
    },
    /// Put our closing taint on the Node: the hold of a cluster that has no policy for it.
    CloseNode {
        /// The Node.
        node: NodeName,
        /// Its UID.
        uid: Uid,
    },
    /// Take our closing taint off.
    OpenNode {
        /// The Node.
        node: NodeName,
        /// Its UID.
        uid: Uid,
    },
    /// Detach at the cloud. Cannot be made without a proof.
    CloudDetach {
        /// The proof, which names volume and holder.
        proof: FenceProof,
    },
    /// Begin a snapshot at the cloud, labelled with the VolumeRecovery's UID.
    Snapshot {
        /// The volume.
        volume: VolumeId,
    },
    /// Detach at the cloud by force. Its request cannot be made from a proof that leaves the instance running.
    CloudForce {
        /// The proof, which names volume and holder.
        proof: FenceProof,
    },
    /// Power the holder off, under the node's lock.
    PowerOff {
        /// The instance.
        instance: InstanceId,
        /// Its Node.
        node: NodeName,
    },
    /// Power the instance on again, and give the node's lock back.
    PowerOn {
        /// The instance.
        instance: InstanceId,
        /// Its Node.
        node: NodeName,
    },
    /// Switch the automatic restart of an instance that reads off without a shutdown job off, under the node's lock.
    KeepOff {
        /// The instance.
        instance: InstanceId,
        /// Its Node.
        node: NodeName,
    },
    /// Switch the automatic restart on again.
    LetBoot {
        /// The instance.
        instance: InstanceId,
        /// Its Node.
        node: NodeName,
    },
    /// Put the out-of-service taint on a Node that is not Ready, under the node's lock. Cannot be made without a proof.
    TaintOutOfService {
        /// The proof, which names the instance.
        proof: FenceProof,
        /// The Node.
        node: NodeName,
        /// Its UID.
        uid: Uid,
    },
    /// Take our out-of-service taint off, and give the node's lock back.
    Untaint {
        /// The Node.
        node: NodeName,
        /// Its UID.
        uid: Uid,
    },
    /// Put our quarantine taint on the Node.
    Quarantine {
        /// The Node.
        node: NodeName,
        /// Its UID.
        uid: Uid,
    },
    /// Ask the Node's agent the recovery's next question.
    Challenge {
        /// The Node.
        node: NodeName,
    },
    /// Delete a VolumeAttachment. Cannot be made without a proof.
    DeleteAttachment {
        /// The proof.
        proof: FenceProof,
        /// Its name.
        name: String,
        /// Its UID.
        uid: Uid,
    },
    /// Touch a VolumeAttachment so that external-attacher retries at once.
    Requeue {
        /// Its name.
        name: String,
        /// Its UID.
        uid: Uid,
        /// Its version.
        resource_version: ResourceVersion,
    },
}

impl Effect {
    /// Whether it only takes back what reattach did. It then needs no mode, policy or approval any more.
    pub fn puts_back(&self) -> bool {
        match self {
            Self::Restore { .. }
            | Self::Lift { .. }
            | Self::OpenNode { .. }
            | Self::Untaint { .. }
            | Self::PowerOn { .. }
            | Self::LetBoot { .. } => true,
            Self::ScaleToZero { .. }
            | Self::Hold
            | Self::Release { .. }
            | Self::DeletePod { .. }
            | Self::CloseNode { .. }
            | Self::CloudDetach { .. }
            | Self::Snapshot { .. }
            | Self::CloudForce { .. }
            | Self::PowerOff { .. }
            | Self::KeepOff { .. }
            | Self::TaintOutOfService { .. }
            | Self::Quarantine { .. }
            | Self::Challenge { .. }
            | Self::DeleteAttachment { .. }
            | Self::Requeue { .. } => false,
        }
    }
}

/// The end of the provider's history that tells what becomes of an order, as it was read right before. None: the effect is
/// no order to the cloud, or the provider has no such history.
pub fn newest_job(effect: &Effect, evidence: &Evidence) -> Option<NewestJob> {
    let newest = match effect {
        Effect::CloudDetach { .. } | Effect::CloudForce { .. } => {
            evidence.jobs.shown()?.last().map(|job| &job.id)
        }
        Effect::PowerOff { instance, .. } | Effect::PowerOn { instance, .. } => evidence
            .power
            .get(instance)?
            .shown()?
            .jobs
            .last()
            .map(|job| &job.id),
        Effect::ScaleToZero { .. }
        | Effect::Restore { .. }
        | Effect::Hold
        | Effect::Release { .. }
        | Effect::DeletePod { .. }
        | Effect::Lift { .. }
        | Effect::CloseNode { .. }
        | Effect::OpenNode { .. }
        | Effect::Snapshot { .. }
        | Effect::KeepOff { .. }
        | Effect::LetBoot { .. }
        | Effect::TaintOutOfService { .. }
        | Effect::Untaint { .. }
        | Effect::Quarantine { .. }
        | Effect::Challenge { .. }
        | Effect::DeleteAttachment { .. }
        | Effect::Requeue { .. } => return None,
    };
    Some(newest.map_or(NewestJob::Nothing, |id| NewestJob::Job { id: id.clone() }))
}

/// What the machine has to know besides plan, journal and evidence.
#[derive(Clone, Debug)]
pub struct Context<'a> {
    /// The VolumeRecovery's UID, which the stamp carries.
    pub recovery: &'a Uid,
    /// Who aborted it, if anyone.
    pub aborted_by: Option<&'a str>,
    /// The workload that a person named, as `Kind/name`.
    pub confirm_workload: Option<&'a str>,
    /// The leader's term. Intervals are measured only between lines of one term: another leader has another clock.
    pub term: u64,
    /// A person's word that no order to the cloud is under way any more, if one was given.
    pub nothing_under_way: Option<Word>,
    /// Why people or policies do not want the rest of the plan any more, if so.
    pub withdrawn: Option<Withdrawal>,
    /// How long nobody could act in the current step so far: no process led, or the API server or the cloud was away. Its
    /// deadline (S5) is later by so much. [`Unattended`] counts it.
    pub unattended: SignedDuration,
    /// Now.
    pub now: Timestamp,
}

/// The one next thing to do for a recovery in this state.
pub fn next(plan: &SoundPlan, state: &State, evidence: &Evidence, cx: &Context<'_>) -> Next {
    let run = RunCx {
        plan,
        state,
        evidence: evidence.at(cx.now),
        cx,
    };
    if let Some(end) = state.ended() {
        return Next::Done(end.clone());
    }
    if !state.accepted() {
        return run.poll("no plan was accepted");
    }
    if let Some(pending) = run.outstanding() {
        return pending;
    }
    if state.unwinding().is_none()
        && let Some(by) = cx.aborted_by
    {
        return Next::Record(Event::UnwindStarted {
            why: crate::journal::UnwindReason::Aborted { by: by.to_owned() },
        });
    }
    if state.unwinding().is_none()
        && let Some(why) = &cx.withdrawn
    {
        return Next::Record(Event::UnwindStarted {
            why: crate::journal::UnwindReason::Withdrawn { why: why.clone() },
        });
    }
    match state.unwinding() {
        Some(why) => run.next_of_unwinding(why),
        None => run.next_forward(),
    }
}
