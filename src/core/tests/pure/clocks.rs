//! Whose clock an age or an interval is measured on (S1): one process's, and never two leaders' or two machines'.

use super::walk::{QUIET, Walk, World};
use jiff::SignedDuration;
use reattach_core::evidence::Evidence;
use reattach_core::ids::NodeName;
use reattach_core::journal::{End, Event};
use reattach_core::proof::{ANSWER_GOOD_FOR, UnusedSince, answered_clean};
use reattach_core::run::{Effect, Next};
use reattach_core::stamp::Stamp;
use reattach_core::testkit::{Case, INSTANCE, NODE, OTHER_INSTANCE, OTHER_NODE, start};

/// A kubelet that keeps the volume in `volumesInUse`: only an agent's answer can tell that nothing uses it.
fn lingering(stuck: bool) -> Walk {
    let world = World {
        lingers: true,
        stuck,
        ..QUIET
    };
    Walk::new(
        Case::statefulset()
            .holdable()
            .with_node(OTHER_NODE, OTHER_INSTANCE),
        world,
    )
}

/// Takes the run on until `there`, at most 3,000 steps.
pub fn until(walk: &mut Walk, there: impl Fn(&Walk, &Next) -> bool) {
    for _ in 0..3_000 {
        if there(walk, &walk.ask()) {
            return;
        }
        if let Some(end) = walk.once() {
            panic!("{end:?}\n{}", walk.story());
        }
    }
    panic!("it never came to that\n{}", walk.story());
}

fn waits_for(said: &Next, what: &str) -> bool {
    matches!(said, Next::Wait { why, .. } if why.contains(what))
}

fn is_question(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::Challenge { .. }))
}

fn frees(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::DeleteAttachment { .. } | Effect::CloudDetach { .. }))
}

/// Another process leads; its clock shows so much more than the last one's.
fn another_leader(walk: &mut Walk, ahead: i64) {
    walk.term += 1;
    walk.clock_jumps(ahead);
}

fn questions(walk: &Walk) -> usize {
    walk.effects
        .iter()
        .filter(|e| matches!(e, Effect::Challenge { .. }))
        .count()
}

#[test]
fn no_wait_is_measured_across_two_leaders() {
    for ahead in [130, 300, -40] {
        let mut walk = lingering(false);
        until(&mut walk, |_, said| waits_for(said, "mount attempt"));
        let first = walk.state().unused_since().unwrap().at;
        another_leader(&mut walk, ahead);
        assert!(
            !is_question(&walk.ask()),
            "one second after {first} by the first leader's clock"
        );
        until(&mut walk, |_, said| is_question(said));
        let begun = walk.state().unused_since().unwrap().at;
        assert!(
            walk.case.now >= begun + SignedDuration::from_mins(2),
            "by the second leader's clock alone"
        );
        assert_eq!(walk.run(|_, _| {}), End::Recovered);
    }
}

/// What the agent answered to the first leader is of an age that the second cannot measure.
#[test]
fn an_answer_to_another_leader_is_asked_for_again() {
    for ahead in [-40, 0, 40] {
        let mut walk = lingering(false);
        until(&mut walk, |_, said| frees(said));
        assert_eq!(questions(&walk), 1);
        another_leader(&mut walk, ahead);
        assert!(!frees(&walk.ask()), "{:?}", walk.ask());
        until(&mut walk, |_, said| frees(said));
        assert_eq!(questions(&walk), 2);
        assert_eq!(walk.run(|_, _| {}), End::Recovered, "{}", walk.story());
    }
}

