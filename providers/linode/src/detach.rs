//! The one effect: detach, with the holder read right before it.

use crate::{
    classify::{self, Kind},
    client::Client,
    provider::read_jobs,
    wire::Volume,
};
use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use reattach_core::{
    cloud::{CloudVolume, VolumeState},
    ids::{InstanceId, VolumeId},
};
use reattach_provider_api::{DetachOutcome, DetachRequest, ProviderError};
use std::time::Duration;
use tokio::time::Instant;

/// With less time than this left after the reading, nothing is sent: an answer would hardly arrive in time, and would
/// leave the outcome open for no gain.
const LEAST_TIME_TO_SEND: Duration = Duration::from_millis(500);

/// Reads the holder and, if it is exactly the proven one and nothing is in the way, sends one detach.
pub(crate) async fn run(client: &Client, request: &DetachRequest) -> Result<DetachOutcome, ProviderError> {
    let (volume, holder) = (request.volume(), request.holder());
    let operation = format!("detach volume {volume} from instance {holder}");
    let deadline = Instant::now() + request.timeout();

    let reading = tokio::time::timeout_at(deadline, read(client, &operation, volume));
    let Ok(found) = reading.await else {
        return Err(not_applied(&operation, "reading the volume first took all the time allowed"));
    };
    if let Some(outcome) = obstacle(&operation, &found?, holder)? {
        return Ok(outcome);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    if left < LEAST_TIME_TO_SEND {
        return Err(not_applied(&operation, "reading the volume first left too little time"));
    }
    // The only mutation in this crate. It is sent once, whatever comes back.
    let sent = client.post_once(&format!("/volumes/{volume}/detach"), left).await;
    let answer = sent.map_err(|error| classify::transport(&operation, Kind::Mutation, &error))?;
    if answer.status().is_success() {
        return accepted(&operation, &answer);
    }
    let error = classify::refusal(&operation, Kind::Mutation, &answer);
    let explained = tokio::time::timeout_at(deadline, explain(client, volume, holder, &answer));
    // Without time or success in finding out more, the refusal itself is the answer.
    explained.await.ok().flatten().ok_or(error)
}

async fn read(client: &Client, operation: &str, volume: &VolumeId) -> Result<CloudVolume, ProviderError> {
    client.get_object::<Volume>(operation, &format!("/volumes/{volume}")).await.map(Volume::into_cloud)
}

/// What makes a detach pointless or forbidden, if anything does.
fn obstacle(
    operation: &str,
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
            return Err(not_applied(operation, &format!("the volume's status {word:?} is not known")));
        }
    })
}

/// The documented answer is an empty JSON object. Another success, such as a proxy's page, proves nothing.
fn accepted(operation: &str, answer: &Response<Bytes>) -> Result<DetachOutcome, ProviderError> {
    let object = serde_json::from_slice::<serde_json::Map<_, serde_json::Value>>(answer.body());
    match object {
        Ok(_) if classify::is_json(answer.headers()) => Ok(DetachOutcome::Accepted),
        _ => Err(classify::unusable(operation, Kind::Mutation, answer, "it is not a JSON object")),
    }
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
    if says(&reasons, "busy") {
        return Some(if detach_pending(client, volume).await {
            DetachOutcome::Detaching
        } else {
            DetachOutcome::Busy { detail: reasons }
        });
    }
    if says(&reasons, "locked") {
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

/// Whether a text has this word: "blocked" does not say "locked".
fn says(text: &str, word: &str) -> bool {
    text.split(|c: char| !c.is_alphanumeric()).any(|part| part.eq_ignore_ascii_case(word))
}

/// Whether the job history shows a detach of this volume under way. Not being able to read it counts as no.
async fn detach_pending(client: &Client, volume: &VolumeId) -> bool {
    match read_jobs(client, volume, Timestamp::MIN, 1).await {
        Ok(jobs) => jobs.iter().any(|job| job.action == "volume_detach" && job.is_pending()),
        Err(error) => {
            tracing::debug!(%error, "the job history could not be read");
            false
        }
    }
}

fn not_applied(operation: &str, reason: &str) -> ProviderError {
    ProviderError::NotApplied { operation: operation.to_owned(), reason: reason.to_owned() }
}
