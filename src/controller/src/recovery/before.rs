//! Before a run: challenge, diagnose, plan, check, and wait for the right to act.

use super::{DriverState, Executor, Limits, Turn, TurnError};
use crate::collect::{Needs, RecoveryContext};
use crate::{finalizer, notify, status};
use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use reattach_api::{Phase, STATUS_BYTES, StoredRecovery, VolumeRecovery};
use reattach_cluster::{reports, store};
use reattach_core::authority::Mandate;
use reattach_core::check::Violation;
use reattach_core::diagnosis::{
    Diagnosis, GuestView, Trouble, Verdict, WaitReason, diagnose, guest_view,
};
use reattach_core::evidence::Evidence;
use reattach_core::guest::Challenge;
use reattach_core::ids::NodeName;
use reattach_core::journal::Event;
use reattach_core::plan::Refusal;
use reattach_core::plan::{
    Allowed, Plan, Request, SoundPlan, make_vetted, may_begin, may_touch_node_later,
};
use reattach_core::policy::Mode;
use reattach_core::run::PolicySays;
use reattach_core::runbook::Runbook;
use std::time::Duration;
use tokio::time::Instant;

/// An answer to a challenge is asked for anew when a run begins later than this after the question.
const ANSWER_GOOD_FOR: Duration = Duration::from_secs(60);
/// An agent whose answer does not tell enough, or that gave none, is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_mins(5);
/// Shortest time after which the diagnosis is made anew without a change.
const LOOK_AGAIN: SignedDuration = SignedDuration::from_secs(5);
/// Longest time after which it is made anew. Each time costs reads of the cloud, and a change of an object makes it anyway.
const LOOK_RARELY: SignedDuration = SignedDuration::from_secs(20);
/// A phase that has stood for a while is looked at again after one in so many parts of that time, so that no recovery takes a
/// tenth longer than it has waited already.
const PART_OF_WAIT: i32 = 10;

impl Executor {
    /// One turn of a recovery whose journal is empty.
    pub(super) async fn before_the_run(
        &self,
        mut recovery: StoredRecovery,
        limits: &Limits,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let now = self.collector.clock.now();
        if let Some(end) = self.ended_by_people(&recovery) {
            return self.settle(recovery, Phase::Aborted, end, memory).await;
        }
        if let Some(end) = ended_by_policy(&recovery, limits) {
            return self.settle(recovery, Phase::Aborted, end, memory).await;
        }
        if let Some(unreadable) = recovery.history().err() {
            return self.hold_unreadable(recovery, &unreadable, memory).await;
        }
        let claim = recovery.claim();
        let own = || Some(RecoveryContext::of(&recovery));
        let mut evidence = self
            .collector
            .collect(&claim, own(), Needs::Diagnose)
            .await?;
        let mut diagnosis = diagnose(evidence.at(now));
        let mut fresh = false;
        if matches!(diagnosis.verdict, Verdict::Ours { .. }) {
            // The workload and whether its pods would come back: asked only where there is something to plan.
            fresh = std::mem::take(&mut memory.begins);
            let needs = if fresh { Needs::Begin } else { Needs::Plan };
            evidence = self.collector.collect(&claim, own(), needs).await?;
            diagnosis = diagnose(evidence.at(self.collector.clock.now()));
            self.add_mandate(&mut evidence, &recovery, limits, false)
                .await?;
        }
        if let Some(until) = self.throttled(&evidence, memory) {
            let until = until.max(self.later(LOOK_AGAIN));
            return Ok(Turn::Pause { until });
        }
        memory.note_cloud(&evidence);
        let version = recovery.resource_version();
        recovery = self.note_sightings(recovery, &evidence).await?;
        if recovery.resource_version() != version {
            // A proof may need a second reading of what was just seen for the first time.
            memory.stands = None;
        }
        recovery.status.get_or_insert_default().diagnosis = Some(diagnosis.clone().into());
        recovery.status.get_or_insert_default().class = diagnosis.class().map(|c| c.to_string());
        match &diagnosis.verdict {
            Verdict::Healthy { .. } => {
                return self
                    .settle(
                        recovery,
                        Phase::Resolved,
                        diagnosis.verdict.to_string(),
                        memory,
                    )
                    .await;
            }
            Verdict::NotOurs { .. } => {
                return self
                    .rest(recovery, Phase::NotOurs, &diagnosis, memory)
                    .await;
            }
            Verdict::Wait { reason } => {
                if matches!(reason, WaitReason::CloudBusy { .. }) {
                    // What the machine answered while the cloud was at work says nothing about afterwards.
                    memory.asked = None;
                }
                return self
                    .rest(recovery, Phase::Waiting, &diagnosis, memory)
                    .await;
            }
            Verdict::Unclassified { .. } => {
                // A question is answered at once; the unasked report of a machine that has just come back may take longer.
                let answered = |(_, when): (u64, Instant)| when.elapsed() < ASK_AGAIN;
                if !memory.asked.is_some_and(answered)
                    && let Some(node) = unseen(&evidence, now)
                    && let Some(turn) = self
                        .challenge(&mut recovery, &node, false, &evidence, memory)
                        .await?
                {
                    return Ok(turn);
                }
                return self
                    .rest(recovery, Phase::Diagnosing, &diagnosis, memory)
                    .await;
            }
            Verdict::Ours {
                trouble: Trouble::Phantom { at, confirmed, .. },
            } => {
                if let Some(turn) = self
                    .challenge(&mut recovery, &at.node, *confirmed, &evidence, memory)
                    .await?
                {
                    return Ok(turn);
                }
            }
            Verdict::Ours { .. } => {}
        }
        match self.plan(&recovery, &evidence, &diagnosis, limits) {
            Err(refusals) => {
                log_veto(&recovery, &refusals, memory);
                self.refuse(recovery, &refusals, memory).await
            }
            Ok(plan) => {
                memory.vetoed = None;
                self.offer(recovery, plan, &evidence, fresh, limits, memory)
                    .await
            }
        }
    }

