//! What a stamp is good for: never more than a journal or the workload's own past says.

use super::run::{Faults, length, run};
use super::world::{Mark as Stamped, World};
use reattach_core::journal::Event;
use reattach_core::stamp::{
    Doubt, Foreign, MOST_RESTORED, Scaled, Shown, Stamp, Traces, Verdict, judge,
};
use reattach_core::testkit::start;

fn stamp(replicas: i32) -> Stamp {
    Stamp {
        replicas,
        workload: "w".into(),
        recovery: "r".into(),
        at: start(),
    }
}

fn past(replicas: i32) -> Option<Shown> {
    Some(Shown {
        replicas,
        by: "claims".to_owned(),
    })
}

fn silent(written_by_us: bool, past: Option<Shown>) -> Scaled {
    Scaled::NoJournal(Traces {
        written_by_us,
        past,
    })
}

fn restored(verdict: &Verdict) -> Option<(i32, bool)> {
    match verdict {
        Verdict::Restore { replicas, doubt } => Some((*replicas, doubt.is_some())),
        Verdict::Ignore(_) => None,
    }
}

#[test]
fn the_journals_count_overrides_the_stamp() {
    for (said, doubted) in [(1, true), (3, false), (5_000, true), (i32::MAX, true)] {
        let verdict = judge(&stamp(said), &Scaled::Journaled { replicas: 3 });
        assert_eq!(restored(&verdict), Some((3, doubted)), "{said}");
    }
}

#[test]
fn a_stamp_alone_counts_within_the_workloads_past() {
    let table = [
        (1, None, 1, false),
        (3, None, 1, true),
        (5_000, None, 1, true),
        (3, past(3), 3, false),
        (2, past(3), 2, false),
        (4, past(3), 3, true),
        (4, past(0), 1, true),
        (4, past(-1), 1, true),
        (5_000, past(5_000), MOST_RESTORED, true),
        (i32::MAX, past(i32::MAX), MOST_RESTORED, true),
    ];
    for (said, past, count, doubted) in table {
        let verdict = judge(&stamp(said), &silent(true, past.clone()));
        assert_eq!(
            restored(&verdict),
            Some((count, doubted)),
            "{said} with {past:?}"
        );
        let Verdict::Restore { doubt, .. } = verdict else {
            unreachable!()
        };
        if let Some(doubt @ Doubt::Past { .. }) = doubt {
            let sentence = doubt.to_string();
            assert!(
                sentence.contains(&said.to_string()) && sentence.contains("by hand"),
                "{sentence}"
            );
        }
    }
}

#[test]
fn a_stamp_on_a_never_scaled_workload_restores_nothing() {
    for past in [None, past(3)] {
        assert_eq!(
            judge(&stamp(3), &silent(false, past)),
            Verdict::Ignore(Foreign::NoTrace)
        );
    }
    assert_eq!(
        judge(&stamp(3), &Scaled::Never),
        Verdict::Ignore(Foreign::NotThatRecovery)
    );
}

/// Somebody edits the count in the stamp after any line of a run, or of one that is aborted: the journal's count is restored,
/// and the line about it says so. (The model objects to another count.)
#[test]
fn a_count_that_was_edited_in_a_run_is_not_restored() {
    let mut edited = 0;
    for stuck in [false, true] {
        for abort in [false, true] {
            for n in 3..length(stuck) {
                let meddle: fn(&mut World) = |w| {
                    if w.stamp == Stamped::Ours {
                        w.stamp = Stamped::Recounted;
                        w.version += 1;
                    }
                };
                let abort_after = abort.then_some(n + 1);
                let faults = Faults {
                    meddle: Some((n, meddle)),
                    abort_after,
                    ..Faults::default()
                };
                let mut run = run(stuck, faults);
                while run.world.stamp != Stamped::Recounted && run.drive(1).is_none() {}
                if run.world.stamp != Stamped::Recounted {
                    continue;
                }
                edited += 1;
                assert!(run.drive(3_600).is_some(), "{}", run.story());
                assert_eq!(
                    (run.world.replicas, &run.world.stamp),
                    (1, &Stamped::None),
                    "abort {abort}, after line {n}\n{}",
                    run.story()
                );
                let says = |m: &Event| matches!(m, Event::Started { intent, .. } if intent.contains("says 5000"));
                assert!(run.has(says), "after line {n}\n{}", run.story());
            }
        }
    }
    assert!(edited > 5, "{edited}");
}
