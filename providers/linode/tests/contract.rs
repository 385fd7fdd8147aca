//! Checks the simulated cloud's answers against Linode's API description, for calls that the provider does not make. Tests
//! that the check finds violations.

mod support;

use axum::{Json, Router, routing::any};
use bytes::Bytes;
use http::{Method, Request, Response};
use reattach_cloud_simulator::{in_memory, over};
use reattach_provider_api::HttpTransport;
use serde_json::{Value, json};
use std::time::Duration;
use support::{
    cloud,
    contract::{Contract, request},
};
use tower::ServiceExt;

async fn send(transport: &HttpTransport, request: Request<Bytes>) -> (u16, Value) {
    let answer: Response<Bytes> = transport.clone().oneshot(request).await.expect("an answer");
    (
        answer.status().as_u16(),
        serde_json::from_slice(answer.body()).unwrap_or(Value::Null),
    )
}

#[tokio::test(start_paused = true)]
async fn all_calls_of_the_simulator_conform_to_the_description() {
    let contract = Contract::load();
    let transport = contract.watch(in_memory(cloud()));
    let attach = json!({"linode_id": 43, "persist_across_boots": false});
    let by_label = json!({"+or": [{"label": "pvc1"}, {"label": {"+contains": "x"}}]});
    let by_id = json!({"id": {"+gte": 42}, "+order_by": "id", "+order": "desc"});
    let of_volume = json!({"entity.id": 17, "entity.type": "volume", "action": "volume_detach"});
    // Method, path, filter, body, the expected status, and how many seconds pass afterwards.
    let calls = [
        (
            Method::GET,
            "/volumes?page=1&page_size=25",
            Some(by_label),
            None,
            200,
            0,
        ),
        (Method::GET, "/volumes/17", None, None, 200, 0),
        (Method::GET, "/volumes/99", None, None, 404, 0),
        (Method::GET, "/linode/instances", Some(by_id), None, 200, 0),
        (Method::GET, "/linode/instances/42", None, None, 200, 0),
        (
            Method::GET,
            "/linode/instances/42/volumes?page_size=500",
            None,
            None,
            200,
            0,
        ),
        (
            Method::POST,
            "/volumes/17/attach",
            None,
            Some(attach.clone()),
            400,
            0,
        ),
        (Method::POST, "/volumes/17/detach", None, None, 200, 0),
        (Method::POST, "/volumes/17/detach", None, None, 400, 0),
        (
            Method::GET,
            "/account/events?page_size=25",
            Some(of_volume),
            None,
            200,
            300,
        ),
        (Method::POST, "/volumes/17/detach", None, None, 200, 0),
        (
            Method::POST,
            "/volumes/17/attach",
            None,
            Some(attach),
            200,
            300,
        ),
        (
            Method::POST,
            "/linode/instances/42/shutdown",
            None,
            None,
            200,
            0,
        ),
        (
            Method::POST,
            "/linode/instances/42/boot",
            None,
            None,
            400,
            300,
        ),
        (
            Method::POST,
            "/linode/instances/42/boot",
            None,
            Some(json!({})),
            200,
            300,
        ),
        (
            Method::POST,
            "/linode/instances/42/reboot",
            None,
            Some(json!({})),
            200,
            300,
        ),
        (Method::GET, "/account/events", None, None, 200, 0),
    ];
    let mut last = Value::Null;
    for (at, (method, path, filter, body, expected, wait)) in calls.into_iter().enumerate() {
        let (status, answer) = send(
            &transport,
            request(method.clone(), path, filter.as_ref(), body.as_ref()),
        )
        .await;
        assert_eq!(status, expected, "call {at}: {method} {path}: {answer}");
        tokio::time::sleep(Duration::from_secs(wait)).await;
        last = answer;
    }
    contract.assert_kept();
    let actions: Vec<_> = last["data"]
        .as_array()
        .expect("events")
        .iter()
        .map(|e| &e["action"])
        .collect();
    let expected = [
        "linode_reboot",
        "linode_boot",
        "linode_shutdown",
        "volume_attach",
        "volume_detach",
        "volume_attach",
    ];
    assert_eq!(actions, expected);
}