    /// Asks the node's agent, if its answer is missing or too old to begin on. `Some`: wait for the answer.
    async fn challenge(
        &self,
        recovery: &mut StoredRecovery,
        node: &NodeName,
        confirmed: bool,
        evidence: &Evidence,
        memory: &mut DriverState,
    ) -> Result<Option<Turn>, TurnError> {
        let (Some(cloud), Some(csi)) = (
            evidence.cloud_volume.shown(),
            evidence.at(self.collector.clock.now()).csi(),
        ) else {
            return Ok(None);
        };
        let fresh = memory
            .asked
            .is_some_and(|(_, when)| when.elapsed() < ANSWER_GOOD_FOR);
        let may_begin = recovery.spec.mode == Mode::Auto
            || recovery.spec.mode == Mode::Approve && recovery.spec.approval.is_some();
        if confirmed && (fresh || !may_begin) {
            return Ok(None);
        }
        if !confirmed && fresh {
            let message = format!("waiting for the agent on {node} to scan the machine again");
            if status::set(
                recovery,
                Phase::Diagnosing,
                message,
                self.collector.clock.now(),
            ) {
                store::save(&self.collector.clients.records, recovery).await?;
            }
            return Ok(Some(Turn::Pause {
                until: self.later(LOOK_AGAIN),
            }));
        }
        // A restarted process does not know when the last question was asked: it asks a new one.
        let status = recovery.status.get_or_insert_default();
        status.epoch += 1;
        let epoch = u64::try_from(status.epoch).unwrap_or(0);
        status::set(
            recovery,
            Phase::Diagnosing,
            format!("asking the agent on {node} to scan the machine again"),
            self.collector.clock.now(),
        );
        let stored = store::save(&self.collector.clients.records, recovery).await?;
        let challenge = Challenge {
            recovery: stored.uid().clone(),
            epoch,
            identity: cloud.identity.clone(),
            driver: csi.driver.clone(),
            handle: csi.handle.clone(),
        };
        let turn = self.reservations.turn_to_ask().await;
        reports::ask(&self.collector.clients.records, node, &challenge).await?;
        drop(turn);
        memory.asked = Some((epoch, Instant::now()));
        Ok(Some(Turn::Pause {
            until: self.later(LOOK_AGAIN),
        }))
    }

