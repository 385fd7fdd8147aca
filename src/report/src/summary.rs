//! Summary of one recovery, derived from its record: standing, times, proof, steps.

use crate::Record;
use crate::format::{millis, step_name};
use crate::timing::{Stretch, stretches};
use jiff::Timestamp;
use reattach_core::diagnosis::{Class, Verdict, WaitReason};
use reattach_core::ids::StepIx;
use reattach_core::journal::{End, Entry, Event, Outcome, is_withheld};
use reattach_core::phase::{Phase, Reason, Standing};
use reattach_core::plain::{clean, quoted};
use reattach_core::policy::Mode;
use reattach_core::proof::ProofKind;
use reattach_core::run::open_steps;
use reattach_core::steps::StepKind;
use serde::{Deserialize, Serialize};

/// Derives phase and reason of a recovery: from the journal first, then from the verdict, the plan and the mode. The
/// stored phase decides what these leave open.
pub fn standing(record: &Record) -> Standing {
    if let Some(end) = run_end(record) {
        return match end {
            End::Recovered => Standing::of(Phase::Recovered),
            End::Aborted => Standing::of(Phase::Aborted),
            End::Withdrawn { why } => {
                Standing::because(Phase::Withdrawn, Reason::Sentence(why.clone()))
            }
            End::Failed { why } => Standing::because(Phase::Failed, Reason::Sentence(why.clone())),
            End::Stuck { why } => Standing::because(Phase::Stuck, Reason::Sentence(why.clone())),
        };
    }
    match record.phase {
        phase @ (Phase::Stuck | Phase::Failed | Phase::Withdrawn) => {
            return Standing::because(phase, Reason::Sentence(record.message.clone()));
        }
        phase @ (Phase::Aborted | Phase::Resolved) => return Standing::of(phase),
        Phase::Diagnosing
        | Phase::NotOurs
        | Phase::Waiting
        | Phase::Refused
        | Phase::Planned
        | Phase::AwaitingApproval
        | Phase::Running
        | Phase::Restoring
        | Phase::Recovered => {}
    }
    run_in_progress(record).unwrap_or_else(|| before_the_run(record))
}

/// Returns the end of the run from the journal.
fn run_end(record: &Record) -> Option<&End> {
    record.journal.iter().rev().find_map(|e| match &e.event {
        Event::Ended { end } => Some(end),
        _ => None,
    })
}

/// Derives the standing of a run that was accepted and has not ended.
fn run_in_progress(record: &Record) -> Option<Standing> {
    let unwinding = record.journal.iter().rev().find_map(|e| match &e.event {
        Event::UnwindStarted { why } => Some(why.clone()),
        _ => None,
    });
    if let Some(why) = unwinding {
        return Some(Standing::because(Phase::Restoring, Reason::Unwinding(why)));
    }
    let accepted = record
        .journal
        .iter()
        .any(|e| matches!(e.event, Event::Accepted { .. }));
    let plan = record.plan.as_ref().filter(|_| accepted)?;
    let current = open_steps(plan, &record.journal)
        .ok()
        .and_then(|s| s.current);
    Some(Standing::because(Phase::Running, Reason::Step(current)))
}

/// Derives the standing of a recovery whose plan was not accepted.
fn before_the_run(record: &Record) -> Standing {
    match record.verdict() {
        None if record.refusals.is_empty() => return Standing::of(Phase::Diagnosing),
        Some(Verdict::Healthy { .. }) => {
            return Standing::because(Phase::Resolved, Reason::Healthy);
        }
        Some(Verdict::NotOurs { reason }) => {
            return Standing::because(Phase::NotOurs, Reason::NotOurs(reason.clone()));
        }
        Some(Verdict::Wait { reason }) => {
            return Standing::because(Phase::Waiting, Reason::Wait(reason.clone()));
        }
        Some(Verdict::Unclassified { missing }) => {
            return Standing::because(Phase::Diagnosing, Reason::Missing(missing.clone()));
        }
        Some(Verdict::Ours { .. }) | None => {}
    }
    let waits = record.phase == Phase::Waiting;
    if !record.refusals.is_empty() {
        // A refusal that passes by itself leaves the recovery waiting.
        let phase = if waits {
            Phase::Waiting
        } else {
            Phase::Refused
        };
        return Standing::because(phase, Reason::Refusals(record.refusals.clone()));
    }
    if record.plan.is_none() {
        return Standing::because(Phase::Diagnosing, Reason::NoPlan);
    }
    if waits {
        return Standing::because(Phase::Waiting, Reason::Sentence(record.message.clone()));
    }
    match record.mode {
        Mode::Approve => Standing::of(Phase::AwaitingApproval),
        mode @ (Mode::Observe | Mode::DryRun | Mode::Auto) => {
            Standing::because(Phase::Planned, Reason::Mode(mode))
        }
    }
}

