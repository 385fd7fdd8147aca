//! What fences a node, against the API server in memory: lock, taints, and a deletion by UID.

use crate::Clock;
use crate::client::Clients;
use crate::effects::node::{is_quarantined, quarantined_by};
use crate::effects::{attachment, hold, node, node_lock, workload};
use crate::gate::{Gate, TidyPass};
use crate::lease::Leadership;
use http::{Request, Response};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::client::Body;
use reattach_api::VolumeRecovery;
use reattach_core::ids::{NodeName, ObjectName, Uid};
use reattach_core::journal::Outcome;
use reattach_core::names::QUARANTINE_TAINT;
use reattach_core::stamp::{STAMP_ANNOTATION, Stamp};
use reattach_core::workload::{ScalePath, WorkloadRef};
use reattach_sim::ApiServer;
use serde_json::{Value, json};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

const NODE: &str = "n1";
const LOCKS: &str = "locks";

fn pass_over(client: Client) -> TidyPass {
    let leadership = Leadership {
        term: 1,
        until: Instant::now() + Duration::from_secs(60),
    };
    let (_, leading) = watch::channel(Some(leadership));
    Gate::new(Clients::over(client.clone(), client), leading)
        .locking_nodes_in(LOCKS)
        .tidy()
        .unwrap()
}

struct Stage {
    server: ApiServer,
    pass: TidyPass,
    clock: Clock,
}

impl Stage {
    fn new() -> Self {
        let start: Timestamp = "2026-03-01T00:00:00Z".parse().unwrap();
        let server = ApiServer::new(reattach_sim::Clock::starting_at(start), 1);
        server
            .insert(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": LOCKS}}));
        let pass = pass_over(server.client());
        Self {
            server,
            pass,
            clock: Clock::starting_at(start),
        }
    }

    /// Puts the Node there; answers its UID.
    fn node(&self, ready: &str, taints: Value) -> Uid {
        let node = self.server.insert(&json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE, "labels": {"zone": "a"}},
            "spec": {"providerID": "linode://1", "taints": taints},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }));
        Uid::from(node["metadata"]["uid"].as_str().unwrap())
    }

    fn taints(&self) -> Vec<(String, String, String)> {
        let node = self.server.read("", "nodes", "", NODE).unwrap();
        let text = |t: &Value, key: &str| t[key].as_str().unwrap_or_default().to_owned();
        let all = node["spec"]["taints"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        all.iter()
            .map(|t| (text(t, "key"), text(t, "value"), text(t, "effect")))
            .collect()
    }

    fn lease(&self) -> Option<Arc<Value>> {
        self.server
            .read("coordination.k8s.io", "leases", LOCKS, "node-n1")
    }

    async fn take(&self, recovery: &str) -> Result<(), Outcome> {
        let recovery = ObjectName::new("ns", recovery);
        node_lock::take(self.pass.as_effect(), &name(), &recovery, self.clock.now()).await
    }

    async fn release(&self, recovery: &str) -> bool {
        let recovery = ObjectName::new("ns", recovery);
        node_lock::release(self.pass.as_effect(), &name(), &recovery)
            .await
            .unwrap()
    }
}

fn name() -> NodeName {
    NodeName::from(NODE)
}

fn taint(key: &str, value: &str, effect: &str) -> (String, String, String) {
    (key.to_owned(), value.to_owned(), effect.to_owned())
}

fn may_be_tried_again(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::NotApplied { retry: true, .. })
}

