//! Restores what a run changed when its journal takes no more lines: the run ended and needs a person, or the API server refuses
//! its status. The marks in the cluster say what to restore. A workload must not stay at zero for want of a line.

use super::run::doubt;
use super::{DriverState, Executor, Turn, TurnError};
use crate::perform::restarts;
use crate::providers::Located;
use crate::{attempts, notify};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Api, ResourceExt};
use reattach_api::{Phase, StoredRecovery, VolumeRecovery};
use reattach_cluster::gate::TidyPass;
use reattach_cluster::tidy;
use reattach_core::hold::HOLD_LABEL;
use reattach_core::ids::{InstanceId, ObjectName};
use reattach_core::journal::{Entry, Outcome};
use reattach_core::plan::SoundPlan;
use reattach_core::run::{Effect, Left, State, without_journal};
use tokio::time::Instant;

/// Time for which a status may be refused before the changes of the run are undone. A right that is being renewed, or a CRD that is
/// being applied, comes back sooner.
const UNWRITTEN_FOR_LONG: SignedDuration = SignedDuration::from_mins(2);

impl Executor {
    /// Undoes what a run changed that ended and needs a person. Then the recovery is over.
    pub(super) async fn after_stuck(
        &self,
        recovery: StoredRecovery,
        plan: &SoundPlan,
        state: &State,
        why: &str,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let ended = recovery
            .status
            .as_ref()
            .and_then(|s| s.journal.last()?.get().ok())
            .map(|e| e.at);
        let since = ended.unwrap_or(self.collector.clock.now());
        match self.put_back(&recovery, plan, state, since, memory).await? {
            Undone::All => {
                let message = format!("{why}; everything has been restored since");
                let mut recovery = recovery;
                let now = self.collector.clock.now();
                let message = attempts::announce(
                    &mut recovery,
                    Phase::Failed,
                    message,
                    now,
                    memory.retries.as_ref(),
                );
                self.settle(recovery, Phase::Failed, message, memory).await
            }
            Undone::Some => {
                memory.moved = true;
                Ok(Turn::Again)
            }
            Undone::Nothing { why: what } => {
                let message = if why.contains(&what) {
                    why.to_owned()
                } else {
                    format!("{why}; {what}")
                };
                self.keep(recovery, Phase::Stuck, message, memory).await?;
                Ok(Turn::NeedsPerson)
            }
        }
    }

