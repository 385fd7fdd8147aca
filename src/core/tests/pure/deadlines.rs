//! The second in which a step is too late, and what its last line says (S5).

use super::clocks::until;
use super::steps::told;
use super::walk::{QUIET, Walk, dead_node};
use reattach_core::journal::{Event, Outcome, UnwindReason};
use reattach_core::run::{Effect, Next};
use reattach_core::testkit::{Case, OTHER_INSTANCE, OTHER_NODE};

/// A wait that went on in the second of the deadline would end in that second, and be made again without a pause.
#[test]
fn a_wait_ends_in_the_second_of_the_deadline() {
    let case = Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE);
    let mut walk = told(case, |e| matches!(e, Effect::Hold));
    walk.clock_jumps(59);
    let said = walk.ask();
    assert!(
        matches!(&said, Next::Wait { until, .. } if *until > walk.case.now),
        "{said:?}"
    );
    walk.clock_jumps(1);
    let said = walk.ask();
    let over = matches!(
        said,
        Next::Record(Event::UnwindStarted {
            why: UnwindReason::Deadline { seconds: 60, .. }
        })
    );
    assert!(over, "{said:?}");
}

/// An effect that was tried until the deadline failed for its own reason, and that is what a person needs to read.
#[test]
fn an_effect_that_is_too_late_names_the_last_refusal() {
    for refusals in [0, 1] {
        let mut walk = Walk::new(dead_node(), QUIET);
        let powers_off = |e: &Effect| matches!(e, Effect::PowerOff { .. });
        until(
            &mut walk,
            |_, said| matches!(said, Next::Act(a) if powers_off(&a.effect)),
        );
        for _ in 0..refusals {
            let busy = || Outcome::NotApplied {
                why: "the machine is locked".into(),
                retry: true,
            };
            walk.answer(|e| powers_off(e).then(busy), |_| {});
        }
        walk.clock_jumps(299);
        assert!(
            matches!(walk.ask(), Next::Act(a) if powers_off(&a.effect)),
            "{:?}",
            walk.ask()
        );
        walk.clock_jumps(1);
        let said = format!("{:?}", walk.ask());
        let why = if refusals > 0 {
            "the machine is locked"
        } else {
            "no leader was there to start it"
        };
        assert!(said.starts_with("Record") && said.contains(why), "{said}");
    }
}
