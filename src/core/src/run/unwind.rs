//! After turning back: put the workload back as it was, then end. A write that the API server refused is tried again: a right
//! that was taken away may be given again, and a workload must not stay at zero for one answer.

use super::orders::{self, Fate};
use super::pace::{IN_FLIGHT, RETRY, backoff, later};
use super::reconcile::{TAINT, lost, maybe_in_flight, unreachable};
use super::{Action, Context, Effect, Next, State, StepState};
use crate::cloud::{InstanceState, PowerChange};
use crate::evidence::{Evidence, EvidenceAt};
use crate::fact::Missing;
use crate::hold::hold_taint;
use crate::journal::{End, Entry, Event, Outcome, UnwindReason};
use crate::names::OUT_OF_SERVICE_TAINT;
use crate::plan::{Plan, SoundPlan, StepIx};
use crate::runbook::Holding;
use crate::steps::{StepKind, lift_next, restore_next, state_tells, untaint_next};
use jiff::Timestamp;

/// Maximum number of journaled tries of one restoring write, which take about an hour. The journal has to fit into one
/// object; further tries are made by the stamp alone ([`without_journal`]).
const MOST_RESTORES: u32 = 60;
/// Maximum number of lines that [`without_journal`] imagines: an outcome, the turn back, and two for each mark that is off.
const IMAGINED: u32 = 8;

/// The next thing while unwinding. No effect is outstanding here: `observe` has dealt with it.
pub(super) fn next(
    plan: &Plan,
    state: &State,
    evidence: EvidenceAt<'_>,
    cx: &Context<'_>,
    why: &UnwindReason,
) -> Next {
    if let Some(wait) = detach_under_way(plan, state, evidence, cx) {
        return wait;
    }
    match plan.holding() {
        Holding::AtZero => restore(plan, state, evidence, cx, why),
        Holding::ByGate | Holding::ByTaint | Holding::Nothing => lift(plan, state, evidence, cx)
            .or_else(|| untaint(plan, state, evidence, cx))
            .or_else(|| power_on(plan, state, evidence, cx))
            .unwrap_or_else(|| end(why)),
    }
}

/// After a scale to zero the workload gets its count back.
fn restore(
    plan: &Plan,
    state: &State,
    evidence: EvidenceAt<'_>,
    cx: &Context<'_>,
    why: &UnwindReason,
) -> Next {
    let scale = plan
        .find(StepKind::ScaleToZero)
        .filter(|s| !matches!(state.step(*s), StepState::Pending));
    let (Some(scale), Some(restore)) = (scale, plan.find(StepKind::Restore)) else {
        return end(why);
    };
    let wait = |why: &str| Next::Wait {
        why: why.to_owned(),
        until: later(cx.now, RETRY),
    };
    if state
        .unwinding_since()
        .is_some_and(|at| evidence.workload.at < at)
    {
        return wait("the workload must be read again to restore it");
    }
    let w = match evidence.workload() {
        Ok(w) => w,
        Err(Missing::Absent) => return end(why),
        _ => return wait("the workload must be read to restore it"),
    };
    match restore_next(restore, plan, w, state, cx) {
        Some(Next::Act(_)) if state.tries(restore) >= MOST_RESTORES => stuck(format!(
            "{} could not be restored in {MOST_RESTORES} tries{}; it is tried on by the stamp, which says how",
            w.workload,
            answer(state, restore)
        )),
        Some(next) => next,
        None if w.replicas == 0 && matches!(w.stamp, Some(Err(_))) => stuck(format!(
            "{} is at 0 and the stamp that says how to restore it was edited",
            w.workload
        )),
        // A scale to zero whose reply was lost may still arrive: nothing has ended before its time is over.
        None => maybe_in_flight(state, scale, cx, "the scale to zero").unwrap_or_else(|| end(why)),
    }
}

/// Under a hold there is one thing to put back: pods may come again. A label whose write is still on its way is refused,
/// since each line of the journal makes another version of the object that carries it. `None`: nothing is held.
fn lift(plan: &Plan, state: &State, evidence: EvidenceAt<'_>, cx: &Context<'_>) -> Option<Next> {
    let lift = plan
        .find(StepKind::Lift)
        .filter(|_| state.in_force(plan, StepKind::Hold))?;
    // An eviction whose reply was lost may still arrive; the pod would go while others may come.
    let release = plan.find(StepKind::Release);
    if let Some(wait) = release.and_then(|r| maybe_in_flight(state, r, cx, "the eviction")) {
        return Some(wait);
    }
    // A Node may stay as it was read for minutes, so a taint whose reply was lost may still be accepted.
    let close = plan.find(StepKind::Hold).filter(|_| plan.closes_node);
    if let Some(wait) = close.and_then(|c| maybe_in_flight(state, c, cx, "the closing taint")) {
        return Some(wait);
    }
    match lift_next(lift, plan, state, evidence, cx)? {
        Next::Act(_) if state.tries(lift) >= MOST_RESTORES => Some(stuck(format!(
            "the hold could not be lifted in {MOST_RESTORES} tries{}; it is tried on; {}",
            answer(state, lift),
            by_hand(plan, cx)
        ))),
        next => Some(next),
    }
}

