//! A kube client against the in-memory API server.
#![allow(
    clippy::unwrap_used,
    reason = "a test whose stage cannot be set must fail"
)]

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    Api, DeleteParams, EvictParams, ListParams, PartialObjectMeta, Patch, PatchParams, PostParams,
    Preconditions, WatchEvent, WatchParams,
};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt};
use reattach_sim::apiserver::{ApiStatus, Fault, FaultRule, RequestMatch, Verb, WatchBreak};
use reattach_sim::{ApiServer, Clock};
use serde_json::{Value, json};

fn server() -> (ApiServer, Client) {
    let server = ApiServer::new(
        Clock::starting_at("2021-07-11T00:00:00Z".parse().unwrap()),
        7,
    );
    let client = server.client_as("test");
    (server, client)
}

fn config(name: &str, value: &str) -> ConfigMap {
    serde_json::from_value(json!({"metadata": {"name": name}, "data": {"k": value}})).unwrap()
}

fn pod(name: &str, labels: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "c", "image": "i"}]}})
}

fn code(e: &kube::Error) -> u16 {
    match e {
        kube::Error::Api(s) => s.code,
        other => panic!("not an answer of the server: {other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn compare_and_swap() {
    let (_server, client) = server();
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let first = api
        .create(&PostParams::default(), &config("a", "1"))
        .await
        .unwrap();
    assert!(first.uid().is_some() && first.creation_timestamp().is_some());
    assert_eq!(
        code(
            &api.create(&PostParams::default(), &config("a", "1"))
                .await
                .unwrap_err()
        ),
        409
    );

    let mut mine = first.clone();
    mine.data = Some([("k".to_owned(), "2".to_owned())].into());
    let second = api
        .replace("a", &PostParams::default(), &mine)
        .await
        .unwrap();
    assert_ne!(first.resource_version(), second.resource_version());
    let stale = api
        .replace("a", &PostParams::default(), &mine)
        .await
        .unwrap_err();
    assert!(
        matches!(&stale, kube::Error::Api(s) if s.is_conflict()),
        "{stale}"
    );

    let same = api
        .replace("a", &PostParams::default(), &second)
        .await
        .unwrap();
    assert_eq!(
        same.resource_version(),
        second.resource_version(),
        "an unchanged object keeps its version"
    );

    let dry = PostParams {
        dry_run: true,
        ..Default::default()
    };
    let mut third = second.clone();
    third.data = Some([("k".to_owned(), "3".to_owned())].into());
    let shown = api.replace("a", &dry, &third).await.unwrap();
    assert_eq!(shown.data.unwrap()["k"], "3");
    assert_eq!(api.get("a").await.unwrap().data.unwrap()["k"], "2");
    assert!(matches!(api.get("b").await.unwrap_err(), kube::Error::Api(s) if s.is_not_found()));
}

#[tokio::test(start_paused = true)]
async fn patches() {
    let (_server, client) = server();
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let made = api
        .create(&PostParams::default(), &config("a", "1"))
        .await
        .unwrap();
    let pp = PatchParams::default();
    let merged = api
        .patch(
            "a",
            &pp,
            &Patch::Merge(
                json!({"metadata": {"annotations": {"x": "y"}}, "data": {"k": null, "l": "2"}}),
            ),
        )
        .await
        .unwrap();
    assert_eq!(merged.annotations()["x"], "y");
    assert_eq!(
        merged.data.unwrap(),
        [("l".to_owned(), "2".to_owned())].into()
    );
    let stale =
        json!({"metadata": {"resourceVersion": made.resource_version()}, "data": {"k": "9"}});
    assert_eq!(
        code(&api.patch("a", &pp, &Patch::Merge(stale)).await.unwrap_err()),
        409
    );
    let wrong = json!({"metadata": {"uid": "someone-else"}, "data": {"k": "9"}});
    assert_eq!(
        code(&api.patch("a", &pp, &Patch::Merge(wrong)).await.unwrap_err()),
        422
    );

    let strategic = json!({"metadata": {"finalizers": ["t/f"]}});
    api.patch("a", &pp, &Patch::Strategic(strategic))
        .await
        .unwrap();
    let deleted = api.delete("a", &DeleteParams::default()).await.unwrap();
    assert!(deleted.is_left(), "held by its finalizer");
    assert!(
        api.get("a")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
    api.patch(
        "a",
        &pp,
        &Patch::Merge(json!({"metadata": {"finalizers": null}})),
    )
    .await
    .unwrap();
    assert!(api.get_opt("a").await.unwrap().is_none());

    let apply = PatchParams::apply("me");
    let both = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"labels": {"l": "1"}}, "data": {"a": "1", "b": "2"}});
    api.patch("s", &apply, &Patch::Apply(&both)).await.unwrap();
    let one = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"a": "1"}});
    let left = api.patch("s", &apply, &Patch::Apply(&one)).await.unwrap();
    assert!(
        left.labels().is_empty() && left.data.unwrap().len() == 1,
        "what is no longer applied goes"
    );
}

