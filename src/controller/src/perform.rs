//! Performing one effect that passed the gate, and saying what is known of it.

use crate::providers::Located;
use reattach_api::VolumeRecovery;
use reattach_cluster::gate::EffectPass;
use reattach_cluster::{Clock, effects, hold};
use reattach_core::journal::Outcome;
use reattach_core::machine::Effect;
use reattach_provider_api::{DetachOutcome, DetachRequest, ProviderError};

/// Issues the effect within the pass's deadline. A reply that does not come in time leaves the outcome unknown.
pub(crate) async fn perform(
    pass: &EffectPass,
    effect: &Effect,
    recovery: &VolumeRecovery,
    volume: Option<&Located>,
    clock: &Clock,
) -> Outcome {
    let issue = async {
        match effect {
            Effect::ScaleToZero { workload, resource_version, path, stamp } => {
                effects::scale_to_zero(pass, workload, resource_version, *path, stamp).await
            }
            Effect::Restore { workload, resource_version, path, replicas } => {
                effects::restore(pass, workload, resource_version, *path, *replicas).await
            }
            Effect::Hold => hold::hold(pass, recovery).await,
            Effect::Release { pod, uid } => hold::release(pass, pod, uid).await,
            Effect::Lift { pods } => hold::lift(pass, recovery, pods).await,
            Effect::Requeue { name, uid, resource_version } => {
                effects::requeue(pass, name, uid, resource_version, clock.now()).await
            }
            Effect::CloudDetach { proof } => {
                if !proof.holds_at(clock.now()) {
                    let why = "the proof does not hold any more; a new one is made".to_owned();
                    return Outcome::NotApplied { why, retry: true };
                }
                let Some(volume) = volume.filter(|v| v.id == *proof.volume()) else {
                    let why = format!("no provider knows volume {}, which the proof is for", proof.volume());
                    return Outcome::NotApplied { why, retry: false };
                };
                let left = pass.deadline().duration_since(tokio::time::Instant::now());
                let reply = volume.provider().detach(DetachRequest::plain(proof.clone(), left)).await;
                detached(reply)
            }
            Effect::CloudForce { .. }
            | Effect::PowerOff { .. }
            | Effect::PowerOn { .. }
            | Effect::TaintOutOfService { .. }
            | Effect::Untaint { .. }
            | Effect::Quarantine { .. }
            | Effect::Challenge { .. }
            | Effect::DeleteAttachment { .. } => {
                Outcome::NotApplied { why: "this build cannot do that".to_owned(), retry: false }
            }
        }
    };
    match tokio::time::timeout_at(pass.deadline(), issue).await {
        Ok(outcome) => outcome,
        Err(_) => Outcome::Unknown { why: "no answer before the effect's deadline".to_owned() },
    }
}

/// What a provider's answer to a detach says about the effect.
fn detached(reply: Result<DetachOutcome, ProviderError>) -> Outcome {
    let not_applied = |why: String, retry| Outcome::NotApplied { why, retry };
    match reply {
        Ok(DetachOutcome::Accepted) => {
            Outcome::Applied { detail: "the cloud accepted the detach".to_owned() }
        }
        Ok(DetachOutcome::AlreadyDetached) => {
            Outcome::Applied { detail: "the volume was detached already".to_owned() }
        }
        Ok(DetachOutcome::Detaching) => {
            Outcome::Applied { detail: "a detach was under way already".to_owned() }
        }
        Ok(DetachOutcome::AttachedElsewhere(other)) => {
            not_applied(format!("instance {other} has the volume now"), false)
        }
        Ok(DetachOutcome::Busy { detail }) => not_applied(format!("busy: {detail}"), true),
        Ok(DetachOutcome::Locked { reason }) => {
            not_applied(format!("locked by the provider: {reason}"), true)
        }
        Err(error @ ProviderError::Unknown { .. }) => Outcome::Unknown { why: error.to_string() },
        // A call that never left, or an answer that could not be used, may go better the next time; the step's deadline
        // bounds it. Missing rights and a missing volume stay.
        Err(error @ (ProviderError::Throttled { .. } | ProviderError::NotApplied { .. })) => {
            not_applied(error.to_string(), true)
        }
        Err(error @ (ProviderError::Denied { .. } | ProviderError::NotFound { .. })) => {
            not_applied(error.to_string(), false)
        }
    }
}