/// What a person does when a hold cannot be lifted.
fn by_hand(plan: &Plan, cx: &Context<'_>) -> String {
    if plan.closes_node {
        return format!(
            "kubectl taint node {} {}-",
            plan.pins.node,
            hold_taint(cx.recovery)
        );
    }
    "take the label reattach.dev/hold off the VolumeRecovery and the gate off its claim's pods"
        .to_owned()
}

/// The out-of-service taint goes with the run that put it there. `None`: there is none of it. Once this run has taken its
/// taint off, a taint that is on the Node is of another recovery of that Node.
fn untaint(plan: &Plan, state: &State, evidence: EvidenceAt<'_>, cx: &Context<'_>) -> Option<Next> {
    let tainted = state.in_force(plan, StepKind::TaintOutOfService);
    let is_due = |ix: &StepIx| tainted && !matches!(state.step(*ix), StepState::Closed { .. });
    let untaint = plan.find(StepKind::Untaint).filter(is_due)?;
    // A Node may stay as it was read for minutes, so a taint whose reply was lost may still be accepted.
    let taint = plan.find(StepKind::TaintOutOfService);
    if let Some(wait) = taint.and_then(|t| maybe_in_flight(state, t, cx, TAINT)) {
        return Some(wait);
    }
    let by_hand = format!(
        "kubectl taint node {} {OUT_OF_SERVICE_TAINT}-",
        plan.pins.node
    );
    match untaint_next(untaint, plan, state, evidence, cx)? {
        Next::Act(_) if state.tries(untaint) >= MOST_RESTORES => Some(stuck(format!(
            "the taint could not be taken off in {MOST_RESTORES} tries{}; it is tried on; {by_hand}",
            answer(state, untaint)
        ))),
        next => Some(next),
    }
}

/// S3: an accepted detach is known only once the cloud has been read back. Until then nothing is restored, or the disk
/// would be pulled from under the next pod.
fn detach_under_way(
    plan: &Plan,
    state: &State,
    evidence: EvidenceAt<'_>,
    cx: &Context<'_>,
) -> Option<Next> {
    let (step, at) = asked(plan, state, StepKind::CloudForce)
        .or_else(|| asked(plan, state, StepKind::CloudDetach))?;
    let wait = |why: &str| {
        Some(Next::Wait {
            why: why.to_owned(),
            until: later(cx.now, RETRY),
        })
    };
    match orders::detach(step, plan, state, evidence, cx, at) {
        Fate::Unread(what) => wait(what),
        Fate::Unreachable => wait(&unreachable("the detach")),
        Fate::Pending => wait(
            "the detach is under way at the cloud; nothing is restored before its end is known",
        ),
        Fate::Ended { .. } | Fate::Over(_) => None,
        Fate::Unseen => match evidence.cloud_volume() {
            // Accepted, and read back: the holder is gone and no job is pending.
            Ok(cloud) if !cloud.holders.contains(&plan.pins.holder) => None,
            Ok(_) | Err(_) => wait(&lost("the accepted detach")),
        },
    }
}

/// The detach that may be under way, and the time of the line since which the cloud must have been read.
fn asked(plan: &Plan, state: &State, kind: StepKind) -> Option<(StepIx, Timestamp)> {
    let ix = plan.find(kind)?;
    match state.step(ix) {
        StepState::Issued { outcome, at, .. } if outcome.applied() => Some((ix, *at)),
        // A plain detach that a forced one took over from may still be under way, and so may an unheard attempt before one
        // that was refused or withheld. A detach that was only ever refused is not.
        StepState::Closed { skipped: true }
        | StepState::Issued {
            outcome: Outcome::NotApplied { .. } | Outcome::Withheld { .. },
            ..
        } if state.sent_at(ix).is_some() => Some((ix, state.unwinding_since()?)),
        _ => None,
    }
}