/// The node's clock is an hour ahead: what it says of itself is compared with what it says of itself.
#[test]
fn a_node_clock_that_is_ahead_does_not_stop_recovery() {
    let mut walk = Walk::new(
        Case::statefulset()
            .holdable()
            .with_node(OTHER_NODE, OTHER_INSTANCE),
        QUIET,
    );
    let verify = walk.plan.find(reattach_core::steps::StepKind::Verify);
    until(&mut walk, |walk, _| {
        let pods = walk.case.evidence.pods.shown().unwrap();
        walk.state().current() == verify && pods.iter().any(|p| p.ready)
    });
    let hour = SignedDuration::from_hours(1);
    walk.case = walk
        .case
        .clone()
        .pods(|pods| pods[0].ready_since = pods[0].ready_since.map(|t| t + hour));
    assert!(matches!(walk.ask(), Next::Wait { .. }));
    let renewed = walk.case.now + hour + SignedDuration::from_secs(9);
    walk.case = walk
        .case
        .clone()
        .node_named(OTHER_NODE, |n| n.lease_renewed = Some(renewed));
    assert!(
        matches!(walk.ask(), Next::Record(Event::Completed { .. })),
        "{:?}",
        walk.ask()
    );
}

/// The cloud was busy for longer than an answer counts.
#[test]
fn an_answer_that_became_too_old_is_asked_for_again() {
    let mut walk = lingering(true);
    until(
        &mut walk,
        |_, said| matches!(said, Next::Act(a) if matches!(a.effect, Effect::CloudDetach { .. })),
    );
    let asked = questions(&walk);
    walk.clock_jumps(ANSWER_GOOD_FOR.as_secs() + 1);
    let said = walk.ask();
    assert!(is_question(&said), "{said:?}\n{}", walk.story());
    until(&mut walk, |_, said| frees(said));
    assert_eq!(questions(&walk), asked + 1);
}

/// A pod that is seen after the question voids it, and the question comes again once the pod is gone.
#[test]
fn a_restarted_handshake_reopens_the_question() {
    let mut walk = lingering(false);
    until(&mut walk, |_, said| frees(said));
    another_leader(&mut walk, 0);
    until(&mut walk, |walk, _| {
        walk.state().current() == walk.plan.find(reattach_core::steps::StepKind::Challenge)
    });
    let last = &walk.journal.last().unwrap().event;
    assert!(
        matches!(
            last,
            Event::UnusedSince {
                seen: UnusedSince { lease: Some(_), .. }
            }
        ),
        "{last:?}"
    );
}

fn at_zero() -> Evidence {
    let case = Case::deployment().pods(Vec::clear).workload(|w| {
        w.replicas = 0;
        let (workload, recovery) = (w.workload.uid.clone(), Case::recovery());
        w.stamp = Some(Ok(Stamp {
            replicas: 1,
            workload,
            recovery,
            at: start(),
        }));
    });
    case.evidence
}

/// A ground's age is counted from the question, since the scan began after it, and the proof is as old as its oldest ground.
#[test]
fn a_proof_is_as_old_as_the_answer_it_rests_on() {
    let ago = |seconds| start() - SignedDuration::from_secs(seconds);
    let no_user = UnusedSince {
        at: ago(3_400),
        lease: Some(ago(3_404)),
    };
    let made = |e: &Evidence, asked| {
        answered_clean(
            e.at(start()),
            &NODE.into(),
            &INSTANCE.into(),
            &no_user,
            ago(asked),
            &Case::recovery(),
        )
    };
    for asked in [0, 30, 120] {
        let proof = made(&at_zero(), asked).unwrap();
        assert_eq!(proof.age(start()), SignedDuration::from_secs(asked));
    }
    for asked in [-1, 121, 3_001] {
        assert!(made(&at_zero(), asked).is_err(), "asked {asked} s ago");
    }
    // One second before a mount attempt that was under way has to be over.
    let early = UnusedSince {
        at: ago(149),
        ..no_user.clone()
    };
    let asked = |asked| {
        answered_clean(
            at_zero().at(start()),
            &NODE.into(),
            &INSTANCE.into(),
            &early,
            ago(asked),
            &Case::recovery(),
        )
    };
    assert!(asked(29).is_ok());
    assert!(asked(30).unwrap_err().to_string().contains("mount attempt"));
    // The machine's own clock: the look was long before its kubelet's last sign of life.
    let mut old = at_zero();
    old.answers
        .get_mut(&NodeName::from(NODE))
        .unwrap()
        .scanned_at = ago(3_000);
    let why = made(&old, 30).unwrap_err().to_string();
    assert!(
        why.contains("2996 s before its kubelet's last sign of life"),
        "{why}"
    );
}
