//! What became of one recovery, read off its record.

use crate::Record;
use crate::format::{clean, millis, quoted, step_name};
use crate::timing::{Stretch, stretches};
use jiff::Timestamp;
use reattach_core::diagnosis::{Class, Verdict, WaitReason};
use reattach_core::journal::{End, Entry, Event, Outcome, is_withheld};
use reattach_core::plan::StepIx;
use reattach_core::policy::Mode;
use reattach_core::proof::ProofKind;
use reattach_core::run::open_steps;
use reattach_core::steps::StepKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What became of a recovery.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fate", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Fate {
    /// The pod runs with its volume, by our doing.
    Recovered,
    /// The trouble went away without us.
    Resolved,
    /// A person ended it; everything was put back.
    Aborted,
    /// It failed; everything was put back.
    Failed {
        /// Why.
        why: String,
    },
    /// A person is needed.
    Stuck {
        /// What is known.
        why: String,
    },
    /// Steps are being performed.
    Running {
        /// The current step, in words.
        step: String,
    },
    /// It turned back and is putting things back.
    PuttingBack {
        /// Why it turned back.
        why: String,
    },
    /// Trouble that no detach heals; nothing was touched.
    NotOurs {
        /// What it is.
        why: String,
    },
    /// Something must happen first.
    Waiting {
        /// What.
        why: String,
        /// It is the provider's lock, which only the provider lifts.
        provider_lock: bool,
    },
    /// A safety rule stands against acting; nothing was touched.
    Refused {
        /// Which, one sentence each.
        why: Vec<String>,
    },
    /// Observe or DryRun: the plan is there and nothing was done.
    Planned,
    /// The plan waits for a person.
    AwaitingApproval,
    /// A plan is there and may run; it has not been taken up.
    Ready,
    /// Too little is known; nothing was touched.
    Unclassified {
        /// What is missing.
        why: String,
    },
    /// Nothing was wrong.
    Healthy,
    /// It is named what it is, and there is no plan.
    Diagnosed,
    /// Evidence is being gathered.
    Diagnosing,
}

impl Fate {
    /// In a few words, for a table.
    pub fn title(&self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Resolved => "resolved by itself",
            Self::Aborted => "aborted",
            Self::Failed { .. } => "failed and put back",
            Self::Stuck { .. } => "STUCK",
            Self::Running { .. } => "running",
            Self::PuttingBack { .. } => "putting back",
            Self::NotOurs { .. } => "not ours",
            Self::Waiting { provider_lock: true, .. } => "locked by the provider",
            Self::Waiting { .. } => "waiting",
            Self::Refused { .. } => "refused",
            Self::Planned => "dry-run only",
            Self::AwaitingApproval => "awaits approval",
            Self::Ready => "about to start",
            Self::Unclassified { .. } => "not classified",
            Self::Healthy => "healthy",
            Self::Diagnosed => "diagnosed",
            Self::Diagnosing => "being diagnosed",
        }
    }

    /// The sentence that belongs to it, if it has one of its own.
    pub fn why(&self) -> Option<String> {
        match self {
            Self::Failed { why }
            | Self::Stuck { why }
            | Self::PuttingBack { why }
            | Self::NotOurs { why }
            | Self::Waiting { why, .. }
            | Self::Unclassified { why } => Some(quoted(why)),
            Self::Refused { why } => Some(quoted(&why.join("; "))),
            Self::Running { step } => Some(step.clone()),
            Self::Planned => Some("nothing was done, because the mode says so".to_owned()),
            _ => None,
        }
    }
}