    /// The API server refuses the recovery's status, so that no line can be written. Calls a person once, and undoes what
    /// the run changed when that lasts.
    pub(super) async fn unwritten(
        &self,
        name: &ObjectName,
        about: Option<ObjectReference>,
        refused: &TurnError,
        memory: &mut DriverState,
    ) {
        let now = self.collector.clock.now();
        let Some(since) = memory.refused_since else {
            memory.refused_since = Some(now);
            let note = format!(
                "the API server refuses the recovery's status, so nothing new begins: {refused}. reattach tries again; if the refusal lasts, it restores what the run changed. Give the controller the right to update volumerecoveries/status, or apply the CRDs of its version"
            );
            if let Some(about) = about {
                notify::person_needed(self, &about, "StatusRefused", note).await;
            }
            return;
        };
        if now.duration_since(since) < UNWRITTEN_FOR_LONG {
            return;
        }
        match self.put_back_unwritten(name, since, memory).await {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(recovery = %name, %error, "what the run changed could not be restored")
            }
        }
    }

    async fn put_back_unwritten(
        &self,
        name: &ObjectName,
        since: Timestamp,
        memory: &DriverState,
    ) -> Result<(), TurnError> {
        let api: Api<VolumeRecovery> =
            Api::namespaced(self.collector.clients.read.clone(), &name.namespace);
        let Some(recovery) = api.get_opt(&name.name).await? else {
            return Ok(());
        };
        let recovery = StoredRecovery::try_from(recovery)?;
        // What cannot be read is held: whether an effect is under way is not known.
        let Ok((_, journal)) = recovery.history() else {
            return Ok(());
        };
        let journal: Vec<Entry> = journal.into_iter().cloned().collect();
        let Some(plan) = recovery.sound_plan() else {
            return Ok(());
        };
        let Ok(state) = State::replay(&plan, &journal) else {
            return Ok(());
        };
        let newer = self.gate.leadership().is_none_or(|l| l.term < state.term());
        if newer || !state.accepted() {
            return Ok(());
        }
        self.put_back(&recovery, &plan, &state, since, memory)
            .await
            .map(|_| ())
    }

    /// Undoes one change that is left, as a live read shows it.
    async fn put_back(
        &self,
        recovery: &StoredRecovery,
        plan: &SoundPlan,
        state: &State,
        since: Timestamp,
        memory: &DriverState,
    ) -> Result<Undone, TurnError> {
        let live = self.look(recovery, plan, state, memory, true).await?;
        let labelled = recovery.labels().contains_key(HOLD_LABEL);
        let cx = self.context(recovery);
        let action = match without_journal(plan, state, &live, &cx, since, labelled) {
            Left::Nothing => return Ok(Undone::All),
            Left::Wait { why } | Left::Person { why } => return Ok(Undone::Nothing { why }),
            Left::Act(action) => action,
        };
        let pass = self.gate.tidy().map_err(|_| TurnError::NotLeader)?;
        let outcome = match &action.effect {
            Effect::LetBoot { instance, .. } => {
                let located = self.collector.locate(&live, Some(&plan.pins)).await;
                match located.ok().flatten() {
                    Some((volume, _)) => let_boot(&pass, &volume, instance).await,
                    None => Outcome::NotApplied {
                        why: format!(
                            "no provider knows the volume, so none can be asked about instance {instance}"
                        ),
                        retry: true,
                    },
                }
            }
            effect => undo(&pass, recovery, effect).await,
        };
        self.metrics.count_effect("PutBack".to_owned(), &outcome);
        tracing::warn!(recovery = %recovery.claim(), intent = action.intent, ?outcome, "restored without a journal");
        if outcome.applied() {
            let doubt = doubt(&action.effect, &live, recovery, plan);
            self.call_about_stamp(&plan.pins.workload, doubt.as_ref())
                .await;
        }
        Ok(match outcome {
            o if o.applied() => Undone::Some,
            Outcome::NotApplied { why, .. }
            | Outcome::RefusedByBudget { why }
            | Outcome::Unknown { why } => Undone::Nothing { why },
            Outcome::Withheld { shut } => Undone::Nothing {
                why: shut.to_string(),
            },
            Outcome::Applied { detail: seen }
            | Outcome::ObservedApplied { seen }
            | Outcome::ObservedNotApplied { seen }
            | Outcome::Repeatable { why: seen } => Undone::Nothing { why: seen },
        })
    }
}

/// Result of one try to undo a change.
#[derive(Debug)]
enum Undone {
    /// Nothing is left.
    All,
    /// One change was undone; there may be more.
    Some,
    /// Nothing was undone.
    Nothing {
        /// Why, as one sentence.
        why: String,
    },
}

/// Switches the automatic restart of an instance on again, within the pass's deadline.
pub(crate) async fn let_boot(pass: &TidyPass, volume: &Located, instance: &InstanceId) -> Outcome {
    let left = pass.deadline().duration_since(Instant::now());
    restarts(
        volume.provider().set_restart(instance, true, left).await,
        true,
    )
}

/// Removes one mark of ours.
async fn undo(pass: &TidyPass, recovery: &StoredRecovery, effect: &Effect) -> Outcome {
    match effect {
        Effect::Restore {
            workload,
            resource_version,
            path,
            replicas,
        } => tidy::restore(pass, workload, resource_version, *path, *replicas).await,
        Effect::Lift { pods } => {
            let mut outcome = tidy::unhold(pass, recovery).await;
            for (pod, uid) in pods {
                if outcome.applied() {
                    outcome = tidy::ungate(pass, pod, uid).await;
                }
            }
            outcome
        }
        Effect::OpenNode { node, uid } => tidy::open(pass, node, uid, recovery.uid()).await,
        Effect::Untaint { node, uid } => tidy::untaint(pass, node, uid).await,
        Effect::ScaleToZero { .. }
        | Effect::Hold
        | Effect::Release { .. }
        | Effect::DeletePod { .. }
        | Effect::CloseNode { .. }
        | Effect::CloudDetach { .. }
        | Effect::Snapshot { .. }
        | Effect::CloudForce { .. }
        | Effect::PowerOff { .. }
        | Effect::PowerOn { .. }
        | Effect::KeepOff { .. }
        | Effect::LetBoot { .. }
        | Effect::TaintOutOfService { .. }
        | Effect::Quarantine { .. }
        | Effect::Challenge { .. }
        | Effect::DeleteAttachment { .. }
        | Effect::Requeue { .. } => {
            let why = "this is never done without a journal".to_owned();
            Outcome::NotApplied { why, retry: false }
        }
    }
}