#[tokio::test(start_paused = true)]
async fn a_lock_has_one_holder_until_released_or_expired() {
    let s = Stage::new();
    s.take("a").await.unwrap();
    let lease = s.lease().unwrap();
    assert_eq!(lease["spec"]["holderIdentity"], "reattach/ns/a");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 3600);

    let refused = s.take("b").await.unwrap_err();
    assert!(may_be_tried_again(&refused), "{refused:?}");
    let Outcome::NotApplied { why, .. } = &refused else {
        unreachable!()
    };
    assert!(
        why.contains("reattach/ns/a") && why.contains("locks/node-n1"),
        "{why}"
    );
    assert!(!s.release("b").await, "not its own");
    assert!(s.lease().is_some());

    // Its own is renewed, so that it expires an hour after that.
    tokio::time::sleep(Duration::from_secs(3000)).await;
    s.take("a").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3000)).await;
    assert!(s.take("b").await.is_err());
    tokio::time::sleep(Duration::from_secs(601)).await;
    s.take("b").await.unwrap();
    assert_eq!(
        s.lease().unwrap()["spec"]["holderIdentity"],
        "reattach/ns/b"
    );
    assert_eq!(s.lease().unwrap()["spec"]["leaseTransitions"], 2);
    assert!(!s.release("a").await, "it has lost it");

    assert!(s.release("b").await);
    assert!(s.lease().is_none());
    s.take("a").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lock_of_another_operator_is_respected() {
    let s = Stage::new();
    let now = s.clock.now();
    let at = |t: Timestamp| t.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string();
    let lease = |spec: Value| {
        s.server.insert(
            &json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "node-n1", "namespace": LOCKS}, "spec": spec}),
        );
    };
    let held = json!({"holderIdentity": "node-maintenance", "leaseDurationSeconds": 3600, "renewTime": at(now)});
    lease(held.clone());
    assert!(s.take("a").await.is_err());
    // When it ends is not said: it may be in force.
    lease(json!({"holderIdentity": "node-maintenance"}));
    assert!(s.take("a").await.is_err());
    let long_ago = at(now - SignedDuration::from_secs(3601));
    lease(
        json!({"holderIdentity": "node-maintenance", "leaseDurationSeconds": 3600, "renewTime": long_ago}),
    );
    s.take("a").await.unwrap();
    assert_eq!(node_lock::recovery_of("node-maintenance"), None);
    assert_eq!(
        node_lock::recovery_of("reattach/ns/a"),
        Some(ObjectName::new("ns", "a"))
    );
}