    fn plan(
        &self,
        recovery: &StoredRecovery,
        evidence: &Evidence,
        diagnosis: &Diagnosis,
        limits: &Limits,
    ) -> Result<SoundPlan, Vec<Refusal>> {
        let runbook = Runbook::built_in(&recovery.spec.runbook).map_err(|e| {
            vec![Refusal::Missing {
                what: "the runbook".to_owned(),
                why: e.to_string(),
            }]
        })?;
        let by_hand = self.collector.providers.by_hand(evidence);
        let request = Request {
            runbook: &runbook,
            confirm_workload: recovery.spec.confirm_workload.as_deref(),
            commands: by_hand.commands(),
            for_show: false,
            allowed: self.allowed(recovery, evidence, limits),
        };
        make_vetted(evidence.at(self.collector.clock.now()), diagnosis, &request)
    }

    /// What the cloud can do and the policy or a person allows.
    fn allowed(&self, recovery: &VolumeRecovery, evidence: &Evidence, limits: &Limits) -> Allowed {
        let word = recovery
            .spec
            .power_off
            .as_ref()
            .and_then(|_| self.mandate(evidence));
        let by_a_person = word.is_some_and(|m| m.may_power_off().is_ok());
        self.collector
            .providers
            .allowed(evidence, limits.power_off(), by_a_person, limits.rules)
    }