#[tokio::test(start_paused = true)]
async fn preconditions_and_graceful_deletion() {
    let (server, client) = server();
    let api: Api<Pod> = Api::default_namespaced(client);
    let p: Pod = serde_json::from_value(pod("p", json!({}))).unwrap();
    let made = api.create(&PostParams::default(), &p).await.unwrap();
    let by_uid = |uid: &str| DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(uid.into()),
            resource_version: None,
        }),
        ..Default::default()
    };
    assert_eq!(
        code(&api.delete("p", &by_uid("other")).await.unwrap_err()),
        409
    );
    api.delete("p", &by_uid(&made.uid().unwrap()))
        .await
        .unwrap();
    assert!(
        api.get_opt("p").await.unwrap().is_none(),
        "an unbound pod goes at once"
    );

    let mut bound = pod("q", json!({}));
    bound["spec"]["nodeName"] = json!("n1");
    let made = api
        .create(
            &PostParams::default(),
            &serde_json::from_value(bound).unwrap(),
        )
        .await
        .unwrap();
    assert_eq!(
        made.spec
            .as_ref()
            .unwrap()
            .tolerations
            .as_ref()
            .unwrap()
            .len(),
        2
    );
    api.delete("q", &DeleteParams::default()).await.unwrap();
    let left = api.get("q").await.unwrap();
    assert_eq!(
        left.metadata.deletion_grace_period_seconds,
        Some(30),
        "its kubelet has the last word"
    );
    api.delete("q", &DeleteParams::default().grace_period(0))
        .await
        .unwrap();
    assert!(api.get_opt("q").await.unwrap().is_none());
    let deletes = server
        .audit()
        .into_iter()
        .filter(|e| e.verb == Verb::Delete)
        .map(|e| e.code)
        .collect::<Vec<_>>();
    assert_eq!(deletes, [409, 200, 200, 200]);
}

#[tokio::test(start_paused = true)]
async fn status_scale_and_generation() {
    let (_server, client) = server();
    let api: Api<Deployment> = Api::default_namespaced(client);
    let d: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web"}, "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}},
        "status": {"replicas": 9},
    }))
    .unwrap();
    let made = api.create(&PostParams::default(), &d).await.unwrap();
    assert_eq!(
        made.status.unwrap().replicas,
        None,
        "status is not taken on create"
    );
    assert_eq!(made.metadata.generation, Some(1));

    let pp = PatchParams::default();
    let s = api
        .patch_status(
            "web",
            &pp,
            &Patch::Merge(json!({"status": {"replicas": 2}, "spec": {"replicas": 7}})),
        )
        .await
        .unwrap();
    assert_eq!(
        (
            s.spec.unwrap().replicas,
            s.status.unwrap().replicas,
            s.metadata.generation
        ),
        (Some(2), Some(2), Some(1))
    );

    let scale: Scale = api.get_scale("web").await.unwrap();
    assert_eq!(
        scale.status.as_ref().unwrap().selector.as_deref(),
        Some("app=web")
    );
    let zero = json!({"metadata": {"annotations": {"stamp": "x"}, "resourceVersion": scale.resource_version()}, "spec": {"replicas": 0}});
    api.patch_scale("web", &pp, &Patch::Merge(&zero))
        .await
        .unwrap();
    let now = api.get("web").await.unwrap();
    assert_eq!(
        (now.spec.as_ref().unwrap().replicas, now.metadata.generation),
        (Some(0), Some(2))
    );
    assert!(
        now.annotations().is_empty(),
        "an annotation sent with scale is dropped"
    );
    assert_eq!(
        code(
            &api.patch_scale("web", &pp, &Patch::Merge(&zero))
                .await
                .unwrap_err()
        ),
        409
    );
}

