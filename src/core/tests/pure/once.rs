//! A step of class *once* whose outcome nobody knows (safety rule S3) is never issued again, whatever its kind: the machine
//! reads the class that the plan shows and hashes.

use super::steps::phantom;
use super::walk::{
    ALL, By, QUIET, Walk, World, dead_node, dead_node_off, orphan, phantom_without_policy,
};
use reattach_core::evidence::Word;
use reattach_core::journal::{Event, Outcome};
use reattach_core::plan::{Allowed, Plan, Snapshots};
use reattach_core::run::{Context, Next, State, next};
use reattach_core::steps::EffectClass;
use reattach_core::steps::StepKind;
use reattach_core::testkit::Case;
use std::collections::BTreeSet;

/// Runs that make, together, every effect that touches no replica.
fn runs() -> Vec<Walk> {
    let snapshot = Allowed {
        snapshot: Snapshots::Required,
        ..ALL
    };
    vec![
        Walk::new(
            phantom(),
            World {
                stuck: true,
                ..QUIET
            },
        ),
        Walk::new(
            phantom(),
            World {
                lingers: true,
                ..QUIET
            },
        ),
        Walk::new(phantom_without_policy(), QUIET),
        Walk::new(dead_node(), QUIET),
        Walk::with(
            dead_node_off(),
            World {
                hangs: Some(By::Us),
                stuck: true,
                ..QUIET
            },
            snapshot,
        ),
        Walk::new(orphan(), QUIET),
    ]
}

/// The kinds of the steps whose effects the run issues.
fn kinds(mut walk: Walk) -> BTreeSet<StepKind> {
    let mut seen = BTreeSet::new();
    walk.run(|walk, action| {
        seen.insert(walk.plan.steps[action.step.index()].kind);
    });
    seen
}

/// The same run by a plan in which the steps of this kind are of class *once*.
fn with_once(mut walk: Walk, kind: StepKind) -> Walk {
    let mut plan = Plan::clone(&walk.plan);
    plan.steps
        .iter_mut()
        .filter(|s| s.kind == kind)
        .for_each(|s| s.effect_class = EffectClass::Once);
    plan.hash = plan.computed_hash();
    walk.plan = plan.sound().unwrap();
    let plan_hash = walk.plan.hash.to_string();
    walk.journal[0].event = Event::Accepted {
        plan_hash,
        authority: "test".to_owned(),
    };
    walk
}

fn kind_of(walk: &Walk, said: &Next) -> Option<StepKind> {
    match said {
        Next::Act(action) => Some(walk.plan.steps[action.step.index()].kind),
        _ => None,
    }
}

/// Whether the step of the latest effect of this kind may be issued again: its outcome was observed.
fn is_known(walk: &Walk, kind: StepKind) -> bool {
    let of_it = |step: reattach_core::ids::StepIx| walk.plan.steps[step.index()].kind == kind;
    let last = walk.journal.iter().rev().find_map(|e| match &e.event {
        Event::Outcome { step, outcome } if of_it(*step) => Some(outcome),
        _ => None,
    });
    matches!(last, Some(Outcome::ObservedNotApplied { .. }))
}

#[test]
fn a_lost_once_effect_is_never_issued_again() {
    let mut tried = BTreeSet::new();
    for (ix, run) in runs().into_iter().enumerate() {
        for kind in kinds(run.clone()) {
            let mut walk = with_once(run.clone(), kind);
            super::clocks::until(&mut walk, |walk, said| kind_of(walk, said) == Some(kind));
            let Next::Act(action) = walk.ask() else {
                unreachable!()
            };
            walk.issue(
                action,
                Outcome::Unknown {
                    why: "no answer".into(),
                },
            );
            tried.insert(kind);
            for _ in 0..800 {
                match walk.ask() {
                    Next::Record(event) => walk.record(event),
                    Next::Wait { .. } => walk.pass(5),
                    Next::Done(_) => break,
                    Next::Act(action) => {
                        let again = walk.plan.steps[action.step.index()].kind == kind;
                        assert!(
                            !again || is_known(&walk, kind),
                            "run {ix}, {kind:?}\n{}",
                            walk.story()
                        );
                        break;
                    }
                }
            }
        }
    }
    use StepKind as S;
    let effects = [
        S::Hold,
        S::Release,
        S::Lift,
        S::CloudDetach,
        S::Requeue,
        S::PowerOff,
        S::PowerOn,
        S::Quarantine,
        S::TaintOutOfService,
        S::Untaint,
        S::Challenge,
        S::DeleteAttachment,
        S::Snapshot,
        S::CloudForce,
    ];
    assert_eq!(tried, BTreeSet::from(effects));
}

/// Nothing tells what became of such an effect but a person, and their word is about what was sent before it.
#[test]
fn a_person_ends_the_wait_for_a_lost_once_effect() {
    let mut walk = with_once(Walk::new(phantom(), QUIET), StepKind::Release);
    super::clocks::until(&mut walk, |walk, said| {
        kind_of(walk, said) == Some(StepKind::Release)
    });
    let Next::Act(action) = walk.ask() else {
        unreachable!()
    };
    let early = Word {
        by: "grace".into(),
        reason: "support looked".into(),
        at: walk.case.now,
    };
    walk.pass(1);
    walk.issue(
        action,
        Outcome::Unknown {
            why: "no answer".into(),
        },
    );
    walk.pass(10);
    let late = Word {
        at: walk.case.now,
        ..early.clone()
    };
    let recovery = Case::recovery();
    let said = |walk: &Walk, word: &Word| {
        let cx = Context {
            nothing_under_way: Some(word.clone()),
            ..walk.context(&recovery)
        };
        next(&walk.plan, &walk.state(), &walk.case.evidence, &cx)
    };
    let waits = said(&walk, &early);
    assert!(
        matches!(&waits, Next::Wait { why, .. } if why.contains("--nothing-under-way")),
        "{waits:?}"
    );
    let told = said(&walk, &late);
    assert!(
        matches!(&told, Next::Record(Event::Outcome { outcome: Outcome::ObservedNotApplied { seen }, .. }) if seen.contains("grace")),
        "{told:?}"
    );
}

/// The net under the machine: no journal has another try of such an effect while the first one's outcome is unknown.
#[test]
fn the_state_refuses_to_retry_a_lost_once_effect() {
    let begun = |kind: StepKind, class_once: bool| {
        let run = Walk::new(phantom(), QUIET);
        let mut walk = if class_once {
            with_once(run, kind)
        } else {
            run
        };
        super::clocks::until(&mut walk, |walk, said| kind_of(walk, said) == Some(kind));
        let Next::Act(action) = walk.ask() else {
            unreachable!()
        };
        let step = action.step;
        walk.issue(
            action.clone(),
            Outcome::Unknown {
                why: "no answer".into(),
            },
        );
        walk.record(Event::Outcome {
            step,
            outcome: Outcome::Repeatable {
                why: "a line of another version".into(),
            },
        });
        walk.issue(
            action,
            Outcome::Applied {
                detail: "200".into(),
            },
        );
        State::replay(&walk.plan, &walk.journal)
    };
    assert!(begun(StepKind::Hold, false).is_ok());
    let refused = begun(StepKind::Hold, true).unwrap_err().to_string();
    assert!(refused.contains("it is issued once"), "{refused}");
}
