//! A run that turned back: what it still waits for, what it puts back, how often it tries, and when it gives up.

use super::awaiting::after;
use super::clocks::until;
use super::late::{detach_unheard, leave_the_cluster, settled, shutdown};
use super::lost_replies::{begun, off_stays_off, scaled_and_aborted};
use super::steps::{is_wait, pending, phantom, probe, refused, told};
use super::walk::{
    ALL, QUIET, Walk, change, dead_node, dead_node_off, orphan, phantom_without_policy,
};
use super::world::{Mark as Stamped, World, at, plan};
use jiff::SignedDuration;
use reattach_core::cloud::{InstanceState, JobStatus};
use reattach_core::evidence::Word;
use reattach_core::fact::Known;
use reattach_core::journal::{End, Event, Outcome};
use reattach_core::run::{Effect, Left, Next, without_journal};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, INSTANCE};

fn busy() -> Outcome {
    refused("busy", true)
}

fn puts_back(said: &Next) -> bool {
    matches!(said, Next::Act(a) if a.effect.puts_back())
}

fn at_zero() -> World {
    World {
        replicas: 0,
        stamp: Stamped::Ours,
        ..World::new(false)
    }
}

/// What follows these lines, which are of second 0, in such a world.
fn unwinding(world: &World, events: Vec<Event>, change: impl Fn(&mut Case)) -> Next {
    let mut case = Case {
        evidence: world.evidence(),
        now: at(world.now),
    };
    change(&mut case);
    after(plan(), events, &case, at(0))
}

/// What was read before the run turned back may be from before the scale to zero.
#[test]
fn a_restore_uses_a_workload_read_after_unwinding_began() {
    for (seconds, restores) in [(-1, false), (0, true), (1, true)] {
        let world = World {
            now: 5,
            ..at_zero()
        };
        let read = |c: &mut Case| c.evidence.workload.at = at(seconds);
        let said = unwinding(&world, scaled_and_aborted(), read);
        assert_eq!(puts_back(&said), restores, "read at {seconds} s: {said:?}");
        assert!(
            restores || is_wait(&said, "the workload must be read again"),
            "{said:?}"
        );
    }
}

/// Only a workload at zero whose stamp cannot be read needs a person. Whatever else others made of it stands.
#[test]
fn a_run_without_our_stamp_left_ends() {
    for (stamp, replicas, stuck) in [
        (Stamped::Edited, 0, true),
        (Stamped::Edited, 1, false),
        (Stamped::None, 0, false),
        (Stamped::None, 1, false),
        (Stamped::Another, 0, false),
    ] {
        let world = World {
            stamp: stamp.clone(),
            replicas,
            ..World::new(false)
        };
        let said = unwinding(&world, scaled_and_aborted(), |_| {});
        let Next::Record(Event::Ended { end }) = &said else {
            panic!("{stamp:?}, {replicas}: {said:?}")
        };
        assert_eq!(
            matches!(end, End::Stuck { .. }),
            stuck,
            "{stamp:?}, {replicas}: {end:?}"
        );
        assert!(
            stuck || *end == End::Aborted,
            "{stamp:?}, {replicas}: {end:?}"
        );
    }
    let said = unwinding(&at_zero(), scaled_and_aborted(), |c| {
        c.evidence.workload.value = Known::Absent
    });
    assert_eq!(
        said,
        Next::Record(Event::Ended { end: End::Aborted }),
        "the workload was deleted"
    );
}

#[test]
fn a_refused_restore_is_retried_after_a_second() {
    let step = plan().find(StepKind::Restore).unwrap();
    let refused = [
        begun(StepKind::Restore),
        Event::Outcome {
            step,
            outcome: busy(),
        },
    ];
    for (now, tries) in [(0, false), (1, true), (60, true)] {
        let events = scaled_and_aborted()
            .into_iter()
            .chain(refused.clone())
            .collect();
        let said = unwinding(&World { now, ..at_zero() }, events, |_| {});
        assert_eq!(puts_back(&said), tries, "after {now} s: {said:?}");
    }
}

