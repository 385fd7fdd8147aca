//! The edges of a run: people who take over, edited stamps, deadlines, changes under way, facts that cannot be read.

use super::run::{Faults, Run, Step, length, run};
use super::world::{self, Mark as Stamped, World, at, plan};
use jiff::SignedDuration;
use reattach_core::journal::{End, Event, Outcome, UnwindReason};
use reattach_core::run::{Context, Next, State, next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::Case;

#[test]
fn a_persons_change_wins_at_every_point() {
    type Meddle = (&'static str, fn(&mut World), i32);
    let meddlers: [Meddle; 5] = [
        (
            "scaled back, stamp kept",
            |w| {
                w.replicas = 1;
                w.version += 1;
            },
            1,
        ),
        (
            "scaled to three, stamp kept",
            |w| {
                w.replicas = 3;
                w.version += 1;
            },
            3,
        ),
        (
            "stamp removed at zero",
            |w| {
                w.stamp = Stamped::None;
                w.version += 1;
            },
            0,
        ),
        (
            "scaled back, stamp removed",
            |w| {
                w.stamp = Stamped::None;
                w.replicas = 1;
                w.version += 1;
            },
            1,
        ),
        (
            "another recovery's stamp",
            |w| {
                w.stamp = Stamped::Another;
                w.version += 1;
            },
            0,
        ),
    ];
    for stuck in [false, true] {
        for (what, meddle, count) in meddlers {
            for n in 1..=length(stuck) {
                let mut run = run(
                    stuck,
                    Faults {
                        meddle: Some((n, meddle)),
                        ..Faults::default()
                    },
                );
                let mut before = None;
                while !run.meddled && run.world.now < 3_000 {
                    before = Some((run.world.replicas, run.world.stamp.clone()));
                    if run.drive(1).is_some() {
                        break;
                    }
                }
                let at_zero = before == Some((0, Stamped::Ours));
                let end = run
                    .drive(3_600)
                    .or_else(|| {
                        Some(End::Stuck {
                            why: "never ended".into(),
                        })
                    })
                    .unwrap();
                assert!(
                    !matches!(&end, End::Stuck { why } if why == "never ended"),
                    "{what} after line {n}\n{}",
                    run.story()
                );
                assert_ne!(
                    run.world.stamp,
                    Stamped::Ours,
                    "{what} after line {n}: our stamp is left\n{}",
                    run.story()
                );
                if at_zero
                    && run.has(|m| {
                        matches!(
                            m,
                            Event::UnwindStarted {
                                why: UnwindReason::TakenOver { .. }
                            }
                        )
                    })
                {
                    assert_eq!(
                        run.world.replicas,
                        count,
                        "{what} after line {n}: theirs stands\n{}",
                        run.story()
                    );
                }
            }
        }
    }
}

/// A stamp that somebody edited at zero cannot be restored from: a person is called, nothing pretends to be put back.
#[test]
fn an_edited_stamp_at_zero_is_stuck() {
    let mut tried = 0;
    for stuck in [false, true] {
        for n in 3..length(stuck) {
            let mut run = run(
                stuck,
                Faults {
                    meddle: Some((n, |w| {
                        if w.stamp == Stamped::Ours {
                            w.stamp = Stamped::Edited;
                            w.version += 1;
                        }
                    })),
                    ..Faults::default()
                },
            );
            let end = run.drive(3_600);
            if run.world.stamp == Stamped::Edited {
                tried += 1;
                assert!(
                    matches!(end, Some(End::Stuck { .. })),
                    "{end:?} after line {n}\n{}",
                    run.story()
                );
                assert_eq!(run.world.replicas, 0);
            }
        }
    }
    assert!(tried > 5, "{tried}");
}

#[test]
fn every_step_that_only_waits_meets_its_deadline() {
    type Jam = (&'static str, bool, fn(&mut World), StepKind, i64);
    let jams: [Jam; 6] = [
        (
            "the cloud cannot be read",
            false,
            |w| w.outage = true,
            StepKind::ScaleToZero,
            300,
        ),
        (
            "workload cannot be read",
            false,
            |w| w.blind.workload = true,
            StepKind::ScaleToZero,
            300,
        ),
        (
            "the cloud's detach never ends",
            true,
            |w| w.cloud_lag = 100_000,
            StepKind::CloudDetach,
            300,
        ),
        (
            "kubelet never lets go",
            false,
            |w| w.now += 1,
            StepKind::AwaitDetached,
            600,
        ),
        (
            "attachments cannot be read",
            false,
            |w| w.blind.attachments = true,
            StepKind::ScaleToZero,
            300,
        ),
        (
            "pods cannot be read",
            false,
            |w| w.blind.pods = true,
            StepKind::ScaleToZero,
            300,
        ),
    ];
    for (what, stuck, jam, kind, deadline) in jams {
        let mut world = World::new(stuck);
        jam(&mut world);
        let mut run = Run::new(world, Faults::default());
        for _ in 0..1_300 {
            if run.has(|m| matches!(m, Event::UnwindStarted { .. })) || run.drive(1).is_some() {
                break;
            }
            if what.starts_with("kubelet") {
                run.world.in_use = true;
            }
        }
        let turned = run.journal.iter().find_map(|e| match &e.event {
            Event::UnwindStarted {
                why: UnwindReason::Deadline { step, seconds, .. },
            } => Some((*step, *seconds)),
            _ => None,
        });
        let (step, seconds) =
            turned.unwrap_or_else(|| panic!("{what}: no deadline\n{}", run.story()));
        assert_eq!(
            (plan().steps[step.index()].kind, seconds),
            (kind, deadline),
            "{what}"
        );
        run.world.outage = false;
        run.world.blind = world::Blind::default();
        run.world.job = None;
        let end = run.drive(600);
        let touched = run.has(|m| matches!(m, Event::Started { .. }));
        assert!(
            matches!(
                (&end, touched),
                (Some(End::Failed { .. }), true) | (Some(End::Withdrawn { .. }), false)
            ),
            "{what}\n{}",
            run.story()
        );
        assert_eq!(
            (run.world.replicas, &run.world.stamp),
            (1, &Stamped::None),
            "{what}\n{}",
            run.story()
        );
    }
}

#[test]
fn a_pod_never_ready_fails_verify_after_the_restore() {
    let mut run = run(false, Faults::default());
    while !run.has(
        |m| matches!(m, Event::Started { step, .. } if plan().steps[step.index()].kind == StepKind::Restore),
    ) {
        assert_eq!(run.drive(1), None);
    }
    run.world.cloud_lag = 100_000;
    let end = run.drive(2_000);
    assert!(
        matches!(end, Some(End::Failed { .. })),
        "{end:?}\n{}",
        run.story()
    );
    assert_eq!((run.world.replicas, &run.world.stamp), (1, &Stamped::None));
}

/// Long after its deadline an executor that was there all the time does not start what the step was for.
#[test]
fn no_effect_starts_after_its_deadline() {
    let mut run = run(false, Faults::default());
    run.world.now = 100_000;
    run.world.lease = 100_000;
    assert!(
        matches!(run.drive(600), Some(End::Withdrawn { .. })),
        "{}",
        run.story()
    );
    assert_eq!(run.effects, 0, "{}", run.story());
}

/// What stood in the plan stands no more: nothing is touched.
#[test]
fn a_change_before_the_first_effect_ends_without_effects() {
    type Change = (&'static str, fn(&mut World));
    let changes: [Change; 7] = [
        ("rebooted", |w| w.boot = 2),
        ("the count", |w| w.replicas = 2),
        ("another record", |w| w.va.as_mut().unwrap().number = 2),
        ("no record", |w| w.va = None),
        ("no holder", |w| w.held = false),
        ("another pod", |w| w.pod.as_mut().unwrap().number = 2),
        ("the pod is healthy now", |w| {
            w.pod.as_mut().unwrap().ready_since = Some(0)
        }),
    ];
    for (what, change) in changes {
        let mut world = World::new(false);
        change(&mut world);
        let mut run = Run::new(world, Faults::default());
        for _ in 0..400 {
            // The world stands still but for its clock: nothing heals by itself.
            run.world.now += 1;
            run.world.lease = run.world.now;
            if matches!(run.look(), Step::Done(_)) {
                break;
            }
        }
        assert!(run.state.ended().is_some(), "{what}\n{}", run.story());
        assert_eq!(run.effects, 0, "{what}\n{}", run.story());
    }
}

/// The node is recycled once more in the middle, or is another machine: no cloud detach rests on it.
#[test]
fn a_node_that_reboots_in_the_middle_is_not_detached_from() {
    let mut run = run(true, Faults::default());
    while !run.has(|m| matches!(m, Event::UnusedSince { .. })) {
        assert_eq!(run.drive(1), None);
    }
    run.world.boot = 2;
    let end = run.drive(3_600);
    assert!(
        matches!(end, Some(End::Failed { .. })),
        "{end:?}\n{}",
        run.story()
    );
    assert_eq!(run.world.detaches, 0);
    assert_eq!((run.world.replicas, &run.world.stamp), (1, &Stamped::None));
}

/// Blind moments anywhere: what cannot be read is never taken for gone.
#[test]
fn an_unreadable_fact_is_never_taken_for_a_release() {
    let blinds = [
        world::Blind {
            volume: true,
            ..world::Blind::default()
        },
        world::Blind {
            node: true,
            ..world::Blind::default()
        },
        world::Blind {
            attachments: true,
            ..world::Blind::default()
        },
        world::Blind {
            workload: true,
            ..world::Blind::default()
        },
        world::Blind {
            pods: true,
            ..world::Blind::default()
        },
    ];
    for stuck in [false, true] {
        for blind in blinds {
            for from in 0..25 {
                let mut run = run(stuck, Faults::default());
                for _ in 0..from {
                    run.drive(1);
                }
                run.world.blind = blind;
                for _ in 0..30 {
                    run.drive(1);
                }
                run.world.blind = world::Blind::default();
                run.assert_recovered(&format!("blind {blind:?} from {from}, stuck {stuck}"), 1);
            }
        }
    }
}

/// A pod of the claim that appears again starts the handshake anew.
#[test]
fn a_pod_that_reappears_restarts_the_handshake() {
    let mut run = run(true, Faults::default());
    while !run.has(|m| matches!(m, Event::UnusedSince { .. })) {
        assert_eq!(run.drive(1), None);
    }
    for _ in 0..15 {
        run.drive(1);
    }
    // A bare pod of the claim comes while the workload is at zero, and goes again before kubelet's next tick.
    run.world.pods_made += 1;
    run.world.pod = Some(world::Pod {
        number: run.world.pods_made,
        deleting: false,
        ready_since: None,
        gated: false,
    });
    run.drive(1);
    run.world.pod = None;
    let gone = run.world.now;
    run.assert_recovered("a pod that came and went", 1);
    let mut again = run.journal.iter().filter_map(|e| match &e.event {
        Event::UnusedSince { seen } if seen.lease.is_some() => Some(seen.at),
        _ => None,
    });
    assert!(again.next_back().unwrap() >= at(gone), "{}", run.story());
}

/// The Lease could not be read at the moment when the last pod was gone: the handshake starts when it can.
#[test]
fn a_handshake_without_a_lease_is_restarted() {
    let mut run = run(true, Faults::default());
    run.drive(2);
    run.world.blind.node = true;
    while !run.has(|m| matches!(m, Event::Completed { step, .. } if step.0 == 0))
        && run.world.now < 20
    {
        run.drive(1);
    }
    run.world.blind.node = false;
    run.assert_recovered("no Lease at first", 1);
}

#[test]
fn a_kubelet_that_stops_renewing_gives_no_proof() {
    let mut run = run(true, Faults::default());
    while !run.has(|m| matches!(m, Event::UnusedSince { .. })) {
        assert_eq!(run.drive(1), None);
    }
    let lease = run.world.lease;
    for _ in 0..1_500 {
        if run.drive(1).is_some() {
            break;
        }
        run.world.lease = lease;
    }
    assert_eq!(run.world.detaches, 0, "{}", run.story());
    assert_eq!(
        (run.world.replicas, &run.world.stamp),
        (1, &Stamped::None),
        "{}",
        run.story()
    );
}

/// Facts that were read before the effect was started tell nothing about it.
#[test]
fn facts_older_than_the_effect_show_no_outcome() {
    let mut run = run(
        false,
        Faults {
            crash_between: vec![1],
            ..Faults::default()
        },
    );
    let before = run.world.evidence();
    assert!(matches!(run.look(), Step::Crashed));
    run.world.now += 5;
    let recovery = Case::recovery();
    let cx = Context {
        recovery: &recovery,
        aborted_by: Some("ada"),
        confirm_workload: None,
        term: 1,
        nothing_under_way: None,
        withdrawn: None,
        unattended: SignedDuration::ZERO,
        now: at(run.world.now),
    };
    let mut stale = run.world.evidence();
    stale.workload = before.workload;
    stale.workload.at = at(-1);
    assert!(matches!(
        next(plan(), &run.state, &stale, &cx),
        Next::Wait { .. }
    ));
    assert!(matches!(
        next(plan(), &run.state, &run.world.evidence(), &cx),
        Next::Record(Event::Outcome {
            outcome: Outcome::ObservedApplied { .. },
            ..
        })
    ));
}

#[test]
fn a_run_without_an_accepted_plan_does_nothing() {
    let recovery = Case::recovery();
    let cx = Context {
        recovery: &recovery,
        aborted_by: None,
        confirm_workload: None,
        term: 1,
        nothing_under_way: None,
        withdrawn: None,
        unattended: SignedDuration::ZERO,
        now: at(0),
    };
    let said = next(
        plan(),
        &State::new(plan()),
        &World::new(false).evidence(),
        &cx,
    );
    assert!(matches!(said, Next::Wait { .. }), "{said:?}");
}