#[tokio::test(start_paused = true)]
async fn the_simulator_refuses_what_the_description_forbids() {
    let transport = in_memory(cloud());
    let by_holder = json!({"linode_id": 42});
    for (path, filter, field) in [
        ("/volumes?page_size=10", None, "page_size"),
        ("/volumes?page_size=501", None, "page_size"),
        ("/volumes?page=0", None, "page"),
        ("/volumes", Some(by_holder), "X-Filter"),
    ] {
        let (status, answer) = send(
            &transport,
            request(Method::GET, path, filter.as_ref(), None),
        )
        .await;
        assert_eq!(
            (status, answer["errors"][0]["field"].as_str()),
            (400, Some(field)),
            "{path}"
        );
    }
    for body in [
        json!({}),
        json!({"linode_id": "43"}),
        json!({"linode_id": 43, "force": true}),
    ] {
        let (status, _) = send(
            &transport,
            request(Method::POST, "/volumes/17/attach", None, Some(&body)),
        )
        .await;
        assert_eq!(status, 400, "{body}");
    }
    let mut bare = request(Method::GET, "/volumes/17", None, None);
    bare.headers_mut().remove("authorization");
    assert_eq!(
        send(&transport, bare).await,
        (401, json!({"errors": [{"reason": "Invalid Token"}]}))
    );
}

#[tokio::test(start_paused = true)]
async fn the_check_finds_bad_requests() {
    let body = json!({"force": true});
    let by_holder = json!({"linode_id": 42});
    let mut bare = request(Method::GET, "/volumes/17", None, None);
    bare.headers_mut().remove("authorization");
    let bad = [
        (request(Method::GET, "/tapes", None, None), "no such path"),
        (
            request(Method::DELETE, "/volumes", None, None),
            "no such method",
        ),
        (
            request(Method::GET, "/volumes/seventeen", None, None),
            "volumeId",
        ),
        (
            request(Method::GET, "/volumes?page_size=10", None, None),
            "page_size",
        ),
        (
            request(Method::GET, "/volumes?colour=red", None, None),
            "colour is not described",
        ),
        (
            request(Method::GET, "/volumes", Some(&by_holder), None),
            "linode_id is not marked as filterable",
        ),
        (
            request(Method::GET, "/volumes", Some(&json!({"+like": 1})), None),
            "+like is no operator",
        ),
        (
            request(Method::POST, "/volumes/17/detach", None, Some(&body)),
            "a body that is not described",
        ),
        (
            request(Method::POST, "/volumes/17/attach", None, None),
            "no body",
        ),
        (
            request(Method::POST, "/volumes/17/attach", None, Some(&body)),
            "force",
        ),
        (bare, "no bearer token"),
    ];
    for (request, expected) in bad {
        let contract = Contract::load();
        let name = format!("{} {}", request.method(), request.uri());
        send(&contract.watch(in_memory(cloud())), request).await;
        let found = contract.seen().violations;
        assert!(
            found.iter().any(|v| v.contains(expected)),
            "{name}: {expected} not in {found:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_check_finds_bad_answers() {
    let good =
        json!({"id": 17, "label": "pvc1", "linode_id": null, "status": "active", "io_ready": true});
    for (field, value) in [
        ("id", json!("17")),
        ("linode_id", json!("42")),
        ("status", json!("attached")),
        ("label", json!("9 lives")),
        ("size", json!(1_000_000)),
    ] {
        let mut bad = good.clone();
        bad[field] = value;
        for (body, broken) in [(good.clone(), false), (bad, true)] {
            let contract = Contract::load();
            let router = Router::new().fallback(any(move || async move { Json(body) }));
            send(
                &contract.watch(over(router)),
                request(Method::GET, "/volumes/17", None, None),
            )
            .await;
            assert_eq!(
                !contract.seen().violations.is_empty(),
                broken,
                "{field}: {:?}",
                contract.seen()
            );
        }
    }
}
