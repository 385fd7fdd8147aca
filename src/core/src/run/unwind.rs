//! After turning back: put the workload back as it was, then end. A write that the API server refused is tried again: a right
//! that was taken away may be given again, and a workload must not stay at zero for one answer.

use super::orders::Fate;
use super::pace::{IN_FLIGHT, RETRY, later};
use super::reconcile::{TAINT, lost, unreachable};
use super::{Action, Context, Effect, Next, RunCx, State, StepState};
use crate::cloud::{InstanceState, PowerChange};
use crate::evidence::{Evidence, EvidenceAt};
use crate::fact::Missing;
use crate::hold::hold_taint;
use crate::ids::StepIx;
use crate::journal::{End, Entry, Event, Outcome, UnwindReason};
use crate::names::OUT_OF_SERVICE_TAINT;
use crate::plan::{Plan, SoundPlan};
use crate::runbook::Holding;
use crate::steps::StepKind;
use jiff::Timestamp;

/// Maximum number of journaled tries of one restoring write, which take about an hour. The journal has to fit into one
/// object; further tries are made by the stamp alone ([`without_journal`]).
const MOST_RESTORES: u32 = 60;
/// Maximum number of lines that [`without_journal`] imagines: an outcome, the turn back, and two for each mark that is off.
const IMAGINED: u32 = 10;

