//! The journal: what was intended, before it was done, and what came of it (safety rule S3).
//!
//! # Expected flow
//! The executor appends `Started` (compare-and-swap on the recovery's status), issues the effect, appends `Outcome`.
//! Between the two a crash leaves a started step without an outcome, which the next executor *observes*.
//!
//! # Guarantees
//! Sequence numbers are dense and terms never shrink; [`crate::run::State::replay`] refuses a journal that breaks
//! this, and the executor then stops and pages a human.
//!
//! # Assumptions
//! One object holds the whole journal, and its store refuses a write against an old `resourceVersion`.
//!
//! # Caveats
//! Times are the writer's clock; order comes from the sequence alone, and intervals are measured within one term.

use crate::authority::Denial;
use crate::ids::StepIx;
use crate::policy::Mode;
use crate::proof::{ProofKind, UnusedSince};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One line of the journal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// 0, 1, 2, …
    pub seq: u32,
    /// When it was written, on the writer's clock.
    pub at: Timestamp,
    /// The leader's term (break-glass: the term it took).
    pub term: u64,
    /// Who wrote it: pod name and UID, or user and host.
    pub by: String,
    /// What happened. Stored as `mark`.
    #[serde(rename = "mark")]
    pub event: Event,
}

/// What a journal line says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "mark",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Event {
    /// The plan with this hash was taken up.
    Accepted {
        /// The plan's hash.
        plan_hash: String,
        /// Who allowed it: a policy's mode or a person.
        authority: String,
    },
    /// A step began. For effects: nothing was issued before this line was stored.
    Started {
        /// Which step.
        step: StepIx,
        /// The effect in words, as it will be issued.
        intent: String,
        /// The proof that a freeing effect rests on.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<ProofKind>,
        /// For an order to the cloud: the end of the provider's history as it was read right before. What stands behind it
        /// later came after.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        newest_job: Option<NewestJob>,
    },
    /// What came of a started effect.
    Outcome {
        /// Which step.
        step: StepIx,
        /// What is known.
        outcome: Outcome,
    },
    /// A step's own condition holds: it is finished.
    Completed {
        /// Which step.
        step: StepIx,
        /// What was seen.
        seen: String,
    },
    /// A step was not needed.
    Skipped {
        /// Which step.
        step: StepIx,
        /// Why.
        why: String,
    },
    /// No pod of the claim was seen any more: the start of the kubelet handshake. A later line replaces it; one without
    /// a Lease voids it.
    #[serde(rename = "noUser")]
    UnusedSince {
        /// The moment and the Lease as it stood.
        #[serde(flatten)]
        seen: UnusedSince,
    },
    /// The run unwinds: from here on only restoring happens.
    #[serde(rename = "turnedBack")]
    UnwindStarted {
        /// Why.
        why: UnwindReason,
    },
    /// The run ended.
    Ended {
        /// How.
        end: End,
    },
}

/// The newest job of a provider's history.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "history",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum NewestJob {
    /// The history was read and had no job.
    Nothing,
    /// This one.
    Job {
        /// The provider's identifier of the job.
        id: String,
    },
}

/// What is known of an issued effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(
    tag = "outcome",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Outcome {
    /// The target said yes.
    Applied {
        /// Its answer in words.
        detail: String,
    },
    /// It was definitely not applied.
    NotApplied {
        /// Why.
        why: String,
        /// Whether it may be issued again after another look (a conflict, a throttle, a busy cloud).
        retry: bool,
    },
    /// A PodDisruptionBudget refused the eviction: it was definitely not applied, and may be asked for again.
    RefusedByBudget {
        /// The API server's words.
        why: String,
    },
    /// The gate did not let the effect out: nothing was sent, and the target was not asked. It is issued again once the gate
    /// is open.
    Withheld {
        /// Why the gate was shut.
        shut: Shut,
    },
    /// Nobody knows: the reply was lost. Only observation can tell.
    Unknown {
        /// What happened.
        why: String,
    },
    /// An effect without an outcome was observed to have been applied.
    ObservedApplied {
        /// What was seen.
        seen: String,
    },
    /// An effect without an outcome was observed not to have been applied.
    ObservedNotApplied {
        /// What was seen.
        seen: String,
    },
    /// Whether it was applied is not known and need not be: it is conditional or frees nothing, and may be issued again.
    /// Nothing was looked at.
    Repeatable {
        /// Why it may be repeated.
        why: String,
    },
}

