//! The run itself: the machine says the one next thing, this does it.

use super::journal::describe;
use super::{DriverState, Executor, Limits, Ruling, Turn, TurnError, sightings};
use crate::collect::{Needs, RecoveryContext};
use crate::perform::{Stage, perform};
use crate::policies::{Subject, ruling};
use crate::providers::Located;
use crate::{notify, status};
use jiff::{SignedDuration, Timestamp};
use kube::api::ListParams;
use kube::{Api, Resource};
use reattach_api::{Phase, RecoveryPolicy, StoredRecovery, VolumeRecovery};
use reattach_cluster::effects::node_lock;
use reattach_cluster::gate::Authority;
use reattach_cluster::open_orders::{self, OpenOrder, Ordered};
use reattach_cluster::store;
use reattach_core::cloud::PowerChange;
use reattach_core::evidence::Evidence;
use reattach_core::journal::{End, Entry, Event, Outcome};
use reattach_core::plan::SoundPlan;
use reattach_core::run::{
    Action, Context, Effect, Next, Said, State, StepState, newest_job, next, refused_to_put_back,
    withdrawal,
};
use reattach_core::runbook::Holding;
use reattach_core::stamp::{self, Doubt};
use reattach_core::steps::StepKind;
use std::mem::discriminant;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Time after which the status says what a step waits for.
const WAITED_FOR_LONG: SignedDuration = SignedDuration::from_secs(15);
/// Time after which an effect without a known outcome calls a person.
const UNKNOWN_FOR_LONG: SignedDuration = SignedDuration::from_mins(5);
/// Time between two renewals of a node's lock: a twelfth of the lock's duration.
const RENEW_LOCK: Duration = Duration::from_mins(5);
/// Pause before the next turn after the gate stayed shut.
const SHUT: SignedDuration = SignedDuration::from_secs(1);

impl Executor {
    /// One turn of a recovery with a journal.
    pub(super) async fn one_step(
        &self,
        recovery: StoredRecovery,
        limits: &Limits,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        if self.gate.leadership().is_none() {
            return Err(TurnError::NotLeader);
        }
        let history = recovery.history().map(|(plan, _)| plan.cloned());
        let plan = match history {
            Ok(plan) => plan,
            Err(unreadable) => return self.hold_unreadable(recovery, &unreadable, memory).await,
        };
        let Some(plan) = plan else {
            return self
                .page(
                    recovery,
                    "the journal has lines, but the recovery has no plan".to_owned(),
                    memory,
                )
                .await;
        };
        let plan = match plan.sound() {
            Ok(plan) => plan,
            Err(unsound) => return self.hold_unsound(recovery, &unsound, memory).await,
        };
        let Some(mut state) = self.replayed(&recovery, &plan, memory).await? else {
            return Ok(Turn::NeedsPerson);
        };
        let leadership = self.gate.leadership().ok_or(TurnError::NotLeader)?;
        if leadership.term < state.term() {
            return self.freeze(recovery, &state, leadership.term, memory).await;
        }
        self.keep_the_lock(&recovery, &plan, &state, memory).await;
        let mut evidence = self.look(&recovery, &plan, &state, memory, false).await?;
        self.add_mandate(&mut evidence, &recovery, limits, false)
            .await?;
        memory.note_cloud(&evidence);
        let mut recovery = self.note_sightings(recovery, &evidence).await?;
        let mut wrote = false;
        loop {
            match self.ask(&recovery, &plan, &state, &evidence, limits, memory) {
                // Lines that follow from the same facts are written one after another: only an effect or the passing of
                // time makes facts old, and the machine itself tells facts from before an effect.
                Next::Record(event) => {
                    let done = matches!(event, Event::Ended { .. } | Event::Outcome { .. });
                    recovery = self.append(recovery, &plan, event.clone(), memory).await?;
                    self.account(&recovery, &plan, &event).await;
                    wrote = true;
                    if done {
                        return Ok(Turn::Again);
                    }
                    match self.replayed(&recovery, &plan, memory).await? {
                        Some(next) => state = next,
                        None => return Ok(Turn::NeedsPerson),
                    }
                }
                // It may wait only because the facts are older than the line just written.
                Next::Wait { .. } if wrote => return Ok(Turn::Again),
                Next::Wait { why, until } => {
                    let until = match self.throttled(&evidence, memory) {
                        Some(throttled) => until.max(throttled),
                        None => {
                            self.say_what_is_awaited(recovery, &plan, &state, &why, memory)
                                .await?;
                            until
                        }
                    };
                    return Ok(Turn::Pause { until });
                }
                Next::Done(End::Stuck { why }) => {
                    return self
                        .after_stuck(recovery, &plan, &state, &why, memory)
                        .await;
                }
                Next::Done(
                    End::Recovered | End::Aborted | End::Withdrawn { .. } | End::Failed { .. },
                ) => {
                    return crate::finalizer::remove(self, recovery).await;
                }
                Next::Act(action) => {
                    return self
                        .confirm(recovery, &plan, &state, action, limits, memory)
                        .await;
                }
            }
        }
    }

