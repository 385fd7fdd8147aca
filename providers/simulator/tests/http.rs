//! The HTTP APIs: faults, the control API, the request log.

use bytes::Bytes;
use http::{Method, Request, Response};
use jiff::Timestamp;
use reattach_cloud_simulator::{
    CloudSim, Effect, Fault, FaultRule, InstanceNo, ManualClock, NewInstance, NewVolume, Operation,
    VolumeNo, When, clock, in_memory,
};
use reattach_provider_api::{TransportError, TransportErrorKind};
use serde_json::{Value, json};
use std::time::Duration;
use tower::ServiceExt;

fn start() -> Timestamp {
    "2021-07-11T01:13:00Z".parse().expect("a time")
}

async fn send(sim: &CloudSim, request: Request<Bytes>) -> Result<Response<Bytes>, TransportError> {
    in_memory(sim.clone()).oneshot(request).await
}

fn api(method: Method, path: &str) -> Request<Bytes> {
    let request = Request::builder()
        .method(method)
        .uri(format!("/v4{path}"))
        .header("authorization", "Bearer x");
    request.body(Bytes::new()).expect("a request")
}

async fn get(sim: &CloudSim, path: &str) -> (u16, Value) {
    let answer = send(sim, api(Method::GET, path)).await.expect("an answer");
    (
        answer.status().as_u16(),
        serde_json::from_slice(answer.body()).unwrap_or(Value::Null),
    )
}

async fn control(sim: &CloudSim, method: Method, path: &str, body: Value) -> (u16, Value) {
    let request = Request::builder()
        .method(method)
        .uri(format!("/control{path}"))
        .header("content-type", "application/json")
        .body(Bytes::from(body.to_string()))
        .expect("a request");
    let answer = send(sim, request).await.expect("an answer");
    (
        answer.status().as_u16(),
        serde_json::from_slice(answer.body()).unwrap_or(Value::Null),
    )
}

fn cloud() -> CloudSim {
    let sim = CloudSim::new(ManualClock::new(start()).clock()).with_seed(7);
    sim.create_instance(NewInstance::new("node-a").with_id(1))
        .expect("an instance");
    sim.create_volume(NewVolume::new("vol").with_id(10))
        .expect("a volume");
    sim.attach_now(VolumeNo(10), InstanceNo(1))
        .expect("attached");
    sim
}

#[tokio::test(start_paused = true)]
async fn faults_apply_as_often_as_set() {
    let sim = cloud();
    let throttle = Fault::Throttle {
        retry_after_seconds: Some(5),
    };
    sim.add_fault(
        FaultRule::new([Operation::DescribeVolume], throttle)
            .after(1)
            .times(2),
    );
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(get(&sim, "/volumes/10").await.0);
    }
    assert_eq!(statuses, [200, 429, 429, 200, 200]);
    assert_eq!(
        get(&sim, "/linode/instances/1").await.0,
        200,
        "another operation"
    );
    let log = sim.requests();
    assert_eq!(log.iter().filter(|r| !r.faults.is_empty()).count(), 2);
    assert_eq!(
        log.iter().map(|r| r.number).collect::<Vec<_>>(),
        [1, 2, 3, 4, 5, 6]
    );
}

#[tokio::test(start_paused = true)]
async fn random_faults_follow_the_seed() {
    let statuses = |seed| async move {
        let sim = cloud().with_seed(seed);
        let mut rule = FaultRule::new([], Fault::Maintenance);
        rule.permille = Some(300);
        sim.add_fault(rule);
        let mut all = Vec::new();
        for _ in 0..200 {
            all.push(get(&sim, "/volumes/10").await.0);
        }
        all
    };
    let first = statuses(1).await;
    assert_eq!(first, statuses(1).await);
    assert_ne!(first, statuses(2).await);
    let hits = first.iter().filter(|s| **s == 503).count();
    assert!(
        (30..90).contains(&hits),
        "{hits} of 200 at 300 per thousand"
    );
}

#[tokio::test(start_paused = true)]
async fn a_cut_connection_has_no_answer_and_a_logged_effect() {
    for (when, effect) in [(When::BeforeEffect, false), (When::AfterEffect, true)] {
        let sim = cloud();
        sim.add_fault(FaultRule::new(
            [Operation::DetachVolume],
            Fault::Cut { when },
        ));
        let error = send(&sim, api(Method::POST, "/volumes/10/detach"))
            .await
            .expect_err("cut");
        assert_eq!(error.kind, TransportErrorKind::AfterSend);
        let record = &sim.requests()[0];
        assert_eq!(
            (record.status, record.effect != Effect::None),
            (None, effect)
        );
        assert!(record.is_mutation());
    }
}