#[tokio::test(start_paused = true)]
async fn eviction_respects_budgets() {
    let (server, client) = server();
    let api: Api<Pod> = Api::default_namespaced(client);
    server.insert(
        &json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "redis"}}}}),
    );
    let mut stuck = pod("stuck", json!({"app": "redis"}));
    stuck["spec"]["nodeName"] = json!("n1");
    stuck["status"] =
        json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "False"}]});
    server.insert(&stuck);
    let refused = api
        .evict("stuck", &EvictParams::default())
        .await
        .unwrap_err();
    let kube::Error::Api(status) = &refused else {
        panic!("{refused}")
    };
    assert_eq!(status.code, 429);
    assert_eq!(
        status.message,
        "Cannot evict pod as it would violate the pod's disruption budget."
    );
    let mut pending = pod("pending", json!({"app": "redis"}));
    pending["spec"]["nodeName"] = json!("n1");
    pending["status"] = json!({"phase": "Pending"});
    server.insert(&pending);
    api.evict("pending", &EvictParams::default()).await.unwrap();
    assert!(
        api.get("pending")
            .await
            .unwrap()
            .metadata
            .deletion_timestamp
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn gates_and_bindings() {
    let (_server, client) = server();
    let api: Api<Pod> = Api::default_namespaced(client.clone());
    let mut gated = pod("g", json!({}));
    gated["spec"]["schedulingGates"] = json!([{"name": "hold"}]);
    api.create(
        &PostParams::default(),
        &serde_json::from_value(gated.clone()).unwrap(),
    )
    .await
    .unwrap();
    let bind = || async {
        let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "g"}, "target": {"kind": "Node", "name": "n1"}});
        let request = http::Request::post("/api/v1/namespaces/default/pods/g/binding")
            .body(body.to_string().into_bytes())
            .unwrap();
        client.request::<Value>(request).await
    };
    assert_eq!(code(&bind().await.unwrap_err()), 409);
    api.patch(
        "g",
        &PatchParams::default(),
        &Patch::Merge(json!({"spec": {"schedulingGates": null}})),
    )
    .await
    .unwrap();
    bind().await.unwrap();
    assert_eq!(
        api.get("g")
            .await
            .unwrap()
            .spec
            .unwrap()
            .node_name
            .as_deref(),
        Some("n1")
    );
    gated["metadata"]["name"] = json!("h");
    gated["spec"]["nodeName"] = json!("n1");
    let preset = api
        .create(
            &PostParams::default(),
            &serde_json::from_value(gated).unwrap(),
        )
        .await;
    assert_eq!(code(&preset.unwrap_err()), 422);
}