    fn mandate<'a>(&self, evidence: &'a Evidence) -> Option<&'a Mandate> {
        let now = self.collector.clock.now();
        evidence.at(now).mandate().ok()
    }

    /// Why the word of a person who allowed a power-off does not count.
    fn power_off_denied(&self, recovery: &VolumeRecovery, evidence: &Evidence) -> Option<String> {
        recovery.spec.power_off.as_ref()?;
        let denial = self.mandate(evidence)?.may_power_off().err()?;
        Some(denial.to_string())
    }

    /// Returns why no right lets this plan run, or touch the whole of its node, now.
    fn denied(&self, plan: &Plan, evidence: &Evidence) -> Vec<Refusal> {
        let now = self.collector.clock.now();
        match evidence.at(now).mandate() {
            Ok(mandate) => match mandate.may_act(&plan.hash) {
                Ok(()) => may_touch_node_later(plan, evidence.at(now)),
                Err(denial) => vec![Refusal::Denied { denial }],
            },
            Err(missing) => vec![Refusal::Missing {
                what: "what this recovery may do".to_owned(),
                why: missing.to_string(),
            }],
        }
    }

    async fn refuse(
        &self,
        mut recovery: StoredRecovery,
        refusals: &[Refusal],
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let passing = refusals.iter().all(Refusal::may_pass);
        let pause = self.look_again(&recovery, memory);
        let status = recovery.status.get_or_insert_default();
        status.refusals = refusals.iter().map(ToString::to_string).collect();
        status.plan = None;
        status.plan_hash = None;
        let message = status.refusals.join("; ");
        let phase = if passing {
            Phase::Waiting
        } else {
            Phase::Refused
        };
        self.keep(recovery, phase, message, memory).await?;
        Ok(pause)
    }

    /// There is a plan: show it, wait for approval, or begin. What it was made from is `fresh`, or was shared with other looks:
    /// then it is read anew before the run begins.
    async fn offer(
        &self,
        mut recovery: StoredRecovery,
        plan: SoundPlan,
        evidence: &Evidence,
        fresh: bool,
        limits: &Limits,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let status = recovery.status.get_or_insert_default();
        status.refusals.clear();
        let node = plan.pins.node.to_string();
        let mut summary = format!("{}; plan {}", plan.trouble, plan.hash);
        if let Some(denied) = self.power_off_denied(&recovery, evidence) {
            summary = format!("{summary}; {denied}");
        }
        let shown = recovery.spec.mode != Mode::Observe;
        let status = recovery.status.get_or_insert_default();
        status.plan_hash = Some(plan.hash.to_string());
        status.plan = shown.then(|| Plan::clone(&plan).into());
        let pause = self.look_again(&recovery, memory);
        let authority = match recovery.spec.mode {
            Mode::Observe | Mode::DryRun => {
                self.keep(recovery, Phase::Planned, summary, memory).await?;
                return Ok(pause);
            }
            Mode::Approve => match &recovery.spec.approval {
                Some(a) if a.plan_hash == plan.hash.as_str() => {
                    format!("the approval of {}", a.approver)
                }
                Some(a) => {
                    let message = format!(
                        "{summary}; the approval is for plan {} and does not count for this plan",
                        a.plan_hash
                    );
                    self.keep(recovery, Phase::AwaitingApproval, message, memory)
                        .await?;
                    return Ok(pause);
                }
                None => {
                    self.keep(recovery, Phase::AwaitingApproval, summary, memory)
                        .await?;
                    return Ok(pause);
                }
            },
            Mode::Auto => format!("mode Auto, requested by {}", recovery.spec.requester),
        };
        // What no step can bring about is waited for here, where it takes no place of the budgets.
        if let Err(refusal) = may_begin(&plan, evidence.at(self.collector.clock.now())) {
            recovery.status.get_or_insert_default().refusals = vec![refusal.to_string()];
            self.keep(
                recovery,
                Phase::Waiting,
                format!("{summary}; {refusal}"),
                memory,
            )
            .await?;
            return Ok(pause);
        }
        let denied = self.denied(&plan, evidence);
        if !denied.is_empty() {
            let passing = denied.iter().all(Refusal::may_pass);
            let sentences: Vec<String> = denied.iter().map(ToString::to_string).collect();
            let message = format!("{summary}; {}", sentences.join("; "));
            recovery.status.get_or_insert_default().refusals = sentences;
            let phase = if passing {
                Phase::Waiting
            } else {
                Phase::Refused
            };
            self.keep(recovery, phase, message, memory).await?;
            return Ok(pause);
        }
        if let Some(why) = self.ordered_before(&recovery, &plan).await? {
            recovery.status.get_or_insert_default().refusals = vec![why.clone()];
            self.keep(
                recovery,
                Phase::Waiting,
                format!("{summary}; {why}"),
                memory,
            )
            .await?;
            return Ok(pause);
        }
        if !fresh {
            (memory.begins, memory.moved) = (true, true);
            return Ok(Turn::Again);
        }
        let taken = self
            .reservations
            .take(recovery.name(), &plan.claim, &node, limits);
        if let Err(why) = taken {
            status::set_in_line(&mut recovery, why.to_string(), self.collector.clock.now());
            self.stored(recovery, memory).await?;
            return Ok(pause);
        }
        let recovery = finalizer::ensure(self, recovery).await?;
        let event = Event::Accepted {
            plan_hash: plan.hash.to_string(),
            authority,
        };
        self.append(recovery, &plan, event, memory).await?;
        Ok(Turn::Again)
    }

    /// Stores a verdict that asks for patience.
    async fn rest(
        &self,
        mut recovery: StoredRecovery,
        phase: Phase,
        diagnosis: &Diagnosis,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let pause = self.look_again(&recovery, memory);
        let status = recovery.status.get_or_insert_default();
        status.plan = None;
        status.plan_hash = None;
        status.refusals.clear();
        self.keep(recovery, phase, diagnosis.verdict.to_string(), memory)
            .await?;
        let patient = matches!(
            &diagnosis.verdict,
            Verdict::NotOurs { .. }
                | Verdict::Wait {
                    reason: WaitReason::ProviderLock { .. }
                }
        );
        Ok(if patient {
            Turn::Pause {
                until: self.later(LOOK_RARELY),
            }
        } else {
            pause
        })
    }

    /// The pause before the next look at a recovery that waits. It grows while the phase stands.
    fn look_again(&self, recovery: &StoredRecovery, memory: &mut DriverState) -> Turn {
        let now = self.collector.clock.now();
        let phase = recovery.status.as_ref().map(|s| s.phase);
        let since = match memory.stands {
            Some((stood, since)) if stood == phase => since,
            _ => now,
        };
        memory.stands = Some((phase, since));
        let part = now.duration_since(since) / PART_OF_WAIT;
        Turn::Pause {
            until: self.later(part.clamp(LOOK_AGAIN, LOOK_RARELY)),
        }
    }

    /// Stores the last phase of a recovery that never ran.
    pub(super) async fn settle(
        &self,
        recovery: StoredRecovery,
        phase: Phase,
        message: String,
        memory: &mut DriverState,
    ) -> Result<Turn, TurnError> {
        let stored = self.keep(recovery, phase, message, memory).await?;
        finalizer::remove(self, stored).await
    }

    /// Stores phase and message if they changed.
    pub(super) async fn keep(
        &self,
        mut recovery: StoredRecovery,
        phase: Phase,
        message: String,
        memory: &mut DriverState,
    ) -> Result<StoredRecovery, TurnError> {
        status::set(&mut recovery, phase, message, self.collector.clock.now());
        self.stored(recovery, memory).await
    }

    /// Stores the status if it changed, and tells people. A wait that has become too long calls for one.
    async fn stored(
        &self,
        mut recovery: StoredRecovery,
        memory: &mut DriverState,
    ) -> Result<StoredRecovery, TurnError> {
        let called = status::escalate(&mut recovery, memory.patience, self.collector.clock.now());
        status::explain(&mut recovery, memory.cloud.as_ref());
        // As it is stored, so that what was cut is no change.
        if let Some(status) = &mut recovery.status {
            status.fit(STATUS_BYTES);
        }
        let name = recovery.name();
        let before = self
            .collector
            .cache
            .as_ref()
            .and_then(|c| c.recoveries.get(&name.namespace, &name.name));
        let unchanged = before.is_some_and(|b| {
            b.resource_version() == recovery.resource_version() && b.status == recovery.status
        });
        let stored = if unchanged {
            recovery
        } else {
            let stored = store::save(&self.collector.clients.records, &recovery).await?;
            memory.refused_since = None;
            stored
        };
        notify::phase(self, &stored, memory).await;
        if called {
            notify::escalated(self, &stored).await;
        }
        Ok(stored)
    }

    /// A person's abort, or the deletion of the object, which is one too.
    pub(super) fn ended_by_people(&self, recovery: &VolumeRecovery) -> Option<String> {
        if let Some(abort) = &recovery.spec.abort {
            let why = abort
                .reason
                .as_ref()
                .map(|r| format!(": {r}"))
                .unwrap_or_default();
            return Some(format!("aborted by {}{why}", abort.by));
        }
        recovery
            .metadata
            .deletion_timestamp
            .is_some()
            .then(|| "the VolumeRecovery was deleted".to_owned())
    }
}

