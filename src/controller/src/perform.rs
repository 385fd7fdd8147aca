//! Performing one effect that passed the gate, and saying what is known of it.

use crate::providers::Located;
use crate::recovery::Executor;
use reattach_api::StoredRecovery;
use reattach_cluster::effects::{attachment, hold, node, node_lock, workload};
use reattach_cluster::gate::EffectPass;
use reattach_cluster::open_orders::{self, OpenOrder};
use reattach_cluster::{reply, reports};
use reattach_core::evidence::Evidence;
use reattach_core::guest::Challenge;
use reattach_core::ids::{InstanceId, NodeName, VolumeId};
use reattach_core::journal::Outcome;
use reattach_core::proof::FenceProof;
use reattach_core::run::Effect;
use reattach_provider_api::{
    DetachOutcome, DetachRequest, EffectError, ForceDetachRequest, PowerOffManner, PowerOffRequest,
    PowerOutcome, ProviderError, SnapshotRequest,
};
use std::time::Duration;

/// What an effect is issued with.
pub(crate) struct Stage<'a> {
    /// Whose clients and clock.
    pub executor: &'a Executor,
    /// The permission.
    pub pass: &'a EffectPass,
    /// The recovery as its last journal line left it.
    pub recovery: &'a StoredRecovery,
    /// What was read for this effect.
    pub evidence: &'a Evidence,
    /// The volume at its provider. None: no provider knows it.
    pub volume: Option<Located>,
    /// The note of the effect, if it is an order to the cloud whose fate must be known.
    pub order: Option<OpenOrder>,
}

/// Issues the effect within the pass's deadline. A reply that does not come in time leaves the outcome unknown.
pub(crate) async fn perform(stage: &Stage<'_>, effect: &Effect) -> Outcome {
    let Stage { pass, recovery, .. } = *stage;
    let clock = &stage.executor.collector.clock;
    let issue = async {
        match effect {
            Effect::ScaleToZero {
                workload,
                resource_version,
                path,
                stamp,
            } => workload::scale_to_zero(pass, workload, resource_version, *path, stamp).await,
            Effect::Restore {
                workload,
                resource_version,
                path,
                replicas,
            } => workload::restore(pass, workload, resource_version, *path, *replicas).await,
            Effect::Hold => hold::hold(pass, recovery).await,
            Effect::Release { pod, uid } => hold::release(pass, pod, uid).await,
            Effect::DeletePod { pod, uid } => hold::delete_pod(pass, pod, uid).await,
            Effect::Lift { pods } => hold::lift(pass, recovery, pods).await,
            Effect::CloseNode { node: name, uid } => {
                node::close(pass, name, uid, recovery.uid()).await
            }
            Effect::OpenNode { node: name, uid } => {
                node::open(pass, name, uid, recovery.uid()).await
            }
            Effect::Requeue {
                name,
                uid,
                resource_version,
            } => attachment::requeue(pass, name, uid, resource_version, clock.now()).await,
            Effect::CloudDetach { proof } => stage.detach(proof, false).await,
            Effect::Snapshot { volume } => stage.snapshot(volume).await,
            Effect::CloudForce { proof } => stage.detach(proof, true).await,
            Effect::PowerOff { instance, node } => stage.power(instance, node, false).await,
            Effect::PowerOn { instance, node } => stage.power(instance, node, true).await,
            Effect::KeepOff { instance, node } => stage.restart(instance, Some(node), false).await,
            Effect::LetBoot { instance, .. } => stage.restart(instance, None, true).await,
            Effect::TaintOutOfService {
                proof,
                node: name,
                uid,
            } => node::fence(pass, proof, name, uid, recovery.name(), clock.now()).await,
            Effect::Untaint { node: name, uid } => {
                node::unfence(pass, name, uid, recovery.name()).await
            }
            Effect::Quarantine { node: name, uid } => {
                node::quarantine(pass, name, uid, recovery.uid()).await
            }
            Effect::Challenge { node } => stage.ask(node).await,
            Effect::DeleteAttachment { proof, name, uid } => {
                attachment::delete_attachment(pass, proof, name, uid, clock.now()).await
            }
        }
    };
    match tokio::time::timeout_at(pass.deadline(), issue).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Unknown {
            why: "no answer before the effect's deadline".to_owned(),
        },
    }
}

