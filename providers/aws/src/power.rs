//! Powering instances off and on.

use crate::{
    classify::{Call, Failure},
    client::Client,
};
use aws_sdk_ec2::types::{InstanceStateChange, InstanceStateName};
use reattach_core::ids::InstanceId;
use reattach_provider_api::{
    Deadline, EffectError, PowerOffManner, PowerOffRequest, PowerOutcome, ProviderError,
};
use std::time::Duration;

/// Stops an instance. It is never hibernated: that would keep unfinished writes in its memory.
pub(crate) async fn off(
    client: &Client,
    request: &PowerOffRequest,
) -> Result<PowerOutcome, EffectError> {
    let id = &request.instance;
    let operation = format!("power off instance {id}");
    let call = Call {
        operation: &operation,
        action: "StopInstances",
    };
    let force = request.manner == PowerOffManner::Forced;
    let answer = client
        .mutate(call, Deadline::after(request.timeout), |ec2, once| {
            let request = ec2.stop_instances().instance_ids(id.as_str());
            let request = if force { request.force(true) } else { request };
            let request = request.customize().config_override(once);
            async move { request.send().await }
        })
        .await;
    outcome(
        call,
        id,
        answer.map(|a| a.stopping_instances.unwrap_or_default()),
        &InstanceStateName::Stopped,
    )
}

/// Starts an instance.
pub(crate) async fn on(
    client: &Client,
    id: &InstanceId,
    timeout: Duration,
) -> Result<PowerOutcome, EffectError> {
    let operation = format!("power on instance {id}");
    let call = Call {
        operation: &operation,
        action: "StartInstances",
    };
    let answer = client
        .mutate(call, Deadline::after(timeout), |ec2, once| {
            let request = ec2.start_instances().instance_ids(id.as_str());
            let request = request.customize().config_override(once);
            async move { request.send().await }
        })
        .await;
    outcome(
        call,
        id,
        answer.map(|a| a.starting_instances.unwrap_or_default()),
        &InstanceStateName::Running,
    )
}

fn outcome(
    call: Call<'_>,
    id: &InstanceId,
    answer: Result<Vec<InstanceStateChange>, Failure>,
    wanted: &InstanceStateName,
) -> Result<PowerOutcome, EffectError> {
    let changes = match answer {
        Ok(changes) => changes,
        Err(failure) => {
            if matches!(
                failure.code.as_deref(),
                Some("IncorrectInstanceState" | "IncorrectState")
            ) {
                return Ok(PowerOutcome::Busy {
                    detail: failure.message.unwrap_or_default(),
                });
            }
            return Err(failure.error.into());
        }
    };
    // The documented answer names the instance. Another success proves nothing.
    let Some(change) = changes
        .iter()
        .find(|c| c.instance_id() == Some(id.as_str()))
    else {
        let reason = "the answer is a success that does not name this instance".to_owned();
        return Err(ProviderError::Unknown {
            operation: call.operation.to_owned(),
            reason,
        }
        .into());
    };
    let before = change.previous_state().and_then(|s| s.name());
    Ok(if before == Some(wanted) {
        PowerOutcome::AlreadyThere
    } else {
        PowerOutcome::Accepted
    })
}