#[tokio::test(start_paused = true)]
async fn only_a_node_that_is_not_ready_is_taken_out_of_service() {
    let s = Stage::new();
    let others = json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]);
    let uid = s.node("True", others.clone());
    let tainted = node::taint_out_of_service(s.pass.as_effect(), &name(), &uid).await;
    assert!(may_be_tried_again(&tainted), "{tainted:?}");
    let uid = s.node("Unknown", others);
    let other = Uid::from("another");
    let tainted = node::taint_out_of_service(s.pass.as_effect(), &name(), &other).await;
    assert!(may_be_tried_again(&tainted), "{tainted:?}");
    assert_eq!(s.taints(), [taint("dedicated", "db", "NoSchedule")]);

    for _ in 0..2 {
        let tainted = node::taint_out_of_service(s.pass.as_effect(), &name(), &uid).await;
        assert!(tainted.applied(), "{tainted:?}");
    }
    let ours = taint("node.kubernetes.io/out-of-service", "reattach", "NoExecute");
    assert_eq!(s.taints(), [taint("dedicated", "db", "NoSchedule"), ours]);
    assert_eq!(
        s.server.read("", "nodes", "", NODE).unwrap()["metadata"]["labels"]["zone"],
        "a"
    );

    for _ in 0..2 {
        assert!(
            node::untaint(s.pass.as_effect(), &name(), &uid)
                .await
                .applied()
        );
    }
    assert_eq!(s.taints(), [taint("dedicated", "db", "NoSchedule")]);
    let gone = node::untaint(s.pass.as_effect(), &NodeName::from("gone"), &uid).await;
    assert!(gone.applied(), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn the_out_of_service_taint_of_others_is_never_touched() {
    let s = Stage::new();
    let theirs = json!([{"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}]);
    let uid = s.node("Unknown", theirs);
    let tainted = node::taint_out_of_service(s.pass.as_effect(), &name(), &uid).await;
    assert!(
        matches!(tainted, Outcome::NotApplied { retry: false, .. }),
        "{tainted:?}"
    );
    assert!(
        node::untaint(s.pass.as_effect(), &name(), &uid)
            .await
            .applied()
    );
    assert_eq!(
        s.taints(),
        [taint(
            "node.kubernetes.io/out-of-service",
            "nodeshutdown",
            "NoExecute"
        )]
    );
}

#[tokio::test(start_paused = true)]
async fn a_quarantine_goes_by_the_recovery_that_it_belongs_to() {
    let s = Stage::new();
    let uid = s.node("Unknown", json!([]));
    let (a, b) = (Uid::from("recovery-a"), Uid::from("recovery-b"));
    assert!(
        node::quarantine(s.pass.as_effect(), &name(), &uid, &a)
            .await
            .applied()
    );
    // One taint per key and effect: the first one stays.
    assert!(
        node::quarantine(s.pass.as_effect(), &name(), &uid, &b)
            .await
            .applied()
    );
    let ours = taint("reattach.dev/quarantine", "recovery-a", "NoSchedule");
    assert_eq!(s.taints(), std::slice::from_ref(&ours));
    assert!(
        node::unquarantine(s.pass.as_effect(), &name(), &uid, &b)
            .await
            .applied()
    );
    assert_eq!(s.taints(), [ours], "another recovery's");
    assert!(
        node::unquarantine(s.pass.as_effect(), &name(), &uid, &a)
            .await
            .applied()
    );
    assert!(s.taints().is_empty());
}

#[tokio::test(start_paused = true)]
async fn each_recovery_closes_and_opens_a_node_for_itself() {
    let s = Stage::new();
    let uid = s.node(
        "True",
        json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"}]),
    );
    let (a, b) = (Uid::from("recovery-a"), Uid::from("recovery-b"));
    let another = node::close(s.pass.as_effect(), &name(), &Uid::from("another"), &a).await;
    assert!(may_be_tried_again(&another), "{another:?}");
    for recovery in [&a, &b, &a] {
        assert!(
            node::close(s.pass.as_effect(), &name(), &uid, recovery)
                .await
                .applied()
        );
    }
    let keys = |s: &Stage| s.taints().into_iter().map(|t| t.0).collect::<Vec<_>>();
    assert_eq!(
        keys(&s),
        [
            "dedicated",
            "hold.reattach.dev/recovery-a",
            "hold.reattach.dev/recovery-b"
        ]
    );
    assert!(
        s.taints().iter().all(|t| t.2 == "NoSchedule"),
        "running pods stay"
    );
    for _ in 0..2 {
        assert!(
            node::open(s.pass.as_effect(), &name(), &uid, &a)
                .await
                .applied()
        );
    }
    assert_eq!(keys(&s), ["dedicated", "hold.reattach.dev/recovery-b"]);
    let gone = node::open(s.pass.as_effect(), &NodeName::from("gone"), &uid, &b).await;
    assert!(gone.applied(), "{gone:?}");
}

#[tokio::test(start_paused = true)]
async fn an_attachment_is_deleted_by_its_uid() {
    let s = Stage::new();
    let va = s.server.insert(
        &json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment",
        "metadata": {"name": "csi-1"}, "spec": {"attacher": "d", "nodeName": NODE, "source": {}}}),
    );
    let pass = s.pass.as_effect();
    let other = attachment::delete_by_uid(pass, "csi-1", &Uid::from("another")).await;
    assert!(may_be_tried_again(&other), "{other:?}");
    assert!(
        s.server
            .read("storage.k8s.io", "volumeattachments", "", "csi-1")
            .is_some()
    );
    let uid = Uid::from(va["metadata"]["uid"].as_str().unwrap());
    assert!(
        attachment::delete_by_uid(pass, "csi-1", &uid)
            .await
            .applied()
    );
    assert!(
        s.server
            .read("storage.k8s.io", "volumeattachments", "", "csi-1")
            .is_none()
    );
    assert!(
        attachment::delete_by_uid(pass, "csi-1", &uid)
            .await
            .applied(),
        "it is gone"
    );
}

type Requests = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A pass over a client that answers everything with success, and what was sent: method, path, body.
fn recorder() -> (TidyPass, Requests) {
    let seen = Requests::default();
    let log = seen.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let log = log.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.unwrap();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            log.lock()
                .unwrap()
                .push((parts.method.to_string(), parts.uri.path().to_owned(), body));
            let answer =
                json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
            Ok::<_, std::convert::Infallible>(Response::new(Body::from(
                serde_json::to_vec(&answer).unwrap(),
            )))
        }
    });
    (pass_over(Client::new(service, "default")), seen)
}