/// Describes a standing in a few words, for a table.
pub fn title(standing: &Standing) -> &'static str {
    match (standing.phase, &standing.reason) {
        (Phase::Recovered, _) => "recovered",
        (Phase::Resolved, Some(Reason::Healthy)) => "healthy",
        (Phase::Resolved, _) => "resolved by itself",
        (Phase::Aborted, _) => "aborted",
        (Phase::Withdrawn, _) => "ended without effect",
        (Phase::Failed, _) => "failed and unwound",
        (Phase::Stuck, _) => "STUCK",
        (Phase::Running, _) => "running",
        (Phase::Restoring, _) => "restoring",
        (Phase::NotOurs, _) => "not ours",
        (Phase::Waiting, _) if is_provider_lock(standing) => "locked by the provider",
        (Phase::Waiting, _) => "waiting",
        (Phase::Refused, _) => "refused",
        (Phase::Planned, Some(Reason::Mode(Mode::Auto))) => "about to start",
        (Phase::Planned, _) => "dry-run only",
        (Phase::AwaitingApproval, _) => "awaits approval",
        (Phase::Diagnosing, Some(Reason::Missing(_))) => "not classified",
        (Phase::Diagnosing, Some(Reason::NoPlan)) => "diagnosed",
        (Phase::Diagnosing, _) => "being diagnosed",
    }
}

/// Does the recovery wait for a lock that only the provider lifts?
pub(crate) fn is_provider_lock(standing: &Standing) -> bool {
    matches!(
        &standing.reason,
        Some(Reason::Wait(WaitReason::ProviderLock { .. }))
    )
}

/// Outcome of the run's order to the cloud to detach the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum CloudDetach {
    /// No order was sent.
    No,
    /// The cloud accepted an order.
    Used,
    /// An order was sent, and none is known to be accepted.
    Tried,
}

/// Course of one step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StepSummary {
    NotBegun,
    Done(String),
    Skipped(String),
    Unfinished,
}

/// Record of one recovery, with the values that are derived from it.
pub(crate) struct RecoverySummary<'a> {
    pub(crate) record: &'a Record,
    pub(crate) standing: Standing,
    /// Time of acceptance of the plan, and the policy or person that allowed it.
    pub(crate) accepted: Option<(Timestamp, &'a str)>,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) cloud_detach: CloudDetach,
    pub(crate) stretches: Vec<Stretch>,
}

impl<'a> RecoverySummary<'a> {
    pub(crate) fn of(record: &'a Record) -> Self {
        let ended = record
            .journal
            .iter()
            .find(|e| matches!(e.event, Event::Ended { .. }));
        let accepted = record.journal.iter().find_map(|e| match &e.event {
            Event::Accepted { authority, .. } => Some((e.at, authority.as_str())),
            _ => None,
        });
        Self {
            record,
            standing: standing(record),
            accepted,
            ended: ended.map(|e| e.at),
            cloud_detach: cloud_detach(record),
            stretches: record
                .plan
                .as_ref()
                .map(|p| stretches(p, &record.journal))
                .unwrap_or_default(),
        }
    }

