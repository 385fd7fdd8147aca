//! What is left behind goes, and what a recovery that is under way stands for stays.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::{BOOT, CLAIM, DRIVER, HANDLE, NODE, NS, START, Stage, a_while};
use reattach_controller::Providers;
use reattach_core::testkit::Case;
use reattach_sim::manifests;
use serde_json::{Value, json};

const OUT: &str = "node.kubernetes.io/out-of-service";
const QUARANTINE: &str = "reattach.dev/quarantine";

fn out_of_service(value: &str) -> Value {
    json!([{"key": "dedicated", "value": "db", "effect": "NoSchedule"},
        {"key": OUT, "value": value, "effect": "NoExecute"}])
}

fn quarantine(recovery: &str) -> Value {
    json!([{"key": QUARANTINE, "value": recovery, "effect": "NoSchedule"}])
}

fn lock(stage: &Stage, holder: &str, seconds: u32) {
    stage.server.insert(&json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "node-n1", "namespace": "reattach-system"},
        "spec": {"holderIdentity": holder, "leaseDurationSeconds": seconds, "renewTime": "2026-03-01T00:00:00.000000Z"}}));
}

#[tokio::test(start_paused = true)]
async fn a_taint_stays_while_its_recovery_is_under_way_and_goes_with_it() {
    let mut s = Stage::new();
    s.node("Unknown", &out_of_service("reattach"));
    s.recovery("r", "Stuck", |_| {});
    lock(&s, "reattach/cache/r", 3600);
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(s.taints(), ["dedicated", OUT]);
    s.recovery("r", "Failed", |_| {});
    a_while().await;
    assert_eq!(s.taints(), ["dedicated"]);
    assert!(s.server.read("coordination.k8s.io", "leases", "reattach-system", "node-n1").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_taint_goes_when_its_lock_expires_or_its_node_is_ready() {
    let mut s = Stage::new();
    s.recovery("r", "Stuck", |_| {});
    s.node("Unknown", &out_of_service("reattach"));
    lock(&s, "reattach/cache/r", 120);
    s.start(Providers::default()).await;
    assert_eq!(s.taints(), ["dedicated", OUT]);
    tokio::time::sleep(std::time::Duration::from_secs(130)).await;
    assert_eq!(s.taints(), ["dedicated"]);

    s.node("Unknown", &out_of_service("reattach"));
    lock(&s, "reattach/cache/r", 7200);
    a_while().await;
    assert_eq!(s.taints(), ["dedicated", OUT]);
    s.node("True", &out_of_service("reattach"));
    tokio::time::sleep(std::time::Duration::from_secs(6)).await;
    assert_eq!(s.taints(), ["dedicated"]);
}

#[tokio::test(start_paused = true)]
async fn the_taints_and_locks_of_others_stay() {
    let mut s = Stage::new();
    s.node("True", &out_of_service("nodeshutdown"));
    lock(&s, "node-maintenance", 1);
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(s.taints(), ["dedicated", OUT]);
    assert!(s.server.read("coordination.k8s.io", "leases", "reattach-system", "node-n1").is_some());
    let ours = s.server.audit().into_iter().filter(|e| e.user == "controller" && e.verb.mutates());
    let touched: Vec<_> = ours.map(|e| e.resource).filter(|r| r != "leases").collect();
    assert!(touched.is_empty(), "{touched:?}");
}

/// A recovery that is over, with the plan that names what a late agent has to look for.
fn over(stage: &Stage) -> String {
    let pv = stage.get("", "persistentvolumes", "", "pvc-1")["metadata"]["uid"].clone();
    let mut plan = Case::deployment().plan().unwrap();
    plan.pins.pv = pv.as_str().expect("a UID").into();
    plan.hash = plan.computed_hash();
    let plan = serde_json::to_value(plan).unwrap();
    stage.recovery("r", "Recovered", |r| {
        r["status"]["plan"] = plan;
        r["status"]["epoch"] = json!(3);
    })
}

#[tokio::test(start_paused = true)]
async fn a_late_agent_is_asked_and_its_clean_answer_ends_the_quarantine() {
    let mut s = Stage::new();
    let uid = over(&s);
    s.node("Unknown", &quarantine(&uid));
    s.report("boot-1", false, &json!([]));
    s.start(Providers::default()).await;
    a_while().await;
    let asked = s.challenges();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!((&asked[0]["epoch"], &asked[0]["handle"]), (&json!(4), &json!(HANDLE)));
    let answer = |boot: &str, epoch: u64, seen: Value| {
        json!([{"recovery": uid, "epoch": epoch, "identity": asked[0]["identity"], "bootId": boot,
            "scannedAt": START, "level": "full", "seen": seen}])
    };
    // Not Ready; another boot; another question; in use: none of these ends it.
    for (ready, boot, epoch, seen) in [
        ("Unknown", BOOT, 4, json!("clean")),
        ("True", "boot-1", 4, json!("clean")),
        ("True", BOOT, 3, json!("clean")),
        ("True", BOOT, 4, json!("idle")),
    ] {
        s.node(ready, &quarantine(&uid));
        s.report(BOOT, false, &answer(boot, epoch, seen.clone()));
        a_while().await;
        assert_eq!(s.taints(), [QUARANTINE], "{ready} {boot} {epoch} {seen}");
    }
    // An agent answers each question once: what it saw may be over, so it is asked again.
    assert_eq!(s.challenges()[0]["epoch"], 5, "{:?}", s.challenges());
    s.report(BOOT, false, &answer(BOOT, 5, json!("noDevice")));
    a_while().await;
    assert!(s.taints().is_empty());
    assert!(s.challenges().is_empty(), "the question is withdrawn");
}

#[tokio::test(start_paused = true)]
async fn without_its_recovery_a_quarantine_ends_by_the_report_of_this_boot() {
    let mut s = Stage::new();
    s.node("True", &quarantine("gone"));
    s.report(BOOT, true, &json!([]));
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(s.taints(), [QUARANTINE], "a dead mount");
    s.report("boot-1", false, &json!([]));
    a_while().await;
    assert_eq!(s.taints(), [QUARANTINE], "another boot");
    s.report(BOOT, false, &json!([]));
    a_while().await;
    assert!(s.taints().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_closing_taint_stays_while_its_recovery_is_under_way_and_goes_with_it() {
    let mut s = Stage::new();
    let uid = s.recovery("r", "Stuck", |_| {});
    let closing = |recovery: &str| format!("hold.reattach.dev/{recovery}");
    let taint = |key: String| json!({"key": key, "effect": "NoSchedule"});
    let theirs = || taint("example.com/hold.reattach.dev".into());
    s.node("True", &json!([theirs(), taint(closing(&uid)), taint(closing("gone"))]));
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(s.taints(), ["example.com/hold.reattach.dev".to_owned(), closing(&uid)]);
    s.recovery("r", "Failed", |_| {});
    a_while().await;
    assert_eq!(s.taints(), ["example.com/hold.reattach.dev"]);
}

/// What the watch of the recoveries does not know may have come into being a moment ago.
#[tokio::test(start_paused = true)]
async fn a_closing_taint_stays_while_the_watch_of_the_recoveries_lags_behind() {
    let mut s = Stage::new();
    s.start(Providers::default()).await;
    a_while().await;
    s.the_watch_of_recoveries_lags();
    let uid = s.recovery("r", "Stuck", |_| {});
    let closing = |recovery: &str| format!("hold.reattach.dev/{recovery}");
    let taint = |key: String| json!({"key": key, "effect": "NoSchedule"});
    s.node("True", &json!([taint(closing(&uid)), taint(closing("gone"))]));
    a_while().await;
    assert_eq!(s.taints(), [closing(&uid)]);
}

fn gated(stage: &Stage) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "redis-0", "namespace": NS},
        "spec": {"containers": [{"name": "c", "image": "i"}],
            "schedulingGates": [{"name": "reattach.dev/hold"}, {"name": "example.com/theirs"}],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": CLAIM}}]},
        "status": {"phase": "Pending"}});
    stage.put(pod, "", "pods");
}

fn gates(stage: &Stage) -> Vec<String> {
    let pod = stage.get("", "pods", NS, "redis-0");
    let all = pod["spec"]["schedulingGates"].as_array().cloned().unwrap_or_default();
    all.iter().map(|g| g["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_gate_stays_while_a_recovery_holds_the_claim() {
    let mut s = Stage::new();
    let held = |r: &mut Value| r["metadata"]["labels"] = json!({"reattach.dev/hold": "true"});
    // Its journal is unreadable, so that nothing of it moves by itself.
    let journal = |r: &mut Value| r["status"]["journal"] = json!([{"of": "another version"}]);
    s.recovery("r", "Stuck", |r| {
        held(r);
        journal(r);
    });
    gated(&s);
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(gates(&s), ["reattach.dev/hold", "example.com/theirs"]);
    s.recovery("r", "Failed", held);
    a_while().await;
    assert_eq!(gates(&s), ["example.com/theirs"]);
    let labels = &s.get("reattach.dev", "volumerecoveries", NS, "r")["metadata"]["labels"];
    assert!(labels["reattach.dev/hold"].is_null(), "{labels}");
}

fn stamped(stage: &Stage, replicas: i64, recovery: &str) {
    let mut set = manifests::stateful_set(NS, "redis", replicas);
    let old = stage.server.read("apps", "statefulsets", NS, "redis");
    let uid = old.map_or_else(|| json!("set-uid"), |o| o["metadata"]["uid"].clone());
    set["metadata"]["uid"] = uid.clone();
    let stamp = json!({"replicas": 2, "workload": uid, "recovery": recovery, "at": START}).to_string();
    set["metadata"]["annotations"] = json!({"reattach.dev/restore": stamp});
    stage.put(set, "apps", "statefulsets");
}

fn count_and_stamp(stage: &Stage) -> (i64, bool) {
    let set = stage.get("apps", "statefulsets", NS, "redis");
    let stamp = &set["metadata"]["annotations"]["reattach.dev/restore"];
    (set["spec"]["replicas"].as_i64().unwrap(), !stamp.is_null())
}

#[tokio::test(start_paused = true)]
async fn a_stamp_whose_recovery_is_gone_restores_the_workload() {
    let mut s = Stage::new();
    let uid = s.recovery("r", "Stuck", |r| r["status"]["journal"] = json!([{"of": "another version"}]));
    stamped(&s, 0, &uid);
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(count_and_stamp(&s), (0, true), "its recovery is there");
    stamped(&s, 0, "gone");
    a_while().await;
    assert_eq!(count_and_stamp(&s), (2, false));
    // Someone else has set a count: theirs stands, and the stamp is of no use any more.
    stamped(&s, 1, "gone");
    a_while().await;
    assert_eq!(count_and_stamp(&s), (1, false));
}

/// A scale to zero whose reply was lost may land after its run has ended: the workload does not stay at zero.
#[tokio::test(start_paused = true)]
async fn a_stamp_that_landed_after_its_run_restores_the_workload() {
    let mut s = Stage::new();
    let uid = s.recovery("r", "Aborted", |_| {});
    s.start(Providers::default()).await;
    stamped(&s, 0, &uid);
    a_while().await;
    assert_eq!(count_and_stamp(&s), (2, false));
}

#[tokio::test(start_paused = true)]
async fn a_question_goes_with_its_recovery() {
    let mut s = Stage::new();
    let uid = s.recovery("r", "Planned", |_| {});
    let question = |of: &str| json!({"recovery": of, "epoch": 1, "identity": {"serial": "x"}, "driver": DRIVER, "handle": HANDLE});
    s.server.insert(&json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": {"name": NODE},
        "spec": {"challenges": [question("gone"), question(&uid)]},
    }));
    s.start(Providers::default()).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let left: Vec<Value> = s.challenges().iter().map(|c| c["recovery"].clone()).collect();
    assert!(!left.contains(&json!("gone")), "{left:?}");
}
