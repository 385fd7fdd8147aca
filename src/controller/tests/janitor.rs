//! The janitor removes leftovers, and keeps everything that a recovery under way needs.

#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::{BOOT, CLAIM, DRIVER, HANDLE, NODE, NS, START, Stage, a_while};
use reattach_controller::Providers;
use reattach_core::journal::Event;
use reattach_core::plan::Plan;
use reattach_core::steps::StepKind;
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
async fn a_taint_stays_as_long_as_its_recovery() {
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
    assert!(
        s.server
            .read(
                "coordination.k8s.io",
                "leases",
                "reattach-system",
                "node-n1"
            )
            .is_none()
    );
}

#[tokio::test(start_paused = true)]
async fn a_taint_ends_when_its_lock_expires_or_its_node_is_ready() {
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
async fn foreign_taints_and_locks_stay() {
    let mut s = Stage::new();
    s.node("True", &out_of_service("nodeshutdown"));
    lock(&s, "node-maintenance", 1);
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(s.taints(), ["dedicated", OUT]);
    assert!(
        s.server
            .read(
                "coordination.k8s.io",
                "leases",
                "reattach-system",
                "node-n1"
            )
            .is_some()
    );
    let ours = s
        .server
        .audit()
        .into_iter()
        .filter(|e| e.user == "controller" && e.verb.mutates());
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
async fn a_late_clean_answer_ends_the_quarantine() {
    let mut s = Stage::new();
    let uid = over(&s);
    s.node("Unknown", &quarantine(&uid));
    s.report("boot-1", false, &json!([]));
    s.start(Providers::default()).await;
    a_while().await;
    let asked = s.challenges();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(
        (&asked[0]["epoch"], &asked[0]["handle"]),
        (&json!(4), &json!(HANDLE))
    );
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
async fn a_report_of_this_boot_ends_a_leftover_quarantine() {
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
async fn a_closing_taint_stays_as_long_as_its_recovery() {
    let mut s = Stage::new();
    let uid = s.recovery("r", "Stuck", |_| {});
    let closing = |recovery: &str| format!("hold.reattach.dev/{recovery}");
    let taint = |key: String| json!({"key": key, "effect": "NoSchedule"});
    let theirs = || taint("example.com/hold.reattach.dev".into());
    s.node(
        "True",
        &json!([theirs(), taint(closing(&uid)), taint(closing("gone"))]),
    );
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(
        s.taints(),
        ["example.com/hold.reattach.dev".to_owned(), closing(&uid)]
    );
    s.recovery("r", "Failed", |_| {});
    a_while().await;
    assert_eq!(s.taints(), ["example.com/hold.reattach.dev"]);
}

/// A recovery that the watch does not show may have been created a moment ago.
#[tokio::test(start_paused = true)]
async fn a_lagging_watch_removes_no_closing_taint() {
    let mut s = Stage::new();
    s.start(Providers::default()).await;
    a_while().await;
    s.the_watch_of_recoveries_lags();
    let uid = s.recovery("r", "Stuck", |_| {});
    let closing = |recovery: &str| format!("hold.reattach.dev/{recovery}");
    let taint = |key: String| json!({"key": key, "effect": "NoSchedule"});
    s.node(
        "True",
        &json!([taint(closing(&uid)), taint(closing("gone"))]),
    );
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
    let all = pod["spec"]["schedulingGates"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    all.iter()
        .map(|g| g["name"].as_str().unwrap().to_owned())
        .collect()
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

/// The controller's name among the managers of a workload: it wrote the stamp and the count last.
fn ours() -> Value {
    json!([{"manager": "reattach-controller/0.1.0", "operation": "Update", "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}},
            "f:metadata": {"f:annotations": {"f:reattach.dev/restore": {}}}}}])
}

/// A StatefulSet at this count, with a stamp for two replicas of this recovery.
fn stamped(stage: &Stage, replicas: i64, recovery: &str) {
    stamped_for(stage, replicas, 2, recovery, &ours());
}

fn stamped_for(stage: &Stage, replicas: i64, count: i64, recovery: &str, managers: &Value) {
    let mut set = manifests::stateful_set(NS, "redis", replicas);
    let old = stage.server.read("apps", "statefulsets", NS, "redis");
    let uid = old.map_or_else(|| json!("set-uid"), |o| o["metadata"]["uid"].clone());
    set["metadata"]["uid"] = uid.clone();
    let stamp =
        json!({"replicas": count, "workload": uid, "recovery": recovery, "at": START}).to_string();
    set["metadata"]["annotations"] = json!({"reattach.dev/restore": stamp});
    set["metadata"]["managedFields"] = managers.clone();
    stage.put(set, "apps", "statefulsets");
}

/// The set has had this pod: its claim is bound.
fn claim_of(stage: &Stage, ordinal: u32) {
    let (claim, volume) = (format!("data-redis-{ordinal}"), format!("pvc-of-{ordinal}"));
    stage.put(
        manifests::claim(NS, &claim, &volume),
        "",
        "persistentvolumeclaims",
    );
}

fn count_and_stamp(stage: &Stage) -> (i64, bool) {
    let set = stage.get("apps", "statefulsets", NS, "redis");
    let stamp = &set["metadata"]["annotations"]["reattach.dev/restore"];
    (set["spec"]["replicas"].as_i64().unwrap(), !stamp.is_null())
}

/// The notes of the Events about stamps.
fn notes(stage: &Stage) -> Vec<String> {
    let events = stage.server.list("", "events", Some(NS));
    let about =
        |e: &&std::sync::Arc<Value>| e["reason"].as_str().is_some_and(|r| r.starts_with("Stamp"));
    events
        .iter()
        .filter(about)
        .map(|e| format!("{} {}", e["reason"], e["message"]))
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_stamp_whose_recovery_is_gone_restores_the_workload() {
    let mut s = Stage::new();
    claim_of(&s, 1);
    let uid = s.recovery("r", "Stuck", |r| {
        r["status"]["journal"] = json!([{"of": "another version"}])
    });
    stamped(&s, 0, &uid);
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(count_and_stamp(&s), (0, true), "its recovery is there");
    stamped(&s, 0, "gone");
    a_while().await;
    assert_eq!(count_and_stamp(&s), (2, false));
    // Another writer has set a count: that count stands, and the stamp is void.
    stamped(&s, 1, "gone");
    a_while().await;
    assert_eq!(count_and_stamp(&s), (1, false));
    assert_eq!(notes(&s), Vec::<String>::new());
}

/// A scale to zero whose reply was lost may land after its run has ended: the workload does not stay at zero.
#[tokio::test(start_paused = true)]
async fn a_late_stamp_restores_the_workload() {
    let mut s = Stage::new();
    let uid = aborted(&s, "set-uid", true);
    s.start(Providers::default()).await;
    // The journal's count is 1, whatever the stamp says.
    stamped(&s, 0, &uid);
    a_while().await;
    assert_eq!(count_and_stamp(&s), (1, false));
    let notes = notes(&s);
    assert!(
        notes.len() == 1 && notes[0].contains("the recovery's journal says 1"),
        "{notes:?}"
    );
}

/// A recovery of this workload that was aborted, after it had begun to scale it to zero or before.
fn aborted(stage: &Stage, workload: &str, scaled: bool) -> String {
    let mut plan: Plan = Case::deployment().plan().unwrap();
    plan.pins.workload.uid = workload.into();
    plan.hash = plan.computed_hash();
    let scale = plan.find(StepKind::ScaleToZero).unwrap();
    let started = json!({"seq": 0, "at": START, "term": 1, "by": "controller-0",
        "mark": serde_json::to_value(Event::Started {
            step: scale, intent: "scale it".into(), proof: None, newest_job: None }).unwrap()});
    stage.recovery("r", "Aborted", |r| {
        r["status"]["plan"] = serde_json::to_value(&plan).unwrap();
        if scaled {
            r["status"]["journal"] = json!([started]);
        }
    })
}

#[tokio::test(start_paused = true)]
async fn a_stamp_of_a_recovery_that_did_not_scale_is_ignored() {
    for (workload, scaled) in [("another", true), ("another", false), ("set-uid", false)] {
        let mut s = Stage::new();
        let uid = aborted(&s, workload, scaled);
        s.start(Providers::default()).await;
        stamped(&s, 0, &uid);
        for _ in 0..5 {
            a_while().await;
        }
        assert_eq!(count_and_stamp(&s), (0, true), "{workload} {scaled}");
        let notes = notes(&s);
        assert!(
            notes.len() == 1 && notes[0].contains("did not scale this workload"),
            "{notes:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_foreign_stamp_is_ignored_and_reported_once() {
    let mut s = Stage::new();
    let mut theirs = ours();
    theirs[0]["manager"] = json!("kubectl-edit");
    stamped_for(&s, 0, i64::from(i32::MAX), "gone", &theirs);
    s.start(Providers::default()).await;
    for _ in 0..5 {
        a_while().await;
    }
    assert_eq!(count_and_stamp(&s), (0, true));
    let notes = notes(&s);
    assert!(
        notes.len() == 1 && notes[0].contains("StampIgnored"),
        "{notes:?}"
    );
}

/// A StatefulSet's past is in its claims; a claim that is missing or not bound ends the row.
#[tokio::test(start_paused = true)]
async fn a_stamp_is_cut_to_the_number_of_the_sets_claims() {
    let mut s = Stage::new();
    claim_of(&s, 1);
    claim_of(&s, 3);
    stamped_for(&s, 0, i64::from(i32::MAX), "gone", &ours());
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(count_and_stamp(&s), (2, false));
    let notes = notes(&s);
    assert!(
        notes.len() == 1 && notes[0].contains("the first 2 of its pods have bound claims"),
        "{notes:?}"
    );
}

/// An autoscaler that aims at the workload says how many it may have.
#[tokio::test(start_paused = true)]
async fn a_stamp_within_an_autoscalers_bound_counts() {
    let mut s = Stage::new();
    s.server.insert(
        &json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "redis", "namespace": NS}, "spec": {"maxReplicas": 5, "minReplicas": 1,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "redis"}}}),
    );
    stamped_for(&s, 0, 4, "gone", &ours());
    s.start(Providers::default()).await;
    a_while().await;
    assert_eq!(count_and_stamp(&s), (4, false));
    stamped_for(&s, 0, 6, "gone", &ours());
    a_while().await;
    assert_eq!(count_and_stamp(&s), (5, false));
    assert!(
        notes(&s)
            .iter()
            .any(|n| n.contains("HorizontalPodAutoscaler redis allows 5")),
        "{:?}",
        notes(&s)
    );
}

#[tokio::test(start_paused = true)]
async fn a_question_is_removed_with_its_recovery() {
    let mut s = Stage::new();
    let uid = s.recovery("r", "Planned", |_| {});
    let question = |of: &str| json!({"recovery": of, "epoch": 1, "identity": {"serial": "x"}, "driver": DRIVER, "handle": HANDLE});
    s.server.insert(&json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": {"name": NODE},
        "spec": {"challenges": [question("gone"), question(&uid)]},
    }));
    s.start(Providers::default()).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let left: Vec<Value> = s
        .challenges()
        .iter()
        .map(|c| c["recovery"].clone())
        .collect();
    assert!(!left.contains(&json!("gone")), "{left:?}");
}
