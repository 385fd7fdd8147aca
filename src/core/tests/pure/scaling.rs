//! The founding procedure's own steps: what is asked right before the scale to zero, whose the zero is then, and what is
//! put back.

use super::run::{Faults, Reply, Run, Step, run};
use super::walk::change;
use super::world::{Mark as Stamped, World, at, plan};
use jiff::SignedDuration;
use reattach_core::evidence::Evidence;
use reattach_core::fact::Known;
use reattach_core::journal::{Event, Outcome, UnwindReason};
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::workload::WorkloadFacts;

/// Takes the run on until `there`.
fn until(run: &mut Run, there: impl Fn(&Run) -> bool) {
    for _ in 0..1_000 {
        if there(run) {
            return;
        }
        if matches!(run.look(), Step::Waits) {
            run.world.second();
        }
    }
    panic!("it never came to that\n{}", run.story());
}

/// What the machine says of the run if the world were so.
fn if_it_were(run: &Run, so: impl FnOnce(&mut World)) -> Next {
    let mut world = run.world.clone();
    so(&mut world);
    run.ask(&world.evidence())
}

/// The same for the reading of the workload.
fn if_it_read(run: &Run, workload: Known<WorkloadFacts>) -> Next {
    let mut evidence = run.world.evidence();
    evidence.workload.value = workload;
    run.ask(&evidence)
}

fn unknown() -> Known<WorkloadFacts> {
    Known::Unknown { why: "503".into() }
}

fn read_before(evidence: &mut Evidence) {
    evidence.workload.at -= SignedDuration::from_secs(1);
}

fn scales(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::ScaleToZero { .. }))
}

fn waits(said: &Next, what: &str) -> bool {
    matches!(said, Next::Wait { why, .. } if why.contains(what))
}

fn refused(said: &Next, what: &str) -> bool {
    matches!(said, Next::Record(Event::UnwindStarted { why: UnwindReason::Refused { why, .. } }) if why.contains(what))
}

fn skipped(said: &Next, what: &str) -> bool {
    matches!(said, Next::Record(Event::Skipped { why, .. }) if why.contains(what))
}

fn taken_over(said: &Next) -> Option<&str> {
    match said {
        Next::Record(Event::UnwindStarted {
            why: UnwindReason::TakenOver { what },
        }) => Some(what),
        _ => None,
    }
}

/// S2: a stamp of our own, which a crash between the two writes of the /scale path leaves, is no refusal; all others stand.
#[test]
fn nothing_is_scaled_against_a_refusal_of_now() {
    let rollout: fn(&mut WorkloadFacts) = |w| w.rollout = Some("1 of 2 pods is updated".into());
    let deleting: fn(&mut WorkloadFacts) = |w| w.deleting = true;
    let table: [(&str, Stamped, fn(&mut WorkloadFacts), fn(&Next) -> bool); 8] = [
        ("nothing", Stamped::None, |_| {}, scales),
        ("a rollout", Stamped::None, rollout, |said| {
            waits(said, "is being rolled out")
        }),
        ("a deletion", Stamped::None, deleting, |said| {
            refused(said, "is being deleted")
        }),
        ("our stamp", Stamped::Ours, |_| {}, scales),
        ("our stamp, a rollout", Stamped::Ours, rollout, |said| {
            waits(said, "is being rolled out")
        }),
        ("our stamp, a deletion", Stamped::Ours, deleting, |said| {
            refused(said, "is being deleted")
        }),
        (
            "another's stamp",
            Stamped::Another,
            |_| {},
            |said| waits(said, "by another recovery"),
        ),
        (
            "an edited stamp",
            Stamped::Edited,
            |_| {},
            |said| refused(said, "is not a stamp of ours"),
        ),
    ];
    let run = run(false, Faults::default());
    for (name, stamp, spoil, fits) in table {
        let mut world = run.world.clone();
        world.stamp = stamp;
        let mut evidence = world.evidence();
        change(&mut evidence.workload, spoil);
        let said = run.ask(&evidence);
        assert!(fits(&said), "{name}: {said:?}");
    }
    let gone = if_it_read(&run, Known::Absent);
    assert!(refused(&gone, "the workload is gone"), "{gone:?}");
    assert!(waits(
        &if_it_read(&run, unknown()),
        "the workload must be read"
    ));
}

/// Of two executors that both issued the scale one is told of a conflict. The zero is there all the same, and it is ours.
#[test]
fn a_scale_that_met_a_conflict_is_in_force_if_our_zero_is_seen() {
    let mut run = run(
        false,
        Faults {
            replies: vec![(1, Reply::Busy)],
            ..Faults::default()
        },
    );
    until(&mut run, |run| {
        run.has(|m| matches!(m, Event::Outcome { .. }))
    });
    let found = |replicas, stamp: &Stamped| {
        let stamp = stamp.clone();
        if_it_were(&run, |w| (w.replicas, w.stamp) = (replicas, stamp))
    };
    let ours = found(0, &Stamped::Ours);
    assert!(waits(&ours, "is still there"), "{ours:?}");
    for (replicas, stamp) in [
        (1, Stamped::None),
        (1, Stamped::Ours),
        (0, Stamped::None),
        (0, Stamped::Another),
    ] {
        let said = found(replicas, &stamp);
        assert!(
            waits(&said, "tried again: busy"),
            "{replicas} replicas, {stamp:?}: {said:?}"
        );
    }
    let mut before = World {
        replicas: 0,
        stamp: Stamped::Ours,
        ..run.world.clone()
    }
    .evidence();
    read_before(&mut before);
    assert!(
        waits(&run.ask(&before), "tried again: busy"),
        "{:?}",
        run.ask(&before)
    );
    run.world.now += 1;
    assert!(scales(&run.ask(&run.world.evidence())), "after the pause");
}

