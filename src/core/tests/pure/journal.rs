//! The journal: legal sequences add up, illegal ones are refused by name, and lines survive serialisation.

use jiff::SignedDuration;
use reattach_core::ids::StepIx;
use reattach_core::journal::{
    End, Entry, Event, NewestJob, Outcome, Shut, UnwindReason, is_withheld,
};
use reattach_core::plan::SoundPlan;
use reattach_core::policy::Mode;
use reattach_core::proof::{ProofKind, UnusedSince};
use reattach_core::run::{Illegal, State, StepState};
use reattach_core::testkit::{Case, NODE, start};

fn plan() -> SoundPlan {
    Case::deployment().plan().unwrap().sound().unwrap()
}

fn accepted(plan: &SoundPlan) -> Event {
    Event::Accepted {
        plan_hash: plan.hash.to_string(),
        authority: "policy".into(),
    }
}

fn started(step: u32) -> Event {
    Event::Started {
        step: StepIx(step),
        intent: "x".into(),
        proof: None,
        newest_job: None,
    }
}

fn outcome(step: u32, outcome: Outcome) -> Event {
    Event::Outcome {
        step: StepIx(step),
        outcome,
    }
}

fn applied() -> Outcome {
    Outcome::Applied {
        detail: "200".into(),
    }
}

fn unknown() -> Outcome {
    Outcome::Unknown {
        why: "timeout".into(),
    }
}

fn not_applied() -> Outcome {
    Outcome::NotApplied {
        why: "409".into(),
        retry: true,
    }
}

fn completed(step: u32) -> Event {
    Event::Completed {
        step: StepIx(step),
        seen: "x".into(),
    }
}

fn skipped(step: u32) -> Event {
    Event::Skipped {
        step: StepIx(step),
        why: "x".into(),
    }
}

fn turned() -> Event {
    Event::UnwindStarted {
        why: UnwindReason::Aborted { by: "ada".into() },
    }
}

fn ended(end: End) -> Event {
    Event::Ended { end }
}

fn lines(events: Vec<Event>) -> Vec<Entry> {
    let line = |(n, event): (usize, Event)| Entry {
        seq: u32::try_from(n).unwrap(),
        at: start() + SignedDuration::from_secs(i64::try_from(n).unwrap()),
        term: 1,
        by: "controller-0".into(),
        event,
    };
    events.into_iter().enumerate().map(line).collect()
}

fn replay(events: Vec<Event>) -> Result<State, Illegal> {
    let plan = plan();
    let all = std::iter::once(accepted(&plan)).chain(events).collect();
    State::replay(&plan, &lines(all))
}

fn whole_run() -> Vec<Event> {
    vec![
        started(0),
        outcome(0, applied()),
        Event::UnusedSince {
            seen: UnusedSince {
                at: start(),
                lease: Some(start()),
            },
        },
        completed(0),
        skipped(1),
        started(2),
        outcome(2, unknown()),
        outcome(2, Outcome::ObservedApplied { seen: "x".into() }),
        completed(2),
        started(3),
        outcome(3, applied()),
        completed(3),
        completed(4),
        started(5),
        outcome(5, not_applied()),
        started(5),
        outcome(5, applied()),
        completed(5),
        completed(6),
        ended(End::Recovered),
    ]
}

#[test]
fn a_whole_run_is_the_sum_of_its_journal() {
    let state = replay(whole_run()).unwrap();
    assert_eq!(state.ended(), Some(&End::Recovered));
    assert_eq!(
        (
            state.current(),
            state.outstanding(),
            state.next_seq(),
            state.term()
        ),
        (None, None, 21, 1)
    );
    for prefix in 0..whole_run().len() {
        assert!(
            replay(whole_run()[..prefix].to_vec()).is_ok(),
            "prefix of {prefix}"
        );
    }
}

#[test]
fn a_started_effect_without_outcome_is_outstanding() {
    let state = replay(vec![started(0)]).unwrap();
    assert_eq!(state.outstanding(), Some(StepIx(0)));
    let state = replay(vec![started(0), outcome(0, unknown())]).unwrap();
    assert_eq!(state.outstanding(), Some(StepIx(0)));
    for known in [
        applied(),
        not_applied(),
        Outcome::ObservedApplied { seen: "x".into() },
        Outcome::ObservedNotApplied { seen: "x".into() },
    ] {
        let state = replay(vec![started(0), outcome(0, known)]).unwrap();
        assert_eq!(state.outstanding(), None);
        assert!(
            matches!(state.step(StepIx(0)), StepState::Issued { started: s, .. } if *s == start() + SignedDuration::from_secs(1))
        );
    }
}

