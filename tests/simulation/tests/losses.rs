//! Nothing is destroyed on the way (S2): what a pod alone keeps alive is not lost by reattach making the pod go, neither by
//! an eviction nor by a fence.

use reattach_api::Phase;
use reattach_core::runbook::{DEFAULT_RUNBOOK, SCALE_TO_ZERO};
use reattach_drill::app::{App, AppVolume};
use reattach_drill::in_virtual_time;
use reattach_drill::stage::{Expect, Stage, recovery_of};
use reattach_drill::world::{APPS, World};
use reattach_sim::kubelet::DiskAfter;
use reattach_tests_simulation::fixture::{effects, on_first_node, policy};
use reattach_tests_simulation::{redis, secs};
use serde_json::{Value, json};
use std::sync::Arc;

const PERSON: &str = "sre@example.org";

/// A database whose pod uses a second claim.
fn postgres() -> App {
    let mut app = reattach_tests_simulation::postgres();
    let wal = AppVolume {
        number: 7050,
        label: "pvc77aaf0e6a0d4d0e0".into(),
        claim: "postgres-wal".into(),
        fs_type: "ext4".into(),
    };
    app.volumes.push(wal);
    app.with(|w| {
        let volume =
            json!({ "name": "wal", "persistentVolumeClaim": { "claimName": "postgres-wal" } });
        let spec = &mut w["spec"]["template"]["spec"];
        match spec["volumes"].as_array_mut() {
            Some(all) => all.push(volume),
            None => spec["volumes"] = json!([volume]),
        }
    })
}

/// Everything on the first node, under a policy that lets it be powered off.
async fn set(seed: u64, apps: &[App]) -> Stage {
    let apps = apps.iter().map(|a| (a.clone(), Expect::Running));
    let mut s = on_first_node(seed, apps).await.expect("the apps run");
    let fields = json!({ "powerOff": "Allowed", "nodes": { "patienceSeconds": 60 } });
    policy(&s, &fields).await.expect("a policy");
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(5)).await;
    s
}

/// The database as charts install it, with four emptyDirs, one of them in memory.
fn with_empty_dirs() -> App {
    reattach_tests_simulation::postgres().with(|w| {
        let volumes = json!([
            { "name": "dshm", "emptyDir": { "medium": "Memory" } },
            { "name": "empty-dir", "emptyDir": {} },
            { "name": "run", "emptyDir": {} },
            { "name": "tmp", "emptyDir": { "sizeLimit": "1Gi" } },
        ]);
        let spec = &mut w["spec"]["template"]["spec"]["volumes"];
        let mut all = spec.as_array().cloned().unwrap_or_default();
        all.extend(volumes.as_array().cloned().unwrap_or_default());
        *spec = json!(all);
    })
}

/// The emptyDirs that the plan of the app's recovery names as lost.
fn planned_losses(s: &Stage, app: &App) -> Vec<Value> {
    let status = recovery_of(&s.world, app)
        .and_then(|r| r.status)
        .unwrap_or_default();
    let plan = status.plan.map(|p| json!(p)).unwrap_or_default();
    let losses = plan["losses"].as_array().cloned().unwrap_or_default();
    losses.iter().map(|l| l["volume"].clone()).collect()
}

/// The database with its emptyDirs, stuck under a policy of this runbook with this rule.
async fn stuck_with_empty_dirs(seed: u64, runbook: &str, rule: &Value) -> Stage {
    let mut s = on_first_node(seed, [(with_empty_dirs(), Expect::Running)])
        .await
        .expect("the app runs");
    let mut fields = rule.clone();
    fields["runbook"] = json!(runbook);
    policy(&s, &fields).await.expect("a policy");
    s.start_replica("reattach-controller-0", None);
    s.pass(secs(5)).await;
    let node = s.node_of("postgres");
    s.recycle(&node, DiskAfter::Kept, secs(6))
        .await
        .expect("a recycle");
    // A node that has just come back still shows its pods as they were.
    let down = |w: &World| !w.app_ready("postgres", 1);
    s.until_stored("the app down", secs(60), down)
        .await
        .expect("it is stuck");
    s
}

