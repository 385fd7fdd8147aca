//! Objects that this version cannot read: a recovery, an agent's report, the owner of a pod. It stays untouched and is named,
//! and everything else goes on.

use k8s_openapi::api::core::v1::Pod;
use reattach_api::{Phase, VolumeRecovery};
use reattach_cluster::view::View;
use reattach_cluster::workloads::{self, Detail, Owner};
use reattach_core::ids::ObjectName;
use reattach_drill::app::App;
use reattach_drill::stage::{Expect, Stage, recovery_of, state_of};
use reattach_drill::world::{APPS, World};
use reattach_sim::apiserver::{ApiStatus, Fault, FaultRule, RequestMatch};
use reattach_sim::kubelet::DiskAfter;
use reattach_sim::{ApiServer, Clock};
use reattach_tests_simulation::fixture::new_stage;
use reattach_tests_simulation::{NODES, broken_rules, play, secs, story};
use serde_json::{Value, json};
use std::sync::Arc;

const PERSON: &str = "sre@example.org";
const FINALIZER: &str = "reattach.dev/restore";

fn pinned(app: App, node: &str) -> App {
    let selector = json!({ "kubernetes.io/hostname": node });
    app.with(|w| {
        let spec = if w["kind"] == "Pod" {
            &mut w["spec"]
        } else {
            &mut w["spec"]["template"]["spec"]
        };
        spec["nodeSelector"] = selector;
    })
}

fn redis() -> App {
    pinned(reattach_tests_simulation::redis(), NODES[0].0)
}

fn postgres() -> App {
    pinned(reattach_tests_simulation::postgres(), NODES[1].0)
}

/// The apps run under a policy of mode Auto; no controller yet.
async fn set(seed: u64, apps: &[App]) -> Stage {
    let mut s = new_stage(seed, &NODES).await.expect("a stage");
    for app in apps {
        s.add(app.clone(), Expect::Running).await.expect("an app");
    }
    s.world
        .policy(
            "everything",
            reattach_core::policy::Mode::Auto,
            0,
            "scale-to-zero",
        )
        .await
        .expect("a policy");
    let names: Vec<&str> = apps.iter().map(|a| a.name.as_str()).collect();
    s.running(&names, secs(180)).await.expect("they run");
    s
}

async fn recycle_both(s: &mut Stage) {
    for (node, _) in NODES {
        s.recycle(node, DiskAfter::Kept, secs(6))
            .await
            .expect("a recycle");
    }
}

fn raw(w: &World, name: &str) -> Option<Arc<Value>> {
    w.server()
        .read("reattach.dev", "volumerecoveries", APPS, name)
}

fn path(name: &str) -> String {
    format!("/apis/reattach.dev/v1alpha1/namespaces/{APPS}/volumerecoveries/{name}")
}

fn message(r: &VolumeRecovery) -> String {
    r.status
        .as_ref()
        .map(|s| s.message.clone())
        .unwrap_or_default()
}

/// Effects on anything that has `part` in its path.
fn effects_on(s: &Stage, part: &str) -> Vec<String> {
    s.world
        .request_log
        .effects()
        .iter()
        .filter(|e| e.path.contains(part))
        .map(|e| e.line())
        .collect()
}

fn unbroken(s: &Stage) {
    let broken = broken_rules(s);
    let timeline = story(s);
    assert!(broken.is_empty(), "{broken:#?}\n{timeline}");
}

