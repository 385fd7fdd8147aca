//! Runbooks and stamps as data: what is accepted, and the one sentence for what is not.

use reattach_core::diagnosis::Class;
use reattach_core::runbook::{BUILT_IN, Runbook, SCALE_TO_ZERO};
use reattach_core::stamp::{STAMP_ANNOTATION, Stamp};
use reattach_core::steps::StepKind;
use reattach_core::testkit::start;

#[test]
fn the_built_in_runbooks_parse_under_their_own_names() {
    for (name, _) in BUILT_IN {
        let runbook = Runbook::built_in(name).unwrap();
        assert_eq!(runbook.name, name);
        assert_eq!(runbook.hash().len(), 16);
    }
    let kinds: Vec<_> = Runbook::built_in(SCALE_TO_ZERO)
        .unwrap()
        .order(Class::B)
        .unwrap()
        .iter()
        .map(|s| s.step)
        .collect();
    use StepKind::{AwaitDetached, CloudDetach, Requeue, Restore, ScaleToZero, Verify};
    assert_eq!(
        kinds,
        [
            ScaleToZero,
            AwaitDetached,
            CloudDetach,
            Requeue,
            AwaitDetached,
            Restore,
            Verify
        ]
    );
}

#[test]
fn an_unknown_runbook_is_named_with_what_there_is() {
    let error = Runbook::built_in("lightest-last").unwrap_err().to_string();
    assert_eq!(
        error,
        "runbook \"lightest-last\" is not known; this build has: lightest-first, scale-to-zero"
    );
}

fn with_steps(steps: &[&str]) -> String {
    let mut yaml = "name: t\nsummary: s\norders:\n  B:\n".to_owned();
    for step in steps {
        yaml += &format!("  - {{ {step} }}\n");
    }
    yaml
}

const HOLD: &str = "step: Hold, deadlineSeconds: 60";
const RELEASE: &str = "step: Release, deadlineSeconds: 60";
const LIFT: &str = "step: Lift, deadlineSeconds: 60";
const SCALE: &str = "step: ScaleToZero, deadlineSeconds: 60";
const AWAIT: &str = "step: AwaitDetached, deadlineSeconds: 60";
const PATIENT: &str = "step: AwaitDetached, deadlineSeconds: 60, patienceSeconds: 30";
const DETACH: &str = "step: CloudDetach, deadlineSeconds: 60";
const SNAPSHOT: &str = "step: Snapshot, deadlineSeconds: 60";
const FORCE: &str = "step: CloudForce, deadlineSeconds: 60";
const RESTORE: &str = "step: Restore, deadlineSeconds: 60";
const VERIFY: &str = "step: Verify, deadlineSeconds: 60";

#[test]
fn the_shortest_safe_runbook() {
    let runbook = Runbook::parse("t", &with_steps(&[SCALE, AWAIT, RESTORE, VERIFY])).unwrap();
    assert_eq!(runbook.order(Class::B).unwrap()[0].deadline().as_secs(), 60);
    assert_eq!(runbook.order(Class::B).unwrap()[0].patience(), None);
}