#[test]
fn illegal_lines_are_refused_with_the_reason() {
    let scaled = || vec![started(0), outcome(0, applied()), completed(0), skipped(1)];
    let then = |more: Vec<Event>| [scaled(), more].concat();
    let table: Vec<(&str, Vec<Event>, &str)> = vec![
        (
            "accepted twice",
            vec![accepted(&plan())],
            "accepted already",
        ),
        (
            "outcome without a start",
            vec![outcome(0, applied())],
            "no effect is outstanding",
        ),
        (
            "two outcomes",
            vec![started(0), outcome(0, applied()), outcome(0, applied())],
            "no effect is outstanding",
        ),
        (
            "outcome of another step",
            vec![started(0), outcome(1, applied())],
            "no effect is outstanding",
        ),
        (
            "two starts",
            vec![started(0), started(0)],
            "an effect is outstanding",
        ),
        (
            "a start while unknown",
            vec![started(0), outcome(0, unknown()), started(0)],
            "an effect is outstanding",
        ),
        ("a start ahead", vec![started(2)], "not the current step"),
        (
            "a start of a step that closed",
            then(vec![started(0)]),
            "not the current step",
        ),
        (
            "completed ahead",
            vec![completed(1)],
            "not the current step",
        ),
        (
            "completed while outstanding",
            vec![started(0), completed(0)],
            "an effect is outstanding",
        ),
        (
            "skipped while unknown",
            vec![started(0), outcome(0, unknown()), skipped(0)],
            "an effect is outstanding",
        ),
        (
            "a step that is not there",
            vec![turned(), started(99)],
            "no such step",
        ),
        (
            "turned back twice",
            vec![turned(), turned()],
            "turned back already",
        ),
        (
            "turned back while outstanding",
            vec![started(0), turned()],
            "an effect is outstanding",
        ),
        (
            "scaling after turning back",
            vec![turned(), started(0)],
            "only restoring",
        ),
        (
            "detaching after turning back",
            then(vec![turned(), started(2)]),
            "only restoring",
        ),
        (
            "going on after turning back",
            vec![turned(), completed(0)],
            "turned back",
        ),
        (
            "a second detach after an applied one",
            then(vec![started(2), outcome(2, applied()), started(2)]),
            "in force",
        ),
        (
            "a second scale after an applied one",
            vec![started(0), outcome(0, applied()), started(0)],
            "in force",
        ),
        (
            "ended while outstanding",
            vec![started(0), ended(End::Aborted)],
            "an effect is outstanding",
        ),
        (
            "ended while unknown",
            vec![
                started(0),
                outcome(0, unknown()),
                ended(End::Failed { why: "x".into() }),
            ],
            "an effect is outstanding",
        ),
        (
            "recovered half way",
            then(vec![ended(End::Recovered)]),
            "not finished",
        ),
        (
            "recovered after turning back",
            vec![turned(), ended(End::Recovered)],
            "not finished",
        ),
        (
            "aborted and never turned back",
            vec![ended(End::Aborted)],
            "turned back",
        ),
        (
            "anything after the end",
            [whole_run(), vec![turned()]].concat(),
            "has ended",
        ),
        (
            "ended twice",
            [whole_run(), vec![ended(End::Recovered)]].concat(),
            "has ended",
        ),
    ];
    for (what, events, expected) in table {
        let error = replay(events).map(|_| ()).unwrap_err();
        assert!(
            matches!(&error, Illegal::Transition { why, .. } if why.contains(expected)),
            "{what}: {error}"
        );
    }
}

#[test]
fn sequence_term_and_plan_are_checked() {
    let plan = plan();
    let good = lines(vec![accepted(&plan), started(0)]);
    let with = |change: fn(&mut Entry)| {
        let mut journal = good.clone();
        change(&mut journal[1]);
        State::replay(&plan, &journal).map(|_| ()).unwrap_err()
    };
    assert_eq!(
        with(|e| e.seq = 2),
        Illegal::Sequence {
            expected: 1,
            found: 2
        }
    );
    assert_eq!(
        with(|e| e.seq = 0),
        Illegal::Sequence {
            expected: 1,
            found: 0
        }
    );
    assert_eq!(
        with(|e| e.term = 0),
        Illegal::Term {
            seq: 1,
            term: 0,
            after: 1
        }
    );
    let newer = lines(vec![accepted(&plan), started(0)])
        .into_iter()
        .map(|mut e| {
            e.term += u64::from(e.seq);
            e
        });
    assert_eq!(
        State::replay(&plan, &newer.collect::<Vec<_>>())
            .unwrap()
            .term(),
        2
    );
    let first = State::replay(&plan, &lines(vec![started(0)]))
        .map(|_| ())
        .unwrap_err();
    assert!(
        matches!(first, Illegal::Transition { why, .. } if why.contains("no plan was accepted"))
    );
    let other = Event::Accepted {
        plan_hash: "0000000000000000".into(),
        authority: "policy".into(),
    };
    let first = State::replay(&plan, &lines(vec![other]))
        .map(|_| ())
        .unwrap_err();
    assert!(matches!(first, Illegal::Transition { why, .. } if why.contains("another plan")));
}

#[test]
fn a_refused_line_leaves_the_state_unchanged() {
    let plan = plan();
    let mut state = State::replay(&plan, &lines(vec![accepted(&plan), started(0)])).unwrap();
    let before = state.clone();
    for event in [
        started(0),
        completed(0),
        accepted(&plan),
        ended(End::Recovered),
        turned(),
    ] {
        let entry = Entry {
            seq: 2,
            at: start(),
            term: 1,
            by: "x".into(),
            event,
        };
        assert!(state.apply(&plan, &entry).is_err());
        assert_eq!(state, before);
    }
}