    /// Renews the node's lock while the run lives, also while it waits: after an hour without a renewal others may take it,
    /// and the janitor removes the taint.
    async fn keep_the_lock(
        &self,
        recovery: &StoredRecovery,
        plan: &SoundPlan,
        state: &State,
        memory: &mut DriverState,
    ) {
        let due = memory
            .lock_renewed
            .is_none_or(|at| at.elapsed() >= RENEW_LOCK);
        if !due || !state.locks_the_node(plan) {
            return;
        }
        // A new leader that only waits has written no line of its term yet.
        let Some(leadership) = self.gate.leadership() else {
            return;
        };
        let Ok(pass) = self.gate.put_back(leadership.term) else {
            return;
        };
        let (name, node) = (recovery.name(), &plan.pins.node);
        match node_lock::renew(&pass, node, name, self.collector.clock.now()).await {
            Ok(_) => memory.lock_renewed = Some(Instant::now()),
            Err(error) => {
                tracing::warn!(%node, %error, "the lock of the node could not be renewed")
            }
        }
    }

    /// The state that the journal adds up to. `None`: it makes no sense, and a person was told.
    async fn replayed(
        &self,
        recovery: &StoredRecovery,
        plan: &SoundPlan,
        memory: &mut DriverState,
    ) -> Result<Option<State>, TurnError> {
        let journal: Vec<Entry> = match recovery.history() {
            Ok((_, journal)) => journal.into_iter().cloned().collect(),
            Err(unreadable) => {
                self.hold_unreadable(recovery.clone(), &unreadable, memory)
                    .await?;
                return Ok(None);
            }
        };
        match State::replay(plan, &journal) {
            Ok(state) => Ok(Some(state)),
            Err(illegal) => {
                self.page(recovery.clone(), illegal.to_string(), memory)
                    .await?;
                Ok(None)
            }
        }
    }

    /// Shows in the status what a long wait waits for; an effect whose outcome stays unknown needs a person.
    async fn say_what_is_awaited(
        &self,
        mut recovery: StoredRecovery,
        plan: &SoundPlan,
        state: &State,
        why: &str,
        memory: &mut DriverState,
    ) -> Result<(), TurnError> {
        let refused = refused_to_put_back(plan, state);
        if refused.is_some() {
            // It may stay so for ever, and a workload may be at zero: a person is called at once.
            memory.patience = SignedDuration::ZERO;
        }
        let now = self.collector.clock.now();
        let entered = state.entered_at();
        let since =
            |at: Option<Timestamp>| at.map_or(SignedDuration::ZERO, |at| now.duration_since(at));
        let unknown_for = state.outstanding().map(|ix| match state.step(ix) {
            StepState::Started { at } | StepState::Issued { started: at, .. } => since(Some(*at)),
            _ => SignedDuration::ZERO,
        });
        if unknown_for.is_some_and(|d| d > UNKNOWN_FOR_LONG) {
            let why = format!(
                "it is still not known whether the last effect was applied, so nothing is touched: {why}"
            );
            self.keep(recovery, Phase::Stuck, why, memory).await?;
        } else if let Some(entered) =
            entered.filter(|at| refused.is_some() || since(Some(*at)) > WAITED_FOR_LONG)
        {
            status::waits_since(&mut recovery, entered);
            let (phase, base) = describe(plan, state);
            self.keep(recovery, phase, format!("{base}; waiting: {why}"), memory)
                .await?;
        }
        Ok(())
    }

