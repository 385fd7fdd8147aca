//! The transport of production over loopback sockets, on the wall clock. These tests wait for answers and not for time.

mod support;

use axum::{Router, http::StatusCode, response::Redirect, routing::any};
use reattach_cloud_simulator::{
    CloudSim, Fault, FaultRule, NewInstance, NewVolume, Operation, Timings, When, clock, router,
};
use reattach_core::ids::{InstanceId, VolumeId};
use reattach_linode::{LinodeProvider, http_transport};
use reattach_provider_api::conformance::proof::handshake as proof;
use reattach_provider_api::{DetachOutcome, DetachRequest, Lookup, Provider, ProviderError};
use std::time::Duration;
use support::{HOLDER, VOLUME, config, contract::Contract, start};
use tokio::net::TcpListener;

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn wall_cloud() -> CloudSim {
    let sim = CloudSim::new(clock::system());
    sim.set_timings(Timings {
        attach_ms: 0,
        detach_ms: 0,
        ..Timings::default()
    });
    sim.create_instance(NewInstance::new("node-1").with_id(HOLDER.0))
        .expect("an instance");
    sim.create_volume(NewVolume::new("pvc1").with_id(VOLUME.0))
        .expect("a volume");
    sim.attach_now(VOLUME, HOLDER).expect("an attachment");
    sim
}

fn volume() -> VolumeId {
    VolumeId::new(VOLUME.to_string())
}

async fn detach(
    provider: &LinodeProvider,
    timeout: Duration,
) -> Result<DetachOutcome, ProviderError> {
    let proof = proof(&volume(), &InstanceId::new(HOLDER.to_string()), start());
    provider.detach(DetachRequest::plain(proof, timeout)).await
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_detach_over_a_socket_keeps_to_the_api_description() {
    let sim = wall_cloud();
    let config = config(&format!("{}/v4/", serve(router(sim.clone())).await));
    let contract = Contract::load();
    let transport = contract.watch(http_transport(&config).expect("a client"));
    let provider = LinodeProvider::new(transport, config);
    assert!(provider.preflight().await.is_complete());
    assert_eq!(detach(&provider, LONG).await, Ok(DetachOutcome::Accepted));
    let found = provider.describe_volumes(&[volume()]).await;
    let holders = found[&volume()].clone().found().map(|v| v.holders);
    assert_eq!(holders, Some(Vec::new()));
    assert_eq!(
        provider
            .jobs(&volume(), start())
            .await
            .map(|jobs| jobs.len()),
        Ok(2)
    );
    contract.assert_kept();
}

#[tokio::test]
async fn a_connection_cut_after_the_request_is_unknown() {
    for when in [When::BeforeEffect, When::AfterEffect] {
        let sim = wall_cloud();
        sim.add_fault(FaultRule::new(
            [Operation::DetachVolume],
            Fault::Cut { when },
        ));
        let url = serve(router(sim.clone())).await;
        let provider = LinodeProvider::connect(config(&url)).expect("a provider");
        let outcome = detach(&provider, LONG).await;
        assert!(
            matches!(outcome, Err(ProviderError::Unknown { .. })),
            "{outcome:?}"
        );
        let detaches = sim
            .requests()
            .iter()
            .filter(|r| r.operation == Some(Operation::DetachVolume))
            .count();
        assert_eq!(detaches, 1, "nothing repeats a mutation");
        let freed = sim.volume(VOLUME).expect("a volume").holder.is_none();
        assert_eq!(freed, when == When::AfterEffect);
    }
}

#[tokio::test]
async fn a_missing_answer_is_unknown() {
    let sim = wall_cloud();
    let never = Fault::Latency {
        before_ms: 0,
        after_ms: 3_600_000,
    };
    sim.add_fault(FaultRule::new([Operation::DetachVolume], never));
    let provider = LinodeProvider::connect(config(&serve(router(sim)).await)).expect("a provider");
    let outcome = detach(&provider, Duration::from_secs(2)).await;
    assert!(
        matches!(outcome, Err(ProviderError::Unknown { .. })),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_refused_connection_has_no_effect() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let provider = LinodeProvider::connect(config(&url)).expect("a provider");
    let outcome = detach(&provider, LONG).await.expect_err("no connection");
    assert!(
        matches!(outcome, ProviderError::NotApplied { .. }),
        "{outcome:?}"
    );
    assert!(outcome.to_string().contains("refused"), "{outcome}");
    assert!(!outcome.to_string().contains('\n'));
}

#[tokio::test]
async fn redirects_and_pages_of_other_servers_are_not_used() {
    let away = serve(Router::new().fallback(any(|| async { StatusCode::IM_A_TEAPOT }))).await;
    let redirect = Router::new().fallback(any(move || {
        let away = away.clone();
        async move { Redirect::temporary(&away) }
    }));
    let page = Router::new().fallback(any(|| async { axum::response::Html("<h1>Welcome</h1>") }));
    for (router, expected) in [(redirect, "HTTP 307"), (page, "it is not JSON")] {
        let provider = LinodeProvider::connect(config(&serve(router).await)).expect("a provider");
        let found = provider.describe_volumes(&[volume()]).await;
        let Lookup::Failed(error) = &found[&volume()] else {
            panic!("{found:?}")
        };
        assert!(error.to_string().contains(expected), "{error}");
    }
}
