//! Powers instances off and on. Reads the state of the instance right before.

use crate::{
    classify,
    client::{Client, PostFailure},
    handle,
    wire::Instance,
};
use http::StatusCode;
use reattach_core::{cloud::InstanceState, ids::InstanceId};
use reattach_provider_api::{Deadline, EffectError, PowerOffRequest, PowerOutcome, ProviderError};
use serde_json::json;
use std::time::Duration;

/// Path of the instances.
const INSTANCES: &str = "/linode/instances";

/// Requests a shutdown. Linode has one kind: it asks the guest to shut down, and cuts the power when the guest does not do
/// so. An instance that is off already does not change.
pub(crate) async fn off(
    client: &Client,
    request: &PowerOffRequest,
) -> Result<PowerOutcome, EffectError> {
    let operation = format!("power off instance {}", request.instance);
    let change = Change {
        verb: "shutdown",
        from: InstanceState::Running,
        to: InstanceState::Off,
    };
    Ok(change
        .request(client, &operation, &request.instance, request.timeout)
        .await?)
}

/// Requests a boot into the configuration that ran last.
pub(crate) async fn on(
    client: &Client,
    instance: &InstanceId,
    timeout: Duration,
) -> Result<PowerOutcome, EffectError> {
    let operation = format!("power on instance {instance}");
    let change = Change {
        verb: "boot",
        from: InstanceState::Off,
        to: InstanceState::Running,
    };
    Ok(change
        .request(client, &operation, instance, timeout)
        .await?)
}

/// Switches the watchdog of an instance (Lassie) on or off: the field `watchdog_enabled`, which "Update a Linode" writes.
/// The answer is the instance as it is after the change.
pub(crate) async fn watchdog(
    client: &Client,
    instance: &InstanceId,
    on: bool,
    timeout: Duration,
) -> Result<PowerOutcome, EffectError> {
    let way = if on { "on" } else { "off" };
    let operation = format!("switch the watchdog of instance {instance} {way}");
    let deadline = Deadline::after(timeout);
    let number = handle::require_number(&operation, instance.as_str())?;
    let reading = client.get_object::<Instance>(&operation, INSTANCES, number);
    let found = deadline
        .read_first(&operation, "the instance", reading)
        .await?
        .into_cloud();
    if found.auto_restart == on {
        return Ok(PowerOutcome::AlreadyThere);
    }
    deadline.check_time_to_send(&operation, "the instance")?;
    let body = json!({ "watchdog_enabled": on });
    let path = format!("{INSTANCES}/{number}");
    match client.put(&operation, &path, &body, deadline).await {
        Ok(()) => Ok(PowerOutcome::Accepted),
        Err(failure) => match busy(&failure) {
            Some(detail) => Ok(PowerOutcome::Busy { detail }),
            None => Err(failure.error.into()),
        },
    }
}

/// A change of an instance's power.
struct Change {
    /// The last part of the request's path.
    verb: &'static str,
    /// The only state in which the request is sent.
    from: InstanceState,
    to: InstanceState,
}

impl Change {
    /// Reads the instance and, if its state is `from`, sends one request.
    async fn request(
        self,
        client: &Client,
        operation: &str,
        instance: &InstanceId,
        timeout: Duration,
    ) -> Result<PowerOutcome, ProviderError> {
        let deadline = Deadline::after(timeout);
        let number = handle::require_number(operation, instance.as_str())?;
        let reading = client.get_object::<Instance>(operation, INSTANCES, number);
        let state = deadline
            .read_first(operation, "the instance", reading)
            .await?
            .into_cloud()
            .state;
        match &state {
            state if *state == self.to => return Ok(PowerOutcome::AlreadyThere),
            state if *state == self.from => {}
            InstanceState::Unknown(word) => {
                let reason = format!("the instance's status {word:?} is not known");
                return Err(ProviderError::not_applied(operation, reason));
            }
            InstanceState::Transitional(word) => {
                return Ok(PowerOutcome::Busy {
                    detail: format!("the instance's status is {word}"),
                });
            }
            _ => {
                let detail = "the instance is shutting down or being deleted".to_owned();
                return Ok(PowerOutcome::Busy { detail });
            }
        }
        deadline.check_time_to_send(operation, "the instance")?;
        let path = format!("{INSTANCES}/{number}/{}", self.verb);
        match client.post(operation, &path, deadline).await {
            Ok(()) => Ok(PowerOutcome::Accepted),
            Err(failure) => match busy(&failure) {
                Some(detail) => Ok(PowerOutcome::Busy { detail }),
                None => Err(failure.error),
            },
        }
    }
}

/// Returns Linode's text when it refused because the instance is busy.
fn busy(failure: &PostFailure) -> Option<String> {
    let answer = failure
        .refusal
        .as_ref()
        .filter(|answer| answer.status() == StatusCode::BAD_REQUEST)?;
    classify::own_reasons(answer).filter(|reasons| classify::says(reasons, "busy"))
}