/// `Api::evict` of kube 5.0 sends preconditions in a way that no API server reads; a deletion has to be right.
#[tokio::test]
async fn the_uid_of_a_deletion_is_where_the_api_server_reads_it() {
    let (pass, seen) = recorder();
    let deleted = attachment::delete_by_uid(pass.as_effect(), "csi-1", &Uid::from("u-1")).await;
    assert!(deleted.applied(), "{deleted:?}");
    let seen = seen.lock().unwrap();
    let (method, path, body) = &seen[0];
    assert_eq!(
        (method.as_str(), path.as_str()),
        ("DELETE", "/apis/storage.k8s.io/v1/volumeattachments/csi-1")
    );
    assert_eq!(*body, json!({"preconditions": {"uid": "u-1"}}));
}

#[tokio::test]
async fn an_eviction_names_the_pod_by_its_uid() {
    let (pass, seen) = recorder();
    let pod = ObjectName::new("shop", "web-0");
    let evicted = hold::release(pass.as_effect(), &pod, &Uid::from("u-1")).await;
    assert!(evicted.applied(), "{evicted:?}");
    let seen = std::mem::take(&mut *seen.lock().unwrap());
    let (method, path, body) = &seen[0];
    assert_eq!(
        (method.as_str(), path.as_str()),
        ("POST", "/api/v1/namespaces/shop/pods/web-0/eviction")
    );
    assert_eq!(body["metadata"]["name"], "web-0");
    assert_eq!(
        body["deleteOptions"],
        json!({"preconditions": {"uid": "u-1"}})
    );
}

/// An eviction or a deletion without a UID would hit whatever has the name now.
#[tokio::test]
async fn nothing_is_evicted_or_deleted_without_a_uid() {
    let (pass, seen) = recorder();
    let pod = ObjectName::new("shop", "web-0");
    let none = Uid::from("");
    for refused in [
        hold::release(pass.as_effect(), &pod, &none).await,
        attachment::delete_by_uid(pass.as_effect(), "csi-1", &none).await,
    ] {
        assert!(
            matches!(refused, Outcome::NotApplied { retry: false, .. }),
            "{refused:?}"
        );
    }
    assert!(seen.lock().unwrap().is_empty(), "no request was sent");
}

fn workload(kind: &str, uid: &str) -> WorkloadRef {
    WorkloadRef {
        api_version: "apps/v1".into(),
        kind: kind.into(),
        plural: format!("{}s", kind.to_lowercase()),
        name: ObjectName::new("shop", "db"),
        uid: uid.into(),
    }
}

/// Each write of a count names the object by UID and by the version that was read; the stamp goes with the count, or after it
/// where `/scale` drops annotations.
#[tokio::test]
async fn a_restore_is_conditional_and_removes_the_stamp() {
    let no_stamp = json!({ STAMP_ANNOTATION: null });
    let object = "/apis/apps/v1/namespaces/shop/statefulsets/db".to_owned();
    let at_once = json!({
        "metadata": {"uid": "u-1", "resourceVersion": "7", "annotations": no_stamp}, "spec": {"replicas": 3}
    });
    let count =
        json!({"metadata": {"uid": "u-1", "resourceVersion": "7"}, "spec": {"replicas": 3}});
    let stamp = json!({"metadata": {"uid": "u-1", "annotations": no_stamp}});
    for (path, wanted) in [
        (ScalePath::Replicas, vec![(object.clone(), at_once)]),
        (
            ScalePath::ScaleSubresource,
            vec![(format!("{object}/scale"), count), (object, stamp)],
        ),
    ] {
        let (pass, seen) = recorder();
        let (set, version) = (workload("StatefulSet", "u-1"), "7".into());
        let restored = workload::restore(pass.as_effect(), &set, &version, path, Some(3)).await;
        assert!(restored.applied(), "{restored:?}");
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert!(
            seen.iter().all(|(method, ..)| method == "PATCH"),
            "{seen:?}"
        );
        let sent: Vec<_> = seen
            .into_iter()
            .map(|(_, path, body)| (path, body))
            .collect();
        assert_eq!(sent, wanted);
    }
}

