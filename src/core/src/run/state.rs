//! The state that a journal adds up to: a total transition function over its lines.

use crate::ids::StepIx;
use crate::journal::{End, Entry, Event, NewestJob, Outcome, UnwindReason};
use crate::plan::{Plan, SoundPlan};
use crate::proof::UnusedSince;
use crate::runbook::Holding;
use crate::steps::{EffectClass, Role, StepKind};
use jiff::Timestamp;

/// How one step stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Not begun.
    Pending,
    /// Its effect was journaled and no outcome is known.
    Started {
        /// When it was journaled.
        at: Timestamp,
    },
    /// Its effect has an outcome.
    Issued {
        /// The outcome.
        outcome: Outcome,
        /// When the effect was journaled.
        started: Timestamp,
        /// When the outcome was journaled.
        at: Timestamp,
    },
    /// Finished or not needed.
    Closed {
        /// Whether it was skipped.
        skipped: bool,
    },
}

/// Why a journal line cannot follow the lines before it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Illegal {
    /// A gap or repetition.
    #[error("journal line {found} stands where line {expected} should")]
    Sequence {
        /// What should stand there.
        expected: u32,
        /// What does.
        found: u32,
    },
    /// An older leader wrote after a newer one.
    #[error("journal line {seq} is of term {term}, after term {after}")]
    Term {
        /// The line.
        seq: u32,
        /// Its term.
        term: u64,
        /// The term before it.
        after: u64,
    },
    /// The line does not fit the state.
    #[error("journal line {seq} ({event}) cannot follow what stands before it: {why}")]
    Transition {
        /// The line.
        seq: u32,
        /// Its kind.
        event: String,
        /// Why.
        why: String,
    },
}

/// The steps of a run that are not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenSteps {
    /// The first step that is not closed; `None` when every step is.
    pub current: Option<StepIx>,
    /// The step whose effect was journaled and has no known outcome.
    pub outstanding: Option<StepIx>,
}

/// Tells which steps of a run are open, for display. Unlike [`State::replay`] it takes a plan that no run may follow any
/// more, such as one of an earlier version, and therefore returns no [`State`].
///
/// # Errors
/// The first line that no executor could have written.
pub fn open_steps<'a>(
    plan: &Plan,
    journal: impl IntoIterator<Item = &'a Entry>,
) -> Result<OpenSteps, Illegal> {
    let state = State::add_up(plan, journal)?;
    Ok(OpenSteps {
        current: state.current(),
        outstanding: state.outstanding(),
    })
}

/// The state of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    accepted: bool,
    steps: Vec<StepState>,
    /// How often each step's effect was journaled as started.
    attempts: Vec<u32>,
    /// How many of these the gate did not let out.
    withheld: Vec<u32>,
    /// The start of each step's latest attempt of which nobody heard whether it was applied.
    doubts: Vec<Option<Timestamp>>,
    /// The start of each step's latest attempt, and the newest job of the provider's history right before. None: the attempt
    /// was refused or withheld, and none before it went unheard.
    sent: Vec<Option<(Timestamp, Option<NewestJob>)>>,
    /// When the current step could begin: the time of the line that closed the step before it, or of the one that told what
    /// became of an order whose reply was lost.
    entered_at: Option<Timestamp>,
    /// The start of the kubelet handshake, and its line's term.
    unused_since: Option<(UnusedSince, u64)>,
    /// When the last question to the holder's agent was journaled, and in which term.
    challenged: Option<(Timestamp, u64)>,
    /// Since when PodDisruptionBudgets refuse the eviction of the stuck pod, and in which term that was written.
    budget_refuses: Option<(Timestamp, u64)>,
    unwinding: Option<(UnwindReason, Timestamp)>,
    ended: Option<End>,
    next_seq: u32,
    term: u64,
}

impl State {
    /// The state before the first line.
    pub fn new(plan: &SoundPlan) -> Self {
        Self::before(plan)
    }

