//! A forced detach: the provider's reads, the proof from them, and the request.

mod support;

use reattach_cloud_simulator::DetachBehaviour;
use reattach_core::{
    cloud::{InstanceObservation, InstanceState},
    evidence::Evidence,
    fact::{Fact, Known, Source},
    ids::NodeName,
    proof::{FenceProof, NoProof, ProofKind, off},
};
use reattach_provider_api::{
    DetachOutcome, ForceDetachRequest, Lookup, PowerOffManner, PowerOffRequest, PowerOutcome,
    Provider, conformance::Harness,
};
use std::time::Duration;
use support::{Aws, HOLDER, VOLUME, instance, volume};

const TIMEOUT: Duration = Duration::from_secs(8);

/// Returns evidence from the provider's reads, with a Node that is not Ready.
async fn evidence(aws: &Aws) -> Evidence {
    let (now, holder) = (aws.now(), instance(HOLDER));
    let source = || Source::Cloud("aws".to_owned());
    let mut evidence = reattach_provider_api::conformance::proof::evidence(
        &volume(),
        &holder,
        &NodeName::from("node-1"),
        now,
    );
    for node in evidence.nodes.values_mut() {
        if let Known::Present(node) = &mut node.value {
            node.ready = false;
        }
    }
    let read = aws
        .provider
        .describe_volumes(&[volume()])
        .await
        .remove(&volume());
    let found = read.and_then(Lookup::found).expect("the volume");
    evidence.cloud_volume = Fact::present(found, source(), now);
    let read = aws
        .provider
        .describe_instances(std::slice::from_ref(&holder))
        .await
        .remove(&holder);
    let found = read.and_then(Lookup::found).expect("the instance");
    evidence
        .instances
        .insert(holder.clone(), Fact::present(found, source(), now));
    let facts = aws
        .provider
        .power_facts(&holder, now)
        .await
        .expect("power facts");
    evidence
        .power
        .insert(holder, Fact::present(facts, source(), now));
    evidence.cloud_scope = Some(aws.provider.scope().await.expect("a scope"));
    evidence
}

/// Makes the proof from two reads, some seconds apart.
async fn proven_off(aws: &Aws) -> Result<FenceProof, NoProof> {
    let first = evidence(aws).await;
    let state = first
        .instances
        .get(&instance(HOLDER))
        .and_then(|f| f.shown())
        .map(|i| i.state.clone());
    let scope = first.cloud_scope.expect("a scope");
    let before = InstanceObservation {
        instance: instance(HOLDER),
        scope,
        state,
        at: aws.now(),
    };
    tokio::time::sleep(Duration::from_secs(3)).await;
    off(
        evidence(aws).await.at(aws.now()),
        &instance(HOLDER),
        Some(&before),
    )
}

async fn stuck_detach() -> Aws {
    let aws = Aws::new();
    aws.sim
        .set_detach(VOLUME, DetachBehaviour::Stuck)
        .expect("set");
    assert_eq!(aws.detach().await, Ok(DetachOutcome::Accepted));
    aws.settle().await;
    assert_eq!(aws.true_holder(&volume()), Some(instance(HOLDER)), "stuck");
    aws
}

async fn power_off(aws: &Aws) {
    let order = PowerOffRequest {
        instance: instance(HOLDER),
        manner: PowerOffManner::Forced,
        timeout: TIMEOUT,
    };
    assert_eq!(
        aws.provider.power_off(order).await,
        Ok(PowerOutcome::Accepted)
    );
}

#[tokio::test(start_paused = true)]
async fn a_stuck_detach_is_forced_when_the_instance_is_off() {
    let aws = stuck_detach().await;
    let running = proven_off(&aws).await.expect_err("it runs");
    assert!(matches!(running, NoProof::Power { .. }), "{running}");
    power_off(&aws).await;
    let stopping = proven_off(&aws).await.expect_err("it stops");
    assert!(matches!(stopping, NoProof::Power { .. }), "{stopping}");
    aws.settle().await;
    let proof = proven_off(&aws).await.expect("it is off");
    assert!(
        matches!(proof.kind(), ProofKind::Off { job: None, .. }),
        "{:?}",
        proof.kind()
    );
    let order = ForceDetachRequest::new(proof, TIMEOUT).expect("an order");
    assert_eq!(
        aws.provider.force_detach(order).await,
        Ok(DetachOutcome::Accepted)
    );
    let last = aws.sent().pop().expect("a request");
    assert!(
        last.contains("Force=true") && last.contains(instance(HOLDER).as_str()),
        "{last}"
    );
    aws.settle().await;
    assert_eq!(aws.true_holder(&volume()), None);
    assert!(aws.sim.pulled().is_empty() && aws.sim.max_guest_holders(VOLUME) == 1);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_was_started_again_is_not_forced() {
    let aws = stuck_detach().await;
    power_off(&aws).await;
    aws.settle().await;
    let order =
        ForceDetachRequest::new(proven_off(&aws).await.expect("off"), TIMEOUT).expect("an order");
    aws.sim.boot(HOLDER).expect("started by another user");
    let before = aws.mutations();
    let error = aws.provider.force_detach(order).await.expect_err("refused");
    assert!(
        error.to_string().contains("neither off nor gone"),
        "{error}"
    );
    assert_eq!(aws.mutations(), before, "nothing was sent");
    let found = aws
        .provider
        .describe_instances(&[instance(HOLDER)])
        .await
        .remove(&instance(HOLDER));
    let state = found.and_then(Lookup::found).map(|i| i.state);
    assert_eq!(
        state,
        Some(InstanceState::Transitional("pending".to_owned()))
    );
}

#[tokio::test(start_paused = true)]
async fn force_needs_an_instance_that_is_off_at_this_moment() {
    let aws = stuck_detach().await;
    let before = aws.mutations();
    for doing in ["running", "shutting down"] {
        let proof =
            reattach_provider_api::conformance::proof::off(&volume(), &instance(HOLDER), aws.now());
        let order = ForceDetachRequest::new(proof, TIMEOUT).expect("an order");
        let error = aws.provider.force_detach(order).await.expect_err(doing);
        assert!(
            error.to_string().contains("neither off nor gone"),
            "{error}"
        );
        if doing == "running" {
            aws.sim.shutdown(HOLDER).expect("a job");
        }
    }
    assert_eq!(aws.mutations(), before, "nothing was sent");
}