#[test]
fn a_newer_versions_recovery_waits_and_others_heal() {
    play(|| async {
        let mut s = set(1, &[redis(), postgres()]).await;
        let journal = json!([
            { "seq": 0, "at": "2026-03-02T03:00:00Z", "term": 1, "by": "r", "mark": { "mark": "accepted",
              "planHash": "0123456789abcdef", "authority": "mode Auto" } },
            { "seq": 1, "at": "2026-03-02T03:00:01Z", "term": 1, "by": "r", "mark": { "mark": "quarantined", "node": null } },
        ]);
        s.world.server().insert(&json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": { "name": "future", "namespace": APPS, "finalizers": [FINALIZER] },
            "spec": { "claimName": "redis-data", "mode": "Auto", "runbook": "scale-to-zero", "requester": PERSON },
            "status": { "phase": "Running", "message": "", "epoch": 0, "journal": journal },
        }));
        let before = state_of(&s.world, &redis());
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(10)).await;
        recycle_both(&mut s).await;
        s.phases(&["postgres"], &[Phase::Recovered], secs(600))
            .await
            .expect("the healthy one heals");
        s.running(&["postgres"], secs(60)).await.expect("it runs");
        s.pass(secs(120)).await;

        let held = recovery_of(&s.world, &redis()).expect("a recovery");
        assert_eq!(
            held.metadata.name.as_deref(),
            Some("future"),
            "no second recovery of the claim"
        );
        let said = message(&held);
        assert_eq!(
            held.status.as_ref().map(|s| s.phase),
            Some(Phase::Stuck),
            "{said}"
        );
        for part in [
            "status.journal[1] cannot be read (unknown variant `quarantined`",
            "Run the reattach version",
        ] {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
        assert_eq!(
            raw(&s.world, "future").expect("it is there")["status"]["journal"],
            journal,
            "as it was found"
        );
        assert_eq!(effects_on(&s, "redis"), Vec::<String>::new());
        assert_eq!(
            state_of(&s.world, &redis()).1,
            before.1,
            "the workload was not written"
        );

        // Neither an abort nor a deletion releases anything: whether a detach is under way is not known.
        let abort = json!({ "spec": { "abort": { "by": PERSON } } });
        s.world
            .merge(PERSON, &path("future"), &abort)
            .await
            .expect("accepted");
        s.world
            .request(
                PERSON,
                "DELETE",
                &path("future"),
                "application/json",
                &json!({}),
            )
            .await
            .expect("accepted");
        s.pass(secs(60)).await;
        let kept = raw(&s.world, "future").expect("held by its finalizer");
        assert!(kept["metadata"]["deletionTimestamp"].is_string());
        assert_eq!(kept["status"]["journal"], journal);
        let said = kept["status"]["message"].as_str().expect("a message");
        assert!(
            said.contains("is being deleted and stays") && said.contains(FINALIZER),
            "{said}"
        );
        assert_eq!(effects_on(&s, "redis"), Vec::<String>::new());

        // A person has settled it: the claim is free for a recovery of this version.
        s.world
            .merge(
                PERSON,
                &path("future"),
                &json!({ "metadata": { "finalizers": null } }),
            )
            .await
            .expect("accepted");
        s.running(&["redis"], secs(600))
            .await
            .expect("healed after all");
        s.pass(secs(60)).await;
        unbroken(&s);
    });
}

#[test]
fn a_newer_versions_unstarted_plan_can_be_deleted() {
    play(|| async {
        let mut s = set(2, &[redis()]).await;
        let plan = json!({ "version": 9, "steps": "another way" });
        s.world.server().insert(&json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": { "name": "future", "namespace": APPS, "finalizers": [FINALIZER] },
            "spec": { "claimName": "redis-data", "mode": "Auto", "runbook": "scale-to-zero", "requester": PERSON },
            "status": { "phase": "AwaitingApproval", "message": "", "epoch": 0, "plan": plan },
        }));
        s.start_replica("reattach-controller-0", None);
        recycle_both(&mut s).await;
        s.phases(&["redis"], &[Phase::Stuck], secs(120))
            .await
            .expect("a person is told");
        s.pass(secs(60)).await;
        let held = raw(&s.world, "future").expect("it is there");
        assert_eq!(held["status"]["plan"], plan);
        let said = held["status"]["message"].as_str().expect("a message");
        assert!(
            said.contains("status.plan cannot be read") && said.contains("has not begun"),
            "{said}"
        );
        assert_eq!(effects_on(&s, ""), Vec::<String>::new());
        s.world
            .request(
                PERSON,
                "DELETE",
                &path("future"),
                "application/json",
                &json!({}),
            )
            .await
            .expect("accepted");
        s.running(&["redis"], secs(600))
            .await
            .expect("another recovery heals it");
        assert!(raw(&s.world, "future").is_none(), "gone at once");
        s.pass(secs(60)).await;
        unbroken(&s);
    });
}