#[test]
fn a_databases_emptydirs_do_not_keep_its_volume_stuck() {
    for (seed, runbook) in [(11, DEFAULT_RUNBOOK), (12, SCALE_TO_ZERO)] {
        in_virtual_time(move || async move {
            let mut s = stuck_with_empty_dirs(seed, runbook, &json!({})).await;
            s.running(&["postgres"], secs(600)).await.expect("healed");
            assert_eq!(
                planned_losses(&s, &with_empty_dirs()),
                ["empty-dir", "run", "tmp"],
                "{runbook}: the one in memory does not count"
            );
        })
        .expect("virtual time");
    }
}

#[test]
fn emptydirs_to_keep_refuse_the_plan_by_name() {
    for (seed, runbook) in [(13, DEFAULT_RUNBOOK), (14, SCALE_TO_ZERO)] {
        in_virtual_time(move || async move {
            let keep = json!({ "emptyDirs": "Keep" });
            let mut s = stuck_with_empty_dirs(seed, runbook, &keep).await;
            s.pass(secs(300)).await;
            let (phase, message) = said(&s, &with_empty_dirs());
            assert_eq!(phase, Phase::Refused, "{message}");
            for volume in ["empty-dir", "run", "tmp"] {
                assert!(
                    message.contains(&format!("has the emptyDir {volume},")),
                    "{message}"
                );
            }
            assert!(!message.contains("dshm"), "{message}");
            assert_eq!(effects(&s), Vec::<String>::new());
        })
        .expect("virtual time");
    }
}

async fn delete(s: &Stage, what: &str, name: &str) {
    let path = format!("/api/v1/namespaces/{APPS}/{what}/{name}");
    s.world
        .request(PERSON, "DELETE", &path, "application/json", &json!({}))
        .await
        .expect("accepted");
}

fn claim(w: &World, name: &str) -> Option<Arc<Value>> {
    w.server().read("", "persistentvolumeclaims", APPS, name)
}

fn said(s: &Stage, app: &App) -> (Phase, String) {
    let status = recovery_of(&s.world, app)
        .and_then(|r| r.status)
        .unwrap_or_default();
    (status.phase, status.message)
}

/// The second claim was deleted by mistake: it exists only as long as the pod uses it (pvc-protection).
#[test]
fn an_eviction_loses_no_deleted_claim() {
    in_virtual_time(|| async {
        let mut s = set(1, &[postgres()]).await;
        delete(&s, "persistentvolumeclaims", "postgres-wal").await;
        s.pass(secs(30)).await;
        assert!(
            claim(&s.world, "postgres-wal").is_some(),
            "the pod keeps it"
        );
        let node = s.node_of("postgres");
        s.recycle(&node, DiskAfter::Kept, secs(6))
            .await
            .expect("a recycle");
        s.pass(secs(900)).await;
        let (phase, message) = said(&s, &postgres());
        assert!(
            claim(&s.world, "postgres-wal").is_some(),
            "{phase:?}: {message}"
        );
        assert_eq!(effects(&s), Vec::<String>::new());
        assert_eq!(phase, Phase::Refused, "{message}");
        assert!(
            message.contains("claim postgres-wal is being deleted"),
            "{message}"
        );
    })
    .expect("virtual time");
}

/// The loss by a fence: Kubernetes deletes the pods of a node that is tainted out of service.
#[test]
fn a_fence_loses_no_deleted_claim() {
    in_virtual_time(|| async {
        let mut s = set(2, &[postgres()]).await;
        delete(&s, "persistentvolumeclaims", "postgres-wal").await;
        s.pass(secs(30)).await;
        let node = s.node_of("postgres");
        s.hang(&node).expect("a hang");
        s.pass(secs(1200)).await;
        let (phase, message) = said(&s, &postgres());
        assert!(
            claim(&s.world, "postgres-wal").is_some(),
            "{phase:?}: {message}"
        );
        assert_eq!(effects(&s), Vec::<String>::new());
        assert!(
            message.contains("claim postgres-wal is being deleted"),
            "{phase:?}: {message}"
        );
    })
    .expect("virtual time");
}

