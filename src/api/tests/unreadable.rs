//! What this version cannot read does not make the object around it unreadable, and is written back as it was found.

use kube::api::ObjectList;
use reattach_api::{NodeVolumeReport, Opaque, Phase, RecoveryPolicySpec, VolumeRecovery};
use reattach_core::guest::Challenge;
use reattach_core::journal::Entry;
use reattach_core::policy::Mode;
use serde_json::{Value, json};

fn line(seq: u32, mark: &Value) -> Value {
    json!({ "seq": seq, "at": "2026-01-02T03:04:05Z", "term": 1, "by": "r-0", "mark": mark })
}

fn accepted() -> Value {
    line(
        0,
        &json!({ "mark": "accepted", "planHash": "0123456789abcdef", "authority": "mode Auto" }),
    )
}

/// Of a kind that no version has so far, with numbers, nulls and nesting as JSON allows them.
fn of_the_future() -> Value {
    let inner =
        json!({ "deep": [null, 1.5, -3, 18_446_744_073_709_551_615_u64, "ü", { "": false }] });
    line(
        1,
        &json!({ "mark": "quarantined", "node": "node-1", "inner": inner }),
    )
}

fn recovery(status: &Value) -> Value {
    json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecovery",
        "metadata": { "name": "r", "namespace": "shop" },
        "spec": { "claimName": "data", "mode": "Auto", "runbook": "scale-to-zero", "requester": "jane" },
        "status": status,
    })
}

fn read(value: &Value) -> VolumeRecovery {
    serde_json::from_value(value.clone())
        .expect("a VolumeRecovery, whatever is in its opaque fields")
}

#[test]
fn a_readable_value_is_itself() {
    let entry: Opaque<Entry> = serde_json::from_value(accepted()).expect("readable");
    assert_eq!(entry.get().expect("readable").seq, 0);
    assert_eq!(serde_json::to_value(&entry).expect("JSON"), accepted());
    let inner = entry.get().expect("readable").clone();
    assert_eq!(Opaque::from(inner), entry);
}

#[test]
fn an_unreadable_value_is_kept_as_it_was_found() {
    for raw in [
        of_the_future(),
        json!({}),
        json!({ "seq": "one" }),
        json!(null),
        json!([1, 2]),
        json!("text"),
        json!({ "mark": "x".repeat(5_000) }),
    ] {
        let text = raw.to_string();
        // As a reply's body is read, and as a value in memory is.
        let from_text: Opaque<Entry> = serde_json::from_str(&text).expect("tolerated");
        let from_value: Opaque<Entry> = serde_json::from_value(raw.clone()).expect("tolerated");
        assert_eq!(from_text, from_value);
        let unreadable = from_text.get().expect_err("unreadable");
        assert_eq!(unreadable.raw(), &raw);
        assert!(
            !unreadable.why().is_empty() && unreadable.why().chars().count() <= 301,
            "{unreadable}"
        );
        assert_eq!(serde_json::to_string(&from_text).expect("JSON"), text);
    }
}

#[test]
fn an_unreadable_field_is_named_and_nothing_is_lost() {
    let raw = recovery(
        &json!({ "phase": "Running", "message": "", "epoch": 0, "journal": [accepted(), of_the_future()] }),
    );
    let recovery = read(&raw);
    let unreadable = recovery.history().expect_err("a line of the future");
    assert_eq!(unreadable.field, "status.journal[1]");
    assert!(
        unreadable
            .to_string()
            .starts_with("status.journal[1] cannot be read (unknown variant `quarantined`")
    );
    assert_eq!(
        recovery.record(None).expect_err("no report of a part"),
        unreadable
    );
    let mut again = recovery.clone();
    let status = again.status.as_mut().expect("a status");
    (status.phase, status.message) = (Phase::Stuck, "a person is needed".to_owned());
    let written = serde_json::to_value(&again).expect("JSON");
    assert_eq!(written["status"]["journal"], raw["status"]["journal"]);

    for (status, field) in [
        (
            json!({ "plan": { "version": 9 }, "journal": [of_the_future()] }),
            "status.plan",
        ),
        (json!({ "plan": { "version": 9 } }), "status.plan"),
        (json!({ "journal": [{}] }), "status.journal[0]"),
    ] {
        assert_eq!(
            read(&self::recovery(&status))
                .history()
                .expect_err("unreadable")
                .field,
            field
        );
    }
    // The explanation is not what a run goes by.
    let explained = read(&self::recovery(
        &json!({ "diagnosis": { "verdict": "new" }, "journal": [accepted()] }),
    ));
    assert_eq!(explained.history().expect("readable").1.len(), 1);
    assert_eq!(
        explained
            .record(None)
            .expect_err("no report without it")
            .field,
        "status.diagnosis"
    );
    assert_eq!(
        read(&self::recovery(&json!({}))).history(),
        Ok((None, Vec::new()))
    );
}

