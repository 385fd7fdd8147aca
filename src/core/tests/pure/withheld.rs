//! Effects that the gate did not let out: nothing was sent, nothing was refused, and no limit of refused tries counts them.

use super::late::settled;
use super::steps::{is_completed, phantom, reached};
use super::unwinding::{before, lifts, opens, powers_on, untaints};
use super::walk::{ALL, dead_node, dead_node_off, detach_error, phantom_without_policy};
use reattach_core::journal::{End, Outcome, Shut};
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::Case;

fn withheld() -> Outcome {
    Outcome::Withheld {
        shut: Shut::NotLeader,
    }
}

/// The target was never asked, so there is nothing that a person has to do in its place: each mark is put back once the gate
/// opens, and the machine is powered on.
#[test]
fn a_shut_gate_does_not_end_the_run() {
    let rows: [(Case, fn(&Effect) -> bool); 4] = [
        (phantom(), lifts),
        (phantom_without_policy(), opens),
        (dead_node_off(), untaints),
        (dead_node(), powers_on),
    ];
    for (case, kind) in rows {
        let (mut walk, mut shut) = (before(case, kind), 0);
        let end = loop {
            match settled(&mut walk, Some("jane"), None) {
                Next::Act(action) if shut < 100 => {
                    assert!(kind(&action.effect), "{action:?}");
                    shut += 1;
                    walk.issue(action, withheld());
                }
                Next::Act(action) => {
                    walk.react(&action.effect);
                    walk.issue(
                        action,
                        Outcome::Applied {
                            detail: "200".into(),
                        },
                    );
                    walk.pass(1);
                }
                Next::Wait { until, .. } => {
                    walk.pass(until.duration_since(walk.case.now).as_secs().max(1));
                }
                Next::Done(end) => break end,
                Next::Record(event) => panic!("{event:?}"),
            }
        };
        assert_eq!((shut, end), (100, End::Aborted), "{}", walk.story());
        assert!(!walk.state().left_off(&walk.plan), "{}", walk.story());
    }
}

/// external-attacher is told three times at most, and it was told nothing yet.
#[test]
fn a_withheld_requeue_is_still_due() {
    let requeues = |e: &Effect| matches!(e, Effect::Requeue { .. });
    let mut walk = reached(detach_error(), ALL, StepKind::Requeue);
    for _ in 0..5 {
        walk.answer(|e| requeues(e).then(withheld), |_| {});
        assert_eq!(
            walk.state().current(),
            walk.plan.find(StepKind::Requeue),
            "{}",
            walk.story()
        );
    }
    walk.answer(
        |e| {
            requeues(e).then(|| Outcome::Applied {
                detail: "200".into(),
            })
        },
        |_| {},
    );
    assert!(is_completed(&walk.ask()), "{:?}", walk.ask());
}
