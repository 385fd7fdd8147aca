//! Detach, plain and forced, with the holder read right before it.

use crate::{
    classify::{Call, Failure},
    client::Client,
    read, wire,
};
use aws_sdk_ec2::operation::detach_volume::DetachVolumeOutput;
use reattach_core::{
    cloud::{CloudVolume, InstanceState, VolumeState},
    ids::{InstanceId, VolumeId},
};
use reattach_provider_api::{DetachOutcome, DetachRequest, ForceDetachRequest, ProviderError};
use std::time::Duration;
use tokio::time::Instant;

/// One order to detach.
struct Order<'a> {
    volume: &'a VolumeId,
    holder: &'a InstanceId,
    force: bool,
    deadline: Instant,
}

/// Reads the holder and, if it is exactly the proven one and nothing is in the way, sends one detach that names it.
pub(crate) async fn plain(client: &Client, request: &DetachRequest) -> Result<DetachOutcome, ProviderError> {
    let (volume, holder) = (request.volume(), request.holder());
    let operation = format!("detach volume {volume} from instance {holder}");
    run(client, &operation, volume, holder, false, request.timeout()).await
}

/// The same by force, after a look at the instance: it must be off or gone at this very moment as well.
pub(crate) async fn forced(
    client: &Client,
    request: &ForceDetachRequest,
) -> Result<DetachOutcome, ProviderError> {
    let order = request.order();
    let (volume, holder) = (order.volume(), order.holder());
    let operation = format!("detach volume {volume} from instance {holder} by force");
    run(client, &operation, volume, holder, true, order.timeout()).await
}

/// The code path of both; kept apart from the orders so that tests can run it.
pub(crate) async fn run(
    client: &Client,
    operation: &str,
    volume: &VolumeId,
    holder: &InstanceId,
    force: bool,
    timeout: Duration,
) -> Result<DetachOutcome, ProviderError> {
    let call = Call { operation, action: "DetachVolume" };
    let order = Order { volume, holder, force, deadline: Instant::now() + timeout };
    let reading = tokio::time::timeout_at(order.deadline, look(client, call, &order));
    let Ok(looked) = reading.await else {
        return Err(call.not_applied("reading the volume first took all the time allowed"));
    };
    if let Some(outcome) = looked? {
        return Ok(outcome);
    }
    let failure = match send(client, call, &order).await {
        Ok(answer) => return accepted(call, &order, &answer),
        Err(failure) => failure,
    };
    let explained = tokio::time::timeout_at(order.deadline, explain(client, &order, &failure));
    // Without time or success in finding out more, the refusal itself is the answer.
    explained.await.ok().flatten().ok_or(failure.error)
}

/// What makes the detach pointless or forbidden, if anything does.
async fn look(
    client: &Client,
    call: Call<'_>,
    order: &Order<'_>,
) -> Result<Option<DetachOutcome>, ProviderError> {
    if order.force {
        off_or_gone(client, call, order.holder).await?;
    }
    match read(client, call.operation, order.volume).await? {
        Some(found) => obstacle(call, &found, order),
        None => Err(ProviderError::NotFound {
            operation: call.operation.to_owned(),
            reason: "EC2 shows no such volume to this credential".to_owned(),
        }),
    }
}

async fn read(
    client: &Client,
    operation: &str,
    volume: &VolumeId,
) -> Result<Option<CloudVolume>, ProviderError> {
    let Some(found) = read::one_volume(client, operation, volume).await? else { return Ok(None) };
    wire::volume(&found).map(Some).map_err(|why| ProviderError::NotApplied {
        operation: operation.to_owned(),
        reason: format!("the volume as EC2 shows it cannot be used: {why}"),
    })
}

/// An instance that EC2 no longer shows is not refused here: whether it is gone is what the order's proof is about.
async fn off_or_gone(client: &Client, call: Call<'_>, holder: &InstanceId) -> Result<(), ProviderError> {
    match read::one_instance(client, call.operation, holder).await?.map(|i| i.state) {
        None | Some(InstanceState::Off | InstanceState::Gone) => Ok(()),
        Some(state) => Err(call.not_applied(format!("instance {holder} is {state:?}, neither off nor gone"))),
    }
}

fn obstacle(
    call: Call<'_>,
    volume: &CloudVolume,
    order: &Order<'_>,
) -> Result<Option<DetachOutcome>, ProviderError> {
    match &volume.holders[..] {
        [] => return Ok(Some(DetachOutcome::AlreadyDetached)),
        [one] if one == order.holder => {}
        [other] => return Ok(Some(DetachOutcome::AttachedElsewhere(other.clone()))),
        many => {
            let names: Vec<_> = many.iter().map(ToString::to_string).collect();
            let why = format!("{} instances have the volume: {}", many.len(), names.join(", "));
            return Err(call.not_applied(why));
        }
    }
    Ok(match &volume.state {
        VolumeState::Active => None,
        VolumeState::Busy { doing } => {
            Some(DetachOutcome::Busy { detail: format!("the volume's state is {doing}") })
        }
        VolumeState::Locked { reason } => Some(DetachOutcome::Locked { reason: reason.clone() }),
        // A detach that waits for a guest is what force is for.
        VolumeState::Detaching if order.force => None,
        VolumeState::Detaching => Some(DetachOutcome::Detaching),
        VolumeState::Other(word) => {
            return Err(call.not_applied(format!("the volume's state {word:?} is not one to act upon")));
        }
    })
}