/// What became of a recovery. The journal speaks first, then the verdict, then the plan and the mode; the phase decides
/// only what these cannot tell.
pub fn fate(record: &Record) -> Fate {
    let ended = record.journal.iter().rev().find_map(|e| match &e.event {
        Event::Ended { end } => Some(end.clone()),
        _ => None,
    });
    match ended {
        Some(End::Recovered) => return Fate::Recovered,
        Some(End::Aborted) => return Fate::Aborted,
        Some(End::Failed { why }) => return Fate::Failed { why },
        Some(End::Stuck { why }) => return Fate::Stuck { why },
        None => {}
    }
    match record.phase.as_str() {
        "Stuck" => return Fate::Stuck { why: record.message.clone() },
        "Failed" => return Fate::Failed { why: record.message.clone() },
        "Aborted" => return Fate::Aborted,
        "Resolved" => return Fate::Resolved,
        _ => {}
    }
    if let Some(going) = going(record) {
        return going;
    }
    match record.diagnosis.as_ref().map(|d| &d.verdict) {
        None if record.refusals.is_empty() => Fate::Diagnosing,
        Some(Verdict::Healthy { .. }) => Fate::Healthy,
        Some(Verdict::NotOurs { reason }) => Fate::NotOurs { why: reason.to_string() },
        Some(Verdict::Wait { reason }) => Fate::Waiting {
            why: reason.to_string(),
            provider_lock: matches!(reason, WaitReason::ProviderLock { .. }),
        },
        Some(Verdict::Unclassified { missing }) => {
            Fate::Unclassified { why: missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ") }
        }
        _ if !record.refusals.is_empty() => Fate::Refused { why: record.refusals.clone() },
        Some(Verdict::Ours { .. }) | None if record.plan.is_some() => match record.mode {
            Mode::Observe | Mode::DryRun => Fate::Planned,
            Mode::Approve => Fate::AwaitingApproval,
            Mode::Auto => Fate::Ready,
        },
        Some(Verdict::Ours { .. }) | None => Fate::Diagnosed,
    }
}

/// A run that was taken up and has not ended.
fn going(record: &Record) -> Option<Fate> {
    let turned = record.journal.iter().rev().find_map(|e| match &e.event {
        Event::UnwindStarted { why } => Some(why.to_string()),
        _ => None,
    });
    if let Some(why) = turned {
        return Some(Fate::PuttingBack { why });
    }
    let accepted = record.journal.iter().any(|e| matches!(e.event, Event::Accepted { .. }));
    let plan = record.plan.as_ref().filter(|_| accepted)?;
    let current = open_steps(plan, &record.journal).ok().and_then(|s| s.current);
    let step = current.map_or_else(|| "the journal cannot be read".to_owned(), |s| step_name(Some(plan), s));
    Some(Fate::Running { step })
}

/// Whether the cloud was asked to detach the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum CloudDetach {
    /// It was not asked.
    No,
    /// It was, and did.
    Used,
    /// It was, and did not or is not known to have done so.
    Tried,
}

/// How one step of a plan went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StepSummary {
    NotBegun,
    Done(String),
    Skipped(String),
    Unfinished,
}

/// One record with what is read off it.
pub(crate) struct RecoverySummary<'a> {
    pub(crate) record: &'a Record,
    pub(crate) fate: Fate,
    /// When the plan was taken up, and who allowed it.
    pub(crate) accepted: Option<(Timestamp, &'a str)>,
    pub(crate) turned_back: Option<Timestamp>,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) cloud_detach: CloudDetach,
    pub(crate) stretches: Vec<Stretch>,
}

impl<'a> RecoverySummary<'a> {
    pub(crate) fn of(record: &'a Record) -> Self {
        let at = |wanted: fn(&Event) -> bool| record.journal.iter().find(|e| wanted(&e.event)).map(|e| e.at);
        let accepted = record.journal.iter().find_map(|e| match &e.event {
            Event::Accepted { authority, .. } => Some((e.at, authority.as_str())),
            _ => None,
        });
        Self {
            record,
            fate: fate(record),
            accepted,
            turned_back: at(|m| matches!(m, Event::UnwindStarted { .. })),
            ended: at(|m| matches!(m, Event::Ended { .. })),
            cloud_detach: cloud_detach(record),
            stretches: record.plan.as_ref().map(|p| stretches(p, &record.journal)).unwrap_or_default(),
        }
    }

    pub(crate) fn claim(&self) -> String {
        clean(&self.record.claim.to_string())
    }

    /// The class: of the plan that ran, else of the diagnosis (which is newer than the trouble once it is healed).
    pub(crate) fn class(&self) -> Option<Class> {
        let planned = self.record.plan.as_ref().map(|p| p.class());
        planned.or_else(|| self.record.diagnosis.as_ref().and_then(|d| d.class()))
    }

    /// When the pod was seen running with its volume again.
    pub(crate) fn healed_at(&self) -> Option<Timestamp> {
        self.ended.filter(|_| self.fate == Fate::Recovered)
    }

    /// Milliseconds from taking up the plan to the pod running again.
    pub(crate) fn heal_millis(&self) -> Option<i64> {
        Some(millis(self.accepted?.0, self.healed_at()?))
    }