impl Stage<'_> {
    /// Time left for the effect.
    fn left(&self) -> Duration {
        self.pass
            .deadline()
            .duration_since(tokio::time::Instant::now())
    }

    /// S3: an order is noted outside of the record before it is sent, for the case that the record is deleted by force.
    async fn noted(&self) -> Result<(), Outcome> {
        match &self.order {
            Some(order) => open_orders::note(self.pass, order).await,
            None => Err(Outcome::NotApplied {
                why: "an order to the cloud is not sent without a note of it".to_owned(),
                retry: false,
            }),
        }
    }

    async fn detach(&self, proof: &FenceProof, by_force: bool) -> Outcome {
        if let Err(outcome) = reply::require_proof(proof, self.executor.collector.clock.now()) {
            return outcome;
        }
        let Some(volume) = self.volume.as_ref().filter(|v| v.id == *proof.volume()) else {
            let why = format!(
                "no provider knows volume {}, which the proof is for",
                proof.volume()
            );
            return Outcome::NotApplied { why, retry: false };
        };
        if let Err(outcome) = self.noted().await {
            return outcome;
        }
        if !by_force {
            let request = DetachRequest::plain(proof.clone(), self.left());
            return detached(
                volume
                    .provider()
                    .detach(request)
                    .await
                    .map_err(EffectError::Failed),
            );
        }
        match ForceDetachRequest::new(proof.clone(), self.left()) {
            Ok(request) => detached(volume.provider().force_detach(request).await),
            Err(refused) => Outcome::NotApplied {
                why: refused.to_string(),
                retry: false,
            },
        }
    }

    /// Begins a snapshot that carries the recovery's UID, by which it is looked up.
    async fn snapshot(&self, id: &VolumeId) -> Outcome {
        let Some(volume) = self.volume.as_ref().filter(|v| v.id == *id) else {
            let why = format!("no provider knows volume {id}");
            return Outcome::NotApplied { why, retry: false };
        };
        let label = self.recovery.uid().to_string();
        let request = SnapshotRequest {
            volume: id.clone(),
            label,
            timeout: self.left(),
        };
        match volume.provider().snapshot(request).await {
            Ok(begun) => Outcome::Applied {
                detail: format!("the cloud began snapshot {}", begun.id),
            },
            Err(error) => failed(error),
        }
    }

    /// Powers an instance off or on, under its node's lock; power-on releases the lock.
    async fn power(&self, instance: &InstanceId, node: &NodeName, on: bool) -> Outcome {
        let Some(volume) = &self.volume else {
            let why = format!(
                "no provider knows the volume, so none can be asked about instance {instance}"
            );
            return Outcome::NotApplied { why, retry: false };
        };
        let now = self.executor.collector.clock.now();
        if let Err(outcome) = node_lock::take(self.pass, node, self.recovery.name(), now).await {
            return outcome;
        }
        if let Err(outcome) = self.noted().await {
            return outcome;
        }
        let (provider, timeout) = (volume.provider(), self.left());
        if !on {
            let (instance, manner) = (instance.clone(), PowerOffManner::Forced);
            let request = PowerOffRequest {
                instance,
                manner,
                timeout,
            };
            return match provider.power_off(request).await {
                // This run did not do it, and does not power on what others powered off.
                Ok(PowerOutcome::AlreadyThere) => {
                    let why = "the instance was off already, and not by this run".to_owned();
                    Outcome::NotApplied { why, retry: false }
                }
                reply => powered(reply, "off"),
            };
        }
        let outcome = powered(provider.power_on(instance, timeout).await, "on");
        node_lock::release_after(self.pass, node, self.recovery.name(), &outcome).await;
        outcome
    }

    /// Switches an instance's automatic restart off, under its node's lock, or on again. The note that is stored before tells the
    /// janitor what to switch on again if the record is deleted.
    async fn restart(&self, instance: &InstanceId, lock: Option<&NodeName>, on: bool) -> Outcome {
        let Some(volume) = &self.volume else {
            let why = format!(
                "no provider knows the volume, so none can be asked about instance {instance}"
            );
            return Outcome::NotApplied { why, retry: on };
        };
        let now = self.executor.collector.clock.now();
        if let Some(node) = lock {
            if let Err(outcome) = node_lock::take(self.pass, node, self.recovery.name(), now).await
            {
                return outcome;
            }
            if let Err(outcome) = self.noted().await {
                return outcome;
            }
        }
        let reply = volume
            .provider()
            .set_restart(instance, on, self.left())
            .await;
        restarts(reply, on)
    }

    /// Asks the question whose number the recovery's status has.
    async fn ask(&self, node: &NodeName) -> Outcome {
        let not_applied = |why: &str| Outcome::NotApplied {
            why: why.to_owned(),
            retry: true,
        };
        let now = self.executor.collector.clock.now();
        let (Some(cloud), Some(csi)) = (
            self.evidence.cloud_volume.shown(),
            self.evidence.at(now).csi(),
        ) else {
            return not_applied("the disk that the agent must look for is not known now");
        };
        let epoch = self.recovery.status.as_ref().map_or(0, |s| s.epoch);
        let challenge = Challenge {
            recovery: self.recovery.uid().clone(),
            epoch: u64::try_from(epoch).unwrap_or(0),
            identity: cloud.identity.clone(),
            driver: csi.driver.clone(),
            handle: csi.handle.clone(),
        };
        let _turn = self.executor.reservations.turn_to_ask().await;
        let records = &self.executor.collector.clients.records;
        reply::outcome(
            reports::ask(records, node, &challenge).await,
            &format!("asked, epoch {epoch}"),
        )
    }
}