/// Logs a veto of the safety checker: once for each change of what it objects to, also over a restart.
fn log_veto(recovery: &StoredRecovery, refusals: &[Refusal], memory: &mut DriverState) {
    let veto = refusals.iter().find_map(|refusal| match refusal {
        Refusal::Vetoed { violations } => Some((refusal, violations)),
        _ => None,
    });
    let Some((refusal, violations)) = veto else {
        memory.vetoed = None;
        return;
    };
    let before = memory.vetoed.replace(violations.clone());
    let stored = recovery
        .status
        .as_ref()
        .map_or(&[][..], |s| s.refusals.as_slice());
    let known = match &before {
        Some(before) => before == violations,
        None => stored.contains(&refusal.to_string()),
    };
    if !known {
        let objections: Vec<String> = violations.iter().map(Violation::to_string).collect();
        tracing::error!(
            recovery = recovery.name_any(),
            claim = %recovery.claim(),
            objections = objections.join("; "),
            "the safety checker vetoes a plan: this is a fault of reattach, and nothing is done"
        );
    }
}

/// Why a recovery that a policy made is over before it began: the policy says another mode now, or there is none.
fn ended_by_policy(recovery: &VolumeRecovery, limits: &Limits) -> Option<String> {
    match limits.policy_says(recovery)? {
        PolicySays::Nothing => Some("no RecoveryPolicy selects the claim any more".to_owned()),
        PolicySays::Rules { mode, .. } => (mode != recovery.spec.mode).then(|| {
            format!("the policy now has mode {mode}, and another VolumeRecovery takes over")
        }),
    }
}

/// The node whose machine must be looked at before anything can be said: a pod there waits for the volume, Kubernetes
/// says that it is attached there, and the agent's word is missing or from another boot.
fn unseen(evidence: &Evidence, now: Timestamp) -> Option<NodeName> {
    let attachments = evidence.at(now).attachments().ok()?;
    let pods = evidence.at(now).pods().ok()?;
    let waiting = pods
        .iter()
        .filter(|p| !p.ready && !p.is_finished())
        .filter_map(|p| p.node.as_ref());
    waiting
        .filter(|node| evidence.at(now).node(node).is_ok_and(|n| n.ready))
        .filter(|node| attachments.iter().any(|a| a.node == **node && a.attached))
        .find(|node| {
            matches!(
                guest_view(evidence.at(now), node),
                GuestView::Unknown { .. }
            )
        })
        .cloned()
}
