//! The requests of a detach, and what Linode's refusals of one mean.

use crate::{
    classify,
    client::{Client, PostFailure},
    handle,
    history::newest_volume_jobs,
    wire::Volume,
};
use http::StatusCode;
use reattach_core::{cloud::CloudVolume, ids::VolumeId};
use reattach_provider_api::{
    ProviderError,
    detach::{DetachApi, DetachOrder, Refusal, SendFailure},
};

/// Path of the volumes.
const VOLUMES: &str = "/volumes";

impl DetachApi for Client {
    async fn read_volume(
        &self,
        operation: &str,
        volume: &VolumeId,
    ) -> Result<CloudVolume, ProviderError> {
        let number = handle::require_number(operation, volume.as_str())?;
        self.get_object::<Volume>(operation, VOLUMES, number)
            .await
            .map(Volume::into_cloud)
    }

    /// Linode's detach names no instance.
    async fn send(&self, order: DetachOrder<'_>) -> Result<(), SendFailure> {
        let number = handle::require_number(order.operation(), order.volume().as_str())?;
        let path = format!("{VOLUMES}/{number}/detach");
        self.post(order.operation(), &path, order.deadline())
            .await
            .map_err(|failure| SendFailure {
                refusal: meaning(&failure),
                error: failure.error,
            })
    }

    /// A volume's status does not show a detach under way; the account's events do.
    async fn detach_is_pending(&self, volume: &VolumeId) -> bool {
        match newest_volume_jobs(self, volume).await {
            Ok(jobs) => jobs
                .iter()
                .any(|job| job.action == "volume_detach" && job.is_pending()),
            Err(error) => {
                tracing::debug!(%error, "the job history could not be read");
                false
            }
        }
    }
}

/// What a refused detach says about the volume. Linode documents no error codes, so its own words decide, and only in
/// its own 400 and 404. What it answers to a detach of an unattached volume is not documented either: the volume is
/// read again.
fn meaning(failure: &PostFailure) -> Refusal {
    let refused = failure.refusal.as_ref().filter(|answer| {
        matches!(
            answer.status(),
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND
        )
    });
    match refused.and_then(classify::own_reasons) {
        None => Refusal::Other,
        Some(detail) if classify::says(&detail, "busy") => Refusal::JobInTheWay { detail },
        Some(reason) if classify::says(&reason, "locked") => Refusal::Locked { reason },
        Some(_) => Refusal::StateChanged { busy: None },
    }
}
