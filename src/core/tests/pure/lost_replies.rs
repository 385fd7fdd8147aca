//! An effect whose reply was lost: which facts show whether it was applied, and what is waited for where none does.

use super::awaiting::after;
use super::clocks::until;
use super::late::{asked, detach_unheard, leave_the_cluster, power_off_unheard, unheard};
use super::steps::{is_wait, pending};
use super::walk::{Walk, change, dead_node};
use super::world::{Mark as Stamped, World, at, plan};
use jiff::SignedDuration;
use reattach_core::cloud::{CloudJob, InstanceState, JobKind, JobStatus};
use reattach_core::evidence::Word;
use reattach_core::fact::{Fact, Known, Source};
use reattach_core::ids::InstanceId;
use reattach_core::journal::{Event, Outcome, UnwindReason};
use reattach_core::run::{Effect, Next};
use reattach_core::steps::StepKind;
use reattach_core::testkit::{Case, INSTANCE, OTHER_INSTANCE};

/// Whether the machine records that the effect was applied. `None`: it records nothing yet.
fn observed(said: &Next) -> Option<bool> {
    match said {
        Next::Record(Event::Outcome {
            outcome: Outcome::ObservedApplied { .. },
            ..
        }) => Some(true),
        Next::Record(Event::Outcome {
            outcome: Outcome::ObservedNotApplied { .. },
            ..
        }) => Some(false),
        Next::Wait { .. } => None,
        other => panic!("{other:?}"),
    }
}

/// The sentence names the command that ends the wait.
fn waits_for_a_word(said: &Next) -> bool {
    is_wait(said, "kubectl reattach declare --nothing-under-way")
}

pub fn begun(kind: StepKind) -> Event {
    Event::Started {
        step: plan().find(kind).unwrap(),
        intent: "scale".into(),
        proof: None,
        newest_job: None,
    }
}

/// The journal of a scale to zero that was applied, in a run that turned back.
pub fn scaled_and_aborted() -> Vec<Event> {
    let outcome = Outcome::Applied {
        detail: "200".into(),
    };
    vec![
        begun(StepKind::ScaleToZero),
        Event::Outcome {
            step: plan().find(StepKind::ScaleToZero).unwrap(),
            outcome,
        },
        Event::UnwindStarted {
            why: UnwindReason::Aborted { by: "jane".into() },
        },
    ]
}

/// What the machine says of a scale to zero, and of a restore, whose replies were lost.
fn of_scaling(world: &World, change: impl Fn(&mut Case)) -> [Option<bool>; 2] {
    let mut case = Case {
        evidence: world.evidence(),
        now: at(world.now),
    };
    change(&mut case);
    let restore = scaled_and_aborted()
        .into_iter()
        .chain([begun(StepKind::Restore)])
        .collect();
    [vec![begun(StepKind::ScaleToZero)], restore]
        .map(|events| observed(&after(plan(), events, &case, at(0))))
}

/// A stamp without the zero is left by a crash between the two writes of the /scale path: the effect is issued again.
#[test]
fn stamp_and_count_show_whether_a_scaling_was_applied() {
    for (stamp, replicas, to_zero, restore) in [
        (Stamped::Ours, 0, true, false),
        (Stamped::Ours, 1, false, false),
        (Stamped::None, 0, false, true),
        (Stamped::None, 1, false, true),
        (Stamped::Another, 0, false, true),
    ] {
        let world = World {
            stamp: stamp.clone(),
            replicas,
            ..World::new(false)
        };
        assert_eq!(
            of_scaling(&world, |_| {}),
            [Some(to_zero), Some(restore)],
            "{stamp:?}, {replicas}"
        );
    }
}

/// A workload that was deleted is waited for by nobody. One that was read before the write, or not at all, shows nothing.
#[test]
fn a_deleted_workload_ends_the_wait_for_a_scaling() {
    let world = World::new(false);
    let gone = |c: &mut Case| c.evidence.workload.value = Known::Absent;
    assert_eq!(of_scaling(&world, gone), [Some(false), Some(true)]);
    let unread = |c: &mut Case| c.evidence.workload.value = Known::Unknown { why: "503".into() };
    assert_eq!(of_scaling(&world, unread), [None, None]);
    let before = |c: &mut Case| c.evidence.workload.at -= SignedDuration::from_secs(1);
    assert_eq!(of_scaling(&world, before), [None, None]);
}

/// The provider's history shows that the detach ended, and the volume whether it was carried out.
#[test]
fn an_ended_detach_counts_unless_the_holder_is_still_named() {
    let mut walk = detach_unheard();
    assert!(waits_for_a_word(&walk.ask()), "{:?}", walk.ask());
    let holder = walk.plan.pins.holder.clone();
    let job = CloudJob {
        id: "9".into(),
        kind: JobKind::Detach,
        action: "volume_detach".into(),
        status: JobStatus::Finished,
        volume: None,
        instance: None,
        created: walk.case.now,
    };
    walk.case.evidence.jobs =
        Fact::present(vec![job], Source::Cloud("linode".into()), walk.case.now);
    for (holders, applied) in [
        (vec![holder], false),
        (vec![InstanceId::from(OTHER_INSTANCE)], true),
        (Vec::new(), true),
    ] {
        change(&mut walk.case.evidence.cloud_volume, |c| {
            c.holders.clone_from(&holders)
        });
        assert_eq!(
            observed(&walk.ask()),
            Some(applied),
            "{holders:?}: {:?}",
            walk.ask()
        );
    }
    walk.case.evidence.cloud_volume.value = Known::Absent;
    assert_eq!(
        observed(&walk.ask()),
        Some(true),
        "the cloud has no such volume: {:?}",
        walk.ask()
    );
    walk.case.evidence.cloud_volume.value = Known::Unknown { why: "503".into() };
    assert_eq!(observed(&walk.ask()), None);
}