/// A machine that this run powered off is powered on again, where the policy wants that after a run that ends well: each end
/// is one. `None`: nothing is left to do about it here. What cannot be done is handed to people by the run's last message.
fn power_on(
    plan: &Plan,
    state: &State,
    evidence: EvidenceAt<'_>,
    cx: &Context<'_>,
) -> Option<Next> {
    let on = plan
        .find(StepKind::PowerOn)
        .filter(|_| state.powered_off(plan))?;
    let off = plan.find(StepKind::PowerOff)?;
    let wait = |why: &str| {
        Some(Next::Wait {
            why: why.to_owned(),
            until: later(cx.now, RETRY),
        })
    };
    match state.step(on) {
        StepState::Issued { outcome, .. } if outcome.applied() => return None,
        StepState::Closed { skipped: false } => return None,
        StepState::Issued {
            outcome: Outcome::NotApplied { retry: false, .. },
            ..
        } => return None,
        StepState::Issued {
            outcome: Outcome::NotApplied { why, .. },
            at,
            ..
        } => {
            if state.tries(on) >= MOST_RESTORES {
                return None;
            }
            let until = later(*at, backoff(state.attempts(on)));
            if cx.now < until {
                return Some(Next::Wait {
                    why: format!("powering on is tried again: {why}"),
                    until,
                });
            }
        }
        StepState::Issued {
            outcome: Outcome::Withheld { shut },
            at,
            ..
        } => {
            let until = later(*at, backoff(state.attempts(on)));
            if cx.now < until {
                return Some(Next::Wait {
                    why: format!("powering on was not sent ({shut}); it will be"),
                    until,
                });
            }
        }
        StepState::Pending
        | StepState::Started { .. }
        | StepState::Issued { .. }
        | StepState::Closed { skipped: true } => {}
    }
    let since = state.unwinding_since().unwrap_or(cx.now);
    let instance = evidence.since(since).instance(&plan.pins.holder);
    let runs = matches!(instance, Ok(i) if i.state == InstanceState::Running);
    match orders::power(off, plan, state, evidence, cx, PowerChange::Off, since) {
        Fate::Unread(what) => return wait(what),
        Fate::Unreachable => return wait(&unreachable("the order about the instance's power")),
        Fate::Pending => return wait("a job changes the instance's power at the provider"),
        // Accepted, and not in the history yet: the machine that still runs is about to stop.
        Fate::Unseen if runs => {
            let until = later(since, IN_FLIGHT);
            if !state_tells(plan, evidence) {
                return wait(&lost("the accepted order to power the instance off"));
            }
            if cx.now < until {
                let why = "the instance was ordered off and still runs".to_owned();
                return Some(Next::Wait { why, until });
            }
        }
        // Nobody is left to be asked: the run's last message hands the machine to people by name.
        Fate::Over(_) if orders::is_unreachable(plan, evidence) => return None,
        Fate::Ended { .. } | Fate::Over(_) | Fate::Unseen => {}
    }
    match instance {
        Err(Missing::Absent) => return None,
        Ok(i) => match &i.state {
            InstanceState::Off => {}
            InstanceState::Running | InstanceState::Gone => return None,
            InstanceState::Stopping
            | InstanceState::Transitional(_)
            | InstanceState::Unknown(_) => {
                return wait(
                    "the instance is on its way to off; it is powered on again after that",
                );
            }
        },
        _ => return wait("the instance must be read to power it on again"),
    }
    Some(Next::Act(Action {
        step: on,
        intent: format!("power instance {} on again", plan.pins.holder),
        effect: Effect::PowerOn {
            instance: plan.pins.holder.clone(),
            node: plan.pins.node.clone(),
        },
    }))
}

/// The answer to the last try of a step, for a sentence about it.
fn answer(state: &State, step: StepIx) -> String {
    match state.step(step) {
        StepState::Issued {
            outcome: Outcome::NotApplied { why, .. },
            ..
        } => format!(" ({why})"),
        _ => String::new(),
    }
}

/// The API server's answer to the last restoring write of a run, if it refused that write for good.
pub fn refused_to_put_back<'a>(plan: &Plan, state: &'a State) -> Option<&'a str> {
    let steps = [StepKind::Restore, StepKind::Lift, StepKind::Untaint].into_iter();
    steps
        .filter_map(|kind| plan.find(kind))
        .find_map(|ix| match state.step(ix) {
            StepState::Issued {
                outcome: Outcome::NotApplied { why, retry: false },
                ..
            } => Some(why.as_str()),
            _ => None,
        })
}