    /// Right before an effect everything is read live, the policies too, and the machine must still say the same.
    /// (What people write into the recovery itself is compared by the compare-and-swap of the line `Started`.)
    async fn confirm(
        &self,
        recovery: StoredRecovery,
        plan: &SoundPlan,
        state: &State,
        proposed: Action,
        limits: &Limits,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let mut live = self.look(&recovery, plan, state, memory, true).await?;
        self.add_mandate(&mut live, &recovery, limits, true).await?;
        let recovery = self.note_sightings(recovery, &live).await?;
        let limits = Limits {
            ruling: self.live_ruling(&live).await?,
            ..limits.clone()
        };
        let action = match self.ask(&recovery, plan, state, &live, &limits, memory) {
            Next::Act(action) if discriminant(&action.effect) == discriminant(&proposed.effect) => {
                action
            }
            Next::Record(event) => {
                let recovery = self.append(recovery, plan, event.clone(), memory).await?;
                self.account(&recovery, plan, &event).await;
                return Ok(Turn::Again);
            }
            Next::Wait { until, .. } => {
                let throttled = live.cloud_throttled_until().unwrap_or(until);
                return Ok(Turn::Pause {
                    until: until.max(throttled),
                });
            }
            _ => return Ok(Turn::Again),
        };
        self.act(recovery, plan, action, &live, memory).await
    }

    /// The policy that rules the claim now, read live: a watch may lag.
    async fn live_ruling(&self, live: &Evidence) -> Result<Option<Ruling>, TurnError> {
        let api: Api<RecoveryPolicy> = Api::all(self.collector.clients.read.clone());
        let policies: Vec<_> = api
            .list(&ListParams::default())
            .await?
            .items
            .into_iter()
            .map(Arc::new)
            .collect();
        Ok(Subject::of(live)
            .and_then(|subject| ruling(&policies, &subject))
            .map(Ruling::of))
    }

    /// S3: journal, gate, effect, outcome.
    async fn act(
        &self,
        recovery: StoredRecovery,
        plan: &SoundPlan,
        action: Action,
        evidence: &Evidence,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        // Before the line: a lease that is about to end leaves none behind each second.
        if self.gate.tidy().is_err() {
            return Ok(Turn::Pause {
                until: self.later(SHUT),
            });
        }
        let proof = match &action.effect {
            Effect::CloudDetach { proof }
            | Effect::CloudForce { proof }
            | Effect::TaintOutOfService { proof, .. }
            | Effect::DeleteAttachment { proof, .. } => Some(proof.kind().clone()),
            _ => None,
        };
        // Only a cloud effect needs the provider: a workload is restored even where nothing leads to the cloud any more.
        let located = self.collector.locate(evidence, Some(&plan.pins)).await;
        let volume = located.ok().flatten().map(|(located, _)| located);
        // Before the line, too: an order that the cloud's rate limit keeps from being sent would leave two lines each time.
        if let Some(held) = volume.as_ref().and_then(Located::effects_held_for)
            && plan
                .steps
                .get(action.step.index())
                .is_some_and(|s| s.kind.spec().is_order())
        {
            let held = SignedDuration::try_from(held).unwrap_or(SHUT);
            return Ok(Turn::Pause {
                until: self.later(held),
            });
        }
        let newest_job = newest_job(&action.effect, evidence);
        let started = Event::Started {
            step: action.step,
            intent: action.intent.clone(),
            proof,
            newest_job,
        };
        let recovery = self.append(recovery, plan, started, memory).await?;
        let order = note_of(
            &recovery,
            plan,
            &action,
            evidence,
            self.collector.clock.now(),
        );
        let term = last_line(&recovery).map_or(0, |e| e.term);
        let approved = recovery.spec.approval.as_ref().map(|a| a.plan_hash.clone());
        let authority = Authority {
            mode: recovery.spec.mode,
            approved: approved.as_deref(),
        };
        let passed = if action.effect.puts_back() {
            self.gate.put_back(term)
        } else {
            self.gate.pass(plan, &authority, term)
        };
        let outcome = match passed {
            Ok(pass) => {
                let stage = Stage {
                    executor: self,
                    pass: &pass,
                    recovery: &recovery,
                    evidence,
                    volume,
                    order,
                };
                perform(&stage, &action.effect).await
            }
            Err(shut) => Outcome::Withheld { shut },
        };
        let shut = matches!(&outcome, Outcome::Withheld { .. });
        let step = plan.steps.get(action.step.index()).map(|s| s.kind);
        let step = step.map(|s| format!("{s:?}")).unwrap_or_default();
        self.metrics.count_effect(step, &outcome);
        tracing::info!(recovery = %recovery.claim(), step = %action.step, intent = action.intent, ?outcome, "effect");
        let doubt = if outcome.applied() {
            doubt(&action.effect, evidence, &recovery, plan)
        } else {
            None
        };
        let event = Event::Outcome {
            step: action.step,
            outcome,
        };
        let recovery = self.append(recovery, plan, event.clone(), memory).await?;
        self.account(&recovery, plan, &event).await;
        self.call_about_stamp(&plan.pins.workload, doubt.as_ref())
            .await;
        if shut {
            Ok(Turn::Pause {
                until: self.later(SHUT),
            })
        } else {
            Ok(Turn::Again)
        }
    }

