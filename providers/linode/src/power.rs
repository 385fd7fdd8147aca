//! Powering instances off and on, with the state read right before.

use crate::{
    classify,
    client::Client,
    handle,
    order::{Order, Sent},
    wire::Instance,
};
use http::StatusCode;
use reattach_core::{cloud::InstanceState, ids::InstanceId};
use reattach_provider_api::{EffectError, PowerOffRequest, PowerOutcome};
use std::time::Duration;

/// Where instances are.
const INSTANCES: &str = "/linode/instances";

/// Orders a shutdown. Linode has one kind: it asks the guest, and cuts the power of one that does not follow. An
/// instance that is off without such a job is left as it is: there is nothing that could be shut down.
pub(crate) async fn off(client: &Client, request: &PowerOffRequest) -> Result<PowerOutcome, EffectError> {
    let operation = format!("power off instance {}", request.instance);
    let order = Order::new(client, &operation, request.timeout);
    change(order, &request.instance, "shutdown", &InstanceState::Running, &InstanceState::Off).await
}

/// Orders a boot into the configuration that ran last.
pub(crate) async fn on(
    client: &Client,
    instance: &InstanceId,
    timeout: Duration,
) -> Result<PowerOutcome, EffectError> {
    let operation = format!("power on instance {instance}");
    let order = Order::new(client, &operation, timeout);
    change(order, instance, "boot", &InstanceState::Off, &InstanceState::Running).await
}

async fn change(
    order: Order<'_>,
    instance: &InstanceId,
    verb: &str,
    from: &InstanceState,
    wanted: &InstanceState,
) -> Result<PowerOutcome, EffectError> {
    let Some(number) = handle::number(instance.as_str()) else {
        return Err(order.not_applied("it is not a number of Linode's").into());
    };
    let found = order.read::<Instance>("the instance", INSTANCES, number).await?.into_cloud().state;
    match &found {
        state if state == wanted => return Ok(PowerOutcome::AlreadyThere),
        state if state == from => {}
        InstanceState::Unknown(word) => {
            return Err(order.not_applied(&format!("the instance's status {word:?} is not known")).into());
        }
        InstanceState::Transitional(word) => return Ok(busy(&format!("the instance's status is {word}"))),
        _ => return Ok(busy("the instance is shutting down or being deleted")),
    }
    match order.send("the instance", &format!("{INSTANCES}/{number}/{verb}")).await? {
        Sent::Accepted => Ok(PowerOutcome::Accepted),
        Sent::Refused(refusal) => match classify::own_reasons(&refusal.answer) {
            Some(reasons)
                if refusal.answer.status() == StatusCode::BAD_REQUEST && classify::says(&reasons, "busy") =>
            {
                Ok(busy(&reasons))
            }
            _ => Err(refusal.error.into()),
        },
    }
}

fn busy(detail: &str) -> PowerOutcome {
    PowerOutcome::Busy { detail: detail.to_owned() }
}