/// A run that is about to issue its first effect of this kind.
pub fn before(case: Case, kind: fn(&Effect) -> bool) -> Walk {
    let mut walk = Walk::with(case, QUIET, ALL);
    until(
        &mut walk,
        |_, said| matches!(said, Next::Act(a) if kind(&a.effect)),
    );
    walk
}

pub fn lifts(e: &Effect) -> bool {
    matches!(e, Effect::Lift { .. })
}

pub fn opens(e: &Effect) -> bool {
    matches!(e, Effect::OpenNode { .. })
}

pub fn untaints(e: &Effect) -> bool {
    matches!(e, Effect::Untaint { .. })
}

pub fn powers_on(e: &Effect) -> bool {
    matches!(e, Effect::PowerOn { .. })
}

/// The journal has to fit into one object: it takes sixty tries. The end says what the API server answered and what a
/// person types; a machine that stays off is told of by the run's last message.
#[test]
fn an_undo_is_retried_sixty_times_before_calling_a_person() {
    let rows: [(Case, fn(&Effect) -> bool, &str); 4] = [
        (
            phantom(),
            lifts,
            "take the label reattach.dev/hold off the VolumeRecovery and the gate off",
        ),
        (
            phantom_without_policy(),
            opens,
            "kubectl taint node lke-1 hold.reattach.dev/",
        ),
        (
            dead_node_off(),
            untaints,
            "kubectl taint node lke-1 node.kubernetes.io/out-of-service-",
        ),
        (dead_node(), powers_on, ""),
    ];
    for (case, kind, by_hand) in rows {
        let (mut walk, mut tries) = (before(case, kind), 0);
        let end = loop {
            match settled(&mut walk, Some("jane"), None) {
                Next::Act(action) => {
                    assert!(kind(&action.effect), "{action:?}");
                    tries += 1;
                    assert!(tries < 100, "no end of tries\n{}", walk.story());
                    walk.issue(action, busy());
                }
                Next::Wait { until, .. } => {
                    walk.pass(until.duration_since(walk.case.now).as_secs().max(1));
                }
                Next::Done(end) => break end,
                Next::Record(event) => panic!("{event:?}"),
            }
        };
        assert_eq!(tries, 60, "{end:?}");
        match end {
            End::Stuck { why } => {
                assert!(
                    why.contains("in 60 tries (busy)") && why.contains(by_hand),
                    "{why}"
                );
            }
            end => {
                assert_eq!((end, by_hand), (End::Aborted, ""));
                assert!(walk.state().left_off(&walk.plan));
            }
        }
    }
}

/// A detach that the cloud refused for good is under way nowhere: nothing waits for its end.
#[test]
fn a_refused_detach_is_not_waited_for() {
    let detaches = |e: &Effect| matches!(e, Effect::CloudDetach { .. });
    let mut walk = Walk::answered(orphan(), detaches, refused("403", false));
    walk.pass(1);
    let said = settled(&mut walk, None, None);
    assert!(puts_back(&said), "{said:?}\n{}", walk.story());
}

/// The cloud was busy, and the driver's detach freed the volume: an order that was refused is under way nowhere, though the
/// holder has the volume again.
#[test]
fn an_unneeded_busy_detach_is_not_waited_for() {
    let mut walk = Walk::new(
        phantom(),
        super::walk::World {
            stuck: true,
            ..QUIET
        },
    );
    walk.answer(
        |e| matches!(e, Effect::CloudDetach { .. }).then(busy),
        |walk| walk.pass(5),
    );
    walk.case = walk
        .case
        .clone()
        .attachments(Vec::clear)
        .cloud(|c| c.holders.clear())
        .node(|n| {
            n.volumes_in_use.clear();
            n.volumes_attached.clear();
        });
    let said = settled(&mut walk, None, None);
    let Next::Act(action) = said else {
        panic!("{said:?}\n{}", walk.story())
    };
    assert!(lifts(&action.effect), "{action:?}");
    walk.issue(
        action,
        Outcome::Applied {
            detail: "200".into(),
        },
    );
    walk.case = walk
        .case
        .clone()
        .cloud(|c| c.holders = vec![INSTANCE.into()]);
    pending(&mut walk, false);
    let said = settled(&mut walk, Some("jane"), None);
    assert!(
        !is_wait(&said, "--nothing-under-way"),
        "{said:?}\n{}",
        walk.story()
    );
}