#[test]
fn a_malformed_report_is_no_answer_and_stops_no_other_node() {
    play(|| async {
        let mut s = set(3, &[redis(), postgres()]).await;
        let (bad, good) = (NODES[0].0, NODES[1].0);
        assert_eq!(
            (s.node_of("redis"), s.node_of("postgres")),
            (bad.to_owned(), good.to_owned())
        );
        s.world.stop_agent(bad);
        let before = state_of(&s.world, &redis());
        // The agent's last word was a clean one; the malformed one stands beside it.
        let report = format!("/apis/reattach.dev/v1alpha1/nodevolumereports/{bad}/status");
        let status = json!({ "status": { "inventory": { "bootId": ["of", "another", "shape"] } } });
        s.world
            .merge(PERSON, &report, &status)
            .await
            .expect("the schema lets it through");
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(10)).await;
        recycle_both(&mut s).await;
        s.phases(&["postgres"], &[Phase::Recovered], secs(600))
            .await
            .expect("the other node's heals");
        s.pass(secs(120)).await;

        let blind = recovery_of(&s.world, &redis()).expect("a recovery");
        let said = message(&blind);
        assert_eq!(
            blind.status.as_ref().map(|s| s.phase),
            Some(Phase::Diagnosing),
            "{said}"
        );
        assert!(
            said.contains(&format!(
                "NodeVolumeReport {bad}: status.inventory cannot be read"
            )),
            "{said}"
        );
        assert_eq!(effects_on(&s, "redis"), Vec::<String>::new());
        assert_eq!(
            state_of(&s.world, &redis()).1,
            before.1,
            "the workload was not written"
        );
        let asked = s
            .world
            .server()
            .read("reattach.dev", "nodevolumereports", "", bad)
            .expect("the report");
        let boot = |report: &Value| report["status"]["inventory"]["bootId"].clone();
        assert_eq!(boot(&asked), boot(&status), "not ours to repair");
    });
}

#[test]
fn a_pod_of_an_operator_is_not_called_a_bare_pod() {
    play(|| async {
        let owner = json!([{
            "apiVersion": "redis.example.com/v1", "kind": "RedisCluster", "name": "main", "uid": "u-1",
            "controller": true,
        }]);
        let app = App::pod("cluster", 7003, "pvccluster", "an operator's pod");
        let app = pinned(app, NODES[0].0).with(|w| w["metadata"]["ownerReferences"] = owner);
        let mut s = set(4, std::slice::from_ref(&app)).await;
        s.start_replica("reattach-controller-0", None);
        s.pass(secs(10)).await;
        recycle_both(&mut s).await;
        let named = |w: &World| {
            recovery_of(w, &app)
                .is_some_and(|r| message(&r).contains("is owned by RedisCluster main"))
        };
        s.until("the owner named", secs(300), named)
            .await
            .expect("it is named");
        let said = message(&recovery_of(&s.world, &app).expect("a recovery"));
        assert!(
            said.contains("redis.example.com/v1") && said.contains("cannot be read"),
            "{said}"
        );
        assert!(!said.contains("has no owner"), "{said}");
        s.pass(secs(60)).await;
        assert_eq!(s.world.request_log.effects().len(), 0);
    });
}

/// The custom resource of an operator.
fn redis_clusters() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": { "name": "redisclusters.redis.example.com" },
        "spec": {
            "group": "redis.example.com", "scope": "Namespaced",
            "names": { "kind": "RedisCluster", "plural": "redisclusters" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": {
                "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }],
        },
    })
}