/// The Deployment controller copies the stamp to the ReplicaSets, from where a rollback would bring it back. A stamp that names
/// another workload is none of ours.
#[tokio::test(start_paused = true)]
async fn a_restored_deployment_leaves_no_copy_of_its_stamp() {
    let s = Stage::new();
    s.server
        .insert(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}));
    let stamp = |workload: &str| {
        let stamp = Stamp {
            replicas: 3,
            workload: workload.into(),
            recovery: "recovery-a".into(),
            at: s.clock.now(),
        };
        json!({ STAMP_ANNOTATION: stamp.to_annotation() })
    };
    let object = |kind: &str, name: &str, annotations: Value| {
        s.server.insert(&json!({
            "apiVersion": "apps/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "db"}},
                "template": {"metadata": {"labels": {"app": "db"}}, "spec": {"containers": []}}},
        }))
    };
    let deployment = object("Deployment", "db", json!({}));
    let text = |o: &Value, key: &str| o["metadata"][key].as_str().unwrap().to_owned();
    let (uid, version) = (
        text(&deployment, "uid"),
        text(&deployment, "resourceVersion"),
    );
    object("ReplicaSet", "db-1", stamp(&uid));
    object("ReplicaSet", "other-1", stamp("another"));
    let (name, version) = (workload("Deployment", &uid), version.as_str().into());
    let restored = workload::restore(
        s.pass.as_effect(),
        &name,
        &version,
        ScalePath::Replicas,
        Some(3),
    )
    .await;
    assert!(restored.applied(), "{restored:?}");
    let stamped = |name: &str| {
        let set = s.server.read("apps", "replicasets", "shop", name).unwrap();
        set["metadata"]["annotations"][STAMP_ANNOTATION].is_string()
    };
    assert!(!stamped("db-1"), "its own");
    assert!(stamped("other-1"), "another workload's");
}

/// The taint of a quarantine may come without a value, and a recovery without a UID would be the empty text too.
#[tokio::test(start_paused = true)]
async fn a_quarantine_without_a_value_belongs_to_no_recovery() {
    let s = Stage::new();
    let uid = s.node(
        "True",
        json!([{"key": QUARANTINE_TAINT, "effect": "NoSchedule"}]),
    );
    let stored = s.server.read("", "nodes", "", NODE).unwrap();
    let node: Node = serde_json::from_value(Value::clone(&stored)).unwrap();
    assert!(is_quarantined(&node));
    assert_eq!(
        quarantined_by(&node),
        None,
        "the empty text names no recovery"
    );
    let again = node::quarantine(s.pass.as_effect(), &name(), &uid, &"recovery-a".into()).await;
    assert!(again.applied(), "{again:?}");
    assert_eq!(s.taints().len(), 1);
}

/// Without its resourceVersion the label would be written over whatever stands there now.
#[tokio::test]
async fn a_label_without_its_condition_is_not_sent() {
    let (pass, seen) = recorder();
    let recovery: VolumeRecovery = serde_json::from_value(json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": {"name": "r", "namespace": "shop", "uid": "u-1"},
        "spec": {"claimName": "data", "mode": "Auto", "runbook": "lightest-first", "requester": "jane"},
    }))
    .unwrap();
    let refused = hold::hold(pass.as_effect(), &recovery).await;
    let Outcome::NotApplied { why, retry: false } = refused else {
        panic!("{refused:?}")
    };
    assert_eq!(
        why,
        "VolumeRecovery shop/r has no resourceVersion, so nothing was sent"
    );
    assert!(seen.lock().unwrap().is_empty(), "no request was sent");
}

/// The count goes with the version of the stamped object. An answer without one must not make the count unconditional.
#[tokio::test]
async fn a_count_without_the_stamp_s_version_is_not_sent() {
    let (pass, seen) = recorder();
    let set = workload("StatefulSet", "u-1");
    let stamp = Stamp {
        replicas: 3,
        workload: "u-1".into(),
        recovery: "recovery-a".into(),
        at: "2026-03-01T00:00:00Z".parse().unwrap(),
    };
    let path = ScalePath::ScaleSubresource;
    let scaled = workload::scale_to_zero(pass.as_effect(), &set, &"7".into(), path, &stamp).await;
    assert!(
        matches!(scaled, Outcome::NotApplied { retry: false, .. }),
        "{scaled:?}"
    );
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 1, "the stamp alone was sent");
    assert!(!seen[0].1.ends_with("/scale"));
}
