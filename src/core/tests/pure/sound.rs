//! A run goes by a plan of its own version with the content that was accepted, and by no other (S8).

use super::walk::{QUIET, Walk, dead_node};
use jiff::SignedDuration;
use reattach_core::ids::StepIx;
use reattach_core::journal::{Entry, Event, Outcome, Shut};
use reattach_core::plan::{PLAN_VERSION, Plan, Unsound, may_have_freed};
use reattach_core::proof::ProofKind;
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, start};

fn plan() -> Plan {
    Case::deployment().plan().unwrap()
}

#[test]
fn a_plan_of_another_version_is_not_sound() {
    for version in [PLAN_VERSION - 1, PLAN_VERSION + 1, 0] {
        let mut plan = Plan { version, ..plan() };
        plan.hash = plan.computed_hash();
        assert_eq!(plan.sound(), Err(Unsound::Version { found: version }));
    }
}

#[test]
fn a_plan_that_was_edited_is_not_sound() {
    let good = plan();
    assert_eq!(good.clone().sound().as_deref(), Ok(&good));
    let edits: [fn(&mut Plan); 5] = [
        |p| p.steps.iter_mut().for_each(|s| s.deadline_seconds = 86_400),
        |p| p.steps.retain(|s| s.kind != StepKind::AwaitDetached),
        |p| p.pins.holder = "999".into(),
        |p| p.pins.replicas = 7,
        |p| p.hash = "0123456789abcdef".into(),
    ];
    for (n, edit) in edits.iter().enumerate() {
        let mut plan = good.clone();
        edit(&mut plan);
        assert!(
            matches!(plan.sound(), Err(Unsound::Edited { .. })),
            "edit {n}"
        );
    }
}

fn lines(events: Vec<Event>) -> Vec<Entry> {
    let line = |(seq, event): (u32, Event)| Entry {
        seq,
        at: start(),
        term: 1,
        by: "test".into(),
        event,
    };
    (0..).zip(events).map(line).collect()
}

#[test]
fn a_detach_that_was_not_refused_may_have_freed() {
    let started = |proof: bool| Event::Started {
        step: StepIx(2),
        intent: "x".into(),
        proof: proof.then_some(ProofKind::Gone { last_seen: None }),
        newest_job: None,
    };
    let outcome = |outcome| Event::Outcome {
        step: StepIx(2),
        outcome,
    };
    let say = || "x".to_owned();
    let shut = || {
        outcome(Outcome::Withheld {
            shut: Shut::NotLeader,
        })
    };
    let no = || {
        outcome(Outcome::NotApplied {
            why: say(),
            retry: true,
        })
    };
    let cases = [
        (vec![], false),
        (vec![started(false)], false),
        (
            vec![started(false), outcome(Outcome::Applied { detail: say() })],
            false,
        ),
        (vec![started(true)], true),
        (
            vec![started(true), outcome(Outcome::Applied { detail: say() })],
            true,
        ),
        (
            vec![started(true), outcome(Outcome::Unknown { why: say() })],
            true,
        ),
        (
            vec![
                started(true),
                outcome(Outcome::Unknown { why: say() }),
                outcome(Outcome::ObservedNotApplied { seen: say() }),
            ],
            true,
        ),
        (vec![started(true), no()], false),
        (vec![started(true), no(), started(true)], true),
        (vec![started(true), no(), started(true), no()], false),
        (vec![started(true), shut()], false),
        (vec![started(true), shut(), started(true)], true),
        (
            vec![
                started(true),
                outcome(Outcome::Unknown { why: say() }),
                started(true),
                shut(),
            ],
            true,
        ),
    ];
    for (events, freed) in cases {
        assert_eq!(may_have_freed(&lines(events.clone())), freed, "{events:?}");
    }
}

/// Every effect that frees a volume is journaled with its proof, on which [`may_have_freed`] relies.
#[test]
fn every_freeing_effect_of_a_run_may_have_freed() {
    let mut walk = Walk::new(dead_node(), QUIET);
    let mut before = Vec::new();
    walk.run(|walk, action| {
        let kind = walk.plan.steps[action.step.index()].kind;
        before.push((kind, may_have_freed(&walk.journal)));
    });
    let taint = before
        .iter()
        .position(|(kind, _)| *kind == StepKind::TaintOutOfService)
        .unwrap();
    assert!(
        before[..=taint].iter().all(|(_, freed)| !freed),
        "{before:?}"
    );
    assert!(
        before[taint + 1..].iter().all(|(_, freed)| *freed),
        "{before:?}"
    );
    assert!(walk.journal[0].at + SignedDuration::from_secs(1) < walk.case.now);
}
