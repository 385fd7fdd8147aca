//! The snapshot before a detach by force: when it is made, what is waited for, and what becomes of the run without it.

use super::walk::{
    ALL, By, QUIET, Walk, World, dead_node_off, detach_error, node_missing, orphan, plan, sighting,
};
use jiff::SignedDuration;
use reattach_core::cloud::{InstanceState, SnapshotState};
use reattach_core::fact::{Fact, Source};
use reattach_core::journal::{End, Event, Outcome, UnwindReason};
use reattach_core::plan::{Allowed, Snapshots};
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::Case;

const HANGS: World = World {
    stuck: true,
    hangs: Some(By::Us),
    ..QUIET
};
const NO_SNAPSHOT: World = World {
    no_snapshot: true,
    ..HANGS
};

const BEST_EFFORT: Allowed = Allowed {
    snapshot: Snapshots::BestEffort,
    ..ALL
};
const REQUIRED: Allowed = Allowed {
    snapshot: Snapshots::Required,
    ..ALL
};

/// The classes in which a volume may be detached by force, and the effects up to the end.
const ROWS: &[(&str, fn() -> Case, &[&str])] = &[
    (
        "A",
        dead_node_off,
        &[
            "Quarantine",
            "TaintOutOfService",
            "Hold",
            "CloudDetach",
            "Snapshot",
            "CloudForce",
            "Requeue",
            "Lift",
            "Untaint",
        ],
    ),
    (
        "D",
        node_missing,
        &[
            "Hold",
            "DeleteAttachment",
            "CloudDetach",
            "Snapshot",
            "CloudForce",
            "Requeue",
            "Lift",
        ],
    ),
    (
        "E",
        orphan,
        &[
            "Hold",
            "CloudDetach",
            "Snapshot",
            "CloudForce",
            "Requeue",
            "Lift",
        ],
    ),
];

fn has(walk: &Walk, effect: &str) -> bool {
    walk.kinds().iter().any(|k| k == effect)
}

fn is_snapshot(effect: &Effect) -> bool {
    matches!(effect, Effect::Snapshot { .. })
}

/// What the journal says of the step's end.
pub fn end_of(walk: &Walk, kind: StepKind) -> Option<&Event> {
    let ix = walk.plan.find(kind)?;
    walk.journal.iter().map(|e| &e.event).find(
        |m| matches!(m, Event::Completed { step, .. } | Event::Skipped { step, .. } if *step == ix),
    )
}

#[test]
fn a_snapshot_is_complete_before_the_force_detach() {
    for (name, case, expected) in ROWS {
        for allowed in [BEST_EFFORT, REQUIRED] {
            let mut walk = Walk::with(case(), HANGS, allowed);
            let end = walk.run(|walk, action| {
                if let Effect::CloudForce { .. } = action.effect {
                    assert_eq!(walk.snapshots.len(), 1, "{name}");
                    assert_eq!(walk.snapshots[0].state, SnapshotState::Completed, "{name}");
                }
            });
            assert_eq!(end, End::Recovered, "{name}\n{}", walk.story());
            assert_eq!(walk.kinds(), *expected, "{name}\n{}", walk.story());
            assert!(walk.is_clean(), "{name}\n{}", walk.story());
            assert!(
                matches!(end_of(&walk, StepKind::Snapshot), Some(Event::Completed { seen, .. }) if seen == "snapshot snap-1 is complete"),
                "{name}\n{}",
                walk.story()
            );
        }
    }
}

#[test]
fn a_snapshot_is_planned_only_by_policy_and_before_force() {
    for (name, case, _) in ROWS {
        let steps = |allowed| plan(&case(), allowed).unwrap().steps;
        let found = |allowed| {
            steps(allowed)
                .iter()
                .position(|s| s.kind == StepKind::Snapshot)
        };
        assert_eq!(found(ALL), None, "{name}");
        assert_eq!(
            found(Allowed {
                force: false,
                ..REQUIRED
            }),
            None,
            "{name}"
        );
        for allowed in [BEST_EFFORT, REQUIRED] {
            let (at, steps) = (found(allowed).unwrap(), steps(allowed));
            assert_eq!(steps[at + 1].kind, StepKind::CloudForce, "{name}");
            assert_eq!(steps[at].best_effort, allowed == BEST_EFFORT, "{name}");
        }
    }
    // Whoever approves one of the two plans has not approved the other.
    let hash = |allowed| plan(&orphan(), allowed).unwrap().hash;
    assert_ne!(hash(BEST_EFFORT), hash(REQUIRED));
}

