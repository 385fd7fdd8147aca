//! What tenants, agents and clouds write reaches the terminal as plain text: no control character, no forged line, no
//! credential.
#![allow(clippy::unwrap_used, reason = "a test fails loudly")]

mod common;

use common::{CLAIM, NODE, NS, POD, Ran, Stage, TOKEN, finish};
use reattach_cloud_simulator::{Fault, FaultRule, Operation, When};
use reattach_core::plain::is_hidden;
use serde_json::{Value, json};

/// Words of a tenant: a terminal escape, a forged line, reordered and hidden characters, and a C1 control.
const EVIL: &str = "seen\u{1b}[2J\u{1b}]0;owned\u{7}\nFORGED: everything was recovered\r\nFORGED again\u{202e}txt\u{200b}\u{9b}31m\u{2066}end\u{7f}";

/// Checks one output: every character is shown, and no line begins with words of the tenant.
#[track_caller]
fn plain(ran: &Ran, explained: bool) {
    for text in [&ran.out, &ran.err] {
        for line in text.lines() {
            assert!(!line.contains(is_hidden), "{line:?} in {text:?}");
            // What is wrapped is indented; an explained text is the reader's own, and wrapped from the first column.
            assert!(
                !line.starts_with("FORGED") || explained,
                "a line is forged: {text}"
            );
        }
        assert!(!text.contains('\r'), "{text:?}");
    }
}

#[track_caller]
fn assert_plain(ran: &Ran) {
    plain(ran, false);
}

fn evil_event(stage: &Stage) {
    let pod = stage.server.read("", "pods", NS, POD).unwrap();
    let at = stage.server.clock().now().to_string();
    stage.server.insert(&json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "redis-0.1", "namespace": NS},
        "type": "Warning", "reason": "FailedMount", "count": 7, "firstTimestamp": at, "lastTimestamp": at,
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": NS, "name": POD, "uid": pod["metadata"]["uid"]},
        "source": {"component": EVIL, "host": NODE},
        "message": format!("{EVIL} {}", "long ".repeat(5_000)),
    }));
}

