//! The requests of a detach, plain and forced, and what EC2's refusals of one mean.

use crate::{
    classify::{Call, Failure},
    client::Client,
    read, wire,
};
use reattach_core::{
    cloud::{CloudInstance, CloudVolume},
    ids::{InstanceId, VolumeId},
};
use reattach_provider_api::{
    ProviderError,
    detach::{DetachApi, DetachOrder, ForceDetachApi, Refusal, SendFailure},
};

impl DetachApi for Client {
    async fn read_volume(
        &self,
        operation: &str,
        volume: &VolumeId,
    ) -> Result<CloudVolume, ProviderError> {
        let Some(found) = read::one_volume(self, operation, volume).await? else {
            return Err(ProviderError::NotFound {
                operation: operation.to_owned(),
                reason: "EC2 shows no such volume to this credential".to_owned(),
            });
        };
        wire::volume(&found).map_err(|why| {
            ProviderError::not_applied(
                operation,
                format!("the volume as EC2 shows it cannot be used: {why}"),
            )
        })
    }

    async fn send(&self, order: DetachOrder<'_>) -> Result<(), SendFailure> {
        let call = Call {
            operation: order.operation(),
            action: "DetachVolume",
        };
        let answer = self
            .mutate(call, order.deadline(), |ec2, once| {
                let request = ec2.detach_volume().volume_id(order.volume().as_str());
                // Always: EC2 then refuses the request when another instance has the volume.
                let request = request.instance_id(order.holder().as_str());
                let request = if order.is_forced() {
                    request.force(true)
                } else {
                    request
                };
                let request = request.customize().config_override(once);
                async move { request.send().await }
            })
            .await
            .map_err(|failure| SendFailure {
                refusal: meaning(&failure),
                error: failure.error,
            })?;
        // The documented answer names the volume. Another success proves nothing.
        let names_both = answer.volume_id() == Some(order.volume().as_str())
            && answer
                .instance_id()
                .is_none_or(|id| id == order.holder().as_str());
        if names_both {
            return Ok(());
        }
        Err(SendFailure::from(ProviderError::Unknown {
            operation: order.operation().to_owned(),
            reason: "the answer is a success that does not name this volume and instance"
                .to_owned(),
        }))
    }
}

impl ForceDetachApi for Client {
    async fn read_instance(
        &self,
        operation: &str,
        instance: &InstanceId,
    ) -> Result<Option<CloudInstance>, ProviderError> {
        read::one_instance(self, operation, instance).await
    }
}

/// What a refused detach says about the volume, by EC2's error codes.
fn meaning(failure: &Failure) -> Refusal {
    match failure.code.as_deref() {
        Some(code @ ("IncorrectState" | "VolumeInUse" | "IncorrectInstanceState")) => {
            let words = failure.message.as_deref().unwrap_or_default();
            Refusal::StateChanged {
                busy: Some(format!("{words} ({code})")),
            }
        }
        Some("InvalidAttachment.NotFound") => Refusal::StateChanged { busy: None },
        _ => Refusal::Other,
    }
}
