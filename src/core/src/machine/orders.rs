//! What became of an order to the cloud: a request that may land at any later time (safety rule S3).
//!
//! # Guarantees
//! No timer ends an order. It is known by the provider's own history, which shows that the request arrived; by the
//! provider's own refusal of requests of that age; or by a named person's word that nothing is under way.
//!
//! # Caveats
//! A job that another client ordered after our request was sent, on the same object and of the same kind, counts as ours:
//! histories do not name the request.

use super::{Context, State};
use crate::cloud::{JobStatus, PowerChange};
use crate::evidence::{Evidence, MAX_AGE};
use crate::journal::NewestJob;
use crate::plan::{Plan, StepIx};
use jiff::{SignedDuration, Timestamp};

/// What is known of an order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// Something must be read first.
    Unread(&'static str),
    /// A job of the object is under way.
    Pending,
    /// The provider's history shows that it arrived, and how it ended.
    Ended {
        /// In words.
        seen: String,
        /// Whether it ended well.
        well: bool,
    },
    /// It cannot have an effect any more, for this reason.
    Over(String),
    /// Nothing tells. It may still arrive.
    Unseen,
}

/// A job of a history, reduced to what tells of an order.
struct Job<'a> {
    id: &'a str,
    status: &'a JobStatus,
    /// Of the kind that was ordered.
    fits: bool,
}

/// What became of a detach that was ordered by this step; read at `since` or later.
pub(super) fn detach(
    step: StepIx,
    state: &State,
    evidence: &Evidence,
    cx: &Context<'_>,
    since: Timestamp,
) -> Fate {
    if evidence.cloud_volume.read(cx.now, MAX_AGE).present().is_none() {
        return Fate::Unread("the cloud must be read to know what became of the detach");
    }
    let Some(jobs) = evidence.jobs.read(cx.now, MAX_AGE).present() else {
        return Fate::Unread("the provider's job history must be read to know what became of the detach");
    };
    let read = evidence.cloud_volume.at.min(evidence.jobs.at);
    if read < since {
        return Fate::Unread("the cloud must be read again to know what became of the detach");
    }
    let jobs = jobs.iter().map(|j| Job { id: &j.id, status: &j.status, fits: j.action.contains("detach") });
    of_history(step, state, evidence, cx, jobs.collect(), read)
}

/// What became of an order to power the holder off or on that was given by this step.
pub(super) fn power(
    step: StepIx,
    plan: &Plan,
    state: &State,
    evidence: &Evidence,
    cx: &Context<'_>,
    change: PowerChange,
    since: Timestamp,
) -> Fate {
    let fact = evidence.power.get(&plan.pins.holder).filter(|f| f.at >= since);
    let Some((read, facts)) = fact.and_then(|f| Some((f.at, f.read(cx.now, MAX_AGE).present()?))) else {
        return Fate::Unread(
            "the history of the instance's power must be read to know what became of the order",
        );
    };
    let jobs = facts.jobs.iter().map(|j| Job { id: &j.id, status: &j.status, fits: j.change == change });
    of_history(step, state, evidence, cx, jobs.collect(), read)
}

fn of_history(
    step: StepIx,
    state: &State,
    evidence: &Evidence,
    cx: &Context<'_>,
    jobs: Vec<Job<'_>>,
    read: Timestamp,
) -> Fate {
    if jobs.iter().any(|j| matches!(j.status, JobStatus::Scheduled | JobStatus::Started)) {
        return Fate::Pending;
    }
    let later: &[Job<'_>] = match state.newest_before(step) {
        // A journal of an earlier version, or a history that was not read: nothing tells which job is new.
        None => &[],
        Some(NewestJob::Nothing) => &jobs,
        // A provider that keeps no history forgets what has ended (EC2); a history that was cut off is an error of its own.
        Some(NewestJob::Job { id }) => {
            let at = jobs.iter().position(|j| j.id == id);
            at.and_then(|at| jobs.get(at + 1..)).unwrap_or_default()
        }
    };
    let ended = |j: &&Job<'_>| j.fits && matches!(j.status, JobStatus::Finished | JobStatus::Failed);
    if let Some(job) = later.iter().rev().find(ended) {
        let well = *job.status == JobStatus::Finished;
        let seen =
            format!("the provider's job {} {}", job.id, if well { "has finished" } else { "has failed" });
        return Fate::Ended { seen, well };
    }
    let Some(sent) = state.sent_at(step) else { return Fate::Unseen };
    if let Some(secs) = evidence.orders_expire_after_seconds
        && read.duration_since(sent) > SignedDuration::from_secs(secs)
    {
        return Fate::Over(format!("the provider refuses requests that are older than {secs} s"));
    }
    // Said before the order was sent, or with a time that is still to come, it says nothing about it.
    if let Some(word) = cx.nothing_under_way.as_ref().filter(|word| word.at >= sent && word.at <= read) {
        return Fate::Over(format!("{} declared that nothing is under way: {}", word.by, word.reason));
    }
    Fate::Unseen
}
