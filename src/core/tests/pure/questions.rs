//! When the holder's agent is asked to look at its machine anew, how often, and when not at all.

use super::clocks::until;
use super::identity::living_orphan;
use super::snapshots::end_of;
use super::walk::{QUIET, Walk, World, orphan};
use jiff::SignedDuration;
use reattach_core::journal::{Event, UnwindReason};
use reattach_core::proof::ATTEMPT;
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, OTHER_INSTANCE, OTHER_NODE, volume_name};

fn phantom() -> Case {
    Case::statefulset()
        .holdable()
        .with_node(OTHER_NODE, OTHER_INSTANCE)
}

fn asks(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::Challenge { .. }))
}

fn detaches(said: &Next) -> bool {
    matches!(said, Next::Act(a) if matches!(a.effect, Effect::CloudDetach { .. }))
}

fn waits_for_the_attempt(said: &Next) -> bool {
    matches!(said, Next::Wait { why, .. } if why == "a mount attempt may still be under way")
}

/// The moment from which a mount attempt of the last pod is over.
fn attempt_over(walk: &Walk) -> jiff::Timestamp {
    walk.state()
        .unused_since()
        .expect("the pods' end was seen")
        .at
        + ATTEMPT
}

/// A phantom's run that waits for a driver which cannot detach; kubelet has let go.
fn driver_stuck() -> Walk {
    let mut walk = Walk::new(
        phantom(),
        World {
            stuck: true,
            ..QUIET
        },
    );
    until(&mut walk, |walk, _| {
        walk.state().current() == walk.plan.find(StepKind::AwaitDetached)
    });
    walk.case = walk.case.clone().node(|n| n.volumes_in_use.clear());
    walk
}

/// The step that asks is done where an answer decides, and skipped with the reason where it does not.
#[test]
fn the_agent_is_asked_where_its_answer_decides() {
    let lingers = World {
        lingers: true,
        ..QUIET
    };
    let answered = "the agent's answer shows";
    for (mut walk, words) in [
        (driver_stuck(), "kubelet does not report the volume in use"),
        (Walk::new(phantom(), lingers), answered),
        (Walk::new(living_orphan(), QUIET), answered),
        (
            Walk::new(orphan(), QUIET),
            "the holder has no Node whose kubelet is alive",
        ),
    ] {
        walk.run(|_, _| {});
        let end = end_of(&walk, StepKind::Challenge);
        let fits = match end {
            Some(Event::Completed { seen, .. }) => words == answered && seen.contains(words),
            Some(Event::Skipped { why, .. }) => why == words,
            _ => false,
        };
        assert!(fits, "{words}: {end:?}\n{}", walk.story());
    }
}

/// Asked at the first moment at which the answer counts, and again half a minute after a question without a
/// clean answer.
#[test]
fn an_agent_that_does_not_answer_is_asked_every_half_minute() {
    let silent = World {
        lingers: true,
        holder_says: Some(|| None),
        ..QUIET
    };
    let mut walk = Walk::new(phantom(), silent);
    until(&mut walk, |_, said| asks(said));
    assert_eq!(walk.case.now, attempt_over(&walk));
    for _ in 0..3 {
        let asked = walk.case.now;
        walk.once();
        assert!(!asks(&walk.ask()), "twice at once: {:?}", walk.ask());
        until(&mut walk, |_, said| asks(said));
        assert_eq!(walk.case.now, asked + SignedDuration::from_secs(30));
    }
}

/// An answer that is not there any more at the detach is asked for again: never twice within half a minute,
/// and never more often than the journal has room for.
#[test]
fn a_lost_answer_is_asked_for_a_limited_number_of_times() {
    let mut walk = Walk::new(living_orphan(), QUIET);
    let questions = |walk: &Walk| walk.state().attempts_of(&walk.plan, StepKind::Challenge);
    for n in 1..=60 {
        until(&mut walk, |_, said| detaches(said));
        assert_eq!(questions(&walk), n);
        walk.case.evidence.answers.clear();
        if n == 60 {
            break;
        }
        let asked = walk.state().challenged_at(&walk.plan).unwrap();
        until(&mut walk, |_, said| asks(said));
        assert_eq!(
            walk.case.now,
            asked + SignedDuration::from_secs(30),
            "after question {n}"
        );
        if n == 1 {
            // An orphan's kubelet reports no use of the volume: there is no mount attempt to wait for.
            assert!(walk.case.now < attempt_over(&walk));
        }
        walk.once();
    }
    for _ in 0..119 {
        walk.pass(30);
        assert!(matches!(walk.ask(), Next::Wait { .. }), "{:?}", walk.ask());
    }
    walk.pass(30);
    let late = walk.ask();
    let turned = matches!(
        late,
        Next::Record(Event::UnwindStarted {
            why: UnwindReason::Deadline { .. }
        })
    );
    assert!(turned, "the step's deadline ends the wait: {late:?}");
}

/// Where the volume is back in `volumesInUse` at the detach, the question waits for the end of the mount
/// attempt: an answer from before says nothing of it.
#[test]
fn no_question_is_asked_during_a_mount_attempt() {
    let mut walk = driver_stuck();
    until(&mut walk, |_, said| detaches(said));
    let over = attempt_over(&walk);
    walk.case = walk
        .case
        .clone()
        .node(|n| n.volumes_in_use = vec![volume_name()]);
    while walk.case.now < over {
        let said = walk.ask();
        assert!(waits_for_the_attempt(&said), "{said:?}\n{}", walk.story());
        walk.pass(1);
    }
    assert!(asks(&walk.ask()), "{:?}", walk.ask());
}
