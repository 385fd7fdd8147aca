//! The provider over sockets, as in production, without TLS.

mod support;

use axum::{Router, http::StatusCode, routing::any};
use reattach_aws::{AwsConfig, AwsProvider};
use reattach_cloud_simulator::{CloudSim, Fault, FaultRule, Operation, When, router};
use reattach_provider_api::conformance::proof::handshake as proof;
use reattach_provider_api::{
    DetachOutcome, DetachRequest, EffectKnowledge, Lookup, Provider, ProviderError,
};
use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use support::{HOLDER, KEY, SECRET, VOLUME, cloud, config, instance, volume};
use tokio::net::TcpListener;

async fn serve(app: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, app).await });
    format!("http://{address}")
}

fn provider(url: &str) -> AwsProvider {
    AwsProvider::connect(config(url)).expect("a provider")
}

fn order(sim: &CloudSim, time: Duration) -> DetachRequest {
    DetachRequest::plain(proof(&volume(), &instance(HOLDER), sim.now()), time)
}

fn detaches(sim: &CloudSim) -> usize {
    sim.requests()
        .iter()
        .filter(|r| r.operation == Some(Operation::DetachVolume))
        .count()
}

#[tokio::test]
async fn a_detach_over_a_socket() {
    let sim = cloud();
    let provider = provider(&serve(router(sim.clone())).await);
    let outcome = provider.detach(order(&sim, Duration::from_secs(10))).await;
    assert_eq!(outcome, Ok(DetachOutcome::Accepted));
    assert_eq!(detaches(&sim), 1);
    let body = sim.requests().pop().expect("a request").body;
    assert!(!body.contains(SECRET) && !body.contains(KEY), "{body}");
}

#[tokio::test]
async fn a_cut_or_unanswered_request_is_unknown_and_not_repeated() {
    for fault in [
        Fault::Cut {
            when: When::AfterEffect,
        },
        Fault::Cut {
            when: When::BeforeEffect,
        },
        Fault::Latency {
            before_ms: 0,
            after_ms: 60_000,
        },
    ] {
        let sim = cloud();
        sim.add_fault(FaultRule::new([Operation::DetachVolume], fault.clone()));
        let provider = provider(&serve(router(sim.clone())).await);
        let error = provider
            .detach(order(&sim, Duration::from_secs(2)))
            .await
            .expect_err("no answer");
        assert_eq!(
            error.effect(),
            EffectKnowledge::Unknown,
            "{fault:?}: {error}"
        );
        assert_eq!(detaches(&sim), 1, "{fault:?}");
    }
}

#[tokio::test]
async fn a_refused_connection_sends_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let sim = cloud();
    let error = provider(&url)
        .detach(order(&sim, Duration::from_secs(10)))
        .await
        .expect_err("nobody");
    assert_eq!(error.effect(), EffectKnowledge::NotApplied, "{error}");
    let power = reattach_provider_api::PowerOffRequest {
        instance: instance(HOLDER),
        manner: reattach_provider_api::PowerOffManner::Orderly,
        timeout: Duration::from_secs(10),
    };
    // No read comes first: the mutation itself gets no connection.
    let error = provider(&url).power_off(power).await.expect_err("nobody");
    assert_eq!(error.effect(), EffectKnowledge::NotApplied, "{error}");
}

#[tokio::test]
async fn redirects_and_foreign_pages_are_not_used() {
    let hits = Arc::new(AtomicUsize::new(0));
    let counted = hits.clone();
    let elsewhere = serve(Router::new().fallback(any(move || {
        counted.fetch_add(1, Ordering::SeqCst);
        async { "<html>a login page</html>" }
    })))
    .await;
    let found = provider(&elsewhere).describe_volumes(&[volume()]).await;
    assert!(
        matches!(found.get(&volume()), Some(Lookup::Failed(_))),
        "{found:?}"
    );
    let before = hits.load(Ordering::SeqCst);
    let target = elsewhere.clone();
    let redirecting = serve(Router::new().fallback(any(move || {
        let target = target.clone();
        async move { (StatusCode::TEMPORARY_REDIRECT, [("location", target)], "") }
    })))
    .await;
    let found = provider(&redirecting).describe_volumes(&[volume()]).await;
    assert!(
        matches!(found.get(&volume()), Some(Lookup::Failed(_))),
        "{found:?}"
    );
    assert_eq!(
        hits.load(Ordering::SeqCst),
        before,
        "the redirect was followed"
    );
}

/// Variable that marks a process started by the test.
const CHILD: &str = "REATTACH_TEST_CHILD";

/// Runs the test below in a new process with only these of the variables that AWS's tools read.
fn child(vars: &[(&str, &str)]) -> String {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args([
        "--exact",
        "settings_from_the_environment_child",
        "--nocapture",
        "--ignored",
    ]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
        command.env_remove(name);
    }
    command
        .env("AWS_CONFIG_FILE", "/dev/null")
        .env("AWS_SHARED_CREDENTIALS_FILE", "/dev/null");
    command
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env(CHILD, "1")
        .envs(vars.iter().copied());
    let output = command.output().expect("a process");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

#[tokio::test]
#[ignore = "started by the test below, in a process of its own"]
async fn settings_from_the_environment_child() {
    if std::env::var_os(CHILD).is_none() {
        println!("SKIPPED: this is a part of settings_come_from_the_environment");
        return;
    }
    let config = AwsConfig::from_vars(|name| std::env::var(name).ok()).expect("settings");
    let provider = AwsProvider::connect(config).expect("a provider");
    let found = provider
        .describe_volumes(&[volume()])
        .await
        .remove(&volume());
    println!("{found:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_come_from_the_environment() {
    let sim = cloud();
    let url = serve(router(sim.clone())).await;
    let place = [
        ("AWS_REGION", "eu-central-1"),
        ("AWS_ENDPOINT_URL", url.as_str()),
    ];
    let run = |more: &[(&'static str, &'static str)]| {
        let vars: Vec<_> = place.iter().copied().chain(more.iter().copied()).collect();
        child(&vars)
    };
    let text = run(&[
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ]);
    assert!(
        text.contains("Some(Found(CloudVolume {") && !text.contains(SECRET),
        "{text}"
    );
    let before = sim.requests().len();
    let text = run(&[]);
    assert!(text.contains("Failed(Denied {"), "{text}");
    assert_eq!(
        sim.requests().len(),
        before,
        "nothing is sent without credentials"
    );
    sim.add_token("AKIAANOTHER", &["*"]);
    let text = run(&[
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ]);
    assert!(
        text.contains("AuthFailure") && !text.contains(SECRET) && !text.contains(KEY),
        "{text}"
    );
}

#[tokio::test]
async fn errors_without_an_answer_do_not_name_the_secret() {
    let sim = cloud();
    sim.add_fault(
        FaultRule::new(
            [],
            Fault::Cut {
                when: When::BeforeEffect,
            },
        )
        .on_volume(VOLUME),
    );
    let provider = provider(&serve(router(sim.clone())).await);
    let found = provider
        .describe_volumes(&[volume()])
        .await
        .remove(&volume());
    let Some(Lookup::Failed(error)) = found else {
        panic!("{found:?}")
    };
    assert!(
        matches!(error, ProviderError::NotApplied { .. }),
        "{error:?}"
    );
    let text = format!("{error} {error:?} {provider:?}");
    assert!(!text.contains(SECRET) && !text.contains(KEY), "{text}");
    assert_eq!(sim.requests().len(), 3, "a read is tried three times");
}