#[tokio::test(start_paused = true)]
async fn watches_resume_and_expire() {
    let (server, client) = server();
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    api.create(&PostParams::default(), &config("a", "1"))
        .await
        .unwrap();
    let rv = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    api.create(&PostParams::default(), &config("b", "1"))
        .await
        .unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();

    let mut events = api
        .watch(&WatchParams::default(), &rv)
        .await
        .unwrap()
        .boxed();
    assert!(
        matches!(events.try_next().await.unwrap(), Some(WatchEvent::Added(c)) if c.name_any() == "b")
    );
    assert!(
        matches!(events.try_next().await.unwrap(), Some(WatchEvent::Deleted(c)) if c.name_any() == "a")
    );
    assert!(
        matches!(
            events.try_next().await.unwrap(),
            Some(WatchEvent::Bookmark(_))
        ),
        "one virtual minute later"
    );
    assert_eq!(
        server.break_watches(&RequestMatch::default(), WatchBreak::End),
        1
    );
    assert!(events.try_next().await.unwrap().is_none());

    server.compact();
    let mut old = api
        .watch(&WatchParams::default(), &rv)
        .await
        .unwrap()
        .boxed();
    assert!(matches!(old.try_next().await.unwrap(), Some(WatchEvent::Error(s)) if s.code == 410));
}

#[tokio::test(start_paused = true)]
async fn selectors_turn_changes_into_additions_and_deletions() {
    let (_server, client) = server();
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let rv = api
        .list(&ListParams::default())
        .await
        .unwrap()
        .metadata
        .resource_version
        .unwrap();
    let mut events = api
        .watch(&WatchParams::default().labels("on=yes"), &rv)
        .await
        .unwrap()
        .boxed();
    api.create(&PostParams::default(), &config("a", "1"))
        .await
        .unwrap();
    let label = |v: &str| Patch::Merge(json!({"metadata": {"labels": {"on": v}}}));
    api.patch("a", &PatchParams::default(), &label("yes"))
        .await
        .unwrap();
    api.patch("a", &PatchParams::default(), &label("no"))
        .await
        .unwrap();
    assert!(matches!(
        events.try_next().await.unwrap(),
        Some(WatchEvent::Added(_))
    ));
    assert!(matches!(
        events.try_next().await.unwrap(),
        Some(WatchEvent::Deleted(_))
    ));
}