#[test]
fn a_working_detach_needs_no_snapshot() {
    for (name, case, _) in ROWS {
        let mut walk = Walk::with(
            case(),
            World {
                stuck: true,
                ..QUIET
            },
            REQUIRED,
        );
        assert_eq!(
            walk.run(|_, _| {}),
            End::Recovered,
            "{name}\n{}",
            walk.story()
        );
        assert!(
            has(&walk, "CloudDetach") && walk.snapshots.is_empty(),
            "{name}\n{}",
            walk.story()
        );
        assert!(
            matches!(
                end_of(&walk, StepKind::Snapshot),
                Some(Event::Skipped { .. })
            ),
            "{name}"
        );
    }
}

/// A living holder loses nothing by force, so that nothing is snapshotted for it either.
#[test]
fn no_snapshot_is_made_where_force_is_unsafe() {
    let mut walk = Walk::with(detach_error(), HANGS, REQUIRED);
    walk.run(|_, _| {});
    assert!(has(&walk, "CloudDetach"), "{}", walk.story());
    assert!(
        !has(&walk, "Snapshot") && !has(&walk, "CloudForce"),
        "{}",
        walk.story()
    );
}

#[test]
fn a_failed_snapshot_ends_the_run_only_if_required() {
    let refused = Outcome::NotApplied {
        why: "AccessDenied".into(),
        retry: false,
    };
    for (name, case, _) in ROWS {
        for refuse in [false, true] {
            let run = |allowed| {
                let mut walk = Walk::with(case(), NO_SNAPSHOT, allowed);
                if refuse {
                    walk.answer(|e| is_snapshot(e).then(|| refused.clone()), |_| {});
                }
                let end = walk.run(|_, _| {});
                (end, walk)
            };
            let (end, walk) = run(BEST_EFFORT);
            assert_eq!(end, End::Recovered, "{name}\n{}", walk.story());
            assert!(
                has(&walk, "CloudForce") && walk.is_clean(),
                "{name}\n{}",
                walk.story()
            );

            let (end, walk) = run(REQUIRED);
            let word = if refuse {
                "AccessDenied"
            } else {
                "the key is disabled"
            };
            assert!(
                matches!(&end, End::Failed { why } if why.contains(word)),
                "{name}: {end:?}\n{}",
                walk.story()
            );
            assert!(
                !has(&walk, "CloudForce") && walk.is_clean(),
                "{name}\n{}",
                walk.story()
            );
            assert_eq!(
                walk.kinds().iter().filter(|k| *k == "Snapshot").count(),
                1,
                "{name}"
            );
        }
    }
}

/// What does not end by the deadline counts as not made; the cloud goes on with it.
#[test]
fn a_slow_snapshot_ends_the_wait() {
    for (allowed, forced) in [(BEST_EFFORT, true), (REQUIRED, false)] {
        let mut walk = Walk::with(orphan(), HANGS, allowed);
        let taken = Outcome::Applied {
            detail: "pending".into(),
        };
        walk.answer(
            |e| is_snapshot(e).then(|| taken.clone()),
            |walk| {
                // A long one: it began, as far as the test's cloud counts, only after the deadline.
                walk.begin_snapshot();
                walk.snapshots[0].started += SignedDuration::from_hours(1);
                walk.hang_on();
            },
        );
        let begun = walk.case.now;
        walk.run(|_, _| {});
        assert_eq!(has(&walk, "CloudForce"), forced, "{}", walk.story());
        assert!(walk.is_clean(), "{}", walk.story());
        let after = walk.journal.iter().find(|e| match &e.event {
            Event::Skipped { step, .. } => walk.plan.find(StepKind::Snapshot) == Some(*step),
            Event::UnwindStarted {
                why: UnwindReason::Deadline { step, .. },
            } => walk.plan.find(StepKind::Snapshot) == Some(*step),
            _ => false,
        });
        let after = after
            .unwrap_or_else(|| panic!("{}", walk.story()))
            .at
            .duration_since(begun);
        assert!(
            (1790..=1801).contains(&after.as_secs()),
            "{after:?}\n{}",
            walk.story()
        );
    }
}