/// What is left to put back of a run whose journal takes no more lines.
#[derive(Clone, Debug, PartialEq)]
pub enum Left {
    /// Nothing of the run is in force.
    Nothing,
    /// This is put back next: the count, the label and the gates of a hold, or a taint.
    Act(Box<Action>),
    /// It is not known, or nothing may be put back yet.
    Wait {
        /// Why, as one sentence.
        why: String,
    },
    /// A person must decide.
    Person {
        /// Why, as one sentence.
        why: String,
    },
}

/// What is left to put back of a run that ended and needs a person, or whose journal cannot be written since `since`: what
/// unwinding would do next if its lines could be stored. The marks in the cluster suffice for that: a stamp says what to
/// restore, and `labelled` whether the VolumeRecovery has the label of a hold. S3 holds as ever: while an effect's outcome
/// is unknown nothing is put back.
pub fn without_journal(
    plan: &SoundPlan,
    state: &State,
    evidence: &Evidence,
    cx: &Context<'_>,
    since: Timestamp,
    labelled: bool,
) -> Left {
    let mut state = state.reopened(plan);
    let aborted = Context {
        aborted_by: Some("a journal that cannot be written"),
        ..cx.clone()
    };
    for _ in 0..IMAGINED {
        let events = match super::next(plan, &state, evidence, &aborted) {
            Next::Record(Event::Ended {
                end: End::Stuck { why },
            }) => return Left::Person { why },
            Next::Record(Event::Ended { .. }) | Next::Done(_) => return Left::Nothing,
            Next::Record(event) => vec![event],
            Next::Wait { why, .. } => return Left::Wait { why },
            Next::Act(action) => {
                match is_off(&action.effect, evidence.at(cx.now), &aborted, labelled) {
                    Some(false) => return Left::Act(Box::new(action)),
                    Some(true) => vec![
                        Event::Started {
                            step: action.step,
                            intent: action.intent,
                            proof: None,
                            newest_job: None,
                        },
                        Event::Outcome {
                            step: action.step,
                            outcome: Outcome::Applied {
                                detail: "it is off".to_owned(),
                            },
                        },
                    ],
                    None => {
                        let why = format!(
                            "what is left needs the journal, which cannot be written: {}",
                            action.intent
                        );
                        return Left::Person { why };
                    }
                }
            }
        };
        for event in events {
            let (seq, term) = (state.next_seq(), state.term());
            let line = Entry {
                seq,
                at: since,
                term,
                by: String::new(),
                event,
            };
            if let Err(illegal) = state.apply(plan, &line) {
                return Left::Person {
                    why: illegal.to_string(),
                };
            }
        }
    }
    Left::Wait {
        why: "what the run left is not settled yet".to_owned(),
    }
}

/// Whether the mark that a restoring effect takes off is off already. `None`: the effect does more than take a mark of ours
/// off, and is never made without a journal.
fn is_off(
    effect: &Effect,
    evidence: EvidenceAt<'_>,
    cx: &Context<'_>,
    labelled: bool,
) -> Option<bool> {
    let node = |name| evidence.node(name);
    match effect {
        // It is proposed only while the stamp is there.
        Effect::Restore { .. } => Some(false),
        Effect::Lift { pods } => Some(pods.is_empty() && !labelled),
        Effect::OpenNode { node: name, .. } => {
            Some(node(name).is_ok_and(|n| !n.is_closed_by(cx.recovery)))
        }
        Effect::Untaint { node: name, .. } => {
            Some(node(name).is_ok_and(|n| !n.out_of_service_by_us))
        }
        Effect::ScaleToZero { .. }
        | Effect::Hold
        | Effect::Release { .. }
        | Effect::CloseNode { .. }
        | Effect::CloudDetach { .. }
        | Effect::Snapshot { .. }
        | Effect::CloudForce { .. }
        | Effect::PowerOff { .. }
        | Effect::PowerOn { .. }
        | Effect::TaintOutOfService { .. }
        | Effect::Quarantine { .. }
        | Effect::Challenge { .. }
        | Effect::DeleteAttachment { .. }
        | Effect::Requeue { .. } => None,
    }
}

fn stuck(why: String) -> Next {
    Next::Record(Event::Ended {
        end: End::Stuck { why },
    })
}

fn end(why: &UnwindReason) -> Next {
    let end = match why {
        UnwindReason::Aborted { .. }
        | UnwindReason::Withdrawn { .. }
        | UnwindReason::Denied { .. } => End::Aborted,
        other @ (UnwindReason::Deadline { .. }
        | UnwindReason::Refused { .. }
        | UnwindReason::Failed { .. }
        | UnwindReason::TakenOver { .. }) => End::Failed {
            why: other.to_string(),
        },
    };
    Next::Record(Event::Ended { end })
}