#[test]
fn every_event_survives_serialisation() {
    let plan = plan();
    let proof = ProofKind::KubeletHandshake {
        node: NODE.into(),
        no_user_since: start(),
        lease_renewed: start(),
    };
    let mut events = whole_run();
    events.extend([
        accepted(&plan),
        Event::Started {
            step: StepIx(2),
            intent: "detach".into(),
            proof: Some(proof),
            newest_job: Some(NewestJob::Job { id: "77".into() }),
        },
        Event::UnusedSince {
            seen: UnusedSince {
                at: start(),
                lease: None,
            },
        },
        outcome(1, Outcome::ObservedNotApplied { seen: "x".into() }),
        outcome(1, Outcome::Repeatable { why: "x".into() }),
        outcome(
            1,
            Outcome::Withheld {
                shut: Shut::NotLeader,
            },
        ),
        outcome(
            1,
            Outcome::Withheld {
                shut: Shut::Term {
                    expected: 1,
                    now: 2,
                },
            },
        ),
        outcome(
            1,
            Outcome::Withheld {
                shut: Shut::Mode { mode: Mode::DryRun },
            },
        ),
        outcome(
            1,
            Outcome::Withheld {
                shut: Shut::NotApproved { plan: "x".into() },
            },
        ),
        turned(),
        Event::UnwindStarted {
            why: UnwindReason::Deadline {
                step: StepIx(1),
                seconds: 60,
                waiting_for: "x".into(),
            },
        },
        Event::UnwindStarted {
            why: UnwindReason::Refused {
                step: StepIx(1),
                why: "x".into(),
            },
        },
        Event::UnwindStarted {
            why: UnwindReason::Failed {
                step: StepIx(1),
                why: "x".into(),
            },
        },
        Event::UnwindStarted {
            why: UnwindReason::TakenOver { what: "x".into() },
        },
        ended(End::Aborted),
        ended(End::Failed { why: "x".into() }),
        ended(End::Stuck { why: "x".into() }),
    ]);
    for entry in lines(events) {
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(
            serde_json::from_str::<Entry>(&text).unwrap(),
            entry,
            "{text}"
        );
    }
}

/// Records that were stored before the events got their present names are read, and stay as they were written.
#[test]
fn events_keep_their_stored_words() {
    let line = |event: &serde_json::Value| serde_json::json!({"seq": 1, "at": "2026-03-02T03:00:00Z", "term": 1, "by": "controller-0", "mark": event});
    let table = [
        (
            serde_json::json!({"mark": "noUser", "at": "2026-01-02T03:04:05Z", "lease": "2026-01-02T03:04:00Z"}),
            Event::UnusedSince {
                seen: UnusedSince {
                    at: "2026-01-02T03:04:05Z".parse().unwrap(),
                    lease: Some("2026-01-02T03:04:00Z".parse().unwrap()),
                },
            },
        ),
        (
            serde_json::json!({"mark": "turnedBack", "why": {"because": "aborted", "by": "ada"}}),
            turned(),
        ),
    ];
    for (stored, event) in table {
        let stored = line(&stored);
        let entry: Entry = serde_json::from_value(stored.clone()).unwrap();
        assert_eq!(entry.event, event);
        assert_eq!(serde_json::to_value(&entry).unwrap(), stored);
    }
}

/// Earlier versions wrote a withheld effect as one that was not applied, with the reason in words. Such a line stays what it was.
#[test]
fn a_withheld_effect_of_an_earlier_version_is_readable() {
    let why = "not issued: this process is not leader, or not for long enough to finish the effect";
    let line = serde_json::json!({"seq": 2, "at": "2026-03-02T03:00:00Z", "term": 1, "by": "controller-0",
        "mark": {"mark": "outcome", "step": 0, "outcome": {"outcome": "notApplied", "why": why, "retry": true}}});
    let entry: Entry = serde_json::from_value(line).unwrap();
    assert_eq!(
        entry.event,
        outcome(
            0,
            Outcome::NotApplied {
                why: why.into(),
                retry: true
            }
        )
    );
    let now = serde_json::to_value(outcome(
        0,
        Outcome::Withheld {
            shut: Shut::NotLeader,
        },
    ))
    .unwrap();
    assert_eq!(
        now["outcome"],
        serde_json::json!({"outcome": "withheld", "shut": {"because": "notLeader"}})
    );
}

#[test]
fn only_the_withheld_attempt_is_marked_withheld() {
    let shut = || {
        outcome(
            0,
            Outcome::Withheld {
                shut: Shut::NotLeader,
            },
        )
    };
    let journal = lines(vec![
        accepted(&plan()),
        started(0),
        shut(),
        started(0),
        outcome(0, not_applied()),
        started(0),
        outcome(0, unknown()),
        started(1),
        started(0),
    ]);
    let withheld: Vec<usize> = (0..12).filter(|ix| is_withheld(&journal, *ix)).collect();
    assert_eq!(withheld, [1]);
}