/// The first detach got no reply, a person's word ended the wait, and the second was answered "busy": that may be the first
/// one, so an abort waits for the job.
#[test]
fn an_abort_waits_for_a_busy_detach_after_a_lost_one() {
    let mut walk = detach_unheard();
    let word = Word {
        by: "grace".into(),
        reason: "support looked".into(),
        at: walk.case.now,
    };
    let Next::Act(again) = settled(&mut walk, None, Some(&word)) else {
        panic!("{}", walk.story())
    };
    assert!(
        matches!(again.effect, Effect::CloudDetach { .. }),
        "{again:?}"
    );
    walk.pass(1);
    walk.issue(again, busy());
    pending(&mut walk, true);
    let said = settled(&mut walk, Some("jane"), Some(&word));
    assert!(
        is_wait(&said, "the detach is under way at the cloud"),
        "{said:?}\n{}",
        walk.story()
    );
    pending(&mut walk, false);
    walk.case = walk.case.clone().cloud(|c| c.holders.clear());
    let said = settled(&mut walk, Some("jane"), Some(&word));
    assert!(puts_back(&said), "{said:?}\n{}", walk.story());
}

/// A run whose power-off was accepted and does not show in the provider's history yet.
fn ordered_off() -> Walk {
    told(dead_node(), |e| matches!(e, Effect::PowerOff { .. }))
}

fn instance(walk: &mut Walk, state: Option<InstanceState>) {
    let fact = walk.instance();
    match state {
        Some(state) => change(fact, |i| i.state = state),
        None => fact.value = Known::Absent,
    }
}

/// What the machine says to an abort so many seconds ago, for an instance in this state; `None`: the cloud finds none.
fn aborted(walk: &mut Walk, seconds: i64, state: Option<InstanceState>) -> Next {
    settled(walk, Some("jane"), None);
    walk.pass(seconds);
    instance(walk, state);
    settled(walk, Some("jane"), None)
}

/// A machine that still runs may be about to stop. One that is off is powered on, and one that is gone is left alone.
#[test]
fn power_on_waits_for_the_ordered_power_off() {
    use InstanceState::{Gone, Off, Running, Stopping};
    #[derive(Debug)]
    enum Says {
        Word,
        StillRuns,
        OnItsWay,
        On,
        Ends,
    }
    for (stays_off, state, seconds, says) in [
        (false, Some(Running), 1, Says::Word),
        (false, Some(Running), 3_600, Says::Word),
        (true, Some(Running), 1, Says::StillRuns),
        (true, Some(Running), 59, Says::StillRuns),
        (true, Some(Running), 60, Says::Ends),
        (true, Some(Running), 3_600, Says::Ends),
        (false, Some(Off), 1, Says::On),
        (true, Some(Off), 1, Says::On),
        (false, Some(Stopping), 1, Says::OnItsWay),
        (false, Some(Gone), 1, Says::Ends),
        (false, None, 1, Says::Ends),
    ] {
        let mut walk = ordered_off();
        off_stays_off(&mut walk, stays_off);
        let said = aborted(&mut walk, seconds, state.clone());
        let fits = match says {
            Says::Word => is_wait(&said, "kubectl reattach declare --nothing-under-way"),
            Says::StillRuns => is_wait(&said, "was ordered off and still runs"),
            Says::OnItsWay => is_wait(&said, "is on its way to off"),
            Says::On => matches!(&said, Next::Act(a) if powers_on(&a.effect)),
            Says::Ends => said == Next::Done(End::Aborted),
        };
        assert!(
            fits,
            "{stays_off}, {state:?} after {seconds} s: {says:?}, and not {said:?}"
        );
    }
}

