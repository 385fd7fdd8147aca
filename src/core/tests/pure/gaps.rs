//! Every item of evidence, one at a time, unknown, stale or absent: never a confirmed class B with a plan, and the item
//! is named.

use jiff::SignedDuration;
use reattach_core::diagnosis::{Trouble, Verdict};
use reattach_core::evidence::Evidence;
use reattach_core::fact::{Fact, Known};
use reattach_core::testkit::{Case, NODE};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Gap {
    Unknown,
    Stale,
    Future,
    Absent,
}

fn spoil<T>(fact: &mut Fact<T>, gap: Gap) {
    match gap {
        Gap::Unknown => {
            fact.value = Known::Unknown {
                why: "the source timed out".into(),
            }
        }
        Gap::Absent => fact.value = Known::Absent,
        Gap::Stale => fact.at -= SignedDuration::from_secs(31),
        Gap::Future => fact.at += SignedDuration::from_secs(31),
    }
}

/// An item: its name, the word by which a refusal or verdict must name it, and how to spoil it.
type Item = (&'static str, fn(&mut Evidence, Gap));

fn node(e: &mut Evidence, gap: Gap) {
    spoil(e.nodes.get_mut(&NODE.into()).unwrap(), gap);
}

const ITEMS: [Item; 6] = [
    ("the claim", |e, g| spoil(&mut e.claim, g)),
    ("PersistentVolume", |e, g| spoil(&mut e.volume, g)),
    ("VolumeAttachment", |e, g| spoil(&mut e.attachments, g)),
    ("pod", |e, g| spoil(&mut e.pods, g)),
    ("lke-1", node),
    ("cloud", |e, g| spoil(&mut e.cloud_volume, g)),
];

fn confirmed(case: &Case) -> bool {
    matches!(
        case.diagnosis().verdict,
        Verdict::Ours {
            trouble: Trouble::Phantom {
                confirmed: true,
                ..
            }
        }
    )
}

#[test]
fn a_missing_item_never_leaves_a_plan_and_is_named() {
    for base in [Case::deployment(), Case::statefulset()] {
        assert!(
            confirmed(&base) && base.plan().is_ok(),
            "the unspoiled case must be plannable"
        );
        for (name, spoil) in ITEMS {
            for gap in [Gap::Unknown, Gap::Stale, Gap::Future, Gap::Absent] {
                let mut case = base.clone();
                spoil(&mut case.evidence, gap);
                assert!(
                    !confirmed(&case),
                    "{name} {gap:?}: still a confirmed phantom"
                );
                assert!(case.plan().is_err(), "{name} {gap:?}: a plan was made");
                let said = case.diagnosis().verdict.to_string();
                // A list that is absent is an empty list: nobody wants the volume, or nothing is attached.
                let empty_list = gap == Gap::Absent && matches!(name, "pod" | "VolumeAttachment");
                assert!(
                    said.contains(name) || empty_list,
                    "{name} {gap:?} is not named: {said}"
                );
                if gap != Gap::Absent {
                    assert!(
                        matches!(case.diagnosis().verdict, Verdict::Unclassified { .. }),
                        "{name} {gap:?}: {said}"
                    );
                }
            }
        }
    }
}

#[test]
fn a_missing_workload_is_refused_by_name() {
    for gap in [Gap::Unknown, Gap::Stale, Gap::Future, Gap::Absent] {
        let mut case = Case::deployment();
        spoil(&mut case.evidence.workload, gap);
        let refusals = case.plan().unwrap_err();
        let all = refusals
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ");
        assert!(
            all.contains("workload") || all.contains("no owner"),
            "{gap:?}: {all}"
        );
    }
}

#[test]
fn an_unconfirmed_phantom_is_shown_and_not_executed() {
    let no_answer: [fn(&mut Evidence); 5] = [
        |e| e.answers.clear(),
        |e| e.asked = None,
        |e| e.asked = Some(("another recovery".into(), 1)),
        |e| e.asked = Some((Case::recovery(), 2)),
        |e| e.answers.get_mut(&NODE.into()).unwrap().boot_id = "another boot".into(),
    ];
    for (n, spoil) in no_answer.iter().enumerate() {
        let mut case = Case::deployment();
        spoil(&mut case.evidence);
        assert!(!confirmed(&case), "case {n}");
        let refusals = case.plan().unwrap_err();
        assert!(
            refusals
                .iter()
                .any(|r| r.to_string().contains("has not yet answered")),
            "case {n}: {refusals:?}"
        );
        assert!(
            case.plan_as(None, true).is_ok(),
            "case {n}: a plan for show is possible"
        );
    }
}

#[test]
fn an_answer_about_another_volume_does_not_count() {
    let mut case = Case::deployment();
    case.evidence
        .answers
        .get_mut(&NODE.into())
        .unwrap()
        .identity
        .serial = "pvc-other".into();
    assert!(!confirmed(&case));
}

#[test]
fn no_report_and_no_answer_gives_no_class() {
    for gap in [Gap::Unknown, Gap::Absent] {
        let mut case = Case::deployment().unasked();
        spoil(case.evidence.guests.get_mut(&NODE.into()).unwrap(), gap);
        assert!(
            matches!(case.diagnosis().verdict, Verdict::Unclassified { .. }),
            "{gap:?}"
        );
        assert!(
            case.plan_as(None, true).is_err(),
            "{gap:?}: not even for show"
        );
    }
}

/// A fresh attach looks like a phantom until its job has ended: without the jobs nothing is scaled.
#[test]
fn no_job_history_gives_no_plan() {
    for gap in [Gap::Unknown, Gap::Stale] {
        let mut case = Case::deployment();
        spoil(&mut case.evidence.jobs, gap);
        let refusals = case.plan().unwrap_err();
        assert!(
            refusals
                .iter()
                .any(|r| r.to_string().contains("job history")),
            "{gap:?}: {refusals:?}"
        );
        assert!(
            refusals.iter().all(reattach_core::plan::Refusal::may_pass),
            "{gap:?}: it only waits"
        );
    }
}
