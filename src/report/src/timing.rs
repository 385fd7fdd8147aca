//! Duration of each step of a run, and the share of it that reattach itself caused.

use crate::format::millis;
use jiff::Timestamp;
use reattach_core::ids::StepIx;
use reattach_core::journal::{Entry, Event};
use reattach_core::plan::Plan;
use serde::{Deserialize, Serialize};

/// Name of the unwinding in [`Timing::name`]. The custom resource documents it, so it keeps its spelling.
const UNWINDING: &str = "PutBack";

/// Duration of one step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timing {
    /// Kind of the step, with its number if the plan has several of that kind: `AwaitDetached (step 2)`. The time from the
    /// start of unwinding to the end is called `PutBack`.
    pub name: String,
    /// Time at which the step could begin: of the line that closed the step before it, or that accepted the plan.
    pub started: Timestamp,
    /// Milliseconds from `started` to the line that closed the step. A step that was never closed counts to the line that
    /// started unwinding or ended the run, and in a run that goes on to the last line of the journal.
    pub millis: i64,
    /// Share of it that reattach itself caused, in milliseconds: over all effects of the step, the sum of
    ///
    /// * the *lead*: `Started` − the line that made the effect's turn come (the closing line of the step before it, the
    ///   line that accepted the plan, or the line that started unwinding), for the first attempt of an effect only,
    ///   because the target delays each further attempt; and
    /// * the *call*: the first `Outcome` after it − `Started`. An effect that has no outcome yet has no call.
    ///
    /// The share is an upper bound: the call contains the target's own time to answer, and the lead contains any wait for
    /// a precondition of the effect (a proof, a pending job). How long a step's end condition held before reattach saw it
    /// is not in the journal; tests measure that from the outside.
    pub ours_millis: i64,
}

/// Stretch of the journal that belongs to a step, or to unwinding (`step` is then `None`).
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    pub(crate) step: Option<StepIx>,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// Did a line close it?
    pub(crate) closed: bool,
    /// See [`Timing::ours_millis`].
    pub(crate) ours: i64,
}

impl Stretch {
    fn begun(step: Option<StepIx>, at: Timestamp) -> Self {
        Self {
            step,
            from: at,
            to: at,
            closed: false,
            ours: 0,
        }
    }

    /// `None` if the plan has no such step.
    fn of_step(plan: &Plan, index: usize, at: Timestamp) -> Option<Self> {
        plan.steps.get(index)?;
        let step = StepIx(u32::try_from(index).ok()?);
        Some(Self::begun(Some(step), at))
    }
}

/// Returns the duration of each step that was begun, in the plan's order, and of unwinding if it started.
///
/// # Caveats
/// The journal's times are its writers' clocks. A negative difference (another leader with another clock) counts as 0.
pub fn timings(plan: &Plan, journal: &[Entry]) -> Vec<Timing> {
    stretches(plan, journal)
        .iter()
        .map(|s| Timing {
            name: s
                .step
                .map_or_else(|| UNWINDING.to_owned(), |step| step_kind(plan, step)),
            started: s.from,
            millis: millis(s.from, s.to),
            ours_millis: s.ours,
        })
        .collect()
}

fn step_kind(plan: &Plan, step: StepIx) -> String {
    let Some(planned) = plan.steps.get(step.index()) else {
        return format!("step {step}");
    };
    let several = plan.steps.iter().filter(|s| s.kind == planned.kind).count() > 1;
    if several {
        format!("{:?} (step {step})", planned.kind)
    } else {
        format!("{:?}", planned.kind)
    }
}

/// Cuts a journal into stretches. Lines about another step than the current one are left out:
/// [`reattach_core::run::State::replay`] decides whether a journal is legal.
pub(crate) fn stretches(plan: &Plan, journal: &[Entry]) -> Vec<Stretch> {
    let mut done: Vec<Stretch> = Vec::new();
    let mut open: Option<Stretch> = None;
    // `in_flight`: start of the effect without an outcome. `issued`: the current stretch has had an effect already.
    let mut in_flight: Option<Timestamp> = None;
    let mut issued = false;
    for entry in journal {
        let Some(current) = open.as_mut() else {
            if matches!(entry.event, Event::Accepted { .. }) {
                open = Stretch::of_step(plan, 0, entry.at);
            }
            continue;
        };
        current.to = current.to.max(entry.at);
        match &entry.event {
            Event::Started { .. } => {
                if !issued {
                    current.ours += millis(current.from, entry.at);
                }
                issued = true;
                in_flight = Some(entry.at);
            }
            Event::Outcome { .. } => {
                if let Some(started) = in_flight.take() {
                    current.ours += millis(started, entry.at);
                }
            }
            Event::Completed { step, .. } | Event::Skipped { step, .. }
                if current.step == Some(*step) =>
            {
                current.closed = true;
                done.extend(open.take());
                open = Stretch::of_step(plan, step.index() + 1, entry.at);
                (in_flight, issued) = (None, false);
            }
            Event::UnwindStarted { .. } => {
                done.extend(open.take());
                open = Some(Stretch::begun(None, entry.at));
                (in_flight, issued) = (None, false);
            }
            Event::Ended { .. } => {
                current.closed = current.step.is_none();
                done.extend(open.take());
            }
            Event::Accepted { .. }
            | Event::Completed { .. }
            | Event::Skipped { .. }
            | Event::UnusedSince { .. } => {}
        }
    }
    done.extend(open);
    done
}