/// What a provider's answer to an order about power says about the effect.
fn powered(reply: Result<PowerOutcome, EffectError>, wanted: &str) -> Outcome {
    match reply {
        Ok(PowerOutcome::Accepted) => Outcome::Applied {
            detail: format!("the cloud accepted to power the instance {wanted}"),
        },
        Ok(PowerOutcome::AlreadyThere) => Outcome::Applied {
            detail: format!("the instance was {wanted} already"),
        },
        Ok(PowerOutcome::Busy { detail }) => Outcome::NotApplied {
            why: format!("busy: {detail}"),
            retry: true,
        },
        Err(error) => failed(error),
    }
}

/// What a provider's answer to switching an instance's automatic restart says about the effect.
pub(crate) fn restarts(reply: Result<PowerOutcome, EffectError>, on: bool) -> Outcome {
    let way = if on { "on" } else { "off" };
    match reply {
        Ok(PowerOutcome::Accepted) => Outcome::Applied {
            detail: format!("the cloud switched the automatic restart {way}"),
        },
        Ok(PowerOutcome::AlreadyThere) if on => Outcome::Applied {
            detail: "the automatic restart was on already".to_owned(),
        },
        // This run did not do it, and does not switch on what others switched off.
        Ok(PowerOutcome::AlreadyThere) => Outcome::NotApplied {
            why: "the automatic restart was off already, and not by this run".to_owned(),
            retry: false,
        },
        Ok(PowerOutcome::Busy { detail }) => Outcome::NotApplied {
            why: format!("busy: {detail}"),
            retry: true,
        },
        Err(error) => failed(error),
    }
}

/// What a call without a usable answer says about the effect.
fn failed(error: EffectError) -> Outcome {
    let why = error.to_string();
    match error {
        EffectError::Failed(ProviderError::Unknown { .. }) => Outcome::Unknown { why },
        // A call that never left, or an answer that could not be used, may go better the next time; the step's deadline
        // bounds it. Missing rights, a missing object and a missing ability stay.
        EffectError::Failed(
            ProviderError::Throttled { .. }
            | ProviderError::NotApplied { .. }
            | ProviderError::OtherObject { .. },
        ) => Outcome::NotApplied { why, retry: true },
        EffectError::Failed(ProviderError::Denied { .. } | ProviderError::NotFound { .. })
        | EffectError::Unsupported(_) => Outcome::NotApplied { why, retry: false },
    }
}

/// What a provider's answer to a detach says about the effect.
fn detached(reply: Result<DetachOutcome, EffectError>) -> Outcome {
    let not_applied = |why: String, retry| Outcome::NotApplied { why, retry };
    match reply {
        Ok(DetachOutcome::Accepted) => Outcome::Applied {
            detail: "the cloud accepted the detach".to_owned(),
        },
        Ok(DetachOutcome::AlreadyDetached) => Outcome::Applied {
            detail: "the volume was detached already".to_owned(),
        },
        // Not ours: nothing was sent, and what becomes of the other one is seen by the next look.
        Ok(DetachOutcome::Detaching) => {
            not_applied("a detach is under way already".to_owned(), true)
        }
        Ok(DetachOutcome::AttachedElsewhere(other)) => {
            not_applied(format!("instance {other} has the volume now"), false)
        }
        Ok(DetachOutcome::Busy { detail }) => not_applied(format!("busy: {detail}"), true),
        Ok(DetachOutcome::Locked { reason }) => {
            not_applied(format!("locked by the provider: {reason}"), true)
        }
        Err(error) => failed(error),
    }
}

#[cfg(test)]
mod tests;