#[test]
fn malformed_yaml_gives_one_sentence_with_line_and_column() {
    let good = with_steps(&[SCALE, AWAIT, RESTORE, VERIFY]);
    let table = [
        ("empty", String::new(), ""),
        ("a list", "- a\n- b\n".to_owned(), ""),
        ("no name", good.replace("name: t\n", ""), "name"),
        ("no orders", "name: t\nsummary: s\n".to_owned(), "orders"),
        (
            "unknown field",
            good.replace("summary: s", "summary: s\nretries: 999"),
            "retries",
        ),
        (
            "unknown field of a step",
            good.replace("step: Verify,", "step: Verify, force: true,"),
            "force",
        ),
        (
            "unknown step",
            good.replace("Verify", "DeleteNode"),
            "DeleteNode",
        ),
        (
            "no deadline",
            good.replace("step: Verify, deadlineSeconds: 60", "step: Verify"),
            "deadlineSeconds",
        ),
        (
            "a word for a number",
            good.replace(
                "step: Verify, deadlineSeconds: 60",
                "step: Verify, deadlineSeconds: soon",
            ),
            "u32",
        ),
        (
            "a negative number",
            good.replace(
                "step: Verify, deadlineSeconds: 60",
                "step: Verify, deadlineSeconds: -1",
            ),
            "u32",
        ),
        (
            "a key twice",
            good.replace("summary: s", "summary: s\nsummary: t"),
            "summary",
        ),
        ("an unclosed brace", good.replace(" }\n", "\n"), ""),
        ("a tab", "name: t\n\tsummary: s\n".to_owned(), ""),
    ];
    for (what, yaml, names) in table {
        let error = Runbook::parse("t.yaml", &yaml)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("runbook t.yaml: "), "{what}: {error}");
        assert!(
            error.contains("line ") && error.contains("column "),
            "{what}: no line and column: {error}"
        );
        assert!(
            error.contains(names),
            "{what}: {names} is not named: {error}"
        );
        assert!(
            !error.contains('\n') && error.len() < 420,
            "{what}: not one sentence: {error}"
        );
    }
}

#[test]
fn unsafe_orders_are_refused_with_the_rule() {
    let table: [(&str, Vec<&str>, &str); 25] = [
        ("no orders", vec![], "names no class"),
        (
            "no scale",
            vec![AWAIT, RESTORE, VERIFY],
            "no ScaleToZero and no Hold",
        ),
        ("no restore", vec![SCALE, AWAIT, VERIFY], "no Restore"),
        (
            "scale later",
            vec![AWAIT, SCALE, AWAIT, RESTORE, VERIFY],
            "must be the first step",
        ),
        (
            "two scales",
            vec![SCALE, SCALE, AWAIT, RESTORE, VERIFY],
            "ScaleToZero may stand only once",
        ),
        (
            "two restores",
            vec![SCALE, AWAIT, RESTORE, AWAIT, RESTORE, VERIFY],
            "Restore may stand only once",
        ),
        (
            "two detaches",
            vec![SCALE, PATIENT, DETACH, DETACH, AWAIT, RESTORE, VERIFY],
            "CloudDetach may stand only once",
        ),
        (
            "no wait",
            vec![SCALE, RESTORE, VERIFY],
            "must be AwaitDetached",
        ),
        (
            "an impatient wait",
            vec![SCALE, PATIENT, RESTORE, VERIFY],
            "must be AwaitDetached",
        ),
        (
            "detach after restore",
            vec![SCALE, AWAIT, RESTORE, DETACH, VERIFY],
            "CloudDetach must stand before Restore",
        ),
        (
            "no verify",
            vec![SCALE, AWAIT, RESTORE],
            "last step must be Verify",
        ),
        (
            "both",
            vec![SCALE, HOLD, RELEASE, AWAIT, LIFT, VERIFY],
            "both ScaleToZero and Hold",
        ),
        ("no lift", vec![HOLD, RELEASE, AWAIT, VERIFY], "no Lift"),
        (
            "hold later",
            vec![AWAIT, HOLD, RELEASE, AWAIT, LIFT, VERIFY],
            "Hold must be the first step",
        ),
        (
            "no release",
            vec![HOLD, AWAIT, LIFT, VERIFY],
            "Release must stand right after Hold",
        ),
        (
            "a lift at once",
            vec![HOLD, RELEASE, LIFT, VERIFY],
            "before Lift must be AwaitDetached",
        ),
        (
            "a release at zero",
            vec![SCALE, RELEASE, AWAIT, RESTORE, VERIFY],
            "Release belongs to Hold",
        ),
        (
            "a lift at zero",
            vec![SCALE, AWAIT, RESTORE, LIFT, VERIFY],
            "Lift belongs to Hold",
        ),
        (
            "a snapshot with no force",
            vec![SCALE, PATIENT, DETACH, SNAPSHOT, AWAIT, RESTORE, VERIFY],
            "Snapshot must stand right before CloudForce",
        ),
        (
            "a snapshot after force",
            vec![
                SCALE, PATIENT, DETACH, FORCE, SNAPSHOT, AWAIT, RESTORE, VERIFY,
            ],
            "Snapshot must stand right before CloudForce",
        ),
        (
            "two snapshots",
            vec![
                SCALE, PATIENT, SNAPSHOT, DETACH, SNAPSHOT, FORCE, AWAIT, RESTORE, VERIFY,
            ],
            "Snapshot may stand only once",
        ),
        (
            "no deadline",
            vec![SCALE, AWAIT, RESTORE, "step: Verify, deadlineSeconds: 0"],
            "must be 1 to 86400",
        ),
        (
            "a deadline of years",
            vec![
                SCALE,
                AWAIT,
                RESTORE,
                "step: Verify, deadlineSeconds: 86401",
            ],
            "must be 1 to 86400",
        ),
        (
            "patience elsewhere",
            vec![
                SCALE,
                AWAIT,
                "step: Restore, deadlineSeconds: 60, patienceSeconds: 3",
                VERIFY,
            ],
            "patienceSeconds is for Await and AwaitDetached only",
        ),
        (
            "patience beyond the deadline",
            vec![
                SCALE,
                "step: AwaitDetached, deadlineSeconds: 60, patienceSeconds: 61",
                AWAIT,
                RESTORE,
                VERIFY,
            ],
            "patienceSeconds of AwaitDetached is 61 and must be 1 to its deadlineSeconds, 60",
        ),
    ];
    for (what, steps, expected) in table {
        let yaml = if steps.is_empty() {
            "name: t\nsummary: s\norders: {}\n".to_owned()
        } else {
            with_steps(&steps)
        };
        let error = Runbook::parse("t", &yaml)
            .map(|_| ())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(expected),
            "{what}: expected {expected:?}: {error}"
        );
        assert!(
            error.starts_with("runbook t: ") && !error.contains('\n'),
            "{what}: {error}"
        );
    }
}

