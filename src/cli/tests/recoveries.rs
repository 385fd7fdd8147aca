//! Recoveries as a person asks for, approves, watches, aborts and resumes them, with a controller and without one.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::golden::golden;
use common::world::{Running, assert_clean, turn, turn_until_scaled_to_zero};
use common::{CLAIM, NS, PATIENCE, Ran, Stage, ended, finish, until};
use reattach_cloud_simulator::VolumeNo;
use reattach_sim::apiserver::{ApiStatus, Verb};
use serde_json::{Value, json};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

fn phase(stage: &Stage) -> String {
    stage
        .recovery()
        .map(|r| r["status"]["phase"].as_str().unwrap_or_default().to_owned())
        .unwrap_or_default()
}

fn replicas(stage: &Stage) -> i64 {
    stage
        .server
        .read("apps", "statefulsets", NS, "redis")
        .unwrap()["spec"]["replicas"]
        .as_i64()
        .unwrap()
}

fn lease(stage: &Stage) -> Value {
    (*stage
        .server
        .read(
            "coordination.k8s.io",
            "leases",
            common::LEASE.0,
            common::LEASE.1,
        )
        .unwrap())
    .clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_only_verbs_write_nothing() {
    let stage = Stage::new("look").await;
    ended(
        &stage.run(&["diagnose", CLAIM]).await,
        3,
        &[
            "class B (phantom attachment)",
            "the agent on n0 last reported: no device",
        ],
    );
    ended(
        &stage.run(&["diagnose"]).await,
        3,
        &[
            "NAMESPACE CLAIM CLASS VERDICT WHY",
            "cache data-redis-0 B (phantom attachment) trouble",
        ],
    );
    ended(
        &stage.run(&["diagnose", "-A", "--facts"]).await,
        3,
        &["looked at because of: FailedMount", "Node n0 is Ready"],
    );
    ended(
        &stage.run(&["diagnose", "-n", "default"]).await,
        0,
        &["No event, unready pod or agent's report"],
    );
    let (one, all) = (
        stage.run(&["diagnose", CLAIM]).await,
        stage.run(&["diagnose", "-A"]).await,
    );
    golden(
        "diagnose.txt",
        &format!(
            "$ kubectl reattach diagnose {CLAIM}\n{}\n$ kubectl reattach diagnose -A\n{}",
            one.out, all.out
        ),
    );
    let ran = stage.run(&["diagnose", CLAIM, "-o", "json"]).await;
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&value["items"][0]["class"], ran.code), (&json!("B"), 3));
    let ran = stage
        .run(&["diagnose", "pvc/data-redis-0", "-o", "yaml"])
        .await;
    ended(&ran, 3, &["class: B", "name: data-redis-0"]);
    for args in [&["status"][..], &["status", "-A", "-o", "json"]] {
        assert_eq!(stage.run(args).await.code, 0);
    }
    assert_eq!(stage.writes(), Vec::<String>::new());

    let ran = stage.run(&["plan", CLAIM]).await;
    ended(
        &ran,
        0,
        &[
            "7 steps",
            "kubectl -n cache scale statefulset/redis --replicas=0",
            "could go wrong",
            "About 20 s",
            "Nothing was written",
            "dryRun=All",
        ],
    );
    assert!(
        ran.out.lines().all(|l| l.chars().count() <= 100),
        "{}",
        ran.out
    );
    let ran = stage
        .run(&["plan", CLAIM, "--runbook", "lightest-first"])
        .await;
    ended(
        &ran,
        0,
        &[
            "11 steps",
            "by a scheduling gate",
            "kubectl -n cache delete pod redis-0",
        ],
    );
    let ran = stage.run(&["plan", CLAIM, "-o", "json"]).await;
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["plan"]["hash"].as_str().map(str::len), Some(16));
    let own = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../runbooks/scale-to-zero.yaml"
    );
    ended(
        &stage.run(&["plan", CLAIM, "--runbook-file", own]).await,
        0,
        &["by runbook scale-to-zero"],
    );
    assert_eq!(
        stage.writes(),
        ["Create pods (dry run)"],
        "and that persists nothing"
    );
    assert_eq!(stage.server.list("", "pods", Some(NS)).len(), 1);
    assert_eq!(stage.cloud_writes(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_waiting_and_foreign_cases_are_told_apart() {
    let stage = Arc::new(Stage::new("refuse").await);
    let world = turn(&stage);
    let controller = Running::start(&stage).await;
    let set = stage
        .server
        .read("apps", "statefulsets", NS, "redis")
        .unwrap();
    let mut deleting = (*set).clone();
    deleting["spec"]["persistentVolumeClaimRetentionPolicy"] =
        json!({"whenScaled": "Delete", "whenDeleted": "Retain"});
    stage.server.insert(&deleting);
    let sentence = "deletes its claims when scaled down";
    ended(
        &stage.run(&["plan", CLAIM]).await,
        4,
        &[
            "No plan for claim cache/data-redis-0: one reason against it",
            sentence,
        ],
    );
    let ran = stage.run(&["plan", CLAIM, "-o", "json"]).await;
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(
        (&value["refusals"][0]["refusal"], &value["plan"], ran.code),
        (&json!("scaleDeletesClaims"), &Value::Null, 4)
    );
    ended(
        &stage.run(&["recover", CLAIM, "--yes"]).await,
        4,
        &[sentence, "was withdrawn: refused, nothing was touched"],
    );
    assert_eq!((phase(&stage).as_str(), replicas(&stage)), ("Aborted", 1));
    stage.server.insert(&set);

    stage
        .cloud
        .lock_volume(VolumeNo(7001), "migration", true)
        .unwrap();
    ended(
        &stage.run(&["diagnose", CLAIM]).await,
        6,
        &["support ticket"],
    );
    ended(
        &stage.run(&["plan", CLAIM]).await,
        6,
        &["there is nothing to plan"],
    );
    ended(
        // Long enough to be seen Waiting; the time-out itself is passed in any case.
        &stage
            .run(&["recover", CLAIM, "--yes", "--timeout", "10s"])
            .await,
        6,
        &["Waiting:", "the time of --timeout is over", "withdrawn"],
    );
    stage.cloud.unlock_volume(VolumeNo(7001)).unwrap();

    stage.insert_report(&["pvc1"]);
    ended(
        &stage.run(&["diagnose", CLAIM]).await,
        5,
        &["Not ours: the volume is attached and the machine has the device"],
    );
    ended(
        &stage.run(&["plan", CLAIM]).await,
        5,
        &["there is nothing to plan"],
    );
    ended(
        &stage.run(&["recover", CLAIM, "--yes", "-o", "json"]).await,
        5,
        &["was withdrawn", "\"phase\": \"NotOurs\""],
    );
    assert_eq!(replicas(&stage), 1);
    assert_eq!(stage.cloud_writes(), Vec::<String>::new());
    assert_clean(&stage);
    controller.stop().await;
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_controller_heals_what_the_cli_asks_for() {
    let stage = Arc::new(Stage::new("through").await);
    let world = turn(&stage);
    let controller = Running::start(&stage).await;
    // Who may not read the Lease learns from the answer whether a controller is there.
    stage.forbid(Verb::Get, "leases", "leases.coordination.k8s.io \"reattach-controller\" is forbidden: User \"jane\" cannot get resource \"leases\" in API group \"coordination.k8s.io\" in the namespace \"reattach-system\"");
    let ran = stage.run(&["recover", CLAIM, "--dry-run"]).await;
    ended(&ran, 0, &["you may not read Lease", "7 steps"]);
    stage.server.clear_faults();
    let _ = stage.server.take_audit();
    let ran = stage.run(&["recover", CLAIM, "--dry-run"]).await;
    ended(
        &ran,
        0,
        &[
            "7 steps",
            "dry run: the plan was shown, nothing was touched",
        ],
    );
    assert_eq!(
        stage.writes(),
        ["Create volumerecoveries", "Patch volumerecoveries"]
    );

    // Recoveries are listed by age, and Kubernetes counts whole seconds.
    let second = || stage.server.clock().now().as_second();
    let last = second();
    until("the next second", || second() > last).await;
    // Nobody can be asked here: the plan is shown, and how to approve it.
    let ran = stage.run(&["recover", CLAIM, "--reason", "INC-42"]).await;
    ended(
        &ran,
        6,
        &[
            "7 steps",
            "kubectl reattach approve -n cache data-redis-0-",
            "--plan ",
        ],
    );
    let hash = ran
        .err
        .split_whitespace()
        .skip_while(|w| *w != "--plan")
        .nth(1)
        .unwrap()
        .to_owned();
    ended(
        &stage.run(&["status", CLAIM]).await,
        6,
        &["awaits approval", "INC-42", &hash],
    );
    let other = "0123456789abcdef";
    ended(
        &stage.run(&["approve", CLAIM, "--plan", other]).await,
        1,
        &[&format!("is now {hash}, not {other}")],
    );
    assert_eq!(replicas(&stage), 1);
    let ran = stage
        .run(&["approve", CLAIM, "--plan", &hash, "--wait"])
        .await;
    ended(
        &ran,
        0,
        &[
            "approved by jane",
            "accepted, allowed by the approval of jane",
            "recovered in",
        ],
    );
    assert_clean(&stage);
    ended(
        &stage.run(&["approve", CLAIM, "--plan", &hash]).await,
        1,
        &["needs no approval any more: Recovered"],
    );
    ended(
        &stage.run(&["abort", CLAIM]).await,
        1,
        &["is over already: Recovered"],
    );
    ended(
        &stage.run(&["diagnose", CLAIM]).await,
        0,
        &["Nothing to do"],
    );

    let ran = stage.run(&["status"]).await;
    ended(
        &ran,
        0,
        &[
            "CLAIM CLASS MODE PHASE AGE MESSAGE",
            "data-redis-0 B (phantom attachment) Approve Recovered",
        ],
    );
    assert!(
        ran.out.lines().all(|l| l.chars().count() <= 100),
        "{}",
        ran.out
    );
    let ages = |text: &str| -> String {
        // Ages are of this run; a slow one has minutes.
        let is_age = |w: &str| {
            let number = w.strip_suffix(['s', 'm']).unwrap_or_default();
            !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
        };
        let word = |w: &str| {
            if is_age(w) {
                "7s".to_owned()
            } else {
                w.to_owned()
            }
        };
        text.split('\n')
            .map(|l| {
                l.split(' ')
                    .filter(|w| !w.is_empty())
                    .map(word)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .collect::<Vec<_>>()
            .join("\n")
    };
    golden(
        "status.txt",
        &format!("$ kubectl reattach status\n{}", ages(&ran.out)),
    );
    ended(
        &stage.run(&["status", CLAIM, "--watch"]).await,
        0,
        &["recovered in"],
    );
    let ran = stage.run(&["status", "-A", "-o", "json"]).await;
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["items"].as_array().map(Vec::len), Some(3));
    let html = stage.dir.join("report.html");
    let ran = stage
        .run(&["report", CLAIM, "--html", html.to_str().unwrap()])
        .await;
    ended(
        &ran,
        0,
        &["# Volume recovery post-mortem", "**recovered**", "INC-42"],
    );
    assert!(std::fs::read_to_string(&html).unwrap().contains("<svg"));
    let ran = stage
        .run(&["report", "-A", "--since", "1h", "-o", "json"])
        .await;
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["volumes"].as_array().map(Vec::len), Some(3));
    controller.stop().await;
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_requester_without_approval_rights_leaves_a_plan() {
    let stage = Arc::new(Stage::new("approver").await);
    let world = turn(&stage);
    stage.server.add_admission(Arc::new(|request| {
        let approves = request
            .object
            .is_some_and(|o| o["spec"]["approval"].is_object());
        match approves && request.user == "jane" {
            true => Err(ApiStatus::new(
                403,
                "denied request: approving needs the verb approve",
            )),
            false => Ok(Default::default()),
        }
    }));
    let ran = stage
        .run(&["recover", CLAIM, "--yes", "--break-glass"])
        .await;
    ended(
        &ran,
        1,
        &[
            "refused to approve the plan: denied request",
            "withdrawn: it could not be approved, nothing was touched",
        ],
    );
    assert_eq!((phase(&stage).as_str(), replicas(&stage)), ("Aborted", 1));
    let controller = Running::start(&stage).await;
    let ran = stage.run(&["recover", CLAIM, "--yes"]).await;
    ended(
        &ran,
        6,
        &[
            "refused to approve the plan: denied request",
            "To run it: kubectl reattach approve -n cache",
        ],
    );
    assert_eq!(replicas(&stage), 1);
    ended(
        &stage.run(&["abort", CLAIM, "--wait"]).await,
        0,
        &["aborted by jane"],
    );
    assert_clean(&stage);
    controller.stop().await;
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_in_the_middle_restores_everything() {
    let stage = Arc::new(Stage::new("abort").await);
    let controller = Running::start(&stage).await;
    let world = turn(&stage);
    let asked = stage
        .run(&["recover", CLAIM, "--no-wait", "-o", "json"])
        .await;
    let asked: Value = serde_json::from_str(&asked.out).unwrap();
    let name = asked["metadata"]["name"].as_str().unwrap();
    until("a plan", || phase(&stage) == "AwaitingApproval").await;
    // The world stands still: the run cannot get past its first step.
    world.abort();
    let hash = stage.recovery().unwrap()["status"]["planHash"]
        .as_str()
        .unwrap()
        .to_owned();
    ended(
        &stage.run(&["approve", name, "--plan", &hash]).await,
        0,
        &["Follow it: kubectl reattach status"],
    );
    until("scaled to zero", || replicas(&stage) == 0).await;
    ended(
        &stage.run(&["recover", CLAIM, "--yes"]).await,
        1,
        &["is under way", "--watch"],
    );
    let world = turn(&stage);
    let ran = stage
        .run(&["abort", name, "--reason", "by hand", "--wait"])
        .await;
    ended(&ran, 0, &["aborted by jane"]);
    assert_eq!(phase(&stage), "Aborted");
    until("a pod again", || {
        stage.server.read("", "pods", NS, common::POD).is_some()
    })
    .await;
    assert_clean(&stage);
    ended(
        &stage.run(&["status", CLAIM]).await,
        7,
        &["aborted", "by jane: by hand"],
    );
    controller.stop().await;
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn break_glass_heals_without_a_controller() {
    let stage = Arc::new(Stage::new("glass").await);
    let world = turn(&stage);
    let ran = stage
        .run(&["recover", CLAIM, "--break-glass", "--dry-run"])
        .await;
    ended(&ran, 0, &["7 steps", "dry run: the plan was shown"]);
    let ours = [
        "volumerecoveries",
        "leases",
        "pods (dry run)",
        "events",
        "nodevolumereports",
    ];
    for write in stage.writes() {
        assert!(ours.iter().any(|o| write.ends_with(o)), "{write}");
    }
    let ran = stage
        .run(&["recover", CLAIM, "--break-glass", "--yes", "-o", "json"])
        .await;
    ended(
        &ran,
        0,
        &[
            "Lease reattach-system/reattach-controller taken, term 2",
            "recovered in",
        ],
    );
    let value: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(value["status"]["phase"], "Recovered");
    let by = value["status"]["journal"][0]["by"].as_str().unwrap();
    assert!(by.starts_with("jane@"), "{by}");
    assert_eq!(
        lease(&stage)["spec"]["holderIdentity"],
        "",
        "the Lease is given back"
    );
    assert_clean(&stage);
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn break_glass_refuses_to_run_beside_a_live_controller() {
    let stage = Arc::new(Stage::new("live").await);
    let controller = Running::start(&stage).await;
    let ran = stage
        .run(&["recover", CLAIM, "--break-glass", "--yes"])
        .await;
    ended(
        &ran,
        1,
        &[
            "controller \"controller-0/uid/1\" is alive",
            "without --break-glass",
        ],
    );
    assert!(
        !stage
            .writes()
            .iter()
            .any(|w| w.contains("volumerecoveries"))
    );
    assert_eq!(
        lease(&stage)["spec"]["holderIdentity"],
        "controller-0/uid/1"
    );
    controller.stop().await;
}

async fn send(signal: &str, pid: &str) {
    let sent = tokio::process::Command::new("kill")
        .args([signal, pid])
        .status()
        .await
        .unwrap();
    assert!(sent.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn break_glass_survives_a_lost_terminal() {
    let stage = Arc::new(Stage::new("hangup").await);
    turn_until_scaled_to_zero(&stage);
    let mut child = stage
        .command(&["recover", CLAIM, "--break-glass", "--yes"])
        .spawn()
        .unwrap();
    let pid = child.id().unwrap().to_string();
    until("scaled to zero", || replicas(&stage) == 0).await;
    drop((child.stdout.take(), child.stderr.take()));
    send("-HUP", &pid).await;
    let world = turn(&stage);
    let status = tokio::time::timeout(PATIENCE, child.wait())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(phase(&stage), "Recovered");
    assert_eq!(lease(&stage)["spec"]["holderIdentity"], "");
    assert_clean(&stage);
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_break_glass_can_be_resumed() {
    let stage = Arc::new(Stage::new("interrupt").await);
    turn_until_scaled_to_zero(&stage);
    let mut command = stage.command(&["recover", CLAIM, "--break-glass", "--yes"]);
    command.stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    let pid = child.id().unwrap().to_string();
    until("scaled to zero", || replicas(&stage) == 0).await;
    send("-INT", &pid).await;
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    let ran = Ran {
        code: output.status.code().unwrap_or(-1),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    ended(
        &ran,
        130,
        &[
            "The recovery is not over",
            "StatefulSet cache/redis may be at 0 replicas",
            "kubectl reattach recover -n cache data-redis-0 --break-glass",
        ],
    );
    assert_eq!(
        lease(&stage)["spec"]["holderIdentity"],
        "",
        "the Lease is given back"
    );
    assert_eq!(replicas(&stage), 0);
    let world = turn(&stage);
    let ran = finish(stage.command(&["recover", CLAIM, "--break-glass", "--yes"])).await;
    ended(
        &ran,
        0,
        &["Resuming recovery data-redis-0-", "recovered in"],
    );
    assert_clean(&stage);
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_without_a_controller_is_carried_out_by_break_glass() {
    let stage = Arc::new(Stage::new("putback").await);
    turn_until_scaled_to_zero(&stage);
    let child = stage
        .command(&["recover", CLAIM, "--break-glass", "--yes"])
        .spawn()
        .unwrap();
    let pid = child.id().unwrap().to_string();
    until("scaled to zero", || replicas(&stage) == 0).await;
    send("-TERM", &pid).await;
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.status.code(), Some(130));
    let ran = stage.run(&["abort", CLAIM]).await;
    ended(
        &ran,
        0,
        &[
            "no controller holds Lease",
            "nothing is restored yet",
            "--break-glass",
        ],
    );
    let world = turn(&stage);
    let ran = stage
        .run(&["recover", CLAIM, "--break-glass", "--yes"])
        .await;
    ended(
        &ran,
        7,
        &[
            "Resuming recovery",
            "unwinding starts: aborted by jane",
            "aborted; everything was restored",
        ],
    );
    until("a pod again", || {
        stage.server.read("", "pods", NS, common::POD).is_some()
    })
    .await;
    assert_clean(&stage);
    world.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_controllers_lease_is_taken_once_it_expired() {
    let stage = Arc::new(Stage::new("dead").await);
    let world = turn(&stage);
    stage.insert_lease("controller-9/uid/1", 4);
    let began = std::time::SystemTime::UNIX_EPOCH
        + Duration::from_millis(
            u64::try_from(stage.server.clock().now().as_millisecond()).unwrap(),
        );
    let ran = stage
        .run(&["recover", CLAIM, "--break-glass", "--yes"])
        .await;
    ended(
        &ran,
        0,
        &[
            "was last held by controller-9/uid/1",
            "Lease reattach-system/reattach-controller taken, term 5",
            "recovered in",
        ],
    );
    let first = stage.recovery().unwrap()["status"]["journal"][0]["at"]
        .as_str()
        .unwrap()
        .parse::<jiff::Timestamp>()
        .unwrap();
    let waited = std::time::SystemTime::from(first)
        .duration_since(began)
        .unwrap();
    assert!(
        waited >= Duration::from_secs(15),
        "one whole lease, on our own clock: {waited:?}"
    );
    assert_clean(&stage);
    world.abort();
}

/// Written by another version, or by a person: one sentence about it, and everything about the others.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_that_cannot_be_read_hides_no_other() {
    let stage = Stage::new("unreadable").await;
    let line = json!({ "seq": 0, "at": "2026-01-02T03:04:05Z", "term": 1, "by": "r", "mark": { "mark": "quarantined" } });
    for (name, phase, journal) in [
        ("future", "Running", json!([line])),
        ("plain", "NotOurs", json!([])),
    ] {
        stage.server.insert(&json!({
            "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
            "metadata": { "name": name, "namespace": NS },
            "spec": { "claimName": format!("{name}-data"), "mode": "Auto", "runbook": "scale-to-zero", "requester": "jane" },
            "status": { "phase": phase, "message": format!("words of {name}"), "journal": journal },
        }));
    }
    let says = "status.journal[0] cannot be read (unknown variant `quarantined`";
    ended(
        &stage.run(&["status"]).await,
        0,
        &[
            "future-data",
            "plain-data",
            "words of plain",
            "note: recovery cache/future",
            says,
        ],
    );
    ended(
        &stage.run(&["status", "future"]).await,
        7,
        &["future-data: Running", says, "of the version that wrote it"],
    );
    ended(
        &stage.run(&["status", "plain"]).await,
        5,
        &["words of plain"],
    );
    let raw = stage.run(&["status", "future", "-o", "json"]).await;
    let shown: Value = serde_json::from_str(&raw.out).unwrap();
    assert_eq!(shown["status"]["journal"], json!([line]), "as it was found");
    ended(
        &stage.run(&["report"]).await,
        1,
        &[
            "recovery cache/future is left out",
            says,
            "cache/plain-data",
        ],
    );
    let alone = stage.run(&["report", "future"]).await;
    ended(&alone, 1, &[says]);
    assert_eq!(alone.out, "", "no report that would say less than was done");
}