    /// Describes the standing in a few words.
    pub(crate) fn title(&self) -> &'static str {
        title(&self.standing)
    }

    /// Describes the reason for the standing in one sentence without its full stop. `None` if the title says it all.
    pub(crate) fn why(&self) -> Option<String> {
        let why = match self.standing.reason.as_ref()? {
            Reason::Healthy | Reason::NoPlan | Reason::Mode(Mode::Auto | Mode::Approve) => {
                return None;
            }
            Reason::Mode(Mode::Observe | Mode::DryRun) => {
                "nothing was done, because the mode does not allow it".to_owned()
            }
            Reason::NotOurs(reason) => reason.to_string(),
            Reason::Wait(reason) => reason.to_string(),
            Reason::Missing(missing) => {
                let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
                missing.join("; ")
            }
            Reason::Refusals(refusals) => refusals.join("; "),
            Reason::Step(Some(step)) => step_name(self.record.plan.as_ref(), *step),
            Reason::Step(None) => "the journal cannot be read".to_owned(),
            Reason::Unwinding(why) => why.to_string(),
            Reason::Sentence(sentence) => sentence.clone(),
        };
        Some(quoted(&why))
    }

    pub(crate) fn claim(&self) -> String {
        clean(&self.record.claim.to_string())
    }

    /// Returns the class of the plan, or of the diagnosis where there is no plan. The diagnosis comes second: once the
    /// volume is healed, it says that nothing is wrong.
    pub(crate) fn class(&self) -> Option<Class> {
        let planned = self.record.plan.as_ref().map(|p| p.class());
        planned.or_else(|| self.record.diagnosis.as_ref().and_then(|d| d.class()))
    }

    /// Returns the time at which the pod was seen running with its volume again.
    pub(crate) fn healed_at(&self) -> Option<Timestamp> {
        self.ended
            .filter(|_| self.standing.phase == Phase::Recovered)
    }

    /// Returns the milliseconds from the acceptance of the plan until the pod ran again.
    pub(crate) fn heal_millis(&self) -> Option<i64> {
        Some(millis(self.accepted?.0, self.healed_at()?))
    }

    /// Was any effect issued, or may one have been?
    pub(crate) fn touched(&self) -> bool {
        let sent = |ix| !is_withheld(&self.record.journal, ix);
        let mut lines = self.record.journal.iter().enumerate();
        lines.any(|(ix, e)| matches!(e.event, Event::Started { .. }) && sent(ix))
    }

    /// Is the pod still without its volume, as far as the record tells?
    pub(crate) fn still_down(&self) -> bool {
        !matches!(self.standing.phase, Phase::Recovered | Phase::Resolved)
    }

    /// Returns the proof of the last effect that was issued with one.
    pub(crate) fn proof(&self) -> Option<&'a ProofKind> {
        let journal = &self.record.journal;
        journal
            .iter()
            .enumerate()
            .rev()
            .find_map(|(ix, e)| match &e.event {
                Event::Started { proof, .. } if !is_withheld(journal, ix) => proof.as_ref(),
                _ => None,
            })
    }

    /// Returns the course of a step, with its stretch of the journal if it was begun.
    pub(crate) fn step(&self, step: StepIx) -> (StepSummary, Option<&Stretch>) {
        let stretch = self.stretches.iter().find(|s| s.step == Some(step));
        let closing = self.record.journal.iter().find_map(|e| match &e.event {
            Event::Completed { step: s, seen } if *s == step => {
                Some(StepSummary::Done(quoted(seen)))
            }
            Event::Skipped { step: s, why } if *s == step => {
                Some(StepSummary::Skipped(quoted(why)))
            }
            _ => None,
        });
        let open = if stretch.is_some() {
            StepSummary::Unfinished
        } else {
            StepSummary::NotBegun
        };
        (closing.unwrap_or(open), stretch)
    }
}

fn cloud_detach(record: &Record) -> CloudDetach {
    let Some(plan) = &record.plan else {
        return CloudDetach::No;
    };
    let Some(step) = plan.find(StepKind::CloudDetach) else {
        return CloudDetach::No;
    };
    let order = |e: &Entry| matches!(&e.event, Event::Started { step: s, .. } if *s == step);
    let mut lines = record.journal.iter().enumerate();
    let tried = lines.any(|(ix, e)| order(e) && !is_withheld(&record.journal, ix));
    let applied = record
        .journal
        .iter()
        .any(|e| matches!(&e.event, Event::Outcome { step: s, outcome } if *s == step && outcome.applied()));
    match (tried, applied) {
        (_, true) => CloudDetach::Used,
        (true, false) => CloudDetach::Tried,
        (false, false) => CloudDetach::No,
    }
}

/// Returns time and text of the cloud's refusal to detach, if it is the last outcome of the detach and may be retried.
///
/// `None` if no order was sent, if the cloud accepted it, or if the provider could not lift the reason.
pub(crate) fn refused_detach(record: &Record) -> Option<(Timestamp, &str)> {
    let step = record.plan.as_ref()?.find(StepKind::CloudDetach)?;
    let last = record.journal.iter().rev().find_map(|e| match &e.event {
        // A withheld order was not sent, so it says nothing about the cloud.
        Event::Outcome {
            outcome: Outcome::Withheld { .. },
            ..
        } => None,
        Event::Outcome { step: s, outcome } if *s == step => Some((e.at, outcome)),
        _ => None,
    });
    match last {
        Some((at, Outcome::NotApplied { why, retry: true })) => Some((at, why)),
        _ => None,
    }
}

/// Returns time and text of the acceptance of a detach whose end was not observed.
pub(crate) fn unfinished_detach(record: &Record) -> Option<(Timestamp, &str)> {
    let plan = record.plan.as_ref()?;
    let step = plan.find(StepKind::CloudDetach)?;
    let last = record.journal.iter().rev().find(|e| match &e.event {
        Event::Outcome {
            outcome: Outcome::Withheld { .. },
            ..
        } => false,
        Event::Outcome { step: s, .. }
        | Event::Completed { step: s, .. }
        | Event::Skipped { step: s, .. } => *s == step,
        _ => false,
    });
    match last.map(|e| (e.at, &e.event)) {
        Some((
            at,
            Event::Outcome {
                outcome: Outcome::Applied { detail },
                ..
            },
        )) => Some((at, detail)),
        _ => None,
    }
}

/// Returns the step of an effect whose outcome is unknown, if the journal ends with one.
pub(crate) fn outstanding(record: &Record) -> Option<StepIx> {
    let plan = record.plan.as_ref()?;
    open_steps(plan, &record.journal).ok()?.outstanding
}