fn evil_recovery(stage: &Stage) {
    let line = |seq: u32, mark: Value| json!({"seq": seq, "at": "2026-03-02T03:00:00Z", "term": 1, "by": EVIL, "mark": mark});
    stage.server.insert(&json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": {"name": "evil", "namespace": NS, "annotations": {"note": EVIL}, "labels": {"a": "b"}},
        "spec": {"claimName": CLAIM, "mode": "Approve", "runbook": "scale-to-zero", "requester": EVIL, "reason": EVIL,
            "confirmWorkload": EVIL,
            "abort": {"by": EVIL, "reason": EVIL},
            "approval": {"planHash": "0123456789abcdef", "approver": EVIL},
            "powerOff": {"allowedBy": EVIL},
            "declaration": {"holder": EVIL, "declaredBy": EVIL, "reason": EVIL, "at": "2026-03-02T03:00:00Z"}},
        "status": {"phase": "Aborted", "class": "B", "message": EVIL, "refusals": [EVIL, EVIL], "epoch": 0,
            "leftOut": EVIL,
            "diagnosis": {"verdict": {"verdict": "unclassified", "missing": [{"what": EVIL, "why": EVIL}]}, "facts": [EVIL]},
            "escalation": {"since": "2026-03-02T03:00:00Z", "summary": EVIL, "ticket": EVIL.replace('\n', " ")},
            "journal": [line(0, json!({"mark": "accepted", "planHash": EVIL, "authority": EVIL}))]},
    }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovery_full_of_escapes_is_shown_plainly() {
    let stage = Stage::new("plain-status").await;
    evil_recovery(&stage);
    let file = stage.dir.join("report.html");
    let html = file.to_str().unwrap();
    for args in [
        &["status"][..],
        &["status", "-A"],
        &["status", "evil"],
        &["status", "evil", "-o", "json"],
        &["status", "evil", "-o", "yaml"],
        &["status", "evil", "--watch"],
        &["status", "evil", "--watch", "-o", "json"],
        &["approve", "evil", "--plan", "0123456789abcdef"],
        &["declare", "evil", "--holder", "100", "--reason", EVIL],
        &["abort", "evil"],
        &["report", "evil"],
        &["report", "evil", "--title", EVIL, "--html", html],
        &["report", "evil", "-o", "json"],
    ] {
        let ran = stage.run(args).await;
        println!("{args:?}: {}\n{}{}", ran.code, ran.out, ran.err);
        assert!(!ran.out.is_empty() || !ran.err.is_empty());
        if args.contains(&"json") {
            serde_json::from_str::<Value>(&ran.out).unwrap_or_else(|e| panic!("{args:?}: {e}"));
        }
        assert_plain(&ran);
    }
    let page = std::fs::read_to_string(&file).unwrap();
    assert!(!page.contains(|c| c != '\n' && is_hidden(c)), "{page:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_full_of_escapes_is_shown_plainly() {
    let stage = Stage::new("plain-event").await;
    evil_event(&stage);
    for args in [
        &["diagnose"][..],
        &["diagnose", "--facts"],
        &["diagnose", CLAIM],
        &["diagnose", "-o", "json"],
        &["diagnose", "-o", "yaml"],
        &["plan", CLAIM],
        &["plan", CLAIM, "-o", "json"],
    ] {
        let ran = stage.run(args).await;
        println!("{args:?}: {}\n{}{}", ran.code, ran.out, ran.err);
        assert_plain(&ran);
        assert!(ran.out.len() < 30_000, "{args:?}: {} bytes", ran.out.len());
    }
    let ran = stage.run(&["diagnose", "--facts"]).await;
    assert!(
        ran.out.contains("looked at because of: FailedMount"),
        "{}",
        ran.out
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_explained_text_is_shown_plainly() {
    let stage = Stage::empty("plain-explain").await;
    let message = format!(
        "MountVolume.MountDevice failed for volume \"pvc-1{EVIL}\" : rpc error: code = Internal desc = {EVIL} {}",
        "x".repeat(20_000)
    );
    let file = stage.dir.join("events.jsonl");
    std::fs::write(
        &file,
        format!("{}\n", json!({"message": message, "driver": EVIL})),
    )
    .unwrap();
    let file = file.to_str().unwrap();
    for args in [
        &["explain", "-m", &message][..],
        &["explain", "-m", &message, "-o", "json"],
        &["explain", file],
        &["explain", "-o", "jsonl", file],
    ] {
        let ran = stage.run(args).await;
        assert_eq!(ran.code, 0, "{ran:?}");
        plain(&ran, true);
        assert!(ran.out.len() < 40_000, "{args:?}: {} bytes", ran.out.len());
    }
    let ran = stage.run(&["explain", "-m", &message]).await;
    assert!(ran.out.contains("means"), "{}", ran.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cloud_that_echoes_the_token_is_masked() {
    let stage = Stage::new("plain-echo").await;
    let echo = format!(
        "no access for {TOKEN}; Authorization: Bearer {}\u{1b}[2J\nFORGED",
        TOKEN.to_uppercase()
    );
    for operation in [
        Operation::DescribeVolume,
        Operation::ListVolumes,
        Operation::ListInstances,
    ] {
        let error = Fault::Error {
            status: 400,
            reason: echo.clone(),
            when: When::BeforeEffect,
            body: Default::default(),
        };
        stage.cloud.add_fault(FaultRule::new([operation], error));
    }
    for args in [
        &["diagnose", CLAIM][..],
        &["diagnose", CLAIM, "-o", "json"],
        &["plan", CLAIM],
    ] {
        let mut command = stage.command(args);
        command.env("RUST_LOG", "debug");
        let ran = finish(command).await;
        assert_plain(&ran);
        let all = format!("{}{}", ran.out, ran.err).to_lowercase();
        assert!(!all.contains(TOKEN), "{all}");
        assert!(
            all.contains("[masked]"),
            "the words of the cloud are shown: {all}"
        );
    }
}
