//! Changed minds: a run that is not wanted any more turns back, and one that only puts back goes on to its end.

use super::walk::{QUIET, Walk, dead_node};
use reattach_core::evidence::ClaimFacts;
use reattach_core::journal::{End, Event, Outcome, UnwindReason, Withdrawal};
use reattach_core::policy::Mode;
use reattach_core::run::{Context, Effect, Next, PolicySays, Said, next, withdrawal};
use reattach_core::testkit::{Case, OTHER_INSTANCE, OTHER_NODE};

fn says(mode: Mode, power_off: bool) -> Said {
    let policy = PolicySays::Rules {
        policy: "everything".into(),
        mode,
        power_off,
    };
    Said {
        mode: Mode::Auto,
        approved: None,
        policy: Some(policy),
    }
}

fn why(walk: &Walk, said: &Said) -> Option<Withdrawal> {
    withdrawal(
        &walk.plan,
        &walk.state(),
        walk.case.evidence.at(walk.case.now),
        said,
    )
}

/// A phantom whose pod is held away: the first effect is done, the freeing ones are to come.
fn held() -> Walk {
    let case = Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE);
    let mut walk = Walk::new(case, QUIET);
    walk.answer(
        |e| {
            matches!(e, Effect::Hold).then(|| Outcome::Applied {
                detail: "200".into(),
            })
        },
        |_| {},
    );
    walk
}

#[test]
fn each_change_of_mind_has_its_own_withdrawal() {
    let walk = held();
    assert_eq!(why(&walk, &says(Mode::Auto, true)), None);
    let by_a_person = Said {
        mode: Mode::Auto,
        approved: None,
        policy: None,
    };
    assert_eq!(why(&walk, &by_a_person), None);
    for mode in [Mode::Observe, Mode::DryRun, Mode::Approve] {
        let less = Withdrawal::PolicyMode {
            policy: "everything".into(),
            mode,
        };
        assert_eq!(why(&walk, &says(mode, true)), Some(less));
    }
    let gone = Said {
        policy: Some(PolicySays::Nothing),
        ..by_a_person.clone()
    };
    assert!(matches!(
        why(&walk, &gone),
        Some(Withdrawal::NoPolicy { .. })
    ));
    let approved = |hash: Option<String>| Said {
        mode: Mode::Approve,
        approved: hash,
        ..by_a_person.clone()
    };
    assert_eq!(
        why(&walk, &approved(Some(walk.plan.hash.to_string()))),
        None
    );
    for other in [None, Some("0123456789abcdef".to_owned())] {
        assert!(matches!(
            why(&walk, &approved(other)),
            Some(Withdrawal::Approval { .. })
        ));
    }
    let mut out = held();
    out.case = out
        .case
        .clone()
        .claim(|c| c.opted_out = Some("claim default/data".into()));
    let what = Withdrawal::OptedOut {
        what: "claim default/data".into(),
    };
    assert_eq!(why(&out, &by_a_person), Some(what));
    // The workload's own list shows it first; another claim of the workload is none of this run's business.
    let listed = |name: &str| {
        let mut listed = held();
        listed.case = listed.case.clone().workload(|w| {
            let (_, own) = w.claims[0].clone();
            let out = own.map(|c| ClaimFacts {
                opted_out: Some("namespace default".into()),
                ..c
            });
            w.claims = match name {
                "redis-data" => vec![("redis-data".into(), out)],
                other => vec![w.claims[0].clone(), (other.into(), out)],
            };
        });
        why(&listed, &by_a_person)
    };
    assert_eq!(
        listed("redis-data"),
        Some(Withdrawal::OptedOut {
            what: "namespace default".into()
        })
    );
    assert_eq!(listed("redis-logs"), None);
    let mut going = held();
    going.case = going.case.clone().claim(|c| c.deleting = true);
    assert!(matches!(
        why(&going, &by_a_person),
        Some(Withdrawal::ClaimDeleted { .. })
    ));
}

#[test]
fn a_power_off_is_withdrawn_until_it_is_accepted() {
    let mut walk = Walk::new(dead_node(), QUIET);
    let never = says(Mode::Auto, false);
    assert!(matches!(
        why(&walk, &never),
        Some(Withdrawal::PowerOff { .. })
    ));
    walk.answer(
        |e| {
            matches!(e, Effect::PowerOff { .. }).then(|| Outcome::Applied {
                detail: "200".into(),
            })
        },
        |_| {},
    );
    assert_eq!(
        why(&walk, &never),
        None,
        "it is off already, and the rest needs no such permission"
    );
}

#[test]
fn a_withdrawn_run_unwinds_and_ends_aborted() {
    let mut walk = held();
    let recovery = Case::recovery();
    let observe = Withdrawal::PolicyMode {
        policy: "everything".into(),
        mode: Mode::Observe,
    };
    let ask = |walk: &Walk| {
        let cx = Context {
            withdrawn: Some(observe.clone()),
            ..walk.context(&recovery)
        };
        next(&walk.plan, &walk.state(), &walk.case.evidence, &cx)
    };
    let Next::Record(event) = ask(&walk) else {
        panic!("it goes on: {:?}", ask(&walk))
    };
    assert_eq!(
        event,
        Event::UnwindStarted {
            why: UnwindReason::Withdrawn {
                why: observe.clone()
            }
        }
    );
    walk.record(event);
    let written = serde_json::to_string(&walk.journal).unwrap();
    assert_eq!(
        serde_json::from_str::<Vec<reattach_core::journal::Entry>>(&written).unwrap(),
        walk.journal
    );
    assert_eq!(
        walk.run(|_, action| assert!(action.effect.puts_back(), "{action:?}")),
        End::Aborted
    );
}

#[test]
fn an_unwinding_run_is_not_withdrawn() {
    let case = Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE);
    let mut walk = Walk::new(case, QUIET);
    let lifts = |e: &Effect| matches!(e, Effect::Lift { .. });
    walk.answer(
        |e| {
            lifts(e).then(|| Outcome::Applied {
                detail: "200".into(),
            })
        },
        |_| {},
    );
    assert_eq!(why(&walk, &says(Mode::Observe, false)), None);
}
