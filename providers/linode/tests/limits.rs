//! The rate limit that the CSI driver shares: what the provider leaves to the driver, and what it does about a refusal.

mod support;

use futures::future::join_all;
use reattach_cloud_simulator::{CloudSim, Fault, FaultRule, Operation};
use reattach_core::ids::{InstanceId, VolumeId};
use reattach_linode::LinodeProvider;
use reattach_provider_api::{
    DetachOutcome, DetachRequest, Lookup, Provider, ProviderError, RequestKind,
    conformance::Harness, limiter::RequestOutcome,
};
use std::time::Duration;
use support::{HOLDER, Linode, VOLUME, start};
use tokio::time::Instant;

/// Requests per minute of the account, as older recordings show it.
const LIMIT: u32 = 400;
const SECOND: Duration = Duration::from_secs(1);

async fn read(provider: &LinodeProvider) -> Result<(), ProviderError> {
    let id = VolumeId::new(VOLUME.to_string());
    match provider
        .describe_volumes(std::slice::from_ref(&id))
        .await
        .remove(&id)
    {
        Some(Lookup::Failed(error)) => Err(error),
        Some(Lookup::Found(_) | Lookup::NotFound) | None => Ok(()),
    }
}

/// Reads a volume, an instance and the history of its power every second, as one of many recoveries.
async fn poll(provider: LinodeProvider, lasting: Duration) {
    let end = Instant::now() + lasting;
    let holder = InstanceId::new(HOLDER.to_string());
    while Instant::now() < end {
        let _ = read(&provider).await;
        provider
            .describe_instances(std::slice::from_ref(&holder))
            .await;
        let _ = provider.power_facts(&holder, start()).await;
        tokio::time::sleep(SECOND).await;
    }
}

/// Sends half of the account's limit, evenly, as a CSI driver that is busy.
async fn drive(sim: CloudSim, lasting: Duration) {
    let end = Instant::now() + lasting;
    while Instant::now() < end {
        let _ = sim.count_other_request();
        tokio::time::sleep(Duration::from_secs(60) / (LIMIT / 2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn another_client_keeps_its_half_of_the_limit() {
    let linode = Linode::new();
    linode.sim.set_rate_limit(Some(LIMIT));
    let lasting = Duration::from_secs(300);
    let pollers = (0..24).map(|_| tokio::spawn(poll(linode.provider.clone(), lasting)));
    let pollers: Vec<_> = pollers.collect();
    drive(linode.sim.clone(), lasting).await;
    join_all(pollers).await;
    assert_eq!(linode.sim.refused_others(), 0, "the driver's requests");
    let ours = linode.sim.requests();
    assert!(ours.iter().all(|r| r.status == Some(200)));
    let per_minute = u32::try_from(ours.len()).expect("a count") / 5;
    assert!(
        (LIMIT / 4..=LIMIT / 2).contains(&per_minute),
        "{per_minute}"
    );
    linode.contract.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn after_a_429_no_read_is_sent_before_its_time() {
    let linode = Linode::new();
    let throttle = Fault::Throttle {
        retry_after_seconds: Some(60),
    };
    let rule = FaultRule::new([], throttle).times(1);
    linode.sim.add_fault(rule);
    let refused = read(&linode.provider).await.expect_err("over the limit");
    let wait = refused.retry_after().expect("a time");
    assert_eq!(wait, Duration::from_secs(60), "{refused}");
    let sent = linode.sim.requests().len();
    let over = Instant::now() + wait;
    while Instant::now() < over {
        let held = read(&linode.provider).await.expect_err("held back");
        assert!(held.retry_after() <= Some(over - Instant::now()), "{held}");
        let holder = InstanceId::new(HOLDER.to_string());
        assert!(linode.provider.power_facts(&holder, start()).await.is_err());
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(linode.sim.requests().len(), sent, "sent meanwhile");
    assert_eq!(read(&linode.provider).await, Ok(()));
    let usage = linode.provider.limiter().expect("a limiter").usage();
    assert_eq!(usage.of(RequestKind::Read, RequestOutcome::Refused), 1);
    assert_eq!(usage.of(RequestKind::Read, RequestOutcome::Held), 60);
}

#[tokio::test(start_paused = true)]
async fn a_detach_is_sent_at_once_while_looks_wait() {
    let linode = Linode::new();
    let looks = (0..400).map(|_| {
        let provider = linode.provider.clone();
        tokio::spawn(async move { read(&provider).await })
    });
    let looks: Vec<_> = looks.collect();
    tokio::task::yield_now().await;
    let (volume, holder) = (
        VolumeId::new(VOLUME.to_string()),
        InstanceId::new(HOLDER.to_string()),
    );
    let proof = linode.proof(&volume, &holder);
    let request = DetachRequest::plain(proof, Duration::from_secs(30));
    let before = Instant::now();
    let outcome = linode.provider.detach(request).await;
    assert_eq!(outcome, Ok(DetachOutcome::Accepted));
    assert_eq!(before.elapsed(), Duration::ZERO);
    let looks = join_all(looks).await;
    let held = |look: &Result<Result<(), ProviderError>, _>| matches!(look, Ok(Err(e)) if e.retry_after().is_some());
    assert!(looks.iter().any(held), "some looks were held back");
    // The reads right before an effect have precedence, too.
    let urgent = linode.provider.before_effects().expect("a limiter");
    let found = urgent.describe_volumes(&[volume]).await;
    assert!(found.into_values().all(|l| matches!(l, Lookup::Found(_))));
}

#[tokio::test(start_paused = true)]
async fn a_throttled_detach_is_not_sent_again_before_its_time() {
    let linode = Linode::new();
    let throttle = Fault::Throttle {
        retry_after_seconds: Some(17),
    };
    let rule = FaultRule::new([Operation::DetachVolume], throttle).times(1);
    linode.sim.add_fault(rule);
    let detach = async || {
        let (volume, holder) = (
            VolumeId::new(VOLUME.to_string()),
            InstanceId::new(HOLDER.to_string()),
        );
        let proof = linode.proof(&volume, &holder);
        let request = DetachRequest::plain(proof, Duration::from_secs(30));
        linode.provider.detach(request).await
    };
    for left in [17, 16] {
        let error = detach().await.expect_err("throttled");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(left)));
        tokio::time::sleep(SECOND).await;
    }
    assert_eq!(linode.detaches(), 1);
    tokio::time::sleep(Duration::from_secs(15)).await;
    assert_eq!(detach().await, Ok(DetachOutcome::Accepted));
    assert_eq!(linode.detaches(), 2);
}
