//! The second in which a step is too late, and what its last line says (S5).

use super::clocks::until;
use super::steps::told;
use super::walk::{QUIET, Walk, dead_node};
use jiff::SignedDuration;
use reattach_core::evidence::Evidence;
use reattach_core::fact::{Fact, Source};
use reattach_core::journal::{Event, Outcome, UnwindReason};
use reattach_core::run::{Context, Effect, Next, Unattended, next};
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
            "it was never started"
        };
        assert!(said.starts_with("Record") && said.contains(why), "{said}");
    }
}

/// A deadline is later by the time in which nobody could act, and by no more.
#[test]
fn time_in_which_nobody_could_act_does_not_count() {
    let mut walk = Walk::new(dead_node(), QUIET);
    let powers_off = |e: &Effect| matches!(e, Effect::PowerOff { .. });
    until(
        &mut walk,
        |_, said| matches!(said, Next::Act(a) if powers_off(&a.effect)),
    );
    walk.clock_jumps(300 + 75);
    let recovery = Case::recovery();
    let said = |unattended: i64| {
        let cx = Context {
            unattended: SignedDuration::from_secs(unattended),
            ..walk.context(&recovery)
        };
        next(&walk.plan, &walk.state(), &walk.case.evidence, &cx)
    };
    assert!(matches!(said(76), Next::Act(_)), "{:?}", said(76));
    assert!(matches!(said(75), Next::Record(_)), "{:?}", said(75));
}

#[test]
fn only_time_between_two_looks_that_could_act_counts() {
    let walk = Walk::new(dead_node(), QUIET);
    let entered = walk.state().entered_at().expect("a step");
    let calm = walk.case.evidence.clone();
    let mut outage = calm.clone();
    outage.cloud_volume = Fact::away("503", Source::Cloud("linode".into()), walk.case.now);
    let state = walk.state();
    let later = |seconds: i64| entered + SignedDuration::from_secs(seconds);
    let secs = SignedDuration::from_secs;
    let mut counted = Unattended::default();
    assert_eq!(
        counted.look(&state, &calm, later(75)),
        secs(75),
        "no leader for 75 s"
    );
    assert_eq!(
        counted.look(&state, &calm, later(85)),
        secs(75),
        "10 s were attended"
    );
    assert_eq!(
        counted.look(&state, &outage, later(95)),
        secs(85),
        "the cloud is away"
    );
    assert_eq!(
        counted.look(&state, &outage, later(115)),
        secs(105),
        "still"
    );
    assert_eq!(
        counted.look(&state, &calm, later(125)),
        secs(115),
        "it is back"
    );
    assert_eq!(counted.look(&state, &calm, later(130)), secs(115));
    counted.away();
    assert_eq!(
        counted.look(&state, &calm, later(150)),
        secs(135),
        "the API server was away"
    );
    assert_eq!(
        counted.look(&state, &calm, later(300)),
        secs(285),
        "the process was stopped"
    );
    assert_eq!(
        counted.look(&state, &calm, later(290)),
        secs(285),
        "a clock that was set back"
    );
    let mut next_process = Unattended::default();
    assert_eq!(next_process.look(&state, &calm, later(400)), secs(400));
    let refused = Fact::unknown("401", Source::Cloud("linode".into()), walk.case.now);
    let denied = Evidence {
        cloud_volume: refused,
        ..calm
    };
    assert_eq!(
        next_process.look(&state, &denied, later(410)),
        secs(400),
        "a refusal is an answer"
    );
}