/// S3: an order whose reply was lost is looked up by its label. One that shows is not given again, whatever it takes.
#[test]
fn a_snapshot_of_unknown_outcome_is_looked_up() {
    let unknown = Outcome::Unknown {
        why: "no answer before the effect's deadline".into(),
    };
    for (name, case, _) in ROWS {
        let mut walk = Walk::with(case(), HANGS, REQUIRED);
        walk.answer(
            |e| is_snapshot(e).then(|| unknown.clone()),
            Walk::begin_snapshot,
        );
        assert!(
            matches!(walk.ask(), Next::Wait { .. }),
            "{name}: what was read before it tells nothing"
        );
        assert_eq!(
            walk.run(|_, _| {}),
            End::Recovered,
            "{name}\n{}",
            walk.story()
        );
        assert_eq!(
            walk.kinds().iter().filter(|k| *k == "Snapshot").count(),
            1,
            "{name}\n{}",
            walk.story()
        );
        let found = |m: &Event| matches!(m, Event::Outcome { outcome: Outcome::ObservedApplied { seen }, .. } if seen.contains("snap-1"));
        assert!(
            walk.journal.iter().any(|e| found(&e.event)),
            "{name}\n{}",
            walk.story()
        );
    }
}

/// One that does not show is given again once its request cannot be on its way any more.
#[test]
fn a_snapshot_that_never_arrived_is_ordered_again() {
    let unknown = Outcome::Unknown {
        why: "connection reset".into(),
    };
    let mut walk = Walk::with(orphan(), HANGS, REQUIRED);
    walk.answer(|e| is_snapshot(e).then(|| unknown.clone()), |_| {});
    let lost = walk.case.now;
    let mut again = None;
    let end = walk.run(|walk, action| {
        if is_snapshot(&action.effect) {
            again = Some(walk.case.now.duration_since(lost).as_secs());
        }
    });
    assert_eq!(end, End::Recovered, "{}", walk.story());
    assert!(
        again.is_some_and(|s| (60..70).contains(&s)),
        "{again:?}\n{}",
        walk.story()
    );
    assert_eq!(walk.snapshots.len(), 1, "{}", walk.story());
}

/// Without the right to read snapshots the run is not stuck for ever, and no second one is ordered.
#[test]
fn a_snapshot_lookup_ends_at_the_deadline() {
    for (allowed, forced) in [(BEST_EFFORT, true), (REQUIRED, false)] {
        let unknown = Outcome::Unknown {
            why: "connection reset".into(),
        };
        let mut walk = Walk::with(
            orphan(),
            World {
                blind: true,
                ..HANGS
            },
            allowed,
        );
        walk.answer(
            |e| is_snapshot(e).then(|| unknown.clone()),
            |walk| {
                walk.begin_snapshot();
                walk.hang_on();
            },
        );
        let end = walk.run(|_, _| {});
        assert_eq!(end == End::Recovered, forced, "{end:?}\n{}", walk.story());
        assert_eq!(has(&walk, "CloudForce"), forced, "{}", walk.story());
        assert_eq!(
            walk.kinds().iter().filter(|k| *k == "Snapshot").count(),
            1,
            "{}",
            walk.story()
        );
        assert!(walk.is_clean(), "{}", walk.story());
    }
}

#[test]
fn an_abort_at_any_line_leaves_nothing() {
    for (name, case, _) in ROWS {
        for world in [HANGS, NO_SNAPSHOT] {
            let mut whole = Walk::with(case(), world, BEST_EFFORT);
            whole.run(|_, _| {});
            for line in 1..whole.journal.len() {
                let mut walk = Walk::with(
                    case(),
                    World {
                        abort_at: Some(line),
                        ..world
                    },
                    BEST_EFFORT,
                );
                let end = walk.run(|_, _| {});
                let story = walk.story();
                assert!(
                    matches!(end, End::Aborted | End::Recovered),
                    "{name}, line {line}: {end:?}\n{story}"
                );
                assert!(
                    walk.is_clean() && walk.snapshots.len() <= 1,
                    "{name}, line {line}\n{story}"
                );
            }
        }
    }
}