/// A person said that nothing is under way. Where nothing leads to the cloud any more, nobody is left to power it on.
#[test]
fn after_a_persons_statement_an_off_machine_is_powered_on() {
    for reachable in [true, false] {
        let mut walk = ordered_off();
        instance(&mut walk, Some(InstanceState::Off));
        if !reachable {
            leave_the_cluster(&mut walk);
            walk.case.evidence.cloud_id = None;
        }
        let word = Word {
            by: "grace".into(),
            reason: "I looked".into(),
            at: walk.case.now,
        };
        let said = settled(&mut walk, Some("jane"), Some(&word));
        match reachable {
            true => assert!(
                matches!(&said, Next::Act(a) if powers_on(&a.effect)),
                "{said:?}"
            ),
            false => {
                assert_eq!(said, Next::Done(End::Aborted), "{}", walk.story());
                assert!(walk.state().left_off(&walk.plan));
            }
        }
    }
}

#[test]
fn a_busy_cloud_is_asked_again_to_power_on() {
    let mut walk = ordered_off();
    shutdown(&mut walk, JobStatus::Finished);
    instance(&mut walk, Some(InstanceState::Off));
    for pause in [1, 2, 4] {
        let said = settled(&mut walk, Some("jane"), None);
        let Next::Act(action) = said else {
            panic!("{said:?}\n{}", walk.story())
        };
        assert!(powers_on(&action.effect), "{action:?}");
        walk.issue(action, busy());
        for seconds in 0..pause {
            walk.pass(i64::from(seconds > 0));
            let said = settled(&mut walk, Some("jane"), None);
            assert!(
                is_wait(&said, "powering on is tried again: busy"),
                "{seconds} of {pause} s: {said:?}"
            );
        }
        walk.pass(1);
    }
    walk.pass(60);
    let said = settled(&mut walk, Some("jane"), None);
    assert!(
        matches!(&said, Next::Act(a) if powers_on(&a.effect)),
        "{said:?}"
    );
}

/// What is put back next of a run whose journal takes no more lines.
fn left(walk: &Walk, labelled: bool) -> Left {
    let recovery = Case::recovery();
    let cx = walk.context(&recovery);
    let since = walk.case.now - SignedDuration::from_secs(1);
    without_journal(
        &walk.plan,
        &walk.state(),
        &walk.case.evidence,
        &cx,
        since,
        labelled,
    )
}

/// Without a journal a mark is taken off while it is seen, and not again once it is off.
#[test]
fn unwinding_without_a_journal_removes_each_mark() {
    let of = |left: Left, kind: fn(&Effect) -> bool| match left {
        Left::Act(action) if kind(&action.effect) => true,
        Left::Nothing => false,
        other => panic!("{other:?}"),
    };
    for (labelled, gated) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut walk = before(phantom(), lifts);
        walk.case = walk
            .case
            .clone()
            .pods(|all| all.iter_mut().for_each(|p| p.held = gated));
        probe(&mut walk, Some(false));
        assert_eq!(
            of(left(&walk, labelled), lifts),
            labelled || gated,
            "label {labelled}, gate {gated}"
        );
    }
    let mut closed = before(phantom_without_policy(), opens);
    assert!(of(left(&closed, false), opens));
    closed.case = closed.case.clone().node(|n| n.taints.clear());
    assert!(!of(left(&closed, false), opens));
    let mut tainted = before(dead_node_off(), untaints);
    assert!(of(left(&tainted, false), untaints));
    tainted.case = tainted
        .case
        .clone()
        .node(|n| n.out_of_service_by_us = false);
    assert!(!of(left(&tainted, false), untaints));
}

/// An order to the cloud is never given without a line about it.
#[test]
fn unwinding_without_a_journal_powers_no_machine_on() {
    let left = left(&before(dead_node(), powers_on), false);
    assert!(
        matches!(&left, Left::Person { why } if why.contains("needs the journal")),
        "{left:?}"
    );
}