/// Whoever changes count or stamp while the workload is at zero wins, in each step that rests on the zero.
#[test]
fn a_zero_that_another_writer_changed_is_left_alone() {
    type Row = (i32, Stamped, Option<&'static str>);
    let table: [Row; 7] = [
        (0, Stamped::Ours, None),
        (0, Stamped::Recounted, None),
        (3, Stamped::Ours, Some("was scaled to 3")),
        (0, Stamped::None, Some("is gone or changed")),
        (1, Stamped::None, Some("is gone or changed")),
        (0, Stamped::Another, Some("is gone or changed")),
        (0, Stamped::Edited, Some("is gone or changed")),
    ];
    for kind in [
        StepKind::ScaleToZero,
        StepKind::AwaitDetached,
        StepKind::CloudDetach,
    ] {
        let mut run = run(true, Faults::default());
        let step = plan().find(kind);
        until(&mut run, |run| {
            run.state.current() == step && run.world.replicas == 0
        });
        for (replicas, stamp, what) in table.clone() {
            let said = if_it_were(&run, |w| (w.replicas, w.stamp) = (replicas, stamp.clone()));
            match (taken_over(&said), what) {
                (Some(said), Some(what)) => assert!(said.contains(what), "{said}"),
                (said, what) => assert_eq!(said, what, "{kind:?}: {replicas} replicas, {stamp:?}"),
            }
        }
        assert_eq!(
            taken_over(&if_it_read(&run, Known::Absent)),
            Some("the workload was deleted"),
            "{kind:?}"
        );
        assert_eq!(taken_over(&if_it_read(&run, unknown())), None, "{kind:?}");
    }
}

/// The workload as it was before the write is no sign of anybody's change.
#[test]
fn a_workload_read_before_the_scale_was_accepted_is_read_again() {
    let mut run = run(false, Faults::default());
    let begun = run.world.evidence().workload;
    run.world.now = 5;
    until(&mut run, |run| {
        run.has(|m| {
            matches!(
                m,
                Event::Outcome {
                    outcome: Outcome::Applied { .. },
                    ..
                }
            )
        })
    });
    for (seconds, again) in [(0, true), (4, true), (5, false)] {
        let mut evidence = run.world.evidence();
        if again {
            evidence.workload.value = begun.value.clone();
        }
        evidence.workload.at = at(seconds);
        let said = run.ask(&evidence);
        assert_eq!(
            waits(&said, "the workload must be read again"),
            again,
            "read at {seconds}: {said:?}"
        );
        assert_eq!(
            waits(&said, "is still there"),
            !again,
            "read at {seconds}: {said:?}"
        );
    }
}

#[test]
fn a_count_is_restored_once_and_never_over_another_one() {
    let mut run = run(false, Faults::default());
    let restore = plan().find(StepKind::Restore);
    until(&mut run, |run| run.state.current() == restore);
    let said = if_it_were(&run, |_| {});
    assert!(
        matches!(&said, Next::Act(a) if matches!(a.effect, Effect::Restore { replicas: Some(1), .. })),
        "{said:?}"
    );
    let theirs = if_it_were(&run, |w| (w.replicas, w.stamp) = (1, Stamped::None));
    assert!(skipped(&theirs, "someone else restored it"), "{theirs:?}");
    let deleted = if_it_read(&run, Known::Absent);
    assert!(skipped(&deleted, "the workload was deleted"), "{deleted:?}");
    assert!(waits(
        &if_it_read(&run, unknown()),
        "the workload must be read"
    ));
    let before = run.world.evidence();
    until(&mut run, |run| run.world.replicas == 1);
    let restored = |said: &Next| matches!(said, Next::Record(Event::Completed { step, .. }) if Some(*step) == restore);
    assert!(restored(&if_it_were(&run, |_| {})));
    // The write was accepted: it is not made again on a reading from before it.
    assert!(restored(&run.ask(&before)), "{:?}", run.ask(&before));
}

/// What was read before the run turned back may be from before the scale as well.
#[test]
fn nothing_is_restored_from_facts_older_than_the_turn() {
    let mut run = run(
        false,
        Faults {
            abort_after: Some(3),
            ..Faults::default()
        },
    );
    until(&mut run, |run| run.state.unwinding().is_some());
    let mut before = run.world.evidence();
    read_before(&mut before);
    assert!(
        waits(&run.ask(&before), "must be read again to restore it"),
        "{:?}",
        run.ask(&before)
    );
    let said = if_it_were(&run, |_| {});
    assert!(
        matches!(&said, Next::Act(a) if a.effect.puts_back()),
        "{said:?}"
    );
}
