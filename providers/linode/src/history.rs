//! Reads the job history of one object from `/account/events`.

use crate::{client::Client, event::Event, handle};
use jiff::{Timestamp, ToSpan};
use reattach_core::{
    cloud::{CloudJob, PowerFacts},
    ids::{InstanceId, VolumeId},
};
use reattach_provider_api::ProviderError;
use serde_json::json;

/// Entries per page, the maximum of the API.
const PAGE: u16 = 500;

/// Maximum number of pages that are read, newest first. A longer history is an error.
const PAGES: usize = 20;

/// Reads all jobs of a volume that were created at or after `since`, oldest first.
pub(crate) async fn volume_jobs(
    client: &Client,
    volume: &VolumeId,
    since: Timestamp,
) -> Result<Vec<CloudJob>, ProviderError> {
    let operation = format!("read the job history of volume {volume}");
    let events = read(client, &operation, "volume", volume.as_str(), Some(since)).await?;
    let recent = events
        .into_iter()
        .filter(|(at, event)| *at >= since_of(since) || event.is_pending());
    recent
        .map(|(_, event)| {
            event
                .into_cloud()
                .map_err(|why| ProviderError::not_applied(&operation, why))
        })
        .collect()
}

/// Reads one page of the newest jobs of a volume. This explains a refusal, but is not a complete history.
pub(crate) async fn newest_volume_jobs(
    client: &Client,
    volume: &VolumeId,
) -> Result<Vec<CloudJob>, ProviderError> {
    let operation = format!("read the newest jobs of volume {volume}");
    let events = read(client, &operation, "volume", volume.as_str(), None).await?;
    let jobs = events.into_iter().map(|(_, event)| event.into_cloud());
    jobs.map(|job| job.map_err(|why| ProviderError::not_applied(&operation, why)))
        .collect()
}

/// Reads the jobs about an instance's power that were created at or after `since`, and those under way. Linode's watchdog
/// boots an instance that stopped without a job, and host maintenance boots any instance. So an instance that is off does
/// not stay off by its state alone.
///
/// The API shows events by the grants of the token's user: a user who sees the instance sees its events.
pub(crate) async fn power(
    client: &Client,
    instance: &InstanceId,
    since: Timestamp,
) -> Result<PowerFacts, ProviderError> {
    let operation = format!("read the power history of instance {instance}");
    let events = read(client, &operation, "linode", instance.as_str(), Some(since)).await?;
    let mut jobs = Vec::new();
    for (created, event) in events {
        if created >= since_of(since) || event.is_pending() {
            jobs.extend(
                event
                    .into_power()
                    .map_err(|why| ProviderError::not_applied(&operation, why))?,
            );
        }
    }
    Ok(PowerFacts {
        jobs,
        off_stays_off: false,
    })
}

/// Returns `since` a second earlier, because the API's times have whole seconds.
fn since_of(since: Timestamp) -> Timestamp {
    since.checked_sub(1.second()).unwrap_or(since)
}

/// Reads the events about one object, with the times of their creation, oldest first. Reads all pages back to `since`, or
/// the newest page when `since` is `None`.
///
/// The filter is the one that Linode's own Go client uses. The events are checked again here, since the API description
/// does not promise this filter for events. If no event is about this object, the answer belongs to another request, and
/// the history is not taken as empty: a shutdown or a boot would be missed.
async fn read(
    client: &Client,
    operation: &str,
    kind: &str,
    id: &str,
    since: Option<Timestamp>,
) -> Result<Vec<(Timestamp, Event)>, ProviderError> {
    let failed = |reason: String| ProviderError::not_applied(operation, reason);
    let number = handle::require_number(operation, id)?;
    let filter = json!({
        "entity.type": kind, "entity.id": number, "+order_by": "created", "+order": "desc",
    });
    let pages = if since.is_some() { PAGES } else { 1 };
    let since = since.map_or(Timestamp::MIN, since_of);
    let mut events = Vec::new();
    let (mut seen, mut cut) = (0, false);
    let mut other = None;
    client
        .get_pages(
            operation,
            "/account/events",
            PAGE,
            Some(&filter),
            |rows, left| {
                let mut older = false;
                for row in rows {
                    let event: Event =
                        serde_json::from_value(row).map_err(|e| failed(e.to_string()))?;
                    let created = event.created().map_err(failed)?;
                    older |= created < since;
                    if event.concerns(kind, number) {
                        events.push((created, event));
                    } else {
                        other.get_or_insert_with(|| event.entity());
                    }
                }
                seen += 1;
                cut = !older && seen >= PAGES && left > 0;
                Ok(!older && seen < pages)
            },
        )
        .await?;
    if let (true, Some(answered)) = (events.is_empty(), other) {
        let (operation, asked) = (operation.to_owned(), format!("{kind} {number}"));
        return Err(ProviderError::OtherObject {
            operation,
            asked,
            answered,
        });
    }
    // A job on a page that was not read may be under way, so an incomplete history proves nothing.
    if cut {
        return Err(failed(format!(
            "the history has more than {PAGES} pages since {since}"
        )));
    }
    events.sort_by_key(|(created, event)| (*created, event.number()));
    Ok(events)
}