    fn before(plan: &Plan) -> Self {
        Self {
            accepted: false,
            steps: vec![StepState::Pending; plan.steps.len()],
            attempts: vec![0; plan.steps.len()],
            withheld: vec![0; plan.steps.len()],
            doubts: vec![None; plan.steps.len()],
            sent: vec![None; plan.steps.len()],
            entered_at: None,
            unused_since: None,
            challenged: None,
            budget_refuses: None,
            unwinding: None,
            ended: None,
            next_seq: 0,
            term: 0,
        }
    }

    /// Adds up a whole journal.
    ///
    /// # Errors
    /// The first line that no executor could have written.
    pub fn replay<'a>(
        plan: &SoundPlan,
        journal: impl IntoIterator<Item = &'a Entry>,
    ) -> Result<Self, Illegal> {
        Self::add_up(plan, journal)
    }

    fn add_up<'a>(
        plan: &Plan,
        journal: impl IntoIterator<Item = &'a Entry>,
    ) -> Result<Self, Illegal> {
        let mut state = Self::before(plan);
        for entry in journal {
            state.add(plan, entry)?;
        }
        Ok(state)
    }

    /// Adds one line.
    ///
    /// # Errors
    /// When the line does not fit; the state is then unchanged.
    pub fn apply(&mut self, plan: &SoundPlan, entry: &Entry) -> Result<(), Illegal> {
        self.add(plan, entry)
    }

    fn add(&mut self, plan: &Plan, entry: &Entry) -> Result<(), Illegal> {
        if entry.seq != self.next_seq {
            return Err(Illegal::Sequence {
                expected: self.next_seq,
                found: entry.seq,
            });
        }
        if entry.term < self.term {
            return Err(Illegal::Term {
                seq: entry.seq,
                term: entry.term,
                after: self.term,
            });
        }
        self.step_over(plan, entry)
            .map_err(|why| Illegal::Transition {
                seq: entry.seq,
                event: format!("{:?}", entry.event),
                why: why.to_owned(),
            })?;
        self.next_seq += 1;
        self.term = entry.term;
        Ok(())
    }

    fn step_over(&mut self, plan: &Plan, entry: &Entry) -> Result<(), &'static str> {
        if self.ended.is_some() {
            return Err("the run has ended");
        }
        if !self.accepted && !matches!(entry.event, Event::Accepted { .. }) {
            return Err("no plan was accepted");
        }
        match &entry.event {
            Event::Accepted { plan_hash, .. } => {
                if self.accepted {
                    return Err("a plan was accepted already");
                }
                if *plan_hash != plan.hash.as_str() {
                    return Err("another plan was accepted");
                }
                self.accepted = true;
                self.entered_at = Some(entry.at);
            }
            Event::Started {
                step, newest_job, ..
            } => {
                if self.outstanding().is_some() {
                    return Err("an effect is outstanding");
                }
                let planned = plan
                    .steps
                    .get(step.index())
                    .ok_or("the plan has no such step")?;
                let (kind, spec) = (planned.kind, planned.kind.spec());
                // An answer that has become too old is asked for again, from a later step.
                let asks_again =
                    kind == StepKind::Challenge && self.current().is_some_and(|now| *step < now);
                if self.unwinding.is_none() && self.current() != Some(*step) && !asks_again {
                    return Err("it is not the current step");
                }
                if self.unwinding.is_some() && spec.role != Role::Restores {
                    return Err("the run is unwinding, and only restoring may follow");
                }
                let slot = self.slot(*step)?;
                if !spec.goes_on
                    && matches!(slot, StepState::Issued { outcome, .. } if outcome.applied())
                {
                    return Err("its effect is in force already");
                }
                let unknown = matches!(
                    slot,
                    StepState::Issued {
                        outcome: Outcome::Repeatable { .. },
                        ..
                    }
                );
                if unknown && planned.effect_class == EffectClass::Once {
                    return Err("what became of its effect is not known, and it is issued once");
                }
                *slot = StepState::Started { at: entry.at };
                if let Some(sent) = self.sent.get_mut(step.index()) {
                    *sent = Some((entry.at, newest_job.clone()));
                }
                if kind == StepKind::Challenge {
                    self.challenged = Some((entry.at, entry.term));
                }
                if asks_again {
                    self.entered_at = Some(entry.at);
                }
                if let Some(attempts) = self.attempts.get_mut(step.index()) {
                    *attempts += 1;
                }
            }
            Event::Outcome { step, outcome } => {
                let slot = self.slot(*step)?;
                let started = match slot {
                    StepState::Started { at } => *at,
                    StepState::Issued {
                        started,
                        outcome: Outcome::Unknown { .. },
                        ..
                    } => *started,
                    _ => return Err("no effect is outstanding"),
                };
                *slot = StepState::Issued {
                    outcome: outcome.clone(),
                    started,
                    at: entry.at,
                };
                // S5: the time in which nobody knew what became of an order does not count against its step.
                let order = plan
                    .steps
                    .get(step.index())
                    .is_some_and(|s| s.kind.spec().is_order());
                let observed = matches!(
                    outcome,
                    Outcome::ObservedApplied { .. } | Outcome::ObservedNotApplied { .. }
                );
                if order && observed {
                    self.entered_at = Some(entry.at);
                }
                let unheard = matches!(
                    outcome,
                    Outcome::Unknown { .. }
                        | Outcome::ObservedNotApplied { .. }
                        | Outcome::Repeatable { .. }
                );
                if let Some(doubt) = self.doubts.get_mut(step.index()).filter(|_| unheard) {
                    *doubt = Some(started);
                }
                self.note_budget(plan, *step, outcome, entry);
                let shut = matches!(outcome, Outcome::Withheld { .. });
                if let Some(withheld) = self.withheld.get_mut(step.index()).filter(|_| shut) {
                    *withheld += 1;
                }
                // Where an earlier attempt was never heard of, "busy" may be that one.
                let no = matches!(
                    outcome,
                    Outcome::NotApplied { .. } | Outcome::RefusedByBudget { .. }
                );
                let refused = (shut || no) && self.unheard_since(*step).is_none();
                if let Some(sent) = self.sent.get_mut(step.index()).filter(|_| refused) {
                    *sent = None;
                }
            }
            Event::Completed { step, .. } => self.close(*step, false, entry.at)?,
            Event::Skipped { step, .. } => self.close(*step, true, entry.at)?,
            Event::UnusedSince { seen } => {
                self.unused_since = Some((seen.clone(), entry.term));
                self.reopen_question(plan, seen, entry.at);
            }
            Event::UnwindStarted { why } => {
                if self.unwinding.is_some() {
                    return Err("it turned back already");
                }
                if self.outstanding().is_some() {
                    return Err("an effect is outstanding");
                }
                self.unwinding = Some((why.clone(), entry.at));
            }
            Event::Ended { end } => {
                if self.outstanding().is_some() {
                    return Err("an effect is outstanding");
                }
                if *end == End::Recovered && (self.current().is_some() || self.unwinding.is_some())
                {
                    return Err("the steps are not finished");
                }
                if *end == End::Aborted && self.unwinding.is_none() {
                    return Err("it has not turned back");
                }
                self.ended = Some(end.clone());
            }
        }
        Ok(())
    }

    /// Notes since when budgets refuse. A pod that goes, and a leader with another clock, begin the count anew.
    fn note_budget(&mut self, plan: &Plan, step: StepIx, outcome: &Outcome, entry: &Entry) {
        if plan.find(StepKind::Release) != Some(step) {
            return;
        }
        match outcome {
            Outcome::RefusedByBudget { .. } => {
                let since = self.budget_refuses.filter(|(_, term)| *term == entry.term);
                self.budget_refuses = Some(since.unwrap_or((entry.at, entry.term)));
            }
            Outcome::Applied { .. } | Outcome::ObservedApplied { .. } => self.budget_refuses = None,
            Outcome::NotApplied { .. }
            | Outcome::Withheld { .. }
            | Outcome::Unknown { .. }
            | Outcome::ObservedNotApplied { .. }
            | Outcome::Repeatable { .. } => {}
        }
    }

    /// A handshake that begins anew makes nothing of what an agent was asked before it: the question comes again.
    fn reopen_question(&mut self, plan: &Plan, seen: &UnusedSince, at: Timestamp) {
        let Some(ix) = plan
            .find(StepKind::Challenge)
            .filter(|_| self.unwinding.is_none())
        else {
            return;
        };
        if self.current() > Some(ix)
            && seen.lease.is_some()
            && let Ok(slot) = self.slot(ix)
        {
            *slot = StepState::Pending;
            self.entered_at = Some(at);
        }
    }

    /// The same state as if the run had not ended and nothing had been tried to put back yet.
    pub(super) fn reopened(&self, plan: &Plan) -> Self {
        let mut state = Self {
            ended: None,
            ..self.clone()
        };
        for kind in [
            StepKind::Restore,
            StepKind::Lift,
            StepKind::Untaint,
            StepKind::LetBoot,
        ] {
            let Some(ix) = plan.find(kind) else { continue };
            for counts in [&mut state.attempts, &mut state.withheld] {
                if let Some(count) = counts.get_mut(ix.index()) {
                    *count = 0;
                }
            }
        }
        state
    }

    fn slot(&mut self, step: StepIx) -> Result<&mut StepState, &'static str> {
        self.steps
            .get_mut(step.index())
            .ok_or("the plan has no such step")
    }

    fn close(&mut self, step: StepIx, skipped: bool, at: Timestamp) -> Result<(), &'static str> {
        if self.outstanding().is_some() {
            return Err("an effect is outstanding");
        }
        if self.unwinding.is_some() {
            return Err("the run turned back");
        }
        if self.current() != Some(step) {
            return Err("it is not the current step");
        }
        *self.slot(step)? = StepState::Closed { skipped };
        self.entered_at = Some(at);
        Ok(())
    }

    /// Whether a plan was taken up.
    pub fn accepted(&self) -> bool {
        self.accepted
    }

    /// The first step that is not closed.
    pub fn current(&self) -> Option<StepIx> {
        let at = self
            .steps
            .iter()
            .position(|s| !matches!(s, StepState::Closed { .. }))?;
        u32::try_from(at).ok().map(StepIx)
    }

    /// How a step stands.
    pub fn step(&self, step: StepIx) -> &StepState {
        self.steps.get(step.index()).unwrap_or(&StepState::Pending)
    }

    /// How often a step's effect was journaled as started, whether or not the gate let it out.
    pub fn attempts(&self, step: StepIx) -> u32 {
        self.attempts.get(step.index()).copied().unwrap_or(0)
    }

    /// The same of the only step of a kind; 0 if the plan has none.
    pub fn attempts_of(&self, plan: &Plan, kind: StepKind) -> u32 {
        plan.find(kind).map_or(0, |ix| self.attempts(ix))
    }

    /// How often a step's effect was sent, or may have been: what the gate withheld does not count. Limits of refused tries
    /// are about these.
    pub fn tries(&self, step: StepIx) -> u32 {
        let withheld = self.withheld.get(step.index()).copied().unwrap_or(0);
        self.attempts(step).saturating_sub(withheld)
    }

    /// When the latest attempt of a step began whose reply nobody heard: the request may still arrive.
    pub fn unheard_since(&self, step: StepIx) -> Option<Timestamp> {
        self.doubts.get(step.index()).copied().flatten()
    }

    /// When the latest attempt of a step was journaled as started. None: there was none, or it was refused or withheld and none
    /// before it went unheard.
    pub fn sent_at(&self, step: StepIx) -> Option<Timestamp> {
        self.sent
            .get(step.index())
            .and_then(|sent| sent.as_ref())
            .map(|(at, _)| *at)
    }

    /// The newest job of the provider's history right before the latest attempt of a step. None: it was not journaled.
    pub fn newest_before(&self, step: StepIx) -> Option<&NewestJob> {
        self.sent.get(step.index())?.as_ref()?.1.as_ref()
    }

    /// Since when PodDisruptionBudgets have refused the eviction of the stuck pod, as far as this term's clock tells.
    pub fn budget_refuses_since(&self, term: u64) -> Option<Timestamp> {
        self.budget_refuses
            .filter(|(_, noted)| *noted == term)
            .map(|(at, _)| at)
    }

    /// Whether this run powered the holder off: the order was accepted, or seen to have been carried out.
    pub fn powered_off(&self, plan: &Plan) -> bool {
        plan.find(StepKind::PowerOff)
            .is_some_and(|ix| match self.step(ix) {
                StepState::Issued { outcome, .. } => outcome.applied(),
                StepState::Closed { skipped } => !skipped && self.tries(ix) > 0,
                StepState::Pending | StepState::Started { .. } => false,
            })
    }

    /// Whether the automatic restart of the holder may be off by this run. A request that was refused, or that found the
    /// restart off, is none of it, unless the reply to an earlier one was lost.
    pub fn keeps_off(&self, plan: &Plan) -> bool {
        plan.find(StepKind::KeepOff)
            .is_some_and(|ix| match self.step(ix) {
                StepState::Pending | StepState::Closed { skipped: true } => false,
                StepState::Started { .. } | StepState::Closed { skipped: false } => true,
                StepState::Issued { outcome, .. } => {
                    let refused = matches!(
                        outcome,
                        Outcome::NotApplied { .. }
                            | Outcome::RefusedByBudget { .. }
                            | Outcome::Withheld { .. }
                    );
                    !refused || self.unheard_since(ix).is_some()
                }
            })
    }

    /// Whether this run is done with the automatic restart of the holder, and found it off or switched it off under the node's
    /// lock: what the cloud reads after that may be a proof.
    pub fn settled_the_restart(&self, plan: &Plan) -> bool {
        plan.find(StepKind::KeepOff).is_some_and(|ix| {
            self.tries(ix) > 0 && matches!(self.step(ix), StepState::Closed { .. })
        })
    }

    /// Whether this run powered the holder off and did not get it powered on again.
    pub fn left_off(&self, plan: &Plan) -> bool {
        let on = plan
            .find(StepKind::PowerOn)
            .is_some_and(|ix| match self.step(ix) {
                StepState::Issued { outcome, .. } => outcome.applied(),
                StepState::Closed { skipped } => !skipped,
                StepState::Pending | StepState::Started { .. } => false,
            });
        self.powered_off(plan) && !on
    }

    /// Whether this run may have the lock of the plan's node: it began an effect on the whole node and has not ended.
    pub fn locks_the_node(&self, plan: &Plan) -> bool {
        let begun = StepKind::ALL
            .iter()
            .any(|kind| kind.spec().locks_node && self.attempts_of(plan, *kind) > 0);
        begun && self.ended.is_none()
    }

    /// The step whose effect was started and has no known outcome.
    pub fn outstanding(&self) -> Option<StepIx> {
        let unknown = |s: &StepState| {
            matches!(
                s,
                StepState::Started { .. }
                    | StepState::Issued {
                        outcome: Outcome::Unknown { .. },
                        ..
                    }
            )
        };
        let at = self.steps.iter().position(unknown)?;
        u32::try_from(at).ok().map(StepIx)
    }

    /// Whether any effect was sent, or may have been.
    pub fn touched(&self) -> bool {
        (0..)
            .map(StepIx)
            .zip(&self.steps)
            .any(|(ix, _)| self.tries(ix) > 0)
    }

    /// Whether the effect of a step of this kind may be in force: it was begun, and the step was not skipped.
    pub fn in_force(&self, plan: &Plan, kind: StepKind) -> bool {
        let Some(ix) = plan.find(kind) else {
            return false;
        };
        !matches!(
            self.step(ix),
            StepState::Pending | StepState::Closed { skipped: true }
        )
    }

    /// When the question that is open was journaled.
    pub fn challenged_at(&self, plan: &Plan) -> Option<Timestamp> {
        let ix = plan.find(StepKind::Challenge)?;
        self.challenged
            .filter(|_| self.attempts(ix) > 0)
            .map(|(at, _)| at)
    }

    /// The same, if it was journaled in this term, so that the time since then can be measured.
    pub fn challenged_in(&self, term: u64, plan: &Plan) -> Option<Timestamp> {
        self.challenged_at(plan)
            .filter(|_| self.challenged.is_some_and(|(_, of)| of == term))
    }

    /// Whether what comes next turns on the provider's job history: a cloud detach is due, or one was asked for.
    pub fn needs_jobs(&self, plan: &Plan) -> bool {
        let detaches = [StepKind::CloudDetach, StepKind::CloudForce]
            .into_iter()
            .filter_map(|k| plan.find(k));
        detaches.into_iter().any(|ix| match self.step(ix) {
            StepState::Pending => self.unwinding.is_none() && self.current() == Some(ix),
            StepState::Started { .. } | StepState::Issued { .. } => true,
            // A plain detach that one by force was to take over from may still be under way.
            StepState::Closed { skipped } => {
                *skipped && self.unwinding.is_some() && self.attempts(ix) > 0
            }
        })
    }

    /// Whether what comes next turns on the snapshots that this recovery ordered.
    pub fn needs_snapshots(&self, plan: &Plan) -> bool {
        let begun = |ix| {
            matches!(
                self.step(ix),
                StepState::Started { .. } | StepState::Issued { .. }
            )
        };
        self.unwinding.is_none() && plan.find(StepKind::Snapshot).is_some_and(begun)
    }

    /// Whether a change to the workload or its pods is being weighed: everything that stands against it is read then.
    pub fn weighs_a_change(&self, plan: &Plan) -> bool {
        let kind = self
            .current()
            .and_then(|ix| Some((ix, plan.steps.get(ix.index())?.kind)));
        self.unwinding.is_none()
            && match kind {
                Some((ix, StepKind::ScaleToZero)) => {
                    !matches!(self.step(ix), StepState::Issued { outcome, .. } if outcome.applied())
                }
                Some((_, StepKind::Hold | StepKind::Release)) => true,
                _ => false,
            }
    }

    /// Whether what comes next turns on the hold being in force, or on its end: it is probed then.
    pub fn needs_probe(&self, plan: &Plan) -> bool {
        let kind = self
            .current()
            .and_then(|ix| Some(plan.steps.get(ix.index())?.kind));
        let lifted = plan.closing().is_some_and(|lift| self.attempts(lift) > 0);
        plan.holding() == Holding::ByGate
            && match kind {
                _ if self.unwinding.is_some() => lifted,
                Some(StepKind::Lift) => lifted,
                Some(StepKind::Hold | StepKind::Release) => true,
                Some(
                    StepKind::Prove
                    | StepKind::Challenge
                    | StepKind::DeleteAttachment
                    | StepKind::CloudDetach
                    | StepKind::Snapshot
                    | StepKind::CloudForce,
                ) => self.in_force(plan, StepKind::Hold),
                _ => false,
            }
    }

    /// When the current step could begin.
    pub fn entered_at(&self) -> Option<Timestamp> {
        self.entered_at
    }

    /// The start of the kubelet handshake.
    pub fn unused_since(&self) -> Option<&UnusedSince> {
        self.unused_since.as_ref().map(|(seen, _)| seen)
    }

    /// The same, if it was journaled in this term: one leader's clock tells nothing of an interval on another's.
    pub fn unused_since_in(&self, term: u64) -> Option<&UnusedSince> {
        self.unused_since
            .as_ref()
            .filter(|(_, of)| *of == term)
            .map(|(seen, _)| seen)
    }

    /// Why the run turned back, if it did.
    pub fn unwinding(&self) -> Option<&UnwindReason> {
        self.unwinding.as_ref().map(|(why, _)| why)
    }

    /// When the run turned back, if it did.
    pub fn unwinding_since(&self) -> Option<Timestamp> {
        self.unwinding.as_ref().map(|(_, at)| *at)
    }

    /// How the run ended, if it did.
    pub fn ended(&self) -> Option<&End> {
        self.ended.as_ref()
    }

    /// The number of the next line.
    pub fn next_seq(&self) -> u32 {
        self.next_seq
    }

    /// The highest term so far.
    pub fn term(&self) -> u64 {
        self.term
    }
}