fn lack_the_right_to_read(server: &ApiServer, plural: &str) {
    let forbidden = Fault::Status {
        status: ApiStatus::new(403, "forbidden"),
        after_effect: false,
        retry_after: None,
    };
    let gets = RequestMatch {
        resource: Some(plural.to_owned()),
        ..RequestMatch::default()
    };
    server.add_fault(FaultRule::always(gets, forbidden));
}

/// The operator's object above a Deployment is opted out. That counts where reattach may read it; where it may not, as with the
/// rights that are shipped, the operator's pods are healed as all others are.
#[test]
fn a_readable_opt_out_on_an_operators_object_counts() {
    for readable in [true, false] {
        play(move || async move {
            let owner = json!([{ "apiVersion": "redis.example.com/v1", "kind": "RedisCluster", "name": "main",
                "uid": "u-1", "controller": true }]);
            let app = redis().with(|w| w["metadata"]["ownerReferences"] = owner);
            let mut s = new_stage(7, &NODES).await.expect("a stage");
            let server = s.world.server().clone();
            server.register_crd(&redis_clusters());
            server.insert(
                &json!({ "apiVersion": "redis.example.com/v1", "kind": "RedisCluster",
                "metadata": { "name": "main", "namespace": APPS, "uid": "u-1",
                    "annotations": { "reattach.dev/opt-out": "true" } } }),
            );
            if !readable {
                lack_the_right_to_read(&server, "redisclusters");
            }
            s.add(app.clone(), Expect::Running).await.expect("an app");
            let mode = reattach_core::policy::Mode::Auto;
            s.world
                .policy("everything", mode, 0, "lightest-first")
                .await
                .expect("a policy");
            s.running(&["redis"], secs(180)).await.expect("it runs");
            s.start_replica("reattach-controller-0", None);
            s.pass(secs(10)).await;
            s.recycle(NODES[0].0, DiskAfter::Kept, secs(6))
                .await
                .expect("a recycle");
            if readable {
                s.pass(secs(300)).await;
                assert_eq!(effects_on(&s, ""), Vec::<String>::new());
                let said = recovery_of(&s.world, &app)
                    .map(|r| message(&r))
                    .unwrap_or_default();
                assert!(
                    said.contains("RedisCluster default/main carries reattach.dev/opt-out"),
                    "{said}"
                );
            } else {
                s.running(&["redis"], secs(300)).await.expect("healed");
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_is_read_forbidden_or_gone() {
    let server = ApiServer::new(
        Clock::starting_at("2026-03-02T03:00:00Z".parse().expect("a time")),
        1,
    );
    server.register_crd(&redis_clusters());
    let claim = ObjectName::new("default", "data");
    let client = server.client();
    let owner_of = async |owners: Value| {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": { "name": "p", "namespace": "default", "ownerReferences": owners },
            "spec": { "containers": [], "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }] },
        }))
        .expect("a pod");
        let view = View {
            pods: vec![Arc::new(pod)],
            ..View::default()
        };
        workloads::read(&client, &view, &claim, None, Detail::Count)
            .await
            .expect("an answer")
    };
    let owner = |kind: &str| json!([{ "apiVersion": "redis.example.com/v1", "kind": kind, "name": "main", "uid": "u-1", "controller": true }]);
    assert_eq!(owner_of(Value::Null).await, Owner::None, "nobody owns it");
    assert_eq!(
        owner_of(owner("RedisCluster")).await,
        Owner::None,
        "its owner is gone"
    );
    let refused = |found: Owner| match found {
        Owner::Unreadable { why } => why,
        other => panic!("{other:?}"),
    };
    let why = refused(owner_of(owner("RedisFailover")).await);
    assert!(
        why.starts_with("pod default/p is owned by RedisFailover main (redis.example.com/v1)"),
        "{why}"
    );
    lack_the_right_to_read(&server, "redisclusters");
    let why = refused(owner_of(owner("RedisCluster")).await);
    assert!(
        why.contains("RedisCluster main") && why.contains("lacks the right to get redisclusters"),
        "{why}"
    );
}