/// The runtime's watcher lives through broken streams, expiry and failing lists, and ends up with the truth.
#[tokio::test(start_paused = true)]
async fn watcher_survives_errors() {
    for streaming in [false, true] {
        let (server, client) = server();
        let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
        let base = watcher::Config::default();
        let stream = watcher(
            api.clone(),
            if streaming {
                base.streaming_lists()
            } else {
                base
            },
        );
        let (store, writer) = kube::runtime::reflector::store::<ConfigMap>();
        let task = tokio::spawn(
            kube::runtime::reflector(writer, stream).for_each(|_| futures::future::ready(())),
        );
        store.wait_until_ready().await.unwrap();
        for (n, how) in [WatchBreak::End, WatchBreak::Disconnect, WatchBreak::Expired]
            .into_iter()
            .enumerate()
        {
            let unavailable = Fault::Status {
                status: ApiStatus::new(503, "injected"),
                after_effect: false,
                retry_after: None,
            };
            for verb in [Verb::List, Verb::Watch] {
                server.add_fault(
                    FaultRule::always(
                        RequestMatch {
                            verb: Some(verb),
                            ..Default::default()
                        },
                        unavailable.clone(),
                    )
                    .times(1),
                );
            }
            server.break_watches(&RequestMatch::default(), how);
            api.create(&PostParams::default(), &config(&format!("c{n}"), "1"))
                .await
                .unwrap();
            tokio::time::timeout(Duration::from_secs(600), async {
                while store
                    .state()
                    .iter()
                    .all(|c| c.name_any() != format!("c{n}"))
                {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            })
            .await
            .unwrap_or_else(|_| panic!("not seen after {how:?}, streaming {streaming}"));
        }
        assert_eq!(store.state().len(), 3);
        task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn faults_and_audit() {
    let (server, client) = server();
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let creates = RequestMatch {
        verb: Some(Verb::Create),
        resource: Some("configmaps".into()),
        ..Default::default()
    };
    let after = Fault::Status {
        status: ApiStatus::new(504, "timed out"),
        after_effect: true,
        retry_after: None,
    };
    server.add_fault(FaultRule::always(creates.clone(), after).times(1));
    assert_eq!(
        code(
            &api.create(&PostParams::default(), &config("a", "1"))
                .await
                .unwrap_err()
        ),
        504
    );
    assert!(
        api.get_opt("a").await.unwrap().is_some(),
        "the effect happened nevertheless"
    );
    let id = server.add_fault(FaultRule::always(
        creates.clone(),
        Fault::Disconnect {
            after_effect: false,
        },
    ));
    assert!(!matches!(
        api.create(&PostParams::default(), &config("b", "1"))
            .await
            .unwrap_err(),
        kube::Error::Api(_)
    ));
    assert!(api.get_opt("b").await.unwrap().is_none());
    server.remove_fault(id);
    let id = server.add_fault(FaultRule::always(
        creates,
        Fault::Latency(Duration::from_secs(9)),
    ));
    let before = server.clock().now();
    api.create(
        &PostParams {
            dry_run: true,
            ..Default::default()
        },
        &config("b", "1"),
    )
    .await
    .unwrap();
    assert_eq!(server.clock().now().duration_since(before).as_secs(), 9);
    server.remove_fault(id);
    let log: Vec<_> = server
        .audit()
        .into_iter()
        .filter(|e| e.verb == Verb::Create)
        .collect();
    assert_eq!(
        log.iter().map(|e| (e.code, e.dry_run)).collect::<Vec<_>>(),
        [(504, false), (0, false), (201, true)]
    );
    assert!(
        log.iter()
            .all(|e| e.user == "test" && e.resource == "configmaps" && e.body.is_some())
    );
}

#[tokio::test(start_paused = true)]
async fn owner_references_and_namespaces() {
    let (server, client) = server();
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let owner = api
        .create(&PostParams::default(), &config("owner", "1"))
        .await
        .unwrap();
    let mut child = config("child", "1");
    child.metadata.owner_references = Some(vec![
        serde_json::from_value(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid()}),
        )
        .unwrap(),
    ]);
    api.create(&PostParams::default(), &child).await.unwrap();
    api.delete("owner", &DeleteParams::default()).await.unwrap();
    assert!(api.get_opt("child").await.unwrap().is_none());

    let elsewhere: Api<ConfigMap> = Api::namespaced(client, "nowhere");
    assert_eq!(
        code(
            &elsewhere
                .create(&PostParams::default(), &config("a", "1"))
                .await
                .unwrap_err()
        ),
        404
    );
    assert!(
        server
            .read("", "namespaces", "", "kube-node-lease")
            .is_some()
    );
}

#[tokio::test(start_paused = true)]
async fn custom_resources_discovery_and_metadata() {
    let (server, client) = server();
    let crd = json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.t.dev"},
        "spec": {"group": "t.dev", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
            "versions": [{"name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": {"type": "object", "properties": {"mode": {"type": "string", "default": "DryRun"}}}}}},
                "subresources": {"status": {},
                "scale": {"specReplicasPath": ".spec.n", "statusReplicasPath": ".status.n"}}}]}});
    let crds: Api<DynamicObject> = Api::all_with(
        client.clone(),
        &ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
            "customresourcedefinitions",
        ),
    );
    crds.create(
        &PostParams::default(),
        &serde_json::from_value(crd).unwrap(),
    )
    .await
    .unwrap();
    let gvk = GroupVersionKind::gvk("t.dev", "v1", "Widget");
    let (found, caps) = kube::discovery::pinned_kind(&client, &gvk).await.unwrap();
    assert_eq!(found.plural, "widgets");
    assert!(caps.scope == kube::discovery::Scope::Namespaced);
    assert_eq!(client.apiserver_version().await.unwrap().minor, "36");

    let api: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &found);
    let widget = json!({"apiVersion": "t.dev/v1", "kind": "Widget", "metadata": {"generateName": "w-"}, "spec": {"n": 3}});
    let made = api
        .create(
            &PostParams::default(),
            &serde_json::from_value(widget).unwrap(),
        )
        .await
        .unwrap();
    assert_eq!(made.name_any().len(), 7);
    assert_eq!(made.data["spec"]["mode"], "DryRun");
    assert_eq!(
        api.get_scale(&made.name_any())
            .await
            .unwrap()
            .spec
            .unwrap()
            .replicas,
        Some(3)
    );
    let strategic = api
        .patch(
            &made.name_any(),
            &PatchParams::default(),
            &Patch::Strategic(json!({"spec": {"n": 4}})),
        )
        .await;
    assert_eq!(code(&strategic.unwrap_err()), 415);

    server.insert(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m", "labels": {"l": "1"}}, "data": {"a": "b"}}));
    let metas: Api<PartialObjectMeta<ConfigMap>> = Api::default_namespaced(client);
    assert_eq!(metas.get("m").await.unwrap().labels()["l"], "1");
    assert_eq!(
        metas
            .list(&ListParams::default())
            .await
            .unwrap()
            .items
            .len(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn admission_patches_and_refuses() {
    let (server, client) = server();
    server.add_admission(Arc::new(|req| {
        if req.resource != "pods" || req.verb != Verb::Create {
            return Ok(json_patch::Patch::default());
        }
        if req.name == "bad" {
            return Err(ApiStatus::new(403, "admission denied the request"));
        }
        let gate =
            json!([{"op": "add", "path": "/spec/schedulingGates", "value": [{"name": "hold"}]}]);
        Ok(serde_json::from_value(gate).unwrap())
    }));
    let api: Api<Pod> = Api::default_namespaced(client);
    let dry = PostParams {
        dry_run: true,
        ..Default::default()
    };
    let probe = api
        .create(&dry, &serde_json::from_value(pod("p", json!({}))).unwrap())
        .await
        .unwrap();
    assert_eq!(
        probe.spec.unwrap().scheduling_gates.unwrap()[0].name,
        "hold"
    );
    assert!(server.read("", "pods", "default", "p").is_none());
    let bad = api
        .create(
            &PostParams::default(),
            &serde_json::from_value(pod("bad", json!({}))).unwrap(),
        )
        .await;
    assert_eq!(code(&bad.unwrap_err()), 403);
}

/// Same seed, same requests: same UIDs, names and versions.
#[tokio::test(start_paused = true)]
async fn runs_repeat() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let (server, client) = server();
        let api: Api<Pod> = Api::default_namespaced(client);
        for _ in 0..3 {
            let mut p = pod("", json!({}));
            p["metadata"] = json!({"generateName": "p-"});
            api.create(&PostParams::default(), &serde_json::from_value(p).unwrap())
                .await
                .unwrap();
        }
        let pods = server.list("", "pods", None);
        seen.push(
            pods.iter()
                .map(|p| p["metadata"].clone())
                .map(|mut m| {
                    m["creationTimestamp"] = Value::Null;
                    m
                })
                .collect::<Vec<_>>(),
        );
    }
    assert_eq!(seen[0], seen[1]);
}

/// The real server's router answers an unknown group in plain text: a client finds code 404 and no reason.
#[tokio::test(flavor = "current_thread", start_paused = true)]
async fn an_unknown_group_is_answered_in_plain_text() {
    let server = reattach_sim::ApiServer::new(reattach_sim::Clock::wall(), 1);
    let resource = kube::api::ApiResource::from_gvk(&kube::api::GroupVersionKind::gvk(
        "keda.sh",
        "v1alpha1",
        "ScaledObject",
    ));
    let api: kube::Api<kube::api::DynamicObject> =
        kube::Api::namespaced_with(server.client(), "default", &resource);
    match api.list(&kube::api::ListParams::default()).await {
        Err(kube::Error::Api(status)) => {
            assert!(status.code == 404 && !status.is_not_found(), "{status:?}")
        }
        other => panic!("expected 404, got {other:?}"),
    }
}