#[tokio::test(start_paused = true)]
async fn latency_passes_on_tokios_clock() {
    let sim = CloudSim::new(clock::tokio_from(start()));
    sim.add_fault(FaultRule::new(
        [],
        Fault::Latency {
            before_ms: 3_000,
            after_ms: 4_000,
        },
    ));
    let before = tokio::time::Instant::now();
    assert_eq!(get(&sim, "/volumes").await.0, 200);
    assert_eq!(before.elapsed(), Duration::from_secs(7));
    assert_eq!(sim.now(), start() + jiff::SignedDuration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn frozen_reads_lag_behind_until_they_thaw() {
    let manual = ManualClock::new(start());
    let sim = CloudSim::new(manual.clock());
    sim.create_instance(NewInstance::new("node-a").with_id(1))
        .expect("an instance");
    sim.create_volume(NewVolume::new("vol").with_id(10))
        .expect("a volume");
    sim.freeze_reads(Duration::from_secs(60));
    sim.attach_now(VolumeNo(10), InstanceNo(1))
        .expect("attached");
    assert_eq!(get(&sim, "/volumes/10").await.1["linode_id"], Value::Null);
    assert!(
        sim.guest_has_device(InstanceNo(1), VolumeNo(10)),
        "the truth moved on"
    );
    manual.advance(jiff::SignedDuration::from_secs(60));
    assert_eq!(get(&sim, "/volumes/10").await.1["linode_id"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_counts_by_the_minute() {
    let manual = ManualClock::new(start());
    let sim = CloudSim::new(manual.clock());
    sim.set_rate_limit(Some(2));
    for expected in [200, 200, 429] {
        assert_eq!(get(&sim, "/volumes").await.0, expected);
    }
    let answer = send(&sim, api(Method::GET, "/volumes"))
        .await
        .expect("an answer");
    assert_eq!(answer.headers()["retry-after"], "60");
    assert_eq!(answer.headers()["x-ratelimit-remaining"], "0");
    manual.advance(jiff::SignedDuration::from_secs(60));
    assert_eq!(get(&sim, "/volumes").await.0, 200);
}

#[tokio::test(start_paused = true)]
async fn timestamps_have_no_zone() {
    assert_eq!(
        get(&cloud(), "/volumes/10").await.1["created"],
        "2021-07-11T01:13:00"
    );
}

#[tokio::test(start_paused = true)]
async fn the_control_api_sets_up_a_cloud_and_shows_its_history() {
    let manual = ManualClock::new(start());
    let sim = CloudSim::new(manual.clock());
    let post = |path: &'static str, body: Value| control(&sim, Method::POST, path, body);
    assert_eq!(
        post("/instances", json!({"label": "node-a", "id": 1}))
            .await
            .0,
        200
    );
    assert_eq!(
        post("/instances", json!({"label": "node-b", "id": 2}))
            .await
            .0,
        200
    );
    assert_eq!(
        post(
            "/volumes",
            json!({"label": "vol", "id": 10, "size_gib": 20})
        )
        .await
        .0,
        200
    );
    let (status, volume) = post(
        "/volumes/10",
        json!({"attach": {"instance": 1, "now": true}}),
    )
    .await;
    assert_eq!((status, &volume["holder"]), (200, &json!(1)));
    let (_, shown) = post("/instances/1", json!("recycle")).await;
    assert_eq!(shown["guest_devices"], json!([]));
    let changes = [
        json!({"lock": {"reason": "migration", "shown": true}}),
        json!("unlock"),
        json!({"busy": {"milliseconds": 1}}),
        json!({"detach_behaviour": "stuck"}),
        json!({"detach_behaviour": {"refused": {"status": 400, "reason": "no"}}}),
        json!({"status": "resizing"}),
        json!("phantom"),
        json!({"orphan": {"instance": 2}}),
        json!("lost"),
    ];
    for change in changes {
        assert_eq!(post("/volumes/10", change.clone()).await.0, 200, "{change}");
        manual.advance(jiff::SignedDuration::from_secs(1));
    }
    for change in [
        json!({"timings": {"detach_ms": 5}}),
        json!({"unattached_detach": "not_found"}),
        json!({"freeze_reads_ms": 1, "rate_limit": 0, "read_only_user": false}),
        json!({"token": {"token": "x", "scopes": ["*"]}}),
    ] {
        assert_eq!(post("/settings", change.clone()).await.0, 200, "{change}");
    }
    let fault = json!({"operations": ["detach_volume"], "times": 1, "fault": {"cut": {"when": "after_effect"}}});
    let (_, added) = post("/faults", fault).await;
    let path = format!("/faults/{}", added["id"]);
    assert_eq!(
        control(&sim, Method::DELETE, &path, json!({})).await.1["removed"],
        true
    );
    assert_eq!(
        control(&sim, Method::DELETE, &path, json!({})).await.1["removed"],
        false
    );

    get(&sim, "/volumes/10").await;
    let (_, log) = control(&sim, Method::GET, "/requests", json!({})).await;
    assert_eq!(log[0]["path"], "/v4/volumes/10");
    assert!(
        !log.to_string().contains("Bearer"),
        "no credentials in the log"
    );
    let (_, history) = control(&sim, Method::GET, "/history/10", json!({})).await;
    assert_eq!(history["max_holders"], 1);
    assert_eq!(history["guest"].as_array().map(Vec::len), Some(2));

    assert_eq!(post("/volumes/99", json!("lost")).await.0, 404);
    assert_eq!(post("/volumes", json!({"label": "vol"})).await.0, 409);
    assert_eq!(
        post("/volumes", json!({"label": "x", "colour": 1})).await.0,
        422
    );
    assert_eq!(post("/instances/1", json!("explode")).await.0, 422);
}

#[tokio::test(start_paused = true)]
async fn a_request_has_its_effect_after_its_sender_gave_up() {
    let sim = CloudSim::new(clock::tokio_from(start()));
    sim.create_instance(NewInstance::new("node-a").with_id(1))
        .expect("an instance");
    sim.create_volume(NewVolume::new("vol").with_id(10))
        .expect("a volume");
    sim.attach_now(VolumeNo(10), InstanceNo(1))
        .expect("attached");
    let slow = Fault::Latency {
        before_ms: 10_000,
        after_ms: 0,
    };
    sim.add_fault(FaultRule::new([Operation::DetachVolume], slow));
    let call = send(&sim, api(Method::POST, "/volumes/10/detach"));
    assert!(
        tokio::time::timeout(Duration::from_secs(1), call)
            .await
            .is_err(),
        "gave up"
    );
    assert_eq!(sim.requests()[0].status, None);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(sim.volume(VolumeNo(10)).map(|v| v.holder), Some(None));
    assert_eq!(sim.requests()[0].status, Some(200));
}