async fn send(client: &Client, call: Call<'_>, order: &Order<'_>) -> Result<DetachVolumeOutput, Failure> {
    client
        .mutate(call, order.deadline, |ec2, once| {
            let request = ec2.detach_volume().volume_id(order.volume.as_str());
            // Always: EC2 then refuses the request when another instance has the volume.
            let request = request.instance_id(order.holder.as_str());
            let request = if order.force { request.force(true) } else { request };
            let request = request.customize().config_override(once);
            async move { request.send().await }
        })
        .await
}

/// The documented answer names the volume. Another success proves nothing.
fn accepted(
    call: Call<'_>,
    order: &Order<'_>,
    answer: &DetachVolumeOutput,
) -> Result<DetachOutcome, ProviderError> {
    let same = answer.volume_id() == Some(order.volume.as_str())
        && answer.instance_id().is_none_or(|id| id == order.holder.as_str());
    if same {
        return Ok(DetachOutcome::Accepted);
    }
    Err(ProviderError::Unknown {
        operation: call.operation.to_owned(),
        reason: "the answer is a success that does not name this volume and instance".to_owned(),
    })
}

/// The definite outcome behind a refusal, if there is one. Only refusals for the state of things are looked into.
async fn explain(client: &Client, order: &Order<'_>, failure: &Failure) -> Option<DetachOutcome> {
    let code = failure.code.as_deref()?;
    let in_the_way = matches!(code, "IncorrectState" | "VolumeInUse" | "IncorrectInstanceState");
    if !in_the_way && code != "InvalidAttachment.NotFound" {
        return None;
    }
    let found = read(client, "read the volume again", order.volume).await.ok()??;
    match &found.holders[..] {
        [] => Some(DetachOutcome::AlreadyDetached),
        [other] if other != order.holder => Some(DetachOutcome::AttachedElsewhere(other.clone())),
        [_] if found.state == VolumeState::Detaching => Some(DetachOutcome::Detaching),
        [_] if in_the_way => {
            let words = failure.message.clone().unwrap_or_default();
            Some(DetachOutcome::Busy { detail: format!("{words} ({code})") })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{AwsConfig, client::Client};
    use jiff::SignedDuration;
    use reattach_cloud_simulator::{
        CloudSim, DetachBehaviour, InstanceNo, ManualClock, NewInstance, NewVolume, VolumeNo,
        ec2::{instance_id, volume_id},
        in_memory,
    };

    const VOLUME: VolumeNo = VolumeNo(1);
    const HOLDER: InstanceNo = InstanceNo(2);

    /// A cloud whose volume hangs on an instance without a watchdog.
    fn cloud() -> (CloudSim, ManualClock, Client) {
        let clock = ManualClock::new("2021-07-11T01:13:00Z".parse().expect("a time"));
        let sim = CloudSim::new(clock.clock());
        let mut new = NewInstance::new("node").with_id(HOLDER.0);
        new.watchdog_enabled = false;
        sim.create_instance(new).expect("an instance");
        sim.create_volume(NewVolume::new("v").with_id(VOLUME.0)).expect("a volume");
        sim.attach_now_with(VOLUME, HOLDER, true).expect("attached");
        sim.set_detach(VOLUME, DetachBehaviour::Stuck).expect("stuck");
        let config = AwsConfig::fixed("eu-central-1", "http://127.0.0.1", "AKIAEXAMPLE", "secret");
        let client = Client::new(in_memory(sim.clone()), config.expect("settings"));
        (sim, clock, client)
    }

    async fn force(client: &Client) -> Result<DetachOutcome, ProviderError> {
        let (volume, holder) = (VolumeId::new(volume_id(VOLUME)), InstanceId::new(instance_id(HOLDER)));
        run(client, "force it", &volume, &holder, true, Duration::from_secs(10)).await
    }

    #[tokio::test]
    async fn force_needs_an_instance_that_is_off_at_this_moment() {
        let (sim, _, client) = cloud();
        for doing in ["running", "shutting down"] {
            let error = force(&client).await.expect_err(doing);
            assert!(error.to_string().contains("neither off nor gone"), "{error}");
            if doing == "running" {
                sim.shutdown(HOLDER).expect("a job");
            }
        }
        assert!(sim.requests().iter().all(|r| !r.is_mutation()));
    }

    #[tokio::test]
    async fn force_ends_a_detach_that_is_stuck() {
        let (sim, clock, client) = cloud();
        sim.kill(HOLDER).expect("off");
        let (volume, holder) = (VolumeId::new(volume_id(VOLUME)), InstanceId::new(instance_id(HOLDER)));
        let plain = run(&client, "detach it", &volume, &holder, false, Duration::from_secs(10)).await;
        assert_eq!(plain, Ok(DetachOutcome::Accepted));
        clock.advance(SignedDuration::from_mins(10));
        assert_eq!(sim.volume(VOLUME).and_then(|v| v.holder), Some(HOLDER), "stuck");
        assert_eq!(force(&client).await, Ok(DetachOutcome::Accepted));
        let last = sim.requests().pop().expect("a request").body;
        assert!(last.contains("Force=true") && last.contains(&format!("InstanceId={holder}")), "{last}");
        clock.advance(SignedDuration::from_secs(5));
        assert_eq!(sim.volume(VOLUME).and_then(|v| v.holder), None);
        assert!(sim.pulled().is_empty());
    }
}