    /// Takes the note of an order away once a line of the journal tells what became of it. Best effort: the end of the run does
    /// it again, and the janitor after that.
    async fn account(&self, recovery: &StoredRecovery, plan: &SoundPlan, event: &Event) {
        let known = match event {
            Event::Outcome { step, outcome } => match outcome {
                Outcome::NotApplied { .. }
                | Outcome::RefusedByBudget { .. }
                | Outcome::Withheld { .. }
                | Outcome::ObservedApplied { .. }
                | Outcome::ObservedNotApplied { .. } => Some(*step),
                // An accepted order is still under way.
                Outcome::Applied { .. } | Outcome::Unknown { .. } | Outcome::Repeatable { .. } => {
                    None
                }
            },
            // A detach is completed once the cloud was read back; an order about power as soon as it is accepted.
            Event::Completed { step, .. } => Some(*step).filter(|step| {
                let kind = plan.steps.get(step.index()).map(|s| s.kind);
                matches!(kind, Some(StepKind::CloudDetach | StepKind::CloudForce))
            }),
            Event::Accepted { .. }
            | Event::Started { .. }
            | Event::Skipped { .. }
            | Event::UnusedSince { .. }
            | Event::UnwindStarted { .. }
            | Event::Ended { .. } => None,
        };
        let order = known.filter(|step| {
            plan.steps
                .get(step.index())
                .is_some_and(|s| s.kind.spec().is_order())
        });
        if let Some(step) = order {
            self.take_note_away(&open_orders::name(recovery.uid(), step))
                .await;
        }
    }

    /// Takes the note of an order away. Best effort.
    pub(crate) async fn take_note_away(&self, note: &str) {
        let Ok(pass) = self.gate.tidy() else { return };
        if let Err(error) = open_orders::settle(&pass, note).await {
            tracing::warn!(note, %error, "the note of an order whose outcome is known could not be removed yet");
        }
    }

    /// Stores what the evidence shows of instances, if that is news.
    pub(super) async fn note_sightings(
        &self,
        mut recovery: StoredRecovery,
        evidence: &Evidence,
    ) -> Result<StoredRecovery, TurnError> {
        let term = self.gate.leadership().map_or(0, |l| l.term);
        if !sightings::note(&mut recovery, evidence, term) {
            return Ok(recovery);
        }
        Ok(store::save(&self.collector.clients.records, &recovery).await?)
    }

    pub(super) async fn look(
        &self,
        recovery: &StoredRecovery,
        plan: &SoundPlan,
        state: &State,
        memory: &DriverState,
        live: bool,
    ) -> Result<Evidence, TurnError> {
        let line = last_line(recovery).map_or(Timestamp::MIN, |e| e.at);
        let since = memory.woken.map_or(line, |woken| woken.max(line));
        let needs = Needs::Execute {
            plan,
            changing: state.weighs_a_change(plan),
            probing: state.needs_probe(plan),
            jobs: state.needs_jobs(plan),
            snapshots: state.needs_snapshots(plan).then_some(recovery.uid()),
            since,
            live,
        };
        Ok(self
            .collector
            .collect(
                &recovery.claim(),
                Some(RecoveryContext::of(recovery)),
                needs,
            )
            .await?)
    }

    fn ask(
        &self,
        recovery: &StoredRecovery,
        plan: &SoundPlan,
        state: &State,
        evidence: &Evidence,
        limits: &Limits,
        memory: &mut DriverState,
    ) -> Next {
        let mut cx = self.context(recovery);
        cx.unattended = memory.unattended.look(state, evidence, cx.now);
        let said = Said {
            mode: recovery.spec.mode,
            approved: recovery.spec.approval.as_ref().map(|a| a.plan_hash.clone()),
            policy: limits.policy_says(recovery),
        };
        cx.nothing_under_way = evidence.nothing_under_way.clone();
        cx.withdrawn = withdrawal(plan, state, evidence.at(cx.now), &said);
        next(plan, state, evidence, &cx)
    }