/// The driver's own detach may be what does not end: then no plain one of ours can be sent, and force has to follow.
#[test]
fn a_hanging_detach_of_the_driver_is_forced_too() {
    let world = World {
        stuck: true,
        hangs: Some(By::Driver),
        ..QUIET
    };
    let mut walk = Walk::with(dead_node_off(), world, BEST_EFFORT);
    assert_eq!(walk.run(|_, _| {}), End::Recovered, "{}", walk.story());
    assert_eq!(
        walk.kinds(),
        [
            "Quarantine",
            "TaintOutOfService",
            "Hold",
            "Snapshot",
            "CloudForce",
            "Requeue",
            "Lift",
            "Untaint"
        ],
        "{}",
        walk.story()
    );
    // By itself it would have ended after five minutes.
    let took = walk
        .journal
        .last()
        .unwrap()
        .at
        .duration_since(walk.journal[0].at)
        .as_secs();
    assert!(took < 290, "{took}\n{}", walk.story());
}

/// A machine that is booted while the snapshot is made is not proven off any more: nothing is forced.
#[test]
fn preconditions_are_rechecked_after_the_snapshot() {
    let mut walk = Walk::with(orphan(), HANGS, REQUIRED);
    let taken = Outcome::Applied {
        detail: "pending".into(),
    };
    walk.answer(
        |e| is_snapshot(e).then(|| taken.clone()),
        |walk| {
            walk.begin_snapshot();
            walk.case
                .evidence
                .sightings
                .push(sighting(Some(InstanceState::Running), walk.case.now));
            let source = Source::Cloud("ec2".into());
            for (id, fact) in &mut walk.case.evidence.instances {
                let mut running = fact.shown().cloned().unwrap();
                (running.id, running.state) = (id.clone(), InstanceState::Running);
                *fact = Fact::present(running, source.clone(), walk.case.now);
            }
        },
    );
    walk.run(|_, _| {});
    assert!(!has(&walk, "CloudForce"), "{}", walk.story());
}

/// The request may be on its way for a minute. Where the snapshots cannot be read, it is waited for until the deadline. No
/// look is a moment too early, and a late one ends the wait as well.
#[test]
fn an_unknown_snapshot_is_ordered_again_after_its_time_limit() {
    for (blind, seconds, again) in [
        (false, 60, false),
        (false, 61, true),
        (false, 900, true),
        (true, 1800, false),
        (true, 1801, true),
        (true, 3600, true),
    ] {
        let unknown = Outcome::Unknown {
            why: "connection reset".into(),
        };
        let mut walk = Walk::with(orphan(), World { blind, ..HANGS }, REQUIRED);
        walk.answer(|e| is_snapshot(e).then(|| unknown.clone()), |_| {});
        walk.pass(seconds);
        let said = walk.ask();
        // Without a look nothing was observed, and the step's deadline is over: nothing is ordered any more.
        let told = match &said {
            Next::Record(Event::Outcome {
                outcome: Outcome::ObservedNotApplied { .. },
                ..
            }) => !blind,
            Next::Record(Event::Outcome {
                outcome: Outcome::Repeatable { .. },
                ..
            }) => blind,
            _ => false,
        };
        assert_eq!(told, again, "blind {blind}, {seconds} s: {said:?}");
    }
}

/// The volume is let go while the snapshot is due: one that the cloud has begun is told from one that it
/// refused.
#[test]
fn a_detached_volume_ends_the_step() {
    let begun = Outcome::Applied {
        detail: "pending".into(),
    };
    let busy = Outcome::NotApplied {
        why: "busy".into(),
        retry: true,
    };
    for (outcome, made) in [(begun, true), (busy, false)] {
        let mut walk = Walk::with(orphan(), HANGS, REQUIRED);
        walk.answer(|e| is_snapshot(e).then(|| outcome.clone()), |_| {});
        walk.case = walk.case.clone().cloud(|c| c.holders.clear());
        let fits = match walk.ask() {
            Next::Record(Event::Completed { .. }) => made,
            Next::Record(Event::Skipped { .. }) => !made,
            _ => false,
        };
        assert!(fits, "{outcome:?}: {:?}", walk.ask());
    }
}