/// A neighbour's deleted claim counts as well; once the person has saved the data and let the pod go, the fence goes on.
#[test]
fn a_fence_loses_no_neighbours_deleted_claim() {
    in_virtual_time(|| async {
        let mut s = set(3, &[postgres(), redis()]).await;
        assert_eq!(s.node_of("postgres"), s.node_of("redis"));
        delete(&s, "persistentvolumeclaims", "postgres-wal").await;
        let node = s.node_of("redis");
        s.hang(&node).expect("a hang");
        s.pass(secs(1200)).await;
        let (phase, message) = said(&s, &redis());
        assert!(
            claim(&s.world, "postgres-wal").is_some(),
            "{phase:?}: {message}"
        );
        assert_eq!(effects(&s), Vec::<String>::new());
        assert!(
            message.contains("postgres-0") && message.contains("postgres-wal"),
            "{phase:?}: {message}"
        );
        // Neither the pod nor its claim is there any more: the person's own decision.
        let path = format!("/api/v1/namespaces/{APPS}/pods/postgres-0");
        let now = json!({ "gracePeriodSeconds": 0 });
        s.world
            .request(PERSON, "DELETE", &path, "application/json", &now)
            .await
            .expect("accepted");
        s.running(&["redis"], secs(1800)).await.expect("healed");
    })
    .expect("virtual time");
}

/// A neighbour's pod owns a claim that it uses, as a pod beyond the count does under `whenScaled: Delete`, and one that it does
/// not use. Once the fence has deleted the pod, the garbage collector would delete both.
#[test]
fn a_fence_loses_no_claim_owned_by_a_neighbours_pod() {
    for claim_of_the_pod in ["postgres-wal", "backups"] {
        in_virtual_time(move || async move {
            let mut s = set(5, &[postgres(), redis()]).await;
            assert_eq!(s.node_of("postgres"), s.node_of("redis"));
            if claim_of_the_pod == "backups" {
                s.world.server().insert(&json!({
                    "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "backups", "namespace": APPS },
                    "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
                }));
            }
            let owner = s.world.server().read("", "pods", APPS, "postgres-0").expect("the pod");
            let owner = json!({ "apiVersion": "v1", "kind": "Pod", "name": "postgres-0", "uid": owner["metadata"]["uid"] });
            let path = format!("/api/v1/namespaces/{APPS}/persistentvolumeclaims/{claim_of_the_pod}");
            let owned = json!({ "metadata": { "ownerReferences": [owner] } });
            s.world.merge(PERSON, &path, &owned).await.expect("accepted");
            let node = s.node_of("redis");
            s.hang(&node).expect("a hang");
            s.pass(secs(1200)).await;
            let (phase, message) = said(&s, &redis());
            assert!(claim(&s.world, claim_of_the_pod).is_some(), "{phase:?}: {message}");
            assert_eq!(effects(&s), Vec::<String>::new());
            let says = format!("its claim {claim_of_the_pod} is owned by the pod");
            assert!(message.contains("postgres-0") && message.contains(&says), "{phase:?}: {message}");
            let kept = json!({ "metadata": { "ownerReferences": null } });
            s.world.merge(PERSON, &path, &kept).await.expect("accepted");
            s.running(&["redis"], secs(1800)).await.expect("healed");
            assert!(claim(&s.world, claim_of_the_pod).is_some());
        })
        .expect("virtual time");
    }
}

/// No controller would recreate a bare pod. Kubernetes evicts it from a node that stays unreachable (300 s); then it is lost
/// whatever reattach does, and the node is fenced.
#[test]
fn a_fence_waits_until_a_bare_pod_is_deleted() {
    in_virtual_time(|| async {
        let mut s = set(4, &[redis()]).await;
        let node = s.node_of("redis");
        let bare = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "bare", "namespace": APPS },
            "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "busybox" }] } });
        s.world.create(PERSON, &bare).await.expect("created");
        s.pass(secs(30)).await;
        s.hang(&node).expect("a hang");
        let going = |w: &World| {
            let pod = w.server().read("", "pods", APPS, "bare");
            pod.is_none_or(|p| p["metadata"]["deletionTimestamp"].is_string())
        };
        s.pass(secs(150)).await;
        if !going(&s.world) {
            assert_eq!(effects(&s), Vec::<String>::new());
            let (phase, message) = said(&s, &redis());
            assert!(message.contains("bare") && message.contains("no controller owns it"), "{phase:?}: {message}");
        }
        s.until("the bare pod is given up", secs(900), going).await.expect("by Kubernetes");
        s.running(&["redis"], secs(1800)).await.expect("healed");
    })
    .expect("virtual time");
}