    /// Milliseconds from the first sight of the trouble to the pod running again.
    pub(crate) fn down_millis(&self) -> Option<i64> {
        Some(millis(self.record.created, self.healed_at()?))
    }

    /// Whether any effect was issued, or may have been.
    pub(crate) fn touched(&self) -> bool {
        let sent = |ix| !is_withheld(&self.record.journal, ix);
        let mut lines = self.record.journal.iter().enumerate();
        lines.any(|(ix, e)| matches!(e.event, Event::Started { .. }) && sent(ix))
    }

    /// Whether the pod is, for all we know, still without its volume.
    pub(crate) fn still_down(&self) -> bool {
        !matches!(self.fate, Fate::Recovered | Fate::Resolved | Fate::Healthy)
    }

    /// The proof that a freeing effect rested on; the last one counts.
    pub(crate) fn proof(&self) -> Option<&'a ProofKind> {
        let journal = &self.record.journal;
        journal.iter().enumerate().rev().find_map(|(ix, e)| match &e.event {
            Event::Started { proof, .. } if !is_withheld(journal, ix) => proof.as_ref(),
            _ => None,
        })
    }

    /// Who wrote the journal.
    pub(crate) fn doers(&self) -> BTreeSet<String> {
        self.record.journal.iter().map(|e| clean(&e.by)).collect()
    }

    /// How a step went, with its stretch if it was begun.
    pub(crate) fn step(&self, step: StepIx) -> (StepSummary, Option<&Stretch>) {
        let stretch = self.stretches.iter().find(|s| s.step == Some(step));
        let closing = self.record.journal.iter().find_map(|e| match &e.event {
            Event::Completed { step: s, seen } if *s == step => Some(StepSummary::Done(quoted(seen))),
            Event::Skipped { step: s, why } if *s == step => Some(StepSummary::Skipped(quoted(why))),
            _ => None,
        });
        let open = if stretch.is_some() { StepSummary::Unfinished } else { StepSummary::NotBegun };
        (closing.unwrap_or(open), stretch)
    }

    /// The journal with times that never run backwards: what sorting may use. Shown times are the writers' own.
    pub(crate) fn ordered(&self) -> Vec<(Timestamp, &'a Entry)> {
        let mut last = Timestamp::MIN;
        self.record
            .journal
            .iter()
            .map(|e| {
                last = last.max(e.at);
                (last, e)
            })
            .collect()
    }
}

fn cloud_detach(record: &Record) -> CloudDetach {
    let Some(plan) = &record.plan else { return CloudDetach::No };
    let Some(step) = plan.find(StepKind::CloudDetach) else { return CloudDetach::No };
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

/// The last refusal of the cloud to detach, as long as nothing came after it: when it was and in which words. `None` when
/// the cloud was not asked, or accepted, or the reason is not one that the provider could lift.
pub(crate) fn refused_detach(record: &Record) -> Option<(Timestamp, &str)> {
    let step = record.plan.as_ref()?.find(StepKind::CloudDetach)?;
    let last = record.journal.iter().rev().find_map(|e| match &e.event {
        // What was not sent says nothing about the cloud.
        Event::Outcome { outcome: Outcome::Withheld { .. }, .. } => None,
        Event::Outcome { step: s, outcome } if *s == step => Some((e.at, outcome)),
        _ => None,
    });
    match last {
        Some((at, Outcome::NotApplied { why, retry: true })) => Some((at, why)),
        _ => None,
    }
}

/// A detach that the cloud accepted and of which the end was not seen: when it was accepted and in which words.
pub(crate) fn unfinished_detach(record: &Record) -> Option<(Timestamp, &str)> {
    let plan = record.plan.as_ref()?;
    let step = plan.find(StepKind::CloudDetach)?;
    let last = record.journal.iter().rev().find(|e| match &e.event {
        Event::Outcome { outcome: Outcome::Withheld { .. }, .. } => false,
        Event::Outcome { step: s, .. }
        | Event::Completed { step: s, .. }
        | Event::Skipped { step: s, .. } => *s == step,
        _ => false,
    });
    match last.map(|e| (e.at, &e.event)) {
        Some((at, Event::Outcome { outcome: Outcome::Applied { detail }, .. })) => Some((at, detail)),
        _ => None,
    }
}

/// Whether a record's journal ends with an effect of which nobody knows what became of it.
pub(crate) fn outstanding(record: &Record) -> Option<StepIx> {
    let plan = record.plan.as_ref()?;
    open_steps(plan, &record.journal).ok()?.outstanding
}