/// Why the gate lets no effect out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    tag = "because",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum Shut {
    /// Not leader, or not for long enough.
    #[error("this process is not leader, or not for long enough to finish the effect")]
    NotLeader,
    /// The term changed since the journal was written.
    #[error("the leader's term changed from {expected} to {now}")]
    Term {
        /// The term in the journal line.
        expected: u64,
        /// The term now.
        now: u64,
    },
    /// The mode forbids effects.
    #[error("mode {mode} changes nothing but reattach's own records")]
    Mode {
        /// The recovery's mode.
        mode: Mode,
    },
    /// The plan was not approved.
    #[error("plan {plan} is not approved")]
    NotApproved {
        /// Its hash.
        plan: String,
    },
}

/// Whether the effect that this line of a journal began was withheld by the gate. The line counts from 0.
pub fn is_withheld(journal: &[Entry], started: usize) -> bool {
    let Some(Event::Started { step, .. }) = journal.get(started).map(|e| &e.event) else {
        return false;
    };
    let of_step = |event: &Event| matches!(event, Event::Outcome { step: s, .. } | Event::Started { step: s, .. } if s == step);
    let next = journal
        .iter()
        .skip(started + 1)
        .map(|e| &e.event)
        .find(|event| of_step(event));
    matches!(
        next,
        Some(Event::Outcome {
            outcome: Outcome::Withheld { .. },
            ..
        })
    )
}

impl Outcome {
    /// Whether the effect is known to be in force.
    pub fn applied(&self) -> bool {
        matches!(self, Self::Applied { .. } | Self::ObservedApplied { .. })
    }
}

/// Why a run turned back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    tag = "because",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
pub enum UnwindReason {
    /// A person aborted it.
    #[error("aborted by {by}")]
    Aborted {
        /// Who.
        by: String,
    },
    /// A step did not finish in time.
    #[error("step {step} did not finish within {seconds} s: {waiting_for}")]
    Deadline {
        /// Which step.
        step: StepIx,
        /// Its deadline.
        seconds: i64,
        /// What it waited for.
        waiting_for: String,
    },
    /// A precondition no longer holds.
    #[error("step {step} is refused: {why}")]
    Refused {
        /// Which step.
        step: StepIx,
        /// The refusal's sentence.
        why: String,
    },
    /// The target refused the effect for good.
    #[error("step {step} failed: {why}")]
    Failed {
        /// Which step.
        step: StepIx,
        /// The target's words.
        why: String,
    },
    /// Someone else changed what we had changed; theirs stands.
    #[error("someone else took over: {what}")]
    TakenOver {
        /// What they did.
        what: String,
    },
    /// People or policies do not want the rest of the plan any more.
    #[error("{why}")]
    Withdrawn {
        /// What changed.
        why: Withdrawal,
    },
    /// The policy or a person's right does not reach so far any more.
    #[error("{denial}")]
    Denied {
        /// Why.
        denial: Denial,
    },
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "end", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum End {
    /// The pod runs with its volume.
    Recovered,
    /// A person ended it, or it was not wanted any more; everything was put back.
    Aborted,
    /// It ended before it had any effect, so nothing had to be put back.
    Withdrawn {
        /// Why.
        why: String,
    },
    /// It failed; everything was put back.
    Failed {
        /// Why.
        why: String,
    },
    /// A human is needed.
    Stuck {
        /// What is known.
        why: String,
    },
}

/// Why a run that has begun may not go on. Each variant carries what its sentence names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(
    tag = "withdrawn",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
#[allow(missing_docs)] // The sentences above the variants name the fields.
pub enum Withdrawal {
    /// The policy that the recovery was made under allows less now.
    #[error("RecoveryPolicy {policy} now says mode {mode} for this claim")]
    PolicyMode { policy: String, mode: Mode },
    /// The recovery was made under a policy and no policy selects the claim any more.
    #[error("no RecoveryPolicy selects claim {claim} any more")]
    NoPolicy { claim: String },
    /// The policy no longer lets instances be powered off, and the plan is about to.
    #[error("RecoveryPolicy {policy} no longer allows to power instances off")]
    PowerOff { policy: String },
    /// Somebody opted out of reattach.
    #[error("{what} has opted out of reattach")]
    OptedOut { what: String },
    /// The claim is going or gone.
    #[error("claim {claim} is being deleted or is gone")]
    ClaimDeleted { claim: String },
    /// The approval is not there, or is for another plan.
    #[error("plan {plan} is not approved any more")]
    Approval { plan: String },
}