/// A run whose order of this kind got no reply.
fn power_unheard(kind: StepKind) -> Walk {
    if kind == StepKind::PowerOff {
        return power_off_unheard();
    }
    let powers_on = |e: &Effect| matches!(e, Effect::PowerOn { .. });
    Walk::answered(dead_node(), powers_on, unheard())
}

fn instance(walk: &mut Walk, state: Option<InstanceState>) {
    let fact = walk.instance();
    match state {
        Some(state) => change(fact, |i| i.state = state),
        None => fact.value = Known::Unknown { why: "503".into() },
    }
}

pub fn off_stays_off(walk: &mut Walk, stays: bool) {
    let power = walk
        .case
        .evidence
        .power
        .get_mut(&InstanceId::from(INSTANCE))
        .unwrap();
    change(power, |p| p.off_stays_off = stays);
}

/// Where the cloud boots instances by itself, an instance's state shows nothing of an order that the history does not show.
#[test]
fn an_instances_state_shows_an_order_only_if_unambiguous() {
    use InstanceState::{Gone, Off, Running, Stopping};
    let (off, on) = (StepKind::PowerOff, StepKind::PowerOn);
    for (kind, stays_off, state, applied) in [
        (off, true, Off, Some(true)),
        (off, true, Running, None),
        (off, true, Stopping, None),
        (off, false, Off, None),
        (off, false, Running, None),
        (off, false, Gone, Some(true)),
        (on, true, Running, Some(true)),
        (on, true, Off, None),
        (on, false, Running, None),
        (on, false, Gone, Some(true)),
    ] {
        let mut walk = power_unheard(kind);
        off_stays_off(&mut walk, stays_off);
        instance(&mut walk, Some(state.clone()));
        let said = walk.ask();
        assert_eq!(
            observed(&said),
            applied,
            "{kind:?}, {stays_off}, {state:?}: {said:?}"
        );
        assert!(applied.is_some() || waits_for_a_word(&said), "{said:?}");
    }
}

/// A person said that nothing is under way. What the order did is then read from the instance. Where nothing leads to the
/// cloud any more, the machine counts as off, so that a person looks after it.
#[test]
fn after_a_persons_statement_the_instance_shows_the_outcome() {
    use InstanceState::{Off, Running};
    let word = |walk: &Walk| Word {
        by: "grace".into(),
        reason: "I looked".into(),
        at: walk.case.now,
    };
    for (kind, state, reachable, applied) in [
        (StepKind::PowerOff, Some(Off), true, Some(true)),
        (StepKind::PowerOff, Some(Running), true, Some(false)),
        (StepKind::PowerOff, None, true, None),
        (StepKind::PowerOff, None, false, Some(true)),
        (StepKind::PowerOn, Some(Running), true, Some(true)),
        (StepKind::PowerOn, Some(Off), true, Some(false)),
        (StepKind::PowerOn, None, true, None),
        (StepKind::PowerOn, None, false, Some(false)),
    ] {
        let mut walk = power_unheard(kind);
        instance(&mut walk, state.clone());
        if !reachable {
            leave_the_cluster(&mut walk);
            walk.case.evidence.cloud_id = None;
            assert!(waits_for_a_word(&walk.ask()), "{:?}", walk.ask());
        }
        let said = asked(&walk, None, Some(&word(&walk)));
        assert_eq!(
            observed(&said),
            applied,
            "{kind:?}, {state:?}, reachable {reachable}: {said:?}"
        );
    }
}

/// A run that turned back after its detach was accepted, with what the cloud shows of it then.
#[test]
fn an_accepted_detach_is_awaited_until_the_cloud_shows_its_end() {
    let forced = |walk: &mut Walk| {
        walk.pass(61);
        until(walk, |walk, _| {
            walk.state().current() == walk.plan.find(StepKind::CloudForce)
        });
    };
    let plain: fn(&mut Walk) = |_| {};
    for taken_over in [plain, forced] {
        for (named, under_way, lifts) in [
            (true, false, false),
            (true, true, false),
            (false, true, false),
            (false, false, true),
        ] {
            let mut walk = super::steps::accepted();
            taken_over(&mut walk);
            pending(&mut walk, under_way);
            super::steps::holders(&mut walk, if named { &["26000009"] } else { &[] });
            let said = super::late::settled(&mut walk, Some("jane"), None);
            let puts_back = matches!(&said, Next::Act(a) if a.effect.puts_back());
            assert_eq!(
                puts_back,
                lifts,
                "holder {named}, job {under_way}: {said:?}\n{}",
                walk.story()
            );
            assert!(under_way || lifts || waits_for_a_word(&said), "{said:?}");
        }
    }
}
