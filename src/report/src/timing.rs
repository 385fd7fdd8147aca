//! How long each step took, and how much of it was our own doing.

use crate::format::millis;
use jiff::Timestamp;
use reattach_core::journal::{Entry, Event};
use reattach_core::plan::{Plan, StepIx};
use serde::{Deserialize, Serialize};

/// The name of the part of a run after it turned back.
const PUT_BACK: &str = "PutBack";

/// How long one step took.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Timing {
    /// The step's kind; when the plan has several of that kind, with its number: `AwaitDetached (step 2)`. The time
    /// between turning back and the end is called `PutBack`.
    pub name: String,
    /// When it could begin: the time of the line that closed the step before it, or that took up the plan.
    pub started: Timestamp,
    /// From `started` to the line that closed it, in milliseconds. A step that was never closed counts to the line that
    /// turned the run back or ended it, and in a run that goes on to the last line of the journal.
    pub millis: i64,
    /// Our own share of it, in milliseconds: see [`own_share`].
    pub ours_millis: i64,
}

/// One stretch of the journal that belongs to a step, or to putting things back (`step` is then `None`).
#[derive(Clone, Debug)]
pub(crate) struct Stretch {
    pub(crate) step: Option<StepIx>,
    pub(crate) from: Timestamp,
    pub(crate) to: Timestamp,
    /// How it was left: by a line that closed it, or not.
    pub(crate) closed: bool,
    pub(crate) ours: i64,
}

/// The duration of each step that was begun, in the plan's order, and of putting back if the run turned back.
///
/// # Caveats
/// The journal's times are its writers' clocks. A negative difference (another leader with another clock) counts as 0.
pub fn timings(plan: &Plan, journal: &[Entry]) -> Vec<Timing> {
    stretches(plan, journal)
        .iter()
        .map(|s| Timing {
            name: s
                .step
                .map_or_else(|| PUT_BACK.to_owned(), |step| name(plan, step)),
            started: s.from,
            millis: millis(s.from, s.to),
            ours_millis: s.ours,
        })
        .collect()
}

/// Our own share of a run in milliseconds, as far as the journal tells: the sum over all effects of
///
/// * the *lead*: `Started` − the line that made the effect's turn come (the closing line of the step before it, the line
///   that took up the plan, or the line that turned the run back), for the first attempt of an effect only: a repetition
///   was put off by its target; and
/// * the *call*: the first `Outcome` after it − `Started`.
///
/// An effect that has no outcome yet counts with its lead only.
///
/// # Caveats
/// It is an upper bound of what we add: the call contains the target's own time to answer, and the lead contains any
/// wait for a precondition of the effect (a proof, a pending job). What the journal cannot tell is how long a step's end
/// condition held before we saw it: that is measured from the outside.
pub fn own_share(plan: &Plan, journal: &[Entry]) -> i64 {
    stretches(plan, journal).iter().map(|s| s.ours).sum()
}

fn name(plan: &Plan, step: StepIx) -> String {
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

/// Cuts a journal into stretches. Lines that do not fit (another step than the current one) are left out: whether a
/// journal is legal is for [`reattach_core::run::State::replay`] to say.
pub(crate) fn stretches(plan: &Plan, journal: &[Entry]) -> Vec<Stretch> {
    let mut done: Vec<Stretch> = Vec::new();
    let mut open: Option<Stretch> = None;
    // The effect in flight, and whether the current stretch has issued one already.
    let mut in_flight: Option<Timestamp> = None;
    let mut issued = false;
    let begin = |index: usize, at: Timestamp| {
        let step = u32::try_from(index)
            .ok()
            .filter(|_| index < plan.steps.len())
            .map(StepIx);
        step.map(|step| Stretch {
            step: Some(step),
            from: at,
            to: at,
            closed: false,
            ours: 0,
        })
    };
    for entry in journal {
        let Some(current) = open.as_mut() else {
            if matches!(entry.event, Event::Accepted { .. }) {
                open = begin(0, entry.at);
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
                open = begin(step.index() + 1, entry.at);
                (in_flight, issued) = (None, false);
            }
            Event::UnwindStarted { .. } => {
                done.extend(open.take());
                open = Some(Stretch {
                    step: None,
                    from: entry.at,
                    to: entry.at,
                    closed: false,
                    ours: 0,
                });
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
