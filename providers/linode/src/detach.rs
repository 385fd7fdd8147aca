//! Detach, with the holder read right before it.

use crate::{
    classify,
    client::Client,
    handle,
    history::newest_volume_jobs,
    order::{Order, Sent},
    wire::Volume,
};
use bytes::Bytes;
use http::{Response, StatusCode};
use reattach_core::{
    cloud::{CloudVolume, VolumeState},
    ids::{InstanceId, VolumeId},
};
use reattach_provider_api::{DetachOutcome, DetachRequest, ProviderError};

/// Where volumes are.
const VOLUMES: &str = "/volumes";

/// Reads the holder and, if it is exactly the proven one and nothing is in the way, sends one detach.
pub(crate) async fn run(client: &Client, request: &DetachRequest) -> Result<DetachOutcome, ProviderError> {
    let (volume, holder) = (request.volume(), request.holder());
    let operation = format!("detach volume {volume} from instance {holder}");
    let order = Order::new(client, &operation, request.timeout());
    let number = number(&operation, volume)?;
    let found = order.read::<Volume>("the volume", VOLUMES, number).await?.into_cloud();
    if let Some(outcome) = obstacle(order, &found, holder)? {
        return Ok(outcome);
    }
    match order.send("the volume", &format!("{VOLUMES}/{number}/detach")).await? {
        Sent::Accepted => Ok(DetachOutcome::Accepted),
        Sent::Refused(refusal) => {
            let explaining = explain(client, volume, holder, &refusal.answer);
            let explained = tokio::time::timeout_at(order.deadline, explaining).await;
            // Without time or success in finding out more, the refusal itself is the answer.
            explained.ok().flatten().ok_or(refusal.error)
        }
    }
}

async fn read(client: &Client, operation: &str, volume: &VolumeId) -> Result<CloudVolume, ProviderError> {
    let number = number(operation, volume)?;
    client.get_object::<Volume>(operation, VOLUMES, number).await.map(Volume::into_cloud)
}

fn number(operation: &str, volume: &VolumeId) -> Result<u64, ProviderError> {
    handle::number(volume.as_str()).ok_or_else(|| ProviderError::NotApplied {
        operation: operation.to_owned(),
        reason: "it is not a number of Linode's".to_owned(),
    })
}

/// What makes a detach pointless or forbidden, if anything does.
fn obstacle(
    order: Order<'_>,
    volume: &CloudVolume,
    expected: &InstanceId,
) -> Result<Option<DetachOutcome>, ProviderError> {
    match volume.holders.first() {
        None => return Ok(Some(DetachOutcome::AlreadyDetached)),
        Some(other) if other != expected => return Ok(Some(DetachOutcome::AttachedElsewhere(other.clone()))),
        Some(_) => {}
    }
    Ok(match &volume.state {
        VolumeState::Active => None,
        VolumeState::Busy { doing } => {
            Some(DetachOutcome::Busy { detail: format!("the volume's status is {doing}") })
        }
        VolumeState::Locked { reason } => Some(DetachOutcome::Locked { reason: reason.clone() }),
        VolumeState::Detaching => Some(DetachOutcome::Detaching),
        VolumeState::Other(word) => {
            return Err(order.not_applied(&format!("the volume's status {word:?} is not known")));
        }
    })
}

/// The definite outcome behind a refusal, if there is one. Only the API's own 400 and 404 are looked into.
async fn explain(
    client: &Client,
    volume: &VolumeId,
    expected: &InstanceId,
    answer: &Response<Bytes>,
) -> Option<DetachOutcome> {
    if !matches!(answer.status(), StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND) {
        return None;
    }
    let reasons = classify::own_reasons(answer)?;
    if classify::says(&reasons, "busy") {
        return Some(if detach_pending(client, volume).await {
            DetachOutcome::Detaching
        } else {
            DetachOutcome::Busy { detail: reasons }
        });
    }
    if classify::says(&reasons, "locked") {
        return Some(DetachOutcome::Locked { reason: reasons });
    }
    // What Linode answers to detaching a volume that nobody holds is not documented: read who holds it.
    let found = read(client, "read the volume again", volume).await.ok()?;
    match found.holders.first() {
        None => Some(DetachOutcome::AlreadyDetached),
        Some(other) if other != expected => Some(DetachOutcome::AttachedElsewhere(other.clone())),
        Some(_) => None,
    }
}

/// Whether the job history shows a detach of this volume under way. Not being able to read it counts as no.
async fn detach_pending(client: &Client, volume: &VolumeId) -> bool {
    match newest_volume_jobs(client, volume).await {
        Ok(jobs) => jobs.iter().any(|job| job.action == "volume_detach" && job.is_pending()),
        Err(error) => {
            tracing::debug!(%error, "the job history could not be read");
            false
        }
    }
}