impl RunCx<'_> {
    /// The next thing while unwinding. No effect is outstanding here: `observe` has dealt with it.
    pub(super) fn next_of_unwinding(self, why: &UnwindReason) -> Next {
        if let Some(wait) = self.detach_under_way() {
            return wait;
        }
        match self.plan.holding() {
            Holding::AtZero => self.unwind_scale(why),
            Holding::ByGate | Holding::ByTaint | Holding::Nothing => self
                .unwind_hold()
                .or_else(|| self.unwind_taint())
                .or_else(|| self.unwind_power_off())
                .unwrap_or_else(|| self.end(why)),
        }
    }

    /// The end of a run that turned back for this reason and has nothing left to put back.
    fn end(self, why: &UnwindReason) -> Next {
        if let Some(next) = self.unwind_kept_off() {
            return next;
        }
        let end = match why {
            UnwindReason::Aborted { .. }
            | UnwindReason::Withdrawn { .. }
            | UnwindReason::Denied { .. } => End::Aborted,
            UnwindReason::Deadline { .. }
            | UnwindReason::Refused { .. }
            | UnwindReason::Failed { .. }
            | UnwindReason::TakenOver { .. } => {
                let why = why.to_string();
                if self.state.touched() {
                    End::Failed { why }
                } else {
                    End::Withdrawn { why }
                }
            }
        };
        Next::Record(Event::Ended { end })
    }

    /// After a scale to zero the workload gets its count back.
    fn unwind_scale(self, why: &UnwindReason) -> Next {
        let scale = self
            .plan
            .find(StepKind::ScaleToZero)
            .filter(|s| !matches!(self.state.step(*s), StepState::Pending));
        let (Some(scale), Some(restore)) = (scale, self.plan.find(StepKind::Restore)) else {
            return self.end(why);
        };
        if self
            .state
            .unwinding_since()
            .is_some_and(|at| self.evidence.workload.at < at)
        {
            return self.poll("the workload must be read again to restore it");
        }
        let w = match self.evidence.workload() {
            Ok(w) => w,
            Err(Missing::Absent) => return self.end(why),
            _ => return self.poll("the workload must be read to restore it"),
        };
        match self.restore_next(restore, w) {
            Some(Next::Act(_)) if self.state.tries(restore) >= MOST_RESTORES => stuck(format!(
                "{} could not be restored in {MOST_RESTORES} tries{}; reattach goes on trying by the stamp, which says what to restore",
                w.workload,
                self.answer(restore)
            )),
            Some(next) => next,
            None if w.replicas == 0 && matches!(w.stamp, Some(Err(_))) => stuck(format!(
                "{} is at 0 and the stamp that says how to restore it was edited",
                w.workload
            )),
            // A scale to zero whose reply was lost may still arrive: nothing has ended before its time is over.
            None => self
                .maybe_in_flight(scale, "the scale to zero")
                .unwrap_or_else(|| self.end(why)),
        }
    }

    /// Under a hold there is one thing to put back: pods may come again. A label whose write is still on its way is refused,
    /// since each line of the journal makes another version of the object that carries it. `None`: nothing is held.
    fn unwind_hold(self) -> Option<Next> {
        let lift = self
            .plan
            .find(StepKind::Lift)
            .filter(|_| self.state.in_force(self.plan, StepKind::Hold))?;
        // An eviction whose reply was lost may still arrive; the pod would go while others may come.
        let release = self.plan.find(StepKind::Release);
        if let Some(wait) =
            release.and_then(|r| self.maybe_in_flight(r, "the removal of the stuck pod"))
        {
            return Some(wait);
        }
        // A Node may stay as it was read for minutes, so a taint whose reply was lost may still be accepted.
        let close = self
            .plan
            .find(StepKind::Hold)
            .filter(|_| self.plan.closes_node);
        if let Some(wait) = close.and_then(|c| self.maybe_in_flight(c, "the closing taint")) {
            return Some(wait);
        }
        match self.lift_next(lift)? {
            Next::Act(_) if self.state.tries(lift) >= MOST_RESTORES => Some(stuck(format!(
                "the hold could not be lifted in {MOST_RESTORES} tries{}; reattach goes on trying; by hand: {}",
                self.answer(lift),
                self.by_hand()
            ))),
            next => Some(next),
        }
    }

    /// What a person does when a hold cannot be lifted.
    fn by_hand(self) -> String {
        if self.plan.closes_node {
            return format!(
                "kubectl taint node {} {}-",
                self.plan.pins.node,
                hold_taint(self.cx.recovery)
            );
        }
        "take the label reattach.dev/hold off the VolumeRecovery and the gate off its claim's pods"
            .to_owned()
    }

    /// The out-of-service taint goes with the run that put it there. `None`: there is none of it. Once this run has taken its
    /// taint off, a taint that is on the Node is of another recovery of that Node.
    fn unwind_taint(self) -> Option<Next> {
        let tainted = self.state.in_force(self.plan, StepKind::TaintOutOfService);
        let is_due =
            |ix: &StepIx| tainted && !matches!(self.state.step(*ix), StepState::Closed { .. });
        let untaint = self.plan.find(StepKind::Untaint).filter(is_due)?;
        // A Node may stay as it was read for minutes, so a taint whose reply was lost may still be accepted.
        let taint = self.plan.find(StepKind::TaintOutOfService);
        if let Some(wait) = taint.and_then(|t| self.maybe_in_flight(t, TAINT)) {
            return Some(wait);
        }
        let by_hand = format!(
            "kubectl taint node {} {OUT_OF_SERVICE_TAINT}-",
            self.plan.pins.node
        );
        match self.untaint_next(untaint)? {
            Next::Act(_) if self.state.tries(untaint) >= MOST_RESTORES => Some(stuck(format!(
                "the taint could not be taken off in {MOST_RESTORES} tries{}; reattach goes on trying; by hand: {by_hand}",
                self.answer(untaint)
            ))),
            next => Some(next),
        }
    }

    /// S3: an accepted detach is known only once the cloud has been read back. Until then nothing is restored, or the disk
    /// would be pulled from under the next pod.
    fn detach_under_way(self) -> Option<Next> {
        let (step, at) = self
            .asked(StepKind::CloudForce)
            .or_else(|| self.asked(StepKind::CloudDetach))?;
        let wait = |why: &str| Some(self.poll(why));
        match self.fate_of_detach(step, at) {
            Fate::Unread(what) => wait(what),
            Fate::Unreachable => wait(&unreachable("the detach")),
            Fate::Pending => wait(
                "the detach is under way at the cloud; nothing is restored before its end is known",
            ),
            Fate::Ended { .. } | Fate::Over(_) => None,
            Fate::Unseen => match self.evidence.cloud_volume() {
                // Accepted, and read back: the holder is gone and no job is pending.
                Ok(cloud) if !cloud.holders.contains(&self.plan.pins.holder) => None,
                Ok(_) | Err(_) => wait(&lost("the accepted detach")),
            },
        }
    }

    /// The detach that may be under way, and the time of the line since which the cloud must have been read.
    fn asked(self, kind: StepKind) -> Option<(StepIx, Timestamp)> {
        let ix = self.plan.find(kind)?;
        match self.state.step(ix) {
            StepState::Issued { outcome, at, .. } if outcome.applied() => Some((ix, *at)),
            // A plain detach that a forced one took over from may still be under way, and so may an unheard attempt before one
            // that was refused or withheld. A detach that was only ever refused is not.
            StepState::Closed { skipped: true }
            | StepState::Issued {
                outcome: Outcome::NotApplied { .. } | Outcome::Withheld { .. },
                ..
            } if self.state.sent_at(ix).is_some() => Some((ix, self.state.unwinding_since()?)),
            _ => None,
        }
    }

    /// A machine that this run powered off is powered on again, where the policy wants that after a run that ends well: each end
    /// is one. `None`: nothing is left to do about it here. What cannot be done is handed to people by the run's last message.
    fn unwind_power_off(self) -> Option<Next> {
        let on = self
            .plan
            .find(StepKind::PowerOn)
            .filter(|_| self.state.powered_off(self.plan))?;
        let off = self.plan.find(StepKind::PowerOff)?;
        let wait = |why: &str| Some(self.poll(why));
        match self.state.step(on) {
            StepState::Issued { outcome, .. } if outcome.applied() => return None,
            StepState::Closed { skipped: false } => return None,
            StepState::Issued {
                outcome: Outcome::NotApplied { retry: false, .. },
                ..
            } => return None,
            StepState::Issued {
                outcome: Outcome::NotApplied { .. },
                ..
            } if self.state.tries(on) >= MOST_RESTORES => return None,
            StepState::Pending
            | StepState::Started { .. }
            | StepState::Issued { .. }
            | StepState::Closed { skipped: true } => {}
        }
        if let Some(pause) = self.before_retry(on, "powering on", RETRY) {
            return Some(pause);
        }
        let since = self.state.unwinding_since().unwrap_or(self.cx.now);
        let instance = self.evidence.since(since).instance(&self.plan.pins.holder);
        let runs = matches!(instance, Ok(i) if i.state == InstanceState::Running);
        match self.fate_of_power_order(off, PowerChange::Off, since) {
            Fate::Unread(what) => return wait(what),
            Fate::Unreachable => return wait(&unreachable("the order about the instance's power")),
            Fate::Pending => return wait("a job changes the instance's power at the provider"),
            // Accepted, and not in the history yet: the machine that still runs is about to stop.
            Fate::Unseen if runs => {
                let until = later(since, IN_FLIGHT);
                if !self.state_tells() {
                    return wait(&lost("the accepted order to power the instance off"));
                }
                if self.cx.now < until {
                    let why = "the instance was ordered off and still runs".to_owned();
                    return Some(Next::Wait { why, until });
                }
            }
            // Nobody is left to be asked: the run's last message hands the machine to people by name.
            Fate::Over(_) if self.is_unreachable() => return None,
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
            intent: format!("power instance {} on again", self.plan.pins.holder),
            effect: Effect::PowerOn {
                instance: self.plan.pins.holder.clone(),
                node: self.plan.pins.node.clone(),
            },
        }))
    }

    /// The automatic restart that this run switched off is on again before the run ends. `None`: nothing is left to do about
    /// it.
    fn unwind_kept_off(self) -> Option<Next> {
        let step = self
            .plan
            .find(StepKind::LetBoot)
            .filter(|_| self.state.keeps_off(self.plan))?;
        if matches!(self.state.step(step), StepState::Closed { .. }) {
            return None;
        }
        let by_hand = self
            .plan
            .steps
            .get(step.index())
            .map_or("", |planned| planned.command.as_str());
        let holder = &self.plan.pins.holder;
        if self.is_unreachable() {
            return Some(stuck(format!(
                "the automatic restart of instance {holder} is off and the cloud cannot be asked, since the PersistentVolume is gone; by hand: {by_hand}"
            )));
        }
        match self.let_boot_next(step)? {
            Next::Act(_) if self.state.tries(step) >= MOST_RESTORES => Some(stuck(format!(
                "the automatic restart of instance {holder} could not be switched on in {MOST_RESTORES} tries{}; reattach goes on trying; by hand: {by_hand}",
                self.answer(step)
            ))),
            next => Some(next),
        }
    }

    /// The answer to the last try of a step, for a sentence about it.
    fn answer(self, step: StepIx) -> String {
        match self.state.step(step) {
            StepState::Issued {
                outcome: Outcome::NotApplied { why, .. },
                ..
            } => format!(" ({why})"),
            _ => String::new(),
        }
    }
}

/// The API server's answer to the last restoring write of a run, if it refused that write for good.
pub fn refused_to_put_back<'a>(plan: &Plan, state: &'a State) -> Option<&'a str> {
    let steps = [
        StepKind::Restore,
        StepKind::Lift,
        StepKind::Untaint,
        StepKind::LetBoot,
    ];
    steps
        .into_iter()
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
        why: "it is not known yet what the run left changed".to_owned(),
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
        Effect::LetBoot { instance, .. } => {
            Some(evidence.instance(instance).is_ok_and(|i| i.auto_restart))
        }
        Effect::ScaleToZero { .. }
        | Effect::Hold
        | Effect::Release { .. }
        | Effect::DeletePod { .. }
        | Effect::CloseNode { .. }
        | Effect::CloudDetach { .. }
        | Effect::Snapshot { .. }
        | Effect::CloudForce { .. }
        | Effect::KeepOff { .. }
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