    pub(super) fn context<'a>(&self, recovery: &'a StoredRecovery) -> Context<'a> {
        let deleted = recovery
            .metadata
            .deletion_timestamp
            .as_ref()
            .map(|_| "the deletion of the VolumeRecovery");
        let aborted_by = recovery
            .spec
            .abort
            .as_ref()
            .map(|a| a.by.as_str())
            .or(deleted);
        let confirm_workload = recovery.spec.confirm_workload.as_deref();
        let now = self.collector.clock.now();
        // Without leadership nothing is journaled or issued, whatever the answer.
        let term = self.gate.leadership().map_or(0, |l| l.term);
        let (nothing_under_way, withdrawn) = (None, None);
        Context {
            recovery: recovery.uid(),
            aborted_by,
            confirm_workload,
            term,
            nothing_under_way,
            withdrawn,
            unattended: SignedDuration::ZERO,
            now,
        }
    }

    /// A state that no executor could have written: stop, and say so.
    async fn page(
        &self,
        recovery: StoredRecovery,
        why: String,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        notify::stuck(&recovery, &why);
        self.keep(recovery, Phase::Stuck, why, memory).await?;
        Ok(Turn::NeedsPerson)
    }

    /// The journal has lines of a newer leader than this one: the Lease was restored from a backup, or another controller or
    /// break-glass run works by another Lease. A record without a writer calls for a person.
    async fn freeze(
        &self,
        recovery: StoredRecovery,
        state: &State,
        own: u64,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let why = format!(
            "the journal has lines of term {} and this controller leads with term {own}, so another process may drive the recovery. Nothing is touched. Make sure that no other controller and no break-glass run is at work. Then restart this controller, which takes a higher term",
            state.term()
        );
        if memory.frozen.replace(state.next_seq()) == Some(state.next_seq()) {
            self.keep(recovery, Phase::Stuck, why, memory).await?;
        } else {
            notify::person_needed(self, &recovery.object_ref(&()), "OtherLeader", why).await;
        }
        Ok(Turn::NeedsPerson)
    }
}

/// The note of an effect that is an order to the cloud: what it is found by when the record is gone. None: it is none.
pub(crate) fn note_of(
    recovery: &StoredRecovery,
    plan: &SoundPlan,
    action: &Action,
    evidence: &Evidence,
    now: Timestamp,
) -> Option<OpenOrder> {
    let ordered = match &action.effect {
        Effect::CloudDetach { .. } | Effect::CloudForce { .. } => Ordered::Detach,
        Effect::PowerOff { .. } => Ordered::Power(PowerChange::Off),
        Effect::PowerOn { .. } => Ordered::Power(PowerChange::On),
        Effect::KeepOff { .. } => Ordered::KeepOff,
        Effect::ScaleToZero { .. }
        | Effect::Restore { .. }
        | Effect::Hold
        | Effect::Release { .. }
        | Effect::DeletePod { .. }
        | Effect::Lift { .. }
        | Effect::CloseNode { .. }
        | Effect::OpenNode { .. }
        | Effect::Snapshot { .. }
        | Effect::LetBoot { .. }
        | Effect::TaintOutOfService { .. }
        | Effect::Untaint { .. }
        | Effect::Quarantine { .. }
        | Effect::Challenge { .. }
        | Effect::DeleteAttachment { .. }
        | Effect::Requeue { .. } => return None,
    };
    let pins = &plan.pins;
    Some(OpenOrder {
        recovery: recovery.name().clone(),
        uid: recovery.uid().clone(),
        step: action.step,
        claim: plan.claim.clone(),
        csi: evidence
            .volume
            .shown()
            .filter(|v| v.uid == pins.pv)
            .and_then(|v| v.csi.clone()),
        volume: pins.volume.clone(),
        holder: pins.holder.clone(),
        node: pins.node.clone(),
        ordered,
        intent: action.intent.clone(),
        sent: last_line(recovery).map_or(now, |line| line.at),
        newest_job: newest_job(&action.effect, evidence),
        by_gate: plan.holding() == Holding::ByGate,
    })
}

/// The last line of a journal that was replayed.
fn last_line(recovery: &VolumeRecovery) -> Option<&Entry> {
    recovery.status.as_ref()?.journal.last()?.get().ok()
}

/// What was wrong with the stamp of a workload that was restored by the journal's count.
pub(super) fn doubt(
    effect: &Effect,
    evidence: &Evidence,
    recovery: &StoredRecovery,
    plan: &SoundPlan,
) -> Option<Doubt> {
    let Effect::Restore {
        replicas: Some(_), ..
    } = effect
    else {
        return None;
    };
    stamp::edited(
        evidence.workload.shown()?,
        recovery.uid(),
        plan.pins.replicas,
    )
}