fn stamp() -> Stamp {
    Stamp {
        replicas: 3,
        workload: "w".into(),
        recovery: "r".into(),
        at: start(),
    }
}

#[test]
fn a_stamp_survives_the_round_trip() {
    assert_eq!(
        Stamp::from_annotation(&stamp().to_annotation()),
        Ok(stamp())
    );
}

#[test]
fn a_stamp_edited_by_hand_is_refused_in_one_sentence() {
    let good = stamp().to_annotation();
    let table = [
        ("empty", String::new()),
        ("a number", "3".to_owned()),
        ("not JSON", good.replace('{', "")),
        ("cut off", good[..good.len() - 1].to_owned()),
        ("no count", good.replace("\"replicas\":3,", "")),
        ("a count of zero", good.replace(":3,", ":0,")),
        ("a negative count", good.replace(":3,", ":-1,")),
        ("a count in words", good.replace(":3,", ":\"three\",")),
        ("a count beyond i32", good.replace(":3,", ":4294967296,")),
        ("a fraction", good.replace(":3,", ":1.5,")),
        ("another field", good.replace('{', "{\"note\":\"x\",")),
        ("no UID", good.replace("\"workload\":\"w\",", "")),
        ("a time in words", good.replace("2021", "then")),
    ];
    for (what, value) in table {
        let error = Stamp::from_annotation(&value).map(|_| ()).unwrap_err();
        assert!(
            error.starts_with(&format!("annotation {STAMP_ANNOTATION}")),
            "{what}: {error}"
        );
        assert!(!error.contains('\n'), "{what}: {error}");
    }
}