#[test]
fn one_bad_object_does_not_spoil_a_list() {
    let items = [
        recovery(&json!({ "plan": { "version": 9 }, "journal": [of_the_future()] })),
        recovery(&json!({ "journal": [accepted()] })),
    ];
    let list = json!({ "apiVersion": "reattach.dev/v1alpha1", "kind": "VolumeRecoveryList", "metadata": {}, "items": items });
    let list: ObjectList<VolumeRecovery> = serde_json::from_value(list).expect("a list");
    let readable: Vec<bool> = list.items.iter().map(|r| r.history().is_ok()).collect();
    assert_eq!(readable, [false, true]);
}

fn report(status: &Value) -> NodeVolumeReport {
    serde_json::from_value(json!({
        "apiVersion": "reattach.dev/v1alpha1", "kind": "NodeVolumeReport", "metadata": { "name": "n" },
        "spec": { "challenges": [{ "recovery": "uid-1", "shape": "of the future" }] }, "status": status,
    }))
    .expect("a NodeVolumeReport, whatever is in its opaque fields")
}

#[test]
fn an_unreadable_agent_report_counts_as_silence() {
    let inventory = json!({
        "bootId": "b", "bootedAt": "2026-01-02T03:04:05Z", "level": "basic",
        "devices": [], "csiVolumes": [], "unreadable": [],
    });
    let good = report(&json!({ "inventory": inventory, "answers": [] }));
    assert_eq!(
        good.said()
            .expect("readable")
            .inventory
            .map(|i| i.boot_id.as_str()),
        Some("b")
    );
    assert!(
        report(&Value::Null)
            .said()
            .expect("nothing said")
            .inventory
            .is_none()
    );
    for (status, field) in [
        (
            json!({ "inventory": { "bootId": 5 }, "answers": [] }),
            "status.inventory",
        ),
        (
            json!({ "inventory": inventory, "answers": [{ "seen": "clean" }] }),
            "status.answers[0]",
        ),
    ] {
        assert_eq!(report(&status).said().expect_err("unreadable").field, field);
    }
    let challenge: &Opaque<Challenge> = &good.spec.challenges[0];
    assert_eq!(
        challenge.get().expect_err("unreadable").raw()["recovery"],
        "uid-1"
    );
}

#[test]
fn unknown_words_read_as_the_most_cautious_value() {
    let mut raw = recovery(&json!({ "phase": "Quarantined" }));
    raw["spec"]["mode"] = json!("Supervised");
    let read = read(&raw);
    assert_eq!(
        (read.spec.mode, read.status.expect("a status").phase),
        (Mode::Observe, Phase::Stuck)
    );
    let policy: RecoveryPolicySpec =
        serde_json::from_value(json!({ "mode": "Supervised" })).expect("a policy");
    assert_eq!(policy.mode, Mode::Observe);
    let unset: RecoveryPolicySpec = serde_json::from_value(json!({})).expect("a policy");
    assert_eq!(unset.mode, Mode::DryRun);
    for mode in [Mode::Observe, Mode::DryRun, Mode::Approve, Mode::Auto] {
        let policy: RecoveryPolicySpec =
            serde_json::from_value(json!({ "mode": mode })).expect("a policy");
        assert_eq!(policy.mode, mode);
    }
}
